"""What a matrix product costs on an array of multipliers: closed forms over its shape.

A product [m, k] x [k, n] is cut into tiles that the array computes one after another.

- Fixed tiles: the array multiplies [rows, depth] x [depth, columns] in ``tile_cycles``; shapes are
  padded up to it. ``tiles x tile_cycles``. Double-buffered, where it is known what these hold, a
  tile computes while the next one comes in and the one before goes out, over one bus
  (``double_buffered``). A pipeline depth of d takes ``tiles x tile_cycles / d``: the steady state of
  d equal phases with hardware of their own, its first fill and last drain left out.
- Systolic: a tile (a fold) keeps one matrix of rows x columns in the cells and streams the others
  past it. What is kept spans two axes of the product, the third is streamed and not padded:
  outputs (os) span m and n, weights (ws) k and n, inputs (is) k and m. Operands enter a cell later
  for each row and column, so a stream of L ends ``rows + columns - 2`` cycles after its last
  element has entered; before it, ws and is load what is kept, a row of the array a cycle. A fold
  takes ``load + L + rows + columns - 2``. Results leave as they end, at no cost of their own.
  Double-buffered, folds enter ``max(load, L)`` cycles apart, as the next must be loaded and this
  one out of the way; only the first load and the last drain are seen:
  ``load + (folds - 1) x max(load, L) + L + rows + columns - 2``.

Every size may be an int or an array of int64 (numpy's; all that is counted must fit): the forms
are the same, and a million shapes cost no more calls than one.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from math import prod
from typing import Any, TypeAlias

from costmodels import CountAs, Overlap
from costmodels.devices import Array, TilePhases
from tracer.errors import InputError

Count: TypeAlias = Any
"""An int, or an array of int64."""
Ratio: TypeAlias = Any
"""A float, or an array of float64."""


@dataclass(frozen=True, slots=True)
class Options:
    """What makes an array faster than its description; each touches only what it says."""

    pipeline_depth: int = 1
    """Fixed tiles in flight at once: divides their cycles."""
    int8_speedup: float | None = None
    """Elements are int8: the speedup of the cycles, and one byte each on the host link."""
    sparsity: float = 0.0
    """Share of the multiplications that are skipped, from 0 to less than 1: cycles are divided
    by 1 / (1 - sparsity), which is the theoretical speedup."""
    sparsity_speedup: float | None = None
    """The actual speedup, in place of the theoretical one."""
    chips: int = 1
    """Equal arrays that share the tiles of a product; the host link stays one."""

    def __post_init__(self) -> None:
        """Raise InputError that names the option."""
        for name in ("pipeline_depth", "chips"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InputError(f"{_words(name)} must be whole and 1 or more, not {value!r}")
        for name in ("int8_speedup", "sparsity_speedup"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST_SPEEDUP:
                raise InputError(
                    f"{_words(name)} must be from 1 to {LARGEST_SPEEDUP:,}, not {value!r}"
                )
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity must be from 0 to less than 1, not {self.sparsity!r}")
        if self.sparsity_speedup is not None and self.sparsity == 0:
            raise InputError("a sparsity speedup needs the sparsity that it is of")
        if self.speedup > LARGEST_SPEEDUP:
            raise InputError(f"the options speed up more than {LARGEST_SPEEDUP:,} times together")

    @property
    def text(self) -> str:
        """What differs from an array as it is described: ``int8_speedup=2, chips=4``."""
        plain = {f.name: f.default for f in fields(self)}
        given = {name: getattr(self, name) for name in plain}
        return ", ".join(f"{n}={value:g}" for n, value in given.items() if value != plain[n])

    @classmethod
    def parse(cls, text: str) -> "Options":
        """The options that ``text`` says; to the six digits that it has of each."""
        pairs = [part.split("=") for part in text.split(", ") if part]
        whole = {field.name for field in fields(cls) if field.type is int}
        given: dict[str, Any] = {n: int(v) if n in whole else float(v) for n, v in pairs}
        return cls(**given)

    @property
    def speedup(self) -> Fraction:
        """Of the cycles of one array, all options together; from decimals as they are written."""
        sparse = 1 / (1 - Fraction(str(self.sparsity)))
        if self.sparsity_speedup is not None:
            sparse = Fraction(str(self.sparsity_speedup))
        whole = self.pipeline_depth * Fraction(str(self.int8_speedup or 1)) * sparse
        return whole.limit_denominator(10**6)


LARGEST_SPEEDUP = 1_000_000
"""Keeps the division by a speedup within 64 bits."""


@dataclass(frozen=True, slots=True)
class GemmCost:
    """A product, or as many as the arrays of sizes have entries."""

    tiles: Count
    """Tiles or folds of all chips together."""
    cycles: Count
    """Of the chip that has most to do, speedups included, rounded up."""
    seconds: Ratio
    """Cycles by the clock; the host link is not in it."""
    useful_macs: Count
    """Multiply-accumulates of the product itself."""
    padded_macs: Count
    """What the tiles hold, the padding of their last row, column and depth included."""
    lost_by_m: Ratio
    """Share of the padded m that is padding; likewise k and n."""
    lost_by_k: Ratio
    """Share of the padded k that is padding."""
    lost_by_n: Ratio
    """Share of the padded n that is padding."""
    utilisation: Ratio
    """Useful MACs by those that the arrays could do in this time: of fixed tiles what the tiles
    of every chip hold, of systolic arrays one a cell and cycle. Speedups make both faster and
    leave it. At most 1, also where SCALE-Sim counts a cycle too few."""
    sent_bytes: Count
    """Bytes of both operands, each element once: the least that the host link must carry."""
    received_bytes: Count
    """Bytes of the result, likewise."""


def gemm_cost(
    array: Array,
    m: Count,
    k: Count,
    n: Count,
    *,
    batch: Count = 1,
    options: Options = Options(),
    count: CountAs = "scalesim",
    overlap: Overlap = "none",
    element_bytes: int = 4,
) -> GemmCost:
    """The cost of ``batch`` products [m, k] x [k, n], one after another.

    Sizes are 1 or more. ``element_bytes`` is of operands and result on the host link. Raises
    InputError where an option does not go with the array.
    """
    if array.dataflow == "fixed":
        if overlap != "none" and array.phases is None:
            raise InputError(
                "folds overlap in systolic arrays, and fixed tiles where it is known what their "
                "cycles hold (tile_load_cycles ...); others have a pipeline depth"
            )
        if overlap != "none" and options.pipeline_depth != 1:
            raise InputError(
                "a pipeline depth and double buffering are two ways to overlap: take one"
            )
    elif options.pipeline_depth != 1:
        raise InputError("a pipeline depth is of fixed tiles; folds of systolic arrays overlap")
    sizes, spans = {"m": m, "k": k, "n": n}, spans_of(array)
    parts = {axis: -(-sizes[axis] // span) for axis, span in spans.items()}
    lost = {axis: 0.0 * size for axis, size in sizes.items()}
    lost |= {axis: 1 - sizes[axis] / (parts[axis] * span) for axis, span in spans.items()}
    tiles = batch * prod(parts.values())
    share = split_over(array, m, k, n, batch=batch, overlap=overlap)
    each = -(-share.tiles // options.chips)
    cells = array.rows * array.columns
    useful = batch * m * k * n
    if array.depth is not None and array.tile_cycles is not None:
        padded = tiles * cells * array.depth
        whole = each * array.tile_cycles
        if overlap != "none" and array.phases is not None:
            whole = double_buffered(array.phases, each)
        cycles = divided(whole, options.speedup)
        possible = each * options.chips * cells * array.depth * array.arrays
    else:
        streamed = streamed_axis(array) or ""
        length = getattr(share, streamed)
        padded = tiles * cells * sizes[streamed]
        tiles = tiles * share.streams
        first, inner, last = fold_cycles(array, length, overlap)
        whole = first + (each - 1) * inner + last
        late = 1 if count == "scalesim" else 0
        cycles = divided(whole, options.speedup) - late
        # The one cycle of a 1 x 1 x 1 product is number 0.
        possible = _larger(whole - late, 1) * cells * options.chips * array.arrays
    used = useful / possible
    wire = element_bytes if options.int8_speedup is None else 1
    return GemmCost(
        tiles=tiles,
        cycles=cycles,
        seconds=cycles / array.clock_hertz,
        useful_macs=useful,
        padded_macs=padded,
        lost_by_m=lost["m"],
        lost_by_k=lost["k"],
        lost_by_n=lost["n"],
        utilisation=used - (used > 1) * (used - 1),
        sent_bytes=batch * (m * k + k * n) * wire,
        received_bytes=batch * m * n * wire,
    )


def double_buffered(phases: TilePhases, tiles: Count) -> Count:
    """The cycles of tiles one of which computes while the next one comes in and the one before goes
    out. Both cross one bus, one after the other.

    Stages in between take ``max(compute, load + store)``; before the first one a tile comes in, and
    after the last one a result goes out.

    >>> tile = TilePhases(128, 512, 64, 20)
    >>> double_buffered(tile, 1), double_buffered(tile, 3)  # 128 + 3 * 532 + 64
    (724, 1788)
    """
    load, store = phases.tile_load_cycles, phases.tile_store_cycles
    computing = phases.tile_compute_cycles + phases.tile_wait_cycles
    alone = load + computing + store
    ends = load + max(computing, load) + max(computing, store) + store
    several = ends + (tiles - 2) * max(computing, load + store)
    return alone + (tiles > 1) * (several - alone)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several arrays has of a product: the one that has most."""

    batch: Count
    """Products."""
    m: Count
    """Rows of the left operand and of the result."""
    k: Count
    """What is summed over: all of it."""
    n: Count
    """Columns of the right operand and of the result."""
    tiles: Count
    """Its tiles or folds."""
    arrays: Count
    """How many arrays have a share; the others have nothing to do."""
    streams: Count
    """How many arrays take the same fold, each with a part of what is streamed past it; else 1."""


def split_over(
    array: Array, m: Count, k: Count, n: Count, *, batch: Count = 1, overlap: Overlap = "none"
) -> Share:
    """What the array with most to do has of ``batch`` products [m, k] x [k, n] over ``array.arrays``.

    One axis is divided, into equal shares rounded up: the batch, the columns (n) or the rows (m),
    whichever leaves the fewest cycles, the first where they are alike. An axis that is tiled is
    divided in whole tiles, one that is streamed in elements. The axis k never is: no two arrays
    make parts of one result. A share takes what a product of its size takes on one array. So N
    arrays compute no longer than one, and no less than a N-th of it.

    Each array has buffers of its own. It reads its share of the operand that is divided and all of
    the other one, which comes from the DRAM once for each array; a batch shares nothing. The DRAM is
    common: of ``Share.arrays`` that work each has an equal part of its words a cycle.

    >>> array = Array("ws", 8, 8, depth=None, tile_cycles=None, clock_hertz=1e8, arrays=4)
    >>> share = split_over(array, 1, 64, 72)
    >>> share.n, share.tiles, share.arrays  # of 9 tiles of columns 3 each, over 3 arrays
    (24, 24, 3)
    """
    spans, streamed = spans_of(array), streamed_axis(array)
    sizes = {"batch": batch, "m": m, "k": k, "n": n}
    if isinstance(array.arrays, int) and array.arrays == 1:
        tiles = batch * prod(-(-sizes[each] // span) for each, span in spans.items())
        return Share(batch, m, k, n, tiles, 1, 1)
    best: tuple[Any, ...] = ()
    for axis in ("batch", "n", "m"):
        largest, sharing = _largest_share(sizes[axis], spans.get(axis, 1), array.arrays)
        there = {**sizes, axis: largest}
        tiles = there["batch"] * prod(-(-there[each] // span) for each, span in spans.items())
        if streamed is None:
            cycles = tiles  # double-buffered or not, they take what their number says
        else:
            first, inner, last = fold_cycles(array, there[streamed], overlap)
            cycles = first + (tiles - 1) * inner + last
        streams = sharing if axis == streamed else sharing * 0 + 1
        found = (cycles, *there.values(), tiles, sharing, streams)
        fewer = cycles < best[0] if best else True
        best = tuple(
            old + fewer * (new - old) for old, new in zip(best or found, found, strict=True)
        )
    _, batch, m, k, n, tiles, sharing, streams = best
    return Share(batch, m, k, n, tiles, sharing, streams)


def _largest_share(size: Count, span: int, arrays: int) -> tuple[Count, Count]:
    """(the largest share of an axis that is divided in spans, how many arrays have a share)"""
    parts = -(-size // span)
    each = -(-parts // arrays)
    return size - _larger(size - each * span, 0), -(-parts // each)


def streamed_axis(array: Array) -> str | None:
    """The axis of a product that a systolic array streams; None of fixed tiles."""
    return {"os": "k", "ws": "m", "is": "n"}.get(array.dataflow)


def spans_of(array: Array) -> dict[str, int]:
    """How much of each axis of a product one tile has; an axis that is streamed has no entry."""
    tiled = {"fixed": ("m", "n"), "os": ("m", "n"), "ws": ("k", "n"), "is": ("k", "m")}
    down, across = tiled[array.dataflow]
    spans = {down: array.rows, across: array.columns}
    return spans if array.depth is None else {**spans, "k": array.depth}


def fold_cycles(array: Array, length: Count, overlap: Overlap) -> tuple[Count, Count, Count]:
    """(before the first fold, each fold but the last, the last one) of folds that stream ``length``
    each: see the top of this file."""
    load = 0 if array.dataflow == "os" else array.rows
    drain = array.rows + array.columns - 2
    if overlap == "none":
        whole = load + length + drain
        return 0, whole, whole
    return load, _larger(length, load), length + drain


def divided(cycles: Count, speedup: Fraction) -> Count:
    """``cycles / speedup`` rounded up, exactly, and within 64 bits for arrays."""
    top, bottom = speedup.numerator, speedup.denominator
    if bottom == 1:
        return -(-cycles // top)
    whole = cycles // top
    return whole * bottom - (whole * top - cycles) * bottom // top


def _words(name: str) -> str:
    return name.replace("_", " ")


def _larger(one: Count, other: Count) -> Count:
    return one + (other > one) * (other - one)
