"""Policies as points: the figures that can be set against each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from cutedge.report.axes import Ticks, log_byte_ticks
from cutedge.report.scores import seconds_of, seen_of
from partition.split import Split
from tracer.words import duration, human, joules


@dataclass(frozen=True, slots=True)
class Axis:
    """One figure of all policies."""

    title: str
    values: Sequence[float | None]
    """By policy; None where it is not known."""
    texts: Sequence[str]
    """By policy."""
    ticks: Ticks
    zero: bool
    """Whether it is 0 of some policy, which a logarithmic axis has no place for."""


@dataclass(frozen=True, slots=True)
class Choose:
    """Policies with the figures to choose by."""

    policies: Sequence[str]
    axes: Mapping[str, Axis]
    """By what a page's address calls them; the first two are shown first."""


def choose(partitions: Sequence[Split]) -> Choose:
    """The figures of policies, seconds first where one is known."""
    timed = any(seconds_of(one) is not None for one in partitions)

    def axis(
        title: str,
        measure: Callable[[Split], float | None],
        write: Callable[[Split, float], str],
        ticks: Callable[[float, float], Ticks],
    ) -> Axis:
        values = [measure(one) for one in partitions]
        above = [value for value in values if value]
        return Axis(
            title,
            values,
            [
                "not known" if value is None else write(one, value)
                for one, value in zip(partitions, values, strict=True)
            ],
            ticks(min(above) / 1.3, max(above) * 1.3) if above else Ticks([0], ["0"]),
            0 in values,
        )

    def least(late: object, text: str) -> str:
        return f"{'≥ ' if late else ''}{text}"

    seconds = axis(
        "seconds", seconds_of, lambda p, s: least(p.left_out, duration(s)), _marks(duration)
    )
    size = axis(
        "bytes",
        lambda p: p.traffic.totals.payload_bytes,
        lambda _, size: human(int(size)),
        lambda low, high: log_byte_ticks(max(1, floor(low)), ceil(high)),
    )
    axes = {
        **({"seconds": seconds} if timed else {}),
        "bytes": size,
        "calls": axis(
            "calls",
            lambda p: len(p.traffic.calls),
            lambda _, calls: f"{calls:,.0f}",
            _marks(lambda calls: f"{calls:,.0f}"),
        ),
        "seen": axis(
            "sorts of tensor seen",
            lambda p: len(seen_of(p)),
            lambda p, _: ", ".join(one.words for one in seen_of(p)) or "nothing",
            _whole,
        ),
        "energy": axis(
            "energy",
            lambda p: p.energy_figures["run_joules"],
            lambda p, energy: least(p.energy_figures["energy_at_least"], joules(energy)),
            _marks(joules),
        ),
    }
    return Choose([one.policy for one in partitions], axes)


MOST_MARKS = 8
"""Of an axis with more than its powers of ten."""


def _whole(low: float, high: float) -> Ticks:
    values = list(range(1, floor(high) + 1))
    return Ticks(values, [str(value) for value in values])


def _marks(write: Callable[[float], str]) -> Callable[[float, float], Ticks]:
    """1, 2 and 5 times powers of ten, or the powers alone where these are many."""

    def ticks(low: float, high: float) -> Ticks:
        powers = range(floor(log10(low)), ceil(log10(high)) + 1)
        for parts in ((1, 2, 5), (1,)):
            values = [
                value
                for power in powers
                for part in parts
                if low <= (value := part * 10.0**power) <= high
            ]
            if len(values) <= MOST_MARKS:
                break
        return Ticks(values, [write(value) for value in values])

    return ticks
