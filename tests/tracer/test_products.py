"""What is a product, in users' own modules: of integers, in one op or in many, or not known."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest

import cutedge
from costmodels.devices import load_device
from costmodels.flops import annotate, total_flops
from costmodels.roofline import time_ops
from cutedge._words import cost_sentences, cycles, run_sentences
from tests.support.inprocess import invoke
from tracer.capture import capture_function
from tracer.graph import Gemm, Kind, Op, OpGraph

HEADER = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class Of(nn.Module):
    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args):
        return self.function(*args, *self.buffers())
"""

Traced = Callable[[str], OpGraph]


@pytest.fixture
def of(tmp_path) -> Traced:
    """``of("nn.Linear(8, 8), torch.randn(2, 8)")``: the annotated graph of a module on inputs."""

    def trace(returned: str) -> OpGraph:
        return annotate(capture_function(str(written(tmp_path, returned)), "build").graph)

    return trace


def written(folder: Path, returned: str, before: str = "") -> Path:
    file = folder / "own.py"
    text = f"{HEADER}\n{before}\n\ndef build():\n    return {returned}\n"
    file.write_text(text, encoding="utf-8")
    return file


def products(graph: OpGraph) -> list[Op]:
    return [op for op in graph.ops if op.kind in (Kind.LINEAR, Kind.MATMUL)]


def of_integers(call: str, dtype: str) -> str:
    """[32, 64] x [64, 32], the second a buffer."""
    made = f"torch.zeros(64, 32, dtype=torch.{dtype})"
    return f"Of({call}, w={made}), torch.zeros(32, 64, dtype=torch.{dtype})"


INTEGERS = [
    ("lambda x, w: x @ w", "int32"),
    ("lambda x, w: x @ w", "int64"),
    ("lambda x, w: x @ w", "uint8"),
    ("torch.mm", "int16"),
    ("torch._int_mm", "int8"),
    ("lambda x, w: F.linear(x, w.T)", "int32"),
    ("lambda x, w: torch.bmm(x[None], w[None])", "int32"),
    ("lambda x, w: torch.addmm(x[:, :32], x, w)", "int64"),
    ("lambda x, w: torch.einsum('ik,kj->ij', x, w)", "int32"),
    ("lambda x, w: F.conv1d(x.T[None], w.T[:, :, None])", "int32"),
]


@pytest.mark.parametrize(("call", "dtype"), INTEGERS)
def test_a_product_of_integers_counts_its_operations(of, call, dtype):
    """2 x 32 x 32 x 64 = 131,072 operations, whatever is multiplied."""
    graph = of(of_integers(call, dtype))
    (product,) = products(graph)
    assert product.cost.flops == total_flops(graph).products == 2 * 32 * 32 * 64 == 131_072
    assert product.cost.gemm == Gemm(1, 32, 32, 64)


@pytest.mark.parametrize(("call", "dtype"), INTEGERS)
def test_a_chip_multiplies_integers(of, call, dtype):
    """4 x 8 x 4 tiles of 8 x 8 x 8, 532 cycles each."""
    graph = of(of_integers(call, dtype))
    (product,) = products(graph)
    time = time_ops(graph, load_device("chip-8x8"))
    tiles = ceil(32 / 8) * ceil(64 / 8) * ceil(32 / 8)
    assert time.ops[product.id].gemm.tiles == tiles == 128
    assert time.ops[product.id].gemm.cycles == 128 * 532 == 68_096


def test_seconds_need_a_peak_for_the_integers_that_are_multiplied(of):
    """Not for those that the products are summed up in: int8 x int8 makes int32."""
    small, large = (of(of_integers("torch._int_mm", "int8")), of(of_integers("torch.mm", "int32")))
    card = replace(load_device("rtx-4090"), memory_bandwidth_bytes_per_second=1e15)
    assert set(card.peak_flops_per_second).isdisjoint(("int32", "int64"))
    (product,) = products(small)
    taken = time_ops(small, card).ops[product.id].seconds
    assert taken == pytest.approx(131_072 / card.peak_flops_per_second["int8"])
    (product,) = products(large)
    time = time_ops(large, card)
    assert time.ops[product.id].seconds is None
    assert time.missing == {"aten.mm.default": 1}
    # What floats are multiplied in is nothing to integers.
    assert time_ops(large, card, products_dtype="tfloat32").ops[product.id].seconds is None


def test_the_commands_count_integer_products(tmp_path):
    file = written(tmp_path, of_integers("lambda x, w: x @ w", "int32"))
    traced = invoke("trace", f"{file}:build", "--out", tmp_path / "out")
    assert "131,072 in matrix products, exact" in traced.stdout
    chip = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite")
    split = invoke("partition", tmp_path / "out", "--policy", "host-chip", *chip)
    assert "chip-8x8: 68,096 cycles" in split.stdout


RECURRENT = """
class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(10, 20, batch_first=True), nn.Linear(20, 8)

    def forward(self, x):
        return self.head(self.layer(x)[0])
"""


def test_cycles_of_products_in_one_op_are_not_known(tmp_path):
    """The head's alone are 2 x 1 x 3 tiles of 532, over 12 rows of 20 that become 8."""
    file = written(tmp_path, "Mixed(), torch.randn(2, 6, 10)", RECURRENT)
    traced = cutedge.trace(f"{file}:build")
    split = traced.partition("host-chip", machine="ryzen-7950x+chip-8x8@axi-lite")
    assert split.summary["cycles"] == {"chip-8x8": None}
    assert cycles(split.split) == "not known"
    (said,) = [line for line in run_sentences(split.split) if "cycles" in line]
    assert said == "chip-8x8: cycles not known, for want of those of 1 x aten.lstm.input"
    cost = traced.costs("chip-8x8")[0]
    assert f"at least {6 * 532:,} cycles in 6 tiles" in "\n".join(cost_sentences(cost))
    assert cost.summary["cycles"] is cost.summary["tiles"] is None
    where = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite", "--jobs", "1")
    grid = (f"{file}:build", "--policy", "host-chip", "--policy", "all-home", *where)
    assert invoke("sweep", *grid, "--out", tmp_path / "grid").returncode == 0
    sql = "SELECT policy, cycles FROM sweep ORDER BY 1"
    rows = invoke("query", sql, "--trace", tmp_path / "grid", "--json")
    found = {row["policy"]: row["cycles"] for row in json.loads(rows.stdout)["rows"]}
    assert found == {"all-home": 0, "host-chip": None}


@pytest.mark.parametrize(
    "returned",
    [
        "nn.Bilinear(5, 6, 7), (torch.randn(3, 5), torch.randn(3, 6))",
        "Of(torch.cdist), (torch.randn(30, 4), torch.randn(40, 4))",
        "Of(torch.linalg.inv), torch.randn(4, 4)",
        "Of(torch.linalg.svd), torch.randn(4, 4)",
    ],
)
def test_products_that_are_not_known_are_no_zero(of, returned):
    graph = of(returned)
    totals = total_flops(graph)
    assert totals.products_missing or totals.products


OWN_OPS = """
@torch.library.custom_op("elsewhere::add", mutates_args=())
def add(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w

@torch.library.custom_op("elsewhere::view", mutates_args=())
def view(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w

@add.register_fake
@view.register_fake
def _(x, w):
    return x.new_empty(x.shape[0], w.shape[1])
"""


def test_an_op_of_ones_own_is_not_what_it_is_called_like(tmp_path):
    """Each multiplies [4, 8] with [8, 8]: 512 operations that nobody can know of."""
    call = "Of(lambda x, w: view(add(x, w), w), w=torch.zeros(8, 8)), torch.zeros(4, 8)"
    file = written(tmp_path, call, OWN_OPS)
    graph = annotate(capture_function(str(file), "build").graph)
    added, viewed = (op for op in graph.ops if op.target.startswith("elsewhere"))
    assert added.kind is viewed.kind is Kind.OTHER
    assert (added.name, viewed.name) == ("add_0", "view_0")
    assert added.cost.flops is viewed.cost.flops is None
    assert (added.cost.read_bytes, added.cost.write_bytes) == (4 * (4 * 8 + 8 * 8), 4 * 4 * 8)
    totals = total_flops(graph)
    lacking = {"elsewhere.add.default": 1, "elsewhere.view.default": 1}
    assert totals.products_missing == totals.unsupported == lacking
