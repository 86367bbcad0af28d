"""What came as text from another process, read as what it has to be."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from cutedge.runtime import RunError
from tracer.words import plain

MOST_NAME = 1000
"""The longest text that a message may hold: a parameter's name, an address."""


@dataclass(frozen=True, slots=True)
class Maybe:
    """A form that may be left out: None stands there, or in a record nothing."""

    form: Any


def read(value: Any, form: Any, what: str) -> Any:
    """``value`` as ``form`` says; raises RunError that names ``what`` for anything else.

    A form is ``int`` (a whole number that 8 bytes hold, 0 or more), ``float`` (a finite number, 0
    or more), ``str`` (a line), ``bool``, ``list`` or ``dict`` of whatever is checked elsewhere, a
    set of values to choose from, ``Maybe`` of a form, a list of one form for any number of such, a
    tuple of forms for as many values, ``{int: form}`` for a mapping from numbers, which are text in
    it, ``{str: form}`` for one from any names, or a mapping from names to forms for a record of
    just these.
    """
    match form:
        case Maybe():
            return None if value is None else read(value, form.form, what)
        case frozenset():
            if isinstance(value, int | str) and value in form:
                return value
        case [one]:
            if isinstance(value, list):
                return [read(part, one, what) for part in value]
        case tuple():
            if isinstance(value, list) and len(value) == len(form):
                return tuple(read(*pair, what) for pair in zip(value, form, strict=True))
        case dict() if int in form:
            if isinstance(value, dict):
                return {
                    _number(key, what): read(one, form[int], what) for key, one in value.items()
                }
        case dict() if str in form:
            if isinstance(value, dict):
                return {
                    read(key, str, what): read(one, form[str], what) for key, one in value.items()
                }
        case dict():
            if isinstance(value, dict) and value.keys() <= form.keys():
                return {
                    key: read(value.get(key), one, f"{key} of {what}") for key, one in form.items()
                }
        case _ if form in (list, dict, bool):
            if isinstance(value, form):
                return value
        case _ if form is int:
            if type(value) is int and 0 <= value < 2**63:
                return value
        case _ if form is float:
            if type(value) in (int, float) and 0 <= value < 2**63 and isfinite(value):
                return float(value)
        case _ if form is str:
            if isinstance(value, str) and len(value) <= MOST_NAME and value.isprintable():
                return value
    raise RunError(f"{what} is damaged: {plain(repr(value), 60)}")


def _number(key: str, what: str) -> int:
    if key.isascii() and key.isdigit() and len(key) < 19:
        return int(key)
    raise RunError(f"{what} is damaged: {plain(repr(key), 60)} is no number")
