"""How any table or JSON value is printed; figures are as in ``tracer.words``."""

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

from cli.app import JSON_VERSION
from tracer.words import counted, covered, duration, human, mib, rate, visible

__all__ = [
    "console", "counted", "covered", "duration", "human", "mib", "print_json", "print_rows",
    "print_table", "rate", "wrapped",
]  # fmt: skip


class _Console(Console):
    """Prints what a name hides, rather than sending it to the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_visible, objects), **options)


def _visible(value: Any) -> Any:
    match value:
        case str():
            return visible(value)
        case Text():
            return Text(visible(value.plain), style=value.style)
    return value


def console() -> Console:
    """Standard output; wide enough for a line of figures where it is not a terminal."""
    # No markup: a directory or a device may be called [x].
    out = _Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = 120
    return out


def print_json(value: Mapping[str, Any]) -> None:
    """What a command found, for machines: one object, results in lists under names of their own."""
    print(json.dumps(_plain({"version": JSON_VERSION, **value}), indent=2))


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
    cells = [[visible(cell) for cell in row] for row in (columns, *body)]
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
