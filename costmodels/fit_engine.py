"""Engines and devices from measurements: the figures under which predictions are least off.

``fit`` takes any prediction; ``fit_profile`` has that of single ops, of a profile: an op takes
``max(FLOPs / peak, bytes / bandwidth) + kernel_seconds`` (``costmodels.roofline.Rates``), its shares
of peak and bandwidth those of an engine on a known device, or rates of a device of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from costmodels import Execution
from costmodels.described import rounded, toml
from costmodels.devices import PEAK, Device
from costmodels.engines import LAUNCH, Engine
from costmodels.flops import PRODUCTS, computed_in
from costmodels.fused import strides
from costmodels.least_squares import Floats, identified
from costmodels.profiles import Profile
from costmodels.roofline import Rates, kernels_of
from tracer.errors import InputError
from tracer.graph import FLOATING, OpGraph
from tracer.toml_files import quoted

Values = Mapping[str, float]
"""Key of a figure (``launch_seconds.eager``) -> its value."""

BANDWIDTH = "memory_bandwidth_bytes_per_second"

_TOTAL = 0.03
"""Parts of the measured sum that the fitted one may be off by."""

_ROBUST = 0.1
"""Relative errors that are much more than this weigh less, as those of the first calls."""


def fit(
    keys: Sequence[str],
    starts: Values,
    off: Callable[[Values], Sequence[float] | Floats],
    *,
    robust: bool = False,
) -> dict[str, float]:
    """The values of ``keys`` under which the relative errors ``off`` are least; shares are 1 at most.

    A search begins at ``starts``, or at a microsecond. ``robust``: large errors weigh less.
    """
    start = [starts.get(key, 1e-6) for key in keys]
    scale = np.array(start)
    most = [1.0 if "ratio" in key else np.inf for key in keys]

    def errors(x: Floats) -> list[float]:
        return list(off(dict(zip(keys, x * scale, strict=True))))

    how: dict[str, Any] = {"loss": "soft_l1", "f_scale": _ROBUST} if robust else {}
    found = least_squares(errors, np.ones(len(keys)), bounds=(0, np.array(most) / scale), **how)
    return dict(zip(keys, map(float, found.x * scale), strict=True))


def told_apart(
    values: Values,
    starts: Values,
    off: Callable[[Values], Sequence[float] | Floats],
    of: str,
    warnings: list[str],
) -> list[str]:
    """The keys of those values that measurements determine; warns of the others.

    A value is not determined where errors do not change with it, or where they change with it as
    with others.
    """
    columns = []
    for key, value in values.items():
        step = 1e-4 * (value or starts.get(key, 1e-6))
        more, less = ({**values, key: max(value + way * step, 0.0)} for way in (1, -1))
        wide = (more[key] - less[key]) / step
        columns.append((np.array(off(more)) - np.array(off(less))) / wide)
    design = np.column_stack(columns)
    short = max(len(values) - len(design), 0)
    design = np.vstack([design, np.zeros((short, len(values)))])  # fewer rows than values
    known = identified(
        design,
        np.ones(len(design)),
        list(values),
        of,
        warnings,
        no_rows="no row is bound by {}: it is not known",
        measure="measure more sizes",
    )
    return [key for key, is_known in zip(values, known, strict=True) if is_known]


def engine_of(name: str, description: str, execution: Execution, values: Values) -> Engine:
    """An engine with figures by key (``launch_seconds.eager``)."""
    engine = Engine(name, description, execution)
    for key, value in values.items():
        figure, _, entry = key.partition(".")
        there = {**getattr(engine, figure), entry: value} if entry else value
        engine = replace(engine, **{figure: there})  # type: ignore[arg-type]  # floats, or by entry
    return engine


def engine_toml(
    description: str, execution: Execution, figures: Mapping[str, tuple[float, str]]
) -> str:
    """The file of an engine: key -> (value, source)."""
    heads = [f"execution = {quoted(execution)}"]
    return toml(description, heads, dict(sorted(figures.items())))


@dataclass(frozen=True, slots=True)
class KernelWork:
    """What kernels do, one after another, in arrays: seconds of thousands in one go."""

    flops: Mapping[str, Floats]
    """By dtype that is computed in: FLOPs of each kernel."""
    moved: Floats
    """Bytes that each reads and writes."""
    is_attention: NDArray[np.bool_]
    """Which are attentions."""
    strided: NDArray[np.bool_]
    """Which are copies in strides."""

    def seconds(self, device: Device, engine: Engine) -> Floats:
        """What each takes, launches left out; what a device has no peak for has no FLOPs."""
        rates = Rates(device, engine)
        computing = np.zeros_like(self.moved)
        for dtype, flops in self.flops.items():
            if dtype in device.peak_flops_per_second:
                computing += rates.compute_seconds(dtype, flops)
        floor, attention = (rates.kernel_seconds(is_attention=what) for what in (False, True))
        plain, copied = (rates.memory_seconds(self.moved, strided=what) for what in (False, True))
        work = np.maximum(computing, np.where(self.strided, copied, plain))
        return np.asarray(work + np.where(self.is_attention, attention, floor))

    def step_seconds(self, device: Device, engine: Engine) -> float:
        """What they take where each has its launch before it, and the step what it has beside."""
        launches = Rates(device, engine).launch_seconds * len(self.moved)
        return float(self.seconds(device, engine).sum()) + launches + engine.step_seconds


def work_of(graph: OpGraph, engine: Engine) -> KernelWork:
    """What the kernels do that an engine starts for a graph."""
    kernels = list(kernels_of(graph, engine))
    flops: dict[str, Floats] = {}
    for number, kernel in enumerate(kernels):
        for op in (graph.ops[n] for n in kernel.ops):
            if op.cost.flops:
                dtype = computed_in(graph, op) or ""
                flops.setdefault(dtype, np.zeros(len(kernels)))[number] += op.cost.flops
    return KernelWork(
        flops,
        np.array([sum(kernel.moved) for kernel in kernels], float),
        np.array([kernel.is_attention for kernel in kernels], bool),
        np.array([strides(graph, graph.ops[kernel.ops[0]]) for kernel in kernels], bool),
    )


@dataclass(frozen=True, slots=True)
class Residual:
    """Something measured, and what the figures say of it."""

    what: str
    """The op with its shapes, or the row of a benchmark."""
    kind: str
    """What is summed together: the op's kind, or ``decode`` and ``prefill``."""
    calls: int
    """How many there were."""
    measured_seconds: float
    """Of all of them."""
    fitted_seconds: float
    """What the figures say of them."""

    @property
    def relative(self) -> float:
        """What is fitted over what was measured, less 1."""
        return self.fitted_seconds / self.measured_seconds - 1


@dataclass(frozen=True, slots=True)
class RateModel:
    """What figures are fitted on: a known device, under whose peaks they are shares, or one that is
    made of them."""

    dtypes: tuple[str, ...]
    """What it computes products in."""
    device: Device | None = None
    """None: rates are fitted, and are a device of their own."""

    @property
    def keys(self) -> list[str]:
        """Of the figures for computing, then for moving."""
        if self.device is not None:
            return [f"compute_ratio.{self.device.name}", f"bandwidth_ratio.{self.device.name}"]
        return [*(f"{PEAK}.{dtype}" for dtype in self.dtypes), BANDWIDTH]

    def at(self, execution: Execution, values: Values) -> tuple[Device, Engine]:
        """(device, engine) with values by key."""
        own = {key: value for key, value in values.items() if not self.is_rate(key)}
        if self.device is not None:
            return self.device, engine_of("measured", "", execution, own)
        peaks = {dtype: values[f"{PEAK}.{dtype}"] for dtype in self.dtypes}
        # What is computed of other dtypes beside the products is no bound.
        peaks = dict.fromkeys(FLOATING, max(peaks.values(), default=1e18)) | peaks
        made = Device(
            "measured", "", False, peaks, memory_bandwidth_bytes_per_second=values[BANDWIDTH]
        )
        return made, engine_of("measured", "", execution, own)

    @staticmethod
    def is_rate(key: str) -> bool:
        """Whether a figure is the device's own."""
        return key == BANDWIDTH or key.startswith(PEAK)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Figures of a machine, and how far off they are."""

    execution: Execution
    engine: Mapping[str, tuple[float, str]]
    """Key -> (value, source) of an engine file; empty where it would lack what it must have."""
    device: Mapping[str, tuple[float, str]]
    """Likewise of a device file."""
    residuals: tuple[Residual, ...]
    """Of all that was fitted, in the order of the file."""
    warnings: tuple[str, ...] = ()
    """What the measurements cannot tell, in sentences."""

    @property
    def measured_seconds(self) -> float:
        """Of all that was fitted."""
        return sum(one.measured_seconds for one in self.residuals)

    @property
    def fitted_seconds(self) -> float:
        """What the figures say of it."""
        return sum(one.fitted_seconds for one in self.residuals)


def sum_is_off(residuals: Sequence[Residual]) -> Iterator[str]:
    """A warning where the fitted sum is over 3% off the measured one: a run is a sum."""
    measured = sum(one.measured_seconds for one in residuals)
    off = sum(one.fitted_seconds for one in residuals) / measured - 1
    if abs(off) > _TOTAL:
        yield f"the fitted sum is {off:+.1%} off the measured one"


def fit_profile(profile: Profile, device: Device | None) -> Fitted:
    """The figures of an eager engine, or of it and a device, from the ops of a profile.

    ``device`` is the one that it ran on, of whose peaks shares are wanted; without it the rates
    themselves are fitted. Every op with its shapes counts alike, by its median call; but where the
    sum is missed so, ops count by their share of the seconds: a run is a sum.
    """
    warnings: list[str] = []
    kinds = [op.kind for op in profile.graph.ops]
    work = work_of(profile.graph, engine_of("", "", "eager", {}))
    seconds = np.array([one.seconds for one in profile.ops])
    dtypes = {
        one.inputs[0].dtype
        for one, kind in zip(profile.ops, kinds, strict=True)
        if kind in PRODUCTS
    }
    if device is not None and (lacking := dtypes - {*device.peak_flops_per_second}):
        raise InputError(
            f"{profile.name} has products in {', '.join(sorted(lacking))}, for which {device.name} "
            "has no peak: is it that device?"
        )
    machine = RateModel(tuple(sorted(dtypes)), device)
    attention = work.is_attention
    floors = ["kernel_seconds", *(["attention_seconds"] if attention.sum() > 1 else [])]
    keys = [*machine.keys, *floors]

    def taken(values: Values) -> Floats:
        return work.seconds(*machine.at("eager", values))

    def off(values: Values) -> Floats:
        return np.asarray(taken(values) / seconds - 1)

    calls = np.array([one.calls for one in profile.ops], float)
    totals = np.array([one.total_seconds for one in profile.ops])

    weights = np.sqrt(np.where(calls > 2, totals, totals.min()))  # else they may be first calls
    weights /= np.sqrt(np.square(weights).mean())

    def off_by_share(values: Values) -> Floats:
        return np.asarray(weights * (taken(values) * calls / totals - 1))

    searches = [
        _starts(machine, work, seconds, *shares) for shares in product((1.05, 0.7), repeat=2)
    ]
    values = _best(keys, searches, off, robust=True)
    if abs(float((taken(values) * calls).sum() / totals.sum()) - 1) > _TOTAL:
        values = _best(keys, [values, *searches], off_by_share, robust=True)
        off = off_by_share
    starts = searches[0]
    known = told_apart(values, starts, off, profile.name, warnings)
    fitted = taken(values)
    relative = np.abs(fitted / seconds - 1)
    residuals = tuple(
        Residual(one.text, str(kind), one.calls, one.total_seconds, float(each) * one.calls)
        for one, kind, each in zip(profile.ops, kinds, fitted, strict=True)
    )
    warnings += sum_is_off(residuals)
    return _of_profile(
        profile,
        machine,
        {key: rounded(values[key]) for key in known},
        residuals,
        relative,
        warnings,
    )


def _best(
    keys: Sequence[str],
    searches: Sequence[Values],
    off: Callable[[Values], Floats],
    *,
    robust: bool = False,
) -> dict[str, float]:
    """The best of the values that several searches end with: which bound an op has may trap one."""
    ends = [fit(keys, starts, off, robust=robust) for starts in searches]

    def left(values: Values) -> float:
        squares = np.square(off(values))
        least = np.sqrt(1 + squares / _ROBUST**2) - 1 if robust else squares
        return float(f"{least.sum():.9g}")

    return min(ends, key=left)


def _starts(
    machine: RateModel, work: KernelWork, seconds: Floats, at_compute: float, at_memory: float
) -> dict[str, float]:
    """Where a search begins: at a share of the most that any op reached."""
    starts = {"kernel_seconds": 0.5 * float(seconds.min()), "attention_seconds": 1e-6}
    if machine.device is not None:
        shares = (at_compute, at_memory)
        return starts | {k: 0.9 * share for k, share in zip(machine.keys, shares, strict=True)}
    for dtype in machine.dtypes:
        starts[f"{PEAK}.{dtype}"] = at_compute * float((work.flops[dtype] / seconds).max())
    return starts | {BANDWIDTH: at_memory * float((work.moved / seconds).max())}


def _of_profile(
    profile: Profile,
    machine: RateModel,
    values: Values,
    residuals: tuple[Residual, ...],
    relative: Floats,
    warnings: list[str],
) -> Fitted:
    half, most = np.quantile(relative, (0.5, 0.9))
    how = (
        f"cutedge calibrate: {profile.name}, {sum(one.calls for one in residuals)} calls of "
        f"{len(residuals)} ops: half are off by {half:.1%} at most, 90% by {most:.1%}"
    )
    engine = {key: (value, how) for key, value in values.items() if not machine.is_rate(key)}
    device = {key: (value, how) for key, value in values.items() if machine.is_rate(key)}
    eager = f"{LAUNCH}.eager"
    if not profile.on_device and engine:
        engine[eager] = 0.0, f"{profile.name}: the processor does the work itself: kernel_seconds"
        if machine.device is None and "kernel_seconds" in values:
            device["launch_seconds"] = values["kernel_seconds"], how
    if profile.host_ops:
        engine[eager] = (
            rounded(profile.host_seconds / profile.host_ops),
            f"cutedge calibrate: {profile.name}: {profile.host_seconds:.6g} s of the host over "
            f"{profile.host_ops} ops that started kernels, with the profiler on",
        )
    elif profile.on_device:
        warnings.append("the host waited in every op: no launch time for an engine")
    if machine.device is None and not (
        BANDWIDTH in device and len(device) > 1 + ("launch_seconds" in device)
    ):
        warnings.append("a device has a peak and a bandwidth: no device file without both")
        device = {}
    if eager not in engine:
        engine = {}
    return Fitted("eager", engine, device, residuals, tuple(warnings))
