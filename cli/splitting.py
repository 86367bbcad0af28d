"""Commands that place a traced model on devices and count what crosses."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import complete
from cli.app import Json, TraceDir, choose, command, say, warn
from cli.devices import Chips, Int8Speedup, PipelineDepth, Sparsity, SparsitySpeedup
from cli.machines import Accel, Home, LinkNames, Machines, Memory, read_machines
from partition import Residency
from tracer.errors import InputError

if TYPE_CHECKING:
    from cli.show_split import Compared
    from costmodels.roofline import DeviceTime
    from partition.explain import Bottleneck
    from partition.ladder import Step
    from partition.optimise import Price, Setting
    from partition.policy import Policy
    from partition.seen import Derived
    from partition.tables import Partition
    from tracer.graph import OpGraph
    from tracer.reach import Reach

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
Order = Literal["bytes", "calls", "seconds", "seen"]


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
    from cli.workspace import trace_folder
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
    told = _derived(graph, chosen, setting, made)
    beside = beside_layers(graph, chosen, setting)
    why = _explained(graph, chosen, setting, made) if explain else None
    if as_json:
        print_json(show_split.partition_dict(made, top, bottleneck, written, why, told, beside))
    else:
        show_split.partition_summary(made, top, bottleneck, written, why, told, beside)


@command("cutedge compare --wire-dtype bfloat16")
def compare(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Trace directories, side by side; the last trace when left out."),
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
    from cli.workspace import trace_folder
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
            _compare_over(graph, reach, over, possible, setting, machines, as_json=as_json)
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
        print_json([
            show_split.compared_dict(one, number, bottleneck, within)
            for one in found
            for number, bottleneck in enumerate(
                bottlenecks(one.partitions, one.setting, one.policies)
            )
        ])  # fmt: skip
    elif len(found) == 1:
        show_split.comparison(found[0], within)
    else:
        show_split.runs(found, within)


def compared_on(
    graph: "OpGraph", trace_id: str, policies: "Mapping[str, Policy]", baseline: str,
    setting: "Setting", machines: Machines, *, strict: bool, secret: Sequence[str] = (),
    named: bool = True,
) -> "Compared":  # fmt: skip
    """The policies on one trace; one that cannot be is left out, or ``strict``: an error.

    Not an error where it is for a ``secret`` of the command line that one cannot be. A baseline
    that the user has not ``named`` makes way for the first policy that can be.
    """
    from cli.show_split import Compared
    from partition.explain import compare_traffic
    from partition.policy import with_secrets
    from partition.problem import InfeasibleError, NotFoundError

    made: dict[str, Partition] = {}
    policies = {name: with_secrets(graph, rules, secret) for name, rules in policies.items()}
    impossible = {} if strict else obstacles(policies, setting)
    for name, rules in policies.items():
        if name in impossible:
            continue
        try:
            made[name] = partition_of(graph, trace_id, rules, setting, machines)
        except (InfeasibleError, NotFoundError) as error:
            if strict and not secret:
                raise
            impossible[name] = str(error)
    if not named and baseline not in made:
        baseline = next(iter(made), baseline)
    if baseline not in made:
        raise InputError(
            f"savings are against {baseline}, which is not possible here ({impossible[baseline]}): "
            "name another --baseline"
        )
    base = made[baseline]
    return Compared(
        Path(), setting, tuple(made), tuple(made.values()), base,
        tuple(compare_traffic(one.placement, one.traffic, base.traffic) for one in made.values()),
        tuple(policies[name] for name in made),
        tuple(_derived(graph, policies[name], setting, one) for name, one in made.items()),
        impossible,
    )  # fmt: skip


def arranged(found: "Compared", unseen: Sequence[str], order: Order | None) -> "Compared":
    """What was compared in another ``order``, without policies that show what is to be ``unseen``.

    The baseline stays what savings are against.
    """
    from partition.seen import known

    partitions = found.partitions
    without = dict(found.without)
    for name, one in zip(found.names, partitions, strict=True):
        told = [
            f"{each.device} sees {sort.what.words} ({sort.how.words})"
            for each in one.exposed for sort in each.seen
            if sort.is_known and sort.what.value in unseen
        ]  # fmt: skip
        if told:
            without[name] = ", ".join(told)
    rank: dict[str, Callable[[Partition], float]] = {
        "bytes": lambda one: one.traffic.totals.payload_bytes,
        "calls": lambda one: len(one.traffic.calls),
        "seconds": lambda one: inf if one.run_seconds is None else one.run_seconds,
        "seen": lambda one: len(known(sort for each in one.exposed for sort in each.seen)),
    }
    left = [number for number, name in enumerate(found.names) if name not in without]
    if order is not None:
        left.sort(key=lambda number: rank[order](partitions[number]))
    return replace(
        found, names=tuple(found.names[n] for n in left),
        partitions=tuple(partitions[n] for n in left),
        comparisons=tuple(found.comparisons[n] for n in left),
        policies=tuple(found.policies[n] for n in left),
        derived=tuple(found.derived[n] for n in left), without=without,
    )  # fmt: skip


def setting_of(
    graph: "OpGraph", machines: Machines, residency: Residency, max_calls: int | None,
    time_limit: float,
) -> "Setting":  # fmt: skip
    """What the options come to for a graph."""
    from partition.optimise import Setting

    return Setting(
        machines.home, machines.accelerators, machines.links, machines.wire_dtype,
        residency,
        times=_times(graph, machines), max_calls=max_calls, memory_bytes=machines.memory_bytes,
        time_limit=time_limit,
    )  # fmt: skip


def _times(graph: "OpGraph", machines: Machines) -> "dict[str, DeviceTime]":
    from costmodels.roofline import time_ops

    return {
        name: time_ops(graph, device, options=machines.options)
        for name, device in machines.described.items()
    }


def obstacles(policies: "Mapping[str, Policy]", setting: "Setting") -> dict[str, str]:
    """The policies that are not for the setting; name -> why."""
    from partition.optimise import obstacle

    return {name: why for name, policy in policies.items() if (why := obstacle(policy, setting))}


def _compare_over(
    graph: "OpGraph", reach: "Reach", over: tuple[str, str], policies: "Mapping[str, Policy]",
    setting: "Setting", machines: Machines, *, as_json: bool,
) -> None:  # fmt: skip
    """Which policy is best over a range of sizes, in seconds where they are known, else bytes."""
    from cli import show_split
    from costmodels.flops import annotate
    from partition.crossover import best_over
    from partition.problem import InfeasibleError
    from tracer.reach import graph_at

    variable, text = over
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if variable not in graph.meta.symbolic or match is None:
        raise InputError(
            f"--over {variable} {text}: write one of {', '.join(graph.meta.symbolic) or 'no size'} "
            "(what this trace has formulas in) and a range like 64..131072"
        )

    def evaluate(size: int) -> dict[str, float]:
        there = graph_at(graph, reach, {**graph.meta.variables, variable: size})
        if there is None:
            raise InputError(
                f"--over {variable} {text}: at {variable} {size} this trace is another program "
                f"({'; '.join(reach.notes) or 'its code branches there'}): take a smaller range, "
                "or trace the model there"
            )
        costed = annotate(there)
        at = replace(setting, times=_times(costed, machines))
        values = {}
        for name, rules in policies.items():
            with suppress(InfeasibleError):
                one = partition_of(costed, "", rules, at, machines, exposed=False)
                if setting.unknown_seconds and one.placement.accelerators:  # else it is no split
                    values[name] = float(one.traffic.totals.payload_bytes)
                elif one.run_seconds is not None:
                    values[name] = one.run_seconds
        if not values:
            raise InputError(f"--over {variable} {text}: no policy is possible at {size}")
        return values

    points, changes = best_over(evaluate, int(match[1]), int(match[2]))
    unit = "bytes" if setting.unknown_seconds else "seconds"
    show_split.over(graph.meta, variable, unit, points, changes, as_json=as_json)


def partition_of(
    graph: "OpGraph", trace_id: str, policy: "Policy", setting: "Setting", machines: Machines, *,
    exposed: bool = True,
) -> "Partition":  # fmt: skip
    """A graph placed by a policy, with what the placement moves and, where asked, shows."""
    from partition.accounting import account
    from partition.ladder import exposure
    from partition.optimise import compute_cycles, compute_seconds, place
    from partition.policy import secret_tensors
    from partition.run import chips_of, times_under
    from partition.secrets import covered
    from partition.tables import Partition

    placed = place(graph, policy, setting)
    traffic = account(
        graph, placed.placement, setting.links,
        wire_dtype=setting.wire_dtype, residency=setting.residency,
    )  # fmt: skip
    times = times_under(graph, placed.placement, traffic.transfers, setting.times)
    return Partition(
        graph, trace_id, policy.name, placed.placement, traffic, setting.links,
        setting.wire_dtype, setting.residency, compute_seconds(placed.placement, times),
        placed.solution, " and ".join(policy.objective or ()) or None, placed.unit,
        compute_cycles(placed.placement, setting.times), machines.options,
        chips_of(graph, placed.placement, setting.times, machines.options),
        covered(graph, secret_tensors(graph, policy)),
        tuple(exposure(graph, placed.placement, traffic, setting.untrusted)) if exposed else (),
    )  # fmt: skip


def _explained(
    graph: "OpGraph", policy: "Policy", setting: "Setting", made: "Partition"
) -> "tuple[list[Step], list[Price]]":
    """(the steps from offload-linear, what each rule costs)"""
    from partition.ladder import ladder
    from partition.optimise import prices
    from partition.policy import apply_policy, load_policy

    start = apply_policy(
        graph, load_policy("offload-linear"), home=setting.home, accelerators=setting.accelerators
    )
    steps = ladder(
        graph, start, made.placement, setting.links,
        wire_dtype=setting.wire_dtype, residency=setting.residency,
    )  # fmt: skip
    return steps, prices(graph, policy, setting, made.solution)


def bottlenecks(
    made: "Sequence[Partition]", setting: "Setting", policies: "Sequence[Policy]"
) -> "list[Bottleneck | None]":
    """Of each partition, with a relief that may be called by the name of a policy of cutedge.

    ``policies`` are theirs: no relief handles what they keep secret.
    """
    from partition.explain import find_bottleneck
    from partition.optimise import hidden_from, may_move
    from partition.policy import apply_policy, fixed_policy_names, load_policy

    if not made:
        return []
    graph, home, accelerators = made[0].graph, setting.home, setting.accelerators
    placements = {
        name: apply_policy(graph, load_policy(name), home=home, accelerators=accelerators)
        for name in fixed_policy_names()
    }
    found = []
    for one, policy in zip(made, policies, strict=True):
        hidden = hidden_from(graph, policy, setting, one.placement, one.traffic)
        able = may_move(graph, setting, hidden)
        known = {
            name: placement for name, placement in placements.items()
            if all(d is None or able(op, d) for op, d in enumerate(placement.devices))
        }  # fmt: skip
        found.append(
            find_bottleneck(
                graph, one.placement, one.traffic, setting.links,
                policies=known, wire_dtype=one.wire_dtype, residency=setting.residency,
                can_run=able,
            )
        )  # fmt: skip
    return found


def _derived(
    graph: "OpGraph", policy: "Policy", setting: "Setting", made: "Partition"
) -> "dict[str, list[Derived]]":
    """By device that is not trusted, what it gets that arithmetic has made of the secrets."""
    from partition.policy import secret_tensors
    from partition.secrets import covered, present
    from partition.seen import derived

    secret = covered(graph, secret_tensors(graph, policy))
    there = present(graph, made.placement, made.traffic)
    return {
        device: derived(graph, secret, there.get(device, set()))
        for device in setting.untrusted if secret
    }  # fmt: skip


def caution(graph: "OpGraph", policies: "Mapping[str, Policy]") -> None:
    """Warn of policies, by what the user called them, that do less than they say."""
    from partition.policy import cautions

    for given, policy in policies.items():
        for caution in cautions(graph, policy):
            warn(f"{given}: {caution}")


def check_namesakes(policies: "Mapping[str, Policy]") -> None:
    """Raise InputError where two files hold policies of one name."""
    first: dict[str, str] = {}
    for given, policy in policies.items():
        if first.setdefault(policy.name, given) != given:
            raise InputError(
                f"{first[policy.name]} and {given} are both called {policy.name}, and their "
                "tables would be in one directory: rename one of the files"
            )


@command("cutedge policies fuse-attention")
def policies(
    policy: Annotated[
        str | None, typer.Argument(help="Show this one's rules.", autocompletion=complete.policies)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the policies, or show the rules of one."""
    from cli.printing import print_json, print_rows
    from partition.policy import load_policy, policy_names

    loaded = [load_policy(name) for name in ([policy] if policy else policy_names())]
    if as_json:
        print_json([
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
        ])  # fmt: skip
    elif policy is None:
        print_rows(["policy", "what it does"], [[p.name, p.description] for p in loaded])
    else:
        for p in loaded:
            say(f"{p.name}: {p.description}")
            print_rows(
                ["rule", "ops", "place", "reason"],
                [
                    *([n, r, r.place, r.reason] for n, r in enumerate(p.rules, 1)),
                    ["", "all others", p.default, ""],
                ],
            )
            if p.secrets:
                typer.echo()
                print_rows(
                    ["secret", "tensors, with all that carries their values", "reason"],
                    [[n, secret, secret.reason] for n, secret in enumerate(p.secrets, 1)],
                )
