"""Tensors of few numbers that are known while a model is traced: the sizes of its images."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
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
    def of(cls, numbers: Any, place: torch.device) -> "Told":
        """These numbers, for a model on ``place``."""
        with _disable_current_modes(), torch.device("cpu"):
            return cls._held(torch.tensor(numbers), place)

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
                name = getattr(func, "__name__", "")
                if name == "expand_as" and all(type(side) is int for side in met.shape):
                    with _disable_current_modes():
                        return cls._held(torch.Tensor.expand(args[0], met.shape), place)
                if name == "__getitem__" and _is_of_rows(args[1]):
                    with _disable_current_modes():
                        each = cls._held(torch.Tensor.select(args[1], -1, 0), place)
                    args = (args[0], each)
                    index, kwargs = _as_sizes(func, args, kwargs)
                    known = partial(constant, place=met.device)
                    return func(*tree_map_only(cls, known, index), **kwargs).flatten()
                args, kwargs = _as_sizes(func, args, kwargs)
                known = partial(constant, place=met.device)
                args, kwargs = tree_map_only(cls, known, (args, kwargs))
                return func(*args, **kwargs)
            args, kwargs = tree_map_only(torch.device, lambda device: cpu, (args, kwargs))
            if isinstance(kwargs.get("device"), str):
                kwargs["device"] = cpu
            with _disable_current_modes(), cpu:
                made = func(*args, **kwargs)
                return tree_map_only(torch.Tensor, lambda t: cls._held(t, place), made)


_SIZED = {
    "expand",
    "interpolate",
    "narrow",
    "repeat",
    "reshape",
    "split",
    "split_with_sizes",
    "unflatten",
    "view",
}
"""Functions of a tensor whose other arguments are sizes, or lists of them."""


def _as_sizes(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a function of a tensor of the model, with told sizes and places as such."""
    name = getattr(func, "__name__", "")
    if name in _SIZED:
        with _disable_current_modes():
            args, kwargs = tree_map_only(Told, torch.Tensor.tolist, (args, kwargs))
            return args, kwargs
    if name in ("__getitem__", "__setitem__"):
        whole, index, *put = args
        index = index if isinstance(index, tuple) else (index,)
        with _disable_current_modes():
            known = [_places(one) if isinstance(one, Told) else (one,) for one in index]
        return (whole, tuple(place for places in known for place in places), *put), kwargs
    return args, kwargs


def _is_of_rows(index: Any) -> bool:
    """Whether an index says of whole rows whether they are meant."""
    told = isinstance(index, Told) and index.dtype == torch.bool and index.dim() > 1
    return told and torch.Tensor.stride(index)[-1] == 0


def _places(told: Told) -> tuple[Any, ...]:
    """An index, as places where it says of each whether it is meant."""
    if told.dtype != torch.bool or told.dim() == 0:
        return (told,)
    if bool(torch.Tensor.all(told)):
        return (slice(None),) if told.dim() == 1 else torch.Tensor.nonzero(told, as_tuple=True)
    return tuple(torch.Tensor.nonzero(told, as_tuple=True))


def constant(told: Told, place: torch.device) -> torch.Tensor:
    """Told numbers as a tensor of the model."""
    with _disable_current_modes():
        few = told
        for axis, stride in enumerate(told.stride()):
            few = torch.Tensor.narrow(few, axis, 0, 1) if not stride and few.shape[axis] else few
        numbers = torch.Tensor.tolist(few)
    made = torch.tensor(numbers, dtype=told.dtype, device=place)
    return made if few is told else made.expand(told.shape)


class TellingTorch:
    """Torch for code that works out what follows from the sizes of images alone.

    What it makes of numbers is told, so that the code may look at it; of ``whole`` numbers alone
    where it is so, the rest is torch's own.
    """

    def __init__(self, whole: bool = False) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name)
        if isinstance(function, type) or not callable(function):
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in ("as_tensor", "tensor") and args and isinstance(args[0], Told):
                return args[0].to(kwargs.get("dtype"))  # which torch does not ask its argument for
            if name in _MAKES:
                args, kwargs = tree_map_only(Told, _number, (args, kwargs))
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if given or (self._whole and not _of_whole(name, args, kwargs)):
                return function(*args, **kwargs)  # told ones say themselves how
            place = torch.device(kwargs.pop("device", None) or "cpu")
            with _disable_current_modes(), torch.device("cpu"):
                made = function(*args, **kwargs)
                return tree_map_only(torch.Tensor, lambda t: Told._held(t, place), made)

        return call


_MAKES = ("arange", "empty", "full", "ones", "tensor", "zeros")


def _number(told: Told) -> Any:
    """A told number as such; several as they are."""
    with _disable_current_modes():
        return torch.Tensor.tolist(told) if torch.Tensor.dim(told) == 0 else told


def _of_whole(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call makes whole numbers, or yes and no, of numbers that are known."""
    leaves = tree_leaves((args, kwargs))
    if name not in _MAKES or any(isinstance(leaf, torch.SymInt) for leaf in leaves):
        return False
    dtype = kwargs.get("dtype")
    if dtype is None:
        numbers = all(isinstance(n, int) for n in leaves if not isinstance(n, torch.device))
        return name in ("arange", "tensor") and numbers
    return not (dtype.is_floating_point or dtype.is_complex)


class _OfImages(TorchFunctionMode):
    """No number of an image is any given one, so no image is all padding; sizes may be told."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.eq, torch.Tensor.eq, torch.Tensor.__eq__) and len(args) == 2:
            pixels, number = args
            plain = isinstance(pixels, torch.Tensor) and not isinstance(pixels, Told)
            if plain and pixels.is_floating_point() and isinstance(number, int | float):
                if all(type(side) is int for side in pixels.shape):
                    with _disable_current_modes(), torch.device("cpu"):
                        never = torch.zeros(pixels.shape, dtype=torch.bool)
                        return Told._held(never, pixels.device)
        if getattr(func, "__name__", "") == "interpolate":
            with _disable_current_modes():
                kwargs = tree_map_only(Told, torch.Tensor.tolist, kwargs)
        return func(*args, **(kwargs or {}))


_PLACES = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index")
"""How configs call the token in whose place an image or a sound stands."""


class Placed(TorchFunctionMode):
    """Which tokens are those of images: the first of each text, where the code asks it of them.

    It is known where sizes are numbers alone.
    """

    def __init__(self, tokens: torch.Tensor, taken: int, config: Any) -> None:
        super().__init__()
        self._tokens, self._taken = tokens, taken
        self._ids = {getattr(config, name, None) for name in _PLACES}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.eq, torch.Tensor.eq, torch.Tensor.__eq__) and args[0] is self._tokens:
            batch, seq = self._tokens.shape
            if type(batch) is type(seq) is int and isinstance(args[1], int):
                taken = self._taken if args[1] in self._ids else 0
                with _disable_current_modes(), torch.device("cpu"):
                    here = torch.arange(seq).lt(taken).repeat(batch, 1)
                    return Told._held(here, self._tokens.device)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def telling(module: torch.nn.Module) -> Iterator[None]:
    """Let the code of a model of transformers look at what follows from the sizes of its images."""
    names = {type(part).__module__ for part in module.modules()}
    own = [sys.modules[name] for name in names if name.startswith("transformers.models.")]
    with contextlib.ExitStack() as stack:
        for code in own:
            if vars(code).get("torch") is torch:
                stack.enter_context(patch.object(code, "torch", TellingTorch(whole=True)))
        stack.enter_context(_OfImages())
        yield
