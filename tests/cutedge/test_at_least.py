"""Seconds that leave out what is not known are at least so many, wherever they are shown."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import cutedge
from cutedge._rows import cost_rows, critical_rows, resource_rows, verify_rows
from cutedge.exports.timeline import laid_out, predicted
from tests.support.inprocess import invoke

SPLIT = {"home": "tee-tdx", "accel": "rtx-4090", "link": "pcie4-x16"}
"""Not one of the two has a launch time; the link has a latency."""


@pytest.fixture(scope="module")
def traced():
    return cutedge.trace("edge-10m", seq=16)


def test_a_product_on_an_array_with_and_without_a_launch_time():
    """Starting it takes 2 ms, once; nothing of the three figures is else changed."""
    bare = cutedge.gemm(8, 64, 64)
    assert (bare.summary["at_least"], bare.left_out) == (True, ("the launch time of chip-8x8",))
    told = replace(bare, device=replace(bare.device, launch_seconds=2e-3))
    assert (told.summary["at_least"], told.left_out) == (False, ())
    assert told.run_seconds == pytest.approx(bare.run_seconds + 2e-3)
    assert told.overlapped_seconds == pytest.approx(bare.overlapped_seconds + 2e-3)
    assert bare.run_seconds == bare.cost.seconds + bare.link_seconds


def test_a_product_is_printed_as_what_is_known_of_it():
    shown = invoke("cutedge", "gemm", "8", "64", "64").stdout
    assert ">= 0.00" in shown
    assert "left out" in shown
    assert "not known: the launch time of chip-8x8" in shown


def test_rows_of_the_ops_of_a_device(traced):
    for engine, least in ((None, True), ("vllm", False)):
        (cost,) = traced.costs("rtx-4090", engine=engine)
        shown = [row[6] for row in cost_rows(cost, "kind") if row[6] not in ("0 s", "not here")]
        assert shown
        assert all(text.startswith(">= ") is least for text in shown)


@pytest.mark.parametrize(("engine", "least"), [(None, True), ("vllm", False)])
def test_timelines_and_schedules(traced, engine, least):
    made = traced.partition("offload-linear", **SPLIT, engine=engine, schedule="overlap")
    split = made.split
    assert bool(split.left_out) is least
    said = predicted(split, made.setting.times)
    assert said.at_least is least
    assert ("at least" in said.title) is least
    ops = [one for one in said.slices if one.category == "op" and one.seconds]
    calls = [one for one in said.slices if one.category == "call"]
    assert ops
    assert calls
    assert all(("at_least" in one.arguments) is least for one in (*ops, *calls))
    moves = [one for one in said.slices if one.category == "transfer"]
    assert not any("at_least" in one.arguments for one in moves)  # the link's latency is known
    assert laid_out(split, split.schedule).at_least is least
    for name, busy, _ in resource_rows(split, split.schedule):
        assert busy.startswith(">= ") is (least and "->" not in name)  # the links' are known
    for _, name, _, takes, _ in critical_rows(split, split.schedule):
        assert takes.startswith(">= ") is (least and "->" not in name)
    assert f"<td>at_least</td><td>{least}</td>" in made._repr_html_()


def test_a_transfer_without_latency_is_at_least_on_its_track(traced, tmp_path: Path):
    link = tmp_path / "slow.toml"
    text = (Path("costmodels/data/links/1gbe.toml")).read_text(encoding="utf-8")
    kept = [part for part in text.split("\n\n") if "latency_seconds" not in part]
    link.write_text("\n\n".join(kept), encoding="utf-8")
    made = traced.partition("offload-linear", **{**SPLIT, "link": str(link)}, engine="vllm")
    slices = predicted(made.split, made.setting.times).slices
    moves = [one for one in slices if one.category == "transfer"]
    assert any("at_least" in one.arguments for one in moves)
    assert all("at_least" in one.arguments for one in slices if one.category == "call")
    assert not any("at_least" in one.arguments for one in slices if one.category == "op")


def test_tokens_a_second_are_at_most(tmp_path: Path):
    folders = []
    for seq in (8, 16):
        folders.append(tmp_path / str(seq))
        cutedge.trace("edge-10m", seq=seq).save(folders[-1])
    options = [f"--{key}={value}" for key, value in SPLIT.items()] + ["--policy=offload-linear"]
    shown = invoke("cutedge", "compare", *map(str, folders), *options)
    assert shown.returncode == 0, shown.stderr
    head = next(line for line in shown.stdout.splitlines() if "tokens/s" in line)
    rows = [line for line in shown.stdout.splitlines() if line.startswith("edge-10m")]
    assert "run" in head
    assert all(">= " in row and "<= " in row for row in rows[:2])
    told = invoke("cutedge", "compare", *map(str, folders), *options, "--engine", "vllm")
    assert not any("<= " in line for line in told.stdout.splitlines() if "edge-10m" in line)


@pytest.mark.parametrize("left_out", [(), ("the launch time of gpu",)])
def test_what_is_predicted_beside_what_is_measured(left_out):
    """A run said to take 2 ms took 4."""
    totals = SimpleNamespace(seconds=1e-3, at_least=bool(left_out))
    split = SimpleNamespace(
        policy="p", traffic=SimpleNamespace(totals=totals), run_seconds=2e-3, left_out=left_out
    )
    measured = SimpleNamespace(calls=[SimpleNamespace(seconds=2e-3)], seconds=4e-3)
    verdict = SimpleNamespace(
        calls_predicted=1,
        calls_measured=1,
        total_payload_bytes_predicted=0,
        total_payload_bytes_measured=0,
        total_wire_bytes_predicted=0,
        total_wire_bytes_measured=0,
        bytes_equal=True,
        max_abs_difference=0.0,
        max_abs_result=1.0,
    )
    (row,) = verify_rows([SimpleNamespace(split=split, measured=measured, verdict=verdict)])
    least = ">= " * bool(left_out)
    assert row[5:7] == (f"{least}1 ms / 2 ms (-50.0%)", f"{least}2 ms / 4 ms (-50.0%)")


def test_a_device_that_is_called_otherwise_is_found_in_the_rows_of_a_schedule(traced):
    named = {**SPLIT, "home": "cpu=tee-tdx", "accel": "gpu=rtx-4090"}
    split = traced.partition("offload-linear", **named, schedule="overlap").split
    rows = {name: busy for name, busy, _ in resource_rows(split, split.schedule)}
    assert rows["gpu"].startswith(">= ")
    assert rows["cpu"].startswith(">= ")
