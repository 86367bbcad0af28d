"""Parameters that lie at home and are sent in each run: by hand, and against a naive accounting."""

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.devices import Device
from costmodels.links import Link, Links
from costmodels.roofline import DeviceTime, OpTime
from partition.accounting import account
from partition.placement import Placement
from partition.problem import memory_of
from partition.schedule import Schedule, Scheduling, scheduled, tasks_of
from partition.stored import sent_weights
from partition.wire_format import WireFormat
from tests.support.graphs import HOME, Builder, describe, place, placed
from tests.support.oracle import EXAMPLES, LINK, RESIDENCY, moves_of, oracle_calls, running
from tracer.graph import OpGraph, Role
from tracer.summary import tensor_names

# Everywhere here batch is 1 and seq is 8, and an element of float32 is 4 bytes.


def two_calls() -> OpGraph:
    """x -> first -> between -> last; first and last share w, and last reads u by a view too"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))  # 32 bytes
    w = build.parameter("w", (10, 5), "bfloat16")  # 100
    tied = build.parameter("tied", (10, 5), "bfloat16", alias_of=w)
    u = build.parameter("u", (7,))  # 28
    turned = build.constant("turned", u, shape=(7, 1), alias_of=u)
    scale = build.parameter("scale", (3,))  # 12
    scaled = build.constant("scaled", scale, shape=(3,))
    buffer = build.parameter("buffer", (2,), role=Role.BUFFER)  # 8
    first = build.op("first", x, w, scaled, buffer, shape=("batch", "seq", 2), path="a")  # 64
    between = build.op("between", first, shape=("batch", "seq", 3), path="b")  # 96
    last = build.op("last", between, tied, turned, shape=("batch", "seq", 4), path="c")  # 128
    return build.finish(last)


def streaming(graph: OpGraph, where: Placement, *names: str) -> Placement:
    """The placement with parameters of the named ops at home; of all ops where none is named."""
    ops = {op.id for op in graph.ops if op.name in names or not names}
    return replace(where, streams=frozenset(ops))


AWAY = {"gpu": ["first", "last"]}


def crossed(
    graph: OpGraph, where: Placement, **options: WireFormat
) -> list[tuple[int, str, str, int]]:
    traffic = account(graph, where, Links(LINK), **options)  # type: ignore[arg-type]
    return [
        (t.call, t.direction, t.tensor.name, t.payload_bytes)
        for t in traffic.transfers
        if t.direction == "send"
    ]


def test_a_parameter_is_sent_with_the_first_call_that_needs_it():
    """Tied weights once, a view as its memory; what a constant is computed of and buffers lie."""
    graph = two_calls()
    where = streaming(graph, place(graph, AWAY))
    assert crossed(graph, where) == [
        (0, "send", "x", 32),
        (0, "send", "w", 100),
        (1, "send", "between", 96),
        (1, "send", "u", 28),
    ]
    traffic = account(graph, where, Links(LINK))
    assert traffic.resident_bytes == {HOME: 100 + 28, "gpu": 12 + 12 + 8}
    assert traffic.totals.sent_wire_bytes == (
        100
        + 32
        + 28
        + 96
        + 2 * LINK.sent_message_framing_bytes
        + 4 * LINK.sent_tensor_framing_bytes
    )
    assert traffic.total_expr == "40*batch*seq + 128"


def test_a_device_that_forgets_is_sent_a_parameter_with_each_call():
    graph = two_calls()
    where = streaming(graph, place(graph, AWAY))
    assert [one for one in crossed(graph, where, residency="call") if one[2] in "wu"] == [
        (0, "send", "w", 100),
        (1, "send", "w", 100),
        (1, "send", "u", 28),
    ]


def test_the_wire_changes_no_parameter_and_a_format_does():
    graph = two_calls()
    where = streaming(graph, place(graph, AWAY))
    traffic = account(graph, where, Links(LINK), wire=WireFormat("float16"))
    told = {t.tensor.name: (t.wire_dtype, t.payload_bytes) for t in traffic.transfers}
    assert (told["w"], told["u"]) == (("bfloat16", 100), ("float32", 28))
    assert told["between"] == ("float16", 48)
    (w,) = (t for t in graph.tensors if t.name == "w")
    packed = OpGraph(
        graph.meta,
        graph.ops,
        [replace(t, bytes=53) if graph.storage(t) is w else t for t in graph.tensors],
        graph.edges,
    )
    assert (0, "send", "w", 53) in crossed(packed, where, wire=WireFormat("float16"))


def test_what_lies_there_for_one_op_is_not_sent_to_another():
    graph = two_calls()
    where = streaming(graph, place(graph, AWAY), "last")
    assert [one[2] for one in crossed(graph, where)] == ["x", "between", "u"]
    assert account(graph, where, Links(LINK)).resident_bytes == {HOME: 28, "gpu": 100 + 32}
    # On another device nothing lies, and there is where the op is that has it with it.
    apart = streaming(graph, place(graph, {"gpu": ["first"], "npu": ["last"]}), "last")
    assert sent_weights(graph, apart)["npu"].keys() == {1, 3}
    assert account(graph, apart, Links(LINK)).resident_bytes[HOME] == 100 + 28


def test_at_home_nothing_is_sent():
    graph = two_calls()
    where = streaming(graph, place(graph, {}))
    assert crossed(graph, where) == []
    assert account(graph, where, Links(LINK)).resident_bytes == {HOME: 100 + 28 + 12 + 12 + 8}


def test_a_parameter_lies_on_its_device_from_its_first_reader_to_its_last():
    graph = two_calls()
    where = streaming(graph, place(graph, AWAY))
    transfers = account(graph, where, Links(LINK)).transfers
    # first: 32 resident, w 100, x 32, first 64; last: w 100, u 28, between 96, last 128; the
    # result of first is away until home has read it.
    assert memory_of(graph, where, transfers)["gpu"] == 32 + max(100 + 32 + 64, 100 + 28 + 96 + 128)
    alone = streaming(graph, place(graph, AWAY), "first")
    transfers = account(graph, alone, Links(LINK)).transfers
    assert memory_of(graph, alone, transfers)["gpu"] == 32 + 128 + max(32 + 64, 96 + 128)


def test_parameters_of_all_layers_are_called_alike():
    build = Builder()
    stream = build.input("x", ("batch", "seq", 1))
    for layer in range(3):
        weights = [
            build.parameter(f"layers.{layer}.{name}", (3,)) for name in ("up.weight", "up.bias")
        ]
        path = f"layers.{layer}.up"
        stream = build.op(f"up_{layer}", stream, *weights, shape=("batch", "seq", 1), path=path)
    names = tensor_names(build.finish(stream))
    assert names == ["x", *["weight", "bias", "up"] * 3]


# --- against a naive accounting -------------------------------------------------------------------


def oracle(
    graph: OpGraph, where: Placement, residency: str
) -> tuple[list[tuple[int, str, str, int]], dict[str, set[int]]]:
    """(moves of parameters, what of them lies where), by going through the calls."""

    def owner(tensor: int) -> int:
        alias = graph.tensors[tensor].alias_of
        return tensor if alias is None else owner(alias)

    def computed_of(tensor: int) -> set[int]:
        op = graph.tensors[tensor].op
        if op is None:
            return {owner(tensor)}
        return {source for read in graph.inputs(op) for source in computed_of(read.id)}

    def wanted(op: int) -> tuple[set[int], set[int]]:
        """(parameters that it reads, those behind what it reads else)"""
        direct, behind = set(), set()
        for tensor in graph.inputs(op):
            if tensor.op is not None and not graph.ops[tensor.op].is_constant:
                continue
            if graph.tensors[owner(tensor.id)].role is Role.PARAMETER:
                direct.add(owner(tensor.id))
            else:
                behind |= computed_of(tensor.id)
        parameters = {t for t in behind if graph.tensors[t].role is Role.PARAMETER}
        return direct, parameters

    lies: dict[str, set[int]] = defaultdict(set)
    for op in running(graph):
        direct, behind = wanted(op)
        here = str(where.devices[op])
        lies[here] |= behind | (direct if op not in where.streams or here == HOME else set())
    moves = []
    holds: dict[str, set[int]] = defaultdict(set)
    for call, (device, ops) in enumerate(oracle_calls(graph, where)):
        if residency == "call":
            holds[device] = set()
        for op in ops:
            direct, _ = wanted(op)
            for parameter in sorted(direct - lies[device] - holds[device]):
                assert op in where.streams
                moves.append((parameter, HOME, device, call))
                holds[device].add(parameter)
    lies[HOME] |= {parameter for parameter, *_ in moves}
    return moves, lies


@st.composite
def streamed(draw: st.DrawFn) -> tuple[OpGraph, Placement]:
    graph, where = draw(placed())
    ops = draw(st.just([op.id for op in graph.ops]) | st.lists(st.sampled_from(running(graph))))
    return graph, replace(where, streams=frozenset(ops))


@EXAMPLES
@given(streamed(), RESIDENCY)
def test_what_is_sent_and_what_lies_where(case, residency):
    graph, where = case
    note(f"{describe(graph, where)}\nstreams {sorted(where.streams)}")
    traffic = account(graph, where, Links(LINK), residency=residency)
    moves, lies = oracle(graph, where, residency)
    made = [move for move in moves_of(traffic) if graph.tensors[move[0]].op is None]
    assert sorted(made) == sorted(moves)
    # All else is as if nothing were sent, but what is resident.
    kept = account(graph, replace(where, streams=frozenset()), Links(LINK), residency=residency)
    rest = [move for move in moves_of(traffic) if graph.tensors[move[0]].op is not None]
    assert rest == moves_of(kept)
    assert [call.ops for call in traffic.calls] == [call.ops for call in kept.calls]
    parameters = {t.id for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None}
    for device, size in traffic.resident_bytes.items():
        others = kept.resident_bytes[device] - sum(
            graph.tensors[t].bytes
            for t in parameters
            if any(t in _reads(graph, op) for op in running(graph) if where.devices[op] == device)
        )
        assert size == others + sum(graph.tensors[t].bytes for t in lies[device]), device


def _reads(graph: OpGraph, op: int) -> set[int]:
    """The parameters behind all that an op reads, and their views."""
    found: set[int] = set()
    for tensor in graph.inputs(op):
        if tensor.op is None:
            found.add(tensor.id if tensor.alias_of is None else tensor.alias_of)
        elif graph.ops[tensor.op].is_constant:
            found |= _reads(graph, tensor.op)
            found |= {tensor.alias_of} if tensor.alias_of is not None else set()
    return found


# --- in time --------------------------------------------------------------------------------------

WHOLE = Link("whole seconds", "by hand", 0, 0, 0, 0, 1, 10**6)
"""A byte a second out, next to nothing back."""


def timed(graph: OpGraph, where: Placement, compute: float, residency: str = "run") -> Schedule:
    """The schedule where each layer computes for so long, and all else takes no time."""
    links = Links(WHOLE)
    traffic = account(graph, where, links, residency=residency)
    ops = tuple(OpTime(compute if "layer" in op.name else 0.0) for op in graph.ops)
    at = DeviceTime(Device("by hand", "", True, {}), ops, 0.0, {}, 1.0)
    tasks, lanes = tasks_of(graph, where, traffic, {HOME: at, "gpu": at}, residency, links)
    return scheduled(tasks, lanes, Scheduling("overlap"))


def layers(count: int, weight: int, *, apart: bool) -> tuple[OpGraph, Placement]:
    """Ops one after the other, each with a parameter of so many bytes that is sent; where they are
    ``apart`` home does something between two of them. What flows is empty."""
    build = Builder(symbolic=False)
    stream = build.input("x", (0,), "int8")
    for n in range(count):
        w = build.parameter(f"w{n}", (weight,), "int8")
        stream = build.op(f"layer_{n}", stream, w, shape=(0,), dtype="int8")
        if apart:
            stream = build.op(f"home_{n}", stream, shape=(0,), dtype="int8")
    graph = build.finish(stream)
    away = [op.name for op in graph.ops if "layer" in op.name]
    return graph, streaming(graph, place(graph, {"gpu": away}))


@pytest.mark.parametrize("apart", [False, True], ids=["one call", "a call each"])
@pytest.mark.parametrize(("compute", "weight"), [(5.0, 3), (3.0, 5), (4.0, 4), (0.0, 2)])
def test_weights_come_while_the_op_before_computes(compute, weight, apart):
    """The first weight; of each op the greater of computing it and sending the next; the last."""
    count = 6
    graph, where = layers(count, weight, apart=apart)
    assert len(account(graph, where, Links(WHOLE)).calls) == (count if apart else 1)
    laid = timed(graph, where, compute)
    assert laid.makespan_seconds == weight + (count - 1) * max(compute, weight) + compute
    assert laid.serial_seconds == count * (compute + weight)


def test_a_device_that_forgets_is_sent_nothing_ahead():
    graph, where = layers(6, 3, apart=True)
    assert timed(graph, where, 5.0, "call").makespan_seconds == 6 * (5 + 3)
