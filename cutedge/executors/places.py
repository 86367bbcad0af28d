"""Where an executor puts the ops of a graph, and what of a placement comes nearest to that."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tracer.graph import Kind, OpGraph


@dataclass(frozen=True, slots=True)
class Places:
    """Where an executor runs each op."""

    devices: tuple[str | None, ...]
    """By op id; None for constants and cached state, inputs and the output at home."""
    streams: frozenset[int] = frozenset()
    """Ops whose parameters lie at home and are sent in each run."""


def places(
    graph: OpGraph, home: str, at: Mapping[int, str], streams: frozenset[int] = frozenset()
) -> Places:
    """The places of all ops, from those of the ops that have a device to choose."""
    return Places(
        tuple(
            None
            if graph.is_everywhere(op.id)
            else home
            if op.kind in (Kind.INPUT, Kind.OUTPUT)
            else at[op.id]
            for op in graph.ops
        ),
        streams,
    )


Weight = tuple[int, int, int]
"""(FLOPs, bytes read and written, ops) of some ops: what decides where most of them is."""


def weight_of(graph: OpGraph, op: int) -> Weight:
    """What an op counts for where ops of one unit are on several devices."""
    cost = graph.ops[op].cost
    return cost.flops or 0, cost.read_bytes + cost.write_bytes, 1


Unit = TypeVar("Unit", bound=Hashable)


def majority(
    graph: OpGraph, devices: Sequence[str | None], units: Mapping[int, Unit], order: Sequence[str]
) -> dict[Unit, str]:
    """Unit -> the device with most of its FLOPs, of as many its bytes; else the first in ``order``.

    ``units`` is by op.
    """
    found: dict[Unit, dict[str, Weight]] = defaultdict(lambda: dict.fromkeys(order, (0, 0, 0)))
    for op, unit in units.items():
        device = devices[op]
        if device is not None:
            found[unit][device] = _sum(found[unit][device], weight_of(graph, op))
    return {unit: max(order, key=lambda d: by[d]) for unit, by in found.items()}


def _sum(one: Weight, other: Weight) -> Weight:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def staged(agreed: Sequence[Mapping[str, Weight]], stages: Sequence[str]) -> list[int] | None:
    """Where each stage but the first begins, so that most of what there is agrees with its stage.

    ``agreed`` is by piece, in the order of execution: device -> what of the piece is there. Each of
    the ``stages``, by device, has one piece or more; None where there are too few.
    """
    if len(agreed) < len(stages):
        return None
    nothing: Weight = (0, 0, 0)
    best: list[_Way | None] = [None] * len(stages)
    for at, piece in enumerate(agreed):
        before, best = best, []
        for stage, device in enumerate(stages):
            ways = [before[stage]]
            if at == stage == 0:
                ways = [(nothing, [])]
            elif at and stage and (last := before[stage - 1]) is not None:
                ways.append((last[0], [*last[1], at]))
            most = max((way for way in ways if way), key=lambda way: way[0], default=None)
            best.append(most and (_sum(most[0], piece.get(device, nothing)), most[1]))
    return None if best[-1] is None else best[-1][1]


_Way = tuple[Weight, list[int]]
"""(what agrees, where the stages after the first begin)"""


def agreement(
    graph: OpGraph, devices: Sequence[str | None], ops: Sequence[int]
) -> dict[str, Weight]:
    """Device -> what of some ops is there."""
    found: dict[str, Weight] = {}
    for op in ops:
        if (device := devices[op]) is not None:
            found[device] = _sum(found.get(device, (0, 0, 0)), weight_of(graph, op))
    return found


def pipeline_stages(count: int, devices: Sequence[str]) -> Sequence[str] | None:
    """The devices of so many stages: home and the accelerators in order, or these alone."""
    return {len(devices): devices, len(devices) - 1: devices[1:]}.get(count)


def best_stages(
    agreed: Sequence[Mapping[str, Weight]], devices: Sequence[str]
) -> tuple[Sequence[str], list[int]] | None:
    """(stages, where those after the first begin) that agree with most, with home as a stage or not.

    None where there are fewer pieces than accelerators.
    """
    best: tuple[Weight, Sequence[str], list[int]] | None = None
    for stages in (devices, devices[1:]):
        if (begins := staged(agreed, stages)) is not None:
            total: Weight = (0, 0, 0)
            for at, piece in enumerate(agreed):
                stage = sum(begin <= at for begin in begins)
                total = _sum(total, piece.get(stages[stage], (0, 0, 0)))
            if best is None or total > best[0]:
                best = total, stages, begins
    return None if best is None else best[1:]
