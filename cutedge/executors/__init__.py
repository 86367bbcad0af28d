"""Programs that carry placements out, each with its own words for them.

An executor's module has plain functions: ``parse`` reads its words, ``place`` says where it then
runs each op of a graph, ``nearest`` gives the words for what it can do that agrees with most of a
placement, ``text`` writes them. Devices are home and the accelerators in the order of the machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutedge.executors import (
    accelerate,
    executorch,
    llama_cpp,
    onnxruntime,
    openvino,
    torch_pipeline,
    vllm,
)
from cutedge.executors.places import Places
from partition import Granularity
from partition.placement import Placement
from tracer.errors import CutedgeError, InputError
from tracer.files import read_bounded
from tracer.graph import OpGraph

_MOST = 2**24
"""Bytes of a file of a placement: far more than the largest device_map has."""


@dataclass(frozen=True, slots=True)
class Executor:
    """A program that carries placements out."""

    name: str
    """As ``--for`` takes it."""
    units: str
    """What it keeps on one device each, in words."""
    granularity: Granularity
    """The units of a search that are the most like these."""
    reads: Callable[[str], bool]
    """Whether a text is in its words."""
    parse: Callable[[str], Any]
    """What its words say. Raises InputError."""
    place: Callable[[OpGraph, Any, Sequence[str]], Places]
    """Where it then runs each op, on home and the accelerators. Raises InputError for words that
    are not of the graph or of the devices."""
    nearest: Callable[[OpGraph, Placement, Sequence[str]], Any]
    """What it can do that agrees with most of a placement. Raises CutedgeError where it can do
    nothing with the graph."""
    text: Callable[[Any], str]
    """What it is told, in its words."""
    beside: Callable[[Any], Mapping[str, object]]
    """What it takes beside these, by its own names."""


def _nothing(told: object) -> Mapping[str, object]:
    return {}


def _executor(module: Any, granularity: Granularity) -> Executor:
    return Executor(
        module.NAME,
        module.UNITS,
        granularity,
        module.reads,
        module.parse,
        module.place,
        module.nearest,
        module.text,
        getattr(module, "beside", _nothing),
    )


EXECUTORS: Mapping[str, Executor] = {
    one.name: one
    for one in (
        _executor(accelerate, "layer"),
        _executor(vllm, "layer"),
        _executor(torch_pipeline, "module"),
        _executor(onnxruntime, "module"),
        _executor(openvino, "module"),
        _executor(executorch, "op"),
        _executor(llama_cpp, "tensor"),
    )
}
"""By name; a text is in the words of the first that reads it."""


def read_words(given: str) -> tuple[Executor, Any]:
    """(the executor, what it is told) of a file or of words themselves.

    Raises InputError for a file that cannot be read, and for words of no executor.

    >>> executor, told = read_words("VLLM_PP_LAYER_PARTITION=6,10")
    >>> executor.name, told
    ('vllm', (6, 10))
    """
    text = given
    if _is_file(given):
        try:
            text = read_bounded(Path(given), _MOST).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"--placement {given}: the file is no text") from error
        except OSError as error:
            raise InputError(f"--placement {given}: {error.strerror or error}") from error
    for executor in EXECUTORS.values():
        if executor.reads(text):
            try:
                return executor, executor.parse(text)
            except InputError as error:
                raise InputError(f"--placement: {error}") from error
    raise InputError(
        f"--placement {given}: no such file, and no words of {', '.join(EXECUTORS)}: write e.g. "
        "'-ngl 20 -ot exps=CPU', VLLM_PP_LAYER_PARTITION=6,10, or the name of a file with a "
        "device_map, a split_spec, affinities or delegates"
    )


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with what no name has
        return False


@dataclass(frozen=True, slots=True)
class Carried:
    """What an executor can do of a placement."""

    text: str
    """The nearest that it can do, in its words."""
    beside: Mapping[str, object]
    """What it takes beside these, by its own names."""
    places: Places
    """Where the ops are then."""
    moved: tuple[int, ...]
    """The ops that it has elsewhere than the placement, or with their parameters elsewhere."""


def carried(
    executor: Executor, graph: OpGraph, placement: Placement, accelerators: Sequence[str]
) -> Carried:
    """The nearest to a placement that an executor can do, as it reads its own words.

    Raises CutedgeError where it can do nothing with the graph.
    """
    devices = (placement.home, *accelerators)
    told = executor.nearest(graph, placement, devices)
    text = executor.text(told)
    try:
        at = executor.place(graph, executor.parse(text), devices)
    except InputError as error:  # of words that are ours
        raise CutedgeError(f"{executor.name} cannot place {graph.meta.model}: {error}") from error
    moved = tuple(
        op.id
        for op in graph.ops
        if at.devices[op.id] != placement.devices[op.id]
        or (op.id in at.streams) != (op.id in placement.streams)
    )
    return Carried(text, executor.beside(told), at, moved)
