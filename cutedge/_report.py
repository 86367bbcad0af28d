"""Policies side by side as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cutedge._chip_words import limit_claim
from cutedge._placing import Compared, bottlenecks
from cutedge._words import (
    bottleneck_claim,
    coverage,
    estimates,
    granularity_prices,
    how_placed,
    left_out,
    relief_claim,
    schedule_sentences,
)
from cutedge.report.contents import Report, make_report
from cutedge.report.page import drawing_library, write_page
from cutedge.report.pictures import find_browser, take_pictures
from tracer.errors import CutedgeError
from tracer.files import write_whole
from tracer.reach import Reach
from tracer.stages import stage
from tracer.summary import headline
from tracer.words import duration, human


@dataclass(frozen=True, slots=True)
class Written:
    """A report that was written."""

    page: Path
    pictures: tuple[Path, ...]
    """Of its drawings, beside it."""
    headlines: Mapping[str, str]
    """By policy, the sentence that it begins with; the one that is shown first comes first."""


def write_report(found: Compared, reach: Reach, shown: int, page: Path, *, png: bool) -> Written:
    """Write what was compared as a page. Raises CutedgeError where it cannot be written.

    ``shown`` is the policy that comes up first.
    """
    library = drawing_library()
    browser = find_browser() if png else None  # before any work, where one is missing
    made = report_of(found, reach, shown)
    try:
        write_whole(page, write_page(made, library).encode())
    except OSError as error:
        raise CutedgeError(f"cannot write {page}: {error.strerror or error}") from error
    sheets = [made.sheets[shown], *made.sheets]
    return Written(
        page,
        tuple(take_pictures(browser, page)) if browser else (),
        {sheet.policy: sheet.headline for sheet in sheets},
    )


@stage("drawing the report")
def report_of(found: Compared, reach: Reach, shown: int) -> Report:
    """The report of what was compared."""
    setting, baseline = found.setting, found.baseline
    graph = baseline.graph
    accelerators = " and ".join(setting.machine.accelerators)
    return make_report(
        found.partitions,
        of=f"{headline(graph.meta)}; {setting.machine.home} calls {accelerators} over "
        f"{setting.machine.links.name}, {baseline.wire} on the wire, residency {setting.residency}"
        f"{how_placed(baseline)}",
        headlines=_headlines(found),
        devices=setting.machine.devices,
        times=setting.times,
        compared=found.comparisons,
        baseline=baseline.policy,
        shown=shown,
        reach=reach,
        notes=[
            coverage(graph),
            *granularity_prices(found.partitions),
            *left_out(found.partitions),
            *estimates(found.partitions),
            *(f"without {name}: {why}" for name, why in found.without.items()),
        ],
        designs=_designs(found),
    )


def _designs(found: Compared) -> dict[str, str]:
    """Of each array of multipliers: systolic arrays of its area, as HTML."""
    from cutedge._design_page import beside, drawn
    from cutedge._designs import beside_chip

    chips = [one.device for one in found.setting.times.values() if one.device.array is not None]
    graph = found.baseline.graph
    made = {chip.name: beside_chip(graph, chip) for chip in chips}
    return {
        name: f"{beside(one)}{''.join(drawn(one, run) for run in one.found)}"
        for name, one in made.items()
        if one is not None
    }


def _headlines(found: Compared) -> list[tuple[str, str]]:
    """Of each policy the bottleneck with its share, what would relieve it, and what is seen.

    Of a run on arrays of multipliers what limits it comes first, and the traffic's share below.
    """
    said = []
    for one, worst in zip(
        found.partitions, bottlenecks(found.partitions, found.setting, found.policies), strict=True
    ):
        run = one.run
        least = "at least " if one.left_out else ""
        more = "" if run is None else f"A run takes {least}{duration(run.seconds)}, "
        if run is not None:
            more += f"{run.shares[2]:.1%} of it on the link. "
        if one.schedule is not None:
            said_of_it = schedule_sentences(one.schedule)
            more += "".join(f"{line[:1].upper()}{line[1:]}. " for line in said_of_it)
        seen = " ".join(f"{each.device} sees {each.words}." for each in one.exposed)
        if worst is None:
            said.append(
                (f"Under {one.policy} nothing crosses between devices.", f"{more}{seen}".strip())
            )
            continue
        step = relief_claim(worst, human)
        claim = bottleneck_claim(worst, f"the traffic of {one.policy}")
        if (limit := limit_claim(one)) is not None:  # on a chip, that is seldom the traffic
            claim, more = f"Under {one.policy}, {limit}", f"{more}{claim}. "
        said.append((f"{claim}.", f"{more}{step[:1].upper()}{step[1:]}. {seen}".strip()))
    return said
