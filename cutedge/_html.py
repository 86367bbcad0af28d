"""What a notebook shows."""

from collections.abc import Iterable, Sequence
from html import escape


def rows(title: str, columns: Sequence[str], values: Iterable[Sequence[object]]) -> str:
    """A small table with a title, as HTML."""

    def cell(kind: str, value: object) -> str:
        return f"<{kind}>{escape(str(value))}</{kind}>"

    head = "".join(cell("th", column) for column in columns) if any(columns) else ""
    body = "".join(f"<tr>{''.join(cell('td', value) for value in row)}</tr>" for row in values)
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"
