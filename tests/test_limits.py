"""Limits of single-user inference, and parameters by part, against counts by hand."""

import csv
import json
from dataclasses import replace

import pytest

from costmodels.devices import load_device
from costmodels.flops import total_flops
from costmodels.limits import Machine, Model, _Experts, describe, in_units, limits, machine
from costmodels.parameters import break_down
from tests.conftest import REFERENCE
from tests.inprocess import invoke
from tracer.errors import InputError

TINY = Model(
    dense_layers_params=1000, experts=(), lm_head_params=200, kv_per_token=10, kv_fixed=0,
    pair_flops=40,
)  # fmt: skip
ROUND = Machine(memory_bytes=10_000, bytes_per_second=1e6, flops_per_second=1e7)


def at(prompt: int, *, model: Model = TINY, weight_bits: float = 16, kv_bits: float = 16):
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
    model = replace(TINY, kv_per_token=0, kv_fixed=50)
    found = at(3, model=model)
    assert found.kv_tokens is None
    assert found.decode_W_tokens_per_ms is None
    assert found.read_ms == pytest.approx((1200 * 2 + 2 * 50 * 2) / 1e3)


def test_units_of_the_reference():
    found = limits(TINY, ROUND, weight_bits=8, kv_bits=16, prompt=1)
    assert in_units(found, binary=True)["lm_head_params"] == 200 / 2**30
    assert in_units(found, binary=True)["kv_cache_params_per_token"] == 10 / 2**20
    assert in_units(found)["lm_head_params"] == 200
    card = load_device("rtx-4090")
    true, binary = machine(card, "float32"), machine(card, "float32", binary=True)
    assert binary.bytes_per_second == pytest.approx(1008 * 2**30)
    assert binary.flops_per_second == pytest.approx(82.58 * 2**40)
    assert true.bytes_per_second == 1008e9
    assert true.memory_bytes == binary.memory_bytes == 24 * 2**30


def test_a_device_without_the_figures_is_refused():
    with pytest.raises(InputError, match=r"no peak for int32.*float32"):
        machine(load_device("rtx-4090"), "int32")
    with pytest.raises(InputError, match="chip-8x8"):
        machine(load_device("chip-8x8"), "float32")


# --- off a traced decode --------------------------------------------------------------------------


def test_llama_off_its_rows(traced):
    graph = traced("llama-3.2-1b", phase="decode", past=16)
    model = describe(graph)
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert model.dense_layers_params == 16 * layer
    assert model.lm_head_params == 128256 * 2048  # tied, and read by the head all the same
    assert (model.kv_per_token, model.kv_fixed) == (16 * 2 * 8 * 64, 0)
    assert model.pair_flops == 16 * 2 * 2 * 2048
    at_past = 2 * (16 * layer + 128256 * 2048) + model.pair_flops * 17
    assert total_flops(graph).products == at_past


def test_experts_are_found(traced):
    graph = traced("mixtral-8x7b", phase="decode", past=16, overrides={"num_hidden_layers": 2})
    model = describe(graph)
    assert sum(e.params for e in model.experts) == 2 * 8 * 3 * 4096 * 14336
    assert {e.share for e in model.experts} == {0.25}
    dense = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8)
    assert model.dense_layers_params == dense


def test_a_prefill_is_refused(traced):
    with pytest.raises(InputError, match="decode"):
        describe(traced("llama-3.2-1b", seq=1024))


def rows() -> list[dict[str, str]]:
    with (REFERENCE / "roofline_qwen15_rtx4090.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_gives_the_reference_figures():
    asked = ["--device", "rtx-4090", "--weight-bits", "8", "--kv-bits", "16", "--prompt", "1000"]
    printed = invoke("cutedge", "limits", "qwen1.5-7b", *asked, "--units", "reference", "--json")
    found = json.loads(printed.stdout)
    expected = {
        row["metric"]: row["reference_value"] for row in rows()
        if (row["section"], row["model"], row["prompt_tokens"]) == ("4.3", "7B", "1000")
    }  # fmt: skip
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
        ("gpt2", {}, "MHA", (12, 12)),  # one matrix makes queries, keys and values
        ("llama-3.2-1b", {"num_key_value_heads": 1}, "MQA", (32, 1)),
        ("deepseek-v3", {"num_hidden_layers": 4}, None, None),  # keys come from a latent
    ],
)
def test_heads(traced, model, options, attention, heads):
    found = break_down(traced(model, seq=16, overrides=options))
    assert (found.attention, found.heads) == (attention, heads)


def test_biases_stand_apart(traced):
    parts = break_down(traced("qwen2.5-3b", seq=16, overrides={"num_hidden_layers": 2})).parts
    assert parts["attention"].weights == 2 * (2 * 2048 * 2048 + 2 * 2048 * 256)
    assert parts["attention"].biases == 2 * (2048 + 2 * 256)


@pytest.mark.parametrize(
    "model", ["bert-base", "gpt2", "mobilebert", "gpt-oss-20b", "gemma-2-2b", "deepseek-v3"]
)
def test_all_parameters_are_somewhere(traced, model):
    graph = traced(model, seq=16, overrides={"num_hidden_layers": 4})
    found = break_down(graph)
    assert found.total + found.unread == graph.meta.parameters
    assert set(found.parts) <= {"embedding", "attention", "ffn", "norm", "lm_head"} | (
        {"other"} if model == "mobilebert" else set()  # its embeddings are widened by a linear
    )
    for layer in found.layers.values():
        assert set(layer) == {"attention", "ffn", "norm"}
