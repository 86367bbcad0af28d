"""Graphs of matrix products with sizes that fit, how they may be protected, and the best by trial."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from costmodels.flops import annotate
from partition.masking import masked
from partition.masks import MaskedGraph
from partition.placement import Placement
from partition.schemes import Protection
from tests.support.graphs import HOME, Builder, Shape, placement
from tracer.graph import Kind, OpGraph

WEIGHTED = [
    Protection("one-time-pad"),
    Protection("one-time-pad", pads="online"),
    Protection("one-time-pad", scale=2.0),
    Protection("one-time-pad", check="freivalds", trials=2),
    Protection("one-time-pad-mod"),
    Protection("one-time-pad-mod", bits=64, check="freivalds"),
    Protection("rank-one"),
    Protection("orthogonal"),
    Protection("permutation"),
    Protection("freivalds"),
]
"""Ways to protect products with stored weights."""

PAIRED = [
    Protection("embedded-additive"),
    Protection("rank-one"),
    Protection("permutation", axis="channels", check="freivalds"),
    Protection("freivalds"),
]
"""Ways to protect products of two activations."""


def linear(
    b: Builder, name: str, x: int, width: int, *, bias: bool = False, label: str = ""
) -> int:
    """``x W' (+ b)`` of a tensor of three sizes."""
    *rows, inner = b.tensors[x].shape_expr or b.tensors[x].shape
    reads = [x, b.parameter(f"{name}.weight", (width, int(inner)))]
    reads += [b.parameter(f"{name}.bias", (width,))] if bias else []
    shape = (*rows, width)
    return b.op(name, *reads, shape=shape, kind=Kind.LINEAR, path=name, label=label or None)


def against(b: Builder, name: str, left: int, right: int, *, label: str = "") -> int:
    """``X Y'`` of two tensors of three sizes and as many columns."""
    shapes = [b.tensors[t].shape_expr or b.tensors[t].shape for t in (left, right)]
    (batch, rows, _), (_, others, inner) = shapes
    turned = b.view(f"{name}.turned", right, (batch, inner, others))
    shape: Shape = (batch, rows, others)
    return b.op(name, left, turned, shape=shape, kind=Kind.MATMUL, label=label or None)


@st.composite
def product_graphs(draw: st.DrawFn, ops: int = 6) -> OpGraph:
    """Linears, with and without a bias, products of activations, sums and softmaxes; annotated."""
    b = Builder(batch=draw(st.integers(1, 2)), seq=draw(st.integers(1, 3)))
    active = [b.input("x", ("batch", "seq", draw(st.integers(2, 4))))]
    for n in range(draw(st.integers(2, ops))):
        x = draw(st.just(active[-1]) | st.sampled_from(active))
        width = b.tensors[x].shape_expr[-1]
        square = width == "seq"
        alike = [t for t in active if b.tensors[t].shape_expr == b.tensors[x].shape_expr]
        match draw(st.sampled_from(["linear", "linear", "linear", "against", "add", "softmax"])):
            case "linear" if not square:
                bias = draw(st.booleans())
                made = linear(b, f"linear{n}", x, draw(st.integers(2, 5)), bias=bias)
            case "against" if not square:
                made = against(b, f"product{n}", x, draw(st.sampled_from(alike)))
            case "add":
                made = b.op(
                    f"add{n}", x, draw(st.sampled_from(alike)), shape=("batch", "seq", width)
                )
            case _:
                made = b.op(f"softmax{n}", x, shape=("batch", "seq", width), kind=Kind.SOFTMAX)
        active.append(made)
    read = {edge.tensor for edge in b.edges}
    ends = [t for t in active[1:] if t not in read]  # what leads nowhere is never proven
    return annotate(b.finish(*dict.fromkeys([*ends, draw(st.sampled_from(active[1:]))])))


@st.composite
def protected_graphs(draw: st.DrawFn, ops: int = 6) -> tuple[OpGraph, dict[int, Protection]]:
    """A graph, and how some of its products are protected where they are away."""
    graph = draw(product_graphs(ops))
    ways = {Kind.LINEAR: st.sampled_from(WEIGHTED), Kind.MATMUL: st.sampled_from(PAIRED)}
    kinds = [op for op in graph.ops if op.kind in ways]
    return graph, {op.id: draw(ways[op.kind]) for op in kinds if draw(st.integers(0, 3))}


def rewritten(
    graph: OpGraph,
    where: Placement,
    protected: Mapping[int, Protection],
    wire_dtype: str | None = None,
) -> tuple[OpGraph, Placement]:
    """A placement with the masks of those of its protected ops that are away, from the beginning."""
    away = {op: how for op, how in protected.items() if where.devices[op] != where.home}
    there = masked(graph, away, wire_dtype)
    return there, there.placed(where) if isinstance(there, MaskedGraph) else where


def all_placements(graph: OpGraph, accelerators: tuple[str, ...]) -> Iterator[Placement]:
    """Every op anywhere, but inputs and the output, which are at home, and constants."""
    choices: list[tuple[str | None, ...]] = [
        (None,)
        if graph.is_everywhere(op.id)
        else (HOME,)
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else (HOME, *accelerators)
        for op in graph.ops
    ]
    return (placement(devices) for devices in product(*choices))


def costed_at(graph: OpGraph, flops: int) -> OpGraph:
    """Each op with at least so many FLOPs: small graphs take next to no seconds."""
    return graph.with_ops(
        replace(op, cost=replace(op.cost, flops=(op.cost.flops or 0) + flops)) for op in graph.ops
    )
