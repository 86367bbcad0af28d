"""Messages over sockets: tensors as they lie in memory, every byte counted.

A message is a header, a header for each tensor, and the tensors' bytes; both headers have a fixed
size, so that what a link's description calls framing is known to the byte. A tensor below the
link's ``shared_memory_threshold_bytes`` lies in shared memory, and a handle follows its header; the
bytes of the others go in pieces of the link's ``chunk_bytes``, each with a header of its own.
Nothing that comes in is ever unpickled, and no memory is taken before a size was found to be
expected.

Sockets and no messaging library, because they are fastest here and because every byte on them is
ours to count: ``bench/transports.py`` has them beside ZeroMQ and Arrow Flight.
"""

import hashlib
import hmac
import json
import mmap
import os
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import torch

from costmodels.links import Link
from costmodels.packing import Form
from cutedge.runtime import RunError
from cutedge.runtime.packs import bytes_of, elements_of, pack, unpack
from tracer.graph import FLOATING, ITEM_BYTES
from tracer.words import plain

_HEADER = struct.Struct("<2sBBIIIQ")
"""magic, version, sort, number of tensors, number of the call, of the piece, bytes that follow"""

_TENSOR = struct.Struct("<IBBHQQ")
"""id, dtype, axes, nothing, the axes' order in memory (4 bits each), payload bytes"""

MESSAGE_BYTES, TENSOR_BYTES = _HEADER.size, _TENSOR.size
"""The framing of a message (of each piece of it) and of a tensor in it: 24 bytes each."""

HANDLE_BYTES = 16
"""A handle on shared memory: 8 bytes that name the segment (the run, then random ones), and where
in it."""

SESSION_BYTES = 4
"""The first of a segment's name, the same for all of a run."""

MOST_AXES = 16
_MAGIC, _VERSION = b"ce", 2
_COMMAND, _TENSORS, _PIECE, _ERROR = range(1, 5)
_MOST_TEXT = 16 * 2**20
"""Ten times the plan of a model with a hundred layers."""

_MOST_GREETING = 4096
_MOST_HANDLE = 4096
LEAST_BYTES_PER_SECOND = 2**16
"""How fast bytes must come, beside ``Channel.timeout``: who sends one now and then is cut off."""

_DTYPES = tuple(ITEM_BYTES)
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in _DTYPES if hasattr(torch, name)
}
"""torch's dtypes, by the names that plans and messages have for them."""
_SEGMENTS = Path("/dev/shm")
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A machine that is gone without a word is noticed within two minutes."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor in a message must be."""

    dtype: str
    """The dtype that it crosses in, or that is packed."""
    shape: tuple[int, ...]
    form: Form | None = None
    """How it is packed; None where it crosses as it lies in memory."""

    @property
    def crossing_bytes(self) -> int | None:
        """What of it crosses; None where its values decide: then at most ``payload_bytes``."""
        if self.form is None:
            return self.payload_bytes
        packed: int | None = self.form.packed_bytes(self.shape)
        return packed

    @property
    def payload_bytes(self) -> int:
        """Elements x item size: what it takes unpacked."""
        numel = 1
        for size in self.shape:
            numel *= size
        return numel * ITEM_BYTES[self.dtype]


@dataclass(slots=True)
class Moved:
    """What a message took."""

    payload_bytes: int = 0
    """Of its tensors, packed as they were."""
    wire_bytes: int = 0
    """What went over the socket, as counted there."""
    tensors: int = 0
    crossed: dict[int, Spec] = field(default_factory=dict)
    """Tensor -> what it was on the wire, by the message's own headers."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Tensor -> the bytes of it that crossed."""
    packing_seconds: dict[int, float] = field(default_factory=dict)
    """Tensor -> what packing or unpacking it took, of those that are packed."""
    pack_seconds: float = 0.0
    """Bringing the tensors into the dtype and the order that they cross in, or out of it."""
    move_seconds: float = 0.0
    """On the socket, and in shared memory; of a message that comes in, from its first byte on."""
    wait_seconds: float = 0.0
    """Of a message that comes in: until its first byte."""


@dataclass(frozen=True, slots=True)
class Carriage:
    """How a channel carries long and short messages; the figures of a ``costmodels.links.Link``."""

    chunk_bytes: int | None = None
    shared_memory_threshold_bytes: int = 0
    shared_memory_handle_bytes: int = HANDLE_BYTES

    def __post_init__(self) -> None:
        """Raises RunError for figures that no link has."""
        if self.chunk_bytes == 0 or not (
            HANDLE_BYTES <= self.shared_memory_handle_bytes <= _MOST_HANDLE
        ):
            raise RunError(
                f"pieces of {self.chunk_bytes} bytes and handles of "
                f"{self.shared_memory_handle_bytes} are not to be had: 1 or more, and "
                f"{HANDLE_BYTES} to {_MOST_HANDLE}"
            )

    @staticmethod
    def of(link: Link) -> "Carriage":
        """That of a link whose framing is that of these messages. Raises RunError for others."""
        framing = {
            "message": (link.sent_message_framing_bytes, link.received_message_framing_bytes),
            "tensor": (link.sent_tensor_framing_bytes, link.received_tensor_framing_bytes),
        }
        ours = {"message": (MESSAGE_BYTES,) * 2, "tensor": (TENSOR_BYTES,) * 2}
        if framing != ours:
            raise RunError(
                f"link {link.name} is not what runs here: a message has {MESSAGE_BYTES} bytes of "
                f"framing and a tensor {TENSOR_BYTES}, both ways; take --link unix-socket or "
                "tcp-loopback, or a file of your own with this framing"
            )
        if link.shared_memory_threshold_bytes and link.shared_memory_handle_bytes < HANDLE_BYTES:
            raise RunError(
                f"link {link.name}: a handle on shared memory takes {HANDLE_BYTES} bytes here, "
                f"not {link.shared_memory_handle_bytes}"
            )
        return Carriage(
            link.chunk_bytes,
            link.shared_memory_threshold_bytes,
            link.shared_memory_handle_bytes or HANDLE_BYTES,
        )

    def as_json(self) -> list[int | None]:
        """The figures, in order."""
        return [*astuple(self)]

    def pieces(self, total: int) -> Iterator[tuple[int, int]]:
        """(begin, end) of each piece of what is on the wire; one, of nothing, where nothing is."""
        chunk = min(self.chunk_bytes or total, total)
        yield from ((at, min(at + chunk, total)) for at in range(0, total, chunk or 1))
        if not total:
            yield 0, 0

    def is_shared(self, payload: int) -> bool:
        """Whether a tensor of so many bytes lies in shared memory."""
        small = payload < self.shared_memory_threshold_bytes
        return small and payload > self.shared_memory_handle_bytes


@dataclass(slots=True)
class Channel:
    """One end of a connection.

    Every wait on it ends after ``timeout`` seconds without a byte, and where bytes come more slowly
    than ``LEAST_BYTES_PER_SECOND`` beside that. All methods raise RunError: where the other end is
    gone, silent, slow or ill-mannered.
    """

    connection: socket.socket
    peer: str
    """What errors call the other end."""
    timeout: float | None = 300.0
    """In seconds; None for an end that may be silent for as long as it is there."""
    carriage: Carriage = field(default_factory=Carriage)
    sent_bytes: int = 0
    """All that went out on the socket so far."""
    received_bytes: int = 0
    """All that came in on the socket so far."""
    session: bytes = field(default_factory=lambda: secrets.token_bytes(SESSION_BYTES))
    """Begins the name of each piece of shared memory, so that all of a run's can be found."""
    segments: set[Path] = field(default_factory=set)
    """Shared memory that the other end may not have read yet."""
    forbidden: Mapping[int, str] = field(default_factory=dict)
    """Tensor -> the secret whose values it has: what is not to go out here."""
    allowed: float | None = None
    """Seconds that all that is said now may take together; see ``within``."""
    deadline: float = inf
    """When they end."""

    def __post_init__(self) -> None:
        self.connection.settimeout(self.timeout)
        if self.connection.family != socket.AF_UNIX:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # not everywhere the same
                    self.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def connect(self, address: Any, tls: ssl.SSLContext | None = None) -> None:
        """Connect to one that listens: at a path, or at a (host, port), there with ``tls``."""
        where = address if isinstance(address, str) else ":".join(map(str, address))
        try:
            self.connection.connect(address)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise RunError(f"{self.peer} cannot be reached at {where}: {why}") from error
        if tls is not None:
            try:
                self.connection = tls.wrap_socket(self.connection, server_hostname=address[0])
            except ssl.SSLCertVerificationError as error:
                raise RunError(
                    f"{self.peer} at {where} is not to be trusted: {error.verify_message}"
                ) from error
            except (OSError, ValueError) as error:
                why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
                raise RunError(
                    f"{self.peer} at {where} does not speak TLS as it must ({why}): is it started "
                    "with --tls-cert?"
                ) from error

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What is said and heard meanwhile takes so many seconds at most, however it is spread."""
        before = self.allowed, self.deadline
        self.allowed, self.deadline = seconds, min(time.monotonic() + seconds, self.deadline)
        try:
            yield
        finally:
            self.allowed, self.deadline = before

    def close(self) -> None:
        """Close the connection and remove shared memory that nobody will read."""
        with suppress(OSError):
            self.connection.close()
        for segment in self.segments:
            segment.unlink(missing_ok=True)
        self.segments.clear()

    # --- text -------------------------------------------------------------------------------------

    def say(self, **words: Any) -> None:
        """Send a command or an answer."""
        text = json.dumps(words).encode()
        with self._message(len(text)):
            self._out(_HEADER.pack(_MAGIC, _VERSION, _COMMAND, 0, 0, 0, len(text)), text)

    def fail(self, message: str) -> None:
        """Tell the other end that it went wrong here."""
        text = plain(message, _MOST_GREETING // 4).encode(errors="replace")
        self._out(_HEADER.pack(_MAGIC, _VERSION, _ERROR, 0, 0, 0, len(text)), text)

    def hear(self, most: int = _MOST_TEXT) -> dict[str, Any]:
        """The next message, which must be text."""
        sort, _, _, _, length = self._header()
        return self._text(sort, length, most)

    def _text(self, sort: int, length: int, most: int = _MOST_TEXT) -> dict[str, Any]:
        if sort == _ERROR and length <= _MOST_GREETING:
            raise RunError(f"{self.peer}: {self._said(length)}")
        if sort != _COMMAND or length > most:
            raise RunError(f"{self.peer} sent a message that is out of place")
        with self._message(length):
            text = bytes(self._in(length))
        try:
            words = json.loads(text)
        except (ValueError, RecursionError):
            words = None
        if not isinstance(words, dict):
            raise RunError(f"{self.peer} sent text that is damaged")
        return words

    def _said(self, length: int) -> str:
        """The words of an error, fit to be shown."""
        return plain(self._in(length).decode(errors="replace"), _MOST_GREETING)

    # --- tensors ----------------------------------------------------------------------------------

    def check(self, tensors: Iterable[int]) -> None:
        """Raise RunError where one of these is not to go to the other end."""
        for number in tensors:
            if number in self.forbidden:
                raise RunError(
                    f"tensor {number} is not sent to {self.peer}, which is not trusted: it has the "
                    f"values of a secret ({self.forbidden[number]})"
                )

    def send(
        self,
        call: int,
        tensors: Sequence[tuple[int, torch.Tensor]],
        crossing: Mapping[int, Spec] | None = None,
    ) -> Moved:
        """Send tensors, by id, as one message: each as ``crossing`` says, or as it is."""
        self.check(number for number, _ in tensors)
        moved = Moved(tensors=len(tensors))
        start = time.perf_counter()
        packed = [_packed(n, one, (crossing or {}).get(n), moved) for n, one in tensors]
        views = [view for view, _, _ in packed]
        moved.payload_bytes = sum(view.nbytes for view in views)
        begun = time.perf_counter()
        before = self.sent_bytes
        shared = [self.carriage.is_shared(view.nbytes) for view in views]
        inside = [view for view, lies in zip(views, shared, strict=True) if lies]
        outside = [view for view, lies in zip(views, shared, strict=True) if not lies]
        name, segment = self._segment(sum(view.nbytes for view in inside))
        headers, offset = b"", 0
        for (number, tensor), (_, dtype, order), view, lies in zip(
            tensors, packed, views, shared, strict=True
        ):
            spec = (crossing or {}).get(number)
            moved.crossed[number] = Spec(dtype, tuple(tensor.shape), spec.form if spec else None)
            moved.sizes[number] = view.nbytes
            headers += _TENSOR.pack(
                number, _DTYPES.index(dtype), len(order), 0, _coded(order), view.nbytes
            )
            if lies:
                handle = name + offset.to_bytes(HANDLE_BYTES - len(name), "little")
                headers += handle.ljust(self.carriage.shared_memory_handle_bytes, b"\0")
                offset += view.nbytes
        if segment is not None:
            for view in inside:
                segment.write(view)
            segment.close()
        with self._message(moved.payload_bytes):
            for number, (at, end) in enumerate(
                self.carriage.pieces(sum(view.nbytes for view in outside))
            ):
                sort = _PIECE if number else _TENSORS
                head = _HEADER.pack(
                    _MAGIC, _VERSION, sort, len(tensors), call, number, end - at
                ) + (b"" if number else headers)
                self._out(head, *_slices(outside, at, end))
        moved.wire_bytes = self.sent_bytes - before
        moved.pack_seconds, moved.move_seconds = begun - start, time.perf_counter() - begun
        return moved

    def _segment(self, size: int) -> tuple[bytes, mmap.mmap | None]:
        if not size:
            return b"", None
        name = self.session + secrets.token_bytes(4)
        path = _segment_path(name)
        self.segments.add(path)
        try:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # else no room is a crash later
                return name, mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise RunError(
                f"{size:,} bytes of shared memory cannot be had ({error.strerror}): make "
                f"{_SEGMENTS} larger, or the link's shared_memory_threshold_bytes smaller"
            ) from error

    def receive(
        self, call: int, expected: Mapping[int, Spec], dtypes: Mapping[int, str]
    ) -> tuple[dict[int, torch.Tensor], Moved]:
        """The tensors of ``call``, which must be those ``expected``, each in its own dtype.

        Raises RunError for any other message before memory is taken for it.
        """
        waiting = time.perf_counter()
        head = self._header()
        moved = Moved(wait_seconds=time.perf_counter() - waiting)
        return self._tensors(head, call, expected, dtypes, moved)

    def next(self) -> "dict[str, Any] | tuple[int, ...]":
        """What comes next: words, or the head of a message of tensors for ``accept``."""
        head = self._header()
        return head if head[0] == _TENSORS else self._text(head[0], head[4])

    def accept(
        self,
        head: "tuple[int, ...]",
        call: int,
        expected: Mapping[int, Spec],
        dtypes: Mapping[int, str],
    ) -> tuple[dict[int, torch.Tensor], Moved]:
        """The rest of a message that ``next`` gave the head of; as ``receive``."""
        return self._tensors(head, call, expected, dtypes, Moved())

    def _tensors(
        self,
        head: "tuple[int, ...]",
        call: int,
        expected: Mapping[int, Spec],
        dtypes: Mapping[int, str],
        moved: Moved,
    ) -> tuple[dict[int, torch.Tensor], Moved]:
        start = time.perf_counter()
        sort, count, number, piece, length = head
        before = self.received_bytes - MESSAGE_BYTES
        if sort != _TENSORS:
            self._text(sort, length)
            raise RunError(f"{self.peer} sent text where call {call} was to follow")
        first = self._first_piece([spec.crossing_bytes for spec in expected.values()])
        if (count, number, piece) != (len(expected), call, 0) or first not in (None, length):
            raise RunError(
                f"{self.peer} sent {count} tensors for call {number}, a piece of {length} bytes; "
                f"{len(expected)} for call {call}, a piece of {first}, were to come"
            )
        with self._message(sum(spec.payload_bytes for spec in expected.values())):
            flat, orders = self._payload(call, expected, length)
        moved.sizes = {number: raw.nbytes for number, raw in flat.items()}
        moved.tensors, moved.payload_bytes = count, sum(moved.sizes.values())
        moved.crossed = {number: expected[number] for number in orders}
        moved.wire_bytes = self.received_bytes - before
        moved.move_seconds = time.perf_counter() - start
        start = time.perf_counter()
        made = {}
        for number in orders:
            begun = time.perf_counter()
            made[number] = self._unpacked(
                flat.pop(number), expected[number], orders[number], dtypes[number]
            )
            if expected[number].form is not None:
                moved.packing_seconds[number] = time.perf_counter() - begun
        moved.pack_seconds = time.perf_counter() - start
        return made, moved

    def _first_piece(self, sizes: Sequence[int | None]) -> int | None:
        """Of tensors of these sizes, the bytes of the first piece; None where values decide."""
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        outside = sum(size for size in known if not self.carriage.is_shared(size))
        return next(self.carriage.pieces(outside))[1]

    def _payload(
        self, call: int, expected: Mapping[int, Spec], length: int
    ) -> tuple[dict[int, torch.Tensor], dict[int, tuple[int, ...]]]:
        """By tensor: its bytes, and its axes in the order of memory; ``length`` is what the first
        piece has of them."""
        orders: dict[int, tuple[int, ...]] = {}
        handles: dict[int, bytes] = {}
        sizes: dict[int, int] = {}
        for _ in expected:
            number, dtype, axes, _, order, payload = _TENSOR.unpack(self._in(TENSOR_BYTES))
            spec = expected.get(number)
            given = _DTYPES[dtype] if dtype < len(_DTYPES) else f"dtype {dtype}"
            if spec is None or number in orders:
                raise RunError(f"{self.peer} sent tensor {number}, which is not of call {call}")
            wanted = spec.crossing_bytes
            sized = payload == wanted if wanted is not None else payload <= spec.payload_bytes
            if (given, axes) != (spec.dtype, len(spec.shape)) or not sized:
                most = f"{wanted}" if wanted is not None else f"at most {spec.payload_bytes}"
                raise RunError(
                    f"{self.peer} sent tensor {number} as {given}, {axes} axes, {payload} bytes; "
                    f"it is {spec.dtype}, {len(spec.shape)} axes, {most} bytes"
                )
            sizes[number] = payload
            orders[number] = _decoded(order, axes)
            if sorted(orders[number]) != list(range(axes)):
                raise RunError(f"{self.peer} sent tensor {number} with damaged axes")
            if self.carriage.is_shared(payload):
                handle = self._in(self.carriage.shared_memory_handle_bytes)
                handles[number] = bytes(handle[:HANDLE_BYTES])
        if self._first_piece([*sizes.values()]) != length:
            raise RunError(
                f"{self.peer} sent call {call} in a piece of {length} bytes too many or few"
            )
        flat = {number: torch.empty(size, dtype=torch.uint8) for number, size in sizes.items()}
        views = {number: memoryview(raw.numpy()) for number, raw in flat.items()}
        rest = [view for number, view in views.items() if number not in handles]
        outside = sum(view.nbytes for view in rest)
        for place, (at, end) in enumerate(self.carriage.pieces(outside)):
            if place:
                head = self._header()
                if head != (_PIECE, len(expected), call, place, end - at):
                    raise RunError(f"{self.peer} sent a damaged piece of call {call}")
            for view in _slices(rest, at, end):
                self._into(view)
        self._shared({number: views[number] for number in handles}, handles)
        return flat, orders

    def _unpacked(
        self, raw: torch.Tensor, spec: Spec, order: Sequence[int], dtype: str
    ) -> torch.Tensor:
        """A tensor of bytes that came: as it lay in memory at the other end, in its own dtype."""
        kind, form = DTYPES[spec.dtype], spec.form
        laid = [spec.shape[axis] for axis in order]
        if form is None or (spec.crossing_bytes is None and raw.nbytes == spec.payload_bytes):
            flat = elements_of(raw, kind)
        else:
            try:
                flat = unpack(form, raw, kind, spec.shape)
            except RunError as error:
                raise RunError(f"{self.peer}: {error}") from error
            if spec.crossing_bytes is not None:  # its elements came in the order of its axes
                flat = flat.permute(*order) if order else flat
        back = [order.index(axis) for axis in range(len(order))]
        return flat.reshape(laid).contiguous().permute(back).to(DTYPES[dtype])

    def _shared(self, views: Mapping[int, memoryview], handles: Mapping[int, bytes]) -> None:
        """Copy tensors out of the shared memory that their handles name, and remove it.

        It must be of this run. It is read and not mapped: whoever made it can still cut it short.
        """
        segments: dict[bytes, int] = {}
        try:
            for number, handle in handles.items():
                name, offset = handle[:8], int.from_bytes(handle[8:HANDLE_BYTES], "little")
                if not name.startswith(self.session):
                    raise RunError(f"{self.peer} sent a handle on what is not of this run")
                if name not in segments:
                    segments[name] = os.open(_segment_path(name), os.O_RDONLY | os.O_NOFOLLOW)
                view = views[number]
                while view:
                    got = os.preadv(segments[name], [view], offset)
                    if not got:
                        raise ValueError("it ends before the tensor does")
                    view, offset = view[got:], offset + got
        except (OSError, ValueError, OverflowError) as error:
            raise RunError(
                f"{self.peer} sent a handle on shared memory that is not here: is it on another "
                "machine?"
            ) from error
        finally:
            for name, file in segments.items():
                os.close(file)
                _segment_path(name).unlink(missing_ok=True)

    # --- bytes ------------------------------------------------------------------------------------

    def _out(self, *parts: "bytes | memoryview") -> None:
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    self._set_patience()
                    sent = self.connection.send(view)
                    self.sent_bytes += sent
                    view = view[sent:]
        except TimeoutError as error:
            raise RunError(self._late("took")) from error
        except OSError as error:
            said = self.last_words()
            gone = f"{self.peer} is gone: {error.strerror or error}"
            raise RunError(f"{self.peer}: {said}" if said else gone) from error

    def _set_patience(self) -> None:
        """Let the next step on the socket take no longer than it may."""
        patience = self.timeout
        if self.deadline < inf:
            left = max(self.deadline - time.monotonic(), 1e-6)
            patience = left if patience is None else min(patience, left)
        self.connection.settimeout(patience)

    def _late(self, verb: str) -> str:
        if time.monotonic() >= self.deadline:
            return f"{self.peer} took longer than {self.allowed:.3g} s"
        return f"{self.peer} {verb} nothing for {self.timeout:g} s"

    def _message(self, size: int) -> AbstractContextManager[None]:
        """A message of so many bytes is all here, or all there, in the time that it may take."""
        return self.within(
            inf if self.timeout is None else self.timeout + size / LEAST_BYTES_PER_SECOND
        )

    def last_words(self) -> str:
        """What the other end said went wrong there, if it did; else nothing."""
        try:
            with self.within(0.5):
                sort, _, _, _, length = self._header()
                said = sort == _ERROR and length <= _MOST_GREETING
                return self._said(length) if said else ""
        except (RunError, OSError):  # closed here already
            return ""

    def _in(self, size: int) -> bytearray:
        made = bytearray(size)
        self._into(memoryview(made))
        return made

    def _into(self, view: memoryview) -> None:
        try:
            while view:
                self._set_patience()
                got = self.connection.recv_into(view)
                if not got:
                    raise RunError(f"{self.peer} is gone: it closed the connection")
                self.received_bytes += got
                view = view[got:]
        except TimeoutError as error:
            raise RunError(self._late("said")) from error
        except OSError as error:
            raise RunError(f"{self.peer} is gone: {error.strerror or error}") from error

    def _header(self) -> tuple[int, int, int, int, int]:
        with self.within(inf if self.timeout is None else 2 * self.timeout):
            magic, version, *head = _HEADER.unpack(self._in(MESSAGE_BYTES))
        if (magic, version) != (_MAGIC, _VERSION):
            raise RunError(f"{self.peer} sent what is no message of cutedge {_VERSION}")
        sort, count, call, piece, length = head
        return sort, count, call, piece, length


# --- who is there ---------------------------------------------------------------------------------


def greet(channel: Channel, token: str, role: str) -> None:
    """Prove to the one that listens that the token is known here, and have it prove the same.

    The token itself does not cross. Raises RunError where the two tokens differ.
    """
    with channel.within(channel.timeout or inf):
        channel.say(role=role)
        challenge = str(channel.hear(_MOST_GREETING).get("challenge"))
        mine = secrets.token_hex(16)
        channel.say(proof=_proof(token, f"{role} {challenge}"), challenge=mine)
        answer = str(channel.hear(_MOST_GREETING).get("proof"))
    if not _same(answer, _proof(token, f"worker {mine}")):
        raise RunError(f"{channel.peer} does not know the token")


def welcome(channel: Channel, token: str) -> str:
    """The role of the one that has connected, once it has proved that it knows the token."""
    role = str(channel.hear(_MOST_GREETING).get("role"))
    challenge = secrets.token_hex(16)
    channel.say(challenge=challenge)
    words = channel.hear(_MOST_GREETING)
    if not _same(str(words.get("proof")), _proof(token, f"{role} {challenge}")):
        channel.fail("the token is wrong")
        raise RunError(f"{channel.peer} does not know the token")
    channel.say(proof=_proof(token, f"worker {words.get('challenge')}"))
    return role


def _proof(token: str, text: str) -> str:
    return hmac.new(_encoded(token), _encoded(text), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(_encoded(one), _encoded(other))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # whatever a stranger may have sent


# --- tensors as bytes -----------------------------------------------------------------------------


def _packed(
    number: int, tensor: torch.Tensor, spec: Spec | None, moved: Moved
) -> tuple[memoryview, str, tuple[int, ...]]:
    """(its bytes in a row, the dtype that they are in, its axes in the order of memory)

    A tensor that fills its memory crosses as it lies there, and has the same strides afterwards.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if spec is not None and spec.dtype in FLOATING and tensor.is_floating_point():
        tensor = tensor.to(DTYPES[spec.dtype])
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride(axis), axis)))
    laid = tensor.permute(order)
    if not laid.is_contiguous():
        laid, order = tensor.contiguous(), tuple(range(tensor.dim()))
    dtype = str(tensor.dtype).removeprefix("torch.")
    if spec is None or spec.form is None:
        return memoryview(bytes_of(laid).numpy()), dtype, order
    begun = time.perf_counter()
    view = pack(spec.form, tensor, laid)
    moved.packing_seconds[number] = time.perf_counter() - begun
    return view, dtype, order


def _coded(order: Sequence[int]) -> int:
    if len(order) > MOST_AXES:
        raise RunError(f"a tensor of {len(order)} axes cannot cross: {MOST_AXES} at most")
    return sum(axis << (4 * place) for place, axis in enumerate(order))


def _decoded(code: int, axes: int) -> tuple[int, ...]:
    return tuple((code >> (4 * place)) & 15 for place in range(axes))


def _slices(views: Sequence[memoryview], begin: int, end: int) -> Iterator[memoryview]:
    """The bytes from ``begin`` to ``end`` of views that follow each other."""
    at = 0
    for view in views:
        low, high = max(begin - at, 0), min(end - at, view.nbytes)
        if low < high:
            yield view[low:high]
        at += view.nbytes


def remove_segments(session: bytes) -> None:
    """Remove the shared memory of a run that one of its processes may have left behind."""
    for path in _SEGMENTS.glob(f"cutedge-{session.hex()}*"):
        path.unlink(missing_ok=True)


def _segment_path(name: bytes) -> Path:
    return _SEGMENTS / f"cutedge-{name.hex()}"
