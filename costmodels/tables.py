"""What ops take on devices, as Parquet in the trace's folder."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from costmodels.roofline import DeviceTime
from tracer.graph import OpGraph
from tracer.serde import make_tables, run_of, trace_metadata, write_tables

COSTS = pa.schema([
    pa.field("op_id", pa.int32(), nullable=False),
    pa.field("device", pa.string(), nullable=False),
    pa.field("cycles", pa.int64()),
    pa.field("seconds", pa.float64()),
    pa.field("bound", pa.string()),
    pa.field("tiles", pa.int64()),
    pa.field("utilisation", pa.float64()),
])  # fmt: skip


def cost_table(graph: OpGraph, trace_id: str, times: Sequence[DeviceTime]) -> pa.Table:
    """What ops take on devices: a row for each op and device."""
    rows = [
        (
            op, time.device.name, at.gemm and at.gemm.cycles, at.seconds, at.bound,
            at.gemm and at.gemm.tiles, at.gemm and at.gemm.utilisation,
        )
        for time in times
        for op, at in enumerate(time.ops)
    ]  # fmt: skip
    return make_tables(graph.meta, {"costs": (COSTS, rows)}, run_of(graph, trace_id))["costs"]


def write_costs(
    graph: OpGraph, trace_id: str, times: Sequence[DeviceTime], folder: Path
) -> Path:  # fmt: skip
    """Write ``costs.parquet`` into ``folder``; where it is. Raises TableError where it cannot."""
    write_tables(
        folder, {"costs": cost_table(graph, trace_id, times)}, trace_metadata(graph.meta, trace_id),
        advice="Make the place writable, or free some space.",
    )  # fmt: skip
    return folder / "costs.parquet"
