"""What a policy's ``[[pack]]`` tables say of tensors that cross, and the wire format that follows.

::

    [[pack]]                          # the first one that names a tensor, and can pack it, does
    what = "hidden_states"            # label, name, module_path, stack, what, kind (of the op that
                                      # makes it), dtype: shell patterns; layer: exact; all must hold
    at_least_bytes = 65536            # its own bytes, in its own dtype
    packing = "q8_0"                  # a packing's name, a .toml file, plain, or best (also
                                      # "best,q8_0"): by what is fastest on the link
    reason = "why"
    optional = true

A ``[[pack]]`` goes before what is asked for of all tensors (``--pack``). One that matches nothing
that its packing can pack is an error, but for an optional one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from costmodels.links import Links
from costmodels.machine import Machine
from costmodels.packing import BEST, SizedPacking, packings_of
from partition.conditions import (
    OF_TENSORS,
    Conditions,
    choice_of,
    flag_of,
    meets,
    nearest,
    tensor_conditions,
    text_of,
    texts_of,
    values_of,
)
from partition.masks import MaskedGraph
from partition.seen import What
from partition.wire_format import WireFormat
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph, Tensor
from tracer.kinds import base_name
from tracer.summary import cached_inputs
from tracer.toml_files import check_keys

_CHOICES: Mapping[str, list[str]] = {
    "what": [what.value for what in What],
    "kind": [kind.value for kind in Kind],
}


_WHOLE = ("int64", "int32", "int16", "uint8", "int8")


@dataclass(frozen=True, slots=True)
class Pack:
    """Tensors that meet every condition cross packed."""

    conditions: Conditions
    sized: SizedPacking
    """How, and from how many bytes on."""
    reason: str
    """Why, in the user's words; may be empty."""
    optional: bool = False
    """Whether it may match nothing."""

    def __str__(self) -> str:
        told = [f"{key} = {'|'.join(values)}" for key, values in self.conditions]
        least = self.sized.at_least_bytes
        told += [f"at_least_bytes = {least}"] if least else []
        return ", ".join(told)


def read_pack(table: Mapping[str, Any], where: str) -> Pack:
    """A ``[[pack]]`` of a policy's file. Raises InputError that begins with ``where``."""
    keys = ("at_least_bytes", "reason", "optional", *OF_TENSORS)
    check_keys(table, where, required=("packing",), optional=keys)
    for key, known in _CHOICES.items():
        for value in values_of(table, key, where) if key in table else ():
            choice_of(value, known, f"{where}: {key}")
    least = table.get("at_least_bytes", 0)
    if type(least) is not int or least < 0:
        raise InputError(f"{where}: at_least_bytes must be a whole number, 0 or more")
    conditions = tensor_conditions(table, where, OF_TENSORS)
    if not conditions and "at_least_bytes" not in table:
        raise InputError(
            f"{where}: no condition; give at least one of at_least_bytes, {', '.join(OF_TENSORS)}"
        )
    try:
        packings, told = packings_of(text_of(table, "packing", where))
    except InputError as error:
        raise InputError(f"{where}: packing: {error}") from error
    reason = text_of(table, "reason", where) if "reason" in table else ""
    sized = SizedPacking(packings, least, told)
    return Pack(conditions, sized, reason, flag_of(table, "optional", where))


def check_choice(packings: Iterable[SizedPacking], links: Links, where: str) -> None:
    """Raise InputError, beginning with ``where``, for a choice by the seconds of a link that has
    none, or of several links."""
    if not any(len(one.packings) > 1 for one in packings):
        return
    if links.own or links.peers:
        raise InputError(
            f"{where} {BEST} chooses by the seconds of one link, and here are {links.name}: name a "
            "packing"
        )
    if not all(map(links.common.timed, ("send", "receive"))):
        raise InputError(
            f"{where} {BEST} chooses by seconds, and the link {links.common.name} has no bandwidth: "
            "name a packing, or another link"
        )


def wire_format(graph: OpGraph, packs: Sequence[Pack], machine: Machine) -> WireFormat:
    """What tensors are on the wire by a policy's tables, and by what is asked for of all.

    It holds at all sizes of the graph.
    """
    if not packs and not machine.pack:
        return WireFormat(machine.wire_dtype)
    check_choice([one.sized for one in packs], machine.links, "[[pack]] packing =")
    found: dict[int, tuple[SizedPacking, ...]] = {}
    for tensor in (*_crossing(graph), *cached_inputs(graph)):  # state moves between two runs
        packings = [one.sized for one in packs if meets(graph, tensor, one.conditions)]
        if packings or machine.pack:
            found[tensor.id] = (*packings, *machine.pack)
    text = "+".join(one.text for one in machine.pack)
    every = *(one.sized for one in packs), *machine.pack
    several = any(len(sized.packings) > 1 for sized in every)
    link = machine.links.common if several else None
    return WireFormat(machine.wire_dtype, found, whole_numbers(graph), text, link)


def whole_numbers(graph: OpGraph) -> dict[int, int]:
    """Tensor -> its elements are 0 or more and below this: what looks rows of a table up."""
    found: dict[int, int] = {}
    for op in graph.ops:
        reads = graph.inputs(op.id)
        if base_name(op.target) != "embedding" or len(reads) < 2:
            continue
        table, ids = reads[:2]
        if len(table.shape) != 2 or ids.dtype not in _WHOLE:
            continue
        for tensor in (ids, graph.storage(ids)):
            if tensor.numel == ids.numel and tensor.dtype == ids.dtype:
                found[tensor.id] = min(found.get(tensor.id, table.shape[0]), table.shape[0])
    return found


def idle_packs(graph: OpGraph, packs: Sequence[Pack]) -> list[Pack]:
    """Those that match no tensor that they can pack."""
    values = whole_numbers(graph) if packs else {}
    return [
        one
        for one in packs
        if not any(
            _names(graph, tensor, one) and packing.packs(tensor.dtype, values.get(tensor.id))
            for tensor in _crossing(graph)
            for packing in one.sized.packings
        )
    ]


def why_idle(graph: OpGraph, pack: Pack) -> str:
    """Why a ``[[pack]]`` packs nothing, with what may have been meant."""
    named = [t for t in _crossing(graph) if meets(graph, t, pack.conditions)]
    if named:
        large = [t for t in named if t.bytes >= pack.sized.at_least_bytes]
        if not large:
            most = max(t.bytes for t in named)
            return f"the largest that meets the conditions has {most:,} bytes."
        dtypes = ", ".join(dict.fromkeys(t.dtype for t in large))
        return f"packing {pack.sized.text} leaves {dtypes} as it is."
    known = texts_of(graph, (key for key, _ in pack.conditions))
    alone = [
        f"no tensor has {key} {' or '.join(values)}." + nearest(values, known[key])
        for key, values in pack.conditions
        if not any(meets(graph, t, ((key, values),)) for t in _crossing(graph))
    ]
    return " ".join(alone) or "no tensor meets all of it together."


def _crossing(graph: OpGraph) -> Iterable[Tensor]:
    """What may cross packed: parameters go as they are stored, what is masked as its mask left it."""
    masks = graph.masks if isinstance(graph, MaskedGraph) else ()
    return (t for t in graph.tensors if graph.crosses(t) and t.id not in masks)


def _names(graph: OpGraph, tensor: Tensor, pack: Pack) -> bool:
    return tensor.bytes >= pack.sized.at_least_bytes and meets(graph, tensor, pack.conditions)
