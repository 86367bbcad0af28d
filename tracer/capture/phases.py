"""What a model is run on: the inputs of a phase, and which of their sizes stay symbols.

Prefill reads ``seq`` new tokens, ``past`` cached ones before them (none, or those of the chunks
before). Decode reads one new token over ``past`` cached ones.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.export import ExportedProgram

from tracer.capture.compat import PreTrainedConfig
from tracer.capture.errors import Untraceable, first_line
from tracer.capture.inputs import cache_argument, is_encoder
from tracer.capture.kv_cache import CacheKind, State, StatelessModel, cache_kind
from tracer.capture.readings import Reading
from tracer.capture.senses import Axis, Input, shape
from tracer.errors import CutedgeError, InputError
from tracer.reach import UNLIMITED, run_sizes

EXAMPLES = {"batch": 3, "seq": 7, "past": 11, "source": 13}
"""Sizes that a symbolic export runs at: small, odd, unlike each other and any size of a model."""

SAMPLES = (
    {"batch": -1, "seq": 0, "past": 0, "source": 0},
    {"batch": 0, "seq": 1, "past": 3, "source": 1},
    {"batch": -1, "seq": 5, "past": 1, "source": 4},
)
"""How far sizes are from those examples where a mask is run with numbers, each time other ones."""

SIZES = tuple(EXAMPLES)
"""The names of all sizes: sequences, new tokens, cached ones, those that an encoder has read."""

POSITIONS = (
    "max_position_embeddings",
    "max_target_positions",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
)
"""How configs call the most tokens that a model has positions for."""

MANY = 2**20
"""Upper bound that a symbolic size is declared with where the model sets no bound."""


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

    def __str__(self) -> str:
        run = ", ".join(f"{name} {size}" for name, size in self.examples.items() if size)
        return f"{', '.join(self.bounds) or 'no size'} as symbols, run at {run}"


class Task:
    """A phase of a model at sizes: what to export, with which inputs, in which ways.

    Raises InputError for sizes that are no such phase, CutedgeError for a model that reads
    something else than is known here or keeps no state where the phase needs one.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        model: str,
        reading: Reading,
        *,
        phase: str,
        sizes: Mapping[str, int | None],
        logits: str,
        cache: bool,
    ) -> None:
        self.model, self.phase, self.module, self.reading = model, phase, module, reading
        self.name = type(module).__name__
        self.given: ExportedProgram | None = None
        """The export, where there is one already."""
        self.returned = 0
        """How many of its results are cached state."""
        self.fixed: Mapping[Any, int] = {}
        """Symbols of such an export that are no size of a trace, and their numbers."""
        self.much = ""
        """What a stage says of the many ops that are ahead, if they are."""
        self.settings = _settings(module, phase)
        self.defaults = {**dict.fromkeys(SIZES, 0), "batch": 1, **reading.sizes}
        if self.positions and isinstance(self.settings, PreTrainedConfig):
            self.defaults["seq"] = min(self.defaults["seq"], self.positions)
        self.sizes = self._checked({k: v for k, v in sizes.items() if v is not None})
        options: dict[str, Any] = {}
        self.logits = "all"
        if logits == "last" and "logits_to_keep" in reading.options:
            options["logits_to_keep"] = 1
            self.logits = "last"
        self.ignored = logits == "last" and self.logits == "all" and "CausalLM" in self.name
        given = {axis for tensor in reading.inputs for axis in tensor.axes}
        cached = cache or (self.sizes["past"] > 0 and "past" not in given)
        self._cached = cached
        self._settle(module)
        argument, kind = None, None
        if cached:
            argument, kind = self._state()
        elif "use_cache" in reading.options:
            options["use_cache"] = False
        self.states: tuple[State, ...] = kind.states if kind is not None else ()
        try:
            self.exported = StatelessModel(module, reading, options, argument, kind, self.sizes)
        except Exception as error:  # a config that no cache can be made for
            raise CutedgeError(f"{model}: no cache can be made: {first_line(error)}") from error

    def _settle(self, module: torch.nn.Module) -> None:
        """Have a module keep a cache, or not keep one: some models ask their config alone."""
        for part in module.modules():
            if hasattr(getattr(part, "config", None), "use_cache"):
                part.config.use_cache = self._cached

    def at(self, **sizes: int) -> "Task":
        """The same at other sizes."""
        other = copy.copy(self)
        other.sizes = {**self.sizes, **sizes}
        return other

    def over(self, module: torch.nn.Module) -> StatelessModel:
        """What is exported, of another module that is built alike."""
        self._settle(module)
        return self.exported.over(module)

    def _checked(self, given: Mapping[str, int]) -> dict[str, int]:
        for name, why in self.reading.fixed.items():
            if given.get(name, self.defaults[name]) != self.defaults[name]:
                raise InputError(f"{self.model}: leave --{name} out: {why}")
        sizes = {**self.defaults, **given}
        seq, past = sizes["seq"], sizes["past"]
        if seq < self.reading.taken:
            taken = self.reading.taken
            raise InputError(f"--seq {seq} is too few: its images alone make {taken} tokens")
        if 0 < past < self.reading.seen:
            raise InputError(
                f"--past {past} is too few: its images alone make {self.reading.seen} tokens"
            )
        if self.phase == "decode" and past < 1:
            raise InputError("decode needs cached tokens to read: give --past 1 or more")
        if self.phase == "decode" and seq != 1:
            raise InputError(
                f"decode makes one token a sequence, --seq {seq} is not one; for several over a "
                f"cache (a chunk, a verification) use --phase prefill --seq {seq} --past {past}"
            )
        return sizes

    def _state(self) -> tuple[str | None, CacheKind | None]:
        """(the argument that takes the cache, how it is kept where tokens are cached already)"""
        argument = cache_argument(self.reading.options)
        if argument is None:
            which = f"the encoder of {self.name}" if self.phase == "encoder" else self.name
            raise CutedgeError(
                f"{self.model}: {which} takes no cache of keys and values, so it has no such phase"
            )
        if is_encoder(self.module):
            decoder = " (with --set is_decoder=true it is a decoder)"
            can = hasattr(self.settings, "is_decoder")
            raise InputError(
                f"{self.model}: {self.name} is an encoder: it reads all tokens at once and keeps "
                f"none in a cache{decoder if can else ''}. Trace a prefill without a cache."
            )
        past = self.sizes["past"]
        if not past:
            return argument, None
        beyond = self.window is not None and past >= self.window
        least = (self.window or 0) + 3 if beyond else 5
        fills = self.reading.fills or self.reading
        return argument, cache_kind(self.module, self.model, fills, argument, least)

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for, None when it sets no limit."""
        if self.reading.heard:
            return None
        found = (getattr(self.settings, name, None) for name in POSITIONS)
        return next((n for n in found if type(n) is int and n > 0), None)

    @property
    def source_positions(self) -> int | None:
        """The most tokens that the encoder of a decoder has positions for, None for no limit."""
        if "source" in self.reading.fixed:
            return None
        encoder = _settings(self.module, "encoder")
        found = (getattr(encoder, n, None) for n in ("max_source_positions", *POSITIONS))
        return next((n for n in found if type(n) is int and n > 0), None)

    @property
    def window(self) -> int | None:
        """How many tokens a layer of the model looks back at most, None when all do at all."""
        names = ("sliding_window", "attention_chunk_size")
        widths = (getattr(self.settings, name, None) for name in names)
        return next((width for width in widths if type(width) is int and width > 1), None)

    @property
    def run_sizes(self) -> dict[str, int]:
        """The sizes of the trace, not beyond the model's positions: a run must be possible."""
        return run_sizes(self.sizes, self.positions or MANY)

    def notes(self) -> list[str]:
        """What a user must know whatever way the trace is made."""
        found = list(self.reading.notes)
        if self.ignored:
            found.append(f"{self.name} makes the logits of every token, not of the last alone")
        return found

    def ways(self) -> list[Way]:
        """How to try the export, the most telling way first.

        A size of one is special to torch (it broadcasts): it stays a number.
        """
        sizes = {name: size for name, size in self.sizes.items() if size}
        most = max(self.positions or MANY, sum(EXAMPLES.values()))
        # Where no cached tensor grows with past, it is a number that no size depends on.
        used = {axis for axes in self.axes().values() for axis in axes}
        bounds = {"batch": (2, MANY)} if "batch" in used else {}
        grows = [name for name in sizes if name in used - {"batch"}]
        bounds.update({name: (2, most) for name in grows if sizes[name] > 1})
        one = [
            name for name in grows if sizes[name] == 1 and (name, self.phase) != ("seq", "decode")
        ]
        note = f"{' and '.join(one)} of 1 gives no formulas in it" if one else ""
        small = {name: EXAMPLES[name] if name in bounds else n for name, n in self.sizes.items()}
        if "seq" in bounds:  # text behind all images
            small["seq"] += self.reading.taken
        # A multiple of the batch, unlike the other sizes: rows may come in groups.
        multiples = (n * self.sizes["batch"] for n in (3, 5, 7))
        near = {**self.sizes, "batch": next(n for n in multiples if n not in sizes.values())}
        here = ", ".join(f"{name} {size}" for name, size in sizes.items())
        concrete = Way({}, self.sizes, f"sizes are exact at {here}, formulas are null")
        symbolic = [Way(bounds, small, note), Way(bounds, near, note)] if bounds else []
        if self.reading.told:
            symbolic = []
        others = {name: ends for name, ends in bounds.items() if name != "batch"}
        if self.reading.by_one and others:
            alone = f"{note}; " if note else ""
            alone += f"the formulas hold at batch {self.sizes['batch']} alone"
            symbolic.append(
                Way(others, {**self.sizes, **small, "batch": self.sizes["batch"]}, alone)
            )
        return [*symbolic, concrete]

    def samples(self, way: Way) -> Iterator[Mapping[str, int]]:
        """Sizes within the bounds of ``way``, from small to large; its own without a symbol."""
        if not way.symbolic:
            yield self.sizes
            return
        ends = {name: (least, most) for name, least, most in self.alike(way)}
        if "past" in way.bounds:  # a run over a cache keeps to the positions
            least, most = ends["past"]
            ends["past"] = (least, max(least, min(most, way.bounds["past"][1])))
        for scale, steps in product((1, 4, 16, 64, 256), SAMPLES):
            sizes = dict(self.sizes)
            for name in way.bounds:
                least, most = ends[name]
                size = EXAMPLES[name] * (1 if name == "batch" else scale)
                size = max(min(size, most // 2), least) + steps[name]
                sizes[name] = min(max(size, least), most)
            yield sizes

    def alike(self, way: Way | None) -> tuple[tuple[str, int, int], ...]:
        """(name, least, greatest) of the sizes at which ``way`` is the same, as far as its
        conditions hold there; without a way, the task's own sizes alone."""
        symbols = {} if way is None else way.bounds
        bounds = {name: symbols.get(name, (size, size)) for name, size in self.sizes.items()}
        if "batch" in symbols:
            bounds["batch"] = (2, MANY) if self.sizes["batch"] > 1 else (1, 1)
        if "seq" in symbols and not self.sizes["past"]:  # beyond the positions, all is as there
            bounds["seq"] = (symbols["seq"][0], UNLIMITED if self.positions else MANY)
        if "past" in symbols:
            least, most = symbols["past"][0], UNLIMITED if self.positions else MANY
            if self.window is not None:  # on which side the cache is learnt
                beyond = self.sizes["past"] >= self.window
                least, most = (self.window, most) if beyond else (least, self.window - 1)
            bounds["past"] = (least, most)
        return tuple((name, *ends) for name, ends in bounds.items())

    def refusal(self, failure: Untraceable, overrides: Mapping[str, Any]) -> CutedgeError:
        """The error for a model that no way could trace."""
        advice = failure.advice(overrides)
        kind = InputError if "--set" in advice else CutedgeError
        said = f"{self.model} cannot be traced: {failure}."
        return kind(f"{said} {advice}" if self.settings is not None else said)

    def axes(self, layers: Collection[int] | None = None) -> dict[str, tuple[Axis, ...]]:
        """The sizes of each tensor input, in order; the state of some ``layers`` alone."""
        given: list[Input | State] = list(self.reading.inputs)
        given += [state for state in self.states if layers is None or state.layer in layers]
        return {tensor.name: tensor.axes for tensor in given}

    def inputs(self, way: Way, layers: Collection[int] | None = None) -> dict[str, Any]:
        """The arguments to export with: symbols at sizes that are small, odd and unlike others."""
        dtypes = {given.name: given.dtype for given in self.reading.inputs}
        dtypes.update((state.name, state.dtype) for state in self.states)
        tensors = {
            name: self._meta(shape(axes, way.examples), dtypes[name])
            for name, axes in self.axes(layers).items()
        }
        return self.sorted(tensors)

    def sorted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is given for each tensor input, as the arguments of a ``StatelessModel``."""
        read = {tensor.name for tensor in self.reading.inputs}
        return {
            "inputs": {name: value for name, value in given.items() if name in read},
            "state": {name: value for name, value in given.items() if name not in read},
        }

    def _meta(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        try:
            return torch.zeros(shape, dtype=dtype, device="meta")
        except (RuntimeError, TypeError, OverflowError) as error:
            sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items() if size)
            raise InputError(
                f"{self.model} at {sizes}: a tensor of {shape} is too large"
            ) from error


def _settings(module: torch.nn.Module, phase: str) -> Any:
    """The config of the part that reads tokens, or else of the whole."""
    settings: Any = getattr(module, "config", None)
    try:
        return settings.get_text_config(encoder=phase == "encoder", decoder=phase != "encoder")
    except (AttributeError, ValueError):  # no config, or more than one such part
        return settings
