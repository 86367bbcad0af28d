"""SQL over the tables: DuckDB with every table as a view."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from tracer.errors import CutedgeError, InputError

TABLES = ("ops", "tensors", "edges", "placement", "transfers", "calls", "summary", "costs")


def run_sql(sql: str, folder: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """Column names and rows of a query over all tables below ``folder``.

    The tables of several runs come as one view, with the parts of their path (model, seq, policy,
    wire ...) as columns. Raises InputError for SQL that DuckDB refuses, CutedgeError where there
    are no tables.
    """
    if not folder.is_dir():
        raise CutedgeError(f"no tables at {folder}: there is no such directory. Run trace first.")
    connection = duckdb.connect()
    missing = []
    for name in TABLES:
        files = sorted(str(path) for path in folder.rglob(f"{name}.parquet"))
        if not files:
            missing.append(name)
            continue
        quoted = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        connection.execute(
            f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{quoted}], "
            "hive_partitioning = true, union_by_name = true)"
        )
    if len(missing) == len(TABLES):
        raise CutedgeError(f"no tables below {folder}. Run trace first.")
    try:
        result = connection.execute(sql)
        columns = [column[0] for column in result.description or ()]
        return columns, result.fetchall()
    except duckdb.Error as error:
        lost = [name for name in missing if f"name {name} " in str(error)]
        hint = f" There is no {lost[0]} table yet: run partition first." if lost else ""
        raise InputError(f"{str(error).strip()}{hint}") from error
