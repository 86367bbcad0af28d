"""The trace on disk: ops, tensors and edges as Parquet, and how every table is written.

All files of one trace carry the same ``trace_id``, a hash of its rows: a mixture of two traces, or
a row that is not what was traced, is noticed. Files are written under a temporary name and renamed:
no reader ever sees half a table, and a failed write leaves what was there before.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tracer.errors import CutedgeError, InputError
from tracer.files import check_bytes, open_file, parse_json, write_files
from tracer.graph import (
    ITEM_BYTES,
    Edge,
    Gemm,
    GraphError,
    Kind,
    Op,
    OpCost,
    OpGraph,
    Role,
    Status,
    Tensor,
    TraceMeta,
)
from tracer.interrupts import uninterrupted
from tracer.reach import Reach
from tracer.stages import stage
from tracer.summary import variant_of

SCHEMA_VERSION = "7"
"""Version of all tables; a reader refuses any other."""


def column(name: str, kind: pa.DataType, about: str, *, null: bool = False) -> pa.Field:
    """A column of a table, with what it says in its metadata; with ``null`` it may have no value.

    >>> column("seconds", pa.float64(), "Of all transfers.", null=True).metadata
    {b'description': b'Of all transfers.'}
    """
    return pa.field(name, kind, nullable=null, metadata={"description": about})


def description(column: pa.Field) -> str:
    """What a column says."""
    return str(column.metadata[b"description"].decode())


OPS = pa.schema(
    [
        column(
            "op_id",
            pa.int32(),
            "Position in the order of execution, from 0; joins with `edges`, `placement`, `costs` and "
            "`calls.ops`.",
        ),
        column(
            "name",
            pa.string(),
            "The target's base name with a running number (`linear_3`), unique in the graph.",
        ),
        column(
            "target",
            pa.string(),
            "The ATen overload (`aten.linear.default`), or `input` / `output`.",
        ),
        column(
            "stack",
            pa.string(),
            "Path of the list of blocks that the op is in (`model.layers`), the outermost of several; "
            "null outside of all.",
            null=True,
        ),
        column(
            "kind",
            pa.string(),
            "What the op does: linear, matmul, attention, softmax, norm, embedding, elementwise, "
            "reduction, copy, view, constant, input, output or other.",
        ),
        column(
            "module_path",
            pa.string(),
            "The module whose code called it (`model.layers.0.mlp`); empty for the model itself.",
        ),
        column("module_type", pa.string(), "The class name of that module (`LlamaMLP`)."),
        column(
            "layer",
            pa.int32(),
            "Which block of `stack` it is in, from 0; null outside of all.",
            null=True,
        ),
        column(
            "is_constant",
            pa.bool_(),
            "Whether it depends on no graph input: it is computed at load on each device that needs "
            "it.",
        ),
        column(
            "is_view", pa.bool_(), "Whether it makes an alias of what it reads and moves no data."
        ),
        column(
            "is_identity",
            pa.bool_(),
            "Whether its arithmetic leaves values as they are: times 1, plus 0.",
        ),
        column(
            "dtype", pa.string(), "The dtype of its (first) result; null for `output`.", null=True
        ),
        column(
            "extent_expr",
            pa.string(),
            "Of the products and the softmax of an attention: the pairs of query and key that its mask "
            "lets through, in one sequence and head, as a formula; null elsewhere and where that is "
            "not known.",
            null=True,
        ),
        column(
            "arguments",
            pa.map_(pa.string(), pa.string()),
            "What it is told beside its tensors that may decide how much it does: name -> JSON, "
            "without defaults.",
        ),
        column(
            "gemm_batch",
            pa.int64(),
            "Of a matrix product [batch, m, k] x [batch, k, n]: the number of products; null for other "
            "ops.",
            null=True,
        ),
        column(
            "gemm_m",
            pa.int64(),
            "Of a matrix product: rows of the left matrix and of the result; null for other ops.",
            null=True,
        ),
        column(
            "gemm_n",
            pa.int64(),
            "Of a matrix product: columns of the right matrix and of the result; null for other ops.",
            null=True,
        ),
        column(
            "gemm_k",
            pa.int64(),
            "Of a matrix product: columns of the left matrix, which is the length of each sum; null "
            "for other ops.",
            null=True,
        ),
        column(
            "flops",
            pa.int64(),
            "Floating-point operations, 2 for a multiply-accumulate; null where the status is "
            "unsupported.",
            null=True,
        ),
        column(
            "flops_expr",
            pa.string(),
            "`flops` as a formula in batch, seq, past and source; null in a trace at fixed sizes.",
            null=True,
        ),
        column(
            "causal_flops",
            pa.int64(),
            "Of an op of an attention with an `extent_expr`: `flops` over the pairs that its mask lets "
            "through; null elsewhere.",
            null=True,
        ),
        column(
            "causal_flops_expr",
            pa.string(),
            "`causal_flops` as a formula; null likewise, and in a trace at fixed sizes.",
            null=True,
        ),
        column(
            "flops_status",
            pa.string(),
            "How far the op's figures can be trusted: exact, estimate, zero or unsupported.",
        ),
        column(
            "read_bytes",
            pa.int64(),
            "Bytes that it reads, parameters included, each distinct input once.",
        ),
        column("write_bytes", pa.int64(), "Bytes of all its results."),
        column(
            "param_bytes", pa.int64(), "Bytes of the parameters and buffers among what it reads."
        ),
        column(
            "assumption",
            pa.string(),
            "What is taken to hold of values where figures depend on them (how a router spreads tokens "
            "over experts); null where shapes alone decide.",
            null=True,
        ),
    ]
)

TENSORS = pa.schema(
    [
        column(
            "tensor_id",
            pa.int32(),
            "Position among the tensors, from 0; joins with `edges` and `transfers`.",
        ),
        column(
            "op_id", pa.int32(), "The op that makes it; null for parameters and buffers.", null=True
        ),
        column(
            "name",
            pa.string(),
            "The name of the parameter, buffer or input, else that of the op that makes it.",
        ),
        column(
            "role",
            pa.string(),
            "What it is to the model: input, parameter, buffer, constant, activation, kv_cache or "
            "output.",
        ),
        column(
            "label",
            pa.string(),
            "What it is in an attention (`q`, `k`, `v`, `attention_scores`, `attention_probs`, "
            "`attention_output`), or `logits`; null for all others.",
            null=True,
        ),
        column("dtype", pa.string(), "The dtype of its elements."),
        column("shape", pa.list_(pa.int64()), "Elements along each axis."),
        column(
            "shape_expr",
            pa.list_(pa.string()),
            "`shape` as formulas in batch, seq, past and source; null in a trace at fixed sizes.",
            null=True,
        ),
        column(
            "bytes",
            pa.int64(),
            "Elements times item size, whether or not it shares memory with another tensor.",
        ),
        column(
            "bytes_expr",
            pa.string(),
            "`bytes` as a formula; null in a trace at fixed sizes.",
            null=True,
        ),
        column(
            "seq_degree",
            pa.int8(),
            "The growth order of `bytes` in seq: 0 constant, 1 linear, 2 quadratic; null in a trace at "
            "fixed sizes.",
            null=True,
        ),
        column(
            "alias_of",
            pa.int32(),
            "The tensor whose storage it shares (tied weights, views); null where it has its own.",
            null=True,
        ),
    ]
)

EDGES = pa.schema(
    [
        column(
            "src_op",
            pa.int32(),
            "The op that makes the tensor; null for parameters and buffers.",
            null=True,
        ),
        column("dst_op", pa.int32(), "The op that reads it."),
        column("tensor_id", pa.int32(), "The tensor that flows."),
        column(
            "arg_index", pa.int16(), "Its position among the tensor arguments of `dst_op`, from 0."
        ),
    ]
)

TRACE_TABLES = {"ops": OPS, "tensors": TENSORS, "edges": EDGES}


class TableError(CutedgeError):
    """Tables cannot be read or written."""


# --- any table ------------------------------------------------------------------------------------


Rows = Sequence[Sequence[Any]]
"""Rows in the column order of their schema."""

Columns = Sequence[Sequence[Any]]
"""The values of each column of a schema, in its order."""

RUN = pa.schema(
    [
        column(
            "model", pa.string(), "The preset's name, or the name of the user's config or function."
        ),
        column(
            "variant",
            pa.string(),
            "What differs from the model as it is published, in short (`bfloat16`, "
            "`num_hidden_layers=2`); `default` where nothing does.",
        ),
        column(
            "phase",
            pa.string(),
            "prefill (many new tokens), decode (one over a cache) or encoder (an encoder alone).",
        ),
        column("batch", pa.int32(), "Sequences, or images."),
        column("past", pa.int32(), "Tokens a sequence that are cached already."),
        column("seq", pa.int32(), "New tokens a sequence."),
        column("policy", pa.string(), "The policy that placed the ops."),
        column(
            "wire",
            pa.string(),
            "The dtype that floating tensors cross in; `native` where they cross in several.",
        ),
        column(
            "residency",
            pa.string(),
            "run: a device keeps what it received or made until the run ends; call: an accelerator "
            "keeps weights and cached state alone between calls.",
        ),
        column(
            "machine",
            pa.string(),
            "Devices, links and options of arrays in one text (`tee-tdx+rtx-4090@pcie4-x16`).",
        ),
        column(
            "trace_id",
            pa.string(),
            "Hash of the trace's rows and of what it is a trace of: tables with the same one join.",
        ),
    ]
)
"""The run that a row is of, in every row: any mix of files reads as one data set. Those of a trace
alone have no ``policy``, ``wire``, ``residency`` and ``machine``."""

OF_A_TRACE = pa.schema(
    [mark for mark in RUN if mark.name not in ("policy", "wire", "residency", "machine")]
)


def run_of(graph: OpGraph, trace_id: str, **partition: str) -> dict[str, Any]:
    """The values of ``RUN`` for a trace, or for a partition of it."""
    meta = graph.meta
    return {
        "model": meta.model,
        "variant": variant_of(graph),
        "phase": meta.phase,
        "batch": meta.batch,
        "past": meta.past,
        "seq": meta.seq,
        **partition,
        "trace_id": trace_id,
    }


def make_tables(
    meta: TraceMeta, rows: Mapping[str, tuple[pa.Schema, Rows]], run: Mapping[str, Any]
) -> dict[str, pa.Table]:
    """Arrow tables, by name, each with the columns of its ``run`` behind its own.

    Raises InputError when the sizes asked for do not fit a column.
    """
    return {
        name: _table(meta, name, schema, [*zip(*data, strict=True)] or [()] * len(schema), run)
        for name, (schema, data) in rows.items()
    }


def _table(
    meta: TraceMeta, name: str, schema: pa.Schema, columns: Columns, run: Mapping[str, Any]
) -> pa.Table:
    marks = [mark for mark in RUN if mark.name in run and mark.name not in schema.names]
    whole = pa.schema([*schema, *marks])
    arrays: list[pa.Array] = []
    for column, values in zip(whole, [*columns, *[None] * len(marks)], strict=True):
        try:
            if values is None:  # a mark: one value in all rows
                one = pa.scalar(run[column.name], type=column.type)
                arrays.append(pa.repeat(one, len(columns[0])))
            else:
                arrays.append(pa.array(values, type=column.type))
        except (OverflowError, pa.ArrowInvalid) as error:  # more than the bits of a column count
            sizes = ", ".join(f"{size} {value}" for size, value in meta.variables.items())
            bits = 31 if column.type == pa.int32() else 63
            raise InputError(
                f"{meta.model} at {sizes} is too large: {column.name} in {name} would be beyond "
                f"2**{bits} - 1. Take smaller sizes."
            ) from error
    return pa.Table.from_arrays(arrays, schema=whole)


def write_tables(
    folder: Path, tables: Mapping[str, pa.Table], metadata: Mapping[str, str], *, advice: str
) -> None:
    """Write ``<name>.parquet`` for every table, all of them or none, with ``metadata`` in each.

    Raises TableError, with ``advice`` on what to do, when the folder or a file cannot be written;
    what was there before stays.
    """
    marked = {"schema_version": SCHEMA_VERSION, **metadata}
    new_folders = [level for level in (folder, *folder.parents) if not os.path.lexists(level)]
    try:
        data = {
            f"{name}.parquet": _encoded(table.replace_schema_metadata(dict(sorted(marked.items()))))
            for name, table in tables.items()
        }
        with uninterrupted():
            folder.mkdir(parents=True, exist_ok=True)
            write_files(folder, data)
    except OSError as error:
        raise TableError(
            f"cannot write tables to {folder}: {error.strerror or error}. {advice}"
        ) from error
    finally:
        with suppress(OSError):  # in a folder that is a file there is nothing to remove
            for level in new_folders:  # only what is empty goes
                level.rmdir()


def _encoded(table: pa.Table) -> memoryview:
    """A table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def read_file(path: Path) -> pa.Table:
    """All of a Parquet file that is as it was written.

    Raises OSError where it cannot be read, DamagedError (which is one) or pa.ArrowException for
    damage. Arrow opens it: a file or bytes of Python's, which its threads let go of late, would now
    and then abort a process at its end.
    """
    open_file(path).close()  # Arrow would wait for a pipe
    with pa.OSFile(os.fsencode(path)) as source:  # a name would be tried as a URI first
        data = source.read_buffer()
    check_bytes(path, memoryview(data))
    return pq.ParquetFile(pa.BufferReader(data)).read()


def unreadable(error: Exception) -> str:
    """What to say of a file that ``read_file`` could not read."""
    if number := getattr(error, "errno", None):
        return f"cannot be read: {os.strerror(number)}"
    return f"is damaged: {str(error).splitlines()[0]}"


def read_table(folder: Path, name: str, schema: pa.Schema) -> tuple[pa.Table, dict[str, str]]:
    """A table and its file's metadata. Raises TableError naming the file when it cannot be used."""
    path = folder / f"{name}.parquet"
    try:
        table = read_file(path)
    except FileNotFoundError as error:
        raise TableError(f"{path} is missing: {folder} is not a whole trace. Run trace.") from error
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path} {unreadable(error)}. Run trace.") from error
    metadata = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    found = metadata.get("schema_version")
    if found != SCHEMA_VERSION:
        raise TableError(
            f"{path} has schema version {found or 'none'}, this cutedge reads {SCHEMA_VERSION}. "
            "Trace the model again."
        )
    wholes = [
        pa.schema([*schema, *(mark for mark in marks if mark.name not in schema.names)])
        for marks in (OF_A_TRACE, RUN)
    ]
    if not any(table.schema.equals(whole) for whole in wholes):
        raise TableError(f"{path} does not have the columns of a {name} table. Run trace again.")
    return table.select(schema.names), metadata


# --- the trace ------------------------------------------------------------------------------------


_OF_OPS = (
    "id name target stack kind module_path module_type layer is_constant is_view is_identity dtype "
    "extent_expr arguments"
)
_OF_GEMMS = "batch m n k"
_OF_COSTS = (
    "flops flops_expr causal_flops causal_flops_expr flops_status read_bytes write_bytes "
    "param_bytes assumption"
)
_OF_TENSORS = "id op name role label dtype shape shape_expr bytes bytes_expr seq_degree alias_of"
_OF_EDGES = "src dst tensor arg_index"
"""The fields that are the columns of the tables, in their order: of ``ops`` the first three."""

_NO_GEMM = SimpleNamespace(batch=None, m=None, n=None, k=None)


def _columns(graph: OpGraph) -> dict[str, Columns]:
    costs = [op.cost for op in graph.ops]
    ops = [
        *_fields(graph.ops, _OF_OPS),
        *_fields([cost.gemm or _NO_GEMM for cost in costs], _OF_GEMMS),
        *_fields(costs, _OF_COSTS),
    ]
    return {
        "ops": ops,
        "tensors": _fields(graph.tensors, _OF_TENSORS),
        "edges": _fields(graph.edges, _OF_EDGES),
    }


def _fields(rows: Sequence[Any], names: str) -> Columns:
    return [[*map(attrgetter(name), rows)] for name in names.split()]


def trace_metadata(meta: TraceMeta, trace_id: str) -> dict[str, str]:
    """What every file of a trace and of its partitions says of the trace: text, or JSON."""
    plain = {k: json.dumps(v) if isinstance(v, tuple) else str(v) for k, v in _told(meta).items()}
    return {**plain, "trace_id": trace_id}


_STORAGE = ("weights", "weights_other", "kv_dtype")
"""What is said of a trace only where it is not as the dtypes have it."""


def _told(meta: TraceMeta) -> dict[str, Any]:
    """All of it by name, as a trace's id and its files have it."""
    return {k: v for k, v in asdict(meta).items() if v or k not in _STORAGE}


def _hash(meta: TraceMeta, columns: Mapping[str, Columns]) -> str:
    """The trace id. Of JSON, since Arrow's own bytes may change with its version."""
    found = hashlib.sha256()
    for text in _json(meta, columns):
        found.update(text.encode())
    return found.hexdigest()[:16]


def _json(meta: TraceMeta, columns: Mapping[str, Columns]) -> Iterator[str]:
    """What a trace is of, and the rows of each table by name, as one JSON text in pieces: of a
    large graph it has a hundred MB."""
    text = json.JSONEncoder(check_circular=False).encode  # no row holds itself
    yield f"[{text(_told(meta))}, {{"
    for number, (name, table) in enumerate(columns.items()):
        yield f"{', ' if number else ''}{text(name)}: ["
        for start in range(0, len(table[0]), 1000):
            rows = zip(*(values[start : start + 1000] for values in table), strict=True)
            yield f"{', ' if start else ''}{text([*rows])[1:-1]}"
        yield "]"
    yield "}]"


def trace_tables(graph: OpGraph) -> tuple[dict[str, pa.Table], str]:
    """(the tables of a trace, by name; its trace id).

    Raises InputError when its sizes are beyond what a table holds.
    """
    columns = _columns(graph)
    trace_id = _hash(graph.meta, columns)
    run = run_of(graph, trace_id)
    tables = {
        name: _table(graph.meta, name, schema, columns[name], run)
        for name, schema in TRACE_TABLES.items()
    }
    return tables, trace_id


def write_trace(graph: OpGraph, folder: Path) -> str:
    """Write a trace's tables into ``folder``; its trace id.

    Raises as ``trace_tables``, and TableError when a file cannot be written.
    """
    tables, trace_id = trace_tables(graph)
    write_tables(
        folder,
        tables,
        trace_metadata(graph.meta, trace_id),
        advice="Choose another place with --out, or free some space.",
    )
    return trace_id


_REACH = "reach.json"


def write_reach(folder: Path, trace_id: str, reach: Reach) -> None:
    """Note beside a trace at which other sizes it is the same program. Raises TableError."""
    text = json.dumps({"trace_id": trace_id, "reach": reach.as_json()})
    try:
        write_files(folder, {_REACH: text.encode()})
    except OSError as error:
        raise TableError(f"cannot write {folder / _REACH}: {error.strerror or error}") from error


def read_reach(folder: Path, trace_id: str) -> Reach:
    """What ``write_reach`` noted. Raises TableError where that is missing or of another trace."""
    try:
        with open_file(folder / _REACH) as source:
            data = source.read()
        check_bytes(folder / _REACH, data)
        read = parse_json(data)
        if read["trace_id"] == trace_id:
            return Reach.from_json(read["reach"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{folder / _REACH} is missing or damaged: at which other sizes this trace holds is "
            "not known. Trace the model again."
        ) from error
    raise TableError(f"{folder / _REACH} is of another trace. Trace the model again.")


@stage("reading the trace")
def read_trace(folder: Path, *, hashed: bool = True) -> tuple[OpGraph, str]:
    """The op graph in a trace directory, and its trace id.

    Each file is checked against the folder's manifest; ``hashed`` checks the rows of all against
    the trace id too, which takes a fifth of the time.

    Raises TableError when the directory or a table is missing, damaged, of another schema version,
    or when its files are not those of one trace.
    """
    if not os.path.isdir(folder):
        raise TableError(f"no trace at {folder}: there is no such directory. Run trace first.")
    read = {name: read_table(folder, name, schema) for name, schema in TRACE_TABLES.items()}
    if len({metadata.get("trace_id") for _, metadata in read.values()}) != 1:
        raise TableError(f"{folder} holds tables of different traces. Trace the model again.")
    metadata = read["ops"][1]
    try:
        columns = {
            name: [column.to_pylist() for column in table.columns]
            for name, (table, _) in read.items()
        }
        graph = OpGraph(
            _meta(metadata),
            map(_op, *columns["ops"]),
            map(_tensor, *columns["tensors"]),
            map(Edge, *columns["edges"]),
        )
        trace_id = _hash(graph.meta, columns) if hashed else metadata["trace_id"]
        if trace_id != metadata.get("trace_id"):
            raise ValueError("its rows are not those that were traced")
    except (GraphError, TypeError, ValueError) as error:
        raise TableError(f"{folder} is damaged: {error}. Trace the model again.") from error
    return graph, trace_id


def storage_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a table's metadata says of how weights and cached state are stored, by name."""
    return {name: metadata[name] for name in _STORAGE if name in metadata}


def _meta(metadata: Mapping[str, str]) -> TraceMeta:
    values: dict[str, Any] = {}
    for field in fields(TraceMeta):
        if field.name not in metadata:
            if field.name in _STORAGE:
                continue
            raise ValueError(f"its metadata has no {field.name}")
        text = metadata[field.name]
        if field.name in ("symbolic", "overrides", "versions"):
            entries = parse_json(text)
            values[field.name] = tuple(tuple(e) if isinstance(e, list) else e for e in entries)
        else:
            values[field.name] = int(text) if field.type in (int, "int") else text
    return TraceMeta(**values)


def _op(
    id: int,
    name: str,
    target: str,
    stack: str | None,
    kind: str,
    module_path: str,
    module_type: str,
    layer: int | None,
    is_constant: bool,
    is_view: bool,
    is_identity: bool,
    dtype: str | None,
    extent_expr: str | None,
    arguments: list[tuple[str, str]],
    gemm_batch: int | None,
    gemm_m: int | None,
    gemm_n: int | None,
    gemm_k: int | None,
    flops: int | None,
    flops_expr: str | None,
    causal_flops: int | None,
    causal_flops_expr: str | None,
    flops_status: str,
    read_bytes: int,
    write_bytes: int,
    param_bytes: int,
    assumption: str | None,
) -> Op:
    gemm = None
    if None not in (gemm_batch, gemm_m, gemm_n, gemm_k):
        gemm = Gemm(gemm_batch, gemm_m, gemm_n, gemm_k)  # type: ignore[arg-type]  # checked above
    cost = OpCost(
        gemm,
        flops,
        flops_expr,
        causal_flops,
        causal_flops_expr,
        Status(flops_status),
        read_bytes,
        write_bytes,
        param_bytes,
        assumption,
    )
    return Op(
        id,
        name,
        target,
        Kind(kind),
        module_path,
        module_type,
        stack,
        layer,
        is_constant,
        is_view,
        dtype,
        extent_expr,
        tuple(arguments),
        is_identity,
        cost,
    )


def _tensor(
    id: int,
    op: int | None,
    name: str,
    role: str,
    label: str | None,
    dtype: str,
    shape: list[int],
    shape_expr: list[str] | None,
    bytes: int,
    bytes_expr: str | None,
    seq_degree: int | None,
    alias_of: int | None,
) -> Tensor:
    if dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {id} has the unknown dtype {dtype!r}")
    return Tensor(
        id,
        op,
        name,
        Role(role),
        label,
        dtype,
        tuple(shape),
        None if shape_expr is None else tuple(shape_expr),
        bytes,
        bytes_expr,
        seq_degree,
        alias_of,
    )
