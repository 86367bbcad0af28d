"""Which tensors make the traffic, and what would relieve it: every saving is recounted."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from costmodels.links import Links
from partition import Residency
from partition.accounting import Traffic, Transfer, account
from partition.placement import Placement
from partition.wire_format import WireFormat
from tracer.graph import OpGraph, Tensor
from tracer.kinds import base_name
from tracer.summary import tensor_names

_ONE_TO_A_USER: Mapping[str, str] = {
    "attention_scores": "the attention scores",
    "attention_probs": "the attention scores",
}
"""Labels that a user thinks of as one tensor: scores go out and come back as probabilities."""

_SMALL = "bfloat16"
"""The wire dtype to advise where moving ops saves nothing."""

_TRIED = 5
"""The families of transfers, the heaviest first, that a relief is looked for in."""


@dataclass(frozen=True, slots=True)
class TransferGroup:
    """Transfers that are alike: the same kind of tensor, direction and size."""

    name: str
    """Of the tensors, as in ``tracer.summary.tensor_names``."""
    direction: str
    """``send``, ``receive`` or ``peer``."""
    count: int
    """How many there are."""
    payload_bytes: int
    """Of all of them."""
    share: float
    """Of the whole traffic."""
    example: Transfer
    """The first of them."""


def top_transfers(graph: OpGraph, traffic: Traffic) -> list[TransferGroup]:
    """The traffic in groups of like transfers, the heaviest first."""
    names = tensor_names(graph)
    groups: dict[tuple[str, str, int], list[Transfer]] = {}
    for t in traffic.transfers:
        groups.setdefault((names[t.tensor.id], t.direction, t.payload_bytes), []).append(t)
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
class Relief:
    """A step away from a placement, with what a recount says it saves."""

    saved_bytes: int
    """Payload that no longer crosses."""
    saved_calls: int
    """Calls that fall away; negative when there are more."""
    moved_ops: tuple[str, ...]
    """The sorts of op that would move to ``device``; empty when only the wire dtype changes."""
    device: str | None
    """The accelerator that they would move to."""
    policy: str | None
    """A policy of cutedge that does it; None when no policy does."""
    wire_dtype: str | None
    """A smaller dtype on the wire that does it."""
    elsewhere: bool
    """Whether the bottleneck itself stays as it is, and the saving is of other tensors."""
    placement: Placement
    """The placement after the step: what was recounted."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The kind of tensor that makes most of the traffic, and a step that would relieve it."""

    name: str
    """Of the tensors, as in ``tracer.summary.tensor_names`` or a plainer one."""
    transfers: int
    """How many there are of it, in all directions."""
    payload_bytes: int
    """Of all of them."""
    share: float
    """Of the whole traffic."""
    example: Tensor
    """The largest of them."""
    relief: Relief | None
    """The step that saves most of those tried; None when not one saves any."""


def find_bottleneck(
    graph: OpGraph,
    placement: Placement,
    traffic: Traffic,
    links: Links,
    *,
    policies: Mapping[str, Placement],
    wire: WireFormat | None = None,
    residency: Residency = "run",
    can_run: Callable[[int, str], bool] = lambda op, device: True,
) -> Bottleneck | None:
    """What makes most of the traffic of a placement; None when nothing crosses.

    ``policies`` are the placements, by name, that a relief may be called by; of several that fit
    as well the first is named. ``can_run`` says of an op and a device whether it may move there.
    """
    total = traffic.totals.payload_bytes
    if not total:
        return None
    family_of = _families(graph)
    families: dict[_Family, list[Transfer]] = {}
    for transfer in traffic.transfers:
        families.setdefault(family_of[transfer.tensor.id], []).append(transfer)

    def weight(family: _Family) -> int:
        return sum(transfer.payload_bytes for transfer in families[family])

    heaviest = sorted(families, key=weight, reverse=True)[:_TRIED]
    worst = heaviest[0]

    wire = wire or WireFormat()

    def recount(other: Placement, on_wire: WireFormat, policy: str | None = None) -> Relief:
        after = account(graph, other, links, wire=on_wire, residency=residency)
        left = (t.payload_bytes for t in after.transfers if family_of[t.tensor.id] == worst)
        moved = [op for op in graph.ops if other.devices[op.id] != placement.devices[op.id]]
        return Relief(
            saved_bytes=total - after.totals.payload_bytes,
            saved_calls=len(traffic.calls) - len(after.calls),
            # A view goes without saying, unless there is nothing else.
            moved_ops=tuple(
                dict.fromkeys(
                    base_name(op.target) for op in [op for op in moved if not op.is_view] or moved
                )
            ),
            device=other.devices[moved[0].id] if moved else None,
            policy=policy,
            wire_dtype=None if moved else on_wire.dtype,
            elsewhere=sum(left) >= weight(worst),
            placement=other,
        )

    steps = [
        replace(
            placement,
            devices=tuple(
                device if op in island else here for op, here in enumerate(placement.devices)
            ),
        )
        for island in _islands(graph, placement, traffic, [families[key] for key in heaviest])
        for device in placement.accelerators
        if all(can_run(op, device) for op in island)
    ]
    tried = (recount(step, wire) for step in steps)
    relief = max(tried, key=lambda r: (r.saved_bytes, r.saved_calls), default=None)
    if relief is None or relief.saved_bytes <= 0:
        relief = recount(placement, replace(wire, dtype=_SMALL))
    elif name := _called(relief.placement, policies):
        named = recount(policies[name], wire, name)
        relief = named if named.saved_bytes >= relief.saved_bytes else relief
    return Bottleneck(
        name=worst[0],
        transfers=len(families[worst]),
        payload_bytes=weight(worst),
        share=weight(worst) / total,
        example=max(families[worst], key=lambda t: t.payload_bytes).tensor,
        relief=relief if relief.saved_bytes > 0 else None,
    )


_Shape = TypeVar("_Shape")


def family_of(tensor: Tensor, name: str, shape: _Shape) -> tuple[str, _Shape | tuple[()]]:
    """(name, shape): what is labelled is one family in every shape that it takes."""
    label = tensor.label
    return (_ONE_TO_A_USER.get(label, label), ()) if label else (name, shape)


_Family = tuple[str, tuple[int, ...]]


def _families(graph: OpGraph) -> list[_Family]:
    """The family of each tensor, by id."""
    return [
        family_of(tensor, name, tensor.shape)
        for tensor, name in zip(graph.tensors, tensor_names(graph), strict=True)
    ]


def _islands(
    graph: OpGraph, placement: Placement, traffic: Traffic, families: Iterable[Sequence[Transfer]]
) -> list[frozenset[int]]:
    """Ops at home that could follow the families to the accelerator: what works on each alone,
    and on two of them together where that is more than what works on one or the other.
    """
    calls = {frozenset(t.call for t in f if t.direction == "receive"): None for f in families}
    alone = {asked: _island(graph, placement, traffic, asked) for asked in calls}
    found = list(alone.values())
    for (a, island_a), (b, island_b) in combinations(alone.items(), 2):
        together = _island(graph, placement, traffic, a | b)
        if together > island_a | island_b or island_a & island_b:
            found.append(together)
    return list(dict.fromkeys(island for island in found if island))


def _island(
    graph: OpGraph, placement: Placement, traffic: Traffic, calls: Container[int]
) -> frozenset[int]:
    """The ops at home that work on what the calls return and on nothing else that flows.

    They can follow to the accelerator without anything new being sent.
    """
    received = (t for t in traffic.transfers if t.direction == "receive" and t.call in calls)
    reached = {t.tensor.id for t in received}
    island = []
    for op in graph.ops:
        flowing = {t.id for t in graph.flowing(op.id)}
        at_home = placement.devices[op.id] == placement.home
        if at_home and flowing and flowing <= reached and graph.outputs(op.id):
            island.append(op.id)
            reached.update(t.id for t in graph.outputs(op.id))
    return frozenset(island)


def _called(step: Placement, policies: Mapping[str, Placement]) -> str | None:
    """The policy that has all of the step's ops on its accelerators, and fewest others there."""
    others = {
        name: sum(here != there for here, there in zip(step.devices, p.devices, strict=True))
        for name, p in policies.items()
        if all(
            here in (None, step.home, there)
            for here, there in zip(step.devices, p.devices, strict=True)
        )
    }
    return min(others, key=others.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class Savings:
    """A placement's traffic against another's."""

    saved_bytes: int
    """Payload that it moves less than the baseline; negative when more."""
    saved_share: float | None
    """``saved_bytes`` of the baseline's payload; None when that is nothing."""
    resident_off_home_bytes: int
    """Parameters, buffers and constants that lie on accelerators, summed over them."""


def compare_traffic(placement: Placement, traffic: Traffic, baseline: Traffic) -> Savings:
    """What ``placement`` saves against a baseline of the same graph, and what it takes."""
    whole = baseline.totals.payload_bytes
    saved = whole - traffic.totals.payload_bytes
    return Savings(
        saved_bytes=saved,
        saved_share=saved / whole if whole else None,
        resident_off_home_bytes=sum(
            size for device, size in traffic.resident_bytes.items() if device != placement.home
        ),
    )
