"""A traced model on machines: placed by policies, counted, explained, put side by side."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from costmodels import WeightsAt
from costmodels.flops import annotate
from cutedge._machines import machine_of
from cutedge._storage import check_storage
from partition import Granularity, Order, Residency, ScheduleKind
from partition.energy import energy_of
from partition.ladder import Exposure, LadderStep, exposure, ladder
from partition.masked_choice import mask_seconds
from partition.masks import plain_of, with_masks_placed
from partition.objective import hidden_from, may_move
from partition.optimise import Placed, beside_ops, obstacle, place
from partition.placement import Placement
from partition.policy import (
    Policy,
    apply_policy,
    fixed_policy_names,
    load_policy,
    secret_tensors,
    with_objective,
    with_secrets,
)
from partition.prices import Price, prices
from partition.problem import InfeasibleError, NotFoundError
from partition.run import (
    bound_seconds,
    chips_of,
    compute_cycles,
    compute_seconds,
    times_under,
    unknown_launches,
)
from partition.schedule import Scheduling
from partition.secrets import covered, present
from partition.seen import Derived, derived, known
from partition.setting import Setting
from partition.split import Split
from tracer.errors import InputError, choose
from tracer.graph import OpGraph
from tracer.reach import Reach, graph_at
from tracer.stages import stage

if TYPE_CHECKING:
    from partition.crossover import Crossover, Point
    from partition.explain import Bottleneck, Savings


@dataclass(frozen=True, slots=True)
class Compared:
    """What ``compare`` has found of one trace; all by policy, in one order."""

    setting: Setting
    names: Sequence[str]
    """As the user gave the policies."""
    partitions: Sequence[Split]
    baseline: Split
    comparisons: "Sequence[Savings]"
    policies: Sequence[Policy]
    """As they were placed by, secrets of the command line with them."""
    without: Mapping[str, str]
    """Policy that is left out -> why."""


def check_words(
    policies: Sequence[str | Path | Policy] = (),
    *,
    residency: Residency = "run",
    secrets: Sequence[str] | None = (),
    max_calls: int | None = None,
    time_limit: float = 0.0,
    weights: str | Path | None = None,
    kv_dtype: str | None = None,
    schedule: ScheduleKind | None = None,
    requests: int | None = None,
    granularity: Granularity = "op",
    objective: str | Mapping[str, float] | None = None,
    **machine: Any,
) -> None:
    """Raise InputError for options that cannot be understood, before a model is traced or read."""
    check_storage(weights, kv_dtype)
    with_objective(load_policy("min-cut"), objective)
    for policy in policies:
        if not isinstance(policy, Policy):
            load_policy(str(policy))
    scheduling_of(schedule, requests)
    machine_of(**machine)


def check_shown(
    traces: int, within: float | None, over: tuple[str, str] | None, *others: object
) -> None:
    """Raise InputError where what is to be shown of comparisons does not go together.

    ``others`` are what goes without ``over``.
    """
    if within is not None and not 0 < within < inf:
        raise InputError(f"--within {within:g}: give the seconds a token that are usable, above 0")
    if over is not None and (traces > 1 or within is not None or any(others)):
        raise InputError(
            "--over is of one trace directory and goes without --within, --unseen, --sort and "
            "--placement"
        )


def check_reported(*, serve: bool, port: int | None, beside: str | None, **written: object) -> None:
    """Raise InputError where options of ``report`` do not go together.

    ``written`` are those of what is written, by name.
    """
    if port is not None and not serve:
        raise InputError("--port is of a live page: say --serve too")
    if beside is not None and written.get("png"):
        raise InputError(
            "--png is of the drawings of a report, which --beside has not: leave it out"
        )
    for name, value in {"beside": beside, **written}.items() if serve else ():
        if value not in (None, False):
            raise InputError(f"--serve shows a page and writes no file: leave --{name} out")


def scheduling_of(schedule: ScheduleKind | None, requests: int | None) -> Scheduling | None:
    """How runs are laid out, where that is asked for. Raises InputError for what says nothing."""
    if schedule is None:
        if requests is not None:
            raise InputError("--requests is of a schedule: say --schedule overlap (or serial) too")
        return None
    choose(schedule, get_args(ScheduleKind), "--schedule")
    if requests is not None and requests < 1:
        raise InputError(f"--requests {requests}: there is at least one")
    return Scheduling(schedule, requests or 1)


def obstacles(policies: Mapping[str, Policy], setting: Setting) -> dict[str, str]:
    """The policies that are not for the setting; name -> why."""
    return {name: why for name, policy in policies.items() if (why := obstacle(policy, setting))}


def exposed(split: Split, setting: Setting) -> tuple[Exposure, ...]:
    """What a placement shows to each accelerator that is not trusted."""
    return tuple(exposure(split.graph, split.placement, split.traffic, setting.untrusted))


def partition_of(
    graph: OpGraph,
    trace_id: str,
    policy: Policy,
    setting: Setting,
    *,
    shows: bool = True,
    placed: Placed | None = None,
) -> Split:
    """A graph placed by a policy, with what the placement moves and, where asked, shows.

    Where it is ``placed`` already, the best placement op by op is not searched for beside it.
    """
    by_op = beside_ops(graph, policy, setting) if placed is None else None
    placed, machine = placed or place(graph, policy, setting), setting.machine
    if placed.graph is not graph:
        graph, setting = placed.graph, setting.of(placed.graph)
    wire = setting.wire(graph, policy)
    traffic = setting.account(graph, placed.placement, wire)
    times = times_under(graph, placed.placement, traffic.transfers, setting.times)
    split = Split(
        graph,
        trace_id,
        policy.name,
        placed.placement,
        traffic,
        machine.links.name,
        machine.links,
        wire,
        setting.residency,
        compute_seconds(placed.placement, times),
        placed.solution,
        " and ".join(policy.objective or ()) or None,
        placed.unit,
        compute_cycles(graph, placed.placement, setting.times),
        machine.options,
        chips_of(graph, placed.placement, setting.times, machine.options),
        bound_seconds(placed.placement, times),
        covered(plain_of(graph), secret_tensors(plain_of(graph), policy)),
        (),
        {name: device.name for name, device in machine.described.items()},
        machine.devices,
        machine.engine,
        machine.execution or "",
        weights_at=machine.weights_at,
        unknown_launches=unknown_launches(graph, placed.placement, setting.times),
        mask_seconds=mask_seconds(graph, machine.home, times),
        granularity=setting.granularity,
        by_op=by_op,
    )
    energy = energy_of(
        graph,
        split.placement,
        traffic,
        times,
        machine.devices,
        split.compute_seconds,
        split.run_seconds,
        late=bool(split.left_out),
    )
    split = replace(split, energy=energy)
    if shows:
        split = replace(split, exposed=exposed(split, setting))
    asked = setting.scheduling
    return split if asked is None else replace(split, schedule=split.laid_out(times, asked))


def explained(
    graph: OpGraph, policy: Policy, setting: Setting, made: Split
) -> tuple[list[LadderStep], list[Price]]:
    """(the steps from offload-linear, what each rule costs)"""
    start, there = setting.fixed(graph, load_policy("offload-linear")), made.graph
    steps = ladder(
        there,
        with_masks_placed(there, start),
        made.placement,
        setting.machine.links,
        wire=setting.wire(there, policy),
        residency=setting.residency,
    )
    return steps, prices(graph, policy, setting, made.solution)


@stage("finding what would relieve the bottleneck")
def bottlenecks(
    made: Sequence[Split], setting: Setting, policies: Sequence[Policy]
) -> "list[Bottleneck | None]":
    """Of each partition, with a relief that may be called by the name of a policy of cutedge.

    ``policies`` are theirs: no relief handles what they keep secret.
    """
    if not made:
        return []
    from partition.explain import find_bottleneck

    found: list[Bottleneck | None] = []
    machine = setting.machine
    plain = plain_of(made[0].graph)
    placements = _shipped(plain, machine.home, machine.accelerators, machine.weights_at)
    for one, policy in zip(made, policies, strict=True):
        graph = one.graph
        able: Callable[[int, str], bool] = _stays
        known: dict[str, Placement] = {}
        # Else an op that moves would be masked in another way, or leave its unit behind.
        if graph is plain and setting.granularity == "op":
            hidden = hidden_from(graph, policy, setting, one.placement, one.traffic)
            able = may_move(graph, setting, hidden)
            known = {
                name: placement
                for name, placement in placements.items()
                if all(d is None or able(op, d) for op, d in enumerate(placement.devices))
            }
        found.append(
            find_bottleneck(
                graph,
                one.placement,
                one.traffic,
                machine.links,
                policies={} if policy.packs else known,  # they would not pack the same
                wire=one.wire_format,
                residency=setting.residency,
                can_run=able,
            )
        )
    return found


def _stays(op: int, device: str) -> bool:
    return False


@lru_cache(maxsize=2)
def _shipped(
    graph: OpGraph, home: str, accelerators: tuple[str, ...], weights_at: WeightsAt
) -> Mapping[str, Placement]:
    """A graph's placement by each policy of cutedge that leaves nothing open."""
    at: dict[str, Any] = {"home": home, "accelerators": accelerators, "weights_at": weights_at}
    return {name: apply_policy(graph, load_policy(name), **at) for name in fixed_policy_names()}


def derived_of(setting: Setting, made: Split) -> dict[str, list[Derived]]:
    """By device that is not trusted, what it gets that arithmetic has made of the secrets."""
    if not made.secret:
        return {}
    there = present(made.graph, made.placement, made.traffic)
    return {
        device: derived(made.graph, made.secret, there.get(device, set()))
        for device in setting.untrusted
    }


def compared_on(
    graph: OpGraph,
    trace_id: str,
    policies: Mapping[str, Policy],
    baseline: str,
    setting: Setting,
    *,
    strict: bool,
    secret: Sequence[str] = (),
    named: bool = True,
) -> Compared:
    """The policies on one trace; one that cannot be is left out, or ``strict``: an error.

    Not an error where it is for a ``secret`` of the command line that one cannot be. A baseline
    that the user has not ``named`` makes way for the first policy that can be.
    """
    made: dict[str, Split] = {}
    policies = {name: with_secrets(graph, rules, secret) for name, rules in policies.items()}
    impossible = {} if strict else obstacles(policies, setting)
    for name, rules in policies.items():
        if name in impossible:
            continue
        try:
            made[name] = partition_of(graph, trace_id, rules, setting)
        except (InfeasibleError, NotFoundError) as error:
            if strict and not secret:
                raise
            impossible[name] = str(error)
    if not named and baseline not in made:
        baseline = next(iter(made), baseline)
    if baseline not in made:
        raise InputError(
            f"savings are against {baseline}, which is not possible here ({impossible[baseline]}): "
            "name another --baseline"
        )
    from partition.explain import compare_traffic

    base = made[baseline]
    return Compared(
        setting,
        tuple(made),
        tuple(made.values()),
        base,
        tuple(compare_traffic(one.placement, one.traffic, base.traffic) for one in made.values()),
        tuple(policies[name] for name in made),
        impossible,
    )


def arranged(found: Compared, unseen: Sequence[str], order: Order | None) -> Compared:
    """What was compared in another ``order``, without policies that show what is to be ``unseen``.

    The baseline stays what savings are against.
    """
    partitions = found.partitions
    without = dict(found.without)
    for name, one in zip(found.names, partitions, strict=True):
        told = [
            f"{each.device} sees {sort.what.words} ({sort.how.words})"
            for each in one.exposed
            for sort in each.seen
            if sort.is_known and sort.what.value in unseen
        ]
        if told:
            without[name] = ", ".join(told)
    rank: dict[str, Callable[[Split], float]] = {
        "bytes": lambda one: one.traffic.totals.payload_bytes,
        "calls": lambda one: len(one.traffic.calls),
        "seconds": _seconds,
        "energy": _joules,
        "seen": lambda one: len(known(sort for each in one.exposed for sort in each.seen)),
    }
    left = [number for number, name in enumerate(found.names) if name not in without]
    if order is not None:
        left.sort(key=lambda number: rank[order](partitions[number]))
    return replace(
        found,
        names=tuple(found.names[n] for n in left),
        partitions=tuple(partitions[n] for n in left),
        comparisons=tuple(found.comparisons[n] for n in left),
        policies=tuple(found.policies[n] for n in left),
        without=without,
    )


def _joules(split: Split) -> float:
    """What a run takes in energy, as far as that is known; most where it is not."""
    joules = None if split.energy is None else split.energy.run_joules
    return inf if joules is None else joules


def _seconds(split: Split) -> float:
    """What a run takes: as it was laid out, else one after another; most where not known."""
    if split.run_seconds is None:
        return inf
    return split.run_seconds if split.schedule is None else split.schedule.makespan_seconds


def compared_over(
    graph: OpGraph,
    reach: Reach,
    over: tuple[str, str],
    policies: Mapping[str, Policy],
    setting: Setting,
) -> "tuple[str, list[Point], list[Crossover]]":
    """(unit, the best policy at sizes of a range, where that changes).

    In seconds of the run where they are known, else in bytes of payload; each policy is placed
    anew at each size. ``over`` is a variable of the trace's formulas and a range ``64..131072``.
    """
    variable, text = over
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if variable not in graph.meta.symbolic or match is None:
        raise InputError(
            f"--over {variable} {text}: write one of {', '.join(graph.meta.symbolic) or 'no size'} "
            "(what this trace has formulas in) and a range like 64..131072"
        )

    lacking: dict[int, tuple[str, ...]] = {}

    def evaluate(size: int) -> dict[str, float]:
        there = graph_at(graph, reach, {**graph.meta.variables, variable: size})
        if there is None:
            raise InputError(
                f"--over {variable} {text}: at {variable} {size} this trace is another program "
                f"({'; '.join(reach.notes) or 'its code branches there'}): take a smaller range, "
                "or trace the model there"
            )
        costed = annotate(there)
        at = setting.of(costed)
        values = {}
        lacking[size] = ()
        for name, rules in policies.items():
            with suppress(InfeasibleError):
                one = partition_of(costed, "", rules, at, shows=False)
                if setting.unknown_seconds and one.placement.accelerators:  # else it is no split
                    values[name] = float(one.traffic.totals.payload_bytes)
                elif one.run_seconds is not None:
                    values[name] = _seconds(one)
                    lacking[size] = tuple(dict.fromkeys((*lacking[size], *one.left_out)))
        if not values:
            raise InputError(f"--over {variable} {text}: no policy is possible at {size}")
        return values

    from partition.crossover import best_over

    points, changes = best_over(evaluate, int(match[1]), int(match[2]))
    points = [replace(point, left_out=lacking[point.size]) for point in points]
    unit = "bytes" if setting.unknown_seconds else "seconds"
    return unit, points, changes


def check_namesakes(policies: Mapping[str, Policy]) -> None:
    """Raise InputError where two files hold policies of one name."""
    first: dict[str, str] = {}
    for given, policy in policies.items():
        if first.setdefault(policy.name, given) != given:
            raise InputError(
                f"{first[policy.name]} and {given} are both called {policy.name}, and their "
                "tables would be in one directory: rename one of the files"
            )
