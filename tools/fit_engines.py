"""Engine files from published measurements: ``python -m tools.fit_engines`` writes them.

Each figure is fitted by least squares of the relative errors on rows of
``tests/reference/measured.csv``, which its ``source`` names with how far off they are; no figure is
by hand. What kernels reach is fitted on single ops first, each card's shares of its peaks and what a
kernel and an attention take beside; then what an engine adds, on whole steps of decode.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from costmodels import Execution
from costmodels.engines import ANY, Engine
from costmodels.fit_engine import Values, engine_of, engine_toml, fit
from tools.measured import residuals, rows

FOLDER = Path(__file__).parents[1] / "costmodels" / "data" / "engines"

OPS = [
    "P01",
    "P02",
    "P04",
    "P05",
    "P07",
    "P08",
    "P10",
    "P11",
    "P13",
    "P14",
    "P16",
    "P17",
    "P19",
    "P20",
]
"""Single products and attentions."""

COMPUTES = {"a100-80g": ["P04"], "h100-sxm": ["P07", "P08"], "l40s": ["P11"]}
MOVES = {"a100-80g": ["P01", "P02"], "h100-sxm": ["P05"], "l40s": ["P10"], "h200": ["P13", "P14"]}
"""By device: the rows that its share of the peak and of the bandwidth rest on most."""


@dataclass(frozen=True, slots=True)
class Steps:
    """An engine that is fitted on steps of decode."""

    name: str
    description: str
    execution: Execution
    rows: Sequence[str]
    """What it is fitted on."""
    figures: Sequence[str]
    """The keys of what is fitted."""
    kernels: bool = True
    """Whether its kernels are those of the single ops; else its figures have all there is."""
    starts: Values = field(default_factory=dict)
    """Where a search begins, where not at a microsecond."""
    given: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Key -> (value, source) of what is published as it is."""


ENGINES = (
    Steps(
        "hf-eager",
        "Hugging Face transformers, eager PyTorch: a launch for each op, from Python",
        "eager",
        ["C10", "C11", "C12", "C15", "C16", "C19"],
        ["launch_seconds.eager"],
        starts={"launch_seconds.eager": 1e-4},
        given={
            "copy_ratio.any": (
                0.2961,
                "pytorch/pytorch#120678: copies of bfloat16 into slices, one by one, on an H100: 248e9 "
                "values a second, each read and written, of 3,350 GB/s; #150233 has 945 to 966 GB/s "
                "for torch.cat of bfloat16 before PyTorch 2.8, on a card that it does not name",
            )
        },
    ),
    Steps(
        "vllm",
        "vLLM: fused kernels in captured CUDA graphs",
        "fused",
        ["C13", "C14", "C17", "C18", "C20"],
        ["launch_seconds.fused", "step_seconds"],
    ),
    Steps(
        "gpt-fast",
        "gpt-fast: PyTorch compiled to fused kernels, replayed as one CUDA graph",
        "fused",
        ["C01"],
        ["launch_seconds.fused"],
        kernels=False,
        given={
            "bandwidth_ratio.a100-80g": (
                0.8337,
                "README of pytorch-labs/gpt-fast: peak bandwidth of an A100-80GB empirically about "
                "1700 GB/s, of 2,039 by its datasheet",
            )
        },
    ),
    Steps(
        "llama.cpp-2024",
        "llama.cpp with CUDA, before it captured graphs: early 2024",
        "fused",
        ["A01", "A03"],
        ["launch_seconds.fused", "bandwidth_ratio.rtx-4090"],
        kernels=False,
        starts={"bandwidth_ratio.rtx-4090": 0.9, "launch_seconds.fused": 5e-6},
    ),
    Steps(
        "llama.cpp-2025",
        "llama.cpp with CUDA graphs and flash attention, as of August 2025",
        "fused",
        ["A28", "A29", "A30"],
        ["launch_seconds.fused", "bandwidth_ratio.rtx-4090"],
        kernels=False,
        starts={"bandwidth_ratio.rtx-4090": 0.9},
    ),
)


def fit_four(
    keys: Sequence[str], starts: Values, off: Callable[[Values], Mapping[str, float]]
) -> dict[str, float]:
    """``costmodels.fit_engine.fit`` in four digits: published figures have no more."""
    found = fit(keys, starts, lambda values: list(off(values).values()))
    return {key: _four(value) for key, value in found.items()}


def _four(value: float) -> float:
    return 0.0 if value < 1e-12 else float(f"{value:.4g}")


def of_ops() -> dict[str, float]:
    """What kernels reach on each card, and take beside their work."""
    computing = [f"compute_ratio.{device}" for device in COMPUTES]
    moving = [f"bandwidth_ratio.{device}" for device in MOVES]
    keys = [*computing, *moving, "kernel_seconds", "attention_seconds"]
    starts = dict.fromkeys((*computing, *moving), 0.8) | {"attention_seconds": 1e-5}
    found = fit_four(keys, starts, lambda v: residuals(OPS, engine_of("", "", "fused", v)))
    for figure, by in (("compute_ratio", computing), ("bandwidth_ratio", moving)):
        found[f"{figure}.{ANY}"] = _four(median(found[key] for key in by))
    return found


def fitted(steps: Steps, ops: Values) -> dict[str, float]:
    """All figures of an engine."""
    known = dict(ops) if steps.kernels else {}
    known |= {key: value for key, (value, _) in steps.given.items()}

    def off(values: Values) -> Mapping[str, float]:
        return residuals(list(steps.rows), _engine(steps, {**known, **values}))

    found = {**known, **fit_four(steps.figures, steps.starts, off)}
    for figure in ("compute_ratio", "bandwidth_ratio"):
        own = [value for key, value in found.items() if key.startswith(figure)]
        if own and not steps.kernels:
            found[f"{figure}.{ANY}"] = own[0]
    return found


def _engine(steps: Steps, values: Values) -> Engine:
    return engine_of(steps.name, steps.description, steps.execution, values)


def toml(steps: Steps, values: Values) -> str:
    """The file of an engine, with how far each figure is off the rows that it was fitted on."""
    engine = _engine(steps, values)
    figures = {key: (value, _source(steps, key, engine)) for key, value in values.items()}
    return engine_toml(steps.description, steps.execution, figures)


def _source(steps: Steps, key: str, engine: Engine) -> str:
    figure, _, entry = key.partition(".")
    if key in steps.given:
        return steps.given[key][1]
    if key in steps.figures:
        return _fitted_on(steps.rows, engine)
    if entry == ANY:
        return "the median of the devices beside it"
    by = {"compute_ratio": COMPUTES, "bandwidth_ratio": MOVES}.get(figure)
    on = OPS if by is None else by[entry]
    return _fitted_on(on, engine)


def _fitted_on(ids: Sequence[str], engine: Engine) -> str:
    off = residuals(list(ids), engine)
    each = ", ".join(f"{number} {error:+.1%}" for number, error in off.items())
    kinds = dict.fromkeys(rows()[number].source for number in ids)
    return (
        f"fitted by tools/fit_engines.py on rows of tests/reference/measured.csv ({each}), which "
        f"are of {' and '.join(kinds)}"
    )


def main() -> None:
    """Write the files, and say what was fitted."""
    FOLDER.mkdir(exist_ok=True)
    ops = of_ops()
    for steps in ENGINES:
        values = fitted(steps, ops)
        (FOLDER / f"{steps.name}.toml").write_text(toml(steps, values), encoding="utf-8")
        off = residuals(list(steps.rows), _engine(steps, values))
        rms = math.sqrt(sum(error**2 for error in off.values()) / len(off))
        figures = ", ".join(f"{key} {values[key]:.4g}" for key in steps.figures)
        sys.stdout.write(f"{steps.name}: {figures}; {rms:.1%} off (root mean square)\n")


if __name__ == "__main__":
    main()
