"""ONNX Runtime's layer assignment: its rules as its documentation has them, and read by itself."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import cutedge
from cutedge.executors import onnxruntime as ours
from tests.support import tiny
from tracer.errors import CutedgeError, InputError

SETTING = "session.layer_assignment_settings"


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace(tiny.Tiny(), tiny.IDS)


def away(trace: cutedge.Trace, setting: str, devices: tuple[str, ...] = ("tee", "gpu")) -> set[str]:
    """The modules that are on the first accelerator."""
    at = ours.place(trace.graph, ours.parse(f"{SETTING}={setting}"), devices).devices
    return {op.module_path for op in trace.graph.ops if at[op.id] == devices[1]}


BLOCK = {"blocks.1", "blocks.1.norm", "blocks.1.up", "blocks.1.down"}


@pytest.mark.parametrize(
    ("setting", "there"),
    [
        ("cpu(embed., blocks., head.); gpu(blocks.1.)", set()),  # the first that matches counts
        ("gpu(blocks.1.); cpu(embed., blocks., head.)", BLOCK),
        ("gpu(blocks.1.); cpu(blocks, embed, head)", BLOCK),
        ("gpu( =blocks.1.up. ); cpu(embed., blocks., head.)", set()),  # "=" counts last
        ("gpu(=blocks.1.up.);cpu(embed.,blocks.0,blocks.2,blocks.3,head.)", BLOCK),  # rest: no rule
        ("cuda:0(blocks.1.);CPU(b,e,h)", BLOCK),
        ("CUDAExecutionProvider(blocks.1.);CPUExecutionProvider(b,e,h)", BLOCK),
    ],
)
def test_rules_place_modules(trace: cutedge.Trace, setting: str, there: set[str]):
    assert away(trace, setting) == there


def test_what_is_written_is_short_and_in_the_documented_form(trace: cutedge.Trace):
    """``device1(annotation1, annotation2); device2(...)``: the longest annotations first."""
    split = trace.partition(cutedge.placement(f"{SETTING}=gpu(blocks.1.up.);cpu(b,e,h)"))
    told = split.words_for("onnxruntime").text
    assert told == f"{SETTING}=gpu(blocks.1.up.); cpu(embed., blocks., head.)\n"
    config = f'"session_options": {{"{SETTING}": "{told.strip().partition("=")[2]}"}}'
    for spoken in (config, f'options.add_session_config_entry("{SETTING}", "gpu(h); cpu(e,b)")'):
        assert cutedge.placement(spoken).name == "placement-onnxruntime"


def test_several_accelerators_are_called_by_their_kind(trace: cutedge.Trace):
    words = f"{SETTING}=npu(blocks.1.); gpu(head.); cpu(embed., blocks.)"
    split = trace.partition(cutedge.placement(words), accel=["gpu", "npu"])
    assert split.words_for("onnxruntime").text.startswith(f"{SETTING}=npu(blocks.1.)")
    with pytest.raises(InputError, match="npu may be any of a, b"):
        trace.partition(cutedge.placement(words), accel=["a", "b"])
    with pytest.raises(CutedgeError, match="one device of a kind in a session"):
        trace.partition("offload-linear", accel=["a", "b"]).words_for("onnxruntime")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gpu", "'gpu' is no rule"),
        ("gpu(blocks", "'gpu(blocks' is no rule"),
        ("(blocks.)", "'(blocks.)' is no rule"),
        ("gpu( )", "has no rule"),
        ("gpu(head.); cpu(head.)", "has 'head.' twice"),
        ("gpu(heat.)", "the annotation 'heat.', which is its path and a dot. Did you mean head."),
        ("gpu(=head)", "the annotation 'head', which is its path and a dot. Did you mean head."),
        ("tpu(head.)", "'tpu' is no device: write cpu, gpu, cuda"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(trace: cutedge.Trace, setting: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        away(trace, setting)
    assert "\n" not in str(error.value)


def annotated(file: Path) -> Any:
    """The guide's lines: nodes of a model that torch exports get the path of their module."""
    import onnx
    import torch

    torch.onnx.export(tiny.Tiny().eval(), (tiny.IDS,), file, dynamo=True, verbose=False)
    model = onnx.load(file)
    for node in model.graph.node:
        scopes = next(p.value for p in node.metadata_props if p.key.endswith(".name_scopes"))
        node.metadata_props.add(key="layer_ann", value=ast.literal_eval(scopes)[-2] + ".")
    onnx.save(model, file)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="onnx, onnxscript and onnxruntime are not all installed",
)
def test_onnx_runtime_reads_the_rules(trace: cutedge.Trace, tmp_path: Path, capfd: Any):
    """It parses the same rules in the same order, maps those of its providers, and runs the model."""
    import onnxruntime as ort
    import torch

    model = annotated(tmp_path / "tiny.onnx")
    held = {
        p.value for node in model.graph.node for p in node.metadata_props if p.key == "layer_ann"
    }
    assert held == {f"{op.module_path}." for op in trace.graph.ops if "aten" in op.target}
    words = f"{SETTING}=cpu(blocks.1.up., head.); gpu(blocks.1.); cpu(embed., blocks.)"
    told = trace.partition(cutedge.placement(words)).words_for("onnxruntime").text.strip()
    options = ort.SessionOptions()
    options.log_severity_level = 0
    options.add_session_config_entry(*told.split("=", 1))
    session = ort.InferenceSession(
        tmp_path / "tiny.onnx", options, providers=["CPUExecutionProvider"]
    )
    log = capfd.readouterr().err
    rules = ours.parse(told)
    assert f"Parsed {len(rules)} annotation-based layering rules" in log
    for number, (device, annotation, _) in enumerate(rules):
        if device == "cpu":
            assert f"Layering Rule {number} ({device} -> {annotation}) mapped to EP" in log
        else:  # no provider here is of a GPU: it is told so, and falls to what there is
            assert f"rule {number} (device='{device}', annotation='{annotation}') could not" in log
    answer = session.run(None, {"ids": tiny.IDS.numpy()})[0]
    torch.testing.assert_close(torch.tensor(answer), tiny.Tiny()(tiny.IDS))
    for wrong in ("gpu", "gpu(blocks", "(blocks.)", "gpu(head.); cpu(head.)"):
        options.add_session_config_entry(SETTING, wrong)
        with pytest.raises(Exception, match="Invalid layering config"):
            ort.InferenceSession(tmp_path / "tiny.onnx", options)
