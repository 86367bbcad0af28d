"""Commands without a process: for all tests that a process adds nothing to but seconds."""

import traceback
from collections.abc import Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app
from tests.support import warm
from tests.support.traces import captured, made_runnable

_command = cache(get_command)
"""Typer would make all commands anew each time, which takes as long as what most of them do."""


def invoke(command: str, *args: str | Path) -> CompletedProcess[str]:
    """Run a command in this process; what would end in a traceback shows one on stderr.

    The same model at the same sizes is captured once, and a worker begins with torch imported.
    """
    words = [*([] if command == "cutedge" else [command]), *map(str, args)]
    environment = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    with (
        patch("tracer.capture.capture", captured),
        patch("tracer.capture.runnable", made_runnable),
        warm.workers(),
        patch("typer.testing._get_command", _command),
    ):
        result = CliRunner().invoke(app, words, env=environment, prog_name="cutedge")
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    return CompletedProcess(words, result.exit_code, result.stdout, stderr)


def prepare(folder: Path, *commands: Sequence[str]) -> None:
    """Run commands in a folder, each of which must succeed."""
    with chdir(folder):
        for words in commands:
            done = invoke(*words)
            assert done.returncode == 0, done.stderr


def command_names() -> list[str]:
    """Of ``cutedge``: its commands and groups of commands."""
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    return [*names, *(group.name for group in app.registered_groups)]
