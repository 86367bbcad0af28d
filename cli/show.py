"""What trace and models --check print, and what all commands say of a traced model."""

from collections.abc import Sequence

from cli.app import say
from cli.printing import print_table
from costmodels.flops import FlopTotals, total_flops
from cutedge._words import known, trace_lines, unknown
from tracer.captured import Checked
from tracer.graph import OpGraph
from tracer.summary import growth, headline, largest_tensors
from tracer.words import counted, human


def trace_summary(graph: OpGraph, flops: FlopTotals, folder: object) -> None:
    """What ``trace`` ends with."""
    say(headline(graph.meta), bold=True)
    print_table(", ~", trace_lines(graph, flops))
    say()
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
    say()
    say(f"written to {folder}")


def checked(
    model: str, kind: str, found: Sequence[Checked], graphs: Sequence[OpGraph | None]
) -> None:
    """``models --check``: how far each phase can be traced."""
    say(f"{model}: {kind}", bold=True)
    for c, graph in zip(found, graphs, strict=True):
        say()
        say(c.phase, bold=True)
        for way, failure in c.tried:
            say(f"  {way}: {failure or 'traced'}")
        if graph is None or c.captured is None:
            say(f"  {c.refused}")
            continue
        formulas = ", ".join(graph.meta.symbolic) or "nothing: sizes are fixed"
        totals, repeated = total_flops(graph), counted(graph.meta.repeated_layers, "layer")
        reason = c.captured.unrepeated_reason
        for line in (
            f"{counted(len(graph.ops), 'op')}, formulas in {formulas}",
            f"every layer is traced: {reason}" if reason else f"{repeated} repeated",
            f"FLOPs are {known(totals)} of the ops that work{unknown(totals)}",
        ):
            say(f"  {line}")
        for note in c.captured.reach.notes:
            say(f"  {note}")
