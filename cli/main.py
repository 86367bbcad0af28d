"""The ``cutedge`` command. Each command imports what it needs: help must be instant."""

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from partition import Residency
from tracer.errors import CutedgeError, InputError, suggest

if TYPE_CHECKING:
    from costmodels.links import Link
    from partition.explain import Bottleneck
    from partition.policy import Policy
    from partition.tables import Partition
    from tracer.graph import OpGraph


class Commands(TyperGroup):
    """All commands: errors as a message on stderr; a traceback is for our bugs only."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run one command; its exit code is 0, 1 or 2."""
        if isinstance(sys.stdout, TextIOWrapper):  # what an old encoding lacks is escaped
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().main(*args, **options)
            finally:
                if sys.stdout:  # else a full disk is noticed when the interpreter has ended
                    sys.stdout.flush()
        except CutedgeError as error:
            typer.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno != errno.EPIPE:  # `cutedge query ... | head` ends quietly
                where = error.filename or "cannot print the results"
                typer.echo(f"error: {where}: {error.strerror or error}", err=True)
            with suppress(OSError, AttributeError):  # let what is not printed yet go nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


app = typer.Typer(
    name="cutedge",
    cls=Commands,
    help="What it costs to split a model between two machines: trace a model into an op graph, "
    "place every op on a device, and see the bytes that cross.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
TraceDir = Annotated[
    Path | None, typer.Argument(help="A trace directory; the last trace when left out.")
]
Home = Annotated[str, typer.Option(help="Name of the device that holds inputs and outputs.")]
Accel = Annotated[str, typer.Option(help="Name of the device that home calls.")]
WireDtype = Annotated[
    str | None,
    typer.Option(help="Dtype of floating tensors while they cross; their own when left out."),
]
ResidencyName = Annotated[
    Residency,
    typer.Option(
        "--residency", help="run: a device keeps what it has; call: an accelerator forgets it."
    ),
]
LinkName = Annotated[str, typer.Option("--link", help="The link's name, or a .toml file.")]

Command = TypeVar("Command", bound=Callable[..., Any])


def command(example: str) -> Callable[[Command], Command]:
    """Register a command, with an example under its help."""
    return app.command(epilog=f"Example: [bold]{example}[/bold]")


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
    out: Annotated[Path | None, typer.Option(help="Directory for the tables.")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Trace anew; neither read nor write the cache.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trace a model into an op graph and write it as Parquet."""
    from cli import show
    from cli.workspace import default_folder, remember
    from costmodels.flops import annotate, total_flops
    from partition.tables import remove_stale
    from tracer.graph import MODEL_DTYPES
    from tracer.presets import FUNCTION, find_config, parse_overrides
    from tracer.serde import write_trace

    if dtype is not None:
        _choose(dtype, MODEL_DTYPES, "--dtype")
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
        traced, warnings, cached = captured.graph, captured.warnings, False
    else:
        name, config = find_config(model)
        options |= {
            "dtype": dtype or "float32", "model": name, "logits": logits, "phase": phase,
            "cache": cache,
        }  # fmt: skip
        traced, warnings, cached = _traced(config, sizes, options, not no_cache)
    graph = annotate(traced)
    folder = out or default_folder(graph.meta)
    trace_id = write_trace(graph, folder)
    notes = list(warnings)
    if removed := remove_stale(folder, trace_id):
        notes.append(f"removed the partitions of the trace before: {', '.join(removed)}")
    remember(folder)
    for note in notes:
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        show.trace_json(graph, total_flops(graph), folder, notes, cached=cached)
    else:
        show.trace_summary(graph, total_flops(graph), folder)


def _traced(
    config: Mapping[str, Any], sizes: Mapping[str, Any], options: Mapping[str, Any], use_cache: bool
) -> "tuple[OpGraph, tuple[str, ...], bool]":
    """(trace without costs, warnings, whether the cache had it)"""
    from tracer import cache

    key = cache.key(config, options) if use_cache else None
    if key is not None and (found := cache.find(key, sizes)):
        return found.graph, found.warnings, True
    from tracer.capture import capture

    captured = capture(config, **sizes, **options)
    if key is not None:
        cache.keep(key, captured.graph, captured.reach)
    return captured.graph, captured.warnings, False


@command("cutedge partition --policy fuse-attention --wire-dtype bfloat16")
def partition(
    directory: TraceDir = None,
    policy: Annotated[
        str, typer.Option(help="A policy's name, or a .toml file.")
    ] = "offload-linear",
    home: Home = "tee",
    accel: Accel = "gpu",
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkName = "zmq-ipc",
    as_json: Json = False,
) -> None:
    """Place every op of a trace on a device and count what crosses."""
    from cli import show
    from cli.workspace import trace_folder
    from costmodels.links import load_link
    from partition.explain import top_transfers
    from partition.policy import load_policy
    from partition.tables import write_partition
    from tracer.serde import read_trace

    chosen, over = load_policy(policy), load_link(link)
    _check_options(home, accel, wire_dtype)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = _partition(graph, trace_id, chosen, over, home, accel, wire_dtype, residency)
    written = write_partition(made, folder)
    _caution(graph, {policy: chosen})
    top = top_transfers(graph, made.traffic)
    (bottleneck,) = _bottlenecks([made], over, accel, residency)
    if as_json:
        show.print_json(show.partition_dict(made, top, bottleneck, written))
    else:
        show.partition_summary(made, over, top, bottleneck, written)


@command("cutedge compare --wire-dtype bfloat16")
def compare(
    directory: TraceDir = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy to compare, again and again; all when left out."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The policy that savings are against; offload-linear.")
    ] = None,
    home: Home = "tee",
    accel: Accel = "gpu",
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkName = "zmq-ipc",
    as_json: Json = False,
) -> None:
    """Put policies side by side: calls, bytes, savings, closed forms."""
    from cli import show
    from cli.workspace import trace_folder
    from costmodels.links import load_link
    from partition.explain import compare_traffic, top_transfers
    from partition.policy import load_policy, policy_names
    from partition.tables import write_partition
    from tracer.serde import read_trace

    _check_options(home, accel, wire_dtype)
    names = list(dict.fromkeys(policies or policy_names()))
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        names.insert(0, against)
    chosen, over = {name: load_policy(name) for name in names}, load_link(link)
    _check_namesakes(chosen)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = [
        _partition(graph, trace_id, rules, over, home, accel, wire_dtype, residency)
        for rules in chosen.values()
    ]
    written = [write_partition(one, folder) for one in made]
    _caution(graph, chosen)
    base = made[names.index(against)]
    compared = [compare_traffic(one.placement, one.traffic, base.traffic) for one in made]
    if as_json:
        found = zip(
            made, written, compared, _bottlenecks(made, over, accel, residency), strict=True
        )
        show.print_json([
            {**show.partition_dict(one, top_transfers(graph, one.traffic), bottleneck, place),
             **show.comparison_dict(comparison, base)}
            for one, place, comparison, bottleneck in found
        ])  # fmt: skip
    else:
        show.comparison(made, base, compared, folder)


def _partition(
    graph: "OpGraph", trace_id: str, policy: "Policy", link: "Link", home: str, accel: str,
    wire_dtype: str | None, residency: Residency,
) -> "Partition":  # fmt: skip
    from partition.accounting import account
    from partition.policy import apply_policy
    from partition.tables import Partition

    placement = apply_policy(graph, policy, home=home, accelerator=accel)
    traffic = account(graph, placement, link, wire_dtype=wire_dtype, residency=residency)
    return Partition(
        graph, trace_id, policy.name, placement, traffic, link.name, wire_dtype, residency
    )


def _bottlenecks(
    made: "Sequence[Partition]", link: "Link", accel: str, residency: Residency
) -> "list[Bottleneck | None]":
    """Of each partition, with a relief that may be called by the name of a policy of cutedge."""
    from partition.explain import find_bottleneck
    from partition.policy import apply_policy, load_policy, policy_names

    graph, home = made[0].graph, made[0].placement.home
    known = {
        name: apply_policy(graph, load_policy(name), home=home, accelerator=accel)
        for name in policy_names()
    }
    return [
        find_bottleneck(
            graph, one.placement, one.traffic, link,
            policies=known, wire_dtype=one.wire_dtype, residency=residency,
        )
        for one in made
    ]  # fmt: skip


def _caution(graph: "OpGraph", policies: "Mapping[str, Policy]") -> None:
    """Warn of policies, by what the user called them, that do less than they say."""
    from partition.policy import cautions

    for given, policy in policies.items():
        for caution in cautions(graph, policy):
            typer.echo(f"warning: {given}: {caution}", err=True)


def _check_namesakes(policies: "Mapping[str, Policy]") -> None:
    first: dict[str, str] = {}
    for given, policy in policies.items():
        if first.setdefault(policy.name, given) != given:
            raise InputError(
                f"{first[policy.name]} and {given} are both called {policy.name}, and their "
                "tables would be in one directory: rename one of the files"
            )


def _check_options(home: str, accel: str, wire_dtype: str | None) -> None:
    from tracer.graph import FLOATING

    if not home or not accel or home == accel:
        raise InputError(f"--home {home!r} and --accel {accel!r} must be two different devices")
    if wire_dtype is not None:
        _choose(wire_dtype, FLOATING, "--wire-dtype")


def _choose(value: str, known: tuple[str, ...], option: str) -> None:
    if value not in known:
        raise InputError(
            f"{option} {value!r} is none of {', '.join(known)}." + suggest(value, known)
        )


@command('cutedge query "SELECT label, sum(payload_bytes) FROM transfers GROUP BY ALL"')
def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="SQL over ops, tensors, edges, placement, transfers, calls and summary."
        ),
    ],
    directory: Annotated[
        Path | None, typer.Option("--trace", help="A trace directory; the last when left out.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Over every run in cutedge-out, not one trace alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the tables in SQL (DuckDB)."""
    from cli import show
    from cli.sql import run_sql
    from cli.workspace import OUT, trace_folder

    columns, rows = run_sql(sql, OUT if every else trace_folder(directory))
    if as_json:
        show.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show.rows(columns, rows)


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
        show.print_json(find_config(model)[1])
        return
    known = {name: describe(preset(name)) for name in preset_names()}
    if as_json:
        show.print_json(known)
    else:
        show.rows(
            ["model", *next(iter(known.values()))],
            [[name, *figures.values()] for name, figures in known.items()],
        )


@command("cutedge policies fuse-attention")
def policies(
    policy: Annotated[str | None, typer.Argument(help="Show this one's rules.")] = None,
    as_json: Json = False,
) -> None:
    """List the policies, or show the rules of one."""
    from cli import show
    from partition.policy import load_policy, policy_names

    loaded = [load_policy(name) for name in ([policy] if policy else policy_names())]
    if as_json:
        show.print_json([
            {
                "policy": p.name, "description": p.description, "default": p.default,
                "rules": [
                    {**{key: list(values) for key, values in rule.conditions},
                     "place": rule.place, "reason": rule.reason}
                    for rule in p.rules
                ],
            }
            for p in loaded
        ])  # fmt: skip
    elif policy is None:
        show.rows(["policy", "what it does"], [[p.name, p.description] for p in loaded])
    else:
        for p in loaded:
            typer.echo(f"{p.name}: {p.description}")
            show.rows(
                ["rule", "ops", "place", "reason"],
                [
                    *([n, r, r.place, r.reason] for n, r in enumerate(p.rules, 1)),
                    ["", "all others", p.default, ""],
                ],
            )


def main() -> None:
    """The ``cutedge`` command on PATH."""
    _process()


def trace_main() -> None:
    """The ``trace`` command on PATH."""
    _process("trace")


def partition_main() -> None:
    """The ``partition`` command on PATH."""
    _process("partition")


def _process(*command: str) -> None:
    """Run a command as a process of its own.

    Nearly all that a trace makes lives until its end: looking for cycles among it, as Python does
    all along and again at the end, takes a quarter of its time and saves 4% of its memory.
    """
    arguments = [*command, *sys.argv[1:]]
    if arguments[:1] == ["trace"]:
        gc.disable()
        atexit.register(gc.freeze)
    app(arguments, prog_name="cutedge")
