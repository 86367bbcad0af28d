"""The data of a report as files that the page has in it: Parquet, and CSV of the same rows."""

import gzip
import io
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cutedge.report.contents import Report
from cutedge.report.figures import Growth
from cutedge.report.rooflines import Roofline
from cutedge.report.sight import Sight
from partition.split import Split

if TYPE_CHECKING:
    import pyarrow as pa


def page_files(report: Report, splits: Sequence[Split]) -> dict[str, str]:
    """By name of the file what is in it, in base64; CSV is packed by gzip before.

    ``summary``, ``transfers`` and ``calls`` are the tables of all policies, one after another;
    ``seen``, ``growth`` and ``rooflines`` are what those drawings show.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from partition.tables import partition_tables

    made = [partition_tables(one) for one in splits]
    tables = {
        name: pa.concat_tables([one[name] for one in made])
        for name in ("summary", "transfers", "calls")
    }
    for name, rows in _rows(report).items():
        if rows:
            tables[name] = pa.Table.from_pylist(rows)
    found = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=9)
        found[f"{name}.parquet"] = b64encode(sink.getvalue().to_pybytes()).decode()
        found[f"{name}.csv"] = b64encode(gzip.compress(_csv(table), 6, mtime=0)).decode()
    return found


def _csv(table: "pa.Table") -> bytes:
    """Rows as CSV; lists and maps as JSON, as CSV has no such thing."""
    import pyarrow as pa
    import pyarrow.csv as csv

    columns = [
        pa.array([None if v is None else json.dumps(v) for v in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    sink = io.BytesIO()
    csv.write_csv(pa.table(columns, names=table.column_names), sink)
    return sink.getvalue()


def _rows(report: Report) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of what is drawn and is no table elsewhere."""
    growth = report.growth
    return {
        "seen": [
            {
                "policy": sheet.policy,
                "device": device,
                "tensors": row.what,
                "seen": cell.how,
                "detail": cell.text,
            }
            for sheet in report.sheets
            if isinstance(sheet.seen, Sight)
            for row in sheet.seen.rows
            for device, cell in zip(sheet.seen.devices, row.cells, strict=True)
        ],
        "growth": [
            {"policy": policy, growth.variable: size, "total_payload_bytes": value}
            for line in growth.lines
            for policy in line.policies
            for size, value in zip(growth.sizes, line.values, strict=True)
        ]
        if isinstance(growth, Growth)
        else [],
        "rooflines": [
            {
                "policy": sheet.policy,
                "device": device,
                "ops": mark.name,
                "flops_per_byte": mark.intensity,
                "flops_per_second": mark.rate,
                "share": mark.share,
                "bound": mark.bound,
            }
            for sheet in report.sheets
            for device, drawn in zip(report.devices, sheet.rooflines, strict=True)
            if isinstance(drawn, Roofline)
            for mark in drawn.marks
        ],
    }
