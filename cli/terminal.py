"""What a terminal has room for: lines that are broken to its width, and a line of progress."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from textwrap import wrap
from threading import Event, RLock, Thread
from time import monotonic
from typing import TextIO

from tracer.stages import At, listening

WIDE: ContextVar[bool] = ContextVar("WIDE", default=False)
"""Whether the command that runs was given ``--wide``: then tables are whole, whatever the width."""


def room(stream: TextIO | None) -> int | None:
    """Characters in a line of the terminal that a stream goes to; None where it goes elsewhere."""
    if stream is None or not stream.isatty():
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def broken(line: str, width: int | None) -> list[str]:
    """A line in lines of ``width`` characters at most, which break between words.

    What follows is indented as the line is. A number stays with its unit; a word that is too long
    breaks after a slash, or at the width. None: as wide as it is.

    >>> broken("sent 1.5 MiB to a/long/path", 8)
    ['sent', '1.5 MiB', 'to', 'a/long/', 'path']
    """
    from rich.cells import cell_len

    if width is None or cell_len(line) <= width:
        return [line]
    bare = line.lstrip(" ")
    indent = " " * min(len(line) - len(bare), width // 2)
    most = width - len(indent)
    glued = re.sub(r"(?<=\d) (?=[A-Za-z])", "\0", bare)
    parts: list[str] = []
    for part in wrap(glued, most, break_long_words=False, break_on_hyphens=False):
        while len(part) > most:
            end = part.rfind("/", 1, most) + 1 or most
            parts.append(part[:end])
            part = part[end:]
        parts.append(part)
    return [indent + part.replace("\0", " ") for part in parts]


PATIENCE_SECONDS = 2.0
"""What takes no longer is not told of."""

_BAR = 20


class _Progress:
    """A line on a terminal that says what work is at, from when it has taken a while."""

    def __init__(self, stream: TextIO, patience: float) -> None:
        self._stream, self._begins = stream, monotonic() + patience
        self._lock = RLock()
        self._at: At | None = None
        self._since, self._first, self._drawn = 0.0, 0, 0.0
        self._shown = ""
        self._ended = Event()

    def tell(self, at: At | None) -> None:
        """A listener of stages."""
        with self._lock:
            before, self._at = self._at, at
            if at is None:
                self.hide()
                return
            if before is None or at.name != before.name:
                self._since, self._first = monotonic(), at.done
            elif at.done < at.total and monotonic() < self._drawn + 0.1:
                return  # the line need not change so often
            self._draw()

    def hide(self) -> None:
        """Make room for what is printed."""
        with self._lock:
            if self._shown:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            self._shown = ""

    def _draw(self) -> None:
        with self._lock:
            if self._at is None or monotonic() < self._begins:
                return
            line = self._text(self._at)[: (room(self._stream) or 80) - 1]
            if line != self._shown:
                self._stream.write(f"\r{line}\x1b[K")
                self._stream.flush()
                self._shown, self._drawn = line, monotonic()

    def _text(self, at: At) -> str:
        taken = monotonic() - self._since
        if not at.total:
            return f"{at.name} ..." + (f" {taken:.0f} s" if taken >= 1 else "")
        full = _BAR * at.done // at.total
        speed = (at.done - self._first) / taken if taken > 0 else 0
        left = f", {(at.total - at.done) / speed:.0f} s left" if speed else ""
        return (
            f"{at.name} [{'=' * full}{' ' * (_BAR - full)}] {at.done:,}/{at.total:,}, "
            f"{speed:,.0f}/s{left}"
        )

    def run(self) -> None:
        """Keep the line true until the work has ended."""
        while not self._ended.wait(0.2):
            self._draw()

    def end(self) -> None:
        """Leave the terminal as it was."""
        self._ended.set()
        self.tell(None)


_PROGRESS: ContextVar[_Progress | None] = ContextVar("_PROGRESS", default=None)


@contextmanager
def progress(patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Show on standard error the stages of work within; nothing where that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    shown = _Progress(sys.stderr, patience)
    token = _PROGRESS.set(shown)
    Thread(target=shown.run, daemon=True).start()
    try:
        with listening(shown.tell):
            yield
    finally:
        shown.end()
        _PROGRESS.reset(token)


def hide_progress() -> None:
    """Before something else is written on the terminal."""
    if (shown := _PROGRESS.get()) is not None:
        shown.hide()
