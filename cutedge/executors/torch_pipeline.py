"""Split points of ``torch.distributed.pipelining.pipeline``: before or after the call of a module.

``split_spec`` is a dictionary from a module's path to ``SplitPoint.BEGINNING`` or ``.END``; each
point begins another stage, in the order of execution. A stage has all ops from there to the next
point, whatever module they are in. Stages are home and the accelerators in order, or, where there
are as many as accelerators, these alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from cutedge.executors.places import Places, agreement, best_stages, pipeline_stages, places
from partition.placement import Placement
from tracer.errors import CutedgeError, InputError, suggest
from tracer.graph import OpGraph
from tracer.stacks import run_order

NAME = "torch"
UNITS = "what stands between the beginnings or ends of two modules"
Point = Literal["BEGINNING", "END"]
_POINT = re.compile(r"[\"']([^\"']+)[\"']\s*:\s*(?:[\w.]*\.)?SplitPoint\.(BEGINNING|END)\b")


def reads(text: str) -> bool:
    """Whether a text is a ``split_spec``."""
    return "SplitPoint" in text or "split_spec" in text


def parse(text: str) -> dict[str, Point]:
    """Module path -> where it is split. Raises InputError for a text without split points.

    >>> parse('split_spec = {"model.layers.8": SplitPoint.BEGINNING}')
    {'model.layers.8': 'BEGINNING'}
    """
    found = _POINT.findall(text)
    empty = re.search(r"split_spec\s*=\s*\{\s*\}", text)  # one stage
    if (not found and not empty) or len(found) != text.count("SplitPoint."):
        raise InputError(
            "a split_spec is a dictionary of split points, as in "
            '{"model.layers.8": SplitPoint.BEGINNING}'
        )
    points = {path: cast(Point, point) for path, point in found}
    if len(points) < len(found):
        raise InputError("a split_spec names each module once")
    return points


def text(points: Mapping[str, Point]) -> str:
    """As Python that defines ``split_spec``."""
    lines = [f'    "{path}": SplitPoint.{point},' for path, point in points.items()]
    return "\n".join(
        ["from torch.distributed.pipelining import SplitPoint", "", "split_spec = {", *lines, "}\n"]
    )


def place(graph: OpGraph, points: Mapping[str, Point], devices: Sequence[str]) -> Places:
    """Where the stages run each op.

    Raises InputError for a module that is not there or is called several times, and for points that
    are not as many as the machine's devices make.
    """
    order = run_order(graph)
    spans, cuts = _spans(graph, order), set[int]()
    for path, point in points.items():
        if path not in spans:
            raise InputError(
                f"split_spec: {path!r} is no module of {graph.meta.model} that does anything."
                f"{suggest(path, list(spans))}"
            )
        span = spans[path]
        parts = {
            one[len(path) + 1 :].partition(".")[0] for one in spans if one.startswith(f"{path}.")
        }
        if parts and all(part.isdigit() for part in parts):
            raise InputError(
                f"split_spec: {path} is a list of modules, and torch splits where one is called: "
                f"name {path}.{min(parts, key=int)} or another"
            )
        if len(span) > 1:
            raise InputError(
                f"split_spec: {path} is called {len(span)} times, and each call would be split"
            )
        cuts.add(span[0].start if point == "BEGINNING" else span[0].stop)
    stages = pipeline_stages(len(points) + 1, devices)
    if stages is None or len(cuts) < len(points) or not cuts.isdisjoint((0, len(order))):
        raise InputError(
            f"split_spec: {len(points)} points make {len({0, *cuts} - {len(order)})} stages, and "
            f"here are {', '.join(devices)}: a stage for each, or for each accelerator (--accel "
            "adds one)"
        )
    begins = sorted(cuts)
    at = {op: stages[sum(begin <= n for begin in begins)] for n, op in enumerate(order)}
    return places(graph, devices[0], at)


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> dict[str, Point]:
    """The points that agree with most of a placement. Raises CutedgeError where there are too few.

    Of modules that do something themselves: what has parts alone may be a list that is never called.
    """
    order = run_order(graph)
    called = {op.module_path for op in graph.ops}
    where: dict[int, tuple[str, Point]] = {}
    spans = _spans(graph, order).items()
    paths = {path: span[0] for path, span in spans if len(span) == 1 and path in called}
    for path in sorted(paths, key=lambda path: path.count(".")):
        where.setdefault(paths[path].start, (path, "BEGINNING"))
    for path in sorted(paths, key=lambda path: path.count(".")):
        where.setdefault(paths[path].stop, (path, "END"))
    cuts = sorted(where.keys() - {0, len(order)})
    pieces = [order[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    found = best_stages([agreement(graph, placement.devices, ops) for ops in pieces], devices)
    if found is None:
        raise CutedgeError(
            f"{graph.meta.model} has {len(cuts)} places to split at, too few for {len(devices)} "
            "devices"
        )
    return dict(where[cuts[begin - 1]] for begin in found[1])


def _spans(graph: OpGraph, order: Sequence[int]) -> dict[str, list[range]]:
    """Module path -> where its calls are in the order of execution, its parts with it."""
    found: dict[str, list[range]] = {}
    for at, op in enumerate(order):
        parts = graph.ops[op].module_path.split(".")
        for depth in range(1, len(parts) + 1):
            spans = found.setdefault(".".join(parts[:depth]), [])
            if spans and spans[-1].stop == at:
                spans[-1] = range(spans[-1].start, at + 1)
            else:
                spans.append(range(at, at + 1))
    found.pop("", None)
    return found
