"""Configs of small models that several tests trace."""

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
TEXT: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 2}
"""The part of a model of images or sounds that reads text."""
VISION: Mapping[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
"""Its part that reads images of 4 x 4 patches."""
LLAVA: Mapping[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {"model_type": "clip_vision_model", **VISION},
    "vision_feature_layer": -1,
    "image_token_index": 5,
}
QWEN_VISION: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
}
"""What Qwen's models of images have in common in their towers."""
QWEN2_5_VL: Mapping[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "image_token_id": 5,
    "text_config": {**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 56},
}
LLAMA: Mapping[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
BART: Mapping[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 64,
}
"""Sizes of an encoder and its decoder."""
ENDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
WHISPER: Mapping[str, Any] = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    **BART,
    **ENDS,
}
