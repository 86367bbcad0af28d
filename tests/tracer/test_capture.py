"""The tracer against the code it traces: formulas against fresh traces, repeated layers against
whole ones, and what it says where it cannot do as asked."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest
import torch
import transformers
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import tracer.capture as capturing
from tracer.capture import _confirm, _program, capture
from tracer.capture.blocks import find_stacks
from tracer.capture.errors import Untraceable
from tracer.capture.exporting import remembering, without_debugging
from tracer.capture.inputs import reading
from tracer.capture.lowering import lower
from tracer.capture.phases import Task
from tracer.capture.runs import MetaRun
from tracer.errors import CutedgeError, InputError
from tracer.formula import parse
from tracer.graph import ITEM_BYTES, Kind, OpGraph, Role, Tensor, TraceMeta
from tracer.patterns import find_attentions
from tracer.presets import preset, preset_names
from tracer.program import Program, build_graph
from tracer.stacks import place_of

FAMILIES = {
    "llama-3.2-1b": "grouped-query attention, RoPE, gated FFN",
    "mistral-7b": "a sliding window",
    "qwen2.5-3b": "biases on q, k and v",
    "gpt2": "fused qkv, learned positions",
    "edge-10m": "OPT: positions counted from a mask",
    "bert-base": "an encoder with a masked LM head",
    "distilbert": "an encoder without token types",
}
SIZES = [(1, 7), (3, 7), (1, 128), (3, 128), (1, 2048), (3, 2048)]
SHORT = 6  # layers: enough for the repetition of equal layers to be at work


def shortened(name: str, count: int = SHORT) -> dict[str, int]:
    """Fewer layers, and positions for the longest sequence that is asked of an encoder."""
    layers = {"gpt2": "n_layer", "distilbert": "n_layers"}.get(name, "num_hidden_layers")
    positions = {"max_position_embeddings": 2048} if name in ("bert-base", "distilbert") else {}
    return {layers: count, **positions}


Row = tuple[object, ...]


def work(graph: OpGraph, shape_of: Callable[[Tensor], tuple[int, ...]]) -> Counter[Row]:
    """Every op that moves or computes data, with all that its outputs are."""
    rows: Counter[Row] = Counter()
    for op in graph.ops:
        if not op.is_view:
            made = [(shape_of(t), t.dtype, t.role, t.label) for t in graph.outputs(op.id)]
            rows[op.target, op.module_path, op.kind, *made] += 1
    return rows


LARGE = ("llama-3.2-1b", "mistral-7b", "qwen2.5-3b", "bert-base")


def sparing(names: Iterable[str]) -> list[object]:
    """The names as parameters of a test, a slow one of what is large."""
    return [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in names]


@pytest.mark.parametrize(
    ("name", "layers", "sizes"),
    [
        ("edge-10m", 1, [(3, 2048)]),
        *(pytest.param(name, SHORT, SIZES, marks=pytest.mark.slow) for name in FAMILIES),
    ],
)
def test_formulas_equal_fresh_concrete_traces(name, layers, sizes):
    """No op aside from views may be in one trace and not in the other, at any of the sizes."""
    options = {"model": name, "overrides": shortened(name, layers)}
    formulas = capture(preset(name), batch=2, seq=48, **options).graph
    assert formulas.meta.symbolic == ("batch", "seq")
    for batch, seq in sizes:
        fresh = capture(preset(name), batch=batch, seq=seq, symbolic=False, **options).graph
        assert fresh.meta.symbolic == ()
        assert all(t.shape_expr is None and t.seq_degree is None for t in fresh.tensors)
        values = {"batch": batch, "seq": seq}

        def evaluated(tensor: Tensor, values: dict[str, int] = values) -> tuple[int, ...]:
            shape = tuple(parse(dim).evaluate(values) for dim in tensor.shape_expr)
            item = ITEM_BYTES[tensor.dtype]
            assert parse(tensor.bytes_expr).evaluate(values) == item * prod(shape)
            return shape

        assert work(formulas, evaluated) == work(fresh, lambda t: t.shape), (batch, seq)


def untraced(config: dict[str, object], whole: OpGraph) -> range:
    """How many layers may need no trace: of each kind all but one (of a single kind, but two), and
    the first and the last of all, which may be those of their kinds.

    Kinds are told apart by their parameters (dense and expert layers) and by what the config lists
    layer by layer (windows, positions), or the configs inside it.
    """
    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    inside = [v for v in vars(settings).values() if isinstance(v, transformers.PreTrainedConfig)]
    fewest = most = 0
    for stack in {op.stack for op in whole.ops if op.layer is not None}:
        depth = 1 + max(op.layer for op in whole.ops if op.stack == stack)
        listed = [value for one in [settings, *inside] for value in vars(one).values()]
        lists = [v for v in listed if isinstance(v, list) and len(v) == depth]
        lists = [v for v in lists if v != [*range(depth)]]  # which only numbers them
        weights: list[set[object]] = [set() for _ in range(depth)]
        for tensor in whole.tensors:
            here, layer = place_of(tensor.name)
            if tensor.role is Role.PARAMETER and here == stack:
                weights[layer].add((tensor.name.replace(f".{layer}.", ".*.", 1), tensor.shape))
        kinds = [(frozenset(weights[i]), *(v[i] for v in lists)) for i in range(depth)]
        met = Counter(kinds[1:-1])
        least = depth - 2 - (len(met) if len(met) > 1 else min(2, met.total()))
        if least >= 2:  # else it is not worth while
            fewest += least
            most += depth - 2 - len(met.keys() - {kinds[0], kinds[-1]})
    return range(fewest, most + 1)


UNLIKE = {"gemma-4-e2b", "gemma-4-e4b"}
"""Between their layers a value is taken by the layer's number, and from one on of the last token."""
UNLIKE_LAYERS = "its layers look alike but do not run alike"


def same_tables(name: str, **options: object) -> None:
    config = preset(name)
    captured = capture(config, model=name, seq=64, **options)
    instantiated = captured.graph
    whole = capture(config, model=name, seq=64, full=True, **options).graph
    repeated = instantiated.meta.repeated_layers
    assert instantiated.meta == replace(whole.meta, repeated_layers=repeated)
    assert instantiated.ops == whole.ops
    assert instantiated.tensors == whole.tensors
    assert instantiated.edges == whole.edges
    if name in UNLIKE:
        assert (repeated, captured.unrepeated_reason) == (0, UNLIKE_LAYERS)
    else:
        assert repeated in untraced({**config, **options.get("overrides", {})}, whole)


def test_repeated_layers_equal_the_whole_trace():
    """Six layers, of which two are traced; with formulas too in toys, see ``same_toys``."""
    same_tables("distilbert", symbolic=False)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"symbolic": False}, {"attn": "sdpa"}, {"dtype": "bfloat16"}])
def test_repeated_layers_equal_the_whole_trace_under_options(options):
    same_tables("llama-3.2-1b", overrides={"num_hidden_layers": 6}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_repeated_layers_equal_the_whole_trace_of_every_preset(name):
    same_tables(name)


@pytest.mark.slow
def test_unlike_layers_are_traced_whole():
    """Layers that take turns between a window and full attention are not alike."""
    config = {
        **preset("qwen1.5-0.5b"),
        "num_hidden_layers": 6,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 16,
    }
    instantiated = capture(config, model="mixed", seq=48).graph
    whole = capture(config, model="mixed", seq=48, full=True).graph
    assert instantiated.ops == whole.ops
    masks = {
        t.id
        for op in instantiated.ops
        for t in instantiated.inputs(op.id)
        if t.role is Role.CONSTANT and not op.is_constant and t.shape[-2:] == (48, 48)
    }
    assert len(masks) == 2  # one mask a kind of layer


Odd = Callable[[int, int], bool]


class Block(torch.nn.Module):
    def __init__(self, layer_idx: int, count: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.count = count
        self.linear = torch.nn.Linear(8, 8, device="meta")

    def forward(self, x: torch.Tensor, odd: Callable[[int, int], bool]) -> torch.Tensor:
        x = self.linear(x)
        return torch.relu(x) if odd(self.layer_idx, self.count) else x


class Toy(torch.nn.Module):
    """A stack of blocks; it or they may look at an index where no attribute shows it."""

    def __init__(self, in_block: Odd, in_model: Odd, depth: int = 13) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_layers=depth)
        self.in_block, self.in_model = in_block, in_model
        self.table = torch.nn.Embedding(16, 8, device="meta")
        self.layers = torch.nn.ModuleList(Block(i, depth) for i in range(depth))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        for index, layer in enumerate(self.layers):
            if self.in_model(index, self.config.num_layers):
                x = torch.sigmoid(x)
            x = layer(x, self.in_block)
            if index == self.config.num_layers - 1:
                x = torch.tanh(x)
        return x


LOOKS: dict[str, tuple[Odd, int]] = {
    "never": (lambda index, count: False, 0),
    "always": (lambda index, count: True, 13),
    "the first": (lambda index, count: index == 0, 1),
    "one": (lambda index, count: index == 7, 1),
    "the next but one is the last": (lambda index, count: index + 2 == count - 1, 1),
    "every second": (lambda index, count: index % 2 == 1, 6),
    "every sixth": (lambda index, count: index % 6 == 5, 2),
    "the later ones": (lambda index, count: index >= 5, 8),
    "the last": (lambda index, count: index == count - 1, 1),
}


def toy_task(module: torch.nn.Module, batch: int = 2, seq: int = 8) -> Task:
    return Task(
        module,
        "toy",
        reading(module, "toy", "prefill"),
        phase="prefill",
        sizes={"batch": batch, "seq": seq},
        logits="all",
        cache=False,
    )


def traced_toy(module: torch.nn.Module, full: bool = False) -> Program:
    task = toy_task(module)
    return _program(task, task.ways()[0], () if full else find_stacks(task))


def count_targets(module: torch.nn.Module) -> tuple[Counter[str], int]:
    program = traced_toy(module)
    return Counter(node.target for node in program.nodes), program.repeated


@pytest.mark.parametrize(("odd", "count"), LOOKS.values(), ids=LOOKS.keys())
@pytest.mark.few(3)
def test_blocks_that_look_at_their_index_are_noticed(odd, count):
    targets, repeated = count_targets(Toy(odd, LOOKS["never"][0]))
    assert (targets["aten.relu.default"], targets["aten.tanh.default"]) == (count, 1)
    assert targets["aten.linear.default"] == 13
    # Where the first and the last do what all do, both show it; else the last and one other.
    assert repeated == {LOOKS["the first"][0]: 10}.get(odd, 11 if count in (0, 13) else 0)


@pytest.mark.parametrize(("odd", "count"), LOOKS.values(), ids=LOOKS.keys())
@pytest.mark.few(3)
def test_a_model_that_looks_at_the_index_of_a_block_is_noticed(odd, count):
    targets, repeated = count_targets(Toy(LOOKS["never"][0], odd))
    assert targets["aten.sigmoid.default"] == count
    # What the model does before the first block is no part of it, what it does before each other is
    # part of the one before that.
    alike = {LOOKS[which][0]: n for which, n in (("never", 11), ("the first", 11), ("always", 10))}
    assert repeated == alike.get(odd, 0)


def test_a_model_that_runs_a_block_twice_is_traced_whole():
    class Twice(Toy):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.layers[4](super().forward(input_ids), self.in_block)

    targets, repeated = count_targets(Twice(LOOKS["never"][0], LOOKS["never"][0]))
    assert (targets["aten.linear.default"], repeated) == (14, 0)


def test_blocks_that_look_at_the_depth_are_noticed():
    """As few of its blocks, the model would do without."""
    toy = Toy(LOOKS["never"][0], LOOKS["never"][0])
    toy.in_block = lambda index, count: toy.config.num_layers > 9
    targets, repeated = count_targets(toy)
    assert (targets["aten.relu.default"], repeated) == (13, 0)


class Giver(Block):
    """A block that also makes something for later ones, and may read what one of them made."""

    def forward(
        self, x: torch.Tensor, given: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.linear(x)
        return x if given is None else x + given, torch.tanh(x)


class Sharing(torch.nn.Module):
    """A stack whose blocks read what some other than the one before them made."""

    def __init__(self, source: Callable[[int, int], int | None], kinds: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_layers=len(kinds))
        self.source = source
        self.table = torch.nn.Embedding(16, 8, device="meta")
        self.layers = torch.nn.ModuleList(Giver(i, len(kinds)) for i in range(len(kinds)))
        for layer, kind in zip(self.layers, kinds, strict=True):
            layer.kind = kind

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        made: list[torch.Tensor] = []
        for index, layer in enumerate(self.layers):
            number = self.source(index, len(self.layers))
            x, given = layer(x, made[number] if number in range(index) else None)
            made.append(given)
        return x


def same_toys(module: torch.nn.Module, repeated: int) -> None:
    meta = TraceMeta("toy", "prefill", 2, 8, 0, "float32", "eager", "all", ("batch", "seq"), 0)
    one, whole = (traced_toy(module, full) for full in (False, True))
    assert one.repeated == repeated
    instantiated, wanted = (build_graph(program, meta) for program in (one, whole))
    assert instantiated.ops == wanted.ops
    assert instantiated.tensors == wanted.tensors
    assert instantiated.edges == wanted.edges


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kinds", "repeated"),
    [
        # The seventh alone reads. Of 6 blocks (0, 1, 3, 4, 6, 12) it would read another's.
        (
            lambda index, depth: index - 2 if index == (6 if depth > 9 else 4) else None,
            "aaabcadaaaaaa",
            0,
        ),
        (lambda index, depth: 0, "aaaaaaaaaaaaa", 13 - 4),
        (lambda index, depth: 0, "aaaaabbbbbbbb", 13 - 4),
        (lambda index, depth: [0, 1][index % 2], "aaaaaaaaaaaaa", 0),
        (lambda index, depth: depth - 9, "aaaabcccccccc", 0),  # of few blocks, there is none
        (lambda index, depth: index - 2, "aaaaaaaaaaaaa", 0),
    ],
    ids=["one reader", "the first", "the first by two kinds", "two", "from the end", "relative"],
)
@pytest.mark.few(1)
def test_what_one_block_makes_may_be_read_by_all(source, kinds, repeated):
    same_toys(Sharing(source, kinds), repeated)


@pytest.mark.parametrize(("alone", "repeated"), [(True, 13 - 5), (False, 0)])
@pytest.mark.few(1)
def test_what_a_block_alone_of_its_kind_makes_may_be_read_by_all_of_another(alone, repeated):
    """Of 13 blocks, 0, 1, 4, 5 and 12 show all; of those, the giver is the third."""
    kinds = "aaaabcccccccc" if alone else "aaaaacccccccc"

    def source(index: int, depth: int) -> int | None:
        giver = 4 if depth > 9 or not alone else 2
        return giver if index > giver else None

    same_toys(Sharing(source, kinds), repeated)


@pytest.mark.slow
def test_why_every_layer_was_traced_is_known():
    never, second = LOOKS["never"][0], LOOKS["every second"][0]
    assert traced_toy(Toy(never, never)).unrepeated_reason is None  # they were repeated
    assert traced_toy(Toy(never, never, depth=5)).unrepeated_reason is None  # nothing to gain
    assert (
        traced_toy(Toy(second, never)).unrepeated_reason
        == "its layers look alike but do not run alike"
    )
    unlike = Toy(never, never)
    for number, block in enumerate(unlike.layers):
        block.name = f"block {number}"
    assert (
        traced_toy(unlike).unrepeated_reason
        == "its 13 layers are of 13 kinds, too few alike to repeat"
    )
    made = capture(preset("edge-10m"), model="edge-10m", seq=8, full=True)
    assert made.unrepeated_reason is None  # as it was asked


@pytest.mark.parametrize(
    ("kind", "depth", "untraced"),
    [
        pytest.param("gemma2", 12, 10, marks=pytest.mark.slow),  # a window in every second layer
        pytest.param("gemma3_text", 13, 10, marks=pytest.mark.slow),  # no window in every sixth
        pytest.param("deepseek_v3", 9, 7, marks=pytest.mark.slow),  # experts from the fourth on
        pytest.param("qwen3_moe", 8, 6, marks=pytest.mark.slow),  # experts in all
        pytest.param("phi3", 8, 6, marks=pytest.mark.slow),
        ("lfm2", 8, 6),  # its config lists the numbers of all layers
        pytest.param(
            "llama4_text", 12, 10, marks=pytest.mark.slow
        ),  # so does this; no positions in every fourth
    ],
)
@pytest.mark.slow
def test_each_kind_of_layer_is_traced_and_repeated(kind, depth, untraced):
    overrides = {"num_hidden_layers": depth}
    one, whole = (
        capture({"model_type": kind}, model=kind, seq=16, overrides=overrides, full=full).graph
        for full in (False, True)
    )
    assert (one.ops, one.tensors, one.edges) == (whole.ops, whole.tensors, whole.edges)
    assert one.meta == replace(whole.meta, repeated_layers=untraced)


_TINY = {"num_hidden_layers": 8, "vocab_size": 64}
_HYBRID = ("linear_attention", "moe", "linear_attention", "full_attention", "moe")
_HEAVY, _SPARSE = "heavily_compressed_attention", "compressed_sparse_attention"
ODD_STACKS = {
    # Each block indexes by [-2] and [-1], of which torch makes tensors.
    "falcon": {"hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2}
    | {"new_decoder_architecture": True, "bias": False},
    # It looks for padding among the tokens, unless it is exported.
    "deberta": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    | {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "architectures": ["DebertaModel"],
    },
    "deberta-v2": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    # Three linear attentions, then a full one.
    "qwen3_5_text": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    | {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "intermediate_size": 48}
    | {"layer_types": [*["linear_attention"] * 3, "full_attention"] * 3, "num_hidden_layers": 12},
    # A convolution after the first layer, between it and the second.
    "with a convolution": {"model_type": "deberta-v2", "relative_attention": True}
    | {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "conv_kernel_size": 3},
    # Its config works out what each layer is: experts or not, a loop over tokens or an attention.
    "jamba": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    | {"intermediate_size": 48, "num_experts": 2, "mamba_dt_rank": 2, "mamba_d_state": 4}
    | {"attn_layer_period": 4, "attn_layer_offset": 2, "num_hidden_layers": 12},
    # A block is a state space, a mixture of experts or an attention.
    "nemotron_h": {"layers_block_type": [*_HYBRID, *_HYBRID, "linear_attention", "moe"]},
    # An index picks keys; experts from the fourth on.
    "glm_moe_dsa": {"num_hidden_layers": 9, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 6}
    | {"layer_types": ["indexed_attention"] * 9, "indexer_types": ["full"] * 9, "index_topk": 8},
    # No run of the text alone reaches its tower of vision.
    "qwen2_5_vl": {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    | {"text_config": {"num_hidden_layers": 6, "vocab_size": 64}, "vision_config": {"depth": 7}},
    # Two compressions of what is cached, two routers.
    "deepseek_v4": {"num_hidden_layers": 9, "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 6}
    | {"layer_types": [_HEAVY, _HEAVY, *[_HEAVY, _SPARSE] * 3, _HEAVY]}
    | {"hc_sinkhorn_iters": 2},
}
REPEATED = {"qwen3_5_text": 10, "jamba": 9, "nemotron_h": 9, "glm_moe_dsa": 7}
REPEATED |= {"qwen2_5_vl": 4, "deberta": 5, "with a convolution": 5}
"""Blocks that are not traced for themselves, where they are not six: not the first of DeBERTa with a
convolution, nor the last of one of which nothing reads all."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_STACKS)
def test_odd_stacks_repeat_and_equal_the_whole_trace(kind):
    tiny = {} if kind in ("nemotron_h", "qwen2_5_vl") else _TINY  # which count for themselves
    config = {"model_type": kind, **tiny, **ODD_STACKS[kind]}
    one, whole = (
        capture(config, model=kind, seq=16, symbolic=False, full=full).graph
        for full in (False, True)
    )
    assert (one.ops, one.tensors, one.edges) == (whole.ops, whole.tensors, whole.edges)
    assert one.meta.repeated_layers == REPEATED.get(kind, 6)


@pytest.mark.slow
def test_a_loop_over_tokens_says_how_many_ops_it_comes_to(monkeypatch):
    """Told from traces of 6 and 7 tokens; the trace of 9 has as many."""
    config = {"model_type": "jamba", **_TINY, **ODD_STACKS["jamba"], "num_hidden_layers": 1}
    ops = len(capture(config, model="jamba", seq=9, symbolic=False).graph.ops)
    monkeypatch.setattr(capturing, "MOST_OPS", ops - 1)
    asked = f"{ops} ops at seq 9. Trace at most 8 tokens"
    with pytest.raises(InputError, match=rf"8 ops for each token at .*py:\d+ .*{asked}"):
        capture(config, model="jamba", seq=9)


def test_tied_weights_are_one_storage(traced):
    graph = traced("llama-3.2-1b", seq=16, overrides={"num_hidden_layers": 2})
    table, head = (
        next(t for t in graph.tensors if t.name == name)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    )
    assert head.alias_of == table.id
    assert table.alias_of is None
    readers = [graph.ops[op].module_path for op in graph.readers(table.id)]
    assert readers == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize(("kv_heads", "width"), [(32, 2048), (None, 256)])
@pytest.mark.few(1)
def test_set_changes_the_model(traced, kv_heads, width):
    """TinyLlama has 4 heads of K and V, 64 wide: k_proj is 2048 x 256."""
    overrides = {"num_key_value_heads": kv_heads} if kv_heads else {}
    overrides["num_hidden_layers"] = 1
    graph = traced("tinyllama-1.1b", seq=16, overrides=overrides, symbolic=False)
    k_proj = [op for op in graph.ops if op.module_path.endswith("k_proj")]
    assert len(k_proj) == 1
    assert {(op.cost.gemm.k, op.cost.gemm.n) for op in k_proj} == {(2048, width)}
    assert graph.meta.overrides == (
        ("num_hidden_layers", "1"),
        *((("num_key_value_heads", "32"),) if kv_heads else ()),
    )


@pytest.mark.parametrize("name", ["edge-10m", *sparing(n for n in FAMILIES if n != "edge-10m")])
@pytest.mark.few(1)
def test_noise_is_gone_and_all_else_is_classified(traced, name):
    graph = traced(name, seq=48)
    targets = {op.target for op in graph.ops}
    assert not any("assert" in t or "dropout" in t or "sym_" in t for t in targets)
    assert all(op.kind is not Kind.OTHER for op in graph.ops)
    assert all(op.is_constant == (op.kind is Kind.CONSTANT) for op in graph.ops)
    assert [op.kind for op in graph.ops].count(Kind.OUTPUT) == 1
    for op in graph.ops:
        if op.is_view:
            assert all(t.alias_of is not None for t in graph.outputs(op.id))


def test_a_constant_depends_on_no_input(traced):
    """By networkx's own reachability: constants are exactly what no graph input leads to."""
    graph = traced("edge-10m", seq=48)
    inputs = [op.id for op in graph.ops if op.kind is Kind.INPUT]
    reached = set(inputs).union(*(nx.descendants(graph.nx, op) for op in inputs))
    assert {op.id for op in graph.ops if op.is_constant} == set(range(len(graph.ops))) - reached
    assert nx.is_directed_acyclic_graph(graph.nx)


def test_one_token_has_no_formula_in_seq():
    """torch treats a size of one unlike all others, so seq 1 is traced as itself."""
    shallow = {"num_hidden_layers": 1}
    graph = capture(preset("edge-10m"), model="edge-10m", seq=1, overrides=shallow).graph
    assert graph.meta.symbolic == ("batch",)
    scores = [t for t in graph.tensors if t.label == "attention_scores"]
    assert {t.shape_expr for t in scores} == {("batch", "4", "1", "1")}


def test_last_token_logits(traced):
    options = {"batch": 2, "overrides": {"num_hidden_layers": 1}, "symbolic": False}
    for logits, rows in (("last", 1), ("all", 48)):
        graph = traced("edge-10m", seq=48, logits=logits, **options)
        (result,) = [t for t in graph.tensors if t.role is Role.OUTPUT]
        assert result.shape == (2, rows, preset("edge-10m")["vocab_size"])
        assert result.label == "logits"


@pytest.mark.slow
def test_beyond_the_positions_is_a_warning():
    small = {"num_hidden_layers": 1}
    captured = capture(preset("bert-base"), model="bert-base", seq=600, overrides=small)
    (warning,) = captured.warnings
    assert "600" in warning
    assert "512" in warning
    assert captured.graph.meta.symbolic == ("batch", "seq")


@pytest.mark.slow
def test_a_branch_on_the_length_bounds_the_formulas():
    """BigBird looks at the length of the sequence to choose between two kinds of attention."""
    config = {
        "model_type": "big_bird",
        "num_hidden_layers": 1,
        "architectures": ["BigBirdForCausalLM"],
    }
    captured = capture(config, model="big_bird", seq=64)
    assert captured.warnings == ("the formulas hold where seq <= 704",)
    assert captured.graph.meta.symbolic == ("batch", "seq")


@pytest.mark.slow  # so does a user's module, see test_user_models.py
def test_a_model_that_only_traces_at_concrete_sizes_says_so():
    """Mamba without its kernels goes through the sequence token by token."""
    config = {
        "model_type": "mamba",
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "state_size": 4,
        "vocab_size": 32,
        "architectures": ["MambaForCausalLM"],
    }
    captured = capture(config, model="mamba", seq=2)
    (warning,) = captured.warnings
    assert "mamba cannot be traced for every batch and seq" in warning
    assert "each seq takes other ops at modeling_mamba.py:" in warning
    assert captured.graph.meta.symbolic == ()
    assert all(t.bytes_expr is None for t in captured.graph.tensors)
    assert all(t.bytes > 0 for t in captured.graph.tensors if 0 not in t.shape)


@pytest.mark.slow
def test_a_config_that_makes_no_model():
    with pytest.raises(InputError, match="num_attention_heads"):
        capture(preset("gpt2"), model="gpt2", overrides={"num_attention_heads": 7})
    with pytest.raises(InputError, match=r"no such field.*num_hidden_layers"):
        capture(preset("llama-3.2-1b"), model="llama", overrides={"num_hiden_layers": 2})
    with pytest.raises(InputError, match="knows no model_type"):
        capture({"model_type": "lama"}, model="mine")


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_is_one_line(capfd):
    """BLT cuts its input where the values of a small model's output say so."""
    with pytest.raises(CutedgeError) as caught:
        capture({"model_type": "blt"}, model="blt", seq=64)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("blt cannot be traced: ")
    assert "modeling_blt.py:" in str(caught.value)
    assert str(caught.value).endswith("it is traced as file.py:function.")
    assert capfd.readouterr() == ("", "")  # torch would print its traceback and the whole graph


# --- what a run on the meta device shows ----------------------------------------------------------

META = torch.empty(3, 4, device="meta")
CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "a number": lambda: META.long() * 2,
    "another type of number": lambda: META.long() * 2.0,
    "a shape": lambda: META @ META.new_empty(4, 5),
    "another shape": lambda: META @ META.new_empty(4, 6),
    "a layout": lambda: META.t() + 1,
    "another layout": lambda: META.t().contiguous() + 1,
    "a dtype": lambda: META.to(torch.float16),
    "another dtype": lambda: META.to(torch.float64),
    "a list": lambda: torch.cat([META, META]),
    "a longer list": lambda: torch.cat([META, META, META]),
    "several results": lambda: META.max(-1).values,
    "data": lambda: torch.ones(3) * 2,
    "other data": lambda: torch.zeros(3) * 2,
}


def test_a_run_on_meta_makes_what_torch_makes():
    plain = [call() for call in CALLS.values()]
    with MetaRun():
        made = [call() for _ in range(2) for call in CALLS.values()]
    for one, two in zip(plain * 2, made, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
        assert one.device == two.device
        assert one.is_meta or torch.equal(one, two)
    assert len({tensor.untyped_storage()._cdata for tensor in made}) == len(made)


def test_a_run_on_meta_works_out_each_op_once(monkeypatch):
    """What repeats is not asked of torch again; a view and an op that writes always are."""
    asked: list[str] = []
    call = torch._ops.OpOverload.__call__
    monkeypatch.setattr(
        torch._ops.OpOverload,
        "__call__",
        lambda *a, **k: (asked.append(str(a[0])), call(*a, **k))[1],
    )
    with MetaRun():
        for _ in range(3):
            assert META.mul(2).unsqueeze(0).add_(1).shape == (1, 3, 4)
    counts = Counter(asked)
    assert counts["aten.mul.Tensor"] == 1
    assert counts["aten.unsqueeze.default"] == counts["aten.add_.Tensor"] == 3


class Twice(torch.nn.Module):
    """Does the same twice: products, views of views, several results, new tensors, writing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("kept", torch.zeros(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            rows = x[:, 1:].transpose(-1, -2).unsqueeze(0)
            first = x.select(0, 0).view(-1) + x[2].view(-1) + x[:, 3].sum() + x[-1, 1].sum()
            left, right = x.split(2, dim=-1)
            new = torch.zeros(x.shape[1], 4, dtype=x.dtype)
            new[0].add_(self.kept)
            new = new + torch.arange(4) * torch.tensor(2)
            scores = (x @ rows[0]).softmax(-1)
            best = scores.topk(1).values
            x = self.linear(x + new) + best + first.sum() + torch.cat([right, left], -1)
        return x


@pytest.mark.parametrize("sizes", [{}, {"x": {0: Dim.AUTO, 1: Dim.AUTO}}], ids=["fixed", "any"])
def test_an_export_that_remembers_is_the_export(sizes):
    """Node by node: what it makes, in whose memory and where in it, and in which module."""

    def exported(*contexts: AbstractContextManager[None]) -> list[Any]:
        with ExitStack() as entered, torch.no_grad(), torch.device("meta"):
            for context in contexts:
                entered.enter_context(context)
            program = torch.export.export(
                Twice(), (torch.empty(3, 5, 4),), dynamic_shapes=sizes or None, strict=False
            )
        owners: dict[int, str] = {}
        rows = []
        for node in program.graph.nodes:
            made = tree_leaves(node.meta.get("val"))
            tensors = [
                (
                    str(t.shape),
                    str(t.stride()),
                    str(t.storage_offset()),
                    t.dtype,
                    owners.setdefault(t.untyped_storage()._cdata, node.name),
                )
                for t in made
                if isinstance(t, torch.Tensor)
            ]
            modules = [*node.meta.get("nn_module_stack", {}).values()]
            rows.append((node.name, str(node.target), str(node.args), tensors, modules))
        return rows

    assert exported(remembering(), without_debugging()) == exported()


# --- what a run does --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "masked"),
    [
        ({"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 16}, False),
        ({"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 8}, True),
        ({"model_type": "llama", "num_key_value_heads": 8}, False),
        ({"model_type": "bert"}, False),
    ],
    ids=["mistral within the window", "mistral beyond the window", "llama", "bert"],
)
@pytest.mark.few(1)
def test_sdpa_gets_the_operands_that_a_real_run_gives_it(config, masked, monkeypatch):
    """transformers masks an export where a run needs no mask: the trace must follow the run."""
    config = {
        **config,
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 16,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    graph = capture(config, model="tiny", batch=1, seq=12, attn="sdpa", symbolic=False).graph
    traced = [
        [t.shape for t in graph.inputs(op.id)] for op in graph.ops if op.kind is Kind.ATTENTION
    ]

    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = transformers.AutoModel.from_config(settings, attn_implementation="sdpa").eval()
    real = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(q, k, v, attn_mask=None, **options):
        real.append([tuple(t.shape) for t in (q, k, v, attn_mask) if t is not None])
        return attention(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 12, dtype=torch.int64))
    assert traced == real
    assert {len(operands) for operands in real} == {4 if masked else 3}


@pytest.mark.slow
@pytest.mark.parametrize(("seq", "said"), [(64, "seq <= 99"), (100, "seq >= 100")])
@pytest.mark.few(1)
def test_a_sliding_window_that_a_model_branches_on_bounds_the_formulas(seq, said):
    config = {
        "model_type": "mistral",
        "num_hidden_layers": 1,
        "sliding_window": 100,
        "architectures": ["MistralForCausalLM"],
    }
    captured = capture(config, model="mistral", seq=seq, attn="sdpa")
    (warning,) = captured.warnings
    assert f"the formulas hold where {said}" in warning
    assert captured.graph.meta.symbolic == ("batch", "seq")


@pytest.mark.slow
def test_buffers_keep_the_precision_of_their_code():
    """from_pretrained(dtype=bfloat16) leaves RoPE's frequencies in float32."""
    small = preset("edge-10m") | {"model_type": "llama", "architectures": None}
    small["intermediate_size"] = small.pop("ffn_dim")
    graph = capture(small, model="small", seq=8, dtype="bfloat16").graph
    dtypes = {role: {t.dtype for t in graph.tensors if t.role is role} for role in Role}
    assert dtypes[Role.PARAMETER] == {"bfloat16"}
    assert dtypes[Role.BUFFER] == {"float32"}


@pytest.mark.parametrize("kind", ["bloom", "deberta-v2"])
@pytest.mark.few(1)
@pytest.mark.slow
def test_a_dropout_hands_on_the_memory_of_its_input(kind):
    """What follows a dropout in evaluation is still a view of what went in: attention is found."""
    graph = capture({"model_type": kind, "num_hidden_layers": 1}, model=kind, seq=16).graph
    assert len(find_attentions(graph)) == 1


@pytest.mark.parametrize("kind", ["bloom", "xglm", "llama"])
@pytest.mark.parametrize(("batch", "seq"), [(1, 2), (1, 7), (2, 7)])
@pytest.mark.slow
def test_what_must_be_copied_is_decided_at_the_size_of_the_trace(kind, batch, seq):
    """A reshape that copies at batch 2 may be a view at batch 1."""
    options = {"model": kind, "batch": batch, "seq": seq, "overrides": {"num_hidden_layers": 1}}
    working = [
        Counter(o.target for o in graph.ops if not (o.is_view or o.is_constant))
        for graph in (
            capture({"model_type": kind}, **options, symbolic=symbolic).graph
            for symbolic in (True, False)
        )
    ]
    assert working[0] == working[1] != Counter()


class _Writer(torch.nn.Module):
    """Writes into a part of a tensor and reads the whole."""

    config = None

    def forward(self, input_ids):
        rows = input_ids.to(torch.float32)
        whole = torch.zeros_like(rows)
        untouched = whole * 3
        whole[:, :2] = rows[:, :2]
        return whole * 2, untouched


def test_what_is_written_through_a_view_is_seen_by_readers_of_the_whole():
    example = torch.zeros(3, 7, dtype=torch.int64, device="meta")
    module = _Writer()
    exported = torch.export.export(module, (example,), strict=False)
    program = lower(exported, module, {})
    graph = build_graph(
        program, TraceMeta("writer", "prefill", 3, 7, 0, "float32", "eager", "all", (), 0)
    )
    double, triple = (
        next(op for op in graph.ops if op.target == "aten.mul.Tensor" and number in op.name)
        for number in ("1", "0")
    )
    assert not double.is_constant  # it holds what was written
    (write,) = [op for op in graph.ops if op.target.startswith("aten.copy_")]
    assert nx.has_path(graph.nx, write.id, double.id)
    assert triple.is_constant
    assert not nx.has_path(graph.nx, write.id, triple.id)


def test_a_size_that_changes_the_work_is_no_coincidence():
    class Special(Toy):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = super().forward(input_ids)
            return torch.relu(x) if input_ids.shape[1] == 9 else x

    never = LOOKS["never"][0]
    task = toy_task(Special(never, never, depth=2), batch=8, seq=9)
    few, concrete = (_program(task, task.ways()[number], find_stacks(task)) for number in (0, -1))
    assert few.unsure == "seq is 9"
    with pytest.raises(Untraceable, match="its code takes another way where seq is 9"):
        _confirm(few, concrete, task.run_sizes)


def test_rows_that_come_in_groups_are_formulas_of_a_multiple():
    class Grouped(Toy):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            groups = input_ids.reshape(-1, 4, input_ids.shape[-1])
            return super().forward(groups[:, 0])

    never = LOOKS["never"][0]
    task = toy_task(Grouped(never, never, depth=2), batch=8, seq=9)
    few, near, _ = task.ways()
    with pytest.raises(Untraceable, match="invalid for input of size"):
        _program(task, few, find_stacks(task))
    assert near.examples["batch"] % 8 == 0
    said = _program(task, near, find_stacks(task)).conditions
    assert said == ("batch is a multiple of 4 and batch >= 8",)


def test_other_inputs_than_tokens_images_and_sounds_are_refused_by_name():
    config = {"model_type": "patchtst", "architectures": ["PatchTSTForPrediction"]}
    with pytest.raises(CutedgeError, match="no tokens, images or sounds but past_values"):
        capture(config, model="w", seq=8)
