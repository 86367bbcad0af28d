"""Engines against published measurements: fitted on some, tested on others."""

from statistics import median

import pytest

from costmodels.devices import load_device
from costmodels.engines import load_engine
from costmodels.links import load_link
from costmodels.roofline import time_ops
from tools.fit_engines import ENGINES, FOLDER, OPS, all_fitted, of_ops, toml
from tools.measured import CROSSINGS, TOLLS, predicted, residuals, rows, step


@pytest.fixture(scope="module")
def ops():
    return of_ops()


@pytest.mark.slow
def test_what_kernels_reach_is_what_the_tool_fits(ops):
    for name in ("hf-eager", "vllm"):
        engine = load_engine(name)
        for key, value in ops.items():
            figure, _, device = key.partition(".")
            there = getattr(engine, figure)
            assert (there[device] if device else there) == pytest.approx(value, rel=1e-3)


def test_single_products_and_attentions():
    """Fourteen ops on four cards, by ten figures: half of the products within 15 % and more."""
    off = residuals(OPS, load_engine("vllm"))
    products = [abs(error) for row, error in off.items() if "GEMM" in rows()[row]["model"]]
    assert median(products) < 0.02
    assert max(map(abs, off.values())) < 0.18


def test_what_is_fitted_on_small_products_tells_the_large_one():
    """The largest product of a card, by its bandwidth and the others' share of the peak."""
    engine = load_engine("vllm")
    for row in ("P04", "P08"):
        assert residuals([row], engine)[row] == pytest.approx(0, abs=0.02)


@pytest.mark.slow
def test_files_are_what_the_tool_writes():
    found = all_fitted()
    for steps in ENGINES:
        path = FOLDER / f"{steps.name}.toml"
        assert path.read_text(encoding="utf-8") == toml(steps, found[steps.name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "most"),
    [
        ("hf-eager", 0.04),
        ("vllm", 0.11),
        ("llama.cpp-2024", 0.01),
        ("llama.cpp-2024-graphs", 0.01),
        ("llama.cpp-2025", 0.04),
    ],
)
def test_steps_of_decode(engine, most):
    (steps,) = [one for one in ENGINES if one.name == engine]
    off = residuals(steps.rows, load_engine(engine))
    assert max(map(abs, off.values())) < most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "tests", "most"),
    [
        # Weights of 4 bits on cards whose share was fitted on 16 bits, on another card of the chip.
        ("llama.cpp-2024", ["A08", "A09", "A17", "A19", "A23"], 0.05),
        # Launches from BF16 in small batches, the share of the bandwidth from the older engine.
        ("llama.cpp-2025", ["A34", "B10", "B11"], 0.05),
        ("llama.cpp-2024-graphs", ["D31", "D32"], 0.07),
        # Another model and card.
        ("hf-eager", ["C34"], 0.1),
        # Cards, models and batches on which nothing of a step was fitted.
        ("vllm", ["D01", "D03", "D05", "D07", "D09"], 0.15),
    ],
)
def test_rows_that_nothing_was_fitted_on(engine, tests, most):
    fitted = {*OPS, *(row for steps in ENGINES for row in steps.rows)}
    assert not fitted & {*tests}
    off = residuals(tests, load_engine(engine))
    assert max(map(abs, off.values())) < most, off


def test_the_toll_of_a_step():
    """One figure a card, for five models and batches: within 20 %."""
    for one in TOLLS:
        if one.given:
            assert one.predicted == pytest.approx(one.measured, rel=0.2)


def test_a_cache_at_home_is_crossings():
    """0.276 ms a layer: two messages that are waited for, in each of 32 layers."""
    (split,) = [one for one in CROSSINGS if one.row == "B02"]
    assert split.measured / 32 == pytest.approx(0.276e-3, rel=0.005)
    assert split.predicted == pytest.approx(split.measured, rel=0.001)
    bytes_ = 4 * 4096 * 2  # query, key and value one way, what attention makes of them the other
    assert bytes_ / load_link(split.link).sent_bandwidth_bytes_per_second < 0.01 * 0.276e-3


@pytest.mark.slow
def test_copies_of_a_long_cache():
    """Qwen2.5-7B over 31,744 tokens less over 1,025: published are 28 ms of Hugging Face and 2 of
    vLLM. No row of it is in the file, and the rate of copies is of another card and source."""
    device = load_device("a100-80g")
    longer = {
        name: time_ops(step("qwen2.5-7b", "bf16", 1, past=31744), device, engine=engine).seconds
        - time_ops(step("qwen2.5-7b", "bf16", 1, past=1025), device, engine=engine).seconds
        for name, engine in (("hf-eager", load_engine("hf-eager")), ("vllm", load_engine("vllm")))
    }
    assert longer["hf-eager"] == pytest.approx(28e-3, rel=0.05)
    assert longer["vllm"] == pytest.approx(2e-3, abs=1e-3)


@pytest.mark.slow
def test_two_weight_formats_tell_a_third():
    """F16 and Q8_0 of one model on one card are a line; Q4_0, of another source, is on it."""
    fields = {**rows()["A01"].fields, "weight_format": "q4_0"}
    taken = predicted(type(rows()["A01"])(fields), load_engine("llama.cpp-2024"))
    assert 1 / taken == pytest.approx(138.31, rel=0.05)  # row D33, without graphs
