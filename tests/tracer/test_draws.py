"""Random values and state that a run changes: no constants, made once, and crossing as all else."""

import json
from pathlib import Path

import pytest

from costmodels.flops import annotate, total_flops
from costmodels.links import Links, load_link
from partition.accounting import account
from partition.placement import Placement
from tests.support.inprocess import invoke
from tracer.capture import capture_function
from tracer.captured import Capture
from tracer.graph import OpGraph, Role

HEADER = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x):
        return self.function(self, x)

def build():
    def function(m, x):
"""


def captured(folder: Path, code: str) -> Capture:
    """Of a module that does ``code`` with itself (m) and an input x [1, 8]."""
    return capture_function(str(written(folder, code)), "build")


def written(folder: Path, code: str) -> Path:
    file = folder / "own.py"
    lines = "".join(f"        {line}\n" for line in code.split("; "))
    file.write_text(f"{HEADER}{lines}    return Of(function), torch.randn(1, 8)\n", "utf-8")
    return file


DRAWN = [
    "torch.rand(8)",
    "torch.randn(1, 8)",
    "torch.randint(0, 3, (8,))",
    "torch.randperm(8)",
    "torch.rand_like(x)",
    "torch.randn_like(x)",
    "torch.randint_like(x, 3)",
    "torch.bernoulli(torch.full((8,), 0.5))",
    "torch.bernoulli(torch.empty_like(x), 0.5)",
    "torch.normal(0.0, 1.0, (8,), device=x.device)",
    "torch.normal(torch.zeros(8), torch.ones(8))",
    "torch.multinomial(torch.ones(8), 8)",
    "torch.poisson(torch.ones(8))",
    "torch.empty(8).uniform_()",
    "torch.empty(8).normal_()",
    "torch.empty(8).exponential_()",
    "torch.empty(8).random_(3)",
    "torch.zeros(8).cauchy_()",
    "torch.zeros(8).log_normal_()",
    "torch.zeros(8).geometric_(0.5)",
    "torch.zeros(8).bernoulli_(0.5)",
    "F.dropout(torch.ones(8), 0.5, training=True)",
    "F.gumbel_softmax(torch.ones(1, 8))",
    "F.alpha_dropout(torch.ones(8), 0.5, training=True)",
    "F.rrelu(-torch.ones(8), training=True)",
    "F.dropout1d(torch.ones(8, 1), 0.5, training=True)[:, 0]",
    "F.scaled_dot_product_attention(*[torch.ones(1, 1, 8)] * 3, dropout_p=0.5)[0]",
]


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.few(6)
def test_what_is_drawn_is_no_constant(tmp_path, drawn):
    """Nor is what is made of it alone; and what it costs is known."""
    made = captured(tmp_path, f"drawn = {drawn}; return x + drawn.sin(), torch.arange(8.0).cos()")
    graph = annotate(made.graph)
    (sine,) = (op for op in graph.ops if op.target.startswith("aten.sin"))
    (cosine,) = (op for op in graph.ops if op.target.startswith("aten.cos"))
    assert (sine.is_constant, cosine.is_constant) == (False, True)
    assert graph.crosses(graph.outputs(sine.id)[0])
    assert made.draws == 1
    assert total_flops(graph).unsupported == {}


@pytest.mark.parametrize(
    "drawn",
    [
        "F.dropout(torch.ones(8), 0.5, training=False)",
        "torch.empty(8)",
        "F.dropout(torch.ones(8), 0.0, training=True)",
        "F.rrelu(-torch.ones(8))",
        "F.scaled_dot_product_attention(*[torch.ones(1, 1, 8)] * 3)[0]",
    ],
)
def test_what_is_not_drawn_is_as_before(tmp_path, drawn):
    code = f"drawn = {drawn}; return x + drawn, torch.ones(8).sin()"
    made = captured(tmp_path, code)
    assert made.draws == 0
    assert all(op.cost.flops == 0 for op in annotate(made.graph).ops if "dropout" in op.target)


TWO_READERS = "n = torch.randn(1, 8); return m.second((m.first(x) + n).relu()) + m.first(n)"


def sent(graph: OpGraph, placed: dict[str, str]) -> list[tuple[str, str]]:
    """(name, destination) of all that crosses where ops, by name, lie on other devices than tee."""
    devices = [
        None if graph.is_everywhere(op.id) else placed.get(op.name, "tee") for op in graph.ops
    ]
    count = len(graph.ops)
    placement = Placement("tee", devices, [False] * count, [""] * count)
    traffic = account(graph, placement, Links(load_link("unix-socket")))
    return sorted((t.tensor.name, t.dst_device) for t in traffic.transfers)


def test_what_is_drawn_crosses_once_to_each_device(tmp_path):
    """Wherever it is drawn: at home, or on one of the accelerators that read it."""
    graph = captured(tmp_path, TWO_READERS).graph
    linears = {"linear_0": "gpu", "linear_1": "gpu", "linear_2": "gpu"}
    results = [("linear_0", "tee"), ("linear_1", "tee"), ("linear_2", "tee")]
    at_home = [("randn_0", "gpu"), ("relu_0", "gpu"), ("x", "gpu")]
    assert sent(graph, linears) == sorted([*results, *at_home])
    away = [("randn_0", "tee"), ("relu_0", "gpu"), ("x", "gpu")]
    assert sent(graph, {**linears, "randn_0": "gpu"}) == sorted([*results, *away])
    both = [*away, ("randn_0", "npu")]
    apart = {**linears, "randn_0": "gpu", "linear_2": "npu"}
    assert sent(graph, apart) == sorted([*results, *both])


EVERY_SORT = (
    "h = F.dropout(m.first(x), 0.5, training=True); "
    "n = torch.randn_like(h) + torch.rand(8) + torch.empty(8).exponential_(); "
    "h = F.gumbel_softmax(h) + n + F.alpha_dropout(h, 0.3, training=True); "
    "a = F.scaled_dot_product_attention(h[None], h[None], n[None], dropout_p=0.5)[0]; "
    "k = m.first(n) * torch.randint(1, 3, (8,)); "
    "return m.second(a + k) + F.rrelu(k, training=True), F.dropout(x, 0.5, training=False)"
)


@pytest.mark.parametrize("code", [TWO_READERS, EVERY_SORT])
@pytest.mark.few(1)
@pytest.mark.slow
def test_a_run_draws_what_the_unsplit_model_draws(tmp_path, code):
    file = written(tmp_path, code)
    done = invoke(
        "cutedge",
        "verify",
        f"{file}:build",
        "--out",
        tmp_path / "out",
        "--json",
        "--policy",
        "offload-linear",
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["runs"]
    assert found["max_abs_difference"] == 0 < found["max_abs_result"]


def test_what_a_run_changes_is_no_constant(tmp_path):
    """A buffer that counts the runs, before and after; one that nothing writes is a constant."""
    code = "before = m.count * 2; m.count.add_(1); return before, m.count * 3, m.first.bias * 4, x"
    made = captured(tmp_path, code)
    graph = made.graph
    products = [op for op in graph.ops if op.target.startswith("aten.mul")]
    assert [op.is_constant for op in products] == [False, False, True]
    assert graph.crosses(graph.outputs(products[1].id)[0])
    assert any("a run changes count" in warning for warning in made.warnings)
    roles = {t.name: t.role for t in graph.tensors}
    assert roles["count"] is Role.BUFFER


WRITES = """
import torch
import torch.nn.functional as F

@torch.library.custom_op("counting::up", mutates_args={"count"})
def up(count: torch.Tensor) -> None:
    count.add_(1)

@up.register_fake
def _(count):
    return None

class Writes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for k in range(12):
            self.register_buffer(f"n{k:02}", torch.ones(8))

    def forward(self, x):
        n = [*self.buffers()]
        normed = F.batch_norm(x, n[0], n[1], training=True)
        again = torch.native_batch_norm(x, None, None, n[2], n[3], True, 0.1, 1e-5)[0]
        channels = F.instance_norm(x[..., None].expand(3, 8, 2), n[4], n[5], use_input_stats=True)
        torch.add(n[10], n[11], out=n[6])
        torch._foreach_add_([n[7], n[8]], 1)
        up(n[9])
        still = F.batch_norm(x, n[10], n[11], training=False)
        return normed, again, channels, still, *(each * 2 for each in n)

def build():
    return Writes(), torch.randn(3, 8)
"""


def test_what_an_op_says_that_it_writes_is_no_constant(tmp_path):
    """The running statistics of norms, what ``out=`` names, each of a list, what an op of one's own
    says: what reads it afterwards reads what the op made of it."""
    file = tmp_path / "own.py"
    file.write_text(WRITES)
    made = capture_function(str(file), "build")
    graph = annotate(made.graph)
    doubled = [op for op in graph.ops if op.target == "aten.mul.Tensor"]
    assert [op.is_constant for op in doubled] == [False] * 10 + [True] * 2
    read = [graph.inputs(op.id)[0] for op in doubled]
    assert [tensor.op is None for tensor in read] == [False] * 10 + [True] * 2
    names = [f"n{k:02}" for k in range(12)]
    assert [graph.storage(tensor).name for tensor in read] == names
    (said,) = [one for one in made.warnings if "a run changes" in one]
    assert f"a run changes {', '.join(names[:10])}:" in said
    (added,) = [op for op in graph.ops if op.target == "aten.add.out"]
    assert (added.is_view, added.cost.flops) == (False, 8)  # it writes memory that is there already
