"""Decode, chunks and verification over a cache, against closed forms and real runs."""

import pytest
import torch
import transformers

from costmodels.flops import annotate, total_flops
from costmodels.links import Links, load_link
from partition.accounting import account
from partition.policy import apply_policy, fixed_policy_names, load_policy
from tracer.capture import capture
from tracer.errors import CutedgeError, InputError
from tracer.formula import parse
from tracer.graph import Kind, OpGraph, Role, Tensor
from tracer.presets import preset


def inputs(graph: OpGraph) -> list[Tensor]:
    """The cached state that a graph takes."""
    return [
        t
        for t in graph.tensors
        if t.role is Role.KV_CACHE and t.op is not None and graph.ops[t.op].kind is Kind.INPUT
    ]


def returned(graph: OpGraph) -> list[Tensor]:
    """The state that a graph gives back."""
    return [t for t in graph.inputs(len(graph.ops) - 1) if t.role is Role.KV_CACHE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "products"),
    [(1, 655_368_192), pytest.param(16, 2_605_842_432, marks=pytest.mark.slow)],
)
@pytest.mark.few(1)
def test_decode_of_llama_in_closed_form(layers, products, traced):
    """One token reads all weights but the norms, and q k^T and p v over 1025 tokens in 32 heads.

    The weights: of a layer 60,817,408, see below, and of the head 2048 x 128,256.
    """
    shallow = {"num_hidden_layers": layers}
    graph = traced("llama-3.2-1b", phase="decode", past=1024, overrides=shallow)
    weights = 2 * (layers * 60_817_408 + 2048 * 128256)
    assert total_flops(graph).products == products
    assert weights + layers * 2 * 2 * 32 * 64 * 1025 == products
    assert parse(total_flops(graph).products_expr or "").evaluate(
        {"batch": 3, "seq": 1, "past": 99}
    ) == 3 * (weights + layers * 2 * 2 * 32 * 64 * 100)
    assert sum(t.bytes for t in inputs(graph)) == 2 * layers * 8 * 64 * 1024 * 4
    assert {t.shape_expr for t in inputs(graph)} == {("batch", "8", "past", "64")}
    assert {t.shape_expr for t in returned(graph)} == {("batch", "8", "past + 1", "64")}
    assert len(inputs(graph)) == len(returned(graph)) == 2 * layers
    assert graph.meta.symbolic == ("batch", "past")


@pytest.mark.slow
@pytest.mark.parametrize(("seq", "past"), [(256, 768), (5, 1000)])
@pytest.mark.few(1)
def test_chunks_and_verification_are_formulas_in_seq_and_past(seq, past):
    shallow = {"num_hidden_layers": 1}
    graph = annotate(
        capture(preset("llama-3.2-1b"), model="m", seq=seq, past=past, overrides=shallow).graph
    )
    assert graph.meta.symbolic == ("batch", "seq", "past")
    scores = [t for t in graph.tensors if t.label == "attention_scores"]
    assert {t.shape for t in scores} == {(1, 32, seq, past + seq)}
    assert {t.shape_expr for t in scores} == {("batch", "32", "seq", "past + seq")}
    # 2*(weights of the layer) a token, the last token's logits, 2 products over past + seq
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    wanted = 2 * seq * layer + 2 * 2048 * 128256 + 2 * 2 * 32 * 64 * seq * (past + seq)
    assert total_flops(graph).products == wanted


SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
KINDS = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma2": {"num_key_value_heads": 2, "sliding_window": 8, "head_dim": 16},
    "deepseek_v3": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 2,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 8},
    "gpt2": {"n_embd": 64, "n_head": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("past", [pytest.param(3, marks=pytest.mark.slow), 12])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(1)
def test_state_is_that_of_a_real_run(kind, past):
    """A real model, prefilled and stepped once on the CPU: every tensor of its cache."""
    fields = {**SMALL, **KINDS[kind], "num_hidden_layers": 2}
    config = {"model_type": kind, **fields}
    graph = capture(
        config, model=kind, phase="decode", batch=2, seq=1, past=past, symbolic=False
    ).graph

    settings = transformers.CONFIG_MAPPING[kind].from_dict(config)
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    cache = transformers.DynamicCache(config=settings)
    shapes = []
    with torch.no_grad():
        for tokens in (past, 1):
            model(
                input_ids=torch.zeros(2, tokens, dtype=torch.int64),
                past_key_values=cache,
                cache_params=cache,
                use_cache=True,
            ) if kind == "mamba2" else model(
                input_ids=torch.zeros(2, tokens, dtype=torch.int64), past_key_values=cache
            )
            shapes.append([tuple(t.shape) for layer in cache.layers for t in kept(layer)])
    assert sorted(t.shape for t in inputs(graph)) == sorted(shapes[0])
    assert sorted(t.shape for t in returned(graph)) == sorted(shapes[1])


def kept(layer: object) -> list[torch.Tensor]:
    found = []
    for name in ("keys", "values", "conv_states", "recurrent_states"):
        value = getattr(layer, name, None)
        values = value.values() if isinstance(value, dict) else [value]
        found += [t for t in values if isinstance(t, torch.Tensor)]
    return found


DECODE = {"phase": "decode", "seq": 1, "past": 20}
FILLING = {"seq": 16, "cache": True}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", {**DECODE, "symbolic": False}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("llama", DECODE),
                ("mamba2", DECODE),
                ("llama", FILLING),
                ("gemma2", DECODE),
                ("gemma2", FILLING),
            )
        ),
    ],
)
@pytest.mark.slow
def test_repeated_layers_equal_the_whole_trace_over_a_cache(kind, sizes):
    fields = {**SMALL, **KINDS[kind], "num_hidden_layers": 8}
    one, two = (
        capture({"model_type": kind, **fields}, model=kind, full=full, **sizes).graph
        for full in (False, True)
    )
    assert one.meta.repeated_layers > 0
    assert (one.ops, one.tensors, one.edges) == (two.ops, two.tensors, two.edges)


HALVES = {
    "bart": {
        "architectures": ["BartForConditionalGeneration"],
        "encoder_layers": 2,
        "decoder_layers": 8,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": 8,
        "num_decoder_layers": 8,
        "num_heads": 4,
        "d_kv": 16,
        "d_ff": 64,
    },
}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        pytest.param(  # its cross state stays as it is
            "bart", {"phase": "decode", "past": 20, "source": 24}, marks=pytest.mark.slow
        ),
        # all blocks read the first one's biases
        ("t5", {"phase": "encoder", "seq": 16, "symbolic": False}),
        pytest.param("t5", {"phase": "encoder", "seq": 16}, marks=pytest.mark.slow),
        pytest.param("t5", {"phase": "decode", "past": 20, "source": 24}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_repeated_layers_equal_the_whole_trace_of_an_encoder_and_a_decoder(kind, sizes):
    config = {"model_type": kind, "d_model": 64, "vocab_size": 99, **HALVES[kind]}
    one, two = (capture(config, model=kind, full=full, **sizes).graph for full in (False, True))
    assert one.meta.repeated_layers == 8 - 4
    assert (one.ops, one.tensors, one.edges) == (two.ops, two.tensors, two.edges)


@pytest.mark.slow
def test_a_prefill_that_fills_a_cache_returns_it(one_token):
    """It does the work of one that fills no cache: by its formula, that of a token alone."""
    config = {"model_type": "llama", **SMALL, **KINDS["llama"], "num_hidden_layers": 1}
    filling = annotate(capture(config, model="m", seq=16, cache=True).graph)
    _, plain = one_token
    assert returned(plain) == []
    assert [t.shape_expr for t in returned(filling)] == [("batch", "2", "seq", "16")] * 2
    products = parse(total_flops(filling).products_expr or "")
    assert products.evaluate({"batch": 1, "seq": 1}) == total_flops(plain).products > 0


@pytest.fixture(scope="module")
def one_token() -> tuple[OpGraph, OpGraph]:
    """Decode of a token over 50 cached ones, and a prefill of it alone."""
    config = {"model_type": "llama", **SMALL, **KINDS["llama"], "num_hidden_layers": 1}
    return (
        annotate(capture(config, model="m", phase="decode", seq=1, past=50).graph),
        annotate(capture(config, model="m", seq=1, symbolic=False).graph),
    )


@pytest.mark.parametrize(
    "name", sorted(fixed_policy_names(), key=lambda name: (name != "flash-attention", name))
)
@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.few(2)
def test_new_rows_cross_and_never_the_cache(name, residency, one_token):
    """Where attention is on the accelerator, K and V of 1 token go there, and the cache stays."""
    graph, prefill = one_token
    placement = apply_policy(graph, load_policy(name), home="tee", accelerators=("gpu",))
    traffic = account(graph, placement, Links(load_link("none")), residency=residency)
    cache = 2 * 2 * 16 * 50 * 4  # (k, v) x heads x width x tokens x bytes
    held = dict(account(graph, placement, Links(load_link("none"))).resident_bytes)
    before = apply_policy(prefill, load_policy(name), home="tee", accelerators=("gpu",))
    without = account(prefill, before, Links(load_link("none"))).resident_bytes
    grown = {device: held[device] - without[device] for device in held}
    assert all(t.tensor.role is not Role.KV_CACHE for t in traffic.transfers)
    place = "gpu" if name == "flash-attention" else "tee"
    assert abs(grown[place] - cache) < 1000  # constants differ by a few positions
    if name == "flash-attention":
        rows = [t for t in traffic.transfers if t.tensor.label in ("k", "v")]
        sent = [t for t in rows if t.direction == "send"]
        assert [t.payload_bytes for t in sent] == [2 * 16 * 4] * 2
        assert traffic.total_expr is not None
        assert "past" not in traffic.total_expr


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"phase": "decode", "seq": 1, "past": 0}, "--past 1 or more"),
        ({"phase": "decode", "seq": 4, "past": 9}, "--phase prefill --seq 4 --past 9"),
    ],
)
def test_sizes_that_are_no_such_phase(sizes, says):
    with pytest.raises(InputError, match=says):
        capture(preset("gpt2"), model="gpt2", **sizes)


def test_a_model_without_a_cache_has_no_decode():
    with pytest.raises(CutedgeError, match="takes no cache"):
        capture(preset("bert-base"), model="bert-base", phase="decode", seq=1, past=9)


def test_a_cache_that_cannot_be_filled_is_one_line_that_says_where():
    """A loop over the experts that were hit; a config that names its layers otherwise."""
    experts = {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 1,
        "vocab_size": 64,
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8, "kv_n_heads": 2},
    }
    for config, says in (
        ({"model_type": "dbrx", **experts}, r"in .*\(DbrxExperts\) at modeling_dbrx.py"),
        ({"model_type": "blt", "patch_in_forward": False}, "num_hidden_layers"),
    ):
        with pytest.raises(CutedgeError, match=f"its cache cannot be filled .*{says}") as caught:
            capture(config, model="m", phase="decode", past=8)
        assert "\n" not in str(caught.value)


def test_state_that_modules_keep_for_themselves_is_refused():
    """recurrent_gemma writes its recurrent states into its modules, not into the cache."""
    config = {
        "model_type": "recurrent_gemma",
        **SMALL,
        "num_hidden_layers": 3,
        "lru_width": 64,
        "attention_window_size": 32,
        "num_key_value_heads": 1,
    }
    with pytest.raises(CutedgeError, match="keeps state in its own modules"):
        capture(config, model="m", phase="decode", past=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "past", [6, *(pytest.param(past, marks=pytest.mark.slow) for past in (8, 12))]
)
def test_chunks_of_attention_bound_the_cache_as_windows_do(past):
    """A layer that looks back at most 8 tokens keeps 7 for the next; the other layer keeps all."""
    config = {
        "model_type": "llama4_text",
        **SMALL,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "attention_chunk_size": 8,
        "moe_layers": [],
        "num_hidden_layers": 2,
        "layer_types": ["chunked_attention", "full_attention"],
        "pad_token_id": 0,
    }
    graph = capture(config, model="m", phase="decode", past=past, symbolic=False).graph
    kept = {t.shape[2] for t in inputs(graph)}
    assert kept == {min(past, 7), past}
