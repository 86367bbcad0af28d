"""Devices, engines and links out of profiles: known ones are found again."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cutedge
from costmodels.devices import load_device
from costmodels.engines import load_engine
from costmodels.fit_engine import fit_profile
from costmodels.links import load_link
from costmodels.profiles import read_profile
from costmodels.roofline import Rates
from cutedge._calibrate import calibrate
from tests.support import REFERENCE
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tests.support.profiles import Trace, event
from tracer.errors import InputError
from tracer.graph import Kind
from tracer.kinds import base_name

PEAK, BANDWIDTH, KERNEL, LAUNCH = 250e12, 1.5e12, 3e-6, 12e-6

PRODUCTS = [
    (64, 256, 256),
    (512, 1024, 1024),
    (2048, 4096, 4096),
    (8192, 4096, 4096),
    (1, 4096, 4096),
]
"""(m, k, n): the first and the last are bound by what they move."""

ADDED = [(1, 1024), (256, 4096), (8192, 4096)]
"""Shapes of sums: 2 of them are read and one is written, 2 bytes an element."""


def product_seconds(m: int, k: int, n: int) -> float:
    """2mkn FLOPs, 2(mk + kn + mn) bytes in float16: what bounds it, and the floor."""
    return max(2 * m * k * n / PEAK, 2 * (m * k + k * n + m * n) / BANDWIDTH) + KERNEL


def sum_seconds(rows: int, width: int) -> float:
    """6 bytes an element: 1 FLOP of each is nothing beside."""
    return 6 * rows * width / BANDWIDTH + KERNEL


def known_trace() -> Trace:
    trace = Trace(LAUNCH)
    for _ in range(3):
        for m, k, n in PRODUCTS:
            trace.op("aten::mm", [[m, k], [k, n]], "c10::Half", product_seconds(m, k, n))
        for shape in ADDED:
            trace.op(
                "aten::add",
                [[*shape], [*shape], []],
                ["c10::Half"] * 2 + ["Scalar"],
                sum_seconds(*shape),
            )
    return trace


def written(folder: Path, trace: Trace | dict | list | str, name: str = "trace.json") -> Path:
    path = folder / name
    text = trace if isinstance(trace, str) else json.dumps(getattr(trace, "json", trace))
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_device_and_its_engine_are_found_again(tmp_path, name):
    found = calibrate(written(tmp_path, known_trace(), name), tmp_path / "my.toml")
    assert [one.kind for one in found.files] == ["device", "engine"]
    device = load_device(str(tmp_path / "my-device.toml"))
    engine = load_engine(str(tmp_path / "my-engine.toml"))
    assert device.peak_flops_per_second == {"float16": pytest.approx(PEAK, rel=1e-4)}
    assert device.memory_bandwidth_bytes_per_second == pytest.approx(BANDWIDTH, rel=1e-4)
    assert engine.kernel_seconds == pytest.approx(KERNEL, rel=1e-3)
    assert engine.launch_seconds == {"eager": pytest.approx(LAUNCH, rel=1e-6)}
    assert "trace.json" in engine.sources["kernel_seconds"]
    assert "24 calls of 8 ops" in device.sources["peak_flops_per_second.float16"]
    assert found.warnings == ()
    assert all(abs(one.relative) < 1e-3 for one in found.fitted.residuals)
    measured = 3 * (
        sum(product_seconds(*p) for p in PRODUCTS) + sum(sum_seconds(*s) for s in ADDED)
    )
    assert found.json["measured_total_seconds"] == pytest.approx(measured, rel=1e-4)
    assert found.json["fitted_total_seconds"] == pytest.approx(measured, rel=1e-3)


def test_of_a_known_device_the_engine_has_shares(tmp_path):
    found = calibrate(written(tmp_path, known_trace()), tmp_path / "my.toml", device="a100-80g")
    assert [one.kind for one in found.files] == ["engine"]
    engine, card = load_engine(str(tmp_path / "my-engine.toml")), load_device("a100-80g")
    share = PEAK / card.peak_flops_per_second["float16"]
    assert engine.compute_ratio == {"a100-80g": pytest.approx(share, rel=1e-4)}
    share = BANDWIDTH / card.memory_bandwidth_bytes_per_second
    assert engine.bandwidth_ratio == {"a100-80g": pytest.approx(share, rel=1e-4)}


NAMES = {"float32": "float", "bfloat16": "c10::BFloat16", "int64": "long int", "bool": "bool"}


def test_what_an_engine_predicts_gives_the_engine_back(tmp_path):
    """A traced model with the seconds of hf-eager on an A100, as its profile would be."""
    engine, card = load_engine("hf-eager"), load_device("a100-80g")
    graph = cutedge.trace("edge-10m", seq=512).graph
    trace = Trace(engine.launch_seconds["eager"])
    rates = Rates(card, engine)
    for op in graph.ops:
        if op.kind not in (Kind.LINEAR, Kind.MATMUL, Kind.ELEMENTWISE, Kind.SOFTMAX):
            continue
        name = base_name(op.target)
        inputs = graph.inputs(op.id)
        if name == "softmax":
            name = "_softmax"
        work = max(
            rates.compute_seconds("float32", op.cost.flops),
            rates.memory_seconds(op.cost.read_bytes + op.cost.write_bytes),
        )
        trace.op(
            f"aten::{name}",
            [[*tensor.shape] for tensor in inputs],
            [NAMES[tensor.dtype] for tensor in inputs],
            work + engine.kernel_seconds,
        )
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml", device="a100-80g")
    (made,) = found.files
    assert made.figures == {
        "bandwidth_ratio.a100-80g": pytest.approx(engine.bandwidth_ratio["a100-80g"], rel=1e-3),
        "compute_ratio.a100-80g": pytest.approx(engine.compute_ratio["a100-80g"], rel=1e-3),
        "kernel_seconds": pytest.approx(engine.kernel_seconds, rel=1e-3),
        "launch_seconds.eager": pytest.approx(engine.launch_seconds["eager"], rel=1e-3),
    }


def test_copies_give_a_link_each_way(tmp_path):
    """25 GB/s and 8 us to the device, 20 GB/s and 10 us back."""
    trace = Trace(LAUNCH)
    for power in range(12, 28, 3):
        trace.copy("HtoD", 2**power, 8e-6 + 2**power / 25e9)
        trace.copy("DtoH", 2**power, 10e-6 + 2**power / 20e9)
        trace.copy("DtoD", 2**power, 1.0)  # crosses no link
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    assert [one.kind for one in found.files] == ["link"]
    link = load_link(str(tmp_path / "my-link.toml"))
    assert link.sent_bandwidth_bytes_per_second == pytest.approx(25e9, rel=1e-3)
    assert link.received_bandwidth_bytes_per_second == pytest.approx(20e9, rel=1e-3)
    assert link.sent_latency_seconds == pytest.approx(8e-6, rel=1e-3)
    assert link.received_latency_seconds == pytest.approx(10e-6, rel=1e-3)
    assert "12 copies" in link.sources["sent_latency_seconds"]
    assert len(found.json["equations"]) == 2


def test_too_few_copies_one_way_leave_that_way_out(tmp_path):
    trace = Trace(LAUNCH)
    for power in range(12, 28, 3):
        trace.copy("HtoD", 2**power, 8e-6 + 2**power / 25e9)
    trace.copy("DtoH", 4096, 1e-5)
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    assert any("1 copies received are too few" in said for said in found.warnings)
    link = load_link(str(tmp_path / "my-link.toml"))
    assert link.timed("send")
    assert not link.timed("receive")


def test_an_op_is_counted_once_however_it_is_made_of_others(tmp_path):
    """A linear of addmm and a copy: two kernels, 7 us, one op with the FLOPs of the linear."""
    trace = known_trace()
    begin, number = trace.now, 900
    shapes = {"Input Dims": [[64, 256], [512, 256], [512]], "Input type": ["c10::Half"] * 3}
    inner = {"Input Dims": [[512], [64, 256], [256, 512]], "Input type": ["c10::Half"] * 3}
    trace.events += [
        event("cpu_op", "aten::linear", begin, 20e-6, **{"External id": number}, **shapes),
        event("cpu_op", "aten::t", begin + 1e-6, 1e-6),
        event("cpu_op", "aten::addmm", begin + 3e-6, 15e-6, **{"External id": number + 1}, **inner),
        event("cuda_runtime", "cudaLaunchKernel", begin + 4e-6, 2e-6, correlation=number),
        event("cuda_runtime", "cudaLaunchKernel", begin + 8e-6, 2e-6, correlation=number + 1),
        event("kernel", "split", begin + 30e-6, 4e-6, tid=7, correlation=number),
        # of a launch that is not in the trace: its op by the number that both have
        event("kernel", "add", begin + 40e-6, 3e-6, tid=7, **{"External id": number + 1}),
    ]
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    (linear,) = [one for one in found.fitted.residuals if one.what.startswith("linear")]
    assert linear.what == "linear 64x256 512x256 512 float16"
    assert linear.calls == 1
    assert linear.measured_seconds == pytest.approx(7e-6)
    assert "26 kernels started" in found.about


def test_what_is_not_counted_is_said(tmp_path):
    trace = known_trace()
    trace.op("aten::cat", [[[8, 64], [8, 64]], []], ["TensorList", "Scalar"], 5e-6)
    graph = event("kernel", "of a \x1b[31mgraph", 1.0, 9e-6, tid=7, correlation=12345)
    trace.events.append(graph)
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    assert found.left_out == {
        "of a \x1b[31mgraph": pytest.approx(9e-6),
        "aten::cat": pytest.approx(5e-6),
    }
    assert found.json["left_out_seconds"] == found.left_out


def test_where_the_host_waits_is_no_launch(tmp_path):
    """A second in which it waits for the device, and one between two annotated steps."""
    trace = Trace(LAUNCH)
    for step in range(2):
        begin = trace.now
        for m, k, n in PRODUCTS * 4:
            trace.op("aten::mm", [[m, k], [k, n]], "c10::Half", product_seconds(m, k, n))
            trace.op("aten::add", [[m, n], [m, n]], "c10::Half", sum_seconds(m, n))
        trace.events.append(event("cuda_runtime", "cudaDeviceSynchronize", trace.now, 1.0))
        trace.now += 1.0
        trace.op("aten::add", [[8, 8], [8, 8]], "c10::Half", sum_seconds(8, 8))
        trace.events.append(
            event("user_annotation", f"ProfilerStep#{step}", begin, trace.now - begin)
        )
        trace.now += 1.0
    calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    engine = load_engine(str(tmp_path / "my-engine.toml"))
    assert engine.launch_seconds["eager"] == pytest.approx(LAUNCH, rel=1e-6)


def test_ops_that_all_move_tell_no_peak(tmp_path):
    trace = Trace(LAUNCH)
    for width in (1024, 4096, 16384):
        trace.op(
            "aten::mm", [[1, width], [width, width]], "c10::Half", product_seconds(1, width, width)
        )
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml", device="a100-80g")
    (engine,) = found.files
    assert {*engine.figures} == {
        "bandwidth_ratio.a100-80g",
        "kernel_seconds",
        "launch_seconds.eager",
    }
    assert any("no row is bound by compute_ratio.a100-80g" in said for said in found.warnings)
    found = calibrate(tmp_path / "trace.json", tmp_path / "other.toml")
    assert [one.kind for one in found.files] == ["engine"]
    assert any("no device file" in said for said in found.warnings)


def test_one_size_tells_floor_and_bandwidth_not_apart(tmp_path):
    trace = Trace(LAUNCH)
    for _ in range(5):
        trace.op("aten::add", [[64, 64], [64, 64]], "float", 5e-6)
    found = calibrate(written(tmp_path, trace), tmp_path / "my.toml")
    (engine,) = found.files
    assert {*engine.figures} == {"launch_seconds.eager"}
    assert any("cannot tell memory_bandwidth" in said for said in found.warnings)


def test_a_real_profile_of_a_processor(tmp_path):
    """Its products reach what one thread of such a core may: between 1 and 1000 GFLOP/s."""
    sample = REFERENCE / "profile_cpu.json.gz"
    found = calibrate(sample, tmp_path / "my.toml")
    device = load_device(str(tmp_path / "my-device.toml"))
    assert 1e9 < device.peak_flops_per_second["float32"] < 1e12
    assert 1e8 < device.memory_bandwidth_bytes_per_second < 1e12
    (linear,) = (one for one in found.json["residuals"] if "2048x1024" in one["what"])
    assert linear["calls"] == 5
    assert abs(linear["relative"]) < 0.1
    # Its ops are those that were run: 2 x 2048 x 1024 x 1024 FLOPs five times in that long.
    reached = 5 * 2 * 2048 * 1024 * 1024 / linear["measured_seconds"]
    assert reached == pytest.approx(device.peak_flops_per_second["float32"], rel=0.25)
    assert "55 calls of 11 ops" in found.about


@pytest.mark.slow
def test_what_the_profiler_writes_now(tmp_path):
    made = tmp_path / "now.json.gz"
    subprocess.run(
        [sys.executable, "-m", "tools.profile_sample", str(made)], check=True, capture_output=True
    )
    found = calibrate(made, tmp_path / "my.toml")
    assert "55 calls of 11 ops" in found.about


# --- what is no profile ---------------------------------------------------------------------------

NO_SHAPES = {"traceEvents": [event("cpu_op", "aten::mm", 0, 1e-6)]}


def bad_event(**fields: object) -> dict:
    return {"traceEvents": [event("cpu_op", "aten::mm", 0, 1e-6) | fields]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "neither a chrome trace"),
        ("[]", "neither a chrome trace"),
        ("3", "neither a chrome trace"),
        ('["a"]', "neither a chrome trace"),
        ({"traceEvents": {}}, "traceEvents must be a list"),
        ({"traceEvents": []}, "no ops and no copies"),
        ({"traceEvents": [3, None, {"ph": "X"}]}, "no ops and no copies"),
        (NO_SHAPES, "record_shapes=True"),
        (bad_event(dur="long"), "event 0: 'dur' must be microseconds"),
        (bad_event(ts=None), "event 0: 'ts' must be microseconds"),
        (bad_event(dur=-1), "event 0: 'dur' must be microseconds"),
        (bad_event(args=[1]), "event 0: a name and args"),
        (bad_event(name=7), "event 0: a name and args"),
        (bad_event(args={"Input Dims": 3}), "event 0: Input Dims and Input type must be lists"),
        (
            bad_event(args={"Input Dims": [["a"]], "Input type": ["float"]}),
            "event 0: Input Dims must be whole numbers",
        ),
        (
            bad_event(args={"Input Dims": [[10**400, 8]], "Input type": ["float"]}),
            "event 0: Input Dims must be whole numbers",
        ),
        (bad_event(dur=1e300), "event 0: 'dur' must be microseconds"),
        (bad_event(dur=float("nan")), "event 0: 'dur' must be microseconds"),
        (
            {"traceEvents": [event("gpu_memcpy", "Memcpy HtoD", 0, 1e-6, bytes="many")]},
            "event 0: a copy's bytes must be a whole number",
        ),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, content)
    done = invoke("cutedge", "calibrate", "trace.json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: trace.json")
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_file_that_is_not_packed_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json.gz").write_bytes(b"no gzip")
    done = invoke("cutedge", "calibrate", "t.json.gz")
    assert done.returncode == 2
    assert "t.json.gz cannot be read" in done.stderr


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@examples(25)
@given(data=st.data())
def test_no_trace_makes_it_fall_over(data):
    """A good trace with something else in a place or two: an answer, or a plain error."""
    trace = known_trace()
    trace.copy("HtoD", 4096, 1e-5)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from(trace.events))
        where = at["args"] if at["args"] and data.draw(st.booleans()) else at
        if isinstance(where, dict):
            key = data.draw(st.sampled_from(sorted(where)))
            where[key] = data.draw(JUNK)
        if not isinstance(at["args"], dict):
            break
    said = "t.json: event "
    try:
        fit_profile(read_profile(Path("t.json"), trace.json), None)
    except InputError as error:
        said = str(error)
    assert said.startswith("t.json: event ")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_figures_kinds_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = known_trace()
    trace.events.append(event("kernel", "of a \x1b[31mgraph", 1.0, 9e-6, tid=7))
    written(tmp_path, trace)
    done = invoke("cutedge", "calibrate", "trace.json", "--device", "a100-80g")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "trace.json: 24 calls of 8 ops with their shapes, kernels on a device"
    )
    assert any(line.startswith("bandwidth_ratio.a100-80g") for line in lines)
    assert any(line.startswith("matmul") for line in lines)
    assert lines[-1] == "written to trace-engine.toml"
    assert "\x1b" not in done.stdout + done.stderr
    again = invoke("cutedge", "calibrate", "trace.json")
    assert again.returncode == 2
    assert "trace-engine.toml is there already" in again.stderr


def test_a_log_of_calls_has_no_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.csv").write_text("sent,received,seconds\n", encoding="utf-8")
    done = invoke("cutedge", "calibrate", "calls.csv", "--device", "h200")
    assert done.returncode == 2
    assert "no use for --device" in done.stderr
