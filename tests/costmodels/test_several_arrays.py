"""Several arrays side by side: what each has of a product, by hand and as properties."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.array_memory import OPERANDS, Buffers, memory_cost
from costmodels.arrays import Options, gemm_cost, split_over
from costmodels.devices import Array, load_device
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer.errors import InputError


def systolic(dataflow: str, arrays: int = 1) -> Array:
    return Array(dataflow, 8, 4, depth=None, tile_cycles=None, clock_hertz=1e8, arrays=arrays)


CHIP = load_device("chip-8x8").array


@pytest.mark.parametrize(
    ("array", "sizes", "share"),
    [
        # 9 tiles of 4 columns: 3 for each of 3 arrays, and the fourth has nothing to do.
        (systolic("ws", 4), (1, 64, 36, 1), (1, 1, 64, 12, 24, 3)),
        # One row and one column: nothing to divide.
        (systolic("os", 4), (1, 64, 4, 1), (1, 1, 64, 4, 1, 1)),
        # Inputs stay: with one row alone, columns are divided as they stream, 33 of 130 each.
        (systolic("is", 4), (1, 64, 130, 1), (1, 1, 64, 33, 8, 4)),
        # 12 heads, 5 arrays: 3 heads each over 4 arrays; 1 x 2 tiles of a head would be worse.
        (systolic("os", 5), (8, 64, 8, 12), (3, 8, 64, 8, 6, 4)),
        # Fixed tiles, 3 rows of them: the 16 tiles of columns are divided, 8 each.
        (replace(CHIP, arrays=2), (24, 16, 128, 1), (1, 24, 16, 64, 48, 2)),
    ],
)
def test_the_share_of_an_array_by_hand(array, sizes, share):
    m, k, n, batch = sizes
    made = split_over(array, m, k, n, batch=batch)
    assert (made.batch, made.m, made.k, made.n, made.tiles, made.arrays) == share


SIZES = st.tuples(*[st.integers(1, 300)] * 3, st.integers(1, 12))
FLOWS = st.sampled_from(["os", "ws", "is", "fixed"])


@examples(60)
@given(FLOWS, st.integers(2, 9), st.lists(SIZES, min_size=1, max_size=5), st.integers(1, 3))
def test_several_compute_no_longer_than_one_and_no_less_than_its_part(flow, arrays, sizes, chips):
    m, k, n, batch = (np.array(axis) for axis in zip(*sizes, strict=True))
    one = CHIP if flow == "fixed" else systolic(flow)
    how = {"batch": batch, "count": "true", "options": Options(chips=chips)}
    alone = gemm_cost(one, m, k, n, **how)
    several = gemm_cost(replace(one, arrays=arrays), m, k, n, **how)
    assert (several.cycles <= alone.cycles).all()
    assert (several.cycles * arrays >= alone.cycles).all()
    assert (several.useful_macs == alone.useful_macs).all()
    assert (several.utilisation <= 1).all()
    for row, (each_m, each_k, each_n, each_batch) in enumerate(sizes):
        share = split_over(replace(one, arrays=arrays), each_m, each_k, each_n, batch=each_batch)
        assert share.m * share.n * share.batch * share.arrays >= each_m * each_n * each_batch
        number = gemm_cost(
            replace(one, arrays=arrays), each_m, each_k, each_n, **{**how, "batch": each_batch}
        )
        assert number.cycles == several.cycles[row]
        assert number.tiles == several.tiles[row]


@examples(60)
@given(
    st.sampled_from(["os", "ws", "is"]),
    st.integers(2, 6),
    st.lists(SIZES, min_size=1, max_size=5),
    st.tuples(*[st.sampled_from([16, 100, 700, 5000])] * 3),
    st.sampled_from([Fraction(1, 2), Fraction(3), Fraction(40)]),
    st.sampled_from([(1, 1, 1), (8, 4, 32)]),
)
def test_several_with_one_memory(flow, arrays, sizes, words, bandwidth, widths):
    """They wait no longer than one array would take, and the DRAM is no faster for them."""
    m, k, n, batch = (np.array(axis) for axis in zip(*sizes, strict=True))
    buffers = Buffers(*words, bandwidth, widths)
    totals, found = [], []
    for how_many in (1, arrays):
        array = systolic(flow, how_many)
        cost = memory_cost(array, buffers, m, k, n, batch=batch, count="true")
        totals.append(
            gemm_cost(array, m, k, n, batch=batch, count="true").cycles + cost.stall_cycles
        )
        found.append(cost)
    assert (totals[1] <= totals[0]).all()
    assert (found[1].stall_cycles >= 0).all()
    moved = sum(
        (found[1].dram_reads[one] + found[1].dram_writes[one]) * width
        for one, width in zip(OPERANDS, widths, strict=True)
    )
    assert (totals[1] >= np.ceil(moved / float(bandwidth) - 1e-6)).all()
    assert (found[1].dram_reads["ifmap"] >= batch * m * k).all()
    assert (found[1].dram_reads["filter"] >= batch * k * n).all()
    assert (found[1].dram_writes["ofmap"] >= batch * m * n).all()


def test_several_with_one_memory_by_hand():
    """[1, 64] x [64, 32] on two ws arrays of 8 x 4, all kept: each has 16 of the columns.

    One array: 8 x 8 folds of 8 + 1 + 10 = 19 cycles. Each of two: 8 x 4 folds. The left operand's
    64 words come to both, the right one's 2048 once, and 32 go. Of 4 words a cycle each has 2.
    Before its first fold the 8 words of the left operand and the tile of 32 come: 20 cycles; columns
    outside, so 8 folds later the last 8 of the left one have come. A tile's 40 words then take 20
    cycles beside 19, in the 7 folds of the first four columns; later 32 words take 16, within 19.
    After the last fold the 4 results of its columns go: 2 cycles, the others beside folds.
    """
    array = systolic("ws", 2)
    buffers = Buffers(4096, 4096, 4096, Fraction(4))
    cost = memory_cost(array, buffers, 1, 64, 32, count="true")
    assert gemm_cost(array, 1, 64, 32, count="true").cycles == 32 * 19
    assert cost.dram_reads == {"ifmap": 2 * 64, "filter": 2048, "ofmap": 0}
    assert cost.dram_writes == {"ifmap": 0, "filter": 0, "ofmap": 32}
    assert cost.dram_cycles == (2 * 64 + 2048 + 32) // 4
    assert cost.stall_cycles == 20 + 7 * (20 - 19) + 2


def test_an_element_has_the_width_of_its_operand():
    """int8 by int4 into int32, a DRAM of 64 bits a cycle: as many words of 8, 4 and 32."""
    plain = Buffers(4096, 4096, 4096, Fraction(64))
    wide = replace(plain, widths=(8, 4, 32))
    array = systolic("os")
    one, other = (memory_cost(array, each, 40, 64, 20, count="true") for each in (plain, wide))
    assert one.dram_reads == other.dram_reads
    assert other.dram_cycles == -(-(40 * 64 * 8 + 64 * 20 * 4 + 40 * 20 * 32) // 64)
    all_alike = replace(plain, widths=(8, 8, 8), dram_words_per_cycle=Fraction(8 * 64))
    assert memory_cost(array, all_alike, 40, 64, 20, count="true") == one
    with pytest.raises(InputError, match="one word of the DRAM or more"):
        replace(plain, widths=(8, 0, 32))


def test_a_file_and_the_command_say_how_many(tmp_path):
    text = Path("costmodels/data/devices/systolic-8x8.toml").read_text()
    four = tmp_path / "four.toml"
    four.write_text(text + '\n[array_count]\nvalue = 4\nsource = "a choice"\n')
    array = load_device(str(four)).array
    assert array is not None
    assert array.arrays == 4
    assert str(array).endswith("8 x 8 cells, 100 MHz, 4 of them")
    sizes = ("gemm", "16", "64", "72", "--json")
    made = [
        json.loads(invoke(*sizes, "--device", *device).stdout)
        for device in ([str(four)], ["systolic-8x8", "--arrays", "4"])
    ]
    assert made[0]["cycles"] == made[1]["cycles"] == 2 * 3 * (64 + 14) - 1
    assert made[0]["arrays"] == made[1]["arrays"] == 4
    assert "array_count" in invoke("devices", str(four)).stdout
