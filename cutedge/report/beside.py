"""Two comparisons in two columns: what each policy takes in one and in the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from cutedge.report.scores import MEASURES, against
from partition.split import Split


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure of a policy in both."""

    name: str
    left: str
    right: str
    claim: str
    """How far the right one is from the left one; empty where one of them is not known."""
    shares: tuple[float, float] | None
    """Both as a share of the greater one; None where one is not known."""


@dataclass(frozen=True, slots=True)
class Column:
    """One of the two."""

    label: str
    """What tells it from the other."""
    of: str
    """What was traced, and between which devices it is split."""
    limits: Sequence[str]
    """By policy the true bottleneck, in a sentence."""


@dataclass(frozen=True, slots=True)
class Beside:
    """All that the page shows; sequences are by policy."""

    policies: Sequence[str]
    columns: tuple[Column, Column]
    pairs: Sequence[Sequence[Pair]]
    headlines: Sequence[str]
    """What the one takes where the other takes something else, in a sentence."""
    shown: int
    """Which policy stands on the first screen."""
    notes: Sequence[str]


def pairs_of(left: Split, right: Split) -> list[Pair]:
    """The figures of a placement beside those of another, which is called the first.

    Energy is among them where it is known of one.
    """
    found = []
    for name, (measure, what) in MEASURES.items():
        (one, text), (other, there) = measure(left), measure(right)
        if name == "energy" and one is None and other is None:
            continue
        claim, shares = "", None
        if one is not None and other is not None:
            claim = against(other, one, "the first", what)
            most = max(one, other)
            shares = (one / most, other / most) if most else (0.0, 0.0)
        found.append(Pair(name, text or "not known", there or "not known", claim, shares))
    return found


def beside_page(made: Beside) -> str:
    """The page; it needs nothing else, and no script."""
    here = files("cutedge.report")
    style = here.joinpath("page.css").read_text("utf-8")
    style += here.joinpath("beside.css").read_text("utf-8")
    left, right = made.columns
    title = f"{left.label} beside {right.label}"
    columns = "".join(
        f'<div><h2>{escape(one.label)}</h2>\n<p class="of">{escape(one.of)}</p>\n'
        f"<p>{escape(one.limits[made.shown])}</p></div>\n"
        for one in made.columns
    )
    scores = "".join(_score(pair, made) for pair in made.pairs[made.shown])
    rows = "".join(_rows(policy, n, made) for n, policy in enumerate(made.policies))
    names = [pair.name for pair in made.pairs[0]]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("policy", "with", *names))
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in made.notes)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}: cutedge report</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body class="beside">\n'
        f"<header>\n<h1>{escape(made.headlines[made.shown])}</h1>\n</header>\n<main>\n"
        f'<section class="columns">\n{columns}</section>\n'
        f'<section aria-labelledby="head-figures">\n<h2 id="head-figures">Under '
        f'{escape(made.policies[made.shown])}</h2>\n<div id="scores">\n{scores}</div>\n</section>\n'
        '<section aria-labelledby="head-both">\n<h2 id="head-both">All policies that both have</h2>\n'
        '<p class="caption">Claims are of the second beside the first.</p>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="Policies in both, scrollable">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n{rows}</table></div>\n</section>\n</main>\n"
        f"<footer>\n{notes}</footer>\n</body>\n</html>\n"
    )


def _score(pair: Pair, made: Beside) -> str:
    bars = "".join(
        f'<div class="bar"><span class="who">{escape(column.label)}</span>'
        f'<span class="text">{escape(text)}</span><span class="track">'
        f'<i style="width:{100 * share:.4g}%"></i></span></div>\n'
        for column, text, share in zip(
            made.columns, (pair.left, pair.right), pair.shares or (0.0, 0.0), strict=True
        )
    )
    return (
        f'<div class="score"><h3>{escape(pair.name)}</h3>\n'
        f'<p class="claim">{escape(pair.claim)}</p>\n{bars}</div>\n'
    )


def _rows(policy: str, number: int, made: Beside) -> str:
    pairs = made.pairs[number]
    lines = (
        (made.columns[0].label, [pair.left for pair in pairs]),
        (made.columns[1].label, [pair.right for pair in pairs]),
        ("the second", [pair.claim for pair in pairs]),
    )
    first = f'<th scope="rowgroup" rowspan="3">{escape(policy)}</th>'
    body = "".join(
        f'<tr class="{"claims" if n == 2 else ""}">{first if not n else ""}'
        f'<th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in texts)
        + "</tr>\n"
        for n, (label, texts) in enumerate(lines)
    )
    return f"<tbody>{body}</tbody>\n"
