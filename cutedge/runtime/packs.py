"""Packing for real: what crosses is turned into fewer bytes at one end, and back at the other.

The one place of the runtime that asks pyarrow, for its codecs, and only where something is
compressed: a worker that packs nothing loads nothing of it. What comes in is taken for what the
plan announced: it is unpacked into memory of the announced size, and anything longer, shorter or
damaged is an error.
"""

from typing import Any

import torch
import torch.nn.functional as nn

from costmodels.packing import COMPRESSED, SCALE_BYTES, Form
from cutedge.runtime import RunError

_LARGEST_SCALE = 65504.0
"""The largest float16."""


def prepare(forms: "set[Form]") -> None:
    """Load what these need, so that no transfer waits for it."""
    for form in forms:
        if form.codec in COMPRESSED:
            _codec(form)


def pack(form: Form, tensor: torch.Tensor, laid: torch.Tensor) -> memoryview:
    """A tensor's packed bytes; ``laid`` is it with its axes as they lie in memory.

    What compression does not make smaller is left as it is: its bytes are as many as they were.
    Raises RunError for a whole number out of its range.
    """
    if form.codec in COMPRESSED:
        return _compressed(form, bytes_of(laid), tensor.element_size())
    if not tensor.numel():
        return memoryview(b"")
    packed = _blocks(form, tensor) if form.codec == "blocks" else _whole(form, tensor)
    return memoryview(packed.cpu().numpy())


def unpack(
    form: Form, raw: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """What was packed. Of what was compressed a row of elements, as it lay in memory; else the
    tensor.

    Raises RunError for bytes that are not of a tensor of this size.
    """
    elements = torch.Size(shape).numel()
    if form.codec in COMPRESSED:
        return _decompressed(form, raw, elements, dtype)
    if not elements:
        return torch.empty(shape, dtype=dtype)
    if form.codec == "blocks":
        return _unblocked(form, raw, shape).to(dtype)
    return _unwhole(form, raw, elements).to(dtype).reshape(shape)


def elements_of(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A row of bytes as a row of elements, in the same memory."""
    if dtype.is_complex:
        return torch.view_as_complex(raw.view(dtype.to_real()).reshape(-1, 2))
    return raw.view(dtype)


def bytes_of(laid: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor that fills its memory, in a row, where this process can read them."""
    flat = laid.cpu().reshape(-1)
    return (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8)


# --- blocks: GGUF's Q8_0 and Q4_0 -----------------------------------------------------------------


def _blocks(form: Form, tensor: torch.Tensor) -> torch.Tensor:
    """Each block is its scale and its values, row by row, as GGUF lays them out.

    A scale is no larger than float16 has it, so that a mask's minimum becomes the least value that
    there is.
    """
    last = tensor.shape[-1] if tensor.dim() else 1
    rows = tensor.float().reshape(-1, last)
    if short := -last % form.group:
        rows = nn.pad(rows, (0, short))
    values = rows.reshape(-1, form.group)
    most = 2 ** (form.bits - 1) - 1
    low, high = values.aminmax(dim=1, keepdim=True)
    if form.bits == 8:
        scale = torch.maximum(high, -low) / most
    else:  # the largest, with its sign, is the least of the 16 values
        scale = torch.where(-low > high, low, high) / -(most + 1)
    halves = scale.clamp(-_LARGEST_SCALE, _LARGEST_SCALE).half()
    wide = halves.float()
    whole = (values * torch.where(wide == 0, 0.0, 1 / wide)).round_()
    whole = whole.clamp_(-most if form.bits == 8 else -most - 1, most).to(torch.int8)
    if form.bits == 4:
        first, second = (whole + (most + 1)).view(torch.uint8).chunk(2, 1)
        whole = first | (second << 4)
    return torch.cat([halves.view(torch.uint8), whole.view(torch.uint8)], 1).reshape(-1)


def _unblocked(form: Form, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    blocks = raw.reshape(-1, form.group * form.bits // 8 + SCALE_BYTES)
    scale = blocks[:, :SCALE_BYTES].contiguous().view(torch.float16).float()
    packed = blocks[:, SCALE_BYTES:].contiguous()
    if form.bits == 4:
        packed = torch.cat([packed & 15, packed >> 4], 1).to(torch.int8) - 8
    last = shape[-1] if shape else 1
    values = packed.view(torch.int8).float() * scale
    rows = values.reshape(-1, last + -last % form.group)
    return rows[:, :last].reshape(shape)


# --- whole numbers by their range -----------------------------------------------------------------


def _whole(form: Form, tensor: torch.Tensor) -> torch.Tensor:
    """The lowest bytes of each number, or a bit of each bool."""
    flat = tensor.reshape(-1)
    if form.bits == 1:
        padded = nn.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).reshape(-1, 8)
        return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(
            1, dtype=torch.uint8
        )
    wide = flat.to(torch.int64)
    least, most = int(wide.min()), int(wide.max())
    if least < 0 or most >= 2**form.bits:
        raise RunError(
            f"values from {least:,} to {most:,} are not in the {form.bits // 8} bytes that packing "
            "by range has for them: do not pack them"
        )
    return wide.view(torch.uint8).reshape(-1, 8)[:, : form.bits // 8].reshape(-1).contiguous()


def _unwhole(form: Form, raw: torch.Tensor, elements: int) -> torch.Tensor:
    if form.bits == 1:
        bits = (raw.reshape(-1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return bits.reshape(-1)[:elements]
    wide = torch.zeros(elements, 8, dtype=torch.uint8)
    wide[:, : form.bits // 8] = raw.reshape(elements, -1)
    return wide.view(torch.int64).reshape(-1)


# --- lossless -------------------------------------------------------------------------------------


def _codec(form: Form) -> Any:
    import pyarrow as pa  # here alone, and only for what is compressed

    return pa.Codec(form.codec, form.level if form.codec == "zstd" else None)


def _compressed(form: Form, flat: torch.Tensor, size: int) -> memoryview:
    rows = flat.numpy()
    if form.byte_planes:
        rows = rows.reshape(-1, size).T.ravel()
    plain = memoryview(rows)
    packed = memoryview(_codec(form).compress(plain)) if plain else plain
    return packed if packed.nbytes < plain.nbytes else memoryview(flat.numpy())


def _decompressed(form: Form, raw: torch.Tensor, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """As a stream, into memory of the right size: no more is ever unpacked, and no less passes.

    (A codec's own call would leave a rest of its memory as it found it where a frame is short.)
    """
    import pyarrow as pa

    size = torch.empty(0, dtype=dtype).element_size()
    made = torch.empty(elements * size, dtype=torch.uint8)
    rest = memoryview(made.numpy())
    try:
        with pa.CompressedInputStream(
            pa.BufferReader(pa.py_buffer(raw.numpy())), form.codec
        ) as stream:
            while rest and (got := stream.readinto(rest)):
                rest = rest[got:]
            sound = not rest and not stream.read(1)
    except (OSError, ValueError, MemoryError) as error:
        raise RunError(f"a tensor that was packed by {form.codec} is damaged") from error
    if not sound:
        raise RunError(f"a tensor that was packed by {form.codec} has not its size when unpacked")
    if form.byte_planes:
        made = torch.from_numpy(made.numpy().reshape(size, -1).T.ravel())
    return elements_of(made, dtype)
