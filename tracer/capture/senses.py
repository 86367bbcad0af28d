"""What a model sees and hears: how its images and sounds are shaped."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tracer.capture.runs import run_on_meta

Axis = str | int
"""A size of a tensor: the name of the symbol that it is, or a number."""

IMAGE = 224
"""Pixels of a side, for models whose config names no size."""

SAMPLES = 160_000
"""Samples of a sound where the user names no number: ten seconds at 16,000 a second."""

FRAMES = 1000
"""Frames of a sound where the user names no number: ten seconds at a hundred a second."""

_BANDS = (
    "num_mel_bins",
    "feature_projection_input_dim",
    "input_feat_per_channel",
    "n_mel_bins",
    "feature_size",
    "input_dim",
    "n_mels",
)
"""How configs call the numbers that a frame of sound has."""


def shape(axes: Sequence[Axis], sizes: Mapping[str, int]) -> list[int]:
    """The numbers that axes are at ``sizes``."""
    return [sizes[axis] if isinstance(axis, str) else axis for axis in axes]


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that a model is given, apart from its state."""

    name: str
    axes: tuple[Axis, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True, slots=True)
class Sensed:
    """An image or a sound that a model reads."""

    given: Input
    notes: tuple[str, ...] = ()
    """What a user must know of it."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The sizes that it may have, by name, at their defaults."""
    why: str = ""
    """Why the user cannot choose its size; empty where the user can."""
    long: int = 0
    """How many frames or samples a sound has, where the user names no number."""


SEEN, HEARD = ("pixel_values", "pixel_values_videos"), ("input_features", "input_values", "inputs")
"""How models call their images, and their sounds."""


def sensed(
    module: torch.nn.Module, accepted: Mapping[str, Any], run: Callable[[Mapping[str, Any]], Any]
) -> Sensed | None:
    """The image or sound that a model reads, None where it is known of no such.

    ``run`` runs the model on one. Of several shapes that a sound may have, it is the first that
    the model runs on; the first of all where it runs on no shape without data.
    """
    settings = module.config
    dtype = next(module.parameters()).dtype
    name = next((name for name in (*SEEN, *HEARD) if name in accepted), None)
    if name is None:
        return None
    if name in SEEN:
        height, width, channels, named = image_size(settings)
        notes = () if named else (f"images are {IMAGE} x {IMAGE} pixels: the config names no size",)
        frames = () if name == "pixel_values" else (getattr(settings, "num_frames", 16),)
        pixels = Input(name, ("batch", *frames, channels, height, width), dtype)
        return Sensed(pixels, notes, why="it reads images, not tokens")
    shapes = list(shapes_of_sound(module, name))
    return next((sound for sound in shapes if _runs(module, sound, run)), shapes[0])


def _runs(module: torch.nn.Module, sound: Sensed, run: Callable[[Mapping[str, Any]], Any]) -> bool:
    try:
        with run_on_meta(module), torch.device("meta"):
            axes = shape(sound.given.axes, {"batch": 2, **sound.sizes})
            run({sound.given.name: torch.zeros(axes, dtype=sound.given.dtype)})
    except Exception:  # another shape than it reads may fail in any way
        return False
    return True


def shapes_of_sound(module: Any, name: str) -> Iterator[Sensed]:
    """The shapes that a sound may have, which a model takes by ``name``, the most telling first."""
    settings, dtype = module.config, next(module.parameters()).dtype
    parts = [settings, *(getattr(settings, part, None) for part in _parts(settings))]

    def told(*names: str) -> int | None:
        values = (getattr(part, name, None) for part in parts for name in names)
        return next((value for value in values if type(value) is int), None)

    bands, length = told(*_BANDS), told("max_length")
    whole = told("max_source_positions")
    frames = ("seq counts frames of sound, about 100 a second",)
    fixed = "a sound has always as many frames: shorter ones are filled up"

    def of(*axes: Axis, notes: tuple[str, ...] = frames, long: int = 0, **sizes: int) -> Sensed:
        why = "" if sizes else fixed
        return Sensed(
            Input(name, ("batch", *axes), dtype), notes, sizes, why, sizes.get("seq", long)
        )

    if bands is not None:
        if told("spec_size") is not None:  # a picture of a sound
            yield of(1, FRAMES + 1, bands, notes=(), long=FRAMES + 1)
        if whole is not None:  # an encoder that halves them, and adds its table of positions
            yield of(bands, 2 * whole, notes=(), long=2 * whole)
        if name == "input_values" and length is not None:
            yield of(length, bands, notes=(), long=length)
    if name != "input_features":
        counts = ("seq counts samples of sound, 16,000 a second for most models",)
        yield of("seq", notes=counts, seq=SAMPLES)
        yield of(1, "seq", notes=counts, seq=SAMPLES)
    layers = (part for part in module.modules() if isinstance(part, torch.nn.Linear))
    first = next((part.in_features for part in layers), None)
    for width in (bands, 80, 128, first):
        if width is not None:
            yield of("seq", width, seq=FRAMES)
            yield of(width, "seq", seq=FRAMES)


def _parts(settings: Any) -> Iterator[str]:
    yield from type(settings).sub_configs
    yield from ("audio_config", "encoder", "encoder_config")


def image_size(settings: Any) -> tuple[int, int, int, bool]:
    """(height, width, channels of an image, whether the config names its size)"""
    vision = getattr(settings, "vision_config", settings)
    parts = (vision, getattr(vision, "backbone_config", None), settings)
    sizes = (getattr(part, "image_size", None) for part in parts)
    size = next((size for size in sizes if size), None)
    height, width = (size or IMAGE,) * 2 if isinstance(size, int | None) else size
    return height, width, getattr(vision, "num_channels", 3), size is not None


def first_argument(encoder: torch.nn.Module) -> str:
    """The first argument of an encoder: what it reads."""
    return next(iter(inspect.signature(encoder.forward).parameters), "")
