"""Running a model on the meta device, to see what it does."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracer.capture.errors import is_of_a_model


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


@contextlib.contextmanager
def without_debugging() -> Iterator[None]:
    """An export without what torch records at each op for its own debugging, a fifth of its time.

    Where code turns gradients off, which are off all along, is left out: torch would mend the graph
    around each such place. Of the stack at an op, the places in a model's code are kept.
    """
    from torch.fx import proxy
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    name = "_side_effectful_need_to_be_preserved_pre_dispatch"
    kept = [f for f in getattr(proxy_tensor, name) if f is not torch._C._set_grad_enabled]
    with (
        patch.object(proxy_tensor, name, kept),
        patch.object(ShapeEnv, "_create_fx_call_function", lambda self, op, args: (None, False)),
        patch.object(proxy, "CapturedTraceback", _Places),
    ):
        yield


class _Places:
    """The places in a model's code on the stack, in place of all that torch gathers of it."""

    @staticmethod
    def extract() -> type["_Places"]:
        """As torch's own, of this stack."""
        return _Places

    @staticmethod
    def summary() -> traceback.StackSummary:
        """The frames of a model's code, the outermost first."""
        frames = [
            (frame, line)
            for frame, line in traceback.walk_stack(None)
            if is_of_a_model(frame.f_code.co_filename)
        ]
        return traceback.StackSummary.extract(reversed(frames))


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
