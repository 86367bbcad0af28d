"""What a terminal has room for: its width, and lines that are broken to it."""

import os
import re
from contextvars import ContextVar
from textwrap import wrap
from typing import TextIO

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
