"""Cached state: which of what a run hands back renews which of what it was given."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from partition.accounting import account
from partition.optimise import place
from partition.policy import apply_policy, load_policy
from partition.setting import Setting
from partition.stored import state_readers
from tests.support.graphs import Builder
from tracer.capture import capture
from tracer.graph import Kind, OpGraph, Role
from tracer.summary import cached_inputs, cached_outputs, renewals

ENCODED: dict[str, Any] = {"phase": "decode", "past": 8, "source": 16}
DECODE: dict[str, Any] = {"phase": "decode", "past": 8}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "t5": ({"num_layers": 2, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64}, ENCODED),
    "bart": (BART, ENCODED),
    "pegasus": (BART, ENCODED),
    "mbart": (BART, ENCODED),
    "whisper": (BART | {"pad_token_id": 0, "max_source_positions": 20}, DECODE),
    "mistral": (
        SMALL | {"num_key_value_heads": 2, "sliding_window": 6, "num_hidden_layers": 3},
        {"phase": "decode", "past": 12},
    ),
    "gemma3_text": (
        SMALL
        | {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 6,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {"phase": "decode", "past": 12},
    ),
    "deepseek_v3": (
        SMALL
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 3,
            "head_dim": 4,
        },
        DECODE,
    ),
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "vocab_size": 99},
        DECODE,
    ),
    "mamba2": (
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "state_size": 4,
            "vocab_size": 99,
            "num_heads": 8,
            "head_dim": 8,
            "expand": 2,
            "n_groups": 1,
        },
        DECODE,
    ),
    "jamba": (
        SMALL
        | {
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        DECODE,
    ),
    "qwen3_next": (
        SMALL
        | {
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        DECODE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [{}, {"phase": "prefill", "seq": 4}], ids=["token", "chunk"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(1)
def test_what_state_is_made_of_tells_what_it_renews(kind, chunk):
    """A capture knows the pairs from the model's cache, and hands state back as it was given."""
    config, sizes = KINDS[kind]
    options = {**sizes, **chunk, "symbolic": False}
    graph = capture({"model_type": kind, **config}, model=kind, **options).graph
    before, after = cached_inputs(graph), cached_outputs(graph)
    assert len(before) == len(after) > 0
    assert renewals(graph) == list(zip(before, after, strict=True))


@pytest.mark.slow
def test_a_new_cache_renews_nothing():
    config = {"model_type": "t5", **KINDS["t5"][0], "num_layers": 1}
    options = {"seq": 4, "source": 8, "cache": True, "symbolic": False}
    graph = capture(config, model="t5", **options).graph
    assert cached_inputs(graph) == []
    assert len(cached_outputs(graph)) == 4
    assert renewals(graph) == []
    assert state_readers(graph) == {}


def handed_back(order: Sequence[int]) -> tuple[OpGraph, dict[str, str]]:
    """Keys, values, a window, a recurrent state, and what an encoder made; handed back in any
    order. With it, the name of each that is given, and of what it becomes."""
    b = Builder(symbolic=False)

    def state(name: str, shape: Sequence[int]) -> int:
        return b.input(name, list(shape), role=Role.KV_CACHE)

    keys, values, window = state("keys", (4, 2)), state("values", (4, 2)), state("window", (3, 2))
    recurrent, other = state("recurrent", (2, 2)), state("other", (2, 2))
    cross = state("cross", (9, 2))
    x = b.input("x", [1, 2])
    k, v = b.op("k", x, shape=[1, 2]), b.op("v", x, shape=[1, 2])
    attention = b.op(
        "attention",
        x,
        grown_keys := b.op("grown_keys", keys, k, shape=[5, 2], kind=Kind.COPY),
        grown_values := b.op("grown_values", values, v, shape=[5, 2], kind=Kind.COPY),
        shape=[1, 2],
    )
    wide = b.op("wide", window, attention, shape=[4, 2], kind=Kind.COPY)
    slid = b.view("slid", wide, [3, 2])
    # Arithmetic: the second layer's state comes of the first one's too, from further away.
    first = b.op("first", recurrent, attention, shape=[2, 2])
    between = b.op("between", b.op("mixed", first, wide, shape=[1, 2]), shape=[1, 2])
    second = b.op("second", other, between, shape=[2, 2])
    crossed = b.op("crossed", second, cross, shape=[1, 2])
    made = [grown_keys, grown_values, slid, first, second]
    for tensor in made:
        b.tensors[tensor] = replace(b.tensors[tensor], role=Role.KV_CACHE)
    graph = b.finish(crossed, *([*made, cross][n] for n in order))
    pairs = {
        "keys": "grown_keys",
        "values": "grown_values",
        "window": "slid",
        "recurrent": "first",
        "other": "second",
        "cross": "cross",
    }
    return graph, pairs


@pytest.mark.parametrize("order", list(permutations(range(6)))[::37])
def test_the_order_of_what_is_handed_back_does_not_matter(order):
    graph, pairs = handed_back(order)
    assert {old.name: new.name for old, new in renewals(graph)} == pairs
    ops = {op.name: op.id for op in graph.ops}
    made = {t.name: t.id for t in graph.tensors}
    # New rows come to who reads the state that they are appended to, or that is renewed as a whole.
    assert state_readers(graph) == {
        made["k"]: (ops["attention"],),
        made["v"]: (ops["attention"],),
        made["attention"]: (ops["mixed"],),
        made["first"]: (ops["first"],),
        made["second"]: (ops["second"],),
    }


def test_state_that_is_not_handed_back_is_not_renewed():
    """Nor is it taken for what is handed back in its place: fewer come out than went in."""
    graph, _ = handed_back([1, 4])
    assert {old.name: new.name for old, new in renewals(graph)} == {
        "values": "grown_values",
        "other": "second",
    }


@pytest.fixture(scope="module")
def t5() -> OpGraph:
    captured = capture(
        {"model_type": "t5", "num_layers": 2},
        model="t5",
        batch=2,
        symbolic=False,
        **ENCODED | {"past": 32, "source": 256},
    )
    return annotate(captured.graph)


def test_a_layer_of_a_decoder_sends_its_own_rows_alone(t5, tmp_path):
    """Its input and its output: 2 sequences x 1 token x 512 floats, 4,096 bytes each way.

    Both caches of layer 1 lie where it runs, and so do the new rows of its own.
    """
    path = tmp_path / "layer.toml"
    path.write_text(
        'description = "layer 1 away"\ndefault = "home"\n[[rule]]\nlayer = [1]\n'
        'place = "accelerator"\nreason = "test"\n'
    )
    setting = Setting(Machine("tee", ("gpu",), Links(load_link("none"))))
    where = place(t5, load_policy(str(path)), setting).placement
    for residency in ("run", "call"):
        traffic = account(t5, where, setting.machine.links, residency=residency)
        assert [(t.direction, t.payload_bytes) for t in traffic.transfers] == [
            ("send", 4096),
            ("receive", 4096),
        ]


def test_the_best_cut_of_a_decoder_moves_no_row(t5):
    """Before the last layer: its input, 4,096 bytes, and 2 x 1 x 32,128 logits home, 257,024."""
    placed = place(
        t5, load_policy("layers"), Setting(Machine("tee", ("gpu",), Links(load_link("none"))))
    )
    traffic = account(t5, placed.placement, Links(load_link("none")))
    assert placed.solution is not None
    assert placed.solution.objective == traffic.totals.payload_bytes == 4096 + 257024
    assert len(traffic.transfers) == 2


def test_a_new_row_goes_once_and_with_the_call_that_needs_it(traced):
    """Two layers of gpt2 over 500 cached tokens, whose attention reads the cache itself.

    A layer sends, in floats of 4 bytes: the norm's 768, q 768, the transpose of all 501 x 768 keys,
    the new row of values 768 with scores*V and not before, 12 x 501 probabilities, 768 for the
    projection, 768 and 3,072 for the MLP; it receives 3 x 768, 12 x 501 scores, 768, 768, 3,072 and
    768. Once: an id of 8 bytes, 768 back, 768 out, 50,257 logits back.
    """
    graph = traced("gpt2", phase="decode", past=500, overrides={"n_layer": 2})
    where = apply_policy(graph, load_policy("offload-linear"), home="tee", accelerators=("gpu",))
    sent = 768 + 768 + 501 * 768 + 768 + 12 * 501 + 768 + 768 + 3072
    received = 3 * 768 + 12 * 501 + 768 + 768 + 3072 + 768
    once = 8 + 4 * (768 + 768 + 50257)
    for residency in ("run", "call"):
        traffic = account(graph, where, Links(load_link("none")), residency=residency)
        assert traffic.totals.payload_bytes == 2 * 4 * (sent + received) + once
        assert len(traffic.transfers) == 2 * (8 + 6) + 4
        state = [op for op in graph.state_ops if graph.ops[op].kind is not Kind.INPUT]
        rows = {t.id for op in state for t in graph.inputs(op) if graph.crosses(t)}
        labels = {traffic.calls[t.call].label for t in traffic.transfers if t.tensor.id in rows}
        assert labels == {"scores*V"}
