"""What fused kernels move, against counts by hand, and what holds of groups of any graph."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cutedge
from costmodels.devices import load_device
from costmodels.engines import PHYSICAL
from costmodels.flops import FREE, annotate
from costmodels.fused import fused
from costmodels.roofline import time_ops
from costmodels.traffic import traffic
from partition.run import times_under
from partition.split import Split
from tests.support.examples import examples
from tests.support.graphs import Builder, graphs
from tests.support.traces import captured
from tracer.graph import Kind, OpGraph
from tracer.presets import preset

ITEM = 4


def moved(graph: OpGraph, runs=None) -> int:
    return sum(
        group.moved(number) for group in fused(graph, runs) for number in range(len(group.ops))
    )


def names(graph: OpGraph, runs=None) -> list[list[str]]:
    return [[graph.ops[op].name for op in group.ops] for group in fused(graph, runs)]


def test_a_chain_is_read_and_written_once():
    b = Builder()
    x = b.input("x", [4, 8])
    y = b.op("square", x, shape=[4, 8], kind=Kind.NORM)
    z = b.op("mean", y, shape=[4, 1], kind=Kind.NORM)
    out = b.op("scaled", x, z, shape=[4, 8], kind=Kind.NORM)
    graph = b.finish(out)
    assert names(graph) == [["square", "mean", "scaled"]]
    assert moved(graph) == (4 * 8 + 4 * 8) * ITEM  # x once, the result once


def test_what_is_read_outside_is_written():
    """A residual is read by the norm behind it, and by the sum after the product."""
    b = Builder()
    x, w = b.input("x", [4, 8]), b.parameter("w", [8, 8])
    first = b.op("residual", x, x, shape=[4, 8])
    norm = b.op("norm", first, shape=[4, 8], kind=Kind.NORM)
    product = b.op("linear", norm, w, shape=[4, 8], kind=Kind.LINEAR)
    out = b.op("sum", first, product, shape=[4, 8])
    graph = b.finish(out)
    assert names(graph) == [["residual", "norm"], ["linear"], ["sum"]]
    sizes = [4 * 8 * 3, 4 * 8 + 64 + 4 * 8, 4 * 8 * 3]  # x, both results; product; both, result
    assert moved(graph) == sum(sizes) * ITEM


def test_a_copy_that_only_arranges_is_free():
    b = Builder()
    x = b.input("x", [4, 8])
    wide = b.view("expand", x, [4, 16, 8])
    copy = b.op("repeated", wide, shape=[64, 8], kind=Kind.COPY)
    out = b.op("scaled", copy, shape=[64, 8])
    graph = b.finish(out)
    assert names(graph) == [["scaled"]]
    assert moved(graph) == (4 * 8 + 64 * 8) * ITEM


def by_hand(heads, kv_heads, width, hidden, ffn, layers, vocabulary, past):
    """Bytes of a Llama-like decode of one token in bfloat16, kernel by kernel.

    Qwen2 has biases on q, k and v; embedding and head are one table.
    """
    q, kv = heads * width, kv_heads * width
    norm = [hidden * 3 + hidden, hidden * 4]  # residual of two summands: in, in, scale, out, out
    attention = q + 2 * kv * (past + 1) + q + (past + 1)  # and its mask
    layer = (
        [3 * hidden + hidden]
        + [hidden + n * hidden + n + n for n in (q, kv, kv)]
        + [q + 2 * width + q, kv + 2 * width + kv]
        + [attention, q + hidden * q + hidden, norm[0] + hidden]
        + [2 * (hidden + ffn * hidden + ffn), 3 * ffn, ffn + ffn * hidden + hidden]
    )
    # The first norm of a layer is one with the sum of the layer before; the last one has no layer.
    first = hidden * 3
    total = layers * (sum(layer[1:])) + first + layers * (5 * hidden)
    # Of the last sum only the norm is read.
    total -= hidden
    head = hidden + vocabulary * hidden + vocabulary
    return 2 * (total + head + 2 * hidden) + 8


LAYERS = [2, pytest.param(24, marks=pytest.mark.slow)]


def qwen(layers: int, past: int, attn: str = "eager") -> OpGraph:
    few = layers < 6  # more are traced as formulas, each kind of layer once
    options = {"past": past, "dtype": "bfloat16", "attn": attn, "symbolic": not few}
    shallow = {"num_hidden_layers": layers}
    plain = captured(
        preset("qwen2.5-0.5b"), model="qwen", phase="decode", overrides=shallow, **options
    )
    return annotate(plain.graph)


@pytest.mark.slow
@pytest.mark.parametrize("layers", LAYERS)
def test_a_decode_moves_what_is_counted_by_hand(layers):
    assert moved(qwen(layers, 512)) == by_hand(14, 2, 64, 896, 4864, layers, 151936, 512)


@pytest.mark.slow
@pytest.mark.parametrize("layers", LAYERS)
def test_an_attention_written_out_moves_what_one_op_does(layers):
    """Eager and sdpa are the same kernels, but for a mask that the eager one reads."""
    eager, sdpa = (qwen(layers, 512, attn) for attn in ("eager", "sdpa"))
    mask = layers * 2 * 513
    assert moved(eager) - moved(sdpa) == mask
    assert len(fused(eager)) == len(fused(sdpa))
    assert sum(group.is_attention for group in fused(eager)) == layers


@examples(25)
@given(graphs(), st.data())
def test_groups_are_convex_and_within_a_run(graph, data):
    where = data.draw(
        st.lists(st.sampled_from(["a", "b"]), min_size=len(graph.ops), max_size=len(graph.ops))
    )
    runs = tuple((device, 0) for device in where)
    groups = fused(graph, runs)
    for group in groups:
        assert len({runs[op] for op in group.ops}) == 1
        inside = set(group.ops)
        leaving = {
            after for op in inside for after in nx.descendants(graph.nx, op) if after not in inside
        }
        free = {op.id for op in graph.ops if op.id not in {o for g in groups for o in g.ops}}
        for op in leaving - free:
            assert not nx.descendants(graph.nx, op) & inside
    placed = [op for group in groups for op in group.ops]
    assert len(placed) == len(set(placed))
    # Nothing that fuses moves more than op by op, and a cut makes it no less.
    eager = 0
    for op in graph.ops:
        if op.kind not in FREE and not op.is_view:
            reads, written = traffic(graph, op)
            eager += sum(reads.values()) + written
    assert moved(graph) <= moved(graph, runs) <= eager


def test_what_runs_apart_divides_groups_and_makes_no_others():
    """In bytes: near and wide are one pass, 12 + 24; far 12 + 12; last 12 + 24 + 12. Where near runs
    apart, wide does not go with last instead, which would move 84: 12 and 12 more are moved."""
    b = Builder()
    x, y = b.input("x", (1, 3)), b.input("y", (1, 3))
    near = b.op("near", x, shape=(1, 3), kind=Kind.SOFTMAX)
    wide = b.op("wide", near, shape=(1, 6), kind=Kind.SOFTMAX)
    far = b.op("far", y, shape=(1, 3), kind=Kind.LINEAR)
    last = b.op("last", far, wide, shape=(1, 3), kind=Kind.SOFTMAX)
    graph = b.finish(last)
    runs = tuple(("b" if op.name in ("wide", "last") else "a", 0) for op in graph.ops)
    assert moved(graph) == 36 + 24 + 48
    assert moved(graph, runs) == 24 + 36 + 24 + 48


def test_parts_of_a_group_are_no_more_than_what_they_take_alone():
    """So a search that sums ops under one device has a bound of every placement's seconds."""
    trace = cutedge.trace("edge-10m", phase="decode", past=64)
    whole = trace.partition("all-home", home="rtx-4090", execution="fused").setting.times
    engine = PHYSICAL.by("fused")
    times = {
        name: time_ops(trace.graph, load_device(name), engine=engine)
        for name in ("rtx-4090", "h100-sxm")
    }
    assert times["rtx-4090"].seconds == pytest.approx(whole["rtx-4090"].seconds)
    for policy in ("offload-linear", "fuse-attention", "host-chip"):
        split: Split = trace.partition(
            policy, home="rtx-4090", accel="h100-sxm", execution="fused", link="pcie5-x16"
        ).split
        under = times_under(trace.graph, split.placement, split.traffic.transfers, times)
        for name, time in times.items():
            here = [op for op, device in enumerate(split.placement.devices) if device == name]
            least = sum(time.ops[op].seconds or 0 for op in here)
            taken = sum(under[name].ops[op].seconds or 0 for op in here)
            assert least <= taken * (1 + 1e-12)
            assert taken == pytest.approx(split.compute_seconds[name])
