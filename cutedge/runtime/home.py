"""The side of home: it starts and calls the workers, runs its own ops, and measures.

``Workers`` are processes on this machine, or ones that listen elsewhere; ``run`` takes a plan
through all of its calls. Whatever goes wrong, no process, socket or piece of shared memory stays.
"""

import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from costmodels.links import Links
from cutedge.runtime import RunError
from cutedge.runtime.forms import read
from cutedge.runtime.interpreter import Interpreter
from cutedge.runtime.measured import MeasuredCall
from cutedge.runtime.memory import check_memory, peak_memory_bytes
from cutedge.runtime.packs import prepare
from cutedge.runtime.plan import DevicePlan, Plan
from cutedge.runtime.secure import TOKEN
from cutedge.runtime.wire import (
    DTYPES,
    SESSION_BYTES,
    Carriage,
    Channel,
    Spec,
    greet,
    remove_segments,
)
from cutedge.runtime.worker import take_in
from tracer.interrupts import at_interrupt, uninterrupted
from tracer.stages import stage

if TYPE_CHECKING:
    from cutedge.runtime.leaks import Witness
    from cutedge.runtime.masks import Masking

Transport = Literal["unix", "tcp"]


@dataclass(slots=True)
class Worker:
    """An accelerator of a run, as home sees it."""

    name: str
    channel: Channel
    family: int
    address: Any
    """Where it listens; other workers connect there."""
    process: subprocess.Popen[bytes] | None
    """None for one that was there already."""
    load_seconds: float = 0.0
    """What making or reading its weights took."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class SentTensor:
    """A tensor in a message."""

    tensor: int
    src: str
    dst: str
    call: int
    wire_dtype: str
    payload_bytes: int
    """Of it, packed as it was."""
    packing_seconds: float | None = None
    """What home took to pack or unpack it; None of what is not packed, or passed home by."""


@dataclass(slots=True)
class Measured:
    """A run as it was measured."""

    calls: list[MeasuredCall] = field(default_factory=list)
    home_seconds: float = 0.0
    """All of home's ops."""
    seconds: float = 0.0
    """The whole run, from the inputs to the results."""
    op_seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    """Device -> op -> what it took."""
    results: list[torch.Tensor] = field(default_factory=list)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    """New cached state, by tensor, fetched after the run from where it is kept."""
    load_seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """Device of the placement -> what torch ran it on."""
    crossed: list[SentTensor] = field(default_factory=list)
    """Each tensor in each message, as it was seen on the channel."""
    unread: dict[str, list[int]] = field(default_factory=dict)
    """Device -> the tensors that came there and that no op read."""


@contextmanager
def workers(
    names: Sequence[str],
    *,
    transport: Transport = "unix",
    timeout: float = 300.0,
    remote: Mapping[str, tuple[str, int]] | None = None,
    token: str | None = None,
    memory_bytes: Mapping[str, int] | None = None,
    trust: ssl.SSLContext | None = None,
) -> Iterator[dict[str, Worker]]:
    """A worker for each accelerator: one that listens at ``remote``, else a new process here.

    ``token`` is that of the remote ones, which must prove who they are by TLS where ``trust`` says
    whom to believe. Raises RunError where one cannot be reached. At the end
    every process is gone.
    """
    remote = remote or {}
    own = token or secrets.token_hex(32)
    if remote and not token:
        raise RunError(f"a worker elsewhere asks for its token: give it in {TOKEN}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cutedge-")))
        found: dict[str, Worker] = {}
        started: list[subprocess.Popen[bytes]] = []
        session = secrets.token_bytes(SESSION_BYTES)

        def clean() -> None:
            _end(started)
            remove_segments(session)
            shutil.rmtree(folder, ignore_errors=True)

        stack.enter_context(at_interrupt(clean))
        stack.callback(remove_segments, session)
        stack.callback(_end, started)
        for number, name in enumerate(names):
            process = None
            if name in remote:
                family, address = socket.AF_INET, remote[name]
            else:
                most = (memory_bytes or {}).get(name)
                with uninterrupted():
                    family, address, process = _start(
                        folder / str(number), transport, timeout, own, most
                    )
                    started.append(process)
            channel = Channel(socket.socket(family), f"worker {name}", timeout, session=session)
            stack.callback(channel.close)
            found[name] = Worker(name, channel, int(family), address, process)
            with _explained(found[name], "connecting"):
                channel.connect(address, trust if name in remote else None)
        for worker in found.values():  # all of them are starting
            with _explained(worker, "connecting"):
                greet(worker.channel, own, "home")
        yield found
        for worker in found.values():
            worker.channel.say(do="end")


def _start(
    path: Path, transport: Transport, timeout: float, token: str, memory_bytes: int | None
) -> "tuple[socket.AddressFamily, Any, subprocess.Popen[bytes]]":
    """Start a worker that listens where it is found at once: the socket is there before it is."""
    if transport == "unix":
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
        except OSError as error:
            listener.close()
            raise RunError(
                f"no socket at {path} ({error}): set TMPDIR to a short path, or use TCP"
            ) from error
    else:
        listener = socket.socket(socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
    listener.listen()
    with listener:
        process = _started(listener, timeout, token, memory_bytes)
        return listener.family, listener.getsockname(), process


def _started(
    listener: socket.socket, timeout: float, token: str, memory_bytes: int | None
) -> "subprocess.Popen[bytes]":
    """The process of a worker, which takes over a socket that listens."""
    most = [] if memory_bytes is None else [str(memory_bytes)]
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "cutedge.runtime.worker",
            str(os.getpid()),
            str(listener.fileno()),
            str(timeout),
            *most,
        ],
        pass_fds=(listener.fileno(),),
        env={**os.environ, TOKEN: token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is home's to answer
    )


def _end(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """End worker processes at once: all that they have told is here, all they made is removed."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


@contextmanager
def _explained(worker: Worker, doing: str, others: Sequence[Worker] = ()) -> Iterator[None]:
    """Errors of a worker with what it was doing, and how its process ended where it has.

    ``others`` are the workers that it waits for: what went wrong there is said too.
    """
    try:
        yield
    except RunError as error:
        ends = [f"{error}{_end_of(worker)}"]
        for other in others:
            said = other.channel.last_words()
            ends += [f"{other.channel.peer}: {said}"] if said else []
            ends += [f"{other.channel.peer}{end}"] if (end := _end_of(other)) else []
        raise RunError(f"{doing}: {'; '.join(ends)}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{doing}: worker {worker.name} answered what no worker does") from error


def _end_of(worker: Worker) -> str:
    """How a worker's process ended, where it ended by no fault that it could name."""
    try:
        code = worker.process.wait(0.5) if worker.process else 0
    except subprocess.TimeoutExpired:
        return ""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f" (its process has ended: {how})" if code else ""


_LOADED = {"loaded": float, "device": frozenset(("cpu", "cuda"))}

_REPORT = {
    "calls": {
        int: {
            "unpack_seconds": float,
            "take_in_seconds": float,
            "compute_seconds": float,
            "pack_seconds": float,
            "peer_payload_bytes": int,
            "peer_wire_bytes": int,
            "peak_memory_bytes": int,
            "peer_tensors": {str: {int: (frozenset(DTYPES), int)}},
        }
    },
    "ops": {int: float},
    "unread": [int],
}
"""What a worker has measured."""


@stage("loading the workers")
def load(
    plan: Plan,
    found: Mapping[str, Worker],
    *,
    data: Mapping[int, torch.Tensor],
    weights: Mapping[str, Any],
    links: Links,
    residency: str,
    memory_bytes: int | None = None,
    masking: "Masking | None" = None,
) -> "Loaded":
    """Give every device its part of a plan, and its numbers: parameters, buffers, constants.

    ``data`` has the buffers and the constants without an op, ``weights`` says which the others are
    (``weights``), ``memory_bytes`` is what home's may take, by default what is free, and
    ``masking`` carries out what home does for masks, where the plan has any. Raises
    RunError for a link that is not what runs here, for a device without the memory, and where
    something that a device must not see would be made there or lie there.
    """
    for name, device in plan.accelerators.items():
        with _explained(found[name], "loading"):
            _check_there(device, found[name].channel)
    prepare({spec.form for spec in plan.crossing.values() if spec.form})
    if masking is not None:
        data = {**data, **masking.data}
    threads = torch.get_num_threads()
    for name, device in plan.accelerators.items():
        worker, carriage = found[name], Carriage.of(links.of(name))
        worker.channel.carriage = carriage
        with _explained(worker, "loading"):
            worker.channel.say(
                do="load",
                plan=_spelled(plan, device)
                | {"session": worker.channel.session.hex(), "carriage": carriage.as_json()}
                | {"weights": dict(weights), "residency": residency, "threads": threads},
            )
            worker.channel.hear()
            worker.channel.send(0, [(tensor, data[tensor]) for tensor in device.data])
    mine = plan.home
    with _at_home(mine.name, "loading"):
        check_memory(mine.resident_bytes, "cpu", memory_bytes)
        interpreter = Interpreter(mine.instructions, own={} if masking is None else masking.own)
        take_in(
            interpreter,
            {t: data[t] for t in mine.data if masking is None or t not in masking},
            mine.parameters,
            mine.states,
            weights,
            mine.resident_bytes,
        )
        interpreter.prepare(mine.ops, mine.constants)
    for name in plan.accelerators:
        worker = found[name]
        with _explained(worker, "loading"):
            words = read(worker.channel.hear(), _LOADED, f"{worker.channel.peer}'s answer")
            worker.load_seconds, worker.device = words["loaded"], words["device"]
    pairs = {frozenset((source, call.device)) for call in plan.calls for source in call.peers}
    for one, other in sorted(map(sorted, pairs)):
        between = Carriage.of(links.between(one, other, plan.home.name))
        _introduce(found[one], found[other], between)
    return Loaded(plan, found, interpreter, masking)


def _check_there(device: DevicePlan, channel: Channel) -> None:
    """Raise RunError for what is not to be on a device, and is made there or lies there."""
    instructions = device.instructions
    made = {t: op for op in device.ops for t in instructions.made.get(op, ())}
    for tensor in sorted(
        {*made, *instructions.everywhere, *device.parameters, *device.data, *device.states}
        & channel.forbidden.keys()
    ):
        how = f"is made by op {made[tensor]} on" if tensor in made else "lies with"
        raise RunError(
            f"tensor {tensor} {how} {channel.peer}, which is not trusted: it has the values of a "
            f"secret ({channel.forbidden[tensor]})"
        )


@contextmanager
def _at_home(home: str, doing: str) -> Iterator[None]:
    """Errors of home's own ops with where and when."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{doing}: {home}: {error}") from error


def _introduce(source: Worker, destination: Worker, carriage: Carriage) -> None:
    """Connect two accelerators, for what one sends the other, whichever of them."""
    with _explained(destination, f"connecting {source.name} to it"):
        destination.channel.say(do="accept", of=source.name, carriage=carriage.as_json())
        source.channel.say(
            do="connect",
            to=destination.name,
            family=destination.family,
            address=destination.address,
            carriage=carriage.as_json(),
        )
        source.channel.hear()
        destination.channel.hear()


def _spelled(plan: Plan, device: DevicePlan) -> dict[str, Any]:
    """A device's part of a plan as text can carry it."""
    instructions = device.instructions
    calls = [call for call in plan.calls if call.device == device.name]
    pushes = [
        (call.number, call.device, call.peers[device.name])
        for call in plan.calls
        if device.name in call.peers
    ]
    moving = {t for call in calls for tensors in call.peers.values() for t in tensors}
    moving |= {t for call in calls for t in (*call.sent, *call.received)}
    moving |= {t for _, _, pushed in pushes for t in pushed}
    return {
        "name": device.name,
        "invocations": {
            op: [how.args, how.kwargs, [astuple(one) for one in how.shared], how.draw]
            for op, how in instructions.invocations.items()
        },
        "targets": instructions.targets,
        "made": instructions.made,
        "everywhere": instructions.everywhere,
        "specs": {t: [spec.dtype, spec.shape] for t, spec in instructions.specs.items()},
        "uses": instructions.uses,
        "names": instructions.names,
        "passing": sorted(instructions.passing),
        "crossing": {t: _as_text(plan.crossing[t]) for t in moving},
        "calls": [asdict(call) for call in calls],
        "pushes": pushes,
        "ops": [op for op in device.ops if op in instructions.invocations],
        "constants": sorted(device.constants),
        "parameters": device.parameters,
        "data": device.data,
        "states": device.states,
        "kept": device.kept,
        "resident_bytes": device.resident_bytes,
    }


def _as_text(spec: Spec) -> list[Any]:
    return [spec.dtype, spec.shape, None if spec.form is None else astuple(spec.form)]


@dataclass(slots=True)
class Loaded:
    """Devices that hold their numbers, ready to run a plan as often as wanted."""

    plan: Plan
    workers: Mapping[str, Worker]
    interpreter: Interpreter
    masking: "Masking | None" = None
    """What home does for masks; None for a plan without."""

    def run(
        self,
        inputs: Mapping[int, torch.Tensor],
        progress: Callable[[int, int], None] = lambda call, moved: None,
        witness: "Witness | None" = None,
    ) -> Measured:
        """Run the plan on ``inputs``, by tensor.

        ``progress`` is told of each call and the bytes that it moved; a ``witness`` sees what
        crosses, and takes time that is measured as the run's. Raises RunError naming the call in
        which something went wrong.
        """
        plan, interpreter, measured = self.plan, self.interpreter, Measured()
        if witness is not None:
            interpreter.sight = witness.sight
        for name in plan.accelerators:
            with _explained(self.workers[name], "starting"):
                self.workers[name].channel.say(do="begin")
                self.workers[name].channel.hear()
        if self.masking is not None:
            interpreter.resident.update(self.masking.fresh())  # each pad is used once
        interpreter.begin()
        interpreter.seconds.clear()
        start = time.perf_counter()
        interpreter.put(inputs)
        rows: list[dict[str, Any]] = []
        for call, ops in zip(plan.calls, plan.home_ops, strict=False):
            rows.append(self._call(call.number, ops, measured, witness))
            progress(call.number, rows[-1]["sent_wire_bytes"] + rows[-1]["received_wire_bytes"])
        before = time.perf_counter()
        with _at_home(plan.home.name, "after the last call"):
            interpreter.run(plan.home_ops[-1])
            measured.home_seconds = sum(row["home_seconds"] for row in rows)
            measured.home_seconds += time.perf_counter() - before
            measured.seconds = time.perf_counter() - start
            measured.results = [interpreter.value(tensor) for tensor in plan.outputs]
            interpreter.keep(plan.home.kept)
        interpreter.sight = None
        self._report(measured, rows)
        return measured

    def _call(
        self, number: int, ops: Sequence[int], measured: Measured, witness: "Witness | None"
    ) -> dict[str, Any]:
        """Home's ops before a call, and the call."""
        home = self.plan.home.name
        call, interpreter = self.plan.calls[number], self.interpreter
        worker = self.workers[call.device]
        doing = f"call {number} of {len(self.plan.calls)}"
        start = time.perf_counter()
        with _at_home(home, f"before {doing}"):
            interpreter.run(ops)
            leaving = interpreter.take(call.sent)
        weights = self.plan.weights
        if witness is not None:  # weights have no value of this run
            flowing = [(t, value) for t, value in leaving if t not in weights]
            witness.see(home, call.device, number, flowing)
            for source, tensors in call.peers.items():
                witness.see(source, call.device, number, ((t, None) for t in tensors))
        begun = time.perf_counter()
        with _explained(worker, doing, [self.workers[source] for source in call.peers]):
            for source in call.peers:
                worker.channel.check(call.peers[source])
                self.workers[source].channel.say(do="push", call=number, to=call.device)
            went = worker.channel.send(number, leaving, self.plan.crossing)
            del leaving
            specs = {tensor: self.plan.crossing[tensor] for tensor in call.received}
            dtypes = {
                tensor: interpreter.instructions.specs[tensor].dtype for tensor in call.received
            }
            arrived, came = worker.channel.receive(number, specs, dtypes)
        if witness is not None:
            witness.see(call.device, home, number, arrived.items())
        interpreter.put(arrived)
        for src, dst, message in ((home, call.device, went), (call.device, home, came)):
            measured.crossed += [
                SentTensor(
                    tensor,
                    src,
                    dst,
                    number,
                    spec.dtype,
                    message.sizes[tensor],
                    message.packing_seconds.get(tensor),
                )
                for tensor, spec in message.crossed.items()
            ]
        return {
            "call_id": number,
            "device": call.device,
            "sent_tensors": went.tensors,
            "received_tensors": came.tensors,
            "sent_payload_bytes": went.payload_bytes,
            "sent_wire_bytes": went.wire_bytes if went.tensors else 0,
            "received_payload_bytes": came.payload_bytes,
            "received_wire_bytes": came.wire_bytes if came.tensors else 0,
            "control_bytes": (0 if went.tensors else went.wire_bytes)
            + (0 if came.tensors else came.wire_bytes),
            "home_seconds": begun - start,
            "serialise_seconds": went.pack_seconds,
            "send_seconds": went.move_seconds,
            "receive_seconds": came.move_seconds,
            "deserialise_seconds": came.pack_seconds,
            "call_seconds": time.perf_counter() - begun,
            "home_peak_memory_bytes": peak_memory_bytes(),
        }

    def _report(self, measured: Measured, rows: Sequence[dict[str, Any]]) -> None:
        """Add what the workers have measured."""
        home = self.plan.home.name
        measured.op_seconds[home] = dict(self.interpreter.seconds)
        measured.peak_memory_bytes[home] = peak_memory_bytes()
        measured.devices[home] = self.interpreter.device
        measured.unread[home] = sorted(self.interpreter.unread)
        measured.states = {
            t: self.interpreter.resident[t]
            for t in self.plan.home.kept
            if t in self.interpreter.resident
        }
        stats: dict[int, dict[str, Any]] = {}
        for name, device in self.plan.accelerators.items():
            worker = self.workers[name]
            with _explained(worker, "reporting"):
                worker.channel.say(do="report")
                words = read(worker.channel.hear(), _REPORT, f"{worker.channel.peer}'s report")
                if not words["ops"].keys() <= device.instructions.invocations.keys():
                    raise RunError(f"{worker.channel.peer} reports ops that are not its own")
                worker.channel.say(do="fetch", tensors=list(device.kept))
                found = read(
                    worker.channel.hear(), {"found": [int]}, f"{worker.channel.peer}'s answer"
                )["found"]
                if not {*found} <= {*device.kept}:
                    raise RunError(f"{worker.channel.peer} has tensors that it was not asked for")
                specs = {tensor: device.instructions.specs[tensor] for tensor in found}
                kept, _ = worker.channel.receive(0, specs, {t: s.dtype for t, s in specs.items()})
                stats.update(words["calls"])
                measured.op_seconds[name] = words["ops"]
                measured.unread[name] = words["unread"]
                peaks = [taken["peak_memory_bytes"] for taken in words["calls"].values()]
            measured.states.update(kept)
            measured.load_seconds[name] = worker.load_seconds
            measured.devices[name] = worker.device
            measured.peak_memory_bytes[name] = max(peaks, default=0)
        for row in rows:
            with _explained(self.workers[row["device"]], "reporting"):
                taken = stats[row["call_id"]]
                measured.crossed += [
                    SentTensor(tensor, source, row["device"], row["call_id"], dtype, size)
                    for source, came in taken["peer_tensors"].items()
                    for tensor, (dtype, size) in came.items()
                ]
                measured.calls.append(
                    MeasuredCall(
                        **{
                            **row,
                            "accelerator_seconds": taken["compute_seconds"],
                            "seconds": row["call_seconds"] - taken["compute_seconds"],
                            "serialise_seconds": row["serialise_seconds"] + taken["pack_seconds"],
                            "deserialise_seconds": row["deserialise_seconds"]
                            + taken["unpack_seconds"],
                            **{
                                key: taken[key]
                                for key in (
                                    "peer_payload_bytes",
                                    "peer_wire_bytes",
                                    "peak_memory_bytes",
                                )
                            },
                        }
                    )
                )
