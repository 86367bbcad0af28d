"""What llama.cpp calls the weights of a model: names in GGUF, from those of Hugging Face."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tracer.errors import CutedgeError
from tracer.graph import OpGraph, Role

if TYPE_CHECKING:
    from gguf.tensor_mapping import TensorNameMap

_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "deepseekv2": "deepseek2",
    "deepseekv3": "deepseek2",
    "phi": "phi2",
    "cohere": "command-r",
    "falconh1": "falcon-h1",
}
"""Model class without its head, in small letters -> architecture, where that is not called so."""

_HEADS = re.compile(r"(ForCausalLM|LMHeadModel|ForMaskedLM|ForConditionalGeneration|Model)$")

_SPLIT = {"attn_kv_b": ("attn_k_b", "attn_v_b")}
"""What one weight of a checkpoint is several of in GGUF."""

BESIDE = ("rope_freqs.weight",)
"""What a GGUF file may hold beside the parameters of a model."""


@dataclass(frozen=True, slots=True)
class Names:
    """What the weights of a model are called in GGUF."""

    architecture: str
    """llama.cpp's word for the kind of model."""
    of: Mapping[int, tuple[str, ...]]
    """Parameter, by the tensor that owns its memory -> its names: several where it is split."""
    layers: int
    """Blocks: the ``N`` of ``blk.N`` are below it."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every name that a file of the model may have."""
        return (*(name for names in self.of.values() for name in names), *BESIDE)


@lru_cache(maxsize=4)
def gguf_names(graph: OpGraph) -> Names:
    """The names of a model's weights.

    Raises CutedgeError for a model that llama.cpp has no names for.

    >>> import cutedge
    >>> graph = cutedge.trace("gpt2", seq=4).graph
    >>> sorted(gguf_names(graph).all)[:2]
    ['blk.0.attn_norm.bias', 'blk.0.attn_norm.weight']
    """
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    kind = _HEADS.sub("", graph.meta.model_class).lower()
    plain = {re.sub(r"[^a-z0-9]", "", name): arch for arch, name in MODEL_ARCH_NAMES.items()}
    arch = plain.get(re.sub(r"[^a-z0-9]", "", _ARCHITECTURES.get(kind, kind)))
    if arch is None:
        raise CutedgeError(
            f"llama.cpp has no model like {graph.meta.model} ({graph.meta.model_class}): its "
            "weights have no names there. Take another --for, such as accelerate"
        )
    owners = [t for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None]
    layers = 1 + max((op.layer for op in graph.ops if op.layer is not None), default=-1)
    known = get_tensor_name_map(arch, layers)
    found: dict[int, tuple[str, ...]] = {}
    for tensor in owners:
        names = [_first(known, one) for one in _parts(tensor.name)]
        if None in names:
            raise CutedgeError(
                f"llama.cpp's {MODEL_ARCH_NAMES[arch]} has no name for {tensor.name}: it is of a "
                "model of another kind"
            )
        found[tensor.id] = tuple(one for name in names for one in _split(str(name)))
        if str(names[0]).startswith(("enc.", "dec.")):
            raise CutedgeError(
                f"{graph.meta.model} has an encoder and a decoder, and llama.cpp's layers are of one "
                "stack here: take another --for, such as accelerate"
            )
    return Names(MODEL_ARCH_NAMES[arch], found, layers)


def _parts(name: str) -> list[str]:
    """A parameter's name in a checkpoint; gates and what they gate are one parameter here alone."""
    name = re.sub(r"\bexperts\.\d+\.", "experts.", name)
    name = re.sub(r"(?<=\bexperts)\.(\w+)_bias$", r".\1.bias", name)
    if "experts.gate_up_proj" not in name:
        return [name]
    return [name.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj")]


def _first(known: "TensorNameMap", name: str) -> str | None:
    """The name in GGUF of a parameter that may stand in one module more, or in one less."""
    inner = name.partition(".")[2]
    for spoken in (name, name.replace("language_model.", ""), inner, f"model.{name}"):
        if found := known.get_name(spoken, (".weight", ".bias")):
            return found if found.endswith((".weight", ".bias")) else f"{found}.weight"
    return None


def _split(name: str) -> list[str]:
    """The tensors that a name is of: ``blk.0.attn_kv_b.weight`` is two."""
    base, end = name.rsplit(".", 1)
    block, dot, part = base.rpartition(".")
    return [f"{block}{dot}{one}.{end}" for one in _SPLIT.get(part, (part,))]
