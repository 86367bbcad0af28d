"""Tables that somebody made: a reader says what is wrong, or takes them; it never falls over.

Their manifest agrees with them: a hash tells of damage, not of who wrote a file. Seeds are fixed.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inprocess import invoke, prepare
from tracer.files import write_files

SEED = 15


SCHEDULED = ["--machine", "tee-tdx+rtx-4090@pcie4-x16", "--schedule", "overlap"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("fuzz")
    prepare(
        here,
        ["trace", "edge-10m", "--seq", "8", "--out", "t"],
        ["partition", "t", "--policy", "offload-linear", *SCHEDULED],
    )
    return here


def other(value: Any, kind: pa.DataType, draw: random.Random) -> Any:
    """Another value of the same column."""
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_integer(kind):
        most = 2 ** (kind.bit_width - 1) - 1
        return draw.choice([0, 1, -1, min(10**5, most), most, min((value or 0) + 1, most)])
    if pa.types.is_floating(kind):
        return draw.choice([float("nan"), float("inf"), -1.0, 0.0])
    if pa.types.is_string(kind):
        return draw.choice(["", "x", "\x1b[31m", "tee", "input", "layer.99", "1/0", "batch*"])
    if pa.types.is_list(kind):
        return draw.choice([[], (value or [])[:-1], [*(value or []), *(value or [])]])
    return []


def change_tables(count: int, made: Path, here: Path) -> int:
    """Read ``count`` sets of tables with a changed cell or column; how many were refused."""
    draw = random.Random(f"{SEED} tables")
    tables = sorted(made.rglob("*.parquet"))
    refused = 0
    for number in range(count):
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(made, here)
        path = here / draw.choice(tables).relative_to(made)
        table = pq.ParquetFile(path).read()
        column = draw.randrange(table.num_columns)
        field = table.schema.field(column)
        values = table.column(column).to_pylist()
        what = f"case {number}: {path.name}.{field.name}"
        metadata = dict(table.schema.metadata)
        if draw.random() < 0.15:
            changed = table.remove_column(column)
        elif draw.random() < 0.15:
            changed, key = table, draw.choice(sorted(metadata.keys() - {b"ARROW:schema"}))
            metadata[key] = draw.choice([b"", b"x", b"\xff", b"-1", b"{}", b"null", b"[" * 9999])
            what = f"case {number}: {path.name}, metadata {key!r} = {metadata[key][:9]!r}"
        else:
            row = draw.randrange(len(values))
            values[row] = None if draw.random() < 0.2 else other(values[row], field.type, draw)
            what += f"[{row}] = {values[row]!r}"
            array = pa.array(values, field.type)
            changed = table.set_column(column, field.with_nullable(True), array)
            if array.null_count == 0:
                changed = changed.cast(table.schema)
        sink = pa.BufferOutputStream()
        pq.write_table(changed.replace_schema_metadata(metadata), sink)
        write_files(path.parent, {path.name: sink.getvalue().to_pybytes()})
        commands = [
            ["cutedge", "export", "dot", here / "t", "--out", here / "o"],
            ["partition", here / "t", "--policy", "fuse-attention"],
        ]
        if path.name in ("schedule.parquet", "calls.parquet", "transfers.parquet"):
            commands = [["cutedge", "export", "perfetto", here / "t", "--out", here / "o"]]
        for words in commands:
            done = invoke(*words)
            assert "Traceback" not in done.stderr, f"{what}\n{done.stderr}"
            assert done.returncode in (0, 1, 2), what
            assert "\x1b" not in done.stdout + done.stderr, what
            refused += done.returncode != 0
    return refused


def test_tables_with_another_value_are_refused_or_read(made, tmp_path):
    assert change_tables(12, made, tmp_path / "here") > 4


@pytest.mark.slow
def test_a_thousand_tables_with_another_value(made, tmp_path):
    assert change_tables(1000, made, tmp_path / "here") > 400


@pytest.mark.parametrize(
    ("column", "value"), [("op_id", None), ("op_id", 0), ("call_id", 0), ("request", 1)]
)
def test_a_schedule_has_each_task_of_its_placement_once(made, tmp_path, column, value):
    """A row that is of another task, call or request than what runs."""
    here = tmp_path / "here"
    shutil.copytree(made, here)
    (path,) = here.rglob("schedule.parquet")
    table = pq.ParquetFile(path).read()
    values = table.column(column).to_pylist()
    row = next(n for n, op in enumerate(table.column("op_id").to_pylist()) if (op or 0) > 9)
    values[row] = (
        next(v for v in table.column("op_id").to_pylist()[row + 1 :] if v)
        if value is None
        else value
    )
    index = table.schema.get_field_index(column)
    changed = table.set_column(
        index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
    )
    sink = pa.BufferOutputStream()
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), sink)
    write_files(path.parent, {path.name: sink.getvalue().to_pybytes()})
    done = invoke("cutedge", "export", "perfetto", here / "t", "--out", tmp_path / "o")
    assert done.returncode == 1, done.stdout
    assert "schedule.parquet is damaged. Run partition again." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_command_says_it_in_a_line(made, tmp_path, as_json):
    """Exit code 2, the file by its name, and with --json an object."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03")
    os.mkfifo(tmp_path / "b.toml")
    for option, name in (("--weights", "a.gguf"), ("--weights", "b.toml"), ("--engine", "b.toml")):
        words = ["cost", made / "t", option, tmp_path / name, *(["--json"] if as_json else [])]
        done = invoke(*words)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
        said = json.loads(done.stderr)["error"] if as_json else done.stderr
        assert str(tmp_path / name) in said
