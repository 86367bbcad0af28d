"""Measured calls: what there is to say of one, and all of a run's on disk; torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from costmodels.calibrate import Log
from partition.accounting import Call
from tracer.errors import InputError
from tracer.graph import TraceMeta
from tracer.serde import TableError, column, make_tables, read_file, read_table, write_tables


def _says(about: str) -> Any:
    """A field that is a column, with its description."""
    return field(metadata={"description": about})


@dataclass(frozen=True, slots=True)
class MeasuredCall:
    """What a call took: the columns of ``measured_calls``, each with what it says."""

    call_id: int = _says("Order of execution, from 0; joins with `calls`.")
    device: str = _says("The accelerator that was called.")
    sent_tensors: int = _says("Tensors that were sent with it.")
    received_tensors: int = _says("Tensors that came back from it.")
    sent_payload_bytes: int = _says("Bytes from home, without framing.")
    sent_wire_bytes: int = _says(
        "Bytes from home with framing, counted at the socket; 0 of a request without tensors, see "
        "`control_bytes`."
    )
    received_payload_bytes: int = _says("Bytes to home, without framing.")
    received_wire_bytes: int = _says(
        "Bytes to home with framing, counted at the socket; 0 of a reply without tensors."
    )
    peer_payload_bytes: int = _says(
        "Bytes from other accelerators without framing, as the worker counted them."
    )
    peer_wire_bytes: int = _says(
        "Bytes from other accelerators with framing, as the worker counted them."
    )
    control_bytes: int = _says("Bytes of a request or a reply that carries no tensor.")
    home_seconds: float = _says("Home's own ops before it, since the call before.")
    serialise_seconds: float = _says(
        "At both ends: into the dtype and order that tensors cross in."
    )
    send_seconds: float = _says("Until the socket has taken the last byte.")
    accelerator_seconds: float = _says("The worker's ops, by its own clock.")
    receive_seconds: float = _says("From the reply's first byte to its last.")
    deserialise_seconds: float = _says("At both ends: out of what tensors crossed in.")
    seconds: float = _says(
        "Of its transfers, as in `calls`: those of `call_seconds` that the worker's ops did not "
        "take."
    )
    call_seconds: float = _says(
        "From the request's first step to the reply's last, by home's clock."
    )
    peak_memory_bytes: int = _says("The most memory that the worker has had by then.")
    home_peak_memory_bytes: int = _says("The most memory that home has had by then.")


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What ``verify`` has measured of a partition."""

    calls: tuple[MeasuredCall, ...]
    """In order of execution."""
    home_seconds: float
    """Home's own ops, before, between and after the calls."""


_TYPES: Mapping[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string()}

MEASURED_CALLS = pa.schema(
    [
        column(
            one.name,
            pa.int32() if one.name == "call_id" else _TYPES[one.type],
            one.metadata["description"],
        )
        for one in fields(MeasuredCall)
    ]
    + [column("label", pa.string(), "As in `calls`.")]
)

_FRAMING = {part: f"{part}_framing_bytes" for part in ("message", "tensor")}


def write_measured(
    meta: TraceMeta,
    calls: Sequence[MeasuredCall],
    labels: Sequence[str],
    run: Mapping[str, Any],
    metadata: Mapping[str, str],
    framing: Mapping[str, int],
    folder: Path,
) -> Path:
    """Write ``measured_calls.parquet`` into a partition's directory; where it is.

    ``run`` is the partition's ``identity``; ``framing`` has the bytes of a ``message`` and of a
    ``tensor`` in it.
    """
    rows = [(*astuple(call), label) for call, label in zip(calls, labels, strict=True)]
    tables = make_tables(meta, {"measured_calls": (MEASURED_CALLS, rows)}, run)
    noted = {key: str(framing[part]) for part, key in _FRAMING.items()}
    write_tables(
        folder, tables, {**metadata, **noted}, advice="Make the place writable, or free some space."
    )
    return folder / "measured_calls.parquet"


def read_run(folder: Path, trace_id: str, calls: Sequence[Call]) -> MeasuredRun | None:
    """What was measured of a partition; None where nothing was, or of other calls than these.

    Raises TableError for a table that is damaged, or of another trace.
    """
    if not (folder / "measured_calls.parquet").exists():
        return None
    table, metadata = read_table(folder, "measured_calls", MEASURED_CALLS)
    if metadata.get("trace_id") != trace_id:
        raise TableError(f"{folder}/measured_calls.parquet is of another trace. Run verify again.")
    rows = table.to_pylist()
    if [(r["device"], r["label"]) for r in rows] != [(call.device, call.label) for call in calls]:
        return None
    for row in rows:
        del row["label"]
    return MeasuredRun(tuple(MeasuredCall(**row) for row in rows), float(metadata["home_seconds"]))


def measured_log(
    name: str, calls: Sequence[MeasuredCall], framing: Mapping[str, int]
) -> tuple[Log, dict[str, int]]:
    """(measured calls as ``calibrate`` fits them, the framing of their messages) of a run."""
    if len(calls) < 4:
        raise InputError(f"{name}: {len(calls)} calls are too few: three terms take 4 or more")
    column = {
        figure: np.array([getattr(call, figure) for call in calls], float)
        for figure in ("sent_payload_bytes", "received_payload_bytes", "seconds")
    }
    return Log(
        name,
        tuple(range(1, len(calls) + 1)),
        {
            "sent": column["sent_payload_bytes"],
            "received": column["received_payload_bytes"],
            "seconds": column["seconds"],
        },
    ), dict(framing)


def read_measured(path: Path) -> tuple[Log, dict[str, int]]:
    """``measured_log`` of a file. Raises InputError for one that is no such table."""
    names = [field.name for field in fields(MeasuredCall)]
    try:
        table = read_file(path)
        framing = {
            part: int((table.schema.metadata or {})[key.encode()]) for part, key in _FRAMING.items()
        }
        calls = [MeasuredCall(**row) for row in table.select(names).to_pylist()]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no table of measured calls, as verify writes it") from error
    return measured_log(path.name, calls, framing)
