"""Which ops move values: what the table says of each, against what torch makes of numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tracer.kinds import (
    _KINDS,
    _MOVED_ARGS,
    MATRIX_PRODUCTS,
    READS_NO_DATA,
    SEVERAL_PRODUCTS,
    base_name,
    data_args,
    moves,
)

X = torch.linspace(-3.7, 4.1, 24)[torch.randperm(24, generator=torch.manual_seed(0))].view(4, 6)
"""Numbers of both signs, no two alike."""
Y = X.flip(0) + 0.017
P = X.abs() + 0.1
IMAGE = torch.linspace(-3.1, 3.3, 64).view(1, 1, 8, 8)
ROW = IMAGE.view(1, 1, 64)
CUBE = IMAGE.view(1, 1, 4, 4, 4)
SQUARE = P[:4, :4] + 5 * torch.eye(4)
PLACES = torch.tensor([2, 0, 3])
PIVOTS = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
IDS = torch.tensor([[1, 0, 3, 2, 0, 1]])
B = X > 0.5
W = torch.tensor([12, 7, 100, 29, 55, 8])
"""Whole numbers."""
C = torch.complex(X, Y)
ONE = torch.tensor(2.25)


def words(text: str) -> list[str]:
    return text.split()


CALLS: list[tuple[str, Any]] = [
    *(
        (f"aten.{name}", [X])
        for name in words("""
        clone.default contiguous.default alias.default detach.default lift_fresh.default
        positive.default t.default squeeze.default ravel.default flatten.using_ints tril.default
        triu.default fliplr.default flipud.default atleast_1d.default atleast_2d.default
        atleast_3d.default mT.default numpy_T.default adjoint.default unbind.int max.default
        min.default amax.default amin.default median.default nanmedian.default relu.default
        relu6.default leaky_relu.default elu.default celu.default hardtanh.default
        hardshrink.default abs.default nan_to_num.default frac.default sum.default mean.default
        nansum.default prod.default norm.Scalar linalg_vector_norm.default selu.default
        gelu.default silu.default mish.default softplus.default hardsigmoid.default
        sigmoid.default log_sigmoid.default tanh.default sinh.default cosh.default sin.default
        cos.default tan.default atan.default asin.default acos.default erf.default erfc.default
        exp.default exp2.default expm1.default neg.default square.default reciprocal.default
        sign.default isnan.default isinf.default isfinite.default logical_not.default
        softshrink.default log_sigmoid_forward.default std.default var.default var_mean.default
        argmax.default argmin.default argsort.default count_nonzero.default""")
    ),
    *(
        (f"aten.{name}", [P])
        for name in words("""
        sqrt.default rsqrt.default log.default log2.default log10.default log1p.default""")
    ),
    *(
        (f"aten.{name}", [X, Y])
        for name in words("""
        add.Tensor sub.Tensor rsub.Tensor mul.Tensor div.Tensor true_divide.Tensor
        floor_divide.default remainder.Tensor fmod.Tensor maximum.default minimum.default
        fmax.default fmin.default max.other min.other atan2.default eq.Tensor ne.Tensor
        lt.Tensor le.Tensor gt.Tensor ge.Tensor clamp.Tensor clamp_min.Tensor clamp_max.Tensor
        clip.Tensor type_as.default expand_as.default view_as.default reshape_as.default
        complex.default copy.default""")
    ),
    *(
        (f"aten.{name}", [X, 1])
        for name in words("""
        unsqueeze.default max.dim min.dim median.dim mode.default cummax.default cummin.default
        cumsum.default cumprod.default logcumsumexp.default argmax.default argmin.default
        softmax.int log_softmax.int""")
    ),
    *((f"aten.{name}.default", [W.float()]) for name in ("floor", "ceil", "round", "trunc", "fix")),
    ("aten.hardswish.default", [3 * X]),
    ("aten.amax.default", [X, [1]]),
    ("aten.amin.default", [X, [1]]),
    ("aten.sum.dim_IntList", [X, [1]]),
    ("aten.sum.dim_IntList", [X.view(24, 1), [1]]),
    ("aten.mean.dim", [X.view(24, 1), [1]]),
    ("aten.logsumexp.default", [X, [1]]),
    ("aten.logsumexp.default", [X.view(24, 1), [1]]),
    ("aten.prod.dim_int", [X.view(24, 1), 1]),
    ("aten._softmax.default", [X, 1, False]),
    ("aten._log_softmax.default", [X, 1, False]),
    ("aten._safe_softmax.default", [X, 1]),
    ("aten.view.default", [X, [6, 4]]),
    ("aten.reshape.default", [X, [3, 8]]),
    ("aten._unsafe_view.default", [X, [6, 4]]),
    ("aten.unflatten.int", [X, 1, [2, 3]]),
    ("aten.expand.default", [X.view(1, 24), [3, 24]]),
    ("aten.broadcast_to.default", [X, [2, 4, 6]]),
    ("aten.repeat.default", [X, [2, 1]]),
    ("aten.tile.default", [X, [2, 1]]),
    ("aten.repeat_interleave.self_int", [X, 2, 1]),
    ("aten.transpose.int", [X, 0, 1]),
    ("aten.permute.default", [X, [1, 0]]),
    ("aten.permute_copy.default", [X, [1, 0]]),
    ("aten.view_copy.default", [X, [6, 4]]),
    ("aten.swapaxes.default", [X, 0, 1]),
    ("aten.swapdims.default", [X, 0, 1]),
    ("aten.movedim.int", [X, 0, 1]),
    ("aten.moveaxis.int", [X, 0, 1]),
    ("aten.narrow.default", [X, 1, 2, 3]),
    ("aten.select.int", [X, 1, 2]),
    ("aten.slice.Tensor", [X, 1, 2, 5]),
    ("aten.diagonal.default", [X]),
    ("aten.diagonal_copy.default", [X]),
    ("aten.diag.default", [X]),
    ("aten.diag_embed.default", [X]),
    ("aten.as_strided.default", [X, [3, 2], [2, 1]]),
    ("aten.unfold.default", [X, 1, 3, 1]),
    ("aten.im2col.default", [IMAGE, [2, 2], [1, 1], [0, 0], [2, 2]]),
    (
        "aten.col2im.default",
        [torch.linspace(-3, 3, 64).view(1, 4, 16), [8, 8], [2, 2], [1, 1], [0, 0], [2, 2]],
    ),
    ("aten.rot90.default", [X]),
    ("aten.flip.default", [X, [0]]),
    ("aten.roll.default", [X, [1], [0]]),
    ("aten.pixel_shuffle.default", [IMAGE.view(1, 4, 4, 4), 2]),
    ("aten.pixel_unshuffle.default", [IMAGE, 2]),
    ("aten.channel_shuffle.default", [IMAGE.view(1, 4, 4, 4), 2]),
    ("aten.pad.default", [X, [1, 1]]),
    ("aten.constant_pad_nd.default", [X, [1, 1]]),
    ("aten.reflection_pad1d.default", [X, [1, 1]]),
    ("aten.replication_pad1d.default", [X, [1, 1]]),
    ("aten.reflection_pad2d.default", [IMAGE, [1, 1, 1, 1]]),
    ("aten.replication_pad2d.default", [IMAGE, [1, 1, 1, 1]]),
    ("aten.reflection_pad3d.default", [CUBE, [1] * 6]),
    ("aten.replication_pad3d.default", [CUBE, [1] * 6]),
    ("aten.to.dtype", [X, torch.float64]),
    ("aten._to_copy.default", [X]),
    ("aten.to.other", [X, Y]),
    ("aten.real.default", [C]),
    ("aten.imag.default", [C]),
    ("aten.view_as_real.default", [C]),
    ("aten.view_as_complex.default", [X.view(4, 3, 2)]),
    ("aten.conj.default", [C]),
    ("aten._conj.default", [C]),
    ("aten.resolve_conj.default", [C]),
    ("aten.resolve_neg.default", [X]),
    ("aten.dropout.default", [X, 0.5, False]),
    ("aten.feature_dropout.default", [X, 0.5, False]),
    ("aten.alpha_dropout.default", [X, 0.5, False]),
    ("aten.native_dropout.default", [X, 0.5, False]),
    ("aten.split.Tensor", [X, 2]),
    ("aten.split_with_sizes.default", [X, [1, 3]]),
    ("aten.unsafe_split.Tensor", [X, 2]),
    ("aten.unsafe_split_with_sizes.default", [X, [1, 3]]),
    ("aten.split_copy.Tensor", [X, 2]),
    ("aten.unbind_copy.int", [X]),
    ("aten.chunk.default", [X, 2]),
    ("aten.unsafe_chunk.default", [X, 2]),
    ("aten.tensor_split.sections", [X, 2]),
    ("aten.hsplit.int", [X, 2]),
    ("aten.vsplit.int", [X, 2]),
    ("aten.dsplit.int", [X.view(2, 2, 6), 2]),
    ("aten.index.Tensor", [X, [PLACES]]),
    ("aten.index_select.default", [X, 0, PLACES]),
    ("aten.gather.default", [X, 0, PLACES.view(3, 1)]),
    ("aten.take.default", [X, PLACES]),
    ("aten.take_along_dim.default", [X, PLACES.view(3, 1), 0]),
    ("aten.masked_select.default", [X, B]),
    ("aten.embedding.default", [X, IDS]),
    ("aten.embedding_bag.default", [X, IDS[0, :3], torch.tensor([0, 2])]),
    ("aten.topk.default", [X, 2]),
    ("aten.sort.default", [X]),
    ("aten.msort.default", [X]),
    ("aten.kthvalue.default", [X, 2]),
    ("aten.nanmedian.dim", [X, 1]),
    ("aten.max_pool1d.default", [ROW, [2]]),
    ("aten.max_pool2d.default", [IMAGE, [2, 2]]),
    ("aten.max_pool3d.default", [CUBE, [2, 2, 2]]),
    ("aten.max_pool1d_with_indices.default", [ROW, [2]]),
    ("aten.max_pool2d_with_indices.default", [IMAGE, [2, 2]]),
    ("aten.max_pool3d_with_indices.default", [CUBE, [2, 2, 2]]),
    ("aten.adaptive_max_pool1d.default", [ROW, [4]]),
    ("aten.adaptive_max_pool2d.default", [IMAGE, [4, 4]]),
    ("aten.adaptive_max_pool3d.default", [CUBE, [2, 2, 2]]),
    ("aten.avg_pool1d.default", [ROW, [2]]),
    ("aten.avg_pool2d.default", [IMAGE, [2, 2]]),
    ("aten.avg_pool2d.default", [IMAGE, [1, 1]]),
    ("aten.avg_pool3d.default", [CUBE, [2, 2, 2]]),
    ("aten.adaptive_avg_pool1d.default", [ROW, [4]]),
    ("aten.adaptive_avg_pool2d.default", [IMAGE, [4, 4]]),
    ("aten.adaptive_avg_pool2d.default", [IMAGE, [8, 8]]),
    ("aten.adaptive_avg_pool3d.default", [CUBE, [2, 2, 2]]),
    ("aten.upsample_nearest1d.default", [ROW, [128]]),
    ("aten.upsample_nearest2d.default", [IMAGE, [16, 16]]),
    ("aten.upsample_nearest3d.default", [CUBE, [8, 8, 8]]),
    ("aten.prelu.default", [X, ONE.view(1)]),
    ("aten.threshold.default", [X, 0.5, 9.0]),
    ("aten.clamp.default", [X, -1.0, 1.0]),
    ("aten.clamp_min.default", [X, 0.5]),
    ("aten.clamp_max.default", [X, 0.5]),
    ("aten.clip.default", [X, -1.0, 1.0]),
    ("aten.remainder.Scalar", [W, 50]),
    ("aten.fmod.Scalar", [W, 50]),
    ("aten.cat.default", [[X, Y]]),
    ("aten.concat.default", [[X, Y]]),
    ("aten.concatenate.default", [[X, Y]]),
    ("aten.stack.default", [[X, Y]]),
    ("aten.hstack.default", [[X, Y]]),
    ("aten.vstack.default", [[X, Y]]),
    ("aten.dstack.default", [[X, Y]]),
    ("aten.column_stack.default", [[X, Y]]),
    ("aten.row_stack.default", [[X, Y]]),
    ("aten.block_diag.default", [[X, Y]]),
    ("aten.cartesian_prod.default", [[X[0], Y[0]]]),
    ("aten.meshgrid.default", [[X[0], X[0]]]),
    ("aten.broadcast_tensors.default", [[X, X]]),
    *(
        (f"aten.{name}.Tensor", [W, W * (W > 20)])
        for name in ("__and__", "__or__", "bitwise_and", "bitwise_or")
    ),
    *(
        (f"aten.{name}.Tensor", [torch.cat([W, 0 * W]), torch.cat([0 * W, W])])
        for name in ("__xor__", "bitwise_xor")
    ),
    ("aten.bitwise_not.default", [W]),
    ("aten.__lshift__.Scalar", [W, 1]),
    ("aten.__rshift__.Scalar", [W, 1]),
    ("aten.slice_scatter.default", [X, Y[:2], 0, 1, 3]),
    ("aten.select_scatter.default", [X, Y[0], 0, 1]),
    ("aten.diagonal_scatter.default", [X, Y.diagonal()]),
    ("aten.as_strided_scatter.default", [X, Y[0], [6], [1]]),
    ("aten.where.self", [B, X, Y]),
    ("aten.where.ScalarOther", [B, X, 0.0]),
    ("aten.where.ScalarSelf", [B, 0.0, Y]),
    ("aten.where.Scalar", [B, 1.5, 2.5]),
    ("aten.masked_fill.Scalar", [X, B, 9.0]),
    ("aten.masked_fill.Tensor", [X, B, ONE]),
    ("aten.masked_scatter.default", [X, B, Y]),
    ("aten.scatter.src", [X, 0, PLACES.view(3, 1), Y]),
    ("aten.scatter.value", [X, 0, PLACES.view(3, 1), 9.0]),
    ("aten.scatter_add.default", [torch.zeros(4, 6), 0, PLACES.view(3, 1).expand(3, 6), Y]),
    ("aten.scatter_reduce.two", [X, 0, PLACES.view(3, 1).expand(3, 6), Y, "amax"]),
    ("aten.index_put.default", [X, [PLACES], Y[:3]]),
    ("aten.index_copy.default", [X, 0, PLACES, Y[:3]]),
    ("aten.index_add.default", [torch.zeros(4, 6), 0, PLACES, Y[:3]]),
    ("aten.index_fill.int_Scalar", [X, 0, PLACES, 9.0]),
    ("aten.fill.Tensor", [X, ONE]),
    ("aten.fill.Scalar", [X, 9.0]),
    ("aten.zero.default", [X]),
    ("aten.pow.Tensor_Scalar", [X, 2]),
    ("aten.diff.default", [X]),
    ("aten.addcmul.default", [X, Y, X]),
    ("aten.addcdiv.default", [X, Y, X]),
    ("aten.lerp.Scalar", [X, Y, 0.25]),
    ("aten.glu.default", [X]),
    ("aten.linear.default", [X, Y]),
    ("aten.matmul.default", [X, Y.T]),
    ("aten.mm.default", [X, Y.T]),
    ("aten.bmm.default", [X[None], Y.T[None]]),
    ("aten.addmm.default", [X[:, :4], X, Y.T]),
    ("aten.addbmm.default", [X[:, :4], X[None], Y.T[None]]),
    ("aten.baddbmm.default", [X[None, :, :4], X[None], Y.T[None]]),
    ("aten.mv.default", [X, Y[0]]),
    ("aten.dot.default", [X[0], Y[0]]),
    ("aten.conv1d.default", [ROW, torch.tensor([[[0.3, 0.6]]])]),
    ("aten.conv2d.default", [IMAGE, torch.full((1, 1, 2, 2), 0.3)]),
    ("aten.conv3d.default", [CUBE, torch.full((1, 1, 2, 2, 2), 0.3)]),
    ("aten.conv_transpose1d.default", [ROW, torch.tensor([[[0.3, 0.6]]])]),
    ("aten.scaled_dot_product_attention.default", [X[None, None], Y[None, None], Y[None, None]]),
    ("aten.layer_norm.default", [X, [6]]),
    ("aten.rms_norm.default", [X, [6]]),
    ("aten.native_layer_norm.default", [X, [6], None, None, 1e-5]),
    ("aten.group_norm.default", [IMAGE, 1]),
    (
        "aten.batch_norm.default",
        [IMAGE, None, None, ONE.view(1), P[0, :1], False, 0.1, 1e-5, False],
    ),
    ("aten.fft_fft.default", [X]),
    ("aten.fft_rfft.default", [X]),
    ("aten.bincount.default", [W]),
    ("aten.histc.default", [X]),
    ("aten.linalg_solve_triangular.default", [SQUARE.triu(), P[:, :3]]),
    # special functions, and what is told of numbers
    *(
        (f"aten.{name}.default", [P[0] / 9])
        for name in words("""
        atanh digamma lgamma erfinv i0 logit special_entr special_erfcx special_i0e special_i1
        special_i1e special_log_ndtr special_ndtr special_ndtri asinh sinc bernoulli poisson
        _standard_gamma exponential cauchy log_normal uniform normal_functional""")
    ),
    *(
        (f"aten.{name}.default", [X])
        for name in words("""
        deg2rad rad2deg sgn signbit isneginf isposinf isreal nanmean std_mean trace aminmax
        rrelu random""")
    ),
    ("aten.diagflat.default", [X[0, :3]]),
    ("aten.angle.default", [C]),
    ("aten.conj_physical.default", [C]),
    ("aten.acosh.default", [P + 1]),
    ("aten.combinations.default", [X[0]]),
    ("aten.frobenius_norm.dim", [X, [0, 1]]),
    ("aten.mvlgamma.default", [P + 2, 2]),
    ("aten.polygamma.default", [1, P]),
    ("aten.float_power.Tensor_Scalar", [P, 3]),
    ("aten.geometric.default", [P, 0.5]),
    ("aten.binomial.default", [0 * P + 99, P / 9]),
    ("aten.normal.Tensor_float", [X]),
    ("aten._sample_dirichlet.default", [P]),
    ("aten.multinomial.default", [P, 3]),
    *(
        (f"aten.{name}.default", [X, Y])
        for name in words("""
        isclose cosine_similarity mse_loss l1_loss smooth_l1_loss huber_loss pairwise_distance
        hypot logaddexp logaddexp2 kron linalg_vecdot inner""")
    ),
    *(
        (f"aten.{name}.default", [P, P.flip(0)])
        for name in words("""
        igamma igammac polar special_xlog1py""")
    ),
    ("aten.special_zeta.default", [P + 1, P]),
    ("aten.xlogy.Tensor", [P, P.flip(0)]),
    ("aten.ldexp.Tensor", [X, PLACES[:1]]),
    ("aten.heaviside.default", [X, ONE]),
    ("aten.copysign.Tensor", [P, -Y]),
    ("aten.nextafter.default", [X, Y]),
    ("aten.gcd.default", [W, W + 1]),
    ("aten.lcm.default", [W, W.flip(0)]),
    ("aten.isin.Tensor_Tensor", [X, Y]),
    ("aten.bucketize.Tensor", [X, P[0].sort().values]),
    ("aten.searchsorted.Tensor", [P[0].sort().values, X]),
    ("aten.cross.default", [X[:, :3], Y[:, :3], 1]),
    ("aten.linalg_cross.default", [X[:, :3], Y[:, :3]]),
    ("aten.cross_entropy_loss.default", [X, torch.arange(4)]),
    ("aten.nll_loss.default", [X, torch.arange(4)]),
    # of an image, of a table, of rows
    ("aten._adaptive_avg_pool2d.default", [IMAGE, [2, 2]]),
    ("aten._adaptive_avg_pool3d.default", [CUBE, [2, 2, 2]]),
    *(
        (f"aten._upsample_nearest_exact{axes}d.default", [of, [16] * axes])
        for axes, of in ((1, ROW), (2, IMAGE), (3, CUBE))
    ),
    ("aten.upsample_linear1d.default", [ROW, [127], True]),
    ("aten.upsample_bilinear2d.default", [IMAGE, [15, 15], True]),
    ("aten.upsample_trilinear3d.default", [CUBE, [7, 7, 7], True]),
    ("aten.upsample_bicubic2d.default", [IMAGE, [15, 15], True]),
    ("aten.native_channel_shuffle.default", [CUBE.view(1, 4, 4, 4), 2]),
    ("aten.max_unpool2d.default", [X.view(1, 4, 6), torch.arange(24).view(1, 4, 6), [8, 6]]),
    (
        "aten.max_unpool3d.default",
        [CUBE, torch.arange(64).view(1, 1, 4, 4, 4), [4, 4, 8], [1, 1, 2], [0, 0, 0]],
    ),
    ("aten._prelu_kernel.default", [X, P[:1, :1]]),
    ("aten.renorm.default", [X, 2, 0, 8.0]),
    ("aten.feature_alpha_dropout.default", [IMAGE, 0.5, False]),
    ("aten.rrelu_with_noise.default", [X, torch.empty(4, 6)]),
    ("aten._weight_norm.default", [X, Y[:, :1]]),
    ("aten._weight_norm_interface.default", [X, Y[:, :1]]),
    ("aten._embedding_bag.default", [Y, PLACES, torch.arange(3)]),
    ("aten._unsafe_index.Tensor", [X, [PLACES]]),
    ("aten._unsafe_index_put.default", [X, [PLACES], Y[:3]]),
    ("aten.put.default", [X, PLACES, Y[0, :3]]),
    ("aten.index_reduce.default", [torch.zeros(4, 6), 0, PLACES, Y[:3].abs(), "amax"]),
    ("aten.segment_reduce.default", [X, "max"]),
    ("aten.pad_sequence.default", [[X, Y]]),
    ("aten._pack_padded_sequence.default", [X.view(4, 2, 3), torch.tensor([4, 3]), False]),
    ("aten._pad_packed_sequence.default", [X, torch.tensor([2, 2]), False, 0.0, 2]),
    ("aten._unique2.default", [X]),
    ("aten.unique_dim.default", [X, 0]),
    ("aten.unique_consecutive.default", [X]),
    ("aten.matrix_power.default", [SQUARE, 1]),
    ("aten.linalg_matrix_power.default", [SQUARE, 1]),
    # more products
    *(
        (f"aten.{name}.default", [SQUARE @ SQUARE.T])
        for name in words("""
        cholesky linalg_cholesky linalg_cholesky_ex det linalg_det logdet slogdet linalg_slogdet
        inverse linalg_inv linalg_inv_ex linalg_qr qr linalg_lu_factor linalg_lu_factor_ex""")
    ),
    *((f"aten.{name}.default", [SQUARE, P[:, :3]]) for name in ("linalg_solve", "linalg_solve_ex")),
    ("aten.cholesky_solve.default", [P[:, :3], SQUARE.tril()]),
    ("aten.linalg_lu_solve.default", [SQUARE, PIVOTS, P[:, :3]]),
    ("aten.lu_solve.default", [P[:, :3], SQUARE, PIVOTS]),
    ("aten.linalg_multi_dot.default", [[X, Y.T, X]]),
    ("aten.chain_matmul.default", [[X, Y.T]]),
    ("aten.bilinear.default", [X[:, :2], Y[:, :2], P[:, :4].view(4, 2, 2)]),
    *((f"aten.{name}.default", [X, Y]) for name in ("cdist", "_euclidean_dist")),
    (
        "aten.lstm.input",
        [
            CUBE[0, 0, :, :, :],
            [P[:1, :4, None].mT.reshape(1, 4, 1)] * 2,
            [P[:, :4], P[:, :1]],
            False,
            1,
            0.0,
            False,
            False,
            False,
        ],
    ),
    (
        "aten.gru.input",
        [
            CUBE[0, 0],
            P[:1, :4].view(1, 4, 1),
            [P[:3, :4], P[:3, :1]],
            False,
            1,
            0.0,
            False,
            False,
            False,
        ],
    ),
    *(
        (
            f"aten.rnn_{name}.input",
            [
                CUBE[0, 0],
                P[:1, :4].view(1, 4, 1),
                [P[:1, :4], -P[:1, :1]],
                False,
                1,
                0.0,
                False,
                False,
                False,
            ],
        )
        for name in ("tanh", "relu")
    ),
    (
        "aten.lstm_cell.default",
        [Y, [P[:, :1], P[:, :1]], P, P[:, :1], ONE.expand(4), ONE.expand(4)],
    ),
    (
        "aten.gru_cell.default",
        [Y / 9, P[:, :1], P[:3] / 9, P[:3, :1], ONE.expand(3), ONE.expand(3)],
    ),
    *(
        (
            f"aten.rnn_{name}_cell.default",
            [P, P[:, :1], P[:1], P[:1, :1], ONE.expand(1), ONE.expand(1)],
        )
        for name in ("tanh", "relu")
    ),
    ("aten.addmv.default", [X[:, 0], X, Y[0]]),
    ("aten.addr.default", [X, Y[:, 0], Y[0]]),
    ("aten.outer.default", [X[0], Y[0]]),
    ("aten.ger.default", [X[0], Y[0]]),
    ("aten.vdot.default", [X[0], Y[0]]),
    ("aten.tensordot.default", [X, Y, [1], [1]]),
    ("aten.einsum.default", ["ij,kj->ik", [X, Y]]),
    ("aten.conv_tbc.default", [X.view(4, 2, 3), P[:1, :3, None], ONE.view(1)]),
]
"""Overload -> arguments on which it runs."""
KEYWORDS = {
    "aten.linalg_solve_triangular.default": {"upper": True},
    "aten.segment_reduce.default": {"lengths": torch.tensor([1, 3])},
}

TOLD_BY = {
    "argwhere",
    "one_hot",
    "nonzero",
    "any",
    "all",
    "logical_and",
    "logical_or",
    "logical_xor",
}
"""Their results are no elements of the argument, but tell each of them or the largest."""

LIKE_ANOTHER = {
    "convolution",
    "conv_transpose2d",
    "conv_transpose3d",
    "_scaled_mm",
    "_grouped_mm",
    "_fused_rms_norm",
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
    "native_group_norm",
    "instance_norm",
    "embedding_renorm",
    "_index_put_impl",
    "_reshape_alias",
    "_reshape_copy",
    "mH",
    "matrix_H",
    "_embedding_bag_forward_only",
    "nll_loss_nd",
    "nll_loss_forward",
    *words("""
        _native_batch_norm_legit _batch_norm_impl_index _batch_norm_no_update
        _batch_norm_with_update _addmm_activation _conv_depthwise2d conv_depthwise3d _convolution
        _convolution_mode convolution_overrideable thnn_conv2d _slow_conv2d_forward slow_conv3d
        slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
        slow_conv_transpose3d _int_mm _scaled_mm_v2 _mixed_dtypes_linear _weight_int8pack_mm
        _weight_int4pack_mm _weight_int4pack_mm_for_cpu"""),
}
"""Second names, or kernels, of what is tried."""

READS_NO_TENSOR = {"rand", "randn", "randint", "randperm"}

A_PART = 0.1
"""A result that has so many of its elements from an argument carries it."""


def tensors(argument: Any) -> Iterator[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from tensors(part)


def share(result: torch.Tensor, argument: torch.Tensor) -> float:
    """How much of a result is elements of an argument."""
    one, other = (
        torch.view_as_real(t).flatten() if t.is_complex() else t.flatten()
        for t in (result.resolve_conj(), argument.resolve_conj())
    )
    if not one.numel():
        return 0.0
    return float(torch.isin(one.double(), other.double()).double().mean())


def tried(
    target: str, args: list[Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[tuple[int, int], float]]:
    """What an op reads and makes, and how much of each result is elements of each argument.

    Of arguments that are places or masks nothing is said: their numbers are everywhere.
    """
    _, name, overload = target.split(".")
    call = getattr(getattr(torch.ops.aten, name), overload)
    made = list(tensors(call(*args, **KEYWORDS.get(target, {}))))
    read = list(data_args(target, tuple(tensors(args))))
    shares = {
        (n, m): share(result, argument)
        for n, argument in enumerate(read)
        for m, result in enumerate(made)
        if argument.is_floating_point() or argument.is_complex() or len(argument) % len(W) == 0
    }
    return read, made, shares


@pytest.mark.parametrize(
    ("target", "args"), CALLS, ids=[f"{target}-{n}" for n, (target, _) in enumerate(CALLS)]
)
def test_what_an_op_moves_is_what_torch_moves(target, args):
    """An op is said to move an argument if and only if a part of its result is elements of it."""
    read, made, shares = tried(target, args)
    same_size = bool(read) and read[0].numel() == made[0].numel()
    said = moves(target, len(read), len(made), same_size=same_size)
    assert {pair for pair, part in shares.items() if part >= A_PART} == {
        (n, m) for n, m in said if (n, m) in shares
    }


def test_every_op_that_has_a_kind_is_tried():
    known = {base_name(target) for target, _ in CALLS} | TOLD_BY | LIKE_ANOTHER | READS_NO_TENSOR
    here = {
        name
        for name in {*_KINDS, *MATRIX_PRODUCTS, *SEVERAL_PRODUCTS, *_MOVED_ARGS} - READS_NO_DATA
        if "." not in name
        and hasattr(torch.ops.aten, name)
        and not name.startswith(("_scaled_dot_product", "fft_"))
    }
    assert here - known == set()


@pytest.mark.parametrize(
    ("target", "args", "results", "moved"),
    [
        # Which rows are taken is in the result only together with the table, see partition.secrets.
        ("aten.embedding.default", 2, 1, {(0, 0)}),
        ("aten.copy_.default", 2, 1, {(1, 0)}),
        # In place: the other tensors in the memory are as they were, with what was written.
        ("aten.copy_.default", 3, 2, {(1, 0), (1, 1), (2, 1)}),
        ("aten.mul_.Tensor", 3, 2, {(2, 1)}),
        ("aten.index_put_.default", 4, 1, {(0, 0), (3, 0)}),
        ("aten.one_hot.default", 1, 1, {(0, 0)}),
        # What an op in no table does is not known.
        ("aten.never_heard_of.default", 2, 2, {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ("aten.arange.default", 0, 1, set()),
        ("output", 2, 0, set()),
    ],
)
def test_what_torch_is_not_asked(target, args, results, moved):
    assert set(moves(target, args, results, same_size=False)) == moved
