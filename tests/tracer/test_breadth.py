"""What keeps an architecture from being traced: each case small, and no type singled out."""

import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils

from costmodels.flops import annotate, total_flops
from tools.coverage import (
    BATCH,
    HEADS,
    PAGE,
    SEQ,
    Row,
    against_torch,
    counted_by_torch,
    depths,
    how,
    model_types,
    page,
    rows_of,
    sweep,
    tokens,
)
from tracer.capture import as_it_runs, capture, capture_function, lowering, quiet
from tracer.capture.errors import Untraceable, failure
from tracer.capture.lowering import spelled_out
from tracer.capture.models import build, settle
from tracer.errors import CutedgeError, InputError

SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}


def made(model_type: str, config: dict[str, object], overrides: dict[str, object]):
    return settle({"model_type": model_type, **config}, overrides, model="small")


# --- fewer layers ---------------------------------------------------------------------------------


def test_a_list_with_an_entry_a_layer_is_cut_with_the_layers():
    kinds = ["sliding_attention", "full_attention"] * 3
    config, notes = made(
        "qwen3", {"num_hidden_layers": 6, "layer_types": kinds}, {"num_hidden_layers": 3}
    )
    assert config["layer_types"] == kinds[:3]
    assert notes == ("layer_types is cut to its first 3 of 6 entries, one a layer",)


def test_a_default_list_that_the_config_makes_anew_is_left_to_it():
    config, notes = made("qwen3", {}, {"num_hidden_layers": 3})
    assert "layer_types" not in config
    assert notes == ()


def test_a_default_list_that_stays_long_is_cut():
    config, notes = made("zamba", {}, {"num_hidden_layers": 2})
    assert len(config["layers_block_type"]) == 2
    assert notes == ("layers_block_type is cut to its first 2 of 76 entries, one a layer",)


def test_a_list_that_is_set_too_is_left_alone():
    kinds = ["full_attention"] * 2
    config, notes = made(
        "qwen3",
        {"num_hidden_layers": 4, "layer_types": kinds * 2},
        {"num_hidden_layers": 2, "layer_types": kinds},
    )
    assert config["layer_types"] == kinds
    assert notes == ()


def test_more_layers_than_a_list_has_entries_is_an_error_that_names_the_list():
    config = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    with pytest.raises(InputError, match=r"num_hidden_layers=4: layer_types .* 2 entries"):
        made("qwen3", config, {"num_hidden_layers": 4})


def test_a_list_of_another_length_has_nothing_to_do_with_the_layers():
    config, notes = made(
        "qwen3", {"num_hidden_layers": 4, "eos_token_id": [1, 2, 3]}, {"num_hidden_layers": 2}
    )
    assert config["eos_token_id"] == [1, 2, 3]
    assert notes == ()


# --- what a config builds -------------------------------------------------------------------------


def test_a_config_of_many_parts_gives_its_decoder_to_the_causal_lm():
    text = {**SMALL, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "emu3", "text_config": {**text, "pad_token_id": 0}}
    with quiet():
        module = build(config, {}, model="small", dtype="float32", attn="eager")
    assert type(module.config).__name__ == "Emu3TextConfig"
    assert module.config.hidden_size == 64


def test_parameters_have_no_data_whatever_way_they_are_made():
    small = {"d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 1, "vocab_size": 64}
    with quiet():
        module = build(
            {"model_type": "xlnet", **small}, {}, model="small", dtype="float32", attn="eager"
        )
    assert all(parameter.is_meta for parameter in module.parameters())
    names = dict(module.named_parameters(remove_duplicate=False))
    assert names["lm_loss.weight"] is names["transformer.word_embedding.weight"]  # still tied


# --- einsum ---------------------------------------------------------------------------------------

SIZES = dict(zip("bijkhl", (2, 3, 4, 5, 6, 7), strict=True))


@pytest.mark.parametrize(
    "equation",
    [
        "bij,bjk->bik",
        "bhi,bhj->bhij",
        "ibh,hjk->ibjk",
        "bi,bj->bij",
        "bij,bij->bi",
        "bihk,bjhk->bhij",
        "i,j->ij",
        "bijh,bhk->bikj",
        "ij,jk->ki",
        "bi,bi->bi",
        "bij,j->bi",
        "bij,bj->bij",
        "bil,bhl->bih",
        "i j, j k -> i k",
        "i,i->",
        "...ij,...kj->...ik",
        "...i,ij->...j",
        "i...,ij->...j",
        # one operand, or what it alone has to sum; one product after the other
        "bij->bji",
        "bij->bj",
        "ij->",
        "bij,jk->bk",
        "bij,bhj->bi",
        "bij,bkl->b",
        "ij,jk",
        "ij,ki",
        "ij,jk,kl->il",
        "bij,jk,kl,b->il",
        "bij,hij,bl->hl",
        "i,j,k->ijk",
        "bij,bjk,bkl",
        # left to torch as it is
        "ii->i",
        "bii,ij->bj",
    ],
)
def test_an_einsum_gives_what_torch_gives_for_as_many_flops(equation):
    parts = equation.partition("->")[0].replace(" ", "").split(",")
    shapes = [[SIZES[c] for c in part.replace("...", "bh")] for part in parts]
    operands = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    with FlopCounterMode(display=False) as theirs:
        wanted = torch.einsum(equation, *operands)
    with FlopCounterMode(display=False) as ours:
        given = spelled_out(equation, *operands)
    assert torch.allclose(wanted, given)
    assert ours.get_total_flops() == theirs.get_total_flops()


@pytest.mark.parametrize(
    "equation",
    ["...ij,...kj->...ik", "...i,ij->...j", "ij,i->j", "...ij->...j", "ij,i,...i->...", "ij,i"],
)
def test_what_letters_say_is_spelled_out(equation):
    shapes = {
        "...ij": (2, 5, 3, 4),
        "...kj": (2, 5, 6, 4),
        "...i": (2, 5, 3),
        "ij": (3, 4),
        "i": (3,),
    }
    operands = [torch.zeros(shapes[part]) for part in equation.partition("->")[0].split(",")]
    with patch.object(lowering, "_einsum", side_effect=AssertionError):
        spelled_out(equation, *operands)


@pytest.mark.parametrize(
    ("shapes", "equation"),
    [
        (((1, 3, 4), (2, 4, 5)), "...ij,...jk->...ik"),
        (((1, 3, 4), (2, 4, 5)), "bij,bjk->bik"),
        (((2, 3, 4), (2, 4, 5)), "...ij,...jk"),
    ],
)
def test_an_einsum_that_says_more_is_left_to_torch(shapes, equation):
    x, y = map(torch.randn, shapes)
    assert torch.equal(spelled_out(equation, x, y), torch.einsum(equation, x, y))
    axes = [0, 1, 2], [0, 2, 3], [0, 1, 3]  # an equation in numbers
    assert torch.equal(
        spelled_out(x, axes[0], y, axes[1], axes[2]), torch.einsum(x, axes[0], y, axes[1], axes[2])
    )


# --- vmap -----------------------------------------------------------------------------------------


def test_a_mask_of_indices_is_the_one_that_a_vmap_makes():
    def near(batch, head, query, key):
        return (query - key).abs() <= batch

    indices = [torch.arange(size) for size in (3, 1, 5, 6)]
    wanted = masking_utils._vmap_expansion_sdpa(near)(*indices)
    with as_it_runs():
        given = masking_utils._vmap_expansion_sdpa(near)(*indices)
        whole = masking_utils._vmap_expansion_sdpa(lambda b, h, q, k: q >= k)(*indices)
    assert torch.equal(given, wanted)
    assert whole.shape == (3, 1, 5, 6)  # whichever indices it looks at


def test_what_a_vmap_makes_is_not_traced(tmp_path):
    (tmp_path / "mapped.py").write_text("""
import torch

class Mapped(torch.nn.Module):
    def forward(self, x):
        return torch.vmap(lambda row: row * 2)(x)

def model(batch):
    return Mapped(), (torch.zeros(batch, 3),)
""")
    with pytest.raises(CutedgeError, match=r"an export hides what a vmap does in Mapped"):
        capture_function(str(tmp_path / "mapped.py"), "model", batch=2)


# --- a trace is what runs -------------------------------------------------------------------------

MIXERS = {
    "xlnet": {"d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 1, "vocab_size": 64},
    "mamba2": {
        "hidden_size": 32,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
        "vocab_size": 64,
        "num_hidden_layers": 1,
        "chunk_size": 16,
    },
}


@pytest.mark.parametrize("model_type", MIXERS)
@pytest.mark.few(1)
def test_products_of_einsums_equal_torch(model_type):
    config = {"model_type": model_type, **MIXERS[model_type]}
    graph = annotate(capture(config, model="small", batch=BATCH, seq=SEQ, symbolic=False).graph)
    assert not [op for op in graph.ops if "einsum" in op.target]
    assert total_flops(graph).unsupported == {}
    assert total_flops(graph).products <= counted_by_torch(config, {}, "small", tokens())


@pytest.mark.slow
def test_code_for_an_export_alone_is_not_traced():
    """A gated delta rule solves a triangular system where it runs."""
    config = {
        "model_type": "qwen3_5_text",
        **SMALL,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    graph = annotate(capture(config, model="small", batch=BATCH, seq=SEQ, symbolic=False).graph)
    solved = [op.cost.flops or 0 for op in graph.ops if "solve_triangular" in op.target]
    assert all(solved)  # n^2 multiply-accumulates a right-hand side, of which torch counts none
    said = f"torch leaves out {sum(solved):,} FLOPs of triangular systems that are solved"
    assert against_torch(graph, None, config, {}) == ("explained", (said,))
    known = total_flops(graph).products - sum(solved)
    assert known == counted_by_torch(config, {}, "small", tokens())


def test_what_a_trace_changes_in_transformers_is_undone():
    from transformers.utils import import_utils

    before = import_utils.is_torchdynamo_exporting.__code__, torch.einsum
    with as_it_runs():
        assert torch.einsum is spelled_out
    assert (import_utils.is_torchdynamo_exporting.__code__, torch.einsum) == before


@pytest.mark.slow
def test_a_loop_over_the_tokens_gives_a_concrete_trace_and_the_reason():
    config = {
        "model_type": "mamba",
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "intermediate_size": 32,
    }
    result = capture(config, model="small", batch=BATCH, seq=5)
    assert result.graph.meta.symbolic == ()
    assert any("seq" in warning for warning in result.warnings)
    products = total_flops(annotate(result.graph)).products
    assert products == counted_by_torch(config, {}, "small", tokens(5))


BY_VALUES = {
    "dbrx": (
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 9,
            "max_seq_len": 64,
            "vocab_size": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "its code goes by the values of tensors, not by their shapes alone",
        "transformer.blocks.0.ffn.experts (DbrxExperts)",
    ),
    "jetmoe": (
        {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "vocab_size": 64,
        },
        "its sizes depend on the data",
        "model.layers.0.self_attention.experts.input_linear (JetMoeParallelExperts)",
    ),
}


@pytest.mark.parametrize("kind", BY_VALUES)
@pytest.mark.few(1)
@pytest.mark.slow
def test_code_that_goes_by_values_is_named_with_its_module_and_line(kind):
    config, reason, module = BY_VALUES[kind]
    with pytest.raises(CutedgeError) as caught:
        capture({"model_type": kind}, model="small", batch=2, seq=16, overrides=config)
    start = re.escape(f"small cannot be traced: {reason} in {module} at modeling_{kind}.py:")
    tried = r"( It is not with --attn sdpa either\.)?"
    advice = r" With other code in its place it is traced as file\.py:function\."
    assert re.fullmatch(rf"{start}\d+ \(.+\)\.{tried}{advice}", str(caught.value))
    assert "--set" not in str(caught.value)  # whatever is set, that code stays


@pytest.mark.parametrize(
    ("error", "overrides", "advice"),
    [
        (Untraceable("values", by_data=True), ["n"], "it is traced as file.py:function."),
        (Untraceable("None", cause=TypeError()), ["n", "m"], "Check --set n, m."),
        (Untraceable("None", cause=KeyError()), (), "Check the config's fields."),
        (Untraceable("shape", cause=RuntimeError()), (), "another --seq or --batch."),
    ],
)
def test_what_to_try_goes_by_what_failed(error, overrides, advice):
    assert error.advice(overrides).endswith(advice)


class Deep(torch.nn.Module):
    """Raises in a module of its own, below functions that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Flatten(-1, 9)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return [layer(x) for layer in self.layers][-1]


def test_the_innermost_module_of_a_failure_is_named_as_the_whole_model_calls_it():
    model = Deep()
    with pytest.raises(IndexError) as caught:
        model(torch.zeros(2, 3))
    said = str(failure(caught.value, model, rename=lambda path: path.replace("1", "40")))
    where = r" in layers\.40 \(Flatten\) at test_breadth\.py:\d+ \(return \[layer\(x\) .*\)"
    assert re.search(f"{where}$", said)
    assert "\n" not in said


# --- the page -------------------------------------------------------------------------------------


def test_the_layers_of_a_config_are_found_at_the_top_or_in_its_decoder():
    assert list(depths({"num_hidden_layers": 4})) == ["num_hidden_layers"]
    assert list(depths({"text_config": {"n_layer": 4}})) == ["text_config.n_layer"]
    assert list(depths({"num_hidden_layers": 2, "text_config": {"n_layer": 4}})) == [
        "num_hidden_layers"
    ]


def test_how_a_trace_was_made():
    def said(symbolic, *warnings):
        graph = SimpleNamespace(meta=SimpleNamespace(symbolic=symbolic))
        return how(SimpleNamespace(graph=graph, warnings=warnings))

    assert said(("batch", "seq")) == ("symbolic", ())
    assert said(("batch", "seq"), "the formulas hold for seq below 9")[0] == "bounded"
    assert said((), "x: sizes are exact, formulas are null")[0] == "concrete"
    assert how(CutedgeError("x cannot be traced: because")) == (
        "no",
        ("cannot be traced: because",),
    )
    assert how(InputError("x: no model can be built from this"))[0] == "no config"
    assert how(None) == ("-", ())


def test_the_page_counts_its_rows_and_says_them_so_that_they_can_be_read_back():
    swept = {
        "causal-lm": [
            Row("a", ("symbolic",), 1010, 0.5, "equal", seconds=1.5),
            Row("b", ("no",), notes="x | y < z; 1"),
        ],
        "masked-lm": [Row("c", ("bounded",), 9, 0.25, "-", "no formula: 2 x aten.fft.default")],
        "seq2seq-lm": [Row("d", ("symbolic", "no", "-"), 9, 1.0, "equal", "encoder: no")],
        "image-classification": [],
    }
    text = page(swept)
    assert "| model types | 2 | 1 | 1 | 0 |" in text
    assert "| traced | 1 | 1 | 1 | 0 |" in text
    assert "| not traced | 1 | 0 | 0 | 0 |" in text
    assert "| every op that works has known FLOPs | 1 | 0 | 1 | 0 |" in text
    assert "| b | no |  |  |  |  | x \\| y &lt; z; 1 |" in text
    assert "| model type | prefill | encoder | decode | ops |" in text
    assert f"transformers {transformers.__version__}" in text
    assert rows_of(text) == swept


@pytest.mark.slow
def test_the_page_has_a_row_for_each_model_type_and_counts_them():
    text = PAGE.read_text(encoding="utf-8")
    swept = rows_of(text)
    assert {head: [row.model_type for row in rows] for head, rows in swept.items()} == {
        head: model_types(head) for head in HEADS
    }
    assert all(row.seconds is not None for rows in swept.values() for row in rows)
    assert "model types were swept; the others are open" not in text
    assert page(swept) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "model_type"),
    [
        (head, row.model_type)
        for head, rows in rows_of(PAGE.read_text(encoding="utf-8")).items()
        for row in rows
    ],
)
def test_the_page_is_what_a_sweep_gives_now(head, model_type):
    """But for the seconds, which are another machine's."""
    shown = {row.model_type: row for row in rows_of(PAGE.read_text(encoding="utf-8"))[head]}
    now = sweep(head, model_type)
    assert str(now) == str(replace(shown[model_type], seconds=now.seconds))
