"""What limits a design and what doubles its speed: sentences that follow from its figures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from costmodels.designs import Design, gains
from tracer.graph import TraceMeta
from tracer.words import counted, duration, joules, rate

if TYPE_CHECKING:
    from cutedge._designs import DesignedRun, Designs

DOUBLES = 1.9
"""From so many times as fast on, a sentence says that something doubles the speed."""


def limit_sentence(seconds: Callable[..., float], faster: Mapping[tuple[str, ...], float]) -> str:
    """What limits a chip, and what doubles its speed: each figure is that of the doubled chip.

    ``seconds`` are those of a run with twice of some knobs, ``faster`` the gains of each knob alone.
    """
    first, second = sorted(faster, key=lambda knobs: -faster[knobs])[:2]
    (name,) = first
    alone = f"twice {_more(first)} makes it {faster[first]:.2f} times as fast"
    if faster[first] >= DOUBLES:
        return f"{name} limits it: {alone}; next is {second[0]}, {faster[second]:.2f} times"
    pairs = gains(seconds, combinations([knob for (knob,) in faster], 2))
    best = max(pairs, key=lambda knobs: pairs[knobs])
    both = f"twice {_more(best)} makes it {pairs[best]:.2f} times as fast"
    if pairs[best] >= DOUBLES:
        return f"no one thing limits it ({alone}, and nothing else more): {both}"
    return f"no one thing limits it, and no two: at best {both}, and {alone}"


def _more(knobs: tuple[str, ...]) -> str:
    """``the clock and the rows``."""
    return " and ".join(f"the {knob}" for knob in knobs)


def design_text(design: Design) -> str:
    """A design in a line: ``ws 32 x 16``, with how many where there are several."""
    many = "" if design.arrays == 1 else f"{design.arrays} x "
    return f"{many}{design.dataflow} {design.rows} x {design.columns}"


def kib_text(design: Design) -> str:
    """The KiB of its buffers: ``48``, a third each, or ``16+64+16``."""
    left, right, result = design.kib
    if left == right == result:
        return f"{float(3 * left):g}"
    return "+".join(f"{float(one):g}" for one in design.kib)


def said(made: "Designs") -> Iterator[str]:
    """How much was worked out, and by which figures."""
    space, first = made.space, made.found[0].runs
    most = "" if made.max_area is None else f", at most {made.max_area:.4g} mm2 each"
    yield (
        f"{made.count:,} points: {counted(space.size, 'design')} of {space.dtype}{most}, "
        f"{counted(len(made.found), 'run')}; matrix products alone"
    )
    yield (
        f"area by {made.area.name}, a proxy; energy by {made.energy_name}"
        + ", which does not know all: at least" * first.energy_at_least
    )


def shown(made: "Designs", written: Iterable[object]) -> Iterator[str | tuple[str, Any]]:
    """What ``design`` prints, line by line and table by table."""
    yield from said(made)
    yield ""
    yield f"model, tokens>, {HEADS}", side_by_side(made)
    yield ""
    yield from (line for found in made.found for line in limit_lines(made, found))
    for found in made.found:
        yield f"\n{run_name(found.graph.meta)}"
        yield pareto_words(made, found)
        yield HEADS, pareto_rows(made, found)
    yield from (f"written to {path}" for path in written)


HEADS = (
    "design, SRAM KiB>1, DRAM>2, MHz>3, mm2>, cycles>1, stalls>1, seconds>, energy>, padding>, "
    "useful>2"
)
"""Of a design and what a run takes on it."""

MOST_ROWS = 12
"""Designs of a Pareto set that are printed, evenly from the smallest to the largest."""


def side_by_side(made: "Designs") -> list[list[str]]:
    """Each run on the device and on the best design."""
    from cutedge._design_table import device_row

    rows = []
    for found in made.found:
        meta = found.graph.meta
        run = [meta.model, run_size(meta)]
        if (device := device_row(found)) is not None:
            least = ">= " if found.device and found.device.at_least else ""
            rows.append([*run, *_row(device, device["device"], "", least)])
        if found.best is not None:
            rows.append([*run, *_designs_row(made, found, found.best)])
    return rows


def run_name(meta: TraceMeta) -> str:
    """A run in a line; what it was traced in is no matter to a design, which has a dtype of its own."""
    size = f" of {counted(meta.seq, 'token')}{_after(meta)}" if meta.seq else ""
    many = f", {meta.batch:,} at a time" if meta.batch > 1 else ""
    return f"{meta.model}: {meta.phase}{size}{many}"


def run_size(meta: TraceMeta) -> str:
    """How many tokens a sequence has that are new, and how many are cached."""
    return f"{meta.seq:,}{_after(meta)}" if meta.seq else ""


def _after(meta: TraceMeta) -> str:
    return f" after {meta.past:,}" if meta.past else ""


def pareto_words(made: "Designs", found: "DesignedRun") -> str:
    """What the rows of ``pareto_rows`` are."""
    count = len(found.pareto)
    rest = "" if count <= MOST_ROWS else f", {MOST_ROWS} of them"
    what = ", ".join(made.compared)
    return f"{counted(count, 'design')} that no other one is better than in {what}{rest}"


def pareto_rows(made: "Designs", found: "DesignedRun") -> list[list[str]]:
    """The designs that no other one is better than, by area."""
    by_area = found.pareto[made.square_millimetres[found.pareto].argsort(kind="stable")]
    last = len(by_area) - 1
    shown = [*range(last + 1)]
    if last >= MOST_ROWS:
        shown = [round(n * last / (MOST_ROWS - 1)) for n in range(MOST_ROWS)]
    return [_designs_row(made, found, int(by_area[n])) for n in shown]


def _designs_row(made: "Designs", found: "DesignedRun", number: int) -> list[str]:
    from cutedge._design_table import design_rows

    (row,) = design_rows(made, found, [number])
    design = made.space.design(number)
    return _row(row, design_text(design), kib_text(design), "")


def _row(row: Mapping[str, Any], name: str, kib: str, least: str) -> list[str]:
    rates = "dram_bytes_per_second" in row
    return [
        name,
        kib,
        rate(row["dram_bytes_per_second"]) if rates else "",
        f"{row['clock_hertz'] / 1e6:g}",
        f"{row['square_millimetres']:.4g}",
        f"{row['cycles']:,}",
        "" if row["stall_cycles"] is None else f"{least}{row['stall_cycles']:,}",
        f"{least}{duration(row['seconds'])}",
        f"{least}{joules(row['joules'])}",
        f"{row['padding_share']:.1%}",
        f"{row['useful_share']:.1%}",
    ]


def limit_lines(made: "Designs", found: "DesignedRun") -> list[str]:
    """What limits the device and the best design of a run, and what doubles their speed."""
    meta = found.graph.meta
    at = f" at {counted(meta.seq, 'token')}{_after(meta)}" if meta.seq else ""
    lines = []
    if found.device is not None:
        name = found.device.device.name
        lines.append(f"{meta.model}{at} on {name}: {made.device_limits(found)[1]}")
    if found.best is None:
        small = f"no design is as small as {made.max_area:g} mm2"
        return [*lines, f"{meta.model}{at}: {small}, give smaller arrays or buffers"]
    name = design_text(made.space.design(found.best))
    return [*lines, f"{meta.model}{at} on {name}: {made.limits(found)[1]}"]
