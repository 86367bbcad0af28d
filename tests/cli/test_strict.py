"""Ops without a cost formula: named by every command that prints a total, refused by --strict."""

import json

import pytest

from tests.support.inprocess import invoke

MODEL = """
import torch

class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(4, 4)

    def forward(self, x):
        x = self.up(x)
        return torch.linalg.matrix_exp(x) + torch.linalg.pinv(x)

class Plain(Odd):
    def forward(self, x):
        return self.up(x)

def odd(batch=2):
    return Odd(), torch.zeros(batch, 4, 4)

def plain(batch=2):
    return Plain(), torch.zeros(batch, 4, 4)
"""
LACKING = {"aten.linalg_matrix_exp.default": 1, "aten.linalg_pinv.atol_rtol_tensor": 1}
NAMED = "1 x aten.linalg_matrix_exp.default, 1 x aten.linalg_pinv.atol_rtol_tensor"


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.py"
    path.write_text(MODEL, encoding="utf-8")
    return path


def test_strict_names_what_has_no_formula_and_writes_nothing(model, tmp_path):
    done = invoke("trace", f"{model}:odd", "--strict", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert NAMED in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"model.py"}


def test_strict_is_content_where_all_is_known(model, tmp_path):
    done = invoke("trace", f"{model}:plain", "--strict", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "ops.parquet").exists()


def test_every_total_names_what_it_lacks(model, tmp_path):
    folder = tmp_path / "out"
    for command in (
        ["trace", f"{model}:odd", "--out", folder],
        ["partition", folder],
        ["cutedge", "compare", folder],
    ):
        said = invoke(*command)
        assert said.returncode == 0
        assert NAMED in said.stdout.replace("\n", " ")
        made = json.loads(invoke(*command, "--json").stdout)
        for one in made.get("partitions", [made]):
            assert one["unsupported"] == LACKING
