"""What the ops of a graph take on a device: the roofline, or the cycles of a matrix array.

On a device with peaks an op takes ``max(FLOPs / peak, bytes / bandwidth) + launch`` seconds
(Williams, Waterman, Patterson: Roofline, CACM 2009), each op by itself, one after another. A
device that counts cycles, such as an array of multipliers that runs matrix products alone, takes
what ``costmodels.chip`` says.

An engine (``costmodels.engines``) says what share of those rates its kernels reach and how ops are
started. Its seconds still stand op by op, and their sum is what a run takes. Of a kernel of several
ops each has its part: by FLOPs where computing bounds the kernel, by bytes where moving does. Where
launches run ahead of the work, a run takes the greater of the two: all ops have their launch, and
are bound by ``overhead``, or all have their work. What a step takes beside its ops stands with the
op of kind ``output``. In each case the sum over some of the ops is no more than these take alone.

A device pages where more lies on it than its secure memory holds: of the bytes that an op touches,
the share that does not fit is moved at the paging rate first. That is an average over a run that
touches everything alike: an estimate. How much lies there depends on what else runs there, so the
ops of a device have seconds without paging (``time_ops``) and seconds for what lies there
(``DeviceTime.holding``).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from costmodels.arrays import GemmCost, Options
from costmodels.chip import ChipWork, Shares, chip_time, off_chip_shares, widths_of
from costmodels.devices import Device
from costmodels.engines import PHYSICAL, Engine
from costmodels.experts import routing_of
from costmodels.flops import FREE, PRODUCTS, computed_in, numbered
from costmodels.fused import fused, strides
from costmodels.links import Link, round_trip_seconds
from costmodels.memory import larger, memory_need
from tracer.errors import CutedgeError
from tracer.graph import FLOATING, Kind, Op, OpGraph

if TYPE_CHECKING:
    from costmodels.array_memory import MemoryCost

Bound = Literal["compute", "memory", "sram", "dram", "overhead"]


@dataclass(frozen=True, slots=True)
class OpTime:
    """What one op takes on one device."""

    seconds: float | None = None
    """None where the device has no figure for it, or where the op's FLOPs are not known."""
    bound: Bound | None = None
    """What the seconds are spent on most; None for an op that does no work, or without seconds."""
    gemm: GemmCost | None = None
    """Cycles and tiles, on an array of multipliers."""
    moved_bytes: int = 0
    """Read and written; of an op in a fused kernel its part of what that reads and writes."""
    memory: "MemoryCost | None" = None
    """What the buffers of an array move for a product, where they are known."""


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What a graph takes on one device, op by op."""

    device: Device
    ops: tuple[OpTime, ...]
    """By op id."""
    paged_share: float
    """The share of what lies on the device that its secure memory, or the SRAM of a chip, does not
    hold."""
    missing: Mapping[str, int]
    """target -> ops that work and have no seconds here: no total includes them."""
    coverage: float
    """Share of the ops that work that have seconds."""
    products_dtype: str | None = None
    """What matrix products are computed in; their own dtype when None."""
    options: Options = field(default_factory=Options)
    """Of an array of multipliers."""
    engine: Engine = PHYSICAL
    """How the ops are carried out."""

    @property
    def lacks_launches(self) -> bool:
        """Whether it is not known what starting an op takes here: ops that work take at least their
        seconds."""
        return self.engine.launch(self.device) is None

    def holding(
        self,
        graph: OpGraph,
        lying_bytes: int,
        runs: tuple[Hashable, ...] | None = None,
        here: Iterable[Op] | None = None,
    ) -> "DeviceTime":
        """The same ops' seconds where so many bytes lie on the device, paging included.

        ``runs`` is by op what it runs in, as for ``costmodels.fused``; all in one when left out.
        ``here`` are the ops that run there; all that the device runs when left out.
        """
        paged = paged_share(self.device, lying_bytes)
        if paged == self.paged_share and (runs is None or not self.engine.depends_on_runs):
            return self
        off_chip = (0.0, 0.0)
        if self.device.npu is not None:
            all_ = (op for op in graph.ops if self.device.runs(op.kind.value))
            read = sum(op.cost.param_bytes for op in (all_ if here is None else here))
            off_chip = off_chip_shares(self.device, lying_bytes, read)
        rates = Rates(self.device, self.engine, paged, self.products_dtype, off_chip)
        return replace(self, ops=_op_times(graph, rates, self.options, runs), paged_share=paged)

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


def time_ops(
    graph: OpGraph,
    device: Device,
    *,
    products_dtype: str | None = None,
    options: Options | None = None,
    engine: Engine = PHYSICAL,
) -> DeviceTime:
    """The seconds of every op of an annotated graph on ``device``, paging left out.

    ``products_dtype`` is what matrix products of floats are computed in (``tfloat32`` on tensor
    cores), their operands' dtype when None; ``options`` are those of an array of multipliers;
    ``engine`` is how the ops are carried out.
    """
    given = options or Options()
    times = _op_times(graph, Rates(device, engine, 0.0, products_dtype), given, None)
    working = sum(op.kind not in FREE for op in graph.ops)
    missing = Counter(
        op.target for op, time in zip(graph.ops, times, strict=True) if time.seconds is None
    )
    return DeviceTime(
        device,
        times,
        0.0,
        dict(missing),
        (working - missing.total()) / working if working else 1.0,
        products_dtype,
        given,
        engine,
    )


def time_graph(graph: OpGraph, device: Device, **options: Any) -> DeviceTime:
    """``time_ops`` where the whole graph lies on the device, paging included."""
    found = time_ops(graph, device, **options)
    return found.holding(graph, memory_need(graph).live_bytes)


def paged_share(device: Device, lying_bytes: Any) -> Any:
    """The share of the bytes that lie on a device that its secure memory, or the SRAM of a chip, does
    not hold.

    0 of a device without either. For an int, or an array of int64.
    """
    secure = device.fast_bytes
    return 0.0 if secure is None else 1 - secure / larger(lying_bytes, secure)


@dataclass(frozen=True, slots=True)
class Rates:
    """What kernels take on a device under an engine: for numbers, or for arrays of them."""

    device: Device
    engine: Engine = PHYSICAL
    paged: Any = 0.0
    """The share of what is touched that is paged in first."""
    products_dtype: str | None = None
    """What matrix products of floats are computed in; their own dtype when None."""
    off_chip: Shares = (0.0, 0.0)
    """What the SRAM of a chip does not hold."""

    def dtype_of(self, graph: OpGraph, op: Op) -> str | None:
        """What an op is computed in."""
        dtype = computed_in(graph, op)
        asked = self.products_dtype and op.kind in PRODUCTS and dtype in FLOATING
        return self.products_dtype if asked else dtype

    def compute_seconds(self, dtype: str | None, flops: Any) -> Any:
        """Of FLOPs in a dtype; None where there are any and the device has no peak for it."""
        rate = self.engine.flops_per_second(self.device, dtype or "")
        if rate is not None:
            return flops / rate
        return None if (flops if isinstance(flops, int) else flops.any()) else 0.0

    def memory_seconds(self, moved: Any, *, strided: bool = False) -> Any:
        """Of bytes read and written, by a copy in strides or not; None where the device has no
        bandwidth."""
        rate = self.engine.bytes_per_second(self.device, strided=strided)
        if rate is None:
            return None
        paging = self.device.paging_bytes_per_second
        seconds = moved / rate
        return seconds + moved * self.paged / paging if paging else seconds

    @property
    def launch_seconds(self) -> float:
        """Of an op or kernel, as far as that is known."""
        return self.engine.launch(self.device) or 0.0

    def kernel_seconds(self, *, is_attention: bool) -> float:
        """Of a kernel beside its work, its launch left out."""
        engine = self.engine
        return engine.kernel_seconds + (engine.attention_seconds if is_attention else 0.0)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Ops that start together, and what they do."""

    ops: tuple[int, ...]
    """By their ids."""
    moved: tuple[int, ...]
    """By op: bytes read and written."""
    is_attention: bool
    """Whether it is an attention, in one op or in several."""


def _op_times(
    graph: OpGraph, rates: Rates, options: Options, runs: tuple[Hashable, ...] | None
) -> tuple[OpTime, ...]:
    if rates.device.is_chip:
        one = _on_chip(graph, rates, options)
        return tuple(OpTime(0.0) if op.kind in FREE else one(op) for op in graph.ops)
    times = [OpTime(0.0)] * len(graph.ops)
    if rates.engine.step_seconds:
        times = [
            OpTime(rates.engine.step_seconds, "overhead") if op.kind is Kind.OUTPUT else time
            for op, time in zip(graph.ops, times, strict=True)
        ]
    together: dict[Hashable, list[tuple[Kernel, OpTime]]] = defaultdict(list)
    launch = rates.launch_seconds
    equal: dict[Hashable, list[OpTime]] = {}  # the many equal ones are worked out once
    for kernel in kernels_of(graph, rates.engine, runs):
        ops = [graph.ops[n] for n in kernel.ops]
        work = tuple(
            _OpWork(rates.dtype_of(graph, op), op.cost.flops, moved, strides(graph, op))
            for op, moved in zip(ops, kernel.moved, strict=True)
        )
        if (key := (work, kernel.is_attention)) not in equal:
            equal[key] = _on_roofline(rates, *key, launch)
        for op, time in zip(kernel.ops, equal[key], strict=True):
            times[op] = time
        whole = times[kernel.ops[0]]
        if rates.engine.runs_ahead and whole.seconds is not None:
            together[runs and runs[kernel.ops[0]]].append((kernel, whole))
    for kernels in together.values():
        if launch * len(kernels) >= sum(time.seconds or 0.0 for _, time in kernels):
            for kernel, whole in kernels:
                times[kernel.ops[0]] = replace(whole, seconds=launch, bound="overhead")
    return tuple(times)


def kernels_of(
    graph: OpGraph, engine: Engine, runs: tuple[Hashable, ...] | None = None
) -> Iterator[Kernel]:
    """What an engine starts for a graph, in order; ``runs`` as in ``DeviceTime.holding``."""
    if engine.execution == "fused":
        for group in fused(graph, runs):
            routings = (routing_of(graph, graph.ops[op]) for op in group.ops)
            moved = (
                group.moved(n) + (0 if routing is None else routing.bytes_read)
                for n, routing in enumerate(routings)
            )
            yield Kernel(group.ops, tuple(moved), group.is_attention)
        return
    for op in graph.ops:
        if op.kind not in FREE:
            touched = op.cost.read_bytes + op.cost.write_bytes
            yield Kernel((op.id,), (touched,), op.kind is Kind.ATTENTION)


class _OpWork(NamedTuple):
    """What an op of a kernel does."""

    dtype: str | None
    """That it is computed in."""
    flops: int | None
    """None where there is no formula for it."""
    moved: int
    """Bytes read and written."""
    strided: bool
    """Whether it copies in strides."""


def _on_roofline(
    rates: Rates, work: Sequence[_OpWork], is_attention: bool, launch: float
) -> list[OpTime]:
    """By op its part of the kernel's seconds, launches that run ahead left out."""
    computing: list[float] = []
    moving: list[float] = []
    for one in work:
        compute = None if one.flops is None else rates.compute_seconds(one.dtype, one.flops)
        memory = rates.memory_seconds(one.moved, strided=one.strided)
        if compute is None or memory is None:
            compute, memory = -1.0, -1.0
        computing.append(compute)
        moving.append(memory)
    times = [OpTime(moved_bytes=one.moved) for one in work]
    known = [n for n, compute in enumerate(computing) if compute >= 0]
    compute, memory = (sum(each[n] for n in known) for each in (computing, moving))
    beside = rates.kernel_seconds(is_attention=is_attention)
    if not rates.engine.runs_ahead:
        beside += launch
    spent: dict[Bound, float] = {"compute": compute, "memory": memory, "overhead": beside}
    bound = max(spent, key=lambda what: spent[what])
    longest = max(compute, memory)
    for n in known:
        part = 1.0 if len(known) == 1 else 1 / len(known)
        if longest and len(known) > 1:
            part = (computing[n] if compute >= memory else moving[n]) / longest
        times[n] = replace(times[n], seconds=(longest + beside) * part, bound=bound)
    return times


def _on_chip(graph: OpGraph, rates: Rates, options: Options) -> Callable[[Op], OpTime]:
    launch = rates.launch_seconds
    buffered = rates.device.array_memory is not None

    @cache
    def of(work: ChipWork) -> OpTime:
        taken = chip_time(rates.device, work, options, rates.off_chip)
        if taken is None:
            return OpTime(moved_bytes=work.moved_bytes)
        spent: dict[Bound, float] = dict(taken.spent)  # type: ignore[arg-type]  # its parts are bounds
        spent["overhead"] = launch
        longest = max(spent, key=lambda part: spent[part])
        bound = longest if spent[longest] else None
        return OpTime(taken.seconds + launch, bound, taken.gemm, work.moved_bytes, taken.memory)

    def one(op: Op) -> OpTime:
        cost, gemm = op.cost, op.cost.gemm
        size = None if gemm is None else (gemm.batch, gemm.m, gemm.n, gemm.k)
        widths = widths_of(graph, op) if buffered else None
        moved, dtype = cost.read_bytes + cost.write_bytes, rates.dtype_of(graph, op)
        return of(ChipWork(op.kind, dtype, cost.flops, moved, cost.param_bytes, size, widths))

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
    """Sums of the ops that take time by ``key``, in the order of their first op."""
    groups: dict[str, list[Op]] = {}
    for op in graph.ops:
        if op.kind not in FREE or time.ops[op.id].seconds:
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
        traffic_bytes=sum(time.ops[op.id].moved_bytes for op in ops),
        seconds=sum(time.ops[op.id].seconds or 0.0 for op in ops),
        missing_ops=sum(time.ops[op.id].seconds is None for op in ops),
        seconds_by_bound=dict(bounds),
    )
