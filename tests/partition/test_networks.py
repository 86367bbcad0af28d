"""Several accelerators, each pair of devices with a link of its own."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.devices import Device, load_device
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.ladder import ladder
from partition.objective import figure, problem_of
from partition.optimise import obstacle, place
from partition.pipeline import in_turn
from partition.placement import Placement
from partition.policy import apply_policy, load_policy
from partition.problem import Problem, allowed_devices, recount
from partition.run import compute_seconds
from partition.setting import Setting
from partition.solve import solve
from tests.support.graphs import HOME, Builder, describe, placed
from tests.support.inprocess import invoke
from tests.support.oracle import EXAMPLES, RESIDENCY, oracle_direction, oracle_moves, oracle_payload
from tracer.errors import InputError
from tracer.graph import Gemm, Kind, OpCost, OpGraph, Status

BOTH = ("gpu", "npu")


def link(name: str, sent: int | None, received: int | None, **figures) -> Link:
    return Link(
        name,
        "",
        3,
        5,
        7,
        11,
        sent_bandwidth_bytes_per_second=sent,
        received_bandwidth_bytes_per_second=received,
        **figures,
    )


GPU = link("of-gpu", 1009, 907, sent_latency_seconds=0.25, received_latency_seconds=0.5)
NPU = link("of-npu", 401, 809, received_serialisation_seconds_per_byte=1e-3, chunk_bytes=64)
PEER = link("peer", 2003, None, sent_latency_seconds=0.125, sent_encryption_seconds_per_byte=2e-4)
NETWORK = Links(GPU, {"npu": NPU}, {frozenset(BOTH): PEER})


# --- which link -----------------------------------------------------------------------------------


def test_a_pair_has_its_own_link_or_that_of_all():
    assert NETWORK.of("gpu") is GPU
    assert NETWORK.of("npu") is NPU
    assert NETWORK.of("tpu") is GPU
    for one, other, expected in (
        (HOME, "gpu", GPU),
        ("npu", HOME, NPU),
        ("gpu", "npu", PEER),
        ("npu", "gpu", PEER),
    ):
        assert NETWORK.between(one, other, HOME) is expected
    among = NETWORK.among(HOME, BOTH)
    assert among == {(HOME, "gpu"): GPU, (HOME, "npu"): NPU, BOTH: PEER}


@pytest.mark.parametrize(
    ("gpu", "npu", "slower"),
    [
        (GPU, NPU, NPU),  # 401 bytes a second against 1009
        (NPU, GPU, NPU),
        # 2003 bytes a second on the wire, and 5000 a second packed: 1430 together
        (PEER, link("between", 1431, 1), PEER),
        (PEER, link("between", 1429, 1), link("between", 1429, 1)),
        (GPU, link("untimed", None, 5), link("untimed", None, 5)),
        (link("one", 7, 7), link("other", 7, 9), link("one", 7, 7)),  # by name: gpu before npu
    ],
)
def test_two_accelerators_without_a_link_use_the_slower_of_theirs(gpu, npu, slower):
    links = Links(load_link("none"), {"gpu": gpu, "npu": npu})
    assert links.between("gpu", "npu", HOME) == links.between("npu", "gpu", HOME) == slower


@pytest.mark.parametrize(
    ("links", "name"),
    [
        (Links(GPU), "of-gpu"),
        (NETWORK, "of-gpu, npu=of-npu, gpu+npu=peer"),
        (Links(GPU, {"gpu": GPU, "npu": GPU}, {frozenset(BOTH): GPU}), "of-gpu"),
        (Links(GPU, {"npu": NPU}, {frozenset(BOTH): NPU}), "of-gpu, npu=of-npu"),
        (Links(GPU, {}, {frozenset(["npu", "gpu"]): NPU}), "of-gpu, gpu+npu=of-npu"),
    ],
)
def test_a_network_is_called_by_what_differs(links, name):
    assert links.name == name


# --- what crosses ---------------------------------------------------------------------------------


@EXAMPLES
@given(placed(BOTH), RESIDENCY, st.sampled_from([GPU, NPU, link("untimed", 5, None)]))
def test_a_network_of_one_link_is_that_link(case, residency, one):
    graph, where = case
    alike = Links(one, dict.fromkeys(BOTH, one), {frozenset(BOTH): one})
    assert account(graph, where, alike, residency=residency) == account(
        graph, where, Links(one), residency=residency
    )


def by_hand(of_pair: Link, payloads: list[int], direction: str) -> tuple[int, float | None]:
    """(wire bytes, seconds) of a message on a link without shared memory."""
    total = sum(payloads)
    pieces = -(-total // of_pair.chunk_bytes) if of_pair.chunk_bytes and total else 1
    way = "received" if direction == "receive" else "sent"
    figure = {
        name.removeprefix(f"{way}_"): getattr(of_pair, name)
        for name in Link.__slots__
        if name.startswith(way)
    }
    wire = total + len(payloads) * figure["tensor_framing_bytes"]
    wire += pieces * figure["message_framing_bytes"]
    rate = figure["bandwidth_bytes_per_second"]
    if rate is None:
        return wire, None
    a_byte = figure["serialisation_seconds_per_byte"] + figure["encryption_seconds_per_byte"]
    return wire, wire / rate + total * a_byte + pieces * (figure["latency_seconds"] or 0)


@EXAMPLES
@given(placed(BOTH), RESIDENCY)
def test_three_links_counted_again(case, residency):
    graph, where = case
    note(describe(graph, where))
    traffic = account(graph, where, NETWORK, residency=residency)
    messages: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for tensor, source, destination, call in oracle_moves(graph, where, residency):
        payload = oracle_payload(graph.tensors[tensor], None)
        messages[call, source, destination].append(payload)
    wires, times = defaultdict(int), defaultdict(float)
    for (call, source, destination), payloads in messages.items():
        of_pair = {frozenset([HOME, "gpu"]): GPU, frozenset([HOME, "npu"]): NPU}.get(
            frozenset([source, destination]), PEER
        )
        direction = oracle_direction(source, destination)
        wire, seconds = by_hand(of_pair, payloads, direction)
        assert seconds is not None
        wires[direction] += wire
        times[direction] += seconds
        moved = [
            t
            for t in traffic.transfers
            if (t.call, t.src_device, t.dst_device) == (call, source, destination)
        ]
        assert sum(t.wire_bytes for t in moved) == wire
        assert sum(t.seconds for t in moved) == pytest.approx(seconds)
    totals = traffic.totals
    assert totals.sent_wire_bytes == wires["send"]
    assert totals.received_wire_bytes == wires["receive"]
    assert totals.peer_wire_bytes == wires["peer"]
    assert totals.sent_seconds == pytest.approx(times["send"])
    assert totals.received_seconds == pytest.approx(times["receive"])
    assert totals.peer_seconds == pytest.approx(times["peer"])
    assert totals.seconds == pytest.approx(sum(times.values()))


def relay() -> OpGraph:
    """x -> a (a linear) -> b (a linear) -> c: 40, 20, 30 and 10 bytes."""
    b = Builder(symbolic=False)
    w = b.parameter("w", [100])
    x = b.input("x", [10])
    one = b.op("a", x, w, shape=[5], kind=Kind.LINEAR)
    two = b.op("b", one, shape=[7], kind=Kind.LINEAR)
    return b.finish(b.op("c", two, shape=[2]))


def test_seconds_are_not_known_where_a_link_that_is_used_has_none():
    untimed = Links(GPU, {"npu": load_link("none")})
    for devices, known in ((("gpu", "gpu"), True), (("npu", HOME), False), (("gpu", "npu"), False)):
        where = placement_of(relay(), [HOME, *devices, HOME, HOME])
        assert (account(relay(), where, untimed).totals.seconds is not None) == known


def placement_of(graph: OpGraph, devices) -> Placement:
    return Placement(HOME, tuple(devices), (False,) * len(graph.ops), ("",) * len(graph.ops))


# --- policies -------------------------------------------------------------------------------------

HEAD = 'description = "a test"\n'
SECOND = '[[rule]]\nkind = "linear"\nplace = "accelerator 2"\n'


def policy(folder, text: str):
    path = folder / "mine.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return load_policy(str(path))


def test_a_fixed_policy_uses_the_first_accelerator_or_the_one_it_names(tmp_path):
    linear = apply_policy(
        relay(), load_policy("offload-linear"), home=HOME, accelerators=("npu", "gpu")
    )
    assert linear.devices == (HOME, "npu", "npu", HOME, HOME)
    rules = policy(tmp_path, f'default = "accelerator"\n{SECOND}')
    named = apply_policy(relay(), rules, home=HOME, accelerators=BOTH)
    assert named.devices == (HOME, "npu", "npu", "gpu", HOME)
    with pytest.raises(
        InputError, match=r"mine places ops on accelerator 2, and there are 1 \(gpu"
    ):
        apply_policy(relay(), rules, home=HOME, accelerators=("gpu",))


@pytest.mark.parametrize("place", ["accelerator 0", "accelerator -1", "accelerator two", 2])
def test_accelerators_are_counted_from_one(tmp_path, place):
    with pytest.raises(
        InputError, match=r"mine\.toml: default: .* is not one of home, accelerator"
    ):
        policy(tmp_path, f"default = {json.dumps(place)}")


def test_an_objective_chooses_among_the_accelerators_and_takes_the_first_of_equals(tmp_path):
    rules = policy(
        tmp_path,
        'default = "home"\nobjective = "bytes"\n[[rule]]\nkind = "linear"\n'
        'place = "accelerator"\nreason = "products"\n'
        '[[rule]]\nkind = "norm"\nplace = "free"\noptional = true\n',
    )
    for accelerators in (("gpu", "npu"), ("npu", "gpu")):
        at = Setting(Machine(HOME, accelerators, Links(GPU)))
        made = place(relay(), rules, at).placement
        assert made.devices == (HOME, accelerators[0], accelerators[0], HOME, HOME)
        assert made.pinned == (True, False, False, False, True)
        assert made.reasons[1] == "products; on which accelerator: the optimum for bytes"
        searched = solve(problem_of(relay(), rules, at), solver="program").placement
        assert searched is not None
        assert searched.devices == made.devices
    tight = Setting(Machine(HOME, BOTH, Links(GPU), memory_bytes={"gpu": 399}))  # w is 400 bytes
    assert place(relay(), rules, tight).placement.devices == (HOME, "npu", "npu", HOME, HOME)


def costed(graph: OpGraph) -> OpGraph:
    return graph.with_ops(
        replace(op, cost=OpCost(flops=100 * (op.id % 3 + 1), flops_status=Status.EXACT))
        if op.kind not in (Kind.INPUT, Kind.OUTPUT)
        else op
        for op in graph.ops
    )


def device(name: str, flops_per_second: float) -> Device:
    return Device(
        name,
        "",
        trusted=name == "npu",
        peak_flops_per_second={"float32": flops_per_second},
        memory_bandwidth_bytes_per_second=1e12,
    )


def branches() -> OpGraph:
    """Two branches that meet, one of them wide, and a tail."""
    b = Builder(symbolic=False)
    x = b.input("x", [10])
    a = b.op("a", x, shape=[40], kind=Kind.LINEAR)
    c = b.op("c", x, shape=[4])
    d = b.op("d", a, shape=[30])
    e = b.op("e", c, d, shape=[20], kind=Kind.LINEAR)
    return costed(b.finish(b.op("f", e, a, shape=[5])))


PLAIN = Links(
    Link(
        "gpu",
        "",
        0,
        2,
        0,
        1,
        sent_bandwidth_bytes_per_second=500,
        received_bandwidth_bytes_per_second=300,
    ),
    {
        "npu": Link(
            "npu",
            "",
            0,
            0,
            0,
            0,
            sent_bandwidth_bytes_per_second=90,
            received_bandwidth_bytes_per_second=900,
        )
    },
    {frozenset(BOTH): Link("peer", "", 0, 0, 0, 0, sent_bandwidth_bytes_per_second=5000)},
)
"""Without latency and message framing a run takes what its tensors take, each by itself."""


@pytest.mark.parametrize("home", [100.0, 1e3, 1e5])
@pytest.mark.parametrize("npu", [2e2, 2e3])
@pytest.mark.parametrize("name", ["fastest", "min-cut"])
def test_the_best_on_two_accelerators_is_that_of_all_placements(home, npu, name):
    graph = branches()
    speeds = {HOME: home, "gpu": 1e3, "npu": npu}
    times = {one: time_ops(graph, device(one, speed)) for one, speed in speeds.items()}
    at = Setting(Machine(HOME, BOTH, PLAIN), times=times)
    found = place(graph, load_policy(name), at)
    assert found.solution is not None
    assert found.solution.proven

    def cost(where: Placement) -> float:
        traffic = account(graph, where, PLAIN)
        if name == "min-cut":
            return traffic.totals.payload_bytes
        assert traffic.totals.seconds is not None
        return traffic.totals.seconds + sum(compute_seconds(where, times).values())

    choices = [
        (HOME,)
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else BOTH
        if name == "min-cut" and op.kind is Kind.LINEAR
        else (HOME, *BOTH)
        for op in graph.ops
    ]
    every = [cost(placement_of(graph, devices)) for devices in product(*choices)]
    unit = 1.0 if name == "min-cut" else 1e9
    assert cost(found.placement) == pytest.approx(min(every), abs=1e-7)
    assert found.solution.objective / unit == pytest.approx(min(every), abs=1e-7)


def test_calls_and_messages_between_accelerators_are_in_the_objective():
    """Of seconds: what home asks the gpu, what that sends the npu, and what the npu answers home.

    The gpu answers home with no tensor, and home asks the npu with none: neither costs anything.
    """
    graph = relay()
    graph = costed(graph)
    untoll = replace(NPU, chunk_bytes=None)
    links = Links(GPU, {"npu": untoll}, {frozenset(BOTH): PEER})
    times = {one: time_ops(graph, device(one, 1e9)) for one in (HOME, *BOTH)}
    at = Setting(Machine(HOME, BOTH, links), times=times)
    where = placement_of(graph, [HOME, "gpu", "npu", HOME, HOME])
    computing = sum(compute_seconds(where, times).values())
    x, a, b = 40, 20, 28
    sent = x / 1009 + 5 / 1009
    peer = a * (1 / 2003 + 2e-4) + 5 / 2003 + (0.125 + 3 / 2003)
    received = b * (1 / 809 + 1e-3) + 11 / 809
    calls = (0.25 + 3 / 1009) + 7 / 809
    expected = computing + sent + peer + received + calls
    assert figure(graph, load_policy("fastest"), at, where) / 1e9 == pytest.approx(expected)


def test_what_is_not_for_a_setting_says_why():
    several = Setting(Machine(HOME, BOTH, Links(GPU)))
    why = obstacle(load_policy("layers"), several)
    assert why is not None
    assert "one accelerator, and here are 2 (gpu, npu)" in why
    with pytest.raises(InputError, match="layers cuts a model in two"):
        place(relay(), load_policy("layers"), several)
    graph = costed(relay())
    times = {one: time_ops(graph, device(one, 1e9)) for one in (HOME, *BOTH)}
    lame = Links(GPU, {}, {frozenset(BOTH): load_link("zmq-ipc")})
    why = obstacle(load_policy("fastest"), Setting(Machine(HOME, BOTH, lame), times=times))
    assert why is not None
    assert "the link zmq-ipc has no bandwidth" in why
    assert (
        obstacle(load_policy("fastest"), Setting(Machine(HOME, BOTH, Links(GPU)), times=times))
        is None
    )
    assert obstacle(load_policy("min-cut"), Setting(Machine(HOME, BOTH, lame))) is None


def test_only_what_an_accelerator_can_run_is_chosen_for_it():
    """An array multiplies alone: linears go to either, the rest to what is no array."""
    graph = branches()
    graph = graph.with_ops(
        replace(op, cost=replace(op.cost, gemm=Gemm(1, 8, 8, 8))) if op.kind is Kind.LINEAR else op
        for op in graph.ops
    )
    times = {"chip": time_ops(graph, load_device("chip-8x8"))}
    at = Setting(Machine(HOME, ("chip", "gpu"), PLAIN), times=times)
    problem = problem_of(graph, load_policy("min-cut"), at)
    kinds = {op.kind: choice for op, choice in zip(graph.ops, problem.allowed, strict=True)}
    assert kinds[Kind.LINEAR] == ("chip", "gpu")
    assert kinds[Kind.ELEMENTWISE] == (HOME, "gpu")


def test_untrusted_are_all_that_are_not_described_as_trusted():
    graph = costed(relay())
    times = {"npu": time_ops(graph, device("npu", 1e9))}
    assert Setting(Machine(HOME, (*BOTH, "tpu"), Links(GPU)), times=times).untrusted == (
        "gpu",
        "tpu",
    )


def test_a_ladder_names_every_device_that_ops_move_to():
    graph = relay()
    start = placement_of(graph, [HOME, "gpu", "gpu", HOME, HOME])
    end = placement_of(graph, [HOME, "gpu", "npu", "npu", HOME])
    steps = ladder(graph, start, end, NETWORK)
    before, after = (account(graph, where, NETWORK).totals.payload_bytes for where in (start, end))
    assert sum(step.saved_bytes for step in steps) == before - after
    assert {step.device for step in steps} == {"npu"}


def test_accelerators_take_layers_in_turn():
    """Layers of 400 bytes of weights each, on two that hold two and a half of them; home none."""
    b = Builder(symbolic=False)
    x = b.input("x", [2])
    table = b.parameter("table", [90])
    stream = b.op("embed", x, table, shape=[2], kind=Kind.LINEAR)
    for n in range(4):
        weight = b.parameter(f"w{n}", [100])
        stream = b.op(f"up{n}", stream, weight, shape=[2], kind=Kind.LINEAR, path=f"layers.{n}")
    graph = b.finish(b.op("head", stream, table, shape=[2], kind=Kind.LINEAR))
    problem = Problem(
        graph,
        HOME,
        BOTH,
        allowed_devices(graph, HOME, BOTH, {}),
        memory_bytes={HOME: 100, "gpu": 1200, "npu": 1200},
    )
    tied, other, *_ = in_turn(problem, [True] * len(graph.ops))
    # The embedding and the head read one table: with both, it lies twice.
    assert tied.devices == (HOME, "gpu", "gpu", "gpu", "npu", "npu", "npu", HOME)
    assert other.devices == (HOME, "npu", "npu", "npu", "gpu", "gpu", "gpu", HOME)
    tight = replace(problem, memory_bytes={HOME: 100, "gpu": 1180, "npu": 830})
    made = in_turn(tight, [True] * len(graph.ops))
    assert made[2].devices == (HOME, "gpu", "gpu", "gpu", "npu", "npu", "gpu", HOME)
    assert [bool(recount(tight, one).broken) for one in made] == [True, True, False, True]


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "16").returncode == 0
    return tmp_path


TWO = ("--home", "tee-tdx", "--accel", "a=rtx-4090", "--accel", "b=rtx-4090")


@pytest.mark.slow
def test_a_model_that_fits_on_neither_is_split_over_both(here):
    """edge-10m has 37.9 MiB of parameters, and home is too small for any matrix of them."""
    done = invoke(
        "partition",
        *TWO,
        "--link",
        "pcie5-x16",
        "--link",
        "a+b=nvlink",
        "--policy",
        "fastest",
        "--memory",
        "tee-tdx=1MiB",
        "--memory",
        "a=30MiB",
        "--memory",
        "b=30MiB",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accelerators"] == ["a", "b"]
    assert found["link"] == "pcie5-x16, a+b=nvlink"
    assert found["peer_payload_bytes"] > 0
    assert {one["device"] for one in found["exposed"]} == {"a", "b"}
    assert found["optimal"] is True
    parts = found["seconds"] + sum(found["compute_seconds"].values())
    assert found["run_seconds"] == pytest.approx(parts)
    rows = json.loads(
        invoke(
            "cutedge",
            "query",
            "SELECT src_device, dst_device, wire_bytes, seconds FROM transfers",
            "--json",
        ).stdout
    )["rows"]
    links = {"a": load_link("pcie5-x16"), "b": load_link("pcie5-x16"), "ab": load_link("nvlink")}
    for row in rows:
        ends = {row["src_device"], row["dst_device"]} - {"tee-tdx"}
        one = links["".join(sorted(ends))]
        assert row["seconds"] >= row["wire_bytes"] / one.sent_bandwidth_bytes_per_second


@pytest.mark.slow
def test_compare_says_which_accelerators_and_leaves_out_what_is_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "4", "--set", "num_hidden_layers=1").returncode == 0
    done = invoke("cutedge", "compare", *TWO, "--link", "pcie5-x16")
    assert done.returncode == 0, done.stderr
    assert "tee-tdx as home, a and b called, " in done.stdout
    assert "without layers: cuts a model in two" in done.stdout
    assert "\nlayers  " not in done.stdout
    assert "\nfastest  " in done.stdout


def test_two_devices_of_one_kind_and_an_explanation(here):
    done = invoke("partition", *TWO, "--policy", "min-cut", "--link", "pcie5-x16", "--explain")
    assert done.returncode == 0, done.stderr
    assert "price of a rule" in done.stdout
    assert "\na sees plain: " in done.stdout
    assert "\nb sees nothing\n" in done.stdout  # one accelerator costs no more than two


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--accel", "rtx-4090", "--accel", "rtx-4090"), "'rtx-4090' is given 2 times"),
        (("--accel", "rtx-4090", "--accel", "rtx-4090"), "as in --accel a=rtx-4090 --accel b="),
        (("--accel", "a=rtx-4090", "--accel", "a=h200"), "'a' is given 2 times"),
        (("--accel", "a=nonsuch"), "unknown device 'nonsuch'"),
        (("--accel", "a="), "device 'a=': write NAME=DEVICE"),
        (("--home", "=h200"), "device '=h200': write NAME=DEVICE"),
        (("--home", "a=h200", "--accel", "a=h200"), "must be two different devices"),
        ((*TWO, "--link", "c=nvlink"), "--link c=nvlink: 'c' is not one of a, b, a+b, b+a."),
        ((*TWO, "--link", "a+tee-tdx=nvlink"), "'a+tee-tdx' is not one of a, b, a+b, b+a."),
        ((*TWO, "--link", "a=nonsuch"), "unknown link 'nonsuch'"),
        ((*TWO, "--link", "nvlink", "--link", "none"), "another --link of home and every"),
        ((*TWO, "--link", "a=nvlink", "--link", "a=none"), "another --link of a; give one"),
        ((*TWO, "--link", "a+b=none", "--link", "b+a=nvlink"), "another --link of b+a; give one"),
        ((*TWO, "--memory", "c=1GiB"), "--memory of device 'c' is not one of tee-tdx, a, b"),
        ((*TWO, "--policy", "layers"), "layers cuts a model in two"),
        ((*TWO, "--policy", "fastest"), "fastest counts seconds, and the link zmq-ipc has no"),
        ((*TWO, "--policy", "fastest", "--link", "a=nvlink"), "the link zmq-ipc has no bandwidth"),
        (
            (*TWO, "--accel", "c", "--policy", "fastest", "--link", "nvlink"),
            "fastest counts seconds, and c is no described device",
        ),
    ],
)
@pytest.mark.few(9)
def test_what_cannot_be_is_one_line(here, asked, says):
    done = invoke("partition", *asked)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(here.rglob("policy=*"))


def test_a_link_for_every_accelerator_leaves_none_over(here):
    done = invoke("partition", *TWO, "--link", "a=nvlink", "--link", "b=pcie5-x16", "--json")
    assert json.loads(done.stdout)["link"] == "nvlink, b=pcie5-x16"
    done = invoke("partition", "--accel", "x=rtx-4090", "--link", "x=nvlink", "--json")
    found = json.loads(done.stdout)
    assert (found["link"], found["accelerators"]) == ("nvlink", ["x"])


def test_a_file_with_an_equals_sign_in_its_path_is_a_file(here):
    folder = here / "of=mine"
    folder.mkdir()
    for kind, name in (("devices", "rtx-4090"), ("links", "nvlink")):
        done = invoke("cutedge", kind, name, "--json")
        assert done.returncode == 0
    from importlib.resources import files

    shipped = files("costmodels") / "data"
    (folder / "gpu.toml").write_text((shipped / "devices" / "rtx-4090.toml").read_text())
    (folder / "wire.toml").write_text((shipped / "links" / "nvlink.toml").read_text())
    done = invoke(
        "partition", "--accel", "of=mine/gpu.toml", "--link", "of=mine/wire.toml", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["accelerators"], found["link"]) == (["gpu"], "wire")
