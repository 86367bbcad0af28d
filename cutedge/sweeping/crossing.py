"""What a tensor is on the wire at many sizes at once, as ``partition.wire_format`` says of one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.links import Link
from costmodels.many import Floats, Ints, Over, bytes_of
from costmodels.packing import Packing
from partition.wire_format import WireFormat, there_and_back
from tracer.formula import Formula, const, parse
from tracer.graph import Tensor

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor while it crosses, by size."""

    plain: Formula
    """What would cross unpacked, in bytes."""
    payload_bytes: Ints
    packing_seconds: Floats | float = 0.0
    """Packing and unpacking; 0 where that is not known."""
    at_least: Bools | bool = False
    """Whether they leave out what is not known."""
    is_estimate: Bools | bool = False
    """Whether a ratio stands in for the payload."""


def kind_of(tensor: Tensor, wire: WireFormat) -> Any:
    """Equal for tensors that are alike on the wire."""
    packings = tuple(map(id, wire.packings.get(tensor.id, ())))
    sizes = (tensor.bytes, tensor.shape) if tensor.bytes_expr is None else ()
    made = tensor.op is not None and not tensor.is_packed
    if not packings:
        return tensor.bytes_expr, sizes, made and tensor.dtype
    return (
        tensor.bytes_expr,
        sizes,
        made and tensor.dtype,
        packings,
        tensor.shape_expr,
        wire.values.get(tensor.id),
    )


def crossing(tensor: Tensor, wire: WireFormat, over: Over) -> Crossing:
    """What a tensor is while it crosses, at each size."""
    plain = wire.plain_expr(tensor)
    found = Crossing(plain, over(plain))
    if tensor.is_packed or tensor.op is None:
        return found
    dtype, values = wire.crossing_dtype(tensor), wire.values.get(tensor.id)
    own, left = over(bytes_of(tensor)), np.ones(over.length, bool)
    for sized in wire.packings.get(tensor.id, ()):
        here = left & (own >= sized.at_least_bytes)
        packings = [one for one in sized.packings if one.packs(dtype, values)]
        if packings and here.any():
            ways = [_packed(tensor, wire, packing, over) for packing in packings]
            found = _where(here, _fastest(ways, wire.link), found)
            left &= ~here
    return found


def _packed(tensor: Tensor, wire: WireFormat, packing: Packing, over: Over) -> Crossing:
    """A tensor packed by a packing, plain where that makes it no smaller."""
    plain = wire.plain_expr(tensor)
    unpacked = Crossing(plain, over(plain))
    dtype, values = wire.crossing_dtype(tensor), wire.values.get(tensor.id)
    if packing.form(dtype, values) is None:
        return unpacked
    shape = [parse(one) for one in tensor.shape_expr or map(str, tensor.shape)]
    payload = over(const(0) + packing.payload_bytes(dtype, shape, values))
    each = packing.seconds_per_byte
    taken: Any = unpacked.payload_bytes * (each or 0.0)
    found = Crossing(plain, payload, taken, each is None, not packing.is_exact)
    if not packing.is_exact:
        return found
    return _where(payload < unpacked.payload_bytes, found, unpacked)


def _where(here: Bools, one: Crossing, other: Crossing) -> Crossing:
    """One crossing at some sizes, another at the others."""
    if here.all():
        return one
    return Crossing(
        one.plain,
        np.where(here, one.payload_bytes, other.payload_bytes),
        np.where(here, one.packing_seconds, other.packing_seconds),
        np.where(here, one.at_least, other.at_least),
        np.where(here, one.is_estimate, other.is_estimate),
    )


def _fastest(ways: list[Crossing], link: Link | None) -> Crossing:
    """The way that takes the fewest seconds there and back, at each size; of equal ones the first."""
    if len(ways) == 1:
        return ways[0]
    assert link is not None  # several packings have one
    taken = [
        np.where(way.at_least, np.inf, _moving(link, way.payload_bytes) + 2 * way.packing_seconds)
        for way in ways
    ]
    best = np.argmin(np.stack(taken), axis=0)
    found = ways[0]
    for number, way in enumerate(ways[1:], 1):
        found = _where(best == number, way, found)
    return found


def _moving(link: Link, payload: Ints) -> Floats:
    """``there_and_back`` of payloads."""
    if link.sent_large_message_bytes is None and link.received_large_message_bytes is None:
        taken: Any = there_and_back.__wrapped__(link, payload)
        return np.broadcast_to(np.asarray(taken, float), payload.shape)
    sizes, which = np.unique(payload, return_inverse=True)
    each = np.array([there_and_back(link, size) for size in sizes.tolist()])
    return each[which.reshape(payload.shape)]
