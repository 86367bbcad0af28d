"""The accounting on graphs small enough to count by hand, one case a rule."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum

import pytest

from costmodels.links import Link, Links, load_link
from partition.accounting import account, call_label
from partition.placement import PlacementError
from partition.wire_format import WireFormat
from tests.support.graphs import Builder, place, placement
from tracer.formula import parse
from tracer.graph import Kind, OpGraph

# Everywhere here batch is 1 and seq is 8, and an element of float32 is 4 bytes: a tensor of
# ("batch", "seq", n) has 32 n bytes.


def chain() -> OpGraph:
    """x -> linear -> softmax"""
    build = Builder()
    weight = build.parameter("weight", (6, 4))
    x = build.input("x", ("batch", "seq", 4))
    linear = build.op("linear", x, weight, shape=("batch", "seq", 6), kind=Kind.LINEAR)
    return build.finish(build.op("softmax", linear, shape=("batch", "seq", 6), kind=Kind.SOFTMAX))


def three_readers() -> OpGraph:
    """x is read by q, k and v, and they by mix"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 4))
    reads = [build.op(name, x, shape=("batch", "seq", 2)) for name in ("q", "k", "v")]
    return build.finish(build.op("mix", *reads, shape=("batch", "seq", 1)))


def square() -> OpGraph:
    """x times itself"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 4))
    return build.finish(build.op("mul", x, x, shape=("batch", "seq", 4)))


def constants() -> OpGraph:
    """table, from a buffer and from positions, is read by rotate and by scale after it"""
    build = Builder()
    frequencies = build.parameter("frequencies", (2,))
    x = build.input("x", ("batch", "seq", 4))
    positions = build.constant("positions", shape=("seq",), dtype="int64")
    table = build.constant("table", frequencies, positions, shape=("seq", 2))
    rotate = build.op("rotate", x, table, shape=("batch", "seq", 4))
    return build.finish(build.op("scale", rotate, table, shape=("batch", "seq", 4)))


def tied() -> OpGraph:
    """ids -> embed -> norm -> head, the head's weight being the embedding's"""
    build = Builder()
    table = build.parameter("embed.weight", (10, 4))
    head = build.parameter("head.weight", (10, 4), alias_of=table)
    scale = build.parameter("norm.weight", (4,))
    ids = build.input("ids", ("batch", "seq"), "int64")
    hidden = build.op("embed", table, ids, shape=("batch", "seq", 4), kind=Kind.EMBEDDING)
    normed = build.op("norm", hidden, scale, shape=("batch", "seq", 4), kind=Kind.NORM)
    return build.finish(
        build.op("head", normed, head, shape=("batch", "seq", 10), kind=Kind.LINEAR)
    )


def back_and_forth() -> OpGraph:
    """x -> a -> b, and c reads b, a and x"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 2))
    b = build.op("b", a, shape=("batch", "seq", 3))
    return build.finish(build.op("c", b, a, x, shape=("batch", "seq", 4)))


def kept_result() -> OpGraph:
    """x -> asked -> between, and last reads between and kept, which nothing else reads"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    kept = build.op("kept", x, shape=("batch", "seq", 2))
    asked = build.op("asked", x, shape=("batch", "seq", 3))
    between = build.op("between", asked, shape=("batch", "seq", 4))
    return build.finish(build.op("last", between, kept, shape=("batch", "seq", 5)))


def late_comer() -> OpGraph:
    """x -> a -> b -> c, and alone, last in order, needs no more than x"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 2))
    b = build.op("b", a, shape=("batch", "seq", 3))
    c = build.op("c", b, shape=("batch", "seq", 4))
    alone = build.op("alone", x, shape=("batch", "seq", 5))
    return build.finish(c, alone)


def relay() -> OpGraph:
    """x -> a -> b -> c, and d reads c and a"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 2))
    b = build.op("b", a, shape=("batch", "seq", 3))
    c = build.op("c", b, shape=("batch", "seq", 4))
    return build.finish(build.op("d", c, a, shape=("batch", "seq", 5)))


def fork() -> OpGraph:
    """x is read by a and by b, and they by join"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 2))
    b = build.op("b", x, shape=("batch", "seq", 3))
    return build.finish(build.op("join", a, b, shape=("batch", "seq", 4)))


def two_views() -> OpGraph:
    """proj -> (rows, columns) -> matmul, the two in the middle being views"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    proj = build.op("proj", x, shape=("batch", "seq", 4))
    rows = build.view("rows", proj)
    columns = build.view("columns", proj, ("batch", 4, "seq"))
    return build.finish(
        build.op("matmul", rows, columns, shape=("batch", "seq", "seq"), kind=Kind.MATMUL)
    )


def halves() -> OpGraph:
    """x and y -> split into one and two -> add of one and two, and three, which takes two"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    y = build.input("y", ("batch", "seq", 2))
    one, two = build.split("split", x, y, shapes=[("batch", "seq", 3), ("batch", "seq", 4)])
    add = build.op("add", one, two, shape=("batch", "seq", 5))
    three = build.op("three", two, shape=("batch", "seq", 6))
    return build.finish(add, three)


@dataclass(frozen=True)
class Case:
    graph: Callable[[], OpGraph]
    on: Mapping[str, list[str]]
    """The ops on each accelerator; the rest are at home, on ``tee``."""
    calls: list[tuple[str, list[str]]]
    transfers: list[tuple[str, str, str, int, int]]
    """(tensor, from, to, call, payload bytes)."""
    cut_edges: int
    resident: Mapping[str, int] = field(default_factory=dict)
    wire_dtype: str | None = None
    residency: str = "run"


CASES = {
    "an accelerator and back": Case(
        chain,
        {"gpu": ["linear"]},
        calls=[("gpu", ["linear"])],
        transfers=[
            ("x", "tee", "gpu", 0, 128),  # 8 x 4 x 4 bytes
            ("linear", "gpu", "tee", 0, 192),  # 8 x 6 x 4 bytes
        ],
        cut_edges=2,  # x to linear, linear to softmax
        resident={"gpu": 96},  # 6 x 4 x 4 bytes, only where the weight is read
    ),
    "all at home": Case(
        chain,
        {},
        calls=[],
        transfers=[],
        cut_edges=0,
        resident={"tee": 96},  # the same weight, read at home
    ),
    "one tensor read by three ops of the accelerator crosses once": Case(
        three_readers,
        {"gpu": ["q", "k", "v", "mix"]},
        calls=[("gpu", ["q", "k", "v", "mix"])],
        transfers=[
            ("x", "tee", "gpu", 0, 128),  # once for q, k and v
            ("mix", "gpu", "tee", 0, 32),  # q, k and v stay where mix reads them
        ],
        cut_edges=4,  # x to q, to k and to v, and mix to the output
    ),
    "three tensors read by one op at home cross each": Case(
        three_readers,
        {"gpu": ["q", "k", "v"]},
        calls=[("gpu", ["q", "k", "v"])],
        transfers=[
            ("x", "tee", "gpu", 0, 128),
            ("q", "gpu", "tee", 0, 64),
            ("k", "gpu", "tee", 0, 64),
            ("v", "gpu", "tee", 0, 64),
        ],
        cut_edges=6,  # three from x, one from each of q, k and v
    ),
    "a tensor read twice by one op crosses once": Case(
        square,
        {"gpu": ["mul"]},
        calls=[("gpu", ["mul"])],
        transfers=[("x", "tee", "gpu", 0, 128), ("mul", "gpu", "tee", 0, 128)],
        cut_edges=3,  # x to either argument, and mul to the output
    ),
    "constants never cross": Case(
        constants,
        {"gpu": ["rotate"]},
        calls=[("gpu", ["rotate"])],
        transfers=[("x", "tee", "gpu", 0, 128), ("rotate", "gpu", "tee", 0, 128)],
        cut_edges=2,  # none from table, which is on no device
        # On either side the table (8 x 2 x 4) and the buffer it is computed from (2 x 4); the
        # positions are read by nothing but the table and are gone once it is there.
        resident={"tee": 72, "gpu": 72},
    ),
    "tied weights count once a device": Case(
        tied,
        {"gpu": ["embed", "head"]},
        calls=[("gpu", ["embed"]), ("gpu", ["head"])],
        transfers=[
            ("ids", "tee", "gpu", 0, 64),  # 8 x 8 bytes
            ("embed", "gpu", "tee", 0, 128),
            ("norm", "tee", "gpu", 1, 128),
            ("head", "gpu", "tee", 1, 320),  # 8 x 10 x 4 bytes
        ],
        cut_edges=4,
        resident={"gpu": 160, "tee": 16},  # 10 x 4 x 4 once for both; the norm's 4 x 4
    ),
    "tied weights are on both devices when both read them": Case(
        tied,
        {"gpu": ["head"]},
        calls=[("gpu", ["head"])],
        transfers=[("norm", "tee", "gpu", 0, 128), ("head", "gpu", "tee", 0, 320)],
        cut_edges=2,
        resident={"gpu": 160, "tee": 176},  # 10 x 4 x 4; the same and the norm's 4 x 4
    ),
    "the wire dtype leaves token ids alone": Case(
        tied,
        {"gpu": ["embed", "head"]},
        calls=[("gpu", ["embed"]), ("gpu", ["head"])],
        transfers=[
            ("ids", "tee", "gpu", 0, 64),  # int64 as before
            ("embed", "gpu", "tee", 0, 64),  # 8 x 4 x 2 bytes
            ("norm", "tee", "gpu", 1, 64),
            ("head", "gpu", "tee", 1, 160),  # 8 x 10 x 2 bytes
        ],
        cut_edges=4,
        resident={"gpu": 160, "tee": 16},  # in memory nothing changes
        wire_dtype="bfloat16",
    ),
    "an accelerator keeps what it got and made": Case(
        back_and_forth,
        {"gpu": ["a", "c"]},
        calls=[("gpu", ["a"]), ("gpu", ["c"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("a", "gpu", "tee", 0, 64),  # b is at home
            ("b", "tee", "gpu", 1, 96),  # x and a are there already
            ("c", "gpu", "tee", 1, 128),
        ],
        cut_edges=5,  # x to a, a to b, b to c, x to c, c to the output
    ),
    "an accelerator that forgets is sent it again": Case(
        back_and_forth,
        {"gpu": ["a", "c"]},
        calls=[("gpu", ["a"]), ("gpu", ["c"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("a", "gpu", "tee", 0, 64),  # once, for b at home and for the next call
            ("b", "tee", "gpu", 1, 96),
            ("a", "tee", "gpu", 1, 64),
            ("x", "tee", "gpu", 1, 32),
            ("c", "gpu", "tee", 1, 128),
        ],
        cut_edges=5,
        residency="call",
    ),
    "a result of the accelerator's own stays": Case(
        kept_result,
        {"gpu": ["kept", "asked", "last"]},
        calls=[("gpu", ["kept", "asked"]), ("gpu", ["last"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("asked", "gpu", "tee", 0, 96),
            ("between", "tee", "gpu", 1, 128),
            ("last", "gpu", "tee", 1, 160),
        ],
        cut_edges=5,  # two from x, then one for each of the other three transfers
    ),
    "a result that a later call needs comes home and goes out": Case(
        kept_result,
        {"gpu": ["kept", "asked", "last"]},
        calls=[("gpu", ["kept", "asked"]), ("gpu", ["last"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("kept", "gpu", "tee", 0, 64),  # for no reader at home
            ("asked", "gpu", "tee", 0, 96),
            ("between", "tee", "gpu", 1, 128),
            ("kept", "tee", "gpu", 1, 64),
            ("last", "gpu", "tee", 1, 160),
        ],
        cut_edges=5,
        residency="call",
    ),
    "an op joins the earliest call that its inputs allow": Case(
        late_comer,
        {"gpu": ["a", "c", "alone"]},
        calls=[("gpu", ["a", "alone"]), ("gpu", ["c"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("a", "gpu", "tee", 0, 64),
            ("alone", "gpu", "tee", 0, 160),  # with the call that makes it, though c is earlier
            ("b", "tee", "gpu", 1, 96),
            ("c", "gpu", "tee", 1, 128),
        ],
        cut_edges=6,  # x to a and to alone, a, b, c and alone onwards
    ),
    "from one accelerator to another": Case(
        relay,
        {"gpu": ["a"], "npu": ["b", "d"]},
        # a in step 1; b in step 2, for a peer takes a step; c at home stays in it; d in step 3.
        calls=[("gpu", ["a"]), ("npu", ["b"]), ("npu", ["d"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("a", "gpu", "npu", 1, 64),  # with the first of the two calls that need it
            ("b", "npu", "tee", 1, 96),
            ("c", "tee", "npu", 2, 128),
            ("d", "npu", "tee", 2, 160),
        ],
        cut_edges=6,  # a is read by b and by d
    ),
    "from one accelerator to another by way of home": Case(
        relay,
        {"gpu": ["a"], "npu": ["b", "d"]},
        calls=[("gpu", ["a"]), ("npu", ["b"]), ("npu", ["d"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("a", "gpu", "tee", 0, 64),  # comes home once
            ("a", "tee", "npu", 1, 64),  # and goes out with either call
            ("b", "npu", "tee", 1, 96),
            ("c", "tee", "npu", 2, 128),
            ("a", "tee", "npu", 2, 64),
            ("d", "npu", "tee", 2, 160),
        ],
        cut_edges=6,
        residency="call",
    ),
    "two accelerators in one step are two calls by first op": Case(
        fork,
        {"gpu": ["b"], "npu": ["a"]},
        calls=[("npu", ["a"]), ("gpu", ["b"])],  # a is before b, whatever their devices' names
        transfers=[
            ("x", "tee", "npu", 0, 32),  # one tensor, two destinations
            ("a", "npu", "tee", 0, 64),
            ("x", "tee", "gpu", 1, 32),
            ("b", "gpu", "tee", 1, 96),
        ],
        cut_edges=4,
    ),
    "views on the accelerator: what they look at crosses": Case(
        two_views,
        {"gpu": ["rows", "columns", "matmul"]},
        calls=[("gpu", ["rows", "columns", "matmul"])],
        transfers=[
            ("proj", "tee", "gpu", 0, 128),
            ("matmul", "gpu", "tee", 0, 256),  # 8 x 8 x 4 bytes
        ],
        cut_edges=3,  # proj to either view, matmul to the output
    ),
    "views at home: each of them crosses": Case(
        two_views,
        {"gpu": ["matmul"]},
        calls=[("gpu", ["matmul"])],
        transfers=[
            ("rows", "tee", "gpu", 0, 128),
            ("columns", "tee", "gpu", 0, 128),
            ("matmul", "gpu", "tee", 0, 256),
        ],
        cut_edges=3,
    ),
    "of two outputs each crosses where it is read": Case(
        halves,
        {"gpu": ["split", "add"]},
        calls=[("gpu", ["split", "add"])],
        transfers=[
            ("x", "tee", "gpu", 0, 32),
            ("y", "tee", "gpu", 0, 64),
            ("split.1", "gpu", "tee", 0, 128),  # for three; split.0 is read by add alone
            ("add", "gpu", "tee", 0, 160),
        ],
        cut_edges=4,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_by_hand(case):
    graph = case.graph()
    traffic = account(
        graph,
        place(graph, case.on),
        Links(load_link("none")),
        wire=WireFormat(case.wire_dtype),
        residency=case.residency,
    )
    calls = [(call.device, [graph.ops[op].name for op in call.ops]) for call in traffic.calls]
    assert calls == case.calls
    transfers = [
        (t.tensor.name, t.src_device, t.dst_device, t.call, t.payload_bytes)
        for t in traffic.transfers
    ]
    assert sorted(transfers) == sorted(case.transfers)
    assert traffic.cut_edges == case.cut_edges
    assert {d: size for d, size in traffic.resident_bytes.items() if size} == case.resident
    total = sum(payload for *_, payload in case.transfers)
    # The link adds nothing.
    assert traffic.totals.payload_bytes == traffic.totals.wire_bytes == total
    assert parse(traffic.total_expr).evaluate({"batch": 1, "seq": 8, "past": 0}) == total


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_call_sends_before_it_receives(case):
    graph = case.graph()
    where = place(graph, case.on)
    transfers = account(graph, where, Links(load_link("none")), residency=case.residency).transfers
    order = ["send", "peer", "receive"]
    ranks = [(t.call, order.index(t.direction), t.tensor.id) for t in transfers]
    assert ranks == sorted(ranks)
    assert [t.id for t in transfers] == list(range(len(transfers)))


def test_what_waits_for_nothing_is_in_the_first_call():
    """noise reads no input and is no constant; home asks for it, with what else it asks for."""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    noise = build.op("noise", shape=("batch", "seq", 2))
    add = build.op("add", x, noise, shape=("batch", "seq", 3))
    graph = build.finish(build.op("last", add, noise, shape=("batch", "seq", 4)))
    for on, sent, received in (
        (["noise"], 0, 64),  # home adds
        (["noise", "add"], 32, 64 + 96),  # noise too is read at home
        (["noise", "add", "last"], 32, 128),
    ):
        traffic = account(graph, place(graph, {"gpu": on}), Links(load_link("none")))
        (call,) = traffic.calls
        assert [graph.ops[op].name for op in call.ops] == on
        assert (call.sent_payload_bytes, call.received_payload_bytes) == (sent, received)


def test_framing():
    """82 bytes a message out however many tensors it has, 51 bytes a tensor that comes back."""
    graph = halves()
    traffic = account(graph, place(graph, {"gpu": ["split"]}), Links(load_link("zmq-ipc")))
    (call,) = traffic.calls
    assert (call.sent_payload_bytes, call.sent_wire_bytes) == (96, 178)  # x 32, y 64; + 82
    # split.0 96, split.1 128; + 2 x 51
    assert (call.received_payload_bytes, call.received_wire_bytes) == (224, 326)
    assert (traffic.totals.payload_bytes, traffic.totals.wire_bytes) == (320, 504)


def test_framing_between_accelerators_and_by_call():
    graph = relay()
    on = {"gpu": ["a"], "npu": ["b", "d"]}
    traffic = account(graph, place(graph, on), Links(load_link("zmq-ipc")))
    wire = [(call.sent_wire_bytes, call.received_wire_bytes) for call in traffic.calls]
    assert wire == [
        (32 + 82, 0),  # x out; a goes to the other accelerator, not home
        (0, 96 + 51),  # nothing from home; b comes back
        (128 + 82, 160 + 51),  # c out, d back
    ]
    totals = traffic.totals
    assert (totals.peer_payload_bytes, totals.peer_wire_bytes) == (64, 146)  # a, as one message
    directions = {t.tensor.name: t.direction for t in traffic.transfers}
    assert directions == {"x": "send", "a": "peer", "b": "receive", "c": "send", "d": "receive"}


TIMED = Link(
    "timed",
    "by hand",
    100,
    0,
    0,
    20,
    sent_bandwidth_bytes_per_second=100,
    received_bandwidth_bytes_per_second=10,
    sent_latency_seconds=1.0,
    received_latency_seconds=2.0,
    sent_serialisation_seconds_per_byte=0.5,
    received_encryption_seconds_per_byte=0.25,
)


def test_seconds_of_transfers_calls_and_the_run():
    """Framing and latency of a message are with its first tensor, the rest is by the byte."""
    traffic = account(halves(), place(halves(), {"gpu": ["split"]}), Links(TIMED))
    assert [(t.tensor.name, t.seconds) for t in traffic.transfers] == [
        ("x", (32 + 100) / 100 + 32 / 2 + 1),
        ("y", 64 / 100 + 64 / 2),
        ("split.0", (96 + 20) / 10 + 96 / 4 + 2),
        ("split.1", (128 + 20) / 10 + 128 / 4),
    ]
    totals = traffic.totals
    assert totals.sent_seconds == pytest.approx(18.32 + 32.64)
    assert totals.received_seconds == pytest.approx(37.6 + 46.8)
    assert totals.peer_seconds == 0
    assert traffic.calls[0].seconds == totals.seconds == pytest.approx(50.96 + 84.4)


def test_seconds_between_accelerators_are_those_of_sending():
    on = {"gpu": ["a"], "npu": ["b", "d"]}
    traffic = account(relay(), place(relay(), on), Links(TIMED))
    (a,) = [t for t in traffic.transfers if t.direction == "peer"]
    assert a.payload_bytes == 64
    assert a.seconds == traffic.totals.peer_seconds == (64 + 100) / 100 + 64 / 2 + 1
    assert fsum(c.seconds for c in traffic.calls) == pytest.approx(traffic.totals.seconds)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, (True, True, True)),
        ({"sent_bandwidth_bytes_per_second": None}, (False, True, False)),
        ({"received_bandwidth_bytes_per_second": None}, (True, False, False)),
    ],
)
def test_seconds_are_null_where_the_link_has_no_bandwidth(changes, known):
    link = replace(TIMED, **changes)
    traffic = account(halves(), place(halves(), {"gpu": ["split"]}), Links(link))
    found = {t.direction: t.seconds is not None for t in traffic.transfers}
    totals = traffic.totals
    assert (found["send"], found["receive"], totals.seconds is not None) == known
    assert (totals.sent_seconds is not None, totals.received_seconds is not None) == known[:2]
    assert (traffic.calls[0].seconds is not None) == known[2]
    # Nothing crosses, but nothing is said of it either.
    assert (
        account(halves(), place(halves(), {}), Links(link)).totals.seconds is not None
    ) == known[2]


def test_the_peak_buffer_is_the_largest_message_or_chunk():
    graph = halves()  # sends 32 + 64 bytes, receives 96 + 128
    where = place(graph, {"gpu": ["split"]})
    assert account(graph, where, Links(load_link("none"))).peak_buffer_bytes == 96 + 128
    chunked = account(graph, where, Links(replace(load_link("zmq-ipc"), chunk_bytes=50)))
    assert chunked.peak_buffer_bytes == 50
    # Two chunks out at 82 bytes each; replies have no framing by the message.
    assert [(c.sent_wire_bytes, c.received_wire_bytes) for c in chunked.calls] == [
        (96 + 2 * 82, 224 + 2 * 51)
    ]
    assert account(graph, place(graph, {}), Links(TIMED)).peak_buffer_bytes == 0


def test_two_senders_are_two_messages():
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 2))
    graph = build.finish(build.op("b", a, x, shape=("batch", "seq", 3)))
    traffic = account(
        graph, place(graph, {"gpu": ["a"], "npu": ["b"]}), Links(load_link("zmq-ipc"))
    )
    # x goes to either accelerator, and a from one to the other beside x.
    assert (traffic.totals.sent_payload_bytes, traffic.totals.sent_wire_bytes) == (64, 228)
    assert (traffic.totals.peer_payload_bytes, traffic.totals.peer_wire_bytes) == (64, 146)


def test_a_concrete_trace_has_bytes_and_no_formulas():
    build = Builder(symbolic=False)
    x = build.input("x", (3, 5), "int64")
    graph = build.finish(build.op("a", x, shape=(7,), dtype="bool"))
    traffic = account(graph, place(graph, {"gpu": ["a"]}), Links(load_link("none")))
    sizes = [(t.tensor.name, t.payload_bytes, t.bytes_expr) for t in traffic.transfers]
    assert sizes == [("x", 120, None), ("a", 7, None)]  # 3 x 5 x 8 bytes, 7 x 1
    assert traffic.total_expr is None


def test_the_total_as_a_formula():
    graph = chain()
    total_expr = account(
        graph, place(graph, {"gpu": ["linear"]}), Links(load_link("none"))
    ).total_expr
    # 4 + 6 elements a token, 4 bytes each, at sizes other than the trace's
    assert parse(total_expr).evaluate({"batch": 3, "seq": 100, "past": 0}) == 3 * 100 * 40


@pytest.mark.parametrize(
    ("dtype", "wire_dtype", "crosses_as", "expected"),
    [
        # 3 elements a token
        ("float32", None, "float32", "12*batch*seq"),
        ("float32", "float32", "float32", "12*batch*seq"),
        ("float32", "bfloat16", "bfloat16", "6*batch*seq"),
        ("float32", "float8_e4m3fn", "float8_e4m3fn", "3*batch*seq"),
        ("float16", "float32", "float32", "12*batch*seq"),
        ("float16", "bfloat16", "bfloat16", "6*batch*seq"),
        ("int64", "bfloat16", "int64", "24*batch*seq"),
        ("bool", "float32", "bool", "3*batch*seq"),
        ("complex64", "bfloat16", "complex64", "24*batch*seq"),
    ],
)
def test_bytes_on_the_wire_as_a_formula(dtype, wire_dtype, crosses_as, expected):
    build = Builder(batch=2, seq=5)
    x = build.input("x", ("batch", "seq", 3), dtype)
    graph = build.finish(build.op("a", x, shape=(1,)))
    where = place(graph, {"gpu": ["a"]})
    sent = account(graph, where, Links(load_link("none")), wire=WireFormat(wire_dtype)).transfers[0]
    assert sent.wire_dtype == crosses_as
    assert parse(sent.bytes_expr) == parse(expected)
    assert sent.payload_bytes == parse(expected).evaluate({"batch": 2, "seq": 5, "past": 0})


def test_half_an_odd_number_of_bytes_is_rounded_with_the_tensor():
    """seq // 2 + 1 elements of 4 bytes are as many of 2, at odd and at even seq."""
    for seq in (4, 5):
        build = Builder(seq=seq)
        x = build.input("x", ("seq//2 + 1",))
        graph = build.finish(build.op("a", x, shape=(1,)))
        where = place(graph, {"gpu": ["a"]})
        sent = account(
            graph, where, Links(load_link("none")), wire=WireFormat("bfloat16")
        ).transfers[0]
        assert sent.payload_bytes == 2 * (seq // 2 + 1)
        assert parse(sent.bytes_expr).evaluate({"batch": 1, "seq": seq}) == sent.payload_bytes


ATTN = "model.layers.0.attn"
MOE = "model.layers.1.mlp.experts"
LABELS = {
    # name: (kind, module path, label of what it makes, what it reads beside x)
    "q": (Kind.LINEAR, f"{ATTN}.q_proj", "q", []),
    "k": (Kind.LINEAR, f"{ATTN}.k_proj", "k", []),
    "matmul_0": (Kind.MATMUL, ATTN, "attention_scores", ["q", "k"]),
    "softmax_0": (Kind.SOFTMAX, ATTN, "attention_probs", ["matmul_0"]),
    "matmul_1": (Kind.MATMUL, ATTN, "attention_output", ["softmax_0"]),
    "matmul_2": (Kind.MATMUL, f"{ATTN}.rotary", None, []),
    "linear_3": (Kind.LINEAR, f"{MOE}.3", None, []),
    "linear_4": (Kind.LINEAR, f"{MOE}.3.up", None, []),
    "embedding_0": (Kind.EMBEDDING, "model.embed_tokens", None, []),
    "linear_9": (Kind.LINEAR, "", None, []),
    "add_12": (Kind.ELEMENTWISE, f"{ATTN}.rotary", None, []),
    "view_5": (Kind.VIEW, ATTN, None, []),
}


@pytest.mark.parametrize(
    ("called", "label"),
    [
        (["q", "k"], "q_proj+k_proj"),
        (["matmul_0"], "QK^T"),
        (["matmul_1"], "scores*V"),
        (["matmul_0", "softmax_0", "matmul_1"], "QK^T+scores*V"),
        (["matmul_2"], "rotary"),  # a product that is no attention's
        (["linear_3"], "experts.3"),  # a number says little without the name before it
        (["linear_4"], "up"),
        (["linear_3", "linear_4"], "experts.3+up"),
        (["embedding_0"], "embed_tokens"),
        (["linear_9"], "linear"),  # of no module
        (["add_12", "view_5", "q"], "q_proj"),  # products alone, where there are any
        (["add_12", "view_5"], "add"),
        (["view_5"], "view"),
        ([], ""),
    ],
)
def test_a_call_is_named_for_its_products(called, label):
    build = Builder()
    made = {"x": build.input("x", ("batch", "seq", 4))}
    for name, (kind, path, what, reads) in LABELS.items():
        sources = [made[read] for read in reads or ["x"]]
        made[name] = (
            build.view(name, made["x"], path=path)
            if kind is Kind.VIEW
            else build.op(
                name, *sources, shape=("batch", "seq", 4), kind=kind, path=path, label=what
            )
        )
    graph = build.finish(*(made[name] for name in LABELS))
    ids = {op.name: op.id for op in graph.ops}
    assert call_label(graph, [ids[name] for name in called]) == label


# Of the graph ``constants``: x, positions, table, rotate, scale, output.
ALLOWED = ["tee", None, None, "gpu", "tee", "tee"]

REFUSED = {
    "an input away from home": (["gpu", None, None, "gpu", "tee", "tee"], "op 0 (x)"),
    "an output away from home": (["tee", None, None, "gpu", "tee", "gpu"], "op 5 (output)"),
    "a constant on a device": (["tee", None, "gpu", "gpu", "tee", "tee"], "op 2 (table)"),
    "a constant at home": (["tee", "tee", None, "gpu", "tee", "tee"], "op 1 (positions)"),
    "an op without a device": (["tee", None, None, None, "tee", "tee"], "op 3 (rotate)"),
    "an input without a device": ([None, None, None, "gpu", "tee", "tee"], "op 0 (x)"),
    "an op too few": (["tee", None, None, "gpu", "tee"], "5 ops, the graph 6"),
    "an op too many": ([*ALLOWED, "tee"], "7 ops, the graph 6"),
}


@pytest.mark.parametrize(("devices", "named"), REFUSED.values(), ids=REFUSED)
def test_a_placement_that_is_refused(devices, named):
    with pytest.raises(PlacementError, match=re.escape(named)):
        account(constants(), placement(devices), Links(load_link("none")))


def test_the_placement_that_they_are_a_slip_away_from_is_allowed():
    assert len(account(constants(), placement(ALLOWED), Links(load_link("none"))).transfers) == 2
