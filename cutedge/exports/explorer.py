"""The op graph as Model Explorer reads it: a graph, and node data to lay over it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from cutedge.exports.graphs import CUT, colours
from partition.split import Split
from tracer.graph import Op, OpGraph, Tensor
from tracer.summary import tensor_names

GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e0803c"}]


def graph_json(graph: OpGraph, split: Split | None) -> str:
    """The graph: nodes are ops, layers are modules. Of a split an overlay shows the cut edges."""
    names = tensor_names(graph)
    position = {
        tensor.id: number for op in graph.ops for number, tensor in enumerate(graph.outputs(op.id))
    }
    incoming: list[list[dict[str, str]]] = [[] for _ in graph.ops]
    for edge in sorted(graph.edges, key=lambda edge: (edge.dst, edge.arg_index)):
        if edge.src is not None:
            incoming[edge.dst].append(
                {
                    "sourceNodeId": str(edge.src),
                    "sourceNodeOutputId": str(position[edge.tensor]),
                    "targetNodeInputId": str(edge.arg_index),
                }
            )
    made: dict[str, Any] = {
        "id": graph.meta.model,
        "nodes": [
            {
                "id": str(op.id),
                "label": op.name,
                "namespace": op.module_path.replace(".", "/"),
                "attrs": _attributes(_of_op(op, split)),
                "incomingEdges": incoming[op.id],
                "outputsMetadata": [
                    {"id": str(number), "attrs": _attributes(_of_tensor(tensor, names[tensor.id]))}
                    for number, tensor in enumerate(graph.outputs(op.id))
                ],
            }
            for op in graph.ops
        ],
    }
    if split is not None:
        made["tasksData"] = {
            "edgeOverlaysDataListLeftPane": [_cut_edges(split, names)],
            "edgeOverlaysDataListRightPane": [],
        }
    return _json({"label": graph.meta.model, "graphs": [made]})


def overlays(graph: OpGraph, split: Split | None) -> dict[str, str]:
    """Node data: ``flops``, ``bytes`` read and written and, of a split, ``device``.

    An op without a figure (FLOPs that are not known, the device of a constant) is left out.
    """
    figures: dict[str, tuple[str, Callable[[Op], int | None]]] = {
        "flops": ("FLOPs", lambda op: op.cost.flops),
        "bytes": ("bytes read and written", lambda op: op.cost.read_bytes + op.cost.write_bytes),
    }
    made = {
        key: _node_data(
            graph, name, {op.id: {"value": figure(op)} for op in graph.ops}, gradient=GRADIENT
        )
        for key, (name, figure) in figures.items()
    }
    if split is not None:
        devices, colour = split.placement.devices, colours(split.used)
        placed = {
            op: {"value": device, "bgColor": colour[device]}
            for op, device in enumerate(devices)
            if device is not None
        }
        made["device"] = _node_data(graph, "device", placed, showExpandedSummaryOnGroupNode=True)
    return made


def _node_data(
    graph: OpGraph, name: str, values: Mapping[int, Mapping[str, Any]], **options: Any
) -> str:
    results = {str(op): value for op, value in values.items() if value["value"] is not None}
    return _json({graph.meta.model: {"name": name, "results": results, **options}})


def _of_op(op: Op, split: Split | None) -> dict[str, Any]:
    return {
        "target": op.target,
        "kind": op.kind.value,
        "module type": op.module_type,
        "stack": op.stack,
        "layer": op.layer,
        "FLOPs": op.cost.flops,
        "FLOPs formula": op.cost.flops_expr,
        "read bytes": op.cost.read_bytes,
        "write bytes": op.cost.write_bytes,
        "parameter bytes": op.cost.param_bytes,
        "device": split.placement.devices[op.id] if split else None,
        "reason": split.placement.reasons[op.id] if split else None,
    }


def _of_tensor(tensor: Tensor, name: str) -> dict[str, Any]:
    return {
        "tensor_name": tensor.name,
        "name": name,
        "dtype": tensor.dtype,
        "tensor_shape": f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]",
        "bytes": tensor.bytes,
        "bytes formula": tensor.bytes_expr,
    }


def _cut_edges(split: Split, names: list[str]) -> dict[str, Any]:
    graph, devices = split.graph, split.placement.devices
    ways: dict[str, list[dict[str, str]]] = {}
    for edge in graph.edges:
        src, dst = devices[edge.src] if edge.src is not None else None, devices[edge.dst]
        if src is not None and dst is not None and src != dst:
            ways.setdefault(f"{src} -> {dst}", []).append(
                {
                    "sourceNodeId": str(edge.src),
                    "targetNodeId": str(edge.dst),
                    "label": f"{names[edge.tensor]}, {graph.tensors[edge.tensor].bytes:,} bytes",
                }
            )
    return {
        "name": "cut edges",
        "type": "edge_overlays",
        "overlays": [
            {"name": way, "edgeColor": CUT, "edges": edges} for way, edges in ways.items()
        ],
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"key": key, "value": f"{value:,}" if isinstance(value, int) else str(value)}
        for key, value in values.items()
        if value is not None
    ]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
