"""Placements at other sizes and over other links as ``Split``, in what a live page shows of them.

Their figures come from formulas (``cutedge.sweeping.parts``), of one size at a time. What is shown of
a split is all that is filled in: of the transfers one stands for each message.
"""

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from costmodels.links import Link
from costmodels.machine import Machine
from costmodels.roofline import DeviceTime, OpTime
from cutedge.sweeping.answers import ACCELERATOR, HOME, by_part
from cutedge.sweeping.parts import PlacedPart
from cutedge.sweeping.placed import Placed
from partition.accounting import Totals, Transfer
from partition.energy import RunEnergy
from partition.explain import Bottleneck, family_of
from partition.ladder import Exposure, exposure
from partition.placement import Placement
from partition.run import Chips
from partition.setting import Setting
from partition.split import Split
from tracer.graph import Gemm, Kind, TraceMeta
from tracer.summary import tensor_names


@dataclass(frozen=True, slots=True)
class _NamedPlacement(Placement):
    """A placement that knows what it uses: that is asked for many times."""

    used: tuple[str, ...] = ()

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The devices other than home that ops run on."""
        return self.used


@dataclass(slots=True)
class _Named:
    """A placement on a program, under the names of the devices."""

    placed: Placed
    placement: Placement
    exposed: tuple[Exposure, ...]
    families: Mapping[Any, Counter[int]]
    """(what a tensor is called, its shape as formulas) -> kind of tensor -> transfers of it."""
    messages: dict[tuple[bool, bool], tuple[Transfer, ...]] = field(default_factory=dict)
    """Whether the latency of what is sent, and of what comes home, is not known -> one transfer of
    each message, and those of weights or packed ones."""


class LightSplits:
    """Placements on the devices of a setting, which has one accelerator."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._machine = setting, setting.machine
        self._named: dict[int, _Named] = {}

    def _name(self, placed: Placed) -> _Named:
        """A placement under the names of the devices, with what it shows."""
        if id(placed) not in self._named:
            (accelerator,) = self._machine.accelerators
            names = {HOME: self._machine.home, ACCELERATOR: accelerator, None: None}
            before = placed.placement
            placement = _NamedPlacement(
                self._machine.home,
                tuple(names[device] for device in placed.devices),
                before.pinned,
                before.reasons,
                before.streams,
                (accelerator,) if ACCELERATOR in placed.devices else (),
            )
            untrusted = (ACCELERATOR,) if self._setting.untrusted else ()
            shown = exposure(placed.graph, placed.placement, placed.traffic, untrusted)
            called = tensor_names(placed.graph)
            families: dict[Any, Counter[int]] = {}
            for t, kind in zip(placed.traffic.transfers, placed.kinds, strict=True):
                shape = tuple(t.tensor.shape_expr or map(str, t.tensor.shape))
                key = family_of(t.tensor, called[t.tensor.id], shape)
                families.setdefault(key, Counter())[kind] += 1
            self._named[id(placed)] = _Named(placed, placement, tuple(shown), families)
        return self._named[id(placed)]

    def _messages(self, named: _Named, link: Link) -> tuple[Transfer, ...]:
        late = {"send": link.at_least("send"), "receive": link.at_least("receive")}
        key = late["send"], late["receive"]
        if key not in named.messages:
            home, (accelerator,) = self._machine.home, self._machine.accelerators
            ends = {"send": (home, accelerator), "receive": (accelerator, home)}
            seen: set[tuple[int, str]] = set()
            found = []
            for t in named.placed.traffic.transfers:
                message = t.call, t.direction
                plain = t.tensor.op is not None and t.packing_seconds is not None
                if message in seen and plain:
                    continue
                seen.add(message)
                source, target = ends[t.direction]
                at_least = late[t.direction] or t.packing_seconds is None
                found.append(replace(t, src_device=source, dst_device=target, at_least=at_least))
            named.messages[key] = tuple(found)
        return named.messages[key]

    def split(self, base: Split, placed: PlacedPart, machine: Machine, meta: TraceMeta) -> Split:
        """A placement that was placed as ``base``, at the size of ``placed`` and ``meta``."""
        on, named = by_part(machine), self._name(placed.placed)
        found = {
            name: _plain(value) for name, value in placed.figures(on).items() if value is not None
        }
        (accelerator,) = self._machine.accelerators
        names = {HOME: self._machine.home, ACCELERATOR: accelerator}
        used = {HOME: True, ACCELERATOR: ACCELERATOR in placed.placed.devices}
        seconds = {
            names[place]: found[f"{place}_seconds"]
            for place in names
            if used[place] and place in on.described and f"{place}_seconds" in found
        }
        transfers = self._messages(named, machine.links.common)
        payload, moving = found["total_payload_bytes"], found.get("seconds")
        totals = Totals(
            found["sent_payload_bytes"],
            found["sent_wire_bytes"],
            found["received_payload_bytes"],
            found["received_wire_bytes"],
            0,
            0,
            moving,
            None if moving is None else 0.0,
            None if moving is None else 0.0,
            any(one.at_least for one in transfers),
            payload if found["payload_status"] == "estimate" else 0,
            found.get("joules"),
        )
        resident = {
            names[place]: found[f"{place}_resident_bytes"] for place in names if used[place]
        }
        traffic = replace(
            placed.placed.traffic, transfers=transfers, totals=totals, resident_bytes=resident
        )
        graph = copy(placed.placed.graph)
        graph.meta = meta
        energy = RunEnergy(
            found.get("home_joules"),
            found.get("accelerator_joules"),
            found.get("joules"),
            found.get("idle_joules"),
            bool(found["energy_at_least"]),
        )
        late = [
            on.described[place].name
            for place in names
            if place in on.described and placed.late(on, place)
        ]
        link = machine.links
        return replace(
            base,
            graph=graph,
            placement=named.placement,
            traffic=traffic,
            link=link.name,
            links=link,
            wire_format=replace(base.wire_format, dtype=machine.wire_dtype),
            compute_seconds=seconds,
            chips=self._chips(placed, on),
            bound_seconds=self._bounds(placed, on, accelerator),
            exposed=named.exposed,
            unknown_launches=tuple(dict.fromkeys(late)),
            schedule=None,
            energy=energy,
        )

    def _chips(self, placed: PlacedPart, on: Machine) -> Chips | None:
        device = on.described.get(ACCELERATOR)
        if device is None or device.array is None or device.npu or device.array_memory:
            return None
        products: Counter[Any] = Counter()
        for number, count in placed.placed.ops[ACCELERATOR].items():
            gemm = placed.group(number).gemm
            if gemm is not None:
                batch, m, n, k = (int(axis[0]) for axis in gemm)
                products[device.array, Gemm(batch=batch, m=m, n=n, k=k)] += count
        launches = sum(products.values()) * (device.launch_seconds or 0.0)
        return Chips(products, on.options, launches) if products else None

    def _bounds(
        self, placed: PlacedPart, on: Machine, accelerator: str
    ) -> dict[str, dict[str, float]]:
        device = on.described.get(ACCELERATOR)
        if device is None or not (device.npu or device.array_memory):
            return {}
        if ACCELERATOR not in placed.placed.devices:
            return {}
        times = placed.op_times(on, ACCELERATOR) or {}
        bounds: dict[str, float] = {}
        for group, count in placed.placed.ops[ACCELERATOR].items():
            one = times[group]
            if one.bound is not None:
                bounds[one.bound] = bounds.get(one.bound, 0.0) + count * (one.seconds or 0.0)
        return {accelerator: bounds}

    def fits(self, placed: PlacedPart, machine: Machine) -> bool:
        """Whether no device has more on it than it holds."""
        on = by_part(machine)
        own = {HOME: machine.home, ACCELERATOR: machine.accelerators[0]}
        limits = {
            place: machine.memory_bytes.get(
                own[place], on.described[place].memory_bytes if place in on.described else None
            )
            for place in own
        }
        most = placed.all_bytes()
        return all(
            limit is None or most <= limit or placed.lying_bytes(place) <= limit
            for place, limit in limits.items()
        )

    def worst(self, placed: PlacedPart, total: int) -> Bottleneck | None:
        """What makes most of the traffic, without what would relieve it."""
        if not total:
            return None
        bytes_, count, example = Counter[Any](), Counter[Any](), dict[Any, Any]()
        for (name, shape), kinds in self._name(placed.placed).families.items():
            family = name, placed.shape_at(shape)
            for kind, times in kinds.items():
                bytes_[family] += times * placed.payload_bytes(kind)
                count[family] += times
                one = placed.payload_bytes(kind), placed.placed.tensors[kind]
                if family not in example or one[0] > example[family][0]:
                    example[family] = one
        worst = max(bytes_, key=lambda family: bytes_[family])
        size = bytes_[worst]
        return Bottleneck(worst[0], count[worst], size, size / total, example[worst][1], None)

    def times(self, placed: PlacedPart, machine: Machine) -> dict[str, DeviceTime] | None:
        """What the ops take on the devices, by op; None where an engine looks at what runs
        together."""
        on, graph = by_part(machine), placed.placed.graph
        names = {HOME: machine.home, ACCELERATOR: machine.accelerators[0]}
        found: dict[str, DeviceTime] = {}
        for place, device in on.described.items():
            groups = placed.op_times(on, place)
            if groups is None:
                return None
            times = [OpTime(0.0)] * len(graph.ops)
            of = placed.groups_of
            for op, here in enumerate(placed.placed.devices):
                group = of[op]
                if here == place and group is not None:
                    times[op] = groups[group]
            if not device.array:
                for (op, where), beside in placed.placed.kept.items():
                    group = of[op]
                    if where != place or group is None:
                        continue
                    one, more = times[beside], groups[group].seconds
                    if one.seconds is not None and more is not None:
                        times[beside] = replace(one, seconds=one.seconds + more)
            engine = machine.engines.get(names[place])
            step = engine.step_seconds if engine is not None and place == HOME else 0.0
            for one_op in graph.ops if step else ():
                if one_op.kind is Kind.OUTPUT:
                    times[one_op.id] = OpTime(step, "overhead")
            found[names[place]] = DeviceTime(device, tuple(times), 0.0, {}, 1.0)
        return found


def _plain(value: Any) -> Any:
    """A figure at the one size as a plain number."""
    value = np.asarray(value).reshape(-1)[0]
    return value.item() if hasattr(value, "item") else value
