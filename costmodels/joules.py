"""What ops take in joules on a device: by operation and byte, or by the time that it is busy.

Of a device with picojoules of operations (``costmodels.energy``) it is what its operations take, and
the bytes that they move. Of one that is known by ``busy_watts`` alone it is that power for as long as
its ops take, less what it draws anyway. What a device draws while it is idle is no part of any op:
``idle_watts`` for as long as a run takes.

- Bytes are those that ops read and write, all of them in the memory: what a processor's caches keep is
  not asked. Of a chip with an SRAM all of them pass that, and from the DRAM comes the share that the
  SRAM does not hold (``chip.off_chip_shares``).
- An array with buffers accesses these and the DRAM as ``costmodels.array_memory`` counts it. Of another
  one each operand comes once, and what its buffers take is not known: ``at_least``.
- Operations of an array are those of its products: all that its fixed tiles hold, padding too, and of
  a systolic array those of the product itself, since nothing passes an idle cell. All other operations
  count as half a multiply-accumulate.
- The registers beside the multipliers of a chip are in no sum without a figure: ``at_least``.

Work is counted in whole numbers first, so that sums do not depend on their order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.arrays import GemmCost, Options
from costmodels.chip import PARTS_OF_A_BIT, Shares, Widths, buffers_of, off_chip_shares, widths_of
from costmodels.devices import Device
from costmodels.energy import EnergyFigures, register_bytes, sram_picojoules_per_byte
from costmodels.flops import FREE
from costmodels.memory import memory_need
from costmodels.roofline import DeviceTime, Rates
from tracer.graph import OpGraph

_PARTS_OF_A_BYTE = 8 * PARTS_OF_A_BIT


@dataclass(frozen=True, slots=True)
class EnergyWork:
    """What ops do on a device, together: whole numbers, or arrays of them."""

    flops: Mapping[str, Any]
    """By dtype; of the products on an array those that it carries out, two for each
    multiply-accumulate."""
    moved_bytes: Any = 0
    """To and from memory, but for what passes the buffers of an array."""
    param_bytes: Any = 0
    """Those of them that are weights and other state."""
    buffers: tuple[Any, Any, Any] = (0, 0, 0)
    """What is read and written of an array's buffers for the left operand, the right one and the
    result, in parts of a bit."""
    outside: Any = 0
    """What these take from the DRAM and bring there, in parts of a bit."""
    unknown: bool = False
    """Whether some of it is not known."""

    def at(self, rows: Any) -> "EnergyWork":
        """At some of the sizes that its arrays are of."""

        def some(number: Any) -> Any:
            return number if isinstance(number, int) else number[rows]

        left, right, result = map(some, self.buffers)
        return EnergyWork(
            {dtype: some(number) for dtype, number in self.flops.items()},
            some(self.moved_bytes),
            some(self.param_bytes),
            (left, right, result),
            some(self.outside),
            self.unknown,
        )

    @property
    def is_nothing(self) -> bool:
        """Whether there is no op in it that works."""
        whole = isinstance(self.moved_bytes, int) and isinstance(self.outside, int)
        return whole and not (self.moved_bytes or self.outside or self.flops or self.unknown)


def summed(each: Iterable[tuple[int, EnergyWork]]) -> EnergyWork:
    """Work of several sorts together, each so often."""
    flops: dict[str, Any] = {}
    sums: list[Any] = [0] * 6
    unknown = False
    for count, work in each:
        for dtype, number in work.flops.items():
            flops[dtype] = flops.get(dtype, 0) + count * number
        parts = (work.moved_bytes, work.param_bytes, work.outside, *work.buffers)
        sums = [total + count * part for total, part in zip(sums, parts, strict=True)]
        unknown |= work.unknown
    moved, param, outside, *buffers = sums
    left, right, result = buffers
    return EnergyWork(flops, moved, param, (left, right, result), outside, unknown)


def work_of(
    device: Device,
    options: Options,
    dtype: str | None,
    flops: Any,
    moved_bytes: Any,
    param_bytes: Any = 0,
    gemm: GemmCost | None = None,
    memory: Any = None,
    widths: Widths | None = None,
) -> EnergyWork:
    """What an op does on a device that runs it.

    ``gemm`` and ``memory`` are what it is on an array of multipliers and in its buffers, for elements
    of some ``widths``. ``flops`` are None where they are not known. In int8 an array without buffers
    moves a byte for each element.
    """
    if device.array is None or gemm is None:
        known = {} if flops is None or dtype is None else {dtype: flops}
        return EnergyWork(known, moved_bytes, param_bytes, unknown=flops is None)
    fixed = device.array.dataflow == "fixed"
    macs = gemm.padded_macs if fixed else gemm.useful_macs
    done = {"int8" if options.int8_speedup is not None else dtype or "": 2 * macs}
    if memory is None or device.array_memory is None or widths is None:
        if options.int8_speedup is not None:
            return EnergyWork(done, gemm.sent_bytes + gemm.received_bytes)
        return EnergyWork(done, moved_bytes, param_bytes)
    each = buffers_of(device.array_memory, widths, device.array.clock_hertz).width
    crossed = {one: memory.dram_reads[one] + memory.dram_writes[one] for one in each}
    left, right, result = (
        width * (memory.sram_reads[one] + memory.sram_writes[one] + crossed[one])
        for one, width in each.items()
    )
    outside = sum(width * crossed[one] for one, width in each.items())
    return EnergyWork(done, buffers=(left, right, result), outside=outside)


def ops_work(graph: OpGraph, time: DeviceTime, ops: Iterable[int]) -> EnergyWork:
    """What ops of an annotated graph do on a device, together."""
    return summed((1, one) for one in _each(graph, time, ops))


def _each(graph: OpGraph, time: DeviceTime, ops: Iterable[int]) -> Iterator[EnergyWork]:
    rates = Rates(time.device, products_dtype=time.products_dtype)
    for number in ops:
        op = graph.ops[number]
        if op.kind in FREE or op.is_view:
            continue
        at, dtype = time.ops[number], rates.dtype_of(graph, op)
        if time.device.is_chip and at.seconds is None:  # it does not run there
            yield EnergyWork({}, unknown=True)
            continue
        widths = None if at.memory is None else widths_of(graph, op)
        done = op.cost.flops, at.moved_bytes, op.cost.param_bytes, at.gemm, at.memory, widths
        yield work_of(time.device, time.options, dtype, *done)


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy, and whether something of it is not known."""

    value: Any
    """None where nothing is known."""
    at_least: bool
    """Whether the value leaves out what is not known."""


UNKNOWN = Joules(None, at_least=True)


def by_operation(figures: EnergyFigures) -> bool:
    """Whether the figures are of operations; else what is known of them is power at most."""
    return bool(figures.mac_picojoules or figures.multiply_picojoules)


def work_joules(
    device: Device,
    options: Options,
    work: EnergyWork,
    seconds: Any,
    *,
    late: bool = False,
    off_chip: Shares = (0.0, 0.0),
) -> Joules:
    """What work takes on a device beside what it draws anyway.

    ``seconds`` are how long it takes, None where that is not known; ``late`` says that they leave
    something out. ``off_chip`` are the shares that an SRAM does not hold. An array skips the share of
    multiplications that its sparsity says.

    >>> from costmodels.devices import load_device
    >>> chip = load_device("chip-8x8")
    >>> found = work_joules(chip, Options(), EnergyWork({"float32": 2_000_000}), None)
    >>> round(found.value * 1e6, 6), found.at_least
    (4.6, True)
    """
    figures = device.energy
    if figures is None or (device.is_chip and work.unknown):
        return UNKNOWN
    if not by_operation(figures):
        if figures.busy_watts is None or seconds is None:
            return UNKNOWN
        return Joules((figures.busy_watts - (figures.idle_watts or 0.0)) * seconds, late)
    if work.is_nothing:
        return Joules(0.0, at_least=False)
    terms = [_of_memory(device, figures, work, off_chip), *_of_buffers(device, figures, work)]
    for dtype, flops in sorted(work.flops.items()):
        if not (flops if isinstance(flops, int) else flops.any()):
            continue
        macs = flops * ((1 - options.sparsity) / 2)
        mac, register = figures.mac(dtype), figures.register_picojoules_per_byte
        terms.append(None if mac is None else macs * mac)
        if device.is_chip:
            terms.append(None if register is None else macs * (register_bytes(dtype) * register))
    known = [term for term in terms if term is not None]
    if not known:
        return UNKNOWN
    total: Any = sum(known[1:], known[0])
    return Joules(total * 1e-12, work.unknown or len(known) < len(terms))


def _of_memory(device: Device, figures: EnergyFigures, work: EnergyWork, off_chip: Shares) -> Any:
    """Picojoules of what comes from the DRAM, or from a processor's memory; None where not known."""
    a_byte, npu = figures.dram_picojoules_per_byte, device.npu
    if a_byte is None:
        return None
    moved: Any = work.moved_bytes
    if npu is not None and npu.sram_bytes is not None:
        weights, others = off_chip
        rest = work.moved_bytes - work.param_bytes
        moved = work.param_bytes * weights + rest * others
    return (moved + work.outside / _PARTS_OF_A_BYTE) * a_byte


def _of_buffers(device: Device, figures: EnergyFigures, work: EnergyWork) -> Iterator[Any]:
    """Picojoules of each memory on the chip; None of one that is not known."""
    npu, buffers = device.npu, device.array_memory
    if npu is not None and npu.sram_bytes is not None:
        a_byte = sram_picojoules_per_byte(figures, npu.sram_bytes / 1024)
        yield None if a_byte is None else work.moved_bytes * a_byte
    if buffers is not None:
        sizes = buffers.sram_ifmap_bytes, buffers.sram_filter_bytes, buffers.sram_ofmap_bytes
        for size, accessed in zip(sizes, work.buffers, strict=True):
            a_byte = sram_picojoules_per_byte(figures, size / 1024)
            yield None if a_byte is None else accessed / _PARTS_OF_A_BYTE * a_byte
    elif device.array is not None and npu is None:
        yield None


def off_chip_of(graph: OpGraph, time: DeviceTime) -> Shares:
    """What the SRAM of a chip does not hold where a whole graph lies there (``time_graph``)."""
    if time.device.npu is None or not time.paged_share:
        return 0.0, 0.0
    there = (op for op in graph.ops if time.device.runs(op.kind.value))
    read = sum(op.cost.param_bytes for op in there)
    return off_chip_shares(time.device, memory_need(graph).live_bytes, read)


def op_joules(
    graph: OpGraph,
    time: DeviceTime,
    op: int,
    beside: Iterable[int] = (),
    off_chip: Shares = (0.0, 0.0),
) -> Joules:
    """What an op takes on a device beside what that draws anyway, with ops done for it there."""
    ops = (op, *beside)
    taken = [time.ops[one].seconds for one in ops]
    known = [seconds for seconds in taken if seconds is not None]
    seconds = sum(known) if len(known) == len(taken) else None
    late = time.lacks_launches and graph.ops[op].kind not in FREE
    work = ops_work(graph, time, ops)
    return work_joules(time.device, time.options, work, seconds, late=late, off_chip=off_chip)


def with_idle(
    device: Device, taken: Joules, seconds: float | None, *, late: bool = False
) -> Joules:
    """The same with what the device draws anyway for so many seconds."""
    figures = device.energy
    if figures is None or taken.value is None:
        return taken
    if figures.idle_watts is None:  # where it is known, it is taken off the power of a busy device
        return Joules(taken.value, taken.at_least or by_operation(figures))
    if seconds is None:
        return Joules(taken.value, at_least=True)
    return Joules(taken.value + figures.idle_watts * seconds, taken.at_least or late)


def device_joules(graph: OpGraph, time: DeviceTime) -> Joules:
    """What all ops of a graph take on a device, one after another, and what it draws meanwhile."""
    able = [op for op, at in enumerate(time.ops) if at.seconds is not None]
    work, late, device = ops_work(graph, time, able), time.lacks_launches, time.device
    shares = off_chip_of(graph, time)
    taken = work_joules(device, time.options, work, time.seconds, late=late, off_chip=shares)
    return with_idle(device, taken, time.seconds, late=late)
