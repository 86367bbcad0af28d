"""A partition on disk: placement, transfers, calls and summary as Parquet in the trace's folder."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from costmodels.arrays import Options
from costmodels.flops import total_flops
from costmodels.links import Links
from partition.accounting import Traffic
from partition.placement import Placement
from partition.run import Chips, Run
from partition.solve import Proof
from tracer.files import remove_files
from tracer.graph import FLOATING, OpGraph
from tracer.serde import make_tables, trace_metadata, write_tables

PLACEMENT = pa.schema([
    pa.field("op_id", pa.int32(), nullable=False),
    pa.field("device", pa.string()),
    pa.field("pinned", pa.bool_(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
])  # fmt: skip

TRANSFERS = pa.schema([
    pa.field("transfer_id", pa.int32(), nullable=False),
    pa.field("tensor_id", pa.int32(), nullable=False),
    pa.field("tensor_name", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("src_op", pa.int32(), nullable=False),
    pa.field("src_device", pa.string(), nullable=False),
    pa.field("dst_device", pa.string(), nullable=False),
    pa.field("call_id", pa.int32(), nullable=False),
    pa.field("direction", pa.string(), nullable=False),
    pa.field("wire_dtype", pa.string(), nullable=False),
    pa.field("payload_bytes", pa.int64(), nullable=False),
    pa.field("wire_bytes", pa.int64(), nullable=False),
    pa.field("bytes_expr", pa.string()),
    pa.field("seq_degree", pa.int8()),
    pa.field("share", pa.float64(), nullable=False),
    pa.field("seconds", pa.float64()),
    pa.field("module_path", pa.string(), nullable=False),
    pa.field("stack", pa.string()),
    pa.field("layer", pa.int32()),
])  # fmt: skip

CALLS = pa.schema([
    pa.field("call_id", pa.int32(), nullable=False),
    pa.field("device", pa.string(), nullable=False),
    pa.field("label", pa.string(), nullable=False),
    pa.field("ops", pa.list_(pa.int32()), nullable=False),
    pa.field("sent_payload_bytes", pa.int64(), nullable=False),
    pa.field("sent_wire_bytes", pa.int64(), nullable=False),
    pa.field("received_payload_bytes", pa.int64(), nullable=False),
    pa.field("received_wire_bytes", pa.int64(), nullable=False),
    pa.field("seconds", pa.float64()),
])  # fmt: skip

SUMMARY = pa.schema([
    pa.field("policy", pa.string(), nullable=False),
    pa.field("home", pa.string(), nullable=False),
    pa.field("accelerators", pa.list_(pa.string()), nullable=False),
    pa.field("link", pa.string(), nullable=False),
    pa.field("wire_dtype", pa.string()),
    pa.field("residency", pa.string(), nullable=False),
    pa.field("calls", pa.int32(), nullable=False),
    pa.field("transfers", pa.int32(), nullable=False),
    pa.field("cut_edges", pa.int32(), nullable=False),
    pa.field("sent_payload_bytes", pa.int64(), nullable=False),
    pa.field("sent_wire_bytes", pa.int64(), nullable=False),
    pa.field("received_payload_bytes", pa.int64(), nullable=False),
    pa.field("received_wire_bytes", pa.int64(), nullable=False),
    pa.field("peer_payload_bytes", pa.int64(), nullable=False),
    pa.field("peer_wire_bytes", pa.int64(), nullable=False),
    pa.field("total_payload_bytes", pa.int64(), nullable=False),
    pa.field("total_wire_bytes", pa.int64(), nullable=False),
    pa.field("total_bytes_expr", pa.string()),
    pa.field("seconds", pa.float64()),
    pa.field("resident_bytes", pa.map_(pa.string(), pa.int64()), nullable=False),
    pa.field("coverage", pa.float64(), nullable=False),
    pa.field("compute_seconds", pa.map_(pa.string(), pa.float64()), nullable=False),
    pa.field("run_seconds", pa.float64()),
    pa.field("objective", pa.string()),
    pa.field("objective_value", pa.int64()),
    pa.field("objective_bound", pa.int64()),
    pa.field("objective_unit", pa.string()),
    pa.field("optimal", pa.bool_()),
    pa.field("solver", pa.string()),
    pa.field("cut", pa.string()),
    pa.field("cycles", pa.map_(pa.string(), pa.int64()), nullable=False),
    pa.field("array_options", pa.string()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Partition:
    """A placement of a traced model with what it moves, and the options it was counted under."""

    graph: OpGraph
    trace_id: str
    policy: str
    placement: Placement
    traffic: Traffic
    links: Links
    wire_dtype: str | None
    """What floating tensors were turned into on the wire, None for their own dtypes."""
    residency: str
    compute_seconds: Mapping[str, float] = field(default_factory=dict)
    """Device -> what its ops take there, one after another; described devices alone."""
    solution: Proof | None = None
    """How good the placement is; None where the policy left nothing free."""
    objective: str | None = None
    """What the solution is best for: ``bytes``, ``seconds`` or both; None without one."""
    unit: str | None = None
    """Of the solution's objective and bound: ``bytes``, ``ns`` or ``weighted``."""
    cycles: Mapping[str, int] = field(default_factory=dict)
    """Device -> the cycles of its products there; arrays of multipliers alone."""
    options: Options = field(default_factory=Options)
    """What makes the arrays faster than their descriptions."""
    chips: Chips | None = None
    """The arrays that compute for home; None where no accelerator computes, or one is no array."""

    @property
    def run(self) -> Run | None:
        """What the run takes; None where a device or a link that it uses is not known."""
        home, accelerators = self.placement.home, self.placement.accelerators
        moving, meta = self.traffic.totals.seconds, self.graph.meta
        if moving is None or not {home, *accelerators} <= set(self.compute_seconds):
            return None
        at_home, away = (
            self.compute_seconds[home], sum(self.compute_seconds[d] for d in accelerators)
        )  # fmt: skip
        chips, tokens = self.chips, meta.batch * max(meta.seq, 1)
        if chips is None:
            return Run(at_home, away, moving, tokens, None)
        return Run(
            at_home, away, moving, tokens, chips.options.chips, chips.fewest_within(moving),
            at_home + chips.seconds(chips.most) + moving,
        )  # fmt: skip

    @property
    def run_seconds(self) -> float | None:
        """Computing and moving, one after another; None where ``run`` is."""
        return None if self.run is None else self.run.seconds

    @property
    def wire(self) -> str:
        """The dtype in the directory's name: what floats cross in, ``native`` where several do."""
        crossing = {t.wire_dtype for t in self.traffic.transfers if t.wire_dtype in FLOATING}
        if len(crossing) == 1:
            return crossing.pop()
        return "native" if crossing else self.wire_dtype or self.graph.meta.dtype

    @property
    def folder(self) -> Path:
        """Where the tables go, inside the trace's directory."""
        policy = quote(self.policy, safe="+@,() ")  # as DuckDB reads it: a name may hold a "="
        return Path(f"policy={policy}/wire={self.wire}/residency={self.residency}")


def write_partition(partition: Partition, trace: Path) -> Path:
    """Write the four tables of a partition into its trace's directory; where they are."""
    graph, placement, traffic = partition.graph, partition.placement, partition.traffic
    totals = traffic.totals
    tables = make_tables(graph.meta, {
        "placement": (PLACEMENT, [
            (op.id, placement.devices[op.id], placement.pinned[op.id], placement.reasons[op.id])
            for op in graph.ops
        ]),
        "transfers": (TRANSFERS, [
            (
                t.id, t.tensor.id, t.tensor.name, t.tensor.label, t.tensor.op, t.src_device,
                t.dst_device, t.call, t.direction, t.wire_dtype, t.payload_bytes, t.wire_bytes,
                t.bytes_expr, t.tensor.seq_degree, share(t.payload_bytes, totals.payload_bytes),
                t.seconds, graph.ops[t.tensor.op or 0].module_path,
                graph.ops[t.tensor.op or 0].stack, graph.ops[t.tensor.op or 0].layer,
            )
            for t in traffic.transfers
        ]),
        "calls": (CALLS, [
            (
                c.id, c.device, c.label, c.ops, c.sent_payload_bytes, c.sent_wire_bytes,
                c.received_payload_bytes, c.received_wire_bytes, c.seconds,
            )
            for c in traffic.calls
        ]),
        "summary": (SUMMARY, [(
            partition.policy, placement.home, placement.accelerators, partition.links.name,
            partition.wire_dtype, partition.residency, len(traffic.calls),
            len(traffic.transfers), traffic.cut_edges, totals.sent_payload_bytes,
            totals.sent_wire_bytes, totals.received_payload_bytes, totals.received_wire_bytes,
            totals.peer_payload_bytes, totals.peer_wire_bytes, totals.payload_bytes,
            totals.wire_bytes, traffic.total_expr, totals.seconds,
            sorted(traffic.resident_bytes.items()), total_flops(graph).coverage,
            sorted(partition.compute_seconds.items()), partition.run_seconds, partition.objective,
            *_proof(partition), sorted(partition.cycles.items()), partition.options.text or None,
        )]),
    })  # fmt: skip
    metadata = {
        **trace_metadata(graph.meta, partition.trace_id), "policy": partition.policy,
        "home": placement.home, "accelerators": json.dumps(placement.accelerators),
        "link": partition.links.name, "wire_dtype": partition.wire,
        "residency": partition.residency,
    }  # fmt: skip
    folder = trace / partition.folder
    write_tables(folder, tables, metadata, advice="Make the place writable, or free some space.")
    return folder


def _proof(
    partition: Partition,
) -> tuple[int | None, int | None, str | None, bool | None, str | None, str | None]:
    solution = partition.solution
    if solution is None:
        return None, None, None, None, None, None
    return (
        solution.objective, solution.bound, partition.unit, solution.proven, solution.solver,
        solution.cut or None,
    )  # fmt: skip


def share(part: int, whole: int) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0


def remove_stale(trace: Path, trace_id: str) -> list[str]:
    """Remove the partitions and costs of another trace from a trace's directory.

    They would join with ops that they do not belong to. What was removed, by policy, or ``costs``.
    """
    removed = set()
    if not _is_of(trace / "costs.parquet", trace_id):
        remove_files(trace, "costs.parquet")
        removed.add("costs")
    for summary in trace.glob("policy=*/wire=*/residency=*/summary.parquet"):
        if _is_of(summary, trace_id):
            continue
        folder = summary.parent
        removed.add(unquote(folder.parent.parent.name.removeprefix("policy=")))
        with suppress(OSError):  # what is not ours stays
            tables = ("placement", "transfers", "calls", "summary", "measured_calls")
            remove_files(folder, *(f"{table}.parquet" for table in tables))
            for level in (folder, folder.parent, folder.parent.parent):
                level.rmdir()
    return sorted(removed)


def _is_of(table: Path, trace_id: str) -> bool:
    """Whether a table is of a trace, or not there; one that cannot be read is not."""
    with suppress(OSError, pa.ArrowException):
        metadata = pq.read_metadata(table).metadata if table.exists() else None
        return not table.exists() or (metadata or {}).get(b"trace_id") == trace_id.encode()
    return False
