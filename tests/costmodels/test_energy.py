"""Energy figures: what the shipped ones say, how they scale, and what arrays take by them."""

from dataclasses import replace
from fractions import Fraction
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.array_memory import Buffers, memory_cost
from costmodels.arrays import Options
from costmodels.devices import Array, ArrayMemory, Device, Npu, load_device
from costmodels.energy import (
    EnergyFigures,
    array_picojoules,
    energy_names,
    load_energy,
    product_picojoules,
    read_figures,
    sram_picojoules_per_byte,
)
from costmodels.joules import EnergyWork, device_joules, op_joules, work_joules
from costmodels.roofline import time_graph
from cutedge._gemm import gemm
from tools.zigzag_energy import PAGE, Run, kept, page
from tracer.errors import InputError

HOROWITZ, _ = load_energy("horowitz-45nm")


@pytest.mark.parametrize(
    ("dtype", "picojoules"),
    [
        ("int8", 0.2 + 0.1),  # products of int8 are summed in int32
        ("int4", 0.2 / 4 + 0.1),
        ("int32", 3.1 + 0.1),
        ("float16", 1.1 + 0.9),  # in float32
        ("float32", 3.7 + 0.9),
    ],
)
def test_a_multiply_accumulate_adds_in_the_wider_dtype(dtype: str, picojoules: float) -> None:
    found = HOROWITZ.mac(dtype)
    assert found is not None
    assert isclose(found, picojoules)


def test_every_shipped_figure_has_a_source() -> None:
    for name in energy_names():
        figures, sources = load_energy(name)
        assert all(sources.values())
        said = sum(len(getattr(figures, key)) for key in ("multiply_picojoules", "add_picojoules"))
        said += len(figures.sram_picojoules_per_byte) + 2  # DRAM and node
        assert len(sources) == said


@pytest.mark.parametrize(
    ("kib", "picojoules"),
    [
        (8, 10 / 8),  # 64 bits are 8 bytes
        (32, 20 / 8),
        (1024, 100 / 8),
        (16, 10 / 8 * 2**0.5),  # four times the size takes twice as much: the square root
        (2, 10 / 8 / 2),
        (32 * 1024, 100 / 8 * 5),  # 32 times the size takes five times as much
    ],
)
def test_an_sram_scales_by_the_line_through_the_two_nearest_sizes(
    kib: float, picojoules: float
) -> None:
    assert isclose(sram_picojoules_per_byte(HOROWITZ, kib), picojoules)
    assert np.allclose(sram_picojoules_per_byte(HOROWITZ, np.array([kib, 8])), [picojoules, 1.25])


def test_one_sram_scales_by_the_square_root_and_none_is_unknown() -> None:
    one = EnergyFigures(sram_picojoules_per_byte={4.0: 3.0})
    assert sram_picojoules_per_byte(one, 16) == 6.0
    assert sram_picojoules_per_byte(EnergyFigures(), 16) is None


def test_another_node_scales_all_but_the_dram() -> None:
    there = HOROWITZ.at_node(7)
    assert isclose(
        HOROWITZ.multiply_picojoules["int8"] / there.multiply_picojoules["int8"], 2.6, rel_tol=1e-3
    )
    assert isclose(12.5 / there.sram_picojoules_per_byte[1024], 2.6, rel_tol=1e-3)
    assert there.dram_picojoules_per_byte == 162.5
    with pytest.raises(InputError, match="node_nanometres"):
        EnergyFigures().at_node(7)


def test_a_product_takes_what_its_counts_take() -> None:
    """One fold: every word comes from the DRAM once, is read once, and results go back."""
    array = Array("os", 8, 8, depth=None, tile_cycles=None, clock_hertz=1e8)
    buffers = Buffers(8192, 32768, 8192, Fraction(8))
    sizes = np.array([8, 8]), np.array([64, 64]), np.array([8, 8])
    memory = memory_cost(array, buffers, *sizes, count="true")
    kib = {"ifmap": 8, "filter": 32, "ofmap": 8}
    found = product_picojoules(HOROWITZ, "int8", 8 * 64 * 8, memory, kib, 1)
    assert np.allclose(found.mac, 4096 * 0.3)
    assert np.allclose(found.sram["ifmap"], 2 * 512 * 1.25)  # filled, and read by the array
    assert np.allclose(found.sram["filter"], 2 * 512 * 2.5)
    assert np.allclose(found.sram["ofmap"], 2 * 64 * 1.25)  # written by the array, and emptied
    assert np.allclose(found.dram, (512 + 512 + 64) * 162.5)
    assert np.allclose(found.total, found.mac + sum(found.sram.values()) + found.dram)
    assert found.at_least  # nothing is known of the registers


def test_nothing_unknown_is_zero() -> None:
    found = array_picojoules(EnergyFigures(), "int8", 10, {"filter": 8}, {"filter": 8}, 8)
    assert (found.mac, found.register, found.sram, found.dram) == (
        None,
        None,
        {"filter": None},
        None,
    )
    assert found.total == 0
    assert found.at_least


def test_registers_hold_two_operands_and_a_sum() -> None:
    figures = EnergyFigures(mac_picojoules={"int8": 1.0}, register_picojoules_per_byte=0.5)
    found = array_picojoules(figures, "int8", 10, {}, {}, 0)
    assert found.register == 10 * (1 + 1 + 4 + 4) * 0.5


def test_a_table_overrides_figure_by_figure(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "node_nanometres": {"value": 7, "source": "x"},
        "mac_picojoules": {"int8": {"value": 0.5, "source": "y"}},
    }
    found, sources = read_figures(tmp_path, table, HOROWITZ)
    assert found.mac("int8") == 0.5
    assert isclose(found.multiply_picojoules["float32"], 3.7 / 2.6, rel_tol=1e-3)
    assert sources == {"node_nanometres": "x", "mac_picojoules.int8": "y"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[dram_picojoules]\nvalue = 1\nsource = 'x'", "key 'dram_picojoules' lacks its unit"),
        ("[mac_picojoules.int9]\nvalue = 1\nsource = 'x'", "unknown key 'int9'"),
        ("[sram_picojoules_per_byte.8]\nvalue = 1\nsource = 'x'", "'8' is no size of an SRAM"),
        ("[sram_picojoules_per_byte.8_kib]\nvalue = 0\nsource = 'x'", "more than 0"),
        ("[idle_watts]\nvalue = 1", "key 'source' is missing"),
        ("mac_picojoules = 3", "a table for each is wanted"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("description = 'mine'\n" + text)
    with pytest.raises(InputError, match=says) as error:
        load_energy(str(path))
    assert str(path) in str(error.value)


# --- beside ZigZag --------------------------------------------------------------------------------


@pytest.mark.parametrize("run", kept(), ids=lambda run: run.name)
def test_energies_of_zigzag_are_ours_from_its_counts_and_figures(run: Run) -> None:
    assert isclose(sum(run.ours), run.energy, rel_tol=1e-12)
    assert isclose(run.energy, run.published, rel_tol=1e-9) == (run.name != "gemm_l1_l3 now")


def test_counts_of_a_product_in_zigzag_follow_from_its_loops() -> None:
    """128 x 128 x 128 on 8 x 8 x 8, columns innermost: see docs/against-zigzag.md."""
    run = next(one for one in kept() if one.name == "gemm_l1")
    cycles = 128**3 // 8**3
    wanted = {
        ("O", "reg_O", "read"): 2 * 64 * cycles,
        ("O", "reg_O", "write"): 2 * 64 * cycles,
        ("O", "l1", "read"): cycles * 64 * 32 // 2048,
        ("O", "l1", "write"): cycles * 64 * 32 // 2048,
        ("W", "l1", "read"): cycles * 64 * 8 // 512,
        ("I", "l1", "read"): cycles // 16 * 64 * 8 // 512,
    }
    assert run.macs == 128**3
    assert {(t.operand, t.level, t.way): t.accesses for t in run.terms} == wanted


def test_the_page_beside_zigzag_is_that_of_the_runs() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


# --- ops on devices -------------------------------------------------------------------------------


def test_an_array_with_buffers_takes_what_its_counts_take(traced: Any) -> None:
    """Op by op what ``product_picojoules`` says of the same product, and all ops their sum."""
    memory = ArrayMemory(8192, 32768, 8192, 1e9)
    chip = replace(load_device("systolic-16x16"), array_memory=memory)
    graph = traced("edge-10m", seq=8)
    time = time_graph(graph, chip)
    assert chip.array is not None
    total = 0.0
    for op, at in zip(graph.ops, time.ops, strict=True):
        gemm = op.cost.gemm
        if gemm is None:
            continue
        rate = Fraction(1e9 / 4 / chip.array.clock_hertz)
        buffers = Buffers(8192 // 4, 32768 // 4, 8192 // 4, rate)
        sizes = gemm.m, gemm.k, gemm.n
        moved = memory_cost(chip.array, buffers, *sizes, batch=gemm.batch)  # as costs count
        kib = {"ifmap": 8, "filter": 32, "ofmap": 8}
        macs = gemm.batch * gemm.m * gemm.k * gemm.n
        wanted = product_picojoules(HOROWITZ, "float32", macs, moved, kib, 4).total * 1e-12
        found = op_joules(graph, time, op.id)
        assert found.at_least  # nothing is known of the registers
        assert isclose(found.value, wanted)
        assert at.memory is not None
        total += wanted
    assert isclose(device_joules(graph, time).value, total)


def test_a_chip_brings_what_its_sram_does_not_hold() -> None:
    """100 MACs, 600 of 1,000 bytes are weights: a quarter of these and a tenth of the others come."""
    figures = EnergyFigures(
        mac_picojoules={"int8": 2.0},
        sram_picojoules_per_byte={64: 3.0},
        dram_picojoules_per_byte=50.0,
        register_picojoules_per_byte=0.1,
    )
    npu = Npu(1e9, macs_per_cycle={"int8": 8.0}, sram_bytes=256 * 1024)
    chip = Device("mine", "", False, {}, npu=npu, energy=figures)
    work = EnergyWork({"int8": 200}, moved_bytes=1000, param_bytes=600)
    found = work_joules(chip, Options(), work, 1.0, off_chip=(0.25, 0.1))
    sram = 1000 * 3.0 * 2  # four times the size: twice as much
    outside = (600 * 0.25 + 400 * 0.1) * 50
    assert isclose(found.value, 1e-12 * (100 * 2.0 + sram + outside + 100 * 10 * 0.1))
    assert not found.at_least
    without = replace(chip, npu=replace(npu, sram_bytes=None))
    there = work_joules(without, Options(), work, 1.0)
    assert isclose(there.value, 1e-12 * (100 * 2.0 + 1000 * 50 + 100 * 10 * 0.1))


@pytest.mark.parametrize(
    ("figures", "value", "at_least"),
    [
        (None, None, True),
        (EnergyFigures(busy_watts=10.0), 20.0, False),
        (EnergyFigures(busy_watts=10.0, idle_watts=4.0), 12.0, False),
        (EnergyFigures(idle_watts=4.0), None, True),
        (EnergyFigures(mac_picojoules={"float32": 3.0}), 3e-10, True),  # nothing of the memory
        (EnergyFigures(dram_picojoules_per_byte=5.0, busy_watts=10.0), 20.0, False),
    ],
)
def test_a_processor_takes_what_is_known_of_it(
    figures: EnergyFigures | None, value: float | None, at_least: bool
) -> None:
    """200 FLOPs and 7 bytes in two seconds."""
    device = replace(load_device("ryzen-7950x"), energy=figures)
    found = work_joules(device, Options(), EnergyWork({"float32": 200}, 7), 2.0)
    assert (found.value, found.at_least) == (pytest.approx(value), at_least)
    assert work_joules(device, Options(), EnergyWork({}), 0.0).value in (0.0, None)


def test_gemm_says_what_a_product_takes() -> None:
    """A megabyte of int8 weights at one token, on an array with buffers and without."""
    sizes = 1, 1024, 1024
    bare = gemm(*sizes, "systolic-8x8", dtype="int8")
    found = gemm(*sizes, "systolic-8x8", dtype="int8", sram_kib="8,8,8", dram_words_per_cycle=4)
    assert bare.picojoules is not None
    assert found.picojoules is not None
    assert isclose(found.picojoules.mac, 2**20 * 0.3)
    assert isclose(found.picojoules.dram, (2**20 + 2 * 2**10) * 162.5)
    assert found.picojoules.sram["filter"] == 2 * 2**20 * 1.25  # filled, and read
    assert bare.picojoules.dram == found.picojoules.dram
    assert bare.picojoules.sram == {"buffers": None}
    assert found.summary["joules"] == pytest.approx(1e-12 * found.picojoules.total)
    padded = gemm(*sizes, "chip-8x8", int8_speedup=2).picojoules
    assert padded is not None
    assert isclose(padded.mac, 8 * 2**20 * 0.3)  # one row of eight is the product's
