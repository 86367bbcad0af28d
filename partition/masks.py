"""A graph with protected ops, and what stands for what away from home; see ``partition.masking``."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from partition.placement import Placement
from partition.schemes import Protection
from tracer.formula import Formula, const, parse
from tracer.graph import OpGraph

Part = Literal["mask", "pad", "recover", "check"]
"""What an op at home does for a protected one: ``pad`` multiplies a pad of this run by weights."""


@dataclass(frozen=True, slots=True)
class Masked:
    """What stands for a tensor away from home."""

    plain: int
    """The tensor that it stands for."""
    protection: Protection
    attack: str
    """The listed attack that recovers the plain tensor from what is sent; empty where none does."""
    withstands: str
    """What hiding it so is shown to withstand; may be empty."""


class MaskedGraph(OpGraph):
    """A graph with protected ops; see ``partition.masking.masked``."""

    plain: OpGraph
    """The graph without masks. Its tensors have the same ids here."""
    origin: Sequence[int | None]
    """By op: the op of the plain graph that it is; None for what home does for masks."""
    parts: Mapping[int, tuple[Part, int]]
    """Op that home does for masks -> (what it does, the plain op that it first does it for)."""
    protected: Mapping[int, Protection]
    """Plain op -> how it is protected."""
    masks: Mapping[int, Masked]
    """Tensor that is seen away from home in place of a plain one -> what it is."""
    pads: frozenset[int]
    """The tensors that are made before the run, for one run alone."""
    offline: Formula
    """The FLOPs that making them takes, and what checks need of the weights; of a concrete trace a
    number."""
    copies: Mapping[int, int]
    """Tensor that has the values of one of the plain graph and hides nothing of them -> that one: a
    parameter as integers, a result that is only checked."""
    wire_dtype: str | None
    """What floats cross in."""

    @cached_property
    def here(self) -> Mapping[int, int]:
        """Plain op -> its id in this graph."""
        return {plain: op for op, plain in enumerate(self.origin) if plain is not None}

    @property
    def pad_bytes(self) -> int:
        """What the pads of one run take."""
        return sum(self.tensors[pad].bytes for pad in self.pads)

    @property
    def offline_flops(self) -> int:
        """``offline`` here."""
        return self.offline.evaluate(self.meta.variables)

    @property
    def mask_flops(self) -> Formula:
        """What home computes in a run for masks, recovery and checks; of a concrete trace a number."""
        costs = [self.ops[op].cost for op in self.parts]
        return sum((parse(one.flops_expr or str(one.flops or 0)) for one in costs), const(0))

    @property
    def home_mask_flops(self) -> int:
        """``mask_flops`` here."""
        return self.mask_flops.evaluate(self.meta.variables)

    def placed(self, placement: Placement) -> Placement:
        """A placement of the plain graph, with what masks need at home."""
        devices: list[str | None] = []
        pinned: list[bool] = []
        reasons: list[str] = []
        for op, plain in enumerate(self.origin):
            if plain is None:
                what, of = self.parts[op]
                devices.append(placement.home)
                pinned.append(True)
                reasons.append(f"{what} for {self.plain.ops[of].name}: {self.protected[of]}")
            else:
                devices.append(placement.devices[plain])
                pinned.append(placement.pinned[plain])
                reasons.append(placement.reasons[plain])
        streams = frozenset(self.here[op] for op in placement.streams)
        return Placement(placement.home, tuple(devices), tuple(pinned), tuple(reasons), streams)

    def plain_placement(self, placement: Placement) -> Placement:
        """A placement of this graph, without what home does for masks."""
        ops = [self.here[op] for op in range(len(self.plain.ops))]
        streams = frozenset(
            plain for op in placement.streams if (plain := self.origin[op]) is not None
        )
        return Placement(
            placement.home,
            tuple(placement.devices[op] for op in ops),
            tuple(placement.pinned[op] for op in ops),
            tuple(placement.reasons[op] for op in ops),
            streams,
        )


def plain_of(graph: OpGraph) -> OpGraph:
    """A graph without its masks."""
    return graph.plain if isinstance(graph, MaskedGraph) else graph


def with_masks_placed(graph: OpGraph, placement: Placement) -> Placement:
    """A placement of the plain graph, as one of a graph that may have masks."""
    return graph.placed(placement) if isinstance(graph, MaskedGraph) else placement


def without_masks_placed(graph: OpGraph, placement: Placement) -> Placement:
    """The other way round."""
    return graph.plain_placement(placement) if isinstance(graph, MaskedGraph) else placement


def seen_through(
    graph: MaskedGraph,
    secret: Collection[int],
    covers: Iterable[tuple[Collection[int], Collection[str]]],
) -> frozenset[int]:
    """What stands for ``secret`` tensors and does not hide them well enough.

    ``covers`` are by secret the tensors that it covers, and the schemes that it allows. Well enough
    is a scheme that each secret allows which covers the tensor, that withstands something and has
    no attack. A copy hides nothing.
    """
    weak = {copy for copy, plain in graph.copies.items() if plain in secret}
    for tensor, one in graph.masks.items():
        allowed = [schemes for covered, schemes in covers if one.plain in covered]
        hidden = one.withstands and not one.attack and allowed
        if one.plain in secret and not (
            hidden and all(one.protection.scheme in schemes for schemes in allowed)
        ):
            weak.add(tensor)
    return frozenset(weak)
