"""Conditions that name ops or tensors, as the tables of a policy file have them, and their reading."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from partition.seen import what_is
from tracer.errors import InputError, suggest
from tracer.graph import Kind, Op, OpGraph, Tensor
from tracer.patterns import PATTERNS

Conditions = tuple[tuple[str, tuple[str, ...]], ...]
"""(condition, the shell patterns of which any may hold); a layer's are its digits."""

OF_TENSORS: Mapping[str, Callable[[OpGraph, Tensor], Sequence[str]]] = {
    "label": lambda graph, tensor: labels_of(graph, tensor),
    "name": lambda graph, tensor: [tensor.name],
    "module_path": lambda graph, tensor: _made_in(graph, tensor, "module_path"),
    "stack": lambda graph, tensor: _made_in(graph, tensor, "stack"),
    "layer": lambda graph, tensor: _made_in(graph, tensor, "layer"),
    "what": lambda graph, tensor: [sort] if (sort := what_is(graph)[tensor.id]) else [],
    "kind": lambda graph, tensor: _made_in(graph, tensor, "kind"),
    "dtype": lambda graph, tensor: [tensor.dtype],
}
"""Conditions that are shell patterns, with the texts of a tensor that they are held against."""

OF_SECRETS = ("label", "name", "module_path", "stack", "layer", "what")
"""Those of secrets."""


def _made_in(graph: OpGraph, tensor: Tensor, what: str) -> list[str]:
    """A text of the op that makes a tensor, which parameters do not have."""
    value = None if tensor.op is None else getattr(graph.ops[tensor.op], what)
    return [] if value is None else [str(value)]


def labels_of(graph: OpGraph, tensor: Tensor) -> list[str]:
    """What a tensor is called by its part in the model; an input by its name too."""
    given = tensor.op is not None and graph.ops[tensor.op].kind is Kind.INPUT
    return [*([tensor.label] if tensor.label else []), *([tensor.name] if given else [])]


OP_TEXTS: Mapping[str, Callable[[OpGraph, Op], Sequence[str]]] = {
    "target": lambda graph, op: [op.target],
    "module_path": lambda graph, op: [op.module_path],
    "module_type": lambda graph, op: [op.module_type],
    "label": lambda graph, op: [text for t in graph.outputs(op.id) for text in labels_of(graph, t)],
    "stack": lambda graph, op: [] if op.stack is None else [op.stack],
}
"""Conditions that are shell patterns, with the texts of an op that they are held against."""

OF_OPS = ("kind", *OP_TEXTS, "layer", "pattern")
"""Those that name ops."""

OpConditions = tuple[tuple[str, tuple[Any, ...]], ...]
"""(condition, the values of which any may hold)."""


def op_conditions(table: Mapping[str, Any], where: str) -> OpConditions:
    """The conditions of a table that names ops. Raises InputError where it has none."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for key in OF_OPS:
        if key not in table:
            continue
        values = values_of(table, key, where)
        if key in ("kind", "pattern"):
            known = [kind.value for kind in Kind] if key == "kind" else list(PATTERNS)
            values = [choice_of(value, known, f"{where}: {key}") for value in values]
        found.append((key, tuple(values)))
    if not found:
        raise InputError(f"{where}: no condition; give at least one of {', '.join(OF_OPS)}")
    return tuple(found)


def patterns_of(graph: OpGraph, conditions: Iterable[OpConditions]) -> dict[str, set[int]]:
    """Pattern -> its ops in a graph, of the patterns that the conditions speak of."""
    named = {
        pattern
        for each in conditions
        for key, values in each
        if key == "pattern"
        for pattern in values
    }
    return {name: PATTERNS[name](graph) for name in sorted(named)}


def op_meets(
    graph: OpGraph, op: Op, conditions: OpConditions, found: Mapping[str, set[int]]
) -> bool:
    """Whether an op meets all of the conditions; ``found`` are the ops of patterns."""
    for key, values in conditions:
        if key == "kind":
            holds = op.kind.value in values
        elif key == "layer":
            holds = op.layer in values
        elif key == "pattern":
            holds = any(op.id in found[name] for name in values)
        else:
            holds = fits(OP_TEXTS[key](graph, op), values)
        if not holds:
            return False
    return True


def tensor_conditions(table: Mapping[str, Any], where: str, known: Iterable[str]) -> Conditions:
    """The conditions of a table that names tensors: those of the ``known`` that it has."""
    return tuple(
        (key, tuple(map(str, values_of(table, key, where)))) for key in known if key in table
    )


def meets(graph: OpGraph, tensor: Tensor, conditions: Conditions) -> bool:
    """Whether a tensor meets all of the conditions."""
    return all(fits(OF_TENSORS[key](graph, tensor), values) for key, values in conditions)


def texts_of(graph: OpGraph, keys: Iterable[str]) -> dict[str, list[str]]:
    """Condition -> what it could be held against, each once, in the order of the graph."""
    return {
        key: list(dict.fromkeys(text for t in graph.tensors for text in OF_TENSORS[key](graph, t)))
        for key in keys
    }


def fits(texts: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of the texts is as one of the shell patterns has it."""
    return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)


def values_of(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """What a condition names: whole numbers where it is the layer, else texts."""
    values = table[key] if isinstance(table[key], list) else [table[key]]
    wanted, noun = (int, "whole number") if key == "layer" else (str, "text")
    if not values or any(type(value) is not wanted for value in values):
        raise InputError(f"{where}: {key} must be a {noun} or a list of them")
    return values


def flag_of(table: Mapping[str, Any], key: str, where: str) -> bool:
    """True or false under a key, false where it is not there. Raises InputError for all else."""
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} must be true or false")
    return value


def text_of(table: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key. Raises InputError for all else."""
    if not isinstance(table[key], str):
        raise InputError(f"{where}: {key} must be text")
    return str(table[key])


def choice_of(value: Any, known: Sequence[str], where: str) -> str:
    """A value that is one of the known ones. Raises InputError for any other."""
    if value not in known:
        raise InputError(
            f"{where}: {value!r} is not one of {', '.join(known)}." + suggest(str(value), known)
        )
    return str(value)


_LISTED = 8
"""So many names an error lists where no name is near."""


def nearest(words: Iterable[str], known: Sequence[str]) -> str:
    """What of the known names may have been meant, as the end of an error."""
    near = "".join(suggest(word, known) for word in words)
    there = [one for one in known if one]
    more = ", ..." if len(there) > _LISTED else ""
    return near or (f" There are {', '.join(there[:_LISTED])}{more}." if there else "")
