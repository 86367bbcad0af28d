"""What a traced model costs on a device, what a device can do for a model, and what models hold."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from costmodels import CountAs, Dataflow, Overlap
from costmodels.arrays import GemmCost, Options, gemm_cost
from costmodels.devices import Array, Device, load_device
from costmodels.links import Link, load_link, round_trip_seconds
from costmodels.roofline import DeviceTime, Share, refuse_missing, shares, time_graph
from cutedge._machines import array_options
from tracer.errors import InputError, choose
from tracer.graph import ITEM_BYTES, Op, OpGraph

if TYPE_CHECKING:
    import pyarrow as pa

    from costmodels.parameters import Breakdown, Count
    from cutedge._request import Overrides
    from cutedge._trace import Trace

By = Literal["kind", "layer", "module"]
"""What ops are summed by."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the ops of a trace take on a device, one after another."""

    trace: "Trace"
    time: DeviceTime
    """The time of each op, and what the device must hold."""

    @property
    def host_link(self) -> Link | None:
        """The link that an array's operands come over; None for other devices."""
        named = self.time.device.host_link if self.time.device.array else None
        return None if named is None else load_link(named)

    def by(self, what: By) -> list[Share]:
        """FLOPs, bytes and seconds of groups of ops.

        >>> import cutedge
        >>> (cost,) = cutedge.trace("edge-10m", seq=64).costs("rtx-4090")
        >>> [share.name for share in cost.by("kind")][:2]
        ['elementwise', 'embedding']
        """
        return shares(self.trace.graph, self.time, _keys(self.trace.graph)[what])

    @property
    def whole(self) -> Share | None:
        """All ops as one group; None where not one works."""
        return next(iter(shares(self.trace.graph, self.time, lambda op: "all")), None)

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``cost --json`` has them."""
        time, whole, link = self.time, self.whole, self.host_link
        return {
            "device": time.device.name,
            "seconds": time.seconds,
            "seconds_coverage": time.coverage,
            "missing": dict(time.missing),
            **(
                {}
                if whole is None
                else {
                    "flops": whole.flops,
                    "traffic_bytes": whole.traffic_bytes,
                    "intensity": whole.intensity,
                    "seconds_by_bound": dict(whole.seconds_by_bound),
                }
            ),
            **{
                what: time.on_array(what)
                for what in ("cycles", "tiles", "useful_macs", "padded_macs")
            },
            "host_link": link and link.name,
            "link_seconds": link and time.link_seconds(link),
            "resident_bytes": time.need.resident_bytes,
            "live_activation_bytes": time.need.live_activation_bytes,
            "peak_activation_bytes": time.need.peak_activation_bytes,
            "fits": time.fits,
            "paged_share": time.paged_share,
            **{
                f"by_{what}": [
                    {**asdict(share), "intensity": share.intensity}
                    for share in shares(self.trace.graph, time, key)
                ]
                for what, key in _keys(self.trace.graph).items()
            },
        }


def costs(
    trace: "Trace",
    devices: Sequence[str],
    products_dtype: str | None,
    *,
    strict: bool,
    **arrays: Any,
) -> list[Cost]:
    """What a trace takes on each of the devices: ``Trace.costs``."""
    chosen = [load_device(name) for name in dict.fromkeys(devices or ["rtx-4090"])]
    if products_dtype is not None:
        peaks = {dtype for device in chosen for dtype in device.peak_flops_per_second}
        choose(products_dtype, sorted(peaks), "--products-dtype")
    options = array_options(chosen, "--device", **arrays)
    times = [
        time_graph(trace.graph, device, products_dtype=products_dtype, options=options)
        for device in chosen
    ]
    if strict:
        for time in times:
            refuse_missing(time)
    return [Cost(trace, time) for time in times]


def cost_table(found: Sequence[Cost]) -> "pa.Table":
    """A row for each op and device, as in ``costs.parquet``."""
    from costmodels import cost_table as tables

    trace = found[0].trace
    return tables.cost_table(trace.graph, trace.id, [one.time for one in found])


def save_costs(found: Sequence[Cost], folder: Path) -> Path:
    """Write ``costs.parquet`` into a trace's directory; where it is."""
    from costmodels.cost_table import write_costs

    trace = found[0].trace
    return write_costs(trace.graph, trace.id, [one.time for one in found], folder)


def _keys(graph: OpGraph) -> dict[str, Callable[[Op], str]]:
    """What ops can be summed by."""
    from tracer.stacks import layer_names

    def module(op: Op) -> str:
        return re.sub(r"\.\d+(?=\.|$)", ".*", op.module_path) or "(the model itself)"

    names = layer_names(graph)

    def layer(op: Op) -> str:
        return names[op.id] or "outside"

    return {"kind": lambda op: op.kind.value, "layer": layer, "module": module}


# --- limits and parameters ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast one user's model can be on a device at best."""

    about: Mapping[str, Any]
    """The model, the device, and what was asked of them."""
    figures: Mapping[str, Any]
    """By name; each says its unit. None where there is no limit, beside the reason."""
    warnings: tuple[str, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """All of it, as ``limits --json`` has it."""
        return {**self.about, **self.figures}

    @property
    def headline(self) -> str:
        """What the limits are of."""
        of = self.about
        return (
            f"{of['model']} on {of['device']}: {of['weight_bits']:g}-bit weights, "
            f"{of['kv_bits']:g}-bit cache, {of['prompt']} tokens of prompt, peak of "
            f"{of['compute_dtype']}"
        )

    @property
    def reasons(self) -> dict[str, str]:
        """What has no limit -> why."""
        whys = {what: self.figures[f"{what}_reason"] for what in ("kv_tokens", "decode_W")}
        return {what: why for what, why in whys.items() if why is not None}

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """(name, value, unit) of each figure, to read."""
        binary = self.about["units"] == "reference"
        return [
            (name, _shown(value), _unit(name, binary))
            for name, value in self.figures.items()
            if not name.endswith("_reason")
        ]


def _shown(value: float | None) -> str:
    if value is None:
        return "no limit"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _unit(name: str, binary: bool) -> str:
    if name.endswith("params"):
        return "Gi" if binary else ""
    if name in ("kv_cache_params_per_token", "kv_cache_params_fixed"):
        return "Mi" if binary else ""
    if name == "decode_W_tokens_per_ms":
        return "tokens/ms"
    return "ms" if "_ms" in name else ""


def limits(
    model: str,
    device: str = "rtx-4090",
    *,
    weight_bits: float = 16,
    kv_bits: float = 16,
    prompt: int = 1024,
    dtype: str | None = None,
    units: Literal["true", "reference"] = "true",
    overrides: "Overrides" = None,
) -> Limits:
    """Say how fast one user's model can be on a device: memory, first token, decoding.

    The device computes at the peak of ``dtype``; when left out, at that of the wider of weights and
    cache. ``units`` are ``true`` counts with decimal giga and tera, or those of the ``reference``,
    with M, G and T as powers of two. Raises InputError for what cannot be understood.

    >>> import cutedge
    >>> cutedge.limits("qwen1.5-7b", weight_bits=8, kv_bits=8).figures["kv_cache_params_per_token"]
    262144
    """
    from costmodels import limits as of_model
    from costmodels.experts import active_parameters
    from cutedge._request import decodes

    on, binary = load_device(device), units == "reference"
    if dtype is None:  # the reference computes at one peak, whatever the bits
        dtype = "float32" if binary else of_model.compute_dtype(on, max(weight_bits, kv_bits))
    machine = of_model.machine(on, dtype, binary=binary)
    near, far, warnings = decodes(model, overrides)
    found = of_model.limits(
        of_model.describe(near, far),
        machine,
        weight_bits=weight_bits,
        kv_bits=kv_bits,
        prompt=prompt,
    )
    return Limits(
        {
            "model": near.meta.model,
            "device": on.name,
            "compute_dtype": dtype,
            "units": units,
            "weight_bits": weight_bits,
            "kv_bits": kv_bits,
            "prompt": prompt,
            "parameters": near.meta.parameters,
            "active_parameters": active_parameters(near),
        },
        of_model.in_units(found, binary=binary),
        warnings,
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    """Where a model's parameters are."""

    graph: OpGraph
    """Of a prefill."""
    found: "Breakdown"
    warnings: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The model, its class, how many parameters it has, and its heads."""
        meta, found = self.graph.meta, self.found
        heads = (
            ""
            if found.heads is None
            else (
                f", {found.attention} with {found.heads[0]} query and {found.heads[1]} key/value heads"
            )
        )
        return f"{meta.model} ({meta.model_class}): {meta.parameters:,} parameters{heads}"

    @property
    def active(self) -> int:
        """Those that one token takes."""
        from costmodels.experts import active_parameters

        return active_parameters(self.graph)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts by name, as ``params --json`` has them."""
        from tracer.summary import modules_not_run

        graph, found = self.graph, self.found
        return {
            "model": graph.meta.model,
            "model_class": graph.meta.model_class,
            "not_run": modules_not_run(graph),
            "parameters": graph.meta.parameters,
            "active_parameters": self.active,
            "parts": _counts(found.parts),
            "lm_head_tied_params": found.tied,
            "unread_params": found.unread,
            "attention": found.attention,
            "query_heads": found.heads and found.heads[0],
            "kv_heads": found.heads and found.heads[1],
            "layers": {layer: _counts(parts) for layer, parts in found.layers.items()},
        }


def _counts(parts: "Mapping[str, Count]") -> dict[str, Any]:
    return {
        part: {"weights": count.weights, "biases": count.biases, "total": count.total}
        for part, count in parts.items()
    }


def params(model: str, *, overrides: "Overrides" = None) -> Parameters:
    """Say where a model's parameters are: embedding, attention, FFN, norms, lm_head.

    >>> import cutedge
    >>> cutedge.params("llama-3.2-1b").summary["parameters"]
    1235814400
    """
    from costmodels.parameters import break_down
    from cutedge._request import traced_model

    graph, warnings = traced_model(model, overrides, phase="prefill", seq=16)
    return Parameters(graph, break_down(graph), warnings)


# --- products on an array -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gemm:
    """One matrix product [m, k] x [k, n] on an array of multipliers."""

    device: Device
    array: Array
    sizes: tuple[int, int, int, int]
    """m, k, n and how many products there are."""
    count: CountAs | None
    overlap: Overlap | None
    """How its cycles are counted; None for a device whose tiles take a fixed time."""
    options: Options
    cost: GemmCost
    link_seconds: float | None
    """Of the operands and the result over the device's host link; None where it is not known."""

    @property
    def run_seconds(self) -> float | None:
        """Moving and computing, one after another."""
        return None if self.link_seconds is None else self.cost.seconds + self.link_seconds

    @property
    def overlapped_seconds(self) -> float | None:
        """Moving and computing at once, at best."""
        return None if self.link_seconds is None else max(self.cost.seconds, self.link_seconds)

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``gemm --json`` has them."""
        m, k, n, batch = self.sizes
        return {
            "device": self.device.name,
            "m": m,
            "k": k,
            "n": n,
            "batch": batch,
            **asdict(self.array),
            "count": self.count or "true",
            "overlap": self.overlap,
            **asdict(self.options),
            "host_link": self.device.host_link,
            **asdict(self.cost),
            "link_seconds": self.link_seconds,
            "run_seconds": self.run_seconds,
            "overlapped_seconds": self.overlapped_seconds,
        }


def gemm(
    m: int,
    k: int,
    n: int,
    device: str = "chip-8x8",
    *,
    batch: int = 1,
    mode: Dataflow | None = None,
    rows: int | None = None,
    cols: int | None = None,
    count: CountAs | None = None,
    overlap: Overlap | None = None,
    dtype: str = "float32",
    **arrays: Any,
) -> Gemm:
    """Cost one matrix product [m, k] x [k, n] on an array: tiles, cycles, seconds, utilisation.

    ``mode``, ``rows`` and ``cols`` are another dataflow and size than the device's; ``count`` and
    ``overlap`` say how a systolic array's cycles are counted; ``dtype`` is that of the elements on
    the host link; ``arrays`` are the options of arrays. Raises InputError for a device without one.

    >>> import cutedge
    >>> cutedge.gemm(32, 64, 64).cost.tiles
    128
    """
    choose(dtype, tuple(ITEM_BYTES), "--dtype")
    chosen = load_device(device)
    array = _array(chosen, mode, rows, cols)
    systolic = array.dataflow != "fixed"
    if not systolic and (count or overlap):
        raise InputError("--count and --overlap are of systolic arrays (--mode os, ws or is)")
    options = Options(**arrays)
    counted, overlapped = count or "scalesim", overlap or "none"
    cost = gemm_cost(
        array,
        m,
        k,
        n,
        batch=batch,
        options=options,
        count=counted,
        overlap=overlapped,
        element_bytes=ITEM_BYTES[dtype],
    )
    link = chosen.host_link and load_link(chosen.host_link)
    seconds = (
        round_trip_seconds(link, int(cost.sent_bytes), int(cost.received_bytes)) if link else None
    )
    return Gemm(
        chosen,
        array,
        (m, k, n, batch),
        counted if systolic else None,
        overlapped if systolic else None,
        options,
        cost,
        seconds,
    )


def _array(device: Device, mode: Dataflow | None, rows: int | None, cols: int | None) -> Array:
    """The device's array, or one of another dataflow or size at its clock."""
    array = device.array
    if array is None:
        raise InputError(
            f"{device.name} is no array with tiles and cycles: `cutedge cost --device "
            f"{device.name}` has its seconds by peaks and bandwidth"
        )
    flow = mode or array.dataflow
    if flow == "fixed":
        if array.dataflow != "fixed":
            raise InputError(f"--mode fixed: {device.name} has no tile_cycles, as chip-8x8 has")
        if (rows or array.rows, cols or array.columns) != (array.rows, array.columns):
            raise InputError(
                "--rows and --cols are of systolic arrays (--mode os, ws or is): what a fixed "
                f"tile takes is known of that of {device.name} alone"
            )
        return array
    return Array(
        flow,
        rows or array.rows,
        cols or array.columns,
        depth=None,
        tile_cycles=None,
        clock_hertz=array.clock_hertz,
    )
