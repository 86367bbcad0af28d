"""Any table as CSV or JSON."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracer.serde import TableError, read_file, unreadable


def read_any(path: Path) -> pa.Table:
    """A table of any schema. Raises TableError where the file cannot be read."""
    try:
        return read_file(path)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path} {unreadable(error)}. Write it again.") from error


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that a spreadsheet takes for a formula."""


def csv(table: pa.Table, *, escape_formulas: bool = False) -> bytes:
    """A line a row, under a line of names; text is in quotes, null is empty.

    Lists and maps are JSON text, for which pyarrow's own writer has no form. ``escape_formulas``
    puts a ``'`` before text that a spreadsheet would carry out.
    """
    rows = table.to_pylist(maps_as_pydicts="strict")
    lines = [table.column_names, *(row.values() for row in rows)]
    return "".join(
        f"{','.join(_cell(value, escape_formulas) for value in line)}\n" for line in lines
    ).encode()


def _cell(value: Any, escape_formulas: bool) -> str:
    match value:
        case None:
            return ""
        case bool() | int() | float():
            return json.dumps(value)
        case str():
            text = value
        case _:
            text = _json(value)
    if escape_formulas and text.startswith(FORMULA):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"'


def records(table: pa.Table, *, lines: bool) -> bytes:
    """A list of objects, one a line, or ``lines``: an object a line and nothing around it."""
    rows = [_json(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    if lines:
        return "".join(f"{row}\n" for row in rows).encode()
    inside = ",\n".join(rows)
    return (f"[\n{inside}\n]\n" if rows else "[]\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
