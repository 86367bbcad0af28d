"""The model of a config, without weights."""

import json
from collections.abc import Mapping
from functools import reduce
from importlib.metadata import version
from typing import Any

import torch
import transformers

from tracer.capture.errors import first_line
from tracer.errors import InputError, suggest


def build(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, model: str, dtype: str, attn: str
) -> torch.nn.Module:
    """The model of a config, in evaluation mode, with parameters that have shapes and no data."""
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{model}: transformers {version('transformers')} knows no model_type {kind!r}."
            + suggest(str(kind), transformers.CONFIG_MAPPING.keys())
        )
    config_class = transformers.CONFIG_MAPPING[kind]
    previous = torch.get_default_dtype()
    try:
        known = {*config, *config_class().to_dict(), *config_class.attribute_map}
        for key in overrides:
            if key.split(".")[0] not in known:
                raise InputError(
                    f"--set {key}: the config of {model} ({config_class.__name__}) has no such "
                    "field." + suggest(key, known)
                )
        merged = _override(config, overrides, config_class.attribute_map)
        settings = config_class.from_dict(merged, attn_implementation=attn)
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device("meta"):
            module: torch.nn.Module = _model_class(settings, config)(settings)
    except InputError:
        raise
    except Exception as error:  # any mistake in a config surfaces as any exception of transformers
        raise InputError(
            f"{model}: no model can be built from this config: {first_line(error)}."
            + (f" Check --set {', '.join(overrides)}." if overrides else " Check the config.json.")
        ) from error
    finally:
        torch.set_default_dtype(previous)
    # A few modules choose their parameters' dtype themselves; the user's choice holds for all.
    # Buffers (RoPE's frequencies) keep the precision that their code asks for.
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return module.eval()


def _override(
    config: Mapping[str, Any], overrides: Mapping[str, Any], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """The config with the overrides applied; a dot in a key reaches into a nested table."""
    result: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in overrides.items():
        first, *rest = key.split(".")
        path = [aliases.get(first, first), *rest]
        table = reduce(lambda t, k: t.setdefault(k, {}), path[:-1], result)
        table[path[-1]] = value
    return result


def _model_class(settings: Any, config: Mapping[str, Any]) -> Any:
    """The class that the config names, else the causal LM of its type, else the bare model."""
    for name in config.get("architectures") or ():
        if (found := getattr(transformers, name, None)) is not None:
            return found
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(settings) in mapping:
            return mapping[type(settings)]
    raise InputError(f"no architecture for model_type {settings.model_type!r}")


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters, tied weights once."""
    return sum(p.numel() for p in module.parameters())
