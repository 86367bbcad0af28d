"""Why one placement moves less than another, step by step; and what an accelerator gets to see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from costmodels.links import Links
from partition import Residency
from partition.accounting import Traffic, account
from partition.masks import MaskedGraph
from partition.placement import Placement
from partition.seen import How, Seen, seen
from partition.stored import sent_weights
from partition.wire_format import WireFormat
from tracer.graph import Kind, OpGraph, Role
from tracer.kinds import base_name
from tracer.summary import tensor_names


@dataclass(frozen=True, slots=True)
class LadderStep:
    """Ops that move from one device to another, and what that saves."""

    ops: str
    """What they are: the sorts of op and what they make (``softmax: attention_probs``)."""
    count: int
    """How many, views left out."""
    device: str
    """Where they move to."""
    saved_bytes: int
    """Payload that no longer crosses once they have moved; negative where more does."""
    saved_calls: int
    """Calls that fall away; negative where there are more."""
    total_payload_bytes: int
    """What still crosses."""


def ladder(
    graph: OpGraph,
    start: Placement,
    end: Placement,
    links: Links,
    *,
    wire: WireFormat | None = None,
    residency: Residency = "run",
) -> list[LadderStep]:
    """The steps from ``start`` to ``end``, each the one that saves most of those that are left.

    Ops that differ are taken in groups of what they make (``tracer.summary.tensor_names``), with
    the views of them, and where they move to; what saves nothing by itself goes with the step
    after it. The savings add up to the difference of the two placements, since every step is
    recounted; parameters lie where they lie at the ``end``.
    """
    wire = wire or WireFormat()
    start = replace(start, streams=end.streams)
    groups = _groups(graph, start, end)
    here = list(start.devices)
    before = account(graph, start, links, wire=wire, residency=residency)
    bytes_now = _payload(graph, start, here, wire)
    steps: list[LadderStep] = []
    while groups:
        totals = {
            name: _payload(graph, start, _moved(here, end, ops), wire)
            for name, ops in groups.items()
        }
        best = min(totals, key=lambda name: totals[name])
        if totals[best] >= bytes_now:  # only together do they save: the two that save most, or all
            pairs = {
                (a, b): _payload(graph, start, _moved(here, end, groups[a] | groups[b]), wire)
                for a in groups
                for b in groups
                if a < b
            }
            pair = min(pairs, key=lambda names: pairs[names], default=None)
            together = list(groups) if pair is None or pairs[pair] >= bytes_now else list(pair)
        else:
            together = [best]
        moved = frozenset().union(*(groups.pop(name) for name in together))
        here = _moved(here, end, moved)
        bytes_now = _payload(graph, start, here, wire)
        after = account(
            graph, replace(start, devices=tuple(here)), links, wire=wire, residency=residency
        )
        ops, count, device = _told(graph, moved, together, end)
        steps.append(
            LadderStep(
                ops=ops,
                count=count,
                device=device,
                saved_bytes=before.totals.payload_bytes - after.totals.payload_bytes,
                saved_calls=len(before.calls) - len(after.calls),
                total_payload_bytes=after.totals.payload_bytes,
            )
        )
        before = after
    return steps


@dataclass(frozen=True, slots=True)
class Choice:
    """Ops that a placement has in one place, and what it gains when they are in another."""

    ops: str
    """What they are, as in ``LadderStep``."""
    count: int
    """How many, views left out."""
    device: str
    """Where they would be."""
    saved: float
    """What falls away, in the unit that was counted in."""


def dearest(
    graph: OpGraph,
    start: Placement,
    end: Placement,
    cost: Callable[[Placement], float],
    most: int = 3,
) -> list[Choice]:
    """The choices of ``start`` that cost most against ``end``, the dearest first.

    The groups of ``ladder``, each moved with those before it; where not one gains anything alone,
    all that are left go together. Every gain is recounted by ``cost``.
    """
    groups = _groups(graph, start, end)
    here, now = start, cost(start)
    found: list[Choice] = []
    while groups and len(found) < most:
        ways = {name: _with(here, end, ops) for name, ops in groups.items()}
        costs = {name: cost(way) for name, way in ways.items()}
        best = min(costs, key=lambda name: costs[name])
        names = [best] if costs[best] < now else list(groups)
        moved = frozenset().union(*(groups.pop(name) for name in names))
        here = _with(here, end, moved)
        after = costs[best] if len(names) == 1 else cost(here)
        if after >= now:
            break
        ops, count, device = _told(graph, moved, names, end)
        found.append(Choice(ops, count, device, now - after))
        now = after
    return found


def _with(here: Placement, end: Placement, ops: frozenset[int]) -> Placement:
    streams = frozenset(op for op in end.streams if op in ops) | (here.streams - ops)
    return replace(here, devices=tuple(_moved(here.devices, end, ops)), streams=streams)


def _told(
    graph: OpGraph, moved: frozenset[int], names: Sequence["_Group"], end: Placement
) -> tuple[str, int, str]:
    """(what some ops are, how many, where they move to)."""
    working = [op for op in sorted(moved) if not graph.ops[op].is_view] or sorted(moved)
    kinds = ", ".join(dict.fromkeys(base_name(graph.ops[op].target) for op in working))
    made = ", ".join(dict.fromkeys(name for name, _ in names))
    return f"{kinds}: {made}", len(working), str(end.devices[working[0]])


_Group = tuple[str, str]
"""(what ops make, the device that they move to)"""


def _groups(graph: OpGraph, start: Placement, end: Placement) -> dict[_Group, frozenset[int]]:
    """The ops that differ by group, in device or in where their parameters lie."""
    names = tensor_names(graph)
    found: dict[_Group, set[int]] = {}
    for op in graph.ops:
        lies = (op.id in start.streams) != (op.id in end.streams)
        if start.devices[op.id] != end.devices[op.id] or lies:
            made = graph.outputs(op.id)
            name = names[made[0].id] if made else op.name
            found.setdefault((name, str(end.devices[op.id])), set()).add(op.id)
    return {group: frozenset(ops) for group, ops in found.items()}


def _moved(here: Sequence[str | None], end: Placement, ops: frozenset[int]) -> list[str | None]:
    return [end.devices[op] if op in ops else device for op, device in enumerate(here)]


def _payload(
    graph: OpGraph, start: Placement, devices: Sequence[str | None], wire: WireFormat
) -> int:
    """What crosses with residency ``run``: quick, and enough to choose a step by."""
    total = 0
    for tensor in graph.tensors:
        if tensor.op is None or not graph.crosses(tensor):
            continue
        source = devices[tensor.op]
        there = {devices[op] for op in graph.needed_by(tensor.id)} - {source}
        if there:
            total += len(there) * wire.of(tensor).payload_bytes
    for sent in sent_weights(graph, replace(start, devices=devices)).values():
        total += sum(graph.tensors[parameter].bytes for parameter in sent)
    return total


@dataclass(frozen=True, slots=True)
class Exposure:
    """What an accelerator has in plain: it is sent there, made there or lies there."""

    device: str
    """The accelerator."""
    sent: Mapping[str, int]
    """What is sent there -> how many tensors, by ``tracer.summary.tensor_names``."""
    made: Mapping[str, int]
    """What is made there -> how many tensors, views left out."""
    sent_bytes: int
    """Bytes of what is sent there, in the tensors' own dtypes."""
    made_bytes: int
    """Bytes of what is made there, likewise."""
    parameter_bytes: int
    """Bytes of the parameters that its ops read, whether they lie there or are sent."""
    masked_bytes: int = 0
    """Bytes of what is sent or made there under a mask; in no figure above."""
    seen: Sequence[Seen] = ()
    """What it sees of each sort of tensor, and how."""

    @property
    def words(self) -> str:
        """What it sees, as a person says it: plain, recoverable, masked, not at all."""
        told = [
            (
                how,
                [
                    one.what.words + (f" ({one.example})" if one.example else "")
                    for one in self.seen
                    if one.how is how
                ],
            )
            for how in How
        ]
        if all(one.how is How.NOT_AT_ALL for one in self.seen):
            return "nothing"
        return "; ".join(f"{how.words}: {', '.join(sorts)}" for how, sorts in told if sorts)

    @property
    def visible_bytes(self) -> int:
        """Of the activations that it gets to see."""
        return self.sent_bytes + self.made_bytes


def exposure(
    graph: OpGraph, placement: Placement, traffic: Traffic, devices: Sequence[str]
) -> list[Exposure]:
    """What each of ``devices`` (those that are not trusted) sees under a placement."""
    names = tensor_names(graph)
    found = []
    sorts = seen(graph, placement, traffic, devices)
    masks = graph.masks if isinstance(graph, MaskedGraph) else {}
    for device in devices:
        here = [t.tensor for t in traffic.transfers if t.dst_device == device]
        came = [t for t in here if t.id not in masks]
        sent = [t for t in came if t.op is not None]
        made = [
            tensor
            for op in graph.ops
            if placement.devices[op.id] == device and not op.is_view and op.kind is not Kind.OUTPUT
            for tensor in graph.outputs(op.id)
        ]
        hidden = [t for t in (*here, *made) if t.id in masks]
        made = [t for t in made if t.id not in masks]
        read = {
            graph.storage(tensor).id
            for op in graph.ops
            if placement.devices[op.id] == device
            for tensor in graph.inputs(op.id)
            if graph.storage(tensor).role is Role.PARAMETER
        }
        found.append(
            Exposure(
                device=device,
                sent=_counted([names[t.id] for t in sent]),
                made=_counted([names[t.id] for t in made]),
                sent_bytes=sum(t.bytes for t in sent),
                made_bytes=sum(t.bytes for t in made),
                parameter_bytes=sum(graph.tensors[t].bytes for t in read),
                masked_bytes=sum(t.bytes for t in hidden),
                seen=tuple(one for one in sorts if one.device == device),
            )
        )
    return found


def _counted(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}
