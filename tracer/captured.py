"""What comes out of a capture; torch-free, for all that read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracer.graph import OpGraph
from tracer.program import Invocation
from tracer.reach import Reach


@dataclass(frozen=True, slots=True)
class Capture:
    """What came out of a capture."""

    graph: OpGraph
    warnings: tuple[str, ...]
    """One line for each thing a user must know before trusting the figures."""
    reach: Reach
    """The sizes at which the same model would be exported in the same way."""
    unrepeated_reason: str | None
    """Why every layer of a deep model was traced, None where layers were repeated or are few."""
    invocations: Mapping[int, Invocation] = field(default_factory=dict)
    """By op, how it is carried out; empty unless the capture was made to be run."""
    returned: tuple[int, ...] = ()
    """The tensors that the model's code hands back, in its own order: results, then state. Empty
    unless the capture was made to be run."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """By the name of a constant that has no op: its numbers, where the capture is to be run."""
    draws: int = 0
    """How often a run draws random values."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How far a phase of a model can be traced."""

    phase: str
    """``prefill``, ``decode`` or ``encoder``."""
    tried: tuple[tuple[str, str | None], ...]
    """(way of tracing, why it failed or None), one after the other until one held."""
    captured: Capture | None
    """What came out, None where no way held."""
    refused: str | None
    """What a user is told where no way held."""
