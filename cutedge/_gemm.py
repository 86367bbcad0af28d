"""What one matrix product costs on an array of multipliers."""

from dataclasses import asdict, dataclass
from typing import Any

from costmodels import CountAs, Dataflow, Overlap
from costmodels.arrays import GemmCost, Options, gemm_cost
from costmodels.devices import Array, Device, load_device
from costmodels.links import load_link, round_trip_seconds
from tracer.errors import InputError, choose
from tracer.graph import ITEM_BYTES


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
    link_seconds: float | None
    """Of the operands and the result over the device's host link; None where it is not known."""

    @property
    def run_seconds(self) -> float | None:
        """Starting, moving and computing, one after another."""
        if self.link_seconds is None:
            return None
        return float(self._launch + self.cost.seconds + self.link_seconds)

    @property
    def overlapped_seconds(self) -> float | None:
        """Moving and computing at once, at best, once it has started."""
        if self.link_seconds is None:
            return None
        return float(self._launch + max(self.cost.seconds, self.link_seconds))

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
            "link_seconds": self.link_seconds,
            "run_seconds": self.run_seconds,
            "overlapped_seconds": self.overlapped_seconds,
            "at_least": bool(self.left_out),
            "left_out": list(self.left_out),
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
    **arrays: Any,
) -> ProductCost:
    """Cost one matrix product [m, k] x [k, n] on an array: tiles, cycles, seconds, utilisation.

    ``mode``, ``rows`` and ``cols`` are another dataflow and size than the device's; ``count`` and
    ``overlap`` say how a systolic array's cycles are counted; ``dtype`` is that of the elements on
    the host link; ``arrays`` are the options of arrays. Raises InputError for a device without one.

    >>> import cutedge
    >>> cutedge.gemm(32, 64, 64).cost.tiles
    256
    """
    choose(dtype, tuple(ITEM_BYTES), "--dtype")
    chosen = load_device(device)
    array = _array(chosen, mode, rows, cols)
    systolic = array.dataflow != "fixed"
    if not systolic and (count or overlap):
        raise InputError("--count and --overlap are of systolic arrays (--mode os, ws or is)")
    options = Options(**arrays)
    counted, overlapped = count or "scalesim", overlap or "none"
    cost = gemm_cost(
        array,
        m,
        k,
        n,
        batch=batch,
        options=options,
        count=counted,
        overlap=overlapped,
        element_bytes=ITEM_BYTES[dtype],
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
        overlapped if systolic else None,
        options,
        cost,
        seconds,
    )


def _array(device: Device, mode: Dataflow | None, rows: int | None, cols: int | None) -> Array:
    """The device's array, or one of another dataflow or size at its clock."""
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
        return array
    return Array(
        flow,
        rows or array.rows,
        cols or array.columns,
        depth=None,
        tile_cycles=None,
        clock_hertz=array.clock_hertz,
    )
