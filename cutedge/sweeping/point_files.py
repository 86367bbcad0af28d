"""The points of a sweep as Parquet files, whole or not there."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cutedge.sweeping.generations import MASKED, STATUS
from cutedge.sweeping.parts import COUNTS, FLAGS, JOULES, LIMIT, OPTIONAL_COUNTS, SECONDS
from cutedge.sweeping.points import Job, Points, points
from partition.summary_table import SUMMARY
from tracer.errors import InputError
from tracer.files import check_file, parse_json
from tracer.serde import RUN, column, description

_OWN = {
    "home_resident_bytes": "Bytes of parameters, buffers, constants and cached state at home.",
    "accelerator_resident_bytes": "Such bytes on the accelerator.",
    "cycles": "Of the matrix products on an array of multipliers; null elsewhere, and where not known.",
}

_LAID = {
    "makespan_seconds": "When the last task of all requests ends",
    "bound_seconds": "What no schedule of these tasks takes less than",
    "requests_per_second": "Requests over the makespan",
}

_GENERATED = {
    "ttft_seconds": "Of a generation, until its first token: the prefill",
    "tpot_first_seconds": "The first step after that",
    "tpot_last_seconds": "The last step",
    "tpot_mean_seconds": "The mean of all steps",
    "total_seconds": "Prefill, the move of cached state and all steps, one after another",
    "tokens_per_second": "Tokens of all sequences over `total_seconds`",
    "ttft_joules": "Energy until the first token: of the prefill",
    "step_first_joules": "Energy of the first step after that",
    "step_last_joules": "Energy of the last step",
    "step_mean_joules": "The mean of all steps",
    "total_joules": "Energy of prefill, the move of cached state and all steps",
    "joules_per_token": "`total_joules` over the tokens of all sequences",
}

_MOVED = {
    "moved_cache_bytes": "Cached state that goes to another device between prefill and decode"
}

_TEXT = pa.string()


def _figure(name: str, kind: pa.DataType) -> pa.Field:
    """A column of ``summary``, or one of a point alone; null where no placement is possible."""
    return column(name, kind, _OWN.get(name) or description(SUMMARY.field(name)), null=True)


SWEEP = pa.schema(
    [
        *(RUN.field(name) for name in ("model", "variant", "phase", "policy")),
        column("batch", pa.int64(), "Sequences."),
        column("seq", pa.int64(), "New tokens a sequence."),
        column("past", pa.int64(), "Tokens a sequence that are cached already."),
        column(
            "source",
            pa.int64(),
            "Tokens that an encoder has read, for a decoder that attends to them; else 0.",
        ),
        column(
            "wire_dtype",
            pa.string(),
            "The dtype asked for on the wire (int8 of arrays with an int8 speedup); null for the "
            "tensors' own.",
            null=True,
        ),
        _figure("pack", pa.string()),
        column("residency", pa.string(), "run or call, as for `partition`."),
        column("home", pa.string(), "The device with the inputs and the outputs."),
        column("accelerator", pa.string(), "The device that home calls."),
        column("link", pa.string(), "The link between them."),
        column(
            "array_options",
            pa.string(),
            "What makes an array faster than its description (`int8_speedup=2, chips=4`); null where "
            "nothing does.",
            null=True,
        ),
        column(
            "engine",
            pa.string(),
            "What carries ops out (`vllm`, or `accelerator=vllm`); null for the physical bound.",
            null=True,
        ),
        _figure("execution", pa.string()),
        column("weights_at", pa.string(), description(SUMMARY.field("weights_at"))),
        column(
            "weights",
            pa.string(),
            "What parameters are stored in; null for their dtype.",
            null=True,
        ),
        column(
            "kv_dtype",
            pa.string(),
            "What cached keys and values are stored in; null for their dtype.",
            null=True,
        ),
        column(
            "placed",
            pa.string(),
            "How the placement is known: `fixed` (by rules alone), `solved`, `proven between "
            "sizes` (a smaller and a larger size have the same answer, which proves it), `impossible`, "
            "or `not found in time`.",
        ),
        column(
            "optimal",
            pa.bool_(),
            "Whether no placement that is allowed costs less; null where the policy left nothing free.",
            null=True,
        ),
        column(
            "coverage",
            pa.float64(),
            "Share of the ops that work whose FLOPs are known, from 0 to 1.",
        ),
        *(_figure(name, pa.int64()) for name in (*COUNTS, *MASKED, *OPTIONAL_COUNTS)),
        *(_figure(name, pa.float64()) for name in (*SECONDS, *JOULES)),
        *(_figure(name, pa.bool_()) for name in FLAGS),
        _figure(STATUS, pa.string()),
        column(
            "schedule",
            pa.string(),
            "How runs are laid out: serial or overlap; null where that is not asked for.",
            null=True,
        ),
        column("requests", pa.int32(), "Runs in flight; null without a schedule.", null=True),
        *(
            column(
                name,
                pa.float64(),
                f"{what}; null without a schedule, or where not known.",
                null=True,
            )
            for name, what in _LAID.items()
        ),
        column("new", pa.int64(), "Tokens of a generation; null of one run.", null=True),
        column(
            "decode_policy",
            pa.string(),
            "What places the steps of a generation; null of one run.",
            null=True,
        ),
        *(
            column(name, kind, f"{what}; null of one run, or where not known.", null=True)
            for kind, told in ((pa.float64(), _GENERATED), (pa.int64(), _MOVED))
            for name, what in told.items()
        ),
        column(
            LIMIT,
            pa.string(),
            "The busiest resource then: home, accelerator, or what moves between them; null likewise.",
            null=True,
        ),
    ]
)
"""A row is a point. Model, phase and policy stand in the path too."""


def made(job: Job, marks: Mapping[str, str]) -> bytes:
    """The file of a job's points; ``marks`` stand in its metadata.

    Raises InputError naming the part of the sweep where a figure is beyond 64 bits.
    """
    try:
        found = points(job)
    except OverflowError as error:
        raise InputError(
            f"{', '.join(marks.values())}: a figure is larger than 64 bits hold; take smaller sizes"
        ) from error
    placed = json.dumps(dict(sorted(Counter(found.placed).items())))
    table = _table(found, job).replace_schema_metadata({**marks, "placed": placed})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _table(found: Points, job: Job) -> pa.Table:
    machines = found.machines
    run = {**found.run, "policy": job.policy.name}
    columns: dict[str, Any] = {
        **{name: [text] * len(found.placed) for name, text in run.items()},
        **{name: found.sizes[name] for name in ("batch", "seq", "past", "source")},
        "wire_dtype": found.wire_dtype,
        "pack": _each(
            ["+".join(one.text for one in each) or None for each in job.packings], found.packing
        ),
        "residency": _each(job.residencies, found.residency),
        "home": _each([m.home for m in machines], found.machine),
        "accelerator": _each([m.accelerators[0] for m in machines], found.machine),
        "link": _each([m.links.common.name for m in machines], found.machine),
        "array_options": _each([m.options.text or None for m in machines], found.machine),
        "engine": _each([m.engine or None for m in machines], found.machine),
        "execution": _each([m.execution for m in machines], found.machine),
        "weights_at": _each([m.weights_at for m in machines], found.machine),
        "schedule": _each([s.schedule if s else None for s in job.schedulings], found.scheduling),
        "requests": _each(
            [s.requests if s else None for s in job.schedulings], found.scheduling, pa.int32()
        ),
        **(_of_generations(found, job) if job.news else {}),
        "placed": found.placed,
        "optimal": found.optimal,
        "coverage": found.coverage,
        **{name: pa.array(values, mask=~known) for name, (values, known) in found.figures.items()},
    }
    rows = len(found.placed)
    return pa.table(
        [columns.get(field.name, pa.nulls(rows, field.type)) for field in SWEEP], schema=SWEEP
    )


def _of_generations(found: Points, job: Job) -> dict[str, Any]:
    policies = [(policy or job.policy).name for policy in job.decode_policies]
    return {
        "phase": ["generate"] * len(found.placed),
        "new": _each(job.news, found.new, pa.int64()),
        "decode_policy": _each(policies, found.decode_policy),
    }


def _each(values: Sequence[str | int | None], numbers: Any, kind: pa.DataType = _TEXT) -> pa.Array:
    return pa.array(values, kind).take(pa.array(np.asarray(numbers)))


def placed_rows(path: Path, marks: Mapping[str, str]) -> dict[str, int] | None:
    """How the rows of a file were placed; None where it is missing, damaged or of other marks."""
    with suppress(OSError, pa.ArrowException, ValueError, AttributeError, KeyError, TypeError):
        check_file(path)
        read = pq.read_metadata(path)
        metadata = {key.decode(): value.decode() for key, value in read.metadata.items()}
        columns = read.schema.to_arrow_schema().names
        if columns == SWEEP.names and all(metadata.get(key) == marks[key] for key in marks):
            placed: dict[str, int] = parse_json(metadata["placed"])
            return placed if sum(placed.values()) == read.num_rows else None
    return None
