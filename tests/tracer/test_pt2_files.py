"""Programs of torch.export as files, beside the traces of the same models by their configs."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

import cutedge
from tests.support.exported import KINDS, config_of, export
from tests.support.inprocess import invoke
from tracer.errors import CutedgeError, InputError
from tracer.graph import OpGraph
from tracer.pt2_files import read_pt2
from tracer.reach import Reach
from tracer.serde import trace_tables


def tables(graph: OpGraph) -> dict[str, list[dict[str, Any]]]:
    """The rows of a trace, without the columns that name it."""
    named = {"model", "variant", "trace_id"}
    found = {
        name: [{k: v for k, v in row.items() if k not in named} for row in table.to_pylist()]
        for name, table in trace_tables(graph)[0].items()
    }
    for row in (*found["ops"], *found["tensors"]):
        # An argument of an object is called after it; and on a CPU, where it was exported, the
        # rows of each expert are counted in float32, elsewhere in int32 (of as many bytes).
        if row["name"] == "encoder_outputs_last_hidden_state":
            row["name"] = "encoder_hidden_states"
        if row["name"] == "histc_0" or (row["name"] == "to_1" and row["dtype"] == "int32"):
            row["dtype"] = "float32"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_gives_the_tables_of_its_config(kind: str, tmp_path: Path) -> None:
    """Ops, tensors and edges row by row, with formulas, FLOPs and bytes."""
    found = cutedge.trace(export(kind, tmp_path / "m.pt2", as_run=True))
    meta = found.graph.meta
    sizes = {k: v for k, v in meta.variables.items() if v and k in ("batch", "seq", "source")}
    traced = cutedge.trace(config_of(kind), full=True, **sizes)
    assert tables(found.graph) == tables(traced.graph)
    assert meta.parameters == traced.graph.meta.parameters
    assert meta.model_class == traced.graph.meta.model_class


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_exports_differs_in_masks_alone(kind: str, tmp_path: Path) -> None:
    """It makes a mask where a run needs none: one more addition of each attention, and constants."""
    found = cutedge.trace(export(kind, tmp_path / "m.pt2", as_run=False)).graph
    sizes = {k: v for k, v in found.meta.variables.items() if v and k in ("batch", "seq", "source")}
    traced = cutedge.trace(config_of(kind), full=True, **sizes).graph

    def work(graph: OpGraph) -> list[tuple[Any, ...]]:
        ops = (op for op in graph.ops if not op.is_constant)
        return [(op.target, op.module_path, op.kind, op.cost.flops_expr) for op in ops]

    rest = work(found)
    for op in work(traced):
        rest.remove(op)
    assert {target for target, *_ in rest} <= {"aten.add.Tensor"}
    assert found.meta.parameters == traced.meta.parameters


# --- a module of a user's own ---------------------------------------------------------------------


class Tied(torch.nn.Module):
    """A table that is the head too, with a buffer, a constant and a part that runs without grad."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        with torch.no_grad():
            x = x + x.mean(-1, keepdim=True)
        return self.head(x)


@cache
def saved() -> bytes:
    made = torch.export.export(
        Tied(),
        (torch.zeros(3, 5, dtype=torch.int64),),
        dynamic_shapes=({0: Dim("batch", max=8), 1: Dim("seq", max=100)},),
    )
    stream = io.BytesIO()
    torch.export.save(made, stream)
    return stream.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tied.pt2"
    path.write_bytes(saved())
    return path


def test_a_file_of_a_users_own_module_is_traced(file: Path) -> None:
    traced = cutedge.trace(file, batch=2, seq=6)
    graph, meta = traced.graph, traced.graph.meta
    assert (meta.model, meta.model_class, meta.symbolic) == ("tied", "Tied", ("batch", "seq"))
    assert meta.parameters == 10 * 4  # the head is the table
    head = next(op for op in graph.ops if op.kind.value == "linear")
    assert (head.module_path, head.cost.flops) == ("head", 2 * 2 * 6 * 4 * 10)
    assert head.cost.flops_expr == "80*batch*seq"
    assert cutedge.trace(file).graph.meta.seq == 5  # that of the example
    assert cutedge.trace(str(file), seq=9).partition().summary["calls"] == 2  # table, head
    assert cutedge.params(str(file)).summary["parameters"] == 40
    assert traced.at(batch=8, seq=100).graph.meta.seq == 100


def test_what_the_file_does_not_allow_is_said(file: Path) -> None:
    for options, said in (
        ({"seq": 101}, "was exported for seq 2 to 100: --seq 101 is not among them"),
        ({"past": 3}, "leave --past out: it reads nothing that has such a size"),
        ({"dtype": "bfloat16"}, "leave --dtype out"),
        ({"phase": "decode"}, "leave --phase out"),
        ({"overrides": {"a": 1}}, "leave --set out"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            cutedge.trace(file, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is traced, and nothing of it is run"):
        cutedge.trace(file).runnable()


def test_the_cache_knows_a_file_by_what_is_in_it(file: Path) -> None:
    before = cutedge.trace(file, seq=50).reach
    assert cutedge.trace(file, seq=50).cached
    edited(file, lambda program: program["range_constraints"]["s27"].update(max_val=60))
    after = cutedge.trace(file, seq=50).reach
    assert (dict_of(before)["seq"], dict_of(after)["seq"]) == ((2, 100), (2, 60))


def dict_of(reach: Reach) -> dict[str, tuple[int, int]]:
    return {name: (least, most) for name, least, most in reach.bounds}


# --- hostile and damaged --------------------------------------------------------------------------


def edited(file: Path, change: Callable[[Any], object], member: str = "models/model.json") -> None:
    """The archive with what is in the JSON of a member changed."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (place,) = (name for name in members if name.endswith(member))
    told = json.loads(members[place])
    change(told)
    members[place] = json.dumps(told).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def graph_of(program: Any) -> Any:
    return program["graph_module"]["graph"]


def sized(text: str) -> Callable[[Any], object]:
    def change(program: Any) -> None:
        value = graph_of(program)["tensor_values"]["ids"]
        value["sizes"][1] = {"as_expr": {"expr_str": text, "hint": {"as_int": 5}}}

    return change


def called(target: str) -> Callable[[Any], object]:
    return lambda program: graph_of(program)["nodes"][-1].update(target=target)


MARK = "/tmp/cutedge-was-here"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (sized("__import__('os').system('true')"), "is no size; nothing of it was run"),
        (sized("Symbol('s27').__class__"), "is no size"),
        (sized("Pow(Integer(9), Integer(999999999))"), "is no size"),
        (sized("9**9**9"), "is no size"),
        (sized("(" * 3000 + ")" * 3000), "is no size"),
        (called("torch.os.system"), "is no op of torch; nothing of it was run"),
        (called("torch.ops.load_library.__func__.__globals__"), "does not have here"),
        (called("torch.ops.aten.from_file.default"), "is hostile: it calls aten.from_file"),
        (called("torch.ops.aten.from_the_future.default"), "a newer torch has it"),
        (called("torch.ops.higher_order.while_loop"), "runs a graph of its own"),
        (lambda p: p["schema_version"].update(major=99), "was saved by a newer torch (schema 99"),
        (lambda p: p["schema_version"].update(major=1), "was saved by an older torch"),
        (lambda p: p.clear(), "is damaged"),
        (lambda p: graph_of(p)["nodes"].pop(0), "cannot be read by torch"),
        (
            lambda p: graph_of(p)["custom_obj_values"].update(x={"class_fqn": "my.Packed"}),
            "holds objects of my.Packed",
        ),
    ],
)
def test_a_hostile_program_is_a_line_and_runs_nothing(
    file: Path, change: Callable[[Any], object], said: str
) -> None:
    edited(file, change)
    with pytest.raises(CutedgeError, match=re.escape(said)) as caught:
        cutedge.trace(file)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARK, "w")


def test_nothing_is_unpickled(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        if "/sample_inputs/" in name or re.search(r"/weight_\d+$", name):
            members[name] = pickle.dumps(Bomb())
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    # A weight that is said to be pickled has the shape that the graph reads.
    edited(
        file,
        lambda told: [one.update(use_pickle=True) for one in told["config"].values()],
        "model_weights_config.json",
    )
    assert cutedge.trace(file, use_cache=False).graph.meta.parameters == 40
    assert not Path(MARK).exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_a_line(file: Path, part: float) -> None:
    data = saved()
    file.write_bytes(data[: int(len(data) * part)])
    done = invoke("trace", file)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "it is cut or damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flipped_bit_in_what_is_read_is_found(file: Path) -> None:
    data = bytearray(saved())
    data[data.index(b'"graph_module"') + 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CutedgeError, match="cut or damaged"):
        cutedge.trace(file)


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_pt2(tmp_path / "no.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="it holds no program"):
        read_pt2(tmp_path / "other.pt2")
    with zipfile.ZipFile(tmp_path / "packed.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/model.json", "{}" + " " * 999)
    with pytest.raises(CutedgeError, match="is compressed"):
        read_pt2(tmp_path / "packed.pt2")
