"""What a model reads in a phase, and how it is run on that: tokens, encoded tokens, or images."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from tracer.capture.compat import MODEL_FOR_CAUSAL_LM_MAPPING, BaseModelOutput
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


def phases(module: Any) -> list[str]:
    """The phases that a model of transformers has, in the order of a run."""
    accepted = inspect.signature(module.forward).parameters
    if _is_encoder_decoder(module, accepted):
        tokens = "input_ids" in inspect.signature(module.get_encoder().forward).parameters
        return [*(["encoder"] if tokens else []), "prefill", "decode"]
    steps = cache_argument(accepted) and not is_encoder(module)
    return ["prefill", "decode"] if steps else ["prefill"]


def is_encoder(module: torch.nn.Module) -> bool:
    """Whether every token of a model looks at all others, so that no step can add one to a cache.

    Most attentions of transformers say whether they are causal. Of the others the config does, for
    types that are encoders unless told to be decoders, or else whether the type generates text.
    """
    settings: Any = module.config
    with suppress(AttributeError, ValueError):  # no config, or more than one that reads tokens
        settings = module.config.get_text_config(decoder=True)
    if getattr(settings, "use_bidirectional_attention", None) in (True, "all"):
        return True
    causal = [bool(part.is_causal) for part in module.modules() if hasattr(part, "is_causal")]
    told = getattr(settings, "is_decoder", None)
    if any(causal) or told:
        return False
    generates = any(type(c) in MODEL_FOR_CAUSAL_LM_MAPPING for c in (module.config, settings))
    return told is False or (bool(causal) and not generates)


def cache_argument(accepted: Collection[str]) -> str | None:
    """The argument of a forward that takes a cache; None when no argument does."""
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
    length, why = _encoded_length(module, made)

    def run(module: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
        encoded = type(made)(last_hidden_state=inputs["encoder_hidden_states"])
        return module(
            decoder_input_ids=inputs["decoder_input_ids"], encoder_outputs=encoded, **options
        )

    hidden = made.last_hidden_state
    return Reading(
        (
            Input("decoder_input_ids", ("batch", "seq")),
            Input(
                "encoder_hidden_states",
                ("batch", length or "source", hidden.shape[-1]),
                hidden.dtype,
            ),
        ),
        run,
        {"seq": _new_tokens(phase), "source": length or MANY_TOKENS},
        fixed={"source": why} if length else {},
        options=inspect.signature(module.forward).parameters,
        idle=module.get_encoder(),
    )


def _encoded_length(module: Any, made: Any) -> tuple[int | None, str]:
    """(how many tokens the encoder makes, why), None where that is the user's choice."""
    encoder = module.get_encoder()
    if _reads(encoder) == "pixel_values":
        shape = made.last_hidden_state.shape
        if len(shape) == 3 and shape[0] > 1:  # what a run has shown
            height, width = _image_size(encoder.config)[:2]
            return shape[
                1
            ], f"{type(encoder).__name__} makes {shape[1]} of {height} x {width} pixels"
    # An encoder that adds the whole of its table of positions to what it reads.
    length = getattr(encoder.config, "max_source_positions", None)
    table = getattr(encoder, "embed_positions", None)
    if isinstance(table, torch.nn.Embedding) and table.num_embeddings == length:
        return length, f"{type(encoder).__name__} makes {length} tokens of whatever it hears"
    return None, ""


def _reads(encoder: torch.nn.Module) -> str:
    """The first argument of an encoder: what it reads."""
    return next(iter(inspect.signature(encoder.forward).parameters), "")


def _encoded(module: Any) -> Any:
    """What the encoder makes of its inputs: as a run shows, else one tensor as configured."""
    encoder = module.get_encoder()
    try:
        with run_on_meta(module), torch.device("meta"):
            if _reads(encoder) == "pixel_values":
                height, width, channels, _ = _image_size(encoder.config)
                dtype = next(encoder.parameters()).dtype
                read = torch.zeros(2, channels, height, width, dtype=dtype)
            else:
                read = torch.zeros(2, 16, dtype=torch.int64)
            made = encoder(**{_reads(encoder): read}, return_dict=True)
        return type(made)(last_hidden_state=made.last_hidden_state)
    except Exception:  # an encoder of sounds, or code that looks at values
        settings = module.config.get_text_config(decoder=True)
        dtype = next(module.parameters()).dtype
        alone = torch.empty(1, 1, settings.hidden_size, dtype=dtype, device="meta")
        return BaseModelOutput(last_hidden_state=alone)


def _images(module: torch.nn.Module, model: str, phase: str) -> Reading:
    if phase != "prefill":
        raise InputError(f"{model}: {type(module).__name__} reads images: it has no {phase}")
    height, width, channels, named = _image_size(module.config)
    notes = () if named else (f"images are {IMAGE} x {IMAGE} pixels: the config names no size",)
    pixels = Input(
        "pixel_values", ("batch", channels, height, width), next(module.parameters()).dtype
    )
    why = dict.fromkeys(("seq", "past", "source"), "it reads images, not tokens")
    return Reading((pixels,), _plainly, {}, why, notes)


def _image_size(settings: Any) -> tuple[int, int, int, bool]:
    """(height, width, channels of an image, whether the config names its size)"""
    vision = getattr(settings, "vision_config", settings)
    size = getattr(vision, "image_size", None)
    height, width = (size or IMAGE,) * 2 if isinstance(size, int | None) else size
    return height, width, getattr(vision, "num_channels", 3), size is not None
