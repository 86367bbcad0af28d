"""When what runs and moves: the slices, flows and levels of one run of a split, on tracks.

Predicted, everything is one after another, as the accounting has it: home's ops of a step, then the
step's calls; in a call its transfers in order, its ops, and what comes home. A schedule says itself
when each op and transfer is, of several requests too. Measured, only the
durations are known. Within a call the sending of the request comes first, the receiving of the
reply last, and the worker's ops right before that; what is left is packing and waiting.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from costmodels.flops import FREE, numbered
from costmodels.roofline import DeviceTime
from cutedge.runtime.measured import MeasuredRun
from partition.accounting import Call, Transfer, call_label
from partition.run import times_under
from partition.schedule import Schedule, executed, way
from partition.split import Split
from partition.stored import sent_weights
from tracer.errors import InputError
from tracer.graph import Kind, Op, Tensor
from tracer.summary import tensor_names
from tracer.words import counted

Category = Literal["op", "call", "transfer", "home", "remote"]
"""``home`` and ``remote`` are all ops of a device between two transfers, as measured."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that takes time on a track."""

    track: str
    """A device, or a direction of a link: ``tee -> gpu``."""
    name: str
    category: Category
    start: float
    """Seconds since the run began."""
    seconds: float
    """0 of an op that costs nothing, like a view."""
    arguments: Mapping[str, int | float | str]
    """What there is to say of it; each key has its unit."""
    flows_out: tuple[int, ...] = ()
    """The flows that begin here."""
    flows_in: tuple[int, ...] = ()
    """The flows that end here."""


@dataclass(frozen=True, slots=True)
class Level:
    """The bytes on a device from a moment on."""

    device: str
    start: float
    bytes: int
    """Resident bytes, and activations from when they are made or arrive to their last use."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run."""

    name: str
    """``predicted`` or ``measured``."""
    tracks: tuple[str, ...]
    """Devices, home first, then directions of links."""
    slices: tuple[Slice, ...]
    """In order of execution; on a track one after another."""
    levels: tuple[Level, ...] = ()
    """In order of time; of what is measured there are not any."""
    at_least: bool = False
    """Whether its seconds leave out what is not known; slices that do have ``at_least`` too."""

    @property
    def title(self) -> str:
        """What a viewer shows it as."""
        return f"{self.name}{', seconds are at least these' * self.at_least}"

    @property
    def counts(self) -> dict[str, int]:
        """How many calls, transfers and ops it has."""
        return {
            category: sum(one.category == category for one in self.slices)
            for category in ("call", "transfer", "op")
        }

    @property
    def seconds(self) -> float:
        """When the last slice ends."""
        return max((s.start + s.seconds for s in self.slices), default=0.0)


def _tracks(split: Split, slices: Sequence[Slice]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*split.used, *(s.track for s in slices))))


# --- predicted ------------------------------------------------------------------------------------


def predicted(split: Split, times: Mapping[str, DeviceTime]) -> Timeline:
    """A run as the op costs on described devices and the links' transfers have it.

    ``times`` is by device, paging left out. Raises InputError naming the devices or links whose
    seconds are not known, and what to give.
    """
    _check_known(split, times)
    walked = _walk(split, times_under(split.graph, split.placement, split.traffic.transfers, times))
    slices = _with_flows(split, walked.slices, [walked])
    levels = tuple(_levels(split, walked.slices, [walked]))
    at_least = any("at_least" in one.arguments for one in slices)
    return Timeline("predicted", _tracks(split, slices), slices, levels, at_least)


def laid_out(split: Split, schedule: Schedule) -> Timeline:
    """A run, or several requests, as a schedule has it."""
    graph, names = split.graph, tensor_names(split.graph)
    slices: list[Slice] = []
    walks = [_Walked(slices, {}, {}) for _ in range(schedule.requests)]
    for slot in schedule.slots:
        task, walked = slot.task, walks[slot.request]
        resource = task.uses[0]
        said: dict[str, int | float | str | None] = {
            "seconds": task.seconds,
            "request": slot.request,
            "wait": slot.wait,
            "critical": int(slot.critical),
        }
        if task.op is not None:
            walked.ops[task.op] = len(slices)
            name = call_label(graph, (task.op,))
            said = {**_of_op(graph.ops[task.op]), "call_id": task.call, **said}
        else:
            transfer = split.traffic.transfers[task.transfer or 0]
            walked.transfers[transfer.id] = len(slices)
            name, said = names[transfer.tensor.id], {**_of_transfer(transfer), **said}
        track = f"{resource} #{slot.lane + 1}" if schedule.lanes[resource] > 1 else resource
        category: Category = "transfer" if task.op is None else "op"
        slices.append(_slice(track, name, category, slot.start, slot.end - slot.start, said))
    called = f"{schedule.schedule}, {counted(schedule.requests, 'request')}"
    levels = tuple(_levels(split, slices, walks))
    whole = _with_flows(split, slices, walks)
    return Timeline(called, _tracks(split, whole), whole, levels, schedule.at_least)


def _check_known(split: Split, times: Mapping[str, DeviceTime]) -> None:
    used = [device for device in split.used if device in split.placement.devices]
    for device in used:
        option, such = (
            ("--home", "tee-tdx") if device == split.placement.home else ("--accel", "h100-cc")
        )
        if device not in times:
            raise InputError(
                f"the seconds of ops on {device} are not known: say what it is, as in "
                f"{option} {device}={such} (`cutedge devices` lists them; a .toml file will do)"
            )
        missing: dict[str, int] = defaultdict(int)
        for op, here in zip(split.graph.ops, split.placement.devices, strict=True):
            if here == device and times[device].ops[op.id].seconds is None:
                missing[op.target] += 1
        if missing:
            raise InputError(
                f"{times[device].device.name} has no seconds for {numbered(missing)}, which run on "
                f"{device}: say with {option} {device}=... that it is another device"
            )
    if any(t.seconds is None for t in split.traffic.transfers):
        raise InputError(
            f"the link {split.link} has no bandwidth, so that the seconds of transfers are not "
            "known: name another with --link (`cutedge links` lists them)"
        )


@dataclass(slots=True)
class _Walked:
    """The slices of a run, and where in them ops and transfers are."""

    slices: list[Slice]
    ops: dict[int, int]
    """op -> its slice."""
    transfers: dict[int, int]
    """transfer -> its slice."""


def _walk(split: Split, times: Mapping[str, DeviceTime]) -> _Walked:
    """Go through a run with one clock."""
    graph, placement = split.graph, split.placement
    home, names = placement.home, tensor_names(graph)
    walked = _Walked([], {}, {})
    clock = 0.0

    def run(op: Op, device: str) -> None:
        nonlocal clock
        time = times[device].ops[op.id]
        walked.ops[op.id] = len(walked.slices)
        lacks = op.kind not in FREE and times[device].lacks_launches
        said = {
            **_of_op(op),
            "seconds": time.seconds or 0.0,
            "at_least": int(lacks) or None,
            "bound": time.bound,
        }
        walked.slices.append(
            _slice(device, call_label(graph, (op.id,)), "op", clock, time.seconds or 0.0, said)
        )
        clock += time.seconds or 0.0

    def move(transfer: Transfer) -> None:
        nonlocal clock
        seconds = transfer.seconds or 0.0
        walked.transfers[transfer.id] = len(walked.slices)
        walked.slices.append(
            _slice(
                way(transfer.src_device, transfer.dst_device),
                names[transfer.tensor.id],
                "transfer",
                clock,
                seconds,
                {**_of_transfer(transfer), "seconds": seconds},
            )
        )
        clock += seconds

    open_call: tuple[Call, float, int] | None = None  # what is carried out, since when, its slice

    def close() -> None:
        if open_call is None:
            return
        call, begin, place = open_call
        walked.slices[place] = _slice(
            home,
            call.label or f"state to {call.device}",
            "call",
            begin,
            clock - begin,
            {
                **_of_call(call),
                "ops": len(call.ops),
                "seconds": clock - begin,
                "at_least": int(call.at_least or times[call.device].lacks_launches) or None,
            },
        )

    for one, call in executed(graph, placement, split.traffic):
        if (open_call and open_call[0]) is not call:
            close()
            open_call = None if call is None else (call, clock, len(walked.slices))
            if call is not None:
                walked.slices.append(_slice(home, "", "call", clock, 0.0, {}))
        if isinstance(one, Transfer):
            move(one)
        else:
            run(one, home if call is None else call.device)
    close()
    return walked


def _slice(
    track: str,
    name: str,
    category: Category,
    start: float,
    seconds: float,
    said: Mapping[str, int | float | str | None],
) -> Slice:
    known = {key: value for key, value in said.items() if value is not None}
    return Slice(track, name, category, start, seconds, known)


def _of_op(op: Op) -> dict[str, int | float | str | None]:
    return {
        "op_id": op.id,
        "name": op.name,
        "target": op.target,
        "kind": op.kind.value,
        "module": op.module_path,
        "stack": op.stack,
        "layer": op.layer,
        "flops": op.cost.flops,
        "read_bytes": op.cost.read_bytes,
        "write_bytes": op.cost.write_bytes,
    }


def _of_transfer(transfer: Transfer) -> dict[str, int | float | str | None]:
    return {
        "transfer_id": transfer.id,
        "call_id": transfer.call,
        "tensor_id": transfer.tensor.id,
        "tensor": transfer.tensor.name,
        "label": transfer.tensor.label,
        "direction": transfer.direction,
        "wire_dtype": transfer.wire_dtype,
        "packing": transfer.packing,
        "payload_bytes": transfer.payload_bytes,
        "wire_bytes": transfer.wire_bytes,
        "at_least": int(transfer.at_least) or None,
    }


def _of_call(call: Call) -> dict[str, int | float | str | None]:
    return {
        "call_id": call.id,
        "device": call.device,
        "sent_payload_bytes": call.sent_payload_bytes,
        "sent_wire_bytes": call.sent_wire_bytes,
        "received_payload_bytes": call.received_payload_bytes,
        "received_wire_bytes": call.received_wire_bytes,
    }


def _with_flows(
    split: Split, slices: Sequence[Slice], walks: Sequence[_Walked]
) -> tuple[Slice, ...]:
    """The slices, with a flow from what makes a tensor over its transfer to each op that reads it.

    What an accelerator forgets and is sent again comes over the transfer that brought it home.
    """
    graph, devices, home = split.graph, split.placement.devices, split.placement.home
    out: dict[int, list[int]] = defaultdict(list)
    into: dict[int, list[int]] = defaultdict(list)
    ids = count(1)
    weights = sent_weights(graph, split.placement)

    def flow(src: int, dst: int) -> None:
        number = next(ids)
        out[src].append(number)
        into[dst].append(number)

    for walked in walks:
        came: dict[tuple[int, str], int] = {}  # (tensor, device) -> the slice that brought it
        for transfer in split.traffic.transfers:
            tensor, here = transfer.tensor, walked.transfers[transfer.id]
            readers = graph.needed_by(tensor.id)
            if tensor.op is None:
                readers = weights[transfer.dst_device][tensor.id]
            elif devices[tensor.op] == transfer.src_device:
                flow(walked.ops[tensor.op], here)
            else:
                flow(came[tensor.id, transfer.src_device], here)
            came[tensor.id, transfer.dst_device] = here
            forgets = split.residency == "call" and transfer.dst_device != home
            within = set(split.traffic.calls[transfer.call].ops)
            for reader in readers:
                if devices[reader] == transfer.dst_device and (not forgets or reader in within):
                    flow(here, walked.ops[reader])
    return tuple(
        replace(one, flows_out=tuple(out[number]), flows_in=tuple(into[number]))
        for number, one in enumerate(slices)
    )


def _levels(split: Split, slices: Sequence[Slice], walks: Sequence[_Walked]) -> Iterator[Level]:
    """The bytes on each device over time.

    A tensor is there from the op that makes it (an input from the start) or the transfer that
    brings it to the last op or transfer that reads it or a view of it; with residency ``call`` on
    an accelerator to the end of a call at most.
    """

    def ends(number: int) -> tuple[float, int]:
        return slices[number].start + slices[number].seconds, number

    now = {device: split.traffic.resident_bytes.get(device, 0) for device in split.used}
    changes: dict[tuple[float, int, bool], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for walked in walks:
        for (device, size), numbers in _stays(split, walked):
            first = min((slices[number].start, number) for number in numbers)
            changes[*first, False][device] += size
            changes[*max(map(ends, numbers)), True][device] -= size
    yield from (Level(device, 0.0, size) for device, size in now.items())
    for (time, _, _), by_device in sorted(changes.items()):
        for device, change in by_device.items():
            now[device] += change
            yield Level(device, time, now[device])


def _stays(split: Split, walked: _Walked) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """((device, bytes), the slices that touch it) of each memory that an activation takes, or a
    parameter that is sent."""
    graph, devices = split.graph, split.placement.devices
    touched: dict[tuple[int, str, int | None], list[int]] = defaultdict(list)
    sizes: dict[tuple[int, str, int | None], dict[int, int]] = defaultdict(dict)
    call_of = {op: call.id for call in split.traffic.calls for op in call.ops}
    weights = sent_weights(graph, split.placement)

    def touch(tensor: Tensor, device: str, call: int | None, number: int, *, new: bool) -> None:
        owner = graph.storage(tensor)
        if not graph.crosses(owner):
            return  # resident
        forgets = split.residency == "call" and device != split.placement.home
        key = (owner.id, device, call if forgets else None)
        touched[key].append(number)
        if new:
            sizes[key][tensor.id] = tensor.bytes

    for op in graph.ops:
        device = devices[op.id]
        if device is not None:
            number = walked.ops[op.id]
            for tensor in graph.inputs(op.id):
                touch(tensor, device, call_of.get(op.id), number, new=False)
            for tensor in graph.outputs(op.id):
                first = 0 if op.kind is Kind.INPUT else number
                touch(tensor, device, call_of.get(op.id), first, new=tensor.alias_of is None)
                touch(tensor, device, call_of.get(op.id), number, new=False)
    for transfer in split.traffic.transfers:
        number = walked.transfers[transfer.id]
        if transfer.tensor.op is None:  # a parameter, which lies at home
            forgets = split.residency == "call"
            within = weights[transfer.dst_device][transfer.tensor.id]
            reads = [op for op in within if not forgets or call_of[op] == transfer.call]
            yield (
                (transfer.dst_device, transfer.tensor.bytes),
                [number, *(walked.ops[op] for op in reads)],
            )
            continue
        touch(transfer.tensor, transfer.src_device, transfer.call, number, new=False)
        touch(transfer.tensor, transfer.dst_device, transfer.call, number, new=True)
    for key, numbers in touched.items():
        yield (key[1], sum(sizes[key].values())), numbers


# --- measured -------------------------------------------------------------------------------------


def measured(split: Split, run: MeasuredRun) -> Timeline:
    """The run that ``verify`` has measured."""
    home = split.placement.home
    slices: list[Slice] = []
    clock = 0.0
    for took, call in zip(run.calls, split.traffic.calls, strict=True):
        slices.append(
            _slice(
                home,
                "ops at home",
                "home",
                clock,
                took.home_seconds,
                {"call_id": call.id, "seconds": took.home_seconds},
            )
        )
        clock += took.home_seconds
        end = clock + took.call_seconds
        slices.append(
            _slice(
                home,
                call.label,
                "call",
                clock,
                took.call_seconds,
                {
                    "call_id": call.id,
                    "device": call.device,
                    "sent_payload_bytes": took.sent_payload_bytes,
                    "sent_wire_bytes": took.sent_wire_bytes,
                    "received_payload_bytes": took.received_payload_bytes,
                    "received_wire_bytes": took.received_wire_bytes,
                    "ops": len(call.ops),
                    "serialise_seconds": took.serialise_seconds,
                    "deserialise_seconds": took.deserialise_seconds,
                    "seconds": took.call_seconds,
                },
            )
        )
        if took.sent_tensors:
            slices.append(
                _slice(
                    way(home, call.device),
                    f"{took.sent_tensors} tensors",
                    "transfer",
                    clock,
                    took.send_seconds,
                    {
                        "call_id": call.id,
                        "direction": "send",
                        "tensors": took.sent_tensors,
                        "payload_bytes": took.sent_payload_bytes,
                        "wire_bytes": took.sent_wire_bytes,
                        "seconds": took.send_seconds,
                    },
                )
            )
        arrives = max(clock, end - took.receive_seconds)
        begins = max(clock, arrives - took.accelerator_seconds)
        worked = took.accelerator_seconds
        slices.append(
            _slice(
                call.device,
                call.label,
                "remote",
                begins,
                worked,
                {"call_id": call.id, "ops": len(call.ops), "seconds": worked},
            )
        )
        if took.received_tensors:
            slices.append(
                _slice(
                    way(call.device, home),
                    f"{took.received_tensors} tensors",
                    "transfer",
                    arrives,
                    took.receive_seconds,
                    {
                        "call_id": call.id,
                        "direction": "receive",
                        "tensors": took.received_tensors,
                        "payload_bytes": took.received_payload_bytes,
                        "wire_bytes": took.received_wire_bytes,
                        "seconds": took.receive_seconds,
                    },
                )
            )
        clock = end
    rest = run.home_seconds - sum(call.home_seconds for call in run.calls)
    if rest > 0:
        slices.append(_slice(home, "ops at home", "home", clock, rest, {"seconds": rest}))
    return Timeline("measured", _tracks(split, slices), tuple(slices))
