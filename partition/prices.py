"""What each rule, secret and protection of a policy costs: the best with it, less that without it."""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from partition.masked_choice import protecting
from partition.objective import figure, problem_of, unit_of
from partition.optimise import Placed, place
from partition.policy import Policy, free_ops
from partition.problem import InfeasibleError, NotFoundError, kept_from
from partition.protects import Protect, named
from partition.setting import Setting
from tracer.graph import OpGraph

if TYPE_CHECKING:
    from partition.solve import Proof


@dataclass(frozen=True, slots=True)
class Price:
    """What it costs that a rule or a secret of a policy is kept."""

    rule: str
    """As the policy has it; of a secret or a protection that word and its conditions."""
    reason: str
    """Why it is kept, in the policy's words."""
    ops: int
    """How many it pins; of a secret, how many it keeps from a device that they could be on; of a
    protection, how many it names."""
    saved: int
    """How much less it would cost without it, in ``unit``: the optimum, or of a policy that leaves
    nothing free the same placement."""
    unit: str
    """``bytes``, ``ns``, ``nJ`` or ``weighted``."""
    proven: bool
    """Whether that is so: both optima are proven, or there are none."""


def prices(
    graph: OpGraph, policy: Policy, setting: Setting, solution: "Proof | None"
) -> list[Price]:
    """The price of each rule that pins ops, and of each secret: the optimum, less that without it.

    ``solution`` is that of the policy; without one there are the prices of what it protects alone.
    A rule without which nothing is found in time has no price.
    """
    if solution is None:
        return _fixed_prices(graph, policy, setting)
    found = []
    unit = unit_of(policy)
    for what, reason, freer, count in _freer(graph, policy, setting):
        try:
            without = place(graph, freer, setting).solution
        except (NotFoundError, InfeasibleError):
            # More choice takes more time; and what a protection hides is a secret.
            continue
        assert without is not None
        less = solution.objective - (without.objective or 0)
        proven = solution.proven and without.proven
        found.append(Price(what, reason, count(), less, unit, proven))
    return found


def _freer(
    graph: OpGraph, policy: Policy, setting: Setting
) -> Iterator[tuple[str, str, Policy, Callable[[], int]]]:
    """(what is left out, why it is there, the policy without it, how many ops it is of)"""
    free = free_ops(graph, policy)
    for number, rule in enumerate(policy.rules):
        if rule.place != "free":
            freed = replace(rule, place="free")
            rules = (*policy.rules[:number], freed, *policy.rules[number + 1 :])
            freer = replace(policy, rules=rules)
            yield str(rule), rule.reason, freer, partial(_pinned, graph, freer, free)
    for number, secret in enumerate(policy.secrets if setting.untrusted else ()):
        secrets = (*policy.secrets[:number], *policy.secrets[number + 1 :])
        freer = replace(policy, secrets=secrets)
        kept = partial(_kept_by, graph, setting, policy, freer)
        yield f"secret {secret}", secret.reason, freer, kept
    for protect, freer, ops in _unprotected(graph, policy):
        what = f"protect {protect}: {protect.protection}"
        yield what, protect.reason, freer, partial(int, ops)


def _pinned(graph: OpGraph, freer: Policy, free: Set[int]) -> int:
    """How many ops only the freer policy leaves free."""
    return len(free_ops(graph, freer) - free)


def _kept_by(graph: OpGraph, setting: Setting, policy: Policy, freer: Policy) -> int:
    """How many ops are kept from a device by a policy, and not by the freer one."""
    kept, others = (
        set(kept_from(problem_of(whole, one, asked)))
        for one in (policy, freer)
        for whole, asked in [protecting(graph, one, setting)]
    )
    return len({op for op, _ in kept - others})


def _unprotected(graph: OpGraph, policy: Policy) -> Iterator[tuple[Protect, Policy, int]]:
    """(each protection, the policy without it, how many ops it names)"""
    names = [*named(graph, policy.protects).values()]
    for number, protect in enumerate(policy.protects):
        others = (*policy.protects[:number], *policy.protects[number + 1 :])
        yield protect, replace(policy, protects=others), names.count(protect)


def _fixed_prices(graph: OpGraph, policy: Policy, setting: Setting) -> list[Price]:
    """What each protection of a policy that leaves nothing free costs: in bytes, and in nanoseconds
    where these are known."""
    if not policy.protects:
        return []

    def costs(placed: Placed) -> dict[str, float]:
        there = setting.of(placed.graph)
        wanted = {"bytes": "bytes"} | ({"ns": "seconds"} if _is_timed(placed, there) else {})
        return {
            unit: figure(
                placed.graph, replace(policy, objective={one: 1.0}), there, placed.placement
            )
            for unit, one in wanted.items()
        }

    found = []
    masked = costs(place(graph, policy, setting))
    for protect, freer, count in _unprotected(graph, policy):
        try:
            bare = costs(place(graph, freer, setting))
        except InfeasibleError:  # what it hides is a secret
            continue
        rule = f"protect {protect}: {protect.protection}"
        found += [
            Price(rule, protect.reason, count, round(masked[unit] - bare[unit]), unit, True)
            for unit in masked
            if unit in bare
        ]
    return found


def _is_timed(placed: Placed, setting: Setting) -> bool:
    """Whether the seconds of a placement are known."""
    return setting.unknown_seconds is None and all(
        device is None or setting.can_run(op, device)
        for op, device in enumerate(placed.placement.devices)
    )
