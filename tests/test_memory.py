"""Memory: the printed peak is at least what torch allocates, and cached state counts once."""

import pytest

from costmodels.links import Links, load_link
from costmodels.memory import memory_need
from partition.accounting import account
from partition.policy import apply_policy, load_policy
from partition.problem import memory_of
from partition.stored import resident_bytes
from tests.graphs import Builder
from tests.peaks import MODELS, compared, phases
from tracer.graph import OpGraph, Role

FAST = [("llama", "prefill"), ("llama", "decode"), ("resnet", "prefill")]


@pytest.mark.parametrize(("name", "phase"), FAST)
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


def test_a_cache_that_grows_counts_once(traced):
    """llama-2-7b in float16 over 12,000 tokens: 6,738,415,616 parameters, and 32 layers x 2 x
    4,096 values x 12,000 rows, of 2 bytes each: 12.55 + 5.86 GiB, and a row more while it runs."""
    graph = traced(
        "llama-2-7b", phase="decode", past=12_000, dtype="float16", overrides={}
    )  # fmt: skip
    row = 32 * 2 * 4096 * 2
    state = 12_000 * row
    need = memory_need(graph)
    assert need.resident_bytes - state - 6_738_415_616 * 2 in range(2**16)  # and small constants
    assert need.live_activation_bytes >= row
    # While one layer's keys are copied to make room for a row, the old ones are still there.
    assert need.peak_activation_bytes > state / 64
    assert need.peak_bytes < 24 * 2**30


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("edge-10m", {"seq": 16}), ("edge-10m", {"phase": "decode", "past": 40})],
)
def test_a_model_at_home_needs_what_a_device_needs_that_runs_it_all(traced, model, sizes):
    graph = traced(model, **sizes)
    where = apply_policy(graph, load_policy("all-home"), home="tee", accelerators=("gpu",))
    need = memory_need(graph)
    assert need.resident_bytes == resident_bytes(graph, where)["tee"]
    if graph.meta.phase == "prefill":
        transfers = account(graph, where, Links(load_link("none"))).transfers
        assert memory_of(graph, where, transfers)["tee"] == need.live_bytes
