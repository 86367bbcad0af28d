"""The exact solvers against brute force over all placements, and against one another."""

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
from tests.graphs import HOME, Builder, describe
from tracer.graph import Kind, OpGraph, Role

# --- random graphs and problems -------------------------------------------------------------------


def random_graph(rng: random.Random, body: int) -> OpGraph:
    """``body`` ops between inputs and the output; tied weights, constants, views, cached state."""
    build = Builder(symbolic=False)

    def shape() -> list[int]:
        return [rng.choice([1, 2, 3, 5, 8, 13]), rng.choice([1, 4])]

    active = [build.input(f"input_{n}", shape()) for n in range(rng.choice([1, 1, 2]))]
    weight = build.parameter("weight", shape())
    stored = [weight, build.parameter("tied", (2, 2), alias_of=weight)]
    stored.append(build.constant("table", weight, shape=shape()))
    caches = [
        build.input(f"cache_{n}", (4, 2), role=Role.KV_CACHE)
        for n in range(rng.choice([0, 0, 1, 2]))
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


DEVICES = {1: ("gpu",), 2: ("gpu", "npu")}


def random_problem(rng: random.Random, free: int, accelerators: int = 1) -> Problem:
    """A random graph with ``free`` ops or fewer to choose for, and random costs."""
    share = rng.choice([0.1, 0.4, 0.7])  # of pinned ops: many make many calls
    graph = random_graph(rng, round(free / (1 - share)))
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
        graph, HOME, away, allowed_devices(graph, HOME, away, pins),
        op_cost=op_cost, transfer_cost=transfer_cost, storage_cost=storage_cost,
    )  # fmt: skip


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


def free_ops(problem: Problem) -> int:
    return sum(len(choice) > 1 for choice in problem.allowed)


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


def sizes(rng: random.Random, largest: int) -> int:
    """Mostly small, now and then as large as brute force can bear."""
    return largest if rng.random() < 0.03 else rng.randint(2, 7)


CUTS = 250
PROGRAMS = 200
THREE = 100


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_the_best_of_all_placements(seed):
    rng = random.Random(seed)
    for _ in range(CUTS // 5):
        problem = random_problem(rng, sizes(rng, 11))
        assert_best(problem)
        fast, reference, program = (
            solve(problem, solver=s) for s in ("cut", "networkx", "program")
        )
        assert fast.placement.devices == reference.placement.devices, report(problem)
        assert fast.objective == reference.objective == program.objective


@pytest.mark.parametrize("seed", range(5))
def test_the_program_is_the_best_of_all_placements_within_limits(seed):
    rng = random.Random(100 + seed)
    for _ in range(PROGRAMS // 5):
        assert_best(limited(rng, random_problem(rng, sizes(rng, 10))))


@pytest.mark.parametrize("seed", range(5))
def test_three_devices(seed):
    rng = random.Random(200 + seed)
    for _ in range(THREE // 5):
        assert_best(limited(rng, random_problem(rng, min(5, sizes(rng, 5)), accelerators=2)))
