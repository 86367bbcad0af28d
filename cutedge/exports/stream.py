"""A trace as a workload of Stream (KU Leuven): an ONNX model without the values of its weights.

Stream, unlike ZigZag, takes connected layers, and places and fuses them on several cores. It reads
matrix products, softmax, layer norms and elementwise ops. It is shapes that it reads: a view or a
copy between two ops is a reshape, whatever it turns, a weight has no values, and leading axes of one
element are left out, since Stream costs no operand that is one long where another is longer.

What Stream has no operator for (an embedding, a slice, the mean of an RMS norm) is computed
elsewhere: what it makes is an input of the model. So are the operands of a convolution, which is
written as the product that it is.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from costmodels.flops import FREE
from tracer.errors import InputError
from tracer.graph import Kind, Op, OpGraph, Role, Tensor
from tracer.kinds import base_name

OPSET, IR_VERSION = 17, 8

ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "relu": "Relu",
    "silu": "Silu",
    "gelu": "Gelu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
"""Stream's operator of an ATen op. A number that is added or multiplied with is no operand there."""

_TYPES = {"float32": "FLOAT", "bfloat16": "BFLOAT16", "float16": "BFLOAT16", "int8": "INT8"}
_TYPES |= {"int16": "INT16", "int32": "INT32"}
"""The types that Stream knows: one of 16 bits for both."""


def workload(graph: OpGraph) -> tuple[bytes, int, dict[str, int]]:
    """(the model, how many products it has, target -> ops that are computed elsewhere).

    Raises InputError where the ``onnx`` package is missing, and for a dtype that Stream lacks.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise InputError(
            "export stream needs the onnx package: pip install 'cutedge[onnx]', or pip install onnx"
        ) from error
    made = _Model(graph, helper)
    for op in graph.ops:
        made.take(op)
    return made.serialised(), made.products, dict(made.elsewhere)


class _Model:
    """An ONNX model as it is built."""

    def __init__(self, graph: OpGraph, helper: Any) -> None:
        self._graph, self._helper = graph, helper
        self._names: dict[int, str] = {}  # by tensor that a node here makes
        self._sources: dict[int, str] = {}  # by tensor: the one that it is a view or a copy of
        self._inputs: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._values: dict[str, Any] = {}
        self.products = 0
        self.elsewhere: Counter[str] = Counter()

    def take(self, op: Op) -> None:
        """One op of the graph, as a node or as one that is computed elsewhere."""
        if op.is_constant or op.kind in (Kind.INPUT, Kind.OUTPUT):
            return
        outputs, reads = self._graph.outputs(op.id), self._graph.inputs(op.id)
        moves = op.is_view or op.kind is Kind.COPY
        if moves and len(reads) == len(outputs) == 1 and outputs[0].numel == reads[0].numel:
            if source := self._sources.get(reads[0].id, self._names.get(reads[0].id)):
                self._sources[outputs[0].id] = source
            return
        node = None if len(outputs) != 1 else self._node_of(op, outputs[0])
        if node is not None:
            kind, inputs, attributes = node
            self._add(op.name, kind, inputs, outputs[0], attributes)
        elif op.kind not in FREE and op.name not in self._values:
            self.elsewhere[op.target] += 1

    def _node_of(self, op: Op, made: Tensor) -> tuple[str, list[str], Mapping[str, Any]] | None:
        """(operator, inputs, attributes); None of what Stream has no operator for."""
        name, reads = base_name(op.target), self._graph.inputs(op.id)
        told = {key: json.loads(text) for key, text in op.arguments}
        if op.cost.gemm is not None:
            self.products += op.cost.gemm.batch
            return self._product(op, reads, made)
        if name in ELEMENTWISE and reads:
            return ELEMENTWISE[name], [*map(self._operand, reads)], {}
        if op.kind is Kind.SOFTMAX and made.shape == reads[0].shape:
            return "Softmax", [self._operand(reads[0])], {"axis": int(told.get("dim", -1))}
        if name == "layer_norm":
            width = made.shape[-1:]
            scale = self._weight(f"{op.name}.scale", width, made.dtype)
            return "LayerNormalization", [self._operand(reads[0]), scale], {"axis": -1}
        return None

    def _product(
        self, op: Op, reads: Sequence[Tensor], made: Tensor
    ) -> tuple[str, list[str], Mapping[str, Any]] | None:
        """A product of the tensors as they lie; of a convolution, the product that it is, of inputs
        of its own."""
        gemm = op.cost.gemm
        assert gemm is not None
        matrices = [tensor for tensor in reads if len(tensor.shape) > 1]
        if len(matrices) == 1:
            matrices *= 2
        left, right = matrices[-2:]
        inner = (right.shape[-2], right.shape[-1])
        if right.role is Role.PARAMETER and len(right.shape) == 2:
            k, n = inner if inner == (gemm.k, gemm.n) else inner[::-1]
            if left.shape[-1] == k and made.shape == (*left.shape[:-1], n):
                return (
                    "MatMul",
                    [self._operand(left), self._weight(right.name, (k, n), right.dtype)],
                    {},
                )
        elif left.shape[-1] == inner[0] and made.shape[-2:] == (left.shape[-2], inner[1]):
            return "MatMul", [self._operand(left), self._operand(right)], {}
        batch = (gemm.batch,) if gemm.batch > 1 else ()
        sizes = {"left": (gemm.m, gemm.k), "right": (gemm.k, gemm.n)}
        operands = [
            self._input(f"{op.name}.{at}", (*batch, *s), made.dtype) for at, s in sizes.items()
        ]
        self._add(
            op.name, "MatMul", operands, replace(made, id=-1, shape=(*batch, gemm.m, gemm.n)), {}
        )
        return None

    def _add(
        self, name: str, kind: str, inputs: list[str], made: Tensor, attributes: Mapping[str, Any]
    ) -> None:
        self._nodes.append(self._helper.make_node(kind, inputs, [name], name=name, **attributes))
        self._values[name] = self._helper.make_tensor_value_info(
            name, self._type(made.dtype), _plain(made.shape)
        )
        if made.id >= 0:
            self._names[made.id] = name

    def _operand(self, tensor: Tensor) -> str:
        """The name of a tensor: one that is made here, a weight, or an input of the model."""
        if tensor.id not in self._names and tensor.id in self._sources:
            source = self._sources[tensor.id]
            if [axis.dim_value for axis in self._shape_of(source)] == _plain(tensor.shape):
                return source
            shape = self._shape(f"{tensor.name}.{tensor.id}.shape", tensor.shape)
            self._add(f"{tensor.name}.{tensor.id}", "Reshape", [source, shape], tensor, {})
        if tensor.id in self._names:
            return self._names[tensor.id]
        make = self._weight if tensor.role is Role.PARAMETER else self._input
        return make(f"{tensor.name}.{tensor.id}", tensor.shape or (1,), tensor.dtype)

    def _input(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        if name not in self._inputs:
            self._inputs[name] = self._helper.make_tensor_value_info(
                name, self._type(dtype), _plain(shape)
            )
        return name

    def _weight(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        """A weight without its values."""
        if name not in self._weights:
            from onnx import TensorProto

            self._weights[name] = TensorProto(
                name=name, data_type=self._type(dtype), dims=_plain(shape)
            )
        return name

    def _shape_of(self, name: str) -> Any:
        return self._values[name].type.tensor_type.shape.dim

    def _shape(self, name: str, shape: tuple[int, ...]) -> str:
        from onnx import TensorProto

        sizes = _plain(shape)
        self._weights[name] = self._helper.make_tensor(name, TensorProto.INT64, [len(sizes)], sizes)
        return name

    def _type(self, dtype: str) -> int:
        from onnx import TensorProto

        if dtype not in _TYPES:
            raise InputError(
                f"Stream has no {dtype}; it has {', '.join(_TYPES)}: trace --dtype int8"
            )
        return int(getattr(TensorProto, _TYPES[dtype]))

    def serialised(self) -> bytes:
        """The model in bytes, equal for equal traces."""
        read = {name for node in self._nodes for name in node.input}
        ends = [name for name in reversed(self._values) if name not in read]
        if not ends:
            raise InputError(f"{self._graph.meta.model} has nothing that Stream could run")
        graph = self._helper.make_graph(
            self._nodes,
            self._graph.meta.model,
            list(self._inputs.values()),
            [self._values[name] for name in ends],
            initializer=list(self._weights.values()),
            value_info=[value for name, value in self._values.items() if name not in ends],
        )
        model = self._helper.make_model(
            graph,
            opset_imports=[self._helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="cutedge",
        )
        text: bytes = model.SerializeToString(deterministic=True)
        return text


def _plain(shape: tuple[int, ...]) -> list[int]:
    """A shape without leading axes of one element, of two axes or more where it has them."""
    sizes = [*shape]
    while len(sizes) > 2 and sizes[0] == 1:
        del sizes[0]
    return sizes
