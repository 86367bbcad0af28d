"""What a traced model costs on a device, what a device can do for a model, and what models hold."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from costmodels.arrays import gemm_cost
from costmodels.compulsory import compulsory_bytes, least_seconds
from costmodels.devices import load_device
from costmodels.engines import PHYSICAL
from costmodels.flops import FREE, without_sizes
from costmodels.joules import Joules, device_joules
from costmodels.links import Link, load_link
from costmodels.memory import MemoryNeed, fits, memory_need
from costmodels.roofline import DeviceTime, Rates, Share, refuse_missing, shares, time_graph
from cutedge._machines import array_options, engines_of
from tracer.errors import InputError, choose
from tracer.graph import Op, OpGraph
from tracer.summary import parameter_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from costmodels import Execution
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
    """The time of each op."""

    @property
    def need(self) -> MemoryNeed:
        """What the device must hold."""
        return memory_need(self.trace.graph)

    @property
    def fits(self) -> bool | None:
        """Whether it does; None where that is not known (``costmodels.memory.fits``)."""
        return fits(self.need, self.time.device.memory_bytes)

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
        ['embedding', 'elementwise']
        """
        return shares(self.trace.graph, self.time, _keys(self.trace.graph)[what])

    @property
    def compulsory_bytes(self) -> int:
        """What every program with these results moves (``costmodels.compulsory``)."""
        return compulsory_bytes(self.trace.graph)

    @property
    def least_seconds(self) -> float | None:
        """What no program with these results stays below here, however its ops are fused.

        None where the device has no rates of its own.
        """
        rates = Rates(self.time.device, products_dtype=self.time.products_dtype)
        return least_seconds(self.trace.graph, rates)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What its seconds leave out since it is not known: with any of it they are at least so
        many.
        """
        launch = f"the launch time of {self.time.device.name}"
        return (*((launch,) if self.time.lacks_launches else ()), *self.time.device.unknown)

    @property
    def refused(self) -> dict[str, int]:
        """kind -> ops that work and that the device does not run by its description."""
        kinds = (op.kind for op in self.trace.graph.ops if op.kind not in FREE)
        return dict(Counter(kind.value for kind in kinds if not self.time.device.runs(kind)))

    @property
    def joules(self) -> Joules:
        """What its ops take in energy, one after another, and what the device draws meanwhile."""
        return device_joules(self.trace.graph, self.time)

    @property
    def total_share(self) -> Share | None:
        """All ops as one group; None where not one works."""
        return next(iter(shares(self.trace.graph, self.time, lambda op: "all")), None)

    @property
    def double_buffered_cycles(self) -> int | None:
        """What the products on fixed tiles would take double-buffered; None where there are none, and
        where it is not known what a tile's cycles hold."""
        array, options = self.time.device.array, self.time.options
        if array is None or array.phases is None or not self.time.gemms or self.without_sizes:
            return None
        how = replace(options, pipeline_depth=1)
        sizes = (
            op.cost.gemm
            for op, at in zip(self.trace.graph.ops, self.time.ops, strict=True)
            if at.gemm
        )
        total: int = sum(
            gemm_cost(
                array, g.m, g.k, g.n, batch=g.batch, options=how, overlap="double-buffered"
            ).cycles
            for g in sizes
            if g is not None
        )
        return total

    @property
    def without_sizes(self) -> dict[str, int]:
        """target -> products that no cycles are known of, on an array of multipliers."""
        return without_sizes(self.trace.graph.ops) if self.time.device.array else {}

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``cost --json`` has them."""
        time, total, link, need = self.time, self.total_share, self.host_link, self.need
        meta = self.trace.graph.meta
        return {
            "device": time.device.name,
            "engine": time.engine.name or None,
            "execution": time.engine.execution,
            "weights": meta.weights or None,
            "kv_dtype": meta.kv_dtype or None,
            "parameter_bytes": parameter_bytes(self.trace.graph),
            "seconds": time.seconds,
            "at_least": bool(self.left_out),
            "left_out": list(self.left_out),
            "joules": self.joules.value,
            "energy_at_least": self.joules.value is not None and self.joules.at_least,
            "compulsory_bytes": self.compulsory_bytes,
            "least_seconds": self.least_seconds,
            "seconds_coverage": time.coverage,
            "missing": dict(time.missing),
            "refused_kinds": self.refused,
            **(
                {}
                if total is None
                else {
                    "flops": total.flops,
                    "traffic_bytes": total.traffic_bytes,
                    "intensity": total.intensity,
                    "seconds_by_bound": dict(total.seconds_by_bound),
                }
            ),
            **{
                what: None if self.without_sizes else time.on_array(what)
                for what in ("cycles", "tiles", "useful_macs", "padded_macs")
            },
            "double_buffered_cycles": self.double_buffered_cycles,
            "host_link": link and link.name,
            "link_seconds": link and time.link_seconds(link),
            "resident_bytes": need.resident_bytes,
            "live_activation_bytes": need.live_activation_bytes,
            "peak_activation_bytes": need.peak_activation_bytes,
            "fits": self.fits,
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
    engine: str | Sequence[str] | None = None,
    execution: "Execution | None" = None,
    **arrays: Any,
) -> list[Cost]:
    """What a trace takes on each of the devices: ``Trace.costs``."""
    chosen = [load_device(name) for name in dict.fromkeys(devices or ["rtx-4090"])]
    if products_dtype is not None:
        peaks = {dtype for device in chosen for dtype in device.peak_flops_per_second}
        choose(products_dtype, sorted(peaks), "--products-dtype")
    options = array_options(chosen, "--device", **arrays)
    engines = engines_of({device.name: device for device in chosen}, engine, execution)
    times = [
        time_graph(
            trace.graph,
            device,
            products_dtype=products_dtype,
            options=options,
            engine=engines.get(device.name, PHYSICAL),
        )
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
class ModelLimits:
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
        bits = f"{of['weight_bits']:g}-bit weights"
        if of["weights"]:
            bits = f"weights in {of['weights']} ({of['weight_bits']:.4g} bits each)"
        return (
            f"{of['model']} on {of['device']}: {bits}, "
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
    weight_bits: float | None = None,
    kv_bits: float | None = None,
    weights: str | Path | None = None,
    kv_dtype: str | None = None,
    prompt: int = 1024,
    dtype: str | None = None,
    units: Literal["true", "reference"] = "true",
    overrides: "Overrides" = None,
) -> ModelLimits:
    """Say how fast one user's model can be on a device: memory, first token, decoding.

    The device computes at the peak of ``dtype``; when left out, at that of the wider of weights and
    cache. Weights and cached values have 16 bits, or as many as ``weight_bits`` and ``kv_bits`` say,
    or are stored in ``weights`` and ``kv_dtype`` (``Trace.stored``), and weights of a config with a
    ``quantization_config`` as that says. ``units`` are ``true`` counts with decimal giga and tera,
    or those of the ``reference``, with M, G and T as powers of two. Raises InputError for what
    cannot be understood.

    >>> import cutedge
    >>> cutedge.limits("edge-10m", weight_bits=8, kv_bits=8).figures["kv_cache_params_per_token"]
    2048
    """
    from costmodels import limits as of_model
    from costmodels.experts import active_parameters
    from costmodels.flops import annotate
    from costmodels.weights import cache_encoding
    from cutedge._request import decodes
    from cutedge._storage import in_storage

    on, binary = load_device(device), units == "reference"
    for given, other, names in (
        (weights, weight_bits, "--weights or --weight-bits"),
        (kv_dtype, kv_bits, "--kv-dtype or --kv-bits"),
    ):
        if given is not None and other is not None:
            raise InputError(f"give {names}, not both")
    asked, weight_bits = weight_bits, 16 if weight_bits is None else weight_bits
    if kv_dtype is not None:
        kv_bits = cache_encoding(kv_dtype).bits_an_element
    kv_bits = 16 if kv_bits is None else kv_bits
    if dtype is None:  # the reference computes at one peak, whatever the bits
        dtype = "float32" if binary else of_model.compute_dtype(on, max(weight_bits, kv_bits))
    figures = of_model.device_figures(on, dtype, binary=binary)
    near, far, warnings = decodes(model, overrides)
    if weights is not None:
        near = annotate(in_storage(near, weights, None))
    described, stored = of_model.describe(near, far), None
    if near.meta.weights and asked is None:
        stored = of_model.describe(near, far, in_bytes=True)
        weight_bits = 8 * stored.stored_params / described.stored_params
    found = of_model.limits(
        described, figures, weight_bits=weight_bits, kv_bits=kv_bits, prompt=prompt, stored=stored
    )
    return ModelLimits(
        {
            "model": near.meta.model,
            "device": on.name,
            "compute_dtype": dtype,
            "units": units,
            "weights": None if stored is None else near.meta.weights,
            "kv_dtype": kv_dtype,
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
    from cutedge._sources import has_own_sizes

    sizes = {} if has_own_sizes(str(model)) else {"seq": 16}
    graph, warnings = traced_model(model, overrides, phase="prefill", **sizes)
    return Parameters(graph, break_down(graph), warnings)
