"""Which tensors make the traffic, and what would relieve it: every saving is recounted."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from costmodels.links import Link
from partition import Residency
from partition.accounting import Traffic, Transfer, account
from partition.placement import Placement
from tracer.graph import OpGraph, Tensor
from tracer.kinds import base_name
from tracer.summary import tensor_name

_FAMILIES: Mapping[str, str] = {
    "attention_scores": "the attention scores",
    "attention_probs": "the attention scores",
}
"""Labels that a user thinks of as one tensor: scores go out and come back as probabilities."""


@dataclass(frozen=True, slots=True)
class TransferGroup:
    """Transfers that are alike: the same kind of tensor, direction and size."""

    name: str
    direction: str
    count: int
    payload_bytes: int
    """Of all of them."""
    share: float
    """Of the whole traffic."""
    example: Transfer


def top_transfers(graph: OpGraph, traffic: Traffic) -> list[TransferGroup]:
    """The traffic in groups of like transfers, the heaviest first."""
    groups: dict[tuple[str, str, int], list[Transfer]] = {}
    for transfer in traffic.transfers:
        name = tensor_name(graph, transfer.tensor)
        groups.setdefault((name, transfer.direction, transfer.payload_bytes), []).append(transfer)
    total = traffic.totals.payload_bytes
    found = [
        TransferGroup(
            name, direction, len(alike), each * len(alike), each * len(alike) / total, alike[0]
        )
        for (name, direction, each), alike in groups.items()
        if total
    ]
    return sorted(found, key=lambda group: (-group.payload_bytes, group.example.id))


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The kind of tensor that makes most of the traffic, and a step that would relieve it."""

    name: str
    transfers: int
    payload_bytes: int
    share: float
    seq_degree: int | None
    """The growth order of the tensor in ``seq``."""
    relief: "Relief | None"
    """None when no single step takes traffic away."""


@dataclass(frozen=True, slots=True)
class Relief:
    """A step away from a placement, with what a recount says it saves."""

    saved_bytes: int
    saved_calls: int
    moved_ops: tuple[str, ...]
    """The ops that would move to the accelerator; empty when only the wire dtype changes."""
    policy: str | None
    """A policy that does it, None when there is none by name."""
    wire_dtype: str | None
    """A smaller dtype on the wire that does it."""


def find_bottleneck(
    graph: OpGraph,
    placement: Placement,
    traffic: Traffic,
    link: Link,
    *,
    policies: Mapping[str, Placement],
    wire_dtype: str | None = None,
    residency: Residency = "run",
) -> Bottleneck | None:
    """What makes most of the traffic of a placement; None when nothing crosses.

    ``policies`` are the placements, by name, that a relief may be called by.
    """
    families: dict[str, list[Transfer]] = {}
    for transfer in traffic.transfers:
        families.setdefault(_family(graph, transfer.tensor), []).append(transfer)
    if not families:
        return None
    name = max(families, key=lambda n: sum(t.payload_bytes for t in families[n]))
    worst = families[name]

    def saved(other: Placement, dtype: str | None) -> tuple[int, int]:
        recount = account(graph, other, link, wire_dtype=dtype, residency=residency)
        fewer_bytes = traffic.totals.payload_bytes - recount.totals.payload_bytes
        return fewer_bytes, len(traffic.calls) - len(recount.calls)

    relief = None
    returned = {t.call for t in worst if t.direction == "receive"}
    moved = _island(graph, placement, traffic, returned)
    if moved and len(placement.accelerators) == 1:
        devices = list(placement.devices)
        for op in moved:
            devices[op] = placement.accelerators[0]
        after = replace(placement, devices=tuple(devices))
        fewer_bytes, fewer_calls = saved(after, wire_dtype)
        names = tuple(dict.fromkeys(base_name(graph.ops[op].target) for op in moved))
        if fewer_bytes > 0:
            policy = _called(placement, after, policies)
            relief = Relief(fewer_bytes, fewer_calls, names, policy, None)
    if relief is None and (wire_dtype or graph.meta.dtype) in ("float32", "float64"):
        fewer_bytes, _ = saved(placement, "bfloat16")
        relief = Relief(fewer_bytes, 0, (), None, "bfloat16") if fewer_bytes > 0 else None
    payload = sum(t.payload_bytes for t in worst)
    return Bottleneck(
        name=name,
        transfers=len(worst),
        payload_bytes=payload,
        share=payload / traffic.totals.payload_bytes,
        seq_degree=max(worst, key=lambda t: t.payload_bytes).tensor.seq_degree,
        relief=relief,
    )


def _family(graph: OpGraph, tensor: Tensor) -> str:
    return _FAMILIES.get(tensor.label or "", tensor_name(graph, tensor))


def _island(
    graph: OpGraph, placement: Placement, traffic: Traffic, calls: Container[int]
) -> list[int]:
    """The ops at home that work on what the calls return and on nothing else that flows.

    They can follow to the accelerator without anything new being sent.
    """
    received = (t for t in traffic.transfers if t.direction == "receive" and t.call in calls)
    reached = {t.tensor.id for t in received}
    island = []
    for op in graph.ops:
        flowing = {t.id for t in graph.inputs(op.id) if graph.crosses(t)}
        at_home = placement.devices[op.id] == placement.home
        if at_home and flowing and flowing <= reached and graph.outputs(op.id):
            island.append(op.id)
            reached.update(t.id for t in graph.outputs(op.id))
    return island


def _called(before: Placement, after: Placement, policies: Mapping[str, Placement]) -> str | None:
    """The policy that moves the same ops and fewest others, None when none moves them all."""

    def differing(a: Placement, b: Placement) -> set[int]:
        return {i for i, (x, y) in enumerate(zip(a.devices, b.devices, strict=True)) if x != y}

    moved = differing(before, after)
    fitting = [
        (len(differing(placement, after)), name)
        for name, placement in policies.items()
        if not moved & differing(placement, after)
    ]
    return min(fitting)[1] if fitting else None


def savings(traffics: Sequence[Traffic], baseline: Traffic) -> list[int]:
    """Payload bytes that each traffic stays below the baseline (negative: above)."""
    whole = baseline.totals.payload_bytes
    return [whole - traffic.totals.payload_bytes for traffic in traffics]
