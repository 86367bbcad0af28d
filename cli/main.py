"""The ``cutedge`` command. Each command imports what it needs: help must be instant."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from partition import Residency
from tracer.errors import CutedgeError, InputError, suggest

if TYPE_CHECKING:
    from partition.tables import Partition
    from tracer.graph import OpGraph

app = typer.Typer(
    name="cutedge",
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
    """Register a command: an example under its help, errors in one line, exit code 1 or 2."""

    def register(function: Command) -> Command:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with clear_errors():
                return function(*args, **kwargs)

        app.command(epilog=f"Example: [bold]{example}[/bold]")(guarded)
        return function

    return register


@contextmanager
def clear_errors() -> Iterator[None]:
    """Our errors on stderr, and those of the system; a traceback is for our bugs only."""
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()  # a full disk must not wait for the interpreter's end
    except CutedgeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:  # as in `cutedge query ... | head`: nobody reads on
        _drop_output()
        raise typer.Exit(1) from error
    except (OSError, UnicodeEncodeError) as error:
        where = getattr(error, "filename", None) or "cannot print the results"
        typer.echo(f"error: {where}: {getattr(error, 'strerror', None) or error}", err=True)
        _drop_output()
        raise typer.Exit(1) from error


def _drop_output() -> None:
    """Let what is still to be printed go nowhere, or the interpreter fails on it at its end."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@command("cutedge trace llama-3.2-1b --seq 1024")
def trace(
    model: Annotated[str, typer.Argument(help="A preset, a config.json, or its folder.")],
    seq: Annotated[int, typer.Option(min=1, help="New tokens a sequence.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    dtype: Annotated[str, typer.Option(help="Dtype of parameters and activations.")] = "float32",
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
    as_json: Json = False,
) -> None:
    """Trace a model into an op graph and write it as Parquet."""
    from tracer.graph import MODEL_DTYPES
    from tracer.presets import find_config, parse_overrides

    _choose(dtype, MODEL_DTYPES, "--dtype")
    name, config = find_config(model)
    overrides = parse_overrides(settings or [])

    from tracer.capture import capture

    captured = capture(
        config, model=name, batch=batch, seq=seq, dtype=dtype, attn=attn, logits=logits,
        overrides=overrides, full=full,
    )  # fmt: skip

    from cli import show
    from cli.workspace import default_folder, remember
    from costmodels.flops import annotate, total_flops
    from partition.tables import remove_stale
    from tracer.serde import write_trace

    graph = annotate(captured.graph)
    folder = out or default_folder(graph.meta)
    trace_id = write_trace(graph, folder)
    notes = list(captured.warnings)
    if removed := remove_stale(folder, trace_id):
        notes.append(f"removed the partitions of the trace before: {', '.join(removed)}")
    remember(folder)
    for note in notes:
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        show.trace_json(graph, total_flops(graph), folder, notes)
    else:
        show.trace_summary(graph, total_flops(graph), folder)


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
    from partition.explain import find_bottleneck, top_transfers
    from partition.policy import apply_policy, idle_rules, load_policy, policy_names
    from partition.tables import write_partition
    from tracer.serde import read_trace

    chosen, over = load_policy(policy), load_link(link)
    _check_options(home, accel, wire_dtype)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = _partition(graph, trace_id, policy, home, accel, wire_dtype, residency, link)
    written = write_partition(made, folder)
    if chosen.name not in policy_names():
        for rule in idle_rules(graph, chosen):
            typer.echo(f"warning: {policy}: no op matches the rule {rule}", err=True)
    known = {
        name: apply_policy(graph, load_policy(name), home=home, accelerator=accel)
        for name in policy_names()
    }
    bottleneck = find_bottleneck(
        graph, made.placement, made.traffic, over,
        policies=known, wire_dtype=wire_dtype, residency=residency,
    )  # fmt: skip
    top = top_transfers(graph, made.traffic)
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
    from partition.explain import savings, top_transfers
    from partition.policy import load_policy, policy_names
    from partition.tables import write_partition
    from tracer.serde import read_trace

    _check_options(home, accel, wire_dtype)
    names = list(dict.fromkeys(policies or policy_names()))
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        names.insert(0, against)
    for name in names:
        load_policy(name)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = [
        _partition(graph, trace_id, name, home, accel, wire_dtype, residency, link)
        for name in names
    ]
    written = [write_partition(one, folder) for one in made]
    base = made[names.index(against)]
    saved = savings([one.traffic for one in made], base.traffic)
    if as_json:
        show.print_json([
            {**show.partition_dict(one, top_transfers(graph, one.traffic), None, place),
             "saved_bytes": less, "baseline": base.policy}
            for one, place, less in zip(made, written, saved, strict=True)
        ])  # fmt: skip
    else:
        show.comparison(made, base, saved, folder)


def _partition(
    graph: "OpGraph", trace_id: str, policy: str, home: str, accel: str, wire_dtype: str | None,
    residency: Residency, link: str,
) -> "Partition":  # fmt: skip
    from costmodels.links import load_link
    from partition.accounting import account
    from partition.policy import apply_policy, load_policy
    from partition.tables import Partition

    rules, over = load_policy(policy), load_link(link)
    placement = apply_policy(graph, rules, home=home, accelerator=accel)
    traffic = account(graph, placement, over, wire_dtype=wire_dtype, residency=residency)
    return Partition(
        graph, trace_id, rules.name, placement, traffic, over.name, wire_dtype, residency
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
    as_json: Json = False,
) -> None:
    """List the models that are known by name, or show one's config."""
    from cli import show
    from tracer.presets import describe, find_config, preset, preset_names

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


def trace_main() -> None:
    """The ``trace`` command on PATH."""
    app(["trace", *sys.argv[1:]], prog_name="cutedge")


def partition_main() -> None:
    """The ``partition`` command on PATH."""
    app(["partition", *sys.argv[1:]], prog_name="cutedge")
