"""What lies on one device together, by what an executor can place."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given

from costmodels.links import Links, load_link
from partition.accounting import account
from partition.granularity import unit_name, units
from partition.problem import (
    InfeasibleError,
    Problem,
    allowed_devices,
    payload_costs,
    placement_of,
    recount,
)
from partition.solve import solve
from tests.support.examples import examples
from tests.support.graphs import HOME, Builder, graphs
from tests.support.presets import QUICK
from tests.support.problems import limited, ops_away, placements, random_problem, report
from tracer.graph import Kind, OpGraph
from tracer.patterns import attention_core
from tracer.stacks import run_order

NO_FRAMING = Links(load_link("none"))

FINER = [
    ("op", "tensor"),
    ("op", "module"),
    ("tensor", "layer"),
    ("module", "layer"),
    ("convex", "op"),
    ("op", "convex"),
]


def named_units(graph: OpGraph, granularity) -> list[str]:
    """The units with more than one op or a name of their own, as texts to compare."""
    found: dict[int, list[str]] = {}
    for op in run_order(graph):
        found.setdefault(units(graph, granularity)[op], []).append(graph.ops[op].name)
    return [" ".join(names) for names in found.values()]


def assert_refines(graph: OpGraph, finer, coarser) -> None:
    fine, coarse = units(graph, finer), units(graph, coarser)
    assert all(coarse[op] == coarse[first] for op, first in enumerate(fine)), (finer, coarser)


def model() -> OpGraph:
    """Two layers of a norm in two ops, an attention whose scores are its own, and a sum; tied."""
    build = Builder()
    table = build.parameter("embed.weight", (64, 32))
    ids = build.input("input_ids", (1, 8), "int64")
    mask = build.constant("mask", shape=(8, 8))
    x = build.op("embed", table, ids, shape=(1, 8, 32), kind=Kind.EMBEDDING, path="embed")
    x = build.op("scaled", x, shape=(1, 8, 32))
    for layer in range(2):
        at = f"layers.{layer}"
        stored = {
            name: build.parameter(f"{at}.{name}", (32, 32)) for name in ("norm", "q", "k", "o", "b")
        }
        y = build.op(f"rms{layer}", x, shape=(1, 8, 32), path=f"{at}.norm")
        y = build.op(f"gain{layer}", y, stored["norm"], shape=(1, 8, 32), path=f"{at}.norm")
        q, k = (
            build.op(f"{name}{layer}", y, stored[name], shape=(1, 8, 32), path=f"{at}.attn.{name}")
            for name in ("q", "k")
        )
        y = build.op(f"scores{layer}", q, k, mask, shape=(1, 8, 8), path=f"{at}.attn")
        y = build.op(f"mixed{layer}", y, y, shape=(1, 8, 32), path=f"{at}.attn")
        o, b = stored["o"], stored["b"]
        y = build.op(f"o{layer}", y, o, b, shape=(1, 8, 32), path=f"{at}.attn.o")
        y = build.op(f"shift{layer}", y, b, shape=(1, 8, 32), path=f"{at}.attn.o")
        x = build.op(f"sum{layer}", x, y, shape=(1, 8, 32), path=at)
        if layer == 0:
            x = build.op("between", x, shape=(1, 8, 32), path="model")
    x = build.op("last", x, shape=(1, 8, 32))
    return build.finish(build.op("head", x, table, shape=(1, 8, 64), path="head"))


def test_units_by_hand():
    graph = model()
    alone = [graph.ops[op].name for op in run_order(graph)]
    assert named_units(graph, "op") == named_units(graph, "convex") == alone
    assert named_units(graph, "tensor") == [
        "embed scaled",  # the table, which the head has once more
        "rms0 gain0 sum0 between",  # no weight of the block follows the sum
        "q0",
        "k0 scores0 mixed0",  # those of o follow
        "o0 shift0",  # two weights of one op
        "rms1 gain1 sum1",
        "q1",
        "k1 scores1 mixed1",
        "o1 shift1",
        "last head",  # no weight is read before it there
    ]
    assert named_units(graph, "module") == [
        "embed",
        "scaled",
        *("rms0 gain0", "q0", "k0", "scores0 mixed0", "o0 shift0", "sum0", "between"),
        *("rms1 gain1", "q1", "k1", "scores1 mixed1", "o1 shift1", "sum1"),
        "last",
        "head",
    ]
    assert named_units(graph, "layer") == [
        "embed scaled",
        "rms0 gain0 q0 k0 scores0 mixed0 o0 shift0 sum0 between",
        "rms1 gain1 q1 k1 scores1 mixed1 o1 shift1 sum1",
        "last head",
    ]


def test_units_have_names():
    graph = model()
    names = {op.name: op.id for op in graph.ops}

    def called(granularity, op: str) -> str:
        return unit_name(graph, granularity, units(graph, granularity)[names[op]])

    assert called("layer", "scaled") == "what comes before the first layer"
    assert called("layer", "sum1") == "layers.1"
    assert called("layer", "head") == "what comes after layers"
    assert called("module", "mixed0") == "layers.0.attn"
    assert called("module", "scaled") == "what the model does itself"
    assert called("tensor", "mixed0") == "layers.0.k and what goes with it"
    assert called("tensor", "last") == "embed.weight and what goes with it"
    assert called("op", "q0") == f"op {names['q0']} (q0)"


@examples(30)
@given(graphs())
def test_units_of_any_graph(graph):
    placed = set(run_order(graph))
    for granularity in ("op", "tensor", "module", "layer", "convex"):
        found = units(graph, granularity)
        for op, first in enumerate(found):
            assert found[first] == first <= op
            assert op == first or {op, first} <= placed
    for finer, coarser in FINER:
        assert_refines(graph, finer, coarser)


@pytest.mark.parametrize("name", QUICK[:4])
def test_units_of_presets(traced, name):
    graph = traced(name, seq=16)
    for finer, coarser in FINER:
        assert_refines(graph, finer, coarser)
    # A block each, what is before them and what is after them; BERT has its head behind the last.
    layers = {op.layer for op in graph.ops if op.layer is not None}
    assert len(named_units(graph, "layer")) == len(layers) + 2
    weights = {t.id for t in graph.tensors if t.role == "parameter" and graph.readers(t.id)}
    assert len(named_units(graph, "tensor")) <= len(weights) + 1  # tied ones twice


def test_an_attention_and_its_cache_are_where_their_block_is(traced):
    """Two layers, each with nine weights: two norms, four and three projections."""
    graph = traced("llama-3.2-1b", seq=16)
    found = units(graph, "tensor")
    core = attention_core(graph)
    for layer in (0, 1):
        ops = [op for op in run_order(graph) if graph.ops[op].layer == layer]
        (norm,) = {found[op] for op in core if op in ops}
        assert graph.ops[norm].module_path == f"model.layers.{layer}.input_layernorm"
        assert found[ops[-1]] == norm  # the residual sum that the block ends in
        assert len({found[op] for op in ops}) == 9
        kinds = [graph.ops[op].module_path.split(".")[-1] for op in ops if found[op] == op]
        assert kinds[:5] == ["input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj"]


# --- the best placement of units ------------------------------------------------------------------


def united(rng: random.Random, problem: Problem) -> Problem:
    """The same problem with random units, or with one call to each accelerator, or with both."""
    together = list(range(len(problem.graph.ops)))
    placed = run_order(problem.graph)
    share = rng.choice([0.0, 0.2, 0.6])
    for number, op in enumerate(placed):
        if number and rng.random() < share:
            together[op] = together[rng.choice(placed[:number])]
    one_call = rng.random() < 0.5
    return replace(problem, units=rng.choice([(), together, together]), one_call=one_call)


def best_of_units(problem: Problem) -> tuple[int, int] | None:
    """The least cost, and the least ops away it can be had with, by trying all placements.

    Units and single calls are looked at here and not by ``recount``.
    """
    plain = replace(problem, units=(), one_call=False)
    found = []
    for devices in placements(plain):
        if any(devices[op] != devices[unit] for op, unit in enumerate(problem.units)):
            continue
        where = placement_of(plain, devices)
        counted = recount(plain, where)
        if counted.broken:
            continue
        traffic = account(problem.graph, where, NO_FRAMING, residency=problem.residency)
        calls = Counter(call.device for call in traffic.calls)
        if not problem.one_call or max(calls.values(), default=0) <= 1:
            found.append((counted.objective, ops_away(devices)))
    return min(found, default=None)


def assert_best_of_units(problem: Problem) -> None:
    best = best_of_units(problem)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(problem)
        return
    found = solve(problem)
    assert found.placement is not None
    assert not recount(problem, found.placement).broken
    devices = found.placement.devices
    assert all(devices[op] == devices[unit] for op, unit in enumerate(problem.units))
    assert (found.objective, ops_away(devices)) == best, report(problem)
    assert (found.bound, found.proven) == (best[0], True), report(problem)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.few(2)
def test_units_are_placed_as_the_best_of_all_placements(seed):
    rng = random.Random(seed)
    for _ in range(6):
        accelerators = rng.choice([1, 1, 2])
        free = rng.randint(2, 4 if accelerators == 2 else 7)
        problem = united(rng, random_problem(rng, free, accelerators, pinned=(0.1, 0.3)))
        assert_best_of_units(problem if rng.random() < 0.5 else limited(rng, problem))


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.few(2)
def test_three_solvers_place_units_alike(seed):
    rng = random.Random(100 + seed)
    for _ in range(6):
        problem = replace(united(rng, random_problem(rng, rng.randint(2, 8))), one_call=False)
        found = []
        for solver in ("cut", "networkx", "program"):
            try:
                found.append(solve(problem, solver=solver).placement.devices)
            except InfeasibleError:
                found.append(None)
        assert found[0] == found[1] == found[2], report(problem)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.few(2)
def test_one_call_to_one_accelerator_is_a_convex_set(seed):
    """No path leaves it and comes back; beside that, new state may need a call of its own."""
    rng = random.Random(200 + seed)
    for _ in range(4):
        problem = random_problem(rng, rng.randint(3, 7), states=(0,))
        graph = problem.graph
        for devices in placements(problem):
            traffic = account(graph, placement_of(problem, devices), NO_FRAMING)
            # By op: whether a path from the accelerator has come to it, and has left it again.
            reached, left = set(), set()
            convex = True
            for op in range(len(graph.ops)):
                before = {t.op for t in graph.flowing(op)}
                if devices[op] == "gpu":
                    convex &= not before & left
                    reached.add(op)
                elif before & (reached | left):
                    left.add(op)
            assert convex == (len(traffic.calls) <= 1)


def test_what_keeps_units_from_every_device_is_named():
    build = Builder(symbolic=False)
    x = build.input("x", (2, 1))
    a = build.op("a", x, shape=(2, 1))
    b = build.op("b", a, shape=(2, 1))
    c = build.op("c", b, shape=(2, 1))
    graph = build.finish(c)
    costs = payload_costs(graph, (HOME, "gpu"))
    together = [0, 1, 2, 1, 4]  # a and c

    def problem(pins: dict[int, str], **limits) -> Problem:
        allowed = allowed_devices(graph, HOME, ("gpu",), pins)
        return Problem(graph, HOME, ("gpu",), allowed, transfer_cost=costs, **limits)

    with pytest.raises(InfeasibleError, match=r"op 3 \(c\) may not run on tee, op 1 \(a\) may not"):
        solve(problem({1: HOME, 3: "gpu"}, units=together))
    # b at home between two on the accelerator: two calls
    apart = problem({2: HOME, 3: "gpu"}, units=together)
    assert recount(apart, solve(apart).placement).calls == 2
    with pytest.raises(InfeasibleError, match="the ops that lie together; one call to each"):
        solve(replace(apart, one_call=True))
    with pytest.raises(InfeasibleError, match="the ops that lie together; at most 1 calls, of at"):
        solve(replace(apart, max_calls=1))
    assert solve(replace(apart, units=(), one_call=True)).objective == 16
