"""What a program of fused kernels moves: groups of ops that good kernels carry out in one pass.

A traced program writes every intermediate to memory and reads it again. Good kernels do not:

- elementwise ops, norms, softmax and reductions that follow one another are one pass: what is made
  and read inside is neither written nor read;
- casts, copies that only arrange values anew, and views are free: who reads one reads what it was
  made of, in the bytes of that. So keys and values are not repeated for the heads of a group
  (``repeat_kv``: expand and reshape), but read once;
- new rows are appended to cached state in place: what makes them writes them there, and who reads
  the state reads all of it;
- an attention is one kernel: both products, and all between them. Its scores are never in memory.

Matrix products, gathers and scatters stay kernels of their own. This is of memory traffic and of
launches alone: what crosses a link is as the placement has it, op by op.

Ops that run apart (``runs``: on another device, or in another call) are never in one group: what
passes between them is written and read. Groups are convex, so that they can run one after another:
each op has a depth, the most steps behind it into or out of an op that stays alone, and ops of one
group have the same depth, while a way out of the group and back is deeper. What runs apart divides
the groups that there are where all runs together, and makes no others: so it moves no less.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from costmodels.experts import routed
from costmodels.flops import FREE
from costmodels.traffic import has_own_rule, traffic
from tracer.formula import least
from tracer.graph import Kind, Op, OpGraph, Tensor
from tracer.kinds import base_name, writes_in_place

PASSES = frozenset({Kind.ELEMENTWISE, Kind.NORM, Kind.SOFTMAX, Kind.REDUCTION})
"""The kinds that one pass over the values carries out, several at once."""

_ARRANGES = """
    clone contiguous to _to_copy type_as float half double bfloat16 int long bool cat concat
    concatenate stack hstack vstack dstack column_stack row_stack repeat repeat_interleave tile
    roll flip fliplr flipud pad constant_pad_nd reshape reshape_as _reshape_copy flatten unfold
    diagonal_copy view_copy resolve_conj resolve_neg
"""
ARRANGES = frozenset(_ARRANGES.split())
"""Copies whose values lie elsewhere as they are: a kernel that reads them reads there."""


def arranges(op: Op) -> bool:
    """Whether an op is a copy whose values lie elsewhere as they are."""
    copies = op.kind is Kind.COPY and not writes_in_place(op.target)
    return copies and base_name(op.target) in ARRANGES


def strides(graph: OpGraph, op: Op) -> bool:
    """Whether an op is such a copy that changes no dtype: a program that runs op by op reads or
    writes it in strides (``cat`` of a cache, ``repeat_kv``, a transpose made contiguous)."""
    if not arranges(op):
        return False
    inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
    return bool(inputs) and all(t.dtype == inputs[0].dtype for t in outputs)


@dataclass(frozen=True, slots=True)
class Group:
    """Ops that are one kernel."""

    ops: tuple[int, ...]
    """Those that do work, in order; what is free is in no group."""
    reads: tuple[Mapping[int, Any], ...]
    """By op: tensor that owns a memory -> bytes read of it. What several ops of the group read is
    with the first of them. Numbers, or formulas where the sizes are. Without a stack of experts
    whose part that is read depends on values (``costmodels.experts``)."""
    written: tuple[Any, ...]
    """By op: bytes of its results that are read outside of the group."""
    is_attention: bool
    """Whether it is an attention, in one op or in several."""

    def moved(self, number: int) -> Any:
        """Bytes read and written by the op at a place in ``ops``."""
        return sum(self.reads[number].values()) + self.written[number]


@lru_cache(maxsize=16)
def fused(graph: OpGraph, runs: tuple[Hashable, ...] | None = None) -> tuple[Group, ...]:
    """The groups of a graph's ops, in the order of their first ops.

    ``runs`` is by op what it runs in (device and call, in this order, as a tuple); None where that
    is everywhere (state, constants). Left out, all ops run together.
    """
    if runs is None:
        return tuple(_Fusion(graph, runs).groups())
    return tuple(_Fusion(graph, runs, _Fusion(graph, None).of).groups())


class _Fusion:
    """A graph while its ops are put into groups."""

    def __init__(
        self,
        graph: OpGraph,
        runs: Sequence[Hashable] | None,
        whole: Sequence[int | None] | None = None,
    ) -> None:
        """``whole`` has by op the group where all ops run together: it is divided, never joined."""
        self.graph = graph
        self.whole: Sequence[Any] = whole or [None] * len(graph.ops)
        self.runs: Sequence[Any] = runs or [None] * len(graph.ops)
        self.free = [self._is_free(op) for op in graph.ops]
        self._sources: dict[int, Mapping[int, Any]] = {}
        self._makers: dict[int, tuple[int, ...]] = {}
        self.attention = self._attentions()
        self.of = self._grouped()

    def _is_free(self, op: Op) -> bool:
        """Whether who reads an op's result reads what it was made of."""
        if op.is_view or op.id in self.graph.state_ops:
            return True
        if not arranges(op):
            return False
        here = self._device(op.id)
        readers = (r for t in self.graph.outputs(op.id) for r in self.graph.readers(t.id))
        return all(self._device(r) in (here, None) for r in readers)

    def _device(self, op: int) -> Hashable:
        run: Hashable = self.runs[op]
        return run[0] if isinstance(run, tuple) else run

    def makers(self, tensor: Tensor) -> tuple[int, ...]:
        """The ops that do work and made what lies in a tensor."""
        if tensor.op is None:
            return ()
        if not self.free[tensor.op]:
            return (tensor.op,) if self._works(tensor.op) else ()
        if tensor.id not in self._makers:
            self._makers[tensor.id] = ()  # of state that leads to itself
            read = self._read_by_free(tensor.op)
            found = dict.fromkeys(op for t in read for op in self.makers(t))
            self._makers[tensor.id] = tuple(found)
        return self._makers[tensor.id]

    def _works(self, op: int) -> bool:
        return self.graph.ops[op].kind not in FREE

    def _read_by_free(self, op: int) -> Sequence[Tensor]:
        inputs = self.graph.inputs(op)
        return inputs[:1] if self.graph.ops[op].is_view else inputs

    def sources(self, tensor: Tensor) -> Mapping[int, Any]:
        """Tensor that owns a memory -> bytes of it that are read for all of a tensor."""
        if tensor.id not in self._sources:
            made_by = tensor.op
            if made_by is None or not self.free[made_by] or not self.graph.inputs(made_by):
                stored = self.graph.storage(tensor)
                self._sources[tensor.id] = {stored.id: least(tensor.bytes, stored.bytes)}
            else:
                read = [(t, t.bytes) for t in self._read_by_free(made_by)]
                self._sources[tensor.id] = self._through(read, tensor.bytes)
        return self._sources[tensor.id]

    def _through(self, read: Sequence[tuple[Tensor, Any]], most: Any) -> Mapping[int, Any]:
        """What is read of memories for so many bytes of tensors, ``most`` in all (None: no limit)."""
        found: dict[int, Any] = {}
        for tensor, size in read:
            left = size if most is None else least(size, most)
            for memory, there in self.sources(tensor).items():
                taken = least(there, left)
                room = self.graph.tensors[memory].bytes - found.get(memory, 0)
                taken = least(taken, room)
                found[memory] = found.get(memory, 0) + taken
                left -= taken
                most = None if most is None else most - taken
        return found

    def _attentions(self) -> dict[int, int]:
        """op -> the first product of the attention that it is a part of."""
        graph = self.graph
        found: dict[int, int] = {}
        for op in graph.ops:
            if op.kind is not Kind.MATMUL or graph.outputs(op.id)[0].label != "attention_scores":
                continue
            after: set[int] = set()
            ends: set[int] = set()
            front = [op.id]
            while front:
                for reader in self._readers(front.pop()):
                    last = graph.outputs(reader) and graph.ops[reader].kind is Kind.MATMUL
                    if last and graph.outputs(reader)[0].label == "attention_output":
                        ends.add(reader)
                    elif graph.ops[reader].kind in PASSES and reader not in after:
                        after.add(reader)
                        front.append(reader)
            behind: set[int] = set()
            front = [*ends]
            while front:
                made = {m for t in graph.inputs(front.pop()) for m in self.makers(t)}
                front += sorted((made & after) - behind)
                behind |= made & after
            inside = {op.id, *behind, *ends}
            if len(ends) == 1 and len({self.runs[o] for o in inside}) == 1:
                found.update(dict.fromkeys(inside, op.id))
        return found

    def _readers(self, op: int) -> set[int]:
        """The ops that do work, or take results out, and read what an op makes."""
        return {reader for tensor in self.graph.outputs(op) for reader, _ in self._ends(tensor)}

    def _ends(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(an op that reads a tensor through what is free, the tensor that it reads then)"""
        for reader in self.graph.readers(tensor.id):
            if not self.free[reader]:
                yield reader, tensor
            else:
                for made in self.graph.outputs(reader):
                    yield from self._ends(made)

    def _grouped(self) -> list[int | None]:
        """By op: the first op of its group; None for what is free."""
        graph = self.graph
        depth = [0] * len(graph.ops)
        of: list[int | None] = [None] * len(graph.ops)

        def root(op: int) -> int:
            above = of[op]
            assert above is not None
            return op if above == op else root(above)

        for op in graph.ops:
            if self.free[op.id] or not self._works(op.id):
                continue
            of[op.id] = op.id
            makers = dict.fromkeys(m for t in graph.inputs(op.id) for m in self.makers(t))
            together = [m for m in makers if self._joins(m, op.id)]
            depth[op.id] = max((depth[m] + (m not in together) for m in makers), default=0)
            for maker in together:
                if depth[maker] == depth[op.id] and root(maker) != root(op.id):
                    low, high = sorted((root(maker), root(op.id)))
                    of[high] = low
        return [None if there is None else root(op) for op, there in enumerate(of)]

    def _joins(self, maker: int, reader: int) -> bool:
        if self.runs[maker] != self.runs[reader] or self.whole[maker] != self.whole[reader]:
            return False
        inside = self.attention.get(maker), self.attention.get(reader)
        if inside != (None, None):
            return inside[0] == inside[1]
        kinds = {self.graph.ops[maker].kind, self.graph.ops[reader].kind}
        return kinds <= PASSES

    def groups(self) -> Iterator[Group]:
        graph = self.graph
        members: dict[int, list[int]] = defaultdict(list)
        for op, first in enumerate(self.of):
            if first is not None:
                members[first].append(op)
        for ops in members.values():
            read: dict[int, Any] = {}
            reads, written, inside = [], [], {*ops}
            for op in ops:
                by_tensor, eager = traffic(graph, graph.ops[op])
                if chosen := routed(graph, graph.ops[op]):
                    by_tensor.pop(chosen[0], None)
                own: dict[int, Any] = {}
                for memory, size in self._through([*by_tensor.items()], None).items():
                    if graph.tensors[memory].op in inside:
                        continue
                    size = least(size, graph.tensors[memory].bytes - read.get(memory, 0))
                    own[memory] = size
                    read[memory] = read.get(memory, 0) + size
                reads.append(own)
                kept = has_own_rule(graph.ops[op].target)
                written.append(eager if kept else self._written(op, inside))
            attention = ops[0] in self.attention or graph.ops[ops[0]].kind is Kind.ATTENTION
            yield Group(tuple(ops), tuple(reads), tuple(written), attention)

    def _written(self, op: int, group: set[int]) -> Any:
        """Bytes of an op's results that are read outside of its group, as little as is read."""
        total: Any = 0
        for tensor in self.graph.outputs(op):
            ends = {t.id: t for reader, t in self._ends(tensor) if reader not in group}
            if any(t.bytes == tensor.bytes for t in ends.values()):
                total += tensor.bytes
            elif ends:
                total += least(tensor.bytes, sum(t.bytes for t in ends.values()))
        return total
