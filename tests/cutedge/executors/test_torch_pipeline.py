"""torch's ``pipeline`` splits at the points that are written for it, into the stages meant."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cutedge
from cutedge.executors import torch_pipeline as ours
from tests.support import ROOT, tiny
from tracer.errors import InputError


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace(tiny.Tiny(), tiny.IDS)


def spec(points: dict[str, str]) -> str:
    return ours.text(points)  # type: ignore[arg-type]


CASES = [
    ({"blocks.2": "BEGINNING"}, ("tee", "gpu")),
    ({"blocks.1": "END"}, ("tee", "gpu")),
    ({"blocks.1.up": "BEGINNING", "head": "BEGINNING"}, ("tee", "a", "b")),
    ({"embed": "END", "blocks.3.norm": "END"}, ("tee", "a", "b")),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize(("points", "devices"), CASES)
def test_the_stages_that_torch_makes_have_the_weights_of_the_placement(
    trace: cutedge.Trace, points: Any, devices: tuple[str, ...]
):
    from torch.distributed.pipelining import SplitPoint, pipeline

    accelerators = list(devices[1:])
    split = trace.partition(cutedge.placement(spec(points)), accel=accelerators)
    said: dict[str, Any] = {}
    exec(split.words_for("torch").text, said)  # it is Python, as it is pasted
    pipe = pipeline(tiny.Tiny(), (tiny.IDS,), split_spec=said["split_spec"])
    assert pipe.num_stages == len(devices)
    assert all(isinstance(point, SplitPoint) for point in said["split_spec"].values())
    graph, placed = trace.graph, split.split.placement
    for number, device in enumerate(devices):
        held = {name for name, _ in pipe.get_stage_module(number).named_parameters()}
        read = {
            tensor.name
            for op in graph.ops
            if placed.devices[op.id] == device
            for tensor in graph.inputs(op.id)
            if tensor.op is None
        }
        assert held == read


def test_points_of_the_same_place_are_one(trace: cutedge.Trace):
    """After a block is before the next one: the shortest path to a beginning is written."""
    split = trace.partition(cutedge.placement(spec({"blocks.1": "END"})))
    assert '"blocks.2": SplitPoint.BEGINNING' in split.words_for("torch").text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("split_spec = {blocks.2: SplitPoint.BEGINNING}", "is a dictionary of split points"),
        (spec({"block.2": "BEGINNING"}), "'block.2' is no module of Tiny that does anything"),
        (spec({"blocks.2": "END", "blocks.3": "END"}), "2 points make 3 stages, and here are tee"),
        (
            spec({"blocks": "END"}),
            "blocks is a list of modules, and torch splits where one is called",
        ),
        (spec({"embed": "BEGINNING"}), "1 points make 1 stages"),
        (
            'split_spec = {"head": SplitPoint.END, "head": SplitPoint.BEGINNING}',
            "names each module once",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(trace: cutedge.Trace, text: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        trace.partition(cutedge.placement(text))


RUN = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.pipelining import ScheduleGPipe, pipeline

sys.path.insert(0, {folder!r})
from tiny import IDS, Tiny
from spec import split_spec

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=rank, world_size=2)
ids = torch.cat([IDS, IDS + 1])
pipe = pipeline(Tiny(), (IDS,), split_spec=split_spec)
stage = pipe.build_stage(rank, torch.device("cpu"))
answer = ScheduleGPipe(stage, n_microbatches=2).step(*((ids,) if rank == 0 else ()))
if rank == 1:
    torch.testing.assert_close(answer, Tiny()(ids))
    print("the same")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_run_the_stages(trace: cutedge.Trace, tmp_path: Path):
    split = trace.partition(cutedge.placement(spec({"blocks.1.up": "BEGINNING"})))
    (tmp_path / "tiny.py").write_text(Path(tiny.__file__).read_text())
    (tmp_path / "spec.py").write_text(split.words_for("torch").text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "run.py").write_text(RUN.format(folder=str(tmp_path), port=port))
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "run.py", str(rank)], stdout=subprocess.PIPE, cwd=ROOT
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[1].decode() == "the same\n"
