"""The best placement of a problem, with the proof of how good it is, or what cannot hold."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from partition.granularity import units
from partition.mincut import cut_devices, cut_value, fast_cut, is_cut, network_of, reference_cut
from partition.pipeline import in_turn
from partition.placement import Placement, PlacementError
from partition.problem import (
    InfeasibleError,
    Problem,
    Recount,
    candidates,
    kept_from,
    placement_of,
    recount,
)
from partition.stored import lying_with, storages
from tracer.stages import stage

Solver = Literal["auto", "cut", "networkx", "program"]


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement, what it costs, and what no placement can cost less than."""

    placement: Placement | None
    """None when the time limit came before any placement was found."""
    recount: Recount | None
    """What the placement costs, from the accounting alone; None with it."""
    bound: int
    """No placement that meets the limits costs less, in the problem's unit."""
    seconds: float
    """Wall time."""
    solver: str
    """``cut``, ``networkx``, ``program`` or ``layers``."""
    cut: str = ""
    """Where the cut of a policy that makes but one lies (``after encoder.2``); else empty."""

    @property
    def objective(self) -> int | None:
        """What the placement costs, in the problem's unit."""
        return None if self.recount is None else self.recount.objective

    @property
    def gap(self) -> float | None:
        """How far the placement may be from the best, as a share of what it costs; 0 is optimal."""
        if self.objective is None:
            return None
        return (self.objective - self.bound) / self.objective if self.objective else 0.0

    @property
    def proven(self) -> bool:
        """Whether no placement is better."""
        return self.objective == self.bound


@dataclass(frozen=True, slots=True)
class Proof:
    """What a placement costs by the figure that is printed of it, and what no other can go below.

    The figure is the accounting's own, and not a solver's sum.
    """

    objective: int
    """What the placement costs, to a whole unit."""
    bound: int
    """No placement that meets the limits costs less; the same where it is proven."""
    proven: bool
    """Whether no placement is better, but for the rounding of the costs that were summed."""
    solver: str
    """As in ``Solution``; ``candidates`` where another placement than the solver's is better."""
    cut: str = ""
    """As in ``Solution``."""

    @property
    def gap(self) -> float:
        """How far the placement may be from the best, as a share of what it costs; 0 is optimal."""
        if self.proven or not self.objective:
            return 0.0
        return (self.objective - self.bound) / self.objective


_SAID = 3
"""Reasons that an error names."""


class SolverError(PlacementError):
    """A solver's own sum is not what the accounting counts: a bug in cutedge."""


def solve(
    problem: Problem, *, time_limit: float | None = None, solver: Solver = "auto"
) -> Solution:
    """The best placement; with a ``time_limit`` in seconds the best so far.

    HiGHS looks at the clock between its steps, which for a million rows may be many seconds apart.

    ``cut`` and ``networkx`` (its reference, slower) are for problems without calls and memory on
    two devices with residency ``run``, ``program`` is for all. ``auto`` takes the cut where it is
    the whole answer; elsewhere it is a bound, and often the best, beside the program's. Among
    equal placements the one with the most ops at home is taken, then with the most on the
    accelerators that come first, where costs below 1e10 units leave room to tell (the cut: always).
    Raises InfeasibleError naming the limits that cannot hold, PlacementError for a problem that is
    not for the solver that is asked for, and SolverError when the recount disagrees.
    """
    start = time.perf_counter()
    if any(
        not choice and not problem.graph.is_everywhere(op)
        for op, choice in enumerate(candidates(problem))
    ):
        raise InfeasibleError(_few(explain_infeasible(problem)))
    if solver == "auto":
        solver = "cut" if is_cut(problem) else "program"
        if solver == "program":
            return _programmed(problem, time_limit, start, *_relaxed(problem, time_limit))
    if solver == "program":
        return _programmed(problem, time_limit, start, 0, None, False)
    if not is_cut(problem):
        raise PlacementError(
            "a minimum cut knows two devices, residency run, no calls and no memory: "
            "solve this problem as a program"
        )
    devices, value = _cut(problem, reference=solver == "networkx")
    placement = placement_of(problem, devices, "minimum cut")
    counted = _checked(problem, placement, value)
    return Solution(placement, counted, value, time.perf_counter() - start, solver)


@stage("finding a minimum cut")
def _cut(problem: Problem, *, reference: bool = False) -> tuple[list[str | None], int]:
    network = network_of(problem)
    side = reference_cut(network) if reference else fast_cut(network)
    return cut_devices(problem, network, side), cut_value(network, side)


def _checked(problem: Problem, placement: Placement, claimed: float, slack: float = 0) -> Recount:
    counted = recount(problem, placement)
    if counted.broken or abs(counted.objective - claimed) > slack:
        raise SolverError(
            f"a solver claims {claimed}, the accounting counts {counted.objective} and finds "
            f"broken: {'; '.join(counted.broken) or 'nothing'}. This is a bug in cutedge."
        )
    return counted


def _programmed(
    problem: Problem,
    time_limit: float | None,
    start: float,
    bound: int,
    known: tuple[Placement, Recount] | None,
    settled: bool,
) -> Solution:
    """The program's answer, or the one that is known where that is better, or ``settled``."""
    left = None if time_limit is None else time_limit - (time.perf_counter() - start)
    if not settled and (left is None or left > 0):
        from partition.integer_program import solve_program  # which takes a while

        outcome = solve_program(problem, left)
        if outcome.bound is None:
            raise InfeasibleError(_few(explain_infeasible(problem, time_limit)))
        bound = max(bound, outcome.bound)
        if outcome.devices is not None:
            placement = placement_of(problem, outcome.devices[0], "mixed-integer program")
            if less := tightened(problem, placement):
                left = None if time_limit is None else time_limit - (time.perf_counter() - start)
                return _programmed(less, left, time.perf_counter(), bound, known, settled=False)
            if outcome.complete:
                slack = 0.5 + 1e-6 * abs(outcome.claimed)
                counted = _checked(problem, placement, outcome.claimed, slack)
            else:
                counted = recount(problem, placement)
            if not counted.broken and (known is None or counted.objective <= known[1].objective):
                known = placement, counted
    seconds = time.perf_counter() - start
    if known is None:
        return Solution(None, None, bound, seconds, "program")
    placement, counted = known
    if counted.objective < bound:
        raise SolverError(
            f"a solver claims that nothing is below {bound}, the accounting counts "
            f"{counted.objective}. This is a bug in cutedge."
        )
    return Solution(placement, counted, bound, seconds, "program")


_SLIP = 1e-5
"""The share of a device's memory that HiGHS may be wrong by: each variable by 1e-6."""


def tightened(problem: Problem, placement: Placement) -> Problem | None:
    """The problem with a little less memory, where a solver's placement takes a little too much.

    None where it does not.
    """
    if not problem.memory_bytes:
        return None
    used = recount(problem, placement).memory_bytes
    over = {d for d, limit in problem.memory_bytes.items() if used[d] > limit}
    if not over or any(used[d] > problem.memory_bytes[d] * (1 + _SLIP) for d in over):
        return None
    less = {d: limit - ceil(limit * _SLIP) for d, limit in problem.memory_bytes.items()}
    return replace(problem, memory_bytes={**problem.memory_bytes, **{d: less[d] for d in over}})


def _relaxed(
    problem: Problem, time_limit: float | None
) -> tuple[int, tuple[Placement, Recount] | None, bool]:
    """What no placement can cost less than, and a placement that simpler problems lead to.

    With it, whether that is the answer: no placement is better, or as good with more ops at home.

    With one accelerator what the minimum cut leaves out (limits, calls, forgetting) only adds to
    the cost; so does the forgetting that a program without it leaves out, which is far smaller.
    Several are no better than all of them as one (``_as_one``), and the cut between home and one
    of them may meet the limits, or that between home and all of them, each with some layers. Where
    memory is limited, the best placement by layer is a start.
    """
    if len(problem.accelerators) == 1:
        devices, bound = _cut(problem)
        found = [placement_of(problem, devices, "minimum cut")]
        if problem.residency == "call":
            simpler = solve(replace(problem, residency="run"), time_limit=time_limit)
            bound = max(bound, simpler.bound)
            found += [] if simpler.placement is None else [simpler.placement]
    else:
        devices, bound = _cut(_as_one(problem))
        found = []
        for accelerator in problem.accelerators:
            allowed = tuple(
                tuple(d for d in choice if d in (problem.home, accelerator))
                for choice in problem.allowed
            )
            with suppress(PlacementError):  # an op must be on another one
                part = replace(problem, accelerators=(accelerator,), allowed=allowed)
                found.append(placement_of(problem, _cut(part)[0], "minimum cut"))
        if problem.memory_bytes:
            found += in_turn(problem, [d not in (None, problem.home) for d in devices])
    layers = units(problem.graph, "layer")
    if problem.memory_bytes and problem.residency == "run" and tuple(problem.units) != layers:
        with suppress(PlacementError):  # pins that are apart
            half = None if time_limit is None else time_limit / 2
            by_layer = solve(replace(problem, units=layers), time_limit=half).placement
            found += [] if by_layer is None else [by_layer]
    best: tuple[Placement, Recount] | None = None
    for placement in found:
        counted = recount(problem, placement)
        if not counted.broken and (best is None or counted.objective < best[1].objective):
            best = placement, counted
    settled = best is not None and best[1].objective == bound
    if settled and best is not None and len(problem.accelerators) > 1:
        settled = _away(problem, best[0].devices) == _away(problem, devices)
    return bound, best, settled


def _away(problem: Problem, devices: Sequence[str | None]) -> int:
    return sum(device not in (None, problem.home) for device in devices)


def _as_one(problem: Problem) -> Problem:
    """The problem with all accelerators taken as the first, at the least that any of them costs.

    Nothing is paid between them, and what several are sent or store is paid once: no placement
    costs more here than there. Limits and calls are left out.
    """
    home, (first, *_) = problem.home, problem.accelerators
    choices = candidates(problem)

    def least(costs: Mapping[Any, int], keys: Iterable[Any]) -> int:
        return min((costs.get(key, 0) for key in keys), default=0)

    op_cost, transfer_cost, storage_cost = {}, {}, {}
    for op, choice in enumerate(choices):
        op_cost[op, home] = problem.op_cost.get((op, home), 0)
        away = [(op, d) for d in choice if d != home]
        op_cost[op, first] = least(problem.op_cost, away)
    for tensor in (t.id for t in problem.graph.tensors):
        sent = [(tensor, home, d) for d in problem.accelerators]
        received = [(tensor, d, home) for d in problem.accelerators]
        transfer_cost[tensor, home, first] = least(problem.transfer_cost, sent)
        transfer_cost[tensor, first, home] = least(problem.transfer_cost, received)
        storage_cost[tensor, home] = problem.storage_cost.get((tensor, home), 0)
        stored = [(tensor, d) for d in problem.accelerators]
        storage_cost[tensor, first] = least(problem.storage_cost, stored)
    return Problem(
        problem.graph,
        home,
        (first,),
        tuple(tuple(dict.fromkeys(d if d == home else first for d in c)) for c in choices),
        op_cost=op_cost,
        transfer_cost=transfer_cost,
        storage_cost=storage_cost,
        streams=problem.streams,
        units=problem.units,
    )


# --- what cannot hold -----------------------------------------------------------------------------


def explain_infeasible(problem: Problem, time_limit: float | None = None) -> list[str]:
    """The constraints that cannot hold together, each in words; empty when all can.

    None of them could be left out, but where ``time_limit`` seconds a question did not suffice.
    """
    return _nowhere(problem) or _too_large(problem) or _conflict(problem, time_limit)


def _few(reasons: Sequence[str]) -> str:
    """Reasons as a sentence: every layer of a model may have its own."""
    more = len(reasons) - _SAID
    return "; ".join(reasons[:_SAID]) + (f"; and {more} more of this kind" if more > 0 else "")


def _nowhere(problem: Problem) -> list[str]:
    """The ops that no device is left for."""
    graph, forbidden = problem.graph, kept_from(problem)
    found = []
    own = candidates(replace(problem, units=()))
    for unit, choice in enumerate(candidates(problem)):
        together = [op for op, first in enumerate(problem.units) if first == unit]
        if together and not choice and all(own[op] for op in together):
            why = [
                f"op {op} ({graph.ops[op].name}) may not run on {device}"
                for device in problem.devices
                for op in [next(op for op in together if device not in own[op])]
            ]
            found.append(f"ops that lie together have no device: {', '.join(why)}")
    for op, choice in enumerate(own):
        if choice or graph.is_everywhere(op):
            continue
        text = f"op {op} ({graph.ops[op].name}) may run on no device"
        for device in problem.allowed[op]:
            tensor, verb = forbidden[op, device]
            text += (
                f" but {device}, and {verb} tensor {tensor} ({graph.tensors[tensor].name}), "
                f"which is secret to {device}"
            )
        found.append(text)
    return found


def _too_large(problem: Problem) -> list[str]:
    """The memories that are too small for what must lie in them, whatever runs where."""
    graph = problem.graph
    everything: set[int] = set()
    fixed: dict[str, set[int]] = {device: set() for device in problem.memory_bytes}
    kept = lying_with(graph, problem.streams)
    for op, (choice, stored) in enumerate(zip(candidates(problem), storages(graph), strict=True)):
        everything |= stored
        if len(choice) == 1 and choice[0] in fixed:
            fixed[choice[0]] |= stored if choice[0] == problem.home else kept[op]
    found = []
    for device, limit in sorted(problem.memory_bytes.items()):
        size = sum(graph.tensors[t].bytes for t in fixed[device])
        if size > limit:
            found.append(
                f"the memory of {device} is {limit} bytes, and the parameters and constants of "
                f"the ops that must run there are {size} bytes"
            )
    size = sum(graph.tensors[t].bytes for t in everything)
    if set(problem.memory_bytes) == set(problem.devices) and not found:
        limit = sum(problem.memory_bytes.values())
        if size > limit:
            found.append(
                f"the memory of {', '.join(problem.devices)} is {limit} bytes in all, and the "
                f"parameters and constants are {size} bytes"
            )
    return found


def _conflict(problem: Problem, time_limit: float | None) -> list[str]:
    """Limits that cannot hold together: each is left out in turn, and stays out if it may."""
    # What a placement costs does not matter here.
    problem = replace(problem, op_cost={}, transfer_cost={}, storage_cost={}, call_cost={})
    if not _impossible(problem, time_limit):
        return []
    kept: list[str] = []
    for text, limits, key in _limits(problem):
        trial = _without(problem, limits, key)
        if _impossible(trial, time_limit):
            problem = trial
        else:
            kept.append(text)
    if problem.max_calls is not None or (problem.one_call and len(problem.accelerators) == 1):
        counting = replace(
            problem, max_calls=None, one_call=False, call_cost=dict.fromkeys(problem.devices, 1)
        )
        from partition.integer_program import solve_program

        least = solve_program(counting, time_limit).bound
        kept[-1] += "" if least is None else f", of at least {least} that are needed"
    return kept


def _impossible(problem: Problem, time_limit: float | None) -> bool:
    from partition.integer_program import solve_program

    return bool(_nowhere(problem)) or solve_program(problem, time_limit).bound is None


def _limits(problem: Problem) -> list[tuple[str, str, str | None]]:
    """Each limit: in words, its field, and its device there; the one of the calls is the last."""
    found: list[tuple[str, str, str | None]] = []
    for device, tensors in sorted(problem.secrets.items()):
        names = ", ".join(f"{t} ({problem.graph.tensors[t].name})" for t in sorted(tensors))
        found.append((f"tensors secret to {device}: {names}", "secrets", device))
    for device, size in sorted(problem.memory_bytes.items()):
        found.append((f"the memory of {device}, {size} bytes", "memory_bytes", device))
    if problem.units:
        found.append(("the ops that lie together", "units", None))
    if problem.one_call:
        found.append(("one call to each accelerator", "one_call", None))
    if problem.max_calls is not None:
        found.append((f"at most {problem.max_calls} calls", "max_calls", None))
    return found


def _without(problem: Problem, limits: str, device: str | None) -> Problem:
    rest: Any = () if limits == "units" else None
    if device is not None:
        rest = {d: limit for d, limit in getattr(problem, limits).items() if d != device}
    return replace(problem, **{limits: rest})
