"""What masks cost, by hand: bytes, FLOPs, pads; and what they leave as it is."""

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from partition.accounting import Traffic, account
from partition.masking import hides, masked, settled
from partition.masks import MaskedGraph
from partition.optimise import Placed, place
from partition.placement import Placement
from partition.policy import Policy, load_policy
from partition.protects import Protect
from partition.schemes import SCHEMES, Matrices, Protection, elements, false_accept, pad_bits
from partition.setting import Setting
from partition.stored import held, resident_bytes, state_devices
from partition.wire_format import WireFormat
from tests.support.examples import examples
from tests.support.graphs import HOME, Builder, describe, placements
from tests.support.graphs import place as placed_by
from tests.support.masked import against, linear, protected_graphs, rewritten
from tests.support.oracle import RESIDENCY, moves_of, oracle_calls, oracle_moves
from tracer.errors import InputError
from tracer.formula import parse
from tracer.graph import Kind, OpGraph

MIB = 2**20


def setting(wire: str | None = None, link: str = "none", accelerators=("gpu",), **options):
    return Setting(Machine("tee", accelerators, Links(load_link(link)), wire), **options)


def moved(placed: Placed, at: Setting) -> Traffic:
    return at.account(placed.graph, placed.placement, WireFormat(at.machine.wire_dtype))


def protecting(*ways: tuple[str, Protection], name: str = "mine") -> Policy:
    """Products away: of each kind that is named those that are protected so."""
    protects = tuple(Protect((("kind", (kind,)),), how, "") for kind, how in ways)
    return replace(load_policy("offload-linear"), name=name, protects=protects)


# --- Llama-3.2-1B: d = 2048, 512 for keys and values, 8192 inside of the MLP, 32 heads, 1024 tokens ---


@pytest.fixture(scope="module")
def llama(traced) -> OpGraph:
    return traced("llama-3.2-1b", seq=1024)


SHARED = "zmq-ipc-shm"
"""Tensors under 10 MiB lie in shared memory."""


@pytest.mark.parametrize(
    ("policy", "sent", "received", "layers"),
    [
        # MiB in bfloat16, of a layer; from 10 MiB on over the socket.
        # Sent: X of q, k, v 4; Q 8, K' 8 (two blocks each); P 128, V 8; X of o 4; of gate and up 4;
        # of down 16. Over the socket P and down: 144, times 16.
        # Received: q 4, k 1, v 1; QK' 256 (four blocks), PV 16; o 4; gate 16, up 16; down 4. Over the
        # socket 256 + 16 + 16 + 16 = 304, times 16. All of it 180 + 318.
        ("masked-all", 16 * 144, 16 * 304, 16 * (180 + 318)),
        # As plain: 64 of P and 16 of down; 64 of QK', 16 of gate and of up; 104 + 114 of all.
        ("rank-one", 16 * 80, 16 * 96, 16 * (104 + 114)),
        ("offload-linear", 16 * 80, 16 * 96, 16 * (104 + 114)),
    ],
)
def test_the_bytes_of_a_measured_system(llama, policy, sent, received, layers):
    at = setting("bfloat16", SHARED)
    placed = place(llama, load_policy(policy), at)
    traffic = moved(placed, at)
    assert len(traffic.calls) == 98
    assert traffic.totals.sent_wire_bytes / MIB == pytest.approx(sent, abs=0.02)
    assert traffic.totals.received_wire_bytes / MIB == pytest.approx(received, abs=0.02)
    ops = placed.graph.ops
    inside = (t for t in traffic.transfers if ops[t.tensor.op or 0].layer is not None)
    assert sum(t.payload_bytes for t in inside) == layers * MIB


def test_the_plain_run_of_eight_tokens(traced):
    """Of a layer 8 tensors sent and 9 received, and 2 each of the embedding and the head: 276."""
    at = setting("bfloat16", SHARED)
    plain = place(traced("llama-3.2-1b", seq=8), load_policy("offload-linear"), at)
    traffic = moved(plain, at)
    assert len(traffic.transfers) == 16 * 17 + 4 == 276
    assert traffic.totals.payload_bytes / MIB == pytest.approx(11.6548, abs=5e-5)


def of_layer(placed: Placed, layer: int = 0) -> dict[str, int]:
    """Part of what home does -> its FLOPs in a layer."""
    found: dict[str, int] = defaultdict(int)
    graph = placed.graph
    assert isinstance(graph, MaskedGraph)
    for op, (part, _) in graph.parts.items():
        if graph.ops[op].layer == layer:
            found[part] += graph.ops[op].cost.flops or 0
    return found


def test_the_pads_and_the_work_of_a_layer(llama):
    """Pads in bfloat16: R of q, k, v 4 MiB, of o 4, of gate and up 4, of down 16: 28. RW of q 4, of
    k 1, of v 1, of o 4, of gate 16, of up 16, of down 4: 46. Together 74; the head has R of one token
    and RW of the vocabulary.

    Home: 1 FLOP for each of n (3 d + 8192) values that are sent and n (3 d + 2 * 512 + 2 * 8192)
    that come back. Before the run 2 n (2 d d + 2 * 512 d + 3 * 8192 d).
    """
    n, d, kv, inner, words = 1024, 2048, 512, 8192, 128256
    slalom = place(llama, load_policy("slalom"), setting("bfloat16"))
    assert isinstance(slalom.graph, MaskedGraph)
    assert slalom.graph.pad_bytes == 16 * 74 * MIB + 2 * (d + words)
    assert of_layer(slalom) == {
        "mask": n * (3 * d + inner),
        "recover": n * (3 * d + 2 * kv + 2 * inner),
    }
    layer = 2 * n * (2 * d * d + 2 * kv * d + 3 * inner * d)
    assert slalom.graph.offline_flops == 16 * layer + 2 * d * words
    verified = place(llama, load_policy("slalom-verified"), setting("bfloat16"))
    assert isinstance(verified.graph, MaskedGraph)
    # Two for each value of X, of which q, k and v read one each, and of Y, and a comparison a row.
    read, made = n * (6 * d + inner), n * (3 * d + 2 * kv + 2 * inner)
    assert of_layer(verified)["check"] == 2 * (read + made) + 7 * n
    checks = 16 * 2 * (2 * d * d + 2 * kv * d + 3 * inner * d) + 2 * d * words
    assert verified.graph.offline_flops - slalom.graph.offline_flops == checks


def test_the_work_of_masked_products(llama):
    """Home: 2 for each of Q, K', P and V, 6 for each of QK' and PV; away four times the FLOPs."""
    n, d, heads = 1024, 2048, 32
    slalom, whole = (
        place(llama, load_policy(name), setting("bfloat16")) for name in ("slalom", "masked-all")
    )
    scores = heads * n * n
    assert of_layer(whole)["mask"] - of_layer(slalom)["mask"] == 2 * (3 * n * d + scores)
    assert of_layer(whole)["recover"] - of_layer(slalom)["recover"] == 6 * (scores + n * d)
    flops = {
        kind: sum(op.cost.flops for op in graph.ops if op.kind is kind)
        for graph in (llama, whole.graph)
        for kind in (Kind.MATMUL,)
    }
    assert flops == {Kind.MATMUL: 16 * 4 * 2 * 2 * n * n * d}


def test_an_orthogonal_mask_is_a_quarter_of_the_product():
    """GELO: A X and A^-1 Y take 2 * 2 n n d of 2 n d d FLOPs: 2 n / d, which is 24 % at 500 tokens."""
    scheme = SCHEMES["orthogonal", "weights"]
    n, d = 500, 4096
    product = Matrices((n, d), (d, d), (n, d), d)
    assert scheme.mask is not None
    assert scheme.recover is not None
    home = scheme.mask(product.left) + scheme.recover(product.result)
    assert home / product.flops == pytest.approx(0.24, abs=0.005)


# --- one product, by hand -------------------------------------------------------------------------


def one_linear(*, bias: bool = False) -> OpGraph:
    """X of 4 x 6 and weights of 10 x 6, Y of 4 x 10: 24, 60 and 40 elements, 2 * 4 * 6 * 10 FLOPs."""
    b = Builder(seq=4)
    y = linear(b, "up", b.input("x", ("batch", "seq", 6)), 10, bias=bias)
    return annotate(b.finish(y))


PAD = Protection("one-time-pad")
MOD = Protection("one-time-pad-mod")


@pytest.mark.parametrize(
    ("how", "home", "offline", "pads"),
    [
        (PAD, 24 + 40, 480, 4 * (24 + 40)),
        (replace(PAD, pads="online"), 24 + 40 + 480, 0, 0),
        (replace(PAD, check="freivalds"), 64 + 2 * 64 + 4, 480 + 2 * 60, 256),
        (replace(PAD, check="freivalds", trials=2), 64 + 2 * (2 * 64 + 4), 480 + 4 * 60, 256),
        (MOD, 3 * 64, 480, 256),
        (replace(MOD, bits=64), 3 * 64, 480, 512),
        (replace(MOD, pads="online"), 3 * 64 + 480, 0, 0),
        (replace(MOD, check="freivalds"), 3 * 64 + 2 * 64 + 4, 480 + 2 * 60, 256),
        (Protection("rank-one"), 5 * 64, 0, 0),
        (Protection("orthogonal"), 2 * 4 * 64, 0, 0),
        (Protection("permutation"), 0, 0, 0),
        (Protection("freivalds"), 2 * 64 + 4, 2 * 60, 0),
    ],
    ids=str,
)
def test_what_a_product_with_weights_takes(how, home, offline, pads):
    graph = one_linear()
    there = masked(graph, {1: how})
    assert isinstance(there, MaskedGraph)
    assert (there.home_mask_flops, there.offline_flops, there.pad_bytes) == (home, offline, pads)
    away = there.ops[there.here[1]]
    assert away.cost.flops == graph.ops[1].cost.flops == 480
    sizes = [t.shape for t in (*there.inputs(away.id), *there.outputs(away.id))]
    assert sizes == [(1, 4, 6), (10, 6), (1, 4, 10)]
    # A product adds its bias before it is recovered: to what a pad masked so, at home where the mask
    # would change it or where it is no integer, an addition for each of Y.
    biased = masked(one_linear(bias=True), {1: how})
    assert isinstance(biased, MaskedGraph)
    at_home = how.scheme in ("rank-one", "orthogonal", "one-time-pad-mod")
    assert biased.home_mask_flops == home + 40 * at_home
    reads = [biased.tensors[t.id].name for t in biased.inputs(biased.here[1])]
    assert ("up.bias" in reads) is not at_home


@pytest.mark.parametrize(
    ("how", "home", "sent", "comes", "away"),
    [
        (Protection("embedded-additive"), 2 * 48 + 6 * 16, [(1, 8, 6), (1, 6, 8)], (1, 8, 8), 4),
        (Protection("rank-one"), 2 * 48 + 2 * 16, [(1, 4, 6), (1, 6, 4)], (1, 4, 4), 1),
        (Protection("permutation"), 0, [(1, 4, 6), (1, 6, 4)], (1, 4, 4), 1),
        (Protection("freivalds"), 2 * (48 + 16) + 4, [(1, 4, 6), (1, 6, 4)], (1, 4, 4), 1),
    ],
    ids=str,
)
def test_what_a_product_of_two_activations_takes(how, home, sent, comes, away):
    """Q of 4 x 6 and K' of 6 x 4: 24, 24 and 16 elements, 2 * 4 * 6 * 4 FLOPs."""
    b = Builder(seq=4)
    q, k = (b.input(name, ("batch", "seq", 6)) for name in "qk")
    graph = annotate(b.finish(against(b, "scores", q, k)))
    there = masked(graph, {3: how})
    assert isinstance(there, MaskedGraph)
    product = there.here[3]
    assert there.home_mask_flops == home
    assert [t.shape for t in there.inputs(product)] == sent
    assert [t.shape for t in there.outputs(product)] == [comes]
    assert there.ops[product].cost.flops == away * 192
    assert there.offline_flops == there.pad_bytes == 0


def test_homes_traffic_is_that_of_its_tensors():
    """In bytes: X 96, R and X - R in int32 96, (X - R) W and RW 160, Y 160; R and RW of one-time-pad
    in bfloat16 half of it. A check reads what crosses where that is integers."""
    wide = masked(one_linear(), {1: MOD})
    slim = masked(one_linear(), {1: PAD}, "bfloat16")
    checked = masked(one_linear(), {1: Protection("freivalds")})
    moved = [
        [(graph.ops[op].cost.read_bytes, graph.ops[op].cost.write_bytes) for op in graph.parts]
        for graph in (wide, slim, checked)
        if isinstance(graph, MaskedGraph)
    ]
    assert moved[:2] == [[(96 + 96, 96), (160 + 160, 160)], [(96 + 48, 96), (160 + 80, 160)]]
    assert moved[2] == [(160 + 96 + 4 * (10 + 6), 0)]  # with r and W r; it hands Y on
    exact = masked(one_linear(bias=True), {1: replace(MOD, bits=64, check="freivalds")})
    assert isinstance(exact, MaskedGraph)
    (check,) = (op for op, (part, _) in exact.parts.items() if part == "check")
    cost, made = exact.ops[check].cost, exact.outputs(check)[0]
    assert (cost.read_bytes, cost.write_bytes) == (2 * (160 + 96) + 8 * (10 + 6), 0)
    assert (made.dtype, [exact.parts[op][0] for op in exact.readers(made.id)]) == (
        "int64",
        ["recover"],
    )


def test_integers_cross_in_their_own_size():
    """Whatever floats cross in; away lie 60 integers, at home the bias."""
    graph = one_linear(bias=True)
    for bits in (32, 64):
        there, where = rewritten(
            graph, placed_by(graph, {"gpu": ["up"]}), {1: replace(MOD, bits=bits)}
        )
        traffic = account(there, where, Links(load_link("none")), wire=WireFormat("bfloat16"))
        assert [t.payload_bytes for t in traffic.transfers] == [24 * bits // 8, 40 * bits // 8]
        assert resident_bytes(there, where)["gpu"] == 60 * bits // 8
        pads = (24 + 40) * bits // 8
        assert resident_bytes(there, where)["tee"] == pads + 4 * 10


def test_pads_of_the_run_need_the_weights_at_home():
    graph = one_linear()
    there, where = rewritten(
        graph, placed_by(graph, {"gpu": ["up"]}), {1: replace(PAD, pads="online")}
    )
    assert resident_bytes(there, where) == {"gpu": 240, "tee": 240}


def test_tied_weights_are_integers_once():
    b = Builder()
    x = b.input("x", (1, 8, 6))
    table = b.parameter("table", (6, 6))
    tied = b.parameter("head", (6, 6), alias_of=table)
    y = b.op("one", x, table, shape=(1, 8, 6), kind=Kind.LINEAR)
    z = b.op("two", y, tied, shape=(1, 8, 6), kind=Kind.LINEAR)
    graph = annotate(b.finish(z))
    there, where = rewritten(graph, placed_by(graph, {"gpu": ["one", "two"]}), {1: MOD, 2: MOD})
    assert resident_bytes(there, where)["gpu"] == 36 * 4


# --- one mask or several --------------------------------------------------------------------------


def sent_names(graph: OpGraph, where: Placement) -> list[str]:
    traffic = account(graph, where, Links(load_link("none")))
    return sorted(t.tensor.name for t in traffic.transfers if t.direction == "send")


@pytest.mark.parametrize(
    ("ways", "masks"),
    [
        ((PAD, PAD), 1),
        ((PAD, replace(PAD, check="freivalds")), 1),  # the mask is the same, checked or not
        ((PAD, replace(PAD, scale=2.0)), 2),
        ((PAD, replace(PAD, pads="online")), 2),
        ((MOD, replace(MOD, bits=64)), 2),
        ((Protection("permutation"), Protection("permutation", axis="channels")), 2),
        ((PAD, Protection("rank-one")), 2),
    ],
)
def test_a_tensor_crosses_once_for_each_mask(ways, masks):
    b = Builder(seq=4)
    x = b.input("x", ("batch", "seq", 6))
    q, k = linear(b, "q", x, 10), linear(b, "k", x, 3)
    graph = annotate(b.finish(q, k))
    there, where = rewritten(
        graph, placed_by(graph, {"gpu": ["q", "k"]}), dict(zip((1, 2), ways, strict=True))
    )
    assert sent_names(there, where) == ["x.masked"] * masks
    assert isinstance(there, MaskedGraph)
    assert len({there.masks[t].protection.scheme for t in there.masks}) <= masks


def test_several_accelerators_get_the_same_masked_tensor():
    b = Builder(seq=4)
    x = b.input("x", ("batch", "seq", 6))
    graph = annotate(b.finish(linear(b, "q", x, 10), linear(b, "k", x, 3)))
    where = placed_by(graph, {"gpu": ["q"], "npu": ["k"]})
    there, where = rewritten(graph, where, {1: PAD, 2: PAD})
    traffic = account(there, where, Links(load_link("none")))
    assert [(t.tensor.name, t.dst_device) for t in traffic.transfers if t.direction == "send"] == [
        ("x.masked", "gpu"),
        ("x.masked", "npu"),
    ]
    assert isinstance(there, MaskedGraph)
    assert there.home_mask_flops == 24 + 40 + 12


# --- traced models --------------------------------------------------------------------------------

SMALL = {"num_hidden_layers": 2}
ALL = protecting(("linear", PAD), ("matmul", Protection("embedded-additive")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        (("linear", PAD), ("matmul", Protection("embedded-additive"))),
        (("linear", replace(MOD, check="freivalds")), ("matmul", Protection("rank-one"))),
        (("linear", replace(PAD, pads="online")), ("matmul", Protection("freivalds", trials=3))),
        (("linear", Protection("orthogonal")), ("matmul", Protection("permutation"))),
    ],
)
@pytest.mark.few(1)
def test_formulas_are_those_of_any_size(traced, ways):
    """Bytes and FLOPs of all tensors and ops, from a trace of 1 x 8 tokens, at 3 x 21 tokens."""
    small, large = (
        place(traced("llama-3.2-1b", batch=batch, seq=seq, overrides=SMALL), protecting(*ways),
              setting()).graph
        for batch, seq in ((1, 8), (3, 21))
    )  # fmt: skip
    assert isinstance(small, MaskedGraph)
    assert isinstance(large, MaskedGraph)
    sizes = large.meta.variables
    for one, other in zip(small.tensors, large.tensors, strict=True):
        if one.bytes_expr is not None:
            assert parse(one.bytes_expr).evaluate(sizes) == other.bytes, one.name
            assert one.seq_degree == other.seq_degree
        if one.shape_expr is not None:
            assert tuple(parse(size).evaluate(sizes) for size in one.shape_expr) == other.shape
    for op, bigger in zip(small.ops, large.ops, strict=True):
        if op.cost.flops_expr is not None:
            assert parse(op.cost.flops_expr).evaluate(sizes) == bigger.cost.flops, op.name
    assert small.offline.evaluate(sizes) == large.offline_flops


@pytest.mark.slow
def test_a_masked_cache_lies_at_home_and_crosses_whole(traced):
    """One of 40 tokens, of 4 heads of 64: K' of 4 x 64 x 41 in two blocks, V likewise."""
    graph = traced("edge-10m", phase="decode", past=40)
    plain, hidden = (
        place(graph, policy, setting()) for policy in (load_policy("offload-linear"), ALL)
    )
    assert {*map(frozenset, state_devices(hidden.graph, hidden.placement).values())} == {
        frozenset(["tee"])
    }
    crossed = {t.tensor.name: t.payload_bytes for t in moved(hidden, setting()).transfers}
    products = [op for op in hidden.graph.ops if op.kind is Kind.MATMUL]
    for product in products:
        right = hidden.graph.inputs(product.id)[1]
        assert crossed[right.name] == 2 * 4 * 4 * 64 * 41
    assert {d for ds in state_devices(plain.graph, plain.placement).values() for d in ds} >= {"tee"}
    single = place(graph, load_policy("rank-one"), setting())
    assert not isinstance(single.graph, MaskedGraph)  # of a single row it would hide nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "overrides", "biases"),
    [
        ("gpt2", {"n_layer": 2}, 2 * (2304 + 768 + 3072 + 768)),
        ("qwen2.5-3b", SMALL, 2 * (2048 + 2 * 256)),
    ],
)
@pytest.mark.few(1)
def test_biases_of_models(traced, model, overrides, biases):
    """Of integers they are at home, with an addition for each element; of float pads away."""
    graph = traced(model, seq=8, overrides=overrides)
    floats, integers = (
        place(graph, protecting(("linear", how)), setting()).graph for how in (PAD, MOD)
    )
    assert isinstance(floats, MaskedGraph)
    assert isinstance(integers, MaskedGraph)
    assert integers.home_mask_flops - 3 * floats.home_mask_flops == 8 * biases
    read = [
        {t.id for op in graph.parts for t in graph.inputs(op)} & {*range(len(graph.plain.tensors))}
        for graph in (floats, integers)
    ]
    sizes = [
        sum(graph.tensors[t].numel for t in tensors if graph.tensors[t].op is None)
        for tensors in read
    ]
    assert sizes == [0, biases]


def test_a_batch_multiplies_all_but_what_is_kept(traced):
    """Twice the sequences: twice the bytes, FLOPs and pads, and the same before the run of weights."""
    one, two = (
        place(traced("llama-3.2-1b", batch=batch, seq=8, overrides=SMALL), ALL, setting())
        for batch in (1, 2)
    )
    assert isinstance(one.graph, MaskedGraph)
    assert isinstance(two.graph, MaskedGraph)
    sizes = [
        (g.home_mask_flops, g.offline_flops, g.pad_bytes, moved(p, setting()).totals.payload_bytes)
        for p, g in ((one, one.graph), (two, two.graph))
    ]
    assert [2 * size for size in sizes[0]] == [*sizes[1]]


@pytest.mark.parametrize(("residency", "times"), [("run", 1), ("call", 2)])
def test_calls_that_keep_nothing_are_sent_masked_tensors_again(residency, times):
    """X is needed by two calls under one mask, with what home makes between them."""
    b = Builder(seq=4)
    x, y = (b.input(name, ("batch", "seq", 6)) for name in "xy")
    between = b.op("act", against(b, "one", x, y), shape=("batch", "seq", 6))
    graph = annotate(b.finish(against(b, "two", x, between)))
    there, where = rewritten(
        graph,
        placed_by(graph, {"gpu": ["one", "two"]}),
        {op.id: Protection("embedded-additive") for op in graph.ops if op.kind is Kind.MATMUL},
    )
    traffic = account(there, where, Links(load_link("none")), residency=residency)
    sent = [t.tensor.name for t in traffic.transfers if t.direction == "send"]
    assert sent.count("x.masked") == times
    assert isinstance(there, MaskedGraph)
    assert there.home_mask_flops == 2 * 3 * 24 + 2 * 6 * 16  # the mask is made once


def test_a_scheme_masks_otherwise_beside_weights():
    """D X + u v'X for weights, D P X P' for two activations: X crosses twice, under one name."""
    b = Builder(seq=4)
    x, y = (b.input(name, ("batch", "seq", 6)) for name in "xy")
    graph = annotate(b.finish(linear(b, "up", x, 6), against(b, "scores", x, y)))
    how = dict.fromkeys((2, 4), Protection("rank-one"))
    there, where = rewritten(graph, placed_by(graph, {"gpu": ["up", "scores"]}), how)
    assert sent_names(there, where) == ["scores.turned.masked", "x.masked", "x.masked"]


def test_a_scheme_is_not_for_every_op():
    graph = one_linear()
    for op, says in ((0, "no product of two matrices"), (2, "no product of two matrices")):
        with pytest.raises(InputError, match=says):
            masked(graph, {op: PAD})
    with pytest.raises(InputError, match="is for two activations"):
        masked(graph, {1: Protection("embedded-additive")})


# --- figures of schemes ---------------------------------------------------------------------------


def test_a_check_misses_what_its_vector_hides():
    """Mod 2^32 the change 2^31 is missed by each even number; a change of 1 by 0 alone."""
    assert false_accept(1, 0, bits=32) == 2.0**-32
    assert false_accept(2**31, 0, bits=32, trials=3) == 1 / 8
    assert false_accept(2**32, 0, bits=32) == 1.0
    assert false_accept(2.0, 1.0, "normal") == pytest.approx(0.38292, abs=1e-5)  # |r| < 1/2
    assert false_accept(0.5, 1.0, "normal") == 1.0


def test_a_pad_tells_and_costs_bits():
    """A pad as wide as its value tells half a bit, and doubles the variance: half a bit is lost."""
    even = pad_bits("bfloat16", 1.0)
    assert (even.leaked_bits, even.lost_bits, even.left_bits) == (0.5, 0.5, 7.5)
    assert pad_bits("bfloat16", 2.0**20).left_bits < 0


# --- what masks leave as it is --------------------------------------------------------------------

FEW = examples(6)


@given(data=st.data())
@FEW
def test_masks_change_nothing_but_what_is_masked(data):
    graph, protected = data.draw(protected_graphs())
    protected = {op: how for op, how in protected.items() if hides(graph, graph.ops[op], how)}
    where = data.draw(placements(graph, ["gpu"]))
    residency = data.draw(RESIDENCY)
    there, placed = rewritten(graph, where, protected)
    told = describe(there, placed)
    # Tensors of the trace keep their ids and all but who makes them.
    for one, other in zip(graph.tensors, there.tensors, strict=False):
        assert replace(other, op=one.op) == one, told
    assert [t.name for t in graph.inputs(len(graph.ops) - 1)] == [
        t.name for t in there.inputs(len(there.ops) - 1)
    ]
    if not isinstance(there, MaskedGraph):
        return
    # All that is masked is made or read away, and a mask is made for each that is sent; home reads it
    # again for the check of integers.
    checks = {op for op, (part, _) in there.parts.items() if part == "check"}
    for tensor in there.masks:
        made = there.tensors[tensor].op
        assert made is not None
        of = checks if placed.devices[made] == HOME else ()
        readers = {placed.devices[op] for op in there.readers(tensor) if op not in of}
        assert readers == ({"gpu"} if placed.devices[made] == HOME else {HOME}), told
    # The rest crosses as it does without masks, and so many calls take it.
    traffic = account(there, placed, Links(load_link("none")), residency=residency)
    assert sorted(moves_of(traffic)) == sorted(oracle_moves(there, placed, residency)), told
    assert len(traffic.calls) == len(oracle_calls(there, placed)), told
    plain = account(graph, where, Links(load_link("none")), residency="run")
    masked_run = account(there, placed, Links(load_link("none")), residency="run")
    hidden = {t.id for op in protected if where.devices[op] == "gpu" for t in graph.inputs(op)}
    hidden |= {t.id for op in protected if where.devices[op] == "gpu" for t in graph.outputs(op)}
    kept = [
        sorted(
            (t.tensor.id, t.src_device, t.dst_device)
            for t in one.transfers
            if t.tensor.id not in hidden and t.tensor.id < len(graph.tensors)
        )
        for one in (plain, masked_run)
    ]
    assert kept[0] == kept[1], told


@given(data=st.data())
@FEW
def test_what_is_at_home_has_no_mask(data):
    """Of all that is protected the ops that are away, from any graph that has more masks."""
    graph, protected = data.draw(protected_graphs())
    where = data.draw(placements(graph, ["gpu"]))
    whole = masked(graph, protected)
    if not isinstance(whole, MaskedGraph):
        return
    found, settled_at = settled(whole, whole.placed(where))
    expected, placed = rewritten(graph, where, protected)
    assert (found.ops, found.tensors, found.edges) == (
        expected.ops,
        expected.tensors,
        expected.edges,
    )
    assert settled_at == placed
    home = replace(where, devices=tuple(None if d is None else HOME for d in where.devices))
    assert settled(whole, whole.placed(home)) == (graph, home)
    assert whole.plain_placement(whole.placed(where)) == where
    assert held(graph, home).keys() <= {HOME}
    assert all(elements(t.shape) == t.numel for t in whole.tensors)
