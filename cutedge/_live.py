"""A comparison at other sizes, over another link: its figures from formulas, in an instant.

What a placement moves and runs is counted once. At a point (sizes, a link, what floats cross in) its
figures are those of ``cutedge.sweeping``, which are equal to what ``compare`` says there. Placements
that rules alone decide are the same at all points. One that was searched for is kept until it is
solved anew (``Live.solve``): its figures are exact, and another one may be better there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.flops import annotate
from costmodels.links import Link, Links
from costmodels.machine import Machine
from costmodels.many import Over
from costmodels.roofline import DeviceTime
from cutedge._live_splits import LightSplits
from cutedge._placing import Compared, partition_of
from cutedge._verdict import limit_sentence
from cutedge.report.figures import Table, policies_table
from cutedge.report.scores import Score, best_allowed, scores
from cutedge.sweeping.answers import ACCELERATOR, HOME, Devices, by_part
from cutedge.sweeping.parts import Part, PlacedPart, SizedGraph, alike
from partition.explain import compare_traffic
from partition.masks import without_masks_placed
from partition.policy import Policy
from partition.problem import InfeasibleError, NotFoundError
from partition.run import times_under
from partition.setting import Setting
from partition.split import Split
from tracer.errors import CutedgeError, InputError
from tracer.graph import FLOATING, OpGraph, TraceMeta
from tracer.reach import graph_at, reaches

if TYPE_CHECKING:
    from cutedge._trace import Trace

SIZES = ("batch", "seq", "past")


@dataclass(frozen=True, slots=True)
class Point:
    """Where a comparison is looked at."""

    sizes: tuple[tuple[str, int], ...] = ()
    """(variable, value) of those that are not as they were traced."""
    bandwidth_bytes_per_second: int | None = None
    """Of the link in both directions; None: as its description has it."""
    latency_seconds: float | None = None
    """Likewise."""
    wire_dtype: str | None = None
    """What floats cross in; None: their own dtypes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A comparison at a point."""

    point: Point
    table: Table
    """Policies side by side."""
    policies: Sequence[str]
    """Of the table's rows."""
    placements: Sequence[str]
    """By policy, how its placement is known, in words."""
    kept: bool
    """Whether a placement is kept from another point, where another one may be better."""
    limit: str
    """The true bottleneck of the policy that is shown, in a sentence."""
    scores: Sequence[Score]
    """Its figures beside the baseline's and those of the best one allowed."""
    shown: int
    notes: Sequence[str]
    """What is to be known of these sizes, and what is not possible here."""


class BeyondError(InputError):
    """A point where the formulas of a trace do not hold."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where the ops of a policy are."""

    devices: Devices
    streams: frozenset[int]
    split: Split
    """Of this placement, where it was placed."""
    at: Point | None
    """Where it was searched for; None where rules alone decide."""


@dataclass(slots=True)
class _Program:
    """A trace with the placements on it, at all sizes that it reaches."""

    trace: "Trace"
    kept: dict[str, _Kept] = field(default_factory=dict)
    """By policy; those that were possible at some point."""
    parts: list[Part] = field(default_factory=list)


class Live:
    """A comparison whose sizes, link and wire dtype change.

    >>> import cutedge
    >>> found = cutedge.trace("edge-10m", seq=64).compare(["offload-linear"])
    >>> live = Live(found.trace, found.compared)
    >>> live.at(Point((("seq", 128),)), "offload-linear").table.rows[0][4]
    '12.2 MiB'
    """

    def __init__(self, trace: "Trace", compared: Compared) -> None:
        """Raises InputError where the machine or what is asked for is more than formulas tell."""
        setting = compared.setting
        if len(setting.machine.accelerators) != 1:
            raise InputError(
                f"--serve is of home and one accelerator, and here are "
                f"{len(setting.machine.accelerators)}: give one --accel"
            )
        if setting.scheduling is not None:
            raise InputError("--serve counts a run one op after another: leave --schedule out")
        self.compared, self.machine = compared, setting.machine
        self.start = Point(wire_dtype=self.machine.wire_dtype)
        """What was compared."""
        self.meta = trace.graph.meta
        self._residency = setting.residency
        self._policies = dict(zip(compared.names, compared.policies, strict=True))
        self._splits = LightSplits(setting)
        self._wires: dict[Any, Any] = {}
        self._links: dict[Any, Links] = {}
        self._not_here: dict[str, tuple[Point, str]] = {}
        splits = zip(compared.names, compared.partitions, strict=True)
        kept = {name: self._keep(split, name, self.start) for name, split in splits}
        self._programs = [_Program(trace, kept)]

    @property
    def sizes(self) -> tuple[str, ...]:
        """The variables that the formulas are in."""
        return tuple(name for name in SIZES if name in self.meta.symbolic)

    @property
    def policies(self) -> tuple[str, ...]:
        """As the user calls them."""
        return tuple(self._policies)

    def _is_searched(self, name: str) -> bool:
        policy = self._policies[name]
        return policy.objective is not None or bool(policy.secrets)

    def link(self, point: Point) -> Link:
        """The link at a point."""
        return self._links_of(point).common

    def at(self, point: Point, shown: str) -> Seen:
        """The figures at a point, with the policy that is ``shown``.

        Raises BeyondError where the formulas do not hold, InputError for what is no point.
        """
        machine, program = self.machine_at(point), self._program(point)
        part = self._part(program, point)
        names = [name for name in self._policies if name in program.kept]
        shown = shown if shown in names else names[0]
        placed = [self._placed(part, program.kept[name], name, machine) for name in names]
        splits = [
            self._splits.split(
                self._base(program.kept[name], point), one, machine, self.meta_at(point)
            )
            for name, one in zip(names, placed, strict=True)
        ]
        policies = [one.policy for one in splits]
        against = self.compared.baseline.policy
        base = splits[policies.index(against) if against in policies else 0]
        number = names.index(shown)
        fits = [self._splits.fits(one, machine) for one in placed]
        best = splits[best_allowed(splits, number, fits)]
        compared = [compare_traffic(one.placement, one.traffic, base.traffic) for one in splits]
        kept = [program.kept[name] for name in names]
        elsewhere = [one.at not in (None, point) for one in kept]
        table = policies_table(splits, compared, base.policy)
        rows = [
            (*row[:-1], "not known here") if late else row
            for row, late in zip(table.rows, elsewhere, strict=True)
        ]  # its last column says whether a placement is the best
        return Seen(
            point,
            replace(table, rows=rows),
            names,
            [self._how(one, point) for one in kept],
            any(elsewhere),
            self._limit(program, point, splits[number], placed[number], shown, machine),
            scores(splits[number], base, best),
            number,
            self._notes(program, point),
        )

    def solve(self, point: Point, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Place anew at a point what is searched for, until that is no longer wanted.

        Whether all was. What is another program there is traced first. A policy that is not
        possible there keeps the placement that it has. Raises BeyondError where it cannot be traced.
        """
        machine = self.machine_at(point)
        try:
            program = self._program(point)
        except BeyondError:
            program = _Program(self._traced(point))
            self._programs.append(program)
        there = self._graph(program, point)
        before = self.compared.setting
        setting = replace(before, machine=machine, times=machine.times(there))
        for name, policy in self._policies.items():
            if name in program.kept and program.kept[name].at in (None, point):
                continue
            if not is_wanted():
                return False
            try:
                split = partition_of(there, "", policy, setting, shows=False)
            except (InfeasibleError, NotFoundError, InputError) as error:
                self._not_here[name] = point, str(error)
                continue
            self._not_here.pop(name, None)
            program.kept[name] = self._keep(split, name, point)
        return True

    # --- where it is looked at ----------------------------------------------------------------

    def _values(self, point: Point) -> dict[str, int]:
        """The sizes of the trace there."""
        meta = self.meta
        for name, value in point.sizes:
            if name not in self.sizes:
                raise InputError(
                    f"{meta.model} has no formula in {name}: {', '.join(self.sizes) or 'no size'}"
                )
            if not 0 < value < 2**31:
                raise InputError(f"{name} {value}: give a size from 1 to {2**31 - 1:,}")
        return {**meta.variables, **dict(point.sizes)}

    def meta_at(self, point: Point) -> TraceMeta:
        """What a trace at a point is of."""
        values = self._values(point)
        return replace(self.meta, batch=values["batch"], seq=values["seq"], past=values["past"])

    def _program(self, point: Point) -> _Program:
        """The trace that reaches a point. Raises BeyondError where not one does."""
        values = self._values(point)
        for one in self._programs:
            if reaches(one.trace.graph, one.trace.reach, values):
                return one
        told = ", ".join(f"{name} {values[name]:,}" for name in self.sizes)
        raise BeyondError(
            f"{told}: {self.meta.model} is another program there than the traces at hand, and "
            "these formulas do not hold"
        )

    def _traced(self, point: Point) -> "Trace":
        """The model traced at a point."""
        trace, values = self._programs[0].trace, self._values(point)
        try:
            there = trace.elsewhere(**{name: values[name] for name in SIZES})
        except CutedgeError as error:
            raise BeyondError(f"these formulas do not hold there, and {error}") from error
        return there

    def _graph(self, program: _Program, point: Point) -> OpGraph:
        there = graph_at(program.trace.graph, program.trace.reach, self._values(point))
        if there is None:
            raise BeyondError(f"{self.meta.model} could not be traced for {self.words(point)}")
        return there if there is program.trace.graph else annotate(there)

    def _part(self, program: _Program, point: Point) -> Part:
        """The ops at the sizes of a point, with what they cost."""
        values = self._values(point)
        sizes = {name: np.array([value], np.int64) for name, value in values.items()}
        over = Over(sizes)
        try:
            for known in program.parts:
                if (part := known.at(over)) is not None:
                    return part
            there = program.trace.graph if not program.parts else self._graph(program, point)
            (part,) = alike(SizedGraph(there, sizes, np.zeros(1, np.int64), True))
        except ValueError as error:  # a formula gives no size there
            raise BeyondError(f"these formulas do not hold there: {error}") from error
        except OverflowError as error:
            raise BeyondError("figures there are beyond what 64 bits hold") from error
        program.parts.append(part)
        return part

    def _links_of(self, point: Point) -> Links:
        before = self.machine.links
        bandwidth, latency = point.bandwidth_bytes_per_second, point.latency_seconds
        key = bandwidth, latency
        if key not in self._links:
            if bandwidth is None and latency is None:
                self._links[key] = Links(before.of(self.machine.accelerators[0]))
            else:
                self._links[key] = Links(
                    with_figures(before.of(self.machine.accelerators[0]), bandwidth, latency)
                )
        return self._links[key]

    def machine_at(self, point: Point) -> Machine:
        """The machine at a point."""
        wire = point.wire_dtype
        if wire is not None and wire not in FLOATING:
            raise InputError(f"wire dtype {wire}: one of {', '.join(FLOATING)}")
        if wire is None and self.machine.options.int8_speedup is not None:
            wire = "int8"
        return replace(self.machine, links=self._links_of(point), wire_dtype=wire)

    # --- the figures of a placement -----------------------------------------------------------

    def _keep(self, split: Split, name: str, point: Point) -> _Kept:
        (accelerator,) = self.machine.accelerators
        parts = {self.machine.home: HOME, accelerator: ACCELERATOR, None: None}
        placement = without_masks_placed(split.graph, split.placement)
        return _Kept(
            tuple(parts[device] for device in placement.devices),
            placement.streams,
            split,
            point if self._is_searched(name) else None,
        )

    def _placed(self, part: Part, kept: _Kept, name: str, machine: Machine) -> PlacedPart:
        policy = self._policies[name]
        wire = self._wire(part.graph, policy, machine)
        rows = np.zeros(1, np.int64)
        on = by_part(machine)
        ((_, placed),) = part.placed_parts(
            policy, kept.devices, kept.streams, rows, wire, on, self._residency
        )
        return placed

    def _wire(self, graph: OpGraph, policy: Policy, machine: Machine) -> Any:
        """What tensors are on the wire; one object for one format, as placements are known by it."""
        sized = *machine.pack, *(one.sized for one in policy.packs)
        link = id(machine.links) if any(len(one.packings) > 1 for one in sized) else None
        key = id(graph), policy.name, machine.wire_dtype, link
        if key not in self._wires:
            from partition.packs import wire_format

            self._wires[key] = wire_format(graph, policy.packs, machine)
        return self._wires[key]

    def _base(self, kept: _Kept, point: Point) -> Split:
        """A placement with the proof of it, where that is of this point."""
        return kept.split if kept.at == point else replace(kept.split, solution=None)

    # --- words --------------------------------------------------------------------------------

    def _limit(
        self,
        program: _Program,
        point: Point,
        split: Split,
        placed: PlacedPart,
        name: str,
        machine: Machine,
    ) -> str:
        """The sentence of the true bottleneck, as a report has it."""
        times = self._splits.times(placed, machine)
        if times is None:
            times = self._counted(program, point, split, placed, name, machine)
        worst = self._splits.worst(placed, split.traffic.totals.payload_bytes)
        return limit_sentence(split, times, worst)

    def _counted(
        self,
        program: _Program,
        point: Point,
        split: Split,
        placed: PlacedPart,
        name: str,
        machine: Machine,
    ) -> dict[str, DeviceTime]:
        """The same, counted op by op."""
        there, policy = self._graph(program, point), self._policies[name]
        setting = Setting(machine, self._residency, machine.times(there))
        plain = without_masks_placed(placed.placed.graph, split.placement)
        where = tuple(plain.devices), plain.streams
        same = replace(policy, placer=lambda *_: where, secrets=(), objective=None)
        made = partition_of(there, "", same, setting, shows=False)
        times = machine.times(made.graph)
        return times_under(made.graph, made.placement, made.traffic.transfers, times)

    def _how(self, kept: _Kept, point: Point) -> str:
        if kept.at is None:
            return "by rules"
        return "solved here" if kept.at == point else f"kept from {self.words(kept.at)}"

    def words(self, point: Point) -> str:
        """A point in words: what is not as it was traced and described."""
        told = [f"{name} {value:,}" for name, value in point.sizes]
        if point.bandwidth_bytes_per_second is not None or point.latency_seconds is not None:
            told.append("another link")
        if point.wire_dtype != self.start.wire_dtype:
            told.append(f"{point.wire_dtype or 'own dtypes'} on the wire")
        return ", ".join(told) or "the start"

    def _notes(self, program: _Program, point: Point) -> list[str]:
        notes = list(program.trace.reach.warnings(self.meta.model, self._values(point)))
        for name, (where, why) in self._not_here.items():
            if where == point:
                before = " and is shown as it was placed before" if name in program.kept else ""
                notes.append(f"{name} is not possible here{before}: {why}")
        return notes


def with_figures(link: Link, bandwidth: int | None, latency: float | None) -> Link:
    """A link with another bandwidth and latency, the same in both directions.

    >>> from costmodels.links import load_link
    >>> link = with_figures(load_link("pcie4-x16"), 10**9, None)
    >>> link.name, link.received_bandwidth_bytes_per_second
    ('pcie4-x16-as-set', 1000000000)
    """
    figures: dict[str, Any] = {}
    for way in ("sent", "received"):
        if bandwidth is not None:
            figures[f"{way}_bandwidth_bytes_per_second"] = bandwidth
            figures[f"{way}_large_message_bytes"] = None
            figures[f"{way}_large_message_bandwidth_bytes_per_second"] = None
        if latency is not None:
            figures[f"{way}_latency_seconds"] = latency
    source = "set on the page of cutedge report --serve"
    sources = {key: text for key, text in link.sources.items() if figures.get(key, 0) is not None}
    sources |= {key: source for key, value in figures.items() if value is not None}
    return replace(link, name=f"{link.name}-as-set", **figures, sources=sources)


def link_file(link: Link) -> str:
    """A link as a file that ``--link`` takes."""
    from costmodels.described import toml

    figures = {
        key: (value, link.sources[key]) for key, value in link.figures.items() if value is not None
    }
    return toml(link.description, (), figures)
