"""Random policies: rules of kinds, modules, layers, labels and targets, and where they put each op.

A policy's own words are read here a second time: "the first rule that matches an op places it", and
every condition of a rule must hold. Only exact conditions are drawn, so that no pattern language
stands between a rule and its ops.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.audit.accounting import Trace

CONDITIONS: Mapping[str, Callable[[Trace, int], Sequence[Any]]] = {
    "kind": lambda trace, op: [trace.ops[op]["kind"]],
    "target": lambda trace, op: [trace.ops[op]["target"]],
    "module_path": lambda trace, op: [trace.ops[op]["module_path"]],
    "module_type": lambda trace, op: [trace.ops[op]["module_type"]],
    "layer": lambda trace, op: [trace.ops[op]["layer"]],
    "label": lambda trace, op: [trace.tensors[t]["label"] for t in trace.made_by[op]],
}
"""Condition -> what an op has there."""

Rule = tuple[Mapping[str, Sequence[Any]], str]
"""Conditions, each with the values of which one must hold; and the place."""


def placeable(trace: Trace) -> list[int]:
    """The ops whose device is a policy's choice: no inputs, outputs, constants or cached state."""
    return [
        op
        for op, row in trace.ops.items()
        if not row["is_constant"]
        and op not in trace.state.ops
        and row["kind"] not in ("input", "output")
    ]


def random_policy(trace: Trace, seed: int, accelerators: int) -> tuple[str, list[Rule]]:
    """A default place and two to six rules, each of which matches an op of the trace."""
    drawn = random.Random(f"{seed} {trace.about['trace_id']}")
    places = ["home", "accelerator", "accelerator 2"][: accelerators + 1]
    ops = placeable(trace)
    rules: list[Rule] = []
    for _ in range(drawn.randint(2, 6)):
        like = drawn.choice(ops)
        conditions = {}
        for name in drawn.sample(sorted(CONDITIONS), drawn.choice([1, 1, 1, 2])):
            values = [v for v in CONDITIONS[name](trace, like) if v not in (None, "")]
            if values:
                others = CONDITIONS[name](trace, drawn.choice(ops))[: drawn.choice([0, 1])]
                values = [*values[:1], *(v for v in others if v not in (None, ""))]
                conditions[name] = list(dict.fromkeys(values))
        if conditions:
            rules.append((conditions, drawn.choice(places)))
    return drawn.choice(places), rules


def random_weights(trace: Trace, seed: int, rules: Sequence[Rule]) -> list[str | None]:
    """By rule, where the parameters of its ops lie; None where it does not say."""
    drawn = random.Random(f"weights {seed} {trace.about['trace_id']}")
    return [drawn.choice([None, "home", "home", "device"]) for _ in rules]


def as_toml(
    default: str, rules: Sequence[Rule], weights_at: Sequence[str | None] | None = None
) -> str:
    """The policy's file."""
    text = f'description = "Drawn at random"\ndefault = "{default}"\n'
    for (conditions, place), at in zip(rules, weights_at or [None] * len(rules), strict=True):
        text += "\n[[rule]]\n" + (f'weights_at = "{at}"\n' if at else "")
        for name, values in conditions.items():
            text += f"{name} = {list(values)!r}\n"
        text += f'place = "{place}"\n'
    return text


def first_rule(trace: Trace, rules: Sequence[Rule], op: int) -> int | None:
    """The rule that places an op; None where the default does."""
    matching = (
        number
        for number, (conditions, _) in enumerate(rules)
        if all(
            set(CONDITIONS[name](trace, op)) & set(values) for name, values in conditions.items()
        )
    )
    return next(matching, None)


def at_home(trace: Trace, rules: Sequence[Rule], weights_at: Sequence[str | None]) -> set[int]:
    """The ops whose parameters lie at home: those of whose rules the first that matches says so."""
    found = set()
    for op in trace.ops:
        number = first_rule(trace, rules, op)
        if number is not None and weights_at[number] == "home":
            found.add(op)
    return found


def places_of(
    trace: Trace, default: str, rules: Sequence[Rule], home: str, accelerators: Sequence[str]
) -> dict[int, str | None]:
    """Op -> its device.

    Rule 3: "Graph inputs start at home; graph outputs end at home." Rules 2 and 9: constants and
    cached state are on no one device.
    """
    devices = {"home": home, "accelerator": accelerators[0]}
    devices |= {f"accelerator {i}": name for i, name in enumerate(accelerators, 1)}
    free = set(placeable(trace))
    placed: dict[int, str | None] = {}
    for op, row in trace.ops.items():
        if op in free:
            number = first_rule(trace, rules, op)
            placed[op] = devices[default if number is None else rules[number][1]]
        else:
            is_state = row["is_constant"] or op in trace.state.ops
            placed[op] = None if is_state else home
    return placed
