"""What an op is told beside its tensors, and whether it draws random values: off its schema."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node

from tracer.formula import Formula

FACTORS = ("alpha", "beta", "value")
"""Numbers that an op multiplies by, where they are not one."""

_OPERANDS = ("number", "float", "Tensor")
"""The types of what is only computed with, numbers in the place of tensors too."""


def given(node: Node) -> dict[str, Any]:
    """By name the arguments of a node that calls an op, defaults too; not of a higher-order op."""
    schema = getattr(node.target, "_schema", None)
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments if schema else ()):
        if not argument.kwarg_only and position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            default = argument.default_value if argument.has_default_value() else None
            found[argument.name] = node.kwargs.get(argument.name, default)
    return found


def argument(node: Node, name: str) -> Any:
    """What an op is told by an argument's name, None where it has no such argument."""
    return given(node).get(name)


def arguments(node: Node, size: Callable[[Any], Formula]) -> tuple[tuple[str, str], ...]:
    """(name, JSON) of what an op is told beside its tensors and may decide how much it does.

    Defaults are left out, and numbers that are only computed with, unless they are complex:
    ``{"complex": [real part, imaginary part]}``. A size that is a symbol is ``{"size": formula}``;
    ``size`` makes a formula of one of torch's sizes.
    """
    schema = getattr(node.target, "_schema", None)
    declared = {a.name: a for a in schema.arguments} if schema else {}
    found: list[tuple[str, str]] = []
    for name, value in given(node).items():
        known = declared[name]
        operand = any(kind in str(known.type) for kind in _OPERANDS) and name not in FACTORS
        if value is None or (operand and not isinstance(value, complex)):
            continue
        try:
            text = json.dumps(_plain(value, size))
        except TypeError:  # a tensor, a dtype, a device ...
            continue
        if not known.has_default_value() or value != known.default_value:
            found.append((name, text))
    return tuple(found)


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


def draws(node: Node) -> bool:
    """Whether an op draws random values: torch marks those that may, and arguments turn it off."""
    if isinstance(node.target, HigherOrderOperator):  # a branch, the body of a loop
        return any(draws(inner) for graph in _graphs(node) for inner in graph.nodes)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    told = given(node)
    off = any(told.get(name) is False for name in ("train", "training"))
    rates = [told[name] for name in ("dropout_p", "dropout") if name in told]
    rates += [told["p"]] if "train" in told and "p" in told else []
    return not off and (not rates or any(rates))


def _graphs(node: Node) -> Iterator[Graph]:
    """The graphs that a higher-order op is given."""
    owner = node.graph.owning_module
    for named in node.all_input_nodes:
        if named.op == "get_attr" and owner is not None:
            part = owner.get_submodule(str(named.target))
            if isinstance(part, GraphModule):
                yield part.graph
