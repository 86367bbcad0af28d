"""Designs of chips for models: what is asked for, and how it is answered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from costmodels import Dataflow, Overlap
from costmodels.area import load_area
from costmodels.designs import Bandwidth, Kib, Space
from costmodels.devices import SYSTOLIC, load_device
from costmodels.energy import ELEMENT_BYTES, load_energy
from cutedge._designs import FIGURES, Designs, work_out
from cutedge._grids import numbers
from tracer.errors import InputError, choose
from tracer.graph import OpGraph

if TYPE_CHECKING:
    from cutedge._request import Overrides
    from cutedge._trace import Trace

MOST_POINTS = 5_000_000
"""More are refused: a point takes some hundred bytes."""

Values = str | int | float | Sequence[Any]
"""An axis: a value, several with commas between them, a range, or a list of these."""


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
    traced: list[Trace] = []

    def graphs() -> Iterator[tuple[OpGraph, str]]:
        for one, each in product(models, sizes):
            traced.append(_traced(one, phase, each, overrides))
            yield traced[-1].graph, traced[-1].id

    made = work_out(
        space,
        graphs(),
        points,
        area=areas,
        energy=(Path(energy).stem, energies),
        device=beside,
        max_area=max_area,
        compared=compared,
    )
    said = dict.fromkeys(warning for one in traced for warning in one.warnings)
    return replace(made, warnings=tuple(said))


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
