"""Models by name: the config.json of each preset, as data, and configs from users' files."""

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracer.errors import InputError, suggest

_FOLDER = files("tracer") / "presets"


def preset_names() -> list[str]:
    """The models that cutedge knows by name."""
    return sorted(Path(entry.name).stem for entry in _FOLDER.iterdir())


def preset(name: str) -> dict[str, Any]:
    """The config of a preset."""
    config: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config


def find_config(model: str) -> tuple[str, dict[str, Any]]:
    """(name, config) of what the user calls a model: a preset, a config.json, or its folder.

    Raises InputError when there is no such thing, or the file is no config.
    """
    if model in preset_names():
        return model, preset(model)
    path = Path(model)
    if os.path.isdir(path):  # unlike Path's, False for a name that no file may have
        path = path / "config.json"
        if not path.is_file():
            raise InputError(f"{model} has no config.json; a model's folder must hold one")
    if not os.path.isfile(path):
        raise InputError(
            f"unknown model {model!r}: neither a preset (see: cutedge models) nor a path that "
            "exists." + suggest(model.lower(), preset_names())
        )
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return name, _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # bad JSON or bad UTF-8
        raise InputError(f"{path} is damaged, it is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{path} is no model config: it has no model_type")
    return config


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """``["num_key_value_heads=32"]`` -> ``{"num_key_value_heads": 32}``.

    A value is JSON where it is valid JSON, else text. Raises InputError for what has no ``=``.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: write it as key=value")
        try:
            overrides[key] = json.loads(text)
        except (ValueError, RecursionError):
            overrides[key] = text
    return overrides


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a config that tell models apart, under one name for all families."""

    def first(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    heads = first("num_attention_heads", "n_head", "n_heads")
    experts = first("num_local_experts", "n_routed_experts", "num_experts")
    return {
        "type": config.get("model_type"),
        "layers": first("num_hidden_layers", "n_layer", "n_layers"),
        "hidden": first("hidden_size", "n_embd", "dim"),
        "heads": heads,
        "kv_heads": first("num_key_value_heads") or heads,
        "vocabulary": config.get("vocab_size"),
        "positions": first("max_position_embeddings", "n_positions"),
        "experts": f"{config.get('num_experts_per_tok')} of {experts}" if experts else None,
    }
