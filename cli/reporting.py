"""The command that shows a traced model and its placements: a page, and pictures of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import Json, TraceDir, command, say
from cli.devices import Chips, Int8Speedup, PipelineDepth, Sparsity, SparsitySpeedup
from cli.machines import Accel, Home, LinkNames, Memory
from cli.splitting import MaxCalls, ResidencyName, Secrets, TimeLimit, WireDtype, caution
from cutedge._machines import read_machines
from tracer.errors import CutedgeError

if TYPE_CHECKING:
    from cutedge._placing import Compared
    from report.contents import Report
    from tracer.reach import Reach


@command("cutedge report --policy offload-linear --policy min-cut --png")
def report(
    directory: TraceDir = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", help="A policy to show, again and again, the first one first; all when "
            "left out.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The policy that savings are against; offload-linear.")
    ] = None,
    home: Home = "tee",
    accel: Accel = None,
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkNames = None,
    pipeline_depth: PipelineDepth = 1,
    int8_speedup: Int8Speedup = None,
    sparsity: Sparsity = 0.0,
    sparsity_speedup: SparsitySpeedup = None,
    chips: Chips = 1,
    max_calls: MaxCalls = None,
    memory: Memory = None,
    time_limit: TimeLimit = 60.0,
    out: Annotated[
        Path | None,
        typer.Option(help="The page; report.html in the trace directory when left out."),
    ] = None,
    png: Annotated[
        bool,
        typer.Option("--png", help="Pictures of the drawings too, beside the page (by Chromium)."),
    ] = False,
    secret: Secrets = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show policies on one page, readable offline: flows, layers, a block, growth, rooflines."""
    from cli.printing import print_json
    from cutedge._placing import check_namesakes, compared_on, setting_of
    from cutedge._workspace import trace_folder
    from partition.policy import load_policy, open_policy_names
    from report.page import drawing_library, write_page
    from report.pictures import find_browser, take_pictures
    from tracer.files import write_whole
    from tracer.serde import read_reach, read_trace

    library, browser = drawing_library(), find_browser() if png else None
    machines = read_machines(
        home, accel, link, memory, wire_dtype, pipeline_depth=pipeline_depth,
        int8_speedup=int8_speedup, sparsity=sparsity, sparsity_speedup=sparsity_speedup,
        chips=chips,
    )  # fmt: skip
    names = list(dict.fromkeys(policies or open_policy_names()))
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        names.append(against)
    chosen = {name: load_policy(name) for name in names}
    check_namesakes(chosen)
    folder = trace_folder(directory)
    page = out or folder / "report.html"
    graph, trace_id = read_trace(folder)
    setting = setting_of(graph, machines, residency, max_calls, time_limit)
    found = compared_on(
        graph, trace_id, chosen, against, setting, machines, strict=bool(policies),
        secret=secret or (), named=baseline is not None,
    )  # fmt: skip
    caution(graph, dict(zip(found.names, found.policies, strict=True)))
    first = names[0] if policies else against
    shown = found.names.index(first) if first in found.names else 0
    made = _report(found, read_reach(folder, trace_id), shown)
    try:
        write_whole(page, write_page(made, library).encode())
    except OSError as error:
        raise CutedgeError(f"cannot write {page}: {error.strerror or error}") from error
    pictures = take_pictures(browser, page) if browser else []
    if as_json:
        print_json({
            "page": str(page), "pictures": [str(picture) for picture in pictures],
            "headlines": {sheet.policy: sheet.headline for sheet in made.sheets},
        })  # fmt: skip
    else:
        say(made.sheets[shown].headline)
        for path in (page, *pictures):
            say(f"written to {path}")


def _report(found: "Compared", reach: "Reach", shown: int) -> "Report":
    """The report of what was compared."""
    from cli.show import coverage
    from report.contents import make_report
    from tracer.summary import headline

    setting, baseline = found.setting, found.baseline
    graph = baseline.graph
    accelerators = " and ".join(setting.accelerators)
    return make_report(
        found.partitions,
        of=f"{headline(graph.meta)}; {setting.home} calls {accelerators} over "
        f"{setting.links.name}, {baseline.wire} on the wire, residency {setting.residency}",
        headlines=_headlines(found),
        devices=setting.devices, times=setting.times, compared=found.comparisons,
        baseline=baseline.policy, shown=shown, reach=reach,
        notes=[
            coverage(graph),
            *(f"without {name}: {why}" for name, why in found.without.items()),
        ],
    )  # fmt: skip


def _headlines(found: "Compared") -> list[tuple[str, str]]:
    """Of each policy the bottleneck with its share, what would relieve it, and what is seen."""
    from cli.printing import duration, human
    from cli.show_split import bottleneck_claim, relief_claim
    from cutedge._placing import bottlenecks

    said = []
    for one, worst in zip(
        found.partitions, bottlenecks(found.partitions, found.setting, found.policies), strict=True
    ):
        run = one.run
        more = "" if run is None else f"A run takes {duration(run.seconds)}, "
        if run is not None:
            more += f"{run.shares[2]:.1%} of it on the link. "
        seen = " ".join(f"{each.device} sees {each.words}." for each in one.exposed)
        if worst is None:
            said.append(
                (f"Under {one.policy} nothing crosses between devices.", f"{more}{seen}".strip())
            )
            continue
        step = relief_claim(worst, human)
        claim = bottleneck_claim(worst, f"the traffic of {one.policy}")
        said.append((f"{claim}.", f"{more}{step[:1].upper()}{step[1:]}. {seen}".strip()))
    return said
