"""Measured calls: what there is to say of one, and all of a run's on disk; torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from costmodels.calibrate import Log
from tracer.errors import InputError
from tracer.graph import TraceMeta
from tracer.serde import column, make_tables, read_file, write_tables


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


_TYPES: Mapping[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string()}

MEASURED_CALLS = pa.schema([
    column(
        one.name, pa.int32() if one.name == "call_id" else _TYPES[one.type],
        one.metadata["description"],
    )
    for one in fields(MeasuredCall)
] + [column("label", pa.string(), "As in `calls`.")])  # fmt: skip

_FRAMING = {part: f"{part}_framing_bytes" for part in ("message", "tensor")}


def write_measured(
    meta: TraceMeta, calls: Sequence[MeasuredCall], labels: Sequence[str], run: Mapping[str, Any],
    metadata: Mapping[str, str], framing: Mapping[str, int], folder: Path,
) -> Path:  # fmt: skip
    """Write ``measured_calls.parquet`` into a partition's directory; where it is.

    ``run`` is the partition's ``identity``; ``framing`` has the bytes of a ``message`` and of a
    ``tensor`` in it.
    """
    rows = [(*astuple(call), label) for call, label in zip(calls, labels, strict=True)]
    tables = make_tables(meta, {"measured_calls": (MEASURED_CALLS, rows)}, run)
    noted = {key: str(framing[part]) for part, key in _FRAMING.items()}
    write_tables(
        folder, tables, {**metadata, **noted},
        advice="Make the place writable, or free some space.",
    )  # fmt: skip
    return folder / "measured_calls.parquet"


def read_measured(path: Path) -> tuple[Log, dict[str, int]]:
    """(measured calls as ``calibrate`` fits them, the framing of their messages) of a file.

    Raises InputError for a file that is no such table.
    """
    try:
        table = read_file(path)
        framing = {
            part: int((table.schema.metadata or {})[key.encode()]) for part, key in _FRAMING.items()
        }
        column = {name: np.array(table[name].to_pylist(), float) for name in (
            "sent_payload_bytes", "received_payload_bytes", "seconds", "call_seconds",
        )}  # fmt: skip
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(f"{path} is no table of measured calls, as verify writes it") from error
    if len(table) < 4:
        raise InputError(f"{path}: {len(table)} calls are too few: three terms take 4 or more")
    return Log(
        path.name, tuple(range(1, len(table) + 1)),
        {"sent": column["sent_payload_bytes"], "received": column["received_payload_bytes"],
         "seconds": column["seconds"]},
    ), framing  # fmt: skip
