"""What no program with a graph's results moves less than: by hand, and below whatever is fused."""

import pytest
import torch
from hypothesis import given

import cutedge
from costmodels.compulsory import compulsory_bytes
from costmodels.fused import fused
from tests.support.examples import examples
from tests.support.graphs import Builder, graphs
from tests.support.weights import LLAMA, decoded
from tracer.graph import Kind, OpGraph

ITEM = 4


def test_a_decode_reads_weights_and_cache_once_and_writes_new_rows() -> None:
    """The embedding's table is looked up in, and which rows that takes depends on the tokens."""
    graph = decoded({**LLAMA, "num_hidden_layers": 1})
    hidden, ffn, kv, vocabulary, past = 256, 512, 2 * 64, 96, 16
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn + 2 * hidden
    weights = layer + hidden + vocabulary * hidden
    cache = 2 * kv * past
    assert compulsory_bytes(graph) == ITEM * (weights + cache + 2 * kv + vocabulary)


def test_what_is_read_often_is_read_once_and_what_nobody_needs_is_left() -> None:
    b = Builder()
    x, w, unused = b.input("x", [4, 8]), b.parameter("w", [8, 8]), b.parameter("u", [8, 8])
    first = b.op("first", x, w, shape=[4, 8], kind=Kind.LINEAR)
    second = b.op("second", first, w, shape=[4, 8], kind=Kind.LINEAR)
    b.op("dead", x, unused, shape=[4, 8], kind=Kind.LINEAR)
    graph = b.finish(second)
    assert compulsory_bytes(graph) == ITEM * (4 * 8 + 8 * 8 + 4 * 8)


def least(graph: OpGraph) -> int:
    return sum(group.moved(n) for group in fused(graph) for n in range(len(group.ops)))


@examples(25)
@given(graphs())
def test_nothing_that_fuses_moves_less(graph: OpGraph) -> None:
    assert compulsory_bytes(graph) <= least(graph)


@pytest.mark.parametrize("execution", ["eager", "graph", "fused"])
def test_no_seconds_are_below_the_least(execution: str) -> None:
    for sizes in ({"seq": 16}, {"phase": "decode", "past": 16}):
        traced = cutedge.trace("edge-10m", **sizes)
        for device in ("rtx-4090", "tee-sgx"):
            (cost,) = traced.costs(device, execution=execution)
            assert cost.least_seconds is not None
            assert 0 < cost.least_seconds <= cost.time.seconds
    (chip,) = traced.costs("chip-8x8")
    assert chip.least_seconds is None  # of an array no rate of its memory is known


def test_products_bound_what_computes_much() -> None:
    """2 * 2048**3 FLOPs at 82.58 TFLOPS take longer than 48 MiB at 1008 GB/s."""
    traced = cutedge.trace(torch.nn.Linear(2048, 2048, bias=False), torch.zeros(2048, 2048))
    (cost,) = traced.costs("rtx-4090")
    assert cost.compulsory_bytes == 3 * 2048 * 2048 * ITEM
    assert cost.least_seconds == pytest.approx(2 * 2048**3 / 82.58e12)
