"""What a graph needs of one device's memory when all of it runs there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.graph import Kind, OpGraph, Role

_STATE = (Role.PARAMETER, Role.BUFFER, Role.KV_CACHE)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that must lie on a device, each storage once; ints, or arrays of int64."""

    resident_bytes: Any
    """Parameters, buffers, constants and cached state: there during the whole run."""
    peak_activation_bytes: Any
    """What lies there at the worst moment besides: a tensor from the op that makes it (an input
    from the start) to the last op that reads it or a view of it, ops run in the graph's order."""

    @property
    def bytes(self) -> Any:
        """Both."""
        return self.resident_bytes + self.peak_activation_bytes


def memory_need(graph: OpGraph, sizes: Sequence[Any] | None = None) -> MemoryNeed:
    """What running the whole graph on one device needs of its memory.

    ``sizes`` are the bytes of each tensor, for many sizes of the graph at once; else its own.
    """
    taken = [t.bytes for t in graph.tensors] if sizes is None else sizes
    born: dict[int, int] = {}  # storage -> the op that makes it; -1 for what is there at first
    dies: dict[int, int] = {}  # storage -> the last op that reads it
    resident: set[int] = set()
    for op in graph.ops:
        if op.is_constant:
            continue
        for tensor in graph.inputs(op.id):
            owner = graph.storage(tensor)
            constant = owner.op is not None and graph.ops[owner.op].is_constant
            if constant or owner.role in _STATE:
                resident.add(owner.id)
            else:
                dies[owner.id] = op.id
        for tensor in graph.outputs(op.id):
            owner = graph.storage(tensor)
            if owner.role not in _STATE:
                born.setdefault(owner.id, -1 if op.kind is Kind.INPUT else op.id)
                dies.setdefault(owner.id, op.id)
    change: list[Any] = [0] * (len(graph.ops) + 2)  # at each op, counted from -1
    for storage, op_id in born.items():
        if storage not in resident:
            change[op_id + 1] = change[op_id + 1] + taken[storage]
            change[dies[storage] + 2] = change[dies[storage] + 2] - taken[storage]
    return MemoryNeed(sum(taken[t] for t in resident), highest(change))


def highest(changes: Iterable[Any]) -> Any:
    """The most that a sum of changes ever is, at least 0; numbers, or arrays."""
    most: Any = 0
    now: Any = 0
    for change in changes:
        now = now + change
        most = larger(most, now)
    return most


def larger(one: Any, other: Any) -> Any:
    """The larger of two numbers, or of each pair of two arrays."""
    return one + (other > one) * (other - one)
