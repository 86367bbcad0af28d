"""What a graph needs of one device's memory when all of it runs there."""

from dataclasses import dataclass

from tracer.graph import Kind, OpGraph, Role

_STATE = (Role.PARAMETER, Role.BUFFER, Role.KV_CACHE)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that must lie on a device, each storage once."""

    resident_bytes: int
    """Parameters, buffers, constants and cached state: there during the whole run."""
    peak_activation_bytes: int
    """What lies there at the worst moment besides: a tensor from the op that makes it (an input
    from the start) to the last op that reads it or a view of it, ops run in the graph's order."""

    @property
    def bytes(self) -> int:
        """Both."""
        return self.resident_bytes + self.peak_activation_bytes


def memory_need(graph: OpGraph) -> MemoryNeed:
    """What running the whole graph on one device needs of its memory."""
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
    change = [0] * (len(graph.ops) + 2)  # at each op, counted from -1
    for storage, op_id in born.items():
        if storage not in resident:
            change[op_id + 1] += graph.tensors[storage].bytes
            change[dies[storage] + 2] -= graph.tensors[storage].bytes
    peak = now = 0
    for step in change:
        now += step
        peak = max(peak, now)
    return MemoryNeed(sum(graph.tensors[t].bytes for t in resident), peak)
