"""Engines: launches that run ahead of the work or come before it, shares of a device, their files."""

from dataclasses import replace

import pytest

import cutedge
from costmodels.devices import Device, load_device
from costmodels.engines import PHYSICAL, Engine, engine_names, load_engine
from costmodels.fused import strides
from costmodels.many import Over, op_groups, run_times
from costmodels.roofline import Rates, shares, time_ops
from tests.support.inprocess import invoke
from tracer.errors import InputError

CARD = Device(
    name="card",
    description="",
    trusted=False,
    peak_flops_per_second={"float32": 1e12},
    memory_bandwidth_bytes_per_second=1e11,
)
EAGER = Engine("slow", "", "eager", {"eager": 1e-3}, step_seconds=0.5)
AHEAD = Engine("quick", "", "eager", {"eager": 1e-9}, kernel_seconds=1e-6)
FUSED = Engine("fine", "", "fused", {"fused": 1e-6}, attention_seconds=1e-5)
COPIES = replace(AHEAD, copy_ratio={"card": 0.01})


def traced(model, **sizes):
    return cutedge.trace(model, **sizes).graph


@pytest.fixture(scope="module")
def model():
    return traced("edge-10m", phase="decode", past=64)


def working(graph):
    return [op for op in graph.ops if op.cost.read_bytes or op.cost.write_bytes]


def test_a_run_takes_the_greater_of_launches_and_work(model):
    work = time_ops(model, CARD)
    bound = time_ops(model, CARD, engine=EAGER)
    ops = len(working(model))
    # Every launch is longer than its op, and the step's own time comes on top.
    assert bound.seconds == pytest.approx(ops * 1e-3 + 0.5)
    assert {time.bound for time in bound.ops if time.seconds} == {"overhead"}
    # Launches of a nanosecond are hidden: each kernel has its work and what it takes beside.
    ahead = time_ops(model, CARD, engine=AHEAD)
    assert ahead.seconds == pytest.approx(work.seconds + ops * 1e-6)
    # Replayed, a launch comes before each op.
    graph = replace(AHEAD, execution="graph", launch_seconds={"graph": 1e-9})
    assert time_ops(model, CARD, engine=graph).seconds == pytest.approx(ahead.seconds + ops * 1e-9)


def test_each_call_waits_for_its_own_launches(model):
    """Launches run ahead within a call alone: the sum over calls is what a placement takes."""
    from partition.accounting import steps_of
    from partition.run import runs_of
    from partition.stored import kept_on

    split = cutedge.trace("edge-10m", phase="decode", past=64).partition(
        "fuse-attention", home="a=rtx-4090", accel="b=rtx-4090", engine="hf-eager"
    )
    graph, placement = split.trace.graph, split.split.placement
    times = split.setting.times["b"]
    launch = times.engine.launch(times.device)
    runs = runs_of(placement, steps_of(graph, placement), {})
    rates = Rates(times.device, times.engine)
    expected = 0.0
    for call in split.split.traffic.calls:
        ops = [graph.ops[op] for op in call.ops if graph.ops[op] in working(graph)]
        work = sum(
            max(
                rates.compute_seconds(op.dtype, op.cost.flops),
                rates.memory_seconds(op.cost.read_bytes + op.cost.write_bytes),
            )
            + times.engine.kernel_seconds
            for op in ops
        )
        assert len({runs[op.id] for op in ops}) <= 1
        expected += max(work, launch * len(ops))
    # The values are kept where they are multiplied, each append a launch of its call; the keys are
    # kept at home, where they are scaled.
    layers = 4
    kept = layers
    assert sum(device == "b" for _, device in kept_on(graph, placement)) == kept
    assert split.split.compute_seconds["b"] == pytest.approx(expected + kept * launch, rel=1e-6)


def test_what_is_kept_of_state_is_in_partition_as_in_cost():
    """A decode copies its cache to append to it, whoever asks what that takes."""
    traced_model = cutedge.trace("edge-10m", phase="decode", past=64)
    (cost,) = traced_model.costs("rtx-4090")
    for engine in (None, "hf-eager", "vllm"):
        (cost,) = traced_model.costs("rtx-4090", engine=engine)
        alone = traced_model.partition("all-home", home="rtx-4090", engine=engine)
        assert alone.split.home_seconds == pytest.approx(cost.time.seconds, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [EAGER, AHEAD, COPIES, FUSED, PHYSICAL.by("fused")])
@pytest.mark.few(2)
def test_many_sizes_at_once_are_as_one(model, engine):
    import numpy as np

    sizes = {"batch": (1, 3), "past": (64, 500), "seq": (1, 1), "source": (0, 0)}
    over = Over({name: np.array(many, np.int64) for name, many in sizes.items()})
    runs = tuple(("card", 1) for _ in model.ops)
    found = run_times(model, over, op_groups(model, over), "card", runs, Rates(CARD, engine))
    for number, (batch, past) in enumerate(((1, 64), (3, 500))):
        there = traced("edge-10m", phase="decode", past=past, batch=batch)
        wanted = time_ops(there, CARD, engine=engine).seconds - engine.step_seconds
        assert found[number] == pytest.approx(wanted, rel=1e-9)


def test_tables_sum_to_the_run(model):
    for engine in (EAGER, AHEAD, FUSED):
        time = time_ops(model, CARD, engine=engine)
        by_kind = shares(model, time, lambda op: op.kind.value)
        assert sum(share.seconds for share in by_kind) == pytest.approx(time.seconds)
        moved = sum(share.traffic_bytes for share in by_kind)
        assert moved == sum(op.moved_bytes for op in time.ops)


def test_half_of_the_share_is_reached_at_half():
    engine = Engine("e", "", kernel_seconds=2e-6, bandwidth_ratio={"card": 0.8, "any": 0.5})
    half = 2e-6 * 0.8 * 1e11
    assert engine.share(1e11, 0.8, half) == pytest.approx(0.4)
    rates = Rates(CARD, engine)
    taken = rates.memory_seconds(half) + rates.kernel_seconds(is_attention=False)
    assert half / taken == pytest.approx(0.4 * 1e11)
    other = replace(CARD, name="other")
    assert Rates(other, engine).memory_seconds(5e10) == pytest.approx(1.0)


def test_copies_in_strides_have_a_share_of_their_own():
    """A cast keeps the bandwidth's share, ``cat`` and ``repeat_kv`` have theirs; fused ones none."""
    engine = Engine("e", "", bandwidth_ratio={"any": 0.8}, copy_ratio={"card": 0.2})
    assert engine.bytes_per_second(CARD, strided=True) == pytest.approx(0.2 * 1e11)
    assert engine.bytes_per_second(CARD) == pytest.approx(0.8 * 1e11)
    other = replace(CARD, name="other")
    assert engine.bytes_per_second(other, strided=True) == engine.bytes_per_second(other)
    fused = replace(engine, execution="fused")
    assert fused.bytes_per_second(CARD, strided=True) == fused.bytes_per_second(CARD)
    graph = traced("edge-10m", phase="decode", past=64)
    names = {op.target for op in graph.ops if strides(graph, op)}
    assert "aten.cat.default" in names
    assert not any("_to_copy" in name for name in names)


@pytest.mark.parametrize("name", engine_names())
def test_shipped_engines_name_their_sources(name):
    engine = load_engine(name)
    assert engine.execution in engine.launch_seconds
    assert all(text.strip() for text in engine.sources.values())
    assert load_engine(name.upper()) == engine
    for device in ("a100-80g", "rtx-4090", "tee-tdx"):
        assert 0 < (engine.bytes_per_second(load_device(device)) or 0) < 4e12


GOOD = """
description = "mine"
execution = "eager"
[launch_seconds.eager]
value = 1e-5
source = "measured"
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace('"eager"\n', '"lazy"\n', 1), "execution 'lazy' is not one of eager"),
        (GOOD.replace('"eager"\n', "0\n", 1), "execution 0 is not one of eager"),
        (GOOD.replace("launch_seconds.eager", "launch_seconds.graph"), "it executes so"),
        (GOOD.replace('source = "measured"', ""), "source"),
        (GOOD + "[kernel]\nvalue = 1\nsource = 'x'", "key 'kernel' lacks its unit"),
        (GOOD + "[bandwidth_ratio.any]\nvalue = 1.5\nsource = 'x'", "at most 1"),
        ("bandwidth_ratio = 0.5" + GOOD, "a table for each is wanted"),
        (GOOD.replace("mine", " "), "description must be text"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        load_engine(str(path))
    assert "mine.toml" in str(error.value)


def test_engines_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(GOOD)
    assert invoke("trace", "edge-10m", "--phase", "decode", "--past", "64").returncode == 0
    found = invoke("cost", "--device", "a100-80g", "--engine", "mine.toml", "--json")
    assert '"engine": "mine"' in found.stdout
    again = invoke(
        "partition", "--home", "a=a100-80g", "--accel", "b=a100-80g", "--engine", "b=mine.toml"
    )
    assert "machine=a%3Da100-80g+b%3Da100-80g@zmq-ipc, b%3Dmine" in again.stdout
    for words, said in (
        (["cost", "--engine", "vlm"], "vllm"),
        (["cost", "--engine", "hf-eager", "--execution", "fused"], "for eager alone"),
        (["partition", "--engine", "vllm"], "no device here has figures"),
        (["partition", "--home", "tee-tdx", "--engine", "x=vllm"], "--engine x=vllm"),
    ):
        wrong = invoke(*words)
        assert wrong.returncode == 2
        assert said in wrong.stderr


@pytest.mark.slow
def test_a_generation_on_one_device_speaks_of_that_alone():
    made = cutedge.generate(
        "edge-10m", prompt=8, new=4, policy="all-home", home="a100-80g", engine="hf-eager"
    )
    assert made.summary["machine"] == "a100-80g, hf-eager"
    steps = [step.run_seconds for step in made.steps]
    (cost,) = cutedge.trace("edge-10m", phase="decode", past=8).costs("a100-80g", engine="hf-eager")
    assert steps[0] == pytest.approx(cost.time.seconds, rel=1e-9)
