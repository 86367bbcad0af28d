"""Where the nodes of a graph are drawn: rows by dependency, lanes side by side, few crossings.

The layered drawing of Sugiyama, Tagawa and Toda (1981): a node is a row below all that it comes
from, a line over several rows has a point in each of them, rows are ordered by the mean place of
their neighbours, and then everything moves as near to its neighbours as its row lets it.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import networkx as nx

Key = TypeVar("Key", bound=Hashable)

ROW, GAP, MARGIN, POINT = 42.0, 12.0, 18.0, 8.0
"""Between rows; between nodes of a row; around what is in a lane; the width of a line's point."""

SWEEPS = 12
"""Rounds down and up; more change nothing that one would see."""


@dataclass(frozen=True, slots=True)
class Laid(Generic[Key]):
    """A drawing's places; x to the right, y down."""

    places: Mapping[Key, tuple[float, float]]
    """The centre of each node."""
    routes: Mapping[tuple[Key, Key], Sequence[tuple[float, float]]]
    """The points of each line, from centre to centre."""
    lanes: Sequence[tuple[float, float]]
    """Left and right of each lane."""
    rows: int


@dataclass(slots=True)
class _Item:
    """A node, or a point of a line."""

    row: int
    lane: int
    width: float
    above: list["_Item"] = field(default_factory=list)
    below: list["_Item"] = field(default_factory=list)
    line: list["_Item"] = field(default_factory=list)
    """Of a point: all points of its line."""
    place: float = 0.0
    """Its index in the row while rows are ordered, then its x."""


def lay_out(
    graph: "nx.DiGraph[Key]", lanes: Mapping[Key, int], widths: Mapping[Key, float]
) -> Laid[Key]:
    """Lay out an acyclic graph; each node is in a lane and so wide."""
    ranks = _ranks(graph)
    items = {key: _Item(rank, lanes[key], widths[key]) for key, rank in ranks.items()}
    rows: list[list[_Item]] = [[] for _ in range(max(ranks.values()) + 1)]
    for item in items.values():
        rows[item.row].append(item)
    routes: dict[tuple[Key, Key], list[_Item]] = {}
    for source, target in graph.edges:
        first, last = items[source], items[target]
        points = [_Item(row, first.lane, POINT) for row in range(first.row + 1, last.row)]
        for point in points:
            rows[point.row].append(point)
            point.line = points
        routes[source, target] = [first, *points, last]
        for upper, lower in pairwise(routes[source, target]):
            upper.below.append(lower)
            lower.above.append(upper)
    _order(rows)
    bounds = _bounds(rows, max(lanes.values()) + 1)
    _place(rows, bounds)

    def at(item: _Item) -> tuple[float, float]:
        return round(item.place, 1), (item.row + 0.5) * ROW

    return Laid(
        {key: at(item) for key, item in items.items()},
        {ends: [at(item) for item in route] for ends, route in routes.items()},
        bounds,
        len(rows),
    )


def _ranks(graph: "nx.DiGraph[Key]") -> dict[Key, int]:
    """The row of each node; what comes from nothing is just above what reads it."""
    ranks: dict[Key, int] = {}
    for key in nx.lexicographical_topological_sort(graph, key=str):
        ranks[key] = max((ranks[one] + 1 for one in graph.predecessors(key)), default=0)
    for key in ranks:
        if not graph.in_degree(key) and graph.out_degree(key):
            ranks[key] = min(ranks[one] for one in graph.successors(key)) - 1
    return ranks


def _order(rows: Sequence[list[_Item]]) -> None:
    """Order each row by lane, and in a lane by the mean place of the neighbours."""

    def settle(row: list[_Item], sort: bool, up: bool) -> None:
        if sort:
            row.sort(key=lambda item: (item.lane, _mean(item.above if up else item.below, item)))
        for index, item in enumerate(row):
            item.place = (index + 1) / (len(row) + 1)

    for row in rows:
        row.sort(key=lambda item: item.lane)
        settle(row, sort=False, up=True)
    for _ in range(SWEEPS):
        for row in rows[1:]:
            settle(row, sort=True, up=True)
        for row in reversed(rows[:-1]):
            settle(row, sort=True, up=False)
    for row in rows[1:]:
        settle(row, sort=True, up=True)


def _mean(neighbours: Sequence[_Item], item: _Item) -> float:
    """Where an item wants to be: amid its neighbours, or where it is."""
    return sum(one.place for one in neighbours) / len(neighbours) if neighbours else item.place


def _bounds(rows: Sequence[Sequence[_Item]], lanes: int) -> list[tuple[float, float]]:
    """Left and right of each lane: as wide as its fullest row."""
    widths = [
        max(
            (
                sum(item.width for item in inside) + GAP * (len(inside) - 1)
                for row in rows
                if (inside := [item for item in row if item.lane == lane])
            ),
            default=0.0,
        )
        + 2 * MARGIN
        for lane in range(lanes)
    ]
    return list(pairwise(accumulate(widths, initial=0.0)))


def _place(rows: Sequence[list[_Item]], bounds: Sequence[tuple[float, float]]) -> None:
    """Give each item its x, in its lane and apart from its neighbours in the row."""
    for row in rows:
        for item in row:
            item.place = sum(bounds[item.lane]) / 2
    for sweep in range(4 * SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            for lane, (left, right) in enumerate(bounds):
                inside = [item for item in row if item.lane == lane]
                if sweep % SWEEPS == SWEEPS - 1:  # what is near may stand in another order
                    inside.sort(key=lambda item: _mean(_near(item), item))
                    row[:] = [item for item in row if item.lane != lane] + inside
                if inside:
                    wanted = [_mean(_near(item), item) for item in inside]
                    _spread(inside, wanted, left + MARGIN, right - MARGIN)


def _near(item: _Item) -> Sequence[_Item]:
    """What an item is drawn to: its neighbours in its own lane, or else all of them.

    A point is drawn to the other points of its line, which makes lines straight.
    """
    if item.line:
        return item.line
    every = item.above + item.below
    return [one for one in every if one.lane == item.lane] or every


def _spread(items: Sequence[_Item], wanted: Sequence[float], left: float, right: float) -> None:
    """Items in their order as near as can be to where they want to be (least squares).

    Apart from each other and within bounds: pool adjacent violators, then clip.
    """
    steps = [(a.width + b.width) / 2 + GAP for a, b in pairwise(items)]
    offsets = list(accumulate(steps, initial=0.0))
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        pools.append((mean, count))
    least, most = left + items[0].width / 2, right - items[-1].width / 2 - offsets[-1]
    places = [min(max(mean, least), most) for mean, count in pools for _ in range(count)]
    for item, place, offset in zip(items, places, offsets, strict=True):
        item.place = place + offset
