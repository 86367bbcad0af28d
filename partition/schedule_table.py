"""A schedule as a table, and what there is to say of it in a row."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa

from partition.accounting import Traffic, call_label
from partition.mask_table import here, mask_ids, mask_op, traced_op
from partition.placement import Placement
from partition.schedule import Schedule, Slot, Task, executed
from tracer.files import parse_json
from tracer.graph import Op, OpGraph
from tracer.serde import Rows, TableError, column, read_table
from tracer.summary import tensor_names

SCHEDULE = pa.schema(
    [
        column("schedule_id", pa.int32(), "Order of start, from 0."),
        column("schedule", pa.string(), "serial or overlap."),
        column("request", pa.int32(), "The request that it is of, from 0."),
        column(
            "resource",
            pa.string(),
            "What it runs or moves on: a device, or a direction of a link (`tee -> gpu`).",
        ),
        column("lane", pa.int32(), "Which of the tasks at one time on its resource, from 0."),
        column("category", pa.string(), "op or transfer."),
        column("name", pa.string(), "The op by its module, or the tensor as `tensor_group`."),
        column(
            "op_id",
            pa.int32(),
            "The op; joins with `ops`; null of a transfer, and of what home does for masks.",
            null=True,
        ),
        column(
            "mask_id",
            pa.int32(),
            "What home does for a mask; joins with `masks`; null of all else.",
            null=True,
        ),
        column(
            "transfer_id",
            pa.int32(),
            "The transfer; joins with `transfers`; null of an op.",
            null=True,
        ),
        column(
            "call_id",
            pa.int32(),
            "The call that it belongs to; joins with `calls`; null of an op at home.",
            null=True,
        ),
        column("start_seconds", pa.float64(), "When it starts, since the run began."),
        column(
            "end_seconds",
            pa.float64(),
            "When it ends; when it starts, where its seconds are not known.",
        ),
        column(
            "seconds",
            pa.float64(),
            "What it takes; null where that is not known, and then counted as 0.",
            null=True,
        ),
        column(
            "waits_for",
            pa.int32(),
            "The `schedule_id` at whose end it starts; null of what starts at once.",
            null=True,
        ),
        column(
            "wait",
            pa.string(),
            "What it waits for that row as: data (it makes or brings what this reads), resource (it "
            "had the device or link before) or order (it goes first by rule); null likewise.",
            null=True,
        ),
        column(
            "critical",
            pa.bool_(),
            "Whether it is on the critical path: the last row, the row that one waits for, and so on "
            "back to the start.",
        ),
    ]
)


def schedule_rows(graph: OpGraph, schedule: Schedule) -> Rows:
    """The rows of ``schedule.parquet``."""
    moved, labels, masks = tensor_names(graph), dict[int, str](), mask_ids(graph)
    rows = []
    for number, slot in enumerate(schedule.slots):
        task = slot.task
        if task.op is not None and task.op not in labels:
            name, what = call_label(graph, (task.op,)), graph.ops[task.op].name.split("_")[0]
            labels[task.op] = f"{what} {name}" if task.op in masks else name
        rows.append(
            (
                number,
                schedule.schedule,
                slot.request,
                task.uses[0],
                slot.lane,
                "transfer" if task.op is None else "op",
                moved[task.tensor or 0] if task.op is None else labels[task.op],
                traced_op(graph, task.op),
                masks.get(-1 if task.op is None else task.op),
                task.transfer,
                task.call,
                slot.start,
                slot.end,
                task.seconds,
                slot.waits_for,
                slot.wait,
                slot.critical,
            )
        )
    return rows


def schedule_metadata(schedule: Schedule) -> str:
    """What the file says of the whole schedule, as JSON."""
    return json.dumps({name: getattr(schedule, name) for name in _OF_THE_WHOLE})


def read_schedule(
    folder: Path, graph: OpGraph, placement: Placement, traffic: Traffic, trace_id: str
) -> Schedule | None:
    """The schedule in a partition's directory, without why its tasks are in this order.

    None where it has none. Raises TableError where it is damaged, of another trace or of other
    tasks than the placement has.
    """
    if not (folder / "schedule.parquet").exists():
        return None
    table, metadata = read_table(folder, "schedule", SCHEDULE)
    if metadata.get("trace_id") != trace_id or "schedule" not in metadata:
        raise TableError(f"{folder}/schedule.parquet is of another trace. Run partition again.")
    rows = table.to_pylist()
    try:
        slots = tuple(_slot(row, graph, traffic, len(rows)) for row in rows)
        read = Schedule(slots=slots, **parse_json(metadata["schedule"]))
        _check_whole(read)
        _check_tasks(read, graph, placement, traffic)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise TableError(f"{folder}/schedule.parquet is damaged. Run partition again.") from error
    return read


def _slot(row: Mapping[str, Any], graph: OpGraph, traffic: Traffic, count: int) -> Slot:
    """A row of ``count`` as what it was. Raises ValueError for one that was never written so."""
    op, transfer, waits_for = row["op_id"], row["transfer_id"], row["waits_for"]
    if row["mask_id"] is not None and op is None and row["mask_id"] >= 0:
        op = mask_op(graph, row["mask_id"])
    elif op is not None and op >= 0:
        op = here(graph, op)
    start, end, seconds = row["start_seconds"], row["end_seconds"], row["seconds"]
    if (op is None) == (transfer is None) or (waits_for is None) != (row["wait"] is None):
        raise ValueError("neither or both")
    if min(op or 0, transfer or 0, waits_for or 0) < 0 or (waits_for or 0) >= max(count, 1):
        raise ValueError("a number that nothing has")
    if not (0 <= start <= end and isfinite(end) and (seconds or 0) >= 0 and isfinite(seconds or 0)):
        raise ValueError("seconds")
    tensor = None if transfer is None else traffic.transfers[transfer].tensor.id
    return Slot(
        Task(
            (row["resource"],),
            seconds,
            op=op,
            transfer=transfer,
            tensor=tensor,
            call=row["call_id"],
        ),
        row["request"],
        row["lane"],
        start,
        end,
        waits_for,
        row["wait"],
        row["critical"],
    )


def _check_whole(schedule: Schedule) -> None:
    """Raise ValueError or TypeError where figures of the whole are none, or not of its rows."""
    seconds = [schedule.makespan_seconds, schedule.serial_seconds, schedule.bound_seconds]
    if not all(isfinite(value) and value >= 0 for value in seconds):
        raise ValueError("seconds")
    if not all(type(lanes) is int for lanes in (schedule.requests, *schedule.lanes.values())):
        raise TypeError("counts")
    for slot in schedule.slots:
        lanes = schedule.lanes[slot.task.uses[0]]
        if not (0 <= slot.lane < lanes and 0 <= slot.request < schedule.requests):
            raise ValueError("a lane or a request that there is not")


def _check_tasks(
    schedule: Schedule, graph: OpGraph, placement: Placement, traffic: Traffic
) -> None:
    """Raise ValueError unless each request has each op and transfer once, in its call and place."""
    wanted = sorted(
        (one.id, -1, -1 if call is None else call.id, call.device if call else placement.home)
        if isinstance(one, Op)
        else (-1, one.id, one.call, "")
        for one, call in executed(graph, placement, traffic)
    )
    by_request: dict[int, list[tuple[int, int, int, str]]] = defaultdict(list)
    for slot in schedule.slots:
        task = slot.task
        op, transfer, call = (-1 if n is None else n for n in (task.op, task.transfer, task.call))
        place = "" if task.op is None else task.uses[0]
        by_request[slot.request].append((op, transfer, call, place))
    if len(by_request) != schedule.requests * bool(wanted):
        raise ValueError("requests")
    if any(sorted(tasks) != wanted for tasks in by_request.values()):
        raise ValueError("other tasks than the placement has")


_OF_THE_WHOLE = tuple(field.name for field in fields(Schedule) if field.name != "slots")


def schedule_summary(graph: OpGraph, schedule: Schedule) -> dict[str, Any]:
    """The figures by name, and the rows of the critical path that take time."""
    names = SCHEDULE.names
    path = (dict(zip(names, row, strict=True)) for row in schedule_rows(graph, schedule))
    return {
        "schedule": schedule.schedule,
        "requests": schedule.requests,
        "makespan_seconds": schedule.makespan_seconds,
        "serial_seconds": schedule.serial_seconds,
        "bound_seconds": schedule.bound_seconds,
        "at_least": schedule.at_least,
        "requests_per_second": schedule.requests_per_second,
        "most_requests_per_second": schedule.most_requests_per_second,
        "limited_by": schedule.limited_by,
        "busy_seconds": schedule.busy_seconds,
        "idle_shares": schedule.idle_shares,
        "critical_path": [row for row in path if row["critical"] and row["seconds"]],
    }
