"""A report as one HTML page that needs nothing else: styles, scripts and data are all in it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

from cutedge.report.contents import Report
from cutedge.report.figures import Table
from tracer.errors import InputError


def write_page(report: Report, library: str) -> str:
    """A report as a page, with the script of ``drawing_library``."""
    here = files("cutedge.report")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    title = escape(f"{report.model}: cutedge report")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"{_header(report)}{''.join(_sections(report))}{_footer(report)}"
        f'<script type="application/json" id="data">{_data(report)}</script>\n'
        f"<script>{library}</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def drawing_library() -> str:
    """The script of plotly.js. Raises InputError where the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(
            "report draws with plotly, which is not installed: pip install 'cutedge[report]' "
            "(or pip install plotly)"
        ) from error
    return str(get_plotlyjs())


def _data(report: Report) -> str:
    """What is drawn, for the page's script; no text in it can end the element that it stands in."""
    data = {
        "devices": list(report.devices),
        "shown": report.shown,
        "growth": _plain(report.growth),
        "sheets": [
            {
                "policy": sheet.policy,
                "verdict": asdict(sheet.verdict),
                "more": sheet.more,
                "flows": _plain(sheet.flows),
                "layers": _plain(sheet.layers),
                "calls": _plain(sheet.calls),
                "block": _plain(sheet.block),
                "rooflines": [_plain(one) for one in sheet.rooflines],
                "cycles": [_plain(one) for one in sheet.cycles],
            }
            for sheet in report.sheets
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


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


def _sections(report: Report) -> Iterable[str]:
    yield _section(
        "policies",
        "Policies side by side",
        _POLICIES.format(report.policies.baseline),
        _table(report.policies),
    )
    for name, title, caption in _DRAWINGS:
        yield _section(name, title, caption, _drawing(name))
    each = list(enumerate(zip(report.devices, report.arrays, strict=True)))
    roofs = [_drawing(f"roofline-{n}", device) for n, (device, array) in each if not array]
    if roofs:
        yield _section("roofline", "Roofline", _ROOFLINE, *roofs)
    chips = [_drawing(f"cycles-{n}", device) for n, (device, array) in each if array]
    why = '<p class="why">No device here is an array of multipliers, which has cycles.</p>'
    yield _section("cycles", "Where the chip's cycles go", _CYCLES, *(chips or [why]))
    if report.designs:
        parts = (f"<h3>{escape(name)}</h3>\n{html}" for name, html in report.designs.items())
        yield _section("designs", "Designs of the same area", _DESIGNS, *parts)


_POLICIES = (
    "Bytes are payload; saved is against {}. Moving is the time of all transfers, run that of "
    "computing too, one after another; – is not known. Exposed is what devices that are "
    "not trusted are sent or compute. Choose a policy to see it below."
)
_DRAWINGS = (
    (
        "flows",
        "Traffic between devices",
        "From the device that sends, by kind of tensor, to the device that receives.",
    ),
    ("layers", "Traffic by layer", "By the layer that makes what crosses."),
    ("calls", "Traffic by call", "Calls that run the same modules are taken together."),
    (
        "block",
        "One block",
        "The layer in the middle of the model, from top to bottom. What crosses stands between the "
        "devices, once for each transfer, in the colour of the device that it leaves; lines are as "
        "wide as their bytes. Views are left out, a norm is one node, dashed is outside the block.",
    ),
    (
        "growth",
        "Growth",
        "Payload of each placement as it is at other sizes, from its formula. Both axes are "
        "logarithmic; a circle marks where one policy begins to move less than another.",
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
        f'<section id="{name}">\n<h2>{escape(title)}</h2>\n'
        f'<p class="caption">{escape(caption)}</p>\n'
        f"{''.join(parts)}</section>\n"
    )


def _drawing(name: str, device: str | None = None) -> str:
    head = "" if device is None else f"<h3>{escape(device)}</h3>"
    return f'<div>{head}<div class="drawing" id="draw-{name}"></div></div>\n'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(_row(row) for row in table.rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n'
        "</table></div>\n"
    )


def _row(row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f'<tr><td><button type="button">{escape(row[0])}</button></td>{cells}</tr>\n'


def _footer(report: Report) -> str:
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in report.notes)
    return f"<footer>\n{notes}</footer>\n"
