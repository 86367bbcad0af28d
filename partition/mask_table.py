"""What home does for masks as a table, and masks as other tables name them.

Tables speak of the ops and tensors of the trace. An op that home does for masks has a number of its
own (``mask_id``), and what is sent in place of a tensor has that tensor's id beside its scheme.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from partition.masking import masked
from partition.masks import MaskedGraph, plain_of
from partition.schemes import MANTISSA_BITS, Protection, pad_bits
from partition.split import Split
from tracer.files import parse_json
from tracer.graph import OpGraph
from tracer.serde import Rows, column

MASKS = pa.schema(
    [
        column("mask_id", pa.int32(), "Order of execution, from 0; joins with `schedule`."),
        column(
            "part",
            pa.string(),
            "mask (an operand before it is sent), pad (a pad of this run times the weights), recover "
            "(the result) or check.",
        ),
        column(
            "op_id",
            pa.int32(),
            "The protected op, the first where several read what is masked; joins with `ops`.",
        ),
        column(
            "tensor_id",
            pa.int32(),
            "The operand of a mask, else the op's result, as it is without masks; joins with "
            "`tensors`.",
        ),
        column("scheme", pa.string(), "The scheme with what is chosen of it, as in `placement.mask`."),
        column("device", pa.string(), "Home."),
        column("flops", pa.int64(), "What it computes; drawing random numbers is not counted."),
        column("flops_expr", pa.string(), "`flops` as a formula; null in a trace at fixed sizes.",
               null=True),
        column("read_bytes", pa.int64(), "Bytes that it reads."),
        column("write_bytes", pa.int64(), "Bytes that it writes."),
        column("seconds", pa.float64(), "What it takes at home; null where that is not known.",
               null=True),
        column("pad_bytes", pa.int64(), "Of what it reads those of pads that are made before the run."),
        column("leaked_bits", pa.float64(),
               "Of a float pad: what is told of each value by what is sent; null for others.",
               null=True),
        column("left_bits", pa.float64(),
               "Of a float pad: the significant bits that are left of each value on the wire; null for "
               "others.", null=True),
        column("module_path", pa.string(), "The protected op's, as in `ops`."),
        column("stack", pa.string(), "Likewise.", null=True),
        column("layer", pa.int32(), "Likewise.", null=True),
    ]
)  # fmt: skip


def mask_rows(split: Split) -> Rows:
    """The rows of ``masks.parquet``; none of a split without masks."""
    graph = split.graph
    if not isinstance(graph, MaskedGraph):
        return []
    rows = []
    for number, op in enumerate(sorted(graph.parts)):
        part, of = graph.parts[op]
        one, how = graph.ops[op], graph.protected[of]
        handled = graph.inputs(op)[0].id if part == "mask" else graph.plain.outputs(of)[0].id
        float_pad = how.scheme == "one-time-pad" and part == "mask"
        dtype = split.wire_dtype or graph.tensors[handled].dtype
        bits = pad_bits(dtype, how.scale) if float_pad and dtype in MANTISSA_BITS else None
        rows.append(
            (
                number,
                part,
                of,
                handled,
                str(how),
                split.placement.home,
                one.cost.flops or 0,
                one.cost.flops_expr,
                one.cost.read_bytes,
                one.cost.write_bytes,
                split.mask_seconds.get(op),
                sum(t.bytes for t in graph.inputs(op) if t.id in graph.pads),
                bits and bits.leaked_bits,
                bits and bits.left_bits,
                one.module_path,
                one.stack,
                one.layer,
            )
        )
    return rows


# --- ids of the trace -----------------------------------------------------------------------------


def traced_op(graph: OpGraph, op: int | None) -> int | None:
    """The op of the trace that an op of a split's graph is; None for what home does for masks."""
    return graph.origin[op] if op is not None and isinstance(graph, MaskedGraph) else op


def mask_ids(graph: OpGraph) -> dict[int, int]:
    """Op that home does for masks -> its ``mask_id``."""
    parts = graph.parts if isinstance(graph, MaskedGraph) else ()
    return {op: number for number, op in enumerate(sorted(parts))}


def traced_tensor(graph: OpGraph, tensor: int) -> int:
    """The tensor of the trace that a tensor that crosses is, or stands for."""
    if not isinstance(graph, MaskedGraph) or tensor < len(graph.plain.tensors):
        return tensor
    return graph.copies[tensor] if tensor in graph.copies else graph.masks[tensor].plain


def mask_of(graph: OpGraph, tensor: int) -> str | None:
    """The scheme that a tensor crosses under; None for what crosses as it is."""
    if not isinstance(graph, MaskedGraph) or tensor not in graph.masks:
        return None
    return graph.masks[tensor].protection.scheme


def masks_metadata(graph: OpGraph) -> str | None:
    """How ops are protected, as JSON, so that the graph can be made again; None without masks."""
    if not isinstance(graph, MaskedGraph):
        return None
    ops = {str(op): asdict(how) for op, how in graph.protected.items()}
    return json.dumps({"ops": ops, "wire_dtype": graph.wire_dtype})


def with_masks(graph: OpGraph, metadata: str | None) -> OpGraph:
    """A trace's graph with the masks of ``masks_metadata``. Raises ValueError for other text."""
    if metadata is None:
        return graph
    told = parse_json(metadata)
    ops = {int(op): Protection(**how) for op, how in told["ops"].items()}
    return masked(plain_of(graph), ops, told["wire_dtype"])


def here(graph: OpGraph, op: int) -> int:
    """An op of the trace, in a split's graph."""
    return graph.here[op] if isinstance(graph, MaskedGraph) else op


def mask_op(graph: OpGraph, mask_id: int) -> int:
    """The op with a ``mask_id``. Raises IndexError where there is no such."""
    ops: Sequence[int] = sorted(graph.parts) if isinstance(graph, MaskedGraph) else ()
    return ops[mask_id]


def crossing(graph: OpGraph, row: Mapping[str, Any]) -> int:
    """The tensor of a split's graph that a row of ``transfers`` is of. Raises ValueError for a row
    that no split has."""
    if row["masked_id"] is None:
        return int(row["tensor_id"])
    tensor = int(row["masked_id"])
    if traced_tensor(graph, tensor) != row["tensor_id"] or tensor == row["tensor_id"]:
        raise ValueError(f"no mask {tensor} of tensor {row['tensor_id']}")
    return tensor
