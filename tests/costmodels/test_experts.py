"""Mixtures of experts: whose weights are read, and what that figure rests on."""

import json
import random
from fractions import Fraction
from itertools import combinations, product
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from costmodels.experts import active_parameters, assumptions, expected_experts, mixed
from costmodels.flops import annotate, total_flops
from cutedge._words import trace_lines
from tests.support.calls import SEQ, Calls
from tests.support.inprocess import invoke
from tests.support.presets import swept
from tracer.capture import capture, quiet
from tracer.formula import parse
from tracer.graph import OpCost, OpGraph, Role, Status
from tracer.presets import preset
from tracer.serde import read_trace, write_trace
from tracer.summary import modules_not_run

# --- the expectation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "experts", "choices", "tokens"),
    [
        *((1, 4, 4, tokens) for tokens in (1, 2, 5)),
        *((2, 4, 4, tokens) for tokens in (1, 3)),
        (2, 5, 5, 3),
        (3, 3, 3, 2),
        (1, 1, 1, 3),
        (2, 3, 5, 3),  # two of the five choices are no experts
    ],
)
def test_expected_experts_are_the_mean_over_all_routings(chosen, experts, choices, tokens):
    each = list(combinations(range(choices), chosen))
    reached = [
        sum(choice < experts for choice in set().union(*routing))
        for routing in product(each, repeat=tokens)
    ]
    mean = Fraction(sum(reached), len(reached))
    assert abs(Fraction(expected_experts(chosen, experts, choices, tokens)) - mean) < 1e-20


@pytest.mark.parametrize(("chosen", "experts", "tokens"), [(8, 128, 16), (4, 32, 9), (8, 256, 100)])
def test_expected_experts_are_those_of_random_routings(chosen, experts, tokens):
    choose = random.Random(7)
    reached = [
        len({e for _ in range(tokens) for e in choose.sample(range(experts), chosen)})
        for _ in range(400)
    ]
    away = fmean(reached) - float(expected_experts(chosen, experts, experts, tokens))
    assert abs(away) < 4 * stdev(reached) / sqrt(len(reached))


@pytest.mark.parametrize(("chosen", "experts"), [(1, 3), (6, 64), (8, 160), (10, 512), (7, 7)])
def test_from_one_token_to_very_many(chosen, experts):
    stored = 3 * 10**12
    assert round(expected_experts(chosen, experts, experts, 1) * stored) == chosen * stored
    sizes = [expected_experts(chosen, experts, experts, 10**power) for power in range(9)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == experts


# --- an op by itself ------------------------------------------------------------------------------

BATCH, PROMPT = 2, 48
EXPERTS, TOP, WIDTH, OUT = 16, 2, 4, 5
STACK = EXPERTS * WIDTH * OUT * 4
"""Bytes of the stack [EXPERTS, WIDTH, OUT] in float32."""


def chosen(calls: Calls, scores: int, top: int = TOP) -> int:
    """The numbers of the ``top`` best scores of each token."""
    return calls.call("aten.topk.default", scores, out=(SEQ, top), dtype="int64")


def ends(calls: Calls, numbers: int, rows: object = TOP * SEQ, counted: str = "int32") -> int:
    """Where the rows of each expert end, from the experts' numbers."""
    flat = calls.call("aten.reshape.default", numbers, out=(rows,), dtype="int64")
    ordered = calls.call("aten.sort.default", flat, out=(rows,), dtype="int64")
    cast = calls.call("aten.to.dtype", ordered, out=(rows,), dtype=counted)
    histogram = calls.call("aten.histc.default", cast, out=(EXPERTS,), dtype=counted)
    return calls.call("aten.cumsum.default", histogram, out=(EXPERTS,), dtype="int32")


def grouped(calls: Calls, split: int, rows: object = TOP * SEQ) -> OpCost:
    x, stack = calls.input(rows, WIDTH), calls.state(EXPERTS, WIDTH, OUT)
    calls.call("aten._grouped_mm.default", x, stack, split, out=(rows, OUT))
    return calls.cost()


@pytest.mark.parametrize("counted", ["int32", "float32"])
@pytest.mark.parametrize(
    ("tokens", "read"),
    [
        (1, STACK * 2 / 16),  # one token reads the experts that it goes to
        (2, STACK * (1 - (14 / 16) ** 2)),
        (6, STACK * (1 - (14 / 16) ** 6)),
        (9999, STACK),
    ],
)
def test_a_grouped_product_reads_the_experts_that_tokens_reach(tokens, read, counted):
    calls = Calls(seq=tokens)
    cost = grouped(calls, ends(calls, chosen(calls, calls.input(SEQ, EXPERTS)), counted=counted))
    assert cost.param_bytes == round(read)
    assert cost.read_bytes - cost.param_bytes == 2 * tokens * WIDTH * 4 + EXPERTS * 4
    assert cost.flops == 2 * (2 * tokens) * WIDTH * OUT  # whichever experts the rows meet
    assert cost.flops_status is Status.ESTIMATE
    assert cost.assumption == (
        "each token goes to 2 of 16 experts, uniformly and independently: "
        f"{16 * read / STACK:.1f} experts' weights read on average"
    )


def test_experts_that_are_chosen_one_by_one():
    """The best expert, then the best of the others."""
    calls = Calls()
    scores = calls.input(SEQ, EXPERTS)
    best = [calls.call("aten.max.dim", scores, out=(SEQ, 1), dtype="int64") for _ in range(2)]
    both = calls.call("aten.concat.default", *best, out=(SEQ, 2), dtype="int64")
    assert "each token goes to 2 of 16 experts" in grouped(calls, ends(calls, both)).assumption


def test_the_last_choice_is_what_counts():
    """Product keys: of 2 x 3 halves the 9 pairs, and of these the best two."""
    calls = Calls()
    halves = calls.call("aten.topk.default", calls.input(2, SEQ, 4), out=(2, SEQ, 3), dtype="int64")
    pairs = calls.call("aten.sum.dim_IntList", halves, out=(SEQ, 9), dtype="int64")
    best = chosen(calls, calls.input(SEQ, 9))
    numbers = calls.call("aten.gather.default", pairs, best, out=(SEQ, 2), dtype="int64")
    assert "each token goes to 2 of 16 experts" in grouped(calls, ends(calls, numbers)).assumption


def test_a_choice_may_be_of_no_expert():
    calls = Calls(seq=1)
    cost = grouped(calls, ends(calls, chosen(calls, calls.input(SEQ, EXPERTS + 4))))
    assert cost.assumption.startswith("each token goes to 2 of 16 experts and 4 choices of none")
    assert cost.param_bytes == STACK * 2 // 20


def test_a_table_may_have_the_experts_of_each_token_of_the_vocabulary():
    """DeepSeek-V4's first layers."""
    calls = Calls()
    table = calls.state(100, TOP, role=Role.BUFFER, dtype="int64")
    tokens = calls.input(SEQ, dtype="int64")
    numbers = calls.call("aten.index.Tensor", table, tokens, out=(SEQ, TOP), dtype="int64")
    assert "each token goes to 2 of 16 experts" in grouped(calls, ends(calls, numbers)).assumption


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("how", ["input", "threshold", "other axis", "parts"])
def test_a_choice_that_is_not_shown_reads_no_more_than_an_expert_a_row(how, tokens):
    calls = Calls(seq=tokens)
    scores = calls.input(SEQ, EXPERTS)
    split = {
        "input": lambda: calls.input(EXPERTS, dtype="int32"),
        "threshold": lambda: ends(
            calls, calls.call("aten.gt.Scalar", scores, out=(SEQ, EXPERTS), dtype="bool")
        ),
        "other axis": lambda: ends(
            calls, calls.call("aten.topk.default", scores, out=(2, EXPERTS), dtype="int64")
        ),
        "parts": lambda: ends(  # half an expert a token
            calls, chosen(calls, calls.input(4 * SEQ, EXPERTS))
        ),
    }[how]()
    cost = grouped(calls, split)
    read = min(2 * tokens, EXPERTS)
    assert cost.param_bytes == STACK * read // EXPERTS
    assert cost.flops_status is Status.ESTIMATE
    assert cost.assumption == (
        "how tokens choose their experts is not shown: at most one expert a row, "
        f"{read} of 16 experts' weights read"
    )


def test_columns_may_be_split_among_the_experts():
    calls = Calls()
    split = ends(calls, chosen(calls, calls.input(SEQ, EXPERTS)))
    stack, x = calls.state(EXPERTS, OUT, WIDTH), calls.input(WIDTH, TOP * SEQ)
    calls.call("aten._grouped_mm.default", stack, x, split, out=(OUT, TOP * SEQ))
    assert calls.cost().param_bytes == round(STACK * (1 - (14 / 16) ** 6))


@pytest.mark.parametrize("target", ["aten.index.Tensor", "aten.embedding.default"])
def test_a_gather_of_experts_reads_those_that_are_chosen(target):
    calls = Calls()
    numbers = chosen(calls, calls.input(SEQ, EXPERTS))
    calls.call(target, calls.state(EXPERTS, WIDTH, OUT), numbers, out=(SEQ, TOP, WIDTH, OUT))
    cost = calls.cost()
    assert cost.param_bytes == round(STACK * (1 - (14 / 16) ** 6))
    assert cost.write_bytes == 6 * TOP * WIDTH * OUT * 4  # a copy for each token
    assert (cost.flops, cost.flops_status) == (0, Status.ESTIMATE)
    assert "each token goes to 2 of 16 experts" in cost.assumption


def test_other_gathers_rest_on_nothing():
    calls = Calls()
    numbers = chosen(calls, calls.input(SEQ, EXPERTS))
    table, given = calls.state(SEQ, EXPERTS), calls.input(SEQ, TOP, dtype="int64")
    for source, index, out in (
        (calls.state(EXPERTS, OUT), given, (SEQ, TOP, OUT)),  # by what the user asks for
        (calls.input(EXPERTS, OUT), numbers, (SEQ, TOP, OUT)),  # no weights
        (table, numbers, (SEQ, SEQ, TOP)),  # along another axis
    ):
        calls.call("aten.index.Tensor", source, index, out=out)
    costs = [op.cost for op in calls.ops() if op.target == "aten.index.Tensor"]
    assert {(cost.flops_status, cost.assumption) for cost in costs} == {(Status.ZERO, None)}


def test_a_product_with_all_experts_is_exact_and_reads_them_all():
    calls = Calls()
    x, stack = calls.input(EXPERTS, SEQ, WIDTH), calls.state(EXPERTS, WIDTH, OUT)
    calls.call("aten.bmm.default", x, stack, out=(EXPERTS, SEQ, OUT))
    cost = calls.cost()
    assert (cost.flops, cost.flops_status) == (2 * EXPERTS * 6 * WIDTH * OUT, Status.EXACT)
    assert (cost.param_bytes, cost.assumption) == (STACK, None)


@pytest.mark.parametrize("top", [1, 2, EXPERTS - 1])
@pytest.mark.parametrize(
    ("tokens", "choices", "is_mixture"),
    [(SEQ, EXPERTS, True), (2 * SEQ, EXPERTS, False), (SEQ, EXPERTS + 1, False)],
)
def test_a_product_of_every_token_with_every_expert_is_a_mixture(tokens, choices, is_mixture, top):
    """Where as many are chosen among, for as many tokens: its own experts are top of them."""
    calls = Calls()
    calls.call("aten.topk.default", calls.input(tokens, choices), out=(tokens, top), dtype="int64")
    x, stack = calls.input(EXPERTS, SEQ, WIDTH), calls.state(EXPERTS, WIDTH, OUT)
    calls.call("aten.bmm.default", x, stack, out=(EXPERTS, SEQ, OUT))
    graph = calls.graph()
    totals = total_flops(graph)
    assert totals.products == 2 * EXPERTS * 6 * WIDTH * OUT
    if is_mixture:
        (one,) = mixed(graph).values()
        assert (one.chosen, one.experts) == (top, EXPERTS)
        assert totals.routed == 2 * top * 6 * WIDTH * OUT  # rows that meet one expert each
        assert totals.routed_expr == str(2 * top * WIDTH * OUT * SEQ)
        said = f"{totals.routed:,} of them with kernels that route: {top} of 16 experts"
        assert any(line.startswith(said) for _, line in trace_lines(graph, totals))
    else:
        assert mixed(graph) == {}
        assert (totals.routed, totals.routed_expr) == (None, None)


# --- models ---------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ROUTED = {
    **SMALL,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def small(config: dict[str, object], **sizes: object) -> OpGraph:
    sizes = {"batch": 2, "seq": 8, "symbolic": False, **sizes}
    return annotate(capture(config, model="small", **sizes).graph)


WITH_THE_TABLE = {"mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen3-235b-a22b"} | {
    "llama-4-scout"
}
"""Their published figures count the table of the embedding, of which a token looks up one row; those
of the others leave it out, as is meant here. All count the head."""

ACTIVE = {
    # published, in billions; expert layers, experts that a token passes by, parameters of each
    "mixtral-8x7b": (12.9, 32, 8 - 2, 3 * 4096 * 14336),
    "mixtral-8x22b": (39, 56, 8 - 2, 3 * 6144 * 16384),
    "qwen3-30b-a3b": (3.3, 48, 128 - 8, 3 * 2048 * 768),  # 3.35 in fact
    "qwen3-235b-a22b": (22, 94, 128 - 8, 3 * 4096 * 1536),
    "gpt-oss-20b": (3.61, 24, 32 - 4, 3 * (2880 * 2880 + 2880)),  # three products, with biases
    "gpt-oss-120b": (5.13, 36, 128 - 4, 3 * (2880 * 2880 + 2880)),
    "deepseek-v3": (36.7, 58, 256 - 8, 3 * 7168 * 2048),  # three layers of 61 are dense
    "deepseek-v4-flash": (13.27, 43, 256 - 6, 3 * 4096 * 2048),  # the card says 13
    "kimi-k2": (32, 60, 384 - 8, 3 * 7168 * 2048),
    "nemotron-3-nano-30b-a3b": (3.2, 23, 128 - 6, 2 * 2688 * 1856),  # the card says 3.6 with it
    "llama-4-scout": (17, 48, 16 - 1, 3 * 5120 * 8192),  # whose code runs all
}


@pytest.mark.parametrize("name", swept(list(ACTIVE)))
@pytest.mark.few(3)
def test_active_parameters_are_those_published(traced, name):
    graph = traced(name, batch=BATCH, seq=PROMPT)
    published, layers, passed_by, expert = ACTIVE[name]
    active = active_parameters(graph)
    (table,) = (
        graph.storage(graph.inputs(op.id)[0]).numel
        for op in graph.ops
        if op.target == "aten.embedding.default"
    )
    seen_alone = sum(modules_not_run(graph).values())
    assert active == graph.meta.parameters - seen_alone - layers * passed_by * expert - table
    counted = active + (table if name in WITH_THE_TABLE else 0)
    assert counted == pytest.approx(published * 1e9, rel=0.02)


@pytest.mark.parametrize("name", swept(["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b"]))
@pytest.mark.few(1)
def test_decoding_a_token_reads_its_active_parameters_once(name):
    """All of them, and one row of the table of the embedding."""
    graph = annotate(capture(preset(name), model=name, phase="decode", seq=1, past=64).graph)
    table = next(t for t in graph.tensors if t.name == "model.embed_tokens.weight")
    row = table.shape[1]
    assert sum(op.cost.param_bytes for op in graph.ops) == 4 * (active_parameters(graph) + row)
    (assumed,) = assumptions(graph)
    chosen, experts = preset(name)["num_experts_per_tok"], ACTIVE[name][2]
    assert assumed == (
        f"each token goes to {chosen} of {chosen + experts} experts, uniformly and independently: "
        f"{chosen}.0 experts' weights read on average"
    )


@pytest.mark.slow
def test_a_dense_model_assumes_nothing_and_is_active_as_a_whole():
    """Without the table of its embedding, unless that is the head's too."""
    for tied in (False, True):
        graph = small({**SMALL, "model_type": "qwen3", "tie_word_embeddings": tied})
        assert assumptions(graph) == ()
        table = 0 if tied else 128 * 64
        assert active_parameters(graph) == graph.meta.parameters - table


def dense_mixture(chosen: int = 1, layers: int = 1, **sizes: object) -> OpGraph:
    """A model whose code runs each of four experts on every token."""
    config = {
        **SMALL,
        "num_hidden_layers": layers,
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": chosen,
        "intermediate_size_mlp": 96,
        "moe_layers": [0],
    }
    return small(config, **sizes)


@pytest.mark.slow
def test_a_model_that_runs_all_experts_is_counted_as_it_runs():
    """Each token meets every expert, with weights of zero for those that it does not go to."""
    graph = dense_mixture(layers=2)  # of which the second has no experts
    products = [op for op in graph.ops if op.target == "aten.bmm.default"]
    stacks = [t for t in graph.tensors if t.role is Role.PARAMETER and len(t.shape) == 3]
    assert sum(op.cost.param_bytes for op in products) == sum(t.bytes for t in stacks) > 0
    # 4 experts, 2 x 8 tokens through three matrices
    run = 4 * 16 * 2 * 3 * 64 * 96
    assert sum(op.cost.flops for op in products) == run
    assert assumptions(graph) == ()
    # and with kernels that route: a quarter of it, and of the experts' weights
    assert [(m.chosen, m.experts) for m in mixed(graph).values()] == [(1, 4)] * 2
    totals = total_flops(graph)
    assert totals.routed == totals.products - run * 3 // 4
    passed_by = 3 * 3 * 64 * 96
    assert active_parameters(graph) == graph.meta.parameters - passed_by - 128 * 64


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_what_a_dense_mixture_would_take_if_it_routed_is_what_a_model_takes_that_does(chosen):
    """Formulas too; a Mixtral of the same sizes with grouped products is the other count."""
    graph = dense_mixture(chosen, symbolic=True)
    totals = total_flops(graph)
    assert parse(totals.routed_expr).evaluate(graph.meta.variables) == totals.routed
    routing = {"num_local_experts": 4, "num_experts_per_tok": chosen, "intermediate_size": 96}
    other = small({**SMALL, **routing, "model_type": "mixtral"})
    experts = sum(op.cost.flops for op in other.ops if "grouped" in op.target)
    run = sum(op.cost.flops for op in graph.ops if op.target == "aten.bmm.default")
    assert totals.products - totals.routed == run - experts
    assert total_flops(other).routed is None
    assert mixed(other) == {}


@pytest.mark.parametrize(
    ("config", "assumed"),
    [
        # groups of experts are chosen before the experts themselves
        (
            {
                "model_type": "deepseek_v3",
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "n_group": 4,
                "topk_group": 2,
                "moe_intermediate_size": 32,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "first_k_dense_replace": 0,
                "head_dim": 8,
                "num_key_value_heads": 4,
            },
            "4 of 16",
        ),
        # the second expert is a second maximum
        ({"model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 2}, "2 of 4"),
        # biases are gathered
        ({"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2}, "2 of 8"),
        # single rows as experts, found by product keys, and gathered
        (
            {"model_type": "doge", "is_moe": True, "num_experts": 64, "num_experts_per_tok": 4},
            "4 of 64",
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
@pytest.mark.slow
def test_ways_to_route(config, assumed):
    graph = small({**SMALL, **config})
    (text,) = assumptions(graph)
    assert text.startswith(f"each token goes to {assumed} experts, uniformly and independently")
    assert active_parameters(graph) < graph.meta.parameters


def test_a_run_reads_no_more_experts_than_expected():
    """The expectation is that of an even spread: real tokens are alike and share their experts."""
    reached: dict[int, list[int]] = {1: [], 8: []}
    for seed in range(12):
        torch.manual_seed(seed)
        with quiet():
            config = {key: value for key, value in ROUTED.items() if key != "model_type"}
            config["num_hidden_layers"] = 2
            model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**config)).eval()
        for tokens, counts in reached.items():
            hooks = [
                layer.mlp.experts.register_forward_pre_hook(
                    lambda _, args, counts=counts: counts.append(len(args[1].unique()))
                )
                for layer in model.model.layers
            ]
            with torch.no_grad():
                model(input_ids=torch.randint(128, (1, tokens)))
            for hook in hooks:
                hook.remove()
    assert set(reached[1]) == {2}
    expected = float(expected_experts(2, 16, 16, 8))
    assert 0.7 * expected < fmean(reached[8]) < expected


# --- tables and lines -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_assumption_is_in_the_tables(tmp_path):
    graph = small(ROUTED)
    write_trace(graph, tmp_path)
    read, _ = read_trace(tmp_path)
    assert [op.cost for op in read.ops] == [op.cost for op in graph.ops]
    assert sum(op.cost.assumption is not None for op in read.ops) == 2  # products


@pytest.mark.slow
def test_the_summary_says_what_is_active_and_what_is_assumed(tmp_path):
    said, printed = summary(ROUTED, tmp_path)
    # experts of three matrices 64 x 32, of which a token passes by 14
    active = said["parameters"] - 14 * 3 * 64 * 32 - 128 * 64  # and the table of the embedding
    read = 16 * (1 - (14 / 16) ** 16)
    assumed = (
        "each token goes to 2 of 16 experts, uniformly and independently: "
        f"{read:.1f} experts' weights read on average"
    )
    share = active / said["parameters"]
    assert f"            {active:,} active for one token ({share:.1%})\n" in printed
    assert f"assumed     {assumed}\n" in printed
    assert (said["active_parameters"], said["assumptions"]) == (active, [assumed])


@pytest.mark.slow
def test_the_summary_of_a_dense_model_says_nothing_of_experts(tmp_path):
    _, printed = summary({**SMALL, "model_type": "qwen3"}, tmp_path)
    assert "active" not in printed
    assert "assumed" not in printed


def summary(config: dict[str, object], folder: Path) -> tuple[dict[str, Any], str]:
    """What ``trace`` says of a model, as JSON and in words."""
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    words = ("trace", path, "--batch", "2", "--seq", "8", "--out", folder / "out")
    return json.loads(invoke(*words, "--json").stdout), invoke(*words).stdout
