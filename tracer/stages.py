"""What long work is at: stages with names, for whoever listens. Nobody need listen.

The library says what it does and knows no terminal; the command line shows it. Where there is a
limit to its time, work looks at the clock wherever a stage begins or goes on, and where it calls
``check_time``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import NamedTuple

from tracer.errors import CutedgeError


class At(NamedTuple):
    """How far a stage is."""

    name: str
    done: int = 0
    total: int = 0
    """0: nobody counts."""


Listener = Callable[[At | None], None]
"""Told of each stage that begins or goes on, and with None when the last one has ended."""

_LISTENER: ContextVar[Listener | None] = ContextVar("_LISTENER", default=None)
_OPEN: ContextVar[At | None] = ContextVar("_OPEN", default=None)
_ENDS: ContextVar[float | None] = ContextVar("_ENDS", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have ``listener`` told of the stages within."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def stage(name: str, total: int = 0, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A stretch of work, which may be within another; what it yields says how much is done.

    >>> with listening(print), stage("running", total=2) as done:
    ...     done(1)
    At(name='running', done=0, total=2)
    At(name='running', done=1, total=2)
    None
    """
    tell = _LISTENER.get() or (lambda at: None)
    around = _OPEN.get()

    def say(done: int) -> None:
        at = At(name, done, total)
        _OPEN.set(at)
        check_time()
        tell(at)

    try:
        say(done)
        yield say
    finally:
        _OPEN.set(around)
        tell(around)


# --- a limit to the time --------------------------------------------------------------------------


class OutOfTime(BaseException):
    """The time is over. Not an Exception: of those, much code makes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.at = _OPEN.get()
        """The stage that was on."""
        self.where = ""
        """The place in a model that it was at, where that is known."""


def check_time() -> None:
    """Raise OutOfTime when the time is over, if there is a limit: once, so that what is begun can
    be put away."""
    ends = _ENDS.get()
    if ends is not None and monotonic() > ends:
        _ENDS.set(None)
        raise OutOfTime


def has_limit() -> bool:
    """Whether there is a limit to the time."""
    return _ENDS.get() is not None


@contextmanager
def time_limit(seconds: float | None, what: str, advice: str) -> Iterator[None]:
    """Have the work within, on ``what``, end after so many ``seconds``, where it looks at the clock.

    Raises CutedgeError then, which says the stage that was on and ends with ``advice``.

    >>> with time_limit(0, "llama", "Give it longer."), stage("exporting"):
    ...     pass
    Traceback (most recent call last):
    tracer.errors.CutedgeError: llama: the limit of 0 s was over while exporting. Give it longer.
    """
    token = _ENDS.set(None if seconds is None else monotonic() + seconds)
    try:
        yield
    except OutOfTime as over:
        during = "" if over.at is None else f" while {over.at.name}"
        raise CutedgeError(
            f"{what}: the limit of {seconds:g} s was over{during}{over.where}. {advice}"
        ) from None
    finally:
        _ENDS.reset(token)
