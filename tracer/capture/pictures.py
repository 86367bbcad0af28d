"""Images and sounds among the tokens of a text: how models read them, and what they must know."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tracer.capture.senses import HEARD, image_size, shape, shapes_of_sound

Laid = Callable[[torch.Tensor, int], torch.Tensor]
"""(the pixels, ``batch`` x ``count`` images, ``count``) -> these as a model is given them."""


def each(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """An image a row."""
    return pixels


def rows(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """The parts of all images in a row of their own."""
    return pixels.flatten(0, 1)


def by_text(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """The images of each text in a row of their own."""
    return pixels.unflatten(0, (pixels.shape[0] // count, count))


def strips(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """The patches of all images side by side."""
    channels, patch = pixels.shape[1:3]
    return pixels.permute(1, 2, 0, 3).reshape(1, channels, patch, -1)


@dataclass(frozen=True, slots=True)
class Shown:
    """How a model of text reads one image or sound."""

    name: str
    """Of the argument that takes it."""
    what: str
    """What it is, as in ``an image of 224 x 224 pixels``."""
    axes: tuple[int, ...]
    """The sizes of what the model is given of it."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the model must know of it beside: name -> its row of numbers."""
    laid: Laid = each
    looked: bool = True
    """Whether code looks at what it knows, and does not only compute with it."""
    also: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """What it reads of each beside: name -> sizes, of tokens where they are called ids."""


QUESTION = 32
"""Tokens of the question that some models read an image with, in another vocabulary than theirs."""


FRAMES = 4
"""Images of a video that is read with a question."""


def maker(module: Any, kind: str = "image") -> Any:
    """The part of a model that makes tokens of images, or of ``audio``; None where there is no
    such, or its config leaves the tower out."""
    if getattr(module.config, _CONFIGS[kind], kind) is None:
        return None
    parts = (getattr(module, "model", None), module, getattr(module, "base_model", None))
    return next((part for part in parts if hasattr(part, f"get_{kind}_features")), None)


_CONFIGS = {"image": "vision_config", "audio": "audio_config"}
"""How configs call the towers, by what they read."""

_TOWERS = ("vision_model", "vision_tower", "image_encoder", "visual")
_PROJECTORS = ("multi_modal_projector", "visual_projection")


def tower(module: Any) -> Any:
    """(what encodes the images of a model that makes no tokens of them, what projects these)"""
    for part in (getattr(module, "model", None), getattr(module, "base_model", None), module):
        encoders = (getattr(part, name, None) for name in _TOWERS)
        if (encoder := next((one for one in encoders if one is not None), None)) is not None:
            projectors = (getattr(part, name, None) for name in _PROJECTORS)
            return encoder, next((one for one in projectors if one is not None), None)
    return None


_GRIDS = ("image_grid_thw", "image_grid_hw", "spatial_shapes", "target_sizes")
"""How models call the patches of an image: (frames,) rows, columns."""

_MERGES = ("spatial_merge_size", "merge_size", "merge_kernel_size", "downsample_factor")
"""How configs call how many patches, of a side, make a token."""


def pictures(module: Any, size: tuple[int, int] | None) -> Iterator[Shown]:
    """The ways in which a model may read an image of ``size`` (height, width) pixels, or of its
    config's size, the most telling first."""
    part = maker(module)
    asked = inspect.signature(part.get_image_features if part else module.forward).parameters
    sides = size or image_size(module.config)[:2]
    of_patches = "image_position_ids" in asked or any(name in asked for name in _GRIDS)
    yield from (_of_patches if of_patches else _of_pixels)(module, asked, *sides)


def _number(settings: Any, *names: str, default: int) -> int:
    """What a config, that of its images first, says of them by one of these names."""
    parts = (getattr(settings, "vision_config", settings), settings)
    values = (getattr(part, name, None) for part in parts for name in names)
    values = (value[0] if isinstance(value, list | tuple) else value for value in values)
    return next((value for value in values if isinstance(value, int)), default)


def _of_patches(module: Any, asked: Collection[str], height: int, width: int) -> Iterator[Shown]:
    """The ways to read an image as its patches, in rows and columns that the model is told."""
    settings = module.config
    channels = _number(settings, "in_channels", "num_channels", default=3)
    patch = _number(settings, "patch_size", default=14)
    merged = _number(settings, *_MERGES, default=2)
    if "target_sizes" in asked:  # it merges them twice
        merged *= 2
    if "image_position_ids" in asked:
        merged = _number(settings, "pooling_kernel_size", default=merged)
    down, across = (max(side // (patch * merged), 1) * merged for side in (height, width))
    patches, what = down * across, f"an image of {down * patch} x {across * patch} pixels"
    shown = partial(Shown, "pixel_values", what)
    if "image_position_ids" in asked:
        for few in (1, merged):  # it pools them, or reads larger ones
            told = {"image_position_ids": _places(down // few, across // few)}
            yield shown((patches // few**2, channels * (patch * few) ** 2), told)
        return
    grid = next(name for name in _GRIDS if name in asked)
    known: dict[str, Any] = {grid: [1, down, across] if grid.endswith("thw") else [down, across]}
    if "image_merge_sizes" in asked:
        known["image_merge_sizes"] = merged
    if grid == "target_sizes":
        yield shown((channels, patch, patches * patch), known, strips)
        return
    deep = _number(settings, "temporal_patch_size", default=1)
    for frames in dict.fromkeys((deep, 1, 2)):
        flat = channels * frames * patch * patch
        if "pixel_attention_mask" in asked:
            yield shown((patches, flat), {**known, "pixel_attention_mask": [1] * patches})
        else:
            yield shown((patches, flat), known, rows)
    yield shown((patches, channels, patch, patch), known, rows)
    if grid.endswith("thw"):  # those that make a token side by side, which the grid counts
        many, side = patches // merged**2, patch * merged
        known[grid] = [1, down // merged, across // merged]
        yield shown((many, side, side, channels), known, rows)


def _of_pixels(module: Any, asked: Mapping[str, Any], height: int, width: int) -> Iterator[Shown]:
    """The ways to read an image as a whole, or in tiles."""
    settings = module.config
    channels = _number(settings, "in_channels", "num_channels", default=3)
    image = (channels, height, width)
    what = f"an image of {height} x {width} pixels"
    also: dict[str, tuple[int, ...]] = {}
    if "high_res_pixel_values" in asked:  # the same once more, for another encoder
        side = image_size(settings.high_res_vision_config)[0]
        also["high_res_pixel_values"] = (channels, side, side)
        what += f", which is read at {side} x {side} too,"
    if "qformer_input_ids" in asked:
        also["qformer_input_ids"] = (QUESTION,)
        what += f", read with a question of {QUESTION} tokens,"
    shown = partial(Shown, "pixel_values", what, also=also)
    if also and maker(module) is None:
        video = (
            f"a video of {FRAMES} images of {height} x {width} pixels{what.partition('pixels')[2]}"
        )
        yield Shown("pixel_values", video, (FRAMES, *image), also=also)
    known: dict[str, Any] = {}
    if "image_sizes" in asked:
        if asked["image_sizes"].default is None:
            yield shown(image)
        known = {"image_sizes": [height, width]}
        if (points := getattr(settings, "image_grid_pinpoints", None)) is not None:
            side = _number(settings, "image_size", default=height)
            code = vars(sys.modules[type(maker(module)).__module__])
            tiles = code["image_size_to_num_patches"]([height, width], points, side)
            yield shown((tiles, channels, side, side), known)
    if "aspect_ratio_ids" in asked:  # all its tiles are encoded, whatever it fills of them
        tiles, side = (
            _number(settings, name, default=1) for name in ("max_num_tiles", "image_size")
        )
        known = {"aspect_ratio_ids": 1, "aspect_ratio_mask": [1] * tiles}
        yield shown((tiles, channels, side, side), known, by_text, looked=False)
        return
    if "pixel_attention_mask" in asked:
        yield shown(image, {}, by_text)
        yield shown(image, {"pixel_attention_mask": True}, by_text)
    yield shown(image, known)
    yield shown(image, known, by_text)
    patch = _number(settings, "patch_size", default=14)
    patches = (height // patch) * (width // patch)
    yield shown((patches, channels * patch * patch))
    for frames in (1, 2):
        yield shown((patches, frames, patch, patch, channels), {}, rows)


def sounds(module: Any) -> Iterator[Shown]:
    """The ways in which a model may read a sound, the most telling first."""
    asked = inspect.signature(maker(module, "audio").get_audio_features).parameters
    name = next((name for name in HEARD if name in asked), "")
    for heard in shapes_of_sound(module, name) if name else ():
        axes = tuple(shape(heard.given.axes[1:], heard.sizes))
        long = heard.long
        told: dict[str, Any] = {mask: [1] * long for mask in _MASKS if mask in asked}
        told |= {length: long for length in _LENGTHS if length in asked}
        unit = "samples" if {*axes} <= {1, long} else "frames"
        yield Shown(name, f"a sound of {long:,} {unit}", axes, told)


_MASKS = ("input_features_mask", "feature_attention_mask", "attention_mask", "padding_mask")
_LENGTHS = ("audio_feature_lengths",)
"""How models call how long each sound is."""


def over_tokens(
    accepted: Collection[str], tokens: torch.Tensor, count: int, taken: int
) -> dict[str, torch.Tensor]:
    """What a model is told of each of its tokens: which of ``count`` images it may look at, and
    whether it stands for a part of an image, as the first ``taken`` do."""
    batch, seq = tokens.shape
    place, told = tokens.device, {}
    if "image_attention_mask" in accepted:
        told["image_attention_mask"] = torch.ones(batch, seq, count, device=place)
    if "image_embeds_position_mask" in accepted:
        first = torch.arange(seq, device=place) < taken
        told["image_embeds_position_mask"] = first.expand(batch, -1)
    return told


def taken_beside(module: Any, accepted: Collection[str]) -> int:
    """How many of its tokens a model fills with an image, or a video, though it has no function
    that makes these."""
    if "image_embeds_position_mask" in accepted:
        return int(module.config.latent_query_num)
    return FRAMES * int(module.config.num_query_tokens) if "qformer_input_ids" in accepted else 0


def _places(down: int, across: int) -> list[list[int]]:
    """The column and the row of each patch of an image."""
    return [[x, y] for y in range(down) for x in range(across)]
