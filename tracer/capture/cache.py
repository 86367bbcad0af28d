"""The state that a model keeps between steps: keys and values, convolutions, recurrent states.

Which tensors there are, and how they grow, is learnt from the model itself: it is prefilled twice
on the meta device, at sizes that tell batch and cached tokens apart, and its cache is looked at.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from tracer.capture.errors import first_line
from tracer.capture.runs import run_on_meta
from tracer.errors import CutedgeError

Axis = str | int
"""A size of a tensor: the name of the symbol that it is, or a number."""


@dataclass(frozen=True, slots=True)
class State:
    """One tensor of a model's cache."""

    layer: int
    """The block that keeps it."""
    slot: str
    """What it is there: ``keys``, ``values``, ``conv_states.0`` ..."""
    dtype: torch.dtype
    axes: tuple[Axis, ...]

    @property
    def name(self) -> str:
        """Its name among the inputs of the graph."""
        return f"cache.{self.layer}.{self.slot}"


@dataclass(frozen=True, slots=True)
class CacheKind:
    """How a model keeps its state, as a run of it showed."""

    argument: str
    """The argument of the model's forward that takes the cache."""
    template: Any
    """A filled cache, to be filled with other tensors."""
    states: tuple[State, ...]
    lengths: tuple[tuple[int, str], ...]
    """(layer, attribute) that counts the cached tokens."""

    def filled(self, tensors: Mapping[str, torch.Tensor], past: Any) -> Any:
        """A cache that holds ``tensors`` by their names."""
        cache = copy.copy(self.template)
        cache.layers = [_copied(layer) for layer in self.template.layers]
        for state in self.states:
            if state.name in tensors:
                _put(cache.layers[state.layer], state.slot, tensors[state.name])
        for layer, attribute in self.lengths:
            setattr(cache.layers[layer], attribute, past)
        return cache


def cache_argument(accepted: Mapping[str, Any]) -> str | None:
    """The argument of a forward that takes a cache, None when there is none."""
    return next((name for name in ("past_key_values", "cache_params") if name in accepted), None)


def cache_kind(module: torch.nn.Module, model: str, argument: str, least_past: int) -> CacheKind:
    """How a model keeps its state after ``least_past`` tokens or more.

    Raises CutedgeError for a model whose state is no cache of layers.
    """
    runs = [(2, least_past), (3, least_past + 2)]
    one, two = (_prefilled(module, model, argument, batch, past) for batch, past in runs)
    states, lengths = [], []
    for layer, (first, second) in enumerate(zip(one.layers, two.layers, strict=True)):
        later = dict(_slots(second))
        for slot, tensor in _slots(first):
            sizes = zip(tensor.shape, later[slot].shape, strict=True)
            axes = tuple(_axis(runs, a, b, f"{model}: {slot}") for a, b in sizes)
            states.append(State(layer, slot, tensor.dtype, axes))
        for key, value in vars(first).items():
            if type(value) is int and [value, vars(second).get(key)] == [p for _, p in runs]:
                lengths.append((layer, key))
    if not states:
        raise CutedgeError(f"{model} keeps no state between steps: there is no {argument} to fill")
    return CacheKind(argument, one, tuple(states), tuple(lengths))


def _prefilled(module: torch.nn.Module, model: str, argument: str, batch: int, past: int) -> Any:
    ids = torch.zeros(batch, past, dtype=torch.int64, device="meta")
    cache = DynamicCache(config=module.config)
    try:
        with run_on_meta(module), torch.device("meta"):
            module(input_ids=ids, use_cache=True, **{argument: cache})
    except Exception as error:  # code that looks at values, or that has a cache of its own kind
        raise CutedgeError(
            f"{model}: its cache cannot be filled without weights: {first_line(error)}. "
            "Prefill without a cache can be traced."
        ) from error
    return cache


def _axis(runs: list[tuple[int, int]], first: int, second: int, what: str) -> Axis:
    (batch, past), (more, longer) = runs
    if first == second:
        return first
    if (first, second) == (batch, more):
        return "batch"
    if (first, second) == (past, longer):
        return "past"
    raise CutedgeError(f"{what} has a size that is neither batch nor cached tokens")


def _slots(layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a layer of a cache keeps."""
    for key, value in vars(layer).items():
        if key.startswith("_"):
            continue
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            yield key, value
        elif isinstance(value, dict):
            for number, entry in value.items():
                if isinstance(entry, torch.Tensor):
                    yield f"{key}.{number}", entry


def _copied(layer: Any) -> Any:
    """A layer of a cache that can be filled without changing the original."""
    other = copy.copy(layer)
    for key, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(other, key, dict(value))
    return other


def _put(layer: Any, slot: str, tensor: torch.Tensor) -> None:
    key, dot, number = slot.partition(".")
    if dot:
        getattr(layer, key)[int(number)] = tensor
    else:
        setattr(layer, key, tensor)


WRAPPED = "module"
"""The name of the model inside a ``Step``."""


class Step(torch.nn.Module):
    """A model that takes its state as plain tensors and returns it so, after the new tokens."""

    def __init__(
        self, module: torch.nn.Module, kind: CacheKind | None, argument: str, length: int,
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self._kind, self._argument, self._length = kind, argument, length
        self._options = options
        # Whole and unchanged, also while the model stands shortened: blocks keep their index.
        self._settings = copy.deepcopy(module.config)

    def forward(
        self, input_ids: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(results, state afterwards)"""
        if self._kind is None:
            cache = DynamicCache(config=self._settings)
        else:
            cache = self._kind.filled(state, self._past(state))
        made = self.module(
            input_ids=input_ids, use_cache=True, **{self._argument: cache}, **self._options
        )
        held = [
            tensor
            for layer, slots in enumerate(cache.layers)
            for slot, tensor in _slots(slots)
            if self._kind is None or f"cache.{layer}.{slot}" in state
        ]
        results = [value for value in made.values() if isinstance(value, torch.Tensor)]
        return results, held

    def _past(self, state: Mapping[str, torch.Tensor]) -> Any:
        """The number of cached tokens, as a symbol where a tensor has it as a size."""
        assert self._kind is not None
        for kept in self._kind.states:
            if kept.name in state and "past" in kept.axes:
                return state[kept.name].shape[kept.axes.index("past")]
        return self._length
