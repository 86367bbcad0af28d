"""What partition and compare print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from cli.printing import console, print_table
from cutedge import _rows, _words
from partition.crossover import Crossover, Point
from partition.ladder import LadderStep
from partition.optimise import Price
from partition.split import Split
from tracer.graph import TraceMeta
from tracer.summary import headline
from tracer.words import counted, human, mib

if TYPE_CHECKING:
    import cutedge


def partition_summary(made: "cutedge.Partition", folder: object, *, explain: bool) -> None:
    """What ``partition`` ends with."""
    partition, why = made.split, made.explain() if explain else None
    out = console()
    traffic, totals, placement = partition.traffic, partition.traffic.totals, partition.placement
    out.print(Text(headline(partition.graph.meta), style="bold"))
    accelerators = ", ".join(placement.accelerators) or "no accelerator"
    out.print(
        f"policy {partition.policy}: {placement.home} calls {accelerators}, "
        f"{partition.wire} on the wire, residency {partition.residency}"
        f"{_words.how_placed(partition)}"
    )
    out.print()
    out.print(
        f"{counted(len(traffic.calls), 'call')}, {counted(len(traffic.transfers), 'transfer')}"
    )
    ways = totals.by_way
    least = totals.at_least
    timed = any(seconds is not None for *_, seconds in ways.values())
    print_table(
        ["", "payload>", f"on the wire ({partition.link})>1", *["transfer time>2"][:timed]],
        [
            (name, mib(payload), mib(framed), *([_time(seconds, least)] if timed else []))
            for name, (payload, framed, seconds) in ways.items()
        ],
    )
    for line in _words.split_sentences(made):
        out.print(line)
    out.print()
    if partition.schedule is not None:
        print_table("on, busy>, idle%", _rows.resource_rows(partition, partition.schedule))
        critical = _rows.critical_rows(partition, partition.schedule)
        print_table("critical path~, on<1, count>2, takes>, share%", critical)
        out.print()
    if why is not None:
        _print_why(*why)
    if made.top_transfers:
        print_table(
            "top transfers, direction<1, count>3, each>2, all>, share%, growth<4",
            _rows.transfer_rows(made.top_transfers),
        )
        out.print()
    out.print(_words.bottleneck_sentence(made.bottleneck))
    out.print(f"written to {folder}")


def _print_why(steps: Sequence[LadderStep], prices: Sequence[Price]) -> None:
    print_table(
        "step from offload-linear~, ops>2, to<1, saves>, calls>, left>3", _rows.ladder_rows(steps)
    )
    console().print()
    if prices:
        print_table("price of a rule or secret~, ops>1, costs>, ", _rows.price_rows(prices))
        console().print()


def _time(seconds: float | None, at_least: object) -> str:
    return "not known" if seconds is None else _words.no_less(seconds, at_least)


def _left_out(found: Sequence[Split | Point], *, rates: bool = False) -> None:
    for line in _words.left_out(found):
        console().print(f"{line} (>= is at least{', <= at most' * rates})")


def comparison(compared: "cutedge.Comparison", within: float | None) -> None:
    """What ``compare`` prints of one trace: the policies side by side."""
    out, found = console(), compared.compared
    partitions, baseline, savings = found.partitions, found.baseline, found.comparisons
    meta = baseline.graph.meta
    out.print(Text(headline(meta), style="bold"))
    out.print(
        f"{_words.devices_of(found.setting)}, {baseline.wire} on the wire, residency "
        f"{baseline.residency}{_words.how_placed(baseline)}; saved is against {baseline.policy}"
    )
    out.print()
    columns = {
        "policy": [p.policy for p in partitions],
        "calls>1": [str(len(p.traffic.calls)) for p in partitions],
        "sent>3": [mib(p.traffic.totals.sent_payload_bytes) for p in partitions],
        "received>3": [mib(p.traffic.totals.received_payload_bytes) for p in partitions],
        "total>1": [mib(p.traffic.totals.payload_bytes) for p in partitions],
        "saved>6": [mib(c.saved_bytes) for c in savings],
        "saved %>4": ["" if c.saved_share is None else f"{c.saved_share:.1%}" for c in savings],
        "resident off home>8": [human(c.resident_off_home_bytes) for c in savings],
    }
    if any(p.traffic.totals.seconds is not None for p in partitions):
        columns["transfer time>5"] = [
            _time(p.traffic.totals.seconds, p.traffic.totals.at_least) for p in partitions
        ]
    if any(p.run_seconds is not None for p in partitions):
        columns["run>2"] = [_time(p.run_seconds, p.left_out) for p in partitions]
    columns |= _words.schedule_columns(partitions)
    if any(p.exposed for p in partitions):
        columns["seen<9"] = [_words.sees(p.exposed) for p in partitions]
    if any(p.solution is not None for p in partitions):
        columns["best for<7"] = [_words.best_for(p) for p in partitions]
    if within is not None:
        columns[f"{_words.within_words(within)}<2"] = [
            _words.verdict(p, within) for p in partitions
        ]
    print_table([*columns], zip(*columns.values(), strict=True))
    if bare := _words.no_figures(baseline):
        out.print(bare)
    for line in [*_words.granularity_prices(partitions), *_words.estimates(partitions)]:
        out.print(line)
    _left_out(partitions)
    for name, reason in found.without.items():
        out.print(f"without {name}: {reason}")
    if meta.symbolic:
        out.print()
        out.print(f"Total payload bytes in {' and '.join(meta.symbolic)}:")
        for partition in partitions:
            out.print(f"  {partition.policy} = {partition.traffic.total_expr}")
    out.print()
    out.print(_words.coverage(baseline.graph))
    out.print(f"written to {compared.trace.folder}")


def runs(compared: "Sequence[cutedge.Comparison]", within: float | None) -> None:
    """What ``compare`` prints of several traces: a row for each model and policy."""
    out, found = console(), [one.compared for one in compared]
    first = found[0]
    faster, at = first.baseline.options.text, _words.how_placed(first.baseline)
    out.print(
        f"{_words.devices_of(first.setting)} over {first.setting.machine.links.name}, residency "
        f"{first.setting.residency}{at}{f'; {faster}' if faster else ''}"
    )
    out.print()
    rows = [(p, p.graph.meta, p.run) for one in found for p in one.partitions]
    columns = {
        "model": [meta.model for _, meta, _ in rows],
        "phase<4": [meta.phase for _, meta, _ in rows],
        **{
            f"{size}>5": [str(meta.variables[size]) for _, meta, _ in rows]
            for size in ("batch", "seq", "past")
        },
        "policy": [p.policy for p, *_ in rows],
        "calls>1": [str(len(p.traffic.calls)) for p, *_ in rows],
        "total>1": [human(p.traffic.totals.payload_bytes) for p, *_ in rows],
        **{
            f"{part}%6": ["" if r is None else f"{r.shares[n]:.2%}" for *_, r in rows]
            for n, part in enumerate(("home", "accelerators", "links"))
        },
        "cycles>7": [_words.cycles(p) for p, *_ in rows],
        "run>2": [_time(p.run_seconds, p.left_out) for p, *_ in rows],
        "tokens/s>3": [
            "" if run is None or not run.seconds else _words.speed(run, at_most=p.left_out)
            for p, _, run in rows
        ],
        **_words.schedule_columns([p for p, *_ in rows]),
    }
    if not any(p.cycles for p, *_ in rows):
        del columns["cycles>7"]
    if any(p.exposed for p, *_ in rows):
        columns["seen<9"] = [_words.sees(p.exposed) for p, *_ in rows]
    if within is not None:
        columns[f"{_words.within_words(within)}<2"] = [_words.verdict(p, within) for p, *_ in rows]
    print_table([*columns], zip(*columns.values(), strict=True))
    for line in _words.estimates([p for p, *_ in rows]):
        out.print(line)
    _left_out([p for p, *_ in rows], rates=True)
    for one in found:
        for name, reason in one.without.items():
            model = one.baseline.graph.meta.model
            out.print(f"{model} without {name}: {reason}")
    out.print()
    for one in found:
        out.print(f"{one.baseline.graph.meta.model}: {_words.coverage(one.baseline.graph)}")


def over(
    meta: TraceMeta,
    variable: str,
    unit: str,
    points: Sequence[Point],
    changes: Sequence[Crossover],
    schedule: str | None,
) -> None:
    """``compare --over``: which policy is best at which size."""
    out, laid = console(), f" (schedule {schedule})" if schedule else ""
    out.print(Text(headline(meta), style="bold"))
    out.print(f"{unit} of a run{laid} over {variable}, each policy placed anew at each size")
    out.print()
    print_table(*_rows.crossover_table(variable, unit, points))
    _left_out(points)
    out.print()
    for line in _words.crossover_sentences(variable, points, changes):
        out.print(line)
