"""What ops take on devices, as Parquet in the trace's folder."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from costmodels.flops import FREE
from costmodels.joules import off_chip_of, op_joules, with_idle
from costmodels.roofline import DeviceTime
from tracer.graph import OpGraph
from tracer.serde import column, make_tables, run_of, trace_metadata, write_tables

COSTS = pa.schema(
    [
        column("op_id", pa.int32(), "The op; joins with `ops`."),
        column("device", pa.string(), "The device that it is costed on."),
        column(
            "cycles",
            pa.int64(),
            "Of a matrix product on an array of multipliers, options included; null elsewhere.",
            null=True,
        ),
        column(
            "seconds",
            pa.float64(),
            "What it takes there; null where the device has no figure for it or its FLOPs are not "
            "known.",
            null=True,
        ),
        column(
            "at_least",
            pa.bool_(),
            "Whether `seconds` leaves out what starting the op takes, which is not known.",
        ),
        column(
            "stall_cycles",
            pa.int64(),
            "Of a matrix product on an array of multipliers with buffers: cycles that it waits for "
            "them, beside `cycles`; null elsewhere.",
            null=True,
        ),
        column(
            "joules",
            pa.float64(),
            "What it takes in energy there, with what the device draws meanwhile whatever it does; null "
            "where the device has no figure for it.",
            null=True,
        ),
        column(
            "energy_at_least",
            pa.bool_(),
            "Whether `joules` leaves out what is not known: buffers, registers, idle power ...",
        ),
        column(
            "bound",
            pa.string(),
            "What the seconds are spent on most: compute, memory or overhead, on a chip compute, sram, "
            "dram or overhead; null for an op without work or without seconds.",
            null=True,
        ),
        column(
            "moved_bytes",
            pa.int64(),
            "Bytes read and written there; of an op in a fused kernel its part of that kernel's.",
        ),
        column(
            "engine",
            pa.string(),
            "What carries the ops out (`vllm`); null for the physical bound.",
            null=True,
        ),
        column("execution", pa.string(), "How it does: eager, graph or fused."),
        column(
            "tiles",
            pa.int64(),
            "Tiles or folds of a matrix product on an array of multipliers; null elsewhere.",
            null=True,
        ),
        column(
            "utilisation",
            pa.float64(),
            "Useful multiply-accumulates over those that the array could do in this time, from 0 to 1; "
            "null elsewhere.",
            null=True,
        ),
    ]
)


def cost_table(graph: OpGraph, trace_id: str, times: Sequence[DeviceTime]) -> pa.Table:
    """What ops take on devices: a row for each op and device."""
    rows = [
        (
            op.id,
            time.device.name,
            at.gemm and at.gemm.cycles,
            at.seconds,
            late,
            at.memory and at.memory.stall_cycles,
            joules.value,
            joules.value is not None and joules.at_least,
            at.bound,
            at.moved_bytes,
            time.engine.name or None,
            time.engine.execution,
            at.gemm and at.gemm.tiles,
            at.gemm and at.gemm.utilisation,
        )
        for time in times
        for shares in [off_chip_of(graph, time)]
        for op, at in zip(graph.ops, time.ops, strict=True)
        for late in [at.seconds is not None and time.lacks_launches and op.kind not in FREE]
        for taken in [op_joules(graph, time, op.id, off_chip=shares)]
        for joules in [with_idle(time.device, taken, at.seconds, late=late)]
    ]
    return make_tables(graph.meta, {"costs": (COSTS, rows)}, run_of(graph, trace_id))["costs"]


def write_costs(graph: OpGraph, trace_id: str, times: Sequence[DeviceTime], folder: Path) -> Path:
    """Write ``costs.parquet`` into ``folder``; where it is. Raises TableError where it cannot."""
    write_tables(
        folder,
        {"costs": cost_table(graph, trace_id, times)},
        trace_metadata(graph.meta, trace_id),
        advice="Make the place writable, or free some space.",
    )
    return folder / "costs.parquet"
