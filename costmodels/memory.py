"""What a graph needs of one device's memory when all of it runs there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tracer.graph import ITEM_BYTES, Kind, OpGraph, Role
from tracer.summary import cached_inputs, cached_outputs, kept_state, renewals, state_memory


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that must lie on a device, each storage once."""

    resident_bytes: int
    """Parameters and buffers, also those that constants are computed from, constants, and cached
    state as it is when the step is over: there during the whole run. State grows in place, so it
    is counted once; of a sliding window the rows that are kept."""
    live_activation_bytes: int
    """What lies there at the worst moment besides, where each tensor is freed as soon as its last
    reader has run: the least that ops need which run one after another in the graph's order."""
    peak_activation_bytes: int
    """At most so much lies there besides when PyTorch runs the model's own code (eagerly)."""

    @property
    def live_bytes(self) -> int:
        """Resident and live: what does not fit into less."""
        return self.resident_bytes + self.live_activation_bytes

    @property
    def peak_bytes(self) -> int:
        """Resident and at the peak: what fits into that for certain."""
        return self.resident_bytes + self.peak_activation_bytes


def fits(need: MemoryNeed, size: int | None) -> bool | None:
    """Whether a memory of so many bytes holds what a graph needs: certainly at its peak.

    None where it is not known: the size, or whether tensors are freed early enough for what lies
    between live and peak.
    """
    if size is None or need.live_bytes <= size < need.peak_bytes:
        return None
    return need.peak_bytes <= size


@lru_cache(maxsize=2)
def memory_need(graph: OpGraph) -> MemoryNeed:
    """What running the whole graph on one device needs of its memory.

    The peak is an upper bound. PyTorch frees a tensor when the last Python name of it goes, which
    the graph does not show; at the latest

    - the block that made it has returned: the innermost numbered module (``layers.3``) around the
      op, or the model itself,
    - and every module that it was handed to has returned.

    Beside those, an op may need as much workspace as a copy of each activation that it reads, in
    the wider of the dtypes that it reads and makes (a softmax of bfloat16 in float32), and a
    convolution in half precision the windows that it multiplies, laid out as one operand; while
    cached state is renewed by a copy the old and the new of it lie there. What is cut off a sliding
    window stays until the window is made anew, since PyTorch keeps a view of the whole; for what
    the ops need it lies there until it is read. What a block hands back and nobody reads is not
    known, and not counted beyond it.
    """
    last = len(graph.ops) - 1
    returns = _returns(graph)
    read_last: dict[int, int] = {}  # storage -> the last op that reads it
    handed: dict[int, int] = {}  # storage -> when the last module returns that it is handed to
    resident: set[int] = set()
    state = {graph.storage(t).id for t in (*cached_inputs(graph), *cached_outputs(graph))}
    kept = {t for some in kept_state(graph).values() for t in some}
    kept.update(t.id for t in cached_outputs(graph))
    resident.update(state_memory(graph, graph.tensors[t]).id for t in kept)
    renewed = {new.id for _, new in renewals(graph)}
    born: dict[int, int] = {}  # storage -> the op that makes it; -1 for what is there at first
    workspace: dict[int, int] = {}
    for op in graph.ops:
        for tensor in graph.inputs(op.id):
            owner = graph.storage(tensor)
            if owner.role in (Role.PARAMETER, Role.BUFFER):
                resident.add(owner.id)
            elif owner.op is not None and graph.ops[owner.op].is_constant:
                resident.update(() if op.is_constant else (owner.id,))
            elif not op.is_constant and not (op.kind is Kind.OUTPUT and owner.id in state):
                read_last[owner.id] = op.id
                inside = _blocks(graph, owner.op)
                entered = [b for b in _blocks(graph, op.id) if b not in inside]
                end = returns[op.id].get(entered[0], op.id) if entered else op.id
                handed[owner.id] = max(handed.get(owner.id, 0), end)
        if op.is_constant:
            continue
        if not op.is_view and op.kind not in (Kind.INPUT, Kind.OUTPUT):
            workspace[op.id] = _workspace(graph, op.id)
        for tensor in graph.outputs(op.id):
            owner = graph.storage(tensor)
            if owner.role not in (Role.PARAMETER, Role.BUFFER):
                born.setdefault(owner.id, -1 if op.kind is Kind.INPUT else op.id)
    live, peak = [0] * (last + 3), [0] * (last + 3)  # changes at each op, counted from -1
    for storage, made in born.items():
        size = graph.tensors[storage].bytes
        if storage in state or graph.tensors[storage].op in graph.state_ops:
            if made >= 0:  # the old state is there until the new one is
                peak[made + 1] += size
                peak[made + 2] -= size
            continue
        freed = read_last.get(storage, made)
        live[made + 1] += size
        live[max(freed, made) + 2] -= size
        inner = _blocks(graph, made)
        left = returns[made].get(inner[-1], last) if inner else last
        peak[made + 1] += size
        peak[max(freed, left, handed.get(storage, 0)) + 2] -= size
    for tensor in (graph.tensors[t] for t in kept):
        owner = graph.storage(tensor)
        if state_memory(graph, tensor) is tensor is not owner:  # a window of what was written
            made, size = -1 if owner.op is None else owner.op, owner.bytes - tensor.bytes
            live[made + 1] += size
            live[max(read_last.get(owner.id, made), made) + 2] -= size
            peak[0 if tensor.id in renewed else made + 1] += size
    for op_id, size in workspace.items():
        peak[op_id + 1] += size
        peak[op_id + 2] -= size
    held = sum(graph.tensors[t].bytes for t in resident)
    return MemoryNeed(held, highest(live), highest(peak))


def _workspace(graph: OpGraph, op: int) -> int:
    made = graph.outputs(op)
    width = max((ITEM_BYTES[t.dtype] for t in made), default=0)
    copies = sum(
        t.numel * max(width, ITEM_BYTES[t.dtype])
        for t in dict.fromkeys(graph.inputs(op))
        if graph.crosses(t)
    )
    gemm = graph.ops[op].cost.gemm
    if gemm is not None and width < 4 and graph.ops[op].target.startswith("aten.conv"):
        copies += gemm.batch * gemm.m * gemm.k * width  # its windows, laid out as one operand
    return copies


def _blocks(graph: OpGraph, op: int | None) -> list[str]:
    """The numbered modules around an op, the outermost first."""
    path = "" if op is None or op < 0 else graph.ops[op].module_path
    return [path[: found.end()] for found in re.finditer(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", path)]


def _returns(graph: OpGraph) -> list[dict[str, int]]:
    """By op: numbered module around it -> the last op before that returns."""
    found: list[dict[str, int]] = [{} for _ in graph.ops]
    later: dict[str, int] = {}
    for op in reversed(graph.ops):
        if not op.is_constant:
            later = {block: later.get(block, op.id) for block in _blocks(graph, op.id)}
            found[op.id] = later
    return found


def highest(changes: Iterable[Any]) -> Any:
    """The most that a sum of changes ever is, at least 0; numbers, or arrays."""
    most: Any = 0
    now: Any = 0
    for change in changes:
        now = now + change
        most = larger(most, now)
    return most


def larger(one: Any, other: Any) -> Any:
    """The larger of two numbers, or of each pair of two arrays."""
    return one + (other > one) * (other - one)
