"""The ``cutedge`` command. Each command imports what it needs: help must be instant."""

import atexit
import gc
import sys

# The help lists the commands in this order.
from cli import tracing, splitting, sweeping, reporting, running  # isort: skip
from cli import exporting, costs, devices, links, asking  # isort: skip
from cli.app import app

__all__ = [
    "app", "asking", "costs", "devices", "exporting", "links", "reporting", "running", "splitting",
    "sweeping", "tracing",
]  # fmt: skip


def main() -> None:
    """The ``cutedge`` command on PATH."""
    _process()


def trace_main() -> None:
    """The ``trace`` command on PATH."""
    _process("trace")


def partition_main() -> None:
    """The ``partition`` command on PATH."""
    _process("partition")


def _process(*command: str) -> None:
    """Run a command as a process of its own.

    Nearly all that a trace makes lives until its end: looking for cycles among it, as Python does
    all along and again at the end, takes a quarter of its time and saves 4% of its memory.
    """
    arguments = [*command, *sys.argv[1:]]
    if arguments[:1] == ["trace"]:
        gc.disable()
        atexit.register(gc.freeze)
    app(arguments, prog_name="cutedge")
