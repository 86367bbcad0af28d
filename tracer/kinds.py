"""What each ATen op is: the one table from op names to kinds.

Names are ATen base names (``aten.add.Tensor`` is ``add``; ``add_`` counts as ``add``). Whether an
op is a view, a constant or a linear depends on the graph around it and is decided there.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from tracer.graph import Kind

T = TypeVar("T")

MATRIX_PRODUCTS = frozenset((
    "linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "dot", "_grouped_mm",
    "grouped_mm_fallback", "_scaled_mm", "_int_mm", "conv1d", "conv2d", "conv3d", "convolution",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
))  # fmt: skip
"""Linear when an operand comes from parameters alone, matmul otherwise. A convolution is a product
of its kernel with the patches of its input."""

READS_NO_DATA = frozenset(
    name
    for filled in ("ones", "zeros", "full", "empty")
    for name in (f"{filled}_like", f"new_{filled}", f"new_{filled}_strided")
)
"""Take shape and dtype from their tensor argument, never its values: no data flows in."""

_LIKE_ANOTHER = frozenset(("type_as", "expand_as", "view_as", "reshape_as"))

_SAME_AS = {
    "max.other": "maximum", "min.other": "minimum", "multiply": "mul", "divide": "div",
    "subtract": "sub", "negative": "neg", "absolute": "abs",
}  # fmt: skip
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
        batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm""",
    Kind.EMBEDDING: "embedding embedding_bag",
    Kind.REDUCTION: """
        sum mean amax amin max min prod all any argmax argmin var std var_mean norm
        linalg_vector_norm logsumexp cumsum cumprod cummax cummin logcumsumexp topk sort argsort
        count_nonzero bincount histc nansum median linalg_solve_triangular avg_pool1d avg_pool2d
        avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
        max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2
        fft_irfft2 fft_rfftn fft_irfftn""",
    Kind.COPY: """
        clone contiguous copy to _to_copy type_as float half double bfloat16 int long bool cat
        concat concatenate stack hstack vstack repeat repeat_interleave tile roll flip pad
        constant_pad_nd reflection_pad1d replication_pad1d index index_select gather take
        take_along_dim masked_select nonzero slice_scatter select_scatter scatter
        scatter_add scatter_reduce index_put index_add index_copy reshape _reshape_copy
        flatten unfold im2col col2im tril triu one_hot embedding_renorm diagonal_copy view_copy""",
    Kind.ELEMENTWISE: """
        add sub rsub mul div true_divide floor_divide remainder fmod pow square sqrt rsqrt
        reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sinh cosh atan atan2 asin
        acos sigmoid logsigmoid log_sigmoid log_sigmoid_forward relu relu6 leaky_relu elu selu
        celu gelu silu mish softplus hardtanh hardswish hardsigmoid glu threshold prelu erf erfc
        abs neg sign floor ceil round trunc frac clamp clamp_min clamp_max clip maximum minimum
        fmax fmin where masked_fill eq ne lt le gt ge logical_and logical_or logical_not logical_xor
        bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ __lshift__ __rshift__
        isnan isinf isfinite nan_to_num addcmul addcdiv lerp dropout native_dropout diff
        fill zero softshrink hardshrink""",
}  # fmt: skip

_KINDS = {name: kind for kind, names in _BY_KIND.items() for name in names.split()}


@lru_cache(maxsize=4096)
def base_name(target: str) -> str:
    """``aten.add_.Tensor`` -> ``add``: the op without its library, overload and in-place mark."""
    parts = target.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    if not name.endswith("__"):
        name = name.rstrip("_") or name
    return _SAME_AS.get(f"{name}.{parts[-1]}") or _SAME_AS.get(name, name)


def writes_in_place(target: str) -> bool:
    """Whether an ATen op writes into its first argument (``aten.add_.Tensor``)."""
    name = target.split(".")[1] if "." in target else target
    return name.endswith("_") and not name.endswith("__")


def kind_of(target: str) -> Kind:
    """The kind that an op's name alone gives it; ``other`` for a name not in the table."""
    name = base_name(target)
    if name in MATRIX_PRODUCTS:
        return Kind.MATMUL
    return _KINDS.get(name, Kind.OTHER)


def data_args(target: str, args: tuple[T, ...]) -> tuple[T, ...]:
    """The tensor arguments whose values an op reads; of the others it takes dtype and shape."""
    name = base_name(target)
    if name in READS_NO_DATA:
        return ()
    return args[:1] if name in _LIKE_ANOTHER or target == "aten.to.other" else args
