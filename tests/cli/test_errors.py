"""What a user who errs is told: the thing, the fix and the exit code, and nothing half-written."""

import json
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib.resources import files
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from costmodels.links import REQUIRED
from cutedge._workspace import remember, trace_folder
from partition.policy import open_policy_names, policy_names
from tests.support import BIN
from tests.support.inprocess import invoke
from tracer.files import MANIFEST, write_files
from tracer.presets import preset, preset_names
from tracer.serde import SCHEMA_VERSION, TRACE_TABLES, read_trace, write_trace

Done = CompletedProcess[str]


# --- how commands are run and what is checked of them ---------------------------------------------


def plain(text: str) -> str:
    """Text without the frames and line breaks that a terminal's width puts in."""
    return " ".join(text.translate(str.maketrans("│╭╮╰╯─", "      ")).split())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_refusal(done: Done, code: int, *says: str) -> None:
    assert "Traceback" not in done.stderr, done.stderr.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for words in says:
        assert words in plain(done.stderr)


@pytest.fixture
def refuse(cli, tmp_path) -> Callable[..., None]:
    """``refuse(2, ["trace", "lama"], "lama", "llama")``: code, command, what the message says.

    The command must leave every file in the test's directory as it was.
    """

    def check(code: int, command: list[str], *says: str, by: Callable[..., Done] = cli) -> None:
        before = tree(tmp_path)
        check_refusal(by(*command), code, *says)
        assert tree(tmp_path) == before

    return check


@pytest.fixture(scope="module")
def store(tmp_path_factory, traced) -> Path:
    """Where edge-10m is traced: ``t`` at seq 8 (the last trace) and ``other`` at seq 9."""
    folder = tmp_path_factory.mktemp("store")
    with chdir(folder):
        done = invoke("trace", "edge-10m", "--seq", "8", "--out", "t")
        assert not Path("cutedge-out").exists()  # one that goes elsewhere is not the last trace
        remember(Path("t"))
    assert (done.returncode, done.stderr) == (0, "")
    write_trace(traced("edge-10m", seq=9), folder / "other")
    return folder


@pytest.fixture
def here(store, tmp_path) -> Path:
    """The test's directory with the traces in it."""
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- the same through real processes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "command", "says"),
    [
        (2, ["trace", "gpt2", "--seq", "0"], ["--seq", "x>=1"]),
        (1, ["partition", "damaged"], ["error: damaged/tensors.parquet is damaged", "Run trace"]),
        (2, ["trace", "lama-3.2-1b"], ["error: ", "'lama-3.2-1b'", "Did you mean llama-3.2-1b"]),
        (2, ["partition", "--policy", "ofload-linear"], ["error: ", "mean offload-linear"]),
        (2, ["cutedge", "query", "SELEC 1"], ["error: ", "syntax error", "SELEC"]),
        (2, ["cutedge", "trase"], ["No such command 'trase'", "--help"]),
    ],
)
@pytest.mark.few(1)
def test_a_process_says_it_on_stderr_and_by_its_exit_code(here, run, refuse, code, command, says):
    shutil.copytree(here / "t", here / "damaged")
    (here / "damaged/tensors.parquet").write_bytes(b"PAR1")
    refuse(code, command, *says, by=run)


@pytest.mark.parametrize("command", ["partition", "compare", "query"])
def test_where_nothing_was_traced_there_is_no_last_trace(refuse, command):
    arguments = ["SELECT 1"] if command == "query" else []
    refuse(2, ["cutedge", command, *arguments], "no last trace", "run e.g. `trace ", "directory")


def test_no_arguments_show_the_commands(run):
    done = run("cutedge")
    assert done.returncode == 2
    for command in ("trace", "partition", "compare", "query", "models", "policies"):
        assert command in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["trace"], ["Missing argument 'model'", "--help"]),
        (["cutedge", "query"], ["Missing argument 'sql'", "--help"]),
        (["trace", "gpt2", "llama-2-7b"], ["unexpected extra argument", "llama-2-7b"]),
        (["trace", "gpt2", "--sqe", "8"], ["No such option: --sqe", "--seq"]),
        (["partition", "--policies", "x"], ["No such option: --policies", "--policy"]),
        (["trace", "gpt2", "--seq"], ["'--seq' requires an argument"]),
        (["cutedge", "parttion"], ["No such command 'parttion'"]),
    ],
)
def test_the_command_line_itself(refuse, command, says):
    refuse(2, command, *says)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["trace"], ["models", "--check"]], ids=" ".join)
@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("lama-3.2-1b", "llama-3.2-1b"),
        ("Llama-3.2-1B", "llama-3.2-1b"),
        ("gpt-2", "gpt2"),
        ("bert", "bert-base"),
        ("mistral", "mistral-7b"),
        ("qwen1.5-0.5", "qwen1.5-0.5b"),
    ],
)
def test_an_unknown_model_has_near_ones_suggested(refuse, command, model, near):
    refuse(2, [*command, model], f"unknown model {model!r}", "cutedge models", "Did you mean", near)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("empty/gone", ["unknown model 'empty/gone'", "path that exists"]),
        ("gone/config.json", ["unknown model 'gone/config.json'", "path that exists"]),
        ("empty", ["empty has no config.json", "must hold one"]),
        ("nested", ["nested has no config.json", "must hold one"]),
    ],
)
def test_a_path_that_holds_no_model(refuse, tmp_path, path, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested/config.json").mkdir(parents=True)
    refuse(2, ["trace", path], *says)


DAMAGED = [
    pytest.param(b'{"model_type": "gpt2", "n_la', "not valid JSON", id="truncated"),
    pytest.param(b"", "not valid JSON", id="empty"),
    pytest.param(b'\xff\xfe{"model_type": "gpt2"}', "damaged", id="not UTF-8"),
    pytest.param(b'[{"model_type": "gpt2"}]', "no model config", id="a list"),
    pytest.param(b'"gpt2"', "no model config", id="a text"),
    pytest.param(b'{"n_layer": 2}', "no model_type", id="without model_type"),
    pytest.param(b'{"model_type": 5}', "model_type", id="model_type is no text"),
]


@pytest.mark.parametrize("command", [["trace"], ["models", "--check"]], ids=" ".join)
@pytest.mark.parametrize(("content", "why"), DAMAGED)
def test_a_damaged_config(refuse, tmp_path, command, content, why):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_bytes(content)
    (tmp_path / "loose.json").write_bytes(content)
    refuse(2, [*command, "mine"], "error: mine/config.json", why)
    refuse(2, [*command, "loose.json"], "error: loose.json", why)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "gpt22"}, ["mine", "no model_type 'gpt22'", "Did you mean gpt2"]),
        ({"model_type": "zzzzzzz"}, ["mine", "transformers", "no model_type 'zzzzzzz'"]),
        ({"model_type": "gpt2", "n_layer": "two"}, ["mine", "n_layer", "'two'", "config.json"]),
        ({"model_type": "gpt2", "n_head": 7}, ["mine", "divisible", "7", "config.json"]),
        (
            {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7},
            ["mine", "(100)", "(7)", "config.json"],
        ),
    ],
    ids=["near type", "far type", "wrong type of value", "no model", "no model, by the class"],
)
def test_a_config_that_makes_no_model(refuse, tmp_path, config, says):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config), encoding="utf-8")
    refuse(2, ["trace", "mine", "--seq", "8"], *says)


@pytest.mark.parametrize(
    ("model", "setting", "says"),
    [
        ("gpt2", "n_layr=2", ["--set n_layr", "no such field", "Did you mean n_layer"]),
        ("llama-3.2-1b", "num_kv_heads=8", ["--set num_kv_heads", "num_key_value_heads"]),
        ("llama-3.2-1b", "rope_scalin.factor=8", ["--set rope_scalin", "rope_scaling"]),
        ("gpt2", "n_layer", ["--set n_layer", "key=value"]),
        ("gpt2", "=2", ["--set =2", "key=value"]),
        ("gpt2", "", ["--set", "key=value"]),
        ("gpt2", "num_hidden_layers=abc", ["--set num_hidden_layers", "expected int", "'abc'"]),
        ("llama-3.2-1b", "num_hidden_layers=abc", ["--set num_hidden_layers", "'abc'"]),
        ("gpt2", "n_layer=1.5", ["--set n_layer", "expected int", "1.5"]),
        ("gpt2", "n_layer=null", ["--set n_layer", "expected int", "null"]),
        ("gpt2", "num_attention_heads=7", ["--set num_attention_heads", "768", "7"]),
        ("llama-3.2-1b", "num_attention_heads=7", ["--set num_attention_heads", "(2048)", "(7)"]),
        ("gpt2", "vocab_size=-1", ["--set vocab_size", "-1"]),
        ("gpt2", "n_embd.x=3", ["--set n_embd.x"]),
    ],
)
def test_a_setting_that_cannot_be(refuse, model, setting, says):
    refuse(2, ["trace", model, "--seq", "8", "--set", setting], *says)


def test_the_setting_at_fault_is_named_among_others(refuse):
    settings = ["--set", "n_layer=2", "--set", "n_hed=4"]
    refuse(2, ["trace", "gpt2", "--seq", "8", *settings], "--set n_hed:", "n_head")


# --- sizes and choices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--seq 0", ["'--seq'", "x>=1"]),
        ("--seq -3", ["'--seq'", "x>=1"]),
        ("--seq many", ["'--seq'", "is not a valid int"]),
        ("--seq 1.5", ["'--seq'", "is not a valid int"]),
        ("--batch 0", ["'--batch'", "x>=1"]),
        ("--batch -1", ["'--batch'", "x>=1"]),
        ("--batch two", ["'--batch'", "is not a valid int"]),
        # Sizes whose tensors have more bytes than a table's 64 bits count.
        ("--seq 99999999999999999999 --set num_hidden_layers=1", ["seq", "99999999999999999999"]),
        pytest.param(
            "--seq 8 --batch 9999999999999999",
            ["batch", "9999999999999999"],
            marks=pytest.mark.slow,
        ),
        ("--dtype f32", ["--dtype 'f32'", "bfloat16", "Did you mean float32"]),
        ("--dtype int32", ["--dtype 'int32'", "float32, float16, bfloat16, int16, int8"]),
        ("--attn flash", ["'--attn'", "'flash'", "'eager', 'sdpa'"]),
        ("--logits first", ["'--logits'", "'first'", "'last', 'all'"]),
    ],
)
def test_trace_options(refuse, options, says):
    refuse(2, ["trace", "edge-10m", *options.split()], *says)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.few(1)
def test_a_dtype_that_is_offered_works_or_is_blamed(cli, tmp_path, dtype):
    done = cli("trace", "edge-10m", "--seq", "8", "--dtype", dtype, "--out", "t8")
    if done.returncode == 0:
        assert read_trace(tmp_path / "t8")[0].meta.dtype == dtype
    else:
        check_refusal(done, 2, f"--dtype {dtype!r}")


@pytest.mark.parametrize("command", ["partition", "compare"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--wire-dtype f16", ["--wire-dtype 'f16'", "bfloat16", "Did you mean float16"]),
        ("--wire-dtype int64", ["--wire-dtype 'int64'", "float32, float16, bfloat16"]),
        ("--residency forever", ["'--residency'", "'forever'", "'run', 'call'"]),
        ("--policy flash-atention", ["'flash-atention'", "Did you mean flash-attention"]),
        ("--policy FUSE-ATTENTION", ["'FUSE-ATTENTION'", "fuse-attention", ".toml"]),
        ("--policy gone.toml", ["policy file gone.toml", "No such file"]),
        ("--policy t/", ["policy file t", "directory"]),
        ("--link zmq-ipx", ["unknown link 'zmq-ipx'", "none, nvlink", ".toml", "mean zmq-ipc"]),
        ("--link gone.toml", ["link file gone.toml", "No such file"]),
        ("--link t/", ["link file t", "directory"]),
        ("--home gpu", ["--home 'gpu'", "--accel 'gpu'", "two different devices"]),
        ("--home npu --accel npu", ["--home 'npu'", "--accel 'npu'", "different"]),
        ("--home=", ["--home ''"]),
        ("--accel=", ["--accel ''"]),
    ],
)
def test_partition_and_compare_options(here, refuse, command, options, says):
    refuse(2, ["cutedge", command, *options.split()], *says)


def test_an_unknown_baseline(here, refuse):
    options = ["--policy", "all-home", "--baseline", "fuse-atention"]
    refuse(2, ["cutedge", "compare", *options], "'fuse-atention'", "Did you mean fuse-attention")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--baseline fastest", ["against fastest", "counts seconds", "--baseline"]),
        ("--baseline layers --accel a --accel b", ["against layers", "2 (a, b)", "--baseline"]),
    ],
)
def test_a_baseline_that_is_not_possible(here, refuse, options, says):
    refuse(2, ["cutedge", "compare", *options.split()], *says)


@pytest.mark.slow
def test_more_tokens_than_positions_are_warned_of(cli):
    model, positions = "bert-base", 512
    shallow = ("--set", "num_hidden_layers=1", "--json")
    within = cli("trace", model, "--seq", str(positions), *shallow)
    assert (within.returncode, within.stderr) == (0, "")
    assert json.loads(within.stdout)["warnings"] == []
    beyond = cli("trace", model, "--seq", str(positions + 1), *shallow)
    assert beyond.returncode == 0
    for words in ("warning", f"seq {positions + 1}", f"{positions} positions of {model}"):
        assert words in plain(beyond.stderr)
    figures = json.loads(beyond.stdout)
    assert (figures["seq"], len(figures["warnings"])) == (positions + 1, 1)
    assert Path(figures["folder"], "ops.parquet").is_file()


# --- policy files ---------------------------------------------------------------------------------

POLICY_HEAD = b'description = "d"\ndefault = "home"\n'
RULE = b'\n[[rule]]\nkind = "linear"\nplace = "accelerator"\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", ["key 'description' is missing"], id="empty"),
        pytest.param(b'description = "d"\n' + RULE, ["'default' is missing"], id="no default"),
        pytest.param(b'default = "home"\n', ["'description' is missing"], id="no description"),
        pytest.param(
            POLICY_HEAD + b"rules = 3\n", ["unknown key 'rules'", "mean rule"], id="misspelt key"
        ),
        pytest.param(
            POLICY_HEAD + RULE + b'modul_path = "x"\n',
            ["rule 1", "unknown key 'modul_path'", "Did you mean module_path"],
            id="misspelt condition",
        ),
        pytest.param(
            POLICY_HEAD + RULE + RULE + b'reasn = "x"\n',
            ["rule 2", "unknown key 'reasn'", "Did you mean reason"],
            id="misspelt key in the second rule",
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\nkind = "liner"\nplace = "home"\n',
            ["rule 1", "kind: 'liner'", "softmax", "Did you mean linear"],
            id="unknown kind",
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\nkind = ["linear", "gemm"]\nplace = "home"\n',
            ["rule 1", "kind: 'gemm'", "matmul"],
            id="unknown kind in a list",
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\npattern = "attention-cor"\nplace = "home"\n',
            ["rule 1", "pattern: 'attention-cor'", "Did you mean attention-core"],
            id="unknown pattern",
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\nkind = "linear"\nplace = "gpu"\n',
            ["rule 1", "place: 'gpu'", "home, accelerator"],
            id="a device for a place",
        ),
        pytest.param(
            b'description = "d"\ndefault = "tee"\n',
            ["default: 'tee'", "home, accelerator"],
            id="a device for the default",
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\nkind = "linear"\n', ["rule 1", "'place'"], id="no place"
        ),
        pytest.param(
            POLICY_HEAD + b'[[rule]]\nplace = "accelerator"\n',
            ["rule 1", "no condition", "module_path"],
            id="no condition",
        ),
        pytest.param(
            POLICY_HEAD + RULE + b'kind = "matmul"\n', ["not valid TOML", "line 7"], id="twice"
        ),
        pytest.param(POLICY_HEAD + b"[[rule]\n", ["not valid TOML", "line 3"], id="invalid TOML"),
        pytest.param(POLICY_HEAD + b"# \xff\n", ["mine.toml"], id="not UTF-8"),
        pytest.param(
            POLICY_HEAD + RULE.replace(b"[[rule]]", b"[rule]"), ["[[rule]]"], id="one bracket"
        ),
        pytest.param(
            POLICY_HEAD.replace(b'"d"', b"3"), ["description", "text"], id="description = 3"
        ),
        pytest.param(POLICY_HEAD + RULE + b"reason = 3\n", ["rule 1", "reason"], id="reason = 3"),
        pytest.param(
            POLICY_HEAD + RULE.replace(b'"linear"', b"3"), ["rule 1", "kind", "text"], id="kind = 3"
        ),
        pytest.param(
            POLICY_HEAD + RULE.replace(b'"linear"', b"[]"), ["rule 1", "kind"], id="kind = []"
        ),
        pytest.param(
            POLICY_HEAD + RULE + b'layer = "0"\n',
            ["rule 1", "layer", "whole number"],
            id="layer is text",
        ),
        pytest.param(
            POLICY_HEAD + RULE + b"layer = [0, true]\n",
            ["rule 1", "layer", "whole number"],
            id="layer is a truth value",
        ),
        pytest.param(
            POLICY_HEAD + RULE + b"layer = 1.0\n",
            ["rule 1", "layer", "whole number"],
            id="layer is a float",
        ),
        pytest.param(
            POLICY_HEAD + RULE.replace(b'"accelerator"', b"1"),
            ["rule 1", "place", "home, accelerator"],
            id="place = 1",
        ),
    ],
)
def test_a_policy_file(here, refuse, content, says):
    (here / "mine.toml").write_bytes(content)
    refuse(2, ["partition", "--policy", "mine.toml"], "mine.toml", *says)
    refuse(2, ["cutedge", "policies", "mine.toml"], "mine.toml", *says)
    options = ["--policy", "all-home", "--policy", "mine.toml"]
    refuse(2, ["cutedge", "compare", *options], "mine.toml", *says)


# --- link files -----------------------------------------------------------------------------------

FIGURES = tuple(REQUIRED)
GOOD_LINK = 'description = "d"\n' + "".join(
    f'[{key}]\nvalue = {n}\nsource = "s"\n' for n, key in enumerate(FIGURES)
)
FIRST = FIGURES[0]


def without(key: str) -> str:
    """The link file without a key of the top level."""
    if key == "description":
        return GOOD_LINK.replace('description = "d"\n', "")
    n = FIGURES.index(key)
    return GOOD_LINK.replace(f'[{key}]\nvalue = {n}\nsource = "s"\n', "")


def test_the_link_file_that_the_others_are_made_of(here, cli):
    (here / "mine.toml").write_text(GOOD_LINK, encoding="utf-8")
    done = cli("partition", "--link", "mine.toml", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["link"] == "mine"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *(
            pytest.param(without(key), [f"key {key!r} is missing"], id=f"no {key}")
            for key in ("description", *FIGURES)
        ),
        *(
            pytest.param(
                GOOD_LINK.replace(f"[{key}]\nvalue = {n}\n", f"[{key}]\n"),
                [f"[{key}]", "'value' is missing"],
                id=f"no value of {key}",
            )
            for n, key in enumerate(FIGURES)
        ),
        *(
            pytest.param(
                GOOD_LINK.replace(f'value = {n}\nsource = "s"', f"value = {n}"),
                [f"[{key}]", "'source' is missing"],
                id=f"no source of {key}",
            )
            for n, key in enumerate(FIGURES)
        ),
        *(
            pytest.param(
                GOOD_LINK.replace("value = 0", f"value = {value}"),
                [f"[{FIRST}]", "whole number", value.strip('"')],
                id=f"value = {value}",
            )
            for value in ("-1", "1.5", '"82"', "[82]")
        ),
        pytest.param(
            GOOD_LINK.replace("value = 0", "value = 99999999999999999999"),
            [f"{FIRST}.value", "whole number of more than 64 bits"],
            id="no whole number of TOML",
        ),
        pytest.param(
            GOOD_LINK.replace("[sent_tensor", "[sent_tensr"),
            ["unknown key 'sent_tensr_framing_bytes'", "Did you mean sent_tensor_framing_bytes"],
            id="misspelt key",
        ),
        pytest.param(
            GOOD_LINK.replace("value = 0", "valeu = 0"),
            [f"[{FIRST}]", "unknown key 'valeu'", "Did you mean value"],
            id="misspelt key in a figure",
        ),
        pytest.param(
            GOOD_LINK.replace('source = "s"', 'source = " "', 1),
            [f"[{FIRST}]", "source must say where"],
            id="an empty source",
        ),
        pytest.param(
            GOOD_LINK.replace('source = "s"', "source = 5", 1),
            [f"[{FIRST}]", "source must say where"],
            id="source is no text",
        ),
        pytest.param(
            f"{FIRST} = 82\n" + without(FIRST),
            [f"[{FIRST}]", "value and source", "82"],
            id="a bare figure",
        ),
        pytest.param(GOOD_LINK.replace('"d"', "5", 1), ["description", "text"], id="description"),
        pytest.param(GOOD_LINK + "value = 1\n", ["not valid TOML"], id="twice"),
        pytest.param("value = ", ["not valid TOML"], id="invalid TOML"),
        pytest.param("", ["key 'description' is missing"], id="empty"),
        pytest.param(GOOD_LINK + "# \xff", ["mine.toml", "UTF-8"], id="not UTF-8"),
    ],
)
def test_a_link_file(here, refuse, content, says):
    (here / "mine.toml").write_bytes(content.encode("latin-1"))
    refuse(2, ["partition", "--link", "mine.toml"], "mine.toml", *says)
    refuse(2, ["cutedge", "compare", "--link", "mine.toml"], "mine.toml", *says)


# --- trace directories ----------------------------------------------------------------------------

Damage = Callable[[Path], None]


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **metadata: str | None) -> None:
    """Change a table's rows and its file's metadata (None takes an entry out)."""
    table = pq.read_table(path, partitioning=None)
    marks = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    marks = {k: v for k, v in {**marks, **metadata}.items() if v is not None}
    sink = pa.BufferOutputStream()
    pq.write_table(change(table).replace_schema_metadata(marks), sink)
    write_files(path.parent, {path.name: sink.getvalue().to_pybytes()})


def same(table: pa.Table) -> pa.Table:
    return table


def set_cell(column: str, value: Any, row: int = -1) -> Callable[[pa.Table], pa.Table]:
    """A change of one cell."""

    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value
        index = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(index, field, pa.array(values, field.type))

    return change


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for n in range(200, 400):
        data[n] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


AGAIN = "Trace the model again"
COLUMNS = "does not have the columns of a"

BROKEN: dict[str, tuple[Damage, str, str]] = {
    "missing": (Path.unlink, "is missing", "Run trace"),
    "empty": (lambda path: path.open("w").close(), "is damaged", "Run trace"),
    "truncated": (truncate, "is damaged", "Run trace"),
    "garbled": (garble, "is damaged", "Run trace"),
    "a folder": (replace_by_folder, "", "race"),
    "of a later version": (
        lambda path: rewrite(path, same, schema_version="99"),
        f"has schema version 99, this cutedge reads {SCHEMA_VERSION}",
        AGAIN,
    ),
    "of no version": (
        lambda path: rewrite(path, same, schema_version=None),
        "has schema version none",
        AGAIN,
    ),
    "without a column": (
        lambda path: rewrite(path, lambda t: t.drop_columns(t.column_names[-1:])),
        COLUMNS,
        "Run trace",
    ),
    "with a column more": (
        lambda path: rewrite(path, lambda t: t.append_column("more", t.column(0))),
        COLUMNS,
        "Run trace",
    ),
    "with a column of another type": (
        lambda path: rewrite(
            path, lambda t: t.set_column(0, t.column_names[0], t.column(0).cast(pa.int64()))
        ),
        COLUMNS,
        "Run trace",
    ),
}


@pytest.mark.parametrize("table", TRACE_TABLES)
@pytest.mark.parametrize("how", BROKEN)
def test_a_table_that_cannot_be_used(here, refuse, table, how):
    damage, why, fix = BROKEN[how]
    damage(here / f"t/{table}.parquet")
    for command in (["partition", "t"], ["partition"], ["cutedge", "compare", "t"]):
        refuse(1, command, f"t/{table}.parquet", why, fix)


@pytest.mark.parametrize("table", TRACE_TABLES)
def test_tables_of_two_traces_are_told_apart(here, refuse, table):
    other = (here / f"other/{table}.parquet").read_bytes()
    write_files(here / "t", {f"{table}.parquet": other})
    refuse(1, ["partition", "t"], "t holds tables of different traces", "Trace the model again")


EDITED: dict[str, tuple[str, Callable[[pa.Table], pa.Table], dict[str, str | None]]] = {
    "ops in another order": ("ops", lambda t: t.take(list(range(len(t)))[::-1]), {}),
    "an unknown kind": ("ops", set_cell("kind", "liner"), {}),
    "an unknown status": ("ops", set_cell("flops_status", "sure"), {}),
    "rows gone": ("ops", lambda t: t.slice(0, 20), {}),
    "an unknown role": ("tensors", set_cell("role", "guest"), {}),
    "a figure that was not traced": ("ops", set_cell("read_bytes", 7), {}),
    "another model's metadata": ("ops", same, {"model": "gpt2"}),
    "an unknown dtype": ("tensors", set_cell("dtype", "float31"), {}),
    "a producer that is missing": ("tensors", set_cell("op_id", 10**6), {}),
    "an alias of nothing": ("tensors", set_cell("alias_of", 10**6), {}),
    "an edge to nothing": ("edges", set_cell("dst_op", 10**6), {}),
    "an edge of nothing": ("edges", set_cell("tensor_id", 10**6), {}),
    "metadata gone": ("ops", same, {"seq": None}),
    "metadata that is no number": ("ops", same, {"seq": "eight"}),
    "metadata that is no list": ("ops", same, {"symbolic": "5"}),
    "metadata that is no JSON": ("ops", same, {"versions": "[["}),
}


@pytest.mark.parametrize("how", EDITED)
def test_a_table_that_contradicts_itself(here, refuse, how):
    table, change, metadata = EDITED[how]
    rewrite(here / f"t/{table}.parquet", change, **metadata)
    refuse(1, ["partition", "t"], "t is damaged", "Trace the model again")


def test_tables_without_a_trace_id(here, refuse):
    for table in TRACE_TABLES:
        rewrite(here / f"t/{table}.parquet", same, trace_id=None)
    refuse(1, ["partition", "t"], "t", "Trace the model again")


@pytest.mark.parametrize("command", ["partition", "compare"])
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("gone", ["no trace at gone", "no such directory", "Run trace first"]),
        ("notes.txt", ["no trace at notes.txt", "Run trace first"]),
        ("empty", ["empty/ops.parquet is missing", "Run trace"]),
        ("cutedge-out", ["cutedge-out/ops.parquet is missing", "Run trace"]),
    ],
)
def test_a_directory_that_holds_no_trace(here, refuse, command, folder, says):
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("?")
    refuse(1, ["cutedge", command, folder], *says)


def test_a_last_trace_that_is_gone(here, refuse):
    shutil.rmtree(here / "t")
    refuse(1, ["partition"], "no trace at t", "Run trace first")
    refuse(1, ["cutedge", "query", "SELECT 1"], "no tables at t", "Run trace first")


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"", b"\0\n"], ids=["bytes", "empty", "null"])
def test_a_last_trace_that_is_damaged(here, cli, content):
    (here / "cutedge-out/last-trace").write_bytes(content)
    for command in (["partition"], ["cutedge", "query", "SELECT count(*) FROM ops"]):
        done = cli(*command)
        assert done.returncode in (1, 2)
        check_refusal(done, done.returncode, "trace")


@pytest.mark.parametrize("name", [" x ", "a\nb", "ü", "a/b", os.fsdecode(b"\xff")])
def test_the_last_trace_is_found_again_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    remember(Path(name))
    assert trace_folder(None) == Path(name)


# --- files that cannot be written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("notes.txt", "File exists"),
        ("notes.txt/t", "Not a directory"),
        ("/proc/cutedge", ""),  # the reason depends on who asks
        ("n" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_to(here, refuse, out, why):
    (here / "notes.txt").write_text("?")
    refuse(1, ["trace", "edge-10m", "--seq", "8", "--out", out], f"tables to {out}", why, "--out")


def test_a_file_where_results_go(tmp_path, cli):
    (tmp_path / "cutedge-out").write_text("?")
    check_refusal(cli("trace", "edge-10m", "--seq", "8"), 1, "cutedge-out", "--out")
    assert cli("trace", "edge-10m", "--seq", "8", "--out", "t").returncode == 0
    assert sorted(tree(tmp_path)) == [
        "cutedge-out",
        f"t/{MANIFEST}",
        "t/edges.parquet",
        "t/ops.parquet",
        "t/reach.json",
        "t/tensors.parquet",
    ]


def test_partition_advises_no_option_that_it_lacks(here, cli, refuse):
    (here / "t/policy=all-home").write_text("?")
    refuse(1, ["partition", "--policy", "all-home"], "t/policy=all-home", "Not a directory")
    assert "--out" not in cli("partition", "--policy", "all-home").stderr


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # SIGXFSZ: ignored by Python
os.execv(sys.argv[2], sys.argv[2:])
"""


def run_limited(run: Callable[..., Done], limit: int, command: str, *args: str) -> Done:
    """A command whose writes fail, as on a full disk, once a file has ``limit`` bytes."""
    return run(sys.executable, "-c", LIMITED, str(limit), BIN / command, *args)


def test_a_disk_that_is_full_in_the_middle_of_a_trace(here, run):
    before = tree(here)
    half = len(before["t/ops.parquet"]) // 2
    assert half > len(before["cutedge-out/last-trace"])
    done = run_limited(run, half, "trace", "edge-10m", "--seq", "10", "--out", "t")
    check_refusal(done, 1, "cannot write tables to t", "File too large", "free some space", "--out")
    assert tree(here) == before


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_partition(here, run):
    assert run("partition", "t").returncode == 0
    before = tree(here)
    folder = "t/policy=offload-linear/wire=float32/residency=run/machine=tee+gpu@zmq-ipc"
    first, second = (len(before[f"{folder}/{table}.parquet"]) for table in ("placement", "summary"))
    assert first + 2000 < second
    done = run_limited(run, (first + second) // 2, "partition", "t")
    check_refusal(done, 1, f"cannot write tables to {folder}", "File too large", "free some space")
    assert tree(here) == before
    assert run("partition", "t").returncode == 0
    assert tree(here) == before


def fill(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is written for the file ``name`` meets the kernel's own ENOSPC."""
    real = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "xb" and path.name.startswith(f".{name}."):
            real(path, mode).close()
            return real(Path("/dev/full"), "wb", buffering=0)
        return real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("table", TRACE_TABLES)
def test_a_device_without_space(here, refuse, monkeypatch, table):
    fill(monkeypatch, f"{table}.parquet")
    command = ["trace", "edge-10m", "--seq", "10", "--out", "t"]
    refuse(1, command, "cannot write tables to t", "No space left on device", "free some space")
    monkeypatch.undo()
    assert not list(here.rglob(".*.tmp"))
    monkeypatch.chdir(here)
    assert read_trace(here / "t")[0].meta.seq == 8


def test_no_space_for_the_name_of_the_last_trace(here, cli, monkeypatch):
    fill(monkeypatch, "last-trace")
    done = cli("trace", "edge-10m", "--seq", "10")
    check_refusal(done, 1, "cutedge-out/last-trace", "No space left on device")
    assert not list(here.rglob(".*.tmp"))
    assert (here / "cutedge-out/last-trace").read_text() == "../t\n"
    assert read_trace(next(here.glob("cutedge-out/**/seq=10")))[0].meta.seq == 10


@pytest.mark.parametrize(
    "command",
    [
        ["cutedge", "query", "SELECT 1"],
        ["cutedge", "models", "--json"],
        ["partition", "t"],
        ["cutedge", "--help"],
    ],
    ids=" ".join,
)
@pytest.mark.few(1)
def test_an_output_that_cannot_be_printed(here, run, command):
    def to(where: str) -> Done:
        return run("/bin/sh", "-c", f'"$@" {where}', "sh", BIN / command[0], *command[1:])

    full = to("> /dev/full")
    said = "cannot print the results: No space left on device"
    if "--json" in command:
        assert (full.returncode, json.loads(full.stderr)["error"]) == (1, said)
    else:
        check_refusal(full, 1, f"error: {said}")
    assert full.stderr.count("\n") == 1
    nobody_reads = to("| true")
    assert (nobody_reads.returncode, nobody_reads.stderr) == (0, "")


def test_text_that_the_terminal_has_no_letters_for(run):
    """Escaped, rather than no output at all."""
    done = run("/usr/bin/env", "PYTHONIOENCODING=ascii", BIN / "cutedge", "policies")
    assert (done.returncode, done.stderr) == (0, "")


# --- query ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELEC 1", ["syntax error", "SELEC 1", "^"]),
        ("SELECT FROM WHERE", ["syntax error"]),
        ("SELECT * FROM opps", ["opps does not exist", 'Did you mean "ops"']),
        ("SELECT flop FROM ops", ['"flop" not found', '"flops"']),
        ("SELECT CAST(name AS INT) FROM ops", ["Could not convert", "input_ids"]),
        ("", ["SQL"]),
        (" ; ", ["SQL"]),
        ("/* nothing */", ["SQL"]),
    ],
)
def test_sql_that_cannot_be(here, refuse, sql, says):
    refuse(2, ["cutedge", "query", sql], "error: ", *says)


@pytest.mark.parametrize("table", ["placement", "transfers", "calls", "summary", "Transfers"])
def test_a_table_that_partition_makes_is_asked_for_too_early(here, refuse, table):
    command = ["cutedge", "query", f"SELECT count(*) FROM {table}"]
    refuse(2, command, f"{table} does not exist", "run partition first")


def test_partition_is_not_advised_where_it_does_not_help(here, cli):
    assert cli("partition").returncode == 0
    for table in ("costs", "nonsense"):
        done = cli("cutedge", "query", f"SELECT * FROM {table}")
        check_refusal(done, 2, f"{table} does not exist")
        assert "run partition" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--trace", "gone"], 1, ["no tables at gone", "no such directory", "Run trace first"]),
        (["--trace", "empty"], 1, ["no tables below empty", "Run trace first"]),
        (["--trace", "notes.txt"], 1, ["no tables at notes.txt", "Run trace first"]),
        (["--all"], 1, ["no tables below cutedge-out", "Run trace first"]),
    ],
)
def test_no_tables_to_query(here, refuse, options, code, says):
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("?")
    refuse(code, ["cutedge", "query", "SELECT 1", *options], *says)


def test_no_results_at_all_to_query(refuse):
    refuse(1, ["cutedge", "query", "SELECT 1", "--all"], "cutedge-out", "Run trace first")


@pytest.mark.parametrize("table", TRACE_TABLES)
@pytest.mark.parametrize("how", ["empty", "truncated", "garbled"])
def test_a_damaged_table_is_queried(here, refuse, table, how):
    BROKEN[how][0](here / f"t/{table}.parquet")
    refuse(1, ["cutedge", "query", f"SELECT * FROM {table}"], f"t/{table}.parquet", "race")


# --- names that are not plain words ---------------------------------------------------------------

NAMES = [
    "[bold red]",
    'a "quote"',
    "a=b",
    "ü",
    "two words",
    "it's",
    "[x]",
    "[/x]",
    "*?",
    ":smile:",
    "s3:x",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.few(1)
def test_a_trace_in_an_odd_directory(here, cli, name):
    folder = f"./{name}"
    shutil.copytree(here / "t", here / name)
    done = cli("partition", folder)
    assert (done.returncode, done.stderr) == (0, "")
    written = f"{name}/policy=offload-linear/wire=float32/residency=run/machine=tee+gpu@zmq-ipc"
    assert done.stdout.splitlines()[-1] == f"written to {written}"
    assert sorted(path.name for path in (here / written).iterdir()) == [
        MANIFEST,
        "calls.parquet",
        "placement.parquet",
        "summary.parquet",
        "transfers.parquet",
    ]
    done = cli("cutedge", "compare", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"written to {name}"
    sql = "SELECT count(*) AS n, count(DISTINCT policy) AS policies FROM summary"
    done = cli("cutedge", "query", sql, "--trace", folder, "--json")
    untimed = len(open_policy_names()) - 1
    assert json.loads(done.stdout)["rows"] == [{"n": untimed, "policies": untimed}]


@pytest.mark.parametrize("name", ["[/x]", "the phone", "[x]", "it's"])
@pytest.mark.few(1)
def test_an_odd_device(here, cli, name):
    done = cli("partition", "--home", name, "--accel", "gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name} calls gpu" in done.stdout
    done = cli("cutedge", "compare", "--home", "tee", "--accel", name)
    assert (done.returncode, done.stderr) == (0, "")
    done = cli("cutedge", "compare", "--home", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name} as home" in done.stdout


@pytest.mark.parametrize("name", ["[x]", "it's", "two words"])
def test_an_odd_policy_and_link(here, cli, name):
    (here / f"{name}.toml").write_bytes(POLICY_HEAD + RULE)
    done = cli("partition", "--policy", f"{name}.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"policy {name}:" in done.stdout
    (here / f"{name}.toml").write_text(GOOD_LINK, encoding="utf-8")
    done = cli("partition", "--link", f"{name}.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"on the wire ({name})" in done.stdout


def test_odd_columns_are_shown_as_they_are(here, cli):
    done = cli("cutedge", "query", "SELECT '[/a]' AS \"[/b]\", '[x]' AS \"[y]\"")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [["[/b]", "[y]"], ["[/a]", "[x]"]]


# --- JSON against the tables ----------------------------------------------------------------------


def parsed(done: Done) -> Any:
    """The standard output as JSON: nothing beside it, and no NaN, which JSON has not."""

    def refuse_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert done.returncode == 0, done.stderr.splitlines()[-1]
    return json.loads(done.stdout, parse_constant=refuse_constant)


def ask(folder: str | Path, sql: str) -> list[dict[str, Any]]:
    """SQL over the Parquet files of a directory, each a view under its name."""
    connection = duckdb.connect()
    for path in Path(folder).glob("*.parquet"):
        connection.read_parquet(str(path), hive_partitioning=False).create_view(path.stem)
    result = connection.execute(sql)
    columns = [column[0] for column in result.description]
    return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]


def metadata(path: Path) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["llama-3.2-1b", "--seq", "8", "--set", "num_hidden_layers=1", "--attn", "sdpa"],
        ["edge-10m", "--seq", "600", "--batch", "2", "--dtype", "bfloat16", "--logits", "all"],
        ["gpt2", "--seq", "8"],
    ],
    ids=lambda options: options[0],
)
@pytest.mark.few(1)
def test_json_of_trace(cli, options):
    done = cli("trace", *options, "--json")
    figures = parsed(done)
    folder = Path(figures["folder"])

    stored = metadata(folder / "ops.parquet")
    for key in ("model", "phase", "batch", "seq", "past", "dtype", "attn", "logits", "parameters"):
        assert str(figures[key]) == stored[key]
    assert figures["symbolic"] == json.loads(stored["symbolic"]) == ["batch", "seq"]
    changed = {key: json.loads(value) for key, value in json.loads(stored["overrides"])}
    expected = {"num_hidden_layers": 1} if "--set" in options else {}
    assert figures["overrides"] == changed == expected
    warned = [json.loads(line) for line in done.stderr.splitlines()]
    assert warned == [{"version": 1, "warning": note} for note in figures["warnings"]]
    assert bool(figures["warnings"]) == ("600" in options)

    ops = ask(folder, "SELECT kind, count(*) AS n FROM ops GROUP BY kind")
    assert figures["ops_by_kind"] == {row["kind"]: row["n"] for row in ops}
    assert figures["ops"] == sum(row["n"] for row in ops)

    (sums,) = ask(
        folder,
        """SELECT sum(flops) FILTER (kind IN ('linear', 'matmul', 'attention')) AS product_flops,
           sum(flops) FILTER (kind NOT IN ('linear', 'matmul', 'attention')) AS other_flops,
           count(*) FILTER (flops IS NULL) AS unknown,
           count(*) FILTER (kind NOT IN ('view', 'constant', 'input', 'output')) AS working
           FROM ops""",
    )
    assert figures["product_flops"] == sums["product_flops"] > 0
    assert figures["other_flops"] == sums["other_flops"] > 0
    assert figures["coverage"] == 1 - sums["unknown"] / sums["working"]
    assert sum(figures["unsupported"].values()) == sums["unknown"]

    (parameters,) = ask(
        folder,
        """SELECT sum(bytes) AS bytes FROM tensors
           WHERE role = 'parameter' AND alias_of IS NULL""",
    )
    assert figures["parameter_bytes"] == parameters["bytes"]

    largest = figures["largest_tensors"]
    assert [t["bytes"] for t in largest] == sorted((t["bytes"] for t in largest), reverse=True)
    (most,) = ask(
        folder,
        """SELECT max(bytes) AS bytes FROM tensors
           WHERE alias_of IS NULL AND role IN ('activation', 'output', 'input')""",
    )
    assert largest[0]["bytes"] == most["bytes"]
    for found in largest:
        columns = "shape, bytes, bytes_expr, seq_degree"
        rows = ask(folder, f"SELECT {columns} FROM tensors WHERE bytes = {found['bytes']}")
        assert {key: found[key] for key in columns.split(", ")} in rows


def check_partition_json(figures: dict[str, Any], here: Path) -> None:
    """Every figure of ``partition --json`` is in the tables that it names."""
    folder = here / figures["folder"]
    (summary,) = ask(folder, "SELECT * FROM summary")
    for key in (
        "policy",
        "home",
        "accelerators",
        "link",
        "residency",
        "calls",
        "transfers",
        "cut_edges",
        "sent_payload_bytes",
        "sent_wire_bytes",
        "received_payload_bytes",
        "received_wire_bytes",
        "peer_payload_bytes",
        "peer_wire_bytes",
        "total_payload_bytes",
        "total_wire_bytes",
        "total_bytes_expr",
        "resident_bytes",
    ):
        assert figures[key] == summary[key], key
    assert figures["seconds"] == summary["seconds"]
    assert folder.parts[-3] == f"wire={figures['wire']}"

    (sums,) = ask(
        folder,
        """SELECT count(*) AS transfers, count(DISTINCT call_id) AS calls,
           coalesce(sum(payload_bytes), 0)::BIGINT AS payload,
           coalesce(sum(wire_bytes), 0)::BIGINT AS wire,
           coalesce(sum(payload_bytes) FILTER (direction = 'send'), 0)::BIGINT AS sent,
           sum(seconds) AS seconds
           FROM transfers""",
    )
    assert figures["transfers"] == sums["transfers"]
    assert figures["total_payload_bytes"] == sums["payload"]
    assert figures["total_wire_bytes"] == sums["wire"]
    assert figures["sent_payload_bytes"] == sums["sent"]
    (calls,) = ask(
        folder,
        """SELECT count(*) AS calls, coalesce(sum(sent_payload_bytes), 0)::BIGINT AS sent,
           coalesce(sum(received_wire_bytes), 0)::BIGINT AS received, sum(seconds) AS seconds
           FROM calls""",
    )
    assert figures["calls"] == calls["calls"] == sums["calls"]
    assert figures["sent_payload_bytes"] == calls["sent"]
    assert figures["received_wire_bytes"] == calls["received"]
    if figures["link"] == "pcie5-x16":
        assert figures["seconds"] > 0
        assert sums["seconds"] == pytest.approx(figures["seconds"])
        assert calls["seconds"] == pytest.approx(figures["seconds"])
    else:  # without a bandwidth nothing is known, which is not 0
        assert figures["seconds"] is sums["seconds"] is calls["seconds"] is None

    devices = ask(folder, "SELECT DISTINCT device FROM placement WHERE device IS NOT NULL")
    assert {row["device"] for row in devices} == {figures["home"], *figures["accelerators"]}

    groups = figures["top_transfers"]
    assert sum(group["count"] for group in groups) == sums["transfers"]
    assert sum(group["payload_bytes"] for group in groups) == sums["payload"]
    for group in groups:
        assert group["payload_bytes"] == group["count"] * group["each_payload_bytes"]
        assert group["share"] == group["payload_bytes"] / sums["payload"]
    grouped = ask(
        folder,
        """SELECT tensor_group, direction, payload_bytes AS each, seq_degree, count(*) AS n
           FROM transfers GROUP BY ALL""",
    )
    counted: dict[tuple[Any, ...], int] = {}
    for group in groups:
        key = tuple(
            group[what]
            for what in ("tensor_group", "direction", "each_payload_bytes", "seq_degree")
        )
        counted[key] = counted.get(key, 0) + group["count"]
    assert counted == {tuple(row.values())[:4]: row["n"] for row in grouped}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--policy", "all-home"],
        ["--policy", "fuse-attention", "--wire-dtype", "bfloat16", "--residency", "call"],
        ["--policy", "mine.toml", "--link", "none", "--home", "phone", "--accel", "npu"],
        ["--link", "pcie5-x16"],
    ],
    ids=" ".join,
)
def test_json_of_partition(here, cli, options):
    (here / "mine.toml").write_bytes(POLICY_HEAD + RULE)
    figures = parsed(cli("partition", "t", *options, "--json"))
    check_partition_json(figures, here)
    bottleneck = figures["bottleneck"]
    if figures["transfers"]:
        assert bottleneck["share"] == bottleneck["payload_bytes"] / figures["total_payload_bytes"]
        assert bottleneck["relief"]["saved_bytes"] > 0
    else:
        assert bottleneck is None


@pytest.mark.slow
def test_json_of_compare(here, cli):
    figures = parsed(cli("cutedge", "compare", "--baseline", "fuse-attention", "--json"))[
        "partitions"
    ]
    timed = ["fastest"]  # without described devices there are no seconds
    assert [one["policy"] for one in figures] == [n for n in open_policy_names() if n not in timed]
    whole = {one["policy"]: one["total_payload_bytes"] for one in figures}
    for one in figures:
        check_partition_json(one, here)
        assert one["baseline"] == "fuse-attention"
        assert one["saved_bytes"] == whole["fuse-attention"] - whole[one["policy"]]
        assert one["saved_share"] == one["saved_bytes"] / whole["fuse-attention"]
        away = [size for name, size in one["resident_bytes"].items() if name != one["home"]]
        assert one["resident_off_home_bytes"] == sum(away)
    alone = parsed(cli("partition", "--policy", "flash-attention", "--json"))
    beside = ("saved_bytes", "saved_share", "resident_off_home_bytes", "baseline")
    (same,) = (one for one in figures if one["policy"] == "flash-attention")
    assert {k: v for k, v in same.items() if k not in beside} | {"version": 1} == alone


def test_json_of_query(here, cli):
    sql = """SELECT kind, count(*) AS n, sum(flops) AS flops, avg(flops) AS mean,
             bool_or(is_view) AS any_view, list(DISTINCT layer ORDER BY layer) AS layers
             FROM ops GROUP BY kind ORDER BY kind"""
    found = parsed(cli("cutedge", "query", sql, "--json"))["rows"]
    assert found == ask(here / "t", sql)
    assert len(found) > 5
    assert parsed(cli("cutedge", "query", "SELECT 1 AS a FROM ops WHERE false", "--json")) == {
        "version": 1,
        "columns": ["a"],
        "rows": [],
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("NULL", None),
        ("18446744073709551616::HUGEINT", 2**64),
        ("0.5", 0.5),
        ("12.34::DECIMAL(18, 2)", 12.34),
        ("DATE '2026-01-31'", "2026-01-31"),
        ("'01234567-89ab-cdef-0123-456789abcdef'::UUID", "01234567-89ab-cdef-0123-456789abcdef"),
        ("'nan'::DOUBLE", None),
        ("'-inf'::FLOAT", None),
        ("TIMESTAMP '2026-01-31 12:30:00'", "2026-01-31 12:30:00"),
        ("'\\xAA\\x00'::BLOB", "aa00"),
        ("MAP {DATE '2026-01-31': [1.5]}", {"2026-01-31": [1.5]}),
        ("{'a': [1.5, NULL]}", {"a": [1.5, None]}),
    ],
)
def test_json_of_every_type_of_column(here, cli, value, expected):
    found = parsed(cli("cutedge", "query", f"SELECT {value} AS value FROM ops LIMIT 1", "--json"))
    (row,) = found["rows"]
    assert row == {"value": expected}


def test_columns_of_one_name_are_told_apart(here, cli):
    """Else JSON would lose all but the last: a join of two tables has most names twice."""
    found = parsed(cli("cutedge", "query", "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a", "--json"))
    (row,) = found["rows"]
    assert row == {"a": 1, "a_1": 2, "a_1_1": 3, "a_2": 4}


@pytest.mark.parametrize("wide", [20, 20_000])
def test_no_number_is_cut_however_wide_the_table_is(here, cli, wide):
    numbers = "123456789012345678 AS i, 6984.50492 AS f, NULL AS n, -7::DECIMAL(9, 2) AS d"
    done = cli("cutedge", "query", f"SELECT repeat('x', {wide}) AS x, {numbers}")
    header, row = done.stdout.splitlines()
    assert row.split() == ["x" * wide, "123456789012345678", "6984.50492", "-7.00"]
    assert header.split() == ["x", "i", "f", "n", "d"]
    for column, value in (("i", "123456789012345678"), ("f", "6984.50492"), ("d", "-7.00")):
        assert row.index(value) + len(value) == header.index(column) + 1  # right-aligned


def test_json_of_models(cli):
    listed = parsed(cli("cutedge", "models", "--json"))["models"]
    known = {one["model"]: one for one in listed}
    assert list(known) == preset_names()
    llama = known["llama-3.2-1b"]
    assert {key: value for key, value in llama.items() if key != "config"} == {
        "model": "llama-3.2-1b",
        "type": "llama",
        "layers": 16,
        "hidden": 2048,
        "heads": 32,
        "kv_heads": 8,
        "vocabulary": 128256,
        "positions": 131072,
        "experts": None,
    }
    for name, figures in known.items():
        assert parsed(cli("cutedge", "models", name, "--json"))["models"] == [figures]
        assert figures["config"] == preset(name) == parsed(cli("cutedge", "models", name))
        assert figures["type"] == figures["config"]["model_type"]
        assert all(value for key, value in figures.items() if key != "experts"), name


def test_the_figures_of_models_are_those_that_are_traced(cli):
    (figures,) = parsed(cli("cutedge", "models", "edge-10m", "--json"))["models"]
    folder = parsed(cli("trace", "edge-10m", "--seq", "8", "--json"))["folder"]
    (counted,) = ask(folder, "SELECT max(layer) + 1 AS layers FROM ops")
    assert counted["layers"] == figures["layers"]
    (logits,) = ask(folder, "SELECT shape FROM tensors WHERE label = 'logits'")
    assert logits["shape"][-1] == figures["vocabulary"]


def shipped_policies() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in policy_names():
        text = (files("partition") / "data" / f"{name}.toml").read_text(encoding="utf-8")
        yield name, tomllib.loads(text)


@pytest.mark.slow
def test_json_of_policies(here, cli):
    listed = parsed(cli("cutedge", "policies", "--json"))["policies"]
    expected = [
        {
            "policy": name,
            "description": table["description"],
            "default": table["default"],
            "objective": {table["objective"]: 1} if "objective" in table else None,
            "cut": table.get("cut", "anywhere"),
            "secrets": [
                {
                    key: value
                    if key in ("reason", "optional") or isinstance(value, list)
                    else [value]
                    for key, value in secret.items()
                }
                for secret in table.get("secret", [])
            ],
            "rules": [
                {
                    key: value
                    if key in ("place", "reason", "optional") or isinstance(value, list)
                    else [value]
                    for key, value in rule.items()
                }
                for rule in table.get("rule", [])
            ],
            "protects": [
                {
                    "pads": "offline",
                    "scale": 16.0,
                    "bits": 32,
                    "axis": "tokens",
                    "check": "",
                    "trials": 1,
                    **protect,
                    "kind": protect["kind"]
                    if isinstance(protect["kind"], list)
                    else [protect["kind"]],
                }
                for protect in table.get("protect", [])
            ],
            "packs": table.get("pack", []),  # no policy of cutedge packs
        }
        for name, table in shipped_policies()
    ]
    assert listed == expected
    for policy in listed:
        alone = parsed(cli("cutedge", "policies", policy["policy"], "--json"))
        assert alone == {"version": 1, "policies": [policy]}
        if policy["objective"] is not None:
            continue
        written = parsed(cli("partition", "t", "--policy", policy["policy"], "--json"))
        reasons = ask(
            here / written["folder"], "SELECT DISTINCT reason FROM placement WHERE device = 'gpu'"
        )
        assert {row["reason"] for row in reasons} <= {rule["reason"] for rule in policy["rules"]}
