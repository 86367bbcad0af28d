"""Designs of chips for models: what each takes, the best of them, and what limits one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from costmodels import Dataflow, Overlap
from costmodels.area import AreaFigures, load_area
from costmodels.designs import (
    Bandwidth,
    Kib,
    OnDevice,
    Products,
    Runs,
    Space,
    area_of,
    fastest,
    gains,
    on_device,
    runs,
)
from costmodels.designs import pareto as undominated
from costmodels.devices import SYSTOLIC, load_device
from costmodels.energy import ELEMENT_BYTES, EnergyFigures, load_energy
from cutedge._grids import numbers
from tracer.errors import InputError, choose
from tracer.graph import OpGraph
from tracer.stages import stage

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._request import Overrides
    from cutedge._trace import Trace

FIGURES = ("seconds", "joules", "area")
"""What designs are compared by."""

MOST_POINTS = 5_000_000
"""More are refused: a point takes some hundred bytes."""

Values = str | int | float | Sequence[Any]
"""An axis: a value, several with commas between them, a range, or a list of these."""


@dataclass(frozen=True)
class DesignedRun:
    """A run of a model on each design."""

    trace: "Trace"
    products: Products
    runs: Runs
    pareto: NDArray[np.intp]
    """Which designs no other one is better than, of those that are small enough."""
    best: int | None
    """The best that is small enough (``costmodels.designs.fastest``); None where not one is."""
    device: OnDevice | None
    """The same run on the device that designs are set beside."""


@dataclass(frozen=True)
class Designs:
    """All designs of a space, on each run."""

    space: Space
    area: AreaFigures
    energy: EnergyFigures
    energy_name: str
    """What the energy figures are called."""
    square_millimetres: NDArray[np.float64]
    """Of each design."""
    max_area: float | None
    """Square millimetres that a design may have; None for no limit."""
    compared: tuple[str, ...]
    """What no other design is better in, of those in the Pareto set."""
    found: tuple[DesignedRun, ...]

    @property
    def count(self) -> int:
        """How many points there are: each design for each run."""
        return self.space.size * len(self.found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user must know before trusting the figures, a line each."""
        said = (warning for one in self.found for warning in one.trace.warnings)
        return tuple(dict.fromkeys(said))

    @cached_property
    def points(self) -> "pa.Table":
        """A row for each design and run."""
        from cutedge._design_table import design_table

        return design_table(self)

    @property
    def summary(self) -> dict[str, Any]:
        """All of it but the points, as ``design --json`` has it."""
        from cutedge._design_table import summary

        return summary(self)

    def limits(self, found: DesignedRun) -> tuple[dict[tuple[str, ...], float], str]:
        """(how many times as fast the best design of a run is with twice of each thing, the sentence
        that says what limits it); empty where not one design is small enough."""
        from cutedge._design_words import limit_sentence

        if found.best is None:
            return {}, ""
        of = found.products, self.space.design(found.best), self.space.dtype, self.space.overlap
        faster = gains(*of)
        return faster, limit_sentence(*of, faster)

    def save(self, folder: str | Path) -> Path:
        """Write ``designs.parquet`` into a folder; where it is. Raises CutedgeError."""
        from cutedge._design_table import save

        return save(self, Path(folder))

    def report(self, page: str | Path) -> Path:
        """Write a page with a chart of each run; where it is. Raises CutedgeError."""
        from cutedge._design_page import write_designs

        return write_designs(self, Path(page))


def design(
    model: "str | Trace | Sequence[str | Trace]",
    *,
    seq: Values | None = (1, 128),
    past: Values | None = None,
    phase: str = "prefill",
    rows: Values = "8..64",
    columns: Values = "8..64",
    arrays: Values = 1,
    dataflow: str | Sequence[str] = SYSTOLIC,
    sram_kib: Values = "24..384",
    dram_gb_per_second: Values | None = None,
    dram_words_per_cycle: Values | None = None,
    clock_mhz: Values = 500,
    dtype: str = "int8",
    overlap: Overlap = "none",
    device: str | None = None,
    max_area: float | None = None,
    pareto: str | Sequence[str] = FIGURES,
    area: str = "dally-45nm",
    energy: str = "horowitz-45nm",
    overrides: "Overrides" = None,
) -> Designs:
    """Work out every design of a chip for models: cycles, stalls, seconds, energy and area.

    A design is a systolic array, or several, with buffers, a DRAM and a clock
    (``costmodels.designs``); a point is a design and a run of a model, whose matrix products it
    computes one after another. What is no matrix product is not in it.

    Each axis takes values as ``sweep`` does: ``"4,8,12"``, ``"4..64"`` (doubles), ``"4..64:4"``
    (steps), or a list. Without ``seq`` (None, or ``"none"``) a model runs at its own sizes, as one of
    images must. ``sram_kib`` is all three buffers of an array, a third each, or each of them,
    as ``"16+64+16"`` (left operand, right one, result). The DRAM is ``dram_gb_per_second``, 6.4 when
    left out, or ``dram_words_per_cycle``.

    Designs are set beside a ``device`` that is an array, and are no larger than it unless
    ``max_area`` (square millimetres) says otherwise. ``pareto`` are one to three of ``seconds``,
    ``joules`` and ``area``. ``area`` and ``energy`` are names of figures or .toml files.

    Raises InputError for what cannot be understood, and for more points than ``MOST_POINTS``.

    >>> import cutedge
    >>> made = cutedge.design("edge-10m", seq=64, rows="8,16", columns=16, sram_kib=48)
    >>> made.count, [len(one.pareto) for one in made.found]
    (6, [4])
    """
    energies, _ = load_energy(energy)
    areas = load_area(area)
    choose(overlap, get_args(Overlap), "--overlap")
    choose(dtype, tuple(ELEMENT_BYTES), "--dtype")
    space = Space(
        _dataflows(dataflow),
        _whole("--rows", rows),
        _whole("--columns", columns),
        _whole("--arrays", arrays),
        _buffers(sram_kib),
        _bandwidths(dram_gb_per_second, dram_words_per_cycle),
        tuple(mhz * 10**6 for mhz in numbers("--clock-mhz", clock_mhz)),
        dtype,
        overlap,
    )
    models = [*model] if isinstance(model, list | tuple) else [model]
    sizes = _sizes(phase, seq, past)
    if (points := space.size * len(models) * len(sizes)) > MOST_POINTS:
        raise InputError(
            f"{points:,} points ({space.size:,} designs, {len(models) * len(sizes)} runs) are more "
            f"than {MOST_POINTS:,}: give fewer values of {_longest(space)}, or fewer runs"
        )
    compared = _texts(pareto)
    for one in compared:
        choose(one, FIGURES, "--pareto")
    if max_area is not None and not 0 < max_area < float("inf"):
        raise InputError(f"--max-area {max_area}: square millimetres, more than 0")
    beside = None if device is None else load_device(device)
    if beside is not None and max_area is None:
        max_area = area_of(beside, areas, dtype)
    square_millimetres = space.square_millimetres(areas)
    small = np.flatnonzero(square_millimetres <= (max_area or float("inf")))
    found = []
    with stage("working out points", points) as done:
        for one, each in product(models, sizes):
            traced = _traced(one, phase, each, overrides)
            products = _products(traced.graph)
            made = runs(products, space, energies)
            named = {"seconds": made.seconds, "joules": made.joules, "area": square_millimetres}
            best = undominated(*(named[name][small] for name in compared))
            found.append(
                DesignedRun(
                    traced,
                    products,
                    made,
                    small[best],
                    fastest(made, square_millimetres, small) if len(small) else None,
                    None if beside is None else on_device(products, beside, areas, energies, dtype),
                )
            )
            done(space.size * len(found))
    return Designs(
        space,
        areas,
        energies,
        Path(energy).stem,
        square_millimetres,
        max_area,
        compared,
        tuple(found),
    )


def _products(graph: OpGraph) -> Products:
    """The distinct matrix products of a graph. Raises InputError where it has not one."""
    from cutedge.exports.scalesim import products_of

    count = Counter((g.m, g.k, g.n, g.batch) for _, g in products_of(graph))
    if not count:
        raise InputError(
            f"{graph.meta.model} has no matrix product with sizes: trace it with --attn eager"
        )
    return Products(
        *(
            np.asarray([*axis], np.int64)
            for axis in zip(*((*p, n) for p, n in count.items()), strict=True)
        )
    )


def _traced(model: Any, phase: str, sizes: Mapping[str, Any], overrides: "Overrides") -> "Trace":
    from cutedge._trace import Trace, trace

    if isinstance(model, Trace):
        return model.at(**sizes)
    return trace(model, phase=phase, overrides=overrides, **sizes)


def _sizes(phase: str, seq: Values | None, past: Values | None) -> list[dict[str, int]]:
    """The sizes of the runs."""
    own = phase == "decode" or seq in (None, "none")
    pasts = [None] if past is None else numbers("--past", past, whole=True, least=0)
    seqs = [None] if own else numbers("--seq", seq, whole=True)
    named = ({"past": p, "seq": s} for p, s in product(pasts, seqs))
    return [{name: int(n) for name, n in one.items() if n is not None} for one in named]


def _whole(option: str, values: Values) -> tuple[int, ...]:
    return tuple(int(one) for one in numbers(option, values, whole=True))


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    each = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(one.strip() for one in each))


def _dataflows(given: str | Sequence[str]) -> tuple[Dataflow, ...]:
    for flow in (chosen := _texts(given)):
        choose(flow, SYSTOLIC, "--dataflow")
    return cast(tuple[Dataflow, ...], chosen)


def _buffers(given: Values) -> tuple[Kib, ...]:
    """All three together, a third each, or each of them: ``16+64+16``."""
    each = (
        given.split(",")
        if isinstance(given, str)
        else given
        if isinstance(given, list | tuple)
        else [given]
    )
    found: dict[Kib, None] = {}
    for text in each:
        if "+" in str(text):
            parts = [_one("--sram-kib", part) for part in str(text).split("+")]
            if len(parts) != 3:
                raise InputError(
                    f"--sram-kib {text}: three buffers, for the left operand, the right one and the "
                    "result, as in 16+64+16, or one number for all three together"
                )
            found[parts[0], parts[1], parts[2]] = None
        else:
            found |= {(kib / 3, kib / 3, kib / 3): None for kib in numbers("--sram-kib", str(text))}
    return tuple(found)


def _one(option: str, text: str) -> Fraction:
    (value,) = numbers(option, text.strip())
    return value


def _bandwidths(per_second: Values | None, by_cycle: Values | None) -> tuple[Bandwidth, ...]:
    if per_second is not None and by_cycle is not None:
        raise InputError("give --dram-gb-per-second or --dram-words-per-cycle, not both")
    if by_cycle is not None:
        words = numbers("--dram-words-per-cycle", by_cycle)
        return tuple(Bandwidth(one, by_cycle=True) for one in words)
    rates = numbers("--dram-gb-per-second", 6.4 if per_second is None else per_second)
    return tuple(Bandwidth(one * 10**9) for one in rates)


def _longest(space: Space) -> str:
    """The option of the axis with most values."""
    options = (
        "dataflow",
        "rows",
        "columns",
        "arrays",
        "sram-kib",
        "dram-gb-per-second",
        "clock-mhz",
    )
    count, option = max(zip(space.shape, options, strict=True))
    return f"--{option} ({count})"
