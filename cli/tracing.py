"""Commands that trace a model, and that say which can be traced."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import complete
from cli.app import Json, choose, command, warn
from tracer.errors import InputError

if TYPE_CHECKING:
    from tracer.capture.runnable import Runnable
    from tracer.graph import OpGraph
    from tracer.reach import Reach


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
    from cli.workspace import default_folder, remember
    from costmodels.flops import annotate, refuse_unsupported, total_flops
    from partition.tables import remove_stale
    from tracer.interrupts import uninterrupted
    from tracer.serde import write_reach, write_trace

    asked = Asked(
        model, {"batch": batch, "seq": seq, "past": past, "source": source}, phase=phase,
        cache=cache, dtype=dtype, attn=attn, logits=logits, settings=settings or (),
    )  # fmt: skip
    traced, warnings, reach, cached = asked.traced(full=full, use_cache=not no_cache)
    graph = annotate(traced)
    if strict:
        refuse_unsupported(graph)
    folder = out or default_folder(graph.meta)
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


class Asked:
    """A model, and how it is to be traced: what the options of ``trace`` come to."""

    def __init__(
        self, model: str, sizes: Mapping[str, int | None], *, phase: str, cache: bool,
        dtype: str | None, attn: str, logits: str, settings: Sequence[str],
    ) -> None:  # fmt: skip
        """Raises InputError for options that do not go together."""
        from tracer.graph import MODEL_DTYPES
        from tracer.presets import FUNCTION, find_config, parse_overrides

        if dtype is not None:
            choose(dtype, MODEL_DTYPES, "--dtype")
        self._sizes: dict[str, Any] = {size: n for size, n in sizes.items() if n is not None}
        self._options: dict[str, Any] = {
            "dtype": dtype, "attn": attn, "overrides": parse_overrides(list(settings)),
        }  # fmt: skip
        self._own: dict[str, Any] = {}
        self.name = ""
        """What the model's tables are called by."""
        if own := FUNCTION.fullmatch(model):
            if phase != "prefill" or cache:
                raise InputError(f"{model} says itself what runs: leave --phase and --cache out")
            self._own = {"file": own[1], "function": own[2]}
            self.name = own[2]
        else:
            self.name, self._config = find_config(model)
            self._options |= {
                "dtype": dtype or "float32", "model": self.name, "logits": logits, "phase": phase,
                "cache": cache,
            }  # fmt: skip

    @property
    def identity(self) -> list[Any]:
        """What is traced, apart from sizes: equal for equal models, as JSON."""
        if self._own:
            text = Path(self._own["file"]).read_bytes()
            return [self._own, hashlib.sha256(text).hexdigest(), self._options]
        return [self._config, self._options]

    def traced(
        self, *, full: bool, use_cache: bool
    ) -> "tuple[OpGraph, tuple[str, ...], Reach, bool]":
        """(trace without costs, warnings, where it holds, whether the cache had it)"""
        from tracer import cache

        options = {**self._options, "full": full}
        if self._own:
            from tracer.capture import capture_function

            own = capture_function(**self._own, **self._sizes, **options)
            return own.graph, own.warnings, own.reach, False
        key = cache.key(self._config, options) if use_cache else None
        if key is not None and (found := cache.find(key, self._sizes)):
            return found.graph, found.warnings, found.reach, True
        from tracer.capture import capture

        captured = capture(self._config, **self._sizes, **options)
        if key is not None:
            cache.keep(key, captured.graph, captured.reach)
        return captured.graph, captured.warnings, captured.reach, False

    def runnable(self) -> "Runnable":
        """The same model, to be run."""
        from tracer.capture import runnable, runnable_function

        if self._own:
            return runnable_function(**self._own, **self._sizes, **self._options)
        return runnable(self._config, **self._sizes, **self._options)


def traced_model(
    model: str, settings: "list[str] | None", *, phase: str, **sizes: int
) -> "OpGraph":  # fmt: skip
    """The annotated graph of a model for a command that needs one of its own, warnings printed."""
    from costmodels.flops import annotate

    asked = Asked(
        model, sizes, phase=phase, cache=False, dtype=None, attn="eager", logits="last",
        settings=settings or (),
    )  # fmt: skip
    graph, warnings, *_ = asked.traced(full=False, use_cache=True)
    for warning in warnings:
        warn(warning)
    return annotate(graph)


def decodes(
    model: str, settings: "list[str] | None"
) -> "tuple[OpGraph, tuple[OpGraph, ...]]":  # fmt: skip
    """(annotated decode of one sequence over few cached tokens, others beyond all windows).

    The others are there where the model is another program far out: one, or two that are a cached
    token apart where no formula has the cached tokens in it. Warnings are printed, but for those
    that say where the first trace ends.
    """
    from costmodels.flops import annotate

    def traced(past: int) -> "tuple[OpGraph, Reach]":
        asked = Asked(
            model, {"past": past}, phase="decode", cache=False, dtype=None, attn="eager",
            logits="last", settings=settings or (),
        )  # fmt: skip
        graph, warnings, reach, _ = asked.traced(full=False, use_cache=True)
        said.update(dict.fromkeys(one for one in warnings if one not in reach.notes))
        return annotate(graph), reach

    said: dict[str, None] = {}
    near, reach = traced(16)
    most = (reach.positions or 2**20) - 1
    far: list[OpGraph] = []
    if not reach.covers({**near.meta.variables, "past": most}):
        far.append(traced(most)[0])
        if "past" not in far[0].meta.symbolic:
            far.append(traced(most - 1)[0])
    for warning in said:
        typer.echo(f"warning: {warning}", err=True)
    return near, tuple(far)


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
