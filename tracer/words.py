"""How figures and names are written for people. Units of bytes are powers of two and say so."""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What steers a terminal or turns text around, and what XML cannot hold; not tabs and newlines."""


def visible(text: str) -> str:
    """``text`` with an escape in place of each character that is not to be seen.

    A module, a file or a device may be called whatever its author likes.

    >>> print(visible("red \\x1b[31m"))
    red \\x1b[31m
    """
    return _HIDDEN.sub(
        lambda found: (
            f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}"
        ),
        text,
    )


def mib(size: int) -> str:
    """Bytes as MiB to four digits, the precision of the reference log."""
    return f"{size / 2**20:.4f} MiB"


def human(size: int) -> str:
    """Bytes in the largest binary unit that leaves a number of one or more."""
    for power, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Seconds to four digits, in a unit that leaves a number of one or more."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * scale >= 1 or not seconds:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def joules(energy: float) -> str:
    """Joules to four digits, in a unit that leaves a number of one or more."""
    for scale, unit in ((1, "J"), (1e3, "mJ"), (1e6, "uJ"), (1e9, "nJ")):
        if energy * scale >= 1 or not energy:
            return f"{energy * scale:,.4g} {unit}"
    return f"{energy * 1e12:.4g} pJ"


def rate(bytes_per_second: float) -> str:
    """Bytes a second, in powers of ten as links are sold."""
    for scale, unit in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_second >= scale:
            return f"{bytes_per_second / scale:.4g} {unit}"
    return f"{bytes_per_second:.4g} B/s"


def counted(number: int, noun: str) -> str:
    """``1 call``, ``2 calls``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def covered(share: float) -> str:
    """A coverage in percent, 100 only when nothing is left out."""
    return f"{share if share == 1 else min(share, 0.999):.1%}"


def plain(text: str, most: int = 400) -> str:
    """Text from elsewhere as it can be shown: one line of ``most`` characters, no control ones."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
