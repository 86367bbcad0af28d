"""Which policy is best at which size, and where that changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tracer.errors import InputError

Values = Mapping[str, float]
"""Policy -> what it costs at a size."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the policies cost at one size."""

    size: int
    """Of what is varied."""
    best: str
    """The policy that costs least there."""
    values: Values
    """Policy -> what it costs there; those that are possible."""
    left_out: tuple[str, ...] = ()
    """What the values leave out since it is not known: with any of it they are at least so much."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """A size from which on another policy is best."""

    size: int
    """The first at which ``after`` is best; one less, and ``before`` is."""
    before: str
    """The policy that is best below."""
    after: str
    """The policy that is best from there on."""


def best_over(
    evaluate: Callable[[int], Values], first: int, last: int
) -> tuple[list[Point], list[Crossover]]:
    """The best policy at ``first``, at its doubles and at ``last``, and where it changes between.

    Between two neighbours with different best policies the change is found by halving, each time
    by evaluating the policies at the size itself, down to two sizes that differ by one. Where the
    best changes and changes back between two neighbours, that is not seen. Of equal policies the
    one that comes first is best.
    """
    if first > last:
        raise InputError(f"the sizes {first}..{last} must go up")
    known: dict[int, Point] = {}

    def point(size: int) -> Point:
        if size not in known:
            values = evaluate(size)
            known[size] = Point(size, min(values, key=lambda name: values[name]), values)
        return known[size]

    def changes(low: int, high: int) -> list[Crossover]:
        before, after = point(low).best, point(high).best
        if before == after:
            return []
        if high == low + 1:
            return [Crossover(high, before, after)]
        middle = (low + high) // 2
        return changes(low, middle) + changes(middle, high)

    sizes = [first]
    while sizes[-1] * 2 < last:
        sizes.append(sizes[-1] * 2)
    sizes += [last] if last > first else []
    found = [c for low, high in pairwise(sizes) for c in changes(low, high)]
    return [point(size) for size in sizes], found
