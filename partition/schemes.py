"""Schemes that hide what an accelerator computes on, and what each costs and withstands.

An op that is protected computes ``X W`` with stored weights W, or ``X Z`` of two activations. Home
masks what is sent, the accelerator multiplies what it gets, home recovers the result. A scheme is
data and pure functions of sizes, whole numbers or formulas alike:

============================ ============= ======== =============== ============================
scheme                       what is sent  returns  home            protects
============================ ============= ======== =============== ============================
``one-time-pad``             X - R         x 1      x + y           statistically, by the scale of R
``one-time-pad-mod``         X - R         x 1      3x + 3y         perfectly, with each pad used once
``embedded-additive``        [X + R; aR]   x 4      2 (x + z) + 6y  not a softmax; X up to a scalar
``rank-one``                 DX + u(v'X)   x 1      5 (x + y)       not a single row; no published proof
``orthogonal``               A X           x 1      2 n (x + y)     not X'X, which stays as it is
``permutation``              PX, or XP     x 1      no FLOPs        no value: only its place
``freivalds``                X             x 1      2 (x + y)       nothing; it finds wrong results
============================ ============= ======== =============== ============================

x, z and y are the elements of X, Z and of the result, n its rows; home's figures are FLOPs. Drawing
random numbers is counted nowhere. A bias that is added at home is one more for each of y.

Sources. ``one-time-pad`` and its check: F. Tramer and D. Boneh, Slalom (ICLR 2019), blinding over
integers mod p, here over floats and mod 2^k. ``freivalds``: R. Freivalds, Probabilistic machines can
use less running time (IFIP 1977). ``orthogonal``: the cost is that of GELO (a random invertible
transform of the tokens). ``embedded-additive`` and ``rank-one``: the TEE/GPU system whose runs
docs/reference-figures.md has; ``rank-one`` is inverted by the formula of Sherman and Morrison (1950).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import log2
from operator import mul
from typing import Any, Literal, get_args

Size = Any
"""A number of elements: an int, or a ``tracer.formula.Formula``."""

Shape = tuple[Size, ...]

Side = Literal["left", "right", "result"]
"""Which matrix of a product."""

Operands = Literal["weights", "activations"]
"""What X is multiplied with."""

MANTISSA_BITS: Mapping[str, int] = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
"""Significant bits of a float, the leading one with them (IEEE 754; bfloat16 has eight)."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How one op is protected: a scheme and what is chosen of it."""

    scheme: str
    """One of ``NAMES``."""
    pads: Literal["offline", "online"] = "offline"
    """Of one-time pads: made before the run and stored at home, or during it, where the weights lie
    at home too."""
    scale: float = 16.0
    """Of the float pad: the standard deviation of R over that of X."""
    bits: int = 32
    """Of ``one-time-pad-mod``: the integers are those mod 2^bits; 32 or 64."""
    axis: Literal["tokens", "channels"] = "tokens"
    """What ``permutation`` permutes."""
    check: Literal["", "freivalds"] = ""
    """How home checks the result; empty where it does not."""
    trials: int = 1
    """How many random vectors a check multiplies by."""

    @property
    def checks(self) -> bool:
        """Whether home checks the result."""
        return "freivalds" in (self.scheme, self.check)

    @property
    def on_channels(self) -> bool:
        """Whether it permutes the channels that are summed over: the result comes as it is."""
        return self.scheme == "permutation" and self.axis == "channels"

    @property
    def dtype(self) -> str | None:
        """What is sent and comes back, where that is no float."""
        return f"int{self.bits}" if self.scheme == "one-time-pad-mod" else None

    def __str__(self) -> str:
        told = [self.scheme]
        told += ["online pads"] if self.pads == "online" else []
        told += [self.axis] if self.scheme == "permutation" else []
        told += [f"mod 2^{self.bits}"] if self.dtype else []
        told += [f"scale {self.scale:g}"] if self.scale != 16 else []
        told += ["freivalds"] if self.check else []
        told += [f"{self.trials} trials"] if self.trials > 1 else []
        return "+".join(told)


@dataclass(frozen=True, slots=True)
class Matrices:
    """The shapes of a product: ``left`` x ``right`` -> ``result``, batches in front.

    Of a product with stored weights ``right`` are the weights, as the op reads them.
    """

    left: Shape
    right: Shape
    result: Shape
    inner: Size
    """The length of each sum."""

    @property
    def flops(self) -> Size:
        """Of the product: two for each multiply-accumulate."""
        return 2 * elements(self.result) * self.inner


def elements(shape: Shape) -> Size:
    """How many there are.

    >>> elements((2, 3))
    6
    """
    return reduce(mul, shape, 1)


def _rows(shape: Shape) -> Size:
    return shape[-2] if len(shape) > 1 else 1


def _doubled(shape: Shape, side: Side) -> Shape:
    """[X + R; aR] below one another, [Z + S, bS] beside one another; their product has both."""
    *batch, rows, columns = shape
    if side == "left":
        return (*batch, 2 * rows, columns)
    return (*batch, rows, 2 * columns) if side == "right" else (*batch, 2 * rows, 2 * columns)


def _each(flops: int) -> Callable[[Shape], Size]:
    """So many FLOPs an element."""
    return lambda shape: flops * elements(shape)


def _transformed(shape: Shape) -> Size:
    """An n x n matrix times n rows: 2 n FLOPs an element."""
    return 2 * _rows(shape) * elements(shape)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to protect a product."""

    name: str
    operands: Operands
    """What is multiplied with X: stored weights, or another activation."""
    mask: Callable[[Shape], Size] | None
    """The shape of an operand -> the FLOPs of masking it; None where it is sent as it is."""
    recover: Callable[[Shape], Size] | None
    """The shape of the plain result -> the FLOPs of recovering it."""
    key: Callable[[Shape, Side], Shape] = lambda shape, side: ()
    """The shape of an operand -> of what home remembers of its mask until it recovers."""
    sent: Callable[[Shape, Side], Shape] = lambda shape, side: shape
    """The shape of a matrix -> that of what stands for it away from home."""
    factor: int = 1
    """FLOPs away over those of the plain product."""
    bias_at_home: bool = False
    """Whether what a product adds beside is added at home, after the recovery: where it would be
    taken for a part of the product, or is no integer."""
    pads: bool = False
    """Whether a pad as large as X, and one as large as the result, can be made before the run."""
    least_rows: int = 1
    """Of fewer rows it hides nothing: such an op is not masked."""
    withstands: str = ""
    """What it is shown to withstand; empty where that is nothing that a secret could rest on."""
    attack: Callable[[Side, str | None], str] = lambda side, label: ""
    """Which matrix it is, and its label -> the attack that recovers it from what is seen, in words;
    empty where no listed one does."""
    remains: str = ""
    """What is seen through it even so, in words."""


def _embedded_attack(side: Side, label: str | None) -> str:
    if label == "attention_probs" and side == "left":
        return "the rows of a softmax sum to one: a = sum(aR) / (sum(P + R) - 1), and P with it"
    if side == "result":
        return "its four blocks give it up to two scalars"
    return "its two blocks give it up to one scalar"


def _diagonal_attack(side: Side, label: str | None) -> str:
    if label == "attention_probs":
        return "zeros stay zeros: how many a row has under a causal mask tells its place"
    return ""


def _permuted_attack(side: Side, label: str | None) -> str:
    return "each value is there as it is, in another place"


def _key_of(words: Callable[[Size, Size, Side], Size]) -> Callable[[Shape, Side], Shape]:
    """A key of so many elements for each matrix: a function of its rows and columns."""
    return lambda shape, side: (*shape[:-2], words(_rows(shape), shape[-1], side))


_SCHEMES = (
    Scheme(
        "one-time-pad",
        "weights",
        _each(1),
        _each(1),
        lambda shape, side: shape,
        pads=True,
        remains="log2(1 + 1 / scale^2) / 2 bits of each value",
    ),
    Scheme(
        "one-time-pad-mod",
        "weights",
        _each(3),
        _each(3),
        lambda shape, side: shape,
        bias_at_home=True,
        pads=True,
        withstands="whoever sees all that is sent in all runs, as long as each pad is used once",
    ),
    Scheme(
        "embedded-additive",
        "activations",
        _each(2),
        _each(6),
        _key_of(lambda rows, columns, side: 1),
        sent=_doubled,
        factor=4,
        attack=_embedded_attack,
    ),
    Scheme(
        "rank-one",
        "weights",
        _each(5),
        _each(5),
        _key_of(lambda rows, columns, side: 3 * rows),
        bias_at_home=True,
        least_rows=2,
        remains="each row up to a factor and a share of one row that all have",
    ),
    Scheme(
        "rank-one",
        "activations",
        _each(2),
        _each(2),
        _key_of(lambda rows, columns, side: 2 * (columns if side == "right" else rows + columns)),
        least_rows=2,
        attack=_diagonal_attack,
        remains="which values are zero, and all values up to a factor for each row and column",
    ),
    Scheme(
        "orthogonal",
        "weights",
        _transformed,
        _transformed,
        _key_of(lambda rows, columns, side: rows * rows),
        bias_at_home=True,
        least_rows=2,
        remains="X'X, the products of its channels",
    ),
    *(
        Scheme(
            "permutation",
            operands,
            _each(0),
            _each(0),
            _key_of(lambda rows, columns, side: columns if side == "right" else rows),
            least_rows=2,
            attack=_permuted_attack,
        )
        for operands in get_args(Operands)
    ),
    *(Scheme("freivalds", operands, None, None) for operands in get_args(Operands)),
)

SCHEMES: Mapping[tuple[str, Operands], Scheme] = {(one.name, one.operands): one for one in _SCHEMES}
"""(name, what it multiplies) -> scheme."""

NAMES = tuple(dict.fromkeys(one.name for one in _SCHEMES))
"""Of all schemes."""


def check_flops(matrices: Matrices, trials: int, *, stored: bool) -> Size:
    """Of Freivalds' check at home: Y r against X (Z r), ``trials`` times.

    Z r of ``stored`` weights is made before. Of [m, k] x [k, n]: 2 m n + 2 m k FLOPs, and 2 k n
    more where Z is an activation; m comparisons.

    >>> check_flops(Matrices((4, 8), (8, 2), (4, 2), 8), 1, stored=True)
    84
    """
    x, z, y = (elements(shape) for shape in (matrices.left, matrices.right, matrices.result))
    return trials * (2 * (x + y if stored else x + y + z) + elements(matrices.result[:-1]))


def false_accept(
    change: float, tolerance: float, distribution: str = "signs", trials: int = 1, *, bits: int = 0
) -> float:
    """The chance that a check misses one value that is off by ``change``.

    ``signs``: r of 1 and -1, so that a change over the tolerance is always found, alone. Of several
    changes in a row that cancel one another, half are missed by each trial. ``normal``: r standard
    normal; a change is missed where abs(r) is below tolerance / change. With ``bits`` the integers
    are those mod 2^bits, which are not rounded, and r is uniform (``one-time-pad-mod``): a change by
    an odd number times 2^j is missed where r is a multiple of 2^(bits - j), a zero divisor, which
    happens once in 2^(bits - j). Of several changes in a row that with the lowest j counts: what
    cancels is found as often. Below the tolerance nothing is seen: 1.

    >>> false_accept(1.0, 0.5), false_accept(0.1, 0.5)
    (0.0, 1.0)
    >>> false_accept(2**31, 0, bits=32)  # r even: half of them
    0.5
    """
    from math import erf, sqrt

    if bits:
        whole = int(change) % 2**bits
        if whole == 0:
            return 1.0
        zeros = (whole & -whole).bit_length() - 1
        return float(2.0 ** (zeros - bits)) ** trials
    if abs(change) <= tolerance:
        return 1.0
    missed = 0.0 if distribution == "signs" else erf(tolerance / abs(change) / sqrt(2))
    return float(missed**trials)


@dataclass(frozen=True, slots=True)
class PadBits:
    """What a float pad hides of each value, and what it costs in accuracy."""

    leaked_bits: float
    """What is told of a value by what is sent."""
    lost_bits: float
    """By how many bits the rounding of what is sent is coarser than that of the value."""
    left_bits: float
    """Of the significant bits of the dtype those that are left; below 0 where nothing is."""


def pad_bits(dtype: str, scale: float) -> PadBits:
    """What a normal pad ``scale`` times as wide as a normal value does in a float dtype.

    The channel X - R has a signal of 1 and noise of scale^2: it tells log2(1 + 1 / scale^2) / 2
    bits (Shannon 1948). X - R is sqrt(1 + scale^2) times as wide, and so is its rounding.

    >>> found = pad_bits("bfloat16", 16)
    >>> round(found.leaked_bits, 4), round(found.lost_bits, 2), round(found.left_bits, 2)
    (0.0028, 4.0, 4.0)
    """
    lost = log2(1 + scale**2) / 2
    return PadBits(log2(1 + 1 / scale**2) / 2, lost, MANTISSA_BITS[dtype] - lost)
