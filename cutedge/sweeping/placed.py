"""What a placement moves and runs, counted once for all sizes of a program."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from costmodels.flops import FREE
from costmodels.links import Links, load_link
from costmodels.many import bytes_of
from cutedge.sweeping.answers import ACCELERATOR, HOME, Devices, placement_on
from cutedge.sweeping.crossing import kind_of
from partition import Residency
from partition.accounting import account, steps_of
from partition.problem import lying_of
from partition.stored import held, kept_on
from partition.wire_format import WireFormat
from tracer.formula import Formula, const
from tracer.graph import OpGraph, Tensor

Message = tuple[str, tuple[int, ...]]
"""(direction, the kind of each tensor)"""


class Placed:
    """A placement on a program, whatever the sizes."""

    def __init__(
        self,
        graph: OpGraph,
        of: Sequence[int | None],
        devices: Devices,
        streams: frozenset[int],
        wire: WireFormat,
        residency: Residency,
    ) -> None:
        """``of`` has the group of each op that works (``costmodels.many.OpGroups``)."""
        self.graph, self.devices, self.residency = graph, devices, residency
        self.placement = placement_on(devices, streams)
        none = Links(load_link("none"))
        self.traffic = account(graph, self.placement, none, wire=wire, residency=residency)
        kinds: dict[Any, int] = {}
        self.tensors: list[Tensor] = []
        """Of each kind of tensor that crosses the first."""
        self.kinds: list[int] = []
        """By transfer: the kind of its tensor."""
        messages: dict[tuple[int, str], list[int]] = {}
        for t in self.traffic.transfers:
            key = kind_of(t.tensor, wire)
            if key not in kinds:
                kinds[key] = len(kinds)
                self.tensors.append(t.tensor)
            self.kinds.append(kinds[key])
            messages.setdefault((t.call, t.direction), []).append(kinds[key])
        self.messages: Counter[Message] = Counter(
            (direction, tuple(ones)) for (_, direction), ones in messages.items()
        )
        self.stored = {
            device: sum((bytes_of(graph.tensors[t]) for t in ids), const(0))
            for device, ids in held(graph, self.placement).items()
        }
        self.ops = {
            place: Counter(
                group for op, group in enumerate(of) if group is not None and devices[op] == place
            )
            for place in (HOME, ACCELERATOR)
        }
        self.working = {
            place: any(
                here == place and op.kind not in FREE
                for op, here in zip(graph.ops, devices, strict=True)
            )
            for place in (HOME, ACCELERATOR)
        }
        self.kept = kept_on(graph, self.placement)
        self.with_state = {place: self._together(of, place) for place in (HOME, ACCELERATOR)}

    def _together(self, of: Sequence[int | None], place: str) -> Counter[tuple[int, ...]]:
        """The groups of the ops on a device, each with those of the cached state kept for it."""
        kept: dict[int, list[int]] = {}
        for (op, device), beside in self.kept.items():
            if device == place and (state := of[op]) is not None:
                kept.setdefault(beside, []).append(state)
        found: Counter[tuple[int, ...]] = Counter()
        for op, here in enumerate(self.devices):
            if here == place:
                group = of[op]
                found[*(() if group is None else (group,)), *kept.get(op, ())] += 1
        del found[()]
        return found

    @cached_property
    def sizes(self) -> Sequence[Formula]:
        """The bytes that tensors have, each once."""
        return list(dict.fromkeys(map(bytes_of, self.graph.tensors)))

    @cached_property
    def size_of(self) -> Sequence[int]:
        """By tensor: which of these it has."""
        numbers = {size: number for number, size in enumerate(self.sizes)}
        return [numbers[bytes_of(tensor)] for tensor in self.graph.tensors]

    @cached_property
    def loads(self) -> Mapping[str, Sequence[Mapping[int, int]]]:
        """By device: what lies there at one time or another, as how many tensors of each size.

        Layers that are alike have the same.
        """
        of = self.size_of
        found = {}
        for device, one in lying_of(self.graph, self.placement, self.traffic.transfers).items():
            now = Counter(of[tensor] for tensor in one.stored)
            loads = {frozenset(now.items()): None}
            for came, gone in one.changes:
                now.update(of[tensor] for tensor in came)
                now.subtract(of[tensor] for tensor in gone)
                loads[frozenset((size, n) for size, n in now.items() if n)] = None
            found[device] = [dict(load) for load in loads]
        return found

    @cached_property
    def steps(self) -> Sequence[int]:
        """By op the step that it runs in."""
        return steps_of(self.graph, self.placement)
