"""Commands about links: which there are, and making one from measured calls."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import complete
from cli.app import command, say, warn
from cli.options import Json

if TYPE_CHECKING:
    from costmodels.links import Link


@command("cutedge links pcie5-x16")
def links(
    link: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their name; of one, or of a .toml file, all figures.",
            autocompletion=complete.links,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the links between devices, or show the figures of one and where they come from."""
    from cli.printing import console, grouped, print_json, print_table
    from costmodels.links import link_names, load_link
    from tracer.toml_files import matching
    from tracer.words import duration, rate

    loaded = [load_link(name) for name in matching(link, "link", link_names())]
    if as_json:
        print_json({"links": [one.summary for one in loaded]})
    elif len(loaded) > 1:

        def shown(value: float | None, words: Callable[[float], str]) -> str:
            return "" if value is None else words(value)

        def row(one: "Link") -> list[str]:
            ways = {"sent": one.payload_rate("send"), "received": one.payload_rate("receive")}
            return [
                one.name,
                *(_framing(one, way) for way in ways),
                *(shown(value, rate) for value in ways.values()),
                *(shown(one.figures[f"{way}_latency_seconds"], duration) for way in ways),
                one.description,
            ]

        def kind(one: "Link") -> str:
            timed = one.timed("send")
            return (
                "with a bandwidth: seconds are known" if timed else "without one: bytes are known"
            )

        print_table(
            "link, framing sent<4, framing received<4, rate sent>1, rate received>1, "
            "latency sent>3, latency received>3, what it is~2",
            grouped(loaded, kind, row),
        )
    else:
        (one,) = loaded
        console().print(f"{one.name}: {one.description}")
        print_table(
            "figure, value>, source~",
            [(key, f"{one.figures[key]:.10g}", source) for key, source in one.sources.items()],
        )


def _framing(link: "Link", way: str) -> str:
    figures = link.figures
    parts = [
        f"{figures[f'{way}_{part}_framing_bytes']} B a {part}"
        for part in ("message", "tensor")
        if figures[f"{way}_{part}_framing_bytes"]
    ]
    return ", ".join(parts) or "none"


TOTALS = ("measured_total_seconds", "fitted_total_seconds")


@command("cutedge calibrate calls.csv --out my-link.toml")
def calibrate(
    log: Annotated[
        Path,
        typer.Argument(
            help="CSV of measured calls: sent, received (payload bytes), seconds; also "
            "sent_seconds with received_seconds, serialise_seconds. Or what verify has written, "
            "measured_calls.parquet."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The link file to write; the log's name with .toml, here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fit latency, bandwidth and serialisation to measured calls; write them as a link file."""
    from cli.printing import console, print_json, print_table
    from costmodels.calibrate import check_out, fit, read_log, write_link
    from cutedge.runtime.measured import read_measured
    from tracer.words import counted, duration

    out = out or Path(f"{log.stem}.toml")
    check_out(out, force=force)
    found = fit(*(read_measured(log) if log.suffix == ".parquet" else (read_log(log),)))
    write_link(found, out)
    for warning in found.warnings:
        warn(warning)
    if as_json:
        totals = {key: getattr(found, key) for key in TOTALS}
        print_json({"link_file": str(out), **asdict(found), **totals})
        return
    console().print(f"{log}: {counted(found.calls, 'call')}")
    for one in found.equations:
        say()
        console().print(one.equation)
        print_table(
            "term, value>, standard error>1",
            [
                (
                    term.name,
                    "not known" if term.value is None else f"{term.value:.6g}",
                    "" if term.standard_error is None else f"{term.standard_error:.2g}",
                )
                for term in one.terms
            ],
        )
        r2 = "" if one.r_squared is None else f"R^2 {one.r_squared:.6f}; "
        half, most = one.relative_residual_quantiles
        say(f"{r2}half of the calls are off by {half:.2%} at most, 90% by {most:.2%}")
        print_table(
            "furthest off, measured>1, fitted>1, off by>",
            [
                (
                    f"line {off.line}",
                    duration(off.measured_seconds),
                    duration(off.fitted_seconds),
                    f"{off.relative:+.2%}",
                )
                for off in one.furthest
            ],
        )
    off = found.fitted_total_seconds / found.measured_total_seconds - 1
    say(
        f"all calls: {duration(found.measured_total_seconds)} measured, "
        f"{duration(found.fitted_total_seconds)} fitted ({off:+.2%})"
    )
    console().print(f"\nwritten to {out}")
