"""Designs as a page that needs nothing else: for each run what limits it, and charts."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutedge._design_words import (
    HEADS,
    design_text,
    kib_text,
    limit_lines,
    pareto_rows,
    pareto_words,
    run_name,
    said,
    side_by_side,
)
from tracer.errors import CutedgeError
from tracer.files import write_whole
from tracer.words import duration, joules

if TYPE_CHECKING:
    from cutedge._designs import DesignedRun, Designs

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _LOW = 760, 400, 76, 132, 24, 52
"""Of a chart and of its margins, in pixels."""

_COLOURS = {"os": "var(--f0)", "ws": "var(--f1)", "is": "var(--f2)", "fixed": "var(--mark)"}
"""By dataflow, of those that the colour-blind tell apart; each has a shape of its own too."""

_KEPT = {"os": "os: outputs stay", "ws": "ws: weights stay", "is": "is: inputs stay"}

MOST_MARKS = 1_000
"""Designs of a Pareto set that have a mark each, evenly from the smallest to the largest."""


def write_designs(made: "Designs", page: Path) -> Path:
    """Write a page; where it is. Raises CutedgeError where it cannot be written."""
    style = files("cutedge.report").joinpath("page.css").read_text("utf-8")
    names = ", ".join(dict.fromkeys(one.graph.meta.model for one in made.found))
    about = "".join(
        f'<p class="more">{escape(line[:1].upper() + line[1:])}.</p>\n' for line in said(made)
    )
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(names)}: designs of a chip</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header>\n<h1>Designs of a chip for {escape(names)}</h1>\n{about}</header>\n"
        "<section>\n<h2>Side by side</h2>\n"
        '<p class="caption">Each run on the device that designs are set beside, and on the best '
        "design that is small enough: of those within 1 % of the fewest seconds the one with the least "
        "energy.</p>\n"
        f"{beside(made)}</section>\n"
        f"{''.join(_section(made, found) for found in made.found)}</body>\n</html>\n"
    )
    try:
        write_whole(page, text.encode())
    except OSError as error:
        raise CutedgeError(f"cannot write {page}: {error.strerror or error}") from error
    return page


def _section(made: "Designs", found: "DesignedRun") -> str:
    return (
        f"<section>\n<h2>{escape(run_name(found.graph.meta))}</h2>\n{drawn(made, found)}"
        f'<p class="caption">{escape(pareto_words(made, found))}</p>\n'
        f"{_table(HEADS, pareto_rows(made, found))}</section>\n"
    )


def drawn(made: "Designs", found: "DesignedRun") -> str:
    """What limits the best design of a run, and its charts."""
    return (
        f"{''.join(f'<p>{escape(line)}.</p>' for line in limit_lines(made, found))}\n"
        '<p class="caption">Steps: the fewest seconds with so much area, by dataflow. Marks: the '
        "designs that no other one is better than, in all figures that are compared. Both axes are "
        "logarithmic.</p>\n"
        f"{chart(made, found)}{_bars(made, found)}"
    )


def beside(made: "Designs") -> str:
    """Each run on the device and on the best design, as a table."""
    return _table(f"model, tokens, {HEADS}", side_by_side(made))


def _table(heads: str, rows: Sequence[Sequence[str]]) -> str:
    names = [head.rstrip("0123456789").rstrip("><%~") for head in heads.split(", ")]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table, scrollable"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table></div>\n"
    )


def chart(made: "Designs", found: "DesignedRun") -> str:
    """Area to the right, seconds upwards, a colour and a shape a dataflow, labels at the lines."""
    return "\n".join(_drawn(made, found)) + "\n"


def _drawn(made: "Designs", found: "DesignedRun") -> Iterator[str]:
    area, seconds, flows = made.square_millimetres, found.runs.seconds, made.space.places[0]
    steps = {}
    for number, flow in enumerate(made.space.dataflows):
        here = np.flatnonzero(flows == number)
        here = here[np.lexsort((seconds[here], area[here]))]
        lowest = np.minimum.accumulate(seconds[here])
        fewer = np.concatenate([[True], lowest[1:] < lowest[:-1]])
        steps[flow] = here[fewer]
    device = found.device
    shown = np.concatenate([*steps.values(), found.pareto]).astype(int)
    wide = [*area[shown].tolist(), *([device.square_millimetres] if device else [])]
    high = [*seconds[shown].tolist(), *([device.seconds] if device else [])]
    x, y = _scale(wide, _LEFT, _WIDE - _RIGHT), _scale(high, _HIGH - _LOW, _TOP)
    yield (
        f'<svg class="chart" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        'aria-label="Seconds of designs by their area">'
    )
    for value in _ticks(*_ends(wide)):
        yield f'<path class="grid" d="M{x(value):.1f} {_TOP}V{_HIGH - _LOW}"/>'
        yield _text(x(value), _HIGH - _LOW + 18, f"{value:g}", "middle", "soft")
    for value in _ticks(*_ends(high)):
        yield f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{_WIDE - _RIGHT}"/>'
        yield _text(_LEFT - 8, y(value) + 4, duration(value), "end", "soft")
    yield _text((_LEFT + _WIDE - _RIGHT) / 2, _HIGH - 12, "area, mm2", "middle", "soft")
    if made.max_area is not None and min(wide) < made.max_area < max(wide):
        at = x(made.max_area)
        yield f'<path class="most" d="M{at:.1f} {_TOP}V{_HIGH - _LOW}"/>'
        left, label = at > _WIDE / 2, f"at most {made.max_area:.4g} mm2"
        yield _text(at + (-6 if left else 6), _TOP + 30, label, "end" if left else "start", "soft")
    most, taken = max(wide), []
    for flow, numbers in steps.items():
        first, *others = zip(x(area[numbers]), y(seconds[numbers]), strict=True)
        line = f"M{first[0]:.1f} {first[1]:.1f}"  # from so much area on, until something is faster
        line += "".join(f"H{right:.1f}V{up:.1f}" for right, up in others)
        yield (
            f'<path d="{line}H{x(most):.1f}" fill="none" stroke="{_COLOURS[flow]}" '
            'stroke-width="1.8"/>'
        )
        taken.append((float(y(seconds[numbers[-1]])), flow))
    yield from _labels(taken)
    by_area = found.pareto[area[found.pareto].argsort(kind="stable")]
    count = min(len(by_area), MOST_MARKS)
    for n in dict.fromkeys(np.linspace(0, len(by_area) - 1, count).round().astype(int).tolist()):
        number = int(by_area[n])
        yield _mark(made, found, number, x(area[number]), y(seconds[number]))
    if found.best is not None:
        at, up = x(area[found.best]), y(seconds[found.best])
        yield f'<circle cx="{at:.1f}" cy="{up:.1f}" r="8" fill="none" stroke="var(--mark)"/>'
        down = up + 24 if up < _HIGH - _LOW - 40 else up - 14
        side = "end" if at > _WIDE - _RIGHT - 80 else "middle"
        yield _text(at, down, f"best: {design_text(made.space.design(found.best))}", side, "halo")
    if device:
        at, up = x(device.square_millimetres), y(device.seconds)
        yield f'<path d="M{at - 6:.1f} {up:.1f}l6 -6l6 6l-6 6z" fill="var(--mark)"/>'
        yield _text(at, up - 12, device.device.name, "middle", "halo")
    yield "</svg>"


def _labels(ends: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Names at the ends of lines, below each other where these are near."""
    last = float("-inf")
    for end, flow in sorted(ends):
        last = max(end, last + 15)
        yield (
            f'<text x="{_WIDE - _RIGHT + 8}" y="{last + 4:.1f}" style="fill:{_COLOURS[flow]}">'
            f"{escape(_KEPT[flow])}</text>"
        )


def _mark(made: "Designs", found: "DesignedRun", number: int, x: float, y: float) -> str:
    design, runs = made.space.design(number), found.runs
    told = escape(
        f"{design_text(design)}, {kib_text(design)} KiB, "
        f"{float(design.dram_bytes_per_second) / 1e9:g} GB/s, {float(design.clock_hertz) / 1e6:g} MHz: "
        f"{duration(runs.seconds[number])}, {joules(runs.joules[number])}, "
        f"{made.square_millimetres[number]:.4g} mm2"
    )
    shape = {
        "os": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"',
        "ws": f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4"',
        "is": f'<path d="M{x - 4:.1f} {y + 3.5:.1f}l4 -7.5l4 7.5z"',
    }[design.dataflow]
    return f'{shape} fill="{_COLOURS[design.dataflow]}"><title>{told}</title>{_closed(shape)}'


def _closed(shape: str) -> str:
    return f"</{shape[1:].split(' ')[0]}>"


def _bars(made: "Designs", found: "DesignedRun") -> str:
    """How many times as fast the best design is with twice of each thing."""
    faster, _ = made.limits(found)
    if not faster:
        return ""
    high = 22 * len(faster) + 30
    parts = [
        f'<p class="caption">Twice of one thing: how many times as fast the best design is.</p>\n'
        f'<svg class="chart" viewBox="0 0 {_WIDE} {high}" role="img" aria-label="What doubles it">'
    ]
    one = (_WIDE - 220) / max(2.0, *faster.values())
    for at, value in ((1, "as fast"), (2, "twice")):
        parts.append(f'<path class="grid" d="M{140 + one * at:.1f} 4V{high - 22}"/>')
        parts.append(_text(140 + one * at, high - 6, value, "middle", "soft"))
    for n, ((knob,), gain) in enumerate(faster.items()):
        parts.append(_text(132, 18 + 22 * n, knob, "end"))
        parts.append(
            f'<rect x="140" y="{6 + 22 * n}" width="{one * gain:.1f}" height="16" '
            'fill="var(--idle)"/>'
        )
        parts.append(_text(146 + one * gain, 18 + 22 * n, f"{gain:.2f}", "start", "halo"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, said: str, anchor: str, kind: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """A range with room on both sides."""
    return min(values) / 1.15, max(values) * 1.15


def _scale(values: Sequence[float], first: float, last: float) -> Any:
    """A logarithmic axis: a figure -> pixels."""
    low, high = map(log10, _ends(values))
    return lambda value: first + (last - first) * (np.log10(value) - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Figures that one can read: 1, 2 and 5 times powers of ten, or powers alone where many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for parts in ((1, 2, 5), (1,)):
        found = [part * 10.0**power for power in powers for part in parts]
        if len(inside := [value for value in found if low <= value <= high]) <= 9:
            return inside
    return inside[:: ceil(len(inside) / 9)]
