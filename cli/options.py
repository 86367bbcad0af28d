"""The options that several commands take, each written once.

A command takes a group of them as one parameter, whose annotation is the group's dataclass; its
fields are options of the command (``flattened``). ``asdict`` gives the keywords of the library.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from shlex import join, quote
from typing import Annotated, Any, Literal

from typer import Argument, Option

from cli import complete
from costmodels import Execution, WeightsAt
from partition import Granularity, Residency, ScheduleKind
from tracer.errors import InputError, alike
from tracer.graph import FLOATING, MODEL_DTYPES

MOST = 2**31 - 1
"""The largest size that an option takes."""
WORDS: ContextVar[Sequence[str]] = ContextVar("WORDS", default=())
"""What the command that runs was given."""


def no_model(given: Any) -> Any:
    """What is given as trace directories; raises InputError where one is a model's name."""
    from tracer.presets import FILES, FUNCTION, preset_names

    folders = given if isinstance(given, list | tuple) else [given]
    for folder in map(str, filter(None, folders)):
        model = alike(folder, preset_names())
        if Path(folder).is_dir() or not (
            model or folder.endswith(FILES) or FUNCTION.fullmatch(folder)
        ):
            continue
        rest = [word for word in WORDS.get() if word not in (folder, "--trace")]
        then = f" && cutedge {join(rest)}" if len(folders) == 1 else ""
        raise InputError(
            f"{folder} is a model, and this command takes the directory of its trace. Trace it "
            f"first: cutedge trace {quote(model or folder)}{then}"
        )
    return given


Json = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
TraceDir = Annotated[
    Path | None,
    Argument(help="A trace directory; the last trace when left out.", callback=no_model),
]
Model = Annotated[
    str,
    Argument(
        help="A preset, a config.json or its folder, org/name on the hub, file.py:function, "
        "a .pt2, .gguf or .onnx file, timm:NAME or torchvision:NAME.",
        autocompletion=complete.models,
    ),
]
Settings = Annotated[
    list[str] | None, Option("--set", help="Override a config field: KEY=VALUE; again for another.")
]
Policies = Annotated[
    list[str] | None,
    Option(
        "--policy",
        help="A policy's name, or a .toml file; again for another. All that keep no secret when "
        "left out.",
        autocompletion=complete.policies,
    ),
]
Baseline = Annotated[
    str | None,
    Option(
        help="The policy that savings are against; offload-linear.",
        autocompletion=complete.policies,
    ),
]


@dataclass(frozen=True, slots=True)
class Tracing:
    """How a model is traced."""

    seq: Annotated[
        int | None, Option(min=1, help="New tokens a sequence; 1024 when left out, 1 in decode.")
    ] = None
    batch: Annotated[
        int | None,
        Option(min=1, help="Sequences, or images; 1 when left out, or your own default."),
    ] = None
    phase: Annotated[
        Literal["prefill", "decode", "encoder"],
        Option(help="decode: one new token over a cache; encoder: the encoder alone."),
    ] = "prefill"
    past: Annotated[
        int | None, Option(min=0, help="Cached tokens a sequence, before the new ones.")
    ] = None
    source: Annotated[
        int | None, Option(min=1, help="Tokens that the encoder has read; 1024 when left out.")
    ] = None
    cache: Annotated[
        bool, Option(help="Whether a prefill over no cached tokens keeps a KV cache.")
    ] = False
    dtype: Annotated[
        str | None,
        Option(
            help=f"Dtype that is computed in: {', '.join(MODEL_DTYPES)}; int16, int8: counted as "
            "quantised; config: what the config names. float32, or what a model of your own has."
        ),
    ] = None
    attn: Annotated[
        Literal["eager", "sdpa"],
        Option(help="eager: the attention's matmuls are ops; sdpa: it is one op."),
    ] = "eager"
    logits: Annotated[
        Literal["last", "all"], Option(help="Logits of the last token or of every token.")
    ] = "last"
    overrides: Settings = None
    images: Annotated[
        int | None, Option(min=0, max=999, help="Images a sequence; text alone when left out.")
    ] = None
    image_size: Annotated[
        str | None, Option(help="Their pixels: 448, or HEIGHTxWIDTH; the config's when left out.")
    ] = None
    sounds: Annotated[
        int | None, Option(min=0, max=999, help="Sounds a sequence; text alone when left out.")
    ] = None


@dataclass(frozen=True, slots=True)
class Arrays:
    """What makes arrays of multipliers faster than their descriptions."""

    pipeline_depth: Annotated[
        int, Option(min=1, max=MOST, help="Fixed tiles in flight at once: divides their cycles.")
    ] = 1
    int8_speedup: Annotated[
        float | None, Option(help="Compute in int8, so much faster; elements cross as one byte.")
    ] = None
    sparsity: Annotated[
        float, Option(help="Share of multiplications skipped: divides cycles by 1/(1-s).")
    ] = 0.0
    sparsity_speedup: Annotated[
        float | None, Option(help="The actual speedup by sparsity, not the theoretical.")
    ] = None
    chips: Annotated[
        int, Option(min=1, max=MOST, help="Chips that share the tiles, on one host link.")
    ] = 1


@dataclass(frozen=True, slots=True)
class Costs(Arrays):
    """What decides how long devices take: arrays, storage of weights and cached state, engines."""

    weights: Annotated[
        str | None,
        Option(help="What weights are stored in: q4_k_m, fp8, a .toml or .gguf file ..."),
    ] = None
    kv_dtype: Annotated[
        str | None, Option(help="What cached keys and values are stored in: fp8, q8_0 ...")
    ] = None
    engine: Annotated[
        list[str] | None,
        Option(
            help="What runs the model (hf-eager, vllm ...), or a .toml file; DEVICE=ENGINE of one "
            "device. The physical bound when left out.",
            autocompletion=complete.engines,
        ),
    ] = None
    execution: Annotated[
        Execution | None,
        Option(help="eager, graph: op by op, started or replayed; fused: several at once."),
    ] = None


Link = Annotated[
    list[str] | None,
    Option(
        help="The link between home and every accelerator: a name that `cutedge links` lists, or a "
        ".toml file. GPU=LINK is the link between home and gpu; A+B=LINK is between two "
        "accelerators (the slower of their two links to home when left out). zmq-ipc when left "
        "out.",
        autocompletion=complete.links,
    ),
]
Accelerators = Annotated[
    list[str] | None,
    Option(
        help="A device that home calls, named as for --home; again for another. gpu when left out.",
        autocompletion=complete.devices,
    ),
]


Device = Annotated[
    str, Option(help="A device's name, or a .toml file.", autocompletion=complete.devices)
]


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """The devices of a run, the links between them, and what they hold."""

    machine: Annotated[
        str | None,
        Option(
            help="Home, accelerators and link in one: tee-tdx+h100-cc@pcie5-x16-cc; in place of "
            "--home, --accel and --link."
        ),
    ] = None
    home: Annotated[
        str | None,
        Option(
            help="The device that holds inputs and outputs. Seconds are known of the devices that "
            "`cutedge devices` lists and of a .toml file; any other name is a device without "
            "figures. NAME=DEVICE calls it NAME. tee when left out.",
            autocompletion=complete.devices,
        ),
    ] = None
    accel: Accelerators = None
    link: Link = None
    memory: Annotated[
        list[str] | None,
        Option(
            help="At most so many bytes on a device: gpu=8GiB,host=32GiB; for policies that search."
        ),
    ] = None
    wire_dtype: Annotated[
        str | None,
        Option(
            help=f"Dtype of floating tensors while they cross: {', '.join(FLOATING)}. Their own "
            "when left out."
        ),
    ] = None
    pack: Annotated[
        list[str] | None,
        Option(
            help="Pack tensors while they cross: zstd, lz4, zstd-planes, q8_0, q4_0, range, or a "
            ".toml file; zstd:1MiB of 1 MiB and more; best: the fastest on the link that loses "
            "nothing. Again for another: the first that can pack a tensor does, a policy's [[pack]] "
            "before them.",
            autocompletion=complete.packings,
        ),
    ] = None
    weights_at: Annotated[
        WeightsAt | None,
        Option(
            help="Where parameters of accelerators lie, unless a policy's rule says. home: they are "
            "sent in each run; device when left out."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Search:
    """What a placement must keep to."""

    residency: Annotated[
        Residency, Option(help="run: a device keeps what it has; call: an accelerator forgets it.")
    ] = "run"
    secrets: Annotated[
        list[str] | None,
        Option(
            "--secret",
            help="What no untrusted accelerator may see: a tensor's label or name, or a sort of "
            "tensor (prompt_tokens, hidden_states, qkv, logits ...); again for another.",
        ),
    ] = None
    max_calls: Annotated[
        int | None, Option(min=0, help="At most so many calls; for policies that search.")
    ] = None
    time_limit: Annotated[
        float, Option(min=0.1, help="Seconds that a search for the optimum may take.")
    ] = 60.0
    objective: Annotated[
        str | None,
        Option(help="What a search is for: bytes, seconds, energy, or seconds=1,energy=0.5."),
    ] = None


@dataclass(frozen=True, slots=True)
class Running(Search):
    """What a placement must keep to, and how its run is laid out in time."""

    granularity: Annotated[
        Granularity,
        Option(
            help="What lies on one device together: the ops of a stored tensor, a module, a layer; "
            "convex: one call to each accelerator. For policies that search."
        ),
    ] = "op"
    schedule: Annotated[
        ScheduleKind | None,
        Option(
            help="Say when ops run and tensors move. serial: one after another; overlap: each as "
            "soon as it can, on devices and link directions that go on side by side."
        ),
    ] = None
    requests: Annotated[
        int | None, Option(min=1, max=1000, help="With --schedule: so many runs in flight.")
    ] = None


def flattened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the fields of its groups in place of the groups, as Typer takes it."""
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature(function).parameters.items()
        if is_dataclass(parameter.annotation)
    }

    @wraps(function)
    def run(**options: Any) -> Any:
        for name, group in groups.items():
            options[name] = group(
                **{field.name: options.pop(field.name) for field in fields(group)}
            )
        return function(**options)

    shown: list[Parameter] = []
    for name, parameter in signature(function).parameters.items():
        if name not in groups:
            shown.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        shown += [
            Parameter(
                field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )
            for field in fields(groups[name])
        ]
    run.__signature__ = signature(function).replace(parameters=shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
