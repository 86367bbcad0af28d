"""Which blocks of a model are alike, and the model with only a few of them.

That blocks are alike is shown, never assumed: their modules are equal but for an index, the model
calls them in the same way, and no code computes with the index. What a block does with it beyond
that shows in the traces of two blocks of each kind, which ``tracer.stamp`` compares.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from tracer.stamp import Stack

WORTHWHILE = 2
"""A stack is repeated when that saves at least this many blocks of the trace."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """What was learnt while a model stood shortened."""

    stacks: tuple[Stack, ...]
    computed: list[str] = field(default_factory=list)
    """The attributes holding a block's index that code compared or reckoned with."""

    def rename(self, path: str) -> str:
        """A module path of the shortened model as the whole model has it."""
        for stack in self.stacks:
            if (position := stack.layer(path)) is not None:
                return stack.move(path, stack.traced[position])
        return path


def find_stacks(module: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[Stack, ...]:
    """The lists of blocks of a module that are worth repeating.

    ``inputs`` are small ones, to see how the model calls its blocks.
    """
    found: list[Stack] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{other.path}.") for other in found)
        if isinstance(child, torch.nn.ModuleList) and not inside:
            stack = Stack(name, _kinds(module, list(child)))
            if stack.depth - len(stack.traced) >= WORTHWHILE:
                found.append(stack)
    stacks = tuple(found)
    return stacks if stacks and _called_alike(module, stacks, inputs) else ()


# --- what the modules say -------------------------------------------------------------------------


def _kinds(module: torch.nn.Module, blocks: Sequence[torch.nn.Module]) -> tuple[int, ...]:
    """The kind of each block: by classes, parameters, buffers, attributes and per-layer configs."""
    described = [_attributes(block) for block in blocks]
    for name in _indices(blocks):
        for attributes in described:
            attributes.pop(name, None)
    for settings in _configs(module):
        for key, value in settings.items():
            if isinstance(value, list | tuple) and len(value) == len(blocks):
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


def _configs(module: torch.nn.Module) -> list[dict[str, Any]]:
    """The settings that the code of a model reads, each config once."""
    configs = {
        id(config): vars(config)
        for part in module.modules()
        if (config := getattr(part, "config", None)) is not None and hasattr(config, "__dict__")
    }
    return list(configs.values())


# --- how the model calls its blocks ---------------------------------------------------------------


def _called_alike(
    module: torch.nn.Module, stacks: Sequence[Stack], inputs: Mapping[str, Any]
) -> bool:
    """Whether the model calls each block once, in order, and those of a kind with the same.

    The model runs with blocks that only record what they are called with. They return what a real
    block of their kind does, or where none runs here, the stream that they got or a tuple with it.
    """
    return any(
        _shows_alike(module, stacks, inputs, result)
        for result in (None, lambda stream: stream, lambda stream: (stream,))
    )


def _shows_alike(
    module: torch.nn.Module,
    stacks: Sequence[Stack],
    inputs: Mapping[str, Any],
    result: Callable[[Any], Any] | None,
) -> bool:
    recorder = _Calls(result)
    with contextlib.ExitStack() as patches:
        for stack in stacks:
            for layer, block in enumerate(module.get_submodule(stack.path).children()):
                stub = recorder.stub(stack, layer, block.forward)
                patches.enter_context(patch.object(block, "forward", stub))
        try:
            module(**inputs)
        except Exception:  # code that looks at values: nothing is shown
            return False
    for stack in stacks:
        calls = [(layer, said) for path, layer, said in recorder.calls if path == stack.path]
        if [layer for layer, _ in calls] != list(range(stack.depth)):
            return False
        # The first block has none before it to get its stream from.
        of_kind: dict[int, str] = {}
        for layer, said in calls[1:]:
            if of_kind.setdefault(stack.kinds[layer], said) != said:
                return False
    return True


class _Calls:
    """Stands in for the blocks of a model and records how they are called."""

    def __init__(self, result: Callable[[Any], Any] | None) -> None:
        self.result = result
        self.calls: list[tuple[str, int, str]] = []
        self.made: dict[int, str] = {}  # id of a tensor -> where it comes from
        self.kept: list[Any] = []  # so that no two tensors share an id
        self.results: dict[tuple[str, int], Any] = {}

    def stub(self, stack: Stack, layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that records and returns tensors like those of its kind."""

        def called(*args: Any, **kwargs: Any) -> Any:
            said = self._say((args, kwargs), stack.path, layer)
            self.calls.append((stack.path, layer, said))
            kind = (stack.path, stack.kinds[layer])
            if kind not in self.results:
                stream = args[0] if args else next(iter(kwargs.values()))
                self.results[kind] = (
                    forward(*args, **kwargs) if self.result is None else self.result(stream)
                )
            result = tree_map_only(torch.Tensor, torch.empty_like, self.results[kind])
            for k, leaf in enumerate(tree_leaves(result)):
                self.made[id(leaf)] = f"{stack.path}.{layer} {k}"
            self.kept.append(result)
            return result

        return called

    def _say(self, value: Any, path: str, layer: int) -> str:
        """The arguments in words: equal for two blocks that are called with the same."""
        if isinstance(value, torch.Tensor):
            self.kept.append(value)
            source = self.made.setdefault(id(value), f"tensor {len(self.made)}")
            return source.replace(f"{path}.{layer - 1} ", "previous ")
        if isinstance(value, list | tuple):
            return repr([self._say(item, path, layer) for item in value])
        if isinstance(value, dict):
            return repr({str(k): self._say(v, path, layer) for k, v in value.items()})
        return _describe(value)


# --- the model with a few of its blocks -----------------------------------------------------------


@contextlib.contextmanager
def shortened(module: torch.nn.Module, stacks: tuple[Stack, ...]) -> Iterator[Shortened]:
    """The model with only the blocks of each stack that are to be traced.

    Its config counts those blocks and lists their settings. Where a block keeps its index, a number
    stands that notes whether any code computes with it.
    """
    state = Shortened(stacks)
    with contextlib.ExitStack() as undo:
        for stack in stacks:
            parent, _, name = stack.path.rpartition(".")
            owner = module.get_submodule(parent)
            blocks = list(module.get_submodule(stack.path).children())
            for attribute in _indices(blocks):
                where, _, key = attribute.rpartition(".")
                for layer in stack.traced:
                    part = vars(dict(blocks[layer].named_modules()).get(where, torch.nn.Module()))
                    if key in part:
                        watched = _Index(part[key]).watch(attribute, state.computed)
                        undo.enter_context(patch.dict(part, {key: watched}))
            for settings in _configs(module):
                undo.enter_context(patch.dict(settings, _shorter(settings, stack)))
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, torch.nn.ModuleList(blocks[i] for i in stack.traced))
        yield state


def _shorter(settings: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    """The settings that speak of all blocks, for those that are traced."""
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if "layer" in key and type(value) is int and value == stack.depth:
            changed[key] = len(stack.traced)
        elif isinstance(value, list | tuple) and len(value) == stack.depth:
            changed[key] = type(value)(value[i] for i in stack.traced)
    return changed


class _Index(int):
    """A block's index that notes when code compares it: one block may then do what others do not.

    Sums of it are indices too. Looking it up in a list or handing it on is no computing.
    """

    name = ""
    log: list[str]

    def watch(self, name: str, log: list[str]) -> "_Index":
        self.name, self.log = name, log
        return self


def _watched(operation: str) -> Callable[..., Any]:
    plain = getattr(int, operation)

    def watched(self: _Index, *others: Any) -> Any:
        # A cache asks whether it has a layer of this index yet: the same for all layers.
        if not sys._getframe(1).f_code.co_filename.endswith("cache_utils.py"):
            self.log.append(self.name)
        return plain(self, *others)

    return watched


def _sum(operation: str) -> Callable[..., Any]:
    plain = getattr(int, operation)

    def added(self: _Index, other: Any) -> Any:
        result = plain(self, other)
        return _Index(result).watch(self.name, self.log) if type(result) is int else result

    return added


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "mod", "rmod", "floordiv", "bool", "and", "xor"):
    setattr(_Index, f"__{_name}__", _watched(f"__{_name}__"))
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul"):
    setattr(_Index, f"__{_name}__", _sum(f"__{_name}__"))
_Index.__hash__ = int.__hash__  # type: ignore[method-assign]
