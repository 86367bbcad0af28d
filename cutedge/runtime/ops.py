"""The ops that a device carries out for whoever sent its plan: which, on what, how much they make.

A plan is text that came from elsewhere. An op is looked up in the list below, its arguments are
read by the types of its schema, and what it makes is worked out without data, all before anything
runs: nothing in a plan leads to a file, a process, a module or an attribute of Python.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib import import_module
from types import NoneType
from typing import Any

import torch

from cutedge.runtime import RunError
from cutedge.runtime.wire import DTYPES, Spec
from tracer.kinds import draws, writes_in_place
from tracer.program import Invocation
from tracer.words import plain

_LIST = """
__and__.Scalar __and__.Tensor __lshift__.Scalar __lshift__.Tensor __or__.Scalar __or__.Tensor
__rshift__.Scalar __rshift__.Tensor __xor__.Scalar __xor__.Tensor _adaptive_avg_pool2d
_adaptive_avg_pool3d _conj _conj_physical _convolution _fft_c2c _fft_c2r _fft_r2c _fused_rms_norm
_grouped_mm _int_mm _log_softmax _native_batch_norm_legit_no_training _neg_view _prelu_kernel
_reshape_copy _safe_softmax _scaled_dot_product_attention_math
_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention_for_cpu _scaled_mm
_softmax _to_copy _unsafe_view _upsample_bicubic2d_aa _upsample_bicubic2d_aa.vec
_upsample_bilinear2d_aa _upsample_bilinear2d_aa.vec _upsample_nearest_exact1d
_upsample_nearest_exact1d.vec _upsample_nearest_exact2d _upsample_nearest_exact2d.vec
_upsample_nearest_exact3d _upsample_nearest_exact3d.vec _weight_norm _weight_norm_interface abs abs_
absolute absolute_ acos acos_ acosh acosh_ adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add.Scalar
add.Tensor add_.Scalar add_.Tensor addbmm addbmm_ addcdiv addcdiv_ addcmul addcmul_ addmm
addmm.dtype addmm_ addmv addmv_ addr addr_ adjoint affine_grid_generator alias all all.dim all.dims
amax amin aminmax angle any any.dim any.dims arange arange.start arange.start_step arccos arccos_
arccosh arccosh_ arcsin arcsin_ arcsinh arcsinh_ arctan arctan2 arctan2_ arctan_ arctanh arctanh_
argmax argmin argsort argsort.stable as_strided asin asin_ asinh asinh_ atan atan2 atan2_ atan_
atanh atanh_ atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm baddbmm.dtype
baddbmm_ bartlett_window bartlett_window.periodic batch_norm bilinear bitwise_and.Scalar
bitwise_and.Scalar_Tensor bitwise_and.Tensor bitwise_and_.Scalar bitwise_and_.Tensor
bitwise_left_shift.Scalar_Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar
bitwise_left_shift_.Tensor bitwise_left_shift_.Tensor_Scalar bitwise_not bitwise_not_
bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_or.Tensor bitwise_or_.Scalar bitwise_or_.Tensor
bitwise_right_shift.Scalar_Tensor bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
bitwise_right_shift_.Tensor bitwise_right_shift_.Tensor_Scalar bitwise_xor.Scalar
bitwise_xor.Scalar_Tensor bitwise_xor.Tensor bitwise_xor_.Scalar bitwise_xor_.Tensor blackman_window
blackman_window.periodic block_diag bmm bmm.dtype broadcast_tensors broadcast_to bucketize.Scalar
bucketize.Tensor cartesian_prod cat cdist ceil ceil_ celu celu_ channel_shuffle chunk clamp
clamp.Tensor clamp_ clamp_.Tensor clamp_max clamp_max.Tensor clamp_max_ clamp_max_.Tensor clamp_min
clamp_min.Tensor clamp_min_ clamp_min_.Tensor clip clip.Tensor clip_ clip_.Tensor clone col2im
column_stack combinations complex concat concatenate conj conj_physical conj_physical_
constant_pad_nd contiguous conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding
conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution copy copy_
copysign.Scalar copysign.Tensor copysign_.Scalar copysign_.Tensor cos cos_ cosh cosh_
cosine_similarity count_nonzero count_nonzero.dim_IntList cross cross_entropy_loss cummax cummin
cumprod cumprod_ cumsum cumsum_ deg2rad deg2rad_ detach detach_ diag diag_embed diagflat diagonal
diagonal_copy diagonal_scatter diff digamma digamma_ div.Scalar div.Scalar_mode div.Tensor
div.Tensor_mode div_.Scalar div_.Scalar_mode div_.Tensor div_.Tensor_mode divide.Scalar
divide.Scalar_mode divide.Tensor divide.Tensor_mode divide_.Scalar divide_.Scalar_mode
divide_.Tensor divide_.Tensor_mode dot dstack einsum elu elu_ embedding embedding_bag
embedding_bag.padding_idx
empty.memory_format empty_like eq.Scalar eq.Tensor eq_.Scalar eq_.Tensor erf erf_ erfc erfc_ erfinv
erfinv_ exp exp2 exp2_ exp_ expand expand_as expm1 expm1_ eye eye.m fft_fft fft_fft2 fft_fftfreq
fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift
fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
fft_rfftn fill.Scalar fill.Tensor fill_.Scalar fill_.Tensor fix fix_ flatten.using_ints flip fliplr
flipud float_power.Scalar float_power.Tensor_Scalar float_power.Tensor_Tensor float_power_.Scalar
float_power_.Tensor floor floor_ floor_divide floor_divide.Scalar floor_divide_.Scalar
floor_divide_.Tensor fmax fmin fmod.Scalar fmod.Tensor fmod_.Scalar fmod_.Tensor frac frac_
frexp.Tensor frobenius_norm.dim full full_like gather gcd ge.Scalar ge.Tensor ge_.Scalar ge_.Tensor
gelu gelu_ ger glu greater.Scalar greater.Tensor greater_.Scalar greater_.Tensor
greater_equal.Scalar greater_equal.Tensor greater_equal_.Scalar greater_equal_.Tensor grid_sampler
grid_sampler_2d grid_sampler_3d group_norm gru.input gt.Scalar gt.Tensor gt_.Scalar gt_.Tensor
hamming_window hamming_window.periodic hamming_window.periodic_alpha
hamming_window.periodic_alpha_beta hann_window hann_window.periodic hardshrink hardsigmoid
hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ heaviside histc hstack huber_loss hypot hypot_
i0 i0_ igamma igammac im2col imag index.Tensor index_add index_add_ index_copy index_copy_
index_fill.int_Scalar index_fill.int_Tensor index_fill_.int_Scalar index_fill_.int_Tensor index_put
index_put_ index_reduce index_reduce_ index_select inner instance_norm inverse isclose isfinite
isin.Scalar_Tensor isin.Tensor_Scalar isin.Tensor_Tensor isinf isnan isneginf isposinf isreal istft
kaiser_window kaiser_window.beta kaiser_window.periodic kron kthvalue l1_loss layer_norm lcm
ldexp.Tensor ldexp_ le.Scalar le.Tensor le_.Scalar le_.Tensor leaky_relu leaky_relu_ lerp.Scalar
lerp.Tensor lerp_.Scalar lerp_.Tensor less.Scalar less.Tensor less_.Scalar less_.Tensor
less_equal.Scalar less_equal.Tensor less_equal_.Scalar less_equal_.Tensor lgamma lgamma_
lift_fresh_copy linalg_cholesky linalg_cholesky_ex linalg_cross linalg_det linalg_diagonal
linalg_eigh linalg_eigvalsh linalg_inv linalg_inv_ex linalg_matmul linalg_matrix_exp
linalg_matrix_power linalg_multi_dot linalg_qr linalg_slogdet linalg_solve linalg_solve_ex
linalg_solve_triangular linalg_svd linalg_svdvals linalg_vecdot linalg_vector_norm linear linspace
linspace.Scalar_Tensor linspace.Tensor_Scalar linspace.Tensor_Tensor log log10 log10_ log1p log1p_
log2 log2_ log_ log_sigmoid log_sigmoid_forward log_softmax.int logaddexp logaddexp2 logcumsumexp
logdet logical_and logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor
logical_xor_ logit logit_ logspace logspace.Scalar_Tensor logspace.Tensor_Scalar
logspace.Tensor_Tensor logsumexp lstm.input lt.Scalar lt.Tensor lt_.Scalar lt_.Tensor mH mT
masked_fill.Scalar masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor masked_scatter
masked_scatter_ matmul max max.dim max.other max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean mean.dim median median.dim
meshgrid meshgrid.indexing min min.dim min.other minimum mish mish_ mm mm.dtype mode moveaxis.int
moveaxis.intlist movedim.int movedim.intlist mse_loss msort mul.Scalar mul.Tensor mul_.Scalar
mul_.Tensor multiply.Scalar multiply.Tensor multiply_.Scalar multiply_.Tensor mv mvlgamma nan_to_num
nan_to_num_ nanmean nanmedian nanmedian.dim nanquantile nanquantile.scalar nansum narrow
narrow.Tensor native_batch_norm native_channel_shuffle native_group_norm native_layer_norm ne.Scalar
ne.Tensor ne_.Scalar ne_.Tensor neg neg_ negative negative_ new_empty new_empty_strided new_full
new_ones new_zeros norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype
not_equal.Scalar not_equal.Tensor not_equal_.Scalar not_equal_.Tensor numpy_T one_hot ones ones_like
outer pad pairwise_distance permute pixel_shuffle pixel_unshuffle polar polygamma positive
pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow_.Scalar pow_.Tensor prelu prod prod.dim_int
quantile quantile.scalar rad2deg rad2deg_ ravel real reciprocal reciprocal_ reflection_pad1d
reflection_pad2d reflection_pad3d relu relu6 relu6_ relu_ remainder.Scalar remainder.Scalar_Tensor
remainder.Tensor remainder_.Scalar remainder_.Tensor renorm repeat repeat_interleave.self_Tensor
repeat_interleave.self_int replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
resolve_conj resolve_neg rms_norm rnn_relu.input rnn_tanh.input roll rot90 round round.decimals
round_ round_.decimals row_stack rsqrt rsqrt_ rsub.Scalar rsub.Tensor scalar_tensor
scaled_dot_product_attention scatter.reduce scatter.src scatter.value scatter.value_reduce
scatter_.reduce scatter_.src scatter_.value scatter_.value_reduce scatter_add scatter_add_
scatter_reduce.two scatter_reduce_.two searchsorted.Scalar searchsorted.Tensor select.int
select_scatter selu selu_ sgn sgn_ sigmoid sigmoid_ sign sign_ signbit silu silu_ sin sin_ sinc
sinc_ sinh sinh_ slice.Tensor slice_scatter smooth_l1_loss softmax.int softplus softshrink sort
sort.stable special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2
special_expit special_expm1 special_gammainc special_gammaincc special_i0 special_i0e special_i1
special_i1e special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp
special_multigammaln special_ndtr special_ndtri special_polygamma special_softmax special_xlog1py
special_xlog1py.other_scalar special_xlog1py.self_scalar special_zeta special_zeta.other_scalar
special_zeta.self_scalar split.Tensor split.sizes split_with_sizes sqrt sqrt_ square square_ squeeze
squeeze.dim squeeze.dims squeeze_ squeeze_.dim stack std std.correction std.dim std_mean
std_mean.correction std_mean.dim stft stft.center sub.Scalar sub.Tensor sub_.Scalar sub_.Tensor
subtract.Scalar subtract.Tensor subtract_.Scalar subtract_.Tensor sum sum.dim_IntList sum_to_size
swapaxes swapaxes_ swapdims t t_ take take_along_dim tan tan_ tanh tanh_ tensor_split.indices
tensor_split.sections tensordot threshold threshold_ tile to.device to.dtype to.dtype_layout
to.other topk trace transpose.int transpose_ tril tril_ tril_indices triu triu_ triu_indices
true_divide.Scalar true_divide.Tensor true_divide_.Scalar true_divide_.Tensor trunc trunc_ type_as
unbind.int unflatten.int unfold unsqueeze unsqueeze_ upsample_bicubic2d upsample_bicubic2d.vec
upsample_bilinear2d upsample_bilinear2d.vec upsample_linear1d upsample_linear1d.vec
upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec
upsample_nearest3d upsample_nearest3d.vec upsample_trilinear3d upsample_trilinear3d.vec var
var.correction var.dim var_mean var_mean.correction var_mean.dim vdot view view.dtype view_as
view_as_complex view_as_real view_copy view_copy.dtype vstack where where.Scalar where.ScalarOther
where.ScalarSelf where.self xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor xlogy_.Scalar_Other
xlogy_.Tensor zero zero_ zeros zeros_like
"""

_DRAWN = """
alpha_dropout bernoulli bernoulli.p bernoulli_.float cauchy_ dropout exponential_ feature_dropout
geometric_ log_normal_ multinomial native_dropout normal.Tensor_Tensor normal.Tensor_float
normal.float_Tensor normal.float_float normal_ poisson rand rand_like randint randint.low
randint_like randint_like.low_dtype randn randn_like random_ random_.from random_.to randperm rrelu
uniform_
"""

DRAWN = frozenset(_DRAWN.split())
"""Those of them that draw random values, from a seed that the plan gives with each call."""

ALLOWED = frozenset(_LIST.split()) | DRAWN
"""ATen's overloads that are carried out (``add.Tensor``; the default one by its op's name alone).

Each makes its results of its arguments alone, or writes into its first one, which is a copy then.
None of ATen's others: those that read or write files, resize or replace memory, make sparse, nested
or quantised tensors, take a random generator, or whose results have a size that the data decides.
"""

_ELSEWHERE = {"transformers.grouped_mm_fallback.default": "transformers.integrations.moe"}
"""Ops of another library -> the module that registers them."""

_NAMES = {
    f"aten.{name}" if "." in name else f"aten.{name}.default": tuple(
        f"{name}.default".split(".")[:2]
    )
    for name in ALLOWED
} | {target: tuple(target.split(".")[1:]) for target in _ELSEWHERE}

LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}

WORDS: Mapping[str, Collection[str]] = {
    "rounding_mode": ("trunc", "floor"),
    "approximate": ("none", "tanh"),
    "padding": ("valid", "same"),
    "norm": ("forward", "backward", "ortho"),
    "reduce": ("sum", "prod", "mean", "amax", "amin", "add", "multiply"),
    "mode": ("constant", "reflect", "replicate", "circular", "reduced", "complete", "r"),
    "pad_mode": ("constant", "reflect", "replicate", "circular"),
    "indexing": ("ij", "xy"),
    "interpolation": ("linear", "lower", "higher", "midpoint", "nearest"),
    "side": ("left", "right"),
    "UPLO": ("L", "U"),
    "driver": ("gesvd", "gesvdj", "gesvda"),
}
"""By the name of an argument that is text: what it may be."""

EQUATION = re.compile(r"[A-Za-z,. >-]{1,200}")
"""The text that ``einsum`` takes."""

_MAY_COPY = (
    "view",
    "_unsafe_view",
    "reshape",
    "reshape_as",
    "flatten",
    "ravel",
    "contiguous",
    "to",
    "resolve_conj",
    "resolve_neg",
)
"""Ops that make a view where they can, by the order of memory, and a copy else."""


class Operation:
    """An op of torch, and what its schema says of it."""

    def __init__(self, target: str) -> None:
        """Raises RunError for an op that is in no list, or that this torch lacks."""
        if target not in _NAMES:
            raise RunError("it is in no list of ops that are carried out here")
        name, overload = _NAMES[target]
        if module := _ELSEWHERE.get(target):
            import_module(module)
        try:
            library = torch.ops.transformers if target in _ELSEWHERE else torch.ops.aten
            function = getattr(getattr(library, name), overload)
        except AttributeError as error:
            raise RunError(f"torch {torch.__version__} does not have it") from error
        self.target, self.function = target, function
        schema = function._schema
        self.arguments = {place.name: str(place.real_type) for place in schema.arguments}
        """By name, in order: the type of each argument, as torch writes it."""
        self.takes_device = any(p.name == "device" and p.kwarg_only for p in schema.arguments)
        self.writes_in_place = writes_in_place(target)
        self.may_copy = name in _MAY_COPY
        self.is_view = (
            not self.may_copy
            and not self.writes_in_place
            and all(place.alias_info is not None for place in schema.returns)
        )
        """Whether what it makes takes no memory of its own."""
        self.may_draw = torch.Tag.nondeterministic_seeded in function.tags
        """Whether it may draw random values; what it is given may turn that off."""
        self.leaves_as_found = name.removeprefix("new_").startswith("empty")
        """Whether what it makes is whatever lay in that memory before."""

    def bound(self, how: Invocation) -> dict[str, Any]:
        """By name, each argument that an invocation gives. Raises RunError for one too many."""
        names = list(self.arguments)
        if len(how.args) > len(names):
            raise RunError(f"it takes {len(names)} arguments, not {len(how.args)}")
        given = dict(zip(names, how.args, strict=False))
        for name, value in how.kwargs.items():
            if name not in self.arguments or name in given:
                raise RunError(
                    f"it takes no {plain(name)}"
                    if name not in given
                    else f"it is given {name} twice"
                )
            given[name] = value
        return given

    def check(self, how: Invocation, tensors: Collection[int]) -> None:
        """Raise RunError for an argument that is not of its type, or a tensor that is not known."""
        given = self.bound(how)
        for name, value in given.items():
            kind = self.arguments[name]
            if not _fits(value, kind, name, tensors):
                raise RunError(f"{name} is {plain(str(value))}, which is no {kind}")
        if how.draw is not None and not (self.may_draw and 0 <= how.draw < 2**63):
            raise RunError("it draws no random values, and is given a seed")
        if how.draw is None and self.may_draw and draws(self.function, (), given):
            raise RunError("it draws random values, and is given no seed")
        statistics = given.get("training") or given.get("use_input_stats")
        if statistics and given.get("running_mean") is not None:
            raise RunError("it would change its running statistics")
        first = how.args[0] if how.args else None
        if self.writes_in_place and not (isinstance(first, dict) and "value" in first):
            raise RunError("it writes in place, and is given no tensor first")

    def check_parts(self, how: Invocation, specs: Mapping[int, Spec], announced: int) -> None:
        """Raise RunError where an op would make more tensors than were announced."""
        count = _PARTS.get(self.target)
        if count is None:
            return
        given = self.bound(how)
        shape = specs[given["self"]["value"]].shape
        dim = given.get("dim", 0)
        parts = count(given, shape[dim] if -len(shape) <= dim < len(shape) else 0)
        if parts > announced:
            raise RunError(f"it makes {parts:,} tensors, and {announced} were announced")


_PARTS: Mapping[str, Callable[[Mapping[str, Any], int], int]] = {
    "aten.unbind.int": lambda given, size: size,
    "aten.split.Tensor": lambda given, size: -(-size // max(given["split_size"], 1)),
    "aten.chunk.default": lambda given, size: min(given["chunks"], size),
    "aten.tensor_split.sections": lambda given, size: given["sections"],
}
"""By op: how many tensors it makes of its arguments and of the size that it cuts."""


@cache
def operation(target: str) -> Operation:
    """The op that is called so. Raises RunError for one that is in no list."""
    return Operation(target)


def refused(targets: Iterable[str]) -> list[str]:
    """The ops among ``targets``, those of a graph, that are in no list."""
    return sorted({*targets} - {*_NAMES} - {"input", "output"})


def _fits(value: Any, kind: str, name: str, tensors: Collection[int]) -> bool:
    """Whether an argument, as ``Invocation`` spells it, is of a type, as torch writes it."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[9:-1], name, tensors)
    if kind.startswith("List["):
        if isinstance(value, list):
            return all(_fits(part, kind[5:-1], name, tensors) for part in value)
        return kind[5:-1] in ("int", "float", "bool") and _fits(value, kind[5:-1], name, tensors)
    if isinstance(value, dict):
        if len(value) != 1:
            return False
        [(sort, said)] = value.items()
        if type(said) not in (int, str, NoneType):
            return False
        match sort:
            case "value" | "like":
                return kind == "Tensor" and type(said) is int and said in tensors
            case "float":
                return kind in ("float", "number", "Tensor") and said in ("inf", "-inf", "nan")
            case "complex":
                return kind in ("number", "Tensor") and _is_complex(said)
            case "dtype":
                return kind == "ScalarType" and said in DTYPES
            case "layout":
                return kind == "Layout" and said in LAYOUTS
            case "memory_format":
                return kind == "MemoryFormat" and said in MEMORY_FORMATS
            case "device":
                return kind == "Device" and said is None
        return False
    match value:
        case bool():
            free = name != "pin_memory" or not value
            return kind in ("bool", "number", "int", "Tensor") and free
        case int():
            return kind in ("int", "float", "number", "Tensor") and -(2**63) <= value < 2**63
        case float():
            return kind in ("float", "number", "Tensor")
        case str():
            if name == "equation":
                return kind == "str" and EQUATION.fullmatch(value) is not None
            return kind == "str" and value in WORDS.get(name, ())
    return False


def _is_complex(said: Any) -> bool:
    """Whether it is text as Python writes a complex number."""
    try:
        return isinstance(said, str) and str(complex(said)) == said
    except ValueError:
        return False
