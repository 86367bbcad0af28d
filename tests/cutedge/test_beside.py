"""Two traces or machines side by side: each figure is that of its own comparison."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

import cutedge
from cutedge._beside import made_beside
from tests.support.configs import LLAMA
from tests.support.inprocess import invoke
from tracer.errors import InputError
from tracer.words import duration, human

OPEN = "tee-tdx+rtx-4090@pcie4-x16"
TEE = "tee-tdx+h100-cc@pcie5-x16-cc"
POLICIES = ["offload-linear", "min-cut"]


def cells(html: str) -> list[list[str]]:
    """The texts of the table, by row of its body."""
    body = html.partition("</thead>")[2].partition("</table>")[0]
    return [
        [unescape(text) for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", body, re.S)
    ]


def test_two_machines(tmp_path: Path) -> None:
    """By the command; figures, ratios and the sentences of both."""
    trace = cutedge.trace("edge-10m", seq=64)
    trace.save(tmp_path / "trace")
    words = [word for policy in POLICIES for word in ("--policy", policy)]
    page = tmp_path / "both.html"
    ran = invoke(
        *("report", tmp_path / "trace", *words, "--machine", OPEN, "--beside", TEE),
        *("--out", page, "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    left, right = (trace.compare(POLICIES, machine=one) for one in (OPEN, TEE))
    html = page.read_text()
    found = cells(html)
    assert "<script" not in html
    for n, policy in enumerate(POLICIES):
        one, other = left[policy].split, right[policy].split
        rows = found[3 * n : 3 * n + 3]
        assert rows[0][:2] == [policy, OPEN]
        assert [rows[0][2], rows[1][1]] == [
            f"≥ {duration(split.run_seconds or 0)}" for split in (one, other)
        ]
        assert rows[0][3] == rows[1][2] == human(one.traffic.totals.payload_bytes)
        assert rows[2][2] == "as the first"  # the same bytes cross
        ratio = (other.run_seconds or 0) / (one.run_seconds or 1)
        assert rows[2][1] == f"{ratio:,.3g} times the first"
        headline = json.loads(ran.stdout)["headlines"][policy]
        assert f"the second takes, as far as that is known, {ratio:,.3g} times as long" in headline
    assert left[0].split.traffic.totals.seconds != right[0].split.traffic.totals.seconds


def test_two_sizes_models_and_machines_without_figures() -> None:
    """What differs is what they are called by; tokens that differ are said; bytes without seconds."""
    short, long = (cutedge.trace("edge-10m", seq=seq).compare(POLICIES) for seq in (64, 128))
    made = made_beside(short, long)
    assert [one.label for one in made.columns] == ["seq 64", "seq 128"]
    assert made.notes[0].startswith("A run is of 64 tokens in seq 64 and of 128 in seq 128")
    assert made.headlines[0] == (
        "Under offload-linear 5.7 MiB cross with seq 64, 12.2 MiB with seq 128: the second moves "
        "2.16 times as much."
    )
    assert made.pairs[0][0].left == "not known"
    assert [pair.claim for pair in made.pairs[0]][:2] == ["", "2.16 times the first"]
    other = cutedge.trace(dict(LLAMA), seq=64).compare(POLICIES)
    assert made_beside(short, other).columns[1].label.startswith("llama")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """Two phases, the same twice, no policy in common, no directory, options of one report."""
    trace = cutedge.trace("edge-10m", seq=64)
    here = trace.compare(["offload-linear"], machine=OPEN)
    decode = cutedge.trace("edge-10m", phase="decode", past=64).compare(["offload-linear"])
    with pytest.raises(InputError, match="one is prefill, the other decode"):
        made_beside(here, decode)
    with pytest.raises(InputError, match="both are the same trace on the same machine"):
        made_beside(here, here)
    with pytest.raises(InputError, match="no policy is possible in both: offload-linear in one"):
        made_beside(here, trace.compare(["all-home"], machine=TEE))
    trace.save(tmp_path)
    for words, said in (
        (["--beside", "nix"], "--beside nix: there is no such trace directory"),
        (["--beside", TEE, "--png"], "--png is of the drawings of a report"),
        (["--beside", TEE, "--serve"], "leave --beside out"),
    ):
        ran = invoke("report", tmp_path, *words)
        assert (ran.returncode, said in " ".join(ran.stderr.split())) == (2, True), ran.stderr
    assert not (tmp_path / "beside.html").exists()
