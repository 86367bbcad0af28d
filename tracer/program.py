"""A captured program, cleaned of torch: the step between torch's export and the op graph.

``capture`` lowers an exported model into a ``Program``: values with formulas as shapes, nodes in
execution order. ``tracer.instantiate`` repeats its blocks for every layer of the model, and
``build_graph`` names, classifies and numbers everything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any

from tracer.formula import Formula, const
from tracer.graph import ITEM_BYTES, Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.kinds import MATRIX_PRODUCTS, SEVERAL_PRODUCTS, base_name, data_args, kind_of
from tracer.patterns import label_tensors, mark_norms
from tracer.stacks import place_of, with_stacks


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

    def view_of(self, owner: int) -> "Value":
        """Such a value in the memory of another."""
        return Value(self.dtype, self.shape, self.name, self.role, owner)


@dataclass(frozen=True, slots=True)
class Invocation:
    """How torch carries out a node at the sizes of the trace, as plain data.

    Arguments are None, numbers and text as they are, lists of arguments, and mappings of one key:
    ``value`` (a tensor, by its index), ``like`` (one that is asked for its shape and dtype alone),
    ``dtype``, ``layout``, ``memory_format``, ``float`` (one that is not finite), ``complex``
    (as Python writes it), and ``device`` (the one that the node runs on).
    """

    args: list[Any]
    kwargs: Mapping[str, Any]
    shared: tuple["Sharing", ...] = ()
    """Of an op that writes in place: the other tensors in the same memory."""
    draw: int | None = None
    """Of an op that draws random values: how many were drawn before it in a run."""


Layout = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset of a tensor in its memory, in elements."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """A tensor in memory that an op writes in place through another one."""

    before: int
    after: int
    """It, before and after the op."""
    layout: Layout
    written: Layout
    """Of the tensor that is written to, in the same memory."""


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
    extent: Formula | None = None
    """What shapes do not tell of its work; see ``Op.extent_expr``."""
    is_identity: bool = False
    invocation: Invocation | None = None
    """How it is carried out; None unless the program was made to be run."""
    arguments: tuple[tuple[str, str], ...] = ()
    """What it is told beside its tensors; see ``Op.arguments``."""
    draws: int = 0
    """How often it draws random values, which are others in each run whatever it reads."""


@dataclass(slots=True)
class Program:
    """Values, and the nodes that make and read them, in execution order."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    repeated: int = 0
    """Blocks that are copies of a traced one."""
    conditions: tuple[str, ...] = ()
    """What must hold of the sizes for the program to be the model's; empty where it always is."""
    assumed: tuple[str, ...] | None = ()
    """All that was taken to hold of the sizes, in sympy's words, also what always does; None for a
    program that is known to be right at the trace's own sizes alone."""
    unrepeated_reason: str | None = None
    """Why no block of a deep model could be repeated."""
    returned: tuple[int, ...] = ()
    """What the code hands back, in its own order: results, one maybe twice, then cached state."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Of a program that was made to be run: the numbers in what its code made of Python's, by name,
    as torch's tensors."""
    unsure: str = ""
    """A condition on the sizes under which this program may differ from the model (``seq is 64``),
    where the trace's own sizes meet it; empty where the program is known to be the model's."""

    masks_unknown: tuple[str, ...] = ()
    """Why it is not known which pairs the masks of some attentions let through."""

    def add(self, value: Value) -> int:
        """Append a value; its index."""
        self.values.append(value)
        return len(self.values) - 1


# --- the op graph ---------------------------------------------------------------------------------


def build_graph(program: Program, meta: TraceMeta) -> OpGraph:
    """The op graph of a program: named, classified, labelled, with numbers at ``meta``'s sizes.

    Tensors are the parameters and buffers first, then numbers of the code, in the order in which
    they are read, then what each op makes, in execution order.
    """
    ids = {index: number for number, index in enumerate(_named(program))}
    rows: list[tuple[Value, int | None, str]] = [  # value, producing op, name
        (program.values[index], None, program.values[index].name) for index in ids
    ]
    constant = set(ids) - written_state(program)
    from_parameters = {i for i in ids if program.values[i].role is Role.PARAMETER}
    outputs = set(program.nodes[-1].args)
    states = {node.args[0] for node in program.nodes if node.target == "state"}
    ops: list[Op] = []
    edges: list[Edge] = []
    counts: Counter[str] = Counter()
    for node in _with_states(program):
        base = base_name(node.target).rpartition("::")[2]
        args = data_args(node.target, node.args)
        at_an_end = node.target in ("input", "output")
        is_constant = not at_an_end and node.draws == 0 and constant.issuperset(args)
        kind = _kind(node, args, is_constant, from_parameters)
        name = f"{base}_{counts[base]}"
        if at_an_end:
            name = program.values[node.outs[0]].name if node.outs else base
        counts[base] += 1
        stack, layer = place_of(node.path)  # of nearly all ops; ``with_stacks`` puts others right
        op = Op(
            id=len(ops),
            name=name,
            target=node.target,
            kind=kind,
            module_path=node.path,
            module_type=node.module_type,
            stack=stack,
            layer=layer,
            is_constant=is_constant,
            is_view=node.is_view,
            dtype=program.values[node.outs[0]].dtype if node.outs else None,
            extent_expr=None if node.extent is None else str(node.extent),
            arguments=() if is_constant or node.is_view else node.arguments,
            is_identity=node.is_identity,
        )
        ops.append(op)
        for position, arg in enumerate(args):
            tensor = ids[arg]
            edges.append(Edge(rows[tensor][1], op.id, tensor, position))
        if is_constant:
            constant.update(node.outs)
            if not from_parameters.isdisjoint(args):
                from_parameters.update(node.outs)
        many = len(node.outs) > 1
        for position, out in enumerate(node.outs):
            ids[out] = len(rows)
            rows.append((program.values[out], op.id, f"{name}.{position}" if many else name))
    size = _Sizer(meta)
    tensors = []
    for number, (index, (value, producer, name)) in enumerate(zip(ids, rows, strict=True)):
        role = value.role
        if producer is not None and role is Role.ACTIVATION:
            role = Role.CONSTANT if index in constant else role
            role = Role.OUTPUT if index in outputs else role
            role = Role.KV_CACHE if index in states else role
        alias = None if value.alias_of is None else ids[value.alias_of]
        tensors.append(size.tensor(number, producer, name, role, value, alias))
    graph = mark_norms(with_stacks(OpGraph(meta, ops, tensors, edges)))
    return graph.with_labels(label_tensors(graph))


def op_count(program: Program) -> int:
    """How many ops the graph of a program has."""
    return len(_with_states(program))


def written_state(program: Program) -> set[int]:
    """The parameters and buffers that a node writes: what they hold depends on the runs before."""
    made = (out for node in program.nodes if not node.is_view for out in node.outs)
    owners = {program.values[out].alias_of for out in made}  # what is no view writes what it shares
    return {
        i
        for i in owners
        if i is not None and program.values[i].role in (Role.PARAMETER, Role.BUFFER)
    }


def tensor_ids(program: Program, graph: OpGraph) -> dict[int, int]:
    """Value -> its tensor in ``graph``, which was built from ``program``."""
    ids = {index: number for number, index in enumerate(_named(program))}
    for op, node in enumerate(_with_states(program)):
        ids.update(zip(node.outs, (t.id for t in graph.outputs(op)), strict=True))
    return ids


def _named(program: Program) -> list[int]:
    """The values that no node makes, but inputs and cached state, in the order of a graph's tensors."""
    given = [
        index
        for index, value in enumerate(program.values)
        if value.name and value.role not in (Role.INPUT, Role.KV_CACHE)
    ]
    numbers = {index for index in given if program.values[index].role is Role.CONSTANT}
    read = dict.fromkeys(arg for node in program.nodes for arg in node.args if arg in numbers)
    unread = dict.fromkeys(index for index in given if index in numbers)
    return [*(index for index in given if index not in numbers), *(read | unread)]


def invocations(program: Program, graph: OpGraph) -> dict[int, Invocation]:
    """By op of ``graph``, which was built from ``program``: how it is carried out.

    In terms of the graph's tensors. Inputs and the output are not carried out.
    """
    ids, nodes = tensor_ids(program, graph), _with_states(program)

    def renumbered(argument: Any) -> Any:
        match argument:
            case list():
                return [renumbered(part) for part in argument]
            case {"value": index}:
                return {"value": ids[index]}
            case {"like": index}:
                return {"like": ids[index]}
        return argument

    drawn = [*accumulate((node.draws for node in nodes), initial=0)]
    return {
        op: Invocation(
            renumbered(how.args),
            {key: renumbered(value) for key, value in how.kwargs.items()},
            tuple(replace(one, before=ids[one.before], after=ids[one.after]) for one in how.shared),
            drawn[op] if node.draws else None,
        )
        for op, node in enumerate(nodes)
        if (how := node.invocation) is not None
    }


def _with_states(program: Program) -> list[Node]:
    """The nodes with cached state as inputs, and results marked as state among the outputs.

    What nothing reads is no input: what an encoder made, once its keys and values are cached. The
    state is handed back in the order in which it was given.
    """
    read = {arg for node in program.nodes for arg in node.args}
    given = [node for node in program.nodes if node.target == "input" and node.outs[0] in read]
    cached = [
        Node("input", (), (index,), "", "")
        for index, value in enumerate(program.values)
        if value.role is Role.KV_CACHE and value.name
    ]
    work = [node for node in program.nodes[:-1] if node.target not in ("input", "state")]
    marks = [node.args for node in program.nodes if node.target == "state"]
    kept = tuple(new for new, *old in sorted(marks, key=lambda args: args[1:]))
    output = program.nodes[-1]
    return [*given, *cached, *work, replace(output, args=(*output.args, *kept))]


def _kind(node: Node, args: Sequence[int], is_constant: bool, from_parameters: set[int]) -> Kind:
    if node.target in ("input", "output"):
        return Kind(node.target)
    if is_constant:
        return Kind.CONSTANT
    if node.is_view:
        return Kind.VIEW
    name = base_name(node.target)
    # A bias alone makes no linear: the operands of the product are the last two of a fused add.
    operands = args[-2:] if name.startswith(("add", "badd")) else args[:2]
    if name in MATRIX_PRODUCTS or name in SEVERAL_PRODUCTS:
        read = args if name in SEVERAL_PRODUCTS else operands
        return Kind.LINEAR if from_parameters.intersection(read) else Kind.MATMUL
    return kind_of(node.target)


class _Sizer:
    """Turns values into tensors at a trace's sizes; the many equal shapes are worked out once."""

    def __init__(self, meta: TraceMeta) -> None:
        self.variables = meta.variables
        self.symbolic = bool(meta.symbolic)
        self.known: dict[tuple[str, tuple[Formula, ...]], _Sizes] = {}
        self.met: dict[tuple[str, int], _Sizes] = {}  # by the shape's identity: most share one

    def tensor(
        self, number: int, op: int | None, name: str, role: Role, value: Value, alias: int | None
    ) -> Tensor:
        same = (value.dtype, id(value.shape))
        if (sizes := self.met.get(same)) is None:
            key = (value.dtype, value.shape)
            sizes = self.known.get(key) or self.known.setdefault(key, self._sizes(*key))
            self.met[same] = sizes
        return Tensor(number, op, name, role, None, value.dtype, *sizes, alias)

    def _sizes(self, dtype: str, shape: tuple[Formula, ...]) -> "_Sizes":
        numbers = tuple(dim.evaluate(self.variables) for dim in shape)
        size = prod(shape, start=const(ITEM_BYTES[dtype]))
        count = size.evaluate(self.variables)
        if not self.symbolic:
            return numbers, None, count, None, None
        return numbers, tuple(map(str, shape)), count, str(size), size.degree("seq")


_Sizes = tuple[tuple[int, ...], tuple[str, ...] | None, int, str | None, int | None]
"""(shape, shape_expr, bytes, bytes_expr, seq_degree) of a tensor."""
