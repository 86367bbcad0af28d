"""One device of a run: it holds tensors, and carries out ops on them as torch does."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from runtime import RunError
from runtime.draws import Draws
from runtime.wire import Spec
from tracer.kinds import writes_in_place
from tracer.program import Invocation

_LIBRARIES = {"aten": None, "prims": None, "transformers": "transformers.integrations.moe"}
"""The op libraries whose ops are carried out -> the module that registers them."""

_SAME_AS = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}
"""What comes over the wire may lie in memory in another order than it did where it was made."""


def _histc(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    counted: torch.Tensor = torch.histc(tensor.float(), *args, **kwargs)
    return counted.to(tensor.dtype)


_WITHOUT_KERNEL = {"aten.histc.default": _histc}
"""What torch cannot do to integers on a CPU. A router's count of tokens fits into a float."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a device must know to carry out its ops."""

    invocations: Mapping[int, Invocation]
    """By op: those of the device, and the constants and cached state that they need."""
    targets: Mapping[int, str]
    """By op: the overload, as ``aten.add.Tensor``."""
    made: Mapping[int, tuple[int, ...]]
    """By op: the tensors that it makes."""
    everywhere: Mapping[int, int]
    """Tensor -> its op, of constants and cached state: worked out where they are needed."""
    specs: Mapping[int, Spec]
    """By tensor: its own dtype, and its shape."""
    uses: Mapping[int, int]
    """Tensor -> ops that read it here, and times that it leaves; then it can be forgotten."""


@dataclass(slots=True)
class Machine:
    """The tensors on a device, and the ops that run there. Raises RunError naming the op."""

    work: Work
    device: str = "cpu"
    """As torch calls it: ``cpu`` or ``cuda``."""
    resident: dict[int, torch.Tensor] = field(default_factory=dict)
    """Parameters, buffers, cached state, and what was worked out of them."""
    derived: set[int] = field(default_factory=set)
    """What of that was worked out in the run: cached state with new rows."""
    held: dict[int, torch.Tensor] = field(default_factory=dict)
    """What came over the wire or was made, until its last use."""
    left: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    """By op: what it took."""

    def prepare(self, ops: Iterable[int], constants: Collection[int]) -> None:
        """Work out the constants that ``ops`` read, before a run."""
        for op in ops:
            how = self.work.invocations.get(op)
            for tensor in () if how is None else read(how):
                if self.work.everywhere.get(tensor) in constants:
                    self.value(tensor)
        self.derived.clear()
        self.begin()

    def begin(self) -> None:
        """Be as before a run, whether or not there has been one."""
        self.held.clear()
        for tensor in self.derived:
            self.resident.pop(tensor, None)
        self.derived.clear()
        self.left = dict(self.work.uses)

    def put(self, tensors: Mapping[int, torch.Tensor]) -> None:
        """Take in what came over the wire."""
        self.held.update((number, tensor.to(self.device)) for number, tensor in tensors.items())

    def value(self, tensor: int) -> torch.Tensor:
        """A tensor that is here, or that can be worked out wherever it is needed."""
        found = self.held.get(tensor, self.resident.get(tensor))
        if found is None:
            op = self.work.everywhere.get(tensor)
            if op is None:
                raise RunError(f"tensor {tensor} is not here")
            made = self._carry_out(op)
            self.resident.update(zip(self.work.made[op], made, strict=True))
            self.derived.update(self.work.made[op])
            found = self.resident[tensor]
        return found

    def take(self, tensors: Iterable[int]) -> list[tuple[int, torch.Tensor]]:
        """Tensors that leave for another device."""
        taken = [(tensor, self.value(tensor)) for tensor in tensors]
        for tensor, _ in taken:
            self._used(tensor)
        return taken

    def run(self, ops: Iterable[int]) -> None:
        """Carry out ops in this order."""
        for op in ops:
            start = time.perf_counter()
            made = self._carry_out(op)
            self.held.update(zip(self.work.made[op], made, strict=True))
            for tensor in {*read(self.work.invocations[op])}:
                self._used(tensor)
            for tensor in self.work.made[op]:
                if not self.left.get(tensor):
                    self.held.pop(tensor, None)
            self.seconds[op] = time.perf_counter() - start
        if self.device != "cpu":
            torch.cuda.synchronize()

    def keep(self, states: Iterable[int]) -> None:
        """Keep new cached state as soon as it is here, or what is appended to it is."""
        for tensor in states:
            if tensor in self.held:
                self.resident[tensor] = self.held[tensor]
                self.derived.add(tensor)
            elif (op := self.work.everywhere.get(tensor)) is not None:
                if all(self._is_here(t) for t in read(self.work.invocations[op])):
                    self.value(tensor)

    def _is_here(self, tensor: int) -> bool:
        if tensor in self.held or tensor in self.resident:
            return True
        op = self.work.everywhere.get(tensor)
        return op is not None and all(map(self._is_here, read(self.work.invocations[op])))

    def forget(self) -> None:
        """Forget all but what is resident: a call of a device that keeps nothing has ended."""
        self.held.clear()

    def _used(self, tensor: int) -> None:
        self.left[tensor] = self.left.get(tensor, 0) - 1
        if self.left[tensor] <= 0:
            self.held.pop(tensor, None)

    def _carry_out(self, op: int) -> list[torch.Tensor]:
        how, target = self.work.invocations[op], self.work.targets[op]
        try:
            # What is drawn is to be the same on every device.
            device = self.device if how.draw is None else "cpu"
            args = [self._argument(argument, device) for argument in how.args]
            kwargs = {key: self._argument(value, device) for key, value in how.kwargs.items()}
            if writes_in_place(target):
                # The op graph has the tensor before and after as two: who still needs the one
                # before must find it unchanged, in whatever order the devices run.
                args[0] = args[0].clone()
            with torch.no_grad(), nullcontext() if how.draw is None else Draws(how.draw):
                made = self._function(target)(*args, **kwargs)
        except RunError:
            raise
        except Exception as error:  # whatever torch says of it
            raise RunError(f"op {op} ({target}) failed: {in_words(error)}") from error
        parts = made if isinstance(made, list | tuple) else [made]
        tensors = [part.to(self.device) for part in parts if isinstance(part, torch.Tensor)]
        return [*tensors, *self._shared(how, tensors[0])]

    def _shared(self, how: Invocation, written: torch.Tensor) -> list[torch.Tensor]:
        """The other tensors in memory that an op wrote in place, as they are afterwards.

        Each is laid out anew as it was in the traced memory, and what was ``written`` over it: it
        may have come here from another device, apart from the memory that it shared there.
        """
        made = []
        for one in how.shared:
            before = self.value(one.before)
            last = max(
                offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
                for shape, strides, offset in (one.layout, one.written)
            )
            memory = torch.empty(last + 1, dtype=before.dtype, device=before.device)
            after = memory.as_strided(*one.layout)
            after.copy_(before)
            memory.as_strided(*one.written).copy_(written)
            made.append(after)
        return made

    def _function(self, target: str) -> Callable[..., Any]:
        """The op of torch that is called so; only of libraries that are known."""
        if self.device == "cpu" and (known := _WITHOUT_KERNEL.get(target)):
            return known
        library, name, overload = _SAME_AS.get(target, target).split(".")
        if library not in _LIBRARIES:
            raise RunError(f"{target} is no op of {', '.join(_LIBRARIES)}")
        if module := _LIBRARIES[library]:
            import_module(module)
        found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, library), name), overload)
        return found

    def _argument(self, argument: Any, device: str) -> Any:
        match argument:
            case list():
                return [self._argument(part, device) for part in argument]
            case {"value": tensor}:
                return self.value(tensor).to(device)
            case {"like": tensor}:
                spec = self.work.specs[tensor]
                one = torch.empty((), dtype=getattr(torch, spec.dtype), device=device)
                return one.expand(spec.shape)
            case {"device": _}:
                return torch.device(device)
            case {"float": text}:
                return float(text)
            case {"dtype": name} | {"layout": name} | {"memory_format": name}:
                return getattr(torch, name)
        return argument


def read(how: Invocation, *, likes: bool = False) -> list[int]:
    """The tensors that an invocation reads, in order; with ``likes`` also those of which it takes
    the shape and dtype alone."""
    found: list[int] = []

    def walk(argument: Any) -> None:
        match argument:
            case list():
                for part in argument:
                    walk(part)
            case {"value": tensor}:
                found.append(tensor)
            case {"like": tensor} if likes:
                found.append(tensor)

    walk([*how.args, *how.kwargs.values()])
    return [*found, *(one.before for one in how.shared)]


def in_words(error: Exception) -> str:
    """An error of Python or torch in a line."""
    if is_memory(error):
        return "it ran out of memory"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_memory(error: Exception) -> bool:
    """Whether an error of Python or torch says that there was no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text
