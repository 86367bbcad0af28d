"""A partition read back from its directory: the graph, where its ops are, and what moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from costmodels.arrays import Options
from costmodels.links import Links
from cutedge.runtime.measured import MEASURED_CALLS, MeasuredCall
from partition import Residency
from partition.accounting import Call, Transfer, account, steps_of
from partition.placement import Placement
from partition.tables import CALLS, PLACEMENT, SUMMARY, TRANSFERS
from tracer.graph import OpGraph
from tracer.serde import TableError, read_table, read_trace


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What ``verify`` has measured of a partition."""

    calls: tuple[MeasuredCall, ...]
    """In order of execution."""
    home_seconds: float
    """Home's own ops, before, between and after the calls."""


@dataclass(frozen=True, slots=True)
class Split:
    """A traced model on its devices."""

    graph: OpGraph
    policy: str
    placement: Placement
    calls: tuple[Call, ...]
    transfers: tuple[Transfer, ...]
    resident_bytes: Mapping[str, int]
    """By device: parameters, buffers, constants and cached state."""
    link: str
    """What the links were called when it was counted."""
    wire_dtype: str | None
    residency: Residency
    options: Options
    """What makes its arrays faster than their descriptions."""
    measured: MeasuredRun | None
    """None where ``verify`` has not run it."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Home, then the accelerators that run anything."""
        return (self.placement.home, *self.placement.accelerators)

    def over(self, links: Links) -> "Split":
        """The same placement over other links; what was measured stays."""
        traffic = account(
            self.graph, self.placement, links, wire_dtype=self.wire_dtype, residency=self.residency
        )
        return replace(self, calls=traffic.calls, transfers=traffic.transfers, link=links.name)


def read_split(trace: Path, folder: Path) -> Split:
    """The partition in ``folder``, of the trace in ``trace``.

    Raises TableError where a table is missing or damaged, or is of another trace.
    """
    graph, trace_id = read_trace(trace)
    rows = {
        name: _rows(folder, name, schema, trace_id)[0]
        for name, schema in (
            ("placement", PLACEMENT), ("transfers", TRANSFERS), ("calls", CALLS),
            ("summary", SUMMARY),
        )
    }  # fmt: skip
    if len(rows["summary"]) != 1 or len(rows["placement"]) != len(graph.ops):
        raise TableError(f"{folder} is damaged. Run partition again.")
    (summary,) = rows["summary"]
    placement = Placement(
        summary["home"], *(
            tuple(row[column] for row in rows["placement"])
            for column in ("device", "pinned", "reason")
        )
    )  # fmt: skip
    transfers = tuple(_transfer(graph, row) for row in rows["transfers"])
    return Split(
        graph, summary["policy"], placement,
        _calls(graph, placement, rows["calls"], transfers), transfers,
        dict(summary["resident_bytes"]), summary["link"], summary["wire_dtype"],
        summary["residency"], Options.parse(summary["array_options"] or ""),
        _measured(folder, trace_id, rows["calls"]),
    )  # fmt: skip


def _rows(
    folder: Path, name: str, schema: pa.Schema, trace_id: str
) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    table, metadata = read_table(folder, name, schema)
    if metadata.get("trace_id") != trace_id:
        raise TableError(f"{folder / name}.parquet is of another trace. Run partition again.")
    return table.to_pylist(), metadata


def _transfer(graph: OpGraph, row: Mapping[str, Any]) -> Transfer:
    return Transfer(
        row["transfer_id"], graph.tensors[row["tensor_id"]], row["src_device"], row["dst_device"],
        row["call_id"], row["direction"], row["wire_dtype"], row["payload_bytes"],
        row["wire_bytes"], row["seconds"], row["bytes_expr"],
    )  # fmt: skip


def _calls(
    graph: OpGraph, placement: Placement, rows: Sequence[Mapping[str, Any]],
    transfers: Sequence[Transfer],
) -> tuple[Call, ...]:  # fmt: skip
    """The calls; their steps are not in the table, and follow from the placement."""
    steps = steps_of(graph, placement)
    brought = {t.call: steps[t.tensor.op or 0] + 1 for t in transfers if t.direction != "receive"}
    return tuple(
        Call(
            row["call_id"], row["device"], tuple(row["ops"]), row["label"],
            row["sent_payload_bytes"], row["sent_wire_bytes"], row["received_payload_bytes"],
            row["received_wire_bytes"], row["seconds"],
            # One without ops brings new state, right after it is made.
            steps[row["ops"][0]] if row["ops"] else brought[row["call_id"]],
        )
        for row in rows
    )  # fmt: skip


def _measured(
    folder: Path, trace_id: str, calls: Sequence[Mapping[str, Any]]
) -> MeasuredRun | None:
    """None where there is none, or where it is of other calls than those of the partition now."""
    if not (folder / "measured_calls.parquet").exists():
        return None
    rows, metadata = _rows(folder, "measured_calls", MEASURED_CALLS, trace_id)
    ran = [(row["device"], row["label"]) for row in rows]
    if ran != [(call["device"], call["label"]) for call in calls]:
        return None
    for row in rows:
        del row["label"]
    return MeasuredRun(tuple(MeasuredCall(**row) for row in rows), float(metadata["home_seconds"]))
