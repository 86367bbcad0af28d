"""``export scalesim`` and ``zigzag``: a trace's products, and the simulators themselves take them."""

import configparser
import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from costmodels.arrays import gemm_cost
from costmodels.devices import Array
from costmodels.weights import quantised
from cutedge._export import export_scalesim, export_stream, export_zigzag
from cutedge.exports.scalesim import configuration, offsets_of, products_of, topology
from tests.support.inprocess import invoke
from tracer.errors import InputError
from tracer.graph import Gemm, OpGraph

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 50}
BUFFERS = {"sram_kib": "4,2,1", "dram_words_per_cycle": 4}


@pytest.fixture
def graph(traced) -> OpGraph:
    return traced("gpt2", seq=4, overrides=SMALL)


def rows(folder: Path) -> list[list[str]]:
    """Name, M, N, K of each row."""
    lines = list(csv.reader((folder / "topology.csv").read_text().splitlines()))
    assert {len(line) for line in lines} == {6}  # SCALE-Sim drops what is behind the last comma
    return [[cell.strip() for cell in line[:4]] for line in lines[1:]]


def test_the_rows_are_the_products_in_their_order(graph, tmp_path):
    """By hand: 4 tokens of width 32, two heads of 16, a vocabulary of 50 for the last token."""
    export_scalesim(graph, tmp_path / "to" / "here", rows=8, cols=4, mode="ws", **BUFFERS)
    assert [[int(size) for size in row[1:]] for row in rows(tmp_path / "to" / "here")] == [
        [4, 3 * 32, 32],  # queries, keys, values
        [4, 4, 16],  # scores, a head a row
        [4, 4, 16],
        [4, 16, 4],  # what they weigh
        [4, 16, 4],
        [4, 32, 32],
        [4, 4 * 32, 32],
        [4, 32, 4 * 32],
        [1, 50, 32],
    ]
    macs = sum(gemm.batch * gemm.m * gemm.n * gemm.k for _, gemm in products_of(graph))
    linears = 4 * (3 * 32 * 32 + 32 * 32 + 2 * 4 * 32 * 32) + 50 * 32
    assert macs == linears + 2 * 2 * 4 * 4 * 16


def test_the_configuration_is_the_array_and_its_buffers(graph, tmp_path):
    export_scalesim(graph, tmp_path, "systolic-16x16", mode="is", cols=4, **BUFFERS)
    read = configparser.ConfigParser()
    read.read(tmp_path / "scalesim.cfg")
    there = read["architecture_presets"]
    assert (there["ArrayHeight"], there["ArrayWidth"], there["Dataflow"]) == ("16", "4", "is")
    kib = [there[f"{operand}SramSzkB"] for operand in ("Ifmap", "Filter", "Ofmap")]
    assert kib == ["4", "2", "1"]
    assert there["Bandwidth"] == read["layout"]["FilterSRAMBankBandwidth"] == "4"
    # No word of one matrix has the address of another's: 4 x 128 and 32 x 128 are the largest.
    assert (there["FilterOffset"], there["OfmapOffset"]) == ("512", str(512 + 32 * 128))
    assert read["run_presets"]["InterfaceBandwidth"] == "USER"


def test_a_name_is_one_of_a_folder():
    assert "run_name = a-b-c.py-d\n" in configuration(
        "a/b%c.py:d", "os", 8, 8, (1, 1, 1), 1, offsets=offsets_of([("x", Gemm(1, 1, 1, 1))])
    )


def test_the_command_writes_them_and_says_how_many(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    assert invoke("trace", "gpt2", "--seq", "4", *settings).returncode == 0
    options = ("--sram-kib", "4,2,1", "--dram-words-per-cycle", "4", "--out", "here")
    done = invoke("export", "scalesim", *options, "--json")
    told = json.loads(done.stdout)
    assert (told["model"], told["products"]) == ("gpt2", 9)
    assert {Path(one["file"]).name: one["bytes"] for one in told["files"]} == {
        file.name: file.stat().st_size for file in Path("here").iterdir()
    }
    assert (tmp_path / "here" / "topology.csv").read_text() == topology(products_of(graph))
    assert invoke("export", "zigzag", "--out", "workload.yaml").stdout.startswith(
        "gpt2: 9 products"
    )
    export_zigzag(graph, tmp_path / "same.yaml")
    assert Path("workload.yaml").read_text() == Path("same.yaml").read_text()
    Path("file").write_text("")
    for words, says in (
        ((), "add --sram-kib 64,64,64 --dram-words-per-cycle 10"),
        ((*options[:4], "--device", "chip-8x8"), "chip-8x8 is none: add --mode os"),
        (("--sram-kib", "4,2,0.5", *options[2:4]), "whole KiB and whole words"),
        ((*options[:2], "--dram-words-per-cycle", "inf"), "whole KiB and whole words"),
        ((*options[:4], "--device", "rtx-4090"), "rtx-4090 is no array"),
        (options[:4], "cannot write into file"),
    ):
        ran = invoke("export", "scalesim", *words, "--out", "file" if "into" in says else "new")
        assert ran.returncode == (1 if says.startswith("cannot") else 2), ran.stderr
        assert says in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
        assert not Path("new").exists()


def test_attention_in_one_op_is_named_as_left_out(traced, tmp_path):
    whole = traced("gpt2", seq=4, attn="sdpa", overrides=SMALL)
    written = export_scalesim(whole, tmp_path, **BUFFERS)
    (warning,) = written.warnings
    assert "1 x aten.scaled_dot_product_attention.default left out" in warning
    assert written.products == 5


def test_a_trace_without_products(traced, tmp_path):
    graph = traced("gpt2", seq=4, overrides=SMALL)
    bare = OpGraph(graph.meta, graph.ops[:1], (), ())
    with pytest.raises(InputError, match="no matrix products"):
        export_scalesim(bare, tmp_path / "x", **BUFFERS)
    assert not (tmp_path / "x").exists()


def test_a_workload_of_zigzag_is_the_products_in_their_order(graph, tmp_path):
    """Its B, C and K are rows, what is summed over, and columns; elements are float32."""
    written = export_zigzag(graph, tmp_path / "workload.yaml")
    layers = yaml.safe_load((tmp_path / "workload.yaml").read_text())
    assert [layer["id"] for layer in layers] == list(range(9))
    assert written.products == 9
    assert [layer["name"] for layer in layers][:3] == ["addmm_0", "matmul_0.0", "matmul_0.1"]
    assert [layer["loop_sizes"] for layer in layers] == [
        [gemm.m, gemm.k, gemm.n] for _, gemm in products_of(graph) for _ in range(gemm.batch)
    ]
    for layer in layers:
        assert layer["equation"] == "O[b][k]+=I[b][c]*W[c][k]"
        assert layer["operand_precision"] == {"W": 32, "I": 32, "O": 32, "O_final": 32}
        assert layer["operand_source"] == {"I": layer["id"], "W": layer["id"]}


@pytest.mark.skipif("CUTEDGE_SCALESIM" not in os.environ, reason="CUTEDGE_SCALESIM is no Python")
@pytest.mark.parametrize("mode", ["os", "ws", "is"])
def test_the_package_reads_it_and_counts_what_we_count(graph, tmp_path, mode):
    """CUTEDGE_SCALESIM is a Python with scalesim 3.0.0: its cycles without stalls are ours."""
    export_scalesim(graph, tmp_path, rows=8, cols=4, mode=mode, **BUFFERS)
    files = {
        "-c": tmp_path / "scalesim.cfg",
        "-t": tmp_path / "topology.csv",
        "-l": tmp_path / "layout.csv",
        "-p": tmp_path / "out",
    }
    words = [str(word) for pair in files.items() for word in pair]
    python = os.environ["CUTEDGE_SCALESIM"]
    ran = subprocess.run(
        [python, "-m", "scalesim.scale", "-i", "gemm", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = tmp_path / "out" / "gpt2" / "COMPUTE_REPORT.csv"
    layers = list(csv.DictReader(report.read_text().splitlines(), skipinitialspace=True))
    there = Array(mode, 8, 4, depth=None, tile_cycles=None, clock_hertz=1e8)
    counted = [
        gemm_cost(there, gemm.m, gemm.k, gemm.n).cycles
        for _, gemm in products_of(graph)
        for _ in range(gemm.batch)
    ]
    cycles = [int(layer["Total Cycles"]) - int(layer["Stall Cycles"]) for layer in layers]
    assert cycles == counted


ZIGZAG = """
import json, os, sys, zigzag
from zigzag.api import get_hardware_performance_zigzag as performance

inputs = os.path.join(os.path.dirname(zigzag.__file__), "inputs")
hardware, mapping = (f"{inputs}/{what}/gemm_l1.yaml" for what in ("hardware", "mapping"))
found = performance("workload.yaml", hardware, mapping, dump_folder="out")[2]
print(json.dumps([[one.layer.name, int(one.layer.total_mac_count)] for one, _ in found[0][1]]))
"""
"""On hardware and with a mapping that come with it."""


@pytest.mark.skipif("CUTEDGE_ZIGZAG" not in os.environ, reason="CUTEDGE_ZIGZAG is no Python")
def test_zigzag_reads_it_and_multiplies_what_we_multiply(graph, tmp_path):
    """CUTEDGE_ZIGZAG is a Python with zigzag-dse 3.9 (and six, which it leaves out)."""
    export_zigzag(graph, tmp_path / "workload.yaml")
    python = os.environ["CUTEDGE_ZIGZAG"]
    ran = subprocess.run(
        [python, "-c", ZIGZAG], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    counted = [
        gemm.m * gemm.k * gemm.n for _, gemm in products_of(graph) for _ in range(gemm.batch)
    ]
    layers = json.loads(ran.stdout.splitlines()[-1])
    assert [macs for _, macs in layers] == counted
    assert [name for name, _ in layers][:3] == ["addmm_0", "matmul_0.0", "matmul_0.1"]


def test_a_workload_of_stream_is_connected_and_has_the_products(graph, tmp_path):
    """Its nodes between the embedding and the logits; a weight has its shape, and no values."""
    onnx = pytest.importorskip("onnx")
    written = export_stream(graph, tmp_path / "workload.onnx")
    assert written.products == 9  # heads one by one
    (said,) = written.warnings
    assert "1 x aten.embedding.default left out" in said
    model = onnx.load(tmp_path / "workload.onnx").graph
    sizes = {
        value.name: shape_of(value) for value in (*model.input, *model.value_info, *model.output)
    }
    sizes |= {weight.name: list(weight.dims) for weight in model.initializer}
    products = [node for node in model.node if node.op_type == "MatMul"]
    assert [[sizes[name] for name in (*node.input, *node.output)] for node in products] == [
        [[4, 32], [32, 96], [4, 96]],
        [[2, 4, 16], [2, 16, 4], [2, 4, 4]],
        [[2, 4, 4], [2, 4, 16], [2, 4, 16]],
        [[4, 32], [32, 32], [4, 32]],
        [[4, 32], [32, 128], [4, 128]],
        [[4, 128], [128, 32], [4, 32]],
        [[1, 32], [32, 50], [1, 50]],
    ]
    made = {name for node in model.node for name in node.output}
    known = made | {value.name for value in model.input} | {one.name for one in model.initializer}
    assert all(name in known for node in model.node for name in node.input)
    softmax = next(node for node in model.node if node.op_type == "Softmax")
    assert softmax.input[0] in made  # scores, scaled and masked
    assert not any(weight.raw_data or weight.float_data for weight in model.initializer)
    assert sum(one.data_type == onnx.TensorProto.FLOAT for one in model.initializer) == 5 + 3
    again = export_stream(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "workload.onnx").read_bytes()
    assert again.summary["products"] == 9


def shape_of(value) -> list[int]:
    return [axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_a_workload_of_stream_in_another_dtype(graph, tmp_path):
    onnx = pytest.importorskip("onnx")
    export_stream(quantised(graph, "int8"), tmp_path / "workload.onnx")
    model = onnx.load(tmp_path / "workload.onnx").graph
    types = {value.type.tensor_type.elem_type for value in (*model.input, *model.output)}
    assert types == {onnx.TensorProto.INT8}
    bare = OpGraph(graph.meta, graph.ops[:1], graph.tensors[:0], ())
    with pytest.raises(InputError, match="nothing that Stream could run"):
        export_stream(bare, tmp_path / "x")
    assert not (tmp_path / "x").exists()


STREAM = """
import json
from math import prod
from stream.parser.onnx.model import ONNXModelParser
from stream.workload.workload import ComputationNode

read = ONNXModelParser("workload.onnx")
read.run()
nodes = [node for node in read.workload.nodes() if isinstance(node, ComputationNode)]
print(json.dumps([
    [node.name, prod(node.outputs[0].shape) * node.inputs[0].shape[-1]]
    for node in nodes if node.type == "MatMul"
]))
"""


@pytest.mark.skipif("CUTEDGE_STREAM" not in os.environ, reason="CUTEDGE_STREAM is no Python")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_stream_reads_it_and_multiplies_what_we_multiply(graph, tmp_path, dtype):
    """CUTEDGE_STREAM is a Python with stream-dse 1.13, as it is on GitHub."""
    export_stream(
        graph if dtype == "float32" else quantised(graph, dtype), tmp_path / "workload.onnx"
    )
    python = os.environ["CUTEDGE_STREAM"]
    ran = subprocess.run(
        [python, "-c", STREAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [
        [name, gemm.batch * gemm.m * gemm.k * gemm.n] for name, gemm in products_of(graph)
    ]
