"""Masked partitions run for real, and what each scheme does to the numbers."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cutedge.runtime.home import workers
from partition.schemes import Protection
from tests.support.masking import hidden, protecting
from tests.support.running import TOKEN, listening


@pytest.fixture(scope="module")
def there() -> Iterator[dict[str, tuple[str, int]]]:
    """A worker that serves one run after another."""
    with ExitStack() as stack:
        yield {"gpu": stack.enter_context(listening()).address}


WAYS = {
    "pad": {"weights": Protection("one-time-pad")},
    "online": {"weights": Protection("one-time-pad", pads="online")},
    "pad and check": {"weights": Protection("one-time-pad", check="freivalds", trials=2)},
    "mod 2^32": {"weights": Protection("one-time-pad-mod")},
    "mod 2^64 online": {"weights": Protection("one-time-pad-mod", bits=64, pads="online")},
    "blocks": {"activations": Protection("embedded-additive")},
    "blocks and check": {"activations": Protection("embedded-additive", check="freivalds")},
    "rank one": {each: Protection("rank-one") for each in ("weights", "activations")},
    "orthogonal": {"weights": Protection("orthogonal", check="freivalds")},
    "tokens": {each: Protection("permutation") for each in ("weights", "activations")},
    "channels": {
        each: Protection("permutation", axis="channels", check="freivalds")
        for each in ("weights", "activations")
    },
    "check": {each: Protection("freivalds") for each in ("weights", "activations")},
}


@pytest.mark.parametrize("wire_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("protections", WAYS.values(), ids=WAYS)
def test_a_masked_run_moves_what_is_predicted_and_answers_as_the_model(
    there, protections, wire_dtype
):
    made = hidden(protecting(protections), wire_dtype=wire_dtype)
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        _, verdict = made.run(found)
    assert verdict.unequal == ()
    assert verdict.answer_equal
    assert verdict.max_abs_difference <= 2 * made.masking.epsilon * verdict.max_abs_result
