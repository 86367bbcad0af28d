"""What masks let through, against the probabilities of the real model, run on numbers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from costmodels.flops import annotate, total_flops
from tracer.capture import capture
from tracer.capture.extents import find_extents
from tracer.formula import const, parse
from tracer.graph import Kind, Op, OpGraph

BATCH, VOCABULARY = 2, 64
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
WIDTH = 8
TURNS = {"sliding_window": WIDTH, "layer_types": ["sliding_attention", "full_attention"]}
FALCON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
}
MODELS = {
    "llama": ("llama", SMALL),
    "windows": ("mistral", SMALL | {"sliding_window": WIDTH, "num_hidden_layers": 1}),
    "gemma-2": ("gemma2", SMALL | TURNS),
    "gemma-3": ("gemma3_text", SMALL | TURNS),
    "sinks": ("gpt_oss", SMALL | TURNS | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "chunks": (
        "llama4_text",
        SMALL
        | {
            "attention_chunk_size": WIDTH,
            "moe_layers": [],
            "intermediate_size_mlp": 32,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY}),
    # biases in the product itself, sliced from a table, and beside the mask; scores changed in place
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY}),
    "mpt": (
        "mpt",
        {"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": VOCABULARY, "max_seq_len": 64},
    ),
    "falcon": ("falcon", FALCON),
    "falcon with biases": ("falcon", FALCON | {"alibi": True}),
    # an index that picks the best keys of those that a triangle lets through
    "index": (
        "deepseek_v32",
        SMALL
        | {
            "moe_intermediate_size": 16,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "head_dim": 8,
            "index_topk": WIDTH // 2,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "first_k_dense_replace": 1,
        },
    ),
    "bert": ("bert", SMALL),
    "both sides": (
        "modernbert",
        SMALL
        | {
            "local_attention": WIDTH,
            "layer_types": TURNS["layer_types"],
            "sep_token_id": 1,
            "cls_token_id": 1,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
}
HEADS, KEYS, KEPT = 4, 6, 3
"""Of an attention by itself; tokens, and how many keys an index picks."""


def hidden(scores: torch.Tensor) -> torch.Tensor:
    return torch.full((KEYS, KEYS), float("-inf")).triu(1).to(scores)


def added(q, k, other):
    """Biases and the mask are what a product adds to."""
    slopes = 0.5 ** torch.arange(1, HEADS + 1)
    biases = torch.arange(KEYS) * slopes[:, None, None]
    return torch.baddbmm(biases + hidden(q), q, k.mT)


def in_place(q, k, other):
    scores = q @ k.mT
    scores /= 4.0
    return scores + hidden(q)


def picked(q, k, other):
    """The best keys by other scores, of those up to a query's own."""
    best = (other @ other.mT + hidden(q)).topk(KEPT, dim=-1).indices
    dropped = torch.ones(HEADS, KEYS, KEYS, dtype=torch.bool).scatter(-1, best, False)
    return (q @ k.mT).masked_fill(dropped, float("-inf")) + hidden(q)


def picked_of_all(q, k, other):
    """The best keys of all, then those up to a query's own."""
    best = (other @ other.mT).topk(KEPT, dim=-1).indices
    dropped = torch.ones(HEADS, KEYS, KEYS, dtype=torch.bool).scatter(-1, best, False)
    own = torch.eye(KEYS, dtype=torch.bool)
    return (q @ k.mT).masked_fill(dropped & ~own, float("-inf")) + hidden(q)


def compared(q, k, other):
    scores = q @ k.mT
    return scores.masked_fill(scores < 0, float("-inf")) + hidden(q)


class Alone(torch.nn.Module):
    """The attention of one layer, with a way to make its masked scores."""

    def __init__(self, scored):
        super().__init__()
        self.scored = scored

    def forward(self, q, k, other, v):
        probabilities = self.scored(q, k, other).softmax(-1)
        return probabilities @ v, probabilities


def found_in(scored) -> tuple[int | None, list[str], list[int]]:
    """(pairs by the mask's code, reasons why it does not tell them, pairs of each head in a run)"""
    torch.manual_seed(0)
    given = [torch.randn(HEADS, KEYS, 16) for _ in range(4)]
    graph = torch.export.export(Alone(scored), tuple(given), strict=False).graph
    nodes = list(graph.nodes)
    changed = [n for n in nodes if str(n.target).partition(".")[2].split(".")[0].endswith("_")]
    written = {n for one in changed for n in (one, one.args[0])}
    sizes = {"batch": 1, "seq": KEYS, "past": 0, "source": 0}
    extents, unknown = find_extents(nodes, {}, written, const, [sizes])
    product = [n for n in nodes if "matmul" in str(n.target)][-1]
    pairs = extents[product].evaluate(sizes) if product in extents else None
    _, probabilities = Alone(scored)(*given)
    return pairs, list(unknown.values()), (probabilities != 0).sum((-2, -1)).tolist()


@pytest.mark.parametrize(
    ("scored", "kept"),
    [
        (added, 21),  # 1 + 2 + ... + 6
        (in_place, 21),
        (picked, 15),  # 1 + 2 + 3 + 3 + 3 + 3
    ],
)
def test_masks_of_all_kinds_let_through_what_a_run_shows(scored, kept):
    pairs, why, run = found_in(scored)
    assert (pairs, why) == (kept, [])
    assert run == [kept] * HEADS


def test_scores_that_are_scaled_and_cast_alone_are_all_seen_at_any_size(monkeypatch):
    def scaled(q, k, other):
        return (q @ k.mT * 0.25).to(torch.float64).to(q)

    monkeypatch.setattr("tracer.capture.extents.LARGEST", KEYS)
    pairs, why, run = found_in(scaled)
    assert (pairs, why) == (KEYS * KEYS, [])
    assert run == [KEYS * KEYS] * HEADS
    assert found_in(in_place)[1] == ["its mask is too large to be run: 4 x 6 x 6"]


@pytest.mark.parametrize(
    ("scored", "reason"),
    [
        (compared, "it compares scores with each other: what it hides goes by the data"),
        (picked_of_all, "how many pairs its mask keeps goes by the data"),
    ],
)
def test_a_mask_that_is_not_known_is_not_guessed(scored, reason):
    pairs, why, run = found_in(scored)
    assert (pairs, why) == (None, [reason])
    assert len({*run}) > 1  # heads see other numbers of pairs


CLASSES = (AutoModelForCausalLM, AutoModelForMaskedLM)
ENCODERS = ("bert", "both sides")


def seen(name: str, seq: int, past: int) -> list[int]:
    """Pairs that have a probability at all in each layer, of every sequence and head."""
    model_type, settings = MODELS[name]
    config = AutoConfig.for_model(model_type, **settings, attn_implementation="eager")
    torch.manual_seed(0)
    model = CLASSES[name in ENCODERS].from_config(config).eval()
    tokens = torch.randint(2, VOCABULARY, (BATCH, past + seq))
    options = {} if name in ENCODERS else {"use_cache": past > 0}
    with torch.no_grad():
        if past:
            cache = model(tokens[:, :past], **options).past_key_values
            options["past_key_values"] = cache
        made = model(tokens[:, past:], output_attentions=True, **options)
    counts = [(layer != 0).sum((-2, -1)).unique().tolist() for layer in made.attentions]
    assert all(len(count) == 1 for count in counts)
    return [count[0] for count in counts]


def traced(name: str, seq: int, past: int, **options):
    model_type, settings = MODELS[name]
    config = AutoConfig.for_model(model_type, **settings).to_dict()
    model_class = CLASSES[name in ENCODERS]._model_mapping[type(AutoConfig.for_model(model_type))]
    sizes = {"phase": "decode", "past": past} if seq == 1 else {"seq": seq, "past": past}
    config["architectures"] = [model_class.__name__]
    return annotate(capture(config, model=name, batch=BATCH, **sizes, **options).graph)


QUICK = (("windows", 5, 9),)
CASES = [
    pytest.param(name, seq, past, marks=() if (name, seq, past) in QUICK else pytest.mark.slow)
    for name in MODELS
    for seq, past in ((11, 0), (5, 2), (5, 9), (1, 2), (1, 9))
    if not past or name not in ENCODERS
]


def part(graph: OpGraph, op: Op) -> str | None:
    """What an op makes of an attention: scores or its output."""
    label = graph.outputs(op.id)[0].label
    return label if label in ("attention_scores", "attention_output") else None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seq", "past"), CASES)
def test_pairs_are_those_that_the_real_model_gives_a_probability(name, seq, past):
    graph = traced(name, seq, past)
    attention = [op for op in graph.ops if op.kind is Kind.MATMUL and part(graph, op)]
    counted = [count for count in seen(name, seq, past) for _ in range(2)]  # products of a layer
    extents = [parse(o.extent_expr or "0").evaluate(graph.meta.variables) for o in attention]
    assert extents == counted != []
    for op, pairs in zip(attention, counted, strict=True):
        scores = part(graph, op) == "attention_scores"
        square = graph.outputs(op.id)[0] if scores else graph.inputs(op.id)[0]
        assert op.cost.causal_flops * square.shape[-1] * square.shape[-2] == op.cost.flops * pairs
        if graph.meta.symbolic:
            formula = parse(op.cost.causal_flops_expr)
            assert formula.evaluate(graph.meta.variables) == op.cost.causal_flops


@pytest.mark.slow
def test_one_op_counts_what_the_matmuls_count():
    """All shapes of masks as those of scaled_dot_product_attention, or its is_causal."""
    for name in ("llama", "windows", "chunks", "bert"):
        eager, fused = (total_flops(traced(name, 11, 0, attn=a)) for a in ("eager", "sdpa"))
        assert fused.causal == eager.causal is not None


@pytest.mark.slow
def test_repeated_layers_have_the_masks_of_their_kind():
    """Six layers in turns: each as if it had been traced, at sizes within and beyond a window."""
    model_type, settings = MODELS["gemma-2"]
    turns = {"num_hidden_layers": 12, "layer_types": TURNS["layer_types"] * 6}
    config = AutoConfig.for_model(model_type, **{**settings, **turns}).to_dict()
    config["architectures"] = ["Gemma2ForCausalLM"]
    short, whole = (
        capture(config, model="turns", seq=32, full=full).graph for full in (False, True)
    )
    assert short.meta.repeated_layers > 0
    assert [op.extent_expr for op in short.ops] == [op.extent_expr for op in whole.ops]
    assert len({op.extent_expr for op in short.ops if op.extent_expr}) == 2


@pytest.mark.slow
def test_the_triangle_of_llama():
    """seq (seq + 1) / 2 pairs of seq ** 2, in the products of an attention alone."""
    graph = traced("llama", 11, 0)
    totals = total_flops(graph)
    square = 4 * 2 * BATCH * 2 * 16 * 11**2  # 2 x 2 products, 2 FLOPs, 2 heads of 16
    assert totals.products - totals.causal == square * (11 - 1) // 2 // 11
    assert parse(totals.causal_expr).evaluate(graph.meta.variables) == totals.causal
