"""Stacks: lists of blocks, and modules whose parts run one after the other.

The stack of an op is the outermost one that its module path shows: of
``model.layers.3.mlp.experts.5`` it is ``model.layers``, and 3 is the layer. In a model of which no
module is numbered it is the outermost module with several parts, if each waits for the one before.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from tracer.graph import Kind, Op, OpGraph

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def place_of(path: str) -> tuple[str | None, int | None]:
    """The stack and the layer that a path shows: what is before its first number, and that."""
    found = _NUMBER.search(path)
    return (None, None) if found is None else (path[: found.start()], int(found[1]))


def with_stacks(graph: OpGraph) -> OpGraph:
    """The same graph with the stack of each op, and the layer, from the module paths.

    Cached state is where it is read: ``cache.3.keys`` has the layer in its name.
    """
    places = [place_of(op.module_path) for op in graph.ops]
    if all(layer is None for _, layer in places):
        places = _parts(graph)
    for op in graph.ops:
        if op.kind is Kind.INPUT:
            _, layer = place_of(op.name)
            readers = (r for tensor in graph.outputs(op.id) for r in graph.readers(tensor.id))
            found = next((places[r] for r in readers if places[r][1] == layer), (None, layer))
            places[op.id] = (None, None) if layer is None else found
    return graph.with_ops(
        replace(op, stack=stack, layer=layer)
        for op, (stack, layer) in zip(graph.ops, places, strict=True)
    )


def layer_names(graph: OpGraph) -> list[str | None]:
    """By op: what to call its layer, with the stack where there are several; None outside."""
    several = len({op.stack for op in graph.ops if op.stack is not None}) > 1

    def name(op: Op) -> str | None:
        if op.layer is None:
            return None
        return f"{op.stack}.{op.layer}" if several and op.stack else str(op.layer)

    return [name(op) for op in graph.ops]


def _parts(graph: OpGraph) -> list[tuple[str | None, int | None]]:
    """The outermost module with several parts as a stack, where each part waits for the last."""
    paths = [
        op.module_path.split(".")
        if op.module_path and not graph.is_everywhere(op.id) else []
        for op in graph.ops
    ]  # fmt: skip
    deep: Sequence[str] = []
    while True:
        parts = list(dict.fromkeys(p[len(deep)] for p in paths if len(p) > len(deep)))
        if len(parts) != 1:
            break
        deep = [*deep, *parts]
    part_of = [parts.index(p[len(deep)]) if len(p) > len(deep) else None for p in paths]
    waits: list[int] = []  # by op: the parts that it waits for and its own, a bit each
    for op in graph.ops:
        bits = 0 if (own := part_of[op.id]) is None else 1 << own
        for tensor in graph.inputs(op.id):
            bits |= 0 if tensor.op is None else waits[tensor.op]
        waits.append(bits)
    follows = {
        part for bits, part in zip(waits, part_of, strict=True) if part and bits >> (part - 1) & 1
    }
    if len(follows) < max(len(parts) - 1, 1):
        return [(None, None)] * len(paths)
    return [(None if part is None else ".".join(deep), part) for part in part_of]
