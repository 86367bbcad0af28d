"""How any table or JSON value is printed; figures are as in ``tracer.words``.

In a pipe a line is as wide as what is in it. On a terminal nothing is wider than the terminal:
sentences are broken between words, and tables lose columns, which they name.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from math import isfinite
from typing import Any, NamedTuple, TypeVar

import typer
from rich.cells import cell_len

from cli.app import JSON_VERSION, say
from cli.terminal import WIDE, broken, room
from tracer.words import visible


def print_all(parts: Iterable[str | tuple[Any, Any]], title: str = "") -> None:
    """Lines, and tables as (columns, rows), one after another, under a title."""
    if title:
        say(title, bold=True)
    for part in parts:
        say(part) if isinstance(part, str) else print_table(*part)


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


class Column(NamedTuple):
    """A column of a table: its head, and how it is shown."""

    head: str
    side: str = "<"
    """``<``: text. ``>``: numbers with their units. ``%``: shares, on a terminal with a bar.
    ``~``: sentences, which break between words where the terminal is narrow."""
    rank: int = 0
    """Where the terminal is narrow, those with 0 are shown, then as many others as there is room
    for, the lowest first. Those of one rank are shown together or not at all."""


def _column(text: str) -> Column:
    """A head, then its side where it is not text, then its rank.

    >>> _column("share%"), _column("calls>1")
    (Column(head='share', side='%', rank=0), Column(head='calls', side='>', rank=1))
    """
    match = re.fullmatch("(.*?)(?:([<>%~])([0-9]*))?", text)
    return Column(match[1], match[2] or "<", int(match[3] or 0)) if match else Column(text)


_Thing = TypeVar("_Thing")

_LEAST = 28
"""Characters that a column of sentences has, where it has that many."""


def print_table(heads: str | Sequence[str | Column], rows: Iterable[Sequence[str] | str]) -> None:
    """A table, with columns as in ``"policy, calls>1, share%"``; a row of text is a heading.

    It is no wider than the terminal, unless --wide is given: bars are left out, then columns by
    their rank, which a line under the table names. Numbers are never broken.
    """
    given = heads.split(", ") if isinstance(heads, str) else heads
    columns = [head if isinstance(head, Column) else _column(head) for head in given]
    body = [row if isinstance(row, str) else [visible(cell) for cell in row] for row in rows]
    names, width = [column.head for column in columns], room(sys.stdout)
    cells = [names, *(row for row in body if not isinstance(row, str))]
    widths = [
        max(cell_len(line) for row in cells for line in row[n].split("\n"))
        for n in range(len(columns))
    ]
    bars = {n: _BAR + 1 for n, column in enumerate(columns) if column.side == "%"}
    wanted = sum(widths) + 2 * len(widths) - 2 + sum(bars.values())
    if width is None or not _encodes(_EIGHTHS) or (wanted > width and not WIDE.get()):
        bars = {}
    shown = _fit(columns, widths, None if WIDE.get() else width)

    def lines(row: Sequence[str]) -> Iterable[str]:
        parts = [_cell_lines(row[n], columns[n].side, size) for n, size in shown.items()]
        for line in zip_longest(*parts, fillvalue=""):
            padded = [
                _padded(part, columns[n].side, size) + (_bar(part) if n in bars else "")
                for part, (n, size) in zip(line, shown.items(), strict=True)
            ]
            yield "  ".join(padded).rstrip()

    if any(names):
        for line in lines(names):
            typer.secho(line, bold=True)
    for number, row in enumerate(body):
        if isinstance(row, str):
            say(f"\n{row}" if number else row, bold=True)
        else:
            print(*lines(row), sep="\n")
    if left := [column.head for n, column in enumerate(columns) if n not in shown]:
        say(f"left out for width: {', '.join(left)} (--wide shows them)")


def grouped(
    things: Iterable[_Thing], kind: Callable[[_Thing], str], row: Callable[[_Thing], Sequence[str]]
) -> list[Sequence[str] | str]:
    """Rows of a table, a thing each; on a terminal those of a kind together, under its name."""
    if room(sys.stdout) is None:
        return [row(one) for one in things]
    kinds: dict[str, list[Sequence[str]]] = {}
    for one in things:
        kinds.setdefault(kind(one), []).append(row(one))
    return [line for name, rows in kinds.items() for line in (name, *rows)]


def _fit(columns: Sequence[Column], widths: Sequence[int], most: int | None) -> dict[int, int]:
    """The columns that are shown, and how wide each is, so that all are ``most`` wide together."""
    if most is None:
        return dict(enumerate(widths))
    least = [min(w, _LEAST) if columns[n].side == "~" else w for n, w in enumerate(widths)]
    shown: dict[int, int] = {}

    def spare() -> int:
        return most + 2 - sum(width + 2 for width in shown.values())

    for rank in sorted({column.rank for column in columns}):
        more = {n: least[n] for n, column in enumerate(columns) if column.rank == rank}
        if not rank or sum(width + 2 for width in more.values()) <= spare():
            shown |= more
    for n in shown:
        if columns[n].side == "~":
            shown[n] = min(widths[n], shown[n] + max(spare(), 0))
    texts = [n for n in shown if columns[n].side in "<~"]
    while spare() < 0 and any(shown[n] > 1 for n in texts):  # names wider than the terminal
        widest = max(texts, key=lambda n: shown[n])
        shown[widest] = max(shown[widest] + spare(), shown[widest] // 2)
    return dict(sorted(shown.items()))


def _cell_lines(cell: str, side: str, width: int) -> list[str]:
    lines = cell.split("\n")
    return lines if side in ">%" else [part for line in lines for part in broken(line, width)]


def _padded(part: str, side: str, width: int) -> str:
    space = " " * (width - cell_len(part))
    return space + part if side in ">%" else part + space


_BAR = 8
"""Characters of the bar of 100%."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def _bar(share: str) -> str:
    """A bar as long as a share that is printed as ``12.5%``; of what is no share, or none, spaces.

    >>> _bar("50.0%")
    ' ████    '
    """
    try:
        eighths = round(8 * _BAR * min(max(float(share.removesuffix("%")) / 100, 0), 1))
    except ValueError:
        eighths = 0
    whole, rest = divmod(eighths, 8)
    return f" {_EIGHTHS[8] * whole + (_EIGHTHS[rest] if rest else ''):{_BAR}}"


def _encodes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_rows(columns: Sequence[str], values: Iterable[Sequence[Any]]) -> None:
    """Any table of values. The first column counts most, then a last one of numbers, a result."""
    data = [*values]
    last = len(columns) - 1
    numeric = [all(_is_number(row[n]) for row in data) for n in range(len(columns))]
    print_table(
        [
            Column(head, ">" if numeric[n] else "<", 1 if n == last and n and numeric[n] else 2 * n)
            for n, head in enumerate(columns)
        ],
        [[_text(value) for value in row] for row in data],
    )


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | Decimal | None)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)
