"""Where a model's parameters are: counted from the tensors that its traced ops read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tracer.graph import Kind, Op, OpGraph, Role
from tracer.kinds import base_name
from tracer.stacks import layer_names
from tracer.summary import last_layered_op

PARTS = ("embedding", "attention", "ffn", "mixer", "norm", "lm_head", "other")
"""What parameters are for, in the order of printing."""

_CHILD = re.compile(r"(?P<block>(?:.*?\.)?\d+)(?:\.(?P<child>[^.]+(?:\.\d+)*))?")


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of one part of a model; tied weights count once, where they are read first."""

    weights: int = 0
    """Of tensors with two axes or more."""
    biases: int = 0
    """Of tensors with one axis, the scales of norms among them."""

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.biases

    def __add__(self, other: "Count") -> "Count":
        return Count(self.weights + other.weights, self.biases + other.biases)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Parameters by part and layer."""

    parts: Mapping[str, Count]
    """By ``PARTS``, those that there are."""
    layers: Mapping[str, Mapping[str, Count]]
    """layer, by ``tracer.stacks.layer_names`` -> parts."""
    tied: int
    """Parameters that lm_head shares with the embedding: counted there, and read here too."""
    heads: tuple[int, int] | None
    """(heads of queries, heads of keys and values), where the graph shows both."""
    unread: int
    """Parameters that no op of this trace reads."""

    @property
    def attention(self) -> str | None:
        """Every query head its own keys and values (MHA), a group of them (GQA), or all (MQA)."""
        if self.heads is None:
            return None
        queries, keys = self.heads
        return "MHA" if queries == keys else "MQA" if keys == 1 else "GQA"

    @property
    def total(self) -> int:
        """All parameters that are read."""
        return sum(count.total for count in self.parts.values())


def break_down(graph: OpGraph) -> Breakdown:
    """The parameters of a trace by what the ops that read them do.

    An embedding's table is read by look-ups, a norm's scale by a norm; the head is what linears
    read after the last layer on the way to a number for each word, and no pooler or classifier. In
    a layer, the parameters of the submodule that computes scores are
    the attention's (or any that is called so), those of one with a convolution a mixer's (a
    state-space or linear-attention layer), those of all others the
    feed-forward part's.
    """
    found, tied = parameter_parts(graph)
    parts: dict[str, Count] = {}
    layers: dict[str, dict[str, Count]] = {}
    for storage, (part, layer) in found.items():
        tensor = graph.tensors[storage]
        many = len(tensor.shape) > 1
        count = Count(tensor.numel if many else 0, 0 if many else tensor.numel)
        parts[part] = parts.get(part, Count()) + count
        if layer is not None:
            inside = layers.setdefault(layer, {})
            inside[part] = inside.get(part, Count()) + count
    return Breakdown(
        parts={part: parts[part] for part in PARTS if part in parts},
        layers={n: layers[n] for n in dict.fromkeys(layer_names(graph)) if n in layers},
        tied=sum(graph.tensors[t].numel for t in tied),
        heads=heads_of(graph),
        unread=graph.meta.parameters - sum(c.total for c in parts.values()),
    )


def parameter_parts(graph: OpGraph) -> tuple[dict[int, tuple[str, str | None]], set[int]]:
    """(storage of a parameter that is read -> its part and its layer, those that a head shares
    with the embedding)"""
    heading = _on_the_way_to_words(graph)
    special = _submodules(graph)
    names = layer_names(graph)
    found: dict[int, tuple[str, str | None]] = {}
    tied: set[int] = set()
    for op in graph.ops:
        for tensor in graph.inputs(op.id):
            owner = graph.storage(tensor)
            if owner.role is not Role.PARAMETER:
                continue
            head = op.kind is Kind.LINEAR and op.id in heading
            if owner.id not in found or found[owner.id][0] == "other":
                found[owner.id] = _part(op, special, head), names[op.id]
            elif head and found[owner.id][0] == "embedding":
                tied.add(owner.id)
    return found, tied


def _on_the_way_to_words(graph: OpGraph) -> set[int]:
    """The ops after the last layer that lead to a number for each word.

    Words are the rows of the tables in which the graph's inputs are looked up; a head may also be
    called so.
    """
    last = last_layered_op(graph)
    words = {
        graph.inputs(op.id)[0].shape[0]
        for op in graph.ops
        if base_name(op.target) == "embedding" and not op.is_constant
    }
    after = [op for op in graph.ops if op.id > last and op.layer is None]
    found: set[int] = set()
    for op in reversed(after):
        made = graph.outputs(op.id)
        to_words = op.kind is Kind.LINEAR and made[0].shape[-1] in words
        called_so = op.module_path.rpartition(".")[2] == "lm_head"
        leads = any(reader in found for tensor in made for reader in graph.readers(tensor.id))
        if to_words or called_so or leads:
            found.add(op.id)
    return found


def _part(op: Op, special: Mapping[str, str], head: bool) -> str:
    if base_name(op.target) == "embedding":  # a constant one where positions are looked up
        return "embedding"
    if head:
        return "lm_head"
    if op.kind is Kind.NORM or "norm" in op.module_type.lower():
        return "norm"
    path = submodule(op.module_path)
    return special.get(path, "ffn") if path else "other"


def submodule(path: str) -> str | None:
    """A module's path down to the child of its block (``model.layers.0.self_attn``), if in one."""
    match = _CHILD.match(path)
    return match[0] if match and match["child"] else None


def _submodules(graph: OpGraph) -> dict[str, str]:
    """submodule of a block -> ``attention`` or ``mixer``"""
    found: dict[str, str] = {}
    for op in graph.ops:
        path = submodule(op.module_path)
        if path is None:
            continue
        scores = any(t.label == "attention_scores" for t in graph.outputs(op.id))
        if scores or op.kind is Kind.ATTENTION or "attention" in op.module_type.lower():
            found[path] = "attention"
        elif base_name(op.target).startswith("conv"):
            found.setdefault(path, "mixer")
    return found


def heads_of(graph: OpGraph) -> tuple[int, int] | None:
    """Heads by the features that queries and keys have before they are split [batch, tokens, f]."""
    scores = next((t for t in graph.tensors if t.label == "attention_scores"), None)
    features = [
        next((t.shape[-1] for t in graph.tensors if t.label == label and len(t.shape) == 3), None)
        for label in ("q", "k")
    ]
    if scores is None or len(scores.shape) != 4 or not all(features):
        return None
    queries, keys = (f or 1 for f in features)
    heads = scores.shape[1]
    return (heads, heads * keys // queries) if heads * keys % queries == 0 else None
