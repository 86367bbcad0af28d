"""Commands that place a traced model on devices and count what crosses."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import complete
from cli.app import Json, TraceDir, command, no_model, say, warn
from cli.devices import Chips, Int8Speedup, PipelineDepth, Sparsity, SparsitySpeedup
from cli.machines import Accel, Home, LinkNames, Memory
from cutedge._machines import read_machines
from partition import Order, Residency
from tracer.errors import InputError, choose

if TYPE_CHECKING:
    from cutedge._placing import Compared
    from partition.policy import Policy
    from tracer.graph import OpGraph

MaxCalls = Annotated[
    int | None, typer.Option(min=0, help="At most so many calls; for policies with an objective.")
]
TimeLimit = Annotated[
    float, typer.Option(min=0.1, help="Seconds that a search for the optimum may take.")
]
WireDtype = Annotated[
    str | None,
    typer.Option(help="Dtype of floating tensors while they cross; their own when left out."),
]
ResidencyName = Annotated[
    Residency,
    typer.Option(
        "--residency", help="run: a device keeps what it has; call: an accelerator forgets it."
    ),
]

Secrets = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        help="What no accelerator may see that is not trusted: a label, a sort (qkv), a name.",
    ),
]


@command("cutedge partition --policy fuse-attention --wire-dtype bfloat16")
def partition(
    directory: TraceDir = None,
    policy: Annotated[
        str,
        typer.Option(help="A policy's name, or a .toml file.", autocompletion=complete.policies),
    ] = "offload-linear",
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
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show the steps from offload-linear, and what rules and secrets cost."
        ),
    ] = False,
    secret: Secrets = None,
    as_json: Json = False,
) -> None:
    """Place every op of a trace on a device and count what crosses."""
    from cli import show_split
    from cli.printing import print_json
    from cutedge._placing import bottlenecks, derived_of, explained, partition_of, setting_of
    from cutedge._workspace import trace_folder
    from partition.explain import top_transfers
    from partition.optimise import beside_layers
    from partition.policy import load_policy, with_secrets
    from partition.tables import write_partition
    from tracer.serde import read_trace

    chosen = load_policy(policy)
    machines = read_machines(
        home, accel, link, memory, wire_dtype, pipeline_depth=pipeline_depth,
        int8_speedup=int8_speedup, sparsity=sparsity, sparsity_speedup=sparsity_speedup,
        chips=chips,
    )  # fmt: skip
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    chosen = with_secrets(graph, chosen, secret or ())
    setting = setting_of(graph, machines, residency, max_calls, time_limit)
    made = partition_of(graph, trace_id, chosen, setting, machines)
    written = write_partition(made, folder)
    caution(graph, {policy: chosen})
    top = top_transfers(graph, made.traffic)
    (bottleneck,) = bottlenecks([made], setting, [chosen])
    told = derived_of(graph, chosen, setting, made)
    beside = beside_layers(graph, chosen, setting)
    why = explained(graph, chosen, setting, made) if explain else None
    if as_json:
        print_json(show_split.partition_dict(made, top, bottleneck, written, why, told, beside))
    else:
        show_split.partition_summary(made, top, bottleneck, written, why, told, beside)


@command("cutedge compare --wire-dtype bfloat16")
def compare(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Trace directories, side by side; the last trace when left out.",
            callback=no_model,
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="A policy to compare, again and again; all without secrets when left out.",
            autocompletion=complete.policies,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The policy that savings are against; offload-linear.",
            autocompletion=complete.policies,
        ),
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
    within: Annotated[
        float | None,
        typer.Option(help="Seconds a token that are usable: says which runs are, or how far off."),
    ] = None,
    over: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Say which policy is best over a size, and where that changes: seq 64..131072."
        ),
    ] = None,
    secret: Secrets = None,
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
    from cli import show_split
    from cli.printing import print_json
    from cutedge._placing import (
        arranged,
        bottlenecks,
        check_namesakes,
        compared_on,
        compared_over,
        obstacles,
        setting_of,
    )
    from cutedge._workspace import trace_folder
    from partition.policy import load_policy, open_policy_names, with_secrets
    from partition.seen import What
    from partition.tables import write_partition
    from tracer.serde import read_reach, read_trace

    machines = read_machines(
        home, accel, link, memory, wire_dtype, pipeline_depth=pipeline_depth,
        int8_speedup=int8_speedup, sparsity=sparsity, sparsity_speedup=sparsity_speedup,
        chips=chips,
    )  # fmt: skip
    if within is not None and not 0 < within < float("inf"):
        raise InputError(f"--within {within:g}: give the seconds a token that are usable, above 0")
    names = list(dict.fromkeys(policies or open_policy_names()))
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        names.insert(0, against)
    chosen = {name: load_policy(name) for name in names}
    check_namesakes(chosen)
    for what in unseen or ():
        choose(what, [one.value for one in What], "--unseen")
    folders = [trace_folder(folder) for folder in directories] if directories else [
        trace_folder(None)
    ]  # fmt: skip
    if over is not None and (len(folders) > 1 or within is not None or unseen or sort):
        raise InputError(
            "--over is of one trace directory and goes without --within, --unseen and --sort"
        )
    found: list[Compared] = []
    for folder in dict.fromkeys(folders):
        graph, trace_id = read_trace(folder)
        setting = setting_of(graph, machines, residency, max_calls, time_limit)
        if over is not None:
            reach = read_reach(folder, trace_id)
            kept = {name: with_secrets(graph, one, secret or ()) for name, one in chosen.items()}
            without = {} if policies else obstacles(kept, setting)
            possible = {name: rules for name, rules in kept.items() if name not in without}
            unit, points, changes = compared_over(graph, reach, over, possible, setting, machines)
            show_split.over(graph.meta, over[0], unit, points, changes, as_json=as_json)
            return
        one = compared_on(
            graph, trace_id, chosen, baseline or against, setting, machines,
            strict=bool(policies), secret=secret or (), named=baseline is not None,
        )  # fmt: skip
        found.append(replace(one, folder=folder))
    for one in found:
        for partition in one.partitions:
            write_partition(partition, one.folder)
        caution(one.baseline.graph, dict(zip(one.names, one.policies, strict=True)))
    found = [arranged(one, unseen or (), sort) for one in found]
    if as_json:
        print_json({"partitions": [
            show_split.compared_dict(one, number, bottleneck, within)
            for one in found
            for number, bottleneck in enumerate(
                bottlenecks(one.partitions, one.setting, one.policies)
            )
        ]})  # fmt: skip
    elif len(found) == 1:
        show_split.comparison(found[0], within)
    else:
        show_split.runs(found, within)


def caution(graph: "OpGraph", policies: "Mapping[str, Policy]") -> None:
    """Warn of policies, by what the user called them, that do less than they say."""
    from partition.policy import cautions

    for given, policy in policies.items():
        for caution in cautions(graph, policy):
            warn(f"{given}: {caution}")


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
    from cli.printing import Column, grouped, print_json, print_table
    from partition.policy import load_policy, policy_names
    from tracer.toml_files import matching

    loaded = [load_policy(name) for name in matching(policy, "policy", policy_names())]
    if as_json:
        print_json({"policies": [
            {
                "policy": p.name, "description": p.description, "default": p.default,
                "objective": p.objective, "cut": p.cut,
                "secrets": [
                    {**{key: list(values) for key, values in secret.conditions},
                     "reason": secret.reason, "optional": secret.optional,
                     **({"derived": True} if secret.derived else {})}
                    for secret in p.secrets
                ],
                "rules": [
                    {**{key: list(values) for key, values in rule.conditions},
                     "place": rule.place, "reason": rule.reason, "optional": rule.optional}
                    for rule in p.rules
                ],
            }
            for p in loaded
        ]})  # fmt: skip
    elif len(loaded) > 1:

        def kind(policy: "Policy") -> str:
            if policy.secrets:
                return "with secrets: no accelerator that is not trusted sees them"
            return (
                "searched: the best placement that the rules allow" if policy.objective
                else "fixed: rules alone say where an op runs"
            )  # fmt: skip

        print_table(
            [Column("policy"), Column("what it does", "~")],
            grouped(loaded, kind, lambda p: (p.name, p.description)),
        )
    else:
        for p in loaded:
            say(f"{p.name}: {p.description}")
            print_table(
                [Column("rule"), Column("ops", "~"), Column("place"), Column("reason", "~", 1)],
                [
                    *((str(n), str(r), r.place, r.reason) for n, r in enumerate(p.rules, 1)),
                    ("", "all others", p.default, ""),
                ],
            )
            if p.secrets:
                say()
                print_table(
                    [
                        Column("secret"),
                        Column("tensors, with all that carries their values", "~"),
                        Column("reason", "~", 1),
                    ],
                    [(str(n), str(one), one.reason) for n, one in enumerate(p.secrets, 1)],
                )  # fmt: skip
