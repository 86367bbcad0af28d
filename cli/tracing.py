"""Commands that trace a model, and that say which can be traced."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cli import complete
from cli.app import command, say, warn
from cli.options import Json, Model, Settings, Tracing
from tracer.errors import InputError


@command("cutedge trace llama-3.2-1b --seq 1024")
def trace(
    model: Model,
    tracing: Tracing,
    full: Annotated[bool, Option(help="Trace every layer, even when all are alike.")] = False,
    strict: Annotated[
        bool, Option("--strict", help="Fail where an op that works has no cost formula.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="Directory for the tables; name it to the commands that follow.")
    ] = None,
    anew: Annotated[
        bool, Option("--no-trace-cache", help="Trace anew; leave the cache of traces alone.")
    ] = False,
    limit: Annotated[
        float | None, Option("--time-limit", min=0.1, help="Give up after so many seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Trace a model into an op graph and write it as Parquet."""
    import cutedge
    from cli import show
    from cli.printing import print_json
    from costmodels.flops import total_flops
    from cutedge._json import trace_object
    from cutedge._workspace import default_folder, remember

    traced = cutedge.trace(
        model, **asdict(tracing), full=full, strict=strict, use_cache=not anew, time_limit=limit
    )
    folder = traced.save(out or default_folder(traced.graph))
    if out is None:
        remember(folder)
    warn(*traced.warnings)
    if as_json:
        print_json(trace_object(traced, folder))
    else:
        show.trace_summary(traced.graph, total_flops(traced.graph), folder)


@command("cutedge models llama-3.2-1b")
def models(
    model: Annotated[
        str | None,
        Argument(help="Part of the name; of one model its config.", autocompletion=complete.models),
    ] = None,
    check: Annotated[
        bool, Option("--check", help="Try to trace each phase of it, and say how far it goes.")
    ] = False,
    seq: Annotated[
        int | None, Option(min=1, help="For --check: new tokens, or cached ones in decode.")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """List the models that are known by name; show one's config, or how it can be traced."""
    from cli import show
    from cli.printing import grouped, print_json, print_table
    from tracer.presets import describe, matching_configs

    if check:
        if model is None:
            raise InputError("--check needs a model: cutedge models --check llama-3.2-1b")
        from cutedge._json import checked_object
        from cutedge._request import check as check_phases

        name, kind, found, graphs = check_phases(model, seq, settings)
        if as_json:
            print_json(checked_object(name, kind, found, graphs))
        else:
            show.checked(name, kind, found, graphs)
        sys.exit(0 if all(graphs) else 1)
    known = matching_configs(model)
    if as_json:
        models = [{"model": name, **describe(one), "config": one} for name, one in known.items()]
        print_json({"models": models})
    elif model is not None and len(known) == 1:
        say(json.dumps(known.popitem()[1], indent=2))
    else:
        print_table(
            "model, type<5, layers>1, hidden>1, heads>2, kv_heads>2, vocabulary>3, positions>3, "
            "experts<4",
            grouped(
                known,
                lambda name: re.split("[^a-z]", name)[0],
                lambda name: [
                    name,
                    *("" if n is None else str(n) for n in describe(known[name]).values()),
                ],
            ),
        )
