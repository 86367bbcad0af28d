"""A placement: on which device each op runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.errors import CutedgeError
from tracer.graph import Kind, OpGraph


class PlacementError(CutedgeError):
    """A placement that the rules of the accounting do not allow."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One device an op; constants and cached state have none, being wherever they are read."""

    home: str
    """The device that holds the inputs and must hold the outputs."""
    devices: Sequence[str | None]
    """By op id; None for constants and cached state alone."""
    pinned: Sequence[bool]
    """Whether the device was demanded (by a rule) rather than left over or chosen."""
    reasons: Sequence[str]
    streams: frozenset[int] = frozenset()
    """Ops whose parameters lie at home: to one that runs elsewhere they are sent in each run."""

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The devices other than home that ops run on, by name."""
        return tuple(sorted({d for d in self.devices if d is not None} - {self.home}))


def validate(graph: OpGraph, placement: Placement) -> None:
    """Check what every placement must meet, whoever made it. Raises PlacementError naming the op.

    Every op is on one device, but for constants and cached state, which are wherever they are
    read; inputs and the output are at home.
    """
    if len(placement.devices) != len(graph.ops):
        raise PlacementError(
            f"the placement has {len(placement.devices)} ops, the graph {len(graph.ops)}"
        )
    for op, device in zip(graph.ops, placement.devices, strict=True):
        everywhere = graph.is_everywhere(op.id)
        if everywhere != (device is None):
            what = "a constant" if op.is_constant else "cached state"
            state = f"is {what} and has a device" if everywhere else "has no device"
            raise PlacementError(f"op {op.id} ({op.name}) {state}")
        if op.kind in (Kind.INPUT, Kind.OUTPUT) and device not in (None, placement.home):
            raise PlacementError(
                f"op {op.id} ({op.name}) must be on {placement.home}, not on {device}"
            )
