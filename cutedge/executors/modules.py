"""Placements by module: a device for what each module does itself, said by the fewest paths.

An entry is of a module and all in it; of two that a module is under, the longer path counts. The
entry of the empty path is of what the model does itself alone, between its modules.
"""

from collections.abc import Iterator, Mapping, Sequence

from cutedge.executors.places import majority
from partition.placement import Placement
from tracer.graph import OpGraph
from tracer.stacks import run_order

UNITS = "what each module does itself"


def above(path: str) -> Iterator[str]:
    """A path, and those that it is under, the longest first; of the empty path itself alone."""
    yield path
    while path := path.rpartition(".")[0]:
        yield path


def own_paths(graph: OpGraph) -> list[str]:
    """The modules that do something themselves, as they first run."""
    return list(dict.fromkeys(graph.ops[op].module_path for op in run_order(graph)))


def nearest_entries(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> dict[str, str]:
    """The entries that agree with most of a placement, as few as say it."""
    paths = {op: graph.ops[op].module_path for op in run_order(graph)}
    return fewest(majority(graph, placement.devices, paths, devices), devices)


def fewest(where: Mapping[str, str], devices: Sequence[str]) -> dict[str, str]:
    """The fewest entries by which each module is where it is to be.

    ``where`` is by the modules that do something themselves; ``devices`` are all that there are.

    >>> at = {"a.0": "gpu", "a.0.up": "gpu", "a.0.down": "tee", "a.1": "gpu", "head": "tee"}
    >>> fewest(at, ("tee", "gpu"))
    {'a': 'gpu', 'a.0.down': 'tee', 'head': 'tee'}
    """
    parts: dict[str, dict[str, None]] = {}  # path -> its parts, in order
    tops: dict[str, None] = {}
    for path in where:
        *inside, top = above(path)
        tops.setdefault(top)
        for part in reversed(inside):
            parts.setdefault(part.rpartition(".")[0], {}).setdefault(part)
    best: dict[str, dict[str, tuple[int, str]]] = {}
    # path -> the device of what it is in -> (entries from there on, its own device)

    def cost(path: str, around: str) -> int:
        return best[path][around][0]

    def settle(path: str) -> None:
        can = [where[path]] if path in where else list(devices)
        inside = {d: sum(cost(part, d) for part in parts.get(path, ())) for d in can}
        best[path] = {
            around: min((((d != around) + inside[d], d) for d in can), key=lambda way: way[0])
            for around in ("", *devices)
        }

    def write(path: str, around: str) -> Iterator[tuple[str, str]]:
        device = best[path][around][1]
        if device != around:
            yield path, device
        for part in parts.get(path, ()):
            yield from write(part, device)

    for path in sorted({*parts, *where}, key=lambda path: -path.count(".")):
        settle(path)
    return {path: device for top in tops for path, device in write(top, "")}


def entry_of(entries: Mapping[str, str], path: str) -> str | None:
    """The entry that counts for a module; None where it is under no entry."""
    return next((one for one in above(path) if one in entries), None)
