"""Commands that trace a model, and that say which can be traced."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.app import Json, choose, command
from tracer.errors import InputError

if TYPE_CHECKING:
    from tracer.graph import OpGraph
    from tracer.reach import Reach


@command("cutedge trace llama-3.2-1b --seq 1024")
def trace(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset, a config.json or its folder, org/name on the hub, or file.py:function."
        ),
    ],
    seq: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens a sequence; 1024 when left out, 1 in decode."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences, or images.")] = 1,
    phase: Annotated[
        Literal["prefill", "decode", "encoder"],
        typer.Option(help="decode: one new token over a cache; encoder: the encoder alone."),
    ] = "prefill",
    past: Annotated[
        int | None, typer.Option(min=0, help="Cached tokens a sequence, before the new ones.")
    ] = None,
    source: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that the encoder has read; 1024 when left out."),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Fill a cache in a prefill without one.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtype of parameters and activations; float32 for a config."),
    ] = None,
    attn: Annotated[
        Literal["eager", "sdpa"],
        typer.Option(help="eager: the attention's matmuls are ops; sdpa: it is one op."),
    ] = "eager",
    logits: Annotated[
        Literal["last", "all"], typer.Option(help="Logits of the last token or of every token.")
    ] = "last",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a config field: key=value.")
    ] = None,
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
    from cli.workspace import default_folder, remember
    from costmodels.flops import annotate, refuse_unsupported, total_flops
    from partition.tables import remove_stale
    from tracer.graph import MODEL_DTYPES
    from tracer.presets import FUNCTION, find_config, parse_overrides
    from tracer.serde import write_reach, write_trace

    if dtype is not None:
        choose(dtype, MODEL_DTYPES, "--dtype")
    asked = {"batch": batch, "seq": seq, "past": past, "source": source}
    sizes: dict[str, Any] = {size: n for size, n in asked.items() if n is not None}
    options: dict[str, Any] = {
        "dtype": dtype, "attn": attn, "overrides": parse_overrides(settings or []), "full": full,
    }  # fmt: skip
    if own := FUNCTION.fullmatch(model):
        if phase != "prefill" or cache:
            raise InputError(f"{model} says itself what runs: leave --phase and --cache out")
        from tracer.capture import capture_function

        captured = capture_function(own[1], own[2], **sizes, **options)
        traced, warnings, reach = captured.graph, captured.warnings, captured.reach
        cached = False
    else:
        name, config = find_config(model)
        options |= {
            "dtype": dtype or "float32", "model": name, "logits": logits, "phase": phase,
            "cache": cache,
        }  # fmt: skip
        traced, warnings, reach, cached = _traced(config, sizes, options, not no_cache)
    graph = annotate(traced)
    if strict:
        refuse_unsupported(graph)
    folder = out or default_folder(graph.meta)
    trace_id = write_trace(graph, folder)
    write_reach(folder, trace_id, reach)
    notes = list(warnings)
    if removed := remove_stale(folder, trace_id):
        notes.append(f"removed what was made from the trace before: {', '.join(removed)}")
    remember(folder)
    for note in notes:
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        show.trace_json(graph, total_flops(graph), folder, notes, cached=cached)
    else:
        show.trace_summary(graph, total_flops(graph), folder)


def _traced(
    config: Mapping[str, Any], sizes: Mapping[str, Any], options: Mapping[str, Any], use_cache: bool
) -> "tuple[OpGraph, tuple[str, ...], Reach, bool]":
    """(trace without costs, warnings, where it holds, whether the cache had it)"""
    from tracer import cache

    key = cache.key(config, options) if use_cache else None
    if key is not None and (found := cache.find(key, sizes)):
        return found.graph, found.warnings, found.reach, True
    from tracer.capture import capture

    captured = capture(config, **sizes, **options)
    if key is not None:
        cache.keep(key, captured.graph, captured.reach)
    return captured.graph, captured.warnings, captured.reach, False


def traced_model(
    model: str, settings: "list[str] | None", *, phase: str, **sizes: int
) -> "OpGraph":  # fmt: skip
    """The annotated graph of a model for a command that needs one of its own, warnings printed."""
    from costmodels.flops import annotate
    from tracer.presets import find_config, parse_overrides

    name, config = find_config(model)
    options: dict[str, Any] = {
        "dtype": "float32", "attn": "eager", "overrides": parse_overrides(settings or []),
        "full": False, "model": name, "logits": "last", "phase": phase, "cache": False,
    }  # fmt: skip
    graph, warnings, *_ = _traced(config, sizes, options, use_cache=True)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    return annotate(graph)


@command("cutedge models llama-3.2-1b")
def models(
    model: Annotated[str | None, typer.Argument(help="Show this one's config.")] = None,
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
    from cli.printing import print_json, print_rows
    from tracer.presets import describe, find_config, parse_overrides, preset, preset_names

    if check:
        if model is None:
            raise InputError("--check needs a model: cutedge models --check llama-3.2-1b")
        from costmodels.flops import annotate
        from tracer.capture import check as check_phases

        name, config = find_config(model)
        overrides = parse_overrides(settings or [])
        kind, found = check_phases(config, model=name, seq=seq, overrides=overrides)
        graphs = [None if c.captured is None else annotate(c.captured.graph) for c in found]
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
