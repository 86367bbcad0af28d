"""When ops run and tensors move: one after another, or each as soon as it can.

A run is a list of tasks in the order of execution of the accounting: in each step the calls with
what they are sent, their ops and what comes home, then home's ops. An op takes its device, a
transfer its direction of a link: one at a time on each. A link may say how many messages it takes,
both directions together, and that it is synchronous: then a transfer takes the device that sends
too. ``serial`` does the tasks one after another, and its seconds are the sums
of the accounting.

``overlap`` is a list schedule (Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl.
Math. 1969): whenever a device or a direction is free it takes, of the tasks that wait for nothing
else, the first of the list. So:

- A tensor is sent as soon as it is made, also while an earlier call computes (it is prefetched),
  and comes home as soon as it is made. An op starts when all that it reads is there.
- Parameters that lie at home are there from the start: each goes as soon as its link is free of
  what comes before it in the list, so that those of the next call come while this one computes.
- The tensors of a message go in its order, each when it is made, but for parameters, which may go
  before: the first one has the latency and the framing of the message. Messages may take turns on
  a link; each tensor is sent whole.
- With residency ``call`` an accelerator forgets at the end of a call what it has, and so also what
  was sent ahead for the next one. There a call begins when the one before it on that accelerator
  has ended: its ops are done and its results are home. Other devices and links overlap all the same.
- What takes no time (views, inputs) waits for no device.
- Several requests are there from the start, each with state of its own; the first of the list is
  then of the earliest request.

Such a schedule is no proof: another order may take less. What no order takes less than is the
longest path through the tasks, and the work of the busiest resource: ``bound_seconds``. Every
schedule here is checked against it and against the serial sum. A task whose seconds are not known
counts as 0; with the order kept on each resource, none that it may take makes the schedule shorter,
so that its seconds are "at least". The memory that prefetched tensors take is not limited.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import fsum
from typing import Literal

from costmodels.links import Links
from costmodels.roofline import DeviceTime
from partition import Residency, ScheduleKind
from partition.accounting import Call, Traffic, Transfer, steps_of
from partition.placement import Placement
from partition.stored import sent_weights
from tracer.graph import Op, OpGraph

Wait = Literal["data", "order", "resource"]
"""``data``: for what makes or brings what it reads; ``order``: for what goes first by rule;
``resource``: for what had its device or link before."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How a run is laid out in time."""

    schedule: ScheduleKind
    requests: int = 1
    """Runs that are there from the start, side by side."""


@dataclass(frozen=True, slots=True)
class Task:
    """An op or a transfer, in a list where all that it waits for comes before it."""

    uses: tuple[str, ...]
    """The resources that it takes a lane of while it lasts; the first is the one that it is on."""
    seconds: float | None
    """None where they are not known; they count as 0."""
    needs: tuple[int, ...] = ()
    """The tasks that make or bring what it reads, by their place in the list."""
    follows: tuple[int, ...] = ()
    """The tasks that are over before it by rule: the tensor before it in its message; with
    residency ``call``, the end of the call before it."""
    op: int | None = None
    """The op that runs; None of a transfer."""
    transfer: int | None = None
    """The transfer; None of an op."""
    tensor: int | None = None
    """The tensor that a transfer moves; None of an op."""
    call: int | None = None
    """The call that it belongs to; None of an op at home."""

    @property
    def waits_for(self) -> tuple[int, ...]:
        """The tasks that are over before it starts, each once."""
        if not self.follows:
            return self.needs  # as with most
        return (*self.needs, *(before for before in self.follows if before not in self.needs))


@dataclass(frozen=True, slots=True)
class Slot:
    """When a task of a request runs, and why not earlier."""

    task: Task
    request: int
    """From 0."""
    lane: int
    """Of its resource, from 0."""
    start: float
    """Seconds since the run began."""
    end: float
    waits_for: int | None
    """The slot at whose end it starts; None of what starts at once."""
    wait: Wait | None
    """What it waits for that slot as."""
    critical: bool
    """Whether it is on the critical path: the last slot, what that one waits for, and so on."""

    @property
    def seconds(self) -> float:
        """What it takes, as far as that is known."""
        return self.task.seconds or 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """When all tasks of all requests run."""

    schedule: ScheduleKind
    """``serial``: one after another; ``overlap``: each as soon as it can."""
    requests: int
    """Runs that are there from the start, side by side."""
    slots: tuple[Slot, ...]
    """In the order of their start."""
    lanes: Mapping[str, int]
    """Resource -> how many tasks it takes at one time. Home comes first, then the accelerators,
    then what moves."""
    makespan_seconds: float
    """When the last task ends."""
    serial_seconds: float
    """All tasks of all requests, one after another."""
    bound_seconds: float
    """No schedule of these tasks takes less: the longest path through them, or the work of the
    busiest resource, whichever is more."""
    at_least: bool
    """Whether the seconds of a task are not all known: all seconds here are at least so many."""

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Resource -> what its tasks take, over all of its lanes."""
        return busy(((slot.task for slot in self.slots)), self.lanes)

    @property
    def idle_shares(self) -> dict[str, float]:
        """Resource -> the share of the makespan in which its lanes stand still, from 0 to 1."""
        whole = self.makespan_seconds
        return {
            resource: max(0.0, 1 - seconds / (self.lanes[resource] * whole)) if whole else 1.0
            for resource, seconds in self.busy_seconds.items()
        }

    @property
    def limited_by(self) -> str | None:
        """The busiest resource: ever more requests keep it busy all the time. None without time."""
        taken = self.busy_seconds
        most = max(taken, key=lambda resource: taken[resource] / self.lanes[resource], default=None)
        return most if most is not None and taken[most] else None

    @property
    def requests_per_second(self) -> float | None:
        """Requests over the makespan; None of a run that takes nothing."""
        return self.requests / self.makespan_seconds if self.makespan_seconds else None

    @property
    def most_requests_per_second(self) -> float | None:
        """What the busiest resource lets through, however many requests there are."""
        limit = self.limited_by
        if limit is None:
            return None
        return self.requests * self.lanes[limit] / self.busy_seconds[limit]

    @property
    def critical_path(self) -> tuple[int, ...]:
        """The slots, in order, each of which starts where the one before it ends."""
        return tuple(number for number, slot in enumerate(self.slots) if slot.critical)


def busy(tasks: Iterator[Task] | Sequence[Task], resources: Mapping[str, int]) -> dict[str, float]:
    """Resource -> the seconds of its tasks."""
    taken: dict[str, list[float]] = {resource: [] for resource in resources}
    for task in tasks:
        for resource in task.uses:
            taken[resource].append(task.seconds or 0.0)
    return {resource: fsum(seconds) for resource, seconds in taken.items()}


# --- the tasks ------------------------------------------------------------------------------------


def way(src: str, dst: str) -> str:
    """What the direction of a link is called."""
    return f"{src} -> {dst}"


def taken_by(transfer: Transfer, links: Links | None, home: str) -> tuple[tuple[str, ...], int]:
    """(the resources that a transfer takes, how many transfers the first of them takes)"""
    src, dst = transfer.src_device, transfer.dst_device
    link = None if links is None else links.between(src, dst, home)
    if link is None:
        return (way(src, dst),), 1
    first, last = sorted((src, dst), key=lambda device: (device != home, device))
    several = link.concurrency_messages
    on = way(src, dst) if several is None else f"{first} <-> {last}"
    return (on, src) if link.synchronous else (on,), several or 1


def executed(
    graph: OpGraph, placement: Placement, traffic: Traffic
) -> Iterator[tuple[Op | Transfer, Call | None]]:
    """(op or transfer, its call) in the order of execution; no call of an op at home."""
    steps = steps_of(graph, placement)
    at_home: dict[int, list[Op]] = defaultdict(list)
    for op in graph.ops:
        if placement.devices[op.id] == placement.home:
            at_home[steps[op.id]].append(op)
    calls: dict[int, list[Call]] = defaultdict(list)
    for call in traffic.calls:
        calls[call.step].append(call)
    moves: dict[int, list[Transfer]] = defaultdict(list)
    for transfer in traffic.transfers:
        moves[transfer.call].append(transfer)
    for step in sorted({*at_home, *calls}):
        for call in calls[step]:
            yield from ((move, call) for move in moves[call.id] if move.direction != "receive")
            yield from ((graph.ops[op], call) for op in call.ops)
            yield from ((move, call) for move in moves[call.id] if move.direction == "receive")
        yield from ((op, None) for op in at_home[step])


def tasks_of(
    graph: OpGraph,
    placement: Placement,
    traffic: Traffic,
    times: Mapping[str, DeviceTime],
    residency: Residency = "run",
    links: Links | None = None,
) -> tuple[list[Task], dict[str, int]]:
    """(the tasks of a run, in order of execution; resource -> how many it takes at one time)

    ``times`` are those under the placement, paging included (``run.times_under``); the seconds of a
    device that is not among them are not known. Without ``links`` each direction takes one.
    """
    tasks: list[Task] = []
    lanes = dict.fromkeys((placement.home, *placement.accelerators), 1)
    moving: dict[str, int] = {}
    made: dict[int, int] = {}  # op -> its task
    came: dict[tuple[int, str], int] = {}  # (tensor, device) -> the task that brought it last
    message: dict[tuple[int, str, str], int] = {}  # its call and ends -> its tensor before
    ends = _Ends(residency)
    weights: dict[tuple[int, str], list[int]] = defaultdict(list)  # op and device -> is sent
    for place, sent in sent_weights(graph, placement).items():
        for parameter, readers in sent.items():
            for op in readers:
                weights[op, place].append(parameter)

    def there(tensor: int, device: str, call: Call | None) -> int:
        """What made a tensor on a device, or brought it there."""
        producer = graph.tensors[tensor].op
        assert producer is not None  # parameters are not made
        brought = came.get((tensor, device))
        anew = brought is not None and call is not None and tasks[brought].call == call.id
        if placement.devices[producer] == device and not anew:
            return made[producer]
        assert brought is not None
        return brought

    for one, call in executed(graph, placement, traffic):
        number = len(tasks)
        if isinstance(one, Op):
            device = placement.home if call is None else call.device
            needs = {there(tensor.id, device, call) for tensor in graph.flowing(one.id)}
            needs |= {came[parameter, device] for parameter in weights[one.id, device]}
            seconds = times[device].ops[one.id].seconds if device in times else None
            made[one.id] = number
            uses: tuple[str, ...] = (device,)
            follows = set[int]()
        else:
            assert call is not None
            key = (call.id, one.src_device, one.dst_device)
            given = one.tensor.op is None  # home has it from the start
            needs = set() if given else {there(one.tensor.id, one.src_device, None)}
            seconds = one.seconds
            follows = {message[key]} if key in message and not given else set()
            came[one.tensor.id, one.dst_device] = number
            if not given:
                message[key] = number
            uses, several = taken_by(one, links, placement.home)
            moving[uses[0]] = several
        if call is not None:
            follows |= ends.before(number, call, needs)
        tasks.append(
            Task(
                uses,
                seconds,
                tuple(sorted(needs)),
                tuple(sorted(follows - needs)),
                one.id if isinstance(one, Op) else None,
                None if isinstance(one, Op) else one.id,
                None if isinstance(one, Op) else one.tensor.id,
                None if call is None else call.id,
            )
        )
    return tasks, lanes | dict(sorted(moving.items()))


class _Ends:
    """With residency ``call``, which tasks end the call before, on each accelerator."""

    def __init__(self, residency: Residency) -> None:
        self._forgets = residency == "call"
        self._call: dict[str, int] = {}  # accelerator -> its call
        self._last: dict[str, frozenset[int]] = defaultdict(frozenset)  # what ended the one before
        self._open: dict[str, set[int]] = defaultdict(set)  # its tasks that no other one waits for
        self._inside: dict[str, set[int]] = defaultdict(set)  # its tasks

    def before(self, number: int, call: Call, needs: set[int]) -> frozenset[int]:
        """What a task of a call waits for of the call before: nothing where it waits within."""
        if not self._forgets:
            return frozenset()
        device = call.device
        if self._call.get(device) != call.id:
            self._call[device] = call.id
            self._last[device] = frozenset(self._open[device])
            self._open[device], self._inside[device] = set(), set()
        inside = needs & self._inside[device]
        self._open[device] -= inside
        self._open[device].add(number)
        self._inside[device].add(number)
        return frozenset() if inside else self._last[device]


# --- the schedules --------------------------------------------------------------------------------


def scheduled(
    tasks: Sequence[Task],
    lanes: Mapping[str, int],
    asked: Scheduling,
    serial_seconds: float | None = None,
    *,
    at_least: bool = False,
) -> Schedule:
    """Lay out the tasks of so many requests; each waits for earlier ones alone.

    ``serial_seconds`` is what one request takes one task after another, where the accounting has
    summed it up; else that is summed up here. ``at_least`` says that the seconds of a task leave
    something out.

    >>> send = Task(("tee -> gpu",), 2.0)
    >>> tasks = [send, Task(("gpu",), 3.0, (0,)), send, Task(("gpu",), 3.0, (2,))]
    >>> found = scheduled(tasks, {"gpu": 1, "tee -> gpu": 1}, Scheduling("overlap"))
    >>> found.makespan_seconds, found.serial_seconds  # the second one is sent meanwhile
    (8.0, 10.0)
    """
    one_by_one = asked.schedule == "serial"
    laid = _serial(tasks, asked.requests) if one_by_one else _overlap(tasks, lanes, asked.requests)
    summed = fsum(task.seconds or 0.0 for task in tasks)
    serial = asked.requests * (summed if serial_seconds is None else serial_seconds)
    work = busy(tasks, lanes)
    busiest = max((work[resource] / lanes[resource] for resource in work), default=0.0)
    last = max((one.end for one in laid), default=0.0)
    schedule = Schedule(
        asked.schedule,
        asked.requests,
        _slots(laid, len(tasks), "order" if one_by_one else "resource"),
        lanes,
        serial if one_by_one else last,
        serial,
        max(_longest(tasks), asked.requests * busiest),
        at_least or any(task.seconds is None for task in tasks),
    )
    slack = 1e-9 * serial  # of sums in another order
    assert abs(asked.requests * summed - serial) <= slack
    assert schedule.bound_seconds - slack <= last <= serial + slack
    return schedule


def _longest(tasks: Sequence[Task]) -> float:
    """The seconds of the longest path."""
    ends: list[float] = []
    for task in tasks:
        begins = max((ends[before] for before in task.waits_for), default=0.0)
        ends.append(begins + (task.seconds or 0.0))
    return max(ends, default=0.0)


@dataclass(slots=True)
class _Laid:
    """A task of a request, by its number: the tasks of the first request, then of the next."""

    task: Task
    request: int
    lane: int = 0
    start: float = 0.0
    end: float = 0.0
    after: int | None = None
    """The number of what it waited for beside its data: what had its resource before."""


def _serial(tasks: Sequence[Task], requests: int) -> list[_Laid]:
    """One after another."""
    laid: list[_Laid] = []
    clock = 0.0
    for request in range(requests):
        for task in tasks:
            begins, clock = clock, clock + (task.seconds or 0.0)
            laid.append(_Laid(task, request, 0, begins, clock, len(laid) - 1 if laid else None))
    return laid


def _overlap(tasks: Sequence[Task], lanes: Mapping[str, int], requests: int) -> list[_Laid]:
    """Each as soon as it can; of several, the first."""
    laid = [_Laid(task, request) for request in range(requests) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for before in task.waits_for:
            followers[before].append(number)
    lacking = [len(task.waits_for) for task in tasks] * requests
    free = {resource: list(range(count)) for resource, count in lanes.items()}
    last: dict[str, int] = {}  # resource -> what has left a lane of it last
    ready: dict[tuple[str, ...], list[int]] = {task.uses: [] for task in tasks}
    running: list[tuple[float, int]] = []
    held: dict[int, list[int]] = {}  # what runs -> its lanes
    now = 0.0

    def settle(arrived: list[int]) -> None:
        """What waits for no other task waits for its resources; what takes no time is over."""
        while arrived:
            number = arrived.pop()
            one = laid[number]
            one.start = one.end = now
            if one.task.seconds == 0:
                arrived += freed_by(number)
            else:
                heappush(ready[one.task.uses], number)

    def freed_by(ended: int) -> list[int]:
        first = ended - ended % len(tasks)  # of its request
        waiting = [first + follower for follower in followers[ended - first]]
        for number in waiting:
            lacking[number] -= 1
        return [number for number in waiting if lacking[number] == 0]

    def start(number: int) -> None:
        one = laid[number]
        uses = one.task.uses
        if one.start < now:  # what it waited for was a lane, which something has just left
            leaving = [last[resource] for resource in uses if resource in last]
            one.after = max(other for other in leaving if laid[other].end == now)
        held[number] = [heappop(free[resource]) for resource in uses]
        one.start, one.end, one.lane = now, now + (one.task.seconds or 0.0), held[number][0]
        heappush(running, (one.end, number))

    settle([number for number, count in enumerate(lacking) if count == 0])
    while True:
        while able := [
            waiting[0]
            for uses, waiting in ready.items()
            if waiting and all(free[resource] for resource in uses)
        ]:
            number = min(able)
            heappop(ready[laid[number].task.uses])
            start(number)
        if not running:
            return laid
        now, arrived = running[0][0], []
        while running and running[0][0] == now:
            ended = heappop(running)[1]
            for resource, lane in zip(laid[ended].task.uses, held.pop(ended), strict=True):
                heappush(free[resource], lane)
                last[resource] = ended
            arrived += freed_by(ended)
        settle(arrived)


def _slots(laid: Sequence[_Laid], tasks: int, queue: Wait) -> tuple[Slot, ...]:
    """What was laid out, in the order of its start, with what each waits for.

    ``tasks`` is how many a request has, ``queue`` what it is to wait for ``after``.
    """
    before: list[int | None] = []
    waits: list[Wait | None] = []
    for one in laid:
        first, rules = one.request * tasks, one.task.waits_for
        if one.after is not None:
            before.append(one.after)
            waits.append(queue)
        elif rules:
            number = max((laid[first + number].end, number) for number in rules)[1]
            before.append(first + number)
            waits.append("data" if number in one.task.needs else "order")
        else:
            before.append(None)
            waits.append(None)
    critical: set[int] = set()
    on_path = max(range(len(laid)), key=lambda n: (laid[n].end, n), default=None)
    while on_path is not None:
        critical.add(on_path)
        on_path = before[on_path]
    order = sorted(range(len(laid)), key=lambda n: (laid[n].start, n))
    place: dict[int | None, int] = {number: position for position, number in enumerate(order)}
    return tuple(
        Slot(
            laid[n].task,
            laid[n].request,
            laid[n].lane,
            laid[n].start,
            laid[n].end,
            place.get(before[n]),
            waits[n],
            n in critical,
        )
        for n in order
    )
