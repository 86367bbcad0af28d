"""The frontier of memory against what it costs: as a table, and as a chart."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from cutedge._plan_words import amount
from cutedge.report.axes import byte_ticks
from partition.tables import partition_metadata
from tracer.files import write_files
from tracer.serde import column, make_tables, write_tables
from tracer.words import human

if TYPE_CHECKING:
    from cutedge._plan import Plan

FRONTIER = pa.schema(
    [
        column(
            "memory_bytes",
            pa.int64(),
            "What the accelerator may take: with anything from `taken_bytes` up to this no placement "
            "costs less.",
        ),
        column("taken_bytes", pa.int64(), "What it takes, the most at a time."),
        column(
            "unit", pa.string(), "Of `cost` and `least_cost`: seconds, bytes, or weighted of both."
        ),
        column("cost", pa.float64(), "Of all phases, each as often as it runs."),
        column("least_cost", pa.float64(), "No placement with so much memory costs less."),
        column("proven", pa.bool_(), "Whether no placement with so much memory is better."),
        column("calls", pa.int32(), "Round trips of all phases, each as often as it runs."),
        column("total_payload_bytes", pa.int64(), "What crosses, likewise."),
    ]
)


def write_points(plan: "Plan", folder: Path) -> tuple[Path, Path]:
    """Write ``frontier.parquet`` and ``frontier.svg`` into a partition's folder; where they are."""
    split = plan.phases[-1].partition.split
    rows = [
        tuple(plan.unit if name == "unit" else getattr(point, name) for name in FRONTIER.names)
        for point in plan.points
    ]
    tables = make_tables(split.graph.meta, {"frontier": (FRONTIER, rows)}, split.identity)
    advice = "Make the place writable, or free some space."
    write_tables(folder, tables, partition_metadata(split), advice=advice)
    write_files(folder, {"frontier.svg": chart(plan).encode()})
    return folder / "frontier.parquet", folder / "frontier.svg"


_WIDE, _HIGH, _LEFT, _LOW = 720, 360, 84, 48
"""Of the chart, and its margins at the left and below, in pixels."""


def chart(plan: "Plan") -> str:
    """The points as steps: memory of the accelerator to the right, what a plan costs upwards."""
    return "\n".join(_drawn(plan)) + "\n"


def _drawn(plan: "Plan") -> Iterator[str]:
    points = plan.points[::-1]
    first = plan.phases[0].partition
    (device,) = first.setting.machine.accelerators
    most, highest = max(one.taken_bytes for one in points), max(one.cost for one in points)
    ticks = byte_ticks(most)
    right, top = _WIDE - 24, 40

    def x(size: float) -> float:
        return _LEFT + (right - _LEFT) * min(1.0, size / max(most, 1))

    def y(cost: float) -> float:
        return _HIGH - _LOW - (_HIGH - _LOW - top) * cost / (highest or 1.0)

    def text(at: float, down: float, said: str, anchor: str = "middle") -> str:
        return f'<text x="{at:.1f}" y="{down:.1f}" text-anchor="{anchor}">{escape(said)}</text>'

    title = f"{first.trace.graph.meta.model}, {plan.policy}: {plan.unit} by memory of {device}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" '
        f'height="{_HIGH}" font-family="sans-serif" font-size="12" fill="#333">'
    )
    yield f'<rect width="{_WIDE}" height="{_HIGH}" fill="#fff"/>'
    yield text(_WIDE / 2, 20, title)
    for size, said in zip(ticks.values, ticks.texts, strict=True):
        if size <= most:
            yield f'<path d="M{x(size):.1f} {top}V{_HIGH - _LOW}" stroke="#ddd"/>'
            yield text(x(size), _HIGH - _LOW + 18, said)
    for part in range(5):
        cost = highest * part / 4
        yield f'<path d="M{_LEFT} {y(cost):.1f}H{right}" stroke="#ddd"/>'
        yield text(_LEFT - 8, y(cost) + 4, amount(plan, cost), "end")
    line = ""
    for one in points:  # from so much memory on, until the next one fits
        line += f"{'H' if line else 'M'}{x(one.taken_bytes):.1f}"
        line += f"{'V' if 'M' in line[1:] or 'H' in line else ' '}{y(one.cost):.1f}"
    yield f'<path d="{line}H{right}" fill="none" stroke="#2a6f97" stroke-width="2"/>'
    for one in points:
        said = f"{human(one.taken_bytes)}: {amount(plan, one.cost)}" + (
            "" if one.proven else f", not below {amount(plan, one.least_cost)}"
        )
        fill = "#2a6f97" if one.proven else "#fff"
        yield (
            f'<circle cx="{x(one.taken_bytes):.1f}" cy="{y(one.cost):.1f}" r="3.5" fill="{fill}" '
            f'stroke="#2a6f97"><title>{escape(said)}</title></circle>'
        )
    yield "</svg>"
