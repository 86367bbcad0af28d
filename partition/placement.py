"""A placement: on which device each op runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.errors import CutedgeError
from tracer.graph import Kind, OpGraph


class PlacementError(CutedgeError):
    """A placement that the rules of the accounting do not allow."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One device an op, constants aside: they have none, being computed wherever they are read."""

    home: str
    """The device that holds the inputs and must hold the outputs."""
    devices: Sequence[str | None]
    """By op id; None for constants alone."""
    pinned: Sequence[bool]
    """Whether the device was demanded (by a rule) rather than left over or chosen."""
    reasons: Sequence[str]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The devices other than home that ops run on, by name."""
        return tuple(sorted({d for d in self.devices if d is not None} - {self.home}))


def validate(graph: OpGraph, placement: Placement) -> None:
    """Check what every placement must meet, whoever made it. Raises PlacementError naming the op.

    Every op but a constant is on one device; inputs and the output are at home.
    """
    if len(placement.devices) != len(graph.ops):
        raise PlacementError(
            f"the placement has {len(placement.devices)} ops, the graph {len(graph.ops)}"
        )
    for op, device in zip(graph.ops, placement.devices, strict=True):
        if op.is_constant != (device is None):
            state = "is a constant and has a device" if op.is_constant else "has no device"
            raise PlacementError(f"op {op.id} ({op.name}) {state}")
        if op.kind in (Kind.INPUT, Kind.OUTPUT) and device != placement.home:
            raise PlacementError(
                f"op {op.id} ({op.name}) must be on {placement.home}, not on {device}"
            )
