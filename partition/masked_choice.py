"""Ops that run masked where they are away, in what a policy asks: their masks, and what these take."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from costmodels.machine import Machine
from costmodels.roofline import DeviceTime
from partition.masking import masked
from partition.masks import MaskedGraph, with_masks_placed
from partition.placement import Placement
from partition.policy import Policy, allowed_by
from partition.protects import protections
from partition.schemes import Protection
from partition.setting import Setting
from tracer.errors import InputError
from tracer.graph import OpGraph


def with_masks(
    graph: OpGraph, policy: Policy, machine: Machine, placement: Placement
) -> tuple[OpGraph, Placement]:
    """A plain graph and its placement with the masks of what the policy protects."""
    away = [op for op, d in enumerate(placement.devices) if d not in (None, placement.home)]
    protected = _protections(graph, policy, away)
    whole = masked(graph, protected, machine.wire_dtype)
    return whole, with_masks_placed(whole, placement)


def _protections(graph: OpGraph, policy: Policy, away: Collection[int]) -> dict[int, Protection]:
    try:
        return protections(graph, policy.protects, away)
    except InputError as error:
        raise InputError(f"{policy.name}: {error}") from None


def protecting(graph: OpGraph, policy: Policy, setting: Setting) -> tuple[OpGraph, Setting]:
    """A plain graph where all is masked that may be away and is protected, and what ops take there.

    At home a protected op takes what it takes in plain.
    """
    machine = setting.machine
    allowed = allowed_by(graph, policy, machine.home, machine.accelerators)
    away = [op for op, choice in enumerate(allowed) if set(choice) - {machine.home}]
    protected = _protections(graph, policy, away)
    whole = masked(graph, protected, machine.wire_dtype)
    if not isinstance(whole, MaskedGraph):
        return graph, setting
    times, home = machine.times(whole), machine.home
    if home in times:
        ops = [*times[home].ops]
        for op in protected:
            ops[whole.here[op]] = setting.times[home].ops[op]
        times[home] = replace(times[home], ops=tuple(ops))
    return whole, replace(setting, times=times)


def crossing_costs(
    graph: OpGraph, setting: Setting, cost_at_home: Callable[[int], float]
) -> Iterator[tuple[int, bool, float]]:
    """(tensor, whether it is sent, what it costs that home is certain to compute where it crosses),
    by what an op costs at home.

    A mask is made where what it masks is sent, once: to each of several devices not certainly more
    than its share, nor with each of several calls any of it. Recovery, pads and checks are made
    where a result comes back.
    """
    if not isinstance(graph, MaskedGraph):
        return
    beside: dict[int, float] = defaultdict(float)
    for op, (part, of) in graph.parts.items():
        cost = cost_at_home(op)
        if part == "mask":
            sent = graph.outputs(op)[0].id
            several = len(setting.machine.accelerators)
            again = setting.residency == "call" and len(graph.readers(sent)) > 1
            yield sent, True, 0.0 if again else cost / several
        else:
            beside[graph.here[of]] += cost
    for op, cost in beside.items():
        yield graph.outputs(op)[0].id, False, cost


def unmasked(graph: OpGraph, setting: Setting) -> dict[int, int]:
    """Protected op -> what home does for its mask and has no seconds for."""
    if not isinstance(graph, MaskedGraph):
        return {}
    found: dict[int, int] = {}
    for op, (part, of) in graph.parts.items():
        if not setting.can_run(op, setting.machine.home):
            readers = graph.readers(graph.outputs(op)[0].id) if part == "mask" else ()
            found |= dict.fromkeys((*readers, graph.here[of]), op)
    return found


def mask_seconds(
    graph: OpGraph, home: str, times: Mapping[str, DeviceTime]
) -> dict[int, float | None]:
    """Op that home does for masks -> what it takes; nothing where home is not described."""
    if not isinstance(graph, MaskedGraph) or home not in times:
        return {}
    return {op: times[home].ops[op].seconds for op in graph.parts}
