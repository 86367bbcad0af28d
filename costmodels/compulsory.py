"""What every program with a graph's results moves, however its ops are fused or ordered."""

from collections import Counter

from costmodels.experts import STATE, Routing, routing_of
from costmodels.flops import FREE
from costmodels.traffic import has_own_rule, traffic
from tracer.graph import Kind, OpGraph
from tracer.summary import cached_outputs, renewals


def compulsory_bytes(graph: OpGraph) -> int:
    """Bytes that a run reads or writes on any device that keeps nothing of them in its caches.

    What is there before a run (parameters, buffers, inputs, cached state) is read once: as much of
    it as the op reads that reads most of it. Results are written once; of cached state that is
    appended to, the new rows alone. Not counted is what depends on values (rows that are looked up,
    of a stack of experts all but those that one token goes to), what no result depends on, and
    constants, which a program may make anew.

    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=64).graph
    >>> compulsory_bytes(graph) < sum(op.cost.read_bytes + op.cost.write_bytes for op in graph.ops)
    True
    """
    return sum(_read(graph).values()) + _written(graph)


def _read(graph: OpGraph) -> dict[int, int]:
    """By what is there before a run: what the op that reads most of it reads."""
    most: dict[int, int] = {}
    for op in (graph.ops[number] for number in needed_ops(graph)):
        if op.is_constant or op.is_view or op.kind in FREE:
            continue
        sizes: Counter[int] = Counter()
        routing = routing_of(graph, op)
        if routing is not None:
            sizes[graph.storage(routing.stack).id] = _of_one_token(routing)
        elif not has_own_rule(op.target):
            for tensor, size in traffic(graph, op)[0].items():
                sizes[graph.storage(tensor).id] += size
        for number, size in sizes.items():
            owner = graph.tensors[number]
            if owner.role in STATE or (
                owner.op is not None and graph.ops[owner.op].kind is Kind.INPUT
            ):
                most[number] = max(most.get(number, 0), size)
    return most


def _written(graph: OpGraph) -> int:
    """Results that a run makes, each memory once."""
    appended = {new.id: old for old, new in renewals(graph) if new.op in graph.state_ops}
    kept = {t.id for t in cached_outputs(graph)}
    sizes: dict[int, int] = {}
    for tensor in graph.inputs(len(graph.ops) - 1):
        owner = graph.storage(tensor)
        made = owner.op is not None and graph.ops[owner.op].kind is not Kind.INPUT
        if not made or graph.ops[owner.op or 0].is_constant or owner.role in STATE:
            continue
        size = tensor.bytes
        if tensor.id in kept and tensor.id in appended:
            size = max(size - appended[tensor.id].bytes, 0)
        sizes[owner.id] = max(sizes.get(owner.id, 0), size)
    return sum(sizes.values())


def _of_one_token(routing: Routing) -> int:
    """Of a stack of experts: those that a token goes to for certain."""
    experts = routing.stack.shape[0]
    if routing.chosen is None:
        sure = min(1, routing.rows)
    else:
        sure = max(routing.chosen - (routing.choices - experts), 0)
    return routing.stored_bytes * sure // experts


def needed_ops(graph: OpGraph) -> list[int]:
    """The ops that a result depends on, in order."""
    found = {len(graph.ops) - 1}
    for op in reversed(graph.ops):
        if op.id in found:
            found.update(t.op for t in graph.inputs(op.id) if t.op is not None)
    return sorted(found)
