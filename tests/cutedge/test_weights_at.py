"""Parameters at home, through the library and the commands that take ``--weights-at``."""

import json

import pytest

import cutedge
from cutedge.exports import timeline
from partition.tables import read_split
from tests.support import warm
from tests.support.inprocess import invoke
from tracer.errors import CutedgeError, InputError

MACHINE = "ryzen-7950x+chip-8x8@axi-lite"
TEE = "tee-tdx+h100-cc@pcie5-x16-cc-h200"

RULES = """\
description = "products away; the head has its weights at home"
default = "home"

[[rule]]
module_path = "lm_head"
place = "accelerator"
weights_at = "home"

[[rule]]
kind = "linear"
place = "accelerator"
weights_at = "device"
"""


@pytest.fixture(scope="module")
def traced():
    return cutedge.trace("edge-10m", seq=16)


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "head-sent.toml"
    path.write_text(RULES)
    return path


def bytes_of_parameters(traced, kinds):
    """By storage, of those that ops of a kind read."""
    graph = traced.graph
    read = {
        graph.storage(t).id
        for op in graph.ops
        if op.kind.value in kinds
        for t in graph.inputs(op.id)
        if t.role.value == "parameter"
    }
    return sum(graph.tensors[t].bytes for t in read)


def test_what_stays_at_home_is_sent(traced):
    on, at_home = (
        traced.partition("host-chip", machine=MACHINE, weights_at=at) for at in (None, "home")
    )
    sent = bytes_of_parameters(traced, ("linear",))
    assert at_home.summary["sent_weight_bytes"] == sent
    assert on.summary["sent_weight_bytes"] == 0
    for name in ("sent_payload_bytes", "total_payload_bytes"):
        assert at_home.summary[name] - on.summary[name] == sent
    rows = at_home.transfers.to_pylist()
    weights = [row for row in rows if row["src_op"] is None]
    assert sum(row["payload_bytes"] for row in weights) == sent
    assert {row["what"] for row in weights} == {"weights"}
    assert {row["direction"] for row in weights} == {"send"}
    paths = {op.module_path for op in traced.graph.ops if op.kind.value == "linear"}
    assert {row["module_path"] for row in weights} <= paths
    assert at_home.summary["resident_bytes"]["chip-8x8"] == 0
    assert on.summary["resident_bytes"]["chip-8x8"] == sent
    assert at_home.split.machine.endswith(", weights_at=home")
    assert on.summary["calls"] == at_home.summary["calls"]


def test_a_rule_says_it_of_its_ops(traced, rules):
    made = traced.partition(rules, machine=MACHINE)
    names = {row["tensor_name"] for row in made.transfers.to_pylist() if row["src_op"] is None}
    assert len(names) == 1
    at = {row["op_id"]: row["weights_at"] for row in made.placement.to_pylist()}
    paths = {op.module_path for op in traced.graph.ops if at[op.id] == "home"}
    assert paths == {"lm_head"}
    # What the run says is for ops that no rule says it of.
    both = traced.partition(rules, machine=MACHINE, weights_at="home")
    assert both.summary["sent_weight_bytes"] == made.summary["sent_weight_bytes"]


def test_tables_are_read_as_they_were_written(traced, rules, tmp_path):
    for policy, at in ((rules, None), ("min-cut", "home")):
        made = traced.partition(policy, machine=MACHINE, weights_at=at, residency="call")
        folder = made.save(tmp_path / str(at))
        again = read_split(tmp_path / str(at), folder)
        assert again.placement == made.split.placement
        assert again.traffic == made.split.traffic
        assert again.sent_weight_bytes == made.split.sent_weight_bytes


@pytest.mark.parametrize("policy", ["min-cut", "layers", "fastest"])
def test_the_best_placement_pays_for_what_it_is_sent(traced, policy):
    """What is best where weights lie on the device is no better where they are sent."""
    at = {"machine": TEE, "weights_at": "home"}
    best = traced.partition(policy, **at)
    assert best.summary["optimal"]
    unit = {"bytes": "total_payload_bytes", "ns": "run_seconds"}[best.summary["objective_unit"]]
    scale = 1 if unit == "total_payload_bytes" else 1e9
    assert best.summary["objective_value"] == pytest.approx(best.summary[unit] * scale, abs=0.5)
    for other in ("all-home", "offload-linear", "fuse-attention", "min-cut"):
        if policy == "fastest":
            worse = traced.partition(other, **at).summary[unit]
            assert best.summary[unit] <= worse * (1 + 1e-9)


def test_a_generation_is_sent_its_weights_in_each_step():
    at = {"policy": "offload-linear", "machine": TEE, "prompt": 16, "new": 4}
    on, at_home = (cutedge.generate("edge-10m", **at, weights_at=w) for w in ("device", "home"))
    each = at_home.decode.summary["sent_weight_bytes"]
    assert each > 0
    for before, after in zip(on.steps, at_home.steps, strict=True):
        assert after.total_payload_bytes - before.total_payload_bytes == each
        assert after.run_seconds > before.run_seconds
        there = at_home.decode.trace.at(past=after.past)
        alone = there.partition("offload-linear", machine=TEE, weights_at="home")
        assert after.total_payload_bytes == alone.summary["total_payload_bytes"]
        assert after.run_seconds == pytest.approx(alone.summary["run_seconds"])
    assert at_home.summary["machine"].endswith("weights_at=home")


@pytest.mark.slow
def test_a_sweep_has_it_as_an_axis(tmp_path):
    import pyarrow.parquet as pq

    cutedge.sweep(
        "edge-10m",
        tmp_path,
        seq="16..64",
        policy=["min-cut", "offload-linear"],
        weights_at=["device", "home"],
        home="tee-tdx",
        accel="h100-cc",
        link="pcie5-x16-cc-h200",
        residency=["run", "call"],
        jobs=1,
    )
    rows = pq.ParquetDataset(tmp_path, partitioning=None).read().to_pylist()
    assert len(rows) == 2 * 2 * 2 * 3
    traced = cutedge.trace("edge-10m", seq=64)
    for row in rows:
        alone = traced.at(seq=row["seq"]).partition(
            row["policy"], machine=TEE, residency=row["residency"], weights_at=row["weights_at"]
        )
        for name in ("calls", "transfers", "total_payload_bytes", "total_wire_bytes"):
            assert row[name] == alone.summary[name], (row, name)
        resident = alone.summary["resident_bytes"]
        assert row["home_resident_bytes"] == resident["tee-tdx"]
        assert row["accelerator_resident_bytes"] == resident.get("h100-cc", 0)
        assert row["run_seconds"] == pytest.approx(alone.summary["run_seconds"])


def test_the_ladder_and_what_is_seen(traced):
    made = traced.partition(
        "fuse-attention", machine="tee-tdx+rtx-4090@pcie4-x16", weights_at="home"
    )
    steps, _ = made.explain()
    start = traced.partition(
        "offload-linear", machine="tee-tdx+rtx-4090@pcie4-x16", weights_at="home"
    )
    saved = start.summary["total_payload_bytes"] - made.summary["total_payload_bytes"]
    assert sum(step.saved_bytes for step in steps) == saved
    on = traced.partition("fuse-attention", machine="tee-tdx+rtx-4090@pcie4-x16")
    assert made.summary["seen"] == on.summary["seen"]
    (one,), (before,) = made.split.exposed, on.split.exposed
    assert (one.sent_bytes, one.parameter_bytes) == (before.sent_bytes, before.parameter_bytes)
    assert [s.bytes for s in one.seen] == [s.bytes for s in before.seen]


def test_a_timeline_has_weights_come_and_go(traced):
    made = traced.partition("host-chip", machine=MACHINE, weights_at="home")
    told = timeline.predicted(made.split, made.setting.times)
    weights = {t.id: t.tensor for t in made.split.traffic.transfers if t.tensor.op is None}
    moved = {s.arguments["transfer_id"]: s for s in told.slices if s.category == "transfer"}
    came = {number: moved[number] for number in weights}
    assert came.keys() == weights.keys()
    read = {flow for s in told.slices if s.category != "transfer" for flow in s.flows_in}
    assert all(set(s.flows_out) & read and not s.flows_in for s in came.values())
    chip = [level.bytes for level in told.levels if level.device == "chip-8x8"]
    assert chip[0] == chip[-1] == 0
    assert max(chip) >= max(tensor.bytes for tensor in weights.values())


def test_a_page_shows_them(traced, tmp_path):
    at = {"machine": MACHINE, "weights_at": "home"}
    traced.report(tmp_path / "r.html", policies=["host-chip"], **at)
    assert "weights" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_verify_sends_them_and_refuses_what_it_does_not_run(traced, rules):
    made = traced.partition(rules, weights_at="home", wire_dtype="bfloat16", link="unix-socket")
    with warm.workers():
        verdict = made.verify().check().verdict
    assert verdict.total_payload_bytes_measured == made.summary["total_payload_bytes"]
    assert verdict.total_wire_bytes_measured == made.summary["total_wire_bytes"]
    packed = traced.stored("q8_0").partition(rules)
    assert packed.summary["sent_weight_bytes"] > 0
    with pytest.raises(InputError, match=r"is sent weights in q8_0, .* leave --weights out"):
        packed.verify()


def test_weights_that_are_secret_are_not_sent(traced, tmp_path):
    path = tmp_path / "own.toml"
    secret = '\n[[secret]]\nname = "lm_head.weight"\n'
    path.write_text(RULES + secret)
    with pytest.raises(CutedgeError, match=r"shows .* to gpu: 1 transfer"):
        traced.partition(path)


# --- words ----------------------------------------------------------------------------------------


def test_what_is_printed_says_so(tmp_path, rules):
    folder = tmp_path / "t"
    assert invoke("trace", "edge-10m", "--seq", "16", "--out", folder).returncode == 0
    shown = invoke("partition", folder, "--policy", "host-chip", "--weights-at", "home")
    assert shown.returncode == 0, shown.stderr
    assert "residency run, weights at home\n" in shown.stdout
    assert "of weights lie at tee and are sent in each run" in shown.stdout
    without = invoke("partition", folder, "--policy", "host-chip").stdout
    assert "weights" not in without.partition("Bottleneck")[0].partition("resident")[0]
    shown = invoke("cutedge", "policies", rules)
    assert "accelerator, weights at home" in shown.stdout
    told = json.loads(invoke("cutedge", "policies", rules, "--json").stdout)
    assert [rule.get("weights_at") for rule in told["policies"][0]["rules"]] == ["home", "device"]


@pytest.mark.parametrize("where", ["rule", "option", "axis"])
def test_what_is_neither_is_an_error(traced, tmp_path, where):
    path = tmp_path / "own.toml"
    path.write_text(RULES.replace('weights_at = "home"', 'weights_at = "hom"'))
    asked = {
        "rule": lambda: traced.partition(path, machine=MACHINE),
        "option": lambda: traced.partition("min-cut", machine=MACHINE, weights_at="hom"),
        "axis": lambda: cutedge.sweep("edge-10m", tmp_path / "s", weights_at="hom", jobs=1),
    }
    with pytest.raises(InputError, match=r"weights.at.*hom.* home"):
        asked[where]()
