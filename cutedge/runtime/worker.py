"""The side of an accelerator: a process that holds weights and carries out calls.

It listens, and serves one run after another. Who connects proves that it knows the token, and may
then have it carry out ops of a list (``ops``), of sizes that it announced, in the memory
that there is. A plan comes as text, buffers and constants as tensors; parameters are made or read
here. Nothing in a plan is taken on trust: ``_PLAN`` says what it has to look like.
"""

import atexit
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from costmodels.packing import CODECS, Form
from cutedge.runtime import RunError
from cutedge.runtime.door import BUSY_SECONDS, GREETING_SECONDS, Door
from cutedge.runtime.forms import Maybe, read
from cutedge.runtime.interpreter import (
    Instructions,
    Interpreter,
    in_words,
    is_memory,
    resident_bytes,
)
from cutedge.runtime.memory import check_memory, peak_memory_bytes
from cutedge.runtime.packs import prepare
from cutedge.runtime.secure import TOKEN
from cutedge.runtime.weights import numbers_of, state_numbers
from cutedge.runtime.wire import (
    DTYPES,
    SESSION_BYTES,
    Carriage,
    Channel,
    Moved,
    Spec,
    greet,
    remove_segments,
)
from tracer.graph import FLOATING
from tracer.interrupts import end_with
from tracer.program import Invocation, Sharing
from tracer.words import plain

IDLE_SECONDS = 600.0
"""How long home may be silent between two messages before a worker lets it go."""

_SPEC = (frozenset(DTYPES), [int])
_FORM = (frozenset(CODECS), int, bool, int, int)
_LAYOUT = ([int], [int], int)
_CARRIAGE = (Maybe(int), int, int)

_PLAN = {
    "name": str,
    "session": str,
    "carriage": _CARRIAGE,
    "threads": int,
    "weights": {"seed": Maybe(int), "spread": Maybe(float), "checkpoint": Maybe(str)},
    "residency": frozenset(("run", "call")),
    "invocations": {int: (list, dict, [(int, int, _LAYOUT, _LAYOUT)], Maybe(int))},
    "targets": {int: str},
    "made": {int: [int]},
    "everywhere": {int: int},
    "specs": {int: _SPEC},
    "uses": {int: int},
    "names": {int: int},
    "passing": [int],
    "crossing": {int: (*_SPEC, Maybe(_FORM))},
    "pushes": [(int, str, [int])],
    "calls": [
        {
            "number": int,
            "device": str,
            "ops": [int],
            "sent": [int],
            "peers": {str: [int]},
            "received": [int],
        }
    ],
    "ops": [int],
    "constants": [int],
    "parameters": {int: str},
    "data": [int],
    "states": {int: str},
    "kept": [int],
    "resident_bytes": int,
}
"""A device's part of a plan."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a worker grants to those that know its token."""

    token: str
    timeout: float = 300.0
    """Seconds that another accelerator may be silent."""
    idle: float | None = IDLE_SECONDS
    """Seconds that home may be silent; None for a home whose end ends the worker."""
    memory_bytes: int | None = None
    """The most that weights may take; by default what is free."""
    checkpoints: tuple[Path, ...] = ()
    """Folders: checkpoints in them and below may be read."""
    tls: ssl.SSLContext | None = None
    """What it proves with who it is, to all that connect."""
    trust: ssl.SSLContext | None = None
    """Whom it trusts among the other accelerators that it connects to; None: by TLS to no one."""
    greeting_seconds: float = GREETING_SECONDS
    busy_seconds: float = BUSY_SECONDS


def serve(
    listener: socket.socket,
    service: Service,
    *,
    once: bool = False,
    begun: Callable[[bytes], None] = lambda session: None,
) -> None:
    """Carry out runs for whoever connects and knows the token, one after another.

    ``once`` ends with the first run, and ``begun`` is told what the shared memory of a run is
    called by. What goes wrong in a run is said to the other end, and the next is waited for. Raises
    RunError where a CUDA device no longer answers after a run.
    """
    door = Door(
        listener, service.token, service.tls, service.greeting_seconds, service.busy_seconds
    )
    while True:
        channel = door.homes.get()
        try:
            channel.timeout = service.idle
            _Session(channel, door, service, listener.family, begun).run()
        except RunError as error:
            channel.timeout = service.greeting_seconds
            with suppress(RunError):
                channel.fail(str(error))
        finally:
            channel.close()
            door.leave()
        if once:
            return
        _check_cuda()


def _check_cuda() -> None:
    """Raise RunError where a run has left CUDA as nothing can be run on it any more."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise RunError(
                f"CUDA no longer answers after a run ({in_words(error)}): start the worker anew"
            ) from error


class _Session:
    """A run, from the plan to the last call."""

    def __init__(
        self,
        channel: Channel,
        door: Door,
        service: Service,
        family: int = socket.AF_INET,
        begun: Callable[[bytes], None] = lambda session: None,
    ) -> None:
        self.channel, self.door, self.service, self.begun = channel, door, service, begun
        self.families = {socket.AF_INET, socket.AF_INET6, family}
        self.peers: dict[str, Channel] = {}
        self.calls: dict[int, dict[str, Any]] = {}
        self.pushes: dict[tuple[int, str], list[int]] = {}
        self.stats: dict[int, dict[str, Any]] = {}

    def run(self) -> None:
        """Do what home asks until it ends the run, or is gone."""
        try:
            while True:
                match self.channel.next():
                    case (_, _, call, *_) as head:
                        self._call(head, call)
                    case {"do": "load", "plan": plan}:
                        self._load(plan)
                    case {
                        "do": "connect",
                        "to": to,
                        "family": family,
                        "address": address,
                        "carriage": carriage,
                    }:
                        self._connect(read(to, str, "its peer"), family, address, carriage)
                    case {"do": "accept", "of": name, "carriage": carriage}:
                        self._accept(read(name, str, "its peer"), carriage)
                    case {"do": "push", "call": call, "to": to}:
                        self._push(call, to)
                    case {"do": "begin"}:
                        self.interpreter.begin()
                        self.stats.clear()
                        self.interpreter.seconds.clear()
                        self.channel.say(ready=True)
                    case {"do": "report"}:
                        self._report()
                    case {"do": "fetch", "tensors": tensors}:
                        self._fetch(tensors)
                    case {"do": "end"}:
                        return
                    case _:
                        raise RunError("it was asked for what a worker does not do")
        except RunError:
            raise
        except Exception as error:  # whatever it was sent: the next run is served
            why = f"it was sent a damaged plan ({type(error).__name__}: {in_words(error)})"
            raise RunError(in_words(error) if is_memory(error) else why) from error
        finally:
            for peer in self.peers.values():
                peer.close()
            remove_segments(self.channel.session)

    def _load(self, plan: Mapping[str, Any]) -> None:
        """Take in a plan, make or read the parameters, and work out the constants."""
        start = time.perf_counter()
        self._unload()
        plan = read(plan, _PLAN, "its plan")
        instructions = _instructions(plan)
        self.name = plan["name"]
        self.channel.session = _session_of(plan["session"])
        self.begun(self.channel.session)
        self.door.expect(self.channel.session)
        self.channel.carriage = Carriage(*plan["carriage"])
        torch.set_num_threads(min(max(plan["threads"], 1), os.cpu_count() or 1))
        self.dtypes = {number: spec.dtype for number, spec in instructions.specs.items()}
        self.crossing = _crossing(plan["crossing"], self.dtypes)
        prepare({spec.form for spec in self.crossing.values() if spec.form})
        self.calls = {call["number"]: call for call in plan["calls"]}
        self.forgets = plan["residency"] == "call"
        self.kept = plan["kept"]
        self.pushes = {(call, to): tensors for call, to, tensors in plan["pushes"]}
        weights = {key: value for key, value in plan["weights"].items() if value is not None}
        self._check_checkpoint(weights.get("checkpoint"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        check_memory(plan["resident_bytes"], device, self.service.memory_bytes)
        self.interpreter = Interpreter(instructions, device)
        self.channel.say(sending=True)  # the numbers that home alone has
        specs = {number: instructions.specs[number] for number in plan["data"]}
        resident, _ = self.channel.receive(0, specs, self.dtypes)
        take_in(
            self.interpreter,
            resident,
            plan["parameters"],
            plan["states"],
            weights,
            plan["resident_bytes"],
        )
        del resident
        self.interpreter.prepare(plan["ops"], frozenset(plan["constants"]))
        self.channel.say(loaded=time.perf_counter() - start, device=device)

    def _unload(self) -> None:
        """Let go of what a plan before this one has brought."""
        for peer in self.peers.values():
            peer.close()
        self.peers.clear()
        with suppress(AttributeError):
            del self.interpreter

    def _check_checkpoint(self, folder: str | None) -> None:
        """Raise RunError for a folder that this worker is not to read."""
        if folder is not None:
            path, roots = Path(folder).resolve(), self.service.checkpoints
            if not any(path.is_relative_to(root.resolve()) for root in roots):
                raise RunError(f"it is not to read {folder}: start it with --weights {folder}")

    def _receive(
        self,
        channel: Channel,
        number: int,
        tensors: Iterable[int],
        head: "tuple[int, ...] | None" = None,
    ) -> Moved:
        """Take in the tensors of a call that come over a channel."""
        expected = {tensor: self.crossing[tensor] for tensor in tensors}
        self.interpreter.make_room(sum(spec.payload_bytes for spec in expected.values()))
        if head is None:
            arrived, moved = channel.receive(number, expected, self.dtypes)
        else:
            arrived, moved = channel.accept(head, number, expected, self.dtypes)
        self.interpreter.put(arrived)
        return moved

    def _call(self, head: tuple[int, ...], number: int) -> None:
        """Take in what is sent, run the ops, send home what goes there."""
        if (call := self.calls.get(number)) is None:
            raise RunError(f"it was called for call {number}, which is not one of its own")
        begun = time.perf_counter()
        came = self._receive(self.channel, number, call["sent"], head)
        peered, arrived = Moved(), dict[str, dict[int, list[Any]]]()
        for device, tensors in call["peers"].items():
            moved = self._receive(self.peers[device], number, tensors)
            peered.payload_bytes += moved.payload_bytes
            peered.wire_bytes += moved.wire_bytes
            arrived[device] = {t: [spec.dtype, moved.sizes[t]] for t, spec in moved.crossed.items()}
        start = time.perf_counter()
        self.interpreter.run(call["ops"])
        self.interpreter.keep(self.kept)
        done = time.perf_counter()
        leaving = self.interpreter.take(call["received"])
        went = self.channel.send(number, leaving, self.crossing)
        del leaving
        if self.forgets:
            self.interpreter.forget()
        self.stats[number] = {
            "unpack_seconds": came.pack_seconds,
            "take_in_seconds": start - begun,
            "compute_seconds": done - start,
            "pack_seconds": went.pack_seconds,
            "peer_payload_bytes": peered.payload_bytes,
            "peer_wire_bytes": peered.wire_bytes,
            "peer_tensors": arrived,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def _push(self, number: int, to: str) -> None:
        """Send another accelerator what its call needs from here."""
        tensors = self.interpreter.take(self.pushes[number, to])
        self.peers[to].send(number, tensors, self.crossing)

    def _connect(self, to: str, family: Any, address: Any, carriage: Any) -> None:
        """Connect to another accelerator."""
        if family not in self.families:
            raise RunError(f"it connects to no socket of family {plain(str(family))}")
        local = family == socket.AF_UNIX
        address = read(address, str if local else (str, int), "a peer's address")
        peer = Channel(socket.socket(family), to, self.service.timeout)
        self.peers[to] = self._peer(peer, to, carriage)
        peer.connect(address, None if local else self.service.trust)
        greet(peer, self.service.token, f"peer {self.channel.session.hex()} {self.name}")
        self.channel.say(connected=to)

    def _accept(self, name: str, carriage: Any) -> None:
        """Wait for another accelerator to connect."""
        channel = self.door.peer(name, self.service.timeout, self.channel)
        self.peers[name] = self._peer(channel, name, carriage)
        self.channel.say(accepted=name)

    def _peer(self, channel: Channel, name: str, carriage: Any) -> Channel:
        channel.peer, channel.timeout = name, self.service.timeout
        channel.session = self.channel.session
        channel.carriage = Carriage(*read(carriage, _CARRIAGE, "a peer's carriage"))
        return channel

    def _report(self) -> None:
        self.channel.say(
            calls={str(number): stats for number, stats in self.stats.items()},
            ops={str(op): seconds for op, seconds in self.interpreter.seconds.items()},
            unread=sorted(self.interpreter.unread),
        )

    def _fetch(self, tensors: Any) -> None:
        tensors = read(tensors, [int], "what is to be fetched")
        held = {**self.interpreter.resident, **self.interpreter.held}
        found = [(tensor, held[tensor]) for tensor in tensors if tensor in held]
        self.channel.say(found=[tensor for tensor, _ in found])
        self.channel.send(0, found)


def _instructions(plan: Mapping[str, Any]) -> Instructions:
    """The instructions of a plan that has the right form. Raises RunError where it speaks of an op or a
    tensor without saying what that is, or is not of one mind about a size."""
    specs = {tensor: Spec(dtype, tuple(shape)) for tensor, (dtype, shape) in plan["specs"].items()}
    ops, calls = plan["invocations"], plan["calls"]
    tensors = [
        *plan["everywhere"],
        *plan["uses"],
        *plan["names"],
        *plan["names"].values(),
        *plan["passing"],
        *plan["crossing"],
        *plan["parameters"],
        *plan["data"],
        *plan["states"],
        *plan["kept"],
        *(t for made in plan["made"].values() for t in made),
        *(t for _, _, pushed in plan["pushes"] for t in pushed),
        *(t for call in calls for t in (*call["sent"], *call["received"])),
        *(t for call in calls for sent in call["peers"].values() for t in sent),
    ]
    named = [
        *plan["everywhere"].values(),
        *plan["ops"],
        *plan["constants"],
        *(op for call in calls for op in call["ops"]),
    ]
    for what, used, known in (
        ("tensor", tensors, specs),
        ("op", named, ops),
        ("op", plan["targets"], ops),
        ("op", ops, plan["targets"]),
        ("op", ops, plan["made"]),
    ):
        if unknown := {*used} - {*known}:
            raise RunError(f"its plan does not say what {what} {min(unknown)} is")
    for tensor, (_, shape, _) in plan["crossing"].items():
        if tuple(shape) != specs[tensor].shape:
            raise RunError(f"its plan has two shapes of tensor {tensor}")
    needed = resident_bytes(plan["parameters"], (*plan["data"], *plan["states"]), specs)
    if needed != plan["resident_bytes"]:
        raise RunError(
            f"its plan says {plan['resident_bytes']:,} bytes of weights, and they are {needed:,}"
        )
    return Instructions(
        invocations={
            op: Invocation(args, kwargs, tuple(Sharing(*one) for one in shared), draw)
            for op, (args, kwargs, shared, draw) in ops.items()
        },
        targets=plan["targets"],
        made={op: tuple(made) for op, made in plan["made"].items()},
        everywhere=plan["everywhere"],
        specs=specs,
        uses=plan["uses"],
        names=plan["names"],
        passing=frozenset(plan["passing"]),
    )


def _crossing(
    told: Mapping[int, tuple[str, list[int], tuple[Any, ...] | None]], dtypes: Mapping[int, str]
) -> dict[int, Spec]:
    """What tensors are on the wire. Raises RunError for what no tensor of its dtype can be there."""
    found = {}
    for tensor, (dtype, shape, packed) in told.items():
        own, form = dtypes[tensor], None if packed is None else Form(*packed)
        if dtype != own and not {dtype, own} <= {*FLOATING}:
            raise RunError(f"its plan turns tensor {tensor} from {own} into {dtype}")
        if form is not None and not form.fits(dtype):
            raise RunError(f"its plan packs tensor {tensor} as no {dtype} can be packed")
        found[tensor] = Spec(dtype, tuple(shape), form)
    return found


def _session_of(text: str) -> bytes:
    """What begins the names of a run's shared memory: an empty one would be that of all runs."""
    with suppress(ValueError):
        if len(session := bytes.fromhex(text)) == SESSION_BYTES and session.hex() == text:
            return session
    raise RunError(f"{plain(text, 60)} is no name of a run: {2 * SESSION_BYTES} hex digits are")


def take_in(
    interpreter: Interpreter,
    data: Mapping[int, torch.Tensor],
    parameters: Mapping[Any, str],
    states: Mapping[Any, str],
    weights: Mapping[str, Any],
    needed: int,
) -> None:
    """Have an interpreter hold ``data``, its parameters and its cached state; all ``needed`` bytes.

    What shares a name shares its memory. Raises RunError where it does not fit.
    """
    numbers, specs = numbers_of(weights), interpreter.instructions.specs
    owned: dict[str, torch.Tensor] = {}
    try:
        interpreter.resident = {
            number: tensor.to(interpreter.device) for number, tensor in data.items()
        }
        for key, name in parameters.items():
            spec = specs[int(key)]
            if name not in owned:
                owned[name] = numbers(name, spec).to(interpreter.device)
            interpreter.resident[int(key)] = owned[name].view(spec.shape)
        for key, name in states.items():
            state = state_numbers(name, specs[int(key)], weights)
            interpreter.resident[int(key)] = state.to(interpreter.device)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise RunError(f"there is no memory for its {needed:,} bytes of weights") from error


def main() -> None:
    """A worker that home has started: who home is, a listening socket, its timeout and memory."""
    home, number, timeout, *memory = sys.argv[1:]
    listener = socket.socket(fileno=int(number))
    sessions: list[bytes] = []
    # At exit and not in a finally, which the end of home would interrupt.
    atexit.register(_clean, listener, sessions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end_with(int(home), signal.SIGTERM)
    service = Service(
        os.environ.pop(TOKEN),
        timeout=float(timeout),
        idle=None,
        memory_bytes=int(memory[0]) if memory else None,
        checkpoints=(Path("/"),),
    )
    serve(listener, service, once=True, begun=sessions.append)


def _clean(listener: socket.socket, sessions: Sequence[bytes]) -> None:
    """Remove what home would, if it were killed: its socket and the shared memory of its run."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for session in sessions:
        remove_segments(session)
    if listener.family == socket.AF_UNIX:
        path = Path(listener.getsockname())
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()


if __name__ == "__main__":
    main()
