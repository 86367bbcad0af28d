"""The Parquet tables: what other tools may rely on when they read them."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from costmodels.links import Links, load_link
from partition.accounting import account
from partition.policy import apply_policy, load_policy
from partition.split import Split
from partition.tables import remove_stale, write_partition
from partition.wire_format import WireFormat
from tests.support.inprocess import invoke
from tracer.files import MANIFEST, check_file, write_files
from tracer.graph import OpGraph
from tracer.serde import (
    SCHEMA_VERSION,
    TRACE_TABLES,
    TableError,
    read_trace,
    trace_tables,
    write_trace,
)

# --- the contract ---------------------------------------------------------------------------------

I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
TEXT, FLOAT, BOOL = pa.string(), pa.float64(), pa.bool_()

Column = tuple[str, pa.DataType, str]
"""Name, Arrow type, and ``null`` where a row may have none."""

OF_A_TRACE: list[Column] = [
    ("model", TEXT, ""),
    ("variant", TEXT, ""),
    ("phase", TEXT, ""),
    ("batch", I32, ""),
    ("past", I32, ""),
    ("seq", I32, ""),
    ("trace_id", TEXT, ""),
]
OF_A_PARTITION: list[Column] = [
    ("policy", TEXT, ""),
    ("wire", TEXT, ""),
    ("residency", TEXT, ""),
    ("machine", TEXT, ""),
]
"""What run a row is of, in every row."""

COLUMNS: dict[str, list[Column]] = {
    "ops": [
        ("op_id", I32, ""),
        ("name", TEXT, ""),
        ("target", TEXT, ""),
        ("stack", TEXT, "null"),
        ("kind", TEXT, ""),
        ("module_path", TEXT, ""),
        ("module_type", TEXT, ""),
        ("layer", I32, "null"),
        ("is_constant", BOOL, ""),
        ("is_view", BOOL, ""),
        ("is_identity", BOOL, ""),
        ("dtype", TEXT, "null"),  # the output op makes nothing
        ("extent_expr", TEXT, "null"),  # shapes tell all
        ("arguments", pa.map_(TEXT, TEXT), ""),
        ("gemm_batch", I64, "null"),
        ("gemm_m", I64, "null"),
        ("gemm_n", I64, "null"),
        ("gemm_k", I64, "null"),
        ("flops", I64, "null"),
        ("flops_expr", TEXT, "null"),
        ("causal_flops", I64, "null"),
        ("causal_flops_expr", TEXT, "null"),  # no attention's
        ("flops_status", TEXT, ""),
        ("read_bytes", I64, ""),
        ("write_bytes", I64, ""),
        ("param_bytes", I64, ""),
        ("assumption", TEXT, "null"),  # shapes alone decide
    ],
    "tensors": [
        ("tensor_id", I32, ""),
        ("op_id", I32, "null"),
        ("name", TEXT, ""),
        ("role", TEXT, ""),
        ("label", TEXT, "null"),
        ("dtype", TEXT, ""),
        ("shape", pa.list_(I64), ""),
        ("shape_expr", pa.list_(TEXT), "null"),
        ("bytes", I64, ""),
        ("bytes_expr", TEXT, "null"),
        ("seq_degree", I8, "null"),
        ("alias_of", I32, "null"),
    ],
    "edges": [
        ("src_op", I32, "null"),
        ("dst_op", I32, ""),
        ("tensor_id", I32, ""),
        ("arg_index", I16, ""),
    ],
    "placement": [
        ("op_id", I32, ""),
        ("device", TEXT, "null"),  # constants are on every device that reads them
        ("pinned", BOOL, ""),
        ("reason", TEXT, ""),
        ("weights_at", TEXT, "null"),  # an op without parameters
        ("mask", TEXT, "null"),  # one that is not masked
    ],
    "transfers": [
        ("transfer_id", I32, ""),
        ("tensor_id", I32, ""),
        ("tensor_name", TEXT, ""),
        ("label", TEXT, "null"),
        ("tensor_group", TEXT, ""),
        ("what", TEXT, "null"),  # a constant that all know
        ("secret", BOOL, ""),
        ("src_op", I32, "null"),  # parameters are not made
        ("src_device", TEXT, ""),
        ("dst_device", TEXT, ""),
        ("call_id", I32, ""),
        ("direction", TEXT, ""),
        ("wire_dtype", TEXT, ""),
        ("payload_bytes", I64, ""),
        ("payload_status", TEXT, ""),
        ("mask", TEXT, "null"),  # what crosses as it is
        ("masked_id", I32, "null"),
        ("unmasked_bytes", I64, ""),
        ("packing", TEXT, ""),
        ("plain_bytes", I64, ""),
        ("wire_bytes", I64, ""),
        ("bytes_expr", TEXT, "null"),
        ("seq_degree", I8, "null"),
        ("share", FLOAT, ""),
        ("seconds", FLOAT, "null"),
        ("packing_seconds", FLOAT, "null"),
        ("at_least", BOOL, ""),
        ("joules", FLOAT, "null"),
        ("module_path", TEXT, ""),
        ("stack", TEXT, "null"),
        ("layer", I32, "null"),
    ],
    "calls": [
        ("call_id", I32, ""),
        ("device", TEXT, ""),
        ("label", TEXT, ""),
        ("ops", pa.list_(I32), ""),
        ("sent_payload_bytes", I64, ""),
        ("sent_wire_bytes", I64, ""),
        ("received_payload_bytes", I64, ""),
        ("received_wire_bytes", I64, ""),
        ("seconds", FLOAT, "null"),
        ("at_least", BOOL, ""),
        ("joules", FLOAT, "null"),
    ],
    "summary": [
        ("policy", TEXT, ""),
        ("home", TEXT, ""),
        ("accelerators", pa.list_(TEXT), ""),
        ("link", TEXT, ""),
        ("wire_dtype", TEXT, "null"),
        ("pack", TEXT, "null"),
        ("residency", TEXT, ""),
        ("weights_at", TEXT, ""),
        ("granularity", TEXT, ""),
        ("calls", I32, ""),
        ("transfers", I32, ""),
        ("cut_edges", I32, ""),
        ("sent_payload_bytes", I64, ""),
        ("sent_wire_bytes", I64, ""),
        ("sent_weight_bytes", I64, ""),
        ("received_payload_bytes", I64, ""),
        ("received_wire_bytes", I64, ""),
        ("peer_payload_bytes", I64, ""),
        ("peer_wire_bytes", I64, ""),
        ("total_payload_bytes", I64, ""),
        ("payload_status", TEXT, ""),
        ("plain_payload_bytes", I64, ""),
        ("masked_payload_bytes", I64, ""),
        ("unmasked_payload_bytes", I64, ""),
        ("pad_bytes", I64, ""),
        ("offline_flops", I64, ""),
        ("home_mask_flops", I64, ""),
        ("total_wire_bytes", I64, ""),
        ("total_bytes_expr", TEXT, "null"),
        ("peak_buffer_bytes", I64, ""),
        ("seconds", FLOAT, "null"),
        ("at_least", BOOL, ""),
        ("resident_bytes", pa.map_(TEXT, I64), ""),
        ("coverage", FLOAT, ""),
        ("compute_seconds", pa.map_(TEXT, FLOAT), ""),
        ("home_seconds", FLOAT, "null"),
        ("accelerator_seconds", FLOAT, "null"),
        ("run_seconds", FLOAT, "null"),
        ("seconds_per_token", FLOAT, "null"),
        ("joules", FLOAT, "null"),
        ("home_joules", FLOAT, "null"),
        ("accelerator_joules", FLOAT, "null"),
        ("idle_joules", FLOAT, "null"),
        ("run_joules", FLOAT, "null"),
        ("joules_per_token", FLOAT, "null"),
        ("energy_at_least", BOOL, ""),
        ("link_bound_chips", I64, "null"),
        ("many_chips_seconds", FLOAT, "null"),
        ("objective", TEXT, "null"),
        ("objective_value", I64, "null"),
        ("objective_bound", I64, "null"),
        ("objective_unit", TEXT, "null"),
        ("granularity_price", I64, "null"),
        ("optimal", pa.bool_(), "null"),
        ("solver", TEXT, "null"),
        ("cut", TEXT, "null"),
        ("cycles", pa.map_(TEXT, I64), ""),
        ("array_options", TEXT, "null"),
        ("engine", TEXT, "null"),
        ("execution", TEXT, "null"),
        ("seen", pa.map_(TEXT, pa.map_(TEXT, TEXT)), ""),
    ],
}

TRACE = ("ops", "tensors", "edges")
PARTITION = ("placement", "transfers", "calls", "summary")

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int64": 8, "bool": 1}
"""Of the dtypes in the traces here."""

# --- what the tests read --------------------------------------------------------------------------

EDGE_10M = ("trace", "edge-10m", "--seq", "8")
PLACE = "cutedge-out/model=edge-10m/variant=default/phase=prefill/batch=1/past=0/seq=8"
MACHINE = "machine=tee+gpu@zmq-ipc"
VARIANTS = {
    "policy=offload-linear/wire=float32/residency=run/machine=tee+gpu@zmq-ipc": (
        "--policy",
        "offload-linear",
    ),
    "policy=fuse-attention/wire=bfloat16/residency=run/machine=tee+gpu@zmq-ipc": (
        "--policy",
        "fuse-attention",
        "--wire-dtype",
        "bfloat16",
    ),
    "policy=offload-linear/wire=float32/residency=call/machine=tee+gpu@zmq-ipc": (
        "--policy",
        "offload-linear",
        "--residency",
        "call",
    ),
    "policy=all-home/wire=float32/residency=run/machine=tee+gpu@zmq-ipc": ("--policy", "all-home"),
}


def command(*args: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; what it said on stderr."""
    with chdir(cwd):
        done = invoke(*map(str, args))
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A directory where a user traced edge-10m and partitioned it in some ways."""
    folder = tmp_path_factory.mktemp("workspace")
    command(*EDGE_10M, cwd=folder)
    for options in VARIANTS.values():
        command("partition", *options, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trace(workspace) -> Path:
    return workspace / PLACE


@pytest.fixture
def copy(workspace, tmp_path) -> Path:
    """A workspace that a test may change."""
    return Path(shutil.copytree(workspace, tmp_path / "copy"))


Ask = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="module", params=VARIANTS)
def ask(request, trace) -> Ask:
    """SQL over the tables of a partition and its trace, for each partition in turn."""
    connection = duckdb.connect()
    for folder, tables in ((trace, TRACE), (trace / request.param, PARTITION)):
        for name in tables:
            connection.execute(
                f"CREATE VIEW {name} AS SELECT * FROM "
                f"read_parquet('{folder / name}.parquet', hive_partitioning = false)"
            )
    return lambda sql: connection.execute(sql).fetchall()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parquet_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.parquet")):
        yield path.stem, path


def partition_of(graph: OpGraph, trace_id: str, **changes: Any) -> Split:
    placement = apply_policy(
        graph, load_policy("offload-linear"), home="tee", accelerators=("gpu",)
    )
    links = Links(load_link("zmq-ipc"))
    made = Split(
        graph,
        trace_id,
        "offload-linear",
        placement,
        account(graph, placement, links),
        links.name,
        links,
        WireFormat(),
        "run",
    )
    return replace(made, **changes)


# --- schemas --------------------------------------------------------------------------------------


def test_the_files_are_those_of_the_contract(trace):
    expected = {MANIFEST, "reach.json", *(f"{name}.parquet" for name in TRACE)}
    expected |= {f"{place}/{name}.parquet" for place in VARIANTS for name in PARTITION}
    expected |= {f"{place}/{MANIFEST}" for place in VARIANTS}
    assert set(files(trace)) == expected
    for name in expected:
        if not name.endswith(MANIFEST):
            check_file(trace / name)


@pytest.mark.parametrize("table", COLUMNS)
def test_columns_in_order_with_their_types(trace, table):
    found = [path for name, path in parquet_files(trace) if name == table]
    assert len(found) == (1 if table in TRACE else len(VARIANTS))
    for path in found:
        schema = pq.read_schema(path)
        columns = [(f.name, f.type, "null" if f.nullable else "") for f in schema]
        own = [name for name, *_ in COLUMNS[table]]
        run = OF_A_TRACE if table in TRACE else [*OF_A_TRACE, *OF_A_PARTITION]
        assert columns[: len(own)] == COLUMNS[table]
        assert all((field.metadata or {}).get(b"description") for field in schema)
        assert sorted(columns[len(own) :]) == sorted(c for c in run if c[0] not in own)


@pytest.mark.slow
def test_runs_that_differ_in_anything_lie_apart_and_say_in_each_row_what_they_are(copy):
    """Another dtype, field, machine: no result replaces another, and one glob reads them all."""
    on = ("--home", "tee-tdx", "--accel", "a=rtx-4090", "--link", "pcie4-x16")
    command("partition", *on, cwd=copy)
    command(
        "partition", "--home", "tee-tdx", "--accel", "a=h100-sxm", "--link", "pcie4-x16", cwd=copy
    )
    command(*EDGE_10M, "--set", "num_hidden_layers=2", cwd=copy)
    command(*EDGE_10M, "--dtype", "bfloat16", "--out", "cutedge-out/half", cwd=copy)
    command("partition", "cutedge-out/half", "--residency", "call", cwd=copy)
    with chdir(copy):
        everything = "read_parquet('cutedge-out/**/{}.parquet', union_by_name = true)"
        runs = duckdb.sql(
            f"SELECT DISTINCT variant, policy, wire, residency, machine FROM "
            f"{everything.format('summary')} ORDER BY ALL"
        ).fetchall()
        variants = duckdb.sql(
            f"SELECT DISTINCT model, variant, batch, seq, past FROM {everything.format('ops')} "
            "ORDER BY ALL"
        ).fetchall()
        said = invoke("query", "--all", "SELECT count(DISTINCT machine) AS n FROM transfers")
        together = pads.dataset(
            [str(path) for path in Path("cutedge-out").rglob("calls.parquet")]
        ).to_table()
    assert variants == [
        ("edge-10m", name, 1, 8, 0) for name in ("bfloat16", "default", "num_hidden_layers=2")
    ]
    plain = "tee+gpu@zmq-ipc"
    assert runs == [
        ("bfloat16", "offload-linear", "bfloat16", "call", plain),
        ("default", "all-home", "float32", "run", plain),
        ("default", "fuse-attention", "bfloat16", "run", plain),
        ("default", "offload-linear", "float32", "call", plain),
        ("default", "offload-linear", "float32", "run", plain),
        ("default", "offload-linear", "float32", "run", "tee-tdx+a=h100-sxm@pcie4-x16"),
        ("default", "offload-linear", "float32", "run", "tee-tdx+a=rtx-4090@pcie4-x16"),
    ]
    assert said.stdout.split() == ["n", "3"]
    assert set(together["machine"].to_pylist()) == {machine for *_, machine in runs}


def test_tables_are_compressed_with_zstd(trace):
    for _, path in parquet_files(trace):
        group = pq.read_metadata(path).row_group(0)
        assert {group.column(n).compression for n in range(group.num_columns)} == {"ZSTD"}


@pytest.mark.parametrize("table", COLUMNS)
def test_no_null_where_the_schema_says_so(ask, table):
    required = [name for name, _, null in COLUMNS[table] if not null]
    counts = ", ".join(f'count(*) FILTER ("{name}" IS NULL)' for name in required)
    (nulls,) = ask(f"SELECT {counts} FROM {table}")
    assert dict(zip(required, nulls, strict=True)) == dict.fromkeys(required, 0)


METADATA = {
    "schema_version": SCHEMA_VERSION,
    "model": "edge-10m",
    "phase": "prefill",
    "batch": "1",
    "seq": "8",
    "past": "0",
    "dtype": "float32",
}


@pytest.mark.parametrize("table", COLUMNS)
def test_each_file_says_what_it_is_of(trace, table):
    ids = set()
    for name, path in parquet_files(trace):
        metadata = {k.decode(): v.decode() for k, v in pq.read_schema(path).metadata.items()}
        ids.add(metadata["trace_id"])
        if name == table:
            assert {key: metadata.get(key) for key in METADATA} == METADATA
            versions = dict(json.loads(metadata["versions"]))
            assert versions.keys() == {"cutedge", "torch", "transformers"}
            assert all(versions.values())
    assert len(ids) == 1


def test_a_partition_says_how_it_was_made(trace):
    for place, options in VARIANTS.items():
        expected = {
            "policy": options[1],
            "home": "tee",
            "link": "zmq-ipc",
            "accelerators": "[]" if "all-home" in options else '["gpu"]',
            "wire_dtype": "bfloat16" if "bfloat16" in options else "float32",
            "residency": "call" if "call" in options else "run",
        }
        for table in PARTITION:
            schema = pq.read_schema(trace / place / f"{table}.parquet")
            metadata = {k.decode(): v.decode() for k, v in schema.metadata.items()}
            assert {key: metadata[key] for key in expected} == expected


# --- round trip -----------------------------------------------------------------------------------

CONCRETE = {"symbolic": False}
TRACES: dict[str, dict[str, Any]] = {
    "symbolic": {},
    "concrete": CONCRETE,
    "bfloat16": {"dtype": "bfloat16", "overrides": {"num_hidden_layers": 1}},
}


@pytest.mark.parametrize("options", TRACES.values(), ids=TRACES.keys())
@pytest.mark.few(2)
def test_a_trace_reads_back_as_it_was(traced, tmp_path, options):
    graph = traced("edge-10m", seq=8, **options)
    trace_id = write_trace(graph, tmp_path / "a" / "new folder")
    read, read_id = read_trace(tmp_path / "a" / "new folder")
    assert (read.meta, read_id) == (graph.meta, trace_id)
    assert read.ops == graph.ops
    assert read.tensors == graph.tensors
    assert read.edges == graph.edges


@pytest.mark.parametrize("count", [1000, 1001, 2500])
def test_a_trace_id_is_the_hash_of_all_rows_as_json(traced, count):
    """However many there are: the text is made some rows at a time."""
    graph = traced("edge-10m", seq=8)
    unread = replace(graph.tensors[0], op=None, name="unread", alias_of=None)
    more = [replace(unread, id=number) for number in range(len(graph.tensors), count)]
    graph = OpGraph(graph.meta, graph.ops, [*graph.tensors, *more], graph.edges)
    tables, trace_id = trace_tables(graph)
    rows = {
        name: [[*row.values()] for row in tables[name].select(schema.names).to_pylist()]
        for name, schema in TRACE_TABLES.items()
    }
    assert len(rows["tensors"]) == count
    storage = ("weights", "weights_other", "kv_dtype")
    meta = {k: v for k, v in asdict(graph.meta).items() if v or k not in storage}
    text = json.dumps([meta, rows])
    assert trace_id == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.slow
def test_traces_of_other_models_have_other_ids(traced, tmp_path):
    ids = {write_trace(traced("edge-10m", seq=8, **o), tmp_path) for o in TRACES.values()}
    assert len(ids) == len(TRACES)


@pytest.mark.parametrize(
    ("options", "known"), [({}, True), (CONCRETE, False)], ids=["symbolic", "concrete"]
)
def test_formulas_are_null_in_a_concrete_trace_alone(traced, tmp_path, options, known):
    graph = traced("edge-10m", seq=8, **options)
    write_partition(partition_of(graph, write_trace(graph, tmp_path)), tmp_path)
    place = next(tmp_path.glob("policy=*/*/*/*"))
    for folder, table, column in (
        (tmp_path, "ops", "flops_expr"),
        (tmp_path, "tensors", "shape_expr"),
        (tmp_path, "tensors", "bytes_expr"),
        (tmp_path, "tensors", "seq_degree"),
        (place, "transfers", "bytes_expr"),
        (place, "transfers", "seq_degree"),
        (place, "summary", "total_bytes_expr"),
    ):
        values = pq.read_table(folder / f"{table}.parquet", partitioning=None)[column].to_pylist()
        assert values
        if known:
            assert None not in values
        else:
            assert set(values) == {None}


def test_a_concrete_trace_has_the_sizes_of_the_symbolic_one(traced):
    symbolic, concrete = traced("edge-10m", seq=8), traced("edge-10m", seq=8, **CONCRETE)
    assert concrete.meta.symbolic == ()
    made = [
        [(t.dtype, t.shape, t.bytes) for t in g.tensors if t.label] for g in (symbolic, concrete)
    ]
    assert made[0] == made[1] != []


# --- the same again -------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(run, trace, tmp_path):
    """Another process, another folder, another hash seed: what the fixture has written."""
    place = tmp_path / "elsewhere"
    narrow = next(options for folder, options in VARIANTS.items() if "bfloat16" in folder)
    for again in (run(*EDGE_10M, "--out", place), run("partition", place, *narrow)):
        assert again.returncode == 0, again.stderr
    written, expected = files(place), files(trace)
    assert len(written) > len(TRACE) + len(PARTITION)
    assert [name for name in written if written[name] != expected[name]] == []


@pytest.mark.slow
def test_tracing_the_same_again_keeps_partitions_and_other_options_remove_them(copy):
    """The partitions of another trace would join with ops that they do not belong to."""
    before = files(copy)
    assert "removed" not in command(*EDGE_10M, cwd=copy)
    assert files(copy) == before

    said = command(*EDGE_10M, "--dtype", "bfloat16", "--out", PLACE, cwd=copy)
    assert "removed what was made from the trace before" in said
    for policy in ("all-home", "fuse-attention", "offload-linear"):
        assert policy in said
    trace = copy / PLACE
    assert set(files(trace)) == {MANIFEST, "reach.json", *(f"{name}.parquet" for name in TRACE)}
    assert list(trace.glob("policy=*")) == []
    assert read_trace(trace)[0].meta.dtype == "bfloat16"


def test_what_is_not_cutedges_stays_when_partitions_are_removed(copy):
    trace = copy / PLACE
    notes = trace / "policy=all-home" / "wire=float32" / "residency=run" / MACHINE / "notes.txt"
    notes.write_text("mine")
    assert remove_stale(trace, "another trace") == ["all-home", "fuse-attention", "offload-linear"]
    assert set(files(trace)) == {
        MANIFEST,
        "reach.json",
        *(f"{name}.parquet" for name in TRACE),
        str(notes.relative_to(trace)),
    }
    assert remove_stale(trace, "another trace") == []


def test_the_partitions_of_the_trace_itself_stay(copy):
    trace = copy / PLACE
    before = files(trace)
    assert remove_stale(trace, read_trace(trace)[1]) == []
    assert files(trace) == before


# --- SQL over the tables --------------------------------------------------------------------------

IDS = {
    "tensors.op_id": ("SELECT op_id FROM tensors WHERE op_id IS NOT NULL", "ops", "op_id"),
    "tensors.alias_of": (
        "SELECT alias_of FROM tensors WHERE alias_of IS NOT NULL",
        "tensors",
        "tensor_id",
    ),
    "edges.src_op": ("SELECT src_op FROM edges WHERE src_op IS NOT NULL", "ops", "op_id"),
    "edges.dst_op": ("SELECT dst_op FROM edges", "ops", "op_id"),
    "edges.tensor_id": ("SELECT tensor_id FROM edges", "tensors", "tensor_id"),
    "placement.op_id": ("SELECT op_id FROM placement", "ops", "op_id"),
    "transfers.src_op": ("SELECT src_op FROM transfers", "ops", "op_id"),
    "transfers.tensor_id": ("SELECT tensor_id FROM transfers", "tensors", "tensor_id"),
    "transfers.call_id": ("SELECT call_id FROM transfers", "calls", "call_id"),
    "calls.ops": ("SELECT unnest(ops) FROM calls", "ops", "op_id"),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_ids_name_rows(ask, ids):
    select, table, key = ids
    assert ask(f"FROM ({select}) AS used(id) WHERE id NOT IN (SELECT {key} FROM {table})") == []


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("ops", "op_id"),
        ("tensors", "tensor_id"),
        ("placement", "op_id"),
        ("transfers", "transfer_id"),
        ("calls", "call_id"),
    ],
)
def test_ids_are_the_numbers_of_the_rows(ask, table, key):
    ids = [row[0] for row in ask(f"SELECT {key} FROM {table}")]
    assert ids == list(range(len(ids)))


NOTHING: dict[str, str] = {
    "an edge starts at its tensor's producer": """
        FROM edges JOIN tensors USING (tensor_id) WHERE src_op IS DISTINCT FROM op_id""",
    "an edge goes forward": "FROM edges WHERE src_op >= dst_op",
    "each argument of an op has one edge": """
        SELECT dst_op, arg_index FROM edges GROUP BY ALL HAVING count(*) > 1""",
    "an alias is of the tensor that owns the memory": """
        FROM tensors t JOIN tensors o ON t.alias_of = o.tensor_id WHERE o.alias_of IS NOT NULL""",
    "a placed op is no constant": """
        FROM placement JOIN ops USING (op_id) WHERE is_constant <> (device IS NULL)""",
    "a transfer's tensor is made by its op": """
        FROM transfers JOIN tensors USING (tensor_id)
        WHERE src_op IS DISTINCT FROM op_id OR tensor_name <> name
           OR transfers.label IS DISTINCT FROM tensors.label""",
    "a transfer's place in the model is its op's": """
        FROM transfers t JOIN ops ON src_op = op_id
        WHERE t.module_path <> ops.module_path OR t.layer IS DISTINCT FROM ops.layer
           OR t.stack IS DISTINCT FROM ops.stack""",
    "a transfer goes between two devices": "FROM transfers WHERE src_device = dst_device",
    "the direction is the one from or to home": """
        FROM transfers, summary
        WHERE direction <> CASE home WHEN src_device THEN 'send' WHEN dst_device THEN 'receive'
                           ELSE 'peer' END""",
    "a call's ops are on its device": """
        FROM (SELECT device AS d, unnest(ops) AS op_id FROM calls) JOIN placement USING (op_id)
        WHERE d IS DISTINCT FROM device""",
    "an op away from home is in one call": """
        FROM placement, summary WHERE device <> home
        AND op_id NOT IN (SELECT unnest(ops) FROM calls)""",
    "no op is in two calls": """
        SELECT op FROM (SELECT unnest(ops) AS op FROM calls) GROUP BY op HAVING count(*) > 1""",
    "a constant and its tensor do not cross": """
        FROM transfers JOIN ops ON src_op = op_id WHERE is_constant""",
    "wire bytes are payload and framing": "FROM transfers WHERE wire_bytes < payload_bytes",
    "seconds are not known yet": "FROM transfers WHERE seconds IS NOT NULL",
}


@pytest.mark.parametrize("wrong", NOTHING.values(), ids=NOTHING.keys())
def test_no_row_contradicts_another_table(ask, wrong):
    assert ask(wrong) == []


SIZES = " ".join(f"WHEN '{dtype}' THEN {size}" for dtype, size in ITEM_BYTES.items())


def test_bytes_are_elements_times_the_item_size(ask):
    """Of every tensor, from its row alone; a tensor without axes has one element."""
    wrong = ask(f"""
        SELECT name, dtype, shape, bytes FROM tensors
        WHERE bytes IS DISTINCT FROM
            coalesce(list_product(shape), 1)::BIGINT * CASE dtype {SIZES} END""")
    assert wrong == []
    assert ask("SELECT count(*) > 100 FROM tensors WHERE bytes > 0") == [(True,)]


def test_payload_is_elements_times_the_item_size_on_the_wire(ask):
    wrong = ask(f"""
        FROM transfers JOIN tensors USING (tensor_id)
        WHERE payload_bytes IS DISTINCT FROM
            coalesce(list_product(shape), 1)::BIGINT * CASE wire_dtype {SIZES} END""")
    assert wrong == []


@pytest.mark.parametrize("kind", ["payload", "wire"])
def test_transfers_calls_and_summary_add_up_to_the_same(ask, kind):
    directions = ask(f"""
        SELECT coalesce(sum({kind}_bytes) FILTER (direction = 'send'), 0),
               coalesce(sum({kind}_bytes) FILTER (direction = 'receive'), 0),
               coalesce(sum({kind}_bytes) FILTER (direction = 'peer'), 0),
               coalesce(sum({kind}_bytes), 0)
        FROM transfers""")
    assert directions == ask(f"""
        SELECT sent_{kind}_bytes, received_{kind}_bytes, peer_{kind}_bytes, total_{kind}_bytes
        FROM summary""")
    calls = ask(f"""
        SELECT coalesce(sum(sent_{kind}_bytes), 0), coalesce(sum(received_{kind}_bytes), 0),
               coalesce(sum(sent_{kind}_bytes + received_{kind}_bytes), 0)
        FROM calls""")
    # no peers here: all goes through home
    assert calls == ask(f"""
        SELECT sent_{kind}_bytes, received_{kind}_bytes, total_{kind}_bytes FROM summary""")


@pytest.mark.parametrize("kind", ["payload", "wire"])
def test_a_call_is_the_sum_of_its_transfers(ask, kind):
    wrong = ask(f"""
        SELECT call_id FROM calls LEFT JOIN transfers USING (call_id)
        GROUP BY call_id, sent_{kind}_bytes, received_{kind}_bytes
        HAVING coalesce(sum({kind}_bytes) FILTER (direction = 'send'), 0) <> sent_{kind}_bytes
            OR coalesce(sum({kind}_bytes) FILTER (direction = 'receive'), 0)
               <> received_{kind}_bytes""")
    assert wrong == []


def test_the_summary_is_one_row_that_counts_the_others(ask):
    assert ask("SELECT calls, transfers FROM summary") == ask(
        "SELECT (SELECT count(*) FROM calls), (SELECT count(*) FROM transfers)"
    )
    # an edge is cut when its ends are on two devices; constants have none
    assert ask("SELECT cut_edges FROM summary") == ask("""
        SELECT count(*) FROM edges
        JOIN placement a ON src_op = a.op_id JOIN placement b ON dst_op = b.op_id
        WHERE a.device <> b.device""")


def test_shares_add_to_one(ask):
    ((total, bytes_),) = ask("SELECT coalesce(sum(share), 0), sum(payload_bytes) FROM transfers")
    assert total == pytest.approx(1 if bytes_ else 0)
    assert (
        ask("""
        SELECT transfer_id FROM transfers, summary
        WHERE abs(share * total_payload_bytes - payload_bytes) > 1e-6 * payload_bytes""")
        == []
    )


# --- partitions as columns ------------------------------------------------------------------------


def test_the_folders_are_columns_for_duckdb(workspace):
    rows = duckdb.execute(
        """SELECT DISTINCT model, phase, batch, past, seq, policy, wire, residency
           FROM read_parquet(?, hive_partitioning = true)""",
        [f"{workspace}/cutedge-out/**/transfers.parquet"],
    ).fetchall()
    assert set(rows) == {
        ("edge-10m", "prefill", 1, 0, 8, policy, wire, residency)
        for policy, wire, residency in (
            # all-home has no transfer, and so no row
            ("offload-linear", "float32", "run"),
            ("fuse-attention", "bfloat16", "run"),
            ("offload-linear", "float32", "call"),
        )
    }


def test_the_folders_agree_with_the_summaries(workspace):
    """Where a file has a column of the same name, its values are the folder's."""
    for path in (workspace / PLACE).rglob("summary.parquet"):
        (row,) = pq.read_table(path, partitioning=None).to_pylist()
        folder = dict(part.split("=") for part in path.parent.parts if "=" in part)
        assert (row["policy"], row["residency"]) == (folder["policy"], folder["residency"])
        assert folder["wire"] == (row["wire_dtype"] or "float32")
    counted = duckdb.execute(
        """SELECT policy, residency, wire, model, seq, total_payload_bytes > 0
           FROM read_parquet(?, hive_partitioning = true)""",
        [f"{workspace}/cutedge-out/**/summary.parquet"],
    ).fetchall()
    assert sorted(counted) == [
        ("all-home", "run", "float32", "edge-10m", 8, False),
        ("fuse-attention", "run", "bfloat16", "edge-10m", 8, True),
        ("offload-linear", "call", "float32", "edge-10m", 8, True),
        ("offload-linear", "run", "float32", "edge-10m", 8, True),
    ]


# --- when writing or reading fails ----------------------------------------------------------------


def fail_at(monkeypatch: pytest.MonkeyPatch, turn: int) -> list[Path]:
    """The disk is full in the ``turn``-th table; the files that were begun."""
    begun: list[Path] = []
    real = Path.open

    class Full:
        def __init__(self, handle: IO[bytes]) -> None:
            self.handle = handle

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.handle.close()

        def write(self, data: bytes) -> None:
            self.handle.write(b"PAR1 and then nothing")
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        handle = real(path, mode, *args, **options)
        if mode != "xb":
            return handle
        begun.append(path)
        return Full(handle) if len(begun) == turn else handle

    monkeypatch.setattr(Path, "open", opened)
    return begun


@pytest.mark.parametrize("turn", range(1, len(TRACE) + 1))
def test_a_trace_that_cannot_be_written_leaves_the_old_one(traced, tmp_path, monkeypatch, turn):
    write_trace(traced("edge-10m", seq=8), tmp_path)
    before = files(tmp_path)
    begun = fail_at(monkeypatch, turn)
    with pytest.raises(TableError, match="No space left on device") as caught:
        write_trace(traced("edge-10m", seq=8, **CONCRETE), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(begun) == turn
    assert files(tmp_path) == before


@pytest.mark.parametrize("turn", range(1, len(TRACE) + 1))
def test_a_first_trace_that_cannot_be_written_leaves_no_file(traced, tmp_path, monkeypatch, turn):
    fail_at(monkeypatch, turn)
    with pytest.raises(TableError, match="No space left on device"):
        write_trace(traced("edge-10m", seq=8), tmp_path / "new" / "place")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turn", range(1, len(PARTITION) + 1))
def test_a_partition_that_cannot_be_written_leaves_the_old_one(traced, tmp_path, monkeypatch, turn):
    graph = traced("edge-10m", seq=8)
    write_partition(partition_of(graph, "one"), tmp_path)
    before = files(tmp_path)
    begun = fail_at(monkeypatch, turn)
    with pytest.raises(TableError, match="No space left on device"):
        write_partition(partition_of(graph, "other"), tmp_path)
    assert len(begun) == turn
    assert files(tmp_path) == before


def test_a_folder_that_is_a_file_cannot_be_written(traced, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(TableError, match="taken"):
        write_trace(traced("edge-10m", seq=8), tmp_path / "taken")
    assert files(tmp_path) == {"taken": b"mine"}


def without_a_table(folder: Path) -> None:
    (folder / "edges.parquet").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "tensors.parquet"
    path.write_bytes(path.read_bytes()[:500])


def of_another_version(folder: Path) -> None:
    change(folder / "ops.parquet", lambda t: t.replace_schema_metadata({"schema_version": "0"}))


def with_other_columns(folder: Path) -> None:
    change(folder / "edges.parquet", lambda t: t.drop_columns(["arg_index"]))


def of_another_trace(folder: Path) -> None:
    def renamed(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({**table.schema.metadata, b"trace_id": b"another"})

    change(folder / "edges.parquet", renamed)


def with_a_row_less(folder: Path) -> None:
    change(folder / "ops.parquet", lambda t: t.slice(1))


def with_an_alias_of_nothing(folder: Path) -> None:
    def changed(table: pa.Table) -> pa.Table:
        at = table.column_names.index("alias_of")
        aliases = pa.array([10**6] * table.num_rows, I32)
        return table.set_column(at, table.schema.field(at), aliases)

    change(folder / "tensors.parquet", changed)


def change(path: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(how(pq.read_table(path, partitioning=None)), sink)
    write_files(path.parent, {path.name: sink.getvalue().to_pybytes()})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "no such directory"),
        (without_a_table, "edges.parquet is missing"),
        (cut_short, "tensors.parquet is damaged"),
        (of_another_version, "ops.parquet has schema version 0"),
        (with_other_columns, "edges.parquet does not have the columns"),
        (of_another_trace, "tables of different traces"),
        (with_a_row_less, "is damaged"),
        (with_an_alias_of_nothing, "is damaged"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_trace_that_cannot_be_used_is_named(traced, tmp_path, damage, says):
    folder = tmp_path / "trace"
    write_trace(traced("edge-10m", seq=8), folder)
    damage(folder)
    with pytest.raises(TableError, match=says) as caught:
        read_trace(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.slow
def test_a_process_that_has_read_a_table_ends_well(tmp_path):
    """Arrow's threads let go of what they read late: where it was Python's, one in 20 aborted."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": list(range(100)), "of": [{"a": 1}] * 100}), path)
    code = (
        "import sys; from pathlib import Path; from tracer.serde import read_file;"
        "read_file(Path(sys.argv[1])).to_pylist()"
    )
    for _ in range(150):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
