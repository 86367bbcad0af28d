"""What a reading is: the inputs of a model in a phase, and how it is run on them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from tracer.capture.runs import run_on_meta
from tracer.capture.senses import HEARD, Input, Sensed, shape

MANY_TOKENS = 1024
"""The tokens of a prefill, and those that an encoder has read, where the user names no number."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model reads in a phase, and how it is run on that."""

    inputs: tuple[Input, ...]
    run: Callable[..., Any]
    """(the model, the inputs by name, keyword arguments of its forward) -> what it returns."""
    sizes: Mapping[str, int]
    """The sizes that inputs may have, by name, at their defaults."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Name of a size that the user cannot choose -> why."""
    notes: tuple[str, ...] = ()
    """What a user must know of these inputs."""
    options: Collection[str] = ()
    """The keyword arguments that ``run`` knows."""
    idle: torch.nn.Module | None = None
    """The part of the model that does not run."""
    heard: bool = False
    """Whether ``seq`` counts what a sound is made of, and not what the model has positions for."""
    taken: int = 0
    """How many of ``seq`` are the tokens of images."""
    by_one: bool = False
    """Whether its code may take each of the batch for itself, so that the batch is a number."""
    told: bool = False
    """Whether it is told numbers of each of the batch, so that the batch is a number always."""
    seen: int = 0
    """How many of the cached tokens are those of images."""
    fills: "Reading | None" = None
    """What the cache is filled by, where another reading does it."""


def new_tokens(phase: str) -> int:
    """The tokens that a phase reads where the user names no number."""
    return 1 if phase == "decode" else MANY_TOKENS


NO_SOURCE = {"source": "only the decoder of an encoder-decoder model reads encoded tokens"}


def plainly(module: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
    """A run of a model on its inputs as they are."""
    return module(**inputs, **options)


def stumbles(
    module: torch.nn.Module,
    run: Callable[..., Any],
    read: Sequence[Input],
    sizes: Mapping[str, int],
) -> Exception | None:
    """Why a model does not run on such inputs without data; None where it does."""
    try:
        with run_on_meta(module), torch.device("meta"):
            run(module, zeros(read, {"batch": 1, **sizes}))
    except Exception as error:  # code that looks at values may fail in any way
        return error
    return None


def zeros(read: Sequence[Input], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Inputs of zeros at such sizes, on the device that is set."""
    return {i.name: torch.zeros(shape(i.axes, sizes), dtype=i.dtype) for i in read}


_CODEBOOKS = ("num_codebooks", "num_channels")
"""How configs call the codebooks of a sound that is read as tokens."""


def tokens_of(module: Any, name: str, run: Callable[..., Any], *others: Input) -> Input:
    """The tokens that a model reads, one in each place or one of each codebook of a sound."""
    settings = module.config
    with suppress(AttributeError, ValueError):  # no config, or more than one that reads tokens
        settings = settings.get_text_config(decoder=True)
    parts = (settings, getattr(module.config, "decoder_config", None))
    counts = (getattr(part, key, None) for part in parts for key in _CODEBOOKS)
    plain, sizes = Input(name, ("batch", "seq")), {"seq": 8, "source": 8}
    books = next((count for count in counts if type(count) is int), None)
    if books is None or stumbles(module, run, (plain, *others), sizes) is None:
        return plain
    several = [Input(name, ("batch", "seq", count)) for count in (books, books + 1)]
    runs = (one for one in several if stumbles(module, run, (one, *others), sizes) is None)
    return next(runs, plain)


def of_sense(read: Sensed, run: Callable[..., Any], idle: torch.nn.Module | None = None) -> Reading:
    """What reads an image or a sound alone."""
    fixed = {
        "seq": read.why,
        "past": "it reads all at once",
        "source": "it reads no encoded tokens",
    }
    if not read.why:
        del fixed["seq"]
    heard = read.given.name in HEARD
    return Reading((read.given,), run, read.sizes, fixed, read.notes, idle=idle, heard=heard)
