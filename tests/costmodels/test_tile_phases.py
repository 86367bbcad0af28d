"""What the cycles of a fixed tile hold, and how much of it double buffering hides."""

import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.arrays import Options, double_buffered, gemm_cost
from costmodels.devices import TilePhases, load_device
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer.errors import InputError

CHIP = load_device("chip-8x8").array
CYCLES = st.integers(0, 12)


def stepped(load: int, compute: int, store: int, tiles: int) -> int:
    """Stage by stage: what computes, and what crosses the bus beside it."""
    cycles = load  # of the first tile
    for tile in range(tiles):
        bus = (load if tile + 1 < tiles else 0) + (store if tile else 0)
        cycles += max(compute, bus)
    return cycles + store  # of the last one


@examples(60)
@given(CYCLES, CYCLES, CYCLES, CYCLES, st.integers(1, 9), st.integers(2, 30))
def test_it_is_a_run_stage_by_stage(load, compute, store, wait, few, many):
    phases = TilePhases(load, compute, store, wait)
    for tiles in (1, 2, few, many):
        made = double_buffered(phases, tiles)
        assert made == stepped(load, compute + wait, store, tiles)
        assert made <= tiles * sum(astuple(phases))
        assert made >= tiles * max(compute + wait, load + store)
    assert double_buffered(phases, np.array([1, 2, few])).tolist() == [
        double_buffered(phases, tiles) for tiles in (1, 2, few)
    ]


def test_the_chip_of_the_documents():
    """Its source: 8 * 8 * 8 multiply-accumulates, one a cycle, and 20 cycles of waiting; operands and
    result cross the bus before and after, and are not counted. Nothing is left to hide."""
    assert astuple(CHIP.phases) == (0, 512, 0, 20)
    how = {"overlap": "double-buffered"}
    assert gemm_cost(CHIP, 1, 2048, 2048, **how).cycles == 65536 * 532
    # Were the 128 + 2 * 64 cycles of its bus counted, it would hide all but the first and the last.
    told = replace(CHIP, tile_cycles=788, phases=TilePhases(128, 512, 128, 20))
    assert gemm_cost(told, 1, 2048, 2048).cycles == 65536 * 788
    assert gemm_cost(told, 1, 2048, 2048, **how).cycles == 65536 * 532 + 256


def test_the_pipeline_of_the_documents_is_four_equal_phases():
    """65,536 * 532 / 4: each of 4 phases of 133 cycles has hardware of its own, and a tile is done
    every 133 cycles. The first fill and the last drain, 3 * 133 cycles, are left out."""
    each = 532 // 4
    filled = sum([each] * 4) + (65536 - 1) * max([each] * 4)
    made = gemm_cost(CHIP, 1, 2048, 2048, options=Options(pipeline_depth=4)).cycles
    assert made == 8_716_288 == filled - 3 * each


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tile_load_cycles": 3}, "is 535, and tile_cycles is 532: they must add up"),
        ({"tile_store_cycles": None}, "'tile_store_cycles' is missing"),
        ({"tile_wait_cycles": None, "tile_compute_cycles": 532}, None),
    ],
)
def test_a_file_says_what_a_tile_holds(tmp_path, changes, says):
    text = Path("costmodels/data/devices/chip-8x8.toml").read_text()
    for key, value in changes.items():
        before, part, after = text.partition(f"[{key}]")
        inside, _, rest = after.partition("\n\n")
        old = next(line for line in inside.splitlines() if line.startswith("value"))
        new = f"{part}{inside.replace(old, f'value = {value}')}\n\n" if value is not None else ""
        text = f"{before}{new}{rest}"
    file = tmp_path / "mine.toml"
    file.write_text(text)
    if says is None:
        assert astuple(load_device(str(file)).array.phases) == (0, 532, 0, 0)
        return
    with pytest.raises(InputError, match=f"mine.toml: .*{says}"):
        load_device(str(file))


def test_the_commands_say_it(tmp_path, monkeypatch):
    told = json.loads(invoke("gemm", "1", "2048", "2048", "--chips", "4", "--json").stdout)
    assert told["phases"]["tile_compute_cycles"] == 512
    assert told["double_buffered_cycles"] == told["cycles"] == 65536 // 4 * 532
    said = invoke("gemm", "1", "2048", "2048").stdout
    assert "of the 532 of a tile 512 compute, 20 wait, 0 load and store" in said
    done = invoke("gemm", "1", "8", "8", "--overlap", "double-buffered", "--pipeline-depth", "2")
    assert "two ways to overlap" in done.stderr
    with pytest.raises(InputError, match="what their cycles hold"):
        gemm_cost(replace(CHIP, phases=None), 1, 8, 8, overlap="double-buffered")
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "1").returncode == 0
    one = json.loads(invoke("cost", "--device", "chip-8x8", "--json").stdout)["costs"][0]
    assert one["double_buffered_cycles"] == one["cycles"]
