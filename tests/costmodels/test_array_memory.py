"""Buffers and DRAM of systolic arrays: against a run word by word, SCALE-Sim's own runs and physics."""

import csv
import json
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.array_memory import OPERANDS, Buffers, memory_cost
from costmodels.arrays import gemm_cost
from costmodels.devices import Array
from tests.support import REFERENCE
from tests.support.array_memory import TILED, walked
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer.errors import InputError


def array(dataflow: str, rows: int, columns: int) -> Array:
    return Array(dataflow, rows, columns, depth=None, tile_cycles=None, clock_hertz=1e8)


SIZES = st.integers(1, 13)
WORDS = st.sampled_from([2, 4, 7, 12, 20, 33, 60, 150, 400])
BANDWIDTHS = st.sampled_from(
    [Fraction(1, 3), Fraction(1), Fraction(5, 2), Fraction(7), Fraction(40)]
)


@examples(60)
@given(
    st.sampled_from(["os", "ws", "is"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.tuples(WORDS, WORDS, WORDS),
    BANDWIDTHS,
    st.tuples(SIZES, SIZES, SIZES),
)
def test_it_is_a_run_word_by_word(dataflow, rows, columns, words, bandwidth, sizes):
    """The run of the order in which fewer words move; the first axis outside where they are alike."""
    held = dict(zip(OPERANDS, words, strict=True))
    named = dict(zip("mkn", sizes, strict=True))
    runs = [
        walked(dataflow, rows, columns, held, bandwidth, named, outer) for outer in TILED[dataflow]
    ]
    run = min(runs, key=lambda one: one.words)
    made = memory_cost(
        array(dataflow, rows, columns), Buffers(*words, bandwidth), *sizes, count="true"
    )
    computing = gemm_cost(array(dataflow, rows, columns), *sizes, count="true").cycles
    assert made.dram_reads == run.reads
    assert made.dram_writes == run.writes
    assert made.sram_writes == run.array_writes
    stays = {"os": None, "ws": "filter", "is": "ifmap"}[dataflow]
    for operand in OPERANDS:
        wanted = run.array_reads[operand]
        if operand == stays:  # each of its tiles is put into the cells once
            wanted = named["k"] * named["n" if stays == "filter" else "m"]
        assert made.sram_reads[operand] == wanted
    assert computing + made.stall_cycles == run.cycles


@examples(60)
@given(
    st.sampled_from(["os", "ws", "is"]),
    st.sampled_from(["none", "double-buffered"]),
    st.tuples(WORDS, WORDS, WORDS),
    BANDWIDTHS,
    st.lists(st.tuples(*[st.integers(1, 300)] * 4), min_size=1, max_size=5),
)
def test_physics(dataflow, overlap, words, bandwidth, products):
    """Each operand comes at least once, each result goes, and no DRAM is faster than it is."""
    m, k, n, batch = (np.array(axis) for axis in zip(*products, strict=True))
    options = {"count": "true", "overlap": overlap, "batch": batch}
    there = array(dataflow, 8, 4)
    made = memory_cost(there, Buffers(*words, bandwidth), m, k, n, **options)
    cycles = gemm_cost(there, m, k, n, **options).cycles
    assert (made.dram_reads["ifmap"] >= batch * m * k).all()
    assert (made.dram_reads["filter"] >= batch * k * n).all()
    assert (made.dram_writes["ofmap"] >= batch * m * n).all()
    assert (made.dram_writes["ofmap"] - made.dram_reads["ofmap"] == batch * m * n).all()
    moved = sum(made.dram_reads.values()) + sum(made.dram_writes.values())
    assert ((cycles + made.stall_cycles) * float(bandwidth) * (1 + 1e-12) >= moved).all()
    assert (made.stall_cycles >= 0).all()
    for at, (one, inner, other, many) in enumerate(products):
        alone = memory_cost(
            there, Buffers(*words, bandwidth), one, inner, other, **{**options, "batch": many}
        )
        assert alone.stall_cycles == made.stall_cycles[at]
        assert alone.dram_reads["filter"] == made.dram_reads["filter"][at]


def test_with_room_for_all_each_word_moves_once():
    """64 x 96 and 96 x 32 and 64 x 32 words in 1 cycle; the array waits for the first strips only
    as long as these take: all others come beside."""
    made = memory_cost(array("os", 8, 8), Buffers(10**5, 10**5, 10**5, Fraction(10**4)), 64, 96, 32)
    assert made.dram_reads == {"ifmap": 64 * 96, "filter": 96 * 32, "ofmap": 0}
    assert made.dram_writes == {"ifmap": 0, "filter": 0, "ofmap": 64 * 32}
    assert made.stall_cycles == 1 + 1


def rows() -> list[dict[str, int | str]]:
    with (REFERENCE / "scalesim_memory.csv").open(encoding="utf-8") as file:
        return [
            {k: int(v) if v.isdigit() else v for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("row", rows(), ids=lambda r: f"{r['dataflow']} {r['M']}x{r['K']}x{r['N']}")
def test_counts_are_those_of_scalesim(row):
    """Cycles of computing, and what the array reads and writes of its buffers: to the word."""
    there = array(row["dataflow"], row["rows"], row["columns"])
    words = [row[f"{operand}_kib"] * 1024 for operand in OPERANDS]
    buffers = Buffers(*words, Fraction(row["dram_words_per_cycle"]))
    sizes = row["M"], row["K"], row["N"]
    made = memory_cost(there, buffers, *sizes)
    assert gemm_cost(there, *sizes).cycles == row["cycles"] - row["stall_cycles"]
    assert made.sram_reads["ifmap"] == row["sram_ifmap_reads"]
    assert made.sram_reads["filter"] == row["sram_filter_reads"]
    assert made.sram_writes["ofmap"] == row["sram_ofmap_writes"]


@pytest.mark.parametrize(
    ("words", "bandwidth", "message"),
    [((1, 9, 9), 1, "two halves"), ((9, 9, 9), 0, "from 1/1,000,000 to 1,000,000 words a cycle")],
)
def test_what_is_no_memory(words, bandwidth, message):
    with pytest.raises(InputError, match=message):
        Buffers(*words, Fraction(bandwidth))


def asked(*words: str) -> dict:
    done = invoke("cutedge", "gemm", *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


SMALL = ("64", "96", "32", "--mode", "ws", "--rows", "8", "--cols", "8")
MEMORY = ("--sram-kib", "2,2,2", "--dram-words-per-cycle", "2.5")


def test_the_command_says_what_moves():
    """A word is an element of the dtype; SCALE-Sim's is a byte, and it reads no result back."""
    wide, narrow = asked(*SMALL, *MEMORY), asked(*SMALL, *MEMORY, "--dtype", "int8")
    theirs = asked(*SMALL, *MEMORY, "--count", "scalesim")
    there = array("ws", 8, 8)
    for found, words, count in (
        (wide, 512, "true"),
        (narrow, 2048, "true"),
        (theirs, 2048, "scalesim"),
    ):
        made = memory_cost(there, Buffers(*(words,) * 3, Fraction(5, 2)), 64, 96, 32, count=count)
        assert {name: found[name] for name in asdict(made)} == asdict(made)
        assert found["total_cycles"] == found["cycles"] + found["stall_cycles"]
        assert found["bound"] == "dram"
    assert wide["sram_reads"]["ofmap"] == 64 * 32 * (96 // 8 - 1)
    assert theirs["sram_reads"]["ofmap"] == 0
    assert wide["dram_reads"]["ofmap"] > narrow["dram_reads"]["ofmap"] == 0
    plain = asked(*SMALL)
    assert {plain[name] for name in ("total_cycles", "bound", "dram_reads")} == {None}
    seconds = wide["total_cycles"] / wide["clock_hertz"]
    assert wide["run_seconds"] == pytest.approx(seconds + wide["link_seconds"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sram-kib", "2,2,2"), "--sram-kib and --dram-words-per-cycle go together"),
        ((*MEMORY, "--chips", "2"), "one array without chips=2"),
        ((*MEMORY, "--sram-kib", "2,2"), "--sram-kib 2,2: three numbers"),
        ((*MEMORY, "--sram-kib", "2,x,2"), "--sram-kib 2,x,2: three numbers"),
        ((*MEMORY, "--dram-words-per-cycle", "nan"), "--dram-words-per-cycle nan is no number"),
        ((*MEMORY, "--dram-words-per-cycle", "0"), "a DRAM moves from"),
        ((*MEMORY, "--mode", "fixed"), "buffers are of systolic arrays"),
        ((*MEMORY, "--batch", "2147483647", "--sram-kib", "2,2,2"), ""),
    ],
)
def test_what_is_no_memory_of_an_array(words, says):
    done = invoke("cutedge", "gemm", *SMALL, *words)
    assert done.returncode == (2 if says else 0)
    assert says in done.stderr


def test_what_64_bits_do_not_count():
    with pytest.raises(InputError, match="2\\^60"):
        memory_cost(array("os", 8, 8), Buffers(9, 9, 9, Fraction(1)), 2**30, 2**30, 2**30)
