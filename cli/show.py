"""What trace and models --check print, and what all commands say of a traced model."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from cli.printing import Column, console, counted, human, print_json, print_table
from costmodels.experts import active_parameters, assumptions
from costmodels.flops import FlopTotals, numbered, total_flops
from cutedge._words import known, unknown
from tracer.captured import Checked
from tracer.graph import Kind, OpGraph
from tracer.summary import (
    cached_state,
    count_ops,
    growth,
    headline,
    largest_tensors,
    modules_not_run,
    parameter_bytes,
)  # fmt: skip

if TYPE_CHECKING:
    from cutedge import Trace


def _shape(shape: Iterable[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def trace_summary(graph: OpGraph, flops: FlopTotals, folder: object) -> None:
    """What ``trace`` ends with."""
    out = console()
    meta = graph.meta
    kinds = count_ops(graph)
    views, constants = kinds.pop(Kind.VIEW, 0), kinds.pop(Kind.CONSTANT, 0)
    sorts = [*kinds.items(), (Kind.VIEW, views), (Kind.CONSTANT, constants)]
    out.print(Text(headline(meta), style="bold"))
    said = [("ops", f"{len(graph.ops):,}: {', '.join(f'{n} {kind.value}' for kind, n in sorts)}")]
    size = human(parameter_bytes(graph))
    said.append(("parameters", f"{meta.parameters:,} ({size} in {meta.dtype})"))
    said += [("", line) for line in not_run(graph)]
    assumed, active = assumptions(graph), active_parameters(graph)
    if assumed or active != meta.parameters:
        share = active / max(meta.parameters, 1)
        said.append(("", f"{active:,} active for one token ({share:.1%})"))
        said += [("" if n else "assumed", text) for n, text in enumerate(assumed)]
    missing = numbered(flops.products_missing)
    which = f", those of {missing} not known" if missing else f" ({flops.products_status})"
    said.append(("FLOPs", f"{flops.products:,} in matrix products{which}"))
    if flops.products_expr:
        said.append(("", f"= {flops.products_expr}"))
    if flops.causal is not None and flops.causal != flops.products:
        causal = f"{flops.causal:,} of them where attention skips what its mask hides"
        said.append(("", causal))
        if flops.causal_expr:
            said.append(("", f"= {flops.causal_expr}"))
    said.append(("", f"{flops.other:,} in all other ops (estimates among them)"))
    before, after = cached_state(graph)
    said.append(("", f"{known(flops)} of the ops that work{unknown(flops)}"))
    for what, (bytes_, formula) in (("is read", before), ("afterwards", after)):
        if bytes_:
            closed = f" = {formula}" if formula else ""
            said.append(("cache", f"{human(bytes_)} {what}{closed}"))
    print_table([Column(""), Column("", "~")], said)
    out.print()
    print_table(
        [
            Column("largest tensors"), Column("count", ">", 2), Column("shape", "<", 3),
            Column("bytes", ">", 1), Column("size", ">"), Column("formula", "<", 5),
            Column("growth", "<", 4),
        ],
        [
            (
                group.name, str(group.count), _shape(t.shape), f"{t.bytes:,}", human(t.bytes),
                t.bytes_expr or "", growth(t),
            )
            for group in largest_tensors(graph, 6)
            for t in [group.example]
        ],
    )  # fmt: skip
    out.print()
    out.print(f"written to {folder}")


def not_run(graph: OpGraph) -> list[str]:
    """Which modules of a model a trace does not run, in a line; nothing where all are run."""
    idle = modules_not_run(graph)
    if not idle:
        return []
    some = [f"{path} ({size:,})" for path, size in list(idle.items())[:3]]
    more = [f"{len(idle) - 3} more"] if len(idle) > 3 else []
    return [f"{sum(idle.values()):,} of them are not run: {', '.join(some + more)}"]


def trace_json(traced: "Trace", folder: object) -> None:
    """``trace --json``."""
    graph = traced.graph
    meta, flops = graph.meta, total_flops(graph)
    before, after = cached_state(graph)
    print_json({
        "folder": str(folder), "cached": traced.cached,
        "model": meta.model, "model_class": meta.model_class, "phase": meta.phase,
        **meta.variables, "dtype": meta.dtype, "attn": meta.attn, "logits": meta.logits,
        "symbolic": list(meta.symbolic), "overrides": {k: json.loads(v) for k, v in meta.overrides},
        "ops": len(graph.ops),
        "ops_by_kind": {kind.value: n for kind, n in count_ops(graph).items()},
        "parameters": meta.parameters, "parameter_bytes": parameter_bytes(graph),
        "active_parameters": active_parameters(graph), "not_run": modules_not_run(graph),
        "assumptions": list(assumptions(graph)),
        "product_flops": flops.products, "product_flops_status": flops.products_status.value,
        "product_flops_expr": flops.products_expr,
        "causal_product_flops": flops.causal, "causal_product_flops_expr": flops.causal_expr,
        "other_flops": flops.other, "coverage": flops.coverage,
        "unsupported": dict(flops.unsupported),
        "products_missing": dict(flops.products_missing),
        "cache_bytes": before[0], "cache_bytes_expr": before[1],
        "cache_bytes_after": after[0], "cache_bytes_after_expr": after[1],
        "largest_tensors": [
            {
                "tensor_group": g.name, "count": g.count, "shape": list(g.example.shape),
                "bytes": g.example.bytes, "bytes_expr": g.example.bytes_expr,
                "seq_degree": g.example.seq_degree,
            }
            for g in largest_tensors(graph, 6)
        ],
        "warnings": list(traced.warnings),
    })  # fmt: skip


def checked(
    model: str, kind: str, found: Sequence[Checked], graphs: Sequence[OpGraph | None], *,
    as_json: bool,
) -> None:  # fmt: skip
    """``models --check``: how far each phase can be traced."""
    if as_json:
        print_json({
            "model": model, "model_class": kind,
            "phases": [
                {
                    "phase": c.phase, "refused": c.refused,
                    "tried": [{"way": way, "failure": failure} for way, failure in c.tried],
                    "symbolic": list(graph.meta.symbolic) if graph else None,
                    "ops": len(graph.ops) if graph else None,
                    "repeated_layers": graph.meta.repeated_layers if graph else None,
                    "whole": c.captured.whole if c.captured else None,
                    "coverage": total_flops(graph).coverage if graph else None,
                    "unsupported": dict(total_flops(graph).unsupported) if graph else None,
                    "notes": list(c.captured.reach.notes) if c.captured else [],
                }
                for c, graph in zip(found, graphs, strict=True)
            ],
        })  # fmt: skip
        return
    out = console()
    out.print(Text(f"{model}: {kind}", style="bold"))
    for c, graph in zip(found, graphs, strict=True):
        out.print()
        out.print(Text(c.phase, style="bold"))
        for way, failure in c.tried:
            out.print(f"  {way}: {failure or 'traced'}")
        if graph is None or c.captured is None:
            out.print(f"  {c.refused}")
            continue
        formulas = ", ".join(graph.meta.symbolic) or "nothing: sizes are fixed"
        totals, repeated = total_flops(graph), counted(graph.meta.repeated_layers, "layer")
        whole = c.captured.whole
        for line in (
            f"{counted(len(graph.ops), 'op')}, formulas in {formulas}",
            f"every layer is traced: {whole}" if whole else f"{repeated} repeated",
            f"FLOPs are {known(totals)} of the ops that work{unknown(totals)}",
        ):
            out.print(f"  {line}")
        for note in c.captured.reach.notes:
            out.print(f"  {note}")
