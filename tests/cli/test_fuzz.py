"""Files that nobody meant: a reader says what is wrong, or takes them; it never falls over.

Seeds are fixed. ``make test`` has a few hundred cases of each kind, ``make test-all`` thousands.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from costmodels.devices import load_device
from costmodels.links import load_link
from partition.policy import load_policy
from tests.support.inprocess import invoke
from tracer.errors import CutedgeError
from tracer.files import write_files

SEED = 15

# --- text that people write -----------------------------------------------------------------------

WORDS = [
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "#",
    "\n",
    ".",
    ",",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "true",
    "9" * 40,
    "0x7fffffffffffffff",
    "1979-05-27T07:32:00Z",
    "[[]]",
    "{}",
    '""',
    "\x00",
    "\x1b[31m",
    "\ud7ff",
    "null",
    "value",
    "source",
    "[[rule]]",
    "[[secret]]",
    "place",
    "kind",
    "a.b.c = 1",
    "[" * 60 + "]" * 60,
]


def damaged(text: str, draw: random.Random) -> bytes:
    """``text`` after one to four mistakes: a word put in, a piece lost, doubled or moved, a bit."""
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        one, other = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
        match draw.randrange(6):
            case 0:
                text = text[:one] + draw.choice(WORDS) + text[one:]
            case 1:
                text = text[:one] + text[min(other, one + 30) :]
            case 2:
                text = text[:other] + text[one:]
            case 3:
                draw.shuffle(lines)
                text = "\n".join(lines)
            case 4:
                lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
                text = "\n".join(lines)
            case 5:
                place = draw.randrange(len(lines))
                key, equals, _ = lines[place].partition("=")
                lines[place] = f"{key}{equals} {draw.choice(WORDS)}"
                text = "\n".join(lines)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if data and draw.random() < 0.2:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def shipped(package: str, folder: str) -> list[str]:
    """The text of each TOML file of a package."""
    found = files(package).joinpath(folder)
    return [entry.read_text() for entry in sorted(found.iterdir(), key=lambda e: e.name)]


def grid(path: str) -> object:
    from cutedge._grids import read_grid

    return read_grid(Path(path), {}, 1.0)


GRID = """model = ["edge-10m"]
phase = ["prefill", "decode"]
seq = ["64..256", 1000]
past = [128]
policy = ["min-cut", "offload-linear"]
pair = ["tee-tdx+rtx-4090"]
link = ["pcie4-x16"]
wire_dtype = ["native", "bfloat16"]
"""

READERS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "policy": (load_policy, shipped("partition", "data")),
    "link": (load_link, shipped("costmodels", "data/links")),
    "device": (load_device, shipped("costmodels", "data/devices")),
    "grid": (grid, [GRID]),
}


def read_damaged(kind: str, count: int, folder: Path) -> int:
    """Read ``count`` damaged files; how many were refused."""
    read, texts = READERS[kind]
    draw = random.Random(f"{SEED} {kind}")
    refused = 0
    for number in range(count):
        path = folder / "mine.toml"
        path.write_bytes(damaged(draw.choice(texts), draw))
        try:
            read(str(path))
        except CutedgeError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {path.read_bytes()!r}") from error
    return refused


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_text_file_is_refused_or_read(kind, tmp_path):
    assert read_damaged(kind, 300, tmp_path) > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_thousands_of_damaged_text_files(kind, tmp_path):
    assert read_damaged(kind, 10_000, tmp_path) > 3000


# --- configs of models ----------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
ODD: list[Any] = [
    None,
    0,
    -1,
    1,
    3,
    2.5,
    1e308,
    2**31,
    "",
    "x",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": {}},
    True,
    False,
    "\x1b[2J",
    ["LlamaModel"],
    ["os.system"],
    "gelu",
    10**30,
]


def odd_configs(count: int) -> Iterator[bytes]:
    draw = random.Random(f"{SEED} config")
    for _ in range(count):
        config: dict[str, Any] = json.loads(json.dumps(CONFIG))
        for _ in range(draw.randint(1, 2)):
            table = config["rope_parameters"] if draw.random() < 0.15 else config
            if not isinstance(table, dict) or not table:
                continue
            key = draw.choice([*table, "auto_map", "quantization_config", "layer_types"])
            if draw.random() < 0.2:
                table.pop(key, None)
            else:
                table[key] = draw.choice(ODD)
        text = json.dumps(config).encode()
        yield damaged(text.decode(), draw) if draw.random() < 0.2 else text


def trace_odd(count: int, folder: Path) -> int:
    """Trace ``count`` odd configs; how many were refused."""
    refused = 0
    for number, text in enumerate(odd_configs(count)):
        path = folder / "config.json"
        path.write_bytes(text)
        done = invoke("trace", path, "--seq", "4", "--out", folder / "out")
        assert "Traceback" not in done.stderr, f"case {number}: {text!r}\n{done.stderr}"
        assert done.returncode in (0, 1, 2), f"case {number}: {text!r}"
        assert "\x1b" not in done.stdout + done.stderr
        if done.returncode:
            refused += 1
            assert done.stderr.startswith(("error: ", "warning: ")), f"case {number}: {text!r}"
            assert not (folder / "out").exists(), f"case {number}: {text!r}"
        shutil.rmtree(folder / "out", ignore_errors=True)
    return refused


def test_an_odd_config_is_refused_or_traced(tmp_path):
    assert trace_odd(5, tmp_path) > 1


@pytest.mark.slow
def test_a_thousand_odd_configs(tmp_path):
    assert trace_odd(1000, tmp_path) > 300


# --- tables that somebody made --------------------------------------------------------------------
# Their manifest agrees with them: a hash tells of damage, not of who wrote a file.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    os.chdir(here)
    try:
        for words in (
            ["trace", "edge-10m", "--seq", "8", "--out", "t"],
            ["partition", "t", "--policy", "offload-linear"],
        ):
            done = invoke(*words)
            assert done.returncode == 0, done.stderr
    finally:
        os.chdir(before)
    return here


def other(value: Any, kind: pa.DataType, draw: random.Random) -> Any:
    """Another value of the same column."""
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_integer(kind):
        return draw.choice([0, 1, -1, 10**5, 2 ** (kind.bit_width - 1) - 1, (value or 0) + 1])
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
        if draw.random() < 0.15:
            changed = table.remove_column(column)
        else:
            row = draw.randrange(len(values))
            values[row] = None if draw.random() < 0.2 else other(values[row], field.type, draw)
            what += f"[{row}] = {values[row]!r}"
            array = pa.array(values, field.type)
            changed = table.set_column(column, field.with_nullable(True), array)
            if array.null_count == 0:
                changed = changed.cast(table.schema)
        sink = pa.BufferOutputStream()
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), sink)
        write_files(path.parent, {path.name: sink.getvalue().to_pybytes()})
        for words in (
            ["cutedge", "export", "dot", here / "t", "--out", here / "o"],
            ["partition", here / "t", "--policy", "fuse-attention"],
        ):
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
