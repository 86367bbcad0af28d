"""What is in a report: the figures of each policy, and those of all of them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from costmodels.roofline import DeviceTime
from cutedge.report import figures, rooflines
from cutedge.report.block import Block, Blocks, blocks
from cutedge.report.choose import Choose, choose
from cutedge.report.execution import Execution, execution
from cutedge.report.figures import Bars, Flows, Growth, Missing, Table
from cutedge.report.overview import Overview, overview
from cutedge.report.rooflines import Roofline
from cutedge.report.scores import Verdict
from cutedge.report.sight import Sight, sight
from partition.explain import Savings
from partition.split import Split
from tracer.reach import Reach


@dataclass(frozen=True, slots=True)
class Sheet:
    """The drawings of one policy."""

    policy: str
    verdict: Verdict
    """The first screen."""
    more: str
    """What else is to be said of traffic, schedule and what is seen; may be empty."""
    seen: Sight | Missing
    flows: Flows | Missing
    layers: Bars | Missing
    calls: Bars | Missing
    model: Overview | Missing
    """Layer by layer."""
    time: Execution | Missing
    block: Blocks | Missing
    """Of each layer."""
    rooflines: Sequence[Roofline | Missing]
    """By device."""
    cycles: Sequence[Bars | Missing]
    """By device."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page shows."""

    model: str
    of: str
    """What was traced, and between which devices it is split."""
    devices: Sequence[str]
    """Home, then the accelerators."""
    arrays: Sequence[bool]
    """By device: whether it is an array of multipliers, which has cycles and no roofline."""
    policies: Table
    sheets: Sequence[Sheet]
    shown: int
    """Which sheet comes up first."""
    choose: Choose
    growth: Growth | Missing
    notes: Sequence[str]
    """What holds of all figures: coverage, policies that are left out and why."""
    designs: Mapping[str, str]
    """Array of multipliers -> designs of its area, as HTML; no policy is in them."""


def make_report(
    partitions: Sequence[Split],
    *,
    of: str,
    verdicts: Sequence[tuple[Verdict, str]],
    devices: Sequence[str],
    times: Sequence[Mapping[str, DeviceTime]],
    compared: Sequence[Savings],
    baseline: str,
    shown: int,
    reach: Reach,
    notes: Sequence[str],
    designs: Mapping[str, str],
    untrusted: Sequence[str],
) -> Report:
    """Compose a report of policies on one trace; sequences are by policy, in one order.

    ``verdicts`` are (the first screen, what else is to be said); ``times`` are what ops take on the
    described devices; ``shown`` is the policy that comes up first, ``untrusted``
    are the accelerators that are not trusted.
    """
    laid: dict[Hashable, Block] = {}  # blocks that are alike are laid out once
    sheets = [
        Sheet(
            one.policy,
            verdict,
            more,
            sight(one, untrusted),
            figures.flows(one),
            figures.by_layer(one),
            figures.by_call(one),
            overview(one, devices, taken),
            execution(one, taken),
            blocks(one, laid),
            [rooflines.roofline(one, device, taken.get(device)) for device in devices],
            [rooflines.cycles(one, device, taken.get(device)) for device in devices],
        )
        for one, (verdict, more), taken in zip(partitions, verdicts, times, strict=True)
    ]
    first = times[0]
    arrays = [device in first and first[device].device.array is not None for device in devices]
    return Report(
        partitions[0].graph.meta.model,
        of,
        devices,
        arrays,
        figures.policies_table(partitions, compared, baseline),
        sheets,
        shown,
        choose(partitions),
        figures.growth(partitions, reach),
        notes,
        designs,
    )
