"""Commands as processes: for what only a process shows. ``inprocess`` is many times as fast."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import BIN

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_command(
    command: str, *args: str | Path, cwd: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands as a user does, in ``cwd``."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [BIN / command, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
        **options,
    )
