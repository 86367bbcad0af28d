"""How far the tracer reaches: every causal-LM type of transformers, its default config cut short.

``python -m tests.coverage`` (`make coverage`, many minutes) writes docs/coverage.md; with model
types as arguments it prints their rows alone.
"""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from costmodels.flops import annotate, total_flops
from tracer.capture import as_it_runs, capture, quiet
from tracer.capture.errors import first_line
from tracer.capture.models import build
from tracer.errors import CutedgeError
from tracer.graph import Kind, OpGraph, Status
from tracer.kinds import base_name

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
LAYERS, BATCH, SEQ = 2, 2, 64
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip
FREE = (Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one model type."""

    model_type: str
    traced: str
    """symbolic, bounded, concrete, no, or ``no config`` where transformers itself builds none."""
    ops: int = 0
    exact: float = 0.0
    """Share of the ops that work whose FLOPs are exact, none at all included."""
    unsupported: tuple[str, ...] = ()
    torch: str = ""
    """``equal``, ``explained`` or ``differs``, ``-`` where torch's counter cannot run."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        exact = f"{self.exact:.0%}" if self.ops else ""
        notes = [*self.notes, *(f"no formula: {target}" for target in self.unsupported)]
        said = "; ".join(notes).replace("|", "\\|").replace("<", "&lt;")
        ops = f"{self.ops:,}" if self.ops else ""
        return f"| {self.model_type} | {self.traced} | {ops} | {exact} | {self.torch} | {said} |"


def model_types() -> list[str]:
    return sorted({config.model_type for config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING})


def depths(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Where a config says how many layers its decoder has, as ``--set`` calls it."""
    here = [f"{prefix}{name}" for name in DEPTHS if type(config.get(name)) is int]
    yield from here
    for name in () if here else ("text_config", "decoder"):
        if isinstance(config.get(name), dict):
            yield from depths(config[name], f"{prefix}{name}.")


def sweep(model_type: str) -> Row:
    """The row of a model type."""
    with quiet():
        try:
            default = transformers.CONFIG_MAPPING[model_type]().to_dict()
        except Exception as error:  # a config class may raise anything over its own defaults
            return Row(model_type, "no config", notes=(first_line(error),))
    config = {"model_type": model_type}
    overrides = dict.fromkeys(depths(default), LAYERS)
    options = {"model": model_type, "overrides": overrides}
    try:
        made = capture(config, batch=BATCH, seq=SEQ, **options)
    except CutedgeError as error:
        said = str(error).removeprefix(model_type).lstrip(": ")
        untraced = "no model can be built" not in said
        return Row(model_type, "no" if untraced else "no config", notes=(said,))
    graph = annotate(made.graph)
    working = [op for op in graph.ops if op.kind not in FREE]
    exact = sum(op.cost.flops_status in (Status.EXACT, Status.ZERO) for op in working)
    equal, why = against_torch(graph, config, overrides)
    traced, reason = how(made.warnings, graph.meta.symbolic)
    return Row(
        model_type, traced, len(graph.ops), exact / len(working),
        tuple(f"{n} x {t}" for t, n in sorted(total_flops(graph).unsupported.items())),
        equal, (*reason, *why),
    )  # fmt: skip


def how(warnings: tuple[str, ...], symbolic: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """How a model was traced, and the warning that says why no better."""
    reasons = tuple(w for w in warnings if "formulas" in w and "positions of" not in w)
    if "seq" not in symbolic:
        return "concrete", reasons
    return ("bounded" if reasons else "symbolic"), reasons


# --- torch's own count ----------------------------------------------------------------------------


def against_torch(
    graph: OpGraph, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Whether torch counts the same FLOPs when the model itself runs, and why not."""
    ours = total_flops(graph).products
    try:
        counted = counted_by_torch(config, overrides, graph.meta.model)
    except Exception as error:  # code that looks at values, which no meta tensor has
        return "-", (f"torch cannot count: {first_line(error)}",)
    if counted == ours:
        return "equal", ()
    grouped = [op for op in graph.ops if "grouped_mm" in base_name(op.target)]
    if counted == ours - sum(op.cost.flops or 0 for op in grouped):
        return "explained", (f"torch's counter misses {len(grouped)} grouped products",)
    return "differs", (f"torch counts {counted:,}, the trace {ours:,}",)


def counted_by_torch(config: Mapping[str, Any], overrides: Mapping[str, Any], name: str) -> int:
    """FLOPs that torch counts while the model runs eagerly on tensors without data."""
    with quiet(), as_it_runs():
        module = build(config, overrides, model=name, dtype="float32", attn="eager")
        accepted = inspect.signature(module.forward).parameters
        ids = torch.zeros(BATCH, SEQ, dtype=torch.int64, device="meta")
        options = {"use_cache": False, "logits_to_keep": 1}
        given = {key: value for key, value in options.items() if key in accepted}
        if module.get_experts_implementation()[""] == "grouped_mm":
            # Needs bfloat16 where there is no data; a product a row of tokens is as many FLOPs.
            module.set_experts_implementation("batched_mm")
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module(input_ids=ids, **given)
    return int(counter.get_total_flops())


# --- the page -------------------------------------------------------------------------------------


def page(rows: list[Row]) -> str:
    """docs/coverage.md."""
    by = {t: sum(row.traced == t for row in rows) for t in {row.traced for row in rows}}
    equal = {e: sum(row.torch == e for row in rows) for e in ("equal", "explained", "differs", "-")}
    traced = sum(row.ops > 0 for row in rows)
    known = sum(row.ops > 0 and not row.unsupported for row in rows)
    return f"""\
# Coverage

Every causal-LM type of transformers {version("transformers")}, its default config cut to {LAYERS}
layers, prefill of {BATCH} x {SEQ} tokens. `make coverage` writes this page.

| of {len(rows)} model types | |
|---|---|
| traced | {traced} |
| - with formulas in batch and seq | {by.get("symbolic", 0)} |
| - with formulas that hold within a bound | {by.get("bounded", 0)} |
| - at the given sizes alone | {by.get("concrete", 0)} |
| not traced | {by.get("no", 0)} |
| no model can be built from the default config | {by.get("no config", 0)} |
| every op that works has known FLOPs | {known} |
| FLOPs of matrix products equal torch's FlopCounterMode | {equal["equal"]} |
| they differ, and the row says by what | {equal["explained"]} |
| they differ otherwise | {equal["differs"]} |
| torch's counter cannot run the model without data | {equal["-"]} |

`exact` is the share of the ops that compute or move data whose FLOPs are exact (the others are
estimates: a softmax, a sine). `torch` compares the FLOPs of linears and other matrix products with
torch's counter on the model itself, run eagerly.

| model type | traced | ops | exact | torch | notes |
|---|---|--:|--:|---|---|
""" + "".join(f"{row}\n" for row in rows)


def main() -> None:
    asked = sys.argv[1:]
    workers = max(1, (os.cpu_count() or 2) // 1)
    with get_context("spawn").Pool(workers, maxtasksperchild=16) as pool:
        rows = []
        for row in pool.imap(sweep, asked or model_types()):
            print(row, file=sys.stdout if asked else sys.stderr, flush=True)
            rows.append(row)
    if not asked:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
