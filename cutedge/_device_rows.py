"""The rows of tables about devices and single products, as texts: apart, since they load little."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from costmodels.devices import ALL_FIGURES, NPU_RATES, PEAK, Array, Device, Npu
from tracer.words import human, joules

if TYPE_CHECKING:
    from cutedge._gemm import ProductCost

Rows = list[tuple[str, ...]]


def processor_row(device: Device, dtypes: Iterable[str]) -> list[str]:
    """What ``devices`` says of one with peaks, in so many dtypes."""
    peaks = device.peak_flops_per_second
    known = [(dtype, peaks[dtype]) if dtype in peaks else None for dtype in dtypes]
    return [
        device.name,
        "yes" if device.trusted else "no",
        *("" if one is None else f"{one[1] / 1e12:.6g}" for one in known),
        f"{(device.memory_bandwidth_bytes_per_second or 0) / 1e9:g}",
        human(device.memory_bytes) if device.memory_bytes else "",
        *("" if one is None else f"{device.ridge(one[0]):.1f}" for one in known),
    ]


def array_row(device: Device, array: Array) -> list[str]:
    """What ``devices`` says of one that is an array of multipliers."""
    return [
        device.name,
        "yes" if device.trusted else "no",
        array.dataflow,
        array.size if array.arrays == 1 else f"{array.arrays} x ({array.size})",
        str(array.tile_cycles or ""),
        f"{array.clock_hertz / 1e6:g}",
        f"{array.peak_flops_per_second / 1e9:.6g}",
    ]


def npu_row(device: Device, npu: Npu) -> list[str]:
    """What ``devices`` says of one with units of its own."""
    array = device.array
    macs = {dtype: f"{rate:g} {dtype}" for dtype, rate in npu.macs_per_cycle.items()}
    vector = ", ".join(
        f"{rate:g} {dtype}" for dtype, rate in npu.vector_operations_per_cycle.items()
    )
    rates = (npu.sram_bytes_per_second, npu.moved_bytes_per_second)
    return [
        device.name,
        "yes" if device.trusted else "no",
        f"{array.dataflow} {array.size}" if array else ", ".join(macs.values()),
        vector,
        f"{npu.clock_hertz / 1e6:g}",
        human(npu.sram_bytes) if npu.sram_bytes else "",
        *("" if rate is None else f"{rate / 1e9:g}" for rate in rates),
        ", ".join(npu.kinds or ()),
    ]


def peak_rows(device: Device) -> Rows:
    """Each peak of a device, with its ridge point and source."""
    return [
        (
            dtype,
            f"{rate / 1e12:.8g}",
            f"{device.ridge(dtype):.2f}",
            device.sources[f"{PEAK}.{dtype}"],
        )
        for dtype, rate in device.peak_flops_per_second.items()
    ]


def figure_rows(device: Device) -> Rows:
    """Every other figure of a device, with its source."""
    known, array = asdict(device), device.array
    if array:
        known |= {
            "array_rows_elements": array.rows,
            "array_columns_elements": array.columns,
            "array_depth_elements": array.depth,
            "tile_cycles": array.tile_cycles,
            "clock_hertz": array.clock_hertz,
            "array_count": array.arrays,
            **(asdict(array.phases) if array.phases else {}),
        }
    for more in (device.array_memory, device.npu):
        known |= asdict(more) if more else {}
    for rates in NPU_RATES:
        known |= {f"{rates}.{dtype}": rate for dtype, rate in known.get(rates, {}).items()}
    rows = [
        (
            key,
            f"{known[key]:,}" if key.endswith("_bytes") else f"{known[key]:g}",
            human(known[key]) if key.endswith("_bytes") else "",
            device.sources[key],
        )
        for key in (*ALL_FIGURES, *(key for key in known if key.startswith(NPU_RATES)))
        if key in device.sources
    ]
    energy = {} if device.energy is None else device.energy.by_key
    return [*rows, *((key, f"{energy[key]:.6g}", "", device.sources[key]) for key in energy)]


def _memory_rows(product: "ProductCost") -> Rows:
    """What a product moves through buffers, where there are any."""
    memory = product.memory
    if memory is None:
        return []
    slower = "the DRAM takes longer" if product.bound == "dram" else "computing takes longer"
    told: Rows = [
        ("stalls", f"{memory.stall_cycles:,}", f"cycles of waiting; {slower}"),
        ("total", f"{product.total_cycles:,}", "cycles"),
    ]
    for name, moved in (
        ("DRAM reads", memory.dram_reads),
        ("DRAM writes", memory.dram_writes),
        ("SRAM reads", memory.sram_reads),
        ("SRAM writes", memory.sram_writes),
    ):
        parts = ", ".join(f"{one} {words:,}" for one, words in moved.items() if words)
        told.append((name, f"{sum(moved.values()):,}", f"words: {parts}"))
    return told


def _phase_rows(product: "ProductCost") -> Rows:
    """What the cycles of a tile hold, and what double buffering makes of it, where that is known."""
    phases, buffered = product.array.phases, product.double_buffered_cycles
    if phases is None or buffered is None:
        return []
    moved = phases.tile_load_cycles + phases.tile_store_cycles
    held = (
        f"of the {product.array.tile_cycles} of a tile {phases.tile_compute_cycles} compute, "
        f"{phases.tile_wait_cycles} wait, {moved} load and store"
    )
    return [("double-buffered", f"{buffered:,}", f"cycles; {held}")]


def _energy_rows(product: "ProductCost") -> Rows:
    """What a product takes in energy, by level."""
    found = product.picojoules
    if found is None:
        return []
    levels = {"multiply-accumulates": found.mac, "registers": found.register, "DRAM": found.dram}
    levels |= {f"buffer of the {one}": value for one, value in found.sram.items()}
    told = [f"{name} {joules(v * 1e-12)}" for name, v in levels.items() if v is not None]
    least = ">= " * found.at_least
    return [("energy", f"{least}{joules(float(found.total) * 1e-12)}", ", ".join(told))]


def product_rows(product: "ProductCost") -> Rows:
    """What ``gemm`` says of a product: a figure, its value, what it is."""
    cost, host_link = product.cost, product.device.host_link
    scalesim = product.count == "scalesim"
    counting = "the number of the last, from 0, as SCALE-Sim prints it" if scalesim else ""
    lost = ", ".join(
        f"{share:.1%} of {axis}"
        for axis, share in (("M", cost.lost_by_m), ("K", cost.lost_by_k), ("N", cost.lost_by_n))
    )
    stalls = product.memory is not None
    no_less = ">= " * bool(product.left_out)
    late = ">= " * any(what.startswith("the latency") for what in product.left_out)
    linked = (
        [
            ("link seconds", f"{late}{product.link_seconds:.9g}", f"on {host_link}"),
            ("run seconds", f"{no_less}{product.run_seconds:.9g}", "one after another"),
            ("overlapped", f"{no_less}{product.overlapped_seconds:.9g}", "both at once, at best"),
        ]
        if product.link_seconds is not None
        else []
    )
    return [
        ("tiles" if product.array.dataflow == "fixed" else "folds", f"{cost.tiles:,}", ""),
        ("cycles", f"{cost.cycles:,}", counting),
        *_phase_rows(product),
        *_memory_rows(product),
        ("seconds", f"{cost.seconds:.9g}", "without the host link" + " and stalls" * stalls),
        *linked,
        ("useful MACs", f"{cost.useful_macs:,}", ""),
        ("padded MACs", f"{cost.padded_macs:,}", f"lost to padding: {lost}"),
        ("utilisation", f"{cost.utilisation:.2%}", ""),
        *_energy_rows(product),
        ("sent", human(cost.sent_bytes), "both operands, each element once"),
        ("received", human(cost.received_bytes), "the result"),
        *(("left out", "", f"not known: {what}") for what in product.left_out),
    ]
