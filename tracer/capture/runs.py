"""Running a model on the meta device, to see what it does."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    """The module as it was afterwards: some code keeps what it computed once (long RoPE tables), or
    hooks itself to its modules."""
    kept = [
        [(table, dict(table)) for table in (vars(part), part._buffers, part._forward_hooks)]
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for tables in kept:
            for table, before in tables:
                table.clear()
                table.update(before)


@contextlib.contextmanager
def run_on_meta(module: torch.nn.Module, run: "MetaRun | None" = None) -> Iterator[None]:
    """For a run of ``module`` without data that takes the ways of an export.

    There, kernels are avoided that no meta tensor can run.
    """
    with untouched(module), patch("torch.compiler.is_compiling", lambda: True), run or MetaRun():
        yield


class MetaRun(TorchDispatchMode):
    """A run on the meta device that works out each op once, by all that it is told.

    The blocks of a model repeat each other, and what an op makes without data follows from the
    shapes that it reads and its other arguments alone. For most ops torch finds it out in Python,
    which takes many times as long as to look it up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, Callable[[], torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})[1]

    def call(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[torch.Tensor], Any]:
        """(the tensors that a call of an op reads, what it makes)"""
        read: list[torch.Tensor] = []
        told = (func, _told(args, read), _told(tuple(kwargs.items()), read))
        if (again := self._known.get(told)) is not None:
            return read, again()
        made = func(*args, **kwargs)
        new = isinstance(made, torch.Tensor) and not func.is_view and not func._schema.is_mutable
        if new and made.is_meta and all(tensor.is_meta for tensor in read):
            self._known[told] = partial(
                torch.empty_strided, made.shape, made.stride(), dtype=made.dtype, device="meta"
            )
        return read, made


def _told(argument: Any, tensors: list[torch.Tensor]) -> Any:
    """All that an argument tells an op, but for data; its tensors are added to ``tensors``."""
    if isinstance(argument, torch.Tensor):
        tensors.append(argument)
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return tuple([_told(item, tensors) for item in argument])
    return type(argument), argument  # 1 is not 1.0
