"""Packing for real: against decoders written from the formats, over sockets, and under attack."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given as examples_of
from hypothesis import strategies as st

from costmodels.packing import Form, load_packing
from cutedge.runtime import RunError
from cutedge.runtime.home import workers
from cutedge.runtime.packs import pack, unpack
from cutedge.runtime.verify import judge
from cutedge.runtime.wire import Channel, Spec
from tests.support.examples import examples
from tests.support.running import TOKEN, Listening, answer, is_right, listening, memory_peak, split
from tests.support.running import Split as Divided

Q8_0, Q4_0 = Form("blocks", bits=8, group=32), Form("blocks", bits=4, group=32)
ZSTD, LZ4 = Form("zstd", level=1), Form("lz4")
PLANES = Form("zstd", level=1, byte_planes=True)


def drawn(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def raw(view: memoryview) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(view), dtype=torch.uint8)
        if view.nbytes
        else torch.empty(0, dtype=torch.uint8)
    )


def there_and_back(form: Form, tensor: torch.Tensor) -> torch.Tensor:
    packed = raw(pack(form, tensor, tensor))
    return unpack(form, packed, tensor.dtype, tuple(tensor.shape))


# --- blocks ---------------------------------------------------------------------------------------


def decoded(data: bytes, bits: int, row: int) -> list[float]:
    """Rows of GGUF blocks as numbers, a byte at a time."""
    found: list[float] = []
    block = 34 if bits == 8 else 18
    blocks = -(-row // 32)
    for start in range(0, len(data), block * blocks):
        values: list[float] = []
        for at in range(start, start + block * blocks, block):
            (scale,) = struct.unpack_from("<e", data, at)
            body = data[at + 2 : at + block]
            if bits == 8:
                whole = [one - 256 if one > 127 else one for one in body]
            else:
                whole = [(one & 15) - 8 for one in body] + [(one >> 4) - 8 for one in body]
            values += [scale * one for one in whole]
        found += values[:row]
    return found


@examples(25)
@examples_of(
    st.lists(st.integers(1, 5), max_size=2),
    st.sampled_from([1, 31, 32, 33, 64, 100]),
    st.sampled_from([Q8_0, Q4_0]),
    st.integers(0, 1000),
    st.sampled_from([1.0, 1e-3, 3e4]),
)
def test_blocks_are_ggufs_and_near(rows, last, form, seed, size):
    tensor = drawn((*rows, last), seed) * size
    packed = bytes(pack(form, tensor, tensor))
    assert len(packed) == prod(rows) * -(-last // 32) * (34 if form.bits == 8 else 18)
    values = decoded(packed, form.bits, last)
    back = there_and_back(form, tensor)
    assert back.flatten().tolist() == pytest.approx(values, rel=1e-6)
    for row, other in zip(
        tensor.reshape(-1, last).split(1), back.reshape(-1, last).split(1), strict=True
    ):
        for a, b in zip(row[0].split(32), other[0].split(32), strict=True):
            # half a step; of 4 bits the end without a value of its own is a whole one off; what the
            # smallest scales of 16 bits lack is 2**-25, of 127 steps
            step = float(a.abs().max()) / (127 if form.bits == 8 else 8)
            off = 0.5 if form.bits == 8 else 1.0
            assert float((a - b).abs().max()) <= step * off * 1.07 + 127 * 2**-25


def test_blocks_of_odd_values():
    tensor = torch.zeros(4, 32)
    tensor[1, 3] = float("nan")
    tensor[2, 0] = torch.finfo(torch.float32).min  # as a mask has it
    tensor[3] = 5.0
    back = there_and_back(Q8_0, tensor)
    assert torch.equal(back[0], tensor[0])
    assert back[1].isnan().all()
    assert back[2, 0] == -127 * 65504  # the least that a scale of 16 bits has
    assert torch.allclose(back[3], tensor[3], rtol=1e-3)
    assert there_and_back(Q8_0, torch.tensor(3.0)).item() == pytest.approx(3.0, rel=1e-3)
    assert there_and_back(Q4_0, torch.empty(0, 5)).shape == (0, 5)


# --- whole numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_whole_numbers_by_hand(dtype, width):
    if width >= dtype.itemsize:
        return
    values = [0, 1, 255, *([256, 65535] if width > 1 else []), *([65536] if width > 2 else [])]
    values = [one for one in values if one <= torch.iinfo(dtype).max]
    tensor = torch.tensor([values], dtype=dtype)
    form = Form("range", bits=8 * width)
    packed = bytes(pack(form, tensor, tensor))
    assert packed == b"".join(one.to_bytes(width, "little") for one in values)
    assert torch.equal(there_and_back(form, tensor), tensor)


def test_bools_are_bits():
    tensor = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    form = Form("range", bits=1)
    assert bytes(pack(form, tensor, tensor)) == bytes([0b00011001, 1])
    assert torch.equal(there_and_back(form, tensor), tensor)


@pytest.mark.parametrize("value", [-1, 65536])
def test_a_number_out_of_its_range_does_not_cross(value):
    tensor = torch.tensor([3, value])
    with pytest.raises(RunError, match="are not in the 2 bytes that packing by range has"):
        pack(Form("range", bits=16), tensor, tensor)


# --- lossless -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [ZSTD, LZ4, PLANES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_what_is_compressed_is_the_same_to_the_bit(form, dtype):
    tensor = (drawn((64, 33)) * 3).round().to(dtype)
    packed = pack(form, tensor, tensor)
    assert 0 < packed.nbytes < tensor.nbytes
    back = unpack(form, raw(packed), dtype, (64, 33)).reshape(64, 33)
    assert torch.equal(back, tensor)


def test_what_does_not_shrink_is_left_as_it_is():
    noise = torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    for form in (ZSTD, LZ4, PLANES):
        assert bytes(pack(form, noise, noise)) == noise.numpy().tobytes()


def test_planes_put_like_bytes_together():
    tensor = torch.tensor([0x01020304, 0x11121314] * 50, dtype=torch.int32)
    packed = pack(PLANES, tensor, tensor)
    with pa.CompressedInputStream(pa.BufferReader(bytes(packed)), "zstd") as stream:
        assert (
            stream.read()
            == b"\x04\x14" * 50 + b"\x03\x13" * 50 + b"\x02\x12" * 50 + b"\x01\x11" * 50
        )


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("size", [0, 399, 401, 10**6])
def test_no_other_size_is_unpacked(codec, size):
    """Short ones would show what lay in memory before, long ones take more of it than there is."""
    packed = raw(memoryview(pa.Codec(codec).compress(b"a" * size)))
    with pytest.raises(RunError, match=r"has not its size when unpacked|is damaged"):
        unpack(Form(codec), packed, torch.float32, (100,))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_damage_is_an_error(codec):
    whole = bytearray(pa.Codec(codec).compress(bytes(range(200)) * 2))
    for data in (whole[:-1], whole[:9], b"\0" * 40, b"x", bytes(whole[:30]) + b"\xff" * 30):
        with pytest.raises(RunError, match=f"packed by {codec} "):
            unpack(Form(codec), raw(memoryview(bytes(data))), torch.float32, (100,))


# --- over sockets ---------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[Callable[[], tuple[Channel, Channel]]]:
    made: list[Channel] = []

    def connect() -> tuple[Channel, Channel]:
        pair = [Channel(end, "the other end", 10.0) for end in socket.socketpair()]  # type: ignore[arg-type]
        pair[1].session = pair[0].session
        made.extend(pair)
        return pair[0], pair[1]

    yield connect
    for channel in made:
        channel.close()


def crossed(pair: tuple[Channel, Channel], tensors: list[torch.Tensor], specs: list[Spec]) -> Any:
    """What arrives, or the error with which it does not; and what both ends counted."""
    here, there = pair
    expected = dict(enumerate(specs))
    dtypes = {n: str(one.dtype).removeprefix("torch.") for n, one in enumerate(tensors)}
    found: list[Any] = []

    def receive() -> None:
        try:
            found.append(there.receive(7, expected, dtypes))
        except RunError as error:
            found.append(error)

    thread = Thread(target=receive, daemon=True)
    thread.start()
    went = here.send(7, [*enumerate(tensors)], expected)
    thread.join(20)
    assert found, "the other end waits forever"
    return found[0], went


def test_packed_and_plain_in_one_message_with_strides_as_they_were(ends):
    base = drawn((4, 6, 40))
    tensors = [base, base.transpose(1, 2), base[:, ::2], torch.arange(50), base, base.bool(), base]
    specs = [
        Spec("float32", (4, 6, 40), Q8_0),
        Spec("float32", (4, 40, 6), Q8_0),
        Spec("bfloat16", (4, 3, 40), ZSTD),
        Spec("int64", (50,), Form("range", bits=8)),
        Spec("float32", (4, 6, 40)),
        Spec("bool", (4, 6, 40), Form("range", bits=1)),
        Spec("float32", (4, 6, 40), LZ4),
    ]
    (arrived, came), went = crossed(ends(), tensors, specs)
    assert [arrived[n].dtype for n in range(7)] == [one.dtype for one in tensors]
    assert arrived[1].stride() == base.transpose(1, 2).stride()
    assert torch.equal(arrived[0], there_and_back(Q8_0, base))
    assert torch.equal(arrived[1], there_and_back(Q8_0, base.transpose(1, 2)))
    assert torch.equal(arrived[2], tensors[2].bfloat16().float())
    assert all(torch.equal(arrived[n], tensors[n]) for n in (3, 4, 5, 6))
    # rows of 40 are 2 blocks, rows of 6 one; 960 bits
    exact = {0: 24 * 2 * 34, 1: 160 * 34, 3: 50, 4: 3840, 5: 120}
    assert {n: came.sizes[n] for n in exact} == exact
    assert came.sizes == went.sizes
    assert went.wire_bytes == came.wire_bytes == 24 + 7 * 24 + sum(went.sizes.values())
    assert went.packing_seconds.keys() == came.packing_seconds.keys() == {0, 1, 2, 3, 5, 6}


def test_a_message_that_says_another_size_takes_no_memory(ends):
    zeros = torch.zeros(1000)
    for sent, wanted, message in (
        (None, Q8_0, "a piece of 4000 bytes; 1 for call 7, a piece of 1088, were to come"),
        (Q8_0, ZSTD, "bytes"),  # 1088 bytes that are no frame
        (Q8_0, Q4_0, "a piece of 1088 bytes; 1 for call 7, a piece of 576, were to come"),
    ):
        here, there = ends()
        here.send(7, [(0, zeros)], {0: Spec("float32", (1000,), sent)})
        expected = {0: Spec("float32", (1000,), wanted)}
        with pytest.raises(RunError, match=message if wanted is not ZSTD else "is damaged"):
            there.receive(7, expected, {0: "float32"})
    here, there = ends()
    here.send(7, [(0, torch.zeros(1001))])
    expected = {0: Spec("float32", (1000,), ZSTD)}
    with pytest.raises(RunError, match="it is float32, 1 axes, at most 4000 bytes"):
        there.receive(7, expected, {0: "float32"})


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there() -> Iterator[Listening]:
    with listening() as worker:
        yield worker


def ran(one: Divided, worker: Listening) -> Any:
    with workers(["gpu"], remote={"gpu": worker.address}, token=TOKEN, timeout=60.0) as found:
        measured = one.run(found)
    graph = one.graph
    result = graph.inputs(len(graph.ops) - 1)[0].id
    return measured, judge(graph, one.traffic, measured, {result: answer()}, epsilon=2.0**-7)


@pytest.mark.parametrize("residency", ["run", "call"])
def test_a_run_moves_the_packed_bytes_that_were_predicted(residency, there):
    packings = [load_packing("q8_0"), load_packing("range")]
    one = split(packings=packings, residency=residency)
    assert {t.packing for t in one.traffic.transfers} == {"q8_0", "range", "plain"} - {
        "plain" if all(t.packing != "plain" for t in one.traffic.transfers) else ""
    }
    measured, verdict = ran(one, there)
    assert verdict.unequal == ()
    assert verdict.answer_equal
    assert verdict.max_abs_difference > 0  # it is not what it was
    assert verdict.total_payload_bytes_measured == one.traffic.totals.payload_bytes
    plain = split(residency=residency).traffic.totals.payload_bytes
    assert one.traffic.totals.payload_bytes < plain / 2
    assert len(measured.crossed) == len(one.traffic.transfers)


def test_a_run_without_loss_answers_the_same(there):
    one = split(packings=[load_packing("zstd")])
    plain = split()
    with workers(["gpu"], remote={"gpu": there.address}, token=TOKEN, timeout=60.0) as found:
        before = plain.run(found)  # a second plan in the same session takes the first one's place
        after = one.run(found)
    assert is_right(before, plain)
    assert torch.equal(before.results[0], after.results[0])
    assert sum(c.payload_bytes for c in after.crossed) < sum(
        c.payload_bytes for c in before.crossed
    )


# --- attacks --------------------------------------------------------------------------------------


def as_sent(one: Divided, worker: Listening, data: bytes) -> str:
    """What a worker says of a first call whose tensors are ``data`` each, as packed bytes."""
    caught: list[RunError] = []
    with (
        suppress(RunError),  # it is gone at the end
        workers(["gpu"], remote={"gpu": worker.address}, token=TOKEN, timeout=20.0) as found,
    ):
        channel = one.load(found).workers["gpu"].channel
        channel.say(do="begin")
        channel.hear()
        specs = {t: one.plan.crossing[t] for t in one.plan.calls[0].sent}
        body = b"".join(data for _ in specs)
        head = struct.pack("<2sBBIIIQ", b"ce", 2, 2, len(specs), 0, 0, len(body))
        for number, spec in specs.items():
            order = sum(axis << (4 * axis) for axis in range(len(spec.shape)))
            kind = [*_dtypes()].index(spec.dtype)
            head += struct.pack("<IBBHQQ", number, kind, len(spec.shape), 0, order, len(data))
        channel._out(head, body)
        try:
            channel.hear()
        except RunError as error:
            caught.append(error)
    return str(caught[0])


def _dtypes() -> list[str]:
    from tracer.graph import ITEM_BYTES

    return [*ITEM_BYTES]


def test_a_bomb_is_unpacked_no_further_than_its_tensor(there):
    """A gibibyte of zeros in some kilobytes; the tensor has a few."""
    one = split(packings=[replace(load_packing("zstd"), ratios={"float32": 0.5, "int64": 0.5})])
    zeros = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zeros, "zstd") as stream:
        for _ in range(64):
            stream.write(bytes(2**24))
    bomb = zeros.getvalue().to_pybytes()
    sent = max(one.plan.crossing[t].payload_bytes for t in one.plan.calls[0].sent)
    before = memory_peak(there.process.pid)
    said = as_sent(one, there, bomb)
    assert len(bomb) > sent
    assert "at most" in said  # longer than the tensor: refused by its length
    small = pa.Codec("zstd").compress(bytes(2**16)).to_pybytes()
    least = min(one.plan.crossing[t].payload_bytes for t in one.plan.calls[0].sent)
    assert len(small) < least
    assert "has not its size when unpacked" in as_sent(one, there, small)
    assert "is damaged" in as_sent(one, there, b"\x28\xb5\x2f\xfd" + b"\xff" * 20)
    assert memory_peak(there.process.pid) < before + 2**28
    assert is_right(ran(split(), there)[0], split())  # it serves the next run
