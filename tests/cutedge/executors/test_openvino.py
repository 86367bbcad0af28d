"""OpenVINO's affinities: set on the ops of a converted model, and split by its HETERO plugin."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import cutedge
from cutedge.executors import openvino as ours
from tests.support import tiny
from tracer.errors import InputError

GIVEN = """affinities = {
    "embed": "CPU",
    "blocks": "CPU",
    "blocks.1": "GPU",
    "blocks.1.norm": "CPU",
    "blocks.3.up": "GPU",
    "head": "GPU",
}
"""
AWAY = {"blocks.1", "blocks.1.up", "blocks.1.down", "blocks.3.up", "head"}


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace(tiny.Tiny(), tiny.IDS)


def written(trace: cutedge.Trace, given: str = GIVEN, **options: Any) -> str:
    return trace.partition(cutedge.placement(given), **options).words_for("openvino").text


def run(text: str) -> dict[str, Any]:
    """What a file that was written defines."""
    said: dict[str, Any] = {}
    exec(text, said)
    return said


def test_modules_are_where_the_inner_entry_has_them(trace: cutedge.Trace):
    at = ours.place(trace.graph, ours.parse(GIVEN), ("tee", "gpu")).devices
    assert {op.module_path for op in trace.graph.ops if at[op.id] == "gpu"} == AWAY
    assert run(written(trace))["affinities"] == ours.parse(GIVEN)  # no fewer entries say it


def test_accelerators_have_the_names_of_openvino(trace: cutedge.Trace):
    given = 'affinities = {"embed": "CPU", "blocks": "GPU.1", "blocks.2": "NPU", "head": "GPU.0"}'
    split = trace.partition(cutedge.placement(given), accel=["b", "npu", "a"])
    devices = {op.module_path: split.split.placement.devices[op.id] for op in trace.graph.ops}
    assert [devices[p] for p in ("blocks.1", "blocks.2", "head")] == ["a", "npu", "b"]
    assert 'for "HETERO:GPU.0,GPU.1,NPU,CPU"' in split.words_for("openvino").text
    for alone in ("GPU", "GPU.0", "NPU"):
        one = written(trace, f'affinities = {{"embed": "{alone}", "blocks": "CPU", "head": "CPU"}}')
        assert run(one)["affinities"]["embed"] == "GPU"


@dataclass(eq=False)
class Node:
    """As much of an OpenVINO op as its documentation uses to set affinities."""

    friendly_name: str
    number: int
    readers: list["Node"] = field(default_factory=list)
    rt_info: dict[str, str] = field(default_factory=dict)

    def get_name(self) -> str:
        return str(self.number)

    def get_rt_info(self) -> dict[str, str]:
        return self.rt_info

    def outputs(self) -> list["Node"]:
        return [self]

    def get_target_inputs(self) -> set["Node"]:
        return {*self.readers}

    def get_node(self) -> "Node":
        return self


@dataclass
class Converted:
    """A chain of ops."""

    ops: Sequence[Node]

    def get_ordered_ops(self) -> Sequence[Node]:
        return self.ops


def test_ops_of_a_converted_model_get_the_device_of_their_module(trace: cutedge.Trace):
    names = {  # as OpenVINO calls what it converts
        "ids": "CPU",
        "self.embed.weight": "CPU",
        "__module.embed/aten::embedding/Gather": "CPU",
        "__module.blocks.1.norm/aten::layer_norm/MVN": "CPU",
        "Constant_3259": "GPU",  # of the op that reads it
        "__module.blocks.1.up/aten::linear/MatMul": "GPU",
        "__module.blocks.1/aten::relu/Relu": "GPU",
        "__module.blocks.3.up/aten::linear/Add": "GPU",
        "__module.blocks.3/aten::add/Add": "CPU",
        "Result_214": "CPU",
    }
    ops = [Node(name, number) for number, name in enumerate(names)]
    for op, reader in pairwise(ops):
        op.readers.append(reader)
    run(written(trace))["set_affinities"](Converted(ops))
    assert {op.friendly_name: op.rt_info["affinity"] for op in ops} == names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("affinities = {", "affinities: the file is no Python"),
        ("affinities = {}", "affinities is empty"),
        ("affinities = dict(head=open('x'))", "affinities is no dictionary of plain values"),
        ("affinities = " + "[" * 5000, "affinities: the file is no Python"),
        ('affinities = {"head": 1}', "'head' is on 1; write a module and a device"),
        ('affinities = {"heat": "GPU"}', "'heat' is no module of Tiny that does anything. Did"),
        ('affinities = {"head": "GPU"}', "module 'embed' has no device"),
        ('affinities = {"head": "GPU.1"}', "'head' is on 'GPU.1', and here are CPU, GPU"),
        ('affinities = {"head": "gpu"}', "'head' is on 'gpu', and here are CPU, GPU"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(trace: cutedge.Trace, given: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        written(trace, given)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the conversion
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_hetero_splits_as_it_is_told(trace: cutedge.Trace, tmp_path: Path, monkeypatch: Any):
    """A second device that is there on any machine is ``AUTO``: it chooses the CPU itself."""
    import openvino as ov
    import torch

    monkeypatch.chdir(tmp_path)  # where it draws what it split
    monkeypatch.setenv("OPENVINO_HETERO_VISUALIZE", "1")
    model = ov.convert_model(tiny.Tiny().eval(), example_input=tiny.IDS)
    run(written(trace))["set_affinities"](model)
    for op in model.get_ops():
        told = op.get_rt_info()["affinity"].value
        op.get_rt_info()["affinity"] = {"CPU": "CPU", "GPU": "AUTO"}[told]
    compiled = ov.Core().compile_model(model, "HETERO:AUTO,CPU")
    answer = torch.tensor(compiled(tiny.IDS.numpy())[0])
    torch.testing.assert_close(answer, tiny.Tiny()(tiny.IDS), rtol=1e-4, atol=1e-5)
    (drawn,) = tmp_path.glob("hetero_subgraphs_*.dot")
    found = re.findall(r'label="__module\.([^/"]+)/[^"]*?device=(\w+)"', drawn.read_text())
    assert {path for path, device in found if device == "AUTO"} == AWAY
    assert {path for path, device in found if device == "CPU"} == {
        op.module_path for op in trace.graph.ops if "aten" in op.target
    } - AWAY
