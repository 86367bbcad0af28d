"""Models by name: the config.json of each preset, as data, and configs from users' files."""

import json
import logging
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracer.errors import CutedgeError, InputError, alike, suggest
from tracer.files import parse_json, read_bounded
from tracer.words import plain

_FOLDER = files("tracer") / "presets"


FUNCTION = re.compile(r"(.+\.py):(\w+)")
"""What a user calls a module of their own: ``file.py:function``."""


FILES = (".json", ".pt2", ".gguf", ".onnx")
"""The ends of files that are models."""


def preset_names() -> list[str]:
    """The models that cutedge knows by name."""
    return sorted(Path(entry.name).stem for entry in _FOLDER.iterdir())


def preset(name: str) -> dict[str, Any]:
    """The config of a preset."""
    config: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config


def find_config(model: str) -> tuple[str, dict[str, Any]]:
    """(name, config) of what the user calls a model.

    That is a preset, a config.json, a folder with one, or a model of the Hugging Face hub:
    ``org/name``, or ``org/name@revision``. Raises InputError when there is no such thing, or the
    file is no config; CutedgeError when the hub cannot be reached.
    """
    if model in preset_names():
        return model, preset(model)
    path = Path(model)
    if os.path.isdir(path):  # unlike Path's, False for a name that no file may have
        path = path / "config.json"
        if not path.is_file():
            raise InputError(f"{model} has no config.json; a model's folder must hold one")
    if not os.path.isfile(path) and _HUB_ID.fullmatch(model) and not path.parent.is_dir():
        name, _, revision = model.partition("@")
        return model, _read(_from_hub(name, revision or None))
    if not os.path.isfile(path):
        raise InputError(
            f"unknown model {model!r}: neither a preset (see: cutedge models), nor a path that "
            "exists, nor org/name on the hub, nor file.py:function, nor timm:name or "
            "torchvision:name." + suggest(model.lower(), preset_names())
        )
    if path.name != "config.json":
        return path.stem, _read(path)
    return path.resolve().parent.name, _with_storage(_read(path), path.parent)


_SIDECARS = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files beside a config that say how its checkpoint is stored -> the ``quant_method`` of each."""


def _with_storage(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config with what a file beside it says of its checkpoint, where it says nothing itself."""
    if config.get("quantization_config") or config.get("quantization"):
        return config
    for name, method in _SIDECARS.items():
        if (folder / name).is_file():
            told = read_config(folder / name)
            told = told if isinstance(told, dict) else {"quant_method": name}
            return {**config, "quantization_config": {"quant_method": method, **told}}
    return config


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.json)(?<!\.py)(@[\w./-]+)?")


def matching_configs(part: str | None) -> dict[str, dict[str, Any]]:
    """The presets with ``part`` in their name, all where it is None, with their configs by name.

    Where one or no preset has it, ``part`` may be all that ``find_config`` takes.
    """
    names = [name for name in preset_names() if part is None or part.lower() in name]
    exact = None if part is None else alike(part, preset_names())
    if part is not None and (exact or len(names) < 2):
        return dict([find_config(exact or [*names, part][0])])
    return {name: preset(name) for name in names}


def _from_hub(name: str, revision: str | None) -> Path:
    """The config.json of a model of the hub: from the local cache, else from the network."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    which = f"{name}@{revision}" if revision else name
    like = suggest(name.rpartition("/")[2].lower(), preset_names())
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        kept = hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(kept, str):
            return Path(kept)
        # Fails at once where there is no network; the download would try again and again.
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json", revision=revision), timeout=10)
        return Path(hub.hf_hub_download(name, "config.json", revision=revision))
    except errors.GatedRepoError as error:
        raise CutedgeError(
            f"{which} is gated: accept its terms on the hub and log in (hf auth login), or give "
            f"the path of a config.json.{like}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(
            f"{which} is neither a path that exists nor a model that the hub shows.{like}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{which} has no config.json on the hub") from error
    except Exception as error:  # of the network, in whatever library the hub's uses for it
        raise CutedgeError(
            f"{which} is neither a path that exists nor in the local cache of the hub, and the hub "
            f"cannot be reached. Give the path of a config.json.{like}"
        ) from error


_MOST_BYTES = 2**24
"""Of a config; those with a name for each of thousands of classes have some hundred thousand."""


def _read(path: Path) -> dict[str, Any]:
    return check_config(read_config(path), str(path))


def read_config(path: Path) -> Any:
    """What a file of JSON says. Raises InputError for one that cannot be read, or is damaged."""
    try:
        data = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data.strip():
        raise InputError(f"{path} is damaged, it is not valid JSON: it is empty")
    for start, what in _NO_CONFIG.items():
        if data.lstrip()[: len(start)].lower() == start:
            raise InputError(f"{path} {what}")
    try:
        text = data.decode(json.detect_encoding(data))  # also UTF-16, and with a mark at its start
        return parse_json(text, pairs=_without_doubt)
    except ValueError as error:  # bad JSON or a bad encoding
        raise InputError(f"{path} is damaged, it is not valid JSON: {error}") from error


_NO_CONFIG = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run git lfs pull",
    b"<!doctype html": "is a page of HTML: get the file itself",
    b"<html": "is a page of HTML: get the file itself",
}
"""How a file begins that was meant to be a config -> what it is."""


def _without_doubt(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON. Raises ValueError where it has two values for one key."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table and table[key] != value:
            raise ValueError(f"it has two values for {plain(key, 60)!r}")
        table[key] = value
    return table


def check_config(config: Any, called: str) -> dict[str, Any]:
    """A config as it is. Raises InputError, with what it is ``called``, where it is no config.

    One without a ``model_type`` has ``architectures``, which tell it (``tracer.capture.forms``).
    """
    if not isinstance(config, dict):
        raise InputError(f"{called} is no model config: it is no table of fields")
    if "peft_type" in config:
        base = plain(str(config.get("base_model_name_or_path")), 80)
        raise InputError(f"{called} is an adapter of {base}, no model: trace that")
    kind, named = config.get("model_type"), config.get("architectures")
    told = isinstance(kind, str) or (kind is None and named and isinstance(named, list | str))
    if not told:
        raise InputError(
            f"{called} is no model config: it has no model_type, and no architectures that tell "
            'it; add one, such as "model_type": "llama"'
        )
    if _depth(config) > _DEEPEST:
        raise InputError(f"{called} is no model config: tables nest more than {_DEEPEST} deep")
    return config


_DEEPEST = 50


def _depth(config: Any) -> int:
    """How deep tables and lists nest, counted no further than is allowed."""
    level, depth = [config], 0
    while level and depth <= _DEEPEST:
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inside for v in values if isinstance(v, dict | list)]
        depth += 1
    return depth


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config names for its checkpoint; None where it names none.

    >>> config_dtype({"text_config": {"torch_dtype": "bfloat16"}})
    'bfloat16'
    """
    inside = (v for k, v in config.items() if k != "quantization_config")
    tables = [config, *(table for table in inside if isinstance(table, dict))]
    named = [table.get(key) for table in tables for key in ("dtype", "torch_dtype")]
    found = next((name for name in named if isinstance(name, str) and name != "auto"), None)
    return None if found is None else found.removeprefix("torch.")


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
            overrides[key] = parse_json(text)
        except ValueError:
            overrides[key] = text
    return overrides


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a config that tell models apart, under one name for all families.

    Those of its language model, where a config has one inside.
    """
    inside = config.get("text_config")
    told = {**config, **inside} if isinstance(inside, dict) else config

    def first(*keys: str) -> Any:
        return next((told[key] for key in keys if told.get(key) is not None), None)

    heads = first("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads")
    experts = first("num_local_experts", "n_routed_experts", "num_experts")
    chosen = first("num_experts_per_tok", "top_k_experts")
    pattern = first("hybrid_override_pattern", "layers_block_type")
    return {
        "type": config.get("model_type"),
        "layers": first("num_hidden_layers", "n_layer", "n_layers", "decoder_layers")
        or (len(pattern) if pattern else None),
        "hidden": first("hidden_size", "n_embd", "dim", "d_model"),
        "heads": heads,
        "kv_heads": first("num_key_value_heads") or heads,
        "vocabulary": first("vocab_size"),
        "positions": first("max_position_embeddings", "n_positions", "max_target_positions"),
        "experts": f"{chosen} of {experts}" if experts else None,
    }
