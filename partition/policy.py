"""Policies: rules as data that place every op of a graph on a device.

A policy file is TOML::

    description = "what it does, in one sentence"
    default = "home"                  # where ops go that no rule matches: home, accelerator, or
                                      # free: wherever the objective is best
    objective = "bytes"               # what is best, where anything is free: bytes, seconds, energy,
                                      # or {bytes = 1, seconds = 2e9}, so much of each; energy by joules
    cut = "layers"                    # one cut between two layers; anywhere when left out

    [[rule]]                          # the first rule that matches an op places it
    kind = ["linear", "matmul"]       # every condition of a rule must hold; a list means any of
    module_path = "model.layers.*"    # target, module_path, module_type, label: shell patterns
    stack = "model.layers"            # stack too: the list of blocks that the op is in
    layer = [0, 1]                    # kind, layer (the place in the stack): exact
    pattern = "attention-core"        # a shape in the graph, see tracer.patterns.PATTERNS
    place = "accelerator"             # or home, or free, or "accelerator 2": the second one given
    weights_at = "home"               # where their parameters lie: device, or home, from where they
                                      # are sent in each run; as the run says when left out
    reason = "why"                    # stands in placement.parquet
    optional = true                   # no error where it matches nothing, as in other models

    [[secret]]                        # tensors that no accelerator may see that is not trusted
    label = ["logits"]                # label, name, module_path, stack: shell patterns; layer:
                                      # exact; all must hold
    what = "hidden_states"            # as partition.seen calls it: prompt_tokens, qkv, logits ...
    derived = true                    # nor what arithmetic makes of them
    allow_masked = ["one-time-pad-mod"]   # but for what is masked so
    reason = "why"

    [[protect]]                       # ops that run masked where they are away, see partition.protects
    kind = "linear"
    scheme = "one-time-pad"

    [[pack]]                          # tensors that cross packed, see partition.packs
    what = "hidden_states"
    packing = "q8_0"

A secret covers all that carries its values (``partition.secrets``). A label of a secret is also the
name of an input (``input_ids``). A rule or a secret that matches nothing in a graph is an error,
but for an optional one.

Of several accelerators ``accelerator`` is the first that is given; where there is an objective, any
of them: the best. Graph inputs and outputs are always at home, and constants are on every device
that needs them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from costmodels import WeightsAt
from partition.conditions import (
    OF_OPS,
    OF_SECRETS,
    OP_TEXTS,
    Conditions,
    OpConditions,
    choice_of,
    flag_of,
    meets,
    nearest,
    op_conditions,
    op_meets,
    patterns_of,
    tensor_conditions,
    text_of,
    texts_of,
    values_of,
)
from partition.packs import Pack, idle_packs, read_pack, why_idle
from partition.placement import Placement
from partition.protects import Protect, check_allowed, idle_protects, read_protect
from partition.seen import What
from partition.stored import parameters_read
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph
from tracer.patterns import PATTERNS
from tracer.toml_files import check_keys, find_toml, read_toml, shipped_names

PLACES = ("home", "accelerator", "free")

UNITS = ("bytes", "seconds", "energy")
"""What an objective weighs: payload bytes, seconds and joules of a run."""

Placer = Callable[[OpGraph, str, Sequence[str]], tuple[Sequence[str | None], frozenset[int]]]
"""A policy as a function of (graph, home, accelerators): (the device of each op, the ops whose
parameters lie at home)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Ops that meet every condition go to one place."""

    conditions: OpConditions
    place: str
    """``home``, ``accelerator``, ``accelerator N`` or ``free``."""
    reason: str
    """Why, in the user's words; may be empty."""
    optional: bool = False
    """Whether it may match nothing."""
    weights_at: WeightsAt | None = None
    """Where the parameters of its ops lie; None for what the run says (``Machine.weights_at``)."""

    def __str__(self) -> str:
        return ", ".join(f"{k} = {'|'.join(map(str, values))}" for k, values in self.conditions)


@dataclass(frozen=True, slots=True)
class Secret:
    """Tensors that meet every condition are not for accelerators that are not trusted."""

    conditions: Conditions
    reason: str
    """Why, in the user's words; may be empty."""
    optional: bool = False
    """Whether it may match nothing."""
    derived: bool = False
    """Whether what arithmetic makes of them is secret too."""
    allow_masked: tuple[str, ...] = ()
    """The schemes that they may be seen under; see ``partition.schemes``."""

    @property
    def what(self) -> str:
        """What it names, in the user's words."""
        return " and ".join(" or ".join(values) for _, values in self.conditions)

    def __str__(self) -> str:
        return ", ".join(f"{key} = {'|'.join(values)}" for key, values in self.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named list of rules."""

    name: str
    """The file's name without ``.toml``."""
    description: str
    """What it does, in one sentence."""
    default: str
    """As the place of a rule: where ops go that no rule matches."""
    rules: tuple[Rule, ...]
    """The first that matches an op places it."""
    objective: Mapping[str, float] | None = None
    """Unit (of ``UNITS``) -> its weight; None where nothing is free."""
    cut: str = "anywhere"
    """``layers``: what is free is at home up to some layer and away from the next on."""
    secrets: tuple[Secret, ...] = ()
    """What accelerators that are not trusted may not see."""
    packs: tuple[Pack, ...] = ()
    """What crosses packed: the first that names a tensor, and can pack it, does."""
    protects: tuple[Protect, ...] = ()
    """Which ops run masked where they are away: the first that names an op decides."""
    placer: Placer | None = None
    """What places the ops in place of rules, for a policy that is no list of rules."""


_FOLDER = files("partition") / "data"


@cache
def _shipped_names() -> tuple[str, ...]:
    order = [
        "all-home",
        "offload-linear",
        "fuse-attention",
        "flash-attention",
        "host-chip",
        "min-cut-nonlinear-home",
        "min-cut-softmax-free",
        "min-cut-norm-home",
        "min-cut",
        "layers",
        "fastest",
        "prompt-private",
        "kv-private",
        "activations-private",
        "slalom",
        "slalom-verified",
        "rank-one",
        "masked-all",
        "private-optimal",
    ]
    names = shipped_names(_FOLDER)
    return tuple(sorted(names, key=lambda n: (order.index(n) if n in order else 99, n)))


def policy_names() -> list[str]:
    """The policies that come with cutedge, from everything at home to the most fused."""
    return [*_shipped_names()]


def open_policy_names() -> list[str]:
    """Those without secrets and masks: what is compared where nothing else is asked for."""
    return [name for name in policy_names() if _is_open(load_policy(name))]


def fixed_policy_names() -> list[str]:
    """Of these those that leave nothing free: they take no search."""
    return [name for name in open_policy_names() if load_policy(name).objective is None]


def _is_open(policy: Policy) -> bool:
    return not policy.secrets and not policy.protects


def load_policy(name: str) -> Policy:
    """A policy by its name, or from the path of a TOML file.

    Raises InputError that names the file, the rule and the key.
    """
    known = policy_names()
    if name in known:
        return _shipped(name)
    path, text = find_toml(name, "policy", _FOLDER, known)
    policy = _parse(path, text)
    if policy.name in known:
        raise InputError(
            f"policy file {name} is called like a policy of cutedge, and its tables would be "
            f"taken for those of {policy.name}: rename the file, e.g. my-{path.name}"
        )
    return policy


@cache
def _shipped(name: str) -> Policy:
    """A policy that comes with cutedge: read once, since a split asks for most of them."""
    return _parse(*find_toml(name, "policy", _FOLDER, [name]))


def _parse(path: Path, text: str) -> Policy:
    table = read_toml(path, text)
    check_keys(
        table,
        str(path),
        required=("description", "default"),
        optional=("objective", "cut", "rule", "secret", "pack", "protect"),
    )
    policy = Policy(
        name=path.stem,
        description=text_of(table, "description", str(path)),
        default=_place(table["default"], f"{path}: default"),
        rules=tuple(
            _rule(rule, f"{path}: rule {n}")
            for n, rule in enumerate(_tables(path, table, "rule"), 1)
        ),
        objective=_objective(table["objective"], path) if "objective" in table else None,
        cut=choice_of(table["cut"], ("anywhere", "layers"), f"{path}: cut")
        if "cut" in table
        else "anywhere",
        secrets=tuple(
            _secret(secret, f"{path}: secret {n}")
            for n, secret in enumerate(_tables(path, table, "secret"), 1)
        ),
        packs=tuple(
            read_pack(pack, f"{path}: pack {n}")
            for n, pack in enumerate(_tables(path, table, "pack"), 1)
        ),
        protects=tuple(
            read_protect(protect, f"{path}: protect {n}")
            for n, protect in enumerate(_tables(path, table, "protect"), 1)
        ),
    )
    free = "free" in (policy.default, *(rule.place for rule in policy.rules))
    if free and policy.objective is None:
        raise InputError(f"{path}: what is free needs an objective: {' or '.join(UNITS)}")
    if policy.objective is not None and not free:
        raise InputError(f"{path}: an objective is of no use where nothing is free")
    if policy.cut == "layers" and policy.protects:
        raise InputError(
            f'{path}: cut = "layers" leaves home nothing to do behind the cut, and masks are made '
            "there: leave out cut, or [[protect]]"
        )
    return policy


def _tables(path: Path, table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tables = table.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InputError(f"{path}: {key}s are written as [[{key}]] tables")
    return tables


def _objective(entry: Any, path: Path) -> dict[str, float]:
    where = f"{path}: objective"
    if not isinstance(entry, dict):
        return {choice_of(entry, UNITS, where): 1}
    check_keys(entry, where, optional=UNITS)
    for unit, weight in entry.items():
        if type(weight) not in (int, float) or not 0 < weight < 1e15:
            raise InputError(f"{where}: the weight of {unit} must be a number above 0")
    if not entry:
        raise InputError(f"{where}: give the weight of {' or '.join(UNITS)}")
    return dict(entry)


def with_objective(policy: Policy, objective: str | Mapping[str, float] | None) -> Policy:
    """A policy whose free ops are placed for another objective, by a name that says which; one that
    leaves nothing free stays as it is.

    ``objective`` is one of ``UNITS``, or several with their weights, as text or as a mapping.
    Raises InputError for another one.

    >>> with_objective(load_policy("min-cut"), "seconds=1,energy=0.5").name
    'min-cut+seconds=1,energy=0.5'
    """
    if objective is None or policy.objective is None:
        return policy
    where, entry = Path("--objective"), objective
    if isinstance(objective, str) and "=" in objective:
        pairs = [pair.partition("=") for pair in objective.split(",")]
        try:
            entry = {unit.strip(): float(weight) for unit, _, weight in pairs}
        except ValueError:
            raise InputError(
                f"--objective {objective}: write one of {', '.join(UNITS)}, or so much of each, as in "
                "seconds=1,energy=0.5"
            ) from None
    wanted = _objective(entry, where)
    text = ",".join(f"{unit}={weight:g}" for unit, weight in wanted.items())
    named = next(iter(wanted)) if isinstance(entry, str) else text
    return replace(policy, name=f"{policy.name}+{named}", objective=wanted)


def _secret(table: Mapping[str, Any], where: str) -> Secret:
    optional = ("reason", "optional", "derived", "allow_masked", *OF_SECRETS)
    check_keys(table, where, optional=optional)
    for value in values_of(table, "what", where) if "what" in table else ():
        choice_of(value, [what.value for what in What], f"{where}: what")
    conditions = tensor_conditions(table, where, OF_SECRETS)
    if not conditions:
        raise InputError(f"{where}: no condition; give at least one of {', '.join(OF_SECRETS)}")
    reason = text_of(table, "reason", where) if "reason" in table else ""
    may_match_nothing, derived = (flag_of(table, key, where) for key in ("optional", "derived"))
    allowed = values_of(table, "allow_masked", where) if "allow_masked" in table else ()
    check_allowed(allowed, f"{where}: allow_masked")
    return Secret(conditions, reason, may_match_nothing, derived, tuple(allowed))


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    optional = ("reason", "optional", "weights_at", *OF_OPS)
    check_keys(table, where, required=("place",), optional=optional)
    conditions = op_conditions(table, where)
    return Rule(
        conditions=conditions,
        place=_place(table["place"], f"{where}: place"),
        reason=text_of(table, "reason", where) if "reason" in table else "",
        optional=flag_of(table, "optional", where),
        weights_at=choice_of(table["weights_at"], get_args(WeightsAt), f"{where}: weights_at")  # type: ignore[arg-type]
        if "weights_at" in table
        else None,
    )


def _place(value: Any, where: str) -> str:
    if isinstance(value, str) and re.fullmatch(r"accelerator [1-9]\d{0,3}", value):
        return value
    return choice_of(value, PLACES, where)


def apply_policy(
    graph: OpGraph,
    policy: Policy,
    *,
    home: str,
    accelerators: Sequence[str],
    weights_at: WeightsAt = "device",
) -> Placement:
    """Place every op: inputs and the output at home, the others by the first rule that matches.

    What the policy leaves free is at home, and not pinned there (``partition.optimise`` places it);
    ``accelerator`` is the first of ``accelerators``. Parameters lie where the rule of their op says,
    else ``weights_at``. Raises InputError where the policy speaks of one that is not given.
    """
    if policy.placer is not None:
        there, sent = policy.placer(graph, home, accelerators)
        said = tuple(policy.description for _ in there)
        sent |= streaming(graph, policy, weights_at)
        return Placement(home, tuple(there), tuple(True for _ in there), said, sent)
    device = {
        place: candidates_of(policy, place, home, accelerators)[0]
        for place in (policy.default, *(rule.place for rule in policy.rules))
    }
    devices: list[str | None] = []
    pinned: list[bool] = []
    reasons: list[str] = []
    for op, rule in zip(graph.ops, _rules_of(graph, policy), strict=True):
        if op.is_constant:
            place, fixed, reason = None, True, "constant: computed at load where it is needed"
        elif op.id in graph.state_ops:
            place, fixed, reason = None, True, "cached state: kept where it is read"
        elif op.kind in (Kind.INPUT, Kind.OUTPUT):
            place, fixed, reason = home, True, "inputs and outputs are at home"
        elif rule is not None:
            place, fixed = device[rule.place], rule.place != "free"
            reason = rule.reason or str(rule)
        else:
            place, fixed, reason = device[policy.default], False, "no rule matches: the default"
        devices.append(place)
        pinned.append(fixed)
        reasons.append(reason)
    streams = streaming(graph, policy, weights_at)
    return Placement(home, tuple(devices), tuple(pinned), tuple(reasons), streams)


def streaming(graph: OpGraph, policy: Policy, weights_at: WeightsAt) -> frozenset[int]:
    """The ops whose parameters lie at home, wherever they run; ``weights_at`` is for the others."""
    if weights_at == "device" and all(rule.weights_at is None for rule in policy.rules):
        return frozenset()
    rules, read = _rules_of(graph, policy), parameters_read(graph)
    return frozenset(
        op
        for op, rule in enumerate(rules)
        if read[op] and ((rule and rule.weights_at) or weights_at) == "home"
    )


def allowed_by(
    graph: OpGraph, policy: Policy, home: str, accelerators: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """By op: the devices that a policy with an objective leaves to choose from.

    One where a rule names it, home for inputs and the output, none for constants and cached state.
    """
    return tuple(
        ()
        if graph.is_everywhere(op.id)
        else (home,)
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else candidates_of(policy, rule.place if rule else policy.default, home, accelerators)
        for op, rule in zip(graph.ops, _rules_of(graph, policy), strict=True)
    )


def candidates_of(
    policy: Policy, place: str, home: str, accelerators: Sequence[str]
) -> tuple[str, ...]:
    """The devices that a place of a policy may mean, home first, then as they are given."""
    if place == "home":
        return (home,)
    if place == "free":
        return (home, *accelerators)
    number = int(place.removeprefix("accelerator") or 0)
    if number > len(accelerators):
        raise InputError(
            f"{policy.name} places ops on accelerator {number}, and there are "
            f"{len(accelerators)} ({', '.join(accelerators)}): give another --accel"
        )
    return tuple(accelerators) if number == 0 else (accelerators[number - 1],)


def free_ops(graph: OpGraph, policy: Policy) -> frozenset[int]:
    """The ops that a policy leaves free: by a rule, or as no rule matches and the default is so.

    Constants, cached state, inputs and the output never are.
    """
    return frozenset(
        op.id
        for op, rule in zip(graph.ops, _rules_of(graph, policy), strict=True)
        if (rule.place if rule else policy.default) == "free"
        and op.kind not in (Kind.INPUT, Kind.OUTPUT)
        and not graph.is_everywhere(op.id)
    )


def _rules_of(graph: OpGraph, policy: Policy) -> list[Rule | None]:
    """The first rule that matches each op, None where no rule does."""
    found = patterns_of(graph, [rule.conditions for rule in policy.rules])
    return [
        next((r for r in policy.rules if op_meets(graph, op, r.conditions, found)), None)
        for op in graph.ops
    ]


def secret_tensors(graph: OpGraph, policy: Policy) -> frozenset[int]:
    """The tensors that a policy names as secret; ``partition.secrets`` has all that they cover."""
    return frozenset().union(*(named_by(graph, secret) for secret in policy.secrets))


def with_secrets(graph: OpGraph, policy: Policy, texts: Sequence[str]) -> Policy:
    """A policy with a secret for each text: a label, a sort of ``partition.seen``, or a name."""
    if not texts:
        return policy
    keys = [
        next(
            (k for k in ("label", "what", "name") if _occurs(graph, "tensor", k, (text,))), "label"
        )
        for text in texts
    ]
    more = tuple(Secret(((k, (text,)),), "") for k, text in zip(keys, texts, strict=True))
    name = f"{policy.name}, {' and '.join(texts)} secret"
    return replace(policy, name=name, secrets=(*policy.secrets, *more))


def derived_too(graph: OpGraph, policy: Policy) -> frozenset[int]:
    """Of these the ones of which nothing is to be shown that is made of them, whatever the op."""
    secrets = (secret for secret in policy.secrets if secret.derived)
    return frozenset().union(*(named_by(graph, secret) for secret in secrets))


def named_by(graph: OpGraph, secret: Secret) -> frozenset[int]:
    """The tensors that a secret names: those that meet all of its conditions."""
    return frozenset(t.id for t in graph.tensors if meets(graph, t, secret.conditions))


def idle_rules(graph: OpGraph, policy: Policy) -> list[Rule]:
    """The rules that match no op of a graph."""
    found = patterns_of(graph, [rule.conditions for rule in policy.rules])
    return [
        r
        for r in policy.rules
        if not any(op_meets(graph, op, r.conditions, found) for op in graph.ops)
    ]


def check_matches(graph: OpGraph, policy: Policy) -> None:
    """Raise InputError where a table of a policy matches nothing in a graph and is not optional.

    Who misspelt a secret would take for kept what is not. The error suggests what was meant.
    """
    idle: list[tuple[str, Rule | Protect | Secret]] = [
        (f"rule {n}", rule)
        for n, rule in enumerate(policy.rules, 1)
        if not rule.optional and rule in idle_rules(graph, policy)
    ]
    idle += [
        (f"protect {n}", protect)
        for n, protect in enumerate(policy.protects, 1)
        if not protect.optional and protect in idle_protects(graph, [protect])
    ]
    idle += [
        (f"secret {n}", secret)
        for n, secret in enumerate(policy.secrets, 1)
        if not secret.optional and not named_by(graph, secret)
    ]
    for which, one in idle:
        what = "tensor" if isinstance(one, Secret) else "op"
        known = _known(graph, what)
        alone = [
            f"no {what} has {key} {' or '.join(map(str, values))}."
            + (nearest(map(str, values), known[key]) if key in known else "")
            for key, values in one.conditions
            if not _occurs(graph, what, key, values)
        ]
        raise InputError(
            f"{policy.name}: {which} ({one}) matches nothing in {graph.meta.model}, "
            f"{graph.meta.phase}: "
            + (" ".join(alone) or f"no {what} meets all of it together.")
            + _WELL
        )
    idle_here = idle_packs(graph, policy.packs)
    for n, pack in enumerate(policy.packs, 1):
        if pack in idle_here and not pack.optional:
            raise InputError(
                f"{policy.name}: pack {n} ({pack}) packs nothing in {graph.meta.model}, "
                f"{graph.meta.phase}: {why_idle(graph, pack)}{_WELL}"
            )


_WELL = " Where that is as it should be, give it optional = true"


def _occurs(graph: OpGraph, what: str, key: str, values: tuple[Any, ...]) -> bool:
    """Whether anything in a graph meets a condition by itself."""
    if what == "tensor":
        return bool(named_by(graph, Secret(((key, values),), "")))
    alone = ((key, values),)
    found = {name: PATTERNS[name](graph) for name in values} if key == "pattern" else {}
    return any(op_meets(graph, op, alone, found) for op in graph.ops)


def _known(graph: OpGraph, what: str) -> dict[str, list[str]]:
    """Condition -> what it could be held against, each once, in the order of the graph."""
    if what == "tensor":
        return texts_of(graph, OF_SECRETS)
    return {
        "kind": list(dict.fromkeys(op.kind.value for op in graph.ops)),
        **{
            key: list(dict.fromkeys(text for op in graph.ops for text in texts(graph, op)))
            for key, texts in OP_TEXTS.items()
        },
    }


def cautions(graph: OpGraph, policy: Policy) -> list[str]:
    """What to know before reading a policy's figures for a graph: what of it matches nothing."""
    idle = idle_rules(graph, policy)
    if policy.name in policy_names():
        if any(("pattern", ("attention-core",)) in rule.conditions for rule in idle):
            return ["found no attention in this trace, so it is the same as offload-linear"]
        return []  # the other rules of cutedge's own policies are for some models only
    known = _known(graph, "tensor")
    return [f"no op matches the rule {rule}" for rule in idle] + [
        f"no tensor has the secret {key} {value}.{nearest([value], known[key])}"
        for secret in policy.secrets
        for key, values in secret.conditions
        for value in values
        if not _occurs(graph, "tensor", key, (value,))
    ]
