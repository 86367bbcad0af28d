"""Commands that place a traced model on devices and count what crosses."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import complete
from cli.app import command, say, warn
from cli.options import Baseline, Costs, Json, MachineOptions, Policies, Running, TraceDir, no_model
from partition import Order

_PLACEMENT = "What an executor is told, or a file of it: a device_map, '-ngl 20 -ot exps=CPU' ..."


@command("cutedge partition --policy fuse-attention --wire-dtype bfloat16")
def partition(
    machine: MachineOptions,
    timing: Costs,
    search: Running,
    directory: TraceDir = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="A policy's name, or a .toml file; offload-linear when left out.",
            autocompletion=complete.policies,
        ),
    ] = None,
    placement: Annotated[str | None, typer.Option(help=_PLACEMENT)] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show the steps from offload-linear, and what rules and secrets cost."
        ),
    ] = False,
    mix: Annotated[
        str | None,
        typer.Option(
            help="One placement for both phases, each so often: prefill=1,decode=256. The phase that "
            "this trace is not is taken from beside it, or traced."
        ),
    ] = None,
    frontier: Annotated[
        int | None,
        typer.Option(
            min=1, help="The best for less and less memory of the accelerator, in N steps."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Place every op of a trace on a device and count what crosses."""
    import cutedge
    from cli import show_split
    from cli.printing import print_all, print_json
    from cutedge._json import partition_object
    from cutedge._partition import chosen
    from cutedge._placing import check_words
    from cutedge._plan_words import heading, shown
    from cutedge._workspace import trace_folder

    options = {**asdict(machine), **asdict(timing), **asdict(search)}
    planned = mix is not None or frontier is not None
    searches = "fastest" if planned or search.objective else None
    rules = chosen(policy or (None if placement else searches), placement)
    check_words([rules], **options)
    folder = trace_folder(directory)
    if planned:
        plan = cutedge.load(folder).plan(rules, mix=mix, frontier=frontier, **options)
        paths = plan.save(folder)
        warn(*plan.warnings)
        if as_json:
            print_json({"written": [str(path) for path in paths], **plan.summary})
        else:
            print_all(shown(plan, paths), heading(plan))
        return
    split = cutedge.load(folder).partition(rules, **options)
    written = split.save(folder)
    for warning in split.warnings:
        warn(f"{policy or split.policy}: {warning}")
    if as_json:
        print_json(partition_object(split, written, explain=explain))
    else:
        show_split.partition_summary(split, written, explain=explain)


@command("cutedge compare --wire-dtype bfloat16")
def compare(
    machine: MachineOptions,
    timing: Costs,
    search: Running,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Trace directories, side by side; the last trace when left out.", callback=no_model
        ),
    ] = None,
    policies: Policies = None,
    placements: Annotated[list[str] | None, typer.Option("--placement", help=_PLACEMENT)] = None,
    baseline: Baseline = None,
    within: Annotated[
        float | None,
        typer.Option(
            help="Seconds a token that are usable: says which runs are, or how far off, by the "
            "--schedule where one is asked for."
        ),
    ] = None,
    over: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Say which policy is best over a size, and where that changes: seq 64..131072."
        ),
    ] = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            help="Only policies under which no accelerator sees this that is not trusted: a sort "
            "of tensor, such as qkv or logits; again for another."
        ),
    ] = None,
    sort: Annotated[
        Order | None,
        typer.Option(
            help="Fewest first: payload bytes, calls, seconds of the run, or sorts of tensor seen."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put policies side by side: calls, bytes, seconds, savings, proofs, closed forms, verdicts."""
    import cutedge
    from cli import show_split
    from cli.printing import print_json
    from cutedge._json import comparison_objects, crossovers_object
    from cutedge._placing import check_shown, check_words
    from cutedge._workspace import trace_folder

    options = {**asdict(machine), **asdict(timing), **asdict(search)}
    check_words([*(policies or ()), *([baseline] if baseline else ())], **options)
    folders = [*dict.fromkeys(map(trace_folder, directories or [None]))]  # type: ignore[list-item]
    check_shown(len(folders), within, over, unseen, sort, placements)
    traces = [cutedge.load(folder) for folder in folders]
    if over is not None:
        found = traces[0].crossovers(*over, policies, **options)
        if as_json:
            print_json(crossovers_object(traces[0].graph.meta, over[0], *found, search.schedule))
        else:
            show_split.over(traces[0].graph.meta, over[0], *found, search.schedule)
        return
    compared = [one.compare(policies, placements, baseline=baseline, **options) for one in traces]
    for one, folder in zip(compared, folders, strict=True):
        one.save(folder)
        warn(*one.warnings)
    compared = [one.arranged(unseen or (), sort) for one in compared]
    if as_json:
        rows = [row for one in compared for row in comparison_objects(one, within)]
        print_json({"partitions": rows})
    elif len(compared) == 1:
        show_split.comparison(compared[0], within)
    else:
        show_split.runs(compared, within)


@command("cutedge policies fuse-attention")
def policies(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their name; of one, or of a .toml file, the rules.",
            autocompletion=complete.policies,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the policies, or show the rules of one."""
    from cli.printing import grouped, print_json, print_table
    from cutedge._json import policy_object
    from cutedge._rows import pack_rows, protect_rows, rule_rows, secret_rows
    from cutedge._words import policy_sort
    from partition.policy import load_policy, policy_names
    from tracer.toml_files import matching

    loaded = [load_policy(name) for name in matching(policy, "policy", policy_names())]
    if as_json:
        print_json({"policies": [policy_object(one) for one in loaded]})
    elif len(loaded) > 1:
        print_table(
            "policy, what it does~", grouped(loaded, policy_sort, lambda p: (p.name, p.description))
        )
    else:
        for p in loaded:
            say(f"{p.name}: {p.description}")
            print_table("rule, ops~, place, reason~1", rule_rows(p))
            if p.secrets:
                say()
                print_table(
                    ["secret", "tensors, with all that carries their values~", "reason~1"],
                    secret_rows(p),
                )
            if p.protects:
                say()
                print_table("protect, ops~, scheme, reason~1", protect_rows(p))
            if p.packs:
                say()
                print_table("pack, tensors~, packing, reason~1", pack_rows(p))
