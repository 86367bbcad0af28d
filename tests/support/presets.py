"""Which presets every run of the tests sweeps over."""

from typing import Any

import pytest

QUICK = {
    *("distilbert", "edge-10m", "gpt2", "llama-3.2-1b", "qwen1.5-0.5b", "tinyllama-1.1b"),
    "gemma-3-270m",  # layers that take turns, norms on both sides of each part
    "mobilebert",  # bottlenecks
}
"""The presets that every run of the tests sweeps over; the others are swept over as slow tests."""


def swept(names: list[str]) -> list[Any]:
    """The names as parameters of a test, slow where they are not quick."""
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]
