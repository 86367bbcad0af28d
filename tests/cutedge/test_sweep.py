"""Sweeps: every figure is that of ``trace`` and ``partition``, and a data set survives its makers.

The oracle is the code that does one point: ``graph_at``, ``annotate``, ``place``, ``account``.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import fsum
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cutedge
from costmodels import flops
from costmodels.arrays import Options
from costmodels.devices import ArrayMemory, Device, Npu, load_device
from costmodels.energy import EnergyFigures
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.many import Over, exact_sum
from costmodels.packing import SizedPacking, load_packing
from cutedge._machines import machine_of
from cutedge.sweeping.answers import (
    ACCELERATOR,
    BETWEEN,
    FIXED,
    HERE,
    HOME,
    IMPOSSIBLE,
    NOT_FOUND,
    PlacementSearch,
)
from cutedge.sweeping.parts import SizedGraph
from cutedge.sweeping.points import Job, Points, pack, points
from cutedge.sweeping.schedules import Layout, TaskNetwork
from partition.energy import energy_of
from partition.optimise import place
from partition.policy import Policy, Rule, load_policy, with_objective
from partition.problem import InfeasibleError
from partition.run import compute_cycles, compute_seconds, times_under
from partition.schedule import Scheduling, Task, scheduled
from partition.setting import Setting
from partition.split import Split
from tests.support import BIN
from tests.support.examples import examples
from tests.support.graphs import Builder, graphs, resized
from tests.support.inprocess import invoke
from tests.support.traces import captured
from tracer.graph import Kind, OpGraph
from tracer.presets import preset
from tracer.reach import Reach, graph_at, reached

EXAMPLES = examples(20, derandomize=True)


def machine(home: str, accelerator: str, link: str, **options) -> Machine:
    named = {HOME: home, ACCELERATOR: accelerator}
    described = {p: load_device(name) for p, name in named.items() if name not in ("tee", "gpu")}
    links = Links(load_link(link))
    return Machine(HOME, (ACCELERATOR,), links, described=described, options=Options(**options))


def enclave(room: int) -> Device:
    return replace(load_device("tee-sgx"), enclave_bytes=room)


FLOATS = ("float32", "float16", "bfloat16", "int64", "int32", "bool")


def counted(name: str, mac: float, watts: float) -> Device:
    """A device with energy by operation."""
    macs = dict.fromkeys(FLOATS, mac)
    figures = EnergyFigures(
        mac_picojoules=macs,
        sram_picojoules_per_byte={64.0: 3.0},
        dram_picojoules_per_byte=77.0,
        idle_watts=watts,
        busy_watts=300.0,
    )
    return replace(load_device(name), energy=figures, launch_seconds=1e-6)


MACHINES = (
    machine("tee", "gpu", "zmq-ipc"),
    machine("tee-tdx", "rtx-4090", "pcie5-x16-cc"),
    machine("tee-sgx", "h100-sxm", "axi-lite"),  # chunks
    replace(
        machine("tee-sgx", "tee-sgx", "pcie4-x16"),  # pages, at home more than away
        # What comes home has a latency that is not known.
        links=Links(replace(load_link("pcie4-x16"), received_latency_seconds=None)),
        described={HOME: enclave(2**18), ACCELERATOR: enclave(2**17)},
    ),
    machine("tee-tdx", "chip-8x8", "zmq-ipc-shm", chips=4, int8_speedup=2.5),
    replace(
        machine("ryzen-7950x", "systolic-16x16", "nvlink", sparsity=0.5),
        described={
            HOME: replace(load_device("ryzen-7950x"), launch_seconds=2e-6),
            ACCELERATOR: replace(load_device("systolic-16x16"), launch_seconds=3e-5),
        },
    ),
    replace(
        machine("ryzen-7950x", "rtx-4090", "nvlink"),  # energy by operation, all of it known
        described={
            HOME: counted("ryzen-7950x", 20.0, 12.5),
            ACCELERATOR: counted("rtx-4090", 3.0, 21.0),
        },
    ),
    replace(
        machine("ryzen-7950x", "systolic-16x16", "nvlink"),  # buffers, and their energy
        described={
            HOME: counted("ryzen-7950x", 20.0, 12.5),
            ACCELERATOR: replace(
                load_device("systolic-16x16"),
                array_memory=ArrayMemory(2**15, 2**14, 2**15, 3e8, accumulator_bytes=4),
                launch_seconds=1e-6,
            ),
        },
    ),
    replace(
        machine("ryzen-7950x", "ethos-u55-128", "nvlink"),  # an SRAM that does not hold all
        described={
            HOME: counted("ryzen-7950x", 20.0, 12.5),
            ACCELERATOR: replace(
                counted("ethos-u55-128", 1.0, 0.1),
                npu=Npu(
                    1e9,
                    macs_per_cycle=dict.fromkeys(FLOATS, 128.0),
                    vector_operations_per_cycle=dict.fromkeys(FLOATS, 16.0),
                    sram_bytes=2**21,
                    sram_bytes_per_second=1e10,
                    dram_bytes_per_second=1e9,
                ),
            ),
        },
    ),
)


UNTIMED = replace(load_packing("q4_0"), name="untimed", pack_seconds_per_byte=None)
PACKINGS = (
    (),
    (
        SizedPacking((UNTIMED,), 500_000),
        SizedPacking((load_packing("range"),)),
        SizedPacking((load_packing("q8_0"),), 40_000),
        SizedPacking((load_packing("zstd"),), 6_000),
    ),
)
"""Nothing, and each size in another way; the largest by what takes nobody knows how long."""


def oracle(graph: OpGraph, policy: Policy, on: Machine, wire, residency) -> dict | None:
    """The figures of one point, None where no placement is possible."""
    times = on.times(graph)
    setting = Setting(replace(on, wire_dtype=wire), residency, times)
    try:
        placed = place(graph, policy, setting)
    except InfeasibleError:
        return None
    if placed.graph is not graph:  # with masks
        graph, times = placed.graph, on.times(placed.graph)
    on_wire = setting.wire(graph, policy)
    traffic = setting.account(graph, placed.placement, on_wire)
    times = times_under(graph, placed.placement, traffic.transfers, times)
    made = Split(
        graph,
        "",
        policy.name,
        placed.placement,
        traffic,
        setting.machine.links.name,
        setting.machine.links,
        on_wire,
        residency,
        compute_seconds(placed.placement, times),
        placed.solution,
        None,
        None,
        compute_cycles(graph, placed.placement, times),
        on.options,
    )
    totals, cycles = traffic.totals, [*made.cycles.values()]
    working = {
        device
        for op, device in zip(graph.ops, placed.placement.devices, strict=True)
        if device in on.described and op.kind not in flops.FREE
    }
    lacking = {
        name: device.launch_seconds is None and not (name in on.engines and on.engines[name].name)
        for name, device in on.described.items()
    }
    at_least = totals.at_least or any(lacking[device] for device in working)
    there, taken = (graph, placed.placement, traffic, times), made.compute_seconds
    energy = energy_of(*there, on.devices, taken, made.run_seconds, late=at_least)
    made = replace(made, energy=energy)
    joules = {k: v for k, v in made.energy_figures.items() if k != "joules_per_token"}
    return {
        "calls": len(traffic.calls),
        "transfers": len(traffic.transfers),
        "cut_edges": traffic.cut_edges,
        "sent_payload_bytes": totals.sent_payload_bytes,
        "sent_wire_bytes": totals.sent_wire_bytes,
        "received_payload_bytes": totals.received_payload_bytes,
        "received_wire_bytes": totals.received_wire_bytes,
        "total_payload_bytes": totals.payload_bytes,
        "total_wire_bytes": totals.wire_bytes,
        "peak_buffer_bytes": traffic.peak_buffer_bytes,
        "home_resident_bytes": traffic.resident_bytes[HOME],
        "accelerator_resident_bytes": traffic.resident_bytes.get(ACCELERATOR, 0),
        "cycles": sum(cycles) if cycles and None not in cycles else None,
        "seconds": totals.seconds,
        "home_seconds": made.compute_seconds.get(HOME),
        "accelerator_seconds": made.compute_seconds.get(ACCELERATOR),
        "run_seconds": made.run_seconds,
        "at_least": at_least,
        **joules,
        "payload_status": totals.payload_status,
        **made.mask_costs,
        "optimal": None if placed.solution is None else placed.solution.proven,
        "paging": {part for part, time in times.items() if time.paged_share},
    }


def figures_of(found: Points, row: int) -> dict:
    """The figures of a row, None where they are not known."""
    return {
        figure: values[row : row + 1].tolist()[0] if known[row] else None
        for figure, (values, known) in found.figures.items()
    }


SMALL_EXPERTS = {
    "overrides": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "vocab_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 6,
    }
}
LAID_OUT = ("makespan_seconds", "bound_seconds", "requests_per_second", "limited_by")
"""The figures of a schedule."""

SUBJECTS = {
    "a prefill": (
        "edge-10m",
        {"batch": 2, "seq": 33, "overrides": {"num_hidden_layers": 2}},
        {"seq": [2, 33, 700, 1024], "batch": [2, 5]},
    ),
    "a decode": (
        "edge-10m",
        {"batch": 2, "seq": 1, "past": 40, "phase": "decode"},
        {"past": [2, 40, 500], "batch": [2, 7]},
    ),
    "fused attention, bfloat16": (
        "edge-10m",
        {"batch": 1, "seq": 64, "attn": "sdpa", "dtype": "bfloat16"},
        {"seq": [3, 64, 400]},
    ),
    "experts": (
        "mixtral-8x7b",
        {"batch": 1, "seq": 16, **SMALL_EXPERTS},
        {"seq": [2, 16, 17, 300]},
    ),
}


POLICIES = (
    "offload-linear",
    "flash-attention",
    "min-cut-norm-home",
    "layers",
    "slalom-verified",
    "rank-one",  # masks nothing of a single row
    "masked-all",
)


def program(graph: OpGraph, reach: Reach, given: dict[str, list[int]]) -> SizedGraph:
    values = {name: given.get(name, [value]) for name, value in graph.meta.variables.items()}
    grid = np.meshgrid(*values.values(), indexing="ij")
    sizes = {name: axis.ravel().astype(np.int64) for name, axis in zip(values, grid, strict=True)}
    assert reached(graph, reach, sizes).all()
    return SizedGraph(graph, sizes, np.arange(len(sizes["seq"])))


@pytest.mark.parametrize(
    ("subject", "samples"),
    [
        (next(iter(SUBJECTS)), 2),
        *(pytest.param(subject, 12, marks=pytest.mark.slow) for subject in SUBJECTS),
    ],
)
def test_every_figure_is_that_of_one_point(subject, samples):
    name, options, given = SUBJECTS[subject]
    subject_trace = captured(preset(name), model=name, **options)
    whole = program(subject_trace.graph, subject_trace.reach, given)
    checked = Counter()
    for policy_name in POLICIES if samples > 4 else POLICIES[::3]:
        policy = load_policy(policy_name)
        residencies = ("run",) if policy.objective else ("run", "call")
        job = Job(
            pack([whole], MACHINES),
            policy,
            (None, "bfloat16"),
            residencies,
            60.0,
            packings=PACKINGS if policy_name == "offload-linear" else PACKINGS[:1],
        )
        found = points(job)
        rows = len(found.placed)
        each = len(residencies) * len(MACHINES) * len(job.packings)
        assert rows == len(whole.numbers) * 2 * each
        for row in random.Random(policy_name + subject).sample(range(rows), samples):
            sizes = {size: int(many[row]) for size, many in found.sizes.items()}
            there = graph_at(subject_trace.graph, subject_trace.reach, sizes)
            assert there is not None
            on = replace(MACHINES[found.machine[row]], pack=PACKINGS[found.packing[row]])
            wire, residency = found.wire_dtype[row], residencies[found.residency[row]]
            wanted = oracle(annotate(there), policy, on, wire, residency)
            if wanted is None:
                assert found.placed[row] == IMPOSSIBLE
                assert not any(known[row] for _, known in found.figures.values())
                continue
            assert found.optimal[row] == wanted.pop("optimal")
            checked.update(wanted.pop("paging"))
            got = figures_of(found, row)
            checked[got["payload_status"]] += 1
            assert {got.pop(figure) for figure in LAID_OUT} == {None}  # no schedule is asked for
            assert got == wanted, f"{policy_name} at {sizes} on {on}"
            checked[found.placed[row]] += 1
    if samples > 4:
        assert {FIXED, HERE, BETWEEN, HOME, ACCELERATOR, "exact", "estimate"} <= set(checked)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.few(1)
@pytest.mark.slow
def test_where_a_trace_reaches_is_where_it_has_a_graph(batch, attn):
    trace = captured(preset("edge-10m"), model="edge-10m", batch=batch, seq=8, attn=attn)
    sizes = {
        name: np.array(values, np.int64)
        for name, values in zip(
            ("batch", "seq", "past", "source"),
            zip(
                *[
                    (b, s, p, 0)
                    for b in (1, 2, 5)
                    for s in (1, 2, 3, 8, 32, 256, 513, 1024)
                    for p in (0, 1, 9)
                ],
                strict=True,
            ),
            strict=True,
        )
    }
    each = [
        dict(zip(sizes, map(int, one), strict=True)) for one in zip(*sizes.values(), strict=True)
    ]
    graphs = [graph_at(trace.graph, trace.reach, one) for one in each]
    got = reached(trace.graph, trace.reach, sizes)
    assert got.tolist() == [graph is not None for graph in graphs]
    assert 0 < got.sum() < len(got)


@pytest.mark.parametrize(
    ("policy", "residency", "objective"),
    [
        ("fastest", "call", None),
        ("min-cut", "call", None),
        ("fastest", "run", None),
        ("fastest", "run", "seconds=1,energy=0.01"),
    ],
)
@pytest.mark.few(1)
def test_what_no_interval_proves_is_solved_at_each_size(policy, residency, objective):
    trace = captured(
        preset("edge-10m"), model="edge-10m", batch=2, seq=33, overrides={"num_hidden_layers": 2}
    )
    whole = program(trace.graph, trace.reach, {"seq": [2, 400]})
    rules = with_objective(load_policy(policy), objective)
    on = MACHINES[1:3] if objective is None else MACHINES[6:8]
    found = points(Job(pack([whole], on), rules, (None,), (residency,), 60.0))
    assert found.placed == [HERE] * 4
    for row in range(4):
        sizes = {size: int(many[row]) for size, many in found.sizes.items()}
        there = annotate(graph_at(trace.graph, trace.reach, sizes))
        wanted = oracle(there, rules, on[found.machine[row]], None, residency)
        for figure, value in figures_of(found, row).items():
            assert value == wanted.get(figure), figure


# --- where placements are ---------------------------------------------------------------------

FREE = Policy("free", "anywhere", "free", (), {"bytes": 1})
SOME = Policy(
    "some",
    "norms at home, products away",
    "free",
    (
        Rule((("kind", ("linear", "matmul", "embedding")),), "accelerator", "", optional=True),
        Rule((("kind", ("norm", "softmax")),), "home", "", optional=True),
    ),
    {"bytes": 1},
)


def devices_at(graph: OpGraph, policy: Policy, on: Machine, batch: int, seq: int):
    there = resized(graph, batch, seq)
    if on.described:
        there = annotate(there)
    setting = Setting(on, times=on.times(there))
    try:
        return tuple(place(there, policy, setting).placement.devices)
    except InfeasibleError:
        return None


def answers(
    graph: OpGraph,
    policy: Policy,
    on: Machine,
    batches: list[int],
    seqs: list[int],
    time_limit: float = 60.0,
):
    pairs = [(batch, seq) for batch in batches for seq in seqs]
    columns = np.array(pairs, np.int64)
    none = np.zeros(len(pairs), np.int64)
    over = Over({"batch": columns[:, 0], "seq": columns[:, 1], "past": none, "source": none})
    start = resized(graph, *pairs[0])
    start = annotate(start) if on.described else start
    return pairs, PlacementSearch(start, policy, over, "run", time_limit).answers(on)


@pytest.mark.slow
@EXAMPLES
@given(
    graphs(), st.sampled_from([FREE, SOME]), st.lists(st.integers(1, 40), min_size=1, max_size=9)
)
def test_an_answer_between_two_sizes_is_the_one_at_the_size(graph, policy, seqs):
    pairs, found = answers(graph, policy, MACHINES[0], [1, 3], seqs)
    for (batch, seq), which in zip(pairs, found.which, strict=True):
        got = found.placements[which] if which >= 0 else None
        assert got == devices_at(graph, policy, MACHINES[0], batch, seq), (batch, seq)


def crossing(first: str, second: str) -> OpGraph:
    """A product away, then two ops: the cut is after the first or the second, by their sizes."""
    build = Builder()
    x, weight = build.input("x", ("batch", 1)), build.parameter("weight", (1, 1))
    made = build.op("product", x, weight, shape=("batch", first), kind=Kind.LINEAR)
    after = build.op("after", made, shape=("batch", second))
    return build.finish(build.op("norm", after, shape=("batch", 1), kind=Kind.NORM))


def test_the_answer_changes_where_costs_cross_and_is_proven_elsewhere():
    # after is free: seq**2 crosses before it, or 100*seq after it; equal at 100, then at home.
    graph = crossing("seq*seq", "100*seq")
    pairs, found = answers(graph, SOME, MACHINES[0], [2], [*range(2, 400, 7), 100, 101])
    at = {
        seq: found.placements[which][2] for (_, seq), which in zip(pairs, found.which, strict=True)
    }
    assert at == {seq: HOME if seq <= 100 else ACCELERATOR for seq in at}
    assert Counter(found.placed)[HERE] < 20 < Counter(found.placed)[BETWEEN]


def test_what_is_no_polynomial_is_solved_at_every_size():
    _, found = answers(crossing("seq", "min(seq, 9)"), SOME, MACHINES[0], [1], [*range(2, 30)])
    assert set(found.placed) == {HERE}


def test_what_is_not_found_in_time_says_so():
    graph = crossing("seq*1024", "seq*1024")
    on = machine("tee-tdx", "rtx-4090", "nvlink")
    _, found = answers(graph, SOME, on, [1], [2**13, 2**23], time_limit=0.0)
    assert found.placed == (HERE, NOT_FOUND)
    assert list(found.which) == [0, -1]


def test_what_does_not_fit_is_solved_there_or_impossible(tmp_path):
    # 24 GiB: the tensors of 2**17 rows and more do not fit, wherever free ops run
    graph = crossing("seq*1024", "seq*1024")
    large = [2**13, 2**20, 2**22, 2**23]
    pairs, found = answers(graph, SOME, machine("tee-tdx", "rtx-4090", "nvlink"), [1], large)
    assert found.placed == (HERE, BETWEEN, BETWEEN, IMPOSSIBLE)
    for (batch, seq), which in zip(pairs, found.which, strict=True):
        on = machine("tee-tdx", "rtx-4090", "nvlink")
        got = found.placements[which] if which >= 0 else None
        assert got == devices_at(graph, SOME, on, batch, seq)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-12, 1e6)), min_size=1, max_size=30))
@EXAMPLES
def test_sums_are_those_of_fsum(terms):
    got = exact_sum([(count, np.full(2, value)) for count, value in terms], 2)
    wanted = float(sum(Fraction(value) * count for count, value in terms))
    assert got.tolist() == [wanted, wanted]
    small = [(count % 50, value) for count, value in terms]
    got = exact_sum([(count, np.array([value])) for count, value in small], 1)
    assert got[0] == fsum(value for count, value in small for _ in range(count))


# --- the command ------------------------------------------------------------------------------


def rows_of(files: str) -> list[dict]:
    table = duckdb.sql(
        f"SELECT * FROM read_parquet('{files}', hive_partitioning = true) ORDER BY ALL"
    )
    names = [column[0] for column in table.description]
    return [dict(zip(names, row, strict=True)) for row in table.fetchall()]


def sweep(*words: str | Path):
    return invoke("cutedge", "sweep", *words, "--jobs", "1")


GRID = """
model = "edge-10m"
phase = ["prefill", "decode"]
batch = [1, "2..4:2"]
seq = "16..70"
past = 40
policy = ["offload-linear", "min-cut"]
wire_dtype = ["native", "bfloat16"]
pair = ["tee-tdx+rtx-4090", "tee-tdx+chip-8x8"]
link = ["pcie5-x16", "zmq-ipc"]
chips = [1, 4]
"""


@pytest.mark.slow
def test_points_are_those_of_trace_and_partition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(GRID, encoding="utf-8")
    done = sweep("--grid", "grid.toml", "--out", "data", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # 3 batches x (4 lengths, and one past), 2 policies, 2 wires, 2 links x (4090, chip, 4 chips)
    assert told["rows"] == 3 * (4 + 1) * 2 * 2 * 2 * 3 == sum(told["placed"].values())
    rows = rows_of("data/**/*.parquet")
    assert len(rows) == len({tuple(row.values()) for row in rows}) == told["rows"]
    for point in random.Random(7).sample(rows, 2):
        sizes = ["--past", point["past"]] if point["phase"] == "decode" else ["--seq", point["seq"]]
        traced = invoke(
            "trace",
            "edge-10m",
            "--phase",
            point["phase"],
            "--batch",
            str(point["batch"]),
            *map(str, sizes),
            "--out",
            "one",
        )
        assert traced.returncode == 0, traced.stderr
        wire = ["--wire-dtype", point["wire_dtype"]] if point["wire_dtype"] else []
        chips = ["--chips", "4"] if point["array_options"] else []
        made = invoke(
            "partition",
            "one",
            "--policy",
            point["policy"],
            "--home",
            point["home"],
            "--accel",
            point["accelerator"],
            "--link",
            point["link"],
            *wire,
            *chips,
            "--json",
        )
        assert made.returncode == 0, made.stderr
        (wanted,) = rows_of(f"{tmp_path}/one/policy=*/**/summary.parquet")
        shared = set(wanted) & set(point) - {"policy", "cycles"}
        assert {n: point[n] for n in shared} == {n: wanted[n] for n in shared}
        assert len(shared) >= 17
        assert point["cycles"] == (sum(wanted["cycles"].values()) if wanted["cycles"] else None)
        seconds, resident = wanted["compute_seconds"], wanted["resident_bytes"]
        assert point["home_seconds"] == seconds.get(point["home"])
        assert point["accelerator_seconds"] == seconds.get(point["accelerator"])
        assert point["home_resident_bytes"] == resident[point["home"]]
        assert point["accelerator_resident_bytes"] == resident.get(point["accelerator"], 0)
        subprocess.run(["rm", "-r", tmp_path / "one"], check=True)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


MANY = [
    "edge-10m",
    "--seq",
    "16..800:16",
    "--batch",
    "1,2,3",
    "--home",
    "tee-tdx",
    "--accel",
    "rtx-4090",
    "--link",
    "nvlink",
    "--link",
    "pcie5-x16",
    "--policy",
    "all-home",
    "--policy",
    "min-cut-norm-home",
    "--policy",
    "offload-linear",
    "--policy",
    "layers",
    "--policy",
    "min-cut",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The data set of MANY, made in one go by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweep(*MANY, "--out", folder / "data")
    assert done.returncode == 0, done.stderr
    return files(folder / "data")


def started(folder: Path, *more: str) -> subprocess.Popen:
    command = [BIN / "cutedge", "sweep", *MANY, "--out", folder / "data", *more]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def wait_for_files(folder: Path, process: subprocess.Popen, count: int) -> None:
    end = time.monotonic() + 200
    while len([*folder.rglob("sweep.parquet")]) < count:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path, undisturbed):
    process = started(tmp_path, "--jobs", "2")
    wait_for_files(tmp_path / "data", process, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {n: d for n, d in files(tmp_path / "data").items() if n.endswith("/sweep.parquet")}
    assert 1 < len(there) < 5, "it was to be killed half way"
    assert there.items() <= undisturbed.items()
    one = tmp_path / "data" / max(there)  # and one that a full disk cut off
    one.write_bytes(one.read_bytes()[:-100])
    (one.parent / ".sweep.parquet.1.tmp").write_bytes(b"left over")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("sweep.parquet")}
    assert started(tmp_path, "--jobs", "2").wait() == 0
    assert files(tmp_path / "data") == undisturbed
    kept = [p for p, time in before.items() if p != one and p.stat().st_mtime_ns == time]
    assert len(kept) == len(before) - 1, "what was whole was made again"


@pytest.mark.slow
def test_dask_gives_the_same_though_a_worker_is_killed(tmp_path, undisturbed):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        process = started(tmp_path, "--backend", "dask", "--scheduler", cluster.scheduler_address)
        wait_for_files(tmp_path / "data", process, 1)
        first = next(iter(cluster.workers.values()))
        os.kill(first.pid, signal.SIGKILL)
        assert process.wait(timeout=200) == 0
    assert files(tmp_path / "data") == undisturbed


def test_a_data_set_is_of_one_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["edge-10m", "--seq", "16", "--out", "data"]
    assert sweep(*few).returncode == 0
    before = files(tmp_path)
    again = sweep(*few, "--json")
    assert json.loads(again.stdout)["files_kept"] == 1
    other = sweep(*few, "--batch", "2")
    assert other.returncode == 2
    assert "data holds the points of another grid" in other.stderr
    assert files(tmp_path) == before
    stray = tmp_path / "data" / "model=x" / "sweep.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"")
    assert f"{Path('data/model=x/sweep.parquet')} is not of this grid" in sweep(*few).stderr


def test_two_sweeps_do_not_write_to_one_place(tmp_path, monkeypatch):
    from cutedge._sweep import _alone

    monkeypatch.chdir(tmp_path)
    with _alone(Path("data"), "another"):
        done = sweep("edge-10m", "--seq", "16", "--out", "data")
    assert (done.returncode, "another sweep is writing to data" in done.stderr) == (1, True)


@pytest.mark.slow
def test_sizes_that_are_another_program_are_traced_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sweep("edge-10m", "--batch", "1,2,3", "--seq", "1,2,8,1000", "--out", "data")
    assert done.returncode == 0, done.stderr
    rows = duckdb.sql(
        "SELECT batch, seq, total_payload_bytes FROM 'data/**/*.parquet' ORDER BY ALL"
    ).fetchall()
    for batch, seq in ((1, 1), (3, 1), (1, 8), (2, 1000)):
        invoke("trace", "edge-10m", "--batch", str(batch), "--seq", str(seq), "--out", "one")
        made = json.loads(invoke("partition", "one", "--json").stdout)
        (total,) = [r[2] for r in rows if r[:2] == (batch, seq)]
        assert total == made["total_payload_bytes"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no model"),
        ("modle = 'edge-10m'", "unknown key 'modle'"),
        ("model = []", "grid.toml: model is empty"),
        ("model = 3", "grid.toml: model: 3 is no text"),
        ("model = ['edge-10m', '']", "model: '' is no text"),
        ("model = 'edge-11m'", "unknown model 'edge-11m'"),
        ("model = 'edge-10m'\nseq = true", "seq: True is no whole number"),
        ("model = 'edge-10m'\nseq = 1.5", "seq: 1.5 is no whole number"),
        ("model = 'edge-10m'\nseq = 0", "seq: 0 is less than 1"),
        ("model = 'edge-10m'\nseq = '8..4'", "the range 8..4 goes down"),
        ("model = 'edge-10m'\nseq = '1..99999999:1'", "too many steps"),
        ("model = 'edge-10m'\nseq = '8..16:0'", "too many steps"),
        ("model = 'edge-10m'\nseq = '8-16'", "'8-16' is no whole number, nor a range"),
        ("model = 'edge-10m'\nphase = 'train'", "phase 'train' is not one of prefill"),
        ("model = 'edge-10m'\nphase = 'decode'\nseq = 8", "a decode has one new token"),
        ("model = 'edge-10m'\npolicy = 'min-cot'", "unknown policy 'min-cot'"),
        ("model = 'edge-10m'\npolicy = 'fastest'", "fastest counts seconds, and tee, gpu is no"),
        ("model = 'edge-10m'\nwire_dtype = 'int4'", "wire_dtype 'int4' is not one of native"),
        ("model = 'edge-10m'\nresidency = 'never'", "residency 'never' is not one of run, call"),
        ("model = 'edge-10m'\npair = 'tee'", "pair 'tee': write HOME+ACCELERATOR"),
        ("model = 'edge-10m'\npair = 'a+b'\nhome = 'c'", "leave home and accel out"),
        ("model = 'edge-10m'\nhome = 'gpu'", "two different devices"),
        ("model = 'edge-10m'\nlink = 'pcie9'", "unknown link 'pcie9'"),
        ("model = 'edge-10m'\nchips = 4", "are of arrays like chip-8x8"),
        ("model = 'edge-10m'\naccel = 'chip-8x8'\nsparsity = 'half'", "'half' is no number"),
        ("model = 'edge-10m'\naccel = 'chip-8x8'\nsparsity = 1.5", "sparsity must be from 0"),
        ("model = 'edge-10m'\nattn = 'flash'", "attn 'flash' is not one of eager, sdpa"),
        ("model = 'edge-10m'\ndtype = 'float31'", "--dtype 'float31' is not one of"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said_and_nothing_written(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(text, encoding="utf-8")
    done = sweep("--grid", "grid.toml", "--out", "data")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "dask"], "--scheduler is the address of a cluster"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler is the address of a cluster"),
        (["--backend", "dask", "--scheduler", "nowhere://x"], "--scheduler nowhere://x: "),
    ],
)
def test_a_cluster_has_an_address(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sweep("edge-10m", "--seq", "8", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_weights_are_stored_in_is_an_axis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    axes = ("--phase", "decode", "--past", "16", "--home", "tee-tdx", "--accel", "rtx-4090")
    formats = ("--weights", "none", "--weights", "q8_0", "--kv-dtype", "none", "--kv-dtype", "fp8")
    done = sweep("edge-10m", *axes, *formats, "--policy", "all-home", "--out", "data", "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["weights"], row["kv_dtype"]): row for row in rows_of("data/**/*.parquet")}
    assert len(rows) == json.loads(done.stdout)["rows"] == 4
    plain = cutedge.trace("edge-10m", phase="decode", past=16)
    for (weights, kv_dtype), row in rows.items():
        traced = plain.stored(weights=weights, kv_dtype=kv_dtype)
        wanted = traced.partition("all-home", machine="tee-tdx+rtx-4090").summary
        assert row["home_seconds"] == wanted["home_seconds"]
        assert row["home_resident_bytes"] == wanted["resident_bytes"]["tee-tdx"]
    twice = ("--weights", "a/q.toml", "--weights", "b/q.toml")
    again = sweep("edge-10m", *twice, "--out", "other")
    assert (again.returncode, "two weights are called q" in again.stderr) == (2, True)


@pytest.fixture(scope="module")
def shallow():
    return cutedge.trace("edge-10m", batch=2, seq=16, overrides={"num_hidden_layers": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "link", "asked", "engine", "execution"),
    [
        ("tee-tdx+rtx-4090", "pcie4-x16", Scheduling("overlap"), None, None),
        ("tee-tdx+h100-cc", "pcie5-x16-cc", Scheduling("overlap", 3), None, None),  # one lane
        ("tee-sgx+rtx-4090", "pcie4-x16-split", Scheduling("overlap"), "vllm", None),
        ("tee-tdx+rtx-4090", "nvlink", Scheduling("overlap", 2), "hf-eager", None),
        ("tee-tdx+rtx-4090", "pcie4-x16", Scheduling("serial", 2), None, "graph"),
    ],
)
@pytest.mark.few(1)
def test_runs_are_laid_out_as_partition_lays_them_out(
    shallow, devices, link, asked, engine, execution
):
    on = {"machine": f"{devices}@{link}", "engine": engine, "execution": execution}
    sizes = {"seq": [16, 48, 400, 1000], "batch": [2, 3]}
    whole = program(shallow.graph, shallow.reach, sizes)
    policy = load_policy("fuse-attention")
    job = Job(pack([whole], [machine_of(**on)]), policy, (None,), ("run",), 60.0, (None, asked))
    found = points(job)
    for row in range(16):
        got = [
            values[row] if known[row] else None
            for values, known in map(found.figures.get, LAID_OUT)
        ]
        if found.scheduling[row] == 0:
            assert got == [None] * 4
            continue
        there = shallow.at(**{name: int(many[row]) for name, many in found.sizes.items()})
        wanted = there.partition(policy, **on).schedule(asked.schedule, asked.requests).summary
        assert got[:3] == pytest.approx([wanted[name] for name in LAID_OUT[:3]], rel=1e-12)
        home, away = devices.split("+")
        assert got[3].replace("home", home).replace("accelerator", away) == wanted["limited_by"]


@examples(40, derandomize=True)
@given(st.data())
def test_an_order_holds_only_where_a_list_schedule_has_it(data):
    """Tasks on resources of their own and on two at once, of times that are often equal."""
    count = data.draw(st.integers(2, 12))
    names = ("a", "b", "c")
    tasks = []
    for number in range(count):
        uses = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        needs = data.draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
        tasks.append(Task(tuple(uses), None, tuple(sorted(needs))))
    times = st.lists(st.integers(0, 3), min_size=6, max_size=6)
    seconds = [np.array(data.draw(times), float) for _ in tasks]
    lanes = dict.fromkeys(names, data.draw(st.sampled_from([1, 1, 2])))
    asked = Scheduling("overlap", data.draw(st.integers(1, 3)))
    got = Layout(TaskNetwork(tasks, lanes), seconds).laid_out(asked, sum(seconds))
    for size in range(6):
        there = [replace(t, seconds=s[size].item()) for t, s in zip(tasks, seconds, strict=True)]
        wanted = scheduled(there, lanes, asked)
        assert got.makespan_seconds[size] == wanted.makespan_seconds
        assert got.bound_seconds[size] == pytest.approx(wanted.bound_seconds)
        assert got.limited_by[size] == wanted.limited_by


def test_requests_are_of_a_schedule(tmp_path):
    done = sweep("edge-10m", "--requests", "2", "--out", tmp_path / "data")
    assert done.returncode == 2
    assert "requests are of a schedule" in done.stderr
