"""What every program with a graph's results moves, however its ops are fused or ordered."""

from collections import Counter
from functools import lru_cache
from math import fsum

from costmodels.experts import STATE, Routing, routing_of
from costmodels.flops import PRODUCTS
from costmodels.fused import arranges, fused
from costmodels.roofline import Rates
from costmodels.traffic import has_own_rule
from tracer.graph import Kind, OpGraph, Tensor
from tracer.summary import renewals


@lru_cache(maxsize=4)
def compulsory_bytes(graph: OpGraph) -> int:
    """Bytes that a run reads or writes on any device that keeps nothing of them in its caches.

    What is there before a run (parameters, buffers, inputs, cached state) is read once: as much of
    it as the kernel reads that reads most of it. Results are written once; of cached state that is
    appended to, the new rows alone. Not counted is what depends on values (rows that are looked up,
    of a stack of experts all but those that one token goes to), what no result depends on, results
    that are what is there anyway, and constants, which a program may make anew.

    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=64).graph
    >>> compulsory_bytes(graph) < sum(op.cost.read_bytes + op.cost.write_bytes for op in graph.ops)
    True
    """
    return sum(_read(graph).values()) + _written(graph)


def least_seconds(graph: OpGraph, rates: Rates) -> float | None:
    """What no program with a graph's results stays below; None where the device has no rates.

    The longer of moving the compulsory bytes and of the matrix products, of a causal attention
    without what its mask leaves out. Algorithms with fewer multiplications than a matrix product
    has are left out of account.
    """
    moving = rates.memory_seconds(compulsory_bytes(graph))
    computing: list[float | None] = []
    for op in (graph.ops[number] for number in _needed_ops(graph)):
        flops = op.cost.flops if op.cost.causal_flops is None else op.cost.causal_flops
        if op.kind in PRODUCTS and flops is not None:
            computing.append(rates.compute_seconds(rates.dtype_of(graph, op), flops))
    known = [seconds for seconds in computing if seconds is not None]
    if moving is None or len(known) < len(computing):
        return None
    return float(max(moving, fsum(known)))


def _needed_ops(graph: OpGraph) -> list[int]:
    """The ops that a result depends on, in order."""
    found = {len(graph.ops) - 1}
    for op in reversed(graph.ops):
        if op.id in found:
            found.update(t.op for t in graph.inputs(op.id) if t.op is not None)
    return sorted(found)


def _read(graph: OpGraph) -> dict[int, int]:
    """By what is there before a run: what the kernel that reads most of it reads."""
    most: dict[int, int] = {}
    needed = {*_needed_ops(graph)}
    for group in fused(graph):
        sizes: Counter[int] = Counter()
        for number, read in zip(group.ops, group.reads, strict=True):
            op = graph.ops[number]
            routing = routing_of(graph, op)
            if number not in needed:
                continue
            if routing is not None:
                sizes[graph.storage(routing.stack).id] += _of_one_token(routing)
            elif not has_own_rule(op.target):
                sizes.update(read)
        for memory, size in sizes.items():
            if _is_there(graph, graph.tensors[memory]):
                most[memory] = max(most.get(memory, 0), size)
    return most


def _is_there(graph: OpGraph, memory: Tensor) -> bool:
    """Whether something is there before a run."""
    if memory.op is None:
        return memory.role in STATE
    return graph.ops[memory.op].kind is Kind.INPUT


def _of_one_token(routing: Routing) -> int:
    """Of a stack of experts: those that a token goes to for certain."""
    experts = routing.stack.shape[0]
    if routing.chosen is None:
        sure = min(1, routing.rows)
    else:
        sure = max(routing.chosen - (routing.choices - experts), 0)
    return routing.stored_bytes * sure // experts


def _written(graph: OpGraph) -> int:
    """Results that a run makes, each once."""
    appended = {new.id: old for old, new in renewals(graph) if new.op in graph.state_ops}
    sizes: dict[int, int] = {}
    for tensor in graph.inputs(len(graph.ops) - 1):
        size, made = tensor.bytes, tensor
        if tensor.id in appended:
            size = max(size - appended[tensor.id].bytes, 0)
        else:  # a view or a copy of something is no more than that
            while (op := made.op) is not None and graph.inputs(op):
                if not (graph.ops[op].is_view or arranges(graph.ops[op])):
                    break
                made = graph.inputs(op)[0]
                size = min(size, made.bytes)
        if made.op is not None and graph.ops[made.op].kind not in (Kind.INPUT, Kind.CONSTANT):
            sizes[made.id] = max(sizes.get(made.id, 0), size)
    return sum(sizes.values())
