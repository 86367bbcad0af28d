"""Commands on a real pseudo-terminal of a given width, without a process of their own."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from unittest.mock import patch

import pytest

from cli.main import app

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def terminal(width: int, encoding: str = "utf-8", stream: str = "stdout") -> Iterator[list[str]]:
    """A stream is a terminal as wide as that; afterwards the list has the lines it was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    sent, said = bytearray(), []

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                sent.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = Thread(target=read)
    reader.start()
    try:
        with open(theirs, "w", encoding=encoding) as out, patch.object(sys, stream, out):
            yield said
    finally:
        reader.join()
        os.close(ours)
        text = ESCAPE.sub("", sent.decode(encoding)).replace("\r\n", "\n")
        said.extend(text.removesuffix("\n").split("\n") if text else ())


def on_terminal(width: int, *words: str) -> list[str]:
    """The lines that a command prints on a terminal of that width; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"NO_COLOR": "1", "TERM": "xterm-256color"}
    with (
        terminal(width) as lines,
        patch.dict(os.environ, environment, clear=True),
        pytest.raises(SystemExit) as ended,
    ):
        app([*words], prog_name="cutedge")
    assert not ended.value.code, words
    return lines
