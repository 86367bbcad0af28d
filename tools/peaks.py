"""Peaks of memory as torch measures them on a CPU beside those that ``cost`` prints.

``python -m tools.peaks`` writes docs/memory.md. What is measured is the model's own code, with real
numbers, by torch's profiler: it sees each allocation of torch's CPU allocator, also those inside an
op (a softmax that computes in a wider dtype, a copy before a product), which a dispatch mode does
not. What the allocator holds at most while the model runs is set beside resident and peak.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function

from costmodels.flops import annotate
from costmodels.memory import MemoryNeed, memory_need
from tracer.capture import capture
from tracer.graph import OpGraph, Role

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}

MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"model_type": "llama", **TEXT}),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "model_type": "gpt2",
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": 200,
            "n_positions": 512,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "model_type": "gemma3_text",
            "head_dim": 16,
            "sliding_window": 32,
            "sliding_window_pattern": 3,
            **TEXT,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **TEXT},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "model_type": "t5",
            "d_model": 64,
            "d_ff": 128,
            "d_kv": 16,
            "num_layers": 3,
            "num_heads": 4,
            "vocab_size": 200,
        },
    ),
    "bert": (
        "BertForMaskedLM",
        {
            "model_type": "bert",
            "max_position_embeddings": 512,
            **{key: value for key, value in TEXT.items() if key != "num_key_value_heads"},
        },
    ),
    "resnet": (
        "ResNetForImageClassification",
        {
            "model_type": "resnet",
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [2, 2],
            "layer_type": "basic",
        },
    ),
}
"""Name -> (class, config)."""

SEQ, PAST, SOURCE, PIXELS = 128, 200, 64, 224


@dataclass(frozen=True)
class Compared:
    """One phase of a model."""

    measured_bytes: int
    """At most at a time: the parameters that the phase reads, and all that torch allocated."""
    need: MemoryNeed


def phases(name: str) -> tuple[str, ...]:
    return ("prefill",) if name in ("bert", "resnet") else ("prefill", "decode")


@cache
def compared(name: str, phase: str, dtype: str = "float32", attn: str = "eager") -> Compared:
    kind, config = MODELS[name]
    sizes: dict[str, Any] = {"past": PAST} if phase == "decode" else {"seq": SEQ}
    sizes |= {"source": SOURCE} if name == "t5" else {}
    sizes = {} if name == "resnet" else {**sizes, "phase": phase}
    graph = annotate(capture(config, model=name, dtype=dtype, attn=attn, **sizes).graph)
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings = transformers.AutoConfig.for_model(config["model_type"], **plain)
    model = getattr(transformers, kind)._from_config(
        settings, attn_implementation=attn, dtype=getattr(torch, dtype)
    )
    return Compared(read_bytes(graph) + allocated(model.eval(), name, phase), memory_need(graph))


def read_bytes(graph: OpGraph) -> int:
    """Of the parameters and buffers that a graph reads."""
    owners = {graph.storage(t) for op in graph.ops for t in graph.inputs(op.id)}
    return sum(t.bytes for t in owners if t.role in (Role.PARAMETER, Role.BUFFER))


def allocated(model: Any, name: str, phase: str) -> int:
    """What torch's allocator holds at most while a phase runs, beside the parameters."""
    gc.collect()
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with torch.inference_mode(), recorded:
        aside = _run(model, name, phase, lambda: record_function("begin").__enter__())
    now = most = 0
    begun = False
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "begin":
            begun, most = True, now
        elif event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now) if begun else most
    return most - aside


def _run(model: Any, name: str, phase: str, begin: Callable[[], object]) -> int:
    """Run a phase, ``begin`` said at its start; bytes that are there but not read in it."""
    if name == "resnet":
        pixels = torch.randn(1, 3, PIXELS, PIXELS, dtype=model.dtype)
        begin()
        model(pixels)
        return 0
    tokens = torch.zeros(1, SEQ, dtype=torch.int64)
    keep = {} if name in ("bert", "t5") else {"logits_to_keep": 1}
    key = "decoder_input_ids" if name == "t5" else "input_ids"
    if name == "t5":
        encoded = model.encoder(torch.zeros(1, SOURCE, dtype=torch.int64))
        keep["encoder_outputs"] = encoded
    if phase == "prefill":
        if name != "bert":
            keep["use_cache"] = False
        begin()
        model(**{key: tokens}, **keep)
        return 0
    # The last cached token is a step of its own: a window is cut from what a prefill has made, and
    # keeps all of that until then.
    del tokens
    state = model(
        **{key: torch.zeros(1, PAST - 1, dtype=torch.int64)}, use_cache=True, **keep
    ).past_key_values
    token = torch.zeros(1, 1, dtype=torch.int64)
    state = model(**{key: token}, past_key_values=state, use_cache=True, **keep).past_key_values
    gc.collect()
    begin()
    model(**{key: token}, past_key_values=state, use_cache=True, **keep)
    # Decode reads what the encoder has made from the cache alone.
    return keep["encoder_outputs"][0].nbytes if name == "t5" else 0


def page() -> Iterator[str]:
    yield "# Memory, measured\n"
    yield (
        "What `cutedge cost` prints beside what torch allocates on a CPU when it runs the model's "
        "own code: small models of seven architectures, "
        f"{SEQ} tokens of prefill, one token over {PAST} cached ones, {PIXELS} x {PIXELS} pixels. "
        "KiB, all with the parameters that the phase reads.\n"
    )
    yield (
        "*Live* frees each tensor as soon as its last reader has run: the least that ops need that "
        "run one after another. *Peak* is an upper bound for PyTorch, which frees a tensor when "
        "the last Python name of it goes: at the latest when the block that made it returns, and "
        "every module that it was handed to. Workspace inside an op is in the peak, not in live. "
        "Measured lies between the two but where an op works in place.\n"
    )
    yield "| model | phase | dtype | attention | live | measured | peak |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
    for name in MODELS:
        for phase in phases(name):
            for dtype, attn in (("float32", "eager"), ("bfloat16", "eager")):
                found = compared(name, phase, dtype, attn)
                sizes = (found.need.live_bytes, found.measured_bytes, found.need.peak_bytes)
                shown = " | ".join(f"{size / 1024:,.1f}" for size in sizes)
                yield f"| {name} | {phase} | {dtype} | {attn} | {shown} |"
    yield "\nMade by `python -m tools.peaks`."


def main() -> None:
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
