"""A small profile of torch's on this processor: ``python -m tools.profile_sample OUT.json.gz``.

It makes ``tests/reference/profile_cpu.json.gz``: one thread, a few calls of products and of passes
at several sizes after a warm-up. What tells of the machine is left out (its name, processes,
threads, files, the time of day), and so are strides, sequence numbers and what lies in an op.
"""

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SIZES = [(64, 256, 256), (64, 512, 1024), (512, 512, 512), (1024, 512, 2048), (2048, 1024, 1024)]
"""(m, k, n) of the products."""

ROWS = [64, 1024, 8192]
"""Of the passes, with 1024 elements each."""

KEPT = ("Input Dims", "Input type", "Concrete Inputs")


def work(calls: int) -> None:
    for m, k, n in SIZES:
        x, w = torch.ones(m, k), torch.ones(n, k)
        for _ in range(calls):
            torch.nn.functional.linear(x, w)
    for rows in ROWS:
        x = torch.ones(rows, 1024)
        for _ in range(calls):
            x + x  # it is the work
            torch.nn.functional.layer_norm(x, (1024,))


def events(trace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The outermost ops, from the time of the first."""
    ops = [one for one in trace["traceEvents"] if one.get("cat") == "cpu_op"]
    ops.sort(key=lambda one: (one["ts"], -one["dur"]))
    begin, end = ops[0]["ts"], 0.0
    for op in ops:
        if op["ts"] < end or not op["args"].get("Input Dims"):
            continue
        end = op["ts"] + op["dur"]
        yield {
            **{key: op[key] for key in ("ph", "cat", "name", "dur")},
            "ts": round(op["ts"] - begin, 3),
            "pid": 1,
            "tid": 1,
            "args": {key: op["args"][key] for key in KEPT},
        }


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        work(3)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            work(5)
        whole = Path(folder) / "whole.json"
        found.export_chrome_trace(str(whole))
        trace = json.loads(whole.read_text(encoding="utf-8"))
    kept = [one for one in events(trace) if one["name"] not in ("aten::ones", "aten::fill_")]
    text = json.dumps({"schemaVersion": trace["schemaVersion"], "traceEvents": kept})
    with gzip.GzipFile(sys.argv[1], "wb", mtime=0) as out:
        out.write(text.encode())


if __name__ == "__main__":
    main()
