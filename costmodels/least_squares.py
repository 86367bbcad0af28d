"""Least squares with values of 0 or more, and which of them the rows determine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]

_DEGENERATE = 1e-6
"""Of singular values, against the largest: columns are one another's multiples but for rounding."""

_COLLINEAR = 1 / 30
"""Of singular values, against the largest: the usual mark from which standard errors grow
(Belsley, Kuh and Welsch, Regression Diagnostics, 1980: condition indices of 30)."""


def _scaled(design: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The weighted columns at length 1 (a column of nothing stays that), and their lengths."""
    weighted = design * weights[:, None]
    lengths = np.linalg.norm(weighted, axis=0)
    lengths[lengths == 0] = 1
    return weighted / lengths, lengths


def solve(design: Floats, measured: Floats, weights: Floats) -> Floats:
    """The values of 0 or more under which weighted squares of what ``design`` misses are least.

    >>> solve(np.array([[1.0, 1], [1, 2], [1, 3]]), np.array([3.0, 5, 7]), np.ones(3)).round(9)
    array([1., 2.])
    """
    scaled, lengths = _scaled(design, weights)
    solution: Floats = nnls(scaled, measured * weights)[0]
    return solution / lengths


def identified(
    design: Floats,
    weights: Floats,
    names: Sequence[str],
    of: str,
    warnings: list[str],
    *,
    no_rows: str,
    measure: str,
) -> list[bool]:
    """Which terms the rows of a design determine; warns of those that they do not, or hardly.

    A combination of columns that comes to nothing can be added to any solution: the terms in it
    are not determined. ``no_rows`` says that no row has a term, ``measure`` what would help.
    """
    scaled, _ = _scaled(design, weights)
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    share = singular / singular[0]
    part_of_nothing = np.sum(directions[share < _DEGENERATE] ** 2, axis=0)
    known = [bool(part < 1e-6) for part in part_of_nothing]
    empty = [not column.any() for column in design.T]
    for name, is_empty in zip(names, empty, strict=True):
        if is_empty:
            warnings.append(f"{of}: {no_rows.format(name)}")
    mixed = [
        name
        for name, is_known, is_empty in zip(names, known, empty, strict=True)
        if not is_known and not is_empty
    ]
    if mixed:
        warnings.append(
            f"{of}: what was measured cannot tell {listed(mixed)} apart, so not one of them is "
            f"given: {measure}"
        )
    for direction in directions[(share >= _DEGENERATE) & (share < _COLLINEAR)]:
        close = [name for name, part in zip(names, direction, strict=True) if abs(part) > 0.3]
        warnings.append(
            f"{of}: what was measured hardly tells {listed(close)} apart: sizes that differ more "
            "would"
        )
    return known


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def standard_errors(design: Floats, measured: Floats, weights: Floats, values: Floats) -> Floats:
    """Of the terms that are more than 0; 0 for the others, which a bound holds."""
    errors = np.zeros(len(values))
    free = values > 0
    scaled, lengths = _scaled(design[:, free], weights)
    spare = max(len(measured) - int(free.sum()), 1)
    variance = float(np.sum((weights * (measured - design @ values)) ** 2)) / spare
    covariance = np.linalg.pinv(scaled.T @ scaled) * variance
    errors[free] = np.sqrt(np.maximum(np.diag(covariance), 0)) / lengths
    return errors
