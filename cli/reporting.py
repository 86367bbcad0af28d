"""The command that shows a traced model and its placements: a page, and pictures of it."""

from pathlib import Path
from typing import Annotated

import typer

from cli.app import Json, TraceDir, command, say
from cli.devices import Chips, Int8Speedup, PipelineDepth, Sparsity, SparsitySpeedup
from cli.machines import Accel, Home, LinkNames, Memory
from cli.splitting import MaxCalls, ResidencyName, Secrets, TimeLimit, WireDtype, caution
from cutedge._machines import read_machines


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
    from cutedge._report import report_of, write_report
    from cutedge._workspace import trace_folder
    from cutedge.report.page import drawing_library
    from cutedge.report.pictures import find_browser, take_pictures
    from partition.policy import load_policy, open_policy_names
    from tracer.serde import read_reach, read_trace

    drawing_library()  # before any work, where it is missing
    browser = find_browser() if png else None
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
    made = report_of(found, read_reach(folder, trace_id), shown)
    write_report(made, page)
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
