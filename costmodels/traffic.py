"""Memory traffic of ATen ops: what each reads of its inputs, and what it writes.

That of a perfect kernel: each distinct input is read once, however often the arithmetic goes over
it (a softmax, a norm), and no more of a memory than there is (an expanded tensor); each result is
written once. Nothing between is: an attention in one op neither writes nor reads its scores.
A result of an exported graph is a new tensor: what puts rows into another one writes that whole,
and reads of it what stays. An op that ends in _ writes into its first argument instead.
"""

from collections.abc import Sequence
from typing import Any

from tracer.formula import greatest, least
from tracer.graph import Op, OpGraph, Tensor
from tracer.kinds import base_name, writes_in_place

Moved = tuple[Sequence[Any], Any]
"""Bytes read of each input, and bytes written: numbers, or formulas where the sizes are."""


def _reads_and_writes_all(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    return [t.bytes for t in inputs], sum(t.bytes for t in outputs)


def _gather(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """The rows asked for and their numbers."""
    return [outputs[0].bytes, *(t.bytes for t in inputs[1:])], outputs[0].bytes


def _gather_and_sum(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """A row of the table for each number."""
    table, numbers, *rest = inputs
    row = table.bytes // table.shape[0]
    read = [numbers.numel * row, numbers.bytes, *(t.bytes for t in rest)]
    return read, sum(t.bytes for t in outputs)


def _put(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """Other values in some places of a copy: it reads those values and what they leave."""
    base, *rest = (t.bytes for t in inputs)
    put = rest[-1] if inputs[-1].dtype == inputs[0].dtype else 0  # else one number
    return [greatest(base - put, 0), *rest], outputs[0].bytes


def _put_in_place(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """Other values in some places: it reads and writes those values."""
    put = inputs[-1].bytes if inputs[-1].dtype == inputs[0].dtype else outputs[0].bytes
    return [0, *(t.bytes for t in inputs[1:])], least(put, outputs[0].bytes)


def _add_in_place(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """What is added to is read and written in those places alone."""
    put = least(inputs[-1].bytes, outputs[0].bytes)
    return [put, *(t.bytes for t in inputs[1:])], put


def _hand_on(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Moved:
    """A check: what it has read is its result, which it does not write anew."""
    return [t.bytes for t in inputs], 0


_TRAFFIC = {
    name: rule
    for rule, names in (
        (_gather, "embedding index index_select gather take take_along_dim"),
        (_gather_and_sum, "embedding_bag"),
        (_put, "index_put index_copy scatter slice_scatter select_scatter diagonal_scatter"),
        (_put_in_place, "index_put_ index_copy_ scatter_ copy_ fill_ zero_"),
        (_add_in_place, "index_add_ scatter_add_ scatter_reduce_"),
        (_hand_on, "mask::freivalds"),  # of ``partition.masking``
    )
    for name in names.split()
}
"""Of the ops that touch less than all that they read and write; ``name_`` is the one in place."""


def has_own_rule(target: str) -> bool:
    """Whether an op touches less than all that it reads and writes, or writes in place."""
    return writes_in_place(target) or base_name(target) in _TRAFFIC


def traffic(graph: OpGraph, op: Op) -> tuple[dict[Tensor, Any], Any]:
    """(bytes read of each distinct input, bytes written)"""
    inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
    name = base_name(op.target)
    if writes_in_place(op.target):
        name = f"{name}_"
        # Other tensors in the same memory come along: they see what is written, no more of it is.
        others = len(outputs) - 1
        inputs, outputs = inputs[: len(inputs) - others], outputs[:1]
    if not inputs or not outputs:
        return {}, sum(t.bytes for t in outputs)
    read, written = _TRAFFIC.get(name, _reads_and_writes_all)(inputs, outputs)
    by_tensor: dict[Tensor, Any] = {}
    left = {stored: stored.bytes for stored in map(graph.storage, inputs)}
    for tensor, size in dict(zip(inputs, read, strict=True)).items():
        stored = graph.storage(tensor)
        by_tensor[tensor] = least(size, left[stored])
        left[stored] -= by_tensor[tensor]
    return by_tensor, written
