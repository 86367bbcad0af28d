"""The op graph as a networkx graph of plain values, as GraphML and as DOT."""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

import networkx as nx

from partition.split import Split
from tracer.graph import OpGraph
from tracer.summary import tensor_names
from tracer.words import visible

COLOURS = ("#d9e6f2", "#f9dcc4", "#d8ead3", "#e6d9ee", "#fbf0c4", "#e3e3e3")
"""Of home, then of accelerators, by turns."""

CUT = "#c0392b"


def as_networkx(graph: OpGraph, split: Split | None) -> "nx.MultiDiGraph[int]":
    """The ops and what flows between them, each with all that there is to say of it.

    Values are text, ints, floats and bools; what is not known of an op or a tensor is left out. An
    edge's key is its argument index; parameters and buffers are no edges. With a split, ops have
    their device (but for constants and cached state, which are wherever they are read), and an
    edge is ``cut`` when its ends are on different devices.
    """
    meta, devices = graph.meta, split.placement.devices if split else ()
    made: nx.MultiDiGraph[int] = nx.MultiDiGraph(
        **_known(
            {
                **{
                    key: getattr(meta, key)
                    for key in ("model", "phase", "batch", "seq", "past", "dtype")
                },
                **({"policy": split.policy, "home": split.placement.home} if split else {}),
            }
        )
    )
    for op in graph.ops:
        cost = op.cost
        made.add_node(
            op.id,
            **_known(
                {
                    "name": op.name,
                    "target": op.target,
                    "kind": op.kind.value,
                    "module_path": op.module_path,
                    "module_type": op.module_type,
                    "stack": op.stack,
                    "layer": op.layer,
                    "dtype": op.dtype,
                    "is_constant": op.is_constant,
                    "is_view": op.is_view,
                    "flops": cost.flops,
                    "flops_expr": cost.flops_expr,
                    "flops_status": cost.flops_status.value,
                    "read_bytes": cost.read_bytes,
                    "write_bytes": cost.write_bytes,
                    "param_bytes": cost.param_bytes,
                    "device": devices[op.id] if split else None,
                    "reason": split.placement.reasons[op.id] if split else None,
                }
            ),
        )
    for edge in graph.edges:
        if edge.src is not None:
            tensor = graph.tensors[edge.tensor]
            ends = {devices[edge.src], devices[edge.dst]} if split else set()
            made.add_edge(
                edge.src,
                edge.dst,
                key=edge.arg_index,
                **_known(
                    {
                        "tensor_id": tensor.id,
                        "tensor": tensor.name,
                        "label": tensor.label,
                        "dtype": tensor.dtype,
                        "shape": "x".join(map(str, tensor.shape)) or "scalar",
                        "bytes": tensor.bytes,
                        "bytes_expr": tensor.bytes_expr,
                        "cut": (len(ends) == 2 and None not in ends) if split else None,
                    }
                ),
            )
    return made


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known; of text what XML and a terminal can show."""
    return {
        key: visible(value) if isinstance(value, str) else value
        for key, value in values.items()
        if value is not None
    }


def graphml(graph: OpGraph, split: Split | None) -> str:
    """GraphML, as networkx, Gephi, yEd and igraph read it."""
    return "\n".join(nx.generate_graphml(as_networkx(graph, split), named_key_ids=True)) + "\n"


def dot(graph: OpGraph, split: Split | None) -> str:
    """DOT, for Graphviz: an op is filled with its device's colour, a cut edge is red and wide."""
    drawn, names = as_networkx(graph, split), tensor_names(graph)
    colour = colours(split.used) if split else {}
    lines = ["digraph {", "  node [shape=box, style=filled, fillcolor=white];"]
    for op, said in drawn.nodes(data=True):
        label = f"{said['name']}\n{said['module_path']}".strip()
        told = {"op": said["name"], **{key: said[key] for key in said if key != "name"}}
        shown = {"label": label, "fillcolor": colour.get(said.get("device", "")), **told}
        lines.append(f"  {op} [{_attributes(shown)}];")
    for src, dst, index, said in drawn.edges(keys=True, data=True):
        style: dict[str, Any] = {"label": f"{names[said['tensor_id']]} {said['shape']}"}
        if said.get("cut"):
            wide = f"{1 + log2(1 + said['bytes']) / 6:.2f}"
            style |= {"color": CUT, "fontcolor": CUT, "penwidth": wide}
        told = {**said, "label": style["label"], "tensor_label": said.get("label")}
        shown = {**style, "arg_index": index, **told}
        lines.append(f"  {src} -> {dst} [{_attributes(shown)}];")
    return "\n".join([*lines, "}"]) + "\n"


def colours(devices: Sequence[str]) -> dict[str, str]:
    """A colour for each device."""
    return {device: COLOURS[number % len(COLOURS)] for number, device in enumerate(devices)}


def _attributes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_quoted(value)}" for key, value in _known(values).items())


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
