"""What the audit goes through: models, phases, policies, links; and one case of them all."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.audit import driving
from tests.audit.accounting import Trace, read_link, read_trace
from tests.audit.comparing import (
    Asked,
    Comparison,
    compare_formulas,
    compare_optimum,
    compare_split,
    compare_trace,
)
from tests.audit.models import CONFIGS, write_config
from tests.audit.policies import as_toml, at_home, places_of, random_policy, random_weights

OWN = Path(__file__).parent / "own.py"


@dataclass(frozen=True)
class Case:
    """A trace to split in many ways."""

    model: str
    """A name of ``CONFIGS``, or of a function in ``own.py``."""
    options: str
    """Of ``trace``."""
    again: str = ""
    """Options at other sizes, at which the formulas are held against numbers."""

    def __str__(self) -> str:
        return f"{self.model} {self.options}".replace("--", "").strip().replace(" ", "-")

    def trace(self, folder: Path, options: str) -> Trace:
        """The case's model, traced with options."""
        own = self.model not in CONFIGS
        model = f"{OWN}:{self.model}" if own else write_config(self.model, folder)
        out = folder / ("trace" if options == self.options else "again")
        return read_trace(driving.trace(model, out, *options.split()))


CASES = [
    Case("llama", "--seq 8 --batch 2", "--seq 12 --batch 3"),
    Case("llama", "--seq 4 --past 8 --batch 2 --logits all"),
    Case("llama", "--phase decode --past 8 --batch 2", "--phase decode --past 20 --batch 3"),
    Case("gpt2", "--seq 8 --cache --attn sdpa"),
    Case("gpt2", "--phase decode --past 8 --batch 2", "--phase decode --past 30 --batch 2"),
    Case("gpt2", "--phase decode --past 8 --dtype bfloat16 --attn sdpa"),
    Case("gemma3", "--seq 10 --cache --batch 2", "--seq 16 --cache --batch 2"),
    Case("gemma3", "--phase decode --past 12 --batch 2", "--phase decode --past 30 --batch 2"),
    Case("mistral", "--phase decode --past 12"),
    Case("deepseek_v3", "--seq 8 --cache"),
    Case("deepseek_v3", "--phase decode --past 8 --batch 2"),
    Case("mixtral", "--phase decode --past 8 --batch 2"),
    Case("qwen3_moe", "--seq 8", "--seq 20"),
    Case("llama4", "--seq 4 --past 8 --batch 2"),
    Case("llama4", "--phase decode --past 8"),
    Case(
        "t5", "--seq 6 --source 8 --cache --logits all", "--seq 9 --source 5 --cache --logits all"
    ),
    Case("t5", "--phase decode --past 8 --source 6 --batch 2"),
    Case("t5", "--phase encoder --seq 8"),
    Case("whisper", "--seq 6 --batch 2"),
    Case("whisper", "--phase decode --past 8 --batch 2"),
    Case("bart", "--phase decode --past 8 --source 6", "--phase decode --past 12 --source 9"),
    Case("bert", "--seq 8 --batch 2", "--seq 12 --batch 5"),
    Case("vit", "--batch 2"),
    Case("resnet", "--batch 2", "--batch 3"),
    Case("convnext", ""),
    Case("mamba", "--seq 4 --cache --batch 2"),
    Case("mamba", "--phase decode --past 8 --batch 2"),
    Case("autoencoder", "--batch 2"),
    Case("branches", "--batch 2 --seq 6"),
    Case("skips", "--batch 2"),
    Case("recurrent", ""),
    Case("rotated", "--batch 2 --seq 4"),
    Case("drawn", "--batch 2"),
]
"""Prefill with and without a cache, a chunk of one, decode, encoders; sixteen kinds of model."""

FIXED = ["all-home", "offload-linear", "fuse-attention", "flash-attention", "host-chip"]
BEST = ["min-cut", "min-cut-norm-home", "min-cut-nonlinear-home", "min-cut-softmax-free", "layers"]

PLAIN = {
    "sent_message_framing_bytes": 31,
    "sent_tensor_framing_bytes": 7,
    "received_message_framing_bytes": 19,
    "received_tensor_framing_bytes": 5,
}
"""Framing in which each term shows, whatever it is added to."""

LINKS = {
    "plain": PLAIN,
    "chunks": {**PLAIN, "chunk_bytes": 256},
    "shared": {**PLAIN, "shared_memory_threshold_bytes": 300, "shared_memory_handle_bytes": 3},
    "both": {
        **PLAIN,
        "shared_memory_threshold_bytes": 100,
        "shared_memory_handle_bytes": 40,
        "chunk_bytes": 70,
    },
}


def write_link(name: str, folder: Path) -> Path:
    """A link's description as the file that ``--link`` is given."""
    path = folder / f"{name}.toml"
    path.write_text(
        f'description = "{name}, for the audit"\n'
        + "".join(
            f'\n[{key}]\nvalue = {value}\nsource = "chosen"\n' for key, value in LINKS[name].items()
        )
    )
    return path


@dataclass(frozen=True)
class Way:
    """One way to split a trace."""

    policy: str | int
    """A shipped policy's name, or the seed of a random one."""
    residency: str = "run"
    accelerators: tuple[str, ...] = ("gpu",)
    wire: str | None = None
    link: str = "plain"
    objective: bool = False
    """Whether what a random policy's rules leave is free, where fewest bytes cross."""
    weights_at: str = "device"
    """Where parameters lie; ``rules``: as each rule of a random policy says."""


def ways(seeds: range) -> Iterator[Way]:
    """Every shipped policy in both residencies, and random ones with one accelerator and two; over
    wire dtypes and links in turn."""
    wires = [None, "bfloat16", "float16"]
    links = list(LINKS)
    for i, policy in enumerate([*FIXED, *BEST]):
        yield Way(policy, "run", wire=wires[i % 3], link=links[i % 4])
        yield Way(policy, "call", wire=wires[(i + 1) % 3], link=links[(i + 1) % 4])
    for seed in seeds:
        two = ("gpu", "npu")[: 1 + seed % 2]
        yield Way(seed, "run", two, wires[seed % 3], links[seed % 4])
        yield Way(seed, "call", two, wires[(seed + 1) % 3], links[(seed + 1) % 4])
        if seed % 3 == 0:
            yield Way(seed, ("run", "call")[seed % 2], objective=True)


def weight_ways(seeds: range) -> Iterator[Way]:
    """Ways in which parameters lie at home: all of them, and those of some rules."""
    wires = [None, "bfloat16", "float16"]
    links = list(LINKS)
    for i, policy in enumerate(["offload-linear", "fuse-attention", "min-cut", "layers"]):
        for residency in ("run", "call"):
            if policy != "layers" or residency == "run":
                yield Way(
                    policy, residency, wire=wires[i % 3], link=links[i % 4], weights_at="home"
                )
    for seed in seeds:
        two = ("gpu", "npu")[: 1 + seed % 2]
        for residency, at in (("run", "rules"), ("call", "rules"), ("run", "home")):
            yield Way(seed, residency, two, wires[seed % 3], links[seed % 4], weights_at=at)
        if seed % 3 == 0:
            yield Way(seed, ("run", "call")[seed % 2], objective=True, weights_at="rules")


def split(trace: Trace, folder: Path, way: Way) -> Comparison:
    """Split a trace in one way and compare all of it."""
    places, streams = None, None
    if isinstance(way.policy, int):
        default, rules = random_policy(trace, way.policy, len(way.accelerators))
        policy = folder / f"random-{way.policy}.toml"
        at = random_weights(trace, way.policy, rules) if way.weights_at == "rules" else None
        streams = at_home(trace, rules, at) if at else None
        text = as_toml("free" if way.objective else default, rules, at)
        policy.write_text('objective = "bytes"\n' + text if way.objective else text)
        if not way.objective:
            places = places_of(trace, default, rules, "tee", way.accelerators)
    options = [
        "--policy",
        policy if places or way.objective else way.policy,
        "--residency",
        way.residency,
        "--link",
        write_link(way.link, folder),
        *(word for name in way.accelerators for word in ("--accel", name)),
        *(("--wire-dtype", way.wire) if way.wire else ()),
        *(("--weights-at", "home") if way.weights_at == "home" else ()),
    ]
    done = driving.partition(folder / "trace", *map(str, options))
    links = {"": read_link(folder / f"{way.link}.toml")}
    at_all = "home" if way.weights_at == "home" else "device"
    asked = Asked("tee", way.accelerators, way.residency, way.wire, links, at_all, streams)
    found = compare_split(trace, done, asked, places)
    if way.policy in BEST[:4] or way.objective:
        found += compare_optimum(trace, done, asked, seed=1, tries=10)
    return found


def audit(case: Case, folder: Path, in_ways: Iterable[Way]) -> Comparison:
    """A case, split in some ways; each disagreement begins with the split that shows it."""
    trace = case.trace(folder, case.options)
    found = compare_trace(trace)
    if case.again:
        found += compare_formulas(trace, case.trace(folder, case.again))
    for way in in_ways:
        if way.policy == "layers" and len({op["layer"] for op in trace.ops.values()}) < 3:
            continue  # there is nothing to cut between
        found += split(trace, folder, way).named(f"{case}, {way}")
    return found
