"""What trace and models --check print, and what all commands say of a traced model."""

from collections.abc import Sequence

from rich.text import Text

from cli.printing import console, print_table
from costmodels.flops import FlopTotals, total_flops
from cutedge._words import known, trace_lines, unknown
from tracer.captured import Checked
from tracer.graph import OpGraph
from tracer.summary import growth, headline, largest_tensors
from tracer.words import counted, human


def trace_summary(graph: OpGraph, flops: FlopTotals, folder: object) -> None:
    """What ``trace`` ends with."""
    out = console()
    out.print(Text(headline(graph.meta), style="bold"))
    print_table(", ~", trace_lines(graph, flops))
    out.print()
    print_table(
        "largest tensors, count>2, shape<3, bytes>1, size>, formula<5, growth<4",
        [
            (
                group.name,
                str(group.count),
                str([*t.shape]),
                f"{t.bytes:,}",
                human(t.bytes),
                t.bytes_expr or "",
                growth(t),
            )
            for group in largest_tensors(graph, 6)
            for t in [group.example]
        ],
    )
    out.print()
    out.print(f"written to {folder}")


def checked(
    model: str, kind: str, found: Sequence[Checked], graphs: Sequence[OpGraph | None]
) -> None:
    """``models --check``: how far each phase can be traced."""
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
        reason = c.captured.unrepeated_reason
        for line in (
            f"{counted(len(graph.ops), 'op')}, formulas in {formulas}",
            f"every layer is traced: {reason}" if reason else f"{repeated} repeated",
            f"FLOPs are {known(totals)} of the ops that work{unknown(totals)}",
        ):
            out.print(f"  {line}")
        for note in c.captured.reach.notes:
            out.print(f"  {note}")
