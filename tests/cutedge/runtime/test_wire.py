"""Messages between two ends of a real socket: what arrives, and every byte that it takes."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costmodels.links import Link, load_link, message_cost
from cutedge.runtime import RunError
from cutedge.runtime.wire import (
    HANDLE_BYTES,
    MESSAGE_BYTES,
    TENSOR_BYTES,
    Carriage,
    Channel,
    Moved,
    Spec,
    greet,
    welcome,
)
from tests.support.examples import examples
from tracer.graph import ITEM_BYTES

EXAMPLES = examples(50, derandomize=True)
PLAIN = load_link("unix-socket")
SHARED = replace(PLAIN, shared_memory_threshold_bytes=2**16, shared_memory_handle_bytes=16)
TOKEN = "0123456789abcdef"
SESSION = os.getpid().to_bytes(4, "big")  # others test at the same time
"""Begins the names of both ends' shared memory."""


class Tap:
    """A socket that keeps what passes it, both ways."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.out, self.came = bytearray(), bytearray()

    def send(self, data: Any) -> int:
        sent = self.connection.send(data)
        self.out += bytes(data[:sent])
        return sent

    def recv_into(self, view: Any) -> int:
        got = self.connection.recv_into(view)
        self.came += bytes(view[:got])
        return got

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


Ends = tuple[Channel, Channel, Tap]


@pytest.fixture
def ends() -> Iterator[Callable[..., Ends]]:
    """``ends(carriage)``: two ends of a connection, and what passes the first one's socket."""
    made: list[Channel] = []

    def connect(carriage: Carriage | None = None, timeout: float = 10.0) -> Ends:
        here, there = socket.socketpair()
        tap = Tap(here)
        pair = [
            Channel(end, name, timeout, carriage or Carriage(), session=SESSION)  # type: ignore[arg-type]
            for end, name in ((tap, "there"), (there, "here"))
        ]
        made.extend(pair)
        return pair[0], pair[1], tap

    yield connect
    for channel in made:
        channel.close()


def together(*steps: Callable[[], Any]) -> list[Any]:
    """What each of some functions returns, all of them running at once."""
    found: list[Any] = [None] * len(steps)

    def carry_out(place: int) -> None:
        try:
            found[place] = steps[place]()
        except RunError as error:
            found[place] = error

    threads = [Thread(target=carry_out, args=(place,), daemon=True) for place in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "an end waits forever"
    return found


def spec_of(tensor: torch.Tensor, wire_dtype: str | None = None) -> Spec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Spec(
        wire_dtype if wire_dtype and tensor.is_floating_point() else dtype, tuple(tensor.shape)
    )


def crossed(
    pair: Ends, tensors: Sequence[torch.Tensor], wire_dtype: str | None = None
) -> tuple[list[torch.Tensor], Moved, Moved]:
    """Tensors after a message from the first end to the second, and what each end counted."""
    here, there, _ = pair
    expected = {n: spec_of(tensor, wire_dtype) for n, tensor in enumerate(tensors)}
    dtypes = {n: spec_of(tensor).dtype for n, tensor in enumerate(tensors)}
    went, came = together(
        lambda: here.send(7, list(enumerate(tensors)), expected),
        lambda: there.receive(7, expected, dtypes),
    )
    for one in (went, came):
        if isinstance(one, RunError):
            raise one
    arrived, moved = came
    return [arrived[n] for n in range(len(tensors))], went, moved


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit, so that what is not a number is compared too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (one, other)]
    return torch.equal(*raw)


def random_tensor(dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Random bytes as a tensor: every number there is, infinities and what is none included."""
    kind = getattr(torch, dtype)
    if kind == torch.bool:
        return torch.rand(shape) < 0.5
    generator = torch.Generator().manual_seed(len(shape))
    flat = torch.randint(
        256, (torch.Size(shape).numel() * kind.itemsize,), dtype=torch.uint8, generator=generator
    )
    return flat.view(kind).reshape(shape)


# --- tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in ITEM_BYTES if hasattr(torch, name)])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_every_dtype_arrives_bit_by_bit(
    dtype: str, shape: tuple[int, ...], ends: Callable[..., Ends]
) -> None:
    tensor = random_tensor(dtype, shape)
    [arrived], went, came = crossed(ends(), [tensor])
    assert equal(arrived, tensor)
    assert went.payload_bytes == came.payload_bytes == tensor.numel() * ITEM_BYTES[dtype]


BASE = torch.arange(120.0).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE.transpose(1, 2),
        BASE.permute(3, 1, 0, 2),
        BASE.mT.transpose(0, 1),
        BASE[1:],
        BASE.reshape(-1, 5).t(),
        BASE[:1].transpose(0, 3),
    ],
)
def test_what_fills_its_memory_has_the_same_strides_afterwards(
    tensor: torch.Tensor, ends: Callable[..., Ends]
) -> None:
    [arrived], *_ = crossed(ends(), [tensor])
    assert torch.equal(arrived, tensor)
    long = [axis for axis, size in enumerate(tensor.shape) if size > 1]  # others may have any
    assert [arrived.stride(a) for a in long] == [tensor.stride(a) for a in long]


@pytest.mark.parametrize(
    "tensor",
    [
        BASE[:, :1].expand(2, 3, 4, 5),
        torch.tensor(2.0).expand(4, 4),
        BASE[:, 1:, ::2, 3:],
        BASE.flip(0)[..., 2],
        torch.view_as_complex(BASE.reshape(-1, 2)).conj(),
        torch.view_as_complex(BASE.reshape(-1, 2)).conj().imag,
        BASE.clone().requires_grad_(),
    ],
)
def test_views_arrive_as_what_they_show(tensor: torch.Tensor, ends: Callable[..., Ends]) -> None:
    [arrived], went, _ = crossed(ends(), [tensor])
    assert torch.equal(arrived, tensor)
    assert arrived.is_contiguous()
    assert went.payload_bytes == tensor.numel() * tensor.element_size()


def test_more_axes_than_a_header_has_room_for_are_refused(ends: Callable[..., Ends]) -> None:
    crossed(ends(), [torch.zeros([1] * 16)])
    here, *_ = ends()
    with pytest.raises(RunError, match="a tensor of 17 axes cannot cross: 16 at most"):
        here.send(0, [(0, torch.zeros([1] * 17))])


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_floats_cross_in_the_wires_dtype_and_nothing_else_does(
    wire_dtype: str, ends: Callable[..., Ends]
) -> None:
    kind = getattr(torch, wire_dtype)
    tensors = [
        BASE,
        BASE.to(torch.bfloat16),
        torch.arange(5),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]),
    ]
    arrived, went, _ = crossed(ends(), tensors, wire_dtype)
    for one, other in zip(arrived, tensors, strict=True):
        floats = other.is_floating_point()
        assert equal(one, other.to(kind).to(other.dtype) if floats else other)
    assert went.payload_bytes == 240 * kind.itemsize + 5 * 8 + 2 + 8


# --- bytes ----------------------------------------------------------------------------------------


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"cutedge-{SESSION.hex()}")}


links = st.builds(
    lambda chunk, threshold, handle: replace(
        PLAIN,
        chunk_bytes=chunk,
        shared_memory_threshold_bytes=threshold,
        shared_memory_handle_bytes=handle,
    ),
    st.none() | st.integers(1, 300),
    st.sampled_from([0, 1, 15, 16, 17, 18, 40, 299, 1000]),
    st.sampled_from([16, 17, 31]),
)


@EXAMPLES
@given(links, st.lists(st.integers(0, 400), min_size=1, max_size=5), st.booleans())
def test_the_bytes_on_the_socket_are_those_of_the_cost_model(
    link: Link, payloads: list[int], towards_home: bool
) -> None:
    here, there = socket.socketpair()
    one, other = (
        Channel(end, "other", 10.0, Carriage.of(link), session=SESSION) for end in (here, there)
    )
    pair = (other, one) if towards_home else (one, other)
    before = segments()
    try:
        tensors = [random_tensor("uint8", [payload]) for payload in payloads]
        arrived, went, came = crossed((*pair, Tap(here)), tensors)
        assert all(map(torch.equal, arrived, tensors))
        assert segments() == before
    finally:
        one.close()
        other.close()
    predicted = sum(message_cost(link, payloads, "receive" if towards_home else "send").wire_bytes)
    assert went.wire_bytes == came.wire_bytes == predicted
    assert pair[0].sent_bytes == pair[1].received_bytes == predicted
    assert went.payload_bytes == came.payload_bytes == sum(payloads)


@pytest.mark.parametrize(
    ("link", "wire"),
    [
        (PLAIN, 24 + 2 * 24 + 600),
        (replace(PLAIN, chunk_bytes=250), 3 * 24 + 2 * 24 + 600),
        (SHARED, 24 + 2 * (24 + 16)),  # 200 and 400 bytes: each lies in shared memory
        (replace(SHARED, chunk_bytes=250), 24 + 2 * (24 + 16)),
        (replace(SHARED, shared_memory_threshold_bytes=400), 24 + (24 + 16) + 24 + 400),
        (
            replace(SHARED, shared_memory_threshold_bytes=400, chunk_bytes=250),
            2 * 24 + (24 + 16) + 24 + 400,
        ),
    ],
)
def test_bytes_are_counted_where_they_pass(
    link: Link, wire: int, ends: Callable[..., Ends]
) -> None:
    pair = ends(Carriage.of(link))
    tensors = [torch.zeros(50), random_tensor("uint8", [400])]
    arrived, went, came = crossed(pair, tensors)
    assert all(map(torch.equal, arrived, tensors))
    assert len(pair[2].out) == wire == went.wire_bytes == came.wire_bytes
    assert (MESSAGE_BYTES, TENSOR_BYTES, HANDLE_BYTES) == (24, 24, 16)


def test_a_message_without_tensors_is_framing_alone(ends: Callable[..., Ends]) -> None:
    arrived, went, came = crossed(ends(Carriage.of(SHARED)), [])
    assert not arrived
    assert went.wire_bytes == came.wire_bytes == 24


def test_both_ends_may_count_on_a_long_message_being_taken(ends: Callable[..., Ends]) -> None:
    tensor = torch.ones(2**20)
    expected, dtypes = {0: spec_of(tensor)}, {0: "float32"}
    here, there, _ = ends()

    def ask() -> Any:
        here.send(0, [(0, tensor)])
        return here.receive(0, expected, dtypes)

    def answer() -> Any:
        arrived, _ = there.receive(0, expected, dtypes)
        there.send(0, [(0, arrived[0])])

    (arrived, _), _ = together(ask, answer)
    assert torch.equal(arrived[0], tensor)


def test_shared_memory_is_private_and_goes_with_its_channel(ends: Callable[..., Ends]) -> None:
    before = segments()
    here, *_ = ends(Carriage.of(SHARED))
    here.send(0, [(0, torch.ones(100))])  # nobody reads it
    [made] = segments() - before
    assert made.startswith(f"cutedge-{here.session.hex()}")
    assert (Path("/dev/shm") / made).stat().st_mode & 0o777 == 0o600
    here.close()
    assert segments() == before


def test_no_room_for_shared_memory_is_an_error(
    ends: Callable[..., Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    here, *_ = ends(Carriage.of(SHARED))
    with pytest.raises(RunError, match=r"400 bytes of shared memory cannot be had \(No space left"):
        here.send(0, [(0, torch.ones(100))])
    here.close()
    assert not [name for name in segments() if here.session.hex() in name]


def test_a_handle_on_another_machines_memory_is_refused(ends: Callable[..., Ends]) -> None:
    here, there, _ = ends(Carriage.of(SHARED))
    here.send(0, [(0, torch.ones(100))])
    for path in here.segments:
        path.unlink()
    with pytest.raises(RunError, match="a handle on shared memory that is not here"):
        there.receive(0, {0: Spec("float32", (100,))}, {0: "float32"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sent_tensor_framing_bytes": 25}, "link unix-socket is not what runs here"),
        ({"received_message_framing_bytes": 0}, "24 bytes of framing and a tensor 24"),
        (
            {"shared_memory_threshold_bytes": 9, "shared_memory_handle_bytes": 15},
            "a handle on shared memory takes 16 bytes here, not 15",
        ),
    ],
)
def test_only_links_with_this_framing_can_run(change: dict[str, int], message: str) -> None:
    with pytest.raises(RunError, match=message):
        Carriage.of(replace(PLAIN, **change))  # type: ignore[arg-type]


# --- who is there ---------------------------------------------------------------------------------


def test_two_that_know_the_token_know_each_other(ends: Callable[..., Ends]) -> None:
    here, there, tap = ends()
    _, role = together(lambda: greet(here, TOKEN, "home"), lambda: welcome(there, TOKEN))
    assert role == "home"
    passed = bytes(tap.out + tap.came)
    assert b"proof" in passed
    assert TOKEN.encode() not in passed


@pytest.mark.parametrize(("mine", "theirs"), [("another token of it", TOKEN), (TOKEN, "x" * 20)])
def test_a_wrong_token_is_refused_and_does_not_cross(
    mine: str, theirs: str, ends: Callable[..., Ends]
) -> None:
    here, there, tap = ends()
    found = together(lambda: greet(here, mine, "home"), lambda: welcome(there, theirs))
    assert [str(error) for error in found] == [
        "there: the token is wrong",
        "here does not know the token",
    ]
    passed = bytes(tap.out + tap.came)
    assert mine.encode() not in passed
    assert theirs.encode() not in passed


def test_a_worker_must_prove_the_token_too(ends: Callable[..., Ends]) -> None:
    here, there, _ = ends()

    def impostor() -> None:
        assert there.hear() == {"role": "home"}
        there.say(challenge="c")
        proof = there.hear()["proof"]  # all that it learns
        there.say(proof=proof)

    found, _ = together(lambda: greet(here, TOKEN, "home"), impostor)
    assert str(found) == "there does not know the token"


@pytest.mark.parametrize(
    "words", [{"proof": "é"}, {"proof": "\ud800", "role": "\ud800"}, {"proof": None}, {}]
)
def test_a_stranger_may_say_anything(words: dict[str, Any], ends: Callable[..., Ends]) -> None:
    here, there, _ = ends()
    here.say(**words)  # who it is
    here.say(**words)  # and its proof
    with pytest.raises(RunError, match="here does not know the token"):
        welcome(there, TOKEN)
