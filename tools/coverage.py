"""How far the tracer reaches: the model types of transformers by head, default configs cut short.

``python -m tools.coverage`` (`make coverage`, hours) writes docs/coverage.md. With ``--head NAME``,
once or several times, it sweeps these heads and leaves the other tables of the page as they are;
with model types after one head it sweeps these, and leaves the other rows as they are too.
"""

import argparse
import inspect
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch.utils import module_tracker
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils

from costmodels.flops import annotate, total_flops
from cutedge.runtime.ops import refused
from tracer.capture import Capture, as_it_runs, capture, quiet
from tracer.capture.encoded import Encoded
from tracer.capture.errors import first_line
from tracer.capture.inputs import (
    IMAGES,
    SOUNDS,
    hears_among_tokens,
    reading,
    sees_among_tokens,
    sees_beside_tokens,
)
from tracer.capture.models import build
from tracer.capture.readings import MANY_TOKENS, Reading
from tracer.errors import CutedgeError
from tracer.graph import Kind, Op, OpGraph, Status
from tracer.kinds import MATRIX_PRODUCTS, base_name

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
LAYERS, BATCH, SEQ, SOURCE = 2, 8, 64, 96
SHOWN = 2
"""The batch of models that read images or sounds among their tokens: many take each by itself."""


@dataclass(frozen=True, slots=True)
class Head:
    """What model types are swept with."""

    title: str
    classes: Mapping[Any, Any]
    """Class of the config -> class of the model, or several, of which the first is swept."""
    phases: tuple[str, ...] = ("prefill",)
    """What is traced of models with an encoder apart; of others, a prefill."""
    images: bool = False
    """Whether models read an image in each of the batch, beside 1024 tokens of text."""
    sounds: bool = False
    """Whether models of text read a sound in each of the batch, beside 1024 tokens."""


TWO_TOWERS = {
    **dict(transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING.items()),
    transformers.ClapConfig: transformers.ClapModel,
}
HEADS = {
    "causal-lm": Head("Causal LM", transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    "masked-lm": Head("Masked LM", transformers.MODEL_FOR_MASKED_LM_MAPPING),
    "seq2seq-lm": Head(
        "Sequence to sequence",
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        ("prefill", "encoder", "decode"),
    ),
    "image-classification": Head(
        "Image classification", transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    ),
    "ctc": Head("Speech to text, CTC", transformers.MODEL_FOR_CTC_MAPPING),
    "speech-seq2seq": Head(
        "Speech to text, sequence to sequence",
        transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        ("prefill", "encoder", "decode"),
        sounds=True,
    ),
    "audio-classification": Head(
        "Audio classification", transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING
    ),
    "image-text-to-text": Head(
        "Image and text to text",
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        ("prefill", "encoder"),
        images=True,
    ),
    "two-towers": Head("Two towers", TWO_TOWERS),
    "text-encoding": Head(
        "Text encoding (embeddings)", transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    ),
    "sequence-classification": Head(
        "Sequence classification", transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    ),
    "token-classification": Head(
        "Token classification", transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    ),
    "question-answering": Head(
        "Question answering", transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING
    ),
    "semantic-segmentation": Head(
        "Semantic segmentation", transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    ),
    "object-detection": Head("Object detection", transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING),
    "mask-generation": Head("Mask generation", transformers.MODEL_FOR_MASK_GENERATION_MAPPING),
}
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "depth",
    "num_global_layers",
    "num_timestamp_prediction_layers",
)
PARTS = (
    "text_config",
    "vision_config",
    "audio_config",
    "encoder_config",
    "decoder_config",
    "encoder",
    "decoder",
)
ENCODERS = ("vision_config", "audio_config", "encoder_config")
"""The parts beside which a config may describe its decoder itself."""
GLM_ROPE = {
    "text_config.rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [8, 12, 12],
        "partial_rotary_factor": 0.5,
    }
}
TILES_336 = {"vision_config.image_size": 336, "vision_config.patch_size": 14}
TILES_364 = {"vision_config.image_size": 364, "vision_config.patch_size": 14}
HYBRID = ["linear_attention", "full_attention"]
GAPS: dict[tuple[str, str], dict[str, Any]] = {
    ("causal-lm", "cohere_compass_text"): {
        "rope_parameters.full_attention": {"rope_theta": 10_000.0}
    },
    ("causal-lm", "blt"): {"patch_in_forward": False},
    ("causal-lm", "dbrx"): {"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8},
    ("causal-lm", "deepseek_v2"): {"num_experts_per_tok": 6},
    ("causal-lm", "dots1"): {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    ("causal-lm", "gemma3n_text"): {"num_kv_shared_layers": 0},
    ("causal-lm", "hunyuan_v1_dense"): {"head_dim": 128},
    ("causal-lm", "hunyuan_v1_moe"): {"head_dim": 128},
    ("causal-lm", "lfm2_moe"): {"layer_types": ["conv", "full_attention"]},
    ("causal-lm", "ministral"): {"head_dim": 128},
    ("causal-lm", "nemotron"): {"num_key_value_heads": 48},
    ("causal-lm", "reformer"): {"is_decoder": True, "axial_pos_embds": False},
    ("causal-lm", "xmod"): {"default_language": "en_XX"},
    ("image-text-to-text", "aria"): {
        "vision_config.image_size": 490,
        "vision_config.patch_size": 14,
    },
    ("image-text-to-text", "blip-2"): {"image_token_index": 5},
    ("image-text-to-text", "chameleon"): {"vocabulary_map": {"<image>": 5, "IMGIMGAZ": 6}},
    ("image-text-to-text", "cohere_compass"): {
        "text_config.rope_parameters": {"full_attention": {"rope_theta": 10_000.0}},
        "vision_config.out_hidden_size": 8192,
    },
    ("image-text-to-text", "deepseek_ocr2"): {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 6,
        "vision_config.encoder_config.hidden_size": 896,
        "vision_config.encoder_config.num_attention_heads": 14,
        "vision_config.encoder_config.num_key_value_heads": 2,
        "vision_config.encoder_config.num_hidden_layers": 2,
    },
    ("image-text-to-text", "diffusion_gemma"): {
        "text_config.num_experts": 8,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 704,
    },
    ("image-text-to-text", "emu3"): {
        "vocabulary_map": {"<image>": 5, "<|visual token 000000|>": 6}
    },
    ("image-text-to-text", "exaone4_5"): {
        "text_config": {"model_type": "exaone4", "num_hidden_layers": 2}
    },
    ("image-text-to-text", "gemma3"): {
        "vision_config.image_size": 896,
        "vision_config.patch_size": 14,
    },
    ("image-text-to-text", "gemma4"): {"vision_config": {"num_hidden_layers": 2}},
    ("image-text-to-text", "gemma4_unified"): {"vision_config": {"num_hidden_layers": 2}},
    ("image-text-to-text", "glm46v"): GLM_ROPE,
    ("image-text-to-text", "glm4v"): GLM_ROPE,
    ("image-text-to-text", "glm4v_moe"): {**GLM_ROPE, "text_config.head_dim": 128},
    ("image-text-to-text", "glmga"): GLM_ROPE,
    ("image-text-to-text", "granite4_vision"): {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[384, 384]],
        "vision_config.image_size": 384,
        "vision_config.patch_size": 16,
    },
    ("image-text-to-text", "hunyuan_vl"): {
        "text_config.head_dim": 128,
        "text_config.rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [16, 16, 16, 16],
        },
    },
    ("image-text-to-text", "instructblip"): {"image_token_index": 5},
    ("image-text-to-text", "instructblipvideo"): {"video_token_index": 5},
    ("image-text-to-text", "idefics3"): TILES_364,
    ("image-text-to-text", "smolvlm"): TILES_364,
    ("image-text-to-text", "llama4"): {
        "vision_config.hidden_size": 1408,
        "vision_config.vision_output_dim": 4096,
    },
    ("image-text-to-text", "llava_next"): TILES_336,
    ("image-text-to-text", "llava_next_video"): TILES_336,
    ("image-text-to-text", "llava_onevision"): {
        "vision_config.image_size": 384,
        "vision_config.patch_size": 14,
    },
    ("image-text-to-text", "mllama"): {
        "text_config.cross_attention_layers": [1],
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": 3840,
    },
    ("image-text-to-text", "molmo2"): {"adapter_config.vision_feature_layer": [1, 0]},
    ("image-text-to-text", "nemotron_h_omni"): {
        "vision_config.video_temporal_patch_size": 2,
        "image_token_id": 5,
    },
    ("image-text-to-text", "qwen3_5"): {"text_config.layer_types": HYBRID},
    ("image-text-to-text", "qwen3_5_moe"): {"text_config.layer_types": HYBRID},
    ("image-text-to-text", "qwen4_exp"): {
        "text_config.layer_types": ["linear_attention", "indexed_attention"]
    },
    ("image-text-to-text", "qwen3_omni_moe_thinker"): {
        "text_config.num_attention_heads": 16,
        "vision_config.out_hidden_size": 2048,
    },
    ("image-text-to-text", "qwen3_vl"): {"vision_config.out_hidden_size": 4096},
    ("image-text-to-text", "qwen3_vl_moe"): {"vision_config.out_hidden_size": 2048},
    ("image-text-to-text", "shieldgemma2"): {
        "vision_config.image_size": 896,
        "vision_config.patch_size": 14,
    },
    ("image-text-to-text", "step3p7"): {"text_config.sliding_window": 512},
    ("image-text-to-text", "vipllava"): {"vision_feature_layers": [-1, 1]},
    ("speech-seq2seq", "fun_asr_nano"): {
        "adaptor_config.hidden_size": 4096,
        "adaptor_config.intermediate_size": 1024,
    },
    ("speech-seq2seq", "granite_speech"): {"projector_config.encoder_hidden_size": 1024},
    ("speech-seq2seq", "granite_speech_plus"): {"projector_config.encoder_hidden_size": 1024},
    ("speech-seq2seq", "voxtral"): {"audio_token_id": 5},
    ("two-towers", "clap"): {"audio_config.num_hidden_layers": 4},  # its width follows from it
    ("two-towers", "blip-2"): {"qformer_config.use_qformer_text_input": True},
    ("ctc", "wav2vec2-bert"): {"vocab_size": 32},
    ("ctc", "wav2vec2-conformer"): {"vocab_size": 32},
    ("masked-lm", "esm"): {"vocab_size": 33, "pad_token_id": 1},
    ("masked-lm", "reformer"): {"axial_pos_embds": False},
    ("masked-lm", "xmod"): {"default_language": "en_XX"},
    # Among so few layers there would be none with experts.
    ("seq2seq-lm", "nllb-moe"): {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ("seq2seq-lm", "switch_transformers"): {
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
}
"""What the default config of a type leaves open for a head, and a value for it."""
WRITTEN = {"moonshine_streaming": {"num_key_value_heads": 8}}
"""What published configs of a type say that is no field of their class, though its code reads it."""
REASONS = {
    "gemma3n": "its text part is gemma3n_text",
    "gemma4_assistant": "a drafter: its layers read the cache of another model",
    "gemma4_unified_assistant": "a drafter: its layers read the cache of another model",
    "nllb-moe": "its experts are run one by one, by the values of the routing",
    "switch_transformers": "its experts are run one by one, by the values of the routing",
}
"""Why a type cannot be built, where the error alone does not say it."""
SENSED = ("pixel_values", "input_features", "input_values")
"""What a model may read beside tokens; it is traced over the tokens alone then."""
LACKING = "no formula"
FREE = (Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one model type."""

    model_type: str
    traced: tuple[str, ...]
    """How, a phase of the head each: symbolic, bounded, concrete, no, ``no config`` where
    transformers itself builds none, ``-`` for a phase that such a model does not have."""
    ops: int = 0
    exact: float = 0.0
    """Share of the ops that work whose FLOPs are exact, none at all included."""
    torch: str = ""
    """``equal``, ``explained`` or ``differs``, ``-`` where torch's counter cannot run."""
    notes: str = ""
    seconds: float | None = None
    """Wall seconds of its captures, None where it was not timed."""

    def __str__(self) -> str:
        exact = f"{self.exact:.0%}" if self.ops else ""
        ops = f"{self.ops:,}" if self.ops else ""
        said = self.notes.replace("|", "\\|").replace("<", "&lt;")
        took = "" if self.seconds is None else f"{self.seconds:.1f}"
        cells = [self.model_type, *self.traced, ops, exact, self.torch, took, said]
        return f"| {' | '.join(cells)} |"

    @classmethod
    def of(cls, line: str) -> "Row":
        """The row that a line of the page shows."""
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        model_type, *traced, ops, exact, equal, took, said = cells
        return cls(
            model_type,
            tuple(traced),
            int(ops.replace(",", "") or 0),
            int(exact.strip("%") or 0) / 100,
            equal,
            said.replace("\\|", "|").replace("&lt;", "<"),
            float(took) if took else None,
        )


def model_types(head: str) -> list[str]:
    return sorted({config.model_type for config in HEADS[head].classes})


def depths(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Where a config says how many layers its parts have, as ``--set`` calls it."""
    here = [f"{prefix}{name}" for name in DEPTHS if type(config.get(name)) is int]
    yield from here
    for name in ENCODERS if here else PARTS:
        if isinstance(config.get(name), dict):
            yield from depths(config[name], f"{prefix}{name}.")


def sweep(head: str, model_type: str) -> Row:
    """The row of a model type."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    with quiet():
        try:
            default = config_class().to_dict()
        except Exception:  # a config class may raise anything over its own defaults
            default = {}
    named = HEADS[head].classes[config_class]
    model_class = named[0] if isinstance(named, tuple) else named
    written = WRITTEN.get(model_type, {})
    config = {"model_type": model_type, "architectures": [model_class.__name__], **written}
    gap = GAPS.get((head, model_type), {})
    if head == "sequence-classification" and default.get("pad_token_id", 0) is None:
        gap = {"pad_token_id": 0, **gap}  # which a batch needs: they look for the last token
    overrides = {**dict.fromkeys(depths(default), LAYERS), **gap}
    reads = inspect.signature(model_class.forward).parameters
    apart = "decoder_input_ids" in reads and default.get("is_encoder_decoder", True)
    what = "images" if HEADS[head].images else "sounds"
    shown = {"images": {"pixel_values"}, "sounds": {"input_features", "input_values"}}[what]
    shows = (HEADS[head].images or HEADS[head].sounds) and "input_ids" in reads
    sees = bool(shows and shown & {*reads}) and not apart
    started = time.perf_counter()
    read = {**overrides, what: [1]} if sees else overrides
    made = {"prefill": traced(config, read, "prefill", reads, sees)}
    if sees and isinstance(made["prefill"], CutedgeError):  # text alone then
        sees, made = False, {"prefill": traced(config, overrides, "prefill", reads)}
    for phase in HEADS[head].phases[1:]:
        made[phase] = traced(config, overrides, phase, reads, sees)
    seconds = time.perf_counter() - started
    notes = without(made["prefill"], reads)
    notes += [f"with {key} = {value} in its config" for key, value in written.items()]
    notes += [f"--set {key}={json.dumps(value)}" for key, value in gap.items()]
    if isinstance(made["prefill"], CutedgeError) and model_type in REASONS:
        notes.append(REASONS[model_type])
    for phase, one in made.items():
        why = how(one)[1]
        notes += why if phase == "prefill" else [f"{phase}: {w}" for w in why if w not in notes]
    graphs = {p: annotate(one.graph) for p, one in made.items() if isinstance(one, Capture)}
    found: dict[str, Any] = {}
    if (graph := graphs.get("prefill")) is not None:
        working = [op for op in graph.ops if op.kind not in FREE]
        exact = sum(  # what is assumed of the routing to experts changes no FLOPs
            op.cost.flops_status in (Status.EXACT, Status.ZERO) or op.cost.assumption is not None
            for op in working
        )
        encoder = None if sees else graphs.get("encoder")
        if graph.meta.source == SOURCE and "input_ids" not in reads:
            encoder = None  # which makes another number of tokens of its sound
        equal, why = against_torch(graph, encoder, config, overrides)
        found = {"ops": len(graph.ops), "exact": exact / len(working), "torch": equal}
        notes += why
    lacking: Counter[str] = Counter()
    for graph in graphs.values():
        lacking.update(total_flops(graph).unsupported)
    notes += [f"{LACKING}: {n} x {target}" for target, n in sorted(lacking.items())]
    targets = (op.target for graph in graphs.values() for op in graph.ops)
    notes += [f"verify cannot run it: {target}" for target in refused(targets)]
    ways = tuple(how(one)[0] for one in made.values())
    return Row(model_type, ways, notes="; ".join(notes), seconds=seconds, **found)


def without(made: Capture | CutedgeError | None, reads: Iterable[str]) -> list[str]:
    """What a model can read beside tokens and is not given."""
    read = {t.name for t in made.graph.tensors} if isinstance(made, Capture) else set()
    others = {*reads} - read if "input_ids" in reads else set()
    return [f"without {name}" for name in SENSED if name in others]


def traced(
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    phase: str,
    reads: Iterable[str],
    sees: bool = False,
) -> Capture | CutedgeError | None:
    """A phase of a model with such inputs: None where it has none, an error that says why not."""
    apart = "decoder_input_ids" in reads and not sees
    if phase != "prefill" and not (apart or sees):
        return None
    asked: dict[str, dict[str, int]] = {
        "prefill": {"seq": SEQ} if apart or "input_ids" in reads else {},
        "encoder": {"seq": SOURCE} if "input_ids" in reads else {},
        "decode": {"past": SEQ},
    }
    seen = {"past": MANY_TOKENS} if phase == "decode" else {}  # images or sounds among them
    sizes = seen if sees else asked[phase]
    if apart and phase != "encoder":
        sizes["source"] = SOURCE
    batch = SHOWN if sees else BATCH
    options: dict[str, Any] = {"phase": phase, "batch": batch, "overrides": overrides, **sizes}
    try:
        return capture(config, model=config["model_type"], **options)
    except CutedgeError as error:
        if "source" not in options or "leave --source out" not in str(error):
            return error
    del options["source"]  # its encoder makes as much as it makes
    try:
        return capture(config, model=config["model_type"], **options)
    except CutedgeError as error:
        return error


def how(made: Capture | CutedgeError | None) -> tuple[str, tuple[str, ...]]:
    """How a model was traced, and the warning or the error that says why no better."""
    if made is None:
        return "-", ()
    if isinstance(made, CutedgeError):
        said = re.sub(r"^[\w-]+:? (?=cannot be traced|no model)", "", str(made))
        return "no config" if said.startswith("no model") else "no", (said,)
    reasons = tuple(w for w in made.warnings if "formulas" in w and "positions of" not in w)
    if not made.graph.meta.symbolic:
        return "concrete", reasons
    return ("bounded" if reasons else "symbolic"), reasons


# --- torch's own count ----------------------------------------------------------------------------


def against_torch(
    graph: OpGraph, encoder: OpGraph | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Whether torch counts the same FLOPs when the model itself runs, and why not.

    The whole model runs where there is a trace of its encoder too, else its decoder alone.
    """
    graphs = [graph] if encoder is None else [graph, encoder]
    inputs = given(graph)
    encoded = inputs.pop("encoder_hidden_states", None)
    if encoder is not None:
        inputs.update(given(encoder))
    elif encoded is not None:
        inputs["encoder_outputs"] = Encoded(last_hidden_state=encoded)
    ours = sum(total_flops(part).products for part in graphs)
    try:
        counted = counted_by_torch(config, overrides, graph.meta.model, inputs)
    except Exception as error:  # code that looks at values, which no meta tensor has
        return "-", (f"torch cannot count: {first_line(error)}",)
    if counted == ours:
        return "equal", ()
    constants, solved, vectors = (
        sum(op.cost.flops or 0 for part in graphs for op in ops_of(part))
        for ops_of in (constant_products, solves, by_vectors)
    )
    if counted == ours + constants - solved - vectors:
        why = []
        if constants:
            why.append(f"torch counts {constants:,} FLOPs of constants, computed at load")
        if solved:
            why.append(f"torch leaves out {solved:,} FLOPs of triangular systems that are solved")
        if vectors:
            why.append(f"torch leaves out {vectors:,} FLOPs of products with a vector of weights")
        return "explained", tuple(why)
    return "differs", (f"torch counts {counted:,}, the trace {ours:,}",)


def given(graph: OpGraph) -> dict[str, Any]:
    """Inputs without data of the sizes that a graph was traced at."""
    tensors = [t for op in graph.ops if op.kind is Kind.INPUT for t in graph.outputs(op.id)]
    return {
        t.name: torch.zeros(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in tensors
    }


def tokens(seq: int = SEQ) -> dict[str, Any]:
    """What a causal LM reads in a prefill."""
    return {"input_ids": torch.zeros(BATCH, seq, dtype=torch.int64, device="meta")}


def constant_products(graph: OpGraph) -> list[Op]:
    """The matrix products that no input reaches, with what they cost where they are computed."""
    running = annotate(
        graph.with_ops(
            replace(op, kind=Kind.MATMUL)
            if op.is_constant and base_name(op.target) in MATRIX_PRODUCTS
            else op
            for op in graph.ops
        )
    )
    return [op for op in running.ops if op.is_constant and op.kind is Kind.MATMUL]


def solves(graph: OpGraph) -> list[Op]:
    """The ops that solve triangular systems, which torch's counter has no formula for."""
    name = "linalg_solve_triangular"
    return [op for op in graph.ops if base_name(op.target) == name and not op.is_constant]


def by_vectors(graph: OpGraph) -> list[Op]:
    """The linears whose weights are a vector, which torch's counter leaves out."""
    linears = [op for op in graph.ops if base_name(op.target) == "linear" and not op.is_constant]
    return [op for op in linears if len(graph.inputs(op.id)[1].shape) == 1]


def counted_by_torch(
    config: Mapping[str, Any], overrides: Mapping[str, Any], name: str, inputs: Mapping[str, Any]
) -> int:
    """FLOPs that torch counts while the model runs eagerly, on tensors without data if it can.

    ``overrides`` may say which images or sounds it reads, as those of a trace do.
    """
    fields = dict(overrides)
    images, sounds = tuple(fields.pop(IMAGES, (1,))), tuple(fields.pop(SOUNDS, (1,)))
    with quiet(), as_it_runs():
        module = build(config, fields, model=name, dtype="float32", attn="eager")
        for part in module.modules():  # some models ask their config alone
            if getattr(getattr(part, "config", None), "use_cache", None):
                part.config.use_cache = False
            # A warning alone, which looks at the tokens.
            part.warn_if_padding_and_no_attention_mask = lambda *args, **kwargs: None
        if "grouped_mm" in module.get_experts_implementation().values():
            # Needs bfloat16 where there is no data; a product a row of tokens is as many FLOPs.
            module.set_experts_implementation("batched_mm")
        accepted = inspect.signature(module.forward).parameters
        options = {"use_cache": False, "logits_to_keep": 1}
        inputs = {**inputs, **{key: value for key, value in options.items() if key in accepted}}
        run: Any = module
        told = "image_grid_thw" in inputs  # then they are as the model reads them
        if "input_ids" in inputs and not told and {*SENSED} & {*inputs}:
            seen = sees_among_tokens(module, accepted) or sees_beside_tokens(module, accepted)
            heard = () if seen or not hears_among_tokens(module, accepted) else sounds
            two = hasattr(module, "get_text_features")
            read = reading(module, name, "prefill", images if seen and not two else (), heard)
            run = partial(_seeing, read, module)
        try:
            return _counted(module, run, inputs)
        except RuntimeError:  # it looks at its position ids, unless there is a mask
            if "input_ids" in inputs:
                mask = torch.ones_like(inputs["input_ids"])
                with suppress(RuntimeError):
                    return _counted(module, run, {"attention_mask": mask, **inputs})
        # It looks at values, which no product depends on: let all be zero.
        module.to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.zero_()
        return _counted(module, run, tree_map_only(torch.Tensor, _zeros, inputs))


def _seeing(read: Reading, module: torch.nn.Module, **given: Any) -> Any:
    """A run of a model of text and images or sounds, laid out as it reads them."""
    inputs = {tensor.name: given.pop(tensor.name) for tensor in read.inputs}
    return read.run(module, inputs, **given)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _counted(module: torch.nn.Module, run: Callable[..., Any], inputs: Mapping[str, Any]) -> int:
    with (
        next(module.parameters()).device,
        # What it notes for a backward pass, which there is not one of.
        patch.object(module_tracker, "register_multi_grad_hook"),
        # Whether a mask hides anything, which its values say: no matter to a product.
        patch.object(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args: False),
        FlopCounterMode(display=False) as counter,
    ):
        run(**inputs)
    return int(counter.get_total_flops())


# --- the page -------------------------------------------------------------------------------------

COUNTS: dict[str, Callable[[Row], bool]] = {
    "model types": lambda row: True,
    "traced": lambda row: row.ops > 0,
    "- over tokens alone, without the images or sounds that it can read": lambda row: (
        row.ops > 0 and "without " in row.notes
    ),
    "- with formulas in its sizes": lambda row: row.traced[0] == "symbolic",
    "- with formulas that hold within a bound": lambda row: row.traced[0] == "bounded",
    "- at the given sizes alone": lambda row: row.traced[0] == "concrete",
    "not traced": lambda row: row.traced[0] == "no",
    "no model can be built from the default config": lambda row: row.traced[0] == "no config",
    "every op that works has known FLOPs": lambda row: row.ops > 0 and LACKING not in row.notes,
    "FLOPs of matrix products equal torch's FlopCounterMode": lambda row: row.torch == "equal",
    "they differ by constants, or by what torch does not count (as the row says)": lambda row: (
        row.torch == "explained"
    ),
    "they differ otherwise": lambda row: row.torch == "differs",
    "torch's counter cannot run the model without data": lambda row: row.torch == "-",
}


def _missing(head: str, rows: int) -> str:
    """What is said of a head that was swept in part; a heading of its own keeps a table whole."""
    types = len(model_types(head))
    return (
        f"\n{rows} of {types} model types were swept; the others are open.\n"
        if rows < types
        else ""
    )


def page(swept: Mapping[str, Sequence[Row]]) -> str:
    """docs/coverage.md, from the rows of each head."""
    counts = "".join(
        f"| {what} | {' | '.join(str(sum(map(counted, rows))) for rows in swept.values())} |\n"
        for what, counted in COUNTS.items()
    )
    tables = "".join(
        f"""
## {HEADS[head].title}
{_missing(head, len(rows))}
| model type | {" | ".join(HEADS[head].phases)} | ops | exact | torch | seconds | notes |
|---|{"---|" * len(HEADS[head].phases)}--:|--:|---|--:|---|
"""
        + "".join(f"{row}\n" for row in rows)
        for head, rows in swept.items()
    )
    return f"""\
# Coverage

Every model type of transformers {version("transformers")} with these heads, its default config cut
to {LAYERS} layers where it has a number of them: a prefill of {BATCH} x {SEQ} tokens, or {BATCH}
images or sounds. `make coverage` writes this page.

| | {" | ".join(HEADS[head].title for head in swept)} |
|---|{"--:|" * len(swept)}
{counts}
The prefill of a model with an encoder apart is its decoder's, over {SOURCE} encoded tokens; the
encoder reads {SOURCE} tokens, a decode one token over {SEQ} cached ones. `exact` is the share of
the ops in the prefill that compute or move data whose FLOPs are exact (the others are estimates: a
softmax, a sine). `torch` compares the FLOPs of linears and other matrix products with torch's
counter on the model itself, run eagerly: the whole of it where its encoder is traced too, else the
decoder alone. A model of images (or sounds) and text reads one in each of {SHOWN} texts, and 1024 tokens
beside its; its encoder is all that makes tokens of it. `without` names what a model can read beside
tokens and is not given. `seconds` are those of a row's captures, all its phases together, by the
clock of a machine of 2 cores beside other work: a row by itself takes less.
{tables}"""


def rows_of(text: str) -> dict[str, list[Row]]:
    """The rows of each head that a page shows."""
    swept = {}
    for head, about in HEADS.items():
        table = text.partition(f"\n## {about.title}\n")[2].partition("\n## ")[0]
        lines = [line for line in table.splitlines() if line.startswith("|")]
        if lines:
            swept[head] = [Row.of(line) for line in lines[2:]]
    return swept


def put(row: Row, head: str, file: Path) -> None:
    """Write a row into its place on a page, which is made where there is none."""
    swept = rows_of(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = {old.model_type: old for old in swept.get(head, ())} | {row.model_type: row}
    swept[head] = [rows[name] for name in model_types(head) if name in rows]
    file.write_text(page({h: swept[h] for h in HEADS if h in swept}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", action="append", choices=HEADS, help="again for another")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the rows are written")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("model_types", nargs="*")
    asked = parser.parse_args()
    if asked.model_types and len(asked.head or ()) != 1:
        parser.error("name one --head for these model types")
    with get_context("spawn").Pool(asked.processes, maxtasksperchild=16) as pool:
        for head in asked.head or HEADS:
            types = asked.model_types or model_types(head)
            for row in pool.imap(partial(sweep, head), types):
                sys.stderr.write(f"{row}\n")
                put(row, head, asked.page)


if __name__ == "__main__":
    main()
