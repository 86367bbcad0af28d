"""Memory: the printed peak is at least what torch allocates, and cached state counts once."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.memory import memory_need
from partition.accounting import account
from partition.placement import Placement
from partition.policy import apply_policy, load_policy
from partition.problem import memory_of
from partition.stored import resident_bytes, storages
from tests.audit.models import CONFIGS
from tests.support.graphs import Builder
from tools.peaks import MODELS, compared, phases
from tracer.capture import capture
from tracer.graph import OpGraph, Role
from tracer.summary import cached_outputs

FAST = [("resnet", "prefill"), ("llama", "decode"), ("llama", "prefill")]


@pytest.mark.parametrize(("name", "phase"), FAST)
@pytest.mark.few(1)
def test_torch_allocates_no_more_than_the_peak(name, phase):
    found = compared(name, phase)
    assert found.measured_bytes <= found.need.peak_bytes
    assert found.measured_bytes > found.need.peak_bytes / 4  # it says something


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "phase"), [(name, phase) for name in MODELS for phase in phases(name)]
)
def test_of_each_model_in_each_dtype(name, phase, dtype, attn):
    if attn == "sdpa" and name in ("t5", "resnet"):
        pytest.skip("there is no such attention")
    found = compared(name, phase, dtype, attn)
    assert found.measured_bytes <= found.need.peak_bytes


def decode() -> OpGraph:
    """A row of 2 values beside 10 cached rows, and a product with all of them."""
    b = Builder()
    past = b.input("past", [10, 2], role=Role.KV_CACHE)
    x = b.input("x", [1, 2])
    w = b.parameter("w", [2, 2])
    row = b.op("row", x, w, shape=[1, 2])
    grown = b.op("cat", past, row, shape=[11, 2])
    made = b.op("product", row, grown, shape=[1, 11])
    return b.finish(made)


@pytest.mark.slow
def test_a_cache_that_grows_counts_once(traced):
    """llama-2-7b in float16 over 12,000 tokens: 6,738,415,616 parameters, and 32 layers x 2 x
    4,096 values x 12,001 rows, of 2 bytes each: 12.55 + 5.86 GiB."""
    graph = traced("llama-2-7b", phase="decode", past=12_000, dtype="float16", overrides={})
    state = 32 * 2 * 4096 * 12_001 * 2
    need = memory_need(graph)
    assert need.resident_bytes - state - 6_738_415_616 * 2 in range(2**16)  # and small constants
    # While one layer's keys are copied to make room for a row, the old ones are still there.
    assert need.peak_activation_bytes > state / 64
    assert need.peak_bytes < 24 * 2**30


@pytest.mark.parametrize(
    ("model", "sizes"), [("edge-10m", {"seq": 16}), ("edge-10m", {"phase": "decode", "past": 40})]
)
def test_a_model_at_home_needs_what_a_device_needs_that_runs_it_all(traced, model, sizes):
    graph = traced(model, **sizes)
    need = memory_need(graph)
    assert resident_bytes(graph, all_home(graph))["tee"] == need.resident_bytes
    # A new row lies beside the state that it is appended to until that has been read.
    rows = lying_at_home(graph) - need.live_bytes
    assert 0 <= rows <= (0 if graph.meta.phase == "prefill" else 2 * 4 * 256 * 4)


ROW = 2 * 2 * 8 * 4
"""Of one layer keys and values, of two heads with 8 values of 4 bytes each."""

SHALLOW: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 1},
    # The first keeps 5 rows for a window of 6.
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "mamba": {},
}

MAMBA = 2 * (32 * 4 + 32 * 4) * 4
"""Of two layers what convolution and recurrence keep: 32 channels, 4 values each."""


@pytest.mark.parametrize(
    ("model", "sizes", "state"),
    [
        pytest.param("llama", {"seq": 8, "cache": True}, 8 * ROW, marks=pytest.mark.slow),
        ("llama", {"phase": "decode", "past": 8}, 9 * ROW),
        pytest.param("llama", {"seq": 4, "past": 8}, 12 * ROW, marks=pytest.mark.slow),
        pytest.param("gemma3", {"seq": 10, "cache": True}, (5 + 10) * ROW, marks=pytest.mark.slow),
        pytest.param(
            "gemma3", {"phase": "decode", "past": 12}, (5 + 13) * ROW, marks=pytest.mark.slow
        ),
        pytest.param("gemma3", {"seq": 4, "past": 12}, (5 + 16) * ROW, marks=pytest.mark.slow),
        pytest.param("mamba", {"seq": 4, "cache": True}, MAMBA, marks=pytest.mark.slow),
        pytest.param("mamba", {"phase": "decode", "past": 8}, MAMBA, marks=pytest.mark.slow),
    ],
)
def test_cached_state_counts_as_it_is_when_the_step_is_over(model, sizes, state):
    graph = small(model, sizes)
    kept = {graph.storage(t).id for t in cached_outputs(graph)}
    rest = {
        owner
        for op in graph.ops
        for owner in (graph.storage(t) for t in graph.inputs(op.id))
        if owner.id not in kept
        and owner.role not in (Role.INPUT, Role.KV_CACHE)
        and (owner.op is None or (graph.ops[owner.op].is_constant and not op.is_constant))
    }
    wanted = sum(t.bytes for t in rest) + state
    assert resident_bytes(graph, all_home(graph)) == {"tee": wanted}
    need = memory_need(graph)
    assert need.resident_bytes == wanted
    assert need.live_bytes <= lying_at_home(graph) <= need.peak_bytes


def lying_at_home(graph: OpGraph) -> int:
    where = all_home(graph)
    transfers = account(graph, where, Links(load_link("none"))).transfers
    return int(memory_of(graph, where, transfers)["tee"])


def small(model: str, sizes: dict[str, Any]) -> OpGraph:
    config = CONFIGS[model] | SHALLOW[model]
    return annotate(capture(config, model=model, symbolic=False, **sizes).graph)


def all_home(graph: OpGraph) -> Placement:
    return apply_policy(graph, load_policy("all-home"), home="tee", accelerators=("gpu",))


def test_state_that_no_op_reads_lies_where_it_is_made():
    b = Builder()
    x = b.input("x", [1, 2])
    w = b.parameter("w", [2, 2])
    row = b.op("row", x, w, shape=[1, 2])
    state = b.op("state", row, shape=[1, 2])
    b.tensors[state] = replace(b.tensors[state], role=Role.KV_CACHE)
    graph = b.finish(row, state)
    assert [graph.tensors[state].op] == [op for op, t in enumerate(storages(graph)) if state in t]
