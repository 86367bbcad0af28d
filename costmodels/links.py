"""Links between devices: what a message costs in wire bytes, seconds and buffers; networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from costmodels.described import Figure, check_figure_keys
from tracer.errors import InputError
from tracer.toml_files import find_table, shipped_names


@dataclass(frozen=True, slots=True)
class Link:
    """What crosses between two devices costs, by direction as seen from home.

    ``sent`` is from home (or from one accelerator to another), ``received`` is to home. Only the
    framing is always known; what a description leaves out is 0.
    """

    name: str
    """What users call it; of a file, its name without .toml."""
    description: str
    """What it is, in a line."""
    sent_message_framing_bytes: int
    """Bytes a message adds to its tensors."""
    sent_tensor_framing_bytes: int
    """Bytes each tensor in a message adds."""
    received_message_framing_bytes: int
    """As ``sent_message_framing_bytes``."""
    received_tensor_framing_bytes: int
    """As ``sent_tensor_framing_bytes``."""
    sent_bandwidth_bytes_per_second: int | None = None
    """Wire bytes a second; without it nothing is said of the seconds of what is sent."""
    received_bandwidth_bytes_per_second: int | None = None
    """As ``sent_bandwidth_bytes_per_second``."""
    sent_large_message_bytes: int | None = None
    """A message with so much payload on the wire, or more, goes at the bandwidth of large ones."""
    received_large_message_bytes: int | None = None
    """As ``sent_large_message_bytes``."""
    sent_large_message_bandwidth_bytes_per_second: int | None = None
    """Wire bytes a second of a large message, in place of the other bandwidth."""
    received_large_message_bandwidth_bytes_per_second: int | None = None
    """As ``sent_large_message_bandwidth_bytes_per_second``."""
    sent_latency_seconds: float | None = None
    """What a message takes beside its bytes, from one end to the other. None where it is not known:
    seconds on this link are then at least what is said."""
    received_latency_seconds: float | None = None
    """As ``sent_latency_seconds``."""
    sent_toll_seconds: float = 0.0
    """What each message costs its two ends beside its latency, as the set-up of its encryption:
    no other message of the link moves in it."""
    received_toll_seconds: float = 0.0
    """As ``sent_toll_seconds``."""
    sent_serialisation_seconds_per_byte: float = 0.0
    """What the two ends together take to serialise a payload byte and to read it back."""
    received_serialisation_seconds_per_byte: float = 0.0
    """As ``sent_serialisation_seconds_per_byte``."""
    sent_encryption_seconds_per_byte: float = 0.0
    """What the two ends together take to encrypt and decrypt a payload byte."""
    received_encryption_seconds_per_byte: float = 0.0
    """As ``sent_encryption_seconds_per_byte``."""
    shared_memory_threshold_bytes: int = 0
    """A tensor with less payload than this lies in shared memory; one with just as much or more
    goes over the wire. Each tensor of a message is asked by itself."""
    shared_memory_handle_bytes: int = 0
    """What is on the wire of a tensor in shared memory, instead of its payload. One with no more
    payload than that goes over the wire all the same."""
    concurrency_messages: int | None = None
    """How many messages are under way at one time, both directions together. None: as many as
    there are directions, one in each."""
    synchronous: bool = False
    """Whether the sender waits until its message has arrived."""
    confidential: bool = False
    """Whether it is to an accelerator in confidential mode, which others do not have."""
    chunk_bytes: int | None = None
    """The payload that a message has on the wire goes in pieces of this many bytes and a rest
    where it is longer. Each piece is a message of its own: it pays framing and latency."""
    picojoules_per_byte: float | None = None
    """What a byte on the wire takes, both ends together; None where that is not known."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each figure comes from, by its key; those of the description and no others."""

    @property
    def figures(self) -> dict[str, float | None]:
        """Every figure that a description may have, in order; None where this one has it not."""
        return {key: getattr(self, key) if key in self.sources else None for key in FIGURES}

    @property
    def summary(self) -> dict[str, Any]:
        """All that its description says, by name."""
        about = {"link": self.name, "description": self.description}
        return {**about, **self.figures, "sources": self.sources}

    def timed(self, direction: str) -> bool:
        """Whether it has a bandwidth in a ``direction`` of the transfers, and so seconds."""
        return _of(self, direction, "bandwidth_bytes_per_second") is not None

    def at_least(self, direction: str) -> bool:
        """Whether its seconds in a ``direction`` leave out a latency that is not known."""
        return self.timed(direction) and _of(self, direction, "latency_seconds") is None

    def payload_rate(self, direction: str) -> float | None:
        """Payload bytes a second of a long message in a ``direction`` of the transfers: what wire,
        serialisation and encryption leave of the bandwidth. None without one.
        """
        if not self.timed(direction):
            return None
        usual, large = _bandwidths(self, direction)
        least = _of(self, direction, "large_message_bytes")
        whole = self.chunk_bytes is None or (least is not None and self.chunk_bytes >= least)
        return 1 / (1 / (large if whole else usual) + _serialisation(self, direction))

    def tensor_seconds(self, payload: int, direction: str) -> float | None:
        """What a tensor takes, without what its message takes however little is in it.

        Of a message in one piece, on a link whose large messages go like others, the tensors and
        ``message_seconds`` add up to ``message_cost``. Else they are the least: with
        ``chunk_bytes`` each tensor pays for the pieces that it has more than one of, and together
        they may fill some more; with large messages each is taken at the faster rate that a
        message with it may have. None without a bandwidth in that ``direction`` of the transfers.
        """
        link = _unbroken(self, direction, payload)
        alone = message_cost(link, [payload], direction).seconds
        return None if alone is None else alone[0] - (link.message_seconds(direction) or 0.0)

    def tensor_joules(self, payload: int, direction: str) -> float | None:
        """What the bytes of a tensor take on the wire, those of its message left out; None where a
        byte has no figure."""
        if self.picojoules_per_byte is None:
            return None
        (wire,) = message_cost(self, [payload], direction).wire_bytes
        framing: int = _of(self, direction, "message_framing_bytes")
        return float((wire - framing) * (self.picojoules_per_byte * 1e-12))

    def message_seconds(self, direction: str) -> float | None:
        """What a message takes beside its tensors, at the least: latency where that is known, toll
        and its own framing; None likewise.
        """
        if not self.timed(direction):
            return None
        framing: int = _of(self, direction, "message_framing_bytes")
        return _message_toll(self, direction) + framing / max(_bandwidths(self, direction))


def _message_toll(link: Link, direction: str) -> float:
    """Seconds a message, whatever is in it."""
    latency: float | None = _of(link, direction, "latency_seconds")
    toll: float = _of(link, direction, "toll_seconds")
    return (latency or 0.0) + toll


def _serialisation(link: Link, direction: str) -> float:
    """Seconds a payload byte, beside those on the wire."""
    serialisation: float = _of(link, direction, "serialisation_seconds_per_byte")
    encryption: float = _of(link, direction, "encryption_seconds_per_byte")
    return serialisation + encryption


def _bandwidths(link: Link, direction: str) -> tuple[int, int]:
    """(of messages in general, of large ones), where it has one."""
    usual: int = _of(link, direction, "bandwidth_bytes_per_second")
    large: int | None = _of(link, direction, "large_message_bandwidth_bytes_per_second")
    return usual, usual if large is None else large


def _unbroken(link: Link, direction: str, payload: int) -> Link:
    """The same without large messages, at the fastest rate that a tensor may go at in a message.

    A tensor that is large by itself is in no small message; a small one may be in either.
    """
    way = "received" if direction == "receive" else "sent"
    large = _of(link, direction, "large_message_bytes")
    if large is None:
        return link
    usual, other = _bandwidths(link, direction)
    always = payload >= max(large, link.shared_memory_threshold_bytes) and link.chunk_bytes is None
    fields: dict[str, Any] = {
        f"{way}_bandwidth_bytes_per_second": other if always else max(usual, other),
        f"{way}_large_message_bytes": None,
        f"{way}_large_message_bandwidth_bytes_per_second": None,
    }
    return replace(link, **fields)


def _of(link: Link, direction: str, figure: str) -> Any:
    return getattr(link, f"{'received' if direction == 'receive' else 'sent'}_{figure}")


@dataclass(frozen=True, slots=True)
class Links:
    """Which link is between home and each accelerator, and between two accelerators.

    ``Links(link)`` is a network of that one link.
    """

    common: Link
    """Between home and every accelerator that has no link of its own."""
    own: Mapping[str, Link] = field(default_factory=dict)
    """Accelerator -> the link between home and it."""
    peers: Mapping[frozenset[str], Link] = field(default_factory=dict)
    """Two accelerators -> the link between them."""

    def of(self, accelerator: str) -> Link:
        """The link between home and an accelerator."""
        return self.own.get(accelerator, self.common)

    def between(self, one: str, other: str, home: str) -> Link:
        """The link between two devices, whichever sends.

        Two accelerators without one of their own use the slower of their two links to home, by the
        payload rate of what is sent: both ends must keep up. One without a bandwidth is the slower,
        so that nothing is said of seconds that are not known. Of equally slow ones it is that of
        the accelerator whose name comes first.
        """
        if home in (one, other):
            return self.of(other if one == home else one)
        pair = frozenset((one, other))
        if pair in self.peers:
            return self.peers[pair]
        return min(map(self.of, sorted(pair)), key=lambda link: link.payload_rate("peer") or 0.0)

    def among(self, home: str, accelerators: Sequence[str]) -> dict[tuple[str, str], Link]:
        """The link of each pair of devices; home is the first of its pairs."""
        pairs = combinations((home, *accelerators), 2)
        return {(one, other): self.between(one, other, home) for one, other in pairs}

    @property
    def name(self) -> str:
        """As text: ``pcie5-x16, chip-8x8=axi-lite``, of the links that differ from the common."""
        alike = replace(self, peers={})
        named = [(device, link) for device, link in self.own.items() if link != self.common]
        named += [
            ("+".join(sorted(pair)), link)
            for pair, link in self.peers.items()
            if link != alike.between(min(pair), max(pair), "")
        ]
        return ", ".join([self.common.name, *(f"{pair}={link.name}" for pair, link in named)])


_FRAMING = Figure(whole=True, most=2**31 - 1)
_BYTES = Figure(whole=True)
_RATE = Figure(whole=True, positive=True)
_SECONDS = Figure()

REQUIRED: Mapping[str, Figure] = {
    f"{way}_{part}_framing_bytes": _FRAMING
    for way in ("sent", "received")
    for part in ("message", "tensor")
}
"""The figures that every description has."""

OPTIONAL: Mapping[str, Figure] = {
    **{
        f"{way}_{figure}": kind
        for figure, kind in (
            ("bandwidth_bytes_per_second", _RATE),
            ("large_message_bytes", Figure(whole=True, positive=True)),
            ("large_message_bandwidth_bytes_per_second", _RATE),
            ("latency_seconds", _SECONDS),
            ("toll_seconds", _SECONDS),
            ("serialisation_seconds_per_byte", _SECONDS),
            ("encryption_seconds_per_byte", _SECONDS),
        )
        for way in ("sent", "received")
    },
    "shared_memory_threshold_bytes": _BYTES,
    "shared_memory_handle_bytes": _FRAMING,
    "concurrency_messages": Figure(whole=True, positive=True),
    "synchronous": Figure(flag=True),
    "confidential": Figure(flag=True),
    "chunk_bytes": Figure(whole=True, positive=True),
    "picojoules_per_byte": Figure(positive=True),
}
"""The figures that a description may have."""

FIGURES: Mapping[str, Figure] = {**REQUIRED, **OPTIONAL}

_NEEDS: Mapping[str, str] = {
    "shared_memory_threshold_bytes": "shared_memory_handle_bytes",
    "shared_memory_handle_bytes": "shared_memory_threshold_bytes",
    **{
        f"{way}_{figure}": f"{way}_{needed}"
        for way in ("sent", "received")
        for figure, needed in (
            ("large_message_bytes", "large_message_bandwidth_bytes_per_second"),
            ("large_message_bandwidth_bytes_per_second", "large_message_bytes"),
        )
    },
}
"""Key -> the one without which it is of no use."""


@dataclass(frozen=True, slots=True)
class MessageCost:
    """What a message with one or more tensors costs, or as many as the arrays have entries."""

    wire_bytes: tuple[Any, ...]
    """By tensor; what the message itself adds is with the first."""
    seconds: tuple[Any, ...] | None
    """By tensor, one after the other; latency is with the first. None without a bandwidth."""
    peak_buffer_bytes: Any
    """The most payload that either end must hold at one time to pass it on: what lies in shared
    memory, and the largest piece of the rest."""


def message_cost(link: Link, payloads: Sequence[Any], direction: str) -> MessageCost:
    """The cost of tensors of ``payloads`` bytes that go as one message.

    ``direction`` is that of a transfer: ``send``, ``receive`` or ``peer``. Nothing overlaps: not
    serialising with sending, nor one piece with the next. Payloads may be arrays of int64, for as many
    messages at once.
    """
    handle, framing = link.shared_memory_handle_bytes, _of(link, direction, "tensor_framing_bytes")
    shared = [
        (payload < link.shared_memory_threshold_bytes) & (payload > handle) for payload in payloads
    ]
    wire = [
        payload + lies * (handle - payload) + framing
        for payload, lies in zip(payloads, shared, strict=True)
    ]
    in_memory = sum(payload * lies for payload, lies in zip(payloads, shared, strict=True))
    rest = sum(payloads) - in_memory
    piece = rest if link.chunk_bytes is None else _smaller(link.chunk_bytes, rest)
    pieces = -(-rest // (piece + (piece == 0))) + (rest == 0)
    wire[0] = wire[0] + pieces * _of(link, direction, "message_framing_bytes")
    peak = in_memory + piece

    if not link.timed(direction):
        return MessageCost(tuple(wire), None, peak)
    usual, of_large = _bandwidths(link, direction)
    each_byte = _serialisation(link, direction)
    seconds = [
        on_wire / usual + payload * each_byte
        for on_wire, payload in zip(wire, payloads, strict=True)
    ]
    least = _of(link, direction, "large_message_bytes")
    if least is not None:
        tail = rest - rest // (piece + (piece == 0)) * piece
        in_large = (rest - tail) * (piece >= least) + tail * (tail >= least)
        slower = in_large / (rest + (rest == 0)) * (1 / of_large - 1 / usual)
        seconds = [each + on_wire * slower for each, on_wire in zip(seconds, wire, strict=True)]
    seconds[0] = seconds[0] + pieces * _message_toll(link, direction)
    return MessageCost(tuple(wire), tuple(seconds), peak)


def round_trip_seconds(link: Link, sent_bytes: int, received_bytes: int) -> float | None:
    """What a message to a device and one back take; None where a bandwidth is not known."""
    there = message_cost(link, [sent_bytes], "send").seconds
    back = message_cost(link, [received_bytes], "receive").seconds
    return None if there is None or back is None else sum(there) + sum(back)


def _smaller(one: Any, other: Any) -> Any:
    """Of two numbers or arrays."""
    return one + (other < one) * (other - one)


_FOLDER = files("costmodels") / "data" / "links"


def link_names() -> list[str]:
    """The links that come with cutedge."""
    return shipped_names(_FOLDER)


def load_link(name: str) -> Link:
    """A link by its name, or by the path of a TOML file. Raises InputError naming file and key.

    Case, hyphens, spaces and underscores of a name are no matter.

    >>> load_link("PCIe5_x16").name
    'pcie5-x16'
    """
    return _parse(*find_table(name, "link", _FOLDER))


def _parse(path: Path, table: dict[str, Any]) -> Link:
    check_figure_keys(table, path, required=("description", *REQUIRED), optional=OPTIONAL)
    description = table.pop("description")
    if not isinstance(description, str):
        raise InputError(f"{path}: description must be text")
    for key, other in _NEEDS.items():
        if key in table and other not in table:
            raise InputError(f"{path}: key {other!r} is missing: {key} is of no use without it")
    read = {key: FIGURES[key].read(f"{path}: [{key}]", entry) for key, entry in table.items()}
    figures: dict[str, Any] = {key: value for key, (value, _) in read.items()}
    sources = {key: source for key, (_, source) in read.items()}
    for way in ("sent", "received"):
        if (
            f"{way}_large_message_bytes" in table
            and f"{way}_bandwidth_bytes_per_second" not in table
        ):
            raise InputError(
                f"{path}: key '{way}_bandwidth_bytes_per_second' is missing: that of large messages "
                "is in place of it"
            )
    return Link(path.stem, description, **figures, sources=sources)
