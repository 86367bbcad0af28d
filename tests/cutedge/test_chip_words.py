"""What is said to limit a chip, from figures that are derived here by hand."""

from dataclasses import replace

import pytest

import cutedge
from costmodels.arrays import Options
from costmodels.devices import load_device
from cutedge._chip_words import limit_claim
from partition.run import Chips
from tests.support.inprocess import invoke
from tracer.graph import Gemm

MACHINE = "ryzen-7950x+chip-8x8@axi-lite"

# Tiles of 8 x 8 x 8 of edge-10m: 4 layers of four 256 x 256 and two 256 x 1024, a head of 256 x 26000.
LAYERS = 4 * (4 * 32 * 32 + 2 * 32 * 128)
HEAD = 32 * 3250
WEIGHTS, HEAD_WEIGHTS = LAYERS * 512 // 8, HEAD * 512 // 8  # 8 x 8 of them a tile, not padded
BIASES = 4 * (4 * 256 + 1024 + 256)
BY_HAND = {
    # Each of 4 heads of 64 in 4 layers: [1 x 64] x [64 x 1] and [1 x 1] x [1 x 64], 8 tiles each.
    1: (LAYERS + HEAD + 16 * (8 + 8), WEIGHTS + HEAD_WEIGHTS + 16 * (64 + 64)),
    # 16 rows of tiles, one for the head (the last token's); [128 x 64] x [64 x 128] and its reverse.
    128: (
        16 * LAYERS + HEAD + 16 * 2 * 16 * 8 * 16,
        128 * WEIGHTS + HEAD_WEIGHTS + 16 * 2 * 128 * 64 * 128,
    ),
}
"""Tokens -> (tiles, multiply-accumulates of the products themselves)."""


@pytest.fixture(scope="module", params=BY_HAND)
def tokens(request):
    return request.param


@pytest.fixture(scope="module")
def traced(tokens):
    return cutedge.trace("edge-10m", seq=tokens)


def moved_seconds(made):
    """axi-lite moves 200 million bytes a second, and has no latency."""
    return sum(row["payload_bytes"] for row in made.transfers.to_pylist()) / 200e6


def test_a_claim_has_the_figures_that_are_found_by_hand(traced, tokens):
    made = traced.partition("host-chip", machine=MACHINE)
    tiles, useful = BY_HAND[tokens]
    chip, moving = tiles * 532 / 100e6, moved_seconds(made)
    home = made.split.compute_seconds["ryzen-7950x"]
    padding = 1 - useful / (tiles * 512)
    link = f"{moving / (chip + moving + home):.1%}"
    assert made.split.chips.cycle_shares.padding == pytest.approx(padding)
    if tokens == 1:
        assert f"{padding:.1%}" == "87.5%"
        said = f"7 of 8 cycles of chip-8x8 multiply padding at 1 token; axi-lite has {link} of the"
        assert limit_claim(made.split) == f"{said} known time"
    else:
        assert limit_claim(made.split) == (
            f"chip-8x8 has {chip / (chip + moving + home):.1%} of the known time at 128 tokens, "
            f"axi-lite {link}; {padding:.1%} of the cycles of chip-8x8 multiply padding"
        )


def test_a_link_that_has_most_of_the_time_leads(traced, tokens):
    """64 chips compute in little; the weights that cross do not get less."""
    made = traced.partition("host-chip", machine=MACHINE, weights_at="home", chips=64)
    run = made.split.run
    assert run.link_seconds == pytest.approx(moved_seconds(made))
    sent = (WEIGHTS + HEAD_WEIGHTS + BIASES) * 4
    said = limit_claim(made.split)
    assert said.startswith(
        f"axi-lite has {run.link_seconds / run.seconds:.1%} of the known time at "
        f"{tokens} token{'s' * (tokens > 1)}, {sent / (run.link_seconds * 200e6):.1%} of its bytes "
        "weights; "
    )
    assert "cycles of chip-8x8 multiply padding" in said


def test_what_is_not_known_is_said_and_gpus_have_no_such_claim(traced):
    without = traced.partition("host-chip", machine="ryzen-7950x+chip-8x8@zmq-ipc")
    assert limit_claim(without.split).endswith("; what zmq-ipc takes is not known")
    without = traced.partition("host-chip", machine="tee+chip-8x8@axi-lite")
    assert limit_claim(without.split).endswith("; what tee takes is not known")
    gpu = traced.partition("offload-linear", machine="tee-tdx+rtx-4090@pcie4-x16")
    assert limit_claim(gpu.split) is None


def test_a_home_that_has_most_of_the_time_leads(traced):
    made = traced.partition("host-chip", machine="ryzen-7950x+chip-8x8@pcie5-x16").split
    slow = replace(made, compute_seconds={**made.compute_seconds, "ryzen-7950x": 1e6})
    assert limit_claim(slow).startswith("ryzen-7950x has 100.0% of the known time at ")


def test_cells_that_fill_and_drain_are_idle():
    """[1 x 8] x [8 x 8], weights kept: 8 + 1 + 8 + 8 - 2 cycles, the last is number 22 from 0."""
    array = replace(load_device("systolic-8x8").array, dataflow="ws")
    shares = Chips({(array, Gemm(1, 1, 8, 8)): 3}, Options()).cycle_shares
    assert shares.useful == pytest.approx(64 / (22 * 64))
    assert shares.padding == 0
    assert shares.idle == pytest.approx(21 / 22)


def test_full_tiles_have_no_padding_and_a_chip_may_be_without_one():
    """[8 x 8] x [8 x 8] is a tile; of the 4 places that 2 chips have for 3 tiles one is empty."""
    array = load_device("chip-8x8").array
    shares = Chips({(array, Gemm(1, 8, 8, 8)): 1}, Options()).cycle_shares
    assert (shares.useful, shares.padding, shares.idle) == (1, 0, 0)
    shares = Chips({(array, Gemm(1, 8, 8, 24)): 1}, Options(chips=2)).cycle_shares
    assert (shares.useful, shares.padding, shares.idle) == (0.75, 0, 0.25)


def test_report_and_command_lead_with_it(traced, tokens, tmp_path):
    at = {"machine": MACHINE, "weights_at": "home"}
    claim = limit_claim(traced.partition("host-chip", **at).split)
    written = traced.compare(["host-chip"], **at).report(tmp_path / "r.html")
    assert written.headlines["host-chip"] == f"Under host-chip, {claim}."
    assert "of the traffic of host-chip is " in written.page.read_text(encoding="utf-8")
    shown = invoke(
        *("partition", traced.save(tmp_path / "t"), "--policy", "host-chip"),
        *("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite"),
        *("--weights-at", "home"),
    )
    assert f"\nBottleneck: {claim}.\nTraffic: " in shown.stdout, shown.stderr


def test_a_chip_that_waits_for_its_memory_says_so():
    """One token in int8 on a Coral: the weights that its SRAM does not hold come over USB."""
    traced = cutedge.trace("edge-10m", seq=1, dtype="int8")
    at = {"home": "tee-tdx", "accel": "coral-usb", "link": "usb3-gen1"}
    split = traced.partition("offload-linear", **at).split
    bounds = split.bound_seconds["coral-usb"]
    assert sum(bounds.values()) == pytest.approx(split.compute_seconds["coral-usb"])
    assert bounds["dram"] > 0.9 * sum(bounds.values())
    assert limit_claim(split) is not None
    assert "of the seconds of coral-usb wait for its DRAM" in str(limit_claim(split))
