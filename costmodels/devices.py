"""Devices: how fast they compute and read, what they hold, whether they are trusted.

A device is a TOML file: ``description``, ``trusted``, and figures, each a table with ``value``
and ``source`` under a key that carries its unit. Peaks are dense and stand by dtype
(``[peak_flops_per_second.bfloat16]``). A device computes by those peaks (then it has a memory
bandwidth too), or it is a chip that counts cycles: an array for matrix products
(``array_dataflow`` and its figures), or units with rates a cycle (``[macs_per_cycle.int8]``,
``[vector_operations_per_cycle.int8]``), or both, with the memories beside them
(``costmodels.chip``). What it takes in energy it says itself, or by the name of a file (``energy``,
see ``costmodels.energy``).
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
from tracer.graph import FLOATING, ITEM_BYTES, Kind
from tracer.toml_files import check_keys, find_table, shipped_names

SYSTOLIC = ("os", "ws", "is")

PEAK_DTYPES = (*FLOATING, "tfloat32", *(name for name in ITEM_BYTES if "int" in name))
"""The dtypes that a device may have a peak for. ``tfloat32`` is how matrix units may compute
products of float32, at less precision; no tensor has it."""


@dataclass(frozen=True, slots=True)
class TilePhases:
    """What the cycles of a fixed tile hold: they add up to ``tile_cycles``."""

    tile_load_cycles: int
    """Bringing both operands in."""
    tile_compute_cycles: int
    """Multiplying."""
    tile_store_cycles: int
    """Taking the result out."""
    tile_wait_cycles: int = 0
    """Starting, and waiting for the end: neither moves nor computes."""


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
    phases: TilePhases | None = None
    """What the cycles of a fixed tile hold; None where that is not known, and for systolic arrays."""

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
class ArrayMemory:
    """The buffers of a systolic array and the DRAM that fills and empties them: each array has such
    buffers, and all arrays have the one DRAM."""

    sram_ifmap_bytes: int
    """Of the left operand's buffer, both halves."""
    sram_filter_bytes: int
    """Likewise of the right operand's."""
    sram_ofmap_bytes: int
    """Likewise of the result's."""
    dram_bytes_per_second: float
    """Reads and writes together."""
    accumulator_bytes: int | None = None
    """What a result takes in its buffer and on its way to the DRAM; as wide as it is when None."""


@dataclass(frozen=True, slots=True)
class Npu:
    """The units of a chip and its memories, beside an array of multipliers or in place of one.

    What computes and what moves go on at once. An operand that does not fit into the SRAM with all
    else that lies there comes from the DRAM (``costmodels.chip``).
    """

    clock_hertz: float
    """Cycles a second, of all its units."""
    macs_per_cycle: Mapping[str, float] = field(default_factory=dict)
    """Multiply-accumulates of matrix products, by dtype; empty where an array computes these."""
    vector_operations_per_cycle: Mapping[str, float] = field(default_factory=dict)
    """Operations of all that is no matrix product, by dtype; one counts as one FLOP."""
    kinds: tuple[str, ...] | None = None
    """The kinds of ops that it runs; any that it has rates for when None."""
    sram_bytes: int | None = None
    """The memory on the chip, for weights and activations; None where it has none, or where its
    size is not known: then all comes from the DRAM."""
    sram_bytes_per_second: float | None = None
    """Reads and writes of it together; None where that is not known."""
    dram_bytes_per_second: float | None = None
    """Of the memory beside the chip, or of what its data comes over; None where it is not known."""
    dma_bytes_per_cycle: float | None = None
    """What the engine between both moves at most; None where the DRAM decides."""
    dma_setup_cycles: int = 0
    """What each of its transfers takes beside; one moves at most half of the SRAM."""

    @property
    def moved_bytes_per_second(self) -> float | None:
        """Of what comes from the DRAM: the slower of the DRAM and the engine; None where neither is
        known."""
        by_engine = self.dma_bytes_per_cycle and self.dma_bytes_per_cycle * self.clock_hertz
        known = [rate for rate in (self.dram_bytes_per_second, by_engine) if rate is not None]
        return min(known, default=None)


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
    """Its array of multipliers for matrix products; None for others."""
    array_memory: ArrayMemory | None = None
    """The buffers of its array; None where they are not known: then the array never waits."""
    npu: Npu | None = None
    """Its units and memories, of a chip that has others than an array; None for others."""
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

    @property
    def is_chip(self) -> bool:
        """Whether it counts cycles, and has no peaks that an engine could reach a share of."""
        return self.array is not None or self.npu is not None

    @property
    def fast_bytes(self) -> int | None:
        """What may lie on it before it pages, or moves from its DRAM; None where that is no matter."""
        return self.npu.sram_bytes if self.npu is not None else self.enclave_bytes

    def runs(self, kind: str) -> bool:
        """Whether it is not said that it runs other kinds of ops alone."""
        return self.npu is None or self.npu.kinds is None or kind in self.npu.kinds

    @property
    def unknown(self) -> tuple[str, ...]:
        """What its seconds leave out since it is not known, its launch time aside."""
        if self.npu is None:
            return ()
        rates = {
            "the SRAM bandwidth": self.npu.sram_bytes_per_second,
            "the DRAM bandwidth": self.npu.moved_bytes_per_second,
        }
        lacking = [f"{what} of {self.name}" for what, rate in rates.items() if rate is None]
        if not self.npu.vector_operations_per_cycle and not {*(self.npu.kinds or ())} <= _PRODUCTS:
            lacking.append(f"the rate of {self.name} for all but products")
        return tuple(lacking)

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

PHASE_FIGURES: Mapping[str, Figure] = {
    "tile_load_cycles": Figure(whole=True),
    "tile_compute_cycles": Figure(whole=True),
    "tile_store_cycles": Figure(whole=True),
    "tile_wait_cycles": Figure(whole=True),
}
"""What the cycles of a fixed tile hold; all but the last go together."""

COUNT_FIGURES: Mapping[str, Figure] = {"array_count": _SIZE}
"""What an array may have beside."""

MEMORY_FIGURES: Mapping[str, Figure] = {
    "sram_ifmap_bytes": _SIZE,
    "sram_filter_bytes": _SIZE,
    "sram_ofmap_bytes": _SIZE,
    "dram_bytes_per_second": _RATE,
    "accumulator_bytes": _SIZE,
}
"""The buffers of a systolic array; all but the last go together."""

NPU_FIGURES: Mapping[str, Figure] = {
    "clock_hertz": _RATE,
    "sram_bytes": _SIZE,
    "sram_bytes_per_second": _RATE,
    "dram_bytes_per_second": _RATE,
    "dma_bytes_per_cycle": _RATE,
    "dma_setup_cycles": Figure(whole=True),
}
"""The fields of an ``Npu`` that are one figure each."""

NPU_RATES = ("macs_per_cycle", "vector_operations_per_cycle")
"""Those that stand by dtype."""

KINDS = "op_kinds"
"""The kinds of ops that a chip runs, a list."""

PEAK = "peak_flops_per_second"
TEXTS = ("description", "array_dataflow", "host_link", "energy")
ALL_FIGURES: Mapping[str, Figure] = {
    **FIGURES,
    **ARRAY_FIGURES,
    **TILE_FIGURES,
    **PHASE_FIGURES,
    **COUNT_FIGURES,
    **MEMORY_FIGURES,
    **NPU_FIGURES,
}
"""Every figure that stands alone under its key."""

KEYS = ("trusted", *TEXTS, PEAK, *NPU_RATES, KINDS, *ALL_FIGURES, *ENERGY_KEYS)


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
    for key, figure in ALL_FIGURES.items():
        if key in table:
            values[key], sources[key] = figure.read(f"{path}: [{key}]", table[key])
    peaks = _by_dtype(path, table, PEAK, sources) if PEAK in table else {}
    energy = _energy(path, table, sources)
    return Device(
        name=path.stem,
        description=table["description"],
        trusted=table["trusted"],
        peak_flops_per_second=peaks,
        array=_array(path, table["array_dataflow"], values) if "array_dataflow" in table else None,
        array_memory=_array_memory(path, table, values),
        npu=_npu(path, table, values, sources),
        host_link=table.get("host_link"),
        energy=energy,
        sources=sources,
        **{key: value for key, value in values.items() if key in FIGURES},
    )


def _required(table: Mapping[str, Any]) -> list[str]:
    """The keys that a file must have, by what is in it."""
    required = ["description", "trusted"]
    npu, buffers = _is_npu(table), [*MEMORY_FIGURES]
    buffers.remove("dram_bytes_per_second")
    tiles = (*TILE_FIGURES, *PHASE_FIGURES)
    of_array = {"array_dataflow", *ARRAY_FIGURES, *tiles, *COUNT_FIGURES, *buffers}
    if npu:
        of_array.remove("clock_hertz")
    array = not of_array.isdisjoint(table)
    if array:
        required += ["array_dataflow", *ARRAY_FIGURES]
    if array and table.get("array_dataflow") not in SYSTOLIC:
        required += TILE_FIGURES
    if any(key in table for key in PHASE_FIGURES):
        required += [*PHASE_FIGURES][:3]
    if any(key in table for key in buffers):
        required += [*buffers[:-1], "dram_bytes_per_second"]
    if npu:
        required += ["clock_hertz", *(() if array else NPU_RATES[:1])]
    if PEAK in table or not (array or npu):
        required += [PEAK, "memory_bandwidth_bytes_per_second"]
    if "enclave_bytes" in table or "paging_bytes_per_second" in table:
        required += ["enclave_bytes", "paging_bytes_per_second"]
    return required


def _is_npu(table: Mapping[str, Any]) -> bool:
    """Whether there are units beside an array, or in place of one."""
    own = (key for key in NPU_FIGURES if key not in (*ARRAY_FIGURES, *MEMORY_FIGURES))
    return any(key in table for key in (*NPU_RATES, KINDS, *own))


def _by_dtype(
    path: Path, table: Mapping[str, Any], name: str, sources: dict[str, str]
) -> dict[str, float]:
    where, entries = f"{path}: [{name}]", table[name]
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{where}: a table for each dtype is wanted, as [{name}.float32]")
    check_keys(entries, where, optional=PEAK_DTYPES)
    rates = {}
    for dtype, entry in entries.items():
        key = f"{name}.{dtype}"
        rates[dtype], sources[key] = _RATE.read(f"{path}: [{key}]", entry)
    return rates


def _array_memory(
    path: Path, table: Mapping[str, Any], values: Mapping[str, Any]
) -> ArrayMemory | None:
    if "sram_ifmap_bytes" not in table:
        return None
    if table["array_dataflow"] not in SYSTOLIC:
        raise InputError(f"{path}: key 'sram_ifmap_bytes' is for systolic arrays, not fixed tiles")
    return ArrayMemory(**{key: values[key] for key in MEMORY_FIGURES if key in values})


def _npu(
    path: Path, table: Mapping[str, Any], values: Mapping[str, Any], sources: dict[str, str]
) -> Npu | None:
    if not _is_npu(table):
        if "dram_bytes_per_second" in table and "sram_ifmap_bytes" not in table:
            raise InputError(
                f"{path}: key 'dram_bytes_per_second' is for a chip with buffers (sram_ifmap_bytes "
                "and so on) or with units of its own (macs_per_cycle)"
            )
        return None
    if PEAK in table:
        raise InputError(f"{path}: key {PEAK!r} is for a device that counts no cycles")
    if "array_dataflow" in table and NPU_RATES[0] in table:
        raise InputError(f"{path}: key {NPU_RATES[0]!r} is for a chip without an array")
    rates = {
        name: _by_dtype(path, table, name, sources) if name in table else {} for name in NPU_RATES
    }
    kinds = table.get(KINDS)
    if kinds is not None:
        known = [kind.value for kind in Kind if kind not in _NO_WORK]
        if not isinstance(kinds, list) or not kinds or not {*map(str, kinds)} <= {*known}:
            raise InputError(f"{path}: {KINDS} must be a list of some of {', '.join(known)}")
        kinds = tuple(kinds)
    figures: dict[str, Any] = {key: values[key] for key in NPU_FIGURES if key in values}
    return Npu(**{**figures, **rates, "kinds": kinds})


_PRODUCTS = {Kind.LINEAR.value, Kind.MATMUL.value, Kind.ATTENTION.value}
_NO_WORK = (Kind.INPUT, Kind.OUTPUT, Kind.CONSTANT, Kind.VIEW)


def _energy(path: Path, table: Mapping[str, Any], sources: dict[str, str]) -> EnergyFigures | None:
    """The figures of the file that the device names, and its own in place of those."""
    named, of_file = load_energy(table["energy"]) if "energy" in table else (EnergyFigures(), {})
    found, own = read_figures(path, table, named)
    if found.node_nanometres != named.node_nanometres:
        there = f"; scaled to {found.node_nanometres:g} nm"
        scaled = {*named.by_key} - {"dram_picojoules_per_byte", "idle_watts", "busy_watts"}
        of_file = {key: text + there * (key in scaled) for key, text in of_file.items()}
    sources |= {**of_file, **own}
    return None if found == EnergyFigures() else found


def _array(path: Path, dataflow: str, values: Mapping[str, Any]) -> Array:
    if dataflow not in get_args(Dataflow):
        known = ", ".join(get_args(Dataflow))
        raise InputError(f"{path}: array_dataflow {dataflow!r} is not one of {known}")
    if dataflow in SYSTOLIC:
        for key in (*TILE_FIGURES, *PHASE_FIGURES):
            if key in values:
                raise InputError(f"{path}: key {key!r} is for array_dataflow fixed, not {dataflow}")
    split = {key: values[key] for key in PHASE_FIGURES if key in values}
    phases = TilePhases(**split) if split else None
    if phases is not None and sum(split.values()) != values["tile_cycles"]:
        raise InputError(
            f"{path}: {' + '.join(PHASE_FIGURES)} is {sum(split.values())}, and tile_cycles is "
            f"{values['tile_cycles']}: they must add up to it"
        )
    return Array(
        dataflow=cast(Dataflow, dataflow),
        rows=values["array_rows_elements"],
        columns=values["array_columns_elements"],
        depth=values.get("array_depth_elements"),
        tile_cycles=values.get("tile_cycles"),
        clock_hertz=values["clock_hertz"],
        arrays=values.get("array_count", 1),
        phases=phases,
    )
