"""Policies: rules as data that place every op of a graph on a device.

A policy file is TOML::

    description = "what it does, in one sentence"
    default = "home"                  # where ops go that no rule matches: home or accelerator

    [[rule]]                          # the first rule that matches an op places it
    kind = ["linear", "matmul"]       # every condition of a rule must hold; a list means any of
    module_path = "model.layers.*"    # target, module_path, module_type, label: shell patterns
    layer = [0, 1]                    # kind, layer: exact
    pattern = "attention-core"        # a shape in the graph, see tracer.patterns.PATTERNS
    place = "accelerator"
    reason = "why"                    # stands in placement.parquet

Graph inputs and outputs are always at home, and constants are on every device that needs them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from partition.placement import Placement
from tracer.errors import InputError, suggest
from tracer.graph import Kind, Op, OpGraph
from tracer.patterns import PATTERNS
from tracer.toml_files import check_keys, read_text, read_toml

PLACES = ("home", "accelerator")

_TEXTS: Mapping[str, Callable[[OpGraph, Op], Sequence[str]]] = {
    "target": lambda graph, op: [op.target],
    "module_path": lambda graph, op: [op.module_path],
    "module_type": lambda graph, op: [op.module_type],
    "label": lambda graph, op: [t.label for t in graph.outputs(op.id) if t.label],
}
"""Conditions that are shell patterns, with the texts of an op that they are held against."""

CONDITIONS = ("kind", *_TEXTS, "layer", "pattern")


@dataclass(frozen=True, slots=True)
class Rule:
    """Ops that meet every condition go to one place."""

    conditions: tuple[tuple[str, tuple[Any, ...]], ...]
    """(condition, the values of which any may hold)."""
    place: str
    """``home`` or ``accelerator``."""
    reason: str
    """Why, in the user's words; may be empty."""

    def __str__(self) -> str:
        return ", ".join(f"{k} = {'|'.join(map(str, values))}" for k, values in self.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named list of rules."""

    name: str
    """The file's name without ``.toml``."""
    description: str
    """What it does, in one sentence."""
    default: str
    """``home`` or ``accelerator``: where ops go that no rule matches."""
    rules: tuple[Rule, ...]
    """The first that matches an op places it."""


def policy_names() -> list[str]:
    """The policies that come with cutedge, from everything at home to the most fused."""
    order = ["all-home", "offload-linear", "fuse-attention", "flash-attention"]
    found = {Path(entry.name).stem for entry in (files("partition") / "data").iterdir()}
    return sorted(found, key=lambda name: (order.index(name) if name in order else 99, name))


def load_policy(name: str) -> Policy:
    """A policy by its name, or from the path of a TOML file.

    Raises InputError that names the file, the rule and the key.
    """
    known = policy_names()
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        policy = _parse(path, read_text(path, "policy file"))
        if policy.name in known:
            raise InputError(
                f"policy file {name} is called like a policy of cutedge, and its tables would be "
                f"taken for those of {policy.name}: rename the file, e.g. my-{path.name}"
            )
        return policy
    if name not in known:
        raise InputError(
            f"unknown policy {name!r}; known are {', '.join(known)}, or the path of a .toml file."
            + suggest(name, known)
        )
    resource = files("partition") / "data" / f"{name}.toml"
    return _parse(Path(f"{name}.toml"), resource.read_text(encoding="utf-8"))


def _parse(path: Path, text: str) -> Policy:
    table = read_toml(path, text)
    check_keys(table, str(path), required=("description", "default"), optional=("rule",))
    rules = table.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InputError(f"{path}: rules are written as [[rule]] tables")
    return Policy(
        name=path.stem,
        description=_text(table, "description", str(path)),
        default=_choice(table["default"], PLACES, f"{path}: default"),
        rules=tuple(_rule(rule, f"{path}: rule {n}") for n, rule in enumerate(rules, 1)),
    )


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    check_keys(table, where, required=("place",), optional=("reason", *CONDITIONS))
    conditions = []
    for key in CONDITIONS:
        if key not in table:
            continue
        values = table[key] if isinstance(table[key], list) else [table[key]]
        wanted = int if key == "layer" else str
        if not values or any(type(value) is not wanted for value in values):
            noun = "whole number" if key == "layer" else "text"
            raise InputError(f"{where}: {key} must be a {noun} or a list of them")
        if key in ("kind", "pattern"):
            known = [kind.value for kind in Kind] if key == "kind" else list(PATTERNS)
            values = [_choice(value, known, f"{where}: {key}") for value in values]
        conditions.append((key, tuple(values)))
    if not conditions:
        raise InputError(f"{where}: no condition; give at least one of {', '.join(CONDITIONS)}")
    return Rule(
        conditions=tuple(conditions),
        place=_choice(table["place"], PLACES, f"{where}: place"),
        reason=_text(table, "reason", where) if "reason" in table else "",
    )


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(table[key], str):
        raise InputError(f"{where}: {key} must be text")
    return str(table[key])


def _choice(value: Any, known: Sequence[str], where: str) -> str:
    if value not in known:
        raise InputError(
            f"{where}: {value!r} is none of {', '.join(known)}." + suggest(str(value), known)
        )
    return str(value)


def apply_policy(graph: OpGraph, policy: Policy, *, home: str, accelerator: str) -> Placement:
    """Place every op: inputs and the output at home, the others by the first rule that matches."""
    device = {"home": home, "accelerator": accelerator}
    found = {name: find(graph) for name, find in PATTERNS.items() if _speaks_of(policy, name)}
    devices: list[str | None] = []
    pinned: list[bool] = []
    reasons: list[str] = []
    for op in graph.ops:
        rule = next((r for r in policy.rules if _matches(graph, op, r, found)), None)
        if op.is_constant:
            place, fixed, reason = None, True, "constant: computed at load where it is needed"
        elif op.id in graph.state_ops:
            place, fixed, reason = None, True, "cached state: kept where it is read"
        elif op.kind in (Kind.INPUT, Kind.OUTPUT):
            place, fixed, reason = home, True, "inputs and outputs are at home"
        elif rule is not None:
            place, fixed, reason = device[rule.place], True, rule.reason or str(rule)
        else:
            place, fixed, reason = device[policy.default], False, "no rule matches: the default"
        devices.append(place)
        pinned.append(fixed)
        reasons.append(reason)
    return Placement(home, tuple(devices), tuple(pinned), tuple(reasons))


def idle_rules(graph: OpGraph, policy: Policy) -> list[Rule]:
    """The rules that match no op of a graph: legitimate, or a misspelt pattern."""
    found = {name: find(graph) for name, find in PATTERNS.items() if _speaks_of(policy, name)}
    return [r for r in policy.rules if not any(_matches(graph, op, r, found) for op in graph.ops)]


def cautions(graph: OpGraph, policy: Policy) -> list[str]:
    """What to know before reading a policy's figures for a graph: its rules that match nothing."""
    idle = idle_rules(graph, policy)
    if policy.name not in policy_names():
        return [f"no op matches the rule {rule}" for rule in idle]
    if any(("pattern", ("attention-core",)) in rule.conditions for rule in idle):
        return ["found no attention in this trace, so it is the same as offload-linear"]
    return []  # the other rules of cutedge's own policies are for some models only


def _speaks_of(policy: Policy, pattern: str) -> bool:
    return any(
        key == "pattern" and pattern in values
        for rule in policy.rules
        for key, values in rule.conditions
    )


def _matches(graph: OpGraph, op: Op, rule: Rule, found: Mapping[str, set[int]]) -> bool:
    for key, values in rule.conditions:
        if key == "kind":
            holds = op.kind.value in values
        elif key == "layer":
            holds = op.layer in values
        elif key == "pattern":
            holds = any(op.id in found[name] for name in values)
        else:
            texts = _TEXTS[key](graph, op)
            holds = any(fnmatchcase(text, pattern) for text in texts for pattern in values)
        if not holds:
            return False
    return True
