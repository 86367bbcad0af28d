"""Prefill and decode of a small model, and all that they can be placed as by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import cutedge
from cutedge._machines import machine_of
from cutedge._partition import asked_of
from partition.granularity import common_units, units
from partition.mix import Phase
from partition.objective import figure
from partition.placement import Placement
from partition.policy import load_policy
from partition.problem import memory_of
from partition.setting import Setting
from partition.stored import moved_state
from tracer.graph import OpGraph
from tracer.stacks import run_order

MACHINE = "tee-tdx+rtx-4090@pcie4-x16"
HOME, GPU = "tee-tdx", "rtx-4090"
FASTEST = load_policy("fastest")
MODEL, TOKENS, TINY = "edge-10m", 64, {"num_hidden_layers": 2}


@cache
def graphs() -> tuple[OpGraph, OpGraph]:
    """Prefill and decode of two blocks, which are four units by layer."""
    return (
        cutedge.trace(MODEL, seq=TOKENS, cache=True, overrides=TINY).graph,
        cutedge.trace(MODEL, phase="decode", past=TOKENS, overrides=TINY).graph,
    )


def phases(
    weights: Sequence[float], granularity: str = "layer", memory: Sequence[str] = ()
) -> list[Phase]:
    """The two phases, so often, on a machine with so much memory."""
    machine = machine_of(MACHINE, memory=memory)
    found = []
    for graph, weight in zip(graphs(), weights, strict=True):
        asked = asked_of(graph, [FASTEST], machine, "run", (), None, 60.0, None, granularity)
        found.append(Phase(graph, asked.setting, weight))
    return found


@dataclass(frozen=True, slots=True)
class Assignment:
    """Units on devices, the same in both phases."""

    costs: tuple[float, float]
    """Nanoseconds of prefill and of decode."""
    gpu: tuple[int, int]
    """The most bytes at a time there, in each."""
    home: int
    """The most bytes at a time there in either."""


@cache
def assignments() -> tuple[Assignment, ...]:
    """All of them, each counted by the accounting."""
    both, (first, second) = phases((1, 1)), graphs()
    tied, apart = common_units(first, second, "layer")
    assert not apart
    mine, theirs = units(first, "layer"), units(second, "layer")
    of = {theirs[op]: mine[one] for op, one in tied.items()}
    free = sorted({mine[op] for op in run_order(first)})
    assert len(free) == 4
    assert set(of.values()) == set(free)
    found = []
    for choice in product((HOME, GPU), repeat=len(free)):
        where = dict(zip(free, choice, strict=True))
        placed = [
            _placement(first, where, both[0].setting),
            _placement(second, {unit: where[one] for unit, one in of.items()}, both[1].setting),
        ]
        costs, taken = [], []
        for phase, there in zip(both, placed, strict=True):
            wire = phase.setting.wire(phase.graph, FASTEST)
            traffic = phase.setting.account(phase.graph, there, wire)
            costs.append(figure(phase.graph, FASTEST, phase.setting, there))
            taken.append(memory_of(phase.graph, there, traffic.transfers))
        assert not moved_state(first, placed[0], second, placed[1])
        found.append(
            Assignment(
                (costs[0], costs[1]),
                (taken[0].get(GPU, 0), taken[1].get(GPU, 0)),
                max(one[HOME] for one in taken),
            )
        )
    return tuple(found)


def _placement(graph: OpGraph, where: dict[int, str], setting: Setting) -> Placement:
    """Units, by their first op, on devices."""
    fixed, together = setting.fixed(graph, FASTEST), units(graph, "layer")
    devices = [
        here if here is None else where.get(together[op], HOME)
        for op, here in enumerate(fixed.devices)
    ]
    return replace(fixed, devices=tuple(devices))
