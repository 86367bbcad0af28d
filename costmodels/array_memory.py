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

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
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
    bandwidth = buffers.dram_words_per_cycle
    words = {one: getattr(buffers, f"{one}_words") for one in OPERANDS}
    sizes = np.broadcast_arrays(*(np.asarray(size, np.int64) for size in (m, k, n, batch)))
    flat = [size.reshape(-1) for size in sizes]
    parts = []
    for first in range(0, flat[0].size, TOGETHER):
        *axes, many = (size[first : first + TOGETHER] for size in flat)
        moved = MemoryTraffic(
            array, words, *axes, batch=many, count=count, overlap=overlap, widths=buffers.widths
        )
        (waits,) = moved.waits([bandwidth])
        parts.append([waits.stall_cycles, divided(waits.dram_words, bandwidth), *waits.moved])
    shape = sizes[0].shape
    each = [_plain(np.concatenate(found).reshape(shape)) for found in zip(*parts, strict=True)]
    counts = iter(each[2:])
    named = ({one: next(counts) for one in OPERANDS} for _ in range(4))
    return MemoryCost(each[0], each[1], *named)


TOGETHER = 2**14
"""So many products are worked out at a time: arrays of them stay near the processor."""


class Waits(NamedTuple):
    """What products wait for a DRAM, and what moves then."""

    stall_cycles: Ints
    dram_words: Ints
    """All that the DRAM moves, in its words."""
    moved: list[Ints]
    """Elements that the array reads of each buffer, writes into each, that come from the DRAM, and
    that go there: for each of these by operand."""


class MemoryTraffic:
    """What products move, and how long they wait for a DRAM of any bandwidth.

    Rows and columns of the ``array`` and the ``words`` of the buffers may be arrays too: many
    designs. All that is an array is broadcast.
    """

    def __init__(
        self,
        array: Array,
        words: Mapping[Operand, Count],
        m: Count,
        k: Count,
        n: Count,
        *,
        batch: Count = 1,
        count: CountAs = "true",
        overlap: Overlap = "none",
        widths: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        """Raises InputError as ``memory_cost``."""
        if array.dataflow == "fixed":
            raise InputError("buffers are of systolic arrays (--mode os, ws or is)")
        sizes = {"m": m, "k": k, "n": n, "batch": batch}
        most = np.prod([np.max(np.asarray(size, float)) for size in sizes.values()])
        self._most = float(most) * max(widths) * array.arrays
        self._widths = widths

        def on_one(sizes: Mapping[str, Count], sharing: Count) -> _OnOne:
            return _OnOne(array, words, sizes, count, overlap, widths, sharing)

        self._check(Fraction(1))
        self._alone = on_one(sizes, 1)
        self.padded_macs: Count = (
            self._alone.folds
            * batch
            * (array.rows * array.columns * sizes[streamed_axis(array) or ""])
        )
        """Multiply-accumulates of all tiles, padding included."""
        self.compute_cycles: Count = self._alone.compute_cycles
        """Without waiting: those of ``gemm_cost``."""
        self._several = None
        if array.arrays > 1:
            share = split_over(array, **sizes, overlap=overlap)
            largest = {axis: getattr(share, axis) for axis in sizes}
            last = {
                axis: np.where(each < size, size - (share.arrays - 1) * each, size)
                for (axis, size), each in zip(sizes.items(), largest.values(), strict=True)
            }
            each = on_one(largest, share.arrays)
            self.compute_cycles = each.compute_cycles
            self._several = share.arrays, each, on_one(last, share.arrays)

    def _check(self, bandwidth: Fraction) -> None:
        if self._most * max(1.0, 1 / float(bandwidth)) >= 2.0**60:
            raise InputError(
                "a product of more than 2^60 multiply-accumulates is beyond 64 bits here"
            )

    def waits(self, bandwidths: Sequence[Fraction]) -> list[Waits]:
        """By the words that a DRAM moves in a cycle. What moves is the same object for all where it
        is the same."""
        for bandwidth in bandwidths:
            self._check(bandwidth)
        moved, words = self._alone.moved, self._alone.dram_words
        alone = self._alone.stall_cycles(bandwidths)
        if self._several is None:
            return [Waits(stalls, words, moved) for stalls in alone]
        arrays, each, last = self._several
        shared = [
            (arrays - 1) * one + other for one, other in zip(each.moved, last.moved, strict=True)
        ]
        found = []
        for stalls, by_one in zip(each.stall_cycles(bandwidths), alone, strict=True):
            longest = self._alone.compute_cycles + by_one
            together: Bools = each.compute_cycles + stalls <= longest
            here = [
                np.where(together, one, other) for one, other in zip(shared, moved, strict=True)
            ]
            found.append(
                Waits(
                    np.where(together, stalls, longest - each.compute_cycles),
                    _sum(*(here[n] * self._widths[n % 3] for n in range(6, 12))),
                    here,
                )
            )
        return found


class _OnOne:
    """Products on one array that has its part of a DRAM, which so many share."""

    def __init__(
        self,
        array: Array,
        words: Mapping[Operand, Count],
        sizes: Mapping[str, Count],
        count: CountAs,
        overlap: Overlap,
        widths: tuple[int, int, int],
        sharing: Count,
    ) -> None:
        spans = spans_of(array)
        given: dict[str, Any] = {axis: sizes[axis] for axis in "mkn"}
        given |= {one: words[one] for one in OPERANDS}
        given |= {f"{axis} span": span for axis, span in spans.items()}
        given |= {f"{one} width": width for one, width in zip(OPERANDS, widths, strict=True)}
        given["sharing"] = sharing
        shape = np.broadcast_shapes(*(np.shape(value) for value in given.values()))
        for name, value in given.items():
            # What is the same everywhere is one number: dividing by it is fast.
            if np.ndim(value) or name in ("m", "k", "n"):
                given[name] = np.broadcast_to(value, shape).reshape(-1)
        self._shape, self._batch, self._sharing = shape, sizes["batch"], sharing
        self._given, self._array, self._count = given, array, count
        self._orders = orders = [_Order(given, tuple(spans), outer) for outer in spans]
        self._second: Bools = orders[1].words < orders[0].words
        streamed = sizes[streamed_axis(array) or ""]
        first, self._inner, self._last = fold_cycles(array, streamed, overlap)
        self.folds: Ints = orders[0].folds.reshape(shape)
        # Products that follow each other may overlap in the array, but the DRAM moves no faster.
        self.compute_cycles: Count = (
            first
            + (self._batch * self.folds - 1) * self._inner
            + self._last
            - (count == "scalesim")
        )
        self.dram_words: Ints = self._batch * self._best(lambda order: order.words)

    @cached_property
    def moved(self) -> list[Ints]:
        """As ``Waits.moved``."""
        found = _of_array(self._array, self._given, self._count)
        shaped = [[each[one].reshape(self._shape) for one in OPERANDS] for each in found]
        shaped += [
            [self._best(partial(_reads, one)) for one in OPERANDS],
            [self._best(partial(_writes, one)) for one in OPERANDS],
        ]
        return [self._batch * one for each in shaped for one in each]

    def _best(self, of: "Callable[[_Order], Ints]") -> Ints:
        first, second = map(of, self._orders)
        return np.where(self._second, second, first).reshape(self._shape)

    def stall_cycles(self, bandwidths: Sequence[Fraction]) -> list[Ints]:
        """How long the array waits for a DRAM of each of these words a cycle."""
        whole = np.zeros((len(bandwidths), len(self._second)), np.int64)
        inner, last = (
            np.broadcast_to(each, self._shape).reshape(-1) for each in (self._inner, self._last)
        )
        for number, order in enumerate(self._orders):
            taken = self._second == bool(number)
            alike = 3 * np.minimum(order.outers, 3) + np.minimum(order.inners, 3)
            for outers, inners in product((1, 2, 3), repeat=2):
                rows = np.flatnonzero(taken & (alike == 3 * outers + inners))
                if rows.size:
                    stages = _Stages(order.at(rows), outers, inners)
                    for at, bandwidth in enumerate(bandwidths):
                        whole[at, rows] = stages.cycles(inner[rows], last[rows], bandwidth)
        waits = self._batch * (
            whole.reshape(len(bandwidths), *self._shape)
            - (self.folds - 1) * self._inner
            - self._last
        )
        return [
            np.maximum(
                waits[at], divided(self._sharing * self.dram_words, bandwidth) - self.compute_cycles
            )
            for at, bandwidth in enumerate(bandwidths)
        ]


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
    array: Array, given: Mapping[str, Any], count: CountAs
) -> tuple[dict[Operand, Ints], dict[Operand, Ints]]:
    """(words that the array reads of each buffer, words that it writes into each)"""
    tiled = [axis for axis in "mkn" if f"{axis} span" in given]
    parts = {axis: -(-given[axis] // given[f"{axis} span"]) for axis in tiled}
    whole = {one: given[axes[0]] * given[axes[1]] for one, axes in _AXES.items()}
    reads: dict[Operand, Ints] = {}
    for one in ("ifmap", "filter"):
        others = [parts[axis] for axis in tiled if axis not in _AXES[one]]
        reads[one] = whole[one] * (others[0] if others else 1)
    adds = parts.get("k", np.int64(1))
    writes = whole["ofmap"] * adds
    reads["ofmap"] = whole["ofmap"] * (adds - 1)
    if count == "scalesim":
        reads["ofmap"] = 0 * writes
        if array.dataflow == "os":
            edges = given["m span"] + given["n span"]
            writes = writes + parts["m"] * parts["n"] * edges
    return reads, {"ifmap": 0 * writes, "filter": 0 * writes, "ofmap": writes}


class _Order:
    """Products whose tiled axes are gone through in one of the two orders."""

    def __init__(self, given: Mapping[str, Any], tiled: tuple[str, ...], outer: str) -> None:
        """``given`` are sizes by axis, spans by ``AXIS span``, and words of buffers by operand."""
        (inner,) = (axis for axis in tiled if axis != outer)
        self.spans = {axis: given[f"{axis} span"] for axis in tiled}
        self.sizes: Mapping[str, Ints] = {axis: given[axis] for axis in "mkn"}
        self.widths = {one: given[f"{one} width"] for one in OPERANDS}
        self.factors = {one: width * given["sharing"] for one, width in self.widths.items()}
        """What an element is of the words of the DRAM's part."""
        parts = {axis: -(-self.sizes[axis] // span) for axis, span in self.spans.items()}
        self.outer, self.inner = outer, inner
        self.outers, self.inners = parts[outer], parts[inner]
        self.folds: Ints = self.outers * self.inners
        self.waits: dict[Operand, Bools] = {}
        """Whether a matrix is kept or held: what moves of it moves beside another fold."""
        self.stays: dict[Operand, Bools] = {}
        """Whether a part of a matrix that is the same for all outer parts moves once."""
        whole = {one: self.sizes[axes[0]] * self.sizes[axes[1]] for one, axes in _AXES.items()}
        largest = {
            axis: np.minimum(size, self.spans[axis]) if axis in self.spans else size
            for axis, size in self.sizes.items()
        }
        for one, axes in _AXES.items():
            kept = whole[one] <= given[one]
            held = 2 * largest[axes[0]] * largest[axes[1]] <= given[one]
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

    def at(self, rows: Ints) -> "_Order":
        """Some of the products: what their stages need."""
        there = copy(self)
        for name in ("sizes", "spans", "waits", "stays", "factors"):
            each = getattr(self, name).items()
            setattr(there, name, {k: v[rows] if np.ndim(v) else v for k, v in each})
        there.outers, there.inners = self.outers[rows], self.inners[rows]
        return there

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
        return _sum(*((self.reads[one] + self.writes[one]) * self.widths[one] for one in OPERANDS))


def _reads(operand: Operand, order: _Order) -> Ints:
    return order.reads[operand]


def _writes(operand: Operand, order: _Order) -> Ints:
    return order.writes[operand]


class _Stages:
    """The stages of products in an order: what moves beside a fold goes by whether it and those next
    to it are the first or the last of their axes.

    The products are alike in how many parts each tiled axis has: 1, 2, or 3 and more.
    """

    def __init__(self, order: _Order, outers: int, inners: int) -> None:
        self._order, self._alone = order, inners == 1
        self._found: dict[tuple[str, Operand, bool, bool], Any] = {}
        self._only: dict[tuple[str, Operand], Any] = {}
        for one in OPERANDS:
            waits = order.waits[one]
            each = {"early": waits, "again": waits & ~order.stays[one], "beside": ~waits}
            # What holds of all or of nothing here is no array: most of the sums fall away.
            self._only |= {
                (kind, one): bool(mask[0]) if (mask == mask[0]).all() else mask
                for kind, mask in each.items()
            }
        self._start = self._early(True, outers == 1, True, inners == 1)
        self._end = self._late(True, True)
        self._each = [
            (many * each, self._moved(o, i), o.last and i.last)
            for o, many in _along(order.outers, outers)
            for i, each in _along(order.inners, inners)
        ]

    def cycles(self, inner: Ints, last: Ints, bandwidth: Fraction) -> Ints:
        """All stages, with what comes before and goes after them; a stage computes ``inner``, the
        last one ``last``."""
        total: Any = divided(self._start, bandwidth) + divided(self._end, bandwidth)
        for many, moved, is_last in self._each:
            computing = last if is_last else inner
            total = total + many * np.maximum(computing, divided(moved, bandwidth))
        return np.asarray(total)

    def _moved(self, o: "_Where", i: "_Where") -> Any:
        """Words that move while a fold computes."""
        moved = self._beside(o, i)
        if not i.last:
            moved = moved + self._early(o.first, o.last, False, i.next_is_last)
        elif not o.last:
            moved = moved + self._early(False, o.next_is_last, True, self._alone)
        if not i.first:
            return moved + self._late(o.last, False)
        return moved if o.first else moved + self._late(False, True)

    def _part(self, kind: str, operand: Operand, o_last: bool, i_last: bool) -> Any:
        """Words of the part of a matrix that a fold needs, where they move so; else 0."""
        order, axes, mask = self._order, _AXES[operand], self._only[kind, operand]
        at = kind, operand, o_last and order.outer in axes, i_last and order.inner in axes
        if at not in self._found:
            factor = order.factors[operand]
            found: Any = mask if isinstance(factor, int) and factor == 1 else mask * factor
            lasts = {order.outer: (at[2], order.outers), order.inner: (at[3], order.inners)}
            for axis in axes if mask is not False else ():
                size: Any = order.sizes[axis]
                if axis in lasts:
                    is_last, parts = lasts[axis]
                    span = order.spans[axis]
                    size = size - (parts - 1) * span if is_last else span
                found = size if found is True else found * size
            self._found[at] = found if mask is not False else 0
        return self._found[at]

    def _early(self, o_first: bool, o_last: bool, i_first: bool, i_last: bool) -> Any:
        """Words that come for a fold while the one before computes."""
        total: Any = 0
        for one in OPERANDS:
            depends = self._order.depends_on(one)
            if one == "ofmap":  # what is added to, where it was not there any more
                kind = "again" if depends == "inner" and not o_first else None
            elif depends == "both":
                kind = "early"
            elif depends == "outer":
                kind = "early" if i_first else None
            else:
                kind = "early" if o_first else "again"
            if kind is not None:
                total = total + self._part(kind, one, o_last, i_last)
        return total

    def _late(self, o_last: bool, i_last: bool) -> Any:
        """Words that go after a fold while the next one computes."""
        depends = self._order.depends_on("ofmap")
        if depends == "outer" and not i_last:
            return 0
        kind = "again" if depends == "inner" and not o_last else "early"
        return self._part(kind, "ofmap", o_last, i_last)

    def _beside(self, o: "_Where", i: "_Where") -> Any:
        """Words that move while a fold itself computes."""
        total: Any = 0
        for one in OPERANDS:
            part = self._part("beside", one, o.last, i.last)
            total = total + part
            if one == "ofmap" and self._order.depends_on(one) != "both":
                if not (o.first if self._order.outer == "k" else i.first):
                    total = total + part
        return total


class _Where(NamedTuple):
    """A place along an axis."""

    first: bool
    last: bool
    next_is_last: bool


def _along(parts: Ints, alike: int) -> "list[tuple[_Where, Any]]":
    """(a place along an axis, how many parts are there) of axes of 1, 2, or 3 parts and more."""
    if alike == 1:
        return [(_Where(True, True, False), 1)]
    if alike == 2:
        return [(_Where(True, False, True), 1), (_Where(False, True, False), 1)]
    return [
        (_Where(True, False, False), 1),
        (_Where(False, False, False), parts - 3),
        (_Where(False, False, True), 1),
        (_Where(False, True, False), 1),
    ]
