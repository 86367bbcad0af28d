"""What an op takes on a chip that counts cycles: an array, a unit for the rest, SRAM and DRAM.

A matrix product takes the cycles of the array (``costmodels.arrays``), or its multiply-accumulates
over those that the chip does in a cycle. Everything else takes its FLOPs over the operations of the
vector unit in a cycle; what computes nothing, such as a copy, is moved alone, and so is what a chip
is said to run at a rate that is not known. Meanwhile the bytes
that the op reads and writes pass the SRAM, and their share that is not there comes from the DRAM,
or goes there. An op takes as long as what takes longest of it: compute, sram or dram.

How much is not in the SRAM (``off_chip_shares``): of all that lies on the chip at most at a time
(weights, and activations while they are needed) what is more than it holds. First it is weights, the
same share of each: what has no room comes once in a run. Where these are not enough, it is
activations too, the same share of each time that one is touched. Both are averages over the run: an
estimate. An engine brings it in transfers of at most half of the SRAM, and each takes its set-up.

An array with buffers of its own (``Device.array_memory``) waits for them in its products instead,
as ``costmodels.array_memory`` counts it, with each operand in its own width.

Sizes may be ints or arrays of int64: the rules are one for ``roofline`` and for ``many``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from costmodels.arrays import Count, GemmCost, Options, Ratio, gemm_cost
from costmodels.devices import ArrayMemory, Device
from costmodels.flops import PRODUCTS
from costmodels.memory import larger
from tracer.graph import ITEM_BYTES, Kind, Op, OpGraph, Tensor

if TYPE_CHECKING:
    from costmodels.array_memory import Buffers, MemoryCost

Part = Literal["compute", "sram", "dram"]
"""What a chip does at once."""

PARTS_OF_A_BIT = 16
"""Widths are whole numbers of such parts: formats with scales have 4.5 bits a weight, or 6.5625."""

Widths = tuple[int, int, int]
"""Of an element of the left operand, the right one and the result, in parts of a bit."""


@dataclass(frozen=True, slots=True)
class ChipWork:
    """What an op does, or what equal ops do at as many sizes as the arrays have entries."""

    kind: Kind
    """Its kind."""
    dtype: str | None
    """That it computes in."""
    flops: Count | None
    """None where there is no formula for it."""
    moved_bytes: Count
    """Read and written."""
    param_bytes: Count = 0
    """Those of them that are weights and other state."""
    gemm: tuple[Count, Count, Count, Count] | None = None
    """(batch, m, n, k) of a matrix product."""
    widths: Widths | None = None
    """Of its operands, where they are known."""


@dataclass(frozen=True, slots=True)
class ChipTime:
    """What an op takes on a chip, starting it left out."""

    seconds: Ratio
    """Until all its parts are done."""
    spent: Mapping[Part, Ratio]
    """What each part takes by itself."""
    gemm: GemmCost | None = None
    """Cycles and tiles, of a product on an array."""
    memory: "MemoryCost | None" = None
    """What the buffers of the array move for it, and how long it waits for them."""


Shares = tuple[Ratio, Ratio]
"""Of weights, and of all else: what of it the SRAM does not hold."""


def off_chip_shares(device: Device, lying_bytes: Count, weight_bytes: Count) -> Shares:
    """What the SRAM of a chip does not hold where so many bytes lie there, and its ops read so many
    bytes of weights.

    >>> from costmodels.devices import load_device
    >>> coral = load_device("coral-usb")  # 8 MiB
    >>> off_chip_shares(coral, 10 * 2**20, 8 * 2**20), off_chip_shares(coral, 2**20, 2**20)
    ((0.25, 0.0), (0.0, 0.0))
    """
    if device.npu is None or device.npu.sram_bytes is None:
        return 1.0, 1.0
    beyond = larger(lying_bytes - device.npu.sram_bytes, 0)
    more = larger(beyond - weight_bytes, 0)
    others = larger(lying_bytes - weight_bytes, 1)
    share = more / larger(others, more)
    return (beyond - more) / larger(weight_bytes, 1), share


def chip_time(
    device: Device, work: ChipWork, options: Options, off_chip: Shares = (0.0, 0.0)
) -> ChipTime | None:
    """What an op takes on a chip; None where it does not run there, or its FLOPs are not known."""
    array, npu = device.array, device.npu
    if not device.runs(work.kind.value):
        return None
    cost, spent = None, dict[Part, Ratio]()
    if array is not None and work.gemm is not None:
        batch, m, n, k = work.gemm
        cost = gemm_cost(array, m, k, n, batch=batch, options=options)
        if device.array_memory is not None:
            return _with_buffers(device, work, cost)
        spent["compute"] = cost.seconds
    elif npu is not None:
        seconds = _computing(device, work)
        if seconds is None:
            return None
        spent["compute"] = seconds
    else:
        return None
    if npu is not None:
        if npu.sram_bytes_per_second is not None:
            spent["sram"] = work.moved_bytes / npu.sram_bytes_per_second
        rate = npu.moved_bytes_per_second
        if rate is not None:
            weights, others = (1.0, 1.0) if npu.sram_bytes is None else off_chip
            rest = work.moved_bytes - work.param_bytes
            outside = work.param_bytes * weights + rest * others
            pieces = (outside > 0) * 1
            if npu.sram_bytes is not None:
                pieces = -(-outside // max(npu.sram_bytes // 2, 1))
            spent["dram"] = outside / rate + pieces * (npu.dma_setup_cycles / npu.clock_hertz)
    longest: Ratio = 0.0
    for each in spent.values():
        longest = longest * (longest >= each) + each * (each > longest)  # exact, also of arrays
    return ChipTime(longest, spent, cost)


def _computing(device: Device, work: ChipWork) -> Ratio | None:
    """Of a chip's units beside an array; None where they do not compute it."""
    npu = device.npu
    assert npu is not None
    if work.flops is None:
        return None
    product = work.kind in PRODUCTS
    rates = npu.macs_per_cycle if product else npu.vector_operations_per_cycle
    rate = rates.get(work.dtype or "")
    if rate is None:
        idle = work.flops == 0 if isinstance(work.flops, int) else not work.flops.any()
        unknown = not product and npu.kinds is not None and not rates
        return 0.0 * work.moved_bytes if idle or unknown else None
    return work.flops / (rate * (2 if product else 1) * npu.clock_hertz)


def _with_buffers(device: Device, work: ChipWork, cost: GemmCost) -> ChipTime:
    from costmodels.array_memory import memory_cost  # and numpy with it

    array, memory = device.array, device.array_memory
    assert array is not None
    assert memory is not None
    assert work.gemm is not None
    batch, m, n, k = work.gemm
    widths = work.widths or (8 * ITEM_BYTES.get(work.dtype or "", 4) * PARTS_OF_A_BIT,) * 3
    moved = memory_cost(array, buffers_of(memory, widths, array.clock_hertz), m, k, n, batch=batch)
    clock = array.clock_hertz
    return ChipTime(
        (cost.cycles + moved.stall_cycles) / clock,
        {"compute": cost.seconds, "dram": moved.dram_cycles / clock},
        cost,
        moved,
    )


@lru_cache(maxsize=64)
def buffers_of(memory: ArrayMemory, widths: Widths, clock_hertz: float) -> "Buffers":
    """The buffers of a device's array for elements of some widths; the DRAM's words are parts of a
    bit.

    >>> half = ArrayMemory(1024, 1024, 1024, 4e8, accumulator_bytes=4)
    >>> buffers = buffers_of(half, (128, 72, 128), 1e8)  # int8, weights of 4.5 bits
    >>> buffers.ifmap_words, buffers.filter_words, buffers.ofmap_words
    (1024, 1820, 256)
    """
    from costmodels.array_memory import MOST_WORDS, Buffers

    left, right, result = widths
    if memory.accumulator_bytes is not None:
        result = max(result, 8 * memory.accumulator_bytes * PARTS_OF_A_BIT)
    each = left, right, result
    ifmap, filter_, ofmap = (
        8 * PARTS_OF_A_BIT * size // width
        for size, width in zip(
            (memory.sram_ifmap_bytes, memory.sram_filter_bytes, memory.sram_ofmap_bytes),
            each,
            strict=True,
        )
    )
    rate = Fraction(8 * PARTS_OF_A_BIT * memory.dram_bytes_per_second / clock_hertz)
    return Buffers(ifmap, filter_, ofmap, rate.limit_denominator(MOST_WORDS), each)


def widths_of(graph: OpGraph, op: Op) -> Widths | None:
    """The widths of a product's operands and result; None of another op.

    Of weights in a format what an element takes there on average, rounded up to a part of a bit.
    """
    if op.cost.gemm is None:
        return None
    operands = [tensor for tensor in graph.inputs(op.id) if len(tensor.shape) > 1]
    left, right = (
        (operands or [*graph.inputs(op.id)])[:1] * 2 if len(operands) < 2 else operands[-2:]
    )
    return _width(left), _width(right), _width(graph.outputs(op.id)[0])


def _width(tensor: Tensor) -> int:
    if not tensor.is_packed or not tensor.numel:
        return 8 * ITEM_BYTES[tensor.dtype] * PARTS_OF_A_BIT
    return max(-(-8 * PARTS_OF_A_BIT * tensor.bytes // tensor.numel), 1)
