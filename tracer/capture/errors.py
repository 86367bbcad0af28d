"""How a failure of torch or of a model's own code becomes one line."""

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tracer.stages import OutOfTime, check_time
from tracer.words import plain

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n *(.*)')
_OURS = f"{Path(__file__).parents[1].as_posix()}/"
_LIBRARY = f"{Path(sysconfig.get_paths()['stdlib']).as_posix()}/"
_UNKNOWN = re.compile(r"\bz?uf?\d+\b")
"""Torch's name for a number that only data gives: ``u0`` a whole one, ``zuf0`` one of floats."""


def first_line(error: BaseException) -> str:
    """The error in a line, without torch's advice on its own debugging."""
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:  # the reason stands in the second line
        first += f" {rest[0].strip()}"
    if type(error).__name__.startswith("StrictDataclass"):  # what checks a config's fields
        return _field(rest[0].strip() if rest else first)
    line = first.partition(" For more information")[0]
    return f"{type(error).__name__}: {line}".rstrip(".!: ")


def _field(line: str) -> str:
    """What is wrong with a field of a config, of a line that says so at length."""
    line = line.partition("Error: ")[2] or line
    if match := re.match(r"Field '(\w+)' expected (\w+), got \w+ \(value: (.*)\)", line):
        return plain(f"{match[1]} is {match[3].replace('None', 'null')}, expected {match[2]}", 200)
    if match := re.match(r"Field '(\w+)' with value (.*?) doesn't match any type", line):
        return plain(f"{match[1]} is {match[2]}, which it cannot be", 200)
    return plain(line, 400).rstrip(".")


def place(trace: str) -> str:
    """Where the model's own code was at the end of a traceback, and that line of it."""
    own = [frame for frame in _FRAME.findall(trace.replace("\\", "/")) if is_of_a_model(frame[0])]
    if not own:
        return ""
    file, line, code = own[-1]
    return f" at {file.rpartition('/')[2]}:{line} ({code})"


@lru_cache
def is_of_a_model(file: str) -> bool:
    """Whether a file has a model's code: one of transformers', or a user's own."""
    if "/site-packages/" in file or "/dist-packages/" in file:
        return "/transformers/models/" in file
    return not file.startswith((_OURS, _LIBRARY, "<"))


def within(path: str, kind: str) -> str:
    """In which module of the model something was."""
    return f" in {path} ({kind})" if path else f" in {kind}"


def module_of(
    error: BaseException, model: torch.nn.Module, rename: Callable[[str], str] = lambda path: path
) -> str:
    """In which module of a model an error was raised: the innermost whose code was running."""
    paths = {id(part): (name, type(part).__name__) for name, part in model.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    running = [paths[id(s)] for f in frames if id(s := f.f_locals.get("self")) in paths]
    return within(rename(running[-1][0]), running[-1][1]) if running else ""


@contextlib.contextmanager
def located(
    model: torch.nn.Module, rename: Callable[[str], str], calls: list[str] | None = None
) -> Iterator[None]:
    """Look at the clock whenever code of a model calls torch, and say where it was.

    The names of the functions that it calls are added to ``calls``.
    """
    try:
        with _Clock(calls):
            yield
    except OutOfTime as over:
        over.where = module_of(over, model, rename) + place(
            "".join(traceback.format_tb(over.__traceback__))
        )
        raise


class _Clock(TorchFunctionMode):
    def __init__(self, calls: list[str] | None) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check_time()
        if self.calls is not None and (name := func.__name__) != "__get__":
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


_SHOWN = ("images", "sounds")
"""Overrides that are options of their own."""


class Untraceable(Exception):
    """torch.export, or the lowering of what it gave, cannot carry this model; one line says why."""

    def __init__(
        self,
        reason: str,
        where: str = "",
        *,
        condition: str = "",
        cause: BaseException | None = None,
        by_data: bool = False,
        repeats: bool = False,
        steps: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(reason + where)
        self.where = where
        """Module, file and line, as far as they are known."""
        self.condition = condition
        """What does not hold of the sizes, where that is the reason."""
        self.cause = cause
        """What torch or the model's code raised, None where the tracer itself says no."""
        self.by_torch = type(cause).__module__.startswith("torch")
        self.repeats = repeats or bool(self.by_torch or condition)
        """Whether another size that takes the same code fails the same."""
        self.by_data = by_data
        """Whether the code goes by values, which no trace knows."""
        self.steps = steps
        """A size of which each adds as many ops, and how many a run of a few blocks does in all."""

    def advice(self, overrides: Collection[str]) -> str:
        """What a user may try where no option is known to help (``remedies``)."""
        if self.by_data:
            return "With other code in its place it is traced as file.py:function."
        fields = [f"--set {', '.join(n for n in overrides if n not in _SHOWN)}"]
        asked = [
            *fields * bool({*overrides} - {*_SHOWN}),
            *(f"--{n}" for n in _SHOWN if n in overrides),
        ]
        check = f"Check {' and '.join(asked)}" if asked else "Check the config's fields"
        if isinstance(self.cause, TypeError | AttributeError | LookupError):
            return f"{check}."
        return f"{check}, or try another --seq or --batch."


def failure(
    error: BaseException, model: torch.nn.Module, rename: Callable[[str], str] = lambda path: path
) -> Untraceable:
    """Why a model cannot be exported, from what torch or the model's code raised."""
    reason = first_line(error)
    by_data = bool(_UNKNOWN.search(reason))
    if by_data:
        reason = "its code goes by the values of tensors, not by their shapes alone"
    where = module_of(error, model, rename) + place(
        "".join(traceback.format_tb(error.__traceback__))
    )
    return Untraceable(reason, where, cause=error, by_data=by_data)
