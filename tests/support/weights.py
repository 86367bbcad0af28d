"""Weight formats by hand: blocks, small models, a mixture by the names of tensors, headers."""

import json
import re
import struct
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from costmodels.flops import annotate
from tests.support.traces import captured
from tracer.graph import OpGraph

BLOCKS = {  # elements, bytes: what ggml's structures of these names take
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "iq4_nl": (32, 18),
    "mxfp4": (32, 17),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "iq4_xs": (256, 136),
}

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
"""As deep as the mixture's rule has cases: the first eighth, the last, and each third between."""
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "narrow": {**LLAMA, "hidden_size": 96, "intermediate_size": 512},
    "phi3": {
        **LLAMA,
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "pad_token_id": 0,
    },
    "mixtral": {
        **LLAMA,
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": 2,
        "num_local_experts": 8,
    },
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 256,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 96,
        "n_positions": 64,
    },
}


def decoded(config: Mapping[str, Any]) -> OpGraph:
    """A step of decode over 16 tokens, in float32."""
    sizes: dict[str, Any] = {"phase": "decode", "past": 16, "symbolic": False}
    return annotate(captured(dict(config), model="small", **sizes).graph)


def by_name(name: str, shape: tuple[int, ...], model: str) -> tuple[int, int]:
    """(elements, bytes) of a block of a tensor in Q4_K_M, by how checkpoints call it.

    After llama.cpp's quantisation of tensors by their names in a GGUF file.
    """
    layer = int(match[1]) if (match := re.search(r"\.(\d+)\.", name)) else 0
    layers = MODELS[model].get("num_hidden_layers") or MODELS[model]["n_layer"]
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    conv1d = "gpt2" in model and re.search(r"\.(c_attn|c_proj|c_fc)\.weight", name)
    row = shape[-2] if conv1d else shape[-1]
    eight = model == "mixtral"
    kind = "q4_k"
    if re.search(r"norm|ln_|bias|wpe|mlp\.gate\.weight", name):
        return 1, 4
    if re.search(r"lm_head|wte", name) or (model == "tied" and "embed_tokens" in name):
        kind = "q6_k"
    elif re.search(r"v_proj|qkv_proj|c_attn", name):
        kind = "q8_0" if eight else "q6_k" if more else kind
    elif re.search(r"k_proj", name):
        kind = "q8_0" if eight else kind
    elif re.search(r"o_proj", name):
        kind = "q5_k" if eight else kind
    elif re.search(r"down_proj|mlp\.c_proj", name):
        kind = "q6_k" if more else kind
    while row % BLOCKS[kind][0]:
        kind = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}[kind]
    return BLOCKS[kind]


# --- headers of files -----------------------------------------------------------------------------

KINDS = {(1, 4): 0, BLOCKS["q4_k"]: 12, BLOCKS["q5_k"]: 13, BLOCKS["q6_k"]: 14, BLOCKS["q8_0"]: 8}
"""(elements, bytes) of a block -> the number of ggml's type."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, value: Any) -> bytes:
    """An entry of a header, in the type that converters write such a value in."""
    match value:
        case bool():
            return text(key) + struct.pack("<I?", 7, value)
        case int():
            return text(key) + struct.pack("<II", 4, value)
        case float():
            return text(key) + struct.pack("<If", 6, value)
        case str():
            return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf(
    tensors: Mapping[str, tuple[tuple[int, ...], int]],
    version: int = 3,
    told: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """A header, with some entries of each sort and those ``told``; shapes as torch has them."""
    told = {"general.architecture": "llama", **told}
    entries = [
        *(entry(*one) for one in told.items()),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("scores") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 1, 2, 3),
        text("count") + struct.pack("<IQ", 10, 7),
    ]
    rows, place = [], 0
    for name, (shape, kind) in tensors.items():
        row = struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, place)
        rows.append(text(name) + row)
        elements, size = next(block for block, known in KINDS.items() if known == kind)
        place += -(-prod(shape) // elements * size // 32) * 32
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    return start + b"".join(entries) + b"".join(rows)


def safetensors(tensors: Mapping[str, tuple[tuple[int, ...], int]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (_, size) in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told
