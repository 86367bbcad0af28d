"""Published measurements (``tests/reference/measured.csv``), and what the cost models say of them.

A row is a matrix product or an attention by itself, or one step of decode: its unit is turned into
seconds, its model and its card into those that cutedge knows. What of a row is not known is a
``reason`` why nothing is predicted.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from costmodels.devices import Device, load_device
from costmodels.engines import Engine
from costmodels.roofline import Rule, time_ops
from tracer.graph import ITEM_BYTES, OpGraph

FILE = Path(__file__).parents[1] / "tests" / "reference" / "measured.csv"

DEVICES: Mapping[str, str] = {
    "A100-SXM4-80GB": "a100-80g",
    "A100 80GB": "a100-80g",
    "A100-80GB (330 W limit)": "a100-80g",
    "H100 80GB HBM3": "h100-sxm",
    "H200": "h200",
    "L40S": "l40s",
    "L40S 48GB": "l40s",
    "A100 SXM 80GB": "a100-80g",
    "RTX 4090": "rtx-4090",
    "RTX 4090 24GB": "rtx-4090",
}
"""What a row calls a card -> the device that it is."""

MODELS: Mapping[str, str] = {
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-3B-Instruct": "qwen2.5-3b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen2.5-14B-Instruct": "qwen2.5-14b",
    "Qwen/Qwen2.5-32B-Instruct": "qwen2.5-32b",
    "Qwen/Qwen1.5-0.5B-Chat": "qwen1.5-0.5b",
    "Qwen/Qwen1.5-7B-Chat": "qwen1.5-7b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2-7b",
    "codellama/CodeLlama-7b-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3-8B (8B)": "llama-3.1-8b",
}
"""What a row calls a model -> a preset with the same sizes (weights' values do not matter)."""

ENGINES: Mapping[str, str] = {
    "HF transformers 4.46 eager": "hf-eager",
    "HF transformers eager without FA2": "hf-eager",
    "plain PyTorch eager": "hf-eager",
    "vLLM 0.6.3 CUDA graphs": "vllm",
    "gpt-fast, torch.compile": "gpt-fast",
    "llama.cpp CUDA PR branch": "llama.cpp-2024",
    "llama.cpp llama-bench (May 2024)": "llama.cpp-2024",
    "llama.cpp CUDA, FA, pp512@d32768": "llama.cpp-2025",
    "llama.cpp CUDA Aug 2025": "llama.cpp-2025",
    "vLLM linear kernel, microbench": "vllm",
    "flash-attn": "vllm",
}
"""How a row's engine begins -> the engine that it is."""

DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "f16": "float16", "fp16": "float16"}
"""Weight formats that are a dtype of the whole model."""

STORED: Mapping[str, tuple[str, str]] = {
    "q8_0": ("float16", "q8_0"),
    "q4_0": ("float16", "q4_0"),
    "q4_k_m": ("float16", "q4_k_m"),
    "int8": ("bfloat16", "int8"),
    "int4-g32": ("bfloat16", "int4-g32"),
}
"""Weight formats -> (what the model computes in, what its weights are stored in)."""

_GEMM = re.compile(r"single GEMM m=(\d+) n=(\d+) k=(\d+)")
_ATTENTION = re.compile(r"decode attention (\d+) q heads, (\d+) kv heads, d=(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement."""

    fields: Mapping[str, str]
    """The columns of the file."""

    def __getitem__(self, column: str) -> str:
        return self.fields[column]

    @property
    def id(self) -> str:
        """Of its group and number, like ``C10``."""
        return self["id"]

    @property
    def device(self) -> Device | None:
        """The card; None where cutedge has no such device."""
        name = DEVICES.get(self["device"])
        return None if name is None else load_device(name)

    @property
    def engine(self) -> str | None:
        """The name of the engine; None where it is none of ours."""
        found = [name for text, name in ENGINES.items() if self["engine"].startswith(text)]
        return found[0] if found else None

    @property
    def seconds(self) -> float | None:
        """What was measured: of the op, or of a step of decode; None for what is neither."""
        value = self["value"]
        if self["unit"] == "tok/s" and self["phase"].startswith("decode"):
            return int(self["batch"]) / float(value)
        scale = {"ms": 1e-3, "us": 1e-6}.get(self["unit"])
        return None if scale is None else float(value) * scale

    @property
    def past(self) -> int | None:
        """The mean number of cached tokens; None where it is not told."""
        text = self["context"]
        if ends := re.match(r"(\d+)\.\.(\d+)", text):
            return (int(ends[1]) + int(ends[2])) // 2
        if most := re.match(r"<=(\d+)", text):
            return int(most[1]) // 2
        return int(text) if text.isdigit() else None

    @property
    def source(self) -> str:
        """Where it was published, without the version."""
        return re.split(r"@|\.\.| \(", self["source"])[0]

    @property
    def reason(self) -> str | None:
        """Why nothing is predicted; None where something is."""
        if self["group"] not in "ACP" or not (
            _GEMM.match(self["model"])
            or _ATTENTION.match(self["model"])
            or "decode" in self["phase"]
        ):
            return "neither an op nor a step of decode on one device"
        if self.device is None:
            return f"no device {self['device']}"
        if self.engine is None:
            return f"no engine {self['engine']}"
        formats = {*DTYPES, *STORED}
        if self["weight_format"] not in formats and not _ATTENTION.match(self["model"]):
            return f"weights in {self['weight_format'] or 'a format that is not told'}"
        if "decode" in self["phase"] and self["model"] not in MODELS:
            return f"no preset of the sizes of {self['model']}"
        return None


@lru_cache(maxsize=1)
def rows() -> Mapping[str, Row]:
    """All rows by their id."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return {row["id"]: Row(row) for row in csv.DictReader(file)}


@lru_cache(maxsize=64)
def decode(model: str, weight_format: str, batch: int, past: int) -> OpGraph:
    """A step of decode, annotated."""
    import cutedge

    dtype, stored = STORED.get(weight_format, (DTYPES.get(weight_format, ""), None))
    trace = cutedge.trace(model, phase="decode", dtype=dtype, batch=batch, past=past)
    return trace.stored(stored).graph


def predicted(row: Row, engine: Engine) -> float:
    """The seconds that a row's op or step takes under an engine; only where ``reason`` is None."""
    device = row.device
    assert device is not None
    rule = Rule(device, engine)
    if gemm := _GEMM.match(row["model"]):
        m, n, k = map(int, gemm.groups())
        dtype = DTYPES[row["weight_format"]]
        moved = (m * k + k * n + m * n) * ITEM_BYTES[dtype]
        work = max(rule.compute_seconds(dtype, 2 * m * n * k), rule.memory_seconds(moved))
        return float(work) + rule.kernel_seconds(is_attention=False)
    if attention := _ATTENTION.match(row["model"]):
        heads, kv_heads, width = map(int, attention.groups())
        past = row.past
        assert past is not None
        moved = 2 * (2 * kv_heads * (past + 1) + 2 * heads) * width
        flops = 4 * heads * (past + 1) * width
        work = max(rule.compute_seconds("bfloat16", flops), rule.memory_seconds(moved))
        return float(work) + rule.kernel_seconds(is_attention=True)
    past = row.past
    assert past is not None
    graph = decode(MODELS[row["model"]], row["weight_format"], int(row["batch"]), past)
    return time_ops(graph, device, engine=engine).seconds


def residuals(ids: Iterator[str] | list[str], engine: Engine) -> dict[str, float]:
    """By row: what is predicted over what was measured, less 1."""
    found = {}
    for number in ids:
        row = rows()[number]
        measured = row.seconds
        assert measured is not None, number
        found[number] = predicted(row, engine) / measured - 1
    return found
