"""Matrix products on arrays: the closed forms against simulated arrays, cycle by cycle."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import count as upwards
from itertools import zip_longest
from math import ceil

import numpy as np
import pytest

from costmodels.arrays import GemmCost, Options, gemm_cost
from costmodels.devices import Array, load_device
from tracer.errors import InputError

CHIP = Array("fixed", 8, 8, depth=8, tile_cycles=532, clock_hertz=100e6)


def systolic(dataflow: str, rows: int, columns: int) -> Array:
    return Array(dataflow, rows, columns, depth=None, tile_cycles=None, clock_hertz=1e8)


# --- systolic arrays, simulated -------------------------------------------------------------------


class Collision(Exception):
    """Two values would be at the same place in the same cycle."""


@dataclass
class Cells:
    """Cells in rows and columns: what enters at an edge moves on by one cell a cycle.

    ``left[row, cycle]`` enters a row, ``top[column, cycle]`` a column.
    """

    rows: int
    columns: int
    left: dict[tuple[int, int], tuple] = field(default_factory=dict)
    top: dict[tuple[int, int], tuple] = field(default_factory=dict)

    def enter(self, port: dict, lane: int, cycle: int, value: tuple) -> None:
        if (lane, cycle) in port:
            raise Collision
        port[lane, cycle] = value

    def run(self) -> Iterator[tuple[int, int, int, tuple | None, tuple | None]]:
        """(cycle, row, column, from the left, from the top) of every cell in every cycle."""
        right: dict[tuple[int, int], tuple] = {}
        down: dict[tuple[int, int], tuple] = {}
        last = max(cycle for _, cycle in [*self.left, *self.top])
        for cycle in range(last + self.rows + self.columns):
            right = {(i, j + 1): v for (i, j), v in right.items() if j + 1 < self.columns}
            down = {(i + 1, j): v for (i, j), v in down.items() if i + 1 < self.rows}
            right |= {(i, 0): v for (i, at), v in self.left.items() if at == cycle}
            down |= {(0, j): v for (j, at), v in self.top.items() if at == cycle}
            for i in range(self.rows):
                for j in range(self.columns):
                    yield cycle, i, j, right.get((i, j)), down.get((i, j))


def simulate_os(a: np.ndarray, b: np.ndarray, rows: int, columns: int, gap: int):
    """(product, cycles) of a @ b: an output stays in its cell; folds enter ``gap`` cycles apart."""
    cells = Cells(rows, columns)
    folds = [(r, c) for r in range(0, len(a), rows) for c in range(0, b.shape[1], columns)]
    for f, (r, c) in enumerate(folds):
        for k in range(a.shape[1]):
            for i in range(rows):
                cells.enter(cells.left, i, f * gap + k + i, (f, k, a[r + i, k]))
            for j in range(columns):
                cells.enter(cells.top, j, f * gap + k + j, (f, k, b[k, c + j]))
    product, end = np.zeros((len(a), b.shape[1]), int), 0
    kept: dict[tuple[int, int], int] = {}
    for cycle, i, j, first, second in cells.run():
        if first is None or second is None:
            continue
        assert first[:2] == second[:2]
        f, k, _ = first
        kept[i, j] = (kept[i, j] if k else 0) + first[2] * second[2]
        if k == a.shape[1] - 1:
            product[folds[f][0] + i, folds[f][1] + j] = kept[i, j]
        end = cycle + 1
    return product, end


def simulate_ws(a: np.ndarray, b: np.ndarray, rows: int, columns: int, gap: int):
    """(product, cycles) of a @ b: a weight stays in its cell, with room for the next beside it.

    Weights come down a column, one a cycle; each stops at its row. A cell takes the next weight
    in use when the first input of the next fold arrives.
    """
    inputs, weights = Cells(rows, columns), Cells(rows, columns)
    folds = [(k, c) for k in range(0, len(b), rows) for c in range(0, b.shape[1], columns)]
    for f, (k, c) in enumerate(folds):
        start = rows + f * gap
        for i in range(rows):
            for m in range(len(a)):
                inputs.enter(inputs.left, i, start + m + i, (f, m, a[m, k + i]))
            for j in range(columns):
                weights.enter(weights.top, j, start - rows + i + j, (i, b[k + i, c + j]))
    product, end = np.zeros((len(a), b.shape[1]), int), 0
    using: dict[tuple[int, int], int] = {}
    beside: dict[tuple[int, int], int] = {}
    sums: dict[tuple[int, int], tuple] = {}  # of each cell, as it left it the cycle before
    before: dict[tuple[int, int], tuple] = {}
    at, nothing = 0, (0, 0, 0, None, None)  # inputs run on when all is loaded
    both = zip_longest(inputs.run(), weights.run(), fillvalue=nothing)
    for (cycle, i, j, value, _), (_, _, _, _, weight) in both:
        if cycle > at:
            at, before, sums = cycle, sums, {}
        if value is not None:
            f, m, x = value
            if m == 0:
                using[i, j] = beside.pop((i, j))
            so_far = (f, m, 0) if i == 0 else before[i - 1, j]
            assert so_far[:2] == (f, m)
            sums[i, j] = (f, m, so_far[2] + x * using[i, j])
            if i == rows - 1:
                product[m, folds[f][1] + j] += sums[i, j][2]
            end = cycle + 1
        if weight is not None and weight[0] == i:
            if (i, j) in beside:
                raise Collision
            beside[i, j] = weight[1]
    return product, end


def simulate(dataflow: str, m: int, k: int, n: int, rows: int, columns: int, overlap: str) -> int:
    """Cycles that the array takes; the product is checked. Folds follow as soon as they can."""
    if dataflow == "is":  # inputs are the weights of the transposed product
        return simulate("ws", n, k, m, rows, columns, overlap)
    spans = {"os": (rows, 1, columns), "ws": (1, rows, columns)}[dataflow]
    # No cell knows that it is padding: it multiplies whatever is there.
    m, k, n = (ceil(size / span) * span for size, span in zip((m, k, n), spans, strict=True))
    rng = np.random.default_rng([m, k, n])
    a, b = rng.integers(1, 1000, (m, k)), rng.integers(1, 1000, (k, n))
    run = {"os": simulate_os, "ws": simulate_ws}[dataflow]
    if overlap == "none":
        parts = [
            (a[r : r + rows], b[:, c : c + columns])
            if dataflow == "os"
            else (a[:, r : r + rows], b[r : r + rows, c : c + columns])
            for r in range(0, m if dataflow == "os" else k, rows)
            for c in range(0, n, columns)
        ]
        done = [(run(x, y, rows, columns, 0), x @ y) for x, y in parts]
        assert all((product == expected).all() for (product, _), expected in done)
        return sum(cycles for (_, cycles), _ in done)
    for gap in upwards(1):
        try:
            product, cycles = run(a, b, rows, columns, gap)
        except Collision:
            continue
        assert (product == a @ b).all()
        return cycles
    raise AssertionError


def small_shapes() -> list[tuple[int, ...]]:
    rng = random.Random(0)
    edges = [(1, 1, 1, 1, 1), (1, 1, 1, 3, 2), (5, 1, 4, 1, 1), (1, 7, 5, 2, 3), (7, 2, 3, 3, 2)]
    return edges + [
        (*(rng.randint(1, 7) for _ in "mkn"), rng.randint(1, 4), rng.randint(1, 4))
        for _ in range(60)
    ]


@pytest.mark.parametrize("overlap", ["none", "double-buffered"])
@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_the_closed_forms_are_what_a_simulated_array_takes(dataflow, overlap):
    for m, k, n, rows, columns in small_shapes():
        cost = gemm_cost(systolic(dataflow, rows, columns), m, k, n, count="true", overlap=overlap)
        expected = simulate(dataflow, m, k, n, rows, columns, overlap)
        assert cost.cycles == expected, (m, k, n, rows, columns)


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_one_fold_has_nothing_to_overlap_with_and_many_gain(dataflow):
    array = systolic(dataflow, 4, 4)
    alone, many = (4, 4, 4), (64, 64, 64)
    for shape, gains in ((alone, False), (many, True)):
        none, double = (
            gemm_cost(array, *shape, overlap=overlap).cycles
            for overlap in ("none", "double-buffered")
        )
        assert (double < none) == gains
        assert gemm_cost(array, *shape, count="true").cycles == none + 1


# --- fixed tiles ----------------------------------------------------------------------------------


def test_fixed_tiles_are_counted_one_by_one():
    for m, k, n, rows, columns in small_shapes():
        depth, cycles, batch = rows + columns, 5, 1 + m % 3
        array = Array("fixed", rows, columns, depth, cycles, 1e6)
        cost = gemm_cost(array, m, k, n, batch=batch)
        tiles = batch * sum(
            1 for _ in range(0, m, rows) for _ in range(0, k, depth) for _ in range(0, n, columns)
        )
        assert (cost.tiles, cost.cycles) == (tiles, tiles * cycles)
        assert cost.seconds == pytest.approx(tiles * cycles / 1e6)
        assert cost.useful_macs == batch * m * k * n
        assert cost.padded_macs == tiles * rows * columns * depth


@pytest.mark.parametrize(
    ("array", "shape", "lost"),
    [
        # One token on the 8x8 chip: 1 of 8 rows is used.
        (CHIP, (1, 2048, 2048), (7 / 8, 0, 0)),
        # 9 of 16 rows, 10 of 16 deep, 12 of 16 columns.
        (CHIP, (9, 10, 12), (7 / 16, 6 / 16, 4 / 16)),
        # A streamed axis is as long as it is.
        (systolic("os", 8, 4), (9, 10, 11), (7 / 16, 0, 1 / 12)),
        (systolic("ws", 8, 4), (9, 10, 11), (0, 6 / 16, 1 / 12)),
        (systolic("is", 8, 4), (9, 10, 11), (3 / 12, 6 / 16, 0)),
    ],
)
def test_what_padding_loses_by_each_axis(array, shape, lost):
    cost = gemm_cost(array, *shape, batch=3)
    assert (cost.lost_by_m, cost.lost_by_k, cost.lost_by_n) == pytest.approx(lost)
    kept = (1 - lost[0]) * (1 - lost[1]) * (1 - lost[2])
    assert cost.useful_macs / cost.padded_macs == pytest.approx(kept)


def test_utilisation():
    assert gemm_cost(CHIP, 1, 2048, 2048).utilisation == 1 / 8
    assert gemm_cost(CHIP, 8, 64, 64).utilisation == 1
    # M*N*K / (cycles * R * C), with the cycles that are printed: 1*256*2048 / (65983*64).
    array = systolic("os", 8, 8)
    cost = gemm_cost(array, 1, 2048, 256)
    assert cost.utilisation == pytest.approx(524288 / (65983 * 64))
    true = gemm_cost(array, 1, 2048, 256, count="true")
    assert true.utilisation == pytest.approx(524288 / (65984 * 64))
    # A count that is a cycle short would make more than all of one cell's cycles useful.
    assert gemm_cost(systolic("os", 1, 1), 1, 5, 1).utilisation == 1
    assert gemm_cost(systolic("os", 1, 1), 1, 1, 1).cycles == 0


# --- options --------------------------------------------------------------------------------------

PLAIN = gemm_cost(CHIP, 1, 2048, 2048)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (Options(), {}),
        # 65536 * 532 / 4.
        (Options(pipeline_depth=4), {"cycles": 8716288}),
        # 34865152 / 2.5 = 13946060.8; one byte an element: (2048 + 2048*2048) sent, 2048 back.
        (
            Options(int8_speedup=2.5),
            {"cycles": 13946061, "sent_bytes": 4196352, "received_bytes": 2048},
        ),
        # int8 that is no faster is still a byte an element.
        (Options(int8_speedup=1), {"sent_bytes": 4196352, "received_bytes": 2048}),
        # In theory 1 / (1 - 0.9) = 10: 3486515.2; in fact 5: 6973030.4.
        (Options(sparsity=0.9), {"cycles": 3486516}),
        (Options(sparsity=0.9, sparsity_speedup=5), {"cycles": 6973031}),
        # 65536 / 3 = 21845.3 tiles for the busiest; 2 of the 3 * 21846 places stay empty.
        (Options(chips=3), {"cycles": 21846 * 532, "utilisation": 65536 / 65538 / 8}),
        (Options(chips=4), {"cycles": 34865152 // 4}),
        # All: 16384 * 532 / (4 * 2 * 10) = 108953.6.
        (
            Options(pipeline_depth=4, int8_speedup=2, sparsity=0.9, chips=4),
            {"cycles": 108954, "sent_bytes": 4196352, "received_bytes": 2048},
        ),
    ],
)
def test_an_option_touches_only_what_it_says(options, changes):
    cost = gemm_cost(CHIP, 1, 2048, 2048, options=options)
    expected = {**asdict(PLAIN), **changes}
    expected["seconds"] = expected["cycles"] / 100e6
    assert asdict(cost) == pytest.approx(expected)


def test_options_of_systolic_arrays():
    array = systolic("os", 8, 8)
    # 256 folds of 16 + 14 cycles; half of them on each of 2 chips; 3840 / 3 = 1280.
    plain = gemm_cost(array, 128, 16, 128, count="true")
    assert plain.cycles == 256 * 30
    two = gemm_cost(array, 128, 16, 128, count="true", options=Options(chips=2))
    assert (two.tiles, two.cycles, two.utilisation) == (256, 128 * 30, plain.utilisation)
    fast = gemm_cost(array, 128, 16, 128, options=Options(chips=2, int8_speedup=3))
    assert fast.cycles == 1280 - 1


def test_batched_products_follow_each_other():
    for array in (CHIP, systolic("ws", 4, 3)):
        one = gemm_cost(array, 5, 6, 7, count="true")
        five = gemm_cost(array, 5, 6, 7, batch=5, count="true")
        for name in ("tiles", "cycles", "useful_macs", "padded_macs", "sent_bytes"):
            assert getattr(five, name) == 5 * getattr(one, name)
        assert five.utilisation == pytest.approx(one.utilisation)


def test_speedups_are_the_decimals_that_are_written():
    # 2.7 * 5.3 * 3 = 42.93; 1 / (1 - 0.3) = 10/7, which no float is.
    assert Options(3, 2.7, 0.9, 5.3).speedup == Fraction("42.93")
    assert Options(sparsity=0.3).speedup == Fraction(10, 7)


def test_division_by_a_speedup_is_exact_beyond_floats():
    cost = gemm_cost(CHIP, 2**30, 2**20, 2**13, options=Options(sparsity=0.9, sparsity_speedup=7))
    assert cost.cycles == -(-(2**54 * 532) // 7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pipeline_depth": 0}, "pipeline depth"),
        ({"pipeline_depth": 1.5}, "pipeline depth"),
        ({"chips": 0}, "chips"),
        ({"chips": True}, "chips"),
        ({"int8_speedup": 0.5}, "int8 speedup"),
        ({"int8_speedup": float("nan")}, "int8 speedup"),
        ({"int8_speedup": float("inf")}, "int8 speedup"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity_speedup": 5}, "needs the sparsity"),
        ({"sparsity": 0.9, "sparsity_speedup": 0.9}, "sparsity speedup"),
        ({"pipeline_depth": 10**6, "int8_speedup": 2}, "together"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        Options(**options)


def test_options_that_do_not_go_with_the_array_are_refused():
    with pytest.raises(InputError, match="pipeline depth"):
        gemm_cost(systolic("os", 8, 8), 1, 1, 1, options=Options(pipeline_depth=2))
    with pytest.raises(InputError, match="overlap"):
        gemm_cost(CHIP, 1, 1, 1, overlap="double-buffered")


@pytest.mark.parametrize(
    ("dataflow", "depth", "cycles"), [("fixed", None, 5), ("fixed", 8, None), ("os", 8, 5)]
)
def test_an_array_is_of_one_kind(dataflow, depth, cycles):
    with pytest.raises(InputError, match="depth and the cycles"):
        Array(dataflow, 8, 8, depth, cycles, 1e8)


# --- many shapes at once --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [Options(), Options(1, 2.5, 0.9, 5.5, 3)])
@pytest.mark.parametrize("overlap", ["none", "double-buffered"])
@pytest.mark.parametrize("count", ["scalesim", "true"])
@pytest.mark.parametrize("dataflow", ["fixed", "os", "ws", "is"])
def test_arrays_of_sizes_cost_what_each_costs(dataflow, count, overlap, options):
    if dataflow == "fixed" and overlap != "none":
        return
    array = CHIP if dataflow == "fixed" else systolic(dataflow, 8, 4)
    rng = np.random.default_rng(0)
    m, k, n, batch = rng.integers(1, 5000, (4, 50))
    m[:4], k[:4], n[:4], batch[:4] = 1, 1, 1, 1
    many = gemm_cost(array, m, k, n, batch=batch, options=options, count=count, overlap=overlap)
    for i, sizes in enumerate(zip(m.tolist(), k.tolist(), n.tolist(), strict=True)):
        one = gemm_cost(
            array, *sizes, batch=int(batch[i]), options=options, count=count, overlap=overlap
        )
        for name in GemmCost.__slots__:
            value = getattr(one, name)
            assert getattr(many, name)[i] == pytest.approx(value, rel=1e-12), name


def test_the_shipped_arrays_reach_their_peak_and_no_more():
    for name in ("chip-8x8", "systolic-8x8", "systolic-128x128"):
        array = load_device(name).array
        cost = gemm_cost(array, 2**14, 2**20, 2**14, count="true")
        rate = 2 * cost.useful_macs / cost.seconds
        assert (
            0.999 * array.peak_flops_per_second < rate <= array.peak_flops_per_second * (1 + 1e-9)
        )
