"""What the ops of a graph cost wherever they run: FLOPs by the registry, and memory traffic.

Which experts' weights are read depends on the tokens; it is assumed that each goes to k of E,
uniformly and independently (``estimate``, with the assumption beside it). The FLOPs of those
products rest on no assumption: a row meets one expert, whichever that is.
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from costmodels.experts import STATE, Routing, mixed, routing_of
from costmodels.formulas import REGISTRY, GemmOf, GemmSize, Shapes, Signature, Size, to_int
from costmodels.traffic import traffic
from tracer.errors import CutedgeError
from tracer.formula import Formula, formula, parse
from tracer.graph import QUANTISED_DTYPES, Gemm, Kind, Op, OpCost, OpGraph, Status, Tensor
from tracer.kinds import base_name
from tracer.stages import stage

FREE = frozenset({Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT})
"""What costs nothing at run time."""

PRODUCTS = frozenset({Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION})
"""The kinds of matrix product."""


def may_multiply(op: Op) -> bool:
    """Whether an annotated op is a product, or may be one since nothing is known of it."""
    return op.kind in PRODUCTS or (op.kind is Kind.OTHER and op.cost.flops is None)


def without_sizes(ops: Iterable[Op]) -> dict[str, int]:
    """target -> products among annotated ops, or what may be one, that are not one product of two
    matrices: what an array of multipliers takes for them is not known."""
    return dict(Counter(op.target for op in ops if may_multiply(op) and op.cost.gemm is None))


_REAL = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


def computed_in(graph: OpGraph, op: Op) -> str | None:
    """The dtype that an op computes in: that of a product's operands, of another op's result; of
    complex numbers that of their parts."""
    inputs = graph.inputs(op.id)
    dtype = inputs[0].dtype if op.kind in PRODUCTS and inputs else op.dtype
    return _REAL.get(dtype or "", dtype)


@stage("counting FLOPs")
def annotate(graph: OpGraph) -> OpGraph:
    """The graph with every op's cost filled in.

    Views, constants, inputs and the output cost nothing at run time. An op whose name the registry
    lacks gets status ``unsupported`` and no FLOPs; its memory traffic is known all the same.
    """
    idle = _no_flops(bool(graph.meta.symbolic))
    known: dict[Hashable, OpCost] = {}

    def cost(op: Op) -> OpCost:
        if op.is_view or op.kind in FREE:
            return idle
        if routing := routing_of(graph, op):
            return _cost(graph, op, routing)
        key = work_key(graph, op)
        if key not in known:
            known[key] = _cost(graph, op, None)
        return known[key]

    return graph.with_ops(op.costing(cost(op)) for op in graph.ops)


def work_key(graph: OpGraph, op: Op) -> Hashable:
    """All that an op's FLOPs and traffic follow from, but which experts' weights it reads: the many
    ops of a graph that are equal in it are worked out once."""
    which: dict[int, int] = {}  # tensor -> its number among those that the op reads
    where: dict[int, int] = {}  # memory -> likewise
    read = []
    for t in graph.inputs(op.id):
        m = graph.storage(t)
        read.append((*_seen_of(t), which.setdefault(t.id, len(which))))
        read.append((m.bytes, m.bytes_expr, m.role in STATE, where.setdefault(m.id, len(where))))
    return (
        *(op.target, op.kind, op.dtype, op.arguments, op.extent_expr),
        *(tuple(read), tuple(map(_seen_of, graph.outputs(op.id)))),
    )


def _seen_of(tensor: Tensor) -> tuple[Hashable, ...]:
    t = tensor
    return t.dtype, t.shape, t.shape_expr, t.bytes, t.bytes_expr, t.label


def _cost(graph: OpGraph, op: Op, routing: Routing | None) -> OpCost:
    extent = _extent(graph, op)
    inputs, outputs = _shapes(graph.inputs(op.id)), _shapes(graph.outputs(op.id))
    sized = any('"size"' in text for _, text in op.arguments)
    call = _Asked(
        base_name(op.target),
        op.kind,
        inputs,
        outputs,
        tuple(t.dtype for t in graph.inputs(op.id)),
        # Integers that stand for floats are computed with as these are.
        "float32" if op.dtype in QUANTISED_DTYPES and graph.is_float(op.dtype) else op.dtype,
        op.arguments,
        tuple(graph.meta.variables.items()) if sized else (),
    )
    cost = _arithmetic(call)
    if extent is not None and (shapes := _of_one_query(graph, op, *extent)):
        causal = _arithmetic(replace(call, inputs=shapes[0], outputs=shapes[1]))
        cost = replace(cost, causal_flops=causal.flops, causal_flops_expr=causal.flops_expr)
    reads, written = traffic(graph, op)
    if routing is not None:
        reads[routing.stack] = routing.bytes_read
        if cost.flops_status is not Status.UNSUPPORTED:
            cost = replace(cost, flops_status=Status.ESTIMATE)
        cost = replace(cost, assumption=routing.assumption)
    return replace(
        cost,
        read_bytes=sum(reads.values()),
        write_bytes=written,
        param_bytes=sum(size for t, size in reads.items() if graph.storage(t).role in STATE),
    )


_Known = tuple[tuple[int, ...], tuple[str, ...] | None]
"""The shape of a tensor with its formulas, None in a concrete trace."""


def _shapes(tensors: Sequence[Tensor]) -> tuple[_Known, ...]:
    return tuple((t.shape, t.shape_expr) for t in tensors)


@dataclass(frozen=True, slots=True)
class _Asked:
    """All that the FLOPs of an op depend on: equal ones are worked out once."""

    name: str
    kind: Kind
    inputs: tuple[_Known, ...]
    outputs: tuple[_Known, ...]
    input_dtypes: tuple[str, ...]
    dtype: str | None
    arguments: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, int], ...]
    """Of sizes among the arguments."""

    @property
    def symbolic(self) -> bool:
        return all(exprs is not None for _, exprs in (*self.inputs, *self.outputs))

    def signature(self, *, closed: bool) -> Signature:
        """In numbers, or ``closed`` in formulas."""
        sizes = dict(self.variables)

        def sized(text: str) -> Size:
            return parse(text) if closed else parse(text).evaluate(sizes)

        def shapes(tensors: Sequence[_Known]) -> Shapes:
            if not closed:
                return [shape for shape, _ in tensors]
            return [[*map(parse, exprs or ())] for _, exprs in tensors]

        return _call(
            self.input_dtypes,
            self.dtype,
            shapes(self.inputs),
            shapes(self.outputs),
            _told(self.arguments, sized),
        )


def _call(
    input_dtypes: Sequence[str],
    dtype: str | None,
    inputs: Shapes,
    outputs: Shapes,
    told: Mapping[str, Any],
) -> Signature:
    complexes = tuple(name in _REAL for name in input_dtypes)
    return Signature(inputs, outputs, told, complexes, dtype in _REAL)


def _told(arguments: Iterable[tuple[str, str]], size: Callable[[str], Size]) -> dict[str, Any]:
    """Arguments out of their JSON, see ``Op.arguments``."""

    def value(found: dict[str, Any]) -> Any:
        return size(found["size"]) if "size" in found else complex(*found["complex"])

    return {name: json.loads(text, object_hook=value) for name, text in arguments}


def _signature_of(
    graph: OpGraph, op: Op, inputs: Shapes, outputs: Shapes, size: Callable[[str], Size]
) -> Signature:
    dtypes = [t.dtype for t in graph.inputs(op.id)]
    return _call(dtypes, op.dtype, inputs, outputs, _told(op.arguments, size))


def gemm_shape(graph: OpGraph, op: Op) -> GemmSize | None:
    """(batch, m, n, k) of an annotated op that is a matrix product, as numbers or as formulas:
    whichever the shapes of the graph's tensors are."""
    entry = REGISTRY.get(base_name(op.target))
    if op.cost.gemm is None or entry is None or entry.gemm is None:
        return None
    inputs, outputs = ([t.shape for t in ts] for ts in (graph.inputs(op.id), graph.outputs(op.id)))
    return _gemm_of(entry.gemm, _signature_of(graph, op, inputs, outputs, parse))


def _gemm_of(gemm: GemmOf, signature: Signature) -> GemmSize:
    """The product of real matrices that a product is: of complex ones it is four, as many again."""
    batch, m, n, k = gemm(signature)
    return (4 * batch if signature.is_complex else batch), m, n, k


def flops_in_numbers(
    graph: OpGraph, op: Op, inputs: Shapes, outputs: Shapes, sizes: Mapping[str, int]
) -> int:
    """The FLOPs of an op that has no closed form, at ``sizes``."""
    signature = _signature_of(graph, op, inputs, outputs, lambda text: parse(text).evaluate(sizes))
    entry = REGISTRY[base_name(op.target)]
    counted = (entry.complex_flops if signature.is_complex else entry.flops)(signature)
    assert counted is not None  # it is known at the trace's own sizes
    return to_int(counted)


def _extent(graph: OpGraph, op: Op) -> tuple[int, str | None] | None:
    """An op's extent as a number and, in a symbolic trace, as a formula."""
    if op.extent_expr is None:
        return None
    number = parse(op.extent_expr).evaluate(graph.meta.variables)
    return number, op.extent_expr if graph.meta.symbolic else None


def _of_one_query(
    graph: OpGraph, op: Op, pairs: int, pairs_expr: str | None
) -> tuple[tuple[_Known, ...], tuple[_Known, ...]] | None:
    """The shapes that inputs and outputs of an attention's op would have, were all pairs that the
    mask lets through those of one query. None for an op of another sort."""
    inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
    one, many = (1, "1"), (pairs, pairs_expr)
    match op.kind:
        case Kind.ATTENTION:  # [..., queries, d], [..., keys, d], [..., keys, d]
            axes: list[tuple[Any, Any]] = [(one, None), (many, None), (many, None)]
        case Kind.SOFTMAX:
            axes = [(one, many)]
        case Kind.MATMUL if outputs[0].label == "attention_scores":
            axes = [(one, None), (None, many)]
            if len(inputs) > 2:  # what it adds to the product comes first
                axes = [(None, None), *axes]
        case Kind.MATMUL if inputs[0].label == "attention_probs":
            axes = [(one, many), (many, None)]
        case _:
            return None
    made = (one, many) if outputs[0].label != "attention_output" else (one, None)
    return (
        tuple(_reshaped(t, *last) for t, last in zip(inputs, axes, strict=False)),
        (_reshaped(outputs[0], *made),),
    )


def _reshaped(tensor: Tensor, *last: tuple[int, str | None] | None) -> _Known:
    """A tensor's shape with other sizes for the last two axes, None for one that stays."""
    shape, exprs = [*tensor.shape], [*(tensor.shape_expr or ())]
    for axis, size in zip((-2, -1), last, strict=True):
        if size is not None:
            shape[axis], text = size
            if exprs and text is not None:
                exprs[axis] = text
    return tuple(shape), tuple(exprs) if tensor.shape_expr is not None else None


@lru_cache(maxsize=4096)
def _arithmetic(asked: _Asked) -> OpCost:
    """The FLOPs of an op; the many equal ones are worked out once."""
    entry = REGISTRY.get(asked.name)
    floating = asked.dtype is not None and asked.dtype.startswith(("float", "bfloat", "complex"))
    if entry is None:
        moves = asked.kind in (Kind.COPY, Kind.EMBEDDING)
        return _no_flops(asked.symbolic) if moves else OpCost()
    if not floating and asked.kind not in PRODUCTS:
        return _no_flops(asked.symbolic)
    signature = asked.signature(closed=False)
    flops, status = entry.flops, entry.status
    if signature.is_complex:
        flops, status = entry.complex_flops, entry.complex_status
    counted = flops(signature)
    if counted is None:
        return OpCost()
    closed = flops(asked.signature(closed=True)) if asked.symbolic else None
    return OpCost(
        gemm=Gemm(*map(to_int, _gemm_of(entry.gemm, signature))) if entry.gemm else None,
        flops=to_int(counted),
        flops_expr=None if closed is None else str(closed),
        flops_status=status,
    )


def _no_flops(symbolic: bool) -> OpCost:
    return OpCost(flops=0, flops_expr="0" if symbolic else None, flops_status=Status.ZERO)


@dataclass(frozen=True, slots=True)
class FlopTotals:
    """FLOPs of a graph, by how far they can be trusted."""

    products: int
    """FLOPs of linears, matmuls and attentions."""
    products_expr: str | None
    """``products`` as a formula, None for a concrete trace."""
    causal: int | None
    """``products``, where an attention counts only the pairs of a query and a key that its mask
    lets through; None where a mask is not known."""
    causal_expr: str | None
    """``causal`` as a formula, None for a concrete trace."""
    other: int
    """FLOPs of all other supported ops, estimates among them."""
    unsupported: Mapping[str, int]
    """target -> number of ops that no total includes."""
    products_missing: Mapping[str, int]
    """Those of ``unsupported`` that are products, or may be products:
    ``products`` is complete where there is not one."""
    coverage: float
    """Share of the ops that compute or move data whose FLOPs are known."""
    routed: int | None = None
    """``products``, were each token run by the experts alone that it goes to; None where no code
    runs all experts on every token (``experts.mixed``)."""
    routed_expr: str | None = None
    """``routed`` as a formula; None for a concrete trace too."""
    products_status: Status = Status.EXACT
    """Of ``products``: ``exact``, as torch's counter counts them, or an ``estimate`` where one of
    them is one. Not where that is of the weights alone that an op reads: which experts rows go to
    does not change how many rows there are."""


def _in_attention(graph: OpGraph, op: Op) -> bool:
    labels = ("attention_scores", "attention_output")
    return op.kind is Kind.ATTENTION or graph.outputs(op.id)[0].label in labels


def numbered(targets: Mapping[str, int]) -> str:
    """``3 x aten.a, 1 x aten.b``: how many ops of each target, in the order of their names."""
    return ", ".join(f"{n} x {target}" for target, n in sorted(targets.items()))


def refuse_unsupported(graph: OpGraph) -> None:
    """Raise CutedgeError, naming targets, where an op of an annotated graph has no formula."""
    if lacking := total_flops(graph).unsupported:
        raise CutedgeError(
            f"{graph.meta.model}: there is no cost formula for {numbered(lacking)}; leave "
            "--strict out to take totals without them"
        )


def total_flops(graph: OpGraph) -> FlopTotals:
    """Sum the FLOPs of an annotated graph."""
    products, causal, other = 0, 0, 0
    formulas: Counter[str] = Counter()  # of ``products``: many are equal
    causal_formulas: Counter[str] = Counter()
    masks_known = True
    products_status = Status.EXACT
    unsupported: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    idle, idle_closed, mixing = Fraction(0), formula(0), mixed(graph)
    for op in graph.ops:
        if op.id in mixing and op.cost.flops is not None:  # the rest of them is for nothing
            past = 1 - mixing[op.id].share
            idle += op.cost.flops * past
            idle_closed += parse(op.cost.flops_expr or "0") * past
        if op.cost.flops is None:
            unsupported[op.target] += 1
            if may_multiply(op):
                missing[op.target] += 1
        elif op.kind in PRODUCTS:
            if op.cost.flops_status is Status.ESTIMATE and op.cost.assumption is None:
                products_status = Status.ESTIMATE
            products += op.cost.flops
            formulas[op.cost.flops_expr or "0"] += 1
            if _in_attention(graph, op):
                masks_known = masks_known and op.cost.causal_flops is not None
                causal += op.cost.causal_flops or 0
                causal_formulas[op.cost.causal_flops_expr or "0"] += 1
            else:
                causal += op.cost.flops
                causal_formulas[op.cost.flops_expr or "0"] += 1
        else:
            other += op.cost.flops
    working = sum(op.kind not in FREE for op in graph.ops)
    closed, causal_closed = _summed(formulas), _summed(causal_formulas)
    return FlopTotals(
        products=products,
        products_expr=str(closed) if graph.meta.symbolic else None,
        causal=causal if masks_known else None,
        causal_expr=str(causal_closed) if masks_known and graph.meta.symbolic else None,
        other=other,
        unsupported=dict(unsupported),
        products_missing=dict(missing),
        coverage=(working - unsupported.total()) / working if working else 1.0,
        routed=products - int(idle) if mixing else None,
        routed_expr=str(closed - idle_closed) if mixing and graph.meta.symbolic else None,
        products_status=products_status,
    )


def _summed(formulas: Mapping[str, int]) -> Formula:
    """The sum of formulas, each as often as it is there."""
    return sum((parse(text) * times for text, times in formulas.items()), formula(0))
