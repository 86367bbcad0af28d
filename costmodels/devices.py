"""Devices: how fast they compute and read, what they hold, whether they are trusted.

A device is a TOML file: ``description``, ``trusted``, and figures, each a table with ``value``
and ``source`` under a key that carries its unit. Peaks are dense and stand by dtype
(``[peak_flops_per_second.bfloat16]``). A device computes by those peaks (then it has a memory
bandwidth too), or it is an array for matrix products (``array_dataflow`` and its figures). What it
takes in energy it says itself, or by the name of a file (``energy``, see ``costmodels.energy``).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

from costmodels import Dataflow
from costmodels.described import Figure, check_figure_keys
from costmodels.energy import KEYS as ENERGY_KEYS
from costmodels.energy import EnergyFigures, load_energy, read_figures
from tracer.errors import InputError, alike, near
from tracer.graph import FLOATING, ITEM_BYTES
from tracer.toml_files import check_keys, find_table, shipped_names

SYSTOLIC = ("os", "ws", "is")

PEAK_DTYPES = (*FLOATING, "tfloat32", *(name for name in ITEM_BYTES if "int" in name))
"""The dtypes that a device may have a peak for. ``tfloat32`` is how matrix units may compute
products of float32, at less precision; no tensor has it."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array of multipliers that computes matrix products and nothing else."""

    dataflow: Dataflow
    """``fixed`` tiles, or what a systolic array keeps in place: outputs (``os``), weights (``ws``)
    or inputs (``is``)."""
    rows: int
    """Of the array; of fixed tiles M, the rows of the first operand."""
    columns: int
    """Of the array; of fixed tiles N, the columns of the second operand."""
    depth: int | None
    """K of a fixed tile, which both operands share; None for systolic arrays."""
    tile_cycles: int | None
    """What a fixed tile takes; None for systolic arrays."""
    clock_hertz: float
    """Cycles a second."""
    arrays: int = 1
    """How many such arrays there are side by side: they share out each product
    (``costmodels.arrays.split_over``)."""

    def __post_init__(self) -> None:
        """Raise InputError where depth and tile_cycles do not go with the dataflow."""
        fixed = self.depth is not None and self.tile_cycles is not None
        systolic = self.depth is None and self.tile_cycles is None
        if not (fixed if self.dataflow == "fixed" else systolic):
            raise InputError(
                "the depth and the cycles of a tile are known of fixed tiles, and only of them, "
                f"not of dataflow {self.dataflow}"
            )

    @property
    def size(self) -> str:
        """Its sides as text; of fixed tiles M x K x N."""
        sides = (self.rows, self.depth, self.columns)
        return " x ".join(str(side) for side in sides if side is not None)

    def __str__(self) -> str:
        clock = f"{self.clock_hertz / 1e6:g} MHz"
        clock += f", {self.arrays} of them" if self.arrays > 1 else ""
        if self.tile_cycles is not None:
            return f"tiles of M x K x N = {self.size}, {self.tile_cycles} cycles each, {clock}"
        kept = {"os": "output", "ws": "weight", "is": "input"}[self.dataflow]
        return f"{kept}-stationary systolic array of {self.size} cells, {clock}"

    @property
    def peak_flops_per_second(self) -> float:
        """What a product that leaves no cell idle would reach."""
        macs_per_cycle = self.rows * self.columns * self.arrays
        if self.depth is None or self.tile_cycles is None:
            return 2 * macs_per_cycle * self.clock_hertz
        return 2 * macs_per_cycle * self.depth / self.tile_cycles * self.clock_hertz


@dataclass(frozen=True, slots=True)
class Device:
    """What a device can do at best, and what it adds to each op."""

    name: str
    """What users call it; of a file, its name without .toml."""
    description: str
    """What it is, in a line."""
    trusted: bool
    """Whether it keeps what it computes from the owner of the machine."""
    peak_flops_per_second: Mapping[str, float]
    """Dense peak by dtype; empty for arrays. An op of any other dtype has no cost here."""
    memory_bandwidth_bytes_per_second: float | None = None
    """Bytes a second to and from its memory; None for arrays."""
    memory_bytes: int | None = None
    """What its memory holds; None where that is not known."""
    on_chip_bytes: int | None = None
    """The last cache that all of the device shares."""
    launch_seconds: float | None = None
    """What starting an op takes beside its work; None where that is not known."""
    efficiency_ratio: float = 1.0
    """The share of its peaks and bandwidth that the device reaches, at most 1."""
    enclave_bytes: int | None = None
    """Secure memory that needs no paging."""
    paging_bytes_per_second: float | None = None
    """At what rate data beyond ``enclave_bytes`` is paged in, with as much paged out for it."""
    array: Array | None = None
    """Its array of multipliers, of one that is nothing else; None for others."""
    host_link: str | None = None
    """Name of the link (``costmodels.links``) to its host."""
    energy: EnergyFigures | None = None
    """What its operations and its memory take, and what it draws; None where nothing is known."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its key (``peak_flops_per_second.float32``)."""

    @property
    def summary(self) -> dict[str, Any]:
        """All fields by name, and what follows from them."""
        array, figures = self.array, asdict(self)
        if array is not None:
            figures["array"]["peak_flops_per_second"] = array.peak_flops_per_second
        ridges = {dtype: self.ridge(dtype) for dtype in self.peak_flops_per_second}
        return {"device": figures.pop("name"), **figures, "ridge_flops_per_byte": ridges}

    def ridge(self, dtype: str) -> float:
        """FLOPs a byte of memory traffic above which compute is the bound, not bandwidth.

        Raises InputError where the device has no peak for the dtype or no bandwidth.
        """
        if dtype not in self.peak_flops_per_second:
            known = ", ".join(self.peak_flops_per_second) or "none"
            raise InputError(f"{self.name} has no peak for {dtype}; it has {known}")
        if self.memory_bandwidth_bytes_per_second is None:
            raise InputError(f"{self.name} has no memory_bandwidth_bytes_per_second")
        return self.peak_flops_per_second[dtype] / self.memory_bandwidth_bytes_per_second


_RATE, _SIZE = Figure(positive=True), Figure(whole=True, positive=True)

FIGURES: Mapping[str, Figure] = {
    "memory_bandwidth_bytes_per_second": _RATE,
    "memory_bytes": _SIZE,
    "on_chip_bytes": _SIZE,
    "launch_seconds": Figure(),
    "efficiency_ratio": Figure(positive=True, most=1),
    "enclave_bytes": _SIZE,
    "paging_bytes_per_second": _RATE,
}
"""The figures that are fields of a Device under the same name."""

ARRAY_FIGURES: Mapping[str, Figure] = {
    "array_rows_elements": _SIZE,
    "array_columns_elements": _SIZE,
    "clock_hertz": _RATE,
}
"""What every array has."""

TILE_FIGURES: Mapping[str, Figure] = {"array_depth_elements": _SIZE, "tile_cycles": _SIZE}
"""What an array of fixed tiles has beside."""

COUNT_FIGURES: Mapping[str, Figure] = {"array_count": _SIZE}
"""What an array may have beside."""

PEAK = "peak_flops_per_second"
TEXTS = ("description", "array_dataflow", "host_link", "energy")
KEYS = (
    "trusted",
    *TEXTS,
    PEAK,
    *FIGURES,
    *ARRAY_FIGURES,
    *TILE_FIGURES,
    *COUNT_FIGURES,
    *ENERGY_KEYS,
)


_FOLDER = files("costmodels") / "data" / "devices"


def device_names() -> list[str]:
    """The devices that come with cutedge."""
    return shipped_names(_FOLDER)


def load_device(name: str) -> Device:
    """A device by its name, or a TOML file by its path. Raises InputError naming file and key.

    Case, hyphens, spaces and underscores of a name are no matter.

    >>> load_device("RTX 4090").name
    'rtx-4090'
    """
    return _parse(*find_table(name, "device", _FOLDER))


def described(name: str) -> Device | None:
    """The device that a user means by a name, None where it is one of the user's own (``gpu``).

    Raises InputError for a name that is near to a known one: without figures nothing would be
    known of its seconds, and no word would tell why.

    >>> described("rtx4090").name, described("gpu"), described("left")
    ('rtx-4090', None, None)
    """
    known = device_names()
    if name.endswith(".toml") or alike(name, known):
        return load_device(name)
    if re.sub(r"[-_\s]?[\da-z]?$", "", name.lower()) in _ROLES or name.lower() in _ROLES:
        return None
    parts = {part for part in re.split(r"[-_\s]", name.lower()) if re.search(r"..\d|\d..", part)}
    akin = [one for one in known if parts & {*one.split("-")}]
    spelt = near(name, known, cutoff=0.7 if re.search(r"\d", name) else 0.8)
    if found := list(dict.fromkeys([*akin, *spelt])):
        raise InputError(
            f"device {name!r} is not known. Did you mean {', '.join(found[:3])}? (cutedge devices "
            "lists those that are known; one of your own has figures in a .toml file, or a name "
            "less near, such as gpu, and no seconds)"
        )
    return None


_ROLES = ("tee", "host", "home", "cpu", "gpu", "npu", "tpu", "chip", "accel", "accelerator")
"""What a user may call a device whatever is known, also with a number or a letter behind."""


def _parse(path: Path, table: dict[str, Any]) -> Device:
    required = _required(table)
    optional = [key for key in KEYS if key not in required]
    check_figure_keys(table, path, required=required, optional=optional)
    for key in TEXTS:
        if key in table and not (isinstance(table[key], str) and table[key].strip()):
            raise InputError(f"{path}: {key} must be text")
    if not isinstance(table["trusted"], bool):
        raise InputError(f"{path}: trusted must be true or false, not {table['trusted']!r}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, figure in {**FIGURES, **ARRAY_FIGURES, **TILE_FIGURES, **COUNT_FIGURES}.items():
        if key in table:
            values[key], sources[key] = figure.read(f"{path}: [{key}]", table[key])
    peaks = _peaks(path, table, sources) if PEAK in table else {}
    energy = _energy(path, table, sources)
    return Device(
        name=path.stem,
        description=table["description"],
        trusted=table["trusted"],
        peak_flops_per_second=peaks,
        array=_array(path, table["array_dataflow"], values) if "array_dataflow" in table else None,
        host_link=table.get("host_link"),
        energy=energy,
        sources=sources,
        **{key: value for key, value in values.items() if key in FIGURES},
    )


def _required(table: Mapping[str, Any]) -> list[str]:
    """The keys that a file must have, by what is in it."""
    required = ["description", "trusted"]
    array = any(
        key in table for key in ("array_dataflow", *ARRAY_FIGURES, *TILE_FIGURES, *COUNT_FIGURES)
    )
    if array:
        required += ["array_dataflow", *ARRAY_FIGURES]
    if array and table.get("array_dataflow") not in SYSTOLIC:
        required += TILE_FIGURES
    if PEAK in table or not array:
        required += [PEAK, "memory_bandwidth_bytes_per_second"]
    if "enclave_bytes" in table or "paging_bytes_per_second" in table:
        required += ["enclave_bytes", "paging_bytes_per_second"]
    return required


def _peaks(path: Path, table: Mapping[str, Any], sources: dict[str, str]) -> dict[str, float]:
    where, entries = f"{path}: [{PEAK}]", table[PEAK]
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{where}: a table for each dtype is wanted, as [{PEAK}.float32]")
    check_keys(entries, where, optional=PEAK_DTYPES)
    peaks = {}
    for dtype, entry in entries.items():
        key = f"{PEAK}.{dtype}"
        peaks[dtype], sources[key] = _RATE.read(f"{path}: [{key}]", entry)
    return peaks


def _energy(path: Path, table: Mapping[str, Any], sources: dict[str, str]) -> EnergyFigures | None:
    """The figures of the file that the device names, and its own in place of those."""
    named, of_file = load_energy(table["energy"]) if "energy" in table else (EnergyFigures(), {})
    found, own = read_figures(path, table, named)
    sources |= {**of_file, **own}
    return None if found == EnergyFigures() else found


def _array(path: Path, dataflow: str, values: Mapping[str, Any]) -> Array:
    if dataflow not in get_args(Dataflow):
        known = ", ".join(get_args(Dataflow))
        raise InputError(f"{path}: array_dataflow {dataflow!r} is not one of {known}")
    if dataflow in SYSTOLIC:
        for key in TILE_FIGURES:
            if key in values:
                raise InputError(f"{path}: key {key!r} is for array_dataflow fixed, not {dataflow}")
    return Array(
        dataflow=cast(Dataflow, dataflow),
        rows=values["array_rows_elements"],
        columns=values["array_columns_elements"],
        depth=values.get("array_depth_elements"),
        tile_cycles=values.get("tile_cycles"),
        clock_hertz=values["clock_hertz"],
        arrays=values.get("array_count", 1),
    )
