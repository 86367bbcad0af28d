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
from partition.accounting import Call, Traffic, Transfer, origins, steps_of, totals_of
from partition.mask_table import (
    MASKS,
    crossing,
    here,
    mask_of,
    mask_rows,
    masks_metadata,
    traced_op,
    traced_tensor,
    with_masks,
)
from partition.masks import MaskedGraph, plain_of, with_masks_placed
from partition.placement import Placement
from partition.schedule_table import SCHEDULE, schedule_metadata, schedule_rows
from partition.seen import what_is
from partition.split import PARTITIONS, Split
from partition.stored import parameters_read
from partition.summary_table import SUMMARY, summary_row
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
        column(
            "mask",
            pa.string(),
            "The scheme that it runs masked under, with what is chosen of it; null where it does not.",
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
        column(
            "mask",
            pa.string(),
            "The scheme that it crosses under; null where it crosses as it is.",
            null=True,
        ),
        column(
            "masked_id",
            pa.int32(),
            "What stands for it under its mask has this number: one tensor under two masks is two "
            "transfers. Null likewise.",
            null=True,
        ),
        column("unmasked_bytes", pa.int64(), "What `payload_bytes` would be without its mask."),
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
            "joules",
            pa.float64(),
            "What `wire_bytes` take in energy on the link; null where the link has no figure.",
            null=True,
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
        column(
            "joules",
            pa.float64(),
            "Of its transfers on their links, without computing; null where one of them is not known.",
            null=True,
        ),
    ]
)


def partition_tables(partition: Split) -> dict[str, pa.Table]:
    """The four tables of a partition, by name, and that of its schedule where it has one."""
    graph, placement, traffic = partition.graph, partition.placement, partition.traffic
    whole, sorts = traffic.totals.payload_bytes, what_is(graph)
    of_masks = {"masks": (MASKS, rows)} if (rows := mask_rows(partition)) else {}
    plain = plain_of(graph)
    protected = graph.protected if isinstance(graph, MaskedGraph) else {}
    groups = tensor_names(plain)
    schedule, parameters = partition.schedule, parameters_read(plain)
    timed = {} if schedule is None else {"schedule": (SCHEDULE, schedule_rows(graph, schedule))}
    return make_tables(
        graph.meta,
        {
            "placement": (
                PLACEMENT,
                [
                    (
                        op.id,
                        placement.devices[place],
                        placement.pinned[place],
                        placement.reasons[place],
                        ("home" if place in placement.streams else "device")
                        if parameters[op.id]
                        else None,
                        str(protected[op.id]) if op.id in protected else None,
                    )
                    for op in plain.ops
                    for place in [here(graph, op.id)]
                ],
            ),
            "transfers": (
                TRANSFERS,
                [
                    (
                        t.id,
                        known.id,
                        known.name,
                        known.label,
                        groups[known.id],
                        sorts[known.id],
                        t.tensor.id in partition.secret,
                        known.op,
                        t.src_device,
                        t.dst_device,
                        t.call,
                        t.direction,
                        t.wire_dtype,
                        t.payload_bytes,
                        t.payload_status,
                        mask_of(graph, t.tensor.id),
                        t.tensor.id if t.tensor.id != known.id else None,
                        t.payload_bytes
                        if t.tensor.id == known.id
                        else partition.unmasked_bytes(t.tensor.id),
                        t.packing,
                        t.plain_bytes,
                        t.wire_bytes,
                        t.bytes_expr,
                        t.tensor.seq_degree,
                        t.payload_bytes / whole if whole else 0.0,
                        t.seconds,
                        t.packing_seconds,
                        t.at_least,
                        t.joules,
                        origin.module_path,
                        origin.stack,
                        origin.layer,
                    )
                    for t, origin in zip(
                        traffic.transfers, origins(graph, placement, traffic.transfers), strict=True
                    )
                    for known in [plain.tensors[traced_tensor(graph, t.tensor.id)]]
                ],
            ),
            "calls": (
                CALLS,
                [
                    (
                        c.id,
                        c.device,
                        c.label,
                        tuple(traced_op(graph, op) for op in c.ops),
                        c.sent_payload_bytes,
                        c.sent_wire_bytes,
                        c.received_payload_bytes,
                        c.received_wire_bytes,
                        c.seconds,
                        c.at_least,
                        c.joules,
                    )
                    for c in traffic.calls
                ],
            ),
            "summary": (
                SUMMARY,
                [tuple(_items(value) for value in summary_row(partition).values())],
            ),
            **timed,
            **of_masks,
        },
        partition.identity,
    )


def partition_metadata(partition: Split) -> dict[str, str]:
    """What each file of a partition says of its run."""
    return {
        **trace_metadata(partition.graph.meta, partition.trace_id),
        "policy": partition.policy,
        "home": partition.placement.home,
        "accelerators": json.dumps(partition.placement.accelerators),
        "link": partition.link,
        "wire_dtype": partition.wire,
        "residency": partition.residency,
    }


def write_partition(partition: Split, trace: Path) -> Path:
    """Write the tables of a partition into its trace's directory; where they are.

    A schedule, and masks, of what was there before go.
    """
    metadata = partition_metadata(partition)
    if (masks := masks_metadata(partition.graph)) is not None:
        metadata["masks"] = masks
    if partition.schedule is not None:
        metadata["schedule"] = schedule_metadata(partition.schedule)
    folder = trace / partition.folder
    write_tables(
        folder,
        partition_tables(partition),
        metadata,
        advice="Make the place writable, or free some space.",
    )
    for table, there in (("schedule", partition.schedule), ("masks", masks)):
        if there is None and (folder / f"{table}.parquet").exists():
            with suppress(OSError):
                remove_files(folder, f"{table}.parquet")
    return folder


def _items(value: Any) -> Any:
    """A map as Arrow takes it: its entries in the order of their keys."""
    if not isinstance(value, Mapping):
        return value
    return [(key, _items(inner)) for key, inner in sorted(value.items())]


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
    metadata = read_table(folder, "summary", SUMMARY)[1]
    stored: dict[str, Any] = storage_of(metadata)
    graph = graph.with_meta(replace(graph.meta, **stored))
    try:
        graph = with_masks(graph, metadata.get("masks"))
        split = _split(graph, trace_id, rows)
        return replace(split, devices=_devices(folder))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise TableError(f"{folder} is damaged. Run partition again.") from error


def _split(graph: OpGraph, trace_id: str, rows: Mapping[str, list[dict[str, Any]]]) -> Split:
    """What rows of tables say. Raises ValueError, KeyError ... for rows that were never written."""
    (summary,) = rows["summary"]
    if len(rows["placement"]) != len(plain_of(graph).ops):
        raise ValueError("another number of ops")
    placed = rows["placement"]
    placement = Placement(
        summary["home"],
        tuple(row["device"] for row in placed),
        tuple(row["pinned"] for row in placed),
        tuple(row["reason"] for row in placed),
        frozenset(row["op_id"] for row in placed if row["weights_at"] == "home"),
    )
    placement = with_masks_placed(graph, placement)
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
        granularity=summary["granularity"],
    )


def _devices(folder: Path) -> tuple[str, ...]:
    """Home and the accelerators in their order, as the name of a partition's folder has them."""
    machine = unquote(folder.absolute().name).removeprefix("machine=")
    return tuple(one.partition("=")[0] for one in machine.partition("@")[0].split("+"))


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
        tensor, src = crossing(graph, row), row["src_device"]
        op = graph.tensors[tensor].op
        at_home = placement.home if placement.streams else None  # a parameter that is sent
        lies = at_home if op is None else placement.devices[op]
        if (tensor, src) not in there and lies != src:
            raise ValueError(f"transfer {number}: it is not there")
        there.add((tensor, row["dst_device"]))
    ran = [(here(graph, op), row["device"]) for row in rows["calls"] for op in row["ops"]]
    away = [(op, d) for op, d in enumerate(placement.devices) if d not in (None, placement.home)]
    if sorted(ran) != away or [row["call_id"] for row in rows["calls"]] != list(range(calls)):
        raise ValueError("calls of other ops than are away")
    for row in (*rows["transfers"], *rows["calls"]):
        figures = [
            v
            for k, v in row.items()
            if k.endswith(("_bytes", "seconds", "joules")) and v is not None
        ]
        if not all(isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError("a figure below 0 or none")


def _transfer(graph: OpGraph, row: Mapping[str, Any]) -> Transfer:
    return Transfer(
        row["transfer_id"],
        graph.tensors[crossing(graph, row)],
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
        row["joules"],
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
            tuple(here(graph, op) for op in row["ops"]),
            row["label"],
            row["sent_payload_bytes"],
            row["sent_wire_bytes"],
            row["received_payload_bytes"],
            row["received_wire_bytes"],
            row["seconds"],
            row["at_least"],
            # One without ops brings new state, right after it is made.
            steps[here(graph, row["ops"][0])] if row["ops"] else brought[row["call_id"]],
            row["joules"],
        )
        for row in rows
    )


_TABLES = ("placement", "transfers", "calls", "summary", "schedule", "masks", "measured_calls")
"""What may lie in the folder of a partition."""


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
            remove_files(folder, *(f"{table}.parquet" for table in _TABLES))
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
