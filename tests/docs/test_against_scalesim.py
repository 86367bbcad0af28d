"""200 products in SCALE-Sim 3.0.0: counts that must be the same are, and the page says the rest."""

from dataclasses import replace
from functools import cache

import pytest

from tests.support.calls import Calls
from tools.scalesim import (
    PAGE,
    TIMES,
    Beside,
    Run,
    beside,
    drawn,
    is_between,
    is_sound,
    kept,
    moving,
    page,
)


@cache
def runs() -> list[Beside]:
    return [beside(run) for run in kept()]


def test_what_was_run_is_what_is_drawn():
    assert [replace(one.run, figures={}) for one in runs()] == list(drawn())


def test_cycles_and_sram_are_the_same_to_the_word():
    for one in runs():
        for figure, (theirs, ours) in one.exact.items():
            assert theirs == ours, (one.run, figure)


def test_nothing_comes_fewer_times_than_it_must():
    for one in runs():
        run, memory = one.run, one.memory
        for operand, words in (("ifmap", run.m * run.k), ("filter", run.k * run.n)):
            assert words <= run.figures[f"dram_{operand}_reads"], run
            assert words <= memory.dram_reads[operand], run
        assert run.m * run.n <= memory.dram_writes["ofmap"]


def test_where_it_is_sound_ours_lie_between_its_computing_and_its_whole():
    sound = [one for one in runs() if is_sound(one)]
    assert len(sound) > 100
    assert all(is_between(one) for one in sound)
    short = [one for one in sound if moving(one) <= 0.1 * one.run.figures["cycles_with_prefetch"]]
    assert len(short) > 20
    assert all(abs(one.off) <= 0.1 for one in short)


def test_its_results_are_its_partial_sums():
    """M x N for each fold along K; the rest are places of lines that are sent half empty."""
    for one in runs():
        run = one.run
        folds = 1 if run.dataflow == "os" else -(-run.k // run.rows)
        lines = 2 + 2 * folds * run.m * run.n // (512 * run.ofmap_kib)
        more = run.figures["dram_ofmap_writes"] - folds * run.m * run.n
        assert 0 <= more < run.words_per_cycle * lines, run


def convolutions() -> list[Run]:
    return [run for run in kept() if run.image]


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_a_convolution_is_the_product_that_a_trace_has(kind):
    seen = 0
    for run in convolutions():
        height, width, kernel, _, channels, filters, stride = map(int, run.image.split())
        if run.kind != kind or (height - kernel) % stride or (width - kernel) % stride:
            continue
        groups = channels if kind == "depthwise" else 1
        out = [(size - kernel) // stride + 1 for size in (height, width)]
        calls = Calls(symbolic=False)
        image = calls.input(1, channels, height, width)
        weight = calls.state(filters * groups, channels // groups, kernel, kernel)
        calls.call("aten.conv2d.default", image, weight, out=(1, filters * groups, *out))
        (op,) = calls.ops()
        gemm = op.cost.gemm
        assert (gemm.batch, gemm.m, gemm.k, gemm.n) == (groups, run.m, run.k, run.n), run
        seen += 1
    assert seen > 10


def test_the_page_says_so():
    assert PAGE.read_text(encoding="utf-8") == page()
    assert {one.time for one in runs()} == set(TIMES)
