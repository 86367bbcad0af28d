"""Schedules against a simulator of what each device holds, brute force, and counts by hand."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations

import networkx as nx
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

from costmodels.devices import Device
from costmodels.links import Link, Links
from costmodels.roofline import DeviceTime, OpTime
from partition.accounting import account
from partition.schedule import Schedule, Scheduling, Task, scheduled, tasks_of
from tests.support.graphs import HOME, Builder, describe, place, placed
from tests.support.oracle import EXAMPLES, RESIDENCY
from tests.support.simulator import simulate
from tracer.graph import OpGraph

LINK = Link(
    "whole seconds",
    "by hand",
    0,
    0,
    0,
    0,
    sent_bandwidth_bytes_per_second=4,
    received_bandwidth_bytes_per_second=2,
    sent_latency_seconds=3.0,
    received_latency_seconds=1.0,
)
"""Four bytes a second are exact in floats."""
LINKS = st.builds(
    lambda several, synchronous: replace(
        LINK, concurrency_messages=several, synchronous=synchronous
    ),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
)


def timed(seconds: Sequence[float | None]) -> DeviceTime:
    """A device that takes so much for each op."""
    device = Device("by hand", "", True, {})
    ops = tuple(OpTime(each) for each in seconds)
    return DeviceTime(device, ops, 0.0, {}, 1.0)


def laid_out(
    graph: OpGraph,
    where,
    seconds: Sequence[float | None],
    asked: Scheduling,
    residency="run",
    link: Link = LINK,
) -> Schedule:
    """The schedule where an op takes the same on every device."""
    return scheduled(*tasks_by_hand(graph, where, seconds, residency, link), asked)


def tasks_by_hand(graph: OpGraph, where, seconds, residency="run", link: Link = LINK):
    """(the tasks, the lanes)"""
    links = Links(link)
    traffic = account(graph, where, links, residency=residency)
    times = dict.fromkeys((where.home, *where.accelerators), timed(seconds))
    return tasks_of(graph, where, traffic, times, residency, links)


def spans(schedule: Schedule) -> dict[tuple[int, str, int], tuple[float, float]]:
    return {
        (s.request, "op" if s.task.transfer is None else "transfer", number): (s.start, s.end)
        for s in schedule.slots
        for number in [s.task.op if s.task.transfer is None else s.task.transfer]
    }


@st.composite
def cases(draw: st.DrawFn):
    graph, where = draw(placed())
    count = len(graph.ops)
    seconds = draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, 40.0]), min_size=count, max_size=count)
    )
    return graph, where, seconds


# --- against other ways to count ------------------------------------------------------------------


@EXAMPLES
@given(cases(), RESIDENCY, st.integers(1, 3), LINKS)
def test_overlap_is_what_a_simulator_of_the_devices_does(case, residency, requests, link):
    graph, where, seconds = case
    note(describe(graph, where))
    traffic = account(graph, where, Links(LINK), residency=residency)
    schedule = laid_out(graph, where, seconds, Scheduling("overlap", requests), residency, link)
    expected = simulate(
        graph,
        where,
        traffic,
        lambda op: seconds[op],
        residency,
        requests,
        link.concurrency_messages,
        synchronous=link.synchronous,
    )
    assert spans(schedule) == expected
    assert schedule.makespan_seconds == max(end for _, end in expected.values())


@EXAMPLES
@given(cases(), RESIDENCY, st.integers(1, 3), st.sampled_from(["serial", "overlap"]), LINKS)
def test_bounds_lanes_and_causes(case, residency, requests, kind, link):
    graph, where, seconds = case
    schedule = laid_out(graph, where, seconds, Scheduling(kind, requests), residency, link)
    slots, lanes = schedule.slots, schedule.lanes
    # On both sides, by sums of its own.
    by_resource = defaultdict(float)
    for slot in slots:
        for resource in slot.task.uses:
            by_resource[resource] += slot.seconds
    paths = nx.DiGraph()
    tasks, _ = tasks_by_hand(graph, where, seconds, residency, link)
    paths.add_edge("end", "end of all", weight=0.0)
    for number, task in enumerate(tasks):
        for after in (*(n for n, t in enumerate(tasks) if number in t.waits_for), "end"):
            paths.add_edge(number, after, weight=task.seconds)
    longest = nx.dag_longest_path_length(paths)
    busiest = max(by_resource[resource] / lanes[resource] for resource in lanes)
    assert schedule.bound_seconds == max(longest, busiest)
    assert schedule.bound_seconds <= schedule.makespan_seconds <= schedule.serial_seconds
    assert schedule.serial_seconds == sum(slot.seconds for slot in slots)
    assert schedule.busy_seconds == {r: by_resource[r] for r in lanes}
    if kind == "serial":
        assert schedule.makespan_seconds == schedule.serial_seconds
    # No more at a time on each resource than it takes, and one on each lane.
    for resource, several in lanes.items():
        busy = [s for s in slots if resource in s.task.uses and s.seconds]
        for slot in busy:
            assert sum(s.start <= slot.start < s.end for s in busy) <= several
        for lane in range(several):
            on = [s for s in busy if s.task.uses[0] == resource and s.lane == lane]
            assert all(one.end <= other.start for one, other in pairwise(on))
    # Each starts where what it waits for ends, and the critical path has no gap.
    for slot in slots:
        assert slot.start == (0.0 if slot.waits_for is None else slots[slot.waits_for].end)
    path = [slots[number] for number in schedule.critical_path]
    assert sum(slot.seconds for slot in path) == schedule.makespan_seconds
    assert all(one.end == other.start for one, other in pairwise(path))


@EXAMPLES
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["home", "chip", "wire"]),
            st.sampled_from([1.0, 2.0, 3.0, 7.0]),
            st.sets(st.integers(1, 3), max_size=2),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_order_at_all_is_below_the_bound_and_none_is_worse_than_serial(drawn):
    tasks = [
        Task((resource,), seconds, tuple(sorted(n - back for back in backs if n >= back)))
        for n, (resource, seconds, backs) in enumerate(drawn)
    ]
    lanes = {"home": 1, "chip": 1, "wire": 1}
    schedule = scheduled(tasks, lanes, Scheduling("overlap"))
    best = min(in_order(tasks, order) for order in permutations(range(len(tasks))))
    assert schedule.bound_seconds <= best <= schedule.makespan_seconds <= schedule.serial_seconds


def in_order(tasks: Sequence[Task], order: Sequence[int]) -> float:
    """When all is over if tasks are begun in an order, each as early as it can from there on."""
    ends: dict[int, float] = {}
    free: dict[str, float] = defaultdict(float)
    for number in order:
        if not ends.keys() >= set(tasks[number].waits_for):
            return float("inf")  # the order names it before what it waits for
        begin = max([free[tasks[number].uses[0]], *(ends[n] for n in tasks[number].waits_for)])
        ends[number] = free[tasks[number].uses[0]] = begin + tasks[number].seconds
    return max(ends.values())


@EXAMPLES
@given(cases(), RESIDENCY, st.data())
def test_what_is_not_known_makes_it_no_shorter_in_that_order(case, residency, data):
    graph, where, seconds = case
    hidden = [None if data.draw(st.booleans()) else each for each in seconds]
    assume(None in hidden)
    schedule = laid_out(graph, where, hidden, Scheduling("overlap"), residency)
    ran = {s.task.op for s in schedule.slots if s.task.op is not None}
    assert schedule.at_least == any(hidden[op] is None for op in ran)
    # The same order on each resource, with the seconds that were not known.
    ends: list[float] = []
    free: dict[str, float] = defaultdict(float)
    place = {(s.task.op, s.task.transfer): n for n, s in enumerate(schedule.slots)}
    tasks = [s.task for s in schedule.slots]
    whole, _ = tasks_by_hand(graph, where, seconds, residency)
    before = {
        (t.op, t.transfer): [place[whole[n].op, whole[n].transfer] for n in t.waits_for]
        for t in whole
    }
    for task in tasks:
        mine = (task.op, task.transfer)
        begin = max((ends[n] for n in before[mine]), default=0.0)
        if task.seconds == 0:
            ends.append(begin)
            continue
        begin = max(begin, free[task.uses[0]])
        taken = seconds[task.op] if task.seconds is None else task.seconds
        free[task.uses[0]] = begin + taken
        ends.append(begin + taken)
    assert max(ends) >= schedule.makespan_seconds


# --- by hand --------------------------------------------------------------------------------------


def two_products() -> OpGraph:
    """x and y go out, each is multiplied, and both products are added at home."""
    build = Builder(symbolic=False)
    x, y = (build.input(name, (2,), "float32") for name in "xy")  # 8 bytes each
    first = build.op("first", x, shape=(1,))  # 4 bytes
    second = build.op("second", y, shape=(1,))
    return build.finish(build.op("sum", first, second, shape=(1,)))


SECONDS = (0.0, 0.0, 10.0, 4.0, 6.0, 0.0)
"""x, y, first, second, sum, output"""


@pytest.mark.parametrize(
    ("asked", "makespan", "critical"),
    [
        # sent: x 3 + 8 / 4 = 5, y 2; first 10, second 4; received: 1 + 4 / 2 = 3, then 2; sum 6.
        (Scheduling("serial"), 5 + 2 + 10 + 4 + 3 + 2 + 6, None),
        # x is sent until 5; first until 15, y meanwhile until 7; second until 19, the first result
        # meanwhile home until 18; the second one home until 21; the sum until 27.
        (Scheduling("overlap"), 27, ["x", "first", "second", "home 2", "sum"]),
        # x 5, y 7, x' 12, y' 14. first 15; of second, first' (ready at 7, 12) the earlier request's
        # is taken: second 19, first' 29, second' 33. Home: 18, 21; first' 32, second' 35.
        # Sums: 21..27 and 35..41.
        (
            Scheduling("overlap", 2),
            41,
            ["x", "first", "second", "first", "second", "home 2", "sum"],
        ),
        (Scheduling("serial", 2), 64, None),
    ],
)
def test_two_products_by_hand(asked, makespan, critical):
    graph = two_products()
    where = place(graph, {"gpu": ["first", "second"]})
    schedule = laid_out(graph, where, SECONDS, asked)
    assert schedule.makespan_seconds == makespan
    assert schedule.serial_seconds == 32 * asked.requests
    # The longest path is x, first, home, (its message's second tensor), sum: 5 + 10 + 3 + 2 + 6.
    assert schedule.bound_seconds == max(26, 14 * asked.requests)
    assert schedule.busy_seconds == {
        HOME: 6 * asked.requests,
        "gpu": 14 * asked.requests,
        "gpu -> tee": 5 * asked.requests,
        "tee -> gpu": 7 * asked.requests,
    }
    assert schedule.limited_by == "gpu"
    assert schedule.requests_per_second == asked.requests / makespan
    assert schedule.most_requests_per_second == 1 / 14
    assert schedule.idle_shares["gpu"] == pytest.approx(1 - 14 * asked.requests / makespan)
    names = ["x", "y", "first", "second", "sum", "output"]
    moves = ["x", "y", "home 1", "home 2"]
    slots = [schedule.slots[n] for n in schedule.critical_path]
    path = [
        names[s.task.op] if s.task.op is not None else moves[s.task.transfer]
        for s in slots
        if s.seconds
    ]
    if critical is not None:
        assert path == critical


@pytest.mark.parametrize(
    ("several", "synchronous", "makespan"),
    [
        # One message in either direction: x until 5, y 7, first 15, its result home 18, second 19
        # (it had y at 7), its result 21, the sum 27. The two directions never met: nothing changes.
        (1, False, 27),
        # At 15 second goes before what sends first's result, as in the list; that has the
        # accelerator from 19 to 22, second's until 24; the sum 30.
        (None, True, 30),
        (1, True, 30),
        # Two at a time: as with a direction each, for the tensors of a message go in turn.
        (2, False, 27),
    ],
)
def test_links_that_take_turns_or_hold_up_the_sender(several, synchronous, makespan):
    graph = two_products()
    where = place(graph, {"gpu": ["first", "second"]})
    link = replace(LINK, concurrency_messages=several, synchronous=synchronous)
    schedule = laid_out(graph, where, SECONDS, Scheduling("overlap"), link=link)
    assert schedule.makespan_seconds == makespan
    moving = {"tee <-> gpu": several} if several else {"gpu -> tee": 1, "tee -> gpu": 1}
    assert schedule.lanes == {HOME: 1, "gpu": 1, **moving}
    # Sending takes 7 at home, and 5 on the accelerator.
    busy = schedule.busy_seconds
    assert (busy[HOME], busy["gpu"]) == ((6 + 7, 14 + 5) if synchronous else (6, 14))
    assert sum(busy[resource] for resource in moving) == 12
