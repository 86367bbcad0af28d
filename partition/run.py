"""What a run takes on home, accelerators and links, by token, and where more chips end."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from costmodels.arrays import Options, gemm_cost
from costmodels.devices import Array
from costmodels.flops import FREE, without_sizes
from costmodels.roofline import DeviceTime
from partition.accounting import Transfer, steps_of
from partition.placement import Placement
from partition.problem import memory_of
from partition.stored import kept_on
from tracer.graph import Gemm, OpGraph


def times_under(
    graph: OpGraph,
    placement: Placement,
    transfers: Iterable[Transfer],
    times: Mapping[str, DeviceTime],
) -> dict[str, DeviceTime]:
    """Device -> its ops' seconds under a placement, which count alone where the device has the op.

    A device pages what lies there beyond its room. What an engine fuses, or starts ahead, is within
    one of home's turns or one call. What it takes to keep cached state stands with an op that the
    state is kept for (``stored.kept_on``), but on an array of multipliers, which keeps nothing.
    ``times`` are without paging, and as if all ops ran on one device (``roofline.time_ops``).
    """
    paging = any(time.device.fast_bytes is not None for time in times.values())
    lying = memory_of(graph, placement, transfers) if paging else {}
    kept = kept_on(graph, placement)
    steps = steps_of(graph, placement) if any(map(_by_runs, times.values())) else None
    found = {}
    for name, time in times.items():
        here = {op: beside for (op, device), beside in kept.items() if device == name}
        runs = None if steps is None else runs_of(placement, steps, here)
        ops = (op for op, on in zip(graph.ops, placement.devices, strict=True) if on == name)
        there = time.holding(graph, lying.get(name, 0), runs, ops)
        found[name] = there if time.device.array else _with_state(there, here)
    return found


def _by_runs(time: DeviceTime) -> bool:
    return time.engine.depends_on_runs


def _with_state(time: DeviceTime, kept: Mapping[int, int]) -> DeviceTime:
    """The same seconds, those of each op of ``kept`` with the op that it is kept for."""
    if not kept or not time.ops:
        return time
    ops = [*time.ops]
    for op, beside in kept.items():
        one, taken = ops[beside], ops[op].seconds
        if one.seconds is not None and taken is not None:
            ops[beside] = replace(one, seconds=one.seconds + taken)
    return replace(time, ops=tuple(ops))


def runs_of(
    placement: Placement, steps: Sequence[int], kept: Mapping[int, int]
) -> tuple[tuple[str, int] | None, ...]:
    """By op: its device and the turn or call (``accounting.steps_of``) that it runs in.

    An op of ``kept`` runs with the op that it is kept for; None for others without a device.
    """
    runs = [
        None if device is None else (device, step)
        for device, step in zip(placement.devices, steps, strict=True)
    ]
    for op, beside in kept.items():
        runs[op] = runs[beside]
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class CycleShares:
    """What the cells of arrays do in the cycles of their products: shares that add up to 1."""

    useful: float
    """Multiply elements of the product."""
    padding: float
    """Multiply what a tile is padded with."""
    idle: float
    """Multiply nothing: cells of a systolic array that fill and drain, chips without a tile."""


@dataclass(frozen=True, slots=True)
class Chips:
    """Equal arrays that share out the tiles of each product that is placed on them."""

    products: Mapping[tuple[Array, Gemm], int]
    """(array, product) -> how often it is computed there."""
    options: Options
    """How many there are, and what makes each faster."""
    launch_seconds: float = 0.0
    """What starting all products takes, however many share them."""

    def seconds(self, chips: int) -> float:
        """What all products take, each as long as the chip that has most of its tiles."""
        options = replace(self.options, chips=chips)
        return self.launch_seconds + fsum(
            times * gemm_cost(array, g.m, g.k, g.n, batch=g.batch, options=options).seconds
            for (array, g), times in self.products.items()
        )

    @property
    def cycle_shares(self) -> CycleShares:
        """What the arrays do in the cycles of all products, those of more cycles weighing more."""
        parts = []
        for (array, g), times in self.products.items():
            cost = gemm_cost(array, g.m, g.k, g.n, batch=g.batch, options=self.options)
            useful = float(cost.utilisation)
            padding = min(useful * (cost.padded_macs / cost.useful_macs - 1), 1 - useful)
            parts.append((times * cost.cycles, useful, padding))
        whole = sum(cycles for cycles, *_ in parts) or 1
        useful = fsum(cycles * share for cycles, share, _ in parts) / whole
        padding = fsum(cycles * share for cycles, _, share in parts) / whole
        return CycleShares(useful, padding, max(0.0, 1 - useful - padding))

    @property
    def most(self) -> int:
        """So many that with more no product takes less: one for each tile of the largest."""
        return max(
            int(gemm_cost(array, g.m, g.k, g.n, batch=g.batch).tiles) for array, g in self.products
        )

    def fewest_within(self, seconds: float) -> int | None:
        """The fewest that compute no longer than ``seconds``; None where ever so many take longer.

        Found by halving: with more chips no product takes longer.
        """
        low, high = 0, self.most  # so few are too few
        if self.seconds(high) > seconds:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seconds(middle) <= seconds else (middle, high)
        return high


def chips_of(
    graph: OpGraph, placement: Placement, times: Mapping[str, DeviceTime], options: Options
) -> Chips | None:
    """The arrays that compute for home; None where no accelerator computes, or one is no array or has
    more than that: what waits for a memory is not faster on more chips."""
    arrays = {
        name: None if time.device.npu or time.device.array_memory else time.device.array
        for name, time in times.items()
    }
    products: Counter[tuple[Array, Gemm]] = Counter()
    launches = 0.0
    for op, device in zip(graph.ops, placement.devices, strict=True):
        array = arrays.get(device or "")
        if device == placement.home or op.cost.gemm is None or array is None:
            continue
        products[array, op.cost.gemm] += 1
        launches += times[device or ""].device.launch_seconds or 0.0
    only_arrays = all(arrays.get(name) is not None for name in placement.accelerators)
    return Chips(products, options, launches) if products and only_arrays else None


@dataclass(frozen=True, slots=True)
class Run:
    """The seconds of one run, computing and moving one after another."""

    home_seconds: float
    """Computing at home."""
    accelerator_seconds: float
    """Computing on accelerators, all of them together."""
    link_seconds: float
    """All transfers."""
    tokens: int
    """New tokens of the batch, or inputs where a model reads no tokens."""
    chips: int | None
    """Equal arrays that share the accelerators' products, on one link; None where no accelerator
    computes, or one that is no array."""
    link_bound_chips: int | None = None
    """From so many chips on they compute no longer than their link takes; None without chips, and
    where ever so many of them take longer."""
    many_chips_seconds: float | None = None
    """What the run takes with one chip for each tile of its largest product: more make nothing
    faster. None without chips."""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.home_seconds + self.accelerator_seconds + self.link_seconds

    @property
    def seconds_per_token(self) -> float:
        """The run by its tokens: what each is waited for where there is one, else on average."""
        return self.seconds / self.tokens

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of home, accelerators and links; all 0 of a run that takes nothing."""
        whole = self.seconds or 1.0
        return (
            self.home_seconds / whole,
            self.accelerator_seconds / whole,
            self.link_seconds / whole,
        )

    def too_slow(self, seconds_per_token: float, whole: float | None = None) -> float | None:
        """How many times longer than ``seconds_per_token`` a token takes; None where it does not.

        None is the verdict that the run is usable. ``whole`` is what the run takes where that is
        not one after another: the makespan of its schedule.
        """
        seconds = self.seconds if whole is None else whole
        ratio = seconds / self.tokens / seconds_per_token
        return ratio if ratio > 1 else None


def compute_cycles(
    graph: OpGraph, placement: Placement, times: Mapping[str, DeviceTime]
) -> dict[str, int | None]:
    """By array of multipliers: the cycles of its products, those of the chip with most to do.

    None where one of them has no sizes (``flops.without_sizes``).
    """
    found: dict[str, int | None] = {}
    for device, time in times.items():
        if time.device.array is not None:
            here = [op for op, where in enumerate(placement.devices) if where == device]
            gemms = [time.ops[op].gemm for op in here]
            known = not without_sizes(graph.ops[op] for op in here)
            cycles = sum(int(gemm.cycles) for gemm in gemms if gemm is not None)
            found[device] = cycles if known else None
    return found


def unknown_launches(
    graph: OpGraph, placement: Placement, times: Mapping[str, DeviceTime]
) -> tuple[str, ...]:
    """The devices whose seconds leave out what it takes to start the ops that work there."""
    working = {
        device
        for op, device in zip(graph.ops, placement.devices, strict=True)
        if op.kind not in FREE
    }
    lacking = (
        time.device.name for d, time in times.items() if d in working and time.lacks_launches
    )
    return tuple(dict.fromkeys(lacking))


def compute_seconds(placement: Placement, times: Mapping[str, DeviceTime]) -> dict[str, float]:
    """By device: the seconds of its ops, for devices that are described and have all of them."""
    found: dict[str, float] = {}
    for device, time in times.items():
        ops = [op for op, here in enumerate(placement.devices) if here == device]
        taken = [time.ops[op].seconds for op in ops]
        known = [seconds for seconds in taken if seconds is not None]
        if len(known) == len(taken):
            found[device] = fsum(known)
    return found


def bound_seconds(
    placement: Placement, times: Mapping[str, DeviceTime]
) -> dict[str, dict[str, float]]:
    """By accelerator that is a chip with memories: the seconds of its ops by what bounds them."""
    found: dict[str, dict[str, float]] = {}
    for device in placement.accelerators:
        time = times.get(device)
        if time is None or not (time.device.npu or time.device.array_memory):
            continue
        bounds: Counter[str] = Counter()
        for op, here in enumerate(placement.devices):
            at = time.ops[op]
            if here == device and at.bound is not None:
                bounds[at.bound] += at.seconds or 0.0  # type: ignore[assignment]  # seconds add too
        found[device] = dict(bounds)
    return found
