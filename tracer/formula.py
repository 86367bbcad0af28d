"""Exact integer formulas in the sizes of a trace: the closed form of a size or of a cost.

A formula is a polynomial with exact coefficients whose unknowns ("atoms") are variables or an
integer function of other formulas: ``min``, ``max``, ``//`` (floor division) and ``%``. The
text is a Python expression, as tables keep it (``4096*batch*seq + 8*batch``), and parses back to
the same formula.

The module stands alone on purpose: the partition commands sum and print formulas, and a computer
algebra system would cost them more time at import than all of their work.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLES = ("batch", "past", "seq", "source")
"""What a formula may speak of: sequences in a batch, tokens cached, new, and encoded before."""

Number = int | Fraction
Monomial = tuple[tuple["str | Function", int], ...]


@dataclass(frozen=True, slots=True)
class Function:
    """An integer function that no polynomial can write out, used as an unknown of one."""

    name: str
    """``min``, ``max``, ``//`` or ``%``."""
    args: tuple["Formula", ...]

    def __str__(self) -> str:
        if self.name in ("min", "max"):
            return f"{self.name}({', '.join(map(str, self.args))})"
        left, right = self.args
        dividend = f"({left})" if len(left.terms) > 1 else str(left)
        # a // b*c would divide by b alone
        divisor = str(right) if _binds(right) else f"({right})"
        return f"({dividend} {self.name} {divisor})"


def _binds(divisor: "Formula") -> bool:
    """Whether the text of a divisor is one factor: a number, or a power of an atom."""
    if len(divisor.terms) != 1:
        return False
    ((monomial, coefficient),) = divisor.terms
    return isinstance(coefficient, int) and len(monomial) + (abs(coefficient) != 1) <= 1


def _whole(atom: "str | Function") -> bool:
    """Whether an atom's value is known to be a whole number: a minimum of halves may not be."""
    return isinstance(atom, str) or atom.name == "//" or all(a.is_whole for a in atom.args)


_DIVISIONS: Mapping[str, Callable[..., Any]] = {"//": operator.floordiv, "%": operator.mod}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {"min": min, "max": max, **_DIVISIONS}


def _plain(value: Number) -> Number:
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


@dataclass(frozen=True, slots=True)
class Formula:
    """A polynomial over atoms. Build with ``var``, ``const``, ``parse`` and arithmetic."""

    terms: tuple[tuple[Monomial, Number], ...]
    """(powers of atoms, coefficient), the highest total power first, no zero coefficient."""

    def __add__(self, other: "Formula | Number") -> "Formula":
        sums = dict(self.terms)
        for monomial, coefficient in formula(other).terms:
            sums[monomial] = sums.get(monomial, 0) + coefficient
        return _from_terms(sums)

    def __mul__(self, other: "Formula | Number") -> "Formula":
        products: dict[Monomial, Number] = {}
        for left, a in self.terms:
            for right, b in formula(other).terms:
                powers = dict(left)
                for atom, power in right:
                    powers[atom] = powers.get(atom, 0) + power
                monomial = tuple(sorted(powers.items(), key=_atom_order))
                products[monomial] = products.get(monomial, 0) + a * b
        return _from_terms(products)

    def __sub__(self, other: "Formula | Number") -> "Formula":
        return self + formula(other) * -1

    def __rsub__(self, other: Number) -> "Formula":
        return formula(other) - self

    __radd__ = __add__
    __rmul__ = __mul__

    def __pow__(self, power: int) -> "Formula":
        if power < 0:
            raise ValueError(f"({self})**{power} is no polynomial")
        return reduce(operator.mul, [self] * power, const(1))

    def __floordiv__(self, other: "Formula | Number") -> "Formula":
        divisor = formula(other)
        if divisor.constant is not None:
            quotient = self * Fraction(1, divisor.constant)
            if quotient.is_whole:
                return quotient
        return _function("//", self, divisor)

    def __mod__(self, other: "Formula | Number") -> "Formula":
        divisor = formula(other)
        if divisor.constant == 0:
            raise ZeroDivisionError(f"({self}) % 0")
        return _function("%", self, divisor)

    @property
    def constant(self) -> Number | None:
        """The value when no variable is left, else None."""
        if not self.terms:
            return 0
        monomial, coefficient = self.terms[0]
        return None if monomial else coefficient

    @property
    def is_whole(self) -> bool:
        """Whether the value is known to be a whole number whatever the variables are."""
        return all(isinstance(c, int) and all(_whole(a) for a, _ in m) for m, c in self.terms)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The value at e.g. ``{"batch": 1, "seq": 1024}``.

        Raises KeyError for a variable without a value and ValueError where the formula gives no
        whole number there (a size that needs an even ``seq``, say).
        """
        total = self._value(values)
        if isinstance(total, Fraction):
            raise ValueError(f"{self} is {total} at {dict(values)}: not a whole number")
        return total

    def over(self, values: "Mapping[str, NDArray[np.int64]]") -> "NDArray[np.int64]":
        """The values at many sizes at once, ``evaluate`` of each.

        Where 64 bits might not hold a sum on the way, or a coefficient is a fraction, each is
        evaluated by itself. Raises as ``evaluate`` does, and OverflowError where a value itself is
        beyond 64 bits.
        """
        import numpy as np

        most = {name: max(1, int(many.max(initial=0))) for name, many in values.items()}
        length = len(next(iter(values.values())))
        bound = self._bound(most)
        if bound is not None and bound < 2**63:
            with np.errstate(all="raise"):
                exact: NDArray[np.int64] = np.zeros(length, np.int64) + self._many(values)
            return exact
        each = [{name: int(many[n]) for name, many in values.items()} for n in range(length)]
        return np.array([self.evaluate(one) for one in each], dtype=np.int64)

    def _bound(self, most: Mapping[str, int]) -> int | None:
        """What no sum on the way to the value exceeds, variables being from 0 to ``most``.

        None where there is a fraction.
        """
        total = 0
        for monomial, coefficient in self.terms:
            if isinstance(coefficient, Fraction):
                return None
            product = abs(coefficient)
            for atom, power in monomial:
                if isinstance(atom, str):
                    base: int | None = most[atom]
                else:
                    bounds = [arg._bound(most) for arg in atom.args]
                    base = None if None in bounds else max(b for b in bounds if b is not None)
                if base is None:
                    return None
                product *= max(base, 1) ** power
            total += product
        return total

    def _many(self, values: "Mapping[str, NDArray[np.int64]]") -> Any:
        import numpy as np

        functions: Mapping[str, Callable[..., Any]] = {
            "min": np.minimum,
            "max": np.maximum,
            **_DIVISIONS,
        }
        total: Any = 0
        for monomial, coefficient in self.terms:
            product: Any = coefficient
            for atom, power in monomial:
                if isinstance(atom, str):
                    base = values[atom]
                else:
                    base = reduce(functions[atom.name], (arg._many(values) for arg in atom.args))
                product = product * base**power
            total = total + product
        return total

    def _value(self, values: Mapping[str, int]) -> Number:
        total: Number = 0
        for monomial, coefficient in self.terms:
            product: Number = coefficient
            for atom, power in monomial:
                if isinstance(atom, str):
                    base: Number = values[atom]
                else:
                    base = _FUNCTIONS[atom.name](*(arg._value(values) for arg in atom.args))
                product = product * base**power
            total = total + product
        return _plain(total)

    def degree(self, variable: str) -> int:
        """The growth order in ``variable`` as it becomes large; 0 for a constant."""
        return max((sum(p * _degree(a, variable) for a, p in m) for m, _ in self.terms), default=0)

    def growth(self, variables: Sequence[str]) -> list[tuple[int, ...]]:
        """The powers of ``variables`` in the terms that no other outgrows, the highest first.

        ``8*past*seq + 8*seq**2 + seq`` grows with past*seq and with seq**2: in (past, seq) that is
        ``[(1, 1), (0, 2)]``. Of a constant it is empty.
        """
        terms = {
            tuple(sum(p * _degree(a, v) for a, p in monomial) for v in variables)
            for monomial, _ in self.terms
        }

        def outgrown(powers: tuple[int, ...]) -> bool:
            return any(
                powers != other and all(p <= o for p, o in zip(powers, other, strict=True))
                for other in terms
            )

        return sorted((t for t in terms if any(t) and not outgrown(t)), reverse=True)

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [str(a) if p == 1 else f"{a}**{p}" for a, p in monomial]
            count = abs(coefficient.numerator)
            if count != 1 or not factors:
                factors.insert(0, str(count))
            text = "*".join(factors)
            if coefficient.denominator != 1:
                text = f"({text})/{coefficient.denominator}"
            sign = "-" if coefficient < 0 else "+"
            parts.append(f" {sign} {text}" if parts else (f"-{text}" if sign == "-" else text))
        return "".join(parts) or "0"


def _atom_order(item: tuple["str | Function", int]) -> tuple[str, int]:
    return str(item[0]), item[1]


def _degree(atom: "str | Function", variable: str) -> int:
    if isinstance(atom, str):
        return int(atom == variable)
    degrees = [arg.degree(variable) for arg in atom.args]
    match atom.name:
        case "min":
            return min(degrees)
        case "max":
            return max(degrees)
        case "//":
            return max(degrees[0] - degrees[1], 0)
        case _:  # a remainder grows no faster than its divisor
            return min(degrees)


def _from_terms(terms: Mapping[Monomial, Number]) -> Formula:
    kept = [(monomial, _plain(c)) for monomial, c in terms.items() if c]
    if len(kept) > 1:
        kept.sort(key=lambda term: (-sum(p for _, p in term[0]), [_atom_order(f) for f in term[0]]))
    return Formula(tuple(kept))


def _function(name: str, *args: Formula) -> Formula:
    values = [arg.constant for arg in args]
    if all(value is not None for value in values):
        return const(_FUNCTIONS[name](*values))
    return Formula(((((Function(name, args), 1),), 1),))


def const(value: Number) -> Formula:
    """The formula of one number."""
    value = _plain(value)
    return Formula((((), value),) if value else ())


def var(name: str) -> Formula:
    """The formula of one variable."""
    return Formula(((((name, 1),), 1),))


def formula(value: "Formula | Number") -> Formula:
    """``value`` as a formula, whatever it was."""
    return value if isinstance(value, Formula) else const(value)


def minimum(*args: Formula) -> Formula:
    """The least of the arguments, as a formula."""
    return _function("min", *args)


def maximum(*args: Formula) -> Formula:
    """The greatest of the arguments, as a formula."""
    return _function("max", *args)


def least(one: Any, other: Any) -> Any:
    """The smaller of two numbers, or as a formula where one of them is a formula."""
    return _one_of("min", one, other)


def greatest(one: Any, other: Any) -> Any:
    """The larger of two numbers, or as a formula where one of them is a formula."""
    return _one_of("max", one, other)


def _one_of(name: str, one: Any, other: Any) -> Any:
    if not (isinstance(one, Formula) or isinstance(other, Formula)):
        return _FUNCTIONS[name](one, other)
    one, other = formula(one), formula(other)
    return one if one == other else _function(name, one, other)


_OPERATORS: Mapping[type[ast.operator], Callable[[Formula, Formula], Formula]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@lru_cache(maxsize=65536)
def parse(text: str) -> Formula:
    """The formula a table's text stands for. Raises ValueError for anything else."""
    try:
        return _convert(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"not a formula: {text!r}") from error


def _convert(node: ast.expr) -> Formula:
    match node:
        case ast.Constant():
            return const(_integer(node))
        case ast.Name(id=name) if name in VARIABLES:
            return var(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _convert(operand) * -1
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _convert(left) ** _integer(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _convert(left) * Fraction(1, _integer(right))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_convert(left), _convert(right))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]):
            if len(args) > 1:
                return _function(name, *map(_convert, args))
    raise ValueError(ast.dump(node))


def _integer(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
    raise ValueError(ast.dump(node))
