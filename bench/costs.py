"""How many matrix products a second are costed, a million shapes at a time.

Run it with ``make bench``; it prints and judges nothing. The yardstick is what numpy takes for
one product of arrays as long, since machines differ.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from costmodels.arrays import Options, gemm_cost
from costmodels.devices import load_device

RUNS = 7
SHAPES = 1_000_000

CHIP, SYSTOLIC = load_device("chip-8x8").array, load_device("systolic-8x8").array
CASES = {
    "fixed tiles": (CHIP, {}),
    "fixed tiles, every option": (CHIP, {"options": Options(4, 2.5, 0.9, 5.5, 4)}),
    "systolic": (SYSTOLIC, {}),
    "systolic, double-buffered": (SYSTOLIC, {"overlap": "double-buffered"}),
}


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds, after a run to warm up."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    sizes = np.random.default_rng(0).integers(1, 8192, (3, SHAPES))
    yardstick = seconds(lambda: sizes[0] * sizes[1])
    print(f"\n{SHAPES:,} matrix products at a time, median of {RUNS} runs\n")
    print(f"{'ratio':>6} {'a second':>12}  costs / one numpy product")
    for name, (array, options) in CASES.items():
        taken = seconds(lambda array=array, options=options: gemm_cost(array, *sizes, **options))
        print(f"{taken / yardstick:6.0f} {SHAPES / taken:12,.0f}  {name}")


if __name__ == "__main__":
    main()
