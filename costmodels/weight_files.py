"""Bytes by tensor out of the headers of weight files: GGUF, safetensors and its index.

No weight is read: a header alone, as a download that was cut short has it, is enough.
"""

import json
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
    held = {
        name: one
        for part in (_parts_of(file) if gguf else _shards_of(file))
        for name, one in (_gguf(part) if gguf else _safetensors(part)).items()
    }
    sizes, left = _by_part(graph, held, file) if gguf else _by_name(graph, held, file)
    other = f"{left:,} bytes of the file are of no parameter here" if left else ""
    return with_bytes(graph, sizes, file.name.removesuffix(".index.json"), other)


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise InputError(
            f"weights file {file} cannot be read: {error.strerror or error}"
        ) from error


# --- safetensors ----------------------------------------------------------------------------------


def _shards_of(file: Path) -> list[Path]:
    """The files of an index, beside it; of another file itself."""
    if not file.name.endswith(".index.json"):
        return [file]
    try:
        with _open(file) as stream:
            index = json.load(stream)
        names = sorted(set(index["weight_map"].values()))
        shards = [file.parent / str(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no index of safetensors: it has no weight_map") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        total = (index.get("metadata") or {}).get("total_size")
        known = f" (all together are {total:,} bytes)" if type(total) is int else ""
        raise InputError(
            f"{file}: {', '.join(missing[:3])} {'are' if len(missing) > 1 else 'is'} not beside "
            f"it, and an index does not say what each tensor takes{known}: put the files there, "
            "their first megabytes are enough"
        )
    return shards


def _safetensors(file: Path) -> dict[str, Held]:
    try:
        with _open(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 2**30:
                raise ValueError(length)
            header = json.loads(stream.read(length))
        return {
            name: Held(tuple(one["shape"]), one["data_offsets"][1] - one["data_offsets"][0])
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise InputError(f"{file} is no .safetensors file, or its header is cut") from error


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


def _gguf(file: Path) -> dict[str, Held]:
    try:
        with _open(file) as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError
            version, tensors, entries = _unpack(stream, "<IQQ")
            if version not in (2, 3):
                raise InputError(f"{file} is GGUF version {version}; 2 and 3 are read")
            for _ in range(entries):
                _text(stream)
                _skip(stream, *_unpack(stream, "<I"))
            told = []
            for _ in range(tensors):
                name = _text(stream)
                (rank,) = _unpack(stream, "<I")
                shape = _unpack(stream, f"<{rank}Q")
                told.append((name, shape, *_unpack(stream, "<IQ")))
            size = max(file.stat().st_size - stream.tell(), 0)
    except (ValueError, struct.error, OverflowError, MemoryError) as error:
        raise InputError(f"{file} is no .gguf file, or its header is cut") from error
    ends = sorted(offset for *_, offset in told)
    after = dict(zip(ends, [*ends[1:], size], strict=False))
    return {
        name: Held(tuple(reversed(shape)), _size(shape, kind, after[offset] - offset))
        for name, shape, kind, offset in told
    }


def _size(shape: tuple[int, ...], kind: int, span: int) -> int:
    if kind not in _TYPES or not shape:
        return span
    return shipped_encoding(_TYPES[kind]).bytes(prod(shape[1:]), shape[0])


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _text(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    if length > 2**24:
        raise ValueError(length)
    return stream.read(length).decode("utf-8")


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind == 8:
        _text(stream)
    elif kind == 9:
        inner, count = _unpack(stream, "<IQ")
        if inner in _SCALARS:
            stream.seek(count * _SCALARS[inner], 1)
        else:
            for _ in range(count):
                _skip(stream, inner)
    elif kind in _SCALARS:
        stream.seek(_SCALARS[kind], 1)
    else:
        raise ValueError(kind)


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
