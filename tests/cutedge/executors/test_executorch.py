"""ExecuTorch's delegates: marked on what torch exports, tagged on what that is lowered to."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import networkx as nx
import pytest

import cutedge
from tests.support import tiny
from tracer.errors import InputError

GIVEN = """delegates = {
    "embed": "gpu",
    "blocks.0.up": "gpu",
    "blocks.1": {"aten.relu.default": "gpu", "aten.add.Tensor": None},
    "blocks.1.up": "gpu",
    "blocks.2.norm": "gpu",
    "blocks.2.up": "gpu",
    "head": "gpu",
}
"""


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace(tiny.Tiny(), tiny.IDS)


def placed(trace: cutedge.Trace, given: str = GIVEN, **options: Any) -> cutedge.Partition:
    return trace.partition(cutedge.placement(given), **options)


def exported() -> Any:
    import torch

    return torch.export.export(tiny.Tiny().eval(), (tiny.IDS,))


def on(split: cutedge.Partition, device: str) -> Counter[tuple[str, str]]:
    """(module, ATen op) of what is on a device."""
    graph, where = split.split.graph, split.split.placement.devices
    return Counter((op.module_path, op.target) for op in graph.ops if where[op.id] == device)


def kinds(nodes: Any) -> Counter[tuple[str, str]]:
    """(module, ATen op) of nodes of an export."""
    return Counter(
        ([*node.meta["nn_module_stack"].values()][-1][0], str(node.target)) for node in nodes
    )


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """What a file that was written defines, with as much of ExecuTorch as it takes.

    By the documentation a Partitioner gives ``delegation_tag`` to nodes, and the
    ``DelegationSpec`` of each tag; constants are tagged after all else.
    """

    def tag_constant_data(program: Any) -> None:
        program.constants_are_tagged = True

    names = ("executorch", "executorch.exir", "executorch.exir.backend")
    known = {"Partitioner": type("Partitioner", (), {}), "PartitionResult": SimpleNamespace}
    known["PartitionResult"] = lambda program, tags: SimpleNamespace(program=program, tags=tags)
    for name, has in (
        *((name, {}) for name in names),
        (f"{names[-1]}.partitioner", known),
        (f"{names[-1]}.utils", {"tag_constant_data": tag_constant_data}),
    ):
        module = ModuleType(name)
        vars(module).update(has)
        monkeypatch.setitem(sys.modules, name, module)

    def run(text: str) -> dict[str, Any]:
        said: dict[str, Any] = {}
        exec(text, said)
        return said

    return run


def test_what_is_marked_is_what_the_placement_has_there(
    trace: cutedge.Trace, words: Callable[[str], dict[str, Any]]
):
    """Each delegate is a call, and none waits for what waits for it."""
    split = placed(trace)
    said, program = words(split.words_for("executorch").text), exported()
    result = said["Delegated"]({"gpu": "spec"}).partition(said["mark"](program))
    assert result.program.constants_are_tagged
    tags = {
        node: node.meta["delegation_tag"]
        for node in program.graph.nodes
        if "delegation_tag" in node.meta
    }
    assert kinds(tags) == on(split, "gpu")
    assert result.tags == dict.fromkeys(tags.values(), "spec")
    assert len(result.tags) == split.summary["calls"]
    together = nx.DiGraph()
    for node in program.graph.nodes:
        for reader in node.users:
            together.add_edge(tags.get(node, node), tags.get(reader, reader))
    together.remove_edges_from([*nx.selfloop_edges(together)])
    assert nx.is_directed_acyclic_graph(together)


def test_each_accelerator_has_delegates_of_its_own(
    trace: cutedge.Trace, words: Callable[[str], dict[str, Any]]
):
    given = GIVEN.replace('"head": "gpu"', '"head": "npu"')
    split = placed(trace, given, accel=["npu", "gpu"])
    said, program = words(split.words_for("executorch").text), exported()
    specs = {"gpu": "one", "npu": "other"}
    result = said["Delegated"](specs).partition(said["mark"](program))
    heads = [tag for tag, spec in result.tags.items() if spec == "other"]
    assert heads == [f"npu_{len(result.tags)}"]  # the last step


def test_turns_tell_ops_of_one_kind_apart(words: Callable[[str], dict[str, Any]]):
    """What an export has other turns of is no export of the model that was traced."""
    import torch

    class Twice(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.relu(torch.relu(x) + 1) * 2

    x = torch.ones(3)
    given = 'delegates = {"": {"aten.relu.default": (None, "gpu"), "aten.mul.Tensor": "gpu"}}'
    split = cutedge.trace(Twice(), x).partition(cutedge.placement(given))
    text = split.words_for("executorch").text
    assert '"aten.relu.default": (None, "gpu"),' in text
    said = words(text)
    program = said["mark"](torch.export.export(Twice(), (x,)))
    marked = [node.name for node in program.graph.nodes if "custom" in node.meta]
    assert marked == ["relu_1", "mul"]
    once = torch.export.export(torch.nn.ReLU(), (x,))
    with pytest.raises(ValueError, match=r"1 x aten.relu.default, and the placement is of 2"):
        said["mark"](once)


def test_what_reads_weights_alone_is_with_what_reads_it(words: Callable[[str], dict[str, Any]]):
    import torch

    class Late(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: Any) -> Any:
            return (torch.relu(x) + 1) * -self.weight

    x = torch.ones(3)
    ops = dict.fromkeys(("aten.relu.default", "aten.neg.default", "aten.mul.Tensor"), "gpu")
    split = cutedge.trace(Late(), x).partition(cutedge.placement(f"delegates = {{'': {ops}}}"))
    said = words(split.words_for("executorch").text)
    program = said["mark"](torch.export.export(Late(), (x,)))
    said["Delegated"]({"gpu": "spec"}).partition(program)
    tags = {node.name: node.meta.get("delegation_tag") for node in program.graph.nodes}
    assert [tags[name] for name in ("relu", "add", "neg", "mul")] == [
        "gpu_1",
        None,
        "gpu_2",
        "gpu_2",
    ]


def test_any_placement_of_ops_is_carried_out(trace: cutedge.Trace):
    split = trace.partition("offload-linear")
    assert split.words_for("executorch").exact
    assert placed(trace, "delegates = {}\n").summary["calls"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("delegates = {", "delegates: the file is no Python"),
        ("delegates = spam()", "delegates is no dictionary of plain values"),
        ('delegates = {"heat": "gpu"}', "'heat' is no module of Tiny that does anything. Did"),
        ('delegates = {"head": "npu"}', "'head' is on 'npu', and the accelerators are gpu"),
        ('delegates = {"head": 1}', "'head' has 1; write an accelerator"),
        ('delegates = {"head": ("gpu",)}', "'head' has ('gpu',); write an accelerator"),
        ('delegates = {"head": {"aten.mm.default": "gpu"}}', "'head' has no aten.mm.default"),
        (
            'delegates = {"head": {"aten.linear.default": ("gpu", None)}}',
            "'head' has 1 x aten.linear.default, and here are 2",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(trace: cutedge.Trace, given: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        placed(trace, given)
    assert "\n" not in str(error.value)


def lowered(model: Any, given: Any, said: dict[str, Any]) -> tuple[Any, list[set[str]], Any]:
    """(the lowered program, the exported nodes that each delegate was made of, the export)."""
    import torch
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
    from executorch.exir.backend.partitioner import DelegationSpec

    delegates: list[set[str]] = []

    class Recorded(BackendDetails):
        @staticmethod
        def preprocess(program: Any, specs: Any) -> Any:
            nodes = [node for node in program.graph.nodes if node.op == "call_function"]
            delegates.append({node.meta["custom"]["of"] for node in nodes})
            return PreprocessResult(processed_bytes=b"program")

    program = torch.export.export(model, given)
    for node in program.graph.nodes:  # what each is lowered to keeps it
        node.meta["custom"] = {"of": node.name}
    parts = [said["Delegated"]({"gpu": DelegationSpec("Recorded", [])})]
    return to_edge_transform_and_lower(said["mark"](program), partitioner=parts), delegates, program


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ExecuTorch and what it imports
@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
def test_executorch_delegates_what_is_tagged(trace: cutedge.Trace):
    """After it has decomposed what it decomposes, and the program still computes the same."""
    import torch

    split = placed(trace)
    said: dict[str, Any] = {}
    exec(split.words_for("executorch").text, said)
    model = tiny.Tiny().eval()
    edge, delegates, program = lowered(model, (tiny.IDS,), said)
    assert len(delegates) == split.summary["calls"]
    nodes = {node.name: node for node in program.graph.nodes}
    assert kinds(nodes[name] for made in delegates for name in made) == on(split, "gpu")
    assert sum(map(len, delegates)) == len(set().union(*delegates))  # each in one of them
    answer = edge.exported_program().module()(tiny.IDS)
    torch.testing.assert_close(answer, model(tiny.IDS))
