"""What the ops of a graph take on a device: the roofline, or the cycles of a matrix array.

On a device with peaks an op takes ``max(FLOPs / peak, bytes / bandwidth) + launch`` seconds
(Williams, Waterman, Patterson: Roofline, CACM 2009), each op by itself, one after another. A
device that is an array of multipliers runs matrix products alone (``costmodels.arrays``).

A device pages where more lies on it than its secure memory holds: of the bytes that an op touches,
the share that does not fit is moved at the paging rate first. That is an average over a run that
touches everything alike: an estimate. How much lies there depends on what else runs there, so the
ops of a device have seconds without paging (``time_ops``) and seconds for what lies there
(``DeviceTime.holding``).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from costmodels.arrays import GemmCost, Options, gemm_cost
from costmodels.devices import Device
from costmodels.flops import FREE, PRODUCTS, computed_in, numbered
from costmodels.links import Link, round_trip_seconds
from costmodels.memory import MemoryNeed, larger, memory_need
from tracer.errors import CutedgeError
from tracer.graph import FLOATING, Op, OpGraph

Bound = Literal["compute", "memory", "overhead"]


@dataclass(frozen=True, slots=True)
class OpTime:
    """What one op takes on one device."""

    seconds: float | None = None
    """None where the device has no figure for it, or where the op's FLOPs are not known."""
    bound: Bound | None = None
    """What the seconds are spent on most; None for an op that does no work, or without seconds."""
    gemm: GemmCost | None = None
    """Cycles and tiles, on an array of multipliers."""


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What a graph takes on one device, op by op."""

    device: Device
    ops: tuple[OpTime, ...]
    """By op id."""
    need: MemoryNeed
    """Of the whole graph on this device."""
    paged_share: float
    """The share of what lies on the device that its secure memory does not hold."""
    missing: Mapping[str, int]
    """target -> ops that work and have no seconds here: no total includes them."""
    coverage: float
    """Share of the ops that work that have seconds."""
    products_dtype: str | None = None
    """What matrix products are computed in; their own dtype when None."""
    options: Options = field(default_factory=Options)
    """Of an array of multipliers."""

    def holding(self, graph: OpGraph, lying_bytes: int) -> "DeviceTime":
        """The same ops' seconds where so many bytes lie on the device, paging included."""
        paged = paged_share(self.device, lying_bytes)
        if paged == self.paged_share:
            return self
        one = _op_timer(graph, self.device, self.products_dtype, self.options, paged)
        return replace(self, ops=tuple(map(one, graph.ops)), paged_share=paged)

    @property
    def seconds(self) -> float:
        """Of all ops that have them, one after another."""
        return sum(op.seconds or 0.0 for op in self.ops)

    def on_array(self, what: str) -> int | None:
        """A field of ``GemmCost`` summed over the products; None where no array runs any."""
        return sum(getattr(gemm, what) for gemm in self.gemms) if self.gemms else None

    @property
    def gemms(self) -> list[GemmCost]:
        """Of the products that an array of multipliers runs."""
        return [op.gemm for op in self.ops if op.gemm is not None]

    def link_seconds(self, link: Link) -> float | None:
        """What ``link`` takes to bring every product's operands to an array, and its result back.

        An array holds nothing between products. None where a bandwidth of the link is not known.
        """
        taken = [round_trip_seconds(link, g.sent_bytes, g.received_bytes) for g in self.gemms]
        known = [seconds for seconds in taken if seconds is not None]
        return sum(known) if len(known) == len(taken) else None

    @property
    def fits(self) -> bool | None:
        """Whether the device's memory holds what the graph needs: certainly at its peak.

        None where it is not known: the memory of the device, or whether tensors are freed early
        enough for what lies between live and peak.
        """
        size = self.device.memory_bytes
        if size is None or self.need.live_bytes <= size < self.need.peak_bytes:
            return None
        return self.need.peak_bytes <= size


def time_ops(
    graph: OpGraph,
    device: Device,
    *,
    products_dtype: str | None = None,
    options: Options | None = None,
) -> DeviceTime:
    """The seconds of every op of an annotated graph on ``device``, paging left out.

    ``products_dtype`` is what matrix products of floats are computed in (``tfloat32`` on tensor
    cores), their operands' dtype when None; ``options`` are those of an array of multipliers.
    """
    given = options or Options()
    times = tuple(map(_op_timer(graph, device, products_dtype, given, 0.0), graph.ops))
    working = sum(op.kind not in FREE for op in graph.ops)
    missing = Counter(
        op.target for op, time in zip(graph.ops, times, strict=True) if time.seconds is None
    )
    return DeviceTime(
        device,
        times,
        memory_need(graph),
        0.0,
        dict(missing),
        (working - missing.total()) / working if working else 1.0,
        products_dtype,
        given,
    )


def time_graph(graph: OpGraph, device: Device, **options: Any) -> DeviceTime:
    """``time_ops`` where the whole graph lies on the device, paging included."""
    found = time_ops(graph, device, **options)
    return found.holding(graph, found.need.live_bytes)


def paged_share(device: Device, lying_bytes: Any) -> Any:
    """The share of the bytes that lie on a device that its secure memory does not hold.

    0 of a device without secure memory. For an int, or an array of int64.
    """
    secure = device.enclave_bytes
    return 0.0 if secure is None else 1 - secure / larger(lying_bytes, secure)


def _op_timer(
    graph: OpGraph, device: Device, products_dtype: str | None, options: Options, paged: float
) -> Callable[[Op], OpTime]:
    one = (
        _on_array(device, options)
        if device.array
        else _on_roofline(graph, device, products_dtype, paged)
    )
    return lambda op: OpTime(0.0) if op.kind in FREE else one(op)


def _on_array(device: Device, options: Options) -> Callable[[Op], OpTime]:
    def one(op: Op) -> OpTime:
        gemm = op.cost.gemm
        if gemm is None or device.array is None:
            return OpTime()
        cost = gemm_cost(device.array, gemm.m, gemm.k, gemm.n, batch=gemm.batch, options=options)
        return OpTime(cost.seconds, "compute", cost)

    return one


def _on_roofline(
    graph: OpGraph, device: Device, products_dtype: str | None, paged: float
) -> Callable[[Op], OpTime]:
    bandwidth = device.memory_bandwidth_bytes_per_second
    paging = device.paging_bytes_per_second

    def one(op: Op) -> OpTime:
        cost = op.cost
        dtype = computed_in(graph, op)
        if products_dtype and op.kind in PRODUCTS and dtype in FLOATING:
            dtype = products_dtype
        peak = device.peak_flops_per_second.get(dtype or "")
        if cost.flops is None or bandwidth is None or (cost.flops and peak is None):
            return OpTime()
        touched = cost.read_bytes + cost.write_bytes
        compute = cost.flops / (peak * device.efficiency_ratio) if peak else 0.0
        memory = touched / (bandwidth * device.efficiency_ratio)
        if paged and paging:
            memory += touched * paged / paging
        spent: dict[Bound, float] = {
            "compute": compute,
            "memory": memory,
            "overhead": device.launch_seconds,
        }
        bound = max(spent, key=lambda what: spent[what])
        return OpTime(max(compute, memory) + device.launch_seconds, bound)

    return one


class MissingCostError(CutedgeError):
    """A total would leave out ops, and was not to."""


def refuse_missing(time: DeviceTime) -> None:
    """``--strict``: raise MissingCostError naming the ops that have no seconds on the device."""
    if time.missing:
        raise MissingCostError(
            f"{time.device.name} has no cost for {numbered(time.missing)}: take another device, "
            "or leave --strict out"
        )


@dataclass(frozen=True, slots=True)
class Share:
    """Ops that are counted together on one device."""

    name: str
    """The layer, kind or module."""
    ops: int
    """Ops that work."""
    flops: int
    """FLOPs of the ops that have them."""
    traffic_bytes: int
    """Read and written."""
    seconds: float
    """Of those that have seconds."""
    missing_ops: int
    """Ops without seconds."""
    seconds_by_bound: Mapping[str, float]
    """bound -> seconds of the ops that it bounds."""

    @property
    def bound(self) -> str:
        """What bounds most of its seconds; empty where it has no seconds."""
        seconds = self.seconds_by_bound
        return max(seconds, key=lambda bound: seconds[bound], default="")

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte read or written; None where nothing is."""
        return self.flops / self.traffic_bytes if self.traffic_bytes else None


def shares(graph: OpGraph, time: DeviceTime, key: Callable[[Op], str]) -> list[Share]:
    """Sums of the ops that work by ``key``, in the order of their first op."""
    groups: dict[str, list[Op]] = {}
    for op in graph.ops:
        if op.kind not in FREE:
            groups.setdefault(key(op), []).append(op)
    return [_share(name, ops, time) for name, ops in groups.items()]


def _share(name: str, ops: list[Op], time: DeviceTime) -> Share:
    bounds: Counter[str] = Counter()
    for op in ops:
        at = time.ops[op.id]
        if at.bound is not None:
            bounds[at.bound] += at.seconds or 0.0  # type: ignore[assignment]  # seconds add too
    return Share(
        name=name,
        ops=len(ops),
        flops=sum(op.cost.flops or 0 for op in ops),
        traffic_bytes=sum(op.cost.read_bytes + op.cost.write_bytes for op in ops),
        seconds=sum(time.ops[op.id].seconds or 0.0 for op in ops),
        missing_ops=sum(time.ops[op.id].seconds is None for op in ops),
        seconds_by_bound=dict(bounds),
    )
