"""Where a symbolic trace holds: what torch assumed about sizes while it followed the code."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from tracer.capture.errors import Untraceable
from tracer.capture.inputs import Axis


def symbols(
    exported: ExportedProgram, inputs: Mapping[str, Sequence[Axis]]
) -> dict[sympy.Symbol, str]:
    """Torch's symbol -> the size that it stands for. ``inputs`` are the tensor inputs, in order."""
    named: dict[sympy.Symbol, str] = {}
    for tensor, axes in zip(user_tensors(exported), inputs.values(), strict=True):
        for size, axis in zip(tensor.shape, axes, strict=True):
            if isinstance(axis, str) and isinstance(size, torch.SymInt):
                if size.node.expr.is_Symbol:  # else the code fixed it, at the example's size
                    named[size.node.expr] = axis
    return named


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
) -> list[str]:
    """What must hold of the sizes for the trace to hold, where it does not always do.

    Torch follows the branch that the example sizes take and notes the condition. One that is true
    at every size tried within ``bounds`` is taken for always true. Raises Untraceable for one that
    is false at ``sizes``: there, the code takes another branch.
    """
    if fixed := [name for name in bounds if name not in named.values()]:
        raise Untraceable(ValueError(f"the code fixes {' and '.join(fixed)}"))
    # A size of one is traced as another: it stands for two and more.
    here = {name: max(sizes[name], least) for name, (least, _) in bounds.items()}
    points = [here, *_samples(bounds)]
    found = []
    for guard in _guards(exported):
        values = [_holds(guard, named, point) for point in points]
        if not values[0]:
            text = _text(guard, named)
            problem = f"its code takes another way where {text} does not hold"
            raise Untraceable(ValueError(problem), text)
        if not all(values):
            found.append(_text(guard, named))
    return sorted(set(found), key=lambda text: (len(text), text))


def assumptions(exported: ExportedProgram, named: Mapping[sympy.Symbol, str]) -> tuple[str, ...]:
    """All that torch noted to hold of the sizes, in sympy's words."""
    return tuple(sorted({_text(guard, named) for guard in _guards(exported)} - {"True"}))


def _guards(exported: ExportedProgram) -> list[Any]:
    """The distinct conditions that torch noted."""
    sizes = (size for tensor in user_tensors(exported) for size in tensor.shape)
    environment = next((s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)), None)
    if environment is None:
        return []
    return list(dict.fromkeys(environment.replace(guard.expr) for guard in environment.guards))


def _samples(bounds: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Sizes within the bounds: the ends, powers of two, what is beside them, and odd ones."""
    steps = {2**n + d for n in range(1, 21) for d in (-1, 0, 1)} | {7, 11, 100, 1000, 10_000}
    axes = {
        name: sorted({least, least + 1, most - 1, most, *(s for s in steps if least <= s <= most)})
        for name, (least, most) in bounds.items()
    }
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


def _text(guard: Any, named: Mapping[sympy.Symbol, str]) -> str:
    names = {symbol: sympy.Symbol(name) for symbol, name in named.items()}
    return str(guard.xreplace(names))
