"""Exporting in less time: without what torch records for its own debugging, and without working
out again what it has worked out."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import dropwhile
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import _pytree

from tracer.capture.errors import is_of_a_model
from tracer.capture.memory import memory_of
from tracer.capture.runs import all_told


@contextlib.contextmanager
def without_debugging() -> Iterator[None]:
    """An export without what torch records at each op for its own debugging, a fifth of its time.

    Where code turns gradients off, which are off all along, is left out: torch would mend the graph
    around each such place. Of the stack at an op, the places in a model's code are kept. A graph is
    written as code, which torch does after each of its passes, only where it is run. Nor does torch
    compare what it noted of the sizes with what a user declared of them: no caller declares any.
    Sizes that data tell are not looked for: no trace has them. The modules that an op is in are
    renamed once, and not at each op in them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import _trace
    from torch.fx import GraphModule, proxy
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    name = "_side_effectful_need_to_be_preserved_pre_dispatch"
    kept = [f for f in getattr(proxy_tensor, name) if f is not torch._C._set_grad_enabled]
    with (
        _uncompiled(proxy_tensor.ProxyTorchDispatchMode),
        _uncompiled(FakeTensorMode),
        patch.object(proxy_tensor, name, kept),
        patch.object(ShapeEnv, "_create_fx_call_function", lambda self, op, args: (None, False)),
        patch.object(proxy, "CapturedTraceback", _Places),
        patch.object(proxy.TracerBase, "_filter_traceback_frames", lambda self, places: places),
        patch.object(proxy_tensor, "_extract_tensor_metadata", lambda made: None),
        patch.object(GraphModule, "recompile", _when_run(GraphModule.recompile)),
        patch.object(_trace, "produce_guards_and_solve_constraints", _settle),
        patch.object(_trace, "_replace_unbacked_bindings", lambda graph: None),
        patch.object(_trace, "pytree", _Trees(_trace._strip_root)),
    ):
        yield


class _Trees:
    """Torch's trees, but that a dict is mapped by ``rename`` once."""

    def __init__(self, rename: Callable[[Any], Any]) -> None:
        self.rename = rename
        self.known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(_pytree, name)

    def tree_map(self, func: Callable[[Any], Any], tree: Any, *others: Any, **options: Any) -> Any:
        """As torch's own."""
        if func is not self.rename or not isinstance(tree, dict):
            return _pytree.tree_map(func, tree, *others, **options)
        key = tuple(tree.items())
        if key not in self.known:
            self.known[key] = _pytree.tree_map(func, tree)
        return self.known[key]


def _uncompiled(mode: Any) -> Any:
    """A mode of torch's that does not see to it at each op that its own code is not compiled."""
    dispatch = mode.__torch_dispatch__
    return patch.object(mode, "__torch_dispatch__", getattr(dispatch, "__wrapped__", dispatch))


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
    from torch.fx.experimental import proxy_tensor

    work_out = proxy_tensor.proxy_call
    known: dict[Any, _Made] = {}

    def call(mode: Any, func: Any, pre_dispatch: bool, args: Any, kwargs: Any) -> Any:
        if not _goes_by_shapes(func) or func in mode.decomposition_table:
            return work_out(mode, func, pre_dispatch, args, kwargs)
        read: list[torch.Tensor] = []
        at = _picked(func, args)
        told = (
            func,
            all_told(args if at is None else args[:2], read),
            all_told(tuple(kwargs.items()), read),
        )
        if any(_data(tensor, mode.tracer) for tensor in read):
            return work_out(mode, func, pre_dispatch, args, kwargs)
        if (made := known.get(told)) is not None:
            return _noted(mode.tracer, func, args, kwargs, made.again(read, at or 0))
        out = work_out(mode, func, pre_dispatch, args, kwargs)
        if (made := _made(out, read, at or 0)) is not None:
            known[told] = made
        return out

    kept = dynamo.patch(fake_tensor_cache_enabled=False)
    with kept, patch.object(proxy_tensor, "proxy_call", call):
        yield


@cache
def _goes_by_shapes(func: Any) -> bool:
    """Whether what a call of torch makes follows from shapes and numbers, and it writes nowhere."""
    return (
        isinstance(func, torch._ops.OpOverload)  # else it is given code
        and not func._schema.is_mutable
        and not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
    )


def _picked(func: Any, args: Any) -> int | None:
    """How far in the memory of what it reads a select picks, so that all along an axis are one op:
    code that goes token by token picks each. None for what is no select, or of a size that is a
    formula."""
    if func is not torch.ops.aten.select.int or len(args) != 3 or type(args[2]) is not int:
        return None
    tensor, axis, index = args
    if tensor._has_symbolic_sizes_strides or not 0 <= index < tensor.shape[axis]:
        return None
    place: int = index * tensor.stride(axis)
    return place


def _data(tensor: torch.Tensor, tracer: Any) -> bool:
    """Whether an export knows the numbers of a tensor, or does not know where it is from."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.proxy_tensor import get_proxy_slot

    slot = get_proxy_slot(tensor, tracer, None)
    made = slot is not None and slot.constant is None
    return not made or type(tensor) is not FakeTensor or tensor.constant is not None


def _noted(tracer: Any, func: Any, args: Any, kwargs: Any, made: Any) -> Any:
    """What an op has made, after it is written into the graph of an export."""
    from torch.fx.experimental.proxy_tensor import fetch_sym_proxy, track_tensor_tree

    def written(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return tracer.unwrap_proxy(argument).node
        if isinstance(argument, list | tuple):
            return type(argument)([written(item) for item in argument])
        if isinstance(argument, torch.SymInt | torch.SymFloat | torch.SymBool):
            proxy = fetch_sym_proxy(tracer)(argument)
            return getattr(proxy, "node", proxy)  # a size that is known is a number
        return argument

    named = {key: written(argument) for key, argument in kwargs.items()}
    name = tracer.graph._target_to_str(func.overloadpacket.__name__)
    node = tracer.create_node("call_function", func, written(args), named, name)
    return track_tensor_tree(made, tracer.proxy(node), constant=None, tracer=tracer)


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor that an op of an export made: in memory of its own, or a view of one it reads."""

    mode: Any
    shape: Sequence[Any]
    strides: Sequence[Any]
    dtype: torch.dtype
    device: torch.device
    of: int | None = None
    """Which of the tensors read it is a view of, None for memory of its own."""
    further: Any = 0
    """How much further in the memory it starts than that one."""

    def again(self, read: Sequence[torch.Tensor], picked: int) -> torch.Tensor:
        """Another such tensor, made of the like, ``picked`` further in its memory."""
        from torch._dispatch.python import no_python_dispatcher
        from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

        base = None if self.of is None else read[self.of]
        start = 0 if base is None else base.storage_offset() + self.further + picked
        with (
            no_python_dispatcher(),
            in_kernel_invocation_manager(self.mode),
            self.mode.shape_env.suppress_guards(),
        ):
            if base is None:
                made = torch.empty_strided(
                    self.shape, self.strides, dtype=self.dtype, device="meta"
                )
            else:
                made = torch.ops.aten.as_strided.default(base, self.shape, self.strides, start)
        return FakeTensor(self.mode, made, self.device)


def _made(out: Any, read: Sequence[torch.Tensor], picked: int) -> _Made | None:
    """How to make again what an op made, which it ``picked`` so far in the memory of what it reads;
    None for what has numbers, or a size that they tell."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    if type(out) is not FakeTensor or out.constant is not None or out.dtype.is_complex:
        return None
    if free_unbacked_symbols((out.shape, out.stride())):
        return None
    memory = memory_of(out)
    owners = [i for i, tensor in enumerate(read) if memory_of(tensor) == memory]
    made = _Made(out.fake_mode, out.shape, out.stride(), out.dtype, out.device)
    if not owners:
        return made
    base = read[owners[0]]
    if base is out or base.dtype != out.dtype:
        return None
    return replace(
        made, of=owners[0], further=out.storage_offset() - base.storage_offset() - picked
    )


class _Places(list[str]):
    """The places in a model's code on the stack, as text, in place of all that torch gathers of
    it."""

    @staticmethod
    def extract() -> type["_Places"]:
        """As torch's own, of this stack."""
        return _Places

    @staticmethod
    def summary() -> "_Places":
        """From the first forward on, the innermost last."""
        places: list[tuple[CodeType, int]] = []
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if is_of_a_model(frame.f_code.co_filename):
                places.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return _as_text(tuple(reversed(places)))

    def format(self) -> list[str]:
        """As torch's own."""
        return self


@lru_cache(maxsize=2**12)
def _as_text(places: Sequence[tuple[CodeType, int]]) -> _Places:
    inner = dropwhile(lambda place: place[0].co_name != "forward", places)
    frames = [traceback.FrameSummary(code.co_filename, n, code.co_name) for code, n in inner]
    return _Places(traceback.StackSummary.from_list(frames).format())
