"""Where a symbolic trace holds: what torch assumed about sizes while it followed the code."""

import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice, product
from math import gcd, prod
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from tracer.capture.errors import Untraceable, place
from tracer.capture.senses import Axis
from tracer.program import Program


def symbols(
    exported: ExportedProgram, inputs: Mapping[str, Sequence[Axis]]
) -> dict[sympy.Symbol, str]:
    """Torch's symbol -> the size that it stands for. ``inputs`` are the tensor inputs, in order.

    A size that the code fixes in one of them has no symbol: it would be two sizes.
    """
    named: dict[sympy.Symbol, str] = {}
    fixed = set()
    for tensor, axes in zip(user_tensors(exported), inputs.values(), strict=True):
        for size, axis in zip(tensor.shape, axes, strict=True):
            if isinstance(axis, str):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    named[size.node.expr] = axis
                else:  # at the example's size
                    fixed.add(axis)
    return {symbol: axis for symbol, axis in named.items() if axis not in fixed}


def user_tensors(exported: ExportedProgram) -> Iterator[torch.Tensor]:
    """What an exported program takes, its parameters, buffers and plain values aside."""
    given = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            if isinstance(value := node.meta.get("val"), torch.Tensor):
                yield value


def conditions(
    exported: ExportedProgram,
    named: Mapping[sympy.Symbol, str],
    bounds: Mapping[str, tuple[int, int]],
    sizes: Mapping[str, int],
) -> tuple[list[str], str]:
    """What torch noted of the sizes, as ``judged`` says it: (where the trace holds, an exception).

    Torch follows the branch that the example sizes take and notes the condition. Raises Untraceable
    where the code fixes a size, or takes another way at ``sizes``.
    """
    if fixed := [name for name in bounds if name not in named.values()]:
        raise Untraceable(f"its code fixes {' and '.join(fixed)}", _fixed_at(exported))
    # A size of one is traced as another: it stands for two and more.
    here = {name: max(sizes[name], least) for name, (least, _) in bounds.items()}
    return judged(_guards(exported), named, bounds, here)


def judged(
    guards: Iterable[Any],
    named: Mapping[sympy.Symbol, str],
    bounds: Mapping[str, tuple[int, int]],
    here: Mapping[str, int],
) -> tuple[list[str], str]:
    """What ``guards`` say of the sizes within ``bounds``: (where all hold, an exception).

    Nothing is said where they always hold. Those on one size are tried at every size; of those on
    several, one that is true at every sample of the sizes that are left is taken for always true.
    The exception is a size of ``here`` at which alone one is false: maybe a coincidence that
    changes nothing, which is for the caller to find out. Raises Untraceable for a guard that is
    false at ``here`` and elsewhere, and where a single size is left.
    """
    guards = sorted(guards, key=lambda guard: (len(_text(guard, named)), str(guard)))
    exceptions = {}
    for guard in guards:
        if not _holds(guard, named, here):
            where = _opposite(guard, named, bounds)
            if where not in (f"{name} is {size}" for name, size in here.items()):
                problem = f"its code takes another way where {where}"
                raise Untraceable(problem, condition=_text(guard, named))
            exceptions[guard] = where
    found = []
    left: dict[str, torch.Tensor] = {}
    alone: set[Any] = set()
    for name, (least, most) in bounds.items():
        left[name], needed = torch.arange(least, most + 1), []
        for guard in guards:
            holding = _scan(guard, named, name, left[name])
            if holding is not None:
                alone.add(guard)
                if guard in exceptions:
                    holding = holding | (left[name] == here[name])
                if not holding.all():
                    left[name] = left[name][holding]
                    needed.append(_text(guard, named))
        if len(left[name]) < 2:
            raise Untraceable(f"its code fixes {name} at {here[name]}")
        if needed:
            words = _words(name, left[name].tolist(), least, most)
            found.append(" and ".join(needed) if words is None else words)
    if others := [guard for guard in guards if guard not in alone]:
        points = _samples(left, others)
        found += dict.fromkeys(
            _text(_tidy(guard), named)
            for guard in others
            if not all(_holds(guard, named, point) for point in points)
        )
    return found, " and ".join(sorted(set(exceptions.values())))


def same_work(one: Program, other: Program, sizes: Mapping[str, int]) -> bool:
    """Whether two programs do the same at ``sizes``, but for views."""
    return _work(one, sizes) == _work(other, sizes)


def _work(program: Program, sizes: Mapping[str, int]) -> list[tuple[Any, ...]]:
    """Each node that is no view, with what it reads and makes; memory counts as it is made."""
    memory: dict[int, int] = {}

    def seen(index: int) -> tuple[Any, ...]:
        value = program.values[index]
        owner = index if value.alias_of is None else value.alias_of
        number = memory.setdefault(owner, len(memory))
        shape = tuple(size.evaluate(sizes) for size in value.shape)
        return (program.values[owner].name, number, value.dtype, value.role, shape)

    return [
        (node.target, node.path, [seen(v) for v in node.args], [seen(v) for v in node.outs])
        for node in program.nodes
        if not node.is_view
    ]


def assumptions(exported: ExportedProgram, named: Mapping[sympy.Symbol, str]) -> tuple[str, ...]:
    """All that torch noted to hold of the sizes, in sympy's words."""
    return tuple(sorted({_text(guard, named) for guard in _guards(exported)} - {"True"}))


def fitting(
    exported: ExportedProgram,
    named: Mapping[sympy.Symbol, str],
    samples: Iterable[Mapping[str, int]],
) -> list[Mapping[str, int]]:
    """The first three of ``samples`` at which all holds that torch noted of the sizes.

    None where a size is the same in all of them, so that what depends on it would not show.
    """
    guards = _guards(exported)
    right = (point for point in samples if all(_holds(guard, named, point) for guard in guards))
    found = [*islice(right, 3)]
    lengths = {*named.values()} - {"batch"}
    return found if all(len({point[name] for point in found}) > 1 for name in lengths) else []


def _environment(exported: ExportedProgram) -> Any:
    """What torch knows of the sizes, None where no size stayed a symbol."""
    sizes = (size for tensor in user_tensors(exported) for size in tensor.shape)
    return next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)


def _guards(exported: ExportedProgram) -> list[Any]:
    """The distinct conditions that torch noted."""
    environment = _environment(exported)
    if environment is None:
        return []
    return list(dict.fromkeys(environment.replace(guard.expr) for guard in environment.guards))


def _fixed_at(exported: ExportedProgram) -> str:
    """The line of code that made a number of a size, where torch knows it."""
    environment = _environment(exported)
    for symbol, line in getattr(environment, "replacements_slocs", {}).items():
        if environment.replacements[symbol].is_Integer:
            return place("".join(traceback.format_list([line.framework_loc])))
    return ""


def _samples(left: Mapping[str, torch.Tensor], guards: Iterable[Any]) -> list[dict[str, int]]:
    """Some of the sizes ``left``: the ends, what ``guards`` speak of, powers of two, odd ones."""
    numbers = {2**n for n in range(1, 21)} | {
        abs(int(number)) for guard in guards for number in guard.atoms(sympy.Integer)
    }
    near = {n + d for n in numbers if n < 2**62 for d in (-1, 0, 1)}
    steps = torch.tensor(sorted(near | {7, 11, 100, 1000, 10_000}))
    axes = {}
    for name, sizes in left.items():
        nearest = sizes[torch.searchsorted(sizes, steps).clamp(max=len(sizes) - 1)]
        some = torch.cat([sizes[:2], nearest, sizes[-2:]])
        axes[name] = some.unique().tolist()
    alone = [
        {**{other: values[0] for other, values in axes.items()}, name: value}
        for name, values in axes.items()
        for value in values
    ]
    few = {name: values[:: max(1, len(values) // 6)] for name, values in axes.items()}
    together = [dict(zip(few, point, strict=True)) for point in product(*few.values())]
    return [*alone, *together]


def _holds(guard: Any, named: Mapping[sympy.Symbol, str], point: Mapping[str, int]) -> bool:
    values = {symbol: sympy.Integer(point[name]) for symbol, name in named.items() if name in point}
    return guard.xreplace(values) is not sympy.false


# --- a condition on one size ----------------------------------------------------------------------

_VALUES: Mapping[Any, Callable[..., Any]] = {
    sympy.Add: lambda *terms: sum(terms),
    sympy.Mul: lambda *factors: prod(factors),
    sympy.Pow: operator.pow,
    FloorDiv: operator.floordiv,
    CleanDiv: operator.floordiv,
    Mod: operator.mod,
    PythonMod: operator.mod,
    **dict.fromkeys(
        (Max, sympy.Max), lambda *args: reduce(torch.maximum, map(torch.as_tensor, args))
    ),
    **dict.fromkeys(
        (Min, sympy.Min), lambda *args: reduce(torch.minimum, map(torch.as_tensor, args))
    ),
    sympy.Eq: operator.eq,
    sympy.Ne: operator.ne,
    sympy.Lt: operator.lt,
    sympy.Le: operator.le,
    sympy.Gt: operator.gt,
    sympy.Ge: operator.ge,
    sympy.And: lambda *args: reduce(operator.and_, args),
    sympy.Or: lambda *args: reduce(operator.or_, args),
    sympy.Not: operator.invert,
}
"""What sympy and torch call an operation -> that operation on tensors of whole numbers."""


def _scan(
    guard: Any, named: Mapping[sympy.Symbol, str], name: str, sizes: torch.Tensor
) -> torch.Tensor | None:
    """At which of ``sizes`` a condition on the size ``name`` holds, None for any other condition.

    Also None where 64 bits are too few to tell, or an operation is not known.
    """
    if {named.get(symbol) for symbol in guard.free_symbols} != {name} or not len(sizes):
        return None
    try:
        if _magnitude(guard, int(sizes[-1])) < 2**63:
            return torch.as_tensor(_value(guard, sizes)).expand(len(sizes))
    except (KeyError, RuntimeError):  # a function that is not known, a division by zero
        pass
    return None


def _value(part: Any, sizes: torch.Tensor) -> Any:
    if part.is_Symbol:
        return sizes
    return (
        int(part) if part.is_Integer else _VALUES[part.func](*(_value(a, sizes) for a in part.args))
    )


def _magnitude(part: Any, most: int) -> int:
    """What no number that is met on the way to the value of ``part`` is greater than."""
    if part.is_Symbol:
        return most
    if part.is_Integer:
        return abs(int(part))
    parts = [_magnitude(arg, most) for arg in part.args]
    match part:
        case sympy.Mul():
            return prod(parts)
        case sympy.Pow():
            return int(parts[0] ** parts[1])
    return sum(parts)


def _words(name: str, sizes: Sequence[int], least: int, most: int) -> str | None:
    """The ``sizes`` that are left of those from ``least`` to ``most``, None where no words fit.

    What is outside ``least`` and ``most`` is not spoken of.
    """
    low, high = sizes[0], sizes[-1]
    if low == high:
        return f"{name} is {low}"
    step = gcd(*sizes)
    whole = range(low, high + 1, step)
    said = [f"{name} is a multiple of {step}"] if step > 1 else []
    lower, upper = low - least >= step, most - high >= step
    if lower and upper:
        said.append(f"{low} <= {name} <= {high}")
    elif lower or upper:
        said.append(f"{name} <= {high}" if upper else f"{name} >= {low}")
    if missing := sorted(set(whole).difference(sizes)):
        every = gcd(*missing)
        if len(missing) == 1:
            said.append(f"{name} is not {every}")
        elif missing == [size for size in whole if size % every == 0]:
            said.append(f"{name} is not a multiple of {every}")
        elif len(missing) <= 3:
            said.append(f"{name} is not one of {', '.join(map(str, missing))}")
        else:
            return None
    return " and ".join(said)


def _opposite(
    guard: Any, named: Mapping[sympy.Symbol, str], bounds: Mapping[str, tuple[int, int]]
) -> str:
    """Where a condition does not hold, in words."""
    for name, (least, most) in bounds.items():
        sizes = torch.arange(least, most + 1)
        holding = _scan(guard, named, name, sizes)
        if holding is not None and not holding.all():
            if words := _words(name, sizes[~holding].tolist(), least, most):
                return words
    return f"{_text(guard, named)} does not hold"


def _tidy(guard: Any) -> Any:
    """A condition as people write it: the sizes on the left, ``<=`` rather than ``<``."""
    guard = getattr(guard, "canonical", guard)
    if isinstance(guard, sympy.Lt | sympy.Gt) and guard.rhs.is_Integer:
        return (
            guard.lhs <= guard.rhs - 1
            if isinstance(guard, sympy.Lt)
            else guard.lhs >= guard.rhs + 1
        )
    return guard


def _text(guard: Any, named: Mapping[sympy.Symbol, str]) -> str:
    names = {symbol: sympy.Symbol(name) for symbol, name in named.items()}
    return str(guard.xreplace(names))
