"""Seconds of ops on devices, and what a device's memory must hold, against counts by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.arrays import gemm_cost
from costmodels.cost_table import cost_table
from costmodels.devices import Device, load_device
from costmodels.engines import PHYSICAL, load_engine
from costmodels.memory import fits, memory_need
from costmodels.roofline import (
    MissingCostError,
    paged_share,
    refuse_missing,
    shares,
    time_graph,
    time_ops,
)
from tests.support.graphs import Builder
from tests.support.inprocess import invoke
from tracer.graph import Gemm, Kind, OpCost, OpGraph, Role, Status

CARD = Device(
    name="card",
    description="",
    trusted=False,
    memory_bytes=10**6,
    peak_flops_per_second={"float32": 1e6, "tfloat32": 4e6},
    memory_bandwidth_bytes_per_second=1e5,
)


def costed(graph: OpGraph, costs: dict[str, OpCost]) -> OpGraph:
    free = OpCost(flops=0, flops_status=Status.ZERO)
    return graph.with_ops(replace(op, cost=costs.get(op.name, free)) for op in graph.ops)


def cost(flops: int | None, read: int = 0, write: int = 0, gemm: Gemm | None = None) -> OpCost:
    status = Status.UNSUPPORTED if flops is None else Status.EXACT
    return OpCost(gemm=gemm, flops=flops, flops_status=status, read_bytes=read, write_bytes=write)


@pytest.fixture
def graph() -> OpGraph:
    b = Builder()
    x = b.input("x", [4, 8])
    w = b.parameter("w", [16, 8])
    y = b.op("linear", x, w, shape=[4, 16], kind=Kind.LINEAR, path="layers.0.up")
    z = b.view("view", y)
    a = b.op("softmax", z, shape=[4, 16], kind=Kind.SOFTMAX, path="layers.0")
    c = b.op("copy", a, shape=[4, 16], kind=Kind.COPY, path="layers.1")
    return costed(
        b.finish(c),
        {
            "linear": cost(2 * 4 * 8 * 16, (32 + 128) * 4, 64 * 4, Gemm(1, 4, 16, 8)),
            "softmax": cost(5 * 64, 64 * 4, 64 * 4),
            "copy": cost(0, 64 * 4, 64 * 4),
        },
    )


def seconds(graph: OpGraph, device: Device, **options) -> dict[str, float | None]:
    times = time_ops(graph, device, **options)
    return {op.name: at.seconds for op, at in zip(graph.ops, times.ops, strict=True)}


def test_an_op_takes_the_longer_of_computing_and_moving(graph):
    found = seconds(graph, CARD)
    # 1024 FLOPs at 1e6/s against 896 bytes at 1e5/s
    assert found["linear"] == pytest.approx(max(1024 / 1e6, 896 / 1e5))
    assert found["softmax"] == pytest.approx(512 / 1e5)
    assert found["copy"] == pytest.approx(512 / 1e5)
    assert found["x"] == found["view"] == found["output"] == 0


@pytest.mark.parametrize(
    ("device", "bound", "taken"),
    [
        (replace(CARD, memory_bandwidth_bytes_per_second=1e9), "compute", 1024 / 1e6),
        (CARD, "memory", 896 / 1e5),
        (replace(CARD, launch_seconds=1.0), "overhead", 896 / 1e5 + 1),
        (replace(CARD, efficiency_ratio=0.5), "memory", 896 / 0.5e5),
    ],
)
def test_what_bounds_an_op(graph, device, bound, taken):
    at = time_ops(graph, device).ops[1]
    assert at.bound == bound
    assert at.seconds == pytest.approx(taken)


def test_a_launch_time_that_is_not_known_is_no_launch_for_nothing(graph):
    known = replace(CARD, launch_seconds=0.0)
    bare, timed = time_ops(graph, CARD), time_ops(graph, known)
    assert (bare.lacks_launches, timed.lacks_launches) == (True, False)
    assert bare.seconds == timed.seconds
    assert not time_ops(graph, CARD, engine=load_engine("vllm")).lacks_launches
    graphs = PHYSICAL.by("graph")  # each op is started all the same
    assert time_ops(graph, CARD, engine=graphs).lacks_launches
    rows = cost_table(graph, "", [bare, timed]).to_pylist()
    lacking = [row["op_id"] for row in rows if row["at_least"]]
    assert lacking == [op.id for op in graph.ops if op.name in ("linear", "softmax", "copy")]


def test_starting_a_product_on_an_array_takes_its_launch_time(graph):
    chip = load_device("chip-8x8")
    (alone,) = (op.seconds for op in time_ops(graph, chip).ops if op.gemm)
    slow = replace(chip, launch_seconds=3 * alone)
    found = [op for op in time_ops(graph, slow).ops if op.gemm]
    assert [(op.seconds, op.bound) for op in found] == [(4 * alone, "overhead")]
    assert not time_ops(graph, slow).lacks_launches


def test_products_in_another_dtype(graph):
    fast = replace(CARD, memory_bandwidth_bytes_per_second=1e9)
    found = seconds(graph, fast, products_dtype="tfloat32")
    assert found["linear"] == pytest.approx(1024 / 4e6)
    assert found["softmax"] == pytest.approx(320 / 1e6)  # no product: its own dtype


def test_without_a_peak_for_the_dtype_there_is_no_figure(graph):
    half = replace(CARD, peak_flops_per_second={"float16": 1e6})
    times = time_ops(graph, half)
    assert times.ops[1].seconds is None
    assert times.missing == {"aten.linear.default": 1, "aten.softmax.int": 1}
    assert times.coverage == pytest.approx(1 / 3)
    assert times.seconds == pytest.approx(512 / 1e5)  # the copy has no FLOPs
    with pytest.raises(MissingCostError, match=r"card has no cost for 1 x aten\.linear\.default"):
        refuse_missing(times)


def test_unknown_flops_have_no_seconds(graph):
    unknown = graph.with_ops(
        replace(op, cost=cost(None, 8, 8)) if op.kind is Kind.SOFTMAX else op for op in graph.ops
    )
    assert time_ops(unknown, CARD).missing == {"aten.softmax.int": 1}


def test_an_array_runs_products_alone(graph):
    chip = load_device("chip-8x8")
    times = time_ops(graph, chip)
    assert chip.array is not None
    assert times.ops[1].gemm == gemm_cost(chip.array, 4, 8, 16)
    assert times.ops[1].seconds == pytest.approx(2 * 532 / 1e8)  # ceil(4/8) x 1 x 2 tiles
    assert times.missing == {"aten.softmax.int": 1, "aten.clone.default": 1}


def test_secure_memory_that_is_too_small_pages(graph):
    need = memory_need(graph).live_bytes
    enclave = replace(CARD, enclave_bytes=need // 4, paging_bytes_per_second=1e4)
    times = time_graph(graph, enclave)
    assert times.paged_share == pytest.approx(1 - (need // 4) / need)
    assert times.ops[1].seconds == pytest.approx(896 / 1e5 + 896 * times.paged_share / 1e4)
    roomy = replace(enclave, enclave_bytes=need)
    assert time_graph(graph, roomy).paged_share == 0
    assert seconds(graph, roomy) == seconds(graph, CARD)


def test_paging_goes_by_what_lies_there(graph):
    """1,000 bytes of room: nothing pages up to them, of 4,000 bytes three quarters do."""
    enclave = replace(CARD, enclave_bytes=1000, paging_bytes_per_second=1e4)
    alone = time_ops(graph, enclave)
    assert alone.ops == time_ops(graph, CARD).ops
    assert alone.holding(graph, 1000) is alone
    full = alone.holding(graph, 4000)
    assert full.paged_share == 0.75
    assert full.ops[1].seconds == pytest.approx(896 / 1e5 + 896 * 0.75 / 1e4)
    assert full.ops[0].seconds == 0
    assert paged_share(CARD, 10**9) == 0
    assert paged_share(enclave, np.array([0, 999, 1000, 4000])).tolist() == [0, 0, 0, 0.75]


def test_whether_it_fits(graph):
    need = memory_need(graph)
    for memory, answer in (
        (need.peak_bytes, True),
        (need.peak_bytes - 1, None),
        (need.live_bytes, None),
        (need.live_bytes - 1, False),
        (None, None),
    ):
        assert fits(need, memory) is answer


def test_sums_hold_every_op_once(graph):
    times = time_ops(graph, CARD)
    by_layer = {s.name: s for s in shares(graph, times, lambda op: str(op.layer))}
    assert {name: s.ops for name, s in by_layer.items()} == {"0": 2, "1": 1}
    assert by_layer["0"].flops == 1024 + 320
    assert by_layer["0"].traffic_bytes == 896 + 512
    assert by_layer["0"].intensity == pytest.approx((1024 + 320) / (896 + 512))
    assert sum(s.seconds for s in by_layer.values()) == pytest.approx(times.seconds)
    assert sum(by_layer["0"].seconds_by_bound.values()) == pytest.approx(by_layer["0"].seconds)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_by_hand(graph):
    need = memory_need(graph)
    assert need.resident_bytes == 16 * 8 * 4
    # x (128) and linear (256); linear under its view and softmax; softmax and copy
    assert need.live_activation_bytes == 256 + 256


def test_a_tensor_lives_to_its_last_reader():
    b = Builder()
    x = b.input("x", [100])
    a = b.op("a", x, shape=[10])
    c = b.op("c", a, shape=[20])
    d = b.op("d", a, c, shape=[30])
    e = b.op("e", d, shape=[1])
    graph = b.finish(e)
    # x 100 + a 10; a 10 + c 20 + d 30; d 30 + e 1
    assert memory_need(graph).live_activation_bytes == 4 * 110
    later = Builder()
    x = later.input("x", [100])
    a = later.op("a", x, shape=[10])
    c = later.op("c", a, shape=[20])
    d = later.op("d", x, c, shape=[30])  # x is read again: 100 + 20 + 30 at once
    assert memory_need(later.finish(d)).live_activation_bytes == 4 * 150


def test_constants_tied_weights_and_state_are_resident_once():
    b = Builder()
    x = b.input("x", [8])
    past = b.input("past", [5], role=Role.KV_CACHE)
    w = b.parameter("w", [7])
    tied = b.parameter("tied", [7], alias_of=w)
    mask = b.constant("mask", shape=[3])
    unread = b.constant("unread", shape=[1000])
    assert unread
    y = b.op("y", x, w, mask, past, shape=[8])
    z = b.op("z", y, tied, shape=[8])
    need = memory_need(b.finish(z))
    assert need.resident_bytes == 4 * (7 + 3 + 5)
    assert need.live_activation_bytes == 4 * 16


def test_costs_of_another_trace_are_removed(tmp_path, graph):
    from costmodels.cost_table import write_costs
    from partition.tables import remove_stale

    write_costs(graph, "first", [time_ops(graph, CARD), time_ops(graph, CARD)], tmp_path)
    assert remove_stale(tmp_path, "first") == []
    assert (tmp_path / "costs.parquet").exists()
    assert remove_stale(tmp_path, "second") == ["costs"]
    assert not (tmp_path / "costs.parquet").exists()
    assert remove_stale(tmp_path, "second") == []


def test_the_table_joins_with_ops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "16").returncode == 0
    asked = ("--device", "rtx-4090", "--device", "chip-8x8")
    found = json.loads(invoke("cutedge", "cost", *asked, "--json").stdout)["costs"]
    sql = (
        "SELECT device, sum(seconds) AS s, sum(cycles) AS cycles, count(*) AS n FROM costs "
        "JOIN ops USING (op_id) GROUP BY device ORDER BY device"
    )
    chip, card = json.loads(invoke("cutedge", "query", sql, "--json").stdout)["rows"]
    assert [one["device"] for one in found] == ["rtx-4090", "chip-8x8"]
    assert card["s"] == pytest.approx(found[0]["seconds"])
    assert chip["s"] == pytest.approx(found[1]["seconds"])
    assert chip["cycles"] == found[1]["cycles"]
    assert card["cycles"] is None
    assert card["n"] == chip["n"]
    for one in found:
        for key in ("by_kind", "by_layer", "by_module"):
            assert sum(s["seconds"] for s in one[key]) == pytest.approx(one["seconds"])
            assert sum(s["flops"] for s in one[key]) == one["flops"]
    assert found[1]["link_seconds"] > 0
    faster = ("--chips", "4", "--int8-speedup", "2", "--sparsity", "0.9", "--sparsity-speedup", "5")
    done = invoke("cutedge", "cost", *asked[2:], *faster, "--json")
    (quick,) = json.loads(done.stdout)["costs"]
    assert quick["tiles"] == found[1]["tiles"]
    assert quick["seconds"] == pytest.approx(found[1]["seconds"] / 40, rel=1e-3)
    assert quick["link_seconds"] == pytest.approx(found[1]["link_seconds"] / 4)  # a byte for four
    strict = invoke("cutedge", "cost", "--device", "chip-8x8", "--strict")
    assert strict.returncode == 1
    assert "chip-8x8 has no cost for" in strict.stderr


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("cost", "--device", "rtx-4091"), "rtx-4090"),
        (("cost", "--products-dtype", "tf32"), "tfloat32"),
        (("cost", "--device", "rtx-4090", "--chips", "2"), "no --device is one"),
        (("limits", "gpt2", "--device", "chip-8x8"), "chip-8x8 is an array of multipliers"),
        (("limits", "gpt2", "--dtype", "int4"), "no peak for int4"),
        (("limits", "bert-base"), "takes no cache"),
        (("params", "lama"), "llama"),
    ],
)
def test_what_cannot_be_costed_is_one_line(tmp_path, monkeypatch, asked, says):
    monkeypatch.chdir(tmp_path)
    invoke("trace", "edge-10m", "--seq", "16")
    done = invoke("cutedge", *asked)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
