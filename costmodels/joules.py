"""What ops take in joules on a device: by operation and byte, or by the time that it is busy.

Of a device with picojoules of operations (``costmodels.energy``) it is what its operations take and
the bytes that they move to and from memory. Of one that is known by ``busy_watts`` alone it is that
power for as long as its ops take, less what it draws anyway. What a device draws while it is idle is
no part of any op: ``idle_watts`` for as long as a run takes.

Operations of an array are those of its products: all that its fixed tiles hold, padding too, and of
a systolic array those of the product itself, since nothing passes an idle cell. What its buffers and
registers take is not known here, nor what the caches of a processor do: ``at_least``.

Work is counted in whole numbers first, so that sums do not depend on their order.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.arrays import GemmCost, Options
from costmodels.devices import Device
from costmodels.energy import EnergyFigures
from costmodels.flops import FREE
from costmodels.roofline import DeviceTime, Rates
from tracer.graph import OpGraph


@dataclass(frozen=True, slots=True)
class Work:
    """What ops do on a device, together: numbers, or arrays of them."""

    flops: Mapping[str, Any]
    """By dtype, whole; of the products on an array those that it carries out, two for each
    multiply-accumulate."""
    moved_bytes: Any
    """To and from memory, whole."""
    unknown: bool = False
    """Whether some of them have FLOPs that are not known."""


def work_of(
    device: Device,
    options: Options,
    dtype: str | None,
    flops: Any,
    moved_bytes: Any,
    gemm: GemmCost | None,
) -> Work:
    """What an op does on a device; ``gemm`` is what it is on an array of multipliers.

    ``flops`` are None where they are not known. In int8 the array moves a byte for each element.
    """
    if device.array is None:
        known = {} if flops is None or dtype is None else {dtype: flops}
        return Work(known, moved_bytes, flops is None)
    if gemm is None:
        return Work({}, moved_bytes, unknown=True)
    macs = gemm.padded_macs if device.array.dataflow == "fixed" else gemm.useful_macs
    if options.int8_speedup is None:
        return Work({dtype or "": 2 * macs}, moved_bytes)
    return Work({"int8": 2 * macs}, gemm.sent_bytes + gemm.received_bytes)


def ops_work(graph: OpGraph, time: DeviceTime, ops: Iterable[int]) -> Work:
    """What ops of an annotated graph do on a device, together."""
    rates = Rates(time.device, products_dtype=time.products_dtype)
    flops: Counter[str] = Counter()
    moved, unknown = 0, False
    for number in ops:
        op = graph.ops[number]
        if op.kind in FREE or op.is_view:
            continue
        at, dtype = time.ops[number], rates.dtype_of(graph, op)
        one = work_of(time.device, time.options, dtype, op.cost.flops, at.moved_bytes, at.gemm)
        flops.update(one.flops)
        moved, unknown = moved + one.moved_bytes, unknown | one.unknown
    return Work(flops, moved, unknown)


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
    device: Device, options: Options, work: Work, seconds: Any, *, late: bool = False
) -> Joules:
    """What work takes on a device beside what it draws anyway.

    ``seconds`` are how long it takes, None where that is not known; ``late`` says that they leave
    something out. An array skips the share of multiplications that its sparsity says.

    >>> from costmodels.devices import load_device
    >>> chip = load_device("chip-8x8")
    >>> work_joules(chip, Options(), Work({"float32": 2_000_000}, 0), None)
    Joules(value=4.6e-06, at_least=True)
    """
    figures = device.energy
    if figures is None:
        return UNKNOWN
    if not by_operation(figures):
        if figures.busy_watts is None or seconds is None:
            return UNKNOWN
        return Joules((figures.busy_watts - (figures.idle_watts or 0.0)) * seconds, late)
    picojoules: Any = 0.0
    at_least = work.unknown or device.array is not None
    known = isinstance(work.moved_bytes, int) and work == Work({}, 0)
    for dtype, flops in sorted(work.flops.items()):
        if not (flops if isinstance(flops, int) else flops.any()):
            continue
        mac = figures.mac(dtype)
        if mac is None:
            at_least = True
        else:
            picojoules = picojoules + flops * (mac * (1 - options.sparsity) / 2)
            known = True
    if figures.dram_picojoules_per_byte is None:
        at_least = True
    else:
        picojoules = picojoules + work.moved_bytes * figures.dram_picojoules_per_byte
        known = True
    if device.array is not None and work.unknown:  # an op that it cannot run
        known = False
    return Joules(picojoules * 1e-12, at_least) if known else UNKNOWN


def op_joules(graph: OpGraph, time: DeviceTime, op: int, beside: Iterable[int] = ()) -> Joules:
    """What an op takes on a device beside what that draws anyway, with ops done for it there."""
    ops = (op, *beside)
    taken = [time.ops[one].seconds for one in ops]
    known = [seconds for seconds in taken if seconds is not None]
    seconds = sum(known) if len(known) == len(taken) else None
    late = time.lacks_launches and graph.ops[op].kind not in FREE
    return work_joules(time.device, time.options, ops_work(graph, time, ops), seconds, late=late)


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
    taken = work_joules(
        time.device,
        time.options,
        ops_work(graph, time, able),
        time.seconds,
        late=time.lacks_launches,
    )
    return with_idle(time.device, taken, time.seconds, late=time.lacks_launches)
