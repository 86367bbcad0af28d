"""The op graph of one block as a drawing: lanes of devices, rows by dependency, wires between.

Home has the lane on the left, the accelerators those on the right, and between them every transfer
stands by itself, once, as it is charged. Views are not drawn: what they make is what they are made
of. The ops of a norm that the model writes out are one node.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from cutedge.report.figures import Missing
from cutedge.report.layout import ROW, lay_out
from partition.accounting import Traffic, Transfer, call_label
from partition.split import Split
from partition.stored import sent_weights
from partition.wire_format import PLAIN
from tracer.graph import Kind, Op, OpGraph, Tensor
from tracer.stacks import layer_names
from tracer.summary import tensor_names
from tracer.words import counted, duration, human

MOST_OPS = 400
"""A block with more nodes than this is not drawn: no one could read it."""

WIDEST = 16.0
"""Of the line of the heaviest transfer; the others in proportion."""


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the drawing."""

    label: str
    sort: str
    """``op``, ``transfer``, ``in`` (made outside of the block) or ``out`` (read there)."""
    device: str
    """Where it runs, or which device a transfer leaves."""
    text: str
    """What is known of it."""
    payload_bytes: int
    """Of a transfer; else 0."""
    x: float
    """Of its centre, in the drawing's units."""
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Wire:
    """A line from a node to another."""

    points: Sequence[tuple[float, float]]
    """From end to end."""
    device: str | None
    """Of a transfer: the device that it leaves; None for what stays on a device."""
    width: float
    """In proportion to the transfer's bytes."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The part of the drawing that a device has, or the links."""

    name: str
    device: str | None
    """None for the links."""
    left: float
    right: float


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a model with its devices and what crosses between them."""

    title: str
    boxes: Sequence[Box]
    wires: Sequence[Wire]
    lanes: Sequence[Lane]
    width: float
    height: float


def middle_layer(graph: OpGraph) -> str | None:
    """The layer that stands for the others, by name: that in the middle of the longest stack.

    None where there is no layer.
    """
    stacks: dict[str, dict[int, str]] = {}
    for op, name in zip(graph.ops, layer_names(graph), strict=True):
        if name is not None and op.kind is not Kind.INPUT:
            stacks.setdefault(op.stack or "", {})[op.layer or 0] = name
    if not stacks:
        return None
    longest = max(stacks.values(), key=len)
    return longest[sorted(longest)[len(longest) // 2]]


def block(partition: Split) -> Block | Missing:
    """The middle layer of a model under a placement."""
    graph = partition.graph
    layer, names = middle_layer(graph), layer_names(graph)
    inside = [
        op
        for op in graph.ops
        if names[op.id] == layer
        and not graph.is_everywhere(op.id)
        and op.kind not in (Kind.INPUT, Kind.OUTPUT)
    ]
    if not any(not op.is_view for op in inside):
        return Missing("This model has no block with ops of its own.")
    if len(inside) > MOST_OPS:
        return Missing(f"A block of this model has {len(inside):,} ops, too many to be read.")
    drawn = _Drawing(partition, {op.id for op in inside})
    for op in inside:
        if not op.is_view:
            drawn.add_op(op)
    for op in inside:
        drawn.add_results(op)
    where = "The whole model" if layer is None else f"Layer {layer}"
    return _drawn(partition, drawn, f"{where} under {partition.policy}")


@dataclass(frozen=True, slots=True)
class _Node:
    sort: str
    device: str
    label: str
    lines: tuple[str, ...]
    payload_bytes: int = 0


_Key = tuple[str, int | str]
"""("op", op id), ("norm", module and device), ("transfer", id), ("in", op id), ("out", name)"""


@dataclass(slots=True)
class _Drawing:
    """Collects nodes and the lines between them, of the ops inside of a block."""

    partition: Split
    inside: set[int]
    nodes: dict[_Key, _Node] = field(default_factory=dict)
    lines: dict[tuple[_Key, _Key], None] = field(default_factory=dict)
    call_of: Mapping[int, int] = field(init=False)
    arrivals: Mapping[tuple[int, str], list[Transfer]] = field(init=False)
    names: Sequence[str] = field(init=False)
    layers: Sequence[str | None] = field(init=False)
    weights: Mapping[str, Mapping[int, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        """Find the call of each op, and what arrives where, in order of execution."""
        traffic: Traffic = self.partition.traffic
        self.names = tensor_names(self.partition.graph)
        self.layers = layer_names(self.partition.graph)
        self.call_of = {op: call.id for call in traffic.calls for op in call.ops}
        arrivals: dict[tuple[int, str], list[Transfer]] = {}
        for t in traffic.transfers:
            arrivals.setdefault((t.tensor.id, t.dst_device), []).append(t)
        self.arrivals = arrivals
        self.weights = sent_weights(self.partition.graph, self.partition.placement)

    def add_op(self, op: Op) -> None:
        """An op with all that it reads."""
        key = self._of_op(op)
        graph, device = self.partition.graph, self.partition.placement.devices[op.id]
        weights = self.weights.get(str(device), {})
        sent = [graph.tensors[weight] for weight, readers in weights.items() if op.id in readers]
        for tensor in (*graph.flowing(op.id), *sent):
            self._line(self._source(tensor, op.id), key)

    def add_results(self, op: Op) -> None:
        """What reads an op's results outside of the block, as one node a device."""
        graph, devices = self.partition.graph, self.partition.placement.devices
        for tensor in graph.outputs(op.id):
            for reader in graph.needed_by(tensor.id):
                device = devices[reader]
                if reader in self.inside or device is None:
                    continue
                name = "output" if graph.ops[reader].kind is Kind.OUTPUT else "next layers"
                key: _Key = ("out", f"{name} on {device}")
                self.nodes[key] = _Node("out", device, name, (f"{name}, on {device}",))
                self._line(self._source(tensor, reader), key)

    def _line(self, source: _Key, target: _Key) -> None:
        if source != target:
            self.lines[source, target] = None

    def _source(self, tensor: Tensor, reader: int) -> _Key:
        """What brings a tensor to an op: the transfer that it came with, or the op that made it."""
        device = self.partition.placement.devices[reader]
        assert device is not None
        came = [
            t
            for t in self.arrivals.get((tensor.id, device), ())
            if device == self.partition.placement.home or t.call <= self.call_of[reader]
        ]
        return self._of_transfer(came[-1]) if came else self._made(tensor)

    def _made(self, tensor: Tensor) -> _Key:
        """The op that makes a tensor, through what is a view."""
        graph = self.partition.graph
        assert tensor.op is not None
        op = graph.ops[tensor.op]
        flowing = graph.flowing(op.id)
        if op.is_view and flowing and op.id in self.inside:
            return self._source(flowing[0], op.id)
        return self._of_op(op)

    def _of_transfer(self, transfer: Transfer) -> _Key:
        key: _Key = ("transfer", transfer.id)
        if key in self.nodes:
            return key
        tensor = transfer.tensor
        way = f"{transfer.src_device} → {transfer.dst_device}"
        self.nodes[key] = _Node(
            "transfer",
            transfer.src_device,
            f"{self.names[tensor.id]} {human(transfer.payload_bytes)}",
            (
                f"{self.names[tensor.id]}: {way}",
                f"{transfer.payload_bytes:,} bytes as {transfer.wire_dtype}"
                + (f" by {transfer.packing}" if transfer.packing != PLAIN else "")
                + (f" = {transfer.bytes_expr}" if transfer.bytes_expr else ""),
                _shape(tensor),
                *(
                    []
                    if transfer.seconds is None
                    else [f"{'≥ ' * transfer.at_least}{duration(transfer.seconds)}"]
                ),
                f"call {transfer.call}: {self.partition.traffic.calls[transfer.call].label}",
            ),
            transfer.payload_bytes,
        )
        home = self.partition.placement.home
        back = [  # what an accelerator made comes home before it goes out again
            t for t in self.arrivals.get((tensor.id, home), ()) if transfer.src_device == home
        ]
        if tensor.op is not None:  # else a parameter
            self._line(self._of_transfer(back[-1]) if back else self._made(tensor), key)
        return key

    def _of_op(self, op: Op) -> _Key:
        graph, placement = self.partition.graph, self.partition.placement
        device = placement.devices[op.id] or placement.home
        if op.id not in self.inside:
            key: _Key = ("in", op.id)
            layer = self.layers[op.id]
            name = call_label(graph, [op.id]) if layer is None else f"layer {layer}"
            self.nodes[key] = _Node(
                "in",
                device,
                name,
                (
                    f"{op.name} of {op.module_path or 'the model'}, before this block",
                    *(_shape(tensor) for tensor in graph.outputs(op.id)),
                    f"on {device}: {placement.reasons[op.id]}",
                ),
            )
            return key
        key = ("op", op.id)
        if key not in self.nodes:
            cost = op.cost
            flops = "FLOPs not known" if cost.flops is None else f"{cost.flops:,} FLOPs"
            if cost.flops and cost.flops_expr and not cost.flops_expr.isdigit():
                flops += f" = {cost.flops_expr}"
            self.nodes[key] = _Node(
                "op",
                device,
                call_label(graph, [op.id]),
                (
                    f"{op.name}: {op.target}",
                    f"{op.module_path} ({op.module_type})",
                    *(_shape(tensor) for tensor in graph.outputs(op.id)),
                    flops,
                    f"on {device}: {placement.reasons[op.id]}",
                ),
            )
        return key

    def merged(self) -> "nx.DiGraph[_Key]":
        """The drawing as a graph, with the ops of each norm as one, where no cycle comes of it."""
        graph = self.partition.graph
        norms: dict[_Key, _Key] = {}
        for key, node in self.nodes.items():
            op = graph.ops[key[1]] if key[0] == "op" and isinstance(key[1], int) else None
            if op is not None and op.kind is Kind.NORM:
                norms[key] = ("norm", f"{op.module_path} {node.device}")
        size = Counter(norms.values())
        into = {key: norm for key, norm in norms.items() if size[norm] > 1}
        lines = {(into.get(a, a), into.get(b, b)): None for a, b in self.lines}
        found: nx.DiGraph[_Key] = nx.DiGraph()
        found.add_nodes_from(into.get(key, key) for key in self.nodes)
        found.add_edges_from((a, b) for a, b in lines if a != b)
        if not nx.is_directed_acyclic_graph(found):
            found = nx.DiGraph()
            found.add_nodes_from(self.nodes)
            found.add_edges_from(self.lines)
            return found
        for norm in size:
            ops = [graph.ops[int(key[1])] for key, its in into.items() if its == norm]
            if ops:
                self.nodes[norm] = self._norm(ops)
        return found

    def _norm(self, ops: Sequence[Op]) -> _Node:
        graph, placement = self.partition.graph, self.partition.placement
        last = ops[-1]
        device = placement.devices[last.id] or placement.home
        flops = sum(op.cost.flops or 0 for op in ops)
        leaf = last.module_path.rpartition(".")[2] or "norm"
        return _Node(
            "op",
            device,
            leaf,
            (
                f"{counted(len(ops), 'op')}: {', '.join(op.name for op in ops)}",
                f"{last.module_path} ({last.module_type})",
                *(_shape(tensor) for tensor in graph.outputs(last.id)),
                f"{flops:,} FLOPs",
                f"on {device}: {placement.reasons[last.id]}",
            ),
        )


def _shape(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    text = f"[{shape}] {tensor.dtype}"
    if tensor.shape_expr is None or list(map(str, tensor.shape)) == list(tensor.shape_expr):
        return text
    return f"{text} = [{', '.join(tensor.shape_expr)}]"


# --- where everything is --------------------------------------------------------------------------

_LETTER, _PADDING, _HEIGHT, _HEAD = 6.7, 18.0, 26.0, 34.0
"""What a letter takes, what is left around a text, the height of a box and of the lanes' heads."""


def _drawn(partition: Split, drawing: _Drawing, title: str) -> Block:
    graph, nodes = drawing.merged(), drawing.nodes
    placement = partition.placement
    used = {node.device for key in graph if (node := nodes[key]).sort != "transfer"}
    devices = [d for d in (placement.home, *placement.accelerators) if d in used]
    crossing = any(nodes[key].sort == "transfer" for key in graph)
    columns: list[str | None] = [*devices[:1], *([None] if crossing else []), *devices[1:]]
    laid = lay_out(
        graph,
        {
            key: columns.index(None if nodes[key].sort == "transfer" else nodes[key].device)
            for key in graph
        },
        {key: len(nodes[key].label) * _LETTER + _PADDING for key in graph},
    )
    most = max((nodes[key].payload_bytes for key in graph), default=0)
    boxes = [
        Box(
            node.label,
            node.sort,
            node.device,
            "\n".join(node.lines),
            node.payload_bytes,
            laid.places[key][0],
            laid.places[key][1] + _HEAD,
            round(len(node.label) * _LETTER + _PADDING, 1),
            _HEIGHT,
        )
        for key in graph
        if (node := nodes[key])
    ]
    wires = [
        _wire(
            nodes[source],
            nodes[target],
            laid.routes[source, target],
            most * graph.out_degree(source) if nodes[source].sort == "transfer" else most,
        )
        for source, target in graph.edges
    ]
    lanes = [
        Lane(name or "crossing", name, left, right)
        for name, (left, right) in zip(columns, laid.lanes, strict=True)
    ]
    return Block(title, boxes, wires, lanes, laid.lanes[-1][1], laid.rows * ROW + _HEAD + 6)


def _wire(source: _Node, target: _Node, route: Sequence[tuple[float, float]], most: int) -> Wire:
    """A line; what is read by several is as wide before it parts as all its lines after it."""
    crossing = next((node for node in (source, target) if node.sort == "transfer"), None)
    points = [(x, y + _HEAD) for x, y in route]
    (first, top), (last, bottom) = points[0], points[-1]
    points[0], points[-1] = (first, top + _HEIGHT / 2), (last, bottom - _HEIGHT / 2)
    if crossing is None:
        return Wire(points, None, 1.2)
    share = crossing.payload_bytes / most if most else 0.0
    return Wire(points, crossing.device, round(max(WIDEST * share, 1.2), 2))
