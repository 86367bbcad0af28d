"""Figures in the description files of devices and links: a number, its unit and its source.

A figure is a TOML table ``[key]`` with ``value`` and ``source``; the key carries the unit
(``memory_bandwidth_bytes_per_second``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.errors import CutedgeError, InputError
from tracer.files import write_whole
from tracer.toml_files import check_keys, quoted


@dataclass(frozen=True, slots=True)
class Figure:
    """What may stand under a key of a description file."""

    whole: bool = False
    """Only a whole number, as of bytes."""
    positive: bool = False
    """More than 0; else 0 is allowed."""
    most: float = 2**63 - 1
    """The largest value, itself allowed."""
    flag: bool = False
    """Not a number but true or false."""

    def read(self, where: str, entry: Any) -> tuple[float, str]:
        """(value, source) of a figure's table. Raises InputError that begins with ``where``."""
        if not isinstance(entry, dict):
            raise InputError(f"{where}: a table with value and source is wanted, not {entry!r}")
        check_keys(entry, where, required=("value", "source"))
        value, source = entry["value"], entry["source"]
        if self.flag:
            fits = type(value) is bool
        else:
            fits = type(value) is int or (type(value) is float and not self.whole)
            fits = fits and 0 <= value <= self.most  # no NaN is
            fits = fits and not (self.positive and value == 0)
        if not fits:
            raise InputError(f"{where}: value must be {self}, not {value!r}")
        if not isinstance(source, str) or not source.strip():
            raise InputError(f"{where}: source must say where the figure comes from")
        return value, source

    def __str__(self) -> str:
        if self.flag:
            return "true or false"
        least = "more than 0" if self.positive else "0 or more"
        return f"a {'whole ' if self.whole else ''}number, {least} and at most {self.most:g}"


def rounded(value: float) -> float:
    """A fitted figure in nine digits: more are not in a measurement, and processors differ there.

    A whole number stays one.
    """
    return type(value)(float(f"{value:.9g}"))


def check_figure_keys(
    table: Mapping[str, Any],
    path: Path | str,
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """``check_keys`` that also says which key is meant by one without its unit."""
    required, optional = tuple(required), tuple(optional)
    for key in table:
        meant = [known for known in (*required, *optional) if known.startswith(f"{key}_")]
        if meant and key not in (*required, *optional):
            raise InputError(
                f"{path}: key {key!r} lacks its unit: {' or '.join(meant)}, in that unit"
            )
    check_keys(table, str(path), required=required, optional=optional)


def toml(description: str, heads: Iterable[str], figures: Mapping[str, tuple[float, str]]) -> str:
    """A description file: ``heads`` are its other lines, ``figures`` by key (value, source).

    >>> print(toml("mine", ["trusted = false"], {"launch_seconds": (1e-6, "a clock")}), end="")
    description = "mine"
    trusted = false
    <BLANKLINE>
    [launch_seconds]
    value = 1e-06
    source = "a clock"
    """
    lines = [f"description = {quoted(description)}", *heads]
    for key, (value, source) in figures.items():
        text = str(value).lower() if isinstance(value, bool) else repr(value)
        lines += ["", f"[{key}]", f"value = {text}", f"source = {quoted(source)}"]
    return "\n".join(lines) + "\n"


def write_toml(out: Path, text: str) -> None:
    """Write a description file, whole or not at all. Raises CutedgeError where that cannot be."""
    try:
        write_whole(out, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise CutedgeError(f"cannot write {out}: {error.strerror or error}") from error
