"""The state that a model keeps between steps: keys and values, convolutions, recurrent states.

Which tensors there are, and how they grow, is learnt from the model itself: it is prefilled twice
on the meta device, at sizes that tell batch, cached and encoded tokens apart, and its cache is
looked at.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from tracer.capture.compat import DynamicCache, EncoderDecoderCache
from tracer.capture.errors import failure
from tracer.capture.readings import Reading
from tracer.capture.runs import run_on_meta
from tracer.capture.senses import Axis, shape
from tracer.errors import CutedgeError

Path = tuple[str, ...]
"""Where something is in a cache: names of attributes, keys and indices."""


@dataclass(frozen=True, slots=True)
class State:
    """One tensor of a model's cache."""

    path: Path
    """Where the cache keeps it: ``("layers", "3", "keys")``."""
    dtype: torch.dtype
    axes: tuple[Axis, ...]

    @property
    def layer(self) -> int:
        """The block that keeps it: the first number of its path."""
        return next((int(step) for step in self.path if step.isdigit()), -1)

    @property
    def name(self) -> str:
        """Its name among the inputs of the graph: ``cache.3.keys``, ``cache.0.cross.values``."""
        index = next((i for i, step in enumerate(self.path) if step.isdigit()), len(self.path))
        around = [*self.path[:index], *self.path[index + 1 :]]
        slot = [step.removesuffix("_attention_cache") for step in around if step != "layers"]
        return ".".join(["cache", str(self.layer), *slot])


@dataclass(frozen=True, slots=True)
class CacheKind:
    """How a model keeps its state, as a run of it showed."""

    template: Any
    """A filled cache, to be filled with other tensors."""
    states: tuple[State, ...]
    lengths: Mapping[Path, str]
    """Where the cache counts tokens -> the size that it counts."""

    def filled(self, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, Any]) -> Any:
        """A cache that holds ``tensors``, by the names of their states, at these sizes."""
        held = {state.path: tensors[state.name] for state in self.states if state.name in tensors}
        counts = {path: sizes[name] for path, name in self.lengths.items()}
        return _rebuilt(self.template, {**held, **counts})


def empty_cache(config: Any) -> Any:
    """A cache to be filled, as text generation makes it."""
    if getattr(config, "is_encoder_decoder", False):
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=config)


def cache_kind(
    module: torch.nn.Module, model: str, reading: Reading, argument: str, least_past: int
) -> CacheKind:
    """How a model keeps its state after ``least_past`` tokens or more.

    Raises CutedgeError for a model whose state is no cache that it can be given.
    """
    runs = [
        {"batch": 2, "past": least_past, "source": least_past + 4},
        {"batch": 3, "past": least_past + 2, "source": least_past + 7},
    ]
    (one, held), (two, held_later) = (
        _prefilled(module, model, reading, argument, sizes) for sizes in runs
    )
    batches = tuple(sizes["batch"] for sizes in runs)
    if apart := sorted(
        path
        for path, sides in held.items()
        if batches in set(zip(sides, held_later.get(path, ()), strict=False))
    ):
        raise CutedgeError(
            f"{model} keeps state in its own modules ({apart[0]}), apart from {argument}: a step "
            "over it cannot be traced. Try a prefill without a cache."
        )
    later = dict(_leaves(two))
    states, lengths = [], {}
    for path, leaf in _leaves(one):
        if isinstance(leaf, torch.Tensor):
            sizes = zip(leaf.shape, later[path].shape, strict=True)
            axes = tuple(_axis(runs, a, b, f"{model}: {'.'.join(path)}") for a, b in sizes)
            states.append(State(path, leaf.dtype, axes))
        elif leaf != later[path]:
            counted = _axis(runs, leaf, later[path], f"{model}: {'.'.join(path)}")
            lengths[path] = str(counted)
    if not states:
        raise CutedgeError(f"{model} keeps no state between steps: there is no {argument} to fill")
    return CacheKind(one, tuple(states), lengths)


def _prefilled(
    module: torch.nn.Module, model: str, reading: Reading, argument: str, sizes: Mapping[str, int]
) -> tuple[Any, dict[str, torch.Size]]:
    """(the cache of a model after a prefill without data, shapes of what its modules then hold)"""
    axes = {**sizes, "seq": sizes["past"]}
    failures = []
    for own in (False, True):  # some models take only what they made
        try:
            cache = None if own else empty_cache(module.config)
            with run_on_meta(module), torch.device("meta"):
                inputs = {
                    given.name: torch.zeros(shape(given.axes, axes), dtype=given.dtype)
                    for given in reading.inputs
                }
                made = reading.run(module, inputs, use_cache=True, **{argument: cache})
                held = {
                    f"{path}.{key}": value.shape
                    for path, part in module.named_modules()
                    for key, value in (*vars(part).items(), *part._buffers.items())
                    if isinstance(value, torch.Tensor)
                }
            return (cache if cache is not None else made[argument]), held
        except Exception as error:  # code that looks at values, or another cache than it takes
            failures.append(error)
    raise CutedgeError(
        f"{model}: its cache cannot be filled without weights: {failure(failures[0], module)}. "
        "Try a prefill without a cache."
    ) from failures[0]


def _axis(runs: list[dict[str, int]], first: int, second: int, what: str) -> Axis:
    if first == second:
        return first
    for name in runs[0]:
        if (first, second) == (runs[0][name], runs[1][name]):
            return name
    raise CutedgeError(f"{what} has a size that is neither batch nor a number of tokens")


# --- what a cache is made of ----------------------------------------------------------------------


def _parts(value: Any) -> dict[str, Any] | None:
    """What an object of a cache consists of, None for what is no such object."""
    if isinstance(value, list | tuple):
        return {str(i): part for i, part in enumerate(value)}
    if isinstance(value, dict):
        return {str(key): part for key, part in value.items()}
    if type(value).__module__.startswith("transformers") and hasattr(value, "__dict__"):
        named = {key: part for key, part in vars(value).items() if not key.startswith("_")}
        return None if hasattr(value, "to_dict") else named  # a config is a setting, no state
    return None


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, tensor or whole number) of all that a cache keeps."""
    if isinstance(value, torch.Tensor):
        if value.dim() > 0:
            yield path, value
    elif type(value) is int:
        yield path, value
    else:
        for key, part in (_parts(value) or {}).items():
            yield from _leaves(part, (*path, key))


def _rebuilt(value: Any, changed: Mapping[Path, Any], path: Path = ()) -> Any:
    """The same cache with other leaves; the original stays as it is."""
    if path in changed:
        return changed[path]
    parts = _parts(value)
    if parts is None:
        return value
    inside = {key: _rebuilt(part, changed, (*path, key)) for key, part in parts.items()}
    if isinstance(value, list | tuple):
        return type(value)(inside.values())
    if isinstance(value, dict):
        return dict(zip(value, inside.values(), strict=True))
    other = copy.copy(value)
    vars(other).update(inside)
    return other


# --- a step ---------------------------------------------------------------------------------------


_GIVEN = ("encoder_last_hidden_state",)
"""What models hand back as they were given it."""

WRAPPED = "module"
"""The name of the model inside a ``StatelessModel``."""


class StatelessModel(torch.nn.Module):
    """A model that takes inputs and state as plain tensors and returns them so.

    Without ``argument`` it neither takes nor makes state; without a ``kind`` it fills a new cache.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        reading: Reading,
        options: Mapping[str, Any],
        argument: str | None,
        kind: CacheKind | None,
        sizes: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.module = module
        self._run, self._options = reading.run, options
        self._axes = {given.name: given.axes for given in reading.inputs}
        self._argument, self._kind, self._sizes = argument, kind, sizes
        if kind is not None:
            self._axes.update((state.name, state.axes) for state in kind.states)
        # Whole and unchanged, also while the model stands shortened: blocks keep their index.
        with torch.device("meta"):  # what it is made with is no part of the step
            fills = argument is not None and kind is None
            self._empty = empty_cache(copy.deepcopy(module.config)) if fills else None

    def over(self, module: torch.nn.Module) -> "StatelessModel":
        """The same step of another module that is built alike."""
        other = copy.copy(self)
        other._modules = {WRAPPED: module}
        return other

    def forward(
        self, inputs: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(results, state afterwards)"""
        cache = None
        options = dict(self._options)
        if self._argument is not None:
            cache = self._cache({**inputs, **state})
            options |= {"use_cache": True, self._argument: cache}
        made = self._run(self.module, inputs, **options)
        kept = [] if cache is None else self._state(cache, state)
        if isinstance(made, dict):  # the cache is told apart, and what was given is no result
            made = {k: v for k, v in made.items() if k not in (self._argument, *_GIVEN)}
        return [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)], kept

    def _cache(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        if self._kind is None:
            return _rebuilt(self._empty, {})
        sizes: dict[str, Any] = dict(self._sizes)
        for name, tensor in tensors.items():  # symbols where a tensor has them
            axes = zip(self._axes[name], tensor.shape, strict=True)
            sizes.update((axis, size) for axis, size in axes if isinstance(axis, str))
        return self._kind.filled(tensors, sizes)

    def _state(self, cache: Any, state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        if self._kind is None:
            return [leaf for _, leaf in _leaves(cache) if isinstance(leaf, torch.Tensor)]
        after = dict(_leaves(cache))
        return [after[kept.path] for kept in self._kind.states if kept.name in state]
