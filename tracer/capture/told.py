"""Tensors of few numbers that are known while a model is traced: the sizes of its images."""

from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only


class Told(torch.Tensor):
    """Whole numbers that code may look at, also while the model runs without data.

    What is made of such tensors alone is computed at once and is no op of a trace; where one meets
    a tensor of the model it is a constant.
    """

    place: torch.device
    """The device of the model, which code that makes new tensors asks it for."""

    @classmethod
    def of(cls, numbers: Any, place: torch.device, dtype: torch.dtype = torch.int64) -> "Told":
        """These numbers, for a model on ``place``."""
        with _disable_current_modes(), torch.device("cpu"):
            return cls._held(torch.tensor(numbers, dtype=dtype), place)

    @classmethod
    def _held(cls, tensor: torch.Tensor, place: torch.device) -> "Told":
        told: Told = tensor.as_subclass(cls)
        told.place = place
        return told

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        cpu = torch.device("cpu")
        places = [getattr(leaf, "place", cpu) for leaf in leaves if isinstance(leaf, cls)]
        place = next((one for one in places if one != cpu), cpu)
        if func == torch.Tensor.device.__get__:
            return place
        with torch._C.DisableTorchFunctionSubclass():
            met = next((leaf for leaf in leaves if not isinstance(leaf, cls)), None)
            if met is not None:
                constant = partial(_constant, place=met.device)
                args, kwargs = tree_map_only(cls, constant, (args, kwargs))
                return func(*args, **kwargs)
            args, kwargs = tree_map_only(torch.device, lambda device: cpu, (args, kwargs))
            if isinstance(kwargs.get("device"), str):
                kwargs["device"] = cpu
            with _disable_current_modes(), cpu:
                made = func(*args, **kwargs)
                return tree_map_only(torch.Tensor, lambda t: cls._held(t, place), made)


def _constant(told: Told, place: torch.device) -> torch.Tensor:
    with _disable_current_modes():
        numbers = torch.Tensor.tolist(told)
    return torch.tensor(numbers, dtype=told.dtype, device=place)


class TellingTorch:
    """Torch for code that works out what follows from the sizes of images alone.

    What it makes of numbers is told, so that the code may look at it.
    """

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name)
        if isinstance(function, type) or not callable(function):
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if given:  # which say themselves how
                return function(*args, **kwargs)
            place = torch.device(kwargs.pop("device", None) or "cpu")
            with _disable_current_modes(), torch.device("cpu"):
                made = function(*args, **kwargs)
                return tree_map_only(torch.Tensor, lambda t: Told._held(t, place), made)

        return call
