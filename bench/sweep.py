"""How fast a sweep is: a million points, from formulas, against points done one by one.

Five models, 100 lengths, 10 batches, 8 policies, 25 pairs of devices and links; traced before, as a
second sweep of the same models finds them. Run it with ``make bench``; it prints and judges
nothing. The yardstick is one point by itself, of a trace that is in memory.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import duckdb
import numpy as np
import psutil

from costmodels.devices import load_device
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.optimise import Setting, compute_seconds, place
from partition.policy import load_policy
from tracer.graph import OpGraph
from tracer.reach import Reach, graph_at
from tracer.serde import read_reach, read_trace

GRID = """
model = ["llama-3.2-1b", "tinyllama-1.1b", "qwen2.5-0.5b", "gpt2", "edge-10m"]
seq = "16..1600:16"
batch = "1..10:1"
policy = [
    "all-home", "offload-linear", "fuse-attention", "flash-attention",
    "min-cut-nonlinear-home", "min-cut-softmax-free", "min-cut-norm-home", "min-cut",
]
pair = [
    "tee-tdx+h100-cc", "tee-tdx+h200", "tee-tdx+mi300x", "tee-sgx+h100-sxm", "ryzen-7950x+a100-80g",
]
link = ["pcie5-x16-cc", "pcie5-x16", "pcie4-x16", "nvlink", "loopback"]
"""

QUESTIONS = {
    "points by model, policy, link": "SELECT model, policy, link, count(*), avg(run_seconds) "
    "FROM sweep GROUP BY ALL",
    "the best policy by length": "SELECT model, seq, arg_min(policy, run_seconds) FROM sweep "
    "WHERE policy <> 'all-home' GROUP BY ALL",
    "bytes a token": "SELECT model, policy, max(total_payload_bytes / (batch * seq)) FROM sweep "
    "GROUP BY ALL",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.toml").write_text(GRID, encoding="utf-8")
        (folder / "warm.toml").write_text(
            GRID.replace("16..1600:16", "16").replace("1..10:1", "1,2"), encoding="utf-8"
        )
        sweep(folder, "warm")
        taken, user, peak = sweep(folder, "grid")
        path = folder / "grid" / "**" / "*.parquet"
        table = f"read_parquet('{path}', hive_partitioning = true)"
        ((points,),) = duckdb.sql(f"SELECT count(*) FROM {table}").fetchall()
        rate, memory = points / taken, peak / 2**20
        print(f"\n{points:,} points: {taken:.1f} s, {user:.1f} s of processors")
        print(f"{rate:,.0f} a second; {memory:,.0f} MiB at most, all processes together")
        one = statistics.median(alone(folder) for _ in range(9))
        print(f"one by itself takes {one * 1000:.0f} ms: {one * points / user:,.0f} times as long")
        for what, sql in QUESTIONS.items():
            start = time.perf_counter()
            duckdb.sql(sql.replace("FROM sweep", f"FROM {table}")).fetchall()
            print(f"{time.perf_counter() - start:6.2f} s  {what}")


def sweep(folder: Path, name: str) -> tuple[float, float, int]:
    """(wall seconds, user seconds, most memory of all processes) of a sweep as a command."""
    command = [
        str(Path(sys.executable).parent / "cutedge"), "sweep", "--grid", f"{name}.toml", "--out",
        name,
    ]  # fmt: skip
    environment = {**os.environ, "CUTEDGE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    ended = Event()
    seen: dict[int, float] = {}
    peak = [0]

    def watch() -> None:
        while not ended.wait(0.05):
            total = 0
            for each in [process, *children(process)]:
                try:
                    total += each.memory_info().rss
                    seen[each.pid] = each.cpu_times().user
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    watcher = Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    assert code == 0
    return time.perf_counter() - start, sum(seen.values()), peak[0]


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def alone(folder: Path) -> float:
    """The seconds of one point of llama-3.2-1b, drawn at random, done by itself."""
    trace = folder / "one"
    if not trace.exists():
        command = [Path(sys.executable).parent / "trace", "llama-3.2-1b", "--batch", "2"]
        subprocess.run(
            [*command, "--out", trace], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    graph, trace_id = read_trace(trace)
    return point(graph, read_reach(trace, trace_id))


_random = np.random.default_rng(0)


def point(graph: OpGraph, reach: Reach) -> float:
    start = time.perf_counter()
    sizes = {**graph.meta.variables, "seq": int(_random.integers(16, 1600))}
    there = graph_at(graph, reach, sizes)
    assert there is not None
    costed = annotate(there)
    devices = {"tee-tdx": load_device("tee-tdx"), "h200": load_device("h200")}
    times = {name: time_ops(costed, device) for name, device in devices.items()}
    setting = Setting("tee-tdx", ("h200",), Links(load_link("pcie5-x16")), times=times)
    placed = place(costed, load_policy("min-cut-norm-home"), setting)
    account(costed, placed.placement, setting.links)
    compute_seconds(placed.placement, times)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
