"""The limit to a trace's time: work ends at a stage or in a module, and says where."""

import pytest
import torch

from tests.support.inprocess import invoke
from tracer.capture import capture_own, own_module
from tracer.errors import CutedgeError
from tracer.stages import OutOfTime, check_time, stage, time_limit


class Endless(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            x = x + 1


class Around(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Endless()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_code_without_an_end_is_given_up_and_named():
    capture_own(own_module(torch.nn.ReLU(), torch.zeros(2, 3), "first"))  # torch imports much
    own = own_module(Around(), torch.zeros(2, 3), "mine")
    with pytest.raises(CutedgeError) as error, time_limit(1, "mine", "Wait."):
        capture_own(own)
    line = Endless.forward.__code__.co_firstlineno + 2
    assert str(error.value) == (
        "mine: the limit of 1 s was over while exporting in inner (Endless) "
        f"at test_stages.py:{line} (x = x + 1). Wait."
    )


def test_a_limit_ends_with_its_block_and_keeps_off_work_within_it():
    with time_limit(60, "x", ""), stage("one"):
        check_time()
    with pytest.raises(CutedgeError) as error, time_limit(0, "x", "Wait."), stage("two"):
        pytest.fail("work went on")
    assert str(error.value) == "x: the limit of 0 s was over while two. Wait."
    check_time()  # without a limit


def test_nothing_takes_the_end_of_time_for_a_failure_of_its_own():
    assert not issubclass(OutOfTime, Exception)


def test_the_command_ends_with_1_and_writes_nothing(tmp_path):
    """Edge-10m takes half a second at the least, a tenth of it to begin with."""
    out = tmp_path / "tables"
    options = ["--seq", "40", "--no-trace-cache", "--time-limit", "0.1", "--out", str(out)]
    done = invoke("trace", "edge-10m", *options)
    assert (done.returncode, out.exists()) == (1, False)
    assert "edge-10m: the limit of 0.1 s was over while" in done.stderr
