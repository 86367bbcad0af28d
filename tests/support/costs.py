"""Figures for graphs made by hand: what their ops cost, and devices that are slow enough to see."""

from dataclasses import replace

from costmodels.devices import Device
from tracer.graph import Kind, OpCost, OpGraph, Status


def costed(graph: OpGraph, flops: int = 100) -> OpGraph:
    cost = OpCost(flops=flops, flops_status=Status.EXACT)
    return graph.with_ops(
        replace(op, cost=cost) if op.kind not in (Kind.INPUT, Kind.OUTPUT) else op
        for op in graph.ops
    )


def device(name: str, flops_per_second: float, **figures) -> Device:
    return Device(
        name,
        "",
        trusted=False,
        peak_flops_per_second={"float32": flops_per_second},
        memory_bandwidth_bytes_per_second=1e12,
        **figures,
    )
