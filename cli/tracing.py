"""Commands that trace a model, and that say which can be traced."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import complete
from cli.app import Json, command, say, warn
from cutedge._request import Request
from tracer.errors import InputError, alike

if TYPE_CHECKING:
    pass


Model = Annotated[
    str,
    typer.Argument(
        help="A preset, a config.json or its folder, org/name on the hub, or file.py:function.",
        autocompletion=complete.models,
    ),
]
Seq = Annotated[
    int | None,
    typer.Option(min=1, help="New tokens a sequence; 1024 when left out, 1 in decode."),
]
Batch = Annotated[int, typer.Option(min=1, help="Sequences, or images.")]
Phase = Annotated[
    Literal["prefill", "decode", "encoder"],
    typer.Option(help="decode: one new token over a cache; encoder: the encoder alone."),
]
Past = Annotated[
    int | None, typer.Option(min=0, help="Cached tokens a sequence, before the new ones.")
]
Source = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens that the encoder has read; 1024 when left out."),
]
Cache = Annotated[bool, typer.Option(help="Fill a cache in a prefill without one.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Dtype of parameters and activations; float32 for a config."),
]
Attn = Annotated[
    Literal["eager", "sdpa"],
    typer.Option(help="eager: the attention's matmuls are ops; sdpa: it is one op."),
]
Logits = Annotated[
    Literal["last", "all"], typer.Option(help="Logits of the last token or of every token.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a config field: key=value.")
]


@command("cutedge trace llama-3.2-1b --seq 1024")
def trace(
    model: Model,
    seq: Seq = None,
    batch: Batch = 1,
    phase: Phase = "prefill",
    past: Past = None,
    source: Source = None,
    cache: Cache = False,
    dtype: Dtype = None,
    attn: Attn = "eager",
    logits: Logits = "last",
    settings: Settings = None,
    full: Annotated[bool, typer.Option(help="Trace every layer, even when all are alike.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where an op that works has no cost formula.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for the tables.")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Trace anew; neither read nor write the cache.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trace a model into an op graph and write it as Parquet."""
    from cli import show
    from costmodels.flops import annotate, refuse_unsupported, total_flops
    from cutedge._workspace import default_folder, remember
    from partition.tables import remove_stale
    from tracer.interrupts import uninterrupted
    from tracer.presets import parse_overrides
    from tracer.serde import write_reach, write_trace

    asked = Request(
        model, {"batch": batch, "seq": seq, "past": past, "source": source}, phase=phase,
        cache=cache, dtype=dtype, attn=attn, logits=logits,
        overrides=parse_overrides(settings or []),
    )  # fmt: skip
    traced, warnings, reach, cached = asked.traced(full=full, use_cache=not no_cache)
    graph = annotate(traced)
    if strict:
        refuse_unsupported(graph)
    folder = out or default_folder(graph)
    notes = list(warnings)
    with uninterrupted():
        trace_id = write_trace(graph, folder)
        write_reach(folder, trace_id, reach)
        if removed := remove_stale(folder, trace_id):
            notes.append(f"removed what was made from the trace before: {', '.join(removed)}")
        remember(folder)
    for note in notes:
        warn(note)
    if as_json:
        show.trace_json(graph, total_flops(graph), folder, notes, cached=cached)
    else:
        show.trace_summary(graph, total_flops(graph), folder)


@command("cutedge models llama-3.2-1b")
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their name; of one its config.",
            autocompletion=complete.models,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Try to trace each phase of it, and say how far it goes."),
    ] = False,
    seq: Annotated[
        int | None, typer.Option(min=1, help="For --check: new tokens, or cached ones in decode.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="For --check: override a field, key=value.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that are known by name; show one's config, or how it can be traced."""
    from cli import show
    from cli.printing import Column, grouped, print_json, print_table
    from tracer.presets import describe, find_config, parse_overrides, preset, preset_names

    if check:
        if model is None:
            raise InputError("--check needs a model: cutedge models --check llama-3.2-1b")
        from cutedge._request import check as check_phases

        name, kind, found, graphs = check_phases(model, seq, parse_overrides(settings or []))
        show.checked(name, kind, found, graphs, as_json=as_json)
        sys.exit(0 if all(graphs) else 1)
    names = [name for name in preset_names() if model is None or model.lower() in name]
    exact = None if model is None else alike(model, preset_names())
    if model is not None and (exact or len(names) < 2):
        known = dict([find_config(exact or [*names, model][0])])
    else:
        known = {name: preset(name) for name in names}
    if as_json:
        print_json({"models": [
            {"model": name, **describe(config), "config": config} for name, config in known.items()
        ]})  # fmt: skip
    elif model is not None and len(known) == 1:
        say(json.dumps(known.popitem()[1], indent=2))
    else:
        print_table(
            [
                Column("model"), Column("type", "<", 5), Column("layers", ">", 1),
                Column("hidden", ">", 1), Column("heads", ">", 2), Column("kv_heads", ">", 2),
                Column("vocabulary", ">", 3), Column("positions", ">", 3),
                Column("experts", "<", 4),
            ],
            grouped(
                known,
                lambda name: re.split("[^a-z]", name)[0],
                lambda name: [
                    name, *("" if n is None else str(n) for n in describe(known[name]).values())
                ],
            ),
        )  # fmt: skip
