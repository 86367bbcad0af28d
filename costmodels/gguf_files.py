"""What the header of a GGUF file says: its entries, and what each tensor takes.

No weight is read: a header alone, as a download that was cut short has it, is enough. Tensors lie
without gaps, so that a header tells itself whether it is whole: what each takes by its type and
shape must lead to where the next one begins.
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from costmodels.weights import shipped_encoding
from tracer.errors import InputError
from tracer.files import open_file
from tracer.safetensors_files import Held, unread


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file's header."""

    entries: Mapping[str, Any]
    """Numbers, texts and short lists of numbers by their keys; of a longer list, and of one of
    texts, its length as ``Long``."""
    tensors: Mapping[str, Held]
    """Of all files that the model is split into."""


@dataclass(frozen=True, slots=True)
class Long:
    """A list that is not kept."""

    length: int


def read_gguf(file: Path) -> Gguf:
    """The header of a file, with the tensors of all that it is split into.

    Raises InputError for a file that cannot be read or is damaged.
    """
    read = [_gguf(part) for part in _parts_of(file)]
    return Gguf(read[0].entries, merged(file, (one.tensors for one in read)))


def merged(file: Path, within: Iterable[Mapping[str, Held]]) -> dict[str, Held]:
    """The tensors of several files. Raises InputError where one is in two of them."""
    held: dict[str, Held] = {}
    for tensors in within:
        if both := sorted(held.keys() & tensors.keys()):
            raise InputError(f"{file}: {both[0]} is in two of its files: they are not of one model")
        held |= tensors
    return held


_TYPES = {
    0: "float32",
    1: "float16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    10: "q2_k",
    11: "q3_k",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    20: "iq4_nl",
    23: "iq4_xs",
    28: "float64",
    30: "bfloat16",
    39: "mxfp4",
}
"""The numbers of ggml's types; what others take is told by where the next tensor begins."""

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Type of a value in a header -> how it is packed; 8 is text, 9 a list."""

_TEXT, _LIST = 8, 9
_KEPT = 2**12
"""The most numbers of a list that is kept: those of a value a layer."""


def _parts_of(file: Path) -> list[Path]:
    """A file, or all of those that it is split into."""
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file.name)
    if match is None:
        return [file]
    count = int(match[2])
    return [file.with_name(f"{match[1]}-{n:05}-of-{match[2]}.gguf") for n in range(1, count + 1)]


_MOST_OF_GGUF = {"bytes": 2**26, "tensors": 2**16, "entries": 2**16, "list": 2**21, "text": 2**24}
"""Of a header: bytes, tensors, entries, texts in one list, bytes of a text. The largest have some
tenths of these; one that says more is damaged, and would be read for minutes."""


def _gguf(file: Path) -> Gguf:
    try:
        with open_file(file) as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("no GGUF")
            version, tensors, entries = _unpack(stream, "<IQQ")
            if version not in (2, 3):
                raise InputError(f"{file} is GGUF version {version}; 2 and 3 are read")
            _check_most("tensors", tensors)
            _check_most("entries", entries)
            kept: dict[str, Any] = {}
            for _ in range(entries):
                key = _text(stream)
                kept[key] = _value(stream, *_unpack(stream, "<I"))
            alignment = kept.get("general.alignment", 32)
            if type(alignment) is not int or alignment < 1:
                raise ValueError(alignment)
            told = [_told(stream) for _ in range(tensors)]
            begin = _aligned(stream.tell(), alignment)
            size = os.fstat(stream.fileno()).st_size - begin
        return Gguf(kept, _laid_out(told, alignment, size))
    except OSError as error:
        raise unread(file, error) from error
    except (ValueError, struct.error, OverflowError, ZeroDivisionError) as error:
        raise InputError(
            f"{file} is no .gguf file, or its header is cut or damaged: load it anew"
        ) from error


_Told = tuple[str, tuple[int, ...], int, int]


def _told(stream: BinaryIO) -> _Told:
    """(name, shape with the rows' length first, type, place in the data) of a tensor."""
    name = _text(stream)
    (rank,) = _unpack(stream, "<I")
    if rank > 4:
        raise ValueError(rank)
    shape = _unpack(stream, f"<{rank}Q")
    return name, shape, *_unpack(stream, "<IQ")


def _laid_out(told: list[_Told], alignment: int, size: int) -> dict[str, Held]:
    """What each tensor takes. Raises ValueError where one does not begin where another ends.

    Those of types that are not known take what is left to the next one, or to the end of a file
    that has ``size`` bytes of data.
    """
    places = [*(offset for *_, offset in told), max(size, 0)]
    held: dict[str, Held] = {}
    end = 0
    for (name, shape, kind, offset), after in zip(told, places[1:], strict=True):
        if name in held or offset != end:
            raise ValueError(name)
        taken = after - offset
        if kind in _TYPES:
            way, row = shipped_encoding(_TYPES[kind]), (*shape, 1)[0]
            if row % (way.group_elements or 1):
                raise ValueError(row)
            taken = way.bytes(prod(shape[1:]), row)
        if taken < 0 or offset + taken >= 2**63:
            raise ValueError(taken)
        held[name] = Held(tuple(reversed(shape)), taken)
        end = _aligned(offset + taken, alignment)
    if size > end:
        raise ValueError(size)
    return held


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _check_most(what: str, count: int) -> None:
    if count > _MOST_OF_GGUF[what]:
        raise ValueError(count)


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _text(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    _check_most("text", length)
    _check_most("bytes", stream.tell())
    return stream.read(length).decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    """A value, or how long it is. A list of lists, which no writer makes, is refused."""
    if kind != _LIST:
        found = _text(stream) if kind == _TEXT else _numbers(stream, kind, 1)[0]
        _check_most("bytes", stream.tell())
        return found
    inner, count = _unpack(stream, "<IQ")
    if inner == _TEXT:
        _check_most("list", count)
        for _ in range(count):
            (length,) = _unpack(stream, "<Q")
            _check_most("text", length)
            stream.seek(length, 1)
            _check_most("bytes", stream.tell())
        return Long(count)
    _check_most("bytes", count)
    if count <= _KEPT:
        return _numbers(stream, inner, count)
    stream.seek(count * struct.calcsize(_packing(inner)), 1)
    _check_most("bytes", stream.tell())
    return Long(count)


def _numbers(stream: BinaryIO, kind: int, count: int) -> list[Any]:
    return list(_unpack(stream, f"<{count}{_packing(kind)}"))


def _packing(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(kind)
    return _SCALARS[kind]
