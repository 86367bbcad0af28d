"""FLOPs against torch's own counter, run on the real eager model on the meta device."""

import csv
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from costmodels.flops import total_flops
from tests.support import REFERENCE
from tests.support.presets import swept
from tracer.capture import quiet
from tracer.capture.models import build
from tracer.graph import Kind, OpGraph, Status
from tracer.patterns import find_attentions
from tracer.presets import preset, preset_names

ENCODERS = [n for n in preset_names() if preset(n)["model_type"].endswith("bert")]
CAUSAL = [n for n in preset_names() if n not in ENCODERS]
BATCH, SEQ = 2, 48


class EachOp(FlopCounterMode):
    """Torch's counter, which tells the FLOPs of each op that it knows, in the order of the run."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.counted: list[int] = []

    def _count_flops(self, packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        before = self.get_total_flops()
        made = super()._count_flops(packet, out, args, kwargs)
        if packet in self.flop_registry:
            self.counted.append(self.get_total_flops() - before)
        return made


def counted_by_torch(name: str, logits: str, overrides: dict[str, Any]) -> list[int]:
    """FLOPs that torch counts, op by op, while the model runs on tensors without data."""
    with quiet():
        module = build(preset(name), overrides, model=name, dtype="float32", attn="eager")
        ids = torch.zeros(BATCH, SEQ, dtype=torch.int64, device="meta")
        options = {}
        if hasattr(module.config, "num_experts_per_tok"):
            # As products that torch's counter has a formula for, one for each token and expert.
            module.set_experts_implementation("batched_mm")
        if name in CAUSAL:
            # A mask of ones: without one a causal model asks for the values of its position ids,
            # which no meta tensor has.
            options = {"use_cache": False, "attention_mask": torch.ones_like(ids)}
        if logits == "last":
            options["logits_to_keep"] = 1
        with EachOp() as counter:
            module(input_ids=ids, **options)
    assert sum(counter.counted) == counter.get_total_flops()
    return counter.counted


def products(graph: OpGraph) -> list[int | None]:
    """FLOPs of the linears and matmuls of a graph, op by op."""
    return [op.cost.flops for op in graph.ops if op.kind in (Kind.LINEAR, Kind.MATMUL)]


@pytest.mark.parametrize("logits", ["last", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", swept(CAUSAL))
@pytest.mark.few(1)
def test_causal_models_equal_torch(traced, name, logits):
    """The first layers with logits of the last token, the whole model with all of them."""
    cut = few_layers(name) if logits == "last" else {}
    graph = traced(name, batch=BATCH, seq=SEQ, logits=logits, overrides=cut)
    assert products(graph) == counted_by_torch(name, logits, cut)


@pytest.mark.parametrize("name", swept(ENCODERS))
@pytest.mark.few(1)
@pytest.mark.slow
def test_encoders_equal_torch(traced, name):
    graph = traced(name, batch=BATCH, seq=SEQ)
    assert graph.meta.logits == "all"  # an encoder makes all of them, whatever was asked for
    assert products(graph) == counted_by_torch(name, "all", {})


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 16])
def test_llama_in_closed_form(traced, layers):
    """2 products x 2 FLOPs x 32 heads x 64 a layer and pair of tokens; 2 FLOPs a token and weight.

    The weights are all but the norms, two of a layer and the last one.
    """
    cut = {"num_hidden_layers": layers}
    every = total_flops(traced("llama-3.2-1b", seq=1024, logits="all", overrides=cut))
    parameters = 1_235_814_400 - (16 - layers) * (60_817_408 + 2 * 2048)
    pairs, tokens = layers * 2 * 2 * 32 * 64, 2 * (parameters - (2 * layers + 1) * 2048)
    assert every.products_expr == f"{pairs}*batch*seq**2 + {tokens}*batch*seq"
    assert every.products == (pairs * 1024 + tokens) * 1024
    if layers == 16:
        assert every.products_expr == "131072*batch*seq**2 + 2471493632*batch*seq"
        assert every.products == 2_668_248_432_640


@pytest.mark.slow
def test_llama_makes_logits_of_the_last_token(traced):
    """As much less as the other 1,023 tokens take in the head, of 128256 x 2048 weights."""
    last = total_flops(traced("llama-3.2-1b", seq=1024))
    assert last.products == 2_130_829_115_392
    assert last.products == 2_668_248_432_640 - 2 * 1023 * 128256 * 2048


@pytest.mark.parametrize("name", swept(preset_names()))
@pytest.mark.few(2)
def test_no_op_of_a_preset_is_unsupported(traced, name):
    graph = traced(name, seq=1024)
    totals = total_flops(graph)
    assert totals.unsupported == {}
    assert totals.coverage == 1.0
    products = [op for op in graph.ops if op.kind in (Kind.LINEAR, Kind.MATMUL)]
    assert all(op.cost.gemm for op in products)
    for op in products:
        assumed = op.cost.assumption is not None  # of the experts that are read
        assert op.cost.flops_status is (Status.ESTIMATE if assumed else Status.EXACT)
        gemm = op.cost.gemm
        assert op.cost.flops == 2 * gemm.batch * gemm.m * gemm.n * gemm.k


@pytest.mark.parametrize("name", swept(CAUSAL))
@pytest.mark.few(1)
def test_no_op_of_a_decode_is_unsupported(traced, name):
    graph = traced(name, phase="decode", past=SEQ, overrides=few_layers(name))
    assert total_flops(graph).unsupported == {}


def few_layers(name: str) -> dict[str, Any]:
    """Settings that cut a preset to its first layers, in which each kind of layer is."""
    config = preset(name)
    depth = next(key for key in ("num_hidden_layers", "n_layer") if key in config)
    dense = config.get("first_k_dense_replace", 0)  # layers before the first one with experts
    return {depth: min(config[depth], max(6, dense + 1) if "layer_types" in config else dense + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("seq", [1024, 8192])
def test_fusing_attention_spares_the_traffic_of_the_scores(traced, seq):
    """The rows of an attention, eager less fused: the scores are written 4 times, and read 4 times.

    By q k^T, the scale, the mask and the softmax, and by all but the first of these and the product
    with v. The mask is read once, by its sum. q, k, v are read, and the result is written, by both;
    only that the fused op takes k and v of 8 heads, of which eager attention reads copies for 32.
    """
    layers, heads, kv_heads, width, item = 2, 32, 8, 64, 4
    eager, fused = (
        traced("llama-3.2-1b", seq=seq, attn=attn, overrides={"num_hidden_layers": layers})
        for attn in ("eager", "sdpa")
    )
    scores, mask = heads * seq * seq * item, seq * seq * item
    copies = 2 * (heads - kv_heads_read(fused)) * seq * width * item
    assert kv_heads_read(fused) in (kv_heads, heads)
    assert attention_traffic(eager) - attention_traffic(fused) == layers * (
        (4 + 4) * scores + mask + copies
    )
    # q and the result of all heads, k and v of those that are read
    once = (2 * heads + 2 * kv_heads_read(fused)) * seq * width * item
    assert attention_traffic(fused) == layers * once


def attention_traffic(graph: OpGraph) -> int:
    costs = [graph.ops[op].cost for a in find_attentions(graph) for op in a.core]
    return sum(cost.read_bytes + cost.write_bytes for cost in costs)


def kv_heads_read(graph: OpGraph) -> int:
    return find_attentions(graph)[0].k.shape[-3]


@pytest.mark.slow
def test_the_traffic_of_eager_attention_is_quadratic_and_of_a_fused_one_linear(traced):
    """Twice the tokens: 4 times the bytes in the limit (q, k, v, o grow by 2), and 2 times."""
    small = {"num_hidden_layers": 1}
    for attn, least, most in (("eager", 3.9, 4), ("sdpa", 2, 2)):
        one, two = (
            attention_traffic(traced("llama-3.2-1b", seq=seq, attn=attn, overrides=small))
            for seq in (4096, 8192)
        )
        assert least <= two / one <= most


@pytest.mark.slow
def test_sdpa_counts_what_eager_counts(traced):
    """One attention op holds the same two products over the whole square as the two matmuls."""
    small = {"num_hidden_layers": 1}
    eager = traced("llama-3.2-1b", seq=64, overrides=small)
    fused = traced("llama-3.2-1b", seq=64, overrides=small, attn="sdpa")
    assert total_flops(fused).products == total_flops(eager).products
    assert total_flops(fused).products_expr == total_flops(eager).products_expr


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("distilbert", 66_985_530),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-3b", 3_085_938_688),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-2-7b", 6_738_415_616),
        ("gpt2", 124_439_808),
        ("bert-base", 109_514_298),
    ],
)
@pytest.mark.few(1)
def test_parameters(traced, name, total):
    graph = traced(name, seq=1024)
    assert graph.meta.parameters == total
    owners = [t for t in graph.tensors if t.role == "parameter" and t.alias_of is None]
    assert sum(t.numel for t in owners) == total


@pytest.mark.slow
def test_qwen15_parameters_are_those_of_the_document(traced):
    """Gi parameters of the decoder's linears (q/k/v with bias), to the digits of the document."""
    text = (REFERENCE / "roofline_qwen15_rtx4090.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    wanted = {
        row["model"]: row["reference_value"]
        for row in rows
        if (row["section"], row["metric"]) == ("3.1", "decoder_layers_params")
    }
    assert len(wanted) == 6
    for size, value in wanted.items():
        graph = traced(f"qwen1.5-{size.lower()}", batch=BATCH, seq=SEQ)
        weights = sum(
            tensor.numel
            for op in graph.ops
            if op.kind is Kind.LINEAR and op.layer is not None
            for tensor in graph.inputs(op.id)
            if tensor.role == "parameter"
        )
        assert f"{weights / 2**30:.2f}" == value


@pytest.mark.slow
def test_the_broadcast_of_k_and_v_reads_what_is_stored(traced):
    """K spread over 4 x as many heads reads 8 heads and writes 32."""
    graph = traced("llama-3.2-1b", seq=64, overrides={"num_hidden_layers": 2})
    spread = next(
        op
        for op in graph.ops
        if op.kind is Kind.COPY
        and graph.outputs(op.id)[0].shape == (1, 32, 64, 64)
        and graph.inputs(op.id)[0].shape == (1, 8, 4, 64, 64)
    )
    assert spread.cost.read_bytes == 8 * 64 * 64 * 4
    assert spread.cost.write_bytes == 32 * 64 * 64 * 4


@pytest.mark.slow
def test_an_embedding_reads_rows_not_the_table(traced):
    graph = traced("llama-3.2-1b", seq=64, overrides={"num_hidden_layers": 2})
    look_up = next(op for op in graph.ops if op.kind is Kind.EMBEDDING)
    assert look_up.cost.read_bytes == 64 * 2048 * 4 + 64 * 8
    assert look_up.cost.param_bytes == 64 * 2048 * 4
    assert look_up.cost.flops == 0
