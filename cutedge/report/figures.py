"""What the drawings of a report show, as plain data: no figure is computed anywhere after this.

Each function takes results of the library (partitions, the times of devices) and returns what one
drawing needs: numbers for its geometry, and texts that say them. A drawing that has nothing to show
is a ``Missing`` that says why.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from cutedge.report.axes import Ticks, byte_ticks, log_byte_ticks
from cutedge.report.scores import seen_of
from partition.accounting import Transfer, origins
from partition.crossover import best_over
from partition.explain import Savings
from partition.split import Split
from tracer.formula import parse
from tracer.reach import Reach, graph_at
from tracer.stacks import layer_names
from tracer.summary import tensor_names
from tracer.words import counted, duration, human, joules

MOST_NAMES = 14
"""The kinds of tensor that a flow shows by name; the others are drawn together."""

MOST_CALLS = 16
"""The sorts of call that have a bar of their own."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A drawing without data."""

    why: str
    """In one sentence, with what would help."""


@dataclass(frozen=True, slots=True)
class Table:
    """Policies side by side."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of each is the policy."""
    values: Sequence[Sequence[float | None]]
    """By row and column what is sorted by, None where a cell has no figure."""
    figures: Sequence[bool]
    """By column, whether it is sorted by figures."""
    baseline: str
    """The policy that savings are against."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What flows from a device into a kind of tensor, or from that to a device."""

    source: int
    """Index of a node."""
    target: int
    payload_bytes: int
    device: str
    """The device that it leaves."""
    text: str


@dataclass(frozen=True, slots=True)
class Flows:
    """Traffic from devices, by kind of tensor, to devices: every byte passes twice."""

    nodes: Sequence[str]
    """Names: devices that send, kinds of tensor (the heaviest first), devices that receive."""
    sizes: Sequence[str]
    """By node: the bytes that pass, as text."""
    columns: Sequence[int]
    """By node: 0, 1 or 2."""
    devices: Sequence[str | None]
    """By node: the device, None for tensors."""
    links: Sequence[Flow]


@dataclass(frozen=True, slots=True)
class Series:
    """The bars of one colour."""

    name: str
    device: str
    """Whose colour they have."""
    values: Sequence[float]
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bars:
    """Stacked bars."""

    categories: Sequence[str]
    series: Sequence[Series]
    ticks: Ticks
    axis: str
    """What the values are."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy over a size, or several that move the same bytes at each."""

    policies: Sequence[str]
    values: Sequence[int]
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class CurveCrossing:
    """Where one line begins to be below another."""

    size: int
    payload_bytes: int
    text: str


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes of the placements as they are, at other sizes."""

    variable: str
    sizes: Sequence[int]
    here: int
    """The size that was traced."""
    lines: Sequence[Curve]
    crossings: Sequence[CurveCrossing]
    x_ticks: Ticks
    y_ticks: Ticks
    note: str
    """What is not drawn, and why; may be empty."""


def policies_table(
    partitions: Sequence[Split], compared: Sequence[Savings], baseline: str
) -> Table:
    """Policies side by side: what they move, take and show, and whether that is proven best."""

    def text(value: float | None, write: Callable[[float], str]) -> str:
        return "–" if value is None else write(value)

    def least(at_least: object) -> Callable[[float], str]:
        return lambda seconds: f"{'≥ ' if at_least else ''}{duration(seconds)}"

    def column(write: Callable[[Split], str]) -> list[str]:
        return [write(one) for one in partitions]

    columns: dict[str, tuple[list[str], list[float | None] | None]] = {
        "policy": (column(lambda p: p.policy), None),
        "calls": (
            column(lambda p: f"{len(p.traffic.calls):,}"),
            [len(p.traffic.calls) for p in partitions],
        ),
    }

    def sizes(name: str, measure: Callable[[Split], int]) -> None:
        columns[name] = column(lambda p: human(measure(p))), [measure(p) for p in partitions]

    sizes("sent", lambda p: p.traffic.totals.sent_payload_bytes)
    sizes("received", lambda p: p.traffic.totals.received_payload_bytes)
    if any(p.traffic.totals.peer_payload_bytes for p in partitions):
        sizes("between", lambda p: p.traffic.totals.peer_payload_bytes)
    sizes("all bytes", lambda p: p.traffic.totals.payload_bytes)
    columns |= {
        "saved": (
            [text(c.saved_share, lambda s: f"{s:.1%}") for c in compared],
            [c.saved_share for c in compared],
        ),
        "transfer time": (
            column(lambda p: text(p.traffic.totals.seconds, least(p.traffic.totals.at_least))),
            [p.traffic.totals.seconds for p in partitions],
        ),
        "run": (
            column(lambda p: text(p.run_seconds, least(p.left_out))),
            [p.run_seconds for p in partitions],
        ),
        **_of_a_token(partitions, column),
        "seen": (column(_seen), [len(seen_of(p)) for p in partitions]),
        "optimal": (column(_optimal), None),
    }
    texts, values = zip(*columns.values(), strict=True)
    blank = [None] * len(partitions)
    return Table(
        list(columns),
        list(zip(*texts, strict=True)),
        list(zip(*(one or blank for one in values), strict=True)),
        [one is not None for one in values],
        baseline,
    )


def _of_a_token(
    partitions: Sequence[Split], column: Callable[[Callable[[Split], str]], list[str]]
) -> dict[str, tuple[list[str], list[float | None] | None]]:
    """What a token takes in time and in energy, where the energy of one policy is known."""
    if all(p.energy_figures["run_joules"] is None for p in partitions):
        return {}

    def energy(p: Split) -> str:
        found = p.energy_figures
        if found["joules_per_token"] is None:
            return "–"
        return f"{'≥ ' * found['energy_at_least']}{joules(found['joules_per_token'])}"

    def time(p: Split) -> str:
        run = p.run
        return "–" if run is None else f"{'≥ ' * bool(p.left_out)}{duration(run.seconds_per_token)}"

    runs = [p.run for p in partitions]
    return {
        "a token": (column(time), [None if run is None else run.seconds_per_token for run in runs]),
        "energy a token": (
            column(energy),
            [p.energy_figures["joules_per_token"] for p in partitions],
        ),
    }


def _seen(partition: Split) -> str:
    return ", ".join(what.words for what in seen_of(partition)) or "nothing"


def _optimal(partition: Split) -> str:
    solution = partition.solution
    if solution is None:
        return "fixed rules"
    if solution.proven:
        return f"yes, in {partition.objective}"
    return f"within {solution.gap or 0:.2%} in {partition.objective}"


# --- traffic --------------------------------------------------------------------------------------

_NOTHING = Missing("Nothing crosses between devices under this policy.")


def flows(partition: Split) -> Flows | Missing:
    """Traffic between devices by what the tensors are."""
    transfers = partition.traffic.transfers
    if not partition.traffic.totals.payload_bytes:
        return _NOTHING
    names = tensor_names(partition.graph)
    heavy = _heaviest(transfers, lambda t: names[t.tensor.id], MOST_NAMES)
    order = _devices(partition)
    sums: dict[tuple[str, str, str], list[Transfer]] = {}
    for t in transfers:
        name = names[t.tensor.id] if names[t.tensor.id] in heavy else "other tensors"
        sums.setdefault((t.src_device, name, t.dst_device), []).append(t)
    middle = [n for n in [*heavy, "other tensors"] if any(key[1] == n for key in sums)]
    sources = [d for d in order if any(key[0] == d for key in sums)]
    targets = [d for d in order if any(key[2] == d for key in sums)]
    place = {(0, d): n for n, d in enumerate(sources)}
    place |= {(1, name): len(place) + n for n, name in enumerate(middle)}
    place |= {(2, d): len(place) + n for n, d in enumerate(targets)}
    total = partition.traffic.totals.payload_bytes
    links = []
    for (source, name, target), moved in sums.items():
        size = sum(t.payload_bytes for t in moved)
        text = (
            f"{name}\n{source} → {target}\n{human(size)} in {counted(len(moved), 'transfer')}\n"
            f"{size / total:.1%} of the traffic"
        )
        links.append(Flow(place[0, source], place[1, name], size, source, text))
        links.append(Flow(place[1, name], place[2, target], size, source, text))
    links.sort(key=lambda one: (one.source, one.target))
    return Flows(
        nodes=[name for _, name in place],
        sizes=[human(_passing(column, links, n)) for (column, _), n in place.items()],
        columns=[column for column, _ in place],
        devices=[None if column == 1 else name for column, name in place],
        links=links,
    )


def _passing(column: int, links: Iterable[Flow], node: int) -> int:
    """The bytes that pass a node: those that come in, or of the first column those that go out."""
    return sum(one.payload_bytes for one in links if node == (one.target if column else one.source))


def by_layer(partition: Split) -> Bars | Missing:
    """Traffic by the layer that makes what moves, or that reads it if it is a parameter."""
    names = layer_names(partition.graph)
    made = origins(partition.graph, partition.placement, partition.traffic.transfers)
    layers = [names[op.id] or "outside" for op in made]
    if not partition.traffic.totals.payload_bytes:
        return _NOTHING
    there = ["outside", *dict.fromkeys(name for name in names if name)]  # as they run
    return _bars(
        partition,
        layers,
        [name for name in there if name in layers],
        lambda name: f"layer {name}" if name != "outside" else "outside of all layers",
    )


def by_call(partition: Split) -> Bars | Missing:
    """Traffic by the sort of call: calls with the same ops and device, taken together."""
    traffic = partition.traffic
    if not traffic.totals.payload_bytes:
        return _NOTHING
    several = len(partition.placement.accelerators) > 1

    def name(call: int) -> str:
        label = _clipped(traffic.calls[call].label or "only new state")
        return f"{label} on {traffic.calls[call].device}" if several else label

    counts: dict[str, int] = {}
    for call in traffic.calls:
        counts[name(call.id)] = counts.get(name(call.id), 0) + 1
    heavy = _heaviest(traffic.transfers, lambda t: name(t.call), MOST_CALLS)
    rest = sum(number for label, number in counts.items() if label not in heavy)
    titles = {label: f"{label}  × {counts[label]:,}" for label in heavy}
    other = f"others  × {rest:,}"
    return _bars(
        partition,
        [titles.get(name(t.call), other) for t in traffic.transfers],
        [*titles.values(), *([other] if rest else [])],
        lambda title: title,
    )


def _bars(
    partition: Split, keys: Sequence[str], categories: Sequence[str], say: Callable[[str], str]
) -> Bars:
    """Transfers by a key each, a series for each pair of devices."""
    order = _devices(partition)
    sums: dict[tuple[str, str], dict[str, int]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for t, key in zip(partition.traffic.transfers, keys, strict=True):
        pair = t.src_device, t.dst_device
        mine = sums.setdefault(pair, dict.fromkeys(categories, 0))
        mine[key] += t.payload_bytes
        counts[(*pair, key)] = counts.get((*pair, key), 0) + 1
    pairs = sorted(sums, key=lambda pair: tuple(map(order.index, pair)))
    series = [
        Series(
            f"{source} → {target}",
            source,
            [sums[source, target][c] for c in categories],
            [
                f"{say(c)}\n{source} → {target}: {human(sums[source, target][c])} in "
                f"{counted(counts.get((source, target, c), 0), 'transfer')}"
                for c in categories
            ],
        )
        for source, target in pairs
    ]
    most = max(sum(each) for each in zip(*(one.values for one in series), strict=True))
    return Bars(categories, series, byte_ticks(most), "payload")


def _heaviest(
    transfers: Iterable[Transfer], key: Callable[[Transfer], str], count: int
) -> dict[str, int]:
    """The keys with most payload, the heaviest first; one more than ``count`` is shown too."""
    sums: dict[str, int] = {}
    for t in transfers:
        sums[key(t)] = sums.get(key(t), 0) + t.payload_bytes
    order = sorted(sums.items(), key=lambda item: -item[1])
    return dict(order if len(order) <= count + 1 else order[:count])


def _devices(partition: Split) -> list[str]:
    return [partition.placement.home, *partition.placement.accelerators]


def _clipped(text: str, most: int = 42) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- growth ---------------------------------------------------------------------------------------

LENGTHS = ("seq", "past", "source", "batch")
"""What a growth is drawn over: the first of these that the trace has formulas in."""


def growth(partitions: Sequence[Split], reach: Reach) -> Growth | Missing:
    """The bytes of each placement at other sizes, as long as the trace is the same program there.

    A placement that was searched for is the best one where it was traced, and is kept elsewhere.
    """
    graph = partitions[0].graph
    variable = next((name for name in LENGTHS if name in graph.meta.symbolic), None)
    if variable is None:
        return Missing("This trace has no formulas: it holds at its own size alone.")
    here = graph.meta.variables[variable]

    def reached(size: int) -> bool:
        return graph_at(graph, reach, {**graph.meta.variables, variable: size}) is not None

    doubles = [2**power for power in (range(11) if variable == "batch" else range(4, 18))]
    sizes = [size for size in sorted({*doubles, here}) if reached(size)]
    formulas: dict[str, list[str]] = {}
    for one in partitions:
        formulas.setdefault(one.traffic.total_expr or "0", []).append(one.policy)
    still = formulas.pop("0", [])
    if not formulas:
        return _NOTHING
    if len(sizes) < 2:
        return Missing(
            f"At every other {variable} tried this trace is another program: trace the model at a "
            f"larger {variable} than {here}."
        )

    def at(expression: str, size: int) -> int:
        return parse(expression).evaluate({**graph.meta.variables, variable: size})

    lines = [
        Curve(
            names,
            [at(expression, size) for size in sizes],
            [
                f"{', '.join(names)}\n{variable} {size:,}: {human(value)}\n= {expression}"
                for size in sizes
                if (value := at(expression, size)) is not None
            ],
        )
        for expression, names in formulas.items()
    ]
    crossings = [
        CurveCrossing(
            size,
            at(after, size),
            f"{', '.join(formulas[after])}\nmoves less than {', '.join(formulas[before])}\n"
            f"from {variable} {size:,} on: {human(at(after, size))}",
        )
        for pair in combinations(formulas, 2)
        for size, before, after in _crossed(pair, at, sizes[0], sizes[-1])
        if reached(size)
    ]
    values = [value for line in lines for value in line.values if value]
    return Growth(
        variable,
        sizes,
        here,
        lines,
        crossings,
        Ticks(sizes, [f"{size:,}" if size in doubles[::2] else "" for size in sizes]),
        log_byte_ticks(min(values), max(values)),
        f"{', '.join(still)} {'moves' if len(still) == 1 else 'move'} nothing." if still else "",
    )


def _crossed(
    pair: tuple[str, str], at: Callable[[str, int], int], first: int, last: int
) -> list[tuple[int, str, str]]:
    """(size, formula that was least before it, formula that is least from it on)"""
    _, changes = best_over(lambda size: {one: at(one, size) for one in pair}, first, last)
    return [(change.size, change.before, change.after) for change in changes]
