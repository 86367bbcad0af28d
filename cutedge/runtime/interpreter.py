"""One device of a run: it holds tensors, and carries out ops on them as torch does."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from cutedge.runtime import RunError
from cutedge.runtime.draws import Draws
from cutedge.runtime.memory import free_bytes
from cutedge.runtime.ops import LAYOUTS, MEMORY_FORMATS, Operation, operation
from cutedge.runtime.wire import DTYPES, Spec
from tracer.kinds import MATRIX_PRODUCTS, base_name
from tracer.program import Invocation, Sharing
from tracer.words import plain

LOOK_BYTES = 2**26
"""How much may be made before a device looks again at how much memory is free."""

_SAME_AS = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}
"""What comes over the wire may lie in memory in another order than it did where it was made."""


def _histc(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    counted: torch.Tensor = torch.histc(tensor.float(), *args, **kwargs)
    return counted.to(tensor.dtype)


def in_limbs(function: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """A product of two matrices of integers mod 2^32 or 2^64, by products of float64.

    Torch has no such kernel on CUDA, and a slow one on CPUs. Each number is cut into limbs of 16
    bits: sums of up to 2^21 products of two are below 2^53, and float64 has them exactly.
    """

    def cut(tensor: torch.Tensor) -> list[torch.Tensor]:
        limbs = range(0, 8 * tensor.itemsize, 16)
        return [((tensor >> bits) & 0xFFFF).double() for bits in limbs]

    def multiply(*args: Any, **kwargs: Any) -> torch.Tensor:
        one, other = (n for n, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dim() > 1)
        dtype, given = args[one].dtype, [*args]
        rest = [n for n, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dim() < 2]
        for n in rest:
            given[n] = args[n].double()
        firsts, seconds = cut(args[one]), cut(args[other])
        total: torch.Tensor | None = None
        for i, first in enumerate(firsts):
            for j, second in enumerate(seconds[: len(firsts) - i]):
                given[one], given[other] = first, second
                part = function(*given, **kwargs).long() << 16 * (i + j)
                total = part if total is None else total + part
        assert total is not None
        return total.to(dtype)

    return multiply


_WITHOUT_KERNEL = {"aten.histc.default": _histc}
"""What torch cannot do to integers on a CPU. A router's count of tokens fits into a float."""


@dataclass(frozen=True, slots=True)
class Instructions:
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
    names: Mapping[int, int] = field(default_factory=dict)
    """Another name of a parameter that is sent -> that parameter: tied weights."""
    passing: frozenset[int] = frozenset()
    """Views of parameters that are sent: made anew whenever they are read."""


@dataclass(slots=True)
class Interpreter:
    """The tensors on a device, and the ops that run there. Raises RunError naming the op."""

    instructions: Instructions
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
    operations: dict[int, Operation] = field(default_factory=dict)
    """By op: what torch carries out."""
    fresh_bytes: dict[int, int] = field(default_factory=dict)
    """By op: the memory that it takes for what it makes; 0 where that is a view."""
    unread: set[int] = field(default_factory=set)
    """What came over the wire and has not been read since."""
    unseen_bytes: int = 0
    """What was made since the device last looked at how much memory is free."""
    sight: Callable[[int, torch.Tensor], None] | None = None
    """Is shown each tensor that is read."""
    own: Mapping[int, Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]] = field(
        default_factory=dict
    )
    """By op that is none of torch's, but this process's own: what it makes of what it reads."""

    def __post_init__(self) -> None:
        """Refuse instructions with an op that is in no list, an argument that is not of its type, or a
        result of another size than was announced. No op runs, and no memory is taken, for that."""
        for op in self.instructions.invocations:
            try:
                if op not in self.own:
                    self._foresee(op)
            except Exception as error:  # whatever torch says of it
                raise self._failed(op, error) from error

    def _foresee(self, op: int) -> None:
        how, target, specs = (
            self.instructions.invocations[op],
            self.instructions.targets[op],
            self.instructions.specs,
        )
        operation(target).check(how, specs)
        self.operations[op] = found = operation(_SAME_AS.get(target, target))
        found.check_parts(how, specs, len(self.instructions.made[op]))
        made = self._results(op, lambda tensor: _shape_of(specs[tensor]), "meta", found.function)
        self._compare(op, made)
        if not found.is_view:
            self.fresh_bytes[op] = sum(specs[t].payload_bytes for t in self.instructions.made[op])
            self.fresh_bytes[op] += sum(_memory_numel(one) * made[0].itemsize for one in how.shared)
        if not found.may_copy:
            self._check_room(self.fresh_bytes.get(op, 0))

    def prepare(self, ops: Iterable[int], constants: Collection[int]) -> None:
        """Work out the constants that ``ops`` read, before a run."""
        for op in ops:
            how = self.instructions.invocations.get(op)
            for tensor in () if how is None else read(how):
                if self.instructions.everywhere.get(tensor) in constants:
                    self.value(tensor)
        self.derived.clear()
        self.begin()

    def begin(self) -> None:
        """Be as before a run, whether or not there has been one."""
        self.held.clear()
        for tensor in self.derived:
            self.resident.pop(tensor, None)
        self.derived.clear()
        self.unread.clear()
        self.left = dict(self.instructions.uses)

    def put(self, tensors: Mapping[int, torch.Tensor]) -> None:
        """Take in what came over the wire."""
        self.held.update((number, tensor.to(self.device)) for number, tensor in tensors.items())
        self.unread.update(tensors)

    def value(self, tensor: int) -> torch.Tensor:
        """A tensor that is here, or that can be worked out wherever it is needed."""
        if tensor in self.instructions.names:
            spec = self.instructions.specs[tensor]
            return self.value(self.instructions.names[tensor]).view(spec.shape)
        self.unread.discard(tensor)
        found = self.held.get(tensor, self.resident.get(tensor))
        if found is None:
            op = self.instructions.everywhere.get(tensor)
            if op is None:
                raise RunError(f"tensor {tensor} is not here")
            made = dict(zip(self.instructions.made[op], self._carry_out(op), strict=True))
            found = made[tensor]
            if tensor not in self.instructions.passing:
                self.resident.update(made)
                self.derived.update(made)
        if self.sight is not None:
            self.sight(tensor, found)
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
            self.held.update(zip(self.instructions.made[op], made, strict=True))
            for tensor in {*read(self.instructions.invocations[op])}:
                self._used(tensor)
            for tensor in self.instructions.made[op]:
                if not self.left.get(tensor):
                    self.held.pop(tensor, None)
            self.seconds[op] = time.perf_counter() - start
        if self.device != "cpu":
            torch.cuda.synchronize()

    def keep(self, states: Iterable[int]) -> None:
        """Keep new cached state as soon as it is here, or what is appended to it is."""
        for tensor in states:
            if tensor in self.held:
                self.resident[tensor] = self.value(tensor)
                self.derived.add(tensor)
            elif (op := self.instructions.everywhere.get(tensor)) is not None:
                if all(self._is_here(t) for t in read(self.instructions.invocations[op])):
                    self.value(tensor)

    def _is_here(self, tensor: int) -> bool:
        if tensor in self.held or tensor in self.resident:
            return True
        op = self.instructions.everywhere.get(tensor)
        return op is not None and all(map(self._is_here, read(self.instructions.invocations[op])))

    def forget(self) -> None:
        """Forget all but what is resident: a call of a device that keeps nothing has ended.

        What has come to be appended to cached state is part of it, also before the rest has come.
        """
        waiting = {
            part
            for tensor, op in self.instructions.everywhere.items()
            if tensor not in self.resident and tensor not in self.instructions.passing
            for part in read(self.instructions.invocations[op])
        }
        self.held = {tensor: made for tensor, made in self.held.items() if tensor in waiting}

    def _used(self, tensor: int) -> None:
        tensor = self.instructions.names.get(tensor, tensor)
        self.left[tensor] = self.left.get(tensor, 0) - 1
        if self.left[tensor] <= 0:
            self.held.pop(tensor, None)

    def make_room(self, needed: int) -> None:
        """Raise RunError where ``needed`` bytes more are not free; looks only now and then."""
        self.unseen_bytes += needed
        if self.unseen_bytes > LOOK_BYTES:
            self._check_room(needed)
            self.unseen_bytes = 0

    def _check_room(self, needed: int) -> None:
        if needed > LOOK_BYTES and needed > (free := free_bytes(self.device)):
            raise RunError(f"it makes {needed:,} bytes, and may take {free:,}")

    def _carry_out(self, op: int) -> list[torch.Tensor]:
        how = self.instructions.invocations[op]
        values = {tensor: self.value(tensor) for tensor in read(how)}
        try:
            if op in self.own:
                made = self.own[op]([*values.values()])
                self._compare(op, made)
                return made
            found, function = self.operations[op], self._function(op)
            self.make_room(self._needed(op, values))
            # What is drawn is to be the same on every device.
            device = self.device if how.draw is None else "cpu"
            with nullcontext() if how.draw is None else Draws(how.draw):
                made = self._results(op, lambda t: values[t].to(device), device, function)
            made = [tensor.to(self.device) for tensor in made]
            self._compare(op, made)
            if found.leaves_as_found:
                for tensor in made:  # nobody is to read what others left in this memory
                    tensor.zero_()
        except Exception as error:  # whatever torch says of it
            raise self._failed(op, error) from error
        return made

    def _function(self, op: int) -> Callable[..., Any]:
        """What torch carries out for an op here."""
        found, how, specs = (
            self.operations[op],
            self.instructions.invocations[op],
            self.instructions.specs,
        )
        if base_name(found.target) in MATRIX_PRODUCTS:
            shapes = [specs[t] for t in read(how)]
            if {one.dtype for one in shapes} <= {"int32", "int64"} and len(shapes) == 2:
                return in_limbs(found.function)
        function: Callable[..., Any] = found.function
        return _WITHOUT_KERNEL.get(found.target, function) if self.device == "cpu" else function

    def results(
        self, op: int, value: Callable[[int], torch.Tensor], function: Callable[..., Any]
    ) -> list[torch.Tensor]:
        """What an op makes of other values than those that it reads here."""
        return self._results(op, value, self.device, function)

    def _needed(self, op: int, values: Mapping[int, torch.Tensor]) -> int:
        """The memory that an op is about to take for what it makes."""
        if self.operations[op].may_copy:
            [first, *_] = read(self.instructions.invocations[op])
            dtype = self.instructions.specs[self.instructions.made[op][0]].dtype
            if values[first].is_contiguous() and values[first].dtype == DTYPES[dtype]:
                return 0
        return self.fresh_bytes.get(op, 0)

    def _failed(self, op: int, error: Exception) -> RunError:
        target = plain(str(self.instructions.targets.get(op)))
        if isinstance(error, RunError):
            return RunError(f"op {op} ({target}): {error}")
        return RunError(f"op {op} ({target}) failed: {plain(in_words(error))}")

    def _results(
        self,
        op: int,
        value: Callable[[int], torch.Tensor],
        device: str,
        function: Callable[..., Any],
    ) -> list[torch.Tensor]:
        """What an op makes on a device, of the tensors that ``value`` gives."""
        how, found = self.instructions.invocations[op], self.operations[op]

        def given(argument: Any) -> Any:
            match argument:
                case list():
                    return [given(part) for part in argument]
                case {"value": tensor}:
                    return value(tensor)
                case {"like": tensor}:
                    spec = self.instructions.specs[tensor]
                    one = torch.zeros((), dtype=DTYPES[spec.dtype], device=device)
                    return one.expand(spec.shape)
                case {"device": _}:
                    return torch.device(device)
                case {"float": text}:
                    return float(text)
                case {"complex": text}:
                    return complex(text)
                case {"dtype": name}:
                    return DTYPES[name]
                case {"layout": name}:
                    return LAYOUTS[name]
                case {"memory_format": name}:
                    return MEMORY_FORMATS[name]
            return argument

        args = [given(argument) for argument in how.args]
        kwargs = {key: given(argument) for key, argument in how.kwargs.items()}
        if found.takes_device and kwargs.get("device") is None:
            kwargs["device"] = torch.device(device)
        if found.writes_in_place:
            # The op graph has the tensor before and after as two: who still needs the one
            # before must find it unchanged, in whatever order the devices run.
            args[0] = args[0].clone()
        with torch.no_grad():
            made = function(*args, **kwargs)
        parts = made if isinstance(made, list | tuple) else [made]
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        return [*tensors, *_shared(how, tensors[0], value)]

    def _compare(self, op: int, made: Sequence[torch.Tensor]) -> None:
        """Raise RunError where what an op makes is not what was announced."""
        wanted = [self.instructions.specs[tensor] for tensor in self.instructions.made[op]]
        if len(made) == len(wanted) and all(
            tensor.dtype == DTYPES[spec.dtype] and tensor.shape == spec.shape
            for tensor, spec in zip(made, wanted, strict=True)
        ):
            return
        found = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in made]
        announced = [f"{spec.dtype} {list(spec.shape)}" for spec in wanted]
        raise RunError(
            f"it makes {plain(', '.join(found))}; announced: {plain(', '.join(announced))}"
        )


def _shared(
    how: Invocation, written: torch.Tensor, value: Callable[[int], torch.Tensor]
) -> list[torch.Tensor]:
    """The other tensors in memory that an op wrote in place, as they are afterwards.

    Each is laid out anew as it was in the traced memory, and what was ``written`` over it: it
    may have come here from another device, apart from the memory that it shared there.
    """
    made = []
    for one in how.shared:
        before = value(one.before)
        memory = torch.empty(_memory_numel(one), dtype=before.dtype, device=before.device)
        after = memory.as_strided(*one.layout)
        after.copy_(before)
        memory.as_strided(*one.written).copy_(written)
        made.append(after)
    return made


def _memory_numel(one: Sharing) -> int:
    """The elements of the memory that a tensor shares with the one that is written to."""
    return 1 + max(
        offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        for shape, strides, offset in (one.layout, one.written)
    )


def _shape_of(spec: Spec) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta")


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


def resident_bytes(
    parameters: Mapping[int, str], others: Iterable[int], specs: Mapping[int, Spec]
) -> int:
    """Bytes of ``parameters``, those of one name once, and of ``others``: buffers and states."""
    owners = {name: tensor for tensor, name in parameters.items()}
    return sum(specs[tensor].payload_bytes for tensor in (*owners.values(), *others))


def in_words(error: Exception) -> str:
    """An error of Python or torch in a line."""
    if is_memory(error):
        return "it ran out of memory"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_memory(error: Exception) -> bool:
    """Whether an error of Python or torch says that there was no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text
