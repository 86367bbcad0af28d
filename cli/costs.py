"""Commands that say what a traced model costs on a device, and what its limits are there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import complete
from cli.app import command, say, warn
from cli.options import Arrays, Device, Json, Model, Settings, TraceDir

if TYPE_CHECKING:
    from cutedge._cost import By, Cost, Parameters


@command("cutedge cost --device rtx-4090 --by module")
def cost(
    arrays: Arrays,
    directory: TraceDir = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="A device's name, or a .toml file; again for another.",
            autocompletion=complete.devices,
        ),
    ] = None,
    by: Annotated[
        Literal["kind", "layer", "module"], typer.Option(help="What to sum the printed rows by.")
    ] = "kind",
    products_dtype: Annotated[
        str | None,
        typer.Option(
            help="Compute matrix products in another dtype that the device has a peak for: "
            "tfloat32, bfloat16, float16, int8."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail when any op has no cost on a device.")
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
        *(devices or ()), products_dtype=products_dtype, strict=strict, **asdict(arrays)
    )
    written = save_costs(costs, folder)
    if as_json:
        print_json({"costs": [{**one.summary, "table": str(written)} for one in costs]})
    else:
        _print_costs(costs, by)
        say(f"written to {written}")


def _print_costs(costs: "Sequence[Cost]", by: "By") -> None:
    from rich.text import Text

    from cli.printing import Column, console, duration, human, print_table
    from tracer.summary import headline

    out = console()
    out.print(Text(headline(costs[0].trace.graph.meta), style="bold"))
    for cost in costs:
        time = cost.time
        out.print()
        name = f"{time.device.name}: {time.device.description}"
        out.print(Text(name, style="bold"))
        for line in _sentences(cost):
            out.print(line)
        out.print()
        shares = cost.by(by)
        if by != "layer":
            shares.sort(key=lambda share: -share.seconds)
        print_table(
            [
                Column(by), Column("ops", ">", 4), Column("FLOPs", ">", 2), Column("bytes", ">", 2),
                Column("FLOPs/byte", ">", 3), Column("share", "%"), Column("seconds", ">"),
                Column("bound by", "<", 1),
            ],
            [
                (
                    share.name, f"{share.ops:,}", f"{share.flops:,}", human(share.traffic_bytes),
                    "" if share.intensity is None else f"{share.intensity:.2f}",
                    f"{share.seconds / time.seconds:.1%}" if time.seconds else "",
                    "not here" if share.missing_ops == share.ops else duration(share.seconds),
                    _most(share.seconds_by_bound),
                )
                for share in shares
            ],
        )  # fmt: skip
    out.print()


def _most(seconds: Mapping[str, float]) -> str:
    return max(seconds, key=lambda bound: seconds[bound], default="")


def _sentences(cost: "Cost") -> Iterator[str]:
    """What a graph takes on a device, in sentences."""
    from cli.printing import covered, duration, human
    from costmodels.flops import numbered

    time, whole = cost.time, cost.whole
    device, need = time.device, time.need
    spent = "".join(
        f", {value / time.seconds:.1%} bound by {bound}"
        for share in ([whole] if whole else [])
        for bound, value in sorted(share.seconds_by_bound.items(), key=lambda item: -item[1])
        if value
    )
    known = "all ops" if not time.missing else "the ops that run here"
    yield f"{duration(time.seconds)} for {known}, one after another{spent}"
    if padded := time.on_array("padded_macs"):
        useful = (time.on_array("useful_macs") or 0) / padded
        yield (
            f"{time.on_array('cycles'):,} cycles in {time.on_array('tiles'):,} tiles; "
            f"{useful:.1%} of {padded:,} multiply-accumulates are useful"
        )
        link = cost.host_link
        taken = None if link is None else time.link_seconds(link)
        if link is not None and taken is not None:
            sent, received = (time.on_array(f"{way}_bytes") or 0 for way in ("sent", "received"))
            yield (
                f"beside that, {link.name} takes {duration(taken)} for their operands "
                f"({human(sent)}) and results ({human(received)})"
            )
    fits = {True: "fits", False: "does NOT fit", None: "not known whether it fits"}[time.fits]
    size = "" if device.memory_bytes is None else f" in {human(device.memory_bytes)}"
    yield (
        f"memory: {human(need.resident_bytes)} resident, {human(need.live_activation_bytes)} of "
        f"activations where each is freed once read, {human(need.peak_activation_bytes)} at most: "
        f"{fits}{size}"
    )
    if time.paged_share:
        yield (
            f"{time.paged_share:.1%} of that is beyond the secure memory of "
            f"{human(device.enclave_bytes or 0)} and is paged (an estimate)"
        )
    yield (
        f"coverage: seconds are known for {covered(time.coverage)} of the ops that work"
        + (f"; not for {numbered(time.missing)}" if time.missing else "")
    )


@command("cutedge limits qwen1.5-7b --device rtx-4090 --weight-bits 8 --prompt 1000")
def limits(
    model: Model,
    device: Device = "rtx-4090",
    weight_bits: Annotated[float, typer.Option(min=0.1, max=64, help="Bits a parameter.")] = 16,
    kv_bits: Annotated[float, typer.Option(min=0.1, max=64, help="Bits a cached value.")] = 16,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 1024,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype whose peak the device computes at; when left out that of the wider of "
            "weights and cache: bfloat16 of 16 bits, 8-bit of 8, where the device has it."
        ),
    ] = None,
    units: Annotated[
        Literal["true", "reference"],
        typer.Option(
            help="true: counts, decimal giga and tera; reference: M, G, T as powers of two."
        ),
    ] = "true",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Say how fast one user's model can be at best: memory, first token, knees, decoding."""
    import cutedge
    from cli.printing import print_json

    limits = cutedge.limits(
        model, device, weight_bits=weight_bits, kv_bits=kv_bits, prompt=prompt, dtype=dtype,
        units=units, overrides=settings,
    )  # fmt: skip
    for warning in limits.warnings:
        warn(warning)
    if as_json:
        print_json(limits.summary)
        return
    say(
        f"{limits.about['model']} on {limits.about['device']}: {weight_bits:g}-bit weights, "
        f"{kv_bits:g}-bit cache, {prompt} tokens of prompt, peak of {limits.about['compute_dtype']}"
    )
    _print_limits(limits.figures, binary=units == "reference")


def _print_limits(figures: Mapping[str, Any], *, binary: bool) -> None:
    from cli.printing import Column, print_table

    rows = []
    for key, value in figures.items():
        if key.endswith("_reason"):
            continue
        unit = ""
        if key.endswith("params"):
            unit = "Gi" if binary else ""
        elif key in ("kv_cache_params_per_token", "kv_cache_params_fixed"):
            unit = "Mi" if binary else ""
        elif key == "decode_W_tokens_per_ms":
            unit = "tokens/ms"
        elif "_ms" in key:
            unit = "ms"
        text = (
            "no limit"
            if value is None
            else f"{value:,}"
            if isinstance(value, int)
            else f"{value:,.6g}"
        )
        rows.append((key, text, unit))
    print_table([Column("limit"), Column("value", ">"), Column("unit")], rows)
    for key in ("kv_tokens", "decode_W"):
        if (why := figures[f"{key}_reason"]) is not None:
            say(f"no {key}: {why}")


@command("cutedge params mistral-7b")
def params(
    model: Model,
    settings: Settings = None,
    by_layer: Annotated[bool, typer.Option("--layers", help="A row for each layer.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a model's parameters are: embedding, attention, FFN, norms, lm_head."""
    import cutedge
    from cli.printing import print_json

    params = cutedge.params(model, overrides=settings)
    for warning in params.warnings:
        warn(warning)
    if as_json:
        print_json(params.summary)
    else:
        _print_params(params, by_layer)


def _print_params(params: "Parameters", by_layer: bool) -> None:
    from cli.printing import Column, print_table
    from cli.show import not_run

    graph, found = params.graph, params.found
    total, active = graph.meta.parameters, params.active
    heads = "" if found.heads is None else (
        f", {found.attention} with {found.heads[0]} query and {found.heads[1]} key/value heads"
    )  # fmt: skip
    say(f"{graph.meta.model} ({graph.meta.model_class}): {total:,} parameters{heads}")
    print_table(
        [
            Column("part"), Column("weights", ">", 1), Column("biases and scales", ">", 2),
            Column("all", ">"), Column("share", "%"),
        ],
        [
            (
                part, f"{count.weights:,}", f"{count.biases:,}", f"{count.total:,}",
                f"{count.total / total:.2%}",
            )
            for part, count in found.parts.items()
        ],
    )  # fmt: skip
    if active != total:
        say(f"{active:,} are active for one token ({active / max(total, 1):.1%})")
    if found.tied:
        say(f"lm_head reads {found.tied:,} of the embedding's too (tied, counted once)")
    idle = not_run(graph)
    if found.unread and not idle:
        idle = [f"{found.unread:,} parameters are read by no op of a prefill"]
    for line in idle:
        say(line)
    if by_layer:
        names = list(dict.fromkeys(part for parts in found.layers.values() for part in parts))
        print_table(
            [Column("layer"), *(Column(name, ">", n) for n, name in enumerate(names))],
            [
                (layer, *(f"{parts[n].total:,}" if n in parts else "" for n in names))
                for layer, parts in found.layers.items()
            ],
        )
