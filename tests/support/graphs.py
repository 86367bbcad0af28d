"""Op graphs made by hand, and hypothesis strategies for random small ones and for placements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from hypothesis import strategies as st

from partition.placement import Placement
from tracer.formula import parse
from tracer.graph import ITEM_BYTES, Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.stacks import place_of

HOME = "tee"

TARGETS = {
    Kind.LINEAR: "aten.linear.default",
    Kind.MATMUL: "aten.matmul.default",
    Kind.SOFTMAX: "aten.softmax.int",
    Kind.NORM: "aten.rms_norm.default",
    Kind.EMBEDDING: "aten.embedding.default",
    Kind.ELEMENTWISE: "aten.add.Tensor",
    Kind.REDUCTION: "aten.sum.dim_IntList",
    Kind.COPY: "aten.clone.default",
    Kind.VIEW: "aten.view.default",
    Kind.CONSTANT: "aten.arange.default",
    Kind.INPUT: "input",
    Kind.OUTPUT: "output",
    Kind.OTHER: "aten.split.Tensor",
}

Shape = Sequence[int | str]
"""Sizes as numbers or as formulas in ``batch``, ``seq`` and ``past``."""


class Builder:
    """Ops in the order they are added; the methods give and take tensor ids.

    ``finish`` adds the output op and returns the graph.
    """

    def __init__(self, batch: int = 1, seq: int = 8, *, symbolic: bool = True) -> None:
        self.meta = TraceMeta(
            model="by-hand",
            phase="prefill",
            batch=batch,
            seq=seq,
            past=0,
            dtype="float32",
            attn="eager",
            logits="all",
            symbolic=("batch", "seq") if symbolic else (),
            parameters=0,
        )
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = []
        self.edges: list[Edge] = []

    def input(
        self, name: str, shape: Shape, dtype: str = "float32", role: Role = Role.INPUT
    ) -> int:
        op = self._op(name, Kind.INPUT, (), dtype)
        return self._tensor(op, name, shape, dtype, role)

    def parameter(
        self,
        name: str,
        shape: Shape,
        dtype: str = "float32",
        *,
        role: Role = Role.PARAMETER,
        alias_of: int | None = None,
    ) -> int:
        """A parameter or buffer; ``alias_of`` ties it to another one."""
        return self._tensor(None, name, shape, dtype, role, alias_of)

    def op(
        self,
        name: str,
        *reads: int,
        shape: Shape,
        dtype: str = "float32",
        kind: Kind = Kind.ELEMENTWISE,
        path: str = "",
        label: str | None = None,
    ) -> int:
        op = self._op(name, kind, reads, dtype, path)
        made = self._tensor(op, name, shape, dtype, Role.ACTIVATION)
        self.tensors[made] = replace(self.tensors[made], label=label)
        return made

    def split(
        self,
        name: str,
        *reads: int,
        shapes: Sequence[Shape],
        dtype: str = "float32",
        path: str = "",
    ) -> tuple[int, ...]:
        """An op with several outputs."""
        op = self._op(name, Kind.OTHER, reads, dtype, path)
        return tuple(
            self._tensor(op, f"{name}.{place}", shape, dtype, Role.ACTIVATION)
            for place, shape in enumerate(shapes)
        )

    def view(self, name: str, read: int, shape: Shape | None = None, path: str = "") -> int:
        """An alias of an activation, of the same shape unless another is given."""
        seen = self.tensors[read]
        op = self._op(name, Kind.VIEW, (read,), seen.dtype, path)
        return self._tensor(
            op, name, shape or seen.shape_expr or seen.shape, seen.dtype, Role.ACTIVATION, read
        )

    def constant(
        self,
        name: str,
        *reads: int,
        shape: Shape,
        dtype: str = "float32",
        alias_of: int | None = None,
    ) -> int:
        """What depends on no input; with ``alias_of`` a view of something stored."""
        op = self._op(name, Kind.CONSTANT, reads, dtype, is_view=alias_of is not None)
        return self._tensor(op, name, shape, dtype, Role.CONSTANT, alias_of)

    def finish(self, *outputs: int) -> OpGraph:
        self._op("output", Kind.OUTPUT, outputs, None)
        for read in outputs:
            # As in a trace: what is handed back is an output first, even when it is a constant.
            if self.tensors[read].role in (Role.ACTIVATION, Role.CONSTANT):
                if self.tensors[read].op is not None:
                    self.tensors[read] = replace(self.tensors[read], role=Role.OUTPUT)
        return OpGraph(self.meta, self.ops, self.tensors, self.edges)

    def _op(
        self,
        name: str,
        kind: Kind,
        reads: Sequence[int],
        dtype: str | None,
        path: str = "",
        is_view: bool = False,
    ) -> int:
        stack, layer = place_of(path)
        op = Op(
            id=len(self.ops),
            name=name,
            target=TARGETS[kind],
            kind=kind,
            module_path=path,
            module_type="Module",
            stack=stack,
            layer=layer,
            is_constant=kind is Kind.CONSTANT,
            is_view=is_view or kind is Kind.VIEW,
            dtype=dtype,
        )
        self.ops.append(op)
        for place, read in enumerate(reads):
            self.edges.append(Edge(self.tensors[read].op, op.id, read, place))
        return op.id

    def _tensor(
        self,
        op: int | None,
        name: str,
        shape: Shape,
        dtype: str,
        role: Role,
        alias_of: int | None = None,
    ) -> int:
        if alias_of is not None and self.tensors[alias_of].alias_of is not None:
            alias_of = self.tensors[alias_of].alias_of
        symbolic = bool(self.meta.symbolic)
        exprs = tuple(str(size) for size in shape)
        size = "*".join([str(ITEM_BYTES[dtype]), *(f"({expr})" for expr in exprs)])
        tensor = Tensor(
            id=len(self.tensors),
            op=op,
            name=name,
            role=role,
            label=None,
            dtype=dtype,
            shape=tuple(parse(expr).evaluate(self.meta.variables) for expr in exprs),
            shape_expr=exprs if symbolic else None,
            bytes=0,
            bytes_expr=size if symbolic else None,
            seq_degree=parse(size).degree("seq") if symbolic else None,
            alias_of=alias_of,
        )
        self.tensors.append(replace(tensor, bytes=prod(tensor.shape) * ITEM_BYTES[dtype]))
        return tensor.id


def two_layers() -> OpGraph:
    """A table of words, two layers of a norm and two products, a head."""
    build = Builder()
    words = build.parameter("model.embed.weight", (64, 32))
    ids = build.input("input_ids", (1, 8), "int64")
    x = build.op("embed", words, ids, shape=(1, 8, 32), kind=Kind.EMBEDDING, path="model.embed")
    for layer in range(2):
        at = f"model.layers.{layer}"
        norm = build.parameter(f"{at}.norm.weight", (32,))
        up = build.parameter(f"{at}.mlp.up.weight", (96, 32))
        down = build.parameter(f"{at}.mlp.down.weight", (32, 96))
        y = build.op(f"norm{layer}", x, norm, shape=(1, 8, 32), kind=Kind.NORM, path=f"{at}.norm")
        for name, weight, width in (("up", up, 96), ("down", down, 32)):
            path = f"{at}.mlp.{name}"
            y = build.op(path, y, weight, shape=(1, 8, width), kind=Kind.LINEAR, path=path)
        x = build.op(f"add{layer}", x, y, shape=(1, 8, 32), path=at)
    head = build.parameter("lm_head.weight", (64, 32))
    logits = build.op("head", x, head, shape=(1, 8, 64), kind=Kind.LINEAR, path="lm_head")
    return build.finish(logits)


def resized(graph: OpGraph, batch: int, seq: int) -> OpGraph:
    """The same symbolic graph as a trace at other sizes would give it."""
    meta = replace(graph.meta, batch=batch, seq=seq)
    tensors = []
    for tensor in graph.tensors:
        assert tensor.shape_expr is not None
        shape = tuple(parse(expr).evaluate(meta.variables) for expr in tensor.shape_expr)
        size = prod(shape) * ITEM_BYTES[tensor.dtype]
        tensors.append(replace(tensor, shape=shape, bytes=size))
    return OpGraph(meta, graph.ops, tensors, graph.edges)


def placement(devices: Sequence[str | None]) -> Placement:
    """A placement by op id, whether allowed or not."""
    return Placement(HOME, tuple(devices), (False,) * len(devices), ("by hand",) * len(devices))


def place(graph: OpGraph, accelerators: Mapping[str, Iterable[str]]) -> Placement:
    """``place(graph, {"gpu": ["linear"]})``: the named ops there, the rest at home."""
    where = {name: device for device, names in accelerators.items() for name in names}
    unknown = set(where) - {op.name for op in graph.ops}
    assert not unknown, f"no such ops: {unknown}"
    return placement([None if op.is_constant else where.get(op.name, HOME) for op in graph.ops])


def describe(graph: OpGraph, where: Placement) -> str:
    """A graph and its placement in lines to read, for the report of a failing example."""
    lines = [f"batch={graph.meta.batch} seq={graph.meta.seq}"]
    lines += [f"  {tensor_text(tensor)}" for tensor in graph.tensors if tensor.op is None]
    for op, device in zip(graph.ops, where.devices, strict=True):
        reads = ", ".join(f"t{t.id}" for t in graph.inputs(op.id))
        makes = "; ".join(tensor_text(t) for t in graph.outputs(op.id))
        lines.append(f"  op {op.id} {op.name} on {device} reads ({reads}) makes {makes or '-'}")
    return "\n".join(lines)


def tensor_text(tensor: Tensor) -> str:
    alias = "" if tensor.alias_of is None else f" alias of t{tensor.alias_of}"
    return f"t{tensor.id} {tensor.role} {tensor.dtype}{list(tensor.shape)} {tensor.bytes}B{alias}"


# --- strategies -----------------------------------------------------------------------------------

DTYPES = st.sampled_from(["float32", "bfloat16", "int64", "bool"])
PATHS = st.sampled_from(["", "layers.0.attn", "layers.0.mlp", "layers.1.mlp"])
BODY_KINDS = st.sampled_from(
    [k for k in TARGETS if k not in (Kind.INPUT, Kind.OUTPUT, Kind.CONSTANT, Kind.VIEW, Kind.OTHER)]
)
ACTIVATION_SHAPES = st.sampled_from(
    [
        ("batch", "seq", 3),
        ("batch", "seq", "seq"),
        ("batch", 5),
        ("batch", "min(seq, 4)", 2),
        ("batch", "seq//2 + 1"),
        ("batch", "past", 4),  # an empty cache: a tensor of no bytes is a tensor all the same
        (7,),
        (),
    ]
)
STORED_SHAPES = st.sampled_from([(3,), (2, 5), (11,)])
CONSTANT_SHAPES = st.sampled_from([("seq",), ("seq", "seq"), (3,), (13,)])


@st.composite
def graphs(draw: st.DrawFn, max_ops: int = 12) -> OpGraph:
    """Small graphs of at most ``max_ops`` ops, inputs and the output op among them."""
    build = Builder(batch=draw(st.integers(1, 3)), seq=draw(st.integers(1, 6)))
    active = [
        build.input(f"input_{n}", draw(ACTIVATION_SHAPES), draw(DTYPES), Role.INPUT)
        for n in range(draw(st.integers(1, 3)))
    ]
    parameters = [_parameter(draw, build, n) for n in range(draw(st.integers(0, 3)))]
    for n in range(draw(st.integers(0, 2)) if parameters else 0):
        owner = draw(st.sampled_from(parameters))
        tied = build.tensors[owner]
        parameters.append(
            build.parameter(f"tied_{n}", tied.shape, tied.dtype, role=tied.role, alias_of=owner)
        )
    stored = list(parameters)
    room = max_ops - len(active) - 1
    # Full half of the time: few calls and few constants come about in three ops.
    for n in range(draw(st.integers(1, room) | st.just(room))):
        match draw(
            st.sampled_from(
                ["op", "op", "op", "op", "constant", "constant", "view", "split", "source"]
            )
        ):
            case "source":  # no constant, and yet it waits for nothing: random numbers, say
                active.append(
                    build.op(
                        f"source_{n}",
                        *_stored(draw, stored),
                        shape=draw(ACTIVATION_SHAPES),
                        dtype=draw(DTYPES),
                        path=draw(PATHS),
                    )
                )
            case "constant":
                stored.append(_constant(draw, build, f"constant_{n}", stored))
            case "view":
                shape = draw(st.none() | st.just((1,)))
                active.append(
                    build.view(f"view_{n}", _active(draw, active), shape, path=draw(PATHS))
                )
            case "split":
                shapes = draw(st.lists(ACTIVATION_SHAPES, min_size=2, max_size=2))
                reads = _reads(draw, active, stored)
                active.extend(
                    build.split(
                        f"split_{n}", *reads, shapes=shapes, dtype=draw(DTYPES), path=draw(PATHS)
                    )
                )
            case _:
                reads = _reads(draw, active, stored)
                active.append(
                    build.op(
                        f"op_{n}",
                        *reads,
                        shape=draw(ACTIVATION_SHAPES),
                        dtype=draw(DTYPES),
                        kind=draw(BODY_KINDS),
                        path=draw(PATHS),
                    )
                )
    return build.finish(*_reads(draw, active, stored))


def _parameter(draw: st.DrawFn, build: Builder, n: int) -> int:
    role = draw(st.sampled_from([Role.PARAMETER, Role.BUFFER]))
    return build.parameter(f"stored_{n}", draw(STORED_SHAPES), draw(DTYPES), role=role)


def _constant(draw: st.DrawFn, build: Builder, name: str, stored: Sequence[int]) -> int:
    reads = _stored(draw, stored)
    shape, dtype = draw(CONSTANT_SHAPES), draw(DTYPES)
    # A view of something stored need not be of its size: a slice is less, an expand is more.
    alias_of = reads[0] if reads and draw(st.booleans()) else None
    if alias_of is not None:
        dtype = build.tensors[alias_of].dtype
    return build.constant(name, *reads, shape=shape, dtype=dtype, alias_of=alias_of)


def _active(draw: st.DrawFn, active: Sequence[int]) -> int:
    # The last one half of the time, so that chains grow long enough for many calls.
    return draw(st.just(active[-1]) | st.sampled_from(active))


def _reads(draw: st.DrawFn, active: Sequence[int], stored: Sequence[int]) -> list[int]:
    """What an op reads: activations, one perhaps twice, and perhaps something stored."""
    reads = [_active(draw, active)]
    reads += draw(st.lists(st.sampled_from(active), max_size=2))
    return reads + _stored(draw, stored)


def _stored(draw: st.DrawFn, stored: Sequence[int]) -> list[int]:
    if not stored:
        return []
    one = st.just(stored[-1]) | st.sampled_from(stored)
    return draw(st.lists(one, min_size=draw(st.integers(0, 1)), max_size=2))


@st.composite
def placements(draw: st.DrawFn, graph: OpGraph, accelerators: Sequence[str]) -> Placement:
    """Every op but constants, inputs and the output anywhere."""
    anywhere = st.sampled_from([HOME, *accelerators])
    devices: list[str | None] = []
    for op in graph.ops:
        if op.is_constant:
            devices.append(None)
        elif op.kind in (Kind.INPUT, Kind.OUTPUT):
            devices.append(HOME)
        else:
            devices.append(draw(anywhere))
    return placement(devices)


@st.composite
def placed(
    draw: st.DrawFn, accelerators: Sequence[str] | None = None, **options: Any
) -> tuple[OpGraph, Placement]:
    """A graph with a placement on home and the given accelerators: one or two when not given."""
    graph = draw(graphs(**options))
    if accelerators is None:
        accelerators = draw(st.sampled_from([("gpu",), ("gpu", "npu")]))
    return graph, draw(placements(graph, accelerators))
