"""Engines out of what llama-bench writes: those that published rows give, and known ones again."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import cutedge
from costmodels.bench import read_bench
from costmodels.devices import load_device
from costmodels.engines import Engine, load_engine
from costmodels.fit_engine import work_of
from costmodels.roofline import time_ops
from cutedge._calibrate import calibrate
from tests.support.inprocess import invoke
from tracer.presets import preset

LLAMA = 6738546688  # CodeLlama-7b, whose sizes are those of llama-2-7b but for 16 tokens more


def row(model: str, parameters: int, seconds: float, **fields: Any) -> dict[str, Any]:
    """A row as llama-bench -o json has it (build 5163), where it matters here."""
    return {
        "build_commit": "8cf427ff",
        "build_number": 5163,
        "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
        "gpu_info": "NVIDIA GeForce RTX 4090",
        "backends": "CUDA",
        "model_type": model,
        "model_size": 2 * parameters,
        "model_n_params": parameters,
        "n_batch": 2048,
        "n_ubatch": 512,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 99,
        "n_prompt": 0,
        "n_gen": 128,
        "n_depth": 0,
        "avg_ns": round(seconds * 1e9),
        "stddev_ns": 1000,
        "samples_ns": [round(seconds * 1e9)] * 5,
        **fields,
    }


PUBLISHED = [
    # ggml-org/llama.cpp#4766: 61.03, 98.13 and, of prompts, 11048.22 tokens a second
    row("llama 7B mostly F16", LLAMA, 128 / 61.03),
    row("llama 7B mostly Q8_0", LLAMA, 128 / 98.13),
    row("llama 7B mostly F16", LLAMA, 512 / 11048.22, n_prompt=512, n_gen=0),
]


def written(folder: Path, rows: Sequence[Any], name: str = "bench.json") -> Path:
    path = folder / name
    lines = name.endswith("jsonl")
    text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench.json", "bench.jsonl"])
def test_published_rows_give_the_engine_that_is_shipped(tmp_path, name):
    """As tools/fit_engines.py fits it to the same two rows of decode; no prompt tells a peak."""
    found = calibrate(
        written(tmp_path, PUBLISHED[:2], name),
        tmp_path / "my.toml",
        device="rtx-4090",
        models=["llama-2-7b"],
    )
    engine, shipped = load_engine(str(tmp_path / "my-engine.toml")), load_engine("llama.cpp-2024")
    assert engine.execution == "fused"
    assert engine.launch_seconds == {
        "fused": pytest.approx(shipped.launch_seconds["fused"], rel=2e-3)
    }
    share = shipped.bandwidth_ratio["rtx-4090"]
    assert engine.bandwidth_ratio == {"rtx-4090": pytest.approx(share, rel=1e-3)}
    assert engine.compute_ratio == {}
    assert any("no row is bound by compute_ratio.rtx-4090" in said for said in found.warnings)
    assert [one.kind for one in found.fitted.residuals] == ["decode", "decode"]
    assert all(abs(one.relative) < 1e-6 for one in found.fitted.residuals)
    assert "row 2 (llama 7B mostly Q8_0 tg128) " in engine.sources["launch_seconds.fused"]


@pytest.mark.slow
def test_a_prompt_gives_a_share_of_the_peak(tmp_path):
    """2 x 6.6e9 x 512 FLOPs in 46.3 ms are 146 TFLOP/s of 165; launches take 5 of the ms."""
    found = calibrate(
        written(tmp_path, PUBLISHED), tmp_path / "my.toml", device="rtx-4090", models=["llama-2-7b"]
    )
    engine = load_engine(str(tmp_path / "my-engine.toml"))
    assert 0.9 < engine.compute_ratio["rtx-4090"] <= 1
    assert all(abs(one.relative) < 0.03 for one in found.fitted.residuals)


@pytest.mark.slow
def test_published_rows_foretell_another_format(tmp_path):
    """F16 and Q8_0 of a 4090 in early 2024; Q4_0 as predicted by the engine that is shipped."""
    calibrate(
        written(tmp_path, PUBLISHED[:2]),
        tmp_path / "my.toml",
        device="rtx-4090",
        models=["llama-2-7b"],
    )
    engine, card = load_engine(str(tmp_path / "my-engine.toml")), load_device("rtx-4090")
    trace = cutedge.trace("llama-2-7b", phase="decode", past=64, dtype="float16")
    step = time_ops(trace.stored("q4_0").graph, card, engine=engine).seconds
    by = load_engine("llama.cpp-2024")
    assert step == pytest.approx(
        time_ops(trace.stored("q4_0").graph, card, engine=by).seconds, rel=2e-3
    )


@cache
def parameters(model: str) -> int:
    step = cutedge.trace(model, phase="decode", past=64, dtype="float16")
    return step.graph.meta.parameters


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> str:
    """The file of a model that is edge-10m but for its layers: it has one."""
    file = tmp_path_factory.mktemp("models") / "shallow.json"
    config = {**preset("edge-10m"), "num_hidden_layers": 1}
    file.write_text(json.dumps(config), encoding="utf-8")
    return str(file)


def made(model: str, engine: Engine, device: str) -> list[dict[str, Any]]:
    """Rows of a model with the seconds that an engine has for them."""
    card = load_device(device)
    rows = []
    for name, weights in (("F16", None), ("Q8_0", "q8_0")):
        for fields in (
            {"n_gen": 128},
            {"n_gen": 16, "n_depth": 1024},
            {"n_prompt": 512, "n_gen": 0},
            {"n_prompt": 700, "n_gen": 32},  # in steps of 512 and 188, then tokens after 700
        ):
            prompt, new, past = (fields.get(key, 0) for key in ("n_prompt", "n_gen", "n_depth"))
            parts = [(1, {"seq": min(512, prompt), "past": 0, "cache": True})] * (prompt > 0)
            if prompt > 512:
                parts.append((1, {"seq": prompt - 512, "past": 512, "cache": True}))
            if new:
                parts.append((new, {"phase": "decode", "past": past + prompt + new // 2}))
            seconds = 0.0
            for count, sizes in parts:
                trace = cutedge.trace(model, dtype="float16", **sizes).stored(weights)
                seconds += count * time_ops(trace.graph, card, engine=engine).seconds
            rows.append(row(f"opt 10M {name}", parameters(model), seconds, **fields))
    return rows


@pytest.mark.slow
def test_an_engine_is_found_again(tmp_path, shallow):
    known = Engine(
        "known",
        "",
        "fused",
        {"fused": 2e-7},
        compute_ratio={"any": 0.3},
        bandwidth_ratio={"any": 0.6},
    )
    file = written(tmp_path, made(shallow, known, "rtx-4090"))
    found = calibrate(file, tmp_path / "my.toml", device="rtx-4090", models=[shallow])
    (engine,) = found.files
    assert engine.figures == {
        "launch_seconds.fused": pytest.approx(2e-7, rel=1e-4),
        "compute_ratio.rtx-4090": pytest.approx(0.3, rel=1e-4),
        "bandwidth_ratio.rtx-4090": pytest.approx(0.6, rel=1e-4),
    }
    # The same rows without a device: one of that many FLOPs and bytes a second.
    rates = calibrate(file, tmp_path / "other.toml", models=[shallow])
    assert [one.kind for one in rates.files] == ["device", "engine"]
    card, own = load_device("rtx-4090"), load_device(str(tmp_path / "other-device.toml"))
    assert own.memory_bandwidth_bytes_per_second == pytest.approx(
        0.6 * card.memory_bandwidth_bytes_per_second, rel=1e-3
    )
    assert own.peak_flops_per_second["float16"] == pytest.approx(
        0.3 * card.peak_flops_per_second["float16"], rel=0.01
    )  # float32 between the products has a peak of its own on the card


@pytest.mark.slow
def test_one_row_tells_nothing_apart(tmp_path, shallow):
    done = refused(tmp_path, [row("opt 10M F16", parameters(shallow), 0.01)], "--model", shallow)
    assert "determines no figure" in done
    assert "cannot tell bandwidth_ratio.rtx-4090 and launch_seconds.fused apart" in done


def refused(folder: Path, rows: Sequence[Any], *options: str) -> str:
    file = written(folder, rows)
    out = str(folder / "my.toml")
    done = invoke("cutedge", "calibrate", str(file), "--out", out, "--device", "rtx-4090", *options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert [path.name for path in folder.iterdir()] == ["bench.json"]
    return line


@pytest.mark.slow
def test_rows_of_which_no_graph_speaks_are_left_out_and_said(tmp_path, shallow):
    count = parameters(shallow)
    rows = [
        row("opt 10M F16", count, 128e-4),
        row("opt 10M Q8_0", count, 128e-4 * 0.8),
        row("opt 10M TQ1_0 - 1.69 bpw", count, 1.0),
        row("opt 10M F16", count, 1.0, n_gpu_layers=0),
        row("opt 10M F16", count, 1.0, type_v="q8_0"),
        row("opt 10M F16", count, 1.0, n_cpu_moe=3),
    ]
    file = written(tmp_path, rows, "bench.jsonl")
    found = calibrate(file, tmp_path / "my.toml", device="rtx-4090", models=[shallow])
    said = " ".join(found.warnings)
    assert "row 3 (opt 10M TQ1_0 - 1.69 bpw tg128) is left out: its weights" in said
    assert "row 4 (opt 10M F16 tg128) is left out: 0 of 1 layers" in said
    assert "row 5 (opt 10M F16 tg128) is left out: keys and values are cached in two" in said
    assert "row 6 (opt 10M F16 tg128) is left out: some of its experts" in said
    assert len(found.fitted.residuals) == 2


@pytest.mark.parametrize(
    ("fields", "options", "says"),
    [
        ({}, (), "1 model (opt 10M F16): name it with --model"),
        ({}, ("--model", "{shallow}", "--model", "gpt2"), "1 model (opt 10M F16)"),
        ({"model_n_params": 5}, ("--model", "{shallow}"), "--model shallow has "),
        ({"model_type": 3}, (), "row 1: model_type must be text"),
        ({"n_gen": 0}, (), "n_prompt and n_gen are both 0"),
        ({"n_gen": "128"}, (), "row 1: n_gen must be a whole number"),
        ({"n_gen": 10**9}, (), "row 1: n_gen must be a whole number up to 10,000,000"),
        (
            {"n_prompt": 10**6, "n_ubatch": 1},
            ("--model", "{shallow}"),
            "its prompt is read in more than 256 steps",
        ),
        ({"n_ubatch": 0}, (), "row 1: n_ubatch must be 1 or more"),
        ({"avg_ns": 0, "samples_ns": []}, (), "row 1: nanoseconds must be numbers of more than 0"),
        ({"samples_ns": ["a"]}, (), "row 1: nanoseconds must be numbers"),
        ({"samples_ns": 7}, (), "row 1: nanoseconds must be numbers"),
        ({"type_k": "x", "type_v": "x"}, ("--model", "{shallow}"), "--kv-dtype 'x' is not one of"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, shallow, fields, options, says):
    rows = [row("opt 10M F16", parameters(shallow), 0.01, **fields)]
    words = [word.format(shallow=shallow) for word in options]
    assert says in refused(tmp_path, rows, *words)


def test_a_row_that_is_none(tmp_path, shallow):
    good = row("opt 10M F16", parameters(shallow), 0.01)
    assert "row 2: an object is wanted" in refused(tmp_path, [good, 3])
    short = {key: value for key, value in good.items() if key != "model_size"}
    assert "row 2: key 'model_size' is missing" in refused(tmp_path, [good, short])


@pytest.mark.parametrize(
    ("model", "storage"),
    [
        ("llama 7B all F32", ("float32", None)),
        ("llama 7B mostly F16", ("float16", None)),
        ("llama 8B BF16", ("bfloat16", None)),
        ("llama 7B Q4_0", ("float16", "q4_0")),
        ("qwen2 7B Q4_K - Medium", ("float16", "q4_k_m")),
        ("llama 7B Q3_K - Large", ("float16", "q3_k_l")),
        ("llama 7B Q6_K", ("float16", "q6_k")),
        ("granite 3B IQ4_XS - 4.25 bpw", ("float16", "iq4_xs")),
        ("gpt-oss 20B MXFP4 MoE", ("float16", "mxfp4_moe")),
        ("llama 7B TQ1_0 - 1.69 bpw", None),
        ("a model \x1b[31mof mine", None),
    ],
)
def test_a_model_says_what_its_weights_are_in(model, storage):
    (one,) = read_bench(Path("bench.json"), [row(model, LLAMA, 1.0)])
    assert one.storage == storage
    assert one.model.isprintable()


def test_a_test_has_the_name_that_llama_bench_gives_it():
    rows = [
        row("m", 1, 1.0, n_prompt=512, n_gen=0),
        row("m", 1, 1.0, n_depth=4096),
        row("m", 1, 1.0, n_prompt=512),
    ]
    assert [one.what for one in read_bench(Path("b"), rows)] == [
        "pp512",
        "tg128 @ d4096",
        "pp512+tg128",
    ]


@pytest.mark.parametrize("sizes", [{"seq": 64, "cache": True}, {"phase": "decode", "past": 64}])
@pytest.mark.parametrize("engine", ["vllm", "llama.cpp-2024"])
@pytest.mark.few(1)
def test_seconds_in_arrays_are_those_of_the_ops_one_by_one(shallow, sizes, engine):
    graph = cutedge.trace(shallow, dtype="float16", **sizes).graph
    by, card = load_engine(engine), load_device("a100-80g")
    taken = work_of(graph, by).step_seconds(card, by)
    assert taken == pytest.approx(time_ops(graph, card, engine=by).seconds, rel=1e-12)
