"""Models that see and hear: against torch's counter, and by hand."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from costmodels.flops import annotate, total_flops
from cutedge._request import with_senses
from tests.support import configs
from tests.support.configs import LLAVA, QWEN2_5_VL, TEXT, VISION
from tools.coverage import against_torch, counted_by_torch
from tracer.capture import capture
from tracer.capture.errors import Untraceable
from tracer.capture.inputs import reading
from tracer.capture.models import build
from tracer.capture.remedies import led_on
from tracer.capture.told import TellingTorch, Told
from tracer.errors import CutedgeError, InputError
from tracer.formula import parse
from tracer.graph import Kind, OpGraph

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
GEMMA3: Mapping[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", **TEXT, "head_dim": 8},
    "vision_config": {"model_type": "siglip_vision_model", **VISION},
    "mm_tokens_per_image": 4,
    "image_token_index": 5,
}
MISTRAL3: Mapping[str, Any] = {
    "model_type": "mistral3",
    "architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {"model_type": "mistral", **TEXT, "head_dim": 8},
    "vision_config": {"model_type": "pixtral", **VISION, "hidden_size": 32},
    "image_token_index": 5,
}
CTC: Mapping[str, Any] = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], **SOUND}
WHISPER: Mapping[str, Any] = {**configs.WHISPER, "max_source_positions": 20}
LISTENS: Mapping[str, Any] = {**WHISPER, "architectures": ["WhisperForAudioClassification"]}
KOSMOS: Mapping[str, Any] = {
    "model_type": "kosmos-2",
    "architectures": ["Kosmos2ForConditionalGeneration"],
    "latent_query_num": 4,
    "text_config": {
        "vocab_size": 64,
        "embed_dim": 32,
        "layers": 1,
        "ffn_dim": 48,
        "attention_heads": 4,
        "max_position_embeddings": 40,
    },
    "vision_config": VISION,
}
CLIP: Mapping[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 16,
    "text_config": {**TEXT, "max_position_embeddings": 20},
    "vision_config": VISION,
}


FLORENCE: Mapping[str, Any] = {
    "model_type": "florence2",
    "architectures": ["Florence2ForConditionalGeneration"],
    "image_token_id": 5,
    "text_config": {"model_type": "bart", **configs.BART},
    "vision_config": {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [16, 24],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "window_size": 4,
        "projection_dim": 32,
    },
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
        (MISTRAL3, {"seq": 24, "overrides": {"images": [1]}}, EQUAL),
        (
            GEMMA3,
            {"seq": 24, "overrides": {"images": [1]}},
            ("explained", ("torch counts 2,304 FLOPs of constants, computed at load",)),
        ),
    ],
    ids=["ctc", "classification", "two-towers", "llava", "mistral3", "gemma3"],
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
    graph = traced(QWEN2_5_VL, seq=9, overrides={"images": [2, 28, 56]})
    given = inputs(graph)
    assert given["pixel_values"].shape == (1, 2 * 8, 3 * 2 * 14 * 14)
    given["pixel_values"] = given["pixel_values"].flatten(0, 1)
    given["image_grid_thw"] = Told.of([[1, 2, 4]] * 2, torch.device("meta"))
    assert total_flops(graph).products == counted_by_torch(QWEN2_5_VL, {}, "m", given)


@pytest.mark.slow
@pytest.mark.few(1)
def test_two_towers_and_ctc_by_hand() -> None:
    """CLIP: two texts of 6 tokens and two images of 4 x 4 patches with a class token, each made 16
    numbers, all texts by all images.

    Wav2vec2: 400 samples become 79 frames by 10 samples each, these 39 by 3 of 8 each; a
    convolution over 4 frames in 2 groups makes 40 (one is cut off) for the places.
    """
    text = 6 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 6 * 6 * 32 + 32 * 16
    image = 16 * 192 * 24 + 17 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 17 * 17 * 24 + 24 * 16
    towers = traced(CLIP, batch=2, seq=6)
    assert total_flops(towers).products == 2 * (2 * text + 2 * image + 2 * 16 * 2)
    convolutions = 79 * 10 * 8 + 39 * 3 * 8 * 8 + 40 * 4 * 16 * 32
    layer = 39 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 39 * 39 * 32
    heard = traced(CTC, seq=400)
    assert total_flops(heard).products == 2 * (convolutions + 39 * 8 * 32 + layer + 39 * 32 * 40)


@pytest.mark.slow
def test_products_of_an_encoder_that_reads_an_image_before_its_text() -> None:
    """Torch counts the whole model, on a text of which the first tokens stand for the image."""
    image = {"images": [1, 64]}
    encoder = traced(FLORENCE, phase="encoder", seq=80, overrides=image)
    decoder = traced(FLORENCE, seq=3, source=80, logits="all")
    model = build(FLORENCE, {}, model="m", dtype="float32", attn="eager").to_empty(device="cpu")
    tokens = torch.ones(1, 80, dtype=torch.int64)
    tokens[:, :65] = FLORENCE["image_token_id"]  # 8 x 8 patches and their mean
    first = torch.ones(1, 3, dtype=torch.int64)
    pixels = torch.zeros(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens, pixel_values=pixels, decoder_input_ids=first)
    ours = [total_flops(graph).products for graph in (encoder, decoder)]
    assert sum(ours) == counter.get_total_flops()
    with pytest.raises(CutedgeError, match="its images alone make 65 tokens"):
        traced(FLORENCE, phase="encoder", seq=64, overrides=image)


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


class _Both(torch.nn.Module):
    """A model that takes images and sounds for some of its tokens."""

    config = SimpleNamespace()
    get_image_features = get_audio_features = None

    def forward(self, input_ids: Any, pixel_values: Any = None, input_features: Any = None) -> None:
        raise AssertionError


def test_images_and_sounds_in_one_text_are_refused() -> None:
    with pytest.raises(InputError) as refused:
        reading(_Both(), "m", "prefill", (1,), (1,))
    assert str(refused.value) == (
        "--images and --sounds in one text are not traced: give one of them"
    )


def test_a_tower_that_a_config_leaves_out_reads_nothing() -> None:
    """Gemma 4 has one for sounds in its smallest sizes alone."""
    model = _Both()
    model.config = SimpleNamespace(audio_config=None)
    with pytest.raises(InputError, match="reads no sounds among its tokens"):
        reading(model, "m", "prefill", (), (1,))


@pytest.mark.parametrize(
    ("name", "option"), [("pixel_values", "images"), ("input_features", "sounds")]
)
@pytest.mark.parametrize("helps", [True, False])
def test_an_option_is_advised_where_a_trace_with_it_works(
    name: str, option: str, helps: bool
) -> None:
    missing = TypeError(f"M.forward() missing 1 required positional argument: '{name}'")
    error = CutedgeError("m cannot be traced: E.")
    error.__cause__ = Untraceable("E", cause=missing)
    tried: list[Mapping[str, Any]] = []

    def trace(overrides: Mapping[str, Any], **options: Any) -> None:
        tried.append(overrides)
        if not helps or option not in overrides:
            raise CutedgeError("no")

    asked = {"phase": "prefill", "attn": "eager", "overrides": {}, "seq": 8, "past": 0, "source": 0}
    said = str(led_on(error, {"model_type": "clip"}, asked, trace))
    assert said.startswith(
        f"m cannot be traced: E. It reads {name} too, which this trace does not give. "
    )
    assert said.endswith(f"It is traced with --{option} 1.") == helps
    assert (f"It is not with --{option} 1 or" in said) == (not helps)
    assert tried[0] == {option: [1]}


@pytest.mark.slow
@pytest.mark.few(1)
def test_a_model_that_cannot_do_without_its_image_says_so_and_is_traced_with_it() -> None:
    """The first 4 of its tokens stand for the image."""
    with pytest.raises(InputError) as refused:
        traced(KOSMOS, seq=8)
    assert "pixel_values" in str(refused.value)
    assert str(refused.value).endswith("It is traced with --images 1.")
    graph = traced(KOSMOS, seq=8, overrides={"images": [1]})
    constants = 2 * 4 * 32 * 32  # of queries that are parameters
    said = f"torch counts {constants:,} FLOPs of constants, computed at load"
    assert against_torch(graph, None, KOSMOS, {}) == ("explained", (said,))
    with pytest.raises(CutedgeError, match="its images alone make 4 tokens"):
        traced(KOSMOS, seq=3, overrides={"images": [1]})


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
        again = TellingTorch().as_tensor(grid, device="meta")
        assert (again // 2).tolist() == [[0, 1, 2], [0, 3, 4]]
        assert (grid[:, 1] * 2 + torch.ones((), dtype=torch.int64)).device.type == "meta"
        steps = TellingTorch().arange(3)
        assert steps[steps != 1].tolist() == [0, 2]
        assert grid.device.type == "meta"
    assert TellingTorch().float32 is torch.float32
