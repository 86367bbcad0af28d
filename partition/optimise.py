"""Policies with an objective: what they leave free goes where it is best, with the proof.

A policy, devices and their links become a ``Problem`` of whole numbers: bytes, parts of a second,
nanojoules, or a weighted sum of them. An op goes only to a device that can run it, where it has
the choice. Seconds are those of each op on its device, of each tensor on the link of its two
devices, and of each call's two messages on the accelerator's link, one after another. Energy is that
of each op and tensor likewise, and what all devices draw anyway for as long as it takes.

What is proven is the figure that is printed. The answer is counted again as it is printed, by
``account`` and by the seconds of the devices under the placement. Where the problem's sum is that
figure, the solver's bound is a bound of it. Elsewhere the sum leaves out what depends on more than
one op or tensor, and so is the least that the figure can be:

- a device that pages: what lies there under the placement decides;
- cached state that is read on several devices, and copied on each to be appended to;
- an engine under which it matters what runs together (``costmodels.engines``);
- chunks: several tensors of one message may fill a piece more than each by itself;
- a request or a reply that carries no tensor costs nothing: what a first call without a request
  and a last one without a reply would save is taken off the bound, where ops read nothing or lead
  nowhere. Between several accelerators the tolls of messages are left out of the bound.

Where that leaves a gap, the placements of other policies that meet the same limits are counted
too, and the best of all is the answer, with the bound.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor, fsum, log10
from time import perf_counter
from typing import TYPE_CHECKING

from costmodels.flops import FREE, without_sizes
from costmodels.joules import op_joules
from costmodels.roofline import DeviceTime
from partition.accounting import Traffic, account
from partition.energy import energy_of, idle_watts
from partition.granularity import apart, shared, unit_name, units
from partition.masked_choice import crossing_costs, protecting, unmasked, with_masks
from partition.masking import settled
from partition.masks import (
    MaskedGraph,
    plain_of,
    seen_through,
    with_masks_placed,
    without_masks_placed,
)
from partition.placement import Placement
from partition.policy import (
    Policy,
    allowed_by,
    check_matches,
    derived_too,
    free_ops,
    load_policy,
    named_by,
    policy_names,
    secret_tensors,
    streaming,
)
from partition.problem import (
    InfeasibleError,
    NotFoundError,
    Problem,
    allowed_devices,
    candidates,
    kept_from,
    memory_of,
    payload_costs,
    recount,
)
from partition.protects import Protect, named
from partition.run import times_under
from partition.secrets import covered, lookups, present, reached, ways_to_keep
from partition.setting import Setting
from partition.stored import kept_beside, state_readers
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph
from tracer.stages import stage
from tracer.words import counted

if TYPE_CHECKING:
    from partition.layers import TopologicalCut
    from partition.solve import Proof, Solution


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a policy places a graph's ops."""

    graph: OpGraph
    """The graph; of one whose policy protects ops, with the masks of those that are away."""
    placement: Placement
    solution: "Proof | None" = None
    """How good it is; None where the policy leaves nothing free."""
    unit: str | None = None
    """Of the solution's objective: ``bytes``, ``ns``, ``nJ`` or ``weighted``."""


def place(graph: OpGraph, policy: Policy, setting: Setting) -> Placed:
    """Place every op of an annotated graph by a policy.

    Raises InputError where the policy is not for the setting (``obstacle``) or has something that
    matches nothing, InfeasibleError (it names what cannot hold) where no placement meets the
    limits, or the policy's own shows a secret or splits a unit of the granularity, NotFoundError
    where none was found in time.
    """
    check_matches(graph, policy)
    if why := obstacle(policy, setting):
        raise InputError(f"{policy.name} {why}")
    fixed = setting.fixed(graph, policy)
    _check_together(graph, policy, setting, fixed)
    if policy.objective is None:
        there, placement = with_masks(graph, policy, setting.machine, fixed)
        check_kept(there, policy, setting, placement)
        return Placed(there, placement)
    whole, asked = protecting(graph, policy, setting)
    problem, *others = problems = problems_of(whole, policy, asked)
    with stage(f"placing by {policy.name}"):
        found = _best([problem, *others], policy, asked)
        if found.placement is None:
            raise NotFoundError(
                f"no placement was found in {setting.time_limit:g} s: take a longer "
                "--time-limit or fewer limits"
            )
        best, solution = _proven(whole, policy, asked, problems, found, found.placement)
    there, best = settled(whole, best)
    if whole is not graph:
        _check_room(there, policy, setting, best)
    devices = without_masks_placed(there, best).devices
    proof = "the optimum" if solution.proven else "the best found"
    chosen = f"{proof} for {' and '.join(policy.objective)}"
    free = free_ops(graph, policy)
    allowed = allowed_by(graph, policy, setting.machine.home, setting.machine.accelerators)
    several = {op for op, choice in enumerate(allowed) if len(choice) > 1} - free
    reasons = tuple(
        chosen
        if op in free
        else f"{reason}; on which accelerator: {chosen}"
        if op in several
        else reason
        for op, reason in enumerate(fixed.reasons)
    )
    pinned = tuple(held and op not in several for op, held in enumerate(fixed.pinned))
    placement = replace(fixed, devices=devices, pinned=pinned, reasons=reasons)
    return Placed(there, with_masks_placed(there, placement), solution, unit_of(policy))


def _check_together(graph: OpGraph, policy: Policy, setting: Setting, fixed: Placement) -> None:
    """Raise InfeasibleError where a policy has ops on two devices that are to be on one."""
    by = f"by --granularity {setting.granularity}"
    allowed: Sequence[tuple[str, ...]] = [() if d is None else (d,) for d in fixed.devices]
    if policy.objective is not None:
        allowed = allowed_by(graph, policy, setting.machine.home, setting.machine.accelerators)
    elif setting.granularity == "convex":
        traffic = setting.account(graph, fixed, setting.wire(graph, policy))
        for device, calls in Counter(call.device for call in traffic.calls).items():
            if calls > 1:
                raise InfeasibleError(
                    f"{device} is called once at most {by}, and the rules of {policy.name} take "
                    f"{calls} calls: take a policy that leaves ops free, like min-cut"
                )
    together = units(graph, setting.granularity)
    if pair := apart(together, allowed):
        told = [
            f"op {op} ({graph.ops[op].name}) on {' or '.join(allowed[op])} ({fixed.reasons[op]})"
            for op in pair
        ]
        raise InfeasibleError(
            f"{unit_name(graph, setting.granularity, together[pair[0]])} lies on one device {by}, "
            f"and {policy.name} has {' and '.join(told)}: take a finer granularity, or a policy that "
            "leaves one of the two free, like min-cut"
        )


def beside_ops(graph: OpGraph, policy: Policy, setting: Setting) -> "Proof | None":
    """How good the best placement op by op is, for a policy that is searched by a granularity.

    None where that is op by op itself, where there is no search, and where nothing was found in
    time.
    """
    if setting.granularity == "op" or policy.objective is None:
        return None
    with suppress(NotFoundError):
        return place(graph, policy, replace(setting, granularity="op")).solution
    return None


def _check_room(graph: OpGraph, policy: Policy, setting: Setting, placement: Placement) -> None:
    """Raise NotFoundError where a placement finds no room, its masks with it.

    The problem of ops that may be masked has not all of it: which masks lie at home, and how long a
    tensor lies away that several such ops read at home.
    """
    if not (limits := memory_limits(graph, setting)):
        return
    traffic = setting.account(graph, placement, setting.wire(graph, policy))
    taken = memory_of(graph, placement, traffic.transfers)
    for device, limit in limits.items():
        if (size := taken.get(device, 0)) > limit:
            raise NotFoundError(
                f"{policy.name}: the best placement with its masks takes {size} bytes at {device}, "
                f"of {limit}: give it more room, or pin fewer ops away"
            )


def beside_layers(graph: OpGraph, policy: Policy, setting: Setting) -> "TopologicalCut | None":
    """The best cut of the op graph, for a policy that cuts between two layers; else None."""
    if policy.cut != "layers" or policy.objective is None:
        return None
    from partition.layers import topological_cut

    whole, asked = protecting(graph, policy, replace(setting, granularity="op"))
    found = map(topological_cut, problems_of(whole, policy, asked))
    cuts = [
        replace(cut, objective_value=ceil(figure(whole, policy, asked, cut.placement) - 0.5))
        for cut in found
        if cut is not None
    ]
    return min(cuts, key=lambda cut: cut.objective_value, default=None)


def _best(problems: Sequence[Problem], policy: Policy, setting: Setting) -> "Solution":
    """The best solution of several problems, proven where no problem can have a better one."""
    from partition.layers import cut_between_layers
    from partition.solve import solve

    found: list[Solution] = []
    impossible: list[InfeasibleError] = []
    for problem in problems:
        try:
            found.append(
                cut_between_layers(problem)
                if policy.cut == "layers"
                else solve(problem, time_limit=setting.time_limit)
            )
        except InfeasibleError as error:
            impossible.append(error)
    if not found:
        raise impossible[0]
    best = min(found, key=lambda one: (one.objective is None, one.objective or 0))
    return replace(best, bound=min(one.bound for one in found))


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


def _proven(
    graph: OpGraph,
    policy: Policy,
    setting: Setting,
    problems: Sequence[Problem],
    found: "Solution",
    placement: Placement,
) -> "tuple[Placement, Proof]":
    """The solver's placement with its proof, or a better one where the figure is no sum of costs.

    Where the problem's own sum is the figure, the solver's bound is one of the figure.
    """
    from partition.solve import Proof

    problem, seconds = problems[0], second_weight(policy, setting)
    bound = _least(problems, setting, found, seconds) * problem.unit
    bound -= unsaid(problem, setting) * seconds
    value, solver = figure(graph, policy, setting, placement), found.solver
    slack = 0.0
    if is_rounded(policy):
        slack = rounding(problem, placement, setting) + 1e-12 * value
    if value > bound + slack and policy.cut != "layers":
        plain = setting.of(plain_of(graph)) if isinstance(graph, MaskedGraph) else setting
        for other in _others(plain_of(graph), policy, plain):
            other = replace(with_masks_placed(graph, other), streams=placement.streams)
            met = any(not recount(one, other).broken and _within(one, other) for one in problems)
            if met and (cost := figure(graph, policy, setting, other)) < value:
                placement, value, solver = other, cost, "candidates"
    proven = value <= bound + slack
    whole = ceil(value - 0.5)
    bound = whole if proven else floor(bound)
    return placement, Proof(whole, bound, proven, solver, found.cut)


def rounding(problem: Problem, placement: Placement, setting: Setting) -> float:
    """What the costs of a placement were rounded down by at most: each by less than a unit."""
    graph = problem.graph
    traffic = account(graph, placement, setting.machine.links, residency=setting.residency)
    return (len(graph.ops) + len(traffic.transfers) + len(traffic.calls)) * problem.unit


def _within(problem: Problem, placement: Placement) -> bool:
    return all(
        device is None or device in choice
        for device, choice in zip(placement.devices, candidates(problem), strict=True)
    )


def _least(problems: Sequence[Problem], setting: Setting, found: "Solution", seconds: float) -> int:
    """What no placement costs less than, by what is certain to be paid.

    With several accelerators no message is certain: each may have its tensors from another one.
    """
    if len(setting.machine.accelerators) == 1 or not any(problems[0].call_cost.values()):
        return found.bound
    from partition.solve import solve

    bounds = []
    for problem in problems:
        transfer_cost = dict(problem.transfer_cost)
        for key, cost in transfer_cost.items():
            if setting.machine.home not in key[1:]:
                link = setting.machine.links.between(key[1], key[2], setting.machine.home)
                toll = seconds * (link.message_seconds("peer") or 0.0) / problem.unit
                transfer_cost[key] = max(0, cost - ceil(toll))
        certain = replace(problem, call_cost={}, transfer_cost=transfer_cost)
        try:
            bounds.append(solve(certain, time_limit=setting.time_limit).bound)
        except InfeasibleError:
            continue
    return min(bounds, default=found.bound)


def unsaid(problem: Problem, setting: Setting) -> float:
    """What the problem's sum may have too much, in seconds, for one accelerator.

    Every call but the first is sent what home made of the answer before, and every call but the
    last answers what the next waits for. The first may be sent nothing where an op reads nothing
    that flows, and the last answer nothing where an op leads to nothing at home, or where it brings
    new state alone.
    """
    if len(problem.accelerators) > 1 or not any(problem.call_cost.values()):
        return 0.0
    graph, (accelerator,) = problem.graph, problem.accelerators
    choices = candidates(problem)
    leads: set[int] = set()
    for op in reversed(range(len(graph.ops))):
        after = {reader for t in graph.outputs(op) for reader in graph.needed_by(t.id)}
        if choices[op] == (problem.home,) or graph.ops[op].kind is Kind.OUTPUT or after & leads:
            leads.add(op)
    away = [op for op, choice in enumerate(choices) if accelerator in choice]
    silent = any(op not in leads for op in away) or any(
        not set(readers) <= set(graph.needed_by(tensor))
        for tensor, readers in state_readers(graph).items()
    )
    unasked = any(not graph.flowing(op) for op in away)
    link = setting.machine.links.of(accelerator)
    taken = unasked * (link.message_seconds("send") or 0.0)
    taken += silent * (link.message_seconds("receive") or 0.0)
    return taken


def _others(graph: OpGraph, policy: Policy, setting: Setting) -> list[Placement]:
    """Where other policies place the ops: those without an objective, and those of bytes.

    Each is what its own search finds: whether that is the best of its kind is not asked here, and
    all searches together take no longer than one may.
    """
    found: list[Placement] = []
    started = perf_counter()
    for name in policy_names():
        other = load_policy(name)
        if name == policy.name or other.protects or is_rounded(other) or obstacle(other, setting):
            continue
        left = setting
        if setting.time_limit is not None:
            seconds = setting.time_limit - (perf_counter() - started)
            if seconds <= 0:
                break
            left = replace(setting, time_limit=seconds)
        with suppress(InputError, InfeasibleError):
            check_matches(graph, other)
            if other.objective is None:
                fixed = setting.fixed(graph, other)
                check_kept(graph, other, setting, fixed)
                found.append(fixed)
                continue
            best = _best(problems_of(graph, other, left), other, left).placement
            if best is not None:
                found.append(best)
    return found


def check_kept(graph: OpGraph, policy: Policy, setting: Setting, placement: Placement) -> None:
    """Raise InfeasibleError where a placement shows a secret of a policy to who is not trusted."""
    if not policy.secrets or not setting.untrusted:
        return
    traffic = setting.account(graph, placement, setting.wire(graph, policy))
    there = present(graph, placement, traffic)
    shown: list[str] = []
    for secret in policy.secrets:
        ways = _ways(graph, replace(policy, secrets=(secret,)), setting)
        for device in setting.untrusted:
            seen = min(
                (way.get(device, frozenset()) & there.get(device, set()) for way in ways), key=len
            )
            if seen:
                how = _how_often(graph, traffic, device, seen)
                why = f"secret: {secret.reason or secret}"
                shown.append(f"{policy.name} shows {secret.what} to {device}: {how} ({why})")
    if shown:
        raise InfeasibleError("; ".join(shown))


def _how_often(graph: OpGraph, traffic: Traffic, device: str, seen: Collection[int]) -> str:
    """How tensors are there to be seen on a device, in words."""
    moved = [
        t
        for t in traffic.transfers
        if t.tensor.id in seen and device in (t.src_device, t.dst_device)
    ]
    came = {t.tensor.id for t in moved if t.dst_device == device}
    lie = [t for t in seen if not graph.crosses(graph.tensors[t])]
    made = len(seen) - len(came) - len(lie)
    parts = [
        *([counted(len(moved), "transfer")] if moved else []),
        *([f"{made:,} made there"] if made else []),
        *([f"{len(lie):,} kept there"] if lie else []),
    ]
    return ", ".join(parts)


def obstacle(policy: Policy, setting: Setting) -> str | None:
    """Why a policy cannot be used in a setting, as words that follow the policy's name.

    None where it can be used.
    """
    accelerators = setting.machine.accelerators
    if policy.cut == "layers" and len(accelerators) > 1:
        return (
            "cuts a model in two, at home and on one accelerator, and here are "
            f"{len(accelerators)} ({', '.join(accelerators)}): give one --accel, "
            "or a policy that may cut anywhere, like min-cut or fastest"
        )
    if policy.protects and setting.granularity != "op":
        return (
            "masks ops, and home makes the masks in the middle of a "
            f"{setting.granularity if setting.granularity != 'convex' else 'call'}: "
            "leave out --granularity"
        )
    wanted = policy.objective or {}
    if "seconds" in wanted and setting.unknown_seconds is not None:
        return f"counts seconds, and {setting.unknown_seconds}"
    if "energy" in wanted and setting.unknown_energy is not None:
        return f"counts energy, and {setting.unknown_energy}"
    return None


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


def problems_of(
    graph: OpGraph, policy: Policy, setting: Setting, unit: float | None = None
) -> list[Problem]:
    """What a policy asks, once for each way to keep its secrets: the best of all is its answer."""
    problem = problem_of(graph, replace(policy, secrets=()), setting, unit)
    return [replace(problem, secrets=way) for way in _ways(graph, policy, setting)]


def _ways(
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
        limits.pop(home, None)  # which masks lie there is not in the problem: ``_check_room``
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
        secrets=_ways(graph, policy, setting)[0],
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


def weights_of(policy: Policy) -> dict[str, float]:
    """Unit -> what it counts in whole numbers: a byte is 1, or a nanosecond, or a nanojoule, as long
    as alone. Of a mix of seconds and energy what weighs most counts so, of one with bytes all as
    they weigh."""
    wanted = dict(policy.objective or {})
    if len(wanted) == 1 or "bytes" not in wanted:
        most = max(wanted.values(), default=1.0)
        wanted = {o: weight / most * (1 if o == "bytes" else 1e9) for o, weight in wanted.items()}
    return {"bytes": 0.0, "seconds": 0.0, "energy": 0.0, **wanted}


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


def hidden_from(
    graph: OpGraph, policy: Policy, setting: Setting, placement: Placement, traffic: Traffic
) -> Mapping[str, frozenset[int]]:
    """By device, the tensors that a placement keeps from it for a policy's secrets.

    Of several ways to keep them, the one that it keeps to.
    """
    there = present(graph, placement, traffic)
    ways = _ways(graph, policy, setting)
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


def compute_cycles(
    graph: OpGraph, placement: Placement, times: Mapping[str, DeviceTime]
) -> dict[str, int | None]:
    """By array of multipliers: the cycles of its products, those of the chip with most to do.

    None where one of them has no sizes (``flops.without_sizes``).
    """
    found: dict[str, int | None] = {}
    for device, time in times.items():
        if time.device.array is not None:
            here = [op for op, where in enumerate(placement.devices) if where == device]
            gemms = [time.ops[op].gemm for op in here]
            known = not without_sizes(graph.ops[op] for op in here)
            cycles = sum(int(gemm.cycles) for gemm in gemms if gemm is not None)
            found[device] = cycles if known else None
    return found


def unknown_launches(
    graph: OpGraph, placement: Placement, times: Mapping[str, DeviceTime]
) -> tuple[str, ...]:
    """The devices whose seconds leave out what it takes to start the ops that work there."""
    working = {
        device
        for op, device in zip(graph.ops, placement.devices, strict=True)
        if op.kind not in FREE
    }
    lacking = (
        time.device.name for d, time in times.items() if d in working and time.lacks_launches
    )
    return tuple(dict.fromkeys(lacking))


def compute_seconds(placement: Placement, times: Mapping[str, DeviceTime]) -> dict[str, float]:
    """By device: the seconds of its ops, for devices that are described and have all of them."""
    found: dict[str, float] = {}
    for device, time in times.items():
        ops = [op for op, here in enumerate(placement.devices) if here == device]
        taken = [time.ops[op].seconds for op in ops]
        known = [seconds for seconds in taken if seconds is not None]
        if len(known) == len(taken):
            found[device] = fsum(known)
    return found


def bound_seconds(
    placement: Placement, times: Mapping[str, DeviceTime]
) -> dict[str, dict[str, float]]:
    """By accelerator that is a chip with memories: the seconds of its ops by what bounds them."""
    found: dict[str, dict[str, float]] = {}
    for device in placement.accelerators:
        time = times.get(device)
        if time is None or not (time.device.npu or time.device.array_memory):
            continue
        bounds: Counter[str] = Counter()
        for op, here in enumerate(placement.devices):
            at = time.ops[op]
            if here == device and at.bound is not None:
                bounds[at.bound] += at.seconds or 0.0  # type: ignore[assignment]  # seconds add too
        found[device] = dict(bounds)
    return found
