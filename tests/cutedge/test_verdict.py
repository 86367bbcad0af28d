"""What the first screen says of twelve cases, each claim counted again from the tables."""

import re
import shlex
import shutil
import tomllib
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

import cutedge
from cutedge._placing import bottlenecks
from cutedge._verdict import times_of, verdicts
from cutedge.report.scores import against, best_allowed
from tests.support.inprocess import invoke
from tracer.words import duration, human

TEE = "tee-tdx+h100-cc@pcie5-x16-cc"
OPEN = "tee-tdx+rtx-4090@pcie4-x16"
CHIP = "ryzen-7950x+chip-8x8@axi-lite"
MOE = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}

# model, how it is traced, machine, policies (the first is judged), what leads, what is advised
CASES = {
    "tee-gpu-prefill": (
        *("edge-10m", {"seq": 128}, TEE, ["offload-linear", "min-cut"]),
        *("pcie5-x16-cc has .* messages take", "take min-cut: a run takes .* shows no more"),
    ),
    "tee-gpu-long": (
        *("edge-10m", {"seq": 512}, OPEN, ["offload-linear", "flash-attention"]),
        *("pcie4-x16 has .* of its bytes are the attention scores", "flash-attention|bfloat16"),
    ),
    "tee-gpu-decode": (
        *("edge-10m", {"phase": "decode", "past": 128}, TEE, ["offload-linear", "all-home"]),
        *("pcie5-x16-cc has .* messages take", "take all-home: a run takes"),
    ),
    "all-home-decode": (
        *("edge-10m", {"phase": "decode", "past": 128}, OPEN, ["all-home", "fastest"]),
        *("nothing crosses .* tee-tdx has 100.0% .* reading and writing memory", "."),
    ),
    "masked": (
        *("edge-10m", {"seq": 128}, OPEN, ["slalom", "offload-linear", "min-cut"]),
        *("pcie4-x16 has|tee-tdx has", "."),
    ),
    "private": (
        *("edge-10m", {"seq": 128}, OPEN, ["prompt-private", "min-cut", "offload-linear"]),
        *(".", "."),
    ),
    "chip-1": (
        *("edge-10m", {"seq": 1}, CHIP, ["host-chip"]),
        *("7 of 8 cycles of chip-8x8 multiply padding", "take a batch 8 times as large"),
    ),
    "chip-128": (
        *("edge-10m", {"seq": 128}, CHIP, ["host-chip", "all-home"]),
        *("chip-8x8 has 98.8% of the known time", "take all-home"),
    ),
    "layers": (
        *("edge-10m", {"seq": 128}, TEE, ["layers", "min-cut", "all-home"]),
        *("pcie5-x16-cc has .* 2 messages take", "take all-home"),
    ),
    "moe": (
        *("mixtral-8x7b", {"seq": 64, "overrides": MOE}, TEE, ["offload-linear", "min-cut"]),
        *("pcie5-x16-cc has", "take min-cut"),
    ),
    "encoder": (
        *("bert-base", {"seq": 128}, TEE, ["min-cut-norm-home", "fastest"]),
        *("pcie5-x16-cc has", "take fastest"),
    ),
    "no-figures": (
        *("edge-10m", {"seq": 128}, None, ["offload-linear", "min-cut", "all-home"]),
        *("of the traffic of offload-linear is .* seconds are not known", "take min-cut: .* cross"),
    ),
}


TRACED_ALONE = ("moe", "encoder")
"""Cases of models that no other test traces."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in TRACED_ALONE else name
        for name in CASES
    ],
)
def case(request):
    model, how, machine, policies, leads, advised = CASES[request.param]
    trace = cutedge.trace(model, **how)
    made = trace.compare(policies, baseline=policies[-1], machine=machine)
    found = made.compared
    worst = bottlenecks(found.partitions, found.setting, found.policies)
    return trace, made, verdicts(found, worst, times_of(found)), leads, advised


def test_each_sentence_is_true_of_its_tables(case):
    trace, made, told, leads, advised = case
    assert re.search(leads, told[0].limit), told[0].limit
    assert re.search(advised, told[0].step, re.IGNORECASE), told[0].step
    for one, verdict in zip(made, told, strict=True):
        check_limit(trace, one, verdict.limit)
        check_step(trace, made, one, verdict)
        check_scores(made, one, verdict)


def seconds_by_part(one):
    """Device or link -> its seconds in the summary."""
    row = one.summary
    return {**row["compute_seconds"], row["link"]: row["seconds"] or 0.0}


SCORES = ("attention_scores", "attention_probs")


def check_limit(trace, one, said):
    row, parts = one.summary, seconds_by_part(one)
    whole = row["run_seconds"]
    transfers = one.transfers.to_pylist()
    if match := re.search(r"(?:,|:) ([\w-]+) has ([\d.]+)% of the (known )?time", said):
        assert max(parts, key=parts.get) == match[1]
        assert f"{parts[match[1]] / whole:.1%}" == f"{match[2]}%"
        assert bool(match[3]) == row["at_least"]
    if match := re.search(r"([\d,]+) messages? take ([\d.]+)% of that", said):
        messages = Counter(
            (t["call_id"], t["src_device"], t["dst_device"], t["direction"]) for t in transfers
        )
        taken = sum(map(message_seconds, [row["link"]] * len(messages), messages))
        assert int(match[1].replace(",", "")) == len(messages)
        assert f"{taken / row['seconds']:.1%}" == f"{match[2]}%"
        assert float(match[2]) >= 50
    if match := re.search(
        r"([\d.]+)% of (?:its bytes are|the traffic of \S+ is) the attention", said
    ):
        scores = sum(t["payload_bytes"] for t in transfers if t["label"] in SCORES)
        assert f"{scores / row['total_payload_bytes']:.1%}" == f"{match[1]}%"
    if match := re.search(r"; ([\d.]+)% of that goes to ([\w ]+), ([\d.]+)% to (.+)\.$", said):
        device = max(row["compute_seconds"], key=row["compute_seconds"].get)
        check_device(trace, one, device, *match.groups())
    if "nothing crosses" in said:
        assert transfers == []
    if "multiply padding" in said:
        check_padding(trace, one, said)
    if "seconds are not known" in said:
        assert whole is None


def message_seconds(link, message):
    text = files("costmodels").joinpath(f"data/links/{link}.toml").read_text("utf-8")
    way = "received" if message[3] == "receive" else "sent"
    figures = {key: one["value"] for key, one in tomllib.loads(text).items() if "value" in one}
    toll = figures.get(f"{way}_latency_seconds", 0) + figures.get(f"{way}_toll_seconds", 0)
    framing = figures[f"{way}_message_framing_bytes"]
    return toll + framing / figures[f"{way}_bandwidth_bytes_per_second"]


BOUNDS = {
    "memory": "reading and writing memory",
    "compute": "computing",
    "overhead": "starting ops",
}


def check_device(trace, one, device, share, what, part, name):
    """Of the ops that the placement has there: the bound and the sort of op with most seconds."""
    if one.split.graph is not trace.graph:
        return  # with masks among its ops, of which the cost table of the trace has no row
    here = {row["op_id"] for row in one.placement.to_pylist() if row["device"] == device}
    ops = {row["op_id"]: row for row in trace.ops.to_pylist()}
    costs = [c for c in trace.cost(device).to_pylist() if c["op_id"] in here and c["seconds"]]
    by_bound, by_name = defaultdict(float), defaultdict(float)
    for cost in costs:
        op = ops[cost["op_id"]]
        leaf = next(
            (p for p in reversed(op["module_path"].split(".")) if p and not p.isdigit()), ""
        )
        named = leaf and op["kind"] in ("linear", "embedding")
        by_bound[BOUNDS[cost["bound"]]] += cost["seconds"]
        by_name[leaf if named else f"{leaf} {op['target'].split('.')[1]}".strip()] += cost[
            "seconds"
        ]
    whole = one.summary["compute_seconds"][device]  # with what it takes to keep cached state
    by_bound[BOUNDS["memory"]] += whole - sum(by_bound.values())
    assert max(by_bound, key=by_bound.get) == what
    assert float(share) == pytest.approx(100 * by_bound[what] / whole, abs=0.06)
    assert float(part) == pytest.approx(100 * max(by_name.values()) / whole, abs=0.06)
    assert by_name[name] == max(by_name.values())


def check_padding(trace, one, said):
    """Useful multiplications among those of whole tiles of 8 x 8 x 8."""
    on_chip = {row["op_id"] for row in one.placement.to_pylist() if row["device"] == "chip-8x8"}
    sizes = [
        (op["gemm_batch"], op["gemm_m"], op["gemm_k"], op["gemm_n"])
        for op in trace.ops.to_pylist()
        if op["op_id"] in on_chip and op["gemm_m"]
    ]
    useful = sum(b * m * k * n for b, m, k, n in sizes)
    whole = sum(b * -(-m // 8) * -(-k // 8) * -(-n // 8) * 512 for b, m, k, n in sizes)
    lost = 1 - useful / whole
    if match := re.search(r"(\d) of (\d) cycles", said):
        assert f"{int(match[1]) / int(match[2]):.1%}" == f"{lost:.1%}"
    else:
        assert f"{lost:.1%} of the cycles" in said


def known_sorts(one):
    return {s.what for each in one.split.exposed for s in each.seen if s.is_known} - {
        "weights",
        "other",
    }


def check_step(trace, made, one, verdict):
    said, command = verdict.step, verdict.command
    assert command.startswith("cutedge ")
    if match := re.match(
        r"Take (\S+): (?:a run takes (at least )?(.+?) instead|(.+?) cross)", said
    ):
        other = made[match[1]]
        assert f"--policy {match[1]} " in command
        if match[3]:
            assert match[3] == duration(other.summary["run_seconds"])
            assert bool(match[2]) == other.summary["at_least"]
            assert other.summary["run_seconds"] < one.summary["run_seconds"]
        else:
            assert match[4] == human(other.summary["total_payload_bytes"])
        assert known_sorts(other) <= known_sorts(one)
        assert ("it shows no more" in said) == (known_sorts(other) == known_sorts(one))
        fastest_allowed = [
            p.summary["run_seconds"]
            for p in made
            if known_sorts(p) <= known_sorts(one) and p.summary["run_seconds"] is not None
        ]
        assert not match[3] or other.summary["run_seconds"] == min(fastest_allowed)
    elif match := re.match(
        r"Take a batch (\d+) .* takes ([\d.]+) times .* ([\d.]+)% of them", said
    ):
        check_batch(trace, one, command, *match.groups())
    elif match := re.match(
        r"Send floats as bfloat16.*: (?:a run takes (?:at least )?)?(.+?) (?:cross )?instead", said
    ):
        policy, machine = one.policy, made.compared.setting.machine
        words = {"home": machine.home, "accel": list(machine.accelerators)}
        narrow = trace.partition(
            policy, **words, link=machine.links.name, wire_dtype="bfloat16"
        ).summary
        figure = narrow["run_seconds"]
        assert match[1] in (
            human(narrow["total_payload_bytes"]) if figure is None else duration(figure)
        )
    elif match := re.search(r"; (\S+) takes (.+) and shows (.+) too", said):
        other = made[match[1]]
        assert match[2] == duration(other.summary["run_seconds"])
        more = known_sorts(other) - known_sorts(one)
        assert set(match[3].split(", ")) == {what.words for what in more}
    elif match := re.search(
        r"a run with (\S+) twice as fast would take (.+) instead of (.+)\.", said
    ):
        parts = seconds_by_part(one)
        whole = one.summary["run_seconds"]
        assert match[1] == max(parts, key=parts.get)
        assert match[2] == duration(whole - parts[match[1]] / 2)
        assert match[3] == duration(whole)
    else:
        assert said == "Name devices and a link that have figures, and seconds are told too."
        assert one.summary["run_seconds"] is None


def check_batch(trace, one, command, many, times, share):
    """The command traces it: its products have so many cycles on the chip."""
    assert f"--batch {many}" in command
    larger = cutedge.trace(trace.graph.meta.model, batch=int(many), seq=trace.graph.meta.seq)
    again = larger.partition(one.policy, machine=CHIP)
    before, after = (p.summary["cycles"]["chip-8x8"] for p in (one, again))
    assert f"{after / before:.3g}" == times
    assert float(share) == pytest.approx(100 * after / before / int(many), abs=0.06)


COLUMNS = {
    "time": "run_seconds",
    "traffic": "total_payload_bytes",
    "calls": "calls",
    "energy": "run_joules",
}


def check_scores(made, one, verdict):
    names = [score.name for score in verdict.scores]
    assert names[:4] == ["time", "traffic", "calls", "what is seen"]
    baseline = made.compared.baseline
    for score in verdict.scores:
        first = score.bars[0]
        assert first.policy == one.policy
        assert "shown" in first.role
        values = {
            bar.policy: (
                made[bar.policy].summary[COLUMNS[score.name]]
                if score.name in COLUMNS
                else len(known_sorts(made[bar.policy]))
            )
            for bar in score.bars
        }
        assert baseline.policy in values
        most = max((value or 0 for value in values.values()), default=0)
        for bar in score.bars:
            value = values[bar.policy]
            assert (bar.share is None) == (value is None)
            assert bar.share is None or bar.share == pytest.approx(value / most if most else 0)
        mine, theirs = values[one.policy], values[baseline.policy]
        if mine is not None and theirs and (match := re.match(r"([\d.]+)% less", score.claim)):
            assert float(match[1]) == pytest.approx(100 * (1 - mine / theirs), abs=0.06)


def test_the_best_allowed_shows_no_more(traced_small):
    made = traced_small.compared.partitions
    names = [one.policy for one in made]
    open_, private = names.index("min-cut"), names.index("prompt-private")
    fits = [True] * len(made)
    assert names[best_allowed(made, open_, fits)] in ("min-cut", "fastest")
    assert names[best_allowed(made, private, fits)] in ("prompt-private", "all-home")
    fits[best_allowed(made, open_, fits)] = False  # what does not fit is no advice
    assert fits[best_allowed(made, open_, fits)]


@pytest.fixture(scope="module")
def traced_small():
    policies = ["min-cut", "prompt-private", "all-home", "fastest"]
    return cutedge.trace("edge-10m", seq=128).compare(policies, machine=OPEN)


def find_file(folder, name):
    return Path(str(files("costmodels") / "data" / folder / f"{name}.toml"))


def test_the_command_runs_and_has_the_figure(tmp_path):
    trace = cutedge.trace("edge-10m", seq=128)
    device, link, packing = (
        shutil.copy(find_file(folder, name), tmp_path / f"my {folder}.toml")
        for folder, name in (("devices", "rtx-4090"), ("links", "pcie5-x16"), ("packings", "zstd"))
    )
    made = trace.compare(
        ["offload-linear", "min-cut"],
        home="tee-tdx",
        accel=f"gpu={device}",
        link=str(link),
        pack=[f"{packing}:1KiB", "zstd-planes"],
        engine="gpu=vllm",
        residency="call",
    )
    worst = bottlenecks(made.compared.partitions, made.compared.setting, made.compared.policies)
    first = verdicts(made.compared, worst, times_of(made.compared))[0]
    words = shlex.split(first.command)[1:]
    assert words[words.index("--pack") + 1] == f"{packing}:1KiB"
    ran = invoke("cutedge", words[0], trace.save(tmp_path / "t"), *words[1:])
    assert ran.returncode == 0, ran.stderr
    told = re.search(r"takes (?:at least )?(.+?) instead", first.step)[1]
    assert told in ran.stdout


def test_a_schedule_leads_with_its_busiest():
    made = cutedge.trace("edge-10m", seq=128).compare(
        ["offload-linear", "min-cut"], machine=OPEN, schedule="overlap", requests=2
    )
    found = made.compared
    worst = bottlenecks(found.partitions, found.setting, found.policies)
    told = verdicts(found, worst, times_of(found))[0]
    laid = made["offload-linear"].split.schedule
    busy = Counter()
    for slot in laid.slots:
        for resource in slot.task.uses:
            busy[resource] += slot.task.seconds
    first = max(busy, key=lambda name: busy[name] / laid.lanes[name])
    share = busy[first] / laid.lanes[first] / laid.makespan_seconds
    assert f"{first} is the busiest, at work in {share:.1%} of the" in told.limit
    assert told.scores[0].bars[0].text.endswith(duration(laid.makespan_seconds))


def test_claims_say_more_less_and_the_same():
    assert against(2, 0, "a") == "a has nothing of it"
    assert against(3, 1, "a", "calls") == "2 calls more than a"
