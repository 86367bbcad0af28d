"""What documents are made from: types as JSON Schema, dataclasses and columns with their words."""

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from tracer.serde import description

ROOT = Path(__file__).parents[1]

Schema = dict[str, Any]
"""A JSON Schema, draft 2020-12."""

_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def of_type(kind: Any) -> Schema:
    """The JSON of a value of a Python type.

    >>> of_type(int | None)
    {'type': ['integer', 'null']}
    >>> of_type(Mapping[str, int])
    {'type': 'object', 'additionalProperties': {'type': 'integer'}}
    """
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _any_of([of_type(one) for one in inner])
    if origin is Literal:
        return {"enum": list(inner)}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [one.value for one in kind]}
    if is_dataclass(kind):
        return record(dataclass_keys(kind))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of_type(inner[1])}
    if origin is tuple and inner[-1] is not ...:
        items = [of_type(one) for one in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": of_type(inner[0])}
    raise TypeError(f"no JSON is known of {kind}")


def _any_of(ways: list[Schema]) -> Schema:
    if all(set(way) == {"type"} for way in ways):
        return {"type": [way["type"] for way in ways]}
    return {"anyOf": ways}


def of_column(kind: pa.DataType) -> Schema:
    """The JSON of a value of an Arrow type."""
    if pa.types.is_map(kind):
        return {"type": "object", "additionalProperties": of_column(kind.item_type)}
    if pa.types.is_list(kind):
        return {"type": "array", "items": of_column(kind.value_type)}
    checks = (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "integer"),
        (pa.types.is_floating, "number"),
        (pa.types.is_string, "string"),
    )
    return {"type": next(name for holds, name in checks if holds(kind))}


def key(kind: Any, about: str) -> Schema:
    """A key of an object: its type, as Python or as a schema, and what it says."""
    schema = kind if isinstance(kind, dict) else of_type(kind)
    return {"description": plain(about), **schema}


def record(keys: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with these keys and no others; all are there but the ``optional`` ones."""
    return {
        "type": "object",
        "properties": dict(keys),
        "required": [name for name in keys if name not in optional],
        "additionalProperties": False,
    }


def listed(row: Schema) -> Schema:
    """A list of alike values."""
    return {"type": "array", "items": row}


def nullable(value: Schema) -> Schema:
    """A value that may be null."""
    return _any_of([value, {"type": "null"}])


def columns(schema: pa.Schema, *names: str) -> dict[str, Schema]:
    """The columns of a table, or those that are named, as keys."""
    found = {}
    for name in names or schema.names:
        field = schema.field(name)
        kind = of_column(field.type)
        if field.nullable:
            kind = nullable(kind)
        found[name] = key(kind, description(field))
    return found


def dataclass_keys(kind: type, *names: str) -> dict[str, Schema]:
    """The fields of a dataclass, or those that are named, as keys."""
    return {name: field_key(kind, name) for name in names or [field.name for field in fields(kind)]}


def field_key(kind: type, name: str) -> Schema:
    """A field of a dataclass as a key. Raises KeyError where it has no docstring."""
    about = field_words(kind)
    if name not in about:
        raise KeyError(f"{kind.__module__}.{kind.__name__}.{name} has no docstring")
    return key(get_type_hints(kind)[name], about[name])


@cache
def field_words(kind: type) -> Mapping[str, str]:
    """Field of a dataclass -> the docstring below it, where it has one."""
    (node,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for here, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            match below:
                case ast.Expr(ast.Constant(str() as words)):
                    found[here.target.id] = " ".join(words.split())
    return found


def plain(text: str) -> str:
    """A docstring's words without its marks of code."""
    return text.replace("``", "`").replace("None", "null")


def write(files: Mapping[str, str]) -> None:
    """Write files of the repository, by their path in it."""
    for name, text in files.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
