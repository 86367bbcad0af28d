"""Encoder-decoder models, masked LMs and image models, against torch's counter and real runs."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import BaseModelOutput, MoEModelOutput

from costmodels.flops import annotate, total_flops
from tools.coverage import counted_by_torch
from tracer.capture import capture, quiet
from tracer.capture.models import build
from tracer.errors import CutedgeError, InputError
from tracer.formula import parse
from tracer.graph import Kind, OpGraph, Role, Tensor

MODELS = {
    "t5": (
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_heads": 4,
            "num_layers": 2,
            "num_decoder_layers": 1,
            "vocab_size": 64,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 64,
            "max_position_embeddings": 64,
        },
    ),
}


def config(kind: str) -> dict[str, object]:
    architecture, fields = MODELS[kind]
    return {"model_type": kind, "architectures": [architecture], **fields}


def traced(kind: str, **options: object) -> OpGraph:
    return annotate(capture(config(kind), model=kind, **options).graph)  # type: ignore[arg-type]


def state(graph: OpGraph, kind: Kind) -> list[Tensor]:
    return [
        t
        for op in graph.ops
        if op.kind is kind
        for t in (graph.outputs(op.id) if kind is Kind.INPUT else graph.inputs(op.id))
        if t.role is Role.KV_CACHE
    ]


def real_model(kind: str) -> torch.nn.Module:
    settings = transformers.CONFIG_MAPPING[kind].from_dict(config(kind))
    settings._attn_implementation = "eager"
    model: torch.nn.Module = getattr(transformers, MODELS[kind][0])(settings)
    return model.eval()


# --- encoder-decoder ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("phase", ["encoder", "prefill", "decode"])
@pytest.mark.few(1)
def test_products_of_each_phase_equal_torch(kind, phase):
    """The real model on the CPU, its encoder alone, then its decoder over given encoded tokens."""
    batch, seq, past, source = 2, 1 if phase == "decode" else 6, 5, 9
    sizes = {
        "encoder": {"seq": seq},
        "prefill": {"seq": seq, "source": source},
        "decode": {"past": past, "source": source},
    }[phase]
    graph = traced(kind, phase=phase, batch=batch, symbolic=False, **sizes)
    model = real_model(kind)
    encoded = BaseModelOutput(last_hidden_state=torch.randn(batch, source, 32))
    with torch.no_grad():
        filled = model(
            encoder_outputs=encoded,
            decoder_input_ids=torch.zeros(batch, past, dtype=torch.int64),
            use_cache=True,
        ).past_key_values
        ids = torch.zeros(batch, seq, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            if phase == "encoder":
                model.get_encoder()(input_ids=ids)
            else:
                cached = {"past_key_values": filled} if phase == "decode" else {}
                model(
                    encoder_outputs=encoded,
                    decoder_input_ids=ids,
                    use_cache=phase == "decode",
                    **cached,
                )
    assert total_flops(graph).products == counter.get_total_flops()
    assert total_flops(graph).unsupported == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.few(1)
def test_state_of_a_decoder_is_that_of_a_real_run(kind):
    """Keys and values over the tokens made so far, and those over the encoded ones, each layer."""
    graph = traced(kind, phase="decode", batch=2, past=5, source=9)
    model = real_model(kind)
    encoded = BaseModelOutput(last_hidden_state=torch.randn(2, 9, 32))
    with torch.no_grad():
        cache = model(
            encoder_outputs=encoded,
            decoder_input_ids=torch.zeros(2, 5, dtype=torch.int64),
            use_cache=True,
        ).past_key_values
    wanted = [
        tuple(tensor.shape)
        for part in (cache.self_attention_cache, cache.cross_attention_cache)
        for layer in part.layers
        if layer.keys is not None
        for tensor in (layer.keys, layer.values)
    ]
    assert sorted(t.shape for t in state(graph, Kind.INPUT)) == sorted(wanted)
    crossed = {t.shape_expr for t in state(graph, Kind.INPUT) if ".cross." in t.name}
    assert crossed == {("batch", "4", "source", "8")}
    names = [t.name for op in graph.ops if op.kind is Kind.INPUT for t in graph.outputs(op.id)]
    assert "encoder_hidden_states" not in names  # only what was made of it is read
    after = {t.shape_expr for t in state(graph, Kind.OUTPUT)}
    assert after == {("batch", "4", "past + 1", "8"), ("batch", "4", "source", "8")}


@pytest.mark.slow
def test_formulas_of_a_decoder_are_those_of_other_sizes():
    graph = traced("bart", phase="prefill", batch=2, seq=6, source=9)
    other = {"batch": 3, "seq": 11, "source": 4, "past": 0}
    fresh = traced("bart", phase="prefill", batch=3, seq=11, source=4)
    assert graph.meta.symbolic == ("batch", "seq", "source")
    wanted = [t.shape for t in fresh.tensors]
    assert [tuple(parse(e).evaluate(other) for e in t.shape_expr) for t in graph.tensors] == wanted


@pytest.mark.slow
def test_a_prefill_over_encoded_tokens_fills_both_caches():
    graph = traced("t5", phase="prefill", seq=6, source=9, cache=True)
    shapes = [t.shape_expr for t in state(graph, Kind.OUTPUT)]
    assert shapes.count(("batch", "4", "seq", "8")) == 2
    assert shapes.count(("batch", "4", "source", "8")) == 2


@pytest.mark.parametrize("symbolic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_decoder_gets_what_its_own_encoder_returns(symbolic):
    """Also where it asks for more of it than the tokens: here for what the routers said.

    A sparse layer in so many that its only one is none.
    """
    small = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 1,
        "vocab_size": 64,
        "num_decoder_layers": 1,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
    }
    described = {
        "model_type": "switch_transformers",
        **small,
        "architectures": ["SwitchTransformersForConditionalGeneration"],
    }
    sizes = {"batch": 2, "seq": 6, "source": 9}
    graph = annotate(capture(described, model="m", symbolic=symbolic, **sizes).graph)
    assert graph.meta.symbolic == (tuple(sizes) if symbolic else ())
    inputs = {
        "decoder_input_ids": torch.zeros(2, 6, dtype=torch.int64, device="meta"),
        "encoder_outputs": MoEModelOutput(last_hidden_state=torch.zeros(2, 9, 32, device="meta")),
    }
    assert total_flops(graph).products == counted_by_torch(described, {}, "m", inputs)


# --- other heads ----------------------------------------------------------------------------------

VISION = {
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


@pytest.mark.parametrize("kind", VISION)
@pytest.mark.few(1)
def test_an_image_model_reads_images(kind):
    """Sizes from the config, and products equal to torch's count on the eager model."""
    described = {"model_type": kind, **VISION[kind]}
    graph = annotate(capture(described, model=kind, batch=2).graph)
    side = VISION[kind].get("image_size", 224)
    (pixels,) = [t for op in graph.ops if op.kind is Kind.INPUT for t in graph.outputs(op.id)]
    assert pixels.shape == (2, 3, side, side)
    assert pixels.shape_expr == ("batch", "3", str(side), str(side))
    assert (graph.meta.symbolic, graph.meta.seq) == (("batch",), 0)
    with quiet():
        module = build(described, {}, model=kind, dtype="float32", attn="eager")
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module(pixel_values=torch.zeros(2, 3, side, side))
    assert total_flops(graph).products == counter.get_total_flops()


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        ({"model_type": "t5"}, "T5ForConditionalGeneration"),
        ({"model_type": "vit"}, "ViTForImageClassification"),
        ({"model_type": "deberta-v2"}, "DebertaV2ForMaskedLM"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "bert"}, "BertLMHeadModel"),  # a causal LM before all else
    ],
)
@pytest.mark.few(3)
def test_the_head_is_the_one_that_the_config_names_or_the_first_there_is(described, wanted):
    small = {"num_hidden_layers": 1} if described["model_type"] != "t5" else {"num_layers": 1}
    with quiet():
        module = build(described, small, model="m", dtype="float32", attn="eager")
    assert type(module).__name__ == wanted


def test_the_head_can_be_set_and_must_exist():
    named = {"architectures": ["BertForSequenceClassification"]}
    options = {"model": "m", "dtype": "float32", "attn": "eager"}
    with quiet():
        module = build({"model_type": "bert", "num_hidden_layers": 1}, named, **options)
        assert type(module).__name__ == "BertForSequenceClassification"
        with pytest.raises(InputError, match=r"no architecture BertForPoetry.*BertLMHead"):
            build({"model_type": "bert"}, {"architectures": ["BertForPoetry"]}, **options)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("vit", {"seq": 8}, "leave --seq out: it reads images"),
        ("vit", {"phase": "decode", "past": 3}, "it has no decode"),
        ("t5", {"phase": "encoder", "past": 3}, "leave --past out: an encoder reads all"),
        ("t5", {"phase": "encoder", "source": 3}, "leave --source out"),
        ("gpt2", {"source": 3}, "leave --source out: only the decoder"),
        ("gpt2", {"phase": "encoder"}, "has no encoder apart"),
        ("bert", {"phase": "verse"}, "unknown phase 'verse': prefill, decode, encoder"),
    ],
)
def test_sizes_that_a_model_does_not_have(kind, options, says):
    with pytest.raises(CutedgeError, match=says):
        capture({"model_type": kind}, model=kind, **options)
