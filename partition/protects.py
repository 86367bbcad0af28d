"""What a policy's ``[[protect]]`` tables say: which ops run masked where they are away, and how.

::

    [[protect]]                       # the first one that names an op protects it
    kind = "linear"                   # the conditions of a rule: kind, target, label, module_path,
                                      # module_type, stack, layer, pattern
    scheme = "one-time-pad"           # a name of partition.schemes
    pads = "offline"                  # of one-time pads: made before the run, or "online"
    scale = 16                        # of float pads: how many times as wide as what they hide
    bits = 32                         # of one-time-pad-mod: integers mod 2^32, or 2^64
    axis = "tokens"                   # of permutation, or "channels"
    check = "freivalds"               # home checks each result, beside any scheme
    trials = 1                        # random vectors of a check
    reason = "why"
    optional = true                   # no error where it matches nothing

Where ops go the rules say: a protected op is at home, or away and masked. A single row of a scheme
that hides nothing there (``rank-one``) is away as it is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from partition.conditions import (
    OF_OPS,
    OpConditions,
    choice_of,
    flag_of,
    op_conditions,
    op_meets,
    patterns_of,
    text_of,
)
from partition.masking import hides, rows_to_hide, why_not
from partition.schemes import NAMES, SCHEMES, Operands, Protection
from tracer.errors import InputError
from tracer.formula import Formula
from tracer.graph import Kind, OpGraph
from tracer.toml_files import check_keys


@dataclass(frozen=True, slots=True)
class Protect:
    """Ops that meet every condition run masked where they are away."""

    conditions: OpConditions
    protection: Protection
    reason: str
    """Why, in the user's words; may be empty."""
    optional: bool = False
    """Whether it may match nothing."""

    def __str__(self) -> str:
        return ", ".join(f"{k} = {'|'.join(map(str, values))}" for k, values in self.conditions)


_ONLY_OF: Mapping[str, tuple[str, ...]] = {
    "pads": ("one-time-pad", "one-time-pad-mod"),
    "scale": ("one-time-pad",),
    "bits": ("one-time-pad-mod",),
    "axis": ("permutation",),
}
"""Keys that some schemes alone have."""


def read_protect(table: Mapping[str, Any], where: str) -> Protect:
    """A ``[[protect]]`` of a policy's file. Raises InputError that begins with ``where``."""
    keys = ("reason", "optional", "check", "trials", *_ONLY_OF, *OF_OPS)
    check_keys(table, where, required=("scheme",), optional=keys)
    scheme = choice_of(table["scheme"], NAMES, f"{where}: scheme")
    for key, schemes in _ONLY_OF.items():
        if key in table and scheme not in schemes:
            raise InputError(f"{where}: {key} is of {' and '.join(schemes)}, not of {scheme}")
    chosen: dict[str, Any] = {"scheme": scheme}
    for key, known in (
        ("pads", ("offline", "online")),
        ("axis", ("tokens", "channels")),
        ("check", ("freivalds",)),
    ):
        if key in table:
            chosen[key] = choice_of(table[key], known, f"{where}: {key}")
    if "check" in chosen and scheme == "freivalds":
        raise InputError(f"{where}: check is of the other schemes: freivalds checks by itself")
    if "scale" in table:
        scale = table["scale"]
        if type(scale) not in (int, float) or not 0 < scale < 1e9:
            raise InputError(f"{where}: scale must be a number above 0, and below 1e9")
        chosen["scale"] = float(scale)
    if "bits" in table:
        if table["bits"] not in (32, 64):
            raise InputError(f"{where}: bits must be 32 or 64")
        chosen["bits"] = table["bits"]
    if "trials" in table:
        trials = table["trials"]
        if type(trials) is not int or not 0 < trials <= 1000:
            raise InputError(f"{where}: trials must be a whole number from 1 to 1000")
        chosen["trials"] = trials
    protection = Protection(**chosen)
    if "trials" in table and not protection.checks:
        raise InputError(f'{where}: trials are of a check: say check = "freivalds" too')
    reason = text_of(table, "reason", where) if "reason" in table else ""
    conditions = op_conditions(table, where)
    return Protect(conditions, protection, reason, flag_of(table, "optional", where))


def protections(
    graph: OpGraph, protects: Sequence[Protect], away: Collection[int]
) -> dict[int, Protection]:
    """Op that may be ``away`` -> how it is protected there, by the first table that names it.

    Without ops of which the scheme hides nothing. Raises InputError where a scheme is not for an
    op.
    """
    found: dict[int, Protection] = {}
    for number, one in named(graph, protects).items():
        op = graph.ops[number]
        if number not in away:
            continue
        if why := why_not(graph, op, one.protection):
            raise InputError(
                f"protect {protects.index(one) + 1} ({one}): {why}. Place it at home by a rule, or "
                "have the conditions of the protect leave it out"
            )
        if hides(graph, op, one.protection):
            found[number] = one.protection
    return found


def named(graph: OpGraph, protects: Sequence[Protect]) -> dict[int, Protect]:
    """Op -> the first table that names it; inputs, the output and constants are no ops of this."""
    if not protects:
        return {}
    patterns = patterns_of(graph, [one.conditions for one in protects])
    found: dict[int, Protect] = {}
    for op in graph.ops:
        if op.kind in (Kind.INPUT, Kind.OUTPUT) or graph.is_everywhere(op.id):
            continue
        for one in protects:
            if op_meets(graph, op, one.conditions, patterns):
                found[op.id] = one
                break
    return found


def unhidden(graph: OpGraph, protects: Sequence[Protect]) -> dict[int, Protection]:
    """Op -> the scheme that names it and hides nothing there: away it is as it is."""
    return {
        op: one.protection
        for op, one in named(graph, protects).items()
        if why_not(graph, graph.ops[op], one.protection) is None
        and not hides(graph, graph.ops[op], one.protection)
    }


def rows_that_hide(graph: OpGraph, protects: Sequence[Protect]) -> set[tuple[Formula, int]]:
    """(the rows that a protected op masks, how many of them hide anything), where one does not.

    At sizes on the same side of all these numbers the same ops are masked.
    """
    found = {
        rows_to_hide(graph, graph.ops[op], one.protection)
        for op, one in named(graph, protects).items()
        if why_not(graph, graph.ops[op], one.protection) is None
    }
    return {(rows, least) for rows, least in found if least > 1}


def idle_protects(graph: OpGraph, protects: Sequence[Protect]) -> list[Protect]:
    """Those that name no op."""
    return [one for one in protects if not named(graph, [one])]


def check_allowed(schemes: Sequence[str], where: str) -> None:
    """Raise InputError for a scheme that no secret can rest on."""
    for name in schemes:
        choice_of(name, NAMES, where)
        known = [SCHEMES[name, each] for each in get_args(Operands) if (name, each) in SCHEMES]
        if not any(scheme.withstands for scheme in known):
            able = dict.fromkeys(one.name for one in SCHEMES.values() if one.withstands)
            raise InputError(
                f"{where}: {name} is not known to withstand anything that a secret could rest on; "
                f"{', '.join(able)} is"
            )
