"""What a run takes on home, accelerators and links, for each token, and where more chips end."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from costmodels.roofline import DeviceTime
from partition.accounting import Transfer
from partition.placement import Placement
from partition.problem import memory_of
from tracer.graph import OpGraph


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
            self.home_seconds / whole, self.accelerator_seconds / whole, self.link_seconds / whole
        )  # fmt: skip

    @property
    def link_bound_chips(self) -> int | None:
        """So many chips compute no longer than their link takes, were tiles shared out evenly.

        Where a product has too few tiles for all, it takes more. None without chips, and where the
        link takes nothing.
        """
        if self.chips is None or not self.link_seconds:
            return None
        return max(1, ceil(self.chips * self.accelerator_seconds / self.link_seconds))

    @property
    def many_chips_seconds(self) -> float | None:
        """What a run takes in the limit of many chips: home and link; None without chips."""
        return None if self.chips is None else self.home_seconds + self.link_seconds

    def too_slow(self, seconds_per_token: float) -> float | None:
        """How many times longer than ``seconds_per_token`` a token takes; None where it does not.

        None is the verdict that the run is usable.
        """
        ratio = self.seconds_per_token / seconds_per_token
        return ratio if ratio > 1 else None
