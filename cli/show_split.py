"""What partition and compare print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.app import say
from cli.printing import print_table
from cutedge import _rows, _words
from partition.crossover import Crossover, Point
from partition.ladder import LadderStep
from partition.prices import Price
from partition.split import Split
from tracer.graph import TraceMeta
from tracer.summary import headline
from tracer.words import counted, mib

if TYPE_CHECKING:
    import cutedge


def partition_summary(made: "cutedge.Partition", folder: object, *, explain: bool) -> None:
    """What ``partition`` ends with."""
    partition, why = made.split, made.explain() if explain else None
    traffic, totals, placement = partition.traffic, partition.traffic.totals, partition.placement
    say(headline(partition.graph.meta), bold=True)
    accelerators = ", ".join(placement.accelerators) or "no accelerator"
    say(
        f"policy {partition.policy}: {placement.home} calls {accelerators}, "
        f"{partition.wire} on the wire, residency {partition.residency}"
        f"{_words.how_placed(partition)}"
    )
    say()
    say(f"{counted(len(traffic.calls), 'call')}, {counted(len(traffic.transfers), 'transfer')}")
    ways = totals.by_way
    least = totals.at_least
    timed = any(seconds is not None for *_, seconds in ways.values())
    print_table(
        ["", "payload>", f"on the wire ({partition.link})>1", *["transfer time>2"][:timed]],
        [
            (
                name,
                mib(payload),
                mib(framed),
                *([_rows.time_words(seconds, least)] if timed else []),
            )
            for name, (payload, framed, seconds) in ways.items()
        ],
    )
    for line in _words.split_sentences(made):
        say(line)
    say()
    if partition.schedule is not None:
        print_table("on, busy>, idle%", _rows.resource_rows(partition, partition.schedule))
        critical = _rows.critical_rows(partition, partition.schedule)
        print_table("critical path~, on<1, count>2, takes>, share%", critical)
        say()
    if why is not None:
        _print_why(*why)
    if made.top_transfers:
        print_table(
            "top transfers, direction<1, count>3, each>2, all>, share%, growth<4",
            _rows.transfer_rows(made.top_transfers),
        )
        say()
    say(_words.bottleneck_sentence(made.bottleneck, made.split))
    say(f"written to {folder}")


def _print_why(steps: Sequence[LadderStep], prices: Sequence[Price]) -> None:
    print_table(
        "step from offload-linear~, ops>2, to<1, saves>, calls>, left>3", _rows.ladder_rows(steps)
    )
    say()
    if prices:
        print_table("price of a rule or secret~, ops>1, costs>, ", _rows.price_rows(prices))
        say()


def _left_out(found: Sequence[Split | Point], *, rates: bool = False) -> None:
    for line in _words.left_out(found):
        say(f"{line} (>= is at least{', <= at most' * rates})")


def comparison(compared: "cutedge.Comparison", within: float | None) -> None:
    """What ``compare`` prints of one trace: the policies side by side."""
    found = compared.compared
    partitions, baseline = found.partitions, found.baseline
    meta = baseline.graph.meta
    say(headline(meta), bold=True)
    say(
        f"{_words.devices_of(found.setting)}, {baseline.wire} on the wire, residency "
        f"{baseline.residency}{_words.how_placed(baseline)}; saved is against {baseline.policy}"
    )
    say()
    columns = _rows.comparison_columns(found, within)
    print_table([*columns], zip(*columns.values(), strict=True))
    if bare := _words.no_figures(baseline):
        say(bare)
    for line in [*_words.granularity_prices(partitions), *_words.estimates(partitions)]:
        say(line)
    _left_out(partitions)
    for name, reason in found.without.items():
        say(f"without {name}: {reason}")
    if meta.symbolic:
        say()
        say(f"Total payload bytes in {' and '.join(meta.symbolic)}:")
        for partition in partitions:
            say(f"  {partition.policy} = {partition.traffic.total_expr}")
    say()
    say(_words.coverage(baseline.graph))
    say(f"written to {compared.trace.folder}")


def runs(compared: "Sequence[cutedge.Comparison]", within: float | None) -> None:
    """What ``compare`` prints of several traces: a row for each model and policy."""
    found = [one.compared for one in compared]
    first = found[0]
    faster, at = first.baseline.options.text, _words.how_placed(first.baseline)
    say(
        f"{_words.devices_of(first.setting)} over {first.setting.machine.links.name}, residency "
        f"{first.setting.residency}{at}{f'; {faster}' if faster else ''}"
    )
    say()
    columns = _rows.runs_columns(found, within)
    print_table([*columns], zip(*columns.values(), strict=True))
    every = [p for one in found for p in one.partitions]
    for line in _words.estimates(every):
        say(line)
    _left_out(every, rates=True)
    for one in found:
        for name, reason in one.without.items():
            model = one.baseline.graph.meta.model
            say(f"{model} without {name}: {reason}")
    say()
    for one in found:
        say(f"{one.baseline.graph.meta.model}: {_words.coverage(one.baseline.graph)}")


def over(
    meta: TraceMeta,
    variable: str,
    unit: str,
    points: Sequence[Point],
    changes: Sequence[Crossover],
    schedule: str | None,
) -> None:
    """``compare --over``: which policy is best at which size."""
    laid = f" (schedule {schedule})" if schedule else ""
    say(headline(meta), bold=True)
    say(f"{unit} of a run{laid} over {variable}, each policy placed anew at each size")
    say()
    print_table(*_rows.crossover_table(variable, unit, points))
    _left_out(points)
    say()
    for line in _words.crossover_sentences(variable, points, changes):
        say(line)
