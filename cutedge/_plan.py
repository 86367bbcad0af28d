"""Memory plans: one placement for prefill and decode, and what a device's memory is worth."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutedge._partition import Asked, Partition
from cutedge._placing import partition_of
from cutedge._trace import Trace, load, trace
from cutedge._workspace import default_folder
from partition.mix import Phase, check_mixed, place_mixed
from partition.objective import figure, memory_limits, unit_of
from partition.optimise import Placed, place
from partition.placement import Placement
from partition.policy import Policy
from partition.problem import InfeasibleError, NotFoundError, memory_of
from partition.setting import Setting
from tracer.errors import InputError
from tracer.summary import cached_outputs, check_causal

if TYPE_CHECKING:
    import pyarrow as pa

PHASES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A phase under the placement of a plan."""

    name: str
    """``prefill`` or ``decode``; of a plan without a mix that of the trace."""
    runs: int
    """How often it runs."""
    partition: Partition
    cost: float
    """What one run of it costs, in the plan's ``unit``."""
    alone_cost: float
    """What it would cost placed by itself, under the same limits."""
    memory_bytes: Mapping[str, int]
    """By device, the most that lies there at a time."""
    given: bool
    """Whether the plan was asked of this phase's trace; the other one was found beside it."""


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """The best placement with so much memory on the accelerator."""

    memory_bytes: int
    """What it may take: with anything from ``taken_bytes`` up to this nothing is better."""
    taken_bytes: int
    """What it takes, the most at a time."""
    cost: float
    """Of all phases, each as often as it runs, in the plan's ``unit``."""
    least_cost: float
    """No placement with so much memory costs less; the same where it is proven."""
    proven: bool
    """Whether no placement with so much memory is better."""
    calls: int
    """Of all phases, each as often as it runs."""
    total_payload_bytes: int
    """What crosses, likewise."""


@dataclass(frozen=True, slots=True)
class _Best:
    """What was found under some limits."""

    placed: tuple[Placed, ...]
    costs: tuple[float, ...]
    alone: tuple[float, ...]
    cost: float
    bound: float
    proven: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a model lies for all its phases, and how that depends on the memory that there is."""

    policy: str
    unit: str
    """Of costs: ``seconds``, ``bytes``, or ``weighted`` of both."""
    phases: tuple[PlannedPhase, ...]
    least_cost: float
    """No placement within the limits costs less; the same where it is proven."""
    proven: bool
    """Whether no placement within the limits is better."""
    points: tuple[PlanPoint, ...]
    """From the most memory on the accelerator to the least; empty where that was not asked for."""
    whole: bool
    """Whether these are all the steps that there are, none of which is passed over."""

    @property
    def cost(self) -> float:
        """Of all phases, each as often as it runs."""
        return sum(one.runs * one.cost for one in self.phases)

    @property
    def price(self) -> float:
        """What it costs that weights and cache lie in one place for all phases."""
        alone = sum(one.runs * one.alone_cost for one in self.phases)
        return max(0.0, self.cost - alone)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What seconds leave out since it is not known."""
        told = [what for one in self.phases for what in one.partition.bare.left_out]
        return tuple(dict.fromkeys(told)) if self.unit != "bytes" else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the policy does less than it says, and what of the machine cannot be so."""
        return tuple(dict.fromkeys(w for one in self.phases for w in one.partition.warnings))

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``partition --mix --json`` has them."""
        first = self.phases[0].partition
        return {
            "model": first.trace.graph.meta.model,
            "policy": self.policy,
            "granularity": first.setting.granularity,
            "machine": first.bare.machine,
            "memory_bytes": dict(first.setting.machine.memory_bytes),
            "unit": self.unit,
            "cost": self.cost,
            "least_cost": self.least_cost,
            "proven": self.proven,
            "price": self.price,
            "at_least": bool(self.left_out),
            "left_out": list(self.left_out),
            "phases": [
                {
                    "phase": one.name,
                    "runs": one.runs,
                    "cost": one.cost,
                    "alone_cost": one.alone_cost,
                    "calls": len(one.partition.bare.traffic.calls),
                    "total_payload_bytes": one.partition.bare.traffic.totals.payload_bytes,
                    "run_seconds": one.partition.bare.run_seconds,
                    "taken_bytes": dict(one.memory_bytes),
                }
                for one in self.phases
            ],
            "points": [
                {name: getattr(point, name) for name in PlanPoint.__slots__}
                for point in self.points
            ],
            "whole": self.whole,
            "warnings": list(self.warnings),
        }

    @property
    def table(self) -> "pa.Table":
        """The points, one a row."""
        import pyarrow as pa

        return pa.table(
            {name: [getattr(one, name) for one in self.points] for name in PlanPoint.__slots__}
        )

    def save(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write each phase as a partition of its trace, and the points beside the last; where.

        ``folder`` is that of the trace that was asked of; other phases go to their own, or to the
        default place.
        """
        from cutedge._frontier import write_points

        written = []
        for one in self.phases:
            traced = one.partition.trace
            own = traced.folder or (folder if one.given else None)
            own = own or default_folder(traced.graph)
            written.append(one.partition.save(own))
        if self.points:
            written += write_points(self, written[-1])
        return tuple(written)


def read_mix(text: str) -> dict[str, int]:
    """``prefill=1,decode=256`` as how often each phase runs. Raises InputError.

    >>> read_mix("prefill=1,decode=256")
    {'prefill': 1, 'decode': 256}
    """
    parts = [part.strip().partition("=") for part in text.split(",")]
    found = {name: int(times) for name, _, times in parts if re.fullmatch(r"[1-9]\d{0,8}", times)}
    if sorted(name for name, *_ in parts) != sorted(PHASES) or set(found) != set(PHASES):
        raise InputError(
            f"--mix {text!r}: write how often each phase runs, as in prefill=1,decode=256"
        )
    return {name: found[name] for name in PHASES}


def check_plan(mix: str | None, frontier: int | None, policy: Policy, setting: Setting) -> None:
    """Raise InputError where what is asked of a plan does not go together."""
    if mix is not None:
        read_mix(mix)
        check_mixed(policy, setting)
    if policy.objective is None:
        raise InputError(
            f"{policy.name} leaves nothing free: take a policy that searches (fastest)"
        )
    if frontier is not None and (frontier < 1 or len(setting.machine.accelerators) != 1):
        raise InputError("--frontier takes a number of sizes from 1 on, and one accelerator")


def plan(
    traced: Trace,
    mix: str | None,
    frontier: int | None,
    storage: tuple[str | Path | None, str | None],
    asked: Callable[[Trace], Asked],
) -> Plan:
    """The best placement for the phases of a ``mix``, or of a trace alone, and its ``frontier``."""
    first = asked(traced)
    (name,) = first.policies
    policy = first.policies[name]
    check_plan(mix, frontier, policy, first.setting)
    weights = {traced.graph.meta.phase: 1} if mix is None else read_mix(mix)
    traces = {traced.graph.meta.phase: traced} if mix is None else phases_of(traced)
    traces = {phase: one.stored(*storage) for phase, one in traces.items()}
    phases = [
        Phase(traces[phase].graph, asked(traces[phase]).setting, weight)
        for phase, weight in weights.items()
    ]
    best = _best(phases, policy)
    placed = [
        _partition(traces[phase], policy, one.setting, there, mix)
        for phase, one, there in zip(weights, phases, best.placed, strict=True)
    ]
    points, whole = ([], True) if frontier is None else _frontier(phases, policy, best, frontier)
    return Plan(
        policy.name,
        {"ns": "seconds"}.get(unit_of(policy), unit_of(policy)),
        tuple(
            PlannedPhase(
                phase,
                weight,
                one,
                cost,
                alone,
                _taken(many, there.placement),
                phase == traced.graph.meta.phase,
            )
            for (phase, weight), one, cost, alone, many, there in zip(
                weights.items(), placed, best.costs, best.alone, phases, best.placed, strict=True
            )
        ),
        best.bound,
        best.proven,
        tuple(points),
        whole,
    )


def _best(phases: Sequence[Phase], policy: Policy, *, beside: bool = True) -> _Best:
    """The best placement of one phase, or of several together, in seconds or bytes."""
    scale = 1e-9 if unit_of(policy) == "ns" else 1.0
    if len(phases) == 1:
        (phase,) = phases
        placed = place(phase.graph, policy, phase.setting)
        assert placed.solution is not None
        cost = scale * figure(phase.graph, policy, phase.setting, placed.placement)
        bound = cost if placed.solution.proven else scale * placed.solution.bound
        return _Best((placed,), (cost,), (cost,), cost, bound, placed.solution.proven)
    mixed = place_mixed(phases, policy, beside=beside)
    costs = tuple(scale * cost for cost in mixed.costs)
    cost = sum(phase.weight * one for phase, one in zip(phases, costs, strict=True))
    bound = cost if mixed.proof.proven else scale * mixed.proof.bound
    alone = tuple(scale * one for one in mixed.alone_costs)
    there = tuple(
        Placed(phase.graph, one) for phase, one in zip(phases, mixed.placements, strict=True)
    )
    return _Best(there, costs, alone, cost, bound, mixed.proof.proven)


def _partition(
    traced: Trace, policy: Policy, setting: Setting, placed: Placed, mix: str | None
) -> Partition:
    """A trace under the placement of a plan, as one of a policy; of a mix under a name of its own."""
    if mix is not None:
        there = placed.placement
        policy = Policy(
            name=f"{policy.name}-mixed",
            description=f"the best for {' and '.join(policy.objective or ())} of {mix} together",
            default="home",
            rules=(),
            secrets=policy.secrets,
            packs=policy.packs,
            placer=lambda *_: (there.devices, there.streams),
        )
        placed = Placed(placed.graph, setting.fixed(placed.graph, policy))
    split = partition_of(traced.graph, "", policy, setting, shows=False, placed=placed)
    return Partition(traced, split, Asked({policy.name: policy}, setting), policy)


# --- the phases of a model ------------------------------------------------------------------------


def phases_of(traced: Trace) -> dict[str, Trace]:
    """The prefill that fills a cache, and the first step of decode over it, of a traced model.

    The one that is not there is taken from beside the trace's directory, or traced. Raises
    InputError for a model without a cache, and where its name is not that of a model.
    """
    meta = traced.graph.meta
    if meta.phase not in PHASES or meta.source or not meta.seq:
        raise InputError(
            f"a mix is of a decoder with a cache, and {meta.model} here is {meta.phase}"
        )
    if meta.phase == "decode" and meta.seq != 1:
        raise InputError("a mix has steps of one token: trace decode without --seq")
    past = meta.past + meta.seq if meta.phase == "prefill" else meta.past
    sizes = {
        "prefill": {"seq": past, "past": 0} if meta.phase == "decode" else meta.variables,
        "decode": {"seq": 1, "past": past},
    }
    found = {}
    for phase in PHASES:
        here = meta.phase == phase and (phase == "decode" or cached_outputs(traced.graph))
        found[phase] = traced if here else _sibling(traced, phase, sizes[phase])
    check_causal(found["prefill"].graph, found["decode"].graph)
    return found


def _sibling(traced: Trace, phase: str, sizes: Mapping[str, int]) -> Trace:
    """Another phase of a traced model, from beside it or traced."""
    meta = traced.graph.meta
    level = f"phase={phase}/batch={meta.batch}/past={sizes['past']}/seq={sizes['seq']}"
    above = traced.folder.parents if traced.folder else ()
    for folder in sorted(above[4].glob(f"variant=*/{level}")) if len(above) > 4 else ():
        one = load(folder)
        there = one.graph.meta
        alike = ("model", "dtype", "attn", "logits", "overrides", "parameters")
        if all(getattr(there, name) == getattr(meta, name) for name in alike) and (
            phase == "decode" or cached_outputs(one.graph)
        ):
            return one
    try:
        return trace(
            meta.model,
            batch=meta.batch,
            seq=sizes["seq"],
            past=sizes["past"],
            phase=phase,
            cache=phase == "prefill",
            dtype=meta.dtype,
            attn=meta.attn,
            logits=meta.logits,
            overrides={key: json.loads(value) for key, value in meta.overrides},
        )
    except InputError as error:
        cache = " --cache" if phase == "prefill" else ""
        size = "--past" if phase == "decode" else "--seq"
        number = sizes["past" if phase == "decode" else "seq"]
        raise InputError(
            f"--mix needs the {phase} too: trace it beside this one, with --phase {phase} {size} "
            f"{number}{cache} and all else as here ({error})"
        ) from error


# --- memory against what it costs -----------------------------------------------------------------


def _taken(phase: Phase, placement: Placement) -> dict[str, int]:
    """By device, the most that lies there at a time."""
    setting = phase.setting
    traffic = setting.account(phase.graph, placement, setting.wire(phase.graph, _PLAIN))
    return memory_of(phase.graph, placement, traffic.transfers)


_PLAIN = Policy(name="", description="", default="home", rules=())


_CLOSE = 2e-5
"""The share of its memory that two steps of a frontier are apart at least: solvers tell no less."""


def _frontier(
    phases: Sequence[Phase], policy: Policy, best: _Best, steps: int
) -> tuple[list[PlanPoint], bool]:
    """(the best placement with less and less memory, whether no step is passed over).

    Each search is given a little less than the last placement takes, so that between what one
    takes and what it may take nothing is better. Of steps that are closer than the top's share of
    so many ``steps`` some are passed over.
    """
    (accelerator,) = phases[0].setting.machine.accelerators
    limits = [memory_limits(phase.graph, phase.setting).get(accelerator, inf) for phase in phases]

    def within(size: int) -> PlanPoint:
        less = [replace(one, setting=_limited(one.setting, accelerator, size)) for one in phases]
        return replace(
            _point(less, policy, _best(less, policy, beside=False), accelerator), memory_bytes=size
        )

    point = _point(phases, policy, best, accelerator)
    share = ceil(point.taken_bytes / steps)
    points = [
        replace(point, memory_bytes=int(min(limits)) if min(limits) < inf else point.taken_bytes)
    ]
    whole = True
    while (last := points[-1]).taken_bytes > 0:
        try:
            found = within(last.taken_bytes - 1 - int(last.taken_bytes * _CLOSE))
            if found.cost <= last.cost * (1 + 1e-9) and found.proven:  # as good with less
                points[-1] = replace(found, memory_bytes=last.memory_bytes)
                continue
            if found.taken_bytes > (far := max(0, last.taken_bytes - share)):
                found, whole = within(far), False
        except InfeasibleError:
            break
        except NotFoundError:
            whole = False
            break
        points.append(found)
    return points, whole


def _limited(setting: Setting, device: str, size: int) -> Setting:
    memory = {**setting.machine.memory_bytes, device: size}
    return replace(setting, machine=replace(setting.machine, memory_bytes=memory))


def _point(phases: Sequence[Phase], policy: Policy, best: _Best, accelerator: str) -> PlanPoint:
    calls = payload = 0
    placements = [one.placement for one in best.placed]
    for phase, there in zip(phases, placements, strict=True):
        wire = phase.setting.wire(phase.graph, policy)
        traffic = phase.setting.account(phase.graph, there, wire)
        calls += int(phase.weight) * len(traffic.calls)
        payload += int(phase.weight) * traffic.totals.payload_bytes
    taken = max(
        _taken(phase, there).get(accelerator, 0)
        for phase, there in zip(phases, placements, strict=True)
    )
    return PlanPoint(taken, taken, best.cost, best.bound, best.proven, calls, payload)
