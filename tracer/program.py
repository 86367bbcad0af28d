"""A captured program, cleaned of torch: the step between torch's export and the op graph.

``capture`` lowers an exported model into a ``Program``: values with formulas as shapes, nodes in
execution order. ``stamp`` repeats its block for every layer of the model, and ``build_graph``
names, classifies and numbers everything.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod

from tracer.formula import Formula, const
from tracer.graph import ITEM_BYTES, Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.kinds import MATRIX_PRODUCTS, READS_NO_DATA, base_name, kind_of
from tracer.patterns import label_tensors, mark_norms


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the program."""

    dtype: str
    shape: tuple[Formula, ...]
    name: str = ""
    """The parameter's or the input's name; empty for what a node makes."""
    role: Role = Role.ACTIVATION
    alias_of: int | None = None
    """The value that owns the memory, as an index into ``Program.values``."""


@dataclass(frozen=True, slots=True)
class Node:
    """A call (or a graph input, or the output) of the program."""

    target: str
    args: tuple[int, ...]
    """The values read, in argument order."""
    outs: tuple[int, ...]
    path: str
    module_type: str
    is_view: bool = False


@dataclass(slots=True)
class Program:
    """Values, and the nodes that make and read them, in execution order."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    repeated: int = 0
    """Blocks that ``stamp`` copied from a traced one."""

    def add(self, value: Value) -> int:
        """Append a value; its index."""
        self.values.append(value)
        return len(self.values) - 1


_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def layer_of(path: str) -> int | None:
    """The first number in a module path: the index in the model's stack of blocks."""
    found = _NUMBER.search(path)
    return int(found.group(1)) if found else None


# --- repeated blocks ------------------------------------------------------------------------------

TRACED_LAYERS = 4
"""Blocks to trace for ``stamp``: the first, two to compare, and the last."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of blocks that the model runs one after the other."""

    path: str
    """Module path of the list (``model.layers``)."""
    depth: int
    """Blocks in the whole model."""

    def layer(self, path: str) -> int | None:
        """The block that a module path or a parameter name lies in, None outside the stack."""
        if not path.startswith(self.path + "."):
            return None
        number = path[len(self.path) + 1 :].split(".", 1)[0]
        return int(number) if number.isdigit() else None

    def move(self, path: str, layer: int) -> str:
        """The same place in another block."""
        if self.layer(path) is None:
            return path
        _, _, rest = path[len(self.path) + 1 :].partition(".")
        return f"{self.path}.{layer}" + (f".{rest}" if rest else "")


Ref = tuple[str, int | str]
"""Where a block finds an argument: ``here`` (made in the block), ``previous`` (made in the block
before), ``own`` (its parameters), ``fixed`` (before the stack), or ``far`` (anywhere else)."""


def stamp(program: Program, stack: Stack) -> Program | None:
    """The program of the whole model, from one traced with ``TRACED_LAYERS`` blocks of ``stack``.

    The block in the middle is repeated. That is sound when the two middle blocks are the same
    program (targets, shapes, where each argument comes from) and nothing reaches further back than
    one block; otherwise None, and the model must be traced whole. ``program.values`` must hold the
    parameters of every block, also of those that were not traced.
    """
    bounds = _bounds(program, stack)
    if bounds is None:
        return None
    segments = [program.nodes[a:b] for a, b in pairwise([*bounds, len(program.nodes)])]
    made = [[out for node in segment for out in node.outs] for segment in segments]
    home = {out: (i, k) for i, outs in enumerate(made) for k, out in enumerate(outs)}

    def ref(value: int, segment: int) -> Ref:
        if name := program.values[value].name:
            layer = stack.layer(name)
            own = layer == segment
            return (
                ("own", stack.move(name, 0))
                if own
                else ("fixed" if layer is None else "far", value)
            )
        if value not in home:
            return ("fixed", value)
        i, k = home[value]
        return ({0: "here", 1: "previous"}.get(segment - i, "far"), k)

    def template(segment: int) -> list[_Step]:
        return [
            _step(program, stack, node, lambda v: ref(v, segment)) for node in segments[segment]
        ]

    middle, last = template(2), template(TRACED_LAYERS - 1)
    in_block = [[s for s in steps if s.in_block] for steps in (middle, last)]
    if template(1) != middle or in_block[0] != in_block[1]:
        return None
    if any(ref[0] == "far" for step in (*middle, *last) for ref in step.refs):
        return None
    # After the stack, a block before the last one may be meant by its number or from the end.
    after = last[max(i for i, step in enumerate(last) if step.in_block) + 1 :]
    if any(ref[0] == "previous" for step in after for ref in step.refs):
        return None

    copies = stack.depth - TRACED_LAYERS
    result = Program(list(program.values), list(program.nodes[: bounds[2]]), copies)
    parameters = {value.name: i for i, value in enumerate(program.values) if value.name}
    previous = made[1]
    for layer in range(2, stack.depth):
        here: list[int] = []
        where = {"here": here, "previous": previous}

        def value_of(ref: Ref, layer: int = layer, where: dict[str, list[int]] = where) -> int:
            place, what = ref
            if isinstance(what, str):
                return parameters[stack.move(what, layer)]
            return where[place][what] if place in where else what

        for step in last if layer == stack.depth - 1 else middle:
            args = tuple(value_of(ref) for ref in step.args)
            outs = []
            for value, owner in step.outs:
                here.append(result.add(value))
                outs.append(here[-1])
                if owner is not None:
                    result.values[here[-1]] = replace(value, alias_of=value_of(owner))
            path = stack.move(step.path, layer)
            result.nodes.append(
                Node(step.target, args, tuple(outs), path, step.module_type, step.is_view)
            )
        previous = here
    return result


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of a block with its arguments as refs: equal for two blocks that do the same."""

    target: str
    path: str
    module_type: str
    is_view: bool
    in_block: bool
    args: tuple[Ref, ...]
    outs: tuple[tuple[Value, Ref | None], ...]

    @property
    def refs(self) -> tuple[Ref, ...]:
        return (*self.args, *(owner for _, owner in self.outs if owner is not None))


def _step(program: Program, stack: Stack, node: Node, ref: Callable[[int], Ref]) -> _Step:
    outs = []
    for out in node.outs:
        value = program.values[out]
        owner = None if value.alias_of is None else ref(value.alias_of)
        outs.append((replace(value, alias_of=None), owner))
    return _Step(
        node.target,
        stack.move(node.path, 0),
        node.module_type,
        node.is_view,
        stack.layer(node.path) is not None,
        tuple(ref(arg) for arg in node.args),
        tuple(outs),
    )


def _bounds(program: Program, stack: Stack) -> list[int] | None:
    """Where each traced block starts; None when the blocks do not follow one another."""
    layers = [stack.layer(node.path) for node in program.nodes]
    if not set(range(TRACED_LAYERS)) <= set(layers):
        return None
    starts = [layers.index(layer) for layer in range(TRACED_LAYERS)]
    order = [layer for layer in layers if layer is not None]
    return starts if order == sorted(order) and max(order) == TRACED_LAYERS - 1 else None


# --- the op graph ---------------------------------------------------------------------------------


def build_graph(program: Program, meta: TraceMeta) -> OpGraph:
    """The op graph of a program: named, classified, labelled, with numbers at ``meta``'s sizes.

    Tensors are the parameters and buffers first, then what each op makes, in execution order.
    """
    ids: dict[int, int] = {}
    rows: list[tuple[Value, int | None, str]] = []  # value, producing op, name
    for index, value in enumerate(program.values):
        if value.name and value.role is not Role.INPUT:
            ids[index] = len(rows)
            rows.append((value, None, value.name))
    constant: set[int] = set(ids)
    from_parameters = {i for i in ids if program.values[i].role is Role.PARAMETER}
    outputs = set(program.nodes[-1].args)
    ops: list[Op] = []
    edges: list[Edge] = []
    counts: Counter[str] = Counter()
    for node in program.nodes:
        base = base_name(node.target)
        args = () if base in READS_NO_DATA else node.args
        is_constant = node.target not in ("input", "output") and constant.issuperset(args)
        kind = _kind(node, args, is_constant, from_parameters)
        name = f"{base}_{counts[base]}"
        if node.target in ("input", "output"):
            name = program.values[node.outs[0]].name if node.outs else base
        counts[base] += 1
        op = Op(
            id=len(ops), name=name, target=node.target, kind=kind, module_path=node.path,
            module_type=node.module_type, layer=layer_of(node.path), is_constant=is_constant,
            is_view=node.is_view, dtype=program.values[node.outs[0]].dtype if node.outs else None,
        )  # fmt: skip
        ops.append(op)
        for position, arg in enumerate(args):
            edges.append(Edge(rows[ids[arg]][1], op.id, ids[arg], position))
        for position, out in enumerate(node.outs):
            if is_constant:
                constant.add(out)
                if from_parameters.intersection(args):
                    from_parameters.add(out)
            ids[out] = len(rows)
            many = len(node.outs) > 1
            rows.append((program.values[out], op.id, f"{name}.{position}" if many else name))
    size = _Sizer(meta)
    tensors = []
    for number, (index, (value, producer, name)) in enumerate(zip(ids, rows, strict=True)):
        role = value.role
        if producer is not None and role is Role.ACTIVATION:
            role = Role.CONSTANT if index in constant else role
            role = Role.OUTPUT if index in outputs else role
        alias = None if value.alias_of is None else ids[value.alias_of]
        tensors.append(size.tensor(number, producer, name, role, value, alias))
    graph = mark_norms(OpGraph(meta, ops, tensors, edges))
    return graph.with_labels(label_tensors(graph))


def _kind(node: Node, args: Sequence[int], is_constant: bool, from_parameters: set[int]) -> Kind:
    if node.target in ("input", "output"):
        return Kind(node.target)
    if is_constant:
        return Kind.CONSTANT
    if node.is_view:
        return Kind.VIEW
    # A bias alone makes no linear: the operands of the product are the last two of a fused add.
    operands = args[-2:] if base_name(node.target).startswith(("add", "badd")) else args[:2]
    if base_name(node.target) in MATRIX_PRODUCTS:
        return Kind.LINEAR if from_parameters.intersection(operands) else Kind.MATMUL
    return kind_of(node.target)


class _Sizer:
    """Turns values into tensors at a trace's sizes; the many equal shapes are worked out once."""

    def __init__(self, meta: TraceMeta) -> None:
        self.variables = meta.variables
        self.symbolic = bool(meta.symbolic)
        self.known: dict[tuple[str, tuple[Formula, ...]], Tensor] = {}

    def tensor(
        self, id: int, op: int | None, name: str, role: Role, value: Value, alias: int | None
    ) -> Tensor:
        key = (value.dtype, value.shape)
        if key not in self.known:
            size = prod(value.shape, start=const(ITEM_BYTES[value.dtype]))
            self.known[key] = Tensor(
                id=0, op=None, name="", role=Role.ACTIVATION, label=None, dtype=value.dtype,
                shape=tuple(dim.evaluate(self.variables) for dim in value.shape),
                shape_expr=tuple(map(str, value.shape)) if self.symbolic else None,
                bytes=size.evaluate(self.variables),
                bytes_expr=str(size) if self.symbolic else None,
                seq_degree=size.degree("seq") if self.symbolic else None,
                alias_of=None,
            )  # fmt: skip
        return replace(self.known[key], id=id, op=op, name=name, role=role, alias_of=alias)
