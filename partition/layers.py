"""One cut between two parts of a model that run one after the other, the best one.

What comes before it is at home, the rest away. The parts are those of any module, at any depth: the
layers of a list, its lists themselves, a block's attention and feed-forward (``tracer.stacks``).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, product
from operator import and_, or_

from partition.mincut import cut_devices, cut_value, fast_cut, network_of
from partition.placement import Placement
from partition.problem import InfeasibleError, Problem, candidates, placement_of, recount
from partition.solve import Solution, SolverError
from partition.stored import lying_with, readers_of_sent, state_readers, storages
from tracer.graph import Kind, OpGraph
from tracer.stacks import Boundary, blocks, boundaries, follows, run_order


def cut_between_layers(problem: Problem) -> Solution:
    """The best of all cuts between two parts that follow each other, each of them counted.

    On each side is a whole block of a repeated stack where the model has one, else an op that reads
    parameters (``tracer.stacks.blocks``). What neither comes before the cut nor waits for what is
    after it is where it is cheapest of three: where it runs in the order of execution, all of it at
    home, or all away. Among equal cuts the one with most ops at home is taken. Raises
    InfeasibleError where no cut meets the limits of the problem (pins, secrets, memory, calls), and
    SolverError where the accounting counts less than the sum that the cuts were tried by; where it
    counts more, that sum is the bound.
    """
    graph = problem.graph
    whole = blocks(graph)
    if problem.max_calls == 0:
        raise InfeasibleError("a cut between two layers takes a call, and not one is allowed")
    cuts: list[tuple[int, _Order, Boundary]] = []
    for ops in _orders(graph):
        order = _Order(problem, ops, whole)
        places = [place for place in boundaries(graph, ops) if order.divides(place.at)]
        cuts += [(order.costs[place.at], order, place) for place in places]
    cuts.sort(key=lambda cut: (cut[0], -cut[2].at))
    broken = ""
    for cost, order, place in cuts:
        if not follows(graph, order.ops, place.done, place.next):
            continue
        broken = order.forbids(place.at)
        if broken:
            continue
        placement = placement_of(problem, order.devices(place.at), f"cut {place}")
        counted = recount(problem, placement)
        if not counted.broken:
            if counted.objective < cost:
                raise SolverError(
                    f"the cut {place} should cost {cost}, and the accounting counts "
                    f"{counted.objective}. This is a bug in cutedge."
                )
            return Solution(placement, counted, cost, 0.0, "layers", str(place))
        broken = counted.broken[0]
    if broken:
        raise InfeasibleError(f"no cut between two layers is allowed; the last tried: {broken}")
    raise InfeasibleError(
        f"{graph.meta.model} has no two layers to cut between: no two of its modules with "
        "parameters run one after the other"
    )


def _orders(graph: OpGraph) -> list[list[int]]:
    """Orders in which the ops can run: that of execution, and two for each stack.

    In one what waits for no layer of the stack comes first, in the other what no layer waits for
    comes last; and so with each of its layers.
    """
    run = run_order(graph)
    orders = [run]
    for stack in dict.fromkeys(graph.ops[op].stack for op in run):
        if stack is not None:
            layer = {op: graph.ops[op].layer for op in run if graph.ops[op].stack == stack}
            early: dict[int, float] = {}
            for op in run:
                waits = [early[t.op] for t in graph.flowing(op) if t.op in early]
                early[op] = max([-1.0 if (own := layer.get(op)) is None else own, *waits])
            late: dict[int, float] = {}
            for op in reversed(run):
                after = [
                    late[r] for t in graph.outputs(op) for r in graph.needed_by(t.id) if r in late
                ]
                late[op] = min([float("inf") if (own := layer.get(op)) is None else own, *after])
            orders += [sorted(run, key=lambda op: (at[op], op)) for at in (early, late)]
    return [list(order) for order in dict.fromkeys(map(tuple, orders))]


class _Order:
    """All cuts of a graph whose ops run in one order: what comes before is at home, the rest away.

    A cut is how many of the ops come before it.
    """

    def __init__(
        self, problem: Problem, ops: Sequence[int], whole: Sequence[frozenset[int]]
    ) -> None:
        self._problem = problem
        self.ops = ops
        self._at = {op: position for position, op in enumerate(ops)}
        spans = [[self._at[op] for op in block] for block in whole]
        self._first = min((max(span) + 1 for span in spans), default=len(ops) + 1)
        self._last = max((min(span) for span in spans), default=-1)
        allowed = candidates(problem)
        home, away = problem.home, problem.accelerators[0]
        self._stays = max((self._at[op] for op in ops if away not in allowed[op]), default=-1)
        self._leaves = min(
            (self._at[op] for op in ops if home not in allowed[op]), default=len(ops)
        )
        self.costs, self._held = self._counted()
        ends: dict[int, list[int]] = defaultdict(list)
        for op in ops if problem.units else ():
            ends[problem.units[op]].append(self._at[op])
        divided = _ByCut(len(ops))
        for span in ends.values():
            divided.add(span[0] + 1, span[-1], 1)
        self._divided = divided.values()  # by cut: how many units it goes through

    def divides(self, cut: int) -> bool:
        """Whether a whole block is on each side."""
        return self._first <= cut <= self._last

    def forbids(self, cut: int) -> str:
        """Why a cut is not allowed, as far as it shows without a recount; else empty."""
        graph, problem = self._problem.graph, self._problem
        for at, device, wrong in (
            (self._stays, problem.accelerators[0], cut <= self._stays),
            (self._leaves, problem.home, cut > self._leaves),
        ):
            if wrong:
                return f"op {self.ops[at]} ({graph.ops[self.ops[at]].name}) may not run on {device}"
        if self._divided[cut]:
            return "ops that lie together are on both sides of it"
        for device, limit in problem.memory_bytes.items():
            if (size := self._held[device][cut]) > limit:
                return f"{device} holds {size} bytes of parameters and constants, of {limit}"
        return ""

    def devices(self, cut: int) -> list[str | None]:
        """By op: where it runs."""
        graph, problem = self._problem.graph, self._problem
        before = set(self.ops[:cut])
        return [
            None
            if graph.is_everywhere(op.id)
            else problem.home
            if op.kind in (Kind.INPUT, Kind.OUTPUT) or op.id in before
            else problem.accelerators[0]
            for op in graph.ops
        ]

    def _counted(self) -> tuple[list[int], dict[str, list[int]]]:
        """By cut, what ops, transfers, storages and the call cost; and what each device holds.

        That is parameters, buffers, constants and cached state, in bytes.
        """
        problem, at, end = self._problem, self._at, len(self.ops)
        graph, home, (accelerator,) = problem.graph, problem.home, problem.accelerators
        paid = _ByCut(end)
        paid.add(0, end, problem.call_cost.get(accelerator, 0))
        for op in self.ops:
            paid.add(0, at[op], problem.op_cost.get((op, accelerator), 0))
            paid.add(at[op] + 1, end, problem.op_cost.get((op, home), 0))
        renewed = state_readers(graph)
        for tensor in graph.tensors:
            if tensor.op is None or not graph.crosses(tensor):
                continue
            readers = [*graph.needed_by(tensor.id), *renewed.get(tensor.id, ())]
            made = at.get(tensor.op, -1)  # inputs are there before all ops
            away = max((at.get(op, -1) for op in readers), default=-1)
            paid.add(made + 1, away, problem.transfer_cost.get((tensor.id, home, accelerator), 0))
            if any(graph.ops[op].kind is Kind.OUTPUT for op in readers):
                paid.add(0, made, problem.transfer_cost.get((tensor.id, accelerator, home), 0))
        for parameter, read in readers_of_sent(graph, problem.streams).items():
            lies = max((at.get(op, -1) for op in read.lying), default=-1)
            sent = problem.transfer_cost.get((parameter, home, accelerator), 0)
            paid.add(lies + 1, max(at.get(op, -1) for op in read.sent), sent)
        held = {device: _ByCut(end) for device in problem.devices}
        for device, needed in (
            (accelerator, lying_with(graph, problem.streams)),
            (home, storages(graph)),
        ):
            needing: dict[int, list[int]] = defaultdict(list)
            for op, stored in enumerate(needed):
                for owner in stored:
                    needing[owner].append(at.get(op, -1))  # inputs and results are at home
            for owner, places in sorted(needing.items()):
                span = (0, max(places)) if device == accelerator else (min(places) + 1, end)
                paid.add(*span, problem.storage_cost.get((owner, device), 0))
                held[device].add(*span, graph.tensors[owner].bytes)
        return paid.values(), {device: sums.values() for device, sums in held.items()}


class _ByCut:
    """A sum for each cut of an order, from what holds for many cuts in a row."""

    def __init__(self, cuts: int) -> None:
        self._change = [0] * (cuts + 2)  # at each cut, against the one before

    def add(self, first: int, until: int, value: int) -> None:
        """``value`` at the cuts from ``first`` up to and with ``until``."""
        if first <= until:
            self._change[first] += value
            self._change[until + 1] -= value

    def values(self) -> list[int]:
        """By cut."""
        return list(accumulate(self._change))


# --- beside it: a cut of the op graph that knows no layers ----------------------------------------


@dataclass(frozen=True, slots=True)
class TopologicalCut:
    """The best cut of the op graph after which nothing comes home but the results."""

    objective_value: int
    """What it costs, in whole numbers of the problem."""
    placement: Placement
    after: tuple[str, ...]
    """What it lies after: the names of the tensors that are sent, but for the inputs, each with the
    path of its module."""


def topological_cut(problem: Problem) -> TopologicalCut | None:
    """The best cut of the op graph anywhere, with a first block at home and a last one away.

    All that an op at home waits for is at home: a minimum cut where that is infinitely dear to
    break, so that no such cut costs less. Memory and the number of calls are left out; None where
    pins and secrets leave no such cut.
    """
    graph, home, (accelerator,) = problem.graph, problem.home, problem.accelerators
    choices = candidates(problem)
    best: tuple[int, list[str | None]] | None = None
    for first, last in product(*_ends(graph, blocks(graph))):
        held = {**dict.fromkeys(first, home), **dict.fromkeys(last, accelerator)}
        fits = all(device in choices[op] for op, device in held.items())
        if first & last or not fits:
            continue
        allowed = tuple((held[op],) if op in held else one for op, one in enumerate(choices))
        network = network_of(replace(problem, allowed=allowed), forward=True)
        side = fast_cut(network)
        devices, value = cut_devices(problem, network, side), cut_value(network, side)
        if best is None or value < best[0]:
            best = value, devices
    if best is None:
        return None
    value, devices = best
    flows = [(t.op, op) for op in graph.ops for t in graph.flowing(op.id) if t.op is not None]
    ways = {(devices[source], devices[op.id], op.kind) for source, op in flows}
    if any(way[:2] == (accelerator, home) and way[2] is not Kind.OUTPUT for way in ways):
        return None  # pins leave no better one
    sent = [
        op
        for op in graph.ops
        if op.kind is not Kind.INPUT
        and devices[op.id] == home
        and any(devices[reader.id] == accelerator for source, reader in flows if source == op.id)
    ]
    names = tuple(f"{op.name} ({op.module_path})" if op.module_path else op.name for op in sent)
    cost = value + problem.call_cost.get(accelerator, 0)
    return TopologicalCut(cost, placement_of(problem, devices, "cut of the op graph"), names)


def _ends(
    graph: OpGraph, whole: Sequence[frozenset[int]]
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """The blocks that wait for no other one, and those that no other one waits for."""
    of = [0] * len(graph.ops)  # by op: the blocks that it is in, a bit each
    for number, block in enumerate(whole):
        for op in block:
            of[op] |= 1 << number
    before, after = list(of), list(of)  # with those that it waits for, or that wait for it
    flows = [(t.op, op.id) for op in graph.ops for t in graph.flowing(op.id) if t.op is not None]
    for source, reader in flows:
        before[reader] |= before[source]
    for source, reader in reversed(flows):
        after[source] |= after[reader]

    def ends(seen: Sequence[int]) -> list[frozenset[int]]:
        """Those that see no block but such as they are part of themselves."""
        around = (reduce(and_, (of[op] for op in block)) for block in whole)
        within = (reduce(or_, (seen[op] for op in block)) for block in whole)
        return [b for b, mine, all_ in zip(whole, around, within, strict=True) if not all_ & ~mine]

    return ends(before), ends(after)
