"""Many designs of a chip at once: systolic arrays with buffers and a DRAM, on the products of a run.

A design is a dataflow, rows, columns, how many such arrays, three buffers, a DRAM and a clock. What
it takes for a run is the sum over the run's matrix products, one after another, of the closed forms
of ``costmodels.arrays`` and ``costmodels.array_memory``: the same integers. Here they are worked out
for all designs of a space, each part once: cycles go by dataflow, rows, columns and arrays; what
moves also by the buffers; only the stalls by the DRAM; only the seconds by the clock.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from costmodels import Dataflow, Overlap
from costmodels.area import AreaFigures
from costmodels.array_memory import MOST_WORDS, OPERANDS, TOGETHER, Buffers, MemoryTraffic
from costmodels.arrays import gemm_cost
from costmodels.devices import Array, Device
from costmodels.energy import EnergyFigures, array_picojoules, element_bytes
from costmodels.links import load_link, round_trip_seconds
from tracer.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Kib = tuple[Fraction, Fraction, Fraction]
"""Of the buffers for the left operand, the right one and the result."""


class Products(NamedTuple):
    """The matrix products of a run, [m, k] x [k, n] each, as arrays: each sort once."""

    m: Ints
    k: Ints
    n: Ints
    batch: Ints
    """How many one op computes."""
    times: Ints
    """How many such ops there are."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all."""
        return int((self.m * self.k * self.n * self.batch * self.times).sum())


class Bandwidth(NamedTuple):
    """Of a DRAM, reads and writes together."""

    value: Fraction
    """Bytes a second, or words (elements) a cycle."""
    by_cycle: bool = False
    """Which of them."""

    def words(self, clock_hertz: Fraction, word_bytes: Fraction) -> Fraction:
        """Words a cycle at a clock, as near as 64 bits can count with."""
        words = self.value if self.by_cycle else self.value / (clock_hertz * word_bytes)
        return words.limit_denominator(MOST_WORDS)


@dataclass(frozen=True, slots=True)
class Design:
    """A chip of systolic arrays."""

    dataflow: Dataflow
    rows: int
    columns: int
    arrays: int
    """How many there are, each with buffers of its own; they share the DRAM."""
    kib: Kib
    """Of the buffers of each array."""
    dram_bytes_per_second: Fraction
    """Reads and writes together."""
    clock_hertz: Fraction


@dataclass(frozen=True)
class Space:
    """Each design that the values of its axes make; the clock changes first, the dataflow last."""

    dataflows: tuple[Dataflow, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    arrays: tuple[int, ...]
    kib: tuple[Kib, ...]
    bandwidths: tuple[Bandwidth, ...]
    clocks: tuple[Fraction, ...]
    """Cycles a second."""
    dtype: str = "int8"
    """Of all elements."""
    overlap: Overlap = "none"

    def __post_init__(self) -> None:
        """Raise InputError for what is no design."""
        for kib in self.kib:
            Buffers(*self.words(kib), Fraction(1))
        for bandwidth, clock in product(self.bandwidths, self.clocks):
            Buffers(2, 2, 2, bandwidth.words(clock, self.word_bytes))

    @classmethod
    def of(cls, design: Design, dtype: str, overlap: Overlap) -> "Space":
        """A design alone."""
        return cls(
            (design.dataflow,),
            (design.rows,),
            (design.columns,),
            (design.arrays,),
            (design.kib,),
            (Bandwidth(design.dram_bytes_per_second),),
            (design.clock_hertz,),
            dtype,
            overlap,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        axes: tuple[Sequence[Any], ...] = (
            self.dataflows,
            self.rows,
            self.columns,
            self.arrays,
            self.kib,
            self.bandwidths,
            self.clocks,
        )
        return tuple(map(len, axes))

    @property
    def size(self) -> int:
        """How many designs there are."""
        return prod(self.shape)

    @property
    def word_bytes(self) -> Fraction:
        """Of an element."""
        return Fraction(element_bytes(self.dtype))

    def words(self, kib: Kib) -> tuple[int, int, int]:
        """Elements that buffers hold."""
        left, right, result = (int(one * 1024 / self.word_bytes) for one in kib)
        return left, right, result

    def bytes_per_second(self, bandwidth: Bandwidth, clock_hertz: Fraction) -> Fraction:
        """What a DRAM moves."""
        words = clock_hertz * self.word_bytes
        return bandwidth.value * words if bandwidth.by_cycle else bandwidth.value

    @cached_property
    def places(self) -> tuple[Ints, ...]:
        """Of each design, where its value is on each axis."""
        found = np.unravel_index(np.arange(self.size), self.shape)
        return tuple(axis.astype(np.int64) for axis in found)

    def design(self, number: int) -> Design:
        """One of them."""
        flow, row, column, count, kib, bandwidth, clock = (
            int(axis[number]) for axis in self.places
        )
        hertz = self.clocks[clock]
        moved = self.bandwidths[bandwidth]
        rate = self.bytes_per_second(moved, hertz)
        return Design(
            self.dataflows[flow],
            self.rows[row],
            self.columns[column],
            self.arrays[count],
            self.kib[kib],
            rate,
            hertz,
        )

    def square_millimetres(self, figures: AreaFigures) -> Floats:
        """Of each design: the proxy of ``costmodels.area``."""
        _, rows, columns, arrays, kib, *_ = self.places
        cells = np.asarray(self.rows)[rows] * np.asarray(self.columns)[columns]
        held = np.asarray([float(sum(each)) for each in self.kib])[kib]
        count = np.asarray(self.arrays)[arrays]
        return np.asarray(figures.square_millimetres(self.dtype, cells, held, count), float)


@dataclass(frozen=True, slots=True)
class Runs:
    """What a run takes on each design of a space, in the space's order."""

    compute_cycles: Ints
    """Of all products, without waiting."""
    stall_cycles: Ints
    """Of waiting for the DRAM."""
    seconds: Floats
    """All cycles by the clock."""
    joules: Floats
    """By the energy figures, idling in it."""
    energy_at_least: bool
    """Whether that leaves out a level that the figures do not know."""
    dram_bytes: Floats
    """What comes from the DRAM and goes there."""
    useful_share: Floats
    """Of all multipliers and all cycles: those that multiply elements of the products."""
    padding_share: Floats
    """Likewise: those that multiply what a tile is padded with."""

    @property
    def total_cycles(self) -> Ints:
        """Computing and waiting."""
        return self.compute_cycles + self.stall_cycles


def runs(products: Products, space: Space, energy: EnergyFigures) -> Runs:
    """What the products take on each design: see the top of this file.

    Raises InputError for what 64 bits do not count.
    """
    flows, rows, columns, counts, kib, bandwidths, clocks = space.shape
    by_words: dict[Fraction, list[int]] = {}
    for at, (bandwidth, clock) in enumerate(product(space.bandwidths, space.clocks)):
        by_words.setdefault(bandwidth.words(clock, space.word_bytes), []).append(at)
    places = rows * columns
    down, across = (axis.ravel() for axis in np.meshgrid(space.rows, space.columns, indexing="ij"))
    held = np.asarray([space.words(one) for one in space.kib], np.int64)
    sizes = np.asarray([[float(size) for size in one] for one in space.kib])
    shape = flows, places, counts, kib, bandwidths * clocks
    compute, padded = np.empty(shape[:3], np.int64), np.empty(shape[:3])
    stalls = np.empty(shape, np.int64)
    dram, joules = np.empty(shape), np.empty(shape)
    step, at_least = max(1, TOGETHER // len(products.m)), False
    for (at, flow), (many, count) in product(enumerate(space.dataflows), enumerate(space.arrays)):
        for first in range(0, places * kib, step):
            some = np.arange(first, min(first + step, places * kib))
            place, buffer = some // kib, some % kib
            moved = MemoryTraffic(
                _arrays(flow, down[place][:, None], across[place][:, None], count),
                dict(zip(OPERANDS, held[buffer].T[:, :, None], strict=True)),
                *products[:3],
                batch=products.batch,
                overlap=space.overlap,
            )
            compute[at, place, many] = moved.compute_cycles @ products.times
            padded[at, place, many] = moved.padded_macs @ products.times
            known: list[Any] = []
            for each, waits in zip(by_words.values(), moved.waits([*by_words]), strict=True):
                here = at, place[:, None], many, buffer[:, None], np.asarray(each)[None]
                stalls[here] = (waits.stall_cycles @ products.times)[:, None]
                if not known or known[0] is not waits.moved:
                    known = [
                        waits.moved,
                        *_moved(space, products, waits.moved, sizes[buffer], energy),
                    ]
                    at_least = known[3]
                dram[here] = known[1][:, None]
                joules[here] = known[2][:, None]
    total = compute[..., None, None] + stalls
    seconds = total / np.tile([float(clock) for clock in space.clocks], bandwidths)
    cells = np.multiply.outer(space.rows, space.columns).reshape(1, -1, 1, 1, 1)
    possible = total * (cells * np.asarray(space.arrays)[:, None, None]).astype(float)
    joules += (energy.idle_watts or 0.0) * seconds
    return Runs(
        np.broadcast_to(compute[..., None, None], shape).reshape(-1),
        stalls.reshape(-1),
        seconds.reshape(-1),
        joules.reshape(-1),
        at_least,
        dram.reshape(-1),
        (products.macs / possible).reshape(-1),
        ((padded[..., None, None] - products.macs) / possible).reshape(-1),
    )


def _moved(
    space: Space, products: Products, moved: Sequence[Ints], kib: Floats, energy: EnergyFigures
) -> tuple[Floats, Floats, bool]:
    """(bytes that the DRAM moves, joules without idling, whether at least so many) of some designs."""
    each = [float(space.word_bytes) * (one @ products.times) for one in moved]
    accessed: dict[str, Any] = {one: sum(each[n::3]) for n, one in enumerate(OPERANDS)}
    outside: Floats = np.asarray(sum(each[6:]))
    held: dict[str, Any] = dict(zip(OPERANDS, kib.T, strict=True))
    found = array_picojoules(energy, space.dtype, products.macs, accessed, held, outside)
    joules = np.broadcast_to(1e-12 * np.asarray(found.total), outside.shape)
    return outside, joules, found.at_least


def _arrays(dataflow: Dataflow, rows: Any, columns: Any, count: int) -> Array:
    """Arrays of many sizes in the place of one: the closed forms take them all the same."""
    down, across = cast(int, rows), cast(int, columns)
    return Array(
        dataflow, down, across, depth=None, tile_cycles=None, clock_hertz=1.0, arrays=count
    )


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A run on a device that is an array."""

    device: Device
    square_millimetres: float
    """By the proxy of ``costmodels.area``."""
    cycles: int
    """Of all products, without waiting."""
    stall_cycles: int | None
    """Of waiting for the DRAM of its buffers. Where these are not known: for the host link, which
    brings each operand and takes each result once for each product, one after another with the
    computing. None where that is not known either."""
    seconds: float
    """All cycles by the clock."""
    joules: float
    """By the energy figures; without known buffers of the multiply-accumulates and of what crosses
    the link: at least so much."""
    useful_share: float
    """As ``Runs`` has it; of fixed tiles the share of what they multiply."""
    padding_share: float
    """Likewise."""

    @property
    def at_least(self) -> bool:
        """Whether its waiting and its energy are at least so much, as its buffers are not known."""
        return self.device.array_memory is None

    @property
    def total_cycles(self) -> int | None:
        """Both; None where the waiting is not known."""
        return None if self.stall_cycles is None else self.cycles + self.stall_cycles


def area_of(device: Device, figures: AreaFigures, dtype: str) -> float:
    """The area proxy of a device that is an array: of a systolic one with its buffers, as far as they
    are known; of fixed tiles as many multipliers as their compute cycles need, and both operands
    and the result of a tile. Raises InputError for what is no array."""
    array, memory = _array_of(device), device.array_memory
    cells, held = array.rows * array.columns, 0.0
    if array.depth is not None and array.tile_cycles is not None:
        cycles = array.phases.tile_compute_cycles if array.phases else array.tile_cycles
        held = element_bytes(dtype) * (cells + array.depth * (array.rows + array.columns))
        cells = -(-cells * array.depth // cycles)
    if memory is not None:
        held = memory.sram_ifmap_bytes + memory.sram_filter_bytes + memory.sram_ofmap_bytes
    return float(figures.square_millimetres(dtype, cells, held / 1024, array.arrays))


def _array_of(device: Device) -> Array:
    if device.array is None:
        raise InputError(
            f"{device.name} is no array of multipliers: designs stand beside chip-8x8, systolic-8x8 "
            "or a .toml file with array_dataflow"
        )
    return device.array


def _design_of(device: Device) -> Design | None:
    """A device as a design; None where its buffers are not known."""
    array, memory = _array_of(device), device.array_memory
    if memory is None:
        return None
    sizes = memory.sram_ifmap_bytes, memory.sram_filter_bytes, memory.sram_ofmap_bytes
    left, right, result = (Fraction(size, 1024) for size in sizes)
    return Design(
        array.dataflow,
        array.rows,
        array.columns,
        array.arrays,
        (left, right, result),
        Fraction(str(memory.dram_bytes_per_second)),
        Fraction(str(array.clock_hertz)),
    )


def on_device(
    products: Products, device: Device, area: AreaFigures, energy: EnergyFigures, dtype: str
) -> OnDevice:
    """What the products take on a device. Raises InputError for one that is no array."""
    array, square_millimetres = _array_of(device), area_of(device, area, dtype)
    if (design := _design_of(device)) is not None:
        made = runs(products, Space.of(design, dtype, "none"), energy)
        return OnDevice(
            device,
            square_millimetres,
            int(made.compute_cycles[0]),
            int(made.stall_cycles[0]),
            float(made.seconds[0]),
            float(made.joules[0]),
            float(made.useful_share[0]),
            float(made.padding_share[0]),
        )
    *sizes, batch, times = products
    cost = gemm_cost(array, *sizes, batch=batch, count="true")
    cycles = int(cost.cycles @ times)
    stalls, moved = _over_link(products, device, dtype)
    useful = float((cost.cycles * cost.utilisation) @ times) / cycles
    padded = np.minimum(cost.padded_macs / cost.useful_macs * cost.utilisation, 1.0)
    return OnDevice(
        device,
        square_millimetres,
        cycles,
        stalls,
        (cycles + (stalls or 0)) / array.clock_hertz,
        1e-12 * float(array_picojoules(energy, dtype, products.macs, {}, {}, moved).total),
        useful,
        float((cost.cycles * padded) @ times) / cycles - useful,
    )


def _over_link(products: Products, device: Device, dtype: str) -> tuple[int | None, float]:
    """(cycles of the device's clock in which operands and results cross its host link, the bytes);
    None where there is no link, or its bandwidth is not known."""
    link = None if device.host_link is None else load_link(device.host_link)
    size, seconds, moved = element_bytes(dtype), 0.0, 0.0
    for m, k, n, batch, times in zip(*(axis.tolist() for axis in products), strict=True):
        sent, received = int(size * batch * (m * k + k * n)), int(size * batch * m * n)
        moved += times * (sent + received)
        taken = None if link is None else round_trip_seconds(link, sent, received)
        if taken is None:
            link = None
        else:
            seconds += times * taken
    return None if link is None else round(seconds * _array_of(device).clock_hertz), moved


# --- the best of them -----------------------------------------------------------------------------


def pareto(*figures: Floats) -> NDArray[np.bool_]:
    """Which points no other one is better than: in each of one to three figures at most as large,
    and in one of them less. Points that are alike in all are all among them, or not one is.

    >>> pareto(np.array([1.0, 2.0, 2.0, 3.0]), np.array([3.0, 1.0, 1.0, 2.0])).tolist()
    [True, True, True, False]
    """
    points = np.stack([*figures, *[np.zeros_like(figures[0])] * (3 - len(figures))], axis=1)
    left = _not_far_off(points)
    points = points[left]
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    new = np.ones(len(ordered), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    best = _undominated(ordered[new, 1:])
    found = np.zeros(len(figures[0]), bool)
    found[left[order]] = best[np.cumsum(new) - 1]
    return found


def _not_far_off(points: Floats) -> NDArray[np.intp]:
    """The points that are left when a few good ones have sent away those that they are better than:
    most of them, and quickly."""
    left = np.arange(len(points))
    if not len(left):
        return left
    scale = np.maximum(np.median(points, axis=0), 1e-300)
    for weights in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (8, 8, 1), (8, 1, 8), (1, 8, 8)):
        good = points[left[np.argmin(points[left] / scale @ np.asarray(weights, float))]]
        worse = (points[left] >= good).all(axis=1) & (points[left] > good).any(axis=1)
        left = left[~worse]
    return left


def _undominated(points: Floats) -> NDArray[np.bool_]:
    """Of distinct points in the order of a first figure: which have no earlier one that is at most
    as large in both others. Those that are left are kept as steps, down to the right."""
    rights: list[float] = []
    heights: list[float] = []
    found = np.zeros(len(points), bool)
    for number, (right, height) in enumerate(points.tolist()):
        at = bisect_right(rights, right)
        if at and heights[at - 1] <= height:
            continue
        found[number] = True
        first = at - 1 if at and rights[at - 1] == right else at
        last = at
        while last < len(rights) and heights[last] >= height:
            last += 1
        rights[first:last], heights[first:last] = [right], [height]
    return found


NEAR = 1.01
"""Seconds that are at most so many times the fewest are as good."""


def fastest(made: Runs, area: Floats, among: NDArray[np.intp]) -> int:
    """The best of some designs: of those that take at most 1 % longer than the fastest the one with
    the least energy, of these that with the least area, then the fastest, then the first."""
    seconds = made.seconds[among]
    near = among[seconds <= NEAR * seconds.min()]
    order = np.lexsort((made.seconds[near], area[near], made.joules[near]))
    return int(near[order[0]])


# --- what limits one ------------------------------------------------------------------------------


KNOBS = ("rows", "columns", "buffers", "DRAM bandwidth", "clock", "arrays")
"""What of a design can be doubled."""

DEVICE_KNOBS = ("multipliers", "host link", "clock", "arrays")
"""What of a device without described buffers can be: the multipliers of a fixed tile whose compute
cycles are known, else there is no saying what a larger one takes."""


def doubled(design: Design, *knobs: str) -> Design:
    """A design with twice as much of some things; the DRAM's bytes a second stay with the clock."""
    for knob in knobs:
        match knob:
            case "buffers":
                left, right, result = (2 * one for one in design.kib)
                design = replace(design, kib=(left, right, result))
            case "DRAM bandwidth":
                design = replace(design, dram_bytes_per_second=2 * design.dram_bytes_per_second)
            case "clock":
                design = replace(design, clock_hertz=2 * design.clock_hertz)
            case "rows":
                design = replace(design, rows=2 * design.rows)
            case "columns":
                design = replace(design, columns=2 * design.columns)
            case _:
                design = replace(design, arrays=2 * design.arrays)
    return design


def seconds_of(
    products: Products, design: Design, dtype: str, overlap: Overlap
) -> Callable[..., float]:
    """What a run takes on a design with twice of some knobs."""

    def seconds(*knobs: str) -> float:
        there = Space.of(doubled(design, *knobs), dtype, overlap)
        return float(runs(products, there, EnergyFigures()).seconds[0])

    return seconds


def device_seconds_of(
    products: Products, device: Device, dtype: str
) -> tuple[tuple[str, ...], Callable[..., float]]:
    """(what of a device can be doubled, what a run takes on it with twice of some of that)"""
    if (design := _design_of(device)) is not None:
        return KNOBS, seconds_of(products, design, dtype, "none")
    array = _array_of(device)
    stalls, _ = _over_link(products, device, dtype)
    known = {"multipliers": array.phases is not None, "host link": stalls is not None}
    *sizes, batch, times = products

    def seconds(*knobs: str) -> float:
        there = array
        if "multipliers" in knobs and array.phases and array.tile_cycles:
            half = array.phases.tile_compute_cycles // 2
            there = replace(there, tile_cycles=array.tile_cycles - half, phases=None)
        if "arrays" in knobs:
            there = replace(there, arrays=2 * array.arrays)
        cycles = int(gemm_cost(there, *sizes, batch=batch, count="true").cycles @ times)
        clock = array.clock_hertz * (2 if "clock" in knobs else 1)
        moving = (stalls or 0) / array.clock_hertz / (2 if "host link" in knobs else 1)
        return cycles / clock + moving

    return tuple(knob for knob in DEVICE_KNOBS if known.get(knob, True)), seconds


def gains(
    seconds: Callable[..., float], together: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], float]:
    """How many times as fast a run is with twice of each of these groups of knobs."""
    base = seconds()
    return {knobs: base / seconds(*knobs) for knobs in together}
