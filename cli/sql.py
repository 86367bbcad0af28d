"""SQL over the tables: DuckDB with every table as a view."""

import os
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import duckdb

from tracer.errors import CutedgeError, InputError

MAKERS = {
    **dict.fromkeys(("ops", "tensors", "edges"), "trace"),
    **dict.fromkeys(("placement", "transfers", "calls", "summary"), "partition"),
    "costs": "cost",
    "measured_calls": "verify",
    "sweep": "sweep",
}
"""Every table that may be there, and the command that makes it."""


def run_sql(sql: str, folder: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """Column names, each another, and rows of a query over all tables below ``folder``.

    The tables of several runs come as one view, with the parts of their path (model, seq, policy,
    wire ...) as columns. Raises InputError for SQL that DuckDB refuses, CutedgeError where there
    are no tables or a file is damaged.
    """
    if not os.path.isdir(folder):
        raise CutedgeError(f"no tables at {folder}: there is no such directory. Run trace first.")
    files = {
        name: sorted(path for path in folder.rglob(f"{name}.parquet") if path.is_file())
        for name in MAKERS
    }
    if not any(files.values()):
        raise CutedgeError(f"no tables below {folder}. Run trace first.")
    # Else a name that is no table would be looked for among this program's own variables.
    connection = duckdb.connect(config={"python_enable_replacements": False})
    try:
        for name, paths in files.items():
            if paths:
                connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {_scan(paths)}")
        result = connection.execute(sql)
        if result is None:
            raise InputError("there is no SQL in the query; try 'SELECT * FROM ops LIMIT 5'")
        return _distinct(column[0] for column in result.description or ()), result.fetchall()
    except duckdb.Error as error:
        for name, paths in files.items():
            for path in paths:
                _check(path, MAKERS[name])
        said = str(error).partition("\nTraceback")[0].strip().replace("\n\n", "\n")
        early = [
            f"\nThere is no {name} table yet: run partition first."
            for name, maker in MAKERS.items()
            if maker == "partition" and not files[name] and f"name {name} " in said.lower()
        ]
        raise InputError(said + "".join(early)) from error
    except RuntimeError as error:  # DuckDB wants names that are UTF-8
        raise CutedgeError(f"DuckDB cannot read {folder}: {error}") from error


def _scan(paths: Iterable[Path]) -> str:
    """The SQL that reads files as one table; DuckDB takes a name for a pattern."""
    names = ", ".join("'" + escape(str(path)).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{names}], hive_partitioning = true, union_by_name = true)"


def _check(path: Path, maker: str) -> None:
    """Raise CutedgeError when a file cannot be read to its end."""
    try:
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE whole AS SELECT * FROM {_scan([path])}")
    except duckdb.Error as error:
        why = str(error).strip().splitlines()[0]
        raise CutedgeError(f"{path} is damaged: {why}. Run {maker} again.") from error


def _distinct(names: Iterable[str]) -> list[str]:
    """Names told apart by a number where a join has two of a name: ``name``, ``name_1``."""
    found: dict[str, None] = {}
    for name in names:
        number, unique = 0, name
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique] = None
    return list(found)
