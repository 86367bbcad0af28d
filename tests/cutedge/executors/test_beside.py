"""Ours beside what executors do by memory alone, under the same rules; experts at home by hand."""

from collections import Counter

import pytest

import cutedge

pytest.importorskip("accelerate")
pytest.importorskip("gguf")
from tools import beside_executors as table

SMALL = {"gpt2": {"n_layer": 4}, "llama-3.2-1b": {"num_hidden_layers": 4}}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.6, 0.3])
@pytest.mark.few(1)
def test_ours_is_never_worse(name, share):
    traced = table.traced(name, past=16, **SMALL[name])
    whole = sum(t.bytes for t in traced.graph.tensors if t.role == "parameter")
    size = int(whole * share)
    for one in (
        table.beside_accelerate(name, traced, size, **SMALL[name]),
        table.beside_llama_cpp(name, traced, size, time_limit=2.0),
    ):
        assert one.ours.run_seconds <= one.theirs.run_seconds * (1 + 1e-9)
        assert one.theirs.memory_bytes <= one.limit
        assert one.ours.memory_bytes <= one.limit


@pytest.mark.slow
def test_as_many_layers_as_fit():
    """The next one would not: that is what -ngl says of a size."""
    traced = table.traced("llama-3.2-1b", past=16, **SMALL["llama-3.2-1b"])
    layer = sum(t.bytes for t in traced.graph.tensors if t.name.startswith("model.layers.1."))
    size = table.side(
        traced.partition(cutedge.placement("-ngl 3"), machine=table.MACHINE), "-ngl 3"
    ).memory_bytes
    for more, count in ((0, 3), (layer // 2, 3), (-1, 2)):
        assert table.as_many_as_fit(traced, size + more).words == f"-ngl {count}"


def by_hand(layers: int) -> tuple[int, Counter]:
    """(bytes a token with all experts of qwen3-30b-a3b at home, transfers by direction and bytes)

    2,048 numbers of hidden state, 8 of 128 experts, 151,936 words; 2 bytes a number, 8 an index.
    Home is sent the normed state, which experts (int64) and their weights. What is the experts' own
    runs there; the sum over them is where the layer is, which needs their answers, their weights
    and their order.
    """
    home = (2048 * 2, 8 * 8, 8 * 2)
    back = (8 * 2048 * 2, 8 * 8, 8 * 2)
    moved = Counter({("receive", size): layers for size in home})
    moved += Counter({("send", size): layers for size in back})
    moved += Counter({("send", 2048 * 2): 1, ("receive", 151936 * 2): 1})  # embedding, logits
    return sum(size * count for (_, size), count in moved.items()), moved


def experts_at_home(traced: cutedge.Trace, layers: int) -> cutedge.Partition:
    split = traced.partition(cutedge.placement("-ngl all -ot exps=CPU"), machine=table.MACHINE)
    size, moved = by_hand(layers)
    rows = split.transfers.to_pylist()
    assert Counter((row["direction"], row["payload_bytes"]) for row in rows) == moved
    assert split.summary["total_payload_bytes"] == size
    # Each layer's router waits for the layer before it; the first call reads the embedding alone.
    assert split.summary["calls"] == layers + 1
    experts = layers * 128 * 3 * 768 * 2048 * 2
    table_of_words = 151936 * 2048 * 2
    assert split.bare.traffic.resident_bytes[table.HOME] == experts + table_of_words
    return split


@pytest.mark.slow
def test_experts_at_home_by_hand():
    traced = table.traced("qwen3-30b-a3b", past=16, num_hidden_layers=2)
    experts_at_home(traced, 2)


@pytest.mark.slow
def test_all_layers_with_experts_at_home_and_what_is_better():
    """docs/guide/plans.md has these figures."""
    traced = table.traced("qwen3-30b-a3b")
    split = experts_at_home(traced, 48)
    assert by_hand(48)[0] == 2_085_120
    assert split.bare.run_seconds == pytest.approx(15.23e-3, rel=1e-3)
    plan = traced.plan(machine=table.MACHINE, granularity="tensor", time_limit=300)
    assert plan.proven
    assert plan.cost == pytest.approx(12.39e-3, rel=1e-3)


@pytest.mark.slow
def test_the_page_is_of_six_models_and_three_sizes():
    text = table.PAGE.read_text(encoding="utf-8")
    for name in table.MODELS:
        assert text.count(f"| {name} |") == 2 * len(table.SIZES)
