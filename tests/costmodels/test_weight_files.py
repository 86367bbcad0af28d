"""Bytes by tensor out of files' headers, against files that are written by hand."""

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

import cutedge
from costmodels.limits import describe
from costmodels.weight_files import stored_as
from costmodels.weights import load_weights, stored
from tests.support.inprocess import invoke
from tests.support.weights import KINDS, LLAMA, MODELS, by_name, decoded, gguf, safetensors
from tracer.errors import InputError
from tracer.graph import OpGraph, Role
from tracer.summary import parameter_bytes

NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}


def called(name: str) -> str:
    """What llama.cpp calls a tensor of a checkpoint."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+?)(?:\.weight)?", name)
    assert match is not None
    block = f"blk.{match[1]}." if match[1] else ""
    return f"{block}{NAMES[match[2]]}.weight"


def in_q4_k_m(graph: OpGraph, model: str) -> dict[str, tuple[tuple[int, ...], int]]:
    return {
        called(t.name): (t.shape, KINDS[by_name(t.name, t.shape, model)])
        for t in graph.tensors
        if t.role is Role.PARAMETER and t.alias_of is None
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral", "llama", "tied"])
@pytest.mark.few(1)
def test_a_gguf_file_says_what_each_tensor_takes(model: str, tmp_path: Path) -> None:
    plain = decoded(MODELS[model])
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(gguf(in_q4_k_m(plain, model)))
    read, ruled = stored_as(plain, file), stored(plain, load_weights("q4_k_m"))
    assert read.tensors == ruled.tensors
    assert (read.meta.weights, read.meta.weights_other) == ("model-Q4_K_M.gguf", "")


@pytest.mark.slow
def test_what_a_gguf_file_has_beside_is_said(tmp_path: Path) -> None:
    plain = decoded(LLAMA)
    tensors = in_q4_k_m(plain, "llama") | {"blk.0.attn_rot.weight.x": ((64,), 0)}
    halves = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
    files = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        file.write_bytes(gguf(half))
    read = stored_as(plain, files[0])
    whole = parameter_bytes(stored(plain, load_weights("q4_k_m")))
    assert parameter_bytes(read) == pytest.approx(whole, rel=1e-3)


def checkpoint(graph: OpGraph) -> dict[str, tuple[tuple[int, ...], int]]:
    """fp8 with a scale beside each projection; experts one by one; one head more than is read."""
    found: dict[str, tuple[tuple[int, ...], int]] = {"mtp.head.weight": ((7,), 14)}
    for t in graph.tensors:
        if t.role is not Role.PARAMETER or t.alias_of is not None:
            continue
        numel = prod(t.shape)
        if "experts" in t.name:
            experts, outputs = t.shape[0], t.shape[1]
            parts = ("w1", "w3") if "up" in t.name else ("w2",)
            for n in range(experts):
                for part in parts:
                    name = t.name.rpartition(".")[0] + f".{n}.{part}.weight"
                    found[name] = ((outputs,), numel // experts // len(parts))
        elif "_proj" in t.name:
            found[t.name] = (t.shape, numel)
            found[t.name + "_scale_inv"] = ((1,), 4)
        else:
            found[t.name] = (t.shape, 2 * numel)
    return found


@pytest.mark.slow
def test_an_index_says_what_each_tensor_takes_with_its_scales(tmp_path: Path) -> None:
    plain = decoded(MODELS["mixtral"])
    tensors = checkpoint(plain)
    shards = {f"m-{n}.safetensors": dict(list(tensors.items())[n::3]) for n in range(3)}
    for name, some in shards.items():
        (tmp_path / name).write_bytes(safetensors(some))
    index = tmp_path / "model.safetensors.index.json"
    places = {tensor: name for name, some in shards.items() for tensor in some}
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    read = stored_as(plain, index)
    assert read.meta.weights_other == "14 bytes of the file are of no parameter here"
    for t in read.tensors:
        if t.role is Role.PARAMETER and t.alias_of is None:
            size = 1 if "_proj" in t.name else 2
            scale = 4 if "self_attn" in t.name else 0
            assert t.bytes == size * prod(t.shape) + scale, t.name
    (tmp_path / "m-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"m-1.safetensors is not beside it.*9 bytes"):
        stored_as(plain, index)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.gguf", lambda g: b"GGUX", "is no .gguf file"),
        ("a.gguf", lambda g: gguf(in_q4_k_m(g, "llama"))[:-9], "or its header is cut"),
        ("a.gguf", lambda g: gguf({}, version=1), "GGUF version 1"),
        ("a.gguf", lambda g: gguf({}), "weights for"),
        ("a.safetensors", lambda g: b"\x00", "is no .safetensors file"),
        ("a.safetensors", lambda g: safetensors({}), "has no model.embed_tokens.weight"),
        ("a.safetensors.index.json", lambda g: b"{}", "has no weight_map"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_model_is_said(
    name: str, content: Callable[[OpGraph], bytes], said: str, tmp_path: Path
) -> None:
    plain = decoded(LLAMA)
    (tmp_path / name).write_bytes(content(plain))
    with pytest.raises(InputError, match=re.escape(said)):
        stored_as(plain, tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        stored_as(plain, tmp_path / "no" / name)


@pytest.mark.slow
def test_the_command_takes_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    config = tmp_path / "m.json"
    config.write_text(json.dumps({**LLAMA, "num_hidden_layers": 1}))
    invoke("trace", config, "--phase", "decode", "--past", "16", "--out", folder)
    file = tmp_path / "x.gguf"
    plain = cutedge.load(folder).graph
    file.write_bytes(gguf(in_q4_k_m(plain, "llama")))
    done = invoke("cost", folder, "--weights", file, "--json")
    assert done.returncode == 0, done.stderr
    (cost,) = json.loads(done.stdout)["costs"]
    assert cost["weights"] == "x.gguf"
    assert cost["parameter_bytes"] == parameter_bytes(stored(plain, load_weights("q4_k_m")))


# --- limits ---------------------------------------------------------------------------------------


def test_limits_read_weights_as_they_are_stored() -> None:
    plain, packed = (cutedge.limits("edge-10m", weights=name, prompt=64) for name in (None, "q8_0"))
    bits = {f"{n}": cutedge.limits("edge-10m", weight_bits=n, prompt=64) for n in (16, 8.5)}
    assert plain.figures == bits["16"].figures
    # Linears of 34 bytes for 32 weights, and biases of 4 each.
    graph = cutedge.trace("edge-10m", phase="decode", past=16).stored("q8_0").graph
    want = describe(graph, in_bytes=True).stored_params
    assert packed.about["weights"] == "q8_0"
    assert packed.about["weight_bits"] == pytest.approx(8.5, rel=0.02)
    assert packed.about["weight_bits"] * packed.figures["stored_params"] == 8 * want
    assert packed.figures["read_ms"] == pytest.approx(bits["8.5"].figures["read_ms"], rel=0.02)
    assert packed.figures["compute_ms_fine"] == plain.figures["compute_ms_fine"]


def test_limits_take_one_way_to_say_it() -> None:
    with pytest.raises(InputError, match="give --weights or --weight-bits, not both"):
        cutedge.limits("edge-10m", weights="q8_0", weight_bits=8)
    made = cutedge.limits("edge-10m", kv_dtype="q8_0")
    assert made.about["kv_bits"] == 8.5
