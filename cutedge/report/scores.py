"""The figures that decide between policies: time, traffic, calls, what is seen, energy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from partition.seen import What, known
from partition.split import Split
from tracer.words import counted, duration, human, joules


@dataclass(frozen=True, slots=True)
class Bar:
    """What one policy has of a figure."""

    policy: str
    role: str
    """``shown``, ``baseline``, ``best allowed``, or several of these."""
    text: str
    """The figure, with its unit; ``not known`` where it is not."""
    share: float | None
    """Of the largest one beside it, from 0 to 1; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a policy beside those of the baseline and of the best allowed policy."""

    name: str
    text: str
    """Of the policy that is shown; of what is seen the sorts of tensor."""
    claim: str
    """How far it is from the baseline's; empty where that is not known."""
    bars: Sequence[Bar]
    """The policy that is shown comes first; one policy in two roles is one bar."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first screen of a policy says."""

    limit: str
    """The true bottleneck, in a sentence."""
    scores: Sequence[Score]
    step: str
    """What to do next, in a sentence."""
    command: str
    """That does it."""


def seconds_of(split: Split) -> float | None:
    """What a run takes: as it was laid out, else one after another; None where not known."""
    return split.run_seconds if split.schedule is None else split.schedule.makespan_seconds


def seen_of(split: Split) -> list[What]:
    """The sorts of tensor that devices which are not trusted see or can work out."""
    return known(sort for one in split.exposed for sort in one.seen)


def best_allowed(splits: Sequence[Split], shown: int, fits: Sequence[bool]) -> int:
    """Which policy is the best of those that fit and show no more than the one ``shown``.

    Fewest seconds where these are known, else fewest bytes of those that use an accelerator; of
    equally good ones the one shown, then the first.
    """
    mine, timed = set(seen_of(splits[shown])), seconds_of(splits[shown]) is not None

    def cost(number: int) -> float | None:
        split = splits[number]
        if not fits[number] or not mine.issuperset(seen_of(split)):
            return None
        if timed:
            return seconds_of(split)
        return split.traffic.totals.payload_bytes if split.traffic.calls else None

    costs = {n: value for n in range(len(splits)) if (value := cost(n)) is not None}
    return min(costs, key=lambda n: (costs[n], n != shown, n), default=shown)


def _least(late: object, text: str) -> str:
    return f"{'≥ ' if late else ''}{text}"


def _time(split: Split) -> tuple[float | None, str]:
    value = seconds_of(split)
    return value, "" if value is None else _least(split.left_out, duration(value))


def _traffic(split: Split) -> tuple[float | None, str]:
    size = split.traffic.totals.payload_bytes
    return size, human(size)


def _calls(split: Split) -> tuple[float | None, str]:
    return len(split.traffic.calls), f"{len(split.traffic.calls):,}"


def _seen(split: Split) -> tuple[float | None, str]:
    sorts = seen_of(split)
    return len(sorts), counted(len(sorts), "sort") if sorts else "nothing"


def _energy(split: Split) -> tuple[float | None, str]:
    found = split.energy_figures
    value = found["run_joules"]
    return value, "" if value is None else _least(found["energy_at_least"], joules(value))


MEASURES: Mapping[str, tuple[Callable[[Split], tuple[float | None, str]], str | None]] = {
    "time": (_time, None),
    "traffic": (_traffic, None),
    "calls": (_calls, "calls"),
    "what is seen": (_seen, "sorts of tensor"),
    "energy": (_energy, None),
}
"""Figure -> (its value and text of a split, None and empty where not known; what is counted)."""


def scores(shown: Split, baseline: Split, best: Split) -> list[Score]:
    """The figures of a policy beside two others; energy where one of the three has it."""
    roles: dict[str, tuple[Split, list[str]]] = {}
    for split, role in ((shown, "shown"), (baseline, "baseline"), (best, "best allowed")):
        roles.setdefault(split.policy, (split, []))[1].append(role)

    found = []
    for name, (measure, by) in MEASURES.items():
        values = {policy: measure(split) for policy, (split, _) in roles.items()}
        if name == "energy" and all(value is None for value, _ in values.values()):
            continue
        most = max((value or 0.0 for value, _ in values.values()), default=0.0)
        bars = [
            Bar(
                policy,
                ", ".join(roles[policy][1]),
                text or "not known",
                None if value is None else value / most if most else 0.0,
            )
            for policy, (value, text) in values.items()
        ]
        mine, theirs = values[shown.policy][0], values[baseline.policy][0]
        claim = "the baseline" if shown.policy == baseline.policy else ""
        if not claim and mine is not None and theirs is not None:
            claim = against(mine, theirs, baseline.policy, by)
        text = ", ".join(one.words for one in seen_of(shown)) if name == "what is seen" else ""
        found.append(Score(name, text or bars[0].text, claim, bars))
    return found


def against(value: float, other: float, name: str, what: str | None = None) -> str:
    """How far a figure is from that of a policy ``name``: in percent, or counted in ``what`` it is of.

    >>> against(1, 4, "a"), against(12, 4, "a"), against(5, 4, "a"), against(4, 4, "a")
    ('75.0% less than a', '3 times a', '25.0% more than a', 'as a')
    >>> against(1, 4, "a", "calls")
    '3 calls fewer than a'
    """
    if value == other:
        return f"as {name}"
    if what is not None:
        return (
            f"{abs(value - other):,.0f} {what} {'fewer' if value < other else 'more'} than {name}"
        )
    if not other:
        return f"{name} has nothing of it"
    if value >= 2 * other:
        return f"{value / other:,.3g} times {name}"
    share = f"{abs(value / other - 1):.1%}"
    return f"{share} {'less' if value < other else 'more'} than {name}"
