"""Commands about devices alone: what they are, and what one matrix product costs on an array."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from cli import complete
from cli.app import command, say
from cli.options import MOST, Arrays, Device, Json
from costmodels import CountAs, Dataflow, Overlap
from tracer.graph import ITEM_BYTES

if TYPE_CHECKING:
    from costmodels import devices as described
    from cutedge._gemm import ProductCost

M = Annotated[int, Argument(min=1, max=MOST, help="Rows of the first operand.")]
K = Annotated[int, Argument(min=1, max=MOST, help="Its columns, rows of the second.")]
N = Annotated[int, Argument(min=1, max=MOST, help="Columns of the second operand.")]

SHOWN = ("float32", "bfloat16", "int8")
"""The dtypes that the list of devices has room for; JSON and ``devices NAME`` have all."""


@command("cutedge devices rtx-4090")
def devices(
    name: Annotated[
        str | None,
        Argument(
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
class Buffered:
    """A systolic array, its buffers and their DRAM."""

    mode: Annotated[Dataflow | None, Option(help="Another dataflow than the device's.")] = None
    rows: Annotated[int | None, Option(min=1, max=MOST, help="Rows of a systolic array.")] = None
    cols: Annotated[int | None, Option(min=1, max=MOST, help="Columns of a systolic array.")] = None
    sram_kib: Annotated[
        str | None, Option(help="KiB of the buffers for left operand, right one, result: 64,64,64.")
    ] = None
    dram_words_per_cycle: Annotated[
        float | None, Option(help="Elements that a DRAM moves to and from them in a cycle.")
    ] = None


@dataclass(frozen=True, slots=True)
class Product:
    """How a product is carried out, and how its cycles are counted."""

    batch: Annotated[int, Option(min=1, max=MOST, help="So many products, one after another.")] = 1
    arrays: Annotated[int | None, Option(min=1, max=MOST, help="So many share each.")] = None
    count: Annotated[
        CountAs | None, Option(help="scalesim: the number of the last, from 0; true: so many.")
    ] = None
    overlap: Annotated[
        Overlap | None, Option(help="Whether a fold or tile is loaded while another computes.")
    ] = None
    dtype: Annotated[
        str, Option(help=f"Dtype of the elements on the host link: {', '.join(ITEM_BYTES)}.")
    ] = "float32"


@command("cutedge gemm 1 2048 2048 --device chip-8x8")
def gemm(
    m: M,
    k: K,
    n: N,
    faster: Arrays,
    array: Buffered,
    how: Product,
    device: Device = "chip-8x8",
    as_json: Json = False,
) -> None:
    """Cost one matrix product [M, K] x [K, N] on an array: tiles, cycles, seconds, utilisation."""
    import cutedge
    from cli.printing import print_json

    product = cutedge.gemm(m, k, n, device, **asdict(array), **asdict(how), **asdict(faster))
    if as_json:
        print_json(product.summary)
    else:
        _print_gemm(product)


def _print_devices(found: "Sequence[described.Device]") -> None:
    from cli.printing import grouped, print_table
    from cutedge._device_rows import array_row, npu_row, processor_row

    if processors := [one for one in found if one.peak_flops_per_second]:
        print_table(
            f"device, trusted<1, {', '.join(f'{dtype}>2' for dtype in SHOWN)}, GB/s>3, memory>3, "
            + ", ".join(f"ridge {dtype}>4" for dtype in SHOWN),
            grouped(
                processors,
                lambda one: "accelerators: a host calls them" if one.host_link else "hosts",
                lambda one: processor_row(one, SHOWN),
            ),
        )
        say("peaks in TFLOPS, dense; ridge points in FLOPs a byte; GB/s and TFLOPS are decimal")
        say()
    if arrays := [array_row(one, one.array) for one in found if one.array]:
        print_table(
            "array, trusted<1, dataflow<2, size>1, cycles a tile>3, MHz>3, peak GFLOPS>1", arrays
        )
        say()
    if npus := [npu_row(one, one.npu) for one in found if one.npu]:
        print_table(
            "npu, trusted<1, MACs a cycle>, others a cycle>3, MHz>3, SRAM>1, SRAM GB/s>4, "
            "DRAM GB/s>2, runs<4",
            npus,
        )
        say()
    say("cutedge devices NAME has every figure of one, with its source")


def _print_device(device: "described.Device") -> None:

    from cli.printing import print_table
    from cutedge._device_rows import figure_rows, peak_rows

    array = device.array
    say(f"{device.name}: {device.description}", bold=True)
    link = f"; its host link is {device.host_link}" if device.host_link else ""
    say(f"{'trusted' if device.trusted else 'not trusted'}{link}")
    say()
    if device.peak_flops_per_second:
        print_table("dense peak, TFLOPS>, ridge (FLOPs a byte)>1, source~", peak_rows(device))
        say()
    print_table("figure, value>, size>1, source~", figure_rows(device))
    if array:
        say(f"\n{array}: at most {array.peak_flops_per_second / 1e9:.6g} GFLOPS")
    if device.npu and device.npu.kinds:
        say(f"\nruns {', '.join(device.npu.kinds)}; all else is at home in a split")


def _print_gemm(product: "ProductCost") -> None:

    from cli.printing import print_table
    from cutedge._device_rows import product_rows

    device = product.device
    m, k, n, batch = product.sizes
    what = f"{batch} x [{m} x {k}] x [{k} x {n}]" if batch > 1 else f"[{m} x {k}] x [{k} x {n}]"
    say(f"{what} on {device.name}", bold=True)
    say(str(product.array))
    say()
    print_table(", >, ~", product_rows(product))
    if device.host_link:
        say(f"chips share one host link, {device.host_link}, which must carry these bytes")
