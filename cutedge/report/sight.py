"""What each accelerator sees of each sort of tensor, with what shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cutedge.report.figures import Missing
from partition.accounting import Transfer
from partition.masks import MaskedGraph
from partition.seen import How, Seen, What, seen, what_is
from partition.split import Split
from tracer.summary import tensor_names
from tracer.words import counted, human


@dataclass(frozen=True, slots=True)
class SightCell:
    """One sort of tensor on one device."""

    how: str
    """A value of ``partition.seen.How``."""
    word: str
    text: str
    """How many there are, and the first transfer, op or attack that shows one; empty for nothing."""


@dataclass(frozen=True, slots=True)
class SightRow:
    """One sort of tensor."""

    what: str
    cells: Sequence[SightCell]
    """By device."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Sorts of tensor by accelerator."""

    devices: Sequence[str]
    """Accelerators; behind the name of one that is trusted that it is."""
    rows: Sequence[SightRow]


def sight(partition: Split, untrusted: Sequence[str]) -> Sight | Missing:
    """What accelerators see under a policy, trusted ones too: these see it as well."""
    devices = partition.placement.accelerators
    if not devices:
        return Missing(
            f"Nothing leaves {partition.placement.home}: no accelerator sees a tensor under this "
            "policy."
        )
    found = {(s.device, s.what): s for each in partition.exposed for s in each.seen}
    trusted = [device for device in devices if device not in untrusted]
    if trusted:
        told = seen(partition.graph, partition.placement, partition.traffic, trusted)
        found |= {(one.device, one.what): one for one in told}
    first = _first_transfers(partition)
    names = [f"{device} (trusted)" if device in trusted else device for device in devices]
    return Sight(
        names,
        [
            SightRow(
                what.words, [_cell(partition, found[device, what], first) for device in devices]
            )
            for what in What
            if all((device, what) in found for device in devices)
        ],
    )


def _first_transfers(partition: Split) -> Mapping[tuple[str, What, bool], Transfer]:
    """(device, sort of tensor, whether masked) -> the first transfer of one."""
    sorts = what_is(partition.graph)
    graph = partition.graph
    masks = graph.masks if isinstance(graph, MaskedGraph) else {}
    found: dict[tuple[str, What, bool], Transfer] = {}
    for t in partition.traffic.transfers:
        if (what := sorts[t.tensor.id]) is not None:
            found.setdefault((t.dst_device, what, t.tensor.id in masks), t)
    return found


def _cell(
    partition: Split, one: Seen, first: Mapping[tuple[str, What, bool], Transfer]
) -> SightCell:
    parts = [
        f"{number:,} {how}"
        for number, how in ((one.sent, "sent"), (one.made, "computed"), (one.kept, "kept"))
        if number
    ]
    text = f"{', '.join(parts)}: {human(one.bytes)}" if parts else ""
    shown = first.get((one.device, one.what, one.how is How.MASKED))
    if one.how is How.RECOVERABLE:
        text = f"{one.example}" if one.example else text
    elif one.sent and shown is not None:
        name = tensor_names(partition.graph)[shown.tensor.id]
        call = partition.traffic.calls[shown.call]
        text += (
            f"; first {name}, {human(shown.payload_bytes)} with call "
            f"{shown.call + 1:,} of {counted(len(partition.traffic.calls), 'call')} ({call.label})"
        )
    elif one.made:
        text += f"; first {_first_made(partition, one)}"
    return SightCell(one.how.value, one.how.words, text)


def _first_made(partition: Split, one: Seen) -> str:
    """The op that makes the first tensor of a sort on a device."""
    graph, sorts = partition.graph, what_is(partition.graph)
    masks = graph.masks if isinstance(graph, MaskedGraph) else {}
    return next(
        (
            op.name
            for op in graph.ops
            if partition.placement.devices[op.id] == one.device and not op.is_view
            for tensor in graph.outputs(op.id)
            if sorts[tensor.id] is one.what and (tensor.id in masks) == (one.how is How.MASKED)
        ),
        "by an op there",
    )
