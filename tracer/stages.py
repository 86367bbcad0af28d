"""What long work is at: stages with names, for whoever listens. Nobody need listen.

The library says what it does and knows no terminal; the command line shows it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


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
        tell(at)

    say(done)
    try:
        yield say
    finally:
        _OPEN.set(around)
        tell(around)
