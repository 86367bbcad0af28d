"""How far the tracer reaches: every causal-LM type of transformers, its default config cut short.

``python -m tests.coverage`` (`make coverage`, many minutes) writes docs/coverage.md; with model
types as arguments it prints their rows alone.
"""

import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils

from costmodels.flops import annotate, total_flops
from tracer.capture import as_it_runs, capture, quiet
from tracer.capture.errors import first_line
from tracer.capture.models import build
from tracer.errors import CutedgeError
from tracer.graph import Kind, Op, OpGraph, Status
from tracer.kinds import MATRIX_PRODUCTS, base_name

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
LAYERS, BATCH, SEQ = 2, 8, 64
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip
GAPS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters.full_attention": {"rope_theta": 10_000.0}},
    "blt": {"patch_in_forward": False},
    "dbrx": {"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}
"""What the default config of a type leaves open, and a value for it."""
REASONS = {
    "gemma3n": "its text part is gemma3n_text",
    "gemma4_assistant": "a drafter: its layers read the cache of another model",
    "gemma4_unified_assistant": "a drafter: its layers read the cache of another model",
}
"""Why a type cannot be built, where the error alone does not say it."""
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
        except Exception:  # a config class may raise anything over its own defaults
            default = {}
    config = {"model_type": model_type}
    gap = GAPS.get(model_type, {})
    overrides = {**dict.fromkeys(depths(default), LAYERS), **gap}
    filled = tuple(f"--set {key}={json.dumps(value)}" for key, value in gap.items())
    options = {"model": model_type, "overrides": overrides}
    try:
        made = capture(config, batch=BATCH, seq=SEQ, **options)
    except CutedgeError as error:
        said = str(error).removeprefix(model_type).lstrip(": ")
        traced = "no" if said.startswith("cannot be traced") else "no config"
        why = [REASONS[model_type]] if model_type in REASONS else []
        return Row(model_type, traced, notes=(*filled, *why, said))
    graph = annotate(made.graph)
    working = [op for op in graph.ops if op.kind not in FREE]
    exact = sum(  # what is assumed of the routing to experts changes no FLOPs
        op.cost.flops_status in (Status.EXACT, Status.ZERO) or op.cost.assumption is not None
        for op in working
    )
    equal, why = against_torch(graph, config, overrides)
    traced, reason = how(made.warnings, graph.meta.symbolic)
    return Row(
        model_type, traced, len(graph.ops), exact / len(working),
        tuple(f"{n} x {t}" for t, n in sorted(total_flops(graph).unsupported.items())),
        equal, (*filled, *reason, *why),
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
    constants = sum(op.cost.flops or 0 for op in constant_products(graph))
    if counted == ours + constants:
        return "explained", (f"torch counts {constants:,} FLOPs of constants, computed at load",)
    return "differs", (f"torch counts {counted:,}, the trace {ours:,}",)


def constant_products(graph: OpGraph) -> list[Op]:
    """The matrix products that no input reaches, with what they cost where they are computed."""
    running = annotate(
        graph.with_ops(
            replace(op, kind=Kind.MATMUL)
            if op.is_constant and base_name(op.target) in MATRIX_PRODUCTS
            else op
            for op in graph.ops
        )
    )
    return [op for op in running.ops if op.is_constant and op.kind is Kind.MATMUL]


def counted_by_torch(
    config: Mapping[str, Any], overrides: Mapping[str, Any], name: str, seq: int = SEQ
) -> int:
    """FLOPs that torch counts while the model runs eagerly on tensors without data."""
    with quiet(), as_it_runs():
        module = build(config, overrides, model=name, dtype="float32", attn="eager")
        for part in module.modules():  # some models ask their config alone
            if getattr(getattr(part, "config", None), "use_cache", None):
                part.config.use_cache = False
            # A warning alone, which looks at the tokens.
            part.warn_if_padding_and_no_attention_mask = lambda *args, **kwargs: None
        if module.get_experts_implementation()[""] == "grouped_mm":
            # Needs bfloat16 where there is no data; a product a row of tokens is as many FLOPs.
            module.set_experts_implementation("batched_mm")
        accepted = inspect.signature(module.forward).parameters
        ids = torch.zeros(BATCH, seq, dtype=torch.int64, device="meta")
        options = {"use_cache": False, "logits_to_keep": 1}
        given = {key: value for key, value in options.items() if key in accepted}
        try:
            return _counted(module, input_ids=ids, **given)
        except RuntimeError:  # it looks at its position ids, unless there is a mask
            return _counted(module, input_ids=ids, attention_mask=torch.ones_like(ids), **given)


def _counted(module: torch.nn.Module, **inputs: Any) -> int:
    with (
        torch.device("meta"),
        # Whether a mask hides anything, which its values say: no matter to a product.
        patch.object(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args: False),
        FlopCounterMode(display=False) as counter,
    ):
        module(**inputs)
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
| they differ by what no input reaches (counted as constants) | {equal["explained"]} |
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
    workers = os.cpu_count() or 1
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
