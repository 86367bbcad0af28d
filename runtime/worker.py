"""The side of an accelerator: a process that holds weights and carries out calls.

It listens, and serves one run after another. Who connects proves that it knows the token. A plan
comes as text, buffers and constants as tensors; parameters are made or read here.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from runtime import RunError
from runtime.machine import Machine, Work
from runtime.weights import inputs, numbers_of
from runtime.wire import Carriage, Channel, Moved, Spec, greet, welcome
from tracer.program import Invocation, Sharing

SPARE_BYTES = 256 * 2**20
"""What a device leaves free of its memory when it takes in weights."""


def serve(
    listener: socket.socket, token: str, *, timeout: float = 300.0, memory_bytes: int | None = None,
    once: bool = False,
) -> None:  # fmt: skip
    """Carry out runs for whoever connects and knows the token, one after another.

    ``memory_bytes`` is the most that weights may take, by default what is free. ``once`` ends with
    the first run. What goes wrong in a run is said to the other end, and the next is waited for.
    """
    while True:
        connection, address = listener.accept()
        channel = Channel(connection, f"the caller {address or ''}".strip(), timeout=10.0)
        try:
            role = welcome(channel, token)
            if role == "home":
                channel.connection.settimeout(None)  # a home that dies is noticed at once
                _Session(channel, listener, token, timeout, memory_bytes).run()
        except RunError as error:
            with suppress(RunError):
                channel.fail(str(error))
        finally:
            channel.close()
        if once:
            return


class _Session:
    """A run, from the plan to the last call."""

    def __init__(
        self, channel: Channel, listener: socket.socket, token: str, timeout: float,
        memory_bytes: int | None,
    ) -> None:  # fmt: skip
        self.channel, self.listener, self.token = channel, listener, token
        self.timeout, self.memory_bytes = timeout, memory_bytes
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
                    case {"do": "connect", "to": to, "family": family, "address": address,
                          "carriage": carriage}:  # fmt: skip
                        self._connect(to, family, address, Carriage(*carriage))
                    case {"do": "accept", "carriage": carriage}:
                        self._accept(Carriage(*carriage))
                    case {"do": "push", "call": call, "to": to}:
                        self._push(call, to)
                    case {"do": "begin"}:
                        self.machine.begin()
                        self.stats.clear()
                        self.machine.seconds.clear()
                        self.channel.say(ready=True)
                    case {"do": "report"}:
                        self._report()
                    case {"do": "fetch", "tensors": tensors}:
                        self._fetch(tensors)
                    case {"do": "end"}:
                        return
                    case _:
                        raise RunError("it was asked for what a worker does not do")
        except MemoryError as error:
            raise RunError("it ran out of memory") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"it was sent a damaged plan ({type(error).__name__}: {error})"
            ) from error
        finally:
            for peer in self.peers.values():
                peer.close()

    def _load(self, plan: Mapping[str, Any]) -> None:
        """Take in a plan, make or read the parameters, and work out the constants."""
        start = time.perf_counter()
        self.name, self.wire_dtype = plan["name"], plan["wire_dtype"]
        self.channel.session = bytes.fromhex(plan["session"])
        self.channel.carriage = Carriage(*plan["carriage"])
        torch.set_num_threads(plan["threads"] or torch.get_num_threads())
        work = _work(plan)
        self.dtypes = {number: spec.dtype for number, spec in work.specs.items()}
        self.crossing = {int(k): Spec(d, tuple(s)) for k, (d, s) in plan["crossing"].items()}
        self.calls = {call["number"]: call for call in plan["calls"]}
        self.forgets = plan["residency"] == "call"
        self.kept = plan["kept"]
        self.pushes = {(call, to): tensors for call, to, tensors in plan["pushes"]}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.machine = Machine(work, device)
        self._check_memory(plan["resident_bytes"], device)
        self.channel.say(sending=True)  # the numbers that home alone has
        specs = {number: work.specs[number] for number in plan["data"]}
        resident, _ = self.channel.receive(0, specs, self.dtypes)
        try:
            resident.update(
                load_resident(plan["parameters"], plan["states"], work, plan["weights"])
            )
            self.machine.resident = {n: tensor.to(device) for n, tensor in resident.items()}
            del resident
            self.machine.prepare(plan["ops"], frozenset(plan["constants"]))
        except (MemoryError, RuntimeError) as error:
            raise RunError(f"no memory for {plan['resident_bytes']:,} bytes of weights") from error
        self.channel.say(loaded=time.perf_counter() - start, device=device)

    def _check_memory(self, needed: int, device: str) -> None:
        free = self.memory_bytes
        if free is None:
            free = (
                torch.cuda.mem_get_info()[0] if device == "cuda" else _available_bytes()
            ) - SPARE_BYTES
        if needed > free:
            raise RunError(
                f"its weights and constants need {needed:,} bytes, and {max(free, 0):,} are free"
            )

    def _call(self, head: tuple[int, ...], number: int) -> None:
        """Take in what is sent, run the ops, send home what goes there."""
        if (call := self.calls.get(number)) is None:
            raise RunError(f"it was called for call {number}, which is none of its own")
        begun = time.perf_counter()
        expected = {tensor: self.crossing[tensor] for tensor in call["sent"]}
        arrived, came = self.channel.accept(head, number, expected, self.dtypes)
        self.machine.put(arrived)
        peered = Moved()
        for device, tensors in call["peers"].items():
            expected = {tensor: self.crossing[tensor] for tensor in tensors}
            arrived, moved = self.peers[device].receive(number, expected, self.dtypes)
            self.machine.put(arrived)
            peered.payload_bytes += moved.payload_bytes
            peered.wire_bytes += moved.wire_bytes
        del arrived
        start = time.perf_counter()
        self.machine.run(call["ops"])
        self.machine.keep(self.kept)
        done = time.perf_counter()
        leaving = self.machine.take(call["received"])
        went = self.channel.send(number, leaving, self.wire_dtype)
        del leaving
        if self.forgets:
            self.machine.forget()
        self.stats[number] = {
            "unpack_seconds": came.pack_seconds, "take_in_seconds": start - begun,
            "compute_seconds": done - start, "pack_seconds": went.pack_seconds,
            "peer_payload_bytes": peered.payload_bytes, "peer_wire_bytes": peered.wire_bytes,
            "peak_memory_bytes": peak_memory_bytes(),
        }  # fmt: skip

    def _push(self, number: int, to: str) -> None:
        """Send another accelerator what its call needs from here."""
        tensors = self.machine.take(self.pushes[number, to])
        self.peers[to].send(number, tensors, self.wire_dtype)

    def _connect(self, to: str, family: int, address: Any, carriage: Carriage) -> None:
        connection = socket.socket(socket.AddressFamily(family))
        try:
            connection.settimeout(self.timeout)
            connection.connect(tuple(address) if isinstance(address, list) else address)
        except OSError as error:
            raise RunError(f"it cannot reach {to} at {address}: {error.strerror}") from error
        peer = self._peer(connection, to, carriage)
        greet(peer, self.token, f"peer {self.name}")
        self.peers[to] = peer
        self.channel.say(connected=to)

    def _accept(self, carriage: Carriage) -> None:
        connection, _ = self.listener.accept()
        peer = self._peer(connection, "a peer", carriage)
        role, _, name = welcome(peer, self.token).partition(" ")
        if role != "peer":
            raise RunError(f"a {role} connected where a peer was to come")
        peer.peer = name
        self.peers[name] = peer
        self.channel.say(accepted=name)

    def _peer(self, connection: socket.socket, name: str, carriage: Carriage) -> Channel:
        return Channel(connection, name, self.timeout, carriage, session=self.channel.session)

    def _report(self) -> None:
        self.channel.say(
            calls={str(number): stats for number, stats in self.stats.items()},
            ops={str(op): seconds for op, seconds in self.machine.seconds.items()},
        )

    def _fetch(self, tensors: list[int]) -> None:
        held = {**self.machine.resident, **self.machine.held}
        found = [(tensor, held[tensor]) for tensor in tensors if tensor in held]
        self.channel.say(found=[tensor for tensor, _ in found])
        self.channel.send(0, found)


def _work(plan: Mapping[str, Any]) -> Work:
    return Work(
        invocations={
            int(op): Invocation(args, kwargs, tuple(Sharing(*one) for one in shared))
            for op, (args, kwargs, shared) in plan["invocations"].items()
        },
        targets={int(op): str(target) for op, target in plan["targets"].items()},
        made={int(op): tuple(made) for op, made in plan["made"].items()},
        everywhere={int(tensor): op for tensor, op in plan["everywhere"].items()},
        specs={int(t): Spec(dtype, tuple(shape)) for t, (dtype, shape) in plan["specs"].items()},
        uses={int(tensor): n for tensor, n in plan["uses"].items()},
    )


def load_resident(
    parameters: Mapping[Any, str], states: Mapping[Any, str], work: Work,
    weights: Mapping[str, Any],
) -> dict[int, torch.Tensor]:  # fmt: skip
    """Parameters and cached state, by tensor; what shares a name shares its memory."""
    numbers = numbers_of(weights)
    made: dict[int, torch.Tensor] = {}
    owned: dict[str, torch.Tensor] = {}
    for key, name in parameters.items():
        spec = work.specs[int(key)]
        if name not in owned:
            owned[name] = numbers(name, spec)
        made[int(key)] = owned[name].view(spec.shape)
    for key, name in states.items():
        made[int(key)] = state_numbers(name, work.specs[int(key)], weights)
    return made


def state_numbers(name: str, spec: Spec, weights: Mapping[str, Any]) -> torch.Tensor:
    """Cached state before the run: random, and the same wherever it is made."""
    return inputs(name, spec, int(weights.get("seed", 0)), 1)


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _available_bytes() -> int:
    """Memory that a process can still have, as the system reckons it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """A worker that another process has started: the listening socket is a file descriptor."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is home's to answer
    listener = socket.socket(fileno=int(sys.argv[1]))
    memory = os.environ.get("CUTEDGE_MEMORY_BYTES")
    serve(
        listener, os.environ.pop("CUTEDGE_TOKEN"), timeout=float(sys.argv[2]),
        memory_bytes=int(memory) if memory else None, once=True,
    )  # fmt: skip


def _die_with_parent() -> None:
    """Have the system end this process when the one that started it ends, however it does."""
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
