"""How figures look to a person. Units are powers of two and say so."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from math import isfinite
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from costmodels.flops import FlopTotals
from costmodels.links import Link
from partition.explain import Bottleneck, TransferGroup
from partition.tables import Partition
from tracer.graph import Kind, OpGraph, TraceMeta
from tracer.summary import count_ops, largest_tensors, parameter_bytes

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def print_json(value: Any) -> None:
    """A value for machines."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    """What JSON has for a value: null where a float is no number, text for dates and the like."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | Decimal():
            return float(value) if isfinite(value) else None
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case bytes():
            return value.hex()
    return str(value)


def mib(size: int) -> str:
    """Bytes as MiB to four digits, the precision of the reference log."""
    return f"{size / 2**20:.4f} MiB"


def human(size: int) -> str:
    """Bytes in the largest binary unit that leaves a number of one or more."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size} B"


def growth(degree: int | None) -> str:
    """How a size grows with the sequence."""
    if degree is None:
        return "not known"
    return {0: "constant", 1: "seq"}.get(degree, "seq" + str(degree).translate(SUPERSCRIPTS))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def _shape(shape: Iterable[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def headline(meta: TraceMeta) -> str:
    """What a trace is of, in a line."""
    changed = "".join(f", {key} = {value}" for key, value in meta.overrides)
    tokens = "the last token" if meta.logits == "last" else "every token"
    return (
        f"{meta.model}{changed}: {meta.phase} of {meta.batch} x {meta.seq} tokens, {meta.dtype}, "
        f"{meta.attn} attention, logits of {tokens}"
    )


def trace_summary(graph: OpGraph, flops: FlopTotals, folder: object) -> None:
    """What ``trace`` ends with."""
    out = console()
    meta = graph.meta
    kinds = count_ops(graph)
    views, constants = kinds.pop(Kind.VIEW, 0), kinds.pop(Kind.CONSTANT, 0)
    working = ", ".join(f"{n} {kind.value}" for kind, n in kinds.items())
    out.print(Text(headline(meta), style="bold"))
    out.print(f"ops         {len(graph.ops):,}: {working}, {views} view, {constants} constant")
    out.print(f"parameters  {meta.parameters:,} ({human(parameter_bytes(graph))} in {meta.dtype})")
    out.print(f"FLOPs       {flops.products:,} in matrix products (exact)")
    if flops.products_expr:
        out.print(f"            = {flops.products_expr}")
    out.print(f"            {flops.other:,} in all other ops (estimates among them)")
    missing = ", ".join(f"{n} x {target}" for target, n in sorted(flops.unsupported.items()))
    out.print(
        f"            known for {flops.coverage:.1%} of the ops that work"
        + (f"; not for {missing}" if missing else "")
    )
    out.print()
    table = _table(
        "largest tensors", "count", "shape", "bytes", "size", "formula", "grows with",
        right=("count", "bytes", "size"),
    )  # fmt: skip
    for group in largest_tensors(graph, 6):
        t = group.example
        table.add_row(
            group.name, str(group.count), _shape(t.shape), f"{t.bytes:,}", human(t.bytes),
            t.bytes_expr or "", growth(t.seq_degree),
        )  # fmt: skip
    out.print(table)
    out.print()
    out.print(f"written to {folder}", soft_wrap=True)


def trace_json(graph: OpGraph, flops: FlopTotals, folder: object, notes: Sequence[str]) -> None:
    """``trace --json``."""
    meta = graph.meta
    print_json({
        "folder": str(folder),
        "model": meta.model, "phase": meta.phase, "batch": meta.batch, "seq": meta.seq,
        "past": meta.past, "dtype": meta.dtype, "attn": meta.attn, "logits": meta.logits,
        "symbolic": list(meta.symbolic), "overrides": {k: json.loads(v) for k, v in meta.overrides},
        "ops": len(graph.ops),
        "ops_by_kind": {kind.value: n for kind, n in count_ops(graph).items()},
        "parameters": meta.parameters, "parameter_bytes": parameter_bytes(graph),
        "product_flops": flops.products, "product_flops_expr": flops.products_expr,
        "other_flops": flops.other, "flops_coverage": flops.coverage,
        "unsupported": dict(flops.unsupported),
        "largest_tensors": [
            {
                "name": g.name, "count": g.count, "shape": list(g.example.shape),
                "bytes": g.example.bytes, "bytes_expr": g.example.bytes_expr,
                "seq_degree": g.example.seq_degree,
            }
            for g in largest_tensors(graph, 6)
        ],
        "warnings": list(notes),
    })  # fmt: skip


def partition_summary(
    partition: Partition,
    link: Link,
    top: Sequence[TransferGroup],
    bottleneck: Bottleneck | None,
    folder: object,
) -> None:
    """What ``partition`` ends with."""
    out = console()
    traffic, totals, placement = partition.traffic, partition.traffic.totals, partition.placement
    out.print(Text(headline(partition.graph.meta), style="bold"))
    accelerators = ", ".join(placement.accelerators) or "no accelerator"
    out.print(
        f"policy {partition.policy}: {placement.home} calls {accelerators}, "
        f"{partition.wire} on the wire, residency {partition.residency}"
    )
    out.print()
    table = _table(
        "", "payload", f"on the wire ({link.name})", right=("payload", f"on the wire ({link.name})")
    )
    for name, payload, wire in (
        ("sent", totals.sent_payload_bytes, totals.sent_wire_bytes),
        ("received", totals.received_payload_bytes, totals.received_wire_bytes),
        ("between accelerators", totals.peer_payload_bytes, totals.peer_wire_bytes),
        ("total", totals.payload_bytes, totals.wire_bytes),
    ):
        if name != "between accelerators" or payload:
            table.add_row(name, mib(payload), mib(wire))
    out.print(f"{len(traffic.calls)} calls, {len(traffic.transfers)} transfers")
    out.print(table)
    if traffic.total_expr is not None:
        out.print(f"total payload bytes = {traffic.total_expr}", soft_wrap=True)
    for device, size in traffic.resident_bytes.items():
        out.print(f"resident on {device}: {human(size)} of parameters and constants")
    out.print()
    if top:
        table = _table(
            "top transfers", "direction", "count", "each", "all", "share", "grows with",
            right=("count", "each", "all", "share"),
        )  # fmt: skip
        for group in top[:8]:
            table.add_row(
                group.name, group.direction, str(group.count), human(group.example.payload_bytes),
                human(group.payload_bytes), f"{group.share:.1%}",
                growth(group.example.tensor.seq_degree),
            )  # fmt: skip
        out.print(table)
        out.print()
    out.print(bottleneck_sentence(bottleneck, placement.accelerators), soft_wrap=True)
    out.print(f"written to {folder}", soft_wrap=True)


def bottleneck_sentence(found: Bottleneck | None, accelerators: Sequence[str]) -> str:
    """The bottleneck and what would relieve it, in one sentence."""
    if found is None:
        return "Nothing crosses between devices."
    text = (
        f"Bottleneck: {found.share:.1%} of the traffic is {found.name} ({found.transfers} "
        f"transfers, growing with {growth(found.seq_degree)})"
    )
    relief = found.relief
    if relief is None:
        return f"{text}; no single step would relieve it."
    calls = f" and {relief.saved_calls} calls" if relief.saved_calls else ""
    saved = f"would save {mib(relief.saved_bytes)}{calls}"
    if relief.wire_dtype:
        return f"{text}; sending floats as {relief.wire_dtype} (--wire-dtype) {saved}."
    ops, place = ", ".join(relief.moved_ops), ", ".join(accelerators)
    how = f" (--policy {relief.policy})" if relief.policy else ""
    return f"{text}; running {ops} on {place} too{how} {saved}."


def partition_dict(
    partition: Partition,
    top: Sequence[TransferGroup],
    bottleneck: Bottleneck | None,
    folder: object,
) -> dict[str, Any]:
    """``partition --json``, and an entry of ``compare --json``."""
    traffic, totals = partition.traffic, partition.traffic.totals
    relief = bottleneck.relief if bottleneck else None
    return {
        "folder": str(folder), "policy": partition.policy, "home": partition.placement.home,
        "accelerators": list(partition.placement.accelerators), "link": partition.link,
        "wire": partition.wire, "residency": partition.residency,
        "calls": len(traffic.calls), "transfers": len(traffic.transfers),
        "cut_edges": traffic.cut_edges,
        "sent_payload_bytes": totals.sent_payload_bytes,
        "received_payload_bytes": totals.received_payload_bytes,
        "peer_payload_bytes": totals.peer_payload_bytes,
        "total_payload_bytes": totals.payload_bytes,
        "sent_wire_bytes": totals.sent_wire_bytes,
        "received_wire_bytes": totals.received_wire_bytes,
        "peer_wire_bytes": totals.peer_wire_bytes,
        "total_wire_bytes": totals.wire_bytes,
        "total_bytes_expr": traffic.total_expr,
        "resident_bytes": dict(traffic.resident_bytes),
        "top_transfers": [
            {
                "name": g.name, "direction": g.direction, "count": g.count,
                "each_payload_bytes": g.example.payload_bytes, "payload_bytes": g.payload_bytes,
                "share": g.share, "seq_degree": g.example.tensor.seq_degree,
            }
            for g in top
        ],
        "bottleneck": None if bottleneck is None else {
            "name": bottleneck.name, "transfers": bottleneck.transfers,
            "payload_bytes": bottleneck.payload_bytes, "share": bottleneck.share,
            "seq_degree": bottleneck.seq_degree,
            "relief": None if relief is None else {
                "saved_bytes": relief.saved_bytes, "saved_calls": relief.saved_calls,
                "moved_ops": list(relief.moved_ops), "policy": relief.policy,
                "wire_dtype": relief.wire_dtype,
            },
        },
    }  # fmt: skip


def comparison(
    partitions: Sequence[Partition], baseline: Partition, saved: Sequence[int], out_dir: object
) -> None:
    """What ``compare`` prints: the policies side by side."""
    out = console()
    meta = baseline.graph.meta
    out.print(Text(headline(meta), style="bold"))
    out.print(
        f"{baseline.placement.home} as home, {baseline.wire} on the wire, "
        f"residency {baseline.residency}; saved is against {baseline.policy}"
    )
    out.print()
    columns = ("calls", "sent", "received", "total", "saved", "saved %", "resident off home")
    table = _table("policy", *columns, right=columns)
    whole = baseline.traffic.totals.payload_bytes
    for partition, less in zip(partitions, saved, strict=True):
        totals = partition.traffic.totals
        resident = partition.traffic.resident_bytes
        away = sum(size for device, size in resident.items() if device != partition.placement.home)
        table.add_row(
            partition.policy, str(len(partition.traffic.calls)), mib(totals.sent_payload_bytes),
            mib(totals.received_payload_bytes), mib(totals.payload_bytes), mib(less),
            f"{less / whole:.1%}" if whole else "", human(away),
        )  # fmt: skip
    out.print(table)
    if meta.symbolic:
        out.print()
        out.print(f"Total payload bytes in {' and '.join(meta.symbolic)}:")
        for partition in partitions:
            out.print(f"  {partition.policy} = {partition.traffic.total_expr}", soft_wrap=True)
    out.print()
    out.print(f"written to {out_dir}", soft_wrap=True)


def rows(columns: Sequence[str], values: Iterable[Sequence[Any]]) -> None:
    """Any table, as wide as it is: a terminal may wrap its lines, but nothing is cut."""
    data = [*values]
    cells = [[*columns], *([_cell(value) for value in row] for row in data)]
    pads, widths = [], []
    for n in range(len(columns)):
        pads.append(str.rjust if all(_is_number(row[n]) for row in data) else str.ljust)
        widths.append(max(cell_len(line) for row in cells for line in row[n].split("\n")))
    for number, row in enumerate(cells):
        for parts in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            line = "  ".join(
                pad(part, width - cell_len(part) + len(part))
                for part, pad, width in zip(parts, pads, widths, strict=True)
            ).rstrip()
            if number:
                print(line)
            else:
                console().print(Text(line, style="bold"), soft_wrap=True)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | Decimal | None)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)
