"""Running a model on the meta device, to see what it does."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracer.capture.arguments import Told, arguments
from tracer.capture.memory import memory_of


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
        self._known: dict[Any, tuple[Callable[[], torch.Tensor], Told]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled: torch need not see to that at each op

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})[-1]

    def call(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[torch.Tensor], Told, Any]:
        """(the tensors that a call of an op reads; of one that is no view, what else it is told
        that decides how much it does; what it makes)"""
        if func.is_view:  # made sooner than looked up
            return [t for t in args if isinstance(t, torch.Tensor)], (), func(*args, **kwargs)
        read: list[torch.Tensor] = []
        key = (func, all_told(args, read), all_told(tuple(kwargs.items()), read) if kwargs else ())
        if (known := self._known.get(key)) is not None:
            again, told = known
            return read, told, again()
        told = arguments(func, args, kwargs)
        made = func(*args, **kwargs)
        on_meta = isinstance(made, torch.Tensor) and all(t.is_meta for t in (made, *read))
        if on_meta and not func._schema.is_mutable and is_new(made, read):
            again = partial(
                torch.empty_strided, made.shape, made.stride(), dtype=made.dtype, device="meta"
            )
            self._known[key] = again, told
        return read, told, made


def is_new(made: torch.Tensor, read: Sequence[torch.Tensor]) -> bool:
    """Whether what an op makes lies in the memory of nothing that it reads."""
    memory = memory_of(made)
    return all(memory_of(tensor) != memory for tensor in read)


_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})


def all_told(argument: Any, tensors: list[torch.Tensor]) -> Any:
    """All that an argument tells an op, but for data; its tensors are added to ``tensors``."""
    kind = type(argument)
    if kind in _PLAIN:
        return kind, argument  # 1 is not 1.0
    if isinstance(argument, torch.Tensor):
        tensors.append(argument)
        shape, strides = argument.shape, argument.stride()
        if argument._has_symbolic_sizes_strides:
            shape, strides = all_told(shape, tensors), all_told(strides, tensors)
        return shape, strides, argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return tuple([all_told(item, tensors) for item in argument])
    if isinstance(argument, torch.SymInt | torch.SymFloat | torch.SymBool):
        return kind, argument.node.expr
    return kind, argument
