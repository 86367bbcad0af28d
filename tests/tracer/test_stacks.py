"""Which stack of a model, and which layer of that, an op is in."""

from pathlib import Path

import pytest

from tests.support.graphs import Builder
from tracer.capture import capture_function
from tracer.graph import Kind, Op, OpGraph
from tracer.stacks import layer_names, place_of, with_stacks

FILE = """
import torch
from torch import nn


def stage(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.ReLU())


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([stage(8, 4), stage(4, 2)])
        self.decoder = nn.ModuleList([stage(2, 4), stage(4, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for part in (*self.encoder, *self.decoder):
            x = part(x)
        return self.head(x)


class Parts(nn.Module):
    # No module is numbered; the pool is shared, and runs after both convolutions.

    def __init__(self, inside):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(5, 2)

    def forward(self, x):
        x = self.pool(self.second(self.pool(self.first(x))))
        return self.head(x.mean((2, 3))) + 1


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Parts(self)

    def forward(self, x):
        return self.net(x)


class Branches(nn.Module):
    # Neither of its parts waits for the other.

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.left(x) * self.right(x)


def lists():
    return Lists(), torch.randn(2, 8)


def parts():
    return Inside(), torch.randn(1, 3, 16, 16)


def branches():
    return Branches(), torch.randn(2, 8)


def one():
    return nn.Linear(8, 4), torch.randn(2, 8)
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", (None, None)),
        ("model", (None, None)),
        ("model.layers", (None, None)),
        ("model.layers.0", ("model.layers", 0)),
        ("model.layers.12.mlp.gate_proj", ("model.layers", 12)),
        ("encoder.layers.3.mlp.experts.5", ("encoder.layers", 3)),
        ("down_blocks.2.resnets.1", ("down_blocks", 2)),
        ("layer4.2.conv1", ("layer4", 2)),
        ("h.7", ("h", 7)),
        ("3", ("", 3)),
        ("3.attn", ("", 3)),
        ("conv1", (None, None)),
        ("conv1.weight", (None, None)),
        ("model.layers.007", ("model.layers", 7)),
        ("block-4.norm", (None, None)),
        ("model.4x.norm", (None, None)),
        ("model.layers.-1", (None, None)),
    ],
)
def test_the_outermost_number_of_a_path_is_the_layer(path, place):
    assert place_of(path) == place


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stacks") / "stacks.py"
    path.write_text(FILE)
    return path


def placed(graph: OpGraph) -> dict[str, tuple[str | None, int | None]]:
    """By module: the place of its ops, which is one."""
    found: dict[str, set[tuple[str | None, int | None]]] = {}
    for op in graph.ops:
        if op.kind not in (Kind.INPUT, Kind.OUTPUT):
            found.setdefault(op.module_path, set()).add((op.stack, op.layer))
    assert all(len(places) == 1 for places in found.values())
    return {path: places.pop() for path, places in found.items()}


def test_lists_are_stacks_each_with_layers_of_its_own(module):
    graph = capture_function(str(module), "lists").graph
    numbered = {
        f"{stack}.{layer}.{part}": (stack, layer)
        for stack in ("encoder", "decoder")
        for layer in (0, 1)
        for part in (0, 1)
    }
    assert placed(graph) == numbered | {"head": (None, None)}
    names = layer_names(graph)
    assert [names[op.id] for op in graph.ops if op.kind is Kind.LINEAR] == [
        "encoder.0",
        "encoder.1",
        "decoder.0",
        "decoder.1",
        None,
    ]


def test_the_parts_of_a_module_without_lists_are_layers_where_each_waits_for_the_last(module):
    graph = capture_function(str(module), "parts").graph
    order = ("first", "pool", "second", "head")
    parts = {f"net.{part}": ("net", n) for n, part in enumerate(order)}
    assert placed(graph) == parts | {"net": (None, None)}
    assert {name for name in layer_names(graph) if name} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("name", ["branches", "one"])
def test_a_module_without_parts_that_follow_each_other_has_no_stack(module, name):
    graph = capture_function(str(module), name).graph
    assert {(op.stack, op.layer) for op in graph.ops} == {(None, None)}


@pytest.mark.slow
def test_cached_state_is_in_the_layer_that_reads_it(traced):
    graph = traced("gpt2", phase="decode", past=8, overrides={"n_layer": 2})
    states = [op for op in graph.ops if op.name.startswith("cache.")]
    assert len(states) == 4
    assert all(
        (op.stack, op.layer) == (_reader(graph, op).stack, int(op.name.split(".")[1]))
        for op in states
    )
    assert {op.stack for op in states} == {"transformer.h"}


def _reader(graph: OpGraph, op: Op) -> Op:
    (made,) = graph.outputs(op.id)
    return graph.ops[graph.readers(made.id)[0]]


def test_a_graph_of_inputs_alone_has_no_stack():
    b = Builder()
    graph = with_stacks(b.finish(b.input("x", [3])))
    assert {(op.stack, op.layer) for op in graph.ops} == {(None, None)}
