"""Configs as they are found, in today's form: what is old or missing, with a line on each."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from tracer.capture.compat import CONFIG_MAPPING, PreTrainedModel, auto, class_named
from tracer.errors import InputError, near
from tracer.words import plain

POSITIONS = ("rope_scaling", "rope_parameters")
"""How configs call what they say of rotary positions."""

_OF_NO_MODEL = ("architectures", "auto_map", "model_type", "transformers_version", "torch_dtype")
"""Fields of every config, whatever its type."""


def in_todays_form(config: Mapping[str, Any], model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(a config as the pinned transformers reads it, what was changed, a line each).

    A ``model_type`` that is missing or not known is that of the class which ``architectures``
    names; numbers of rotary positions that are written as texts are numbers. Raises InputError
    where neither field names what is known.
    """
    today = dict(config)
    said: list[str] = []
    kind = config.get("model_type")
    if not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        today["model_type"], why = _type_of(config, kind, model)
        said.append(why)
    for name in POSITIONS:
        table = config.get(name)
        if isinstance(table, dict) and table.get("type") == "su":
            today[name] = {**table, "type": "longrope"}  # as it is called since
    read = list(_numbers(today, ()))
    if read:
        said.append(f"read as numbers, which its config has as texts: {', '.join(read)}")
    return today, tuple(said)


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a config names, the first choice first. Raises InputError for no name."""
    named = config.get("architectures") or ()
    if not isinstance(named, str | list | tuple):
        raise InputError(
            f"architectures is {plain(str(named), 40)}: it is a class's name, or a list of names"
        )
    return tuple(map(str, [named] if isinstance(named, str) else named))


def known_class(name: str) -> Any:
    """The model of transformers that has a name; None for all else, also for what cannot run."""
    found: Any = class_named(name)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        return None
    return None if getattr(found, "forward", None) is torch.nn.Module.forward else found


def _type_of(config: Mapping[str, Any], kind: Any, model: str) -> tuple[str, str]:
    """(the ``model_type`` of the first known class that a config names, a line on it)."""
    named = architectures(config)
    told = (
        "its config has no model_type"
        if kind is None
        else f"transformers {version('transformers')} knows no model_type {_quoted(kind)}"
    )
    for name in named:
        own = getattr(known_class(name), "config_class", None)
        found = str(getattr(own, "model_type", None))
        if found in CONFIG_MAPPING and CONFIG_MAPPING[found] is own:
            left = "" if kind is None else _left(config, own)
            return found, f"{told}: it is traced as {found}, the type of {name}{left}"
    raise InputError(f"{model}: {told}{_way_out(config, kind, named)}")


def _left(config: Mapping[str, Any], kind: Any) -> str:
    """What of a config a class that it was not written for does not read, for the end of a line."""
    try:
        known = {*kind().to_dict(), *kind.attribute_map, *_OF_NO_MODEL, *POSITIONS, "rope_theta"}
    except Exception:  # of parts that it has no defaults for
        return ""
    left = [key for key in config if key not in known and not key.startswith("_")]
    left = [plain(key, 40) for key in left if not _is_read(config, key, kind)]
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return f", which does not read {', '.join(left[:5])}{more}" if left else ""


def _is_read(config: Mapping[str, Any], key: str, kind: Any) -> bool:
    """Whether a field changes others when a class reads a config; also where it cannot be read."""
    value = config[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    changed = {**config, key: value + 1 if number else None}
    try:
        whole, other = (kind.from_dict(dict(some)).to_dict() for some in (config, changed))
    except Exception:  # a config class raises anything; building the model says what is wrong
        return True
    whole.pop(key, None), other.pop(key, None)
    return key.endswith("quantization_config") or bool(whole != other)


def _way_out(config: Mapping[str, Any], kind: Any, named: tuple[str, ...]) -> str:
    """What a user can do with a config of which neither type nor class is known."""
    code = config.get("auto_map")
    has = f", and no architecture {' or '.join(plain(n, 60) for n in named[:3])}" if named else ""
    if isinstance(code, dict) and code:
        files = [v for _, v in sorted(code.items(), reverse=True) if isinstance(v, str)]
        where = next(iter(files), "its auto_map")  # AutoModel... stands after AutoConfig
        return (
            f"{has}. Code that comes with a checkpoint ({plain(where, 60)}) is not run: write a "
            "function that builds the model from it, and trace that as file.py:function"
        )
    like = next((some for name in named if (some := near(name, _classes(), 0.85))), [])
    if like:
        instead = [f"{name} (a {_classes()[name]})" for name in like]
        return f"{has}. Is it {' or '.join(instead)}? Then write that as its architectures"
    spelt = near(kind, CONFIG_MAPPING.keys(), 0.7) if isinstance(kind, str) else []
    meant = f" Did you mean {', '.join(spelt)}?" if spelt else ""
    return f"{has}.{meant} A model that transformers does not have is traced as file.py:function"


def _quoted(kind: Any) -> str:
    return repr(plain(str(kind), 60))


@cache
def _classes() -> Mapping[str, str]:
    """The classes of models that transformers lists -> the ``model_type`` of each."""
    tables = [t for n, t in vars(auto).items() if n.startswith("MODEL_") and n.endswith("_NAMES")]
    pairs = ((names, kind) for table in tables for kind, names in table.items())
    return {
        name: kind
        for names, kind in pairs
        for name in (names if isinstance(names, list | tuple) else (names,))
    }


def _numbers(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Put numbers in place of texts in what a config says of rotary positions; the fields."""
    rotary = any(name in POSITIONS for name in path)
    for key, value in table.items():
        if isinstance(value, dict) and len(path) < 4:
            table[key] = dict(value)
            yield from _numbers(table[key], (*path, key))
        elif (rotary or key == "rope_theta") and (number := _number(value)) is not None:
            table[key] = number
            yield f"{plain('.'.join((*path, key)), 60)} {value!r}"


def _number(value: Any) -> float | int | None:
    """What a text says where it is a number."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        return number if abs(number) < float("inf") else None
    return None
