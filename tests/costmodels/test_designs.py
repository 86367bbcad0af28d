"""Many designs at once: each as a design alone is costed; the best of them against brute force."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.area import load_area
from costmodels.array_memory import OPERANDS, Buffers, memory_cost
from costmodels.arrays import gemm_cost
from costmodels.designs import (
    KNOBS,
    Bandwidth,
    Design,
    Products,
    Space,
    device_seconds_of,
    doubled,
    fastest,
    gains,
    on_device,
    pareto,
    runs,
    seconds_of,
)
from costmodels.devices import Array, ArrayMemory, load_device
from costmodels.energy import load_energy, product_picojoules
from tests.support.examples import examples
from tracer.errors import InputError

ENERGY, _ = load_energy("horowitz-45nm")
AREA = load_area("dally-45nm")


def of(*products: tuple[int, int, int, int, int]) -> Products:
    """(m, k, n, batch, times) each."""
    return Products(*(np.array(axis) for axis in zip(*products, strict=True)))


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True).map(tuple)
KIB = st.lists(
    st.tuples(*[st.fractions(Fraction(1, 16), 4, max_denominator=16)] * 3),
    min_size=1,
    max_size=2,
    unique=True,
).map(tuple)
BANDWIDTHS = st.lists(
    st.builds(Bandwidth, st.fractions(Fraction(1, 3), 40, max_denominator=7), st.just(True))
    | st.builds(Bandwidth, st.integers(10**8, 10**10).map(Fraction), st.just(False)),
    min_size=1,
    max_size=3,
    unique=True,
).map(tuple)
CLOCKS = st.sampled_from([(Fraction(10**8),), (Fraction(10**9, 3), Fraction(2 * 10**8))])
SPACES = st.builds(
    Space,
    st.sampled_from([("os",), ("ws", "is"), ("is", "os", "ws")]),
    COUNTS,
    COUNTS,
    st.sampled_from([(1,), (3,), (1, 2)]),
    KIB,
    BANDWIDTHS,
    CLOCKS,
    st.sampled_from(["int8", "float32"]),
    st.sampled_from(["none", "double-buffered"]),
)
SORTS = st.tuples(*[st.integers(1, 200)] * 3, st.integers(1, 3), st.integers(1, 4))


@examples(15)
@given(SPACES, st.lists(SORTS, min_size=1, max_size=4, unique=True), st.data())
def test_each_design_is_as_one_alone(space, products, data):
    """To the last cycle: the sum of gemm_cost and memory_cost over the products, one by one."""
    made = runs(of(*products), space, ENERGY)
    area = space.square_millimetres(AREA)
    number = data.draw(st.integers(0, space.size - 1))
    design = space.design(number)
    one = Array(
        design.dataflow,
        design.rows,
        design.columns,
        depth=None,
        tile_cycles=None,
        clock_hertz=float(design.clock_hertz),
        arrays=design.arrays,
    )
    word_bytes = {"int8": 1, "float32": 4}[space.dtype]
    held = [int(kib * 1024 / word_bytes) for kib in design.kib]
    words = design.dram_bytes_per_second / (design.clock_hertz * word_bytes)
    buffers = Buffers(*held, words.limit_denominator(10**6))
    cycles = stalls = macs = moved = padded = 0
    picojoules = 0.0
    for m, k, n, batch, times in products:
        how = {"batch": batch, "count": "true", "overlap": space.overlap}
        cost, memory = gemm_cost(one, m, k, n, **how), memory_cost(one, buffers, m, k, n, **how)
        cycles += times * cost.cycles
        stalls += times * memory.stall_cycles
        macs += times * cost.useful_macs
        padded += times * cost.padded_macs
        outside = sum(memory.dram_reads.values()) + sum(memory.dram_writes.values())
        moved += times * outside * word_bytes
        kib = dict(zip(OPERANDS, map(float, design.kib), strict=True))
        found = product_picojoules(ENERGY, space.dtype, cost.useful_macs, memory, kib, word_bytes)
        picojoules += times * found.total
    cells = one.rows * one.columns * one.arrays
    assert (made.compute_cycles[number], made.stall_cycles[number]) == (cycles, stalls)
    assert made.dram_bytes[number] == moved
    assert made.seconds[number] == pytest.approx((cycles + stalls) / float(design.clock_hertz))
    assert made.joules[number] == pytest.approx(1e-12 * picojoules)
    assert made.useful_share[number] == pytest.approx(macs / (cells * (cycles + stalls)))
    assert made.padding_share[number] == pytest.approx(
        (padded - macs) / (cells * (cycles + stalls))
    )
    each = one.rows * one.columns * AREA.mac(space.dtype) + 4049 * float(sum(design.kib)) + 39900
    assert area[number] == pytest.approx(one.arrays * each / 1e6)
    alone = runs(of(*products), Space.of(design, space.dtype, space.overlap), ENERGY)
    assert alone.total_cycles[0] == made.total_cycles[number]


FEW = st.integers(0, 4).map(float)


@examples(100)
@given(
    st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[FEW] * n), min_size=1, max_size=40))
)
def test_what_no_other_is_better_than(points):
    """Against each pair, in few values: many ties."""
    figures = [np.array(axis) for axis in zip(*points, strict=True)]
    wanted = [
        not any(
            all(a <= b for a, b in zip(other, one, strict=True)) and other != one
            for other in points
        )
        for one in points
    ]
    assert pareto(*figures).tolist() == wanted


def test_no_points_have_no_best():
    nothing = np.array([], float)
    assert pareto(nothing, nothing).tolist() == []


def test_the_best_takes_the_least_energy_then_area_within_a_percent():
    made = runs(of((8, 8, 8, 1, 1)), SPACE, ENERGY)
    tied = replace(made, seconds=np.array([2.0, 1, 1.01, 1]), joules=np.array([0.0, 3, 2, 2]))
    area = np.array([0.0, 0.0, 5.0, 4.0])
    assert fastest(tied, area, np.arange(4)) == 3
    assert fastest(tied, area, np.array([0, 1])) == 1
    assert fastest(tied, area, np.array([0, 1, 2])) == 2
    assert fastest(replace(tied, seconds=np.array([2.0, 1, 1.02, 1])), area, np.array([1, 2])) == 1


SPACE = Space(
    ("os",),
    (8, 16),
    (8, 16),
    (1,),
    ((Fraction(16),) * 3,),
    (Bandwidth(Fraction(10**9)),),
    (Fraction(10**8),),
)


def test_twice_of_each_knob():
    design = SPACE.design(1)
    assert (design.rows, design.columns) == (8, 16)
    twice = doubled(design, *KNOBS)
    assert twice == Design(
        "os", 16, 32, 2, (Fraction(32),) * 3, Fraction(2 * 10**9), Fraction(2 * 10**8)
    )


def test_a_clock_beside_a_dram_doubles_the_speed_of_all():
    """Twice the clock and twice the DRAM are the same cycles, each half as long."""
    seconds = seconds_of(of((64, 64, 64, 2, 3)), SPACE.design(0), "int8", "none")
    assert gains(seconds, [("clock", "DRAM bandwidth")]) == {("clock", "DRAM bandwidth"): 2.0}


def test_a_device_with_fixed_tiles():
    """16 x 8 x 8 and three times 8 x 8 x 1: 2 + 3 tiles of 532 cycles; the last ones are padded 7/8.

    512 of the 532 cycles compute, 512 multiplications: one multiplier, beside three tiles of 256 B.
    Over axi-lite, 200e6 bytes a second, the bytes of each op cross one after another.
    """
    products, chip = of((16, 8, 8, 1, 1), (8, 8, 1, 1, 3)), load_device("chip-8x8")
    made = on_device(products, chip, AREA, ENERGY, "float32")
    elements = 16 * 8 + 8 * 8 + 16 * 8 + 3 * (8 * 8 + 8 + 8)
    assert made.cycles == 5 * 532
    assert made.stall_cycles == 4 * elements / 2
    assert made.seconds == (5 * 532 + 4 * elements / 2) / 1e8
    assert made.useful_share == pytest.approx((2 + 3 / 8) / 5)
    assert made.padding_share == pytest.approx(3 * 7 / 8 / 5)
    assert made.square_millimetres == pytest.approx((7700 + 4184 + 0.75 * 4049 + 39900) / 1e6)
    macs = 16 * 8 * 8 + 3 * 8 * 8
    assert made.joules == pytest.approx(1e-12 * (macs * 4.6 + 4 * elements * 162.5))
    knobs, seconds = device_seconds_of(products, chip, "float32")
    assert knobs == ("multipliers", "host link", "clock", "arrays")
    assert seconds() == made.seconds
    moving = 4 * elements / 2 / 1e8
    assert seconds("multipliers") == 5 * (532 - 256) / 1e8 + moving
    assert seconds("clock", "host link") == pytest.approx(made.seconds / 2)
    # Of the two tiles of rows each array has one; of a single tile there is nothing to divide.
    assert seconds("arrays") == 4 * 532 / 1e8 + moving
    with pytest.raises(InputError, match="h200 is no array of multipliers"):
        on_device(products, load_device("h200"), AREA, ENERGY, "int8")


def test_a_device_with_buffers_is_a_design():
    """To the last figure, those of the design that it is."""
    products = of((40, 300, 50, 2, 3), (1, 64, 64, 1, 1))
    memory = ArrayMemory(2**14, 2**15, 2**13, 1.6e9)
    device = replace(load_device("systolic-8x8"), array_memory=memory)
    kib = Fraction(16), Fraction(32), Fraction(8)
    design = Design(device.array.dataflow, 8, 8, 1, kib, Fraction(16 * 10**8), Fraction(10**8))
    space = Space.of(design, "int8", "none")
    made, wanted = on_device(products, device, AREA, ENERGY, "int8"), runs(products, space, ENERGY)
    assert made.total_cycles == wanted.total_cycles[0]
    assert made.joules == wanted.joules[0]
    assert made.square_millimetres == space.square_millimetres(AREA)[0]
    knobs, seconds = device_seconds_of(products, device, "int8")
    assert (knobs, seconds()) == (KNOBS, wanted.seconds[0])


def test_area_figures_say_what_they_lack(tmp_path):
    with pytest.raises(InputError, match="tpu-28nm have no multiplier for float32; they have int8"):
        load_area("tpu-28nm").mac("float32")
    assert load_area("tpu-28nm").mac("int8") == 1212
    file = tmp_path / "mine.toml"
    file.write_text(
        'description = "x"\n[sram_square_micrometres_per_kib]\nvalue = 1\nsource = "y"\n'
    )
    with pytest.raises(InputError, match=r"mine.toml: .*array_square_micrometres"):
        load_area(str(file))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kib": ((Fraction(1, 1024),) * 3,)}, "two halves, each with room for one element"),
        ({"bandwidths": (Bandwidth(Fraction(1)),)}, "a DRAM moves from 1/1,000,000"),
    ],
)
def test_what_is_no_design(change, said):
    with pytest.raises(InputError, match=said):
        replace(SPACE, **change)
