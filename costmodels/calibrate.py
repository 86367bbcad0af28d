"""Links from measured calls: what a call takes beside its bytes, and by the byte each way.

The model of a call is ``seconds = latency + a * sent + b * received``, all three 0 or more. Where
the log tells sending from receiving, each is fitted alone; where it tells packing from the rest,
``serialise_seconds = c * sent + d * received`` is fitted too, and taken off the seconds first.
What the calls cannot tell apart (all of one size, say) is not guessed: it stays unknown.
Where no such line fits many of the calls, one with a break is tried: the calls that send, or
receive, so much or more have a slope of their own.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from math import isfinite
from pathlib import Path

import numpy as np

from costmodels.described import rounded, toml, write_toml
from costmodels.least_squares import Floats, identified, solve, standard_errors
from costmodels.links import REQUIRED
from tracer.errors import InputError
from tracer.toml_files import read_text

LATENCY, SENT, RECEIVED = "latency (s a call)", "sent (s a byte)", "received (s a byte)"
LARGE = "of large messages: "
"""Before the name of a term by the byte: that of the calls with so much or more."""

_REQUIRED = ("sent", "received", "seconds")
_OPTIONAL = ("sent_seconds", "received_seconds", "serialise_seconds")
_POSITIVE = ("seconds",)

_LEAST_CALLS = 4
"""One more than the terms of a call: fewer fit whatever they are."""

_HUBER = 1.345
"""Residuals of more standard deviations than this weigh less: 95% efficient on normal noise."""

_ROUNDS = 50
_FURTHEST = 5

_TOTAL = 0.03
"""Parts of the measured sum that the fitted one may be off by."""

_FAR = 0.25
"""A call that is off by more, in parts of what was measured, is not fitted by the line."""

_MANY_FAR = 0.1
"""Parts of the calls that may be far off; where more are, no line fits all of them."""


@dataclass(frozen=True, slots=True)
class Log:
    """Measured calls, in the order of the file."""

    name: str
    """Of the file, without its folder."""
    lines: tuple[int, ...]
    """The line that each call is in, counted from 1."""
    columns: dict[str, Floats]
    """By name: bytes in ``sent`` and ``received``, seconds in the others."""


@dataclass(frozen=True, slots=True)
class Term:
    """A coefficient of the model."""

    name: str
    """``LATENCY``, ``SENT`` or ``RECEIVED``."""
    value: float | None
    """None when the calls cannot tell it, or show none."""
    standard_error: float | None
    """None where ``value`` is."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A call and what the model says of it."""

    line: int
    """In the log."""
    measured_seconds: float
    """What the call took."""
    fitted_seconds: float
    """What the model says of it."""
    relative: float
    """``measured_seconds`` over what was fitted, in parts of the measured: positive is slow."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One equation with its terms."""

    equation: str
    """The column that was fitted, and by what."""
    terms: tuple[Term, ...]
    """In the order of the equation."""
    r_squared: float | None
    """1 - residual over total sum of squares of the seconds; None when all are the same."""
    relative_residual_quantiles: tuple[float, float]
    """Half and nine tenths of the calls are off by no more, in parts of what was measured."""
    furthest: tuple[Residual, ...]
    """The calls that are furthest off in seconds, the furthest first."""
    measured_total_seconds: float
    """Of all calls."""
    fitted_total_seconds: float
    """What the equation says of all calls."""
    fitted_seconds: tuple[float, ...] = field(repr=False)
    """What it says of each, in the order of the log."""

    def value(self, name: str) -> float | None:
        """The value of a term by its name."""
        return next(term.value for term in self.terms if term.name == name)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a log says of a link."""

    log: str
    """The log's name."""
    calls: int
    """How many it has."""
    equations: tuple[Fit, ...]
    """Of the seconds (one, or one each way), then of the packing where the log has it."""
    figures: dict[str, float]
    """What a link file gets beside its framing."""
    sources: dict[str, str]
    """By key of ``figures``."""
    warnings: tuple[str, ...]
    """What the log cannot tell, in sentences."""
    large_bytes: Mapping[str, int] = field(default_factory=dict)
    """``SENT`` or ``RECEIVED`` -> the bytes from which a call has a slope of its own."""
    framing: Mapping[str, int] = field(default_factory=dict)
    """Bytes that a ``message`` and a ``tensor`` in it add, where they were counted."""

    @property
    def measured_total_seconds(self) -> float:
        """Of all calls, in all that was fitted."""
        return sum(one.measured_total_seconds for one in self.equations)

    @property
    def fitted_total_seconds(self) -> float:
        """What the equations say of them."""
        return sum(one.fitted_total_seconds for one in self.equations)


def read_log(path: Path) -> Log:
    """Measured calls from a CSV file. Raises InputError that names file, line and column."""
    rows = csv.reader(
        StringIO(read_text(path, "log", most=2**26).removeprefix("\ufeff"), newline=""), strict=True
    )
    try:
        header = [name.strip() for name in next(rows, [])]
        columns = _columns(path, header)
        lines: list[int] = []
        values: list[list[float]] = []
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise InputError(f"{where}: {len(row)} columns, but the header has {len(header)}")
            lines.append(rows.line_num)
            values.append([_number(where, name, row[at]) for name, at in columns.items()])
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from error
    if len(lines) < _LEAST_CALLS:
        raise InputError(
            f"{path}: {len(lines)} calls are too few: three terms take {_LEAST_CALLS} or more"
        )
    table = np.array(values, dtype=np.float64)
    return Log(path.name, tuple(lines), {name: table[:, at] for at, name in enumerate(columns)})


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where the columns are that the fit reads."""
    for name in (*_REQUIRED, *_OPTIONAL):
        if header.count(name) > 1:
            raise InputError(f"{path}, line 1: column {name!r} is there twice")
    for name in _REQUIRED:
        if name not in header:
            raise InputError(
                f"{path}, line 1: column {name!r} is missing; a log has {', '.join(_REQUIRED)}"
            )
    pair = ("sent_seconds", "received_seconds")
    for name, other in (pair, pair[::-1]):
        if name in header and other not in header:
            raise InputError(f"{path}, line 1: column {other!r} is missing: {name} needs it")
    return {name: header.index(name) for name in (*_REQUIRED, *_OPTIONAL) if name in header}


def _number(where: str, name: str, text: str) -> float:
    least = "more than 0" if name in _POSITIVE else "0 or more"
    wanted = f"{where}: column {name!r} must be a number, {least}, not {text.strip()!r}"
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(wanted) from error
    if not isfinite(value) or value < 0 or (value == 0 and name in _POSITIVE):
        raise InputError(wanted)
    return value


def fit(log: Log, framing: Mapping[str, int] | None = None) -> Calibration:
    """The terms of a link from measured calls, and their ``framing`` where that was counted.

    Noise is taken to grow with the seconds of a call, and slow outliers weigh less: the link is
    that of a usual call. But a run is a sum. Where that line misses the calls that take most of
    the time, and in a log with ``framing``, which is a whole run that was measured, every second
    counts alike, and the sum is held to the measured one.
    """
    columns = log.columns
    sent, received, seconds = (columns[name] for name in _REQUIRED)
    once = np.ones_like(seconds)
    warnings: list[str] = []
    large: dict[str, int] = {}
    packing = columns.get("serialise_seconds")
    if packing is not None:
        late = np.flatnonzero(packing > seconds)
        if late.size:
            raise InputError(
                f"{log.name}, line {log.lines[late[0]]}: column 'serialise_seconds' is more than "
                "the seconds of the whole call"
            )
    if "sent_seconds" in columns:
        fits = [
            _fit(
                log,
                f"{way}_seconds",
                columns[f"{way}_seconds"],
                {LATENCY: once, name: columns[way]},
                warnings,
                whole=bool(framing),
            )
            for way, name in (("sent", SENT), ("received", RECEIVED))
        ]
    else:
        name = "seconds" if packing is None else "seconds - serialise_seconds"
        wall = seconds if packing is None else seconds - packing
        terms = {LATENCY: once, SENT: sent, RECEIVED: received}
        fits = [_fit(log, name, wall, terms, warnings, whole=bool(framing))]
        if _far(fits[0], wall):
            fits, large, warnings = _with_a_break(log, name, wall, terms, fits, warnings)
    if packing is not None:
        packed = {SENT: sent, RECEIVED: received}
        fits.append(_fit(log, "serialise_seconds", packing, packed, warnings, whole=bool(framing)))
    apart = "sent_seconds" in columns
    by_way = {"sent": (fits[0], SENT), "received": (fits[1 if apart else 0], RECEIVED)}
    figures, sources = _figures(
        f"{log.name}, {len(log.lines)} calls",
        by_way,
        warnings,
        apart=apart,
        packing=None if packing is None else fits[-1],
        large=large,
    )
    return Calibration(
        log.name,
        len(log.lines),
        tuple(fits),
        figures,
        sources,
        tuple(warnings),
        large,
        framing or {},
    )


def _by_kind(design: Floats, measured: Floats) -> Floats:
    """The terms, where each kind of call (of the same bytes) counts alike, whether there are many
    of it or one, and the sum of all calls is held.
    """
    kinds, of = np.unique(design, axis=0, return_inverse=True)
    means = np.bincount(of, measured) / np.bincount(of)
    return solve(
        np.vstack([kinds, design.sum(axis=0)]),
        np.append(means, measured.sum()),
        np.append(1 / means, _HOLDS / measured.sum()),
    )


def _far(one: Fit, measured: Floats) -> bool:
    """Whether many of the calls are far from the line."""
    off = np.abs(np.array(one.fitted_seconds) - measured) / np.maximum(measured, 1e-300)
    return bool((off > _FAR).mean() > _MANY_FAR)


def _with_a_break(
    log: Log,
    name: str,
    measured: Floats,
    terms: Mapping[str, Floats],
    line: list[Fit],
    warnings: list[str],
) -> tuple[list[Fit], dict[str, int], list[str]]:
    """(fits, large bytes by term, warnings) of the best line with one break, where one fits.

    A break is between two sizes that were measured, at the power of two above the smaller one:
    buffers have such sizes. Where no line with a break fits all calls either, it is the line as it
    was.
    """
    best: tuple[float, Fit, dict[str, int], list[str]] | None = None
    for way in (SENT, RECEIVED):
        sizes = np.unique(terms[way])
        for small, large in pairwise(sizes[1:]):
            power = 2 ** int(small).bit_length()
            at = power if power <= large else int(small + large) // 2
            is_large = terms[way] >= at
            broken = {**terms, way: terms[way] * ~is_large, LARGE + way: terms[way] * is_large}
            said: list[str] = []
            design = np.column_stack(list(broken.values()))
            solved = _by_kind(design, measured), 1 / measured
            one = _fit(log, name, measured, broken, said, solved=solved)
            known = all(one.value(name) is not None for name in broken if name != LATENCY)
            off = float(np.sum(((np.array(one.fitted_seconds) - measured) / measured) ** 2))
            if known and not _far(one, measured) and (best is None or off < best[0]):
                best = off, one, {way: at}, said
    if best is None:
        return line, {}, warnings
    _, one, large_bytes, said = best
    return [one], large_bytes, said


def _fit(
    log: Log,
    name: str,
    measured: Floats,
    terms: dict[str, Floats],
    warnings: list[str],
    *,
    whole: bool = False,
    solved: tuple[Floats, Floats] | None = None,
) -> Fit:
    """Weighted non-negative least squares of ``measured`` by ``terms``, one column each.

    ``solved`` has (values, weights) where they are known.
    """
    design = np.column_stack(list(terms.values()))
    # A call's own noise grows with it: without this, the longest calls would be all that counts.
    least = measured[measured > 0].min(initial=np.inf)
    own = 1 / np.maximum(measured, least if isfinite(least) else 1.0)
    values, weights = solved or _usual(design, measured, own)
    if solved is None and (whole or _misses_the_long(design @ values, measured, own)):
        weights = np.ones_like(own)
        values = solve(
            np.vstack([design, design.sum(axis=0)]),
            np.append(measured, measured.sum()),
            np.append(weights, _HOLDS),
        )

    known = identified(
        design,
        weights,
        list(terms),
        name,
        warnings,
        no_rows="no call has any bytes to tell {} by",
        measure="measure calls of several sizes, and sent and received not in step",
    )
    errors = standard_errors(design, measured, weights, values)
    found = []
    for term, value, error, is_known in zip(terms, values, errors, known, strict=True):
        if is_known and not error < value:
            what = f"{value:.3g} +- {error:.3g}" if value else "none"
            warnings.append(f"{name}: the calls show no {term} beside their noise ({what})")
        kept = is_known and error < value
        found.append(Term(term, float(value) if kept else None, float(error) if kept else None))

    fitted = design @ values
    residual = measured - fitted
    total = float(np.sum((measured - measured.mean()) ** 2))
    relative = np.abs(residual) * own
    _say_what_no_line_fits(name, measured, fitted, own, warnings)
    return Fit(
        equation=f"{name} = {' + '.join(terms)}",
        terms=tuple(found),
        r_squared=1 - float(np.sum(residual**2)) / total if total else None,
        relative_residual_quantiles=(
            float(np.quantile(relative, 0.5)),
            float(np.quantile(relative, 0.9)),
        ),
        furthest=tuple(
            Residual(
                log.lines[at], float(measured[at]), float(fitted[at]), float(residual[at] * own[at])
            )
            for at in np.argsort(-np.abs(residual), kind="stable")[:_FURTHEST]
        ),
        measured_total_seconds=float(measured.sum()),
        fitted_total_seconds=float(fitted.sum()),
        fitted_seconds=tuple(fitted.tolist()),
    )


_HOLDS = 1e4
"""The weight of the sum beside one of each call: as good as an equation."""


def _usual(design: Floats, measured: Floats, own: Floats) -> tuple[Floats, Floats]:
    """(values, weights) of a usual call: residuals count in parts, large ones less (Huber)."""
    weights = own
    values = solve(design, measured, weights)
    for _ in range(_ROUNDS):
        off = np.abs(measured - design @ values) * own
        spread = 1.4826 * np.median(off)  # of normal noise, its standard deviation
        if spread < 1e-12:  # as good as exact
            break
        weights = own * np.sqrt(np.minimum(1, _HUBER * spread / np.maximum(off, 1e-300)))
        before, values = values, solve(design, measured, weights)
        if np.allclose(before, values, rtol=1e-12, atol=0):
            break
    return values, weights


def _misses_the_long(fitted: Floats, measured: Floats, own: Floats) -> bool:
    """Whether the sum is missed, and by the long calls: half of those that are half of the time.

    A few slow calls among others of their size are noise, which the line of a usual call is to
    miss.
    """
    if abs(float(fitted.sum()) - float(measured.sum())) <= _TOTAL * float(measured.sum()):
        return False
    longest = np.argsort(-fitted, kind="stable")
    most = longest[: 1 + int(np.searchsorted(np.cumsum(fitted[longest]), fitted.sum() / 2))]
    return abs(float(np.median(((measured - fitted) * own)[most]))) > _TOTAL


def _say_what_no_line_fits(
    name: str, measured: Floats, fitted: Floats, own: Floats, warnings: list[str]
) -> None:
    """Warn where the line misses the sum, or many of the calls."""
    relative = (fitted - measured) * own
    off = float(fitted.sum() / measured.sum()) - 1 if measured.any() else 0.0
    if abs(off) > _TOTAL:
        slow = int((-relative > _FAR).sum())
        warnings.append(
            f"{name}: the fitted sum is {off:+.1%} off the measured one: {slow} calls take over "
            f"{_FAR:.0%} longer than the line says, unlike others of their size"
        )
    far = np.abs(relative) > _FAR
    if far.mean() > _MANY_FAR:
        parts = [
            f"{int(these.sum())} of {len(far)} calls ({measured[these].min():.3g} to "
            f"{measured[these].max():.3g} s) are fitted {which} by {np.median(amount[these]):.0%}"
            for which, these, amount in (
                ("too slow", far & (relative > 0), relative),
                ("too fast", far & (relative < 0), -relative),
            )
            if these.any()
        ]
        share = float(measured[far].sum() / measured.sum())
        warnings.append(
            f"{name}: no line fits both ends: {' and '.join(parts)} in the middle; they take "
            f"{share:.1%} of the seconds"
        )


def fit_copies(name: str, copies: Mapping[str, Log]) -> Calibration:
    """The terms of a link from copies ``sent`` and ``received``, each with their own line.

    The columns are ``sent`` or ``received`` and ``seconds``. A direction with fewer copies than a
    line takes stays unknown.
    """
    warnings: list[str] = []
    by_way: dict[str, tuple[Fit, str]] = {}
    for way, term in (("sent", SENT), ("received", RECEIVED)):
        log = copies.get(way)
        if log is None or len(log.lines) < _LEAST_CALLS:
            there = 0 if log is None else len(log.lines)
            warnings.append(f"{there} copies {way} are too few: a line takes {_LEAST_CALLS}")
            continue
        seconds = log.columns["seconds"]
        terms = {LATENCY: np.ones_like(seconds), term: log.columns[way]}
        by_way[way] = _fit(log, f"{way}_seconds", seconds, terms, warnings), term
    count = sum(len(log.lines) for log in copies.values())
    figures, sources = _figures(f"{name}, {count} copies", by_way, warnings, apart=True)
    fits = tuple(one for one, _ in by_way.values())
    return Calibration(name, count, fits, figures, sources, tuple(warnings))


def _figures(
    of: str,
    by_way: Mapping[str, tuple[Fit, str]],
    warnings: list[str],
    *,
    apart: bool,
    packing: Fit | None = None,
    large: Mapping[str, int] | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """The keys of a link file that the fits are enough for, with their sources.

    ``by_way`` has the fit of a direction and its term by the byte; ``apart`` says whether each
    direction has a fit of its own.
    """
    figures: dict[str, float] = {}
    sources: dict[str, str] = {}

    def add(key: str, value: float, what: str) -> None:
        figures[key], sources[key] = rounded(value), f"cutedge calibrate: {of}: {what}"

    for way, (one, name) in by_way.items():
        slope = one.value(name)
        if slope is not None and 1 <= round(1 / slope) < 2**63:
            what = "wire" if packing else "wire and packing together"
            add(f"{way}_bandwidth_bytes_per_second", round(1 / slope), f"1 / {slope:.6g}, {what}")
        else:
            warnings.append(
                f"no bandwidth for what is {way}: with this link its seconds stay unknown"
            )
        if large and name in large and (slope := one.value(LARGE + name)):
            add(f"{way}_large_message_bytes", large[name], "where the calls take another line")
            key = f"{way}_large_message_bandwidth_bytes_per_second"
            add(key, round(1 / slope), f"1 / {slope:.6g}, of calls with so much or more")
    for way, (one, _) in by_way.items():
        latency = one.value(LATENCY)
        if latency is not None:
            share = f"of {way}_seconds" if apart else "half of a call's: the log has both in one"
            add(f"{way}_latency_seconds", latency if apart else latency / 2, share)
    for way, (_, name) in by_way.items() if packing else ():
        toll = packing.value(name) if packing else None
        if toll is not None:
            add(f"{way}_serialisation_seconds_per_byte", toll, "serialise_seconds")
    return figures, sources


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a place for a link file before any work. Raises InputError that says why."""
    if out.suffix != ".toml":
        raise InputError(f"--out {out}: a link file's name ends with .toml")
    if out.is_dir():
        raise InputError(f"--out {out} is a directory")
    if os.path.lexists(out) and not force:
        raise InputError(f"--out {out} is there already: --force replaces it")


def write_link(found: Calibration, out: Path) -> None:
    """Write a link file, whole or not at all. Raises CutedgeError when the place cannot be."""
    write_toml(out, link_toml(found))


def link_toml(found: Calibration) -> str:
    """The file of a fitted link."""
    how = "not measured: the log has payload bytes; what framing takes is in the seconds"
    if found.framing:
        how = f"counted at the socket: {found.log}"
    framing = {key: (found.framing.get(key.split("_")[1], 0), how) for key in REQUIRED}
    fitted = {key: (value, found.sources[key]) for key, value in found.figures.items()}
    return toml(f"Fitted to {found.calls} calls of {found.log}", (), framing | fitted)
