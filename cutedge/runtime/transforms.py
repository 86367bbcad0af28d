"""What masks do to tensors, as pure functions, by the schemes of ``partition.schemes``."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, prod

import torch


class Randomness:
    """Random numbers for masks: of the system, which nobody foresees; of a seed for tests alone."""

    def __init__(self, seed: int | None = None) -> None:
        self._bytes = os.urandom if seed is None else random.Random(seed).randbytes

    def integers(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Uniform over all numbers of an integer dtype."""
        count = prod(shape)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        drawn = bytearray(self._bytes(count * dtype.itemsize))
        return torch.frombuffer(drawn, dtype=dtype).reshape(tuple(shape))

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """Between 0 and 1, without these."""
        return (self.integers(shape, torch.int32).double() + (2**31 + 0.5)) / 2**32

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal, by Box and Muller."""
        one, other = self.uniform(shape), self.uniform(shape)
        return one.log_().mul_(-2).sqrt_() * other.mul_(2 * pi).cos_()

    def signs(self, shape: Sequence[int]) -> torch.Tensor:
        """1 or -1."""
        return (self.integers(shape, torch.int8) & 1).double() * 2 - 1

    def factors(self, shape: Sequence[int]) -> torch.Tensor:
        """From 1/2 to 2, or from -2 to -1/2: none makes a value much larger or smaller."""
        return self.signs(shape) * (0.5 + 1.5 * self.uniform(shape))

    def orders(self, shape: Sequence[int]) -> torch.Tensor:
        """Of each line along the last axis a permutation."""
        return self.integers(shape, torch.int64).argsort(-1)


# --- schemes, of [..., rows, columns] -------------------------------------------------------------


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the dtype that home computes in: float32 where it has fewer bits."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def to_integers(x: torch.Tensor, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    """Fixed point: x times 2^exponent, rounded. Each value is off by 2^-exponent / 2 at most."""
    return (x.double() * 2.0**exponent).round().to(dtype)


def from_integers(y: torch.Tensor, exponent: int) -> torch.Tensor:
    """What a sum of products of such integers stands for; ``exponent`` is that of both together."""
    return y.double() * 2.0**-exponent


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """What the integers of a tensor stand for, once no pad is in them."""

    exponent: int
    """Each is a number times 2^exponent."""
    added: torch.Tensor | None = None
    """What home adds to the numbers: a bias."""

    def value(self, integers: torch.Tensor) -> torch.Tensor:
        """The numbers, as float64."""
        found = from_integers(integers, self.exponent)
        return found if self.added is None else found + self.added


def embed(x: torch.Tensor, noise: torch.Tensor, factor: torch.Tensor, axis: int) -> torch.Tensor:
    """[x + noise; factor noise], along an axis; ``factor`` is one for each batch: [..., 1]."""
    return torch.cat([x + noise, factor[..., None] * noise], axis)


def disembed(blocks: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """X Z of the blocks of [X + R; aR] [Z + S, bS]: B11 - B12 / b - B21 / a + B22 / (ab)."""
    upper, lower = blocks.chunk(2, -2)
    (first, second), (third, fourth) = upper.chunk(2, -1), lower.chunk(2, -1)
    a, b = a[..., None], b[..., None]
    return first - second / b - third / a + fourth / (a * b)


def mix(x: torch.Tensor, d: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(D + u v') X, with a number of d, u and v for each row."""
    return d[..., None] * x + u[..., None] * (v[..., None, :] @ x)


def unmix(y: torch.Tensor, d: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(D + u v')^-1 Y, by Sherman and Morrison."""
    y, u = y / d[..., None], u / d
    share = (v[..., None, :] @ y) / (1 + (v * u).sum(-1)[..., None, None])
    return y - u[..., None] * share


def reorder(x: torch.Tensor, order: torch.Tensor, axis: int) -> torch.Tensor:
    """The rows (-2) or columns (-1) of each batch in another order."""
    places = order.long()[..., None] if axis == -2 else order.long()[..., None, :]
    return torch.take_along_dim(x, places, axis)


def restore(y: torch.Tensor, order: torch.Tensor, axis: int) -> torch.Tensor:
    """Undo ``reorder``."""
    return reorder(y, order.argsort(-1), axis)


def orthogonal(rows: torch.Tensor) -> torch.Tensor:
    """A random orthogonal matrix, of a square one of normal numbers (Stewart 1980)."""
    q, r = torch.linalg.qr(rows)
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def residuals(
    y: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    product: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Freivalds: Y r - X (Z r), for each row of ``r`` and of Y; 0 but for rounding where Y is X Z.

    ``product`` has Z r for each row of ``r``. Integers wrap, as do those of Y.
    """
    off = y @ r.mT - x @ product.mT
    return off if bias is None else off - (r @ bias)
