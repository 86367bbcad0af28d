"""What a person wants to know of a trace at first sight."""

from collections import Counter
from dataclasses import dataclass

from tracer.graph import Kind, OpGraph, Role, Tensor


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that are alike: the same label (or module), shape and dtype."""

    name: str
    count: int
    example: Tensor


def tensor_name(graph: OpGraph, tensor: Tensor) -> str:
    """What to call a tensor in a sentence: its label, or the module that makes it."""
    if tensor.label is not None:
        return tensor.label
    if tensor.op is None:
        return tensor.name
    path = graph.ops[tensor.op].module_path.split(".")
    return next((part for part in reversed(path) if part and not part.isdigit()), tensor.name)


def largest_tensors(graph: OpGraph, count: int) -> list[TensorGroup]:
    """The kinds of tensor that take most bytes each; aliases and parameters left out."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
    for tensor in graph.tensors:
        if tensor.alias_of is None and tensor.role in (Role.ACTIVATION, Role.OUTPUT, Role.INPUT):
            key = (tensor_name(graph, tensor), tensor.shape, tensor.dtype)
            groups.setdefault(key, []).append(tensor)
    ordered = sorted(groups.items(), key=lambda item: (-item[1][0].bytes, item[1][0].id))
    return [TensorGroup(name, len(found), found[0]) for (name, _, _), found in ordered[:count]]


def count_ops(graph: OpGraph) -> dict[Kind, int]:
    """Ops by kind, the most frequent first."""
    return dict(Counter(op.kind for op in graph.ops).most_common())


def parameter_bytes(graph: OpGraph) -> int:
    """Bytes of all parameters, tied weights once."""
    return sum(t.bytes for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None)
