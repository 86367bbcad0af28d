"""At which other sizes a trace is the same program, and the trace there: torch-free.

Torch exports a model once for many sizes; the formulas say how large each tensor is. What else
depends on sizes is which way a model is exported (``Reach``) and which results share memory with
what they are made of: a reshape may have to copy at one size and not at another
(``same_memory``). Where both are the same, a trace at other sizes is ``resized``.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

from tracer.formula import Formula, const, parse
from tracer.graph import Kind, Op, OpGraph, Tensor
from tracer.kinds import base_name, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Many = Mapping[str, NDArray[np.int64]]

UNLIMITED = 2**63 - 1
"""The upper bound of a size that nothing limits."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The sizes at which a model would be exported just as it was."""

    bounds: tuple[tuple[str, int, int], ...]
    """(name, least, greatest) of each size."""
    holding: tuple[str, ...] = ()
    """What torch noted to hold of the sizes while it followed the model's code."""
    failing: tuple[str, ...] = ()
    """Of each way of export that was tried before, something that does not hold."""
    positions: int | None = None
    """The longest sequence that the model has positions for, None when it sets no limit."""
    source_positions: int | None = None
    """The most tokens that its encoder has positions for, None when it sets no limit."""
    notes: tuple[str, ...] = ()
    """What a user must know of the trace at any of these sizes."""
    defaults: tuple[tuple[str, int], ...] = ()
    """(name, size) for each size that the user leaves out."""

    def warnings(self, model: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """What a user must know of the trace at ``sizes``."""
        said = (
            beyond_positions(model, sizes, self.positions),
            beyond_source_positions(model, sizes, self.source_positions),
        )
        return (*filter(None, said), *self.notes)

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether the model would be exported in the same way at ``sizes``."""
        if not all(least <= sizes[name] <= most for name, least, most in self.bounds):
            return False
        # A size of one is traced as another: it stands for two and more.
        run = {name: max(size, 2) for name, size in self.run_sizes(sizes).items()}
        try:
            return all(holds(text, run) for text in self.holding) and not any(
                holds(text, run) for text in self.failing
            )
        except ValueError:
            return False

    def as_json(self) -> dict[str, Any]:
        """What ``Reach.from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "Reach":
        """A reach out of JSON. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            bounds=tuple((name, least, most) for name, least, most in read["bounds"]),
            holding=tuple(read["holding"]),
            failing=tuple(read["failing"]),
            positions=read["positions"],
            source_positions=read["source_positions"],
            notes=tuple(read["notes"]),
            defaults=tuple((name, size) for name, size in read["defaults"]),
        )

    def run_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """``sizes``, not beyond the model's positions: a run must be possible."""
        return run_sizes(sizes, self.positions)


def run_sizes(sizes: Mapping[str, int], positions: int | None) -> dict[str, int]:
    """The sizes that a trace is run at, not beyond the positions of a model without a cache."""
    if sizes["past"] or not positions:
        return dict(sizes)
    return {**sizes, "seq": min(sizes["seq"], positions)}


def beyond_positions(model: str, sizes: Mapping[str, int], positions: int | None) -> str | None:
    """What a user must know of sizes that a model has no positions for; None where it has them."""
    seq, past = sizes["seq"], sizes["past"]
    if positions is None or seq + past <= positions:
        return None
    length = f"seq {seq}" + (f" after past {past}" if past else "")
    return (
        f"{length} is beyond the {positions} positions of {model}: "
        "the figures follow the formulas, the real model was not made for it"
    )


def beyond_source_positions(
    model: str, sizes: Mapping[str, int], positions: int | None
) -> str | None:
    """The same of the tokens that an encoder has read."""
    source = sizes.get("source", 0)
    if positions is None or source <= positions:
        return None
    return (
        f"source {source} is beyond the {positions} positions of the encoder of {model}: "
        "the figures follow the formulas, the real model was not made for it"
    )


# --- conditions -----------------------------------------------------------------------------------

_VALUES: Mapping[str | type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: Fraction,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Invert: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    "Eq": operator.eq,
    "Ne": operator.ne,
    "Min": min,
    "Max": max,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
}


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition in the words of sympy (``Eq(Mod(seq, 64), 0)``) holds at ``sizes``.

    Raises ValueError for words that are not known.
    """
    try:
        return bool(_value(_parsed(condition), sizes))
    except (SyntaxError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"no condition: {condition}") from error


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() as value):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=op, operand=operand):
            return _VALUES[type(op)](_value(operand, sizes))
        case ast.BinOp(left=left, op=op, right=right):
            return _VALUES[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _VALUES[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _VALUES[name](*(_value(arg, sizes) for arg in args))
    raise ValueError(ast.dump(node))


# --- what shares memory ---------------------------------------------------------------------------

_REGROUPS = frozenset(("reshape", "view", "_unsafe_view", "flatten", "unflatten"))
"""Ops that never change which elements there are, whatever formulas say it."""

_KEEPS_AXES = frozenset(
    (
        "transpose",
        "permute",
        "t",
        "numpy_T",
        "swapaxes",
        "movedim",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "broadcast_to",
        "select",
        "unbind",
        "contiguous",
        "clone",
        "to",
        "_to_copy",
        "detach",
        "alias",
        "lift_fresh_copy",
        "view_as_real",
        "view_as_complex",
        "real",
        "imag",
    )
)
"""Take axes whole or leave them out: how long an axis is, if not one, makes no difference."""

_CUTS = frozenset(
    (
        "slice",
        "narrow",
        "split",
        "split_with_sizes",
        "tensor_split",
        "chunk",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
    )
)


def same_memory(graph: OpGraph, one: Mapping[str, int], other: Mapping[str, Any]) -> Any:
    """Whether the same tensors are known to share memory at two sizes.

    A tensor is a view where its axes can be joined without a copy. That depends on sizes where an
    axis has one element (or none), where a cut leaves all of an axis, and where two groupings of
    the same elements happen to meet. What may depend on more is taken to differ.

    Of ``other`` every size may be an array of int64, and the answer is one of booleans.
    """
    same: Any = True
    try:
        here, away = _sizes_at(one), _sizes_at(other)
        for case in _cases(graph):
            for fact, there in zip(_facts(case, here), _facts(case, away), strict=True):
                same = same & (fact == there)
    except (ValueError, ArithmeticError):  # a size that is no whole number, or unlike any view
        return False
    return same


_Case = tuple[str, tuple[str, ...], tuple[str, ...]]
"""(name of an op, or nothing, shape read, shape made)"""


@lru_cache(maxsize=2)
def _cases(graph: OpGraph) -> frozenset[_Case]:
    return frozenset(_each_case(graph))


def _each_case(graph: OpGraph) -> Iterator[_Case]:
    for tensor in graph.tensors:
        yield "", (), tensor.shape_expr or ()
    for op in graph.ops:
        inputs = graph.inputs(op.id)
        if inputs and (op.is_view or kind_of(op.target) in (Kind.COPY, Kind.OTHER)):
            for made in graph.outputs(op.id):
                yield _moved(op, made), inputs[0].shape_expr or (), made.shape_expr or ()


def _moved(op: Op, made: Tensor) -> str:
    """What an op is to the memory of what it reads: its name, ``copy`` where it never shares it."""
    name = base_name(op.target)
    known = name in _CUTS or name in _KEEPS_AXES
    return name if known or made.alias_of is not None else "copy"


def _facts(case: _Case, size: Callable[[str], Any]) -> list[Any]:
    """What happens to be so at these sizes, of all that sharing memory may depend on.

    Raises ValueError for a view of which that is not known.
    """
    name, read, made = case
    before, after = ([*map(size, shape)] for shape in (read, made))
    if not name:
        return [fact for size in after for fact in (size > 0, size > 1)]
    if name in _KEEPS_AXES:
        return []
    if name in _REGROUPS or _count(read) == _count(made):  # the same elements in other groups
        ends = [list(accumulate(reversed(shape), operator.mul)) for shape in (before, after)]
        return [a == b for a in ends[0] for b in ends[1]]
    pairs = list(zip(read, made, before, after, strict=False))
    if name in _CUTS and len(read) == len(made):
        if any("//" in new and _differ(old, new) for old, new, _, _ in pairs):
            raise ValueError("steps over elements")
        # What is alone is in one piece, however long it is.
        return [(a == b) & (prod(after) > b) for _, _, a, b in pairs]
    if name != "copy" and any(not text.isdigit() for text in (*read, *made)):
        raise ValueError("a view of another sort")
    return []


def _differ(old: str, new: str) -> bool:
    """Whether a size differs from another by more than a number."""
    return old != new and (parse(old) - parse(new)).constant is None


def _sizes_at(sizes: Mapping[str, Any]) -> Callable[[str], Any]:
    """What a formula is at some sizes; each is worked out once."""
    known: dict[str, Any] = {}
    alone = isinstance(next(iter(sizes.values())), int)

    def size(text: str) -> Any:
        if text not in known:
            told = parse(text)
            single = alone or told.constant is not None
            known[text] = told.evaluate(sizes) if single else told.over(sizes)
        return known[text]

    return size


@lru_cache(maxsize=1024)
def _count(shape: tuple[str, ...]) -> Formula:
    return prod(map(parse, shape), start=const(1))


# --- the trace at other sizes ---------------------------------------------------------------------


def resized(graph: OpGraph, sizes: Mapping[str, int]) -> OpGraph:
    """A symbolic trace at other sizes that it reaches; costs are to be filled in anew.

    Raises ValueError where a formula gives no whole number.
    """
    known: dict[str, int] = {}

    def size(text: str) -> int:
        if text not in known:
            known[text] = parse(text).evaluate(sizes)
        return known[text]

    tensors = [
        replace(
            tensor,
            shape=tuple(map(size, tensor.shape_expr or ())),
            bytes=size(tensor.bytes_expr or ""),
        )
        for tensor in graph.tensors
    ]
    meta = replace(
        graph.meta,
        batch=sizes["batch"],
        seq=sizes["seq"],
        past=sizes["past"],
        source=sizes["source"],
    )
    return OpGraph(meta, graph.ops, tensors, graph.edges)


def graph_at(graph: OpGraph, reach: Reach, sizes: Mapping[str, int]) -> OpGraph | None:
    """A trace as it would be at ``sizes``, costs to be filled in anew; None where it cannot tell.

    It cannot where the model would be exported in another way there, where a result would share
    memory that does not do so here, or where a formula gives no whole number.
    """
    if not reaches(graph, reach, sizes):
        return None
    if graph.meta.variables == sizes:
        return graph
    try:
        return resized(graph, sizes)
    except ValueError:  # a formula gives no size there
        return None


def reaches(graph: OpGraph, reach: Reach, sizes: Mapping[str, int]) -> bool:
    """Whether ``graph_at`` has the trace, but for formulas that give no whole number there."""
    here = graph.meta.variables
    if not reach.covers(sizes):
        return False
    return here == sizes or bool(same_memory(graph, *map(reach.run_sizes, (here, sizes))))


def reached(graph: OpGraph, reach: Reach, sizes: "Many") -> "NDArray[np.bool_]":
    """At which of many sizes ``graph_at`` has the trace."""
    import numpy as np

    each = [
        dict(zip(sizes, map(int, one), strict=True)) for one in zip(*sizes.values(), strict=True)
    ]
    identical = np.array([one == graph.meta.variables for one in each], bool)
    covered = np.array([reach.covers(one) for one in each], bool)
    if not graph.meta.symbolic:
        covered &= identical
        return covered
    run = [reach.run_sizes(one) for one in each]
    there = {name: np.array([one[name] for one in run], np.int64) for name in sizes}
    same = np.asarray(same_memory(graph, reach.run_sizes(graph.meta.variables), there))
    if same.ndim == 0 and not same:  # some size, or all of them, is like no other
        return np.array([graph_at(graph, reach, one) is not None for one in each], bool)
    reaches: NDArray[np.bool_] = covered & (identical | same)
    return reaches
