"""What partition and compare print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from cli.printing import Column, console, counted, duration, human, mib, print_table
from cutedge._words import (
    amount,
    bottleneck_sentence,
    coverage,
    derived_sentences,
    no_figures,
    proof_sentences,
    run_sentences,
    seen_sentences,
    sees,
    speed,
)
from partition.crossover import Crossover, Point
from partition.ladder import Step
from partition.optimise import Price, Setting
from partition.tables import Split
from tracer.graph import TraceMeta
from tracer.summary import growth, headline

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
    )
    out.print()
    out.print(
        f"{counted(len(traffic.calls), 'call')}, {counted(len(traffic.transfers), 'transfer')}"
    )
    ways = [
        ("sent", totals.sent_payload_bytes, totals.sent_wire_bytes, totals.sent_seconds),
        (
            "received", totals.received_payload_bytes, totals.received_wire_bytes,
            totals.received_seconds,
        ),
        (
            "between accelerators", totals.peer_payload_bytes, totals.peer_wire_bytes,
            totals.peer_seconds,
        ),
        ("total", totals.payload_bytes, totals.wire_bytes, totals.seconds),
    ]  # fmt: skip
    timed = any(seconds is not None for *_, seconds in ways)
    print_table(
        [
            Column(""), Column("payload", ">"),
            Column(f"on the wire ({partition.link})", ">", 1),
            *([Column("transfer time", ">", 2)] if timed else []),
        ],
        [
            (name, mib(payload), mib(framed), *([_time(seconds)] if timed else []))
            for name, payload, framed, seconds in ways
            if name != "between accelerators" or payload
        ],
    )  # fmt: skip
    used = partition.links and partition.links.among(placement.home, placement.accelerators)
    for link in dict.fromkeys((used or {}).values()):
        if link.chunk_bytes is not None:
            out.print(
                f"sent in chunks of {human(link.chunk_bytes)} at most: "
                f"the peak buffer is {human(traffic.peak_buffer_bytes)}"
            )
    if traffic.total_expr is not None:
        out.print(f"total payload bytes = {traffic.total_expr}")
    bare = no_figures(partition)
    for line in (
        *run_sentences(partition),
        *([bare] if bare else []),
        *proof_sentences(partition, made.topological_cut),
    ):
        out.print(line)
    for device, size in traffic.resident_bytes.items():
        out.print(f"resident on {device}: {human(size)} of parameters and constants")
    for one in partition.exposed:
        for line in seen_sentences(one):
            out.print(line)
    for device, found in made.derived.items():
        for line in derived_sentences(partition.graph, device, found):
            out.print(line)
    out.print(coverage(partition.graph))
    out.print()
    if why is not None:
        _print_why(partition, *why)
    if made.top_transfers:
        print_table(
            [
                Column("top transfers"), Column("direction", "<", 1), Column("count", ">", 3),
                Column("each", ">", 2), Column("all", ">"), Column("share", "%"),
                Column("growth", "<", 4),
            ],
            [
                (
                    group.name, group.direction, str(group.count),
                    human(group.example.payload_bytes), human(group.payload_bytes),
                    f"{group.share:.1%}", growth(group.example.tensor),
                )
                for group in made.top_transfers[:8]
            ],
        )  # fmt: skip
        out.print()
    out.print(bottleneck_sentence(made.bottleneck))
    out.print(f"written to {folder}")


def _print_why(partition: Split, steps: Sequence[Step], prices: Sequence[Price]) -> None:
    print_table(
        [
            Column("step from offload-linear", "~"), Column("ops", ">", 2), Column("to", "<", 1),
            Column("saves", ">"), Column("calls", ">"), Column("left", ">", 3),
        ],
        [
            (
                step.ops, str(step.count), step.device, mib(step.saved_bytes),
                f"{-step.saved_calls:+}" if step.saved_calls else "", mib(step.total_payload_bytes),
            )
            for step in steps
        ],
    )  # fmt: skip
    console().print()
    if prices:
        print_table(
            [
                Column("price of a rule or secret", "~"), Column("ops", ">", 1),
                Column("costs", ">"), Column(""),
            ],
            [
                (
                    price.reason or price.rule, str(price.ops),
                    amount(price.saved, partition.unit), "" if price.proven else "about",
                )
                for price in prices
            ],
        )  # fmt: skip
        console().print()


def _time(seconds: float | None) -> str:
    return "not known" if seconds is None else duration(seconds)


def comparison(compared: "cutedge.Comparison", within: float | None) -> None:
    """What ``compare`` prints of one trace: the policies side by side."""
    out, found = console(), compared.compared
    partitions, baseline, savings = found.partitions, found.baseline, found.comparisons
    meta = baseline.graph.meta
    out.print(Text(headline(meta), style="bold"))
    out.print(
        f"{_between(found.setting)}, {baseline.wire} on the wire, residency {baseline.residency}; "
        f"saved is against {baseline.policy}"
    )
    out.print()
    columns = {
        Column("policy"): [p.policy for p in partitions],
        Column("calls", ">", 1): [str(len(p.traffic.calls)) for p in partitions],
        Column("sent", ">", 3): [mib(p.traffic.totals.sent_payload_bytes) for p in partitions],
        Column("received", ">", 3): [
            mib(p.traffic.totals.received_payload_bytes) for p in partitions
        ],
        Column("total", ">", 1): [mib(p.traffic.totals.payload_bytes) for p in partitions],
        Column("saved", ">", 6): [mib(c.saved_bytes) for c in savings],
        Column("saved %", ">", 4): [
            "" if c.saved_share is None else f"{c.saved_share:.1%}" for c in savings
        ],
        Column("resident off home", ">", 8): [human(c.resident_off_home_bytes) for c in savings],
    }
    if any(p.traffic.totals.seconds is not None for p in partitions):
        columns[Column("transfer time", ">", 5)] = [
            _time(p.traffic.totals.seconds) for p in partitions
        ]
    if any(p.run_seconds is not None for p in partitions):
        columns[Column("run", ">", 2)] = [_time(p.run_seconds) for p in partitions]
    if any(p.exposed for p in partitions):
        columns[Column("seen", "<", 9)] = [sees(p.exposed) for p in partitions]
    if any(p.solution is not None for p in partitions):
        columns[Column("best for", "<", 7)] = [_best(p) for p in partitions]
    if within is not None:
        columns[Column(_within(within), "<", 2)] = [_verdict(p, within) for p in partitions]
    print_table([*columns], zip(*columns.values(), strict=True))
    if bare := no_figures(baseline):
        out.print(bare)
    for name, reason in found.without.items():
        out.print(f"without {name}: {reason}")
    if meta.symbolic:
        out.print()
        out.print(f"Total payload bytes in {' and '.join(meta.symbolic)}:")
        for partition in partitions:
            out.print(f"  {partition.policy} = {partition.traffic.total_expr}")
    out.print()
    out.print(coverage(baseline.graph))
    out.print(f"written to {compared.trace.folder}")


def runs(compared: "Sequence[cutedge.Comparison]", within: float | None) -> None:
    """What ``compare`` prints of several traces: a row for each model and policy."""
    out, found = console(), [one.compared for one in compared]
    first = found[0]
    faster = first.baseline.options.text
    out.print(
        f"{_between(first.setting)} over {first.setting.links.name}, residency "
        f"{first.setting.residency}{f'; {faster}' if faster else ''}"
    )
    out.print()
    rows = [(p, p.graph.meta, p.run) for one in found for p in one.partitions]
    columns = {
        Column("model"): [meta.model for _, meta, _ in rows],
        Column("phase", "<", 4): [meta.phase for _, meta, _ in rows],
        **{
            Column(size, ">", 5): [str(meta.variables[size]) for _, meta, _ in rows]
            for size in ("batch", "seq", "past")
        },
        Column("policy"): [p.policy for p, *_ in rows],
        Column("calls", ">", 1): [str(len(p.traffic.calls)) for p, *_ in rows],
        Column("total", ">", 1): [human(p.traffic.totals.payload_bytes) for p, *_ in rows],
        **{
            Column(part, "%", 6): ["" if r is None else f"{r.shares[n]:.2%}" for *_, r in rows]
            for n, part in enumerate(("home", "accelerators", "links"))
        },
        Column("cycles", ">", 7): [f"{sum(p.cycles.values()):,}" for p, *_ in rows],
        Column("run", ">", 2): [_time(p.run_seconds) for p, *_ in rows],
        Column("tokens/s", ">", 3): [
            "" if run is None or not run.seconds else speed(run) for *_, run in rows
        ],
    }
    if not any(p.cycles for p, *_ in rows):
        del columns[Column("cycles", ">", 7)]
    if any(p.exposed for p, *_ in rows):
        columns[Column("seen", "<", 9)] = [sees(p.exposed) for p, *_ in rows]
    if within is not None:
        columns[Column(_within(within), "<", 2)] = [_verdict(p, within) for p, *_ in rows]
    print_table([*columns], zip(*columns.values(), strict=True))
    for one in found:
        for name, reason in one.without.items():
            model = one.baseline.graph.meta.model
            out.print(f"{model} without {name}: {reason}")
    out.print()
    for one in found:
        out.print(f"{one.baseline.graph.meta.model}: {coverage(one.baseline.graph)}")


def _between(setting: Setting) -> str:
    return f"{setting.home} as home, {' and '.join(setting.accelerators)} called"


def _within(seconds: float | None) -> str:
    return "" if seconds is None else f"within {duration(seconds)} a token"


def _verdict(partition: Split, within: float) -> str:
    """Whether a run is usable."""
    if partition.run is None:
        return "not known"
    ratio = partition.run.too_slow(within)
    return "usable" if ratio is None else f"{ratio:,.3g} x too slow"


def over(
    meta: TraceMeta, variable: str, unit: str, points: Sequence[Point],
    changes: Sequence[Crossover],
) -> None:  # fmt: skip
    """``compare --over``: which policy is best at which size."""

    def shown(value: float) -> str:
        return duration(value) if unit == "seconds" else mib(int(value))

    out = console()
    out.print(Text(headline(meta), style="bold"))
    out.print(f"{unit} of a run over {variable}, each policy placed anew at each size")
    out.print()
    names = list(dict.fromkeys(name for p in points for name in p.values))
    print_table(
        [
            Column(variable, ">"), *(Column(name, ">", 1 + n) for n, name in enumerate(names)),
            Column("best"),
        ],
        [
            (
                f"{p.size:,}",
                *(shown(p.values[n]) if n in p.values else "not possible" for n in names),
                p.best,
            )
            for p in points
        ],
    )  # fmt: skip
    out.print()
    best = [(points[0].size, points[0].best), *((c.size, c.after) for c in changes)]
    ends = [size - 1 for size, _ in best[1:]] + [points[-1].size]
    for (size, name), end in zip(best, ends, strict=True):
        out.print(f"from {variable} {size:,} to {end:,}: {name} is best")


def _best(partition: Split) -> str:
    solution = partition.solution
    if solution is None:
        return ""
    proof = "proven" if solution.proven else f"gap {solution.gap or 0:.2%}"
    return f"{partition.objective} ({proof})"
