"""The measured split of Llama-3.2-1B: every figure of the log, from the traced graph."""

import json

import pytest

from costmodels.links import Links, load_link
from partition.accounting import Traffic, account
from partition.policy import apply_policy, load_policy
from partition.wire_format import WireFormat
from tests.support import REFERENCE
from tracer.graph import OpGraph

DATA = json.loads((REFERENCE / "transfers_llama32_1b.json").read_text(encoding="utf-8"))
TOTALS = DATA["totals_by_policy_and_wire_dtype (payload, no framing)"]


@pytest.fixture(scope="module")
def llama(traced) -> OpGraph:
    return traced("llama-3.2-1b", seq=1024)


def split(graph: OpGraph, policy: str, wire_dtype: str | None = None) -> Traffic:
    placement = apply_policy(graph, load_policy(policy), home="tee", accelerators=("gpu",))
    return account(graph, placement, Links(load_link("zmq-ipc")), wire=WireFormat(wire_dtype))


@pytest.mark.parametrize("case", sorted(TOTALS))
def test_totals(llama, case):
    policy, wire = case.split("/")
    traffic = split(llama, policy, wire)
    totals, expected = traffic.totals, TOTALS[case]
    assert len(traffic.calls) == expected["calls"]
    assert totals.sent_payload_bytes == expected["sent_bytes"]
    assert totals.received_payload_bytes == expected["received_bytes"]
    assert totals.payload_bytes == expected["total_bytes"]
    assert f"{totals.payload_bytes / 2**20:.4f}" == f"{expected['total_MiB']:.4f}"


def test_framing_gives_the_digits_of_the_log(llama):
    totals, log = split(llama, "offload-linear").totals, DATA["measured_log"]
    assert round(totals.sent_wire_bytes / 2**20, 2) == log["sent_MB"]
    assert round(totals.received_wire_bytes / 2**20, 2) == log["received_MB"]
    assert round(totals.wire_bytes / 2**20, 2) == log["total_MB"]


def test_the_calls_come_in_the_order_of_the_log(llama):
    calls = split(llama, "offload-linear").calls
    layer = ["q_proj+k_proj+v_proj", "QK^T", "scores*V", "o_proj", "gate_proj+up_proj", "down_proj"]
    assert [call.label for call in calls] == ["embed_tokens", *layer * 16, "lm_head"]
    for call, expected in zip(
        calls, DATA["first_calls offload-linear/float32 (payload bytes)"], strict=False
    ):
        assert call.id == expected["order"]
        assert call.sent_payload_bytes == expected["sent"]
        assert call.received_payload_bytes == expected["received"]


def test_the_score_tensor_is_most_of_the_traffic(llama):
    traffic = split(llama, "offload-linear")
    scores = [
        t for t in traffic.transfers if t.tensor.label in ("attention_scores", "attention_probs")
    ]
    assert len(scores) == 32
    # [1, 32, 1024, 1024] in float32
    assert {t.payload_bytes for t in scores} == {32 * 1024 * 1024 * 4}
    assert {t.tensor.seq_degree for t in scores} == {2}
    share = sum(t.payload_bytes for t in scores) / traffic.totals.payload_bytes
    assert f"{share:.1%}" == "58.6%"


@pytest.mark.parametrize("policy", ["fuse-attention", "flash-attention"])
def test_fused_attention_sends_no_scores(llama, policy):
    assert all(
        (t.tensor.label or "") in "qkv" or t.tensor.seq_degree < 2
        for t in split(llama, policy).transfers
    )


def test_flash_attention_sends_k_and_v_with_their_own_heads(llama):
    sent = {
        t.tensor.label: t.tensor.shape
        for t in split(llama, "flash-attention").transfers
        if t.direction == "send" and t.tensor.label in ("q", "k", "v")
    }
    assert sent == {"q": (1, 32, 1024, 64), "k": (1, 8, 1024, 64), "v": (1, 8, 1024, 64)}
