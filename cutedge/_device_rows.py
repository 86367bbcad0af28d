"""The rows of tables about devices and single products, as texts: apart, since they load little."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from costmodels.devices import (
    ARRAY_FIGURES,
    COUNT_FIGURES,
    FIGURES,
    PEAK,
    TILE_FIGURES,
    Array,
    Device,
)
from tracer.words import human

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
        }
    rows = [
        (
            key,
            f"{known[key]:,}" if key.endswith("_bytes") else f"{known[key]:g}",
            human(known[key]) if key.endswith("_bytes") else "",
            device.sources[key],
        )
        for key in (*FIGURES, *ARRAY_FIGURES, *TILE_FIGURES, *COUNT_FIGURES)
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
        *_memory_rows(product),
        ("seconds", f"{cost.seconds:.9g}", "without the host link" + " and stalls" * stalls),
        *linked,
        ("useful MACs", f"{cost.useful_macs:,}", ""),
        ("padded MACs", f"{cost.padded_macs:,}", f"lost to padding: {lost}"),
        ("utilisation", f"{cost.utilisation:.2%}", ""),
        ("sent", human(cost.sent_bytes), "both operands, each element once"),
        ("received", human(cost.received_bytes), "the result"),
        *(("left out", "", f"not known: {what}") for what in product.left_out),
    ]
