"""Attentions, the broadcast of K and V, labels and RMS norms: in graphs by hand and in presets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tracer.formula import Formula, const, var
from tracer.graph import Kind, OpGraph, Role, TraceMeta
from tracer.kinds import base_name
from tracer.patterns import (
    PATTERNS,
    Attention,
    attention_core,
    find_attentions,
    kv_broadcast,
    label_tensors,
    mark_norms,
    rope,
)
from tracer.program import Node, Program, Value, build_graph

META = TraceMeta(
    model="hand",
    phase="prefill",
    batch=1,
    seq=6,
    past=0,
    dtype="float32",
    attn="eager",
    logits="all",
    symbolic=("seq",),
    parameters=0,
)

SEQ = var("seq")
HIDDEN, HEADS, HEAD = 16, 4, 4

# --- graphs by hand -------------------------------------------------------------------------------

Shape = tuple[int | Formula, ...]
STREAM: Shape = (1, SEQ, HIDDEN)
SQUARE: Shape = (1, HEADS, SEQ, SEQ)


@dataclass
class Net:
    """Writes a program op by op; values stand for themselves."""

    program: Program = field(default_factory=Program)

    def state(self, name: str, *shape: int | Formula, role: Role = Role.PARAMETER) -> int:
        return self.program.add(self._value(shape, name, role))

    def input(self, name: str, *shape: int | Formula, dtype: str = "float32") -> int:
        value = self.program.add(self._value(shape, name, Role.INPUT, dtype))
        self.program.nodes.append(Node("input", (), (value,), "", ""))
        return value

    def op(self, name: str, *args: int, shape: Shape, dtype: str = "float32") -> int:
        """``aten.<name>`` that makes one value; its overload is ``default`` if none is named."""
        return self.ops(name, *args, shape=shape, dtype=dtype)[0]

    def view(self, name: str, of: int, shape: Shape) -> int:
        return self.ops(name, of, shape=shape, view=True)[0]

    def ops(
        self,
        name: str,
        *args: int,
        shape: Shape,
        dtype: str = "float32",
        view: bool = False,
        outs: int = 1,
    ) -> list[int]:
        owner = None
        if view:
            alias = self.program.values[args[0]].alias_of
            owner = args[0] if alias is None else alias
        made = [
            self.program.add(replace(self._value(shape, dtype=dtype), alias_of=owner))
            for _ in range(outs)
        ]
        path = f"block.{len(self.program.nodes)}"
        target = f"aten.{name}" if "." in name else f"aten.{name}.default"
        self.program.nodes.append(Node(target, args, tuple(made), path, "M", view))
        return made

    def linear(self, x: int, name: str, shape: Shape = STREAM) -> int:
        wide = shape[-1]
        return self.op("linear", x, self.state(f"{name}.weight", wide, HIDDEN), shape=shape)

    def norm(self, x: int, name: str) -> int:
        return self.op("layer_norm", x, self.state(f"{name}.weight", HIDDEN), shape=STREAM)

    def _value(
        self, shape: Shape, name: str = "", role: Role = Role.ACTIVATION, dtype: str = "float32"
    ) -> Value:
        sizes = tuple(s if isinstance(s, Formula) else const(s) for s in shape)
        return Value(dtype, sizes, name, role)

    def built(self, *results: int) -> "Built":
        self.program.nodes.append(Node("output", results, (), "", ""))
        return Built(self.program, build_graph(self.program, META))


@dataclass
class Built:
    """A graph, and where the values of its program have come to."""

    program: Program
    graph: OpGraph

    def op(self, value: int) -> int:
        """The id of the op that makes a value: nodes and ops are in the same order."""
        return next(i for i, node in enumerate(self.program.nodes) if value in node.outs)

    def ops(self, *values: int) -> tuple[int, ...]:
        return tuple(map(self.op, values))

    def tensor(self, value: int) -> int:
        op = self.op(value)
        return self.graph.outputs(op)[self.program.nodes[op].outs.index(value)].id

    def label(self, value: int) -> str | None:
        return self.graph.tensors[self.tensor(value)].label

    def kind(self, value: int) -> Kind:
        return self.graph.ops[self.op(value)].kind


def heads(net: Net, x: int, count: int = HEADS) -> int:
    """[1, seq, heads*d] -> [1, heads, seq, d], two views."""
    x = net.view("view", x, (1, SEQ, count, HEAD))
    return net.view("transpose", x, (1, count, SEQ, HEAD))


def transposed(net: Net, k: int) -> int:
    return net.view("transpose", k, (1, HEADS, HEAD, SEQ))


@dataclass
class OneAttention:
    """All the values of an attention that ``attend`` writes."""

    q: int
    k: int
    v: int
    scores: int
    scaled: int
    masked: int
    probs: int
    cast: int
    out: int


def attend(net: Net, q: int, k: int, v: int, mask: int) -> OneAttention:
    """softmax(q k^T * scale + mask), cast, times v; ``k`` comes transposed."""
    scores = net.op("matmul", q, k, shape=SQUARE)
    scaled = net.op("mul", scores, shape=SQUARE)
    masked = net.op("add", scaled, mask, shape=SQUARE)
    probs = net.op("softmax", masked, shape=SQUARE)
    cast = net.op("to", probs, shape=SQUARE)
    out = net.op("matmul", cast, v, shape=(1, HEADS, SEQ, HEAD))
    return OneAttention(q, k, v, scores, scaled, masked, probs, cast, out)


def merged(net: Net, x: int) -> int:
    """[1, heads, seq, d] -> [1, seq, hidden]."""
    x = net.view("transpose", x, (1, SEQ, HEADS, HEAD))
    return net.op("reshape", x, shape=STREAM)


def start(net: Net) -> int:
    """Tokens, embedded."""
    ids = net.input("ids", 1, SEQ, dtype="int64")
    return net.op("embedding", net.state("embed.weight", 30, HIDDEN), ids, shape=STREAM)


def causal(net: Net) -> int:
    """A mask that the model computes from a buffer: a constant."""
    return net.op("tril", net.state("ones", SEQ, SEQ, role=Role.BUFFER), shape=(SEQ, SEQ))


@dataclass
class Block:
    """A transformer block: norm, attention, residual, norm, linear, residual."""

    into: int
    normed: int
    projections: tuple[int, int, int]
    attention: OneAttention
    projected: int
    middle: int
    up: int
    down: int
    out: int


def block(net: Net, x: int, mask: int, name: str) -> Block:
    normed = net.norm(x, f"{name}.norm1")
    q, k, v = (net.linear(normed, f"{name}.{part}") for part in "qkv")
    attention = attend(net, heads(net, q), transposed(net, heads(net, k)), heads(net, v), mask)
    projected = net.linear(merged(net, attention.out), f"{name}.o")
    middle = net.op("add", x, projected, shape=STREAM)
    up = net.linear(net.norm(middle, f"{name}.norm2"), f"{name}.up")
    down = net.linear(net.op("gelu", up, shape=STREAM), f"{name}.down")
    out = net.op("add", middle, down, shape=STREAM)
    return Block(x, normed, (q, k, v), attention, projected, middle, up, down, out)


def two_blocks() -> tuple[Built, list[Block], int]:
    """A model of two blocks; also the value of its logits."""
    net = Net()
    x, mask = start(net), causal(net)
    blocks = []
    for n in range(2):
        blocks.append(block(net, x, mask, f"layers.{n}"))
        x = blocks[-1].out
    logits = net.linear(net.norm(x, "norm"), "head", (1, SEQ, 30))
    return net.built(logits), blocks, logits


# --- attentions -----------------------------------------------------------------------------------


def test_an_attention_is_found_with_all_its_parts():
    built, blocks, _ = two_blocks()
    found = find_attentions(built.graph)
    assert len(found) == 2
    for attention, written in zip(found, blocks, strict=True):
        a = written.attention
        assert attention == Attention(
            score_ops=built.ops(a.scores),
            before_softmax=built.ops(a.scaled, a.masked),
            softmax_op=built.op(a.probs),
            after_softmax=built.ops(a.cast),
            value_op=built.op(a.out),
            q=built.graph.tensors[built.tensor(a.q)],
            k=built.graph.tensors[built.tensor(a.k)],
            v=built.graph.tensors[built.tensor(a.v)],
        )
        assert attention.core == built.ops(a.scores, a.scaled, a.masked, a.probs, a.cast, a.out)
    assert attention_core(built.graph) == {op for a in found for op in a.core}
    assert set(PATTERNS) == {"attention-core", "kv-broadcast", "rope"}
    assert PATTERNS["attention-core"](built.graph) == attention_core(built.graph)
    assert PATTERNS["kv-broadcast"](built.graph) == kv_broadcast(built.graph)


def test_a_bare_attention_is_its_two_products_and_the_softmax():
    net = Net()
    x = start(net)
    q, k, v = (heads(net, net.linear(x, part)) for part in "qkv")
    scores = net.op("matmul", q, transposed(net, k), shape=SQUARE)
    probs = net.op("softmax", scores, shape=SQUARE)
    out = net.op("matmul", probs, v, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    (attention,) = find_attentions(built.graph)
    assert (attention.before_softmax, attention.after_softmax) == ((), ())
    assert attention.core == built.ops(scores, probs, out)
    assert attention.v.id == built.tensor(v)


def test_an_attention_with_flat_products():
    """Heads folded into the batch, baddbmm(mask, q, k) and a view around the softmax."""
    net = Net()
    x = start(net)
    flat: Shape = (HEADS, SEQ, HEAD)
    q, k, v = (net.view("view", heads(net, net.linear(x, part)), flat) for part in "qkv")
    k = net.view("transpose", k, (HEADS, HEAD, SEQ))
    scores = net.op("baddbmm", causal(net), q, k, shape=(HEADS, SEQ, SEQ))
    shaped = net.view("view", scores, SQUARE)
    probs = net.op("_softmax", shaped, shape=SQUARE)
    flattened = net.view("view", probs, (HEADS, SEQ, SEQ))
    out = net.op("bmm", flattened, v, shape=flat)
    built = net.built(net.op("reshape", out, shape=STREAM))
    (attention,) = find_attentions(built.graph)
    assert attention.core == built.ops(scores, shaped, probs, flattened, out)
    operands = [attention.q.id, attention.k.id, attention.v.id]
    assert operands == [built.tensor(t) for t in (q, k, v)]


def test_values_may_come_first_in_their_product():
    net = Net()
    x = start(net)
    q, k, v = (heads(net, net.linear(x, part)) for part in "qkv")
    scores = net.op("matmul", q, transposed(net, k), shape=SQUARE)
    probs = net.op("softmax", scores, shape=SQUARE)
    turned = net.view("transpose", probs, SQUARE)
    values = transposed(net, v)
    out = net.op("matmul", values, turned, shape=(1, HEADS, HEAD, SEQ))
    built = net.built(net.op("reshape", out, shape=STREAM))
    (attention,) = find_attentions(built.graph)
    assert attention.v.id == built.tensor(values)
    assert built.label(v) == "v"


def test_two_score_products_summed_into_one_softmax():
    """Position with a product of its own: one attention, both products in its core."""
    net = Net()
    x = start(net)
    q, k, v = (heads(net, net.linear(x, part)) for part in "qkv")
    position = transposed(net, heads(net, net.linear(net.norm(x, "n"), "position")))
    by_content = net.op("matmul", q, transposed(net, k), shape=SQUARE)
    by_position = net.op("matmul", q, position, shape=SQUARE)
    shifted = net.op("gather", by_position, shape=SQUARE)
    total = net.op("add", by_content, shifted, shape=SQUARE)
    probs = net.op("softmax", total, shape=SQUARE)
    out = net.op("matmul", probs, v, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    (attention,) = find_attentions(built.graph)
    assert attention.score_ops == built.ops(by_content, by_position)
    assert attention.before_softmax == built.ops(shifted, total)
    assert attention.core == built.ops(by_content, by_position, shifted, total, probs, out)
    for value in (by_content, by_position, shifted, total):
        assert built.label(value) == "attention_scores"


def test_a_mask_that_is_computed_from_an_input_is_no_part_of_the_core():
    net = Net()
    x = start(net)
    given = net.input("attention_mask", 1, SEQ)
    inverted = net.op("rsub", given, shape=(1, SEQ))
    wide = net.view("unsqueeze", inverted, (1, 1, 1, SEQ))
    mask = net.op("mul", wide, shape=(1, 1, 1, SEQ))
    q, k, v = (heads(net, net.linear(x, part)) for part in "qkv")
    a = attend(net, q, transposed(net, k), v, mask)
    built = net.built(merged(net, a.out))
    (attention,) = find_attentions(built.graph)
    assert attention.core == built.ops(a.scores, a.scaled, a.masked, a.probs, a.cast, a.out)
    assert [built.label(value) for value in (given, inverted, wide, mask)] == [None] * 4


def projected(net: Net) -> tuple[int, int, int]:
    """q, k (transposed) and v of a model's tokens."""
    x = start(net)
    q, k, v = (heads(net, net.linear(x, part)) for part in "qkv")
    return q, transposed(net, k), v


def test_the_maximum_that_is_subtracted_belongs_to_the_core():
    """GPT-OSS: a logit for nothing beside the scores, their maximum subtracted before the softmax,
    the extra column cut off behind it."""
    net = Net()
    q, k, v = projected(net)
    wider: Shape = (1, HEADS, SEQ, SEQ + 1)
    scores = net.op("matmul", q, k, shape=SQUARE)
    sinks = net.op("expand", net.state("sinks", HEADS), shape=(1, HEADS, SEQ, 1))
    joined = net.op("cat", scores, sinks, shape=wider)
    most, _ = net.ops("max.dim", joined, outs=2, shape=(1, HEADS, SEQ, 1))
    held = net.view("detach", most, (1, HEADS, SEQ, 1))
    shifted = net.op("sub", joined, held, shape=wider)
    probs = net.op("softmax", shifted, shape=wider)
    kept = net.view("slice", probs, SQUARE)
    out = net.op("matmul", kept, v, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    (attention,) = find_attentions(built.graph)
    assert attention.score_ops == built.ops(scores)
    assert attention.before_softmax == built.ops(joined, most, held, shifted)
    assert attention.after_softmax == built.ops(kept)
    assert built.label(sinks) is None


def test_a_sum_that_divides_the_probabilities_belongs_to_the_core():
    net = Net()
    q, k, v = projected(net)
    scores = net.op("matmul", q, k, shape=SQUARE)
    probs = net.op("softmax", scores, shape=SQUARE)
    total = net.op("sum", probs, shape=(1, HEADS, SEQ, 1))
    share = net.op("div", probs, total, shape=SQUARE)
    out = net.op("matmul", share, v, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    (attention,) = find_attentions(built.graph)
    assert attention.core == built.ops(scores, probs, total, share, out)


@pytest.mark.parametrize("name", ["max.other", "min.other", "maximum"])
def test_scores_held_to_a_least_value(name):
    """XGLM: max(scores, the least of the dtype), which is no reduction."""
    net = Net()
    q, k, v = projected(net)
    scores = net.op("matmul", q, k, shape=SQUARE)
    held = net.op(name, scores, net.state("least", role=Role.BUFFER), shape=SQUARE)
    probs = net.op("softmax", held, shape=SQUARE)
    out = net.op("matmul", probs, v, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    assert built.kind(held) is Kind.ELEMENTWISE
    assert attention_core(built.graph) == set(built.ops(scores, held, probs, out))


def router_after_a_linear(net: Net) -> list[int]:
    """A router's softmax over experts, then the experts' outputs weighted by a product."""
    x = start(net)
    choice = net.op("softmax", net.linear(x, "router", (1, SEQ, 4)), shape=(1, SEQ, 4))
    weights = net.view("unsqueeze", choice, (1, SEQ, 1, 4))
    experts = net.linear(x, "experts", (1, SEQ, 4, HIDDEN))
    return [net.op("matmul", weights, experts, shape=(1, SEQ, 1, HIDDEN))]


def router_with_topk(net: Net) -> list[int]:
    x = start(net)
    choice = net.op("softmax", net.linear(x, "router", (1, SEQ, 4)), shape=(1, SEQ, 4))
    best, _ = net.ops("topk", choice, outs=2, shape=(1, SEQ, 2))
    return [net.op("mul", net.linear(x, "expert"), best, shape=STREAM)]


def similarity(net: Net) -> list[int]:
    """A softmax of a product that no product follows: contrastive logits."""
    x = start(net)
    product = net.op("matmul", net.linear(x, "a"), net.linear(x, "b"), shape=(1, SEQ, SEQ))
    return [net.op("softmax", product, shape=(1, SEQ, SEQ))]


def softmax_then_linear(net: Net) -> list[int]:
    """The product that follows has a parameter: no values are mixed."""
    x = start(net)
    product = net.op("matmul", net.linear(x, "a"), net.linear(x, "b"), shape=STREAM)
    return [net.linear(net.op("softmax", product, shape=STREAM), "out")]


def normed_before_the_softmax(net: Net) -> list[int]:
    """What a norm or a sum has been through is no score."""
    x = start(net)
    a, b = net.linear(x, "a"), net.linear(x, "b")
    product = net.op("matmul", a, b, shape=STREAM)
    probs = net.op("softmax", net.norm(product, "n"), shape=STREAM)
    return [net.op("matmul", probs, b, shape=STREAM)]


def pooled_before_the_softmax(net: Net) -> list[int]:
    """The mean of a product is no score, whatever it is compared with."""
    x = start(net)
    a, b = net.linear(x, "a"), net.linear(x, "b")
    mean = net.op("mean", net.op("matmul", a, b, shape=STREAM), shape=(1, 1, HIDDEN))
    compared = net.op("sub", a, net.op("exp", mean, shape=(1, 1, HIDDEN)), shape=STREAM)
    probs = net.op("softmax", compared, shape=STREAM)
    return [net.op("matmul", probs, b, shape=STREAM)]


def pooled_router(net: Net) -> list[int]:
    """Attention's output, its mean, a linear: the softmax of a router over whole sequences."""
    x = start(net)
    mixed = net.op("matmul", net.linear(x, "a"), net.linear(x, "b"), shape=STREAM)
    mean = net.op("mean", mixed, shape=(1, HIDDEN))
    choice = net.op("softmax", net.linear(mean, "router", (1, 4)), shape=(1, 4))
    experts = net.linear(x, "experts", (1, SEQ, 4, HIDDEN))
    return [net.op("matmul", choice, experts, shape=(1, SEQ, HIDDEN))]


def summed_before_the_values(net: Net) -> list[int]:
    """Probabilities summed over the queries: no row of theirs meets the values."""
    q, k, v = projected(net)
    probs = net.op("softmax", net.op("matmul", q, k, shape=SQUARE), shape=SQUARE)
    total = net.op("sum", probs, shape=(1, HEADS, 1, SEQ))
    return [net.op("matmul", total, v, shape=(1, HEADS, 1, HEAD))]


def softmax_of_constants(net: Net) -> list[int]:
    """A softmax over parameters: computed at load."""
    weights = net.op("softmax", net.state("mix", SEQ, SEQ), shape=(SEQ, SEQ))
    return [net.op("matmul", weights, start(net), shape=STREAM)]


def linear_attention(net: Net) -> list[int]:
    """Softmax over q itself: softmax(q) (k^T v), no scores of seq x seq."""
    x = start(net)
    q, k, v = (net.linear(x, part) for part in "qkv")
    state = net.op(
        "matmul", net.view("transpose", k, (1, HIDDEN, SEQ)), v, shape=(1, HIDDEN, HIDDEN)
    )
    return [net.op("matmul", net.op("softmax", q, shape=STREAM), state, shape=STREAM)]


NO_ATTENTION = [
    router_after_a_linear,
    router_with_topk,
    similarity,
    softmax_then_linear,
    normed_before_the_softmax,
    pooled_before_the_softmax,
    pooled_router,
    summed_before_the_values,
    softmax_of_constants,
    linear_attention,
]


@pytest.mark.parametrize("write", NO_ATTENTION, ids=lambda f: f.__name__)
def test_what_is_no_attention(write):
    net = Net()
    graph = net.built(*write(net)).graph
    assert find_attentions(graph) == ()
    assert attention_core(graph) == kv_broadcast(graph) == set()
    assert {t.label for t in graph.tensors} <= {None, "logits"}


def chain_of_diamonds(net: Net, x: int, count: int) -> int:
    """x -> x + f(x), again and again: 2**count paths through 2*count ops."""
    for _ in range(count):
        x = net.op("add", x, net.op("neg", x, shape=STREAM), shape=STREAM)
    return x


def before_a_softmax(net: Net) -> int:
    given = net.input("x", *STREAM)
    return net.op("softmax", chain_of_diamonds(net, given, 16), shape=STREAM)


def after_a_softmax(net: Net) -> int:
    probs = net.op("softmax", net.linear(start(net), "router"), shape=STREAM)
    return chain_of_diamonds(net, probs, 16)


@pytest.mark.parametrize("write", [before_a_softmax, after_a_softmax], ids=lambda f: f.__name__)
def test_the_search_looks_at_each_op_a_few_times_at_most(write, monkeypatch):
    """65,536 paths lead through these 32 ops; a search along every path would never end."""
    net = Net()
    graph = net.built(write(net)).graph
    looks: Counter[str] = Counter()

    def counting(name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            looks[name] += 1
            return look(*args)

        return counted

    for name in ("inputs", "outputs"):
        monkeypatch.setattr(OpGraph, name, counting(name, getattr(OpGraph, name)))
    assert find_attentions(graph) == ()
    assert max(looks.values()) <= 10 * len(graph.ops)


# --- attention as one op --------------------------------------------------------------------------


def test_an_attention_in_one_op():
    net = Net()
    x = start(net)
    projections = [net.linear(x, part) for part in "qkv"]
    q, k, v = (heads(net, t) for t in projections)
    mask = causal(net)
    out = net.op("scaled_dot_product_attention", q, k, v, mask, shape=(1, HEADS, SEQ, HEAD))
    built = net.built(merged(net, out))
    op, (q_, k_, v_) = built.op(out), (built.graph.tensors[built.tensor(t)] for t in (q, k, v))
    assert find_attentions(built.graph) == (Attention((), (), None, (), op, q_, k_, v_),)
    assert attention_core(built.graph) == {op}
    assert [built.label(t) for t in projections] == ["q", "k", "v"]
    assert built.label(out) == "attention_output"
    labels = {t.label for t in built.graph.tensors}
    assert not labels & {"attention_scores", "attention_probs"}


# --- the broadcast of K and V ---------------------------------------------------------------------

KV = 2


def grouped(net: Net, x: int) -> tuple[int, list[int]]:
    """K or V with 2 heads spread over 4: unsqueeze, expand, reshape."""
    one = net.view("unsqueeze", x, (1, KV, 1, SEQ, HEAD))
    wide = net.view("expand", one, (1, KV, HEADS // KV, SEQ, HEAD))
    flat = net.op("reshape", wide, shape=(1, HEADS, SEQ, HEAD))
    return flat, [one, wide, flat]


def repeated(net: Net, x: int) -> tuple[int, list[int]]:
    flat = net.op("repeat_interleave", x, shape=(1, HEADS, SEQ, HEAD))
    return flat, [flat]


def moved_then_grouped(net: Net, x: int) -> tuple[int, list[int]]:
    """A copy and a view before the broadcast are no part of it."""
    x = net.op("clone", net.view("view", x, (1, KV, SEQ, HEAD)), shape=(1, KV, SEQ, HEAD))
    return grouped(net, x)


def as_it_is(net: Net, x: int) -> tuple[int, list[int]]:
    return x, []


def unsqueezed_and_back(net: Net, x: int) -> tuple[int, list[int]]:
    """The same views as with groups, over groups of one: nothing grows."""
    x = net.view("unsqueeze", x, (1, HEADS, 1, SEQ, HEAD))
    x = net.view("expand", x, (1, HEADS, 1, SEQ, HEAD))
    return net.op("reshape", x, shape=(1, HEADS, SEQ, HEAD)), []


SPREADS = [
    (grouped, KV),
    (repeated, KV),
    (moved_then_grouped, KV),
    (as_it_is, HEADS),
    (unsqueezed_and_back, HEADS),
]


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "sdpa"])
@pytest.mark.parametrize(("spread", "count"), SPREADS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_the_broadcast_is_found_from_the_first_op_that_spreads_on(spread, count, fused):
    net = Net()
    x = start(net)
    width: Shape = (1, SEQ, count * HEAD)
    q = heads(net, net.linear(x, "q"))
    k, k_ops = spread(net, heads(net, net.linear(x, "k", width), count))
    v, v_ops = spread(net, heads(net, net.linear(x, "v", width), count))
    expected = [*k_ops, *v_ops]
    if fused:
        out = net.op("scaled_dot_product_attention", q, k, v, shape=(1, HEADS, SEQ, HEAD))
    else:
        turned = transposed(net, k)
        if k_ops:  # what moves the spread keys on belongs to them
            expected.append(turned)
        out = attend(net, q, turned, v, causal(net)).out
    built = net.built(merged(net, out))
    assert kv_broadcast(built.graph) == set(built.ops(*expected))


def test_a_broadcast_that_is_no_attentions_is_none():
    net = Net()
    x = start(net)
    wide = net.view("expand", net.view("unsqueeze", x, (1, 1, SEQ, HIDDEN)), (1, 3, SEQ, HIDDEN))
    built = net.built(net.op("sum", wide, shape=STREAM))
    assert kv_broadcast(built.graph) == set()


# --- labels ---------------------------------------------------------------------------------------


def test_labels_of_an_attention():
    built, blocks, logits = two_blocks()
    for written in blocks:
        a = written.attention
        assert [built.label(t) for t in written.projections] == ["q", "k", "v"]
        assert [built.label(t) for t in (a.q, a.k, a.v)] == ["q", "k", "v"]
        for value in (a.scores, a.scaled, a.masked):
            assert built.label(value) == "attention_scores"
        for value in (a.probs, a.cast):
            assert built.label(value) == "attention_probs"
        assert built.label(a.out) == "attention_output"
    assert built.label(logits) == "logits"


def test_the_residual_stream_has_no_label():
    built, blocks, _ = two_blocks()
    for b in blocks:
        stream = (b.into, b.normed, b.projected, b.middle, b.up, b.down, b.out)
        assert [built.label(value) for value in stream] == [None] * len(stream)


@pytest.mark.parametrize("blocks", [0, 1], ids=["the embedding", "a block before"])
def test_the_residual_stream_has_no_label_where_q_and_k_have_no_projection(blocks):
    """q and k are the normed stream itself: labels stop at the operands."""
    net = Net()
    x, mask = start(net), causal(net)
    for n in range(blocks):
        x = block(net, x, mask, f"layers.{n}").out
    normed = net.norm(x, "norm")
    q, k = heads(net, normed), transposed(net, heads(net, normed))
    v = heads(net, net.linear(normed, "v"))
    a = attend(net, q, k, v, mask)
    built = net.built(net.op("add", x, merged(net, a.out), shape=STREAM))
    assert (built.label(a.q), built.label(a.k), built.label(a.v)) == ("q", "k", "v")
    assert built.label(x) is None


def split(net: Net, x: int) -> list[int]:
    return net.ops("split", x, outs=3, view=True, shape=STREAM)


def sliced(net: Net, x: int) -> list[int]:
    return [net.view("slice", x, STREAM) for _ in range(3)]


def unbound(net: Net, x: int) -> list[int]:
    """[1, seq, 3, hidden] -> [3, 1, seq, hidden], and one of the three each."""
    x = net.view("view", x, (1, SEQ, 3, HIDDEN))
    x = net.view("permute", x, (3, 1, SEQ, HIDDEN))
    return [net.view("select", x, STREAM) for _ in range(3)]


@pytest.mark.parametrize("cut", [split, sliced, unbound], ids=lambda f: f.__name__)
def test_a_fused_projection_is_labelled_with_all_that_it_makes(cut):
    net = Net()
    x = start(net)
    fused = net.linear(x, "qkv", (1, SEQ, 3 * HIDDEN))
    parts = cut(net, fused)
    q, k, v = (heads(net, part) for part in parts)
    a = attend(net, q, transposed(net, k), v, causal(net))
    built = net.built(merged(net, a.out))
    assert built.label(fused) == "qkv"
    assert [built.label(part) for part in parts] == ["q", "k", "v"]


def test_a_projection_of_k_and_v_alone():
    net = Net()
    x = start(net)
    q = net.linear(x, "q")
    fused = net.linear(x, "kv", (1, SEQ, 2 * HIDDEN))
    k, v = net.ops("split", fused, outs=2, view=True, shape=STREAM)
    a = attend(net, heads(net, q), transposed(net, heads(net, k)), heads(net, v), causal(net))
    built = net.built(merged(net, a.out))
    assert [built.label(value) for value in (q, fused, k, v)] == ["q", "kv", "k", "v"]


def test_labels_reach_through_rotation_and_norm_back_to_the_projection():
    """RoPE: x*cos + rotate(x)*sin, with a norm of q and k by head before it."""
    net = Net()
    x = start(net)
    angles = net.op("cos", net.state("inv_freq", HEAD, role=Role.BUFFER), shape=(SEQ, HEAD))
    size: Shape = (1, HEADS, SEQ, HEAD)

    def rotated(part: str) -> tuple[int, int, int]:
        projected = net.linear(x, part)
        normed = net.op("rms_norm", heads(net, projected), shape=size)
        turned = net.op("cat", net.view("slice", normed, size), shape=size)
        left = net.op("mul", normed, angles, shape=size)
        right = net.op("mul", turned, angles, shape=size)
        return projected, normed, net.op("add", left, right, shape=size)

    (q_projected, q_normed, q), (k_projected, k_normed, k) = rotated("q"), rotated("k")
    a = attend(net, q, transposed(net, k), heads(net, net.linear(x, "v")), causal(net))
    built = net.built(merged(net, a.out))
    assert [built.label(value) for value in (q_projected, q_normed, q)] == ["q"] * 3
    assert [built.label(value) for value in (k_projected, k_normed, k)] == ["k"] * 3
    assert built.label(x) is None
    assert built.graph.outputs(built.op(angles))[0].label is None


@pytest.mark.parametrize(
    ("last", "label"),
    [
        (lambda net, x: net.linear(x, "head"), "logits"),
        # Gemma: tanh(logits / 30) * 30
        (
            lambda net, x: net.op(
                "mul", net.op("tanh", net.linear(x, "head"), shape=STREAM), shape=STREAM
            ),
            "logits",
        ),
        (lambda net, x: net.op("to", net.linear(x, "head"), shape=STREAM), "logits"),
        (lambda net, x: net.norm(net.linear(x, "head"), "norm"), None),
        (lambda net, x: net.norm(x, "norm"), None),
    ],
    ids=["linear", "soft cap", "cast", "norm of a linear", "norm"],
)
def test_logits_are_results_that_a_linear_makes(last, label):
    net = Net()
    result = last(net, start(net))
    built = net.built(result)
    assert built.label(result) == label
    assert [t.label for t in built.graph.tensors if t.label] == [label] * (label is not None)


def test_what_a_linear_makes_of_an_image_is_no_logits():
    """It is a result, and comes among the tokens; so it is where it is the only result."""
    net = Net()
    tokens, pixels = start(net), start(net)
    features = net.linear(pixels, "projector")
    both = net.op("masked_scatter", tokens, features, shape=STREAM)
    logits = net.linear(both, "head")
    built = net.built(logits, features)
    assert (built.label(logits), built.label(features)) == ("logits", None)
    alone = build_graph(built.program, replace(META, phase="encoder"))
    assert not [t.label for t in alone.tensors if t.label]


# --- names do not matter --------------------------------------------------------------------------

Scramble = Callable[[int], str]
SCRAMBLES: dict[str, Scramble] = {
    "no names": lambda op: "",
    "one name": lambda op: "model.layers.0.self_attn.q_proj",
    "misleading names": lambda op: ("router", "mlp.0", "softmax", "k_proj")[op % 4],
}


def scrambled(graph: OpGraph, path: Scramble) -> OpGraph:
    """The same ops under other names; parameters too."""
    ops = [
        replace(o, name=f"x{o.id}", module_path=path(o.id), module_type=path(-o.id), layer=None)
        for o in graph.ops
    ]
    tensors = [replace(t, name=path(t.id), label=None) for t in graph.tensors]
    return OpGraph(graph.meta, ops, tensors, graph.edges)


def parts(graph: OpGraph) -> list[tuple[object, ...]]:
    return [
        (
            a.score_ops,
            a.before_softmax,
            a.softmax_op,
            a.after_softmax,
            a.value_op,
            a.q.id,
            a.k.id,
            a.v.id,
        )
        for a in find_attentions(graph)
    ]


@pytest.mark.parametrize("path", SCRAMBLES.values(), ids=SCRAMBLES.keys())
def test_names_do_not_matter(path, traced):
    hand = two_blocks()[0].graph
    llama = traced("llama-3.2-1b", seq=16, overrides={"num_hidden_layers": 2})
    gpt2 = traced("gpt2", seq=16, overrides={"n_layer": 2})
    for graph in (hand, llama, gpt2):
        other = scrambled(graph, path)
        assert len(parts(graph)) == 2
        assert parts(other) == parts(graph)
        assert kv_broadcast(other) == kv_broadcast(graph)
        assert label_tensors(other) == label_tensors(graph)
        assert label_tensors(other) == {t.id: t.label for t in graph.tensors if t.label}
        assert [o.kind for o in mark_norms(other).ops] == [o.kind for o in graph.ops]


# --- RMS norms ------------------------------------------------------------------------------------

MEAN: Shape = (1, SEQ, 1)


def rms_norm(
    net: Net,
    x: int,
    *,
    square: str = "pow",
    casts: bool = False,
    late: bool = False,
    weight: bool | str = True,
) -> tuple[list[int], list[int]]:
    """(ops of the norm, others): w * (x * rsqrt(mean(x^2) + eps)).

    ``late``: only what is squared is a cast of x. ``weight="1 +"``: the factor is 1 + w.
    """
    others = []
    given = x
    if casts or late:
        x = net.op("to", x, shape=STREAM)
        others.append(x)
    squared = net.op(square, *[x] * (2 if square == "mul" else 1), shape=STREAM)
    mean = net.op("mean", squared, shape=MEAN)
    shifted = net.op("add", mean, shape=MEAN)
    root = net.op("rsqrt", shifted, shape=MEAN)
    scaled = net.op("mul", given if late else x, root, shape=STREAM)
    found = [squared, mean, shifted, root, scaled]
    if casts:
        scaled = net.op("to", scaled, shape=STREAM, dtype="bfloat16")
        others.append(scaled)
    if weight:
        factor = net.state("w", HIDDEN)
        if weight == "1 +":
            factor = net.op("add", net.op("to", factor, shape=(HIDDEN,)), shape=(HIDDEN,))
        found.append(net.op("mul", scaled, factor, shape=STREAM))
    return found, others


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"square": "square"},
        {"square": "mul"},
        {"weight": False},
        {"casts": True},
        {"late": True},
        {"weight": "1 +"},
        {"weight": "1 +", "casts": True},
        {"casts": True, "weight": False, "square": "mul"},
    ],
    ids=str,
)
def test_an_rms_norm_that_the_model_writes_out(options):
    net = Net()
    x = net.linear(start(net), "in")
    found, others = rms_norm(net, x, **options)
    built = net.built(net.linear(found[-1], "out"))
    assert {built.kind(value) for value in found} == {Kind.NORM}
    assert {built.kind(value) for value in others} <= {Kind.COPY}
    marked = [op.id for op in built.graph.ops if op.kind is Kind.NORM]
    assert marked == sorted(built.ops(*found))
    assert mark_norms(built.graph).ops == built.graph.ops


def no_square(net: Net, x: int) -> int:
    root = net.op("rsqrt", net.op("add", net.op("mean", x, shape=MEAN), shape=MEAN), shape=MEAN)
    return net.op("mul", x, root, shape=STREAM)


def no_mean(net: Net, x: int) -> int:
    squared = net.op("pow", x, shape=STREAM)
    root = net.op("rsqrt", net.op("add", squared, shape=STREAM), shape=STREAM)
    return net.op("mul", x, root, shape=STREAM)


def a_sum_for_the_mean(net: Net, x: int) -> int:
    """An L2 norm, not a root mean square."""
    squared = net.op("pow", x, shape=STREAM)
    total = net.op("sum", squared, shape=MEAN)
    root = net.op("rsqrt", net.op("add", total, shape=MEAN), shape=MEAN)
    return net.op("mul", x, root, shape=STREAM)


def two_factors(net: Net, x: int) -> int:
    """mean(x*y), a product of two: no square."""
    y = net.linear(x, "y")
    product = net.op("mul", x, y, shape=STREAM)
    shifted = net.op("add", net.op("mean", product, shape=MEAN), shape=MEAN)
    return net.op("mul", x, net.op("rsqrt", shifted, shape=MEAN), shape=STREAM)


def twice_for_squared(net: Net, x: int) -> int:
    """mean(x*2): the product with a number has one tensor argument."""
    doubled = net.op("mul", x, shape=STREAM)
    shifted = net.op("add", net.op("mean", doubled, shape=MEAN), shape=MEAN)
    return net.op("mul", x, net.op("rsqrt", shifted, shape=MEAN), shape=STREAM)


def times_something_else(net: Net, x: int) -> int:
    """The root mean square of x scales y: x is not normed."""
    y = net.linear(x, "y")
    squared = net.op("pow", x, shape=STREAM)
    shifted = net.op("add", net.op("mean", squared, shape=MEAN), shape=MEAN)
    return net.op("mul", y, net.op("rsqrt", shifted, shape=MEAN), shape=STREAM)


def two_sums(net: Net, x: int) -> int:
    """rsqrt(mean(x^2) + mean(y^2))."""
    y = net.linear(x, "y")
    means = [net.op("mean", net.op("pow", t, shape=STREAM), shape=MEAN) for t in (x, y)]
    root = net.op("rsqrt", net.op("add", *means, shape=MEAN), shape=MEAN)
    return net.op("mul", x, root, shape=STREAM)


def test_a_factor_that_no_parameter_makes_is_not_the_norms():
    """RoPE's table, a constant, times what is normed."""
    net = Net()
    x = net.linear(start(net), "in")
    found, _ = rms_norm(net, x, weight=False)
    table = net.op("cos", net.state("frequencies", HIDDEN, role=Role.BUFFER), shape=(HIDDEN,))
    turned = net.op("mul", found[-1], table, shape=STREAM)
    built = net.built(net.linear(turned, "out"))
    assert built.kind(turned) is Kind.ELEMENTWISE
    assert {built.kind(value) for value in found} == {Kind.NORM}


def of_a_parameter(net: Net, x: int) -> int:
    """A parameter that is normed at load: a constant."""
    w = net.state("w", HIDDEN)
    squared = net.op("pow", w, shape=(HIDDEN,))
    shifted = net.op("add", net.op("mean", squared, shape=(1,)), shape=(1,))
    normed = net.op("mul", w, net.op("rsqrt", shifted, shape=(1,)), shape=(HIDDEN,))
    return net.op("mul", x, normed, shape=STREAM)


NO_NORM = [
    no_square,
    no_mean,
    a_sum_for_the_mean,
    two_factors,
    twice_for_squared,
    times_something_else,
    two_sums,
    of_a_parameter,
]


@pytest.mark.parametrize("write", NO_NORM, ids=lambda f: f.__name__)
def test_what_is_no_rms_norm(write):
    net = Net()
    graph = net.built(net.linear(write(net, net.linear(start(net), "in")), "out")).graph
    assert [op.name for op in graph.ops if op.kind is Kind.NORM] == []


# --- presets --------------------------------------------------------------------------------------

DEPTHS = {"llama-3.2-1b": 2, "gpt2": 2, "bert-base": 2, "distilbert": 2, "edge-10m": 4}
HEADS_OF = {"llama-3.2-1b": 32, "gpt2": 12, "bert-base": 12, "distilbert": 12, "edge-10m": 4}
FUSED = {"gpt2"}
"""Models with one projection for q, k and v."""
GROUPED = {"llama-3.2-1b"}
"""Models with fewer heads of k and v than of q."""

Model = Callable[..., OpGraph]


@pytest.fixture
def model(traced) -> Model:
    def trace(name: str, **options: Any) -> OpGraph:
        layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
        return traced(name, seq=16, overrides={layers: DEPTHS[name]}, **options)

    return trace


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(2)
def test_a_preset_has_an_attention_a_layer(model, name):
    graph = model(name)
    found = find_attentions(graph)
    assert len(found) == DEPTHS[name]
    for layer, attention in enumerate(found):
        assert {graph.ops[op].layer for op in attention.core} == {layer}
        assert len(attention.score_ops) == 1
        core = [graph.ops[op].kind for op in attention.core]
        assert core[0] is core[-1] is Kind.MATMUL
        assert core.count(Kind.SOFTMAX) == 1


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(2)
def test_the_scores_of_a_preset_grow_with_the_square(model, name):
    graph = model(name)
    scores = [t for t in graph.tensors if t.label in ("attention_scores", "attention_probs")]
    assert len(scores) >= 2 * DEPTHS[name]
    for tensor in scores:
        assert tensor.seq_degree == 2
        assert tensor.shape_expr[-2:] == ("seq", "seq")
        heads_and_batch = tensor.numel // 16**2
        assert heads_and_batch == HEADS_OF[name]
    others = [t for t in graph.tensors if t.op is not None and t not in scores]
    assert {t.label for t in others if t.label} == {
        *("q", "k", "v", "attention_output", "logits"),
        *({"qkv"} if name in FUSED else ()),
    }
    assert all(t.seq_degree < 2 for t in others if t.label)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(1)
def test_the_projections_of_a_preset_are_labelled(model, name, attn):
    """Each layer's linears that make q, k and v; the logits once, and no residual stream."""
    graph = model(name, attn=attn)
    made = Counter(
        t.label
        for op in graph.ops
        if op.kind is Kind.LINEAR
        for t in graph.outputs(op.id)
        if t.label
    )
    each = ["qkv"] if name in FUSED else ["q", "k", "v"]
    assert made - Counter(logits=1) == Counter(dict.fromkeys(each, DEPTHS[name]))
    assert [t.role for t in graph.tensors if t.label == "logits"] == [Role.OUTPUT]
    inputs = {Kind.EMBEDDING, Kind.INPUT}
    assert all(t.label is None for o in graph.ops if o.kind in inputs for t in graph.outputs(o.id))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(1)
def test_a_preset_with_sdpa_has_one_attention_op_a_layer(model, name):
    graph = model(name, attn="sdpa")
    ops = [op for op in graph.ops if op.kind is Kind.ATTENTION]
    assert [op.layer for op in ops] == list(range(DEPTHS[name]))
    assert [a.core for a in find_attentions(graph)] == [(op.id,) for op in ops]
    assert attention_core(graph) == {op.id for op in ops}
    labels = Counter(t.label for t in graph.tensors)
    assert labels["attention_scores"] == labels["attention_probs"] == 0
    assert labels["attention_output"] == DEPTHS[name]
    assert [op for op in graph.ops if op.kind in (Kind.SOFTMAX, Kind.MATMUL)] == []


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(1)
@pytest.mark.slow
def test_a_preset_in_bfloat16_has_the_same_attentions(model, name):
    graph, same = model(name, dtype="bfloat16"), model(name)
    found, expected = find_attentions(graph), find_attentions(same)
    assert len(found) == len(expected) == DEPTHS[name]
    for one, other in zip(found, expected, strict=True):
        for part in ("q", "k", "v"):
            tensor, wanted = getattr(one, part), getattr(other, part)
            assert (tensor.shape_expr, tensor.label) == (wanted.shape_expr, wanted.label)
            assert tensor.dtype == "bfloat16"
        # but for casts the same ops
        targets = [
            [g.ops[op].target for op in a.core if "to" not in g.ops[op].target.split(".")]
            for g, a in ((graph, one), (same, other))
        ]
        assert targets[0] == targets[1]


@pytest.mark.slow
def test_llamas_softmax_in_float32_is_cast_back(model):
    graph = model("llama-3.2-1b", dtype="bfloat16", symbolic=False)
    for attention in find_attentions(graph):
        assert attention.softmax_op is not None
        assert graph.ops[attention.softmax_op].dtype == "float32"
        assert [graph.ops[op].dtype for op in attention.after_softmax] == ["bfloat16"]
        assert graph.ops[attention.value_op].dtype == "bfloat16"


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.few(3)
def test_the_broadcast_of_a_preset(model, name, attn):
    """Of Llama alone, where the attention is written out: 8 heads of k and v are spread over 32,
    twice a layer. In one op it takes k and v with their own heads."""
    graph = model(name, attn=attn)
    found = kv_broadcast(graph)
    if name not in GROUPED or attn == "sdpa":
        assert found == set()
        return
    names = Counter(graph.ops[op].target.split(".")[1] for op in found)
    grown = [
        op for op in found if sum(t.numel for t in graph.outputs(op)) > graph.inputs(op)[0].numel
    ]
    assert names["unsqueeze"] == 2 * DEPTHS[name]
    assert len(grown) == 2 * DEPTHS[name]
    for op in grown:
        assert graph.outputs(op)[0].numel == 4 * graph.inputs(op)[0].numel


def test_the_norms_of_llama(model):
    """Two a layer and the last one: square, mean, eps, rsqrt and two products each."""
    graph = model("llama-3.2-1b")
    norms = [op for op in graph.ops if op.kind is Kind.NORM]
    assert len(norms) == (2 * 2 + 1) * 6
    assert {op.module_type for op in norms} == {"LlamaRMSNorm"}


def test_rope_is_what_turns_q_and_k(traced):
    """Of each: two products with sines and cosines, a half turned around, the sum."""
    llama = traced("llama-3.2-1b", seq=16, overrides={"num_hidden_layers": 2})
    turning = {"mul": 4, "neg": 2, "cat": 2, "add": 2}
    for layer in range(2):
        ops = (llama.ops[op] for op in rope(llama) if llama.ops[op].layer == layer)
        assert Counter(base_name(op.target) for op in ops) == turning
    assert len(rope(llama)) == 2 * sum(turning.values())
    assert rope(traced("gpt2", seq=16, overrides={"n_layer": 2})) == set()  # learned positions
