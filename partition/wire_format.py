"""What a tensor is on the wire: its dtype there, how it is packed, its bytes and their seconds.

The one place that says so. Accounting, solvers, ladders, schedules and runs all ask a
``WireFormat``, and so agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf
from typing import Literal

from costmodels.links import Link
from costmodels.packing import Form, Packing, SizedPacking
from tracer.formula import Formula, const, minimum, parse
from tracer.graph import FLOATING, ITEM_BYTES, Tensor

Status = Literal["exact", "estimate"]
"""Whether bytes are counted, or a ratio stands in for what the values decide."""

PLAIN = "plain"
"""The packing of what crosses as it lies in memory."""


@dataclass(frozen=True, slots=True)
class OnWire:
    """A tensor while it crosses."""

    dtype: str
    """The dtype that it crosses in, or that is packed."""
    payload_bytes: int
    """What crosses, without framing."""
    plain_bytes: int
    """What would cross unpacked: elements x item size of ``dtype``."""
    packing: str = PLAIN
    """The packing's name."""
    form: Form | None = None
    """What packs it; None of what crosses plain."""
    packing_seconds: float | None = 0.0
    """What packing and unpacking take together; None where that is not known."""
    status: Status = "exact"
    """Of the payload bytes."""


@dataclass(frozen=True, slots=True)
class WireFormat:
    """What floats are turned into while they cross, and which tensors are packed how.

    >>> from costmodels.packing import load_packing
    >>> from tracer.graph import Role
    >>> x = Tensor(0, 0, "x", Role.ACTIVATION, None, "float32", (2, 64), None, 512, None, None, None)
    >>> WireFormat("bfloat16").of(x).payload_bytes
    256
    >>> q8_0 = SizedPacking((load_packing("q8_0"),))
    >>> WireFormat(packings={0: (q8_0,)}).of(x).payload_bytes  # 2 x 2 blocks of 34
    136
    """

    dtype: str | None = None
    """What floats cross in; None for their own dtypes."""
    packings: Mapping[int, tuple[SizedPacking, ...]] = field(default_factory=dict)
    """Tensor -> its packings; the first that packs its dtype does. What is not here is plain."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Tensor of whole numbers -> they are 0 or more, and below this."""
    text: str = ""
    """How all tensors are packed where no rule of a policy says; empty where they are not."""
    link: Link | None = None
    """The link whose seconds decide where one of several packings is taken."""
    sizes: Mapping[int, int] = field(default_factory=dict)
    """Tensor -> payload bytes as they were measured, in place of what a ratio says."""

    def of(self, tensor: Tensor) -> OnWire:
        """What a tensor is while it crosses.

        Only floats take on the wire's dtype. Parameters cross as they are stored, and so does what
        is stored in another format than its dtype. What packing would not make smaller crosses
        plain.
        """
        found, _ = self._chosen(tensor)
        if found.status == "exact" or tensor.id not in self.sizes:
            return found
        return replace(found, payload_bytes=self.sizes[tensor.id])

    def expr(self, tensor: Tensor) -> str | None:
        """The payload bytes of a tensor as a formula; None for a concrete trace.

        By which of several packings, and whether at all from some size on, is as it is here.
        """
        if tensor.bytes_expr is None:
            return None
        plain = self.plain_expr(tensor)
        if tensor.id not in self.packings:
            return str(plain)
        here, packing = self._chosen(tensor)
        if packing is None or tensor.shape_expr is None:
            return str(plain)
        shape = [parse(size) for size in tensor.shape_expr]
        packed = const(0) + packing.payload_bytes(here.dtype, shape, self.values.get(tensor.id))
        if packing.codec == "blocks" and any(size.constant is None for size in shape[-1:]):
            return str(minimum(packed, plain))  # short rows cross plain
        return str(packed if here.packing != PLAIN else plain)

    def crossing_dtype(self, tensor: Tensor) -> str:
        """What a tensor crosses in, or is packed from."""
        return self.dtype if self.dtype and tensor.dtype in FLOATING else tensor.dtype

    def plain_expr(self, tensor: Tensor) -> Formula:
        """The bytes of a tensor of activations that crosses unpacked, as a formula."""
        plain = const(tensor.bytes) if tensor.bytes_expr is None else parse(tensor.bytes_expr)
        if tensor.is_packed or tensor.op is None:
            return plain
        dtype = self.crossing_dtype(tensor)
        if dtype == tensor.dtype:
            return plain
        return plain * ITEM_BYTES[dtype] // ITEM_BYTES[tensor.dtype]

    def _chosen(self, tensor: Tensor) -> tuple[OnWire, Packing | None]:
        """(what a tensor is by the ratios, what packs it or would if that made it smaller)"""
        if tensor.is_packed or tensor.op is None:
            return OnWire(tensor.dtype, tensor.bytes, tensor.bytes), None
        dtype = self.crossing_dtype(tensor)
        plain = OnWire(dtype, *(tensor.numel * ITEM_BYTES[dtype],) * 2)
        values = self.values.get(tensor.id)
        for sized in self.packings.get(tensor.id, ()):
            ways = [
                (self._packed(tensor, plain, packing), packing)
                for packing in sized.packings
                if packing.packs(dtype, values) and tensor.bytes >= sized.at_least_bytes
            ]
            if ways:
                found, packing = min(ways, key=self._seconds) if len(ways) > 1 else ways[0]
                return found, None if packing.codec == "plain" else packing
        return plain, None

    def _packed(self, tensor: Tensor, plain: OnWire, packing: Packing) -> OnWire:
        """A tensor packed by a packing, plain where that makes it no smaller."""
        if (form := packing.form(plain.dtype, self.values.get(tensor.id))) is None:
            return plain
        payload = packing.payload_bytes(plain.dtype, tensor.shape, self.values.get(tensor.id))
        if packing.is_exact and payload >= plain.payload_bytes:
            return plain
        each = packing.seconds_per_byte
        return replace(
            plain,
            payload_bytes=payload,
            packing=packing.name,
            form=form,
            packing_seconds=None if each is None else plain.plain_bytes * each,
            status="exact" if packing.is_exact else "estimate",
        )

    def _seconds(self, way: tuple[OnWire, Packing]) -> float:
        """There and back on the link, packed and unpacked; infinite where that is not known."""
        one, _ = way
        assert self.link is not None  # several packings have one
        if one.packing_seconds is None:
            return inf
        return there_and_back(self.link, one.payload_bytes) + 2 * one.packing_seconds


@lru_cache(maxsize=2**14)
def there_and_back(link: Link, payload: int) -> float:
    """Seconds of a tensor on a link with a bandwidth, once in each direction."""
    ways = (link.tensor_seconds(payload, way) for way in ("send", "receive"))
    return sum(0.0 if seconds is None else seconds for seconds in ways)
