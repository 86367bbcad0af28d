"""The one exception family that a user of cutedge ever meets."""

import re
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


def alike(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` is but for case, hyphens, spaces and underscores.

    >>> alike("RTX 4090", ["h200", "rtx-4090"])
    'rtx-4090'
    """
    return next((name for name in known if _plain(name) == _plain(word)), None)


def near(word: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three known names near ``word``: those that it is a part of, then those spelt alike."""
    by_plain = {_plain(name): name for name in known}
    asked = _plain(word)
    begun = [name for plain, name in by_plain.items() if plain.startswith(asked)]
    within = [name for plain, name in by_plain.items() if asked in plain]
    spelt = [by_plain[plain] for plain in get_close_matches(asked, by_plain, n=3, cutoff=cutoff)]
    return list(dict.fromkeys([*begun, *within, *spelt] if len(asked) > 2 else spelt))[:3]


def suggest(word: str, known: Iterable[str]) -> str:
    """' Did you mean a, b?' for the known names near ``word``, or an empty string."""
    found = near(word, known)
    return f" Did you mean {', '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def choose(value: str, known: Sequence[str], option: str) -> None:
    """Refuse a value that is none of ``known``, naming the option."""
    if value not in known:
        raise InputError(
            f"{option} {value!r} is none of {', '.join(known)}." + suggest(value, known)
        )
