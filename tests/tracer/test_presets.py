"""Presets against what is published: parameter counts, keys that a config class reads, form."""

import copy
import csv
import dataclasses
import json
from functools import cache
from typing import Any

import pytest
import transformers

from tests.support import REFERENCE
from tracer.capture import capture, quiet
from tracer.capture.memory import parameter_count
from tracer.capture.models import build
from tracer.presets import _FOLDER, describe, preset, preset_names

UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}

READ_OTHERWISE = {
    ("deepseek_v4", "expert_dtype"): "by costmodels.checkpoints, which stores experts so",
    ("minimax_m2", "rotary_dim"): "by convert_rope_params_to_dict, into rope_parameters",
    ("gemma3_text", "sliding_window_pattern"): "by __post_init__, to lay out layer_types",
    ("phi3", "partial_rotary_factor"): "by convert_rope_params_to_dict, into rope_parameters",
    ("qwen3_moe", "head_dim"): "by the attention, where the config has it",
}
"""(model type, key) that is no field of the config class and yet stays -> who reads it."""


@cache
def published() -> dict[str, dict[str, str]]:
    """The figures of model cards and indexes; ``besides`` counts what is no part of the module."""
    with (REFERENCE / "parameters.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len({row["model"] for row in rows}) == len(rows)
    return {row["model"]: row for row in rows}


def written(count: int, like: str, precision: str) -> str:
    """``count`` in the unit and to the decimals of a published figure such as 67.0M, ``rounded`` to
    them or ``cut`` behind them."""
    unit, decimals = like[-1], len(like[:-1].partition(".")[2])
    last = UNITS[unit] // 10**decimals
    whole = count // last * last if precision == "cut" else count
    return f"{whole / UNITS[unit]:.{decimals}f}{unit}"


def test_every_preset_has_a_row():
    assert list(published()) == preset_names()
    for row in published().values():
        assert row["source"]
        assert row["precision"] in ("exact", "rounded", "cut")


TOWERS = ("text_config", "vision_config", "audio_config")


def of_each_type() -> dict[str, str]:
    """Model type -> its preset of the fewest layers."""
    shallow: dict[str, str] = {}
    for name in sorted(preset_names(), key=lambda name: describe(preset(name))["layers"]):
        shallow.setdefault(preset(name)["model_type"], name)
    return shallow


HEAVY = {"deepseek_v4", "deepseek_v32", "gemma4", "gemma4_unified", "glm_moe_dsa", "kimi_k25"} | {
    *("llama4", "minimax_m2", "mistral3", "nemotron_h", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe")
}
"""Types that take a second to build."""

SHALLOW = {name for kind, name in of_each_type().items() if kind not in HEAVY}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in SHALLOW else pytest.mark.slow) for n in preset_names()],
)
def test_parameters_are_those_that_are_published(name):
    row = published()[name]
    with quiet():
        module = build(preset(name), {}, model=name, dtype="float32", attn="eager")
    count = parameter_count(module) + int(row["besides"])
    if row["precision"] == "exact":
        assert count == int(row["parameters"])
    else:
        assert written(count, row["parameters"], row["precision"]) == row["parameters"]


def unread(config: dict[str, Any]) -> list[str]:
    """The keys of a config that its class keeps without being a field of it: nobody reads them.

    Those of a config inside it too, but for what says how a checkpoint is stored.
    """
    kind = config["model_type"]
    config_class = transformers.CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(config_class)}
    known = {"model_type", "quantization_config", *fields, *config_class.attribute_map}
    settings = vars(config_class.from_dict(copy.deepcopy(config)))
    inside = [config[key] for key in config if key.endswith("_config") and key in fields]
    return [
        key
        for key in config
        if key not in known and key in settings and (kind, key) not in READ_OTHERWISE
    ] + [key for one in inside for key in unread(one)]


@pytest.mark.parametrize("name", preset_names())
def test_every_key_is_read(name):
    assert unread(preset(name)) == []


def test_a_key_that_nobody_reads_is_noticed():
    assert unread({**preset("gemma-3-1b"), "num_hidden_layer": 3}) == ["num_hidden_layer"]
    assert unread({**preset("llama-3.2-1b"), "rope_thetta": 1.0}) == ["rope_thetta"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_formatted_alike(name):
    """Two spaces, the class and the type first, all else in the order of the alphabet."""
    text = (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    config = preset(name)
    assert text == json.dumps(config, indent=2) + "\n"
    first, *rest = config
    assert first == "architectures"
    inside = [list(config[key]) for key in config if key in TOWERS]
    for kind, *keys in (rest, *inside):
        assert (kind, keys) == ("model_type", sorted(keys))
    (architecture,) = config["architectures"]
    assert architecture in transformers._class_to_module  # without importing it


def test_experts_are_described():
    experts = {name: describe(preset(name))["experts"] for name in preset_names()}
    assert {name: count for name, count in experts.items() if count is not None} == {
        "deepseek-v3": "8 of 256",
        "deepseek-v3.2": "8 of 256",
        "deepseek-v4-flash": "6 of 256",
        "deepseek-v4-pro": "6 of 384",
        "gemma-4-26b-a4b": "8 of 128",
        "glm-5": "8 of 256",
        "gpt-oss-120b": "4 of 128",
        "gpt-oss-20b": "4 of 32",
        "kimi-k2": "8 of 384",
        "kimi-k2.5": "8 of 384",
        "llama-4-maverick": "1 of 128",
        "llama-4-scout": "1 of 16",
        "minimax-m2.5": "8 of 256",
        "mistral-small-4-119b": "4 of 128",
        "mixtral-8x22b": "2 of 8",
        "mixtral-8x7b": "2 of 8",
        "nemotron-3-nano-30b-a3b": "6 of 128",
        "nemotron-3-super-120b-a12b": "22 of 512",
        "nemotron-3-ultra-550b-a55b": "22 of 512",
        "qwen3-235b-a22b": "8 of 128",
        "qwen3-30b-a3b": "8 of 128",
        "qwen3-vl-235b-a22b": "8 of 128",
        "qwen3-vl-30b-a3b": "8 of 128",
        "qwen3.5-122b-a10b": "8 of 256",
        "qwen3.5-35b-a3b": "8 of 256",
        "qwen3.5-397b-a17b": "10 of 512",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_traced_with_symbols(name):
    found = capture(preset(name), model=name, seq=64)
    assert found.graph.meta.symbolic == ("batch", "seq")
    assert len(found.warnings) <= 1
    row = published()[name]
    if row["precision"] == "exact":
        assert found.graph.meta.parameters == int(row["parameters"]) - int(row["besides"])
