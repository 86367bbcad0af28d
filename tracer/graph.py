"""The op graph: ops, the tensors that they make and read, and who reads what.

Everything above the tracer works on this module's types and never on torch's. One networkx graph
(``OpGraph.nx``) stands inside for algorithms; ids are list positions, in an order of execution.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, reduce
from operator import attrgetter, mul
from typing import TYPE_CHECKING, Any

from tracer.errors import CutedgeError

if TYPE_CHECKING:
    import networkx as nx

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}
"""Bytes of one element, by dtype name."""

FLOATING = tuple(name for name in ITEM_BYTES if name.startswith(("float", "bfloat")))
"""The dtypes that a wire dtype may be, and that it replaces."""

MODEL_DTYPES = ("float64", "float32", "float16", "bfloat16")
"""The dtypes that a model can be built in."""

QUANTISED_DTYPES = ("int16", "int8")
"""The dtypes that a model can be counted in as well: it is built in float32, and each of its floats
is an integer then, of weights, activations and cached state alike."""


class Kind(StrEnum):
    """What an op does, as policies and sums speak of it."""

    LINEAR = "linear"
    """A matrix product with a parameter."""
    MATMUL = "matmul"
    """A matrix product of two activations."""
    ATTENTION = "attention"
    """A whole attention in one op (scaled_dot_product_attention)."""
    SOFTMAX = "softmax"
    NORM = "norm"
    """A norm in one op, or one op of an RMS norm that the model writes out."""
    EMBEDDING = "embedding"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    COPY = "copy"
    """Moves data without arithmetic: a reshape that must copy, a cast, a gather, a cat."""
    VIEW = "view"
    """Makes an alias of its input and moves nothing."""
    CONSTANT = "constant"
    """Depends on no graph input: computed once, at load, on every device that needs it."""
    INPUT = "input"
    OUTPUT = "output"
    OTHER = "other"


class Role(StrEnum):
    """What a tensor is to the model."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    ACTIVATION = "activation"
    KV_CACHE = "kv_cache"
    OUTPUT = "output"


class Status(StrEnum):
    """How far a cost can be trusted."""

    EXACT = "exact"
    ESTIMATE = "estimate"
    ZERO = "zero"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Gemm:
    """The matrix product [batch, m, k] x [batch, k, n] -> [batch, m, n] that an op carries out."""

    batch: int
    """Number of products."""
    m: int
    """Rows of the left matrix and of the result."""
    n: int
    """Columns of the right matrix and of the result."""
    k: int
    """Columns of the left matrix: the length of each sum."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one op costs wherever it runs; filled in by ``costmodels.flops.annotate``."""

    gemm: Gemm | None = None
    """The op as a matrix product, None for other ops."""
    flops: int | None = None
    """Floating-point operations (1 multiply-accumulate = 2); None when unsupported."""
    flops_expr: str | None = None
    """``flops`` as a formula; None for a concrete trace."""
    causal_flops: int | None = None
    """Of an op of an attention that has an ``extent_expr``: ``flops`` over the pairs of a query and
    a key that its mask lets through, all of them where there is none. None for other ops and where
    that is not known."""
    causal_flops_expr: str | None = None
    """``causal_flops`` as a formula; None for a concrete trace."""
    flops_status: Status = Status.UNSUPPORTED
    """How far the op's figures can be trusted; ``unsupported`` where ``flops`` is None, at best
    ``estimate`` where there is an ``assumption``."""
    read_bytes: int = 0
    """Bytes read, parameters included, each distinct input once."""
    write_bytes: int = 0
    """Bytes of all results."""
    param_bytes: int = 0
    """Bytes of the parameters and buffers among what is read."""
    assumption: str | None = None
    """What is taken to hold of the values, where figures depend on them: how a router spreads
    tokens over experts decides whose weights are read. None where shapes alone decide."""


_UNKNOWN = OpCost()
"""Of an op whose cost was not counted yet."""


@dataclass(frozen=True, slots=True)
class Op:
    """One node: an ATen call, a graph input, or the single op that reads the results."""

    id: int
    """Position in ``OpGraph.ops``; every op comes after the ops that it reads from."""
    name: str
    """The target's base name with a running number (``linear_3``), unique in the graph."""
    target: str
    """The ATen overload (``aten.linear.default``), or ``input`` / ``output``."""
    kind: Kind
    """What it does; ``constant`` and ``view`` go before what the target alone would say."""
    module_path: str
    """The module whose code called it (``model.layers.0.mlp``), empty for the model itself."""
    module_type: str
    """The class name of that module."""
    stack: str | None
    """The path of the list, or of the module whose parts run one after the other, that the op is in
    a part of (``model.layers``, empty for the model itself); None outside of all. Of several the
    outermost: see ``tracer.stacks``."""
    layer: int | None
    """The place in ``stack``: the number of the list's element; None where that is."""
    is_constant: bool
    """Depends on no graph input: on no device, since every device that needs it computes it."""
    is_view: bool
    """Makes an alias of what it reads and moves no data."""
    dtype: str | None
    """The dtype of the (first) output; None for ``output``."""
    extent_expr: str | None = None
    """Of both products and the softmax of an attention, or of one in one op: the pairs of a query
    and a key that its mask lets through, in one sequence and head, as a formula. None for other
    ops, and where that is not known."""
    arguments: tuple[tuple[str, str], ...] = ()
    """What it is told beside its tensors that may decide how much it does (``training``, a
    ``kernel_size``): (name, JSON). Without defaults, and without numbers that are only computed
    with; a size that is a symbol is ``{"size": formula}``. Empty for views and constants."""
    is_identity: bool = False
    """Does arithmetic with a number that leaves values as they are: times 1, plus 0."""
    cost: OpCost = _UNKNOWN
    """What it costs wherever it runs."""

    def costing(self, cost: OpCost) -> "Op":
        """The op at another cost. As ``replace``, in a third of its time: each op of each trace
        gets its cost so."""
        return Op(
            self.id,
            self.name,
            self.target,
            self.kind,
            self.module_path,
            self.module_type,
            self.stack,
            self.layer,
            self.is_constant,
            self.is_view,
            self.dtype,
            self.extent_expr,
            self.arguments,
            self.is_identity,
            cost,
        )


@dataclass(frozen=True, slots=True)
class Tensor:
    """One value: what an op makes, or a parameter or buffer (these have no producing op)."""

    id: int
    """Position in ``OpGraph.tensors``."""
    op: int | None
    """The producing op, None for parameters and buffers."""
    name: str
    """The parameter's, buffer's or input's name, else the name of the producing op."""
    role: Role
    """What it is to the model."""
    label: str | None
    """What it is in an attention (``q``, ``k``, ``v``, ``attention_scores`` ...), or ``logits``."""
    dtype: str
    """The dtype's name (``float32``), a key of ``ITEM_BYTES``."""
    shape: tuple[int, ...]
    """Elements along each axis."""
    shape_expr: tuple[str, ...] | None
    """``shape`` as formulas; None for a concrete trace."""
    bytes: int
    """Elements x item size, whether or not the memory is shared with another tensor. Of what is
    stored in another format than its dtype (weights, cached state): what it takes there."""
    bytes_expr: str | None
    """``bytes`` as a formula; None for a concrete trace."""
    seq_degree: int | None
    """The growth order of ``bytes`` in ``seq``; None for a concrete trace."""
    alias_of: int | None
    """The tensor whose storage this one shares, None when it has its own."""

    def __hash__(self) -> int:
        return self.id  # tensors are looked up often, and those of a graph differ in it

    @property
    def numel(self) -> int:
        """Number of elements."""
        return reduce(mul, self.shape, 1)

    @property
    def is_packed(self) -> bool:
        """Whether it is stored in another format than its dtype."""
        return self.bytes != self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Edge:
    """Tensor ``tensor`` flows into op ``dst`` as its ``arg_index``-th tensor argument."""

    src: int | None
    """The producing op, None for parameters and buffers."""
    dst: int
    """The op that reads."""
    tensor: int
    """What flows."""
    arg_index: int
    """Position among the tensor arguments of ``dst``."""


@dataclass(frozen=True, slots=True)
class TraceMeta:
    """What a trace is a trace of; kept in the metadata of every table."""

    model: str
    """The preset's name, or the name of the user's config."""
    phase: str
    """``prefill``: many new tokens; ``decode``: one; ``encoder``: an encoder alone."""
    batch: int
    """Sequences."""
    seq: int
    """New tokens a sequence."""
    past: int
    """Tokens already cached."""
    dtype: str
    """The dtype of the parameters, and so of most activations."""
    attn: str
    """How the graph has its attention: ``eager`` shows its matmuls, ``sdpa`` is one op;
    ``eager and sdpa`` where it has both, ``no`` where it has no attention."""
    logits: str
    """``last``: for the last token only; ``all``: for every token."""
    symbolic: tuple[str, ...]
    """The variables that the formulas are good for; empty for a concrete trace."""
    parameters: int
    """Number of parameters, tied weights once."""
    overrides: tuple[tuple[str, str], ...] = ()
    """What ``--set`` changed in the config: (key, JSON value)."""
    versions: tuple[tuple[str, str], ...] = ()
    """(package, version) of what made the trace."""
    source: int = 0
    """Tokens that an encoder has read, for the decoder that attends to them; else 0."""
    repeated_layers: int = 0
    """Layers that are copies of a traced one rather than traced themselves."""
    model_class: str = ""
    """The class of the module that was traced (``LlamaForCausalLM``)."""
    weights: str = ""
    """The format that parameters are stored in; empty where that is their dtype."""
    weights_other: str = ""
    """What of them is stored in another way than the rest (``head in q6_k``)."""
    kv_dtype: str = ""
    """What cached keys and values are stored in; empty where that is their dtype."""

    @property
    def variables(self) -> dict[str, int]:
        """The values that the formulas' variables have in this trace."""
        return {"batch": self.batch, "seq": self.seq, "past": self.past, "source": self.source}


class GraphError(CutedgeError):
    """Ops, tensors and edges do not form an op graph."""


class OpGraph:
    """Ops in execution order, tensors, and the edges between them; immutable by convention.

    Raises GraphError when an id is not a position, when an edge names something missing, or when
    an op reads from a later one.
    """

    def __init__(
        self, meta: TraceMeta, ops: Iterable[Op], tensors: Iterable[Tensor], edges: Iterable[Edge]
    ) -> None:
        self.meta = meta
        self.ops: Sequence[Op] = tuple(ops)
        self.tensors: Sequence[Tensor] = tuple(tensors)
        self.edges: Sequence[Edge] = tuple(edges)
        self._check()

    def _check(self) -> None:
        ops, tensors = len(self.ops), len(self.tensors)
        _check_ids("op", self.ops, ops)
        _check_ids("tensor", self.tensors, tensors)
        producers = [tensor.op for tensor in self.tensors]
        for number, op in enumerate(producers):
            if op is not None and not 0 <= op < ops:
                raise GraphError(f"tensor {number} is made by op {op}, which is missing")
        for tensor in self.tensors:
            owner = tensor.alias_of
            if owner is not None and not 0 <= owner < tensors:
                raise GraphError(
                    f"tensor {tensor.id} is an alias of tensor {owner}, which is missing"
                )
        for edge in self.edges:
            src, dst, read = edge.src, edge.dst, edge.tensor
            if not (0 <= dst < ops and 0 <= read < tensors):
                raise GraphError(f"an edge names what is missing: {edge}")
            if src != producers[read]:
                raise GraphError(f"an edge disagrees with its tensor's producer: {edge}")
            if src is not None and src >= dst:
                raise GraphError(f"op {dst} reads from op {src}, which is not before it")

    @cached_property
    def nx(self) -> "nx.MultiDiGraph[int]":
        """The ops as a networkx graph; an edge's key is its argument index, ``tensor`` its data."""
        import networkx as nx  # a tenth of a second, for those who ask

        graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        graph.add_nodes_from((op.id, {"op": op}) for op in self.ops)
        for edge in self.edges:
            if edge.src is not None:
                graph.add_edge(edge.src, edge.dst, key=edge.arg_index, tensor=edge.tensor)
        return graph

    @cached_property
    def _inputs(self) -> Sequence[tuple[Tensor, ...]]:
        found: list[list[Tensor]] = [[] for _ in self.ops]
        for edge in sorted(self.edges, key=attrgetter("arg_index")):
            found[edge.dst].append(self.tensors[edge.tensor])
        return [tuple(read) for read in found]

    @cached_property
    def _outputs(self) -> Sequence[tuple[Tensor, ...]]:
        found: list[list[Tensor]] = [[] for _ in self.ops]
        for tensor in self.tensors:
            if tensor.op is not None:
                found[tensor.op].append(tensor)
        return [tuple(made) for made in found]

    @cached_property
    def _readers(self) -> Sequence[tuple[int, ...]]:
        found: list[list[int]] = [[] for _ in self.tensors]
        for edge in self.edges:
            found[edge.tensor].append(edge.dst)
        return [tuple(ops if len(ops) < 2 else sorted({*ops})) for ops in found]

    def inputs(self, op: int) -> tuple[Tensor, ...]:
        """The tensors that an op reads, in argument order (twice when it reads one twice)."""
        return self._inputs[op]

    def outputs(self, op: int) -> tuple[Tensor, ...]:
        """The tensors that an op makes."""
        return self._outputs[op]

    def readers(self, tensor: int) -> tuple[int, ...]:
        """The ops that read a tensor, each once, in execution order."""
        return self._readers[tensor]

    def crosses(self, tensor: Tensor) -> bool:
        """Whether a tensor is of the sort that can move between devices during a run.

        Parameters and buffers live wherever they are read, constants are computed there, and
        cached state stays there.
        """
        return tensor.op is not None and not self.is_everywhere(tensor.op)

    def is_everywhere(self, op: int) -> bool:
        """Whether an op has no device of its own: it is wherever its result is read."""
        return self._everywhere[op]

    @cached_property
    def _everywhere(self) -> Sequence[bool]:
        state = self.state_ops
        return [op.is_constant or op.id in state for op in self.ops]

    @cached_property
    def state_ops(self) -> frozenset[int]:
        """The ops that only hold cached state: its inputs, and what puts new rows beside old ones.

        A result is appended to where the cache is read, so that the new rows cross and not the
        whole cache. Found from the state that the graph returns, back through what moves data, to
        what reads a cache (or an empty one).
        """
        held = {
            t.op
            for t in self.tensors
            if t.role is Role.KV_CACHE and t.op is not None and self.ops[t.op].kind is Kind.INPUT
        }
        leads: set[int] = set()
        front = [t.op for t in self.inputs(len(self.ops) - 1) if t.role is Role.KV_CACHE]
        while front:
            op = front.pop()
            if op is not None and op not in leads and self.ops[op].kind in (Kind.COPY, Kind.VIEW):
                leads.add(op)
                front += [t.op for t in self.inputs(op)]
        for op in sorted(leads):
            if any(t.op in held or t.bytes == 0 for t in self.inputs(op)):
                held.add(op)
        return frozenset(held)

    @cached_property
    def _flowing(self) -> Sequence[tuple[Tensor, ...]]:
        found: list[tuple[Tensor, ...]] = []
        for op in self.ops:
            needed: dict[int, Tensor] = {}
            for tensor in self.inputs(op.id):
                if op.kind is Kind.OUTPUT and tensor.role is Role.KV_CACHE:
                    continue  # state stays where it is
                if self.crosses(tensor):
                    needed[tensor.id] = tensor
                elif tensor.op in self.state_ops:
                    needed.update((t.id, t) for t in found[tensor.op])
            found.append(tuple(needed.values()))
        return found

    def flowing(self, op: int) -> tuple[Tensor, ...]:
        """The tensors that must have come to an op's device for it to run, each once.

        Its inputs, but for what is there anyway; in place of cached state what is appended to it.
        """
        return self._flowing[op]

    @cached_property
    def _needed_by(self) -> Sequence[tuple[int, ...]]:
        found: list[list[int]] = [[] for _ in self.tensors]
        for op in self.ops:
            if not self.is_everywhere(op.id):
                for tensor in self.flowing(op.id):
                    found[tensor.id].append(op.id)
        return [tuple(ops) for ops in found]

    def needed_by(self, tensor: int) -> tuple[int, ...]:
        """The ops on a device of their own that a tensor must come to, in execution order."""
        return self._needed_by[tensor]

    def storage(self, tensor: Tensor) -> Tensor:
        """The tensor that owns the memory of ``tensor``: itself, or what it is an alias of."""
        return tensor if tensor.alias_of is None else self.tensors[tensor.alias_of]

    def is_float(self, dtype: str | None) -> bool:
        """Whether values of a dtype are floats, or stand for floats in a model that is counted as
        quantised."""
        return dtype in FLOATING or dtype == self.meta.dtype in QUANTISED_DTYPES

    def with_meta(self, meta: TraceMeta) -> "OpGraph":
        """The same graph as a trace of something else."""
        return self._with(_FLOW, meta=meta)

    def with_ops(self, ops: Iterable[Op]) -> "OpGraph":
        """The same graph with other op rows (costs filled in, kinds refined), as many as before.

        Raises GraphError where they are not as many, or an id is not a position.
        """
        rows = tuple(ops)
        _check_ids("op", rows, len(self.ops))
        return self._with(_FLOW, ops=rows)

    def with_labels(self, labels: Mapping[int, str]) -> "OpGraph":
        """The same graph with the given tensors labelled."""
        tensors = tuple(
            replace(t, label=labels[t.id]) if t.id in labels else t for t in self.tensors
        )
        inputs, outputs = [*self._inputs], [*self._outputs]
        for tensor in tensors:
            if tensor.id in labels:  # what other ops read and make is as it was
                for op in self.readers(tensor.id):
                    inputs[op] = tuple(tensors[t.id] for t in inputs[op])
                if tensor.op is not None:
                    outputs[tensor.op] = tuple(tensors[t.id] for t in outputs[tensor.op])
        return self._with(["_readers"], tensors=tensors, _inputs=inputs, _outputs=outputs)

    def _with(self, kept: Iterable[str], **changed: Any) -> "OpGraph":
        """A copy with something changed, and of what was worked out what is ``kept``.

        Nothing is checked again: who calls it changes no id, no producer and no edge.
        """
        graph = object.__new__(OpGraph)
        parts = ("meta", "ops", "tensors", "edges", *kept)
        vars(graph).update({name: vars(self)[name] for name in parts if name in vars(self)})
        vars(graph).update(changed)
        return graph


_FLOW = ("_inputs", "_outputs", "_readers")
"""What is worked out of a graph's tensors and edges alone."""


def _check_ids(what: str, rows: Sequence[Op] | Sequence[Tensor], count: int) -> None:
    if [row.id for row in rows] != list(range(count)):
        raise GraphError(f"the {what} ids are not their positions")
