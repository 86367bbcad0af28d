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
_NAMES = ("quantization_config", "compression_config")
"""How configs call what they say of their checkpoint."""
_MLX = "mlx"
"""What ``quantization`` in a config is, where it has no ``quant_method``: affine groups of MLX."""
_MIXED = (
    "dynamic", "dynamic_config", "extra_config", "layer_config", "config_for_layers",
    "quantized_layers", "module_quant_configs", "module_config_overrides",
    "modules_in_block_to_quantize", "modules_to_convert",
)  # fmt: skip
"""What says of some modules that they are stored in another way than the rest."""


def storage_of(config: Mapping[str, Any]) -> tuple[WeightFormat | None, str | None]:
    """(how a config's checkpoint is stored, what of that is not known in a line); None for neither.

    >>> found, _ = storage_of({"quantization_config": {"quant_method": "awq", "bits": 4}})
    >>> found.name, found.own[found.encoding].group_bits
    ('awq-int4-g128', 20)
    """
    told = _told(config)
    if told is None:
        return None, None
    method = _method(told)
    reader = _METHODS.get(method)
    mixed = next((key for key in _MIXED if told.get(key)), None)
    one = reader(told) if reader is not None and mixed is None else None
    left = [_pattern(text) for text in _left(told)]
    if one is None or not all(map(is_quick, left)):
        called = plain(method, 40) or "it"
        if mixed is not None:
            called += f" with {mixed}"
        return None, (
            f"not used of its config: quantization_config (how {called} stores weights is not "
            "known: they are taken in the dtype of --dtype; give --weights to the commands that "
            "follow)"
        )
    dtype = config_dtype(config)
    rest = dtype if dtype in MODEL_DTYPES else "bfloat16"
    stays: tuple[str, ...] = _STAY if _has_head(method, told) else (*_STAY, "head")
    if method == _MLX:
        stays = ("vector", "conv")
    if method == "mxfp4":
        stays = tuple(part for part in PARTS if part not in _EXPERTS)
    rules = [EncodingRule(stays, rest)]
    if (told.get("expert_dtype") or config.get("expert_dtype")) == "fp4":
        rules.append(EncodingRule(_EXPERTS, "mxfp4"))  # blocks of 32 with an exponent each
    if left:
        rules.append(EncodingRule(tuple(PARTS), rest, names=tuple(left)))
    about = f"as its quantization_config says ({method})"
    return WeightFormat(one.name, about, one.name, tuple(rules), {one.name: one}), None


def _told(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of its checkpoint; of what is no table, that it says something."""
    inside = [v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict)]
    told = [t.get(key) for t in (config, *inside) for key in _NAMES]
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx and "quant_method" not in mlx:
        told.insert(0, {"quant_method": _MLX, **mlx})
    found = next((one for one in told if one), None)
    return found if isinstance(found, dict | None) else {"quant_method": plain(repr(found), 40)}


def _method(told: Mapping[str, Any]) -> str:
    """The ``quant_method`` of a checkpoint, which the oldest of bitsandbytes do not name."""
    if not told.get("quant_method") and (told.get("load_in_8bit") or told.get("load_in_4bit")):
        return "bitsandbytes"
    return _text(told, "quant_method").rpartition("/")[2]


def _left(told: Mapping[str, Any]) -> list[str]:
    """The modules that a checkpoint leaves, as it names them."""
    keys = (
        "modules_to_not_convert", "llm_int8_skip_modules", "ignore", "exclude_modules",
        "ignored_layers", "skip_modules", "linear_weights_not_to_quantize",
    )  # fmt: skip
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
    packed = told.get("checkpoint_format") in (None, "gptq", "gptq_v2")
    if bits not in (2, 3, 4, 8) or not packed:
        return None
    return _group(bits, size, 16 + bits, f"gptq-int{bits}", column_bits=32)


def _auto_round(told: Mapping[str, Any]) -> Encoding | None:
    bits, size = told.get("bits", 4), told.get("group_size", 128)
    return _group(bits, size, 16 + bits, f"auto-round-int{bits}") if bits in (2, 3, 4, 8) else None


def _awq(told: Mapping[str, Any]) -> Encoding | None:
    bits = told.get("bits", told.get("w_bit", 4))
    size = told.get("group_size", told.get("q_group_size", 128))
    return _group(bits, size, 16 + bits, f"awq-int{bits}") if bits in (4, 8) else None


def _bitsandbytes(told: Mapping[str, Any]) -> Encoding | None:
    if told.get("load_in_4bit") or told.get("_load_in_4bit"):
        double = told.get("bnb_4bit_use_double_quant")
        return shipped_encoding("nf4-double" if double else "nf4")
    eight = told.get("load_in_8bit", told.get("_load_in_8bit"))
    return shipped_encoding("int8") if eight else None


def _fp8(told: Mapping[str, Any]) -> Encoding | None:
    """A scale of 32 bits a block, or a matrix; one of 8 where it is an exponent."""
    size, scale = told.get("weight_block_size"), told.get("scale_fmt", "float")
    if told.get("expert_dtype", "fp8") not in ("fp8", "fp4") or scale not in ("float", "ue8m0"):
        return None
    if size is None:
        return shipped_encoding("fp8") if scale == "float" else None
    return _block("fp8", 8, size, 32 if scale == "float" else 8)


def _mxfp8(told: Mapping[str, Any]) -> Encoding | None:
    """Blocks with an exponent each, where the config says how large."""
    return _fp8({**told, "scale_fmt": "ue8m0"}) if told.get("weight_block_size") else None


def _hqq(told: Mapping[str, Any]) -> Encoding | None:
    """A scale and a zero point of 16 bits a group, neither of them quantised again."""
    nested = told.get("quant_config")
    whole = nested if isinstance(nested, dict) else {}
    params = whole.get("weight_quant_params")
    if not isinstance(params, dict) or params.get("nbits") not in (1, 2, 4, 8):
        return None
    again = [whole.get(f"{what}_quant_params") for what in ("scale", "zero")]
    size = params.get("group_size")
    return None if any(again) else _group(params["nbits"], size, 32, f"hqq-int{params['nbits']}")


def _mlx(told: Mapping[str, Any]) -> Encoding | None:
    """A scale and a bias of 16 bits a group; a module with a table of its own is another."""
    bits, tables = told.get("bits"), [v for v in told.values() if isinstance(v, dict)]
    if bits not in (2, 3, 4, 5, 6, 8) or told.get("mode", "affine") != "affine" or tables:
        return None
    return _group(bits, told.get("group_size", 64), 32, f"mlx-int{bits}")


def _metal(told: Mapping[str, Any]) -> Encoding | None:
    """A scale and a bias of 32 bits a group."""
    bits = told.get("bits", 4)
    size = told.get("group_size", 64)
    return _group(bits, size, 64, f"metal-int{bits}") if bits in (2, 4, 8) else None


def _rows(told: Mapping[str, Any]) -> Encoding | None:
    """A scale of 16 bits a row, of EETQ and Quanto in eight bits."""
    kind = told.get("weights", "int8")
    return Encoding(f"{kind}-row", 8, group_bits=16) if kind in ("int8", "float8") else None


def _higgs(told: Mapping[str, Any]) -> Encoding | None:
    """A scale of 16 bits a group; tables of every value, and of every pair of two values."""
    bits, size = told.get("bits", 4), told.get("group_size", 256)
    if bits not in (2, 3, 4):
        return None
    return _group(bits, size, 16, f"higgs-int{bits}", matrix_bits=16 * (2**bits + 2 * 4**bits))


def _bitnet(told: Mapping[str, Any]) -> Encoding | None:
    """Four ternary weights a byte, a scale of 16 bits a matrix."""
    offline = told.get("quantization_mode", "offline") == "offline"
    return Encoding("bitnet", 2, matrix_bits=16) if offline else None


def _aqlm(told: Mapping[str, Any]) -> Encoding | None:
    """Codes of 8 or 16 bits for a group, a scale of 16 bits for its rows; codebooks of 16 bits."""
    keys = ("num_codebooks", "nbits_per_codebook", "in_group_size", "out_group_size")
    sizes = [told.get(k, default) for k, default in zip(keys, (1, 16, 8, 1), strict=True)]
    if not all(_is_size(size) and size <= 64 for size in sizes) or sizes[1] > 16:
        return None
    books, bits, inside, rows = sizes
    stored, group = 8 if bits <= 8 else 16, inside * rows
    each, tables = books * stored / group, 16 * books * 2**bits * group
    return Encoding(f"aqlm-{books}x{bits}", each, 0, rows, 16, matrix_bits=tables)


def _block(name: str, bits: int, size: Any, beside: int = 32) -> Encoding | None:
    """A scale for so many rows and elements of each."""
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))):
        return None
    rows, elements = size
    return Encoding(f"{name}-block{elements}", bits, elements, rows, beside)


def _by_row(told: Mapping[str, Any]) -> Encoding | None:
    return Encoding("fp8-row", 8, group_bits=32)


def _compressed(told: Mapping[str, Any]) -> Encoding | None:
    """Of compressed-tensors, where all linears are stored alike, and none as sparse."""
    groups, sparsity = told.get("config_groups"), told.get("sparsity_config")
    tables = list(groups.values()) if isinstance(groups, dict) else []
    every = (t.get("targets", ["Linear"]) == ["Linear"] for t in tables if isinstance(t, dict))
    dense = not sparsity or (isinstance(sparsity, dict) and sparsity.get("format") == "dense")
    if not all(every) or not dense or told.get("format") in ("marlin-24", "naive-quantized"):
        return None
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
    "mxfp8": _mxfp8,
    "fbgemm_fp8": _by_row,
    "hqq": _hqq,
    "eetq": _rows,
    "quanto": _rows,
    "higgs": _higgs,
    "bitnet": _bitnet,
    "aqlm": _aqlm,
    "metal": _metal,
    _MLX: _mlx,
    "mxfp4": lambda told: shipped_encoding("mxfp4"),
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
}
"""``quant_method`` -> how it stores a linear; None where that is not known.

Of the others that transformers loads, what the config says does not tell the bytes: of vptq, spqr,
quark, torchao, fp_quant, fouroversix, sinq, gemma, gguf, and of nvfp4, which is made at load.
"""
