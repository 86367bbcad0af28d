"""Policies with an objective: what is best, what rules cost, what is seen, against brute force."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from costmodels.devices import load_device
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.ladder import exposure, ladder
from partition.optimise import place
from partition.placement import Placement
from partition.policy import (
    apply_policy,
    free_ops,
    load_policy,
    open_policy_names,
    policy_names,
    secret_tensors,
)
from partition.prices import prices
from partition.problem import InfeasibleError
from partition.run import compute_seconds
from partition.setting import Setting
from tests.support.costs import costed, device
from tests.support.graphs import Builder
from tests.support.inprocess import invoke
from tracer.errors import InputError
from tracer.graph import Gemm, Kind, OpGraph

NONE = load_link("none")
FAST = Link(
    "fast",
    "",
    0,
    0,
    0,
    0,
    sent_bandwidth_bytes_per_second=1000,
    received_bandwidth_bytes_per_second=500,
)


def policy(folder: Path, text: str):
    path = folder / "mine.toml"
    path.write_text(f'description = "a test"\n{text}', encoding="utf-8")
    return load_policy(str(path))


FREE = 'default = "free"\nobjective = "bytes"\n'


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('default = "free"', "needs an objective"),
        ('default = "home"\nobjective = "bytes"', "nothing is free"),
        ('default = "free"\nobjective = "joules"', "'joules' is not one of bytes, seconds"),
        ('default = "free"\nobjective = {byte = 1}', "unknown key 'byte'.*Did you mean bytes"),
        ('default = "free"\nobjective = {bytes = -1}', "weight of bytes must be a number above 0"),
        ('default = "free"\nobjective = {}', "give the weight of bytes or seconds or energy"),
        (f'{FREE}cut = "layer"', "'layer' is not one of anywhere, layers"),
        (f"{FREE}[[secret]]", "secret 1: no condition"),
        (f"{FREE}[[secret]]\nlabel = 3", "secret 1: label must be a text"),
        (f'{FREE}[[secret]]\nkind = "linear"', "secret 1: unknown key 'kind'"),
        (f'{FREE}[[secret]]\nlabel = "q"\noptional = 1', "secret 1: optional must be true or"),
        (f'{FREE}[[rule]]\nkind = "norm"\nplace = "anywhere"', "rule 1: place.*home"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, says):
    with pytest.raises(InputError, match=f"mine.toml.*{says}"):
        policy(tmp_path, text)


def test_every_shipped_policy_says_what_it_is():
    for name in policy_names():
        shipped = load_policy(name)
        assert shipped.description.endswith(".")
        assert (shipped.objective is None) == (
            "free" not in (shipped.default, *(rule.place for rule in shipped.rules))
        )


# --- optima ---------------------------------------------------------------------------------------


def chain() -> OpGraph:
    """x -> big -> small -> out, where the middle is large: 4, 400, 4 bytes."""
    b = Builder()
    x = b.input("x", [1])
    a = b.op("grow", x, shape=[100], kind=Kind.LINEAR, path="layers.0.up", label="q")
    c = b.op("act", a, shape=[100], path="layers.0.act")
    d = b.op("shrink", c, shape=[1], kind=Kind.LINEAR, path="layers.1.down")
    return b.finish(d)


def setting(
    graph: OpGraph,
    link: Link = NONE,
    accelerator: str = "gpu",
    memory: dict | None = None,
    **options,
) -> Setting:
    machine = Machine("tee", (accelerator,), Links(link), memory_bytes=memory or {})
    return Setting(machine, **options)


LINEAR = '[[rule]]\nkind = "linear"\nplace = "accelerator"\nreason = "products"\n'
HOME_ACT = '[[rule]]\nmodule_path = "layers.0.act"\nplace = "home"\nreason = "hidden"\n'


def test_a_free_op_follows_the_bytes(tmp_path):
    graph = chain()
    placed = place(graph, policy(tmp_path, FREE + LINEAR), setting(graph))
    assert placed.placement.devices == ("tee", "gpu", "gpu", "gpu", "tee")
    assert placed.solution is not None
    assert placed.solution.objective == 8
    assert placed.solution.proven
    assert placed.placement.reasons[2] == "the optimum for bytes"
    assert placed.placement.pinned == (True, True, False, True, True)


def test_what_is_never_free_keeps_its_reason(tmp_path):
    b = Builder()
    x = b.input("x", [1])
    table = b.constant("table", shape=[1])
    graph = b.finish(b.op("a", x, table, shape=[1]))
    placement = place(graph, policy(tmp_path, FREE), setting(graph)).placement
    assert placement.devices == ("tee", None, "tee", "tee")
    assert placement.reasons == (
        "inputs and outputs are at home",
        "constant: computed at load where it is needed",
        "the optimum for bytes",
        "inputs and outputs are at home",
    )


def test_what_a_rule_costs_is_what_the_optimum_saves_without_it(tmp_path):
    graph = chain()
    rules = policy(tmp_path, FREE + LINEAR + HOME_ACT)
    placed = place(graph, rules, setting(graph))
    assert placed.solution is not None
    assert placed.solution.objective == 4 + 400 + 400 + 4
    linear, hidden = prices(graph, rules, setting(graph), placed.solution)
    assert (linear.ops, linear.saved) == (2, 808)  # all at home
    assert (hidden.ops, hidden.saved, hidden.reason) == (1, 800, "hidden")
    assert linear.proven
    assert hidden.proven


def by_brute_force(graph: OpGraph, free: frozenset[int], fixed: Placement, cost) -> float:
    best = float("inf")
    for choice in product(("tee", "gpu"), repeat=len(free)):
        devices = list(fixed.devices)
        for op, where in zip(sorted(free), choice, strict=True):
            devices[op] = where
        best = min(best, cost(replace(fixed, devices=tuple(devices))))
    return best


@pytest.mark.parametrize("slow", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("latency", [0.0, 0.3])
def test_the_fastest_is_that_of_brute_force(slow, latency):
    """Seconds of the devices and of the link, as the accounting has them."""
    b = Builder()
    x = b.input("x", [10])
    w = b.parameter("w", [10])
    a = b.op("a", x, w, shape=[40], kind=Kind.LINEAR)
    v = b.view("v", a)
    c = b.op("c", v, shape=[40])
    d = b.op("d", a, c, shape=[20])
    e = b.op("e", d, x, shape=[5], kind=Kind.LINEAR)
    f = b.op("f", e, c, shape=[5])
    graph = costed(b.finish(f))
    link = replace(FAST, sent_latency_seconds=latency, received_latency_seconds=latency)
    times = {
        "tee": time_ops(graph, device("tee", slow)),
        "gpu": time_ops(graph, device("gpu", 1e4)),
    }
    at = setting(graph, link, times=times)
    fastest = load_policy("fastest")
    placed = place(graph, fastest, at)

    def seconds(placement: Placement) -> float:
        moving = account(graph, placement, Links(link)).totals.seconds
        assert moving is not None
        return moving + sum(compute_seconds(placement, times).values())

    fixed = apply_policy(graph, fastest, home="tee", accelerators=("gpu",))
    free = frozenset(
        op for op in free_ops(graph, fastest) if graph.ops[op].kind not in (Kind.INPUT, Kind.OUTPUT)
    )
    best = by_brute_force(graph, free, fixed, seconds)
    assert seconds(placed.placement) == pytest.approx(best)
    assert placed.solution is not None
    assert placed.solution.proven
    assert (placed.solution.objective or 0) / 1e9 == pytest.approx(best, abs=1e-6)


def test_weights_trade_bytes_for_seconds(tmp_path):
    graph = costed(chain())
    speeds = {"tee": 1.0, "gpu": 1e6}
    times = {name: time_ops(graph, device(name, rate)) for name, rate in speeds.items()}
    at = setting(graph, FAST, times=times)  # 300 s at home, or 8 bytes
    dear = place(
        graph, policy(tmp_path, 'default = "free"\nobjective = {bytes = 1e6, seconds = 1}'), at
    )
    cheap = place(
        graph, policy(tmp_path, 'default = "free"\nobjective = {bytes = 1, seconds = 1}'), at
    )
    assert dear.placement.accelerators == ()
    assert cheap.placement.accelerators == ("gpu",)
    assert cheap.unit == "weighted"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "tee, gpu is no described device"),
        ({"times": "both"}, "the link none has no bandwidth"),
    ],
)
def test_seconds_need_devices_and_a_link(options, says):
    graph = costed(chain())
    if options:
        options = {"times": {n: time_ops(graph, device(n, 1e6)) for n in ("tee", "gpu")}}
    with pytest.raises(InputError, match=says):
        place(graph, load_policy("fastest"), setting(graph, NONE, **options))


def test_an_op_goes_only_where_it_has_a_cost(tmp_path):
    graph = costed(chain())
    half = replace(device("gpu", 1e9), peak_flops_per_second={"float16": 1e9})
    times = {"tee": time_ops(graph, device("tee", 1.0)), "gpu": time_ops(graph, half)}
    at = setting(graph, FAST, times=times)
    assert place(graph, load_policy("fastest"), at).placement.accelerators == ()
    pinned = policy(tmp_path, 'default = "free"\nobjective = "seconds"\n' + LINEAR)
    with pytest.raises(InputError, match=r"op 1 .*may run on gpu, and has no cost on gpu"):
        place(graph, pinned, at)


def test_an_array_gets_products_alone_also_where_bytes_count(tmp_path):
    graph = costed(chain())
    gemm = Gemm(1, 8, 8, 8)
    graph = graph.with_ops(
        replace(op, cost=replace(op.cost, gemm=gemm)) if op.kind is Kind.LINEAR else op
        for op in graph.ops
    )
    times = {"chip-8x8": time_ops(graph, load_device("chip-8x8"))}
    at = setting(graph, accelerator="chip-8x8", times=times)
    placed = place(graph, policy(tmp_path, FREE + LINEAR), at)
    assert placed.placement.devices == ("tee", "chip-8x8", "tee", "chip-8x8", "tee")


# --- limits ---------------------------------------------------------------------------------------


def test_a_secret_stays_at_home(tmp_path):
    graph = chain()
    rules = policy(tmp_path, f'{FREE}{LINEAR}[[secret]]\nlabel = "q"\nreason = "private"')
    assert secret_tensors(graph, rules) == {1}
    with pytest.raises(InfeasibleError, match=r"op 1 \(grow\).*makes tensor 1 .*secret"):
        place(graph, rules, setting(graph))
    trusted = replace(device("gpu", 1e6), trusted=True)
    at = setting(graph, times={"gpu": time_ops(costed(graph), trusted)})
    assert place(graph, rules, at).placement.devices[1] == "gpu"
    free = policy(tmp_path, f'{FREE}[[secret]]\nlabel = "q"')
    assert place(graph, free, setting(graph)).placement.devices[1] == "tee"


def test_views_of_a_secret_are_secret(tmp_path):
    b = Builder()
    x = b.input("x", [8])
    a = b.op("a", x, shape=[8], label="q")
    v = b.view("v", a)
    c = b.op("c", v, shape=[1], kind=Kind.LINEAR)
    graph = b.finish(c)
    rules = policy(tmp_path, f'{FREE}{LINEAR}[[secret]]\nname = "a"')
    with pytest.raises(InfeasibleError, match="reads tensor"):
        place(graph, rules, setting(graph))


def test_calls_and_memory_are_kept_to(tmp_path):
    b = Builder()
    x = b.input("x", [1])
    w = b.parameter("w", [1000])
    a = b.op("a", x, w, shape=[50], kind=Kind.LINEAR)
    h = b.op("h", a, shape=[50], kind=Kind.NORM)
    c = b.op("c", h, shape=[1], kind=Kind.LINEAR)
    graph = b.finish(c)
    norm = '[[rule]]\nkind = "norm"\nplace = "home"\n'
    rules = policy(tmp_path, FREE + LINEAR + norm)
    assert (
        len(account(graph, place(graph, rules, setting(graph)).placement, Links(NONE)).calls) == 2
    )
    with pytest.raises(InfeasibleError, match="at most 1 calls, of at least 2 that are needed"):
        place(graph, rules, setting(graph, max_calls=1))
    loose = policy(tmp_path, FREE + '[[rule]]\nkind = "norm"\nplace = "home"\n')
    assert place(graph, loose, setting(graph, max_calls=0)).placement.accelerators == ()
    with pytest.raises(InfeasibleError, match="the memory of gpu is 3999 bytes"):
        place(graph, rules, setting(graph, memory={"gpu": 3999}))


# --- one cut between layers -----------------------------------------------------------------------


def layered(widths: list[int]) -> OpGraph:
    """A residual stream of those widths: each layer reads the one before, and the first input."""
    b = Builder()
    stream, weight = b.input("x", [3]), b.parameter("w", [1])
    for number, width in enumerate(widths):
        path = f"layers.{number}.up"
        inner = b.op(f"up{number}", stream, weight, shape=[5], kind=Kind.LINEAR, path=path)
        stream = b.op(f"down{number}", inner, shape=[width], path=f"layers.{number}")
    return b.finish(b.op("head", stream, shape=[2], kind=Kind.LINEAR, path="head"))


@pytest.mark.parametrize("widths", [[4, 9, 2, 7], [4, 2, 9, 2], [6, 6, 6, 6], [1, 2, 3, 4]])
def test_the_best_cut_between_layers_is_that_of_trying_all(widths):
    graph = layered(widths)
    placed = place(graph, load_policy("layers"), setting(graph))
    assert placed.solution is not None
    costs = {}
    for cut in range(1, len(widths)):
        devices = tuple(
            "tee"
            if op.kind in (Kind.INPUT, Kind.OUTPUT)
            or (op.layer if op.layer is not None else 99) < cut
            else "gpu"
            for op in graph.ops
        )
        where = replace(placed.placement, devices=devices)
        costs[cut] = account(graph, where, Links(NONE)).totals.payload_bytes, devices
    least = min(cost for cost, _ in costs.values())
    latest = max(cut for cut, (cost, _) in costs.items() if cost == least)
    assert placed.solution.objective == least
    assert placed.placement.devices == costs[latest][1]


def test_a_model_without_layers_has_no_cut():
    b = Builder()
    graph = b.finish(b.op("a", b.input("x", [1]), shape=[1]))
    with pytest.raises(InfeasibleError, match="no two layers"):
        place(graph, load_policy("layers"), setting(graph))


# --- why, and what is seen ------------------------------------------------------------------------


def test_a_ladder_goes_all_the_way_and_its_savings_add_up(traced):
    graph = traced("llama-3.2-1b", seq=1024, overrides={"num_hidden_layers": 2})
    start = apply_policy(graph, load_policy("offload-linear"), home="tee", accelerators=("gpu",))
    before = account(graph, start, Links(NONE))
    for name in ("all-home", "flash-attention", "min-cut-softmax-free", "min-cut", "layers"):
        end = place(graph, load_policy(name), setting(graph)).placement
        after = account(graph, end, Links(NONE))
        steps = ladder(graph, start, end, Links(NONE))
        saved = before.totals.payload_bytes - after.totals.payload_bytes
        assert sum(step.saved_bytes for step in steps) == saved
        assert sum(step.saved_calls for step in steps) == len(before.calls) - len(after.calls)
        assert steps[-1].total_payload_bytes == after.totals.payload_bytes
    assert ladder(graph, start, start, Links(NONE)) == []


def test_what_an_accelerator_sees(tmp_path):
    graph = chain()
    placed = place(graph, policy(tmp_path, FREE + LINEAR + HOME_ACT), setting(graph))
    (seen,) = exposure(
        graph, placed.placement, account(graph, placed.placement, Links(NONE)), ["gpu"]
    )
    assert dict(seen.sent) == {"x": 1, "act": 1}
    assert dict(seen.made) == {"q": 1, "down": 1}
    assert (seen.sent_bytes, seen.made_bytes, seen.parameter_bytes) == (404, 404, 0)


# --- the model that is measured -------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(traced) -> OpGraph:
    return traced("llama-3.2-1b", seq=1024)


def test_optima_of_llama(llama):
    """MiB and calls. A hidden state and q are 8 MiB, k is 2, scores are 128, an FFN's middle 32.

    A layer: norms sent 2 x 8, projections back to the residual stream 2 x 8; RoPE there and back
    2 x (8 + 2); softmax 2 x 128; activation 2 x 32. Once: the embedding 8, the ids and the last
    token's norm 0.0078 each, logits 0.4893.
    """
    once, norms, rope, softmax, activation = 8 + 0.015625 + 0.4892578125, 32, 20, 256, 64
    assert once + 16 * (norms + rope + softmax + activation) == pytest.approx(5960.5049, abs=1e-4)
    assert once + 16 * (norms + rope) == pytest.approx(840.5049, abs=1e-4)
    assert once + 16 * norms == pytest.approx(520.5049, abs=1e-4)
    expected = {
        "min-cut-nonlinear-home": ("5960.5049", 82),
        "min-cut-softmax-free": ("840.5049", 50),
        "min-cut-norm-home": ("520.5049", 34),
        "min-cut": ("0.4971", 1),
        "layers": ("8.4893", 1),
    }
    for name, (size, calls) in expected.items():
        placed = place(llama, load_policy(name), setting(llama))
        traffic = account(llama, placed.placement, Links(NONE))
        assert f"{traffic.totals.payload_bytes / 2**20:.4f}" == size, name
        assert len(traffic.calls) == calls
        assert placed.solution is not None
        assert placed.solution.proven
        assert placed.solution.objective == traffic.totals.payload_bytes


def test_an_optimum_is_never_above_a_fixed_policy_that_respects_its_pins(llama):
    for name in policy_names():
        rules = load_policy(name)
        if rules.objective != {"bytes": 1} or rules.cut != "anywhere" or rules.secrets:
            continue
        best = place(llama, rules, setting(llama))
        assert best.solution is not None
        free = free_ops(llama, rules)
        pins = {op: here for op, here in enumerate(best.placement.devices) if op not in free}
        for other in policy_names():
            if load_policy(other).objective is not None:
                continue
            fixed = apply_policy(llama, load_policy(other), home="tee", accelerators=("gpu",))
            if all(fixed.devices[op] == here for op, here in pins.items()):
                moved = account(llama, fixed, Links(NONE)).totals.payload_bytes
                assert (best.solution.objective or 0) <= moved, (name, other)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "16").returncode == 0
    return tmp_path


def test_a_partition_says_how_good_it_is(here):
    done = invoke("partition", "--policy", "min-cut-norm-home", "--explain", "--json")
    found = json.loads(done.stdout)
    assert found["optimal"] is True
    assert found["objective_value"] == found["objective_bound"] == found["total_payload_bytes"]
    assert found["objective_gap"] == 0
    assert found["ladder"][-1]["total_payload_bytes"] == found["total_payload_bytes"]
    assert [price["ops"] > 0 for price in found["prices"]] == [True, True]
    assert found["exposed"][0]["device"] == "gpu"
    asked = invoke("cutedge", "query", "SELECT * FROM summary", "--json")
    (row,) = json.loads(asked.stdout)["rows"]
    assert (row["optimal"], row["objective"], row["solver"]) == (True, "bytes", "cut")
    assert row["objective_value"] == row["objective_bound"] == found["objective_value"]
    shown = invoke("partition", "--policy", "min-cut-norm-home", "--explain").stdout
    assert "optimal for bytes" in shown
    assert "price of a rule" in shown
    assert "gpu sees plain: prompt tokens" in shown


def test_a_run_has_seconds_on_described_devices(here):
    devices = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie4-x16")
    done = invoke("cutedge", "compare", *devices, "--json")
    found = json.loads(done.stdout)["partitions"]
    by_name = {one["policy"]: one for one in found}
    assert set(by_name) == set(open_policy_names())
    for one in found:
        parts = one["seconds"] + sum(one["compute_seconds"].values())
        assert one["run_seconds"] == pytest.approx(parts)
    fastest = by_name["fastest"]["run_seconds"]
    assert all(fastest <= one["run_seconds"] * (1 + 1e-6) for one in found)
    shown = invoke("cutedge", "compare", *devices).stdout
    assert "seconds (proven)" in shown


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--policy", "fastest"), "tee, gpu is no described device"),
        (("--policy", "min-cut", "--memory", "gpu"), "DEVICE=SIZE"),
        (("--policy", "min-cut", "--memory", "cpu=1GiB"), "--memory of device 'cpu'"),
        (("--policy", "min-cut", "--memory", "gpu=1KiB"), "the memory of gpu is 1024 bytes"),
        (("--policy", "min-cut", "--max-calls", "0"), "at most 0 calls"),
        (("--home", "tee-tdx", "--accel", "tee-tdx"), "must be two different devices"),
        (("--home", "nowhere.toml"), "nowhere.toml cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(here, asked, says):
    done = invoke("partition", *asked)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_policies_that_count_seconds_are_left_out_where_there_are_none(here):
    done = invoke("cutedge", "compare")
    assert done.returncode == 0
    assert "without fastest: counts seconds" in done.stdout
    assert "\nfastest  " not in done.stdout


def test_compare_goes_on_without_what_is_not_found_in_time(here, monkeypatch):
    import partition.solve as solvers

    solve = solvers.solve
    monkeypatch.setattr(solvers, "solve", lambda problem, time_limit: solve(problem, time_limit=0))
    assert invoke("trace", "edge-10m", "--seq", "64").returncode == 0
    devices = ["--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie5-x16"]
    # What is best in one place does not fit there.
    small = ["--memory", "rtx-4090=16MiB", "--memory", "tee-tdx=40MiB"]
    done = invoke("cutedge", "compare", *devices, *small)
    assert (done.returncode, done.stderr) == (0, "")
    assert "without fastest: no placement was found in 60 s" in done.stdout
    alone = invoke("partition", "--policy", "fastest", *devices, *small)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert "no placement was found in 60 s: take a longer --time-limit" in alone.stderr
