"""A small model, split; workers to run it on; and what a run may leave behind."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.packing import Packing, SizedPacking
from cutedge.runtime.home import Loaded, Measured, Worker, load
from cutedge.runtime.plan import Plan, make_plan
from cutedge.runtime.verify import unsplit
from cutedge.runtime.weights import given_numbers
from partition.accounting import Residency, Traffic, account
from partition.packs import wire_format
from partition.placement import Placement
from partition.policy import apply_policy, load_policy
from partition.wire_format import WireFormat
from tests.support import BIN
from tests.support.traces import made_runnable
from tests.support.warm import Forked, command
from tracer.capture.runnable import Runnable
from tracer.graph import OpGraph
from tracer.presets import preset

SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "head_dim": 16,
}
MODEL = (
    "llama-3.2-1b",
    "--seq",
    "8",
    *(word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")),
)
"""The same model as ``tiny``, for a command."""

TOKEN = "a token for the tests' workers"
WEIGHTS = {"seed": 0, "spread": 0.02}

SHARING = 'description = "Tensors in shared memory"\n' + "".join(
    f'[{key}]\nvalue = {value}\nsource = "chosen for a test"\n'
    for key, value in {
        "sent_message_framing_bytes": 24,
        "sent_tensor_framing_bytes": 24,
        "received_message_framing_bytes": 24,
        "received_tensor_framing_bytes": 24,
        "shared_memory_threshold_bytes": 2**20,
        "shared_memory_handle_bytes": 16,
    }.items()
)
"""A link whose tensors all lie in shared memory."""


@cache
def tiny() -> Runnable:
    return made_runnable(preset("llama-3.2-1b"), model="llama-3.2-1b", seq=8, overrides=SIZES)


@dataclass(frozen=True)
class Split:
    """The small model as a policy splits it."""

    graph: OpGraph
    placement: Placement
    plan: Plan
    traffic: Traffic
    links: Links
    wire: WireFormat
    residency: Residency

    def load(
        self, workers: Mapping[str, Worker], weights: Mapping[str, Any] = WEIGHTS, **options: Any
    ) -> Loaded:
        return load(
            self.plan,
            workers,
            data=tiny().data,
            weights=weights,
            links=self.links,
            residency=self.residency,
            **options,
        )

    def run(self, workers: Mapping[str, Worker], weights: Mapping[str, Any] = WEIGHTS) -> Measured:
        return self.load(workers, weights).run(given())


def split(
    policy: str = "offload-linear",
    accelerators: Sequence[str] = ("gpu",),
    *,
    link: str = "unix-socket",
    wire_dtype: str | None = None,
    residency: Residency = "run",
    packings: Sequence[Packing] = (),
) -> Split:
    graph, links = annotate(tiny().graph), Links(load_link(link))
    placement = apply_policy(graph, load_policy(policy), home="tee", accelerators=accelerators)
    machine = Machine(
        "tee",
        tuple(accelerators),
        links,
        wire_dtype,
        pack=tuple(SizedPacking((one,)) for one in packings),
    )
    wire = wire_format(graph, (), machine)
    traffic = account(graph, placement, links, wire=wire, residency=residency)
    plan = make_plan(graph, tiny().invocations, placement, wire=wire, residency=residency)
    return Split(graph, placement, plan, traffic, links, wire, residency)


def given() -> dict[int, torch.Tensor]:
    """The token ids."""
    return given_numbers(tiny().graph, 0)


@cache
def _alone() -> Mapping[int, torch.Tensor]:
    return unsplit(tiny().graph, tiny(), given(), WEIGHTS, "tee")


def answer() -> torch.Tensor:
    """What the model's own code makes, unsplit."""
    [made] = tiny().graph.inputs(len(tiny().graph.ops) - 1)
    return _alone()[made.id]


def is_right(measured: Measured, split: Split) -> bool:
    """Whether a run has the unsplit model's answer, and moved what was predicted."""
    moved = sum(
        c.sent_wire_bytes + c.received_wire_bytes + c.peer_wire_bytes for c in measured.calls
    )
    return (
        torch.allclose(measured.results[0], answer(), atol=1e-5)
        and moved == split.traffic.totals.wire_bytes
    )


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listening:
    """A ``cutedge worker``."""

    process: "subprocess.Popen[str] | Forked"
    host: str
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


@contextmanager
def listening(*options: str, warm: bool = True) -> Iterator[Listening]:
    """``cutedge worker`` on a port that was free; what it prints is not to be a traceback.

    It is forked from a process that has torch, or begins as a user's does.
    """
    words = ("worker", "--listen", "127.0.0.1:0", *options)
    reader, writer = Pipe(duplex=False)
    process: subprocess.Popen[str] | Forked
    if warm:
        process = command(*words, stderr=writer, CUTEDGE_TOKEN=TOKEN)
    else:
        environment = {**os.environ, "CUTEDGE_TOKEN": TOKEN}
        process = subprocess.Popen([BIN / "cutedge", *words], env=environment, stderr=writer)
    writer.close()
    with open(reader.fileno(), closefd=False) as said, reader:
        try:
            address = re.fullmatch(r"listening on (.+):(\d+)\n", said.readline())
            assert address, said.read()
            yield Listening(process, address[1], int(address[2]))
        finally:
            process.terminate()
            process.wait(20)
            more = said.read()
            assert not more, more


def children(process: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split() if is_alive(int(word))]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def memory_peak(process: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) * 1024


def segments(session: bytes = b"") -> set[str]:
    """Shared memory that is there, of one session or of all."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"cutedge-{session.hex()}")}


def until(reached: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether something comes true within some seconds."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
