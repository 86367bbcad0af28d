"""Which presets every run of the tests sweeps over, and a small model of another kind."""

from collections.abc import Collection
from typing import Any

import pytest

QUICK = (
    *("edge-10m", "llama-3.2-1b", "distilbert", "gpt2", "qwen1.5-0.5b", "tinyllama-1.1b"),
    "gemma-3-270m",  # layers that take turns, norms on both sides of each part
    "mobilebert",  # bottlenecks
)
"""The presets that are not slow, those that other tests trace as well first."""

WINDOWED = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""A small model whose layers look back through a window, of whatever ``sliding_window``."""


def swept(names: Collection[str], quick: Collection[str] = QUICK) -> list[Any]:
    """The names as parameters of a test, the quick ones first and the others slow."""
    first = [name for name in quick if name in names]
    return [*first, *(pytest.param(n, marks=pytest.mark.slow) for n in names if n not in first)]
