"""Proofs are of the printed figure: against every placement, on links of all kinds."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.devices import load_device
from costmodels.links import Link, Links
from costmodels.machine import Machine
from costmodels.packing import Packing, SizedPacking
from costmodels.roofline import time_ops
from partition.objective import figure
from partition.optimise import place
from partition.placement import Placement
from partition.policy import load_policy
from partition.setting import Setting
from tests.support.costs import costed, device
from tests.support.examples import examples
from tests.support.graphs import describe, graphs
from tracer.graph import Kind, OpGraph

WAYS = ("sent", "received")
RATE = st.sampled_from([10**3, 3 * 10**4, 10**6])


def links_of(**more: st.SearchStrategy) -> st.SearchStrategy[Link]:
    """With every figure that costs seconds; ``more`` by the rest of its key, for each way."""
    by_way = {
        "bandwidth_bytes_per_second": RATE,
        "latency_seconds": st.sampled_from([None, 0.0, 1e-4, 0.013]),
        "toll_seconds": st.sampled_from([0.0, 0.002]),
        "serialisation_seconds_per_byte": st.sampled_from([0.0, 3e-6]),
        **more,
    }
    return st.builds(
        Link,
        st.just("any"),
        st.just(""),
        *[st.sampled_from([0, 7, 90])] * 4,
        **{f"{way}_{figure}": values for figure, values in by_way.items() for way in WAYS},
        shared_memory_threshold_bytes=st.sampled_from([0, 20, 10**6]),
        shared_memory_handle_bytes=st.sampled_from([0, 4, 16]),
        chunk_bytes=st.none() | st.sampled_from([5, 30, 200]),
    )


LINKS = links_of() | links_of(
    large_message_bytes=st.sampled_from([1, 24, 100]), large_message_bandwidth_bytes_per_second=RATE
)


RATIOS = {"float32": 0.3, "bfloat16": 0.9}
PACKINGS = st.sampled_from(
    [
        None,
        None,
        Packing("pairs", "", "blocks", 0, False, 2, 4, {}, 1e-6, 3e-5),  # 3 bytes for 8
        Packing("third", "", "lz4", 0, False, 0, 0, RATIOS, 0.0, 1e-4),
        Packing("odd", "", "lz4", 0, False, 0, 0, RATIOS),  # nobody knows what it takes
    ]
)


def least(graph: OpGraph, setting: Setting, placed: Placement) -> float:
    """The least figure of all placements, each counted as it is printed."""
    free = [
        op.id
        for op in graph.ops
        if not graph.is_everywhere(op.id) and op.kind not in (Kind.INPUT, Kind.OUTPUT)
    ]
    best = float("inf")
    for choice in product(setting.machine.devices, repeat=len(free)):
        devices = list(placed.devices)
        for op, where in zip(free, choice, strict=True):
            devices[op] = where
        one = replace(placed, devices=tuple(devices))
        best = min(best, figure(graph, load_policy("fastest"), setting, one))
    return best


@examples(10, derandomize=True)
@given(
    graphs(max_ops=8),
    LINKS,
    st.sampled_from(["run", "call"]),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([1e4, 1e6]),
    st.sampled_from(["device", "home"]),
    PACKINGS,
    st.sampled_from([0, 20]),
)
def test_what_is_called_optimal_is_and_a_bound_is_below_all(
    graph, link, residency, many, slow, weights_at, packing, from_bytes
):
    plain = {"kind": Kind.ELEMENTWISE, "dtype": "float32"}  # every device has seconds for these
    working = (Kind.INPUT, Kind.OUTPUT, Kind.VIEW, Kind.CONSTANT)
    graph = costed(
        graph.with_ops(op if op.kind in working else replace(op, **plain) for op in graph.ops)
    )
    speeds = {"tee": slow, "gpu": 1e6, "npu": 3e5}
    away = ("gpu", "npu")[:many]
    times = {name: time_ops(graph, device(name, speeds[name])) for name in ("tee", *away)}
    packed = () if packing is None else (SizedPacking((packing,), from_bytes),)
    machine = Machine("tee", away, Links(link), weights_at=weights_at, pack=packed)
    at = Setting(machine, residency=residency, times=times)
    placed = place(graph, load_policy("fastest"), at)
    best = least(graph, at, placed.placement)
    ours = figure(graph, load_policy("fastest"), at, placed.placement)
    note(f"{describe(graph, placed.placement)}\n{placed.solution} {ours} {best}")
    assert placed.solution is not None
    assert placed.solution.objective == pytest.approx(ours, abs=0.5)
    assert placed.solution.bound <= best * (1 + 1e-6) + 1
    if placed.solution.proven:
        assert ours <= best * (1 + 1e-6)


WIRE = Link(
    "shm",
    "",
    *[0] * 4,
    **dict.fromkeys([f"{way}_bandwidth_bytes_per_second" for way in WAYS], 1e7),
    **dict.fromkeys([f"{way}_latency_seconds" for way in WAYS], 1e-5),
    shared_memory_threshold_bytes=10**8,
    shared_memory_handle_bytes=16,
)
"""A slow wire, beside shared memory for whatever is below 100 MB."""


@pytest.mark.slow
def test_the_fastest_is_as_fast_as_the_cut_with_the_fewest_bytes(traced):
    """llama-3.2-1b, 16 tokens: token ids go in one call and logits come back, a handle of 16 bytes
    each: 2 x (16 / 1e7 + 1e-5) seconds beside the GPU's. A search that charged the wire for all
    513,024 bytes of logits printed 6.995 ms, as proven."""
    graph = traced("llama-3.2-1b", seq=16)
    cards = {"tee": load_device("tee-tdx"), "gpu": load_device("rtx-4090")}
    machine = Machine("tee", ("gpu",), Links(WIRE), described=cards)
    setting = Setting(machine, "run", machine.times(graph))
    runs = {}
    for policy in ("fastest", "min-cut"):
        placed = place(graph, load_policy(policy), setting)
        runs[policy] = figure(graph, load_policy("fastest"), setting, placed.placement) / 1e9
        assert placed.solution.proven
    gpu = sum(time.seconds or 0.0 for time in setting.times["gpu"].ops)
    assert runs["fastest"] == runs["min-cut"] == pytest.approx(gpu + 2 * (16 / 1e7 + 1e-5))
    assert round(runs["fastest"], 6) == 0.005105
