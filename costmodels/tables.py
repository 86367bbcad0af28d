"""What ops take on devices, as Parquet in the trace's folder."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from costmodels.roofline import DeviceTime
from tracer.graph import OpGraph
from tracer.serde import make_tables, trace_metadata, write_tables

COSTS = pa.schema([
    pa.field("op_id", pa.int32(), nullable=False),
    pa.field("device", pa.string(), nullable=False),
    pa.field("cycles", pa.int64()),
    pa.field("seconds", pa.float64()),
    pa.field("bound", pa.string()),
    pa.field("tiles", pa.int64()),
    pa.field("utilisation", pa.float64()),
])  # fmt: skip


def write_costs(
    graph: OpGraph, trace_id: str, times: Sequence[DeviceTime], folder: Path
) -> Path:  # fmt: skip
    """Write ``costs.parquet``, a row for each op and device, into ``folder``; where it is.

    Raises TableError when it cannot be written.
    """
    rows = [
        (
            op, time.device.name, at.gemm and at.gemm.cycles, at.seconds, at.bound,
            at.gemm and at.gemm.tiles, at.gemm and at.gemm.utilisation,
        )
        for time in times
        for op, at in enumerate(time.ops)
    ]  # fmt: skip
    tables = make_tables(graph.meta, {"costs": (COSTS, rows)})
    write_tables(
        folder, tables, trace_metadata(graph.meta, trace_id),
        advice="Make the place writable, or free some space.",
    )  # fmt: skip
    return folder / "costs.parquet"
