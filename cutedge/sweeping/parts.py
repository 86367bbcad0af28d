"""The figures of one placement at many sizes of a program, on any machine.

They are sums over equal things: the ops of every layer, the messages of every call. Each kind is
worked out once, for all sizes, and counted as often as it occurs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.chip import Shares, off_chip_shares
from costmodels.devices import Device
from costmodels.engines import PHYSICAL
from costmodels.flops import annotate, total_flops, without_sizes
from costmodels.joules import EnergyWork, Joules, by_operation, summed, work_joules, work_of
from costmodels.links import Link, Links, load_link, message_cost
from costmodels.machine import Machine
from costmodels.many import (
    Floats,
    GroupTime,
    Ints,
    OpGroup,
    OpGroups,
    Over,
    Sizes,
    bytes_of,
    exact_sum,
    op_groups,
    op_time,
    op_times,
    run_moved,
    run_times,
    time_group,
)
from costmodels.memory import larger
from costmodels.roofline import OpTime, Rates, paged_share
from cutedge.sweeping.answers import ACCELERATOR, HOME, Devices, placement_on
from cutedge.sweeping.crossing import crossing, kind_of
from cutedge.sweeping.generations import MASKED, STATUS
from cutedge.sweeping.placed import Placed
from cutedge.sweeping.schedules import Layout, TaskNetwork
from partition import Residency
from partition.accounting import Transfer
from partition.masked_choice import with_masks
from partition.masks import MaskedGraph
from partition.packs import wire_format
from partition.policy import Policy
from partition.protects import rows_that_hide
from partition.run import runs_of
from partition.schedule import Scheduling, tasks_of
from partition.wire_format import WireFormat
from tracer.formula import Formula, const, parse
from tracer.graph import Kind, OpGraph, Tensor
from tracer.reach import resized

Column = NDArray[Any]

COUNTS = (
    "calls",
    "transfers",
    "cut_edges",
    "sent_payload_bytes",
    "sent_wire_bytes",
    "received_payload_bytes",
    "received_wire_bytes",
    "total_payload_bytes",
    "total_wire_bytes",
    "peak_buffer_bytes",
    "home_resident_bytes",
    "accelerator_resident_bytes",
)
"""Whole figures of a point, as ``partition`` has them; none where no placement is possible."""

OPTIONAL_COUNTS = ("cycles",)
"""Of the products on an array; none elsewhere, and where they are not known."""

SECONDS = ("seconds", "home_seconds", "accelerator_seconds", "run_seconds")
"""Of the transfers, of computing at home and away, and of all; none where not all is known."""

JOULES = ("joules", "home_joules", "accelerator_joules", "idle_joules", "run_joules")
"""Of the transfers, of computing at home and away, of what is drawn anyway, and of all; none where
that is not known."""

LAID = ("makespan_seconds", "bound_seconds", "requests_per_second")
"""Of runs as they are laid out; none where no schedule is asked for, or not all seconds are known."""

LIMIT = "limited_by"
"""The busiest resource then; none likewise."""

FLAGS = ("at_least", "energy_at_least")
"""Whether those seconds and joules leave out what is not known; none where no placement is
possible."""


@dataclass(frozen=True, slots=True)
class SizedGraph:
    """A traced model, and the sizes at which it is this program."""

    graph: OpGraph
    """At one of the sizes."""
    sizes: Sizes
    numbers: Ints
    """By size: its number among all that are asked of the model."""
    is_annotated: bool = False
    """Whether the graph has its costs."""


def along(
    program: SizedGraph,
    policy: Policy,
    devices: Devices,
    streams: frozenset[int],
    machine: Machine,
    residency: Residency,
) -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
    """(sizes, figures by name) of one placement at each size of a program, in no order.

    A figure that is not known at a size is left out there. ``devices`` are ``HOME`` and
    ``ACCELERATOR``, as the parts of the machine are called (``by_part``); the parameters of
    ``streams`` lie at home. The policy is asked for what it packs and masks.
    """
    wire = wire_format(program.graph, policy.packs, machine)
    for part in alike(program):
        every = np.arange(part.over.length)
        placed_parts = part.placed_parts(policy, devices, streams, every, wire, machine, residency)
        for rows, placed in placed_parts:
            figures = {
                name: np.broadcast_to(np.asarray(values), (len(rows),)).tolist()
                for name, values in placed.figures(machine).items()
            }
            for at, row in enumerate(rows.tolist()):
                sizes = {name: int(many[row]) for name, many in part.over.sizes.items()}
                yield sizes, {name: values[at] for name, values in figures.items()}


class Part:
    """Sizes at which the same ops of a program work, and what they cost."""

    def __init__(
        self, graph: OpGraph, over: Over, groups: OpGroups, known: "_Known | None" = None
    ) -> None:
        self.graph, self.over, self.op_groups = graph, over, groups
        self.shared = known or _Known(total_flops(graph).coverage)
        self.coverage = self.shared.coverage
        self._times: dict[Any, tuple[GroupTime, ...]] = {}
        self._placed_parts: dict[Any, PlacedPart] = {}
        self._masked: dict[Any, _Masked] = {}

    def at(self, over: Over) -> "Part | None":
        """The same ops at other sizes of the program; None where other ops work there."""
        groups = self.op_groups.over(over)
        for one, other in zip(self.op_groups.groups, groups.groups, strict=True):
            if one.flops is not None and other.flops is not None:
                idle = np.unique(np.concatenate([one.flops[:1] == 0, other.flops == 0]))
                if len(idle) > 1:
                    return None
        return Part(self.graph, over, groups, self.shared)

    def times(self, machine: Machine) -> dict[str, tuple[GroupTime, ...]]:
        """By part of the machine: what the groups of ops take there, paging left out."""
        found = {}
        for part, device in machine.described.items():
            engine = machine.engines.get(part, PHYSICAL)
            key = id(device), machine.options, id(engine)
            if key not in self._times:
                self._times[key] = tuple(
                    time_group(device, group, machine.options, engine=engine)
                    for group in self.op_groups.groups
                )
            found[part] = self._times[key]
        return found

    def placed_part(
        self,
        devices: Devices,
        streams: frozenset[int],
        rows: Ints,
        wire: WireFormat,
        residency: Residency,
    ) -> "PlacedPart":
        """What a placement moves at some of the sizes."""
        packed = id(wire) if wire.packings else None  # the result keeps it
        key = devices, streams, rows.tobytes(), wire.dtype, packed, residency
        if key not in self._placed_parts:
            shape = devices, streams, packed, residency
            if shape not in self.shared.placed:
                self.shared.placed[shape] = Placed(
                    self.graph, self.op_groups.of, devices, streams, wire, residency
                )
            self._placed_parts[key] = PlacedPart(self, self.shared.placed[shape], rows, wire)
        return self._placed_parts[key]

    def placed_parts(
        self,
        policy: Policy,
        devices: Devices,
        streams: frozenset[int],
        rows: Ints,
        wire: WireFormat,
        machine: Machine,
        residency: Residency,
    ) -> "Iterator[tuple[Ints, PlacedPart]]":
        """(some of the sizes, what a placement moves there with the masks of a policy): all sizes
        together but where a scheme hides nothing at some. ``wire`` is that of the plain tensors.
        """
        if not policy.protects:
            yield rows, self.placed_part(devices, streams, rows, wire, residency)
            return
        hide = [
            self.over(formula)[rows] >= least
            for formula, least in sorted(rows_that_hide(self.graph, policy.protects), key=str)
        ]
        kinds, which = np.unique(
            np.array(hide, bool).reshape(-1, len(rows)), axis=1, return_inverse=True
        )
        for kind in range(kinds.shape[1]):
            some = rows[which.reshape(-1) == kind]
            key = (
                id(policy),
                devices,
                streams,
                id(wire),
                machine.wire_dtype,
                kinds[:, kind].tobytes(),
            )
            if key not in self._masked:
                before = self.shared.masked.get(key)
                part = None if before is None else before.part.at(self.over)
                if before is None or part is None:
                    made = self._under_masks(policy, devices, streams, int(some[0]), machine)
                    self.shared.masked[key] = self._masked[key] = made
                else:
                    self._masked[key] = replace(before, part=part)
            one = self._masked[key]
            yield some, one.part.placed_part(one.devices, one.streams, some, one.wire, residency)

    def _under_masks(
        self, policy: Policy, devices: Devices, streams: frozenset[int], row: int, machine: Machine
    ) -> "_Masked":
        """The same sizes under the masks that the ops have at one of them."""
        graph = self.graph
        sizes = {name: int(many[row]) for name, many in self.over.sizes.items()}
        if graph.meta.symbolic and sizes != graph.meta.variables:
            graph = annotate(resized(graph, sizes))
        there, placed = with_masks(graph, policy, machine, placement_on(devices, streams))
        part = Part(there, self.over, op_groups(there, self.over))
        wire = wire_format(there, policy.packs, machine)
        return _Masked(part, tuple(placed.devices), placed.streams, wire, policy)


@dataclass(slots=True)
class _Known:
    """What is the same of a part at all sizes of its program."""

    coverage: float
    placed: dict[Any, Placed] = field(default_factory=dict)
    masked: "dict[Any, _Masked]" = field(default_factory=dict)
    all_bytes: Formula | None = None
    """Of all tensors together, once it was asked for."""


@dataclass(frozen=True, slots=True)
class _Masked:
    """A part with the masks of a policy, where ops are placed."""

    part: Part
    devices: Devices
    streams: frozenset[int]
    wire: WireFormat
    policy: Policy
    """Kept for its id."""


def alike(program: SizedGraph) -> list[Part]:
    """A program in parts: where an op has FLOPs at some sizes only, these are apart."""
    over = Over(program.sizes)
    graph = program.graph if program.is_annotated else annotate(program.graph)
    costs = op_groups(graph, over)
    idle = [one.flops == 0 for one in costs.groups if one.flops is not None]
    if all(every.all() or not every.any() for every in idle):
        return [Part(graph, over, costs)]
    kinds, which = np.unique(np.stack(idle), axis=1, return_inverse=True)
    parts = []
    for kind in range(kinds.shape[1]):
        rows = np.flatnonzero(which == kind)
        some = Over({name: many[rows] for name, many in program.sizes.items()})
        first = {name: int(many[0]) for name, many in some.sizes.items()}
        there = annotate(resized(program.graph, first) if graph.meta.symbolic else program.graph)
        parts.append(Part(there, some, op_groups(there, some)))
    return parts


class PlacedPart:
    """What a placement moves and runs, at some of the sizes of a part."""

    def __init__(self, part: Part, placed: Placed, rows: Ints, wire: WireFormat) -> None:
        self._wire = wire
        self.placed = placed
        self._part, self._rows, self._devices = part, rows, placed.devices
        self._traffic, self._residency = placed.traffic, placed.residency
        self._placed = placed.placement, placed.traffic.transfers
        self._over = Over({name: many[rows] for name, many in part.over.sizes.items()})
        self._crossings = [crossing(tensor, wire, self._over) for tensor in placed.tensors]
        self._kinds, self._messages = placed.kinds, placed.messages
        self._ops, self._working = placed.ops, placed.working
        self._kept, self._with_state = placed.kept, placed.with_state
        sent, received = self._payload("send"), self._payload("receive")
        total = self._over(sent[0] + received[0])
        if wire.packings:
            total = sent[1] + received[1]
        packed = [one.is_estimate for one in self._crossings]
        estimate = np.any(np.broadcast_arrays(False, *packed), axis=0)
        self._common = {
            "calls": len(self._traffic.calls),
            "transfers": len(self._traffic.transfers),
            "cut_edges": self._traffic.cut_edges,
            "sent_payload_bytes": sent[1],
            "received_payload_bytes": received[1],
            "total_payload_bytes": total,
            STATUS: np.where(estimate, "estimate", "exact").astype(object),
            "home_resident_bytes": self._over(placed.stored[HOME]),
            "accelerator_resident_bytes": self._over(placed.stored.get(ACCELERATOR, const(0))),
            **self._of_masks(),
        }
        self._known: dict[Any, Any] = {}

    def _payload(self, way: str) -> tuple[Formula, Ints]:
        """(what crosses in a direction unpacked, what does cross)"""
        counts: Counter[int] = Counter()
        for (direction, kinds), count in self._messages.items():
            for one in kinds if direction == way else ():
                counts[one] += count
        plain = sum((self._crossings[one].plain * n for one, n in counts.items()), const(0))
        found = self._over(plain)  # raises where 64 bits are too few
        if self._wire.packings:
            each = (self._crossings[one].payload_bytes * n for one, n in counts.items())
            found = sum(each, np.zeros(self._over.length, np.int64))
        return plain, found

    def _of_masks(self) -> dict[str, Ints | int]:
        """What masks cost: ``MASKED``."""
        graph = self._part.graph
        if not isinstance(graph, MaskedGraph):
            return dict.fromkeys(MASKED, 0)
        crossed = [t.tensor for t in self._traffic.transfers if t.tensor.id in graph.masks]
        plain = [graph.tensors[graph.masks[tensor.id].plain] for tensor in crossed]
        pads = sum((bytes_of(graph.tensors[pad]) for pad in graph.pads), const(0))
        return {
            "masked_payload_bytes": self._crossing_bytes(crossed),
            "unmasked_payload_bytes": self._crossing_bytes(plain),
            "pad_bytes": self._over(pads),
            "offline_flops": self._over(graph.offline),
            "home_mask_flops": self._over(graph.mask_flops),
        }

    def _crossing_bytes(self, tensors: Sequence[Tensor]) -> Ints:
        """What tensors are together while they cross."""
        alike = {kind_of(tensor, self._wire): tensor for tensor in tensors}
        counts = Counter(kind_of(tensor, self._wire) for tensor in tensors)
        total = np.zeros(self._over.length, np.int64)
        for kind, tensor in alike.items():
            total = total + counts[kind] * crossing(tensor, self._wire, self._over).payload_bytes
        return total

    def figures(self, machine: Machine) -> dict[str, Any]:
        """The figures that are known, by name."""
        link = machine.links.common
        moved = self._once(("link", id(link)), lambda: self._moved(link))
        found = {**self._common, **moved}
        for place, name in ((HOME, "home_seconds"), (ACCELERATOR, "accelerator_seconds")):
            if place in machine.described:
                engine = machine.engines.get(place, PHYSICAL)
                key = place, id(machine.described[place]), machine.options, id(engine)
                ran = self._once(key, partial(self._ran, machine, place))
                if ran is not None:
                    found[name] = ran
                if self.late(machine, place):
                    found["at_least"] = True
        arrays = [place for place, device in machine.described.items() if device.array is not None]
        if arrays and not any(map(self._lacks_sizes, arrays)):
            found["cycles"] = sum(self._cycles(machine, place) for place in arrays)
        away = any(device == ACCELERATOR for device in self._devices)
        if not away:
            found.setdefault("accelerator_seconds", 0.0)
        parts = ("home_seconds", "accelerator_seconds", "seconds")
        if all(part in found for part in parts):
            found["run_seconds"] = sum(found[part] for part in parts)
        return found | self._energy(machine, found)

    def _energy(self, machine: Machine, known: Mapping[str, Any]) -> dict[str, Any]:
        """The energy of the run, as ``partition.energy`` has it, beside what is known of it."""
        away = ACCELERATOR in self._devices
        found: dict[str, Any] = {} if away else {"accelerator_joules": 0.0}
        at_least: Any = "joules" not in known
        for place in (HOME, ACCELERATOR) if away else (HOME,):
            if place in machine.described and f"{place}_seconds" in known:
                taken = self._joules(machine, place, known[f"{place}_seconds"])
                at_least = at_least | taken.at_least
                if taken.value is not None:
                    found[f"{place}_joules"] = taken.value
        figures = [machine.described[place].energy for place in machine.described]
        idle = [None if one is None else one.idle_watts for one in figures]
        watts = sum(one or 0.0 for one in idle)
        at_least = at_least | (None in idle or len(idle) < 2)
        if watts and "run_seconds" in known:
            found["idle_joules"] = watts * known["run_seconds"]
            at_least = at_least | known["at_least"]
        else:
            at_least = at_least | bool(watts)
        if not {"home_joules", "accelerator_joules"} <= found.keys():
            return found | {"energy_at_least": False}
        run = found["home_joules"] + found["accelerator_joules"]
        run = run + known.get("joules", 0.0) + found.get("idle_joules", 0.0)
        return found | {"run_joules": run, "energy_at_least": at_least}

    def _joules(self, machine: Machine, place: str, seconds: Any) -> Joules:
        """What the ops on a device take."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        if device.energy is None or not by_operation(device.energy):
            late = self._working[place] and engine.launch(device) is None
            return work_joules(device, machine.options, EnergyWork({}), seconds, late=late)
        key = "work", place, id(device), machine.options, id(engine)
        work: EnergyWork = self._once(key, partial(self._work, machine, place))
        shares: Shares = (0.0, 0.0)
        if device.npu is not None:
            shares = off_chip_shares(device, self._lying(place), self._weights_read(place))
        return work_joules(device, machine.options, work, seconds, off_chip=shares)

    def _work(self, machine: Machine, place: str) -> EnergyWork:
        """What the ops on a device do, cached state that is kept there with them."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        counts = Counter(self._ops[place])
        if device.array is None:
            counts.clear()
            for groups, count in self._with_state[place].items():
                for group in groups:
                    counts[group] += count
        each = [(count, self._group_work(machine, place, group)) for group, count in counts.items()]
        work = summed(each)
        if engine.execution == "fused" and device.array is None:
            here = OpGroups(self._part.op_groups.of, self._groups_here())
            runs = self._runs(place)
            moved = run_moved(self._part.graph, self._over, here, place, runs, engine)
            work = replace(work, moved_bytes=moved)
        return work

    def _group_work(self, machine: Machine, place: str, group: int) -> EnergyWork:
        """What ops that are alike do each on a device."""
        costs, taken = self._part.op_groups.groups[group], self._part.times(machine)[place][group]
        done = costs.flops, costs.moved_bytes, costs.param_bytes, taken.gemm, taken.memory
        device = machine.described[place]
        work = work_of(device, machine.options, costs.dtype, *done, costs.widths)
        return work.at(self._rows)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _moved(self, link: Link) -> dict[str, Any]:
        """What the messages cost on a link, as ``accounting`` sums it."""
        wire = {way: np.zeros(self._over.length, np.int64) for way in ("send", "receive")}
        seconds: dict[str, list[tuple[int, Floats]]] = {"send": [], "receive": []}
        a_byte = None if link.picojoules_per_byte is None else link.picojoules_per_byte * 1e-12
        joules: list[tuple[int, Floats]] = []
        peak = np.zeros(self._over.length, np.int64)
        at_least: Any = any(link.at_least(way) for way, _ in self._messages)
        for (way, kinds), count in self._messages.items():
            tensors = [self._crossings[one] for one in kinds]
            cost = message_cost(link, [one.payload_bytes for one in tensors], way)
            wire[way] = wire[way] + count * sum(cost.wire_bytes)
            peak = np.maximum(peak, cost.peak_buffer_bytes)
            if a_byte is not None:
                joules += [(count, wire_bytes * a_byte) for wire_bytes in cost.wire_bytes]
            for one, each in zip(tensors, cost.seconds or (), strict=bool(cost.seconds)):
                seconds[way].append((count, each + one.packing_seconds))
                at_least = at_least | one.at_least
        found: dict[str, Any] = {
            "sent_wire_bytes": wire["send"],
            "received_wire_bytes": wire["receive"],
            "total_wire_bytes": wire["send"] + wire["receive"],
            "peak_buffer_bytes": peak,
            "at_least": at_least,
        }
        if a_byte is not None or not self._messages:
            found["joules"] = exact_sum(joules, self._over.length)
        if link.timed("send") and link.timed("receive"):
            sent, received = (
                exact_sum(seconds[way], self._over.length) for way in ("send", "receive")
            )
            found["seconds"] = sent + received
        return found

    def _ran(self, machine: Machine, place: str) -> Floats | None:
        """What the ops on a device take, None where it cannot run all of them."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        step = engine.step_seconds if place == HOME else 0.0
        if engine.depends_on_runs:
            found = run_times(
                self._part.graph,
                self._over,
                OpGroups(self._part.op_groups.of, self._groups_here()),
                place,
                self._runs(place),
                Rates(device, engine, self._paged(place, device)),
            )
            return None if found is None else found + step
        terms = [(1, np.full(self._over.length, step))] if step else []
        alone = {(group,): count for group, count in self._ops[place].items()}
        for groups, count in (alone if device.array else self._with_state[place]).items():
            taken = [self._group_time(machine, place, group) for group in groups]
            known = [seconds for seconds in taken if seconds is not None]
            if len(known) < len(taken):
                return None
            terms.append((count, sum(known[1:], known[0])))
        return exact_sum(terms, self._over.length)

    def _group_time(self, machine: Machine, place: str, group: int) -> Floats | None:
        """What ops that are alike take each, under an engine that looks at no runs."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        if device.fast_bytes is None:
            taken = self._part.times(machine)[place][group].seconds
            return None if taken is None else taken[self._rows]
        costs = self._part.op_groups.groups[group].at(self._rows)
        lying, read = self._lying(place), self._weights_read(place)
        return time_group(device, costs, machine.options, lying, engine, read).seconds

    def op_times(self, machine: Machine, place: str) -> dict[int, OpTime] | None:
        """By group of ops on a device, what each takes at the first size and what bounds it; None
        under an engine that looks at what runs together."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        if engine.depends_on_runs:
            return None
        read = int(self._weights_read(place)[0])
        lying = int(self._lying(place)[0]) if device.fast_bytes is not None else 0
        return {
            group: op_time(device, self.group(group), machine.options, lying, engine, read)
            for groups in (*self._with_state[place], *((one,) for one in self._ops[place]))
            for group in groups
        }

    def lying_bytes(self, place: str) -> int:
        """The most bytes that lie on a device at a time, at the first size."""
        return int(self._lying(place)[0])

    def all_bytes(self) -> int:
        """Of all tensors together, at the first size: no device has more on it."""
        known = self._part.shared
        if known.all_bytes is None:
            counts = Counter(bytes_of(tensor) for tensor in self._part.graph.tensors)
            known.all_bytes = sum((size * n for size, n in counts.items()), const(0))
        return int(self._over(known.all_bytes)[0])

    def late(self, machine: Machine, place: str) -> bool:
        """Whether it is not known what starting the ops on a device takes."""
        engine = machine.engines.get(place, PHYSICAL)
        return self._working[place] and engine.launch(machine.described[place]) is None

    @property
    def groups_of(self) -> Sequence[int | None]:
        """By op its group."""
        return self._part.op_groups.of

    def shape_at(self, shape: Sequence[str]) -> tuple[int, ...]:
        """A shape at the first size."""
        return tuple(int(self._over(parse(axis))[0]) for axis in shape)

    def payload_bytes(self, kind: int) -> int:
        """What a tensor of a kind is while it crosses, at the first size."""
        return int(self._crossings[kind].payload_bytes[0])

    def group(self, number: int) -> OpGroup:
        """What ops of a group cost at these sizes."""
        return self._part.op_groups.groups[number].at(self._rows)

    def _weights_read(self, place: str) -> Ints:
        """What the ops on a device read of weights and other state."""

        def found() -> Ints:
            total = np.zeros(self._over.length, np.int64)
            for group, count in self._ops[place].items():
                total = (
                    total + count * self._part.op_groups.groups[group].at(self._rows).param_bytes
                )
            return total

        read: Ints = self._once(("read", place), found)
        return read

    def _paged(self, place: str, device: Device) -> Any:
        return paged_share(device, self._lying(place) if device.fast_bytes else 0)

    def laid(self, machine: Machine, asked: Scheduling, serial: Floats) -> dict[str, Any]:
        """The figures of runs as they are laid out; ``serial`` is one run, one op after another."""
        link = machine.links.common
        devices = [id(device) for device in machine.described.values()]
        engines = [id(engine) for engine in machine.engines.values()]
        key = "laid", id(link), machine.options, *devices, *engines
        layout: Layout = self._once(key, partial(self._layout, machine))
        laid = self._once((asked, *key), lambda: layout.laid_out(asked, serial))
        whole = laid.makespan_seconds
        rate = asked.requests / np.where(whole > 0, whole, 1)
        return dict(zip(LAID, (whole, laid.bound_seconds, rate), strict=True)) | {
            LIMIT: laid.limited_by
        }

    def _layout(self, machine: Machine) -> Layout:
        link, graph = machine.links.common, self._part.graph
        key = "tasks", link.concurrency_messages, link.synchronous
        ways = Links(replace(load_link("none"), concurrency_messages=key[1], synchronous=key[2]))
        made = partial(tasks_of, graph, self._placed[0], self._traffic, {}, self._residency, ways)
        network: TaskNetwork = self._once(key, lambda: TaskNetwork(*made()))
        moving = self._once(("moving", id(link)), partial(self._by_transfer, link))
        ran: dict[int, Floats] = {}
        for place, device in machine.described.items():
            engine = machine.engines.get(place, PHYSICAL)
            kind = "ops", place, id(device), machine.options, id(engine)
            ran |= self._once(kind, partial(self._by_op, machine, place))
        still = np.zeros(self._over.length)
        seconds = [
            ran.get(task.op, still) if task.op is not None else moving[task.transfer]
            for task in network.tasks
        ]
        return Layout(network, seconds)

    def _by_transfer(self, link: Link) -> list[Floats]:
        """What each transfer takes."""
        messages: dict[tuple[int, str], list[Transfer]] = {}
        for transfer in self._traffic.transfers:
            messages.setdefault((transfer.call, transfer.direction), []).append(transfer)
        found: dict[int, Floats] = {}
        known: dict[Any, Any] = {}
        for (_, way), transfers in messages.items():
            kinds = tuple(self._kinds[transfer.id] for transfer in transfers)
            if (way, kinds) not in known:
                tensors = [self._crossings[one] for one in kinds]
                cost = message_cost(link, [one.payload_bytes for one in tensors], way)
                still = np.zeros(self._over.length)
                known[way, kinds] = [
                    taken + one.packing_seconds + still
                    for taken, one in zip(cost.seconds or (), tensors, strict=bool(cost.seconds))
                ]
            for transfer, taken in zip(transfers, known[way, kinds], strict=True):
                found[transfer.id] = taken
        return [found[transfer.id] for transfer in self._traffic.transfers]

    def _by_op(self, machine: Machine, place: str) -> dict[int, Floats]:
        """What each op on a device takes, as ``_ran`` sums it."""
        device, engine = machine.described[place], machine.engines.get(place, PHYSICAL)
        graph, groups = self._part.graph, self._part.op_groups
        kept = {op: beside for (op, where), beside in self._kept.items() if where == place}
        kept = {} if device.array else kept
        if engine.depends_on_runs:
            rates = Rates(device, engine, self._paged(place, device))
            here = OpGroups(groups.of, self._groups_here())
            found = op_times(graph, self._over, here, place, self._runs(place), rates) or {}
        else:
            ops = {op for op, where in enumerate(self._devices) if where == place} | kept.keys()
            of = {op: group for op in sorted(ops) if (group := groups.of[op]) is not None}
            times = {group: self._group_time(machine, place, group) for group in set(of.values())}
            found = {op: taken for op, group in of.items() if (taken := times[group]) is not None}
        for op, beside in kept.items():
            if op in found and beside in found:
                found[beside] = found[beside] + found.pop(op)
        if place == HOME and engine.step_seconds:
            found |= {
                op.id: np.full(self._over.length, engine.step_seconds)
                for op in graph.ops
                if op.kind is Kind.OUTPUT
            }
        return found

    def _groups_here(self) -> tuple[OpGroup, ...]:
        """What the groups of ops cost at these sizes."""

        def found() -> tuple[OpGroup, ...]:
            return tuple(group.at(self._rows) for group in self._part.op_groups.groups)

        here: tuple[OpGroup, ...] = self._once("groups", found)
        return here

    def _runs(self, place: str) -> tuple[tuple[str, int] | None, ...]:
        """By op, what it runs in, as a device sees it."""
        kept = {op: beside for (op, device), beside in self._kept.items() if device == place}
        return runs_of(self.placed.placement, self.placed.steps, kept)

    def _lying(self, place: str) -> Ints:
        """The most bytes that lie on a device at a time."""

        def found() -> dict[str, Any]:
            if self._over.length > 1:
                taken: list[Any] = [self._over(size) for size in self.placed.sizes]
            else:
                taken = [int(self._over(size)[0]) for size in self.placed.sizes]
            return {
                device: np.atleast_1d(
                    reduce(
                        larger, (sum(taken[size] * n for size, n in one.items()) for one in loads)
                    )
                )
                for device, loads in self.placed.loads.items()
            }

        lying: Ints = self._once("lying", found).get(place, np.zeros(self._over.length, np.int64))
        return lying

    def _lacks_sizes(self, place: str) -> bool:
        ops = self._part.graph.ops
        here = (ops[op] for op, device in enumerate(self._devices) if device == place)
        return bool(without_sizes(here))

    def _cycles(self, machine: Machine, place: str) -> Ints:
        times = self._part.times(machine)[place]
        total = np.zeros(self._over.length, np.int64)
        for group, count in self._ops[place].items():
            gemm = times[group].gemm
            if gemm is not None:
                total = total + count * gemm.cycles[self._rows]
        return total
