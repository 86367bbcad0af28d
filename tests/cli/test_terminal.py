"""On a terminal nothing is wider than it is, and what is left out is named; in a pipe all is whole.

The terminal is a real one (a pty).
"""

import json
import os
import re
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from cli.app import warn
from cli.printing import Column, print_rows, print_table
from cli.terminal import broken, progress
from tests.support.inprocess import invoke
from tests.support.terminals import on_terminal, terminal
from tracer.capture import capture
from tracer.graph import FLOATING, ITEM_BYTES, MODEL_DTYPES
from tracer.presets import preset
from tracer.stages import At, listening, stage

DESCRIBED = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie4-x16")

TABLES = {
    "compare": ("compare", *DESCRIBED),
    "partition": ("partition", "--policy", "min-cut", "--explain", *DESCRIBED),
    "devices": ("devices",),
    "one device": ("devices", "rtx-4090"),
    "links": ("links",),
    "one link": ("links", "pcie5-x16"),
    "query": ("query", "SELECT * FROM ops"),
    "models": ("models",),
    "policies": ("policies",),
    "one policy": ("policies", "fuse-attention"),
    "cost": ("cost", "--by", "module"),
    "limits": ("limits", "edge-10m"),
    "params": ("params", "edge-10m", "--layers"),
    "gemm": ("gemm", "1", "2048", "2048"),
}

WIDTHS = (80, 120, 200)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoke("trace", "edge-10m", "--seq", "16").returncode == 0
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


@cache
def piped(name: str) -> str:
    """What a pipe gets of a table."""
    return invoke("cutedge", *TABLES[name]).stdout


@pytest.mark.parametrize(
    "width", [WIDTHS[0], *(pytest.param(width, marks=pytest.mark.slow) for width in WIDTHS[1:])]
)
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.few(6)
def test_what_is_printed_fits_the_terminal(name: str, width: int) -> None:
    """No line is wider, each word is one of the whole output's, and what is left out is named."""
    lines = on_terminal(width, *TABLES[name])
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    whole = piped(name)
    known = {*words(whole)}
    shown = " ".join(lines)
    numbers = [word for word in words(shown) if re.fullmatch(r"-?[\d.,]*\d[\d.,]*%?", word)]
    assert {number.rstrip(".,") for number in numbers} <= {w.strip("(),;:.") for w in known}
    left = re.findall(r"left out for width: (.*?) \(--wide shows them\)", shown)
    heads = {head for line in left for head in line.split(", ")}
    assert all(head and head in whole for head in heads)
    assert len(words(shown)) > 10


@pytest.mark.parametrize("name", ["devices", "query", "links", "compare"])
@pytest.mark.few(2)
def test_wide_shows_all_that_a_pipe_gets(name: str) -> None:
    narrow, wide = on_terminal(80, *TABLES[name]), on_terminal(80, *TABLES[name], "--wide")
    whole = piped(name).splitlines()
    assert any(line.startswith("left out for width: ") for line in narrow)
    assert not any(line.startswith("left out") for line in [*wide, *whole])
    tables = [line for line in whole if re.search(r"\S  \S", line)]
    assert {line.rstrip() for line in tables} <= {line.rstrip() for line in wide}


CAPTURES = Path(__file__).parent / "captures"
"""What commands print on terminals of each width; with WRITE_CAPTURES=1 the test writes it."""

CAPTURED = {
    **{name: TABLES[name] for name in ("compare", "partition", "devices", "links")},
    "query": ("query", "SELECT * FROM ops WHERE kind = 'softmax'"),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CAPTURED)
@pytest.mark.few(5)
def test_what_is_printed_is_what_was_captured(name: str, width: int) -> None:
    lines = on_terminal(width, *CAPTURED[name])
    text = "".join(f"{line.rstrip()}\n" for line in lines)
    capture = CAPTURES / f"{name}-{width}.txt"
    if os.environ.get("WRITE_CAPTURES"):
        capture.write_text(text, encoding="utf-8")
    assert text == capture.read_text(encoding="utf-8"), "WRITE_CAPTURES=1 writes what it is now"


def test_columns_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a" * 30, "b" * 30, "c" * 30)]
    with terminal(200) as at_200:
        print_rows(["x", "y", "z"], rows)
    monkeypatch.setenv("COLUMNS", "70")
    with terminal(200) as at_70:
        print_rows(["x", "y", "z"], rows)
    assert len(at_200) == 2
    assert at_70[-1] == "left out for width: z (--wide shows them)"


def test_columns_stay_by_rank_and_alike_ones_together() -> None:
    columns = [
        Column("name"),
        Column("low", ">", 3),
        Column("one", ">", 2),
        Column("two", ">", 2),
        Column("high", ">", 1),
    ]
    rows = [("a", "1234567890", "12345", "12345", "12")]

    def heads(width: int) -> list[str]:
        with terminal(width) as lines:
            print_table(columns, rows)
        return lines[0].split()

    assert heads(40) == ["name", "low", "one", "two", "high"]
    assert heads(34) == ["name", "one", "two", "high"]
    assert heads(23) == ["name", "low", "high"]  # the two have no room, a later one has
    assert heads(12) == ["name", "high"]
    assert heads(4) == ["name"]


def test_a_query_keeps_its_first_column_and_its_result() -> None:
    label = "SELECT name, module_path, target, 1234567890123 AS total FROM ops WHERE op_id = 111"
    lines = on_terminal(30, "query", label)
    assert lines[0].split() == ["name", "total"]
    assert lines[1].split()[-1] == "1234567890123"
    assert " ".join(lines[2:]) == "left out for width: module_path, target (--wide shows them)"


def test_sentences_break_in_their_column_and_numbers_never() -> None:
    with terminal(46) as lines:
        print_table(
            [Column("figure"), Column("value", ">"), Column("source", "~")],
            [("bytes", "12,345 B", "a sentence that is longer than there is room for it")],
        )
    assert lines[1:] == [
        "bytes   12,345 B  a sentence that is longer",
        "                  than there is room for it",
    ]


def test_shares_have_a_bar_on_a_terminal_that_can_show_it(capsys: Any) -> None:
    columns = [Column("part"), Column("share", "%")]
    rows = [("a", "100.0%"), ("b", "50.0%"), ("c", "1.6%"), ("d", "0.0%"), ("e", "")]
    with terminal(80) as bars:
        print_table(columns, rows)
    assert bars == [
        "part   share",
        "a     100.0% ████████",
        "b      50.0% ████",
        "c       1.6% ▏",
        "d       0.0%",
        "e",
    ]
    with terminal(80, "ascii") as plain:
        print_table(columns, rows)
    with terminal(15) as narrow:
        print_table(columns, rows)
    print_table(columns, rows)
    assert plain == narrow == capsys.readouterr().out.splitlines()
    assert not any("█" in line for line in plain)


@pytest.mark.parametrize(
    ("line", "width", "parts"),
    [
        ("short", 80, ["short"]),
        ("no width at all", None, ["no width at all"]),
        ("one two three", 8, ["one two", "three"]),
        ("  one two three", 10, ["  one two", "  three"]),
        ("takes 16.5 MiB here", 11, ["takes", "16.5 MiB", "here"]),
        ("in a/path/that/is/long", 12, ["in", "a/path/that/", "is/long"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
    ],
)
def test_lines_break_between_words(line: str, width: int | None, parts: list[str]) -> None:
    assert broken(line, width) == parts


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "part", "wanted", "unwanted"),
    [
        ("devices", "h100", {"h100-cc", "h100-sxm"}, {"h200", "chip-8x8"}),
        ("devices", "systolic", {"systolic-8x8", "systolic-32x32"}, {"h200", "rtx-4090"}),
        ("links", "pcie", {"pcie4-x16", "pcie5-x16-cc"}, {"nvlink", "zmq-ipc"}),
        ("models", "Qwen3", {"qwen3-0.6b", "qwen3-235b-a22b"}, {"qwen2.5-7b", "gpt2"}),
        ("policies", "private", {"kv-private", "prompt-private"}, {"min-cut"}),
    ],
)
def test_a_list_is_searched_by_a_part_of_a_name(
    command: str, part: str, wanted: set[str], unwanted: set[str]
) -> None:
    rows = {line.split()[0] for line in invoke(command, part).stdout.splitlines() if line.strip()}
    assert wanted <= rows
    assert not unwanted & rows


@pytest.mark.parametrize(
    ("command", "name", "says"),
    [
        ("devices", "RTX 4090", "rtx-4090: "),
        ("devices", "h200", "h200: "),
        ("links", "PCIe5_x16", "pcie5-x16: "),
        ("links", "axi", "axi-lite: "),
        ("policies", "kv", "kv-private: "),
        ("models", "Llama 3.2 1B", "{"),
    ],
)
def test_a_full_name_however_spelt_and_a_part_of_one_alone_show_one(
    command: str, name: str, says: str
) -> None:
    assert invoke(command, name).stdout.startswith(says)


@pytest.mark.parametrize("command", ["devices", "links", "policies", "models"])
def test_a_terminal_gets_a_list_in_groups_and_a_pipe_the_same_rows_in_order(command: str) -> None:
    piped = [line.rstrip() for line in invoke(command).stdout.splitlines()]
    shown = [line.rstrip() for line in on_terminal(250, command)]
    assert {line for line in piped if line} <= {*shown}
    headings = [line for line in shown if line and line not in piped]
    assert len(headings) > 1
    names = [line.split()[0] for line in piped[1:] if line]
    if command == "links":
        assert names == sorted(names)


# --- progress -------------------------------------------------------------------------------------


def test_stages_tell_what_work_is_at_and_what_it_is_within() -> None:
    told: list[At | None] = []
    with listening(told.append), stage("outer", 9, 4) as more:
        more(5)
        with stage("inner", total=2) as done:
            done(1)
    with stage("nobody listens"):
        pass
    outer = [At("outer", 4, 9), At("outer", 5, 9)]
    assert told == [*outer, At("inner", 0, 2), At("inner", 1, 2), outer[1], None]


def test_a_trace_has_stages() -> None:
    told: list[At | None] = []
    with listening(told.append):
        capture({**preset("edge-10m"), "num_hidden_layers": 1}, model="m", seq=4)
    names = list(dict.fromkeys(at.name for at in told if at))
    looked = ("looking at the sizes", "comparing layers")
    assert names == ["building the model", *looked, "exporting", "lowering", "building the graph"]
    assert told[-1] is None


def test_a_partition_has_stages() -> None:
    told: list[At | None] = []
    with listening(told.append):
        assert invoke("partition", "--policy", "min-cut").returncode == 0
    names = {at.name for at in told if at}
    assert names >= {"reading the trace", "placing by min-cut", "finding a minimum cut"}


def test_progress_is_shown_after_a_while_and_gone_when_done() -> None:
    with terminal(40, stream="stderr") as quick, progress(patience=60), stage("exporting"):
        time.sleep(0.3)
    assert quick == []
    with terminal(40, stream="stderr") as shown, progress(patience=0.2):
        with stage("exporting with a name that is wider than the terminal"):
            time.sleep(0.7)
        warn("look")
        with stage("placing", total=10) as done:
            warn("again")
            done(5)
            time.sleep(0.5)
    lines = [line for line in "\n".join(shown).replace("\r", "\n").split("\n") if line]
    assert lines[0] == "exporting with a name that is wider tha"
    assert [line for line in lines if "look" in line or "again" in line] == [
        "warning: look",
        "warning: again",
    ]
    assert any(line.startswith("placing [==========          ] 5/10") for line in lines)
    assert shown[-1].endswith("\r")  # and what was in the line is erased


def test_no_progress_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.app.progress", partial(progress, 0))

    def told(*switches: str) -> list[str]:
        with terminal(80, stream="stderr") as shown:
            on_terminal(80, "partition", *switches)
        return shown

    assert "reading the trace" in " ".join(told())
    assert told("--quiet") == told("--json") == []


# --- slips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slip", "says"),
    [
        (
            "partition edge-10m --policy min-cut",
            "cutedge trace edge-10m && cutedge partition --policy min-cut",
        ),
        ("cost Edge_10M", "cutedge trace edge-10m && cutedge cost"),
        ("report my.py:model", "cutedge trace my.py:model && cutedge report"),
        ("compare edge-10m gpt2", "Trace it first: cutedge trace edge-10m"),
        ("query --trace gpt2 SELECT", "cutedge trace gpt2 && cutedge query SELECT"),
        ("export dot gpt2 --out x", "cutedge trace gpt2 && cutedge export dot --out x"),
        ("partition --policy flash", "Did you mean flash-attention?"),
        ("partition --policy min", "Did you mean min-cut-nonlinear-home, min-cut"),
        ("partition --link pcie5x17", "Did you mean pcie5-x16"),
        ("trace llama-3.2-1B", "Did you mean llama-3.2-1b"),
        ("trace edge-10m --dtype bf16", "Did you mean bfloat16"),
        ("limits edge-10m --device chip-8x8", "chip-8x8 is an array"),
        ("prtition", "Did you mean 'partition'?"),
        ("partition --polcy x", "--policy"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(slip: str, says: str) -> None:
    done = invoke("cutedge", *slip.split())
    assert done.returncode == 2
    assert says in " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())


def test_a_table_that_is_not_there_is_answered_with_the_command_that_makes_it() -> None:
    for table, says in {
        "sweep": "cutedge sweep llama-3.2-1b --seq 64..4096",
        "measured_calls": "run verify first",
        "schedule": "run partition --schedule overlap first",
    }.items():
        done = invoke("query", f"SELECT * FROM {table}")
        assert done.returncode == 2
        assert says in done.stderr
        assert "sqlite_temp_master" not in done.stderr


@pytest.mark.parametrize("name", ["rtx4090", "RTX-4090", "RTX 4090", "rtx_4090"])
def test_a_device_is_known_however_it_is_spelt(name: str) -> None:
    rows = json.loads(invoke("partition", "--accel", name, "--home", "TEE tdx", "--json").stdout)
    assert list(rows["compute_seconds"]) == ["tee-tdx", "rtx-4090"]


NEAR = {
    "h100": "h100-cc, h100-nvl",
    "nvidia-h100": "h100-cc, h100-nvl",
    "a100": "a100-80g",
    "rtx-4080": "rtx-4090",
    "4090": "rtx-4090",
    "mi300": "mi300x",
    "tdx": "tee-tdx",
    "tee-tdz": "tee-tdx",
    "systolic": "systolic-128x128",
    "ryzen": "ryzen-7950x",
}


@pytest.mark.parametrize("name", NEAR)
def test_a_name_near_to_a_known_device_is_refused(name: str) -> None:
    for option in ("--accel", "--home"):
        done = invoke("partition", option, name)
        assert done.returncode == 2
        assert f"device {name!r} is not known. Did you mean {NEAR[name]}" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "gpu",
        "npu",
        "tee",
        "left",
        "right",
        "cpu",
        "host",
        "server",
        "phone",
        "gpu1",
        "gpu-b",
        "tee2",
        "chip0",
        "accel3",
        "x",
    ],
)
@pytest.mark.few(5)
def test_a_name_of_the_users_own_is_a_device_without_figures(name: str) -> None:
    home = "tee-tdx"
    said = invoke("partition", "--home", home, "--accel", name).stdout
    assert f"no figures for all that runs on {name}: its seconds are not known" in said
    assert "no figures" not in invoke("partition", *DESCRIBED).stdout


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("trace", {*MODEL_DTYPES, "prefill", "decode", "encoder", "eager", "sdpa", "last", "all"}),
        ("partition", {*FLOATING, "run", "call"}),
        ("compare", {*FLOATING, "bytes", "calls", "seconds", "seen"}),
        ("gemm", {*ITEM_BYTES, "fixed", "os", "ws", "is"}),
        ("verify", {*FLOATING, *MODEL_DTYPES, "unix", "tcp"}),
    ],
)
def test_help_lists_the_choices(command: str, choices: set[str]) -> None:
    said = invoke(command, "--help").stdout
    assert choices <= {*re.findall(r"[A-Za-z0-9_]+", said)}
    assert len(re.findall(r" --no-cache\b", said)) <= 1
