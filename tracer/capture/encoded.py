"""What the two parts of an encoder-decoder model read, each a phase of its own."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracer.capture.compat import BaseModelOutput
from tracer.capture.readings import MANY_TOKENS, Reading, new_tokens, of_sense, tokens_of, zeros
from tracer.capture.runs import run_on_meta
from tracer.capture.senses import HEARD, Input, first_argument, image_size, sensed
from tracer.errors import CutedgeError


@dataclass
class Encoded(BaseModelOutput):
    """What an encoder has made of unpadded inputs: some decoders ask it for their mask."""

    attention_mask: torch.Tensor | None = None
    """Which of its tokens are real, None for all."""


def of_encoder(module: torch.nn.Module, model: str) -> Reading:
    """The encoder alone, over tokens, an image or a sound; raises CutedgeError for another."""
    encoder = module.get_encoder()
    reads = inspect.signature(encoder.forward).parameters
    if "input_ids" not in reads:
        read = sensed(encoder, reads, lambda inputs: encoder(**inputs))
        if read is None:
            raise CutedgeError(
                f"{model}: its encoder, {type(encoder).__name__}, reads no tokens, image or sound"
            )
        return of_sense(
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


def of_decoder(module: torch.nn.Module, phase: str) -> Reading:
    """The decoder alone, over what the encoder has made of ``source`` tokens."""
    made = _encoded(module)
    length, why = _encoded_length(module, made)

    def run(module: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
        encoded = type(made)(last_hidden_state=inputs["encoder_hidden_states"])
        return module(
            decoder_input_ids=inputs["decoder_input_ids"], encoder_outputs=encoded, **options
        )

    hidden = made.last_hidden_state
    axes = ("batch", length or "source", hidden.shape[-1])
    encoded = Input("encoder_hidden_states", axes, hidden.dtype)
    return Reading(
        (tokens_of(module, "decoder_input_ids", run, encoded), encoded),
        run,
        {"seq": new_tokens(phase), "source": length or MANY_TOKENS},
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
            why = f"{type(encoder).__name__} makes {shape[1]} of {height} x {width} pixels"
            return shape[1], why
    # An encoder that adds the whole of its table of positions to what it reads.
    length = getattr(getattr(encoder, "config", None), "max_source_positions", None)
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
            elif first_argument(encoder) in HEARD:
                return _heard(encoder)
            else:
                read = torch.zeros(2, 16, dtype=torch.int64)
            made = encoder(**{first_argument(encoder): read}, return_dict=True)
        return type(made)(last_hidden_state=made.last_hidden_state)
    except Exception:  # code that looks at values
        settings = module.config.get_text_config(decoder=True)
        dtype = next(module.parameters()).dtype
        alone = torch.empty(1, 1, settings.hidden_size, dtype=dtype, device="meta")
        return Encoded(last_hidden_state=alone)


def _heard(encoder: Any) -> Any:
    """What an encoder makes of a sound, a token of it."""
    accepted = inspect.signature(encoder.forward).parameters
    read = sensed(encoder, accepted, lambda inputs: encoder(**inputs))
    assert read is not None  # it has an argument for one
    made = encoder(**zeros((read.given,), {"batch": 1, **read.sizes}), return_dict=True)
    return Encoded(last_hidden_state=made.last_hidden_state[:, :1])
