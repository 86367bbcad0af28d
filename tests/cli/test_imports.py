"""What commands load: no torch, where there is nothing to trace."""

import json
import subprocess
import sys

from tests.support.processes import run_command


def test_the_command_imports_no_torch_for_what_it_has_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTEDGE_CACHE", str(tmp_path / "cache"))

    def run(*options):
        done = run_command("trace", "edge-10m", "--json", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run("--seq", "24")
    assert first["cached"] is False
    assert run("--seq", "24") == {**first, "cached": True}
    code = (
        "import sys; from cli.main import app\n"
        "try: app(['trace', 'edge-10m', '--seq', '99'])\n"
        "finally: assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    one, other = tmp_path / "cutedge-out", tmp_path / "fresh"
    (found,) = one.glob("**/seq=99")
    assert run("--seq", "99", "--no-cache", "--out", str(other))["cached"] is False
    for table in ("ops", "tensors", "edges"):
        name = f"{table}.parquet"
        assert (found / name).read_bytes() == (other / name).read_bytes()


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
