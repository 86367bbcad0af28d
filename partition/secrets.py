"""What a secret covers: every tensor that carries its values, wherever in a graph it is.

A tensor carries another's values where ops that only move values lead from one to the other
(``tracer.kinds.moves``): views, copies, casts, slices, concatenations, look-ups, cached state that
rows are appended to. Arithmetic carries nothing on, but where it leaves values as they are or may
do so: with a number that changes nothing, with a constant that is no parameter (a mask has zeros),
a sum of one element, an attention to one key.

A table of parameters is no secret of its own: what is looked up in it tells the places, and only
to who has the table.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from partition.accounting import Traffic
from partition.placement import Placement
from partition.stored import readers_of_stored
from tracer.graph import Kind, Op, OpGraph, Role, Tensor
from tracer.kinds import LOOKUPS, PASSES, SPLITS, base_name, moves
from tracer.summary import cached_inputs, cached_outputs


@dataclass(frozen=True, slots=True)
class _Moved:
    """A step that values take: from a tensor through an op into what it makes."""

    source: int
    result: int
    op: int | None
    """None between two names of one parameter, and from one run to the next."""


def covered(graph: OpGraph, marked: Collection[int]) -> frozenset[int]:
    """The tensors that carry values of the ``marked`` ones, these with them.

    What is made of a marked tensor by moving its values has them, and so has what it was itself
    moved out of, and what else that was moved into; the parts of a split have nothing of one
    another. Cached state that is marked is so in the next run too, with the rows that are new in
    it.
    """
    if not marked:
        return frozenset()
    ahead, back = _steps(graph)
    twins = _renewed(graph)
    whole = set(marked)  # these and what is made of them
    whole |= {after for before, after in twins if before in whole}
    carried = _reached(whole, ahead)
    sources: dict[int, set[int | None]] = defaultdict(set)  # -> the ops on the way to a marked one
    front = list(whole)
    while front:
        for step in back.get(front.pop(), ()):
            if not sources[step.source]:
                front.append(step.source)
            sources[step.source].add(step.op)
    others: set[int] = set()
    for source, ops in sources.items():
        if source in carried:
            continue
        others |= {
            step.result
            for step in ahead.get(source, ())
            if step.result not in sources and not (step.op in ops and _splits(graph, step.op))
        }
    return frozenset(carried | set(sources) | _reached(others, ahead))


def _splits(graph: OpGraph, op: int | None) -> bool:
    return op is not None and base_name(graph.ops[op].target) in SPLITS


def _reached(starts: Iterable[int], steps: Mapping[int, Collection[_Moved]]) -> set[int]:
    """``starts``, and all that steps lead to from there."""
    found = set(starts)
    front = list(found)
    while front:
        for step in steps.get(front.pop(), ()):
            if step.result not in found:
                found.add(step.result)
                front.append(step.result)
    return found


def moved_into(graph: OpGraph, tensor: int) -> list[int]:
    """The tensors that an op moves the values of a tensor into, in this run."""
    return [step.result for step in _steps(graph)[0].get(tensor, ()) if step.op is not None]


def moved_from(graph: OpGraph, tensor: int) -> set[int]:
    """A tensor, and those that its values are moved from, step by step."""
    back, found, front = _steps(graph)[1], {tensor}, [tensor]
    while front:
        fresh = {step.source for step in back.get(front.pop(), ())} - found
        found |= fresh
        front += fresh
    return found


def is_look_up(graph: OpGraph, op: Op) -> bool:
    """Whether an op takes rows of a table that is stored, by what flows in a run."""
    reads = graph.inputs(op.id)
    return (
        base_name(op.target) in LOOKUPS
        and not op.is_constant
        and len(reads) > 1
        and not graph.crosses(reads[0])
    )


_Steps = Mapping[int, list[_Moved]]


@lru_cache(maxsize=4)
def _steps(graph: OpGraph) -> tuple[_Steps, _Steps]:
    """All that moves values in a graph: (by what it is moved out of, by what it is moved into).

    A result that is no constant is no step back to a parameter: which rows were taken is not in it.
    """
    ahead: dict[int, list[_Moved]] = defaultdict(list)
    back: dict[int, list[_Moved]] = defaultdict(list)
    for op in graph.ops:
        reads, makes = graph.inputs(op.id), graph.outputs(op.id)
        for arg, result in _moves(graph, op.id, reads, makes):
            step = _Moved(reads[arg].id, makes[result].id, op.id)
            ahead[step.source].append(step)
            if graph.crosses(reads[arg]) or op.is_constant or reads[arg].op in graph.state_ops:
                back[step.result].append(step)
    for tensor in graph.tensors:  # a tied parameter has two names
        if tensor.op is None and tensor.alias_of is not None:
            for one, other in ((tensor.id, tensor.alias_of), (tensor.alias_of, tensor.id)):
                ahead[one].append(_Moved(one, other, None))
                back[other].append(_Moved(one, other, None))
    for before, after in _renewed(graph):
        ahead[after].append(_Moved(after, before, None))
    return ahead, back


def _moves(
    graph: OpGraph, number: int, reads: tuple[Tensor, ...], makes: tuple[Tensor, ...]
) -> list[tuple[int, int]]:
    """(argument, result) of an op of a graph, where the result has the argument's values."""
    op = graph.ops[number]
    if op.kind in (Kind.INPUT, Kind.OUTPUT) or not reads or not makes:
        return []
    same_size = reads[0].numel == makes[0].numel
    found = moves(op.target, len(reads), len(makes), same_size=same_size)
    if not found and (op.is_view or op.is_identity):
        found = [(0, result) for result in range(len(makes))]
    if not found and (value := _of_one_key(graph, op, reads)) is not None:
        found = [(value, 0)]
    if not found and base_name(op.target) in PASSES:
        numbers = [arg for arg, t in enumerate(reads) if _is_number(graph, t)]
        if numbers:
            found = [(arg, 0) for arg in range(len(reads)) if arg not in numbers]
    return found


def _of_one_key(graph: OpGraph, op: Op, reads: tuple[Tensor, ...]) -> int | None:
    """The position of V in an attention to one key alone, whose weight is 1: V is the result."""
    if op.kind is Kind.ATTENTION and len(reads) > 2 and reads[1].shape[-2:-1] == (1,):
        return 2
    probabilities = reads[0].label == "attention_probs" and reads[0].shape[-1:] == (1,)
    return 1 if op.kind is Kind.MATMUL and probabilities else None


def _is_number(graph: OpGraph, tensor: Tensor) -> bool:
    """Whether a tensor is a constant that no parameter is in: its numbers are in the code."""
    return tensor.role is Role.CONSTANT and tensor.id not in _of_parameters(graph)


@lru_cache(maxsize=4)
def _of_parameters(graph: OpGraph) -> frozenset[int]:
    """The parameters, buffers and constants that parameters are in."""
    found = {t.id for t in graph.tensors if t.role is Role.PARAMETER}
    for op in graph.ops:
        if op.is_constant and any(t.id in found for t in graph.inputs(op.id)):
            found.update(t.id for t in graph.outputs(op.id))
    return frozenset(found)


@lru_cache(maxsize=4)
def _renewed(graph: OpGraph) -> tuple[tuple[int, int], ...]:
    """(cached state, what it is after the run), all of each where they are not one to one."""
    before, after = cached_inputs(graph), cached_outputs(graph)
    if len(before) == len(after):
        return tuple((a.id, b.id) for a, b in zip(before, after, strict=True))
    return tuple((a.id, b.id) for a in before for b in after)


@dataclass(frozen=True, slots=True)
class LookUp:
    """Rows of a stored table, found by a secret: who has the table has the secret back."""

    table: int
    """The parameter or constant that owns the memory of the table."""
    place: int
    """The secret tensor that says which rows."""
    rows: frozenset[int]
    """What was found, and all that carries its values."""


def lookups(graph: OpGraph, secret: Collection[int]) -> list[LookUp]:
    """Where secret tensors are looked up in tables that are stored."""
    found = []
    for op in graph.ops:
        if is_look_up(graph, op) and (place := graph.inputs(op.id)[1]).id in secret:
            rows = _reached((t.id for t in graph.outputs(op.id)), _steps(graph)[0])
            table = graph.storage(graph.inputs(op.id)[0])
            found.append(LookUp(table.id, place.id, frozenset(rows)))
    return found


_BRANCHES = 8
"""The most ways of keeping secrets that are tried; beyond them no rows leave home."""


def reached(graph: OpGraph, secret: Collection[int]) -> frozenset[int]:
    """``secret`` tensors, and all that any op makes of them, in this run and the next."""
    found = set(secret)
    front = list(found)
    again = {after: before for before, after in _renewed(graph)}
    while front:
        tensor = front.pop()
        made = [t.id for op in graph.readers(tensor) for t in graph.outputs(op)]
        made += [again[tensor]] if tensor in again else []
        front += [t for t in made if t not in found]
        found.update(made)
    return frozenset(found)


def ways_to_keep(
    graph: OpGraph, marked: Collection[int], devices: Sequence[str], derived: Collection[int] = ()
) -> list[Mapping[str, frozenset[int]]]:
    """By device, the tensors that may not be there if what is ``marked`` is to be secret to it.

    Of what is ``derived`` too, all that any op makes of it is not to be there either.
    Several ways where secrets are looked up in tables: a device may have the rows or the table.
    Whoever keeps secrets keeps to one of the ways, and each of them keeps them.
    """
    secret = covered(graph, marked)
    secret |= reached(graph, covered(graph, derived))
    if not secret or not devices:
        return [{}]
    by_table: dict[int, frozenset[int]] = {}
    for one in lookups(graph, secret):
        if one.table not in secret and not one.rows <= secret:
            by_table[one.table] = by_table.get(one.table, frozenset()) | one.rows
    choices = [
        [(device, rows), (device, frozenset((table,)))]
        for table, rows in by_table.items()
        for device in devices
    ]
    if 2 ** len(choices) > _BRANCHES:
        choices = [choice[:1] for choice in choices]
    return [
        {
            device: secret.union(*(kept for there, kept in way if there == device))
            for device in devices
        }
        for way in product(*choices)
    ]


def present(graph: OpGraph, placement: Placement, traffic: Traffic) -> dict[str, set[int]]:
    """By device: the tensors that are made there, that come there, and that lie there."""
    found: dict[str, set[int]] = {d: set() for d in (placement.home, *placement.accelerators)}
    for transfer in traffic.transfers:
        found.setdefault(transfer.dst_device, set()).add(transfer.tensor.id)
    for tensor in graph.tensors:
        if graph.crosses(tensor):
            assert tensor.op is not None
            made = placement.devices[tensor.op]
            assert made is not None
            found[made].add(tensor.id)
        else:
            for op in readers_of_stored(graph, tensor):
                there = placement.devices[op]
                assert there is not None
                found[there].add(tensor.id)
    return found
