"""What a model is run on: the inputs of a phase, and which of their sizes stay symbols."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracer.errors import CutedgeError, InputError

EXAMPLE_BATCH, EXAMPLE_SEQ = 3, 7
"""Sizes that a symbolic export runs at: small, odd, unlike each other and any size of a model."""

MANY = 2**20
"""Upper bound that a symbolic size is declared with where the model sets none."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to export: which sizes stay symbols, and within which bounds."""

    bounds: Mapping[str, tuple[int, int]]
    """Symbol -> (least, greatest size); a size that is not here is concrete."""
    note: str = ""
    """What a user must know of a trace made in this way."""

    @property
    def symbolic(self) -> tuple[str, ...]:
        """The sizes that stay symbols."""
        return tuple(self.bounds)


class Prefill:
    """Prefill: the inputs of one forward over ``batch`` x ``seq`` new tokens, without a cache.

    Raises CutedgeError for a model that reads something else than tokens.
    """

    def __init__(
        self, module: torch.nn.Module, model: str, batch: int, seq: int, logits: str
    ) -> None:
        accepted = inspect.signature(module.forward).parameters
        self.settings: Any = module.config
        self.name, self.model = type(module).__name__, model
        if "input_ids" not in accepted or getattr(self.settings, "is_encoder_decoder", False):
            raise CutedgeError(
                f"{model}: {self.name} does not run on token ids alone; "
                "models that do can be traced (decoders and encoders of text)"
            )
        self.sizes = {"batch": batch, "seq": seq}
        self.options: dict[str, Any] = {}
        if "use_cache" in accepted:
            self.options["use_cache"] = False
        for part in module.modules():  # some models ask their config alone
            if getattr(getattr(part, "config", None), "use_cache", None):
                part.config.use_cache = False
        self.logits = "all"
        if logits == "last" and "logits_to_keep" in accepted:
            self.options["logits_to_keep"] = 1
            self.logits = "last"
        self.ignored = logits == "last" and self.logits == "all" and "CausalLM" in self.name

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for, None when it sets no limit."""
        return getattr(self.settings, "max_position_embeddings", None)

    @property
    def run_sizes(self) -> dict[str, int]:
        """The sizes of the trace, not beyond the model's positions: a run must be possible."""
        return {**self.sizes, "seq": min(self.sizes["seq"], self.positions or MANY)}

    def notes(self) -> list[str]:
        """What a user must know whatever way the trace is made."""
        found = []
        if self.positions is not None and self.sizes["seq"] > self.positions:
            found.append(
                f"seq {self.sizes['seq']} is beyond the {self.positions} positions of "
                f"{self.model}: the figures follow the formulas, the real model was not made for it"
            )
        if self.ignored:
            found.append(f"{self.name} makes the logits of every token, not of the last alone")
        return found

    def ways(self) -> list[Way]:
        """How to try the export, the most telling way first."""
        seq = self.sizes["seq"]
        most = max(self.positions or MANY, EXAMPLE_SEQ)
        batches = (2, MANY)
        here = f"batch {self.sizes['batch']}, seq {seq}"
        concrete = Way({}, f"sizes are exact at {here}, formulas are null")
        if seq == 1:  # a size of one is special to torch (it broadcasts): no formula in seq
            return [Way({"batch": batches}, "seq 1 gives no formulas in seq"), concrete]
        ways = [Way({"batch": batches, "seq": (2, most)})]
        window = getattr(self.settings, "sliding_window", None)
        if isinstance(window, int) and EXAMPLE_SEQ < window <= most:
            # Where a window ends, a model may take another path: stay on this side of it.
            side, words = ((2, window - 1), "below") if seq < window else ((window, most), "from")
            note = f"the formulas hold for seq {words} {window}, its sliding window"
            ways.append(Way({"batch": batches, "seq": side}, note))
        return [*ways, concrete]

    def refusal(self, failure: Exception, overrides: Mapping[str, Any]) -> CutedgeError:
        """The error for a model that no way could trace."""
        said = f"{self.model} cannot be traced: {failure}."
        if overrides:
            return InputError(f"{said} Check --set {', '.join(overrides)}.")
        return CutedgeError(f"{said} Try --attn sdpa or another --seq.")

    def inputs(self, way: Way) -> dict[str, Any]:
        """The arguments to export with: symbols at sizes that are small, odd and unlike others."""
        sizes = dict(self.sizes)
        for name, size in (("batch", EXAMPLE_BATCH), ("seq", EXAMPLE_SEQ)):
            if name in way.bounds:
                sizes[name] = max(size, way.bounds[name][0])
        shape = (sizes["batch"], sizes["seq"])
        try:
            ids = torch.zeros(shape, dtype=torch.int64, device="meta")
        except (RuntimeError, TypeError, OverflowError) as error:
            raise InputError(f"{self.model}: batch x seq = {shape} is too large") from error
        return {"input_ids": ids, **self.options}
