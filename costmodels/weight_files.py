"""Bytes by tensor out of the headers of weight files: GGUF, safetensors and its index.

No weight is read: a header alone, as a download that was cut short has it, is enough. Both formats
lay tensors out without gaps, so that a header tells itself whether it is whole: what each tensor
takes by its type and shape must lead to where the next one begins.
"""

import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from costmodels.weight_parts import Weight, weights_of
from costmodels.weights import shipped_encoding, with_bytes
from tracer.errors import InputError
from tracer.files import open_file, parse_json, read_bounded
from tracer.graph import OpGraph, Role

SUFFIXES = (".gguf", ".safetensors", ".safetensors.index.json")
"""The ends of names that are files of weights."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in a file."""

    shape: tuple[int, ...]
    bytes: int


def stored_as(graph: OpGraph, file: Path) -> OpGraph:
    """A graph with the bytes of its parameters as a file has them; costs are those of before.

    Raises InputError for a file that cannot be read, and for one of another model.
    """
    gguf = file.name.endswith(".gguf")
    index = _index(file) if file.name.endswith(".index.json") else {}
    parts = _parts_of(file) if gguf else [file.parent / name for name in sorted({*index.values()})]
    parts = parts or [file]
    within = {part.name: _gguf(part) if gguf else _safetensors(part) for part in parts}
    held: dict[str, Held] = {}
    for tensors in within.values():
        if both := sorted(held.keys() & tensors.keys()):
            raise InputError(f"{file}: {both[0]} is in two of its files: they are not of one model")
        held |= tensors
    for name, part in index.items():
        if name not in within[part]:
            raise InputError(f"{file}: {part} has no {name}: they are not of one download")
    sizes, left = _by_part(graph, held, file) if gguf else _by_name(graph, held, file)
    other = f"{left:,} bytes of the file are of no parameter here" if left else ""
    return with_bytes(graph, sizes, file.name.removesuffix(".index.json"), other)


def _open(file: Path) -> BinaryIO:
    try:
        return open_file(file)
    except OSError as error:
        raise _unread(file, error) from error


def _unread(file: Path, error: OSError) -> InputError:
    return InputError(f"weights file {file} cannot be read: {error.strerror or error}")


# --- safetensors ----------------------------------------------------------------------------------


_MOST_INDEX, _MOST_HEADER = 2**26, 2**25
"""Bytes of an index, and of a header of safetensors: some ten times what the largest have."""


def _index(file: Path) -> dict[str, str]:
    """Tensor -> the file that it is in, beside the index, where all of them must be."""
    try:
        told = parse_json(read_bounded(file, _MOST_INDEX))
        places: dict[str, str] = told["weight_map"]
        for name in places.values():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(name)
    except OSError as error:
        raise _unread(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is no index of safetensors: it has no weight_map of tensors to files beside it"
        ) from error
    if not places:
        raise InputError(f"{file} is no index of safetensors: its weight_map is empty")
    names = sorted({*places.values()})
    if missing := [name for name in names if not os.path.exists(file.parent / name)]:
        about = told.get("metadata")
        total = about.get("total_size") if isinstance(about, dict) else None
        known = f" (all together are {total:,} bytes)" if type(total) is int else ""
        raise InputError(
            f"{file}: {', '.join(missing[:3])} {'are' if len(missing) > 1 else 'is'} not beside "
            f"it, and an index does not say what each tensor takes{known}: put the files there, "
            "their first megabytes are enough"
        )
    return places


def _safetensors(file: Path) -> dict[str, Held]:
    try:
        with _open(file) as stream:
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


_UP = re.compile(r"experts\.\d+\.(gate_proj|up_proj|w1|w3)\b")
_DOWN = re.compile(r"experts\.\d+\.(down_proj|w2)\b")


def _by_name(graph: OpGraph, held: Mapping[str, Held], file: Path) -> tuple[dict[int, int], int]:
    """(storage -> bytes, bytes of what is of no parameter): by names, scales with what they are of.

    Experts that stand one by one are those of a stack.
    """
    owners = {t.name: t.id for t in graph.tensors if _is_owner(t)}
    bases = {name.removesuffix(".weight"): storage for name, storage in owners.items()}
    tails: dict[str, set[str]] = defaultdict(set)
    for base in {*owners, *bases}:
        parts = base.split(".")
        for start in range(len(parts)):
            tails[".".join(parts[start:])].add(base)
    sizes: dict[int, int] = defaultdict(int)
    left = 0
    known = {**bases, **owners}
    for name, one in held.items():
        text = _DOWN.sub("experts.down_proj", _UP.sub("experts.gate_up_proj", name))
        text = text.replace("block_sparse_moe.", "mlp.")
        found = next((at for at in _shorter(text) if at in known), None)
        if found is None:
            some = (tails[at] for at in _shorter(text) if len(tails.get(at, ())) == 1)
            found = next((next(iter(one)) for one in some), None)
        if found is None:
            left += one.bytes
        else:
            sizes[known[found]] += one.bytes
    missing = [name for name, storage in owners.items() if storage not in sizes]
    if missing:
        raise InputError(
            f"{file} has no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}: it is "
            f"of another model than {graph.meta.model}, or one of several files: name its index"
        )
    return dict(sizes), left


def _shorter(name: str) -> Iterable[str]:
    """A name, and what it may be a scale or a part of: without its last word, and the one before."""
    yield name
    for end in (r"_(blocks|scales)$", r"\.[^.]+$", r"\.[^.]+\.[^.]+$"):
        if (cut := re.sub(end, "", name)) != name:
            yield cut


def _is_owner(tensor: Any) -> bool:
    return tensor.role is Role.PARAMETER and tensor.alias_of is None


# --- GGUF -----------------------------------------------------------------------------------------

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

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value in a header -> its bytes; 8 is text, 9 a list."""


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


def _gguf(file: Path) -> dict[str, Held]:
    try:
        with _open(file) as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("no GGUF")
            version, tensors, entries = _unpack(stream, "<IQQ")
            if version not in (2, 3):
                raise InputError(f"{file} is GGUF version {version}; 2 and 3 are read")
            _check_most("tensors", tensors)
            _check_most("entries", entries)
            alignment = 32
            for _ in range(entries):
                key = _text(stream)
                (kind,) = _unpack(stream, "<I")
                if (key, kind) == ("general.alignment", 4):
                    (alignment,) = _unpack(stream, "<I")
                else:
                    _skip(stream, kind)
            told = [_told(stream) for _ in range(tensors)]
            begin = _aligned(stream.tell(), alignment)
            size = os.fstat(stream.fileno()).st_size - begin
        return _laid_out(told, alignment, size)
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


def _skip(stream: BinaryIO, kind: int) -> None:
    """Pass over a value. A list of lists, which no writer makes, is refused."""
    inner, count = _unpack(stream, "<IQ") if kind == 9 else (kind, 1)
    if inner in _SCALARS:
        _check_most("bytes", count)
        stream.seek(count * _SCALARS[inner], 1)
    elif inner == 8:
        _check_most("list", count)
        for _ in range(count):
            (length,) = _unpack(stream, "<Q")
            _check_most("text", length)
            stream.seek(length, 1)
    else:
        raise ValueError(inner)
    _check_most("bytes", stream.tell())


_PARTS = {
    "token_embd": "embedding",
    "output": "head",
    "position_embd": "positions",
    "attn_q": "attn_q",
    "attn_q_b": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_kv_b": "attn_v",
    "attn_k_b": "attn_v",
    "attn_v_b": "attn_v",
    "attn_qkv": "attn_qkv",
    "attn_output": "attn_output",
    "attn_q_a": "attn",
    "attn_kv_a_mqa": "attn",
    "ffn_gate": "ffn_up",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "ffn_gate_shexp": "ffn_up",
    "ffn_up_shexp": "ffn_up",
    "ffn_down_shexp": "ffn_down",
    "ffn_gate_exps": "experts_up",
    "ffn_up_exps": "experts_up",
    "ffn_gate_up_exps": "experts_up",
    "ffn_down_exps": "experts_down",
    "ffn_gate_inp": "router",
}
"""What GGUF calls a matrix -> its part; all else are vectors."""

_BLOCK = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")
_Key = tuple[str, int | None]


def _by_part(graph: OpGraph, held: Mapping[str, Held], file: Path) -> tuple[dict[int, int], int]:
    """(storage -> bytes, bytes of what is of no parameter): by what tensors are, and their layers.

    Tensors that are one part of one layer share what these take by their elements; vectors of all
    layers are one group.
    """
    found, _ = weights_of(graph)
    groups: dict[_Key, list[int]] = defaultdict(list)
    for storage, weight in found.items():
        groups[_key(weight)].append(storage)
    bytes_, elements = defaultdict[_Key, int](int), defaultdict[_Key, int](int)
    tied = ("head", None) in groups and ("embedding", None) not in groups
    for name, one in held.items():
        match = _BLOCK.fullmatch(name)
        part = _PARTS.get(match[2], "vector") if match else "vector"
        if tied and part == "embedding":
            part = "head"
        layer = int(match[1]) if match and match[1] and part != "vector" else None
        bytes_[part, layer] += one.bytes
        elements[part, layer] += prod(one.shape)
    sizes: dict[int, int] = {}
    for key, storages in groups.items():
        count = sum(graph.tensors[s].numel for s in storages)
        if not elements[key] or (key[0] != "vector" and elements[key] != count):
            where = key[0] if key[1] is None else f"{key[0]} of layer {key[1]}"
            raise InputError(
                f"{file} has {elements[key]:,} weights for {where}, and {graph.meta.model} has "
                f"{count:,}: it is of another model, or of one with other parts"
            )
        for storage in storages:
            sizes[storage] = bytes_[key] * graph.tensors[storage].numel // elements[key]
    return sizes, max(sum(bytes_.values()) - sum(sizes.values()), 0)


def _key(weight: Weight) -> _Key:
    whole = weight.part in ("vector", "head", "embedding", "positions")
    return weight.part, None if whole else weight.layer
