"""A small page with sliders, whose figures a process on this machine answers."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

SCRIPTS = ("kit", "first", "live")
"""The parts of the page's script, in the order in which they stand in it."""

_SAID = (
    "Sizes, link and wire dtype are yours to move: all figures are counted anew from formulas, and "
    "are those of cutedge compare there. A row shows its policy above."
)


def live_page(of: str, told: Mapping[str, Any]) -> str:
    """The page; ``told`` is what its script needs to know of what it shows (``live.js``)."""
    here = files("cutedge.report")
    style = here.joinpath("page.css").read_text("utf-8")
    style += here.joinpath("live.css").read_text("utf-8")
    parts = (here.joinpath("scripts", f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    data = json.dumps(told, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(told['model'])}: cutedge report, live</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n'
        '<body class="live">\n'
        f'<header>\n<p class="of" id="of">{escape(of)}</p>\n'
        '<h1 id="headline">…</h1>\n<div id="scores"></div>\n</header>\n'
        f"<main>\n{_sliders(told['sliders'], told['wires'], told['fixed'])}"
        '<section id="policies" aria-labelledby="head-policies">\n'
        '<h2 id="head-policies">Policies side by side</h2>\n'
        f'<p class="caption">{escape(_SAID)}</p>\n'
        '<div class="wide" tabindex="0" role="region" '
        'aria-label="Policies side by side, scrollable"><table id="table"></table></div>\n</section>\n'
        '<section aria-labelledby="head-again">\n<h2 id="head-again">The same by command</h2>\n'
        '<p class="step" id="step"></p>\n<p class="command"><code id="command"></code> '
        '<button type="button" id="copy">Copy</button> '
        '<button type="button" id="link" hidden>Save the link as a file</button></p>\n'
        '<p class="more" id="more"></p>\n</section>\n</main>\n<footer id="notes"></footer>\n'
        f'<script type="application/json" id="data">{data}</script>\n'
        f'<script>\n"use strict";\n(() => {{\n{"".join(parts)}}})();\n</script>\n</body>\n</html>\n'
    )


def _sliders(sliders: Sequence[Mapping[str, Any]], wires: Sequence[str], fixed: str) -> str:
    rows = "".join(
        f'<div class="slider"><label for="range-{one["name"]}">{escape(one["title"])}</label>'
        f'<input type="range" id="range-{one["name"]}" data-name="{one["name"]}" '
        'min="0" max="240" step="1" autocomplete="off">'
        f'<input type="number" id="number-{one["name"]}" data-name="{one["name"]}" step="any" '
        f'min="0" aria-label="{escape(one["title"])}, as a number" autocomplete="off">'
        f'<span class="unit">{escape(one["unit"])}</span>'
        + (
            f'<button type="button" data-reset="{one["name"]}">as described</button>'
            if one["name"] in ("bandwidth", "latency")
            else "<span></span>"
        )
        + "</div>\n"
        for one in sliders
    )
    options = "".join(
        f'<option value="{escape(wire)}">{escape(wire or "their own dtypes")}</option>'
        for wire in wires
    )
    return (
        '<section id="sliders" aria-labelledby="head-sliders">\n'
        '<h2 id="head-sliders" class="unseen">Sizes, link and wire dtype</h2>\n'
        f'{rows}<div class="slider"><label for="wire">floats cross in</label>'
        f'<select id="wire" autocomplete="off">{options}</select></div>\n'
        f'<p class="note">{escape(fixed)}</p>\n<p id="status" role="status"></p>\n</section>\n'
    )
