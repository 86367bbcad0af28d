"""What the ops of a placement do to the devices: rooflines, and where the cycles of arrays go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodels.flops import numbered, without_sizes
from costmodels.roofline import DeviceTime, Share, shares
from cutedge.report.axes import Ticks, decades, flop_rate, number_ticks
from cutedge.report.figures import Bars, Missing, Series
from partition.split import Split
from tracer.graph import Kind, Op
from tracer.kinds import base_name
from tracer.words import counted, duration


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device can do at best with one dtype."""

    dtype: str
    flops_per_second: float
    ridge: float
    """FLOPs a byte from which on compute is the bound."""
    intensities: Sequence[float]
    rates: Sequence[float]
    """The roof's corners, with those above."""
    label: str
    """Of the ridge."""
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Ops that are alike, on a device."""

    name: str
    intensity: float
    """FLOPs for each byte read or written."""
    rate: float
    """FLOPs for each second."""
    share: float
    """Of the seconds of all that is drawn."""
    bound: str
    """What most of their seconds are spent on."""
    text: str


@dataclass(frozen=True, slots=True)
class Roofline:
    """The ops of a placement on one device, under its roofs."""

    roofs: Sequence[Roof]
    marks: Sequence[Mark]
    x_range: tuple[float, float]
    """FLOPs a byte, with room for names on the left."""
    y_range: tuple[float, float]
    """FLOPs a second."""
    x_ticks: Ticks
    y_ticks: Ticks
    note: str
    """What is not drawn; may be empty."""


def roofline(partition: Split, device: str, time: DeviceTime | None) -> Roofline | Missing:
    """The ops that a placement has on a device: FLOPs a byte and FLOPs a second, and its roofs."""
    if time is None:
        return Missing(
            f"{device} is a name without a description: take one of `cutedge devices`, or a .toml "
            "file, for its peaks and bandwidth."
        )
    if time.device.array is not None:
        return Missing(
            f"{device} is an array of multipliers, which computes in cycles: its products are "
            "below, where its cycles go."
        )
    if time.device.is_chip:
        return Missing(
            f"{device} counts cycles, and has an SRAM and a DRAM: it has no one roof. `cutedge cost` "
            "says what bounds its ops."
        )
    graph, placed = partition.graph, partition.placement.devices
    groups = shares(graph, time, lambda op: sort_of(op) if placed[op.id] == device else "")
    found = [one for one in groups if one.name]
    drawn = [one for one in found if one.intensity and one.flops and one.seconds]
    if not drawn:
        return Missing(f"No op with FLOPs runs on {device} under this policy.")
    whole = sum(one.seconds for one in found)
    least = "≥ " * time.lacks_launches
    marks = _marks(drawn, whole, least)
    dtypes = dict.fromkeys(
        op.dtype for op in graph.ops if placed[op.id] == device and op.cost.flops and op.dtype
    )
    low, high = min(w.intensity for w in marks), max(w.intensity for w in marks)
    roofs = [_roof(time, dtype, low, high) for dtype in dtypes if dtype in _peaks(time)]
    rest = [one for one in found if one not in drawn]
    left = f"{counted(sum(one.ops for one in rest), 'op')} without FLOPs or seconds not drawn"
    taken = sum(one.seconds for one in rest)
    x_range = min(low, *(r.ridge for r in roofs)) / 8, max(high, *(r.ridge for r in roofs)) * 2
    y_range = min(w.rate for w in marks) / 3, max(r.flops_per_second for r in roofs) * 3
    return Roofline(
        roofs,
        marks,
        x_range,
        y_range,
        decades(*x_range),
        decades(*y_range),
        f"{left}: {least}{duration(taken)}." if rest else "",
    )


def _marks(drawn: Sequence[Share], whole: float, least: str) -> list[Mark]:
    """A point for all sorts of op that would be one on top of the other; the longest first.

    ``least`` stands before seconds that leave out what starting an op takes.
    """
    points: dict[tuple[str, str], list[Share]] = {}
    for one in sorted(drawn, key=lambda one: -one.seconds):
        place = f"{one.intensity or 0.0:.1e}", f"{one.flops / one.seconds:.1e}"
        points.setdefault(place, []).append(one)
    marks: list[Mark] = []
    for alike in sorted(points.values(), key=lambda alike: -sum(one.seconds for one in alike)):
        first, taken = alike[0], sum(one.seconds for one in alike)
        intensity, rate = first.intensity or 0.0, first.flops / first.seconds
        bound = max(first.seconds_by_bound, key=lambda what: first.seconds_by_bound[what])
        text = "\n".join(
            [
                f"{intensity:,.3g} FLOPs a byte, {flop_rate(rate)}; most of it {_BOUNDS[bound]}",
                *(
                    f"{one.name}: {counted(one.ops, 'op')}, {least}{duration(one.seconds)} "
                    f"({one.seconds / whole:.1%})"
                    for one in alike
                ),
            ]
        )
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        marks.append(Mark(first.name + more, intensity, rate, taken / whole, bound, text))
    return marks


_BOUNDS = {"compute": "computing", "memory": "reading and writing", "overhead": "starting ops"}


def _peaks(time: DeviceTime) -> Mapping[str, float]:
    return time.device.peak_flops_per_second


def _roof(time: DeviceTime, dtype: str, low: float, high: float) -> Roof:
    device = time.device
    ridge = device.ridge(dtype)
    peak = _peaks(time)[dtype] * device.efficiency_ratio
    ends = [min(low, ridge) / 8, ridge, max(high, ridge) * 2]
    return Roof(
        dtype,
        peak,
        ridge,
        ends,
        [peak * min(end / ridge, 1) for end in ends],
        f"ridge in {dtype}: {ridge:,.3g} FLOPs a byte",
        f"{dtype}: {flop_rate(peak)} from {ridge:,.3g} FLOPs a byte on (the ridge)",
    )


def cycles(partition: Split, device: str, time: DeviceTime | None) -> Bars | Missing:
    """Where the cycles of an array go, by sort of product: useful ones, and those of padding."""
    if time is None or time.device.array is None:
        return Missing(f"{device} is no array of multipliers: it has no cycles of its own.")
    placed = partition.placement.devices
    groups: dict[str, list[int]] = {}
    for op in partition.graph.ops:
        if placed[op.id] == device and time.ops[op.id].gemm is not None:
            groups.setdefault(sort_of(op), []).append(op.id)
    if not groups:
        return Missing(f"No product runs on {device} under this policy.")
    if lacking := without_sizes(op for op in partition.graph.ops if placed[op.id] == device):
        return Missing(f"The cycles of {numbered(lacking)} on {device} are not known.")
    sums = {}
    for name, ops in groups.items():
        gemms = [gemm for op in ops if (gemm := time.ops[op].gemm) is not None]
        every = sum(gemm.cycles for gemm in gemms)
        useful = round(sum(gemm.cycles * gemm.utilisation for gemm in gemms))
        text = (
            f"{name}: {counted(len(ops), 'product')}\n{every:,} cycles, "
            f"{'≥ ' * time.lacks_launches}{duration(sum(gemm.seconds for gemm in gemms))}\n"
            f"{useful / every:.1%} useful: {sum(g.useful_macs for g in gemms):,} of "
            f"{sum(g.padded_macs for g in gemms):,} multiplications"
        )
        sums[name] = every, useful, text
    order = sorted(sums, key=lambda name: -sums[name][0])
    texts = [sums[name][2] for name in order]
    return Bars(
        [f"{name}  × {len(groups[name]):,}" for name in order],
        [
            Series("useful", device, [sums[name][1] for name in order], texts),
            Series("padding and idle", "", [sums[n][0] - sums[n][1] for n in order], texts),
        ],
        number_ticks(max(every for every, _, _ in sums.values())),
        "cycles",
    )


_NAMED = frozenset({Kind.LINEAR, Kind.EMBEDDING})


def sort_of(op: Op) -> str:
    """What ops that are alike in all layers are called: their module's name and what they do."""
    leaf = next((p for p in reversed(op.module_path.split(".")) if p and not p.isdigit()), "")
    return leaf if leaf and op.kind in _NAMED else f"{leaf} {base_name(op.target)}".strip()
