"""What export writes, read back by other tools and compared with the tables."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import networkx as nx
import pyarrow.parquet as pq
import pytest

from costmodels.arrays import Options
from costmodels.devices import load_device
from costmodels.links import Links, load_link
from costmodels.memory import memory_need
from costmodels.roofline import time_ops
from cutedge._machines import read_machine
from cutedge._workspace import find_partition
from cutedge.exports.graphs import as_networkx, dot, graphml
from cutedge.exports.timeline import measured, predicted
from cutedge.runtime.measured import MeasuredCall, MeasuredRun, read_run, write_measured
from partition.accounting import account
from partition.split import Split
from partition.tables import read_split
from tests.support.inprocess import invoke
from tests.support.trace_processor import MISSING, asking
from tracer.files import remove_files, write_files
from tracer.graph import OpGraph
from tracer.serde import read_trace, run_of

SMALL = (
    "num_hidden_layers=2",
    "hidden_size=64",
    "intermediate_size=96",
    "head_dim=16",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "vocab_size=50",
)
NAMED = ("--home", "tee=tee-tdx", "--accel", "gpu=h100-cc", "--link", "pcie5-x16-cc")
TWO = (
    "--home",
    "tee=tee-tdx",
    "--accel",
    "a=h100-cc",
    "--accel",
    "b=rtx-4090",
    "--link",
    "pcie5-x16-cc",
    "--link",
    "a+b=nvlink",
)
HALVES = """
description = "the MLPs on another device"
default = "home"
[[rule]]
kind = ["linear", "matmul", "embedding"]
module_path = ["*mlp*"]
place = "accelerator 2"
reason = "products"
[[rule]]
kind = ["linear", "matmul", "embedding", "elementwise"]
place = "accelerator"
reason = "products"
"""
CASES: Mapping[str, tuple[str, ...]] = {
    "offload": ("--policy", "offload-linear", *NAMED),
    "forgets": ("--policy", "offload-linear", "--residency", "call", *NAMED),
    "narrow": ("--policy", "fuse-attention", "--wire-dtype", "bfloat16", *NAMED),
    "two": ("--policy", "halves.toml", *TWO),
    "home": ("--policy", "all-home", *NAMED),
}
DESCRIBED = ("--home", "tee-tdx", "--accel", "gpu=h100-cc")


def done(command: str, *args: str | Path) -> str:
    ran = invoke(command, *args)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trace, and its partitions by case in ``<case>``."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "halves.toml").write_text(HALVES, encoding="utf-8")
        settings = [part for text in SMALL for part in ("--set", text)]
        done("trace", "llama-3.2-1b", "--seq", "8", *settings, "--out", "traced")
        for case, options in CASES.items():
            table = json.loads(done("partition", "traced", *options, "--json"))["folder"]
            (folder / case).symlink_to(folder / table)
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def folder_of(case: str) -> Path:
    return Path(case).resolve().relative_to(Path.cwd())


def split_of(case: str) -> Split:
    trace, folder = find_partition(folder_of(case), None)
    assert folder is not None
    return read_split(trace, folder)


def run_in(case: str) -> MeasuredRun | None:
    split = split_of(case)
    return read_run(folder_of(case), split.trace_id, split.traffic.calls)


def times_of(split: Split) -> dict[str, Any]:
    named = {"tee": "tee-tdx", "gpu": "h100-cc", "a": "h100-cc", "b": "rtx-4090"}
    return {device: time_ops(split.graph, load_device(named[device])) for device in split.used}


def rows(table: str, case: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        pq.ParquetFile(folder_of(case) / f"{table}.parquet")
        .read()
        .to_pylist(maps_as_pydicts="strict")
    )
    return found


# --- a partition, read back -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_back_is_what_the_accounting_says(case: str) -> None:
    split = split_of(case)
    links = {"two": TWO}.get(case, NAMED)
    machine = read_machine(
        "tee=tee-tdx",
        [text for text in links if text[:2] in ("a=", "b=", "gp")] or None,
        [links[n + 1] for n, text in enumerate(links) if text == "--link"],
        None,
        None,
    )
    traffic = account(
        split.graph,
        split.placement,
        machine.links,
        wire=split.wire_format,
        residency=split.residency,
    )
    assert split.traffic.calls == traffic.calls  # steps among them, which no table has
    assert split.traffic.transfers == traffic.transfers
    assert split.traffic.resident_bytes == traffic.resident_bytes
    again = split.over(machine.links)
    assert (again.traffic.calls, again.traffic.transfers) == (
        split.traffic.calls,
        split.traffic.transfers,
    )


@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.parametrize("policy", ["offload-linear", "min-cut-norm-home", "host-chip"])
@pytest.mark.few(2)
@pytest.mark.slow
def test_a_decode_with_a_cache_is_read_back_and_laid_out(
    policy: str, residency: str, tmp_path: Path
) -> None:
    settings = [part for text in SMALL for part in ("--set", text)]
    done("trace", "llama-3.2-1b", "--phase", "decode", "--past", "5", *settings, "--out", tmp_path)
    done("partition", tmp_path, "--policy", policy, "--residency", residency, *NAMED)
    trace, folder = find_partition(tmp_path, policy)
    assert folder is not None
    split = read_split(trace, folder)
    links = Links(load_link("pcie5-x16-cc"))
    assert split.over(links).traffic.calls == split.traffic.calls
    timeline = predicted(split, times_of(split))
    (summary,) = pq.ParquetFile(folder / "summary.parquet").read().to_pylist()
    assert timeline.seconds == pytest.approx(summary["run_seconds"])
    ended: dict[int, float] = {}
    for one in timeline.slices:
        ended |= dict.fromkeys(one.flows_out, one.start + one.seconds)
        assert all(ended[flow] <= one.start + 1e-12 for flow in one.flows_in)


def test_array_options_are_read_as_they_are_written() -> None:
    for options in (Options(), Options(2, 2.0, 0.5, 1.5, 4), Options(chips=1000)):
        assert Options.parse(options.text) == options


# --- the timeline ---------------------------------------------------------------------------------


def cut_edges(split: Split) -> set[tuple[int, int]]:
    devices = split.placement.devices
    return {
        (edge.src, edge.dst)
        for edge in split.graph.edges
        if edge.src is not None
        and None not in (devices[edge.src], devices[edge.dst])
        and devices[edge.src] != devices[edge.dst]
    }


@pytest.mark.parametrize("case", CASES)
def test_tracks_are_never_busy_twice_and_the_run_takes_what_the_summary_says(case: str) -> None:
    split = split_of(case)
    timeline = predicted(split, times_of(split))
    free: dict[str, float] = defaultdict(float)
    for one in timeline.slices:
        assert one.start >= free[one.track]
        free[one.track] = one.start + one.seconds
    (summary,) = rows("summary", case)
    assert timeline.seconds == pytest.approx(summary["run_seconds"])
    assert set(free) == set(timeline.tracks)


@pytest.mark.parametrize("case", CASES)
def test_an_op_begins_when_all_that_it_reads_is_there(case: str) -> None:
    split = split_of(case)
    slices = predicted(split, times_of(split)).slices
    order = {
        one.arguments["op_id"]: number for number, one in enumerate(slices) if one.category == "op"
    }
    assert len(order) == sum(device is not None for device in split.placement.devices)
    for edge in split.graph.edges:
        if edge.src in order and edge.dst in order:
            assert order[edge.src] < order[edge.dst]
    begins = {flow: number for number, one in enumerate(slices) for flow in one.flows_out}
    ends = {flow: number for number, one in enumerate(slices) for flow in one.flows_in}
    assert begins.keys() == ends.keys()
    assert all(begins[flow] < ends[flow] for flow in begins)


def test_bytes_on_the_only_device_peak_where_the_memory_model_says() -> None:
    split = split_of("home")
    (resident,) = split.traffic.resident_bytes.values()
    levels = [level.bytes for level in predicted(split, times_of(split)).levels]
    assert max(levels) - resident == memory_need(split.graph).live_activation_bytes
    assert levels[0] == levels[-1] == resident


def test_an_accelerator_that_forgets_holds_nothing_between_calls() -> None:
    split = split_of("forgets")
    timeline = predicted(split, times_of(split))
    idle = split.traffic.resident_bytes["gpu"]
    calls = [one for one in timeline.slices if one.category == "call"]
    for call in calls:
        levels = [level for level in timeline.levels if level.device == "gpu"]
        before = [level for level in levels if level.start <= call.start]
        assert before[-1].bytes == idle or before[-1].start == call.start
    assert len(calls) > 5
    keeps = predicted(split_of("offload"), times_of(split))
    most = max(level.bytes for level in timeline.levels if level.device == "gpu")
    assert most <= max(level.bytes for level in keeps.levels if level.device == "gpu")


def call_took(number: int, device: str) -> MeasuredCall:
    sizes: dict[type, Any] = {int: 100 * (number + 1), float: 0.001 * (number + 1), str: device}
    values = {field.name: sizes[field.type] for field in fields(MeasuredCall)}  # type: ignore[index]
    return MeasuredCall(
        **{
            **values,
            "call_id": number,
            "call_seconds": 0.01 * (number + 1),
            "sent_tensors": 2,
            "received_tensors": number % 2,
        }
    )


def measure(case: str) -> None:
    """What verify would leave in a partition's directory, with made-up figures."""
    split, folder = split_of(case), folder_of(case)
    _, trace_id = read_trace(find_partition(folder, None)[0])
    calls = [call_took(call.id, call.device) for call in split.traffic.calls]
    home = sum(call.home_seconds for call in calls) + 0.5
    write_measured(
        split.graph.meta,
        calls,
        [call.label for call in split.traffic.calls],
        run_of(split.graph, trace_id, policy="p", wire="w", residency="run", machine="m"),
        {"trace_id": trace_id, "home_seconds": repr(home), "run_seconds": "1.0"},
        {"message": 1, "tensor": 1},
        folder,
    )


def test_what_was_measured_is_laid_out_call_by_call() -> None:
    measure("narrow")
    split = split_of("narrow")
    run = run_in("narrow")
    assert run is not None
    timeline = measured(split, run)
    assert timeline is not None
    by = Counter(one.category for one in timeline.slices)
    count = len(split.traffic.calls)
    assert by["call"] == by["remote"] == count
    assert by["home"] == count + 1  # and what comes after the last call
    assert by["transfer"] == count + count // 2
    whole = sum(call.call_seconds for call in run.calls) + run.home_seconds
    assert timeline.seconds == pytest.approx(whole)
    calls = {one.arguments["call_id"]: one for one in timeline.slices if one.category == "call"}
    for one in timeline.slices:
        if one.category in ("remote", "transfer"):
            call = calls[one.arguments["call_id"]]
            assert call.start <= one.start
            assert one.start + one.seconds <= call.start + call.seconds + 1e-9


def test_what_was_measured_of_other_calls_is_left_out(tmp_path: Path) -> None:
    measure("narrow")
    kept = (folder_of("narrow") / "measured_calls.parquet").read_bytes()
    write_files(folder_of("forgets"), {"measured_calls.parquet": kept})
    try:
        assert run_in("forgets") is None
    finally:
        remove_files(folder_of("forgets"), "measured_calls.parquet")


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("case", ["narrow", "two", "offload", "forgets", "home"])
@pytest.mark.few(1)
def test_perfettos_own_sql_gives_the_totals_of_the_tables(case: str, tmp_path: Path) -> None:
    out = tmp_path / "run.pftrace"
    given = NAMED if case != "two" else TWO
    if case == "narrow":
        measure(case)
    devices = [
        part
        for n, text in enumerate(given)
        for part in given[n : n + 2]
        if text in ("--home", "--accel")
    ]
    done("export", "perfetto", folder_of(case), *devices, "--out", out)
    calls, transfers = rows("calls", case), rows("transfers", case)
    (summary,) = rows("summary", case)
    placed = Counter(row["device"] for row in rows("placement", case) if row["device"])
    with asking(out) as ask:
        assert ask("SELECT name FROM stats WHERE severity = 'error' AND value > 0") == []
        names = [row["name"] for row in ask("SELECT name FROM process WHERE pid > 0 ORDER BY pid")]
        assert [name.partition(":")[0].partition(",")[0] for name in names] == (
            ["predicted", "measured"] if case == "narrow" else ["predicted"]
        )
        of_run = (
            "SELECT s.*, t.name AS track FROM slice s JOIN process_track t ON s.track_id = t.id "
            "JOIN process USING (upid) WHERE pid = {}"
        )
        found = {
            row["track"]: row
            for row in ask(
                f"SELECT track, count(*) AS n, sum(dur) AS ns, "
                f"sum(extract_arg(arg_set_id, 'debug.payload_bytes')) AS payload, "
                f"sum(extract_arg(arg_set_id, 'debug.wire_bytes')) AS wire "
                f"FROM ({of_run.format(1)}) WHERE category != 'call' GROUP BY track"
            )
        }
        ways: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in transfers:
            ways[f"{row['src_device']} -> {row['dst_device']}"].append(row)
        assert set(found) == {*placed, *ways}
        for track, moved in ways.items():
            assert found[track]["n"] == len(moved)
            assert found[track]["payload"] == sum(row["payload_bytes"] for row in moved)
            assert found[track]["wire"] == sum(row["wire_bytes"] for row in moved)
            seconds = sum(row["seconds"] for row in moved)
            assert found[track]["ns"] == pytest.approx(seconds * 1e9, abs=len(moved))
        for device, number in placed.items():
            assert found[device]["n"] == number
            seconds = summary["compute_seconds"][device]
            assert found[device]["ns"] == pytest.approx(seconds * 1e9, abs=number)
        (called,) = ask(
            f"SELECT count(*) AS n, "
            f"sum(extract_arg(arg_set_id, 'debug.sent_wire_bytes')) AS sent, "
            f"sum(extract_arg(arg_set_id, 'debug.received_wire_bytes')) AS received "
            f"FROM ({of_run.format(1)}) WHERE category = 'call'"
        )
        assert called["n"] == len(calls) == summary["calls"]
        assert (called["sent"] or 0) == summary["sent_wire_bytes"]
        assert (called["received"] or 0) == summary["received_wire_bytes"]
        low = ask(
            "SELECT t.name, min(value) AS bytes FROM counter c JOIN counter_track t "
            "ON c.track_id = t.id GROUP BY t.name"
        )
        assert {row["name"]: row["bytes"] for row in low} == {
            f"bytes on {device}": size
            for device, size in summary["resident_bytes"].items()
            if device in split_of(case).used
        }
        flows = ask(
            "SELECT extract_arg(o.arg_set_id, 'debug.op_id') AS src, "
            "extract_arg(o.arg_set_id, 'debug.transfer_id') AS by_src, "
            "extract_arg(i.arg_set_id, 'debug.op_id') AS dst, "
            "extract_arg(i.arg_set_id, 'debug.transfer_id') AS by_dst "
            "FROM flow JOIN slice o ON slice_out = o.id JOIN slice i ON slice_in = i.id"
        )
        if case == "narrow":
            (took,) = ask(
                f"SELECT sum(dur) AS ns, count(*) AS n FROM ({of_run.format(2)}) "
                "WHERE category = 'call'"
            )
            seconds = sum(row["call_seconds"] for row in rows("measured_calls", case))
            assert took["n"] == len(calls)
            assert took["ns"] == pytest.approx(seconds * 1e9, abs=len(calls))
    # Along each cut edge: an op, the transfers of its tensor, the op that reads it.
    onward: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for row in flows:
        src = ("op", row["src"]) if row["src"] is not None else ("transfer", row["by_src"])
        dst = ("op", row["dst"]) if row["dst"] is not None else ("transfer", row["by_dst"])
        onward[src].add(dst)

    def reached(op: int) -> set[int]:
        front, seen = [("op", op)], set()
        while front:
            for step in onward[front.pop()]:
                if step not in seen:
                    seen.add(step)
                    front += [step] if step[0] == "transfer" else []
        return {number for what, number in seen if what == "op"}

    edges = cut_edges(split_of(case))
    assert (len(edges) > 0) == (case != "home")
    for src, dst in edges:
        assert dst in reached(src)


def test_a_trace_is_the_same_each_time_and_without_a_trace_processor_too(tmp_path: Path) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    for name in ("one", "two"):
        done("export", "perfetto", folder_of("offload"), *DESCRIBED, "--out", tmp_path / name)
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    trace = Trace.FromString(data)
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    assert [p.timestamp for p in events] == sorted(p.timestamp for p in events)
    depth: Counter[int] = Counter()
    for packet in events:
        kind = packet.track_event.type
        if kind in (1, 2):  # a slice begins, ends
            depth[packet.track_event.track_uuid] += 1 if kind == 1 else -1
            assert depth[packet.track_event.track_uuid] in (0, 1)
    assert set(depth.values()) == {0}


# --- graphs ---------------------------------------------------------------------------------------


def plain(graph: "nx.MultiDiGraph[Any]") -> tuple[dict[Any, Any], list[Any]]:
    return dict(graph.nodes(data=True)), sorted(graph.edges(keys=True, data=True), key=repr)


@pytest.mark.parametrize("placed", [True, False])
def test_graphml_is_read_back_by_networkx_as_it_was(placed: bool) -> None:
    split = split_of("offload")
    text = graphml(split.graph, split if placed else None)
    back = nx.parse_graphml(text, node_type=int, edge_key_type=int, force_multigraph=True)
    ours = as_networkx(split.graph, split if placed else None)
    assert plain(back) == plain(ours)
    assert back.graph["model"] == "llama-3.2-1b"
    cut = {(src, dst) for src, dst, said in back.edges(data="cut") if said}
    assert cut == (cut_edges(split) if placed else set())
    assert sum(said["flops"] for _, said in back.nodes(data=True)) == sum(
        op.cost.flops or 0 for op in split.graph.ops
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dot_is_read_back_by_pydot_as_it_was(tmp_path: Path) -> None:
    import pydot

    split = split_of("offload")
    (back,) = pydot.graph_from_dot_data(dot(split.graph, split)) or ()
    nodes = {node.get_name(): node.get_attributes() for node in back.get_nodes()}
    for op in split.graph.ops:
        said = nodes[str(op.id)]
        assert said["op"] == f'"{op.name}"'
        assert int(said["read_bytes"]) == op.cost.read_bytes
        assert said.get("device") == (
            None if (d := split.placement.devices[op.id]) is None else f'"{d}"'
        )
    edges = Counter(
        (int(e.get_source()), int(e.get_destination()), int(e.get_attributes()["tensor_id"]))
        for e in back.get_edges()
    )
    assert edges == Counter(
        (e.src, e.dst, e.tensor) for e in split.graph.edges if e.src is not None
    )
    red = {
        (int(e.get_source()), int(e.get_destination()))
        for e in back.get_edges()
        if "penwidth" in e.get_attributes()
    }
    assert red == cut_edges(split)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dot_quotes_what_a_name_may_hold() -> None:
    import pydot

    from cutedge.exports.graphs import _quoted

    for name in ('a "b"', "back\\slash", "ends in \\", "two\nlines", "semi; [x]"):
        (back,) = pydot.graph_from_dot_data(f"digraph {{ 1 [label={_quoted(name)}]; }}") or ()
        assert back.get_node("1")[0].get_attributes()["label"] == _quoted(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_model_explorers_own_types_hold_the_graph_and_the_node_data() -> None:
    from dacite import Config, from_dict
    from model_explorer.graph_builder import GraphCollection
    from model_explorer.node_data_builder import GraphNodeData, NodeDataResult

    told = json.loads(
        done("export", "model-explorer", folder_of("offload"), "--out", "seen.json", "--json")
    )
    assert [entry["file"] for entry in told["files"]] == [
        "seen.json",
        "seen.flops.json",
        "seen.bytes.json",
        "seen.device.json",
    ]
    split = split_of("offload")
    data = json.loads(Path("seen.json").read_text(encoding="utf-8"))
    (graph,) = from_dict(GraphCollection, data, Config(strict=True)).graphs
    nodes = {node.id: node for node in graph.nodes}
    assert [int(node) for node in nodes] == [op.id for op in split.graph.ops]
    incoming = Counter(
        (edge.sourceNodeId, node.id, edge.targetNodeInputId)
        for node in graph.nodes
        for edge in node.incomingEdges
    )
    assert incoming == Counter(
        (str(e.src), str(e.dst), str(e.arg_index)) for e in split.graph.edges if e.src is not None
    )
    for node in graph.nodes:
        for edge in node.incomingEdges:
            made = {output.id for output in nodes[edge.sourceNodeId].outputsMetadata}
            assert edge.sourceNodeOutputId in made
    assert graph.tasksData is not None
    (overlays,) = graph.tasksData.edgeOverlaysDataListLeftPane
    drawn = {(int(e.sourceNodeId), int(e.targetNodeId)) for o in overlays.overlays for e in o.edges}
    assert drawn == cut_edges(split)

    def laid_over(what: str) -> dict[str, Any]:
        file = json.loads(Path(f"seen.{what}.json").read_text(encoding="utf-8"))
        assert set(file) == {graph.id}
        whole = file[graph.id]
        results = {key: NodeDataResult(**value) for key, value in whole.pop("results").items()}
        assert GraphNodeData(results=results, **whole).name
        assert set(results) <= set(nodes)
        return {key: result.value for key, result in results.items()}

    ops = rows_of_trace("ops")
    assert sum(laid_over("flops").values()) == sum(row["flops"] or 0 for row in ops)
    assert sum(laid_over("bytes").values()) == sum(
        row["read_bytes"] + row["write_bytes"] for row in ops
    )
    assert laid_over("device") == {
        str(row["op_id"]): row["device"] for row in rows("placement", "offload") if row["device"]
    }


# --- tables ---------------------------------------------------------------------------------------


def rows_of_trace(table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.ParquetFile(f"traced/{table}.parquet").read().to_pylist()
    return found


TABLES = ("ops", "tensors", "edges", "placement", "transfers", "calls", "summary")


@pytest.mark.parametrize("table", TABLES)
def test_csv_and_json_are_read_back_equal_to_the_table(table: str, tmp_path: Path) -> None:
    case = folder_of("two")
    place = case if table in ("placement", "transfers", "calls", "summary") else Path("traced")
    file = pq.ParquetFile(place / f"{table}.parquet").read()
    expected = file.to_pylist(maps_as_pydicts="strict")
    for kind, options, reader in (
        ("csv", (), None),
        ("json", (), json.loads),
        ("json", ("--lines",), lambda text: [json.loads(line) for line in text.splitlines()]),
    ):
        out = tmp_path / "written"
        done("export", kind, table, case, *options, "--out", out)
        assert done("export", kind, table, case, *options) == out.read_text(encoding="utf-8")
        if reader is not None:
            assert reader(out.read_text(encoding="utf-8")) == expected
            continue
        nested = {field.name for field in file.schema if "<" in str(field.type)}
        types = {
            field.name: {"string": "VARCHAR", "double": "DOUBLE", "bool": "BOOLEAN"}.get(
                str(field.type), "VARCHAR" if field.name in nested else "BIGINT"
            )
            for field in file.schema
        }
        read = duckdb.read_csv(
            str(out), dtype=types, header=True, allow_quoted_nulls=False, delimiter=","
        )
        assert read.columns == file.column_names
        back = [dict(zip(read.columns, row, strict=True)) for row in read.fetchall()]
        for row in back:
            row |= {name: row[name] and json.loads(row[name]) for name in nested}
        assert back == expected


# --- what goes wrong ------------------------------------------------------------------------------

WRONG: Mapping[str, tuple[tuple[str, ...], str]] = {
    "several partitions": (("dot", "traced", "--out", "x"), "has 5 partitions: name one"),
    "the same policy twice": (
        ("dot", "traced", "--policy", "offload-linear", "--out", "x"),
        "name the directory of one",
    ),
    "another policy": (("dot", "traced", "--policy", "min-cut", "--out", "x"), "no partition by"),
    "an unknown table": (("csv", "transfer", "traced"), "Did you mean transfers"),
    "a table that is not there": (("csv", "costs", "traced"), "run cost first"),
    "--json of what is printed": (("csv", "ops", "traced", "--json"), "name it with --out"),
    "a device of another name": (
        ("perfetto", "two", "--accel", "c=h100-cc", "--out", "x"),
        "--accel leaves out 'a'",
    ),
    "an unknown device": (("perfetto", "offload", "--accel", "h100", "--out", "x"), "Did you mean"),
    "seconds that are not known": (
        ("perfetto", "offload", "--out", "x"),
        "seconds of ops on tee are not known: say what it is, as in --home tee=tee-tdx",
    ),
    "a link without a bandwidth": (
        ("perfetto", "offload", *DESCRIBED, "--link", "zmq-ipc", "--out", "x"),
        "the link zmq-ipc has no bandwidth",
    ),
    "an op that has no seconds": (
        ("perfetto", "offload", "--home", "chip-8x8", "--accel", "h100-cc", "--out", "x"),
        "chip-8x8 has no seconds for",
    ),
    "a place that is not there": (("dot", "offload", "--out", "no/x"), "cannot write no/x"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_exported_is_said_in_one_line(what: str) -> None:
    args, said = WRONG[what]
    resolved = [str(folder_of(arg)) if arg in CASES else arg for arg in args]
    before = set(Path.cwd().iterdir())
    ran = invoke("export", *resolved)
    assert ran.returncode == (1 if "cannot write" in said else 2)
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert set(Path.cwd().iterdir()) == before


def test_a_trace_without_partitions_is_a_graph_without_devices(tmp_path: Path) -> None:
    for file in ("ops.parquet", "tensors.parquet", "edges.parquet"):
        write_files(tmp_path, {file: Path("traced", file).read_bytes()})
    told = json.loads(done("export", "dot", tmp_path, "--out", tmp_path / "x.dot", "--json"))
    assert told["policy"] is None
    ran = invoke("export", "perfetto", tmp_path, "--out", tmp_path / "x")
    assert ran.returncode == 2
    assert "run partition first" in ran.stderr


def test_with_nothing_to_predict_from_what_was_measured_is_written(tmp_path: Path) -> None:
    measure("narrow")
    out = tmp_path / "x.pftrace"
    ran = invoke("export", "perfetto", folder_of("narrow"), "--out", out, "--json")
    assert [one["name"] for one in json.loads(ran.stdout)["timelines"]] == ["measured"]
    warned = json.loads(ran.stderr)["warning"]
    assert warned.startswith("nothing is predicted: the seconds of ops on tee")


def test_graphs_are_of_one_trace(here: Path) -> None:
    graph: OpGraph = split_of("offload").graph
    assert as_networkx(graph, None).number_of_edges() == sum(
        edge.src is not None for edge in graph.edges
    )
