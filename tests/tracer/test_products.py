"""What is a product, in users' own modules: of integers, in one op or in many, or not known."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cutedge
from costmodels.devices import load_device
from costmodels.flops import FREE, annotate, total_flops
from costmodels.roofline import time_ops
from cutedge._words import cost_sentences, cycles, run_sentences
from tests.support.inprocess import invoke
from tracer.capture import capture_function
from tracer.graph import Gemm, Kind, Op, OpGraph, Status
from tracer.kinds import base_name

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


MANY = """
class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(10, 20, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 20, batch_first=True)
        self.cell = nn.LSTMCell(10, 20)

    def forward(self, x, a, b, c, d, e):
        return (
            self.lstm(x)[0],
            self.gru(x)[0],
            self.cell(x[:, 0])[0],
            torch.addmv(a[:, 0], a, b[:, 0]),
            torch.linalg.multi_dot([a, b, c]),
            torch.chain_matmul(a, b, c),
            torch.addbmm(d[0, :, :1], d, e),
            torch.outer(a[:, 0], b[0]),
            torch.einsum("i,j->ij", a[:, 0], b[0]),
            torch.kron(a, b),
            torch.cdist(a, a),
        )
"""
BRANCHES = """
from torch._higher_order_ops.while_loop import while_loop

class Branches(nn.Module):
    def forward(self, n, a):
        chosen = torch.cond(n > 0, lambda m: m @ m, lambda m: (2 * m) @ m, (a,))
        again = lambda n, m: (n + 1, m @ m)
        return chosen, while_loop(lambda n, m: n < 3, again, (n, a))[1]
"""
BY_HAND = {
    # 2 x 6 rows; two layers in two directions, 4 gates of 20: of 10 and 20 wide, then of 40 and 20
    "lstm": 12 * (2 * (2 * 80 * (10 + 20)) + 2 * (2 * 80 * (40 + 20))),
    "gru": 12 * 2 * 60 * (10 + 20),  # 3 gates
    "lstm_cell": 2 * 2 * 80 * (10 + 20),  # 2 rows
    "addmv": 2 * 4 * 5,
    # [4, 5] x [5, 6] x [6, 7] from the left; from the right it would be 2 x (210 + 140) = 700
    "linalg_multi_dot": 2 * (4 * 5 * 6 + 4 * 6 * 7),
    "chain_matmul": 2 * (4 * 5 * 6 + 4 * 6 * 7),
    "addbmm": 2 * 2 * 3 * 4 * 5,  # 2 of [3, 4] x [4, 5]
    # A column by a row: 1 multiply-accumulate an element, as a matmul of them has
    "outer": 2 * 4 * 6,
    "kron": 2 * (4 * 5) * (5 * 6),
    "cdist": 3 * 4 * 4 * 5,  # subtract, square and add, for each pair of rows
    # Of the einsum that sums nothing: a multiplication an element, as torch carries it out
    "mul": 4 * 6,
}


def test_ops_of_several_products_by_hand(tmp_path):
    inputs = "(2, 6, 10), (4, 5), (5, 6), (6, 7), (2, 3, 4), (2, 4, 5)"
    returned = f"Many(), (*map(torch.randn, ({inputs})),)"
    file = written(tmp_path, returned, MANY)
    graph = annotate(capture_function(str(file), "build").graph)
    found = {base_name(op.target): op.cost.flops for op in graph.ops if op.kind not in FREE}
    assert found == BY_HAND
    assert (BY_HAND["lstm"], BY_HAND["gru"]) == (345_600, 43_200)
    totals = total_flops(graph)
    assert totals.products == sum(n for name, n in BY_HAND.items() if name != "mul")
    assert not totals.unsupported


@pytest.mark.slow
def test_what_runs_once_or_often_or_never_is_not_known(tmp_path):
    file = written(tmp_path, "Branches(), (torch.tensor(1), torch.randn(4, 4))", BRANCHES)
    graph = annotate(capture_function(str(file), "build").graph)
    totals = total_flops(graph)
    assert totals.products_missing == {"cond": 1, "while_loop": 1}


def test_an_outer_product_is_a_column_by_a_row():
    """Torch's counter counts one that is a matmul, and no multiplication of broadcasts: not
    torch.outer, which it carries out so, nor an einsum that sums nothing. Here an op that is an
    outer product by its name counts as that matmul; what is a multiplication in the graph does not.
    """
    a, b = torch.ones(4), torch.ones(6)
    counted = []
    for call in (
        lambda: a[:, None] @ b[None],
        lambda: torch.outer(a, b),
        lambda: torch.einsum("i,j->ij", a, b),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        counted.append(counter.get_total_flops())
    assert counted == [BY_HAND["outer"], 0, 0]


COMPLEX = """
class Complex(nn.Module):
    def forward(self, x, y, r, a, b):
        return (
            x * y, x + y, x * r, x * 3.0, x - 1j, torch.add(r, r, alpha=5),
            torch.add(x, y, alpha=2), a @ b,
        )
"""


def test_complex_arithmetic_by_hand(tmp_path):
    """On 10 elements: (a + bi)(c + di) is 4 products and 2 sums, times a real number 2 products, a
    sum 2 sums. A product of [32, 64] and [64, 32] is 4 real ones: 8 operations a multiply-
    accumulate, 4 times 128 tiles of 532 cycles."""
    numbers = "*(torch.zeros(s, dtype=torch.complex64) for s in"
    inputs = f"({numbers} (10, 10)), torch.zeros(10), {numbers} ((32, 64), (64, 32))))"
    file = written(tmp_path, f"Complex(), {inputs}", COMPLEX)
    graph = annotate(capture_function(str(file), "build").graph)
    ops = [op for op in graph.ops if op.kind not in FREE]
    each = [6, 2, 2, 2, 2, 1 + 1, 2 + 2]
    assert [op.cost.flops for op in ops] == [*(10 * n for n in each), 8 * 32 * 32 * 64]
    assert {op.cost.flops_status for op in ops} == {Status.EXACT}
    (product,) = products(graph)
    assert (product.cost.flops, product.cost.gemm) == (524_288, Gemm(4, 32, 32, 64))
    chip = time_ops(graph, load_device("chip-8x8"))
    assert chip.ops[product.id].gemm.cycles == 4 * 68_096 == 272_384


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "rotated"),
    [
        # 4 query heads and 2 of keys, of 4 complex numbers each
        (
            {
                "model_type": "llama4_text",
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 48,
                "num_local_experts": 2,
            },
            [4 * 4, 2 * 4],
        ),
        # 4 query heads and one key for all, of 2 complex numbers each
        (
            {
                "model_type": "deepseek_v2",
                "num_key_value_heads": 4,
                "intermediate_size": 48,
                "q_lora_rank": 16,
                "kv_lora_rank": 8,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 8,
                "first_k_dense_replace": 1,
                "n_routed_experts": 2,
            },
            [4 * 2, 2],
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
@pytest.mark.few(1)
def test_rotations_by_complex_numbers_by_hand(config, rotated):
    """Each pair of a head's elements is turned by one complex multiplication, in each of 8 tokens;
    the turns themselves are constants."""
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 64}
    graph = cutedge.trace({**small, **config}, seq=8).graph
    turned = [
        op.cost
        for op in graph.ops
        if op.dtype == "complex64" and op.kind is Kind.ELEMENTWISE and not op.is_constant
    ]
    assert [cost.flops for cost in turned] == [6 * 8 * n for n in rotated]
    assert [cost.flops_expr for cost in turned] == [f"{6 * n}*batch*seq" for n in rotated]
    assert {cost.flops_status for cost in turned} == {Status.EXACT}


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
