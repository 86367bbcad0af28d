"""The config of the model in a GGUF file: llama.cpp's words for its sizes, in those of transformers.

A table, not a case a model: what an architecture is called and which of its fields are called
otherwise than in most. What the header does not say (whether a bias is there, whether the head is
the table of words) is told by which tensors the file has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from costmodels.gguf_files import Gguf, Long, read_gguf
from tracer.errors import InputError, suggest
from tracer.words import plain

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""Key in a header, behind the architecture -> field of a config, as most have it."""

_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}

_UNREAD = (
    "attention.value_length",
    "vocab_size",
    "rope.dimension_count",
    "expert_gating_func",
    "expert_weights_scale",
    "attention.causal",
    "tensor_data_layout",
)
"""Keys whose meaning is in tensors, or that change no op."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What transformers calls an architecture of llama.cpp."""

    model_type: str
    model_class: str
    fields: Mapping[str, str] = field(default_factory=dict)
    """Keys that are called otherwise than in ``_SIZES``, or are not there."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the header does not have."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Field that says whether there is a bias -> the tensor that is there then."""
    rotary: bool = False
    """Whether a part of a head alone may be turned: ``partial_rotary_factor``."""


_FAMILIES = {
    "llama": _Family(
        "llama",
        "LlamaForCausalLM",
        biases={"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    ),
    "mixtral": _Family(
        "mixtral",
        "MixtralForCausalLM",
        {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    ),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": _Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    ),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM", biases={"attention_bias": "blk.0.attn_q.bias"}),
    "qwen3moe": _Family("qwen3_moe", "Qwen3MoeForCausalLM", _EXPERTS, {"norm_topk_prob": True}),
    "gemma": _Family("gemma", "GemmaForCausalLM"),
    "gemma2": _Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            **_WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "gemma3": _Family("gemma3_text", "Gemma3ForCausalLM", _WINDOW),
    "phi2": _Family("phi", "PhiForCausalLM", rotary=True),
    "phi3": _Family("phi3", "Phi3ForCausalLM", _WINDOW, {"pad_token_id": 0}, rotary=True),
    "gpt2": _Family(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
    ),
    "starcoder2": _Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {"attention.layer_norm_epsilon": "norm_epsilon"},
        {"sliding_window": None},
    ),
    "stablelm": _Family(
        "stablelm",
        "StableLmForCausalLM",
        {"use_parallel_residual": "use_parallel_residual"},
        biases={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        rotary=True,
    ),
    "olmo2": _Family("olmo2", "Olmo2ForCausalLM"),
    "granite": _Family(
        "granite",
        "GraniteForCausalLM",
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        biases={"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    ),
    "smollm3": _Family("smollm3", "SmolLM3ForCausalLM", fixed={"pad_token_id": 0}),
    "gpt-oss": _Family(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            **_WINDOW,
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
        },
    ),
    "mamba": _Family(
        "mamba",
        "MambaForCausalLM",
        {
            "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "intermediate_size",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        },
    ),
}
"""llama.cpp's word for an architecture -> what it is to transformers. Its ``llama`` is a Mixtral
where it has experts, and a Mistral too."""

_BESIDE = ("rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd")
"""Tensors that are no parameters of a model: what turns queries and keys, computed before."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """The model of a file."""

    config: Mapping[str, Any]
    """That of transformers."""
    parameters: int
    """The weights in the file."""
    notes: tuple[str, ...]
    """What of its header is not used."""


def gguf_model(file: Path) -> GgufModel:
    """The model that a file's header describes.

    Raises InputError for a file that cannot be read, and for an architecture that is in no table.
    """
    read = read_gguf(file)
    arch = read.entries.get("general.architecture")
    if not isinstance(arch, str):
        raise InputError(f"{file} names no architecture: its header has no general.architecture")
    experts = read.entries.get(f"{arch}.expert_count")
    family = _FAMILIES.get("mixtral" if arch == "llama" and experts else arch)
    if family is None:
        raise InputError(
            f"{file}: the config of {plain(arch, 40)} is not known from a GGUF header "
            f"({', '.join(sorted(_FAMILIES))} are). Trace its config.json, and give the file with "
            "--weights" + suggest(arch, _FAMILIES)
        )
    given = {
        key.removeprefix(f"{arch}."): value
        for key, value in read.entries.items()
        if key.startswith(f"{arch}.")
    }
    fields = {**_SIZES, **family.fields}
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.model_class],
        **family.fixed,
        **{fields[key]: _plain(file, key, value) for key, value in given.items() if key in fields},
        "vocab_size": _vocabulary(file, read),
        "tie_word_embeddings": "output.weight" not in read.tensors,
        **{name: tensor in read.tensors for name, tensor in family.biases.items()},
    }
    turned, width = given.get("rope.dimension_count"), _head(config)
    if family.rotary and type(turned) is int and width:
        config["partial_rotary_factor"] = turned / width
    elif "head_dim" not in config and arch == "llama" and type(turned) is int:
        config["head_dim"] = turned
    config = {key: value for key, value in config.items() if value is not None}
    unused = sorted(given.keys() - fields.keys() - {*_UNREAD})
    notes = (f"not used of its header: {', '.join(map(plain, unused))}",) if unused else ()
    counted = sum(
        prod(one.shape)
        for name, one in read.tensors.items()
        if not any(f".{beside}." in f".{name}" for beside in _BESIDE)
    )
    return GgufModel(config, counted, notes)


def _plain(file: Path, key: str, value: Any) -> Any:
    """A value as a config has it. Raises InputError for one that differs from layer to layer."""
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        return value[0]
    if isinstance(value, list | Long):
        raise InputError(
            f"{file}: {plain(key)} differs from layer to layer, which no config of its kind says. "
            "Trace its config.json, and give the file with --weights"
        )
    return value


def _vocabulary(file: Path, read: Gguf) -> int:
    table = read.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise InputError(f"{file} has no token_embd.weight, as every model of tokens has")
    return table.shape[0]


def _head(config: Mapping[str, Any]) -> int:
    """The width of an attention's head."""
    if type(width := config.get("head_dim")) is int:
        return width
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if type(hidden) is int and type(heads) is int and heads else 0
