"""How fast costs are: a million matrix products at a time, and 126 layers on five devices.

Run it with ``make bench``; it prints and judges nothing. The yardstick is what numpy takes for
one product of a million numbers, since machines differ.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from costmodels.area import load_area
from costmodels.array_memory import Buffers, memory_cost
from costmodels.arrays import Options, gemm_cost
from costmodels.designs import Bandwidth, Products, Space, pareto, runs
from costmodels.devices import load_device
from costmodels.energy import load_energy
from costmodels.roofline import time_ops
from tracer.graph import OpGraph
from tracer.serde import read_trace

RUNS = 7
SHAPES = 1_000_000

CHIP, SYSTOLIC = load_device("chip-8x8").array, load_device("systolic-8x8").array
BUFFERS = Buffers(2**16, 2**16, 2**16, Fraction(10))
CASES = {
    "fixed tiles": (CHIP, {}),
    "fixed tiles, every option": (CHIP, {"options": Options(4, 2.5, 0.9, 5.5, 4)}),
    "systolic": (SYSTOLIC, {}),
    "systolic, double-buffered": (SYSTOLIC, {"overlap": "double-buffered"}),
}


RUN = (  # m, k, n, how many of an op, how many ops
    (1, 2048, 2048, 1, 44),
    (1, 2048, 256, 1, 44),
    (1, 2048, 5632, 1, 44),
    (1, 5632, 2048, 1, 22),
    (1, 64, 1, 32, 22),
    (1, 1, 64, 32, 22),
    (1, 2048, 32000, 1, 1),
)
"""The matrix products of one token of tinyllama-1.1b."""

SPACE = Space(
    ("os", "ws", "is"),
    tuple(range(4, 84, 4)),
    tuple(range(4, 84, 4)),
    (1, 4),
    tuple((Fraction(2**n),) * 3 for n in range(10)),
    tuple(Bandwidth(Fraction(10**8) * n) for n in (2, 8, 32, 64, 128, 256, 512)),
    tuple(Fraction(10**8) * n for n in (1, 2, 3, 5, 8, 10)),
)
"""A million designs."""

DEVICES = ("rtx-4090", "h100-sxm", "tee-sgx", "ryzen-7950x", "chip-8x8")
DEEP = "llama-3.1-405b"


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
    for name, (array, options) in CASES.items():
        if array.dataflow != "fixed":
            taken = seconds(partial(memory_cost, array, BUFFERS, *sizes, **options))
            print(
                f"{taken / yardstick:6.0f} {SHAPES / taken:12,.0f}  {name}, with buffers and a DRAM"
            )
    products = Products(*(np.array(axis) for axis in zip(*RUN, strict=True)))
    energy, area = load_energy("horowitz-45nm")[0], load_area("dally-45nm")

    def best() -> None:
        made = runs(products, SPACE, energy)
        pareto(made.seconds, made.joules, SPACE.square_millimetres(area))

    taken = seconds(best)
    print(
        f"{taken / yardstick:6.0f} {SPACE.size / taken:12,.0f}  designs of a chip for one token of "
        f"tinyllama-1.1b, of {SPACE.size:,}, with their Pareto set"
    )
    deep = traced(DEEP)
    devices = [load_device(name) for name in DEVICES]
    taken = seconds(lambda: [time_ops(deep, device) for device in devices])
    assert "torch" not in sys.modules
    print(f"\n{'ratio':>6} {'seconds':>12}  costing / one numpy product")
    print(f"{taken / yardstick:6.0f} {taken:12.3f}  {DEEP}, {len(deep.ops):,} ops, on 5 devices")


def traced(model: str) -> OpGraph:
    """A model's graph, traced by another process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).parent / "trace", model, "--out", f"{folder}/trace"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return read_trace(Path(folder) / "trace")[0]


if __name__ == "__main__":
    main()
