"""A whole model in a strip: what runs each layer, what it costs, and how what crosses grows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import fsum

from costmodels.roofline import DeviceTime
from cutedge.report.block import OUTSIDE
from cutedge.report.figures import Missing
from partition.accounting import Transfer, origins
from partition.split import Split
from tracer.formula import parse
from tracer.graph import Kind, Op
from tracer.stacks import layer_names
from tracer.summary import growth
from tracer.words import counted, duration, human

GROWTHS = ("nothing crosses", "constant", "linear", "quadratic")
"""Of what crosses that a layer makes: how its fastest growing tensor does, beside the batch."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The layers of a model under a placement, as they run."""

    layers: Sequence[str]
    """What is in no layer comes first, as ``outside``."""
    devices: Sequence[Sequence[float]]
    """By layer, the part that each device of the page has of its work."""
    costs: Sequence[float]
    """By layer."""
    measure: str
    """What costs are: ``seconds`` of its ops and of the transfers of what it makes, one after
    another, or ``FLOPs`` where seconds are not known."""
    growths: Sequence[int]
    """By layer, which of ``GROWTHS``."""
    texts: Sequence[str]
    """By layer."""


def overview(
    partition: Split, devices: Sequence[str], times: Mapping[str, DeviceTime]
) -> Overview | Missing:
    """A model under a placement, layer by layer; ``devices`` are those of the page."""
    graph, placed = partition.graph, partition.placement.devices
    names = layer_names(graph)
    inside: dict[str, list[Op]] = {OUTSIDE: []}
    for op in graph.ops:
        if placed[op.id] is not None and op.kind not in (Kind.INPUT, Kind.OUTPUT):
            inside.setdefault(names[op.id] or OUTSIDE, []).append(op)
    if not any(not op.is_view for op in inside[OUTSIDE]):
        del inside[OUTSIDE]
    if len(inside) < 2:
        return Missing("This model has no layers that follow each other.")
    crossing: dict[str, list[Transfer]] = {}
    transfers = partition.traffic.transfers
    made = origins(graph, partition.placement, transfers)
    for t, op in zip(transfers, made, strict=True):
        crossing.setdefault(names[op.id] or OUTSIDE, []).append(t)
    timed = partition.run is not None

    def cost(op: Op) -> float:
        device = placed[op.id]
        if timed and device is not None:
            return times[device].ops[op.id].seconds or 0.0
        return op.cost.flops or 0

    rows = []
    for name, ops in inside.items():
        by_device = {
            device: fsum(cost(op) for op in ops if placed[op.id] == device) for device in devices
        }
        whole, moved = fsum(by_device.values()), crossing.get(name, [])
        if not whole:  # nothing here is known to cost anything: by ops
            by_device = {
                device: sum(not op.is_view for op in ops if placed[op.id] == device)
                for device in devices
            }
        parts = fsum(by_device.values()) or 1.0
        moving = fsum(t.seconds or 0.0 for t in moved)
        degree = max((_degree(t.tensor.bytes_expr) for t in moved), default=-1) + 1
        size = sum(t.payload_bytes for t in moved)
        least = "≥ " * bool(partition.left_out)
        said = [
            "Outside of all layers" if name == OUTSIDE else f"Layer {name}",
            *(
                f"{device}: {f'{least}{duration(value)}' if timed else f'{value:,.0f} FLOPs'}"
                for device, value in by_device.items()
                if value and whole
            ),
            *([f"transfers: {duration(moving)}"] if timed and moved else []),
            f"{human(size)} cross in {counted(len(moved), 'transfer')}" if moved else GROWTHS[0],
            *([f"the fastest grows with {_grows(moved)}"] if degree > 1 else []),
        ]
        rows.append(
            (
                name,
                [round(by_device[device] / parts, 4) for device in devices],
                whole + (moving if timed else 0.0),
                min(degree, len(GROWTHS) - 1),
                "\n".join(said),
            )
        )
    layers, shares, costs, degrees, texts = zip(*rows, strict=True)
    return Overview(layers, shares, costs, "seconds" if timed else "FLOPs", degrees, texts)


def _grows(moved: Sequence[Transfer]) -> str:
    return growth(max(moved, key=lambda t: _degree(t.tensor.bytes_expr)).tensor)


@cache
def _degree(bytes_expr: str | None) -> int:
    """Of a size in the lengths of a run; 0 where it is constant or not known."""
    if bytes_expr is None:
        return 0
    return max(map(sum, parse(bytes_expr).growth(("past", "source", "seq"))), default=0)
