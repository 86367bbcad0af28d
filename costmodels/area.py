"""A stated proxy for the area of arrays of multipliers with buffers.

``arrays x (rows x columns x a multiplier + KiB of the buffers x a KiB of SRAM + what each array has
beside)``. A multiplier is a multiplication in the dtype and an addition in what products are summed
in. Wires, registers, the interface to the DRAM and all else of a chip are not in it: it compares
designs, and is no floor plan.

Figures come from TOML files (``costmodels/data/area``), each with its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from costmodels.described import Figure, check_figure_keys
from costmodels.energy import ELEMENT_BYTES, accumulator
from tracer.errors import InputError
from tracer.toml_files import check_keys, find_table, shipped_names


@dataclass(frozen=True, slots=True)
class AreaFigures:
    """What parts of a chip take, in square micrometres."""

    name: str
    """What the figures are called; of a file, its name without .toml."""
    sram_square_micrometres_per_kib: float
    """A KiB of a buffer, all of its memory in it."""
    array_square_micrometres: float
    """What each array has beside multipliers and buffers."""
    node_nanometres: float | None = None
    """The process; None where that is not said."""
    multiply_square_micrometres: Mapping[str, float] = field(default_factory=dict)
    """By dtype, what multiplies."""
    add_square_micrometres: Mapping[str, float] = field(default_factory=dict)
    """By dtype, what adds."""
    mac_square_micrometres: Mapping[str, float] = field(default_factory=dict)
    """By dtype, both, where that is known by itself."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its key."""

    @property
    def by_key(self) -> dict[str, float]:
        """Each figure by its key in the file, in the order of ``sources``."""
        found = {}
        for key in self.sources:
            name, _, dtype = key.partition(".")
            value = getattr(self, name)
            found[key] = value[dtype] if dtype else value
        return found

    def mac(self, dtype: str) -> float:
        """What a multiplier with its adder takes. Raises InputError where that is not known.

        >>> load_area("dally-45nm").mac("int8")
        419
        """
        if dtype in self.mac_square_micrometres:
            return self.mac_square_micrometres[dtype]
        multiply = self.multiply_square_micrometres.get(dtype)
        add = self.add_square_micrometres.get(accumulator(dtype))
        if multiply is None or add is None:
            known = {*self.mac_square_micrometres, *self.multiply_square_micrometres}
            raise InputError(
                f"area figures {self.name} have no multiplier for {dtype}; they have "
                f"{', '.join(sorted(known))}"
            )
        return multiply + add

    def square_millimetres(self, dtype: str, cells: Any, kib: Any, arrays: Any = 1) -> Any:
        """The proxy: ``cells`` and ``kib`` are of each of so many ``arrays``; all may be arrays.

        >>> round(load_area("dally-45nm").square_millimetres("int8", 16 * 16, 48), 6)
        0.341516
        """
        each = (
            cells * self.mac(dtype)
            + kib * self.sram_square_micrometres_per_kib
            + self.array_square_micrometres
        )
        return arrays * each / 1e6


_FIGURE = Figure()
_SINGLE = ("sram_square_micrometres_per_kib", "array_square_micrometres")
_BY_DTYPE = tuple(f"{what}_square_micrometres" for what in ("multiply", "add", "mac"))
_FOLDER = files("costmodels") / "data" / "area"


def area_names() -> list[str]:
    """The area figures that come with cutedge."""
    return shipped_names(_FOLDER)


def load_area(name: str) -> AreaFigures:
    """Area figures by their name, or by the path of a TOML file. Raises InputError naming the key.

    >>> load_area("dally-45nm").node_nanometres
    45
    """
    path, table = find_table(name, "area", _FOLDER)
    optional = ("node_nanometres", *_BY_DTYPE)
    check_figure_keys(table, path, required=("description", *_SINGLE), optional=optional)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in (*_SINGLE, "node_nanometres"):
        if key in table:
            values[key], sources[key] = _FIGURE.read(f"{path}: [{key}]", table[key])
    for key in _BY_DTYPE:
        values[key] = {}
        entries = table.get(key, {})
        if not isinstance(entries, dict):
            raise InputError(f"{path}: [{key}]: a table for each dtype is wanted, as [{key}.int8]")
        check_keys(entries, f"{path}: [{key}]", optional=ELEMENT_BYTES)
        for dtype, entry in entries.items():
            at = f"{key}.{dtype}"
            values[key][dtype], sources[at] = _FIGURE.read(f"{path}: [{at}]", entry)
    return AreaFigures(Path(path).stem, sources=sources, **values)
