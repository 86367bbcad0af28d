"""Commands that place a traced model on devices and count what crosses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import Json, TraceDir, choose, command
from partition import Residency
from tracer.errors import InputError

if TYPE_CHECKING:
    from costmodels.links import Link
    from partition.explain import Bottleneck
    from partition.policy import Policy
    from partition.tables import Partition
    from tracer.graph import OpGraph

Home = Annotated[str, typer.Option(help="Name of the device that holds inputs and outputs.")]
Accel = Annotated[str, typer.Option(help="Name of the device that home calls.")]
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
LinkName = Annotated[str, typer.Option("--link", help="The link's name, or a .toml file.")]


@command("cutedge partition --policy fuse-attention --wire-dtype bfloat16")
def partition(
    directory: TraceDir = None,
    policy: Annotated[
        str, typer.Option(help="A policy's name, or a .toml file.")
    ] = "offload-linear",
    home: Home = "tee",
    accel: Accel = "gpu",
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkName = "zmq-ipc",
    as_json: Json = False,
) -> None:
    """Place every op of a trace on a device and count what crosses."""
    from cli import show
    from cli.printing import print_json
    from cli.workspace import trace_folder
    from costmodels.links import load_link
    from partition.explain import top_transfers
    from partition.policy import load_policy
    from partition.tables import write_partition
    from tracer.serde import read_trace

    chosen, over = load_policy(policy), load_link(link)
    _check_options(home, accel, wire_dtype)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = _partition(graph, trace_id, chosen, over, home, accel, wire_dtype, residency)
    written = write_partition(made, folder)
    _caution(graph, {policy: chosen})
    top = top_transfers(graph, made.traffic)
    (bottleneck,) = _bottlenecks([made], over, accel, residency)
    if as_json:
        print_json(show.partition_dict(made, top, bottleneck, written))
    else:
        show.partition_summary(made, over, top, bottleneck, written)


@command("cutedge compare --wire-dtype bfloat16")
def compare(
    directory: TraceDir = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy to compare, again and again; all when left out."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The policy that savings are against; offload-linear.")
    ] = None,
    home: Home = "tee",
    accel: Accel = "gpu",
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkName = "zmq-ipc",
    as_json: Json = False,
) -> None:
    """Put policies side by side: calls, bytes, savings, closed forms."""
    from cli import show
    from cli.printing import print_json
    from cli.workspace import trace_folder
    from costmodels.links import load_link
    from partition.explain import compare_traffic, top_transfers
    from partition.policy import load_policy, policy_names
    from partition.tables import write_partition
    from tracer.serde import read_trace

    _check_options(home, accel, wire_dtype)
    names = list(dict.fromkeys(policies or policy_names()))
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        names.insert(0, against)
    chosen, over = {name: load_policy(name) for name in names}, load_link(link)
    _check_namesakes(chosen)
    folder = trace_folder(directory)
    graph, trace_id = read_trace(folder)
    made = [
        _partition(graph, trace_id, rules, over, home, accel, wire_dtype, residency)
        for rules in chosen.values()
    ]
    written = [write_partition(one, folder) for one in made]
    _caution(graph, chosen)
    base = made[names.index(against)]
    compared = [compare_traffic(one.placement, one.traffic, base.traffic) for one in made]
    if as_json:
        found = zip(
            made, written, compared, _bottlenecks(made, over, accel, residency), strict=True
        )
        print_json([
            {**show.partition_dict(one, top_transfers(graph, one.traffic), bottleneck, place),
             **show.comparison_dict(comparison, base)}
            for one, place, comparison, bottleneck in found
        ])  # fmt: skip
    else:
        show.comparison(made, base, compared, folder)


def _partition(
    graph: "OpGraph", trace_id: str, policy: "Policy", link: "Link", home: str, accel: str,
    wire_dtype: str | None, residency: Residency,
) -> "Partition":  # fmt: skip
    from partition.accounting import account
    from partition.policy import apply_policy
    from partition.tables import Partition

    placement = apply_policy(graph, policy, home=home, accelerator=accel)
    traffic = account(graph, placement, link, wire_dtype=wire_dtype, residency=residency)
    return Partition(
        graph, trace_id, policy.name, placement, traffic, link.name, wire_dtype, residency
    )


def _bottlenecks(
    made: "Sequence[Partition]", link: "Link", accel: str, residency: Residency
) -> "list[Bottleneck | None]":
    """Of each partition, with a relief that may be called by the name of a policy of cutedge."""
    from partition.explain import find_bottleneck
    from partition.policy import apply_policy, load_policy, policy_names

    graph, home = made[0].graph, made[0].placement.home
    known = {
        name: apply_policy(graph, load_policy(name), home=home, accelerator=accel)
        for name in policy_names()
    }
    return [
        find_bottleneck(
            graph, one.placement, one.traffic, link,
            policies=known, wire_dtype=one.wire_dtype, residency=residency,
        )
        for one in made
    ]  # fmt: skip


def _caution(graph: "OpGraph", policies: "Mapping[str, Policy]") -> None:
    """Warn of policies, by what the user called them, that do less than they say."""
    from partition.policy import cautions

    for given, policy in policies.items():
        for caution in cautions(graph, policy):
            typer.echo(f"warning: {given}: {caution}", err=True)


def _check_namesakes(policies: "Mapping[str, Policy]") -> None:
    first: dict[str, str] = {}
    for given, policy in policies.items():
        if first.setdefault(policy.name, given) != given:
            raise InputError(
                f"{first[policy.name]} and {given} are both called {policy.name}, and their "
                "tables would be in one directory: rename one of the files"
            )


def _check_options(home: str, accel: str, wire_dtype: str | None) -> None:
    from tracer.graph import FLOATING

    if not home or not accel or home == accel:
        raise InputError(f"--home {home!r} and --accel {accel!r} must be two different devices")
    if wire_dtype is not None:
        choose(wire_dtype, FLOATING, "--wire-dtype")


@command("cutedge policies fuse-attention")
def policies(
    policy: Annotated[str | None, typer.Argument(help="Show this one's rules.")] = None,
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
                "rules": [
                    {**{key: list(values) for key, values in rule.conditions},
                     "place": rule.place, "reason": rule.reason}
                    for rule in p.rules
                ],
            }
            for p in loaded
        ])  # fmt: skip
    elif policy is None:
        print_rows(["policy", "what it does"], [[p.name, p.description] for p in loaded])
    else:
        for p in loaded:
            typer.echo(f"{p.name}: {p.description}")
            print_rows(
                ["rule", "ops", "place", "reason"],
                [
                    *([n, r, r.place, r.reason] for n, r in enumerate(p.rules, 1)),
                    ["", "all others", p.default, ""],
                ],
            )
