"""Ctrl-C, SIGTERM and a closed terminal end a command: at once, with nothing half done.

Of Ctrl-C a line says what has been written; the others are silent.

Python's own way is an exception in whatever the main thread is doing. Callbacks and imports of C
code lose it or make another error of it, and a long call into C keeps it waiting. Here a thread
waits for the signal, lets a write that has begun come to its end, and ends the process.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NoReturn

_PATIENCE_SECONDS = 10.0
"""A write that takes longer, on a disk that hangs, is not waited for."""

_writing = threading.RLock()
"""Held by whoever must not be interrupted, and by what ends the process."""

_endings: list[Callable[[], object]] = []
"""What to call before the process ends, the newest first."""

_last_words = "interrupted; nothing was written"
"""What Ctrl-C says."""

_signalled = False
"""A signal has come that ends this process."""

_form: Callable[[str], str] = str
"""How it says it."""


def say_at_interrupt(text: str) -> None:
    """What Ctrl-C says from now on, where that is not known by what was written."""
    global _last_words
    _last_words = text


def say_as(form: Callable[[str], str]) -> None:
    """Have ``form`` make a line of what Ctrl-C says; it is called in another thread."""
    global _form
    _form = form


def wrote() -> None:
    """A file of the user's has been written, whole."""
    if _last_words == "interrupted; nothing was written":
        say_at_interrupt("interrupted; what was written before is whole")


def watch() -> None:
    """From now on a signal ends this process, with exit code 128 + its number: 130 for Ctrl-C.

    A signal that the starter of the process ignores (``nohup``) stays ignored.
    """
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The system's handler writes into the pipe, whatever the main thread is doing. So does ours,
    # should a library take the system's away.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in wanted:
        signal.signal(number, lambda number, _: _note(writer, number))
    waiting = threading.Thread(target=_wait, args=(reader, wanted), daemon=True)
    waiting.start()
    # A signal also cuts a call into C short. What then comes to its end has not done its work.
    atexit.register(lambda: waiting.join() if _signalled else None)


def uninterrupted() -> AbstractContextManager[object]:
    """A stretch of work, a short one, that a signal does not cut in two. It may be nested."""
    return _writing


@contextmanager
def at_interrupt(ending: Callable[[], object]) -> Iterator[None]:
    """Have a signal call ``ending``, from another thread, before it ends the process."""
    _endings.append(ending)
    try:
        yield
    finally:
        _endings.remove(ending)


def leave(code: int) -> NoReturn:
    """End the process, which is done. Python would take a while for that, deaf to signals."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with _writing:
        os._exit(code)


def end_with(parent: int, how: signal.Signals) -> None:
    """Have the system send this process a signal when the one that started it ends, however."""
    import ctypes

    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, how)
    if os.getppid() != parent:  # it ended before that
        sys.exit(1)


def _note(writer: int, number: int) -> None:
    global _signalled
    _signalled = True
    with suppress(OSError):  # full of signals
        os.write(writer, bytes([number]))


def _wait(reader: int, wanted: list[signal.Signals]) -> None:
    """Wait for one of the signals, then end the process. Imports nothing: an import may be on."""
    number = 0
    while number not in wanted:
        number = os.read(reader, 1)[0]
    _writing.acquire(timeout=_PATIENCE_SECONDS)
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[K")  # ^C, and a line of progress
        if number == signal.SIGINT:
            os.write(2, f"{_form(_last_words)}\n".encode(errors="backslashreplace"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what fails from here on is no news
    for ending in _endings[::-1]:
        with suppress(Exception):
            ending()
    os._exit(128 + number)
