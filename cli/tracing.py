"""Commands that trace a model, and that say which can be traced."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import complete
from cli.app import command, warn
from cli.options import Json, Model, Settings, Tracing
from tracer.errors import InputError


@command("cutedge trace llama-3.2-1b --seq 1024")
def trace(
    model: Model,
    tracing: Tracing,
    full: Annotated[bool, typer.Option(help="Trace every layer, even when all are alike.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where an op that works has no cost formula.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for the tables; name it to the commands that follow."),
    ] = None,
    no_trace_cache: Annotated[
        bool,
        typer.Option(
            "--no-trace-cache", help="Trace anew; neither read nor write the cache of traces."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Trace a model into an op graph and write it as Parquet."""
    import cutedge
    from cli import show
    from cutedge._workspace import default_folder, remember

    traced = cutedge.trace(
        model, **asdict(tracing), full=full, strict=strict, use_cache=not no_trace_cache
    )
    folder = traced.save(out or default_folder(traced.graph))
    if out is None:
        remember(folder)
    for warning in traced.warnings:
        warn(warning)
    if as_json:
        show.trace_json(traced, folder)
    else:
        show.trace_summary(traced.graph, folder)


@command("cutedge models llama-3.2-1b")
def models(
    model: Annotated[
        str | None, typer.Argument(help="Show this one's config.", autocompletion=complete.models)
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Try to trace each phase of it, and say how far it goes."),
    ] = False,
    seq: Annotated[
        int | None, typer.Option(min=1, help="For --check: new tokens, or cached ones in decode.")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """List the models that are known by name; show one's config, or how it can be traced."""
    from cli import show
    from cli.printing import print_json, print_rows
    from tracer.presets import describe, find_config, parse_overrides, preset, preset_names

    if check:
        if model is None:
            raise InputError("--check needs a model: cutedge models --check llama-3.2-1b")
        from cutedge._request import check as check_phases

        name, kind, found, graphs = check_phases(model, seq, parse_overrides(settings or []))
        show.checked(name, kind, found, graphs, as_json=as_json)
        sys.exit(0 if all(graphs) else 1)
    if model is not None:
        print_json(find_config(model)[1])
        return
    known = {name: describe(preset(name)) for name in preset_names()}
    if as_json:
        print_json(known)
    else:
        print_rows(
            ["model", *next(iter(known.values()))],
            [[name, *figures.values()] for name, figures in known.items()],
        )
