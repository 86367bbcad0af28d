"""Shapes in the graph that mean something: attentions, the broadcast of K and V, RMS norms.

Everything is found from what flows into what; no module name is looked at. ``PATTERNS`` names
those that a policy file may speak of.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tracer.graph import Kind, Op, OpGraph, Role, Tensor
from tracer.kinds import base_name

_POINTWISE = frozenset({Kind.ELEMENTWISE, Kind.COPY, Kind.VIEW})
"""What may stand between an attention's matmuls and its softmax: scale, mask, cap, cast."""

_PREPARES = _POINTWISE | {Kind.NORM, Kind.REDUCTION}
"""What may stand between a projection and the attention: heads, RoPE, norms of q and k."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention: the score product, the softmax and the product with the values."""

    score_ops: tuple[int, ...]
    """The matmuls that make the scores: one, or several when position has a product of its own.
    Empty when the whole attention is one op."""
    before_softmax: tuple[int, ...]
    """Ops between the score product and the softmax (scale, mask ...)."""
    softmax_op: int | None
    after_softmax: tuple[int, ...]
    """Ops between the softmax and the product with the values (cast ...)."""
    value_op: int
    """The matmul of probabilities and values, or the one op that is the whole attention."""
    q: Tensor
    k: Tensor
    v: Tensor
    """The operands as the products read them."""

    @property
    def core(self) -> tuple[int, ...]:
        """Every op from the score product to the product with the values, both included."""
        softmax = () if self.softmax_op is None else (self.softmax_op,)
        ops = (*self.score_ops, *self.before_softmax, *softmax, *self.after_softmax, self.value_op)
        return tuple(sorted(set(ops)))


def _flowing(graph: OpGraph, op: int) -> list[Tensor]:
    """The inputs of an op that move at run time: no parameters, no constants."""
    return [t for t in graph.inputs(op) if graph.crosses(t)]


def _back_to_matmul(graph: OpGraph, op: int) -> tuple[set[int], set[int]]:
    """(matmuls, pointwise ops) that lead to ``op`` through pointwise ops alone."""
    matmuls: set[int] = set()
    between: set[int] = set()

    def leads(here: int) -> bool:
        found = False
        for tensor in _flowing(graph, here):
            assert tensor.op is not None
            producer = graph.ops[tensor.op]
            if producer.kind is Kind.MATMUL:
                matmuls.add(producer.id)
                found = True
            elif producer.kind in _POINTWISE and (producer.id in between or leads(producer.id)):
                between.add(producer.id)
                found = True
        return found

    leads(op)
    return matmuls, between


def _on_to_matmul(graph: OpGraph, op: int) -> tuple[set[int], set[int]]:
    """(matmuls, pointwise ops) that ``op`` leads to through pointwise ops alone."""
    matmuls: set[int] = set()
    between: set[int] = set()

    def leads(here: int) -> bool:
        found = False
        for reader in (r for t in graph.outputs(here) for r in graph.readers(t.id)):
            if graph.ops[reader].kind is Kind.MATMUL:
                matmuls.add(reader)
                found = True
            elif graph.ops[reader].kind in _POINTWISE and (reader in between or leads(reader)):
                between.add(reader)
                found = True
        return found

    leads(op)
    return matmuls, between


def find_attentions(graph: OpGraph) -> tuple[Attention, ...]:
    """Every attention, in execution order: a softmax between two matmuls, or one attention op."""
    found: list[Attention] = []
    for op in graph.ops:
        if op.kind is Kind.ATTENTION:
            q, k, v = graph.inputs(op.id)[:3]
            found.append(Attention((), (), None, (), op.id, q, k, v))
        elif op.kind is Kind.SOFTMAX:
            scores, before = _back_to_matmul(graph, op.id)
            values, after = _on_to_matmul(graph, op.id)
            if not scores or not values:
                continue
            score_op, value_op = min(scores), min(values)
            q, k = graph.inputs(score_op)[-2:]
            probabilities = {t.id for o in (op.id, *after) for t in graph.outputs(o)}
            others = [t for t in graph.inputs(value_op) if t.id not in probabilities]
            if not others:
                continue
            found.append(
                Attention(
                    tuple(sorted(scores)), tuple(sorted(before)), op.id, tuple(sorted(after)),
                    value_op, q, k, others[-1],
                )
            )  # fmt: skip
    return tuple(found)


def _broadcast_ops(graph: OpGraph, tensor: Tensor) -> list[int]:
    """The ops that spread a K or V over more heads, back from ``tensor`` as the product reads it.

    From the first op that makes the tensor larger on, with the axis that it spreads along (an
    unsqueeze right before it). Empty when K and V have every head already.
    """
    chain: list[int] = []
    broadcast: list[int] = []
    while tensor.op is not None and graph.ops[tensor.op].kind in (Kind.VIEW, Kind.COPY):
        op = graph.ops[tensor.op]
        sources = _flowing(graph, op.id)
        if len({t.id for t in sources}) != 1:
            break
        chain.append(op.id)
        grows = tensor.numel > sources[0].numel
        prepares = broadcast == chain[:-1] != [] and base_name(op.target) == "unsqueeze"
        if grows or prepares:
            broadcast = list(chain)
        tensor = sources[0]
    return broadcast


def attention_core(graph: OpGraph) -> set[int]:
    """The ops of every attention from the score product to the product with the values."""
    return {op for attention in find_attentions(graph) for op in attention.core}


def kv_broadcast(graph: OpGraph) -> set[int]:
    """The ops that spread K and V over all heads (grouped-query attention)."""
    operands = (t for attention in find_attentions(graph) for t in (attention.k, attention.v))
    return {op for tensor in operands for op in _broadcast_ops(graph, tensor)}


PATTERNS: Mapping[str, Callable[[OpGraph], set[int]]] = {
    "attention-core": attention_core,
    "kv-broadcast": kv_broadcast,
}
"""The patterns that a rule of a policy file can name, each as graph -> ops."""


# --- labels ---------------------------------------------------------------------------------------


def label_tensors(graph: OpGraph) -> dict[int, str]:
    """Tensor id -> label, for every tensor whose part in an attention the graph shows.

    ``q``, ``k`` and ``v`` are labelled back to the projection that makes them; a tensor that holds
    several (a fused projection) gets them all, as in ``qkv``. ``logits`` are graph outputs made by
    a linear.
    """
    roles: dict[int, set[str]] = defaultdict(set)
    for attention in find_attentions(graph):
        for role, tensor in (("q", attention.q), ("k", attention.k), ("v", attention.v)):
            for member in _prepared_from(graph, tensor):
                roles[member.id].add(role)
    labels = {tensor: "".join(sorted(found, key="qkv".index)) for tensor, found in roles.items()}
    for attention in find_attentions(graph):
        softmax = [] if attention.softmax_op is None else [attention.softmax_op]
        for label, ops in (
            ("attention_scores", [*attention.score_ops, *attention.before_softmax]),
            ("attention_probs", [*softmax, *attention.after_softmax]),
            ("attention_output", [attention.value_op]),
        ):
            labels.update({t.id: label for op in ops for t in graph.outputs(op)})
    for tensor in graph.tensors:
        if tensor.role is Role.OUTPUT and _made_by_linear(graph, tensor):
            labels[tensor.id] = "logits"
    return labels


def _prepared_from(graph: OpGraph, operand: Tensor) -> list[Tensor]:
    """An attention operand with what it is prepared from, back to the projection that made it.

    When more than one projection flows in, only the operand and its aliases and copies.
    """
    seen = {operand.id: operand}
    stack = [operand]
    sources: set[int] = set()
    while stack:
        tensor = stack.pop()
        if tensor.op is None or not graph.crosses(tensor):
            continue
        if graph.ops[tensor.op].kind not in _PREPARES:
            sources.add(tensor.op)
            continue
        fresh = [t for t in _flowing(graph, tensor.op) if t.id not in seen]
        seen.update((t.id, t) for t in fresh)
        stack += fresh
    if len(sources) == 1:
        return list(seen.values())
    chain = [operand]
    while (op := chain[-1].op) is not None and graph.ops[op].kind in (Kind.VIEW, Kind.COPY):
        flowing = {t.id: t for t in _flowing(graph, op)}
        if len(flowing) != 1:
            break
        chain += flowing.values()
    return chain


def _made_by_linear(graph: OpGraph, tensor: Tensor) -> bool:
    while tensor.op is not None:
        op = graph.ops[tensor.op]
        if op.kind is Kind.LINEAR:
            return True
        flowing = _flowing(graph, op.id)
        if op.kind not in _POINTWISE or not flowing:
            return False
        tensor = flowing[0]
    return False


# --- norms ----------------------------------------------------------------------------------------


def mark_norms(graph: OpGraph) -> OpGraph:
    """The graph with the ops of every written-out RMS norm turned into kind ``norm``.

    The pattern: x squared, its mean, an epsilon, rsqrt, times x, times a parameter if there is one.
    """
    norm: set[int] = set()
    for op in graph.ops:
        if base_name(op.target) == "rsqrt" and not op.is_constant:
            norm |= _rms_norm(graph, op)
    return graph.with_ops(replace(o, kind=Kind.NORM) if o.id in norm else o for o in graph.ops)


def _rms_norm(graph: OpGraph, rsqrt: Op) -> set[int]:
    chain = [rsqrt.id]
    for wanted in (("add",), ("mean",), ("pow", "square", "mul")):
        flowing = {t.id: t for t in _flowing(graph, chain[-1])}
        producers = [graph.ops[t.op] for t in flowing.values() if t.op is not None]
        if len(producers) != 1 or base_name(producers[0].target) not in wanted:
            return set()
        chain.append(producers[0].id)
    squared = {t.id for t in _flowing(graph, chain[-1])}
    found = set(chain)
    for scaled in _multiplied(graph, rsqrt.id):
        if squared & {t.id for t in graph.inputs(scaled)}:
            found.add(scaled)
            found.update(
                op
                for op in _multiplied(graph, scaled)
                if any(t.role is Role.PARAMETER for t in graph.inputs(op))
            )
    return found


def _multiplied(graph: OpGraph, op: int) -> Iterable[int]:
    """The products that read an op's result, also through a cast."""
    for reader in (r for t in graph.outputs(op) for r in graph.readers(t.id)):
        name = base_name(graph.ops[reader].target)
        if name == "mul":
            yield reader
        elif name in ("to", "_to_copy", "type_as"):
            yield from _multiplied(graph, reader)
