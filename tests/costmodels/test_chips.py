"""A host and chips end to end: cycles, shares, where the link is the limit, verdicts."""

import csv
import json
import random
from collections import Counter
from dataclasses import replace
from math import ceil

import pytest

from costmodels.arrays import Options, gemm_cost
from costmodels.devices import load_device
from partition.run import Chips, Run
from tests.support import REFERENCE
from tests.support.inprocess import invoke
from tracer.graph import Gemm

MODELS = ("edge-10m", "distilbert", "tinyllama-1.1b")
"""Those of the documents."""
SHALLOW, LAYERS = "llama-3.2-1b", 1
"""A model that one chip is too slow for, cut to its first layers."""
QUICK = ("edge-10m", SHALLOW)
CHIP = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite")
HOST_CHIP = (*CHIP, "--policy", "host-chip")
FASTER = ("--chips", "4", "--int8-speedup", "2", "--sparsity", "0.9", "--sparsity-speedup", "5")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chips")
    for model in QUICK:
        traced(folder, model)
    return folder


def traced(folder, model: str):
    """Where one token of a model is, which is traced once."""
    if not (folder / model).exists():
        cut = ("--set", f"num_hidden_layers={LAYERS}") if model == SHALLOW else ()
        done = invoke("trace", model, "--seq", "1", *cut, "--out", folder / model)
        assert done.returncode == 0, done.stderr
    return folder / model


def partitioned(folder, model: str, *options: str) -> dict:
    done = invoke("partition", traced(folder, model), *HOST_CHIP, *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def products(folder, model: str) -> list[tuple[int, int, int, int]]:
    """(batch, m, k, n) of every linear and matmul, from the table of the trace."""
    sql = (
        "SELECT gemm_batch, gemm_m, gemm_k, gemm_n FROM ops "
        "WHERE kind IN ('linear', 'matmul') ORDER BY op_id"
    )
    done = invoke("cutedge", "query", sql, "--trace", traced(folder, model), "--json")
    return [tuple(row.values()) for row in json.loads(done.stdout)["rows"]]


def tiles(batch: int, m: int, k: int, n: int) -> int:
    return batch * ceil(m / 8) * ceil(k / 8) * ceil(n / 8)


def shared_out(each: list[int], chips: int, speedup: int = 1) -> float:
    """Seconds of products of so many tiles each, of which the chips take equal shares."""
    return sum(ceil(ceil(count / chips) * 532 / speedup) for count in each) / 100e6


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [*QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in MODELS[1:])]
)
@pytest.mark.parametrize(
    ("options", "chips", "speedup"),
    [((), 1, 1), (("--chips", "4"), 4, 1), (("--pipeline-depth", "4"), 1, 4), (FASTER, 4, 10)],
)
@pytest.mark.few(4)
def test_cycles_are_tiles_of_532(here, model, options, chips, speedup):
    """Of each product the chip with most tiles, 532 cycles each by the speedup, at 100 MHz."""
    each = [
        ceil(ceil(tiles(*product) / chips) * 532 / speedup) for product in products(here, model)
    ]
    found = partitioned(here, model, *options)
    assert found["cycles"] == {"chip-8x8": sum(each)}
    assert found["compute_seconds"]["chip-8x8"] == pytest.approx(sum(each) / 100e6)
    assert found["chips"] == chips


@pytest.mark.parametrize("options", [(), FASTER])
def test_shares_by_hand(here, options):
    """axi-lite: 4 bytes in two cycles of 100 MHz, and nothing else."""
    found = partitioned(here, SHALLOW, *options)
    host = found["compute_seconds"]["ryzen-7950x"]
    chip, link = found["compute_seconds"]["chip-8x8"], found["total_wire_bytes"] / 200e6
    assert found["seconds"] == pytest.approx(link)
    assert (found["home_seconds"], found["accelerator_seconds"]) == (host, chip)
    assert found["seconds_per_token"] == found["run_seconds"] == pytest.approx(host + chip + link)
    assert found["home_share"] == pytest.approx(host / (host + chip + link))
    assert found["accelerator_share"] == pytest.approx(chip / (host + chip + link))
    assert found["link_share"] == pytest.approx(link / (host + chip + link))
    speedup = 10 if options else 1
    each = [tiles(*product) for product in products(here, SHALLOW)]
    assert shared_out(each, found["link_bound_chips"], speedup) <= link
    assert shared_out(each, found["link_bound_chips"] - 1, speedup) > link
    one_tile_each = len(each) * ceil(532 / speedup) / 100e6
    assert found["many_chips_seconds"] == pytest.approx(host + link + one_tile_each)


def test_where_the_link_takes_longer_is_not_scaled_from_the_number_of_chips(here):
    """The tiles of each product are shared out anew: of many chips some have one less."""
    one, many = (partitioned(here, SHALLOW, "--chips", chips) for chips in ("1", "5000"))
    assert one["cycles"] != many["cycles"]
    assert one["link_bound_chips"] == many["link_bound_chips"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("chips", ["1", "5149", "1000", "6000"])
def test_where_the_link_takes_longer_is_the_same_for_any_number_of_chips(here, chips):
    """5,150 chips compute 17.27 ms, one less 17.28 ms; axi-lite takes 17.28 ms.

    Scaled down, 61.3 s of one chip by 17.28 ms would be 3,548 of them.
    """
    run = partitioned(here, "tinyllama-1.1b", "--chips", chips)
    assert run["link_bound_chips"] == 5150


def test_int8_crosses_as_one_byte(here):
    plain = partitioned(here, SHALLOW)
    small = partitioned(here, SHALLOW, "--int8-speedup", "2")
    assert small["wire"] == "int8"
    assert small["total_payload_bytes"] * 4 == plain["total_payload_bytes"]
    assert small["cycles"]["chip-8x8"] * 2 == plain["cycles"]["chip-8x8"]
    kept = partitioned(here, SHALLOW, "--int8-speedup", "2", "--wire-dtype", "float32")
    assert kept["total_payload_bytes"] == plain["total_payload_bytes"]


@pytest.mark.slow
def test_the_linears_of_tinyllama_are_those_that_the_documents_figures_lead_to(here):
    with (REFERENCE / "chip_8x8.csv").open(encoding="utf-8") as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if row["item"] == "time per token with the real 4 KV heads and lm_head"
        )
    sql = (
        "SELECT sum(ceil(gemm_m / 8) * ceil(gemm_k / 8) * ceil(gemm_n / 8)) AS tiles "
        "FROM ops WHERE kind = 'linear'"
    )
    asked = invoke("cutedge", "query", sql, "--trace", traced(here, MODELS[2]), "--json")
    (linears,) = json.loads(asked.stdout)["rows"]
    seconds = linears["tiles"] * 532 / 100e6
    assert seconds == pytest.approx(float(row["derived_value"]))
    run = partitioned(here, MODELS[2])
    assert run["accelerator_seconds"] == pytest.approx(seconds, rel=1e-3)  # and the attention


def test_the_table_has_cycles_and_options(here):
    partitioned(here, "edge-10m", *FASTER)
    sql = "SELECT cycles['chip-8x8'] AS cycles, array_options FROM summary WHERE wire = 'int8'"
    done = invoke("cutedge", "query", sql, "--trace", here / "edge-10m", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert row["cycles"] == partitioned(here, "edge-10m", *FASTER)["cycles"]["chip-8x8"]
    assert row["array_options"] == "int8_speedup=2, sparsity=0.9, sparsity_speedup=5, chips=4"


def test_what_a_partition_prints(here):
    done = invoke("partition", here / "edge-10m", *HOST_CHIP)
    found = partitioned(here, "edge-10m")
    chips = found["link_bound_chips"]
    each = [tiles(*product) for product in products(here, "edge-10m")]
    assert shared_out(each, chips) <= found["seconds"] < shared_out(each, chips - 1)
    assert f"\nchip-8x8: {found['cycles']['chip-8x8']:,} cycles\n" in done.stdout
    assert f"\nfrom {chips:,} chips on, axi-lite, which they share, takes longer" in done.stdout
    assert "\nat least 817.1 ms a token, at most 1.224 tokens a second\n" in done.stdout
    # A chip that only multiplies is not told to run a relu.
    assert "on chip-8x8 too" not in done.stdout


def test_chips_are_said_of_arrays_alone(here):
    gpu = ("--home", "ryzen-7950x", "--accel", "rtx-4090", "--link", "pcie4-x16")
    done = invoke("partition", here / "edge-10m", *gpu, "--policy", "host-chip", "--json")
    run = json.loads(done.stdout)
    assert (run["chips"], run["link_bound_chips"], run["many_chips_seconds"]) == (None, None, None)
    done = invoke("partition", here / "edge-10m", *CHIP, "--policy", "all-home", "--json")
    assert json.loads(done.stdout)["chips"] is None


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "within", "ratio"),
    [
        (Run(1.0, 2.0, 3.0, 1, None), 6.0, None),
        (Run(1.0, 2.0, 3.0, 1, None), 5.9, 6 / 5.9),
        (Run(1.0, 2.0, 3.0, 4, None), 1.5, None),  # four tokens at once
        (Run(1.0, 2.0, 3.0, 4, None), 0.5, 3.0),
        (Run(0.0, 0.0, 0.0, 1, None), 1e-9, None),
    ],
)
def test_a_run_is_usable_within_so_many_seconds_a_token(run, within, ratio):
    assert run.too_slow(within) == (None if ratio is None else pytest.approx(ratio))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.few(5)
def test_where_more_chips_end_by_trying_every_number(seed):
    """Products of a few tiles each, some of which are not shared out evenly."""
    rng = random.Random(seed)
    chip = load_device(rng.choice(["chip-8x8", "systolic-16x16"])).array
    options = Options(chips=rng.choice([1, 3]), sparsity=rng.choice([0.0, 0.5]))
    sides = [[rng.randint(1, 40) for _ in range(3)] for _ in range(rng.randint(1, 4))]
    each = Counter((chip, Gemm(rng.randint(1, 3), *side)) for side in sides)
    found = Chips(each, options)

    def taken(chips: int) -> float:
        on = replace(options, chips=chips)
        return sum(
            count * gemm_cost(chip, g.m, g.k, g.n, batch=g.batch, options=on).seconds
            for (_, g), count in each.items()
        )

    trials = {chips: taken(chips) for chips in range(1, 500)}
    assert min(trials.values()) == pytest.approx(taken(found.most))
    for seconds in [*rng.sample(sorted(set(trials.values())), 3), min(trials.values()) / 2]:
        within = [chips for chips, each in trials.items() if each <= seconds * (1 + 1e-12)]
        assert found.fewest_within(seconds * (1 + 1e-12)) == min(within, default=None)


@pytest.mark.slow
def test_the_documents_verdicts(here):
    """One chip: edge-10m and DistilBERT usable, TinyLlama not; with all that speeds it up it is."""
    folders = [traced(here, model) for model in MODELS]
    for options, verdicts in (
        ((), [True, True, False]),
        (("--chips", "4"), [True, True, False]),
        (("--int8-speedup", "2"), [True, True, False]),
        (FASTER, [True, True, True]),
    ):
        done = invoke(
            "cutedge", "compare", *folders, *HOST_CHIP, *options, "--within", "10", "--json"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["partitions"]
        assert [one["model"] for one in found] == list(MODELS)
        assert [one["usable"] for one in found] == verdicts
        for one in found:
            ratio = one["run_seconds"] / 10
            assert one["times_too_slow"] == (pytest.approx(ratio) if ratio > 1 else None)
        if not options:
            assert found[2]["times_too_slow"] == pytest.approx(8.61, abs=5e-3)


PLAIN = """
description = "8 bits a weight, of every tensor"

[element_bits]
value = 8
source = "what a chip that computes in int8 takes in"
"""


def in_a_byte(folder) -> tuple[str, ...]:
    """Four chips in int8, and weights in one byte each."""
    (folder / "plain.toml").write_text(PLAIN)
    return (*FASTER, "--weights", str(folder / "plain.toml"))


def test_a_chip_that_is_sent_its_weights(here, tmp_path):
    """Every linear's weight once, a byte each; axi-lite carries 200e6 bytes a second.

    Of a layer 2 x 2048 x 2048 (q, o), 2 x 512 x 2048 (k, v) and 3 x 2048 x 8192, and a head of
    128256 x 2048.
    """
    options = in_a_byte(tmp_path)
    weights = LAYERS * (2 * 2048**2 + 2 * 512 * 2048 + 3 * 2048 * 8192) + 128256 * 2048
    there, sent = (
        partitioned(here, SHALLOW, *options, "--weights-at", at) for at in ("device", "home")
    )
    assert sent["sent_weight_bytes"] == weights
    assert sent["seconds"] - there["seconds"] == pytest.approx(weights / 200e6)
    assert sent["seconds"] == pytest.approx((weights + there["total_wire_bytes"]) / 200e6)
    assert sent["run_seconds"] == pytest.approx(there["run_seconds"] + weights / 200e6)
    assert sent["resident_bytes"]["chip-8x8"] == 0
    # The head's weights are the embedding's, which is at home all the same.
    held = sum(there["resident_bytes"].values())
    assert sum(sent["resident_bytes"].values()) == held - 128256 * 2048
    laid = partitioned(here, SHALLOW, *options, "--weights-at", "home", "--schedule", "overlap")
    # While the chips compute the next weights come: not under what the link takes, nor the sum.
    assert sent["seconds"] < laid["makespan_seconds"] < sent["run_seconds"]


@pytest.mark.slow
def test_the_documents_chips_that_are_sent_their_weights(here, tmp_path):
    """TinyLlama on four chips in int8 is usable in 2.156 s with its weights there; they take longer.

    22 layers of 2 x 2048 x 2048 (q, o), 2 x 256 x 2048 (k, v) and 3 x 2048 x 5632, and a head of
    32000 x 2048.
    """
    options = in_a_byte(tmp_path)
    weights = 22 * (2 * 2048**2 + 2 * 256 * 2048 + 3 * 2048 * 5632) + 32000 * 2048
    assert weights == sum(n * k for _, _, k, n in products(here, MODELS[2]) if n * k > 64 * 64)
    there, sent = (
        partitioned(here, MODELS[2], *options, "--weights-at", at) for at in ("device", "home")
    )
    assert there["run_seconds"] == pytest.approx(2.1556, abs=1e-4)
    assert sent["sent_weight_bytes"] == weights
    assert sent["seconds"] - there["seconds"] == pytest.approx(weights / 200e6) == 5.17210112
    # What flows in the run beside it: 868,992 bytes.
    assert sent["seconds"] == pytest.approx((weights + 868_992) / 200e6)
    assert round(sent["seconds"], 2) == 5.18
    assert sum(sent["resident_bytes"].values()) == sum(there["resident_bytes"].values())
    # Each product by itself, what several read sent for each of them: the documents' figure.
    alone = invoke("cutedge", "cost", here / MODELS[2], "--device", "chip-8x8", *FASTER)
    assert "axi-lite takes 5.177 s for their operands" in alone.stdout
    laid = partitioned(here, MODELS[2], *options, "--weights-at", "home", "--schedule", "overlap")
    assert sent["seconds"] < laid["makespan_seconds"] < sent["run_seconds"] - 1.9

    def verdict(*more: str) -> str:
        folder = here / MODELS[2]
        done = invoke("cutedge", "compare", folder, *HOST_CHIP, *options, *more, "--within", "5")
        assert done.returncode == 0, done.stderr
        return next(line for line in done.stdout.splitlines() if line.startswith("host-chip"))

    assert verdict().endswith("usable")
    assert verdict("--weights-at", "home").endswith("1.47 x too slow")


def test_a_chip_in_int8_is_sent_what_weights_are_stored_in(here):
    """Not in int8 because it computes so: four bytes each, and a word of warning."""
    done = invoke("partition", here / "edge-10m", *HOST_CHIP, *FASTER, "--weights-at", "home")
    assert "arrays that compute in int8 are sent weights in float32" in done.stderr
    assert "--weights" in done.stderr
    quiet = invoke("partition", here / "edge-10m", *HOST_CHIP, *FASTER)
    assert "int8 are sent" not in quiet.stderr


def test_models_side_by_side(here):
    """A row a model and policy, and what is left out of each."""
    folders = [here / model for model in QUICK]
    options = (*CHIP, "--policy", "host-chip", "--policy", "all-home", "--within", "10")
    shown = invoke("cutedge", "compare", *folders, *options)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "ryzen-7950x as home, chip-8x8 called over axi-lite, residency run"
    assert lines[2].split()[:4] == ["model", "phase", "batch", "seq"]
    rows = [line.split() for line in lines[3:7]]
    assert [(row[0], row[5]) for row in rows] == [
        (model, name) for model in QUICK for name in ("host-chip", "all-home")
    ]
    done = invoke("cutedge", "compare", *folders, *options, "--json")
    found = json.loads(done.stdout)["partitions"]
    ratio = found[2]["run_seconds"] / 10
    verdicts = [line.split("  ")[-1].strip() for line in lines[3:7]]
    assert verdicts == ["at best usable"] * 2 + [f">= {ratio:.3g} x too slow", "at best usable"]
    for row, one in zip(rows, found, strict=True):
        assert row[6] == str(one["calls"])
        assert f"{sum(one['cycles'].values()):,}" in row
        for share in ("home_share", "accelerator_share", "link_share"):
            assert f"{one[share]:.2%}" in row
        assert f"{1 / one['seconds_per_token']:,.4g}" in row


def test_one_directory_has_a_verdict_too(here):
    shown = invoke("cutedge", "compare", here / "edge-10m", *HOST_CHIP, "--within", "0.1").stdout
    assert "within 100 ms a token" in shown
    assert shown.splitlines()[4].endswith(">= 8.17 x too slow")
    undescribed = (here / "edge-10m", "--policy", "all-home", "--within", "1")
    unknown = invoke("cutedge", "compare", *undescribed)
    assert unknown.stdout.splitlines()[4].endswith("not known")
    found = invoke("cutedge", "compare", *undescribed, "--json")
    (one,) = json.loads(found.stdout)["partitions"]
    assert (one["run_seconds"], one["usable"], one["times_too_slow"]) == (None, None, None)


# --- errors ---------------------------------------------------------------------------------------

MIXED = ("--accel", "rtx-4090", "--accel", "chip-8x8")


@pytest.mark.parametrize(
    ("command", "asked", "says"),
    [
        ("partition", ("--chips", "2"), "are of arrays like chip-8x8, and no --accel is one"),
        ("partition", ("--home", "chip-8x8", "--sparsity", "0.5"), "and no --accel is one"),
        ("partition", (*MIXED, "--int8-speedup", "2"), "say with --wire-dtype what floats cross"),
        (
            "partition",
            ("--accel", "systolic-8x8", "--pipeline-depth", "2"),
            "a pipeline depth is of fixed tiles",
        ),
        ("partition", (*CHIP, "--sparsity", "1"), "sparsity must be from 0 to less than 1"),
        ("compare", ("--chips", "2"), "and no --accel is one"),
        ("compare", ("--within", "0"), "--within 0: give the seconds a token"),
        ("compare", ("--within", "nan"), "--within nan: give the seconds a token"),
        ("compare", ("--within", "inf"), "--within inf: give the seconds a token"),
        ("compare", ("--within", "1", "--over", "seq", "2..4"), "goes without --within"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, here, command, asked, says):
    done = invoke("cutedge", command, here / "edge-10m", *asked)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_is_written_where_one_of_the_traces_cannot_be(here, tmp_path):
    before = sorted(here.rglob("*"))
    done = invoke("cutedge", "compare", here / "edge-10m", tmp_path / "gone", "--policy", "min-cut")
    assert done.returncode == 1
    assert f"no trace at {tmp_path / 'gone'}" in done.stderr
    assert sorted(here.rglob("*")) == before
    done = invoke("cutedge", "compare", here / "edge-10m", here / SHALLOW, "--over", "seq", "2..4")
    assert "--over is of one trace directory" in done.stderr
