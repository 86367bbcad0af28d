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
class Fit:
    """Figures that are fitted together."""

    figures: Sequence[str]
    """Their keys."""
    rows: Sequence[str]
    """On what."""
    starts: Values = field(default_factory=dict)
    """Where a search begins, where not at a microsecond."""


@dataclass(frozen=True, slots=True)
class Steps:
    """An engine that is fitted on steps of decode."""

    name: str
    description: str
    execution: Execution
    fits: Sequence[Fit]
    """What is fitted, one after another: each with what is known then."""
    kernels: bool = True
    """Whether its kernels are those of the single ops; else its figures have all there is."""
    given: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Key -> (value, source) of what is published as it is."""
    like: Mapping[str, str] = field(default_factory=dict)
    """Figure -> the one that stands in for it: its own, or ``ENGINE:key`` of an engine before."""

    @property
    def rows(self) -> list[str]:
        """What it is fitted on."""
        return [row for one in self.fits for row in one.rows]


def _share(device: str, *rows: str) -> Fit:
    """The share of a card's bandwidth, on its row of weights in 16 bits where there is one."""
    return Fit([f"bandwidth_ratio.{device}"], rows, {f"bandwidth_ratio.{device}": 0.8})


SHARES = {
    "rtx-4090": "bandwidth_ratio.rtx-4090",
    "rtx-3090": "bandwidth_ratio.rtx-3090",
    "rtx-3090-ti": "bandwidth_ratio.rtx-3090",
    "l40s": "bandwidth_ratio.l40s",
    "a100-80g": "bandwidth_ratio.a100-pcie-80g",
    "a100-pcie-80g": "bandwidth_ratio.a100-pcie-80g",
    "h100-pcie": "bandwidth_ratio.h100-pcie",
}
"""Card -> the figure of llama.cpp-2024 that says what its kernels reach there, or on a card of the
same chip."""

ENGINES = (
    Steps(
        "hf-eager",
        "Hugging Face transformers, eager PyTorch: a launch for each op, from Python",
        "eager",
        [
            Fit(
                ["launch_seconds.eager"],
                ["C10", "C11", "C12", "C15", "C16", "C19"],
                {"launch_seconds.eager": 1e-4},
            )
        ],
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
        [Fit(["launch_seconds.fused", "step_seconds"], ["C13", "C14", "C17", "C18", "C20"])],
    ),
    Steps(
        "gpt-fast",
        "gpt-fast: PyTorch compiled to fused kernels, replayed as one CUDA graph",
        "fused",
        [Fit(["launch_seconds.fused"], ["C01"])],
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
        [
            Fit(
                ["launch_seconds.fused", "bandwidth_ratio.rtx-4090"],
                ["A01", "A03"],
                {"bandwidth_ratio.rtx-4090": 0.9, "launch_seconds.fused": 5e-6},
            ),
            _share("rtx-3090", "A18"),
            _share("l40s", "A20"),
            _share("a100-pcie-80g", "A22"),
            _share("h100-pcie", "A12"),
        ],
        kernels=False,
        like={
            "bandwidth_ratio.rtx-3090-ti": "bandwidth_ratio.rtx-3090",
            "bandwidth_ratio.a100-80g": "bandwidth_ratio.a100-pcie-80g",
        },
    ),
    Steps(
        "llama.cpp-2024-graphs",
        "llama.cpp with CUDA graphs, without flash attention: April to July 2024",
        "fused",
        [Fit(["launch_seconds.fused"], ["D33"])],
        kernels=False,
        like={f"bandwidth_ratio.{card}": f"llama.cpp-2024:{key}" for card, key in SHARES.items()},
    ),
    Steps(
        "llama.cpp-2025",
        "llama.cpp with CUDA graphs and flash attention, as of August 2025",
        "fused",
        [Fit(["launch_seconds.fused"], ["A28", "A29", "A30"]), _share("rtx-2080", "B09")],
        kernels=False,
        like={f"bandwidth_ratio.{card}": f"llama.cpp-2024:{key}" for card, key in SHARES.items()},
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


def fitted(steps: Steps, ops: Values, before: Mapping[str, Values]) -> dict[str, float]:
    """All figures of an engine; ``before`` are those of the engines that stand before it."""
    found = dict(ops) if steps.kernels else {}
    found |= {key: value for key, (value, _) in steps.given.items()}
    own = {key: other.split(":") for key, other in steps.like.items()}
    found |= {key: before[at[0]][at[1]] for key, at in own.items() if len(at) == 2}
    for one in steps.fits:
        found |= _fitted(steps, one, found)
    found |= {key: found[at[0]] for key, at in own.items() if len(at) == 1}
    for figure in ("compute_ratio", "bandwidth_ratio"):
        shares = [value for key, value in found.items() if key.startswith(figure)]
        if shares and not steps.kernels:
            found[f"{figure}.{ANY}"] = _four(median(shares))
    return found


def _fitted(steps: Steps, one: Fit, known: Values) -> dict[str, float]:
    def off(values: Values) -> Mapping[str, float]:
        return residuals(list(one.rows), _engine(steps, {**known, **values}))

    return fit_four(one.figures, one.starts, off)


def all_fitted() -> dict[str, dict[str, float]]:
    """The figures of every engine."""
    ops, found = of_ops(), {}
    for steps in ENGINES:
        found[steps.name] = fitted(steps, ops, found)
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
    if key in steps.like:
        where = steps.like[key].replace(":", ", ")
        return f"as {where}: kernels of the same program on the same chip, or one of its family"
    for one in steps.fits:
        if key in one.figures:
            return _fitted_on(one.rows, engine)
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
    found = all_fitted()
    for steps in ENGINES:
        values = found[steps.name]
        (FOLDER / f"{steps.name}.toml").write_text(toml(steps, values), encoding="utf-8")
        off = residuals(steps.rows, _engine(steps, values))
        rms = math.sqrt(sum(error**2 for error in off.values()) / len(off))
        keys = [key for one in steps.fits for key in one.figures]
        figures = ", ".join(f"{key} {values[key]:.4g}" for key in keys)
        sys.stdout.write(f"{steps.name}: {figures}; {rms:.1%} off (root mean square)\n")


if __name__ == "__main__":
    main()
