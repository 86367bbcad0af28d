"""The points of designs as a table, and as what ``design --json`` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tracer.serde import OF_A_TRACE, column, run_of, write_tables

if TYPE_CHECKING:
    from cutedge._designs import DesignedRun, Designs

_TEXT, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()

DESIGN = pa.schema(
    [
        column(
            "dataflow", _TEXT, "What stays in the cells: outputs (os), weights (ws), inputs (is)."
        ),
        column("rows", _COUNT, "Of an array."),
        column("columns", _COUNT, "Of an array."),
        column("arrays", _COUNT, "How many there are; they share out each product, and the DRAM."),
        column("ifmap_kib", _NUMBER, "An array's buffer for the left operand, in KiB."),
        column("filter_kib", _NUMBER, "Its buffer for the right operand."),
        column("ofmap_kib", _NUMBER, "Its buffer for the result."),
        column("dram_bytes_per_second", _NUMBER, "What the DRAM moves, reads and writes together."),
        column("clock_hertz", _NUMBER, "Cycles a second."),
        column("square_millimetres", _NUMBER, "By the area figures, a proxy (`costmodels.area`)."),
    ]
)
"""What a design is."""

TAKEN = pa.schema(
    [
        column("cycles", _COUNT, "Of all matrix products, without waiting."),
        column("stall_cycles", _COUNT, "Of waiting for the DRAM."),
        column("total_cycles", _COUNT, "Both."),
        column(
            "seconds", _NUMBER, "All cycles by the clock; what is no matrix product is not in it."
        ),
        column("joules", _NUMBER, "By the energy figures."),
        column(
            "energy_at_least",
            pa.bool_(),
            "Whether `joules` leaves out a level that the energy figures do not know.",
        ),
        column("dram_bytes", _NUMBER, "What comes from the DRAM and goes there."),
        column(
            "useful_share",
            _NUMBER,
            "Of all multipliers and all cycles, those that multiply elements of the products.",
        ),
        column(
            "padding_share", _NUMBER, "Likewise, those that multiply what a tile is padded with."
        ),
    ]
)
"""What a run takes on it."""

DESIGNS = pa.schema(
    [
        *OF_A_TRACE,
        column("dtype", _TEXT, "Of all elements."),
        column("overlap", _TEXT, "Of folds: none or double-buffered."),
        *DESIGN,
        *TAKEN,
        column(
            "pareto",
            pa.bool_(),
            "Whether no other design that is small enough is better for this run: no worse in each "
            "figure that is compared, and better in one.",
        ),
    ]
)
"""A row is a design for a run of a model."""


def _design_columns(made: "Designs", rows: Any) -> dict[str, Any]:
    """What some designs are."""
    space = made.space
    flow, row, col, count, kib, bandwidth, clock = (axis[rows] for axis in space.places)
    hertz = np.asarray([float(one) for one in space.clocks])[clock]
    rates = np.asarray(
        [
            [float(space.bytes_per_second(one, each)) for each in space.clocks]
            for one in space.bandwidths
        ]
    )
    sizes = np.asarray([[float(size) for size in one] for one in space.kib])[kib]
    return {
        "dataflow": np.asarray(space.dataflows)[flow],
        "rows": np.asarray(space.rows)[row],
        "columns": np.asarray(space.columns)[col],
        "arrays": np.asarray(space.arrays)[count],
        "ifmap_kib": sizes[:, 0],
        "filter_kib": sizes[:, 1],
        "ofmap_kib": sizes[:, 2],
        "dram_bytes_per_second": rates[bandwidth, clock],
        "clock_hertz": hertz,
        "square_millimetres": made.square_millimetres[rows],
    }


def _taken_columns(made: "Designs", found: "DesignedRun", rows: Any) -> dict[str, Any]:
    """What a run takes on some designs."""
    runs = found.runs
    return {
        "cycles": runs.compute_cycles[rows],
        "stall_cycles": runs.stall_cycles[rows],
        "total_cycles": runs.total_cycles[rows],
        "seconds": runs.seconds[rows],
        "joules": runs.joules[rows],
        "energy_at_least": np.broadcast_to(runs.energy_at_least, np.shape(runs.seconds[rows])),
        "dram_bytes": runs.dram_bytes[rows],
        "useful_share": runs.useful_share[rows],
        "padding_share": runs.padding_share[rows],
    }


def design_table(made: "Designs") -> pa.Table:
    """All points."""
    every = slice(None)
    designs = _design_columns(made, every)
    names = designs.pop("dataflow")
    dataflow = pa.DictionaryArray.from_arrays(
        pa.array(made.space.places[0].astype(np.int8)), pa.array([*made.space.dataflows])
    ).cast(pa.string())
    parts = []
    for found in made.found:
        run = run_of(found.graph, found.trace_id)
        pareto = np.zeros(len(names), bool)
        pareto[found.pareto] = True
        columns: dict[str, Any] = {
            **run,
            "dtype": made.space.dtype,
            "overlap": made.space.overlap,
            "dataflow": dataflow,
            **designs,
            **_taken_columns(made, found, every),
            "pareto": pareto,
        }
        parts.append(
            pa.table(
                [
                    pa.repeat(pa.scalar(value, field.type), len(names))
                    if isinstance(value := columns[field.name], str | int)
                    else pa.array(value, field.type)
                    for field in DESIGNS
                ],
                schema=DESIGNS,
            )
        )
    return pa.concat_tables(parts)


def save(made: "Designs", folder: Path) -> Path:
    """Write ``designs.parquet``; where it is. Raises CutedgeError."""
    advice = "Make the place writable, or free some space."
    figures = {"area": made.area.name, "energy": made.energy_name}
    write_tables(folder, {"designs": made.points}, figures, advice=advice)
    return folder / "designs.parquet"


def design_rows(
    made: "Designs", found: "DesignedRun", numbers: Sequence[int] | Any
) -> list[dict[str, Any]]:
    """Some designs with what a run takes on them, by the names of columns."""
    rows = np.asarray(numbers, np.intp)
    columns = {**_design_columns(made, rows), **_taken_columns(made, found, rows)}
    listed = {name: np.asarray(values).tolist() for name, values in columns.items()}
    return [{name: values[n] for name, values in listed.items()} for n in range(len(rows))]


def device_row(found: "DesignedRun") -> dict[str, Any] | None:
    """The run on the device that designs are set beside."""
    on = found.device
    if on is None or on.device.array is None:
        return None
    array = on.device.array
    return {
        "device": on.device.name,
        "dataflow": array.dataflow,
        "rows": array.rows,
        "columns": array.columns,
        "arrays": array.arrays,
        "clock_hertz": array.clock_hertz,
        "square_millimetres": on.square_millimetres,
        "cycles": on.cycles,
        "stall_cycles": on.stall_cycles,
        "total_cycles": on.total_cycles,
        "seconds": on.seconds,
        "joules": on.joules,
        "useful_share": on.useful_share,
        "padding_share": on.padding_share,
    }


def summary(made: "Designs") -> dict[str, Any]:
    """``design --json``."""
    return {
        "designs": made.space.size,
        "points": made.count,
        "dtype": made.space.dtype,
        "overlap": made.space.overlap,
        "area_figures": made.area.name,
        "energy_figures": made.energy_name,
        "max_square_millimetres": made.max_area,
        "compared": list(made.compared),
        "runs": [_run(made, found) for found in made.found],
    }


def _run(made: "Designs", found: "DesignedRun") -> dict[str, Any]:
    run = run_of(found.graph, found.trace_id)
    faster, sentence = made.limits(found)
    slow, of_device = made.device_limits(found)
    return {
        **run,
        "macs": found.products.macs,
        "best": None if found.best is None else design_rows(made, found, [found.best])[0],
        "device": device_row(found),
        "limit": sentence or None,
        "times_as_fast": {knob: gain for (knob,), gain in faster.items()},
        "device_limit": of_device or None,
        "device_times_as_fast": {knob: gain for (knob,), gain in slow.items()},
        "pareto": design_rows(made, found, found.pareto),
    }
