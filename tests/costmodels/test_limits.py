"""Limits of single-user inference, and parameters by part, against counts by hand."""

import csv
import json
from dataclasses import replace

import pytest

import cutedge
from costmodels.devices import load_device
from costmodels.flops import total_flops
from costmodels.limits import (
    DeviceFigures,
    Least,
    Line,
    ModelCounts,
    _Experts,
    compute_dtype,
    describe,
    device_figures,
    in_units,
    limits,
)
from costmodels.parameters import break_down
from cutedge._request import decodes
from tests.support import REFERENCE
from tests.support.inprocess import invoke
from tracer.errors import InputError
from tracer.summary import cached_inputs


def even(slope: int, start: int = 0) -> Least:
    return Least(Line(slope, start), Line(slope, start))


TINY = ModelCounts(
    dense_layers_params=1000, experts=(), lm_head_params=200, cached=even(10), attention=even(40)
)
ROUND = DeviceFigures(memory_bytes=10_000, bytes_per_second=1e6, flops_per_second=1e7)


def at(prompt: int, *, model: ModelCounts = TINY, weight_bits: float = 16, kv_bits: float = 16):
    return limits(model, ROUND, weight_bits=weight_bits, kv_bits=kv_bits, prompt=prompt)


def test_by_hand():
    found = at(5, weight_bits=8)
    assert found.activated_params == 1200
    assert found.kv_tokens == (10_000 - 1200) // 20
    assert found.read_ms == pytest.approx((1200 + 9 * 20) / 1e6 * 1e3)
    assert found.compute_ms_coarse == pytest.approx((2 * 1200 + 2 * 40) * 5 / 1e7 * 1e3)
    assert found.compute_ms_fine == pytest.approx((2 * 1000 * 5 + 2 * 40 * 5 + 2 * 200) / 1e4)
    assert found.compute_ms_causal == pytest.approx((2 * 1000 * 5 + 2 * 200 + 40 * 15) / 1e4)
    assert found.first_token_ms == max(found.read_ms, found.compute_ms_fine)
    assert found.decode_B_ms == pytest.approx((1200 + 20) / 1e6 * 1e3)
    assert found.decode_W_tokens_per_ms == pytest.approx(1e3 / 20)


@pytest.mark.parametrize("weight_bits", [2, 16])
@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_reading_and_computing_take_the_same_time_at_the_knee(weight_bits, kind):
    knee = getattr(at(1, weight_bits=weight_bits), f"knee_tokens_{kind}")
    below, above = (at(n, weight_bits=weight_bits) for n in (int(knee), int(knee) + 1))
    assert getattr(below, f"compute_ms_{kind}") <= below.read_ms
    assert getattr(above, f"compute_ms_{kind}") >= above.read_ms


def test_no_knee_where_computing_never_takes_longer():
    # A token's cache is read in 20 us and computed with in 248 us / 1000.
    slow_memory = replace(ROUND, flops_per_second=1e12)
    found = limits(TINY, slow_memory, weight_bits=8, kv_bits=16, prompt=5)
    assert found.knee_tokens_coarse is None
    assert found.knee_tokens_fine is None


@pytest.mark.parametrize(("memory", "tokens"), [(1199, None), (1200, 0), (1219, 0), (1220, 1)])
def test_tokens_that_fit_beside_the_weights(memory, tokens):
    room = replace(ROUND, memory_bytes=memory)
    assert limits(TINY, room, weight_bits=8, kv_bits=16, prompt=1).kv_tokens == tokens


def test_experts_count_by_the_share_that_tokens_meet():
    model = replace(TINY, experts=(_Experts(8000, 0.25),))
    assert at(1, model=model).activated_params == 1200 + 2000
    assert at(1, model=model).stored_params == 1200 + 8000
    two = (1200 + 8000 * (1 - 0.75**2)) * 2  # two tokens choose by themselves; 16 bits
    assert at(2, model=model).read_ms == pytest.approx((two + 3 * 20) / 1e6 * 1e3)
    assert at(10_000, model=model).read_ms == pytest.approx((9200 * 2 + 19_999 * 20) / 1e3)


def test_a_cache_that_does_not_grow():
    model = replace(TINY, cached=even(0, 50))
    found = at(3, model=model)
    assert found.kv_tokens is None
    assert found.decode_W_tokens_per_ms is None
    assert found.kv_tokens_reason == found.decode_W_reason
    assert found.kv_tokens_reason == "the cached state does not grow with the tokens"
    assert found.read_ms == found.decode_B_ms == pytest.approx((1200 * 2 + 2 * 50 * 2) / 1e3)


# Two layers of 4 and 6 values a token, the second with a window that keeps 7 rows; 40 FLOPs of 8
# keys: the 7 and the token's own.
WINDOW = replace(
    TINY, cached=Least(Line(10, 0), Line(4, 42)), attention=Least(Line(40, 0), Line(16, 24 * 8))
)


def test_a_window_by_hand():
    far = at(100, model=WINDOW)
    assert (far.kv_cache_params_per_token, far.kv_cache_params_fixed) == (4, 42)
    # 10,000 bytes less 2,400 of weights, 84 of a full window, 8 a token.
    assert (far.kv_tokens, far.kv_tokens_reason) == ((10_000 - 2400 - 84) // 8, None)
    assert far.decode_W_tokens_per_ms == pytest.approx(1e3 / 8)
    # Written: 4 x 100 and 6 x 7 values; read: 4 x 99 and 6 x 7.
    assert far.read_ms == pytest.approx((2400 + (442 + 438) * 2) / 1e3)
    near = at(5, model=WINDOW)
    assert near.read_ms == at(5).read_ms
    assert near.compute_ms_causal == at(5).compute_ms_causal
    # 100 queries: with 1, 2, ... 100 keys in the first layer; in the second 1 ... 8, then 8.
    pairs = sum(16 * k + 24 * min(k, 8) for k in range(1, 101))
    assert far.compute_ms_causal == pytest.approx((2 * 1000 * 100 + 2 * 200 + pairs) / 1e4)
    assert far.compute_ms_fine == at(100).compute_ms_fine  # two keys a query, window or not
    # A token over 99 cached ones reads 4 x 99 + 6 x 7 values and writes 10.
    per_token = far.decode_B_ms + 99 / far.decode_W_tokens_per_ms
    assert per_token == pytest.approx((2400 + (4 * 99 + 42 + 10) * 2) / 1e3)


GEMMA = ModelCounts(
    dense_layers_params=697_761_792,
    experts=(),
    lm_head_params=301_989_888,
    cached=Least(Line(26 * 512, 0), Line(4 * 512, 22 * 512 * 511)),
    attention=even(40),
)
"""gemma-3-1b: 26 layers with one key and one value head of 256; 22 of them keep 511 rows alone."""


def test_the_cache_of_a_gemma_by_hand():
    """On 24 GiB at 1,008 GB/s. All 16 bits: (24 x 2^30 - 2 x 999,751,680 - 2 x 5,755,904) / 4,096
    tokens, of which 1,008e9 / 4,096 are read a second. Carried on from within the windows, the
    first slope would give 892,814 and 37,860."""
    room = DeviceFigures(memory_bytes=24 * 2**30, bytes_per_second=1008e9, flops_per_second=1e14)
    found = limits(GEMMA, room, weight_bits=16, kv_bits=16, prompt=8000)
    assert found.stored_params == 999_751_680
    assert (found.kv_cache_params_per_token, found.kv_cache_params_fixed) == (2048, 5_755_904)
    assert found.kv_tokens == 5_800_485
    assert found.decode_W_tokens_per_ms == 246_093.75


@pytest.mark.slow
def test_the_cache_of_gemma_3_1b():
    card = {"device": "rtx-4090", "weight_bits": 16, "kv_bits": 16, "prompt": 8000}
    found = cutedge.limits("gemma-3-1b", **card).figures
    assert (found["kv_tokens"], found["decode_W_tokens_per_ms"]) == (5_800_485, 246_093.75)
    assert found["kv_cache_params_fixed"] == 5_755_904


@pytest.mark.parametrize(
    ("memory", "tokens", "why"),
    [
        (2399, None, "the weights alone do not fit"),
        (2400, 0, None),
        (2400 + 6 * 20, 6, None),  # within the window: 20 bytes a token
        (2400 + 7 * 20 + 7, 7, None),
        (2400 + 7 * 20 + 8, 8, None),  # beyond it: 8
    ],
)
def test_tokens_that_fit_follow_the_cache_as_it_grows(memory, tokens, why):
    room = replace(ROUND, memory_bytes=memory)
    found = limits(WINDOW, room, weight_bits=16, kv_bits=16, prompt=1)
    assert (found.kv_tokens, found.kv_tokens_reason) == (tokens, why)


@pytest.mark.parametrize(("memory", "tokens"), [(2400 + 69, 6), (2400 + 70, None)])
def test_windows_alone_stop_growing_where_they_are_full(memory, tokens):
    model = replace(TINY, cached=Least(Line(5, 0), Line(0, 35)))
    room = replace(ROUND, memory_bytes=memory)
    found = limits(model, room, weight_bits=16, kv_bits=16, prompt=1)
    assert found.kv_tokens == tokens
    said = "the cache does not grow beyond 7 tokens: every layer looks back through a window"
    assert found.kv_tokens_reason == (said if tokens is None else None)
    assert (found.decode_W_tokens_per_ms, found.decode_W_reason) == (None, said)


@pytest.mark.parametrize("last", [1, 6, 7, 8, 9, 50])
def test_the_least_of_two_lines_is_summed(last):
    for least in (WINDOW.cached, WINDOW.attention, even(3, 4)):
        assert least.total(last) == sum(least(n) for n in range(1, last + 1))


def test_units_of_the_reference():
    found = limits(TINY, ROUND, weight_bits=8, kv_bits=16, prompt=1)
    assert in_units(found, binary=True)["lm_head_params"] == 200 / 2**30
    assert in_units(found, binary=True)["kv_cache_params_per_token"] == 10 / 2**20
    assert in_units(found)["lm_head_params"] == 200
    card = load_device("rtx-4090")
    true, binary = device_figures(card, "float32"), device_figures(card, "float32", binary=True)
    assert binary.bytes_per_second == pytest.approx(1008 * 2**30)
    assert binary.flops_per_second == pytest.approx(82.58 * 2**40)
    assert true.bytes_per_second == 1008e9
    assert true.memory_bytes == binary.memory_bytes == 24 * 2**30


def test_a_device_without_the_figures_is_refused():
    with pytest.raises(InputError, match=r"no peak for int32.*float32"):
        device_figures(load_device("rtx-4090"), "int32")
    with pytest.raises(InputError, match=r"chip-8x8 is an array of multipliers.*rtx-4090"):
        device_figures(load_device("chip-8x8"), "float32")


@pytest.mark.parametrize(
    ("device", "bits", "dtype"),
    [
        ("h100-sxm", 16, "bfloat16"),
        ("h100-sxm", 8, "float8_e4m3fn"),
        ("h100-sxm", 32, "float32"),
        ("h100-sxm", 4.5, "float8_e4m3fn"),
        ("h100-sxm", 8.5, "bfloat16"),
        ("mi300x", 8, "float8_e4m3fnuz"),
        ("a100-80g", 8, "int8"),
        ("tee-tdx", 16, "bfloat16"),
        ("ryzen-7950x", 8, "float32"),
        ("tee-sgx", 16, "float32"),
    ],
)
def test_limits_are_those_of_the_dtype_that_is_computed_in(device, bits, dtype):
    assert compute_dtype(load_device(device), bits) == dtype


# --- off a traced decode --------------------------------------------------------------------------


@pytest.mark.slow
def test_llama_off_its_rows(traced):
    graph = traced("llama-3.2-1b", phase="decode", past=16)
    model = describe(graph)
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert model.dense_layers_params == 16 * layer
    assert model.lm_head_params == 128256 * 2048  # tied, and read by the head all the same
    assert model.cached == even(16 * 2 * 8 * 64)
    assert model.attention == even(16 * 2 * 2 * 2048)
    at_past = 2 * (16 * layer + 128256 * 2048) + model.attention(17)
    assert total_flops(graph).products == at_past


@pytest.mark.slow
def test_experts_are_found(traced):
    graph = traced("mixtral-8x7b", phase="decode", past=16, overrides={"num_hidden_layers": 2})
    model = describe(graph)
    assert sum(e.params for e in model.experts) == 2 * 8 * 3 * 4096 * 14336
    assert {e.share for e in model.experts} == {0.25}
    dense = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8)
    assert model.dense_layers_params == dense


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SMALL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}
WINDOWS = {
    # Layers that see all tokens, layers with a window, rows that a full window keeps.
    "gemma3": (
        {"model_type": "gemma3_text", "sliding_window": 24, "sliding_window_pattern": 3},
        1,
        2,
        23,
    ),
    "mistral": ({"model_type": "mistral", "sliding_window": 24}, 0, 3, 23),
    "gpt-oss": ({"model_type": "gpt_oss", "sliding_window": 24, **SMALL_EXPERTS}, 1, 2, 23),
    "llama": ({"model_type": "llama"}, 3, 0, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_windows_of_traced_models(name, tmp_path, monkeypatch):
    """2 x 2 x 16 cached values a token and layer; QK^T and scores*V: 2 x 2 x 64 FLOPs a key."""
    monkeypatch.chdir(tmp_path)
    config, full, windowed, rows = WINDOWS[name]
    (tmp_path / "small.json").write_text(json.dumps({**SMALL, **config}))
    near, far, _ = decodes("small.json", {})
    model = describe(near, far)
    for past in (0, 5, rows, rows + 1, 100, 10**6):
        kept = full * past + windowed * min(past, rows)
        assert model.cached(past) == 64 * kept, past
        assert model.attention(past + 1) == 256 * (kept + full + windowed), past
    for graph in (near, *far):
        assert sum(t.bytes for t in cached_inputs(graph)) == 4 * model.cached(graph.meta.past)
    done = invoke("cutedge", "limits", "small.json", "--prompt", "300", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["compute_dtype"] == "bfloat16"
    assert (found["kv_tokens"] is None) == (found["kv_tokens_reason"] is not None) == (not full)


def test_a_prefill_is_refused(traced):
    with pytest.raises(InputError, match="decode"):
        describe(traced("edge-10m", seq=64))


def rows() -> list[dict[str, str]]:
    with (REFERENCE / "roofline_qwen15_rtx4090.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_gives_the_reference_figures():
    asked = ["--device", "rtx-4090", "--weight-bits", "8", "--kv-bits", "16", "--prompt", "1000"]
    printed = invoke("cutedge", "limits", "qwen1.5-7b", *asked, "--units", "reference", "--json")
    found = json.loads(printed.stdout)
    expected = {
        row["metric"]: row["reference_value"]
        for row in rows()
        if (row["section"], row["model"], row["prompt_tokens"]) == ("4.3", "7B", "1000")
    }
    for key in ("decoder_layers_params", "lm_head_params", "activated_params"):
        assert f"{found[key]:.2f}" == expected[key]
    assert f"{found['read_ms']:.2f}" == expected["read_ms_w8a16"]
    assert f"{found['compute_ms_coarse']:.2f}" == expected["compute_ms_coarse"]
    assert f"{found['compute_ms_fine']:.2f}" == expected["compute_ms_fine"]
    assert f"{found['first_token_ms']:.2f}" == expected["first_token_ms_w8a16_fine"]
    assert found["kv_tokens"] == 35612
    assert f"{found['knee_tokens_fine']:.2f}" == "46.19"
    assert int(found["decode_W_tokens_per_ms"]) == 2064
    assert f"{found['decode_B_ms']:.2f}" == "6.56"


# --- parameters by part ---------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_of_a_llama(traced):
    found = break_down(traced("llama-3.2-1b", seq=1024))
    parts = {part: count.total for part, count in found.parts.items()}
    assert parts == {
        "embedding": 128256 * 2048,
        "attention": 16 * (2 * 2048 * 2048 + 2 * 2048 * 512),
        "ffn": 16 * 3 * 2048 * 8192,
        "norm": (2 * 16 + 1) * 2048,
    }
    assert found.tied == 128256 * 2048
    assert (found.attention, found.heads) == ("GQA", (32, 8))
    assert found.layers["3"]["attention"].total == 2 * 2048 * 2048 + 2 * 2048 * 512
    assert found.unread == 0


@pytest.mark.parametrize(
    ("model", "options", "attention", "heads"),
    [
        ("gpt2", {"n_layer": 2}, "MHA", (12, 12)),  # one matrix makes queries, keys and values
        ("llama-3.2-1b", {"num_key_value_heads": 1, "num_hidden_layers": 1}, "MQA", (32, 1)),
        ("deepseek-v3", {"num_hidden_layers": 4}, None, None),  # keys come from a latent
    ],
)
@pytest.mark.slow
def test_heads(traced, model, options, attention, heads):
    found = break_down(traced(model, seq=16, overrides=options))
    assert (found.attention, found.heads) == (attention, heads)


@pytest.mark.slow
def test_biases_stand_apart(traced):
    parts = break_down(traced("qwen2.5-3b", seq=16, overrides={"num_hidden_layers": 2})).parts
    assert parts["attention"].weights == 2 * (2 * 2048 * 2048 + 2 * 2048 * 256)
    assert parts["attention"].biases == 2 * (2048 + 2 * 256)


DEPTHS = {"bert-base": 1, "deepseek-v3": 4}
"""Layers that show each part of a model; of others two."""


@pytest.mark.parametrize(
    "model", ["bert-base", "gpt2", "mobilebert", "gpt-oss-20b", "gemma-2-2b", "deepseek-v3"]
)
@pytest.mark.few(1)
def test_all_parameters_are_somewhere(traced, model):
    shallow = {"num_hidden_layers": DEPTHS.get(model, 2)}
    graph = traced(model, seq=16, overrides=shallow, symbolic=False)
    found = break_down(graph)
    assert found.total + found.unread == graph.meta.parameters
    assert set(found.parts) <= {"embedding", "attention", "ffn", "norm", "lm_head"} | (
        {"other"} if model == "mobilebert" else set()  # its embeddings are widened by a linear
    )
    for layer in found.layers.values():
        assert set(layer) == {"attention", "ffn", "norm"}
