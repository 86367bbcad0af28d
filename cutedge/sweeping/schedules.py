"""List schedules at many sizes at once.

A list schedule (``partition.schedule``) is worked out event by event. Once it is there, it is an
order of the tasks on each resource, and given that order all starts and ends follow from sums and
maxima: at all sizes at once. The order is that of the list schedule at a size where no task could
have been started, on its resources, before one that the order has before it: where a resource stands
still no later task was ready, and none with a smaller number was when another one was taken. So one
size is laid out event by event, the others that have the same order follow, and the rest begin anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.many import Floats, Ints, exact_sum
from partition.schedule import Scheduling, Task, scheduled

Bools = NDArray[np.bool_]

_TOGETHER = 2**10
"""Sizes that are worked out at a time: some megabytes for a thousand tasks."""

_KEPT = 2
"""Orders that are tried before one is looked for."""


@dataclass(frozen=True, slots=True)
class Laid:
    """How long runs take at many sizes, as ``partition.schedule.Schedule`` says of one."""

    makespan_seconds: Floats
    bound_seconds: Floats
    limited_by: NDArray[np.object_]
    """By size: the busiest resource, None where no task takes time."""


class TaskNetwork:
    """The tasks of a run, whatever they take."""

    def __init__(self, tasks: Sequence[Task], lanes: Mapping[str, int]) -> None:
        """``lanes`` is how many tasks a resource takes at one time."""
        self.tasks = [replace(task, seconds=0.0) for task in tasks]
        self.lanes = lanes
        self._after: dict[tuple[bool, ...], list[tuple[int, ...]]] = {}
        self._orders: dict[tuple[Scheduling, tuple[bool, ...]], list[_Order]] = {}

    def after(self, works: tuple[bool, ...]) -> list[tuple[int, ...]]:
        """By task: those that take time (``works``) at whose last end it may start."""
        if works not in self._after:
            after: list[tuple[int, ...]] = []
            for task in self.tasks:
                before = set[int]()
                for one in task.waits_for:
                    before |= {one} if works[one] else set(after[one])
                if len(before) > 1:  # some of them end before others do
                    before -= {earlier for one in before for earlier in after[one]}
                after.append(tuple(sorted(before)))
            self._after[works] = after
        return self._after[works]

    def orders(self, asked: Scheduling, works: tuple[bool, ...]) -> "list[_Order]":
        """Those that were found for such tasks, the last one first."""
        return self._orders.setdefault((asked, works), [])


class Layout:
    """The tasks of a run at many sizes, and how long they take as they are laid out."""

    def __init__(self, network: TaskNetwork, seconds: Sequence[Floats]) -> None:
        """``seconds`` of each task are by size."""
        self._network, self._seconds = network, seconds
        length = len(seconds[0])
        distinct = {id(taken): taken for taken in seconds}
        some = {key: bool(taken.any()) for key, taken in distinct.items()}
        self._works = tuple(some[id(taken)] for taken in seconds)
        self._odd: Bools = np.zeros(length, bool)
        """By size: whether a task takes nothing that takes time at another size."""
        for key, taken in distinct.items():
            if some[key]:
                self._odd |= taken == 0
        on: dict[str, Counter[int]] = {resource: Counter() for resource in network.lanes}
        for task, taken in zip(network.tasks, seconds, strict=True):
            for resource in task.uses:
                on[resource][id(taken)] += 1
        busy = np.stack(
            [
                exact_sum([(n, distinct[key]) for key, n in each.items()], length)
                / network.lanes[resource]
                for resource, each in on.items()
            ]
        )
        names = np.array([*on, None], object)
        self._busiest = busy.max(axis=0)
        self._limit = names[np.where(busy.any(axis=0), busy.argmax(axis=0), len(busy))]
        self._longest = np.concatenate(
            [
                self._path(slice(first, first + _TOGETHER), distinct)
                for first in range(0, length, _TOGETHER)
            ]
        )

    def _path(self, sizes: slice, distinct: Mapping[int, Floats]) -> Floats:
        """The longest path at some of the sizes."""
        after = self._network.after(self._works)
        ends: dict[int, Floats] = {}
        each = {key: taken[sizes] for key, taken in distinct.items()}
        whole = np.zeros(len(self._odd[sizes]))
        for number, works in enumerate(self._works):
            if works:
                before = [ends[one] for one in after[number]] or [np.zeros(1)]
                start = before[0] if len(before) == 1 else np.maximum.reduce(before)
                ends[number] = start + each[id(self._seconds[number])]
        inner = {one for n, works in enumerate(self._works) if works for one in after[n]}
        for number in ends.keys() - inner:
            whole = np.maximum(whole, ends[number])
        return whole

    def laid_out(self, asked: Scheduling, serial_seconds: Floats) -> Laid:
        """``scheduled`` at all of the sizes.

        ``serial_seconds`` is what one request takes one task after another.
        """
        bound = np.maximum(self._longest, asked.requests * self._busiest)
        if asked.schedule == "serial":
            makespan = asked.requests * serial_seconds
        else:
            makespan = self._overlapping(asked)
        return Laid(makespan, bound, self._limit)

    def _overlapping(self, asked: Scheduling) -> Floats:
        """Each task as soon as it can: the makespans."""
        found = np.zeros(len(self._odd))
        known = self._network.orders(asked, self._works)
        left: Ints = np.flatnonzero(~self._odd)
        if max(self._network.lanes.values()) > 1:
            left = left[:0]
        alone = np.setdiff1d(np.arange(len(found)), left).tolist()
        for order in known:
            left = self._follow(order, left, found)
        rest = fruitless = 0  # sizes to do by themselves, after so many orders that no other had
        while len(left):
            size, left = int(left[0]), left[1:]
            order, found[size] = self._alone(asked, size)
            rest -= 1
            if rest <= 0 and len(left):
                before, left = len(left), self._follow(order, left, found)
                if len(left) < before:
                    known[:] = [order, *known[: _KEPT - 1]]
                fruitless = fruitless + 1 if len(left) == before else 0
                rest = 2**fruitless - 1
        for size in alone:
            found[size] = self._alone(asked, size)[1]
        return found

    def _alone(self, asked: Scheduling, size: int) -> "tuple[_Order, float]":
        """(the order at one size, its makespan there)"""
        each = zip(self._network.tasks, self._seconds, self._works, strict=True)
        tasks = [
            replace(task, seconds=float(taken[size])) if works else task
            for task, taken, works in each
        ]
        laid = scheduled(tasks, self._network.lanes, asked)
        numbers = {id(task): number for number, task in enumerate(tasks)}
        runs = [(slot.request, numbers[id(slot.task)]) for slot in laid.slots]
        runs = [(request, number) for request, number in runs if self._works[number]]
        return _Order(self._network, self._works, runs), laid.makespan_seconds

    def _follow(self, order: "_Order", left: Ints, found: Floats) -> Ints:
        """The sizes that are left where it is another order; ``found`` gets the makespans of those
        where it is this one."""
        other = []
        for first in range(0, len(left), _TOGETHER):
            some = left[first : first + _TOGETHER]
            whole, same = order.at(self._seconds, some)
            found[some[same]] = whole[same]
            other.append(some[~same])
        return np.concatenate(other) if other else left


class _Order:
    """Tasks in the order in which a list schedule starts them."""

    def __init__(
        self, network: TaskNetwork, works: tuple[bool, ...], runs: Sequence[tuple[int, int]]
    ) -> None:
        """``runs`` are (request, task) of those that take time: the smaller is taken first."""
        after = network.after(works)
        place = {run: k for k, run in enumerate(runs)}
        self._runs, self._tasks = runs, [network.tasks[number] for _, number in runs]
        self._waits = [[place[q, one] for one in after[number]] for q, number in runs]
        """By place in the order: the places of what it waits for."""
        self._before: list[dict[str, int | None]] = []
        """By place: on each of its resources, the place of what has that before it."""
        self._on: dict[str, list[int]] = {resource: [] for resource in network.lanes}
        for k, task in enumerate(self._tasks):
            there = {resource: self._on[resource] for resource in task.uses}
            self._before.append({one: each[-1] if each else None for one, each in there.items()})
            for each in there.values():
                each.append(k)

    def at(self, seconds: Sequence[Floats], sizes: Ints) -> tuple[Floats, Bools]:
        """(the makespan in this order, whether it is the list schedule's), by size."""
        each = {id(seconds[number]): seconds[number] for _, number in self._runs}
        each = {key: taken[sizes] for key, taken in each.items()}
        shape = len(self._runs), len(sizes)
        self._ready, self._start, self._end = np.zeros(shape), np.zeros(shape), np.empty(shape)
        for k, (_, number) in enumerate(self._runs):
            ready, start = self._ready[k], self._start[k]
            waits = self._waits[k]
            if waits:
                ready[:] = self._end[waits[0]]
            for one in waits[1:]:
                np.maximum(ready, self._end[one], out=ready)
            start[:] = ready
            for before in self._before[k].values():
                if before is not None and before not in waits:
                    np.maximum(start, self._end[before], out=start)
            np.add(start, each[id(seconds[number])], out=self._end[k])
        whole: Floats = self._end.max(axis=0, initial=0.0)
        holds: Bools = np.ones(len(sizes), bool)
        for resource, order in self._on.items():
            holds &= self._holds(resource, order)
        return whole, holds

    def _holds(self, resource: str, order: Sequence[int]) -> Bools:
        """Whether no task could have been started before one that comes before it on a resource.

        They are looked at one by one only where the next of a request to be ready is too early.
        """
        holds: Bools = np.ones(self._end.shape[1], bool)
        if len(order) < 2:
            return holds
        places = np.array(order)
        ready, start = self._ready[places], self._start[places]
        free = np.concatenate([np.zeros((1, len(holds))), self._end[places[:-1]]])
        requests = np.array([self._runs[k][0] for k in order])
        for request in set(requests.tolist()):
            own = np.where((requests == request)[:, None], ready, np.inf)
            next_ready = np.minimum.accumulate(own[:0:-1])[::-1]  # of those behind each
            least = [self._runs[k] if self._runs[k][0] == request else _LAST for k in order]
            for n in range(len(least) - 2, -1, -1):
                least[n] = min(least[n], least[n + 1])
            ahead = [least[n + 1] < self._runs[k] for n, k in enumerate(order[:-1])]
            early = np.where(
                np.array(ahead)[:, None],
                next_ready <= start[:-1],
                (start[:-1] > free[:-1]) & (next_ready < start[:-1]),
            )
            for n in np.flatnonzero(early.any(axis=1)).tolist():
                behind = places[n + 1 :][requests[n + 1 :] == request]
                for other in behind[(self._ready[behind] <= start[n]).any(axis=1)].tolist():
                    holds &= ~self._overtakes(other, order[n], resource, free[n])
        return holds

    def _overtakes(self, other: int, one: int, resource: str, free: Floats) -> Bools:
        """Whether a task could have been started before one, on a resource that is free.

        What it needs beside may be held all the time, by tasks one after another; where that is not
        certain, it could.
        """
        first = self._runs[other] < self._runs[one]
        start, since = self._start[one], np.maximum(self._ready[other], free)
        early: Bools = since <= start if first else since < start
        for beside, holder in self._before[other].items():
            if beside == resource or holder is None:
                continue
            ends = self._end[holder]
            held: Bools = early & (ends > start if first else ends >= start)
            while holder is not None and held.any():
                begins, taken = self._start[holder], self._runs[holder] < self._runs[other]
                early &= ~(held & (begins <= since if taken else begins < since))
                holder = self._before[holder][beside] if taken else None
                if holder is not None:
                    held &= early & (self._end[holder] == begins)
        return early


_LAST = (2**62, 0)
"""A run behind all others."""
