"""A device from measured ops: the peak, the bandwidth and the launch time that fit them best.

The model is the roofline's (``costmodels.roofline``): an op takes
``max(FLOPs / peak, bytes / bandwidth) + launch``. Which of the two bounds an op depends on what is
sought, so the fit is repeated with the bounds of the last one until they stay.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from costmodels.described import rounded, toml, write_toml
from costmodels.flops import FREE
from tracer.errors import InputError
from tracer.graph import OpGraph

Floats = NDArray[np.float64]

_ROUNDS = 50

_STARTS = (0.3, 0.5, 0.7, 0.9)
"""The shares of memory-bound ops that a fit begins with; the best of them is taken."""


@dataclass(frozen=True, slots=True)
class FittedDevice:
    """A device as measured ops show it."""

    ops: int
    """How many it was fitted to."""
    dtypes: tuple[str, ...]
    """Those that the ops compute in; all share the peak."""
    peak_flops_per_second: float
    memory_bandwidth_bytes_per_second: float
    launch_seconds: float
    measured_seconds: float
    """Of all the ops."""
    fitted_seconds: float
    """What the device takes for them by these figures."""


def fit_device(graph: OpGraph, measured: Iterable[Mapping[int, float]]) -> FittedDevice:
    """The device that takes for its ops about what was ``measured`` (op -> seconds, run by run).

    Least squares of the seconds themselves: what takes long counts most, as it does in a run.
    Raises InputError where there is no op that computes, or none that moves.
    """
    rows = [
        (
            graph.ops[op].cost.flops or 0,
            graph.ops[op].cost.read_bytes + graph.ops[op].cost.write_bytes,
            seconds,
        )
        for run in measured
        for op, seconds in sorted(run.items())
        if graph.ops[op].kind not in FREE and graph.ops[op].cost.flops is not None
    ]
    if not rows:
        raise InputError("no op was measured that does any work")
    flops, moved, seconds = np.array(rows, dtype=float).T
    fits = [
        values
        # Noise can make all that is moved look like launching: then there is not one of that.
        for launch in (True, False)
        for share in _STARTS
        for values in _fits(flops, moved, seconds, share, launch)
    ]
    if not fits:
        raise InputError("the measured ops all compute, or all move: a device needs both")
    taken: list[Floats] = [
        np.maximum(flops * per_flop, moved * per_byte) + launch
        for per_flop, per_byte, launch in fits
    ]
    best = min(range(len(fits)), key=lambda n: float(np.square(taken[n] - seconds).sum()))
    values, fitted = fits[best], taken[best]
    dtypes = {str(op.dtype) for op in graph.ops if op.cost.flops and op.kind not in FREE}
    flop, byte, launch = map(float, values)
    return FittedDevice(
        len(rows),
        tuple(sorted(dtypes)),
        rounded(1 / flop),
        rounded(1 / byte),
        rounded(launch),
        float(seconds.sum()),
        float(fitted.sum()),
    )


def _fits(
    flops: Floats, moved: Floats, seconds: Floats, share: float, launch: bool
) -> Iterator[Floats]:
    """Seconds a FLOP, a byte and an op (none without ``launch``), round by round.

    To begin with, ``share`` of the ops are memory bound. What says nothing of FLOPs or bytes is
    left out.
    """
    once = np.full_like(seconds, launch)
    intensity = flops / np.maximum(moved, 1)
    computes = intensity > np.quantile(intensity, share)
    for _ in range(_ROUNDS):
        design = np.column_stack([np.where(computes, flops, 0), np.where(computes, 0, moved), once])
        lengths = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
        values = nnls(design / lengths, seconds)[0] / lengths
        if values[0] and values[1]:
            yield values
        again = flops * values[0] > moved * values[1]
        if (again == computes).all():
            return
        computes = again


def write_device(found: FittedDevice, what: str, out: Path) -> None:
    """Write a device file, whole or not at all. Raises CutedgeError when the place cannot be."""
    source = (
        f"fitted to {found.ops:,} ops of {what}: {found.measured_seconds:.4g} s measured, "
        f"{found.fitted_seconds:.4g} s by these figures"
    )
    figures = {f"peak_flops_per_second.{d}": found.peak_flops_per_second for d in found.dtypes}
    figures["memory_bandwidth_bytes_per_second"] = found.memory_bandwidth_bytes_per_second
    figures["launch_seconds"] = found.launch_seconds
    sourced = {key: (value, source) for key, value in figures.items()}
    write_toml(out, toml(f"What ran {what}, as measured", ["trusted = false"], sourced))
