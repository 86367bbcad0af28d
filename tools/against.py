"""``docs/against-measurements.md``: published measurements beside what the cost models say of them.

``make against`` writes it. Every row of ``tests/reference/measured.csv`` is in it: with the error,
and whether an engine's figures were fitted on it or it is a test; or why nothing is said of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from costmodels.engines import load_engine
from tools.fit_engines import ENGINES, OPS
from tools.measured import CROSSINGS, TOLLS, Row, calls, predicted, rows
from tracer.words import duration

PAGE = Path(__file__).parents[1] / "docs" / "against-measurements.md"

_TOP = """# Against measurements

What measured systems take, beside what cutedge says of them under the [engines](guide/engines.md)
and [links](guide/tolls.md) that come with it. Made by `make against` from
`tests/reference/measured.csv`, which names the source of each row. `fitted`: figures of the engine
rest on this row; `test`: they do not; `given`: it is the figure. Steps of decode are taken at the
mean number of cached tokens of the run.
"""

_KERNELS = "its kernels for quantised weights seem to reach less than those for 16 bits"
_INT8 = "prompts go through int8 kernels, which take longer than products in float16"
_OLDER = "transformers and torch of a year before, with less Python an op"
_ANOTHER = "a card and a version of vLLM on which nothing of a step was fitted"
_CROSSES = "sglang crosses more often in a step than vLLM, and the card is not named"

REASONS = {
    "A04": _INT8,
    "A05": _INT8,
    "A10": "not said which A100 it was",
    "A13": "December 2023: the larger model of A25 takes less on the same card in May 2024",
    "A25": f"on this card {_KERNELS}",
    "A35": "2 layers: launches are nearly all of it, and theirs were fitted on 32 layers",
    "B01": "no rows of this card in 16 bits: those of an RTX 3090 stand in",
    "C02": "its int8 kernels reach 1,069 GB/s by its README, those in bfloat16 1,397",
    "C04": "its int8 kernels reach 1,323 GB/s by its README, of 1,700 that the card has",
    "C05": "its int4 kernels reach 1,098 GB/s by its README, of 1,700 that the card has",
    "C09": "another program and host: the plain start of gpt-fast, by its authors bound by the CPU",
    "C32": _OLDER,
    "C33": _OLDER,
    "D01": _ANOTHER,
    "D03": _ANOTHER,
    "D05": f"{_ANOTHER}; one core of the host",
    "D07": f"{_ANOTHER}; one core of the host",
    "D25": "another card and host",
    "D30": f"on this card {_KERNELS}",
    "D32-without": "April 2024, a month before the row that the card's share was fitted on",
}
"""Row -> why it is off, of the tests that are off by more than a tenth or nearly so."""

FITTED = {*OPS, *(row for steps in ENGINES for row in steps.rows)}
_TOLD = {row for one in TOLLS for row in (one.off, one.on)} | {
    row for one in CROSSINGS for row in (one.row, one.less)
}
"""Rows that a table beside those of the steps speaks of."""


def lines() -> Iterator[str]:
    yield _TOP
    told: dict[str, list[Row]] = defaultdict(list)
    untold: dict[str, list[str]] = defaultdict(list)
    for row in rows().values():
        if row.reason is None and row.seconds is not None:
            told[row.source].append(row)
        elif row.id not in _TOLD:
            untold[row.reason or "no time of a step"].append(row.id)
    errors: dict[bool, list[float]] = {True: [], False: []}
    tables: list[str] = []
    for source, those in told.items():
        tables += [f"## {source}", "", *_head(_COLUMNS)]
        for row in those:
            engine = load_engine(row.engine or "")
            assert row.seconds is not None
            assert row.device is not None
            taken = predicted(row, engine)
            fitted = row.id in FITTED
            errors[fitted].append(abs(taken / row.seconds - 1))
            cells = (
                row.id,
                row["model"].split("/")[-1],
                row["phase"],
                row["weight_format"],
                row.device.name,
                engine.name,
                row["batch"],
                row["context"],
                *_beside(row.seconds, taken),
                "fitted" if fitted else "test",
                REASONS.get(row.id, ""),
            )
            tables.append(_row(cells))
        tables.append("")
    for fitted, what in ((True, "on which figures were fitted"), (False, "of tests")):
        if off := errors[fitted]:
            tenth = sum(each <= 0.1 for each in off)
            yield (
                f"Of {len(off)} rows {what}, half are off by {median(off):.1%} at most, {tenth} by a "
                f"tenth at most, the furthest by {max(off):.1%}."
            )
    yield ""
    yield from tables
    yield from _tolls()
    yield from _crossings()
    yield from _reference()
    yield "## Nothing is said of"
    yield ""
    for reason, ids in sorted(untold.items()):
        yield f"- {reason}: {', '.join(ids)}"


def _tolls() -> Iterator[str]:
    """What confidential mode adds to a step."""
    yield "## What a step takes longer in confidential mode"
    yield ""
    yield "The toll of a link, a message each way a step: one figure a card, whatever the model."
    yield ""
    yield from _head("rows, what, batch, link, measured, predicted, off, use, why")
    for one in TOLLS:
        row, given = rows()[one.off], one.given
        off, model = f"{one.off} {one.on}", row["model"].split("/")[-1]
        use = "given: their mean" if given else "test"
        beside = _beside(one.measured, one.predicted)
        why = "" if given else _CROSSES
        yield _row((off, model, row["batch"], one.link, *beside, use, why))
    yield ""


def _crossings() -> Iterator[str]:
    """What small messages take."""
    yield "## What small messages take"
    yield ""
    yield from _head("row, what, link, sent, received, measured, predicted, off, use, why")
    for one in CROSSINGS:
        row = rows()[one.row]
        what = f"{row['model'].split('/')[-1]}, {row['device']}, {row['engine']}"
        beside = _beside(one.measured, one.predicted)
        use = "given" if one.given else "test"
        cells = (one.row, what, one.link, one.sent, one.received, *beside, use)
        yield _row((*cells, "" if one.given else REASONS[one.row]))
    yield ""
    yield (
        "B02 is what a token takes longer (than B01) where the cache is in the memory of the host: "
        "two crossings in each of 32 layers, 0.276 ms a layer, of which bytes are no part that shows."
    )
    yield ""


def _reference() -> Iterator[str]:
    """The calls of the measured TEE/GPU split."""
    yield "## The 98 calls of a measured split of llama-3.2-1b"
    yield ""
    yield (
        "1024 tokens in float32, linears and attention away, over `unix-socket-zmq`, whose five "
        "figures were fitted on these means. What is sent goes at one rate, what is received at "
        "another from 16 MiB on."
    )
    yield ""
    yield from _head("calls, what, sent MiB, received MiB, measured, predicted, off")
    measured = expected = 0.0
    for one in calls():
        sizes = (f"{size / 2**20:,.4f}" for size in (one.sent, one.received))
        yield _row((one.count, one.ops, *sizes, *_beside(one.measured, one.predicted)))
        measured += one.count * one.measured
        expected += one.count * one.predicted
    yield _row((sum(one.count for one in calls()), "all", "", "", *_beside(measured, expected)))
    yield ""


def _beside(measured: float, taken: float) -> tuple[str, str, str]:
    return duration(measured), duration(taken), f"{taken / measured - 1:+.1%}"


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(columns: str) -> tuple[str, str]:
    names = columns.split(", ")
    return _row(names), "|---" * len(names) + "|"


_COLUMNS = (
    "row, what, phase, weights, device, engine, batch, cached, measured, predicted, off, use, why"
)


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n".join(lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
