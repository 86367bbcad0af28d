"""Commands that write traces, graphs and tables for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import complete
from cli.app import Json, app, command, no_model, say, warn
from cli.machines import LinkNames
from cutedge._machines import read_machines
from tracer.errors import CutedgeError, InputError, choose

if TYPE_CHECKING:
    from cutedge.exports.split import Split
    from cutedge.exports.timeline import Timeline
    from tracer.graph import OpGraph

export = typer.Typer(
    help="Write a timeline, a graph or a table for another tool.", no_args_is_help=True
)
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
    accel: Annotated[
        list[str] | None,
        typer.Option(
            help="What an accelerator is, NAME=DEVICE of several; as it was placed.",
            autocompletion=complete.devices,
        ),
    ] = None,
    link: LinkNames = None,
    as_json: Json = False,
) -> None:
    """Write a timeline for ui.perfetto.dev: predicted, and measured where verify has run."""
    from cli.printing import counted, duration, print_json

    try:
        from cutedge.exports.perfetto import trace_of
    except ImportError as error:
        raise InputError(
            f"export perfetto needs a package ({error}): pip install 'cutedge[export]'"
        ) from error
    graph, split = _found(directory, policy)
    if split is None:
        raise InputError("a timeline is of a partition, and there is none: run partition first")
    timelines = _timelines(split, home, accel, link)
    meta = graph.meta
    about = f"{meta.model}, {meta.phase} of {meta.batch} x {meta.seq} tokens, {split.policy}"
    written = _write(trace_of(timelines, about), out)
    counts = [
        {
            category: sum(one.category == category for one in timeline.slices)
            for category in ("call", "transfer", "op")
        }
        for timeline in timelines
    ]
    if as_json:
        print_json({**written, "policy": split.policy, "timelines": [
            {"name": timeline.name, "seconds": timeline.seconds, "tracks": timeline.tracks,
             **{f"{category}s": number for category, number in found.items()}}
            for timeline, found in zip(timelines, counts, strict=True)
        ]})  # fmt: skip
        return
    for timeline, found in zip(timelines, counts, strict=True):
        what = ", ".join(counted(number, category) for category, number in found.items() if number)
        say(f"{timeline.name}: {duration(timeline.seconds)}, {what}")
    say(f"written to {out}; open it at ui.perfetto.dev")


def _timelines(
    split: "Split", home: str | None, accel: list[str] | None, link: list[str] | None
) -> "list[Timeline]":
    """What is predicted, where seconds are known, and what was measured; one of them at least."""
    from costmodels.roofline import time_ops
    from cutedge.exports.timeline import measured, predicted

    names = split.placement.accelerators
    described = [_described(text, names) for text in accel or names]
    machines = read_machines(
        _described(home or split.placement.home, (split.placement.home,)),
        described or None, link, None, None,
    )  # fmt: skip
    for name in names:
        choose(name, machines.accelerators, "--accel leaves out")
    if link:
        split = split.over(machines.links)
    times = {
        name: time_ops(split.graph, device, options=split.options)
        for name, device in machines.described.items()
    }
    found = [one for one in (measured(split),) if one is not None]
    try:
        return [predicted(split, times), *found]
    except InputError as error:
        if not found or home or accel or link:
            raise
        warn(f"nothing is predicted: {error}")
        return found


def _described(text: str, names: tuple[str, ...]) -> str:
    """``rtx-4090`` of the only device that it can be as ``gpu=rtx-4090``."""
    if len(names) != 1 or text in names or text.startswith(f"{names[0]}="):
        return text
    return f"{names[0]}={text}"


@command("cutedge export model-explorer --policy fuse-attention --out llama.json", export)
def model_explorer(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph for Model Explorer, and node data to lay over it: FLOPs, bytes, devices."""
    from cutedge.exports.explorer import graph_json, overlays

    graph, split = _found(directory, policy)
    _, *data = files = {
        out: graph_json(graph, split),
        **{out.with_suffix(f".{what}.json"): text for what, text in overlays(graph, split).items()},
    }
    if len(files) != len(data) + 1 or out in data:
        raise InputError(f"--out {out}: another name: its node data would have the same")
    written = [_write(text.encode(), path) for path, text in files.items()]
    if as_json:
        from cli.printing import print_json

        print_json(_graph_dict(graph, split) | {"files": written})
        return
    say(_said(graph, split))
    say(f"written to {', '.join(map(str, files))}; to see them:")
    say(f"model-explorer {out} --node_data_paths {','.join(map(str, data))}")


@command("cutedge export graphml --policy fuse-attention --out llama.graphml", export)
def graphml(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph as GraphML: ops with kinds, costs and devices, and what flows between."""
    from cutedge.exports.graphs import graphml as made

    graph, split = _found(directory, policy)
    _report(graph, split, _write(made(graph, split).encode(), out), as_json=as_json)


@command("cutedge export dot --policy fuse-attention --out llama.dot", export)
def dot(
    out: Out, directory: Directory = None, policy: PolicyName = None, as_json: Json = False
) -> None:
    """Write the graph as DOT for Graphviz: a colour a device, cut edges red and wide."""
    from cutedge.exports.graphs import dot as made

    graph, split = _found(directory, policy)
    _report(graph, split, _write(made(graph, split).encode(), out), as_json=as_json)


TableName = Annotated[
    str, typer.Argument(metavar="TABLE", help="ops, tensors, edges, costs, placement, transfers, "
                        "calls, summary or measured_calls.", autocompletion=complete.tables)
]  # fmt: skip


@command("cutedge export csv transfers --policy fuse-attention --out transfers.csv", export)
def csv(
    table: TableName, directory: Directory = None, policy: PolicyName = None,
    escape_formulas: Annotated[
        bool,
        typer.Option(
            "--escape-formulas",
            help="Put a ' before text that a spreadsheet would carry out (it begins with = + - @).",
        ),
    ] = False,
    out: OutOrPrint = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Write a table as CSV; lists and maps are JSON text, null is empty."""
    from cutedge.exports.records import csv as made
    from cutedge.exports.records import read_any

    rows = read_any(_table(table, directory, policy))
    _give(made(rows, escape_formulas=escape_formulas), table, out, as_json=as_json)


@command("cutedge export json ops --lines --out ops.jsonl", export)
def json(
    table: TableName, directory: Directory = None, policy: PolicyName = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="An object a line, and no list around them.")
    ] = False,
    out: OutOrPrint = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Write a table as JSON: a list of objects."""
    from cutedge.exports.records import read_any, records

    rows = read_any(_table(table, directory, policy))
    _give(records(rows, lines=lines), table, out, as_json=as_json)


# --- what they share ------------------------------------------------------------------------------


def _found(directory: Path | None, policy: str | None) -> "tuple[OpGraph, Split | None]":
    """The graph of a trace, and its partition if it has one."""
    from cutedge._workspace import find_partition, trace_folder
    from cutedge.exports.split import read_split
    from tracer.serde import read_trace

    trace, partition = find_partition(trace_folder(directory), policy)
    if partition is None:
        return read_trace(trace)[0], None
    split = read_split(trace, partition)
    return split.graph, split


def _table(name: str, directory: Path | None, policy: str | None) -> Path:
    """Where a table is. Raises InputError saying which command makes it, where it is not there."""
    from cutedge._workspace import MAKERS, find_partition, trace_folder

    choose(name, list(MAKERS), "TABLE")
    folder = trace_folder(directory)
    of_partition = MAKERS[name] in ("partition", "verify")
    if of_partition:
        folder = find_partition(folder, policy)[1] or folder
    elif (folder / "summary.parquet").exists():
        folder = find_partition(folder, None)[0]
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise InputError(f"there is no {name} table in {folder}: run {MAKERS[name]} first")
    return path


def _write(data: bytes, path: Path) -> dict[str, Any]:
    from tracer.files import write_whole

    try:
        write_whole(path, data)
    except OSError as error:
        raise CutedgeError(
            f"cannot write {path}: {error.strerror or error}. Choose another place with --out, or "
            "free some space."
        ) from error
    return {"file": str(path), "bytes": len(data)}


def _give(data: bytes, table: str, out: Path | None, *, as_json: bool) -> None:
    """Write a table, or print it."""
    if out is None:
        if as_json:
            raise InputError("--json tells of the file that is written: name it with --out")
        typer.echo(data, nl=False)
        return
    written = _write(data, out)
    if as_json:
        from cli.printing import print_json

        print_json({"table": table, **written})
    else:
        say(f"{table} written to {out}")


def _graph_dict(graph: "OpGraph", split: "Split | None") -> dict[str, Any]:
    return {
        "model": graph.meta.model, "policy": split and split.policy, "ops": len(graph.ops),
        "edges": sum(edge.src is not None for edge in graph.edges),
    }  # fmt: skip


def _said(graph: "OpGraph", split: "Split | None") -> str:
    what = f"placed by {split.policy}" if split else "without devices"
    return f"{graph.meta.model}, {what}: {len(graph.ops):,} ops"


def _report(
    graph: "OpGraph", split: "Split | None", written: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        from cli.printing import print_json

        print_json(_graph_dict(graph, split) | written)
    else:
        say(f"{_said(graph, split)}\nwritten to {written['file']}")
