"""What a model is run on: the inputs of a phase, and which of their sizes stay symbols.

Prefill reads ``seq`` new tokens, ``past`` cached ones before them (none, or those of the chunks
before). Decode reads one new token over ``past`` cached ones.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracer.capture.cache import Axis, State, Step, cache_argument, cache_kind
from tracer.capture.errors import Untraceable
from tracer.errors import CutedgeError, InputError
from tracer.reach import UNLIMITED, run_sizes

EXAMPLES = {"batch": 3, "seq": 7, "past": 11}
"""Sizes that a symbolic export runs at: small, odd, unlike each other and any size of a model."""

MANY = 2**20
"""Upper bound that a symbolic size is declared with where the model sets none."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to export: which sizes stay symbols, and within which bounds."""

    bounds: Mapping[str, tuple[int, int]]
    """Symbol -> (least, greatest size); a size that is not here is concrete."""
    examples: Mapping[str, int]
    """The size of each that the export runs at."""
    note: str = ""
    """What a user must know of a trace made in this way."""

    @property
    def symbolic(self) -> tuple[str, ...]:
        """The sizes that stay symbols."""
        return tuple(self.bounds)


class Task:
    """A phase of a model at sizes: what to export, with which inputs, in which ways.

    Raises InputError for sizes that are no such phase, CutedgeError for a model that reads
    something else than tokens or keeps no state where the phase needs one.
    """

    def __init__(
        self, module: torch.nn.Module, model: str, *, phase: str, batch: int, seq: int, past: int,
        logits: str, cache: bool,
    ) -> None:  # fmt: skip
        self.model, self.phase, self.module = model, phase, module
        self.name = type(module).__name__
        self.settings: Any = module.config
        self.sizes = {"batch": batch, "seq": seq, "past": past}
        self._check()
        accepted = inspect.signature(module.forward).parameters
        if "input_ids" not in accepted or getattr(self.settings, "is_encoder_decoder", False):
            raise CutedgeError(
                f"{model}: {self.name} does not run on token ids alone; "
                "models that do can be traced (decoders and encoders of text)"
            )
        self.options: dict[str, Any] = {}
        self.logits = "all"
        if logits == "last" and "logits_to_keep" in accepted:
            self.options["logits_to_keep"] = 1
            self.logits = "last"
        self.ignored = logits == "last" and self.logits == "all" and "CausalLM" in self.name
        self.states: tuple[State, ...] = ()
        self.step: Step | None = None
        cached = cache or past > 0
        for part in module.modules():  # some models ask their config alone
            if hasattr(getattr(part, "config", None), "use_cache"):
                part.config.use_cache = cached
        if cached:
            self.step = self._step(cache_argument(accepted))
        elif "use_cache" in accepted:
            self.options["use_cache"] = False

    def _check(self) -> None:
        seq, past = self.sizes["seq"], self.sizes["past"]
        if self.phase == "decode" and past < 1:
            raise InputError("decode needs cached tokens to read: give --past 1 or more")
        if self.phase == "decode" and seq != 1:
            raise InputError(
                f"decode makes one token a sequence, --seq {seq} is not one; for several over a "
                f"cache (a chunk, a verification) use --phase prefill --seq {seq} --past {past}"
            )

    def _step(self, argument: str | None) -> Step:
        """The model with its state as tensors."""
        if argument is None:
            raise CutedgeError(f"{self.model}: {self.name} takes no cache, so it has no such phase")
        kind = None
        if self.sizes["past"]:
            window = self.window
            beyond = window is not None and self.sizes["past"] >= window
            kind = cache_kind(self.module, self.model, argument, (window or 0) + 3 if beyond else 5)
            self.states = kind.states
        return Step(self.module, kind, argument, self.sizes["past"], self.options)

    @property
    def exported(self) -> torch.nn.Module:
        """What is exported: the model, or the model with its state as tensors."""
        return self.module if self.step is None else self.step

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for, None when it sets no limit."""
        return getattr(self.settings, "max_position_embeddings", None)

    @property
    def window(self) -> int | None:
        """The width of the model's sliding window, None when it has none."""
        width = getattr(self.settings, "sliding_window", None)
        return width if type(width) is int and width > 1 else None

    @property
    def run_sizes(self) -> dict[str, int]:
        """The sizes of the trace, not beyond the model's positions: a run must be possible."""
        return run_sizes(self.sizes, self.positions or MANY)

    def notes(self) -> list[str]:
        """What a user must know whatever way the trace is made."""
        found = []
        if self.ignored:
            found.append(f"{self.name} makes the logits of every token, not of the last alone")
        return found

    def ways(self) -> list[Way]:
        """How to try the export, the most telling way first.

        A size of one is special to torch (it broadcasts): it stays a number.
        """
        sizes = {name: size for name, size in self.sizes.items() if size}
        most = max(self.positions or MANY, sum(EXAMPLES.values()))
        bounds = {"batch": (2, MANY)}
        # Where no cached tensor grows with past, it is a number that no size depends on.
        grows = ("seq", *(["past"] if any("past" in s.axes for s in self.states) else []))
        bounds.update({name: (2, most) for name in grows if sizes.get(name, 1) > 1})
        one = [name for name in ("seq", "past") if sizes.get(name) == 1 and self.phase != "decode"]
        note = f"{' and '.join(one)} of 1 gives no formulas in it" if one else ""
        small = {name: EXAMPLES[name] if name in bounds else n for name, n in self.sizes.items()}
        # A multiple of the batch, unlike the other sizes: rows may come in groups.
        multiples = (n * self.sizes["batch"] for n in (3, 5, 7))
        near = {**self.sizes, "batch": next(n for n in multiples if n not in sizes.values())}
        here = ", ".join(f"{name} {size}" for name, size in sizes.items())
        return [
            Way(bounds, small, note),
            Way(bounds, near, note),
            Way({}, self.sizes, f"sizes are exact at {here}, formulas are null"),
        ]

    def alike(self, way: Way | None) -> tuple[tuple[str, int, int], ...]:
        """(name, least, greatest) of the sizes at which ``way`` is the same, as far as its
        conditions hold there; without a way, the task's own sizes alone."""
        symbols = {} if way is None else way.bounds
        bounds = {name: symbols.get(name, (size, size)) for name, size in self.sizes.items()}
        if bounds["batch"][0] < bounds["batch"][1]:
            bounds["batch"] = (2, MANY) if self.sizes["batch"] > 1 else (1, 1)
        if "seq" in symbols and not self.sizes["past"]:  # beyond the positions, all is as there
            bounds["seq"] = (symbols["seq"][0], UNLIMITED if self.positions else MANY)
        if "past" in symbols and self.window is not None:  # on which side the cache is learnt
            beyond = self.sizes["past"] >= self.window
            least, most = bounds["past"]
            bounds["past"] = (self.window, most) if beyond else (least, self.window - 1)
        return tuple((name, *ends) for name, ends in bounds.items())

    def refusal(self, failure: Untraceable, overrides: Mapping[str, Any]) -> CutedgeError:
        """The error for a model that no way could trace."""
        attn = getattr(self.settings, "_attn_implementation", "eager")
        advice = failure.advice(overrides, attn)
        kind = InputError if "--set" in advice else CutedgeError
        return kind(f"{self.model} cannot be traced: {failure}. {advice}")

    def axes(self, layers: Collection[int] | None = None) -> dict[str, tuple[Axis, ...]]:
        """The sizes of each tensor input, in order; the state of some ``layers`` alone."""
        states = [s for s in self.states if layers is None or s.layer in layers]
        return {"input_ids": ("batch", "seq"), **{state.name: state.axes for state in states}}

    def inputs(self, way: Way, layers: Collection[int] | None = None) -> dict[str, Any]:
        """The arguments to export with: symbols at sizes that are small, odd and unlike others."""
        sizes = way.examples
        dtypes = {state.name: state.dtype for state in self.states}
        tensors = {
            name: self._meta(tuple(sizes[a] if isinstance(a, str) else a for a in axes),
                             dtypes.get(name, torch.int64))
            for name, axes in self.axes(layers).items()
        }  # fmt: skip
        ids = {"input_ids": tensors.pop("input_ids")}
        return {**ids, **(self.options if self.step is None else {"state": tensors})}

    def _meta(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        try:
            return torch.zeros(shape, dtype=dtype, device="meta")
        except (RuntimeError, TypeError, OverflowError) as error:
            raise InputError(f"{self.model}: a tensor of {shape} is too large") from error
