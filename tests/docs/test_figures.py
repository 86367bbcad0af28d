"""Every figure of the reference documents agrees, or is known to be the document's slip."""

import csv
from collections import Counter

import pytest

from tests.support import REFERENCE
from tools.figures import PAGE, SECTIONS, Row, page, rows

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


def test_the_copies_hold_text_that_csv_reads():
    for name in FILES:
        with (REFERENCE / name).open(encoding="utf-8", newline="") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1
