"""What an op is told beside its tensors, and whether it draws random values: off its schema."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node, map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from tracer import kinds
from tracer.formula import Formula, const
from tracer.kinds import base_name, told

FACTORS = ("alpha", "beta", "value")
"""Numbers that an op multiplies by, where they are not one."""

_OPERANDS = ("number", "float", "Tensor")
"""The types of what is only computed with, numbers in the place of tensors too."""


def op_name(node: Node) -> str:
    """The base name of the op that a node calls: ``add`` of ``aten.add.Tensor``."""
    return _op_name(node.target)


@cache
def _op_name(target: Any) -> str:
    return base_name(str(target))


def argument(node: Node, name: str) -> Any:
    """What an op is told by an argument's name, None where it has no such argument."""
    return told(node.target, node.args, node.kwargs).get(name)


Told = tuple[tuple[str, str], ...]
"""(name, JSON) of what an op is told beside its tensors and may decide how much it does."""


def arguments(
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    size: Callable[[Any], Formula] = const,
) -> Told:
    """What a call of an op is told beside its tensors and may decide how much it does.

    Defaults are left out, and numbers that are only computed with, unless they are complex:
    ``{"complex": [real part, imaginary part]}``. A size that is a symbol is ``{"size": formula}``;
    ``size`` makes a formula of one of torch's sizes.
    """
    operands, defaults = _declared(target)
    found: list[tuple[str, str]] = []
    for name, value in told(target, args, kwargs).items():
        operand = name in operands and not isinstance(value, complex)
        if value is None or name == "pin_memory" or operand:
            continue
        try:
            text = json.dumps(_plain(value, size))
        except TypeError:  # a tensor, a dtype, a device ...
            continue
        if name not in defaults or value != defaults[name]:
            found.append((name, text))
    return tuple(found)


@cache
def _declared(target: Any) -> tuple[frozenset[str], Mapping[str, Any]]:
    """Of the arguments of torch's op: those that are only computed with, and the defaults."""
    schema = getattr(target, "_schema", None)
    declared = schema.arguments if schema else ()
    operands = {a.name for a in declared if any(kind in str(a.type) for kind in _OPERANDS)}
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    return frozenset(operands.difference(FACTORS)), defaults


def _plain(value: Any, size: Callable[[Any], Formula]) -> Any:
    """A value as JSON has it. Raises TypeError for what is no number and no text."""
    match value:
        case list() | tuple():
            return [_plain(part, size) for part in value]
        case complex():
            return {"complex": [value.real, value.imag]}
        case bool() | int() | float() | str():
            return value
        case Node() if isinstance(value.meta.get("val"), torch.SymInt):
            return {"size": str(size(value.meta["val"]))}
    raise TypeError(f"{type(value).__name__} is no plain argument")


def written(node: Node) -> list[Node]:
    """The tensors that a call writes into, by the op's schema.

    A norm's schema does not say so of its running statistics, which it writes in training.
    """
    names, may_train = _writes(node.target)
    if not names and not may_train:
        return []
    given = told(node.target, node.args, node.kwargs)
    if any(given.get(name) is True for name in _IN_TRAINING):
        names = [*names, *(n for n in _STATISTICS if n in given and n not in names)]
    found: list[Node] = []
    map_arg([given[name] for name in names], found.append)
    return [one for one in found if isinstance(one.meta.get("val"), torch.Tensor)]


@cache
def _writes(target: Any) -> tuple[Sequence[str], bool]:
    """The arguments that torch's op writes into, and whether it can be told that it trains."""
    schema = getattr(target, "_schema", None)
    declared = schema.arguments if schema else ()
    names = [a.name for a in declared if a.alias_info is not None and a.alias_info.is_write]
    return names, any(a.name in _IN_TRAINING for a in declared)


_IN_TRAINING = ("training", "train", "use_input_stats")
_STATISTICS = ("running_mean", "running_var")


def draws(node: Node) -> bool:
    """Whether a call draws random values; a higher-order op does where a graph of its own does."""
    if isinstance(node.target, HigherOrderOperator):
        return any(draws(inner) for graph in _graphs(node) for inner in graph.nodes)
    return kinds.draws(node.target, node.args, node.kwargs)


class Counted(TorchDispatchMode):
    """While it is entered, ``number`` counts the draws of torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out an op, and count it where it draws."""
        self.number += kinds.draws(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _graphs(node: Node) -> Iterator[Graph]:
    """The graphs that a higher-order op is given."""
    owner = node.graph.owning_module
    for named in node.all_input_nodes:
        if named.op == "get_attr" and owner is not None:
            part = owner.get_submodule(str(named.target))
            if isinstance(part, GraphModule):
                yield part.graph
