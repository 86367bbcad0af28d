"""Splits by what fits beside the fastest ones: accelerate's, llama.cpp's own way, and ours.

``python -m tools.beside_executors`` writes docs/beside-executors.md. Models are on ``meta``: they
have shapes alone. ``accelerate.infer_auto_device_map`` fills the accelerator from the first module
on; llama.cpp is told as many layers as fit (``-ngl``), which it takes from the last on. Ours is the
best split in seconds with as much memory, of the same units: blocks for accelerate, weights for
llama.cpp.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cutedge
from partition.problem import memory_of
from tracer.presets import find_config
from tracer.words import duration, human

PAGE = Path(__file__).parent.parent / "docs" / "beside-executors.md"

MODELS = ("llama-3.2-3b", "mistral-7b", "llama-3.1-8b", "qwen3-8b", "qwen2.5-14b", "qwen3-30b-a3b")
SIZES = (2 * 2**30, 6 * 2**30, 12 * 2**30)
PAST = 1024
EXPERTS = "qwen3-30b-a3b"
"""A mixture of experts, whose search takes longer."""
MACHINE = "tee-tdx+rtx-4090@pcie4-x16"
HOME, GPU = "tee-tdx", "rtx-4090"


@dataclass(frozen=True)
class Side:
    """A split and what it takes."""

    words: str
    """What the executor is told; of ours by what units it is placed."""
    total_payload_bytes: int
    calls: int
    run_seconds: float
    memory_bytes: int
    """The most on the accelerator at a time."""
    proven: bool = True


@dataclass(frozen=True)
class Beside:
    """An executor's own way beside ours, under the same rules."""

    model: str
    executor: str
    limit: int
    """What both may have: the size, or what the executor takes where that is more."""
    theirs: Side
    ours: Side
    sent_seconds: float | None = None
    """What accelerate's map takes where weights at home are sent in each run."""


def traced(name: str, past: int = PAST, **overrides: Any) -> cutedge.Trace:
    """A step of decode in bfloat16."""
    return cutedge.trace(name, phase="decode", past=past, dtype="bfloat16", overrides=overrides)


def device_map(name: str, size: int, **overrides: Any) -> dict[str, int | str]:
    """What ``infer_auto_device_map`` makes of a model on ``meta``, with so much memory."""
    import torch
    import transformers
    from accelerate import infer_auto_device_map

    config = {**find_config(name)[1], **overrides}
    kind = config.pop("model_type")
    settings = transformers.AutoConfig.for_model(kind, **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model.tie_weights()
    whole = model._no_split_modules
    found = infer_auto_device_map(
        model, max_memory={0: size, "cpu": 2**50}, no_split_module_classes=[*whole]
    )
    return {path: 0 if device == 0 else "cpu" for path, device in found.items()}


def side(made: cutedge.Partition, words: str) -> Side:
    """A partition's figures."""
    split = made.bare
    taken = memory_of(split.graph, split.placement, split.traffic.transfers)
    return Side(
        words,
        split.traffic.totals.payload_bytes,
        len(split.traffic.calls),
        split.run_seconds or 0.0,
        taken.get(GPU, 0),
        split.solution is None or split.solution.proven,
    )


def best(trace: cutedge.Trace, limit: int, granularity: Any, time_limit: float = 30.0) -> Side:
    """Ours: the least seconds with so much memory."""
    plan = trace.plan(
        "fastest",
        machine=MACHINE,
        memory=[f"gpu={limit}"],
        granularity=granularity,
        time_limit=time_limit,
    )
    return side(plan.phases[0].partition, f"by {granularity}")


def beside_accelerate(name: str, trace: cutedge.Trace, size: int, **overrides: Any) -> Beside:
    """``infer_auto_device_map`` and ours by layer."""
    told = json.dumps(device_map(name, size, **overrides))
    theirs = side(trace.partition(cutedge.placement(told), machine=MACHINE), "device_map")
    sends = json.dumps({"device_map": json.loads(told), "main_device": 0})
    sent = trace.partition(cutedge.placement(sends), machine=MACHINE).bare.run_seconds
    limit = max(size, theirs.memory_bytes)
    return Beside(name, "accelerate", limit, theirs, best(trace, limit, "layer"), sent)


def as_many_as_fit(trace: cutedge.Trace, size: int) -> Side:
    """llama.cpp's own way: the highest ``-ngl``."""
    layers = 1 + max(op.layer for op in trace.graph.ops if op.layer is not None)
    low, high = 0, layers + 1
    while low < high:
        middle = (low + high + 1) // 2
        taken = _layers(trace, middle).memory_bytes
        low, high = (middle, high) if taken <= size else (low, middle - 1)
    return _layers(trace, low)


def beside_llama_cpp(
    name: str,
    trace: cutedge.Trace,
    size: int,
    time_limit: float = 30.0,
    known: Beside | None = None,
) -> Beside:
    """As many layers as fit, and ours by tensor; or what is ``known`` with less memory, where a
    search that was cut short found nothing better."""
    ours = best(trace, size, "tensor", time_limit)
    if known is not None and known.ours.run_seconds < ours.run_seconds:
        ours = replace(known.ours, proven=False)
    return Beside(name, "llama.cpp", size, as_many_as_fit(trace, size), ours)


def _layers(trace: cutedge.Trace, count: int) -> Side:
    words = f"-ngl {count}"
    return side(trace.partition(cutedge.placement(words), machine=MACHINE), words)


def rows() -> Iterator[Beside]:
    """All of the table."""
    for name in MODELS:
        trace, known = traced(name), None
        for size in SIZES:
            yield beside_accelerate(name, trace, size)
            limit = 90.0 if name == EXPERTS else 30.0
            known = beside_llama_cpp(name, trace, size, limit, known)
            yield known


def page() -> Iterator[str]:
    yield "# Beside what fits\n"
    yield (
        "Splits that executors make by memory alone, beside the fastest ones with as much of it: one "
        f"token over {PAST:,} cached ones in bfloat16, {HOME} as home, {GPU} called over PCIe 4.0 "
        "x16.\n"
    )
    yield (
        "*accelerate* is `infer_auto_device_map` with that `max_memory`, on a model on `meta`: it "
        "fills the accelerator from the first module on, and counts weights alone. Each module runs "
        'where its weights are (`dispatch_model` with `main_device="cpu"`); *weights sent* is the '
        "same map as `from_pretrained` has it, where the others' weights cross in each run. "
        "*llama.cpp* is the highest `-ngl` whose weights, cache and peak fit. *Ours* is "
        "`partition --policy fastest --memory gpu=...` by the units that the executor has, `layer` "
        "and `tensor`, with the same memory; where accelerate takes more than it was given, ours may "
        "take as much. Seconds leave out what it takes to start an op, of all alike.\n"
    )
    split = ("takes", "calls", "bytes", "a token")
    heads = ("model", "memory", "way", "told", *split, *(f"ours: {one}" for one in split), "less")
    heads = (*heads, "weights sent")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join(' --- ' if n in (0, 2, 3) else ' ---: ' for n in range(len(heads)))}|"
    unproven = False
    for one in rows():
        theirs, ours = one.theirs, one.ours
        less = 1 - ours.run_seconds / theirs.run_seconds
        unproven = unproven or not ours.proven
        cells = [
            one.model,
            human(one.limit),
            one.executor,
            f"`{theirs.words}`",
            *_figures(theirs),
            *_figures(ours),
            f"{less:.1%}",
            "" if one.sent_seconds is None else duration(one.sent_seconds),
        ]
        yield f"| {' | '.join(cells)} |"
    if unproven:
        yield (
            f"\n`*` is the best that was found in 30 s (90 s for {EXPERTS}); all others of ours are "
            "proven."
        )
    yield "\nMade by `python -m tools.beside_executors`."


def _figures(one: Side) -> list[str]:
    return [
        human(one.memory_bytes),
        str(one.calls),
        human(one.total_payload_bytes),
        f"{duration(one.run_seconds)}{'' if one.proven else '*'}",
    ]


def main() -> None:
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
