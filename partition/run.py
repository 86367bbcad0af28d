"""What a run takes on home, accelerators and links, for each token, and where more chips end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import fsum

from costmodels.arrays import Options, gemm_cost
from costmodels.devices import Array
from costmodels.roofline import DeviceTime
from partition.accounting import Transfer
from partition.placement import Placement
from partition.problem import memory_of
from tracer.graph import Gemm, OpGraph


def times_under(
    graph: OpGraph,
    placement: Placement,
    transfers: Iterable[Transfer],
    times: Mapping[str, DeviceTime],
) -> dict[str, DeviceTime]:
    """Device -> its ops' seconds under a placement: a device pages what lies there beyond its room.

    ``times`` are without paging (``roofline.time_ops``).
    """
    paging = any(time.device.enclave_bytes is not None for time in times.values())
    lying = memory_of(graph, placement, transfers) if paging else {}
    return {name: time.holding(graph, lying.get(name, 0)) for name, time in times.items()}


@dataclass(frozen=True, slots=True)
class Chips:
    """Equal arrays that share out the tiles of each product that is placed on them."""

    products: Mapping[tuple[Array, Gemm], int]
    """(array, product) -> how often it is computed there."""
    options: Options
    """How many there are, and what makes each faster."""

    def seconds(self, chips: int) -> float:
        """What all products take, each as long as the chip that has most of its tiles."""
        options = replace(self.options, chips=chips)
        return fsum(
            times * gemm_cost(array, g.m, g.k, g.n, batch=g.batch, options=options).seconds
            for (array, g), times in self.products.items()
        )

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
    """The arrays that compute for home; None where no accelerator computes, or one is no array."""
    arrays = {name: time.device.array for name, time in times.items()}
    products: Counter[tuple[Array, Gemm]] = Counter()
    for op, device in zip(graph.ops, placement.devices, strict=True):
        array = arrays.get(device or "")
        if device == placement.home or op.cost.gemm is None or array is None:
            continue
        products[array, op.cost.gemm] += 1
    only_arrays = all(arrays.get(name) is not None for name in placement.accelerators)
    return Chips(products, options) if products and only_arrays else None


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

    def too_slow(self, seconds_per_token: float) -> float | None:
        """How many times longer than ``seconds_per_token`` a token takes; None where it does not.

        None is the verdict that the run is usable.
        """
        ratio = self.seconds_per_token / seconds_per_token
        return ratio if ratio > 1 else None
