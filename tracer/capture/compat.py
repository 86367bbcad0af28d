"""All that cutedge takes of transformers, and what it changes there: the place for a new version.

No other module imports transformers (`make lint` checks it).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_MAPPING,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
    masking_utils,
    vision_utils,
)
from transformers.generation import GenerationConfig
from transformers.initialization import no_init_weights
from transformers.integrations import moe
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto import modeling_auto as auto
from transformers.utils import import_utils

from tracer.capture.told import TellingTorch

__all__ = [
    "CONFIG_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_MAPPING",
    "BaseModelOutput",
    "DynamicCache",
    "EncoderDecoderCache",
    "GenerationConfig",
    "PreTrainedConfig",
    "PreTrainedModel",
    "auto",
    "class_named",
    "no_init_weights",
    "without_detours",
]


def class_named(name: str) -> Any:
    """A class of transformers by its name; None where there is no such."""
    return getattr(transformers, name, None)


_WARNS_OF_PADDING = "warn_if_padding_and_no_attention_mask"


@contextlib.contextmanager
def without_detours() -> Iterator[None]:
    """Let a model do what it does when it runs, not what it would for an export's sake.

    While exporting, transformers makes a mask where a run needs none (is_causal does for sdpa),
    solves triangular systems by hand, and looks for sequences packed in one row, which inputs
    without position ids never are. Only the grouped product of experts is the one of an export:
    the kernel of a run takes bfloat16 alone where there is no data. A mask is made by broadcasting
    its indices, since an export hides what a vmap makes. Only a run that is no export looks for
    padding among the tokens, to warn of it: ours have no tokens. A mask that hides padding alone
    hides nothing.
    """
    with (
        _denying(import_utils.is_torchdynamo_exporting),
        _denying(import_utils.is_torchdynamo_compiling),
        patch.dict(os.environ, {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}),  # of tokens' values
        patch.object(vision_utils, "torch", TellingTorch()),
        patch.object(moe, "is_torchdynamo_compiling", lambda: True),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
        patch.object(masking_utils, "_vmap_expansion_sdpa", _broadcasting),
        patch.object(masking_utils, "_ignore_bidirectional_mask_sdpa", _hides_nothing),
        patch.object(PreTrainedModel, _WARNS_OF_PADDING, lambda self, tokens, mask: None),
    ):
        yield


def _hides_nothing(mask: Any, length: int, window: int | None = None) -> bool:
    """Whether a mask is left out since it hides nothing: no input of ours is padded."""
    return window is None or length < window


def _broadcasting(mask: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function of the indices of (batch, head, query, key), of all of each at once."""

    def of_all(*indices: torch.Tensor) -> torch.Tensor:
        made = mask(*masking_utils._non_vmap_expansion_sdpa(*indices))
        return made.expand([index.shape[0] for index in indices])

    return of_all


@contextlib.contextmanager
def _denying(question: Any) -> Iterator[None]:
    """A function that says no, also where modules have imported it by name."""
    code = question.__code__
    question.__code__ = (lambda: False).__code__
    try:
        yield
    finally:
        question.__code__ = code
