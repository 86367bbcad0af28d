"""What each ATen op is: the one table from op names to kinds, and which ops move values.

Names are ATen base names (``aten.add.Tensor`` is ``add``; ``add_`` counts as ``add``). An op of
another library has that before its name (``mine::add``) and is in no table, whatever it is called.
Whether an op is a view, a constant or a linear depends on the graph around it and is decided there.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

from tracer.graph import Kind

T = TypeVar("T")

_ONE_PRODUCT = """
    linear matmul mm bmm addmm addbmm baddbmm mv addmv dot vdot linalg_vecdot inner outer ger addr
    kron tensordot einsum _grouped_mm grouped_mm_fallback _scaled_mm _scaled_mm_v2 _int_mm
    _addmm_activation _mixed_dtypes_linear _weight_int8pack_mm _weight_int4pack_mm
    _weight_int4pack_mm_for_cpu conv1d conv2d conv3d convolution _convolution _convolution_mode
    convolution_overrideable conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d
    thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv3d_forward slow_conv_dilated2d
    slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d _conv_depthwise2d
    conv_depthwise3d
"""
MATRIX_PRODUCTS = frozenset(_ONE_PRODUCT.split())
"""One product of matrices. Linear when an operand comes from parameters alone, matmul otherwise. A
convolution is a product of its kernel with the patches of its input."""

_MANY_PRODUCTS = """
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell bilinear
    linalg_multi_dot chain_matmul linalg_matrix_power matrix_power cdist _euclidean_dist
    cholesky linalg_cholesky linalg_cholesky_ex cholesky_solve det linalg_det logdet slogdet
    linalg_slogdet inverse linalg_inv linalg_inv_ex linalg_lu_factor linalg_lu_factor_ex
    linalg_lu_solve lu_solve linalg_qr qr linalg_solve linalg_solve_ex linalg_solve_triangular
"""
SEVERAL_PRODUCTS = frozenset(_MANY_PRODUCTS.split())
"""Products of matrices, one or several, with other work between: recurrent layers, decompositions
and what is solved with them. Linear when a matrix of theirs comes from parameters alone."""

READS_NO_DATA = frozenset(
    name
    for filled in ("ones", "zeros", "full", "empty", "rand", "randn", "randint")
    for name in (f"{filled}_like", f"new_{filled}", f"new_{filled}_strided")
)
"""Take shape and dtype from their tensor argument, never its values: no data flows in."""

_LIKE_ANOTHER = frozenset(("type_as", "expand_as", "view_as", "reshape_as"))

_SAME_AS = {
    "max.other": "maximum",
    "min.other": "minimum",
    "multiply": "mul",
    "divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "special_expit": "sigmoid",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_logit": "logit",
    "special_logsumexp": "logsumexp",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "special_round": "round",
    "special_sinc": "sinc",
    "special_xlogy": "xlogy",
    "special_i0": "i0",
    "special_psi": "digamma",
    "special_digamma": "digamma",
    "special_gammaln": "lgamma",
    "special_polygamma": "polygamma",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_multigammaln": "mvlgamma",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "fix": "trunc",
    "greater": "gt",
    "less": "lt",
    "greater_equal": "ge",
    "less_equal": "le",
    "not_equal": "ne",
    "bitwise_left_shift": "__lshift__",
    "bitwise_right_shift": "__rshift__",
    "linalg_matmul": "matmul",
}
"""Second names, some of which only an overload tells from another op."""

_BY_KIND: Mapping[Kind, str] = {
    Kind.ATTENTION: """
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_cudnn_attention
        _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps
        flex_attention""",
    Kind.SOFTMAX: "softmax _softmax log_softmax _log_softmax _safe_softmax",
    Kind.NORM: """
        layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm
        batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm
        _native_batch_norm_legit _batch_norm_impl_index _batch_norm_with_update
        _batch_norm_no_update""",
    Kind.EMBEDDING: "embedding embedding_bag _embedding_bag _embedding_bag_forward_only",
    Kind.REDUCTION: """
        sum mean amax amin max min prod all any argmax argmin var std var_mean norm
        linalg_vector_norm logsumexp cumsum cumprod cummax cummin logcumsumexp topk sort argsort
        count_nonzero bincount histc nansum nanmean median nanmedian kthvalue mode msort aminmax
        std_mean trace index_reduce segment_reduce renorm _weight_norm _weight_norm_interface
        frobenius_norm cosine_similarity pairwise_distance mse_loss l1_loss smooth_l1_loss
        huber_loss cross_entropy_loss nll_loss nll_loss_nd nll_loss_forward unique_consecutive
        unique_dim _unique2 avg_pool1d avg_pool2d
        avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
        max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d
        fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2
        fft_irfft2 fft_rfftn fft_irfftn fft_hfft fft_ihfft fft_hfft2 fft_ihfft2 fft_hfftn
        fft_ihfftn""",
    Kind.COPY: """
        clone contiguous copy to _to_copy type_as float half double bfloat16 int long bool cat
        concat concatenate stack hstack vstack repeat repeat_interleave tile roll flip pad
        constant_pad_nd reflection_pad1d replication_pad1d index index_select gather take
        take_along_dim masked_select nonzero slice_scatter select_scatter scatter
        scatter_add scatter_reduce index_put index_add index_copy reshape reshape_as _reshape_copy
        flatten unfold im2col col2im tril triu one_hot embedding_renorm diagonal_copy view_copy
        column_stack row_stack dstack block_diag diag diag_embed diagflat fliplr flipud rot90
        index_fill masked_scatter put reflection_pad2d reflection_pad3d replication_pad2d
        replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d max_unpool2d max_unpool3d complex
        cartesian_prod combinations argwhere _unsafe_index _unsafe_index_put resolve_conj
        resolve_neg diagonal_scatter as_strided_scatter fft_fftshift fft_ifftshift pad_sequence
        _pack_padded_sequence _pad_packed_sequence""",
    Kind.ELEMENTWISE: """
        add sub rsub mul div true_divide floor_divide remainder fmod pow square sqrt rsqrt
        reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sinh cosh atan atan2 asin
        acos sigmoid logsigmoid log_sigmoid log_sigmoid_forward relu relu6 leaky_relu elu selu
        celu gelu silu mish softplus hardtanh hardswish hardsigmoid glu threshold prelu erf erfc
        abs neg sign floor ceil round trunc frac clamp clamp_min clamp_max clip maximum minimum
        fmax fmin where masked_fill eq ne lt le gt ge logical_and logical_or logical_not logical_xor
        bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ __lshift__ __rshift__
        isnan isinf isfinite nan_to_num addcmul addcdiv lerp dropout native_dropout diff
        fill zero softshrink hardshrink feature_dropout alpha_dropout feature_alpha_dropout rrelu
        rrelu_with_noise _prelu_kernel rand rand_like uniform randn
        randn_like normal normal_functional bernoulli randint randint_like random randperm
        exponential geometric cauchy log_normal poisson binomial _standard_gamma _sample_dirichlet
        multinomial conj_physical polar angle cross linalg_cross deg2rad rad2deg heaviside
        float_power erfinv lgamma digamma polygamma mvlgamma igamma igammac i0 special_i0e
        special_i1 special_i1e special_erfcx special_ndtri special_zeta xlogy ldexp sinc logit
        special_entr special_xlog1py hypot acosh asinh atanh logaddexp logaddexp2 special_ndtr
        special_log_ndtr isposinf isneginf isreal isclose isin sgn signbit copysign nextafter
        bucketize searchsorted gcd lcm upsample_linear1d upsample_bilinear2d upsample_trilinear3d
        upsample_bicubic2d""",
}

_KINDS = {name: kind for kind, names in _BY_KIND.items() for name in names.split()}

_LIBRARIES = frozenset(("aten", "prims"))
"""Torch's own, whose ops of one name do the same."""

_ELSEWHERE = {"transformers.grouped_mm_fallback": "grouped_mm_fallback"}
"""Ops of other libraries that are in the tables here -> their names there."""


@lru_cache(maxsize=4096)
def base_name(target: str) -> str:
    """``aten.add_.Tensor`` -> ``add``: the op without its library, overload and in-place mark.

    An op of a library that is not torch's own keeps that: ``mine.add.default`` -> ``mine::add``.
    """
    parts = target.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    if len(parts) > 1 and parts[0] not in _LIBRARIES:
        return _ELSEWHERE.get(f"{parts[0]}.{name}", f"{parts[0]}::{name}")
    if not name.endswith("__"):
        name = name.rstrip("_") or name
    return _SAME_AS.get(f"{name}.{parts[-1]}") or _SAME_AS.get(name, name)


def writes_in_place(target: str) -> bool:
    """Whether an op of torch's writes into its first argument (``aten.add_.Tensor``)."""
    library, _, rest = target.partition(".")
    name = rest.partition(".")[0]
    many = name.startswith("_foreach_")  # into each of a list
    return library in _LIBRARIES and name.endswith("_") and not name.endswith("__") and not many


def kind_of(target: str) -> Kind:
    """The kind that an op's name alone gives it; ``other`` for a name not in the table."""
    name = base_name(target)
    if name in MATRIX_PRODUCTS or name in SEVERAL_PRODUCTS:
        return Kind.MATMUL
    return _KINDS.get(name, Kind.OTHER)


def data_args(target: str, args: tuple[T, ...]) -> tuple[T, ...]:
    """The tensor arguments whose values an op reads; of the others it takes dtype and shape."""
    name = base_name(target)
    if name in READS_NO_DATA:
        return ()
    return args[:1] if name in _LIKE_ANOTHER or target == "aten.to.other" else args


def told(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By name what a call gives to torch's op ``target``, defaults too: off the op's schema."""
    found: dict[str, Any] = {}
    for position, (name, by_name_alone, default) in enumerate(_declared(target)):
        if not by_name_alone and position < len(args):
            found[name] = args[position]
        else:
            found[name] = kwargs.get(name, default)
    return found


@cache
def _declared(target: Any) -> tuple[tuple[str, bool, Any], ...]:
    """(name, whether it is given by that alone, default) of the arguments of torch's op."""
    schema = getattr(target, "_schema", None)
    return tuple(
        (a.name, a.kwarg_only, a.default_value if a.has_default_value() else None)
        for a in (schema.arguments if schema else ())
    )


def draws(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of torch's op ``target`` draws random values.

    Torch marks the ops that may; what a call gives them can turn it off.
    """
    if not _may_draw(target):
        return False
    given = told(target, args, kwargs)
    off = any(given.get(name) is False for name in ("train", "training"))
    rates = [given[name] for name in ("dropout_p", "dropout") if name in given]
    rates += [given["p"]] if "train" in given and "p" in given else []
    return not off and (not rates or any(rates))


@cache
def _may_draw(target: Any) -> bool:
    return any(tag.name == "nondeterministic_seeded" for tag in getattr(target, "tags", ()))


# --- what moves values ----------------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FIRST, _ALL = (0,), None

_MOVED: Mapping[tuple[int, ...] | None, str] = {
    _FIRST: """
        view reshape reshape_as _unsafe_view _reshape_alias _reshape_copy flatten unflatten ravel squeeze
        unsqueeze expand broadcast_to broadcast_in_dim repeat tile repeat_interleave transpose
        permute t numpy_T mT mH adjoint matrix_H swapaxes swapdims movedim moveaxis narrow select
        slice diagonal diag diag_embed as_strided unfold im2col col2im rot90 flip fliplr flipud roll
        atleast_1d atleast_2d atleast_3d pixel_shuffle pixel_unshuffle channel_shuffle pad
        constant_pad_nd
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d tril triu
        alias view_of detach clone contiguous lift_fresh positive to _to_copy float half double
        bfloat16 int long bool type_as convert_element_type device_put real imag view_as_real
        view_as_complex conj _conj resolve_conj resolve_neg
        dropout feature_dropout alpha_dropout native_dropout
        split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind
        tensor_split hsplit vsplit dsplit
        index index_select gather take take_along_dim masked_select embedding embedding_bag
        one_hot nonzero _embedding_bag _embedding_bag_forward_only
        topk sort msort max min amax amin median nanmedian mode kthvalue cummax cummin
        any all max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
        max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
        upsample_trilinear3d upsample_bicubic2d index_fill max_unpool2d max_unpool3d
        native_channel_shuffle fft_fftshift fft_ifftshift combinations diagflat argwhere
        _unsafe_index _pack_padded_sequence _pad_packed_sequence unique_consecutive unique_dim
        _unique2 aminmax renorm copysign conj_physical matrix_power linalg_matrix_power
        feature_alpha_dropout rrelu rrelu_with_noise _prelu_kernel segment_reduce
        linalg_lu_factor linalg_lu_factor_ex
        relu relu6 leaky_relu prelu elu celu hardtanh hardshrink hardswish threshold abs
        nan_to_num floor ceil round trunc frac remainder fmod
        cumsum cumprod logcumsumexp""",
    _ALL: """
        cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag
        cartesian_prod pad_sequence meshgrid broadcast_tensors complex maximum minimum fmax fmin
        logical_and
        logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__
        clamp clamp_min clamp_max clip
        slice_scatter select_scatter diagonal_scatter as_strided_scatter""",
    (1, 2): "where",
    (0, 2): "masked_fill masked_scatter",
    (0, -1): "scatter scatter_add scatter_reduce index_put _index_put_impl index_copy index_add "
    "index_reduce put _unsafe_index_put",
    (1,): "copy fill",
}
"""Tensor arguments, all where None -> the ops whose results have elements of them, as they are.

A result counts where a good part of it is elements of the argument, as with a cast, a maximum or
a ReLU, and where each element can be told from it by who knows the op, as with one_hot, nonzero and
a running sum.
"""

_MOVED_ARGS = {name: args for args, names in _MOVED.items() for name in names.split()}
_MOVED_ARGS |= {"scatter.value": _FIRST, "scatter.value_reduce": _FIRST}

_MOVED_FIRST_RESULT = _names("""
    topk sort max min median nanmedian mode kthvalue cummax cummin max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d native_dropout embedding_bag _embedding_bag _embedding_bag_forward_only
    unique_consecutive unique_dim _unique2 _pack_padded_sequence _pad_packed_sequence
    linalg_lu_factor linalg_lu_factor_ex""")
"""Of their results the first alone has elements of the argument; the others say where they were."""

_SUMS = _names("""
    sum mean nansum nanmean prod logsumexp norm linalg_vector_norm frobenius_norm trace
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d""")

PASSES = frozenset(("add", "sub", "mul", "div", "true_divide"))
"""Leave a tensor as it is where the other operand is 0 or 1, as in most of a mask."""

SPLITS = _names("""
    split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind
    tensor_split hsplit vsplit dsplit""")
"""Their results are parts of the argument, no two of which have an element in common."""

LOOKUPS = frozenset(("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"))
"""Look rows of their first argument up by their second: who has both sides has the other."""


def is_known(target: str) -> bool:
    """Whether an op is in a table here, so that it is known what it does to values."""
    return moved_name(target) in _MOVED_ARGS or kind_of(target) is not Kind.OTHER


def moved_name(target: str) -> str:
    """``aten.permute_copy.default`` -> ``permute``: the op that a copy is a copy of."""
    name = base_name(target)
    return name if name in _MOVED_ARGS else name.removesuffix("_copy")


def moves(target: str, args: int, results: int, *, same_size: bool) -> list[tuple[int, int]]:
    """(tensor argument, result) of an op: the result has the argument's elements, as they are.

    ``args`` and ``results`` are how many there are; those of an op that writes in place end with
    the other tensors in its memory, before and after. ``same_size`` says whether the first result
    has as many elements as the first argument: a sum of one is that one. Of an op that is in no
    table all may be in all.
    """
    if not args or not results:
        return []
    name, overload = moved_name(target), target.split(".")[-1]
    if writes_in_place(target) and results > 1:
        before = args - (results - 1)
        kept = [(before + n, 1 + n) for n in range(results - 1)]
        written = moves(target, before, 1, same_size=same_size)
        return [*kept, *((arg, result) for arg, _ in written for result in range(results))]
    ends = range(1) if name in _MOVED_FIRST_RESULT else range(results)
    if name in _SUMS:
        taken = [0] if same_size else []
    elif (found := _MOVED_ARGS.get(f"{name}.{overload}", _MOVED_ARGS.get(name, ()))) is None:
        taken = [*range(args)]
    elif found:
        taken = [arg % args for arg in found if arg < args]
    else:
        taken = [] if is_known(target) else [*range(args)]
    return [(arg, result) for arg in dict.fromkeys(taken) for result in ends]


LOSSLESS = _names("""
    view reshape reshape_as _unsafe_view _reshape_alias _reshape_copy flatten unflatten ravel
    squeeze unsqueeze
    expand broadcast_to broadcast_in_dim repeat tile repeat_interleave transpose permute t numpy_T
    mT mH adjoint matrix_H swapaxes swapdims movedim moveaxis diag_embed unfold im2col rot90 flip
    fliplr flipud roll atleast_1d atleast_2d atleast_3d pixel_shuffle pixel_unshuffle
    channel_shuffle pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d alias view_of detach clone contiguous
    lift_fresh positive to _to_copy float half double bfloat16 type_as convert_element_type
    device_put view_as_real view_as_complex conj _conj resolve_conj resolve_neg dropout
    feature_dropout alpha_dropout upsample_nearest1d upsample_nearest2d upsample_nearest3d one_hot
    cumsum cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag
    complex""")
"""Of the ops that move values those whose results have every element of what they read."""

INJECTIVE = _names("""
    neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal tanh atan sinh asin erf erfc
    sigmoid logit logsigmoid log_sigmoid softplus hardsigmoid bitwise_not logical_not add sub rsub
    mul div true_divide""")
"""Of one tensor: each element can be told from that of the result by who knows the op."""
