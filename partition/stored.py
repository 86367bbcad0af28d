"""What lies on devices rather than crossing: parameters, buffers, constants and cached state."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from costmodels.experts import STATE
from partition.placement import Placement
from tracer.graph import Kind, OpGraph, Role, Tensor
from tracer.summary import cached_inputs, cached_outputs, kept_state, renewals, state_memory


def state_readers(graph: OpGraph) -> dict[int, tuple[int, ...]]:
    """Tensor -> ops that read the cached state which it renews for the next run.

    The tensor must come to the devices of these ops as if they read it. Which state it renews is
    told by what it is made of (``tracer.summary.renewals``).
    """
    found: dict[int, set[int]] = defaultdict(set)
    for old, new in renewals(graph):
        made = [new] if graph.crosses(new) else [] if new.op is None else graph.flowing(new.op)
        readers = readers_of_stored(graph, old)
        for tensor in made:
            found[tensor.id].update(readers)
    return {tensor: tuple(sorted(ops)) for tensor, ops in found.items() if ops}


def readers_of_stored(graph: OpGraph, tensor: Tensor) -> set[int]:
    """The ops with a device of their own that read a tensor which is wherever it is read.

    Directly, or through what is computed or kept where they are. The output op is not one of them:
    it takes no cached state home.
    """
    found: set[int] = set()
    seen: set[int] = set()
    front = list(graph.readers(tensor.id))
    while front:
        op = front.pop()
        if op in seen:
            continue
        seen.add(op)
        if graph.is_everywhere(op):
            front += [reader for made in graph.outputs(op) for reader in graph.readers(made.id)]
        elif graph.ops[op].kind is not Kind.OUTPUT:
            found.add(op)
    return found


@dataclass(frozen=True, slots=True)
class _State:
    """A piece of cached state: what holds it, and whom it is for."""

    ops: frozenset[int]
    """The ops of cached state that it goes through."""
    readers: frozenset[int]
    """The ops with a device of their own that read it."""
    makers: frozenset[int]
    """Those that make what is new in it."""


@lru_cache(maxsize=4)
def _states(graph: OpGraph) -> tuple[_State, ...]:
    found = []
    for start in kept_state(graph):
        first = graph.tensors[start]
        pieces, new = {first.op} & graph.state_ops, {first.op} - graph.state_ops
        front = [*pieces, *graph.readers(start)]
        while front:
            op = front.pop()
            if op in graph.state_ops:
                pieces.add(op)
                makers = [graph.tensors[t.id].op for t in graph.inputs(op) if graph.crosses(t)]
                new.update(makers)
                front += [
                    reader
                    for made in graph.outputs(op)
                    for reader in graph.readers(made.id)
                    if reader not in pieces
                ]
        readers = readers_of_stored(graph, first)
        held, made = ({op for op in ops if op is not None} for ops in (pieces, new))
        found.append(_State(frozenset(held), frozenset(readers), frozenset(made)))
    return tuple(found)


def state_devices(graph: OpGraph, placement: Placement) -> dict[int, set[str]]:
    """Op of cached state -> the devices that hold it: those of the ops that read the state.

    What no op reads lies where what is new in it is made; where several ops made that, at home.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for state in _states(graph):
        devices = {placement.devices[op] for op in state.readers or state.makers}
        here = {device for device in devices if device is not None}
        for op in state.ops:
            found[op] |= here if state.readers or len(here) == 1 else {placement.home}
    return dict(found)


def kept_beside(graph: OpGraph) -> dict[int, int]:
    """Op of cached state that works -> an op that it is certain to work for, on that op's device.

    The first that reads the state. What no op reads is kept for the one op that makes what is new
    in it, or for the output op, at home.
    """
    return {op: min(_for(graph, state)) for op, state in _working(graph)}


def kept_on(graph: OpGraph, placement: Placement) -> dict[tuple[int, str], int]:
    """(op of cached state that works, a device that holds the state) -> an op that it works for.

    The first on that device, by the rules of ``kept_beside``.
    """
    found: dict[tuple[int, str], int] = {}
    for op, state in _working(graph):
        for reader in sorted(_for(graph, state)):
            device = placement.devices[reader]
            if device is not None:
                found.setdefault((op, device), reader)
    return found


def _working(graph: OpGraph) -> Iterator[tuple[int, _State]]:
    for state in _states(graph):
        for op in sorted(state.ops):
            if graph.ops[op].kind is Kind.COPY:
                yield op, state


def _for(graph: OpGraph, state: _State) -> frozenset[int]:
    if state.readers or len(state.makers) == 1:
        return state.readers or state.makers
    return frozenset({len(graph.ops) - 1})


def storages(graph: OpGraph) -> tuple[frozenset[int], ...]:
    """By op: the parameters, buffers, constants and cached state that must lie on its device.

    Each by the tensor that owns the memory; summed over the ops of a device, each once, they are
    ``resident_bytes`` where no parameter is sent. Cached state is what the step leaves of it
    (``tracer.summary.kept_state``): each op that reads it, before or afterwards, has it on its
    device; what no op reads lies where it is made.
    """
    return _needed(graph)[0]


def parameters_read(graph: OpGraph) -> tuple[frozenset[int], ...]:
    """By op: the parameters that it reads, or reads through views; nothing for constants.

    Each by the tensor that owns the memory. What a constant is computed from is not among them.
    """
    return _needed(graph)[1]


def lying_with(graph: OpGraph, streams: frozenset[int]) -> tuple[frozenset[int], ...]:
    """By op: of ``storages`` what lies on its device where parameters of ``streams`` are sent.

    Constants are computed at load, also those of parameters; both lie there all the same.
    """
    whole, _, rest = _needed(graph)
    if not streams:
        return whole
    return tuple(rest[op] if op in streams else every for op, every in enumerate(whole))


@dataclass(frozen=True, slots=True)
class Readers:
    """The ops that read a parameter, some of which may have it sent."""

    sent: tuple[int, ...]
    """Those to whose device it is sent, unless it lies there."""
    lying: tuple[int, ...]
    """Those on whose device it lies."""


@lru_cache(maxsize=4)
def readers_of_sent(graph: OpGraph, streams: frozenset[int]) -> dict[int, Readers]:
    """Parameter that may be sent -> the ops that read it.

    It is sent to a device where an op of ``sent`` runs and not one of ``lying`` does.
    """
    if not streams:
        return {}
    sent: dict[int, list[int]] = defaultdict(list)
    lying: dict[int, list[int]] = defaultdict(list)
    kept = lying_with(graph, streams)
    for op, parameters in enumerate(parameters_read(graph)):
        for parameter in sorted(parameters - kept[op]):
            sent[parameter].append(op)
    for op, stored in enumerate(kept):
        for parameter in stored & sent.keys():
            lying[parameter].append(op)
    return {one: Readers(tuple(ops), tuple(lying[one])) for one, ops in sorted(sent.items())}


def sent_weights(graph: OpGraph, placement: Placement) -> dict[str, dict[int, tuple[int, ...]]]:
    """Accelerator -> parameter that it is sent in each run -> the ops there that read it."""
    found: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    devices = placement.devices
    for parameter, readers in readers_of_sent(graph, placement.streams).items():
        there = {devices[op] for op in readers.lying}
        for device in sorted({str(devices[op]) for op in readers.sent} - {placement.home}):
            if device not in there:
                ops = tuple(op for op in readers.sent if devices[op] == device)
                found[device][parameter] = ops
    return dict(found)


@lru_cache(maxsize=4)
def _needed(
    graph: OpGraph,
) -> tuple[tuple[frozenset[int], ...], tuple[frozenset[int], ...], tuple[frozenset[int], ...]]:
    """By op: what must lie on its device, parameters that it reads, what lies there without them."""
    kept = kept_state(graph)
    behind: dict[int, frozenset[int]] = {}  # constant or state op -> what it comes from
    found: list[frozenset[int]] = []
    parameters: list[frozenset[int]] = []
    others: list[frozenset[int]] = []
    for op in graph.ops:
        read = [t for t in graph.inputs(op.id) if not graph.crosses(t)]
        if op.kind is Kind.OUTPUT:
            read = [t for t in read if t.role is not Role.KV_CACHE]
        needed = {graph.storage(t).id for t in read if graph.storage(t).role in STATE}
        needed.update(*(behind[t.op] for t in read if t.op is not None))
        if op.id in graph.state_ops and not any(t.op in graph.state_ops for t in read):
            held = [graph.tensors[k] for t in graph.outputs(op.id) for k in kept[t.id]]
            needed.update(state_memory(graph, t).id for t in held)
        if graph.is_everywhere(op.id):
            behind[op.id] = frozenset(needed)
            for each in (found, parameters, others):
                each.append(frozenset())
        else:
            needed.update(graph.storage(t).id for t in read if t.op not in graph.state_ops)
            found.append(frozenset(needed))
            parameter = [t for t in read if graph.storage(t).role is Role.PARAMETER]
            parameters.append(frozenset(graph.storage(t).id for t in parameter))
            rest = [t for t in read if graph.storage(t).role is not Role.PARAMETER]
            computed = frozenset[int]().union(*(behind[t.op] for t in rest if t.op is not None))
            others.append(frozenset(needed) - parameters[-1] | computed)
    for op_id, tensors in _left(graph, set().union(*found)).items():
        found[op_id] |= tensors
        others[op_id] |= tensors
    return tuple(found), tuple(parameters), tuple(others)


def _left(graph: OpGraph, held: set[int]) -> dict[int, set[int]]:
    """Op -> the cached state on its device that is not among ``held``: no op reads it.

    It lies where what is new in it is made; where several ops made that, or not one, at home, where
    the output op is.
    """
    found: dict[int, set[int]] = defaultdict(set)
    for tensor in cached_outputs(graph):
        memory, op = state_memory(graph, tensor).id, tensor.op
        if memory not in held and op is not None:
            new = [tensor] if graph.crosses(tensor) else graph.flowing(op)
            makers = {made.op for made in new if made.op is not None}
            found[makers.pop() if len(makers) == 1 else len(graph.ops) - 1].add(memory)
    return found


def resident_bytes(graph: OpGraph, placement: Placement) -> dict[str, int]:
    """By device: the parameters, buffers, constants and cached state that must lie there.

    A device holds each parameter and buffer that an op on it reads, also those that its constants
    are computed from, each constant that an op on it reads, and the cached state that its ops read,
    as it is when the step is over: with its new rows, and of a sliding window the rows that are
    kept. State that no op reads lies where it is made. Storage shared by several tensors (tied
    weights, views) counts once a device. A parameter that a device is sent lies at home.
    """
    return {
        device: sum(graph.tensors[t].bytes for t in tensors)
        for device, tensors in held(graph, placement).items()
    }


def held(graph: OpGraph, placement: Placement) -> dict[str, set[int]]:
    """By device: the tensors of ``resident_bytes``."""
    found: dict[str, set[int]] = {d: set() for d in (placement.home, *placement.accelerators)}
    every, kept = storages(graph), lying_with(graph, placement.streams)
    for op, device in enumerate(placement.devices):
        if device is not None:
            found[device] |= every[op] if device == placement.home else kept[op]
    for sent in sent_weights(graph, placement).values():
        found[placement.home].update(sent)
    return found


def moved_state(
    before: OpGraph, left: Placement, after: OpGraph, wanted: Placement
) -> list[tuple[Tensor, str, str]]:
    """(state of the run after, where it lies, where it is read): what moves between two runs.

    Of cached state that a run leaves on devices and the next one reads on others; home hands on
    what it has.
    """
    renewed = {old.id: state for old, state in renewals(after)}
    read = cached_inputs(after)
    lying = _holding(before, left, cached_outputs(before))
    needed = _holding(after, wanted, [renewed.get(state.id, state) for state in read])
    return [
        (state, left.home if left.home in here else sorted(here)[0], device)
        for state, here, there in zip(read, lying, needed, strict=True)
        for device in sorted(there - here)
    ]


def _holding(graph: OpGraph, placement: Placement, states: Sequence[Tensor]) -> list[set[str]]:
    """By piece of cached state, the devices on which it lies."""
    there = held(graph, placement)
    memory = [state_memory(graph, state).id for state in states]
    return [{device for device, tensors in there.items() if m in tensors} for m in memory]
