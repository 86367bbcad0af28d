"""What each parameter is to a model, as the rules of weight formats speak of it.

Told by what the ops that read it do and make, never by names: a module of a user's own has the
same parts. A matrix is what a product reads, or a table of words; norms, biases and all else are
vectors.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

from costmodels.experts import routed
from costmodels.parameters import heads_of, parameter_parts, submodule
from tracer.graph import Kind, Op, OpGraph, Role, Tensor
from tracer.kinds import base_name

PARTS = {
    "embedding": "the table of words",
    "positions": "a table that something else than words is looked up in",
    "head": "lm_head, or the table of words where that is the head too",
    "attn_q": "what makes queries",
    "attn_k": "what makes keys",
    "attn_v": "what makes values, alone or from a latent",
    "attn_qkv": "what makes queries, keys and values in one",
    "attn_output": "the last product of an attention",
    "attn": "other products of an attention",
    "ffn_up": "all but the last product of a feed-forward part, or of a shared expert",
    "ffn_down": "the last of them",
    "experts_up": "the same of a stack of experts",
    "experts_down": "the last product of a stack of experts",
    "router": "what scores experts",
    "mixer": "products of a state-space or linear-attention layer",
    "conv": "the weights of convolutions",
    "other": "other matrices",
    "vector": "norms, biases and all that no product reads",
}
"""Every part, and what it is."""

_CHOOSE = frozenset({"topk", "max", "argmax", "sort", "argsort"})


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter as rules see it."""

    part: str
    """One of ``PARTS``."""
    inputs: int
    """The length of a row: what a product sums over, or the width of a table."""
    outputs: int
    """Rows of one matrix."""
    number: int = 0
    """Of the layer that it is in; of what makes values, its place among all that do."""
    of: int = 1
    """How many of those there are."""
    layer: int | None = None
    """The number of the layer that it is in; None outside of all."""


@dataclass(frozen=True, slots=True)
class Model:
    """What rules ask of the whole model."""

    experts: int
    """In one stack; 1 without any."""
    layers: int
    """In the largest stack of layers."""
    queries_a_key: int
    """Heads of queries that share one of keys; 1 where that is not shown."""


def weights_of(graph: OpGraph) -> tuple[dict[int, Weight], Model]:
    """(storage -> what it is, for every floating parameter; the model)."""
    parts, tied = parameter_parts(graph)
    depth: dict[str | None, set[int | None]] = defaultdict(set)
    for op in graph.ops:
        depth[op.stack].add(op.layer)
    found: dict[int, Weight] = {}
    experts = 1
    for op in graph.ops:
        for tensor in dict.fromkeys(graph.inputs(op.id)):
            owner = graph.storage(tensor)
            if owner.role is not Role.PARAMETER or not graph.is_float(owner.dtype):
                continue
            if len(tensor.shape) < 2 or len(owner.shape) < 2 or owner.id in found or op.is_view:
                continue
            weight = _weight(graph, op, tensor, owner, parts[owner.id][0])
            if weight is not None:
                if op.layer is not None:
                    of = len(depth[op.stack])
                    weight = replace(weight, number=op.layer, of=of, layer=op.layer)
                found[owner.id] = weight
                if weight.part.startswith("experts") and len(owner.shape) == 3:
                    experts = max(experts, owner.shape[0])
    for storage in tied & found.keys():
        found[storage] = replace(found[storage], part="head")
    for tensor in graph.tensors:
        if (
            tensor.role is Role.PARAMETER
            and tensor.alias_of is None
            and graph.is_float(tensor.dtype)
        ):
            found.setdefault(tensor.id, _unread(graph, tensor))
    values = [s for s, weight in found.items() if weight.part in ("attn_v", "attn_qkv")]
    for place, storage in enumerate(values):
        found[storage] = replace(found[storage], number=place, of=len(values))
    heads = heads_of(graph)
    layers = max(len(numbers - {None}) for numbers in depth.values()) if depth else 0
    return found, Model(experts, layers, 1 if heads is None else heads[0] // heads[1])


def _weight(graph: OpGraph, op: Op, tensor: Tensor, owner: Tensor, part: str) -> Weight | None:
    """What a tensor of two axes or more is to an op that reads it; None for what is no matrix."""
    name, shape = base_name(op.target), tensor.shape
    if name.startswith(("embedding", "_embedding")):
        index = next((t for t in graph.inputs(op.id)[1:]), tensor)
        asked = index.op is not None and _is_input(graph, index)
        return Weight("embedding" if asked else "positions", shape[-1], shape[-2])
    if op.kind is not Kind.LINEAR:
        if len(owner.shape) != 3 or routed(graph, op) is None:
            return None
        stack = _part(graph, op, "ffn", True)  # what a router chose is gathered first
        return Weight(stack, shape[-1], shape[-2])
    if name.startswith("conv"):
        return Weight("conv", shape[-1], owner.numel // shape[-1])
    transposed = name == "linear"  # [outputs, inputs]; else the right operand [inputs, outputs]
    inputs, outputs = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
    if tensor.numel != owner.numel:  # some rows of it
        outputs = owner.numel // inputs
    return Weight(_part(graph, op, part, len(owner.shape) == 3), inputs, outputs)


def _part(graph: OpGraph, op: Op, part: str, stacked: bool) -> str:
    if part == "lm_head":
        return "head"
    if part == "attention":
        label = next((t.label for t in graph.outputs(op.id) if t.label), "") or ""
        if label and set(label) <= set("qkv"):
            alone = "v" if "v" in label else label[0]
            return "attn_qkv" if {"q", "v"} <= set(label) else f"attn_{alone}"
        return "attn" if "product" in _leads_to(graph, op) else "attn_output"
    if part == "ffn":
        then = _leads_to(graph, op)
        if "choice" in then:
            return "router"
        kind = "experts" if stacked else "ffn"
        return f"{kind}_up" if "product" in then else f"{kind}_down"
    return part if part == "mixer" else "other"


def _leads_to(graph: OpGraph, op: Op) -> set[str]:
    """What comes after an op in the same part of its block: a product with weights, a choice."""
    inside = submodule(op.module_path)
    found: set[str] = set()
    seen = {op.id}
    front = [op.id]
    while front:
        for tensor in graph.outputs(front.pop()):
            for number in graph.readers(tensor.id):
                reader = graph.ops[number]
                if number in seen or submodule(reader.module_path) != inside:
                    continue
                seen.add(number)
                if reader.kind is Kind.LINEAR:
                    found.add("product")
                elif base_name(reader.target) in _CHOOSE:
                    found.add("choice")
                else:
                    front.append(number)
    return found


def _is_input(graph: OpGraph, tensor: Tensor) -> bool:
    """Whether it is a graph input, or a view or a copy of one."""
    while tensor.op is not None:
        op = graph.ops[tensor.op]
        if op.kind is Kind.INPUT:
            return True
        if op.kind not in (Kind.VIEW, Kind.COPY) or not graph.inputs(op.id):
            return False
        tensor = graph.inputs(op.id)[0]
    return False


def _unread(graph: OpGraph, tensor: Tensor) -> Weight:
    """A parameter that no product reads: a matrix where no op at all reads it."""
    rank = len(tensor.shape)
    inputs = tensor.shape[-1] if rank else 1
    part = "vector" if rank < 2 or graph.readers(tensor.id) else "other"
    return Weight(part, max(inputs, 1), tensor.numel // max(inputs, 1))
