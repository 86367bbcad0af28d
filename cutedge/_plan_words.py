"""What the command line says of a memory plan."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tracer.stacks import run_order
from tracer.words import counted, duration, human

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutedge._partition import Partition
    from cutedge._plan import Plan


def amount(plan: "Plan", cost: float) -> str:
    """What a plan costs, as text."""
    if plan.unit == "seconds":
        return duration(cost)
    return human(round(cost)) if plan.unit == "bytes" else f"{cost:,.4g}"


def _least(plan: "Plan", cost: float) -> str:
    return f"{'>= ' * bool(plan.left_out)}{amount(plan, cost)}"


def heading(plan: "Plan") -> str:
    """What is planned, on what."""
    first = plan.phases[0].partition
    mixed = " and ".join(_runs(one.name, one.runs, one.partition) for one in plan.phases)
    memory = ", ".join(
        f"{human(size)} on {device}" for device, size in first.setting.machine.memory_bytes.items()
    )
    machine = first.setting.machine
    at = f"{'+'.join(machine.devices)}@{machine.links.name}"
    return (
        f"{first.trace.graph.meta.model}: {mixed}; {plan.policy} by {first.setting.granularity} on "
        f"{at}{f', {memory}' * bool(memory)}"
    )


def shown(plan: "Plan", paths: Iterable[object]) -> Iterator[str | tuple[list[str], Any]]:
    """What ``partition --mix`` and ``--frontier`` print under their heading."""
    yield ""
    yield phase_table(plan)
    yield from sentences(plan)
    if plan.points:
        yield ""
        yield point_table(plan)
        yield point_sentence(plan)
    yield from (f"written to {path}" for path in paths)


def _runs(name: str, times: int, made: "Partition") -> str:
    meta = made.trace.graph.meta
    many = "" if meta.batch == 1 else f"{meta.batch:,} x "
    if name == "decode":
        return f"{times:,} x decode over {many}{meta.past:,} tokens"
    return f"{times:,} x {name} of {many}{meta.seq:,} tokens"


def phase_table(plan: "Plan") -> tuple[list[str], list[list[str]]]:
    """(columns, a row for each phase, and one for all)."""
    devices = plan.phases[0].partition.setting.machine.devices
    heads = ["of", "runs>2", "calls>3", "payload>2", f"{plan.unit}>", "alone>1"]
    heads += [f"takes on {device}>1" for device in devices]
    rows = []
    for one in plan.phases:
        traffic = one.partition.bare.traffic
        rows.append(
            [
                one.name,
                f"{one.runs:,}",
                f"{len(traffic.calls):,}",
                human(traffic.totals.payload_bytes),
                _least(plan, one.cost),
                _least(plan, one.alone_cost),
                *(human(one.memory_bytes.get(device, 0)) for device in devices),
            ]
        )
    if len(plan.phases) > 1:
        alone = sum(one.runs * one.alone_cost for one in plan.phases)
        rows.append(
            ["all runs", "", "", "", _least(plan, plan.cost), _least(plan, alone)]
            + ["" for _ in devices]
        )
    return heads, rows


def sentences(plan: "Plan") -> Iterator[str]:
    """How good the plan is, what it costs that it is one, and what lies away from home."""
    if plan.proven:
        yield f"optimal: {amount(plan, plan.cost)}; no placement that is allowed has less"
    else:
        gap = (plan.cost - plan.least_cost) / plan.cost if plan.cost else 0.0
        yield (
            f"best found: {amount(plan, plan.cost)}; the optimum is not below "
            f"{amount(plan, plan.least_cost)} (gap {gap:.2%})"
        )
    if len(plan.phases) > 1:
        price = f"{amount(plan, plan.price)} more than" if plan.price else "no more than"
        yield f"one placement for all phases: {price} each phase placed by itself"
    if plan.left_out:
        yield f"not known, and left out of the seconds: {', '.join(plan.left_out)}"
    last = plan.phases[-1].partition
    placement, graph = last.bare.placement, last.trace.graph
    there: dict[tuple[str, int], set[str]] = {}  # (stack, layer) -> where its ops are
    for op in run_order(graph):
        device, layer = placement.devices[op], graph.ops[op].layer
        if device is not None and layer is not None:
            there.setdefault((graph.ops[op].stack or "", layer), set()).add(device)
    for device in placement.accelerators:
        for stack in dict.fromkeys(stack for stack, _ in there):
            mine = {n: at for (one, n), at in there.items() if one == stack and device in at}
            whole = sorted(n for n, at in mine.items() if at == {device})
            of = f" of {stack}" if stack else ""
            parts = [
                *([f"{counted(len(whole), 'layer')}{of} ({ranges(whole)})"] if whole else []),
                *([f"parts of {len(mine) - len(whole)}{of}"] if len(whole) < len(mine) else []),
            ]
            if parts:
                yield f"on {device}: {' and '.join(parts)}"


def ranges(numbers: "Sequence[int]") -> str:
    """Numbers in order, those that follow each other together.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    ends: list[list[int]] = []
    for number in numbers:
        if ends and ends[-1][-1] == number - 1:
            ends[-1][1:] = [number]
        else:
            ends.append([number])
    return ", ".join("-".join(map(str, end)) for end in ends)


def point_table(plan: "Plan") -> tuple[list[str], list[list[str]]]:
    """(columns, a row for each point of the frontier)."""
    most = max((one.cost for one in plan.points), default=0.0)
    heads = [
        "memory>",
        "takes>2",
        f"{plan.unit}>",
        "of the most%",
        "calls>3",
        "payload>3",
        "proven<1",
    ]
    return heads, [
        [
            human(one.memory_bytes),
            human(one.taken_bytes),
            _least(plan, one.cost),
            f"{one.cost / most if most else 0.0:.1%}",
            f"{one.calls:,}",
            human(one.total_payload_bytes),
            "yes" if one.proven else f"not below {amount(plan, one.least_cost)}",
        ]
        for one in plan.points
    ]


def point_sentence(plan: "Plan") -> str:
    """What holds between the points of a frontier."""
    (device,) = plan.phases[0].partition.setting.machine.accelerators
    between = (
        "these are all steps that there are"
        if plan.whole
        else "closer steps are passed over: a higher --frontier shows more"
    )
    return f"from what it takes on {device} up to the memory, nothing is better; {between}"
