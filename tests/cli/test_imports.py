"""What commands load: no torch, where there is nothing to trace."""

import json
import subprocess
import sys
from functools import partial

from tests.support.processes import run_command

MODEL = ("edge-10m", "--set", "num_hidden_layers=1")


def test_the_command_imports_no_torch_for_what_it_has_seen(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CUTEDGE_CACHE", str(tmp_path / "cache"))

    def run(*options, by=cli):
        done = by("trace", *MODEL, "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run("--seq", "24")
    assert first["cached"] is False
    assert run("--seq", "24", by=partial(run_command, cwd=tmp_path)) == {**first, "cached": True}
    code = (
        "import sys; from importlib.util import find_spec; from cli.main import _NoPandas, app\n"
        "sys.meta_path.insert(0, _NoPandas())\n"  # as in a process of the command line
        f"try: app(['trace', {', '.join(map(repr, MODEL))}, '--seq', '99'])\n"
        "finally: assert not {'torch', 'transformers', 'sympy', 'pandas'} & set(sys.modules)\n"
        "assert find_spec('pandas')"  # it is there for all others
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = (tmp_path / "cutedge-out").glob("**/seq=99")
    (kept,) = (tmp_path / "cutedge-out").glob("**/seq=24")
    assert {path.name for path in made.iterdir()} == {path.name for path in kept.iterdir()}


def test_costing_imports_no_torch():
    code = """
import sys
from costmodels.arrays import gemm_cost
from costmodels.devices import device_names, load_device
for name in device_names():
    device = load_device(name)
    if device.array:
        gemm_cost(device.array, 1, 2, 3)
assert "numpy" not in sys.modules
from cli.main import app
app(["gemm", "1", "2048", "2048"], standalone_mode=False)
app(["devices"], standalone_mode=False)
found = {"torch", "transformers", "sympy", "numpy", "pyarrow", "duckdb"} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
