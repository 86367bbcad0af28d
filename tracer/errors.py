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


_A_PAGE = 1000
"""Letters of a text that is no name: what is near to it would be looked for for minutes."""


def alike(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` is but for case, hyphens, spaces and underscores.

    >>> alike("RTX 4090", ["h200", "rtx-4090"])
    'rtx-4090'
    """
    return next((name for name in known if _plain(name) == _plain(word)), None)


def near(word: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three known names: those that ``word`` is a part of, else those spelt nearly alike.

    >>> near("flash", ["layers", "flash-attention", "fastest"])
    ['flash-attention']
    """
    asked, names = _plain(word), {_plain(name): name for name in known}
    within = [name for plain, name in names.items() if len(asked) > 2 and asked in plain]
    within.sort(key=lambda name: not _plain(name).startswith(asked))
    spelt = get_close_matches(asked, names, n=3, cutoff=cutoff)
    return within[:3] or [names[plain] for plain in spelt]


def suggest(word: object, known: Iterable[str]) -> str:
    """' Did you mean a, b?' for the known names near ``word``, or an empty string.

    Nothing is near to what is no text, or to a page of it.
    """
    found = near(word, known) if isinstance(word, str) and len(word) < _A_PAGE else []
    return f" Did you mean {', '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def choose(value: object, known: Sequence[str], option: str) -> None:
    """Refuse a value that is not one of ``known``, naming the option."""
    if value not in known:
        raise InputError(
            f"{option} {value!r} is not one of {', '.join(known)}." + suggest(value, known)
        )
