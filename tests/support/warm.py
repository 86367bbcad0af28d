"""Workers that begin with torch imported, which takes a process of its own seconds.

Each is forked from one process that imported it once a session. What a process of its own alone
shows (where its code comes from, what it leaves when it is killed) is for tests that start one.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, NoReturn
from unittest.mock import patch

from cli.commands import MODULES
from tracer.interrupts import leave


@cache
def _server() -> ForkServerContext:
    """What forks, from a process with all that a worker imports."""
    context = multiprocessing.get_context("forkserver")
    commands = [f"cli.{module}" for module in ("main", *MODULES)]
    # The last is what torch imports as it runs its first op on the meta device.
    context.set_forkserver_preload(["cutedge._serve", *commands, "torch._dynamo"])
    return context


class Forked:
    """A process as ``subprocess.Popen`` has it, as far as home and the tests ask."""

    def __init__(self, target: Callable[..., object], *args: Any) -> None:
        environment = dict(os.environ)
        self._process = _server().Process(
            target=_begun, args=(environment, target, args), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.kill, self.terminate, self.poll = (
            self._process.kill,
            self._process.terminate,
            lambda: self._process.exitcode,
        )

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return code


def started(
    listener: socket.socket, timeout: float, token: str, memory_bytes: int | None
) -> Forked:
    """In the place of ``home._started``: a worker of home's, as soon as a fork takes."""
    return Forked(_worker, listener, timeout, token, memory_bytes)


def workers() -> AbstractContextManager[object]:
    """Workers that home starts are forked, for a while."""
    return patch("cutedge.runtime.home._started", started)


def command(*words: str, stderr: Connection, **environment: str) -> Forked:
    """``cutedge`` with some words; what it prints on stderr goes into a pipe."""
    return Forked(_command, words, stderr, environment)


# --- in the new process ---------------------------------------------------------------------------


def _begun(
    environment: dict[str, str], target: Callable[..., object], args: Sequence[Any]
) -> NoReturn:
    """As a new process begins and ends: its own group, signals, environment, no output."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    code: Any = 0
    try:
        target(*args)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code or 0)


def _worker(listener: socket.socket, timeout: float, token: str, memory_bytes: int | None) -> None:
    from cutedge.runtime.worker import main

    os.environ["CUTEDGE_TOKEN"] = token
    most = [] if memory_bytes is None else [str(memory_bytes)]
    sys.argv = ["worker", str(os.getppid()), str(listener.detach()), str(timeout), *most]
    main()


def _command(words: Sequence[str], stderr: Connection, environment: dict[str, str]) -> None:
    from cli.main import main

    os.environ.update(environment)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.argv = ["cutedge", *words]
    main()
