"""Models out of GGUF headers, beside the traces of the configs that they were made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import cutedge
from cutedge.executors.gguf_names import gguf_names
from tests.support.inprocess import invoke
from tests.support.weights import gguf
from tracer.errors import InputError
from tracer.graph import OpGraph, Role

SIZES = {"context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 2}
RMS = {"attention.layer_norm_rms_epsilon": 1e-6}
NORM = {"attention.layer_norm_epsilon": 1e-5}
CONFIG: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 80,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_inner": 96, "n_head": 4, "n_positions": 64, "vocab_size": 80}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    # architecture: (class, fields of its config, what a converter writes of it)
    "llama": ("LlamaForCausalLM llama", CONFIG, {**HEADS, **RMS, "rope.dimension_count": 16}),
    "llama, biases": (
        "LlamaForCausalLM llama",
        {**CONFIG, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
        {**HEADS, **RMS, "attention.key_length": 8, "rope.dimension_count": 8},
    ),
    "llama, experts": (
        "MixtralForCausalLM mixtral",
        {**CONFIG, "num_local_experts": 4, "num_experts_per_tok": 2},
        {**HEADS, **RMS, **EXPERTS, "rope.dimension_count": 16},
    ),
    "qwen2": ("Qwen2ForCausalLM qwen2", {**CONFIG, "tie_word_embeddings": True}, {**HEADS, **RMS}),
    "qwen2moe": (
        "Qwen2MoeForCausalLM qwen2_moe",
        {
            **CONFIG,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
        {
            **HEADS,
            **RMS,
            **EXPERTS,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
    ),
    "qwen3": (
        "Qwen3ForCausalLM qwen3",
        {**CONFIG, "head_dim": 24},
        {**HEADS, **RMS, "attention.key_length": 24, "attention.value_length": 24},
    ),
    "qwen3moe": (
        "Qwen3MoeForCausalLM qwen3_moe",
        {
            **CONFIG,
            "head_dim": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        {**HEADS, **RMS, **EXPERTS, "attention.key_length": 24, "expert_feed_forward_length": 32},
    ),
    "gemma": (
        "GemmaForCausalLM gemma",
        {**CONFIG, "head_dim": 24},
        {**HEADS, **RMS, "attention.key_length": 24},
    ),
    "gemma2": (
        "Gemma2ForCausalLM gemma2",
        {**CONFIG, "head_dim": 24, "sliding_window": 16},
        {
            **HEADS,
            **RMS,
            "attention.key_length": 24,
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM gemma3_text",
        {**CONFIG, "head_dim": 24, "sliding_window": 16},
        {**HEADS, **RMS, "attention.key_length": 24, "attention.sliding_window": 16},
    ),
    "phi2": (
        "PhiForCausalLM phi",
        {**CONFIG, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
        {**HEADS, "attention.head_count_kv": 4, **NORM, "rope.dimension_count": 8},
    ),
    "phi3": (
        "Phi3ForCausalLM phi3",
        {**CONFIG, "pad_token_id": 0, "sliding_window": 16},
        {**HEADS, **RMS, "rope.dimension_count": 16, "attention.sliding_window": 16},
    ),
    "gpt2": ("GPT2LMHeadModel gpt2", GPT2, {"attention.head_count": 4, **NORM}),
    "starcoder2": (
        "Starcoder2ForCausalLM starcoder2",
        {**CONFIG, "sliding_window": None},
        {**HEADS, **NORM},
    ),
    "stablelm": (
        "StableLmForCausalLM stablelm",
        {**CONFIG, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
        {**HEADS, **NORM, "rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "olmo2": (
        "Olmo2ForCausalLM olmo2",
        {**CONFIG, "num_key_value_heads": 4},
        {**HEADS, **RMS, "attention.head_count_kv": 4},
    ),
    "granite": ("GraniteForCausalLM granite", CONFIG, {**HEADS, **RMS, "logit_scale": 8.0}),
    "smollm3": ("SmolLM3ForCausalLM smollm3", {**CONFIG, "pad_token_id": 0}, {**HEADS, **RMS}),
    "gpt-oss": (
        "GptOssForCausalLM gpt_oss",
        {
            **CONFIG,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
        },
        {
            **HEADS,
            **RMS,
            **EXPERTS,
            "attention.key_length": 16,
            "attention.sliding_window": 16,
            "expert_feed_forward_length": 96,
        },
    ),
    "mamba": (
        "MambaForCausalLM mamba",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "state_size": 8,
            "conv_kernel": 4,
            "time_step_rank": 4,
            "vocab_size": 80,
        },
        {
            **RMS,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 128,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 4,
        },
    ),
}


def header(graph: OpGraph, arch: str, told: Mapping[str, Any]) -> bytes:
    """The header that a converter writes of a model: float32, and a table of words in Q8_0."""
    tensors = {}
    for storage, names in gguf_names(graph).of.items():
        shape = graph.tensors[storage].shape
        for name in names:
            part = shape if len(names) == 1 else (shape[0] * shape[1] // len(names), *shape[2:])
            tensors[name] = (part, 8 if name == "token_embd.weight" else 0)
    sizes = {f"{arch}.{key}": value for key, value in {**SIZES, **told}.items()}
    return gguf(tensors, told={"general.architecture": arch, **sizes})


def rows(graph: OpGraph) -> list[tuple[Any, ...]]:
    return [
        (op.target, op.module_path, op.kind, op.layer, op.cost.flops, op.cost.flops_expr)
        for op in graph.ops
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(1)
def test_a_header_gives_the_graph_of_its_config(family: str, tmp_path: Path) -> None:
    kind, fields, told = FAMILIES[family]
    name, model_type = kind.split()
    config = {"model_type": model_type, "architectures": [name], **fields}
    plain = cutedge.trace(config, seq=24)
    file = tmp_path / "small.gguf"
    file.write_bytes(header(plain.graph, family.partition(",")[0], told))
    read = cutedge.trace(file, seq=24)
    assert rows(read.graph) == rows(plain.graph)
    assert read.graph.meta.parameters == plain.graph.meta.parameters
    assert not [line for line in read.warnings if "weights" in line]
    # Float32 as the config has it, but for the table: 34 bytes for 32 weights.
    stored, before = (
        {t.name: t.bytes for t in g.tensors if t.role is Role.PARAMETER and t.alias_of is None}
        for g in (read.graph, plain.graph)
    )
    (table,) = (k for k in stored if stored[k] != before[k])
    assert stored[table] == before[table] // 4 * 34 // 32
    assert read.graph.meta.weights == "small.gguf"


LLAMA = {f"llama.{k}": v for k, v in {**SIZES, **HEADS, **RMS, "rope.dimension_count": 16}.items()}
TABLE = {"token_embd.weight": ((80, 64), 0)}


@pytest.mark.parametrize(
    ("tensors", "told", "said"),
    [
        (TABLE, {"general.architecture": "qwen9"}, "the config of qwen9 is not known from a GGUF"),
        ({}, LLAMA, "has no token_embd.weight"),
        (TABLE, {**LLAMA, "llama.feed_forward_length": [1, 2]}, "differs from layer to layer"),
        (TABLE, {**LLAMA, "llama.attention.head_count": 0}, "num_attention_heads is 0"),
    ],
)
def test_what_a_header_does_not_say_is_a_line(
    tensors: Any, told: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(tensors, told=told))
    done = invoke("trace", tmp_path / "m.gguf", "--seq", "8")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_file_of_other_weights_is_traced_and_says_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(TABLE, told={**LLAMA, "llama.rope.scaling.factor": 8.0}))
    traced = cutedge.trace(file, seq=8)
    said = "\n".join(traced.warnings)
    assert "not used of its header: rope.scaling.factor" in said
    assert f"has 5,120 weights, the model traced {traced.graph.meta.parameters:,}" in said
    assert "the weights beside the config are not used" in said
    assert traced.graph.meta.weights == ""


def test_no_file_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        cutedge.trace(tmp_path / "no.gguf")
