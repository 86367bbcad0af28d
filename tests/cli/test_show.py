"""What people read: wording, and tables that no width cuts."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from cli import show, show_split
from costmodels.flops import FlopTotals, annotate, total_flops
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from cutedge import Comparison, Partition
from cutedge._placing import Compared
from partition.accounting import account
from partition.explain import compare_traffic, top_transfers
from partition.setting import Setting
from partition.split import Split
from partition.wire_format import WireFormat
from tests.support.graphs import Builder, place
from tracer import words
from tracer.graph import Kind, OpGraph, TraceMeta
from tracer.summary import headline

BIG = 3_000_000_000


def wide() -> OpGraph:
    """One linear whose sizes take many digits."""
    build = Builder()
    x = build.input("x", ("batch", BIG))
    weight = build.parameter("weight", (5, BIG))
    path = "a.rather.long.path.of.modules.that_makes_a_linear"
    made = build.op("linear", x, weight, shape=("batch", 5), kind=Kind.LINEAR, path=path)
    return annotate(build.finish(made))


def partition(graph: OpGraph, link: Link | None = None) -> Split:
    links = Links(link or load_link("zmq-ipc"))
    where = place(graph, {"gpu": ["linear"]})
    traffic = account(graph, where, links)
    return Split(graph, "id", "a-policy", where, traffic, links.name, links, WireFormat(), "run")


def summarise(made: Split) -> None:
    """What ``partition`` prints of a split."""
    told = SimpleNamespace(
        split=made,
        top_transfers=top_transfers(made.graph, made.traffic),
        bottleneck=None,
        derived={},
        topological_cut=None,
        beside_optimum=None,
    )
    show_split.partition_summary(cast(Partition, told), "here", explain=False)


def compare(made: Split) -> None:
    """What ``compare`` prints of one policy, against itself."""
    alike = compare_traffic(made.placement, made.traffic, made.traffic)
    at = Setting(Machine("tee", ("gpu",), made.links))
    found = Compared(at, [made.policy], [made], made, [alike], [[]], {})
    told = SimpleNamespace(compared=found, trace=SimpleNamespace(folder="here"))
    show_split.comparison(cast(Comparison, told), None)


@pytest.fixture(params=[None, 40, 80])
def columns(request, monkeypatch):
    """A pipe, also where the environment speaks of a narrow terminal with colours."""
    if request.param is not None:
        monkeypatch.setenv("COLUMNS", str(request.param))
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
    return request.param


def test_tables_are_never_cut(columns, capsys):
    graph = wide()
    made = partition(graph)
    show.trace_summary(graph, total_flops(graph), "here")
    summarise(made)
    compare(made)
    printed = capsys.readouterr().out
    assert "…" not in printed
    for figure in (
        f"{4 * BIG:,}",
        f"[1, {BIG}]",
        f"4*(batch)*({BIG})",  # a formula
        f"{4 * BIG / 2**20:.4f} MiB",
        f"{(4 * BIG + 82) / 2**20:.4f} MiB",
        "resident off home",
    ):
        assert any(figure in line for line in printed.splitlines()), figure


def test_transfer_times_are_shown_where_they_are_known(capsys):
    fast = load_link("axi-lite")
    one_way = replace(fast, received_bandwidth_bytes_per_second=None)
    graph = wide()
    for link, shown in (
        # 12e9 bytes at 200e6 a second; 20 bytes (5 floats) back
        (fast, ["60 s", "100 ns", "60 s"]),
        (one_way, ["60 s", "not known", "not known"]),
        (load_link("zmq-ipc"), None),
    ):
        made = partition(graph, link)
        summarise(made)
        printed = capsys.readouterr().out
        assert ("transfer time" in printed) == (shown is not None)
        rows = [line for line in printed.splitlines() if line.startswith(("sent", "rec", "total "))]
        for row, time in zip(rows, shown or [], strict=False):
            assert row.endswith(f"MiB  {time:>13}"), row
        compare(made)
        printed = capsys.readouterr().out
        assert ("transfer time" in printed) == (link is fast)


def test_a_link_with_chunks_says_its_peak_buffer(capsys):
    link = replace(load_link("none"), chunk_bytes=3 * 2**20)
    summarise(partition(wide(), link))
    assert "in chunks of 3.0 MiB at most: the peak buffer is 3.0 MiB\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (12345.6, "12,346 s"),
        (1.0, "1 s"),
        (0.5, "500 ms"),
        (0.0123456, "12.35 ms"),
        (4.2e-6, "4.2 us"),
        (5e-9, "5 ns"),
        (1e-12, "0.001 ns"),
    ],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(63015384615, "63.02 GB/s"), (2e8, "200 MB/s"), (1500, "1.5 kB/s"), (9.6, "9.6 B/s")],
)
def test_rates_are_in_powers_of_ten(rate, text):
    assert words.rate(rate) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 calls"), (1, "1 call"), (2, "2 calls"), (1234, "1,234 calls")]
)
def test_one_is_no_plural(number, text):
    assert words.counted(number, "call") == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.0%"), (0.99999, "99.9%"), (0.9994, "99.9%"), (0.5, "50.0%"), (0.0, "0.0%")],
)
def test_only_all_is_a_hundred_percent(share, text):
    assert words.covered(share) == text


def test_every_printed_total_says_what_it_is_of(capsys):
    graph = wide()
    made = partition(graph)
    summarise(made)
    compare(made)
    line = "coverage: bytes are exact for all 3 ops; FLOPs are known for 100.0% of those that work"
    assert capsys.readouterr().out.splitlines().count(line) == 2


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ({}, "12 in matrix products, exact"),
        (
            {"aten.conv9d.default": 3},
            "12 in matrix products, those of 3 x aten.conv9d.default not known",
        ),
    ],
)
def test_products_are_exact_only_when_none_is_missing(capsys, missing, says):
    unsupported = {"aten.odd.default": 2, **missing}
    totals = FlopTotals(12, "12*batch", 12, "12*batch", 4, unsupported, missing, 0.5)
    show.trace_summary(wide(), totals, "here")
    printed = capsys.readouterr().out
    assert f"FLOPs       {says}\n" in printed
    assert "known for 50.0% of the ops that work; not for" in printed
    assert "2 x aten.odd.default" in printed


def test_a_headline_has_what_was_changed():
    meta: TraceMeta = replace(wide().meta, overrides=(("num_hidden_layers", "2"),))
    assert headline(meta).startswith("by-hand, num_hidden_layers = 2: prefill of 1 x 8 tokens")
