"""Stamping a traced stack to its depth, against the same program written out block by block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from tracer.formula import Formula, const, var
from tracer.graph import Edge, GraphError, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.instantiate import Stack, instantiate, settled
from tracer.program import Node, Program, Value, build_graph
from tracer.stacks import place_of

META = TraceMeta(
    model="hand",
    phase="prefill",
    batch=2,
    seq=5,
    past=0,
    dtype="float32",
    attn="eager",
    logits="all",
    symbolic=("batch", "seq"),
    parameters=0,
)

BATCH, SEQ = var("batch"), var("seq")
HIDDEN, HEADS, HEAD, VOCABULARY = 8, 2, 4, 20
STREAM = (BATCH, SEQ, const(HIDDEN))

# --- a program of n blocks ------------------------------------------------------------------------


@dataclass
class Writer:
    """Writes a program of some ``blocks`` of a model, with the parameters of all ``depth`` blocks.

    With ``range(depth)`` it is the whole model, with ``Stack.traced`` what a shortened trace gives.
    """

    blocks: Sequence[int]
    depth: int
    path: str = "model.layers"
    program: Program = field(default_factory=Program)
    names: dict[str, int] = field(default_factory=dict)
    stream: int = -1
    """The residual stream so far."""
    ends: dict[int, int] = field(default_factory=dict)
    """The stream after each block."""
    pre: int = -1
    """A value made before the stack."""
    turn: int = -1
    """A constant that all blocks read."""

    def state(
        self, name: str, *shape: int, role: Role = Role.PARAMETER, alias: str | None = None
    ) -> None:
        owner = None if alias is None else self.names[alias]
        value = Value("float32", tuple(map(const, shape)), name, role, owner)
        self.names[name] = self.program.add(value)

    def call(
        self,
        target: str,
        *args: int | str,
        shape: tuple[Formula | int, ...] = STREAM,
        path: str = "",
        kind: str = "Model",
        view: bool = False,
        outs: int = 1,
        dtype: str = "float32",
    ) -> list[int]:
        """Add a node; the values that it makes. A view's values belong to its first argument's."""
        read = [self.names[a] if isinstance(a, str) else a for a in args]
        owner = None
        if view:
            first = self.program.values[read[0]]
            owner = read[0] if first.alias_of is None else first.alias_of
        sizes = tuple(s if isinstance(s, Formula) else const(s) for s in shape)
        made = [self.program.add(Value(dtype, sizes, alias_of=owner)) for _ in range(outs)]
        self.program.nodes.append(Node(target, tuple(read), tuple(made), path, kind, view))
        return made

    def before(self) -> None:
        self.state("model.embed.weight", VOCABULARY, HIDDEN)
        for layer in range(self.depth):
            prefix = f"{self.path}.{layer}"
            self.state(f"{prefix}.norm.weight", HIDDEN)
            self.state(f"{prefix}.attn.qkv.weight", 3 * HIDDEN, HIDDEN)
            self.state(f"{prefix}.attn.qkv.bias", 3 * HIDDEN)
            self.state(f"{prefix}.attn.out.weight", HIDDEN, HIDDEN)
            # tied within the block: a second name of the same memory
            self.state(f"{prefix}.scale", HIDDEN, alias=f"{prefix}.norm.weight")
        self.state("model.norm.weight", HIDDEN)
        self.state("head.weight", VOCABULARY, HIDDEN, alias="model.embed.weight")
        self.state("model.rotary.inv_freq", HEAD, role=Role.BUFFER)
        ids = self.program.add(Value("int64", (BATCH, SEQ), "input_ids", Role.INPUT))
        self.program.nodes.append(Node("input", (), (ids,), "", ""))
        (self.turn,) = self.call(
            "aten.cos.default", "model.rotary.inv_freq", shape=(HEAD,), path="model.rotary"
        )
        (self.stream,) = self.call(
            "aten.embedding.default", "model.embed.weight", ids, path="model.embed"
        )
        self.pre = self.stream

    def block(self, layer: int) -> None:
        """Attention: a fused projection, views, a multi-output split and topk, a constant."""
        place = f"{self.path}.{layer}"
        attn = {"path": f"{place}.attn", "kind": "Attention"}
        heads = (BATCH, SEQ, HEADS, HEAD)
        turned = (BATCH, HEADS, HEAD, SEQ)
        square = (BATCH, HEADS, SEQ, SEQ)
        (x,) = self.call(
            "aten.layer_norm.default",
            self.stream,
            f"{place}.norm.weight",
            path=f"{place}.norm",
            kind="Norm",
        )
        (qkv,) = self.call(
            "aten.linear.default",
            x,
            f"{place}.attn.qkv.weight",
            f"{place}.attn.qkv.bias",
            shape=(BATCH, SEQ, 3 * HIDDEN),
            path=f"{place}.attn.qkv",
            kind="Linear",
        )
        q, k, v = self.call(
            "aten.split.Tensor", qkv, outs=3, shape=(BATCH, SEQ, HIDDEN), view=True, **attn
        )
        q, k, v = (
            self.call("aten.view.default", t, shape=heads, view=True, **attn)[0] for t in (q, k, v)
        )
        (q,) = self.call("aten.mul.Tensor", q, self.turn, shape=heads, **attn)
        (q,) = self.call("aten.transpose.int", q, shape=square[:2] + heads[1::2], view=True, **attn)
        (k,) = self.call("aten.permute.default", k, shape=turned, view=True, **attn)
        (v,) = self.call("aten.transpose.int", v, shape=square[:2] + heads[1::2], view=True, **attn)
        (s,) = self.call("aten.matmul.default", q, k, shape=square, **attn)
        (p,) = self.call("aten.softmax.int", s, shape=square, **attn)
        (o,) = self.call("aten.matmul.default", p, v, shape=square[:2] + heads[1::2], **attn)
        (o,) = self.call("aten.transpose.int", o, shape=heads, view=True, **attn)
        (o,) = self.call("aten.reshape.default", o, **attn)
        top, _ = self.call("aten.topk.default", o, outs=2, **attn)
        (o,) = self.call(
            "aten.linear.default",
            top,
            f"{place}.attn.out.weight",
            path=f"{place}.attn.out",
            kind="Linear",
        )
        (self.stream,) = self.call("aten.add.Tensor", self.stream, o, path=place, kind="Block")

    def after(self) -> None:
        (x,) = self.call(
            "aten.layer_norm.default", self.stream, "model.norm.weight", path="model.norm"
        )
        (logits,) = self.call(
            "aten.linear.default", x, "head.weight", shape=(BATCH, SEQ, VOCABULARY), path="head"
        )
        self.program.nodes.append(Node("output", (logits,), (), "", ""))

    def write(self) -> Program:
        self.before()
        for layer in self.blocks:
            self.block(layer)
            self.ends[layer] = self.stream
        self.after()
        return self.program


class BetweenBlocks(Writer):
    """The model itself, not a block, scales the stream after every block."""

    def block(self, layer: int) -> None:
        super().block(layer)
        (self.stream,) = self.call("aten.mul.Tensor", self.stream, self.pre)


class SecondStream(Writer):
    """Each block reads two values of the block before it: the stream and its attention."""

    side = -1

    def block(self, layer: int) -> None:
        before = self.pre if layer == 0 else self.side
        super().block(layer)
        place = f"{self.path}.{layer}"
        (self.side,) = self.call("aten.mul.Tensor", before, f"{place}.norm.weight", path=place)
        (self.stream,) = self.call("aten.add.Tensor", self.stream, self.side, path=place)


class ViewOfTheBlockBefore(Writer):
    """Each block starts with a view of what the block before it made."""

    def block(self, layer: int) -> None:
        place = f"{self.path}.{layer}"
        (self.stream,) = self.call("aten.view.default", self.stream, view=True, path=place)
        super().block(layer)


class TwoOutputs(Writer):
    """Two results, one of them from before the stack."""

    def after(self) -> None:
        super().after()
        last = self.program.nodes.pop()
        self.program.nodes.append(Node("output", (*last.args, self.pre), (), "", ""))


class AtTheTop(Writer):
    """The stack is no part of a parent module."""

    def __init__(self, blocks: Sequence[int], depth: int) -> None:
        super().__init__(blocks, depth, path="h")


SOUND: list[type[Writer]] = [
    Writer,
    BetweenBlocks,
    SecondStream,
    ViewOfTheBlockBefore,
    TwoOutputs,
    AtTheTop,
]


def alike(depth: int, path: str = "model.layers") -> Stack:
    """A stack of blocks of one kind."""
    return Stack(path, (0,) * depth)


SEVEN = alike(7)
LAST = 6
assert SEVEN.traced == (0, 1, 2, LAST)


def instantiated(writer: type[Writer], stack: Stack) -> Program | None:
    """A model from a trace of a few of its blocks."""
    traced = writer(stack.traced, stack.depth)
    return instantiate(traced.write(), replace(stack, path=traced.path))


def assert_same(found: OpGraph, expected: OpGraph) -> None:
    for part in ("ops", "tensors", "edges"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            assert one == other


@pytest.mark.parametrize("depth", [4, 5, 6, 7, 12])
@pytest.mark.parametrize("writer", SOUND, ids=lambda w: w.__name__)
def test_a_instantiated_program_is_the_one_written_out(writer, depth):
    program = instantiated(writer, alike(depth))
    assert program is not None
    assert_same(build_graph(program, META), build_graph(writer(range(depth), depth).write(), META))


def test_the_program_that_is_instantiated_stays_as_it_was():
    traced = Writer(SEVEN.traced, 7)
    program = traced.write()
    values, nodes = list(program.values), list(program.nodes)
    assert instantiate(program, SEVEN) is not None
    assert (program.values, program.nodes) == (values, nodes)


@pytest.fixture(scope="module")
def seven() -> OpGraph:
    program = instantiated(Writer, SEVEN)
    assert program is not None
    return build_graph(program, META)


def test_every_block_has_its_own_ops_in_order(seven):
    layers = [op.layer for op in seven.ops if op.layer is not None]
    each = len(layers) // 7
    assert layers == [layer for layer in range(7) for _ in range(each)]
    paths = [op.module_path for op in seven.ops if op.layer is not None]
    assert all(path.startswith(f"model.layers.{n}") for path, n in zip(paths, layers, strict=True))


def test_every_block_reads_its_own_parameters_also_those_that_were_not_traced(seven):
    for op in seven.ops:
        for tensor in seven.inputs(op.id):
            if tensor.op is None and (layer := place_of(tensor.name)[1]) is not None:
                assert layer == op.layer
    read = {t.name for op in seven.ops for t in seven.inputs(op.id) if t.op is None}
    for layer in range(7):
        for name in ("norm.weight", "attn.qkv.weight", "attn.qkv.bias", "attn.out.weight"):
            assert f"model.layers.{layer}.{name}" in read


def test_tied_parameters_are_aliases(seven):
    by_name = {t.name: t for t in seven.tensors if t.op is None}
    owner = by_name["model.embed.weight"]
    assert owner.alias_of is None
    assert by_name["head.weight"].alias_of == owner.id
    assert seven.storage(by_name["head.weight"]) is owner
    for layer in range(7):
        tied, own = (by_name[f"model.layers.{layer}.{n}"] for n in ("scale", "norm.weight"))
        assert (tied.alias_of, own.alias_of) == (own.id, None)


def test_views_are_aliases_of_what_their_own_block_made(seven):
    views = [op for op in seven.ops if op.is_view and op.layer is not None]
    # split, three views, two transposes and a permute of q, k and v, one transpose of the result
    assert len(views) == 7 * 8
    for op in views:
        for tensor in seven.outputs(op.id):
            storage = seven.storage(tensor)
            assert storage.op is not None
            assert not seven.ops[storage.op].is_view
            assert seven.ops[storage.op].layer == op.layer


def test_every_block_reads_the_one_constant(seven):
    (constant,) = [op for op in seven.ops if op.is_constant]
    assert (constant.name, constant.kind) == ("cos_0", Kind.CONSTANT)
    readers = [r for t in seven.outputs(constant.id) for r in seven.readers(t.id)]
    assert [seven.ops[r].layer for r in readers] == list(range(7))


# --- where instantiating would be wrong ----------------------------------------------------------------


def layer_of_node(program: Program, node: Node) -> int | None:
    return SEVEN.layer(node.path)


def in_block(program: Program, layer: int, target: str) -> int:
    """Position of the first node of a block with the given target."""
    return next(
        i
        for i, node in enumerate(program.nodes)
        if node.target == target and layer_of_node(program, node) == layer
    )


Change = Callable[[Writer], None]


def change_node(layer: int, of: str, /, **fields: object) -> Change:
    def change(writer: Writer) -> None:
        at = in_block(writer.program, layer, of)
        writer.program.nodes[at] = replace(writer.program.nodes[at], **fields)

    return change


def change_value(layer: int, target: str, **fields: object) -> Change:
    """Change what a node makes, as another shape or dtype."""

    def change(writer: Writer) -> None:
        node = writer.program.nodes[in_block(writer.program, layer, target)]
        for out in node.outs:
            writer.program.values[out] = replace(writer.program.values[out], **fields)

    return change


def read_instead(
    layer: int, target: str, argument: int, find: Callable[[Writer], int | str]
) -> Change:
    """Let a node read another value."""

    def change(writer: Writer) -> None:
        nodes = writer.program.nodes
        at = in_block(writer.program, layer, target)
        args = list(nodes[at].args)
        found = find(writer)
        args[argument] = writer.names[found] if isinstance(found, str) else found
        nodes[at] = replace(nodes[at], args=tuple(args))

    return change


def one_more_op(layer: int) -> Change:
    """Another op at the end of a block, its result unread."""

    def change(writer: Writer) -> None:
        nodes = writer.program.nodes
        end = max(i for i, node in enumerate(nodes) if layer_of_node(writer.program, node) == layer)
        out = writer.program.add(Value("float32", STREAM))
        path = f"model.layers.{layer}"
        node = Node("aten.neg.default", (writer.ends[layer],), (out,), path, "Block")
        nodes.insert(end + 1, node)

    return change


def read_after(layer: int) -> Change:
    """Something after the stack reads what a block handed on."""

    def change(writer: Writer) -> None:
        at = len(writer.program.nodes) - 2
        node = writer.program.nodes[at]
        writer.program.nodes[at] = replace(node, args=(*node.args, writer.ends[layer]))

    return change


def returned(layer: int) -> Change:
    """A block's result is a result of the model."""

    def change(writer: Writer) -> None:
        node = writer.program.nodes[-1]
        writer.program.nodes[-1] = replace(node, args=(*node.args, writer.ends[layer]))

    return change


def own_alias(writer: Writer) -> None:
    """In one middle block the reshape's result lies in the memory of another value."""
    node = writer.program.nodes[in_block(writer.program, 2, "aten.reshape.default")]
    for out in node.outs:
        value = writer.program.values[out]
        writer.program.values[out] = replace(value, alias_of=writer.stream)


def swapped(first: int, second: int) -> Change:
    """Two blocks' module paths the other way round: the model runs them out of order."""

    def change(writer: Writer) -> None:
        names = {first: second, second: first}
        stack = SEVEN
        writer.program.nodes[:] = [
            replace(node, path=stack.move(node.path, names[layer]))
            if (layer := stack.layer(node.path)) in names
            else node
            for node in writer.program.nodes
        ]

    return change


def interleaved(writer: Writer) -> None:
    """The first op of block 2 runs before the last one of block 1 (nothing it reads is there)."""
    nodes = writer.program.nodes
    node = nodes.pop(in_block(writer.program, 2, "aten.layer_norm.default"))
    nodes.insert(in_block(writer.program, 1, "aten.add.Tensor"), replace(node, args=node.args[1:]))


def again(writer: Writer) -> None:
    """Block 0 runs a second time after the last one."""
    nodes = writer.program.nodes
    out = writer.program.add(Value("float32", STREAM))
    node = Node("aten.neg.default", (writer.stream,), (out,), "model.layers.0", "Block")
    nodes.insert(len(nodes) - 3, node)


def without(layer: int) -> Change:
    """A block that leaves no op in the trace."""

    def change(writer: Writer) -> None:
        nodes = writer.program.nodes
        nodes[:] = [n for n in nodes if layer_of_node(writer.program, n) != layer]

    return change


def inner(layer: int, target: str) -> Callable[[Writer], int]:
    """The (first) value that a node of a block makes."""
    return lambda w: w.program.nodes[in_block(w.program, layer, target)].outs[0]


ADD, LINEAR, MATMUL = "aten.add.Tensor", "aten.linear.default", "aten.matmul.default"

UNSOUND: dict[str, Change] = {
    # the two middle blocks are not the same program
    **{
        f"{what} in block {layer}": change
        for layer in (1, 2)
        for what, change in {
            "another shape": change_value(layer, MATMUL, shape=(BATCH, const(HEADS), SEQ, SEQ + 1)),
            "a shape of seq^2": change_value(layer, LINEAR, shape=(BATCH, SEQ * SEQ)),
            "another dtype": change_value(layer, MATMUL, dtype="bfloat16"),
            "another target": change_node(layer, ADD, target="aten.sub.Tensor"),
            "another module": change_node(layer, ADD, path=f"model.layers.{layer}.residual"),
            "another module type": change_node(layer, ADD, module_type="OtherBlock"),
            "a copy for a view": change_node(layer, "aten.permute.default", is_view=False),
            "swapped arguments": change_node(layer, MATMUL, args=(0, 1)),
            "one argument more": change_node(layer, ADD, args=(0, 1, 2)),
            "one op more": one_more_op(layer),
            "the stream from before the stack": read_instead(layer, ADD, 0, lambda w: w.pre),
            "an inner value of the block before": read_instead(
                layer, ADD, 0, inner(layer - 1, LINEAR)
            ),
            "a parameter of block 0": read_instead(
                layer, LINEAR, 1, lambda w: "model.layers.0.attn.qkv.weight"
            ),
            "a parameter of the next block": read_instead(
                layer, LINEAR, 1, lambda w, n=layer + 1: f"model.layers.{n}.attn.qkv.weight"
            ),
            "another of its own parameters": read_instead(
                layer, LINEAR, 2, lambda w, n=layer: f"model.layers.{n}.norm.weight"
            ),
            "a parameter outside the stack": read_instead(
                layer, LINEAR, 2, lambda w: "model.norm.weight"
            ),
        }.items()
    },
    "a middle result that lies elsewhere": own_alias,
    # the last block is another one than those in the middle
    "one op more in the last block": one_more_op(LAST),
    "another target in the last block": change_node(LAST, ADD, target="aten.sub.Tensor"),
    "another shape in the last block": change_value(LAST, LINEAR, shape=(BATCH, SEQ)),
    "the last block reads from before the stack": read_instead(LAST, ADD, 0, lambda w: w.pre),
    # something reaches further back than one block
    "the last block reads two blocks back": read_instead(LAST, ADD, 0, lambda w: w.ends[1]),
    "the last block reads block 0": read_instead(LAST, ADD, 0, lambda w: w.ends[0]),
    "a middle block reads two blocks back": read_instead(2, ADD, 0, lambda w: w.ends[0]),
    # something after the stack reads an earlier block: in 7 blocks, which one would it be?
    **{f"block {n} is read after the stack": read_after(n) for n in (0, 1, 2)},
    **{f"block {n} is a result": returned(n) for n in (0, 1, 2)},
    # the blocks do not follow one another
    "blocks 1 and 2 swapped": swapped(1, 2),
    "the first and the last block swapped": swapped(0, LAST),
    "interleaved blocks": interleaved,
    "block 0 again after the last": again,
    **{f"no block {n}": without(n) for n in SEVEN.traced},
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND.keys())
def test_what_cannot_be_repeated_is_not_instantiated(change):
    traced = Writer(SEVEN.traced, 7)
    program = traced.write()
    assert instantiate(program, SEVEN) is not None
    change(traced)
    assert instantiate(program, SEVEN) is None


def test_what_the_first_block_makes_may_be_read_by_all():
    """As a position bias is, that the first block computes and the others take over."""
    few, all_of_them = Writer(SEVEN.traced, 7), Writer(range(7), 7)
    programs = few.write(), all_of_them.write()
    for writer, layers in ((few, SEVEN.traced), (all_of_them, range(7))):
        for layer in layers[1:]:
            read_instead(layer, ADD, 0, inner(0, LINEAR))(writer)
    instantiated = instantiate(programs[0], SEVEN)
    assert instantiated is not None
    assert_same(build_graph(instantiated, META), build_graph(programs[1], META))


@pytest.mark.parametrize("path", ["layers", "model", "model.layer", "model.layers.0", "encoder"])
def test_another_path_is_no_stack_of_the_program(path):
    assert instantiate(Writer(SEVEN.traced, 7).write(), alike(7, path)) is None


@pytest.mark.parametrize("blocks", [(0,), (0, 6), (0, 1, 6), (0, 1, 2), (0, 1, 2, 5, 6)])
def test_only_a_trace_of_the_wanted_blocks_can_be_instantiated(blocks):
    assert instantiate(Writer(blocks, 7).write(), SEVEN) is None


def by_period(period: int, at: int) -> type[Writer]:
    """Models whose every ``period``-th block is another one, as with sliding windows."""

    class Periodic(Writer):
        def block(self, layer: int) -> None:
            super().block(layer)
            if layer % period == at:
                place = f"{self.path}.{layer}"
                (self.stream,) = self.call("aten.tanh.default", self.stream, path=place)

    return Periodic


@pytest.mark.parametrize("depth", [5, 6, 7, 12])
@pytest.mark.parametrize("period", [2, 3, 4])
def test_blocks_that_are_called_alike_and_are_not_show_in_the_trace(period, depth):
    """Where the odd one is the only one of the traced blocks, or is not among them, it cannot."""
    for at in range(period):
        odd = {layer % period == at for layer in alike(depth).traced[1:]}
        if len(odd) == 2:
            assert instantiated(by_period(period, at), alike(depth)) is None


# --- several kinds of blocks ----------------------------------------------------------------------


def of_kinds(kinds: Sequence[int], base: type[Writer] = Writer) -> type[Writer]:
    """Models whose blocks of kind n end with n more ops and one more parameter."""

    class Kinds(base):
        def before(self) -> None:
            super().before()
            for layer, kind in enumerate(kinds):
                if kind:
                    self.state(f"{self.path}.{layer}.scale_{kind}", HIDDEN)

        def block(self, layer: int) -> None:
            super().block(layer)
            place = f"{self.path}.{layer}"
            for _ in range(kinds[layer]):
                name = f"{place}.scale_{kinds[layer]}"
                (self.stream,) = self.call("aten.mul.Tensor", self.stream, name, path=place)

    return Kinds


KINDS = {
    "alternating": (0, 1) * 5,
    "every sixth": (0, 0, 0, 0, 0, 1) * 3,
    "the first three": (0, 0, 0) + (1,) * 8,
    "the first": (1,) + (0,) * 8,
    "the last": (0,) * 8 + (1,),
    "one in the middle": (0,) * 5 + (1,) + (0,) * 5,
    "three kinds": (0, 1, 2, 1) * 4,
    "in no order": (0, 1, 1, 0, 2, 0, 0, 1, 2, 2, 1, 0, 0, 1),
}


@pytest.mark.parametrize("base", [Writer, BetweenBlocks, ViewOfTheBlockBefore])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_blocks_of_several_kinds_are_instantiated_each_by_its_own(kinds, base):
    stack = Stack("model.layers", kinds)
    assert len(stack.traced) < stack.depth
    assert {0, stack.depth - 1} <= set(stack.traced)
    writer = of_kinds(kinds, base)
    program = instantiated(writer, stack)
    assert program is not None
    assert program.repeated == stack.depth - len(stack.traced)
    whole = writer(range(len(kinds)), len(kinds)).write()
    assert_same(build_graph(program, META), build_graph(whole, META))


@pytest.mark.parametrize("base", [Writer, BetweenBlocks])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_an_end_that_does_what_its_kind_does_shows_it(kinds, base):
    """What a block also reads from before the stack may be what is handed on, or not: where the
    first one does, it shows nothing."""
    writer, stack = of_kinds(kinds, base), Stack("model.layers", kinds)
    whole = writer(range(len(kinds)), len(kinds)).write()
    found = settled(whole, stack)
    assert found is not None
    if base is Writer:
        others = tuple(kinds.count(kinds[end]) > 1 for end in (0, -1))
        assert (found.first_shows, found.last_shows) == others
        assert len(found.traced) < len(stack.traced)
    else:
        assert not found.first_shows
    program = instantiated(writer, found)
    assert program is not None
    assert_same(build_graph(program, META), build_graph(whole, META))


END = (True, True)


@pytest.mark.parametrize(
    ("change", "shows"),
    {
        "nothing": (lambda writer: None, END),
        "the first reads an input once more": (read_instead(0, ADD, 1, lambda w: w.pre), (0, 1)),
        "all read the first": (
            lambda w: [read_instead(n, ADD, 0, inner(0, LINEAR))(w) for n in range(1, 7)],
            (0, 0),
        ),
        "another target in the first": (change_node(0, ADD, target="aten.sub.Tensor"), (0, 1)),
    }.values(),
)
def test_an_end_that_does_something_else_shows_nothing(change, shows):
    writer = Writer(range(7), 7)
    program = writer.write()
    change(writer)
    found = settled(program, alike(7))
    assert found is not None
    assert (found.first_shows, found.last_shows) == shows


@pytest.mark.parametrize(
    "change",
    [
        change_node(0, ADD, target="aten.sub.Tensor"),
        change_node(6, ADD, target="aten.sub.Tensor"),
        read_instead(6, ADD, 0, inner(0, LINEAR)),
        read_after(0),
    ],
)
def test_ends_that_export_unlike_are_not_instantiated(change):
    stack = replace(alike(7), first_shows=True, last_shows=True)
    assert stack.traced == (0, 6)
    writer = Writer(stack.traced, 7)
    program = writer.write()
    assert instantiate(program, stack) is not None
    change(writer)
    assert instantiate(program, stack) is None


def test_what_kinds_hand_on_is_told_apart_by_nothing_but_its_order():
    """Two values that blocks of two kinds hand on could be mixed up."""
    kinds = (0, 1) * 5
    assert instantiated(of_kinds((0,) * 10, SecondStream), alike(10)) is not None
    assert instantiated(of_kinds(kinds, SecondStream), Stack("model.layers", kinds)) is None


def test_blocks_of_unlike_kinds_taken_for_one_are_noticed():
    kinds = (0, 1) * 5
    assert instantiated(of_kinds(kinds), alike(10)) is None


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "layer", "moved"),
    [
        ("model.layers.2", 2, "model.layers.9"),
        ("model.layers.2.mlp.3.up", 2, "model.layers.9.mlp.3.up"),
        ("model.layers.12.norm", 12, "model.layers.9.norm"),
        ("model.layers", None, "model.layers"),
        ("model.layers.norm", None, "model.layers.norm"),
        ("model.layers2.1", None, "model.layers2.1"),
        ("decoder.model.layers.1", None, "decoder.model.layers.1"),
        ("head", None, "head"),
        ("", None, ""),
    ],
)
def test_places_in_a_stack(path, layer, moved):
    stack = alike(16)
    assert stack.layer(path) == layer
    assert stack.move(path, 9) == moved


# --- what is an op graph --------------------------------------------------------------------------


def op(id: int, kind: Kind = Kind.ELEMENTWISE) -> Op:
    return Op(id, f"op_{id}", "aten.neg.default", kind, "", "", None, None, False, False, "float32")


def tensor(id: int, made_by: int | None) -> Tensor:
    return Tensor(
        id, made_by, f"t_{id}", Role.ACTIVATION, None, "float32", (3,), ("3",), 12, "12", 0, None
    )


OPS = [op(0), op(1), op(2)]
TENSORS = [tensor(0, None), tensor(1, 0), tensor(2, 1)]
EDGES = [Edge(None, 0, 0, 0), Edge(0, 1, 1, 0), Edge(1, 2, 2, 0), Edge(0, 2, 1, 1)]


def test_a_sound_graph_answers_who_reads_what():
    graph = OpGraph(META, OPS, TENSORS, EDGES)
    assert [[t.id for t in graph.inputs(n)] for n in range(3)] == [[0], [1], [2, 1]]
    assert [[t.id for t in graph.outputs(n)] for n in range(3)] == [[1], [2], []]
    assert [graph.readers(n) for n in range(3)] == [(0,), (1, 2), (2,)]
    assert [graph.crosses(t) for t in graph.tensors] == [False, True, True]
    assert sorted(graph.nx.edges(keys=True)) == [(0, 1, 0), (0, 2, 1), (1, 2, 0)]


def broken() -> Iterator[tuple[str, list[Op], list[Tensor], list[Edge], str]]:
    yield "an op id twice", [op(0), op(0), op(2)], TENSORS, EDGES, "op ids"
    yield "op ids from 1", [op(1), op(2), op(3)], TENSORS, EDGES, "op ids"
    yield "op ids out of order", [op(0), op(2), op(1)], TENSORS, EDGES, "op ids"
    swapped = [TENSORS[1], TENSORS[0], TENSORS[2]]
    yield "tensor ids out of order", OPS, swapped, EDGES, "tensor ids"
    yield "a tensor id left out", OPS, [*TENSORS[:2], tensor(3, 1)], EDGES[:2], "tensor ids"
    yield "a tensor of no op", OPS, [*TENSORS, tensor(3, 3)], EDGES, "op 3, which is missing"
    yield "a tensor of op -1", OPS, [*TENSORS, tensor(3, -1)], EDGES, "op -1, which is missing"
    yield "no such tensor", OPS, TENSORS, [*EDGES, Edge(1, 2, 3, 2)], "missing"
    yield "tensor -1", OPS, TENSORS, [*EDGES, Edge(1, 2, -1, 2)], "missing"
    yield "no such reader", OPS, TENSORS, [*EDGES, Edge(1, 3, 2, 0)], "missing"
    yield "reader -1", OPS, TENSORS, [*EDGES, Edge(1, -1, 2, 0)], "missing"
    yield "another producer", OPS, TENSORS, [Edge(1, 2, 1, 0)], "producer"
    yield "a producer of a parameter", OPS, TENSORS, [Edge(0, 1, 0, 0)], "producer"
    yield "no producer of an activation", OPS, TENSORS, [Edge(None, 1, 1, 0)], "producer"
    yield "backwards", OPS, TENSORS, [Edge(1, 0, 2, 0)], "not before it"
    yield "an op that reads itself", OPS, TENSORS, [Edge(1, 1, 2, 0)], "not before it"
    yield "ops left out", OPS[:1], TENSORS, EDGES, "missing"


@pytest.mark.parametrize(
    ("ops", "tensors", "edges", "says"), [pytest.param(*rest, id=name) for name, *rest in broken()]
)
def test_a_broken_graph_is_refused(ops, tensors, edges, says):
    with pytest.raises(GraphError, match=says):
        OpGraph(META, ops, tensors, edges)


def test_an_alias_of_a_missing_tensor_is_refused():
    for alias in (3, -1):
        tensors = [*TENSORS[:2], replace(TENSORS[2], alias_of=alias)]
        with pytest.raises(GraphError, match="tensor 2"):
            OpGraph(META, OPS, tensors, EDGES)


@pytest.mark.parametrize(
    "ops",
    [OPS[:2], [*OPS, op(3)], [op(0), op(2), op(1)], [op(1), op(2), op(3)]],
    ids=["one too few", "one too many", "out of order", "from 1"],
)
def test_other_ops_must_be_as_many_and_at_their_places(ops):
    with pytest.raises(GraphError, match="op ids"):
        OpGraph(META, OPS, TENSORS, EDGES).with_ops(ops)


def test_a_changed_graph_answers_as_one_made_anew():
    graph = OpGraph(META, OPS, TENSORS, EDGES)
    labelled = [replace(t, label="q") if t.id in (0, 1) else t for t in TENSORS]
    views = [replace(o, is_view=True) for o in OPS]
    meta = replace(META, seq=META.seq + 1)
    for was_asked in (False, True):
        if was_asked:  # what was worked out for one must not be handed on where it is another
            assert graph.state_ops == frozenset()
            assert [graph.flowing(n) for n in range(3)]
        for made, wanted in (
            (graph.with_labels({0: "q", 1: "q"}), OpGraph(META, OPS, labelled, EDGES)),
            (graph.with_ops(views), OpGraph(META, views, TENSORS, EDGES)),
            (graph.with_meta(meta), OpGraph(meta, OPS, TENSORS, EDGES)),
        ):
            assert_same(made, wanted)
            assert made.meta == wanted.meta
            for n in range(3):
                assert made.inputs(n) == wanted.inputs(n)
                assert made.outputs(n) == wanted.outputs(n)
                assert made.readers(n) == wanted.readers(n)
                assert made.flowing(n) == wanted.flowing(n)
