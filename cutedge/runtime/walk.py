"""What a run does, by what its ops read: its calls, and what each fetches because it is lacking.

A walk over the ops as they are carried out. It knows the arguments that each op is given, where
each op runs, and what a device keeps; it knows nothing of ``partition.accounting``, whose answer is
compared with what a run of this does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cutedge.runtime.interpreter import read
from partition import Residency
from partition.placement import Placement
from tracer.graph import Kind, OpGraph, Role, Tensor
from tracer.program import Invocation
from tracer.summary import renewals


@dataclass(frozen=True, slots=True)
class Visit:
    """A call of an accelerator; its place in ``Walk.calls`` is its number."""

    step: int
    """Home's turns until then, counted from 1."""
    device: str
    ops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A tensor that leaves a device for another one."""

    tensor: int
    src: str
    dst: str
    call: int


@dataclass(slots=True)
class Walk:
    """A run, from the inputs to the results."""

    steps: Sequence[int]
    """By op: the turn in which its device runs it."""
    calls: Sequence[Visit]
    moves: list[Move] = field(default_factory=list)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By device: the new cached state that lies there after the run."""


def walk(
    graph: OpGraph,
    invocations: Mapping[int, Invocation],
    placement: Placement,
    residency: Residency = "run",
) -> Walk:
    """Go through a run: when each op can begin, and what is not there when it does.

    With residency ``call`` accelerators send nothing to each other, and keep cached state alone.
    """
    needs = _Needs(graph, invocations, placement)
    steps = _steps(graph, placement, needs)
    brought = _brought(graph, placement, needs, steps)
    calls = _calls(graph, placement, steps, brought)
    moves = _moves(graph, placement, needs, calls, brought, residency)
    moves += _weights(graph, invocations, placement, needs, calls, residency)
    return Walk(steps, calls, moves, _kept(graph, placement, needs, moves))


class _Needs:
    """What must be on a device before something can be read there."""

    def __init__(
        self, graph: OpGraph, invocations: Mapping[int, Invocation], placement: Placement
    ) -> None:
        self.reads: list[tuple[int, ...]] = []
        """By op: the tensors that it is given, each once. The output op takes no state home."""
        self.rows: dict[int, tuple[int, ...]] = {}
        """Tensor -> those that it can be worked out from on any device: itself, where an op of one
        device makes it; of cached state what is appended; of parameters and constants nothing."""
        self.held: dict[int, frozenset[int]] = {}
        """Tensor that is worked out anywhere -> these tensors that lie behind it, it with them."""
        for op in graph.ops:
            given = [*read(invocations[op.id])] if op.id in invocations else []
            if op.kind is Kind.OUTPUT:
                given = [t.id for t in graph.inputs(op.id) if t.role is not Role.KV_CACHE]
            self.reads.append(tuple(dict.fromkeys(given)))
            here = placement.devices[op.id]
            rows = tuple(dict.fromkeys(row for t in given for row in self.rows.get(t, ())))
            behind = frozenset[int]().union(*(self.held.get(t, frozenset()) for t in given))
            for made in graph.outputs(op.id):
                self.rows[made.id] = rows if here is None else (made.id,)
                if here is None:
                    self.held[made.id] = behind | {made.id}

    def of(self, op: int) -> list[tuple[int, bool]]:
        """(tensor that must have come for an op, whether only as part of cached state)."""
        return [(row, row != t) for t in self.reads[op] for row in self.rows.get(t, ())]

    def holders(self, placement: Placement, state: int) -> set[str]:
        """The devices that read a state, or what is worked out of it."""
        return {
            device
            for op, device in enumerate(placement.devices)
            if device is not None and any(state in self.held.get(t, ()) for t in self.reads[op])
        }


def _maker(graph: OpGraph, placement: Placement, tensor: int) -> tuple[int, str]:
    """(the op that makes a tensor, its device)."""
    op = graph.tensors[tensor].op
    device = None if op is None else placement.devices[op]
    assert op is not None
    assert device is not None
    return op, device


def _steps(graph: OpGraph, placement: Placement, needs: _Needs) -> list[int]:
    """By op: how many calls one after another have begun when it can run, its own with them."""
    steps = [0] * len(graph.ops)
    for op, here in enumerate(placement.devices):
        if here is None:
            continue
        steps[op] = int(here != placement.home)
        for row, _ in needs.of(op):
            maker, there = _maker(graph, placement, row)
            called = here not in (placement.home, there)
            steps[op] = max(steps[op], steps[maker] + called)
    return steps


_Brought = Mapping[tuple[int, str], list[int]]
"""(step, device) -> rows of new state that no op there needs, for what reads it in the next run."""


def _brought(graph: OpGraph, placement: Placement, needs: _Needs, steps: Sequence[int]) -> _Brought:
    devices = placement.devices
    taken: dict[str, set[int]] = defaultdict(set)  # the steps in which a device runs ops
    needed: dict[str, set[int]] = defaultdict(set)
    for op, device in enumerate(devices):
        if device is not None:
            taken[device].add(steps[op])
            needed[device].update(row for row, _ in needs.of(op))
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for old, new in renewals(graph):
        for device in needs.holders(placement, old.id):
            for row in needs.rows.get(new.id, ()):
                maker, source = _maker(graph, placement, row)
                if device != source and row not in needed[device]:
                    ready = steps[maker] + (device != placement.home)
                    step = min((s for s in taken[device] if s >= ready), default=ready)
                    found[step, device].append(row)
    return found


def _calls(
    graph: OpGraph, placement: Placement, steps: Sequence[int], brought: _Brought
) -> list[Visit]:
    ops: dict[tuple[int, str], list[int]] = {key: [] for key in brought if key[1] != placement.home}
    for op, device in enumerate(placement.devices):
        if device not in (None, placement.home):
            ops.setdefault((steps[op], str(device)), []).append(op)
    late = [len(graph.ops)]
    order = sorted(ops, key=lambda key: (key[0], ops[key][:1] or late, key[1]))
    return [Visit(step, device, tuple(ops[step, device])) for step, device in order]


def _moves(
    graph: OpGraph,
    placement: Placement,
    needs: _Needs,
    calls: Sequence[Visit],
    brought: _Brought,
    residency: Residency,
) -> list[Move]:
    """What each call fetches, op by op, because it is not there; what home lacks comes home."""
    home, moves = placement.home, list[Move]()
    made_in = {
        t.id: number
        for number, call in enumerate(calls)
        for op in call.ops
        for t in graph.outputs(op)
    }
    results = {t.id for t in graph.inputs(len(graph.ops) - 1) if t.role is Role.KV_CACHE}
    here: dict[str, set[int]] = defaultdict(set)
    in_state: dict[str, set[int]] = defaultdict(set)  # what has been appended to state there
    appended: dict[str, set[int]] = defaultdict(set)  # what is, sooner or later
    for op, device in enumerate(placement.devices):
        appended[str(device)].update(row for row, as_state in needs.of(op) if as_state)

    def have(device: str, tensor: int, call: int) -> None:
        """Have a tensor on a device, if it is not there."""
        source = _maker(graph, placement, tensor)[1]
        if tensor in here[device] or source == device == home:
            return
        if residency == "call" and home not in (source, device):
            have(home, tensor, call)
            source = home
        at = made_in[tensor] if device == home else call
        moves.append(Move(tensor, source, device, at))
        here[device].add(tensor)

    for number, call in enumerate(calls):
        there, lying = here[call.device], in_state[call.device]
        for op in call.ops:
            for tensor, as_state in needs.of(op):
                if not (as_state and tensor in lying):
                    have(call.device, tensor, number)
            there.update(t.id for t in graph.outputs(op))
        for tensor in brought.get((call.step, call.device), ()):
            have(call.device, tensor, number)
        if residency == "call":
            lying |= there & appended[call.device]
            there &= results
    for op, device in enumerate(placement.devices):
        if device == home:
            for tensor, _ in needs.of(op):
                have(home, tensor, len(calls))
    for (_, device), tensors in brought.items():
        for tensor in tensors if device == home else ():
            have(home, tensor, len(calls))
    return sorted(moves, key=lambda move: (move.call, move.src, move.tensor, move.dst))


def _weights(
    graph: OpGraph,
    invocations: Mapping[int, Invocation],
    placement: Placement,
    needs: _Needs,
    calls: Sequence[Visit],
    residency: Residency,
) -> list[Move]:
    """What each call fetches of parameters that lie at home, op by op, because it is not there."""
    home, moves = placement.home, list[Move]()
    there: dict[str, set[int]] = defaultdict(set)  # parameters that a device has from the start
    wanted: dict[int, list[int]] = defaultdict(list)  # op -> parameters that it is to be sent

    def behind(tensor: Tensor) -> set[int]:
        if tensor.op is None:
            return {graph.storage(tensor).id}
        reads = read(invocations[tensor.op]) if tensor.op in invocations else []
        return {part for one in reads for part in behind(graph.tensors[one])}

    for op, device in enumerate(placement.devices):
        for tensor in map(graph.tensors.__getitem__, needs.reads[op] if device else ()):
            if tensor.op is not None and not graph.ops[tensor.op].is_constant:
                continue
            if graph.storage(tensor).role is not Role.PARAMETER:
                there[str(device)] |= behind(tensor)
            elif op in placement.streams:
                wanted[op].append(graph.storage(tensor).id)
            else:
                there[str(device)].add(graph.storage(tensor).id)
    for number, call in enumerate(calls):
        came = set[int]() if residency == "call" else there[call.device]
        for op in call.ops:
            for weight in wanted[op]:
                if weight not in came | there[call.device]:
                    moves.append(Move(weight, home, call.device, number))
                    came.add(weight)
    return moves


def _kept(
    graph: OpGraph, placement: Placement, needs: _Needs, moves: Sequence[Move]
) -> dict[str, tuple[int, ...]]:
    """By device: the new cached state that lies there after the run.

    State lies where the old one or the new one is read, or what it is made of; what one device
    makes lies with it, and with the accelerators that it went to.
    """
    old = {new.id: old.id for old, new in renewals(graph)}
    found: dict[str, list[int]] = defaultdict(list)
    for state in dict.fromkeys(graph.inputs(len(graph.ops) - 1)):
        if state.role is not Role.KV_CACHE:
            continue
        assert state.op is not None
        if (maker := placement.devices[state.op]) is not None:
            devices = {m.dst for m in moves if m.tensor == state.id} - {placement.home} | {maker}
        else:
            devices = needs.holders(placement, state.id)
            devices |= needs.holders(placement, old[state.id]) if state.id in old else set()
            makers = [_maker(graph, placement, row)[1] for row in needs.rows[state.id]]
            devices = devices or {*makers[:1]} or {placement.home}
        for device in devices:
            found[device].append(state.id)
    return {device: tuple(states) for device, states in found.items()}
