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
    return [t for t in graph.inputs(op) if _flows(graph, t)]


def _flows(graph: OpGraph, tensor: Tensor) -> bool:
    """Whether a tensor comes of the graph's inputs; cached state does, wherever it is kept."""
    return tensor.op is not None and not graph.ops[tensor.op].is_constant


Neighbours = Callable[[OpGraph, int], Iterable[int]]
"""The ops next to an op, in one direction."""


def _producers(graph: OpGraph, op: int) -> Iterable[int]:
    return (t.op for t in _flowing(graph, op) if t.op is not None)


def _readers(graph: OpGraph, op: int) -> Iterable[int]:
    return (reader for t in graph.outputs(op) for reader in graph.readers(t.id))


def _reach(
    graph: OpGraph, starts: Iterable[int], step: Neighbours, through: frozenset[Kind]
) -> set[int]:
    """The ops met step by step from ``starts`` on, where only kinds in ``through`` lead on."""
    met: set[int] = set()
    stack = list(starts)
    while stack:
        fresh = {op for op in step(graph, stack.pop()) if op not in met}
        met |= fresh
        stack += (op for op in fresh if graph.ops[op].kind in through)
    return met


def _matmuls(
    graph: OpGraph, softmax: int, step: Neighbours, back: Neighbours
) -> tuple[set[int], set[int]]:
    """(matmuls that pointwise ops alone link to a softmax in one direction, the ops between).

    A reduction is no link, but one of what lies between (its maximum, subtracted) is between too.
    """
    near = _reach(graph, [softmax], step, _POINTWISE)
    matmuls = {op for op in near if graph.ops[op].kind is Kind.MATMUL}
    through = _POINTWISE | {Kind.REDUCTION}
    linked = _reach(graph, matmuls, back, through) & _reach(graph, [softmax], step, through)
    return matmuls, {op for op in linked if graph.ops[op].kind in through}


def find_attentions(graph: OpGraph) -> tuple[Attention, ...]:
    """Every attention, in execution order: a softmax between two matmuls, or one attention op."""
    found: list[Attention] = []
    for op in graph.ops:
        if op.kind is Kind.ATTENTION:
            q, k, v = graph.inputs(op.id)[:3]
            found.append(Attention((), (), None, (), op.id, q, k, v))
        elif op.kind is Kind.SOFTMAX:
            scores, before = _matmuls(graph, op.id, _producers, _readers)
            values, after = _matmuls(graph, op.id, _readers, _producers)
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
                    tuple(sorted(scores)),
                    tuple(sorted(before)),
                    op.id,
                    tuple(sorted(after)),
                    value_op,
                    q,
                    k,
                    others[-1],
                )
            )
    return tuple(found)


def _moved_from(graph: OpGraph, tensor: Tensor) -> Tensor | None:
    """What a view or a copy made ``tensor`` of, None where something else or several made it."""
    if tensor.op is None or graph.ops[tensor.op].kind not in (Kind.VIEW, Kind.COPY):
        return None
    sources = {t.id: t for t in _flowing(graph, tensor.op)}
    return next(iter(sources.values())) if len(sources) == 1 else None


def _broadcast_ops(graph: OpGraph, tensor: Tensor) -> list[int]:
    """The ops that spread a K or V over more heads, back from ``tensor`` as the product reads it.

    From the first op that makes the tensor larger on, with the axis that it spreads along (an
    unsqueeze right before it). Empty when K and V have every head already.
    """
    chain: list[int] = []
    broadcast: list[int] = []
    while tensor.op is not None and (source := _moved_from(graph, tensor)) is not None:
        prepares = (
            base_name(graph.ops[tensor.op].target) == "unsqueeze" and broadcast == chain != []
        )
        chain.append(tensor.op)
        if tensor.numel > source.numel or prepares:
            broadcast = list(chain)
        tensor = source
    return broadcast


def attention_core(graph: OpGraph) -> set[int]:
    """The ops of every attention from the score product to the product with the values."""
    return {op for attention in find_attentions(graph) for op in attention.core}


def kv_broadcast(graph: OpGraph) -> set[int]:
    """The ops that spread K and V over all heads (grouped-query attention)."""
    operands = (t for attention in find_attentions(graph) for t in (attention.k, attention.v))
    return {op for tensor in operands for op in _broadcast_ops(graph, tensor)}


def rope(graph: OpGraph) -> set[int]:
    """The ops that turn Q and K by their positions (rotary position embeddings).

    On the way from a projection to a product of scores: what multiplies by constants of more than
    one element (the sines and cosines), the sums of such products, and the ops that turn halves
    around for one of them (a negation, a cat; the views between them are free to be anywhere).
    """
    arithmetic = frozenset({Kind.ELEMENTWISE, Kind.COPY})
    turned: set[int] = set()
    for op in graph.ops:
        of_attention = any(t.label in ("q", "k") for t in graph.outputs(op.id))
        if not of_attention or op.kind is not Kind.ELEMENTWISE:
            continue
        reads = graph.inputs(op.id)
        by_constant = any(
            t.op is not None and graph.ops[t.op].is_constant and t.numel > 1 for t in reads
        )
        if by_constant or any(t.op in turned for t in reads):
            turned.add(op.id)
    around: set[int] = set()
    front = [t.op for op in turned for t in graph.inputs(op) if t.op is not None]
    while front:
        op = graph.ops[front.pop()]
        labelled = any(t.label in ("q", "k") for t in graph.outputs(op.id))
        if not labelled or op.is_constant or op.id in turned | around:
            continue
        if op.kind in arithmetic or op.is_view:
            around.add(op.id)
            front += [t.op for t in graph.inputs(op.id) if t.op is not None]
    # Of what comes before, only what stands between two turning ops turns: heads are split first.
    halves = {
        op
        for op in around
        if graph.ops[op].kind in arithmetic
        and any(t.op in around or t.op in turned for t in graph.inputs(op))
    }
    return turned | halves


PATTERNS: Mapping[str, Callable[[OpGraph], set[int]]] = {
    "attention-core": attention_core,
    "kv-broadcast": kv_broadcast,
    "rope": rope,
}
"""The patterns that a rule of a policy file can name, each as graph -> ops."""


# --- labels ---------------------------------------------------------------------------------------


def label_tensors(graph: OpGraph) -> dict[int, str]:
    """Tensor id -> label, for every tensor whose part in an attention the graph shows.

    ``q``, ``k`` and ``v`` are labelled back to the projection that makes them; a tensor that holds
    several (a fused projection) gets them all, as in ``qkv``. ``logits`` are graph outputs made by
    a linear, of which no matrix product makes anything else: what is made of an image is not.
    """
    roles: dict[int, set[str]] = defaultdict(set)
    attentions = find_attentions(graph)
    for attention in attentions:
        for role, tensor in (("q", attention.q), ("k", attention.k), ("v", attention.v)):
            for member in _prepared_from(graph, tensor):
                roles[member.id].add(role)
    labels = {tensor: "".join(sorted(found, key="qkv".index)) for tensor, found in roles.items()}
    for attention in attentions:
        softmax = [] if attention.softmax_op is None else [attention.softmax_op]
        for label, ops in (
            ("attention_scores", [*attention.score_ops, *attention.before_softmax]),
            ("attention_probs", [*softmax, *attention.after_softmax]),
            ("attention_output", [attention.value_op]),
        ):
            labels.update({t.id: label for op in ops for t in graph.outputs(op)})
    for tensor in graph.tensors:
        if graph.meta.phase == "encoder" or tensor.role is not Role.OUTPUT:
            continue
        if _made_by_linear(graph, tensor) and not _is_multiplied(graph, tensor):
            labels[tensor.id] = "logits"
    return labels


def _prepared_from(graph: OpGraph, operand: Tensor) -> list[Tensor]:
    """An attention operand with what it is prepared from, back to the projection that made it.

    Where no linear projects it, or more than one op flows in, only the operand and what it is a
    view or a copy of.
    """
    seen = {operand.id: operand}
    stack = [operand]
    sources: dict[int, Kind] = {}
    while stack:
        tensor = stack.pop()
        if tensor.op is None or not _flows(graph, tensor):
            continue
        kind = graph.ops[tensor.op].kind
        if tensor.role is Role.KV_CACHE and kind is Kind.INPUT:
            continue  # older rows of the same
        if kind not in _PREPARES:
            sources[tensor.op] = kind
            continue
        fresh = [t for t in _flowing(graph, tensor.op) if t.id not in seen]
        seen.update((t.id, t) for t in fresh)
        stack += fresh
    if list(sources.values()) == [Kind.LINEAR]:
        return list(seen.values())
    chain = [operand]
    while (source := _moved_from(graph, chain[-1])) is not None:
        chain.append(source)
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


def _is_multiplied(graph: OpGraph, tensor: Tensor) -> bool:
    """Whether numbers of a tensor come into a later matrix product: not those that it picks."""
    seen, stack = {tensor.id}, [tensor.id]
    while stack:
        for reader in graph.readers(stack.pop()):
            if graph.ops[reader].kind in (Kind.LINEAR, Kind.MATMUL):
                return True
            made = (t for t in graph.outputs(reader) if graph.is_float(t.dtype))
            fresh = [t.id for t in made if t.id not in seen]
            seen.update(fresh)
            stack += fresh
    return False


# --- norms ----------------------------------------------------------------------------------------


def mark_norms(graph: OpGraph) -> OpGraph:
    """The graph with the ops of every written-out RMS norm turned into kind ``norm``.

    The pattern: x squared, its mean, an epsilon, rsqrt, times x, and times a factor computed from
    a parameter if there is one.
    """
    norm: set[int] = set()
    for op in graph.ops:
        if base_name(op.target) == "rsqrt" and not op.is_constant:
            norm |= _rms_norm(graph, op)
    return graph.with_ops(replace(o, kind=Kind.NORM) if o.id in norm else o for o in graph.ops)


def _rms_norm(graph: OpGraph, rsqrt: Op) -> set[int]:
    found = {rsqrt.id}
    op = rsqrt.id
    for wanted in (("add",), ("mean",), ("pow", "square", "mul")):
        producers = set(_producers(graph, op))
        if len(producers) != 1:
            return set()
        op = producers.pop()
        if base_name(graph.ops[op].target) not in wanted:
            return set()
        found.add(op)
    squared = graph.inputs(op)
    if len(set(squared)) != 1 or (base_name(graph.ops[op].target) == "mul" and len(squared) != 2):
        return set()  # x times something else, or times a number
    x = _before_casts(graph, squared[0])
    scaled = [
        product
        for product in _multiplied(graph, rsqrt.id)
        if x in (_before_casts(graph, t) for t in graph.inputs(product))
    ]
    weighted = (
        product
        for product in (p for s in scaled for p in _multiplied(graph, s))
        if any(_from_parameter(graph, t) for t in graph.inputs(product))
    )
    return {*found, *scaled, *weighted} if scaled else set()


_CASTS = ("to", "_to_copy", "type_as")


def _before_casts(graph: OpGraph, tensor: Tensor) -> Tensor:
    while tensor.op is not None and base_name(graph.ops[tensor.op].target) in _CASTS:
        tensor = graph.inputs(tensor.op)[0]
    return tensor


def _from_parameter(graph: OpGraph, tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or a constant computed from one."""
    if tensor.op is None:
        return tensor.role is Role.PARAMETER
    constant = graph.ops[tensor.op].is_constant
    return constant and any(_from_parameter(graph, t) for t in graph.inputs(tensor.op))


def _multiplied(graph: OpGraph, op: int) -> Iterable[int]:
    """The products that read an op's result, also through a cast."""
    for reader in _readers(graph, op):
        name = base_name(graph.ops[reader].target)
        if name == "mul":
            yield reader
        elif name in _CASTS:
            yield from _multiplied(graph, reader)
