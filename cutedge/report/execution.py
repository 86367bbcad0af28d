"""When ops run and tensors move: a schedule as columns of numbers, which pack well.

What takes no time (views, inputs) is left out; what waits for it waits for what that waits for.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Generic, TypeVar

from costmodels.roofline import DeviceTime
from cutedge.report.block import OUTSIDE
from cutedge.report.figures import Missing
from partition.accounting import call_label, origins
from partition.schedule import Schedule, Scheduling, Slot
from partition.split import Split
from tracer.stacks import layer_names
from tracer.summary import tensor_names
from tracer.words import duration, human

MOST_SLOTS = 60_000
"""With more of them the first requests alone are drawn."""

WAITS = ("data", "order", "resource")
"""Why a task starts no earlier, in the order of their numbers, which begin with 1."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What does one thing at a time: a device, or a direction of a link."""

    name: str
    told: str
    """How busy it is."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A schedule to be drawn, by slot in the order of their start."""

    title: str
    note: str
    """What else there is to say of the drawing; may be empty."""
    lanes: Sequence[Lane]
    makespan_seconds: float
    tick_seconds: float
    """What starts are counted in; a billionth of the makespan or less."""
    durations: Sequence[float | None]
    """The lengths that occur, in seconds; None where it is not known."""
    labels: Sequence[str]
    """The texts that occur: the op's or tensor's name, then in lines what is known of it."""
    layers: Sequence[str]
    devices: Sequence[str]
    calls: Sequence[str]
    """What each call does."""
    requests: int
    """How many are drawn."""
    lane: Sequence[int]
    """By slot."""
    also: Sequence[int]
    """Another lane that it takes meanwhile, from 1; 0 without one."""
    start: Sequence[int]
    """Ticks since the start of the slot before."""
    length: Sequence[int]
    """Which of the durations."""
    label: Sequence[int]
    call: Sequence[int]
    """From 1; 0 of an op at home."""
    request: Sequence[int]
    waits: Sequence[int]
    """How many slots before it stands the one that it waits for; 0 of what starts at once."""
    wait: Sequence[int]
    """Which of ``WAITS``, from 1; 0 of what starts at once."""
    critical: Sequence[int]
    """1 on the critical path."""
    layer: Sequence[int]
    device: Sequence[int]
    """Where an op runs, or the one that a tensor leaves."""


def execution(partition: Split, times: Mapping[str, DeviceTime]) -> Execution | Missing:
    """When a split model runs: as it was laid out, else with everything as soon as it can be.

    ``times`` are the seconds of devices under its placement.
    """
    lacking = [device for device in partition.used if device not in times]
    if lacking:
        return Missing(
            f"When ops run on {' and '.join(lacking)} is not known: name devices and a link of "
            "`cutedge devices` and `cutedge links`."
        )
    if any(t.seconds is None for t in partition.traffic.transfers):
        return Missing(f"The link {partition.link} has no bandwidth: name another with --link.")
    found = partition.schedule or partition.laid_out(times, Scheduling("overlap"))
    if not found.makespan_seconds:
        return Missing("No op here takes time.")
    return _columns(partition, found)


def _columns(partition: Split, found: Schedule) -> Execution:
    tick = 10.0 ** (floor(log10(found.makespan_seconds)) - 9)
    drawn = _drawn_requests(found)
    told = _Told(partition)
    lanes, at = _lanes(found)
    durations, labels = _Index[float | None](), _Index[str]()
    layers, devices = _Index[str](), _Index[str]()
    rows: list[tuple[int, ...]] = []
    place: dict[int, int] = {}  # slot -> its row
    before: dict[int, int | None] = {}  # a slot that is left out -> the one that it waits for
    clock = 0
    for number, slot in enumerate(found.slots):
        task = slot.task
        first = slot.waits_for
        while first is not None and first not in place:
            first = before.get(first)
        if task.seconds == 0 or slot.request >= drawn:
            before[number] = first
            continue
        begins, place[number] = round(slot.start / tick), len(rows)
        rows.append(
            (
                at[task.uses[0], slot.lane],
                at[task.uses[1], 0] + 1 if len(task.uses) > 1 else 0,
                begins - clock,
                durations.of(task.seconds),
                labels.of(told.label(slot)),
                0 if task.call is None else task.call + 1,
                slot.request,
                0 if first is None else len(rows) - place[first],
                0 if first is None or slot.wait is None else WAITS.index(slot.wait) + 1,
                int(slot.critical),
                layers.of(told.layer(slot)),
                devices.of(told.device(slot)),
            )
        )
        clock = begins
    cut = drawn < found.requests
    requests = f", {found.requests:,} requests" if found.requests > 1 else ""
    least = "at least " * found.at_least
    sort = "everything as soon as it can be" if found.schedule == "overlap" else "in turn"
    return Execution(
        f"{partition.policy}{requests}, {sort}: {least}{duration(found.makespan_seconds)}; one "
        f"after another {least}{duration(found.serial_seconds)}",
        " ".join(
            [
                *([_SENDS] if any(len(slot.task.uses) > 1 for slot in found.slots) else []),
                *([f"The first {drawn:,} of {found.requests:,} requests are drawn."] * cut),
            ]
        ),
        lanes,
        found.makespan_seconds,
        tick,
        durations.values,
        labels.values,
        layers.values,
        devices.values,
        [call.label or "new state" for call in partition.traffic.calls],
        drawn,
        *map(list, zip(*rows, strict=True)),
    )


_SENDS = "Dashed is a device that sends over a synchronous link, and does nothing else meanwhile."


def _drawn_requests(found: Schedule) -> int:
    each = max(1, len(found.slots) // found.requests)
    return max(1, min(found.requests, MOST_SLOTS // each))


def _lanes(found: Schedule) -> tuple[list[Lane], dict[tuple[str, int], int]]:
    """(the lanes, (resource, lane of it) -> which of them)"""
    lanes: list[Lane] = []
    at: dict[tuple[str, int], int] = {}
    taken, idle = found.busy_seconds, found.idle_shares
    for resource, count in found.lanes.items():
        for lane in range(count):
            at[resource, lane] = len(lanes)
            name = f"{resource} #{lane + 1}" if count > 1 else resource
            told = f"busy {duration(taken[resource])}, {idle[resource]:.1%} idle"
            lanes.append(Lane(name, told))
    return lanes, at


Value = TypeVar("Value", bound=Hashable)


class _Index(Generic[Value]):
    """The values that occur, each once."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._at: dict[Value, int] = {}

    def of(self, value: Value) -> int:
        if value not in self._at:
            self._at[value] = len(self.values)
            self.values.append(value)
        return self._at[value]


class _Told:
    """What there is to say of the slots of a partition."""

    def __init__(self, partition: Split) -> None:
        self._partition, self._names = partition, tensor_names(partition.graph)
        self._layers = layer_names(partition.graph)
        transfers = partition.traffic.transfers
        self._origins = origins(partition.graph, partition.placement, transfers)
        self._labels: dict[tuple[int | None, int | None], str] = {}

    def label(self, slot: Slot) -> str:
        """The name of an op or a tensor, then what is known of it in a line each."""
        key = slot.task.op, slot.task.transfer
        if key not in self._labels:
            self._labels[key] = self._of(*key)
        return self._labels[key]

    def _of(self, op: int | None, transfer: int | None) -> str:
        graph = self._partition.graph
        if op is not None:
            one = graph.ops[op]
            return f"{call_label(graph, (op,))}\n{one.name} of {one.module_path or 'the model'}"
        moved = self._partition.traffic.transfers[transfer or 0]
        return (
            f"{self._names[moved.tensor.id]}\n{human(moved.payload_bytes)} of {moved.tensor.name}"
        )

    def layer(self, slot: Slot) -> str:
        """The layer that runs it, or that makes what moves."""
        op = slot.task.op
        if op is None:
            op = self._origins[slot.task.transfer or 0].id
        return self._layers[op] or OUTSIDE

    def device(self, slot: Slot) -> str:
        """Where an op runs, or what a tensor leaves."""
        if slot.task.transfer is None:
            return slot.task.uses[0]
        return self._partition.traffic.transfers[slot.task.transfer].src_device
