"""How every command behaves: in pipes, for machines, when asked to be quiet or to say more."""

import json
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

from cli import complete
from cli.main import app
from tests.support import BIN, ROOT
from tests.support.inprocess import invoke
from tests.support.processes import Run

COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
"""Of text or its background; bold is none."""

SILENT = {"worker"}
"""Commands that print no result: there is nothing to print as JSON."""


def commands(group: Any = None, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


ALL = [" ".join(words) for words, _ in commands()]


def test_every_command_has_the_same_switches_and_an_example() -> None:
    assert len(ALL) > 20
    for words, command in commands():
        options = {name for parameter in command.params for name in parameter.opts}
        assert {"--quiet", "--verbose"} <= options
        assert "--json" in options or " ".join(words) in SILENT
        assert f"cutedge {' '.join(words)}" in command.epilog


@pytest.mark.parametrize("words", ["", *ALL])
@pytest.mark.few(8)
def test_help_in_a_pipe_has_no_escape_codes(words: str) -> None:
    shown = invoke("cutedge", *words.split(), "--help")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout + shown.stderr


PRINTING = (
    ["models"],
    ["policies"],
    ["policies", "min-cut"],
    ["devices"],
    ["devices", "rtx-4090"],
    ["links"],
    ["links", "pcie5-x16"],
    ["gemm", "64", "64", "64"],
    ["query", "SELECT 1 AS one"],
    ["partition"],
    ["compare", "--policy", "offload-linear"],
    ["cost"],
    ["export", "csv", "calls"],
    ["export", "dot", "--out", "x.dot"],
    ["policies", "min-cat"],
    ["partition", "--polcy", "x"],
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manners")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoke("trace", "edge-10m", "--seq", "9").returncode == 0
        assert invoke("partition").returncode == 0
    return folder


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.chdir(here)
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
@pytest.mark.few(6)
def test_a_pipe_gets_no_escape_codes(words: list[str]) -> None:
    from typer.testing import CliRunner

    printed = CliRunner().invoke(app, words, prog_name="cutedge")
    assert printed.output
    assert "\x1b" not in printed.output


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("words", [["policies"], ["policies", "min-cat"], ["--help"]], ids=" ".join)
@pytest.mark.few(1)
def test_no_color_takes_colours_from_a_terminal(words: list[str]) -> None:
    def on_a_terminal(**more: str) -> str:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [BIN / "cutedge", *words],
            stdout=theirs,
            stderr=theirs,
            stdin=theirs,
            env={**os.environ, **more},
        ) as process:
            os.close(theirs)
            read = bytearray()
            try:
                while chunk := os.read(ours, 4096):
                    read += chunk
            except OSError:  # the other end is closed
                pass
            process.wait()
        os.close(ours)
        return read.decode()

    assert not COLOUR.search(on_a_terminal(NO_COLOR="1"))
    if words == ["--help"]:
        assert COLOUR.search(on_a_terminal())  # else the test would say nothing


def test_all_json_is_json(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for words in PRINTING[:12]:
        printed = invoke(words[0], *words[1:], "--json")
        assert printed.returncode == 0
        assert json.loads(printed.stdout)["version"] == 1


# --- quiet and verbose ----------------------------------------------------------------------------


def test_quiet_says_no_warnings_and_all_errors(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text(
        'description = "a rule that no op meets"\ndefault = "home"\n'
        '[[rule]]\nmodule_path = ["*nowhere*"]\nplace = "accelerator"\noptional = true\n',
        encoding="utf-8",
    )
    assert invoke("trace", "edge-10m", "--seq", "9").returncode == 0
    loud = invoke("partition", "--policy", "p.toml")
    assert loud.stderr.startswith("warning: p.toml: ")
    for switch in ("--quiet", "-q"):
        quiet = invoke("partition", "--policy", "p.toml", switch)
        assert (quiet.returncode, quiet.stderr, quiet.stdout) == (0, "", loud.stdout)
    wrong = invoke("partition", "--policy", "min-cat", "--quiet")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")


def test_verbose_says_how_long_it_took_and_where_an_error_arose(
    here: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(here)
    said = invoke("policies", "--verbose")
    assert re.fullmatch(r"\d+\.\d\d s\n", said.stderr)
    wrong = invoke("policies", "min-cat", "-v")
    assert wrong.returncode == 2
    lines = wrong.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert any("load_policy" in line for line in lines)
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in invoke("policies", "min-cat").stderr


def test_the_commands_on_path_take_the_switches_too(run: Run) -> None:
    done = run("partition", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no last trace")


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("par", {"partition", "params"}, {"trace"}),
        ("partition --policy min", {"min-cut", "min-cut-norm-home"}, {"fastest"}),
        ("trace llama-3.2", {"llama-3.2-1b", "llama-3.2-3b"}, {"gpt2"}),
        ("cost --device rtx", {"rtx-4090"}, {"h200"}),
        ("partition --accel gpu=rtx", {"gpu=rtx-4090"}, {"rtx-4090"}),
        ("compare --link pcie5", {"pcie5-x16"}, {"nvlink"}),
        ("export ", {"perfetto", "csv"}, {"trace"}),
        ("export csv tr", {"transfers"}, {"ops"}),
        ("partition --res", {"--residency"}, {"--policy"}),
    ],
)
@pytest.mark.few(2)
def test_a_shell_completes_commands_options_and_names(
    line: str, wanted: set[str], unwanted: set[str]
) -> None:
    words = line.split(" ")
    done = subprocess.run(
        [BIN / "cutedge"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_CUTEDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": f"cutedge {line}",
            "COMP_CWORD": str(len(words)),
        },
    )
    offered = set(done.stdout.split())
    assert wanted <= offered
    assert not unwanted & offered


def test_what_is_completed_is_what_commands_take() -> None:
    from costmodels.devices import load_device
    from costmodels.links import load_link
    from partition.policy import load_policy
    from tracer.presets import preset

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names, load in (
            (complete.models, preset),
            (complete.policies, load_policy),
            (complete.devices, load_device),
            (complete.links, load_link),
        ):
            assert len(names("")) > 5
            for name in names(""):
                load(name)


# --- errors for machines --------------------------------------------------------------------------


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["partition", "no-such-folder", "--json"], 1, "no trace at no-such-folder"),
        (["partition", "--json", "--policy", "min-cat"], 2, "unknown policy 'min-cat'"),
        (["query", "--json", "SELEC 1"], 2, "Parser Error"),
        (["trace", "gpt2", "--json", "--sequence", "8"], 2, "No such option: --sequence"),
        (["partition", "--json", "--time-limit", "soon"], 2, "--time-limit"),
        (["no-such-command", "--json"], 2, "no-such-command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_with_json_an_error_is_one_object_on_standard_error(
    words: list[str], code: int, says: str
) -> None:
    done = invoke("cutedge", *words)
    assert done.returncode == code
    assert done.stdout == ""
    said = json.loads(done.stderr)
    assert says in said["error"]
    assert said["exit_code"] == code


@pytest.mark.slow
def test_with_json_a_warning_is_an_object_in_a_line(here: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(here)
    far = ("--past", "5000", "--set", "n_layer=1", "--json", "--out", "far")
    done = invoke("trace", "gpt2", "--phase", "decode", *far)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert list(json.loads(line)) == ["version", "warning"]


# --- names that steer a terminal ------------------------------------------------------------------

STEERING = "a\x1b[31m\x07\u202eb"

MODULE = f"""
import torch
def model():
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module({STEERING!r}, torch.nn.Linear(4, 4))
        def forward(self, x):
            return getattr(self, {STEERING!r})(x)
    return M(), torch.ones(2, 4)
"""


def test_what_a_name_hides_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, a policy, a device and a trace that are called so; in tables, errors and graphs."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODULE)
    Path(f"{STEERING}.toml").write_text('description = "x"\ndefault = "accelerator"\n')
    policy = f"./{STEERING}.toml"
    for words in (
        ["trace", "m.py:model", "--out", STEERING],
        ["partition", STEERING, "--policy", policy, "--accel", STEERING],
        ["cutedge", "compare", STEERING, "--policy", policy, "--accel", STEERING],
        ["cutedge", "query", "--trace", STEERING, "SELECT name, module_path FROM ops"],
        ["cutedge", "export", "graphml", STEERING, "--policy", STEERING, "--out", "g.graphml"],
        ["cutedge", "export", "dot", STEERING, "--policy", STEERING, "--out", "g.dot"],
    ):
        done = invoke(*words)
        assert done.returncode in (0, 1, 2)
        assert "Traceback" not in done.stderr
        for character in "\x1b\x07\u202e":
            assert character not in done.stdout + done.stderr, words
    done = invoke("partition", f"{STEERING}-not-there")
    assert "\\x1b[31m" in done.stderr
    for name in ("g.graphml", "g.dot"):
        text = Path(name).read_text()
        assert "\\x1b[31m" in text
        assert "\x1b" not in text
    root = ElementTree.parse("g.graphml").getroot()
    assert root.tag.endswith("graphml")
    # Tables have the name as it is: what it means is for those who read them.
    done = invoke("cutedge", "export", "csv", "ops", STEERING)
    assert STEERING in done.stdout


def test_a_spreadsheet_carries_out_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    monkeypatch.chdir(tmp_path)
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "plain"]
    layers = ", ".join(f"({name!r}, torch.nn.Linear(4, 4))" for name in names)
    Path("m.py").write_text(
        "import torch\nfrom collections import OrderedDict\n"
        f"def model(): return torch.nn.Sequential(OrderedDict([{layers}])), torch.ones(2, 4)\n"
    )
    assert invoke("trace", "m.py:model", "--out", "t").returncode == 0
    for words in ([], ["--escape-formulas"]):
        done = invoke("cutedge", "export", "csv", "ops", "t", *words)
        cells = [cell for row in csv.reader(done.stdout.splitlines()) for cell in row]
        risky = [cell for cell in cells if cell.startswith(("=", "+", "@", "-"))]
        assert bool(risky) == (not words)
        assert ("'=1+1" in cells) == bool(words)
        assert "plain" in cells


def test_progress_is_for_terminals_and_on_stderr() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    folder = ROOT
    subprocess.run(
        [sys.executable, "-c", _PROGRESS], stderr=follower, cwd=folder, env=environment, check=True
    )
    os.close(follower)
    text = b""
    with open(leader, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                text += part
        except OSError:  # the other side is closed
            pass
    assert b"100/100" in text
    assert b"/s" in text
    assert text.endswith(b"\r\x1b[K")  # nothing of it is left
    silent = subprocess.run(
        [sys.executable, "-c", _PROGRESS], capture_output=True, cwd=folder, check=True
    )
    assert (silent.stdout, silent.stderr) == (b"", b"")


_PROGRESS = """
import time
from cutedge._sweep import _counting
from cli.terminal import progress
with progress(patience=0), _counting(100, 40) as done:
    for _ in range(6):
        time.sleep(0.05)
        done(10)
"""
