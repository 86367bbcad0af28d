"""Strict reading of the TOML files that users write: every mistake names the file and the key."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from tracer.errors import InputError, alike, suggest
from tracer.files import read_bounded

_MOST_BYTES = 2**20
"""Of a TOML file; those that come with cutedge have some thousands."""
_MOST_PARTS = 64
"""Of a key, and tables within one another; the parser takes time by their square."""


def read_text(path: Path, what: str, most: int = _MOST_BYTES) -> str:
    """A user's file of at most so many bytes, as text.

    Raises InputError that calls the file ``what`` and says why it cannot be read.
    """
    try:
        return read_bounded(path, most).decode("utf-8")
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} cannot be read: it is not UTF-8 text") from error


def shipped_names(folder: Traversable) -> list[str]:
    """The names of the TOML files in a folder of the package."""
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.is_file())


def find_table(name: str, what: str, folder: Traversable) -> tuple[Path, dict[str, Any]]:
    """(what errors call it, its table) of a description by its name or the path of a TOML file.

    Case, hyphens, spaces and underscores of a name are no matter. Raises InputError that calls the
    thing ``what``.
    """
    known = shipped_names(folder)
    path, text = find_toml(alike(name, known) or name, what, folder, known)
    return path, read_toml(path, text)


def find_toml(name: str, what: str, folder: Traversable, known: Sequence[str]) -> tuple[Path, str]:
    """(what errors call it, text) of a file of the package by its name, or of a user's by its path.

    ``known`` are the names in ``folder``, in the order that an error lists them. Raises InputError
    that calls the thing ``what``.
    """
    if is_path(name):
        return Path(name), read_text(Path(name), f"{what} file")
    if name not in known:
        raise _unknown(name, what, known)
    return Path(f"{name}.toml"), (folder / f"{name}.toml").read_text(encoding="utf-8")


def is_path(name: str) -> bool:
    """Whether a user means a file by what may be a name of the package's."""
    return name.endswith(".toml") or "/" in name


def matching(part: str | None, what: str, known: Sequence[str]) -> list[str]:
    """The known names with ``part`` in them, or the one that it is; a path as it is.

    Raises InputError where the file has not one.
    """
    if part is None:
        return [*known]
    if is_path(part) or part in known:
        return [part]
    if there := alike(part, known):
        return [there]
    if not (found := [name for name in known if part.lower() in name]):
        raise _unknown(part, what, known)
    return found


def _unknown(name: str, what: str, known: Sequence[str]) -> InputError:
    return InputError(
        f"unknown {what} {name!r}; known are {', '.join(known)}, or the path of a .toml file."
        + suggest(name, known)
    )


def read_toml(path: Path, text: str) -> dict[str, Any]:
    """The table in ``text``; ``path`` is what errors call it.

    Duplicate keys are errors, and so are whole numbers of more than 64 bits: TOML has not got them.
    """
    keys = re.split(r"[=,{}\[\]\n]", text)
    if any(re.sub(r"\.{2,}", "", key).count(".") > _MOST_PARTS for key in keys):
        raise InputError(f"{path}: a key has more than {_MOST_PARTS} parts")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    _check_numbers(path, table)
    return table


def _check_numbers(path: Path, table: dict[str, Any]) -> None:
    front: list[tuple[str, Any]] = [*table.items()]
    while front:
        key, value = front.pop()
        if isinstance(value, dict):
            front += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            front += [(key, inner) for inner in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{path}: {key} is a whole number of more than 64 bits")


def check_keys(
    table: Mapping[str, Any],
    where: str,
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Refuse a key that is neither required nor optional, and a required key that is missing."""
    required = tuple(required)
    known = (*required, *optional)
    for key in table:
        if key not in known:
            raise InputError(
                f"{where}: unknown key {key!r}; known are {', '.join(known)}." + suggest(key, known)
            )
    for key in required:
        if key not in table:
            raise InputError(f"{where}: key {key!r} is missing")


def quoted(text: str) -> str:
    """A TOML string: JSON's, which leaves only DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
