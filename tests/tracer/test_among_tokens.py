"""Models that read images and sounds beside text: products and caches by hand, a model a kind.

A token of the text goes through q and o of 32 x 32, k and v of 32 x 16, three matrices of 32 x 48;
attention is 32 wide in all heads; the last token's logits are 32 x 64.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from costmodels.flops import annotate, total_flops
from tests.support.configs import TEXT, VISION
from tracer.capture import capture
from tracer.graph import Kind, OpGraph, Role

Q_O, K_V, MLP = 2 * 32 * 32, 2 * 32 * 16, 3 * 32 * 48
TOKEN, LOGITS = Q_O + K_V + MLP, 32 * 64
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

MLLAMA: Mapping[str, Any] = {
    "model_type": "mllama",
    "architectures": ["MllamaForConditionalGeneration"],
    "text_config": {
        **TEXT,
        "num_hidden_layers": 2,
        "cross_attention_layers": [1],
        "pad_token_id": 0,
        "rope_parameters": ROPE,
    },
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 48,
    },
    "image_token_index": 5,
}
VOXTRAL: Mapping[str, Any] = {
    "model_type": "voxtral",
    "architectures": ["VoxtralForConditionalGeneration"],
    "audio_token_id": 5,
    "audio_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_mel_bins": 80,
        "max_source_positions": 20,
    },
    "text_config": {"model_type": "llama", **TEXT, "head_dim": 8},
}
CLIP: Mapping[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 16,
    "text_config": {**TEXT, "max_position_embeddings": 20},
    "vision_config": VISION,
}
CTC: Mapping[str, Any] = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2ForCTC"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def traced(config: Mapping[str, Any], **options: Any) -> OpGraph:
    return annotate(capture(config, model="m", **{"symbolic": False, **options}).graph)


def products(graph: OpGraph) -> int:
    return total_flops(graph).products


def cached(graph: OpGraph) -> int:
    """Bytes of the keys and values that a step is given."""
    given = [op for op in graph.ops if op.kind is Kind.INPUT]
    tensors = [t for op in given for t in graph.outputs(op.id) if t.role is Role.KV_CACHE]
    return sum(t.bytes for t in tensors)


@pytest.mark.slow
@pytest.mark.few(1)
def test_images_by_cross_attention() -> None:
    """Each of 4 tiles is 2 x 2 patches of 3 x 8 x 8 numbers, and a class token, filled up to 8:
    both layers of the tower see all 32. The projector reads the 20 that are not filling, 24 numbers
    of the last layer and 24 of the first. A layer of the text has keys and values of these alone.
    """
    layer = 32 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 32 * 32 * 24
    tower = 2 * (4 * 4 * 192 * 24 + 2 * layer + 20 * 48 * 32)
    assert products(traced(MLLAMA, phase="encoder")) == tower
    crossed = 2 * (6 * (Q_O + MLP) + 20 * K_V + 2 * 6 * 20 * 32)
    text = 2 * (6 * TOKEN + 2 * 6 * 6 * 32 + LOGITS)
    both = traced(MLLAMA, seq=6, overrides={"images": [1]}, cache=True)
    assert products(both) == tower + crossed + text
    step = traced(MLLAMA, phase="decode", past=6, overrides={"images": [1]})
    assert cached(step) == 2 * 2 * 8 * (6 + 20) * 4  # k and v, heads, width, tokens, bytes
    assert products(step) == 2 * (TOKEN + 2 * 7 * 32 + Q_O + MLP + 2 * 20 * 32 + LOGITS)
    alone = traced(MLLAMA, phase="decode", past=6)  # the layer that looks at images is left out
    assert products(alone) == 2 * (TOKEN + 2 * 7 * 32 + LOGITS)


@pytest.mark.slow
@pytest.mark.few(1)
def test_sounds_among_tokens() -> None:
    """40 frames of 80 bands become 20 by two convolutions of 3 frames; the tower's layer has 4
    projections and a block of 2 x 32 x 128. Four of them make a token: 128 x 32 and 32 x 32.
    """
    layer = 20 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 20 * 20 * 32
    projector = 5 * (128 * 32 + 32 * 32)
    tower = 2 * (40 * 3 * 80 * 32 + 20 * 3 * 32 * 32 + layer + projector)
    assert products(traced(VOXTRAL, phase="encoder")) == tower
    both = traced(VOXTRAL, seq=11, overrides={"sounds": [1]})
    assert products(both) == tower + 2 * (11 * TOKEN + 2 * 11 * 11 * 32 + LOGITS)
    step = traced(VOXTRAL, phase="decode", past=11, overrides={"sounds": [1]})
    assert cached(step) == 2 * 2 * 8 * 11 * 4
    assert products(step) == 2 * (TOKEN + 2 * 12 * 32 + LOGITS)


@pytest.mark.slow
@pytest.mark.few(1)
def test_two_towers_and_ctc() -> None:
    """CLIP: two texts of 6 tokens and two images of 4 x 4 patches with a class token, each made 16
    numbers, all texts by all images.

    Wav2vec2: 400 samples become 79 frames by 10 samples each, these 39 by 3 of 8 each; a
    convolution over 4 frames in 2 groups makes 40 (one is cut off) for the places.
    """
    text = 6 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 6 * 6 * 32 + 32 * 16
    image = 16 * 192 * 24 + 17 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 17 * 17 * 24 + 24 * 16
    towers = traced(CLIP, batch=2, seq=6)
    assert products(towers) == 2 * (2 * text + 2 * image + 2 * 16 * 2)
    convolutions = 79 * 10 * 8 + 39 * 3 * 8 * 8 + 40 * 4 * 16 * 32
    layer = 39 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 39 * 39 * 32
    heard = traced(CTC, seq=400)
    assert products(heard) == 2 * (convolutions + 39 * 8 * 32 + layer + 39 * 32 * 40)
