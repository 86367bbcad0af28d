"""Every figure of the reference documents beside ours, from traced graphs.

``python -m tools.figures`` writes docs/reference-figures.md (`make reference`); the test suite asks
that every figure agrees or that the document is known to have slipped.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cutedge
from costmodels.arrays import Options, gemm_cost
from costmodels.devices import load_device
from costmodels.limits import describe, device_figures, in_units, limits
from costmodels.links import Links, load_link
from costmodels.parameters import Breakdown, break_down
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.policy import apply_policy, load_policy
from partition.wire_format import WireFormat
from tools.verdicts import verdict_lines
from tracer.graph import Kind, OpGraph

HERE = Path(__file__).parents[1] / "tests" / "reference"
PAGE = Path(__file__).parents[1] / "docs" / "reference-figures.md"
CHIP = load_device("chip-8x8")


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of a document and ours."""

    item: str
    theirs: str
    """As the document writes it."""
    ours: str
    """In the same unit, to the same digits and two more where they differ."""
    unit: str
    agrees: bool | None
    """None for what is no figure to match."""
    why: str
    """Where the document slipped, or why it is no figure to match."""

    @property
    def verdict(self) -> str:
        """For the page."""
        if self.agrees:
            return f"agree{f': {self.why}' if self.why else ''}"
        if self.agrees is None:
            return f"not a figure to match: {self.why}"
        return f"the document slipped: {self.why}"


def rows(name: str) -> list[dict[str, str]]:
    """A file of the reference data."""
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digits(value: float, like: str) -> str:
    """A value to as many decimals as a document shows."""
    decimals = len(like.partition(".")[2])
    return f"{value:.{decimals}f}"


@cache
def traced(model: str, phase: str, size: int, overrides: tuple[tuple[str, Any], ...]) -> OpGraph:
    """The annotated graph of a preset: ``size`` new tokens, or cached ones in a decode."""
    sizes = {"past": size} if phase == "decode" else {"seq": size}
    return cutedge.trace(model, phase=phase, overrides=dict(overrides), **sizes).graph


# --- 004: limits of single-user inference ---------------------------------------------------------


def roofline_rows() -> Iterator[Row]:
    """Every row of the limits of Qwen1.5 on an RTX 4090."""
    for row in rows("roofline_qwen15_rtx4090.csv"):
        theirs, ours = row["reference_value"], _limit(row)
        same = theirs == "oom" if ours is None else theirs == digits(ours, theirs)
        slip = row["status"] == "reference_is_wrong"
        n = f", n = {row['prompt_tokens']}" if row["prompt_tokens"] else ""
        shown = "oom" if ours is None else digits(ours, theirs if same else row["formula_value"])
        yield Row(
            f"{row['section']} {row['model']}{n}: {row['metric']}",
            theirs,
            shown,
            row["unit"],
            same,
            _ROOFLINE_SLIPS[row["model"], row["metric"]] if slip else "",
        )


_ROOFLINE_SLIPS = {
    ("14B", "model_params"): "its own table of parameters says 12.47",
    ("32B(noGQA)", "model_params"): "it repeats the figure of the model with grouped heads; "
    "its own table of parameters says 32.05",
    ("110B(noGQA)", "model_params"): "it repeats the figure of the model with grouped heads; "
    "its own table of parameters says 111.16",
    ("110B", "kv_cache_params_per_token"): "80 layers x 2 x 8192 / 8 = 163840 = 0.15625 x 2**20; "
    "its own tokens that fit and its own W of 3303 follow from 0.15625",
}


@cache
def _model(name: str):  # type: ignore[no-untyped-def]
    size, without, _ = name.partition("(noGQA)")
    heads = {"32B": 40, "110B": 64}.get(size) if without else None
    overrides = (("num_key_value_heads", heads),) if heads else ()
    return describe(traced(f"qwen1.5-{size.lower()}", "decode", 16, overrides))


def _limit(row: Mapping[str, str]) -> float | None:
    metric, prompt = row["metric"], int(row["prompt_tokens"] or 1)
    bits = re.search(r"_w(\d+)(?:a(\d+))?", metric)
    key = metric.replace(bits[0], "") if bits else metric
    if key.startswith("first_token_ms"):
        prompt = 1 if key.endswith("_n1") else prompt
        key = "first_token_ms"
    key = {"model_params": "activated_params", "decode_W": "decode_W_tokens_per_ms"}.get(key, key)
    found = limits(
        _model(row["model"]),
        device_figures(load_device("rtx-4090"), "float32", binary=True),
        weight_bits=int(bits[1]) if bits else 16,
        kv_bits=int(bits[2] or 16) if bits else 16,
        prompt=prompt,
    )
    return in_units(found, binary=True)[key]


# --- 000, 001: the 8x8 chip -----------------------------------------------------------------------


@dataclass(frozen=True)
class OnChip:
    """One token of a model on the chip."""

    model: str
    overrides: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def graph(self) -> OpGraph:
        return traced(self.model, "prefill", 1, self.overrides)

    @cached_property
    def products(self) -> list[tuple[str, int, int]]:
        """(module path, tiles, cycles) of each linear."""
        found = []
        for op, at in zip(self.graph.ops, time_ops(self.graph, CHIP).ops, strict=True):
            if op.kind is Kind.LINEAR and at.gemm is not None:
                found.append((op.module_path, int(at.gemm.tiles), int(at.gemm.cycles)))
        return found

    def tiles(self, pattern: str = "") -> int:
        """Tiles of the linears whose module's path has ``pattern`` in it."""
        found = [tiles for path, tiles, _ in self.products if re.search(pattern, path)]
        assert found, f"{self.model} has no linear {pattern}"
        return sum(found)

    def seconds(self, pattern: str = "") -> float:
        """Seconds of the same."""
        assert CHIP.array is not None
        assert self.tiles(pattern)
        cycles = sum(cycles for path, _, cycles in self.products if re.search(pattern, path))
        return cycles / CHIP.array.clock_hertz


TINY = OnChip("tinyllama-1.1b", (("num_key_value_heads", 32),))
TINY_REAL = OnChip("tinyllama-1.1b")
DISTIL, EDGE = OnChip("distilbert"), OnChip("edge-10m")
FIRST = r"\.0\."  # the first layer
LAYERS = r"\.\d+\."


def _tile_cycles() -> float:
    assert CHIP.array is not None
    return CHIP.array.tile_cycles or 0


def _pipelined() -> float:
    assert CHIP.array is not None
    return float(gemm_cost(CHIP.array, 1, 2048, 2048, options=Options(pipeline_depth=4)).cycles)


CHIP_FIGURES: Mapping[tuple[str, str], Callable[[], float]] = {
    ("-", "cycles per 8x8x8 tile"): _tile_cycles,
    ("tinyllama-1.1b", "tiles of a [1 x 2048] x [2048 x 2048] matmul"): lambda: TINY.tiles(
        FIRST + ".*q_proj"
    ),
    ("tinyllama-1.1b", "time of one 2048x2048 matmul"): lambda: (
        TINY.seconds(FIRST + ".*q_proj") * 1000
    ),
    ("tinyllama-1.1b", "q_proj time"): lambda: TINY.seconds(FIRST + ".*q_proj") * 1000,
    ("tinyllama-1.1b", "up_proj time"): lambda: TINY.seconds(FIRST + ".*up_proj") * 1000,
    ("tinyllama-1.1b", "tiles of gate_proj / up_proj (2048x5632)"): lambda: TINY.tiles(
        FIRST + ".*gate_proj"
    ),
    ("tinyllama-1.1b", "tiles of down_proj (5632x2048)"): lambda: TINY.tiles(FIRST + ".*down_proj"),
    ("tinyllama-1.1b", "time of one FFN matmul"): lambda: TINY.seconds(FIRST + ".*up_proj") * 1000,
    ("tinyllama-1.1b", "attention projections per layer with num_key_value_heads=32"): lambda: (
        TINY.seconds(FIRST + "self_attn") * 1000
    ),
    ("tinyllama-1.1b", "FFN per layer"): lambda: TINY.seconds(FIRST + "mlp") * 1000,
    ("tinyllama-1.1b", "tiles per layer"): lambda: TINY.tiles(FIRST),
    ("tinyllama-1.1b", "tiles of the whole model (22 layers)"): lambda: TINY.tiles(LAYERS),
    ("tinyllama-1.1b", "time per layer"): lambda: TINY.seconds(FIRST),
    ("tinyllama-1.1b", "time per token (22 layers)"): lambda: TINY.seconds(LAYERS),
    ("tinyllama-1.1b", "tiles of k_proj / v_proj with the model's real 4 KV heads"): lambda: (
        TINY_REAL.tiles(FIRST + ".*k_proj")
    ),
    ("tinyllama-1.1b", "time per token with the real 4 KV heads and lm_head"): lambda: (
        TINY_REAL.seconds()
    ),
    ("llama-2-7b", "tiles per layer"): lambda: OnChip("llama-2-7b").tiles(FIRST),
    ("gpt2", "tiles per layer"): lambda: OnChip("gpt2").tiles(FIRST),
    ("bert-base", "tiles per layer"): lambda: OnChip("bert-base").tiles(FIRST),
    ("distilbert", "tiles per layer"): lambda: DISTIL.tiles(FIRST),
    ("distilbert", "tiles of a 768x768 matmul"): lambda: DISTIL.tiles(FIRST + ".*q_lin"),
    ("distilbert", "time of a 768x768 matmul"): lambda: DISTIL.seconds(FIRST + ".*q_lin") * 1000,
    ("distilbert", "tiles of an FFN matmul (768x3072)"): lambda: DISTIL.tiles(FIRST + ".*lin1"),
    ("distilbert", "time of an FFN matmul"): lambda: DISTIL.seconds(FIRST + ".*lin1") * 1000,
    ("distilbert", "time of 6 layers counting one attention matmul a layer"): lambda: (
        DISTIL.seconds(LAYERS + "(.*q_lin|ffn)")
    ),
    ("edge-10m", "tiles of a 256x256 matmul"): lambda: EDGE.tiles(FIRST + ".*q_proj"),
    ("edge-10m", "time of a 256x256 matmul"): lambda: EDGE.seconds(FIRST + ".*q_proj") * 1000,
    ("edge-10m", "tiles of an FFN matmul (256x1024)"): lambda: EDGE.tiles(FIRST + "fc1"),
    ("edge-10m", "time of an FFN matmul"): lambda: EDGE.seconds(FIRST + "fc1") * 1000,
    ("-", "pipeline depth 4 on 65536 tiles"): _pipelined,
}
"""(model, item) -> our figure in the document's unit, from the rows of a traced token."""


def chip_rows() -> Iterator[Row]:
    """Every row of the 8x8 chip."""
    for row in rows("chip_8x8.csv"):
        model, item, theirs = row["model"], row["item"], row["reference_value"]
        figure = CHIP_FIGURES.get((model, item))
        name = f"{row['source']} {model}: {item}"
        yield _judged(row, name, None if figure is None else figure(), theirs)


def _judged(row: Mapping[str, str], name: str, ours: float | None, theirs: str) -> Row:
    """Against the status that the data gives a row, by the digits that the document shows."""
    unit, note = row["unit"], row["note"]
    if ours is None:
        return Row(name, theirs, "", unit, None, note)
    derived = row["derived_value"]
    same = theirs == digits(ours, theirs)
    if row["status"] == "reproduce":
        # Where the document adds rounded numbers the data holds what they were rounded from.
        why = "" if same else note
        agrees = same or digits(ours, derived) == derived
        return Row(name, theirs, digits(ours, theirs if same else derived), unit, agrees, why)
    if row["status"] == "reference_is_wrong":
        return Row(name, theirs, digits(ours, derived), unit, False, note or "as above")
    return Row(name, theirs, digits(ours, derived), unit, None, note)


# --- systolic arrays ------------------------------------------------------------------------------


def systolic_rows() -> Iterator[Row]:
    """Every product that a simulator was asked."""
    from costmodels.arrays import Array

    for row in rows("systolic_gemm.csv"):
        m, n, k, height, width = (int(row[key]) for key in ("M", "N", "K", "rows", "cols"))
        array = Array(
            dataflow=row["dataflow"],
            rows=height,
            columns=width,
            depth=None,
            tile_cycles=None,
            clock_hertz=1e8,
        )  # type: ignore[arg-type]
        ours = str(gemm_cost(array, m, k, n).cycles)
        yield Row(
            f"[{m} x {k}] x [{k} x {n}], {row['dataflow']}, {height} x {width}",
            row["cycles"],
            ours,
            "cycles",
            row["cycles"] == ours,
            "",
        )


# --- 002: parameters ------------------------------------------------------------------------------

GENERIC = (
    ("hidden_size", 4096),
    ("num_hidden_layers", 32),
    ("vocab_size", 32000),
    ("intermediate_size", 14336),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 32),
)


@cache
def _parts(model: str, overrides: tuple[tuple[str, Any], ...] = ()) -> Breakdown:
    return break_down(traced(model, "prefill", 16, overrides))


def _weights(model: str, *parts: str, overrides: tuple[tuple[str, Any], ...] = ()) -> int:
    return sum(_parts(model, overrides).parts[part].weights for part in parts)


def _layer(*parts: str, overrides: tuple[tuple[str, Any], ...] = ()) -> int:
    inside = _parts("mistral-7b", overrides).layers["0"]
    return sum(inside[part].weights for part in parts)


PLAIN = (("num_key_value_heads", 32),)
PARAMS: Mapping[tuple[str, str], Callable[[], float]] = {
    ("generic H=4096 L=32 V=32000 M=3.5", "total parameters (estimate formula)"): lambda: (
        _weights("llama-2-7b", "embedding", "attention", "ffn", "lm_head", overrides=GENERIC)
        / 2**30
    ),
    ("mistral-7b", "embedding"): lambda: _weights("mistral-7b", "embedding") / 1e6,
    ("mistral-7b", "per layer without GQA"): lambda: (
        _layer("attention", "ffn", overrides=PLAIN) / 2**20
    ),
    ("mistral-7b", "self-attention per layer without GQA"): lambda: (
        _layer("attention", overrides=PLAIN) / 2**20
    ),
    ("mistral-7b", "self-attention per layer with GQA (8 KV heads)"): lambda: (
        _layer("attention") / 2**20
    ),
    ("mistral-7b", "self-attention of 32 layers with GQA"): lambda: (
        _weights("mistral-7b", "attention") / 2**30
    ),
    ("mistral-7b", "total"): lambda: _parts("mistral-7b").total / 1e9,
    ("qwen2.5-3b", "embedding"): lambda: _weights("qwen2.5-3b", "embedding"),
    ("qwen2.5-3b", "attention of 36 layers (no bias)"): lambda: (
        _weights("qwen2.5-3b", "attention") / 2**20
    ),
    ("qwen2.5-3b", "FFN of 36 layers"): lambda: _weights("qwen2.5-3b", "ffn") / 2**20,
    ("qwen2.5-3b", "lm_head"): lambda: _parts("qwen2.5-3b").tied / 2**20,
    ("qwen2.5-3b", "total counting lm_head separately"): lambda: (
        (_weights("qwen2.5-3b", "embedding", "attention", "ffn") + _parts("qwen2.5-3b").tied)
        / 2**30
    ),
}


def params_rows() -> Iterator[Row]:
    """Every row of the parameters."""
    for row in rows("params.csv"):
        figure = PARAMS.get((row["model"], row["item"]))
        name = f"{row['source']} {row['model']}: {row['item']}"
        yield _judged(row, name, None if figure is None else figure(), row["reference_value"])


# --- 003: transfers -------------------------------------------------------------------------------


def transfer_rows() -> Iterator[Row]:
    """The log of the TEE/GPU split, and the totals that were derived from it."""
    data = json.loads((HERE / "transfers_llama32_1b.json").read_text(encoding="utf-8"))
    graph = traced("llama-3.2-1b", "prefill", data["seq"], ())

    def split(policy: str, wire: str):  # type: ignore[no-untyped-def]
        placement = apply_policy(graph, load_policy(policy), home="tee", accelerators=("gpu",))
        return account(graph, placement, Links(load_link("zmq-ipc")), wire=WireFormat(wire))

    for case, expected in data["totals_by_policy_and_wire_dtype (payload, no framing)"].items():
        traffic = split(*case.split("/"))
        totals = traffic.totals
        ours = {
            "calls": len(traffic.calls),
            "sent_bytes": totals.sent_payload_bytes,
            "received_bytes": totals.received_payload_bytes,
            "total_bytes": totals.payload_bytes,
            "sent_MiB": totals.sent_payload_bytes / 2**20,
            "received_MiB": totals.received_payload_bytes / 2**20,
            "total_MiB": totals.payload_bytes / 2**20,
        }
        for key, value in expected.items():
            theirs = str(value)
            shown = digits(ours[key], theirs)
            yield Row(
                f"003 {case}: {key}", theirs, shown, key.rpartition("_")[2], theirs == shown, ""
            )
    traffic = split("offload-linear", "float32")
    for call, expected in zip(
        traffic.calls, data["first_calls offload-linear/float32 (payload bytes)"], strict=False
    ):
        for key, ours in (
            ("sent", call.sent_payload_bytes),
            ("received", call.received_payload_bytes),
        ):
            theirs = str(expected[key])
            name = f"003 call {call.id} ({expected['ops']}): {key}"
            yield Row(name, theirs, str(ours), "bytes", theirs == str(ours), "")
    log, totals = data["measured_log"], traffic.totals
    for key, ours in (
        ("rpc_calls", len(traffic.calls)),
        ("sent_MB", totals.sent_wire_bytes / 2**20),
        ("received_MB", totals.received_wire_bytes / 2**20),
        ("total_MB", totals.wire_bytes / 2**20),
    ):
        theirs = str(log[key])
        shown = digits(ours, theirs)
        yield Row(f"003 log: {key} (MiB, framing included)", theirs, shown, "", theirs == shown, "")
    for key in ("average_throughput_MB_per_s", "average_call_ms", "prefill_s"):
        why = "measured on a machine that the document does not describe"
        yield Row(f"003 log: {key}", str(log[key]), "", "", None, why)
    graph_k = traced("llama-3.2-1b", "prefill", data["seq"], (("num_key_value_heads", 32),))
    placement = apply_policy(
        graph_k, load_policy("offload-linear"), home="tee", accelerators=("gpu",)
    )
    full = account(graph_k, placement, Links(load_link("none")), wire=WireFormat("float32")).calls[
        1
    ]
    yield Row(
        "003 report: q/k/v output of a layer",
        "24",
        f"{traffic.calls[1].received_payload_bytes / 2**20:.0f}",
        "MiB",
        False,
        f"it counts K and V 2048 wide ({full.received_payload_bytes / 2**20:.0f} MiB with 32 KV "
        "heads); the model has 8 KV heads, as its own log shows",
    )
    for name, value in data["report_estimates"].items():
        yield Row(f"003 report: estimate for {name}", value, "", "", None, "a rounded estimate")


CHIP_SECTION = "TinyLlama and others on the 8x8 chip (000, 001)"
SECTIONS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "Transfers of Llama-3.2-1B between a TEE and a GPU (003)": transfer_rows,
    CHIP_SECTION: chip_rows,
    "Systolic arrays": systolic_rows,
    "Parameters (002)": params_rows,
    "Limits of Qwen1.5 on an RTX 4090 (004)": roofline_rows,
}

INTRODUCTION = """# Reference figures

Every figure of the documents that this project comes from, beside what cutedge finds in a traced
graph. `make reference` writes this page.

"""

LIMITS_NOTE = """
The words of the document 004 leave open how often a cached value is counted. Its figures tell:
`read = (P*W/8 + (2n - 1)*kv*2 bytes)/bandwidth` (each of n tokens is written, all but the last are
read again), `compute = (P*n + 2*n*kv*n_groups)*2/peak` (attention as two keys a query, all query
heads), and B is the read of a first token with its cache. With these, every digit that the document
shows comes out, save for its slips. M, G and T are 2**20, 2**30 and 2**40 there: in cutedge that is
`limits --units reference`.
"""


def page() -> str:
    """docs/reference-figures.md"""
    found = {title: list(make()) for title, make in SECTIONS.items()}
    lines = [
        INTRODUCTION + "| | figures | agree | the document slipped | not to match |",
        "|---|--:|--:|--:|--:|",
    ]
    for title, all_rows in found.items():
        counts = [sum(r.agrees is v for r in all_rows) for v in (True, False, None)]
        lines.append(f"| {title} | {len(all_rows)} | " + " | ".join(map(str, counts)) + " |")
    for title, all_rows in found.items():
        lines.append(f"\n## {title}\n{LIMITS_NOTE if '004' in title else ''}")
        lines += ["| figure | document | cutedge | unit | |", "|---|--:|--:|---|---|"]
        lines += [
            f"| {r.item} | {r.theirs} | {r.ours} | {r.unit} | {r.verdict} |" for r in all_rows
        ]
        lines += verdict_lines() if title == CHIP_SECTION else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
