"""The energy of a run: against a count of its own, and the least of all placements."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from costmodels.devices import load_device
from costmodels.energy import EnergyFigures
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from cutedge._placing import partition_of
from partition.objective import figure
from partition.optimise import place
from partition.policy import Policy, load_policy, with_objective
from partition.setting import Setting
from tests.support.costs import costed, device
from tests.support.examples import examples
from tests.support.graphs import describe, graphs
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph

WAYS = ("sent", "received")
FIGURES = st.builds(
    EnergyFigures,
    mac_picojoules=st.sampled_from([{}, {"float32": 3e9}, {"float32": 5e10}]),
    dram_picojoules_per_byte=st.sampled_from([None, 2e8]),
    idle_watts=st.sampled_from([None, 0.0, 30.0]),
    busy_watts=st.sampled_from([40.0, 90.0]),
)
LINKS = st.builds(
    Link,
    st.just("any"),
    st.just(""),
    *[st.sampled_from([0, 7, 90])] * 4,
    **{f"{way}_bandwidth_bytes_per_second": st.sampled_from([10**3, 10**6]) for way in WAYS},
    **{f"{way}_latency_seconds": st.sampled_from([None, 1e-4]) for way in WAYS},
    shared_memory_threshold_bytes=st.sampled_from([0, 20]),
    shared_memory_handle_bytes=st.sampled_from([0, 4]),
    chunk_bytes=st.none() | st.sampled_from([5, 200]),
    picojoules_per_byte=st.sampled_from([None, 1e9, 3e10]),
)


def working(graph: OpGraph) -> OpGraph:
    """The graph with work that every device has figures for."""
    plain: dict[str, Any] = {"kind": Kind.ELEMENTWISE, "dtype": "float32"}
    as_they_are = (Kind.INPUT, Kind.OUTPUT, Kind.VIEW, Kind.CONSTANT)
    ops = (op if op.kind in as_they_are else replace(op, **plain) for op in graph.ops)
    return costed(graph.with_ops(ops))


def setting(graph: OpGraph, link: Link, residency: Any, *figures: EnergyFigures) -> Setting:
    names, speeds = ("tee", "gpu", "npu")[: len(figures)], (1e4, 1e6, 3e5)
    times = {
        name: time_ops(graph, device(name, speed, energy=one))
        for name, speed, one in zip(names, speeds, figures, strict=False)
    }
    return Setting(Machine("tee", names[1:], Links(link)), residency=residency, times=times)


def by_hand(graph: OpGraph, at: Setting, policy: Policy, devices: Any, placement: Any) -> float:
    """Joules, op by op and transfer by transfer, as the page on energy says them."""
    traffic = at.account(graph, placement, at.wire(graph, policy))
    joules, seconds = 0.0, traffic.totals.seconds or 0.0
    for op, where in zip(graph.ops, devices, strict=True):
        if where is None or op.kind in (Kind.INPUT, Kind.OUTPUT, Kind.VIEW, Kind.CONSTANT):
            continue
        time = at.times[where].ops[op.id]
        energy = at.times[where].device.energy
        assert energy is not None
        assert time.seconds is not None
        seconds += time.seconds
        if energy.mac_picojoules:  # two FLOPs are a multiply-accumulate
            joules += (op.cost.flops or 0) / 2 * energy.mac_picojoules["float32"] * 1e-12
            moved = op.cost.read_bytes + op.cost.write_bytes
            joules += moved * (energy.dram_picojoules_per_byte or 0) * 1e-12
        else:
            joules += ((energy.busy_watts or 0) - (energy.idle_watts or 0)) * time.seconds
    for transfer in traffic.transfers:
        link = at.machine.links.between(transfer.src_device, transfer.dst_device, "tee")
        joules += transfer.wire_bytes * (link.picojoules_per_byte or 0) * 1e-12
    idle = [one.device.energy for one in at.times.values()]
    return joules + seconds * sum(one.idle_watts or 0 for one in idle if one is not None)


@examples(5, derandomize=True)
@given(
    graphs(max_ops=6),
    LINKS,
    st.sampled_from(["run", "call"]),
    st.lists(FIGURES, min_size=2, max_size=3),
    st.sampled_from(["energy", "energy", "seconds=3,energy=1", "bytes=1,energy=100"]),
)
def test_the_least_energy_is_that_of_all_placements(graph, link, residency, figures, objective):
    graph = working(graph)
    at = setting(graph, link, residency, *figures)
    policy = with_objective(load_policy("fastest"), objective)
    placed = place(graph, policy, at)
    free = [
        op.id
        for op in graph.ops
        if not graph.is_everywhere(op.id) and op.kind not in (Kind.INPUT, Kind.OUTPUT)
    ]
    best = float("inf")
    energy = with_objective(policy, "energy")
    for choice in product(at.machine.devices, repeat=len(free)):
        devices = list(placed.placement.devices)
        for op, where in zip(free, choice, strict=True):
            devices[op] = where
        one = replace(placed.placement, devices=tuple(devices))
        best = min(best, figure(graph, policy, at, one))
        joules = by_hand(graph, at, policy, devices, one)
        assert figure(graph, energy, at, one) == pytest.approx(1e9 * joules, rel=1e-9)
    ours = figure(graph, policy, at, placed.placement)
    note(f"{describe(graph, placed.placement)}\n{placed.solution} {ours} {best}")
    assert placed.solution is not None
    assert placed.solution.objective == pytest.approx(ours, rel=1e-9, abs=0.5)
    assert placed.solution.bound <= best * (1 + 1e-6) + 1
    if placed.solution.proven:
        assert ours <= best * (1 + 1e-6)


def test_what_is_proven_is_what_is_printed(traced):
    """Two devices by operation and idle power, over a link with a figure: all of it is known."""
    graph = traced("edge-10m", seq=8)
    home, chip = (
        EnergyFigures(
            mac_picojoules=dict.fromkeys(("float32", "int64", "bool"), mac),
            dram_picojoules_per_byte=160.0,
            idle_watts=watts,
        )
        for mac, watts in ((20.0, 2.0), (5.0, 1.0))
    )
    times = {
        name: replace(load_device("tee-tdx"), name=name, energy=one, launch_seconds=0.0)
        for name, one in (("tee", home), ("gpu", chip))
    }
    machine = Machine("tee", ("gpu",), Links(load_link("pcie5-x16")), described=times)
    at = Setting(machine, times=machine.times(graph))
    policy = with_objective(load_policy("fastest"), "energy")
    split = partition_of(graph, "", policy, at)
    energy, solution = split.energy, split.solution
    assert energy is not None
    assert solution is not None
    assert energy.run_joules is not None
    assert not energy.at_least
    assert solution.proven
    assert solution.objective == solution.bound == round(1e9 * energy.run_joules)
    devices = split.placement.devices
    assert energy.run_joules == pytest.approx(by_hand(graph, at, policy, devices, split.placement))
    others = [
        partition_of(graph, "", load_policy(name), at).energy
        for name in ("all-home", "fastest", "offload-linear")
    ]
    assert all(one and energy.run_joules <= (one.run_joules or 0) for one in others)


def test_energy_needs_figures_of_all_devices(traced):
    graph = traced("edge-10m", seq=8)
    machine = Machine("tee", ("gpu",), Links(load_link("pcie5-x16")))
    policy = with_objective(load_policy("fastest"), "energy")
    with pytest.raises(InputError, match="counts energy, and tee, gpu has no figures of energy"):
        place(graph, policy, Setting(machine))


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("joules", "'joules' is not one of bytes, seconds, energy"),
        ("seconds=1,energy=much", "--objective seconds=1,energy=much: write one of"),
        ("seconds=0", "the weight of seconds must be a number above 0"),
    ],
)
def test_what_no_objective_is(objective, says):
    with pytest.raises(InputError, match=says):
        with_objective(load_policy("fastest"), objective)


def test_a_mix_counts_what_weighs_most_in_billionths(traced):
    policy = with_objective(load_policy("fastest"), {"seconds": 2, "energy": 0.5})
    assert policy.name == "fastest+seconds=2,energy=0.5"
    assert with_objective(load_policy("offload-linear"), "energy").name == "offload-linear"
