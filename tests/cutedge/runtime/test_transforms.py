"""What masks do to tensors, each set beside plain algebra; what undoes them; what a check misses."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutedge.runtime.interpreter import in_limbs
from cutedge.runtime.transforms import (
    Randomness,
    disembed,
    embed,
    from_integers,
    mix,
    orthogonal,
    reorder,
    residuals,
    restore,
    to_integers,
    unmix,
)
from partition.schemes import false_accept
from tests.support.examples import examples
from tests.support.masking import hidden

RANDOM = Randomness(1)
HEADS, ROWS, INNER, COLUMNS = 2, 6, 5, 7
X, Z = RANDOM.normal((HEADS, ROWS, INNER)), RANDOM.normal((HEADS, INNER, COLUMNS))


def pads() -> torch.Tensor:
    r = RANDOM.normal(X.shape)
    return (X - r) @ Z + r @ Z


def blocks() -> torch.Tensor:
    a, b = RANDOM.factors((HEADS, 1)), RANDOM.factors((HEADS, 1))
    left = embed(X, RANDOM.normal(X.shape), a, -2)
    right = embed(Z, RANDOM.normal(Z.shape), b, -1)
    assert (left @ right).shape == (HEADS, 2 * ROWS, 2 * COLUMNS)
    return disembed(left @ right, a, b)


def rank_one() -> torch.Tensor:
    d, u, v = RANDOM.factors((HEADS, ROWS)), *(RANDOM.normal((HEADS, ROWS)) for _ in range(2))
    m = torch.diag_embed(d) + u[..., None] * v[..., None, :]
    assert torch.allclose(mix(X, d, u, v), m @ X)
    assert torch.allclose(unmix(X, d, u, v), torch.linalg.inv(m) @ X)
    return unmix(mix(X, d, u, v) @ Z, d, u, v)


def turned() -> torch.Tensor:
    a = orthogonal(RANDOM.normal((HEADS, ROWS, ROWS)))
    assert torch.allclose(a @ a.mT, torch.eye(ROWS, dtype=a.dtype).expand_as(a))
    return a.mT @ ((a @ X) @ Z)


def ordered() -> torch.Tensor:
    rows, columns = RANDOM.orders((HEADS, ROWS)), RANDOM.orders((HEADS, COLUMNS))
    inner = RANDOM.orders((HEADS, INNER))
    left = reorder(reorder(X, rows, -2), inner, -1)
    right = reorder(reorder(Z, inner, -2), columns, -1)
    return restore(restore(left @ right, rows, -2), columns, -1)


@pytest.mark.parametrize("way", [pads, blocks, rank_one, turned, ordered])
def test_what_is_recovered_is_the_product(way: Callable[[], torch.Tensor]) -> None:
    assert torch.allclose(way(), X @ Z, atol=1e-12, rtol=1e-10)


@examples(20)
@given(
    st.sampled_from((32, 64)),
    st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8),
    st.integers(1, 3),
)
def test_integers_are_multiplied_as_pythons_are(bits: int, words: list[int], rows: int) -> None:
    dtype, half = torch.int32 if bits == 32 else torch.int64, 2 ** (bits - 1)
    wrapped = [(word + half) % 2**bits - half for word in words]
    one = torch.tensor(wrapped[:4] * rows, dtype=dtype).reshape(2 * rows, 2)
    other = torch.tensor(wrapped[4:], dtype=dtype).reshape(2, 2)
    wanted = [
        [
            (sum(a * b for a, b in zip(row, line, strict=True)) + half) % 2**bits - half
            for line in zip(*other.tolist(), strict=True)
        ]
        for row in one.tolist()
    ]
    assert in_limbs(torch.mm)(one, other).tolist() == wanted


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.int32), (64, torch.int64)])
def test_fixed_point_is_off_by_its_last_digit_and_pads_by_nothing(
    bits: int, dtype: torch.dtype
) -> None:
    """Each of X is off by half of 2^-e, and so is each of Z: a sum of n products by n times that."""
    exponent = bits // 2 - 6
    x, z = (to_integers(t, exponent, dtype) for t in (X[0], Z[0]))
    r = RANDOM.integers(x.shape, dtype)
    multiply = in_limbs(torch.mm)
    found = multiply(x - r, z) + multiply(r, z)  # wraps
    assert torch.equal(found, (x.long() @ z.long()).to(dtype))
    most = float(X.abs().max() + Z.abs().max() + 1) / 2
    off = (from_integers(found, 2 * exponent) - X[0] @ Z[0]).abs().max()
    assert 0 < float(off) <= INNER * most * 2.0**-exponent


def test_production_draws_what_no_seed_gives() -> None:
    assert torch.equal(Randomness(3).normal((9,)), Randomness(3).normal((9,)))
    assert not torch.equal(Randomness().normal((9,)), Randomness().normal((9,)))
    drawn = Randomness(0).normal((100_000,))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    factors = Randomness(0).factors((1000,)).abs()
    assert 0.5 <= float(factors.min()) <= float(factors.max()) <= 2


# --- attacks --------------------------------------------------------------------------------------


def test_the_rows_of_a_softmax_give_their_blocks_away() -> None:
    """Sums of a row: P + R has 1 + sum(R), aR has a sum(R). So a is known, and R, and P with it."""
    p = RANDOM.normal((HEADS, ROWS, ROWS)).softmax(-1)
    sent = embed(p, RANDOM.normal(p.shape), RANDOM.factors((HEADS, 1)), -2)
    upper, lower = sent.chunk(2, -2)
    sums = lower.sum(-1)
    row = sums.abs().argmax(-1, keepdim=True)  # the best conditioned
    a = (sums / (upper.sum(-1) - 1)).gather(-1, row)[..., None]
    assert float((upper - lower / a - p).abs().max()) < 1e-12


def test_one_value_of_a_query_gives_all_of_them() -> None:
    """Q = (Q + R) - t aR, for some number t: one for a head."""
    sent = embed(X, RANDOM.normal(X.shape), RANDOM.factors((HEADS, 1)), -2)
    upper, lower = sent.chunk(2, -2)
    t = ((upper - X) / lower)[:, :1, :1]
    assert float((upper - t * lower - X).abs().max()) < 1e-12


def test_a_single_row_keeps_its_order_and_is_left_plain() -> None:
    """D + u v' is a number there: the largest logit stays the largest, or becomes the least."""
    row = RANDOM.normal((1, 50))
    d, u, v = RANDOM.factors((1,)), RANDOM.normal((1,)), RANDOM.normal((1,))
    sent = mix(row, d, u, v)
    kept = sent.argmax() if float(d + u * v) > 0 else sent.argmin()
    assert kept == row.argmax()
    made = hidden("rank-one").graph
    (last,) = (op for op in made.plain.ops if op.module_path == "lm_head")
    assert last.id not in made.protected
    assert made.plain.inputs(last.id)[0].shape[-2] == 1


# --- what Freivalds' check misses -----------------------------------------------------------------

TRIALS = 2000
TOLERANCE = 1e-9


def missed(change: torch.Tensor, draw: Callable[[tuple[int, int]], torch.Tensor]) -> float:
    """The share of checks that do not see a change of Y."""
    x, z = X[0], Z[0]
    y = x @ z + change
    r = draw((TRIALS, COLUMNS))
    found = residuals(y, x, r, r @ z.mT)
    return float((found.abs().amax(0) <= TOLERANCE).double().mean())


def one_value(size: float) -> torch.Tensor:
    change = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    change[2, 3] = size
    return change


def test_honest_answers_pass() -> None:
    assert missed(one_value(0), RANDOM.signs) == 1 == false_accept(0, TOLERANCE)


@pytest.mark.parametrize("times", [2.0, 1e3])
def test_signs_miss_no_change_of_one_value(times: float) -> None:
    """Beside the change there is rounding, of at most the tolerance: twice as much is always seen."""
    assert missed(one_value(times * TOLERANCE), RANDOM.signs) == 0
    assert false_accept(times * TOLERANCE, TOLERANCE) == 0


def test_signs_miss_half_of_what_cancels() -> None:
    """Two changes of a row that are equal but for their sign are seen where the signs of r differ."""
    change = one_value(1.0)
    change[2, 4] = -1.0
    assert missed(change, RANDOM.signs) == pytest.approx(0.5, abs=0.05)


def test_normal_numbers_miss_as_often_as_stated() -> None:
    """abs(r) < 1/3 in 26.1 % of draws; three standard deviations of 2,000 trials are 2.9 %."""
    stated = false_accept(3 * TOLERANCE, TOLERANCE, "normal")
    assert stated == pytest.approx(0.2611, abs=1e-4)
    found = missed(one_value(3 * TOLERANCE), RANDOM.normal)
    assert found == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("zeros", [30, 31])
def test_zero_divisors_are_missed_as_often_as_stated(zeros: int) -> None:
    """A change of 2^31 mod 2^32 is seen where r is odd: half of 2,000 draws, to 3.4 %."""
    dtype = torch.int32
    x, z = (RANDOM.integers(shape, dtype) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    multiply = in_limbs(torch.mm)
    y = multiply(x, z)
    y[2, 3] += 2**30 if zeros == 30 else -(2**31)
    r = RANDOM.integers((TRIALS, COLUMNS), dtype)
    found = multiply(y, r.mT) - multiply(x, multiply(z, r.mT))
    share = float((found == 0).all(0).double().mean())
    assert share == pytest.approx(false_accept(2**zeros, 0, bits=32), abs=0.034)
