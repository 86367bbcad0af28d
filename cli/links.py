"""Commands about links: which there are, and making one from measured calls."""

from collections.abc import Callable
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
    from cli.printing import grouped, print_json, print_table
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
        say(f"{one.name}: {one.description}")
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


@command("cutedge calibrate trace.json --device a100-80g --out mine.toml")
def calibrate(
    measured: Annotated[
        Path,
        typer.Argument(
            help="CSV of calls: sent, received (payload bytes), seconds; also sent_seconds with "
            "received_seconds, serialise_seconds. Or measured_calls.parquet of verify, a chrome "
            "trace of torch's profiler (.json, .json.gz), what llama-bench -o json or jsonl wrote."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The link file to write; of traces and benchmarks -device, -engine and -link come "
            "before its .toml. The measured file's name with .toml, here.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Of a trace or a benchmark, the known device that it ran on: the engine gets "
            "shares of its peaks. Without it a device file gets the rates.",
            autocompletion=complete.devices,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model of a benchmark; again for the next, in the order of its rows.",
            autocompletion=complete.models,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fit links to measured calls, devices and engines to profiles and benchmarks; write files."""
    from cli.printing import print_all, print_json
    from cutedge._calibrate import calibrate

    found = calibrate(measured, out, device=device, models=model or (), force=force)
    warn(*found.warnings)
    if as_json:
        print_json(found.json)
        return
    print_all(found.shown)
