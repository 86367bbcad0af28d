"""Stacks: lists of blocks, and modules whose parts run one after the other.

The stack of an op is the outermost one that its module path shows: of
``model.layers.3.mlp.experts.5`` it is ``model.layers``, and 3 is the layer. In a model of which no
module is numbered it is the outermost module with several parts, if each waits for the one before.
Where a model can be cut is asked of all modules at all depths: ``boundaries``.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, pairwise, takewhile

from tracer.graph import Kind, Op, OpGraph, Role

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@lru_cache(maxsize=4096)
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
        op if (op.stack, op.layer) == place else replace(op, stack=place[0], layer=place[1])
        for op, place in zip(graph.ops, places, strict=True)
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
        op.module_path.split(".") if op.module_path and not graph.is_everywhere(op.id) else []
        for op in graph.ops
    ]
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


# --- where a model can be cut ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in an order of the ops where one part of a module has run and the next has not."""

    at: int
    """How many ops come before it."""
    before: str
    """The module path of the part that has run."""
    after: str
    """That of the part that comes next; the same where one module is called twice."""
    done: range
    """Where the ops of the part that has run are in the order."""
    next: range
    """Where those of the part that comes next are."""

    def __str__(self) -> str:
        if self.before == self.after:
            return f"between two calls of {self.before}"
        return f"after {self.before}"


def run_order(graph: OpGraph) -> list[int]:
    """The ops that have a device to choose, in the order of execution."""
    return [
        op.id
        for op in graph.ops
        if op.kind not in (Kind.INPUT, Kind.OUTPUT) and not graph.is_everywhere(op.id)
    ]


def boundaries(graph: OpGraph, order: Sequence[int]) -> list[Boundary]:
    """Every place between two parts of a module that run one after the other, at any depth.

    ``order`` are the ops of ``run_order``, each after those that it waits for. What a module does
    itself between two of its parts may be on either side of the place: there are several then.
    """
    paths = [_split(graph.ops[op].module_path) for op in order]
    found = []
    for last, path in enumerate(paths[:-1]):
        parent, first = _shared(path, paths[last + 1]), last + 1
        if parent == paths[first] != path:  # the module goes on after its part, itself
            while first < len(paths) and paths[first] == parent:
                first += 1
        if first == len(paths) or len(parent) in (len(path), len(paths[first])):
            continue
        if _shared(parent, paths[first]) != parent:
            continue  # it was its last part
        own = len(_shared(path, paths[first])) + 1
        before, after = (".".join(part[:own]) for part in (path, paths[first]))
        parts = _run(paths, last, len(parent) + 1, -1), _run(paths, first, len(parent) + 1, 1)
        found += [Boundary(at, before, after, *parts) for at in range(last + 1, first + 1)]
    return found


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _shared(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """What two paths begin with."""
    ends = zip(one, other, strict=False)
    return tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends))


def _run(paths: Sequence[tuple[str, ...]], start: int, depth: int, step: int) -> range:
    """The ops around ``start``, on one side of it, that are in the same module at a depth."""
    stop = start
    while 0 <= stop + step < len(paths) and paths[stop + step][:depth] == paths[start][:depth]:
        stop += step
    return range(min(start, stop), max(start, stop) + 1)


def follows(graph: OpGraph, order: Sequence[int], done: range, then: range) -> bool:
    """Whether some op of ``then`` waits for one of ``done``, which comes before it in ``order``."""
    waiting = {order[at] for at in done}
    for at in range(done.stop, then.stop):
        if any(tensor.op in waiting for tensor in graph.flowing(order[at])):
            if at >= then.start:
                return True
            waiting.add(order[at])
    return False


def blocks(graph: OpGraph) -> list[frozenset[int]]:
    """The ops of each block of the model's repeated stacks; of each op with parameters without one.

    A repeated stack is a list with at least two parts alike, each of which waits for the one
    before. Its parts are made of modules; where there is no such list, parts of modules that are
    called alike (``down1``, ``down2``) are one, or else a list of single modules. What has no
    parameters is no block.
    """
    weighty = _with_parameters(graph)
    order = run_order(graph)
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, op in enumerate(order):
        path = _split(graph.ops[op].module_path)
        for depth, name in enumerate(path):
            kind = re.sub(r"\d+", "*", name)
            if kind != name:
                part = ".".join(path[: depth + 1])
                groups[".".join(path[:depth]), kind][part].append(at)
    ranked: dict[tuple[bool, bool], list[frozenset[int]]] = defaultdict(list)
    for (_, kind), parts in groups.items():
        ops = {part: [order[n] for n in at] for part, at in parts.items()}
        held = [part for part in parts if weighty.intersection(ops[part])]
        made_of = {part: _made_of(graph, part, ops[part]) for part in held}
        for composite, listed in ((True, True), (True, False), (False, True)):
            mine = [part for part in held if (len(made_of[part]) > 1) == composite]
            pairs = combinations([made_of[part] for part in mine], 2)
            spans = [range(parts[part][0], parts[part][-1] + 1) for part in mine]
            if (
                listed == (kind == "*")
                and any(one <= other or other <= one for one, other in pairs)
                and all(follows(graph, order, *both) for both in pairwise(spans))
            ):
                ranked[composite, listed] += [frozenset(ops[part]) for part in mine]
    if ranked:
        return ranked[max(ranked)]
    return [frozenset({op}) for op in order if op in weighty]


def _with_parameters(graph: OpGraph) -> set[int]:
    """The ops that read a parameter, or a constant that is computed from one."""
    found: set[int] = set()
    for op in graph.ops:
        for tensor in graph.inputs(op.id):
            constant = tensor.op is not None and graph.ops[tensor.op].is_constant
            if tensor.role is Role.PARAMETER or (constant and tensor.op in found):
                found.add(op.id)
    return found


def _made_of(graph: OpGraph, part: str, ops: Sequence[int]) -> frozenset[tuple[str, str]]:
    """The modules that run in a part of a model: (path in it, its numbers left out; class)."""
    return frozenset(
        (re.sub(r"\d+", "*", graph.ops[op].module_path[len(part) :]), graph.ops[op].module_type)
        for op in ops
    )
