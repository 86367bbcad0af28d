"""Designs of a chip for a model: the table, the best ones, the sentence, the page, and bad input."""

import re
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

import cutedge
from costmodels.designs import KNOBS, Space, doubled, gains, runs, seconds_of
from costmodels.energy import EnergyFigures
from cutedge._design_words import limit_sentence
from tests.support.inprocess import invoke
from tracer.errors import InputError

AXES = {
    "rows": "2..16",
    "columns": [4, 16],
    "sram_kib": "3,4+8+2",
    "dram_gb_per_second": "0.2,6.4",
    "clock_mhz": "100..200:50",
    "arrays": "1,2",
}
DESIGNS = 3 * 4 * 2 * 2 * 2 * 2 * 3


@pytest.fixture(scope="module")
def traced():
    return cutedge.trace("edge-10m", seq=64)


@pytest.fixture(scope="module")
def made(traced):
    return cutedge.design(traced, seq="32,64", max_area=0.5, dtype="float32", **AXES)


def test_a_point_is_a_design_for_a_run(made):
    points = made.points
    assert made.space.size == DESIGNS
    assert points.num_rows == made.count == 2 * DESIGNS
    assert points["seq"].unique().to_pylist() == [32, 64]
    assert len(points.group_by(["seq", *AXIS_COLUMNS]).aggregate([]).to_pylist()) == 2 * DESIGNS


AXIS_COLUMNS = (
    "dataflow",
    "rows",
    "columns",
    "arrays",
    "ifmap_kib",
    "dram_bytes_per_second",
    "clock_hertz",
)


def test_rows_are_in_the_order_of_the_axes(made):
    """The clock changes first, then the DRAM: each row is the design of its number."""
    rows = made.points.slice(0, DESIGNS).to_pylist()
    for number in (0, 1, 5, 100, DESIGNS - 1):
        design, row = made.space.design(number), rows[number]
        assert (design.dataflow, design.rows, design.columns, design.arrays) == tuple(
            row[name] for name in AXIS_COLUMNS[:4]
        )
        assert float(design.kib[1]) == row["filter_kib"]
        assert float(design.dram_bytes_per_second) == row["dram_bytes_per_second"]
        assert float(design.clock_hertz) == row["clock_hertz"]
        assert row["total_cycles"] == row["cycles"] + row["stall_cycles"]
        assert row["seconds"] == row["total_cycles"] / row["clock_hertz"]


def test_the_best_and_the_pareto_set_are_those_of_the_table(made):
    for found in made.found:
        seq = found.graph.meta.seq
        rows = [row for row in made.points.to_pylist() if row["seq"] == seq]
        small = [row for row in rows if row["square_millimetres"] <= 0.5]
        key = [(row["seconds"], row["joules"], row["square_millimetres"]) for row in small]
        wanted = [
            not any(all(map(float.__le__, other, one)) and other != one for other in set(key))
            for one in key
        ]
        assert [row["pareto"] for row in small] == wanted
        assert sum(row["pareto"] for row in rows) == len(found.pareto) == sum(wanted)
        near = [one for one in key if one[0] <= 1.01 * min(key)[0]]
        best = rows[found.best]
        assert (best["joules"], best["square_millimetres"], best["seconds"]) == min(
            (joules, area, seconds) for seconds, joules, area in near
        )


def test_what_is_compared_can_be_chosen(traced, made):
    one = cutedge.design(traced, seq=64, max_area=0.5, dtype="float32", pareto="seconds", **AXES)
    seconds = made.found[1].runs.seconds[made.square_millimetres <= 0.5]
    assert (one.found[0].runs.seconds[one.found[0].pareto] == seconds.min()).all()


def test_words_a_cycle_are_bytes_a_second(traced):
    """2 words of 4 bytes a cycle at 100 MHz are 0.8 GB/s."""
    how = {"seq": 64, "rows": 8, "columns": 8, "clock_mhz": 100, "dtype": "float32", "sram_kib": 6}
    by_cycle = cutedge.design(traced, dram_words_per_cycle=2, **how)
    by_second = cutedge.design(traced, dram_gb_per_second=0.8, **how)
    assert by_cycle.points.equals(by_second.points)


SENTENCES = {
    "one": r"(.+) limits it: twice the \1 makes it ([\d.]+) times as fast; next is (.+), ([\d.]+) times",
    "two": r"no one thing limits it \(twice the (.+) makes it ([\d.]+) times as fast, and nothing else "
    r"more\): twice the (.+) and the (.+) makes it ([\d.]+) times as fast",
    "not even two": r"no one thing limits it, and no two: at best twice the (.+) and the (.+) makes it "
    r"([\d.]+) times as fast, and twice the (.+) makes it ([\d.]+) times as fast",
}


def as_fast(products, design, *knobs):
    """Of the doubled design, with nothing of what the sentence is made of but the closed forms."""
    seconds = [
        runs(products, Space.of(one, "float32", "none"), EnergyFigures()).seconds[0]
        for one in (design, doubled(design, *knobs))
    ]
    return f"{seconds[0] / seconds[1]:.2f}"


def test_each_claim_holds_of_the_doubled_design(made):
    """Of designs all over the space: figures are those of runs that are worked out anew."""
    found = made.found[1]
    said = set()
    for number in np.linspace(0, DESIGNS - 1, 8).astype(int).tolist():
        of = found.products, made.space.design(number)
        seconds = seconds_of(*of, "float32", "none")
        sentence = limit_sentence(seconds, gains(seconds, [(knob,) for knob in KNOBS]))
        (kind, match), *others = [
            (kind, match)
            for kind, text in SENTENCES.items()
            if (match := re.fullmatch(text, sentence))
        ]
        assert not others
        said.add(kind)
        singles = {knob: as_fast(*of, knob) for knob in KNOBS}
        highest = max(singles.values(), key=float)
        if kind == "one":
            knob, gain, after, then = match.groups()
            assert (singles[knob], singles[after]) == (gain, then)
            assert gain == highest
            assert float(gain) >= 1.9
        elif kind == "two":
            knob, gain, *pair, both = match.groups()
            assert (singles[knob], as_fast(*of, *pair)) == (gain, both)
            assert gain == highest
            assert float(gain) <= 1.9 <= float(both)
        else:
            *pair, both, knob, gain = match.groups()
            assert (singles[knob], as_fast(*of, *pair)) == (gain, both)
            assert float(both) <= 1.9
    assert {"one", "two"} <= said


def test_a_device_stands_beside_designs_that_are_no_larger(traced):
    made = cutedge.design(traced, seq=64, device="chip-8x8", rows=1, columns="1,2", sram_kib=0.1875)
    assert made.max_area == pytest.approx((419 + 4049 * 0.1875 + 39900) / 1e6)
    (found,) = made.found
    assert made.space.design(found.best).columns == 1
    (run,) = made.summary["runs"]
    assert run["device"]["cycles"] == traced.costs("chip-8x8")[0].time.on_array("cycles")
    claim = re.fullmatch(SENTENCES["one"], run["device_limit"])
    assert claim[1] == "clock"
    assert f"{run['device_times_as_fast']['clock']:.2f}" == claim[2]
    assert run["device"]["padding_share"] == pytest.approx(
        traced.partition(
            "host-chip", machine="ryzen-7950x+chip-8x8@axi-lite"
        ).split.chips.cycle_shares.padding
    )


def test_what_is_written_can_be_asked(made, tmp_path):
    assert made.save(tmp_path / "there") == tmp_path / "there" / "designs.parquet"
    read = pq.read_table(tmp_path / "there" / "designs.parquet")
    assert read.equals(made.points)
    sql = "SELECT count(*) AS n FROM designs WHERE pareto"
    counted = cutedge.query(sql, tmp_path / "there").to_pylist()
    assert counted == [{"n": sum(len(one.pareto) for one in made.found)}]


def test_a_page_has_a_chart_of_each_run(made, tmp_path):
    page = made.report(tmp_path / "page.html").read_text()
    assert page == made.report(tmp_path / "again.html").read_text()
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2 * len(made.found)
    for text in charts:
        ElementTree.fromstring(text)
    first = ElementTree.fromstring(charts[0])
    marks = [one for one in first.iter() if one.tag == "title"]
    assert len(marks) == len(made.found[0].pareto)
    words = [one.text for one in first.iter() if one.tag == "text"]
    assert "os: outputs stay" in words
    assert "at most 0.5 mm2" in words
    assert "http" not in re.sub(r"http://www\.w3\.org", "", page)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rows", "0"), "--rows: 0 is less than 1"),
        (("--columns", "16..8"), "--columns: the range 16..8 goes down"),
        (("--rows", "8.5"), "--rows: '8.5' is no whole number"),
        (("--dram-gb-per-second=-1",), "--dram-gb-per-second: '-1' is no number"),
        (("--dram-gb-per-second", "0"), "--dram-gb-per-second: 0 is not more than 0"),
        (("--sram-kib", "1+2"), "--sram-kib 1+2: three buffers"),
        (("--sram-kib", "0.001"), "a buffer has two halves"),
        (("--dram-gb-per-second", "1", "--dram-words-per-cycle", "1"), "not both"),
        (("--dataflow", "os,fixed"), "--dataflow"),
        (("--pareto", "cycles"), "--pareto"),
        (("--dtype", "int64"), "area figures dally-45nm have no multiplier for int64"),
        (("--device", "h200"), "h200 is no array of multipliers"),
        (("--max-area", "0"), "--max-area 0.0: square millimetres, more than 0"),
        (("--area", "none-such"), "unknown area 'none-such'"),
        (
            ("--rows", "1..2000:1", "--columns", "1..2000:1"),
            "120,000,000 points (60,000,000 designs, 2 runs) are more than 5,000,000: give fewer values "
            "of --rows (2000)",
        ),
    ],
)
def test_bad_input_is_one_line(options, said, tmp_path):
    done = invoke("design", "edge-10m", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_design_is_small_enough(traced):
    made = cutedge.design(traced, seq=64, rows=8, columns=8, max_area=1e-4)
    (found,) = made.found
    assert (found.best, len(found.pareto)) == (None, 0)
    assert made.summary["runs"][0]["limit"] is None


def test_numbers_of_python_are_read_as_those_of_options(traced):
    with pytest.raises(InputError, match="more than 0"):
        cutedge.design(traced, seq=64, clock_mhz=0)
