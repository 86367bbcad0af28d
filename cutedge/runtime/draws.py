"""Random values of a run: the same on whichever devices it is carried out, also unsplit.

The n-th draw of a run comes from torch's generator of the CPU, seeded with n: where an op is placed
makes no difference to what it draws.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracer.kinds import draws, told


class Draws(TorchDispatchMode):  # type: ignore[misc]  # torch has no types for it
    """While it is entered, draws have numbers, from ``first`` on; ``number`` is the next one's."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.number = first

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out an op of torch's, on its own seed where it draws with no generator given."""
        kwargs = kwargs or {}
        own = told(func, args, kwargs).get("generator") is not None
        if own or not draws(func, args, kwargs):
            return func(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.number)
            self.number += 1
            return func(*args, **kwargs)
