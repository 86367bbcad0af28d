"""Random problems of a placement, and the best of all placements by trying each."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest

from partition.problem import (
    InfeasibleError,
    Problem,
    allowed_devices,
    payload_costs,
    placement_of,
    recount,
)
from partition.solve import solve
from tests.support.graphs import HOME, Builder, describe
from tracer.graph import Kind, OpGraph, Role


def random_graph(rng: random.Random, body: int, states: Sequence[int] = (0, 0, 1, 2)) -> OpGraph:
    """``body`` ops between inputs and the output; tied weights, constants, views, cached state."""
    build = Builder(symbolic=False)

    def shape() -> list[int]:
        return [rng.choice([1, 2, 3, 5, 8, 13]), rng.choice([1, 4])]

    active = [build.input(f"input_{n}", shape()) for n in range(rng.choice([1, 1, 2]))]
    weight = build.parameter("weight", shape())
    stored = [weight, build.parameter("tied", (2, 2), alias_of=weight)]
    stored.append(build.constant("table", weight, shape=shape()))
    caches = [
        build.input(f"cache_{n}", (4, 2), role=Role.KV_CACHE) for n in range(rng.choice(states))
    ]
    stored += rng.choice([[], caches])
    grown: list[int] = []
    for n in range(body):
        if n >= body // 2 and len(grown) < len(caches):
            grown.append(_grow(rng, build, caches[len(grown)], active))
            stored.append(rng.choice([grown[-1], caches[len(grown) - 1]]))
        reads = [rng.choice([active[-1], rng.choice(active)])]
        if rng.random() < 0.4:
            reads.append(rng.choice(active))
        if rng.random() < 0.3:
            reads.append(rng.choice(stored))
        match rng.choice(["op", "op", "op", "view", "split", "source"]):
            case "view":
                active.append(build.view(f"view_{n}", reads[0], shape()))
            case "split":
                active += build.split(f"split_{n}", *reads, shapes=[shape(), shape()])
            case "source":
                active.append(build.op(f"source_{n}", rng.choice(stored), shape=shape()))
            case _:
                active.append(build.op(f"op_{n}", *reads, shape=shape()))
    while len(grown) < len(caches):
        grown.append(_grow(rng, build, caches[len(grown)], active))
    results = {active[-1], rng.choice(active)}
    return build.finish(*sorted(results), *grown)


def _grow(rng: random.Random, build: Builder, cache: int, active: list[int]) -> int:
    """New rows beside the old ones, as the trace of a decode has them."""
    rows = rng.choice(active)
    made = build.op(f"grow_{cache}", cache, rows, shape=(5, 2), kind=Kind.COPY)
    build.tensors[made] = replace(build.tensors[made], role=Role.KV_CACHE)
    return made


def joined_graph(rng: random.Random, blocks: int, weighty: float = 0.0) -> OpGraph:
    """Blocks of ops, each of which reads of the one before only what it ends in, as layers do.

    ``weighty`` is the share of ops that read the one parameter beside that.
    """
    build = Builder(symbolic=False)

    def shape() -> list[int]:
        return [rng.choice([1, 2, 3, 5, 8, 13]), rng.choice([1, 4])]

    stream, weight = build.input("x", shape()), build.parameter("weight", shape())
    cache = build.input("cache", (4, 2), role=Role.KV_CACHE)
    grown = []
    for block in range(blocks):
        active = [stream]
        for n in range(rng.randint(1, 3)):
            reads = [active[-1], rng.choice(active)]
            if n and rng.random() < 0.1:
                reads = [weight]  # waits for nothing
            elif rng.random() < 0.05:
                reads.append(cache)
            if weighty and rng.random() < weighty:
                reads.append(weight)
            active.append(build.op(f"op_{block}_{n}", *reads, shape=shape()))
        if not grown and rng.random() < 0.1:
            grown.append(_grow(rng, build, cache, active))
        ends = [t for t in active if all(edge.tensor != t for edge in build.edges)]
        if len(ends) > 1 and rng.random() < 0.2:
            ends.pop()  # leads nowhere
        stream = build.op(f"end_{block}", *ends, rng.choice(active), shape=shape())
    return build.finish(stream, *grown)


DEVICES = {1: ("gpu",), 2: ("gpu", "npu")}


def random_problem(
    rng: random.Random,
    free: int,
    accelerators: int = 1,
    *,
    pinned: Sequence[float] = (0.1, 0.4, 0.7),
    states: Sequence[int] = (0, 0, 1, 2),
    graph: OpGraph | None = None,
) -> Problem:
    """A graph, random where none is given, with ``free`` ops or fewer to choose for, and random
    costs.

    ``pinned`` are shares of ops to choose from: many pins make many calls.
    """
    if graph is None:
        graph = random_graph(rng, round(free / (1 - rng.choice(pinned))), states)
    away = DEVICES[accelerators]
    devices = (HOME, *away)
    ops = [op.id for op in graph.ops if op.kind not in (Kind.INPUT, Kind.OUTPUT)]
    ops = [op for op in ops if not graph.is_everywhere(op)]
    pins = {op: rng.choice(devices) for op in rng.sample(ops, max(0, len(ops) - free))}
    transfer_cost = payload_costs(graph, devices)
    if rng.random() < 0.5:  # one way is not the other
        transfer_cost = {key: rng.randrange(9) * size for key, size in transfer_cost.items()}
    op_cost = {}
    if rng.random() < 0.6:
        most = rng.choice([80, 400])
        op_cost = {(op.id, d): rng.randrange(most) for op in graph.ops for d in devices}
    storage_cost = {}
    if rng.random() < 0.4:
        storage_cost = {(t.id, d): rng.randrange(60) for t in graph.tensors for d in devices}
    return Problem(
        graph,
        HOME,
        away,
        allowed_devices(graph, HOME, away, pins),
        op_cost=op_cost,
        transfer_cost=transfer_cost,
        storage_cost=storage_cost,
    )


def limited(rng: random.Random, problem: Problem) -> Problem:
    """The same problem with calls that cost, or with limits, or with what is forgotten."""
    away = problem.accelerators
    chosen = {name for name in ("calls", "cap", "memory", "secrets") if rng.random() < 0.4}
    return replace(
        problem,
        residency=rng.choice(["run", "call"]),
        call_cost={d: rng.randrange(100) for d in away} if "calls" in chosen else {},
        max_calls=rng.randrange(5) if "cap" in chosen else None,
        memory_bytes={
            d: rng.randrange(100, 700)
            for d in problem.devices
            if "memory" in chosen and rng.random() < 0.6
        },
        secrets={
            d: frozenset({rng.randrange(len(problem.graph.tensors))})
            for d in away
            if "secrets" in chosen
        },
    )


def placements(problem: Problem) -> Iterator[tuple[str | None, ...]]:
    """Every way to place the ops on devices that they are allowed on."""
    return product(*[choice or (None,) for choice in problem.allowed])


def brute_force(problem: Problem) -> tuple[int, int] | None:
    """The least that a placement costs which breaks nothing, and the least ops away from home
    that it can be had with; None when there is none."""
    found = []
    for devices in placements(problem):
        counted = recount(problem, placement_of(problem, devices))
        if not counted.broken:
            found.append((counted.objective, ops_away(devices)))
    return min(found, default=None)


def ops_away(devices: Sequence[str | None]) -> int:
    return sum(device not in (None, HOME) for device in devices)


def report(problem: Problem) -> str:
    """A failing problem in lines to read."""
    first = placement_of(problem, [choice[0] if choice else None for choice in problem.allowed])
    fields = [n for n in Problem.__slots__ if n not in ("graph", "op_cost", "transfer_cost")]
    rest = "\n".join(f"  {name} = {getattr(problem, name)}" for name in fields)
    return f"{describe(problem.graph, first)}\n{rest}"


def assert_best(problem: Problem) -> None:
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(problem)
        return
    found = solve(problem)
    assert found.placement is not None, report(problem)
    counted = recount(problem, found.placement)
    assert not counted.broken, report(problem)
    assert (counted.objective, ops_away(found.placement.devices)) == best, report(problem)
    assert (found.objective, found.bound, found.proven) == (best[0], best[0], True), report(problem)
