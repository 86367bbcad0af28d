"""Ten models that see or hear, counted by hand: encode, prefill and decode.

Of each: the linears, the scores and the values of its tower, its projector and its text, and the
keys, values and states that it keeps. MACs are written as (rows) x (inputs x outputs); a FLOP count
is twice that. All are of one text with one image or sound, in float32.

Sizes, where nothing else is said: a text is 32 wide with 4 heads of 8 (2 for keys and values) and
48 in its MLPs, a tower 24 wide with 40 in its MLPs.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from costmodels.flops import annotate, total_flops
from tests.support import configs
from tests.support.configs import LLAVA, QWEN2_5_VL, QWEN_VISION, TEXT, VISION
from tools.coverage import against_torch, given
from tracer.capture import as_it_runs, capture, quiet
from tracer.capture.inputs import reading
from tracer.capture.models import build
from tracer.capture.runs import run_on_meta
from tracer.graph import Kind, Op, OpGraph, Role, Tensor

Shape = tuple[int, ...]


# --- what is counted by hand ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiplications with their additions."""

    linears: int = 0
    scores: int = 0
    """Queries by keys."""
    values: int = 0
    """Attention probabilities by values."""

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(
            self.linears + other.linears, self.scores + other.scores, self.values + other.values
        )

    @property
    def flops(self) -> int:
        return 2 * (self.linears + self.scores + self.values)


@dataclass(frozen=True, slots=True)
class Run:
    """New tokens over cached ones."""

    new: int
    past: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer of a text does in a run."""

    macs: Macs
    kept: tuple[Shape, ...]
    """What it has in its cache after the run."""
    hidden: Macs = Macs()
    """What of its attention the mask hides."""


LayerOf = Callable[[Run], Layer]


def encoder(tokens: int, width: int, *, at_once: int = 0) -> Macs:
    """Attention of all tokens, or of ``at_once`` in a window, to each other; and its projections."""
    products = tokens * (at_once or tokens) * width
    return Macs(tokens * 4 * width * width, products, products)


def attended(
    new: range, keys: range, width: int, value_width: int, sees: Callable[[int, int], bool]
) -> tuple[Macs, Macs]:
    """(the products of all new tokens with all keys, what of these the mask hides)"""
    seen = sum(sees(token, key) for token in new for key in keys)
    pairs = len(new) * len(keys)
    hidden = pairs - seen
    return (
        Macs(0, pairs * width, pairs * value_width),
        Macs(0, hidden * width, hidden * value_width),
    )


def causal(token: int, key: int) -> bool:
    return key <= token


def grouped(
    mlp: int,
    *,
    kv: int = 2,
    head: int = 8,
    kept: int | None = None,
    sees: Callable[[int, int], bool] = causal,
) -> LayerOf:
    """Attention of 4 heads, whose cache keeps all tokens, or those ``kept`` last."""

    def layer(run: Run) -> Layer:
        q_o, k_v = 2 * 32 * 4 * head, 2 * 32 * kv * head
        new = range(run.past, run.past + run.new)
        first = 0 if kept is None else max(run.past - kept, 0)
        products, hidden = attended(new, range(first, new.stop), 4 * head, 4 * head, sees)
        stays = new.stop if kept is None else min(new.stop, kept)
        both = ((1, kv, stays, head),) * 2
        return Layer(Macs(run.new * (q_o + k_v + mlp)) + products, both, hidden)

    return layer


def window(width: int, mlp: int) -> LayerOf:
    """Attention to ``width`` tokens, oneself among them: a cache needs one fewer."""
    return grouped(mlp, kept=width - 1, sees=lambda token, key: token - width < key <= token)


def chunked(width: int, mlp: int) -> LayerOf:
    """Attention to one's own chunk: the cache keeps as many as may be in it, and some too many."""
    return grouped(
        mlp, kept=width - 1, sees=lambda token, key: key <= token and key // width == token // width
    )


def crossed(encoded: int, mlp: int, *, kv: int = 2) -> LayerOf:
    """Attention to what is encoded, whose keys and values are made once."""

    def layer(run: Run) -> Layer:
        made = 0 if run.past else encoded * 2 * 32 * kv * 8
        products = run.new * encoded * 32
        linears = run.new * (2 * 32 * 32 + mlp) + made
        return Layer(Macs(linears, products, products), ((1, kv, encoded, 8),) * 2)

    return layer


def latent(mlp: int) -> LayerOf:
    """Multi-head latent attention: queries by way of 12 numbers, keys and values of 10.

    4 heads with keys of 8 and 4 turned ones, which all heads share, and values of 6. The cache has
    the 10 and the 4; each run makes keys and values of all that is cached.
    """

    def layer(run: Run) -> Layer:
        new = range(run.past, run.past + run.new)
        q, kv_a, o = 32 * 12 + 12 * 4 * (8 + 4), 32 * (10 + 4), 4 * 6 * 32
        kv_b = 10 * 4 * (8 + 6)
        products, hidden = attended(new, range(new.stop), 4 * (8 + 4), 4 * 6, causal)
        linears = Macs(run.new * (q + kv_a + o + mlp) + new.stop * kv_b)
        return Layer(linears + products, ((1, 1, new.stop, 10), (1, 1, new.stop, 4)), hidden)

    return layer


def convolved(mlp: int) -> LayerOf:
    """A short convolution over 3 tokens in each of 32 channels, gated: 32 x 96 before, 32 x 32
    behind. It runs over its own two tokens of padding too, or over the cached 3."""

    def layer(run: Run) -> Layer:
        places = run.new + 2 if not run.past else 3 + run.new - 2
        linears = run.new * (32 * 96 + 32 * 32 + mlp) + places * 3 * 32
        return Layer(Macs(linears), ((1, 32, 3),))

    return layer


@dataclass(frozen=True, slots=True)
class ByHand:
    """A model and its counts."""

    config: Mapping[str, Any]
    sense: Mapping[str, list[int]]
    """The option that says what it sees or hears."""
    parts: Mapping[str, str]
    """Start of the names of its modules -> ``tower`` or ``projector``; others are the text's."""
    tower: Macs
    projector: Macs
    layers: Sequence[LayerOf]
    prompt: int
    """Tokens of the prefill, those of the image or sound among them."""
    logits: int = 1
    """Tokens of the prefill whose logits are made, 32 x 64 each."""
    results: int = 1
    """What the tower gives: tokens, and what layers of the text add to them."""


MLP = 3 * 32 * 48
BLOCK = 2 * 24 * 40
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
TWO = {**TEXT, "num_hidden_layers": 2}
GRID = {"images": [1, 32, 48]}
"""An image of 4 x 6 patches of 8 x 8 pixels."""


def patches(number: int, inputs: int, width: int = 24) -> Macs:
    """Each patch of so many numbers by a linear, or by a convolution that is one."""
    return Macs(number * inputs * width)


def llava() -> ByHand:
    """CLIP and Llama. The tower sees a class token beside 4 x 4 patches, the text does not."""
    return ByHand(
        LLAVA,
        {"images": [1]},
        {"model.vision_tower": "tower", "model.multi_modal_projector": "projector"},
        patches(16, 3 * 8 * 8) + encoder(17, 24) + Macs(17 * BLOCK),
        Macs(16 * (24 * 32 + 32 * 32)),
        [grouped(MLP)],
        prompt=24,
    )


def qwen2_5_vl() -> ByHand:
    """Two frames of 14 x 14 pixels are a patch. Of its 4 x 8 patches, a window has 4 x 4 in the
    first layer, and all in the second; 2 x 2 of them make a token. The tower is 32 wide."""
    merged = 4 * 32
    return ByHand(
        QWEN2_5_VL,
        {"images": [1, 56, 112]},
        {"model.visual.merger": "projector", "model.visual": "tower"},
        patches(32, 2 * 3 * 14 * 14, 32)
        + encoder(32, 32, at_once=16)
        + encoder(32, 32)
        + Macs(32 * 2 * MLP),
        Macs(8 * (merged * merged + merged * 32)),
        [grouped(MLP)],
        prompt=12,
    )


def qwen3_vl() -> ByHand:
    """Two layers in its tower, 32 wide; what the first makes is merged too, and added to the
    tokens behind the first layer of the text. Heads of the text are 16 wide."""
    merged = 4 * 32
    return ByHand(
        {
            "model_type": "qwen3_vl",
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "image_token_id": 5,
            "text_config": {
                **TWO,
                "head_dim": 16,
                "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]},
            },
            "vision_config": {
                **QWEN_VISION,
                "patch_size": 8,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
        GRID,
        {
            "model.visual.merger": "projector",
            "model.visual.deepstack_merger_list": "projector",
            "model.visual": "tower",
        },
        patches(24, 2 * 3 * 8 * 8, 32)
        + encoder(24, 32)
        + encoder(24, 32)
        + Macs(2 * 24 * 2 * 32 * 48),
        Macs(2 * 6 * (merged * merged + merged * 32)),
        [grouped(MLP, head=16)] * 2,
        prompt=12,
        results=2,
    )


def gemma3() -> ByHand:
    """SigLIP's 16 patches are pooled to 4 tokens. A layer that looks back 6 tokens, and one that
    looks back to all."""
    return ByHand(
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "model_type": "gemma3_text",
                **TWO,
                "head_dim": 8,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                **VISION,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
        },
        {"images": [1]},
        {"model.vision_tower": "tower", "model.multi_modal_projector": "projector"},
        patches(16, 3 * 8 * 8) + encoder(16, 24) + Macs(16 * BLOCK),
        Macs(4 * 24 * 32),
        [window(6, MLP), grouped(MLP)],
        prompt=12,
    )


def mllama() -> ByHand:
    """Each of 4 tiles is 2 x 2 patches and a class token, filled up to 8: both layers of the tower
    see all 32. The projector reads the 20 that are not filling, 24 numbers of the last layer and 24
    of the first. The second layer of the text looks at these alone."""
    return ByHand(
        {
            "model_type": "mllama",
            "architectures": ["MllamaForConditionalGeneration"],
            "text_config": {
                **TWO,
                "cross_attention_layers": [1],
                "pad_token_id": 0,
                "rope_parameters": ROPE,
            },
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 4,
                "image_size": 16,
                "patch_size": 8,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [0],
                "vision_output_dim": 48,
            },
            "image_token_index": 5,
        },
        {"images": [1]},
        {"model.vision_model": "tower", "model.multi_modal_projector": "projector"},
        patches(4 * 4, 3 * 8 * 8) + encoder(32, 24) + encoder(32, 24) + Macs(2 * 32 * BLOCK),
        Macs(20 * 48 * 32),
        [grouped(MLP), crossed(20, MLP)],
        prompt=6,
    )


def kimi_k25() -> ByHand:
    """Latent attention; the second layer has 8 experts of 20, two and a shared one for a token."""
    merged = 4 * 24
    experts = 32 * 8 + (2 + 1) * 3 * 32 * 20
    return ByHand(
        {
            "model_type": "kimi_k25",
            "architectures": ["Kimi_K25ForConditionalGeneration"],
            "image_token_id": 5,
            "video_token_id": 6,
            "projection_hidden_size": 24,
            "text_config": {
                "model_type": "deepseek_v3",
                **TWO,
                "num_key_value_heads": 4,
                "first_k_dense_replace": 1,
                "moe_intermediate_size": 20,
                "n_routed_experts": 8,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "q_lora_rank": 12,
                "kv_lora_rank": 10,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 6,
            },
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 1,
                "num_attention_heads": 3,
                "patch_size": 8,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
            },
        },
        GRID,
        {"model.vision_tower": "tower", "model.mm_projector": "projector"},
        patches(24, 3 * 8 * 8) + encoder(24, 24) + Macs(24 * BLOCK),
        Macs(6 * (merged * merged + merged * 32)),
        [latent(MLP), latent(experts)],
        prompt=12,
    )


def lfm2_vl() -> ByHand:
    """SigLIP 2, whose 2 x 2 patches make a token by way of 28; a layer of convolution and one of
    attention."""
    return ByHand(
        {
            "model_type": "lfm2_vl",
            "architectures": ["Lfm2VlForConditionalGeneration"],
            "image_token_id": 5,
            "projector_hidden_size": 28,
            "text_config": {
                "model_type": "lfm2",
                **TWO,
                "layer_types": ["conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "vision_use_head": False,
                "num_patches": 16,
                **{name: size for name, size in VISION.items() if name != "image_size"},
            },
        },
        GRID,
        {"model.vision_tower": "tower", "model.multi_modal_projector": "projector"},
        patches(24, 3 * 8 * 8) + encoder(24, 24) + Macs(24 * BLOCK),
        Macs(6 * (4 * 24 * 28 + 28 * 32)),
        [convolved(MLP), grouped(MLP)],
        prompt=12,
    )


def llama4() -> ByHand:
    """The tower is 32 wide with 128 in its MLP; its adapter makes 20 numbers of 2 x 2 patches,
    twice, and the projector 32. A layer sees chunks of 8, with an MLP of 56; one sees all, with
    3 experts of 48, which the code runs on every token, and a shared one."""
    return ByHand(
        {
            "model_type": "llama4",
            "architectures": ["Llama4ForConditionalGeneration"],
            "image_token_index": 5,
            "text_config": {
                **TWO,
                "head_dim": 8,
                "intermediate_size_mlp": 56,
                "num_local_experts": 3,
                "interleave_moe_layer_step": 2,
                "no_rope_layers": [1, 0],
                "attention_chunk_size": 8,
                "pad_token_id": 0,
            },
            "vision_config": {
                **VISION,
                "hidden_size": 32,
                "intermediate_size": 128,
                "projector_input_dim": 20,
                "projector_output_dim": 20,
                "vision_output_dim": 20,
            },
        },
        {"images": [1]},
        {
            "vision_model.vision_adapter": "projector",
            "vision_model": "tower",
            "multi_modal_projector": "projector",
        },
        patches(16, 3 * 8 * 8, 32) + encoder(17, 32) + Macs(17 * 2 * 32 * 128),
        Macs(4 * (128 * 20 + 20 * 20 + 20 * 32)),
        [chunked(8, 3 * 32 * 56), grouped(32 * 3 + (3 + 1) * MLP)],
        prompt=12,
    )


def whisper() -> ByHand:
    """40 frames of 80 bands, made 20 by two convolutions of 3 frames. The tower's layer and that of
    the text have all 4 heads for keys and values, 2 x 32 x 48 in their MLPs. Its code makes the
    logits of all tokens."""
    mlp = 2 * 32 * 48
    itself, encoded = grouped(0, kv=4), crossed(20, mlp, kv=4)

    def layer(run: Run) -> Layer:
        first, second = itself(run), encoded(run)
        return Layer(first.macs + second.macs, first.kept + second.kept, first.hidden)

    return ByHand(
        {**configs.WHISPER, "max_source_positions": 20},
        {},
        {"model.encoder": "tower"},
        Macs(40 * 3 * 80 * 32 + 20 * 3 * 32 * 32) + encoder(20, 32) + Macs(20 * mlp),
        Macs(),
        [layer],
        prompt=6,
        logits=6,
    )


def voxtral() -> ByHand:
    """The tower of Whisper, with 128 in its MLP; four of its 20 make a token."""
    return ByHand(
        {
            "model_type": "voxtral",
            "architectures": ["VoxtralForConditionalGeneration"],
            "audio_token_id": 5,
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_mel_bins": 80,
                "max_source_positions": 20,
            },
            "text_config": {"model_type": "llama", **TEXT, "head_dim": 8},
        },
        {"sounds": [1]},
        {"model.audio_tower": "tower", "model.multi_modal_projector": "projector"},
        Macs(40 * 3 * 80 * 32 + 20 * 3 * 32 * 32) + encoder(20, 32) + Macs(20 * 2 * 32 * 128),
        Macs(5 * (4 * 32 * 32 + 32 * 32)),
        [grouped(MLP)],
        prompt=11,
    )


TEN = (llava, qwen2_5_vl, qwen3_vl, gemma3, mllama, kimi_k25, lfm2_vl, llama4, whisper, voxtral)


# --- what is traced -------------------------------------------------------------------------------


def traced(model: ByHand, **options: Any) -> OpGraph:
    options = {"symbolic": False, "overrides": model.sense, **options}
    return annotate(capture(model.config, model="m", **options).graph)


def counted(graph: OpGraph, parts: Mapping[str, str]) -> dict[str, Macs]:
    """The products of each part of a model; a part without any is left out."""
    found: dict[str, Macs] = defaultdict(Macs)
    for op in graph.ops:
        if op.kind not in (Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION) or op.is_constant:
            continue
        names = (part for start, part in parts.items() if (op.module_path or "").startswith(start))
        found[next(names, "text")] += _macs(graph, op)
    return dict(found)


def _macs(graph: OpGraph, op: Op) -> Macs:
    assert op.cost.flops is not None
    macs = op.cost.flops // 2
    if op.kind is Kind.LINEAR:
        return Macs(linears=macs)
    (label,) = {t.label for t in graph.outputs(op.id)}
    return {"attention_scores": Macs(scores=macs), "attention_output": Macs(values=macs)}[
        label or ""
    ]


def read(graph: OpGraph) -> list[Shape]:
    given = [op for op in graph.ops if op.kind is Kind.INPUT]
    return _cached(t for op in given for t in graph.outputs(op.id))


def written(graph: OpGraph) -> list[Shape]:
    return _cached(results(graph))


def _cached(tensors: Iterable[Tensor]) -> list[Shape]:
    held = [t for t in tensors if t.role is Role.KV_CACHE]
    assert all(t.bytes == 4 * math.prod(t.shape) for t in held)
    return [t.shape for t in held]


def results(graph: OpGraph) -> tuple[Tensor, ...]:
    return graph.inputs(len(graph.ops) - 1)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=model.__name__, marks=() if model is whisper else pytest.mark.slow)
        for model in TEN
    ],
)
def test_products_and_caches_by_hand(model: Callable[[], ByHand]) -> None:
    """The tower and the projector alone, then with a prompt; then a step over what that cached."""
    hand = model()
    sensed = {"tower": hand.tower, "projector": hand.projector}
    seen = {name: macs for name, macs in sensed.items() if macs != Macs()}
    encoded = traced(hand, phase="encoder")
    assert counted(encoded, hand.parts) == seen
    assert len(results(encoded)) == hand.results
    assert "logits" not in {t.label for t in encoded.tensors}
    prompt = traced(hand, seq=hand.prompt, cache=True)
    among = seen if hand.sense else {}  # else the text reads what an encoder has made
    cached = holds(hand, prompt, Run(hand.prompt, 0), hand.logits, among)
    assert written(prompt) == cached
    assert [t.label for t in results(prompt)].count("logits") == 1
    step = traced(hand, phase="decode", past=hand.prompt)
    assert read(step) == cached
    assert written(step) == holds(hand, step, Run(1, hand.prompt), 1, {})


def holds(
    hand: ByHand, graph: OpGraph, run: Run, logits: int, among: Mapping[str, Macs]
) -> list[Shape]:
    """Check the products of a run, those of the tower and the projector ``among`` them; the shapes
    of what it has cached then."""
    layers = [layer(run) for layer in hand.layers]
    text = sum((layer.macs for layer in layers), Macs(logits * 32 * 64))
    parts = {**among, "text": text}
    assert counted(graph, hand.parts) == parts
    total = total_flops(graph)
    assert total.products == sum(macs.flops for macs in parts.values())
    assert total.products - total.causal == sum(layer.hidden.flops for layer in layers)
    return [shape for layer in layers for shape in layer.kept]


MASKS = {"mllama": 2 * 32 * 32}
"""FLOPs of a mask that follows from numbers alone: which tiles see each other."""


@pytest.mark.parametrize("model", TEN, ids=lambda model: model.__name__)
@pytest.mark.slow
def test_torch_counts_the_same(model: Callable[[], ByHand]) -> None:
    """Its counter runs the model itself, in a prefill and in the step behind it."""
    hand = model()
    prompt = traced(hand, seq=hand.prompt)
    apart = None if hand.sense else traced(hand, phase="encoder")
    said: tuple[str, tuple[str, ...]] = ("equal", ())
    if (masks := MASKS.get(model.__name__)) is not None:
        said = "explained", (f"torch counts {masks:,} FLOPs of constants, computed at load",)
    assert against_torch(prompt, apart, hand.config, hand.sense) == said
    step = traced(hand, phase="decode", past=hand.prompt)
    assert counted_step(hand, given(prompt)) == total_flops(step).products


def counted_step(hand: ByHand, prompt: Mapping[str, Any]) -> int:
    """FLOPs that torch counts in a step over what a prompt has made the model cache."""
    seen = [tuple(hand.sense.get(kind, ())) for kind in ("images", "sounds")]
    with quiet(), as_it_runs(), run_on_meta(module := built(hand)), torch.device("meta"):
        ahead, behind = (reading(module, "m", phase, *seen) for phase in ("prefill", "decode"))
        made = ahead.run(module, prompt, use_cache=True)
        name = ahead.inputs[0].name
        one = {**prompt, name: prompt[name][:, :1]}
        last = {tensor.name: one[tensor.name] for tensor in behind.inputs}
        with FlopCounterMode(display=False) as counter:
            behind.run(module, last, past_key_values=made.past_key_values, use_cache=True)
    return int(counter.get_total_flops())


def built(hand: ByHand) -> Any:
    module: Any = build(hand.config, {}, model="m", dtype="float32", attn="eager")
    if "grouped_mm" in module.get_experts_implementation().values():  # torch does not count it
        module.set_experts_implementation("batched_mm")
    return module
