"""The live page's figures: those of ``compare`` at the same sizes, over the same link."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

import cutedge
from costmodels.links import load_link
from cutedge._live import BeyondError, Live, Point, link_file, with_figures
from cutedge._placing import Compared, bottlenecks, partition_of
from cutedge._verdict import times_of, verdicts
from cutedge.report.figures import policies_table
from partition.policy import load_policy
from tests.support.configs import LLAMA
from tracer.errors import InputError

TEE = {"home": "tee-tdx", "accel": "h100-cc", "link": "pcie5-x16-cc"}
SEARCHED = ["offload-linear", "flash-attention", "min-cut", "fastest"]
CHIP = {"home": "ryzen-7950x", "accel": "chip-8x8", "link": "axi-lite"}

# how it is traced, on what, by which policies, and the sizes that sliders have
CASES = {
    "tee-gpu": ({"seq": 128}, TEE, SEARCHED, {"seq": (2, 2000)}),
    "chip": ({"seq": 128}, CHIP, ["host-chip", "all-home"], {"seq": (2, 1000)}),
    "batches": (
        {"seq": 64, "batch": 2},
        TEE,
        ["offload-linear"],
        {"batch": (2, 9), "seq": (9, 99)},
    ),
    "decode": (
        {"phase": "decode", "past": 128, "batch": 2},
        {"home": "tee-sgx", "accel": "h100-cc", "link": "loopback"},
        ["offload-linear", "all-home", "min-cut"],
        {"batch": (2, 5), "past": (20, 900)},
    ),
    "int8": ({"seq": 128}, {**CHIP, "int8_speedup": 2.0}, ["host-chip"], {"seq": (2, 1000)}),
    "memories": (
        {"seq": 128, "dtype": "int8"},
        {"home": "ryzen-7950x", "accel": "coral-usb", "link": "usb3-gen1"},
        ["host-chip"],
        {"seq": (2, 1000)},
    ),
    "eager": (
        {"seq": 128},
        {**TEE, "accel": "rtx-4090", "engine": "hf-eager"},
        ["offload-linear", "fuse-attention"],
        {"seq": (2, 1000)},
    ),
    "fused": (
        {"seq": 128},
        {**TEE, "accel": "rtx-4090", "execution": "fused"},
        ["offload-linear"],
        {"seq": (2, 1000)},
    ),
    "masked": (
        {"seq": 128},
        {**TEE, "accel": "rtx-4090"},
        ["slalom", "offload-linear", "prompt-private"],
        {"seq": (2, 400)},
    ),
    "packed": ({"seq": 128}, {**TEE, "pack": "zstd"}, ["offload-linear"], {"seq": (2, 400)}),
    "no-figures": ({"seq": 128}, {}, ["offload-linear", "min-cut"], {"seq": (2, 400)}),
}


def drawn(ranges: dict[str, tuple[int, int]], numbers: random.Random) -> Point:
    """Where sliders are, at random."""
    sizes = {name: numbers.randint(*ends) for name, ends in ranges.items()}
    return Point(
        tuple(sizes.items()),
        numbers.choice([None, 10**9, numbers.randint(10**6, 10**11)]),
        numbers.choice([None, 0.0, numbers.random() * 1e-3]),
        numbers.choice([None, "bfloat16", "float32"]),
    )


@pytest.mark.few(2)
@pytest.mark.parametrize(("draw", "case"), [(n, case) for n in range(2) for case in CASES])
def test_figures_are_those_of_compare_there(draw: int, case: str, tmp_path: Path) -> None:
    """Each cell of the table, the five figures and the sentence, after placements are solved."""
    options, machine, policies, ranges = CASES[case]
    trace = cutedge.trace("edge-10m", **options)
    live = Live(*_compared(trace, policies, machine))
    numbers = random.Random(f"{case} {draw}")
    point = drawn(ranges, numbers)
    assert live.solve(point)
    link = tmp_path / f"{live.link(point).name}.toml"
    link.write_text(link_file(live.link(point)))
    wire = {} if point.wire_dtype is None else {"wire_dtype": point.wire_dtype}
    on = {**machine, "link": str(link), **wire}
    if not machine:
        on = {**on, "home": "tee", "accel": "gpu"}
    _, found = _compared(trace.at(**dict(point.sizes)), policies, on)
    table = policies_table(found.partitions, found.comparisons, found.baseline.policy)
    worst = bottlenecks(found.partitions, found.setting, found.policies)
    for name, verdict in zip(found.names, verdicts(found, worst, times_of(found)), strict=True):
        seen = live.at(point, name)
        assert seen.table == table
        assert not seen.kept
        assert seen.limit == verdict.limit
        assert list(seen.scores) == list(verdict.scores)


def _compared(
    trace: cutedge.Trace, policies: list[str], machine: dict[str, object]
) -> tuple[cutedge.Trace, Compared]:
    found = trace.compare(policies, **machine)
    return found.trace, found.compared


def test_a_placement_that_was_searched_for_is_kept_until_it_is_solved() -> None:
    """Its figures are exact for it, and the page says where it is from."""
    trace = cutedge.trace("edge-10m", seq=128)
    live = Live(*_compared(trace, ["offload-linear", "min-cut"], TEE))
    there = Point((("seq", 256),))
    seen = live.at(there, "min-cut")
    assert seen.placements == ["by rules", "kept from the start"]
    assert seen.kept
    again, setting = trace.at(seq=256).graph, live.compared.setting
    where = live.compared.partitions[1].placement
    same = replace(
        load_policy("min-cut"), placer=lambda *_: (where.devices, where.streams), objective=None
    )
    there_too = replace(setting, times=setting.machine.times(again))
    counted = partition_of(again, "", same, there_too)
    assert seen.table.values[1][4] == counted.traffic.totals.payload_bytes
    assert live.solve(there)
    assert live.at(there, "min-cut").placements == ["by rules", "solved here"]
    assert not live.solve(Point((("seq", 300),)), lambda: False)


@pytest.mark.slow
def test_another_program_is_said_and_traced_when_the_slider_is_let_go() -> None:
    """A batch of one is another program than one of several."""
    trace = cutedge.trace("edge-10m", seq=128)
    live = Live(*_compared(trace, ["offload-linear"], TEE))
    there = Point((("batch", 3),))
    with pytest.raises(BeyondError, match="batch 3, seq 128: edge-10m is another program"):
        live.at(there, "offload-linear")
    assert live.solve(there)
    found = trace.at(batch=3).compare(["offload-linear"], **TEE)
    table = policies_table(found.compared.partitions, found.compared.comparisons, "offload-linear")
    assert live.at(there, "offload-linear").table == table
    assert live.at(live.start, "offload-linear").table.values[0][1] == 26


def test_what_cannot_be_is_said() -> None:
    """Two accelerators, schedules, sizes without formulas, wrong dtypes, models of no name."""
    trace = cutedge.trace("edge-10m", seq=128)
    with pytest.raises(InputError, match="one accelerator, and here are 2"):
        Live(*_compared(trace, ["offload-linear"], {"accel": ["a", "b"]}))
    with pytest.raises(InputError, match="leave --schedule out"):
        Live(*_compared(trace, ["offload-linear"], {**TEE, "schedule": "overlap"}))
    live = Live(*_compared(trace, ["offload-linear"], TEE))
    with pytest.raises(InputError, match="no formula in past: batch, seq"):
        live.at(Point((("past", 5),)), "offload-linear")
    with pytest.raises(InputError, match="seq 0: give a size from 1"):
        live.at(Point((("seq", 0),)), "offload-linear")
    with pytest.raises(InputError, match="wire dtype float7"):
        live.at(Point(wire_dtype="float7"), "offload-linear")
    with pytest.raises(BeyondError, match="64 bits"):
        live.at(Point((("seq", 2**31 - 1),)), "offload-linear")


def test_a_link_that_was_set_is_a_file_that_link_takes(tmp_path: Path) -> None:
    """All its figures, those that stayed and those that were set."""
    for name in ("pcie5-x16-cc", "10gbe", "axi-lite"):
        link = with_figures(load_link(name), 123456789, 2.5e-6)
        (file := tmp_path / f"{link.name}.toml").write_text(link_file(link))
        assert load_link(str(file)) == link


@pytest.mark.slow
def test_a_model_read_from_a_folder_is_traced_by_its_name(tmp_path: Path) -> None:
    """Where it is another program; a config that is gone is said."""
    cutedge.trace("edge-10m", seq=64).save(tmp_path / "named")
    there = cutedge.load(tmp_path / "named").elsewhere(batch=2)
    assert there.graph.meta.variables == {"batch": 2, "seq": 64, "past": 0, "source": 0}
    cutedge.trace(dict(LLAMA), seq=64).save(tmp_path / "config")
    with pytest.raises(InputError):
        cutedge.load(tmp_path / "config").elsewhere(batch=2)
