"""Two traces, or two machines, side by side as a page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cutedge._compare import Comparison
from cutedge._machines import machine_words
from cutedge._placing import bottlenecks
from cutedge._report import Written
from cutedge._verdict import limit_sentence, times_of
from cutedge._words import coverage, left_out
from cutedge.report.beside import Beside, Column, beside_page, pairs_of
from cutedge.report.scores import seconds_of
from partition.split import Split
from tracer.errors import CutedgeError, InputError
from tracer.files import write_whole
from tracer.summary import headline
from tracer.words import duration, human


def write_beside(left: Comparison, right: Comparison, page: Path) -> Written:
    """Write two comparisons in two columns; raises as ``made_beside``, and CutedgeError where the
    page cannot be written."""
    made = made_beside(left, right)
    try:
        write_whole(page, beside_page(made).encode())
    except OSError as error:
        raise CutedgeError(f"cannot write {page}: {error.strerror or error}") from error
    order = [made.shown, *range(len(made.policies))]
    return Written(page, (), {made.policies[n]: made.headlines[n] for n in order})


def made_beside(left: Comparison, right: Comparison) -> Beside:
    """Two comparisons beside each other, policy by policy.

    Raises InputError where a run of one is no run of the other, where both are the same, and where
    they have no policy in common.
    """
    metas = [one.trace.graph.meta for one in (left, right)]
    phases = [meta.phase for meta in metas]
    if phases[0] != phases[1]:
        raise InputError(
            f"--beside: one is {phases[0]}, the other {phases[1]}, and a run of one is no run of the "
            "other. Trace both in one phase; cutedge generate has both phases together"
        )
    if left.trace.id == right.trace.id and _machine(left) == _machine(right):
        raise InputError(
            "--beside: both are the same trace on the same machine: name another directory or machine"
        )
    common = [name for name in left.compared.names if name in right.compared.names]
    if not common:
        raise InputError(
            f"--beside: no policy is possible in both: {', '.join(left.compared.names)} in one, "
            f"{', '.join(right.compared.names)} in the other"
        )
    labels = _labels(left, right)
    columns = [
        _column(one, label, common) for one, label in zip((left, right), labels, strict=True)
    ]
    splits = [(_split(left, name), _split(right, name)) for name in common]
    first = left.compared.names[left.shown]
    return Beside(
        [one.policy for one, _ in splits],
        (columns[0], columns[1]),
        [pairs_of(one, other) for one, other in splits],
        [_headline(one, other, labels) for one, other in splits],
        common.index(first) if first in common else 0,
        [*_notes(left, right, labels)],
    )


def _split(compared: Comparison, name: str) -> Split:
    found = compared.compared
    return found.partitions[found.names.index(name)]


def _machine(compared: Comparison) -> str:
    return " ".join(machine_words(compared.compared.setting.machine))


def _labels(left: Comparison, right: Comparison) -> tuple[str, str]:
    """What tells each from the other: model, sizes, options of the trace, devices and links."""
    found: list[list[str]] = [[], []]
    metas = [one.trace.graph.meta for one in (left, right)]
    for field, shown in (
        ("model", "{}"),
        *((size, size + " {:,}") for size in ("batch", "seq", "past", "source")),
        *((name, "{}") for name in ("dtype", "attn", "logits", "weights", "kv_dtype")),
        ("overrides", "{}"),
    ):
        values = [getattr(meta, field) for meta in metas]
        if values[0] != values[1]:
            for told, value in zip(found, values, strict=True):
                text = ", ".join("=".join(one) for one in value) if field == "overrides" else value
                told.append(shown.format(text or "as published"))
    machines = [one.compared.setting.machine for one in (left, right)]
    if machines[0].devices != machines[1].devices or machines[0].links != machines[1].links:
        for told, machine in zip(found, machines, strict=True):
            told.append(f"{'+'.join(machine.devices)}@{machine.links.name}")
    elif _machine(left) != _machine(right):
        for told, one in zip(found, (left, right), strict=True):
            told.append(_machine(one))
    if not found[0]:
        found = [[f"trace {one.trace.id[:8]}"] for one in (left, right)]
    return ", ".join(found[0]), ", ".join(found[1])


def _column(compared: Comparison, label: str, common: Sequence[str]) -> Column:
    found = compared.compared
    numbers = [found.names.index(name) for name in common]
    fewer = replace(
        found,
        names=tuple(common),
        partitions=tuple(found.partitions[n] for n in numbers),
        policies=tuple(found.policies[n] for n in numbers),
    )
    worst = bottlenecks(fewer.partitions, fewer.setting, fewer.policies)
    limits = [
        limit_sentence(one, times, heaviest)
        for one, times, heaviest in zip(fewer.partitions, times_of(fewer), worst, strict=True)
    ]
    machine = found.setting.machine
    of = (
        f"{headline(compared.trace.graph.meta)}; {machine.home} calls "
        f"{' and '.join(machine.accelerators)} over {machine.links.name}"
    )
    return Column(label, of, limits)


def _headline(left: Split, right: Split, labels: tuple[str, str]) -> str:
    """What a run takes in each: seconds where both are known, else bytes."""
    one, other = seconds_of(left), seconds_of(right)
    if one is None or other is None:
        sizes = [split.traffic.totals.payload_bytes for split in (left, right)]
        return (
            f"Under {left.policy} {human(sizes[0])} cross with {labels[0]}, {human(sizes[1])} with "
            f"{labels[1]}{_ratio(sizes[0], sizes[1], 'moves', 'much')}"
        )
    least = ["at least " * bool(split.left_out) for split in (left, right)]
    verb = "takes, as far as that is known," if any(least) else "takes"
    return (
        f"Under {left.policy} a run takes {least[0]}{duration(one)} with {labels[0]}, "
        f"{least[1]}{duration(other)} with {labels[1]}{_ratio(one, other, verb, 'long')}"
    )


def _ratio(one: float, other: float, verb: str, how: str) -> str:
    if one == other or not one or not other:
        return "."
    which, ratio = ("second", other / one) if other > one else ("first", one / other)
    return f": the {which} {verb} {ratio:,.3g} times as {how}."


def _notes(left: Comparison, right: Comparison, labels: tuple[str, str]) -> list[str]:
    tokens = [one.compared.baseline.tokens for one in (left, right)]
    notes = []
    if tokens[0] != tokens[1]:
        notes.append(
            f"A run is of {tokens[0]:,} tokens in {labels[0]} and of {tokens[1]:,} in {labels[1]}: "
            "divide by these for a token's share."
        )
    for one, label in zip((left, right), labels, strict=True):
        found = one.compared
        notes.append(f"{label}: {coverage(one.trace.graph)}")
        notes += [f"{label}: {text}" for text in left_out(found.partitions)]
        notes += [f"{label}: without {name}: {why}" for name, why in found.without.items()]
    return notes
