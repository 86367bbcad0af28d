"""The shapes in an ONNX graph, from those of its inputs, and what computes shapes."""

import math
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from tracer.errors import CutedgeError
from tracer.words import plain

if TYPE_CHECKING:
    from tracer.onnx_files import OnnxFile

Proto = Any
"""A message of the ``onnx`` package."""

FEW = 32
"""Elements of what may be a shape."""


def attributes(node: Proto) -> dict[str, Any]:
    """What a node is told beside its tensors, by name."""
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def types_of(graph: Proto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor -> (dtype, shape), of all whose shapes are known."""
    from onnx import TensorProto, helper

    names = {TensorProto.BFLOAT16: "bfloat16"}
    found = {}
    for one in (*graph.input, *graph.value_info, *graph.output):
        told = one.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in told.shape.dim]
        if told.elem_type and told.HasField("shape") and None not in dims:
            kind = names.get(told.elem_type)
            kind = kind or str(helper.tensor_dtype_to_np_dtype(told.elem_type))
            found[one.name] = kind, tuple(n for n in dims if n is not None)
    for one in graph.initializer:
        kind = names.get(one.data_type) or str(helper.tensor_dtype_to_np_dtype(one.data_type))
        found[one.name] = kind, tuple(one.dims)
    return found


_COMPUTED = """
    Shape Size Gather Concat Slice Unsqueeze Squeeze Cast Add Sub Mul Div Mod Min Max Neg Abs
    ReduceProd ReduceSum ReduceMax ReduceMin Reshape Equal Where Constant Identity Floor Ceil
    ConstantOfShape Range Expand Split Not And Or Less Greater Pow Sqrt"""
_SHAPES = frozenset(_COMPUTED.split())
"""Nodes that may compute a shape."""


def inferred(
    read: "OnnxFile", numbers: Mapping[str, tuple[int, ...]]
) -> tuple[Proto, dict[str, Any]]:
    """(the graph with all shapes that follow from those of its inputs, numbers that are known)

    What is computed of shapes alone is computed, so that what is reshaped by it has a shape too.
    """
    import onnx
    from onnx import helper, numpy_helper, shape_inference

    model = onnx.ModelProto()
    model.CopyFrom(read.model)
    graph = model.graph
    for one in graph.input:
        for axis, size in enumerate(numbers.get(one.name, ())):
            one.type.tensor_type.shape.dim[axis].dim_value = size
    del graph.value_info[:]  # which may have axes without numbers
    for one in graph.output:
        one.type.tensor_type.ClearField("shape")
    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    opsets = {one.domain: one.version for one in model.opset_import}
    for _ in range(50):
        try:
            found = shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:  # of its C++ part
            raise CutedgeError(
                f"{read.file}: its shapes cannot be inferred: {plain(str(error).splitlines()[0], 200)}"
            ) from error
        types = types_of(found.graph)
        before = len(known) + len(graph.value_info)
        for node in graph.node:
            _compute(node, types, known, opsets)
            if (shape := _made_shape(node, known)) is not None and node.output[0] not in types:
                kind = (
                    helper.np_dtype_to_tensor_dtype(known[node.input[0]].dtype)
                    if node.op_type == "Range"
                    else _filling(node)
                )
                graph.value_info.append(helper.make_tensor_value_info(node.output[0], kind, shape))
        there = {one.name for one in graph.initializer}
        new = [name for name in known if name not in there]
        graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in new)
        kept = [node for node in graph.node if not all(name in known for name in node.output)]
        del graph.node[:]
        graph.node.extend(kept)
        if len(known) + len(graph.value_info) == before:
            return found.graph, known
    return found.graph, known


def _compute(
    node: Proto,
    types: Mapping[str, tuple[str, tuple[int, ...]]],
    known: dict[str, Any],
    opsets: Mapping[str, int],
) -> None:
    """Note what a node makes of numbers that are known, where those are as few as a shape has."""
    import numpy as np
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    if node.op_type not in _SHAPES or node.domain not in ("", "ai.onnx"):
        return
    if node.output[0] in known or len(node.output) > 8:
        return
    if node.op_type in ("Shape", "Size") and names[0] in types:
        shape = types[names[0]][1]
        told = attributes(node)
        part = shape[told.get("start", 0) : told.get("end", len(shape))]
        value = part if node.op_type == "Shape" else prod(shape)
        known[node.output[0]] = np.array(value, np.int64)
        return
    if not all(name in known and known[name].size <= FEW for name in names):
        return
    made = _made_shape(node, known)
    if node.op_type in ("Range", "Expand") or (made is not None and prod(made) > FEW):
        return  # an op of the model, as it is in torch
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(known[name].dtype), known[name].shape
            )
            for name in dict.fromkeys(names)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    try:
        results = ReferenceEvaluator(graph, opsets=opsets).run(
            None, {name: known[name] for name in names}
        )
    except Exception:  # what cannot be computed is not known
        return
    known.update(zip((name for name in node.output if name), map(np.asarray, results), strict=True))


def _made_shape(node: Proto, known: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a range, or of what is filled with one number, where it follows from numbers."""
    given: list[Any] = [known.get(name) for name in node.input]
    if node.op_type not in ("Range", "ConstantOfShape") or any(one is None for one in given):
        return None
    if node.op_type == "Range":
        start, limit, step = (float(one) for one in given)
        return (max(0, math.ceil((limit - start) / step)),) if step else None
    return tuple(map(int, given[0]))


def _filling(node: Proto) -> int:
    """The dtype of what ``ConstantOfShape`` makes: float32 where it does not say."""
    value = attributes(node).get("value")
    return int(value.data_type) if value is not None else 1
