"""Models that see and hear: against torch's counter, and by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from costmodels.flops import annotate, total_flops
from cutedge._request import with_senses
from tests.support import configs
from tools.coverage import against_torch, counted_by_torch
from tracer.capture import capture
from tracer.capture.told import TellingTorch, Told
from tracer.errors import CutedgeError, InputError
from tracer.formula import parse
from tracer.graph import Kind, OpGraph, Role

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SOUND = {
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
LLAVA: Mapping[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {"model_type": "clip_vision_model", **VISION},
    "vision_feature_layer": -1,
    "image_token_index": 5,
}
GEMMA3: Mapping[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", **TEXT, "head_dim": 8},
    "vision_config": {"model_type": "siglip_vision_model", **VISION},
    "mm_tokens_per_image": 4,
    "image_token_index": 5,
}
QWEN: Mapping[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "image_token_id": 5,
    "text_config": {**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    },
}
CTC: Mapping[str, Any] = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], **SOUND}
WHISPER: Mapping[str, Any] = {**configs.WHISPER, "max_source_positions": 20}
LISTENS: Mapping[str, Any] = {**WHISPER, "architectures": ["WhisperForAudioClassification"]}
CLIP: Mapping[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 16,
    "text_config": {**TEXT, "max_position_embeddings": 20},
    "vision_config": VISION,
}


EQUAL: tuple[str, tuple[str, ...]] = ("equal", ())


def traced(config: Mapping[str, Any], **options: Any) -> OpGraph:
    return annotate(capture(config, model="m", **{"symbolic": False, **options}).graph)


def inputs(graph: OpGraph) -> dict[str, Any]:
    given = [t for op in graph.ops if op.kind is Kind.INPUT for t in graph.outputs(op.id)]
    return {
        t.name: torch.zeros(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in given
    }


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (CTC, {"seq": 400}, EQUAL),
        (LISTENS, {}, EQUAL),
        (CLIP, {"seq": 6}, EQUAL),
        (LLAVA, {"seq": 24, "overrides": {"images": [1]}}, EQUAL),
        (
            GEMMA3,
            {"seq": 24, "overrides": {"images": [1]}},
            ("explained", ("torch counts 2,304 FLOPs of constants, computed at load",)),
        ),
    ],
    ids=["ctc", "classification", "two-towers", "llava", "gemma3"],
)
@pytest.mark.slow
@pytest.mark.few(1)
def test_products_equal_those_that_torch_counts(
    config: Mapping[str, Any], options: Mapping[str, Any], said: tuple[str, tuple[str, ...]]
) -> None:
    graph = traced(config, batch=2, **options)
    assert against_torch(graph, None, config, {}) == said
    assert total_flops(graph).unsupported == {}


@pytest.mark.slow
def test_products_of_a_model_that_is_told_the_grid_of_its_images() -> None:
    """Two images of 28 x 56 pixels: 2 x 4 patches of 14 pixels each, which make 1 x 2 tokens."""
    graph = traced(QWEN, seq=9, overrides={"images": [2, 28, 56]})
    given = inputs(graph)
    assert given["pixel_values"].shape == (1, 2 * 8, 3 * 2 * 14 * 14)
    given["pixel_values"] = given["pixel_values"].flatten(0, 1)
    given["image_grid_thw"] = Told.of([[1, 2, 4]] * 2, torch.device("meta"))
    assert total_flops(graph).products == counted_by_torch(QWEN, {}, "m", given)


@pytest.mark.slow
@pytest.mark.few(1)
def test_a_model_that_sees_by_hand() -> None:
    """Encode the images, prefill over them, decode over what is cached.

    The tower: 4 x 4 patches of 3 x 8 x 8 numbers become 24 wide; with a class token there are 17,
    each through 4 projections of 24 x 24 and a block of 2 x 24 x 40, and two products of 17 x 17 in
    all heads, 24 wide. The projector takes 16 of them through 24 x 32 and 32 x 32. A token of the
    text: q and o of 32 x 32, k and v of 32 x 16, three matrices of 32 x 48, attention 32 wide over
    all tokens; the last one's logits, 32 x 64.
    """
    tower = 2 * (16 * 192 * 24 + 17 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 17 * 17 * 24)
    projector = 2 * 16 * (24 * 32 + 32 * 32)
    token = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    text = 2 * (24 * token + 2 * 24 * 24 * 32 + 32 * 64)
    seen = traced(LLAVA, phase="encoder")
    assert total_flops(seen).products == tower + projector
    both = traced(LLAVA, seq=24, overrides={"images": [1]}, cache=True)
    assert total_flops(both).products == tower + projector + text
    kept = [t for t in both.inputs(len(both.ops) - 1) if t.role is Role.KV_CACHE]
    assert sum(t.bytes for t in kept) == 2 * 2 * 8 * 24 * 4  # k and v, heads, width, tokens, bytes
    step = traced(LLAVA, phase="decode", past=24)
    assert total_flops(step).products == 2 * (token + 2 * 25 * 32 + 32 * 64)


@pytest.mark.slow
@pytest.mark.few(1)
def test_a_model_that_hears_by_hand() -> None:
    """The encoder reads 40 frames of 80 bands, and makes 20 tokens of them by two convolutions of
    3 frames; a token: 4 projections of 32 x 32, a block of 2 x 32 x 48, attention over all 20.

    A step of the decoder has the same, a query and an output over the encoded ones, and logits. It
    caches k and v of its own tokens and of the encoded ones, all 32 wide.
    """
    encoder = traced(WHISPER, phase="encoder")
    convolutions = 40 * 3 * 80 * 32 + 20 * 3 * 32 * 32
    layer = 4 * 32 * 32 + 2 * 32 * 48
    assert total_flops(encoder).products == 2 * (convolutions + 20 * layer + 2 * 20 * 20 * 32)
    assert next(iter(inputs(encoder).values())).shape == (1, 80, 40)
    step = traced(WHISPER, phase="decode", past=7)
    crossed = 2 * 32 * 32 + 2 * 20 * 32
    assert total_flops(step).products == 2 * (layer + 2 * 8 * 32 + crossed + 32 * 64)
    read = [t for t in step.tensors if t.role is Role.KV_CACHE and t.name.startswith("cache.")]
    held = sum(t.bytes for t in read if t.op is not None and step.ops[t.op].kind is Kind.INPUT)
    assert held == 2 * (7 + 20) * 32 * 4


@pytest.mark.slow
def test_formulas_hold_in_the_tokens_of_images_and_text() -> None:
    graph = traced(GEMMA3, seq=24, overrides={"images": [1]}, symbolic=True)
    assert "seq" in graph.meta.symbolic
    fresh = traced(GEMMA3, seq=40, overrides={"images": [1]})
    closed = parse(total_flops(graph).products_expr or "")
    at = {"batch": 1, "seq": 40, "past": 0, "source": 0}
    assert closed.evaluate(at) == total_flops(fresh).products


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (LLAVA, {"seq": 8, "overrides": {"images": [1]}}, "its images alone make 16 tokens"),
        ({"model_type": "gpt2"}, {"overrides": {"images": [1]}}, "reads no images among its"),
        (CTC, {"phase": "decode", "past": 3}, "reads sounds: it has no decode"),
        (CLIP, {"phase": "decode", "past": 3}, "it has no decode"),
    ],
)
@pytest.mark.few(2)
def test_what_a_model_does_not_sense_is_said(
    config: Mapping[str, Any], options: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(CutedgeError, match=says):
        traced(config, **options)


def test_a_size_of_images_is_a_number_or_two() -> None:
    assert with_senses(["a=1"], 2, "336x448") == {"a": 1, "images": [2, 336, 448]}
    assert with_senses({}, None, 448) == {"images": [1, 448]}
    assert with_senses({"a": 1}, None, None) == {"a": 1} == with_senses({"a": 1}, 0, None)
    for size in ("4x4x4", "big", "0", "x"):
        with pytest.raises(InputError, match="give pixels"):
            with_senses({}, 1, size)


def test_told_numbers_are_known_where_no_data_is() -> None:
    """And become constants where they meet what is not known."""
    with torch.device("meta"):
        grid = Told.of([[1, 2, 4], [1, 6, 8]], torch.device("meta"))
        assert [int(n) for n in grid.prod(-1)] == [8, 48]
        assert (grid[:, 1] * 2 + torch.ones((), dtype=torch.int64)).device.type == "meta"
        steps = TellingTorch().arange(3)
        assert steps[steps != 1].tolist() == [0, 2]
        assert grid.device.type == "meta"
    assert TellingTorch().float32 is torch.float32
