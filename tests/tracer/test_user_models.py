"""A module of the user's own, and how far a model can be traced."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cutedge
from costmodels.flops import annotate, total_flops
from tests.support.inprocess import invoke
from tests.support.processes import run_command
from tracer.capture import capture_function, check
from tracer.errors import InputError
from tracer.formula import parse
from tracer.graph import Kind

FILE = """
import torch
from beside import WIDTH


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.out = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, x, mask):
        scores = self.query(x) @ x.transpose(1, 2) + mask
        return x + self.out(torch.softmax(scores, -1) @ x)


class Model(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = torch.nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x, masks, scale=1.0):
        for layer in self.layers:
            x = layer(x, masks["causal"])
        return {"y": x * scale, "depth": len(self.layers)}


def build(batch=1, seq=16, width=WIDTH, depth=8):
    print("not for stdout")
    mask = torch.full((seq, seq), -1e9).triu(1)
    return Model(width, depth), {"x": torch.randn(batch, seq, width), "masks": {"causal": mask}}


def fixed():
    return Block(8), (torch.randn(2, 5, 8), torch.zeros(5, 5))


def longer(seq):
    return Block(8), (torch.randn(2, seq + 1, 8), torch.zeros(seq + 1, seq + 1))


class Odd(torch.nn.Module):
    # Its input is called like its parameter; what it makes itself names no device.

    def __init__(self):
        super().__init__()
        self.weight, self.plain = torch.nn.Parameter(torch.zeros(8, 8)), torch.ones(8)

    def forward(self, weight):
        return weight @ self.weight + self.plain * torch.ones(8)


def odd(batch=3, seq=5):
    return Odd(), torch.randn(batch, seq, 8)


class InPlace(torch.nn.Module):
    def forward(self, x, y):
        x += y
        return x


def in_place(seq):
    return InPlace(), (torch.zeros(seq, 8), torch.zeros(seq, 8))


class Memory(torch.nn.Module):
    def forward(self, x, memory, *more):
        return x @ memory.transpose(1, 2)


def half(seq):
    return Memory(), (torch.zeros(1, seq, 8), torch.zeros(1, seq // 2, 8))


class Loop(torch.nn.Module):
    def forward(self, x):
        state = torch.zeros_like(x[:, 0])
        for token in range(x.shape[1]):
            state = torch.tanh(state + x[:, token])
        return state


def loop(batch, seq):
    return Loop(), torch.zeros(batch, seq, 8)


def table(seq):
    return torch.nn.Linear(8, seq), torch.zeros(2, seq, 8)


def listed(batch, seq):
    return Memory(), [torch.zeros(1, seq, 8) for _ in range(batch + 2)]


class Rolling(torch.nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index, self.linear = index, torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(torch.roll(x, 2 if self.index == 5 else 1, 1))


def rolling():
    return Listed(Rolling), torch.zeros(1, 16, 8)


class Turning(torch.nn.Module):
    def __init__(self, index):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x.reshape(-1, 8)).view(2, 8, 8).transpose(1, 2)


def turning():
    return Listed(Turning), torch.zeros(2, 8, 8)


class Listed(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = torch.nn.ModuleList(kind(index) for index in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def leaves():
    raise SystemExit(3)


def number():
    return 3


def fails():
    raise RuntimeError("no way")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 32\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def products(path, name, **arguments):
    """What torch counts while the module that the function returns runs."""
    scope: dict[str, object] = {}
    exec(FILE.replace("from beside import WIDTH", "WIDTH = 32"), scope)
    module, inputs = scope[name](**arguments)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        match inputs:
            case dict():
                module(**inputs)
            case torch.Tensor():
                module(inputs)
            case _:
                module(*inputs)
    return counter.get_total_flops()


def test_sizes_that_the_inputs_follow_are_symbols(file):
    captured = capture_function(file, "build", batch=2, seq=16)
    graph = annotate(captured.graph)
    assert (graph.meta.model, graph.meta.symbolic) == ("mine.build", ("batch", "seq"))
    assert graph.meta.repeated_layers == 5
    inputs = {
        t.name: t.shape_expr
        for op in graph.ops
        if op.kind is Kind.INPUT
        for t in graph.outputs(op.id)
    }
    assert inputs == {"x": ("batch", "seq", "32"), "masks.causal": ("seq", "seq")}
    totals = total_flops(graph)
    assert totals.products == products(file, "build", batch=2, seq=16)
    elsewhere = parse(totals.products_expr or "").evaluate({"batch": 3, "seq": 9})
    assert elsewhere == products(file, "build", batch=3, seq=9)
    assert next(t.shape_expr for t in graph.tensors if t.label == "attention_scores") == (
        "batch",
        "seq",
        "seq",
    )


def test_other_parameters_are_set_and_the_dtype_is_the_users(file):
    captured = capture_function(
        file, "build", seq=4, overrides={"width": 64, "depth": 2}, dtype="bfloat16"
    )
    meta = captured.graph.meta
    assert (meta.parameters, meta.dtype) == (2 * 2 * (64 * 64 + 64), "bfloat16")
    assert {t.dtype for t in captured.graph.tensors} == {"bfloat16"}


def test_an_input_called_like_a_parameter_is_an_input(file):
    graph = annotate(capture_function(file, "odd").graph)
    (given,) = [t for op in graph.ops if op.kind is Kind.INPUT for t in graph.outputs(op.id)]
    assert (given.name, given.shape_expr) == ("weight", ("batch", "seq", "8"))
    assert (graph.meta.batch, graph.meta.seq) == (3, 5)  # the function's own defaults
    assert total_flops(graph).products_expr == "128*batch*seq"


def test_a_layer_that_is_told_another_number_is_no_copy_of_the_others(file):
    """Its shapes and its ops are theirs: only by how much it rolls is it another."""
    captured = capture_function(file, "rolling")
    rolls = [dict(op.arguments)["shifts"] for op in captured.graph.ops if "roll" in op.target]
    assert rolls == ["[1]"] * 5 + ["[2]"] + ["[1]"] * 2
    assert captured.unrepeated_reason == "its layers look alike but do not run alike"


def test_a_layer_that_need_not_copy_is_no_copy_of_those_that_must(file):
    """What the first is given lies in memory in order; the others are given it turned."""
    one, whole = (capture_function(file, "turning", full=full).graph for full in (False, True))
    assert (one.ops, one.tensors, one.edges) == (whole.ops, whole.tensors, whole.edges)
    copies = [not op.is_view for op in one.ops if "reshape" in op.target]
    assert copies == [False] + [True] * 7
    assert one.meta.repeated_layers > 0


def test_an_input_that_is_written_into_is_a_result(file):
    graph = capture_function(file, "in_place", seq=4).graph
    (result,) = graph.inputs(len(graph.ops) - 1)
    assert result.op is not None
    assert graph.ops[result.op].target.startswith("aten.add_")


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        ("fixed", {}),
        ("longer", {"seq": 4}),
        ("half", {"seq": 64}),
        ("table", {"seq": 4}),
        ("listed", {"batch": 1, "seq": 4}),
    ],
)
def test_inputs_that_follow_no_size_are_traced_as_they_are(file, function, sizes):
    captured = capture_function(file, function, **sizes)
    assert captured.graph.meta.symbolic == ()
    assert any("formulas are null" in warning for warning in captured.warnings)
    assert total_flops(annotate(captured.graph)).products == products(file, function, **sizes)


def test_a_loop_over_the_tokens_is_traced_as_it_is_and_says_so(file):
    line = 1 + FILE.splitlines().index("            state = torch.tanh(state + x[:, token])")
    captured = capture_function(file, "loop", batch=2, seq=3)
    (warning,) = captured.warnings
    assert warning.startswith(
        "mine.loop cannot be traced for every batch and seq (each seq takes other ops at "
        f"mine.py:{line} "
    )
    assert warning.endswith("sizes are exact at batch 2, seq 3, formulas are null")
    assert captured.graph.meta.symbolic == ()
    assert all(t.bytes_expr is None and t.bytes > 0 for t in captured.graph.tensors)
    assert [op.target for op in captured.graph.ops].count("aten.tanh.default") == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine.py:number"], "number returns int: it must return (module, example inputs)"),
        (["mine.py:fails"], "mine.py:fails fails at no arguments: RuntimeError: no way"),
        (["mine.py:leaves"], "mine.py:leaves fails at no arguments: SystemExit: 3"),
        (["mine.py:buld"], "mine.py has no function buld. Did you mean build?"),
        (["gone.py:build"], "gone.py is no Python file that exists"),
        (["broken.py:build"], "broken.py cannot be imported: ModuleNotFoundError"),
        (["mine.py:fixed", "--seq", "4"], "leave --seq out: mine.py:fixed takes no seq"),
        (["mine.py:build", "--set", "widht=8"], "no such parameter to set. Did you mean width?"),
        (["mine.py:build", "--phase", "decode"], "says itself what runs: leave --phase"),
    ],
)
def test_what_is_no_such_function(file, tmp_path, monkeypatch, arguments, says):
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    done = invoke("trace", *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert not done.stdout
    assert not (tmp_path / "cutedge-out").exists()


def test_a_users_module_on_the_command_line(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("trace", "mine.py:build", "--seq", "8", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["model"], said["seq"], said["cached"]) == ("mine.build", 8, False)
    assert invoke("partition", "--policy", "fuse-attention").returncode == 0


# --- how far a model can be traced ----------------------------------------------------------------


@pytest.mark.slow
def test_every_phase_and_every_way_that_was_tried():
    small = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "vocab_size": 64,
    }
    kind, found = check({"model_type": "t5", **small}, model="t5")
    assert kind == "T5ForConditionalGeneration"
    assert [c.phase for c in found] == ["encoder", "prefill", "decode"]
    assert [[failure for _, failure in c.tried] for c in found] == [[None]] * 3
    symbolic = [c.captured.graph.meta.symbolic for c in found if c.captured]
    assert symbolic == [("batch", "seq"), ("batch", "seq", "source"), ("batch", "past", "source")]


@pytest.mark.slow
def test_a_ladder_to_the_concrete_and_one_to_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loops = {
        "model_type": "mamba",
        "hidden_size": 8,
        "state_size": 2,
        "num_hidden_layers": 1,
        "vocab_size": 16,
        "intermediate_size": 8,
    }
    looks = {
        "model_type": "jetmoe",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "kv_channels": 8,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "vocab_size": 64,
    }
    _, (prefill, decode) = check(loops, model="loops", seq=5)
    assert [failure and failure[:18] for _, failure in prefill.tried] == [
        "each seq takes oth",
        "each seq takes oth",
        None,
    ]
    assert [failure for _, failure in decode.tried] == [None]
    (tmp_path / "looks.json").write_text(json.dumps(looks))
    done = invoke("models", "looks.json", "--check")
    assert done.returncode == 1
    assert "JetMoeForCausalLM" in done.stdout
    assert done.stdout.count("modeling_jetmoe.py") >= 4
    assert "Traceback" not in done.stdout + done.stderr
    said = json.loads(invoke("models", "gpt2", "--check", "--set", "n_layer=1", "--json").stdout)
    assert [phase["symbolic"] for phase in said["phases"]] == [["batch", "seq"], ["batch", "past"]]


OURS = {
    "partition.py": "BLOCK = 16\n",
    "tracer.py": "from partition import BLOCK\nTWICE = 2 * BLOCK\n",
    "costmodels.py": "import cli\nNEXT = cli.deep.ONE\n",
    "cli/__init__.py": "from cli.deep import ONE\nfrom . import deep\n",
    "cli/deep.py": "from helper import ONE\n",
    "helper.py": "from partition import BLOCK\nONE = BLOCK // 16\n",
    "cutedge.py": "LAST = 3\n",
}
"""A user's files that are called as the packages of cutedge are, and what they import."""

MODEL = """
import torch
import cli, cli.deep, json
from costmodels import NEXT
from partition import BLOCK
from tracer import TWICE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(BLOCK, TWICE)

    def forward(self, x):
        from cutedge import LAST  # when it runs
        return self.linear(x) * LAST * NEXT * cli.ONE

def build(batch=1, seq=8):
    return Net(), torch.randn(batch, seq, BLOCK)
"""


@pytest.fixture
def beside(tmp_path):
    """A folder with all of these."""
    for name, text in {**OURS, "net.py": MODEL}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_beside_a_model_win_over_packages_of_the_same_name(beside):
    ours = {name: sys.modules.get(name) for name in ("partition", "tracer", "costmodels", "cli")}
    graph = capture_function(str(beside / "net.py"), "build", seq=8).graph
    assert graph.meta.parameters == 16 * 32 + 32
    assert {name: sys.modules.get(name) for name in ours} == ours  # but not for cutedge itself


@pytest.mark.slow
@pytest.mark.parametrize("command", ["trace", "verify"])
def test_files_beside_a_model_win_in_each_process_of_a_command(beside, command):
    done = run_command("cutedge", command, "net.py:build", "--seq", "8", "--json", cwd=beside)
    assert done.returncode == 0, done.stderr
    if command == "trace":
        assert json.loads(done.stdout)["parameters"] == 16 * 32 + 32


def test_a_missing_name_of_a_file_beside_a_model_is_said(tmp_path):
    (tmp_path / "partition.py").write_text("BLOCK = 16\n")
    (tmp_path / "net.py").write_text("from partition import NO_SUCH\n")
    with pytest.raises(InputError, match=r"net\.py cannot be imported: ImportError: .*NO_SUCH"):
        capture_function(str(tmp_path / "net.py"), "build")


SIZES = """
import torch

def four(batch=4):
    return torch.nn.Linear(8, 8), (torch.zeros(batch, 8),)

def both(*, batch=4, seq=6):
    return torch.nn.Linear(8, 8), (torch.zeros(batch, seq, 8),)

def wide(seq=3):
    return torch.nn.Linear(8, seq), (torch.zeros(2, 8),)
"""


@pytest.mark.parametrize(
    ("function", "options", "sizes"),
    [
        ("four", (), (4, 0)),
        ("four", ("--batch", "3"), (3, 0)),
        ("both", (), (4, 6)),
        ("both", ("--seq", "5"), (4, 5)),
        ("both", ("--batch", "1"), (1, 6)),
    ],
)
def test_a_size_that_is_not_asked_for_is_the_functions_own(
    function, options, sizes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SIZES)
    done = invoke("trace", f"own.py:{function}", *options, "--json")
    found = json.loads(done.stdout)
    assert (found["batch"], found["seq"]) == sizes


def test_a_sweep_and_params_take_a_functions_own_sizes_too(tmp_path, monkeypatch):
    """By default 4 x 6 rows of 8 floats go and 8 come back; a batch that is given counts. Of [8, 3]
    weights and 3 biases there are 27."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SIZES)
    rows = {}
    for number, batch in enumerate(((), ("--batch", "2,3"))):
        words = ("own.py:both", "--policy", "offload-linear", "--jobs", "1", *batch)
        assert invoke("sweep", *words, "--out", f"grid{number}").returncode == 0
        sql = "SELECT batch, seq, total_payload_bytes FROM sweep ORDER BY batch"
        found = invoke("query", sql, "--trace", f"grid{number}", "--json")
        rows[batch] = [tuple(row.values()) for row in json.loads(found.stdout)["rows"]]
    assert rows[()] == [(4, 6, 2 * 4 * 6 * 8 * 4)]
    assert rows["--batch", "2,3"] == [(2, 6, 2 * 2 * 6 * 8 * 4), (3, 6, 2 * 3 * 6 * 8 * 4)]
    assert cutedge.params("own.py:wide").summary["parameters"] == 8 * 3 + 3


BY_VALUES = """
import torch

class Counts(torch.nn.Module):
    def forward(self, x):
        for _ in range(int(x.sum())):
            x = x + 1
        return x

class Largest(torch.nn.Module):
    def forward(self, x):
        return x * max(x.flatten().tolist())

def counts():
    return Counts(), torch.zeros(2, 8)

def largest():
    return Largest(), torch.zeros(2, 8)

def chosen(x):
    if x.sum() > 0:
        return x
    return -x

class Net(torch.nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside, self.first = inside, torch.nn.Linear(8, 8)

    def forward(self, x):
        if self.inside is not None:
            return self.inside(self.first(x)) + 1
        return chosen(self.first(x))

def flat():
    return Net(None), (torch.zeros(2, 8),)

def deep():
    return Net(Net(None)), (torch.zeros(2, 8),)
"""


@pytest.mark.parametrize(
    ("function", "module", "code"),
    [
        ("flat", "Net", "if x.sum() > 0:"),
        ("deep", "inside (Net)", "if x.sum() > 0:"),
        ("counts", "Counts", "for _ in range(int(x.sum())):"),
        ("largest", "Largest", "return x * max(x.flatten().tolist())"),
    ],
)
def test_code_of_a_users_own_that_goes_by_values_is_named_with_its_file_and_line(
    function, module, code, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(BY_VALUES)
    done = invoke("trace", f"own.py:{function}")
    line = 1 + [text.strip() for text in BY_VALUES.splitlines()].index(code)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: own.{function} cannot be traced: its code goes by the values of tensors, not by "
        f"their shapes alone in {module} at own.py:{line} ({code}).\n"
    )


COMPLEX = """
import torch

class Wave(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.complex64))
        self.out = torch.nn.Linear(8, 4)

    def forward(self, wave, unused):
        return self.out((wave @ self.gain * (1 + 2j)).abs())

def wave():
    return Wave(), (torch.zeros(2, 8, dtype=torch.complex64), torch.zeros(3))
"""


def test_complex_inputs_and_unused_ones_are_run(tmp_path, monkeypatch):
    """One run of two processes; what crosses is 2 x 8 complex numbers, or their 16 magnitudes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(COMPLEX)
    done = invoke("verify", "own.py:wave", "--policy", "offload-linear", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["runs"]
    assert row["bytes_equal"] is True
    assert row["max_abs_result"] > 1e-3
    assert row["max_abs_difference"] < 1e-5
