"""The marks of an axis, at figures that one can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10

from tracer.words import human


@dataclass(frozen=True, slots=True)
class Ticks:
    """The marks of an axis."""

    values: Sequence[float]
    texts: Sequence[str]


def byte_ticks(most: int) -> Ticks:
    """Marks from 0 that are a power of two apart, six at most above 0."""
    step = 2 ** max(ceil(log2(max(most, 1) / 6)), 0)
    values = [step * n for n in range(most // step + 1)]
    return Ticks(values, [round_bytes(value) for value in values])


def log_byte_ticks(least: int, most: int) -> Ticks:
    """Powers of two around a range, at most eight of them; KiB, MiB and GiB themselves if apart.

    >>> log_byte_ticks(3_000_000, 5_000_000_000_000).texts
    ['1 MiB', '32 MiB', '1 GiB', '32 GiB', '1 TiB', '32 TiB']
    """
    low, high = floor(log2(least)), ceil(log2(most))
    for step in (1, 2, 5, 10, 20):
        powers = range(low // step * step, -(-high // step) * step + 1, step)
        if len(powers) <= 8:
            break
    return Ticks([2**power for power in powers], [round_bytes(2**power) for power in powers])


def round_bytes(size: int) -> str:
    """Bytes on an axis: ``128 MiB``."""
    return human(size).replace(".0 ", " ")


def number_ticks(most: int) -> Ticks:
    """Marks from 0 that are 1, 2 or 5 times a power of ten apart, six at most above 0."""
    step = next(
        step
        for power in range(30)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if most / step <= 6
    )
    values = [step * n for n in range(most // step + 1)]
    return Ticks(values, [_scaled(value) for value in values])


def decades(least: float, most: float) -> Ticks:
    """The powers of ten within a range."""
    powers = range(floor(log10(least)), ceil(log10(most)) + 1)
    values = [value for power in powers if least <= (value := 10.0**power) <= most]
    return Ticks(values, [_scaled(value) for value in values])


def flop_rate(rate: float) -> str:
    """FLOPs a second, in powers of ten as devices are sold."""
    return f"{_scaled(rate, ' ')}FLOP/s"


def _scaled(value: float, gap: str = "") -> str:
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g}{gap}{unit}"
    return f"{value:.4g}{gap}"
