"""The accounting once more: slow, naive, written from the rules alone."""

from collections import defaultdict
from typing import get_args

from hypothesis import strategies as st

from costmodels.links import Link
from partition import Residency
from partition.accounting import Traffic
from partition.placement import Placement
from tests.support.examples import examples
from tests.support.graphs import HOME
from tracer.graph import ITEM_BYTES, OpGraph, Tensor

# Four figures that no sum of a few can mistake for one another.
LINK = Link("framed", "by hand", 1_000_003, 10_007, 100_000_007, 1_000_000_007)

EXAMPLES = examples(12, derandomize=True)

RESIDENCY = st.sampled_from(get_args(Residency))

Move = tuple[int, str, str, int]
"""(tensor id, source device, destination device, call id)."""


def running(graph: OpGraph) -> list[int]:
    """The ops that run during a run: all but the constants."""
    return [op.id for op in graph.ops if not op.is_constant]


def moving_inputs(graph: OpGraph, op: int) -> set[int]:
    """The tensors that an op needs brought to it: what another op makes during the run."""
    return {
        tensor.id
        for tensor in graph.inputs(op)
        if tensor.op is not None and not graph.ops[tensor.op].is_constant
    }


def producers(graph: OpGraph, op: int) -> set[int]:
    return {graph.tensors[tensor].op for tensor in moving_inputs(graph, op)}


def oracle_turns(graph: OpGraph, where: Placement) -> list[tuple[int, int, str, tuple[int, ...]]]:
    """(turn, first op, device, ops) of each call: home and the accelerators take turns.

    In a turn every accelerator does all it can with what the turns before it left and with what
    it makes itself; then home does all it can. Whatever an accelerator did in a turn is a call.
    """
    done: set[int] = set()
    found = []
    for turn in range(len(graph.ops) + 1):
        before = set(done)
        for device in [*where.accelerators, HOME]:
            if device != HOME and turn == 0:
                continue
            at_hand = set(done) if device == HOME else set(before)
            ran = []
            for op in running(graph):  # in the order of execution: one pass does all that can be
                if op not in done and where.devices[op] == device:
                    if producers(graph, op) <= at_hand:
                        ran.append(op)
                        at_hand.add(op)
            done.update(ran)
            if ran and device != HOME:
                found.append((turn, ran[0], device, tuple(ran)))
    assert done == set(running(graph))
    return sorted(found)


def oracle_calls(graph: OpGraph, where: Placement) -> list[tuple[str, tuple[int, ...]]]:
    """(device, ops) of each call, in order."""
    return [(device, ops) for _, _, device, ops in oracle_turns(graph, where)]


def oracle_moves(graph: OpGraph, where: Placement, residency: str) -> list[Move]:
    """Go through the calls with what each device holds written down."""
    calls = oracle_calls(graph, where)
    everywhere = set(running(graph))
    at_home = {op for op in everywhere if where.devices[op] == HOME}
    holds: dict[str, set[int]] = defaultdict(set)
    moves = []
    for call, (device, ops) in enumerate(calls):
        if residency == "call":
            holds[device] = set()
        for op in ops:
            for tensor in sorted(moving_inputs(graph, op) - holds[device]):
                source = where.devices[graph.tensors[tensor].op]
                if residency == "call":
                    source = HOME
                moves.append((tensor, source, device, call))
                holds[device].add(tensor)
            holds[device].update(made.id for made in graph.outputs(op))
        asking = at_home if residency == "run" else everywhere - set(ops)
        asked_for = {tensor for op in asking for tensor in moving_inputs(graph, op)}
        made = {tensor.id for op in ops for tensor in graph.outputs(op)}
        moves += [(tensor, device, HOME, call) for tensor in made & asked_for]
    return moves


def oracle_direction(source: str, destination: str) -> str:
    if source == HOME:
        return "send"
    return "receive" if destination == HOME else "peer"


def oracle_wire_dtype(tensor: Tensor, wire_dtype: str | None) -> str:
    floating = tensor.dtype.startswith(("float", "bfloat"))
    return wire_dtype if floating and wire_dtype is not None else tensor.dtype


def oracle_payload(tensor: Tensor, wire_dtype: str | None) -> int:
    elements = 1
    for size in tensor.shape:
        elements *= size
    return elements * ITEM_BYTES[oracle_wire_dtype(tensor, wire_dtype)]


def oracle_bytes(
    graph: OpGraph, moves: list[Move], wire_dtype: str | None
) -> dict[tuple[int, str], tuple[int, int]]:
    """(payload, wire) by (call, direction)."""
    messages = defaultdict(list)
    for tensor, source, destination, call in moves:
        payload = oracle_payload(graph.tensors[tensor], wire_dtype)
        messages[call, source, destination].append(payload)
    sums: dict[tuple[int, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for (call, source, destination), payloads in messages.items():
        direction = oracle_direction(source, destination)
        wire = sum(payloads)
        if direction == "receive":
            wire += LINK.received_message_framing_bytes
            wire += LINK.received_tensor_framing_bytes * len(payloads)
        else:
            wire += LINK.sent_message_framing_bytes
            wire += LINK.sent_tensor_framing_bytes * len(payloads)
        payload_so_far, wire_so_far = sums[call, direction]
        sums[call, direction] = (payload_so_far + sum(payloads), wire_so_far + wire)
    return sums


def oracle_resident(graph: OpGraph, where: Placement) -> dict[str, int]:
    """Bytes by device, devices that hold nothing left out."""

    def owner(tensor: Tensor) -> int:
        while tensor.alias_of is not None:
            tensor = graph.tensors[tensor.alias_of]
        return tensor.id

    def computed_from(op: int) -> set[int]:
        found = set()
        for tensor in graph.inputs(op):
            found |= {owner(tensor)} if tensor.op is None else computed_from(tensor.op)
        return found

    held: dict[str, set[int]] = defaultdict(set)
    for op in running(graph):
        for tensor in graph.inputs(op):
            if tensor.op is None:
                held[where.devices[op]].add(owner(tensor))
            elif graph.ops[tensor.op].is_constant:
                held[where.devices[op]].add(owner(tensor))
                held[where.devices[op]] |= computed_from(tensor.op)
    sums = {device: sum(graph.tensors[t].bytes for t in held[device]) for device in held}
    return {device: size for device, size in sums.items() if size}


def moves_of(traffic: Traffic) -> list[Move]:
    return [(t.tensor.id, t.src_device, t.dst_device, t.call) for t in traffic.transfers]
