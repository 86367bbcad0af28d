"""Commands without a process: for all tests that a process adds nothing to but seconds."""

import json
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

import tracer.capture
from cli.main import app
from tracer.capture import Capture

_captured: dict[str, Capture] = {}


def _capture_once(config: Any, **options: Any) -> Capture:
    key = json.dumps([config, options], sort_keys=True)
    if key not in _captured:
        _captured[key] = _capture(config, **options)
    return _captured[key]


_capture = tracer.capture.capture


def invoke(command: str, *args: str | Path) -> CompletedProcess[str]:
    """Run a command in this process; what would end in a traceback shows one on stderr.

    The same model at the same sizes is captured once.
    """
    words = [*([] if command == "cutedge" else [command]), *map(str, args)]
    environment = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    with patch("tracer.capture.capture", _capture_once):
        result = CliRunner().invoke(app, words, env=environment, prog_name="cutedge")
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    return CompletedProcess(words, result.exit_code, result.stdout, stderr)


def command_names() -> list[str]:
    """Of ``cutedge``: its commands and groups of commands."""
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    return [*names, *(group.name for group in app.registered_groups)]
