"""How fast a sweep is: a million points, from formulas, against points done one by one.

Five models, 100 lengths, 10 batches, 8 policies, 25 pairs of devices and links: cold, and with the
models traced before, then with schedules, with whole generations and with formats of weights as axes.
Then decode too, bfloat16 and a chip at fewer sizes, for the questions of docs/guide/grids.md, and for
ten points drawn at random that are done by ``trace`` and ``partition`` as well. Run it with ``make
bench``; it prints and judges nothing, but stops where one of the ten differs. The yardstick is one
point by itself, of a trace that is in memory.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import duckdb
import numpy as np
import psutil

from costmodels.devices import load_device
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.optimise import place
from partition.policy import load_policy
from partition.run import compute_seconds
from partition.setting import Setting
from tracer.graph import OpGraph
from tracer.reach import Reach, graph_at
from tracer.serde import read_reach, read_trace

BIN = Path(sys.executable).parent
QUESTIONS = Path(__file__).parents[1] / "docs" / "guide" / "grids.md"
GRID = """
model = ["llama-3.2-1b", "tinyllama-1.1b", "qwen2.5-0.5b", "gpt2", "edge-10m"]
seq = "16..1600:16"
batch = "1..10:1"
policy = [
    "all-home", "offload-linear", "fuse-attention", "host-chip",
    "min-cut-nonlinear-home", "min-cut-softmax-free", "min-cut-norm-home", "min-cut",
]
pair = [
    "tee-tdx+h100-cc", "tee-tdx+h200", "tee-tdx+mi300x", "tee-sgx+h100-sxm", "ryzen-7950x+a100-80g",
]
link = ["pcie5-x16-cc", "pcie5-x16", "pcie4-x16", "nvlink", "loopback"]
"""
BOTH = (
    GRID.replace(
        'seq = "16..1600:16"',
        'phase = ["prefill", "decode"]\nseq = "32..1600:32"\npast = "32..1600:32"',
    )
    .replace('"1..10:1"', '[1, 2, 4, 8, 10]\nwire_dtype = ["native", "bfloat16"]')
    .replace('"tee-tdx+h200"', '"ryzen-7950x+chip-8x8"')
    + "chips = [1, 4]\n"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates = {}
        for which, grid in (
            ("cold", GRID),
            ("warm", GRID),
            ("schedules", f'{GRID}schedule = ["serial", "overlap"]'),
            ("generations", f"{GRID}new = [64, 256]"),
            ("weights", f'{GRID}weights = ["none", "q8_0"]'),
            ("both", BOTH),
        ):
            (folder / "grid.toml").write_text(grid, encoding="utf-8")
            taken, user, peak = sweep(folder, which)
            path = f"{folder}/{which}/**/sweep.parquet"
            points = rows(f"SELECT count(*) AS points FROM '{path}'")[0]["points"]
            rate, memory = points / taken, peak / 2**20
            print(f"{which}: {points:,} points in {taken:.1f} s, {user:.1f} s of processors")
            print(f"  {rate:,.0f} a second; {memory:,.0f} MiB at most, all processes together")
            rates[which] = points / user
            if which in ("schedules", "generations", "weights"):
                print(f"  {rates[which] / rates['warm']:.2f} of the rate without")
            if which == "warm":
                one = statistics.median(alone(folder) for _ in range(9))
                times = one * points / user
                print(f"  one by itself takes {one * 1000:.0f} ms: {times:,.0f} times as long")
        text = QUESTIONS.read_text(encoding="utf-8")
        for what, sql in re.findall(r"^## (.*?)$.*?^```sql\n(.*?)^```$", text, re.M | re.S):
            start = time.perf_counter()
            found = rows(sql.replace("cutedge-out/many/**/sweep.parquet", path))
            print(f"{time.perf_counter() - start:6.2f} s  {len(found):>3} rows  {what}")
        for point in rows(f"FROM '{path}' ORDER BY random() LIMIT 10"):
            check(point, folder)


def rows(sql: str) -> list[dict[str, Any]]:
    found = duckdb.sql(sql)
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def check(point: dict[str, Any], folder: Path) -> None:
    """A point of the sweep by the commands that do one: what both have must be equal."""
    size = "past" if point["phase"] == "decode" else "seq"
    trace = [
        "trace",
        point["model"],
        "--phase",
        point["phase"],
        "--batch",
        point["batch"],
        f"--{size}",
        point[size],
        "--out",
        "point",
    ]
    partition = [
        "partition",
        "point",
        "--policy",
        point["policy"],
        "--home",
        point["home"],
        "--accel",
        point["accelerator"],
        "--link",
        point["link"],
    ]
    if point["wire_dtype"]:
        partition += ["--wire-dtype", point["wire_dtype"]]
    if point["array_options"]:
        partition += ["--chips", point["array_options"].removeprefix("chips=")]

    def command(*words: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [BIN / words[0], *map(str, words[1:])],
            cwd=folder,
            env=with_cache(folder),
            capture_output=True,
        )

    assert command(*trace).returncode == 0
    ran = command(*partition)
    said = " ".join(map(str, [*trace[1:-2], *partition[2:]]))
    if point["placed"] == "impossible":
        assert ran.returncode == 1, said
        print(f"impossible, and for partition too: {said}")
        return
    assert ran.returncode == 0, f"{said}: {ran.stderr.decode()}"
    (found,) = rows(f"FROM '{folder}/point/policy={point['policy']}/**/summary.parquet'")
    devices = {"home": point["home"], "accelerator": point["accelerator"]}
    for part, device in devices.items():
        found[f"{part}_resident_bytes"] = found["resident_bytes"].get(device, 0)
        found[f"{part}_seconds"] = found["compute_seconds"].get(device)
    found["cycles"] = sum(found["cycles"].values()) if found["cycles"] else None
    both = point.keys() & found.keys()
    different = {key: (point[key], found[key]) for key in both if point[key] != found[key]}
    assert not different, f"{said}: {different}"
    print(f"equal in {len(both)} columns: {said}, {found['total_payload_bytes']:,} bytes")


def with_cache(folder: Path) -> dict[str, str]:
    """The environment, with a cache of traces that is not the user's."""
    return {**os.environ, "CUTEDGE_CACHE": str(folder / "cache")}


def sweep(folder: Path, name: str) -> tuple[float, float, int]:
    """(wall seconds, user seconds, most memory of all processes) of a sweep into a folder."""
    command = [str(BIN / "cutedge"), "sweep", "--grid", "grid.toml", "--out", name]
    start = time.perf_counter()
    process = psutil.Popen(command, cwd=folder, env=with_cache(folder), stdout=subprocess.DEVNULL)
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
        command = [BIN / "trace", "llama-3.2-1b", "--batch", "2"]
        subprocess.run(
            [*command, "--out", trace],
            cwd=folder,
            env=with_cache(folder),
            check=True,
            stdout=subprocess.DEVNULL,
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
    setting = Setting(Machine("tee-tdx", ("h200",), Links(load_link("pcie5-x16"))), times=times)
    placed = place(costed, load_policy("min-cut-norm-home"), setting)
    account(costed, placed.placement, setting.machine.links)
    compute_seconds(placed.placement, times)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
