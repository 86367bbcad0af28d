"""The model of a config, without weights."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tracer.capture.compat import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_MAPPING,
    PreTrainedModel,
    auto,
    no_init_weights,
)
from tracer.capture.configs import check_sizes, config_class, described, without_options
from tracer.capture.errors import first_line
from tracer.capture.forms import architectures, in_todays_form, known_class
from tracer.errors import InputError, suggest
from tracer.words import plain

_DEPTH = re.compile(r"(num|n)_((hidden|encoder|decoder)_)?layers?|(encoder|decoder)_layers")
"""The fields of a config that say how many layers there are."""

CHECK = "Check the config.json."
"""What is said where no more is known of a config that makes no model."""

_ELSEWHERE = {
    "model_type": "another type is another model: name one, or give a config.json of that type",
    "dtype": "use --dtype",
    "torch_dtype": "use --dtype",
    "use_cache": "use --cache",
    "attn_implementation": "use --attn",
    "_attn_implementation": "use --attn",
}
"""The fields of a config that are no matter of ``--set``."""


def build(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, model: str, dtype: str, attn: str
) -> torch.nn.Module:
    """The model of a config, in evaluation mode, with parameters that have shapes and no data."""
    merged, _ = settle(config, overrides, model=model)
    try:
        module = _module(merged, model, dtype, attn)
    except InputError:
        raise
    except Exception as error:  # any mistake in a config surfaces as any exception of transformers
        if "attention implementation" in str(error):
            kind = str(error).partition(" does not support")[0]
            raise InputError(
                f"{model}: {kind} has no {attn} attention: try another --attn"
            ) from error
        advice = "" if isinstance(error, ImportError) else f" {CHECK}"
        if overrides:
            with suppress(Exception):
                _module(in_todays_form(config, model)[0], model, dtype, attn)
                advice = f" Check --set {', '.join(overrides)}."
        raise InputError(
            f"{model}: no model can be built from this config: {_reason(error, merged)}.{advice}"
        ) from error
    _drop_data(module)
    return _in_dtype(module, dtype).eval()


def _reason(error: Exception, config: Mapping[str, Any]) -> str:
    """Why no model is built, in a line; what is not known of a table is said with its field."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        inside = {
            f"{k}.{i}": v for k, t in config.items() if isinstance(t, dict) for i, v in t.items()
        }
        named = [key for key, value in {**config, **inside}.items() if value == error.args[0]]
        if named:
            return f"{named[0]} is {plain(error.args[0], 60)!r}, which it does not know"
    return first_line(error)


def build_with_memory(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, model: str, dtype: str, attn: str
) -> torch.nn.Module:
    """The same model with its buffers computed; its parameters are memory that nobody has filled,
    which an operating system gives when it is first written to."""
    merged, _ = settle(config, overrides, model=model)
    with no_init_weights():
        module = _module(merged, model, dtype, attn, device="cpu")
    if isinstance(module, PreTrainedModel):  # which goes with what was left out
        module.tie_weights(recompute_mapping=False)
    return _in_dtype(module, dtype).eval()


def _in_dtype(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """A few modules choose their parameters' dtype themselves; the user's choice holds for all.

    Buffers (RoPE's frequencies) keep the precision that their code asks for.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return module


def _module(
    config: Mapping[str, Any], model: str, dtype: str, attn: str, device: str = "meta"
) -> torch.nn.Module:
    kind = config_class(config, model)
    settings = kind.from_dict(without_options(config), attn_implementation=attn)
    model_class = _model_class(settings, config, model)
    part = _part_for(model_class, settings, model)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            module: torch.nn.Module = model_class(part)
    finally:
        torch.set_default_dtype(previous)
    return module


def _drop_data(module: torch.nn.Module) -> None:
    """Parameters that were made with data whatever the default device is, without it."""
    without: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # one that is shared stays so
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.is_meta:
                empty = torch.nn.Parameter(parameter.to("meta"))
                part.register_parameter(name, without.setdefault(parameter, empty))


def settle(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, model: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the config with the overrides applied, what a user must know of its sizes).

    A dot in a key reaches into a nested table. An override that lowers the number of layers cuts
    the lists that had one entry a layer, unless the config derives them from the number anew.
    Raises InputError for a field that the config does not have, and as ``check_sizes``.
    """
    config, formed = in_todays_form(config, model)
    kind = config_class(config, model)
    aliases = kind.attribute_map
    default = described(kind, {})
    full = described(kind, config) or {**default, **config}
    known = {*config, *full, *aliases, "architectures"}
    for key in overrides:
        if key in _ELSEWHERE:
            raise InputError(f"--set {key}: {_ELSEWHERE[key]}")
        if default and key.split(".")[0] not in known:
            inside = [
                f"{table}.{key}"
                for table, fields in full.items()
                if isinstance(fields, dict) and key in fields
            ]
            raise InputError(
                f"--set {key}: the config of {model} ({kind.__name__}) has no such field."
                + (f" Do you mean {' or '.join(inside)}?" if inside else suggest(key, known))
            )
    paths = {key: _path(key, aliases) for key in overrides}
    merged: dict[str, Any] = json.loads(json.dumps(config))
    for key, path in paths.items():
        try:
            _table(merged, path[:-1])[path[-1]] = overrides[key]
        except (AttributeError, TypeError) as error:
            raise InputError(f"--set {key}: {path[0]} of {model} is no table of fields") from error
    for *where, _ in paths.values():  # of a config inside of which only these fields are said
        for depth in range(1, len(where) + 1):
            inside = _table(full, where[:depth])
            if not isinstance(inside, dict):
                break
            if "model_type" in inside:
                _table(merged, where[:depth]).setdefault("model_type", inside["model_type"])
    after = described(kind, merged)
    notes = []
    for key, (*where, name) in paths.items():
        old, new = _table(full, where).get(name), overrides[key]
        if not _DEPTH.fullmatch(name) or type(old) is not int or type(new) is not int:
            continue
        if new < 1:
            continue  # which is said of the config
        for field, entries in _table(full, where).items():
            if not isinstance(entries, list) or len(entries) != old or new == old:
                continue
            if old == 1 and "type" not in field:
                continue  # a list of one entry may be of anything, as architectures is
            if (*where, field) in map(tuple, paths.values()):
                continue
            given = field in _table(config, where)
            if not given and after and len(_table(after, where).get(field) or ()) != old:
                continue  # made from the number of layers
            if new > old and given:
                raise InputError(
                    f"--set {key}={new}: {field} of {model} has {old} entries, one a layer; "
                    f"--set {'.'.join([*where, field])} too"
                )
            if new < old:
                _table(merged, where)[field] = entries[:new]
                notes.append(f"{field} is cut to its first {new} of {old} entries, one a layer")
    try:
        said = check_sizes(merged, model)
    except InputError as error:
        if overrides and _is_sound(config, model):
            raise InputError(f"{error}. Check --set {', '.join(overrides)}.") from error
        raise
    return merged, (*formed, *said, *notes)


def _is_sound(config: Mapping[str, Any], model: str) -> bool:
    """Whether the sizes of a config are those of a model."""
    try:
        check_sizes(config, model)
    except InputError:
        return False
    return True


def _path(key: str, aliases: Mapping[str, str]) -> list[str]:
    first, *rest = key.split(".")
    return [aliases.get(first, first), *rest]


def _table(config: Any, where: list[str]) -> Any:
    """The nested table of a config, made where it is missing."""
    return reduce(lambda table, key: table.setdefault(key, {}), where, config)


def _model_class(settings: Any, config: Mapping[str, Any], model: str) -> Any:
    """The class that the config names, else the first head there is of its type, else no head."""
    named = architectures(config)
    for name in named:
        if (found := known_class(name)) is not None:
            return found
    fitting = _fitting(type(settings))
    if getattr(settings, "is_encoder_decoder", False):
        both = [m[type(settings)] for m in _ENCODER_DECODERS if type(settings) in m]
        fitting.sort(key=lambda found: found not in both)
    if named and fitting:
        classes = dict.fromkeys(c.__name__ for c in fitting if isinstance(c, type))
        raise InputError(
            f"{model}: transformers {version('transformers')} has no architecture "
            f"{' or '.join(named)}. "
            f"For a {settings.model_type} there are: {', '.join(classes)}; choose one with e.g. "
            f"--set architectures={next(iter(classes))}"
        )
    if not fitting:
        raise InputError(f"{model}: no architecture for model_type {settings.model_type!r}")
    return _first(fitting)


_ENCODER_DECODERS = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING)
_HEADS = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    *_ENCODER_DECODERS,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    *(m for name, m in vars(auto).items() if re.fullmatch("MODEL_FOR_(?!BACKBONE).*MAPPING", name)),
)
"""The Auto classes of transformers, in the order in which a config without a class gets one."""


def _fitting(kind: Any) -> list[Any]:
    """The models of a type of config, the first choice first: those that transformers lists, else
    all that the type's own modules have."""
    listed = [m[kind] for m in _HEADS if kind in m]
    if listed:
        return listed
    package = kind.__module__.rpartition(".")[0]
    folder = Path(inspect.getfile(kind)).parent
    modules = [import_module(f"{package}.{file.stem}") for file in folder.glob("modeling_*.py")]
    classes = (known_class(name) for module in modules for name in sorted(vars(module)))
    return list(dict.fromkeys(c for c in classes if c is not None and c.config_class is kind))


def part_classes(kind: Any) -> list[str]:
    """The models of the parts of a type of config, one each."""
    parts = [part for part in kind.sub_configs.values() if hasattr(part, "model_type")]
    known = (CONFIG_MAPPING[p.model_type] for p in parts if p.model_type in CONFIG_MAPPING)
    found = map(_fitting, known)
    return [_first(fitting).__name__ for fitting in found if fitting]


def _part_for(model_class: Any, settings: Any, model: str) -> Any:
    """The part of a config that a model class takes: the decoder of a model of many parts.

    Raises InputError for a class that takes configs of other types.
    """
    wanted = model_class.config_class
    parts = [getattr(settings, name, None) for name in type(settings).sub_configs]
    for part in (settings, *parts):
        if wanted is None or isinstance(part, wanted):
            return part
    if model_class in _classes_of(type(settings)):
        return settings
    fitting = _fitting(type(settings))
    instead = f": choose one of its own with e.g. --set architectures={_first(fitting).__name__}"
    raise InputError(
        f"{model}: {model_class.__name__} is no model of model_type {settings.model_type!r}, but "
        f"of {wanted.model_type!r}{instead if fitting else ''}"
    )


def _classes_of(kind: Any) -> set[Any]:
    """All classes of transformers that take a type of config."""
    mappings = [m for name, m in vars(auto).items() if re.fullmatch("MODEL_.*MAPPING", name)]
    found = [m[kind] for m in mappings if kind in m]
    return {one for some in found for one in (some if isinstance(some, tuple) else (some,))}


def _first(fitting: Sequence[Any]) -> Any:
    first = fitting[0]
    return first[0] if isinstance(first, tuple) else first
