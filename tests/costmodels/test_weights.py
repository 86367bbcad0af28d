"""What weights take in their formats: against published sizes, and a rule by names."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch

import cutedge
from costmodels.flops import annotate
from costmodels.memory import memory_need
from costmodels.weights import (
    as_computed,
    cache_in,
    load_weights,
    shipped_encoding,
    stored,
    weight_names,
)
from tests.support.inprocess import invoke
from tests.support.traces import captured
from tests.support.weights import BLOCKS, LLAMA, MODELS, by_name, decoded
from tracer.errors import InputError
from tracer.graph import Role
from tracer.presets import preset
from tracer.summary import parameter_bytes

GIB, MIB, GB = 2**30, 2**20, 10**9

# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_a_row_is_a_whole_number_of_blocks(name: str) -> None:
    elements, size = BLOCKS[name]
    for rows, groups in ((1, 1), (7, 3), (512, 16)):
        took = shipped_encoding(name).bytes(rows, groups * elements)
        assert took == rows * groups * size


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "bytes_"),
    [
        # a scale of 4 bytes a row
        ("int8", 64, 128, 64 * 128 + 64 * 4),
        # 4 bits; 16 bits of scale and 4 of zero point for each started group of a row
        ("int4-g128", 64, 256, 64 * 256 // 2 + 64 * 2 * 5 // 2),
        ("int4-g32", 64, 256, 64 * 256 // 2 + 64 * 8 * 5 // 2),
        # one scale
        ("fp8", 64, 128, 64 * 128 + 4),
        # blocks of 128 x 128, those at the edges too
        ("fp8-block128", 576, 7168, 576 * 7168 + 4 * ceil(576 / 128) * 56),
        # 4 bits, a float32 for 64, a table of 16 float32
        ("nf4", 64, 128, 64 * 128 // 2 + 64 * 2 * 4 + 64),
        # 4 bits, 8 bits for 16, one float32
        ("nvfp4", 64, 128, 64 * 128 // 2 + 64 * 8 + 4),
    ],
)
def test_what_groups_rows_and_matrices_have_beside(
    name: str, rows: int, inputs: int, bytes_: int
) -> None:
    assert shipped_encoding(name).bytes(rows, inputs) == bytes_
    assert shipped_encoding(name).bytes(3 * rows, inputs, 3) == 3 * bytes_


def test_every_shipped_format_is_read_and_says_where_it_is_from() -> None:
    for name in weight_names():
        made = load_weights(name)
        assert made.name == name
        assert made.description
        assert made.sources
        assert all(made.sources.values())


# --- published sizes ------------------------------------------------------------------------------

PUBLISHED = [
    # llama.cpp#4766, of CodeLlama-7b with Llama-2's sizes, as llama-bench states them
    ("llama-2-7b", "f16", 12.55 * GIB),
    ("llama-2-7b", "q8_0", 6.67 * GIB),
    ("llama-2-7b", "q4_0", 3.56 * GIB),
    # GPU-Benchmarks-on-LLM-Inference
    ("llama-3.1-8b", "q4_k_m", 4.58 * GIB),
    ("llama-3.1-8b", "f16", 14.96 * GIB),
    # beowulf-ai-cluster#6
    ("llama-3.2-3b", "q4_k_m", 1.87 * GIB),
    # strix-halo-llm-perf
    ("llama-2-7b", "q4_k_m", 3.80 * GIB),
    ("qwen2.5-14b", "q4_k_m", 8.37 * GIB),
    ("llama-3.1-70b", "q4_k_m", 39.59 * GIB),
    ("qwen3-30b-a3b", "q4_k_m", 17.28 * GIB),
    # bartowski/Qwen2.5-32B-Instruct-GGUF, files with their vocabulary
    ("qwen2.5-32b", "q8_0", 34.82 * GB),
    ("qwen2.5-32b", "q6_k", 26.89 * GB),
    ("qwen2.5-32b", "q5_k_m", 23.26 * GB),
    ("qwen2.5-32b", "q5_k_s", 22.64 * GB),
    ("qwen2.5-32b", "q4_k_m", 19.85 * GB),
    ("qwen2.5-32b", "q4_k_s", 18.78 * GB),
    ("qwen2.5-32b", "q3_k_l", 17.25 * GB),
    ("qwen2.5-32b", "q3_k_m", 15.94 * GB),
    ("qwen2.5-32b", "q3_k_s", 14.39 * GB),
    ("qwen2.5-32b", "q2_k", 12.31 * GB),
    # Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4: 3.95 + 3.98 + 3.95 + 3.98 + 3.48
    ("qwen2.5-32b", "int4-g128", 19.34 * GB),
    # openai/gpt-oss-20b: 4.79 + 4.80 + 4.17; gpt-oss-120b/original
    ("gpt-oss-20b", "mxfp4", 13.76 * GB),
    ("gpt-oss-120b", "mxfp4", 65.2 * GB),
    # deepseek-ai/DeepSeek-V3, 688586727753 bytes in all, less its multi-token prediction: 11.5 G
    # weights in 8 bits, and the embedding and the head once more, each 129280 x 7168 in 16 bits
    ("deepseek-v3", "fp8-block128", 688586727753 - 11.5 * GB - 2 * 129280 * 7168 * 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name", "size"), PUBLISHED)
def test_published_sizes_hold_within_one_per_cent(model: str, name: str, size: float) -> None:
    sizes: dict[str, Any] = {"phase": "decode", "past": 16, "dtype": "bfloat16"}
    plain = captured(preset(model), model=model, **sizes).graph
    assert parameter_bytes(stored(plain, load_weights(name))) == pytest.approx(size, rel=0.01)


# as llama-bench states them of Llama-3.2-1B
@pytest.mark.parametrize(
    ("name", "size"), [("f16", 2.30 * GIB), ("q8_0", 1.22 * GIB), ("q4_k_m", 762.81 * MIB)]
)
def test_the_sizes_of_a_small_model(name: str, size: float) -> None:
    plain = cutedge.trace("llama-3.2-1b", seq=1024).graph
    assert parameter_bytes(stored(plain, load_weights(name))) == pytest.approx(size, rel=0.005)


# --- which tensor takes what ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral", "gpt2", "llama", "tied", "narrow", "phi3"])
@pytest.mark.few(1)
def test_the_mixture_is_that_of_a_rule_by_names(model: str) -> None:
    plain = decoded(MODELS[model])
    packed = stored(plain, load_weights("q4_k_m"))
    owners = [t for t in packed.tensors if t.role is Role.PARAMETER and t.alias_of is None]
    assert len(owners) > 9
    for tensor in owners:
        elements, size = by_name(tensor.name, tensor.shape, model)
        assert tensor.bytes == Fraction(prod(tensor.shape) * size, elements), tensor.name


@pytest.mark.slow
def test_rows_that_are_no_whole_number_of_blocks_take_what_the_tool_takes() -> None:
    """96 = 3 x 32, and no multiple of 256; 80 is no multiple of either."""
    ways = {96: ("q8_0", 34 / 32), 80: ("float16", 2)}
    for width, (name, each) in ways.items():
        plain = decoded({**LLAMA, "hidden_size": width, "num_hidden_layers": 1})
        packed = stored(plain, load_weights("q6_k"))
        (head,) = (t for t in packed.tensors if t.name == "lm_head.weight")
        assert (head.bytes, f"in {name}" in packed.meta.weights_other) == (96 * width * each, True)


@pytest.mark.slow
def test_checkpoints_leave_embedding_head_norms_and_routers() -> None:
    plain = decoded(MODELS["mixtral"])
    packed = stored(plain, load_weights("int4-g128"))
    assert packed.meta.weights_other == "embedding head router vector in bfloat16"
    for tensor in packed.tensors:
        if tensor.role is Role.PARAMETER and tensor.alias_of is None:
            left = re.search(r"embed|lm_head|norm|mlp\.gate\.", tensor.name)
            bits = 16 if left else 4 + Fraction(20, 128)
            assert tensor.bytes == prod(tensor.shape) * bits / 8, tensor.name


# --- what follows ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_flops_and_dtypes_stay_and_bytes_follow() -> None:
    plain = annotate(decoded(LLAMA))
    packed = annotate(stored(plain, load_weights("q8_0")))
    for one, other in zip(plain.ops, packed.ops, strict=True):
        assert replace(one.cost, read_bytes=0, param_bytes=0) == replace(
            other.cost, read_bytes=0, param_bytes=0
        )
        rest = one.cost.read_bytes - one.cost.param_bytes
        assert other.cost.read_bytes - other.cost.param_bytes == rest
        if one.target == "aten.linear.default":  # 34 bytes for 32 weights, where 4 each were
            assert other.cost.param_bytes * 32 * 4 == one.cost.param_bytes * 34
    saved = parameter_bytes(plain) - parameter_bytes(packed)
    held = memory_need(plain).resident_bytes - memory_need(packed).resident_bytes
    assert held == saved > 0
    assert [t.dtype for t in plain.tensors] == [t.dtype for t in packed.tensors]


def test_a_chosen_expert_is_read_as_it_is_stored() -> None:
    plain = annotate(decoded(MODELS["mixtral"]))
    packed = annotate(stored(plain, load_weights("q4_0")))
    pairs = [
        (one.cost.param_bytes, other.cost.param_bytes)
        for one, other in zip(plain.ops, packed.ops, strict=True)
        if "grouped_mm" in one.target
    ]
    assert pairs
    for one, other in pairs:  # 2 of 8 experts: 18 bytes for 32 weights in place of 128
        assert other * 128 == one * 18


@pytest.mark.slow
def test_what_is_stored_is_computed_as_it_was() -> None:
    plain = decoded(LLAMA)
    packed = cache_in(stored(plain, load_weights("q4_k_m")), "q8_0")
    assert packed.tensors != plain.tensors
    assert as_computed(packed).tensors == plain.tensors


def test_a_module_of_the_users_own_is_stored_alike() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
    traced = cutedge.trace(module, torch.zeros(2, 64))
    (cost,) = traced.costs("rtx-4090", weights="q8_0")
    # two matrices, blocks along their inputs; biases in float32
    want = 128 * 2 * 34 + 8 * 4 * 34 + 4 * (128 + 8)
    assert cost.summary["parameter_bytes"] == want
    assert cost.summary["flops"] == traced.costs("rtx-4090")[0].summary["flops"]


def test_tied_weights_count_once_and_a_stack_of_bfloat16_is_half() -> None:
    plain = decoded({**MODELS["tied"], "num_hidden_layers": 1})
    packed = stored(plain, load_weights("bfloat16"))
    assert 2 * parameter_bytes(packed) == parameter_bytes(plain)
    assert (packed.meta.weights, packed.meta.weights_other) == ("bfloat16", "")


# --- cached keys and values -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("fp8", 8), ("q8_0", 8.5), ("q4_0", 4.5)])
@pytest.mark.few(1)
def test_a_cache_takes_its_own_dtype_and_formula(name: str, bits: float) -> None:
    config = {**LLAMA, "num_hidden_layers": 1}
    plain = cutedge.trace(config, phase="decode", past=16, dtype="float16")
    (before,), (after,) = plain.costs("rtx-4090"), plain.costs("rtx-4090", kv_dtype=name)
    # keys and values of a layer, 2 heads of 64, 17 tokens at the end
    cache = 2 * 2 * 64 * 17
    gone = before.summary["resident_bytes"] - after.summary["resident_bytes"]
    assert gone == cache * (16 - bits) / 8
    assert after.summary["flops"] == before.summary["flops"]
    packed = plain.stored(kv_dtype=name)
    assert (
        packed.at(past=100).graph.tensors == plain.at(past=100).stored(kv_dtype=name).graph.tensors
    )
    assert packed.id == plain.id


def test_recurrent_state_is_computed_with_and_stays() -> None:
    config = {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "state_size": 4,
        "vocab_size": 64,
    }
    plain = decoded(config)
    assert cache_in(plain, "fp8").tensors == plain.tensors


# --- commands -------------------------------------------------------------------------------------


def _stored_by(command: str, *args: str | Path) -> Any:
    done = invoke(command, *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_commands_agree_on_what_is_stored(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    traced = invoke("trace", "edge-10m", "--phase", "decode", "--past", "8", "--out", folder)
    assert traced.returncode == 0
    before = (folder / "tensors.parquet").read_bytes()
    (plain,) = _stored_by("cost", folder)["costs"]
    (cost,) = _stored_by("cost", folder, "--weights", "q8_0")["costs"]
    machine = ("--machine", "tee-tdx+rtx-4090@pcie4-x16", "--policy", "all-home")
    split = _stored_by("partition", folder, *machine, "--weights", "q8_0")
    (compared,) = _stored_by("compare", folder, *machine, "--weights", "q8_0")["partitions"]
    assert (plain["weights"], cost["weights"], split["weights"]) == (None, "q8_0", "q8_0")
    assert cost["parameter_bytes"] < plain["parameter_bytes"] / 3
    assert split["resident_bytes"]["tee-tdx"] == cost["resident_bytes"]
    assert compared["resident_bytes"] == split["resident_bytes"]
    assert compared["run_seconds"] == split["run_seconds"]
    bare = _stored_by("partition", folder, *machine)
    assert bare["folder"] != split["folder"]
    assert bare["trace_id"] == split["trace_id"]
    assert split["machine"] == f"{bare['machine']}, weights=q8_0"
    assert split["total_payload_bytes"] == bare["total_payload_bytes"]
    assert (folder / "tensors.parquet").read_bytes() == before
    swept = cutedge.sweep(
        "edge-10m",
        tmp_path / "s",
        phase="decode",
        past=8,
        policy="all-home",
        pair="tee-tdx+rtx-4090",
        link="pcie4-x16",
        weights="q8_0",
        jobs=1,
    )
    (row,) = json.loads(
        invoke(
            "query",
            "SELECT home_resident_bytes AS b, run_seconds AS s, variant AS v FROM sweep",
            "--trace",
            swept.folder,
            "--json",
        ).stdout
    )["rows"]
    assert row == {
        "b": split["resident_bytes"]["tee-tdx"],
        "s": split["run_seconds"],
        "v": "default, weights=q8_0",
    }
    made = cutedge.generate(
        "edge-10m",
        prompt=8,
        new=2,
        policy="all-home",
        machine="tee-tdx+rtx-4090@pcie4-x16",
        weights="q8_0",
    )
    assert made.steps[0].run_seconds == split["run_seconds"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--weights", "q9"), "unknown weight format 'q9'; known are"),
        (("--kv-dtype", "int8"), "--kv-dtype 'int8' is not one of"),
        (("--kv-dtype", "q4_k"), "no whole number of groups of 256"),
        (("--weights", "no/such.toml"), "cannot be read"),
    ],
)
def test_what_is_no_format_is_said(tmp_path: Path, option: tuple[str, str], said: str) -> None:
    invoke("trace", "edge-10m", "--phase", "decode", "--past", "8", "--out", tmp_path / "t")
    done = invoke("cost", tmp_path / "t", *option)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr


FIGURE = '\n[{key}]\nvalue = {value}\nsource = "by hand"\n'
TEXT = (
    'description = "d"\n'
    + FIGURE.format(key="element_bits", value=6)
    + FIGURE.format(key="group_elements", value=16)
    + FIGURE.format(key="group_bits", value=16)
    + '\n[[tensor]]\nparts = ["vector"]\nas = "float32"\nsource = "by hand"\n'
)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TEXT)
    made = load_weights(str(file))
    assert (made.name, made.encoding) == ("mine", "mine")
    plain = decoded(LLAMA)
    packed = stored(plain, made)
    size = {t.name: t.bytes for t in packed.tensors}
    assert size["lm_head.weight"] == 96 * 256 * 7 // 8  # 6 bits and 16 for 16
    assert size["model.norm.weight"] == 4 * 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("value = 6", "value = 0"), "[element_bits]: value must be"),
        (lambda t: t.replace("[element_bits]", "[element_bit]"), "unknown key 'element_bit'"),
        (lambda t: t.replace("vector", "vectors"), "[[tensor]] 1: parts"),
        (lambda t: t.replace('as = "float32"', 'as = "q9"'), "unknown encoding 'q9'"),
        (lambda t: t.replace('as = "float32"', 'as = "q4_k_m"'), "it is a mixture, no encoding"),
        (lambda t: t.replace('as = "float32"\n', ""), "key 'as' is missing"),
        (lambda t: t + 'layers = "odd"\n', "layers is more, first 4 or first 1/8"),
        (lambda t: t + "experts = 0\n", "experts must be a whole number above 0"),
        (lambda t: 'encoding = "q8_0"\n' + t, "not both"),
        (lambda t: 'rules_of = "q9"\n' + t, "unknown weight format 'q9'"),
        (lambda t: 'otherwise = "q9"\n' + t, "unknown encoding 'q9'"),
        (lambda t: t.replace('description = "d"\n', ""), "key 'description' is missing"),
        (lambda t: t + "=", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(change(TEXT))
    with pytest.raises(InputError, match=re.escape(said)):
        load_weights(str(file))
