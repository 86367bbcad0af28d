"""What command line, reports and notebooks say in one way of figures."""

from collections.abc import Callable, Iterable, Sequence

from costmodels.flops import FlopTotals, numbered, total_flops
from partition import seen as sorts
from partition.explain import Bottleneck
from partition.ladder import Exposure
from partition.layers import TopologicalCut
from partition.run import Run
from partition.tables import Split
from tracer.graph import OpGraph
from tracer.kinds import base_name
from tracer.summary import growth, tensor_names
from tracer.words import counted, covered, duration, human, mib


def coverage(graph: OpGraph) -> str:
    """How much of a graph the totals are of."""
    flops = total_flops(graph)
    return (
        f"coverage: bytes are exact for all {counted(len(graph.ops), 'op')}; FLOPs are "
        f"{known(flops)} of those that work{unknown(flops)}"
    )


def known(flops: FlopTotals) -> str:
    """Of how many ops the FLOPs are known."""
    return f"known for {covered(flops.coverage)}"


def unknown(flops: FlopTotals) -> str:
    """What no total of FLOPs includes."""
    return f"; not for {numbered(flops.unsupported)}" if flops.unsupported else ""


def no_figures(partition: Split) -> str | None:
    """On which devices of a placement the seconds of ops are not known; None where all are."""
    where = partition.placement
    bare = [d for d in (where.home, *where.accelerators) if d not in partition.compute_seconds]
    if not bare:
        return None
    return (
        f"no figures for all that runs on {' and '.join(bare)}: its seconds are not known "
        "(cutedge devices lists devices with figures)"
    )


def bottleneck_sentence(found: Bottleneck | None) -> str:
    """The bottleneck and what would relieve it, in one sentence."""
    if found is None:
        return "Nothing crosses between devices."
    return f"Bottleneck: {bottleneck_claim(found)}; {relief_claim(found)}."


def bottleneck_claim(found: Bottleneck, of: str = "the traffic") -> str:
    """What makes most ``of`` the traffic."""
    size = {"constant": "of constant size", "not known": "growth not known"}.get(
        growth(found.example), f"growing with {growth(found.example)}"
    )
    return (
        f"{found.share:.1%} of {of} is {found.name} "
        f"({counted(found.transfers, 'transfer')}, {size})"
    )


def relief_claim(found: Bottleneck, size: Callable[[int], str] = mib) -> str:
    """What would relieve a bottleneck."""
    relief = found.relief
    if relief is None:
        return "no step tried here relieves it"
    saved = size(relief.saved_bytes) + (" of other tensors" if relief.elsewhere else "")
    if relief.saved_calls > 0:
        saved += f" and {counted(relief.saved_calls, 'call')}"
    elif relief.saved_calls < 0:
        saved += f" for {counted(-relief.saved_calls, 'more call')}"
    if relief.wire_dtype:
        return f"sending floats as {relief.wire_dtype} (--wire-dtype) would save {saved}"
    how = f" (--policy {relief.policy})" if relief.policy else ""
    ops = ", ".join(relief.moved_ops)
    return f"running {ops} on {relief.device} too{how} would save {saved}"


def run_sentences(split: Split) -> Iterable[str]:
    """What the run takes and on what, where the devices or the link are known."""
    parts = dict(split.compute_seconds)
    run, moving = split.run, split.traffic.totals.seconds
    if parts and moving is not None:
        parts[split.link] = moving
    each = [f"{name} {duration(seconds)}" for name, seconds in parts.items()]
    if run is not None and run.seconds:
        shares = [seconds / run.seconds for seconds in parts.values()]
        each = [f"{one} ({share:.2%})" for one, share in zip(each, shares, strict=True)]
        yield f"run: {duration(run.seconds)} = {' + '.join(each)}, one after another"
        yield f"{duration(run.seconds_per_token)} a token, {speed(run)} tokens a second"
    elif parts:
        yield f"computing: {', '.join(each)}"
    for name, cycles in split.cycles.items():
        faster = f" ({split.options.text})" if split.options.text else ""
        yield f"{name}: {cycles:,} cycles{faster}"
    if run is not None and run.link_bound_chips is not None:
        yield (
            f"from {counted(run.link_bound_chips, 'chip')} on, {split.link}, which they "
            "share, takes longer than they compute; with ever more of them the run takes "
            f"{duration(run.many_chips_seconds or 0.0)}"
        )
    elif run is not None and run.many_chips_seconds is not None:
        yield (
            f"with ever more chips the run takes {duration(run.many_chips_seconds)}: one tile of "
            f"each product takes longer than {split.link}"
        )


def speed(run: Run) -> str:
    """Tokens a second, of a run that takes time, to four digits or to one."""
    rate = 1 / run.seconds_per_token
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def amount(value: int, unit: str | None) -> str:
    """A solution's objective or bound."""
    if unit == "ns":
        return duration(value / 1e9)
    return f"{value:,} bytes ({mib(value)})" if unit == "bytes" else f"{value:,} (weighted)"


def proof_sentences(split: Split, beside: TopologicalCut | None) -> Iterable[str]:
    """How good a placement is that was searched for."""
    solution = split.solution
    if solution is None or solution.objective is None:
        return
    found = f"{amount(solution.objective, split.unit)} by {SOLVERS[solution.solver]}"
    what = "cut between two layers" if solution.cut else "placement"
    if solution.proven:
        yield f"optimal for {split.objective}: {found}; no {what} that is allowed has less"
    else:
        yield (
            f"best found for {split.objective}: {found}; the optimum is not below "
            f"{amount(solution.bound, split.unit)} (gap {solution.gap or 0:.2%})"
        )
    if beside is not None:
        where = ", ".join(beside.after[:_NAMED]) or "the inputs"
        more = f" and {len(beside.after) - _NAMED} more" if len(beside.after) > _NAMED else ""
        yield (
            f"the cut is {solution.cut}; the best one of the op graph, at any op, is "
            f"{amount(beside.objective_value, split.unit)}, after {where}{more}"
        )


_NAMED = 4
"""Tensors that a sentence names."""


SOLVERS = {
    "cut": "minimum cut", "networkx": "minimum cut", "program": "mixed-integer program",
    "layers": "trying every cut", "candidates": "comparing policies",
}  # fmt: skip
"""What solvers are called."""


def seen_sentences(one: Exposure) -> Iterable[str]:
    """What an accelerator sees, in words; how many bytes of it is a detail."""
    yield f"{one.device} sees {one.words}"
    yield (
        f"{one.device} is sent {human(one.sent_bytes)}, computes {human(one.made_bytes)} and holds "
        f"{human(one.parameter_bytes)} of parameters, in plain"
    )
    seen = sorts.known(one.seen)
    if sorts.What.EMBEDDINGS in seen:
        yield f"{one.device}: who has the table of the embeddings has the tokens; it may be public"
    if sorts.What.LOGITS in seen:
        yield f"{one.device}: the logits tell the next token"


def sees(exposed: Sequence[Exposure]) -> str:
    """The sorts of tensor that devices see or can work out, in a cell of a table."""
    found = sorts.known(sort for one in exposed for sort in one.seen)
    return ", ".join(what.words for what in found) or "nothing"


_TOLD = 6
"""So many groups of derived tensors are told of a device."""


def derived_sentences(graph: OpGraph, device: str, found: Sequence[sorts.Derived]) -> Iterable[str]:
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
