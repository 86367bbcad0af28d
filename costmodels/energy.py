"""Energy: picojoules of an operation by dtype and of a byte by level, and what follows from them.

Figures come from TOML files of their own (``costmodels/data/energy``), which a device names
(``energy = "horowitz-45nm"``) and may override, key by key. What has no figure is None, never 0; a
sum without it says so (``at_least``).

- A multiply-accumulate is a multiplication in the dtype and an addition in what its products are
  summed in: int32 for integers, float32 for floats that are no wider.
- A byte of an SRAM takes what SRAMs of the given sizes take, on straight lines of the logarithms of
  both (a power of the size between two of them). Beyond the first and the last size the nearest
  line goes on. Of one size, a byte takes the square root of the size: word and bit lines are as
  long as the sides of a square.
- Another node than that of the figures: operations, registers and SRAMs take
  ``(node / node of the figures) ** NODE_EXPONENT``; DRAM takes what it took.

All counts may be numbers or arrays of numpy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodels.described import Figure, check_figure_keys
from tracer.errors import InputError
from tracer.graph import ITEM_BYTES
from tracer.toml_files import check_keys, find_table, shipped_names

if TYPE_CHECKING:
    from costmodels.array_memory import MemoryCost

NODE_EXPONENT = 0.5135
"""ln 2.6 / ln(45 / 7): operations and SRAMs take 2.6 times less at 7 nm than at 45 nm, the geometric
mean over the table of Jouppi et al., "Ten Lessons From Three Generations Shaped Google's TPUv4i",
ISCA 2021 (from 1.3 for a small SRAM to 7.1 for a large one; as remembered from the paper)."""


@dataclass(frozen=True, slots=True)
class EnergyFigures:
    """What operations and bytes take. A figure that is not known is None, or lacks in a mapping."""

    multiply_picojoules: Mapping[str, float] = field(default_factory=dict)
    """By dtype, a multiplication."""
    add_picojoules: Mapping[str, float] = field(default_factory=dict)
    """By dtype, an addition."""
    mac_picojoules: Mapping[str, float] = field(default_factory=dict)
    """By dtype, a multiply-accumulate, where that is known by itself; else see ``mac``."""
    register_picojoules_per_byte: float | None = None
    """A byte that a multiplier's own registers give or take."""
    sram_picojoules_per_byte: Mapping[float, float] = field(default_factory=dict)
    """By size of an SRAM in KiB, a byte that is read or written."""
    dram_picojoules_per_byte: float | None = None
    """A byte that comes from the DRAM or goes there."""
    idle_watts: float | None = None
    """What the device draws whatever it does."""
    busy_watts: float | None = None
    """What it draws while it computes, ``idle_watts`` and its memory in it."""
    node_nanometres: float | None = None
    """The process that the figures of operations, registers and SRAMs are of."""

    def mac(self, dtype: str) -> float | None:
        """Picojoules of a multiply-accumulate; None where its parts are not known.

        >>> figures, _ = load_energy("horowitz-45nm")
        >>> round(figures.mac("float32"), 6), round(figures.mac("int8"), 6), figures.mac("float64")
        (4.6, 0.3, None)
        """
        if dtype in self.mac_picojoules:
            return self.mac_picojoules[dtype]
        multiply = self.multiply_picojoules.get(dtype)
        add = self.add_picojoules.get(accumulator(dtype))
        return None if multiply is None or add is None else multiply + add

    @property
    def by_key(self) -> dict[str, float]:
        """All that is known, by its key in a file: ``mac_picojoules.int8``."""
        sizes = {f"{kib:g}_kib": value for kib, value in self.sram_picojoules_per_byte.items()}
        by_name = {**{key: getattr(self, key) for key in BY_DTYPE}, SRAM: sizes}
        several = {f"{key}.{name}": v for key, many in by_name.items() for name, v in many.items()}
        return several | {key: v for key in FIGURES if (v := getattr(self, key)) is not None}

    def at_node(self, nanometres: float) -> "EnergyFigures":
        """The figures at another node: see the top of this file. Raises InputError where it is not
        known what they are of."""
        if self.node_nanometres is None:
            raise InputError("energy figures without node_nanometres cannot be scaled to a node")
        factor = (nanometres / self.node_nanometres) ** NODE_EXPONENT

        def scaled(figure: Any) -> Any:
            if isinstance(figure, Mapping):
                return {key: factor * value for key, value in figure.items()}
            return None if figure is None else factor * figure

        return replace(
            self,
            **{name: scaled(getattr(self, name)) for name in _OF_THE_PROCESS},
            node_nanometres=nanometres,
        )


_OF_THE_PROCESS = (
    "multiply_picojoules",
    "add_picojoules",
    "mac_picojoules",
    "register_picojoules_per_byte",
    "sram_picojoules_per_byte",
)


ELEMENT_BYTES: Mapping[str, float] = {**ITEM_BYTES, "int4": 0.5, "uint4": 0.5, "tfloat32": 4}
"""By dtype: all that figures may be of."""


def element_bytes(dtype: str) -> float:
    """Of an element in a dtype, also in those that no tensor has but a multiplier may.

    >>> element_bytes("int4"), element_bytes("float32")
    (0.5, 4)
    """
    return ELEMENT_BYTES[dtype]


def accumulator(dtype: str) -> str:
    """What products in a dtype are summed in.

    >>> accumulator("int8"), accumulator("bfloat16"), accumulator("float64")
    ('int32', 'float32', 'float64')
    """
    wide = element_bytes(dtype) > 4
    if "int" in dtype:
        return dtype if wide else "int32"
    return dtype if wide else "float32"


def register_bytes(dtype: str) -> float:
    """What a multiply-accumulate reads and writes of the registers beside its multiplier: two
    operands, and a sum that it puts back.

    >>> register_bytes("int8")
    10
    """
    return 2 * element_bytes(dtype) + 2 * element_bytes(accumulator(dtype))


def sram_picojoules_per_byte(figures: EnergyFigures, kib: Any) -> Any:
    """What a byte of an SRAM of so many KiB takes; None where the figures have no SRAM.

    ``kib`` is more than 0, or an array of such: see the top of this file.

    >>> figures, _ = load_energy("horowitz-45nm")
    >>> round(sram_picojoules_per_byte(figures, 8), 6), round(sram_picojoules_per_byte(figures, 2), 6)
    (1.25, 0.625)
    """
    known = sorted(figures.sram_picojoules_per_byte.items())
    if not known:
        return None
    if len(known) == 1:
        ((size, value),) = known
        return value * (kib / size) ** 0.5
    sizes = [log(size) for size, _ in known]
    values = [log(value) for _, value in known]
    slopes = [
        (values[n + 1] - values[n]) / (sizes[n + 1] - sizes[n]) for n in range(len(known) - 1)
    ]
    if isinstance(kib, int | float):
        at = log(kib)
        n = max(sum(size <= at for size in sizes[:-1]) - 1, 0)
        return exp(values[n] + slopes[n] * (at - sizes[n]))
    import numpy as np

    at = np.log(np.asarray(kib, float))
    n = np.maximum(np.searchsorted(sizes[:-1], at, side="right") - 1, 0)
    return np.exp(np.asarray(values)[n] + np.asarray(slopes)[n] * (at - np.asarray(sizes)[n]))


@dataclass(frozen=True, slots=True)
class Picojoules:
    """What something takes, by level; None where a figure for it is not known."""

    mac: Any
    """Of multiply-accumulates."""
    register: Any
    """Of the registers beside the multipliers."""
    sram: Mapping[str, Any]
    """By buffer."""
    dram: Any
    """Of what comes from the DRAM and goes there."""

    @property
    def total(self) -> Any:
        """All that is known."""
        return sum(one for one in self._levels if one is not None)

    @property
    def at_least(self) -> bool:
        """Whether the total leaves out a level that has no figure."""
        return any(one is None for one in self._levels)

    @property
    def _levels(self) -> tuple[Any, ...]:
        return self.mac, self.register, *self.sram.values(), self.dram


def array_picojoules(
    figures: EnergyFigures,
    dtype: str,
    macs: Any,
    sram_bytes: Mapping[str, Any],
    sram_kib: Mapping[str, Any],
    dram_bytes: Any,
) -> Picojoules:
    """What an array of multipliers takes for so many multiply-accumulates and accesses.

    ``sram_bytes`` are read and written of each buffer (None where that is not known), ``sram_kib``
    its size; ``dram_bytes`` are read and written of the DRAM. Each multiply-accumulate takes two
    operands from registers beside its multiplier, and a sum that it puts back there, as wide as what
    products are summed in (``register_bytes``).

    >>> figures, _ = load_energy("horowitz-45nm")
    >>> found = array_picojoules(figures, "int8", 1000, {"filter": 80}, {"filter": 8}, 80)
    >>> round(found.mac, 6), round(found.sram["filter"], 6), found.dram, found.register
    (300.0, 100.0, 13000.0, None)
    """
    each, register = figures.mac(dtype), figures.register_picojoules_per_byte
    sram = {}
    for buffer, accessed in sram_bytes.items():
        a_byte = None
        if accessed is not None:
            a_byte = sram_picojoules_per_byte(figures, sram_kib[buffer])
        sram[buffer] = None if a_byte is None else accessed * a_byte
    dram = figures.dram_picojoules_per_byte
    return Picojoules(
        None if each is None else macs * each,
        None if register is None else macs * register_bytes(dtype) * register,
        sram,
        None if dram is None else dram_bytes * dram,
    )


def product_picojoules(
    figures: EnergyFigures,
    dtype: str,
    macs: Any,
    memory: "MemoryCost",
    sram_kib: Mapping[str, Any],
    word_bytes: float,
) -> Picojoules:
    """What a matrix product takes on an array with buffers, by what ``memory_cost`` counts.

    A buffer is accessed by the array, and once more for each word that comes from the DRAM into it
    or goes from it to the DRAM. ``sram_kib`` is by operand, as the counts are.
    """
    accessed: dict[str, Any] = {}
    dram: Any = 0
    for one in memory.sram_reads:
        outside = memory.dram_reads[one] + memory.dram_writes[one]
        accessed[one] = word_bytes * (memory.sram_reads[one] + memory.sram_writes[one] + outside)
        dram = dram + word_bytes * outside
    return array_picojoules(figures, dtype, macs, accessed, sram_kib, dram)


# --- files ----------------------------------------------------------------------------------------

_POSITIVE = Figure(positive=True)
FIGURES: Mapping[str, Figure] = {
    "register_picojoules_per_byte": _POSITIVE,
    "dram_picojoules_per_byte": _POSITIVE,
    "idle_watts": _POSITIVE,
    "busy_watts": _POSITIVE,
    "node_nanometres": _POSITIVE,
}
"""The figures that are one number."""

BY_DTYPE = ("multiply_picojoules", "add_picojoules", "mac_picojoules")
"""The figures that stand by dtype, as ``[mac_picojoules.int8]``."""

SRAM = "sram_picojoules_per_byte"
"""The figure that stands by the size of the SRAM, as ``[sram_picojoules_per_byte.8_kib]``."""

KEYS = (*BY_DTYPE, SRAM, *FIGURES)

_FOLDER = files("costmodels") / "data" / "energy"


def energy_names() -> list[str]:
    """The energy figures that come with cutedge."""
    return shipped_names(_FOLDER)


def load_energy(name: str) -> tuple[EnergyFigures, Mapping[str, str]]:
    """(figures, the source of each by its key) by a name, or by the path of a TOML file.

    Raises InputError naming file and key.

    >>> figures, sources = load_energy("horowitz-45nm")
    >>> figures.node_nanometres, figures.dram_picojoules_per_byte
    (45, 162.5)
    """
    path, table = find_table(name, "energy", _FOLDER)
    check_figure_keys(table, path, required=("description",), optional=KEYS)
    if not isinstance(table["description"], str):
        raise InputError(f"{path}: description must be text")
    return read_figures(path, table)


def read_figures(
    path: Path, table: Mapping[str, Any], given: EnergyFigures = EnergyFigures()
) -> tuple[EnergyFigures, dict[str, str]]:
    """(figures, their sources by key) of the keys of a table that are of energy.

    What the table does not say is as ``given``, at the node that the table says.
    """
    said: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, figure in FIGURES.items():
        if key in table:
            said[key], sources[key] = figure.read(f"{path}: [{key}]", table[key])
    if given.node_nanometres is not None and "node_nanometres" in said:
        given = given.at_node(said["node_nanometres"])
    for key in (*BY_DTYPE, SRAM):
        if key not in table:
            continue
        where, entries = f"{path}: [{key}", table[key]
        wanted = "8_kib" if key == SRAM else "float32"
        if not isinstance(entries, dict) or not entries:
            raise InputError(f"{where}]: a table for each is wanted, as [{key}.{wanted}]")
        if key != SRAM:
            check_keys(entries, f"{where}]", optional=ELEMENT_BYTES)
        values = dict(getattr(given, key))
        for name, entry in entries.items():
            at = _kib(f"{where}]", name) if key == SRAM else name
            values[at], sources[f"{key}.{name}"] = _POSITIVE.read(f"{where}.{name}]", entry)
        said[key] = values
    return replace(given, **said), sources


def _kib(where: str, name: str) -> float:
    """``8_kib`` or ``0.5_kib`` as a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)_kib", name)
    if match is None or not (size := float(match[1])):
        raise InputError(f"{where}: key {name!r} is no size of an SRAM: write 8_kib")
    return size
