"""What lies on one device together, by what an executor can place."""

import pytest
from hypothesis import given

from partition.granularity import unit_name, units
from tests.support.examples import examples
from tests.support.graphs import Builder, graphs
from tests.support.presets import QUICK
from tracer.graph import Kind, OpGraph
from tracer.patterns import attention_core
from tracer.stacks import run_order

FINER = [
    ("op", "tensor"),
    ("op", "module"),
    ("tensor", "layer"),
    ("module", "layer"),
    ("convex", "op"),
    ("op", "convex"),
]


def named_units(graph: OpGraph, granularity) -> list[str]:
    """The units with more than one op or a name of their own, as texts to compare."""
    found: dict[int, list[str]] = {}
    for op in run_order(graph):
        found.setdefault(units(graph, granularity)[op], []).append(graph.ops[op].name)
    return [" ".join(names) for names in found.values()]


def assert_refines(graph: OpGraph, finer, coarser) -> None:
    fine, coarse = units(graph, finer), units(graph, coarser)
    assert all(coarse[op] == coarse[first] for op, first in enumerate(fine)), (finer, coarser)


def model() -> OpGraph:
    """Two layers of a norm in two ops, an attention whose scores are its own, and a sum; tied."""
    build = Builder()
    table = build.parameter("embed.weight", (64, 32))
    ids = build.input("input_ids", (1, 8), "int64")
    mask = build.constant("mask", shape=(8, 8))
    x = build.op("embed", table, ids, shape=(1, 8, 32), kind=Kind.EMBEDDING, path="embed")
    x = build.op("scaled", x, shape=(1, 8, 32))
    for layer in range(2):
        at = f"layers.{layer}"
        stored = {
            name: build.parameter(f"{at}.{name}", (32, 32)) for name in ("norm", "q", "k", "o", "b")
        }
        y = build.op(f"rms{layer}", x, shape=(1, 8, 32), path=f"{at}.norm")
        y = build.op(f"gain{layer}", y, stored["norm"], shape=(1, 8, 32), path=f"{at}.norm")
        q, k = (
            build.op(f"{name}{layer}", y, stored[name], shape=(1, 8, 32), path=f"{at}.attn.{name}")
            for name in ("q", "k")
        )
        y = build.op(f"scores{layer}", q, k, mask, shape=(1, 8, 8), path=f"{at}.attn")
        y = build.op(f"mixed{layer}", y, y, shape=(1, 8, 32), path=f"{at}.attn")
        o, b = stored["o"], stored["b"]
        y = build.op(f"o{layer}", y, o, b, shape=(1, 8, 32), path=f"{at}.attn.o")
        y = build.op(f"shift{layer}", y, b, shape=(1, 8, 32), path=f"{at}.attn.o")
        x = build.op(f"sum{layer}", x, y, shape=(1, 8, 32), path=at)
        if layer == 0:
            x = build.op("between", x, shape=(1, 8, 32), path="model")
    x = build.op("last", x, shape=(1, 8, 32))
    return build.finish(build.op("head", x, table, shape=(1, 8, 64), path="head"))


def test_units_by_hand():
    graph = model()
    alone = [graph.ops[op].name for op in run_order(graph)]
    assert named_units(graph, "op") == named_units(graph, "convex") == alone
    assert named_units(graph, "tensor") == [
        "embed scaled",  # the table, which the head has once more
        "rms0 gain0 sum0 between",  # no weight of the block follows the sum
        "q0",
        "k0 scores0 mixed0",  # those of o follow
        "o0 shift0",  # two weights of one op
        "rms1 gain1 sum1",
        "q1",
        "k1 scores1 mixed1",
        "o1 shift1",
        "last head",  # no weight is read before it there
    ]
    assert named_units(graph, "module") == [
        "embed",
        "scaled",
        *("rms0 gain0", "q0", "k0", "scores0 mixed0", "o0 shift0", "sum0", "between"),
        *("rms1 gain1", "q1", "k1", "scores1 mixed1", "o1 shift1", "sum1"),
        "last",
        "head",
    ]
    assert named_units(graph, "layer") == [
        "embed scaled",
        "rms0 gain0 q0 k0 scores0 mixed0 o0 shift0 sum0 between",
        "rms1 gain1 q1 k1 scores1 mixed1 o1 shift1 sum1",
        "last head",
    ]


def test_units_have_names():
    graph = model()
    names = {op.name: op.id for op in graph.ops}

    def called(granularity, op: str) -> str:
        return unit_name(graph, granularity, units(graph, granularity)[names[op]])

    assert called("layer", "scaled") == "what comes before the first layer"
    assert called("layer", "sum1") == "layers.1"
    assert called("layer", "head") == "what comes after layers"
    assert called("module", "mixed0") == "layers.0.attn"
    assert called("module", "scaled") == "what the model does itself"
    assert called("tensor", "mixed0") == "layers.0.k and what goes with it"
    assert called("tensor", "last") == "embed.weight and what goes with it"
    assert called("op", "q0") == f"op {names['q0']} (q0)"


@examples(30)
@given(graphs())
def test_units_of_any_graph(graph):
    placed = set(run_order(graph))
    for granularity in ("op", "tensor", "module", "layer", "convex"):
        found = units(graph, granularity)
        for op, first in enumerate(found):
            assert found[first] == first <= op
            assert op == first or {op, first} <= placed
    for finer, coarser in FINER:
        assert_refines(graph, finer, coarser)


@pytest.mark.parametrize("name", QUICK[:4])
def test_units_of_presets(traced, name):
    graph = traced(name, seq=16)
    for finer, coarser in FINER:
        assert_refines(graph, finer, coarser)
    # A block each, what is before them and what is after them; BERT has its head behind the last.
    layers = {op.layer for op in graph.ops if op.layer is not None}
    assert len(named_units(graph, "layer")) == len(layers) + 2
    weights = {t.id for t in graph.tensors if t.role == "parameter" and graph.readers(t.id)}
    assert len(named_units(graph, "tensor")) <= len(weights) + 1  # tied ones twice


def test_an_attention_and_its_cache_are_where_their_block_is(traced):
    """Two layers, each with nine weights: two norms, four and three projections."""
    graph = traced("llama-3.2-1b", seq=16)
    found = units(graph, "tensor")
    core = attention_core(graph)
    for layer in (0, 1):
        ops = [op for op in run_order(graph) if graph.ops[op].layer == layer]
        (norm,) = {found[op] for op in core if op in ops}
        assert graph.ops[norm].module_path == f"model.layers.{layer}.input_layernorm"
        assert found[ops[-1]] == norm  # the residual sum that the block ends in
        assert len({found[op] for op in ops}) == 9
        kinds = [graph.ops[op].module_path.split(".")[-1] for op in ops if found[op] == op]
        assert kinds[:5] == ["input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj"]
