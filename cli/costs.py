"""Commands that say what a traced model costs on a device, and what its limits are there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from cli import complete
from cli.app import command, say, warn
from cli.options import Costs, Device, Json, Model, Settings, TraceDir

if TYPE_CHECKING:
    from cutedge._cost import By, Cost, ModelLimits, Parameters


@command("cutedge cost --device rtx-4090 --by module")
def cost(
    timing: Costs,
    directory: TraceDir = None,
    devices: Annotated[
        list[str] | None,
        Option(
            "--device",
            help="A device's name, or a .toml file; again for another.",
            autocompletion=complete.devices,
        ),
    ] = None,
    by: Annotated[
        Literal["kind", "layer", "module"], Option(help="What to sum the printed rows by.")
    ] = "kind",
    products_dtype: Annotated[
        str | None,
        Option(
            help="Compute matrix products in another dtype that the device has a peak for: "
            "tfloat32, bfloat16, float16, int8."
        ),
    ] = None,
    strict: Annotated[
        bool, Option("--strict", help="Fail when any op has no cost on a device.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what each op of a trace takes on devices: seconds, what bounds it, cycles on a chip."""
    import cutedge
    from cli.printing import print_json
    from cutedge._cost import save_costs
    from cutedge._workspace import trace_folder

    folder = trace_folder(directory)
    costs = cutedge.load(folder).costs(
        *(devices or ()), products_dtype=products_dtype, strict=strict, **asdict(timing)
    )
    written = save_costs(costs, folder)
    if as_json:
        print_json({"costs": [{**one.summary, "table": str(written)} for one in costs]})
    else:
        _print_costs(costs, by)
        say(f"written to {written}")


def _print_costs(costs: "Sequence[Cost]", by: "By") -> None:

    from cli.printing import print_table
    from cutedge._rows import cost_rows
    from cutedge._words import cost_sentences
    from tracer.summary import headline

    say(headline(costs[0].trace.graph.meta), bold=True)
    for cost in costs:
        time = cost.time
        say()
        name = f"{time.device.name}: {time.device.description}"
        say(name, bold=True)
        for line in cost_sentences(cost):
            say(line)
        say()
        print_table(
            f"{by}, ops>4, FLOPs>2, bytes>2, FLOPs/byte>3, share%, seconds>, bound by<1",
            cost_rows(cost, by),
        )
    say()


@dataclass(frozen=True, slots=True)
class User:
    """What one user asks of a device."""

    weight_bits: Annotated[
        float | None, Option(min=0.1, max=64, help="Bits a parameter; 16 when left out.")
    ] = None
    kv_bits: Annotated[
        float | None, Option(min=0.1, max=64, help="Bits a cached value; 16 when left out.")
    ] = None
    weights: Annotated[str | None, Option(help="As for cost, in place of bits.")] = None
    kv_dtype: Annotated[str | None, Option(help="As for cost, in place of bits.")] = None
    prompt: Annotated[int, Option(min=1, help="Tokens of the prompt.")] = 1024
    dtype: Annotated[
        str | None,
        Option(
            help="The dtype whose peak the device computes at; when left out that of the wider of "
            "weights and cache: bfloat16 of 16 bits, 8-bit of 8, where the device has it."
        ),
    ] = None
    units: Annotated[
        Literal["true", "reference"],
        Option(help="true: counts, decimal giga and tera; reference: M, G, T as powers of two."),
    ] = "true"


@command("cutedge limits qwen1.5-7b --device rtx-4090 --weight-bits 8 --prompt 1000")
def limits(
    model: Model,
    user: User,
    device: Device = "rtx-4090",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Say how fast one user's model can be at best: memory, first token, knees, decoding."""
    import cutedge
    from cli.printing import print_json

    limits = cutedge.limits(model, device, overrides=settings, **asdict(user))
    warn(*limits.warnings)
    if as_json:
        print_json(limits.summary)
        return
    say(limits.headline)
    _print_limits(limits)


def _print_limits(limits: "ModelLimits") -> None:
    from cli.printing import print_table

    print_table("limit, value>, unit", limits.lines)
    for what, why in limits.reasons.items():
        say(f"no {what}: {why}")


@command("cutedge params mistral-7b")
def params(
    model: Model,
    settings: Settings = None,
    by_layer: Annotated[bool, Option("--layers", help="A row for each layer.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a model's parameters are: embedding, attention, FFN, norms, lm_head."""
    import cutedge
    from cli.printing import print_json

    params = cutedge.params(model, overrides=settings)
    warn(*params.warnings)
    if as_json:
        print_json(params.summary)
    else:
        _print_params(params, by_layer)


def _print_params(params: "Parameters", by_layer: bool) -> None:
    from cli.printing import print_table
    from cutedge._rows import layer_rows, parameter_rows
    from cutedge._words import parameter_sentences

    say(params.headline)
    print_table("part, weights>1, biases and scales>2, all>, share%", parameter_rows(params))
    for line in parameter_sentences(params):
        say(line)
    if by_layer:
        print_table(*layer_rows(params))
