"""``docs/against-measurements.md``: published measurements beside what the cost models say of them.

``make against`` writes it. Every row of ``tests/reference/measured.csv`` is in it: with the error,
and whether an engine's figures were fitted on it or it is a test; or why nothing is said of it.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from costmodels.engines import load_engine
from tools.fit_engines import ENGINES, OPS
from tools.measured import Row, predicted, rows
from tracer.words import duration

PAGE = Path(__file__).parents[1] / "docs" / "against-measurements.md"

_TOP = """# Against measurements

What measured systems take, beside what cutedge says of them under the [engines](guide/engines.md)
that come with it. Made by `make against` from `tests/reference/measured.csv`, which names the source
of each row. `fitted`: figures of the engine rest on this row; `test`: they do not. Steps of decode
are taken at the mean number of cached tokens of the run.
"""

REASONS = {
    "A20": "no kernels of this engine were measured on this card: those of an RTX 4090 stand in",
    "A23": "no kernels of this engine were measured on this card: those of an RTX 4090 stand in",
    "A34": "the engine's attention was fitted at 256 cached tokens alone",
    "C02": "its int8 kernels reach 1,069 GB/s by its README, those in bfloat16 1,397",
    "C09": "another program and host: the plain start of gpt-fast, by its authors bound by the CPU",
    "C32": "transformers and torch of a year before, with less Python an op",
    "C33": "transformers and torch of a year before, with less Python an op",
}
"""Row -> why it is off, of the tests that are off by more than a tenth or nearly so."""

FITTED = {*OPS, *(row for steps in ENGINES for row in steps.rows)}


def lines() -> Iterator[str]:
    yield _TOP
    told: dict[str, list[Row]] = defaultdict(list)
    untold: dict[str, list[str]] = defaultdict(list)
    for row in rows().values():
        if row.reason is None and row.seconds is not None:
            told[row.source].append(row)
        else:
            untold[row.reason or "no time of a step"].append(row.id)
    errors: dict[bool, list[float]] = {True: [], False: []}
    tables: list[str] = []
    for source, those in told.items():
        tables += [f"## {source}", "", _HEAD, _RULE]
        for row in those:
            engine = load_engine(row.engine or "")
            assert row.seconds is not None
            assert row.device is not None
            taken = predicted(row, engine)
            error = taken / row.seconds - 1
            fitted = row.id in FITTED
            errors[fitted].append(abs(error))
            cells = (
                row.id,
                row["model"].split("/")[-1],
                row["weight_format"],
                row.device.name,
                engine.name,
                row["batch"],
                row["context"],
                duration(row.seconds),
                duration(taken),
                f"{error:+.1%}",
                "fitted" if fitted else "test",
                REASONS.get(row.id, ""),
            )
            tables.append(f"| {' | '.join(cells)} |")
        tables.append("")
    for fitted, what in ((True, "on which figures were fitted"), (False, "of tests")):
        if off := errors[fitted]:
            yield (
                f"Of {len(off)} rows {what}, half are off by {median(off):.1%} at most, the furthest "
                f"by {max(off):.1%}."
            )
    yield ""
    yield from tables
    yield "## Nothing is said of"
    yield ""
    for reason, ids in sorted(untold.items()):
        yield f"- {reason}: {', '.join(ids)}"


_COLUMNS = "row, what, weights, device, engine, batch, cached, measured, predicted, off, use, why"
_HEAD = f"| {_COLUMNS.replace(', ', ' | ')} |"
_RULE = "|---" * 12 + "|"


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n".join(lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
