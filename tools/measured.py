"""Published measurements (``tests/reference/measured.csv``), and what the cost models say of them.

A row is a matrix product or an attention by itself, a prefill, one step of decode, or a few prompts
with what follows: its unit is turned into seconds, its model and its card into those that cutedge
knows. What of a row is not known is a ``reason`` why nothing is predicted. ``Toll`` and ``Crossing``
are what two rows differ by, and what a small message takes.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from costmodels.devices import Device, load_device
from costmodels.engines import Engine
from costmodels.links import load_link, message_cost
from costmodels.roofline import Rates, time_ops
from tracer.graph import ITEM_BYTES, OpGraph

FOLDER = Path(__file__).parents[1] / "tests" / "reference"
FILE = FOLDER / "measured.csv"

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
    "RTX 3090 24GB": "rtx-3090",
    "RTX 3090": "rtx-3090",
    "RTX 3090 Ti": "rtx-3090-ti",
    "RTX 2080 8GB (448 GB/s) + Core i9-10900X (4ch DDR4, ~102 GB/s measured)": "rtx-2080",
    "A10": "a10",
    "A100 PCIe 80GB": "a100-pcie-80g",
    "A100 80GB (variant not stated)": "a100-80g",
    "H100 PCIe 80GB": "h100-pcie",
    "H100-PCIe": "h100-pcie",
    "H100 NVL 94GB (3.9 TB/s stated), EPYC 9V84 SEV-SNP": "h100-nvl",
    "H200 (host not stated), process pinned to 1 core": "h200",
}
"""What a row calls a card -> the device that it is."""

_MEDIUM = {"vocab_size": 32064, "pad_token_id": 32000, "bos_token_id": 1, "eos_token_id": 32000}

MODELS: Mapping[str, str | tuple[str, Mapping[str, int]]] = {
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
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "meta-llama/Llama-3.2-3B-Instruct": "llama-3.2-3b",
    "google/gemma-2-27b-it": "gemma-2-27b",
    "llama-2-7b Q4_K_M": "llama-2-7b",
    "llama-2-7b Q4_0": "llama-2-7b",
    "meta-llama/Llama-2-70b-chat-hf": ("llama-3.1-70b", {"vocab_size": 32000}),
    "microsoft/Phi-3-medium-128k-instruct": ("phi-4", _MEDIUM),
    "Phi-3-medium-128k": ("phi-4", _MEDIUM),
    "JackFram/llama-68m": (
        "llama-2-7b",
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
        },
    ),
}
"""What a row calls a model -> a preset with the same sizes (weights' values do not matter), or one
with what is otherwise in it."""

ENGINES: Mapping[str, str] = {
    "HF transformers 4.46 eager": "hf-eager",
    "HF transformers eager without FA2": "hf-eager",
    "plain PyTorch eager": "hf-eager",
    "vLLM 0.6.3 CUDA graphs": "vllm",
    "vLLM 0.5.4, TEE-off": "vllm",
    "vLLM, TEE-off": "vllm",
    "HF transformers": "hf-eager",
    "gpt-fast, torch.compile": "gpt-fast",
    "llama.cpp CUDA PR branch": "llama.cpp-2024",
    "llama.cpp llama-bench (May 2024)": "llama.cpp-2024",
    "llama.cpp (Dec 2023 snapshot": "llama.cpp-2024",
    "llama.cpp CUDA ngl 99 nkvo 0": "llama.cpp-2024",
    "llama.cpp without": "llama.cpp-2024",
    "llama.cpp with CUDA graphs": "llama.cpp-2024-graphs",
    "llama.cpp CUDA (July 2024, graphs": "llama.cpp-2024-graphs",
    "llama.cpp server, -ngl 99 (full GPU)": "llama.cpp-2025",
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
_PROMPTS = re.compile(r"(\d+) in \+ (\d+) out")
_BOTH = "llama.cpp without/with CUDA graphs"


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
        if self["unit"].startswith("tok/s") and self["phase"].startswith("decode"):
            return int(self["batch"]) / float(value)
        if self["unit"] == "tok/s" and self["phase"] == "prefill":
            return int(self["prompt_tokens"]) / float(value)
        scale = {"ms": 1e-3, "us": 1e-6, "ms (whole batch)": 1e-3}.get(self["unit"])
        return None if scale is None else float(value) * scale

    @property
    def past(self) -> int | None:
        """The mean number of cached tokens; None where it is not told."""
        text = self["context"].replace("short", "<=128")  # 128 tokens, as those beside it
        if ends := re.match(r"(\d+)\.\.(\d+)", text):
            return (int(ends[1]) + int(ends[2])) // 2
        if most := re.match(r"<=?(\d+)", text):
            return int(most[1]) // 2
        return int(text) if text.isdigit() else None

    @property
    def source(self) -> str:
        """Where it was published, without the version."""
        return re.split(r"@|\.\.| \(", self["source"])[0]

    @property
    def reason(self) -> str | None:
        """Why nothing is predicted; None where something is."""
        phase = self["phase"]
        is_op = _GEMM.match(self["model"]) or _ATTENTION.match(self["model"])
        if not (is_op or phase.startswith(("decode", "prefill")) or _PROMPTS.match(phase)):
            return "neither an op, a prefill nor a step of decode"
        if self["group"] == "E" or self["model"] == "not named":
            return "several devices, or not said which"
        if self.device is None:
            return f"no device {self['device']}"
        if self.engine is None:
            return f"no engine {self['engine']}"
        formats = {*DTYPES, *STORED}
        if self["weight_format"] not in formats and not _ATTENTION.match(self["model"]):
            return f"weights in {self['weight_format'] or 'a format that is not told'}"
        if not is_op and self["model"] not in MODELS:
            return f"no preset of the sizes of {self['model']}"
        return None


@lru_cache(maxsize=1)
def rows() -> Mapping[str, Row]:
    """All rows by their id."""
    found = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["engine"] == _BOTH:  # two measurements
                without = row["spread"].removeprefix("without: ")
                other = row["id"] + "-without"
                found[other] = Row({**row, "id": other, "value": without})
                row["engine"] = "llama.cpp with CUDA graphs"
            found[row["id"]] = Row(row)
    return found


@lru_cache(maxsize=64)
def step(model: str, weight_format: str, batch: int, *, past: int = 0, prompt: int = 0) -> OpGraph:
    """A step of decode over cached tokens, or a prefill of a prompt, annotated.

    ``model`` is what a row calls it, or a preset.
    """
    import cutedge

    dtype, stored = STORED.get(weight_format, (DTYPES.get(weight_format, ""), None))
    preset = MODELS.get(model, model)
    name, overrides = (preset, {}) if isinstance(preset, str) else preset
    sizes = {"seq": prompt} if prompt else {"phase": "decode", "past": past}
    trace = cutedge.trace(name, dtype=dtype, batch=batch, overrides=overrides, **sizes)  # type: ignore[arg-type]
    return trace.stored(stored).graph


def predicted(row: Row, engine: Engine) -> float:
    """The seconds that a row's op or step takes under an engine; only where ``reason`` is None."""
    device = row.device
    assert device is not None
    rates = Rates(device, engine)
    if gemm := _GEMM.match(row["model"]):
        m, n, k = map(int, gemm.groups())
        dtype = DTYPES[row["weight_format"]]
        moved = (m * k + k * n + m * n) * ITEM_BYTES[dtype]
        work = max(rates.compute_seconds(dtype, 2 * m * n * k), rates.memory_seconds(moved))
        return float(work) + rates.kernel_seconds(is_attention=False)
    if attention := _ATTENTION.match(row["model"]):
        heads, kv_heads, width = map(int, attention.groups())
        past = row.past
        assert past is not None
        moved = 2 * (2 * kv_heads * (past + 1) + 2 * heads) * width
        flops = 4 * heads * (past + 1) * width
        work = max(rates.compute_seconds("bfloat16", flops), rates.memory_seconds(moved))
        return float(work) + rates.kernel_seconds(is_attention=True)
    model = row["model"], row["weight_format"], int(row["batch"])
    if row["phase"] == "prefill":
        graph = step(*model, prompt=int(row["prompt_tokens"]))
        return time_ops(graph, device, engine=engine).seconds
    past = row.past
    assert past is not None
    graph = step(*model, past=past)
    time = time_ops(graph, device, engine=engine)
    if prompts := _PROMPTS.match(row["phase"]):
        prompt, new = map(int, prompts.groups())
        before = time_ops(step(*model, prompt=prompt), device, engine=engine).seconds
        return before + (new - 1) * time.seconds
    if row["phase"] == "decode-like":  # parts of one prompt, of which the last alone has logits
        head = [op.id for op in graph.ops if op.module_path == "lm_head"]
        return time.seconds - sum(time.ops[op].seconds or 0.0 for op in head)
    return time.seconds


def residuals(ids: Iterator[str] | list[str], engine: Engine) -> dict[str, float]:
    """By row: what is predicted over what was measured, less 1."""
    found = {}
    for number in ids:
        row = rows()[number]
        measured = row.seconds
        assert measured is not None, number
        found[number] = predicted(row, engine) / measured - 1
    return found


@dataclass(frozen=True, slots=True)
class Toll:
    """What a step takes longer in confidential mode: two rows, and the link that should say it."""

    off: str
    """The row without confidential mode."""
    on: str
    """The row with it."""
    link: str
    """The confidential link."""
    steps: int = 1
    """How many steps the rows are of."""
    given: bool = True
    """Whether the link's toll is the mean of such rows; else it is a test."""

    @property
    def measured(self) -> float:
        """Seconds a step."""
        taken = [rows()[row].seconds for row in (self.on, self.off)]
        assert taken[0] is not None
        assert taken[1] is not None
        return (taken[0] - taken[1]) / self.steps

    @property
    def predicted(self) -> float:
        """Of a message each way, beside what the same link without confidential mode takes."""
        return _round_trip(self.link) - _round_trip(self.link.split("-cc")[0])


TOLLS = (
    Toll("D01", "D02", "pcie5-x16-cc"),
    Toll("D03", "D04", "pcie5-x16-cc"),
    Toll("D05", "D06", "pcie5-x16-cc-h200", 128),
    Toll("D07", "D08", "pcie5-x16-cc-h200", 128),
    Toll("D09", "D10", "pcie5-x16-cc-h200", 128),
    Toll("D11", "D12", "pcie5-x16-cc", given=False),
    Toll("D13", "D14", "pcie5-x16-cc", given=False),
    Toll("D15", "D16", "pcie5-x16-cc", given=False),
    Toll("D17", "D18", "pcie5-x16-cc", given=False),
)
"""The pairs of rows with and without confidential mode."""


def _round_trip(link: str, size: int = 4) -> float:
    """Seconds of a message each way, of a token's number."""
    there, back = (
        message_cost(load_link(link), [size], way).seconds for way in ("send", "receive")
    )
    assert there is not None
    assert back is not None
    return float(there[0] + back[0])


@dataclass(frozen=True, slots=True)
class Crossing:
    """Small messages, one after another, over a link."""

    row: str
    """What measured them."""
    link: str
    """The link that should say it."""
    sent: int
    """How many are sent."""
    received: int
    """How many are received."""
    given: bool = True
    """Whether the link's figure is this row's; else it is a test."""
    less: str = ""
    """The row without them, whose seconds are no message's."""

    @property
    def measured(self) -> float:
        """Seconds of all of them."""
        row = rows()[self.row]
        if row["unit"] == "msg/s":
            return 1 / float(row["value"])
        without = rows()[self.less].seconds if self.less else 0.0
        assert row.seconds is not None
        assert without is not None
        return row.seconds - without

    @property
    def predicted(self) -> float:
        """What the link takes, bytes left out: some of these links have no bandwidth."""
        link = load_link(self.link)
        there = (link.sent_latency_seconds or 0.0) + (link.sent_toll_seconds or 0.0)
        back = (link.received_latency_seconds or 0.0) + (link.received_toll_seconds or 0.0)
        return self.sent * there + self.received * back


CROSSINGS = (
    Crossing("B02", "pcie4-x16-split", 32, 32, less="B01"),
    Crossing("D24", "pcie4-x16", 0, 1),
    Crossing("D25", "pcie4-x16", 0, 1, given=False),
    Crossing("D34", "zmq-ipc", 1, 1),
    Crossing("D35", "tcp-loopback", 1, 1),
    Crossing("D36", "unix-socket", 1, 1),
)
"""What is measured of small messages alone."""


_CALLS = (
    ("embed_tokens", 11.82, 1),
    ("q_proj+k_proj+v_proj", 56.38, 16),
    ("matmul QK^T", 986.79, 16),
    ("matmul scores*V", 852.34, 16),
    ("o_proj", 57.55, 16),
    ("gate_proj+up_proj", 501.90, 16),
    ("down_proj", 231.33, 16),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A kind of call of the measured split of llama-3.2-1b: 1024 tokens, float32, linears and
    attention away."""

    ops: str
    """What is called."""
    count: int
    """How many there are."""
    sent: int
    """Bytes of one."""
    received: int
    """Bytes of one."""
    measured: float
    """Seconds of one, on average."""

    @property
    def predicted(self) -> float:
        """What ``unix-socket-zmq`` takes."""
        link = load_link("unix-socket-zmq")
        there = message_cost(link, [self.sent], "send").seconds
        back = message_cost(link, [self.received], "receive").seconds
        assert there is not None
        assert back is not None
        return float(there[0] + back[0])


def calls() -> list[Call]:
    """The kinds of its 98 calls."""
    table = json.loads((FOLDER / "transfers_llama32_1b.json").read_text(encoding="utf-8"))
    known = {one["ops"]: one for one in table["first_calls offload-linear/float32 (payload bytes)"]}
    found = [
        Call(ops, count, known[ops]["sent"], known[ops]["received"], taken / 1e3)
        for ops, taken, count in _CALLS
    ]
    return [*found, Call("lm_head", 1, 8192, 128256 * 4, 7.30e-3)]
