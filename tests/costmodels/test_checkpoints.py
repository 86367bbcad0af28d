"""How checkpoints are stored by their configs: bytes of a matrix by hand, and what is left."""

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.quantization_config import QuantizationMethod

import cutedge
from costmodels.checkpoints import storage_of
from cutedge._storage import as_published
from tests.support.inprocess import invoke
from tests.support.traces import captured
from tracer.errors import InputError
from tracer.graph import OpGraph, Role
from tracer.summary import parameter_bytes

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "float16",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}


def compressed(ignore: list[str], **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ignore,
    }


N = 256 * 256
METHODS: list[tuple[dict[str, Any], str, float]] = [
    # 4 bits; of 2 groups a row a scale of 2 bytes and a zero point of half; a number a column
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        "gptq-int4-g128",
        N / 2 + 256 * 2 * 2.5 + 256 * 4,
    ),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq-int8", N + 256 * 3 + 256 * 4),
    ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-int4-g64", N / 2 + 256 * 4 * 2.5),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", N + 256 * 4),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4", N / 2 + 4 * N / 64 + 64),
    # 8 bits for 64 weights, 4 bytes for 256 of those; tables of 16 and 256 and an offset
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        "nf4-double",
        N / 2 + N / 64 + 4 * N / 64 / 256 + 4 * (16 + 256 + 1),
    ),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block128", N + 4 * 2 * 2),
    ({"quant_method": "fp8"}, "fp8", N + 4),
    ({"quant_method": "fbgemm_fp8"}, "fp8-row", N + 4 * 256),
    (
        compressed(["lm_head"], num_bits=4, type="int", strategy="group", group_size=128),
        "int4-g128",
        N / 2 + 256 * 2 * 2,
    ),
    (
        compressed(["lm_head"], num_bits=8, type="float", strategy="channel", symmetric=True),
        "fp8-row",
        N + 256 * 2,
    ),
    (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        "nvfp4",
        N / 2 + N / 16 + 4,
    ),
    # an exponent of a byte a block
    (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        "fp8-block128",
        N + 2 * 2,
    ),
    ({"quant_method": "mxfp8", "weight_block_size": [1, 32]}, "fp8-block32", N + N / 32),
    ({"load_in_8bit": True}, "int8", N + 256 * 4),
    # a scale and a zero point of two bytes for 64 weights
    (
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}},
            "skip_modules": ["lm_head"],
        },
        "hqq-int4-g64",
        N / 2 + N / 64 * 4,
    ),
    ({"quant_method": "eetq", "weights": "int8"}, "int8-row", N + 256 * 2),
    ({"quant_method": "quanto", "weights": "float8"}, "float8-row", N + 256 * 2),
    # a scale of two bytes a row of 256; tables of 16 values and of 256 pairs, two bytes each
    (
        {"quant_method": "higgs", "bits": 4, "p": 2, "group_size": 256},
        "higgs-int4-g256",
        N / 2 + 256 * 2 + 2 * (16 + 2 * 256),
    ),
    ({"quant_method": "bitnet", "quantization_mode": "offline"}, "bitnet", N / 4 + 2),
    # two bytes for eight weights, a scale of two a row, a book of 65,536 entries of eight
    (
        {"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8},
        "aqlm-1x16",
        2 * N / 8 + 256 * 2 + 2 * 65536 * 8,
    ),
    # a scale and a bias of four bytes for 64 weights
    ({"quant_method": "metal", "bits": 4, "group_size": 64}, "metal-int4-g64", N / 2 + N / 64 * 8),
]


@pytest.mark.parametrize(("told", "name", "size"), METHODS)
def test_a_checkpoint_is_stored_as_its_config_says(
    told: dict[str, Any], name: str, size: float
) -> None:
    check_stored(kept(told), name, size)


@pytest.mark.slow
@pytest.mark.parametrize(("told", "name", "size"), METHODS)
def test_a_trace_of_a_config_is_stored_as_it_says(
    told: dict[str, Any], name: str, size: float
) -> None:
    config = {**LLAMA, "num_hidden_layers": 1, "quantization_config": told}
    traced = cutedge.trace(config, seq=8, dtype="config")
    assert traced.graph.meta.dtype == "float16"
    check_stored(traced.graph, name, size)
    assert not any("quantization" in warning for warning in traced.warnings)


def kept(told: dict[str, Any], config: Mapping[str, Any] = LLAMA) -> OpGraph:
    """The model as its checkpoint has it: captured once, whatever it is stored in."""
    dtype = config["torch_dtype"]
    plain = captured(dict(config), model="m", seq=8, dtype=dtype, symbolic=False).graph
    graph, unknown = as_published(plain, {**config, "quantization_config": told})
    assert unknown == ()
    return graph


def check_stored(graph: OpGraph, name: str, size: float) -> None:
    assert graph.meta.weights == name
    assert graph.meta.weights_other == "embedding head vector in float16"
    sizes = {t.name: t.bytes for t in graph.tensors if t.role is Role.PARAMETER}
    assert sizes["model.layers.0.self_attn.q_proj.weight"] == size
    for what, elements in (("lm_head", 96 * 256), ("model.embed_tokens", 96 * 256)):
        assert sizes[f"{what}.weight"] == 2 * elements
    assert sizes["model.norm.weight"] == 2 * 256


@pytest.mark.slow
def test_what_is_computed_in_and_counted_is_that_of_the_model_without() -> None:
    shallow = {**LLAMA, "num_hidden_layers": 1}
    bare = cutedge.trace(shallow, seq=8)
    told = METHODS[0][0]
    traced = cutedge.trace({**shallow, "quantization_config": told}, seq=8)
    assert bare.graph.meta.weights == ""
    assert [op.cost.flops for op in traced.graph.ops] == [op.cost.flops for op in bare.graph.ops]
    assert [t.dtype for t in traced.graph.tensors] == [t.dtype for t in bare.graph.tensors]
    # What is left takes the checkpoint's 2 bytes, also where float32 is computed in.
    sizes = {t.name: t.bytes for t in traced.graph.tensors}
    assert sizes["lm_head.weight"] == 2 * 96 * 256
    (own,), (asked,) = traced.costs("rtx-4090"), traced.costs("rtx-4090", weights="float32")
    assert own.summary["weights"] == "gptq-int4-g128"
    assert asked.summary["parameter_bytes"] == parameter_bytes(bare.graph)


def test_modules_that_are_left_are_those_that_are_named() -> None:
    lists = (
        ["lm_head", "model.layers.0.mlp.*", "re:.*o_proj$"],
        ["lm_head", "model.layers.0.mlp", "o_proj"],
    )
    for left in lists:
        told = compressed(left, num_bits=8, type="int", strategy="channel")
        for tensor in kept(told).tensors:
            if tensor.role is Role.PARAMETER and len(tensor.shape) == 2:
                plain = re.search(r"lm_head|embed|layers\.0\.mlp|o_proj", tensor.name)
                size = prod(tensor.shape) + 2 * tensor.shape[0]
                assert tensor.bytes == (2 * prod(tensor.shape) if plain else size), tensor.name


@pytest.mark.slow
def test_experts_alone_are_in_mxfp4() -> None:
    config = {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "torch_dtype": "bfloat16",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "vocab_size": 96,
    }
    told = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    for tensor in kept(told, config).tensors:
        if tensor.role is Role.PARAMETER and tensor.alias_of is None:
            stack = len(tensor.shape) == 3
            bits = 8 * 17 / 32 if stack else 16
            assert tensor.bytes == prod(tensor.shape) * bits / 8, tensor.name


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "hqq"},
        {"quant_method": "gptq", "bits": 5},
        {"quant_method": "fp8", "weight_block_size": 128},
        compressed([], num_bits=3, type="int", strategy="group"),
        {"bits": 4},
        {"quant_method": "gptq", "dynamic": {"-:.*mlp.*": {}}},
        {"quant_method": "gptq", "checkpoint_format": "marlin"},
        {"quant_method": "auto-round", "extra_config": {"lm_head": {"bits": 8}}},
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False},
        {"quant_method": "fp8", "expert_dtype": "fp6", "weight_block_size": [128, 128]},
        {"quant_method": "bitnet", "quantization_mode": "online"},
        {"quant_method": "modelopt", "quantization": {"quant_algo": "MIXED_PRECISION"}},
        {
            **compressed([], num_bits=4, type="int", strategy="channel"),
            "config_groups": {
                "g": {"targets": ["re:.*mlp"], "weights": {"num_bits": 4, "type": "int"}}
            },
        },
        {
            **compressed([], num_bits=8, type="int", strategy="channel"),
            "sparsity_config": {"format": "sparse-24-bitmask"},
        },
        ["gptq"],
        "gptq",
    ],
)
def test_what_is_not_known_is_said_in_a_line(told: Any) -> None:
    found, said = storage_of({**LLAMA, "quantization_config": told})
    assert found is None
    assert said is not None
    assert said.startswith("not used of its config: quantization_config (")
    assert storage_of(LLAMA) == (None, None)


@pytest.mark.parametrize("method", [method.value for method in QuantizationMethod])
def test_every_method_of_transformers_is_read_or_named(method: str) -> None:
    """Alone, with nothing else said: what is taken is what the method says where nothing is said."""
    found, said = storage_of({**LLAMA, "quantization_config": {"quant_method": method}})
    assert (found is None) == (said is not None)
    assert found is not None or f"how {method} stores weights is not known" in (said or "")


def test_all_of_a_checkpoint_of_mlx_is_in_groups() -> None:
    """Also the table of words and the head: a scale and a bias of two bytes for 64 weights."""
    plain = captured(dict(LLAMA), model="m", seq=8, dtype="float16", symbolic=False).graph
    graph, unknown = as_published(plain, {**LLAMA, "quantization": {"group_size": 64, "bits": 4}})
    assert (graph.meta.weights, unknown) == ("mlx-int4-g64", ())
    for tensor in graph.tensors:
        if tensor.role is Role.PARAMETER:
            size = prod(tensor.shape)
            packed = size / 2 + size / 64 * 4
            assert tensor.bytes == (packed if len(tensor.shape) == 2 else 2 * size), tensor.name


@pytest.mark.slow
def test_the_command_says_it_and_runs_it(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    told = {"num_hidden_layers": 1, "quantization_config": METHODS[0][0]}
    file.write_text(json.dumps({**LLAMA, **told}))
    folder = tmp_path / "t"
    done = invoke("trace", file, "--seq", "8", "--dtype", "config", "--out", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "float16, eager attention, logits of the last token, weights in gptq-int4-g128 (embedding "
        "head vector in float16)" in " ".join(done.stdout.split())
    )
    cost = json.loads(invoke("cost", folder, "--json").stdout)["costs"][0]
    traced = cutedge.load(folder)
    assert cost["parameter_bytes"] == parameter_bytes(traced.graph)
    assert traced.graph.meta.weights == cost["weights"] == "gptq-int4-g128"
    split = traced.partition("offload-linear")
    assert split.split.machine == "tee+gpu@zmq-ipc, weights=gptq-int4-g128"


@pytest.mark.slow
def test_a_split_of_a_stored_model_is_run_in_what_it_computes_in() -> None:
    config = {**LLAMA, "num_hidden_layers": 1, "quantization_config": METHODS[0][0]}
    run = cutedge.trace(config, seq=4).partition("offload-linear").verify().check()
    assert run.verdict.bytes_equal


def test_a_config_without_a_dtype_has_none_to_give() -> None:
    with pytest.raises(InputError, match="names no dtype; give one of float64"):
        cutedge.trace("edge-10m", seq=8, dtype="config")
    with pytest.raises(InputError, match="names float8_e4m3fn, in which no model is traced"):
        cutedge.trace({**LLAMA, "torch_dtype": "float8_e4m3fn"}, seq=8, dtype="config")


def test_experts_may_be_stored_in_fewer_bits():
    """DeepSeek-V4: experts in FP4 with an exponent for 32, other linears in FP8, by two keys."""
    fp8 = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    for config in (
        {"expert_dtype": "fp4", "quantization_config": fp8},
        {"quantization_config": {**fp8, "expert_dtype": "fp4"}},
    ):
        found, unknown = storage_of(config)
        assert unknown is None
        ways = {rule.encoding: rule.parts for rule in found.rules}
        assert ways["mxfp4"] == ("experts_up", "experts_down")
        assert (found.encoding, found.own[found.encoding].group_bits) == ("fp8-block128", 8)
