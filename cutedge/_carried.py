"""Placements in the words of the programs that carry them out: read, written, held to the optimum."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodels.links import Links, load_link
from cutedge._machines import machine_words
from cutedge._placing import partition_of
from cutedge.executors import EXECUTORS, Executor, carried, read_words
from partition.accounting import account
from partition.ladder import Choice, dearest
from partition.masks import MaskedGraph
from partition.objective import memory_limits
from partition.optimise import place
from partition.placement import Placement
from partition.policy import Policy, load_policy
from partition.problem import InfeasibleError, NotFoundError, memory_of
from partition.setting import Setting
from partition.split import Split
from tracer.errors import CutedgeError, InputError, choose
from tracer.graph import OpGraph
from tracer.words import counted, human

_PREFIX = "placement-"


def placement(given: str) -> Policy:
    """A policy that places ops as an executor's words say: a file, or the words themselves.

    It is called ``placement-`` and the executor. Raises InputError for words of no executor;
    whether they are of a graph shows when it is placed.

    >>> import cutedge
    >>> given = cutedge.placement("VLLM_PP_LAYER_PARTITION=3,1")
    >>> cutedge.trace("edge-10m", seq=64).partition(given)
    <cutedge.Partition placement-vllm of edge-10m: tee calls gpu 1 times, 169,536 bytes>
    """
    executor, told = read_words(given)

    def placer(
        graph: OpGraph, home: str, accelerators: Sequence[str]
    ) -> tuple[Sequence[str | None], frozenset[int]]:
        try:
            at = executor.place(graph, told, (home, *accelerators))
        except InputError as error:
            raise InputError(f"--placement: {error}") from error
        return at.devices, at.streams

    return Policy(
        name=f"{_PREFIX}{executor.name}",
        description=f"where {executor.name} is told to run it",
        default="home",
        rules=(),
        placer=placer,
    )


def placement_policies(given: Iterable[str]) -> list[Policy]:
    """A policy for each, by names of their own."""
    found: list[Policy] = []
    for text in given:
        policy = placement(text)
        alike = sum(one.name.partition(" ")[0] == policy.name for one in found)
        found.append(replace(policy, name=f"{policy.name} {alike + 1}") if alike else policy)
    return found


# --- written --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Words:
    """A placement in the words of an executor."""

    executor: str
    """Whose words they are."""
    text: str
    """What the executor is told; the nearest that it can carry out."""
    beside: Mapping[str, object]
    """What it takes beside that, by its own names: accelerate's ``max_memory``."""
    policy: str
    """What the placement is of."""
    exact: bool
    """Whether it carries the placement out as it is."""
    stops: tuple[str, ...]
    """The first modules with ops that it has elsewhere, and these; empty where it is exact."""
    stopped: int
    """How many ops it has elsewhere, views left out."""
    payload_bytes: int
    """What crosses under the placement, without packing."""
    nearest_payload_bytes: int
    """What crosses under the nearest."""
    units: str
    """What the executor keeps on one device each, in words."""

    @property
    def claim(self) -> str:
        """What keeps the executor from it, and what the nearest costs."""
        more = self.nearest_payload_bytes - self.payload_bytes
        price = f"{human(abs(more))} {'more' if more >= 0 else 'less'}"
        return (
            f"{self.executor} cannot carry out {self.policy}: it places {self.units}, and "
            f"{counted(self.stopped, 'op')} would be elsewhere ({'; '.join(self.stops)}). The "
            "nearest that it can, where each of these goes where most of its FLOPs are, else of its "
            f"bytes, moves {human(self.nearest_payload_bytes)}: {price}"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """By name, for JSON."""
        return {
            "executor": self.executor,
            "policy": self.policy,
            "text": self.text,
            "beside": dict(self.beside),
            "exact": self.exact,
            "stopped_ops": self.stopped,
            "stops": list(self.stops),
            "payload_bytes": self.payload_bytes,
            "nearest_payload_bytes": self.nearest_payload_bytes,
        }


_SHOWN = 3
"""Modules that are named of those that stop an executor."""


def words_for(split: Split, executor: str, *, nearest: bool = False) -> Words:
    """A placement in the words of an executor.

    Raises InputError for an executor that is not known, CutedgeError for a placement that it cannot
    carry out, unless the ``nearest`` will do; and for a masked one, whose masks it would leave out.
    """
    choose(executor, list(EXECUTORS), "--for")
    graph, placement = split.graph, split.placement
    if isinstance(graph, MaskedGraph):
        raise CutedgeError(f"{split.policy} masks ops, and {executor} would run them unmasked")
    accelerators = split.devices[1:] or placement.accelerators
    if not accelerators:
        raise CutedgeError(f"{split.policy} has no accelerator to place anything on")
    found = carried(EXECUTORS[executor], graph, placement, accelerators)
    there = replace(placement, devices=found.places.devices, streams=found.places.streams)
    before, after = (_payload(split, one) for one in (placement, there))
    elsewhere = [op for op in found.moved if not graph.ops[op].is_view]
    exact = not elsewhere and after <= before
    told = Words(
        executor,
        found.text,
        found.beside,
        split.policy,
        exact,
        () if exact else tuple(_stops(graph, placement, there, elsewhere or found.moved)),
        0 if exact else len(elsewhere or found.moved),
        before,
        after,
        EXECUTORS[executor].units,
    )
    if not exact and not nearest:
        raise CutedgeError(f"{told.claim}. --nearest writes it")
    return told


def _payload(split: Split, placement: Placement) -> int:
    links = split.links or Links(load_link("none"))
    wire = replace(split.wire_format, packings={}, text="")
    found = account(split.graph, placement, links, wire=wire, residency=split.residency)
    return found.totals.payload_bytes


def _stops(
    graph: OpGraph, placement: Placement, there: Placement, moved: Sequence[int]
) -> Iterable[str]:
    """The first modules of some ops, and these with where they are and would be."""
    by: dict[tuple[str, str], list[str]] = {}
    for op in moved:
        here, then = placement.devices[op], there.devices[op]
        way = f"on {here}, not {then}" if here != then else f"their weights on {here}"
        by.setdefault((graph.ops[op].module_path or "the model itself", way), []).append(
            graph.ops[op].name
        )
    for (path, way), names in [*by.items()][:_SHOWN]:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"{path}: {', '.join(names[:2])}{more} {way}"
    if len(by) > _SHOWN:
        yield f"{len(by) - _SHOWN} more modules"


# --- held to the optimum --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BesideOptimum:
    """How far an executor's placement is from the best one on the same machine."""

    unit: str
    """``seconds`` of the run where they are known, else ``bytes`` of payload."""
    value: float
    """Of the placement."""
    optimum: float
    """Of the best that was found by ``policy``, in the executor's units."""
    proven: bool
    """Whether no placement by these units is better."""
    policy: str
    """What finds it."""
    granularity: str
    """The units of the search, as near as there are to those of the executor."""
    choices: tuple[Choice, ...]
    """What the placement loses most by, the dearest first; at most three."""
    commands: tuple[str, ...]
    """What places it better, and writes that for the executor."""


def beside_optimum(split: Split, policy: Policy, setting: Setting) -> BesideOptimum | str | None:
    """How far a placement of an executor is from the best; why that is not known, in words.

    None for a policy that is no executor's placement.
    """
    if policy.placer is None or isinstance(split.graph, MaskedGraph):
        return None
    executor = EXECUTORS[split.policy.removeprefix(_PREFIX).partition(" ")[0]]
    timed = setting.unknown_seconds is None and split.run_seconds is not None
    best = replace(load_policy("fastest" if timed else "min-cut"), secrets=policy.secrets)
    asked = replace(setting, granularity=executor.granularity, scheduling=None)
    try:
        found = place(split.graph, best, asked)
    except (InfeasibleError, NotFoundError, InputError) as error:
        return f"the optimum beside it is not known: {error}"

    def cost(placement: Placement) -> float:
        placer = (placement.devices, placement.streams)
        one = replace(policy, placer=lambda *_: placer, secrets=())
        there = partition_of(split.graph, "", one, replace(asked, granularity="op"), shows=False)
        return (there.run_seconds or 0.0) if timed else there.traffic.totals.payload_bytes

    value, optimum = cost(split.placement), cost(found.placement)
    better = value > optimum
    return BesideOptimum(
        "seconds" if timed else "bytes",
        value,
        optimum,
        found.solution is not None and found.solution.proven,
        best.name,
        executor.granularity,
        tuple(dearest(split.graph, split.placement, found.placement, cost)) if better else (),
        _commands(best.name, executor, setting) if better else (),
    )


def too_large(split: Split, setting: Setting) -> list[str]:
    """Where a placement takes more memory than there is."""
    limits = memory_limits(split.graph, setting)
    taken = memory_of(split.graph, split.placement, split.traffic.transfers) if limits else {}
    return [
        f"it takes {human(taken[device])} at {device}, which has {human(limit)}: it does not fit"
        for device, limit in limits.items()
        if taken.get(device, 0) > limit
    ]


def _commands(policy: str, executor: Executor, setting: Setting) -> tuple[str, ...]:
    words = [
        f"--policy {policy} --granularity {executor.granularity}",
        *machine_words(setting.machine),
        *([f"--residency {setting.residency}"] if setting.residency != "run" else []),
    ]
    return (
        f"cutedge partition {' '.join(words)}",
        f"cutedge export placement --for {executor.name} --policy {policy}",
    )
