"""Rows of ``llama-bench -o json`` (and ``jsonl``): what was run, and what it took.

A row is of a prompt (``pp512``: ``n_prompt`` tokens, ``n_ubatch`` at once), of generated tokens
(``tg128``: ``n_gen``, one after another), or of both; ``n_depth`` tokens are cached before.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from costmodels.weights import weight_names
from tracer.errors import InputError
from tracer.words import plain

_COUNTS = ("model_size", "model_n_params", "n_prompt", "n_gen", "avg_ns")
_DEFAULTS = {"n_depth": 0, "n_ubatch": 512, "n_gpu_layers": -1, "n_cpu_moe": 0}
_FORMAT = re.compile(
    r"(?:mostly |all )?\b(B?F16|F32|I?Q\d\w*|MXFP4)(?: - (Small|Medium|Large)|\b)", re.ASCII
)
FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""What llama.cpp calls a dtype."""


_MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One benchmark."""

    number: int
    """Its place in the file, from 1."""
    model: str
    """What llama.cpp calls the model and its weights (``llama 7B Q4_0``)."""
    parameters: int
    weight_bytes: int
    device: str
    """The card, or the processor where there is no card."""
    prompt: int
    """Tokens of a prompt; 0 where only tokens are generated."""
    at_once: int
    """Tokens of a prompt that one step reads at most."""
    new: int
    """Tokens that are generated, one after another."""
    past: int
    """Tokens cached before."""
    seconds: float
    """The median of its repetitions."""
    cache: tuple[str, str]
    """What keys and what values are cached in, in words of llama.cpp."""
    device_layers: int
    """Layers on the card; -1 for all."""
    host_experts: int
    """Layers whose experts stay with the host."""

    @property
    def what(self) -> str:
        """``pp512``, ``tg128``, ``pp512+tg128 @ d4096``: as llama-bench has it in its tables."""
        parts = [f"{name}{n}" for name, n in (("pp", self.prompt), ("tg", self.new)) if n]
        return "+".join(parts) + (f" @ d{self.past}" if self.past else "")

    @property
    def text(self) -> str:
        """``row 2 (llama 7B Q4_0 tg128)``"""
        return f"row {self.number} ({self.model} {self.what})"

    @property
    def storage(self) -> tuple[str, str | None] | None:
        """(what it computes in, its weight format; None where that is the dtype), by the model's
        name; None where that does not say."""
        found = _FORMAT.search(self.model)
        if found is None:
            return None
        name, size = found[1].lower(), found[2]
        if name in FLOATS:
            return FLOATS[name], None
        with_size = f"{name}_{size[0].lower()}" if size else name
        of_experts = [f"{name}_moe"] if self.model.endswith("MoE") else []
        known = [one for one in (*of_experts, with_size, name) if one in weight_names()]
        return ("float16", known[0]) if known else None


def is_bench(value: Any) -> bool:
    """Whether what a file holds are rows of llama-bench."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {"n_prompt", "n_gen", "avg_ns"} <= {*value[0]}
    )


def read_bench(path: Path, value: Sequence[Any]) -> list[BenchRow]:
    """The rows in what a file holds. Raises InputError that names file, row and key."""
    return [_row(f"{path}: row {number}", number, row) for number, row in enumerate(value, 1)]


def _row(where: str, number: int, row: Any) -> BenchRow:
    if not isinstance(row, dict):
        raise InputError(f"{where}: an object is wanted, as llama-bench -o json writes it")
    for key in ("model_type", *_COUNTS):
        if key not in row:
            raise InputError(f"{where}: key {key!r} is missing; llama-bench -o json writes it")
    count = {key: _whole(where, row, key) for key in _COUNTS}
    count |= {
        key: _whole(where, row, key) if key in row else value for key, value in _DEFAULTS.items()
    }
    if not isinstance(row["model_type"], str):
        raise InputError(f"{where}: model_type must be text, not {row['model_type']!r}")
    if not count["n_prompt"] and not count["n_gen"]:
        raise InputError(f"{where}: n_prompt and n_gen are both 0: nothing was run")
    if count["n_ubatch"] < 1:
        raise InputError(f"{where}: n_ubatch must be 1 or more, not {count['n_ubatch']}")
    samples = row.get("samples_ns") or [count["avg_ns"]]
    if not isinstance(samples, list) or not all(
        type(one) in (int, float) and isfinite(one) and one > 0 for one in samples
    ):
        raise InputError(f"{where}: nanoseconds must be numbers of more than 0, not {samples!r}")
    cpu, gpu = (str(row.get(f"{what}_info") or "") for what in ("cpu", "gpu"))
    return BenchRow(
        number,
        plain(row["model_type"], 80),
        count["model_n_params"],
        count["model_size"],
        plain(gpu or cpu or "a device that is not named", 80),
        count["n_prompt"],
        count["n_ubatch"],
        count["n_gen"],
        count["n_depth"],
        median(samples) * 1e-9,
        (str(row.get("type_k", "f16")), str(row.get("type_v", "f16"))),
        count["n_gpu_layers"] if gpu else -1,
        count["n_cpu_moe"],
    )


def _whole(where: str, row: Mapping[str, Any], key: str) -> int:
    value, least = row[key], -1 if key == "n_gpu_layers" else 0
    most = _MOST_TOKENS if key in ("n_prompt", "n_gen", "n_depth") else 2**63 - 1
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{where}: {key} must be a whole number up to {most:,}, not {value!r}")
    return value
