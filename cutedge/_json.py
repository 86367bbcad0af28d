"""What ``--json`` prints of models, traces and splits: objects with the tables' column names."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodels.experts import active_parameters, assumptions
from costmodels.flops import total_flops
from partition.crossover import Crossover, Point
from partition.policy import Policy
from partition.run import Run
from partition.schedule_table import schedule_summary
from partition.summary_table import summary_row
from tracer.captured import Checked
from tracer.graph import OpGraph, TraceMeta
from tracer.summary import (
    cached_state,
    count_ops,
    largest_tensors,
    modules_not_run,
    parameter_bytes,
)

if TYPE_CHECKING:
    from cutedge._compare import Comparison
    from cutedge._partition import Partition
    from cutedge._trace import Trace


def checked_object(
    model: str, kind: str, found: Sequence[Checked], graphs: Sequence[OpGraph | None]
) -> dict[str, Any]:
    """``models --check --json``: how far each phase can be traced."""
    return {
        "model": model,
        "model_class": kind,
        "phases": [
            {
                "phase": c.phase,
                "refused": c.refused,
                "tried": [{"way": way, "failure": failure} for way, failure in c.tried],
                "symbolic": list(graph.meta.symbolic) if graph else None,
                "ops": len(graph.ops) if graph else None,
                "repeated_layers": graph.meta.repeated_layers if graph else None,
                "unrepeated_reason": c.captured.unrepeated_reason if c.captured else None,
                "coverage": total_flops(graph).coverage if graph else None,
                "unsupported": dict(total_flops(graph).unsupported) if graph else None,
                "notes": list(c.captured.reach.notes) if c.captured else [],
            }
            for c, graph in zip(found, graphs, strict=True)
        ],
    }


def trace_object(traced: "Trace", folder: Path) -> dict[str, Any]:
    """``trace --json``."""
    graph = traced.graph
    meta, flops = graph.meta, total_flops(graph)
    before, after = cached_state(graph)
    return {
        "folder": str(folder),
        "cached": traced.cached,
        "model": meta.model,
        "model_class": meta.model_class,
        "phase": meta.phase,
        **meta.variables,
        "dtype": meta.dtype,
        "attn": meta.attn,
        "logits": meta.logits,
        "symbolic": list(meta.symbolic),
        "overrides": {k: json.loads(v) for k, v in meta.overrides},
        "ops": len(graph.ops),
        "ops_by_kind": {kind.value: n for kind, n in count_ops(graph).items()},
        "parameters": meta.parameters,
        "parameter_bytes": parameter_bytes(graph),
        "active_parameters": active_parameters(graph),
        "not_run": modules_not_run(graph),
        "assumptions": list(assumptions(graph)),
        "product_flops": flops.products,
        "product_flops_status": flops.products_status.value,
        "product_flops_expr": flops.products_expr,
        "causal_product_flops": flops.causal,
        "causal_product_flops_expr": flops.causal_expr,
        "routed_product_flops": flops.routed,
        "routed_product_flops_expr": flops.routed_expr,
        "other_flops": flops.other,
        "coverage": flops.coverage,
        "unsupported": dict(flops.unsupported),
        "products_missing": dict(flops.products_missing),
        "cache_bytes": before[0],
        "cache_bytes_expr": before[1],
        "cache_bytes_after": after[0],
        "cache_bytes_after_expr": after[1],
        "largest_tensors": [
            {
                "tensor_group": g.name,
                "count": g.count,
                "shape": list(g.example.shape),
                "bytes": g.example.bytes,
                "bytes_expr": g.example.bytes_expr,
                "seq_degree": g.example.seq_degree,
            }
            for g in largest_tensors(graph, 6)
        ],
        "warnings": list(traced.warnings),
    }


def partition_object(made: "Partition", folder: Path, *, explain: bool = False) -> dict[str, Any]:
    """``partition --json``, and an entry of ``compare --json``."""
    split, bottleneck, beside = made.split, made.bottleneck, made.topological_cut
    held = made.beside_optimum
    why = made.explain() if explain else None
    relief = bottleneck.relief if bottleneck else None
    return {
        "folder": str(folder),
        **split.graph.meta.variables,
        **split.identity,
        "weights": split.graph.meta.weights or None,
        "kv_dtype": split.graph.meta.kv_dtype or None,
        **summary_row(split),
        "left_out": list(split.left_out),
        **_run(split.run),
        **({} if split.schedule is None else schedule_summary(split.graph, split.schedule)),
        "objective_gap": split.solution and split.solution.gap,
        "topological_cut": None
        if beside is None
        else {"objective_value": beside.objective_value, "after": list(beside.after)},
        **(
            {}
            if held is None
            else {"beside_optimum": None if isinstance(held, str) else asdict(held)}
        ),
        "exposed": [{**asdict(one), "words": one.words} for one in split.exposed],
        "derived": {
            device: [
                {
                    "tensor_id": one.tensor.id,
                    "tensor_name": one.tensor.name,
                    "label": one.tensor.label,
                    "secret_tensor_name": one.source.name,
                    "ops": list(one.ops),
                    "linear": one.linear,
                    "targets": [split.graph.ops[op].target for op in one.ops],
                    "recoverable": one.recoverable,
                }
                for one in found
            ]
            for device, found in made.derived.items()
        },
        **(
            {}
            if why is None
            else {
                "ladder": [asdict(step) for step in why[0]],
                "prices": [asdict(price) for price in why[1]],
            }
        ),
        "unsupported": dict(total_flops(split.graph).unsupported),
        "top_transfers": [
            {
                "tensor_group": g.name,
                "direction": g.direction,
                "count": g.count,
                "each_payload_bytes": g.example.payload_bytes,
                "payload_bytes": g.payload_bytes,
                "share": g.share,
                "seq_degree": g.example.tensor.seq_degree,
            }
            for g in made.top_transfers
        ],
        "bottleneck": None
        if bottleneck is None
        else {
            "name": bottleneck.name,
            "transfers": bottleneck.transfers,
            "payload_bytes": bottleneck.payload_bytes,
            "share": bottleneck.share,
            "seq_degree": bottleneck.example.seq_degree,
            "relief": None
            if relief is None
            else {
                "saved_bytes": relief.saved_bytes,
                "saved_calls": relief.saved_calls,
                "moved_ops": list(relief.moved_ops),
                "device": relief.device,
                "policy": relief.policy,
                "wire_dtype": relief.wire_dtype,
                "elsewhere": relief.elsewhere,
            },
        },
    }


def _run(run: Run | None) -> dict[str, Any]:
    """What ``summary`` does not say of a run."""
    shares = (None,) * 3 if run is None else run.shares
    return {
        "tokens": run and run.tokens,
        "chips": run and run.chips,
        **dict(zip(("home_share", "accelerator_share", "link_share"), shares, strict=True)),
    }


def comparison_objects(compared: "Comparison", within: float | None) -> list[dict[str, Any]]:
    """``compare --json``, of one trace: for each policy as ``partition --json``, and savings."""
    return [
        {
            **partition_object(made, Path(compared.trace.folder or "", made.split.folder)),
            **asdict(saving),
            "baseline": compared.compared.baseline.policy,
            **(
                {}
                if within is None
                else {
                    "usable": None if made.split.run is None else slower is None,
                    "times_too_slow": slower,
                }
            ),
        }
        for made, saving in zip(compared, compared.compared.comparisons, strict=True)
        for slower in [within and made.split.too_slow(within)]
    ]


def crossovers_object(
    meta: TraceMeta,
    variable: str,
    unit: str,
    points: Sequence[Point],
    changes: Sequence[Crossover],
    schedule: str | None,
) -> dict[str, Any]:
    """``compare --over --json``: which policy is best at which size."""
    return {
        "model": meta.model,
        "over": variable,
        "unit": unit,
        **({} if schedule is None else {"schedule": schedule}),
        "points": [
            {
                variable: p.size,
                "best": p.best,
                "values": dict(p.values),
                "at_least": bool(p.left_out),
                "left_out": list(p.left_out),
            }
            for p in points
        ],
        "crossovers": [{variable: c.size, "before": c.before, "after": c.after} for c in changes],
    }


def policy_object(policy: Policy) -> dict[str, Any]:
    """An entry of ``policies --json``."""
    return {
        "policy": policy.name,
        "description": policy.description,
        "default": policy.default,
        "objective": policy.objective,
        "cut": policy.cut,
        "secrets": [
            {
                **{key: list(values) for key, values in secret.conditions},
                "reason": secret.reason,
                "optional": secret.optional,
                **({"derived": True} if secret.derived else {}),
                **({"allow_masked": list(secret.allow_masked)} if secret.allow_masked else {}),
            }
            for secret in policy.secrets
        ],
        "rules": [
            {
                **{key: list(values) for key, values in rule.conditions},
                "place": rule.place,
                **({"weights_at": rule.weights_at} if rule.weights_at else {}),
                "reason": rule.reason,
                "optional": rule.optional,
            }
            for rule in policy.rules
        ],
        "protects": [
            {
                **{key: list(values) for key, values in protect.conditions},
                **asdict(protect.protection),
                "reason": protect.reason,
                "optional": protect.optional,
            }
            for protect in policy.protects
        ],
        "packs": [
            {
                **{key: list(values) for key, values in pack.conditions},
                "packing": pack.sized.text,
                "at_least_bytes": pack.sized.at_least_bytes,
                "reason": pack.reason,
                "optional": pack.optional,
            }
            for pack in policy.packs
        ],
    }
