"""Where a policy places a graph's ops at each of many sizes, and how that is known.

A policy without an objective places by what ops are: once for all sizes. One that minimises bytes
on two devices is a minimum cut, or a cut between layers, whose costs are the tensors' bytes. Where
these are polynomials a + b*s + c*s**2 in a size s, the cost of any placement is linear in the
point (s, s**2), and the curve of these points between two sizes s1 and s2 lies inside the triangle
of (s1, s1**2), (s2, s2**2) and the crossing of its tangents, ((s1 + s2)/2, s1*s2). A point inside
is a mean of the three corners, all with a weight above zero: a placement that is best at all three
is best there, and what is as good there is as good at all three. So where the three corners have
the same answer, which of equal ones is taken included, it is that of every size between. Else the
sizes between are halved. Batch does not matter where all bytes are proportional to it.

What fits into a memory at some size is counted there; all other objectives and limits are solved
size by size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels import WeightsAt
from costmodels.engines import PHYSICAL
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.many import Over, bytes_of
from costmodels.roofline import DeviceTime, time_ops
from partition import Residency
from partition.accounting import account
from partition.masks import without_masks_placed
from partition.objective import is_rounded, problem_of
from partition.optimise import check_kept, place
from partition.packs import wire_format
from partition.placement import Placement
from partition.policy import (
    Policy,
    apply_policy,
    check_matches,
    derived_too,
    secret_tensors,
    streaming,
)
from partition.problem import InfeasibleError, NotFoundError, Problem, memory_of
from partition.secrets import ways_to_keep
from partition.setting import Setting, fallen_back
from partition.wire_format import WireFormat
from tracer.formula import Formula, const, parse
from tracer.graph import OpGraph
from tracer.reach import resized

HOME, ACCELERATOR = "home", "accelerator"
"""What the two devices are called here, whatever they are."""

FIXED, HERE, BETWEEN = "fixed", "solved", "proven between sizes"
IMPOSSIBLE, NOT_FOUND = "impossible", "not found in time"


def by_part(machine: Machine) -> Machine:
    """A machine of one accelerator under the names that the placements here have for its parts."""
    (accelerator,) = machine.accelerators
    parts = {HOME: machine.home, ACCELERATOR: accelerator}
    described = {
        part: machine.described[name] for part, name in parts.items() if name in machine.described
    }
    engines = {
        part: machine.engines[name] for part, name in parts.items() if name in machine.engines
    }
    return replace(
        machine, home=HOME, accelerators=(ACCELERATOR,), described=described, engines=engines
    )


_GRAPHS_KEPT = 16

Devices = tuple[str | None, ...]
"""By op, as in a placement."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The placements of a policy over many sizes, without what home does for masks."""

    placements: tuple[Devices, ...]
    which: NDArray[np.int64]
    """By size: the position among ``placements``, -1 where there is none."""
    placed: tuple[str, ...]
    """By size: how the placement is known. ``fixed``: by rules alone; ``solved``: at this very
    size; ``proven between sizes``: a smaller and a larger size have the same answer, which proves
    it;
    ``impossible``: no placement meets the limits."""
    optimal: tuple[bool | None, ...]
    """By size: whether it is proven to be the best; None without an objective."""


def _kinds(machine: Machine) -> tuple[tuple[str, ...] | None, ...]:
    """The kinds of ops that each part runs, where that is said."""
    return tuple(
        device.npu.kinds if device is not None and device.npu is not None else None
        for device in map(machine.described.get, (HOME, ACCELERATOR))
    )


class PlacementSearch:
    """The placements of one policy on the sizes of one program."""

    def __init__(
        self, graph: OpGraph, policy: Policy, over: Over, residency: Residency, time_limit: float
    ) -> None:
        """``graph`` is annotated, at any size; ``over`` has sizes that are the same program.

        Raises InputError where something of the policy matches nothing.
        """
        check_matches(graph, policy)
        self._graph, self.policy, self._over = graph, policy, over
        self._residency, self._time_limit = residency, time_limit
        self._known: dict[Any, Answers] = {}
        self._there: dict[int, OpGraph] = {}
        self._times: dict[Any, DeviceTime] = {}
        self._streams: dict[WeightsAt, frozenset[int]] = {}
        self._wires: dict[Any, WireFormat] = {}
        self._needed: dict[tuple[Devices, frozenset[int]], dict[str, Any]] = {}

    def answers(self, machine: Machine) -> Answers:
        """Where the ops are on a machine; machines that make no difference share an answer."""
        policy = self.policy
        if policy.objective is None and not policy.secrets:
            return self._once(("fixed", _kinds(machine)), lambda: self._fixed(machine))
        setting = self._setting(self._graph, machine)
        streams = self.streams(machine)
        one_way = not policy.secrets or (not policy.protects and self._is_one_way(setting))
        if policy.objective is None and one_way:
            return self._once(
                ("fixed", _kinds(machine), setting.untrusted), lambda: self._fixed(machine, setting)
            )
        limits = {
            part: device.memory_bytes
            for part, device in machine.described.items()
            if device.memory_bytes is not None
        }
        wire = self.wire(machine)
        sized = [one for each in wire.packings.values() for one in each]
        by_size = is_rounded(policy) or self._residency == "call"
        by_size |= bool(policy.protects)
        by_size |= any(one.at_least_bytes or len(one.packings) > 1 for one in sized)
        if by_size or not one_way:
            sizes = range(self._over.length)
            return self._solved(_nowhere(self._over.length), sizes, machine)
        able = tuple(self._able(setting, part) for part in (HOME, ACCELERATOR))
        key = id(wire), able, setting.untrusted if policy.secrets else (), streams
        free = self._once(key, lambda: self._best_in_bytes(setting))
        if not limits:
            return free
        return self._once(
            (key, tuple(sorted(limits.items()))),
            lambda: self._within(limits, free, machine, streams),
        )

    def streams(self, machine: Machine) -> frozenset[int]:
        """The ops whose parameters lie at home: the same at all sizes."""
        at = machine.weights_at
        if at not in self._streams:
            self._streams[at] = streaming(self._graph, self.policy, at)
        return self._streams[at]

    def wire(self, machine: Machine) -> WireFormat:
        """What tensors are on the wire: the same at all sizes."""
        sized = *machine.pack, *(one.sized for one in self.policy.packs)
        link = id(machine.links.common) if any(len(p.packings) > 1 for p in sized) else None
        key = machine.wire_dtype, tuple(map(id, machine.pack)), link
        if key not in self._wires:
            self._wires[key] = wire_format(self._graph, self.policy.packs, machine)
        return self._wires[key]

    def _able(self, setting: Setting, part: str) -> tuple[bool, ...] | None:
        """By op: whether a device can run it; None for one that can run all."""
        if part not in setting.times:
            return None
        able = tuple(time.seconds is not None for time in setting.times[part].ops)
        return None if all(able) else able

    def _setting(self, graph: OpGraph, machine: Machine) -> Setting:
        """What ``partition.optimise`` places the graph in."""
        times = {}
        for part, device in machine.described.items():
            engine = machine.engines.get(part, PHYSICAL)
            key = id(graph), id(device), machine.options, id(engine)
            if key not in self._times:
                options = machine.options
                self._times[key] = time_ops(graph, device, options=options, engine=engine)
            times[part] = self._times[key]
        return Setting(machine, self._residency, times, time_limit=self._time_limit)

    def _once(self, key: Any, make: Callable[[], Answers]) -> Answers:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _is_one_way(self, setting: Setting) -> bool:
        """Whether there is one way to keep the policy's secrets, the same at all sizes.

        What a sum of one element carries is one at the smallest sizes first.
        """
        marked = secret_tensors(self._graph, self.policy)
        derived = derived_too(self._graph, self.policy)
        least = {name: int(many.min()) for name, many in self._over.sizes.items()}
        ways = [
            ways_to_keep(graph, marked, setting.untrusted, derived)
            for graph in (self._graph, resized(self._graph, least))
        ]
        return ways[0] == ways[1] and len(ways[0]) == 1

    def _fixed(self, machine: Machine, setting: Setting | None = None) -> Answers:
        """The placement of rules alone; in a ``setting`` where it keeps their secrets."""
        length = self._over.length
        placed = apply_policy(self._graph, self.policy, home=HOME, accelerators=(ACCELERATOR,))
        placed = fallen_back(self._graph, placed, machine)
        try:
            if setting is not None:
                check_kept(self._graph, self.policy, setting, placed)
        except InfeasibleError:
            return _nowhere(length)
        return Answers(
            (tuple(placed.devices),),
            np.zeros(length, np.int64),
            (FIXED,) * length,
            (None,) * length,
        )

    # --- bytes -------------------------------------------------------------------------------

    def _best_in_bytes(self, setting: Setting) -> Answers:
        """The best placements where memory sets no limit."""
        graph, over = self._graph, self._over
        asked = replace(problem_of(graph, self.policy, setting), memory_bytes={})
        payload = {
            tensor: _payload(graph, tensor, self.wire(setting.machine))
            for tensor in sorted({key[0] for key in asked.transfer_cost})
        }
        distinct = sorted(set(payload.values()), key=str)

        def best(costs: Mapping[Formula, int]) -> Devices | None:
            if any(cost < 0 for cost in costs.values()):
                return None  # such a corner proves nothing
            priced = {key: costs[payload[key[0]]] for key in asked.transfer_cost}
            return _best(replace(asked, transfer_cost=priced), self.policy)

        proportional = all(
            dict(monomial).get("batch") == 1 and _plain(monomial)
            for formula in distinct
            for monomial, _ in formula.terms
        )
        found: list[Devices | None] = [None] * over.length
        placed = [HERE] * over.length
        for along, members in _lines(over, without=("batch",) if proportional else ()):
            values = {name: int(many[members[0]]) for name, many in over.sizes.items()}
            if proportional:
                values["batch"] = 1
            powers = {f: _quadratic(f, along, values) for f in distinct}
            at = over.sizes[along]
            ends = sorted({int(at[n]) for n in members})

            def here(size: int, values: Any = values, along: str = along) -> Devices | None:
                return best({f: f.evaluate({**values, along: size}) for f in distinct})

            def corner(low: int, high: int, powers: Any = powers) -> Devices | None:
                # Twice the costs there, which are whole.
                return best(
                    {
                        f: 2 * p[0] + p[1] * (low + high) + 2 * p[2] * low * high
                        for f, p in powers.items()
                        if p is not None
                    }
                )

            proofs = None if None in powers.values() else corner
            answered = _between(ends, here, proofs)
            for n in members:
                found[n], placed[n] = answered[int(at[n])]
        return _gathered(found, placed, [True] * over.length)

    def _within(
        self, limits: Mapping[str, int], free: Answers, machine: Machine, streams: frozenset[int]
    ) -> Answers:
        """``free`` where its placements fit into the memories, else what is solved there.

        The best of all placements that is among those that fit is the best of those.
        """
        graph, over = self._graph, self._over
        taken = [over(bytes_of(t)) for t in graph.tensors]
        most = sum(taken, np.zeros(over.length, np.int64))
        beyond = np.zeros(over.length, bool)
        for number, devices in enumerate(free.placements):
            if (devices, streams) not in self._needed:
                placement = placement_on(devices, streams)
                traffic = account(graph, placement, Links(load_link("none")))
                lying = memory_of(graph, placement, traffic.transfers, taken)
                self._needed[devices, streams] = lying
            needed = self._needed[devices, streams]
            for part, limit in limits.items():
                over_limit = (limit < most) & (needed.get(part, 0) > limit)
                beyond |= (free.which == number) & over_limit
        return self._solved(free, np.flatnonzero(beyond), machine)

    # --- size by size ------------------------------------------------------------------------

    def _solved(self, known: Answers, sizes: Iterable[int], machine: Machine) -> Answers:
        """``known``, but for the sizes that are solved each by itself."""
        found = [known.placements[n] if n >= 0 else None for n in known.which]
        placed, optimal = list(known.placed), list(known.optimal)
        for n in map(int, sizes):
            if n not in self._there:
                if len(self._there) == _GRAPHS_KEPT:
                    self._there.clear()
                    self._times.clear()
                values = {name: int(many[n]) for name, many in self._over.sizes.items()}
                self._there[n] = (
                    self._graph
                    if values == self._graph.meta.variables
                    else annotate(resized(self._graph, values))
                )
            there = self._there[n]
            setting = self._setting(there, machine)
            try:
                answer = place(there, self.policy, setting)
                placement = without_masks_placed(answer.graph, answer.placement)
                found[n], placed[n] = tuple(placement.devices), HERE
                optimal[n] = None if answer.solution is None else answer.solution.proven
            except InfeasibleError:
                found[n], placed[n], optimal[n] = None, IMPOSSIBLE, None
            except NotFoundError:
                found[n], placed[n], optimal[n] = None, NOT_FOUND, None
        return _gathered(found, placed, optimal)


def _nowhere(length: int) -> Answers:
    none = np.full(length, -1, np.int64)
    return Answers((), none, (IMPOSSIBLE,) * length, (None,) * length)


def placement_on(devices: Devices, streams: frozenset[int]) -> Placement:
    """A placement of which only the devices matter, and whose parameters lie at home."""
    return Placement(HOME, devices, (False,) * len(devices), ("",) * len(devices), streams)


def _best(problem: Problem, policy: Policy) -> Devices | None:
    from partition.layers import cut_between_layers
    from partition.solve import solve

    try:
        layers = policy.cut == "layers"
        solution = cut_between_layers(problem) if layers else solve(problem)
    except InfeasibleError:
        return None
    assert solution.placement is not None  # there is no time limit
    return tuple(solution.placement.devices)


def _payload(graph: OpGraph, tensor: int, wire: WireFormat) -> Formula:
    expr = wire.expr(graph.tensors[tensor])
    return const(wire.of(graph.tensors[tensor]).payload_bytes) if expr is None else parse(expr)


def _plain(monomial: Iterable[tuple[Any, int]]) -> bool:
    return all(isinstance(atom, str) for atom, _ in monomial)


def _lines(over: Over, without: Sequence[str]) -> Iterable[tuple[str, list[int]]]:
    """(the variable that changes, the sizes), in lines along the one with most values."""
    names = [name for name in over.sizes if name not in ("batch", *without)]
    along = max(names, key=lambda name: len(np.unique(over.sizes[name])))
    rest = [over.sizes[name] for name in over.sizes if name not in (along, *without)]
    lines: dict[tuple[int, ...], list[int]] = {}
    for n in range(over.length):
        lines.setdefault(tuple(int(many[n]) for many in rest), []).append(n)
    return [(along, members) for members in lines.values()]


def _quadratic(
    formula: Formula, along: str, values: Mapping[str, int]
) -> tuple[int, int, int] | None:
    """The coefficients of 1, s and s**2 in one size, None for what is no such polynomial."""
    found = [0, 0, 0]
    for monomial, coefficient in formula.terms:
        power = dict(monomial).get(along, 0)
        if not _plain(monomial) or power > 2 or not isinstance(coefficient, int):
            return None
        for name, p in monomial:
            if name != along:
                coefficient *= values[str(name)] ** p
        found[power] += coefficient
    return found[0], found[1], found[2]


def _between(
    sizes: Sequence[int],
    here: Callable[[int], Devices | None],
    corner: Callable[[int, int], Devices | None] | None,
) -> dict[int, tuple[Devices | None, str]]:
    """Size -> (answer, how it is known), see the top of this file; without ``corner`` no proofs."""
    if corner is None:
        return {size: (here(size), HERE) for size in sizes}
    found = {size: (here(size), HERE) for size in (sizes[0], sizes[-1])}

    def fill(low: int, high: int) -> None:
        if high - low < 2:
            return
        start, end = found[sizes[low]][0], found[sizes[high]][0]
        if start == end and corner(sizes[low], sizes[high]) == start:
            found.update((size, (start, BETWEEN)) for size in sizes[low + 1 : high])
            return
        middle = (low + high) // 2
        found[sizes[middle]] = here(sizes[middle]), HERE
        fill(low, middle)
        fill(middle, high)

    fill(0, len(sizes) - 1)
    return found


def _gathered(
    found: Sequence[Devices | None], placed: Sequence[str], optimal: Sequence[bool | None]
) -> Answers:
    numbers: dict[Devices, int] = {}
    which = [-1 if one is None else numbers.setdefault(one, len(numbers)) for one in found]
    known = [
        IMPOSSIBLE if one is None and how != NOT_FOUND else how
        for one, how in zip(found, placed, strict=True)
    ]
    best = [None if one is None else proven for one, proven in zip(found, optimal, strict=True)]
    return Answers(tuple(numbers), np.array(which, np.int64), tuple(known), tuple(best))
