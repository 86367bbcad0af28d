"""What crosses packed: counted by hand, by loops over rows, and at other sizes; rules of policies."""

from dataclasses import replace
from math import fsum

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.packing import Packing, SizedPacking, load_packing
from partition.accounting import account
from partition.packs import whole_numbers, wire_format
from partition.policy import check_matches, load_policy
from partition.wire_format import WireFormat
from tests.support.graphs import HOME, Builder, describe, graphs, place, placed, resized
from tests.support.oracle import EXAMPLES, LINK, RESIDENCY
from tracer.errors import InputError
from tracer.formula import parse
from tracer.graph import FLOATING, ITEM_BYTES, Kind, OpGraph, Tensor

PAIRS = Packing("pairs", "", "blocks", group_elements=2, element_bits=4)
"""2 values are 1 byte and a scale of 2: 3 bytes for 8."""

HALF = Packing("half", "", "zstd", ratios={"float32": 0.5, "bfloat16": 0.75})
RANGE = load_packing("range")
CHOICES = (
    load_packing("plain"),
    RANGE,
    replace(PAIRS, pack_seconds_per_byte=4e-9, unpack_seconds_per_byte=3e-9),
    replace(HALF, pack_seconds_per_byte=1e-9, unpack_seconds_per_byte=1e-9),
)
"""Each is the fastest on some link for some tensor."""


def all_by(graph: OpGraph, *packings: Packing, dtype: str | None = None) -> WireFormat:
    machine = Machine(HOME, ("gpu",), Links(LINK), dtype)
    return wire_format(
        graph, (), replace(machine, pack=tuple(SizedPacking((one,)) for one in packings))
    )


def by_hand(tensor: Tensor, packing: Packing, dtype: str | None) -> tuple[str, int]:
    """(packing, payload), counted row by row."""
    dtype = dtype if dtype and tensor.dtype in FLOATING else tensor.dtype
    elements = 1
    for size in tensor.shape:
        elements *= size
    plain = elements * ITEM_BYTES[dtype]
    if tensor.op is None:
        return "plain", tensor.bytes
    if packing is HALF:
        ratio = {"float32": (1, 2), "bfloat16": (3, 4)}.get(dtype, (1, 1))
        return "half", -(-plain * ratio[0] // ratio[1])
    if ITEM_BYTES[dtype] < 2 or dtype not in FLOATING:  # 3 bytes for 2
        return "plain", plain
    last = tensor.shape[-1] if tensor.shape else 1
    packed = 0
    for _ in range(elements // last if last else 0):
        packed += 3 * len(range(0, last, 2))
    return ("pairs", packed) if packed < plain else ("plain", plain)


@EXAMPLES
@given(
    placed(),
    RESIDENCY,
    st.sampled_from([None, "bfloat16", "float8_e4m3fn"]),
    st.sampled_from([PAIRS, HALF]),
)
def test_bytes_of_every_transfer(case, residency, dtype, packing):
    graph, where = case
    note(describe(graph, where))
    wire = all_by(graph, packing, dtype=dtype)
    traffic = account(graph, where, Links(LINK), wire=wire, residency=residency)
    plain = account(graph, where, Links(LINK), wire=WireFormat(dtype), residency=residency)
    for t, before in zip(traffic.transfers, plain.transfers, strict=True):
        assert (t.packing, t.payload_bytes) == by_hand(t.tensor, packing, dtype)
        assert t.plain_bytes == before.payload_bytes >= t.payload_bytes
        assert t.payload_status == ("estimate" if t.packing == "half" else "exact")
        assert t.packing_seconds == (None if t.packing != "plain" else 0.0)
    saved = plain.totals.payload_bytes - traffic.totals.payload_bytes
    assert plain.totals.wire_bytes - traffic.totals.wire_bytes == saved  # framing is as it was
    assert traffic.totals.estimated_payload_bytes == sum(
        t.payload_bytes for t in traffic.transfers if t.packing == "half"
    )
    assert [call.ops for call in traffic.calls] == [call.ops for call in plain.calls]


@EXAMPLES
@given(
    placed(),
    st.sampled_from([None, "bfloat16"]),
    st.sampled_from([PAIRS, HALF]),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_formulas_give_packed_bytes_at_any_size(case, dtype, packing, batch, seq):
    graph, where = case
    note(describe(graph, where))
    other = resized(graph, batch, seq)
    here, there = (
        account(one, where, Links(LINK), wire=all_by(one, packing, dtype=dtype))
        for one in (graph, other)
    )
    sizes = {"batch": batch, "seq": seq, "past": 0}
    for formula, number in zip(here.transfers, there.transfers, strict=True):
        assert parse(formula.bytes_expr).evaluate(sizes) == number.payload_bytes


@EXAMPLES
@given(graphs())
def test_without_packings_nothing_is_packed(graph):
    wire = wire_format(graph, (), Machine(HOME, ("gpu",), Links(LINK), "bfloat16"))
    assert wire == WireFormat("bfloat16")
    for tensor in graph.tensors:
        assert wire.of(tensor).packing == "plain"


# --- by hand --------------------------------------------------------------------------------------


def look_up() -> OpGraph:
    """ids -> embed (a table of 300 rows of 8) -> twice; 10 ids."""
    build = Builder(batch=1, seq=10)
    ids = build.input("ids", ("batch", "seq"), "int64")
    table = build.parameter("table", (300, 8))
    rows = build.op("embed", table, ids, shape=("batch", "seq", 8), kind=Kind.EMBEDDING)
    twice = build.op("twice", rows, shape=("batch", "seq", 8))
    return build.finish(twice)


def test_a_transfer_by_hand():
    graph = look_up()
    assert whole_numbers(graph) == {0: 300}
    link = replace(
        LINK,
        sent_bandwidth_bytes_per_second=1000,
        received_bandwidth_bytes_per_second=500,
        sent_message_framing_bytes=4,
        sent_tensor_framing_bytes=2,
        received_message_framing_bytes=0,
        received_tensor_framing_bytes=10,
        sent_latency_seconds=0.25,
        received_latency_seconds=0.5,
    )
    timed = replace(PAIRS, pack_seconds_per_byte=0.001, unpack_seconds_per_byte=0.002)
    where = place(graph, {"gpu": ["embed", "twice"]})
    traffic = account(graph, where, Links(link), wire=all_by(graph, timed, RANGE))
    ids, result = traffic.transfers
    # 300 rows need 9 bits: 2 bytes an id
    assert (ids.packing, ids.payload_bytes, ids.wire_bytes) == ("range", 20, 26)
    assert ids.seconds == pytest.approx(26 / 1000 + 0.25 + (ids.packing_seconds or 0.0))
    # 10 rows of 4 pairs of 3 bytes, for 320; a millisecond and two a byte of these
    assert (result.packing, result.payload_bytes, result.wire_bytes) == ("pairs", 120, 130)
    assert result.packing_seconds == pytest.approx(0.96)
    assert result.seconds == pytest.approx(130 / 500 + 0.5 + 0.96)
    assert traffic.calls[0].seconds == pytest.approx(fsum([ids.seconds, result.seconds]))
    assert not result.at_least
    assert traffic.totals.payload_status == "exact"
    assert result.bytes_expr == "12*batch*seq"


def test_what_packing_takes_is_not_known():
    graph = look_up()
    link = replace(
        LINK,
        received_bandwidth_bytes_per_second=500,
        sent_bandwidth_bytes_per_second=500,
        received_latency_seconds=0.0,
        sent_latency_seconds=0.0,
    )
    where = place(graph, {"gpu": ["embed", "twice"]})
    traffic = account(graph, where, Links(link), wire=all_by(graph, PAIRS))
    assert [t.at_least for t in traffic.transfers] == [False, True]
    assert traffic.totals.at_least


def test_shared_memory_goes_by_packed_bytes():
    graph = look_up()
    link = replace(LINK, shared_memory_threshold_bytes=200, shared_memory_handle_bytes=12)
    where = place(graph, {"gpu": ["embed", "twice"]})
    sizes = {
        name: account(graph, where, Links(link), wire=wire).transfers[1].wire_bytes
        for name, wire in (("plain", WireFormat()), ("packed", all_by(graph, PAIRS)))
    }
    framing = link.received_tensor_framing_bytes + link.received_message_framing_bytes
    assert sizes == {"plain": 320 + framing, "packed": 12 + framing}  # 120 packed are under 200


# --- a choice by link -----------------------------------------------------------------------------


@EXAMPLES
@given(placed(), RESIDENCY, st.sampled_from([20_000_000, 100_000_000, 200_000_000, 10**9]))
def test_no_other_choice_is_faster(case, residency, bandwidth):
    """Each tensor in each other way: what a message takes beside its tensors is the same."""
    graph, where = case
    note(describe(graph, where))
    both = ("sent_bandwidth_bytes_per_second", "received_bandwidth_bytes_per_second")
    link = replace(LINK, **dict.fromkeys(both, bandwidth))
    machine = Machine(HOME, ("gpu",), Links(link), pack=(SizedPacking(CHOICES),))
    wire = wire_format(graph, (), machine)

    def seconds(on_wire: WireFormat) -> dict[int, float]:
        moved = account(graph, where, Links(link), wire=on_wire, residency=residency).transfers
        return {t.id: t.seconds for t in moved}

    best = seconds(wire)
    for one in CHOICES:
        other = seconds(
            replace(wire, packings=dict.fromkeys(wire.packings, (SizedPacking((one,)),)))
        )
        assert all(best[t] <= other[t] * (1 + 1e-12) for t in best)


def test_two_links_choose_differently():
    """10 ids of 8 bytes: by range 20 bytes, for 80 x 3.2 ns = 256 ns of packing.

    A gigabit carries 117,685,305 bytes a second: the 60 bytes that are saved take 509.8 ns there.
    At 32 GB/s they take 1.9 ns.
    """
    graph, where = look_up(), place(look_up(), {"gpu": ["embed", "twice"]})
    names = ("plain", "range", "lz4", "zstd", "zstd-planes")
    several = SizedPacking(tuple(map(load_packing, names)))
    found = {}
    for name in ("1gbe", "pcie4-x16"):
        links = Links(load_link(name))
        machine = Machine(HOME, ("gpu",), links, pack=(several,))
        traffic = account(graph, where, links, wire=wire_format(graph, (), machine))
        found[name] = [(t.packing, t.payload_bytes) for t in traffic.transfers]
    # floats of 320 bytes: 0.1012 x 320 / 117,685,305 = 275 ns by lz4, which takes 343 ns
    assert found == {
        "1gbe": [("range", 20), ("plain", 320)],
        "pcie4-x16": [("plain", 80), ("plain", 320)],
    }


# --- rules ----------------------------------------------------------------------------------------

HEAD = "description = 'd'\ndefault = 'accelerator'\n"


def policy_of(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(HEAD + text)
    return load_policy(str(file))


def packed_by(tmp_path, text, *options: SizedPacking) -> dict[str, str]:
    graph = look_up()
    policy = policy_of(tmp_path, text)
    check_matches(graph, policy)
    wire = wire_format(graph, policy.packs, Machine(HOME, ("gpu",), Links(LINK), pack=options))
    return {t.name: wire.of(t).packing for t in graph.tensors if t.op is not None}


def test_rules_win_over_the_option_and_the_first_that_can_pack_does(tmp_path):
    q8_0, small = SizedPacking((load_packing("q8_0"),)), SizedPacking((RANGE,), 81)
    text = "[[pack]]\nname = 'twice'\npacking = 'plain'\n[[pack]]\nkind = 'embedding'\npacking = 'q4_0'"
    assert packed_by(tmp_path, text, q8_0) == {"ids": "plain", "embed": "q4_0", "twice": "plain"}
    text = "[[pack]]\nat_least_bytes = 80\npacking = 'range'"
    # ids have 80 bytes; rows of 8 floats would be blocks of 34 bytes for 32
    assert packed_by(tmp_path, text, q8_0) == {"ids": "range", "embed": "plain", "twice": "plain"}
    assert packed_by(tmp_path, "", small) == {"ids": "plain", "embed": "plain", "twice": "plain"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name = 'embd'\npacking = 'q8_0'",
            "pack 1 .name = embd. packs nothing.*Did you mean embed",
        ),
        ("name = 'ids'\npacking = 'q8_0'", "packing q8_0 leaves int64 as it is"),
        ("name = 'ids'\nat_least_bytes = 81\npacking = 'range'", "the largest .* has 80 bytes"),
        (
            "name = 'ids'\nkind = 'embedding'\npacking = 'range'",
            "no tensor meets all of it together",
        ),
        ("layer = 3\npacking = 'q8_0'", "no tensor has layer 3"),
    ],
)
def test_a_pack_that_packs_nothing(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        packed_by(tmp_path, f"[[pack]]\n{text}")
    packed_by(tmp_path, f"[[pack]]\n{text}\noptional = true")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("packing = 'q8_0'", "mine.toml: pack 1: no condition"),
        ("name = 'x'", "pack 1: key 'packing' is missing"),
        (
            "name = 'x'\npacking = 'q9_0'",
            "pack 1: packing: unknown packing 'q9_0'.*Did you mean q8_0",
        ),
        ("nme = 'x'\npacking = 'q8_0'", "pack 1: unknown key 'nme'"),
        ("kind = 'linaer'\npacking = 'q8_0'", "pack 1: kind: 'linaer' is not one of"),
        ("at_least_bytes = -1\npacking = 'q8_0'", "at_least_bytes must be a whole number"),
    ],
)
def test_a_pack_that_is_wrong(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        policy_of(tmp_path, f"[[pack]]\n{text}")
