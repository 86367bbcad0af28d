"""How long the commands take as whole processes, as ratios within one run.

Machines differ and are noisy, so each command takes turns with a yardstick and what counts is the
median of the ratios. Run it with ``make bench``; it prints and judges nothing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 7
BIN = Path(sys.executable).parent
CONFIG = Path(__file__).parents[1] / "tracer" / "presets" / "llama-3.2-1b.json"

BUILD_ONLY = f"""
import json, torch
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
config = LlamaConfig.from_dict(json.load(open({str(CONFIG)!r})))
with torch.device("meta"):
    LlamaForCausalLM(config)
"""

PYTHON = [sys.executable]
TRACE = [BIN / "trace", "llama-3.2-1b", "--seq"]
GENERATED = ["--policy", "fuse-attention", "--machine", "tee-tdx+h100-cc@pcie5-x16-cc"]
CASES = {
    "trace again at another seq, cached / import pyarrow and networkx": (
        [*TRACE, "1000"],
        [*PYTHON, "-c", "import pyarrow.parquet, networkx"],
    ),
    "trace llama-3.2-1b, not cached / import torch and Llama, build the meta model": (
        [*TRACE, "1024", "--no-trace-cache"],
        [*PYTHON, "-c", BUILD_ONLY],
    ),
    "partition of that trace / import pyarrow and networkx": (
        [BIN / "partition", "--policy", "offload-linear"],
        [*PYTHON, "-c", "import pyarrow.parquet, networkx"],
    ),
    "compare of that trace / import pyarrow and networkx": (
        [BIN / "cutedge", "compare"],
        [*PYTHON, "-c", "import pyarrow.parquet, networkx"],
    ),
    "generate 256 tokens / partition of that trace": (
        [BIN / "cutedge", "generate", "llama-3.2-1b", "--new", "256", *GENERATED],
        [BIN / "partition", "--policy", "offload-linear"],
    ),
    "cutedge --help / import typer": ([BIN / "cutedge", "--help"], [*PYTHON, "-c", "import typer"]),
    "trace llama-3.1-405b, 126 layers, not cached / trace llama-3.2-1b, 16 layers, not cached": (
        [BIN / "trace", "llama-3.1-405b", "--seq", "1024", "--no-trace-cache", "--out", "large"],
        [*TRACE, "1024", "--no-trace-cache"],
    ),
    "trace qwen3_5_text, linear and full attention, not cached / trace llama-3.2-1b, not cached": (
        [BIN / "trace", "hybrid.json", "--seq", "1024", "--no-trace-cache", "--out", "hybrid"],
        [*TRACE, "1024", "--no-trace-cache"],
    ),
}


def seconds(command: list[object], folder: str) -> float:
    """Wall seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run(
        list(map(str, command)),
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "CUTEDGE_CACHE": f"{folder}/cache"},
    )
    return time.perf_counter() - start


def main() -> None:
    print(f"median of {RUNS} runs, taken in turns\n")
    print(f"{'ratio':>6} {'seconds':>8} {'yardstick':>10}  command / yardstick")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hybrid.json").write_text(json.dumps({"model_type": "qwen3_5_text"}))
        seconds([*TRACE, "1024"], folder)  # fills the cache
        for name, (command, yardstick) in CASES.items():
            for warm_up in (command, yardstick):
                seconds(warm_up, folder)
            pairs = [(seconds(command, folder), seconds(yardstick, folder)) for _ in range(RUNS)]
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"{ratio:6.2f} {ours:8.3f} {theirs:10.3f}  {name}")


if __name__ == "__main__":
    main()
