"""Placements run for real: bytes as predicted call by call, answers as of the unsplit model."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.devices import Device
from costmodels.fit_device import fit_device
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from cutedge.runtime import RunError
from cutedge.runtime.home import Measured, workers
from cutedge.runtime.leaks import Secrets, Witness
from cutedge.runtime.lineage import carriers
from cutedge.runtime.plan import make_plan
from cutedge.runtime.verify import Verdict, judge, tolerance_of
from cutedge.runtime.weights import seeded
from cutedge.runtime.wire import Spec
from partition.accounting import Traffic, account
from partition.optimise import Placed, obstacle, place
from partition.placement import Placement
from partition.policy import Policy, Rule, fixed_policy_names, load_policy, policy_names
from partition.protects import Protect
from partition.schemes import Protection
from partition.setting import Setting
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tests.support.models import (
    ANY,
    LINKS,
    WEIGHTS,
    Model,
    by_seed,
    carry_out,
    model_of,
    placements,
    prepare,
)
from tests.support.running import TOKEN
from tests.support.running import listening as started
from tracer.capture import runnable, runnable_function
from tracer.errors import InputError
from tracer.graph import Kind, Role
from tracer.presets import preset

SMALL: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    },
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 50, "n_positions": 64},
    "mixtral-8x7b": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    },
}
PREFILL: Mapping[str, Any] = {"seq": 6}
DECODE: Mapping[str, Any] = {"phase": "decode", "past": 5}
WAYS = ("send", "receive")


@cache
def small(name: str, phase: str = "prefill", **options: Any) -> Model:
    sizes = PREFILL if phase == "prefill" else DECODE
    return model_of(runnable(preset(name), model=name, overrides=SMALL[name], **sizes, **options))


@pytest.fixture(scope="module")
def listening() -> Iterator[dict[str, tuple[str, int]]]:
    """Two workers that serve one run after another."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(started()).address for name in ("gpu", "gpu2")}


def verdict_of(model: Model, traffic: Traffic, measured: Measured) -> Verdict:
    return judge(model.graph, traffic, measured, model.reference)


def placed(model: Model, policy: str, residency: Any, link: Link) -> Placed | None:
    setting = Setting(Machine("tee", ("gpu",), Links(link)), residency=residency, time_limit=60.0)
    if obstacle(load_policy(policy), setting):
        return None
    return place(model.graph, load_policy(policy), setting)


def fixed(model: Model, policy: str, residency: Any, link: Link) -> Placement:
    found = placed(model, policy, residency, link)
    assert found is not None
    return found.placement


QUICK = {
    *(("prefill", policy, "run") for policy in fixed_policy_names()),
    *(("prefill", policy, "call") for policy in ("offload-linear", "min-cut")),
    *(("decode", policy, "run") for policy in ("fuse-attention", "layers")),
    ("decode", "flash-attention", "call"),
}
"""Cases that ``make test`` has of the first model."""


@pytest.mark.parametrize(
    ("name", "phase", "policy", "residency"),
    [
        pytest.param(
            *(name, *case),
            marks=() if name == "llama-3.2-1b" and case in QUICK else pytest.mark.slow,
        )
        for name in SMALL
        for case in product(("prefill", "decode"), policy_names(), ("run", "call"))
    ],
)
@pytest.mark.few(4)
def test_a_policy_moves_what_is_predicted_and_answers_as_the_model(
    listening, name, phase, policy, residency
):
    """Every shipped policy but that of seconds, which is a placement like the others."""
    model, link = small(name, phase), load_link("unix-socket")
    masks = bool(load_policy(policy).protects) and policy != "private-optimal"
    if masks and name == "mixtral-8x7b":
        with pytest.raises(InputError, match=r"grouped_mm.* is no product of two matrices"):
            placed(model, policy, residency, link)
        return
    there = placed(model, policy, residency, link)
    if there is None:
        assert policy in ("fastest", "private-optimal")
        return
    _, measured, verdict = carry_out(
        model, there.placement, Links(link), listening, graph=there.graph, residency=residency
    )
    assert verdict.unequal == ()
    assert verdict.answer_equal, verdict.largest_differences
    assert verdict.max_abs_result > 0.1
    if phase == "decode":
        results = model.graph.inputs(len(model.graph.ops) - 1)
        assert set(measured.states) == {t.id for t in results if t.role is Role.KV_CACHE}


@pytest.mark.slow
def test_half_as_wide_on_the_wire(listening):
    model, links = small("llama-3.2-1b"), Links(load_link("unix-socket"))
    placement = fixed(model, "offload-linear", "run", links.common)
    own, _, exact = carry_out(model, placement, links, listening)
    _, _, verdict = carry_out(model, placement, links, listening, wire_dtype="bfloat16")
    assert verdict.bytes_equal
    ids = 6 * 8  # the token ids alone stay as they are
    assert verdict.total_payload_bytes_measured == (own.totals.payload_bytes - ids) // 2 + ids
    assert exact.max_abs_difference < 1e-4 < verdict.max_abs_difference
    assert verdict.answer_equal


@pytest.mark.slow
def test_a_model_in_bfloat16(listening):
    model, links = small("llama-3.2-1b", dtype="bfloat16"), Links(load_link("unix-socket"))
    placement = fixed(model, "fuse-attention", "run", links.common)
    _, _, verdict = carry_out(model, placement, links, listening)
    assert verdict.bytes_equal
    assert verdict.answer_equal


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["slalom-verified", "masked-all", "rank-one"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_what_masks_round_follows_the_dtype(listening, policy, dtype):
    """A result is off by epsilon, a few times over in a few layers: far from half of its digits."""
    model, links = small("llama-3.2-1b", dtype=dtype), Links(load_link("unix-socket"))
    there = placed(model, policy, "run", links.common)
    assert there is not None
    _, _, verdict = carry_out(model, there.placement, links, listening, graph=there.graph)
    amplified = 8 if policy == "rank-one" else (1 + 16**2) ** 0.5
    epsilon = torch.finfo(getattr(torch, dtype)).eps * amplified
    assert verdict.unequal == ()
    assert verdict.answer_equal
    assert verdict.tolerance == pytest.approx(epsilon**0.5 * verdict.max_abs_result)
    assert verdict.max_abs_difference <= 10 * epsilon * verdict.max_abs_result


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["one-time-pad-mod", "rank-one", "orthogonal", "permutation"])
def test_biases_are_added_where_the_scheme_has_them(listening, scheme):
    """gpt2's linears add them in one op with the product, and some of them have a single row."""
    model, links = small("gpt2"), Links(load_link("unix-socket"))
    kind = (("kind", ("linear",)),)
    how = Protection(scheme, check="freivalds")
    rules = (Rule(kind, "accelerator", ""),)
    policy = Policy("biased", "", "home", rules, protects=(Protect(kind, how, ""),))
    there = place(model.graph, policy, Setting(Machine("tee", ("gpu",), links)))
    _, _, verdict = carry_out(model, there.placement, links, listening, graph=there.graph)
    assert verdict.unequal == ()
    assert verdict.answer_equal


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.few(1)
def test_two_accelerators(listening, tmp_path, residency):
    """The MLPs on the second one: with residency run it hears from the first one directly."""
    file = tmp_path / "two.toml"
    file.write_text(
        'description = "the MLPs apart"\ndefault = "accelerator"\n'
        '[[rule]]\nmodule_path = "*.mlp*"\nplace = "accelerator 2"\n'
        '[[rule]]\nkind = "norm"\nplace = "home"\n'
    )
    model = small("llama-3.2-1b")
    link = load_link("unix-socket")
    links = Links(link, peers={frozenset(("gpu", "gpu2")): replace(link, chunk_bytes=1000)})
    setting = Setting(Machine("tee", ("gpu", "gpu2"), links), residency=residency)
    placement = place(model.graph, load_policy(str(file)), setting).placement
    traffic, measured, verdict = carry_out(model, placement, links, listening, residency=residency)
    assert verdict.unequal == ()
    assert verdict.answer_equal
    assert {call.device for call in traffic.calls} == {"gpu", "gpu2"}
    assert (traffic.totals.peer_payload_bytes > 0) == (residency == "run")
    assert sum(c.peer_wire_bytes for c in measured.calls) == traffic.totals.peer_wire_bytes


def test_a_secret_does_not_pass_between_accelerators(listening):
    """The first one is trusted and has it, the second is not: home does not let it be sent.

    Where home knows of no ops that move it, the numbers of a run at home alone tell.
    """
    model, links = small("llama-3.2-1b"), Links(load_link("unix-socket"))
    graph, invocations = model.graph, model.runnable.invocations
    own = [
        None
        if graph.is_everywhere(op.id)
        else "tee"
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else "gpu2"
        if op.module_path.endswith("down_proj")
        else "gpu"
        for op in graph.ops
    ]
    placement = Placement("tee", own, [False] * len(own), [""] * len(own))
    made = prepare(model, placement, links)
    plan = made.plan
    [(call, passed)] = [(c.number, c.peers["gpu"]) for c in plan.calls if c.device == "gpu2"][:1]
    named = {"that": [passed[0]]}
    secrets = Secrets(("gpu2",), named, carriers(graph, invocations, named))
    with workers(["gpu", "gpu2"], remote=listening, token=TOKEN, timeout=60.0) as found:
        run = made.load(found)
        witness = Witness.of(plan, graph, secrets)
        run.run(model.given, witness=witness)
        proof = witness.prove(model.runnable, model.given, WEIGHTS, links)
        assert proof.leaks == (
            f"{graph.tensors[passed[0]].name} (tensor {passed[0]}) from gpu to gpu2 in call {call} "
            "has the values of a secret (that)",
        )
        assert proof.tensors_compared == sum(
            "gpu2" in (t.src_device, t.dst_device)
            for t in account(graph, placement, links).transfers
        )
        found["gpu2"].channel.forbidden = secrets.carriers
        with pytest.raises(
            RunError,
            match=rf"call {call} of .*: tensor {passed[0]} is not sent to "
            r"worker gpu2, which is not trusted",
        ):
            run.run(model.given)


def test_two_accelerators_that_send_to_each_other(listening):
    """One takes every other op of the other's; both ways over one connection."""
    model, links = small("llama-3.2-1b"), Links(load_link("unix-socket"))
    own = [
        None
        if model.graph.is_everywhere(op.id)
        else "tee"
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else ("gpu", "gpu2")[op.id // 5 % 2]
        for op in model.graph.ops
    ]
    placement = Placement("tee", own, [False] * len(own), [""] * len(own))
    traffic, _, verdict = carry_out(model, placement, links, listening)
    ways = {(t.src_device, t.dst_device) for t in traffic.transfers if t.direction == "peer"}
    assert ways == {("gpu", "gpu2"), ("gpu2", "gpu")}
    assert verdict.unequal == ()
    assert verdict.answer_equal


OWN = """
import torch

class Odd(torch.nn.Module):
    '''What the models of transformers seldom do.'''

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 12)
        self.second = torch.nn.Linear(4, 8, bias=False)
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, x, mask):
        a, b, c = self.first(x).split(4, dim=-1)
        a = a.transpose(0, 1)
        kept = a.clone()
        head = kept[0]
        kept[:, 0] += 1.5
        values, where = torch.topk(b, 2, dim=-1)
        spectrum = torch.fft.rfft(c, dim=-1)
        joined = torch.cat([kept.transpose(0, 1), b, c * spectrum.real.mean()], dim=-1)
        flags = (joined > 0) & mask
        made = self.second(joined[..., :4]) + self.table + torch.zeros_like(x)
        return made * flags.float().mean(), values.sum() + head.sum(), where, flags

def build(batch=2, seq=3):
    torch.manual_seed(0)
    return Odd(), (torch.ones(batch, seq, 8), torch.ones(batch, seq, 1, dtype=torch.bool))
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Model:
    file = tmp_path_factory.mktemp("own") / "odd.py"
    file.write_text(OWN)
    return model_of(runnable_function(str(file), "build"))


@examples(6, ANY)
@given(data=st.data())
def test_any_placement_of_a_model_moves_what_is_predicted(listening, data):
    phase = data.draw(st.sampled_from(("prefill", "decode")))
    model = small("llama-3.2-1b", phase)
    check_any(model, listening, data)


@examples(6, ANY)
@given(data=st.data())
def test_any_placement_of_odd_code_moves_what_is_predicted(listening, odd, data):
    """Writing in place, several results, complex numbers, booleans, views of what is written."""
    check_any(odd, listening, data)


RANDOM = """
import random
import torch

class Net(torch.nn.Module):
    '''A graph of ops drawn by a seed; all tensors but the scores are [batch, seq, 8].'''

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        sorts = ["linear", "add", "mul", "softmax", "attention", "split", "slice", "mean", "write",
                 "norm", "transpose"]
        self.steps = [
            (draw.choice(sorts), draw.random(), draw.random()) for _ in range(draw.randint(4, 14))
        ]
        self.linear = torch.nn.Linear(8, 8)
        self.last = draw.randint(1, 3)

    def forward(self, x):
        made = [x]
        for what, one, other in self.steps:
            a, b = made[int(one * len(made))], made[int(other * len(made))]
            if what == "linear":
                made.append(self.linear(a))
            elif what == "add":
                made.append(a + b)
            elif what == "mul":
                made.append(torch.tanh(a) * b)
            elif what == "softmax":
                made.append(torch.softmax(a, -1))
            elif what == "attention":
                made.append(torch.softmax(a @ b.transpose(1, 2), -1) @ a)
            elif what == "split":
                left, right = a.split(4, -1)
                made.append(torch.cat([right, left], -1))
            elif what == "slice":
                made.append(torch.cat([a[:, 1:], b[:, :1]], 1))
            elif what == "mean":
                made.append(a - b.mean(1, keepdim=True))
            elif what == "write":
                kept = a.clone()
                row = kept[:, 0]
                row *= 0.5
                made.append(kept + b)
            elif what == "norm":
                made.append(torch.nn.functional.layer_norm(a, (8,)))
            else:
                made.append(a.transpose(0, 2).reshape(8, -1).t().reshape(a.shape))
        return tuple(made[-self.last:])

def build(seed=0):
    return Net(seed), (torch.ones(2, 3, 8),)
"""


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Model]:
    return by_seed(RANDOM, tmp_path_factory.mktemp("own"))


@examples(12, ANY)
@given(seed=st.integers(0, 3), data=st.data())
def test_any_placement_of_a_random_graph_moves_what_is_predicted(
    listening, random_model, seed, data
):
    check_any(random_model(seed), listening, data)


@pytest.mark.slow
@settings(parent=ANY, max_examples=400)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_any_placement_of_many_random_graphs(listening, random_model, seed, data):
    check_any(random_model(seed), listening, data)


def check_any(model: Model, listening: Any, data: Any) -> None:
    placement = data.draw(placements(model.graph))
    residency = data.draw(st.sampled_from(("run", "call")))
    links = Links(data.draw(st.sampled_from(LINKS)))
    wire_dtype = data.draw(st.sampled_from((None, "float64")))
    _, _, verdict = carry_out(
        model, placement, links, listening, wire_dtype=wire_dtype, residency=residency
    )
    assert verdict.unequal == ()
    assert verdict.answer_equal, verdict.largest_differences


def test_what_a_device_holds_is_what_is_predicted():
    """Parameters, buffers and cached state after the step; constants are worked out there."""
    model = small("llama-3.2-1b", "decode")
    placement = fixed(model, "fuse-attention", "run", load_link("unix-socket"))
    traffic = account(model.graph, placement, Links(load_link("unix-socket")))
    plan = make_plan(model.graph, model.runnable.invocations, placement)
    graph = model.graph
    for device in (plan.home, *plan.accelerators.values()):
        constants = {
            t for t, op in device.instructions.everywhere.items() if op in device.constants
        } & {t.id for op in device.ops for t in graph.inputs(op)}
        owners = {graph.storage(graph.tensors[t]).id for t in constants}
        worked_out = sum(graph.tensors[t].bytes for t in owners)
        kept, states = (
            sum(graph.tensors[t].bytes for t in some) for some in (device.kept, device.states)
        )
        left = device.resident_bytes + kept - states
        assert left <= traffic.resident_bytes[device.name] <= left + worked_out


def test_another_prediction_is_found_out(listening):
    """A judge that cannot say no says nothing."""
    model, links = small("llama-3.2-1b"), Links(load_link("unix-socket"))
    placement = fixed(model, "offload-linear", "run", links.common)
    traffic, measured, _ = carry_out(model, placement, links, listening)
    first = replace(traffic.calls[0], sent_payload_bytes=traffic.calls[0].sent_payload_bytes + 1)
    wrong = replace(traffic, calls=(first, *traffic.calls[1:]))
    assert len(verdict_of(model, wrong, measured).unequal) == 1
    fewer = replace(traffic, calls=traffic.calls[1:])
    assert not verdict_of(model, fewer, measured).bytes_equal
    measured.results[0] = measured.results[0] + 0.01 * measured.results[0].abs().max()
    assert not verdict_of(model, traffic, measured).answer_equal


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_worker_computes_on_cuda_where_there_is_one(listening):
    """The tests above run there too; their tolerance is that of sums in another order."""
    model, links = small("llama-3.2-1b"), Links(load_link("unix-socket"))
    placement = fixed(model, "offload-linear", "run", links.common)
    _, measured, verdict = carry_out(model, placement, links, listening)
    assert measured.devices == {"tee": "cpu", "gpu": "cuda"}
    assert verdict.bytes_equal
    assert verdict.answer_equal


def test_a_run_can_be_repeated(listening):
    model, links = small("llama-3.2-1b", "decode"), Links(load_link("unix-socket"))
    placement = fixed(model, "offload-linear", "call", links.common)
    made = prepare(model, placement, links, residency="call")
    with workers(list(made.plan.accelerators), remote=listening, token=TOKEN) as found:
        ready = made.load(found)
        runs = [ready.run(model.given) for _ in range(3)]
    for measured in runs:
        verdict = made.judge(measured)
        assert verdict.bytes_equal
        assert verdict.answer_equal


def test_numbers_follow_from_name_and_seed_alone():
    spec = Spec("float32", (40, 50))
    one = seeded("layer.weight", spec, 0, 0.02)
    assert torch.equal(one, seeded("layer.weight", spec, 0, 0.02))
    assert not torch.equal(one, seeded("layer.weight", spec, 1, 0.02))
    assert not torch.equal(one, seeded("other.weight", spec, 0, 0.02))
    # Of 2000 numbers the standard deviation is off by 1.6 % itself.
    assert abs(float(one.std()) - 0.02) < 0.002
    waves = seeded("input wave", Spec("complex64", (2000,)), 0, 0.5)
    assert (waves.dtype, waves.shape) == (torch.complex64, (2000,))
    for part in (waves.real, waves.imag):
        assert part.std() == pytest.approx(0.5, rel=0.1)
    assert not torch.equal(waves.real, waves.imag)
    scales = seeded("norm.weight", Spec("float32", (2000,)), 0, 0.02)
    assert abs(float(scales.mean()) - 1) < 0.01


def test_rounding_is_told_from_mistakes():
    """Half of the digits: 2^-11.5 of float32's 23 bits, 2^-3.5 of bfloat16's 7."""
    assert tolerance_of(["float32", "int64"], 2.0) == pytest.approx(2 * 2**-11.5)
    assert tolerance_of(["float32", "bfloat16"], 1.0) == pytest.approx(2**-3.5)


def test_a_device_is_found_again_from_what_its_ops_take():
    graph = small("llama-3.2-1b").graph
    device = Device(
        "made-up", "", False, {"float32": 3e9, "bool": 3e9, "int64": 3e9}, 5e9, launch_seconds=2e-6
    )
    times = time_ops(graph, device)
    found = fit_device(graph, [{op: t.seconds or 0.0 for op, t in enumerate(times.ops)}])
    assert found.peak_flops_per_second == pytest.approx(3e9, rel=1e-6)
    assert found.memory_bandwidth_bytes_per_second == pytest.approx(5e9, rel=1e-6)
    assert found.launch_seconds == pytest.approx(2e-6, rel=1e-6)


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    """Two processes of its own; then the link and the devices that it has measured predict."""
    monkeypatch.chdir(tmp_path)
    sizes = {**SMALL["llama-3.2-1b"], "hidden_size": 256, "intermediate_size": 256}
    command = ["verify", "llama-3.2-1b", "--seq", "64", "--runs", "2"]
    for key, value in sizes.items():
        command += ["--set", f"{key}={value}"]
    first = invoke(*command, "--policy", "offload-linear", "--calibrate", "here")
    assert first.returncode == 0, first.stderr
    assert "equal" in first.stdout
    devices = ["--home", "here/tee.toml", "--accel", "here/gpu.toml", "--link", "here/link.toml"]
    second = invoke(*command, "--policy", "fuse-attention", *devices, "--json")
    assert second.returncode == 0, second.stderr
    (row,) = json.loads(second.stdout)["runs"]
    assert row["bytes_equal"] is True
    assert row["calls_predicted"] == row["calls_measured"] == 12
    assert row["total_payload_bytes_predicted"] == row["total_payload_bytes_measured"]
    link = load_link("here/link.toml")  # a busy machine may hide what a byte takes
    assert (row["seconds_predicted"] is None) == (None in map(link.payload_rate, WAYS))
    assert row["max_abs_difference"] < 1e-4
    assert Path(row["measured_calls"]).is_file()
    rows = invoke(
        "query",
        "SELECT policy, count(*), sum(sent_wire_bytes + received_wire_bytes) "
        "FROM measured_calls GROUP BY ALL ORDER BY policy",
        "--trace",
        Path(row["measured_calls"]).parents[4],
        "--json",
    )
    assert tuple(json.loads(rows.stdout)["rows"][0].values()) == (
        "fuse-attention",
        12,
        row["total_wire_bytes_measured"],
    )
    sums = invoke(
        "query",
        "SELECT sum(seconds) AS seconds, sum(accelerator_seconds) AS accelerator_seconds, "
        "max(abs(seconds + accelerator_seconds - call_seconds)) AS off FROM measured_calls "
        "WHERE policy = 'fuse-attention'",
        "--trace",
        Path(row["measured_calls"]).parents[4],
        "--json",
    )
    (measured,) = json.loads(sums.stdout)["rows"]
    assert measured.pop("off") < 1e-9
    assert {f"{key}_measured": pytest.approx(row[f"{key}_measured"]) for key in measured} == {
        f"{key}_measured": value for key, value in measured.items()
    }
    fitted = invoke("calibrate", row["measured_calls"], "--out", "again.toml")
    assert fitted.returncode == 0, fitted.stderr
    again = load_link("again.toml")
    assert (again.sent_message_framing_bytes, again.received_tensor_framing_bytes) == (24, 24)
