"""What every command prints with ``--json`` is as docs/schema says, key by key."""

import json
import re
from collections.abc import Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli.main import app
from tests.support import REFERENCE
from tests.support.inprocess import invoke
from tests.support.profiles import Trace
from tools import reference
from tools.describe import ROOT
from tools.schemas import FOLDER, schemas, texts

ON = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie4-x16")
CHIP = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite")
CALLS = "sent,received,seconds\n8192,8388608,0.0059\n8388608,12582912,0.0129\n" + (
    "16777216,134217728,0.0983\n142606336,8388608,0.0779\n4096,4096,0.0004\n"
)
SECRET = """description = "x"
default = "free"
objective = "bytes"
[[secret]]
label = ["attention_scores"]
layer = 0
derived = true
"""

SAID: dict[str, list[tuple[str, ...]]] = {
    "trace": [("--seq", "8", "edge-10m", "--set", "num_hidden_layers=1", "--out", "again")],
    "partition": [
        ("t",),
        ("t", "--policy", "min-cut", *ON, "--explain"),
        ("t", *CHIP, "--policy", "host-chip"),
        ("t", *ON, "--policy", "layers"),
        ("t", "--policy", "secret.toml", "--wire-dtype", "bfloat16", "--residency", "call"),
        ("t", "--policy", "all-home", "--home", "rtx-4090"),
        ("t", *ON, "--schedule", "overlap", "--requests", "2"),
        ("t", *ON, "--placement", '{"": 0}'),
        ("t", "--placement", '{"": 0}', "--max-calls", "0"),
    ],
    "partition-plan": [
        ("t", *ON, "--frontier", "1", "--granularity", "layer"),
        ("t", *ON, "--mix", "prefill=1,decode=2", "--granularity", "layer"),
    ],
    "compare": [
        ("t", "t", "--policy", "offload-linear"),
        ("t", *ON, "--within", "1"),
        ("t", "--policy", "offload-linear", "--within", "1"),
        ("t", "--policy", "offload-linear", "--unseen", "qkv"),
    ],
    "compare-over": [
        ("t", "--policy", "layers", "--over", "seq", "4..16"),
        ("t", *ON, "--policy", "layers", "--over", "seq", "4..5", "--schedule", "overlap"),
    ],
    "generate": [("edge-10m", "--prompt", "8", "--new", "3", *ON, "--policy", "min-cut")],
    "sweep": [("edge-10m", "--seq", "8", "--jobs", "1", "--out", "sw")],
    "report": [("t", "--policy", "offload-linear")],
    "verify": [
        (
            "edge-10m",
            "--seq",
            "8",
            "--out",
            "v",
            "--set",
            "num_hidden_layers=1",
            "--policy",
            "offload-linear",
            "--policy",
            "secret.toml",
        )
    ],
    "query": [
        ("SELECT 1 AS one, NULL AS no", "--trace", "t"),
        ("SELECT * FROM ops WHERE false", "--trace", "t"),
    ],
    "export-perfetto": [("u", *ON, "--out", "x.pftrace")],
    "export-model-explorer": [("u", "--out", "x.json")],
    "export-graphml": [("u", "--out", "x.graphml"), ("bare", "--out", "y.graphml")],
    "export-dot": [("u", "--out", "x.dot")],
    "export-placement": [
        ("--for", "torch", "u", "--nearest"),
        ("--for", "vllm", "u", "--nearest", "--out", "x.txt"),
    ],
    "export-scalesim": [
        ("u", "--sram-kib", "64,64,64", "--dram-words-per-cycle", "10", "--out", "scalesim")
    ],
    "export-stream": [("u", "--out", "x.onnx")],
    "export-zigzag": [("u", "--out", "x.yaml")],
    "export-csv": [("ops", "u", "--out", "x.csv")],
    "export-json": [("ops", "u", "--out", "x.json")],
    "cost": [("t",), ("t", "--device", "rtx-4090", "--device", "chip-8x8", "--device", "tee-sgx")],
    "limits": [("edge-10m",), ("edge-10m", "--units", "reference", "--weight-bits", "4.5")],
    "params": [("edge-10m",)],
    "models": [(), ("edge-10m",), ("mixtral-8x7b",)],
    "models-check": [("edge-10m", "--check", "--seq", "8", "--set", "num_hidden_layers=1")],
    "policies": [(), ("min-cut",), ("secret.toml",)],
    "devices": [(), ("chip-8x8",)],
    "gemm": [("8", "8", "8"), ("8", "8", "8", "--mode", "ws", "--chips", "2")],
    "design": [
        ("edge-10m", "--seq", "8", "--rows", "8", "--device", "chip-8x8"),
        ("edge-10m", "--seq", "8", "--rows", "8", "--max-area", "0.01", "--out", "de"),
    ],
    "links": [(), ("pcie5-x16",)],
    "calibrate": [("calls.csv", "--out", "one.toml")],
    "calibrate-ops": [
        (str(REFERENCE / "profile_cpu.json.gz"), "--out", "two.toml"),
        ("copies.json", "--out", "three.toml"),
    ],
    "error": [("no-such-command",), ("partition", "nowhere")],
}
"""Schema -> what to ask for."""


known = cache(schemas)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trace of a tiny model with its partitions, a policy and a log."""
    with chdir(tmp_path_factory.mktemp("schemas")):
        Path("calls.csv").write_text(CALLS)
        Path("secret.toml").write_text(SECRET)
        copies = Trace(1e-5)
        for size in (4096, 65536, 1048576, 16777216):
            copies.copy("HtoD", size, 1e-5 + size / 2e10)
        Path("copies.json").write_text(json.dumps(copies.json))
        for folder in ("t", "u", "bare"):
            assert invoke("trace", "edge-10m", "--seq", "8", "--out", folder).returncode == 0
        assert invoke("partition", "u").returncode == 0
        yield Path()


def commands() -> set[str]:
    """The names of all commands that have ``--json``."""
    groups = [("", app), *((f"{g.name}-", g.typer_instance) for g in app.registered_groups)]
    return {
        prefix + (one.name or one.callback.__name__.replace("_", "-"))
        for prefix, group in groups
        for one in group.registered_commands
    } - {"worker"}


def problems(name: str, value: Any) -> list[str]:
    """Where a value is not as its schema says."""
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in Draft202012Validator(known()[name]).iter_errors(value)
    ]


def test_the_schemas_are_those_of_the_code():
    """``python -m tools.schemas`` writes them."""
    written = {str(path.relative_to(ROOT)) for path in (ROOT / FOLDER).iterdir()}
    wanted = texts()
    assert written == set(wanted)
    for name, text in wanted.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, (
            f"{name}: run `python -m tools.schemas`"
        )


def test_every_command_has_a_schema():
    modes = {"calibrate-ops", "compare-over", "partition-plan", "models-check", "error", "warning"}
    assert commands() | modes == set(known())
    assert set(SAID) | {"warning"} == set(known())


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """All objects in a schema that say a type."""
    if isinstance(schema, dict):
        if "type" in schema or "const" in schema:
            yield schema
        for inner in schema.values():
            yield from parts(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from parts(inner)


SLOW = ("generate", "limits", "models-check", "partition-plan", "verify")
"""Those that trace a model anew, or run it."""


@pytest.mark.parametrize("name", [*SAID, "warning"])
def test_a_schema_is_strict_and_describes_every_key(name):
    schema = known()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["version"] == {**schema["properties"]["version"], "const": 1}
    for part in parts(schema):
        if "properties" in part:
            assert part["additionalProperties"] is False
            for key, inner in part["properties"].items():
                assert inner["description"].endswith("."), key


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SAID]
)
def test_what_a_command_prints_is_as_its_schema_says(name):
    command = re.sub("-(over|check|ops|plan)$", "", name)
    words = command.split("-", 1) if command.startswith("export-") else [command]
    for asked in SAID[name]:
        done = invoke("cutedge", *([] if name == "error" else words), *asked, "--json")
        text = done.stderr if name == "error" else done.stdout
        assert (done.returncode == 0) == (name != "error"), done.stderr
        assert problems(name, json.loads(text)) == [], asked
        for line in done.stderr.splitlines() if name != "error" else ():
            assert problems("warning", json.loads(line)) == []


def test_a_key_that_no_schema_has_is_found():
    """Else the schemas would be of no use."""
    shown = json.loads(invoke("cutedge", "links", "nvlink", "--json").stdout)
    assert problems("links", shown) == []
    shown["links"][0]["speed"] = 1
    assert problems("links", shown) == [
        "$.links[0]: Additional properties are not allowed ('speed' was unexpected)"
    ]
    del shown["links"][0]["speed"], shown["links"][0]["sources"]
    assert problems("links", shown) == ["$.links[0]: 'sources' is a required property"]


def test_the_reference_is_that_of_the_code():
    for page, wanted in reference.texts().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text == wanted, f"{page}: run `python -m tools.reference`"
