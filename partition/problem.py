"""What an optimal placement is asked for: allowed devices, integer costs, limits.

A problem is data. Solvers read it, and ``recount`` says what any placement costs under it and
which of its limits the placement breaks, from ``partition.accounting.account`` alone: no solver's
own sum is ever believed. Costs are integers in one unit that the caller chooses (bytes, or
nanoseconds), so that two solvers on two machines agree to the last digit.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodels.links import Links, load_link
from costmodels.memory import highest
from partition import Residency
from partition.accounting import Traffic, Transfer, account
from partition.granularity import shared
from partition.placement import Placement, PlacementError
from partition.secrets import present
from partition.stored import held, readers_of_sent, readers_of_stored, sent_weights, state_readers
from partition.wire_format import WireFormat
from tracer.graph import Kind, OpGraph


@dataclass(frozen=True, slots=True)
class Problem:
    """A graph to place, and what the placement costs. A cost that a mapping lacks is 0.

    Raises PlacementError for what no problem can mean: a negative or fractional cost, a device
    that is neither home nor an accelerator, an input away from home.
    """

    graph: OpGraph
    home: str
    """The device that holds the inputs and must hold the output. It is trusted with everything."""
    accelerators: tuple[str, ...]
    """The other devices: one or more."""
    allowed: Sequence[tuple[str, ...]]
    """By op id: the devices that it may run on, one for a pinned op; none for constants and cached
    state, which have no device. See ``allowed_devices``."""
    op_cost: Mapping[tuple[int, str], int] = field(default_factory=dict)
    """(op, device) -> what it costs to run it there."""
    transfer_cost: Mapping[tuple[int, str, str], int] = field(default_factory=dict)
    """(tensor, source, destination) -> what it costs to move it once. See ``payload_costs``."""
    storage_cost: Mapping[tuple[int, str], int] = field(default_factory=dict)
    """(tensor, device) -> what it costs that a parameter, buffer, constant or cached state lies
    there; the tensor is the one that owns the memory."""
    call_cost: Mapping[str, int] = field(default_factory=dict)
    """Accelerator -> what one call to it costs."""
    max_calls: int | None = None
    """The most calls that a run may make, to all accelerators together."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Device -> the most that may lie there at a time, as ``memory_of`` counts it."""
    residency: Residency = "run"
    """What an accelerator keeps between calls."""
    unit: float = 1.0
    """What one of the whole numbers of the costs is, in the unit that the answer is told in."""
    secrets: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Accelerator -> tensors that may neither be made there, nor be sent there, nor lie there.
    These tensors and no others: who means the views of a tensor too names them too."""
    streams: frozenset[int] = frozenset()
    """Ops whose parameters lie at home, as in ``Placement.streams``. What it costs to send one is
    among ``transfer_cost``."""
    units: Sequence[int] = ()
    """By op: the first op of those that lie on one device with it (``granularity.units``); empty
    where each may lie on another one."""
    one_call: bool = False
    """Whether each accelerator may be called once at most."""

    def __post_init__(self) -> None:
        devices = self.devices
        if not self.accelerators or len(set(devices)) != len(devices):
            raise PlacementError(f"home and the accelerators must be distinct: {devices}")
        if self.units and len(self.units) != len(self.graph.ops):
            raise PlacementError(f"{len(self.units)} ops have a unit, of {len(self.graph.ops)}")
        if self.home in self.secrets:
            raise PlacementError(f"{self.home} is home, from which nothing can be kept secret")
        for op, choice in zip(self.graph.ops, self.allowed, strict=True):
            fixed = op.kind in (Kind.INPUT, Kind.OUTPUT)
            if self.graph.is_everywhere(op.id):
                if choice:
                    raise PlacementError(f"op {op.id} ({op.name}) has no device of its own")
            elif not set(choice) <= set(devices) or (fixed and set(choice) - {self.home}):
                raise PlacementError(f"op {op.id} ({op.name}) cannot be on {', '.join(choice)}")
        costs: Iterable[Mapping[object, int]] = (
            self.op_cost,
            self.transfer_cost,
            self.storage_cost,
            self.call_cost,
            self.memory_bytes,
        )  # type: ignore[assignment]
        for mapping in costs:
            for key, value in mapping.items():
                if type(value) is not int or value < 0:
                    raise PlacementError(f"{key}: {value!r} is not a whole number from 0 on")

    @property
    def devices(self) -> tuple[str, ...]:
        """Home, then the accelerators."""
        return (self.home, *self.accelerators)

    @property
    def most_calls(self) -> int | None:
        """The most calls that a run may make, one to each accelerator where that is the limit."""
        each = [len(self.accelerators)] if self.one_call else []
        return min([*each, *([] if self.max_calls is None else [self.max_calls])], default=None)


class InfeasibleError(PlacementError):
    """No placement meets the limits of a problem; the message names those that cannot hold."""


class NotFoundError(PlacementError):
    """No placement was found in time; there may be one."""


def allowed_devices(
    graph: OpGraph, home: str, accelerators: Sequence[str], pins: Mapping[int, str]
) -> tuple[tuple[str, ...], ...]:
    """By op: the device that it is pinned to, home for inputs and the output, else any device."""
    choices: list[tuple[str, ...]] = []
    for op in graph.ops:
        if graph.is_everywhere(op.id):
            choices.append(())
        elif op.kind in (Kind.INPUT, Kind.OUTPUT):
            choices.append((home,))
        else:
            choices.append((pins[op.id],) if op.id in pins else (home, *accelerators))
    return tuple(choices)


def payload_costs(
    graph: OpGraph,
    devices: Sequence[str],
    wire: WireFormat | None = None,
    streams: frozenset[int] = frozenset(),
) -> dict[tuple[int, str, str], int]:
    """(tensor, source, destination) -> payload bytes, for all that can cross.

    The first of ``devices`` is home, where the parameters of ``streams`` come from.
    """
    wire = wire or WireFormat()
    costs: dict[tuple[int, str, str], int] = {}
    for tensor in graph.tensors:
        if graph.crosses(tensor):
            payload = wire.of(tensor).payload_bytes
            for source in devices:
                for destination in devices:
                    if source != destination:
                        key = tensor.id, source, destination
                        costs[key] = payload
    for parameter in readers_of_sent(graph, streams):
        payload = wire.of(graph.tensors[parameter]).payload_bytes
        costs |= {(parameter, devices[0], device): payload for device in devices[1:]}
    return costs


# --- what the graph demands -----------------------------------------------------------------------


def viewed(graph: OpGraph) -> dict[int, int]:
    """Tensor -> the tensor that its op reads and that it is a view of."""
    found: dict[int, int] = {}
    for tensor in graph.tensors:
        if tensor.op is not None and tensor.alias_of is not None and graph.crosses(tensor):
            for read in graph.inputs(tensor.op):
                if graph.storage(read).id == graph.storage(tensor).id:
                    found[tensor.id] = read.id
    return found


def kept_from(problem: Problem) -> dict[tuple[int, str], tuple[int, str]]:
    """(op, accelerator) -> (a secret tensor that keeps it away, why): what secrets forbid."""
    graph = problem.graph
    renewed = state_readers(graph)
    found: dict[tuple[int, str], tuple[int, str]] = {}
    for device, tensors in sorted(problem.secrets.items()):
        for number in sorted(tensors):
            tensor = graph.tensors[number]
            if graph.crosses(tensor):
                assert tensor.op is not None
                readers: Iterable[int] = (*graph.needed_by(number), *renewed.get(number, ()))
                found.setdefault((tensor.op, device), (number, "makes"))
            else:
                readers = readers_of_stored(graph, tensor)
            for op in readers:
                found.setdefault((op, device), (number, "reads"))
    return found


def candidates(problem: Problem) -> list[tuple[str, ...]]:
    """By op: the devices that are allowed to all ops of its unit, but for those that a secret tensor
    would reach through one of them."""
    forbidden = kept_from(problem)
    own = [
        tuple(d for d in problem.devices if d in choice and (op, d) not in forbidden)
        for op, choice in enumerate(problem.allowed)
    ]
    return shared(problem.units, own) if problem.units else own


# --- what a placement costs -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recount:
    """What a placement costs and breaks under a problem."""

    objective: int
    """Ops, transfers, storages and calls, in the problem's unit."""
    calls: int
    """Round trips to accelerators."""
    memory_bytes: Mapping[str, int]
    """The most that lies on each device with a limit at a time."""
    broken: tuple[str, ...]
    """The constraints that do not hold, in words."""


def placement_of(
    problem: Problem, devices: Sequence[str | None], reason: str = "chosen"
) -> Placement:
    """The placement with an op on each of ``devices``; ops with one allowed device are pinned."""
    pinned = tuple(len(choice) < 2 for choice in problem.allowed)
    reasons = tuple("no other device is allowed" if fixed else reason for fixed in pinned)
    return Placement(problem.home, tuple(devices), pinned, reasons, problem.streams)


def recount(problem: Problem, placement: Placement) -> Recount:
    """What ``placement`` costs, from the accounting alone. Raises PlacementError as that does."""
    graph, devices = problem.graph, placement.devices
    # A link without framing: what a message or a tensor adds is in the problem's own costs.
    traffic = account(graph, placement, Links(load_link("none")), residency=problem.residency)
    stored = [(t, device) for device, there in held(graph, placement).items() for t in there]
    objective = sum(
        problem.op_cost.get((op, device), 0)
        for op, device in enumerate(devices)
        if device is not None
    )
    objective += sum(
        problem.transfer_cost.get((t.tensor.id, t.src_device, t.dst_device), 0)
        for t in traffic.transfers
    )
    objective += sum(problem.storage_cost.get(key, 0) for key in stored)
    objective += sum(problem.call_cost.get(call.device, 0) for call in traffic.calls)
    memory = memory_of(graph, placement, traffic.transfers) if problem.memory_bytes else {}
    used = {device: memory.get(device, 0) for device in problem.memory_bytes}
    return Recount(
        objective, len(traffic.calls), used, (*_broken(problem, placement, traffic, used),)
    )


def _broken(
    problem: Problem, placement: Placement, traffic: Traffic, used: Mapping[str, int]
) -> Iterable[str]:
    graph = problem.graph
    for op, device in zip(graph.ops, placement.devices, strict=True):
        if device is not None and device not in problem.allowed[op.id]:
            yield f"op {op.id} ({op.name}) may not run on {device}"
    for number, unit in enumerate(problem.units):
        here, beside = placement.devices[number], placement.devices[unit]
        if here != beside:
            names = f"{unit} ({graph.ops[unit].name}) and {number} ({graph.ops[number].name})"
            yield f"ops {names} lie together, and here on {beside} and {here}"
    there = present(graph, placement, traffic) if problem.secrets else {}
    for device, tensors in sorted(problem.secrets.items()):
        for number in sorted(tensors & there.get(device, set())):
            name = graph.tensors[number].name
            yield f"tensor {number} ({name}) is secret and reaches {device}"
    for device, size in used.items():
        if size > problem.memory_bytes[device]:
            yield f"{device} holds {size} bytes at a time, of {problem.memory_bytes[device]}"
    if problem.max_calls is not None and len(traffic.calls) > problem.max_calls:
        yield f"{len(traffic.calls)} calls, at most {problem.max_calls} are allowed"
    called = Counter(call.device for call in traffic.calls)
    if problem.one_call and (often := [f"{n} to {d}" for d, n in called.items() if n > 1]):
        yield f"{' and '.join(often)} calls, and each accelerator is called once at most"


@dataclass(frozen=True, slots=True)
class Lying:
    """What lies on a device when, whatever its sizes."""

    stored: Sequence[int]
    """Tensors that lie there all the time."""
    changes: Sequence[tuple[Sequence[int], Sequence[int]]]
    """In order of execution: (tensors that come to lie there, those that no longer do)."""

    def most(self, taken: Sequence[Any]) -> Any:
        """The most bytes at a time, where each tensor has so many."""
        return sum(taken[tensor] for tensor in self.stored) + highest(
            sum(taken[tensor] for tensor in came) - sum(taken[tensor] for tensor in gone)
            for came, gone in self.changes
        )


def memory_of(
    graph: OpGraph,
    placement: Placement,
    transfers: Iterable[Transfer],
    sizes: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """By device: the most bytes that lie there at a time; ``transfers`` are the placement's.

    ``sizes`` are the bytes of each tensor, for many sizes of the graph at once; else its own.

    That is ``stored.resident_bytes`` and, while the ops run in the order of their ids, the
    peak of the activations. A tensor lies

    - on the device that makes it from the op that makes it to its last reader on any device, since
      it may have to be handed on until then, or to the end where it renews cached state elsewhere;
    - on a device that receives it from the op that makes it to its last reader there, and at home,
      where home only passes it on (residency ``call``), for as long as where it is made. When in
      that time it arrives is not asked, nor what an accelerator may forget between two calls.

    A parameter that a device is sent lies there from the first op there that reads it to the last,
    and at home all the time.

    What a device keeps as cached state is among the resident bytes, and is not counted again. A
    view lies in the memory of what it is a view of where it is made, and keeps that there for as
    long as it is needed itself; where it is received, it is a tensor like any other.
    """
    taken = [t.bytes for t in graph.tensors] if sizes is None else sizes
    lying = lying_of(graph, placement, transfers)
    return {device: one.most(taken) for device, one in lying.items()}


def lying_of(
    graph: OpGraph, placement: Placement, transfers: Iterable[Transfer]
) -> dict[str, Lying]:
    """By device: what lies there when, as ``memory_of`` counts it."""
    devices = placement.devices
    renewed = state_readers(graph)
    until: dict[tuple[int, str], int] = {}  # (tensor, device) -> last op that needs it there
    for tensor in graph.tensors:
        if tensor.op is None or not graph.crosses(tensor):
            continue
        needs = [(op, devices[op]) for op in graph.needed_by(tensor.id)]
        maker = devices[tensor.op]
        needs += [(max((op for op, _ in needs), default=tensor.op), maker)]
        if any(devices[op] != maker for op in renewed.get(tensor.id, ())):
            needs.append((len(graph.ops) - 1, maker))
        for op, device in needs:
            assert device is not None
            until[tensor.id, device] = max(until.get((tensor.id, device), 0), op)
    for transfer in transfers:  # also from home, where home only passes it on
        if transfer.tensor.op is None:
            continue
        made = transfer.tensor.id, devices[transfer.tensor.op]
        until[transfer.tensor.id, transfer.src_device] = until[made]  # type: ignore[index]
    views = viewed(graph)
    changes: dict[str, dict[int, tuple[list[int], list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: ([], []))
    )
    places = {placement.home, *placement.accelerators}
    for tensor in reversed(graph.tensors):  # a view comes after what it is a view of
        for device in places:
            if (tensor.id, device) not in until:
                continue
            assert tensor.op is not None
            if tensor.id in views and devices[tensor.op] == device:
                base = views[tensor.id], device
                if base in until:  # else it is a view of something resident
                    until[base] = max(until[base], until[tensor.id, device])
            else:
                here, after = changes[device], until[tensor.id, device] + 1
                here[tensor.op][0].append(tensor.id)
                here[after][1].append(tensor.id)
    for device, sent in sent_weights(graph, placement).items():
        here = changes[device]
        for parameter, readers in sent.items():
            here[readers[0]][0].append(parameter)
            here[readers[-1] + 1][1].append(parameter)
    return {
        device: Lying([*stored], [changes[device][time] for time in sorted(changes[device])])
        for device, stored in held(graph, placement).items()
    }
