"""FLOPs of ATen ops: the one registry of cost formulas.

A formula is a pure function of a ``Signature``: the shapes of an op's tensors, and what it is told
beside them. Sizes may be integers or ``Formula``s: the same function gives the number and the
closed form. Conventions:

- 1 multiply-accumulate = 2 FLOPs. A matrix product counts 2*batch*m*n*k, bias and factors not
  included, as torch.utils.flop_counter does. A product of integers counts its operations likewise.
- An op that multiplies matrices several times (an LSTM, an attention) counts its products alone, as
  if each were an op of its own.
- 1 FLOP for each floating-point add, subtract, multiply, divide, maximum or negation of an element
  (``exact``); comparisons, selections, and other integer and boolean work count 0 (``zero``).
- A transcendental counts as 1, so what is built of several is the number of steps that its
  definition takes (``estimate``: hardware differs). To draw a random number counts as 1.
- Of complex numbers the operations of their real and imaginary parts are counted: 2 an addition, 6
  a multiplication (2 by a real number), 8 a multiply-accumulate: 4 products of real matrices.
- Moves, casts, gathers, views and constants count 0 FLOPs (``zero``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from math import prod
from operator import mul
from typing import Any

from costmodels.experts import GROUPED
from tracer.formula import Formula, formula, least
from tracer.graph import Kind, Status
from tracer.kinds import kind_of

Size = Formula | int
Shape = Sequence[Size]
Shapes = Sequence[Shape]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a formula may know of an op: all but the values of its tensors."""

    inputs: Shapes
    """Of its tensors, in the order of its arguments."""
    outputs: Shapes
    told: Mapping[str, Any] = field(default_factory=dict)
    """What it is told beside its tensors, by name (``Op.arguments``); defaults are left out."""
    complex_inputs: Sequence[bool] = ()
    """Of each input whether it holds complex numbers."""
    complex_output: bool = False

    @property
    def is_complex(self) -> bool:
        """Whether any complex number is computed with."""
        return self.complex_output or any(self.complex_inputs)

    @property
    def factors(self) -> int:
        """How many complex numbers are combined, scalars with them."""
        return sum(self.complex_inputs) + sum(isinstance(v, complex) for v in self.told.values())


Formulate = Callable[[Signature], Size | None]
"""The FLOPs of an op; None where they are not known, or as a formula of sizes have no closed form.
"""
GemmSize = tuple[Size, Size, Size, Size]
GemmOf = Callable[[Signature], GemmSize]
"""(batch, m, n, k) of a matrix product."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the registry has of an op."""

    status: Status
    flops: Formulate
    gemm: GemmOf | None = None
    complex_status: Status = Status.UNSUPPORTED
    complex_flops: Formulate = lambda signature: None


REGISTRY: dict[str, Entry] = {}
"""By ATen base name (``tracer.kinds.base_name``)."""


def register(
    names: str,
    status: Status,
    flops: Formulate,
    gemm: GemmOf | None = None,
    *,
    in_complex: Formulate | None = None,
    complex_status: Status | None = None,
) -> None:
    """Enter a formula. Raises ValueError for a second one, and for a name that has no kind.

    Without one for complex numbers, four times as much is multiplied in a product, six times as
    much is done in other estimates, and an exact count is one of real numbers alone.
    """
    for name in names.split():
        if name in REGISTRY:
            raise ValueError(f"two cost formulas for {name}")
        if (kind := kind_of(f"aten.{name}")) is Kind.OTHER:
            raise ValueError(f"a cost formula for {name}, which tracer.kinds does not know")
        if in_complex is None and kind in (Kind.MATMUL, Kind.ATTENTION):
            made, found = status, _times(4, flops)
        elif in_complex is None:
            made = Status.UNSUPPORTED if status is Status.EXACT else status
            found = _none if status is Status.ZERO else _times(6, flops)
        else:
            made, found = complex_status or status, in_complex
        REGISTRY[name] = Entry(status, flops, gemm, made, found)


def _times(number: int, flops: Formulate) -> Formulate:
    def more(signature: Signature) -> Size | None:
        counted = flops(signature)
        return None if counted is None else number * counted

    return more


def _count(shape: Shape) -> Size:
    return reduce(mul, shape, 1)


def _gemm(names: str) -> Callable[[GemmOf], GemmOf]:
    """Register a function that gives (batch, m, n, k) of a matrix product."""

    def add(function: GemmOf) -> GemmOf:
        register(names, Status.EXACT, lambda c: 2 * _count(function(c)), function)
        return function

    return add


# --- matrix products ------------------------------------------------------------------------------


@_gemm("linear")
def _linear(c: Signature) -> GemmSize:
    x, weight = c.inputs[0], c.inputs[1]  # [..., k] x [n, k], or x [k]
    return 1, _count(x[:-1]), _count(weight[:-1]), weight[-1]


def _product(a: Shape, b: Shape, out: Shape) -> GemmSize:
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    # A stack of matrices times one matrix is a single tall product, as torch carries it out.
    if len(b) <= 2:
        return 1, _count(a[:-1]), n, a[-1]
    batch = out[:-2] if len(a) > 1 else out[:-1]
    return _count(batch), m, n, a[-1]


@_gemm("matmul mm bmm mv dot vdot _scaled_mm _scaled_mm_v2 _int_mm")  # then scales, maybe a bias
def _matmul(c: Signature) -> GemmSize:
    return _product(c.inputs[0], c.inputs[1], c.outputs[0])


@_gemm("addmm baddbmm addmv _addmm_activation")
def _addmm(c: Signature) -> GemmSize:
    return _product(c.inputs[1], c.inputs[2], c.outputs[0])


@_gemm("addbmm")
def _addbmm(c: Signature) -> GemmSize:
    """The sum of the products of [batch, m, k] x [batch, k, n]."""
    a, b = c.inputs[1], c.inputs[2]
    return a[0], a[1], b[2], a[2]


@_gemm("_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu _mixed_dtypes_linear")
def _packed(c: Signature) -> GemmSize:
    """A linear whose weights lie in an order of their own."""
    x = c.inputs[0]
    return 1, _count(x[:-1]), c.outputs[0][-1], x[-1]


@_gemm(" ".join(sorted(GROUPED)))
def _grouped_mm(c: Signature) -> GemmSize:
    """[m, k] x [groups, k, n]: a row meets the matrix of its group alone, however rows are split.

    Likewise where k or n is what is split; two stacks of matrices are multiplied pair by pair.
    """
    a, b = c.inputs[0], c.inputs[1]
    return a[0] if len(a) == len(b) == 3 else 1, a[-2], b[-1], a[-1]


@_gemm("inner")
def _inner(c: Signature) -> GemmSize:
    a, b = c.inputs[0], c.inputs[1]  # [..., k] x [..., k]: every row with every row
    return 1, _count(a[:-1]), _count(b[:-1]), a[-1] if a else 1


@_gemm("linalg_vecdot")
def _vecdot(c: Signature) -> GemmSize:
    return _count(c.outputs[0]), 1, 1, c.inputs[0][c.told.get("dim", -1)]


@_gemm("outer ger kron")
def _outer(c: Signature) -> GemmSize:
    """Each element of one meets each of the other: a product with sums of one term."""
    return 1, _count(c.inputs[0]), _count(c.inputs[1]), 1


@_gemm("addr")
def _addr(c: Signature) -> GemmSize:
    return 1, c.inputs[1][0], c.inputs[2][0], 1


@_gemm("tensordot")
def _tensordot(c: Signature) -> GemmSize:
    a, b = c.inputs[0], c.inputs[1]
    k = _count([a[axis] for axis in c.told["dims_self"]])
    return 1, formula(_count(a)) // k, formula(_count(b)) // k, k


def _conv(c: Signature) -> GemmSize:
    """A product for each group of channels; its rows are the places that the kernel is put to."""
    x, kernel = c.inputs[0], c.inputs[1]  # [..., channels, *size], [out, channels / groups, *size]
    axis = 1 - len(kernel)  # of the channels, which a batch may stand before
    groups = formula(x[axis]) // kernel[1]
    places = _count(c.outputs[0][:axis]) * _count(c.outputs[0][axis + 1 :])
    return groups, places, formula(kernel[0]) // groups, _count(kernel[1:])


def _conv_transpose(c: Signature) -> GemmSize:
    """Every place of the input is spread over a kernel's; what falls together is added up."""
    x, kernel = c.inputs[0], c.inputs[1]  # [..., channels, *size], [channels, out / groups, *size]
    axis = 1 - len(kernel)
    groups = formula(c.outputs[0][axis]) // kernel[1]
    places = _count(x[:axis]) * _count(x[axis + 1 :])
    return groups, places, _count(kernel[1:]), formula(kernel[0]) // groups


_gemm(
    "conv1d conv2d conv3d _convolution_mode thnn_conv2d _slow_conv2d_forward slow_conv3d "
    "slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d"
)(_conv)
_gemm(
    "conv_transpose1d conv_transpose2d conv_transpose3d slow_conv_transpose2d slow_conv_transpose3d"
)(_conv_transpose)


@_gemm("convolution _convolution convolution_overrideable")
def _either_conv(c: Signature) -> GemmSize:
    return _conv_transpose(c) if c.told.get("transposed") else _conv(c)


@_gemm("conv_tbc")
def _conv_tbc(c: Signature) -> GemmSize:
    kernel, out = c.inputs[1], c.outputs[0]  # [width, channels, n], [time, batch, n]
    return 1, _count(out[:-1]), out[-1], _count(kernel[:-1])


# --- several products in one op -------------------------------------------------------------------


def _attention(c: Signature) -> Size:
    """Both products over the whole square, q k^T and probabilities x v, as torch counts them."""
    q, k, v = c.inputs[:3]  # [..., heads, queries, d], [..., kv heads, keys, d], [..., keys, d_v]
    return 2 * _count(q[:-1]) * k[-2] * q[-1] + 2 * _count(q[:-1]) * k[-2] * v[-1]


register(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps flex_attention",
    Status.EXACT,
    _attention,
)


def _recurrent(states: int) -> Formulate:
    """Each row (of a step and a sequence) meets each matrix of each layer and direction once.

    Inputs are x [.., .., width] or, packed, its rows [rows, width] and how many there are of each
    step; then the states; then weights and biases. torch.nn.LSTM, GRU and RNN write the sums out.
    """

    def flops(c: Signature) -> Size:
        packed = len(c.inputs[1]) == 1
        weights = [w for w in c.inputs[1 + packed + states :] if len(w) == 2]
        return 2 * _count(c.inputs[0][:-1]) * sum(map(_count, weights), formula(0))

    return flops


def _cell(states: int) -> Formulate:
    """One such step of one layer: x and the state meet a matrix each."""

    def flops(c: Signature) -> Size:
        of_x, of_state = c.inputs[1 + states : 3 + states]
        return 2 * _count(c.inputs[0][:-1]) * (formula(_count(of_x)) + _count(of_state))

    return flops


register("lstm", Status.EXACT, _recurrent(2))
register("gru rnn_tanh rnn_relu", Status.EXACT, _recurrent(1))
register("lstm_cell", Status.EXACT, _cell(2))
register("gru_cell rnn_tanh_cell rnn_relu_cell", Status.EXACT, _cell(1))


def _bilinear(c: Signature) -> Size:
    """x W y: x with each of the matrices of W [out, left, right], and what comes of it with y."""
    (*rows, left), weight = c.inputs[0], c.inputs[2]
    places = 2 * _count(rows) * weight[0] * weight[2]
    return places * left + places


def _chain(c: Signature) -> Size:
    """Matrices one after another, in the order that takes least (dynamic programming, CLRS 15.2).

    The first may be a row, the last a column.
    """
    first, last = c.inputs[0], c.inputs[-1]
    sides = [1 if len(first) == 1 else first[0], *(m[0] for m in c.inputs[1:])]
    sides.append(1 if len(last) == 1 else last[-1])
    best: dict[tuple[int, int], Size] = {(i, i + 1): 0 for i in range(len(sides) - 1)}
    for i, j in ((j - n, j) for n in range(2, len(sides)) for j in range(n, len(sides))):
        each = [
            formula(best[i, k]) + best[k, j] + 2 * sides[i] * sides[k] * sides[j]
            for k in range(i + 1, j)
        ]
        best[i, j] = reduce(least, each)
    return best[0, len(sides) - 1]


def _power(c: Signature) -> Size | None:
    """By squaring: a product for each bit of the power after the first, and one for each that is
    set; of a negative power an inverse comes first, which is not counted."""
    n = c.told["n"]
    products = n.bit_length() + n.bit_count() - 2 if n > 1 else 0
    return None if n < 0 else 2 * products * _count(c.inputs[0]) * c.inputs[0][-1]


register("bilinear", Status.EXACT, _bilinear)
register("linalg_multi_dot chain_matmul", Status.EXACT, _chain)
register("linalg_matrix_power matrix_power", Status.EXACT, _power)

# Leading terms of LAPACK's operation counts (Working Note 41, appendix C).


def _eliminated(matrix: Shape) -> Formula:
    """An LU decomposition of [m, n], of which p is the smaller: 2 n^3 / 3 of a square one."""
    *stack, m, n = map(formula, matrix)
    p: Formula = least(m, n)
    return (2 * m * n * p - (m + n) * p**2 + 2 * p**3 // 3) * _count(stack)


def _substituted(c: Signature) -> Size:
    """Each of n rows takes the rows solved before it: n/2 of them, a product and a subtract each,
    for one triangular matrix."""
    return _count(c.outputs[0]) * c.inputs[0][-1]


def _cholesky(c: Signature) -> Size:
    return formula(_count(c.inputs[0]) * c.inputs[0][-1]) // 3


register("linalg_solve_triangular", Status.ESTIMATE, _substituted)
register("cholesky linalg_cholesky linalg_cholesky_ex", Status.ESTIMATE, _cholesky)
register(
    "linalg_lu_factor linalg_lu_factor_ex det linalg_det logdet slogdet linalg_slogdet",
    Status.ESTIMATE,
    lambda c: _eliminated(c.inputs[0]),
)
register(
    "linalg_solve linalg_solve_ex",
    Status.ESTIMATE,
    lambda c: _eliminated(c.inputs[0]) + 2 * _substituted(c),
)
register(
    "linalg_lu_solve lu_solve cholesky_solve",
    Status.ESTIMATE,
    lambda c: 2 * _count(c.outputs[0]) * c.outputs[0][-2],
)
register(
    "inverse linalg_inv linalg_inv_ex",
    Status.ESTIMATE,
    lambda c: 2 * _count(c.inputs[0]) * c.inputs[0][-1],
)
register(
    "linalg_qr qr",  # as much as an LU decomposition twice, for R, and again for Q
    Status.ESTIMATE,
    lambda c: (2 if c.told.get("mode") == "r" else 4) * _eliminated(c.inputs[0]),
)
register(
    "cdist _euclidean_dist",  # subtract, multiply (or absolute), add
    Status.ESTIMATE,
    lambda c: 3 * _count(c.outputs[0]) * c.inputs[0][-1],
)

# --- element by element ---------------------------------------------------------------------------


def _each_output(steps: int) -> Formulate:
    return lambda c: steps * _count(c.outputs[0])


def _each_input(steps: int) -> Formulate:
    return lambda c: steps * _count(c.inputs[0])


def _none(c: Signature) -> Size:
    return 0


def _scaled(steps: int, each: int = 1) -> Formulate:
    """Of an op that may multiply what it adds by a factor: 1 more, of complex numbers ``each``."""

    def flops(c: Signature) -> Size:
        factor = any(c.told.get(name, 1) != 1 for name in ("alpha", "value"))
        return (steps + each * factor) * _count(c.outputs[0])

    return flops


def _multiplied(by_complex: int, by_real: int) -> Formulate:
    """Of an op whose operands may all be complex, or one of them alone."""
    return lambda c: (by_complex if c.factors > 1 else by_real) * _count(c.outputs[0])


def _divided(c: Signature) -> Size:
    """(a + bi)(c - di) / (c^2 + d^2): 6 + 3 + 2; a real number takes 2 to multiply with."""
    by_complex = c.complex_inputs[1] if len(c.inputs) > 1 else c.factors > 1
    return (2 if not by_complex else 11 if c.factors > 1 else 7) * _count(c.outputs[0])


register("add sub rsub", Status.EXACT, _scaled(1), in_complex=_scaled(2, 2))
register("addcmul", Status.EXACT, _scaled(2), in_complex=_scaled(8, 2))
register(
    "addcdiv", Status.EXACT, _scaled(2), in_complex=_scaled(13, 2), complex_status=Status.ESTIMATE
)
register("mul", Status.EXACT, _each_output(1), in_complex=_multiplied(6, 2))
register(
    "div true_divide",
    Status.EXACT,
    _each_output(1),
    in_complex=_divided,
    complex_status=Status.ESTIMATE,
)
register("lerp", Status.EXACT, _each_output(3), in_complex=_multiplied(10, 6))  # a + w*(b - a)
register("neg", Status.EXACT, _each_output(1), in_complex=_each_output(2))
register(
    "conj_physical", Status.ZERO, _none, in_complex=_each_output(1), complex_status=Status.EXACT
)
register(
    "abs",
    Status.EXACT,
    _each_output(1),
    in_complex=_each_output(4),  # sqrt(a^2 + b^2)
    complex_status=Status.ESTIMATE,
)
register("square", Status.EXACT, _each_output(1), in_complex=_each_output(6))
register("polar", Status.ESTIMATE, _each_output(4), in_complex=_each_output(4))  # cos, sin, 2 mul
register("angle", Status.ESTIMATE, _each_output(1), in_complex=_each_output(1))
register("exp", Status.ESTIMATE, _each_output(1), in_complex=_each_output(5))  # and cos, sin, 2 mul
register(
    "maximum minimum fmax fmin relu threshold prelu _prelu_kernel frac clamp clamp_min clamp_max "
    "clip deg2rad rad2deg heaviside",
    Status.EXACT,
    _each_output(1),
)
register("diff", Status.EXACT, _each_output(1), in_complex=_each_output(2))
register("cross linalg_cross", Status.EXACT, _each_output(3), in_complex=_each_output(14))

for _steps, _names in {
    1: "sqrt rsqrt reciprocal exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh atan "
    "atan2 asin acos erf erfc erfinv pow float_power floor ceil round trunc leaky_relu relu6 "
    "hardtanh softshrink hardshrink lgamma digamma polygamma mvlgamma igamma igammac i0 "
    "special_i0e special_i1 special_i1e special_erfcx special_ndtri special_zeta",
    2: "floor_divide remainder fmod xlogy ldexp sinc",  # divide, then round or take what the
    # rounded part leaves; a log or a sine, and a product
    3: "softplus elu selu celu hardsigmoid logit special_entr special_xlog1py",  # exp, and an add
    # and a log, or a subtract and a product; or: clamp(x + 3, 0, 6) / 6, and hardswish times x
    4: "sigmoid logsigmoid log_sigmoid log_sigmoid_forward hardswish hypot acosh asinh atanh "
    "logaddexp logaddexp2 special_ndtr special_log_ndtr",  # negate, exp, add, and divide or log
    5: "silu mish glu",  # a sigmoid, or a tanh of a softplus, and a product
    8: "gelu",  # 0.5*x*(1 + erf(x/sqrt 2)), or the tanh of a cubic
}.items():
    register(_names, Status.ESTIMATE, _each_output(_steps))

register(
    "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not __and__ __or__ "
    "__xor__ logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __lshift__ __rshift__ "
    "isnan isinf isfinite isposinf isneginf isreal isclose isin sign sgn signbit copysign "
    "nextafter nan_to_num fill zero any all argmax argmin topk sort argsort msort median nanmedian "
    "kthvalue mode count_nonzero bincount histc bucketize searchsorted gcd lcm unique_consecutive "
    "unique_dim _unique2",
    Status.ZERO,
    _none,
)
"""Selections."""


def _when_training(steps: int, otherwise: int) -> Formulate:
    """Steps for each element where statistics or random values are made in the run."""

    def flops(c: Signature) -> Size:
        on = any(c.told.get(name) for name in ("train", "training", "use_input_stats"))
        return (steps if on else otherwise) * _count(c.inputs[0])

    return flops


register("dropout native_dropout", Status.ESTIMATE, _when_training(2, 0))
"""Draw, and scale what stays."""
register("feature_dropout", Status.ESTIMATE, _when_training(1, 0))
"""Scale what stays; a draw is for a whole channel."""
register("alpha_dropout feature_alpha_dropout", Status.ESTIMATE, _when_training(3, 0))
"""Draw, scale, shift."""
register("rrelu rrelu_with_noise", Status.ESTIMATE, _when_training(2, 1))
"""Draw a slope, else take the mean one, and multiply."""
register(
    "rand rand_like uniform randn randn_like normal normal_functional bernoulli randint "
    "randint_like random randperm",
    Status.ESTIMATE,
    _each_output(1),
)
register(
    "exponential geometric cauchy log_normal poisson binomial _standard_gamma _sample_dirichlet",
    Status.ESTIMATE,
    _each_output(2),
)
"""Draw, and a function of it that gives the distribution."""
register("multinomial", Status.ZERO, _none)  # whole numbers

register("upsample_linear1d", Status.ESTIMATE, _each_output(3))  # between 2 neighbours: 2 mul, add
register("upsample_bilinear2d", Status.ESTIMATE, _each_output(7))  # between 4
register("upsample_trilinear3d", Status.ESTIMATE, _each_output(15))  # between 8
register("upsample_bicubic2d", Status.ESTIMATE, _each_output(31))  # between 16

# --- along an axis --------------------------------------------------------------------------------

register(
    "softmax _softmax _safe_softmax log_softmax _log_softmax", Status.ESTIMATE, _each_output(5)
)
"""Maximum, subtract, exp, sum, divide (or subtract the log of the sum)."""

register(
    "layer_norm native_layer_norm group_norm native_group_norm", Status.ESTIMATE, _each_input(8)
)
"""Mean (1), variance (3), subtract, divide, scale, shift."""

register(
    "batch_norm native_batch_norm _native_batch_norm_legit _batch_norm_impl_index instance_norm",
    Status.ESTIMATE,
    _when_training(8, 4),
)
register("_batch_norm_with_update", Status.ESTIMATE, _each_input(8))
register(
    "_native_batch_norm_legit_no_training _batch_norm_no_update", Status.ESTIMATE, _each_input(4)
)
"""The same; or, where mean and variance are known: subtract, divide, scale, shift."""

register("rms_norm _fused_rms_norm", Status.ESTIMATE, _each_input(4))
"""Square, mean, times rsqrt, scale."""


def _joined(steps: int) -> Formulate:
    """All elements joined into those that are made, one step less than there are elements."""
    return lambda c: steps * (formula(_count(c.inputs[0])) - _count(c.outputs[0]))


register("mean nanmean", Status.EXACT, _each_input(1), in_complex=_each_input(2))
register("sum nansum", Status.EXACT, _joined(1), in_complex=_joined(2))
register("prod", Status.EXACT, _joined(1), in_complex=_joined(6))


def _added(c: Signature) -> Size:
    """What is added, and maybe multiplied before."""
    steps = 1 if c.told.get("alpha", 1) == 1 else 2
    return steps * _count(c.inputs[-1])


register("index_add", Status.EXACT, _added, in_complex=_times(2, _added))
register(
    "scatter_add",
    Status.EXACT,
    lambda c: _count(c.inputs[1]),  # each index adds one
    in_complex=lambda c: 2 * _count(c.inputs[1]),
)
register(
    "scatter_reduce index_reduce segment_reduce",
    Status.ESTIMATE,  # or a maximum ...
    lambda c: _count(c.inputs[1]),
)
register("col2im", Status.EXACT, _each_input(1), in_complex=_each_input(2))  # each is added


def _bags(c: Signature) -> Size:
    """A sum or mean of rows of the table, each added once, and maybe multiplied before."""
    table, numbers, *rest = c.inputs
    return (1 + (len(rest) > 1)) * _count(numbers) * table[-1]


register("embedding_bag _embedding_bag _embedding_bag_forward_only", Status.ESTIMATE, _bags)
register(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    Status.ESTIMATE,
    _each_input(1),
)
"""Of each part of the input; where parts do not divide it evenly, they overlap a little."""
register("amax amin max min aminmax cummax cummin", Status.ESTIMATE, _each_input(1))
register("cumsum", Status.ESTIMATE, _each_input(1), in_complex=_each_input(2))
register("cumprod", Status.ESTIMATE, _each_input(1))
"""One after the other; what adds in parallel takes more steps."""
register("logcumsumexp", Status.ESTIMATE, _each_input(5))
"""One after the other: the larger of two, subtract, exp, log(1 + that), add."""
register("var std var_mean std_mean", Status.ESTIMATE, _each_input(4), in_complex=_each_input(8))
"""Mean (1), subtract, square, sum."""
register(
    "linalg_vector_norm norm frobenius_norm",
    Status.ESTIMATE,
    _each_input(2),
    in_complex=_each_input(4),
)
"""Square, sum; the root of the few results is left out."""
register("renorm _weight_norm _weight_norm_interface", Status.ESTIMATE, _each_input(3))
"""The same, and a product."""
register("logsumexp", Status.ESTIMATE, _each_input(4))
"""Maximum, subtract, exp, sum."""
register("cosine_similarity", Status.ESTIMATE, _each_input(6))
"""Three sums of products: of one with the other, and of each with itself."""
register(
    "pairwise_distance mse_loss l1_loss smooth_l1_loss huber_loss", Status.ESTIMATE, _each_input(3)
)
"""Subtract, square (or the like), sum."""
register(
    "trace", Status.ESTIMATE, lambda c: c.inputs[0][0], in_complex=lambda c: 2 * c.inputs[0][0]
)
register("cross_entropy_loss", Status.ESTIMATE, _each_input(5))
register("nll_loss nll_loss_nd nll_loss_forward", Status.ESTIMATE, lambda c: _count(c.inputs[1]))

# --- windows and transforms -----------------------------------------------------------------------


def _window(name: str) -> Callable[[Signature], int | None]:
    """Elements of a window of a pooling: a single side holds for all axes."""
    axes = next(int(letter) for letter in name if letter.isdigit())

    def elements(c: Signature) -> int | None:
        sides = c.told.get("kernel_size")
        each = [sides] if isinstance(sides, int) else list(sides or ())
        if not each:
            return None
        return prod(each) if len(each) == axes else each[0] ** axes

    return elements


def _pooled(window: Callable[[Signature], int | None], less: int) -> Formulate:
    def flops(c: Signature) -> Size | None:
        elements = window(c)
        return None if elements is None else _count(c.outputs[0]) * (elements - less)

    return flops


# A window at the border is smaller, by as much as lies in the padding.
for _name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):  # the sum of a window, and a division
    register(_name, Status.ESTIMATE, _pooled(_window(_name), 0))
for _name in ("max_pool1d", "max_pool2d", "max_pool3d"):
    register(f"{_name} {_name}_with_indices", Status.ESTIMATE, _pooled(_window(_name), 1))


def _fft(steps: Fraction, axes: Sequence[int] = (), real: str = "") -> Formulate:
    """n points take ``steps`` n log2 n, along all axes of a transform, on the side that is real if
    one is. There is no closed form. ``axes`` are those that it has where it is told of no others.
    """

    def flops(c: Signature) -> Size | None:
        if any(isinstance(size, Formula) for shape in (*c.inputs, *c.outputs) for size in shape):
            return None
        shape: Any = c.inputs[0] if real == "input" else c.outputs[0]
        along = c.told.get("dim", axes or range(-len(c.told.get("s", shape)), 0))
        points = prod(shape[axis] for axis in ([along] if isinstance(along, int) else along))
        logarithm = Decimal(points).ln() / Decimal(2).ln()  # the same on every machine
        size = max(to_int(_count(s)) for s in (*c.inputs, *c.outputs))
        return round(size * Fraction(logarithm) * steps)

    return flops


for _end, _axes in (("", (-1,)), ("2", (-2, -1)), ("n", ())):
    for _names, _formula in (
        ("fft_fft{0} fft_ifft{0}", _fft(Fraction(5), _axes)),
        ("fft_rfft{0} fft_ihfft{0}", _fft(Fraction(5, 2), _axes, "input")),
        ("fft_irfft{0} fft_hfft{0}", _fft(Fraction(5, 2), _axes)),
    ):
        register(_names.format(_end), Status.ESTIMATE, _formula, in_complex=_formula)


def to_int(size: Size) -> int:
    """The number that a size without variables is."""
    return formula(size).evaluate({})
