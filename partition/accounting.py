"""What a placement moves: calls, transfers, resident bytes. Counted from the placement alone.

The rules, in short:

- A tensor crosses once for each (tensor, source device, destination device), however many ops read
  it there. Buffers and constants never cross, and parameters do where they lie at home.
- Home and the accelerators take turns in steps. An op runs in the earliest step that its inputs
  allow; all ops of one accelerator in one step are one call. A tensor is sent with the first call
  that needs it and received with the call that makes it.
- Parameters of ops that have them at home (``Placement.streams``) are tensors that home has from
  the start: each crosses by its memory, in what it is stored in whatever the wire's dtype, to a
  device where it does not lie anyway. With residency ``call`` it is sent with each call that reads
  it.
- With residency ``call`` an accelerator forgets everything between calls but weights and cached
  state: what a later call needs again is sent again, and what a later call needs of what an
  accelerator made comes home first. What is appended to cached state is kept with it: a later call
  that reads the state needs it no more.
- New state comes to the devices that read the old one: with the first call that needs it, and where
  no op of this run does, with the first call after it is made.
- What a tensor is on the wire (its dtype, its packing) says ``partition.wire_format``; packing and
  unpacking are in the seconds of the transfer.
- What moves in one call from one device to another is one message on the link of the two, and
  messages go one after another. Seconds are of the transfers alone, not of the ops; nothing is
  said of a request or reply that carries no tensor.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from costmodels.links import Link, Links, message_cost
from partition import Residency
from partition.placement import Placement, validate
from partition.stored import resident_bytes, sent_weights, state_devices, state_readers
from partition.wire_format import PLAIN, Status, WireFormat
from tracer.formula import Formula, const, parse
from tracer.graph import Kind, Op, OpGraph, Role, Tensor


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor moving from one device to another, once."""

    id: int
    """Order of execution."""
    tensor: Tensor
    """What moves; its own bytes are in its own dtype, not in the wire's."""
    src_device: str
    """The device that it leaves."""
    dst_device: str
    """The device that it is for."""
    call: int
    """The call that it belongs to: the one that needs it, or for what goes home the one that made
    it."""
    direction: str
    """``send`` from home, ``receive`` to home, ``peer`` between accelerators."""
    wire_dtype: str
    """The dtype that it crosses in, or that is packed."""
    payload_bytes: int
    """Elements x item size on the wire; of what is packed, its packed bytes."""
    wire_bytes: int
    """Payload and framing; a message's own framing is with its first tensor. Of what lies in shared
    memory, its handle and framing."""
    seconds: float | None
    """On the link; serialisation, packing and encryption are in it, and with a message's first tensor
    its latency and toll. None where the link has no bandwidth in this direction."""
    at_least: bool
    """Whether the seconds leave out what is not known: the latency of its message, or packing."""
    bytes_expr: str | None
    """``payload_bytes`` as a formula, None for a concrete trace. Which tensors are packed from some
    size on is as it is at the traced size."""
    packing: str = PLAIN
    """How it is packed."""
    payload_status: Status = "exact"
    """Whether its payload is counted, or a ratio stands in."""
    plain_bytes: int = 0
    """What its payload would be unpacked."""
    packing_seconds: float | None = 0.0
    """What of the seconds is packing at one end and unpacking at the other; None where that is not
    known."""
    joules: float | None = None
    """What its bytes on the wire take on the link; None where that has no figure."""


@dataclass(frozen=True, slots=True)
class Call:
    """One round trip: home sends, an accelerator computes, home receives."""

    id: int
    """Order of execution."""
    device: str
    """The accelerator."""
    ops: tuple[int, ...]
    """Ids of the ops that run in it, in order of execution."""
    label: str
    """The names of its ops' modules, or what the op is to an attention (``QK^T``)."""
    sent_payload_bytes: int
    """From home, without framing."""
    sent_wire_bytes: int
    """From home, with framing."""
    received_payload_bytes: int
    """To home, without framing."""
    received_wire_bytes: int
    """To home, with framing."""
    seconds: float | None
    """Of its transfers, one after another; None where those of one of them are not known."""
    at_least: bool
    """Whether the seconds leave out a latency or a packing that is not known."""
    step: int
    """Which of home's turns it ends, counted from 1; see ``steps_of``."""
    joules: float | None = None
    """Of its transfers; None where that of one of them is not known."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes and seconds over transfers, as of a run or a call."""

    sent_payload_bytes: int
    """From home, without framing."""
    sent_wire_bytes: int
    """From home, with framing."""
    received_payload_bytes: int
    """To home, without framing."""
    received_wire_bytes: int
    """To home, with framing."""
    peer_payload_bytes: int
    """Between accelerators, without framing."""
    peer_wire_bytes: int
    """Between accelerators, with framing."""
    sent_seconds: float | None
    """From home; None where a link that is used has no bandwidth in this direction."""
    received_seconds: float | None
    """To home; None likewise."""
    peer_seconds: float | None
    """Between accelerators; None where a link that is used has no bandwidth for what is sent."""
    at_least: bool
    """Whether the seconds leave out a latency or a packing that is not known."""
    estimated_payload_bytes: int = 0
    """Of the payload bytes those that a ratio stands in for."""
    joules: float | None = None
    """Of all transfers on their links; None where that of one of them is not known."""

    @property
    def payload_bytes(self) -> int:
        """Sent, received and between accelerators."""
        return self.sent_payload_bytes + self.received_payload_bytes + self.peer_payload_bytes

    @property
    def payload_status(self) -> Status:
        """Whether the payload is counted, or a ratio stands in for some of it."""
        return "estimate" if self.estimated_payload_bytes else "exact"

    @property
    def wire_bytes(self) -> int:
        """``payload_bytes`` with framing."""
        return self.sent_wire_bytes + self.received_wire_bytes + self.peer_wire_bytes

    @property
    def seconds(self) -> float | None:
        """Of all transfers, one after another; None where those of a direction are not known."""
        if self.sent_seconds is None or self.received_seconds is None or self.peer_seconds is None:
            return None
        return self.sent_seconds + self.received_seconds + self.peer_seconds

    @property
    def by_way(self) -> dict[str, tuple[int, int, float | None]]:
        """Way -> (payload, bytes on the wire, seconds); between accelerators where anything is."""
        peer = self.peer_payload_bytes, self.peer_wire_bytes, self.peer_seconds
        return {
            "sent": (self.sent_payload_bytes, self.sent_wire_bytes, self.sent_seconds),
            "received": (
                self.received_payload_bytes,
                self.received_wire_bytes,
                self.received_seconds,
            ),
            **({"between accelerators": peer} if self.peer_payload_bytes else {}),
            "total": (self.payload_bytes, self.wire_bytes, self.seconds),
        }


@dataclass(frozen=True, slots=True)
class Traffic:
    """All that a placement moves and holds."""

    calls: tuple[Call, ...]
    """In order of execution; the id is the position."""
    transfers: tuple[Transfer, ...]
    """In order of execution: by call, and in a call what is sent first; the id is the position."""
    totals: Totals
    """The sums over ``transfers``."""
    peak_buffer_bytes: int
    """The most payload that a device must hold as one message, or as one chunk of a message."""
    cut_edges: int
    """Edges whose two ends are on different devices: another figure than the transfers, since ten
    readers of one tensor are ten edges and one transfer."""
    resident_bytes: Mapping[str, int]
    """By device: parameters, buffers and constants that its ops read, each storage once."""
    total_expr: str | None
    """The total payload as a formula, None for a concrete trace."""


def account(
    graph: OpGraph,
    placement: Placement,
    links: Links,
    *,
    wire: WireFormat | None = None,
    residency: Residency = "run",
) -> Traffic:
    """Count what ``placement`` moves over ``links``.

    ``wire`` says what tensors are while they cross; without it each is as it lies in memory. Raises
    PlacementError for a placement that is not allowed.
    """
    validate(graph, placement)
    steps = steps_of(graph, placement)
    updates = _state_updates(graph, placement, steps)
    calls = _calls(graph, placement, steps, updates)
    moves = _moves(graph, placement, steps, calls, updates, residency)
    moves += _weight_moves(graph, placement, steps, calls, residency)
    transfers, peak = _transfers(graph, placement, moves, links, wire or WireFormat())
    links_by_pair = links.among(placement.home, placement.accelerators)
    of_home = [link for pair, link in links_by_pair.items() if placement.home in pair]
    return Traffic(
        calls=_filled(graph, calls, transfers, links),
        transfers=transfers,
        totals=totals_of(transfers, of_home or [links.common]),
        peak_buffer_bytes=peak,
        cut_edges=_cut_edges(graph, placement),
        resident_bytes=resident_bytes(graph, placement),
        total_expr=_sum_expr(t.bytes_expr for t in transfers) if graph.meta.symbolic else None,
    )


def steps_of(graph: OpGraph, placement: Placement) -> list[int]:
    """The step that each op runs in: the earliest that its inputs allow.

    Step 0 is home before any call. Going out to an accelerator (from home, or from another
    accelerator) takes the next step; coming home stays in the step of the call. So the steps of
    the accelerators' ops are their calls, counted from 1 (also for what waits for nothing: home
    has to ask for it), and the last step is the longest path through the graph counted in changes
    of this kind. What has no device (constants, cached state) is in step 0.
    """
    steps = [int(device not in (None, placement.home)) for device in placement.devices]
    for op in graph.ops:
        here = placement.devices[op.id]
        if here is None:
            continue
        for tensor in graph.flowing(op.id):
            assert tensor.op is not None
            out = here not in (placement.home, placement.devices[tensor.op])
            steps[op.id] = max(steps[op.id], steps[tensor.op] + out)
    return steps


def _cut_edges(graph: OpGraph, placement: Placement) -> int:
    """Edges whose reader sits on a device where their producer does not.

    An op of cached state sits on every device that holds the state. The state of the next run is
    not taken home.
    """
    state = state_devices(graph, placement)
    places = [
        state.get(op, set()) if device is None else {device}
        for op, device in enumerate(placement.devices)
    ]
    return sum(
        edge.src is not None
        and bool(places[edge.dst] - places[edge.src])
        and graph.crosses(graph.tensors[edge.tensor])
        and not (
            graph.ops[edge.dst].kind is Kind.OUTPUT
            and graph.tensors[edge.tensor].role is Role.KV_CACHE
        )
        for edge in graph.edges
    )


_CallKey = tuple[int, str]
"""(step, accelerator)"""


_Updates = Mapping[int, Mapping[str, int]]
"""tensor -> device that keeps it as state for the next run -> the step that it goes there with."""


def _calls(
    graph: OpGraph, placement: Placement, steps: Sequence[int], updates: _Updates
) -> dict[_CallKey, tuple[int, tuple[int, ...]]]:
    """(step, accelerator) -> (call id, its ops), in order of execution."""
    ops: dict[_CallKey, list[int]] = defaultdict(list)
    for op in graph.ops:
        device = placement.devices[op.id]
        if device is not None and device != placement.home:
            ops[steps[op.id], device].append(op.id)
    for places in updates.values():
        for device, step in places.items():
            if device != placement.home:
                ops.setdefault((step, device), [])  # a call that only brings new state
    order = sorted(ops, key=lambda key: (key[0], ops[key][:1] or [len(graph.ops)], key[1]))
    return {key: (number, tuple(ops[key])) for number, key in enumerate(order)}


def _state_updates(graph: OpGraph, placement: Placement, steps: Sequence[int]) -> _Updates:
    """New state for devices that read the old one, and where no op needs it in this run.

    It goes with the first call there after it is made.
    """
    devices = placement.devices
    taken: dict[str, list[int]] = defaultdict(list)
    for op, device in enumerate(devices):
        if device is not None:
            taken[device].append(steps[op])
    updates: dict[int, dict[str, int]] = defaultdict(dict)
    for tensor, readers in state_readers(graph).items():
        maker = graph.tensors[tensor].op
        assert maker is not None
        there = {devices[maker], *(devices[op] for op in graph.needed_by(tensor))}
        for device in {devices[op] for op in readers} - there:
            assert device is not None
            ready = steps[maker] + (device != placement.home)
            later = [step for step in taken[device] if step >= ready]
            updates[tensor][device] = min(later, default=ready)
    return updates


@dataclass(frozen=True, slots=True)
class _Move:
    tensor: int
    src: str
    dst: str
    call: int
    reader: int = -1
    """Of a parameter the first op of the call that reads it."""


def _moves(
    graph: OpGraph,
    placement: Placement,
    steps: Sequence[int],
    calls: Mapping[_CallKey, tuple[int, tuple[int, ...]]],
    updates: _Updates,
    residency: Residency,
) -> list[_Move]:
    """Which tensor moves from where to where, with which call."""
    home = placement.home
    moves: list[_Move] = []
    for tensor in graph.tensors:
        if tensor.op is None or not graph.crosses(tensor):
            continue
        source = placement.devices[tensor.op]
        assert source is not None
        made_in = None if source == home else (steps[tensor.op], source)
        reads = [(steps[op], placement.devices[op]) for op in graph.needed_by(tensor.id)]
        reads += [(step, device) for device, step in updates.get(tensor.id, {}).items()]
        read_at_home = any(device == home for _, device in reads)
        # Calls of accelerators, that of the producer aside.
        needed = sorted(
            {(step, device) for step, device in reads if device not in (None, home)} - {made_in},
            key=lambda key: calls[key][0],
        )
        if residency == "call":
            # State alone survives a call: all else that is needed elsewhere or later comes home
            # and goes out.
            state = tensor.role is Role.KV_CACHE
            readers = () if state else graph.readers(tensor.id)
            directly = {(steps[op], placement.devices[op]) for op in readers}
            lying = set() if made_in is None else {source}
            sends = []
            for step, device in needed:
                if (step, device) in directly or device not in lying:
                    sends.append((home, device, calls[step, device][0]))
                lying.add(device)
            comes_home = made_in is not None and (read_at_home or bool(sends))
        else:
            first: dict[str, int] = {}
            for step, device in needed:
                if device != source:
                    first.setdefault(device, calls[step, device][0])
            sends = [(source, device, call) for device, call in first.items()]
            comes_home = made_in is not None and read_at_home
        if comes_home and made_in is not None:
            moves.append(_Move(tensor.id, source, home, calls[made_in][0]))
        moves += [_Move(tensor.id, src, dst, call) for src, dst, call in sends]
    return moves


def _weight_moves(
    graph: OpGraph,
    placement: Placement,
    steps: Sequence[int],
    calls: Mapping[_CallKey, tuple[int, tuple[int, ...]]],
    residency: Residency,
) -> Iterable[_Move]:
    """Which parameter goes from home to where, with which call."""
    for device, sent in sent_weights(graph, placement).items():
        for parameter, readers in sent.items():
            needed: dict[int, int] = {}
            for op in readers:
                needed.setdefault(calls[steps[op], device][0], op)
            for call in sorted(needed) if residency == "call" else [min(needed)]:
                yield _Move(parameter, placement.home, device, call, needed[call])


def _transfers(
    graph: OpGraph,
    placement: Placement,
    moves: Iterable[_Move],
    links: Links,
    wire_format: WireFormat,
) -> tuple[tuple[Transfer, ...], int]:
    """The moves in order of execution, with what they cost, and the peak buffer.

    A call sends before it receives, and parameters go behind what flows, as they are read.
    """
    order = {"send": 0, "peer": 1, "receive": 2}
    home = placement.home
    directed = [
        (m, "receive" if m.dst == home else "send" if m.src == home else "peer") for m in moves
    ]
    directed.sort(
        key=lambda d: (d[0].call, order[d[1]], d[0].src, d[0].reader, d[0].tensor, d[0].dst)
    )
    crossing = [wire_format.of(graph.tensors[move.tensor]) for move, _ in directed]
    messages: dict[tuple[int, str, str, str], list[int]] = defaultdict(list)
    for number, (move, direction) in enumerate(directed):
        messages[move.call, move.src, move.dst, direction].append(number)

    wire = dict.fromkeys(range(len(directed)), 0)
    seconds: dict[int, float] = {}
    joules: dict[int, float] = {}
    at_least: set[int] = set()
    peak = 0
    for (_, src, dst, direction), numbers in messages.items():
        link = links.between(src, dst, home)
        cost = message_cost(link, [crossing[number].payload_bytes for number in numbers], direction)
        wire.update(zip(numbers, cost.wire_bytes, strict=True))
        if link.picojoules_per_byte is not None:
            a_byte = link.picojoules_per_byte * 1e-12
            joules.update((number, wire[number] * a_byte) for number in numbers)
        if cost.seconds is not None:
            seconds.update(zip(numbers, cost.seconds, strict=True))
        for number in numbers if link.timed(direction) else ():
            packing = crossing[number].packing_seconds
            seconds[number] += packing or 0.0
            if packing is None:
                at_least.add(number)
        if link.at_least(direction):
            at_least.add(numbers[0])
        peak = max(peak, cost.peak_buffer_bytes)
    transfers = tuple(
        Transfer(
            id=number,
            tensor=graph.tensors[move.tensor],
            src_device=move.src,
            dst_device=move.dst,
            call=move.call,
            direction=direction,
            wire_dtype=one.dtype,
            payload_bytes=one.payload_bytes,
            wire_bytes=wire[number],
            seconds=seconds.get(number),
            at_least=number in at_least,
            bytes_expr=wire_format.expr(graph.tensors[move.tensor]),
            packing=one.packing,
            payload_status=one.status,
            plain_bytes=one.plain_bytes,
            packing_seconds=one.packing_seconds,
            joules=joules.get(number),
        )
        for number, ((move, direction), one) in enumerate(zip(directed, crossing, strict=True))
    )
    return transfers, peak


def _filled(
    graph: OpGraph,
    calls: Mapping[_CallKey, tuple[int, tuple[int, ...]]],
    transfers: Sequence[Transfer],
    links: Links,
) -> tuple[Call, ...]:
    by_call: dict[int, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        by_call[transfer.call].append(transfer)
    result = []
    for (step, device), (number, ops) in calls.items():
        totals = totals_of(by_call[number], [links.of(device)])
        result.append(
            Call(
                number,
                device,
                ops,
                call_label(graph, ops),
                totals.sent_payload_bytes,
                totals.sent_wire_bytes,
                totals.received_payload_bytes,
                totals.received_wire_bytes,
                totals.seconds,
                totals.at_least,
                step,
                totals.joules,
            )
        )
    return tuple(result)


def totals_of(transfers: Sequence[Transfer], of_home: Sequence[Link]) -> Totals:
    """The sums; where nothing crosses, the links of home say whether seconds are known."""
    payload = dict.fromkeys(("send", "receive", "peer"), 0)
    wire = dict(payload)
    times: dict[str, list[float | None]] = {direction: [] for direction in payload}
    for transfer in transfers:
        payload[transfer.direction] += transfer.payload_bytes
        wire[transfer.direction] += transfer.wire_bytes
        times[transfer.direction].append(transfer.seconds)
    seconds: dict[str, float | None] = {}
    for way, each in times.items():
        known = [one for one in each if one is not None]
        complete = len(known) == len(each) if each else all(link.timed(way) for link in of_home)
        seconds[way] = fsum(known) if complete else None
    joules = [transfer.joules for transfer in transfers if transfer.joules is not None]
    return Totals(
        payload["send"],
        wire["send"],
        payload["receive"],
        wire["receive"],
        payload["peer"],
        wire["peer"],
        seconds["send"],
        seconds["receive"],
        seconds["peer"],
        at_least=any(transfer.at_least for transfer in transfers),
        estimated_payload_bytes=sum(
            t.payload_bytes for t in transfers if t.payload_status == "estimate"
        ),
        joules=fsum(joules) if len(joules) == len(transfers) else None,
    )


def _sum_expr(expressions: Iterable[str | None]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for expression in expressions:
        counts[expression or "0"] += 1
    total: Formula = const(0)
    for expression, count in counts.items():
        total += parse(expression) * count
    return str(total)


def origins(graph: OpGraph, placement: Placement, transfers: Iterable[Transfer]) -> tuple[Op, ...]:
    """By transfer: the op that makes the tensor; of a parameter the first where it goes to read it."""
    sent = sent_weights(graph, placement)
    return tuple(
        graph.ops[sent[t.dst_device][t.tensor.id][0] if t.tensor.op is None else t.tensor.op]
        for t in transfers
    )


_MAIN_KINDS = frozenset({Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION, Kind.EMBEDDING})


def call_label(graph: OpGraph, ops: Iterable[int]) -> str:
    """What a call does, in the order it does it: ``q_proj+k_proj+v_proj``.

    Named are the matrix products and look-ups, or, without any of those, every op that is not a view.
    """
    called = [graph.ops[op] for op in ops]
    for chosen in (
        [op for op in called if op.kind in _MAIN_KINDS],
        [op for op in called if not op.is_view],
        called,
    ):
        if chosen:
            return "+".join(dict.fromkeys(_op_label(graph, op) for op in chosen))
    return ""


def _op_label(graph: OpGraph, op: Op) -> str:
    if op.kind is Kind.MATMUL:
        if any(t.label == "attention_scores" for t in graph.outputs(op.id)):
            return "QK^T"
        if any(t.label == "attention_probs" for t in graph.inputs(op.id)):
            return "scores*V"
    parts = op.module_path.split(".")
    if op.kind not in _MAIN_KINDS or parts == [""]:
        return op.name.rpartition("_")[0] or op.name
    # A number alone (experts.3) says little without the name before it.
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
