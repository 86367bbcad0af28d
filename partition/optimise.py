"""Policies with an objective: what they leave free goes where it is best, with the proof.

What is proven is the figure that is printed. The answer is counted again as it is printed, by
``account`` and by the seconds of the devices under the placement. Where the sum of the problem
(``partition.objective``) is that figure, the solver's bound is a bound of it. Elsewhere the sum
leaves out what depends on more than one op or tensor, and so is the least that the figure can be:

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

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, floor
from time import perf_counter
from typing import TYPE_CHECKING

from partition.accounting import Traffic, account
from partition.granularity import apart, unit_name, units
from partition.masked_choice import protecting, with_masks
from partition.masking import settled
from partition.masks import MaskedGraph, plain_of, with_masks_placed, without_masks_placed
from partition.objective import (
    figure,
    is_rounded,
    memory_limits,
    problems_of,
    second_weight,
    secret_ways,
    unit_of,
)
from partition.placement import Placement
from partition.policy import Policy, allowed_by, check_matches, free_ops, load_policy, policy_names
from partition.problem import (
    InfeasibleError,
    NotFoundError,
    Problem,
    candidates,
    memory_of,
    recount,
)
from partition.secrets import present
from partition.setting import Setting
from partition.stored import state_readers
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
        ways = secret_ways(graph, replace(policy, secrets=(secret,)), setting)
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
