"""The one exception family that a user of cutedge ever meets."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class CutedgeError(Exception):
    """Something the user gave cannot be used; the message names the thing and the fix.

    ``exit_code`` is what the command line returns: 2 when the request itself is wrong (a
    misspelt option, an unknown model), 1 when a sound request failed on the way (a damaged
    file, a full disk).
    """

    exit_code = 1


class InputError(CutedgeError):
    """The request cannot be understood or carried out as it was written."""

    exit_code = 2


def suggest(word: str, known: Iterable[str]) -> str:
    """' Did you mean a, b?' for the known names near ``word``, or an empty string."""
    near = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def choose(value: str, known: Sequence[str], option: str) -> None:
    """Refuse a value that is none of ``known``, naming the option."""
    if value not in known:
        raise InputError(
            f"{option} {value!r} is none of {', '.join(known)}." + suggest(value, known)
        )
