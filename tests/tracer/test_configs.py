"""What a config says is what is traced, or it is said or refused: sizes, attention, class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from costmodels.experts import active_parameters
from tests.support.configs import LLAMA
from tests.support.inprocess import invoke
from tracer.capture import capture
from tracer.capture.configs import check_sizes
from tracer.capture.models import build, settle
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph
from tracer.presets import preset, preset_names
from tracer.serde import read_trace
from tracer.summary import modules_not_run

LLAVA: Mapping[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {**LLAMA, "_attn_implementation": "sdpa"},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "attn_implementation": "sdpa",
    },
}


def kinds(graph: OpGraph) -> set[Kind]:
    return {op.kind for op in graph.ops} & {Kind.ATTENTION, Kind.SOFTMAX}


# --- attention and dtype --------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize(("asked", "other"), [("eager", "sdpa"), ("sdpa", "eager")])
@pytest.mark.few(1)
def test_attention_is_what_was_asked_whatever_the_config_says(
    key: str, asked: str, other: str
) -> None:
    options = {"model": "m", "seq": 8, "attn": asked, "symbolic": False}
    made = capture({**LLAMA, key: other}, **options)
    assert made.graph.meta.attn == asked
    assert kinds(made.graph) == {Kind.SOFTMAX if asked == "eager" else Kind.ATTENTION}
    (said,) = made.warnings
    assert said == f"not used of its config: {key} = {other} (--attn {asked} is what is traced)"
    unset = dict.fromkeys(("quantization_config", "pruned_heads", "auto_map"))
    agreeing = {key: asked, "torch_dtype": "float32", "use_cache": False, **unset}
    assert not capture({**LLAMA, **agreeing}, **options).warnings


@pytest.mark.slow
def test_also_of_the_parts_of_a_model() -> None:
    made = capture(LLAVA, model="m", seq=8, symbolic=False)
    assert (made.graph.meta.attn, kinds(made.graph)) == ("eager", {Kind.SOFTMAX})
    assert "text_config._attn_implementation = sdpa" in made.warnings[0]
    assert "vision_config.attn_implementation = sdpa" in made.warnings[0]


def test_the_header_says_what_attention_the_graph_has(tmp_path: Path) -> None:
    """A user's module is what it is, and a mixer of states is no attention."""
    (tmp_path / "own.py").write_text(
        "import torch\n\n\nclass M(torch.nn.Module):\n    def forward(self, q, k, v):\n"
        "        return torch.nn.functional.scaled_dot_product_attention(q, k, v)\n\n\n"
        "def build():\n    return M(), (torch.ones(1, 2, 3, 4),) * 3\n\n\n"
        "def linear():\n    return torch.nn.Linear(4, 4), torch.ones(2, 4)\n"
    )
    done = invoke("trace", f"{tmp_path}/own.py:build", "--out", tmp_path / "a")
    assert "float32, sdpa attention" in done.stdout
    assert "M has sdpa attention alone, whatever --attn says" in done.stderr
    done = invoke("trace", f"{tmp_path}/own.py:linear", "--out", tmp_path / "b")
    assert "own.linear (Linear): prefill" in done.stdout
    assert "float32, no attention" in done.stdout
    assert "whatever --attn says" not in done.stderr


def test_what_has_no_such_attention_says_so(tmp_path: Path) -> None:
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64}
    (tmp_path / "bloom.json").write_text(json.dumps(bloom))
    done = invoke("trace", tmp_path / "bloom.json", "--seq", "8", "--attn", "sdpa")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "BloomForCausalLM has no sdpa attention: try another --attn" in done.stderr


def test_what_else_of_a_config_is_not_used_is_one_line() -> None:
    config = {
        **LLAMA,
        "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "gptq"},
        "pruned_heads": {"0": [1]},
        "auto_map": {"AutoModel": "own.Model"},
        "use_cache": False,
    }
    made = capture(config, model="m", seq=8, dtype="float16", symbolic=False)
    (said,) = made.warnings
    for part in (
        "torch_dtype = bfloat16 (--dtype float16 is what is traced)",
        "pruned_heads (every head is traced)",
        "auto_map (",
    ):
        assert part in said
    assert "quantization_config" not in said  # how it is stored, see costmodels.checkpoints
    assert {t.dtype for t in made.graph.tensors if t.op is None} == {"float16", "float32"}


# --- sizes ----------------------------------------------------------------------------------------

CLIP = {"model_type": "clip_vision_model", "hidden_size": 32}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model_type": "llama", "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8},
            [
                "dim, n_layers, n_heads, n_kv_heads",
                "hidden_size for dim",
                "num_hidden_layers for n_layers",
                "num_attention_heads for n_heads",
                "num_key_value_heads for n_kv_heads",
            ],
        ),
        ({"model_type": "llama", "vocab_size": 9, "n_layers": 3}, ["num_hidden_layers for"]),
        ({"model_type": "llama", "hiden_size": 64, "num_hidden_layers": 3}, ["hidden_size for"]),
        ({"model_type": "llama", "foo_size": 64}, ["foo_size", "hidden_size", "vocab_size"]),
        (
            {"model_type": "llava", "hidden_size": 64, "num_hidden_layers": 2},
            [
                "LlavaConfig does not read hidden_size, num_hidden_layers",
                "text_config.hidden_size for hidden_size",
            ],
        ),
        (
            {
                "model_type": "llava",
                "vision_config": CLIP,
                "text_config": {"model_type": "llama", "n_layers": 2},
            },
            ["text_config.num_hidden_layers for text_config.n_layers"],
        ),
        ({"model_type": "whisper", "n_layers": 3}, ["decoder_layers for n_layers"]),
    ],
)
def test_sizes_that_the_type_does_not_read_are_refused(
    config: Mapping[str, Any], says: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        capture(config, model="m", seq=8)
    for text in says:
        assert text in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {**LLAMA, "dim": 64, "n_ctx": 5},
            "LlamaConfig has no dim, n_ctx (what it reads is max_position_embeddings)",
        ),
        (
            {**LLAMA, "n_kv_heads": 2},
            "LlamaConfig has no n_kv_heads (what it reads is num_key_value_heads)",
        ),
        (
            {"model_type": "gpt2", "intermediate_size": 5, "n_embd": 8},
            "GPT2Config has no intermediate_size (what it reads is n_inner)",
        ),
        (
            {**LLAVA, "hidden_size": 64, "text_config": {**LLAMA, "dim": 5}},
            "LlavaConfig has no hidden_size; LlamaConfig has no text_config.dim",
        ),
        (
            {"model_type": "t5"},
            "defaults of T5Config (num_layers 6, d_model 512, num_heads 8, vocab_size 32,128)",
        ),
    ],
)
def test_what_is_not_read_and_what_is_a_default_is_said(
    config: Mapping[str, Any], said: str
) -> None:
    assert any(said in line for line in check_sizes(config, "m"))


@pytest.mark.parametrize(
    "config",
    [
        *(preset(name) for name in preset_names()),
        {"model_type": "qwen2_vl", "hidden_size": 64, "num_hidden_layers": 2},  # it moves them
        {"model_type": "gpt2", "hidden_size": 64},  # a name of its own for n_embd
        {**LLAMA, "max_length": 20, "num_beams": 1, "bos_token_id": 1, "num_labels": 3},
        {**LLAVA, "text_config": dict(LLAMA)},
    ],
    ids=lambda config: config["model_type"],
)
def test_no_alarm_is_false(config: Mapping[str, Any]) -> None:
    assert check_sizes(config, "m") == ()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: a model has one layer or more"),
        ({"intermediate_size": 0}, "intermediate_size is 0, which is no size"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, which is no size"),
        ({"head_dim": 0}, "head_dim is 0, which is no size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000: a stack of more than 10,000 layers"),
        ({"vocab_size": 0}, "vocab_size is 0: a model has one token in its vocabulary or more"),
        ({"hidden_size": 0}, "hidden_size is 0: a model has one feature or more"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: a model has one head or more"),
        ({"intermediate_size": -3}, "intermediate_size is -3, which is no size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, which is no size"),
        ({"hidden_size": 10**15}, "m"),
        ({"hidden_size": "64"}, "hidden_size"),
    ],
)
def test_numbers_that_are_no_size_are_refused(changed: Mapping[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        capture({**LLAMA, **changed}, model="m", seq=8)
    assert says in str(refused.value)
    with pytest.raises(InputError):
        capture(LLAMA, model="m", seq=8, overrides=changed)


# --- the class ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_class_is_in_the_header_the_json_and_the_tables(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({**LLAMA, "architectures": None}))
    trace = ("trace", tmp_path / "m.json", "--seq", "8", "--out", tmp_path / "out")
    done = invoke(*trace)
    assert done.stdout.startswith("m (LlamaForCausalLM): prefill of 1 x 8 tokens")
    assert "its config names no architecture: LlamaForCausalLM is what is traced" in done.stderr
    assert json.loads(invoke(*trace, "--json").stdout)["model_class"] == "LlamaForCausalLM"
    assert read_trace(tmp_path / "out")[0].meta.model_class == "LlamaForCausalLM"


def test_the_first_class_that_there_is() -> None:
    config = {**LLAMA, "architectures": ["LlamaPoet", "LlamaModel"]}
    made = capture(config, model="m", seq=8, symbolic=False)
    assert made.graph.meta.model_class == "LlamaModel"
    assert made.warnings == ("LlamaModel is what is traced: transformers has no LlamaPoet",)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("BertModel", "BertModel is no model of model_type 'llama', but of 'bert'"),
        ("LlamaConfig", "no architecture LlamaConfig"),
        ("pipeline", "no architecture pipeline"),
    ],
)
def test_a_class_that_is_none_of_the_type(named: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        capture({**LLAMA, "architectures": [named]}, model="m", seq=8)
    assert says in str(refused.value)
    assert "--set architectures=LlamaForCausalLM" in str(refused.value)


@pytest.mark.slow
def test_of_a_model_that_also_sees_the_tower_is_not_run(tmp_path: Path) -> None:
    """Its parameters, by hand: CLIP's vision model, 16 wide over 4 patches of 14 x 14 x 3.

    A class token 16, patches 3*14*14*16, positions 5*16; two layers of four products 16 x 16 with
    biases, an MLP of 24 with biases, and two norms; two norms around. The projector: 16 -> 32 ->
    32 with biases.
    """
    layer = 4 * (16 * 16 + 16) + (16 * 24 + 24) + (24 * 16 + 16) + 2 * 2 * 16
    tower = 16 + 3 * 14 * 14 * 16 + 5 * 16 + 2 * layer + 2 * 2 * 16
    projector = (16 * 32 + 32) + (32 * 32 + 32)
    (tmp_path / "m.json").write_text(json.dumps({**LLAVA, "architectures": None}))
    done = invoke("trace", tmp_path / "m.json", "--seq", "8", "--out", tmp_path)
    graph = read_trace(tmp_path)[0]
    assert graph.meta.model_class == "LlavaForConditionalGeneration"
    idle = {"model.vision_tower": tower, "model.multi_modal_projector": projector}
    assert modules_not_run(graph) == idle
    llama = build(LLAMA, {}, model="m", dtype="float32", attn="eager")
    alone = sum(parameter.numel() for parameter in llama.parameters())
    assert graph.meta.parameters - tower - projector == alone
    table = LLAMA["vocab_size"] * LLAMA["hidden_size"]  # of which a token looks up a row
    assert active_parameters(graph) == alone - table
    said = f"{tower + projector:,} of them are not run: model.vision_tower ({tower:,}), "
    assert said in done.stdout
    assert said in invoke("params", tmp_path / "m.json").stdout


@pytest.mark.slow
def test_the_encoder_of_a_decoders_step_is_not_run() -> None:
    """T5's table of tokens is the encoder's too: it is read, and the rest of the encoder is not."""
    t5 = {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "vocab_size": 64,
    }
    graph = capture(t5, model="m", phase="decode", past=4, source=4, symbolic=False).graph
    idle = modules_not_run(graph)
    # Blocks: four products 32 x 32, an MLP of two 32 x 48, two norms; 32 buckets x 4 heads once.
    assert idle["encoder.block"] == 2 * (4 * 32 * 32 + 2 * 32 * 48 + 2 * 32) + 32 * 4
    buckets = 32 * 4  # the decoder's own, of which rows are looked up
    assert graph.meta.parameters - active_parameters(graph) == sum(idle.values()) + buckets


@pytest.mark.parametrize("kind", ["musicflamingo", "llava"])
def test_a_field_of_a_config_inside_that_is_not_written_leaves_its_type(kind):
    """Some classes ask a part for its type, which their defaults say."""
    settled, _ = settle({"model_type": kind}, {"text_config.num_hidden_layers": 2}, model="m")
    default = transformers.CONFIG_MAPPING[kind]().text_config.model_type
    assert settled["text_config"] == {"num_hidden_layers": 2, "model_type": default}
