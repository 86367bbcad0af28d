"""Memory plans: sizes by name, prefill and decode together, and the frontier of memory."""

import json
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

import cutedge
from cutedge._frontier import chart
from cutedge._machines import machine_of
from cutedge._plan import phases_of, read_mix
from cutedge._plan_words import point_table, ranges
from tests.support.inprocess import invoke
from tests.support.mixes import MACHINE, MODEL, TINY, TOKENS, assignments
from tracer.errors import CutedgeError, InputError

DECODE = {"phase": "decode", "past": TOKENS, "overrides": TINY}


# --- sizes of memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (["gpu=8GiB,host=32GiB"], {"rtx-4090": 2**33, "tee-tdx": 2**35}),
        (["rtx-4090=1KiB", "home=5"], {"rtx-4090": 1024, "tee-tdx": 5}),
        (["accelerator=7"], {"rtx-4090": 7}),
    ],
)
def test_memory_by_what_a_device_is(given, sizes):
    assert dict(machine_of(MACHINE, memory=given).memory_bytes) == sizes


def test_a_device_that_is_called_so_goes_first():
    machine = machine_of(home="host", accel=["a=rtx-4090", "gpu=rtx-4090"], memory=["gpu=1,host=2"])
    assert dict(machine.memory_bytes) == {"gpu": 1, "host": 2}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["gpu=1,rtx-4090=2"], "there is another size of rtx-4090; give one"),
        (["gpu"], "write DEVICE=SIZE"),
        (["disk=4GiB"], "'disk' is not one of tee-tdx, rtx-4090"),
    ],
)
def test_memory_that_is_none(given, says):
    with pytest.raises(InputError, match=says):
        machine_of(MACHINE, memory=given)


# --- the phases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "prefill=1", "prefill=1,decode=0", "decode=2,decode=3", "prefill=1,decode=0.5"]
)
def test_a_mix_that_is_none(text):
    with pytest.raises(InputError, match="how often each phase runs"):
        read_mix(text)


def test_the_other_phase_is_found_or_traced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    decode = cutedge.trace(MODEL, **DECODE)
    both = phases_of(decode)
    assert both["decode"] is decode
    assert both["prefill"].graph.meta.variables == {
        **decode.graph.meta.variables,
        "seq": TOKENS,
        "past": 0,
    }
    again = phases_of(both["prefill"])
    assert again["decode"].id == decode.id


@pytest.mark.slow
def test_a_model_of_one_phase_and_a_prefill_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_cache = phases_of(cutedge.trace(MODEL, **DECODE))["prefill"]
    # A prefill that keeps no cache is traced anew with one.
    plain = cutedge.trace(MODEL, seq=TOKENS, overrides=TINY)
    assert phases_of(plain)["prefill"].id == with_cache.id
    with pytest.raises(CutedgeError, match="takes no cache of keys and values"):
        phases_of(cutedge.trace("bert-base", seq=16))


# --- plans ----------------------------------------------------------------------------------------


def pareto(costs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(memory, cost) of which nothing is better in both, from the most memory."""
    kept: list[tuple[int, float]] = []
    for size, cost in sorted(costs):
        if not kept or cost < kept[-1][1] * (1 - 1e-9):
            kept.append((size, cost))
    return kept[::-1]


def test_the_frontier_is_that_of_all_assignments():
    """Of decode alone, and of a mix: each step, and nothing between what it takes and may take."""
    traced = cutedge.trace(MODEL, **DECODE)
    every = assignments()
    for mix, steps in (
        (None, [(one.gpu[1], one.costs[1]) for one in every]),
        (
            "prefill=1,decode=16",
            [(max(one.gpu), one.costs[0] + 16 * one.costs[1]) for one in every],
        ),
    ):
        plan = traced.plan(mix=mix, frontier=1000, machine=MACHINE)
        assert plan.whole
        assert all(point.proven for point in plan.points)
        expected = pareto(steps)
        assert [point.taken_bytes for point in plan.points] == [size for size, _ in expected]
        for point, (_, cost) in zip(plan.points, expected, strict=True):
            assert point.cost == pytest.approx(cost / 1e9)
        for before, after in zip(plan.points, plan.points[1:], strict=False):
            assert after.memory_bytes < before.taken_bytes
            assert after.memory_bytes >= before.taken_bytes * (1 - 3e-5)


def test_fewer_steps_are_steps_of_the_same_frontier():
    traced = cutedge.trace(MODEL, **DECODE)
    costs = [(one.gpu[1], one.costs[1] / 1e9) for one in assignments()]
    plan = traced.plan(frontier=2, machine=MACHINE)
    assert not plan.whole
    assert len(plan.points) <= 4
    assert plan.points[-1].taken_bytes == 0
    for point in plan.points:
        best = min(cost for size, cost in costs if size <= point.memory_bytes)
        assert point.cost == pytest.approx(best)
    heads, rows = point_table(plan)
    assert {len(row) for row in rows} == {len(heads)}
    drawn = ElementTree.fromstring(chart(plan))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == len(plan.points)


def test_a_mix_is_written_as_two_partitions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = ("--set", "num_hidden_layers=2")
    assert invoke("trace", MODEL, "--phase", "decode", "--past", "64", *sets).returncode == 0
    words = ("--mix", "prefill=1,decode=16", "--frontier", "3", "--memory", "gpu=9MiB")
    words += ("--granularity", "layer", "--machine", MACHINE)
    shown = invoke("partition", *words)
    assert shown.returncode == 0, shown.stderr
    assert (
        "1 x prefill of 64 tokens and 16 x decode over 64 tokens; fastest by layer" in shown.stdout
    )
    assert "optimal: " in shown.stdout
    found = json.loads(invoke("partition", *words, "--json").stdout)
    prefill, decode, points, picture = found["written"]
    assert "phase=prefill" in prefill
    assert "phase=decode" in decode
    assert found["proven"]
    assert found["cost"] == sum(one["runs"] * one["cost"] for one in found["phases"])
    assert found["cost"] >= sum(one["runs"] * one["alone_cost"] for one in found["phases"])
    rows = pq.read_table(points).to_pylist()
    assert [row["cost"] for row in rows] == [one["cost"] for one in found["points"]]
    assert rows[0]["policy"] == "fastest-mixed"
    assert (tmp_path / picture).read_text().startswith("<svg")
    # The prefill is beside it now, and is not traced again.
    monkeypatch.setattr("cutedge._plan.trace", None)
    assert invoke("partition", *words).returncode == 0
    told = invoke("export", "placement", "--for", "vllm", "--policy", "fastest-mixed", "--nearest")
    assert told.stdout.startswith("VLLM_PP_LAYER_PARTITION="), told.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mix": "prefill=1,decode=2", "granularity": "op"}, "say --granularity layer"),
        ({"mix": "prefill=1,decode=2", "policy": "all-home"}, "leaves nothing free"),
        ({"frontier": 0}, "a number of sizes from 1 on"),
        ({"frontier": 2, "policy": "offload-linear"}, "take a policy that searches"),
        ({"frontier": 2, "schedule": "overlap"}, "leave out --schedule"),
    ],
)
def test_what_is_no_plan(options, says):
    policy = options.pop("policy", "fastest")
    with pytest.raises(InputError, match=says):
        cutedge.trace(MODEL, **DECODE).plan(policy, machine=MACHINE, **options)


def test_numbers_that_follow_each_other():
    assert ranges([3]) == "3"
    assert ranges([]) == ""
    assert ranges([1, 2, 4]) == "1-2, 4"
