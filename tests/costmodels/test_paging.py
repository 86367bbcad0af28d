"""A device pages by what lies there under a placement, the same for whoever asks."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

import cutedge
from costmodels.devices import Device
from costmodels.links import Links, load_link
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.problem import memory_of
from partition.run import compute_seconds, times_under
from tests.support.graphs import Builder, place
from tests.support.inprocess import invoke
from tracer.graph import Kind, OpCost, OpGraph, Status

HOME = "tee"
ENCLAVE = Device(
    name="enclave",
    description="",
    trusted=True,
    peak_flops_per_second={"float32": 1e9},
    memory_bandwidth_bytes_per_second=1e6,
    enclave_bytes=1000,
    paging_bytes_per_second=1e4,
)


def graph() -> OpGraph:
    """x [10] -> norm [10] -> linear with 8,000 bytes of weights -> add [10]."""
    b = Builder()
    x = b.input("x", [10])
    w = b.parameter("w", [2000])
    normed = b.op("norm", x, shape=[10], kind=Kind.NORM)
    made = b.op("linear", normed, w, shape=[10], kind=Kind.LINEAR)
    last = b.op("add", made, x, shape=[10])
    built = b.finish(last)
    moved = {"norm": 80, "linear": 8080, "add": 120}
    return built.with_ops(
        replace(
            op, cost=OpCost(flops=0, flops_status=Status.EXACT, read_bytes=moved.get(op.name, 0))
        )
        for op in built.ops
    )


@pytest.mark.parametrize(
    ("away", "lying", "seconds"),
    [
        # With the linear away, x, normed and what comes home are 120 bytes: nothing pages.
        (["linear"], 120, (80 + 120) / 1e6),
        # All at home: 8,000 of weights and 120. Of 8,120 bytes 7,120 do not fit.
        ([], 8120, 8280 / 1e6 + 8280 * (7120 / 8120) / 1e4),
    ],
)
def test_by_hand(away, lying, seconds):
    model = graph()
    where = place(model, {"gpu": away})
    traffic = account(model, where, Links(load_link("none")))
    assert memory_of(model, where, traffic.transfers)[HOME] == lying
    times = {HOME: time_ops(model, ENCLAVE)}
    found = compute_seconds(where, times_under(model, where, traffic.transfers, times))
    assert found == {HOME: pytest.approx(seconds, rel=1e-12)}


@pytest.mark.slow
def test_an_enclave_that_keeps_little_pages_nothing(traced):
    """llama-3.2-1b, seq 16, linears away: 279,680 bytes lie in an enclave of 90 MiB, and what is
    left at home takes the larger of FLOPs at 435.2e9 and bytes at 34.1e9 a second, op by op."""
    model = traced("llama-3.2-1b", seq=16)
    split = cutedge.trace("llama-3.2-1b", seq=16).partition(
        "offload-linear", machine="tee-sgx+rtx-4090@pcie4-x16"
    )
    assert split.summary["resident_bytes"]["tee-sgx"] == 279_680 < 94_371_840
    taken = 0.0
    for op, where in zip(model.ops, split.split.placement.devices, strict=True):
        if where == "tee-sgx" and not op.is_view and op.kind not in (Kind.INPUT, Kind.OUTPUT):
            touched = op.cost.read_bytes + op.cost.write_bytes
            taken += max((op.cost.flops or 0) / 435.2e9, touched / 34.1e9)
    assert split.summary["home_seconds"] == pytest.approx(taken, rel=1e-12)
    assert round(1e3 * taken, 3) == 3.641


# --- who asks -------------------------------------------------------------------------------------

MACHINE = ("--home", "small.toml", "--accel", "rtx-4090", "--link", "pcie4-x16")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A model of 38 MiB, and an enclave of 1 MiB: what is left at home by some policies fits."""
    folder = tmp_path_factory.mktemp("paging")
    text = (files("costmodels") / "data" / "devices" / "tee-sgx.toml").read_text("utf-8")
    (folder / "big.toml").write_text(text)
    (folder / "small.toml").write_text(text.replace("value = 94371840", "value = 1048576"))
    done = invoke("trace", "edge-10m", "--seq", "16", "--out", folder / "t")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def _stand_there(here, monkeypatch):
    monkeypatch.chdir(here)


def asked(*words: str) -> dict | list:
    done = invoke(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_who_ask_hear_the_same():
    pages = {"all-home": True, "offload-linear": False, "fuse-attention": False}
    for policy, paging in pages.items():
        one = asked("partition", "t", "--policy", policy, *MACHINE)
        home = one["compute_seconds"]["small"]
        unpaged = asked("partition", "t", "--policy", policy, "--home", "big.toml", *MACHINE[2:])
        assert (home > unpaged["compute_seconds"]["big"]) == paging
        compared = asked("cutedge", "compare", "t", "--policy", policy, *MACHINE)
        (entry,) = (entry for entry in compared["partitions"] if entry["policy"] == policy)
        assert entry["compute_seconds"]["small"] == home
        shown = asked(
            "cutedge", "export", "perfetto", one["folder"], *MACHINE, "--out", f"{policy}.json"
        )
        (timeline,) = shown["timelines"]
        assert timeline["seconds"] == pytest.approx(one["run_seconds"])
