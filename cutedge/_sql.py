"""SQL over the tables: DuckDB with every table as a view."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from cutedge._workspace import MAKERS, OUT
from tracer.errors import CutedgeError, InputError
from tracer.files import DamagedError, check_file
from tracer.interrupts import say_at_interrupt

if TYPE_CHECKING:
    import pyarrow as pa


def run_sql(sql: str, folder: Path, *, safe: bool = False) -> tuple[list[str], list[Sequence[Any]]]:
    """Column names, each another, and rows of a query over all tables below ``folder``.

    The tables of several runs come as one view; their run (model, variant, seq, policy, machine
    ...) is in columns. A ``safe`` query reads and writes no file and loads nothing: the tables
    are copied into memory before. Raises InputError for SQL that DuckDB refuses, CutedgeError where
    there are no tables or a file is not as it was written.
    """
    if not os.path.isdir(folder):
        raise CutedgeError(f"no tables at {folder}: there is no such directory. Run trace first.")
    files = {
        name: sorted(path for path in folder.rglob(f"{name}.parquet") if path.is_file())
        for name in MAKERS
    }
    if not any(files.values()):
        raise CutedgeError(f"no tables below {folder}. Run trace first.")
    for name, paths in files.items():  # DuckDB takes a changed bit for a value
        for path in paths:
            _check(path, MAKERS[name])
    with _connected(str(folder), files) as connection:
        for name, paths in files.items():
            if paths:
                kind = "TABLE" if safe else "VIEW"
                connection.execute(f"CREATE {kind} {name} AS SELECT * FROM {_scan(name, paths)}")
        if safe:
            connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        say_at_interrupt("interrupted")  # SQL may write whatever it likes
        result = connection.execute(sql)
        if result is None:
            raise InputError("there is no SQL in the query; try 'SELECT * FROM ops LIMIT 5'")
        return _distinct(column[0] for column in result.description or ()), result.fetchall()


def query(sql: str, folder: str | Path | None = None, *, safe: bool = False) -> "pa.Table":
    """What DuckDB answers over the tables of all runs below a folder; ``cutedge-out`` by default.

    DuckDB may read and write any file that you can; with ``safe`` the tables are copied into memory
    and all else is shut off. Raises InputError for SQL that it refuses.

    >>> import cutedge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = cutedge.trace("edge-10m", seq=64).save(folder)
    ...     cutedge.query("SELECT count(*) AS ops FROM ops", folder).to_pylist()
    [{'ops': 152}]
    """
    import pyarrow as pa

    columns, rows = run_sql(sql, OUT if folder is None else Path(folder), safe=safe)
    return pa.table({name: [row[n] for row in rows] for n, name in enumerate(columns)})


def ask(sql: str, tables: Mapping[str, Any]) -> Any:
    """What DuckDB answers over Arrow tables, by name, as an Arrow table. Raises InputError."""
    with _connected("the tables", tables) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        found = connection.sql(sql)
        if found is None:
            raise InputError("there is no SQL in the query; try 'SELECT * FROM ops LIMIT 5'")
        return found.to_arrow_table()


@contextmanager
def _connected(where: str, tables: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory; what DuckDB refuses is an error of ours."""
    # Else a name that is no table would be looked for among this program's own variables.
    connection = duckdb.connect(config={"python_enable_replacements": False})
    try:
        yield connection
    except duckdb.Error as error:
        said = str(error).partition("\nTraceback")[0].strip().replace("\n\n", "\n")
        asked = re.search(r"Table with name (\w+) does not exist", said)
        name = asked[1].lower() if asked else ""
        if asked and name in MAKERS and not len(tables.get(name, ())):
            how = _how(MAKERS[name])
            raise InputError(f"table {asked[1]} does not exist here: {how}") from error
        raise InputError(said) from error
    except RuntimeError as error:  # DuckDB wants names that are UTF-8
        raise CutedgeError(f"DuckDB cannot read {where}: {error}") from error


def _how(maker: str) -> str:
    """What a user does to have the tables that a command makes."""
    if maker == "sweep":
        return (
            "make one, as in cutedge sweep llama-3.2-1b --seq 64..4096, and ask all that is in "
            "cutedge-out with query --all"
        )
    return f"run {maker} first"


def _scan(table: str, paths: Iterable[Path]) -> str:
    """The SQL that reads files as one table; DuckDB takes a name for a pattern.

    A row says itself what run it is of, wherever its file is. Of a sweep its path says it.
    """
    hive = str(table == "sweep").lower()
    names = ", ".join("'" + escape(str(path)).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{names}], hive_partitioning = {hive}, union_by_name = true)"


def _check(path: Path, maker: str) -> None:
    """Raise CutedgeError when a file cannot be read, or is not as it was written."""
    try:
        check_file(path)
    except DamagedError as error:
        raise CutedgeError(f"{path} is damaged: {error}. Run {maker} again.") from error
    except OSError as error:
        raise CutedgeError(f"{path} cannot be read: {error.strerror or error}") from error


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
