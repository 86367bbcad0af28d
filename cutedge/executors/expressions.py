"""Short regular expressions that match given names of weights and no others.

Literals, alternatives and ranges of one digit alone, which Python's ``re`` and ECMAScript read in
the same way.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

_BEGINS = re.compile(r"(^|[._])$")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def expression(asked: Collection[str], kept: Collection[str]) -> str:
    """An expression that is found in every name of ``asked`` and in no name of ``kept``.

    A part of the names alone where one will do, else blocks and parts.

    >>> names = [f"blk.{n}.{part}" for n in range(12) for part in ("attn_q.weight", "ffn_up.weight")]
    >>> expression([name for name in names if "ffn" in name], [name for name in names if "q" in name])
    'ffn'
    >>> expression(names[16:], names[:16])
    'blk\\\\.([89]|1[01])\\\\.'
    """
    part = _shared(asked, kept, least=3)
    if part is not None:
        return part
    blocks: dict[str, list[int]] = defaultdict(list)  # what stands behind the block -> blocks
    alone: list[str] = []
    for name in asked:
        if match := _BLOCK.fullmatch(name):
            blocks[match[2]].append(int(match[1]))
        else:
            alone.append(name)
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for end, where in blocks.items():
        together[tuple(sorted(where))].append(end)
    found: list[str] = []
    for numbers, ends in together.items():
        names = [f"blk.{n}.{end}" for end in ends for n in numbers]
        found.append(_shared(names, kept, least=3) or _of_blocks(numbers, ends, kept))
    for name in alone:
        if not any(re.search(one, name) for one in found):
            found.append(_shared([name], kept, least=3) or f"^{re.escape(name)}$")
    return "|".join(found)


def _of_blocks(numbers: Sequence[int], ends: Sequence[str], kept: Collection[str]) -> str:
    """``blk\\.(8|9)\\.(attn|ffn_up)``: what some blocks have."""
    start = rf"blk\.{_numbers(numbers)}\."
    inside = [name for name in kept if re.search(start, name)]
    if not inside:
        return start
    part = _shared(ends, [name.split(".", 2)[2] for name in inside], least=1)
    if part is not None:
        return f"{start}.*{part}" if not all(end.startswith(part) for end in ends) else start + part
    each = [_beginning(end, [name.split(".", 2)[2] for name in inside]) for end in ends]
    each = list(dict.fromkeys(each))
    return f"{start}({'|'.join(each)})" if len(each) > 1 else start + each[0]


def _beginning(end: str, others: Collection[str]) -> str:
    """The shortest beginning of a name that no other one begins with; all of it where one does."""
    for length in range(1, len(end) + 1):
        if not any(other.startswith(end[:length]) for other in others):
            return re.escape(end[:length])
    return f"{re.escape(end)}$"


def _shared(asked: Collection[str], kept: Collection[str], least: int) -> str | None:
    """The shortest text that is in all of some names and in no other; None where there is no such.

    Of ``least`` letters or more, whole words first.
    """
    shortest = min(asked, key=len)
    words: list[str] = re.findall(r"[a-z]+", shortest)
    for word in sorted(dict.fromkeys(words), key=len):
        if len(word) >= least and _tells(word, asked, kept):
            return word
    for length in range(least, len(shortest) + 1):
        for at in range(len(shortest) - length + 1):
            if not _BEGINS.search(shortest[:at]) or not shortest[at].isalpha():
                continue  # letters in the middle of a word say nothing to a reader
            if _tells(shortest[at : at + length], asked, kept):
                return re.escape(shortest[at : at + length])
    return None


def _tells(text: str, asked: Collection[str], kept: Collection[str]) -> bool:
    return all(text in name for name in asked) and not any(text in name for name in kept)


def _numbers(numbers: Iterable[int]) -> str:
    """``(8|9|1[0-5])``: whole numbers, by their last digit."""
    tens: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        tens[str(number)[:-1]].append(number % 10)
    found = [ten + _digits(sorted(set(last))) for ten, last in tens.items()]
    return found[0] if len(found) == 1 else f"({'|'.join(found)})"


def _digits(digits: Sequence[int]) -> str:
    if len(digits) == 1:
        return str(digits[0])
    runs: list[list[int]] = []
    for digit in digits:
        if runs and runs[-1][-1] == digit - 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    told = [f"{r[0]}-{r[-1]}" if len(r) > 2 else "".join(map(str, r)) for r in runs]
    return f"[{''.join(told)}]"
