"""Policies side by side as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodels.roofline import DeviceTime
from cutedge._page_files import page_files
from cutedge._placing import Compared, bottlenecks
from cutedge._verdict import times_of, verdicts
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
from cutedge.report.page import write_page
from cutedge.report.pictures import find_browser, take_pictures
from cutedge.report.scores import Verdict
from tracer.errors import CutedgeError
from tracer.files import write_whole
from tracer.reach import Reach
from tracer.stages import stage
from tracer.summary import headline
from tracer.words import human


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
    browser = find_browser() if png else None  # before any work, where one is missing
    made = report_of(found, reach, shown)
    try:
        write_whole(page, write_page(made, page_files(made, found.partitions)).encode())
    except OSError as error:
        raise CutedgeError(f"cannot write {page}: {error.strerror or error}") from error
    sheets = [made.sheets[shown], *made.sheets]
    return Written(
        page,
        tuple(take_pictures(browser, page)) if browser else (),
        {sheet.policy: sheet.verdict.limit for sheet in sheets},
    )


@stage("drawing the report")
def report_of(found: Compared, reach: Reach, shown: int) -> Report:
    """The report of what was compared."""
    setting, baseline = found.setting, found.baseline
    graph, times = baseline.graph, times_of(found)
    accelerators = " and ".join(setting.machine.accelerators)
    return make_report(
        found.partitions,
        of=f"{headline(graph.meta)}; {setting.machine.home} calls {accelerators} over "
        f"{setting.machine.links.name}, {baseline.wire} on the wire, residency {setting.residency}"
        f"{how_placed(baseline)}",
        verdicts=_verdicts(found, times),
        devices=setting.machine.devices,
        times=times,
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
        untrusted=setting.untrusted,
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


def _verdicts(
    found: Compared, times: Sequence[Mapping[str, DeviceTime]]
) -> list[tuple[Verdict, str]]:
    """Of each policy the first screen; then schedule, traffic, and what is seen, in sentences."""
    worst = bottlenecks(found.partitions, found.setting, found.policies)
    told = []
    for one, heaviest, verdict in zip(
        found.partitions, worst, verdicts(found, worst, times), strict=True
    ):
        said = [] if one.schedule is None else [*schedule_sentences(one.schedule)]
        if heaviest is not None:
            said += [bottleneck_claim(heaviest, f"the traffic of {one.policy}")]
            said += [relief_claim(heaviest, human)]
        said += [f"what {each.device} sees is {each.words}" for each in one.exposed]
        told.append((verdict, " ".join(f"{line[:1].upper()}{line[1:]}." for line in said)))
    return told
