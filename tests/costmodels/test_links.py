"""Links: their files, what a message costs, the figures that come with cutedge."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from itertools import accumulate
from math import fsum
from operator import mul

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodels.links import FIGURES, REQUIRED, Link, Links, link_names, load_link, message_cost
from partition.accounting import account
from partition.policy import apply_policy, load_policy
from partition.wire_format import WireFormat
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer.errors import InputError

SHIPPED = files("costmodels") / "data" / "links"
PLAIN = Link("plain", "by hand", 0, 0, 0, 0)
FRAMED = replace(
    PLAIN,
    sent_message_framing_bytes=100,
    sent_tensor_framing_bytes=7,
    received_message_framing_bytes=20,
    received_tensor_framing_bytes=3,
)
TIMED = replace(
    FRAMED,
    sent_bandwidth_bytes_per_second=1000,
    received_bandwidth_bytes_per_second=500,
    sent_latency_seconds=10.0,
    received_latency_seconds=20.0,
    sent_serialisation_seconds_per_byte=0.125,
    received_serialisation_seconds_per_byte=0.25,
    sent_encryption_seconds_per_byte=0.5,
    received_encryption_seconds_per_byte=1.0,
)
SHARED = replace(FRAMED, shared_memory_threshold_bytes=1000, shared_memory_handle_bytes=12)

EXAMPLES = examples(50, derandomize=True)


# --- files ----------------------------------------------------------------------------------------


def shipped(name: str) -> str:
    return (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")


def keys(text: str) -> list[str]:
    return re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)


def without(text: str, key: str) -> str:
    """A description without the table ``key``."""
    return re.sub(rf"^\[{key}\]\nvalue = .*\nsource = .*\n", "", text, flags=re.MULTILINE)


EACH_KEY = pytest.mark.parametrize(
    ("name", "key"),
    {key: (name, key) for name in link_names() for key in keys(shipped(name))}.values(),
)
"""One reader reads all files: each key in a file that has it."""


@pytest.fixture
def refused(tmp_path):
    """``refused(text)``: what is said of a link file with this text; it names the file."""

    def load(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load_link(str(path))
        assert "mine.toml" in str(caught.value)
        return str(caught.value)

    return load


def test_the_links_of_the_contract_are_there():
    wanted = {"none", "zmq-ipc", "zmq-ipc-shm", "pcie4-x16", "pcie5-x16", "nvlink", "axi-lite"}
    assert wanted | {"loopback"} <= set(link_names())


@pytest.mark.parametrize("name", link_names())
def test_every_figure_of_a_shipped_link_has_a_source(name):
    link = load_link(name)
    assert link.name == name
    assert link.description
    assert list(link.sources) == keys(shipped(name))
    assert set(REQUIRED) <= set(link.sources)
    for key, value in link.figures.items():
        assert (value is None) == (key not in link.sources)
        assert value is None or value == getattr(link, key)


@EACH_KEY
def test_a_deleted_key(name, key, refused, tmp_path):
    text = without(shipped(name), key)
    assert key not in keys(text)
    together = key.startswith("shared_memory") or "large_message" in key
    if key in REQUIRED or together or f"{key.split('_')[0]}_large_message_bytes" in text:
        assert f"key {key!r} is missing" in refused(text)
    else:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        assert load_link(str(tmp_path / "mine.toml")).figures[key] is None


@pytest.mark.parametrize("name", link_names())
def test_a_deleted_description(name, refused):
    text = re.sub(r"^description = .*\n", "", shipped(name), flags=re.MULTILINE)
    assert "key 'description' is missing" in refused(text)


@EACH_KEY
def test_a_misspelt_key(name, key, refused):
    wrong = key[:5] + key[6:]
    said = refused(shipped(name).replace(f"[{key}]", f"[{wrong}]"))
    assert f"unknown key {wrong!r}" in said
    assert f"Did you mean {key}" in said


@EACH_KEY
def test_a_key_without_its_unit(name, key, refused):
    if FIGURES[key].flag:
        return  # true or false, in no unit
    bare = re.sub(r"(_bytes|_seconds|_messages)?(_per_\w+)?$", "", key)
    said = refused(shipped(name).replace(f"[{key}]", f"[{bare}]"))
    assert f"key {bare!r} lacks its unit: {key}" in said


@EACH_KEY
def test_a_key_that_is_there_twice(name, key, refused):
    said = refused(shipped(name) + f'\n[{key}]\nvalue = 1\nsource = "s"\n')
    assert "not valid TOML" in said
    assert key in said


def described(changes: dict[str, str]) -> str:
    """A description in which every figure is 1 but those."""
    table = {key: "true" if kind.flag else "1" for key, kind in FIGURES.items()} | changes
    return 'description = "d"\n' + "".join(
        f'[{key}]\nvalue = {value}\nsource = "s"\n' for key, value in table.items()
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "-1") for key in FIGURES),
        *((next(iter(FIGURES)), value) for value in ("nan", "inf", '"1"', "true", "1e400")),
    ],
)
def test_a_figure_that_is_none(key, value, refused):
    said = refused(described({key: value}))
    assert f"[{key}]: value must be {FIGURES[key]}, not " in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "1.5") for key in FIGURES if not key.endswith(("seconds", "per_byte"))),
        ("synchronous", "1"),
        ("sent_bandwidth_bytes_per_second", "0"),
        ("received_bandwidth_bytes_per_second", "0"),
        ("chunk_bytes", "0"),
    ],
)
def test_a_figure_of_the_wrong_sort(key, value, refused):
    wanted = "true or false" if FIGURES[key].flag else "a whole number"
    assert f"[{key}]: value must be {wanted}" in refused(described({key: value}))


# --- the figures that come with cutedge -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        # lanes x rate x encoding / bits a byte
        ("pcie4-x16", "bandwidth_bytes_per_second", 16 * 16e9 * 128 / 130 / 8),
        ("pcie5-x16", "bandwidth_bytes_per_second", 16 * 32e9 * 128 / 130 / 8),
        # The 900 GB/s that are sold are both directions together.
        ("nvlink", "bandwidth_bytes_per_second", 900e9 / 2),
        # A word of 4 bytes takes a cycle for the address and one for the response.
        ("axi-lite", "bandwidth_bytes_per_second", 4 / 2 * 100e6),
        # The median of six machines in Gbit/s.
        ("loopback", "bandwidth_bytes_per_second", (66.2e9 + 66.5e9) / 2 / 8),
        ("loopback", "latency_seconds", 6e-6),
        # Bus and encryption together leave the 4 GB/s that were measured.
        ("pcie5-x16-cc", "encryption_seconds_per_byte", 1 / 4e9 - 1 / (16 * 32e9 * 128 / 130 / 8)),
    ],
)
def test_derived_figures(name, figure, value):
    for way in ("sent", "received"):
        assert load_link(name).figures[f"{way}_{figure}"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "rate"), [("none", None), ("zmq-ipc", None), ("pcie5-x16-cc", 4e9), ("nvlink", 450e9)]
)
def test_payload_rate(name, rate):
    for direction in ("send", "receive", "peer"):
        found = load_link(name).payload_rate(direction)
        assert found == (None if rate is None else pytest.approx(rate, rel=1e-4))


def test_tensors_below_the_threshold_lie_in_shared_memory(traced):
    """The measured run of the same 98 calls: 1280.0108 MiB sent, 1536.0090 received (in bfloat16).

    On the wire are the tensors of 10 MiB or more: sent 16 x (64 MiB of probabilities + 16 of the
    FFN's middle) = 1280 MiB, received 16 x (64 MiB of scores + 2 x 16 of gate and up) = 1536 MiB.
    Of the others a handle of 12 bytes: sent 16 x (2 norms, q, k, v, the input of o) + ids + last
    norm = 98, received 16 x (q, k, v, context, o, down) + embedding + logits = 98. Framing is 82 a
    request, and 51 for each of the 98 + 48 tensors of the replies; the run's own differs by call.
    """
    graph = traced("llama-3.2-1b", seq=1024)
    placement = apply_policy(
        graph, load_policy("offload-linear"), home="tee", accelerators=("gpu",)
    )
    link = Links(load_link("zmq-ipc-shm"))
    totals = account(graph, placement, link, wire=WireFormat("bfloat16")).totals
    assert totals.sent_wire_bytes == 1280 * 2**20 + 98 * 12 + 98 * 82
    assert totals.received_wire_bytes == 1536 * 2**20 + 98 * 12 + (98 + 48) * 51
    assert totals.sent_wire_bytes / 2**20 == pytest.approx(1280.0108, abs=0.005)
    assert totals.received_wire_bytes / 2**20 == pytest.approx(1536.0090, abs=0.005)


def test_the_threshold_of_the_report_is_in_its_own_megabytes():
    """What it calls 128 MB is 134,217,728 bytes: its MB are 2**20."""
    assert load_link("zmq-ipc-shm").shared_memory_threshold_bytes == 10 * 2**20
    framing = {key: getattr(load_link("zmq-ipc-shm"), key) for key in REQUIRED}
    assert framing == {key: getattr(load_link("zmq-ipc"), key) for key in REQUIRED}
    assert list(framing.values()) == [82, 0, 0, 51]


# --- messages by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "payloads", "direction", "wire"),
    [
        ({}, [1000, 5], "send", [1000 + 7 + 100, 5 + 7]),
        ({}, [1000, 5], "peer", [1000 + 7 + 100, 5 + 7]),
        ({}, [1000, 5], "receive", [1000 + 3 + 20, 5 + 3]),
        ({}, [0], "send", [107]),
        # Chunks of 400: 400 + 400 + 205 are three messages; 800 are two, without a rest.
        ({"chunk_bytes": 400}, [1000, 5], "send", [1000 + 7 + 300, 5 + 7]),
        ({"chunk_bytes": 400}, [800], "receive", [800 + 3 + 40]),
        ({"chunk_bytes": 400}, [400], "send", [507]),
        ({"chunk_bytes": 400}, [401], "send", [608]),
        ({"chunk_bytes": 400}, [0], "send", [107]),
    ],
)
def test_wire_bytes(changes, payloads, direction, wire):
    cost = message_cost(replace(FRAMED, **changes), payloads, direction)
    assert cost.wire_bytes == tuple(wire)
    assert cost.seconds is None


@pytest.mark.parametrize(
    ("payloads", "carried"),
    [
        ([999], [12]),  # just below the threshold
        ([1000], [1000]),  # at it: over the wire
        ([1001], [1001]),
        ([12], [12]),
        ([8], [8]),  # a handle would be more
        ([0], [0]),
        ([500, 500], [12, 12]),  # each is asked by itself
        ([5, 900, 1000], [5, 12, 1000]),
    ],
)
def test_shared_memory_is_chosen_by_tensor(payloads, carried):
    cost = message_cost(SHARED, payloads, "send")
    first, *others = carried
    assert cost.wire_bytes == (first + 107, *(c + 7 for c in others))
    assert cost.peak_buffer_bytes == sum(payloads)


@pytest.mark.parametrize(
    ("chunk", "payloads", "carried", "pieces", "peak"),
    [
        (400, [2000, 500], 2000 + 12, 5, 400 + 500),  # the tensor in shared memory is no piece
        (400, [2100, 8], 2100 + 8, 6, 400),  # one that is less than a handle is in a piece
        (400, [500, 300], 2 * 12, 1, 800),  # nothing but handles: one message
        (1500, [2500], 2500, 2, 1500),
        (400, [0], 0, 1, 0),
    ],
)
def test_chunks_are_of_what_is_on_the_wire(chunk, payloads, carried, pieces, peak):
    cost = message_cost(replace(SHARED, chunk_bytes=chunk), payloads, "send")
    assert sum(cost.wire_bytes) == carried + 100 * pieces + 7 * len(payloads)
    assert cost.peak_buffer_bytes == peak


@pytest.mark.parametrize(
    ("changes", "payloads", "direction", "seconds"),
    [
        # 100 + 7 + 893 bytes at 1000/s, 893 x (1/8 + 1/2), 10 of latency with the first
        ({}, [893, 93], "send", [1 + 893 * 0.625 + 10, 0.1 + 93 * 0.625]),
        ({}, [893, 93], "peer", [1 + 893 * 0.625 + 10, 0.1 + 93 * 0.625]),
        # 20 + 3 + 477 bytes at 500/s
        ({}, [477], "receive", [1 + 477 * 1.25 + 20]),
        # Four messages of framing and latency
        ({"chunk_bytes": 300}, [1093], "send", [1.5 + 1093 * 0.625 + 40]),
        # A handle of 93 bytes on the wire; packing is of all the payload
        (
            {"shared_memory_threshold_bytes": 9000, "shared_memory_handle_bytes": 93},
            [1093],
            "send",
            [0.2 + 1093 * 0.625 + 10],
        ),
    ],
)
def test_seconds(changes, payloads, direction, seconds):
    cost = message_cost(replace(TIMED, **changes), payloads, direction)
    assert cost.seconds == pytest.approx(seconds, rel=1e-12)


LARGE = replace(
    PLAIN,
    sent_bandwidth_bytes_per_second=1000,
    sent_large_message_bytes=500,
    sent_large_message_bandwidth_bytes_per_second=100,
    sent_latency_seconds=2.0,
    sent_toll_seconds=3.0,
)
"""Messages of 500 bytes and more go at a tenth of the rate; 5 seconds a message."""


@pytest.mark.parametrize(
    ("changes", "payloads", "seconds"),
    [
        ({}, [499], [0.499 + 5]),
        ({}, [500], [5 + 5]),
        ({}, [300, 200], [3 + 5, 2]),  # the message is large, not its tensors
        ({"chunk_bytes": 400}, [900], [0.9 + 15]),  # no piece is
        ({"chunk_bytes": 600}, [1000], [6 + 0.4 + 10]),  # one of two is
        ({"chunk_bytes": 600}, [500, 500], [3.2 + 10, 3.2]),  # shared out alike
        # A handle of 1 byte is on the wire, and is what counts.
        ({"shared_memory_threshold_bytes": 999, "shared_memory_handle_bytes": 1}, [900], [5.001]),
    ],
)
def test_large_messages_and_tolls(changes, payloads, seconds):
    cost = message_cost(replace(LARGE, **changes), payloads, "send")
    assert cost.seconds == pytest.approx(seconds, rel=1e-12)


def test_a_latency_that_is_not_known_makes_seconds_a_lower_bound():
    link = replace(PLAIN, sent_bandwidth_bytes_per_second=4, received_latency_seconds=1.0)
    assert message_cost(link, [8], "send").seconds == (2.0,)
    assert [link.at_least(way) for way in ("send", "peer", "receive")] == [True, True, False]
    assert not replace(link, sent_latency_seconds=0.0).at_least("send")


# --- measured -------------------------------------------------------------------------------------

STEPS = {
    "pcie5-x16-cc": {  # tokens a second of one stream, without and with confidential mode
        "Llama-3.1-8B": 1 / 123.2985 - 1 / 132.3618,
        "Phi-3-medium": 1 / 66.5845 - 1 / 69.7787,
    },
    "pcie5-x16-cc-h200": {  # seconds of 128 steps, with and without
        "Llama-3.1-8B": (0.910403 - 0.84153) / 128,
        "Phi-3-medium": (1.605721 - 1.542392) / 128,
        "gemma-2-27b": (2.433644 - 2.349838) / 128,
    },
}
"""What confidential mode adds to a step of decode in vLLM: the benchmark's own figures."""


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_decode_pays_the_confidential_toll_within_a_fifth(name):
    """A step is one message each way, of a few bytes."""
    link = load_link(name)
    assert link.concurrency_messages == 1
    assert link.synchronous
    step = sum(message_cost(link, [8], way).seconds[0] for way in ("send", "receive"))
    for measured in STEPS[name].values():
        assert step == pytest.approx(measured, rel=0.2)


def test_crossings_of_a_split_in_every_layer_cost_their_number_not_their_bytes():
    """llama-2-7b with its KV cache in the host's memory: 0.276 ms a layer more, 16 KiB a message."""
    link = load_link("pcie4-x16-split")
    layer = sum(message_cost(link, [4 * 4096], way).seconds[0] for way in ("send", "receive"))
    assert layer == pytest.approx((1 / 59.99 - 1 / 127.43) / 32, rel=0.01)
    alone = replace(link, sent_toll_seconds=0.0, received_toll_seconds=0.0)
    alone = replace(alone, sent_latency_seconds=0.0, received_latency_seconds=0.0)
    assert sum(message_cost(alone, [4 * 4096], way).seconds[0] for way in WAYS) < layer / 100


def test_a_link_may_know_one_direction_only():
    link = replace(PLAIN, sent_bandwidth_bytes_per_second=4)
    assert message_cost(link, [8], "send").seconds == (2.0,)
    assert message_cost(link, [8], "receive").seconds is None
    assert [link.timed(way) for way in ("send", "peer", "receive")] == [True, True, False]


# --- properties -----------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 5000), min_size=1, max_size=5)
DIRECTIONS = st.sampled_from(["send", "receive", "peer"])
WAYS = ("sent", "received")


def links_of(**more: st.SearchStrategy) -> st.SearchStrategy[Link]:
    return st.builds(
        Link,
        st.just("any"),
        st.just("by hand"),
        *[st.integers(0, 200)] * 4,
        **{f"{way}_bandwidth_bytes_per_second": st.integers(1, 10**6) for way in WAYS},
        **{f"{way}_latency_seconds": st.none() | st.floats(0, 10) for way in WAYS},
        **{
            f"{way}_{figure}": st.floats(0, 0.1)
            for way in WAYS
            for figure in (
                "toll_seconds",
                "serialisation_seconds_per_byte",
                "encryption_seconds_per_byte",
            )
        },
        shared_memory_threshold_bytes=st.integers(0, 3000),
        shared_memory_handle_bytes=st.integers(0, 200),
        chunk_bytes=st.none() | st.integers(1, 3000),
        **more,
    )


LINKS = links_of()
BROKEN = links_of(
    **{f"{way}_large_message_bytes": st.integers(1, 6000) for way in WAYS},
    **{f"{way}_large_message_bandwidth_bytes_per_second": st.integers(1, 10**6) for way in WAYS},
)
"""With large messages that are faster or slower than others."""


def oracle(link: Link, payloads: list[int], direction: str) -> tuple[int, float, int]:
    """(wire bytes, seconds, peak buffer) of a message, piece by piece as it would be sent."""
    way = "received" if direction == "receive" else "sent"

    def of(figure: str) -> float:
        return getattr(link, f"{way}_{figure}")

    wire, left, in_memory = 0, 0, 0
    for payload in payloads:
        wire += of("tensor_framing_bytes")
        handle = link.shared_memory_handle_bytes
        if payload < link.shared_memory_threshold_bytes and payload > handle:
            wire, in_memory = wire + handle, in_memory + payload
        else:
            wire, left = wire + payload, left + payload
    pieces: list[int] = []
    while left or not pieces:
        pieces.append(left if link.chunk_bytes is None else min(left, link.chunk_bytes))
        wire += of("message_framing_bytes")
        left -= pieces[-1]
    rate = 1 / of("bandwidth_bytes_per_second")
    large = of("large_message_bytes")
    if large is not None and sum(pieces):
        of_large = 1 / of("large_message_bandwidth_bytes_per_second")
        rates = [of_large if piece >= large else rate for piece in pieces]
        rate = sum(map(mul, pieces, rates)) / sum(pieces)  # framing and handles go as the rest does
    beside = len(pieces) * ((of("latency_seconds") or 0) + of("toll_seconds"))
    packing = of("serialisation_seconds_per_byte") + of("encryption_seconds_per_byte")
    seconds, peak = wire * rate + beside + sum(payloads) * packing, max(pieces)
    return wire, seconds, in_memory + peak


@EXAMPLES
@given(LINKS | BROKEN, SIZES, DIRECTIONS)
def test_against_sending_piece_by_piece(link, payloads, direction):
    cost = message_cost(link, payloads, direction)
    wire, seconds, peak = oracle(link, payloads, direction)
    assert (sum(cost.wire_bytes), cost.peak_buffer_bytes) == (wire, peak)
    assert fsum(cost.seconds) == pytest.approx(seconds, rel=1e-9)
    assert len(cost.wire_bytes) == len(cost.seconds) == len(payloads)
    assert min(cost.wire_bytes) >= 0


FRAMED_BREAK = replace(
    FRAMED,
    sent_bandwidth_bytes_per_second=2,
    sent_large_message_bytes=1,
    sent_large_message_bandwidth_bytes_per_second=1,
)


@EXAMPLES
@given(LINKS | BROKEN, SIZES, DIRECTIONS)
@example(FRAMED_BREAK, [1, 1], "send")  # the message's framing is slow once, not with each tensor
def test_what_a_search_counts_on_is_no_more_than_a_message_takes(link, payloads, direction):
    taken = fsum(message_cost(link, payloads, direction).seconds)
    counted = [link.tensor_seconds(payload, direction) for payload in payloads]
    assert fsum(counted) + link.message_seconds(direction) <= taken * (1 + 1e-9)
    whole = replace(
        link,
        chunk_bytes=None,
        **{f"{way}_large_message_bytes": None for way in WAYS},
        **{f"{way}_large_message_bandwidth_bytes_per_second": None for way in WAYS},
    )
    counted = [whole.tensor_seconds(payload, direction) for payload in payloads]
    taken = fsum(message_cost(whole, payloads, direction).seconds)
    assert fsum(counted) + whole.message_seconds(direction) == pytest.approx(taken, rel=1e-9)


@EXAMPLES
@given(LINKS | BROKEN, st.lists(st.tuples(*[st.integers(0, 9000)] * 3), min_size=1), DIRECTIONS)
def test_many_messages_at_once_are_each_by_itself(link, messages, direction):
    each = [message_cost(link, payloads, direction) for payloads in messages]
    many = message_cost(link, list(np.array(messages, np.int64).T), direction)
    assert [tuple(wire) for wire in np.array(many.wire_bytes).T] == [c.wire_bytes for c in each]
    assert [tuple(taken) for taken in np.array(many.seconds).T] == [c.seconds for c in each]
    assert list(many.peak_buffer_bytes) == [cost.peak_buffer_bytes for cost in each]


@EXAMPLES
@given(LINKS, SIZES, DIRECTIONS)
def test_no_tensor_is_faster_than_its_wire_bytes(link, payloads, direction):
    cost = message_cost(link, payloads, direction)
    way = "received" if direction == "receive" else "sent"
    bandwidth = getattr(link, f"{way}_bandwidth_bytes_per_second")
    for wire, seconds in zip(cost.wire_bytes, cost.seconds, strict=True):
        assert seconds >= wire / bandwidth
    if not link.shared_memory_threshold_bytes:
        assert sum(cost.wire_bytes) >= sum(payloads)


@EXAMPLES
@given(LINKS, SIZES, st.integers(0, 4), st.integers(0, 5000), DIRECTIONS)
def test_more_bytes_never_cost_less(link, payloads, which, more, direction):
    grown = [*payloads]
    grown[which % len(payloads)] += more
    before, after = (message_cost(link, sizes, direction) for sizes in (payloads, grown))
    if link.chunk_bytes is not None and link.shared_memory_threshold_bytes:
        return  # a tensor may leave a piece of the message for shared memory, or come into one
    assert sum(after.wire_bytes) >= sum(before.wire_bytes)
    assert fsum(after.seconds) >= fsum(before.seconds) * (1 - 1e-12)
    assert after.peak_buffer_bytes >= before.peak_buffer_bytes


@EXAMPLES
@given(LINKS, SIZES, DIRECTIONS)
def test_shared_memory_never_sends_more(link, payloads, direction):
    plain = replace(link, shared_memory_threshold_bytes=0)
    shared, sent = (message_cost(one, payloads, direction) for one in (link, plain))
    so_far = (accumulate(cost.wire_bytes) for cost in (shared, sent))
    assert all(a <= b for a, b in zip(*so_far, strict=True))
    assert fsum(shared.seconds) <= fsum(sent.seconds) * (1 + 1e-12)


@EXAMPLES
@given(LINKS, SIZES, DIRECTIONS)
def test_chunks_bound_the_buffer_and_add_messages_only(link, payloads, direction):
    whole = replace(link, chunk_bytes=None, shared_memory_threshold_bytes=0)
    chunked = replace(whole, chunk_bytes=link.chunk_bytes)
    one, many = (message_cost(each, payloads, direction) for each in (whole, chunked))
    assert many.peak_buffer_bytes <= min(link.chunk_bytes or one.peak_buffer_bytes, sum(payloads))
    assert many.wire_bytes[1:] == one.wire_bytes[1:]
    assert many.wire_bytes[0] >= one.wire_bytes[0]


# --- the command ----------------------------------------------------------------------------------


def test_links_lists_them():
    done = invoke("cutedge", "links")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert list(rows) == link_names()
    assert "82 B a message" in rows["zmq-ipc"]
    assert "51 B a tensor" in rows["zmq-ipc"]
    assert rows["nvlink"].count("450 GB/s") == 2
    assert rows["pcie5-x16-cc"].count("4 GB/s") == 2  # with encryption
    assert rows["loopback"].count("6 us") == 2


def test_links_as_json():
    done = invoke("cutedge", "links", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {one["link"]: one for one in json.loads(done.stdout)["links"]}
    assert list(found) == link_names()
    for name, one in found.items():
        link = load_link(name)
        assert one["description"] == link.description
        assert one["sources"] == link.sources
        assert {key: one[key] for key in FIGURES} == link.figures


def test_a_link_with_its_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my[x].toml").write_text(shipped("zmq-ipc-shm"), encoding="utf-8")
    for name, shown in (("zmq-ipc-shm", "zmq-ipc-shm"), ("my[x].toml", "my[x]")):
        done = invoke("cutedge", "links", name)
        assert (done.returncode, done.stderr) == (0, "")
        first, _, *rows = done.stdout.splitlines()
        assert first.startswith(f"{shown}: ")
        link = load_link(name)
        assert [row.split()[:2] for row in rows] == [
            [key, str(link.figures[key])] for key in link.sources
        ]
        assert all(source in done.stdout for source in link.sources.values())


def test_a_link_that_is_not_there():
    done = invoke("cutedge", "links", "nvlnk")
    assert done.returncode == 2
    assert "unknown link 'nvlnk'" in done.stderr
    assert "Did you mean nvlink" in done.stderr
