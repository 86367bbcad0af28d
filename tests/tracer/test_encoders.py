"""Encoders keep no cache, positions end, and an encoder of sounds or images makes what it makes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from costmodels.parameters import break_down
from tests.support.configs import BART, ENDS, SIZES, WHISPER
from tests.support.inprocess import invoke
from tracer.capture import capture
from tracer.capture.inputs import is_encoder, phases
from tracer.capture.models import build
from tracer.errors import CutedgeError, InputError

BERT: Mapping[str, Any] = {"model_type": "bert", "architectures": ["BertModel"], **SIZES}
SEES: Mapping[str, Any] = {
    "model_type": "vision-encoder-decoder",
    "architectures": ["VisionEncoderDecoderModel"],
    "encoder": {"model_type": "vit", **SIZES, "image_size": 32, "patch_size": 8},
    "decoder": {
        "model_type": "gpt2",
        "n_embd": 48,
        "n_layer": 1,
        "n_head": 4,
        "vocab_size": 64,
        "add_cross_attention": True,
        "is_decoder": True,
    },
}


@pytest.mark.parametrize(
    "options", [{"phase": "decode", "past": 8}, {"cache": True}, {"past": 8}], ids=str
)
@pytest.mark.parametrize("name", ["BertModel", "BertLMHeadModel", "BertForMaskedLM"])
def test_an_encoder_keeps_no_cache(name: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(CutedgeError) as refused:
        capture({**BERT, "architectures": [name]}, model="m", **options)
    assert "keeps no" in str(refused.value) or "takes no cache" in str(refused.value)


def test_one_that_is_told_to_be_a_decoder_does() -> None:
    told = {**BERT, "architectures": ["BertLMHeadModel"], "is_decoder": True}
    decode = capture(told, model="m", phase="decode", past=8, symbolic=False).graph
    assert decode.meta.phase == "decode"


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(BERT))
    done = invoke("trace", tmp_path / "m.json", "--phase", "decode", "--past", "8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "BertModel is an encoder" in done.stderr
    assert "--set is_decoder=true" in done.stderr


@pytest.mark.parametrize(
    ("config", "encodes"),
    [
        (BERT, True),
        ({**BERT, "is_decoder": True}, False),
        ({"model_type": "rembert", "architectures": ["RemBertModel"], **SIZES}, True),
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXModel"], **SIZES}, False),
        ({"model_type": "llama", "architectures": ["LlamaModel"], **SIZES}, False),
        (
            {
                "model_type": "gpt2",
                "architectures": ["GPT2Model"],
                "n_embd": 32,
                "n_layer": 1,
                "n_head": 4,
            },
            False,
        ),
        ({"model_type": "marian", "architectures": ["MarianForCausalLM"], **BART, **ENDS}, False),
        (
            {
                "model_type": "trocr",
                "architectures": ["TrOCRForCausalLM"],
                "d_model": 32,
                "decoder_layers": 1,
                "decoder_attention_heads": 4,
                "vocab_size": 64,
            },
            False,
        ),
        (
            {
                "model_type": "git",
                "architectures": ["GitForCausalLM"],
                **SIZES,
                "vision_config": {**SIZES, "image_size": 32, "patch_size": 8},
            },
            False,
        ),
        (
            {
                "model_type": "gemma3_text",
                "architectures": ["Gemma3TextModel"],
                **SIZES,
                "use_bidirectional_attention": True,
            },
            True,
        ),
        (
            {
                "model_type": "mamba",
                "architectures": ["MambaModel"],
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "vocab_size": 64,
            },
            False,
        ),
    ],
    ids=lambda value: value["architectures"][0] if isinstance(value, dict) else str(value),
)
@pytest.mark.few(4)
def test_which_models_are_encoders(config: Mapping[str, Any], encodes: bool) -> None:
    module = build(config, {}, model="m", dtype="float32", attn="eager")
    assert is_encoder(module) is encodes
    assert ("decode" in phases(module)) is not encodes


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pooled", "classified", "words"),
    [
        ("BertModel", True, False, False),
        ("BertForPreTraining", True, True, True),
        ("BertForSequenceClassification", True, True, False),
        ("BertForMaskedLM", False, False, True),
    ],
)
@pytest.mark.few(2)
def test_a_pooler_and_a_classifier_are_no_head_of_words(
    name: str, pooled: bool, classified: bool, words: bool
) -> None:
    """BertModel: a pooler 32 x 32 with its bias; a classifier of 2 beside it: 32 x 2 and 2.

    The head of words: a transform 32 x 32 with its bias, and a bias of each of the 64 words, whose
    table [64, 32] is the embedding's; of BertForPreTraining beside a pooler and a classifier of 2.
    """
    pooler, classifier, head = 32 * 32 + 32, 32 * 2 + 2, 32 * 32 + 32 + 64
    config = {**BERT, "architectures": [name]}
    found = break_down(capture(config, model="m", seq=8, symbolic=False).graph)
    sizes = {part: found.parts[part].total for part in ("other", "lm_head") if part in found.parts}
    wanted = {"other": pooled * pooler + classified * classifier, "lm_head": words * head}
    assert sizes == {part: size for part, size in wanted.items() if size}
    assert found.tied == (64 * 32 if words else 0)


# --- positions ------------------------------------------------------------------------------------


def beyond(config: Mapping[str, Any], **sizes: Any) -> list[str]:
    made = capture(config, model="m", **sizes)
    return [line for line in made.warnings if "is beyond the" in line]


@pytest.mark.slow
def test_tokens_beyond_the_positions_are_said_and_no_default_is() -> None:
    assert capture(BERT, model="m").graph.meta.seq == 512
    assert beyond(BERT, seq=512) == []
    assert "seq 513 is beyond the 512 positions of m" in beyond(BERT, seq=513)[0]
    assert beyond(WHISPER, phase="decode", past=447) == []
    assert "seq 1 after past 448 is beyond the 448" in beyond(WHISPER, phase="decode", past=448)[0]
    assert capture(WHISPER, model="m").graph.meta.seq == 448
    bart = {"model_type": "bart", "max_position_embeddings": 128, **BART}
    assert beyond(bart, seq=8, source=128) == []
    (said,) = beyond(bart, seq=8, source=129)
    assert "source 129 is beyond the 128 positions of the encoder of m" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "length", "why"),
    [
        (WHISPER, 1500, "WhisperEncoder makes 1500 tokens of whatever it hears"),
        ({**WHISPER, "max_source_positions": 40}, 40, "WhisperEncoder makes 40 tokens"),
        (SEES, 17, "ViTModel makes 17 of 32 x 32 pixels"),  # 4 x 4 patches and the class
    ],
)
@pytest.mark.few(1)
def test_an_encoder_of_sounds_or_images_makes_as_much_as_it_makes(
    config: Mapping[str, Any], length: int, why: str
) -> None:
    made = capture(config, model="m", phase="decode", past=4, symbolic=False)
    assert made.graph.meta.source == length
    cross = {t.shape[-2] for t in made.graph.tensors if ".cross." in t.name and t.op is not None}
    assert cross == {length}
    asked = {"phase": "decode", "past": 4, "source": length, "symbolic": False}
    assert capture(config, model="m", **asked).graph.meta.source
    with pytest.raises(InputError, match=f"leave --source out: {why}"):
        capture(config, model="m", phase="decode", past=4, source=9999)


@pytest.mark.slow
def test_what_an_encoder_makes_of_an_image_is_as_wide_as_a_run_makes_it() -> None:
    """The decoder is 48 wide; the encoder 32, which one more product widens."""
    graph = capture(SEES, model="m", seq=8, symbolic=False).graph
    (encoded,) = [t for t in graph.tensors if t.name == "encoder_hidden_states"]
    assert encoded.shape == (1, 17, 32)
    module = build(SEES, {}, model="m", dtype="float32", attn="eager")
    with torch.device("meta"):
        made = module.get_encoder()(pixel_values=torch.zeros(1, 3, 32, 32))  # type: ignore[operator]
    assert made.last_hidden_state.shape == encoded.shape


@pytest.mark.slow
def test_a_check_of_one_that_hears_goes_through(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(WHISPER))
    done = invoke("models", tmp_path / "m.json", "--check", "--seq", "16", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [phase["phase"] for phase in said["phases"]] == ["encoder", "prefill", "decode"]
    assert said["model_class"] == "WhisperForConditionalGeneration"
