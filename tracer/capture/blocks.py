"""Which blocks of a model are alike, and the model with only a few of them.

That blocks are alike is shown, never assumed: their modules are equal but for an index, and in a
run of the whole model all of a kind do the same with the same. The exports of two blocks of each
kind are compared once more by ``tracer.instantiate``.
"""

import contextlib
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves

from tracer.capture.compat import PreTrainedConfig
from tracer.capture.errors import Untraceable, located, place
from tracer.capture.phases import MANY, Task, Way
from tracer.capture.runs import MetaRun, is_new, run_on_meta
from tracer.formula import const
from tracer.instantiate import Stack, settled
from tracer.program import Node, Program, Value
from tracer.stages import stage

WORTHWHILE = 2
"""A stack is repeated when that saves at least this many blocks of the trace."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """A model with a few of its blocks."""

    stacks: tuple[Stack, ...]
    layers: frozenset[int] | None
    """The layers whose state the shortened model takes, None for all."""

    def rename(self, path: str) -> str:
        """A module path of the shortened model as the whole model has it."""
        for stack in self.stacks:
            if (position := stack.layer(path)) is not None:
                return stack.move(path, stack.traced[position])
        return path


def find_stacks(task: Task) -> tuple[Stack, ...]:
    """The lists of blocks of a task's model that are worth repeating, as their modules are built."""
    found: list[Stack] = []
    kept = 1 + max((state.layer for state in task.states), default=-1)
    idle = task.reading.idle
    resting = set() if idle is None else set(idle.modules())
    for name, child in task.module.named_modules():
        if child in resting:
            continue
        inside = any(name.startswith(f"{other.path}.") for other in found)
        if isinstance(child, torch.nn.ModuleList) and not inside:
            kinds = _kinds(task.module, list(child))
            stack = Stack(name, kinds, "cache" if len(kinds) == kept else "")
            if stack.depth - len(stack.traced) >= WORTHWHILE:
                found.append(stack)
    return tuple(found)


def unlike(module: torch.nn.Module) -> str | None:
    """Why no layer of a deep model can be repeated; None for a model of few layers."""
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList)]
    layers = list(max(lists, key=len, default=()))
    kinds = _kinds(module, layers)
    if len(layers) < len(Stack("", (0,) * len(layers)).traced) + WORTHWHILE:
        return None
    if len(layers) < len(Stack("", kinds).traced) + WORTHWHILE:
        return f"its {len(layers)} layers are of {len(set(kinds))} kinds, too few alike to repeat"
    return "its layers look alike but do not run alike"


# --- what the modules say -------------------------------------------------------------------------


def _kinds(module: torch.nn.Module, blocks: Sequence[torch.nn.Module]) -> tuple[int, ...]:
    """The kind of each block: by classes, parameters, buffers, attributes and per-layer configs."""
    described = [_attributes(block) for block in blocks]
    for name in _indices(blocks):
        for attributes in described:
            attributes.pop(name, None)
    for config in _configs(module):
        for key, value in _one_a_block(config, len(blocks)).items():
            for attributes, entry in zip(described, value, strict=True):
                attributes[f"config {key}"] = _describe(entry)
    seen: dict[frozenset[tuple[str, str]], int] = {}
    return tuple(seen.setdefault(frozenset(d.items()), len(seen)) for d in described)


def _attributes(block: torch.nn.Module) -> dict[str, str]:
    """All that tells one block from another: classes, parameters, buffers, plain attributes."""
    found = {}
    for name, module in block.named_modules():
        found[f"{name}:"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[f"{name}:{key}"] = "" if tensor is None else f"{tensor.shape} {tensor.dtype}"
        for key, value in vars(module).items():
            if not key.startswith("_"):
                found[f"{name}.{key}"] = _describe(value)
    return found


def _indices(blocks: Sequence[torch.nn.Module]) -> list[str]:
    """The attributes, as ``_attributes`` calls them, that only count the blocks."""
    found: dict[str, dict[int, int]] = {}  # attribute -> block -> value
    for number, block in enumerate(blocks):
        for name, module in block.named_modules():
            for key, value in vars(module).items():
                if type(value) is int and not key.startswith("_"):
                    found.setdefault(f"{name}.{key}", {})[number] = value
    return [
        name
        for name, values in found.items()
        if len(values) > 1
        and len({value - number for number, value in values.items()}) == 1
        # What only some blocks have may count with them by chance: go by its name too.
        and (len(values) == len(blocks) or re.search("idx|index|_id$", name))
    ]


def _one_a_block(config: Any, depth: int) -> dict[str, Sequence[Any]]:
    """The settings of a config that list what each block is, also those that it works out.

    One that lists all blocks' numbers does not.
    """
    found: dict[str, Any] = dict(vars(config))
    for name, attribute in _properties(type(config)):
        with contextlib.suppress(Exception):  # of a model that is built otherwise
            found[name] = attribute.__get__(config)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, list | tuple)
        and len(value) == depth
        and not all(type(n) is int and n - i == value[0] for i, n in enumerate(value))
    }


def _properties(kind: type) -> list[tuple[str, property]]:
    """What a class of configs works out itself, beyond what all of them do."""
    return [
        (name, attribute)
        for base in kind.__mro__
        if base is not PreTrainedConfig and issubclass(base, PreTrainedConfig)
        for name, attribute in vars(base).items()
        if isinstance(attribute, property)
    ]


def _describe(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | torch.Size | torch.dtype):
        return repr(value)
    if isinstance(value, list | tuple):
        return repr([_describe(item) for item in value])
    if isinstance(value, dict):
        return repr({str(k): _describe(v) for k, v in value.items()})
    if isinstance(value, partial):
        return _describe([value.func, value.args, value.keywords])
    # Anything else is alike only when it is the same object (the config, an activation function).
    return f"{type(value).__qualname__} at {id(value)}"


def _configs(module: torch.nn.Module) -> list[Any]:
    """The configs that the code of a model reads, each once."""
    configs = {
        id(config): config
        for part in module.modules()
        if (config := getattr(part, "config", None)) is not None and hasattr(config, "__dict__")
    }
    return list(configs.values())


# --- what a run of the model shows ---------------------------------------------------------------


@stage("comparing layers")
def running_alike(task: Task, stacks: Sequence[Stack], way: Way) -> tuple[Stack, ...]:
    """Those of ``stacks`` that run; not one unless all blocks of a kind do the same in a run of the
    whole model on the meta device.

    Every op of every block is seen, with what it reads, is told and makes, and every function of
    torch that it is part of. In the blocks to be traced and around all blocks, the whole model must
    do what the shortened one does.
    """
    whole = _seen(task, stacks, task.inputs(way)) if stacks else None
    if whole is None:
        return ()
    paths = {node.path for node in whole.nodes}
    stacks = tuple(s for s in stacks if any(s.layer(path) is not None for path in paths))
    found = [settled(whole, stack) for stack in stacks]
    stacks = tuple(stack for stack in found if stack is not None)
    if not stacks or len(stacks) < len(found):
        return ()
    with shortened(task.module, stacks) as short:
        part = _seen(task, stacks, task.inputs(way, short.layers), short.rename)
    same = part is not None and _done(part, stacks) == _done(whole, stacks)
    return stacks if same else ()


def _done(program: Program, stacks: Sequence[Stack]) -> list[tuple[Any, ...]]:
    """What a program does, and with what, around its blocks and in those that are to be traced.

    What it does between a block and the next counts as the block's. A value is identified by its
    name, or by the block that makes it and its place there. What a block reads of the block before
    it is identified by its number instead, since which block that is differs between the model and
    its shortened copy.
    """
    places = {"", *(f"{stack.path}.{layer}" for stack in stacks for layer in stack.traced)}
    before = {"": ""}  # block -> the block before it
    made: dict[int, tuple[str, int]] = {}  # value -> the block, and the how-manieth made there
    count: Counter[str] = Counter()
    latest = ""
    rows = []
    for node in program.nodes:
        block = node.path or latest
        if block not in before:
            before[block], latest = latest, block
        read: list[Any] = []
        for arg in node.args:
            value = program.values[arg]
            handed = block and not value.name and made[arg][0] == before[block] != ""
            read.append(value if handed else value.name or made[arg])
        for out in node.outs:
            made[out] = (block, count[block])
            count[block] += 1
        if block in places:
            makes = [program.values[out] for out in node.outs]
            what = node.path, node.module_type, node.target, node.is_view, node.arguments
            rows.append((block, *what, read, makes))
    return rows


def _seen(
    task: Task,
    stacks: Sequence[Stack],
    inputs: Mapping[str, Any],
    rename: Callable[[str], str] = lambda path: path,
) -> Program | None:
    """The ops of a run, with the blocks that they run in; None for code that looks at values."""
    # In inference a function that is made of ops is one: there are fewer to see.
    with torch.inference_mode():
        witness = _watched(task, stacks, inputs, rename)
    return None if witness is None else witness.program


def _watched(
    task: Task,
    stacks: Sequence[Stack],
    inputs: Mapping[str, Any],
    rename: Callable[[str], str] = lambda path: path,
    look_at: int = -1,
) -> "_Witness | None":
    witness = _Witness(task, inputs, rename, look_at)
    with contextlib.ExitStack() as hooks:
        for stack in stacks:
            for layer, block in enumerate(task.module.get_submodule(stack.path).children()):
                path = rename(f"{stack.path}.{layer}.").removesuffix(".")
                hooks.callback(block.register_forward_pre_hook(witness.enter(path)).remove)
                hooks.callback(block.register_forward_hook(witness.leave).remove)
        try:
            with run_on_meta(task.module, witness), located(task.module, rename, witness.called):
                task.exported(**inputs)
        except Exception:
            return None
    return witness


class _Witness(MetaRun):
    """Writes down each op of a run as a program: what it reads, what it makes, in which block.

    In place of a module's class, a node has the functions of torch that led to it.
    """

    def __init__(
        self, task: Task, inputs: Mapping[str, Any], rename: Callable[[str], str], look_at: int
    ) -> None:
        super().__init__()
        self.program = Program()
        self.look_at, self.place = look_at, ""
        """The number of an op, and where the code is that does it."""
        self.path = ""
        self.called: list[str] = []
        """The functions of torch that the code has called since the last op."""
        self.value_of: dict[int, int] = {}  # id of a tensor -> its latest value
        self.kept: list[torch.Tensor] = []  # so that no two tensors share an id
        for name, tensor in (*task.module.named_parameters(), *task.module.named_buffers()):
            self.value_of[id(tensor)] = self._add(tensor, rename(name))
        for name, tensor in inputs.get("state", {}).items():
            self.value_of[id(tensor)] = self._add(tensor, name)

    def enter(self, path: str) -> Callable[..., None]:
        """A hook for the start of a block."""

        def hook(*args: Any) -> None:
            self._end_of_stretch()
            self.path = path

        return hook

    def leave(self, *args: Any) -> None:
        """A hook for the end of a block."""
        self._end_of_stretch()
        self.path = ""

    def _end_of_stretch(self) -> None:
        """Write down what was called since the last op where it was, not with an op elsewhere."""
        if self.called:
            self.program.nodes.append(Node("", (), (), self.path, " ".join(self.called)))
            self.called.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read, told, made = self.call(func, args, kwargs or {})
        if len(self.program.nodes) == self.look_at:
            self.place = place("".join(traceback.format_stack()))
        value_of = self.value_of
        known = tuple([value_of[id(t)] for t in read if id(t) in value_of])
        outs = []
        for tensor in [made] if isinstance(made, torch.Tensor) else tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            if id(tensor) in value_of and not func._schema.is_mutable:
                continue  # what it was given, as it is
            outs.append(self._add(tensor))
            value_of[id(tensor)] = outs[-1]
        called = " ".join(self.called)
        self.called.clear()
        # Whether a reshape copies goes by how its input lies in memory.
        view = func.is_view and isinstance(made, torch.Tensor) and not is_new(made, read)
        node = Node(_name(func), known, tuple(outs), self.path, called, view, arguments=told)
        self.program.nodes.append(node)
        return made

    def _add(self, tensor: torch.Tensor, name: str = "") -> int:
        self.kept.append(tensor)
        return self.program.add(_value(tensor.dtype, tensor.shape, name))


_name = lru_cache(maxsize=2**16)(str)


@lru_cache(maxsize=2**16)
def _value(dtype: torch.dtype, shape: torch.Size, name: str) -> Value:
    return Value(str(dtype), tuple(map(const, shape)), name)


# --- what the sizes decide ------------------------------------------------------------------------


FEW = (5, 6, 7)
"""Sizes, one after the other, at which code that does something for each token shows it soonest."""


def without_hope(
    task: Task, stacks: Sequence[Stack], ways: Sequence[Way]
) -> list[Untraceable | None]:
    """Why some of the ``ways`` cannot carry a model, as runs at a few sizes show.

    No formula in a size can hold where the model does other ops at each: code that goes through a
    sequence chunk by chunk does as many as there are chunks. And a formula holds only where the
    model does what it does at the size of the export. An export finds that out too, in many times
    as long.
    """
    few = [replace(stack, first_shows=True, last_shows=True) for stack in stacks]
    with shortened(task.module, few) as short:  # one of each kind
        look = _Looks(task, short.layers)
        for name in ways[0].symbolic:
            if name != "batch" and (changing := look.changing(name)) is not None:
                return [changing if way.symbolic else None for way in ways]
        return [look.elsewhere(way) if way.symbolic else None for way in ways]


_SLICE = "aten.slice.Tensor"


class _Looks:
    """What a model does at some sizes, each run once."""

    def __init__(self, task: Task, layers: frozenset[int] | None) -> None:
        self.task, self.layers = task, layers
        self.done: dict[tuple[int, ...], _Witness | None] = {}

    def at(self, sizes: Mapping[str, int]) -> list[str]:
        """The ops of a run; not one of code that looks at values.

        A slice is one also where it leaves nothing out, which torch calls an alias.
        """
        key = tuple(sizes.values())
        if key not in self.done:
            self.done[key] = self._run(sizes)
        witness = self.done[key]
        targets = [] if witness is None else [node.target for node in witness.program.nodes]
        return [_SLICE if target == "aten.alias.default" else target for target in targets]

    def _run(self, sizes: Mapping[str, int], look_at: int = -1) -> "_Witness | None":
        inputs = self.task.inputs(Way({}, sizes), self.layers)
        return _watched(self.task, (), inputs, look_at=look_at)

    def changing(self, name: str) -> Untraceable | None:
        """That each of a size takes other ops, where it does at all that are looked at."""
        sizes, most = self.task.run_sizes, self.task.positions or MANY
        if len(self.at(sizes)) >= sizes[name] > FEW[-1]:  # maybe some for each token
            short, longer, longest = ({**sizes, name: n} for n in FEW)
            one, two, three = (len(self.at(few)) for few in (short, longer, longest))
            if one < two < three:
                where = self._where(longest, longer)
                steps = (name, len(self.at(sizes))) if two - one == three - two else None
                return Untraceable(f"each {name} takes other ops", where, steps=steps)
        near = (sizes[name] + 1, sizes[name] - 1, 2 * sizes[name])
        others = [{**sizes, name: n} for n in near if 2 <= n <= most]
        if not others or any(self.at(other) == self.at(sizes) for other in others):
            return None
        pair = sorted((sizes, others[0]), key=lambda one: len(self.at(one)))
        return Untraceable(f"each {name} takes other ops", self._where(pair[1], pair[0]))

    def _where(self, longer: Mapping[str, int], shorter: Mapping[str, int]) -> str:
        """The code that does the first op of a longer run that a shorter one does not do."""
        pairs = zip_longest(self.at(longer), self.at(shorter))
        witness = self._run(longer, [a == b for a, b in pairs].index(False))
        return "" if witness is None else witness.place

    def elsewhere(self, way: Way) -> Untraceable | None:
        """That the model does something else at the size of an export, or meets a size of one
        there alone, which torch takes for another case."""
        sizes = self.task.run_sizes
        example = {**way.examples, "batch": sizes["batch"]}
        same = self._ones(example) == self._ones(sizes) and self.at(example) == self.at(sizes)
        at = " and ".join(
            f"{name} {example[name]}" for name in example if example[name] != sizes[name]
        )
        return None if same else Untraceable(f"its code takes another way at {at}", repeats=True)

    def _ones(self, sizes: Mapping[str, int]) -> list[list[bool]]:
        """By value of a run: which of its axes are of size one, or empty."""
        self.at(sizes)
        witness = self.done[tuple(sizes.values())]
        values = [] if witness is None else witness.program.values
        return [[size.evaluate({}) < 2 for size in value.shape] for value in values]


# --- the model with a few of its blocks -----------------------------------------------------------


@contextlib.contextmanager
def shortened(module: torch.nn.Module, stacks: Sequence[Stack]) -> Iterator[Shortened]:
    """The model with only the blocks of each stack that are to be traced.

    Its config counts those blocks and lists their settings.
    """
    kept = [stack for stack in stacks if stack.state]
    with contextlib.ExitStack() as undo:
        for stack in stacks:
            parent, _, name = stack.path.rpartition(".")
            owner = module.get_submodule(parent)
            blocks = list(module.get_submodule(stack.path).children())
            for config in _configs(module):
                undo.enter_context(_shorter(config, stack))
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, torch.nn.ModuleList(blocks[i] for i in stack.traced))
        yield Shortened(tuple(stacks), frozenset(kept[0].traced) if kept else None)


@contextlib.contextmanager
def _shorter(config: Any, stack: Stack) -> Iterator[None]:
    """A config whose settings that speak of all blocks speak of those that are traced."""
    settings = vars(config)
    listed = {
        name: tuple(value[i] for i in stack.traced)
        if isinstance(value, tuple)
        else [value[i] for i in stack.traced]
        for name, value in _one_a_block(config, stack.depth).items()
    }
    counted = {
        key: len(stack.traced)
        for key, value in settings.items()
        if "layer" in key and type(value) is int and value == stack.depth
    }
    with contextlib.ExitStack() as undo:
        for name, attribute in _properties(type(config)):
            if name in listed and name not in settings:
                worked_out = partial(_instead, config, listed.pop(name), attribute)
                undo.enter_context(patch.object(type(config), name, property(worked_out)))
        undo.enter_context(patch.dict(settings, counted | listed))
        yield


def _instead(config: Any, value: Any, attribute: property, asked: Any) -> Any:
    """What a property of ``asked`` is: ``value`` for ``config``, for others what it was."""
    return value if asked is config else attribute.__get__(asked)
