"""How long the schedule of a model of 126 layers takes to work out.

Run it with ``make bench``; it prints and judges nothing. The yardstick is what the accounting of
the same placement takes, since machines differ.
"""

import statistics
import time
from collections.abc import Callable

import cutedge
from partition.accounting import account

MODEL, SEQ = "llama-3.1-405b", 1024
MACHINE = "tee-tdx+h100-cc@pcie5-x16-cc"
POLICY = "offload-linear"
RUNS = 5
REQUESTS = (1, 8)


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of one processor, after a run to warm up."""
    times = []
    for _ in range(RUNS + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def main() -> None:
    traced = cutedge.trace(MODEL, seq=SEQ)
    split = traced.partition(POLICY, machine=MACHINE)
    graph, traffic, links = traced.graph, split.split.traffic, split.setting.machine.links
    yardstick = seconds(lambda: account(graph, split.split.placement, links))
    print(
        f"\n{MODEL}, prefill of {SEQ} tokens by {POLICY}: {len(graph.ops):,} ops, "
        f"{len(traffic.transfers):,} transfers\n"
    )
    print(f"{'ratio':>6} {'seconds':>8}  schedule / the accounting ({yardstick:.3f} s)")
    for kind in ("serial", "overlap"):
        for requests in REQUESTS:
            taken = seconds(lambda kind=kind, requests=requests: split.schedule(kind, requests))
            print(f"{taken / yardstick:6.2f} {taken:8.3f}  {kind}, {requests} in flight")


if __name__ == "__main__":
    main()
