"""Schedules of traced models: equal to the accounting, in tables, JSON and sentences."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import compress, pairwise
from math import fsum
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import cutedge
from cutedge._export import opened
from cutedge.exports.timeline import Timeline, laid_out, predicted
from partition.run import times_under
from partition.schedule import tasks_of
from tests.support.inprocess import invoke
from tracer.words import duration

ON = "tee-tdx+h100-cc@pcie5-x16-cc"
TWO = "tee-sgx+a=rtx-4090+b=h100-sxm@pcie4-x16"
HALVES = """
description = "MLPs on another device than attention"
default = "home"
[[rule]]
kind = ["linear"]
module_path = ["*fc*"]
place = "accelerator 2"
reason = "MLP"
[[rule]]
kind = ["linear", "matmul", "elementwise"]
place = "accelerator"
reason = "products"
"""
SMALL = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def traced() -> cutedge.Trace:
    return cutedge.trace("edge-10m", seq=16, overrides=SMALL)


@pytest.fixture(scope="module")
def decoded() -> cutedge.Trace:
    return cutedge.trace("edge-10m", phase="decode", past=12, overrides=SMALL)


def rows_of(p: cutedge.Partition, *asked: Any) -> list[dict[str, Any]]:
    return p.schedule(*asked).table.to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.parametrize("policy", ["offload-linear", "fuse-attention", "all-home", "min-cut"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.few(8)
def test_serial_is_exactly_what_the_accounting_sums_up(phase, policy, residency, traced, decoded):
    trace = traced if phase == "prefill" else decoded
    p = trace.partition(policy, machine=ON, residency=residency)
    split, found = p.split, p.schedule("serial").schedule
    assert found.makespan_seconds == found.serial_seconds == split.run.seconds
    rows = rows_of(p, "serial")
    for device, seconds in split.compute_seconds.items():
        ops = [row["seconds"] for row in rows if row["op_id"] is not None]
        on = [row["resource"] == device for row in rows if row["op_id"] is not None]
        assert fsum(compress(ops, on)) == seconds
    moved: dict[str, list[float]] = {"send": [], "receive": []}
    for row in rows:
        if row["transfer_id"] is not None:
            moved[split.traffic.transfers[row["transfer_id"]].direction].append(row["seconds"])
    totals = split.traffic.totals
    assert fsum(moved["send"]) == totals.sent_seconds
    assert fsum(moved["receive"]) == totals.received_seconds
    assert rows[-1]["end_seconds"] == pytest.approx(split.run.seconds, rel=1e-12)


@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.parametrize("machine", [ON, TWO])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_nothing_runs_before_what_it_reads_is_there(
    phase, machine, residency, traced, decoded, tmp_path
):
    """Each op's inputs were made or brought, by edges and transfers rather than by its tasks."""
    trace = traced if phase == "prefill" else decoded
    graph, policy = trace.graph, tmp_path / "halves.toml"
    policy.write_text(HALVES, encoding="utf-8")
    p = trace.partition(
        policy if machine == TWO else "offload-linear", machine=machine, residency=residency
    )
    devices = p.split.placement.devices
    peers = {t.direction for t in p.split.traffic.transfers} >= {"peer"}
    assert peers == (machine == TWO and residency == "run")
    rows = rows_of(p, "overlap", 2)
    assert len(rows) == 2 * (
        sum(device is not None for device in devices) + len(p.split.traffic.transfers)
    )
    for request in (0, 1):
        mine = [row for row in rows if row["request"] == request]
        ops = {row["op_id"]: row for row in mine if row["op_id"] is not None}
        moves = {row["transfer_id"]: row for row in mine if row["transfer_id"] is not None}
        arrives = defaultdict(list)
        for t in p.split.traffic.transfers:
            arrives[t.tensor.id, t.dst_device].append(moves[t.id]["end_seconds"])
            if t.tensor.op is not None and devices[t.tensor.op] == t.src_device:
                assert ops[t.tensor.op]["end_seconds"] <= moves[t.id]["start_seconds"]
        for op, row in ops.items():
            for tensor in graph.flowing(op):
                if devices[tensor.op] == devices[op]:
                    assert ops[tensor.op]["end_seconds"] <= row["start_seconds"]
                else:
                    assert min(arrives[tensor.id, devices[op]]) <= row["start_seconds"]
        if residency == "call":
            ends: dict[str, float] = {}
            for call in p.split.traffic.calls:
                inside = [row for row in mine if row["call_id"] == call.id]
                begins = min(row["start_seconds"] for row in inside)
                assert begins >= ends.get(call.device, 0.0)
                ends[call.device] = max(row["end_seconds"] for row in inside)


def test_what_forgets_overlaps_no_more_than_what_keeps(traced):
    kept, forgot = (
        traced.partition("offload-linear", machine=ON, residency=residency).schedule().schedule
        for residency in ("run", "call")
    )
    assert kept.makespan_seconds < kept.serial_seconds
    assert forgot.bound_seconds > kept.bound_seconds


def test_more_requests_fill_the_busiest_resource(traced):
    p = traced.partition("offload-linear", machine=ON)
    rates = [p.schedule("overlap", many).summary["requests_per_second"] for many in (1, 2, 8)]
    assert rates == sorted(rates)
    many = p.schedule("overlap", 8).summary
    assert rates[-1] <= many["most_requests_per_second"]
    assert many["limited_by"] == "tee-tdx <-> h100-cc"  # a bridge for both directions
    assert many["idle_shares"][many["limited_by"]] < 0.1
    one = p.schedule("overlap").summary
    assert many["most_requests_per_second"] == pytest.approx(one["most_requests_per_second"])


def test_the_critical_path_has_no_gap(traced):
    found = traced.partition("fuse-attention", machine=ON).schedule("overlap", 3)
    rows = found.critical_path.to_pylist()
    assert rows[0]["start_seconds"] == 0
    assert rows[0]["waits_for"] is None
    for before, row in pairwise(rows):
        assert row["waits_for"] == before["schedule_id"]
        assert row["start_seconds"] == before["end_seconds"]
    assert rows[-1]["end_seconds"] == found.summary["makespan_seconds"]
    assert found.summary["critical_path"] == [
        {key: row[key] for key in found.summary["critical_path"][0]}
        for row in rows
        if row["seconds"]
    ]


@pytest.fixture(scope="module")
def no_latency(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a link without latency."""
    framing = ("message_framing_bytes", "tensor_framing_bytes")
    keys = [f"{way}_{key}" for way in ("sent", "received") for key in framing]
    figures = [f'[{key}]\nvalue = 1\nsource = "by hand"' for key in keys]
    figures += [
        f'[{way}_bandwidth_bytes_per_second]\nvalue = 1000000\nsource = "by hand"'
        for way in ("sent", "received")
    ]
    file: Path = tmp_path_factory.mktemp("links") / "bare.toml"
    file.write_text("\n".join(['description = "bare"', *figures]), encoding="utf-8")
    return str(file)


def test_what_is_not_known_is_said(traced, no_latency):
    bare = traced.partition("offload-linear").schedule()  # tee and gpu have no figures
    assert bare.summary["at_least"]
    assert bare.summary["requests_per_second"] is None or bare.summary["makespan_seconds"] > 0
    ops = [row for row in bare.table.to_pylist() if row["category"] == "op"]
    assert {row["seconds"] for row in ops} == {None}
    for link, known in (("pcie4-x16", True), (no_latency, False), ("zmq-ipc", False)):
        # zmq-ipc has no bandwidth
        machine = f"tee-tdx+rtx-4090@{link}"
        made = traced.partition("offload-linear", machine=machine, engine="hf-eager")
        found = made.schedule()
        assert found.summary["at_least"] is not known
    physical = traced.partition("offload-linear", machine="tee-tdx+rtx-4090@pcie4-x16").schedule()
    assert physical.summary["at_least"]  # what starting an op takes is not known


def test_tasks_wait_for_earlier_ones_alone(decoded):
    for residency in ("run", "call"):
        p = decoded.partition("host-chip", machine=ON, residency=residency)
        split = p.split
        times = times_under(split.graph, split.placement, split.traffic.transfers, p.setting.times)
        tasks, _ = tasks_of(split.graph, split.placement, split.traffic, times, residency)
        assert all(before < n for n, task in enumerate(tasks) for before in task.waits_for)


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, traced: cutedge.Trace) -> Path:
    folder: Path = tmp_path_factory.mktemp("schedule")
    return traced.save(folder / "t")


def done(*args: Any) -> str:
    ran = invoke(*args)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


OFFLOAD = ("--policy", "offload-linear", "--machine", ON)


def test_partition_says_and_writes_its_schedule(here, traced, no_latency):
    asked = ("--schedule", "overlap", "--requests", "2")
    said = json.loads(done("partition", here, *OFFLOAD, *asked, "--json"))
    found = traced.partition("offload-linear", machine=ON).schedule("overlap", 2)
    assert {key: said[key] for key in found.summary} == found.summary
    table = Path(said["folder"]) / "schedule.parquet"
    assert pq.ParquetFile(table).read().to_pylist() == found.table.to_pylist()
    asking = "SELECT max(end_seconds) AS makespan_seconds FROM schedule"
    (row,) = json.loads(done("query", "--trace", here, asking, "--json"))["rows"]
    assert row["makespan_seconds"] == said["makespan_seconds"]
    words = done("partition", here, *OFFLOAD, *asked)
    assert f"schedule overlap: 2 requests, at least {duration(said['makespan_seconds'])};" in words
    assert "critical path" in words
    unknown = ("--policy", "offload-linear", "--machine", f"tee-tdx+rtx-4090@{no_latency}")
    words = done("partition", here, *unknown, "--schedule", "overlap")
    assert "schedule overlap: at least " in words
    assert words.count("the latency of bare") == 1
    moved = len(traced.partition("offload-linear").split.traffic.transfers)
    words = done("partition", here, "--machine", "tee-tdx+rtx-4090@zmq-ipc", "--schedule", "serial")
    assert f"left out of the schedule: the seconds of 0 ops and {moved} transfers" in words

    assert "schedule" not in json.loads(done("partition", here, *OFFLOAD, "--json"))
    assert not table.exists()  # else it would be that of another partition


def test_compare_has_a_column_of_each(here):
    asked = ("--policy", "offload-linear", "--policy", "min-cut", "--machine", ON)
    found = json.loads(done("compare", here, *asked, "--schedule", "overlap", "--json"))
    for one in found["partitions"]:
        assert one["bound_seconds"] <= one["makespan_seconds"] * (1 + 1e-9)
        assert one["makespan_seconds"] <= one["run_seconds"] * (1 + 1e-9)
    sort = ("--sort", "seconds", "--schedule", "overlap")
    names = json.loads(done("compare", here, *asked, *sort, "--json"))["partitions"]
    taken = [one["makespan_seconds"] for one in names]
    assert taken == sorted(taken)
    assert "overlap" in done("compare", here, *asked, "--schedule", "overlap")
    several = done("compare", here, *asked, "--schedule", "serial", "--requests", "3")
    assert "serial, 3 requests" in several
    within = ("--schedule", "overlap", "--requests", "2", "--within", "1e-5", "--json")
    for one in json.loads(done("compare", here, *asked, *within))["partitions"]:
        # Each request has 16 tokens, and may be the last one.
        assert one["times_too_slow"] == pytest.approx(one["makespan_seconds"] / 16 / 1e-5)


def test_over_sizes_goes_by_the_schedule(here, traced):
    asked = ("seq", "16..17", ["offload-linear"])
    _, points, _ = traced.crossovers(*asked, machine=ON, schedule="overlap")
    launches = ("the launch time of tee-tdx", "the launch time of h100-cc")
    assert {point.left_out for point in points} == {launches}
    found = traced.partition("offload-linear", machine=ON).schedule().schedule
    assert points[0].values["offload-linear"] == found.makespan_seconds


def test_a_report_says_its_schedule(here, traced, tmp_path):
    page = tmp_path / "page.html"
    asked = ("--schedule", "overlap", "--requests", "2", "--out", page)
    done("report", here, *OFFLOAD, *asked)
    makespan = traced.partition("offload-linear", machine=ON).schedule("overlap", 2).summary
    said = f"Schedule overlap: 2 requests, at least {duration(makespan['makespan_seconds'])};"
    assert said in page.read_text(encoding="utf-8")


def test_requests_without_a_schedule_are_refused(here):
    ran = invoke("partition", here, "--requests", "2")
    assert ran.returncode == 2
    assert "--schedule overlap" in ran.stderr


# --- a timeline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("residency", ["run", "call"])
def test_a_timeline_is_what_the_table_says(traced, residency, tmp_path):
    p = traced.partition(
        "offload-linear", machine=ON, residency=residency, schedule="overlap", requests=2
    )
    saved = p.save(tmp_path / "t")
    _, split, _ = opened(saved, None)
    assert split.schedule is not None
    again = replace(split.schedule, slots=())
    assert again == replace(p.split.schedule, slots=())
    line = laid_out(split, split.schedule)
    rows = pq.ParquetFile(saved / "schedule.parquet").read().to_pylist()
    assert [(s.start, s.category, s.arguments["request"]) for s in line.slices] == [
        (row["start_seconds"], row["category"], row["request"]) for row in rows
    ]
    assert line.seconds == pytest.approx(p.split.schedule.makespan_seconds)
    # A flow ends where it begins or later, and there are as many for each request.
    ended: dict[int, float] = {}
    for one in line.slices:
        ended |= dict.fromkeys(one.flows_out, one.start + one.seconds)
    into = [(flow, one) for one in line.slices for flow in one.flows_in]
    assert all(ended[flow] <= one.start + 1e-15 for flow, one in into)
    assert len(into) == 2 * sum(len(one.flows_in) for one in predicted_of(p).slices)
    # What is held at the end is what lies there, and two requests hold more at a time than one.
    for device, resident in split.traffic.resident_bytes.items():
        levels = [level.bytes for level in line.levels if level.device == device]
        alone = [level.bytes for level in predicted_of(p).levels if level.device == device]
        assert levels[-1] == alone[-1] >= resident
        assert max(levels) >= max(alone)
    out = p.export("perfetto", tmp_path / "run.pftrace")
    assert b"overlap, 2 requests" in out.read_bytes()


def predicted_of(p: cutedge.Partition) -> Timeline:
    return predicted(p.split, p.setting.times)
