"""One placement for several phases of a model: weights and cached state stay where they are.

Prefill and decode are two graphs with the same weights. Units that both have (a block, a module, a
weight with what goes with it) lie on one device in both, so nothing moves between them. What is
least is the sum of what each phase costs, so many times; each phase keeps to the memory by itself:
weights and cached state lie there in both, and only one of them runs at a time.

That is one mixed-integer program: the rows of each phase, with the same assignment variables where
units are the same, and costs added up in one unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, floor
from time import perf_counter

from partition.granularity import common_units
from partition.integer_program import solve_program
from partition.objective import figure, is_rounded, problems_of, second_weight, unit_of
from partition.optimise import obstacle, place, rounding, unsaid
from partition.placement import Placement
from partition.policy import Policy, check_matches
from partition.problem import InfeasibleError, NotFoundError, Problem, placement_of, recount
from partition.setting import Setting
from partition.solve import Proof, explain_infeasible, tightened
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.stages import stage


@dataclass(frozen=True, slots=True)
class Phase:
    """A graph of a model, and how often it runs."""

    graph: OpGraph
    """Annotated."""
    setting: Setting
    """What it runs on: the same machine and limits in all phases, with the times of this graph."""
    weight: float
    """How often, above 0: 1 prefill to 256 steps of decode."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """The best placement of several phases together."""

    placements: tuple[Placement, ...]
    """By phase."""
    costs: tuple[float, ...]
    """What each phase costs a run: bytes, nanoseconds, nanojoules or their weighted sum."""
    proof: Proof
    """Of the sum of these, each so often as the phase runs."""
    unit: str
    """Of the proof: ``bytes``, ``ns``, ``nJ`` or ``weighted``."""
    alone_costs: tuple[float, ...]
    """What a run of each phase costs that is placed by itself under the same limits: no sum of them
    is more than that of ``costs``, where proven. Empty where that was not asked for."""


def check_mixed(policy: Policy, setting: Setting) -> None:
    """Raise InputError where a policy and a setting have no placement for several phases."""
    if policy.objective is None:
        raise InputError(f"{policy.name} leaves nothing free: a mix is of a policy that searches")
    if policy.cut == "layers":
        raise InputError(f"{policy.name} cuts each phase in two: take fastest or min-cut")
    if setting.granularity in ("op", "convex"):
        raise InputError(
            "a mix has weights in one place for all phases: say --granularity layer, module or tensor"
        )
    if len(setting.machine.accelerators) > 1:
        raise InputError(f"a mix takes one accelerator, not {len(setting.machine.accelerators)}")
    if why := obstacle(policy, setting):
        raise InputError(f"{policy.name} {why}")


def place_mixed(phases: Sequence[Phase], policy: Policy, *, beside: bool = True) -> Mixed:
    """Place phases of one model so that what they cost together is least.

    ``beside`` that each of them is placed by itself, which is a start and a bound.

    Raises InputError where the policy is not for that (``check_mixed``) or the phases have not the
    same weights in the same units, InfeasibleError where no placement meets the limits in all of
    them, NotFoundError where none was found in time.
    """
    first, *others = phases
    for phase in phases:
        check_mixed(policy, phase.setting)
        check_matches(phase.graph, policy)
    granularity, limit = first.setting.granularity, first.setting.time_limit
    tied: list[dict[int, int]] = []
    for phase in others:
        common, apart = common_units(first.graph, phase.graph, granularity)
        if apart:
            more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
            raise InputError(
                f"{apart[0]}{more}: not in the same {granularity} in all phases, so one placement "
                "cannot hold for all: take a coarser --granularity"
            )
        tied.append(common)
    alone = [place(phase.graph, policy, phase.setting) for phase in phases] if beside else []
    # One unit for all: so many of it are the nanoseconds of a phase, as often as it runs.
    own = [problems_of(phase.graph, policy, phase.setting) for phase in phases]
    unit = max(phase.weight * many[0].unit for phase, many in zip(phases, own, strict=True))
    ways = [
        problems_of(phase.graph, policy, phase.setting, unit / phase.weight) for phase in phases
    ]
    with stage(f"placing a mix by {policy.name}"):
        started = perf_counter()
        best: tuple[float, list[Placement]] | None = None
        bounds: list[float] = []
        for problems in product(*ways):  # secrets may be kept in several ways
            left = None if limit is None else max(0.1, limit - (perf_counter() - started))
            outcome = solve_program(problems[0], left, [*zip(problems[1:], tied, strict=True)])
            if outcome.bound is None:
                continue
            found = [] if outcome.devices is None else [outcome.devices]
            less = [
                tightened(one, placement_of(one, there)) or one
                for devices in found
                for one, there in zip(problems, devices, strict=True)
            ]
            if any(one is not other for one, other in zip(less, problems, strict=False)):
                again = solve_program(less[0], left, [*zip(less[1:], tied, strict=True)])
                found += [] if again.devices is None else [again.devices]
            unsure = sum(
                phase.weight * unsaid(problem, phase.setting) * second_weight(policy, phase.setting)
                for phase, problem in zip(phases, problems, strict=True)
            )
            bounds.append(outcome.bound * unit - unsure)
            found += [*_shared([one.placement.devices for one in alone], problems, tied)]
            for devices in found:
                placements = [
                    replace(placement_of(one, there), streams=one.streams)
                    for one, there in zip(problems, devices, strict=True)
                ]
                if any(
                    recount(one, there).broken
                    for one, there in zip(problems, placements, strict=True)
                ):
                    continue
                cost = _total(phases, _costs(phases, policy, placements))
                if best is None or cost < best[0]:
                    best = cost, placements
    if not bounds:
        raise InfeasibleError(_why([one for many in ways for one in many]))
    if best is None:
        raise NotFoundError(
            f"no placement for all phases was found in {limit:g} s: take a longer --time-limit"
        )
    value, placements = best
    # No placement costs less than the phases do that are placed by themselves.
    least = sum(
        phase.weight * one.solution.bound
        for phase, one in zip(phases, alone, strict=False)
        if one.solution is not None
    )
    bound = max(min(bounds), least)
    slack = 1e-12 * value + sum(
        phase.weight * rounding(many[0], there, phase.setting)
        for phase, many, there in zip(phases, ways, placements, strict=True)
    ) * is_rounded(policy)
    proven = value <= bound + slack
    whole = ceil(value - 0.5)
    proof = Proof(whole, whole if proven else floor(bound), proven, "program")
    return Mixed(
        tuple(placements),
        _costs(phases, policy, placements),
        proof,
        unit_of(policy),
        _costs(phases, policy, [one.placement for one in alone]) if beside else (),
    )


def _costs(
    phases: Sequence[Phase], policy: Policy, placements: Sequence[Placement]
) -> tuple[float, ...]:
    """What each phase costs a run."""
    return tuple(
        figure(phase.graph, policy, phase.setting, placement)
        for phase, placement in zip(phases, placements, strict=True)
    )


def _total(phases: Sequence[Phase], costs: Sequence[float]) -> float:
    return sum(phase.weight * cost for phase, cost in zip(phases, costs, strict=True))


def _shared(
    alone: Sequence[Sequence[str | None]],
    problems: Sequence[Problem],
    tied: Sequence[Mapping[int, int]],
) -> Iterable[list[list[str | None]]]:
    """What each phase by itself has, taken over by the others where they have the same units."""
    ties = [{op: op for op in range(len(problems[0].graph.ops))}, *tied]
    for number, own in enumerate(alone):
        at = {unit: own[op] for op, unit in ties[number].items() if own[op] is not None}
        for op, unit in enumerate(problems[0].units):  # one op of a unit says it for all
            if unit in at:
                at.setdefault(op, at[unit])
        yield [
            [
                here if here is None else at.get(ties[phase].get(op, -1), here)
                for op, here in enumerate(devices)
            ]
            for phase, devices in enumerate(alone)
        ]


def _why(problems: Sequence[Problem]) -> str:
    """Why no placement meets the limits of all phases."""
    for problem in problems:
        if reasons := explain_infeasible(problem):
            return f"{problem.graph.meta.phase}: {'; '.join(reasons[:3])}"
    return "each phase has a placement within the limits, and no placement is within them in all"
