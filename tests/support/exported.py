"""Models of transformers as files of torch.export.save: what a user would export."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutput

from tracer.capture import as_it_runs, quiet

SMALL: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
IMAGES = {key: value for key, value in SMALL.items() if key != "vocab_size"}
TOKENS = torch.zeros(3, 7, dtype=torch.int64)
BATCH, SEQ = Dim("batch", min=2, max=64), Dim("seq", min=2, max=512)
READ = {"input_ids": {0: BATCH, 1: SEQ}}
STEP = ({"input_ids": TOKENS, "use_cache": False, "logits_to_keep": 1}, READ)

KINDS: Mapping[str, tuple[str, Mapping[str, Any], tuple[Mapping[str, Any], Any]]] = {
    "decoder": (
        "LlamaForCausalLM",
        {"model_type": "llama", "num_key_value_heads": 2, **SMALL},
        STEP,
    ),
    "encoder": ("BertForMaskedLM", {"model_type": "bert", **SMALL}, ({"input_ids": TOKENS}, READ)),
    "experts": (
        "MixtralForCausalLM",
        {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2, **SMALL},
        STEP,
    ),
    "vision": (
        "ViTForImageClassification",
        {"model_type": "vit", "image_size": 16, "patch_size": 8, **IMAGES},
        ({"pixel_values": torch.zeros(3, 3, 16, 16)}, {"pixel_values": {0: BATCH}}),
    ),
    "convolutions": (
        "ResNetForImageClassification",
        {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16], "depths": [1]},
        ({"pixel_values": torch.zeros(3, 3, 224, 224)}, {"pixel_values": {0: BATCH}}),
    ),
    "seq2seq": (
        "T5ForConditionalGeneration",
        {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
        (
            {
                "decoder_input_ids": TOKENS,
                "encoder_outputs": BaseModelOutput(last_hidden_state=torch.zeros(3, 13, 32)),
                "use_cache": False,
            },
            {
                "decoder_input_ids": {0: BATCH, 1: SEQ},
                "encoder_outputs": [{0: BATCH, 1: Dim("source", min=2, max=512)}],
            },
        ),
    ),
    "state space": (  # its code fixes seq
        "MambaForCausalLM",
        {"model_type": "mamba", "state_size": 8, **SMALL},
        (STEP[0], {}),
    ),
}
"""A kind of model -> its class, a small config, (what it is called with, which sizes may vary)."""


def config_of(kind: str) -> dict[str, Any]:
    name, config, _ = KINDS[kind]
    return {**config, "architectures": [name]}


def export(kind: str, file: Path, *, as_run: bool) -> Path:
    """Save a kind of model; ``as_run`` without what transformers does for an export's sake."""
    name, config, (given, varies) = KINDS[kind]
    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(
        dict(config), attn_implementation="eager"
    )
    module = getattr(transformers, name)(settings).eval()
    sizes = {**dict.fromkeys(given), **varies} if varies else None
    with quiet() if as_run else nullcontext(), as_it_runs() if as_run else nullcontext():
        made = torch.export.export(module, (), dict(given), dynamic_shapes=sizes, strict=False)
    torch.export.save(made, file)
    return file
