"""Commands about links: which there are, and making one from measured calls."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import complete
from cli.app import Json, command, say, warn

if TYPE_CHECKING:
    from costmodels.links import Link


@command("cutedge links pcie5-x16")
def links(
    link: Annotated[
        str | None,
        typer.Argument(
            help="Show this one's figures: a name, or a .toml file.", autocompletion=complete.links
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the links between devices, or show the figures of one and where they come from."""
    from cli.printing import console, duration, print_json, print_rows, print_table, rate
    from costmodels.links import link_names, load_link

    loaded = [load_link(name) for name in ([link] if link else link_names())]
    if as_json:
        print_json({"links": [
            {
                "link": one.name, "description": one.description, **one.figures,
                "sources": one.sources,
            }
            for one in loaded
        ]})  # fmt: skip
    elif link is None:
        print_table(
            (
                "link", "framing sent", "received", "payload rate sent", "received",
                "latency sent", "received", "what it is",
            ),
            [
                (
                    one.name, *(_framing(one, way) for way in ("sent", "received")),
                    *(
                        "" if value is None else rate(value)
                        for value in (one.payload_rate("send"), one.payload_rate("receive"))
                    ),
                    *(
                        "" if value is None else duration(value)
                        for way in ("sent", "received")
                        for value in [one.figures[f"{way}_latency_seconds"]]
                    ),
                    one.description,
                )
                for one in loaded
            ],
            "<<<>>>><",
        )  # fmt: skip
    else:
        (one,) = loaded
        console().print(f"{one.name}: {one.description}", soft_wrap=True)
        print_rows(
            ["figure", "value", "source"],
            [[key, one.figures[key], source] for key, source in one.sources.items()],
        )


def _framing(link: "Link", way: str) -> str:
    figures = link.figures
    parts = [
        f"{figures[f'{way}_{part}_framing_bytes']} B a {part}"
        for part in ("message", "tensor")
        if figures[f"{way}_{part}_framing_bytes"]
    ]
    return ", ".join(parts) or "none"


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
    from cli.printing import console, counted, duration, print_json, print_table
    from costmodels.calibrate import check_out, fit, read_log, write_link

    out = out or Path(f"{log.stem}.toml")
    check_out(out, force=force)
    if log.suffix == ".parquet":
        from cutedge.runtime.measured import read_measured

        found = fit(*read_measured(log))
    else:
        found = fit(read_log(log))
    write_link(found, out)
    for warning in found.warnings:
        warn(warning)
    if as_json:
        print_json({
            "link_file": str(out), **asdict(found),
            "measured_total_seconds": found.measured_total_seconds,
            "fitted_total_seconds": found.fitted_total_seconds,
        })  # fmt: skip
        return
    console().print(f"{log}: {counted(found.calls, 'call')}", soft_wrap=True)
    for one in found.equations:
        say()
        console().print(one.equation, soft_wrap=True)
        print_table(
            ("term", "value", "standard error"),
            [
                (
                    term.name, "not known" if term.value is None else f"{term.value:.6g}",
                    "" if term.standard_error is None else f"{term.standard_error:.2g}",
                )
                for term in one.terms
            ],
            "<>>",
        )  # fmt: skip
        r2 = "" if one.r_squared is None else f"R^2 {one.r_squared:.6f}; "
        half, most = one.relative_residual_quantiles
        say(f"{r2}half of the calls are off by {half:.2%} at most, 90% by {most:.2%}")
        print_table(
            ("furthest off", "measured", "fitted", "off by"),
            [
                (
                    f"line {off.line}", duration(off.measured_seconds),
                    duration(off.fitted_seconds), f"{off.relative:+.2%}",
                )
                for off in one.furthest
            ],
            "<>>>",
        )  # fmt: skip
    off = found.fitted_total_seconds / found.measured_total_seconds - 1
    say(
        f"all calls: {duration(found.measured_total_seconds)} measured, "
        f"{duration(found.fitted_total_seconds)} fitted ({off:+.2%})"
    )
    console().print(f"\nwritten to {out}", soft_wrap=True)
