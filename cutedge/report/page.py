"""A report as one HTML page that needs nothing else: styles, scripts and data are all in it."""

import gzip
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from html import escape
from importlib.resources import files
from typing import Any

from cutedge.report.contents import Report, Sheet
from cutedge.report.figures import Missing, Table

SCRIPTS = (
    *("kit", "charts", "block", "overview", "execution"),
    *("first", "chooser", "seen", "page"),
)
"""The parts of a page's script, in the order in which they stand in it."""


def write_page(report: Report, data_files: Mapping[str, str]) -> str:
    """A report as a page; ``data_files`` are what can be saved from it, in base64 by name."""
    here = files("cutedge.report")
    style = here.joinpath("page.css").read_text("utf-8")
    parts = (here.joinpath("scripts", f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    title = escape(f"{report.model}: cutedge report")
    held = "".join(
        f'<script type="text/plain" id="file-{name}">{text}</script>\n'
        for name, text in data_files.items()
    )
    packed = "".join(
        f'<script type="text/plain" id="sheet-{n}">{_packed(sheet)}</script>\n'
        for n, sheet in enumerate(report.sheets)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"{_header(report)}<main>\n{''.join(_sections(report, data_files))}</main>\n"
        f"{_footer(report)}{held}{packed}"
        f'<script type="application/json" id="data">{_data(report)}</script>\n'
        f'<script>\n"use strict";\n(() => {{\n{"".join(parts)}}})();\n</script>\n'
        "</body>\n</html>\n"
    )


def _data(report: Report) -> str:
    """What is drawn, for the page's script; no text in it can end the element that it stands in."""
    data = {
        "model": report.model,
        "devices": list(report.devices),
        "shown": report.shown,
        "choose": asdict(report.choose),
        "growth": _plain(report.growth),
        "sheets": [
            {
                "policy": sheet.policy,
                "verdict": asdict(sheet.verdict),
                "more": sheet.more,
                "seen": _plain(sheet.seen),
                "flows": _plain(sheet.flows),
                "layers": _plain(sheet.layers),
                "calls": _plain(sheet.calls),
                "rooflines": [_plain(one) for one in sheet.rooflines],
                "cycles": [_plain(one) for one in sheet.cycles],
            }
            for sheet in report.sheets
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


PACKED = ("model", "time", "block")
"""What of a sheet is large, and unpacked when its policy is picked."""


def _packed(sheet: Sheet) -> str:
    """The large drawings of a policy: JSON, packed by gzip, in base64."""
    data = {name: _shallow(getattr(sheet, name)) for name in PACKED}
    text = json.dumps(
        data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_shallow
    )
    return b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _shallow(figure: Any) -> dict[str, Any]:
    """A figure by field, what is in it as it is: to copy its columns would take long."""
    return {field.name: getattr(figure, field.name) for field in fields(figure)}


def _plain(figure: Any) -> dict[str, Any]:
    return {"kind": type(figure).__name__, **asdict(figure)}


def _header(report: Report) -> str:
    first = report.sheets[report.shown]
    keys = "".join(
        f'<span class="key"><i data-device="{n}"></i>{escape(device)}</span>'
        for n, device in enumerate(report.devices)
    )
    return (
        f'<header>\n<p class="of">{escape(report.of)}</p>\n'
        f'<h1 id="headline">{escape(first.verdict.limit)}</h1>\n'
        '<div id="scores"></div>\n'
        f'<p class="step" id="step">{escape(first.verdict.step)}</p>\n'
        '<p class="command"><code id="command"></code> '
        '<button type="button" id="copy">Copy</button></p>\n'
        f'<p class="more" id="more">{escape(first.more)}</p>\n</header>\n'
        '<nav><div><label>Policy shown <select id="policy" autocomplete="off"></select></label>'
        f"{keys}</div></nav>\n"
    )


def _sections(report: Report, data_files: Mapping[str, str]) -> Iterable[str]:
    """The parts of the page; one that has nothing to show under any policy is left out."""
    if len(report.sheets) > 1:
        axes = '<div id="axes"></div>\n'
        yield _section("choose", "Choose a policy", _CHOOSE, axes, _drawing("choose"))
    yield _section(
        "policies",
        "Policies side by side",
        _POLICIES.format(report.policies.baseline),
        _table(report.policies),
    )
    for name, title, caption in _DRAWINGS:
        if not left_out(report, name):
            yield _section(name, title, caption, _drawing(name))
    roofs, chips = (
        [
            _drawing(f"{name}-{n}", device)
            for n, device in enumerate(report.devices)
            if not left_out(report, name, n)
        ]
        for name in ("roofline", "cycles")
    )
    if roofs:
        yield _section("roofline", "Roofline", _ROOFLINE, *roofs)
    if chips:
        yield _section("cycles", "Where the chip's cycles go", _CYCLES, *chips)
    if report.designs:
        parts = (f"<h3>{escape(name)}</h3>\n{html}" for name, html in report.designs.items())
        yield _section("designs", "Designs of the same area", _DESIGNS, *parts)
    yield _section("files", "The data of this page", _DATA, _saved(data_files))


def left_out(report: Report, name: str, device: int | None = None) -> str:
    """Why a drawing is on no policy's sheet; empty where it is on one."""
    if name == "growth":
        found = [report.growth]
    elif device is None:
        found = [getattr(sheet, name) for sheet in report.sheets]
    else:
        of = "rooflines" if name == "roofline" else name
        found = [getattr(sheet, of)[device] for sheet in report.sheets]
    missing = [one.why for one in found if isinstance(one, Missing)]
    return missing[0] if len(missing) == len(found) else ""


def _saved(data_files: Mapping[str, str]) -> str:
    """A line for each table with a button for each of its files."""
    tables: dict[str, list[str]] = {}
    for file in data_files:
        tables.setdefault(file.rpartition(".")[0], []).append(file)
    lines = "".join(
        f"<li>{escape(name)} "
        + " ".join(
            f'<button type="button" data-file="{file}">{file.rpartition(".")[2]}'
            f'<span class="unseen"> of {escape(name)}</span></button>'
            for file in there
        )
        + "</li>\n"
        for name, there in tables.items()
    )
    return f'<ul class="saved">\n{lines}</ul>\n'


_CHOOSE = (
    "Each point is a policy, the one shown is filled. Lower and further left is better; the line is "
    "the Pareto set: no policy is better than one on it in both figures. Axes are logarithmic, with "
    "0 at their start. Click a point to see its policy below."
)
_DATA = (
    "What is drawn above, as files that are in this page: a row for each policy, transfer, call, sort "
    "of tensor that is seen, size and point. DuckDB, pandas and polars read the Parquet files."
)
_POLICIES = (
    "Bytes are payload; saved is against {}. Moving is the time of all transfers, run that of "
    "computing too, one after another; – is not known. Seen are the sorts of tensor "
    "that devices which are not trusted see or can work out. A head sorts, a row shows its policy."
)
_DRAWINGS = (
    (
        "seen",
        "What is seen",
        "Sorts of tensor, and how each accelerator sees them: plain, recoverable from what it has, "
        "masked, or not at all, with what shows the first of them. Home has all of them.",
    ),
    (
        "model",
        "The model, layer by layer",
        "Each cell is a layer, as they run. A click opens it below: when it runs, and its block. The "
        "arrow keys go from one to the next; the address keeps the layer.",
    ),
    (
        "time",
        "When it runs",
        "A lane does one thing at a time: a device, or one direction of a link, in the colour of the "
        "device that runs or sends. The line along the lanes is the critical path: what to make "
        "faster first; what is blank is idle. Ctrl and the wheel zoom, so do + and − while the "
        "drawing has the focus; 0 goes back to the layer.",
    ),
    (
        "block",
        "Its block",
        "The ops of the layer, from top to bottom. What crosses stands between the devices, once "
        "for each transfer, in the colour of the device that it leaves; lines are as wide as their "
        "bytes. Views are left out, a norm is one node, dashed is outside the block.",
    ),
    (
        "flows",
        "Traffic between devices",
        "From the device that sends, by kind of tensor, to the device that receives.",
    ),
    ("layers", "Traffic by layer", "By the layer that makes what crosses. A click opens a layer."),
    ("calls", "Traffic by call", "Calls that run the same modules are taken together."),
    (
        "growth",
        "Growth",
        "Payload of each placement as it is at other sizes, from its formula; the bold line is "
        "the policy shown. Both axes are logarithmic; a circle marks where one policy begins to move "
        "less than another.",
    ),
)
_ROOFLINE = (
    "The ops that the policy has on each device: FLOPs for each byte that they read or write, and "
    "for each second; the larger, the more of the device's time. Left of the ridge memory is the "
    "limit, right of it the peak; what is far below the roof waits for ops to start."
)
_DESIGNS = (
    "All matrix products of the model, whatever the policy, on the chip and on the best systolic array "
    "that is no larger, at its clock, with a DRAM as fast as its host link. Area is a proxy."
)
_CYCLES = "Useful cycles multiply what the model asks for; the others multiply padding, or wait."


def _section(name: str, title: str, caption: str, *parts: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="head-{name}">\n'
        f'<h2 id="head-{name}">{escape(title)} '
        f'<a class="anchor" href="#{name}" aria-label="Link to {escape(title)}">#</a></h2>\n'
        f'<p class="caption">{escape(caption)}</p>\n'
        f"{''.join(parts)}</section>\n"
    )


def _drawing(name: str, device: str | None = None) -> str:
    head = "" if device is None else f"<h3>{escape(device)}</h3>"
    return f'<div>{head}<div class="drawing" id="draw-{name}"></div></div>\n'


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_sorted_by(figure, None)}>{escape(name)}</th>'
        for name, figure in zip(table.columns, table.figures, strict=True)
    )
    rows = "".join(
        _row(row, values, table) for row, values in zip(table.rows, table.values, strict=True)
    )
    return (
        '<p class="filter"><label>Filter <input id="filter" type="search" autocomplete="off"></label> '
        '<label>Sort by <select id="sort" autocomplete="off"></select></label> '
        '<span id="filtered" role="status"></span></p>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="Policies side by side, scrollable">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def _row(row: Sequence[str], values: Sequence[float | None], table: Table) -> str:
    cells = "".join(
        f'<td data-name="{escape(name)}"{_sorted_by(figure, value)}>{_cell(name, cell, value)}</td>'
        for name, cell, figure, value in [
            *zip(table.columns, row, table.figures, values, strict=True)
        ][1:]
    )
    return f'<tr><td><button type="button">{escape(row[0])}</button></td>{cells}</tr>\n'


def _cell(name: str, text: str, value: float | None) -> str:
    """A cell; of what is seen the number, and where there is room or to be read out all sorts."""
    if name != "seen":
        return escape(text)
    return f'{value}<span class="unseen"> {escape(text)}</span>'


def _sorted_by(figure: bool, value: float | None) -> str:
    """What a cell is sorted by: a figure, which may not be known, or else its text."""
    return f' data-value="{"" if value is None else value}"' if figure else ' class="text"'


def _footer(report: Report) -> str:
    lacking = [left_out(report, name) for name, *_ in _DRAWINGS]
    for n, array in enumerate(report.arrays):
        lacking.append("" if array else left_out(report, "roofline", n))
    told = [*report.notes, *dict.fromkeys(why for why in lacking if why)]
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in told)
    return f"<footer>\n{notes}</footer>\n"
