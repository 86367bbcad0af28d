"""Files that nobody meant: a reader says what is wrong, or takes them; it never falls over.

Seeds are fixed. ``make test`` has a few hundred cases of each kind, ``make test-all`` thousands.
"""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from time import process_time
from typing import Any, get_args

import pytest

from costmodels import Execution
from costmodels.bench import is_bench, read_bench
from costmodels.calibrate import read_log
from costmodels.checkpoints import storage_of
from costmodels.devices import load_device
from costmodels.engines import load_engine
from costmodels.links import load_link
from costmodels.profiles import is_profile, read_events, read_profile
from costmodels.weight_files import stored_as
from costmodels.weights import load_weights, stored
from partition.policy import load_policy
from tests.support.graphs import two_layers
from tests.support.inprocess import invoke
from tests.support.profiles import Trace
from tracer.errors import CutedgeError, InputError
from tracer.presets import find_config
from tracer.summary import parameter_bytes

SEED = 15

# --- text that people write -----------------------------------------------------------------------

WORDS = [
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "#",
    "\n",
    ".",
    ",",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "true",
    "9" * 40,
    "0x7fffffffffffffff",
    "1979-05-27T07:32:00Z",
    "[[]]",
    "{}",
    '""',
    "\x00",
    "\x1b[31m",
    "\ud7ff",
    "null",
    "value",
    "source",
    "[[rule]]",
    "[[secret]]",
    "place",
    "kind",
    "a.b.c = 1",
    "[" * 60 + "]" * 60,
    "[" * 2000,
    "9" * 5000,
    "0x" + "f" * 5000,
    ".".join("a" * 500),
    "5e-324",
    "mine.toml",
    "\\u0000/x",
]


def damaged(text: str, draw: random.Random) -> bytes:
    """``text`` after one to four mistakes: a word put in, a piece lost, doubled or moved, a bit."""
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        one, other = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
        match draw.randrange(6):
            case 0:
                text = text[:one] + draw.choice(WORDS) + text[one:]
            case 1:
                text = text[:one] + text[min(other, one + 30) :]
            case 2:
                text = text[:other] + text[one:]
            case 3:
                draw.shuffle(lines)
                text = "\n".join(lines)
            case 4:
                lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
                text = "\n".join(lines)
            case 5:
                place = draw.randrange(len(lines))
                key, equals, _ = lines[place].partition("=")
                lines[place] = f"{key}{equals} {draw.choice(WORDS)}"
                text = "\n".join(lines)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if data and draw.random() < 0.2:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def shipped(package: str, folder: str) -> list[str]:
    """The text of each TOML file of a package."""
    found = files(package).joinpath(folder)
    return [entry.read_text() for entry in sorted(found.iterdir(), key=lambda e: e.name)]


model = cache(two_layers)


def engine(path: str) -> None:
    """Read, and asked what it makes of a card."""
    read, card = load_engine(path), load_device("rtx-4090")
    for execution in get_args(Execution):
        if execution in read.launch_seconds:
            made = read.by(execution)
            figures = made.launch(card), made.bytes_per_second(card), made.share(1e12, 0.8, 1e6)
            assert all(figure is not None and isfinite(figure) for figure in figures)


def weights(path: str) -> None:
    """Read, and what it makes of a model's bytes."""
    assert 0 <= parameter_bytes(stored(model(), load_weights(path))) < 2**63


def grid(path: str) -> object:
    from cutedge._grids import read_grid

    return read_grid(Path(path), {}, 1.0)


GRID = """model = ["edge-10m"]
phase = ["prefill", "decode"]
seq = ["64..256", 1000]
past = [128]
policy = ["min-cut", "offload-linear"]
pair = ["tee-tdx+rtx-4090"]
link = ["pcie4-x16"]
wire_dtype = ["native", "bfloat16"]
engine = ["vllm"]
execution = ["graph"]
weights = "q8_0"
kv_dtype = "q8_0"
"""

READERS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "policy": (load_policy, shipped("partition", "data")),
    "link": (load_link, shipped("costmodels", "data/links")),
    "device": (load_device, shipped("costmodels", "data/devices")),
    "engine": (engine, shipped("costmodels", "data/engines")),
    "weights": (weights, shipped("costmodels", "data/weights")),
    "grid": (grid, [GRID]),
}


def read_damaged(kind: str, count: int, folder: Path) -> int:
    """Read ``count`` damaged files; how many were refused."""
    read, texts = READERS[kind]
    draw = random.Random(f"{SEED} {kind}")
    refused = 0
    for number in range(count):
        path = folder / "mine.toml"
        path.write_bytes(damaged(draw.choice(texts), draw))
        try:
            read(str(path))
        except CutedgeError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {path.read_bytes()!r}") from error
    return refused


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_text_file_is_refused_or_read(kind, tmp_path):
    assert read_damaged(kind, 150, tmp_path) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_thousands_of_damaged_text_files(kind, tmp_path):
    assert read_damaged(kind, 10_000, tmp_path) > 3000


FIGURE = '\n[{}]\nvalue = {}\nsource = "by hand"\n'
MINE = 'description = "d"\n' + FIGURE.format("element_bits", 6)
GROUPED = MINE + FIGURE.format("group_elements", 20)
RULE = '\n[[tensor]]\nparts = ["ffn_up"]\nas = "float32"\nsource = "by hand"\n'

HOSTILE: dict[str, tuple[str, str]] = {
    "a number of 5000 digits": (f"value = {'9' * 5000}", "not valid TOML"),
    "more than 64 bits": (MINE.replace("6", "0x" + "f" * 5000), "element_bits.value is a whole"),
    "a key of 8000 parts": (".".join("a" * 8000) + " = 1", "a key has more than 64 parts"),
    "a table of 8000 parts": (f"[{'.'.join('a' * 8000)}]", "a key has more than 64 parts"),
    "2000 lists": ("a = " + "[" * 2000, "not valid TOML"),
    "more than a mebibyte": ("#" * 2**20 + "\n", "more than 1,048,576 bytes"),
    "its own rules": ('encoding = "q8_0"\nrules_of = "mine.toml"\ndescription = "d"', "leads back"),
    "another's, which are its own": (
        'encoding = "q8_0"\nrules_of = "./other.toml"\ndescription = "d"',
        "rules_of leads back to it: mine.toml -> ./other.toml -> mine.toml",
    ),
    "a name with a zero": (
        'encoding = "q8_0"\nrules_of = "/\\u0000"\ndescription = "d"',
        "No such",
    ),
    "itself, where it does not fit": ('otherwise = "mine"\n' + GROUPED, "otherwise leads back to"),
    "another, which is itself": ('otherwise = "./other.toml"\n' + GROUPED, "otherwise leads back"),
    "no regular expression": (MINE + RULE + 'names = ["("]', "'(' is no regular expression"),
    "one that takes hours": (MINE + RULE + 'names = ["(.+)+x"]', "without a repeated group"),
    "one that takes minutes": (MINE + RULE + f'names = ["{".*" * 9}x"]', "at most 4 repeats"),
    "the first none-th": (MINE + RULE + 'layers = "first 1/0"', "layers is more, first 4 or"),
    "layers of 5000 digits": (MINE + RULE + f'layers = "first {"9" * 5000}"', "layers is more"),
    "2^62 bits a group": (MINE + FIGURE.format("group_bits", 2**62), "at most 4.29497e+09"),
}
OTHER = {
    "another's, which are its own": 'encoding = "q8_0"\nrules_of = "mine.toml"\ndescription = "d"',
    "another, which is itself": 'otherwise = "./other.toml"\n' + GROUPED,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_text_that_would_take_for_ever_is_refused(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, said = HOSTILE[what]
    Path("mine.toml").write_text(text)
    Path("other.toml").write_text(OTHER.get(what, ""))
    begun = process_time()
    with pytest.raises(InputError) as raised:
        weights("mine.toml")
    assert said in str(raised.value)
    assert process_time() - begun < 1


def test_an_encoding_of_a_users_file_is_read_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('description = "d"\nencoding = "./other.toml"')
    for bits in (8, 16):
        Path("other.toml").write_text(MINE.replace("6", str(bits)))
        packed = stored(model(), load_weights("mine.toml"))
        assert parameter_bytes(packed) == parameter_bytes(model()) * bits // 32


# --- what is no file ------------------------------------------------------------------------------


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("gone")


def empty(path: Path) -> None:
    path.touch()


def endless(path: Path) -> None:
    """Holes, and no bytes on the disk."""
    path.touch()
    os.truncate(path, 2**40)


NO_FILES: list[Callable[[Path], None]] = [
    folder, device, circle, nowhere, empty, endless, os.mkfifo,
]  # fmt: skip


def config(path: str) -> object:
    return find_config(path)


def log(path: str) -> object:
    return read_log(Path(path))


def weights_file(path: str) -> object:
    return stored_as(model(), Path(path))


FILE_READERS: dict[str, Callable[[str], object]] = {
    **{f"{kind}.toml": read for kind, (read, _) in READERS.items()},
    "config.json": config,
    "log.csv": log,
    "trace.json": lambda path: read_events(Path(path)),
    **{f"m.{end}": weights_file for end in ("gguf", "safetensors", "safetensors.index.json")},
}


@pytest.mark.parametrize("name", FILE_READERS)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_refused_at_once(name, make, tmp_path, monkeypatch):
    """A pipe without a writer would be waited for, and a device or a file of holes has no end."""
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    begun = process_time()
    with pytest.raises(CutedgeError, match=name.replace(".", r"\.")):
        FILE_READERS[name](f"./{name}")
    assert process_time() - begun < 1


def test_a_pipe_that_is_written_to_is_read(tmp_path):
    """As the shell makes one of ``--link <(command)``."""
    read, write = os.pipe()
    os.write(write, shipped("costmodels", "data/links")[0].encode())
    os.close(write)
    try:
        assert load_link(f"/dev/fd/{read}").name == str(read)
    finally:
        os.close(read)


# --- configs of models ----------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
ODD: list[Any] = [
    None,
    0,
    -1,
    1,
    3,
    2.5,
    1e308,
    2**31,
    "",
    "x",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": {}},
    True,
    False,
    "\x1b[2J",
    ["LlamaModel"],
    ["os.system"],
    "gelu",
    10**30,
]


def odd_configs(count: int) -> Iterator[bytes]:
    draw = random.Random(f"{SEED} config")
    for _ in range(count):
        config: dict[str, Any] = json.loads(json.dumps(CONFIG))
        for _ in range(draw.randint(1, 2)):
            table = config.get("rope_parameters") if draw.random() < 0.15 else config
            if not isinstance(table, dict) or not table:
                continue
            key = draw.choice([*table, "auto_map", "quantization_config", "layer_types"])
            if draw.random() < 0.2:
                table.pop(key, None)
            else:
                table[key] = draw.choice(ODD)
        if draw.random() < 0.2:
            config["quantization_config"] = draw.choice(QUANTISED)
        text = json.dumps(config).encode()
        yield damaged(text.decode(), draw) if draw.random() < 0.2 else text


QUANTISED: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 16, "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "awq", "bits": 4, "group_size": 32},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]},
    {"quant_method": "fp8", "weight_block_size": [16, 16]},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.*", "lm_head"]},
    {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "block",
                    "group_size": 16,
                    "symmetric": True,
                    "block_structure": [16, 16],
                }
            }
        },
        "ignore": ["re:.*mlp.up", "lm_head"],
    },
    {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["*"]}},
]
STRANGE = [
    *ODD, "re:(", "re:(.+)+x", "re:" + ".*" * 9 + "x", "*" * 40 + "x", "*a" * 40, "tensor",
    "group", [0, 0], [-1, 16], [16], ["re:["], [None, 5], "gptq", "fp8", float("nan"), 10**400,
]  # fmt: skip


def tables_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    inside = (value for value in table.values() if isinstance(value, dict))
    return [table, *(found for inner in inside for found in tables_of(inner))]


def read_quantised(count: int) -> int:
    """Store a model as ``count`` odd quantization_configs say; of how many not all is known."""
    draw = random.Random(f"{SEED} quantised")
    unknown = 0
    for number in range(count):
        told = json.loads(json.dumps(draw.choice(QUANTISED)))
        for _ in range(draw.randint(1, 3)):
            table = draw.choice([table for table in tables_of(told) if table] or [told])
            key = draw.choice([*table, "ignore", "quant_method"])
            value = json.loads(json.dumps(draw.choice(STRANGE)))
            if isinstance(table.get(key), list) and draw.random() < 0.5:
                table[key][draw.randrange(len(table[key]) or 1) :] = [value]
            else:
                table[key] = value
        what, begun = f"case {number}: {told}", process_time()
        try:
            found, said = storage_of({**CONFIG, "quantization_config": told})
            read = model() if found is None else stored(model(), found)
        except InputError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(what) from error
        assert 0 <= parameter_bytes(read) < 2**63, what
        assert len(said or "") < 400, what
        assert process_time() - begun < 1, what
        unknown += said is not None
    return unknown


def test_an_odd_quantization_config_is_read_or_said():
    assert read_quantised(200) > 50


@pytest.mark.slow
def test_thousands_of_odd_quantization_configs():
    assert read_quantised(20_000) > 5000


BENCH = {
    "model_type": "llama 7B mostly Q8_0",
    "backends": "CUDA",
    "gpu_info": "RTX 4090",
    "type_k": "f16",
    "type_v": "f16",
    "samples_ns": [10**9] * 2,
    **dict.fromkeys(("model_size", "model_n_params", "n_batch", "n_ubatch", "avg_ns"), 10**6),
    **dict.fromkeys(("n_gpu_layers", "n_gen"), 99),
    **dict.fromkeys(("n_prompt", "n_depth", "stddev_ns"), 0),
}


def a_profile() -> dict[str, Any]:
    trace = Trace(1e-5)
    trace.op("aten::mm", [[8, 16], [16, 4]], "c10::Half", 1e-4)
    trace.op("aten::add", [[8, 4], [4], []], ["c10::Half"] * 2 + ["Scalar"], 1e-5)
    return dict(trace.json)


def read_measured(count: int, folder: Path) -> int:
    """Read ``count`` odd profiles and benchmarks; how many were refused."""
    draw = random.Random(f"{SEED} measured")
    refused = 0
    for number in range(count):
        told: Any = draw.choice([a_profile(), [dict(BENCH), dict(BENCH)]])
        for _ in range(draw.randint(1, 3)):
            at = told
            while True:
                key = draw.choice(range(len(at)) if isinstance(at, list) else [*at])
                if not (isinstance(at[key], dict | list) and at[key]) or draw.random() < 0.05:
                    break
                at = at[key]
            at[key] = json.loads(json.dumps(draw.choice(STRANGE)))
        path = folder / "measured.json"
        path.write_text(json.dumps(told))
        said = ""
        try:
            events = read_events(path)
            if is_profile(events):
                read_profile(path, events)
            elif is_bench(events):
                read_bench(path, events)
        except CutedgeError as error:
            said = str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {told}") from error
        assert not said or str(path) in said, f"case {number}: {said}"
    return refused


def test_an_odd_profile_or_benchmark_is_refused_or_read(tmp_path):
    assert read_measured(100, tmp_path) > 20


@pytest.mark.slow
def test_thousands_of_odd_profiles_and_benchmarks(tmp_path):
    assert read_measured(10_000, tmp_path) > 2000


def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("costmodels.profiles._MOST_BYTES", 10**6)
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="unpacks to more than 1,000,000 bytes: profile fewer"):
        read_events(path)


def trace_odd(count: int, folder: Path) -> int:
    """Trace ``count`` odd configs; how many were refused."""
    refused = 0
    for number, text in enumerate(odd_configs(count)):
        path = folder / "config.json"
        path.write_bytes(text)
        done = invoke("trace", path, "--seq", "4", "--out", folder / "out")
        assert "Traceback" not in done.stderr, f"case {number}: {text!r}\n{done.stderr}"
        assert done.returncode in (0, 1, 2), f"case {number}: {text!r}"
        assert "\x1b" not in done.stdout + done.stderr
        if done.returncode:
            refused += 1
            assert done.stderr.startswith(("error: ", "warning: ")), f"case {number}: {text!r}"
            assert not (folder / "out").exists(), f"case {number}: {text!r}"
        shutil.rmtree(folder / "out", ignore_errors=True)
    return refused


@pytest.mark.slow
def test_an_odd_config_is_refused_or_traced(tmp_path):
    assert trace_odd(5, tmp_path) > 1


@pytest.mark.slow
def test_a_thousand_odd_configs(tmp_path):
    assert trace_odd(1000, tmp_path) > 300
