"""Commands that write traces, graphs and tables for other tools."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import complete
from cli.app import app, command, say, warn
from cli.devices import Buffered
from cli.options import Accelerators, Device, Json, Link, no_model
from tracer.errors import InputError

export = typer.Typer(help="Write a timeline, graph, placement or table.", no_args_is_help=True)
app.add_typer(export, name="export")

Directory = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR",
        help="A trace or partition directory; the last trace when left out.",
        callback=no_model,
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Which partition of a trace, where it has several.",
        autocompletion=complete.policies,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="The file to write.")]
OutOrPrint = Annotated[
    Path | None, typer.Option("--out", help="The file to write; printed when left out.")
]
TableName = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="ops, tensors, edges, costs, placement, transfers, calls, summary, schedule or "
        "measured_calls.",
        autocompletion=complete.tables,
    ),
]


@command(
    "cutedge export perfetto --home tee-tdx --accel h100-cc --link pcie5-x16-cc --out run.pftrace",
    export,
)
def perfetto(
    out: Out,
    directory: Directory = None,
    policy: PolicyName = None,
    home: Annotated[
        str | None,
        typer.Option(
            help="What home is: one of `devices`, or a .toml file; as it was placed.",
            autocompletion=complete.devices,
        ),
    ] = None,
    accel: Accelerators = None,
    link: Link = None,
    as_json: Json = False,
) -> None:
    """Write a timeline for ui.perfetto.dev: predicted, and measured where verify has run."""
    from cli.printing import print_json
    from cutedge._export import export_timeline, opened
    from cutedge._words import no_less
    from tracer.words import counted

    _, split, run = opened(directory, policy)
    written = export_timeline(split, run, out, home, accel, link)
    warn(*written.warnings)
    if as_json:
        print_json(written.summary)
        return
    for timeline in written.timelines:
        what = ", ".join(counted(n, category) for category, n in timeline.counts.items() if n)
        say(f"{timeline.name}: {no_less(timeline.seconds, timeline.at_least)}, {what}")
    say(f"written to {out}; open it at ui.perfetto.dev")


@command("cutedge export model-explorer --policy fuse-attention --out llama.json", export)
def model_explorer(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph for Model Explorer, and node data to lay over it: FLOPs, bytes, devices."""
    _graph("model-explorer", out, directory, policy, as_json)
    if not as_json:
        data = ",".join(str(path) for path in sorted(out.parent.glob(f"{out.stem}.*.json")))
        say(f"to see them:\nmodel-explorer {out} --node_data_paths {data}")


@command("cutedge export graphml --policy fuse-attention --out llama.graphml", export)
def graphml(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph as GraphML: ops with kinds, costs and devices, and what flows between."""
    _graph("graphml", out, directory, policy, as_json)


@command("cutedge export dot --policy fuse-attention --out llama.dot", export)
def dot(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph as DOT for Graphviz: a colour a device, cut edges red and wide."""
    _graph("dot", out, directory, policy, as_json)


def _graph(kind: Any, out: Path, directory: Path | None, policy: str | None, as_json: bool) -> None:
    from cli.printing import print_json
    from cutedge._export import export_graph, opened

    graph, split, _ = opened(directory, policy)
    written = export_graph(kind, graph, split, out)
    if as_json:
        print_json(written.summary)
        return
    placed = f"placed by {split.policy}" if split else "without devices"
    say(f"{graph.meta.model}, {placed}: {len(graph.ops):,} ops")
    say(f"written to {', '.join(map(str, written.files))}")


@command("cutedge export placement --for llama.cpp --policy min-cut --nearest", export)
def placement(
    executor: Annotated[str, typer.Option("--for", help="llama.cpp, accelerate, onnxruntime ...")],
    directory: Directory = None,
    policy: PolicyName = None,
    nearest: Annotated[bool, typer.Option("--nearest", help="The nearest that it can do.")] = False,
    out: OutOrPrint = None,
    as_json: Json = False,
) -> None:
    """Write a placement in the words of the program that is to carry it out."""
    from cli.printing import print_json
    from cutedge._export import placement_words

    words = placement_words(executor, directory, policy, out, nearest=nearest)
    if not words.exact:
        warn(words.claim)
    if as_json:
        print_json({**words.summary, "file": out and str(out)})
    else:
        typer.echo(f"written to {out}\n" if out else words.text, nl=False)


@command(
    "cutedge export scalesim --sram-kib 64,64,64 --dram-words-per-cycle 10 --out simulated", export
)
def scalesim(
    array: Buffered,
    out: Annotated[Path, typer.Option("--out", help="The folder to write into.")],
    directory: Directory = None,
    device: Device = "systolic-32x32",
    as_json: Json = False,
) -> None:
    """Write the matrix products, and an array with its buffers, for SCALE-Sim 3."""
    from cutedge._export import export_scalesim, opened_trace

    _products(export_scalesim(opened_trace(directory), out, device, **asdict(array)), as_json)


@command("cutedge export zigzag --out workload.yaml", export)
def zigzag(out: Out, directory: Directory = None, as_json: Json = False) -> None:
    """Write the matrix products as a workload for ZigZag."""
    from cutedge._export import export_zigzag, opened_trace

    _products(export_zigzag(opened_trace(directory), out), as_json)


@command("cutedge export stream --out workload.onnx", export)
def stream(out: Out, directory: Directory = None, as_json: Json = False) -> None:
    """Write the products, and what lies between them, as a workload for Stream (ONNX)."""
    from cutedge._export import export_stream, opened_trace

    _products(export_stream(opened_trace(directory), out), as_json)


def _products(written: Any, as_json: bool) -> None:
    from cli.printing import print_json

    warn(*written.warnings)
    if as_json:
        print_json(written.summary)
        return
    say(f"{written.graph.meta.model}: {written.products:,} products")
    say(f"written to {', '.join(map(str, written.files))}")


@command("cutedge export csv transfers --policy fuse-attention --out transfers.csv", export)
def csv(
    table: TableName,
    directory: Directory = None,
    policy: PolicyName = None,
    escape_formulas: Annotated[
        bool,
        typer.Option("--escape-formulas", help="A ' before text that a spreadsheet carries out."),
    ] = False,
    out: OutOrPrint = None,
    as_json: Json = False,
) -> None:
    """Write a table as CSV; lists and maps are JSON text, null is empty."""
    from cutedge._export import opened_table
    from cutedge.exports import records

    rows = opened_table(table, directory, policy)
    _give(records.csv(rows, escape_formulas=escape_formulas), table, out, as_json)


@command("cutedge export json ops --lines --out ops.jsonl", export)
def json(
    table: TableName,
    directory: Directory = None,
    policy: PolicyName = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="An object a line, and no list around them.")
    ] = False,
    out: OutOrPrint = None,
    as_json: Json = False,
) -> None:
    """Write a table as JSON: a list of objects."""
    from cutedge._export import opened_table
    from cutedge.exports import records

    _give(records.records(opened_table(table, directory, policy), lines=lines), table, out, as_json)


def _give(data: bytes, table: str, out: Path | None, as_json: bool) -> None:
    """Write a table, or print it."""
    from cli.printing import print_json
    from cutedge._export import write_file

    if out is None:
        if as_json:
            raise InputError("--json tells of the file that is written: name it with --out")
        typer.echo(data, nl=False)
        return
    size = write_file(data, out)
    if as_json:
        print_json({"table": table, "file": str(out), "bytes": size})
    else:
        say(f"{table} written to {out}")
