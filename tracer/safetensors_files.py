"""What the headers of safetensors and of its index say: one reader for all who read checkpoints.

No weight is read: a header alone, as a download that was cut short has it, is enough.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tracer.errors import InputError
from tracer.files import open_file, parse_json, read_bounded
from tracer.words import plain

INDEX = "model.safetensors.index.json"
"""What an index is called in a checkpoint's folder."""

_MOST_INDEX, _MOST_HEADER = 2**26, 2**25
"""Bytes of an index, and of a header of safetensors: some ten times what the largest have."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in a file."""

    shape: tuple[int, ...]
    bytes: int


def unread(file: Path, error: OSError) -> InputError:
    """The error for a file of weights that the system does not read."""
    return InputError(f"weights file {file} cannot be read: {error.strerror or error}")


def index_of(file: Path) -> dict[str, str]:
    """Tensor -> the file that it is in, beside the index. Raises InputError for what is no index."""
    return _index(file)[0]


def parts_of(file: Path) -> dict[str, str]:
    """The same where all those files are there. Raises InputError where one is not."""
    places, total = _index(file)
    names = sorted({*places.values()})
    if missing := [name for name in names if not os.path.exists(file.parent / name)]:
        known = f" (all together are {total:,} bytes)" if total is not None else ""
        raise InputError(
            f"{file}: {', '.join(missing[:3])} {'are' if len(missing) > 1 else 'is'} not beside "
            f"it, and an index does not say what each tensor takes{known}: put the files there, "
            "their first megabytes are enough"
        )
    return places


def _index(file: Path) -> tuple[dict[str, str], int | None]:
    """(tensor -> file, bytes of all where it says so)"""
    try:
        told = parse_json(read_bounded(file, _MOST_INDEX))
        places: dict[str, str] = told["weight_map"]
        for name in places.values():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{plain(name)} is not a file of this folder")
    except OSError as error:
        raise unread(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is no index of safetensors: it has no weight_map of tensors to files beside it"
        ) from error
    if not places:
        raise InputError(f"{file} is no index of safetensors: its weight_map is empty")
    about = told.get("metadata")
    total = about.get("total_size") if isinstance(about, dict) else None
    return places, total if type(total) is int else None


def header_of(file: Path) -> dict[str, Held]:
    """The tensors of a file. Raises InputError for one that is damaged.

    Tensors lie without gaps, so that a header tells itself whether it is whole: what each takes by
    its dtype and shape must lead to where the next one begins.
    """
    try:
        with open_file(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MOST_HEADER:
                raise ValueError(length)
            text = stream.read(length)
            if len(text) < length:
                raise ValueError(length)
            header = parse_json(text)
            data = os.fstat(stream.fileno()).st_size - stream.tell()
        header.pop("__metadata__", None)
        spans = {name: _span(one) for name, one in header.items()}
        end = 0
        for begin, after in sorted(spans.values()):
            if begin != end:
                raise ValueError(begin)
            end = after
        if data > end:
            raise ValueError(data)
        return {
            name: Held(tuple(header[name]["shape"]), after - begin)
            for name, (begin, after) in spans.items()
        }
    except OSError as error:
        raise unread(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"{file} is no .safetensors file, or its header is cut or damaged: load it anew"
        ) from error


_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an element by the dtypes of safetensors; of others nothing is held against the shape."""


def _span(told: Mapping[str, Any]) -> tuple[int, int]:
    """Where a tensor begins and ends. Raises ValueError where that is not what its shape takes."""
    (begin, after), shape, bits = told["data_offsets"], told["shape"], _BITS.get(told["dtype"])
    if not all(type(n) is int and 0 <= n < 2**63 for n in (begin, after, *shape)):
        raise ValueError(told)
    if begin > after or (bits is not None and prod(shape) * bits != 8 * (after - begin)):
        raise ValueError(told)
    return begin, after
