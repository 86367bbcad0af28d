"""What partition and compare print."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from cli.printing import Column, console, counted, duration, human, mib, print_json, print_table
from costmodels.flops import total_flops
from cutedge._words import bottleneck_sentence, coverage, no_figures
from partition.crossover import Crossover, Point
from partition.ladder import Exposure, Step
from partition.layers import TopologicalCut
from partition.optimise import Price, Setting
from partition.run import Run
from partition.seen import Derived, What, known
from partition.tables import Split, summary_row
from tracer.graph import OpGraph, TraceMeta
from tracer.kinds import base_name
from tracer.summary import growth, headline, tensor_names

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
        *_times(partition),
        *([bare] if bare else []),
        *_proof(partition, made.topological_cut),
    ):
        out.print(line)
    for device, size in traffic.resident_bytes.items():
        out.print(f"resident on {device}: {human(size)} of parameters and constants")
    for one in partition.exposed:
        for line in _seen(one):
            out.print(line)
    for device, found in made.derived.items():
        for line in _nearness(partition.graph, device, found):
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


def _times(partition: Split) -> Iterable[str]:
    """What the run takes and on what, where the devices or the link are known."""
    parts = dict(partition.compute_seconds)
    run, moving = partition.run, partition.traffic.totals.seconds
    if parts and moving is not None:
        parts[partition.link] = moving
    each = [f"{name} {duration(seconds)}" for name, seconds in parts.items()]
    if run is not None and run.seconds:
        shares = [seconds / run.seconds for seconds in parts.values()]
        each = [f"{one} ({share:.2%})" for one, share in zip(each, shares, strict=True)]
        yield f"run: {duration(run.seconds)} = {' + '.join(each)}, one after another"
        yield f"{duration(run.seconds_per_token)} a token, {_speed(run)} tokens a second"
    elif parts:
        yield f"computing: {', '.join(each)}"
    for name, cycles in partition.cycles.items():
        faster = f" ({partition.options.text})" if partition.options.text else ""
        yield f"{name}: {cycles:,} cycles{faster}"
    if run is not None and run.link_bound_chips is not None:
        yield (
            f"from {counted(run.link_bound_chips, 'chip')} on, {partition.link}, which they "
            "share, takes longer than they compute; with ever more of them the run takes "
            f"{duration(run.many_chips_seconds or 0.0)}"
        )
    elif run is not None and run.many_chips_seconds is not None:
        yield (
            f"with ever more chips the run takes {duration(run.many_chips_seconds)}: one tile of "
            f"each product takes longer than {partition.link}"
        )


def _speed(run: Run) -> str:
    """Tokens a second, of a run that takes time, to four digits or to one."""
    rate = 1 / run.seconds_per_token
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def amount(value: int, unit: str | None) -> str:
    """A solution's objective or bound."""
    if unit == "ns":
        return duration(value / 1e9)
    return f"{value:,} bytes ({mib(value)})" if unit == "bytes" else f"{value:,} (weighted)"


def _proof(partition: Split, beside: TopologicalCut | None) -> Iterable[str]:
    """How good a placement is that was searched for."""
    solution = partition.solution
    if solution is None or solution.objective is None:
        return
    found = f"{amount(solution.objective, partition.unit)} by {SOLVERS[solution.solver]}"
    what = "cut between two layers" if solution.cut else "placement"
    if solution.proven:
        yield f"optimal for {partition.objective}: {found}; no {what} that is allowed has less"
    else:
        yield (
            f"best found for {partition.objective}: {found}; the optimum is not below "
            f"{amount(solution.bound, partition.unit)} (gap {solution.gap or 0:.2%})"
        )
    if beside is not None:
        where = ", ".join(beside.after[:_NAMED]) or "the inputs"
        more = f" and {len(beside.after) - _NAMED} more" if len(beside.after) > _NAMED else ""
        yield (
            f"the cut is {solution.cut}; the best one of the op graph, at any op, is "
            f"{amount(beside.objective_value, partition.unit)}, after {where}{more}"
        )


_NAMED = 4
"""Tensors that a sentence names."""


SOLVERS = {
    "cut": "minimum cut", "networkx": "minimum cut", "program": "mixed-integer program",
    "layers": "trying every cut", "candidates": "comparing policies",
}  # fmt: skip
"""What solvers are called."""


def _seen(one: Exposure) -> Iterable[str]:
    """What an accelerator sees, in words; how many bytes of it is a detail."""
    yield f"{one.device} sees {one.words}"
    yield (
        f"{one.device} is sent {human(one.sent_bytes)}, computes {human(one.made_bytes)} and holds "
        f"{human(one.parameter_bytes)} of parameters, in plain"
    )
    seen = known(one.seen)
    if What.EMBEDDINGS in seen:
        yield f"{one.device}: who has the table of the embeddings has the tokens; it may be public"
    if What.LOGITS in seen:
        yield f"{one.device}: the logits tell the next token"


def sees(exposed: Sequence[Exposure]) -> str:
    """The sorts of tensor that devices see or can work out, in a cell of a table."""
    found = known(sort for one in exposed for sort in one.seen)
    return ", ".join(what.words for what in found) or "nothing"


_TOLD = 6
"""So many groups of derived tensors are told of a device."""


def _nearness(graph: OpGraph, device: str, found: Sequence[Derived]) -> Iterable[str]:
    """What arithmetic makes of secrets on a device, the nearest first, alike ones together."""
    names = tensor_names(graph)
    groups: dict[tuple[str, tuple[str, ...], bool, bool], int] = {}
    for one in found:
        ops = tuple(base_name(graph.ops[op].target) for op in one.ops)
        key = names[one.tensor.id], ops, one.linear, one.recoverable
        groups[key] = groups.get(key, 0) + 1
    for (name, ops, linear, back), count in [*groups.items()][:_TOLD]:
        through = ", ".join(ops[:_NAMED]) + (" ..." if len(ops) > _NAMED else "")
        how = f"{counted(len(ops), 'op')} away ({through}){', linear' if linear else ''}"
        undone = ", and can be undone with what is there" if back else ""
        yield f"{device} gets {count} x {name} of what is secret: {how}{undone}"
    if len(groups) > _TOLD:
        yield f"{device} gets {len(groups) - _TOLD} more sorts of what is made of secrets"
    if not found:
        yield f"{device} gets nothing that is made of what is secret"


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


def partition_dict(
    made: "cutedge.Partition", folder: object, *, explain: bool = False
) -> dict[str, Any]:
    """``partition --json``, and an entry of ``compare --json``."""
    partition, bottleneck, beside = made.split, made.bottleneck, made.topological_cut
    why = made.explain() if explain else None
    relief = bottleneck.relief if bottleneck else None
    return {
        "folder": str(folder), **partition.graph.meta.variables, **partition.identity,
        **summary_row(partition), **_run_dict(partition.run),
        "objective_gap": partition.solution and partition.solution.gap,
        "topological_cut": None if beside is None else {
            "objective_value": beside.objective_value, "after": list(beside.after),
        },
        "exposed": [{**asdict(one), "words": one.words} for one in partition.exposed],
        "derived": {
            device: [
                {
                    "tensor_id": one.tensor.id, "tensor_name": one.tensor.name,
                    "label": one.tensor.label, "secret_tensor_name": one.source.name,
                    "ops": list(one.ops), "linear": one.linear,
                    "targets": [partition.graph.ops[op].target for op in one.ops],
                    "recoverable": one.recoverable,
                }
                for one in found
            ]
            for device, found in made.derived.items()
        },
        **({} if why is None else {
            "ladder": [asdict(step) for step in why[0]],
            "prices": [asdict(price) for price in why[1]],
        }),
        "unsupported": dict(total_flops(partition.graph).unsupported),
        "top_transfers": [
            {
                "tensor_group": g.name, "direction": g.direction, "count": g.count,
                "each_payload_bytes": g.example.payload_bytes, "payload_bytes": g.payload_bytes,
                "share": g.share, "seq_degree": g.example.tensor.seq_degree,
            }
            for g in made.top_transfers
        ],
        "bottleneck": None if bottleneck is None else {
            "name": bottleneck.name, "transfers": bottleneck.transfers,
            "payload_bytes": bottleneck.payload_bytes, "share": bottleneck.share,
            "seq_degree": bottleneck.example.seq_degree,
            "relief": None if relief is None else {
                "saved_bytes": relief.saved_bytes, "saved_calls": relief.saved_calls,
                "moved_ops": list(relief.moved_ops), "device": relief.device,
                "policy": relief.policy, "wire_dtype": relief.wire_dtype,
                "elsewhere": relief.elsewhere,
            },
        },
    }  # fmt: skip


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
            "" if run is None or not run.seconds else _speed(run) for *_, run in rows
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
    changes: Sequence[Crossover], *, as_json: bool,
) -> None:  # fmt: skip
    """``compare --over``: which policy is best at which size."""
    if as_json:
        print_json({
            "model": meta.model, "over": variable, "unit": unit,
            "points": [
                {variable: p.size, "best": p.best, "values": dict(p.values)} for p in points
            ],
            "crossovers": [
                {variable: c.size, "before": c.before, "after": c.after} for c in changes
            ],
        })  # fmt: skip
        return

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


def _run_dict(run: Run | None) -> dict[str, Any]:
    """What ``summary`` does not say of a run."""
    shares = (None,) * 3 if run is None else run.shares
    return {
        "tokens": run and run.tokens,
        "chips": run and run.chips,
        **dict(zip(("home_share", "accelerator_share", "link_share"), shares, strict=True)),
    }


def comparison_rows(compared: "cutedge.Comparison", within: float | None) -> list[dict[str, Any]]:
    """``compare --json``, of one trace: for each policy as ``partition --json``, and savings."""
    return [
        {
            **partition_dict(made, Path(compared.trace.folder or "", made.split.folder)),
            **asdict(saving), "baseline": compared.compared.baseline.policy,
            **({} if within is None else {
                "usable": None if made.split.run is None else slower is None,
                "times_too_slow": slower,
            }),
        }
        for made, saving in zip(compared, compared.compared.comparisons, strict=True)
        for slower in [within and made.split.run and made.split.run.too_slow(within)]
    ]  # fmt: skip
