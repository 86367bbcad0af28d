"""What shares memory in a module (tied weights, views of one tensor), and keeping it so."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracer.errors import CutedgeError
from tracer.program import Layout


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter or a buffer of a module, or a plain attribute that is a view of one."""

    name: str
    tensor: torch.Tensor
    is_parameter: bool
    owner: str
    """The parameter or buffer that owns its memory: itself, or one that has all its elements."""
    layout: Layout | None
    """Where its elements lie in its owner's memory, None where it is the same tensor."""


def held(module: torch.nn.Module) -> tuple[Held, ...]:
    """The parameters and buffers of a module by all their names, parameters first.

    Of several with the same elements the first owns the memory, of a tensor and its views the whole
    one; views of one memory that have no element in common each own theirs. Raises CutedgeError
    where two share some elements and neither has all.
    """
    kinds = ((module.named_parameters, True), (module.named_buffers, False))
    found = [(*one, kind) for named, kind in kinds for one in named(remove_duplicate=False)]
    owned = _owners([(name, tensor) for name, tensor, _ in found])
    return tuple(Held(name, tensor, kind, *owned[name]) for name, tensor, kind in found)


def plain_views(module: torch.nn.Module) -> tuple[Held, ...]:
    """The plain attributes of a module that share memory: with a parameter or a buffer whose
    elements they have (``self.table = self.emb.weight.detach().t()``), or with each other.

    One that no other has all elements of owns its memory.
    """
    owners: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for one in held(module):
        if one.owner == one.name:
            owners.setdefault(memory_of(one.tensor), []).append((one.name, one.tensor))
    found = {}
    order = sorted(plain_tensors(module).items(), key=lambda one: -one[1].numel())
    for path, tensor in order:  # the whole before its views
        beside = owners.setdefault(memory_of(tensor), [])
        for owner, whole in beside:
            if _same(whole, tensor) or _has_all(whole, tensor):
                found[path] = Held(path, tensor, False, owner, _layout_in(whole, tensor))
                break
        else:
            beside.append((path, tensor))
            found[path] = Held(path, tensor, False, path, None)
    shared = {one.owner for one in found.values() if one.owner != one.name}
    return tuple(one for one in found.values() if one.owner != one.name or one.name in shared)


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters; what shares memory counts once."""
    owned = _owners(parameters := list(module.named_parameters()))
    return sum(tensor.numel() for name, tensor in parameters if owned[name][0] == name)


def _owners(found: Iterable[tuple[str, torch.Tensor]]) -> dict[str, tuple[str, Layout | None]]:
    """Name -> (its owner, its layout in the owner's memory), as in ``Held``."""
    groups: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in found:
        groups.setdefault(memory_of(tensor), []).append((name, tensor))
    return dict(one for group in groups.values() for one in _owned(group))


def _owned(
    group: list[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, tuple[str, Layout | None]]]:
    """(name, (owner, layout in its memory)) of the tensors in one memory."""
    # The whole before its views; of equals the first.
    order = sorted(group, key=lambda one: (-one[1].numel(), not one[1].is_contiguous()))
    owners: list[tuple[str, torch.Tensor]] = []
    for name, tensor in order:
        for owner, whole in owners:
            if _same(whole, tensor) or _has_all(whole, tensor):
                yield name, (owner, _layout_in(whole, tensor))
                break
            if not _apart(whole, tensor):
                raise CutedgeError(
                    f"{owner} and {name} lie in one memory in a way that no op of torch gives: "
                    "make one of them a view of the other, or of its own"
                )
        else:
            owners.append((name, tensor))
            yield name, (name, None)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return layout_of(one) == layout_of(other) and one.dtype == other.dtype


def _layout_in(whole: torch.Tensor, part: torch.Tensor) -> Layout | None:
    """Where a part lies in the memory of the whole, None where it is the same tensor."""
    shape, strides, offset = layout_of(part)
    return None if _same(whole, part) else (shape, strides, offset - int(whole.storage_offset()))


def memory_of(tensor: torch.Tensor) -> int:
    """The identity of the memory under a tensor."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def layout_of(tensor: torch.Tensor) -> Layout:
    """Where the elements of a tensor lie in its memory."""
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """(first, behind the last) of a tensor's elements in its memory."""
    shape, strides, offset = layout_of(tensor)
    if not tensor.numel():
        return offset, offset
    return offset, offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _has_all(whole: torch.Tensor, part: torch.Tensor) -> bool:
    (start, end), (first, last) = _span(whole), _span(part)
    return bool(
        whole.is_contiguous() and whole.dtype == part.dtype and start <= first and last <= end
    )


def _apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors in one memory have no element in common."""
    (start, end), (first, last) = _span(one), _span(other)
    if one.dtype != other.dtype:
        a, b = one.itemsize, other.itemsize
        return bool(end * a <= first * b or last * b <= start * a)
    if end <= first or last <= start:
        return True
    both = torch.zeros(max(end, last), dtype=torch.bool)
    both.as_strided(*layout_of(one)).fill_(True)
    return not bool(both.as_strided(*layout_of(other)).any())


# --- moving ---------------------------------------------------------------------------------------


def remade(
    module: torch.nn.Module, device: str, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """The module with its tensors on ``device``, floating ones in ``dtype``.

    What shared memory still does, and what was one tensor still is: ``Module.to`` makes each anew.
    Parameters, buffers and plain attributes move, also in lists and dicts. From the meta device
    they come as memory that nobody has filled.
    """
    memories: dict[Any, tuple[Any, torch.Tensor]] = {}  # with the old memory, so that it stays
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        if (tensor.device.type, tensor.dtype) == (device, wanted):
            return tensor
        if id(tensor) not in moved:
            key = (memory_of(tensor), tensor.dtype, wanted)
            if key not in memories:
                memories[key] = (tensor.untyped_storage(), _flat_copy(tensor, device, wanted))
            flat = memories[key][1]
            new = torch.empty(0, dtype=wanted, device=device).set_(
                flat.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            moved[id(tensor)] = (tensor, new)
        return moved[id(tensor)][1]

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update({key: move(t) for key, t in table.items() if t is not None})
        for key, value in _plain(part).items():
            new = _replaced(value, move)
            if new is not value:
                vars(part)[key] = new
    return module


def _flat_copy(tensor: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    """All the memory under a tensor, as a row of its elements."""
    memory = tensor.untyped_storage()
    row = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    row = row.set_(memory, 0, (memory.nbytes() // tensor.itemsize,), (1,))
    if tensor.is_meta:
        return torch.empty_like(row, dtype=dtype, device=device)
    return row.to(device, dtype)


def plain_tensors(module: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """The tensors that the parts of a module hold as plain attributes, by path."""
    found: dict[str, torch.Tensor] = {}

    def note(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        else:
            for key, part in _parts(value):
                note(f"{path}.{key}", part)

    for name, part in module.named_modules():
        for key, value in _plain(part).items():
            note(f"{name}.{key}" if name else key, value)
    return found


def _plain(part: torch.nn.Module) -> dict[str, Any]:
    own = ("_parameters", "_buffers", "_modules")
    return {key: value for key, value in vars(part).items() if key not in own}


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, dict):
        yield from value.items()


def _replaced(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A value with its tensors moved; itself where there is nothing to move."""
    if isinstance(value, torch.Tensor):
        return move(value)
    new = {key: _replaced(part, move) for key, part in _parts(value)}
    if all(new[key] is part for key, part in _parts(value)):
        return value
    if isinstance(value, tuple):
        return type(value)(*new.values()) if hasattr(value, "_fields") else tuple(new.values())
    other = copy.copy(value)
    for key, part in new.items():
        other[key] = part
    return other
