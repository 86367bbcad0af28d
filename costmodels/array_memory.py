"""What a matrix product moves through the memories of a systolic array: closed forms over its shape.

Three buffers lie between the array and a DRAM: for the left operand (``ifmap``, [m, k]), for the
right one (``filter``, [k, n]) and for the result (``ofmap``, [m, n]). The array takes the folds of
``costmodels.arrays`` one after another. Each fold needs a part of each matrix:

- os: rows of the left, columns of the right, and a tile of the result, which it makes at once;
- ws: a tile of the right, columns of the left, and columns of the result, to which it adds;
- is: a tile of the left, rows of the right, and rows of the result, to which it adds.

A buffer has two halves: the array works on one while the other is filled or emptied. A matrix is

- kept, where all of it fits into its whole buffer: each of its words moves once;
- held, where a part of it fits into a half: a part moves where the fold before needed another one.
  It comes in while the fold before computes, and goes out while the next one does;
- streamed, where a part does not fit: it moves in each fold, while that computes.

A part of the result that leaves before all is added to it comes back for the next fold that adds to
it. The two tiled axes can be gone through in two orders; the one in which fewer words move is taken,
the first where they are alike. A stage is a fold with what moves beside it, and lasts as long as the
longer of both. The DRAM moves so many words a cycle in all, whatever the direction. Before the first
stage its operands come in, and after the last one its result goes out.

Of several arrays each takes its share (``arrays.split_over``) with buffers of its own and an equal
part of the DRAM's words; they take as long as the one with most to do. Where one array with all of
the DRAM would be done earlier, since an operand comes once for each of several, it does all.

The array reads an operand that passes the cells once for each fold, and one that stays in them once.
It writes each result once, or once for each fold that adds to it, and reads it back for all of these
but the first.

All sizes may be ints or arrays of int64, as in ``costmodels.arrays``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from costmodels import CountAs, Overlap
from costmodels.arrays import Count, divided, fold_cycles, spans_of, split_over, streamed_axis
from costmodels.devices import Array
from tracer.errors import InputError

Operand = Literal["ifmap", "filter", "ofmap"]
OPERANDS: tuple[Operand, ...] = get_args(Operand)
_AXES: Mapping[Operand, str] = {"ifmap": "mk", "filter": "kn", "ofmap": "mn"}

MOST_WORDS = 1_000_000
"""Keeps the division by a bandwidth within 64 bits."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Buffers:
    """The memories of a systolic array; a word is an element."""

    ifmap_words: int
    """Words of the buffer for the left operand, both halves."""
    filter_words: int
    """Likewise for the right operand."""
    ofmap_words: int
    """Likewise for the result."""
    dram_words_per_cycle: Fraction
    """What the DRAM moves in a cycle of the array, reads and writes together."""
    widths: tuple[int, int, int] = (1, 1, 1)
    """What an element of the left operand, the right one and the result is of the DRAM's words:
    8, 4 and 32 where its words are bits. Buffers hold elements, whatever their width."""

    def __post_init__(self) -> None:
        """Raise InputError for what is no memory."""
        words = self.ifmap_words, self.filter_words, self.ofmap_words
        if not 2 <= min(words) <= max(words) < 2**62:
            raise InputError(
                "a buffer has two halves, each with room for one element or more, and for fewer than "
                "2^62 in all"
            )
        if not 1 / MOST_WORDS <= self.dram_words_per_cycle <= MOST_WORDS:
            raise InputError(f"a DRAM moves from 1/{MOST_WORDS:,} to {MOST_WORDS:,} words a cycle")
        if min(self.widths) < 1:
            raise InputError(f"an element is one word of the DRAM or more, not {min(self.widths)}")

    @property
    def width(self) -> Mapping[Operand, int]:
        """``widths`` by operand."""
        return dict(zip(OPERANDS, self.widths, strict=True))


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """A product, or as many as the arrays of sizes have entries."""

    stall_cycles: Count
    """Cycles in which the array waits for the DRAM, those before the first and after the last fold
    among them; beside the cycles of ``gemm_cost``."""
    dram_cycles: Count
    """What the DRAM takes for all its words."""
    sram_reads: Mapping[Operand, Count]
    """Elements that the array reads of each buffer."""
    sram_writes: Mapping[Operand, Count]
    """Elements that the array writes into each buffer; operands come from the DRAM."""
    dram_reads: Mapping[Operand, Count]
    """Elements of each matrix that come from the DRAM."""
    dram_writes: Mapping[Operand, Count]
    """Elements of each matrix that go there."""


def memory_cost(
    array: Array,
    buffers: Buffers,
    m: Count,
    k: Count,
    n: Count,
    *,
    batch: Count = 1,
    count: CountAs = "scalesim",
    overlap: Overlap = "none",
) -> MemoryCost:
    """What ``batch`` products [m, k] x [k, n] move through the memories, one after another.

    ``count`` is as of ``gemm_cost``. SCALE-Sim also counts rows + columns writes more for each fold
    of output stationary arrays, and no result that is read back.

    Raises InputError for an array of fixed tiles, and for what 64 bits do not count.

    >>> buffers = Buffers(1024, 1024, 1024, Fraction(4))
    >>> array = Array("os", 8, 8, depth=None, tile_cycles=None, clock_hertz=1e8)
    >>> cost = memory_cost(array, buffers, 32, 64, 16)
    >>> cost.dram_reads["ifmap"], cost.dram_writes["ofmap"], cost.stall_cycles
    (2048, 512, 520)
    """
    if array.dataflow == "fixed":
        raise InputError("buffers are of systolic arrays (--mode os, ws or is)")
    axes = np.broadcast_arrays(*(np.asarray(size, np.int64) for size in (m, k, n, batch)))
    widest = max(buffers.widths) * array.arrays
    most = np.prod([np.max(axis.astype(float)) for axis in axes]) * widest
    if most * max(1.0, 1 / float(buffers.dram_words_per_cycle)) >= 2.0**60:
        raise InputError("a product of more than 2^60 multiply-accumulates is beyond 64 bits here")
    sizes = dict(zip(("m", "k", "n", "batch"), (np.atleast_1d(axis) for axis in axes), strict=True))
    one = _one_array(array, buffers, sizes, 1, count, overlap)
    found = one.cost
    if array.arrays > 1:
        share = split_over(array, **sizes, overlap=overlap)
        largest = {axis: getattr(share, axis) for axis in sizes}
        rest = {
            axis: np.where(share.arrays > 1, size - (share.arrays - 1) * largest[axis], size)
            for axis, size in sizes.items()
        }
        last = {
            axis: np.where(largest[axis] < sizes[axis], rest[axis], sizes[axis]) for axis in sizes
        }
        several = _one_array(array, buffers, largest, share.arrays, count, overlap)
        ending = _one_array(array, buffers, last, share.arrays, count, overlap)
        found = _together(several, ending, one, share.arrays, buffers)
    shape = axes[0].shape
    return MemoryCost(
        *(_plain(getattr(found, name).reshape(shape)) for name in ("stall_cycles", "dram_cycles")),
        *(
            {each: _plain(moved.reshape(shape)) for each, moved in getattr(found, name).items()}
            for name in ("sram_reads", "sram_writes", "dram_reads", "dram_writes")
        ),
    )


class _OnOne(NamedTuple):
    """Products on one array that has its part of a DRAM."""

    computing: Ints
    """Cycles without stalls."""
    cost: MemoryCost


def _one_array(
    array: Array,
    buffers: Buffers,
    sizes: Mapping[str, Ints],
    sharing: Ints | int,
    count: CountAs,
    overlap: Overlap,
) -> _OnOne:
    """What products take on one array, where so many share the DRAM; all sizes have one axis."""
    batch = sizes["batch"]
    orders = [_Order(array, buffers, sizes, outer) for outer in spans_of(array)]
    better: Bools = orders[1].words < orders[0].words

    def best(of: Callable[[_Order], Ints]) -> Ints:
        return np.where(better, of(orders[1]), of(orders[0]))

    length = sizes[streamed_axis(array) or ""]
    first, inner, last = fold_cycles(array, length, overlap)
    bandwidth = buffers.dram_words_per_cycle
    sharing = np.broadcast_to(sharing, batch.shape)
    whole = np.zeros(better.shape, np.int64)
    for order, taken in zip(orders, (~better, better), strict=True):
        for rows in _some(np.flatnonzero(taken)):
            there = {axis: each[rows] for axis, each in sizes.items()}
            stages = _Stages(_Order(array, buffers, there, order.outer), sharing[rows])
            ends = fold_cycles(array, length[rows], overlap)[1:]
            whole[rows] = stages.cycles(*ends, bandwidth)
    folds = orders[0].folds
    stalls = batch * (whole - (folds - 1) * inner - last)
    words = batch * best(lambda one: one.words)
    # Products that follow each other may overlap in the array, but the DRAM moves no faster.
    computing = first + (batch * folds - 1) * inner + last - (count == "scalesim")
    reads, writes = _of_array(array, sizes, count)
    cost = MemoryCost(
        np.maximum(stalls, divided(sharing * words, bandwidth) - computing),
        divided(words, bandwidth),
        {one: batch * reads[one] for one in OPERANDS},
        {one: batch * writes[one] for one in OPERANDS},
        {one: batch * best(partial(_reads, one)) for one in OPERANDS},
        {one: batch * best(partial(_writes, one)) for one in OPERANDS},
    )
    return _OnOne(computing, cost)


def _together(
    share: _OnOne, last: _OnOne, alone: _OnOne, arrays: Ints, buffers: Buffers
) -> MemoryCost:
    """What ``arrays`` shares take, the last of which may be smaller, or one array that does all."""
    longest = alone.computing + alone.cost.stall_cycles
    together: Bools = share.computing + share.cost.stall_cycles <= longest

    def moved(what: str) -> dict[Operand, Ints]:
        each, ending, whole = (getattr(one.cost, what) for one in (share, last, alone))
        return {
            one: np.where(together, (arrays - 1) * each[one] + ending[one], whole[one])
            for one in OPERANDS
        }

    reads, writes = moved("dram_reads"), moved("dram_writes")
    words = _sum(*((reads[one] + writes[one]) * buffers.width[one] for one in OPERANDS))
    return MemoryCost(
        np.where(together, share.cost.stall_cycles, longest - share.computing),
        divided(words, buffers.dram_words_per_cycle),
        moved("sram_reads"),
        moved("sram_writes"),
        reads,
        writes,
    )


_TOGETHER = 2**14
"""So many products are worked out at a time: arrays of them stay near the processor."""


def _some(rows: Ints) -> Iterator[Ints]:
    """All of them, some at a time."""
    for first in range(0, len(rows), _TOGETHER):
        yield rows[first : first + _TOGETHER]


def _plain(value: Any) -> Count:
    """An int of what is no array."""
    found = np.asarray(value)
    return int(found) if found.ndim == 0 else found


def _sum(*each: Ints) -> Ints:
    total: Any = 0
    for one in each:
        total = total + one
    return np.asarray(total)


def _of_array(
    array: Array, sizes: Mapping[str, Ints], count: CountAs
) -> tuple[dict[Operand, Ints], dict[Operand, Ints]]:
    """(words that the array reads of each buffer, words that it writes into each)"""
    spans = spans_of(array)
    parts = {axis: -(-sizes[axis] // span) for axis, span in spans.items()}
    whole = {one: sizes[axes[0]] * sizes[axes[1]] for one, axes in _AXES.items()}
    reads: dict[Operand, Ints] = {}
    for one in ("ifmap", "filter"):
        others = [parts[axis] for axis in spans if axis not in _AXES[one]]
        reads[one] = whole[one] * (others[0] if others else 1)
    adds = parts.get("k", np.int64(1))
    writes = whole["ofmap"] * adds
    reads["ofmap"] = whole["ofmap"] * (adds - 1)
    if count == "scalesim":
        reads["ofmap"] = 0 * writes
        if array.dataflow == "os":
            writes = writes + parts["m"] * parts["n"] * (array.rows + array.columns)
    return reads, {"ifmap": 0 * writes, "filter": 0 * writes, "ofmap": writes}


class _Order:
    """A product whose tiled axes are gone through in one of the two orders."""

    def __init__(
        self, array: Array, buffers: Buffers, sizes: Mapping[str, Ints], outer: str
    ) -> None:
        spans = spans_of(array)
        (inner,) = (axis for axis in spans if axis != outer)
        parts = {axis: -(-sizes[axis] // span) for axis, span in spans.items()}
        self.width = buffers.width
        self.sizes, self.spans, self.outer, self.inner = sizes, spans, outer, inner
        self.outers, self.inners = parts[outer], parts[inner]
        self.folds: Ints = self.outers * self.inners
        self.waits: dict[Operand, Bools] = {}
        """Whether a matrix is kept or held: what moves of it moves beside another fold."""
        self.stays: dict[Operand, Bools] = {}
        """Whether a part of a matrix that is the same for all outer parts moves once."""
        whole = {one: sizes[axes[0]] * sizes[axes[1]] for one, axes in _AXES.items()}
        for one, axes in _AXES.items():
            words = getattr(buffers, f"{one}_words")
            largest = [
                np.minimum(sizes[axis], spans[axis]) if axis in spans else sizes[axis]
                for axis in axes
            ]
            kept = whole[one] <= words
            held = 2 * largest[0] * largest[1] <= words
            self.waits[one] = kept | held
            self.stays[one] = kept | (held & (self.inners == 1))
        self.reads: dict[Operand, Ints] = {
            one: whole[one] * self._times(one) for one in ("ifmap", "filter")
        }
        written = whole["ofmap"] * self._times("ofmap")
        self.reads["ofmap"] = written - whole["ofmap"]
        self.writes: dict[Operand, Ints] = {
            "ifmap": 0 * written,
            "filter": 0 * written,
            "ofmap": written,
        }

    def _times(self, operand: Operand) -> Any:
        """How often each word of a matrix moves one way."""
        if self.depends_on(operand) == "both":
            return 1
        if self.depends_on(operand) == "outer":
            return np.where(self.waits[operand], 1, self.inners)
        return np.where(self.stays[operand], 1, self.outers)

    def depends_on(self, operand: Operand) -> str:
        """By which of the tiled axes the part differs that a fold needs."""
        axes = _AXES[operand]
        if self.outer in axes and self.inner in axes:
            return "both"
        return "outer" if self.outer in axes else "inner"

    @property
    def words(self) -> Ints:
        """All that the DRAM moves, in its words."""
        return _sum(*((self.reads[one] + self.writes[one]) * self.width[one] for one in OPERANDS))


def _reads(operand: Operand, order: _Order) -> Ints:
    return order.reads[operand]


def _writes(operand: Operand, order: _Order) -> Ints:
    return order.writes[operand]


class _Stages:
    """The stages of an order: what moves beside a fold goes by whether it and those next to it are
    the first or the last of their axes."""

    def __init__(self, order: _Order, sharing: Ints) -> None:
        self._order, self._sharing = order, sharing
        self._outers, self._inners = order.outers, order.inners
        self._early_of: dict[tuple[Operand, bool, bool], Any] = {}
        self._again_of: dict[tuple[Operand, bool, bool], Any] = {}
        self._beside_of: dict[tuple[Operand, bool, bool], Any] = {}
        for one in OPERANDS:
            waits, again = order.waits[one], order.waits[one] & ~order.stays[one]
            for o_last, i_last in product((False, True), repeat=2):
                part, at = self._part(one, o_last, i_last), (one, o_last, i_last)
                self._early_of[at] = part * waits
                self._again_of[at] = part * again
                self._beside_of[at] = part * ~waits

    def cycles(self, inner: Count, last: Count, bandwidth: Fraction) -> Ints:
        """All stages, with what comes before and goes after them; a stage computes ``inner``, the
        last one ``last``."""
        outers, inners = self._outers, self._inners
        start = self._early(True, outers == 1, True, inners == 1)
        sharing = self._sharing
        total: Any = divided(sharing * start, bandwidth)
        total = total + divided(sharing * self._late(True, True), bandwidth)
        for o, many in self._along(outers):
            for i, each in self._along(inners):
                computing = last if o.last and i.last else inner
                moving = divided(sharing * self._moved(o, i), bandwidth)
                total = total + many * each * np.maximum(computing, moving)
        return np.asarray(total)

    @staticmethod
    def _along(parts: Ints) -> "Iterator[tuple[_Where, Ints]]":
        """(a place along an axis, how many parts are there)"""
        yield _Where(True, False, parts == 2), (parts >= 2) * 1
        yield _Where(False, False, parts == 3), (parts >= 3) * 1
        yield _Where(False, False, False), np.maximum(parts - 4, 0)
        yield _Where(False, False, True), (parts >= 4) * 1
        yield _Where(parts == 1, True, False), (parts >= 1) * 1

    def _moved(self, o: "_Where", i: "_Where") -> Any:
        """Words that move while a fold computes."""
        moved = self._beside(o, i)
        if not i.last:
            moved = moved + self._early(o.first, o.last, False, i.next_is_last)
        elif not o.last:
            moved = moved + self._early(False, o.next_is_last, True, self._inners == 1)
        within = self._late(o.last, False)
        wrapped = _pick(o.first, 0, self._late(False, True))
        return moved + _pick(i.first, wrapped, within)

    def _part(self, operand: Operand, o_is_last: bool, i_is_last: bool) -> Any:
        """Words of the part of a matrix that a fold needs."""
        order: _Order = self._order
        found: Any = order.width[operand]
        lasts = {order.outer: (o_is_last, order.outers), order.inner: (i_is_last, order.inners)}
        for axis in _AXES[operand]:
            size: Any = order.sizes[axis]
            if axis in lasts:
                is_last, parts = lasts[axis]
                span = order.spans[axis]
                size = size - (parts - 1) * span if is_last else span
            found = found * size
        return found

    def _at(self, of: Mapping[Any, Any], operand: Operand, o_last: Any, i_last: Any) -> Any:
        """One of the sums by operand, at a place."""
        if self._order.outer not in _AXES[operand]:
            o_last = False
        if self._order.inner not in _AXES[operand]:
            i_last = False
        return _pick(
            o_last,
            _pick(i_last, of[operand, True, True], of[operand, True, False]),
            _pick(i_last, of[operand, False, True], of[operand, False, False]),
        )

    def _early(self, o_first: Any, o_last: Any, i_first: Any, i_last: Any) -> Any:
        """Words that come for a fold while the one before computes."""
        total: Any = 0
        for one in OPERANDS:
            depends = self._order.depends_on(one)
            new = self._at(self._early_of, one, o_last, i_last)
            again = self._at(self._again_of, one, o_last, i_last)
            if one == "ofmap":  # what is added to, where it was not there any more
                total = total + (_pick(o_first, 0, again) if depends == "inner" else 0)
            elif depends == "both":
                total = total + new
            elif depends == "outer":
                total = total + _pick(i_first, new, 0)
            else:
                total = total + _pick(o_first, new, again)
        return total

    def _late(self, o_last: Any, i_last: Any) -> Any:
        """Words that go after a fold while the next one computes."""
        depends = self._order.depends_on("ofmap")
        done = self._at(self._early_of, "ofmap", o_last, i_last)
        if depends == "both":
            return done
        if depends == "outer":
            return _pick(i_last, done, 0)
        return _pick(o_last, done, self._at(self._again_of, "ofmap", o_last, i_last))

    def _beside(self, o: "_Where", i: "_Where") -> Any:
        """Words that move while a fold itself computes."""
        total: Any = 0
        for one in OPERANDS:
            part = self._at(self._beside_of, one, o.last, i.last)
            total = total + part
            if one == "ofmap" and self._order.depends_on(one) != "both":
                total = total + _pick(o.first if self._order.outer == "k" else i.first, 0, part)
        return total


@dataclass(frozen=True, slots=True)
class _Where:
    """A place along an axis. Each may be an array."""

    first: Any
    last: bool
    next_is_last: Any


def _pick(condition: Any, one: Any, other: Any) -> Any:
    """One where a condition holds, else the other; a condition that is no array is decided once."""
    if isinstance(condition, bool):
        return one if condition else other
    if one is other:
        return one
    return np.where(condition, one, other)
