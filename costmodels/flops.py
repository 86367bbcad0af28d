"""FLOPs and memory traffic of ATen ops: the one registry of cost formulas.

A formula is a pure function of the shapes of an op's tensor inputs and outputs. Sizes may be
integers or ``Formula``s: the same function gives the number and the closed form. Conventions:

- 1 multiply-accumulate = 2 FLOPs. A matrix product counts 2*batch*m*n*k, bias not included, as
  torch.utils.flop_counter does.
  A product of integers counts its operations likewise.
- 1 FLOP for each floating-point add, subtract, multiply, divide, maximum or negation of an element
  (``exact``); comparisons, selections, and other integer and boolean work count 0 (``zero``).
- A transcendental counts as 1, so what is built of several is the number of steps that its
  definition takes (``estimate``: hardware differs).
- Moves, casts, gathers, views and constants count 0 FLOPs (``zero``).
- Which experts' weights are read depends on the tokens; it is assumed that each goes to k of E,
  uniformly and independently (``estimate``, with the assumption beside it). The FLOPs of those
  products rest on no assumption: a row meets one expert, whichever that is.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum, auto
from fractions import Fraction
from functools import lru_cache, reduce
from operator import mul
from typing import Any

from costmodels.experts import GROUPED, STATE, routing_of
from tracer.errors import CutedgeError
from tracer.formula import Formula, formula, greatest, least, parse
from tracer.graph import Gemm, Kind, Op, OpCost, OpGraph, Status, Tensor
from tracer.kinds import base_name, kind_of, writes_in_place

Size = Formula | int
Shape = Sequence[Size]
Shapes = Sequence[Shape]
Formulate = Callable[[Shapes, Shapes], Size]
"""(shapes of the tensor inputs, of the outputs) -> FLOPs; of an op that has an extent, this stands
behind the inputs as a shape of one axis."""
GemmOf = Callable[[Shapes, Shapes], tuple[Size, Size, Size, Size]]


class Needs(Enum):
    """What a formula takes."""

    SHAPES = auto()
    EXTENT = auto()
    """Shapes and what they do not tell: ``Op.extent_expr``."""
    EXTENT_IN_NUMBERS = auto()
    """The same, and all of it in numbers: there is no closed form."""


@dataclass(frozen=True, slots=True)
class _Entry:
    status: Status
    flops: Formulate
    gemm: GemmOf | None = None
    needs: Needs = Needs.SHAPES


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


def _gemm(names: str) -> Callable[[GemmOf], GemmOf]:
    """Register a function that gives (batch, m, n, k) of a matrix product."""

    def add(function: GemmOf) -> GemmOf:
        _register(names, _Entry(Status.EXACT, lambda i, o: 2 * _count(function(i, o)), function))
        return function

    return add


# --- matrix products ------------------------------------------------------------------------------
# No shape tells what an einsum multiplies, nor whether a "convolution" is a transposed one.


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


@_gemm(" ".join(sorted(GROUPED)))
def _grouped_mm(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    """[m, k] x [groups, k, n]: a row meets the matrix of its group alone, however rows are split.

    Likewise where k or n is what is split; two stacks of matrices are multiplied pair by pair.
    """
    a, b = inputs[0], inputs[1]
    return a[0] if len(a) == len(b) == 3 else 1, a[-2], b[-1], a[-1]


@_gemm("_scaled_mm _int_mm")
def _scaled_mm(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    return _matmul(inputs[:2], outputs)  # then scales, and maybe a bias


@_gemm("conv1d conv2d conv3d")
def _conv(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    """A product for each group of channels; its rows are the places that the kernel is put to."""
    x, kernel = inputs[0], inputs[1]  # [..., channels, *size], [out, channels / groups, *size]
    axis = 1 - len(kernel)  # of the channels, which a batch may stand before
    groups = formula(x[axis]) // kernel[1]
    places = _count(outputs[0][:axis]) * _count(outputs[0][axis + 1 :])
    return groups, places, formula(kernel[0]) // groups, _count(kernel[1:])


@_gemm("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    """Every place of the input is spread over a kernel's; what falls together is added up."""
    x, kernel = inputs[0], inputs[1]  # [..., channels, *size], [channels, out / groups, *size]
    axis = 1 - len(kernel)
    groups = formula(outputs[0][axis]) // kernel[1]
    places = _count(x[:axis]) * _count(x[axis + 1 :])
    return groups, places, _count(kernel[1:]), formula(kernel[0]) // groups


def _attention(inputs: Shapes, outputs: Shapes) -> Size:
    """Both products over the whole square, q k^T and probabilities x v, as torch counts them."""
    q, k, v = inputs[:3]  # [..., heads, queries, d], [..., kv heads, keys, d], [..., keys, d_v]
    return 2 * _count(q[:-1]) * k[-2] * q[-1] + 2 * _count(q[:-1]) * k[-2] * v[-1]


_register(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps flex_attention",
    _Entry(Status.EXACT, _attention),
)

# --- element by element ---------------------------------------------------------------------------


def _each_output(steps: int) -> Formulate:
    return lambda inputs, outputs: steps * _count(outputs[0])


def _each_input(steps: int) -> Formulate:
    return lambda inputs, outputs: steps * _count(inputs[0])


def _none(inputs: Shapes, outputs: Shapes) -> Size:
    return 0


_register(
    "add sub rsub mul div true_divide neg abs square maximum minimum fmax fmin relu threshold "
    "prelu frac diff clamp clamp_min clamp_max clip",
    _Entry(Status.EXACT, _each_output(1)),
)
_register("addcmul addcdiv", _Entry(Status.EXACT, _each_output(2)))
_register("lerp", _Entry(Status.EXACT, _each_output(3)))  # a + w*(b - a)
_register("index_add", _Entry(Status.EXACT, lambda i, o: _count(i[-1])))  # what is added
_register("scatter_add", _Entry(Status.EXACT, lambda i, o: _count(i[1])))  # each index adds one
_register("scatter_reduce", _Entry(Status.ESTIMATE, lambda i, o: _count(i[1])))  # or a maximum ...
_register("col2im", _Entry(Status.EXACT, _each_input(1)))  # each element of a patch is added

for _steps, _names in {
    1: "sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh atan "
    "atan2 asin acos erf erfc pow floor ceil round trunc leaky_relu relu6 hardtanh softshrink "
    "hardshrink",
    2: "floor_divide remainder fmod",  # divide, then round or take what the rounded part leaves
    3: "softplus elu selu celu hardsigmoid",  # exp, and an add and a log, or a subtract and a
    # product; or: clamp(x + 3, 0, 6) / 6, and hardswish times x
    4: "sigmoid logsigmoid log_sigmoid log_sigmoid_forward hardswish",  # negate, exp, add, and
    # divide or log
    5: "silu mish glu",  # a sigmoid, or a tanh of a softplus, and a product
    8: "gelu",  # 0.5*x*(1 + erf(x/sqrt 2)), or the tanh of a cubic
}.items():
    _register(_names, _Entry(Status.ESTIMATE, _each_output(_steps)))

_register(
    "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not __and__ __or__ "
    "__xor__ logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __lshift__ __rshift__ "
    "isnan isinf isfinite sign nan_to_num fill zero dropout native_dropout any all argmax argmin "
    "topk sort argsort median count_nonzero bincount histc",
    _Entry(Status.ZERO, _none),
)
"""Selections; a dropout is none in evaluation."""

# --- along an axis --------------------------------------------------------------------------------

_register(
    "softmax _softmax _safe_softmax log_softmax _log_softmax",
    _Entry(Status.ESTIMATE, _each_output(5)),
)
"""Maximum, subtract, exp, sum, divide (or subtract the log of the sum)."""

_register(
    "layer_norm native_layer_norm group_norm native_group_norm instance_norm",
    _Entry(Status.ESTIMATE, _each_input(8)),
)
"""Mean (1), variance (3), subtract, divide, scale, shift."""

_register(
    "batch_norm native_batch_norm _native_batch_norm_legit_no_training",
    _Entry(Status.ESTIMATE, _each_input(4)),
)
"""Subtract, divide, scale, shift: mean and variance are known when a model is evaluated."""

_register("rms_norm _fused_rms_norm", _Entry(Status.ESTIMATE, _each_input(4)))
"""Square, mean, times rsqrt, scale."""

_register("mean", _Entry(Status.EXACT, _each_input(1)))
_register(
    "sum nansum prod", _Entry(Status.EXACT, lambda i, o: formula(_count(i[0])) - _count(o[0]))
)
_register("embedding_bag", _Entry(Status.ESTIMATE, lambda i, o: _count(i[1]) * i[0][-1]))
"""A sum or mean of rows of the table, each added once."""
_register(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d",
    _Entry(Status.ESTIMATE, _each_input(1)),
)
"""Of each part of the input; where parts do not divide it evenly, they overlap a little."""
_register("amax amin max min cummax cummin", _Entry(Status.ESTIMATE, _each_input(1)))
_register("cumsum cumprod", _Entry(Status.ESTIMATE, _each_input(1)))
"""One after the other; what adds in parallel takes more steps."""
_register("logcumsumexp", _Entry(Status.ESTIMATE, _each_input(5)))
"""One after the other: the larger of two, subtract, exp, log(1 + that), add."""
_register("var std var_mean", _Entry(Status.ESTIMATE, _each_input(4)))
"""Mean (1), subtract, square, sum."""
_register("linalg_vector_norm norm", _Entry(Status.ESTIMATE, _each_input(2)))
"""Square, sum; the root of the few results is left out."""
_register("logsumexp", _Entry(Status.ESTIMATE, _each_input(4)))
"""Maximum, subtract, exp, sum."""
_register("linalg_solve_triangular", _Entry(Status.ESTIMATE, lambda i, o: _count(o[0]) * i[0][-1]))
"""Each of n rows takes the rows solved before it (n/2 of them, a product and a subtract each)."""

# --- what shapes do not tell: the extent of an op (``Op.extent_expr``) ----------------------------


def _fft(steps: Fraction) -> Formulate:
    def flops(inputs: Shapes, outputs: Shapes) -> Size:
        *read, (points,) = inputs
        size, number = max(_whole(_count(s)) for s in (*read, *outputs)), Decimal(_whole(points))
        logarithm = number.ln() / Decimal(2).ln()  # as a Decimal the same on every machine
        return round(size * Fraction(logarithm) * steps)

    return flops


# A window at the border is smaller, by as much as lies in the padding.
_register(
    "avg_pool1d avg_pool2d avg_pool3d",  # the sum of a window, and a division
    _Entry(Status.ESTIMATE, lambda i, o: _count(o[0]) * i[-1][0], needs=Needs.EXTENT),
)
_register(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices",
    _Entry(Status.ESTIMATE, lambda i, o: _count(o[0]) * (i[-1][0] - 1), needs=Needs.EXTENT),
)
# n points take 5 n log2 n; half of that where one side of the transform is real.
_register(
    "fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn",
    _Entry(Status.ESTIMATE, _fft(Fraction(5)), needs=Needs.EXTENT_IN_NUMBERS),
)
_register(
    "fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn",
    _Entry(Status.ESTIMATE, _fft(Fraction(5, 2)), needs=Needs.EXTENT_IN_NUMBERS),
)

# --- memory traffic -------------------------------------------------------------------------------
# That of a perfect kernel: each distinct input is read once, however often the arithmetic goes over
# it (a softmax, a norm), and no more of a memory than there is (an expanded tensor); each result is
# written once. Nothing between is: an attention in one op neither writes nor reads its scores.
# A result of an exported graph is a new tensor: what puts rows into another one writes that whole,
# and reads of it what stays. An op that ends in _ writes into its first argument instead.

Moved = tuple[Sequence[Any], Any]
"""Bytes read of each input, and bytes written: numbers, or formulas where the sizes are."""


def _reads_and_writes_all(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    return [t.bytes for t in inputs], sum(t.bytes for t in outputs)


def _gather(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """The rows asked for and their numbers."""
    return [outputs[0].bytes, *(t.bytes for t in inputs[1:])], outputs[0].bytes


def _gather_and_sum(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """A row of the table for each number."""
    table, numbers, *rest = inputs
    row = table.bytes // table.shape[0]
    read = [numbers.numel * row, numbers.bytes, *(t.bytes for t in rest)]
    return read, sum(t.bytes for t in outputs)


def _put(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """Other values in some places of a copy: it reads those values and what they leave."""
    base, *rest = (t.bytes for t in inputs)
    put = rest[-1] if inputs[-1].dtype == inputs[0].dtype else 0  # else one number
    return [greatest(base - put, 0), *rest], outputs[0].bytes


def _put_in_place(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """Other values in some places: it reads and writes those values."""
    put = inputs[-1].bytes if inputs[-1].dtype == inputs[0].dtype else outputs[0].bytes
    return [0, *(t.bytes for t in inputs[1:])], least(put, outputs[0].bytes)


def _add_in_place(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """What is added to is read and written in those places alone."""
    put = least(inputs[-1].bytes, outputs[0].bytes)
    return [put, *(t.bytes for t in inputs[1:])], put


_TRAFFIC = {
    name: rule
    for rule, names in (
        (_gather, "embedding index index_select gather take take_along_dim"),
        (_gather_and_sum, "embedding_bag"),
        (_put, "index_put index_copy scatter slice_scatter select_scatter diagonal_scatter"),
        (_put_in_place, "index_put_ index_copy_ scatter_ copy_ fill_ zero_"),
        (_add_in_place, "index_add_ scatter_add_ scatter_reduce_"),
    )
    for name in names.split()
}
"""Of the ops that touch less than all that they read and write; ``name_`` is the one in place."""


def traffic(graph: OpGraph, op: Op) -> tuple[dict[Tensor, Any], Any]:
    """(bytes read of each distinct input, bytes written)"""
    inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
    name = base_name(op.target)
    if writes_in_place(op.target):
        name = f"{name}_"
        # Other tensors in the same memory come along: they see what is written, no more of it is.
        others = len(outputs) - 1
        inputs, outputs = inputs[: len(inputs) - others], outputs[:1]
    if not inputs or not outputs:
        return {}, sum(t.bytes for t in outputs)
    read, written = _TRAFFIC.get(name, _reads_and_writes_all)(inputs, outputs)
    by_tensor: dict[Tensor, Any] = {}
    left = {stored: stored.bytes for stored in map(graph.storage, inputs)}
    for tensor, size in dict(zip(inputs, read, strict=True)).items():
        stored = graph.storage(tensor)
        by_tensor[tensor] = least(size, left[stored])
        left[stored] -= by_tensor[tensor]
    return by_tensor, written


# --- the whole graph ------------------------------------------------------------------------------

FREE = frozenset({Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT})
"""What costs nothing at run time."""

PRODUCTS = frozenset({Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION})
"""The kinds of matrix product."""


def computed_in(graph: OpGraph, op: Op) -> str | None:
    """The dtype that an op computes in: that of a product's operands, of another op's result."""
    inputs = graph.inputs(op.id)
    return inputs[0].dtype if op.kind in PRODUCTS and inputs else op.dtype


def annotate(graph: OpGraph) -> OpGraph:
    """The graph with every op's cost filled in.

    Views, constants, inputs and the output cost nothing at run time. An op whose name the registry
    lacks gets status ``unsupported`` and no FLOPs; its memory traffic is known all the same.
    """
    return graph.with_ops(replace(op, cost=_cost(graph, op)) for op in graph.ops)


def _cost(graph: OpGraph, op: Op) -> OpCost:
    if op.is_view or op.kind in FREE:
        return _no_flops(bool(graph.meta.symbolic))
    name, extent = base_name(op.target), _extent(graph, op)
    inputs, outputs = _shapes(graph.inputs(op.id)), _shapes(graph.outputs(op.id))
    cost = _arithmetic(name, op.kind, inputs, outputs, op.dtype, extent)
    if extent is not None and (shapes := _of_one_query(graph, op, *extent)):
        causal = _arithmetic(name, op.kind, *shapes, op.dtype, None)
        cost = replace(cost, causal_flops=causal.flops, causal_flops_expr=causal.flops_expr)
    reads, written = traffic(graph, op)
    if routing := routing_of(graph, op):
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


def gemm_shape(op: Op, inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size] | None:
    """(batch, m, n, k) of an annotated op that is a matrix product, from numbers or formulas."""
    entry = _REGISTRY.get(base_name(op.target))
    return entry.gemm(inputs, outputs) if op.cost.gemm and entry and entry.gemm else None


def flops_in_numbers(op: Op, inputs: Shapes, outputs: Shapes, extent: int) -> int:
    """The FLOPs of an op that has no closed form."""
    return _whole(_REGISTRY[base_name(op.target)].flops((*inputs, (extent,)), outputs))


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
def _arithmetic(
    name: str, kind: Kind, inputs: tuple[_Known, ...], outputs: tuple[_Known, ...],
    dtype: str | None, extent: tuple[int, str | None] | None,
) -> OpCost:  # fmt: skip
    """The FLOPs of an op; the many equal ones are worked out once."""
    entry = _REGISTRY.get(name)
    symbolic = all(exprs is not None for _, exprs in (*inputs, *outputs))
    floating = dtype is not None and dtype.startswith(("float", "bfloat", "complex"))
    if entry is None:
        moves = kind in (Kind.COPY, Kind.EMBEDDING)
        return _no_flops(symbolic) if moves else OpCost()
    if not floating and kind not in PRODUCTS:
        return _no_flops(symbolic)
    if entry.needs is not Needs.SHAPES:
        if extent is None:
            return OpCost()
        number, text = extent
        inputs = (*inputs, ((number,), None if text is None else (text,)))
    shapes = [[shape for shape, _ in tensors] for tensors in (inputs, outputs)]
    exprs = [[list(map(parse, e or ())) for _, e in tensors] for tensors in (inputs, outputs)]
    closed = symbolic and entry.needs is not Needs.EXTENT_IN_NUMBERS
    return OpCost(
        gemm=Gemm(*map(_whole, entry.gemm(*shapes))) if entry.gemm else None,
        flops=_whole(entry.flops(*shapes)),
        flops_expr=str(entry.flops(*exprs)) if closed else None,
        flops_status=entry.status,
    )


def _no_flops(symbolic: bool) -> OpCost:
    return OpCost(flops=0, flops_expr="0" if symbolic else None, flops_status=Status.ZERO)


def _whole(size: Size) -> int:
    return formula(size).evaluate({})


@dataclass(frozen=True, slots=True)
class FlopTotals:
    """FLOPs of a graph, by how far they can be trusted."""

    products: int
    """FLOPs of linears, matmuls and attentions: exact, and what torch's counter counts.

    Also where the op is an ``estimate`` for the weights that it reads: which experts rows go to
    does not change how many rows there are.
    """
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
    """Those of ``unsupported`` that are products, or of which it is not known that they are none:
    ``products`` is complete where there is not one."""
    coverage: float
    """Share of the ops that compute or move data whose FLOPs are known."""


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
    closed, causal_closed, masks_known = formula(0), formula(0), True
    unsupported: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for op in graph.ops:
        if op.cost.flops is None:
            unsupported[op.target] += 1
            if op.kind in PRODUCTS or op.kind is Kind.OTHER:  # what is not known may multiply
                missing[op.target] += 1
        elif op.kind in PRODUCTS:
            products += op.cost.flops
            closed += parse(op.cost.flops_expr or "0")
            if _in_attention(graph, op):
                masks_known = masks_known and op.cost.causal_flops is not None
                causal += op.cost.causal_flops or 0
                causal_closed += parse(op.cost.causal_flops_expr or "0")
            else:
                causal += op.cost.flops
                causal_closed += parse(op.cost.flops_expr or "0")
        else:
            other += op.cost.flops
    working = sum(op.kind not in FREE for op in graph.ops)
    return FlopTotals(
        products=products,
        products_expr=str(closed) if graph.meta.symbolic else None,
        causal=causal if masks_known else None,
        causal_expr=str(causal_closed) if masks_known and graph.meta.symbolic else None,
        other=other,
        unsupported=dict(unsupported),
        products_missing=dict(missing),
        coverage=(working - unsupported.total()) / working if working else 1.0,
    )
