"""FLOPs and memory traffic of ATen ops: the one registry of cost formulas.

A formula is a pure function of the shapes of an op's tensor inputs and outputs. Sizes may be
integers or ``Formula``s: the same function gives the number and the closed form. Conventions:

- 1 multiply-accumulate = 2 FLOPs. A matrix product counts 2*batch*m*n*k, bias not included, as
  torch.utils.flop_counter does.
- 1 FLOP for each floating-point add, subtract, multiply, divide, maximum or negation of an element
  (``exact``); comparisons, selections, integer and boolean work count 0 (``zero``).
- A transcendental counts as 1, so what is built of several is the number of steps that its
  definition takes (``estimate``: hardware differs).
- Moves, casts, gathers, views and constants count 0 FLOPs (``zero``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import mul

from tracer.formula import Formula, formula, parse
from tracer.graph import Gemm, Kind, Op, OpCost, OpGraph, Role, Status, Tensor
from tracer.kinds import base_name, kind_of

Size = Formula | int
Shape = Sequence[Size]
Shapes = Sequence[Shape]


@dataclass(frozen=True, slots=True)
class _Entry:
    status: Status
    flops: Callable[[Shapes, Shapes], Size]
    gemm: Callable[[Shapes, Shapes], tuple[Size, Size, Size, Size]] | None = None


_REGISTRY: dict[str, _Entry] = {}


def _register(names: str, entry: _Entry) -> None:
    for name in names.split():
        if name in _REGISTRY:
            raise ValueError(f"two cost formulas for {name}")
        if kind_of(f"aten.{name}") is Kind.OTHER:
            raise ValueError(f"a cost formula for {name}, which tracer.kinds does not know")
        _REGISTRY[name] = entry


def _count(shape: Shape) -> Size:
    return reduce(mul, shape, 1)


GemmOf = Callable[[Shapes, Shapes], tuple[Size, Size, Size, Size]]


def _gemm(names: str) -> Callable[[GemmOf], GemmOf]:
    """Register a function that gives (batch, m, n, k) of a matrix product."""

    def add(function: GemmOf) -> GemmOf:
        _register(names, _Entry(Status.EXACT, lambda i, o: 2 * _count(function(i, o)), function))
        return function

    return add


# --- matrix products ------------------------------------------------------------------------------


@_gemm("linear")
def _linear(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    x, weight = inputs[0], inputs[1]  # [..., k] x [n, k]
    return 1, _count(x[:-1]), weight[0], weight[-1]


@_gemm("matmul mm bmm mv dot")
def _matmul(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    a, b = inputs[0], inputs[1]
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    # A stack of matrices times one matrix is a single tall product, as torch carries it out.
    if len(b) <= 2:
        return 1, _count(a[:-1]), n, a[-1]
    batch = outputs[0][:-2] if len(a) > 1 else outputs[0][:-1]
    return _count(batch), m, n, a[-1]


@_gemm("addmm baddbmm")
def _addmm(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    return _matmul(inputs[1:], outputs)


def _attention(inputs: Shapes, outputs: Shapes) -> Size:
    """Both products over the whole square, q k^T and probabilities x v, as torch counts them."""
    q, k, v = inputs[:3]  # [..., heads, queries, d], [..., kv heads, keys, d], [..., keys, d_v]
    return 2 * _count(q[:-1]) * k[-2] * q[-1] + 2 * _count(q[:-1]) * k[-2] * v[-1]


_register("scaled_dot_product_attention", _Entry(Status.EXACT, _attention))

# --- element by element ---------------------------------------------------------------------------


def _each_output(steps: int) -> Callable[[Shapes, Shapes], Size]:
    return lambda inputs, outputs: steps * _count(outputs[0])


def _each_input(steps: int) -> Callable[[Shapes, Shapes], Size]:
    return lambda inputs, outputs: steps * _count(inputs[0])


_register(
    "add sub rsub mul div true_divide neg abs square maximum minimum relu "
    "clamp clamp_min clamp_max",
    _Entry(Status.EXACT, _each_output(1)),
)
_register("addcmul addcdiv", _Entry(Status.EXACT, _each_output(2)))

for _steps, _names in {
    1: "sqrt rsqrt reciprocal exp log sin cos pow tanh erf floor",
    4: "sigmoid",  # negate, exp, add, divide
    5: "silu",  # a sigmoid and a product
    8: "gelu",  # 0.5*x*(1 + erf(x/sqrt 2)), or the tanh of a cubic
}.items():
    _register(_names, _Entry(Status.ESTIMATE, _each_output(_steps)))

_register(
    "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not __and__ __or__ "
    "bitwise_and bitwise_or bitwise_not isnan isinf",
    _Entry(Status.ZERO, lambda inputs, outputs: 0),
)

# --- along an axis --------------------------------------------------------------------------------

_register("softmax _softmax _safe_softmax", _Entry(Status.ESTIMATE, _each_output(5)))
"""Maximum, subtract, exp, sum, divide."""

_register("layer_norm native_layer_norm", _Entry(Status.ESTIMATE, _each_input(8)))
"""Mean (1), variance (3), subtract, divide, scale, shift."""

_register("rms_norm", _Entry(Status.ESTIMATE, _each_input(4)))
"""Square, mean, times rsqrt, scale."""

_register("mean", _Entry(Status.EXACT, _each_input(1)))
_register("sum cumsum", _Entry(Status.EXACT, lambda i, o: formula(_count(i[0])) - _count(o[0])))
_register("amax amin max min", _Entry(Status.ESTIMATE, _each_input(1)))

# --- the whole graph ------------------------------------------------------------------------------

_MOVES = frozenset({Kind.COPY, Kind.VIEW, Kind.EMBEDDING, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT})
_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "take", "take_along_dim"})


def annotate(graph: OpGraph) -> OpGraph:
    """The graph with every op's cost filled in.

    Views, constants, inputs and the output cost nothing at run time. An op whose name the registry
    lacks gets status ``unsupported`` and no FLOPs; its memory traffic is known all the same.
    """
    known: dict[tuple[object, ...], OpCost] = {}
    ops = []
    for op in graph.ops:
        inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
        key = (op.target, op.kind, *((t.dtype, t.shape, t.role, _stored(graph, t)) for t in inputs))
        if key not in known:
            known[key] = _cost(graph, op, inputs, outputs)
        ops.append(replace(op, cost=known[key]))
    return graph.with_ops(ops)


def _stored(graph: OpGraph, tensor: Tensor) -> int:
    """Bytes of memory that reading a tensor touches: expanded ones are smaller than they look."""
    return min(tensor.bytes, graph.storage(tensor).bytes)


def _cost(graph: OpGraph, op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> OpCost:
    if op.is_view or op.kind in (Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT):
        return OpCost(flops=0, flops_expr="0", flops_status=Status.ZERO)
    distinct = {t.id: t for t in inputs}.values()
    reads = [_stored(graph, t) for t in distinct]
    if base_name(op.target) in _GATHERS:  # only the rows that are asked for
        reads = [sum(t.bytes for t in outputs), *reads[1:]]
        if op.kind is Kind.EMBEDDING:
            reads = [reads[0], _stored(graph, inputs[1])]
    state = (Role.PARAMETER, Role.BUFFER)
    cost = OpCost(
        read_bytes=sum(reads),
        write_bytes=sum(t.bytes for t in outputs),
        param_bytes=sum(t.bytes for t in distinct if graph.storage(t).role in state),
    )
    entry = _REGISTRY.get(base_name(op.target))
    floating = not outputs or outputs[0].dtype.startswith(("float", "bfloat", "complex"))
    if op.kind in _MOVES or (entry is not None and not floating):
        return replace(cost, flops=0, flops_expr="0", flops_status=Status.ZERO)
    if entry is None:
        return cost
    shapes = [t.shape for t in inputs], [t.shape for t in outputs]
    flops = formula(entry.flops(*shapes)).evaluate({})
    symbolic = all(t.shape_expr is not None for t in (*inputs, *outputs))
    return replace(
        cost,
        gemm=Gemm(*map(_whole, entry.gemm(*shapes))) if entry.gemm else None,
        flops=flops,
        flops_expr=str(entry.flops(*(map(_shape_formulas, (inputs, outputs)))))
        if symbolic
        else None,
        flops_status=entry.status,
    )


def _whole(size: Size) -> int:
    return formula(size).evaluate({})


def _shape_formulas(tensors: Sequence[Tensor]) -> list[list[Formula]]:
    return [[parse(dim) for dim in tensor.shape_expr or ()] for tensor in tensors]


@dataclass(frozen=True, slots=True)
class FlopTotals:
    """FLOPs of a graph, by how far they can be trusted."""

    products: int
    """FLOPs of linears, matmuls and attentions: exact, and what torch's counter counts."""
    products_expr: str | None
    """``products`` as a formula, None for a concrete trace."""
    other: int
    """FLOPs of all other supported ops, estimates among them."""
    unsupported: Mapping[str, int]
    """target -> number of ops that no total includes."""
    coverage: float
    """Share of the ops that compute or move data whose FLOPs are known."""


def total_flops(graph: OpGraph) -> FlopTotals:
    """Sum the FLOPs of an annotated graph."""
    products, other, closed = 0, 0, formula(0)
    unsupported: dict[str, int] = {}
    for op in graph.ops:
        if op.cost.flops is None:
            unsupported[op.target] = unsupported.get(op.target, 0) + 1
        elif op.kind in (Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION):
            products += op.cost.flops
            closed += parse(op.cost.flops_expr or "0")
        else:
            other += op.cost.flops
    working = sum(op.kind not in (Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT)
                  for op in graph.ops)  # fmt: skip
    return FlopTotals(
        products=products,
        products_expr=str(closed) if graph.meta.symbolic else None,
        other=other,
        unsupported=unsupported,
        coverage=1 - sum(unsupported.values()) / working if working else 1.0,
    )
