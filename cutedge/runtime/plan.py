"""Who does what when: a placement, spelled out for each device of a run."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cutedge.runtime.interpreter import Instructions, read, resident_bytes
from cutedge.runtime.walk import walk
from cutedge.runtime.wire import Spec
from partition import Residency
from partition.masks import MaskedGraph
from partition.placement import Placement
from partition.wire_format import WireFormat
from tracer.graph import OpGraph, Role
from tracer.program import Invocation


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What an accelerator does in one call."""

    number: int
    """The call's id, in order of execution."""
    device: str
    ops: tuple[int, ...]
    sent: tuple[int, ...]
    """Tensors that come from home."""
    peers: Mapping[str, tuple[int, ...]]
    """Another accelerator -> tensors that come from there."""
    received: tuple[int, ...]
    """Tensors that go home."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device holds and carries out."""

    name: str
    instructions: Instructions
    ops: tuple[int, ...]
    """Its own ops, in order."""
    constants: frozenset[int]
    """Ops that are worked out before the run."""
    parameters: Mapping[int, str]
    """Tensor -> the name of the parameter that owns its memory."""
    data: tuple[int, ...]
    """Buffers, constants without an op and weights in other forms, which home has the numbers of."""
    states: Mapping[int, str]
    """Tensor -> the name of the cached state that it is before the run."""
    kept: tuple[int, ...] = ()
    """Results that are cached state and lie here after the run."""

    @property
    def resident_bytes(self) -> int:
        """Of the parameters, buffers and cached state that it loads."""
        return resident_bytes(self.parameters, (*self.data, *self.states), self.instructions.specs)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, device by device and call by call."""

    home: DevicePlan
    accelerators: Mapping[str, DevicePlan]
    calls: tuple[CallPlan, ...]
    home_ops: tuple[tuple[int, ...], ...]
    """By call, the ops that home runs before it; then those after the last one."""
    outputs: tuple[int, ...]
    """The results, which lie at home after the run; cached state is not among them."""
    crossing: Mapping[int, Spec] = field(default_factory=dict)
    """By tensor that crosses: what it is on the wire."""
    weights: frozenset[int] = frozenset()
    """Of these the parameters, which cross as they are stored."""


def make_plan(
    graph: OpGraph,
    invocations: Mapping[int, Invocation],
    placement: Placement,
    *,
    wire: WireFormat | None = None,
    residency: Residency = "run",
) -> Plan:
    """Spell out a placement for its devices, by what the ops read (``cutedge.runtime.walk``).

    What the accounting predicts is not asked: it is compared with what this run does.
    """
    home = placement.home
    walked = walk(graph, invocations, placement, residency)
    peers: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    sent: dict[int, list[int]] = defaultdict(list)
    received: dict[int, list[int]] = defaultdict(list)
    leaves: dict[str, Counter[int]] = defaultdict(Counter)
    for move in walked.moves:
        leaves[move.src][move.tensor] += 1
        if home not in (move.src, move.dst):
            peers[move.call][move.src].append(move.tensor)
        else:
            (sent if move.src == home else received)[move.call].append(move.tensor)
    calls = tuple(
        CallPlan(
            number,
            call.device,
            call.ops,
            tuple(sent[number]),
            {device: tuple(tensors) for device, tensors in sorted(peers[number].items())},
            tuple(received[number]),
        )
        for number, call in enumerate(walked.calls)
    )
    results = graph.inputs(len(graph.ops) - 1)
    outputs = tuple(t.id for t in results if t.role is not Role.KV_CACHE)
    # A device may be called for cached state alone, and run nothing.
    names = dict.fromkeys((home, *placement.accelerators, *(call.device for call in calls)))
    came: dict[str, set[int]] = defaultdict(set)
    for move in walked.moves:
        if graph.tensors[move.tensor].op is None:
            came[move.dst].add(move.tensor)
    devices = {
        name: _device_plan(
            graph,
            invocations,
            placement,
            name,
            leaves[name],
            outputs,
            walked.kept.get(name, ()),
            frozenset(came[name]),
        )
        for name in names
    }
    pending = [op for op in devices[home].ops if op in invocations]
    home_ops: list[tuple[int, ...]] = []
    for call in walked.calls:
        home_ops.append(tuple(op for op in pending if walked.steps[op] < call.step))
        pending = [op for op in pending if walked.steps[op] >= call.step]
    wire = wire or WireFormat()
    crossing = {move.tensor: wire.of(graph.tensors[move.tensor]) for move in walked.moves}
    return Plan(
        home=devices.pop(home),
        accelerators=devices,
        calls=calls,
        home_ops=(*home_ops, tuple(pending)),
        outputs=outputs,
        crossing={
            n: Spec(one.dtype, graph.tensors[n].shape, one.form) for n, one in crossing.items()
        },
        weights=frozenset().union(*came.values()),
    )


def _device_plan(
    graph: OpGraph,
    invocations: Mapping[int, Invocation],
    placement: Placement,
    name: str,
    leaving: Mapping[int, int],
    outputs: Iterable[int],
    kept: Sequence[int],
    sent: frozenset[int],
) -> DevicePlan:
    """What a device holds and does; ``sent`` are parameters that come there in the run."""
    own = tuple(op for op, device in enumerate(placement.devices) if device == name)
    carried = {op for op in own if op in invocations}
    uses: Counter[int] = Counter(leaving)
    names = {
        tensor.id: tensor.alias_of
        for tensor in graph.tensors
        if tensor.op is None and tensor.alias_of is not None and tensor.alias_of in sent
    }
    for op in carried:
        uses.update(names.get(t, t) for t in set(read(invocations[op])))
    if name == placement.home:
        uses.update(outputs)
    resident: set[int] = set()
    front = [tensor for op in sorted(carried) for tensor in read(invocations[op])]
    if name == placement.home:
        front += outputs
        front += [t for t in leaving if graph.tensors[t].op is None]
    front += [t for t in kept if not graph.crosses(graph.tensors[t])]
    uses.update(t for t in kept if graph.crosses(graph.tensors[t]))
    everywhere: dict[int, int] = {}
    comes = sent | names.keys()
    while front:
        tensor = graph.tensors[front.pop()]
        if tensor.id in everywhere or tensor.id in resident or tensor.id in comes:
            continue
        if tensor.op is None or (
            graph.is_everywhere(tensor.op) and tensor.op not in invocations
        ):  # a parameter, or cached state that is given
            resident.add(tensor.id)
        elif graph.is_everywhere(tensor.op):
            everywhere.update((made.id, tensor.op) for made in graph.outputs(tensor.op))
            needed = read(invocations[tensor.op])
            uses.update(needed)  # new rows of cached state: they are kept until it is worked out
            front += needed
    needed_ops = carried | set(everywhere.values())
    involved = {t for op in needed_ops for t in read(invocations[op], likes=True)}
    involved |= {t.id for op in needed_ops for t in graph.outputs(op)} | resident | set(uses)
    copies = graph.copies if isinstance(graph, MaskedGraph) else {}
    passing = frozenset(t for t in everywhere if graph.storage(graph.tensors[t]).id in sent)
    roles = {t: graph.tensors[t].role for t in resident}
    return DevicePlan(
        name=name,
        instructions=Instructions(
            invocations={op: invocations[op] for op in sorted(needed_ops)},
            targets={op: graph.ops[op].target for op in sorted(needed_ops)},
            made={op: tuple(t.id for t in graph.outputs(op)) for op in sorted(needed_ops)},
            everywhere=everywhere,
            specs={
                t: Spec(graph.tensors[t].dtype, graph.tensors[t].shape) for t in sorted(involved)
            },
            uses={t: n for t, n in sorted(uses.items()) if n},
            names={tensor: owner for tensor, owner in names.items() if tensor in involved},
            passing=passing,
        ),
        ops=own,
        constants=frozenset(
            op
            for tensor, op in everywhere.items()
            if graph.ops[op].is_constant and tensor not in passing
        ),
        parameters={
            t: graph.storage(graph.tensors[t]).name
            for t in sorted(resident)
            if roles[t] is Role.PARAMETER and t not in copies
        },
        data=tuple(
            t
            for t in sorted(resident)
            if t in copies or roles[t] not in (Role.PARAMETER, Role.KV_CACHE)
        ),
        states={t: graph.tensors[t].name for t in sorted(resident) if roles[t] is Role.KV_CACHE},
        kept=tuple(kept),
    )
