"""Commands that say what a traced model costs on a device, and what its limits are there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import complete
from cli.app import Json, TraceDir, command, say, warn
from cli.devices import (
    Chips,
    Int8Speedup,
    PipelineDepth,
    Sparsity,
    SparsitySpeedup,
)
from cutedge._machines import array_options
from cutedge._request import decodes, traced_model
from tracer.errors import choose
from tracer.presets import parse_overrides

if TYPE_CHECKING:
    from costmodels.links import Link
    from costmodels.parameters import Breakdown
    from costmodels.roofline import DeviceTime, Share
    from tracer.graph import Op, OpGraph

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a config field: key=value.")
]
Model = Annotated[
    str,
    typer.Argument(
        help="A preset, a config.json, or org/name on the hub.", autocompletion=complete.models
    ),
]


@command("cutedge cost --device rtx-4090 --by module")
def cost(
    directory: TraceDir = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="A device or .toml file, again and again.",
            autocompletion=complete.devices,
        ),
    ] = None,
    by: Annotated[
        Literal["kind", "layer", "module"], typer.Option(help="What to sum the printed rows by.")
    ] = "kind",
    products_dtype: Annotated[
        str | None,
        typer.Option(help="Compute matrix products in another dtype: tfloat32, bfloat16."),
    ] = None,
    pipeline_depth: PipelineDepth = 1,
    int8_speedup: Int8Speedup = None,
    sparsity: Sparsity = 0.0,
    sparsity_speedup: SparsitySpeedup = None,
    chips: Chips = 1,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail when any op has no cost on a device.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what each op of a trace takes on devices: seconds, what bounds it, cycles on a chip."""
    from cli.printing import print_json
    from costmodels.cost_table import write_costs
    from costmodels.devices import load_device
    from costmodels.roofline import refuse_missing, time_graph
    from cutedge._workspace import trace_folder
    from tracer.serde import read_trace

    chosen = [load_device(name) for name in dict.fromkeys(devices or ["rtx-4090"])]
    if products_dtype is not None:
        peaks = {dtype for device in chosen for dtype in device.peak_flops_per_second}
        choose(products_dtype, sorted(peaks), "--products-dtype")
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    options = array_options(
        chosen, "--device", pipeline_depth=pipeline_depth, int8_speedup=int8_speedup,
        sparsity=sparsity, sparsity_speedup=sparsity_speedup, chips=chips,
    )  # fmt: skip
    times = [
        time_graph(graph, device, products_dtype=products_dtype, options=options)
        for device in chosen
    ]
    if strict:
        for time in times:
            refuse_missing(time)
    written = write_costs(graph, trace_id, times, folder)
    if as_json:
        print_json({
            "costs": [{**_cost_dict(graph, time), "table": str(written)} for time in times]
        })  # fmt: skip
    else:
        _print_costs(graph, times, by)
        say(f"written to {written}")


def _keys(graph: "OpGraph") -> dict[str, Any]:
    """What ops can be summed by."""
    from tracer.stacks import layer_names

    def module(op: "Op") -> str:
        return re.sub(r"\.\d+(?=\.|$)", ".*", op.module_path) or "(the model itself)"

    names = layer_names(graph)

    def layer(op: "Op") -> str:
        return names[op.id] or "outside"

    return {"kind": lambda op: op.kind.value, "layer": layer, "module": module}


def _host_link(time: "DeviceTime") -> "Link | None":
    """The link that an array's operands come over."""
    from costmodels.links import load_link

    named = time.device.host_link if time.device.array else None
    return None if named is None else load_link(named)


def _share_dict(share: "Share") -> dict[str, Any]:
    return {**asdict(share), "intensity": share.intensity}


def _cost_dict(graph: "OpGraph", time: "DeviceTime") -> dict[str, Any]:
    from costmodels.roofline import shares

    whole = next(iter(shares(graph, time, lambda op: "all")), None)
    link = _host_link(time)
    return {
        "device": time.device.name, "seconds": time.seconds,
        "seconds_coverage": time.coverage, "missing": dict(time.missing),
        **({} if whole is None else {
            "flops": whole.flops, "traffic_bytes": whole.traffic_bytes,
            "intensity": whole.intensity, "seconds_by_bound": dict(whole.seconds_by_bound),
        }),
        **{what: time.on_array(what) for what in ("cycles", "tiles", "useful_macs", "padded_macs")},
        "host_link": link and link.name, "link_seconds": link and time.link_seconds(link),
        "resident_bytes": time.need.resident_bytes,
        "live_activation_bytes": time.need.live_activation_bytes,
        "peak_activation_bytes": time.need.peak_activation_bytes,
        "fits": time.fits, "paged_share": time.paged_share,
        **{
            f"by_{what}": [_share_dict(share) for share in shares(graph, time, key)]
            for what, key in _keys(graph).items()
        },
    }  # fmt: skip


def _print_costs(graph: "OpGraph", times: "Sequence[DeviceTime]", by: str) -> None:
    from rich.text import Text

    from cli.printing import Column, console, duration, human, print_table
    from costmodels.roofline import shares
    from tracer.summary import headline

    out = console()
    out.print(Text(headline(graph.meta), style="bold"))
    for time in times:
        out.print()
        name = f"{time.device.name}: {time.device.description}"
        out.print(Text(name, style="bold"))
        for line in _summary(graph, time):
            out.print(line)
        out.print()
        found = shares(graph, time, _keys(graph)[by])
        if by != "layer":
            found.sort(key=lambda share: -share.seconds)
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
                for share in found
            ],
        )  # fmt: skip
    out.print()


def _most(seconds: Mapping[str, float]) -> str:
    return max(seconds, key=lambda bound: seconds[bound], default="")


def _summary(graph: "OpGraph", time: "DeviceTime") -> "Iterator[str]":
    """What a graph takes on a device, in sentences."""
    from cli.printing import covered, duration, human
    from costmodels.flops import numbered
    from costmodels.roofline import shares

    device, need = time.device, time.need
    spent = "".join(
        f", {value / time.seconds:.1%} bound by {bound}"
        for share in shares(graph, time, lambda op: "all")
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
        link = _host_link(time)
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
    device: Annotated[
        str, typer.Option(help="A device's name, or a .toml file.", autocompletion=complete.devices)
    ] = "rtx-4090",
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
    from cli.printing import print_json
    from costmodels import limits as model_limits
    from costmodels.devices import load_device
    from costmodels.experts import active_parameters

    on, binary = load_device(device), units == "reference"
    if dtype is None:  # the reference computes at one peak, whatever the bits
        dtype = (
            "float32" if binary else model_limits.compute_dtype(on, max(weight_bits, kv_bits))
        )  # fmt: skip
    machine = model_limits.machine(on, dtype, binary=binary)
    near, far, warnings = decodes(model, parse_overrides(settings or []))
    for warning in warnings:
        warn(warning)
    found = model_limits.limits(
        model_limits.describe(near, far), machine,
        weight_bits=weight_bits, kv_bits=kv_bits, prompt=prompt,
    )  # fmt: skip
    figures = model_limits.in_units(found, binary=binary)
    if as_json:
        print_json({
            "model": near.meta.model, "device": on.name, "compute_dtype": dtype, "units": units,
            "weight_bits": weight_bits, "kv_bits": kv_bits, "prompt": prompt,
            "parameters": near.meta.parameters, "active_parameters": active_parameters(near),
            **figures,
        })  # fmt: skip
        return
    say(
        f"{near.meta.model} on {on.name}: {weight_bits:g}-bit weights, {kv_bits:g}-bit cache, "
        f"{prompt} tokens of prompt, peak of {dtype}"
    )
    _print_limits(figures, binary=binary)


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
    from cli.printing import print_json
    from costmodels.parameters import break_down

    graph, warnings = traced_model(model, parse_overrides(settings or []), phase="prefill", seq=16)
    for warning in warnings:
        warn(warning)
    found = break_down(graph)
    if as_json:
        print_json(_params_dict(graph, found))
    else:
        _print_params(graph, found, by_layer)


def _params_dict(graph: "OpGraph", found: "Breakdown") -> dict[str, Any]:
    from costmodels.experts import active_parameters
    from tracer.summary import modules_not_run

    def plain(parts: "Mapping[str, Any]") -> dict[str, Any]:
        return {
            part: {"weights": count.weights, "biases": count.biases, "total": count.total}
            for part, count in parts.items()
        }

    return {
        "model": graph.meta.model, "model_class": graph.meta.model_class,
        "not_run": modules_not_run(graph), "parameters": graph.meta.parameters,
        "active_parameters": active_parameters(graph),
        "parts": plain(found.parts),
        "lm_head_tied_params": found.tied, "unread_params": found.unread,
        "attention": found.attention,
        "query_heads": found.heads and found.heads[0], "kv_heads": found.heads and found.heads[1],
        "layers": {layer: plain(parts) for layer, parts in found.layers.items()},
    }  # fmt: skip


def _print_params(graph: "OpGraph", found: "Breakdown", by_layer: bool) -> None:
    from cli.printing import Column, print_table
    from cli.show import not_run
    from costmodels.experts import active_parameters

    total, active = graph.meta.parameters, active_parameters(graph)
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
