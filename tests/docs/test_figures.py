"""Every figure of the reference documents agrees, or is known to be the document's slip."""

import csv
from collections import Counter

import pytest

from cutedge._words import verdict
from tests.support import REFERENCE
from tests.support.inprocess import invoke
from tools.figures import PAGE, SECTIONS, Row, page, rows
from tools.verdicts import Verdict, verdict_lines
from tracer.words import duration

FILES = {
    "chip_8x8.csv": "TinyLlama and others on the 8x8 chip (000, 001)",
    "systolic_gemm.csv": "Systolic arrays",
    "params.csv": "Parameters (002)",
    "roofline_qwen15_rtx4090.csv": "Limits of Qwen1.5 on an RTX 4090 (004)",
}
LOG = "Transfers of Llama-3.2-1B between a TEE and a GPU (003)"


def judged(title: str) -> list[Row]:
    return list(SECTIONS[title]())


LONG = ("roofline_qwen15_rtx4090.csv", "params.csv", "chip_8x8.csv")  # more models to trace


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in FILES]
)
def test_each_row_is_what_the_data_says_of_it(name):
    """Rows to reproduce agree, wrong ones come out as derived, others are not to match."""
    data = rows(name)
    for row, ours in zip(data, judged(FILES[name]), strict=True):
        status = row.get("status", "reproduce")
        expected = {"reproduce": True, "reference_is_wrong": False}.get(status)
        assert ours.agrees is expected, (row, ours)
        if status == "reference_is_wrong":
            derived = row.get("derived_value") or row["formula_value"]
            assert float(ours.ours) == pytest.approx(float(derived), rel=1e-3)
            assert ours.why


def test_how_many_rows_there_are():
    counts = Counter(row["status"] for row in rows("roofline_qwen15_rtx4090.csv"))
    assert counts == {"reproduce": 500, "reference_is_wrong": 6}


@pytest.mark.slow
def test_the_log_agrees_but_for_one_table_of_the_report():
    found = judged(LOG)
    assert [row.item for row in found if row.agrees is False] == [
        "003 report: q/k/v output of a layer"
    ]
    assert sum(row.agrees is True for row in found) == 62


@pytest.mark.slow
def test_tinyllama_with_its_real_heads_to_the_cycle():
    (row,) = [r for r in judged(FILES["chip_8x8.csv"]) if "real 4 KV heads and lm_head" in r.item]
    assert row.ours == "85.98618112"  # 8,598,618,112 cycles at 100 MHz


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make reference"


def test_the_fewest_chips_of_a_verdict_are_usable_and_one_less_is_not():
    """Each number by a split of its own; 153,408 tiles take 816 ms on one chip.

    The weights are of 4 layers with 12 matrices of 256 x 256 and 9 biases of 256, and of a head.
    """
    weights = 4 * (12 * 256**2 + 9 * 256) + 256 * 26_000
    link = (weights * 4 + 187_072) / 200e6  # what is computed takes 187,072 bytes
    tight, wide = (Verdict("by hand", "edge-10m", within) for within in (0.108, 0.5))
    assert tight.split("home").run.link_seconds == pytest.approx(link)
    assert tight.chips("home") is None  # the link alone takes 197 ms
    assert tight.bytes_per_second is None
    for one, at in ((tight, "device"), (wide, "home"), (wide, "device")):
        fewest = one.chips(at)
        assert one.split(at, chips=fewest).too_slow(one.within) is None
        assert one.split(at, chips=fewest - 1).too_slow(one.within) > 1
    run = wide.split("home", chips=2).run
    assert run.accelerator_seconds == pytest.approx(0.408, abs=0.001)
    rate = Verdict("by hand", "edge-10m", 0.5, {"chips": 2}).bytes_per_second
    assert rate == pytest.approx(link * 200e6 / (0.5 - run.home_seconds - run.accelerator_seconds))


def test_the_command_of_a_verdict_prints_it(tmp_path):
    one = Verdict("by hand", "edge-10m", 0.5, {"chips": 3, "int8_speedup": 2}, "int8")
    folder = tmp_path / "edge-10m"
    assert invoke("trace", "edge-10m", "--seq", "1", "--out", folder).returncode == 0
    command, name, *options = one.command.split()[1:]
    assert name == folder.name
    shown = invoke("cutedge", command, folder, *options)
    assert shown.returncode == 0, shown.stderr
    split = one.split("home")
    for told in (duration(split.run_seconds), verdict(split, one.within)):
        assert told in shown.stdout
    (line,) = [x for x in verdict_lines((one,)) if x.startswith("| by hand ")]
    assert line.endswith(f": {verdict(split, one.within)} |")


def test_the_copies_hold_text_that_csv_reads():
    for name in FILES:
        with (REFERENCE / name).open(encoding="utf-8", newline="") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1
