"""Presets against what is published: parameter counts, keys that a config class reads, form."""

import csv
import dataclasses
import json
from functools import cache

import pytest
import transformers

from tests.support import REFERENCE
from tracer.capture import capture, quiet
from tracer.capture.memory import parameter_count
from tracer.capture.models import build
from tracer.presets import _FOLDER, describe, preset, preset_names

UNITS = {"M": 10**6, "B": 10**9}

READ_OTHERWISE = {
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


def rounded(count: int, like: str) -> str:
    """``count`` in the unit and to the decimals of a published figure such as 67.0M."""
    unit, decimals = like[-1], len(like[:-1].partition(".")[2])
    return f"{count / UNITS[unit]:.{decimals}f}{unit}"


def test_every_preset_has_a_row():
    assert list(published()) == preset_names()
    for row in published().values():
        assert row["source"]
        assert row["precision"] in ("exact", "rounded")


def of_each_type() -> dict[str, str]:
    """Model type -> its preset of the fewest layers."""
    shallow: dict[str, str] = {}
    for name in sorted(preset_names(), key=lambda name: describe(preset(name))["layers"]):
        shallow.setdefault(preset(name)["model_type"], name)
    return shallow


SHALLOW = set(of_each_type().values())


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
        assert rounded(count, row["parameters"]) == row["parameters"]


def unread(config: dict[str, object]) -> list[str]:
    """The keys of a config that its class keeps without being a field of it: nobody reads them."""
    kind = config["model_type"]
    config_class = transformers.CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(config_class)}
    known = {"model_type", *fields, *config_class.attribute_map}
    settings = vars(config_class.from_dict(config))
    return [
        key
        for key in config
        if key not in known and key in settings and (kind, key) not in READ_OTHERWISE
    ]


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
    assert (first, rest[0]) == ("architectures", "model_type")
    assert rest[1:] == sorted(rest[1:])
    (architecture,) = config["architectures"]
    assert hasattr(transformers, architecture)


def test_experts_are_described():
    experts = {name: describe(preset(name))["experts"] for name in preset_names()}
    assert {name: count for name, count in experts.items() if count is not None} == {
        "deepseek-v3": "8 of 256",
        "gpt-oss-120b": "4 of 128",
        "gpt-oss-20b": "4 of 32",
        "mixtral-8x22b": "2 of 8",
        "mixtral-8x7b": "2 of 8",
        "qwen3-235b-a22b": "8 of 128",
        "qwen3-30b-a3b": "8 of 128",
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
