"""How a checkpoint is stored, by the ``quantization_config`` of its config.

What quantises a model says in its config how, and which modules it leaves: linears are stored in a
format, embeddings, norms, biases and routers stay in the checkpoint's own dtype.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from costmodels.weight_parts import PARTS
from costmodels.weights import Encoding, EncodingRule, WeightFormat, is_quick, shipped_encoding
from tracer.graph import MODEL_DTYPES
from tracer.presets import config_dtype
from tracer.words import plain

_STAY = ("vector", "positions", "embedding", "router", "conv")
_EXPERTS = ("experts_up", "experts_down")


def storage_of(config: Mapping[str, Any]) -> tuple[WeightFormat | None, str | None]:
    """(how a config's checkpoint is stored, what of that is not known in a line); None for neither.

    >>> found, _ = storage_of({"quantization_config": {"quant_method": "awq", "bits": 4}})
    >>> found.name, found.own[found.encoding].group_bits
    ('awq-int4-g128', 20)
    """
    told = _told(config)
    if told is None:
        return None, None
    method = _text(told, "quant_method").rpartition("/")[2]
    reader = _METHODS.get(method)
    one = reader(told) if reader is not None else None
    left = [_pattern(text) for text in _left(told)]
    if one is None or not all(map(is_quick, left)):
        called = plain(method, 40) or "it"
        return None, (
            f"not used of its config: quantization_config (how {called} stores weights is not "
            "known: they are taken in the dtype of --dtype; give --weights to the commands that "
            "follow)"
        )
    dtype = config_dtype(config)
    rest = dtype if dtype in MODEL_DTYPES else "bfloat16"
    stays: tuple[str, ...] = _STAY if _has_head(method, told) else (*_STAY, "head")
    if method == "mxfp4":
        stays = tuple(part for part in PARTS if part not in _EXPERTS)
    rules = [EncodingRule(stays, rest)]
    if left:
        rules.append(EncodingRule(tuple(PARTS), rest, names=tuple(left)))
    about = f"as its quantization_config says ({method})"
    return WeightFormat(one.name, about, one.name, tuple(rules), {one.name: one}), None


def _told(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    tables = [
        config,
        *(v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict)),
    ]
    found = (table.get("quantization_config") for table in tables)
    return next((one for one in found if isinstance(one, dict) and one), None)


def _left(told: Mapping[str, Any]) -> list[str]:
    """The modules that a checkpoint leaves, as it names them."""
    keys = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "exclude_modules")
    nested = told.get("quantization")
    tables = [told, nested] if isinstance(nested, dict) else [told]
    lists = (table.get(key) for table in tables for key in keys)
    texts = (text for some in lists if isinstance(some, list) for text in some)
    return [text for text in texts if isinstance(text, str) and text]


def _has_head(method: str, told: Mapping[str, Any]) -> bool:
    """Whether the head is stored like other linears, where no list leaves it."""
    return method in ("compressed-tensors", "modelopt") or bool(told.get("lm_head"))


def _pattern(text: str) -> str:
    """A module that is named, ``re:`` with a regular expression, or with ``*`` for anything."""
    if text.startswith("re:"):
        return f"^(?:{text[3:].removesuffix('$')})(?:[.]|$)"
    first, *others = map(re.escape, text.split("*"))
    words = "".join(f"(?>.*?{part})" for part in others[:-1])  # the first place that there is
    last = f".*{others[-1]}" if others else ""
    return rf"(^|\.){first}{words}{last}(\.|$)"


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _group(bits: float, size: Any, beside: float, name: str, **more: Any) -> Encoding | None:
    """Groups of ``size`` in a row, of None or -1 whole rows; what each has beside."""
    groups = 0 if size in (None, -1) else size
    if groups and not _is_size(groups):
        return None
    text = f"-g{groups}" if groups else ""
    return Encoding(f"{name}{text}", bits, groups, group_bits=beside, **more)


def _gptq(told: Mapping[str, Any]) -> Encoding | None:
    """Weights, a zero point of as many bits and a scale of 16 a group; a group's number a column."""
    bits, size = told.get("bits", 4), told.get("group_size", 128)
    if bits not in (2, 3, 4, 8):
        return None
    return _group(bits, size, 16 + bits, f"gptq-int{bits}", column_bits=32)


def _auto_round(told: Mapping[str, Any]) -> Encoding | None:
    bits, size = told.get("bits", 4), told.get("group_size", 128)
    return _group(bits, size, 16 + bits, f"auto-round-int{bits}") if bits in (2, 3, 4, 8) else None


def _awq(told: Mapping[str, Any]) -> Encoding | None:
    bits, size = told.get("bits", told.get("w_bit", 4)), told.get("group_size", 128)
    return _group(bits, size, 16 + bits, f"awq-int{bits}") if bits in (4, 8) else None


def _bitsandbytes(told: Mapping[str, Any]) -> Encoding | None:
    if told.get("load_in_4bit") or told.get("_load_in_4bit"):
        double = told.get("bnb_4bit_use_double_quant")
        return shipped_encoding("nf4-double" if double else "nf4")
    return shipped_encoding("int8")


def _fp8(told: Mapping[str, Any]) -> Encoding | None:
    """A scale of 32 bits a block, or a matrix."""
    size = told.get("weight_block_size")
    return shipped_encoding("fp8") if size is None else _block("fp8", 8, size)


def _block(name: str, bits: int, size: Any) -> Encoding | None:
    """A scale of 32 bits for so many rows and elements of each."""
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))):
        return None
    rows, elements = size
    return Encoding(f"{name}-block{elements}", bits, elements, rows, 32)


def _by_row(told: Mapping[str, Any]) -> Encoding | None:
    return Encoding("fp8-row", 8, group_bits=32)


def _compressed(told: Mapping[str, Any]) -> Encoding | None:
    """Of compressed-tensors, where all groups of modules are stored alike."""
    groups = told.get("config_groups")
    tables = list(groups.values()) if isinstance(groups, dict) else []
    weights = (table.get("weights") for table in tables if isinstance(table, dict))
    found = [_strategy(one) for one in weights if isinstance(one, dict) and one]
    return found[0] if found and all(one == found[0] for one in found) else None


def _strategy(weights: Mapping[str, Any]) -> Encoding | None:
    """A scale in 16 bits, and where there is one a zero point, for what a strategy groups."""
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if bits not in (4, 8) or kind not in ("int", "float"):
        return None
    name = f"{'fp' if kind == 'float' else 'int'}{bits}"
    beside = 16 + (0 if weights.get("symmetric", True) else bits)
    match weights.get("strategy"):
        case "tensor":
            return Encoding(name, bits, matrix_bits=beside)
        case "channel":
            return _group(bits, None, beside, f"{name}-row")
        case "group" if kind == "float" and bits == 4:  # MXFP4: a scale is an exponent
            return _group(bits, size, 8, "mxfp4")
        case "group":
            return _group(bits, size, beside, name)
        case "tensor_group":  # NVFP4
            return _group(bits, size, 8, f"nv{name}", matrix_bits=32)
        case "block":
            return _block(name, bits, weights.get("block_structure") or [128, 128])
    return None


def _modelopt(told: Mapping[str, Any]) -> Encoding | None:
    nested = told.get("quantization")
    table = {**told, **nested} if isinstance(nested, dict) else told
    match _text(table, "quant_algo").upper():
        case "FP8":
            return shipped_encoding("fp8")
        case "NVFP4" | "NVFP4_AWQ":
            return shipped_encoding("nvfp4")
        case "FP8_PB_WO" | "FP8_BLOCK":
            return shipped_encoding("fp8-block128")
        case "W4A16_AWQ":
            return _group(4, table.get("group_size", 128), 16, "int4")
        case "":
            return _compressed(table)
    return None


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Encoding | None]] = {
    "gptq": _gptq,
    "auto-round": _auto_round,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _by_row,
    "mxfp4": lambda told: shipped_encoding("mxfp4"),
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
}
"""``quant_method`` -> how it stores a linear; None where that is not known."""
