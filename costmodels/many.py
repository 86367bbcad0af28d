"""What the ops of a graph take at many sizes at once: formulas over arrays instead of numbers.

A graph that is the same program at other sizes (``tracer.reach``) has equal ops in every layer.
Each kind of them is worked out once, for all sizes, by the rules of ``costmodels.flops`` and
``costmodels.roofline``: figure by figure what ``annotate`` and ``time_ops`` say of one size.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import GemmCost, Options
from costmodels.chip import ChipWork, Widths, chip_time, off_chip_shares, widths_of
from costmodels.devices import Device
from costmodels.engines import PHYSICAL, Engine
from costmodels.experts import STATE, route, routed
from costmodels.flops import FREE, computed_in, flops_in_numbers, gemm_shape, work_key
from costmodels.fused import fused, strides
from costmodels.roofline import OpTime, Rates, paged_share
from costmodels.traffic import traffic
from tracer.formula import Formula, const, formula, parse
from tracer.graph import Kind, Op, OpGraph, Tensor

if TYPE_CHECKING:
    from costmodels.array_memory import MemoryCost

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Sizes = Mapping[str, Ints]
"""Variable -> its value at each of many sizes."""


class Over:
    """Formulas over many sizes, each worked out once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.length = len(next(iter(sizes.values())))
        self._known: dict[Formula, Ints] = {}

    def __call__(self, wanted: Formula | int) -> Ints:
        """The values; raises as ``Formula.over`` does."""
        closed = formula(wanted)
        if closed not in self._known:
            self._known[closed] = closed.over(self.sizes)
        return self._known[closed]


def bytes_of(tensor: Tensor) -> Formula:
    """The bytes of a tensor as a formula, a number of a concrete trace."""
    return const(tensor.bytes) if tensor.bytes_expr is None else parse(tensor.bytes_expr)


def closed(graph: OpGraph) -> OpGraph:
    """The graph with formulas for all shapes and bytes."""

    def sized(tensor: Tensor) -> Tensor:
        exprs = tensor.shape_expr or map(str, tensor.shape)
        axes: Any = tuple(map(parse, exprs))
        size: Any = bytes_of(tensor)  # where other graphs have a number
        return replace(tensor, bytes=size, shape=axes)

    return OpGraph(graph.meta, graph.ops, map(sized, graph.tensors), graph.edges)


@dataclass(frozen=True, slots=True)
class OpGroup:
    """What ops that are alike cost each, by size."""

    dtype: str | None
    """That they compute in."""
    flops: Ints | None
    """None where there is no formula for the op."""
    moved_bytes: Ints
    """Read and written."""
    gemm: tuple[Ints, Ints, Ints, Ints] | None
    """(batch, m, n, k) of a matrix product."""
    is_attention: bool = False
    """A whole attention in one op."""
    strided: bool = False
    """A copy in strides."""
    kind: Kind = Kind.OTHER
    """Their kind."""
    widths: Widths | None = None
    """Of the operands of a matrix product."""
    param_bytes: Ints | int = 0
    """Those of the bytes read that are weights and other state."""

    def at(self, rows: Ints) -> "OpGroup":
        """At some of the sizes."""
        batch_m_n_k: Any = None if self.gemm is None else tuple(axis[rows] for axis in self.gemm)
        flops = None if self.flops is None else self.flops[rows]
        moved, param = self.moved_bytes[rows], self.param_bytes
        param = param if isinstance(param, int) else param[rows]
        return replace(self, flops=flops, moved_bytes=moved, gemm=batch_m_n_k, param_bytes=param)


@dataclass(frozen=True, slots=True)
class OpGroups:
    """The ops of a graph that work, in groups of equal ones."""

    of: tuple[int | None, ...]
    """By op: its group; None for an op that costs nothing."""
    groups: tuple[OpGroup, ...]
    formulas: "tuple[Callable[[Over], OpGroup], ...]" = ()
    """What each group costs at whatever sizes; nothing where that was not asked for."""

    def over(self, sizes: Over) -> "OpGroups":
        """The same ops at other sizes."""
        return replace(self, groups=tuple(cost(sizes) for cost in self.formulas))


def op_groups(graph: OpGraph, over: Over) -> OpGroups:
    """What each op of an annotated graph costs at many sizes that it reaches."""
    formulas = closed(graph)
    equal: dict[Any, int] = {}
    numbers: dict[Any, int] = {}
    costs: list[Callable[[Over], OpGroup]] = []
    of: list[int | None] = []
    for op in graph.ops:
        if op.is_view or op.kind in FREE:
            of.append(None)
            continue
        chosen = routed(formulas, op)
        work = work_key(graph, op) if chosen is None else op.id
        if work in equal:
            of.append(equal[work])
            continue
        inputs, outputs = formulas.inputs(op.id), formulas.outputs(op.id)
        read, written = traffic(formulas, op)
        gemm = gemm_shape(formulas, op)
        moved, param = formula(written), const(0)
        for tensor, size in read.items():
            if chosen is None or tensor is not chosen[0]:
                moved += size
                param += size if graph.storage(graph.tensors[tensor.id]).role in STATE else 0
        routing: Any = None
        if chosen is not None:
            routing = graph.tensors[chosen[0].id], *map(formula, chosen[1:])
        shapes = tuple(tuple(t.shape for t in tensors) for tensors in (inputs, outputs))
        dtype = computed_in(graph, op)
        known = op.cost.flops_expr or (op.cost.flops is None or (op.target, op.arguments, shapes))
        is_attention, strided = op.kind is Kind.ATTENTION, strides(graph, op)
        widths = widths_of(graph, op)
        key = (
            dtype,
            op.kind,
            widths,
            is_attention,
            strided,
            known,
            moved,
            param,
            gemm,
            routing and (routing[0].shape, routing[0].bytes, *routing[1:]),
        )
        if key not in numbers:
            numbers[key] = len(costs)
            alike = OpGroup(
                dtype, None, _NOTHING, None, is_attention, strided, op.kind, widths, _NOTHING
            )
            costs.append(partial(_over, alike, graph, op, shapes, moved, gemm, param, routing))
        equal[work] = numbers[key]
        of.append(numbers[key])
    found = OpGroups(tuple(of), (), tuple(costs))
    return found.over(over)


_NOTHING: Ints = np.zeros(0, np.int64)


def _over(
    alike: OpGroup,
    graph: OpGraph,
    op: Op,
    shapes: Sequence[Any],
    moved: Formula,
    gemm: Any,
    param: Formula,
    routing: "tuple[Tensor, Any, Any, Any] | None",
    over: Over,
) -> OpGroup:
    """What ops that are ``alike`` cost at some sizes."""
    chosen_bytes = 0 if routing is None else _routed(graph, routing, over)
    return replace(
        alike,
        flops=_flops(graph, op, shapes, over),
        moved_bytes=over(moved) + chosen_bytes,
        gemm=None if gemm is None else tuple(over(formula(axis)) for axis in gemm),  # type: ignore[arg-type]
        param_bytes=over(param) + chosen_bytes,
    )


def _flops(graph: OpGraph, op: Op, shapes: Sequence[Any], over: Over) -> Ints | None:
    cost = op.cost
    if cost.flops is None:
        return None
    if not graph.meta.symbolic:
        return over(cost.flops)
    if cost.flops_expr is not None:
        return over(parse(cost.flops_expr))
    sizes = [[[over(formula(axis)) for axis in shape] for shape in tensors] for tensors in shapes]

    def at(n: int) -> int:
        inputs, outputs = (
            [[int(axis[n]) for axis in shape] for shape in tensors] for tensors in sizes
        )
        there = {name: int(values[n]) for name, values in over.sizes.items()}
        return flops_in_numbers(graph, op, inputs, outputs, there)

    return np.array([at(n) for n in range(over.length)], dtype=np.int64)


def _routed(graph: OpGraph, routing: tuple[Tensor, Any, Any, Any], over: Over) -> Ints:
    """What is read of a stack of experts."""
    stack, *numbers = routing
    known: dict[tuple[int, ...], int] = {}
    each = list(zip(*(over(number).tolist() for number in numbers), strict=True))
    for one in set(each):
        known[one] = route(graph, stack, *one).bytes_read
    return np.array([known[one] for one in each], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GroupTime:
    """What ops that are alike take each on one device, by size."""

    seconds: Floats | None
    """None where the device has no figure for them, or where their FLOPs are not known."""
    gemm: GemmCost | None = None
    """Cycles and tiles, on an array of multipliers."""
    memory: "MemoryCost | None" = None
    """What the buffers of an array move for a product, where they are known."""


def time_group(
    device: Device,
    group: OpGroup,
    options: Options,
    lying_bytes: Ints | int = 0,
    engine: Engine = PHYSICAL,
    weight_bytes: Ints | int = 0,
) -> GroupTime:
    """What ops that are alike take each, as ``roofline`` counts it where so many bytes lie there, and
    the ops there read so many bytes of weights.

    Of an engine under which that depends on what runs together, see ``run_times``.

    A device has seconds for a group at all sizes or at none: sizes at which FLOPs are nothing and
    sizes at which they are something are not to be asked for together.
    """
    rates = Rates(
        device,
        engine,
        paged_share(device, lying_bytes),
        off_chip=off_chip_shares(device, lying_bytes, weight_bytes),
    )
    return _on_chip(rates, group, options) if device.is_chip else _on_roofline(rates, group)


def _on_chip(rates: Rates, group: OpGroup, options: Options) -> GroupTime:
    g = group
    work = ChipWork(g.kind, g.dtype, g.flops, g.moved_bytes, g.param_bytes, g.gemm, g.widths)
    taken = chip_time(rates.device, work, options, rates.off_chip)
    if taken is None:
        return GroupTime(None)
    return GroupTime(taken.seconds + rates.launch_seconds, taken.gemm, taken.memory)


def _on_roofline(rates: Rates, group: OpGroup) -> GroupTime:
    work = _of_kernel(rates, [group], group.moved_bytes, is_attention=group.is_attention)
    return GroupTime(None if work is None else work + rates.launch_seconds)


def op_time(
    device: Device,
    group: OpGroup,
    options: Options,
    lying_bytes: int = 0,
    engine: Engine = PHYSICAL,
    weight_bytes: int = 0,
) -> OpTime:
    """What an op of a group takes at the first of its sizes and what bounds it, as ``time_group``."""
    off_chip = off_chip_shares(device, lying_bytes, weight_bytes)
    rates = Rates(device, engine, paged_share(device, lying_bytes), off_chip=off_chip)
    flops = None if group.flops is None else int(group.flops[0])
    moved, param = (
        int(np.asarray(size).flat[0]) for size in (group.moved_bytes, group.param_bytes)
    )
    spent: dict[Any, float] = {}
    if device.is_chip:
        gemm: Any = group.gemm and tuple(int(axis[0]) for axis in group.gemm)
        work = ChipWork(group.kind, group.dtype, flops, moved, param, gemm, group.widths)
        taken = chip_time(device, work, options, rates.off_chip)
        if taken is None:
            return OpTime(moved_bytes=moved)
        spent = {**taken.spent, "overhead": rates.launch_seconds}
        bound = max(spent, key=lambda part: spent[part])
        seconds = taken.seconds + rates.launch_seconds
        return OpTime(seconds, bound if spent[bound] else None, taken.gemm, moved, taken.memory)
    compute = None if flops is None else rates.compute_seconds(group.dtype, flops)
    memory = rates.memory_seconds(moved, strided=group.strided)
    if compute is None or memory is None:
        return OpTime(moved_bytes=moved)
    beside = rates.kernel_seconds(is_attention=group.is_attention) + rates.launch_seconds
    spent = {"compute": compute, "memory": memory, "overhead": beside}
    bound = max(spent, key=lambda part: spent[part])
    return OpTime(max(compute, memory) + beside, bound, moved_bytes=moved)


def run_times(
    graph: OpGraph,
    over: Over,
    ops: OpGroups,
    device: str,
    runs: tuple[tuple[str, int] | None, ...],
    rates: Rates,
) -> Floats | None:
    """What runs on a device takes by size, under an engine that looks at what runs together.

    ``runs`` is by op what it runs in, as for ``costmodels.fused``: the first of each pair is the
    device. None where an op there has no seconds.
    """
    known: dict[Any, Floats | None] = {}
    together: dict[tuple[str, int], Counter[Any]] = defaultdict(Counter)
    for members, moved, is_attention in _kernels(graph, over, ops, rates.engine, runs):
        run = runs[members[0]]
        if run is None or run[0] != device:
            continue
        key = tuple(ops.of[op] for op in members), moved, is_attention
        together[run][key] += 1
        if key not in known:
            groups = [ops.groups[number] for number in key[0] if number is not None]
            bytes_ = over(moved) if isinstance(moved, Formula) else groups[0].moved_bytes
            known[key] = _of_kernel(rates, groups, bytes_, is_attention=is_attention)
    alike = Counter(frozenset(counts.items()) for counts in together.values())
    launch, terms = rates.launch_seconds, []
    for counts, times in alike.items():
        each = [(n, seconds) for key, n in counts if (seconds := known[key]) is not None]
        if len(each) < len(counts):
            return None
        work = exact_sum(each, over.length)
        starting = launch * sum(n for n, _ in each)
        ahead = rates.engine.runs_ahead
        terms.append((times, np.maximum(work, starting) if ahead else work + starting))
    return exact_sum(terms, over.length)


def run_moved(
    graph: OpGraph,
    over: Over,
    ops: OpGroups,
    device: str,
    runs: tuple[tuple[str, int] | None, ...],
    engine: Engine,
) -> Ints:
    """The bytes that all that runs on a device moves by size, with ``runs`` as of ``run_times``."""
    alike: Counter[Any] = Counter()
    for members, moved, _ in _kernels(graph, over, ops, engine, runs):
        run = runs[members[0]]
        if run is not None and run[0] == device:
            alike[ops.of[members[0]] if moved is None else moved] += 1
    total = np.zeros(over.length, np.int64)
    for moved, count in alike.items():
        total = total + count * (
            over(moved) if isinstance(moved, Formula) else ops.groups[moved].moved_bytes
        )
    return total


def op_times(
    graph: OpGraph,
    over: Over,
    ops: OpGroups,
    device: str,
    runs: tuple[tuple[str, int] | None, ...],
    rates: Rates,
) -> dict[int, Floats] | None:
    """What each op takes that runs on a device, by size, under such an engine: ``run_times`` by op.

    Of a kernel of several ops each has its part (``costmodels.roofline``).
    """
    known: dict[Any, tuple[Floats, ...] | None] = {}
    together: dict[tuple[str, int], list[tuple[tuple[int, ...], tuple[Floats, ...]]]] = {}
    for members, moved, is_attention in _kernels_by_op(graph, ops, rates.engine, runs):
        run = runs[members[0]]
        if run is None or run[0] != device:
            continue
        key = tuple(ops.of[op] for op in members), moved, is_attention
        if key not in known:
            groups = [None if number is None else ops.groups[number] for number in key[0]]
            known[key] = _parts(rates, over, groups, moved, is_attention=is_attention)
        parts = known[key]
        if parts is None:
            return None
        together.setdefault(run, []).append((members, parts))
    found: dict[int, Floats] = {}
    launch = rates.launch_seconds
    for kernels in together.values():
        work = sum((sum(parts) for _, parts in kernels), np.zeros(over.length))
        waits = rates.engine.runs_ahead & (launch * len(kernels) >= work)
        for members, parts in kernels:
            for op, part in zip(members, parts, strict=True):
                found[op] = np.where(waits, launch, part)
    return found


def _kernels_by_op(
    graph: OpGraph, ops: OpGroups, engine: Engine, runs: tuple[Any, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[Formula | None, ...], bool]]:
    """As ``_kernels``, with the bytes that each op moves as a part of its kernel."""
    if engine.execution != "fused":
        for op, group in enumerate(ops.of):
            if group is not None:
                yield (op,), (None,), ops.groups[group].is_attention
        return
    for found in fused(closed(graph), runs):
        alone = len(found.ops) == 1 and routed(graph, graph.ops[found.ops[0]])
        moved = (None if alone else formula(found.moved(n)) for n in range(len(found.ops)))
        yield found.ops, tuple(moved), found.is_attention


def _parts(
    rates: Rates,
    over: Over,
    groups: Sequence[OpGroup | None],
    moved: Sequence[Formula | None],
    *,
    is_attention: bool,
) -> tuple[Floats, ...] | None:
    """What each op of a kernel takes, with a launch where launches do not run ahead."""
    computing, moving = [], []
    for group, closed_bytes in zip(groups, moved, strict=True):
        touched = over(closed_bytes) if closed_bytes is not None else group and group.moved_bytes
        flops = np.zeros(over.length, np.int64) if group is None else group.flops
        dtype = None if group is None else group.dtype
        compute = None if flops is None else rates.compute_seconds(dtype, flops)
        memory = rates.memory_seconds(touched, strided=group is not None and group.strided)
        if compute is None or memory is None:
            return None
        computing.append(compute + np.zeros(over.length))
        moving.append(memory)
    beside = rates.kernel_seconds(is_attention=is_attention)
    beside += 0.0 if rates.engine.runs_ahead else rates.launch_seconds
    if len(groups) == 1:
        return (np.maximum(computing[0], moving[0]) + beside,)
    compute, memory = sum(computing), sum(moving)
    work = np.maximum(compute, memory)
    spread = np.where(work > 0, work, 1)
    return tuple(
        (work + beside)
        * np.where(work > 0, np.where(compute >= memory, c, m) / spread, 1 / len(groups))
        for c, m in zip(computing, moving, strict=True)
    )


def _kernels(
    graph: OpGraph, over: Over, ops: OpGroups, engine: Engine, runs: tuple[Any, ...]
) -> Iterator[tuple[tuple[int, ...], Formula | None, bool]]:
    """(ops, bytes that they move as one kernel, whether it is an attention); the bytes are those of
    the op alone where they are None."""
    if engine.execution != "fused":
        for op, group in enumerate(ops.of):
            if group is not None:
                yield (op,), None, ops.groups[group].is_attention
        return
    for found in fused(closed(graph), runs):
        moved = sum(map(found.moved, range(len(found.ops))), const(0))
        alone = len(found.ops) == 1 and routed(graph, graph.ops[found.ops[0]])
        yield found.ops, None if alone else moved, found.is_attention


def _of_kernel(
    rates: Rates, groups: Sequence[OpGroup], moved: Ints, *, is_attention: bool
) -> Floats | None:
    """What a kernel takes by size, its launch left out."""
    memory = rates.memory_seconds(moved, strided=groups[0].strided if groups else False)
    compute: Any = 0.0
    for group in groups:
        seconds = None if group.flops is None else rates.compute_seconds(group.dtype, group.flops)
        if seconds is None or memory is None:
            return None
        compute = compute + seconds
    work: Floats = np.maximum(compute, memory) + rates.kernel_seconds(is_attention=is_attention)
    return work


def exact_sum(terms: Sequence[tuple[int, Floats | float]], length: int) -> Floats:
    """The sum of (how often, value), rounded once, as ``math.fsum`` of all of them.

    In pairs of floats: what an addition rounds off is kept beside the sum (Knuth's two-sum), and
    likewise of a product (Dekker's; Shewchuk: Adaptive Precision Floating-Point Arithmetic, 1997).
    Pairs have 106 bits; a sum that lies nearer than that to the middle between two floats may be
    rounded to the other one.
    """
    high, low = np.zeros(length), np.zeros(length)
    for count, value in terms:
        product, rest = _times(float(count), np.asarray(value))
        total = high + product
        part = total - high
        low = low + ((high - (total - part)) + (product - part)) + rest
        high = total
    return high + low


_SPLIT = 134217729.0  # 2**27 + 1: halves the 53 bits of a float


def _times(one: float, many: Floats) -> tuple[Floats, Floats]:
    """A product, and what its rounding left out."""
    product = one * many
    top = _SPLIT * one - (_SPLIT * one - one)
    scaled = _SPLIT * many
    tops = scaled - (scaled - many)
    bottom, bottoms = one - top, many - tops
    return product, ((top * tops - product) + top * bottoms + bottom * tops) + bottom * bottoms
