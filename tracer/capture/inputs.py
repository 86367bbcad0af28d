"""What a model reads in a phase, and how it is run on that: tokens, encoded ones, images, sounds."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from tracer.capture.compat import MODEL_FOR_CAUSAL_LM_MAPPING, BaseModelOutput
from tracer.capture.errors import failure
from tracer.capture.runs import run_on_meta
from tracer.capture.senses import (
    HEARD,
    SEEN,
    Axis,
    Input,
    Sensed,
    first_argument,
    image_size,
    picture,
    sensed,
    shape,
)
from tracer.capture.told import Told
from tracer.errors import CutedgeError, InputError

PHASES = ("prefill", "decode", "encoder")

IMAGES = "images"
"""Where overrides of a config say how many images a sequence has, and their height and width."""

MANY_TOKENS = 1024
"""The tokens of a prefill, and those that an encoder has read, where the user names no number."""


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
    heard: bool = False
    """Whether ``seq`` counts what a sound is made of, and not what the model has positions for."""
    taken: int = 0
    """How many of ``seq`` are the tokens of images."""
    by_one: bool = False
    """Whether its code may take each of the batch for itself, so that the batch is a number."""


def reading(module: torch.nn.Module, model: str, phase: str, images: Sequence[int] = ()) -> Reading:
    """What ``module``, a model of transformers, reads in ``phase``.

    ``images`` is how many it sees in each sequence, and what height and width they have.

    Raises InputError for a phase that such a model does not have, CutedgeError for one that reads
    something else than tokens or images.
    """
    accepted = inspect.signature(module.forward).parameters
    if phase not in PHASES:
        raise InputError(f"unknown phase {phase!r}: {', '.join(PHASES)}")
    if _is_encoder_decoder(module, accepted):
        return _encoder(module, model) if phase == "encoder" else _decoder(module, phase)
    if sees_among_tokens(module, accepted):
        if phase == "encoder":
            return _seen(module, model, images or (1,))
        if images and phase == "prefill":
            return _tokens_and_images(module, model, accepted, images)
    elif images:
        raise InputError(f"{model}: {type(module).__name__} reads no images among its tokens")
    if phase == "encoder":
        raise InputError(f"{model}: {type(module).__name__} has no encoder apart: use prefill")
    if _is_two_towers(module, accepted):
        return _two_towers(module, model, phase, accepted)
    if "input_ids" in accepted:
        tokens = Input("input_ids", ("batch", "seq"))
        sizes = {"seq": _new_tokens(phase)}
        sees = phase == "prefill" and sees_among_tokens(module, accepted)
        notes = ("it reads text alone here: --images 1 for an image before it",) if sees else ()
        return Reading((tokens,), _plainly, sizes, _NO_SOURCE, notes, options=accepted)
    if (read := sensed(module, accepted, lambda inputs: module(**inputs))) is not None:
        if phase != "prefill":
            what = "images" if read.given.name in SEEN else "sounds"
            raise InputError(f"{model}: {type(module).__name__} reads {what}: it has no {phase}")
        return _of_sense(read, _plainly)
    raise CutedgeError(
        f"{model}: {type(module).__name__} reads no tokens, images or sounds but "
        f"{next(iter(accepted), 'nothing')}; hand over such a model as file.py:function"
    )


def phases(module: Any) -> list[str]:
    """The phases that a model of transformers has, in the order of a run."""
    accepted = inspect.signature(module.forward).parameters
    if _is_encoder_decoder(module, accepted):
        reads = inspect.signature(module.get_encoder().forward).parameters
        known = {"input_ids", *SEEN, *HEARD} & {*reads}
        return [*(["encoder"] if known else []), "prefill", "decode"]
    steps = cache_argument(accepted) and not is_encoder(module)
    apart = sees_among_tokens(module, accepted) and not _is_two_towers(module, accepted)
    return [*(["encoder"] if apart else []), "prefill", *(["decode"] if steps else [])]


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


def _is_two_towers(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model compares texts to images or sounds, each in a tower of its own."""
    compares = any(hasattr(module, f"get_{kind}_features") for kind in ("image", "audio"))
    return compares and hasattr(module, "get_text_features") and "input_ids" in accepted


def _two_towers(
    module: torch.nn.Module, model: str, phase: str, accepted: Mapping[str, Any]
) -> Reading:
    """A text and an image or sound in each of the batch."""
    if phase != "prefill":
        raise InputError(f"{model}: {type(module).__name__} reads all at once: it has no {phase}")
    tokens = Input("input_ids", ("batch", "seq"))

    def run(inputs: Mapping[str, Any]) -> Any:
        return module(input_ids=torch.zeros(2, 8, dtype=torch.int64), **inputs)

    read = sensed(module, accepted, run)
    if read is None or "seq" in read.sizes:
        raise CutedgeError(f"{model}: {type(module).__name__} reads what is not known here")
    other = "image" if read.given.name in SEEN else "sound"
    notes = (f"each of the batch is a text and one {other}", *read.notes)
    fixed = {"past": "it keeps no cache", "source": "it reads no encoded tokens"}
    return Reading((tokens, read.given), _plainly, {"seq": MANY_TOKENS}, fixed, notes)


def sees_among_tokens(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model takes images for some of the tokens of a text."""
    return {"input_ids", "pixel_values"} <= {*accepted} and hasattr(module, "get_image_features")


def _seen(module: torch.nn.Module, model: str, images: Sequence[int]) -> Reading:
    """What a model makes of images alone: its tower of vision, and the projector behind it."""
    pixels, run, notes, _ = _pictures(module, model, images)

    def features(module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        return _features(module, run(module, inputs))

    fixed = dict.fromkeys(("seq", "past", "source"), "it reads images, not tokens")
    return Reading((pixels,), features, {}, fixed, notes, by_one=True)


def _tokens_and_images(
    module: torch.nn.Module, model: str, accepted: Collection[str], images: Sequence[int]
) -> Reading:
    pixels, run, notes, made = _pictures(module, model, images)
    tokens = Input("input_ids", ("batch", "seq"))

    def both(module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        return module(input_ids=inputs["input_ids"], **run(module, inputs), **options)

    sizes = {"seq": MANY_TOKENS + made}
    return Reading(
        (tokens, pixels), both, sizes, _NO_SOURCE, notes, accepted, taken=made, by_one=True
    )


def _features(module: Any, given: Mapping[str, Any]) -> Any:
    made = module.get_image_features(**given, return_dict=True)
    return getattr(made, "pooler_output", made)


def _pictures(
    module: torch.nn.Module, model: str, images: Sequence[int]
) -> tuple[Input, Callable[[Any, Mapping[str, Any]], dict[str, Any]], tuple[str, ...], int]:
    """(the pixels, what the model is given for them, what a user must know, tokens they make)"""
    count, *size = images
    seen = picture(module, (size[0], size[-1]) if size else None)
    if seen is None:
        raise CutedgeError(f"{model}: {type(module).__name__} takes images in no way known here")
    rows = count * seen.rows
    parameter = next(module.parameters())
    axes: tuple[Axis, ...] = ("batch", *seen.axes) if rows == 1 else ("batch", rows, *seen.axes)
    pixels = Input("pixel_values", axes, parameter.dtype)

    def given(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = inputs["pixel_values"]
        told = {}
        if seen.told:
            place, batch = next(module.parameters()).device, int(values.shape[0])
            told = {n: Told.of([row] * (batch * count), place) for n, row in seen.told.items()}
        return {"pixel_values": values if rows == 1 else values.flatten(0, 1), **told}

    try:
        with run_on_meta(module), torch.device("meta"):
            probe = torch.zeros(shape(axes, {"batch": 1}), dtype=parameter.dtype)
            made = tree_leaves(_features(module, given(module, {"pixel_values": probe})))
            made = [leaf for leaf in made if isinstance(leaf, torch.Tensor)]
            tokens = sum(leaf.numel() // leaf.shape[-1] for leaf in made)
    except Exception as error:
        raise CutedgeError(
            f"{model}: its images cannot be encoded without data: {failure(error, module)}"
        ) from error
    each = f"an image of {seen.height} x {seen.width} pixels makes {tokens // count} tokens"
    return pixels, given, (f"{each}, which --seq counts among its own",), tokens


def _encoder(module: torch.nn.Module, model: str) -> Reading:
    encoder = module.get_encoder()
    reads = inspect.signature(encoder.forward).parameters
    if "input_ids" not in reads:
        read = sensed(encoder, reads, lambda inputs: encoder(**inputs))
        if read is None:
            raise CutedgeError(
                f"{model}: its encoder, {type(encoder).__name__}, reads no tokens, image or sound"
            )
        return _of_sense(
            read,
            lambda module, inputs, **options: module.get_encoder()(**inputs, **options),
            module.get_decoder(),
        )
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
    if first_argument(encoder) == "pixel_values":
        shape = made.last_hidden_state.shape
        if len(shape) == 3 and shape[0] > 1:  # what a run has shown
            height, width = image_size(encoder.config)[:2]
            return shape[
                1
            ], f"{type(encoder).__name__} makes {shape[1]} of {height} x {width} pixels"
    # An encoder that adds the whole of its table of positions to what it reads.
    length = getattr(encoder.config, "max_source_positions", None)
    table = getattr(encoder, "embed_positions", None)
    if isinstance(table, torch.nn.Embedding) and table.num_embeddings == length:
        return length, f"{type(encoder).__name__} makes {length} tokens of whatever it hears"
    return None, ""


def _encoded(module: Any) -> Any:
    """What the encoder makes of its inputs: as a run shows, else one tensor as configured."""
    encoder = module.get_encoder()
    try:
        with run_on_meta(module), torch.device("meta"):
            if first_argument(encoder) == "pixel_values":
                height, width, channels, _ = image_size(encoder.config)
                dtype = next(encoder.parameters()).dtype
                read = torch.zeros(2, channels, height, width, dtype=dtype)
            else:
                read = torch.zeros(2, 16, dtype=torch.int64)
            made = encoder(**{first_argument(encoder): read}, return_dict=True)
        return type(made)(last_hidden_state=made.last_hidden_state)
    except Exception:  # an encoder of sounds, or code that looks at values
        settings = module.config.get_text_config(decoder=True)
        dtype = next(module.parameters()).dtype
        alone = torch.empty(1, 1, settings.hidden_size, dtype=dtype, device="meta")
        return BaseModelOutput(last_hidden_state=alone)


def _of_sense(
    read: Sensed, run: Callable[..., Any], idle: torch.nn.Module | None = None
) -> Reading:
    """What reads an image or a sound alone."""
    fixed = {
        "seq": read.why,
        "past": "it reads all at once",
        "source": "it reads no encoded tokens",
    }
    if not read.why:
        del fixed["seq"]
    heard = read.given.name in HEARD
    return Reading((read.given,), run, read.sizes, fixed, read.notes, idle=idle, heard=heard)
