"""Traces and splits as files for other tools: timelines, graphs, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cutedge._machines import read_machine
from cutedge._workspace import MAKERS, find_partition, trace_folder
from cutedge.runtime.measured import MeasuredRun, read_run
from partition.schedule_table import read_schedule
from partition.split import Split
from partition.tables import read_split
from tracer.errors import CutedgeError, InputError, choose
from tracer.files import write_whole
from tracer.graph import ITEM_BYTES, OpGraph
from tracer.serde import read_trace

if TYPE_CHECKING:
    import pyarrow as pa

    from costmodels import Dataflow
    from costmodels.machine import Machine
    from cutedge._carried import Words
    from cutedge.exports.scalesim import Products
    from cutedge.exports.timeline import Timeline

GraphKind = Literal["graphml", "dot", "model-explorer"]
"""A graph for yEd or Gephi, for Graphviz, and for Google's Model Explorer."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Files that were written."""

    files: Mapping[Path, int]
    """Their sizes in bytes; the first one is what was asked for."""
    graph: OpGraph
    split: Split | None
    """None of a trace without devices."""
    timelines: "tuple[Timeline, ...]" = ()
    warnings: tuple[str, ...] = ()
    products: int | None = None
    """How many matrix products were written; None of what is no list of them."""

    @property
    def summary(self) -> dict[str, Any]:
        """What was written of what, by name."""
        files = [{"file": str(path), "bytes": size} for path, size in self.files.items()]
        about: dict[str, Any] = {"policy": self.split and self.split.policy}
        if self.timelines:
            about["timelines"] = [
                {
                    "name": one.name,
                    "seconds": one.seconds,
                    "at_least": one.at_least,
                    "tracks": one.tracks,
                    **{f"{category}s": count for category, count in one.counts.items()},
                }
                for one in self.timelines
            ]
        elif self.products is not None:
            about = {"model": self.graph.meta.model, "products": self.products}
        else:
            about = {
                "model": self.graph.meta.model,
                **about,
                "ops": len(self.graph.ops),
                "edges": sum(edge.src is not None for edge in self.graph.edges),
            }
        return {**about, **(files[0] if len(files) == 1 else {"files": files})}


def export_graph(kind: GraphKind, graph: OpGraph, split: Split | None, out: Path) -> Exported:
    """Write the graph; for Model Explorer node data too, beside it.

    Raises InputError for a name that node data would have too, CutedgeError for a place that cannot
    be written.
    """
    from cutedge.exports import explorer, graphs

    if kind == "model-explorer":
        data = {
            out.with_suffix(f".{what}.json"): text
            for what, text in explorer.overlays(graph, split).items()
        }
        if out in data:
            raise InputError(f"--out {out}: another name: its node data would have the same")
        texts = {out: explorer.graph_json(graph, split), **data}
    else:
        write = {"graphml": graphs.graphml, "dot": graphs.dot}[kind]
        texts = {out: write(graph, split)}
    return Exported(
        {path: write_file(text.encode(), path) for path, text in texts.items()}, graph, split
    )


def export_scalesim(
    graph: OpGraph,
    out: Path,
    device: str = "systolic-32x32",
    *,
    mode: "Dataflow | None" = None,
    rows: int | None = None,
    cols: int | None = None,
    sram_kib: str | Sequence[float] | None = None,
    dram_words_per_cycle: float | None = None,
) -> Exported:
    """Write the matrix products of a trace, in their order, and an array with buffers, for SCALE-Sim 3:
    ``topology.csv``, ``scalesim.cfg`` and ``layout.csv`` in a folder.

    The array and the buffers are given as those of ``gemm``; its words are bytes.

    Raises InputError for an array that is not systolic, for buffers that are missing or that SCALE-Sim
    does not take, and for a trace without products; CutedgeError for a place that cannot be written.
    """
    from costmodels.devices import load_device
    from cutedge._gemm import array_of, kib_of
    from cutedge.exports import scalesim

    array = array_of(load_device(device), mode, rows, cols)
    if array.dataflow == "fixed":
        raise InputError(f"SCALE-Sim has systolic arrays, and {device} is none: add --mode os")
    if sram_kib is None or dram_words_per_cycle is None:
        raise InputError(
            "SCALE-Sim has buffers and a DRAM: add --sram-kib 64,64,64 --dram-words-per-cycle 10"
        )
    sizes: list[Any] = [*kib_of(sram_kib), dram_words_per_cycle]
    if not all(1 <= size < 2**31 and size == int(size) for size in sizes):
        raise InputError(
            "SCALE-Sim takes whole KiB and whole words a cycle, 1 or more of each "
            f"(--sram-kib {sram_kib} --dram-words-per-cycle {dram_words_per_cycle})"
        )
    products, warnings = _products(graph)
    left, right, result, words = map(int, sizes)
    texts = {
        "topology.csv": scalesim.topology(products),
        "scalesim.cfg": scalesim.configuration(
            graph.meta.model,
            array.dataflow,
            array.rows,
            array.columns,
            (left, right, result),
            words,
            offsets=scalesim.offsets_of(products),
        ),
        "layout.csv": scalesim.LAYOUT,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CutedgeError(f"cannot write into {out}: {error.strerror or error}") from error
    return Exported(
        {out / name: write_file(text.encode(), out / name) for name, text in texts.items()},
        graph,
        None,
        warnings=warnings,
        products=sum(gemm.batch for _, gemm in products),
    )


def export_zigzag(graph: OpGraph, out: Path) -> Exported:
    """Write the matrix products of a trace, in their order, as a workload for ZigZag: a YAML file.

    Raises InputError for a trace without products, CutedgeError for a place that cannot be written.
    """
    from cutedge.exports.zigzag import workload

    products, warnings = _products(graph)
    bits = {op.name: 8 * ITEM_BYTES[op.dtype or graph.meta.dtype] for op in graph.ops}
    text = workload((name, gemm, bits[name]) for name, gemm in products)
    many = sum(gemm.batch for _, gemm in products)
    size = write_file(text.encode(), out)
    return Exported({out: size}, graph, None, warnings=warnings, products=many)


def export_stream(graph: OpGraph, out: Path) -> Exported:
    """Write a trace as a workload for Stream: an ONNX model of the ops that it has operators for.

    Raises InputError where the ``onnx`` package is missing, for a dtype that Stream lacks and for a
    trace without such ops, CutedgeError for a place that cannot be written.
    """
    from cutedge.exports.stream import workload

    model, products, elsewhere = workload(graph)
    warnings = tuple(
        f"{count} x {target} left out: Stream has no operator for it, its results are inputs"
        for target, count in elsewhere.items()
    )
    size = write_file(model, out)
    return Exported({out: size}, graph, None, warnings=warnings, products=products)


def _products(graph: OpGraph) -> "tuple[Products, tuple[str, ...]]":
    """(the products of a trace, what is left out of them). Raises InputError where there are no
    products."""
    from costmodels.flops import without_sizes
    from cutedge.exports.scalesim import products_of

    products = products_of(graph)
    if not products:
        raise InputError(f"{graph.meta.model} has no matrix products in this trace")
    lacking = without_sizes(op for op in graph.ops if not op.is_constant)
    return products, tuple(
        f"{count} x {target} left out: its products have no sizes here"
        + ("; traced with --attn eager they have" if "attention" in target else "")
        for target, count in lacking.items()
    )


def export_timeline(
    split: Split | None,
    run: MeasuredRun | None,
    out: Path,
    home: str | None = None,
    accel: Sequence[str] | None = None,
    link: Sequence[str] | None = None,
    machine: "Machine | None" = None,
) -> Exported:
    """Write a timeline for ui.perfetto.dev: what is predicted, and what was measured in ``run``.

    Between the two stands the schedule of a split that has one.

    ``home``, ``accel`` and ``link``, or ``machine``, say what the devices and links are, where the
    split does not.
    Raises InputError where there is no split, and where neither seconds nor a run are known.
    """
    try:
        from cutedge.exports.perfetto import trace_of
    except ImportError as error:
        raise InputError(
            f"export perfetto needs a package ({error}): pip install 'cutedge[export]'"
        ) from error
    if split is None:
        raise InputError("a timeline is of a partition, and there is none: run partition first")
    timelines, warnings = _timelines(split, run, home, accel, link, machine)
    meta = split.graph.meta
    about = f"{meta.model}, {meta.phase} of {meta.batch} x {meta.seq} tokens, {split.policy}"
    size = write_file(trace_of(timelines, about), out)
    return Exported({out: size}, split.graph, split, tuple(timelines), tuple(warnings))


def _timelines(
    split: Split,
    run: MeasuredRun | None,
    home: str | None,
    accel: Sequence[str] | None,
    link: Sequence[str] | None,
    machine: "Machine | None",
) -> "tuple[list[Timeline], list[str]]":
    """(what is predicted, where seconds are known, and what was measured; warnings)"""
    from cutedge.exports.timeline import laid_out, measured, predicted

    names = split.placement.accelerators
    if machine is None:
        described = [_described(text, names) for text in accel or names]
        at_home = _described(home or split.placement.home, (split.placement.home,))
        by = {"engine": split.engine.split(", "), "execution": split.execution or None}
        told = by if split.engine or split.execution else {}
        machine = read_machine(at_home, described or None, link, None, None, **told)  # type: ignore[arg-type]
    for name in names:
        choose(name, machine.accelerators, "--accel leaves out")
    if link:
        split = split.over(machine.links)
    times = replace(machine, options=split.options).times(split.graph)
    ran = [] if split.schedule is None else [laid_out(split, split.schedule)]
    ran += [] if run is None else [measured(split, run)]
    try:
        return [predicted(split, times), *ran], []
    except InputError as error:
        if not ran or home or accel or link:
            raise
        return ran, [f"nothing is predicted: {error}"]


def _described(text: str, names: Sequence[str]) -> str:
    """``rtx-4090`` of the only device that it can be as ``gpu=rtx-4090``."""
    if len(names) != 1 or text in names or text.startswith(f"{names[0]}="):
        return text
    return f"{names[0]}={text}"


def opened(
    directory: Path | None, policy: str | None, *, last: bool = False
) -> tuple[OpGraph, Split | None, MeasuredRun | None]:
    """(a trace's graph, its split if it has one, what was measured of that) of a directory.

    It is a trace's or a partition's; ``policy`` is for a trace that has several partitions, of
    which else the ``last`` that was written may be taken.
    """
    trace, folder = find_partition(trace_folder(directory), policy, last=last)
    if folder is None:
        return read_trace(trace)[0], None, None
    split = read_split(trace, folder)
    graph, placement, traffic = split.graph, split.placement, split.traffic
    split = replace(
        split, schedule=read_schedule(folder, graph, placement, traffic, split.trace_id)
    )
    return split.graph, split, read_run(folder, split.trace_id, split.traffic.calls)


def opened_trace(directory: Path | None) -> OpGraph:
    """The graph of a trace; of the trace that a partition is of, where ``directory`` is one."""
    return read_trace(find_partition(trace_folder(directory), None, last=True)[0])[0]


def placement_words(
    executor: str, directory: Path | None, policy: str | None, out: Path | None, *, nearest: bool
) -> "Words":
    """A placement in the words of an executor, written to a file where ``out`` names one: of a
    policy, or of the last partition.

    Raises as ``_carried.words_for``, and InputError where there is no placement.
    """
    from cutedge._carried import words_for

    split = opened(directory, policy, last=True)[1]
    if split is None:
        raise InputError("a placement is of a partition, and there is none: run partition first")
    words = words_for(split, executor, nearest=nearest)
    if out is not None:
        write_file(words.text.encode(), out)
    return words


def opened_table(name: str, directory: Path | None, policy: str | None) -> "pa.Table":
    """A table by its name. Raises InputError that says which command makes it."""
    from cutedge.exports.records import read_any

    choose(name, list(MAKERS), "TABLE")
    folder = trace_folder(directory)
    if MAKERS[name].startswith(("partition", "verify")):
        folder = find_partition(folder, policy)[1] or folder
    elif (folder / "summary.parquet").exists():
        folder = find_partition(folder, None)[0]
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise InputError(f"there is no {name} table in {folder}: run {MAKERS[name]} first")
    return read_any(path)


def write_file(data: bytes, path: Path) -> int:
    """Write a whole file; its size. Raises CutedgeError for a place that cannot be written."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise CutedgeError(
            f"cannot write {path}: {error.strerror or error}. Choose another place with --out, or "
            "free some space."
        ) from error
    return len(data)
