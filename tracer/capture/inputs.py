"""What a model reads in a phase, and how it is run on that: tokens, encoded tokens, or images."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from tracer.capture.runs import run_on_meta
from tracer.errors import CutedgeError, InputError

Axis = str | int
"""A size of a tensor: the name of the symbol that it is, or a number."""


def shape(axes: Sequence[Axis], sizes: Mapping[str, int]) -> list[int]:
    """The numbers that axes are at ``sizes``."""
    return [sizes[axis] if isinstance(axis, str) else axis for axis in axes]


PHASES = ("prefill", "decode", "encoder")

MANY_TOKENS = 1024
"""The tokens of a prefill, and those that an encoder has read, where the user names no number."""

IMAGE = 224
"""Pixels of a side, for models whose config names no size."""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that a model is given, apart from its state."""

    name: str
    axes: tuple[Axis, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model reads in a phase, and how it is run on that."""

    inputs: tuple[Input, ...]
    run: Callable[..., Any]
    """(the model, the inputs by name, keyword arguments of its forward) -> what it returns."""
    sizes: Mapping[str, int]
    """The sizes that inputs may have, by name, at their defaults."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Name of a size that the user cannot choose -> why."""
    notes: tuple[str, ...] = ()
    """What a user must know of these inputs."""
    options: Collection[str] = ()
    """The keyword arguments that ``run`` knows."""
    idle: torch.nn.Module | None = None
    """The part of the model that does not run."""


def reading(module: torch.nn.Module, model: str, phase: str) -> Reading:
    """What ``module``, a model of transformers, reads in ``phase``.

    Raises InputError for a phase that such a model does not have, CutedgeError for one that reads
    something else than tokens or images.
    """
    accepted = inspect.signature(module.forward).parameters
    if phase not in PHASES:
        raise InputError(f"unknown phase {phase!r}: {', '.join(PHASES)}")
    if _is_encoder_decoder(module, accepted):
        return _encoder(module, model) if phase == "encoder" else _decoder(module, phase)
    if phase == "encoder":
        raise InputError(f"{model}: {type(module).__name__} has no encoder apart: use prefill")
    if "input_ids" in accepted:
        tokens = Input("input_ids", ("batch", "seq"))
        sizes = {"seq": _new_tokens(phase)}
        return Reading((tokens,), _plainly, sizes, _NO_SOURCE, options=accepted)
    if "pixel_values" in accepted:
        return _images(module, model, phase)
    raise CutedgeError(
        f"{model}: {type(module).__name__} reads neither tokens nor images but "
        f"{next(iter(accepted), 'nothing')}; hand over such a model as file.py:function"
    )


def phases(module: torch.nn.Module) -> list[str]:
    """The phases that a model of transformers has, in the order of a run."""
    accepted = inspect.signature(module.forward).parameters
    if _is_encoder_decoder(module, accepted):
        return ["encoder", "prefill", "decode"]
    return ["prefill", "decode"] if cache_argument(accepted) else ["prefill"]


def cache_argument(accepted: Collection[str]) -> str | None:
    """The argument of a forward that takes a cache, None when there is none."""
    return next((name for name in ("past_key_values", "cache_params") if name in accepted), None)


def _is_encoder_decoder(module: torch.nn.Module, accepted: Collection[str]) -> bool:
    return getattr(module.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted


def _new_tokens(phase: str) -> int:
    return 1 if phase == "decode" else MANY_TOKENS


_NO_SOURCE = {"source": "only the decoder of an encoder-decoder model reads encoded tokens"}


def _plainly(module: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
    return module(**inputs, **options)


def _encoder(module: torch.nn.Module, model: str) -> Reading:
    encoder = module.get_encoder()
    if "input_ids" not in inspect.signature(encoder.forward).parameters:
        raise CutedgeError(f"{model}: its encoder, {type(encoder).__name__}, reads no tokens")
    tokens = Input("input_ids", ("batch", "seq"))
    fixed = {
        "source": "the encoder reads --seq tokens",
        "past": "an encoder reads all its tokens at once",
    }
    sizes = {"seq": MANY_TOKENS}

    def run(module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        return module.get_encoder()(**inputs, **options)

    return Reading((tokens,), run, sizes, fixed, idle=module.get_decoder())


def _decoder(module: torch.nn.Module, phase: str) -> Reading:
    """The decoder alone, over what the encoder has made of ``source`` tokens."""
    made = _encoded(module)

    def run(module: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
        encoded = type(made)(last_hidden_state=inputs["encoder_hidden_states"])
        return module(
            decoder_input_ids=inputs["decoder_input_ids"], encoder_outputs=encoded, **options
        )

    hidden = made.last_hidden_state
    return Reading(
        (
            Input("decoder_input_ids", ("batch", "seq")),
            Input("encoder_hidden_states", ("batch", "source", hidden.shape[-1]), hidden.dtype),
        ),
        run,
        {"seq": _new_tokens(phase), "source": MANY_TOKENS},
        options=inspect.signature(module.forward).parameters,
        idle=module.get_encoder(),
    )


def _encoded(module: torch.nn.Module) -> Any:
    """What the encoder makes of tokens: as a run shows, else one tensor as wide as configured."""
    try:
        with run_on_meta(module), torch.device("meta"):
            made = module.get_encoder()(
                input_ids=torch.zeros(2, 16, dtype=torch.int64), return_dict=True
            )
        return type(made)(last_hidden_state=made.last_hidden_state)
    except Exception:  # an encoder of sounds, or code that looks at values
        settings = module.config.get_text_config(decoder=True)
        dtype = next(module.parameters()).dtype
        alone = torch.empty(1, 1, settings.hidden_size, dtype=dtype, device="meta")
        return BaseModelOutput(last_hidden_state=alone)


def _images(module: torch.nn.Module, model: str, phase: str) -> Reading:
    if phase != "prefill":
        raise InputError(f"{model}: {type(module).__name__} reads images: it has no {phase}")
    settings = module.config
    vision = getattr(settings, "vision_config", settings)
    size = getattr(vision, "image_size", None)
    notes: tuple[str, ...] = ()
    if size is None:
        size = IMAGE
        notes = (f"images are {IMAGE} x {IMAGE} pixels: the config names no size",)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    pixels = Input(
        "pixel_values", ("batch", channels, height, width), next(module.parameters()).dtype
    )
    why = dict.fromkeys(("seq", "past", "source"), "it reads images, not tokens")
    return Reading((pixels,), _plainly, {}, why, notes)
