"""Executors' placements: counted like a policy, held to the optimum, written in their words."""

import json
import re

import pytest

import cutedge
from cutedge.executors import EXECUTORS
from tests.support.inprocess import invoke
from tracer.errors import CutedgeError, InputError

MACHINE = {"home": "tee-tdx", "accel": "rtx-4090", "link": "pcie4-x16"}


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace("edge-10m", seq=8)


def test_it_is_counted_like_any_policy(trace):
    """One cut after a layer is what ``layers`` makes too: here its best one is after the third."""
    given = trace.partition(cutedge.placement("VLLM_PP_LAYER_PARTITION=3,1"))
    assert given.policy == "placement-vllm"
    best = trace.partition("layers", granularity="layer")
    where = best.split.placement.devices
    assert given.summary["calls"] == 1
    assert given.split.placement.accelerators == ("gpu",)
    layers = {op.layer for op in trace.graph.ops if given.split.placement.devices[op.id] == "gpu"}
    assert layers == {3, None}
    assert {trace.graph.ops[n].layer for n, d in enumerate(where) if d == "gpu"} <= {
        0,
        1,
        2,
        3,
        None,
    }


def test_the_optimum_beside_it_is_recounted(trace):
    split = trace.partition(cutedge.placement("VLLM_PP_LAYER_PARTITION=3,1"), **MACHINE)
    beside = split.beside_optimum
    fastest = trace.partition("fastest", granularity="layer", **MACHINE)
    assert beside.unit == "seconds"
    assert beside.value == pytest.approx(split.summary["run_seconds"])
    assert beside.optimum == pytest.approx(fastest.summary["run_seconds"])
    assert beside.proven
    gained = sum(choice.saved for choice in beside.choices)
    assert 0 < gained <= beside.value - beside.optimum + 1e-12
    assert [c.saved > 0 for c in beside.choices] == [True] * len(beside.choices)
    assert trace.partition("fastest", **MACHINE).beside_optimum is None


def test_in_bytes_where_no_seconds_are_known(trace):
    split = trace.partition(cutedge.placement("VLLM_PP_LAYER_PARTITION=3,1"))
    best = trace.partition("min-cut", granularity="layer")
    beside = split.beside_optimum
    assert (beside.unit, beside.value) == ("bytes", split.summary["total_payload_bytes"])
    assert beside.optimum == best.summary["total_payload_bytes"]


def test_the_best_has_nothing_better_beside_it(trace):
    whole = cutedge.placement('{"": 0}')
    beside = trace.partition(whole, **MACHINE).beside_optimum
    assert (beside.choices, beside.commands) == ((), ())
    assert beside.value <= beside.optimum * (1 + 1e-9)


def test_weights_that_are_sent_are_a_choice(trace):
    """accelerate's ``cpu`` lies at home and is sent: that is what such a placement loses by."""
    entries = {"model": 0, "lm_head": 0, "model.decoder.layers.2": "cpu"}
    given = json.dumps({"device_map": entries, "main_device": 0})
    split = trace.partition(cutedge.placement(given), **MACHINE)
    sent = {trace.graph.ops[op].layer for op in split.split.placement.streams}
    assert sent == {2}
    (choice,) = split.beside_optimum.choices[:1]
    assert "linear" in choice.ops
    assert split.words_for("accelerate").text.count('"cpu"') == 1


def test_it_is_told_where_it_does_not_fit(trace):
    given, fits = cutedge.placement("VLLM_PP_LAYER_PARTITION=1,3"), {"memory": "gpu=1GiB"}
    assert trace.partition(given, **fits).warnings == []
    (said,) = trace.partition(given, memory="gpu=1MiB").warnings
    assert re.fullmatch(r"it takes [\d.]+ MiB at gpu, which has 1.0 MiB: it does not fit", said)


def test_what_an_executor_cannot_do_is_told_with_its_price(trace):
    split = trace.partition("offload-linear")
    for name in ("accelerate", "vllm", "torch"):
        with pytest.raises(CutedgeError, match=f"{name} cannot carry out offload-linear") as error:
            split.words_for(name)
        assert error.value.exit_code == 1
        words = split.words_for(name, nearest=True)
        again = trace.partition(cutedge.placement(words.text))
        assert words.nearest_payload_bytes == again.summary["total_payload_bytes"]
        assert words.payload_bytes == split.summary["total_payload_bytes"]
        assert not words.exact
        assert re.match(r"model\.decoder[\w.]*: \w+.* on (gpu|tee), not", words.stops[0])
        assert again.words_for(name).exact
    with pytest.raises(InputError, match=r"--for 'vlm' is not one of accelerate, vllm.*mean vllm"):
        split.words_for("vlm")
    with pytest.raises(
        CutedgeError, match=r"all-home has no accelerator|cannot carry out all-home"
    ):
        trace.partition("all-home").words_for("vllm")
    with pytest.raises(CutedgeError, match="slalom masks ops"):
        trace.partition("slalom").words_for("vllm")


def test_what_is_no_placement_is_said_in_a_line(trace, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{")
    for given, said in (
        ("nowhere.json", "no such file, and no words of accelerate, vllm, torch, onnxruntime"),
        (str(tmp_path / "bytes"), "the file is no text"),
        (str(tmp_path), "no such file"),
        ("VLLM_PP_LAYER_PARTITION=", "write the layers of each rank"),
        ("x" * 5000, "no such file"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            cutedge.placement(given)
    for given, said in (
        ("VLLM_PP_LAYER_PARTITION=3,2", "has 5 layers, and edge-10m has 4"),
        ("VLLM_PP_LAYER_PARTITION=1,2,1", "is of 3 ranks, and here are tee, gpu"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            trace.partition(cutedge.placement(given))


def test_executors_say_what_they_keep_together():
    names = "accelerate vllm torch onnxruntime openvino executorch llama.cpp"
    assert list(EXECUTORS) == names.split()
    assert all(executor.units for executor in EXECUTORS.values())


@pytest.mark.slow
def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("trace", "edge-10m", "--seq", "8")
    words = "VLLM_PP_LAYER_PARTITION=3,1"
    machine = ("--home", "tee-tdx", "--accel", "a=rtx-4090", "--link", "pcie4-x16")
    said = invoke("partition", "--placement", words, *machine).stdout
    assert "dearest: " in said
    better = re.findall(r"better: cutedge (.*)", said)
    assert better[0].endswith("--home tee-tdx --accel a=rtx-4090 --link pcie4-x16")
    assert invoke("export", "placement", "--for", "vllm").stdout == f"{words}\n"
    for command in better:
        done = invoke(*command.split(), *(["--nearest"] if "export" in command else []))
        assert done.returncode == 0
    said = json.loads(invoke("partition", "--placement", words, *machine, "--json").stdout)
    assert said["beside_optimum"]["commands"] == [f"cutedge {command}" for command in better]
    two = ("--placement", words, "--placement", "VLLM_PP_LAYER_PARTITION=1,3")
    rows = json.loads(invoke("compare", "--policy", "min-cut", *two, "--json").stdout)
    names = [row["policy"] for row in rows["partitions"]]
    assert names[-3:] == ["min-cut", "placement-vllm", "placement-vllm 2"]
    asked = ("export", "placement", "--for", "vllm", "--policy")
    assert invoke(*asked, "placement-vllm 2", "--out", "x").stdout.endswith("written to x\n")
    assert (tmp_path / "x").read_text() == "VLLM_PP_LAYER_PARTITION=1,3\n"
    invoke("partition")
    invoke("partition", "--placement", "VLLM_PP_LAYER_PARTITION=2,2")  # the last of several
    assert invoke("export", "placement", "--for", "vllm").stdout == "VLLM_PP_LAYER_PARTITION=2,2\n"
    done = invoke(*asked, "offload-linear")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    done = invoke(*asked, "offload-linear", "--nearest")
    assert done.stdout.startswith("VLLM_PP_LAYER_PARTITION=")
    assert done.stderr.startswith("warning: vllm cannot carry out offload-linear")
