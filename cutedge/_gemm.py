"""What one matrix product costs on an array of multipliers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Any

from costmodels import CountAs, Dataflow, Overlap
from costmodels.arrays import GemmCost, Options, gemm_cost
from costmodels.devices import Array, Device, load_device
from costmodels.energy import Picojoules, array_picojoules, product_picojoules
from costmodels.joules import by_operation
from costmodels.links import load_link, round_trip_seconds
from tracer.errors import InputError, choose
from tracer.graph import ITEM_BYTES

if TYPE_CHECKING:
    from costmodels.array_memory import Buffers, MemoryCost

_MEMORY = ("stall_cycles", "dram_cycles", "sram_reads", "sram_writes", "dram_reads", "dram_writes")
"""The figures of a product's memory."""


@dataclass(frozen=True, slots=True)
class ProductCost:
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
    memory: "MemoryCost | None"
    """What moves through its buffers; None where none were given."""
    link_seconds: float | None
    """Of the operands and the result over the device's host link; None where it is not known."""
    picojoules: Picojoules | None
    """By level, beside what the device draws anyway; None where it has no figures of operations."""

    @property
    def run_seconds(self) -> float | None:
        """Starting, moving and computing, one after another."""
        if self.link_seconds is None:
            return None
        return float(self._launch + self._seconds + self.link_seconds)

    @property
    def overlapped_seconds(self) -> float | None:
        """Moving and computing at once, at best, once it has started."""
        if self.link_seconds is None:
            return None
        return float(self._launch + max(self._seconds, self.link_seconds))

    @property
    def double_buffered_cycles(self) -> int | None:
        """What its tiles would take double-buffered, options included; None where it is not known
        what their cycles hold."""
        if self.array.phases is None:
            return None
        m, k, n, batch = self.sizes
        options = replace(self.options, pipeline_depth=1)
        how: Any = {"batch": batch, "options": options, "overlap": "double-buffered"}
        return int(gemm_cost(self.array, m, k, n, **how).cycles)

    @property
    def total_cycles(self) -> int | None:
        """Computing and waiting for the DRAM; None without buffers."""
        return None if self.memory is None else int(self.cost.cycles + self.memory.stall_cycles)

    @property
    def bound(self) -> str | None:
        """What takes longer, computing or the DRAM; None without buffers."""
        if self.memory is None:
            return None
        return "dram" if self.memory.dram_cycles > self.cost.cycles else "compute"

    @property
    def _seconds(self) -> float:
        """Of the cycles, those of waiting too."""
        cycles = self.cost.cycles if self.total_cycles is None else self.total_cycles
        return float(cycles / self.array.clock_hertz)

    @property
    def _launch(self) -> float:
        return self.device.launch_seconds or 0.0

    @property
    def left_out(self) -> tuple[str, ...]:
        """What its seconds leave out since it is not known: with any of it they are at least so
        many."""
        device, host_link = self.device, self.device.host_link
        link = load_link(host_link) if host_link and self.link_seconds is not None else None
        late = link is not None and any(link.at_least(way) for way in ("send", "receive"))
        return (
            *([f"the launch time of {device.name}"] if device.launch_seconds is None else []),
            *([f"the latency of {host_link}"] if late else []),
        )

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
            "double_buffered_cycles": self.double_buffered_cycles,
            "total_cycles": self.total_cycles,
            "bound": self.bound,
            **{name: self.memory and getattr(self.memory, name) for name in _MEMORY},
            "link_seconds": self.link_seconds,
            "run_seconds": self.run_seconds,
            "overlapped_seconds": self.overlapped_seconds,
            "at_least": bool(self.left_out),
            "left_out": list(self.left_out),
            "picojoules": self.picojoules and asdict(self.picojoules),
            "joules": self.picojoules and float(1e-12 * self.picojoules.total),
            "energy_at_least": self.picojoules is not None and self.picojoules.at_least,
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
    sram_kib: str | Sequence[float] | None = None,
    dram_words_per_cycle: float | None = None,
    arrays: int | None = None,
    **options: Any,
) -> ProductCost:
    """Cost one matrix product [m, k] x [k, n] on an array: tiles, cycles, seconds, utilisation.

    ``mode``, ``rows`` and ``cols`` are another dataflow and size than the device's, ``arrays`` how
    many of them share the product (``costmodels.arrays.split_over``); ``count`` and ``overlap`` say
    how a systolic array's cycles are counted; ``dtype`` is that of the elements on the host link and
    in the buffers; ``options`` are the options of arrays.

    ``sram_kib`` are the KiB of the buffers for the left operand, the right one and the result
    (``"64,64,64"``, or three numbers), which a DRAM fills and empties at so many words (elements) a
    cycle: then the cycles that the array waits and what moves are known too
    (``costmodels.array_memory``). Their counts are physical unless ``count`` is "scalesim": then
    they are those of SCALE-Sim, whose words are bytes.

    Raises InputError for a device without an array, and for buffers of one that has none.

    >>> import cutedge
    >>> cutedge.gemm(32, 64, 64).cost.tiles
    256
    """
    choose(dtype, tuple(ITEM_BYTES), "--dtype")
    chosen = load_device(device)
    array = array_of(chosen, mode, rows, cols, arrays)
    systolic = array.dataflow != "fixed"
    if not systolic and (count or (overlap and array.phases is None)):
        raise InputError(
            "--count is of systolic arrays (--mode os, ws or is), and --overlap of these and of tiles "
            "whose file says what their cycles hold (tile_load_cycles ...)"
        )
    faster = Options(**options)
    counted, overlapped = count or "scalesim", overlap or "none"
    cost = gemm_cost(
        array,
        m,
        k,
        n,
        batch=batch,
        options=faster,
        count=counted,
        overlap=overlapped,
        element_bytes=ITEM_BYTES[dtype],
    )
    memory, word_bytes = None, 1 if count == "scalesim" else ITEM_BYTES[dtype]
    if sram_kib is not None or dram_words_per_cycle is not None:
        from costmodels.array_memory import memory_cost  # and numpy with it

        memory = memory_cost(
            array,
            _buffers(sram_kib, dram_words_per_cycle, word_bytes, faster),
            m,
            k,
            n,
            batch=batch,
            count=count or "true",
            overlap=overlapped,
        )
    link = chosen.host_link and load_link(chosen.host_link)
    seconds = (
        round_trip_seconds(link, int(cost.sent_bytes), int(cost.received_bytes)) if link else None
    )
    return ProductCost(
        chosen,
        array,
        (m, k, n, batch),
        counted if systolic else None,
        overlapped if systolic or overlap else None,
        faster,
        cost,
        memory,
        seconds,
        _picojoules(chosen, array, faster, dtype, cost, memory, sram_kib, word_bytes),
    )


def _picojoules(
    device: Device,
    array: Array,
    options: Options,
    dtype: str,
    cost: GemmCost,
    memory: "MemoryCost | None",
    sram_kib: str | Sequence[float] | None,
    word_bytes: int,
) -> Picojoules | None:
    """What a product takes in energy: without buffers, whose energy is not known then, each operand
    and the result crosses the DRAM once."""
    figures, dtype = device.energy, "int8" if options.int8_speedup is not None else dtype
    if figures is None or not by_operation(figures):
        return None
    macs = cost.padded_macs if array.dataflow == "fixed" else cost.useful_macs
    macs = macs * (1 - options.sparsity)
    if memory is None or sram_kib is None:
        moved = cost.sent_bytes + cost.received_bytes
        return array_picojoules(figures, dtype, macs, {"buffers": None}, {"buffers": None}, moved)
    sizes = map(float, kib_of(sram_kib))
    kib: dict[str, float] = dict(zip(memory.sram_reads, sizes, strict=True))
    return product_picojoules(figures, dtype, macs, memory, kib, word_bytes)


def _buffers(
    sram_kib: str | Sequence[float] | None,
    words_per_cycle: float | None,
    word_bytes: int,
    options: Options,
) -> "Buffers":
    """The memories that a user gives. Raises InputError where one is missing or is none."""
    if sram_kib is None or words_per_cycle is None:
        raise InputError(
            "--sram-kib and --dram-words-per-cycle go together: buffers, and what fills them"
        )
    if options.text:
        raise InputError(
            f"buffers are counted of one array without {options.text}: leave these out"
        )
    from costmodels.array_memory import MOST_WORDS, Buffers

    left, right, result = (int(kib * 1024 / word_bytes) for kib in kib_of(sram_kib))
    if not isfinite(words_per_cycle):
        raise InputError(f"--dram-words-per-cycle {words_per_cycle} is no number")
    bandwidth = Fraction(str(words_per_cycle)).limit_denominator(MOST_WORDS)
    return Buffers(left, right, result, bandwidth)


def kib_of(sram_kib: str | Sequence[float]) -> tuple[Fraction, Fraction, Fraction]:
    """The KiB of the three buffers that a user gives. Raises InputError for what is not that."""
    given = sram_kib.split(",") if isinstance(sram_kib, str) else [*sram_kib]
    try:
        left, right, result = (Fraction(str(kib)) for kib in given)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"--sram-kib {sram_kib}: three numbers, for the left operand, the right one and the "
            "result, like 64,64,64"
        ) from None
    return left, right, result


def array_of(
    device: Device,
    mode: Dataflow | None,
    rows: int | None,
    cols: int | None,
    arrays: int | None = None,
) -> Array:
    """The device's array, or one of another dataflow, size or number at its clock.

    Raises InputError where it has none, and for fixed tiles of another size.
    """
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
        return replace(array, arrays=arrays or array.arrays)
    return Array(
        flow,
        rows or array.rows,
        cols or array.columns,
        depth=None,
        tile_cycles=None,
        clock_hertz=array.clock_hertz,
        arrays=arrays or array.arrays,
    )
