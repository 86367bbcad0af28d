"""The best placement as a mixed-integer program: calls, memory, both residencies, many devices.

Every quantity of the accounting has its variables, so that for a placement the least that the rows
allow is what ``accounting.account`` counts:

- where an op runs: one binary for each device but one, for all ops of a unit together;
- a transfer: at least (a reader there) - (made there), paid for the device that it is made on;
- a storage: at least each op there that needs it;
- a parameter that is sent: at least (an op there that reads it) - (ops there that it lies with);
- at most one call of one accelerator: an op is before it, in it, or after it, and no later one is
  earlier;
- more calls of one accelerator that keeps what it has: a step is a real number, no less than the step of
  what the op reads, and one more when the op is away and that is at home; the largest is their
  number;
- all else (residency ``call``, or a call to one of many accelerators): an op is in the *earliest*
  step that its inputs allow, not in one that would be cheaper, so which step an op is in is told
  by binaries that are bounded from both sides;
- memory: what lies on a device whenever something is made.

HiGHS computes in floating point. Costs are divided by their greatest common divisor, and its bound
is rounded up to a whole number of these units after taking off what it may be wrong by: 1e-7 for
each variable and 1e-12 of the bound. So an answer is proven to the last unit up to about 1e11 of
them; beyond that a gap is left that says so.
"""

import ctypes
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil, gcd, inf, isfinite

from partition.problem import Problem, candidates, viewed
from partition.stored import readers_of_sent, state_readers, storages
from tracer.graph import Role, Tensor
from tracer.stages import stage

_LARGEST_COST = 10**13
"""The largest cost of a variable that ties are broken beside: HiGHS computes in 53 bits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the program's solver came to."""

    devices: Sequence[Sequence[str | None]] | None
    """By problem, by op; None when no placement was found."""
    bound: int | None
    """No placement costs less; None when no bound was found."""
    claimed: float
    """The cost of ``devices`` as the solver sums it."""
    complete: bool
    """Whether the search came to its end: what was found is optimal, or nothing exists."""


@stage("solving a mixed-integer program")
def solve_program(
    problem: Problem,
    time_limit: float | None = None,
    others: Sequence[tuple[Problem, Mapping[int, int]]] = (),
) -> Outcome:
    """The best placement that HiGHS finds in ``time_limit`` seconds, without recounting it.

    With ``others``, each with what it has in common with the first (op -> an op of the first on
    whose device it lies), the best placements together: what they cost is added up, and each keeps
    to its own limits.
    """
    start = time.perf_counter()
    first = _Formulation(problem)
    programs = [first, *(_Formulation(other, first, tied) for other, tied in others)]
    for program in programs:
        program.build()
    built = time.perf_counter() - start
    return first.solve(programs, None if time_limit is None else time_limit - built)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A number plus a weighted sum of variables; equal ones are equal as values."""

    number: int
    terms: tuple[tuple[int, int], ...] = ()
    """(variable, weight): each variable once, in their order, and no weight 0."""

    def __add__(self, other: "_Linear | int") -> "_Linear":
        if isinstance(other, int):
            return _Linear(self.number + other, self.terms)
        return _sum((self, other))

    __radd__ = __add__

    def __mul__(self, factor: int) -> "_Linear":
        if not factor:
            return _ZERO
        return _Linear(self.number * factor, tuple((v, w * factor) for v, w in self.terms))

    def __neg__(self) -> "_Linear":
        return self * -1

    def __sub__(self, other: "_Linear | int") -> "_Linear":
        return self + -other

    def __rsub__(self, other: int) -> "_Linear":
        return -self + other


_ZERO, _ONE = _Linear(0), _Linear(1)


def _sum(parts: Iterable[_Linear]) -> _Linear:
    number, weights = 0, dict[int, int]()
    for part in parts:
        number += part.number
        for variable, weight in part.terms:
            weights[variable] = weights.get(variable, 0) + weight
    return _Linear(number, tuple(sorted((v, w) for v, w in weights.items() if w)))


def _ordered(parts: Iterable[_Linear]) -> list[_Linear]:
    """Each once, in an order that no hash decides."""
    return sorted(set(parts), key=lambda part: (part.terms, part.number))


def _largest(rows: Iterable[_Linear]) -> list[_Linear]:
    """Rows with weights from 0 on, without those that are nowhere above another one."""
    kept: dict[tuple[int, ...], list[_Linear]] = defaultdict(list)
    for row in dict.fromkeys(rows):
        alike = kept[tuple(v for v, _ in row.terms)]
        if any(_no_more(row, other) for other in alike):
            continue
        alike[:] = [other for other in alike if not _no_more(other, row)] + [row]
    return [row for alike in kept.values() for row in alike]


def _no_more(one: _Linear, other: _Linear) -> bool:
    """Whether a row is nowhere above another one of the same variables."""
    weights = zip(one.terms, other.terms, strict=True)
    return one.number <= other.number and all(a <= b for (_, a), (_, b) in weights)


class _Formulation:
    """The variables and rows of one problem, or of it ``beside`` another one."""

    def __init__(
        self,
        problem: Problem,
        beside: "_Formulation | None" = None,
        tied: Mapping[int, int] | None = None,
    ) -> None:
        self.tied = tied or {}
        self.beside = beside
        self.problem = problem
        self.graph = problem.graph
        self.home = problem.home
        self.choices = candidates(problem)
        self.renewed = state_readers(problem.graph)
        self.weights = readers_of_sent(problem.graph, problem.streams)
        # With residency "call" a parameter that several ops read may be sent several times.
        forgets = problem.residency == "call"
        self.resent = {t for t, ops in self.weights.items() if forgets and len(ops.sent) > 1}
        self.upper: list[float] = beside.upper if beside else []
        self.is_integer: list[bool] = beside.is_integer if beside else []
        self.rows: dict[_Linear, None] = beside.rows if beside else {}  # each once
        self.objective: list[_Linear] = beside.objective if beside else []
        self.largest: dict[frozenset[_Linear], _Linear] = {}  # of parts, what is no less than they
        self.where: dict[tuple[int, str], _Linear] = {}
        # By device: the bytes of each storage there, if it is there.
        self.stored: dict[str, list[_Linear]] = defaultdict(list)
        # By tensor: what is 1 when home sends it (residency ``call``: also what it did not make).
        self.passed: Mapping[int, Sequence[_Linear]] = {}
        self.crossing = [t for t in self.graph.tensors if self.graph.crosses(t)]
        self.counted = problem.most_calls is not None or any(problem.call_cost.values())

    # --- the language of the rows -----------------------------------------------------------------

    def variable(self, *, integer: bool = False, upper: float = 1, cost: int = 0) -> _Linear:
        """A number from 0 to ``upper``."""
        self.upper.append(upper)
        self.is_integer.append(integer)
        made = _Linear(0, ((len(self.upper) - 1, 1),))
        if cost:
            self.objective.append(made * cost)
        return made

    def require(self, row: _Linear) -> None:
        """``row`` is at least 0. What cannot be otherwise is left out."""
        least = row.number + sum(w * self.upper[v] for v, w in row.terms if w < 0)
        if least < 0:
            self.rows[row] = None

    def equal(self, left: _Linear, right: _Linear) -> None:
        self.require(left - right)
        self.require(right - left)

    def any_of(self, parts: Iterable[_Linear], cost: int = 0) -> _Linear:
        """At least the largest of the parts, each of which is 0 or 1."""
        kept = {part for part in parts if part != _ZERO}
        if not kept or _ONE in kept:
            self.objective.append(_Linear(cost if kept else 0))
            return _ONE if kept else _ZERO
        if len(kept) == 1:
            (only,) = kept
            self.objective.append(only * cost)
            return only
        return self.above(kept, cost)

    def above(self, parts: Iterable[_Linear], cost: int = 0) -> _Linear:
        """At least 0 and the largest of the parts, each of which is at most 1."""
        kept = frozenset(p for p in parts if p.number + sum(w for _, w in p.terms if w > 0) > 0)
        if not kept:
            return _ZERO
        largest = self.largest.get(kept)
        if largest is None:
            largest = self.largest[kept] = self.variable()
            for part in _ordered(kept):
                self.require(largest - part)
        self.objective.append(largest * cost)
        return largest

    def both(self, one: _Linear, other: _Linear) -> _Linear:
        """At most either of two parts, each of which is 0 or 1."""
        if _ZERO in (one, other):
            return _ZERO
        least = self.variable()
        self.require(one - least)
        self.require(other - least)
        return least

    def at(self, op: int, device: str) -> _Linear:
        """1 when the op runs on the device, else 0."""
        return self.where.get((op, device), _ZERO)

    def off(self, op: int) -> _Linear:
        """1 when the op runs on an accelerator, else 0."""
        return 1 - self.at(op, self.home)

    def audience(self, tensor: Tensor) -> list[int]:
        """The ops whose devices a tensor must come to."""
        renewed = self.renewed.get(tensor.id, ())
        return sorted({*self.graph.needed_by(tensor.id), *renewed})

    # --- what there is to count -------------------------------------------------------------------

    def build(self) -> None:
        problem = self.problem
        self.place()
        self.store()
        if problem.residency == "call" or (self.counted and len(problem.accelerators) > 1):
            steps = _StepRows(self)
            if self.counted:
                steps.calls()
            if problem.residency == "call":
                steps.moves()
        elif self.counted and problem.most_calls in (0, 1):
            self.only_call()
        elif self.counted:
            self.longest_path()
        if problem.residency == "run":
            for tensor in self.crossing:
                for device in problem.devices:
                    needs = [self.at(op, device) for op in self.audience(tensor)]
                    self.deliver(tensor, device, needs)
        for device, limit in sorted(problem.memory_bytes.items()):
            self.remember(device, limit)

    def place(self) -> None:
        for op, choice in enumerate(self.choices):
            if self.graph.is_everywhere(op):
                continue
            unit = self.problem.units[op] if self.problem.units else op
            if op in self.tied and self.beside is not None:
                there = {d: self.beside.at(self.tied[op], d) for d in self.problem.devices}
                self.where.update(((op, d), there[d]) for d in choice)
                for device in there:
                    if device not in choice:
                        self.equal(there[device], _ZERO)
            elif unit == op:
                others = [self.variable(integer=True) for _ in choice[1:]]
                self.where.update(((op, d), x) for d, x in zip(choice[1:], others, strict=True))
                first = 1 - _sum(others)
                if choice:
                    self.where[op, choice[0]] = first
                    self.require(first)
                else:
                    self.require(_Linear(-1))  # it can be nowhere
            else:
                self.where.update(((op, d), self.at(unit, d)) for d in choice)
            for device in choice:
                cost = self.problem.op_cost.get((op, device), 0)
                self.objective.append(self.at(op, device) * cost)

    def store(self) -> None:
        """Which parameters, buffers, constants and cached state lie where, and which are sent."""
        sent: dict[int, list[_Linear]] = defaultdict(list)
        for weight, readers in self.weights.items():
            for device in self.problem.accelerators:
                cost = self.problem.transfer_cost.get((weight, self.home, device), 0)
                needs = [self.at(op, device) - self.lying(weight, device) for op in readers.sent]
                sent[weight].append(self.above(needs, 0 if weight in self.resent else cost))
        needing: dict[int, list[int]] = defaultdict(list)
        for op, needed in enumerate(storages(self.graph)):
            for storage in needed:
                needing[storage].append(op)
        for storage, ops in sorted(needing.items()):
            size = self.graph.tensors[storage].bytes
            for device in self.problem.devices:
                cost = self.problem.storage_cost.get((storage, device), 0)
                if cost or device in self.problem.memory_bytes:
                    there = [self.at(op, device) for op in ops]
                    if device == self.home:
                        there += sent[storage]
                    elif storage in self.weights:
                        there = [self.at(op, device) for op in self.weights[storage].lying]
                    lies = self.any_of(there, cost)
                    self.stored[device].append(lies * size)

    def lying(self, weight: int, device: str) -> _Linear:
        """The ops on a device that a parameter lies there for, wherever others have it."""
        return _sum(self.at(op, device) for op in self.weights[weight].lying)

    def deliver(self, tensor: Tensor, device: str, needs: Iterable[_Linear]) -> None:
        """Pay once for a tensor that some of ``needs`` demand on a device that may not make it."""
        assert tensor.op is not None
        by_cost: dict[int, list[_Linear]] = defaultdict(list)
        for source in self.choices[tensor.op]:
            if source != device:
                cost = self.problem.transfer_cost.get((tensor.id, source, device), 0)
                by_cost[cost].append(self.at(tensor.op, source))
        if not any(by_cost):
            return
        made = self.at(tensor.op, device)
        if len(by_cost) == 1:
            self.above((need - made for need in needs), next(iter(by_cost)))
            return
        wanted = _ordered(need for need in needs if need not in (_ZERO, made))
        if not wanted:
            return
        paid = []
        for cost, sources in by_cost.items():
            paid.append(self.variable(cost=cost))
            self.require(_sum(sources) - paid[-1])
        for need in wanted:
            self.require(_sum(paid) - need + made)

    def only_call(self) -> None:
        """At most one call of one accelerator: what runs at home comes before it or after it.

        An op is after it from where something on the accelerator, or after it, is read.
        """
        graph, (accelerator,) = self.graph, self.problem.accelerators
        called = self.variable(
            upper=self.problem.most_calls or 0, cost=self.problem.call_cost.get(accelerator, 0)
        )
        after: dict[int, _Linear] = {}
        begun: dict[int, _Linear] = {}  # in the call, or after it
        for op in range(len(graph.ops)):
            if graph.is_everywhere(op):
                continue
            here = self.at(op, accelerator)
            self.require(called - here)
            after[op] = self.variable()
            begun[op] = after[op] + here
            self.require(1 - begun[op])
            for reading in sorted({t.op for t in graph.flowing(op) if t.op is not None}):
                self.require(after[op] - after[reading])
                self.require(begun[op] - begun[reading])
        for tensor, ops in self.renewed.items():
            source = graph.tensors[tensor].op
            assert source is not None
            for op in ops:  # new state that is made after the call would take another one
                there = self.at(op, accelerator) - self.at(source, accelerator)
                self.require(1 - after[source] - there)
                self.require(called - there)

    def longest_path(self) -> None:
        """The calls of one accelerator that keeps what it has: no step without a call."""
        graph, (accelerator,) = self.graph, self.problem.accelerators
        calls = self.variable(
            upper=inf if (most := self.problem.most_calls) is None else most,
            cost=self.problem.call_cost.get(accelerator, 0),
        )
        step: dict[int, _Linear] = {}
        # By step and place: the steps and places that it is known to come after. An op whose unit
        # is there already, after all that it reads, is in that step too.
        after: dict[tuple[_Linear, _Linear], set[tuple[_Linear, _Linear]]] = {}
        for op in range(len(graph.ops)):
            if graph.is_everywhere(op):
                continue
            here = self.at(op, accelerator)
            sources = sorted({t.op for t in graph.flowing(op) if t.op is not None})
            before = dict.fromkeys((step[one], self.at(one, accelerator)) for one in sources)
            same = [one for one in before if one[1] == here and before.keys() <= after[one] | {one}]
            if same:
                step[op] = same[0][0]
            elif not before and len(self.choices[op]) == 1:
                step[op] = here
            else:
                step[op] = self.variable(upper=inf)
                self.require(step[op] - here)
                for earlier, there in before:
                    self.require(step[op] - earlier)
                    self.require(step[op] - earlier - here + there)
            known = after.setdefault((step[op], here), set())
            known.update(before, *(after[one] for one in before if one[1] == here))
            if not any(graph.needed_by(t.id) for t in graph.outputs(op)):
                self.require(calls - step[op])  # the others are no later than their readers
        for tensor, ops in self.renewed.items():
            source = graph.tensors[tensor].op
            assert source is not None
            for op in ops:
                there = self.at(op, accelerator) - self.at(source, accelerator)
                self.require(calls - step[source] - there)

    def remember(self, device: str, limit: int) -> None:
        """What lies on a device whenever something is made is within its memory."""
        stored = _sum(self.stored[device])
        rows = _largest(self.lying_at_a_time(device))
        weights = [weight for row in (stored, *rows) for _, weight in row.terms]
        unit = gcd(*weights, *(row.number for row in rows)) or 1

        def units(row: _Linear) -> _Linear:
            terms = tuple((variable, weight // unit) for variable, weight in row.terms)
            return _Linear(row.number // unit, terms)

        peak = self.variable(upper=limit // unit) if rows else _ZERO
        for row in rows:
            self.require(peak - units(row))
        most = (limit - stored.number) // unit
        self.require(most - units(_Linear(0, stored.terms)) - peak)

    def lying_at_a_time(self, device: str) -> list[_Linear]:
        """The bytes of what is made and sent that lie on a device, before some of it goes."""
        graph = self.graph
        end = len(graph.ops) - 1
        viewers: dict[int, list[Tensor]] = defaultdict(list)
        views = viewed(graph)
        for view, base in views.items():
            viewers[base].append(graph.tensors[view])
        # By tensor: (the last op that it is needed for, whether it is), the latest first; for an
        # earlier one it is needed if it is for a later one.
        needed: dict[int, list[tuple[int, _Linear]]] = {}
        changes: dict[int, list[_Linear]] = defaultdict(list)
        for tensor in reversed(self.crossing):  # a view comes after what it is a view of
            assert tensor.op is not None
            here = self.at(tensor.op, device)
            reads = [(op, self.at(op, device)) for op in graph.needed_by(tensor.id)]
            last = max((op for op, _ in reads), default=tensor.op)
            holding = [here]
            if device == self.home:
                holding += self.passed.get(tensor.id, ())
            reads += [(last, holds) for holds in holding]
            if renewed := self.renewed.get(tensor.id, ()):
                moves_on = self.any_of(
                    self.above([self.at(tensor.op, place) - self.at(op, place)])
                    for op in renewed
                    for place in self.choices[tensor.op]
                )
                reads += [(end, self.above([holds + moves_on - 1])) for holds in holding]
            for seen in viewers[tensor.id]:
                assert seen.op is not None
                there = self.at(seen.op, device) - 1
                reads += [(until, self.above([lies + there])) for until, lies in needed[seen.id]]
            at: dict[int, set[_Linear]] = defaultdict(set)
            for op, lies in reads:
                at[op].add(lies)
            known: set[_Linear] = {_ZERO}
            spans: list[tuple[int, _Linear]] = []
            for op in sorted(at, reverse=True):
                if at[op] <= known:
                    continue
                known |= at[op]
                spans.append((op, self.any_of([*at[op], *(lies for _, lies in spans[-1:])])))
            needed[tensor.id] = spans
            before = _ZERO
            for until, lies in spans:  # the earlier, the more
                own = lies if tensor.id not in views else self.above([lies - here])
                changes[until + 1].append((before - own) * tensor.bytes)
                before = own
            changes[tensor.op].append(before * tensor.bytes)
        if device != self.home:
            for read, readers in self.weights.items():
                for op in range(readers.sent[0], readers.sent[-1] + 1):
                    lies = self.between(read, op, device) * graph.tensors[read].bytes
                    changes[op].append(lies)
                    changes[op + 1].append(-lies)
        found, now = [], _ZERO
        for op in sorted(changes):
            change = _sum(changes[op])
            if change.number < 0 or any(weight < 0 for _, weight in change.terms):
                found.append(now)  # else there is no less after it
            now = now + change
        return found

    def between(self, weight: int, moment: int, device: str) -> _Linear:
        """1 when a parameter that was sent lies on a device when an op runs: between its readers."""
        lies, sent = self.lying(weight, device), self.weights[weight].sent
        return self.above(
            self.at(one, device) - lies
            if one == other
            else self.at(one, device) + self.at(other, device) - lies - 1
            for one in sent
            for other in sent
            if one <= moment <= other
        )

    # --- solving ----------------------------------------------------------------------------------

    def solve(self, programs: "Sequence[_Formulation]", time_limit: float | None) -> Outcome:
        """What HiGHS makes of all programs together, of which this is the first."""
        import numpy as np
        from scipy.optimize import LinearConstraint, milp
        from scipy.sparse import csr_array

        costs, unit, base = self.costs()
        # Among equal costs the most ops at home, then on the accelerators that come first, all of
        # them together being less than one unit.
        away, most = _ZERO, 0
        for program in programs:
            rank = {device: number for number, device in enumerate(program.problem.devices)}
            movable = [(op, choice) for op, choice in enumerate(program.choices) if len(choice) > 1]
            most += sum(max(rank[device] for device in choice) for _, choice in movable)
            ranked = (program.at(op, d) * rank[d] for op, choice in movable for d in choice)
            away = _sum((away, *ranked))
        finer = 2 * (most + 1)
        if finer * max((abs(cost) for cost in costs), default=0) > _LARGEST_COST:
            finer, most, away = 1, 0, _ZERO
        objective = np.array([*(finer * cost for cost in costs), 0], dtype=float)
        for variable, weight in away.terms:
            objective[variable] += weight
        rows = [number for number, row in enumerate(self.rows) for _ in row.terms]
        columns = [variable for row in self.rows for variable, _ in row.terms]
        weights = [float(weight) for row in self.rows for _, weight in row.terms]
        shape = (len(self.rows), len(objective))  # never without a variable
        matrix = csr_array((weights, (rows, columns)), shape=shape)
        with _quiet():
            found = milp(
                objective,
                integrality=[*self.is_integer, False],
                bounds=(0, np.array([*self.upper, 0])),
                constraints=LinearConstraint(matrix, [-row.number for row in self.rows], np.inf),
                options={"mip_rel_gap": 0.0}
                | ({} if time_limit is None else {"time_limit": max(0.0, time_limit)}),
            )
        if found.status == 2:
            return Outcome(None, None, inf, True)
        # A program that is solved before any search has no bound but its answer.
        low = found.fun if found.status == 0 else found.mip_dual_bound
        bound = -inf if low is None else low - 1e-7 * len(objective) - 1e-12 * abs(low)
        bound = (bound + away.number - most) / finer
        exact = base + unit * ceil(bound) if isfinite(bound) else 0
        if found.x is None:
            return Outcome(None, exact, inf, False)
        claimed = base + unit * sum(c * x for c, x in zip(costs, found.x, strict=False) if c)
        placed = tuple(program.devices(found.x) for program in programs)
        return Outcome(placed, exact, claimed, found.status == 0)

    def costs(self) -> tuple[list[int], int, int]:
        """By variable its cost in a unit, the unit, and what is paid in any case."""
        total = _sum(self.objective)
        cost = [0] * len(self.upper)
        for variable, weight in total.terms:
            cost[variable] += weight
        unit = gcd(*cost) or 1
        return [c // unit for c in cost], unit, total.number

    def devices(self, values: Sequence[float]) -> list[str | None]:
        chosen: list[str | None] = [None] * len(self.choices)
        for (op, device), expression in self.where.items():
            value = expression.number + sum(w * values[v] for v, w in expression.terms)
            if value > 0.5:
                chosen[op] = device
        return chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is nowhere: HiGHS prints a line of its own there now and then."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            with suppress(OSError, TypeError):  # what C has not written yet
                ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


class _StepRows:
    """Which step an op is in: the earliest that its inputs allow, told by binaries.

    Steps are counted from the op's dominator, where it has one (see ``dominators``), whose own step is 0
    to it. So a program grows with the depth of a model and not with its square.
    """

    def __init__(self, program: _Formulation) -> None:
        self.program = program
        self.graph = program.graph
        self.problem = program.problem
        limit = program.problem.most_calls
        self.before = [
            sorted({t.op for t in self.graph.flowing(op) if t.op is not None})
            for op in range(len(self.graph.ops))
        ]
        self.dominator = self.dominators()
        self.low, high = self.spans()
        # No step is without a call, so no step comes after the last call that is allowed.
        self.end = max(high, default=0) + 1  # new state may need one call more than the ops do
        if limit is not None:
            self.end = min(self.end, limit)
        self.high = [min(step, self.end) for step in high]
        self.reached: dict[tuple[int, int], _Linear] = {}
        self.assignment: dict[tuple[int, int, str], _Linear] = {}
        for op, choice in enumerate(program.choices):
            if choice:
                self.constrain_step(op)
                self.constrain_assignment(op)
        self.state_sent = self.state_transfers()

    def dominators(self) -> list[int | None]:
        """By op: the last op before it that every path from the inputs to the results goes through.

        It dominates all ops after it and post-dominates all before. Nothing that was made before
        such an op is read after it, so no later op needs to know when that was made or with which
        call it was sent. None for the ops before the first such op. None for all ops where the
        accelerators are several, since a call is then more than its step, and where new state is
        sent, since any call can carry it.
        """
        program, graph = self.program, self.graph
        dominator: list[int | None] = [None] * len(graph.ops)
        if program.renewed or (program.counted and len(self.problem.accelerators) > 1):
            return dominator
        placed = [op for op in range(len(graph.ops)) if not graph.is_everywhere(op)]
        sources = max((op for op in placed if not self.before[op]), default=0)
        last: int | None = None
        read_until, dead_end = 0, False  # of what is before the op
        for op in placed:
            dominator[op] = last
            if op >= max(sources, read_until) and not dead_end:
                last = op
            readers = [reader for t in graph.outputs(op) for reader in graph.needed_by(t.id)]
            read_until = max([read_until, *readers])
            dead_end = dead_end or not readers
        return dominator

    def spans(self) -> tuple[list[int], list[int]]:
        """The first and the last step that each op can be in, whatever the placement."""
        choices, home = self.program.choices, self.program.home
        first: dict[tuple[int, str], int] = {}
        last: dict[tuple[int, str], int] = {}
        for op, choice in enumerate(choices):
            for here in choice:
                first[op, here] = last[op, here] = int(self.dominator[op] is None and here != home)
                for source in self.before[op]:
                    outs = [(there, int(here not in (home, there))) for there in choices[source]]
                    own = int(source != self.dominator[op])
                    soonest = min(
                        (own * first[source, there] + out for there, out in outs), default=0
                    )
                    latest = max(
                        (own * last[source, there] + out for there, out in outs), default=0
                    )
                    first[op, here] = max(first[op, here], soonest)
                    last[op, here] = max(last[op, here], latest)
        low = [min((first[op, d] for d in choice), default=0) for op, choice in enumerate(choices)]
        high = [max((last[op, d] for d in choice), default=0) for op, choice in enumerate(choices)]
        return low, high

    def reaches(self, op: int, step: int, reader: int | None = None) -> _Linear:
        """1 when the op is in this step or in a later one, as its ``reader`` counts the steps."""
        if reader is not None and self.dominator[reader] == op:
            return _ZERO if step > 0 else _ONE
        return _ONE if step <= self.low[op] else self.reached.get((op, step), _ZERO)

    def assigned(self, op: int, step: int, device: str) -> _Linear:
        """1 when the op is in this step and on this device."""
        return self.assignment.get((op, step, device), _ZERO)

    def constrain_step(self, op: int) -> None:
        """The op reaches a step when what it reads makes it, and only then."""
        program = self.program
        if self.low[op] > self.high[op]:
            program.require(_Linear(-1))  # more calls than are allowed, wherever it runs
        for step in range(self.low[op] + 1, self.high[op] + 1):
            self.reached[op, step] = program.variable(integer=True)
            program.require(self.reaches(op, step - 1) - self.reaches(op, step))
        for step in range(self.low[op] + 1, self.high[op] + 2):
            reaches = self.reaches(op, step)
            first = self.dominator[op] is None and step == 1
            reasons = [program.off(op)] if first else []
            for source in self.before[op]:
                reasons.append(self.reaches(source, step, op))
                if not first:
                    reasons.append(self.goes_out(source, op, step, reaches))
            for reason in reasons:
                program.require(reaches - reason)
            program.require(_sum(reasons) - reaches)

    def goes_out(self, source: int, op: int, step: int, reaches: _Linear) -> _Linear:
        """1 when the op is called, by what is on another device and in the step before or later."""
        program = self.program
        before, called = self.reaches(source, step - 1, op), program.off(op)
        if _ZERO in (before, called):
            return _ZERO
        out = program.variable()
        program.require(before - out)
        program.require(called - out)
        for device in self.problem.accelerators:
            here, there = program.at(op, device), program.at(source, device)
            if here != _ZERO:
                program.require(reaches - before - here + there + 1)
                program.require(2 - here - there - out)
        return out

    def constrain_assignment(self, op: int) -> None:
        """The op's step and device together, from the two."""
        program, choice = self.program, self.program.choices[op]
        steps = range(self.low[op], self.high[op] + 1)
        for step in steps:
            there = self.reaches(op, step) - self.reaches(op, step + 1)
            if len(choice) == 1:
                self.assignment[op, step, choice[0]] = there
            elif len(steps) == 1:
                self.assignment.update(((op, step, d), program.at(op, d)) for d in choice)
            else:
                # Before an op that all wait for no accelerator is called in step 0.
                away = step > 0 or self.dominator[op] is not None
                assigned = [d for d in choice if away or d == program.home]
                self.assignment.update(((op, step, d), program.variable()) for d in assigned)
                program.equal(_sum(self.assigned(op, step, d) for d in choice), there)
        if len(choice) > 1 and len(steps) > 1:
            for device in choice:
                program.equal(
                    _sum(self.assigned(op, step, device) for step in steps), program.at(op, device)
                )

    def state_transfers(self) -> dict[tuple[int, int, str], _Linear]:
        """(tensor, step, accelerator) -> 1 when new state goes there with the call of that step.

        That is the first call there after the state is made, or one of its own after the last;
        and only where no op there needs it in this run.
        """
        program, graph = self.program, self.graph
        renewing: dict[tuple[int, int, str], _Linear] = {}
        self.called_in: dict[tuple[int, str], _Linear] = {}
        for tensor, ops in program.renewed.items():
            needed = graph.needed_by(tensor)
            if set(ops) <= set(needed):
                continue  # it is sent in any case, with a call that there is
            source = graph.tensors[tensor].op
            assert source is not None
            for device in self.problem.accelerators:
                there = _sum(program.at(op, device) for op in {source, *needed})
                goes = program.above(program.at(op, device) - there for op in ops)
                if goes == _ZERO:
                    continue
                steps = range(self.low[source] + 1, self.end + 1)
                now = {step: program.variable() for step in steps}
                program.require(_sum(now.values()) - goes)
                for step, sent in now.items():
                    taken, ready = self.is_called(step, device), self.reaches(source, step - 1)
                    program.require(1 - self.reaches(source, step) - sent)
                    program.require(taken + ready - sent)
                    for other in steps:
                        busy = self.is_called(other, device)
                        if other < step:
                            program.require(1 + self.reaches(source, other) - busy - sent)
                    renewing[tensor, step, device] = sent
        return renewing

    def is_called(self, step: int, device: str) -> _Linear:
        """1 when some op runs in this step on this accelerator, and only then."""
        if (step, device) not in self.called_in:
            assigned = [self.assigned(op, step, device) for op in range(len(self.graph.ops))]
            taken = self.program.any_of(assigned)
            self.program.require(_sum(assigned) - taken)
            self.called_in[step, device] = taken
        return self.called_in[step, device]

    def calls(self) -> None:
        """Each step of each accelerator is a call; with one of them, up to an op its step is."""
        program, problem = self.program, self.problem
        calls: list[_Linear] = []
        for op in sorted({op for op in self.dominator if op is not None}):
            for step in range(1, self.high[op] + 1):
                (device,) = problem.accelerators
                calls.append(self.reaches(op, step))
                program.objective.append(calls[-1] * problem.call_cost.get(device, 0))
        rest = [
            op for op, dominator in enumerate(self.dominator) if dominator == self.dominator[-1]
        ]
        for device in problem.accelerators:
            before = len(calls) if len(problem.accelerators) > 1 else 0
            for step in range(1, self.end + 1):
                parts = [self.assigned(op, step, device) for op in rest]
                parts += [v for (_, k, d), v in self.state_sent.items() if (k, d) == (step, device)]
                calls.append(program.any_of(parts, problem.call_cost.get(device, 0)))
            if problem.one_call:
                program.require(1 - _sum(calls[before:]))
        if problem.max_calls is not None:
            program.require(problem.max_calls - _sum(calls))

    def moves(self) -> None:
        """Residency ``call``: what a call needs and does not make is sent from home with it.

        What is appended to state stays where it was once sent or made, for who reads the state.
        """
        program, problem, home = self.program, self.problem, self.program.home
        graph = self.graph
        sent: dict[int, list[_Linear]] = defaultdict(list)
        for tensor in program.crossing:
            source = tensor.op
            assert source is not None
            readers = () if tensor.role is Role.KV_CACHE else graph.readers(tensor.id)
            directly = [op for op in graph.needed_by(tensor.id) if op in readers]
            by_state = [op for op in graph.needed_by(tensor.id) if op not in readers]
            away: list[_Linear] = []  # on whichever step it is sent there
            for device in problem.accelerators:
                cost = problem.transfer_cost.get((tensor.id, home, device), 0)
                so_far = program.at(source, device)
                away += [program.at(op, device) - so_far for op in by_state]
                for step in range(1, self.end + 1):
                    made = self.assigned(source, step, device)  # a dominator makes it in step 0
                    needs = [
                        self.assigned(op, step, device)
                        - (made if self.dominator[op] != source else 0)
                        for op in directly
                    ]
                    needs += [self.assigned(op, step, device) - so_far for op in by_state]
                    needs.append(self.state_sent.get((tensor.id, step, device), _ZERO))
                    sent[tensor.id].append(program.above(needs, cost))
                    so_far = so_far + sent[tensor.id][-1]
            there = [program.at(op, home) for op in program.audience(tensor)]
            program.deliver(tensor, home, [*there, *away, *sent[tensor.id]])
        program.passed = sent
        for weight in sorted(program.resent):
            for device in problem.accelerators:
                self.resend(weight, device)

    def resend(self, weight: int, device: str) -> None:
        """A parameter is sent with each call that reads it: once where the call goes on past a
        dominator, after which the steps are counted anew."""
        program = self.program
        cost = self.problem.transfer_cost.get((weight, self.problem.home, device), 0)
        lies, readers = program.lying(weight, device), program.weights[weight].sent
        last = max(readers)
        sent: dict[tuple[int | None, int], _Linear] = {}  # (dominator, step after it)
        for after in [None, *sorted({d for d in self.dominator if d is not None and d < last})]:
            begun = _ZERO  # with the call that the dominator is in
            if after is not None:
                for step in range(self.low[after], self.high[after] + 1):
                    known = sent.get((self.dominator[after], step), _ZERO)
                    begun = begun + program.both(self.assigned(after, step, device), known)
            for step in range(self.end + 1):
                own = [
                    self.assigned(op, step, device) for op in readers if self.dominator[op] == after
                ]
                before = _ZERO if step else begun
                sent[after, step] = before + program.above(
                    [one - lies - before for one in own], cost
                )
