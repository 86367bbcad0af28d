"""The library as its users write it: the docstrings' examples, and what they leave out."""

import doctest
import json
import subprocess
import sys

import duckdb
import pytest

import cutedge
from costmodels.links import Links, load_link
from cutedge import _carried, _compare, _cost, _gemm, _machines, _partition, _sql, _sweep, _trace
from cutedge import executors as every_executor
from cutedge.executors import accelerate, expressions, gguf_names, llama_cpp, torch_pipeline, vllm
from partition import schedule
from tests.support import warm
from tests.support.inprocess import invoke

PUBLIC = [*(cutedge, _trace, _partition, _compare, _cost, _gemm, _machines, _sql, _sweep), schedule]
PUBLIC += [_carried, every_executor, accelerate, expressions, gguf_names, llama_cpp]
PUBLIC += [torch_pipeline, vllm]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_examples_of_docstrings(module):
    with warm.workers():
        found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_import_is_light():
    code = (
        "import sys, cutedge\n"
        "heavy = {'torch', 'pyarrow', 'duckdb', 'transformers', 'numpy', 'networkx', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_that_is_public_is_there_and_a_function_stays_one():
    for name in cutedge.__all__:
        assert getattr(cutedge, name).__doc__
    assert callable(cutedge.trace)
    assert cutedge.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'partitions'"):
        _ = cutedge.partitions


def test_the_command_prints_what_the_library_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("trace", "edge-10m", "--seq", "32")
    machine = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie4-x16")
    said = json.loads(invoke("partition", "--policy", "min-cut", *machine, "--json").stdout)
    split = cutedge.trace("edge-10m", seq=32).partition(
        "min-cut", machine="tee-tdx+rtx-4090@pcie4-x16"
    )
    assert {key: said[key] for key in split.summary} == json.loads(json.dumps(split.summary))


def test_tables_are_taken_by_duckdb_and_saved_as_the_command_saves_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    split = cutedge.trace("edge-10m", seq=32).partition("offload-linear")
    transfers = split.transfers  # noqa: F841  # DuckDB finds it by its name
    total = duckdb.sql("SELECT sum(payload_bytes) FROM transfers").fetchall()
    assert total == [(split.summary["total_payload_bytes"],)]
    assert not list(tmp_path.iterdir())  # nothing is written but by save
    saved = split.save(tmp_path / "mine")
    invoke("trace", "edge-10m", "--seq", "32", "--out", "theirs")
    invoke("partition", "theirs", "--policy", "offload-linear")
    for path in sorted((tmp_path / "mine").rglob("*.parquet")):
        other = tmp_path / "theirs" / path.relative_to(tmp_path / "mine")
        assert path.read_bytes() == other.read_bytes()
    assert saved.is_relative_to(tmp_path / "mine")
    again = cutedge.load(tmp_path / "mine")
    assert (again.id, again.ops) == (split.trace.id, split.trace.ops)


def test_a_module_that_is_there_is_traced_and_left_as_it_is():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

        def forward(self, x):
            return self.narrow(self.wide(x).relu())

    net = Net()
    weights = [parameter.clone() for parameter in net.parameters()]
    split = cutedge.trace(net, torch.randn(2, 8)).partition("offload-linear")
    # x goes there and its product of 2 x 16 comes home; its relu goes there and 2 x 8 comes home
    assert split.summary["total_payload_bytes"] == 4 * (16 + 32 + 32 + 16)
    for before, after in zip(weights, net.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.slow
def test_a_config_is_a_model():
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 50}
    traced = cutedge.trace(config, seq=8, overrides={"n_layer": 2})
    assert sum(op.target == "aten.softmax.int" for op in traced.graph.ops) == 2
    with pytest.raises(cutedge.InputError, match="no model_type"):
        cutedge.trace({"n_layer": 1})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"machine": "tee-tdx"}, "rtx"),
        ({"machine": "tee-tdx+@none"}, "HOME\\+ACCELERATOR@LINK"),
        ({"machine": "a+b", "home": "c"}, "leave them out"),
        ({"policy": "min-cutt"}, "min-cut"),
        ({"wire_dtype": "float7"}, "float7"),
    ],
)
def test_what_cannot_be_understood_is_an_error_of_ours(options, says):
    traced = cutedge.trace("edge-10m", seq=32)
    if options == {"machine": "tee-tdx"}:
        assert traced.partition(**options).summary["home"] == "tee-tdx"
        return
    with pytest.raises(cutedge.InputError, match=says):
        traced.partition(**options)


def test_another_size_is_what_a_trace_there_is():
    there = cutedge.trace("edge-10m", seq=32).at(seq=48)
    assert there.id == cutedge.trace("edge-10m", seq=48).id
    with pytest.raises(cutedge.InputError, match="edge-10m has batch"):
        there.at(length=3)


def test_notebooks_show_tables():
    traced = cutedge.trace("edge-10m", seq=32)
    found = traced.compare(["offload-linear", "all-home"])
    for shown in (traced, found[0], found):
        assert shown._repr_html_().startswith("<table>")
        assert "edge-10m" in repr(shown) or "offload-linear" in repr(shown)


def test_a_proof_is_of_the_links_that_it_was_made_for():
    split = cutedge.trace("edge-10m", seq=32).partition(
        "fastest", machine="tee-tdx+rtx-4090@pcie4-x16"
    )
    assert split.summary["optimal"] is True
    assert split.split.over(Links(load_link("unix-socket"))).solution is None


@pytest.mark.parametrize("execution", ["eager", "fused"])
def test_what_is_kept_of_a_cache_takes_its_seconds_in_a_partition_too(execution: str) -> None:
    """The new rows of a decode: `cost` had their seconds, and a partition did not."""
    decode = cutedge.trace("edge-10m", phase="decode", past=40)
    (alone,) = decode.costs("rtx-4090", execution=execution)
    on = {"home": "rtx-4090", "link": "pcie4-x16", "execution": execution}
    assert decode.partition("all-home", **on).summary["home_seconds"] == pytest.approx(
        alone.time.seconds
    )
