"""The fewest entries by which modules are where they are to be: against all sets of entries."""

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from random import Random

import pytest

from cutedge.executors.modules import above, entry_of, fewest

DEVICES = ("tee", "gpu", "npu")


def random_paths(random: Random) -> list[str]:
    """Modules that do something themselves, of a tree of at most six."""
    tree = [random.choice(["", "a", "b"])]
    while len(tree) < 6 and random.random() < 0.9:
        inside = random.choice(tree)
        tree.append(f"{inside}.{random.randrange(2)}" if inside else random.choice("ab"))
    return sorted({path for path in tree if random.random() < 0.8} or {tree[0]})


@pytest.mark.parametrize("seed", range(60))
def test_no_fewer_entries_say_it(seed: int):
    random = Random(seed)
    where = {path: random.choice(DEVICES[: 2 + seed % 2]) for path in random_paths(random)}
    found = fewest(where, DEVICES)
    assert said(found, where) == where
    paths = sorted({one for path in where for one in above(path)})
    for count in range(len(found)):
        for some in combinations(paths, count):
            for devices in product(DEVICES, repeat=count):
                assert said(dict(zip(some, devices, strict=True)), where) != where


def said(entries: Mapping[str, str], paths: Iterable[str]) -> dict[str, str | None]:
    """Where entries have modules."""
    of = {path: entry_of(entries, path) for path in paths}
    return {path: None if one is None else entries[one] for path, one in of.items()}
