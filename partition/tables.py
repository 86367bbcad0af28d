"""A partition on disk: placement, transfers, calls and summary as Parquet in the trace's folder."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from costmodels.arrays import Options
from costmodels.flops import total_flops
from partition.accounting import Call, Traffic, Transfer, origins, steps_of, totals_of
from partition.placement import Placement
from partition.schedule_table import SCHEDULE, schedule_metadata, schedule_rows
from partition.seen import what_is
from partition.split import PARTITIONS, Split
from partition.stored import parameters_read
from partition.wire_format import WireFormat
from tracer.files import open_file, remove_files
from tracer.graph import OpGraph
from tracer.serde import (
    TableError,
    column,
    make_tables,
    read_table,
    read_trace,
    storage_of,
    trace_metadata,
    write_tables,
)
from tracer.summary import tensor_names

PLACEMENT = pa.schema(
    [
        column("op_id", pa.int32(), "The op; joins with `ops`."),
        column(
            "device",
            pa.string(),
            "The device that it runs on; null for constants and cached state, which are on every "
            "device that needs them.",
            null=True,
        ),
        column(
            "pinned",
            pa.bool_(),
            "Whether a rule put it there; false where the default or the search for the best did.",
        ),
        column("reason", pa.string(), "The rule's reason, or what else decided."),
        column(
            "weights_at",
            pa.string(),
            "Where the parameters that it reads lie: device, its own, or home, from where its device "
            "is sent them in each run; null where it reads no parameters.",
            null=True,
        ),
    ]
)

TRANSFERS = pa.schema(
    [
        column("transfer_id", pa.int32(), "Order of execution, from 0."),
        column("tensor_id", pa.int32(), "The tensor that crosses; joins with `tensors`."),
        column("tensor_name", pa.string(), "That tensor's own name (`linear_4`)."),
        column(
            "label",
            pa.string(),
            "What it is in an attention, or `logits`, as in `tensors`; null for all others.",
            null=True,
        ),
        column(
            "tensor_group",
            pa.string(),
            "What like tensors of all layers are called together: the label, else the end of the path "
            "of the module that makes them (`gate_proj`, `mlp`), of parameters that of their name "
            "(`gate_proj.weight`). Never null: group by this.",
        ),
        column(
            "what",
            pa.string(),
            "The sort of tensor that a device sees in it (`prompt_tokens`, `hidden_states`, `qkv`, "
            "`logits` ...); null for what tells nothing of prompt or answer.",
            null=True,
        ),
        column("secret", pa.bool_(), "Whether it has values that the policy keeps secret."),
        column(
            "src_op",
            pa.int32(),
            "The op that makes it; joins with `ops`. Null of a parameter that lies at home.",
            null=True,
        ),
        column("src_device", pa.string(), "The device that it leaves."),
        column("dst_device", pa.string(), "The device that it is for."),
        column(
            "call_id",
            pa.int32(),
            "The call that it belongs to: the first that needs it or, for what goes home, the one that "
            "makes it.",
        ),
        column(
            "direction",
            pa.string(),
            "send (from home), receive (to home) or peer (between accelerators).",
        ),
        column(
            "wire_dtype",
            pa.string(),
            "The dtype that it crosses in; of what is stored in a format of its own (weights, cached "
            "state) what that is turned into where it is read.",
        ),
        column(
            "payload_bytes",
            pa.int64(),
            "Elements times item size on the wire; of what is packed, its packed bytes.",
        ),
        column(
            "payload_status",
            pa.string(),
            "exact, or estimate where a ratio stands in for what the values decide.",
        ),
        column("packing", pa.string(), "How it is packed; plain where it is not."),
        column("plain_bytes", pa.int64(), "What `payload_bytes` would be unpacked."),
        column(
            "wire_bytes",
            pa.int64(),
            "Payload and framing; a message's own framing is with its first tensor. Of what lies in "
            "shared memory, its handle and framing.",
        ),
        column(
            "bytes_expr",
            pa.string(),
            "`payload_bytes` as a formula; null in a trace at fixed sizes.",
            null=True,
        ),
        column(
            "seq_degree",
            pa.int8(),
            "The growth order of the tensor's bytes in seq; null in a trace at fixed sizes.",
            null=True,
        ),
        column("share", pa.float64(), "Its part of all payload bytes of the run, from 0 to 1."),
        column(
            "seconds",
            pa.float64(),
            "On its link, serialisation, packing and encryption included; a message's latency and "
            "toll are with its first tensor. Null where the link has no bandwidth in this direction.",
            null=True,
        ),
        column(
            "packing_seconds",
            pa.float64(),
            "What of `seconds` is packing at one end and unpacking at the other; null where that is "
            "not known.",
            null=True,
        ),
        column(
            "at_least",
            pa.bool_(),
            "Whether `seconds` leaves out what is not known: the latency of its message, or packing.",
        ),
        column(
            "module_path",
            pa.string(),
            "The module that made it, as in `ops`; of a parameter, here and below, the first that "
            "reads it there.",
        ),
        column(
            "stack",
            pa.string(),
            "The list of blocks that it was made in, as in `ops`; null outside of all.",
            null=True,
        ),
        column(
            "layer",
            pa.int32(),
            "The block of `stack` that it was made in; null outside of all.",
            null=True,
        ),
    ]
)

CALLS = pa.schema(
    [
        column(
            "call_id",
            pa.int32(),
            "Order of execution, from 0; joins with `transfers` and `measured_calls`.",
        ),
        column("device", pa.string(), "The accelerator that is called."),
        column(
            "label",
            pa.string(),
            "The modules of its ops (`q_proj+k_proj+v_proj`), or what they are to an attention "
            "(`QK^T`).",
        ),
        column(
            "ops",
            pa.list_(pa.int32()),
            "The ops that run in it, in order of execution; they join with `ops.op_id`.",
        ),
        column("sent_payload_bytes", pa.int64(), "Bytes from home, without framing."),
        column("sent_wire_bytes", pa.int64(), "Bytes from home, with framing."),
        column("received_payload_bytes", pa.int64(), "Bytes to home, without framing."),
        column("received_wire_bytes", pa.int64(), "Bytes to home, with framing."),
        column(
            "seconds",
            pa.float64(),
            "Of its transfers, one after another, without computing; null where one of them is not "
            "known.",
            null=True,
        ),
        column(
            "at_least",
            pa.bool_(),
            "Whether `seconds` leaves out a latency or packing that is not known.",
        ),
    ]
)

SUMMARY = pa.schema(
    [
        column("policy", pa.string(), "The policy that placed the ops."),
        column("home", pa.string(), "The device with the inputs and the outputs."),
        column("accelerators", pa.list_(pa.string()), "The devices that home calls."),
        column(
            "link",
            pa.string(),
            "The link between them, or the links where they differ (`pcie5-x16, a+b=nvlink`).",
        ),
        column(
            "wire_dtype",
            pa.string(),
            "The dtype asked for on the wire; null for the tensors' own.",
            null=True,
        ),
        column(
            "pack",
            pa.string(),
            "What all tensors are packed by where no rule of the policy says; null for nothing.",
            null=True,
        ),
        column("residency", pa.string(), "run or call, as in every row."),
        column(
            "weights_at",
            pa.string(),
            "Where parameters of ops on accelerators lie, where no rule says: device or home.",
        ),
        column("calls", pa.int32(), "Round trips, the fewest that the placement allows."),
        column(
            "transfers",
            pa.int32(),
            "Tensors that cross, once for each tensor, source device and destination device.",
        ),
        column(
            "cut_edges",
            pa.int32(),
            "Edges whose two ops are on different devices: several for a tensor that several ops read.",
        ),
        column("sent_payload_bytes", pa.int64(), "Bytes from home, without framing."),
        column("sent_wire_bytes", pa.int64(), "Bytes from home, with framing."),
        column(
            "sent_weight_bytes",
            pa.int64(),
            "Of `sent_payload_bytes` those of parameters that lie at home.",
        ),
        column("received_payload_bytes", pa.int64(), "Bytes to home, without framing."),
        column("received_wire_bytes", pa.int64(), "Bytes to home, with framing."),
        column("peer_payload_bytes", pa.int64(), "Bytes between accelerators, without framing."),
        column("peer_wire_bytes", pa.int64(), "Bytes between accelerators, with framing."),
        column("total_payload_bytes", pa.int64(), "Bytes of all transfers, without framing."),
        column(
            "payload_status",
            pa.string(),
            "exact, or estimate where a ratio stands in for the packed bytes of some transfer.",
        ),
        column("plain_payload_bytes", pa.int64(), "What `total_payload_bytes` would be unpacked."),
        column("total_wire_bytes", pa.int64(), "Bytes of all transfers, with framing."),
        column(
            "total_bytes_expr",
            pa.string(),
            "`total_payload_bytes` as a formula in batch, seq, past and source; null in a trace at "
            "fixed sizes.",
            null=True,
        ),
        column(
            "peak_buffer_bytes",
            pa.int64(),
            "The most payload that either end must hold at one time to pass a message on.",
        ),
        column(
            "seconds",
            pa.float64(),
            "Of all transfers, one after another; null where one of them is not known.",
            null=True,
        ),
        column(
            "at_least",
            pa.bool_(),
            "Whether the seconds of this row leave out what is not known: a link's latency, or what "
            "starting an op takes on a device.",
        ),
        column(
            "resident_bytes",
            pa.map_(pa.string(), pa.int64()),
            "Device -> bytes of parameters, buffers, constants and cached state that lie there.",
        ),
        column(
            "coverage",
            pa.float64(),
            "Share of the ops that work whose FLOPs are known, from 0 to 1.",
        ),
        column(
            "compute_seconds",
            pa.map_(pa.string(), pa.float64()),
            "Described device -> what its ops take there, one after another.",
        ),
        column(
            "home_seconds",
            pa.float64(),
            "Computing at home; null where home is not described or cannot run all that is there.",
            null=True,
        ),
        column(
            "accelerator_seconds",
            pa.float64(),
            "Computing on the accelerators that are used, all together; null where one is not known.",
            null=True,
        ),
        column(
            "run_seconds",
            pa.float64(),
            "Computing and transfers, one after another; null where one of them is not known.",
            null=True,
        ),
        column(
            "seconds_per_token",
            pa.float64(),
            "`run_seconds` over the new tokens of the batch; null likewise.",
            null=True,
        ),
        column(
            "link_bound_chips",
            pa.int64(),
            "From so many equal chips on, they compute no longer than their shared link takes; null "
            "without chips, and where any number of them takes longer.",
            null=True,
        ),
        column(
            "many_chips_seconds",
            pa.float64(),
            "What the run takes with one chip for each tile of its largest product; null without "
            "chips.",
            null=True,
        ),
        column(
            "objective",
            pa.string(),
            "What the placement is best for: bytes, seconds, or both; null where the policy left "
            "nothing free.",
            null=True,
        ),
        column(
            "objective_value",
            pa.int64(),
            "What the placement costs, in `objective_unit`; null likewise.",
            null=True,
        ),
        column(
            "objective_bound",
            pa.int64(),
            "No placement that is allowed costs less; equal to `objective_value` where that is proven "
            "best.",
            null=True,
        ),
        column("objective_unit", pa.string(), "bytes, ns, or weighted; null likewise.", null=True),
        column(
            "optimal",
            pa.bool_(),
            "Whether no placement that is allowed costs less; null likewise.",
            null=True,
        ),
        column(
            "solver",
            pa.string(),
            "What found the placement: cut, networkx, program, layers or candidates; null likewise.",
            null=True,
        ),
        column(
            "cut",
            pa.string(),
            "Where the one cut lies of a policy that cuts between two layers (`after encoder.2`); null "
            "for others.",
            null=True,
        ),
        column(
            "cycles",
            pa.map_(pa.string(), pa.int64()),
            "Device -> cycles of its matrix products, null where one is not of two matrices (a "
            "recurrent layer, an attention in one op) or may be one; arrays of multipliers alone.",
        ),
        column(
            "array_options",
            pa.string(),
            "What makes the arrays faster than their descriptions (`int8_speedup=2, chips=4`); null "
            "where nothing does.",
            null=True,
        ),
        column(
            "engine",
            pa.string(),
            "What carries ops out (`vllm`, or `gpu=vllm` of one device); null for the physical bound.",
            null=True,
        ),
        column(
            "execution",
            pa.string(),
            "How, where that is not what the engine says: eager, graph or fused; else null.",
            null=True,
        ),
        column(
            "seen",
            pa.map_(pa.string(), pa.map_(pa.string(), pa.string())),
            "Accelerator that is not trusted -> sort of tensor -> how it sees it: plain, recoverable, "
            "masked or not at all.",
        ),
    ]
)


def partition_tables(partition: Split) -> dict[str, pa.Table]:
    """The four tables of a partition, by name, and that of its schedule where it has one."""
    graph, placement, traffic = partition.graph, partition.placement, partition.traffic
    whole, sorts = traffic.totals.payload_bytes, what_is(graph)
    groups = tensor_names(graph)
    schedule, parameters = partition.schedule, parameters_read(graph)
    timed = {} if schedule is None else {"schedule": (SCHEDULE, schedule_rows(graph, schedule))}
    return make_tables(
        graph.meta,
        {
            "placement": (
                PLACEMENT,
                [
                    (
                        op.id,
                        placement.devices[op.id],
                        placement.pinned[op.id],
                        placement.reasons[op.id],
                        ("home" if op.id in placement.streams else "device")
                        if parameters[op.id]
                        else None,
                    )
                    for op in graph.ops
                ],
            ),
            "transfers": (
                TRANSFERS,
                [
                    (
                        t.id,
                        t.tensor.id,
                        t.tensor.name,
                        t.tensor.label,
                        groups[t.tensor.id],
                        sorts[t.tensor.id],
                        t.tensor.id in partition.secret,
                        t.tensor.op,
                        t.src_device,
                        t.dst_device,
                        t.call,
                        t.direction,
                        t.wire_dtype,
                        t.payload_bytes,
                        t.payload_status,
                        t.packing,
                        t.plain_bytes,
                        t.wire_bytes,
                        t.bytes_expr,
                        t.tensor.seq_degree,
                        t.payload_bytes / whole if whole else 0.0,
                        t.seconds,
                        t.packing_seconds,
                        t.at_least,
                        origin.module_path,
                        origin.stack,
                        origin.layer,
                    )
                    for t, origin in zip(
                        traffic.transfers, origins(graph, placement, traffic.transfers), strict=True
                    )
                ],
            ),
            "calls": (
                CALLS,
                [
                    (
                        c.id,
                        c.device,
                        c.label,
                        c.ops,
                        c.sent_payload_bytes,
                        c.sent_wire_bytes,
                        c.received_payload_bytes,
                        c.received_wire_bytes,
                        c.seconds,
                        c.at_least,
                    )
                    for c in traffic.calls
                ],
            ),
            "summary": (
                SUMMARY,
                [tuple(_items(value) for value in summary_row(partition).values())],
            ),
            **timed,
        },
        partition.identity,
    )


def write_partition(partition: Split, trace: Path) -> Path:
    """Write the tables of a partition into its trace's directory; where they are.

    A schedule of what was there before goes.
    """
    metadata = {
        **trace_metadata(partition.graph.meta, partition.trace_id),
        "policy": partition.policy,
        "home": partition.placement.home,
        "accelerators": json.dumps(partition.placement.accelerators),
        "link": partition.link,
        "wire_dtype": partition.wire,
        "residency": partition.residency,
    }
    if partition.schedule is not None:
        metadata["schedule"] = schedule_metadata(partition.schedule)
    folder = trace / partition.folder
    write_tables(
        folder,
        partition_tables(partition),
        metadata,
        advice="Make the place writable, or free some space.",
    )
    if partition.schedule is None and (folder / "schedule.parquet").exists():
        with suppress(OSError):
            remove_files(folder, "schedule.parquet")
    return folder


def _items(value: Any) -> Any:
    """A map as Arrow takes it: its entries in the order of their keys."""
    if not isinstance(value, Mapping):
        return value
    return [(key, _items(inner)) for key, inner in sorted(value.items())]


def summary_row(partition: Split) -> dict[str, Any]:
    """The one row of ``summary.parquet``: column -> value, in the order of ``SUMMARY``."""
    placement, traffic, totals = partition.placement, partition.traffic, partition.traffic.totals
    run, solution = partition.run, partition.solution
    return {
        "policy": partition.policy,
        "home": placement.home,
        "accelerators": list(placement.accelerators),
        "link": partition.link,
        "wire_dtype": partition.wire_dtype,
        "pack": partition.wire_format.text or None,
        "residency": partition.residency,
        "weights_at": partition.weights_at,
        "calls": len(traffic.calls),
        "transfers": len(traffic.transfers),
        "cut_edges": traffic.cut_edges,
        "sent_payload_bytes": totals.sent_payload_bytes,
        "sent_wire_bytes": totals.sent_wire_bytes,
        "sent_weight_bytes": partition.sent_weight_bytes,
        "received_payload_bytes": totals.received_payload_bytes,
        "received_wire_bytes": totals.received_wire_bytes,
        "peer_payload_bytes": totals.peer_payload_bytes,
        "peer_wire_bytes": totals.peer_wire_bytes,
        "total_payload_bytes": totals.payload_bytes,
        "payload_status": totals.payload_status,
        "plain_payload_bytes": sum(t.plain_bytes for t in traffic.transfers),
        "total_wire_bytes": totals.wire_bytes,
        "total_bytes_expr": traffic.total_expr,
        "peak_buffer_bytes": traffic.peak_buffer_bytes,
        "seconds": totals.seconds,
        "at_least": bool(partition.left_out),
        "resident_bytes": dict(traffic.resident_bytes),
        "coverage": total_flops(partition.graph).coverage,
        "compute_seconds": dict(partition.compute_seconds),
        "home_seconds": partition.home_seconds,
        "accelerator_seconds": partition.accelerator_seconds,
        "run_seconds": partition.run_seconds,
        "seconds_per_token": run and run.seconds_per_token,
        "link_bound_chips": run and run.link_bound_chips,
        "many_chips_seconds": run and run.many_chips_seconds,
        "objective": partition.objective,
        "objective_value": solution and solution.objective,
        "objective_bound": solution and solution.bound,
        "objective_unit": partition.unit if solution else None,
        "optimal": solution and solution.proven,
        "solver": solution and solution.solver,
        "cut": (solution and solution.cut) or None,
        "cycles": dict(partition.cycles),
        "array_options": partition.options.text or None,
        "engine": partition.engine or None,
        "execution": partition.execution or None,
        "seen": {
            one.device: {sort.what.value: sort.how.value for sort in one.seen}
            for one in partition.exposed
        },
    }


def read_split(trace: Path, folder: Path) -> Split:
    """The split whose tables are in ``folder``, of the trace in ``trace``.

    Raises TableError where a table is missing or damaged, or is of another trace.
    """
    graph, trace_id = read_trace(trace)
    rows = {
        name: _rows(folder, name, schema, trace_id)
        for name, schema in (
            ("placement", PLACEMENT),
            ("transfers", TRANSFERS),
            ("calls", CALLS),
            ("summary", SUMMARY),
        )
    }
    stored: dict[str, Any] = storage_of(read_table(folder, "summary", SUMMARY)[1])
    graph = graph.with_meta(replace(graph.meta, **stored))
    try:
        return _split(graph, trace_id, rows)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise TableError(f"{folder} is damaged. Run partition again.") from error


def _split(graph: OpGraph, trace_id: str, rows: Mapping[str, list[dict[str, Any]]]) -> Split:
    """What rows of tables say. Raises ValueError, KeyError ... for rows that were never written."""
    (summary,) = rows["summary"]
    if len(rows["placement"]) != len(graph.ops):
        raise ValueError("another number of ops")
    placed = rows["placement"]
    placement = Placement(
        summary["home"],
        tuple(row["device"] for row in placed),
        tuple(row["pinned"] for row in placed),
        tuple(row["reason"] for row in placed),
        frozenset(row["op_id"] for row in placed if row["weights_at"] == "home"),
    )
    transfers = tuple(_transfer(graph, row) for row in rows["transfers"])
    _check_rows(graph, placement, rows)
    traffic = Traffic(
        _calls(graph, placement, rows["calls"], transfers),
        transfers,
        totals_of(transfers, ()),
        summary["peak_buffer_bytes"],
        summary["cut_edges"],
        dict(summary["resident_bytes"]),
        summary["total_bytes_expr"],
    )
    return Split(
        graph,
        trace_id,
        summary["policy"],
        placement,
        traffic,
        summary["link"],
        None,
        WireFormat(summary["wire_dtype"], text=summary["pack"] or ""),
        summary["residency"],
        options=Options.parse(summary["array_options"] or ""),
        engine=summary["engine"] or "",
        execution=summary["execution"] or "",
        weights_at=summary["weights_at"],
    )


def _rows(folder: Path, name: str, schema: pa.Schema, trace_id: str) -> list[dict[str, Any]]:
    table, metadata = read_table(folder, name, schema)
    if metadata.get("trace_id") != trace_id:
        raise TableError(f"{folder / name}.parquet is of another trace. Run partition again.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_rows(
    graph: OpGraph, placement: Placement, rows: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Raise ValueError or TypeError for transfers and calls that no placement like this has."""
    devices, calls = {placement.home, *placement.accelerators}, len(rows["calls"])
    there = set[tuple[int, str]]()
    for number, row in enumerate(rows["transfers"]):
        ends = {row["src_device"], row["dst_device"]}
        sound = (
            row["transfer_id"] == number and 0 <= row["call_id"] < calls and row["tensor_id"] >= 0
        )
        if not (sound and ends <= devices):
            raise ValueError(f"transfer {number}")
        tensor, src = row["tensor_id"], row["src_device"]
        op = graph.tensors[tensor].op
        at_home = placement.home if placement.streams else None  # a parameter that is sent
        lies = at_home if op is None else placement.devices[op]
        if (tensor, src) not in there and lies != src:
            raise ValueError(f"transfer {number}: it is not there")
        there.add((tensor, row["dst_device"]))
    ran = [(op, row["device"]) for row in rows["calls"] for op in row["ops"]]
    away = [(op, d) for op, d in enumerate(placement.devices) if d not in (None, placement.home)]
    if sorted(ran) != away or [row["call_id"] for row in rows["calls"]] != list(range(calls)):
        raise ValueError("calls of other ops than are away")
    for row in (*rows["transfers"], *rows["calls"]):
        figures = [v for k, v in row.items() if k.endswith(("_bytes", "seconds")) and v is not None]
        if not all(isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError("a figure below 0 or none")


def _transfer(graph: OpGraph, row: Mapping[str, Any]) -> Transfer:
    return Transfer(
        row["transfer_id"],
        graph.tensors[row["tensor_id"]],
        row["src_device"],
        row["dst_device"],
        row["call_id"],
        row["direction"],
        row["wire_dtype"],
        row["payload_bytes"],
        row["wire_bytes"],
        row["seconds"],
        row["at_least"],
        row["bytes_expr"],
        row["packing"],
        row["payload_status"],
        row["plain_bytes"],
        row["packing_seconds"],
    )


def _calls(
    graph: OpGraph,
    placement: Placement,
    rows: Sequence[Mapping[str, Any]],
    transfers: Sequence[Transfer],
) -> tuple[Call, ...]:
    """The calls; their steps are not in the table, and follow from the placement."""
    steps = steps_of(graph, placement)
    brought = {
        t.call: steps[t.tensor.op] + 1
        for t in transfers
        if t.direction != "receive" and t.tensor.op is not None
    }
    return tuple(
        Call(
            row["call_id"],
            row["device"],
            tuple(row["ops"]),
            row["label"],
            row["sent_payload_bytes"],
            row["sent_wire_bytes"],
            row["received_payload_bytes"],
            row["received_wire_bytes"],
            row["seconds"],
            row["at_least"],
            # One without ops brings new state, right after it is made.
            steps[row["ops"][0]] if row["ops"] else brought[row["call_id"]],
        )
        for row in rows
    )


def remove_stale(trace: Path, trace_id: str) -> list[str]:
    """Remove the partitions and costs of another trace from a trace's directory.

    They would join with ops that they do not belong to. What was removed, by policy, or ``costs``.
    """
    removed = set()
    if not _is_of(trace / "costs.parquet", trace_id):
        remove_files(trace, "costs.parquet")
        removed.add("costs")
    for summary in trace.glob(f"{PARTITIONS}/summary.parquet"):
        if _is_of(summary, trace_id):
            continue
        folder = summary.parent
        levels = (folder, *folder.parents[:3])
        removed.add(unquote(levels[-1].name.removeprefix("policy=")))
        with suppress(OSError):  # what is not ours stays
            tables = ("placement", "transfers", "calls", "summary", "schedule", "measured_calls")
            remove_files(folder, *(f"{table}.parquet" for table in tables))
            for level in levels:
                level.rmdir()
    return sorted(removed)


def _is_of(table: Path, trace_id: str) -> bool:
    """Whether a table is of a trace, or not there; one that cannot be read is not."""
    with suppress(OSError, pa.ArrowException):
        if not table.exists():
            return True
        open_file(table).close()  # Arrow would wait for a pipe
        return (pq.read_metadata(table).metadata or {}).get(b"trace_id") == trace_id.encode()
    return False
