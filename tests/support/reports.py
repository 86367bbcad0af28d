"""What the tests of reports share: a small model traced once, split, and shown."""

from dataclasses import dataclass
from pathlib import Path

from cutedge._machines import read_machine
from cutedge._placing import partition_of
from partition.policy import load_policy
from partition.setting import Setting
from partition.split import Split
from tests.support.inprocess import invoke
from tracer.graph import OpGraph
from tracer.reach import Reach
from tracer.serde import read_reach, read_trace

TEE_GPU = {"home": "tee-tdx", "accelerators": ["rtx-4090"], "links": ["pcie4-x16"]}
HOST_CHIP = {"home": "ryzen-7950x", "accelerators": ["chip-8x8"], "links": ["axi-lite"]}
TWO_GPUS = {"home": "tee-tdx", "accelerators": ["a=rtx-4090", "b=rtx-4090"], "links": ["pcie5-x16"]}
SYNCHRONOUS = {"home": "tee-tdx", "accelerators": ["h100-cc"], "links": ["pcie5-x16-cc"]}
UNDESCRIBED = {"home": "tee", "accelerators": ["gpu"], "links": []}


@dataclass(frozen=True)
class Traced:
    folder: Path
    graph: OpGraph
    trace_id: str
    reach: Reach

    def split(
        self,
        policy: str,
        home: str,
        accelerators: list[str],
        links: list[str],
        residency: str = "run",
    ) -> tuple[Split, Setting]:
        machine = read_machine(home, accelerators, links, None, None)
        setting = Setting(machine, residency, machine.times(self.graph), time_limit=60.0)
        made = partition_of(self.graph, self.trace_id, load_policy(policy), setting)
        return made, setting


def trace_to(folder: Path, model: str, *options: str) -> Traced:
    ran = invoke("trace", model, *options, "--out", folder)
    assert ran.returncode == 0, ran.stderr
    graph, trace_id = read_trace(folder)
    return Traced(folder, graph, trace_id, read_reach(folder, trace_id))
