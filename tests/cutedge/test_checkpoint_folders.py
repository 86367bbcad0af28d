"""A folder with a config and weights: the trace takes the bytes of each tensor as they are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import cutedge
from tests.support.inprocess import invoke
from tests.support.weights import safetensors
from tracer.graph import OpGraph, Role

CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}


def parameters(graph: OpGraph) -> dict[str, int]:
    owners = (t for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None)
    return {t.name: t.bytes for t in owners}


def written(folder: Path, files: int) -> dict[str, int]:
    """A checkpoint in bfloat16 with norms in float32 and one projection in eight bits, with a
    scale; what each parameter takes."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    plain = parameters(cutedge.trace(dict(CONFIG), seq=8).graph)
    takes: dict[str, int] = {}
    held: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, size in plain.items():
        takes[name] = size if "norm" in name else size // 2
        if name.endswith("0.mlp.up_proj.weight"):
            takes[name] = size // 4 + 4
            held[f"{name}_scale_inv"] = ((1,), 4)
            held[name] = ((size // 4,), size // 4)
        else:
            held[name] = ((takes[name],), takes[name])
    shards = {f"m-{n}.safetensors": dict(list(held.items())[n::files]) for n in range(files)}
    for name, some in shards.items():
        (folder / name).write_bytes(safetensors(some))
    if files > 1:
        places = {tensor: name for name, some in shards.items() for tensor in some}
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
    return takes


@pytest.mark.parametrize("files", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_trace_takes_the_bytes_of_each_tensor(files: int, tmp_path: Path) -> None:
    takes = written(tmp_path, files)
    traced = cutedge.trace(tmp_path, seq=8)
    assert parameters(traced.graph) == takes
    assert parameters(traced.at(seq=16).graph) == takes
    assert traced.warnings == ()
    # What computes, and in which dtype, is as without them.
    alone = cutedge.trace(dict(CONFIG), seq=8)
    assert [op.cost.flops for op in traced.graph.ops] == [op.cost.flops for op in alone.graph.ops]
    assert {op.dtype for op in traced.graph.ops} == {op.dtype for op in alone.graph.ops}
    # Another format takes their place, and so does another model.
    assert parameters(traced.stored("bfloat16").graph) != takes
    fewer = cutedge.trace(tmp_path, seq=8, overrides={"num_hidden_layers": 1})
    assert fewer.graph.meta.weights == ""
    assert "--set makes another model than the weights of" in fewer.warnings[0]


def test_weights_that_are_not_there_or_of_another_model_are_said(tmp_path: Path) -> None:
    written(tmp_path, 3)
    (tmp_path / "m-1.safetensors").unlink()
    done = invoke("trace", tmp_path, "--seq", "8", "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "the weights beside the config are not used:" in done.stderr
    assert "m-1.safetensors is not beside it" in done.stderr
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "m-2.safetensors").unlink()
    done = invoke("trace", tmp_path, "--seq", "8", "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "it is of another model than" in done.stderr
