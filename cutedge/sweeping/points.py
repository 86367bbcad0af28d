"""The figures of many points: what ``trace`` and ``partition`` say of each, from formulas.

A placement's figures are sums over equal things: the ops of every layer, the messages of every
call. Each kind is worked out once, for all sizes, and counted as often as it occurs.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.engines import PHYSICAL
from costmodels.flops import annotate, total_flops
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
    run_times,
    time_group,
)
from costmodels.roofline import Rule, paged_share
from cutedge.sweeping.answers import (
    ACCELERATOR,
    HOME,
    Devices,
    PlacementSearch,
    by_part,
    placement_on,
)
from partition import Residency
from partition.accounting import account, steps_of
from partition.policy import Policy
from partition.problem import memory_of
from partition.run import runs_of
from partition.stored import held, kept_on
from partition.wire_format import WireFormat
from tracer.formula import Formula, const, parse
from tracer.graph import OpGraph
from tracer.reach import resized
from tracer.summary import variant_of

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
"""Of the products on an array; none elsewhere."""

SECONDS = ("seconds", "home_seconds", "accelerator_seconds", "run_seconds")
"""Of the transfers, of computing at home and away, and of all; none where not all is known."""

FLAGS = ("at_least",)
"""Whether those seconds leave out what is not known; none where no placement is possible."""


@dataclass(frozen=True, slots=True)
class SizedGraph:
    """A traced model, and the sizes at which it is this program."""

    graph: OpGraph
    """At one of the sizes, without costs."""
    sizes: Sizes
    numbers: Ints
    """By size: its number among all that are asked of the model."""


@dataclass(frozen=True, slots=True)
class Job:
    """A part of a sweep that is done in one go and written as one file: one policy on one model."""

    subject: bytes
    """What ``pack`` made. As bytes, so that a process that does one job after another on the
    same programs and machines reads them once."""
    policy: Policy
    wires: tuple[str | None, ...]
    """What floats cross in; None for their own dtypes."""
    residencies: tuple[Residency, ...]
    time_limit: float
    """Seconds that the search for one placement may take."""


def pack(programs: Sequence[SizedGraph], machines: Sequence[Machine]) -> bytes:
    """Programs that share out the sizes of a job, and its machines."""
    return pickle.dumps((tuple(programs), tuple(machines)))


@lru_cache(maxsize=1)
def _unpacked(subject: bytes) -> "tuple[list[_Part], tuple[Machine, ...]]":
    programs, machines = pickle.loads(subject)
    return [part for program in programs for part in _alike(program)], machines


@dataclass(frozen=True, slots=True)
class Points:
    """Rows as columns: one for each wire dtype, residency, machine and size, in that order."""

    run: Mapping[str, str]
    """The model, the variant and the phase that all rows are of."""
    sizes: Mapping[str, Column]
    """Variable -> its value."""
    wire: NDArray[np.int64]
    residency: NDArray[np.int64]
    machine: NDArray[np.int64]
    """By row: the position in what the job lists."""
    machines: tuple[Machine, ...]
    wire_dtype: Sequence[str | None]
    """What floats cross in, where that is not their own dtype; of int8 arrays int8."""
    placed: Sequence[str]
    optimal: Sequence[bool | None]
    coverage: Column
    """Share of the ops that work whose FLOPs are known."""
    figures: Mapping[str, tuple[Column, NDArray[np.bool_]]]
    """Name -> (values, which of them are known)."""


def points(job: Job) -> Points:
    """Work out all points of a job, ordered by batch, past, seq within a machine.

    Raises InputError for a policy that is not for a machine, OverflowError for figures that 64
    bits do not hold.
    """
    parts, machines = _unpacked(job.subject)
    sizes = {
        name: np.concatenate([part.over.sizes[name] for part in parts])
        for name in ("batch", "past", "source", "seq")
    }
    order = np.lexsort([sizes[name] for name in ("seq", "source", "past", "batch")])
    searches = {
        (residency, number): PlacementSearch(
            part.graph, job.policy, part.over, residency, job.time_limit
        )
        for residency in job.residencies
        for number, part in enumerate(parts)
    }
    row_sets: list[_Rows] = []
    keys: list[tuple[int, int, int]] = []
    for w, wire in enumerate(job.wires):
        for r, residency in enumerate(job.residencies):
            for m, machine in enumerate(map(by_part, machines)):
                made = [
                    _rows(part, searches[residency, number], machine, wire, residency)
                    for number, part in enumerate(parts)
                ]
                row_sets.append(_joined(made, order))
                keys.append((w, r, m))
    length = len(order)
    numbers = np.repeat(np.array(keys, np.int64), length, axis=0)
    coverage = np.concatenate([np.full(part.over.length, part.coverage) for part in parts])[order]
    first = parts[0].graph
    stored = [f"{what}={getattr(first.meta, what)}" for what in ("weights", "kv_dtype")]
    told = [variant_of(first), *(one for one in stored if not one.endswith("="))]
    run = {"model": first.meta.model, "variant": ", ".join(told), "phase": first.meta.phase}
    return Points(
        run,
        {name: np.tile(many[order], len(keys)) for name, many in sizes.items()},
        numbers[:, 0],
        numbers[:, 1],
        numbers[:, 2],
        machines,
        [dtype for rows in row_sets for dtype in (rows.wire_dtype,) * length],
        [placed for rows in row_sets for placed in rows.placed],
        [optimal for rows in row_sets for optimal in rows.optimal],
        np.tile(coverage, len(keys)),
        {
            name: (
                np.concatenate([rows.figures[name] for rows in row_sets]),
                np.concatenate([rows.known[name] for rows in row_sets]),
            )
            for name in (*COUNTS, *OPTIONAL_COUNTS, *SECONDS, *FLAGS)
        },
    )


def along(
    program: SizedGraph,
    devices: Devices,
    streams: frozenset[int],
    machine: Machine,
    wire: str | None,
    residency: Residency,
) -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
    """(sizes, figures by name) of one placement at each size of a program, in no order.

    A figure that is not known at a size is left out there. ``devices`` are ``HOME`` and
    ``ACCELERATOR``, as the parts of the machine are called (``by_part``); the parameters of
    ``streams`` lie at home.
    """
    for part in _alike(program):
        length = part.over.length
        plan = part.plan(devices, streams, np.arange(length), wire, residency)
        figures = {
            name: np.broadcast_to(np.asarray(values), (length,)).tolist()
            for name, values in plan.figures(machine).items()
        }
        for row in range(length):
            sizes = {name: int(many[row]) for name, many in part.over.sizes.items()}
            yield sizes, {name: values[row] for name, values in figures.items()}


class _Part:
    """Sizes at which the same ops of a program work, and what they cost."""

    def __init__(self, graph: OpGraph, over: Over, groups: OpGroups) -> None:
        self.graph, self.over, self.op_groups = graph, over, groups
        self.coverage = total_flops(graph).coverage
        self._times: dict[Any, tuple[GroupTime, ...]] = {}
        self._plans: dict[Any, _Plan] = {}

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

    def plan(
        self,
        devices: Devices,
        streams: frozenset[int],
        rows: Ints,
        wire: str | None,
        residency: Residency,
    ) -> "_Plan":
        """What a placement moves at some of the sizes."""
        key = devices, streams, rows.tobytes(), wire, residency
        if key not in self._plans:
            self._plans[key] = _Plan(self, devices, streams, rows, wire, residency)
        return self._plans[key]


def _alike(program: SizedGraph) -> list[_Part]:
    """A program in parts: where an op has FLOPs at some sizes only, these are apart."""
    over = Over(program.sizes)
    graph = annotate(program.graph)
    costs = op_groups(graph, over)
    idle = [one.flops == 0 for one in costs.groups if one.flops is not None]
    if all(every.all() or not every.any() for every in idle):
        return [_Part(graph, over, costs)]
    kinds, which = np.unique(np.stack(idle), axis=1, return_inverse=True)
    parts = []
    for kind in range(kinds.shape[1]):
        rows = np.flatnonzero(which == kind)
        some = Over({name: many[rows] for name, many in program.sizes.items()})
        first = {name: int(many[0]) for name, many in some.sizes.items()}
        there = annotate(resized(program.graph, first) if graph.meta.symbolic else program.graph)
        parts.append(_Part(there, some, op_groups(there, some)))
    return parts


# --- the figures of one machine -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    wire_dtype: str | None
    placed: Sequence[str]
    optimal: Sequence[bool | None]
    figures: dict[str, Column]
    known: dict[str, NDArray[np.bool_]]


def _rows(
    part: _Part, search: PlacementSearch, machine: Machine, wire: str | None, residency: Residency
) -> _Rows:
    if wire is None and machine.options.int8_speedup is not None:
        wire = "int8"
    answers, streams = search.answers(machine, wire), search.streams(machine)
    length = part.over.length
    figures: dict[str, Column] = {
        **{name: np.zeros(length, np.int64) for name in (*COUNTS, *OPTIONAL_COUNTS)},
        **{name: np.zeros(length) for name in SECONDS},
        **{name: np.zeros(length, bool) for name in FLAGS},
    }
    known = {name: np.zeros(length, bool) for name in figures}
    for number, devices in enumerate(answers.placements):
        rows = np.flatnonzero(answers.which == number)
        plan = part.plan(devices, streams, rows, wire, residency)
        for name, values in plan.figures(machine).items():
            figures[name][rows], known[name][rows] = values, True
    return _Rows(wire, answers.placed, answers.optimal, figures, known)


def _joined(row_sets: Sequence[_Rows], order: Ints) -> _Rows:
    placed = [one for rows in row_sets for one in rows.placed]
    optimal = [one for rows in row_sets for one in rows.optimal]
    names = row_sets[0].figures
    return _Rows(
        row_sets[0].wire_dtype,
        [placed[n] for n in order],
        [optimal[n] for n in order],
        {name: np.concatenate([rows.figures[name] for rows in row_sets])[order] for name in names},
        {name: np.concatenate([rows.known[name] for rows in row_sets])[order] for name in names},
    )


_Message = tuple[str, tuple[Formula, ...]]
"""(direction, the payload of each tensor)"""


class _Plan:
    """What a placement moves and runs, at some of the sizes of a part."""

    def __init__(
        self,
        part: _Part,
        devices: Devices,
        streams: frozenset[int],
        rows: Ints,
        wire: str | None,
        residency: Residency,
    ) -> None:
        graph, placement = part.graph, placement_on(devices, streams)
        traffic = account(
            graph, placement, Links(load_link("none")), wire=WireFormat(wire), residency=residency
        )
        self._part, self._rows, self._devices = part, rows, devices
        self._placed = placement, traffic.transfers
        self._over = Over({name: many[rows] for name, many in part.over.sizes.items()})
        tensors: dict[tuple[int, str], list[Formula]] = {}
        for t in traffic.transfers:
            payload = const(t.payload_bytes) if t.bytes_expr is None else parse(t.bytes_expr)
            tensors.setdefault((t.call, t.direction), []).append(payload)
        self._messages: Counter[_Message] = Counter(
            (direction, tuple(payloads)) for (_, direction), payloads in tensors.items()
        )
        stored = {
            device: sum((bytes_of(graph.tensors[t]) for t in ids), const(0))
            for device, ids in held(graph, placement).items()
        }
        crossing = {
            way: sum(
                (sum(m[1], const(0)) * n for m, n in self._messages.items() if m[0] == way),
                const(0),
            )
            for way in ("send", "receive")
        }
        self._common = {
            "calls": len(traffic.calls),
            "transfers": len(traffic.transfers),
            "cut_edges": traffic.cut_edges,
            "sent_payload_bytes": self._over(crossing["send"]),
            "received_payload_bytes": self._over(crossing["receive"]),
            "total_payload_bytes": self._over(crossing["send"] + crossing["receive"]),
            "home_resident_bytes": self._over(stored[HOME]),
            "accelerator_resident_bytes": self._over(stored.get(ACCELERATOR, const(0))),
        }
        self._ops = {
            place: Counter(
                group
                for op, group in enumerate(part.op_groups.of)
                if group is not None and devices[op] == place
            )
            for place in (HOME, ACCELERATOR)
        }
        self._kept = kept_on(graph, placement)
        self._kept_ops = {
            place: Counter(
                group
                for op, device in self._kept
                if device == place and (group := part.op_groups.of[op]) is not None
            )
            for place in (HOME, ACCELERATOR)
        }
        self._known: dict[Any, Any] = {}

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
        arrays = [place for place, device in machine.described.items() if device.array is not None]
        if arrays:
            found["cycles"] = sum(self._cycles(machine, place) for place in arrays)
        away = any(device == ACCELERATOR for device in self._devices)
        if not away:
            found.setdefault("accelerator_seconds", 0.0)
        parts = ("home_seconds", "accelerator_seconds", "seconds")
        if all(part in found for part in parts):
            found["run_seconds"] = sum(found[part] for part in parts)
        return found

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _moved(self, link: Link) -> dict[str, Any]:
        """What the messages cost on a link, as ``accounting`` sums it."""
        wire = {way: np.zeros(self._over.length, np.int64) for way in ("send", "receive")}
        seconds: dict[str, list[tuple[int, Floats]]] = {"send": [], "receive": []}
        peak = np.zeros(self._over.length, np.int64)
        for (way, payloads), count in self._messages.items():
            cost = message_cost(link, [self._over(payload) for payload in payloads], way)
            wire[way] = wire[way] + count * sum(cost.wire_bytes)
            peak = np.maximum(peak, cost.peak_buffer_bytes)
            seconds[way] += [(count, each) for each in cost.seconds or ()]
        found: dict[str, Any] = {
            "sent_wire_bytes": wire["send"],
            "received_wire_bytes": wire["receive"],
            "total_wire_bytes": wire["send"] + wire["receive"],
            "peak_buffer_bytes": peak,
            "at_least": any(link.at_least(way) for way, _ in self._messages),
        }
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
            paged = paged_share(device, self._lying(place) if device.enclave_bytes else 0)
            found = run_times(
                self._part.graph,
                self._over,
                OpGroups(self._part.op_groups.of, self._groups_here()),
                place,
                self._runs(place),
                Rule(device, engine, paged),
            )
            return None if found is None else found + step
        terms = [(1, np.full(self._over.length, step))] if step else []
        kept = Counter() if device.array else self._kept_ops[place]
        for group, count in (self._ops[place] + kept).items():
            if device.enclave_bytes is None:
                taken = self._part.times(machine)[place][group].seconds
                taken = None if taken is None else taken[self._rows]
            else:
                costs = self._part.op_groups.groups[group].at(self._rows)
                lying = self._lying(place)
                taken = time_group(device, costs, machine.options, lying, engine).seconds
            if taken is None:
                return None
            terms.append((count, taken))
        return exact_sum(terms, self._over.length)

    def _groups_here(self) -> tuple[OpGroup, ...]:
        """What the groups of ops cost at these sizes."""

        def found() -> tuple[OpGroup, ...]:
            return tuple(group.at(self._rows) for group in self._part.op_groups.groups)

        here: tuple[OpGroup, ...] = self._once("groups", found)
        return here

    def _runs(self, place: str) -> tuple[tuple[str, int] | None, ...]:
        """By op, what it runs in, as a device sees it."""
        placement = self._placed[0]
        steps = self._once("steps", lambda: steps_of(self._part.graph, placement))
        kept = {op: beside for (op, device), beside in self._kept.items() if device == place}
        return runs_of(placement, steps, kept)

    def _lying(self, place: str) -> Ints:
        """The most bytes that lie on a device at a time."""
        graph = self._part.graph

        def found() -> dict[str, Any]:
            taken = [self._over(bytes_of(t)) for t in graph.tensors]
            return memory_of(graph, *self._placed, taken)

        lying: Ints = self._once("lying", found).get(place, np.zeros(self._over.length, np.int64))
        return lying

    def _cycles(self, machine: Machine, place: str) -> Ints:
        times = self._part.times(machine)[place]
        total = np.zeros(self._over.length, np.int64)
        for group, count in self._ops[place].items():
            gemm = times[group].gemm
            if gemm is not None:
                total = total + count * gemm.cycles[self._rows]
        return total
