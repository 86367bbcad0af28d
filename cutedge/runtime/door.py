"""Where a worker lets others in: all who knock are greeted side by side, so that nobody who is slow
keeps another out; who knows the token is served in turn."""

import socket
import ssl
import time
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from select import select
from threading import BoundedSemaphore, Lock, Thread

from cutedge.runtime import RunError
from cutedge.runtime.wire import Channel, welcome

GREETING_SECONDS = 10.0
"""The whole of a greeting takes no longer, however it is spread."""

BUSY_SECONDS = 5.0
"""How long a home waits for a run of another to end before it is told that the worker is busy."""

MOST_KNOCKING = 32
"""Connections that have not proved yet that they know the token; the oldest makes way."""

MOST_WAITING = 8
"""Homes that wait for a run of another to end; one more is told at once that the worker is busy."""

TLS_BEGINS = b"\x16"
"""The first byte of whoever speaks TLS."""

BUSY = "it is busy with another run; try again when that has ended"


class Door:
    """The connections to a worker, from the first byte until a run takes them over."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        tls: ssl.SSLContext | None = None,
        greeting_seconds: float = GREETING_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self.homes: SimpleQueue[Channel] = SimpleQueue()
        """Homes that have proved that they know the token, one at a time."""
        self._listener, self._token, self._tls = listener, token, tls
        self._greeting_seconds, self._busy_seconds = greeting_seconds, busy_seconds
        self._lock, self._free = Lock(), BoundedSemaphore(1)
        self._knocking: dict[int, socket.socket] = {}  # in the order that they came
        self._waiting = 0
        self._expected: bytes | None = None  # the session whose peers are let in
        self._peers: dict[str, Channel] = {}
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        Thread(target=self._stand, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, self._bell, self._rope):
            one.close()

    def expect(self, session: bytes) -> None:
        """Let in the other accelerators of a run."""
        with self._lock:
            self._expected = session

    def leave(self) -> None:
        """A run has ended: the next home is let in."""
        with self._lock:
            self._expected = None
            left, self._peers = self._peers, {}
        for channel in left.values():
            channel.close()
        self._free.release()

    def peer(self, name: str, timeout: float, home: Channel) -> Channel:
        """The accelerator of this run that is called so, once it has connected.

        Raises RunError where it does not within ``timeout`` seconds, or ``home`` is gone by then.
        """
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                if channel := self._peers.pop(name, None):
                    return channel
            wait = max(end - time.monotonic(), 0)
            ready, *_ = select([self._bell, home.connection], [], [], wait)
            if self._bell not in ready:  # home is gone, or there is nothing to wait for
                raise RunError(f"{name} does not connect")
            with suppress(BlockingIOError):
                self._bell.recv(4096)

    def _stand(self) -> None:
        for number in count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.1)  # there are too many open files: some will be closed
                continue
            with self._lock:
                self._knocking[number] = connection
                if len(self._knocking) > MOST_KNOCKING:
                    with suppress(OSError):
                        self._knocking[min(self._knocking)].shutdown(socket.SHUT_RDWR)
            Thread(target=self._greet, args=(number,), daemon=True).start()

    def _greet(self, number: int) -> None:
        end = time.monotonic() + self._greeting_seconds
        channel, role = None, ""
        try:
            self._secure(number, end)
            channel = Channel(self._knocking[number], "home", self._greeting_seconds)
            with channel.within(max(end - time.monotonic(), 0)):
                role = welcome(channel, self._token)
        except (RunError, OSError):
            pass  # it has been told, or is gone
        with self._lock:
            connection = self._knocking.pop(number)
        taken = self._home if role == "home" else self._peer
        if channel is None or not role or not taken(channel, role):
            connection.close()

    def _secure(self, number: int, end: float) -> None:
        """Speak TLS over a connection where this worker does. Raises RunError where the other end
        does not speak as it does."""
        connection = self._knocking[number]
        connection.settimeout(self._greeting_seconds)
        speaks = connection.recv(1, socket.MSG_PEEK) == TLS_BEGINS
        if speaks != (self._tls is not None):
            only = "it speaks no TLS" if speaks else "it speaks TLS alone: give --tls-ca"
            Channel(connection, "home", 1.0).fail(only)
            connection.recv(2**16)  # what is left unread would take back what was said
            raise RunError(only)
        if self._tls is not None:
            secured = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
            self._knocking[number] = secured
            secured.settimeout(max(end - time.monotonic(), 0.001))
            secured.do_handshake()

    def _home(self, channel: Channel, role: str) -> bool:
        """Have a home served as soon as no other is, and tell it where that takes too long."""
        with self._lock:
            waits = self._waiting < MOST_WAITING
            self._waiting += waits
        if waits:
            free = self._free.acquire(timeout=self._busy_seconds)
            with self._lock:
                self._waiting -= 1
            if free:
                self.homes.put(channel)
                return True
        with suppress(RunError):
            channel.fail(BUSY)
        return False

    def _peer(self, channel: Channel, role: str) -> bool:
        """Keep another accelerator of the run until it is asked for."""
        sort, _, rest = role.partition(" ")
        session, _, name = rest.partition(" ")
        with self._lock:
            if (
                sort != "peer"
                or self._expected is None
                or session != self._expected.hex()
                or len(self._peers) > MOST_WAITING
            ):
                return False
            self._peers[name] = channel
        self._rope.send(b".")
        return True
