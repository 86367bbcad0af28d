"""Weights that are tied: each memory counts once, and a run has it once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from cutedge.runtime.home import load, workers
from cutedge.runtime.plan import make_plan
from cutedge.runtime.verify import Verdict, judge, unsplit
from cutedge.runtime.weights import given_numbers
from partition.accounting import account
from partition.placement import Placement
from partition.wire_format import WireFormat
from tests.support.inprocess import invoke
from tracer.capture import runnable_function
from tracer.graph import Kind, OpGraph, Role
from tracer.summary import parameter_bytes

FILE = """
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, parametrize, weight_norm

ROWS, WIDTH = 50, 8


def ids(batch, seq):
    return torch.zeros(batch, seq, dtype=torch.int64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.fc = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)

    def forward(self, ids):
        return self.head(self.fc(self.emb(ids)))


def tied(batch=1, seq=4):
    model = Model()
    model.head.weight = model.emb.weight
    return model, ids(batch, seq)


def on_meta(batch=1, seq=4):
    with torch.device("meta"):
        return tied(batch, seq)[0], ids(batch, seq)


class Transposed(Model):
    def __init__(self):
        super().__init__()
        del self.head
        self.table = nn.Parameter(self.emb.weight.detach().t())

    def forward(self, ids):
        return self.fc(self.emb(ids)) @ self.table


def transposed(batch=1, seq=4):
    return Transposed(), ids(batch, seq)


class Part(Model):
    def __init__(self):
        super().__init__()
        del self.head
        self.rows = nn.Parameter(self.emb.weight.detach()[10:30])

    def forward(self, ids):
        return linear(self.fc(self.emb(ids)), self.rows)


def part(batch=1, seq=4):
    return Part(), ids(batch, seq)


def flat(batch=1, seq=4):
    "Two parameters in one memory that have no element in common."
    model, memory = Model(), torch.randn(2 * ROWS * WIDTH)
    model.head.weight = nn.Parameter(memory[ROWS * WIDTH :].view(ROWS, WIDTH))
    model.emb.weight = nn.Parameter(memory[: ROWS * WIDTH].view(ROWS, WIDTH))
    return model, ids(batch, seq)


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        whole = torch.randn(6, 10)
        self.left, self.right = nn.Parameter(whole[:, :4]), nn.Parameter(whole[:, 4:])

    def forward(self, x):
        return x @ self.left.t() + (x @ self.right[:, :4].t())


def columns(batch=1, seq=4):
    return Columns(), torch.randn(batch, seq, 4)


class Across(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Model(), Model()
        self.b.emb, self.b.fc.weight = self.a.emb, self.a.fc.weight

    def forward(self, ids):
        return self.a(ids) + self.b(ids)


def across(batch=1, seq=4):
    return Across(), ids(batch, seq)


class Buffers(Model):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.randn(WIDTH))
        self.register_buffer("end", self.scale[2:5])
        self.register_buffer("row", self.emb.weight.detach()[3])
        self.fc.register_buffer("same", self.scale)

    def forward(self, ids):
        self.scale.add_(1)
        made = super().forward(ids) * self.row.sum() + self.end.sum()
        self.end.mul_(3)
        return made + (self.scale * self.fc.same).sum()


def buffers(batch=1, seq=4):
    return Buffers(), ids(batch, seq)


class Tie(nn.Module):
    def __init__(self, emb):
        super().__init__()
        self.emb = emb

    def forward(self, weight):
        return self.emb.weight * 2


def parametrized(batch=1, seq=4):
    model = Model()
    parametrize.register_parametrization(model.head, "weight", Tie(model.emb))
    return model, ids(batch, seq)


def normed(batch=1, seq=4):
    model, _ = tied()
    parametrizations.weight_norm(model.fc)
    return model, ids(batch, seq)


class Blocks(Model):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


def same_block(batch=1, seq=4):
    return Blocks([nn.Linear(WIDTH, WIDTH)] * 8), ids(batch, seq)


def tied_blocks(batch=1, seq=4):
    model = Blocks(nn.Linear(WIDTH, WIDTH) for _ in range(8))
    for block in model.blocks:
        block.weight = model.blocks[0].weight
    return model, ids(batch, seq)


class Plain(Model):
    "Tensors that are neither parameters nor buffers; one of them is in a list, one a weight's."

    def __init__(self):
        super().__init__()
        self.own, self.listed = torch.randn(WIDTH), [torch.randn(WIDTH), {"in": torch.randn(1)}]
        self.twice = (self.own[:1], 3)

    def forward(self, ids):
        scale = self.own * self.listed[0] + self.listed[1]["in"] * self.twice[0]
        return self.head(self.fc(self.emb(ids)) * scale)


def plain(batch=1, seq=4):
    return Plain(), ids(batch, seq)


class Attributes(Model):
    "Plain attributes that are views: of a weight, of a buffer, of each other."

    def __init__(self):
        super().__init__()
        del self.head
        self.register_buffer("scale", torch.randn(WIDTH, WIDTH))
        weight = self.emb.weight.detach()
        self.table, self.rows = weight.t(), {"first": weight[5:7], "same": weight}
        self.turned, self.own = [self.scale.t()], torch.randn(WIDTH, 2)
        self.flipped = self.own.t()

    def forward(self, ids):
        x = self.fc(self.emb(ids)) @ self.scale @ self.turned[0]
        x = x + self.rows["first"].sum() + self.rows["same"].sum() + (x @ self.own) @ self.flipped
        return x @ self.table


def attributes(batch=1, seq=4):
    return Attributes(), ids(batch, seq)


def gpt2(batch=1, seq=4):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32)
    return GPT2LMHeadModel(GPT2Config(**sizes)), {"input_ids": ids(batch, seq)}


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        memory = torch.randn(12)
        self.a, self.b = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])

    def forward(self, x):
        return x * self.a + self.b


def overlapping():
    return Overlapping(), torch.randn(3, 8)
"""

EMB, FC = 50 * 8, 8 * 8
GPT2 = (
    (50 + 32) * 16  # token and position embeddings, the first of which is the head's too
    + 2 * (2 * 16 + 16 * 48 + 48 + 16 * 16 + 16 + 2 * 16 + 16 * 64 + 64 + 64 * 16 + 16)
    + 2 * 16
)
COUNTED = {
    "tied": EMB + FC,
    "attributes": EMB + FC,
    "on_meta": EMB + FC,
    "transposed": EMB + FC,
    "part": EMB + FC,  # rows of the table
    "flat": EMB + FC + EMB,
    "columns": 60,
    "across": EMB + FC + 2 * EMB,  # a head each
    "buffers": EMB + FC + EMB,
    "parametrized": EMB + FC + EMB,  # the head's own weight is there, as torch counts it
    "normed": EMB + FC + 8,
    "same_block": EMB + FC + EMB + FC + 8,
    "tied_blocks": EMB + FC + EMB + FC + 8 * 8,  # each block has a bias of its own
    "plain": EMB + FC + EMB,
    "gpt2": GPT2,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ties") / "ties.py"
    path.write_text(FILE)
    return path


def run_at_home(file: Path, function: str, **options: Any) -> tuple[OpGraph, Verdict]:
    """The op graph, and its answer beside that of the user's own module; all in this process."""
    made = runnable_function(str(file), function, **options)
    graph = annotate(made.graph)
    weights = {"seed": 0, "spread": 0.3}
    own = [None if graph.is_everywhere(op.id) else "tee" for op in graph.ops]
    placement = Placement("tee", own, [False] * len(own), [""] * len(own))
    links = Links(load_link("unix-socket"))
    traffic = account(graph, placement, links)
    plan = make_plan(graph, made.invocations, placement)
    loaded = load(plan, {}, data=made.data, weights=weights, links=links, residency="run")
    given = given_numbers(graph, 0)
    measured = loaded.run(given)
    reference = unsplit(graph, made, given, weights, "tee")
    return graph, judge(graph, traffic, measured, reference)


@pytest.mark.parametrize("function", COUNTED)
@pytest.mark.few(9)
def test_a_memory_counts_once_and_the_users_module_answers_the_same(
    file: Path, function: str
) -> None:
    graph, verdict = run_at_home(file, function)
    assert graph.meta.parameters == COUNTED[function]
    assert parameter_bytes(graph) == 4 * COUNTED[function]
    assert verdict.max_abs_difference < 1e-5 < verdict.max_abs_result


@pytest.mark.parametrize(
    "function", ["tied", "transposed", "part", "normed", "tied_blocks", "gpt2"]
)
@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.few(5)
def test_a_memory_that_lies_at_home_is_sent_as_one(file: Path, function: str, residency) -> None:
    """Whichever its names and views are; every other op away, so that many calls need it."""
    made = runnable_function(str(file), function)
    graph = annotate(made.graph)
    weights, links = {"seed": 0, "spread": 0.3}, Links(load_link("unix-socket"))
    fixed = (Kind.INPUT, Kind.OUTPUT)
    devices = [
        None if graph.is_everywhere(op.id) else ("tee", "gpu")[op.kind not in fixed and op.id % 2]
        for op in graph.ops
    ]
    devices = [
        "gpu" if device and graph.inputs(op) and graph.ops[op].kind is Kind.LINEAR else device
        for op, device in enumerate(devices)
    ]
    streams = frozenset(range(len(graph.ops)))
    placement = Placement("tee", devices, [False] * len(devices), [""] * len(devices), streams)
    traffic = account(graph, placement, links, wire=WireFormat("bfloat16"), residency=residency)
    sent = [t for t in traffic.transfers if t.tensor.op is None]
    assert sent
    assert {t.tensor.alias_of for t in sent} == {None}
    assert {t.wire_dtype for t in sent} == {"float32"}
    plan = make_plan(
        graph, made.invocations, placement, wire=WireFormat("bfloat16"), residency=residency
    )
    how = {"links": links, "residency": residency}
    with workers(list(plan.accelerators)) as running:
        loaded = load(plan, running, data=made.data, weights=weights, **how)
        given = given_numbers(graph, 0)
        runs = [loaded.run(given) for _ in range(2)]
    reference = unsplit(graph, made, given, weights, "tee")
    for measured in runs:
        verdict = judge(graph, traffic, measured, reference)
        assert verdict.unequal == ()
        assert verdict.answer_equal
        assert verdict.max_abs_result > 0


def test_a_dtype_keeps_the_ties(file: Path) -> None:
    for function in ("transposed", "buffers"):
        graph, verdict = run_at_home(file, function, dtype="bfloat16")
        assert graph.meta.parameters == COUNTED[function]
        assert parameter_bytes(graph) == 2 * COUNTED[function]
        assert verdict.answer_equal


def test_what_shares_memory_lies_on_a_device_once(file: Path) -> None:
    """The table [50, 8] and its view: 1600 B; the linear: 256 B; buffers are 8 floats: 32 B."""
    graph, _ = run_at_home(file, "transposed")
    everywhere = [None if graph.is_everywhere(op.id) else "tee" for op in graph.ops]
    placement = Placement("tee", everywhere, [False] * len(graph.ops), [""] * len(graph.ops))
    traffic = account(graph, placement, Links(load_link("unix-socket")))
    assert traffic.resident_bytes == {"tee": 1600 + 256}
    view = next(op for op in graph.ops if op.target == "aten.as_strided.default")
    assert (view.kind, view.is_view) == (Kind.CONSTANT, True)
    kept = {t.name: t.alias_of for t in graph.tensors if t.role is Role.PARAMETER}
    names = {t.id: t.name for t in graph.tensors}
    assert {name: names.get(owner) for name, owner in kept.items()} == {
        "emb.weight": None,
        "fc.weight": None,
        "table": "emb.weight",
    }


def test_plain_attributes_that_are_views_lie_where_what_they_view_does(file: Path) -> None:
    """The table [50, 8], the linear [8, 8], the buffer [8, 8], [8, 2] of its own, and two sums."""
    graph, verdict = run_at_home(file, "attributes")
    everywhere = [None if graph.is_everywhere(op.id) else "tee" for op in graph.ops]
    placement = Placement("tee", everywhere, [False] * len(graph.ops), [""] * len(graph.ops))
    traffic = account(graph, placement, Links(load_link("unix-socket")))
    assert traffic.resident_bytes == {"tee": 1600 + 256 + 256 + 64 + 2 * 4}
    state, names = [t for t in graph.tensors if t.op is None], [t.name for t in graph.tensors]
    views = {t.name: names[t.alias_of] for t in state if t.alias_of is not None}
    assert views == {
        "table": "emb.weight",
        "rows.first": "emb.weight",
        "turned.0": "scale",
        "flipped": "own",
    }
    assert verdict.answer_equal


def test_memory_that_overlaps_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    done = invoke("trace", f"{file}:overlapping", "--out", tmp_path)
    assert done.returncode == 1
    assert "a and b lie in one memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def untied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that makes each parameter anew, as ``Module.to`` does."""

    def anew(module: torch.nn.Module, device: str, dtype: Any = None) -> torch.nn.Module:
        return module.to(device)

    monkeypatch.setattr("tracer.capture.user.remade", anew)


@pytest.mark.usefixtures("untied")
@pytest.mark.parametrize("function", ["tied", "transposed", "part", "across", "gpt2"])
@pytest.mark.few(2)
def test_a_trace_that_lost_its_ties_answers_otherwise(file: Path, function: str) -> None:
    graph, verdict = run_at_home(file, function)
    assert graph.meta.parameters > COUNTED[function]
    assert not verdict.answer_equal


@pytest.mark.usefixtures("untied")
def test_verify_says_so(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("verify", f"{file}:tied", "--policy", "offload-linear")
    assert done.returncode == 1
    assert "is off the unsplit model's" in done.stderr


def test_the_module_of_a_tied_head_and_1000_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 x 64 for the embedding, which is the head's too, and 64 x 64: 68,096."""
    (tmp_path / "gpt.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass M(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.emb = nn.Embedding(1000, 64)\n"
        "        self.fc = nn.Linear(64, 64, bias=False)\n"
        "        self.head = nn.Linear(64, 1000, bias=False)\n"
        "        self.head.weight = self.emb.weight\n\n"
        "    def forward(self, ids):\n        return self.head(self.fc(self.emb(ids)))\n\n\n"
        "def gpt(batch=1, seq=16):\n    return M(), torch.zeros(batch, seq, dtype=torch.int64)\n"
    )
    monkeypatch.chdir(tmp_path)
    done = invoke("trace", "gpt.py:gpt")
    assert "parameters  68,096 (266.0 KiB in float32)" in done.stdout
