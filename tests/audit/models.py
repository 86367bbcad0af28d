"""Small models of many kinds: config.json files for the tool, and modules of our own."""

import json
from pathlib import Path
from typing import Any

_DECODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 128,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_DECODER, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "vocab_size": 64,
    },
    "gemma3": {
        "model_type": "gemma3_text", **_DECODER, "num_hidden_layers": 3, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mistral": {"model_type": "mistral", **_DECODER, "sliding_window": 8},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **{key: value for key, value in _DECODER.items() if key != "head_dim"},
        "num_key_value_heads": 4, "q_lora_rank": 16,
        "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    },
    "mixtral": {
        "model_type": "mixtral", **_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", **_DECODER, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "llama4": {
        "model_type": "llama4_text", **_DECODER, "num_local_experts": 2, "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48, "attention_chunk_size": 4, "num_hidden_layers": 4,
        "interleave_moe_layer_step": 2,
    },
    "t5": {
        "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
        "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 64,
    },
    "whisper": {
        "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 16,
        "max_target_positions": 64, "vocab_size": 64, "pad_token_id": 1, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1,
        "architectures": ["WhisperForConditionalGeneration"],
    },
    "bart": {
        "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "vocab_size": 64, "max_position_embeddings": 64,
        "architectures": ["BartForConditionalGeneration"],
    },
    "bert": {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64,
    },
    "vit": {
        "model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    },
    "resnet": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2],
        "layer_type": "basic",
    },
    "convnext": {
        "model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2,
        "image_size": 32,
    },
    "mamba": {
        "model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
        "vocab_size": 64,
    },
}  # fmt: skip


def write_config(name: str, folder: Path) -> Path:
    """A model's config as the file that ``trace`` is given."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(CONFIGS[name]))
    return path
