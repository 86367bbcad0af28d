"""One cut between two layers, the best one: what comes before it is at home, the rest away."""

from itertools import accumulate

from partition.pipeline import positions
from partition.placement import Placement
from partition.problem import InfeasibleError, Problem, candidates, placement_of, recount
from partition.solve import Solution
from partition.stored import keepers, readers_of_stored, storages
from tracer.graph import Kind


def cut_between_layers(problem: Problem) -> Solution:
    """The best of all cuts between two neighbouring layers, each of them counted.

    An op outside of all layers is with the last layer that it waits for, or before all. Among equal
    cuts the latest is taken: it has the most ops at home. Raises InfeasibleError where no cut
    meets the limits of the problem (pins, secrets, memory, calls).
    """
    graph, home = problem.graph, problem.home
    (accelerator,) = problem.accelerators
    at = positions(graph)
    layers = sorted({op.layer for op in graph.ops if op.layer is not None})
    cuts = [layer for layer in layers if layer > layers[0]]
    if not cuts:
        raise InfeasibleError(f"{graph.meta.model} has no two layers to cut between")
    last = max(cuts) + 1
    change = [0] * (last + 2)  # of the cost, at each cut, against that of the cut before

    def pay(first: int, until: int, cost: int) -> None:
        """``cost`` at the cuts from ``first`` up to and with ``until``."""
        first, until = max(first, 0), min(until, last)
        if first <= until:
            change[first] += cost
            change[until + 1] -= cost

    for op in graph.ops:
        if op.kind in (Kind.INPUT, Kind.OUTPUT) or graph.is_everywhere(op.id):
            continue
        pay(0, at[op.id], problem.op_cost.get((op.id, accelerator), 0))
        pay(at[op.id] + 1, last, problem.op_cost.get((op.id, home), 0))
    renewed = keepers(graph)
    for tensor in graph.tensors:
        if tensor.op is None or not graph.crosses(tensor):
            continue
        readers = [*graph.needed_by(tensor.id), *renewed.get(tensor.id, ())]
        away = max((at[op] for op in readers), default=-1)
        made = at[tensor.op]
        pay(made + 1, away, problem.transfer_cost.get((tensor.id, home, accelerator), 0))
        if any(graph.ops[op].kind is Kind.OUTPUT for op in readers):
            pay(0, made, problem.transfer_cost.get((tensor.id, accelerator, home), 0))
    for owner in sorted(set().union(*storages(graph))):
        places = [at[op] for op in readers_of_stored(graph, graph.tensors[owner])]
        if places:
            pay(0, max(places), problem.storage_cost.get((owner, accelerator), 0))
            pay(min(places) + 1, last, problem.storage_cost.get((owner, home), 0))
    costs = list(accumulate(change))
    allowed = candidates(problem)
    broken: tuple[str, ...] = ()
    for cut in sorted(cuts, key=lambda cut: (costs[cut], -cut)):
        placement = _placed(problem, at, cut)
        pins = [
            f"op {op} ({graph.ops[op].name}) may not run on {device}"
            for op, device in enumerate(placement.devices)
            if device is not None and device not in allowed[op]
        ]
        counted = recount(problem, placement)
        broken = (*pins[:3], *counted.broken)
        if not broken:
            return Solution(placement, counted, counted.objective, 0.0, "layers")
    raise InfeasibleError(f"no cut between two layers is allowed; the last tried: {broken[0]}")


def _placed(problem: Problem, at: list[int], cut: int) -> Placement:
    graph = problem.graph
    devices = [
        None if graph.is_everywhere(op.id)
        else problem.home if op.kind in (Kind.INPUT, Kind.OUTPUT) or at[op.id] < cut
        else problem.accelerators[0]
        for op in graph.ops
    ]  # fmt: skip
    return placement_of(problem, devices, f"cut before layer {cut}")
