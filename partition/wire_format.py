"""What a tensor is on the wire: its dtype there, how it is packed, its bytes and their seconds.

The one place that says so. Accounting, solvers, ladders, schedules and runs all ask a
``WireFormat``, and so agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from costmodels.packing import Form, Packing
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
    >>> WireFormat(packings={0: (load_packing("q8_0"),)}).of(x).payload_bytes  # 2 x 2 blocks of 34
    136
    """

    dtype: str | None = None
    """What floats cross in; None for their own dtypes."""
    packings: Mapping[int, tuple[Packing, ...]] = field(default_factory=dict)
    """Tensor -> its packings; the first that packs its dtype does. What is not here is plain."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Tensor of whole numbers -> they are 0 or more, and below this."""
    text: str = ""
    """How all tensors are packed where no rule of a policy says; empty where they are not."""
    sizes: Mapping[int, int] = field(default_factory=dict)
    """Tensor -> payload bytes as they were measured, in place of what a ratio says."""

    def of(self, tensor: Tensor) -> OnWire:
        """What a tensor is while it crosses.

        Only floats take on the wire's dtype. Parameters cross as they are stored, and so does what
        is stored in another format than its dtype. What packing would not make smaller crosses
        plain.
        """
        if tensor.is_packed or tensor.op is None:
            return OnWire(tensor.dtype, tensor.bytes, tensor.bytes)
        dtype = self.dtype if self.dtype and tensor.dtype in FLOATING else tensor.dtype
        plain = tensor.numel * ITEM_BYTES[dtype]
        packing, form = self._packing(tensor, dtype)
        if packing is None or form is None:
            return OnWire(dtype, plain, plain)
        payload = packing.payload_bytes(dtype, tensor.shape, self.values.get(tensor.id))
        if not packing.is_exact:
            payload = self.sizes.get(tensor.id, payload)
        elif payload >= plain:
            return OnWire(dtype, plain, plain)
        each = packing.seconds_per_byte
        return OnWire(
            dtype,
            payload,
            plain,
            packing.name,
            form,
            None if each is None else plain * each,
            "exact" if packing.is_exact else "estimate",
        )

    def expr(self, tensor: Tensor) -> str | None:
        """The payload bytes of a tensor as a formula; None for a concrete trace."""
        if tensor.bytes_expr is None:
            return None
        here = self.of(tensor)
        plain = tensor.bytes_expr
        if here.dtype != tensor.dtype:
            plain = str(parse(plain) * ITEM_BYTES[here.dtype] // ITEM_BYTES[tensor.dtype])
        packing, form = self._packing(tensor, here.dtype)
        if packing is None or form is None or tensor.shape_expr is None:
            return plain
        shape = [parse(size) for size in tensor.shape_expr]
        packed: Formula = const(0) + packing.payload_bytes(
            here.dtype, shape, self.values.get(tensor.id)
        )
        if form.codec == "blocks" and any(size.constant is None for size in shape[-1:]):
            return str(minimum(packed, parse(plain)))  # short rows cross plain
        return str(packed) if here.packing != PLAIN else plain

    def _packing(self, tensor: Tensor, dtype: str) -> tuple[Packing | None, Form | None]:
        """The first of a tensor's packings that packs a dtype, and what it makes of it."""
        if tensor.is_packed or tensor.op is None:
            return None, None
        for packing in self.packings.get(tensor.id, ()):
            if packing.name == PLAIN:
                break
            if form := packing.form(dtype, self.values.get(tensor.id)):
                return packing, form
        return None, None
