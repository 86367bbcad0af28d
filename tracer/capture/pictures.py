"""Images among the tokens of a text: how models read them, and what they must know of them."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tracer.capture.senses import image_size

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
class Picture:
    """How a model of images and text reads one image."""

    axes: tuple[int, ...]
    """The sizes of what it is given of an image."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What it must know of an image beside its pixels: name -> its row of numbers."""
    laid: Laid = each


def seer(module: Any) -> Any:
    """The part of a model that makes tokens of images; None where it is known of no such."""
    parts = (getattr(module, "model", None), module, getattr(module, "base_model", None))
    return next((part for part in parts if hasattr(part, "get_image_features")), None)


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


def pictures(module: Any, size: tuple[int, int] | None) -> Iterator[Picture]:
    """The ways in which a model may read an image of ``size`` (height, width) pixels, or of its
    config's size, the most telling first."""
    settings = module.config
    vision = getattr(settings, "vision_config", settings)
    part = seer(module)
    asked = inspect.signature(part.get_image_features if part else module.forward).parameters
    height, width, channels = image_size(settings)[:3]
    if size is not None:
        height, width = size

    def number(*names: str, default: int) -> int:
        values = (getattr(part, name, None) for part in (vision, settings) for name in names)
        values = (value[0] if isinstance(value, list | tuple) else value for value in values)
        return next((value for value in values if isinstance(value, int)), default)

    channels = number("in_channels", "num_channels", default=channels)
    patch, merged = number("patch_size", default=14), number(*_MERGES, default=2)
    if "target_sizes" in asked:  # it merges them twice
        merged *= 2
    if "image_position_ids" in asked:
        merged = number("pooling_kernel_size", default=merged)
    down, across = (max(side // (patch * merged), 1) * merged for side in (height, width))
    patches, sides = down * across, (down * patch, across * patch)
    grid = next((name for name in _GRIDS if name in asked), None)
    told: dict[str, Any] = {}
    if grid is not None:
        told[grid] = [1, down, across] if grid.endswith("thw") else [down, across]
        if "image_merge_sizes" in asked:
            told["image_merge_sizes"] = merged
        if "pixel_attention_mask" in asked:
            told["pixel_attention_mask"] = [1] * patches
    elif "image_position_ids" in asked:
        for few in (1, merged):  # it pools them, or reads larger ones
            told = {"image_position_ids": _places(down // few, across // few)}
            flat = channels * (patch * few) ** 2
            yield Picture((patches // few**2, flat), *sides, told)
        return
    if told:
        deep = number("temporal_patch_size", default=1)
        for frames in dict.fromkeys((deep, 1, 2)):
            flat = channels * frames * patch * patch
            if "pixel_attention_mask" in told:
                yield Picture((patches, flat), *sides, told)
            elif grid != "target_sizes":
                yield Picture((patches, flat), *sides, told, rows)
        yield Picture((patches, channels, patch, patch), *sides, told, rows)
        yield Picture((channels, patch, patches * patch), *sides, told, strips)
        return
    image = (channels, height, width)
    if "image_sizes" in asked:
        if asked["image_sizes"].default is None:
            yield Picture(image, height, width)
        told["image_sizes"] = [height, width]
        if (points := getattr(settings, "image_grid_pinpoints", None)) is not None:
            side = number("image_size", default=height)
            parts = vars(sys.modules[type(part).__module__])["image_size_to_num_patches"]
            tiles = parts([height, width], points, side)
            yield Picture((tiles, channels, side, side), height, width, told)
    if "aspect_ratio_ids" in asked:  # all its tiles are encoded, whatever it fills of them
        tiles = number("max_num_tiles", default=1)
        told = {"aspect_ratio_ids": 1, "aspect_ratio_mask": [1] * tiles}
        yield Picture((tiles, *image), height, width, told, by_text)
    if "pixel_attention_mask" in asked:
        yield Picture(image, height, width, laid=by_text)
        yield Picture(image, height, width, {"pixel_attention_mask": True}, by_text)
    yield Picture(image, height, width, told)
    yield Picture(image, height, width, told, by_text)
    yield Picture((patches, channels * patch * patch), *sides)
    for frames in (1, 2):
        yield Picture((patches, frames, patch, patch, channels), *sides, laid=rows)


def _places(down: int, across: int) -> list[list[int]]:
    """The column and the row of each patch of an image."""
    return [[x, y] for y in range(down) for x in range(across)]
