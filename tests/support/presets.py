"""Which presets every run of the tests sweeps over."""

from typing import Any

import pytest

QUICK = (
    *("edge-10m", "llama-3.2-1b", "distilbert", "gpt2", "qwen1.5-0.5b", "tinyllama-1.1b"),
    "gemma-3-270m",  # layers that take turns, norms on both sides of each part
    "mobilebert",  # bottlenecks
)
"""The presets that are not slow, those that other tests trace as well first."""


def swept(names: list[str]) -> list[Any]:
    """The names as parameters of a test, the quick ones first and the others slow."""
    quick = [name for name in QUICK if name in names]
    return [*quick, *(pytest.param(n, marks=pytest.mark.slow) for n in names if n not in quick)]
