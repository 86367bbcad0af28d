"""vLLM's pipeline stages: how many layers each rank has (``VLLM_PP_LAYER_PARTITION``).

A comma-separated list, a number for each rank of ``--pipeline-parallel-size``, that must add up to
the model's layers. The first rank has the embeddings too, the last the final norm and the head;
each keeps the cache of its layers. Ranks are home and the accelerators in order, or, where there
are as many as accelerators, these alone.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from cutedge.executors.places import Places, agreement, best_stages, pipeline_stages, places
from partition.placement import Placement
from tracer.errors import CutedgeError, InputError
from tracer.graph import OpGraph
from tracer.stacks import run_order

NAME = "vllm"
UNITS = "layers"
_WORD = "VLLM_PP_LAYER_PARTITION"


def reads(text: str) -> bool:
    """Whether a text is in vLLM's words."""
    return _WORD in text


def parse(text: str) -> tuple[int, ...]:
    """The layers of each rank. Raises InputError for what is no list of numbers.

    >>> parse("export VLLM_PP_LAYER_PARTITION=6,10")
    (6, 10)
    """
    match = re.search(rf"{_WORD}\s*=\s*[\"']?([^\"'\s]*)", text)
    given = match[1] if match else ""
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", given):
        raise InputError(f"{_WORD}={given}: write the layers of each rank, as in {_WORD}=6,10")
    return tuple(map(int, given.split(",")))


def text(counts: tuple[int, ...]) -> str:
    """In vLLM's words."""
    return f"{_WORD}={','.join(map(str, counts))}\n"


def place(graph: OpGraph, counts: tuple[int, ...], devices: Sequence[str]) -> Places:
    """Where vLLM runs each op. Raises InputError for counts that are not of the model or machine."""
    pieces = _pieces(graph)
    told = f"{_WORD}={','.join(map(str, counts))}"
    if sum(counts) != len(pieces):
        raise InputError(
            f"{told} has {sum(counts)} layers, and {graph.meta.model} has {len(pieces)}"
        )
    stages = pipeline_stages(len(counts), devices)
    if stages is None:
        raise InputError(
            f"{told} is of {len(counts)} ranks, and here are {', '.join(devices)}: a number for "
            "each, or for each accelerator (--accel adds one)"
        )
    at: dict[int, str] = {}
    layer = 0
    for stage, count in zip(stages, counts, strict=True):
        for piece in pieces[layer : layer + count]:
            at.update(dict.fromkeys(piece, stage))
        layer += count
    return places(graph, devices[0], at)


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> tuple[int, ...]:
    """The ranks that agree with most of a placement. Raises CutedgeError without enough layers."""
    pieces = _pieces(graph)
    found = best_stages([agreement(graph, placement.devices, ops) for ops in pieces], devices)
    if found is None:
        raise CutedgeError(
            f"{graph.meta.model} has {len(pieces)} layers, too few for {len(devices) - 1} ranks"
        )
    begins = [0, *found[1], len(pieces)]
    return tuple(after - begin for begin, after in pairwise(begins))


def _pieces(graph: OpGraph) -> list[list[int]]:
    """The ops of each layer of the longest stack, with what comes before the first and after each.

    Raises CutedgeError for a model without layers.
    """
    layers: dict[str, set[int]] = {}
    for each in graph.ops:
        if each.stack is not None and each.layer is not None:
            layers.setdefault(each.stack, set()).add(each.layer)
    if not layers:
        raise CutedgeError(f"{graph.meta.model} has no layers, and vLLM's ranks have layers each")
    stack = max(layers, key=lambda one: len(layers[one]))
    pieces: list[list[int]] = [[] for _ in layers[stack]]
    numbers = {layer: at for at, layer in enumerate(sorted(layers[stack]))}
    last = 0
    for op in run_order(graph):
        layer = graph.ops[op].layer
        if graph.ops[op].stack == stack and layer is not None:
            last = numbers[layer]
        pieces[last].append(op)
    return pieces
