"""One placement for prefill and decode, against every assignment of a small model's blocks."""

import pytest

from partition.granularity import common_units
from partition.mix import place_mixed
from partition.policy import load_policy
from partition.problem import InfeasibleError
from partition.stored import moved_state
from tests.support.mixes import FASTEST, assignments, graphs, phases
from tracer.errors import InputError


@pytest.mark.parametrize("weights", [(1, 256), (1, 1), (40, 1), (0.5, 3)])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.45, 0.2, 0.0])
@pytest.mark.few(5)
def test_the_best_of_all_assignments(weights, share):
    size = int(max(max(one.gpu) for one in assignments()) * share)
    best = min(
        weights[0] * one.costs[0] + weights[1] * one.costs[1]
        for one in assignments()
        if max(one.gpu) <= size
    )
    mixed = place_mixed(phases(weights, memory=[f"gpu={size}"]), FASTEST)
    assert mixed.proof.proven
    assert mixed.proof.objective == pytest.approx(best, rel=1e-6, abs=1)
    ours = sum(w * cost for w, cost in zip(weights, mixed.costs, strict=True))
    assert ours == pytest.approx(best, rel=1e-6)
    alone = sum(w * cost for w, cost in zip(weights, mixed.alone_costs, strict=True))
    assert alone <= ours * (1 + 1e-9)
    first, second = graphs()
    assert not moved_state(first, mixed.placements[0], second, mixed.placements[1])


@pytest.mark.parametrize("at", [0.25, 0.5, 0.75])
def test_both_memories_are_kept_to(at):
    def size(sizes: list[int]) -> int:
        return sorted(sizes)[int(at * len(sizes))]

    away = size([max(one.gpu) for one in assignments()])
    home = size([one.home for one in assignments()])
    allowed = [
        one.costs[0] + 8 * one.costs[1]
        for one in assignments()
        if max(one.gpu) <= away and one.home <= home
    ]
    asked = phases((1, 8), memory=[f"gpu={away},host={home}"])
    if not allowed:
        with pytest.raises(InfeasibleError):
            place_mixed(asked, FASTEST)
    else:
        assert place_mixed(asked, FASTEST).proof.objective == pytest.approx(min(allowed), rel=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "module"])
def test_finer_units_cost_no_more(granularity):
    size = ["gpu=8MiB"]
    coarse = place_mixed(phases((1, 64), memory=size), FASTEST)
    fine = place_mixed(phases((1, 64), granularity, size), FASTEST)
    assert fine.proof.objective <= coarse.proof.objective + 1
    first, second = graphs()
    assert not moved_state(first, fine.placements[0], second, fine.placements[1])
    tied, _ = common_units(first, second, granularity)
    for op, one in tied.items():
        assert fine.placements[1].devices[op] == fine.placements[0].devices[one]


def test_what_no_mix_can_be():
    with pytest.raises(InputError, match="say --granularity layer"):
        place_mixed(phases((1, 1), "op"), FASTEST)
    with pytest.raises(InputError, match="leaves nothing free"):
        place_mixed(phases((1, 1)), load_policy("all-home"))
    with pytest.raises(InfeasibleError, match="is 1000 bytes in all"):
        place_mixed(phases((1, 1), memory=["host=1000", "gpu=0"]), FASTEST)
