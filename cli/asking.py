"""The command that asks the tables in SQL."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cli.app import command
from cli.options import Json, no_model


@command('cutedge query "SELECT label, sum(payload_bytes) FROM transfers GROUP BY ALL"')
def query(
    sql: Annotated[
        str, Argument(help="SQL over ops, tensors, edges, placement, transfers, calls and summary.")
    ],
    directory: Annotated[
        Path | None,
        Option("--trace", help="A trace directory; the last when left out.", callback=no_model),
    ] = None,
    every: Annotated[
        bool, Option("--all", help="Over every run in cutedge-out, not one trace alone.")
    ] = False,
    safe: Annotated[
        bool, Option("--safe", help="Reads the tables alone: the SQL reaches no other file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the tables in SQL (DuckDB).

    The SQL runs in a full DuckDB, as you: it can read and write any file that you can. With --safe,
    for SQL that you did not write, the tables are copied into memory and all else is shut off.
    """
    from cli.printing import print_json, print_rows
    from cutedge._sql import run_sql
    from cutedge._workspace import OUT, trace_folder

    columns, rows = run_sql(sql, OUT if every else trace_folder(directory), safe=safe)
    if as_json:
        print_json(
            {"columns": columns, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}
        )
    else:
        print_rows(columns, rows)
