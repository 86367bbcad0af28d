"""Which blocks of a model are alike, and the model with only a few of them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tracer.program import TRACED_LAYERS, Stack


def find_stack(module: torch.nn.Module) -> Stack | None:
    """The module's one list of equal blocks, None when there is none or more than one.

    Blocks are equal when their classes, parameters, buffers and attributes are (an attribute that
    is just the block's index aside), and when no list in the config gives them unlike entries.
    """
    found: list[Stack] = []
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) > TRACED_LAYERS + 1:
            if not any(name.startswith(other.path + ".") for other in found):
                found.append(Stack(name, len(child)))
    if len(found) != 1:
        return None
    (stack,) = found
    blocks = [_attributes(block) for block in module.get_submodule(stack.path).children()]
    if any(block.keys() != blocks[0].keys() for block in blocks):
        return None
    for name in blocks[0]:
        values = [block[name] for block in blocks]
        if any(value != values[0] for value in values) and values != list(
            map(str, range(len(blocks)))
        ):
            return None
    for value in vars(module.config).values():
        if isinstance(value, list | tuple) and len(value) == stack.depth:
            if any(entry != value[0] for entry in value):
                return None
    return stack


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


def _describe(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | torch.Size | torch.dtype):
        return repr(value)
    if isinstance(value, list | tuple):
        return repr([_describe(item) for item in value])
    if isinstance(value, dict):
        return repr({str(k): _describe(v) for k, v in value.items()})
    # Anything else is alike only when it is the same object (the config, an activation function).
    return f"{type(value).__qualname__} at {id(value)}"


@contextlib.contextmanager
def shortened(module: torch.nn.Module, stack: Stack) -> Iterator[None]:
    """The model with four blocks of its stack: the first two, an even one halfway, and the last.

    Blocks far apart show code that looks at a block's index, and the config counts four layers, so
    that code which treats the last one apart does so here too: then the repetition is refused.
    """
    parent, _, name = stack.path.rpartition(".")
    owner = module.get_submodule(parent)
    blocks = module.get_submodule(stack.path)
    settings: dict[str, Any] = vars(module.config)
    counts = [k for k, v in settings.items() if "layer" in k and v == stack.depth]
    chosen = [blocks[i] for i in (0, 1, stack.depth // 4 * 2, stack.depth - 1)]
    setattr(owner, name, torch.nn.ModuleList(chosen))
    settings.update(dict.fromkeys(counts, TRACED_LAYERS))
    try:
        yield
    finally:
        setattr(owner, name, blocks)
        settings.update(dict.fromkeys(counts, stack.depth))
