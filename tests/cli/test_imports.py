"""What commands load: no torch, where there is nothing to trace."""

import json
import subprocess
import sys
from functools import partial

from cli.commands import MODULES
from cli.main import app
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


def test_every_command_is_found_in_its_module():
    found: dict[str, list[str]] = {}
    for command in app.registered_commands:
        name = command.callback.__name__
        found.setdefault(command.callback.__module__, []).append(name)
    (export,) = app.registered_groups
    found["cli.exporting"] = [export.typer_instance.info.name or export.name]
    assert found == {f"cli.{module}": [*names] for module, names in MODULES.items()}


def test_a_command_loads_no_other_command():
    code = "import sys; from cli.commands import app_of; app_of(['trace', 'gpt2']); " + (
        "print(*sorted(m for m in sys.modules if m.startswith('cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = {name.removeprefix("cli.") for name in done.stdout.split()}
    assert "tracing" in loaded
    assert not loaded & ({*MODULES} - {"tracing"})


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
