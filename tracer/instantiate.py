"""Repeated blocks: the program of a whole model from one that was traced with a few of its blocks.

A model's blocks are of one or more kinds (windowed and global attention, dense and expert layers).
The first and the last block are traced, and one of each kind that these do not show; two of a kind
where all are of one. Those of a kind must be the same program (targets, shapes, where each argument
comes from): then so are the others.

The first block reads from before the stack what others read of the block before them, and what the
last one makes is read after the stack. So they show what others of their kind do only where it is
certain which value that is: ``settled`` finds that in a run of all blocks, where the first or the
last does step by step what another of its kind does, with that one value in its place. In a trace,
the value is the only one of that shape that the first block is given, and the only one of the last
that is read after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from tracer.formula import Formula
from tracer.graph import Role
from tracer.program import Node, Program, Value


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of blocks that the model runs one after the other."""

    path: str
    """Module path of the list (``model.layers``)."""
    kinds: tuple[int, ...]
    """The kind of each block: blocks of one kind do not differ but in their index."""
    state: str = ""
    """What the names of its blocks' cached state begin with (``cache``); empty without any."""
    first_shows: bool = False
    """Whether the first block is known to do what others of its kind do; see ``settled``."""
    last_shows: bool = False
    """Whether the last one is."""

    @property
    def depth(self) -> int:
        """Blocks in the whole model."""
        return len(self.kinds)

    @property
    def traced(self) -> tuple[int, ...]:
        """The blocks to trace: the first, the last, and one of each kind that neither shows.

        Where all between those are of one kind, two of it are traced that can be compared. One is
        then in the middle, and even where the other is odd, so that code that looks at a block's
        index shows.
        """
        inner = range(1, self.depth - 1)
        kinds = {self.kinds[layer]: layer for layer in reversed(inner)}
        ends = [0] * self.first_shows + [self.depth - 1] * self.last_shows
        shown = [self.kinds[layer] for layer in ends]
        chosen = [layer for kind, layer in kinds.items() if kind not in shown]
        compared = chosen + [layer for layer in ends if self.kinds[layer] in kinds]
        if len(kinds) == 1 and len(compared) < 2:
            one, middle = compared[0], self.depth // 2
            others = (layer for layer in inner if layer != one)
            chosen += sorted(others, key=lambda i: ((i - one) % 2 == 0, abs(i - middle)))[:1]
        return tuple(sorted({0, self.depth - 1, *chosen}))

    def stands_alone(self, layer: int) -> bool:
        """Whether a block is traced for itself: the first, or the only one of its kind.

        What it makes may then be read by any block after it.
        """
        return layer == 0 or self.kinds.count(self.kinds[layer]) == 1

    def layer(self, path: str) -> int | None:
        """The block that a module path, a parameter's or a state's name lies in, None outside."""
        return _split(path, self.path, self.state)[1]

    def move(self, path: str, layer: int) -> str:
        """The same place in another block."""
        start, number, rest = _split(path, self.path, self.state)
        return path if number is None else f"{start}{layer}{rest}"


@lru_cache(maxsize=2**16)
def _split(path: str, *lists: str) -> tuple[str, int | None, str]:
    """A path in a block of one of the ``lists``: up to the block's number, that, and the rest."""
    for start in (f"{name}." for name in lists if name):
        number, dot, rest = path.removeprefix(start).partition(".")
        if path.startswith(start) and number.isdigit():
            return start, int(number), dot + rest
    return path, None, ""


Ref = tuple[str, int | str]
"""Where a block finds an argument: ``here`` (the k-th value made in the block), ``previous`` (what
the block before hands on), ``block 3`` (the k-th value made in that block, which hands it to blocks
further on), ``own`` (its parameters), ``fixed`` (made before the stack), or ``far`` (anywhere
else)."""


class _BlockOp(NamedTuple):
    """A node of a block with its arguments as refs: equal for two blocks that do the same."""

    target: str
    path: str
    module_type: str
    is_view: bool
    extent: Formula | None
    arguments: tuple[tuple[str, str], ...]
    draws: int
    is_identity: bool
    in_block: bool
    """False for what the model itself does between or after its blocks."""
    args: tuple[Ref, ...]
    outs: tuple[tuple[Value, Ref | None], ...]

    @property
    def refs(self) -> list[Ref]:
        return [*self.args, *[owner for _, owner in self.outs if owner is not None]]


@dataclass(frozen=True, slots=True)
class _TracedBlock:
    """A traced block: its steps, and the values in it that the block after it reads."""

    steps: tuple[_BlockOp, ...]
    handed_on: tuple[int, ...]

    @property
    def inside(self) -> tuple[_BlockOp, ...]:
        return tuple(step for step in self.steps if step.in_block)

    @property
    def until_its_end(self) -> tuple[_BlockOp, ...]:
        """Its steps up to the last one inside."""
        return self.steps[: 1 + max(i for i, step in enumerate(self.steps) if step.in_block)]


def instantiate(program: Program, stack: Stack) -> Program | None:
    """The program of the whole model, from one traced with the blocks ``stack.traced``.

    None when the repetition cannot be shown to be right (two blocks of a kind differ, or a block
    reads something further back than the block before it): then trace the model whole.
    ``program.values`` must hold the parameters of every block, also of those not traced.
    """
    read = _read(program, stack, stack.traced)
    if read is None:
        return None
    bounds, blocks = read
    by_kind = _by_kind(program, stack, blocks)
    if by_kind is None:
        return None
    untraced = stack.depth - len(stack.traced)
    result = replace(
        program,
        values=list(program.values),
        nodes=list(program.nodes[: bounds[1]]),
        repeated=program.repeated + untraced,
    )
    parameters = {
        value.name: i if value.alias_of is None else value.alias_of
        for i, value in enumerate(program.values)
        if value.name
    }
    first = [out for node in program.nodes[bounds[0] : bounds[1]] for out in node.outs]
    previous = [first[k] for k in blocks[0].handed_on]
    where = {"block 0": first}

    numbers = {stack.move(v.name, 0): v for v in program.values if v.role is Role.CONSTANT}

    def value_of(ref: Ref, layer: int) -> int:
        place, what = ref
        if isinstance(what, str):
            name = stack.move(what, layer)
            if name not in parameters:  # the code of a traced block made it of Python's numbers
                parameters[name] = result.add(replace(numbers[what], name=name))
            return parameters[name]
        return where[place][what] if place in where else what

    for layer in range(1, stack.depth):
        block = blocks[layer] if layer == stack.depth - 1 else by_kind[stack.kinds[layer]]
        here: list[int] = []
        where |= {"here": here, "previous": previous, f"block {layer}": here}
        for step in block.steps:
            args = tuple([value_of(ref, layer) for ref in step.args])
            start = len(here)
            for value, owner in step.outs:
                if owner is not None:
                    value = value.view_of(value_of(owner, layer))
                here.append(result.add(value))
            path = stack.move(step.path, layer)
            result.nodes.append(
                Node(
                    step.target,
                    args,
                    tuple(here[start:]),
                    path,
                    step.module_type,
                    step.is_view,
                    step.extent,
                    step.is_identity,
                    arguments=step.arguments,
                    draws=step.draws,
                )
            )
        previous = [here[k] for k in block.handed_on]
    return result


def settled(program: Program, stack: Stack) -> Stack | None:
    """The stack as a whole program shows it: which of its ends do what others of their kind do.

    None where the blocks of a kind are not the same. What is read further back than from the block
    before cannot be told apart in a trace of two blocks: then neither end shows anything.
    """
    read = _read(program, stack, range(stack.depth))
    if read is None:
        return None
    blocks = read[1]
    inner = {stack.kinds[layer]: blocks[layer] for layer in range(1, stack.depth - 1)}
    refs = {place for block in blocks.values() for step in block.steps for place, _ in step.refs}
    near = not any(place.startswith("block ") for place in refs)

    def shows(layer: int, shown: _TracedBlock | None) -> bool:
        return near and shown is not None and inner.get(stack.kinds[layer]) == shown

    return replace(
        stack,
        first_shows=shows(0, _first_as_inner(program, stack, blocks)),
        last_shows=shows(stack.depth - 1, _last_as_inner(stack, blocks)),
    )


def _read(
    program: Program, stack: Stack, layers: Sequence[int]
) -> tuple[list[int], dict[int, _TracedBlock]] | None:
    """Where the given blocks start, and the blocks; None when those of a kind are not alike."""
    bounds = _bounds(program, stack, layers)
    if bounds is None:
        return None
    blocks = _blocks(program, stack, layers, bounds)
    return (bounds, blocks) if _repeats(stack, blocks) else None


def _by_kind(
    program: Program, stack: Stack, blocks: Mapping[int, _TracedBlock]
) -> dict[int, _TracedBlock] | None:
    """An inner block of each kind, as traced or as one of the ends shows it.

    None where an end does not show it after all, or shows another than was traced.
    """
    first, *between, last = blocks
    found: list[tuple[int, _TracedBlock | None]] = [
        (stack.kinds[layer], blocks[layer]) for layer in between
    ]
    kinds = {*stack.kinds[1:-1]}
    if stack.first_shows and stack.kinds[first] in kinds:
        found.append((stack.kinds[first], _first_as_inner(program, stack, blocks)))
    if stack.last_shows and stack.kinds[last] in kinds:
        found.append((stack.kinds[last], _last_as_inner(stack, blocks)))
    by_kind: dict[int, _TracedBlock] = {}
    for kind, block in found:
        if block is None or by_kind.setdefault(kind, block) != block:
            return None
    return by_kind


def _first_as_inner(
    program: Program, stack: Stack, blocks: Mapping[int, _TracedBlock]
) -> _TracedBlock | None:
    """The first block as one that reads of another what it reads from before the stack.

    None where it is not certain which value that is: where the stack hands on several, or there are
    several of that shape, or it is a view of one that views are made of.
    """
    block, handed = blocks[0], _one_handed_on(blocks)
    if handed is None:
        return None
    like = handed.dtype, handed.shape
    given = {what for step in block.steps for place, what in step.refs if place == "fixed"}
    values = {what: program.values[what] for what in given if isinstance(what, int)}
    alike = [
        what
        for what, value in values.items()
        if (value.dtype, value.shape) == like and value.role in (Role.ACTIVATION, Role.INPUT)
    ]
    if len(alike) != 1 or values[alike[0]].alias_of in given:
        return None
    return replace(block, steps=tuple(_given(step, alike[0]) for step in block.steps))


def _last_as_inner(stack: Stack, blocks: Mapping[int, _TracedBlock]) -> _TracedBlock | None:
    """The last block as one that hands on what is read after the stack; None where that is several
    values, or another than other blocks hand on."""
    block, handed = blocks[stack.depth - 1], _one_handed_on(blocks)
    inside = block.until_its_end
    after = block.steps[len(inside) :]
    made = [value for step in inside for value, _ in step.outs]
    read = {what for step in after for place, what in step.refs if place == "here"}
    out = [what for what in read if isinstance(what, int) and what < len(made)]
    if len(out) != 1 or made[out[0]] != handed:
        return None
    return _TracedBlock(inside, (out[0],))


def _one_handed_on(blocks: Mapping[int, _TracedBlock]) -> Value | None:
    """What each block but the last hands on, None for several values."""
    first = blocks[0]
    return _made(first)[first.handed_on[0]] if len(first.handed_on) == 1 else None


def _bounds(program: Program, stack: Stack, wanted: Sequence[int]) -> list[int] | None:
    """Where each block starts; None when they do not follow one another or are not those wanted."""
    layers = [stack.layer(node.path) for node in program.nodes]
    if len(wanted) < 2 or {n for n in layers if n is not None} != set(wanted):
        return None
    order = [layer for layer in layers if layer is not None]
    return [layers.index(layer) for layer in wanted] if order == sorted(order) else None


def _blocks(
    program: Program, stack: Stack, layers: Sequence[int], bounds: Sequence[int]
) -> dict[int, _TracedBlock]:
    """The blocks by layer; what follows a block, up to the next one, is part of it."""
    segments = [program.nodes[a:b] for a, b in pairwise([*bounds, len(program.nodes)])]
    home = {  # value -> the segment that makes it, and the how-manieth it is there
        out: (segment, k)
        for segment, nodes in enumerate(segments)
        for k, out in enumerate(out for node in nodes for out in node.outs)
    }
    read = [
        {v for v in _values_read(program, nodes) if v in home and home[v][0] != number}
        for number, nodes in enumerate(segments)
    ]
    shared = {
        value
        for number, values in enumerate(read)
        for value in values
        if number - home[value][0] > 1 and stack.stands_alone(layers[home[value][0]])
    }
    handed_on = [
        tuple(
            sorted(
                home[value][1]
                for value in after
                if home[value][0] == number and value not in shared
                if not program.values[value].name
            )
        )
        for number, after in enumerate([*read[1:], set()])
    ]

    def block(number: int) -> _TracedBlock:
        slots = {k: slot for slot, k in enumerate(handed_on[number - 1] if number else ())}

        def ref(value: int) -> Ref:
            made_in, k = home.get(value, (None, 0))
            if made_in == number:
                return ("here", k)
            if name := program.values[value].name:
                layer = stack.layer(name)
                if layer == layers[number]:
                    return ("own", stack.move(name, 0))
                return ("fixed" if layer is None else "far", value)
            if made_in is None:
                return ("fixed", value)
            if value in shared:
                return (f"block {layers[made_in]}", k)
            return ("previous", slots[k]) if made_in == number - 1 else ("far", k)

        steps = tuple([_step(program, stack, node, ref) for node in segments[number]])
        return _TracedBlock(steps, handed_on[number])

    return {layer: block(number) for number, layer in enumerate(layers)}


def _values_read(program: Program, nodes: Sequence[Node]) -> Iterator[int]:
    """What some nodes read, and what owns the memory of what they make."""
    values = program.values
    for node in nodes:
        yield from node.args
        for out in node.outs:
            if (owner := values[out].alias_of) is not None:
                yield owner


def _step(program: Program, stack: Stack, node: Node, ref: Callable[[int], Ref]) -> _BlockOp:
    outs: list[tuple[Value, Ref | None]] = []
    for out in node.outs:
        value = program.values[out]
        if value.alias_of is None:
            outs.append((value, None))
        else:
            outs.append((replace(value, alias_of=None), ref(value.alias_of)))
    return _BlockOp(
        node.target,
        stack.move(node.path, 0),
        node.module_type,
        node.is_view,
        node.extent,
        node.arguments,
        node.draws,
        node.is_identity,
        stack.layer(node.path) is not None,
        tuple([ref(arg) for arg in node.args]),
        tuple(outs),
    )


def _given(step: _BlockOp, value: int) -> _BlockOp:
    """The step as one that finds a value made before the stack as what the block before hands on."""

    def moved(ref: Ref) -> Ref:
        return ("previous", 0) if ref == ("fixed", value) else ref

    return step._replace(
        args=tuple(map(moved, step.args)),
        outs=tuple((made, None if owner is None else moved(owner)) for made, owner in step.outs),
    )


def _repeats(stack: Stack, blocks: dict[int, _TracedBlock]) -> bool:
    """Whether blocks of one kind are one program, and every block hands on the same."""
    *others, last = blocks
    if any(ref[0] == "far" for block in blocks.values() for s in block.steps for ref in s.refs):
        return False
    # After the stack, a block before the last one may be meant by its number or from the end.
    after = blocks[last].steps[len(blocks[last].until_its_end) :]
    if any(ref[0] not in ("here", "own", "fixed") for step in after for ref in step.refs):
        return False
    by_kind: dict[int, _TracedBlock] = {}
    for layer in others[1:]:
        if by_kind.setdefault(stack.kinds[layer], blocks[layer]) != blocks[layer]:
            return False
    model = by_kind.get(stack.kinds[last])
    if model is not None and model.inside != blocks[last].inside:
        return False
    handed = {tuple(_made(blocks[layer])[k] for k in blocks[layer].handed_on) for layer in others}
    # Several values that kinds hand on could be mixed up: only their order tells them apart.
    return len(handed) == 1 and (len(by_kind) == 1 or len(next(iter(handed))) == 1)


def _made(block: _TracedBlock) -> list[Value]:
    return [value for step in block.steps for value, _ in step.outs]
