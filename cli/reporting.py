"""The command that shows a traced model and its placements: a page, and pictures of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Option

from cli.app import command, say, warn
from cli.options import Baseline, Costs, Json, MachineOptions, Policies, Running, TraceDir


@command("cutedge report --policy offload-linear --policy min-cut --png", tables=False)
def report(
    machine: MachineOptions,
    timing: Costs,
    search: Running,
    directory: TraceDir = None,
    policies: Policies = None,
    baseline: Baseline = None,
    out: Annotated[
        Path | None, Option(help="The page; report.html in the trace directory when left out.")
    ] = None,
    png: Annotated[
        bool, Option("--png", help="Pictures of the drawings too, beside the page (by Chromium).")
    ] = False,
    beside: Annotated[
        str | None, Option(help="In two columns with another trace directory, or --machine.")
    ] = None,
    serve: Annotated[
        bool, Option("--serve", help="A live page with sliders in place of a file, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, Option(min=0, max=65535, help="With --serve: 8765; 0: any that is free.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show policies on one page, readable offline: flows, layers, a block, growth, rooflines."""
    import cutedge
    from cli.printing import print_json
    from cutedge._other import other_of
    from cutedge._placing import check_reported, check_words
    from cutedge._workspace import trace_folder

    options = {**asdict(machine), **asdict(timing), **asdict(search)}
    check_words([*(policies or ()), *([baseline] if baseline else ())], **options)
    check_reported(serve=serve, port=port, beside=beside, out=out, png=png, json=as_json)
    folder = trace_folder(directory)
    compared = cutedge.load(folder).compare(policies, baseline=baseline, **options)
    warn(*compared.warnings)
    if serve:
        compared.serve(port, say)
        return
    if beside:
        other = other_of(compared.trace, beside, policies, baseline, **options)
        warn(*other.warnings)
        written = compared.beside(other, out or folder / "beside.html")
    else:
        written = compared.report(out or folder / "report.html", png=png)
    if as_json:
        print_json(
            {
                "page": str(written.page),
                "pictures": [str(one) for one in written.pictures],
                "headlines": written.headlines,
            }
        )
    else:
        say(next(iter(written.headlines.values())))
        for path in (written.page, *written.pictures):
            say(f"written to {path}")
