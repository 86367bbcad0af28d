"""The op graph of one block as a drawing: lanes of devices, rows by dependency, wires between.

Home has the lane on the left, the accelerators those on the right, and between them every transfer
stands by itself, once, as it is charged. Views are not drawn: what they make is what they are made
of. The ops of a norm that the model writes out are one node. Layers that are alike share a drawing.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx

from cutedge.report.figures import Missing
from cutedge.report.layout import ROW, lay_out
from partition.accounting import Transfer, call_label, origins
from partition.split import Split
from partition.stored import sent_weights
from partition.wire_format import PLAIN
from tracer.graph import Kind, Op, OpGraph, Tensor
from tracer.stacks import layer_names
from tracer.summary import tensor_names
from tracer.words import counted, duration, human

MOST_OPS = 400
"""A block with more nodes than this is not drawn: no one could read it."""

MOST_DRAWINGS = 60
"""Of one policy: so many blocks that are not alike are laid out; others are left out."""

OUTSIDE = "outside"
"""What is in no layer, as a layer is called."""

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


@dataclass(frozen=True, slots=True)
class LayerBlock:
    """The block of one layer."""

    title: str
    drawing: int
    """Which of the drawings it is."""
    labels: Sequence[str]
    """By box of the drawing."""
    texts: Sequence[str]
    """By box."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of all layers under one placement."""

    shown: str
    """The layer that comes up first."""
    drawings: Sequence[Block]
    """Boxes of these have neither labels nor texts."""
    layers: Mapping[str, LayerBlock | Missing]
    """By the name of the layer, as they run; ``outside`` is what is in no layer."""


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


def cut_layer(partition: Split) -> str | None:
    """The layer to look at: of those that make what crosses the one nearest to the middle.

    Where nothing that a layer makes crosses it is what is outside of all layers if that is cut, else
    the layer in the middle; None where there is no layer.
    """
    graph, names = partition.graph, layer_names(partition.graph)
    middle = middle_layer(graph)
    if middle is None:
        return None
    order = {name: n for n, name in enumerate(dict.fromkeys(names)) if name is not None}
    made = origins(graph, partition.placement, partition.traffic.transfers)
    cut = dict.fromkeys(names[op.id] for op in made)
    layers = [name for name in cut if name is not None]
    if not layers:
        return OUTSIDE if cut else middle
    return min(layers, key=lambda name: (abs(order[name] - order[middle]), order[name]))


def block(partition: Split, layer: str | None = None) -> Block | Missing:
    """One layer of a model under a placement; the one that is cut where it is not named."""
    found = _Known.of(partition)
    layer = layer or cut_layer(partition)
    inside = found.inside.get(layer or OUTSIDE, [])
    if why := _obstacle(inside):
        return Missing(why)
    drawn = _collected(partition, found, inside)
    return replace(_drawn(partition, drawn, drawn.merged()), title=_title(partition, layer))


def blocks(partition: Split, laid: MutableMapping[Hashable, Block]) -> Blocks | Missing:
    """All layers of a model under a placement.

    ``laid`` keeps what was laid out: layers that are alike share a drawing, under other policies too.
    """
    found, first = _Known.of(partition), cut_layer(partition)
    shown = OUTSIDE if first is None else first
    if why := _obstacle(found.inside.get(shown, [])):
        return Missing(why)
    drawings: dict[Hashable, Block] = {}
    places: dict[Hashable, int] = {}
    made: dict[str, LayerBlock | Missing] = {}
    for name in sorted(found.inside, key=lambda name: name != shown):  # that one is surely drawn
        inside = found.inside[name]
        if why := _obstacle(inside):
            made[name] = Missing(why)
            continue
        drawn = _collected(partition, found, inside)
        graph = drawn.merged()
        alike = _shape_of(partition, drawn, graph)
        if alike not in places and len(places) >= MOST_DRAWINGS:
            made[name] = Missing(
                f"{MOST_DRAWINGS} blocks that are not alike are drawn; that of {name} is another."
            )
            continue
        if alike not in laid:
            laid[alike] = _drawn(partition, drawn, graph)
        drawings[alike] = laid[alike]
        nodes = [drawn.nodes[key] for key in graph]
        made[name] = LayerBlock(
            _title(partition, None if first is None else name),
            places.setdefault(alike, len(places)),
            [node.label for node in nodes],
            ["\n".join(node.lines) for node in nodes],
        )
    bare = [
        replace(one, boxes=[replace(box, label="", text="") for box in one.boxes])
        for one in drawings.values()
    ]
    return Blocks(shown, bare, {name: made[name] for name in found.inside})


def _title(partition: Split, layer: str | None) -> str:
    where = {None: "The whole model", OUTSIDE: "Outside of all layers"}.get(layer, f"Layer {layer}")
    return f"{where} under {partition.policy}"


def _obstacle(inside: Sequence[Op]) -> str:
    """Why a block is not drawn; empty where it is."""
    if not any(not op.is_view for op in inside):
        return "This model has no block with ops of its own."
    if len(inside) > MOST_OPS:
        return f"A block of this model has {len(inside):,} ops, too many to be read."
    return ""


def _collected(partition: Split, found: "_Known", inside: Sequence[Op]) -> "_Drawing":
    drawn = _Drawing(partition, found, {op.id for op in inside})
    for op in inside:
        if not op.is_view:
            drawn.add_op(op)
    for op in inside:
        drawn.add_results(op)
    return drawn


def _shape_of(partition: Split, drawn: "_Drawing", graph: "nx.DiGraph[_Key]") -> Hashable:
    """What a drawing is laid out by: blocks with the same look the same but for their texts."""
    at = {key: n for n, key in enumerate(graph)}
    placement = partition.placement
    return (
        (placement.home, *placement.accelerators),
        tuple(
            (node.sort, node.device, drawn.wide(node), node.payload_bytes)
            for node in map(drawn.nodes.__getitem__, graph)
        ),
        tuple((at[source], at[target]) for source, target in graph.edges),
    )


@dataclass(frozen=True, slots=True)
class _Node:
    sort: str
    device: str
    label: str
    lines: tuple[str, ...]
    payload_bytes: int = 0


_Key = tuple[str, int | str]
"""("op", op id), ("norm", module and device), ("transfer", id), ("in", op id), ("out", name)"""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the drawings of all blocks of a partition ask."""

    call_of: Mapping[int, int]
    """Op -> its call."""
    arrivals: Mapping[tuple[int, str], list[Transfer]]
    """(tensor, device) -> what brings it there, in order of execution."""
    names: Sequence[str]
    """By tensor."""
    layers: Sequence[str | None]
    """By op."""
    weights: Mapping[str, Mapping[int, tuple[int, ...]]]
    """Device -> parameter that is sent there -> the ops that read it."""
    inside: Mapping[str, list[Op]]
    """Layer -> its ops, but for inputs, outputs and what every device computes; as they run."""
    digits: int
    """Of the number of the last layer."""

    @staticmethod
    def of(partition: Split) -> "_Known":
        graph, traffic = partition.graph, partition.traffic
        arrivals: dict[tuple[int, str], list[Transfer]] = {}
        for t in traffic.transfers:
            arrivals.setdefault((t.tensor.id, t.dst_device), []).append(t)
        layers = layer_names(graph)
        inside: dict[str, list[Op]] = {}
        for op in graph.ops:
            if not graph.is_everywhere(op.id) and op.kind not in (Kind.INPUT, Kind.OUTPUT):
                inside.setdefault(layers[op.id] or OUTSIDE, []).append(op)
        return _Known(
            {op: call.id for call in traffic.calls for op in call.ops},
            arrivals,
            tensor_names(graph),
            layers,
            sent_weights(graph, partition.placement),
            inside,
            max((len(str(op.layer)) for op in graph.ops if op.layer is not None), default=1),
        )


@dataclass(slots=True)
class _Drawing:
    """Collects nodes and the lines between them, of the ops inside of a block."""

    partition: Split
    known: _Known
    inside: set[int]
    nodes: dict[_Key, _Node] = field(default_factory=dict)
    lines: dict[tuple[_Key, _Key], None] = field(default_factory=dict)

    def wide(self, node: _Node) -> int:
        """The letters that a node has room for: other layers' numbers have more digits."""
        text = node.label
        if node.sort == "in" and (found := _LAYER.fullmatch(text)):
            text = f"{found[1]}{'0' * self.known.digits}"
        return len(text)

    def add_op(self, op: Op) -> None:
        """An op with all that it reads."""
        key = self._of_op(op)
        graph, device = self.partition.graph, self.partition.placement.devices[op.id]
        weights = self.known.weights.get(str(device), {})
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
            for t in self.known.arrivals.get((tensor.id, device), ())
            if device == self.partition.placement.home or t.call <= self.known.call_of[reader]
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
            f"{self.known.names[tensor.id]} {human(transfer.payload_bytes)}",
            (
                f"{self.known.names[tensor.id]}: {way}",
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
            t for t in self.known.arrivals.get((tensor.id, home), ()) if transfer.src_device == home
        ]
        if tensor.op is not None:  # else a parameter
            self._line(self._of_transfer(back[-1]) if back else self._made(tensor), key)
        return key

    def _of_op(self, op: Op) -> _Key:
        graph, placement = self.partition.graph, self.partition.placement
        device = placement.devices[op.id] or placement.home
        if op.id not in self.inside:
            key: _Key = ("in", op.id)
            layer = self.known.layers[op.id]
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

_LAYER = re.compile(r"(layer .*?)\d+")

_LETTER, _PADDING, _HEIGHT, _HEAD = 6.7, 18.0, 26.0, 34.0
"""What a letter takes, what is left around a text, the height of a box and of the lanes' heads."""


def _drawn(partition: Split, drawing: _Drawing, graph: "nx.DiGraph[_Key]") -> Block:
    nodes = drawing.nodes
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
        {key: drawing.wide(nodes[key]) * _LETTER + _PADDING for key in graph},
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
            round(drawing.wide(node) * _LETTER + _PADDING, 1),
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
    return Block("", boxes, wires, lanes, laid.lanes[-1][1], laid.rows * ROW + _HEAD + 6)


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
