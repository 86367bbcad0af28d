"""What command line, reports and notebooks say in one way of figures."""

from collections.abc import Callable

from costmodels.flops import FlopTotals, numbered, total_flops
from partition.explain import Bottleneck
from partition.tables import Split
from tracer.graph import OpGraph
from tracer.summary import growth
from tracer.words import counted, covered, mib


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
