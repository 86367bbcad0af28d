"""What the benchmarks count with: that they load, and that torch's partitions become placements."""

from importlib import import_module

import pytest
from torch.fx.experimental.partitioner_utils import PartitionMode

from bench.torch_partitioners import (
    ACCELERATOR,
    HOME,
    LINK,
    MEMORY_SHARE,
    by_capability,
    by_memory,
    by_policy,
    fx_graph,
    supported_by,
    within,
)
from costmodels.devices import load_device
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.setting import Setting
from tests.support import ROOT
from tests.support.graphs import Builder
from tracer.graph import Kind, OpGraph

BENCH = ROOT / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py")))
def test_benchmarks_load(name):
    assert callable(import_module(f"bench.{name}").main)


def setting(graph: OpGraph) -> Setting:
    times = {name: time_ops(graph, load_device(name)) for name in (HOME, ACCELERATOR)}
    return Setting(Machine(HOME, (ACCELERATOR,), Links(load_link(LINK))), times=times)


def counted(graph: OpGraph, placement) -> tuple[int, int]:
    """(calls, payload bytes)"""
    traffic = account(graph, placement, Links(load_link("none")))
    return len(traffic.calls), traffic.totals.payload_bytes


def two_products() -> OpGraph:
    """x -> first -> norm -> second (reads first too) -> last, and a constant beside norm"""
    build = Builder(symbolic=False)
    x = build.input("x", (8, 4))  # 128 bytes
    first_weight, second_weight = (build.parameter(n, (4, 2)) for n in ("first_w", "second_w"))
    scale = build.constant("scale", shape=(2,))
    first = build.op("first", x, first_weight, shape=(8, 2), kind=Kind.LINEAR)  # 64
    norm = build.op("norm", first, scale, shape=(8, 2), kind=Kind.NORM)  # 64
    second = build.op("second", norm, first, second_weight, shape=(8, 8), kind=Kind.LINEAR)  # 256
    return annotate(build.finish(build.op("last", second, shape=(8, 1))))  # 32


@pytest.mark.parametrize(
    ("supported", "partitions", "calls", "payload"),
    [
        ((), 0, 0, 0),
        (("norm",), 1, 1, 64 + 64),
        # x out, first home, norm out (first is there), second home
        (("first", "second"), 2, 2, 128 + 64 + 64 + 256),
        (("first", "norm", "second"), 1, 1, 128 + 256),
        (("first", "norm", "second", "last"), 1, 1, 128 + 32),
        # norm and first out, second home; x out, first home
        (("first", "second", "last"), 2, 2, 128 + 64 + 64 + 32),
    ],
)
def test_partitions_of_what_is_supported_become_a_placement(supported, partitions, calls, payload):
    graph = two_products()
    ops = frozenset(op.id for op in graph.ops if op.name in supported)
    decision = by_capability(graph, fx_graph(graph), ops)
    assert decision.partitions == partitions
    assert counted(graph, decision.placement) == (calls, payload)


def test_what_a_policy_without_choice_supports_is_where_it_places():
    graph = two_products()
    ops = supported_by(graph, "offload-linear")
    decision = by_capability(graph, fx_graph(graph), ops)
    ours = by_policy(graph, "offload-linear", setting(graph)).placement
    assert decision.placement.devices == ours.devices


def test_partitions_on_devices_become_a_placement():
    build = Builder(symbolic=False)
    x, weight = build.input("x", (8, 4)), build.parameter("weight", (16, 16))  # 128, 1024
    first = build.op("first", x, weight, shape=(8, 4))  # 128
    second = build.op("second", first, shape=(8, 4))  # 128
    third = build.op("third", second, shape=(8, 2))  # 64
    graph = annotate(build.finish(build.op("fourth", third, shape=(8, 1))))  # 32
    decision = by_memory(graph, fx_graph(graph), PartitionMode.size_based, setting(graph))
    # All is 1504 bytes, and a device holds 1353 of them: first fills home with what it reads.
    assert int(MEMORY_SHARE * 1504) == 1353
    assert decision.placement.devices == (HOME, HOME, *[ACCELERATOR] * 3, HOME)
    assert decision.partitions == 2
    assert counted(graph, decision.placement) == (1, 128 + 32)


def test_a_block_that_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match=r"after 0\.01 s"), within(0.01):
        spin()


def spin() -> None:
    while True:
        pass
