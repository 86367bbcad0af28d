"""Bottlenecks and what relieves them: families by hand, every saving against a recount."""

import re
from collections import defaultdict
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.links import Links, load_link
from cutedge._words import bottleneck_sentence
from partition import Residency
from partition.accounting import account
from partition.explain import Bottleneck, compare_traffic, find_bottleneck, top_transfers
from partition.ladder import dearest
from partition.placement import Placement, validate
from partition.policy import apply_policy, fixed_policy_names, load_policy
from partition.wire_format import WireFormat
from tests.support.examples import examples
from tests.support.graphs import Builder, describe, graphs, place, placements
from tracer.graph import Kind, OpGraph
from tracer.summary import largest_tensors, tensor_names

LINKS = Links(load_link("none"))

# Everywhere here batch is 1 and seq is 8, and an element of float32 is 4 bytes: a tensor of
# ("batch", "seq", n) has 32 n bytes.


def bottleneck(
    graph: OpGraph,
    where: Placement,
    policies: dict[str, Placement] | None = None,
    wire_dtype: str | None = None,
    residency: Residency = "run",
) -> Bottleneck | None:
    traffic = account(graph, where, LINKS, wire=WireFormat(wire_dtype), residency=residency)
    return find_bottleneck(
        graph,
        where,
        traffic,
        LINKS,
        policies=policies or {},
        wire=WireFormat(wire_dtype),
        residency=residency,
    )


# --- names and families ---------------------------------------------------------------------------


def test_a_tensor_is_called_by_as_much_of_its_module_as_no_other_module_shares():
    build = Builder()
    named = {
        # (module path, label, name of the op): what it is called
        ("model.layers.0.mlp.up", None, "linear_0"): "up",
        ("model.layers.1.mlp.up", None, "linear_1"): "up",
        ("model.layers.1.mlp.proj", None, "linear_2"): "mlp.proj",
        ("model.layers.1.attn.proj", None, "linear_3"): "attn.proj",
        ("model.layers.1.proj", None, "linear_4"): "layers.*.proj",
        ("model.layers.1.mlp.experts.3", None, "linear_5"): "experts.*",
        ("model.layers.1.mlp.experts.12", None, "linear_6"): "experts.*",
        ("proj", None, "linear_7"): "proj",
        ("model.layers.1.attn.q", None, "linear_8"): "attn.q",  # q is another thing's label
        ("model.layers.1.attn", "q", "view_9"): "q",
        ("model", None, "add_10"): "model",
        ("", None, "add_11"): "add",  # of the model itself
        ("", None, "add_12"): "add",
        ("3", None, "linear_13"): "linear",  # of a bare stack
    }
    x = build.input("input_ids", ("batch", "seq", 1))
    for path, label, name in named:
        build.op(name, x, shape=("batch", "seq", 1), path=path, label=label)
    graph = build.finish(x)
    assert tensor_names(graph) == ["input_ids", *named.values()]


def two_layers() -> OpGraph:
    """Per layer attn.proj -> gelu -> mlp.proj; between the layers an add of the input."""
    build = Builder()
    x = h = build.input("x", ("batch", "seq", 4))
    for layer in range(2):
        path = f"model.layers.{layer}"
        a = build.op(
            f"a_{layer}", h, shape=("batch", "seq", 16), kind=Kind.LINEAR, path=f"{path}.attn.proj"
        )
        g = build.op(f"g_{layer}", a, shape=("batch", "seq", 16), path=f"{path}.act")
        m = build.op(
            f"m_{layer}", g, shape=("batch", "seq", 4), kind=Kind.LINEAR, path=f"{path}.mlp.proj"
        )
        h = build.op(f"h_{layer}", m, x, shape=("batch", "seq", 4), path=path)
    return build.finish(h)


LINEARS = {"gpu": ["a_0", "m_0", "a_1", "m_1"]}


def test_transfers_are_grouped_by_module_direction_and_size():
    graph = two_layers()
    traffic = account(graph, place(graph, LINEARS), LINKS)
    found = [(g.name, g.direction, g.count, g.payload_bytes) for g in top_transfers(graph, traffic)]
    assert found == [
        ("attn.proj", "receive", 2, 1024),  # 2 x 8 x 16 x 4 bytes
        ("act", "send", 2, 1024),
        ("mlp.proj", "receive", 2, 256),
        ("x", "send", 1, 128),
        ("layers.*", "send", 1, 128),  # h_0; h_1 is an output and stays at home
    ]
    shares = [g.share for g in top_transfers(graph, traffic)]
    assert shares == [1024 / 2560, 1024 / 2560, 256 / 2560, 128 / 2560, 128 / 2560]


def test_like_tensors_are_one_family_and_unlike_ones_are_not():
    """attn.proj and mlp.proj are both called proj; one module makes tensors of two shapes."""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    for layer in range(3):
        path = f"layers.{layer}"
        build.op(f"a_{layer}", x, shape=("batch", "seq", 5), path=f"{path}.attn.proj")
        build.op(f"m_{layer}", x, shape=("batch", "seq", 6), path=f"{path}.mlp.proj")
        build.op(f"n_{layer}", x, shape=("batch", "seq", 9), path=f"{path}.attn.proj")
    made = range(1, 10)
    graph = build.finish(*made)
    found = bottleneck(graph, place(graph, {"gpu": [op.name for op in graph.ops[1:10]]}))
    assert (found.name, found.transfers) == ("attn.proj", 3)
    assert found.payload_bytes == 3 * 9 * 32
    assert found.share == 27 * 32 / (1 + 15 + 18 + 27) / 32


def test_scores_and_probabilities_are_one_family_in_every_shape():
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    scores = build.op("qk", x, shape=("batch", "seq", "seq"), label="attention_scores")
    bias = build.op("bias", x, shape=("batch", "seq", "seq"), path="bias")
    probs = build.op("softmax", scores, bias, shape=("batch", "seq", 7), label="attention_probs")
    graph = build.finish(build.op("pv", probs, shape=("batch", "seq", 1)))
    found = bottleneck(graph, place(graph, {"gpu": ["qk", "pv"]}))
    assert (found.name, found.transfers) == ("the attention scores", 2)
    assert found.payload_bytes == (8 + 7) * 32
    assert found.example.seq_degree == 2  # of the larger


def test_the_largest_tensors_are_called_as_the_transfers_are():
    found = largest_tensors(two_layers(), 3)
    assert [(group.name, group.count) for group in found] == [
        ("attn.proj", 2),
        ("act", 2),
        ("x", 1),
    ]


# --- reliefs by hand ------------------------------------------------------------------------------


def test_what_works_on_the_heaviest_alone_follows_it():
    graph = two_layers()
    found = bottleneck(graph, place(graph, LINEARS))
    assert (found.name, found.share) == ("attn.proj", 0.4)
    relief = found.relief
    # g_0 and g_1 leave home: 2 x 512 no longer received, 2 x 512 no longer sent, two calls less
    assert (relief.saved_bytes, relief.saved_calls) == (2048, 2)
    assert relief.placement == place(graph, {"gpu": [*LINEARS["gpu"], "g_0", "g_1"]})
    assert (relief.moved_ops, relief.device, relief.policy) == (("add",), "gpu", None)
    assert (relief.wire_dtype, relief.elsewhere) == (None, False)


def head_and_gelu() -> OpGraph:
    """x -> up -> gelu -> down, and from down the head: the results, heavier than all else"""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    up = build.op("up", x, shape=("batch", "seq", 4), path="up")
    gelu = build.op("gelu", up, shape=("batch", "seq", 4), path="gelu")
    down = build.op("down", gelu, shape=("batch", "seq", 1), path="down")
    return build.finish(build.op("head", down, shape=("batch", "seq", 64), path="head"))


def test_where_the_heaviest_must_cross_another_family_may_be_spared():
    graph = head_and_gelu()
    found = bottleneck(graph, place(graph, {"gpu": ["up", "down", "head"]}))
    assert found.name == "head"  # 64 of 1 + 4 + 4 + 64
    assert found.relief.saved_bytes == 2 * 4 * 32
    assert found.relief.saved_calls == 1
    assert found.relief.elsewhere
    assert "would save 0.0002 MiB of other tensors and 1 call." in bottleneck_sentence(found)


def test_of_two_families_the_step_that_saves_most_is_taken():
    """From a 9 wide result at home a 1 wide one, from a 6 wide one a 6 wide one, both sent."""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    wide = build.op("wide", x, shape=("batch", "seq", 9), path="wide")
    half = build.op("half", x, shape=("batch", "seq", 6), path="half")
    less = build.op("less", wide, shape=("batch", "seq", 1), path="less")
    as_much = build.op("as_much", half, shape=("batch", "seq", 6), path="as_much")
    kept = build.op("kept", wide, x, shape=("batch", "seq", 1), path="kept")  # wide comes home
    last = build.op("last", less, as_much, shape=("batch", "seq", 1), path="last")
    graph = build.finish(last, kept)
    found = bottleneck(graph, place(graph, {"gpu": ["wide", "half", "last"]}))
    assert found.name == "wide"
    # Both are of one call, so both may move; wide comes home all the same.
    assert found.relief.saved_bytes == (6 + 6 + 1) * 32
    assert found.relief.elsewhere


def test_two_families_are_tried_together_where_neither_alone_sets_anything_free():
    """mix works on what two calls return, and on neither alone."""
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 8), path="a")
    home = build.op("home", a, x, shape=("batch", "seq", 1), path="home")  # x is not returned
    b = build.op("b", home, shape=("batch", "seq", 8), path="b")
    mix = build.op("mix", a, b, shape=("batch", "seq", 8), path="mix")
    graph = build.finish(build.op("c", mix, shape=("batch", "seq", 1), path="c"))
    where = place(graph, {"gpu": ["a", "b", "c"]})
    found = bottleneck(graph, where)
    assert found.name == "a"
    # b stays where it is and mix is made there: 8 and 8 elements a token
    assert found.relief.saved_bytes == 2 * 8 * 32
    assert found.relief.placement == place(graph, {"gpu": ["a", "b", "mix", "c"]})


def test_where_no_op_can_move_the_wire_may_be_narrower():
    build = Builder()
    x = build.input("x", ("batch", "seq", 4))
    graph = build.finish(build.op("a", x, shape=("batch", "seq", 4)))
    where = place(graph, {"gpu": ["a"]})
    relief = bottleneck(graph, where).relief
    assert (relief.wire_dtype, relief.saved_bytes, relief.saved_calls) == ("bfloat16", 128, 0)
    assert (relief.moved_ops, relief.device, relief.placement) == ((), None, where)
    sentence = bottleneck_sentence(bottleneck(graph, where))
    assert "; sending floats as bfloat16 (--wire-dtype) would save 0.0001 MiB." in sentence
    for narrow in ("bfloat16", "float16", "float8_e4m3fn"):
        assert bottleneck(graph, where, wire_dtype=narrow).relief is None


def test_where_nothing_helps_it_says_so():
    build = Builder()
    x = build.input("x", ("batch", "seq", 4), "int64")
    graph = build.finish(build.op("a", x, shape=("batch", "seq", 1), dtype="bool"))
    found = bottleneck(graph, place(graph, {"gpu": ["a"]}))
    assert found.relief is None
    assert bottleneck_sentence(found) == (
        "Bottleneck: 97.0% of the traffic is x (1 transfer, growing with seq); "
        "no step tried here relieves it."
    )


def test_nothing_crosses():
    graph = two_layers()
    assert bottleneck(graph, place(graph, {})) is None
    assert bottleneck_sentence(None) == "Nothing crosses between devices."
    build = Builder()  # a tensor of no bytes crosses, and makes no traffic
    x = build.input("x", ("batch", "past", 4))
    empty = build.finish(build.op("a", x, shape=("batch", "past", 4)))
    where = place(empty, {"gpu": ["a"]})
    assert len(account(empty, where, LINKS).transfers) == 2
    assert bottleneck(empty, where) is None
    assert top_transfers(empty, account(empty, where, LINKS)) == []


def test_a_size_without_seq_is_constant():
    build = Builder()
    x = build.input("x", ("batch", 4), "int64")
    graph = build.finish(build.op("a", x, shape=(1,), dtype="bool"))
    sentence = bottleneck_sentence(bottleneck(graph, place(graph, {"gpu": ["a"]})))
    assert "(1 transfer, of constant size)" in sentence


def test_views_are_named_only_where_nothing_else_moves():
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 4))
    seen = build.view("seen", a)
    both = build.finish(build.op("b", seen, shape=("batch", "seq", 1)))
    assert bottleneck(both, place(both, {"gpu": ["a", "b"]})).relief.moved_ops == ("view",)
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 4))
    soft = build.op("soft", build.view("seen", a), shape=("batch", "seq", 4), kind=Kind.SOFTMAX)
    both = build.finish(build.op("b", soft, shape=("batch", "seq", 1)))
    assert bottleneck(both, place(both, {"gpu": ["a", "b"]})).relief.moved_ops == ("softmax",)


def test_of_several_accelerators_the_one_that_saves_most():
    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    a = build.op("a", x, shape=("batch", "seq", 4))
    g = build.op("g", a, shape=("batch", "seq", 4))
    graph = build.finish(build.op("b", g, shape=("batch", "seq", 1)))
    relief = bottleneck(graph, place(graph, {"gpu": ["a"], "npu": ["b"]})).relief
    # To either: a goes to npu, or g does, once instead of home and out again.
    assert (relief.saved_bytes, relief.device) == (128, "gpu")


# --- policies by name -----------------------------------------------------------------------------


def test_of_policies_that_are_the_step_the_first_is_named():
    graph = two_layers()
    where = place(graph, LINEARS)
    step = place(graph, {"gpu": [*LINEARS["gpu"], "g_0", "g_1"]})
    more = place(graph, {"gpu": [*LINEARS["gpu"], "g_0", "g_1", "h_1"]})
    for policies, named in (
        ({"zeta": step, "alpha": step}, "zeta"),
        ({"alpha": step, "zeta": step}, "alpha"),
        ({"more": more, "zeta": step}, "zeta"),  # fewest others
        ({"less": place(graph, LINEARS), "none": place(graph, {})}, None),
    ):
        relief = bottleneck(graph, where, policies).relief
        assert (relief.policy, relief.saved_bytes) == (named, 2048)


def test_a_policy_that_does_more_is_named_with_its_own_saving():
    """It takes the step and, beside it, another one; or one that costs more than the step saves."""
    graph = two_layers()
    where = place(graph, LINEARS)
    step = [*LINEARS["gpu"], "g_0", "g_1"]
    helps = {"helps": place(graph, {"gpu": [*step, "h_0", "h_1"]})}  # x goes out, and h_1 comes
    relief = bottleneck(graph, where, helps).relief
    assert relief.policy == "helps"
    assert relief.saved_bytes == 2560 - 128 - 128
    assert relief.saved_calls == 3
    assert relief.placement == helps["helps"]

    build = Builder()
    x = build.input("x", ("batch", "seq", 1))
    far = build.input("far", ("batch", "seq", 90))
    a = build.op("a", x, shape=("batch", "seq", 4))
    g = build.op("g", a, shape=("batch", "seq", 4))
    b = build.op("b", g, shape=("batch", "seq", 1))
    graph = build.finish(b, build.op("sum", far, shape=("batch", "seq", 1)))
    where = place(graph, {"gpu": ["a", "b"]})
    hurts = {"hurts": place(graph, {"gpu": ["a", "g", "b", "sum"]})}  # far would cross
    relief = bottleneck(graph, where, hurts).relief
    assert (relief.policy, relief.saved_bytes) == (None, 256)


# --- any graph, any placement ---------------------------------------------------------------------


@st.composite
def cases(draw):
    graph = draw(graphs())
    where, *others = (draw(placements(graph, ["gpu"])) for _ in range(3))
    return graph, where, {"first": others[0], "second": others[1]}


def family(graph: OpGraph, tensor: int) -> tuple[str, tuple[int, ...]]:
    made = graph.tensors[tensor]
    path = graph.ops[made.op].module_path or made.name
    return re.sub(r"\d+", "", path), made.shape


@examples(25, derandomize=True)
@given(cases(), st.sampled_from(["run", "call"]), st.sampled_from([None, "float64", "bfloat16"]))
def test_what_is_claimed_is_what_a_recount_finds(case, residency, wire_dtype):
    graph, where, policies = case
    note(describe(graph, where))
    traffic = account(graph, where, LINKS, wire=WireFormat(wire_dtype), residency=residency)
    found = bottleneck(graph, where, policies, wire_dtype, residency)
    weights = defaultdict(list)
    for transfer in traffic.transfers:
        weights[family(graph, transfer.tensor.id)].append(transfer.payload_bytes)
    if not traffic.totals.payload_bytes:
        assert found is None
        return
    assert found.payload_bytes == max(map(sum, weights.values()))
    assert (found.payload_bytes, found.transfers) in [
        (sum(each), len(each)) for each in weights.values()
    ]
    assert found.share == found.payload_bytes / sum(chain(*weights.values()))
    relief = found.relief
    if relief is None:
        return
    validate(graph, relief.placement)
    recount = account(
        graph,
        relief.placement,
        LINKS,
        wire=WireFormat(relief.wire_dtype or wire_dtype),
        residency=residency,
    )
    assert relief.saved_bytes > 0
    assert relief.saved_bytes == traffic.totals.payload_bytes - recount.totals.payload_bytes
    assert relief.saved_calls == len(traffic.calls) - len(recount.calls)
    if relief.policy is not None:
        assert relief.placement == policies[relief.policy]
    assert (relief.placement.devices == where.devices) == (relief.wire_dtype is not None)
    assert all(
        before == where.home or before == after
        for before, after in zip(where.devices, relief.placement.devices, strict=True)
    )


# --- the models that the reference is about -------------------------------------------------------


def shipped(graph: OpGraph) -> dict[str, Placement]:
    return {
        name: apply_policy(graph, load_policy(name), home="tee", accelerators=("gpu",))
        for name in fixed_policy_names()
    }


LLAMA = {
    # 2 x 16 layers x [1, 32, 1024, 1024] float32 = 4096 MiB of 6984.5
    "offload-linear": "Bottleneck: 58.6% of the traffic is the attention scores (32 transfers, "
    "growing with seq²); running mul, add, softmax on gpu too (--policy fuse-attention) would "
    "save 4096.0000 MiB and 16 calls.",
    # gate, up and their product: 3 x 16 x [1, 1024, 8192] float32 = 1536 MiB
    "fuse-attention": "Bottleneck: 17.7% of the traffic is gate_proj (16 transfers, growing with "
    "seq); running silu, mul on gpu too would save 1536.0000 MiB and 16 calls.",
    "flash-attention": "Bottleneck: 19.0% of the traffic is gate_proj (16 transfers, growing with "
    "seq); running silu, mul on gpu too would save 1536.0000 MiB and 16 calls.",
    "all-home": "Nothing crosses between devices.",
}


@pytest.mark.parametrize("residency", ["run", "call"])
@pytest.mark.parametrize("policy", LLAMA)
def test_the_bottlenecks_of_llama(traced, policy, residency):
    graph = traced("llama-3.2-1b", seq=1024)
    known = shipped(graph)
    found = bottleneck(graph, known[policy], known, residency=residency)
    assert bottleneck_sentence(found) == LLAMA[policy]
    if found is not None and found.relief.policy:
        after = account(graph, known[found.relief.policy], LINKS, residency=residency)
        before = account(graph, known[policy], LINKS, residency=residency)
        assert found.relief.saved_bytes == before.totals.payload_bytes - after.totals.payload_bytes


@pytest.mark.slow
def test_fuse_is_named_where_flash_is_the_same(traced):
    """gpt2's heads have K and V each: the two policies are one placement."""
    graph = traced("gpt2", seq=1024)
    known = shipped(graph)
    assert known["fuse-attention"].devices == known["flash-attention"].devices
    assert bottleneck(graph, known["offload-linear"], known).relief.policy == "fuse-attention"


# --- comparisons ----------------------------------------------------------------------------------


def test_a_comparison_is_against_the_baseline():
    graph = two_layers()
    base, more, nothing = place(graph, LINEARS), place(graph, {"gpu": ["h_0"]}), place(graph, {})
    traffics = {where: account(graph, where, LINKS) for where in (base, more, nothing)}
    against = traffics[base]
    assert against.totals.payload_bytes == 2560
    # m_0 and x go out (4 elements a token each) and h_0 comes back
    found = {w: compare_traffic(w, t, against) for w, t in traffics.items()}
    assert [(found[w].saved_bytes, found[w].saved_share) for w in (base, more, nothing)] == [
        (0, 0.0),
        (2560 - 384, (2560 - 384) / 2560),
        (2560, 1.0),
    ]
    worse = compare_traffic(base, against, traffics[nothing])
    assert (worse.saved_bytes, worse.saved_share) == (-2560, None)


def test_what_is_resident_off_home_is_summed_over_the_accelerators():
    graph = two_layers()
    where = place(graph, {"gpu": ["a_0"], "npu": ["m_0"]})
    traffic = replace(
        account(graph, where, LINKS), resident_bytes={"tee": 1, "gpu": 20, "npu": 300}
    )
    assert compare_traffic(where, traffic, traffic).resident_off_home_bytes == 320


def test_the_dearest_choices_are_recounted(traced):
    """From everything dear to the optimum: each gain is what the cost falls by, most first."""
    graph = traced("edge-10m", seq=8)
    start, end = (
        apply_policy(graph, load_policy(name), home="tee", accelerators=("gpu",))
        for name in ("offload-linear", "flash-attention")
    )

    def cost(placement):
        return account(graph, placement, LINKS).totals.payload_bytes

    found = dearest(graph, start, end, cost, most=100)
    assert sum(choice.saved for choice in found) == cost(start) - cost(end) > 0
    assert all(choice.saved > 0 and choice.device == "gpu" for choice in found)
    assert dearest(graph, start, end, cost, most=1) == found[:1]
    # What lies at home and is sent is a choice too, of ops that stay where they are.
    sent = replace(end, streams=frozenset(op.id for op in graph.ops if op.kind is Kind.LINEAR))
    (choice,) = dearest(graph, sent, end, cost, most=1)
    assert choice.saved <= cost(sent) - cost(end)
    assert dearest(graph, end, sent, cost) == []
