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
    around each such place. Of the stack at an op, the places in a model's code are kept. A graph is
    written as code, which torch does after each of its passes, only where it is run. Nor does torch
    compare what it noted of the sizes with what a user declared of them: no caller declares any.
    """
    from torch.export import _trace
    from torch.fx import GraphModule, proxy
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    name = "_side_effectful_need_to_be_preserved_pre_dispatch"
    kept = [f for f in getattr(proxy_tensor, name) if f is not torch._C._set_grad_enabled]
    with (
        patch.object(proxy_tensor, name, kept),
        patch.object(ShapeEnv, "_create_fx_call_function", lambda self, op, args: (None, False)),
        patch.object(proxy, "CapturedTraceback", _Places),
        patch.object(proxy_tensor, "_extract_tensor_metadata", lambda made: None),
        patch.object(GraphModule, "recompile", _when_run(GraphModule.recompile)),
        patch.object(_trace, "produce_guards_and_solve_constraints", _settle),
    ):
        yield


def _settle(*, fake_mode: Any, **others: Any) -> None:
    """In place of torch's look at declared sizes: nothing more is noted of those of an export."""
    fake_mode.shape_env.frozen = True


def _when_run(recompile: Callable[[Any], Any]) -> Callable[[Any], None]:
    """``GraphModule.recompile``, put off until the module is called, which most never are."""

    def put_off(self: Any) -> None:
        told = getattr(self.graph._codegen, "pytree_info", None)
        if told is not None:
            self._in_spec, self._out_spec = told.in_spec, told.out_spec

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            recompile(self)
            return self(*args, **kwargs)

        type(self).forward = forward

    return put_off


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """An export that works out each op once by what it reads, as ``MetaRun`` does, also where
    shapes are formulas: an op that reads the same again makes the same again.

    Torch can keep that too, but takes longer to look it up there than to make it anew.
    """
    from torch._dynamo import config as dynamo  # which an export imports, and nothing before it
    from torch._subclasses import fake_tensor
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    work_out = FakeTensorMode._dispatch_impl
    known: dict[Any, tuple[Any, ...]] = {}

    def dispatch(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        read: list[torch.Tensor] = []
        if not isinstance(func, torch._ops.OpOverload):  # one that is given code
            return work_out(self, func, types, args, kwargs)
        told = (func, _told(args, read), _told(tuple(kwargs.items()), read))
        if any(type(tensor) is not FakeTensor or tensor.constant is not None for tensor in read):
            return work_out(self, func, types, args, kwargs)
        if (again := known.get(told)) is not None:
            shape, strides, dtype, device = again
            with fake_tensor.in_kernel_invocation_manager(self), self.shape_env.suppress_guards():
                empty = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
            return FakeTensor(self, empty, device)
        made = work_out(self, func, types, args, kwargs)
        if type(made) is FakeTensor and made.constant is None:
            memory = made.untyped_storage()._cdata
            new = all(memory != tensor.untyped_storage()._cdata for tensor in read)
            if new and not free_unbacked_symbols((made.shape, made.stride())):
                known[told] = made.shape, made.stride(), made.dtype, made.device
        return made

    kept = dynamo.patch(fake_tensor_cache_enabled=False)
    with kept, patch.object(FakeTensorMode, "_dispatch_impl", dispatch):
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
        shape, strides = argument.shape, argument.stride()
        if argument._has_symbolic_sizes_strides:
            shape, strides = _told(shape, tensors), _told(strides, tensors)
        return shape, strides, argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return tuple([_told(item, tensors) for item in argument])
    if isinstance(argument, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(argument), argument.node.expr
    return type(argument), argument  # 1 is not 1.0
