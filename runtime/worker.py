"""The side of an accelerator: a process that holds weights and carries out calls.

It listens, and serves one run after another. Who connects proves that it knows the token. A plan
comes as text, buffers and constants as tensors; parameters are made or read here.
"""

import atexit
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

import torch

from runtime import RunError
from runtime.machine import Machine, Work, in_words, is_memory
from runtime.memory import check_memory, peak_memory_bytes
from runtime.weights import numbers_of, state_numbers
from runtime.wire import Carriage, Channel, Moved, Spec, greet, remove_segments, welcome
from tracer.program import Invocation, Sharing


def serve(
    listener: socket.socket, token: str, *, timeout: float = 300.0, memory_bytes: int | None = None,
    once: bool = False, begun: Callable[[bytes], None] = lambda session: None,
) -> None:  # fmt: skip
    """Carry out runs for whoever connects and knows the token, one after another.

    ``memory_bytes`` is the most that weights may take, by default what is free. ``once`` ends with
    the first run, and ``begun`` is told what the shared memory of a run is called by. What goes
    wrong in a run is said to the other end, and the next is waited for.
    """
    while True:
        channel = Channel(listener.accept()[0], "home", timeout=10.0)
        try:
            role = welcome(channel, token)
            if role == "home":
                channel.connection.settimeout(None)  # a home that dies is noticed at once
                _Session(channel, listener, token, timeout, memory_bytes, begun).run()
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
        memory_bytes: int | None, begun: Callable[[bytes], None] = lambda session: None,
    ) -> None:  # fmt: skip
        self.channel, self.listener, self.token = channel, listener, token
        self.timeout, self.memory_bytes, self.begun = timeout, memory_bytes, begun
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
                    case {"do": "accept", "of": name, "carriage": carriage}:
                        self._accept(name, Carriage(*carriage))
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
        self.name, self.wire_dtype = plan["name"], plan["wire_dtype"]
        self.channel.session = bytes.fromhex(plan["session"])
        self.begun(self.channel.session)
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
        check_memory(plan["resident_bytes"], device, self.memory_bytes)
        self.machine = Machine(work, device)
        self.channel.say(sending=True)  # the numbers that home alone has
        specs = {number: work.specs[number] for number in plan["data"]}
        resident, _ = self.channel.receive(0, specs, self.dtypes)
        take_in(
            self.machine, resident, plan["parameters"], plan["states"], plan["weights"],
            plan["resident_bytes"],
        )  # fmt: skip
        del resident
        self.machine.prepare(plan["ops"], frozenset(plan["constants"]))
        self.channel.say(loaded=time.perf_counter() - start, device=device)

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
        self.peers[to] = self._peer(socket.socket(socket.AddressFamily(family)), to, carriage)
        self.peers[to].connect(tuple(address) if isinstance(address, list) else address)
        greet(self.peers[to], self.token, f"peer {self.name}")
        self.channel.say(connected=to)

    def _accept(self, name: str, carriage: Carriage) -> None:
        """Wait for another accelerator to connect; whoever else does is sent away."""
        while name not in self.peers:
            ready, *_ = select([self.listener, self.channel.connection], [], [], self.timeout)
            if self.listener not in ready:  # home is gone, or there is nothing to wait for
                raise RunError(f"{name} does not connect")
            peer = self._peer(self.listener.accept()[0], name, carriage)
            with suppress(RunError):
                if welcome(peer, self.token) == f"peer {name}":
                    self.peers[name] = peer
                    break
            peer.close()
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


def take_in(
    machine: Machine, data: Mapping[int, torch.Tensor], parameters: Mapping[Any, str],
    states: Mapping[Any, str], weights: Mapping[str, Any], needed: int,
) -> None:  # fmt: skip
    """Have a machine hold ``data``, its parameters and its cached state; all ``needed`` bytes.

    What shares a name shares its memory. Raises RunError where it does not fit.
    """
    numbers, specs = numbers_of(weights), machine.work.specs
    owned: dict[str, torch.Tensor] = {}
    try:
        machine.resident = {number: tensor.to(machine.device) for number, tensor in data.items()}
        for key, name in parameters.items():
            spec = specs[int(key)]
            if name not in owned:
                owned[name] = numbers(name, spec).to(machine.device)
            machine.resident[int(key)] = owned[name].view(spec.shape)
        for key, name in states.items():
            state = state_numbers(name, specs[int(key)], weights)
            machine.resident[int(key)] = state.to(machine.device)
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
    _end_with(int(home))
    serve(
        listener, os.environ.pop("CUTEDGE_TOKEN"), timeout=float(timeout),
        memory_bytes=int(memory[0]) if memory else None, once=True, begun=sessions.append,
    )  # fmt: skip


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


def _end_with(parent: int) -> None:
    """Have the system end this process when the one that started it ends, however it does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before that
        sys.exit(1)


if __name__ == "__main__":
    main()
