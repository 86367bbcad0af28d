"""Engines: the program that runs a model, and what it makes of a device.

A device is what the hardware can do. An engine says how its ops are carried out (``execution``),
what starting one takes, and what share of the device's peaks its kernels reach. It is a TOML file
that combines with any device: figures are tables with ``value`` and ``source`` under a key that
carries the unit, and shares stand by device, ``any`` for all others.

A kernel of W FLOPs or bytes at a rate of R takes ``W / (ratio * R) + kernel_seconds``: as a share
of the rate, ``ratio * W / (W + half)`` with ``half = kernel_seconds * ratio * R``. So the share of
the peak that a product reaches grows with its size 2*batch*m*n*k, and the share of the bandwidth
with the bytes, half of the most at ``half``.

How launches add up is a matter of the execution:

- ``eager``: the host starts one op after another and runs ahead of the device. What runs without
  waiting takes the greater of all its launches and all its work. Traffic is what the program's own
  ops read and write.
- ``graph``: the same ops, captured once and replayed: a launch before each.
- ``fused``: kernels of several ops (``costmodels.fused``): a launch before each of those.

Copies in strides (``costmodels.fused.strides``), which ``eager`` and ``graph`` carry out one by one,
may have a share of the bandwidth of their own: they move a value at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from costmodels import Execution
from costmodels.described import Figure, check_figure_keys
from costmodels.devices import Device
from tracer.errors import InputError, choose
from tracer.toml_files import check_keys, find_table, shipped_names

ANY = "any"
"""The entry of a share for devices that have none of their own."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How ops are carried out on a device, and what that adds to the device's own figures."""

    name: str
    """What users call it; of a file, its name without .toml. Empty of ``PHYSICAL``."""
    description: str
    """What it is, in a line."""
    execution: Execution = "eager"
    """How ops are started and which of them are one kernel."""
    launch_seconds: Mapping[str, float] = field(default_factory=dict)
    """By execution: what starting an op, or a fused kernel, takes beside its work."""
    step_seconds: float = 0.0
    """What each run takes beside its ops: scheduling, sampling, reading the result."""
    kernel_seconds: float = 0.0
    """What each kernel takes on the device beside its work, to fill it and to drain it."""
    attention_seconds: float = 0.0
    """What an attention takes beside that: its floor, over however few cached tokens."""
    compute_ratio: Mapping[str, float] = field(default_factory=dict)
    """By device: the share of its peaks that a kernel reaches at most; 1 without an entry."""
    bandwidth_ratio: Mapping[str, float] = field(default_factory=dict)
    """By device: the share of its memory bandwidth that a kernel reaches at most; likewise."""
    copy_ratio: Mapping[str, float] = field(default_factory=dict)
    """By device: the same of a copy in strides; ``bandwidth_ratio`` without an entry."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its key (``launch_seconds.eager``)."""

    @property
    def text(self) -> str:
        """What it is called in the name of a machine; empty of the physical bound."""
        if not self.name:
            return "" if self.execution == "eager" else self.execution
        return f"{self.name} {self.execution}" if len(self.launch_seconds) > 1 else self.name

    @property
    def runs_ahead(self) -> bool:
        """Whether launches and work go on at once: a run takes the greater of the two."""
        return self.execution == "eager" and "eager" in self.launch_seconds

    @property
    def depends_on_runs(self) -> bool:
        """Whether what an op takes depends on which others run with it."""
        return self.execution == "fused" or self.runs_ahead

    def launch(self, device: Device) -> float | None:
        """What starting an op takes: of the physical bound, what the device's description says.

        None where that says nothing: seconds then leave it out, and are at least so many.
        """
        return self.launch_seconds[self.execution] if self.name else device.launch_seconds

    def flops_per_second(self, device: Device, dtype: str) -> float | None:
        """What the largest kernels reach; None where the device has no peak for the dtype."""
        peak = device.peak_flops_per_second.get(dtype)
        if peak is None:
            return None
        return peak * device.efficiency_ratio * _entry(self.compute_ratio, device)

    def bytes_per_second(self, device: Device, *, strided: bool = False) -> float | None:
        """What the largest kernels reach; None where the device has no bandwidth.

        ``strided``: of a copy in strides; a fused program has none.
        """
        bandwidth = device.memory_bandwidth_bytes_per_second
        if bandwidth is None:
            return None
        ratio = _entry(self.bandwidth_ratio, device)
        if strided and self.execution != "fused":
            ratio = _entry(self.copy_ratio, device, ratio)
        return bandwidth * device.efficiency_ratio * ratio

    def share(self, rate: float, most: float, work: float) -> float:
        """The share of a ``rate`` that a kernel of so much ``work`` reaches, ``most`` of which
        the largest reach.

        >>> Engine("e", "", kernel_seconds=1e-6).share(1e12, 0.8, 0.8e6)
        0.4
        """
        half = self.kernel_seconds * most * rate
        return most * work / (work + half) if work else 0.0

    def by(self, execution: Execution | None) -> "Engine":
        """The same engine with its ops carried out otherwise. Raises InputError where it has no
        launch time for that."""
        if execution is None or execution == self.execution:
            return self
        if self.name and execution not in self.launch_seconds:
            known = " and ".join(self.launch_seconds)
            raise InputError(
                f"--execution {execution}: {self.name} has launch_seconds for {known} alone; leave "
                "--engine out for the physical bound"
            )
        return replace(self, execution=execution)


PHYSICAL = Engine("", "the physical bound: peaks, bandwidth, and no time to start anything")
"""What holds without an engine: shares of 1, and the device's own launch time where that is known."""


def _entry(by_device: Mapping[str, float], device: Device, default: float = 1.0) -> float:
    return by_device.get(device.name, by_device.get(ANY, default))


_SECONDS, _RATIO = Figure(), Figure(positive=True, most=1)

FIGURES = ("step_seconds", "kernel_seconds", "attention_seconds")
RATIOS = ("compute_ratio", "bandwidth_ratio", "copy_ratio")
LAUNCH = "launch_seconds"
KEYS = ("description", "execution", LAUNCH, *FIGURES, *RATIOS)

_FOLDER = files("costmodels") / "data" / "engines"


def engine_names() -> list[str]:
    """The engines that come with cutedge."""
    return shipped_names(_FOLDER)


def load_engine(name: str) -> Engine:
    """An engine by its name, or a TOML file by its path. Raises InputError naming file and key.

    >>> load_engine("hf-eager").execution
    'eager'
    """
    return _parse(*find_table(name, "engine", _FOLDER))


def _parse(path: Path, table: dict[str, Any]) -> Engine:
    required = ("description", "execution", LAUNCH)
    check_figure_keys(
        table, path, required=required, optional=[key for key in KEYS if key not in required]
    )
    if not (isinstance(table["description"], str) and table["description"].strip()):
        raise InputError(f"{path}: description must be text")
    choose(table["execution"], get_args(Execution), f"{path}: execution")
    sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    for key in FIGURES:
        if key in table:
            values[key], sources[key] = _SECONDS.read(f"{path}: [{key}]", table[key])
    for key in RATIOS:
        if key in table:
            values[key] = _entries(path, table, key, _RATIO, None, sources)
    values[LAUNCH] = _entries(path, table, LAUNCH, _SECONDS, get_args(Execution), sources)
    if table["execution"] not in values[LAUNCH]:
        raise InputError(f"{path}: [{LAUNCH}.{table['execution']}] is missing: it executes so")
    return Engine(path.stem, table["description"], table["execution"], sources=sources, **values)


def _entries(
    path: Path,
    table: Mapping[str, Any],
    key: str,
    figure: Figure,
    known: tuple[str, ...] | None,
    sources: dict[str, str],
) -> dict[str, float]:
    entries = table[key]
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: [{key}]: a table for each is wanted, as [{key}.{ANY}]")
    if known is not None:
        check_keys(entries, f"{path}: [{key}]", optional=known)
    found = {}
    for name, entry in entries.items():
        where = f"{key}.{name}"
        found[name], sources[where] = figure.read(f"{path}: [{where}]", entry)
    return found
