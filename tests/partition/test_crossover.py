"""Which policy is best over a size: against evaluating every size."""

import json
from itertools import pairwise

import pytest

from partition.crossover import best_over
from tests.support.inprocess import invoke
from tests.support.presets import WINDOWED
from tracer.errors import InputError
from tracer.formula import parse


def quadratic(size: int) -> dict[str, float]:
    return {"small": size**2, "steady": 900 + size, "large": 5000 + size / 4}


def best(values: dict[str, float]) -> str:
    return min(values, key=lambda name: values[name])


@pytest.mark.parametrize(("first", "last"), [(1, 10_000), (30, 31), (7, 7), (31, 5467), (1, 31)])
def test_every_change_is_where_trying_all_sizes_has_it(first, last):
    points, changes = best_over(quadratic, first, last)
    expected = [
        (there, best(quadratic(here)), best(quadratic(there)))
        for here, there in pairwise(range(first, last + 1))
        if best(quadratic(here)) != best(quadratic(there))
    ]
    assert [(c.size, c.before, c.after) for c in changes] == expected
    assert points[0].size == first
    assert points[-1].size == last
    assert all(p.best == best(quadratic(p.size)) for p in points)


def test_few_sizes_are_evaluated():
    asked = []

    def counting(size: int) -> dict[str, float]:
        asked.append(size)
        return quadratic(size)

    best_over(counting, 1, 2**20)
    assert len(asked) == len(set(asked)) < 21 + 2 * 20


def test_the_first_of_equals_is_best():
    points, changes = best_over(lambda size: {"a": 1.0, "b": 1.0}, 1, 100)
    assert {p.best for p in points} == {"a"}
    assert changes == []


def test_sizes_that_go_down():
    with pytest.raises(InputError, match=r"9\.\.3 must go up"):
        best_over(quadratic, 9, 3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("trace", "edge-10m", "--seq", "16").returncode == 0
    return tmp_path


def test_the_totals_at_other_sizes_are_those_of_the_formulas(here):
    names = ("offload-linear", "fuse-attention", "host-chip")
    asked = [word for name in names for word in ("--policy", name)]
    formulas = {
        one["policy"]: parse(one["total_bytes_expr"])
        for one in json.loads(invoke("cutedge", "compare", *asked, "--json").stdout)["partitions"]
    }
    done = invoke("cutedge", "compare", *asked, "--over", "seq", "8..2048", "--json")
    found = json.loads(done.stdout)
    assert found["unit"] == "bytes"
    assert [p["seq"] for p in found["points"]] == [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    for point in found["points"]:
        at = {"batch": 1, "seq": point["seq"], "past": 0, "source": 0}
        assert point["values"] == {name: formulas[name].evaluate(at) for name in names}
    for change in found["crossovers"]:
        before, after = (
            {n: formulas[n].evaluate({**at, "seq": change["seq"] + d}) for n in names}
            for d in (-1, 0)
        )
        assert best(before) == change["before"]
        assert best(after) == change["after"]


def test_seconds_count_where_they_are_known(here):
    devices = ("--home", "ryzen-7950x", "--accel", "rtx-4090", "--link", "pcie4-x16")
    asked = ("--policy", "all-home", "--policy", "min-cut", "--over", "seq", "2..1024")
    done = invoke("cutedge", "compare", *asked, *devices, "--json")
    found = json.loads(done.stdout)
    assert found["unit"] == "seconds"
    assert "all-home" in found["points"][0]["values"]
    shown = invoke("cutedge", "compare", *asked, *devices).stdout
    sizes = [change["seq"] for change in found["crossovers"]]
    lines = [line for line in shown.splitlines() if line.startswith("from seq ")]
    assert [line.split(":")[0] for line in lines] == [
        f"from seq {first:,} to {last:,}"
        for first, last in zip([2, *sizes], [*(n - 1 for n in sizes), 1024], strict=True)
    ]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (("past", "1..9"), "write one of batch, seq"),
        (("seq", "1-9"), "a range like 64..131072"),
        (("seq", "9..3"), "must go up"),
    ],
)
def test_what_is_no_range(here, over, says):
    done = invoke("cutedge", "compare", "--over", *over)
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.slow
def test_a_range_beyond_what_the_trace_holds_for_is_refused(tmp_path, monkeypatch):
    """sdpa with a window is another program beyond it."""
    monkeypatch.chdir(tmp_path)
    config = {**WINDOWED, "sliding_window": 24}
    (tmp_path / "window.json").write_text(json.dumps(config))
    assert invoke("trace", "window.json", "--seq", "16", "--attn", "sdpa").returncode == 0
    assert invoke("cutedge", "compare", "--over", "seq", "8..23").returncode == 0
    done = invoke("cutedge", "compare", "--over", "seq", "8..100")
    assert done.returncode == 2
    assert "this trace is another program" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trace_without_its_reach(here):
    (reach,) = here.rglob("reach.json")
    for text in (None, "{}", '{"trace_id": "other", "reach": {}}'):
        reach.unlink(missing_ok=True)
        if text is not None:
            reach.write_text(text)
        done = invoke("cutedge", "compare", "--over", "seq", "8..64")
        assert done.returncode == 1
        assert "reach.json" in done.stderr
        assert "Trace the model again" in done.stderr
    assert invoke("cutedge", "compare").returncode == 0
