"""What was measured beside what was predicted, call by call, and the answer beside the model's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from cutedge.runtime import RunError
from cutedge.runtime.draws import Draws
from cutedge.runtime.home import Measured
from cutedge.runtime.interpreter import is_memory
from cutedge.runtime.weights import numbers_of, state_numbers
from cutedge.runtime.wire import Spec
from partition.accounting import Traffic
from tracer.capture.runnable import Runnable
from tracer.graph import FLOATING, Kind, OpGraph, Role
from tracer.stages import stage

_COMPARED = (
    "sent_payload_bytes",
    "sent_wire_bytes",
    "received_payload_bytes",
    "received_wire_bytes",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A run against its prediction. Bytes are of all calls, peer transfers with them."""

    calls_predicted: int
    """Round trips as the placement has them."""
    calls_measured: int
    """Round trips that were made."""
    transfers_predicted: int
    """Tensors that were to cross."""
    transfers_measured: int
    """Tensors that crossed."""
    total_payload_bytes_predicted: int
    """Bytes that were to cross, without framing."""
    total_payload_bytes_measured: int
    """Bytes that crossed, without framing."""
    total_wire_bytes_predicted: int
    """Bytes that were to cross, with framing."""
    total_wire_bytes_measured: int
    """Bytes that crossed the sockets, with framing."""
    unequal: tuple[str, ...]
    """Each transfer that is not as predicted, each tensor that came for no op, and each figure of a
    call that is off, in words."""
    max_abs_difference: float
    """Between the results and the unsplit model's, cached state with them."""
    max_abs_result: float
    """Of the unsplit model's results."""
    largest_differences: tuple[tuple[str, float], ...]
    """(result, its largest difference), the furthest off first."""
    tolerance: float
    """What ``max_abs_difference`` may be; see ``tolerance_of``."""

    @property
    def bytes_equal(self) -> bool:
        """Whether each transfer was as predicted and every call moved its bytes."""
        return not self.unequal

    @property
    def answer_equal(self) -> bool:
        """Whether the results are the unsplit model's, within the tolerance."""
        return self.max_abs_difference <= self.tolerance


@stage("running the unsplit model")
def unsplit(
    graph: OpGraph,
    runnable: Runnable,
    given: Mapping[int, torch.Tensor],
    weights: Mapping[str, Any],
    home: str,
) -> Mapping[int, torch.Tensor]:
    """What the model's own code makes of the inputs, all at home: results and state, by tensor.

    Raises RunError where there is no room for the whole model.
    """
    by_name = {tensor.name: tensor for tensor in graph.tensors if tensor.op is None}
    make = numbers_of(weights)

    def parameter(name: str) -> torch.Tensor:
        return make(name, Spec(by_name[name].dtype, by_name[name].shape))

    whole = {graph.tensors[tensor].name: value for tensor, value in given.items()}
    for op in graph.ops:
        for tensor in graph.outputs(op.id):
            if op.kind is Kind.INPUT and tensor.role is Role.KV_CACHE:
                spec = Spec(tensor.dtype, tensor.shape)
                whole[tensor.name] = state_numbers(tensor.name, spec, weights)
    try:
        with Draws() as drawn:
            made = runnable.unsplit(whole, parameter)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise RunError(
            f"{graph.meta.model} as a whole has no room in {home}'s memory, to compare the answer"
        ) from error
    if drawn.number != runnable.draws:
        raise RunError(
            f"the code of {graph.meta.model} draws random values {drawn.number} times, its trace "
            f"{runnable.draws}: a run of the trace and one of the code cannot be compared"
        )
    return made


def judge(
    graph: OpGraph,
    traffic: Traffic,
    measured: Measured,
    reference: Mapping[int, torch.Tensor],
    counted: Traffic | None = None,
    epsilon: float = 0.0,
) -> Verdict:
    """Set a run beside its prediction, and its answer beside ``reference``, what is ``unsplit``.

    ``counted`` is the prediction with what only a run can say: the bytes of what a ratio stood in
    for. ``epsilon`` is that of the coarsest packing. State that no device has kept is left out.
    """
    last = graph.inputs(len(graph.ops) - 1)
    results = [tensor for tensor in last if tensor.role is not Role.KV_CACHE]
    found = {t.id: made for t, made in zip(results, measured.results, strict=True)}
    found.update(measured.states)
    unequal = [
        *_other_transfers(graph, counted or traffic, measured),
        *_unread(graph, measured),
        *_unequal(counted or traffic, measured),
    ]
    pairs = [
        (tensor.label or tensor.name, found[tensor.id], reference[tensor.id])
        for tensor in dict.fromkeys(last)
        if tensor.id in found
    ]
    apart = [(name, difference(one.cpu(), other)) for name, one, other in pairs]
    sizes = (_wide(other).abs().max() for _, _, other in pairs if other.numel())
    largest = max(map(float, sizes), default=0.0)
    dtypes = [str(other.dtype).removeprefix("torch.") for _, _, other in pairs]
    dtypes += {
        t.wire_dtype
        for t in traffic.transfers
        if t.tensor.op is not None and t.wire_dtype in FLOATING
    }
    totals = traffic.totals
    moved = [
        (
            c.sent_payload_bytes + c.received_payload_bytes + c.peer_payload_bytes,
            c.sent_wire_bytes + c.received_wire_bytes + c.peer_wire_bytes,
        )
        for c in measured.calls
    ]
    return Verdict(
        calls_predicted=len(traffic.calls),
        calls_measured=len(measured.calls),
        transfers_predicted=len(traffic.transfers),
        transfers_measured=len(measured.crossed),
        total_payload_bytes_predicted=totals.payload_bytes,
        total_payload_bytes_measured=sum(payload for payload, _ in moved),
        total_wire_bytes_predicted=totals.wire_bytes,
        total_wire_bytes_measured=sum(wire for _, wire in moved),
        unequal=tuple(unequal),
        max_abs_difference=max((d for _, d in apart), default=0.0),
        max_abs_result=largest,
        largest_differences=tuple(sorted(apart, key=lambda pair: -pair[1])[:3]),
        tolerance=tolerance_of(dtypes, largest, epsilon),
    )


def tolerance_of(dtypes: Sequence[str], largest: float, epsilon: float = 0.0) -> float:
    """What results may be off by: half of the digits of the coarsest of ``dtypes`` must agree, or of
    what has ``epsilon``.

    Sums may be taken in another order on another device; a mistake shows in the first digits.
    """
    floats = [getattr(torch, name) for name in dtypes]
    epsilons = [torch.finfo(dtype).eps for dtype in floats if dtype.is_floating_point]
    return sqrt(max(epsilon, *epsilons, 0.0)) * largest


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest between two tensors of numbers; without end where their shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    apart = (_wide(one) - _wide(other)).abs().max()
    return float(apart) if torch.isfinite(apart) else float("inf")


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _other_transfers(graph: OpGraph, traffic: Traffic, measured: Measured) -> Iterator[str]:
    """Where what crossed is not the transfers that were predicted: which tensor, way and call."""
    calls: dict[tuple[int, str, str], tuple[list[int], list[int]]] = {}
    for t in traffic.transfers:
        key = (t.tensor.id, t.src_device, t.dst_device)
        calls.setdefault(key, ([], []))[0].append(t.call)
    for c in measured.crossed:
        calls.setdefault((c.tensor, c.src, c.dst), ([], []))[1].append(c.call)
    for key, (predicted, found) in sorted(calls.items()):
        if sorted(predicted) != sorted(found):
            yield f"{_way(graph, *key)}: {_in_calls(found)}; predicted: {_in_calls(predicted)}"
    told = {(t.tensor.id, t.src_device, t.dst_device): t for t in traffic.transfers}
    for c in measured.crossed:
        wanted = told.get((c.tensor, c.src, c.dst))
        way = _way(graph, c.tensor, c.src, c.dst)
        if wanted is not None and c.wire_dtype != wanted.wire_dtype:
            yield f"{way}: {c.wire_dtype}; predicted: {wanted.wire_dtype}"
        if wanted is not None and c.payload_bytes != wanted.payload_bytes:
            yield f"{way}: {c.payload_bytes:,} bytes; predicted: {wanted.payload_bytes:,}"


def _unread(graph: OpGraph, measured: Measured) -> Iterator[str]:
    for device, tensors in measured.unread.items():
        for tensor in tensors:
            name = (
                graph.tensors[tensor].name
                if tensor < len(graph.tensors)
                else "what is not a tensor"
            )
            yield f"{name} (tensor {tensor}) came to {device}, and no op there reads it"


def _way(graph: OpGraph, tensor: int, src: str, dst: str) -> str:
    name = graph.tensors[tensor].name if tensor < len(graph.tensors) else "what is not a tensor"
    return f"{name} (tensor {tensor}) from {src} to {dst}"


def _in_calls(calls: Sequence[int]) -> str:
    if not calls:
        return "in no call"
    return f"in call{'s' * (len(calls) > 1)} {', '.join(map(str, sorted(calls)))}"


def _unequal(traffic: Traffic, measured: Measured) -> Iterator[str]:
    if len(traffic.calls) != len(measured.calls):
        yield f"{len(measured.calls)} calls, {len(traffic.calls)} predicted"
        return
    peers: dict[int, list[int]] = {}
    for t in traffic.transfers:
        if t.direction == "peer":
            payload, wire = peers.get(t.call, [0, 0])
            peers[t.call] = [payload + t.payload_bytes, wire + t.wire_bytes]
    for predicted, found in zip(traffic.calls, measured.calls, strict=True):
        wanted: Mapping[str, int] = {
            **{what: getattr(predicted, what) for what in _COMPARED},
            "peer_payload_bytes": peers.get(predicted.id, [0, 0])[0],
            "peer_wire_bytes": peers.get(predicted.id, [0, 0])[1],
        }
        for what, number in wanted.items():
            if getattr(found, what) != number:
                yield (
                    f"call {predicted.id} ({predicted.label}): {what} {getattr(found, what):,}, "
                    f"{number:,} predicted"
                )
