"""A run is worked out from what its ops read, apart from the accounting; the two can disagree."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import partition.accounting
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from cutedge.runtime import RunError
from cutedge.runtime.home import Measured, workers
from cutedge.runtime.interpreter import Instructions, Interpreter
from cutedge.runtime.lineage import carriers
from cutedge.runtime.verify import judge
from cutedge.runtime.walk import walk
from cutedge.runtime.wire import Spec
from partition.accounting import Residency, account
from partition.placement import Placement
from partition.secrets import covered
from tests.support.running import Split, answer, split, tiny
from tracer.capture import runnable
from tracer.capture.runnable import Runnable
from tracer.graph import Kind, OpGraph
from tracer.program import Invocation

RESIDENCIES: tuple[Residency, ...] = ("run", "call")
LINKS = Links(load_link("unix-socket"))
SMALL: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 11,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
}
KINDS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "llama": (SMALL, {"phase": "decode", "past": 5}),
    "llama prefill": (SMALL, {"seq": 4, "cache": True}),
    "mistral": (SMALL | {"sliding_window": 4}, {"phase": "decode", "past": 9}),
    "t5": (
        {"num_layers": 2, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "vocab_size": 11},
        {"phase": "decode", "past": 5, "source": 6},
    ),
    "mamba": (
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 11},
        {"phase": "decode", "past": 5},
    ),
}


@cache
def model(name: str) -> Runnable:
    sizes, how = KINDS[name]
    return runnable({"model_type": name.split()[0], **sizes}, model=name, **how)


def placements(graph: OpGraph, draw: random.Random) -> Placement:
    """Any op on any of three devices, in runs of random length; inputs and the output at home."""
    devices, device = [], "tee"
    for op in graph.ops:
        if draw.random() < 0.4:
            device = draw.choice(("tee", "gpu", "gpu2"))
        own = "tee" if op.kind in (Kind.INPUT, Kind.OUTPUT) else device
        devices.append(None if graph.is_everywhere(op.id) else own)
    return Placement("tee", devices, [False] * len(devices), [""] * len(devices))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in KINDS]
)
def test_what_the_ops_of_a_run_lack_is_what_the_accounting_counts(name: str) -> None:
    """20 random placements: calls with their ops, and each transfer, both residencies.

    In every other one some ops have their parameters at home.
    """
    made, draw = model(name), random.Random(0)
    graph = annotate(made.graph)
    for number in range(20):
        residency = RESIDENCIES[number % 2]
        placement = placements(graph, draw)
        if number % 4 > 1:
            some = random.Random(number).sample(range(len(graph.ops)), len(graph.ops) // 2)
            placement = replace(placement, streams=frozenset(some))
        traffic = account(graph, placement, LINKS, residency=residency)
        walked = walk(graph, made.invocations, placement, residency)
        assert [(c.device, c.ops, c.step) for c in walked.calls] == [
            (c.device, c.ops, c.step) for c in traffic.calls
        ]
        assert Counter((m.tensor, m.src, m.dst, m.call) for m in walked.moves) == Counter(
            (t.tensor.id, t.src_device, t.dst_device, t.call) for t in traffic.transfers
        )


# --- a prediction that is wrong is named ----------------------------------------------------------


@pytest.fixture(scope="module")
def ran() -> tuple[Split, Measured]:
    """A run of the smallest model, all matrix products on a worker."""
    one = split()
    with workers(["gpu"]) as found:
        return one, one.run(found)


Moves = list[Any]


def dropped(moves: Moves) -> Moves:
    return moves[:3] + moves[4:]


def added(moves: Moves) -> Moves:
    """One goes the other way too, in the same call."""
    return [*moves, replace(moves[3], src=moves[3].dst, dst=moves[3].src)]


def twice(moves: Moves) -> Moves:
    return [*moves, moves[3]]


def later(moves: Moves) -> Moves:
    return [*moves[:3], replace(moves[3], call=moves[3].call + 1), *moves[4:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        (dropped, "{name} (tensor {t}) from {src} to {dst}: in call {c}; predicted: in no call"),
        (added, "{name} (tensor {t}) from {dst} to {src}: in no call; predicted: in call {c}"),
        (
            twice,
            "{name} (tensor {t}) from {src} to {dst}: in call {c}; predicted: in calls {c}, {c}",
        ),
        (later, "{name} (tensor {t}) from {src} to {dst}: in call {c}; predicted: in call {n}"),
    ],
)
def test_a_wrong_prediction_is_named(
    ran: tuple[Split, Measured],
    change: Callable[[Moves], Moves] | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The accounting's own list is changed; the run is of the ops and knows nothing of it."""
    graph, placement, measured = ran[0].graph, ran[0].placement, ran[1]
    right = partition.accounting._moves
    changed: Moves = []

    def wrong(*args: Any) -> Moves:
        changed[:] = right(*args)
        return changed if change is None else change(changed)

    monkeypatch.setattr(partition.accounting, "_moves", wrong)
    traffic = account(graph, placement, ran[0].links)
    [result] = graph.inputs(len(graph.ops) - 1)
    verdict = judge(graph, traffic, measured, {result.id: answer()})
    if said is None:
        assert verdict.unequal == ()
        assert verdict.transfers_measured == verdict.transfers_predicted > 10
        return
    move = changed[3]
    assert not verdict.bytes_equal
    assert verdict.unequal[0] == said.format(
        name=graph.tensors[move.tensor].name,
        t=move.tensor,
        src=move.src,
        dst=move.dst,
        c=move.call,
        n=move.call + 1,
    )


def test_another_dtype_on_the_wire_and_what_came_for_no_op_are_named(
    ran: tuple[Split, Measured],
) -> None:
    graph, measured = ran[0].graph, ran[1]
    [result] = graph.inputs(len(graph.ops) - 1)
    first = next(c for c in measured.crossed if c.wire_dtype == "float32")
    name = f"{graph.tensors[first.tensor].name} (tensor {first.tensor})"
    others = [replace(c, wire_dtype="float16") if c is first else c for c in measured.crossed]
    wrong = replace(measured, crossed=others, unread={"gpu": [first.tensor]})
    found = judge(graph, ran[0].traffic, wrong, {result.id: answer()}).unequal
    assert found == (
        f"{name} from {first.src} to {first.dst}: float16; predicted: float32",
        f"{name} came to gpu, and no op there reads it",
    )


# --- cached state that comes in parts -------------------------------------------------------------


def test_parts_of_cached_state_survive_what_an_accelerator_forgets() -> None:
    """State 3 is cat(0, 1, 2). 1 comes with a call, 2 with a later one; 4 is no state."""
    joined = Invocation([[{"value": 0}, {"value": 1}, {"value": 2}], 0], {})
    instructions = Instructions(
        invocations={7: joined},
        targets={7: "aten.cat.default"},
        made={7: (3,)},
        everywhere={3: 7},
        specs={n: Spec("float32", (1 + 2 * (n == 3),)) for n in range(5)},
        uses={1: 1, 2: 1, 4: 1},
    )
    interpreter = Interpreter(instructions, resident={0: torch.tensor([1.0])})
    interpreter.begin()
    interpreter.put({1: torch.tensor([2.0]), 4: torch.tensor([9.0])})
    interpreter.keep([3])
    interpreter.forget()
    assert set(interpreter.held) == {1}
    assert interpreter.unread == {1, 4}
    interpreter.put({2: torch.tensor([3.0])})
    interpreter.keep([3])
    interpreter.forget()
    assert set(interpreter.held) == set()
    assert interpreter.unread == {4}
    assert interpreter.value(3).tolist() == [1, 2, 3]


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_channel_sends_no_tensor_with_a_secrets_values() -> None:
    """The plan sends it all the same; home's end of the connection refuses, and names it."""
    one = split()
    sent = next(t for t in one.traffic.transfers if t.direction == "send").tensor.id
    with workers(["gpu"]) as found:
        found["gpu"].channel.forbidden = carriers(one.graph, tiny().invocations, {"that": [sent]})
        with pytest.raises(
            RunError,
            match=rf"tensor {sent} is not sent to worker gpu, .* values of a secret \(.+ of that\)",
        ):
            one.run(found)


@pytest.mark.slow
def test_values_go_through_what_moves_them_and_not_through_arithmetic() -> None:
    """What carries a secret by this is what ``partition.secrets`` covers, from edges alone."""
    made = model("llama")
    for tensor in made.graph.tensors:
        found = carriers(made.graph, made.invocations, {"one": [tensor.id]})
        assert found.keys() == covered(made.graph, [tensor.id])
    moved = [
        (t.id, o.id)
        for op in made.graph.ops
        if op.is_view and op.id in made.invocations
        for t in made.graph.inputs(op.id)[:1]
        for o in made.graph.outputs(op.id)
        if made.graph.crosses(t) and made.graph.crosses(o)
    ]
    assert len(moved) > 5
    for source, result in moved:
        assert result in carriers(made.graph, made.invocations, {"one": [source]})
        assert source in carriers(made.graph, made.invocations, {"one": [result]})
