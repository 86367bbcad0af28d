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

from costmodels.array_memory import Buffers, memory_cost
from costmodels.arrays import Options, gemm_cost
from costmodels.devices import load_device
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
