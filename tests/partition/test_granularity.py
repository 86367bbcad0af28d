"""What lies on one device together, by what an executor can place."""

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

import cutedge
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from cutedge._words import granularity_prices, granularity_sentences
from partition.accounting import account
from partition.granularity import unit_name, units
from partition.objective import figure
from partition.optimise import beside_ops, place
from partition.policy import Policy, Rule, allowed_by, load_policy
from partition.problem import (
    InfeasibleError,
    Problem,
    allowed_devices,
    payload_costs,
    placement_of,
    recount,
)
from partition.setting import Setting
from partition.solve import Proof, solve
from partition.wire_format import WireFormat
from tests.support.costs import costed, device
from tests.support.examples import examples
from tests.support.graphs import HOME, Builder, describe, graphs
from tests.support.presets import QUICK
from tests.support.problems import limited, ops_away, placements, random_problem, report
from tracer.errors import CutedgeError, InputError
from tracer.graph import Kind, OpGraph, Role
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", QUICK[:2])
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
@pytest.mark.few(1)
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


def test_new_state_that_is_made_after_the_call_takes_another_one():
    """The accelerator reads the cache; home makes its new rows of what that gives."""
    build = Builder(symbolic=False)
    x, cache = build.input("x", (2, 1)), build.input("cache", (4, 2), role=Role.KV_CACHE)
    made = build.op("reads", x, cache, shape=(2, 1))
    rows = build.op("rows", made, shape=(1, 2))
    grown = build.op("grow", cache, rows, shape=(5, 2), kind=Kind.COPY)
    build.tensors[grown] = replace(build.tensors[grown], role=Role.KV_CACHE)
    graph = build.finish(rows, grown)
    names = {op.name: op.id for op in graph.ops}
    costs = payload_costs(graph, (HOME, "gpu"))

    def problem(pins: dict[int, str], **limits) -> Problem:
        allowed = allowed_devices(graph, HOME, ("gpu",), pins)
        return Problem(graph, HOME, ("gpu",), allowed, transfer_cost=costs, **limits)

    away = {names["reads"]: "gpu"}
    both = {**away, names["rows"]: HOME}
    assert recount(problem(both), solve(problem(both)).placement).calls == 2
    with pytest.raises(InfeasibleError, match="one call to each accelerator, of at least 2"):
        solve(problem(both, one_call=True))
    found = solve(problem(away, one_call=True))
    assert found.placement.devices[names["rows"]] == "gpu"


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


# --- policies -------------------------------------------------------------------------------------

GRANULARITIES = ("op", "tensor", "module", "layer", "convex")

LINK = Link(
    "slow",
    "",
    *[0] * 4,
    sent_bandwidth_bytes_per_second=3e4,
    received_bandwidth_bytes_per_second=1e6,
    sent_latency_seconds=1e-4,
    received_latency_seconds=2e-3,
)

PINS = (
    Rule((("kind", ("linear", "matmul")),), "accelerator", "products", optional=True),
    Rule((("kind", ("softmax", "norm")),), "home", "norms", optional=True),
)


def policy_for(objective: str, rules: tuple[Rule, ...] = ()) -> Policy:
    return Policy("mine", "", "free", rules, {objective: 1.0})


def least_of_units(graph: OpGraph, policy: Policy, at: Setting) -> float | None:
    """The least figure of all placements that keep to the granularity, each counted as printed."""
    together = units(graph, at.granularity)
    fixed = at.fixed(graph, policy)
    choices = allowed_by(graph, policy, HOME, at.machine.accelerators)
    best = None
    for devices in product(*[choice or (None,) for choice in choices]):
        if any(devices[op] != devices[unit] for op, unit in enumerate(together)):
            continue
        where = replace(fixed, devices=devices)
        calls = Counter(call.device for call in at.account(graph, where, WireFormat()).calls)
        if at.granularity == "convex" and max(calls.values(), default=0) > 1:
            continue
        cost = figure(graph, policy, at, where)
        best = cost if best is None else min(best, cost)
    return best


@examples(4, derandomize=True)
@given(
    graphs(max_ops=7),
    st.sampled_from(["bytes", "seconds"]),
    st.sampled_from([(), PINS, PINS[:1]]),
    st.sampled_from(["run", "call"]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([1e4, 1e6]),
)
def test_the_best_by_each_granularity(graph, objective, rules, residency, many, slow):
    """Against every placement; a finer granularity costs no more, and its price is no less than 0."""
    graph = costed(
        graph.with_ops(
            replace(op, dtype="float32", kind=Kind.ELEMENTWISE)
            if objective == "seconds" and op.kind not in STILL
            else op
            for op in graph.ops
        )
    )
    policy = policy_for(objective, rules)
    away = ("gpu", "npu")[:many]
    speeds = {HOME: slow, "gpu": 1e6, "npu": 3e5}
    times = {name: time_ops(graph, device(name, speeds[name])) for name in (HOME, *away)}
    at = Setting(Machine(HOME, away, Links(LINK)), residency=residency, times=times)
    found: dict[str, Proof] = {}
    for granularity in GRANULARITIES:
        there = replace(at, granularity=granularity)
        best = least_of_units(graph, policy, there)
        note(f"{granularity}: {best}")
        if best is None:
            with pytest.raises(InfeasibleError):
                place(graph, policy, there)
            continue
        placed = place(graph, policy, there)
        note(f"{describe(graph, placed.placement)}\n{placed.solution}")
        ours = figure(graph, policy, there, placed.placement)
        assert placed.solution is not None
        assert placed.solution.objective == pytest.approx(ours, abs=0.5)
        assert best * (1 - 1e-9) <= ours
        assert placed.solution.bound <= best * (1 + 1e-6) + 1
        if placed.solution.proven:
            assert ours <= best * (1 + 1e-6)
            found[granularity] = placed.solution
        devices = placed.placement.devices
        together = units(graph, granularity)
        assert all(devices[op] == devices[unit] for op, unit in enumerate(together))
        beside = beside_ops(graph, policy, there)
        assert (beside is None) == (granularity == "op")
    for finer, coarser in FINER:
        if finer in found and coarser in found and finer != "convex":
            assert found[finer].objective <= found[coarser].objective + 1


STILL = (Kind.INPUT, Kind.OUTPUT, Kind.VIEW, Kind.CONSTANT)
"""What no device takes seconds for."""

HEAD = """
description = "The head on the accelerator, the table of tokens at home"
default = "free"
objective = "bytes"

[[rule]]
module_path = "lm_head"
place = "accelerator"

[[rule]]
kind = "embedding"
place = "home"
"""


@pytest.fixture
def head(tmp_path):
    (tmp_path / "head.toml").write_text(HEAD)
    return str(tmp_path / "head.toml")


HIDDEN, LAST, LOGITS = 16 * 2048 * 4, 2048 * 4, 128256 * 4
"""Bytes of the hidden states of 16 tokens, of those of the last, and of its logits."""


def test_the_price_of_layers_by_hand(head):
    """The head needs the last token alone, and the slice that takes it comes after the last layer."""
    traced = cutedge.trace("llama-3.2-1b", seq=16)
    price = {}
    for granularity in ("op", "tensor", "module", "layer"):
        split = traced.partition(head, granularity=granularity)
        summary = split.summary
        assert summary["granularity"] == granularity
        assert summary["optimal"]
        cost = (HIDDEN if granularity == "layer" else LAST) + LOGITS
        assert summary["objective_value"] == summary["total_payload_bytes"] == cost
        price[granularity] = summary["granularity_price"]
        devices = split.bare.placement.devices
        assert len(set(devices)) == 3  # no device, home and the accelerator
    assert price == {"op": None, "tensor": 0, "module": 0, "layer": HIDDEN - LAST}
    with pytest.raises(InputError, match="--granularity"):
        traced.partition(head, granularity="block")


def test_the_price_is_told_with_how_sure_it_is(head):
    split = cutedge.trace("llama-3.2-1b", seq=16).partition(head, granularity="layer").bare
    cost, by_op = HIDDEN + LOGITS, LAST + LOGITS
    assert (split.solution.objective, split.by_op.objective) == (cost, by_op)
    for beside, told in (
        (split.by_op, "122,880 bytes (0.1172 MiB) more than op by op (proven)"),
        (Proof(cost, cost, True, "cut"), "no more than op by op (proven)"),
        (
            Proof(cost + 9, by_op, False, "program"),  # cut short, a worse one was found
            "no more than the best found op by op, and at most 122,880 bytes (0.1172 MiB) more than "
            "the best",
        ),
        (None, "what is best op by op was not found in time"),
    ):
        (line,) = granularity_sentences(replace(split, by_op=beside))
        assert line == f"placed by layer: {told}"
        assert granularity_prices([replace(split, by_op=beside)]) == [f"head is {line}"]


def test_policies_that_split_units_are_left_out_side_by_side():
    found = cutedge.trace("edge-10m", seq=16).compare(granularity="layer")
    assert [*found.compared.names] == ["all-home", "min-cut", "layers"]
    assert found.without["offload-linear"].startswith(
        "what comes before the first layer lies on one device by --granularity layer, and offload-"
    )
    assert "min-cut-norm-home" in found.without
    assert found["all-home"].summary["granularity_price"] is None


def test_layers_of_a_policy_of_layers_are_whole(traced):
    """Of the cuts between parts at any depth those inside of a block are left out."""
    graph = traced("llama-3.2-1b", seq=16)
    at = Setting(Machine(HOME, ("gpu",), Links(load_link("none"))))
    policy = load_policy("layers")
    found = {
        granularity: place(graph, policy, replace(at, granularity=granularity)).solution
        for granularity in ("op", "layer")
    }
    assert found["op"].objective == found["layer"].objective == HIDDEN + LOGITS
    assert found["layer"].cut == "after model.layers.14"


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (
            "offload-linear",
            {"granularity": "convex"},
            "gpu is called once at most by .* take 98 calls",
        ),
        (
            "fuse-attention",
            {"granularity": "module"},
            r"layers\.0\.self_attn lies on one device by .* has op \d+ \(.*\) on tee .* on "
            "gpu .*finer granularity",
        ),
        ("slalom", {"granularity": "layer"}, "slalom masks ops, .* in the middle of a layer"),
        ("masked-all", {"granularity": "convex"}, "in the middle of a call: leave out"),
    ],
)
def test_what_cannot_be_placed_so_is_one_line(policy, options, message):
    with pytest.raises(CutedgeError, match=message) as raised:
        cutedge.trace("llama-3.2-1b", seq=16).partition(policy, **options)
    assert "\n" not in str(raised.value)
