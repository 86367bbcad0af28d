"""What a policy with an objective asks: a ``Problem`` of whole numbers, and the figure it is of.

Bytes, parts of a second, nanojoules, or a weighted sum of them. An op goes only to a device that
can run it, where it has the choice. Seconds are those of each op on its device, of each tensor on
the link of its two devices, and of each call's two messages on the accelerator's link, one after
another. Energy is that of each op and tensor likewise, and what all devices draw anyway for as long
as it takes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, floor, fsum, log10
from typing import TYPE_CHECKING

from costmodels.joules import op_joules
from costmodels.roofline import DeviceTime
from partition.accounting import Traffic
from partition.energy import energy_of, idle_watts
from partition.granularity import shared, units
from partition.masked_choice import crossing_costs, unmasked
from partition.masking import settled
from partition.masks import MaskedGraph, plain_of, seen_through, with_masks_placed
from partition.placement import Placement
from partition.policy import Policy, allowed_by, derived_too, named_by, secret_tensors, streaming
from partition.problem import Problem, allowed_devices, kept_from, payload_costs
from partition.run import compute_seconds, times_under
from partition.secrets import covered, lookups, present, reached, ways_to_keep
from partition.setting import Setting
from partition.stored import kept_beside
from tracer.errors import InputError
from tracer.graph import OpGraph

if TYPE_CHECKING:
    pass


def unit_of(policy: Policy) -> str:
    """What ``figure`` counts in: ``bytes``, ``ns``, ``nJ`` or ``weighted``."""
    wanted = policy.objective or {}
    if len(wanted) > 1:
        return "weighted"
    return "bytes" if "bytes" in wanted else "nJ" if "energy" in wanted else "ns"


def is_rounded(policy: Policy) -> bool:
    """Whether its objective has seconds or energy in it, which a problem has in whole numbers."""
    return not {*(policy.objective or {})} <= {"bytes"}


def second_weight(policy: Policy, setting: Setting) -> float:
    """What a second of a run costs, what all devices draw meanwhile with it."""
    weights = weights_of(policy)
    return weights["seconds"] + weights["energy"] * idle_watts(setting.times)


def weights_of(policy: Policy) -> dict[str, float]:
    """Unit -> what it counts in whole numbers: a byte is 1, or a nanosecond, or a nanojoule, as long
    as alone. Of a mix of seconds and energy what weighs most counts so, of one with bytes all as
    they weigh."""
    wanted = dict(policy.objective or {})
    if len(wanted) == 1 or "bytes" not in wanted:
        most = max(wanted.values(), default=1.0)
        wanted = {o: weight / most * (1 if o == "bytes" else 1e9) for o, weight in wanted.items()}
    return {"bytes": 0.0, "seconds": 0.0, "energy": 0.0, **wanted}


def figure(graph: OpGraph, policy: Policy, setting: Setting, placement: Placement) -> float:
    """What a placement costs by what is printed of it: bytes, nanoseconds, nanojoules, or the
    weighted sum."""
    weights, seconds, joules = weights_of(policy), 0.0, 0.0
    if isinstance(graph, MaskedGraph):
        graph, placement = settled(graph, placement)
        setting = setting.of(graph) if is_rounded(policy) else setting
    traffic = setting.account(graph, placement, setting.wire(graph, policy))
    if is_rounded(policy):
        times = times_under(graph, placement, traffic.transfers, setting.times)
        taken = compute_seconds(placement, times)
        used = {placement.home, *placement.accelerators}
        seconds = (traffic.totals.seconds or 0.0) + fsum(taken[device] for device in sorted(used))
    if weights["energy"]:
        there = graph, placement, traffic, times, setting.machine.devices
        joules = energy_of(*there, taken, seconds, late=False).run_joules or 0.0
    moved = weights["bytes"] * traffic.totals.payload_bytes
    return moved + weights["seconds"] * seconds + weights["energy"] * joules


def problems_of(
    graph: OpGraph, policy: Policy, setting: Setting, unit: float | None = None
) -> list[Problem]:
    """What a policy asks, once for each way to keep its secrets: the best of all is its answer."""
    problem = problem_of(graph, replace(policy, secrets=()), setting, unit)
    return [replace(problem, secrets=way) for way in secret_ways(graph, policy, setting)]


def secret_ways(
    graph: OpGraph, policy: Policy, setting: Setting
) -> Sequence[Mapping[str, frozenset[int]]]:
    """The ways to keep a policy's secrets, of what stands for them under masks too."""
    plain, devices = plain_of(graph), setting.untrusted
    ways = ways_to_keep(plain, secret_tensors(plain, policy), devices, derived_too(plain, policy))
    if not isinstance(graph, MaskedGraph):
        return ways
    covers = []
    for secret in policy.secrets:
        kept = covered(plain, named_by(plain, secret))
        kept |= reached(plain, kept) if secret.derived else frozenset()
        rows = (one.rows for one in lookups(plain, kept))
        covers.append((kept.union(*rows), secret.allow_masked))
    return [
        {device: kept | seen_through(graph, kept, covers) for device, kept in way.items()}
        for way in ways
    ]


def problem_of(
    graph: OpGraph, policy: Policy, setting: Setting, unit: float | None = None
) -> Problem:
    """What a policy with an objective asks: the best of the places it leaves, at its costs.

    Costs are whole numbers of a ``unit`` (of bytes, nanoseconds or nanojoules), by their size when
    left out.
    Its secrets are kept in the first of the ways to keep them. Where an op has the choice, a device
    without seconds for it is none. Raises InputError where seconds count and an op has none on a
    device that it must run on.
    """
    devices, plain = setting.machine.devices, plain_of(graph)
    home = setting.machine.home
    allowed = allowed_by(plain, policy, home, setting.machine.accelerators)
    streams = streaming(plain, policy, setting.machine.weights_at)
    if isinstance(graph, MaskedGraph):
        allowed = tuple((home,) if op is None else allowed[op] for op in graph.origin)
        streams = frozenset(graph.here[op] for op in streams)
    allowed = _able(graph, setting, allowed)
    together = () if setting.granularity in ("op", "convex") else units(graph, setting.granularity)
    weights = weights_of(policy)
    wire = setting.wire(graph, policy)
    payload = payload_costs(graph, devices, wire, streams)
    moving = {key: weights["bytes"] * size for key, size in payload.items()}
    limits = memory_limits(graph, setting)
    if isinstance(graph, MaskedGraph):
        limits.pop(
            home, None
        )  # which masks lie there is not in the problem: ``optimise._check_room``
    computing: dict[tuple[int, str], float] = {}
    calling: dict[str, float] = {}
    by_size = 1.0
    if is_rounded(policy):
        a_second, a_joule = second_weight(policy, setting), weights["energy"]
        _check_costs(graph, policy, setting, allowed)
        known: dict[tuple[int, str, str], tuple[float, float]] = {}
        packing = {tensor: wire.of(graph.tensors[tensor]).packing_seconds for tensor, *_ in payload}
        for (tensor, *ends), size in payload.items():
            way = size, ends[0], ends[1]
            if way not in known:
                joules = setting.tensor_joules(*way) if a_joule else 0.0
                known[way] = setting.tensor_seconds(*way), a_joule * joules
            taken, cost = known[way]
            cost += a_second * (taken + (packing[tensor] or 0.0))
            moving[tensor, ends[0], ends[1]] += cost

        def cost_of(device: str, op: int) -> float:
            return _cost_of(graph, setting.times[device], (op, *kept[op]), a_second, a_joule)

        kept: dict[int, list[int]] = defaultdict(list)
        for op, beside in kept_beside(graph).items():
            kept[beside].append(op)
        for tensor, is_sent, cost in crossing_costs(graph, setting, partial(cost_of, home)):
            for accelerator in setting.machine.accelerators:
                source, end = (home, accelerator) if is_sent else (accelerator, home)
                moving[tensor, source, end] += cost
        computing = {
            (op, device): cost_of(device, op)
            for op, choice in enumerate(allowed)
            for device in choice
            if not isinstance(graph, MaskedGraph) or op not in graph.parts  # paid where they cross
        }
        calling = {
            accelerator: a_second * setting.call_seconds(accelerator)
            for accelerator in setting.machine.accelerators
        }
        # What costs more than a whole placement is in no better one: it need cost no more than it.
        most = _some(graph, policy, setting, shared(together, allowed) if together else allowed)
        every = fsum([*moving.values(), *computing.values(), *calling.values()])
        most = every if most is None else most
        one_call = setting.granularity == "convex"
        if setting.max_calls is None and not one_call and not limits:  # else it may not be allowed
            moving = {key: min(cost, most) for key, cost in moving.items()}
            computing = {key: min(cost, most) for key, cost in computing.items()}
        by_size = 10.0 ** ceil(log10(most / _WHOLE)) if most > 0 else 1.0
    unit = unit or by_size
    return Problem(
        graph=graph,
        home=setting.machine.home,
        accelerators=setting.machine.accelerators,
        allowed=allowed,
        # Rounded down, so that no sum is more than the figure.
        op_cost={key: floor(cost / unit) for key, cost in computing.items()},
        transfer_cost={key: floor(cost / unit) for key, cost in moving.items()},
        call_cost={key: floor(cost / unit) for key, cost in calling.items()},
        unit=unit,
        max_calls=setting.max_calls,
        memory_bytes=limits,
        residency=setting.residency,
        secrets=secret_ways(graph, policy, setting)[0],
        streams=streams,
        units=together,
        one_call=setting.granularity == "convex",
    )


def _cost_of(
    graph: OpGraph, time: DeviceTime, ops: Sequence[int], a_second: float, a_joule: float
) -> float:
    """What an op costs on a device, with those of the state that is certainly kept there for it,
    which are behind it."""
    ops = ops[:1] if time.device.array else ops
    cost = a_second * fsum(time.ops[each].seconds or 0.0 for each in ops)
    if a_joule:
        cost += a_joule * (op_joules(graph, time, ops[0], ops[1:]).value or 0.0)
    return cost


_WHOLE = 2e9
"""About what seconds or joules come to, in the units that they are rounded to: a program's solver
computes in 53 bits, some of which tell equal placements apart."""


def _some(
    graph: OpGraph, policy: Policy, setting: Setting, allowed: Sequence[tuple[str, ...]]
) -> float | None:
    """The figure of the placement that leaves at home what is free; None where home cannot."""
    fixed = with_masks_placed(graph, setting.fixed(plain_of(graph), policy))
    if setting.granularity != "op":
        if not all(choice or graph.is_everywhere(op) for op, choice in enumerate(allowed)):
            return None
        fixed = replace(fixed, devices=[choice[0] if choice else None for choice in allowed])
    if not all(d is None or setting.can_run(op, d) for op, d in enumerate(fixed.devices)):
        return None
    return figure(graph, policy, setting, fixed)


def _able(
    graph: OpGraph, setting: Setting, allowed: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """Of several allowed devices those that can run the op, and home where only it can mask it."""
    lacking = unmasked(graph, setting)
    home = (setting.machine.home,)
    return tuple(
        home
        if op in lacking and {*home} < {*choice}
        else tuple(d for d in choice if setting.can_run(op, d)) or choice
        for op, choice in enumerate(allowed)
    )


def _check_costs(
    graph: OpGraph, policy: Policy, setting: Setting, allowed: Sequence[tuple[str, ...]]
) -> None:
    masks = graph if isinstance(graph, MaskedGraph) else None
    unable, home = unmasked(graph, setting), setting.machine.home
    for op, choice in zip(graph.ops, allowed, strict=True):
        if masks and op.id in masks.parts:
            continue
        for device in choice:
            lacking = op if setting.times[device].ops[op.id].seconds is None else None
            if device != home and op.id in unable:
                lacking, device = graph.ops[unable[op.id]], home
            if lacking is not None:
                number = masks.origin[op.id] if masks else op.id
                what = (
                    f", whose {lacking.target} ({lacking.dtype})" if lacking is not op else ", and"
                )
                raise InputError(
                    f"{policy.name}: op {number} ({op.target}, {op.dtype}) may run on "
                    f"{' or '.join(choice)}{what} has no cost on {device}"
                )


def memory_limits(graph: OpGraph, setting: Setting) -> dict[str, int]:
    """The limits that could be broken: a device with room for the whole model has no limit."""
    described = {
        device: time.device.memory_bytes
        for device, time in setting.times.items()
        if time.device.memory_bytes is not None
    }
    limits = {**described, **setting.machine.memory_bytes}
    most = sum(t.bytes for t in graph.tensors)
    return {device: size for device, size in limits.items() if size < most}


def hidden_from(
    graph: OpGraph, policy: Policy, setting: Setting, placement: Placement, traffic: Traffic
) -> Mapping[str, frozenset[int]]:
    """By device, the tensors that a placement keeps from it for a policy's secrets.

    Of several ways to keep them, the one that it keeps to.
    """
    there = present(graph, placement, traffic)
    ways = secret_ways(graph, policy, setting)
    return min(ways, key=lambda way: sum(len(way[d] & there.get(d, set())) for d in way))


def may_move(
    graph: OpGraph, setting: Setting, hidden: Mapping[str, frozenset[int]]
) -> Callable[[int, str], bool]:
    """Whether an op may move to a device: where it can run and handles nothing that is hidden."""
    problem = Problem(
        graph,
        setting.machine.home,
        setting.machine.accelerators,
        allowed_devices(graph, setting.machine.home, setting.machine.accelerators, {}),
        secrets=hidden,
    )
    kept = kept_from(problem)
    return lambda op, device: setting.can_run(op, device) and (op, device) not in kept
