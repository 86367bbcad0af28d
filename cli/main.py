"""The entry points. A signal can come at any moment, so that is settled before all else."""

import gc
import os
import sys
from typing import Any

from tracer import interrupts


class _NoPandas:
    """Keeps Arrow from importing pandas for the first list that it is given, where it is installed.

    That takes longer than most commands. None of our own modules imports it: where one seems to, it
    is Arrow, which has no frame of its own.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """As finders of ``sys.meta_path`` do."""
        if name != "pandas":
            return
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("importlib"):
            frame = frame.f_back
        if frame.f_globals.get("__package__") in ("tracer", "partition", "cutedge.sweeping"):
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def main() -> None:
    """The ``cutedge`` command on PATH."""
    _process()


def trace_main() -> None:
    """The ``trace`` command on PATH."""
    _process("trace")


def partition_main() -> None:
    """The ``partition`` command on PATH."""
    _process("partition")


def __getattr__(name: str) -> Any:
    """``app``, of which the import takes a while."""
    if name == "app":
        from cli.commands import app_of

        return app_of()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _process(*command: str) -> None:
    """Run a command as a process of its own.

    Nearly all that a command makes lives until its end: looking for cycles among it, as Python does
    all along, takes a quarter of a trace's time and saves 4% of its memory, a tenth of others'.
    """
    gc.set_threshold(200_000, 20, 100)
    # numpy multiplies no large matrices here: threads for them would take a tenth of a second of CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("SYMPY_CACHE_SIZE", "20000")  # sizes of many blocks are the same formulas
    interrupts.watch()
    sys.meta_path.insert(0, _NoPandas())
    from cli.commands import app_of

    arguments = [*command, *sys.argv[1:]]
    app = app_of(arguments)
    if arguments[:1] == ["trace"]:
        gc.disable()
    code = 0
    try:
        app(arguments, prog_name="cutedge")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    interrupts.leave(code)
