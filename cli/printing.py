"""How any figure, table or JSON value is printed. Units are powers of two and say so."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from math import isfinite
from textwrap import wrap
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text


def console() -> Console:
    """Standard output; wide enough for a line of figures where it is not a terminal."""
    # No markup: a directory or a device may be called [x].
    out = Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = 120
    return out


def print_json(value: Any) -> None:
    """A value for machines."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    """What JSON has for a value: null where a float is no number, text for dates and the like."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | Decimal():
            return float(value) if isfinite(value) else None
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case bytes():
            return value.hex()
    return str(value)


def mib(size: int) -> str:
    """Bytes as MiB to four digits, the precision of the reference log."""
    return f"{size / 2**20:.4f} MiB"


def human(size: int) -> str:
    """Bytes in the largest binary unit that leaves a number of one or more."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Seconds to four digits, in a unit that leaves a number of one or more."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * scale >= 1 or not seconds:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def rate(bytes_per_second: float) -> str:
    """Bytes a second, in powers of ten as links are sold."""
    for scale, unit in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_second >= scale:
            return f"{bytes_per_second / scale:.4g} {unit}"
    return f"{bytes_per_second:.4g} B/s"


def counted(number: int, noun: str) -> str:
    """``1 call``, ``2 calls``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def covered(share: float) -> str:
    """A coverage in percent, 100 only when nothing is left out."""
    return f"{share if share == 1 else min(share, 0.999):.1%}"


def wrapped(head: str, items: Iterable[str], width: int) -> list[str]:
    """``head`` and a list in lines that end between items, never inside one."""
    whole = ", ".join(item.replace(" ", "\0") for item in items)
    lines = wrap(whole, width, initial_indent=head, subsequent_indent=" " * 12)
    return [line.replace("\0", " ") for line in lines]


def print_rows(columns: Sequence[str], values: Iterable[Sequence[Any]]) -> None:
    """Any table, as wide as it is: a terminal may wrap its lines, but nothing is cut."""
    data = [*values]
    numeric = [all(_is_number(row[n]) for row in data) for n in range(len(columns))]
    print_table(
        columns,
        [[_cell(value) for value in row] for row in data],
        "".join(">" if number else "<" for number in numeric),
    )


def print_table(columns: Sequence[str], body: Iterable[Sequence[str]], align: str) -> None:
    """A table as wide as it is; ``align`` has a ``<`` or ``>`` for each column."""
    cells = [columns, *body]
    pads = [str.rjust if side == ">" else str.ljust for side in align]
    widths = [
        max(cell_len(line) for row in cells for line in row[n].split("\n"))
        for n in range(len(columns))
    ]
    for number, row in enumerate(cells):
        for parts in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            line = "  ".join(
                pad(part, width - cell_len(part) + len(part))
                for part, pad, width in zip(parts, pads, widths, strict=True)
            ).rstrip()
            if number:
                print(line)
            else:
                console().print(Text(line, style="bold"), soft_wrap=True)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | Decimal | None)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)
