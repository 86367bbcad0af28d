"""ONNX files as op graphs: shapes and FLOPs by hand, and damage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

import numpy as np  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import cutedge  # noqa: E402
from costmodels.flops import total_flops  # noqa: E402
from tests.support.inprocess import invoke  # noqa: E402
from tracer.errors import CutedgeError, InputError  # noqa: E402
from tracer.graph import Kind, OpGraph, Role  # noqa: E402

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def shape(name: str, *sizes: int) -> Any:
    return numpy_helper.from_array(np.array(sizes, np.int64), name)


def save(
    path: Path,
    nodes: Sequence[tuple[str, str, str, dict[str, Any]]],
    inputs: Sequence[tuple[str, int, list[int | str]]],
    outputs: Sequence[str],
    weights: Sequence[Any],
    opset: int = 18,
) -> Path:
    """Nodes are (kind, inputs, outputs, attributes), with names between blanks."""
    graph = helper.make_graph(
        [helper.make_node(k, i.split(), o.split(), **more) for k, i, o, more in nodes],
        "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    """One head over tokens: a table [10, 4], q, k and v of [4, 4], a shape that is computed."""
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("Gather", "table ids", "x", {}),
        *(("MatMul", f"x w{p}", p, {"name": f"/layers.0/{p}_proj/MatMul"}) for p in "qkv"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "s", {"name": "/layers.0/MatMul"}),
        ("Mul", "s half", "h", {}),
        ("Softmax", "h", "p", {"axis": -1}),
        ("MatMul", "p v", "o", {}),
        ("Shape", "o", "dims", {}),
        ("Gather", "dims zero", "b", {}),
        ("Concat", "b rest", "flat_shape", {"axis": 0}),
        ("Reshape", "o flat_shape", "flat", {}),
        ("Gemm", "flat wg bg", "y", {"transB": 1}),
    ]
    weights = [weight("table", 10, 4), *(weight(f"w{p}", 4, 4) for p in "qkv")]
    weights += [weight("wg", 3, 24), weight("bg", 3), shape("zero", 0), shape("rest", -1)]
    weights.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    inputs: list[tuple[str, int, list[int | str]]] = [("ids", INT, ["batch", "sequence"])]
    return save(tmp_path / "head.onnx", nodes, inputs, ["y"], weights)


def ops(graph: OpGraph, *kinds: Kind) -> list[Any]:
    return [op for op in graph.ops if op.kind in kinds]


def test_shapes_and_products_by_hand(attention: Path) -> None:
    traced = cutedge.trace(attention, batch=2, seq=6)
    graph, b, s = traced.graph, 2, 6
    # 3 projections of [b s, 4] by [4, 4], both products of the head, [b, 24] by [24, 3]
    products = [2 * b * s * 4 * 4] * 3 + [2 * b * s * s * 4] * 2 + [2 * b * 24 * 3]
    found = ops(graph, Kind.LINEAR, Kind.MATMUL)
    assert [op.cost.flops for op in found] == products
    assert [op.kind for op in found] == [Kind.LINEAR] * 3 + [Kind.MATMUL] * 2 + [Kind.LINEAR]
    assert total_flops(graph).products == sum(products)
    assert graph.meta.parameters == 10 * 4 + 3 * 16 + 24 * 3 + 3
    assert [op.module_path for op in found][:4] == [
        *(f"layers.0.{p}_proj" for p in "qkv"),
        "layers.0",
    ]
    assert (graph.meta.batch, graph.meta.seq, graph.meta.symbolic) == (2, 6, ())
    # What computes a shape is no op, and a turned tensor is no work.
    assert [op.target for op in graph.ops] == [
        "input",
        "aten.embedding.default",
        *["aten.matmul.default"] * 3,
        "aten.permute.default",
        "aten.matmul.default",
        "aten.mul.Tensor",
        "aten.softmax.int",
        "aten.matmul.default",
        "aten.view.default",
        "aten.linear.default",
        "output",
    ]
    assert [op.is_view for op in graph.ops if op.kind is Kind.VIEW] == [True, True]
    assert traced.partition("min-cut").summary["optimal"]


def test_a_reshape_of_what_was_turned_is_a_copy(tmp_path: Path) -> None:
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("Transpose", "x", "t", {"perm": [0, 2, 1]}),
        ("Reshape", "t to", "flat", {}),
        ("Reshape", "x to", "plain", {}),
        ("Slice", "x from till axis", "part", {}),
        ("Add", "flat plain", "y", {}),
        ("Relu", "part", "z", {}),
    ]
    given = [shape("to", -1, 12), shape("from", 1), shape("till", 3), shape("axis", 1)]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3, 4])], ["y", "z"], given)
    graph = cutedge.trace(path, batch=5).graph
    told = {op.name: (op.kind, graph.outputs(op.id)[0].shape) for op in graph.ops[:-1]}
    assert told["reshape_0"] == (Kind.COPY, (5, 12))
    assert told["view_0"] == (Kind.VIEW, (5, 12))
    assert told["slice_0"] == (Kind.VIEW, (5, 2, 4))


def test_convolutions_pools_and_norms(tmp_path: Path) -> None:
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("Conv", "image w b", "c", {"kernel_shape": [3, 3], "pads": [1] * 4, "group": 2}),
        ("BatchNormalization", "c s o m v", "n", {}),
        ("Relu", "n", "r", {}),
        ("MaxPool", "r", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", "p", "g", {}),
    ]
    weights = [weight("w", 8, 2, 3, 3), *(weight(name, 8) for name in "bsomv")]
    path = save(tmp_path / "m.onnx", nodes, [("image", FLOAT, ["N", 4, "h", "w_"])], ["g"], weights)
    with pytest.raises(InputError, match="h is an axis without a number: give one with --set h="):
        cutedge.trace(path)
    graph = cutedge.trace(path, batch=2, overrides={"h": 6, "w_": 10}).graph
    conv, norm, _, pool = graph.ops[1:5]
    assert conv.cost.flops == 2 * (2 * 6 * 10) * 8 * (2 * 3 * 3)  # groups of 2 channels
    assert (norm.kind, pool.cost.flops) == (Kind.NORM, 2 * 8 * 3 * 5 * 3)  # 3 comparisons of 4
    assert graph.meta.parameters == 8 * 2 * 9 + 3 * 8  # the running mean and variance are buffers
    assert graph.meta.overrides == (("h", "6"), ("w_", "10"))
    with pytest.raises(InputError, match="leave --seq out"):
        cutedge.trace(path, seq=4, overrides={"h": 6, "w_": 10})


def test_an_op_without_a_formula_is_named(tmp_path: Path) -> None:
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("LpPool", "x", "p", {"kernel_shape": [2, 2]}),
        ("Relu", "p", "y", {}),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3, 4, 4])], ["y"], [])
    graph = cutedge.trace(path).graph
    assert total_flops(graph).unsupported == {"onnx.LpPool": 1}
    with pytest.raises(CutedgeError, match=r"onnx\.LpPool"):
        cutedge.trace(path, strict=True)


def test_cached_state_stays_where_it_is(tmp_path: Path) -> None:
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("Concat", "past_key_values.0.key new", "present.0.key", {"axis": 2}),
        ("ReduceSum", "present.0.key", "y", {}),
    ]
    inputs: list[tuple[str, int, list[int | str]]] = [
        ("past_key_values.0.key", FLOAT, ["batch", 2, "past_sequence_length", 8]),
        ("new", FLOAT, ["batch", 2, "sequence_length", 8]),
    ]
    path = save(tmp_path / "m.onnx", nodes, inputs, ["y", "present.0.key"], [])
    graph = cutedge.trace(path, batch=1, seq=1, past=16).graph
    states = [(t.name, t.shape) for t in graph.tensors if t.role is Role.KV_CACHE]
    assert states == [("cache.0.keys", (1, 2, 16, 8)), ("cat_0", (1, 2, 17, 8))]
    assert graph.meta.phase == "decode"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "is no ONNX model, or it is cut or damaged"),
        (lambda data: data[: len(data) // 2], "is no ONNX model, or it is cut or damaged"),
        (lambda data: bytes(100), "is no ONNX model, or it is cut or damaged"),
    ],
)
def test_a_damaged_file_is_a_line(damage: Any, said: str, attention: Path) -> None:
    attention.write_bytes(damage(attention.read_bytes()))
    done = invoke("trace", attention)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_newer_file_and_an_unknown_shape_are_lines(tmp_path: Path) -> None:
    relu: list[tuple[str, str, str, dict[str, Any]]] = [("Relu", "x", "y", {})]
    inputs: list[tuple[str, int, list[int | str]]] = [("x", FLOAT, ["N", 3])]
    newer = save(tmp_path / "newer.onnx", relu, inputs, ["y"], [], opset=999)
    with pytest.raises(CutedgeError, match=r"is of a newer ONNX \(opset 999"):
        cutedge.trace(newer)
    chosen: list[tuple[str, str, str, dict[str, Any]]] = [
        ("NonZero", "x", "n", {}),
        ("Cast", "n", "y", {"to": FLOAT}),
    ]
    path = save(tmp_path / "chosen.onnx", chosen, inputs, ["y"], [])
    with pytest.raises(CutedgeError, match="the shape of n, which NonZero makes, is not known"):
        cutedge.trace(path)
