"""Strict reading of the TOML files that users write: every mistake names the file and the key."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracer.errors import InputError, suggest


def read_text(path: Path, what: str) -> str:
    """A user's file as text. Raises InputError that calls the file ``what`` and says why not."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} cannot be read: it is not UTF-8 text") from error


def read_toml(path: Path, text: str) -> dict[str, Any]:
    """The table in ``text``; ``path`` is what errors call it. Duplicate keys are errors."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


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
