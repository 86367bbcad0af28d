"""The cost of one op by itself: against torch's own counter where it counts, else by hand."""

from collections.abc import Callable
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from costmodels import formulas
from costmodels.flops import total_flops
from tests.support.calls import SEQ, Calls
from tracer import kinds
from tracer.capture import quiet
from tracer.capture.arguments import arguments
from tracer.formula import const
from tracer.graph import Kind, Status

PRODUCTS: list[tuple[str, Callable[..., torch.Tensor], list[tuple[int, ...]]]] = [
    ("conv1d", F.conv1d, [(2, 8, 10), (12, 8, 3)]),
    ("conv1d", lambda x, w: F.conv1d(x, w, padding=2, groups=8), [(2, 8, 10), (8, 1, 3)]),
    ("conv1d", lambda x, w: F.conv1d(x, w, stride=2, groups=4), [(8, 10), (12, 2, 3)]),
    ("conv1d", lambda x, w, b: F.conv1d(x, w, b, dilation=2), [(1, 4, 9), (6, 4, 2), (6,)]),
    ("conv2d", lambda x, w: F.conv2d(x, w, stride=(2, 1)), [(3, 4, 8, 9), (5, 4, 3, 2)]),
    ("conv3d", lambda x, w: F.conv3d(x, w, groups=2), [(1, 4, 5, 6, 7), (6, 2, 1, 2, 3)]),
    ("conv_transpose1d", F.conv_transpose1d, [(2, 8, 10), (8, 12, 3)]),
    (
        "conv_transpose2d",
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, groups=2),
        [(3, 4, 5, 6), (4, 5, 3, 2)],
    ),
    ("bmm", torch.bmm, [(4, 5, 6), (4, 6, 7)]),
    ("baddbmm", torch.baddbmm, [(4, 5, 7), (4, 5, 6), (4, 6, 7)]),
    ("addmm", torch.addmm, [(7,), (5, 6), (6, 7)]),
    ("matmul", torch.matmul, [(2, 3, 5, 6), (2, 1, 6, 7)]),
    ("_grouped_mm", torch.bmm, [(4, 5, 6), (4, 6, 7)]),  # without a split, pair by pair
]


@pytest.mark.parametrize(
    ("name", "function", "shapes"),
    PRODUCTS,
    ids=[f"{name} {number}" for number, (name, *_) in enumerate(PRODUCTS)],
)
def test_a_product_equals_torch(name, function, shapes):
    tensors = [torch.zeros(shape, device="meta") for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        result = function(*tensors)
    calls = Calls()
    calls.call(f"aten.{name}.default", *(calls.input(*s) for s in shapes), out=result.shape)
    cost = calls.cost()
    assert cost.flops == counter.get_total_flops() > 0
    assert cost.flops_status is Status.EXACT
    gemm = cost.gemm
    assert 2 * gemm.batch * gemm.m * gemm.n * gemm.k == cost.flops


@pytest.mark.parametrize(
    "target", ["aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"]
)
def test_rows_of_a_grouped_product_meet_one_expert_each(target):
    """However 10 tokens are split over 3 experts, the products are those of 10 rows."""
    split = (3, 0, 7)
    with FlopCounterMode(display=False) as counter:
        for rows in split:
            torch.mm(torch.zeros(rows, 4, device="meta"), torch.zeros(4, 5, device="meta"))
    calls = Calls(seq=sum(split))
    ends = calls.input(3, dtype="int32")
    calls.call(target, calls.input(SEQ, 4), calls.state(3, 4, 5), ends, out=(SEQ, 5))
    (op,) = calls.ops()
    assert op.kind is Kind.LINEAR
    assert op.cost.flops == counter.get_total_flops()
    assert op.cost.flops_expr == "40*seq"


def test_a_convolution_is_a_product_with_a_formula():
    """Mamba's: each of 8 channels with its own 4 taps, padded by 3 on both sides."""
    calls = Calls()
    x, kernel = calls.input(1, 8, SEQ), calls.state(8, 1, 4)
    calls.call("aten.conv1d.default", x, kernel, out=(1, 8, SEQ + 3))
    (op,) = calls.ops()
    assert op.kind is Kind.LINEAR
    assert op.cost.flops_expr == "64*seq + 192"  # 2 * 8 * 4 * (seq + 3)
    gemm = op.cost.gemm
    assert (gemm.batch, gemm.m, gemm.n, gemm.k) == (8, 9, 1, 4)


@pytest.mark.parametrize(
    ("target", "shapes", "out", "flops", "status"),
    [
        ("cumsum.default", [(5, SEQ)], (5, SEQ), "5*seq", Status.ESTIMATE),
        ("sum.dim_IntList", [(5, SEQ)], (5,), "5*seq - 5", Status.EXACT),
        ("max.dim", [(5, SEQ)], (5,), "5*seq", Status.ESTIMATE),
        # one of two tensors, element by element
        ("max.other", [(5, SEQ), ()], (5, SEQ), "5*seq", Status.EXACT),
        ("min.other", [(5, 1), (SEQ,)], (5, SEQ), "5*seq", Status.EXACT),
        ("multiply.Tensor", [(5, SEQ), (SEQ,)], (5, SEQ), "5*seq", Status.EXACT),
        ("topk.default", [(SEQ, 8)], (SEQ, 2), "0", Status.ZERO),
        ("softplus.default", [(SEQ, 8)], (SEQ, 8), "24*seq", Status.ESTIMATE),
        ("log_sigmoid.default", [(SEQ, 8)], (SEQ, 8), "32*seq", Status.ESTIMATE),
        ("var.correction", [(5, SEQ)], (5,), "20*seq", Status.ESTIMATE),
        ("linalg_vector_norm.default", [(5, SEQ)], (5,), "10*seq", Status.ESTIMATE),
        ("logsumexp.default", [(5, SEQ)], (5,), "20*seq", Status.ESTIMATE),
        # 4 x 4 systems for as many right sides as there are tokens: row i takes i rows before it
        (
            "linalg_solve_triangular.default",
            [(4, 4), (4, SEQ)],
            (4, SEQ),
            "16*seq",
            Status.ESTIMATE,
        ),
        # a vector in place of a matrix of weights
        ("linear.default", [(4, SEQ, 33), (33,)], (4, SEQ), "264*seq", Status.EXACT),
        # 4 rows of 3 added to 9
        ("index_add.default", [(9, 3), (4,), (4, 3)], (9, 3), "12", Status.EXACT),
        ("scatter_add.default", [(9, 3), (4, 3), (5, 3)], (9, 3), "12", Status.EXACT),
        # 2 images' 9 patches of 3 channels x 2 x 2: as many additions as elements of them
        ("col2im.default", [(2, 12, 9)], (2, 3, 4, 4), "216", Status.EXACT),
        # subtract, divide, scale, shift, with mean and variance of each of 5 channels
        ("batch_norm.default", [(2, 5, SEQ), (5,), (5,)], (2, 5, SEQ), "40*seq", Status.ESTIMATE),
        # 2 x 2 means of 4 each: 3 additions and a division
        ("adaptive_avg_pool2d.default", [(7, 4, 4)], (7, 2, 2), "112", Status.ESTIMATE),
        # clamp(x + 3, 0, 6) / 6, and times x
        ("hardsigmoid.default", [(SEQ, 8)], (SEQ, 8), "24*seq", Status.ESTIMATE),
        ("hardswish.default", [(SEQ, 8)], (SEQ, 8), "32*seq", Status.ESTIMATE),
        ("logcumsumexp.default", [(5, SEQ)], (5, SEQ), "25*seq", Status.ESTIMATE),
        ("scatter_reduce.two", [(9, 3), (4, 3), (4, 3)], (9, 3), "12", Status.ESTIMATE),
        ("embedding_bag.default", [(50, 8), (SEQ,), (3,)], (3, 8), "8*seq", Status.ESTIMATE),
        # no shape tells how wide the windows are
        ("max_pool2d.default", [(7, 4, 4)], (7, 2, 2), None, Status.UNSUPPORTED),
        ("einsum.default", [(5, SEQ), (SEQ, 5)], (5, 5), None, Status.UNSUPPORTED),
        # what a decomposition has as its leading term; what is done until it is small enough
        ("linalg_inv.default", [(3, 6, 6)], (3, 6, 6), "1296", Status.ESTIMATE),
        ("linalg_cholesky.default", [(3, 6, 6)], (3, 6, 6), "216", Status.ESTIMATE),
        ("linalg_solve.default", [(6, 6), (6, SEQ)], (6, SEQ), "72*seq + 144", Status.ESTIMATE),
        ("linalg_qr.default", [(6, 6)], (6, 6), "576", Status.ESTIMATE),
        ("linalg_svd.default", [(6, 6)], (6, 6), None, Status.UNSUPPORTED),
    ],
)
def test_other_ops(target, shapes, out, flops, status):
    calls = Calls()
    calls.call(f"aten.{target}", *(calls.input(*shape) for shape in shapes), out=out)
    cost = calls.cost()
    assert (cost.flops_expr, cost.flops_status) == (flops, status)


TOLD = [
    # 7 channels x 2 x 2 windows of 3 x 3: 9 additions and a division less one, or 8 comparisons
    ("avg_pool2d.default", [(7, 4, 4)], (7, 2, 2), {"kernel_size": [3, 3]}, 7 * 4 * 9),
    ("avg_pool2d.default", [(7, 4, 4)], (7, 2, 2), {"kernel_size": [3]}, 7 * 4 * 9),
    ("max_pool2d.default", [(7, 4, 4)], (7, 2, 2), {"kernel_size": [2, 3]}, 7 * 4 * 5),
    ("max_pool2d.default", [(7, 4, 4)], (7, 2, 2), {}, None),
    # 5 n log2 n for each of 3 transforms of 8 points; half of that of numbers that are real
    ("fft_fft.default", [(3, 8)], (3, 8), {}, 5 * 3 * 8 * 3),
    ("fft_fft.default", [(8, 3)], (8, 3), {"dim": 0}, 5 * 3 * 8 * 3),
    ("fft_rfft.default", [(3, 8)], (3, 5), {}, 5 * 3 * 8 * 3 // 2),
    ("fft_irfft.default", [(3, 5)], (3, 8), {}, 5 * 3 * 8 * 3 // 2),
    # 8 x 4 points: log2 of 32 is 5
    ("fft_fftn.default", [(8, 4)], (8, 4), {}, 5 * 32 * 5),
    ("fft_fft2.default", [(3, 8, 4)], (3, 8, 4), {}, 5 * 3 * 32 * 5),
    ("fft_fftn.default", [(3, 8, 4)], (3, 8, 4), {"dim": [1, 2]}, 5 * 3 * 32 * 5),
    ("fft_fftn.default", [(3, 8, 4)], (3, 8, 4), {"s": [8, 4]}, 5 * 3 * 32 * 5),
    # what is added is multiplied first
    ("add.Tensor", [(7, 4), (7, 4)], (7, 4), {"alpha": 5}, 2 * 28),
    ("sub.Tensor", [(7, 4), (7, 4)], (7, 4), {"alpha": 0.5}, 2 * 28),
    ("rsub.Scalar", [(7, 4)], (7, 4), {}, 28),
    ("addcmul.default", [(7, 4)] * 3, (7, 4), {}, 2 * 28),
    ("addcdiv.default", [(7, 4)] * 3, (7, 4), {"value": 2}, 3 * 28),
    ("index_add.default", [(9, 3), (4,), (4, 3)], (9, 3), {"alpha": 2}, 2 * 12),
    # a threshold's value is none that is multiplied by; nor is torch's count of a product its bias
    ("threshold.default", [(7, 4)], (7, 4), {"value": 2}, 28),
    ("addmm.default", [(7, 5), (7, 4), (4, 5)], (7, 5), {"alpha": 2, "beta": 3}, 2 * 7 * 4 * 5),
    # draw and scale; draw, scale and shift; draw a slope and multiply, or multiply by the mean one
    ("dropout.default", [(7, 4)], (7, 4), {"train": True}, 2 * 28),
    ("alpha_dropout.default", [(7, 4)], (7, 4), {"train": True}, 3 * 28),
    ("rrelu.default", [(7, 4)], (7, 4), {"training": True}, 2 * 28),
    ("rrelu.default", [(7, 4)], (7, 4), {}, 28),
    # mean and variance (4 steps) of what is normed are known, or made in the run
    ("batch_norm.default", [(7, 4), (4,), (4,)], (7, 4), {"training": False}, 4 * 28),
    ("batch_norm.default", [(7, 4), (4,), (4,)], (7, 4), {"training": True}, 8 * 28),
    ("instance_norm.default", [(7, 4, 3)], (7, 4, 3), {"use_input_stats": True}, 8 * 84),
    ("instance_norm.default", [(7, 4, 3)], (7, 4, 3), {"use_input_stats": False}, 4 * 84),
    # the table's rows are added, or multiplied first
    ("embedding_bag.default", [(50, 8), (10,), (3,)], (3, 8), {}, 10 * 8),
    ("embedding_bag.default", [(50, 8), (10,), (3,), (10,)], (3, 8), {}, 2 * 10 * 8),
    # the products of a kernel with the places that it is put to, or that it is spread from
    (
        "convolution.default",
        [(1, 4, 9), (6, 4, 3)],
        (1, 6, 7),
        {"transposed": False},
        2 * 7 * 12 * 6,
    ),
    (
        "convolution.default",
        [(1, 4, 9), (4, 6, 3)],
        (1, 6, 11),
        {"transposed": True},
        2 * 9 * 18 * 4,
    ),
    # a square and a product; 3 = 0b11
    ("linalg_matrix_power.default", [(7, 4, 4)], (7, 4, 4), {"n": 3}, 2 * 2 * 7 * 4**3),
    ("linalg_matrix_power.default", [(7, 4, 4)], (7, 4, 4), {"n": -1}, None),
]


@pytest.mark.parametrize(("target", "shapes", "out", "told", "flops"), TOLD)
def test_what_an_op_is_told_decides(target, shapes, out, told, flops):
    calls = Calls()
    calls.call(f"aten.{target}", *(calls.input(*shape) for shape in shapes), out=out, **told)
    cost = calls.cost()
    assert cost.flops == flops
    assert cost.causal_flops is None
    closed = "fft" not in target and flops is not None
    assert cost.flops_expr == (str(flops) if closed else None)


def test_a_size_among_the_arguments_is_a_formula():
    calls = Calls(seq=6)
    told = {"kernel_size": [{"size": "seq // 2"}, 2]}
    calls.call("aten.avg_pool2d.default", calls.input(7, SEQ, 4), out=(7, 2, 2), **told)
    cost = calls.cost()
    assert (cost.flops, cost.flops_expr) == (7 * 4 * 3 * 2, "56*(seq // 2)")


class Told(torch.nn.Module):
    """Calls that are told what they do in all ways that there are."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [
            F.max_pool2d(x, 3, stride=2, padding=1),
            F.avg_pool1d(x[0], [4]),
            torch.fft.fftn(x, dim=(2, 3)).real,
            torch.fft.rfft(x).real,
            torch.add(x, x, alpha=5),
            x + 3,
            x * 2j,
            F.dropout(x, 0.3, training=True),
            F.batch_norm(x, None, None, training=True),
            torch.tensordot(y, y, dims=1),
            torch.zeros_like(y, dtype=torch.float64, device="meta"),
            x.softmax(-1, dtype=torch.float64),
        ]


def test_arguments_are_read_from_the_calls():
    """Defaults, dtypes, devices and numbers that are only computed with are left out."""
    seq = torch.export.Dim("seq", min=4)
    with quiet(), torch.device("meta"):
        exported = torch.export.export(
            Told(),
            (torch.zeros(2, 3, 8, 16), torch.zeros(5, 5)),
            dynamic_shapes=({2: seq}, {}),
            strict=False,
        )

    def size(found):
        return const(found) if isinstance(found, int) else SEQ

    told = [
        (
            node.target.name().split("::")[1],
            dict(arguments(node.target, node.args, node.kwargs, size)),
        )
        for node in exported.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    ]
    named = {name: found for name, found in told if name not in ("sym_size.int", "view_as_real")}
    assert named["max_pool2d"] == {"kernel_size": "[3, 3]", "stride": "[2, 2]", "padding": "[1, 1]"}
    assert named["avg_pool1d"] == {"kernel_size": "[4]"}
    assert named["fft_fftn"] == {"dim": "[2, 3]"}
    assert named["fft_rfft"] == {}
    assert [found for name, found in told if name == "add.Tensor"] == [{"alpha": "5"}, {}]
    assert named["mul.Tensor"] == {"other": '{"complex": [0.0, 2.0]}'}
    assert named["dropout"] == {"train": "true"}
    assert named["batch_norm"]["training"] == "true"
    assert named["tensordot"] == {"dims_self": "[-1]", "dims_other": "[0]"}
    assert named["zeros_like"] == {}
    assert named["softmax.int"] == {"dim": "-1"}


@pytest.mark.parametrize(
    ("target", "shapes", "out", "read", "written"),
    [
        # 4 rows of 3, by their numbers
        ("index_select.default", [(9, 3), (4,)], (4, 3), 4 * 3 + 2 * 4, 4 * 3),
        ("gather.default", [(9, 3), (9, 1)], (9, 1), 9 + 2 * 9, 9),
        # no more of a table than there is, however many ask for it
        ("embedding.default", [(2, 3), (9,)], (9, 3), 2 * 3 + 2 * 9, 9 * 3),
        # 2 x 5 rows of 3 each, summed by fives
        ("embedding_bag.default", [(50, 3), (10,)], (2, 3), 10 * 3 + 2 * 10, 2 * 3),
        # a new tensor: 4 rows are put, 5 come from the old one
        ("index_put.default", [(9, 3), (4,), (4, 3)], (9, 3), 9 * 3 + 2 * 4, 9 * 3),
        ("index_copy.default", [(9, 3), (4,), (4, 3)], (9, 3), 9 * 3 + 2 * 4, 9 * 3),
        ("slice_scatter.default", [(9, 3), (4, 3)], (9, 3), 9 * 3, 9 * 3),
        ("scatter.src", [(9, 3), (4, 3), (4, 3)], (9, 3), 9 * 3 + 2 * 12, 9 * 3),
        # the places that are added to are read too
        ("index_add.default", [(9, 3), (4,), (4, 3)], (9, 3), 9 * 3 + 2 * 4 + 4 * 3, 9 * 3),
        # in place: only what is put is touched
        ("index_put_.default", [(9, 3), (4,), (4, 3)], (9, 3), 2 * 4 + 4 * 3, 4 * 3),
        ("index_add_.default", [(9, 3), (4,), (4, 3)], (9, 3), 2 * 4 + 2 * 4 * 3, 4 * 3),
        ("copy_.default", [(9, 3), (9, 3)], (9, 3), 9 * 3, 9 * 3),
        ("fill_.Scalar", [(9, 3)], (9, 3), 0, 9 * 3),
        ("add_.Tensor", [(9, 3), (3,)], (9, 3), 9 * 3 + 3, 9 * 3),
        # all that is read and written, once: however often a softmax goes over it
        ("cat.default", [(9, 3), (4, 3)], (13, 3), 13 * 3, 13 * 3),
        ("where.self", [(9, 1), (9, 3), (1,)], (9, 3), 9 + 9 * 3 + 1, 9 * 3),
        ("softmax.int", [(9, 3)], (9, 3), 9 * 3, 9 * 3),
        ("layer_norm.default", [(9, 3), (3,), (3,)], (9, 3), 9 * 3 + 3 + 3, 9 * 3),
        ("sum.dim_IntList", [(9, 3)], (9,), 9 * 3, 9),
        # q, k, v and the mask; no scores
        (
            "scaled_dot_product_attention.default",
            [(2, 7, 4), (2, 9, 4), (2, 9, 4), (7, 9)],
            (2, 7, 4),
            2 * (7 + 9 + 9) * 4 + 7 * 9,
            2 * 7 * 4,
        ),
    ],
)
def test_traffic_in_elements_of_four_bytes(target, shapes, out, read, written):
    """A number of a place takes as much as two elements."""
    calls = Calls()
    places = {
        "index_select": 1,
        "gather": 1,
        "embedding": 1,
        "embedding_bag": 1,
        "index_put": 1,
        "index_copy": 1,
        "scatter": 1,
        "index_add": 1,
    }
    at = places.get(target.split(".")[0].rstrip("_"))
    dtypes = ["int64" if n == at else "float32" for n in range(len(shapes))]
    args = [calls.input(*s, dtype=dtype) for s, dtype in zip(shapes, dtypes, strict=True)]
    calls.call(f"aten.{target}", *args, out=out)
    cost = calls.cost()
    assert (cost.read_bytes, cost.write_bytes) == (4 * read, 4 * written)


def test_every_op_that_computes_has_a_formula():
    """What the kinds name, apart from products that no shape tells: and moves, which cost none."""
    computing = {Kind.ATTENTION, Kind.SOFTMAX, Kind.NORM, Kind.ELEMENTWISE, Kind.REDUCTION}
    named = {name for name, kind in kinds._KINDS.items() if kind in computing}
    assert {*named, *kinds.MATRIX_PRODUCTS} - {*formulas.REGISTRY} == {"einsum"}


def test_equal_sizes_with_unlike_formulas_keep_their_own():
    """At seq 6 a [6, 6] may be seq x 6 or seq x seq."""
    calls = Calls(seq=6)
    for shape in ((SEQ, 6), (SEQ, SEQ), (6, 6)):
        calls.call("aten.neg.default", calls.input(*shape), out=shape)
    assert [op.cost.flops_expr for op in calls.ops()] == ["6*seq", "seq**2", "36"]


def test_traffic_is_that_of_the_op_itself():
    """Calls alike in target and input that differ in the result, or in reading one input twice."""
    calls = Calls()
    x, y = calls.input(10), calls.input(10)
    calls.call("aten.to.dtype", x, out=(10,), dtype="float64")
    calls.call("aten.to.dtype", x, out=(10,), dtype="float16")
    calls.call("aten.mul.Tensor", x, y, out=(10,))
    calls.call("aten.mul.Tensor", x, x, out=(10,))
    traffic = [(op.cost.read_bytes, op.cost.write_bytes) for op in calls.ops()]
    assert traffic == [(40, 80), (40, 20), (80, 40), (40, 40)]


def test_parameter_bytes_are_those_that_are_read():
    calls = Calls()
    table, ids, rows = calls.state(100, 8), calls.input(SEQ, dtype="int64"), calls.input(50, 8)
    weight = calls.state(5, 8)
    x = calls.call("aten.embedding.default", table, ids, out=(SEQ, 8))
    calls.call("aten.index.Tensor", rows, ids, out=(SEQ, 8))
    calls.call("aten.linear.default", x, weight, out=(SEQ, 5))
    calls.call("aten.neg.default", x, out=(SEQ, 8))
    costs = [op.cost for op in calls.ops()]
    assert [cost.param_bytes for cost in costs] == [6 * 8 * 4, 0, 5 * 8 * 4, 0]
    assert [cost.read_bytes - cost.param_bytes for cost in costs] == [
        6 * 8,
        6 * 8 * 4 + 6 * 8,
        6 * 8 * 4,
        6 * 8 * 4,
    ]


def test_a_concrete_trace_has_no_formulas():
    calls = Calls(symbolic=False)
    x = calls.input(4, 6)
    copied = calls.call("aten.clone.default", x, out=(4, 6))
    compared = calls.call("aten.gt.Scalar", copied, out=(4, 6), dtype="bool")
    calls.call("aten.where.self", compared, x, x, out=(4, 6))
    calls.call("aten.linear.default", x, calls.state(6, 6), out=(4, 6))
    graph = calls.graph()
    assert [op.cost.flops for op in graph.ops] == [0, 0, 0, 0, 2 * 4 * 6 * 6, 0]
    assert {op.cost.flops_expr for op in graph.ops} == {None}


def test_totals_tell_which_products_they_lack():
    calls = Calls()
    x, weight = calls.input(SEQ, 8), calls.state(8, 8)
    calls.call("aten.linear.default", x, weight, out=(SEQ, 8))
    for _ in range(2):
        calls.call("aten.einsum.default", x, weight, out=(SEQ, 8))
    calls.call("aten.linalg_svd.default", x, out=(8,))
    calls.call("aten.never_heard_of.default", x, out=(SEQ, 8))
    totals = total_flops(calls.graph())
    assert totals.products == 2 * prod((6, 8, 8))
    # What was never heard of may multiply too.
    assert totals.products_missing == {
        "aten.einsum.default": 2,
        "aten.linalg_svd.default": 1,
        "aten.never_heard_of.default": 1,
    }
    assert totals.unsupported == totals.products_missing
    assert totals.coverage == 1 / 5
