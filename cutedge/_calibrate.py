"""Devices, engines and links from what was measured: a log of calls, a profile, a benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.bench import FLOATS, BenchRow, is_bench, read_bench
from costmodels.calibrate import (
    Calibration,
    Log,
    check_out,
    fit,
    fit_copies,
    link_toml,
    read_log,
    write_link,
)
from costmodels.described import rounded, toml, write_toml
from costmodels.devices import Device, load_device
from costmodels.engines import LAUNCH
from costmodels.fit_engine import (
    BANDWIDTH,
    Fitted,
    KernelWork,
    RateModel,
    Residual,
    engine_of,
    engine_toml,
    fit_profile,
    sum_is_off,
    told_apart,
    work_of,
)
from costmodels.fit_engine import fit as fit_figures
from costmodels.profiles import Profile, is_profile, read_events, read_profile
from costmodels.weights import cache_encoding
from cutedge._device_rows import Rows
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.words import counted, covered, duration

Shown = str | tuple[str, Rows]
"""A line, or a table: its heads and rows."""

_FURTHEST = 5


@dataclass(frozen=True, slots=True)
class Written:
    """A description file that a calibration made."""

    kind: str
    """``device``, ``engine`` or ``link``: the option that takes it."""
    file: str
    """Where it is."""
    figures: dict[str, float]
    """Its fitted figures by key."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was made of measurements."""

    files: tuple[Written, ...]
    """What was written."""
    link: Calibration | None = None
    """Of a log of calls, or of the copies of a profile."""
    fitted: Fitted | None = None
    """Of a profile, or of a benchmark."""
    about: str = ""
    """What was measured, in a line."""
    left_out: Mapping[str, float] | None = None
    """What of a profile is not counted: op or kernel -> seconds."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the measurements cannot tell, in sentences."""
        parts = (
            self.fitted.warnings if self.fitted else (),
            self.link.warnings if self.link else (),
        )
        return tuple(warning for part in parts for warning in part)

    @property
    def json(self) -> dict[str, Any]:
        """All of it for machines: of a log of calls what it always was."""
        if self.link is not None and self.left_out is None and self.fitted is None:
            totals = {key: getattr(self.link, key) for key in TOTALS}
            return {"link_file": self.files[0].file, **asdict(self.link), **totals}
        fitted, link = self.fitted, self.link
        residuals = fitted.residuals if fitted else ()
        return {
            "about": self.about,
            "files": [asdict(one) for one in self.files],
            "residuals": [asdict(one) | {"relative": one.relative} for one in residuals],
            "measured_total_seconds": sum(one.measured_seconds for one in residuals),
            "fitted_total_seconds": sum(one.fitted_seconds for one in residuals),
            "left_out_seconds": dict(self.left_out or {}),
            "equations": [asdict(one) for one in (link.equations if link else ())],
            "warnings": list(self.warnings),
        }

    @property
    def shown(self) -> Iterator[Shown]:
        """The same for people, line by line and table by table."""
        yield self.about
        if self.fitted is not None and self.fitted.residuals:
            yield from _fitted_tables(self.fitted)
        if self.link is not None:
            yield from _link_tables(self.link, whole=self.fitted is None)
        yield f"\nwritten to {', '.join(one.file for one in self.files)}"


TOTALS = ("measured_total_seconds", "fitted_total_seconds")


def calibrate(
    measured: Path,
    out: Path | None = None,
    *,
    device: str | None = None,
    models: Sequence[str] = (),
    force: bool = False,
) -> Calibrated:
    """Fit devices, engines and links to measurements, and write them as description files.

    ``measured`` is a CSV of calls or what ``verify`` wrote (a link: the file ``out``), a chrome
    trace of torch's profiler, or the JSON of ``llama-bench`` (``out`` with ``-device``, ``-engine``
    or ``-link`` before its ending, as far as there is enough for each). ``device`` is the known
    device that was measured: then an engine has shares of its peaks; without it a device file has
    the rates. ``models`` are those of a benchmark, in the order in which its file has them.

    Raises InputError for a file that is no such thing or says too little.
    """
    out = out or Path(f"{measured.name.split('.')[0]}.toml")
    known = None if device is None else load_device(device)
    if measured.suffix not in (".json", ".jsonl", ".gz"):
        if device is not None or models:
            raise InputError(f"{measured} is a log of calls: it has no use for --device or --model")
        return _of_calls(measured, out, force=force)
    places = {kind: out.with_name(f"{out.stem}-{kind}.toml") for kind in _KINDS}
    check_out(out, force=True)
    for place in places.values():
        check_out(place, force=force)
    value = read_events(measured)
    if is_profile(value):
        return _of_profile(read_profile(measured, value), known, places)
    if not is_bench(value):
        raise InputError(
            f"{measured} is neither a chrome trace of torch's profiler (an object with "
            "traceEvents) nor what llama-bench -o json writes (a list of rows with n_prompt, "
            "n_gen and avg_ns)"
        )
    rows = read_bench(measured, value)
    fitted = fit_bench(measured.name, rows, models, known)
    device_name = rows[0].device
    about = f"{measured}: {counted(len(rows), 'row')} of llama-bench on {device_name}"
    files = _write(fitted, None, places, f"llama.cpp on {device_name}", measured.name)
    return Calibrated(files, fitted=fitted, about=about)


_KINDS = ("device", "engine", "link")


def _of_calls(measured: Path, out: Path, *, force: bool) -> Calibrated:
    from cutedge.runtime.measured import read_measured

    check_out(out, force=force)
    log = read_measured(measured) if measured.suffix == ".parquet" else (read_log(measured),)
    found = fit(*log)
    write_link(found, out)
    about = f"{measured}: {counted(found.calls, 'call')}"
    return Calibrated((Written("link", str(out), found.figures),), found, about=about)


def _of_profile(profile: Profile, device: Device | None, places: Mapping[str, Path]) -> Calibrated:
    link = None
    if profile.copies:
        link = fit_copies(
            profile.name,
            {
                way: Log(
                    profile.name,
                    copies.events,
                    {way: np.array(copies.sizes, float), "seconds": np.array(copies.seconds)},
                )
                for way, copies in profile.copies.items()
            },
        )
    fitted = fit_profile(profile, device) if profile.ops else None
    counted_seconds = sum(one.total_seconds for one in profile.ops)
    share = covered(counted_seconds / profile.seconds) if profile.seconds else "100%"
    where = "kernels on a device" if profile.on_device else "the processor's own work"
    calls = sum(one.calls for one in profile.ops)
    about = (
        f"{profile.name}: {counted(calls, 'call')} of {counted(len(profile.ops), 'op')} with their "
        f"shapes, {where}: {share} of its {duration(profile.seconds)}"
    )
    if profile.launches:
        each = profile.launch_call_seconds / profile.launches
        about += (
            f"; {counted(profile.launches, 'kernel')} started, {duration(each)} each in the call"
        )
    files = _write(fitted, link, places, f"what ran {profile.name}", profile.name)
    return Calibrated(files, link, fitted, about, profile.left_out)


def _write(
    fitted: Fitted | None,
    link: Calibration | None,
    places: Mapping[str, Path],
    what: str,
    name: str,
) -> tuple[Written, ...]:
    """Write what there is enough for. Raises InputError where that is not one file."""
    texts: dict[str, tuple[str, dict[str, float]]] = {}
    if fitted is not None and fitted.device:
        text = toml(f"{what}, as measured", ["trusted = false"], fitted.device)
        texts["device"] = text, {key: value for key, (value, _) in fitted.device.items()}
    if fitted is not None and fitted.engine:
        text = engine_toml(f"{what}, fitted to {name}", fitted.execution, fitted.engine)
        texts["engine"] = text, {key: value for key, (value, _) in fitted.engine.items()}
    if link is not None and link.figures:
        texts["link"] = link_toml(link), link.figures
    if not texts:
        said = [*(fitted.warnings if fitted else ()), *(link.warnings if link else ())]
        raise InputError(f"{name} determines no figure: {'; '.join(said)}")
    for kind, (text, _) in texts.items():
        write_toml(places[kind], text)
    return tuple(Written(kind, str(places[kind]), each) for kind, (_, each) in texts.items())


# --- a benchmark ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ran:
    """A row with the steps that it is made of."""

    row: BenchRow
    steps: tuple[tuple[int, KernelWork], ...]
    """(how many, the kernels of one)"""

    def seconds(self, machine: RateModel, values: Mapping[str, float]) -> float:
        """What the row takes under figures by key."""
        at = machine.at("fused", values)
        return sum(count * work.step_seconds(*at) for count, work in self.steps)

    @property
    def kernels(self) -> float:
        """Fused kernels in a step, on average."""
        count = sum(number for number, _ in self.steps)
        return sum(number * len(work.moved) for number, work in self.steps) / count


def fit_bench(
    name: str, rows: Sequence[BenchRow], models: Sequence[str], device: Device | None
) -> Fitted:
    """The figures of an engine that runs fused kernels, or of it and a device, from benchmarks.

    A row is predicted as its steps are: ``cutedge cost --execution fused`` of the model at the
    row's sizes. The bandwidth, the peak and the time to launch a kernel are fitted, and where rows
    have models of several depths also what a step takes beside. Raises InputError where the models
    are not named, or are not those that were run.
    """
    warnings: list[str] = []
    ran = list(_programs(rows, models, warnings))
    if not ran:
        raise InputError(f"{name}: no row is left to fit: {'; '.join(warnings)}")
    storages = [one.row.storage for one in ran]
    machine = RateModel(tuple(sorted({one[0] for one in storages if one})), device)
    launch = f"{LAUNCH}.fused"
    keys = [*machine.keys, launch]
    kernels = [one.kernels for one in ran]
    if max(kernels) > 1.1 * min(kernels) and len(ran) > len(keys):
        keys.append("step_seconds")
    else:
        warnings.append(f"what a step takes beside its kernels is in {launch}, if anything is")

    def off(values: Mapping[str, float]) -> list[float]:
        return [one.seconds(machine, values) / one.row.seconds - 1 for one in ran]

    starts = _starts(machine, ran)
    values = fit_figures(keys, starts, off)
    known = told_apart(values, starts, off, name, warnings)
    errors = off(values)
    residuals = tuple(
        Residual(
            one.row.text,
            "decode" if one.row.new and not one.row.prompt else "prefill",
            1,
            one.row.seconds,
            (1 + error) * one.row.seconds,
        )
        for one, error in zip(ran, errors, strict=True)
    )
    warnings += sum_is_off(residuals)
    each = ", ".join(f"{one.what} {one.relative:+.1%}" for one in residuals)
    source = f"cutedge calibrate: {name}: {each}"
    figures = {key: (rounded(values[key]), source) for key in known}
    engine = {key: figure for key, figure in figures.items() if not machine.is_rate(key)}
    rates = {key: figure for key, figure in figures.items() if machine.is_rate(key)}
    if launch not in engine:
        warnings.append("no launch time, which an engine must have: no engine file")
        engine = {}
    if device is None and len(rates) < len(machine.keys):
        warnings.append("a device has a peak and a bandwidth: no device file without both")
        rates = {}
    return Fitted("fused", engine, rates, residuals, tuple(warnings))


_MOST_STEPS = 256
"""Parts of a prompt, each with a graph of its own."""


def _starts(machine: RateModel, ran: Sequence[_Ran]) -> dict[str, float]:
    """Where a search begins: at what the rows themselves reach."""
    if machine.device is not None:
        return dict.fromkeys(machine.keys, 0.8)
    moved, computed = [1.0], [1.0]
    for one in ran:
        sums = [
            (count * sum(map(np.sum, work.flops.values())), count * work.moved.sum())
            for count, work in one.steps
        ]
        computed.append(float(sum(flops for flops, _ in sums)) / one.row.seconds)
        moved.append(float(sum(size for _, size in sums)) / one.row.seconds)
    return dict.fromkeys(machine.keys, 1.1 * max(computed)) | {BANDWIDTH: 1.1 * max(moved)}


def _programs(
    rows: Sequence[BenchRow], models: Sequence[str], warnings: list[str]
) -> Iterator[_Ran]:
    """The rows with their steps; those that no graph speaks of are left out, and said."""
    sizes = list(dict.fromkeys(row.parameters for row in rows))
    if len(models) != len(sizes):
        names = [next(row.model for row in rows if row.parameters == size) for size in sizes]
        raise InputError(
            f"the file has {counted(len(sizes), 'model')} ({', '.join(names)}): name "
            f"{'each' if len(sizes) > 1 else 'it'} with --model, in this order (cutedge models "
            "lists those that are known)"
        )
    by_size = dict(zip(sizes, models, strict=True))
    graphs: dict[Any, OpGraph] = {}
    works: dict[int, KernelWork] = {}
    fused = engine_of("", "", "fused", {})
    for row in rows:
        storage = row.storage
        reason = None
        if storage is None:
            reason = "its weights are in a format that is not known"
        elif row.cache[0] != row.cache[1]:
            reason = "keys and values are cached in two formats"
        elif row.prompt > _MOST_STEPS * row.at_once:
            reason = f"its prompt is read in more than {_MOST_STEPS} steps"
        elif row.host_experts:
            reason = "some of its experts stay with the host"
        if storage is not None and reason is None:
            steps = _steps(row, by_size[row.parameters], *storage, graphs)
            graph = steps[0][1]
            layers = 1 + max((op.layer for op in graph.ops if op.layer is not None), default=-1)
            if 0 <= row.device_layers <= layers:
                reason = f"{row.device_layers} of {layers} layers and the head are on the card"
            else:
                _check_size(row, graph)
                for _, graph in steps:
                    if id(graph) not in works:
                        works[id(graph)] = work_of(graph, fused)
                yield _Ran(row, tuple((count, works[id(graph)]) for count, graph in steps))
        if reason:
            warnings.append(f"{row.text} is left out: {reason}")


def _steps(
    row: BenchRow, model: str, dtype: str, weights: str | None, graphs: dict[Any, OpGraph]
) -> tuple[tuple[int, OpGraph], ...]:
    from cutedge._trace import trace

    kv_dtype = FLOATS.get(row.cache[0], row.cache[0])
    kept = None if kv_dtype == dtype else kv_dtype
    if kept:
        cache_encoding(kept)

    def at(past: int, **sizes: Any) -> OpGraph:
        key = model, dtype, weights, kept, past, tuple(sizes.items())
        if key not in graphs:
            graphs[key] = trace(model, dtype=dtype, past=past, **sizes).stored(weights, kept).graph
        return graphs[key]

    steps = []
    for begin in range(0, row.prompt, row.at_once):
        tokens = min(row.at_once, row.prompt - begin)
        steps.append((1, at(row.past + begin, seq=tokens, cache=True)))
    if row.new:
        past = row.past + row.prompt + row.new // 2
        steps.append((row.new, at(past, phase="decode")))
    return tuple(steps)


def _check_size(row: BenchRow, graph: OpGraph) -> None:
    """Raise InputError where the model has not as many parameters as the one that was run."""
    have = graph.meta.parameters
    if abs(have / row.parameters - 1) > 0.01:
        raise InputError(
            f"--model {graph.meta.model} has {have:,} parameters, and {row.model} {row.parameters:,}"
        )


# --- for people -----------------------------------------------------------------------------------


def _off(measured: float, fitted: float) -> tuple[str, str, str]:
    return duration(measured), duration(fitted), f"{fitted / measured - 1:+.2%}"


def _fitted_tables(fitted: Fitted) -> Iterator[Shown]:
    figures = {**fitted.device, **fitted.engine}
    yield ""
    yield "figure, value>", [(key, f"{value:.6g}") for key, (value, _) in sorted(figures.items())]
    kinds: dict[str, list[Residual]] = {}
    for one in fitted.residuals:
        kinds.setdefault(one.kind, []).append(one)
    yield ""
    yield (
        "kind, calls>, measured>1, fitted>1, off by>",
        [
            (
                kind,
                f"{sum(one.calls for one in some):,}",
                *_off(
                    sum(one.measured_seconds for one in some),
                    sum(one.fitted_seconds for one in some),
                ),
            )
            for kind, some in kinds.items()
        ],
    )
    furthest = sorted(
        fitted.residuals, key=lambda one: -abs(one.fitted_seconds - one.measured_seconds)
    )
    yield (
        "furthest off, calls>2, measured>1, fitted>1, off by>",
        [
            (one.what, f"{one.calls:,}", *_off(one.measured_seconds, one.fitted_seconds))
            for one in furthest[:_FURTHEST]
        ],
    )
    measured, taken, off = _off(fitted.measured_seconds, fitted.fitted_seconds)
    yield f"all: {measured} measured, {taken} fitted ({off})"


def _link_tables(link: Calibration, *, whole: bool) -> Iterator[Shown]:
    for one in link.equations:
        yield ""
        yield one.equation
        yield (
            "term, value>, standard error>1",
            [
                (
                    term.name,
                    "not known" if term.value is None else f"{term.value:.6g}",
                    "" if term.standard_error is None else f"{term.standard_error:.2g}",
                )
                for term in one.terms
            ],
        )
        r2 = "" if one.r_squared is None else f"R^2 {one.r_squared:.6f}; "
        half, most = one.relative_residual_quantiles
        yield f"{r2}half of the calls are off by {half:.2%} at most, 90% by {most:.2%}"
        yield (
            "furthest off, measured>1, fitted>1, off by>",
            [
                (
                    f"{'line' if whole else 'event'} {off.line}",
                    duration(off.measured_seconds),
                    duration(off.fitted_seconds),
                    f"{off.relative:+.2%}",
                )
                for off in one.furthest
            ],
        )
    measured, taken, off = _off(link.measured_total_seconds, link.fitted_total_seconds)
    yield f"all {'calls' if whole else 'copies'}: {measured} measured, {taken} fitted ({off})"
