"""Any table as CSV or JSON."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from tracer.serde import TableError


def read_any(path: Path) -> pa.Table:
    """A table of any schema. Raises TableError where the file cannot be read."""
    try:
        with path.open("rb") as source:  # a name would be tried as a URI first
            return pq.ParquetFile(source).read()
    except (OSError, pa.ArrowException) as error:
        said = str(error).splitlines()[0]
        raise TableError(f"{path} cannot be read: {said}. Write it again.") from error


def csv(table: pa.Table) -> bytes:
    """A line a row, under a line of names; null is empty, lists and maps are JSON text."""
    columns = [
        pa.array([None if value is None else _json(value) for value in column.to_pylist(
            maps_as_pydicts="strict")], pa.string())
        if pa.types.is_nested(column.type) else column
        for column in table.columns
    ]  # fmt: skip
    sink = io.BytesIO()
    pv.write_csv(pa.Table.from_arrays(columns, table.column_names), sink)
    return sink.getvalue()


def records(table: pa.Table, *, lines: bool) -> bytes:
    """A list of objects, one a line, or ``lines``: an object a line and nothing around it."""
    rows = [_json(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    if lines:
        return "".join(f"{row}\n" for row in rows).encode()
    inside = ",\n".join(rows)
    return (f"[\n{inside}\n]\n" if rows else "[]\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
