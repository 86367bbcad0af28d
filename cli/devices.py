"""Commands about devices alone: what they are, and what one matrix product costs on an array."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import complete
from cli.app import command
from cli.options import MOST, Arrays, Device, Json
from costmodels import CountAs, Dataflow, Overlap
from tracer.graph import ITEM_BYTES

if TYPE_CHECKING:
    from costmodels import devices as described
    from cutedge._gemm import ProductCost

M = Annotated[int, typer.Argument(min=1, max=MOST, help="Rows of the first operand.")]
K = Annotated[int, typer.Argument(min=1, max=MOST, help="Its columns, rows of the second.")]
N = Annotated[int, typer.Argument(min=1, max=MOST, help="Columns of the second operand.")]

SHOWN = ("float32", "bfloat16", "int8")
"""The dtypes that the list of devices has room for; JSON and ``devices NAME`` have all."""


@command("cutedge devices rtx-4090")
def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their name; of one, or of a .toml file, all figures.",
            autocompletion=complete.devices,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices that cutedge knows; show one with the source of every figure."""
    from cli.printing import print_json
    from costmodels.devices import device_names, load_device
    from tracer.toml_files import matching

    found = [load_device(one) for one in matching(name, "device", device_names())]
    if as_json:
        print_json({"devices": [one.summary for one in found]})
    elif name and len(found) == 1:
        _print_device(found[0])
    else:
        _print_devices(found)


@dataclass(frozen=True, slots=True)
class Product:
    """How a product is carried out, and how its cycles are counted."""

    mode: Annotated[Dataflow | None, typer.Option(help="Another dataflow than the device's.")] = (
        None
    )
    rows: Annotated[int | None, typer.Option(min=1, max=MOST, help="Rows of a systolic array.")] = (
        None
    )
    cols: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Columns of a systolic array.")
    ] = None
    batch: Annotated[
        int, typer.Option(min=1, max=MOST, help="So many products, one after another.")
    ] = 1
    count: Annotated[
        CountAs | None,
        typer.Option(
            help="Cycles of a systolic array: as SCALE-Sim prints them (the number of the last, "
            "from 0; the default) or as many as there are."
        ),
    ] = None
    overlap: Annotated[
        Overlap | None,
        typer.Option(help="Whether a systolic array loads a fold while the one before streams."),
    ] = None
    dtype: Annotated[
        str, typer.Option(help=f"Dtype of the elements on the host link: {', '.join(ITEM_BYTES)}.")
    ] = "float32"


@command("cutedge gemm 1 2048 2048 --device chip-8x8")
def gemm(
    m: M,
    k: K,
    n: N,
    arrays: Arrays,
    how: Product,
    device: Device = "chip-8x8",
    as_json: Json = False,
) -> None:
    """Cost one matrix product [M, K] x [K, N] on an array: tiles, cycles, seconds, utilisation."""
    import cutedge
    from cli.printing import print_json

    product = cutedge.gemm(m, k, n, device, **asdict(how), **asdict(arrays))
    if as_json:
        print_json(product.summary)
    else:
        _print_gemm(product)


def _print_devices(found: "Sequence[described.Device]") -> None:
    from cli.printing import console, grouped, print_table
    from tracer.words import human

    def peak(device: "described.Device", dtype: str) -> str:
        rate = device.peak_flops_per_second.get(dtype)
        return "" if rate is None else f"{rate / 1e12:.6g}"

    def ridge(device: "described.Device", dtype: str) -> str:
        return f"{device.ridge(dtype):.1f}" if dtype in device.peak_flops_per_second else ""

    out = console()
    if processors := [one for one in found if one.peak_flops_per_second]:
        print_table(
            f"device, trusted<1, {', '.join(f'{dtype}>2' for dtype in SHOWN)}, GB/s>3, memory>3, "
            + ", ".join(f"ridge {dtype}>4" for dtype in SHOWN),
            grouped(
                processors,
                lambda one: "accelerators: a host calls them" if one.host_link else "hosts",
                lambda one: [
                    one.name,
                    "yes" if one.trusted else "no",
                    *(peak(one, d) for d in SHOWN),
                    f"{(one.memory_bandwidth_bytes_per_second or 0) / 1e9:g}",
                    human(one.memory_bytes) if one.memory_bytes else "",
                    *(ridge(one, dtype) for dtype in SHOWN),
                ],
            ),
        )
        out.print(
            "peaks in TFLOPS, dense; ridge points in FLOPs a byte; GB/s and TFLOPS are decimal"
        )
        out.print()
    if any(one.array for one in found):
        print_table(
            "array, trusted<1, dataflow<2, size>1, cycles a tile>3, MHz>3, peak GFLOPS>1",
            [
                (
                    one.name,
                    "yes" if one.trusted else "no",
                    array.dataflow,
                    array.size,
                    str(array.tile_cycles or ""),
                    f"{array.clock_hertz / 1e6:g}",
                    f"{array.peak_flops_per_second / 1e9:.6g}",
                )
                for one in found
                if (array := one.array)
            ],
        )
        out.print()
    out.print("cutedge devices NAME has every figure of one, with its source")


def _print_device(device: "described.Device") -> None:
    from rich.text import Text

    from cli.printing import console, print_table
    from costmodels.devices import ARRAY_FIGURES, FIGURES, PEAK, TILE_FIGURES
    from tracer.words import human

    out, array = console(), device.array
    out.print(Text(f"{device.name}: {device.description}", style="bold"))
    out.print(f"{'trusted' if device.trusted else 'not trusted'}", end="")
    out.print(f"; its host link is {device.host_link}" if device.host_link else "")
    out.print()
    if device.peak_flops_per_second:
        print_table(
            "dense peak, TFLOPS>, ridge (FLOPs a byte)>1, source~",
            [
                (
                    dtype,
                    f"{rate / 1e12:.8g}",
                    f"{device.ridge(dtype):.2f}",
                    device.sources[f"{PEAK}.{dtype}"],
                )
                for dtype, rate in device.peak_flops_per_second.items()
            ],
        )
        out.print()
    known = asdict(device) | (
        {
            "array_rows_elements": array.rows,
            "array_columns_elements": array.columns,
            "array_depth_elements": array.depth,
            "tile_cycles": array.tile_cycles,
            "clock_hertz": array.clock_hertz,
        }
        if array
        else {}
    )
    figures = [key for key in (*FIGURES, *ARRAY_FIGURES, *TILE_FIGURES) if key in device.sources]
    print_table(
        "figure, value>, size>1, source~",
        [
            (
                key,
                f"{known[key]:,}" if key.endswith("_bytes") else f"{known[key]:g}",
                human(known[key]) if key.endswith("_bytes") else "",
                device.sources[key],
            )
            for key in figures
        ],
    )
    if array:
        out.print()
        out.print(f"{array}: at most {array.peak_flops_per_second / 1e9:.6g} GFLOPS")


def _print_gemm(product: "ProductCost") -> None:
    from rich.text import Text

    from cli.printing import console, print_table
    from tracer.words import human

    out, device, array, cost = console(), product.device, product.array, product.cost
    m, k, n, batch = product.sizes
    what = f"{batch} x [{m} x {k}] x [{k} x {n}]" if batch > 1 else f"[{m} x {k}] x [{k} x {n}]"
    scalesim = product.count == "scalesim"
    counting = "the number of the last, from 0, as SCALE-Sim prints it" if scalesim else ""
    out.print(Text(f"{what} on {device.name}", style="bold"))
    out.print(array)
    lost = ", ".join(
        f"{share:.1%} of {axis}"
        for axis, share in (("M", cost.lost_by_m), ("K", cost.lost_by_k), ("N", cost.lost_by_n))
    )
    out.print()
    print_table(
        ", >, ~",
        [
            ("tiles" if array.dataflow == "fixed" else "folds", f"{cost.tiles:,}", ""),
            ("cycles", f"{cost.cycles:,}", counting),
            ("seconds", f"{cost.seconds:.9g}", "without the host link"),
            *(
                [
                    ("link seconds", f"{product.link_seconds:.9g}", f"on {device.host_link}"),
                    ("run seconds", f"{product.run_seconds:.9g}", "one after another"),
                    ("overlapped", f"{product.overlapped_seconds:.9g}", "both at once, at best"),
                ]
                if product.link_seconds is not None
                else []
            ),
            ("useful MACs", f"{cost.useful_macs:,}", ""),
            ("padded MACs", f"{cost.padded_macs:,}", f"lost to padding: {lost}"),
            ("utilisation", f"{cost.utilisation:.2%}", ""),
            ("sent", human(cost.sent_bytes), "both operands, each element once"),
            ("received", human(cost.received_bytes), "the result"),
        ],
    )
    if device.host_link:
        out.print(f"chips share one host link, {device.host_link}, which must carry these bytes")
