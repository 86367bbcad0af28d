"""The one row that sums a partition up."""

from typing import Any

import pyarrow as pa

from costmodels.flops import total_flops
from partition.split import Split
from tracer.serde import column

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
        column(
            "granularity",
            pa.string(),
            "What ops lie on one device together: op, tensor, module, layer, or convex for one call to "
            "each accelerator.",
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
        column("masked_payload_bytes", pa.int64(), "Of `total_payload_bytes` those under a mask."),
        column(
            "unmasked_payload_bytes",
            pa.int64(),
            "What `masked_payload_bytes` would be without masks.",
        ),
        column(
            "pad_bytes",
            pa.int64(),
            "Pads that are made before the run and used in it alone; they lie at home.",
        ),
        column(
            "offline_flops",
            pa.int64(),
            "What is computed before the run: pads times weights, and what checks need of the weights.",
        ),
        column(
            "home_mask_flops",
            pa.int64(),
            "What home computes for masks in the run: masking, recovery, checks, pads of the run.",
        ),
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
            "joules",
            pa.float64(),
            "Energy of all transfers on their links; null where a link that is used has no figure.",
            null=True,
        ),
        column(
            "home_joules",
            pa.float64(),
            "Energy of computing at home, beside what home draws anyway; null where it has no figure.",
            null=True,
        ),
        column(
            "accelerator_joules",
            pa.float64(),
            "Likewise of the accelerators that are used, all together; null where one has no figure.",
            null=True,
        ),
        column(
            "idle_joules",
            pa.float64(),
            "What all devices draw whatever they do, over `run_seconds`; null where that is known of "
            "no device, or the seconds are not.",
            null=True,
        ),
        column(
            "run_joules",
            pa.float64(),
            "Energy of the run: the sum of these four, as far as they are known; null where that of "
            "computing is not.",
            null=True,
        ),
        column(
            "joules_per_token",
            pa.float64(),
            "`run_joules` over the new tokens of the batch; null likewise.",
            null=True,
        ),
        column(
            "energy_at_least",
            pa.bool_(),
            "Whether `run_joules` leaves out what is not known: buffers and registers, a link without "
            "a figure, idle power, seconds.",
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
            "What the placement is best for: bytes, seconds, energy, or several; null where the policy "
            "left nothing free.",
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
        column(
            "objective_unit", pa.string(), "bytes, ns, nJ, or weighted; null likewise.", null=True
        ),
        column(
            "granularity_price",
            pa.int64(),
            "What the placement costs more than the best one found op by op, in `objective_unit`; null "
            "likewise, and where that is the granularity or nothing was found in time.",
            null=True,
        ),
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
        "granularity": partition.granularity,
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
        **partition.mask_costs,
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
        **partition.energy_figures,
        "link_bound_chips": run and run.link_bound_chips,
        "many_chips_seconds": run and run.many_chips_seconds,
        "objective": partition.objective,
        "objective_value": solution and solution.objective,
        "objective_bound": solution and solution.bound,
        "objective_unit": partition.unit if solution else None,
        "granularity_price": partition.granularity_price,
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
