"""A function carried out many times by processes of this machine, which end when this one does.

They are started anew rather than forked, which threads of Arrow would not survive, and each hears
and answers over a socket of its own. So nothing is left of them, neither a process nor a semaphore,
however this process ends.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from traceback import format_exc
from typing import Any, TypeVar

from tracer.errors import CutedgeError
from tracer.interrupts import at_interrupt, end_with, uninterrupted

Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def each(
    function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], count: int
) -> Iterator[Result]:
    """``function(*task)`` of each task, in whatever order they come, by ``count`` processes.

    Function, tasks and results are pickled. Raises what the function raises, and CutedgeError where
    a process has ended before its work did. When the iterator is closed every process is gone.
    """
    started: list[subprocess.Popen[bytes]] = []
    with at_interrupt(partial(_end, started)):
        try:
            yield from _each(function, iter(tasks), count, started)
        except (EOFError, ConnectionError) as error:
            raise CutedgeError(
                "a worker process ended before its work did (out of memory?): run the same "
                "again, what is done is kept; fewer --jobs take less memory"
            ) from error
        finally:
            _end(started)


def _each(
    function: Callable[..., Result],
    tasks: Iterator[tuple[Any, ...]],
    count: int,
    started: list[subprocess.Popen[bytes]],
) -> Iterator[Result]:
    busy: list[Connection] = []
    task = next(tasks, None)
    while task is not None and len(busy) < count:
        connection = _start(count, started)
        connection.send((function, task))
        busy.append(connection)
        task = next(tasks, None)
    while busy:
        ready: list[Any] = wait(busy)
        for connection in ready:
            fine, answer = connection.recv()
            if not fine:
                raise answer
            if task is None:
                busy.remove(connection)
                connection.close()
            else:  # the process works while its answer is used and the next task is made
                connection.send((function, task))
            yield answer
            if task is not None:
                task = next(tasks, None)


def _start(count: int, started: list[subprocess.Popen[bytes]]) -> Connection:
    """Start a process, and the connection to it."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    ours, theirs = socket.socketpair()
    with theirs, uninterrupted():
        started.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(os.getpid()), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**dict.fromkeys(_THREADS, threads), **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is the parent's to answer
            )
        )
    return Connection(ours.detach())


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def main() -> None:
    """A process: who started it, and the socket that it hears from."""
    parent, number = map(int, sys.argv[1:])
    end_with(parent, signal.SIGKILL)
    connection = Connection(number)
    with suppress(EOFError, ConnectionError):
        while answer := _answer(connection.recv_bytes()):
            connection.send_bytes(answer)


def _answer(asked: bytes) -> bytes | None:
    """What a function gives or raises, pickled; None where there is no memory for it."""
    try:
        function, task = pickle.loads(asked)
        return pickle.dumps((True, function(*task)))
    except MemoryError:
        return None
    except Exception as error:
        where = format_exc()
        error.add_note(where)
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:  # an error that cannot be pickled
            answer = pickle.dumps((False, RuntimeError(where)))
        return answer


if __name__ == "__main__":
    main()
