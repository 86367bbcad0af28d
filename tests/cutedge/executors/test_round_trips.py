"""What an executor is told and what it reads of that are the same placement."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutedge.executors import EXECUTORS, carried, read_words
from partition.placement import Placement, validate
from tests.support.presets import swept
from tracer.graph import Kind, OpGraph

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama-3.2-1b", {"seq": 16, "overrides": {"num_hidden_layers": 2}}),
    "decode": (
        "llama-3.2-1b",
        {"phase": "decode", "past": 16, "overrides": {"num_hidden_layers": 2}},
    ),
    "moe": (
        "qwen3-30b-a3b",
        {"phase": "decode", "past": 16, "overrides": {"num_hidden_layers": 2}},
    ),
    "gpt2": ("gpt2", {"seq": 16, "overrides": {"n_layer": 2}}),
    "opt": ("edge-10m", {"seq": 8}),
}
DEVICES = (("tee", "gpu"), ("tee", "npu", "gpu"))
"""Of several accelerators ONNX Runtime has words for those alone that are called by their kind."""


def anywhere(graph: OpGraph, devices: tuple[str, ...], random: Random) -> Placement:
    """Each op on any device; of some, more often on one than on the others."""
    often = random.choices(devices, k=1 + random.randrange(4))
    where = [
        None
        if graph.is_everywhere(op.id)
        else devices[0]
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else random.choice((*devices, *often))
        for op in graph.ops
    ]
    streams = {op for op, d in enumerate(where) if d == devices[1] and random.random() < 0.05}
    return Placement(devices[0], where, [False] * len(where), [""] * len(where), frozenset(streams))


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("model", swept(MODELS, ("llama",)))
@given(random=st.randoms(use_true_random=False))
def test_words_are_read_as_the_placement_that_they_were_written_of(
    name: str, model: str, traced: Callable[..., OpGraph], random: Random
):
    """The nearest to any placement is one that the executor can carry out; its words say it."""
    if name == "llama.cpp":
        pytest.importorskip("gguf")
        if model == "opt":
            return  # llama.cpp does not have it
    preset, options = MODELS[model]
    graph, devices = traced(preset, **options), random.choice(DEVICES)
    executor = EXECUTORS[name]
    given = anywhere(graph, devices, random)
    first = carried(executor, graph, given, devices[1:])
    at = first.places
    if name == "executorch":  # any device for any op
        assert {*first.moved} == given.streams
    placement = Placement(
        devices[0], at.devices, [False] * len(at.devices), [""] * len(at.devices), at.streams
    )
    validate(graph, placement)
    again = carried(executor, graph, placement, devices[1:])
    assert again.moved == ()
    assert again.places == at
    found, told = read_words(again.text)
    assert found is executor
    assert executor.place(graph, told, devices) == at


def test_of_each_unit_most_flops_decide(traced: Callable[..., OpGraph]):
    """Half of a layer's ops are at home, and with the larger products away it goes away."""
    graph = traced("llama-3.2-1b", seq=16, overrides={"num_hidden_layers": 2})
    where: list[str | None] = [None if graph.is_everywhere(op.id) else "tee" for op in graph.ops]
    for op in graph.ops:
        if op.layer == 1 and ".mlp." in op.module_path and op.kind is Kind.LINEAR:
            where[op.id] = "gpu"  # 3 of 7 products, and 151 of 176 Mi weights
    placement = Placement("tee", where, [True] * len(where), [""] * len(where))
    found = carried(EXECUTORS["accelerate"], graph, placement, ["gpu"])
    away = {op.layer for op in graph.ops if found.places.devices[op.id] == "gpu"}
    assert away == {1}
    stays = [op for op in graph.ops if op.layer == 1 and not graph.is_everywhere(op.id)]
    assert set(found.moved) == {op.id for op in stays if where[op.id] == "tee"}
