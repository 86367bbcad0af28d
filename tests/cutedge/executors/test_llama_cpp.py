"""llama.cpp's options: what they place, by hand; the names that expressions are found in."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from random import Random

import pytest

import cutedge
from cutedge.executors import expressions, llama_cpp
from partition.placement import Placement
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph

gguf = pytest.importorskip("gguf")
from cutedge.executors.gguf_names import gguf_names  # noqa: E402

ALL = {"embed", *map(str, range(16)), "output"}


@pytest.fixture(scope="module")
def llama(traced: Callable[..., OpGraph]) -> OpGraph:
    return traced("llama-3.2-1b", seq=16)


@pytest.fixture(scope="module")
def moe(traced: Callable[..., OpGraph]) -> OpGraph:
    return traced("qwen3-30b-a3b", phase="decode", past=16, overrides={"num_hidden_layers": 2})


def weighted(graph: OpGraph, options: str, devices=("tee", "gpu")) -> dict[str, str]:
    """What reads weights -> its device, by hand-made names: the last part of its module's path."""
    at = llama_cpp.place(graph, llama_cpp.parse(options), devices).devices
    return {
        op.module_path: str(at[op.id])
        for op in graph.ops
        if op.kind in (Kind.LINEAR, Kind.EMBEDDING) and at[op.id]
    }


def parts(where: dict[str, str], device: str = "gpu") -> set[str]:
    """The blocks, and what stands around them, that are on a device as a whole."""
    of: dict[str, set[str]] = {}
    for path, there in where.items():
        block = re.search(r"layers\.(\d+)\.", path)
        name = block[1] if block else "embed" if "embed" in path else "output"
        of.setdefault(name, set()).add(there)
    assert all(len(there) == 1 for there in of.values())
    return {name for name, there in of.items() if there == {device}}


@pytest.mark.parametrize(
    ("options", "away"),
    [  # of 16 blocks and the output as the 17th, the last K; the table of words never
        ("-ngl 0", set()),
        ("-ngl 1", {"output"}),
        ("--gpu-layers 3", {"output", "15", "14"}),
        ("--n-gpu-layers 17", ALL - {"embed"}),
        ("-ngl 99", ALL - {"embed"}),
        ("-ngl all", ALL - {"embed"}),
        ("-ngl 4 -ot 'blk\\.(15|1)\\.=CPU'", {"14", "13", "output"}),
        ("-ngl 0 -ot 'blk\\.(0|3)\\.=CUDA0'", {"0", "3"}),
        # The first that matches counts; an expression is found anywhere in a name.
        ("-ngl 0 -ot 'blk\\.0=CUDA0' -ot 'blk=CPU'", {"0"}),
        ("-ngl all -ot 'blk\\.1=CUDA0,blk=CPU'", {"1", "output", *map(str, range(10, 16))}),
        # A tied head has the name of the table.
        ("-ngl 0 -ot token_embd=CUDA0", {"embed", "output"}),
        ("llama-server -m llama.gguf -c 4096 -ngl 2 --host 0.0.0.0", {"output", "15"}),
    ],
)
def test_what_options_place(llama: OpGraph, options: str, away: set[str]):
    assert parts(weighted(llama, options)) == away


@pytest.mark.parametrize(
    ("split", "first", "second"),
    [  # K = 17, layers 0 to 15 and the output; the n-th is on the first where n / 17 is below its part
        ("12,5", range(12), {"12", "13", "14", "15", "output"}),
        ("1,1", range(9), {*map(str, range(9, 16)), "output"}),  # 8/17 < 1/2 <= 9/17
        ("0,1", (), ALL - {"embed"}),
        ("16/1", range(16), {"output"}),
    ],
)
def test_a_tensor_split_is_in_order(
    llama: OpGraph, split: str, first: Iterable[int], second: set[str]
):
    where = weighted(llama, f"-ngl all -ts {split}", ("tee", "a", "b"))
    assert (parts(where, "a"), parts(where, "b")) == ({*map(str, first)}, second)


def test_caches_are_with_their_blocks_or_all_at_home(llama: OpGraph):
    def cores(options: str) -> dict[int | None, set[str | None]]:
        at = llama_cpp.place(llama, llama_cpp.parse(options), ("tee", "gpu")).devices
        products = [op for op in llama.ops if op.kind in (Kind.MATMUL, Kind.SOFTMAX)]
        return {
            op.layer: {at[other.id] for other in products if other.layer == op.layer}
            for op in products
        }

    assert cores("-ngl 3") == {n: {"gpu" if n > 13 else "tee"} for n in range(16)}
    assert cores("-ngl 3 -nkvo") == {n: {"tee"} for n in range(16)}
    # Weights that are overridden leave the cache where its block is.
    assert cores("-ngl 0 -ot attn=CUDA0") == {n: {"tee"} for n in range(16)}


def test_experts_of_the_first_blocks(moe: OpGraph):
    def experts(options: str) -> list[str]:
        where = weighted(moe, options)
        return [where[f"model.layers.{n}.mlp.experts"] for n in range(2)]

    assert experts("-ngl all --n-cpu-moe 1") == ["tee", "gpu"]
    assert experts("-ngl all --cpu-moe") == experts("-ngl all -ot exps=CPU") == ["tee", "tee"]
    assert weighted(moe, "-ngl all -cmoe")["model.layers.0.mlp.gate"] == "gpu"


def test_bytes_of_experts_at_home_by_hand(moe: OpGraph):
    """Decode of one token, 8 of 128 experts, hidden 2048, float32; the table of words at home.

    In a block home gets the normed hidden state (2048 x 4 bytes) and the router's choice, 8 indices
    of 8 bytes and 8 weights of 4; these come back in the order that experts were read in (8 x 8 and
    8 x 4), with the 8 experts' answers of 2048 x 4 bytes: the weighted sum is behind the last
    weight of the block, and so on the accelerator. The token's embedding goes there once, the
    logits of 151936 words come home.
    """
    hidden, choice = 2048 * 4, 8 * (8 + 4)
    traced = cutedge.trace(
        "qwen3-30b-a3b", phase="decode", past=16, overrides={"num_hidden_layers": 2}
    )
    split = traced.partition(cutedge.placement("-ngl all -ot exps=CPU"))
    assert split.summary["received_payload_bytes"] == 2 * (hidden + choice) + 151936 * 4
    assert split.summary["sent_payload_bytes"] == hidden + 2 * (choice + 8 * hidden)
    assert split.summary["calls"] == 3
    assert split.words_for("llama.cpp").text == "-ngl 3 --n-cpu-moe 2\n"


# --- names and expressions ------------------------------------------------------------------------


def test_a_file_that_is_written_has_these_names_and_no_others(llama: OpGraph, tmp_path):
    """gguf's own writer and reader: what ours select of the names in a file is what was meant."""
    import numpy as np

    names = gguf_names(llama)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for name in names.all:
        writer.add_tensor(name, np.zeros((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    held = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors]
    assert sorted(held) == sorted(names.all)
    known = {name.format(bid=n) for name in gguf.TENSOR_NAMES.values() for n in range(16)}
    assert {name.rpartition(".")[0] for name in held} <= known
    at = llama_cpp.place(llama, llama_cpp.parse("-ngl 2 -ot 'ffn_(up|gate)=CUDA0'"), ("tee", "gpu"))
    told = llama_cpp.nearest(llama, _placement(at), ("tee", "gpu"))
    ((regex, buffer),) = told.overrides
    found = [name for name in held if re.search(regex, name)]
    assert buffer == "CUDA0"
    moved = {f"blk.{n}.ffn_{part}.weight" for n in range(15) for part in ("up", "gate")}
    assert moved <= set(found) <= moved | {f"blk.15.ffn_{p}.weight" for p in ("up", "gate")}


def _placement(at):
    return Placement("tee", at.devices, [True] * len(at.devices), [""] * len(at.devices))


NAMES = [
    *(
        f"blk.{n}.{part}.weight"
        for n, part in product(
            range(23), ("attn_q", "attn_q_norm", "attn_k", "ffn_up", "ffn_up_exps", "ffn_gate_exps")
        )
    ),
    *("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"),
]


@pytest.mark.parametrize("seed", range(60))
def test_an_expression_matches_what_it_is_asked_for_alone(seed: int):
    random = Random(seed)
    blocks, ends = random.sample(range(23), random.randrange(1, 23)), random.sample(NAMES[:6], 3)
    asked = {
        name
        for name in NAMES
        if (int((re.search(r"\d+", name) or ["-1"])[0]) in blocks and random.random() < 0.9)
        and any(name.endswith(end[6:]) for end in ends)
    } | set(random.sample(NAMES[-4:], random.randrange(3)))
    if not asked:
        return
    kept = set(NAMES) - asked
    regex = expressions.expression(sorted(asked), sorted(kept))
    assert {name for name in NAMES if re.search(regex, name)} == asked
    assert not set(regex) & set(",= ")  # these end it on the command line
    assert not re.search(r"\\[^.]|\(\?|[{}+?]", regex)  # nothing that ECMAScript reads otherwise


@pytest.mark.parametrize(
    ("asked", "regex"),
    [
        (r"exps", "exps"),
        (r"blk\.(8|9|1\d|2[012])\.", r"blk\.([89]|1[0-9]|2[0-2])\."),
        (r"blk\.[12]\.ffn_up\.", r"blk\.[12]\..*up\."),
        (r"^output\.", r"output\."),
    ],
)
def test_expressions_are_short(asked: str, regex: str):
    these = [name for name in NAMES if re.search(asked, name)]
    assert expressions.expression(these, [name for name in NAMES if name not in these]) == regex


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "-ngl 4 -ot foo=CPU",
            "no weight of llama-3.2-1b is called so; they are called like blk.0.",
        ),
        ("-ot 'blk(=CPU'", "is no expression"),
        ("-ot blk", "write REGEX=BUFFER"),
        ("-ngl auto", "give a number of layers (-ngl also all)"),  # by the memory that is free
        ("-ngl", "needs a value"),
        ("--ngl 3", "is no option of placement in llama.cpp"),
        ("-ngl 4 -ts 1,1", "-ts has 2 parts, and here are 1 accelerators"),
        ("-ngl 4 -ts 1,x", "as in -ts 3,1"),
        ("-ot blk=CUDA1", "here are 1 accelerators, counted from 0"),
        ("-ngl 4 -sm row", "splits a tensor's rows"),
        ("-nkvo -kvo", "give one of them"),
        ("-ngl '3", "a quote is not closed"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(llama: OpGraph, options: str, told: str):
    with pytest.raises(InputError, match=re.escape(told)) as error:
        llama_cpp.place(llama, llama_cpp.parse(options), ("tee", "gpu"))
    assert "\n" not in str(error.value)


LOAD = """
import os
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.tensor_buft_overrides = sys.argv[1:]
params.n_ctx, params.verbosity, params.warmup = 64, 5, False
server = xllamacpp.Server(params)
os._exit(0)  # it has loaded
"""


def small_file(file: Path, graph: OpGraph) -> None:
    """A llama in GGUF with the weights of a graph, and a token for each of its words."""
    import numpy as np

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(33 + n) for n in range(96))])
    writer.add_token_scores([0.0] * 99)
    writer.add_token_types([2, 3, 3] + [1] * 96)
    for tensor, (name,) in gguf_names(graph).of.items():
        writer.add_tensor(name, np.full(graph.tensors[tensor].shape, 0.01, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
@pytest.mark.parametrize("seed", range(6))
def test_llama_cpp_overrides_the_weights_that_are_meant(seed: int, tmp_path: Path):
    """Its log names what it overrides; where there is no accelerator, CPU stands for its buffers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    graph = cutedge.trace({**kind, **sizes, **heads}, seq=5).graph
    random = Random(seed)
    often = random.choices(("tee", "gpu"), k=seed)  # the more, the fewer overrides
    at = [
        None
        if graph.is_everywhere(op.id)
        else "tee"
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else random.choice(("tee", "gpu", *often))
        for op in graph.ops
    ]
    nowhere = ([False] * len(at), [""] * len(at))
    told = llama_cpp.nearest(graph, Placement("tee", at, *nowhere), ("tee", "gpu"))
    assert told.overrides
    small_file(tmp_path / "small.gguf", graph)
    overrides = ",".join(f"{regex}=CPU" for regex, _ in told.overrides)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "small.gguf", overrides],
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    overridden = re.findall(r"tensor (\S+) .*buffer type overridden to CPU", log)
    plain = llama_cpp.place(graph, replace(told, overrides=()), ("tee", "gpu")).devices
    there = llama_cpp.place(graph, told, ("tee", "gpu")).devices
    meant = {
        name
        for tensor, names in gguf_names(graph).of.items()
        for name in names
        if any(plain[op] != there[op] for op in graph.readers(tensor))
    }
    assert {*overridden} == meant


def test_gates_and_what_they_gate_are_one_op_here(moe: OpGraph):
    with pytest.raises(InputError, match=r"ffn_gate_exps.weight on tee and .*one op reads it"):
        weighted(moe, "-ngl all -ot ffn_gate_exps=CPU")
