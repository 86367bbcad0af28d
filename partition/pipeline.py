"""Accelerators in turn: each takes the layers that fit, the next goes on from there."""

from collections.abc import Sequence

from partition.placement import Placement
from partition.problem import Problem, candidates, placement_of, recount
from tracer.graph import Kind, OpGraph


def positions(graph: OpGraph) -> list[int]:
    """By op: the layer that it runs with; -1 before all of them, also for inputs and the output.

    Layers are counted as they run, through all stacks. An op outside of all layers is with the last
    layer that it waits for.
    """
    running = (op for op in graph.ops if op.kind is not Kind.INPUT and op.layer is not None)
    place = {layer: n for n, layer in enumerate(dict.fromkeys((o.stack, o.layer) for o in running))}
    at: list[int] = []
    for op in graph.ops:
        if op.kind in (Kind.INPUT, Kind.OUTPUT) or graph.is_everywhere(op.id):
            at.append(-1)
            continue
        waits = max((at[t.op] for t in graph.flowing(op.id) if t.op is not None), default=-1)
        at.append(max(waits, place.get((op.stack, op.layer), -1)))
    return at


def in_turn(problem: Problem, away: Sequence[bool]) -> list[Placement]:
    """Placements where each accelerator takes as many layers in a row as its memory holds.

    ``away`` says by op what may leave home. The accelerators come in their order and in the
    opposite one; the last takes what is left, whether it fits or not. What is outside of all layers
    is with its neighbours, or all of it with the first: a head may share the embedding's weights.
    No solver's answer: a start where memory is what decides.
    """
    ops, choices = problem.graph.ops, candidates(problem)
    inside = positions(problem.graph)
    first = [-1 if op.layer is None else at for op, at in zip(ops, inside, strict=True)]
    return [made for at in (inside, first) for made in _in_turn(problem, away, choices, at)]


def _in_turn(
    problem: Problem, away: Sequence[bool], choices: Sequence[tuple[str, ...]], at: Sequence[int]
) -> list[Placement]:
    last = max(at)

    def placed(order: Sequence[str], ends: Sequence[int]) -> Placement:
        """Accelerator n has the layers up to ``ends[n]``; what comes after them is at home."""
        devices: list[str | None] = []
        for op, choice in enumerate(choices):
            turn = next((d for d, end in zip(order, ends, strict=False) if at[op] <= end), None)
            wanted = turn if away[op] and turn is not None else problem.home
            devices.append(wanted if wanted in choice else choice[0] if choice else None)
        return placement_of(problem, devices, "layers in turn")

    def fits(order: Sequence[str], ends: Sequence[int]) -> bool:
        device = order[len(ends) - 1]
        held = recount(problem, placed(order, ends)).memory_bytes
        return device not in held or held[device] <= problem.memory_bytes[device]

    found = []
    for order in (problem.accelerators, problem.accelerators[::-1]):
        ends: list[int] = []
        for _ in order[:-1]:
            low, high = ends[-1] if ends else -2, last  # it fits up to low, and not beyond high
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if fits(order, [*ends, middle]) else (low, middle - 1)
            ends.append(low)
        found.append(placed(order, [*ends, last]))
    return found
