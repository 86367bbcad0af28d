"""Bytes by tensor out of the headers of weight files: GGUF, safetensors and its index."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from costmodels.gguf_files import merged, read_gguf
from costmodels.weight_parts import Weight, weights_of
from costmodels.weights import with_bytes
from tracer.errors import InputError
from tracer.graph import OpGraph, Role
from tracer.safetensors_files import Held, header_of, parts_of

SUFFIXES = (".gguf", ".safetensors", ".safetensors.index.json")
"""The ends of names that are files of weights."""


def stored_as(graph: OpGraph, file: Path) -> OpGraph:
    """A graph with the bytes of its parameters as a file has them; costs are those of before.

    Raises InputError for a file that cannot be read, and for one of another model.
    """
    gguf = file.name.endswith(".gguf")
    held = read_gguf(file).tensors if gguf else _held(file)
    sizes, left = _by_part(graph, held, file) if gguf else _by_name(graph, held, file)
    other = f"{left:,} bytes of the file are of no parameter here" if left else ""
    return with_bytes(graph, sizes, file.name.removesuffix(".index.json"), other)


# --- safetensors ----------------------------------------------------------------------------------


def _held(file: Path) -> Mapping[str, Held]:
    """The tensors of a file, or of all that an index names."""
    index = parts_of(file) if file.name.endswith(".index.json") else {}
    parts = [file.parent / name for name in sorted({*index.values()})] or [file]
    within = {part.name: header_of(part) for part in parts}
    for name, part in index.items():
        if name not in within[part]:
            raise InputError(f"{file}: {part} has no {name}: they are not of one download")
    return merged(file, within.values())


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
    "ffn_gate_inp_shexp": "ffn_down",
    **dict.fromkeys(("ssm_in", "ssm_x", "ssm_dt", "ssm_out"), "mixer"),
    "ssm_conv1d": "conv",
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
