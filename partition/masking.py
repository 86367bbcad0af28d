"""A graph whose protected ops compute on masked operands, with what home does for that as ops.

``masked`` rewrites a graph: before a protected op home masks what it reads (``mask``), the op
itself multiplies what is masked, and after it home recovers the result (``recover``) and checks it
(``check``). Each is an op like any other, so that calls, transfers, memory, seconds and schedules
are counted by the same rules as without masks, and so do the keys of masks and the pads: they are
tensors at home. One tensor under one mask is masked once, however many ops read it.

Tensors keep their ids and the new ones come behind; ops have new ids (``MaskedGraph.origin``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodels.experts import STATE
from costmodels.traffic import traffic
from partition.masks import Masked, MaskedGraph, Part, with_masks_placed
from partition.placement import Placement
from partition.schemes import (
    SCHEMES,
    Matrices,
    Operands,
    Protection,
    Scheme,
    Shape,
    Side,
    Size,
    check_flops,
    elements,
)
from tracer.errors import InputError
from tracer.formula import Formula, const, formula, parse
from tracer.graph import (
    FLOATING,
    ITEM_BYTES,
    Edge,
    Gemm,
    Kind,
    Op,
    OpCost,
    OpGraph,
    Role,
    Status,
    Tensor,
)
from tracer.kinds import base_name


def masked(
    graph: OpGraph, protected: Mapping[int, Protection], wire_dtype: str | None = None
) -> OpGraph:
    """An annotated graph with the ``protected`` ops masked; itself where no op is.

    ``wire_dtype`` is what floats cross in: pads are as wide. Raises InputError where a scheme is
    not for an op.
    """
    return _Rewriting(graph, protected, wire_dtype).graph() if protected else graph


def settled(graph: OpGraph, placement: Placement) -> tuple[OpGraph, Placement]:
    """The same placement where no op is masked that is at home."""
    if not isinstance(graph, MaskedGraph):
        return graph, placement
    plain = graph.plain_placement(placement)
    away = {op: how for op, how in graph.protected.items() if plain.devices[op] != placement.home}
    found = masked(graph.plain, away, graph.wire_dtype)
    return found, with_masks_placed(found, plain)


def why_not(graph: OpGraph, op: Op, protection: Protection) -> str | None:
    """Why a scheme does not protect an op, in words; None where it does.

    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=64).graph
    >>> softmax = next(op for op in graph.ops if op.kind == "softmax")
    >>> why_not(graph, softmax, Protection("one-time-pad"))
    'softmax_0 (aten.softmax.int) is no product of two matrices'
    """
    operands = _operands(graph, op)
    named = f"{op.name} ({op.target})"
    if operands is None:
        return f"{named} is no product of two matrices"
    if (protection.scheme, operands) in SCHEMES:
        gemm = base_name(op.target) in _MATRICES
        if operands == "activations" and _shares_inner(protection):
            left, right = (t.shape[:-2] for t in _flowing(graph, op))
            gemm = gemm and left == right
        if gemm or (
            protection.scheme in ("one-time-pad", "one-time-pad-mod") and not protection.checks
        ):
            return None
        return f"{protection.scheme} is not for {named}"
    if operands == "activations":
        return f"{protection.scheme} needs stored weights, and {named} multiplies two activations"
    return f"{protection.scheme} is for two activations, and {named} has stored weights"


def hides(graph: OpGraph, op: Op, protection: Protection) -> bool:
    """Whether a scheme that is for an op hides anything there: a single row it may not."""
    rows, least = rows_to_hide(graph, op, protection)
    return rows.evaluate(graph.meta.variables) >= least


def rows_to_hide(graph: OpGraph, op: Op, protection: Protection) -> tuple[Formula, int]:
    """(the rows that a scheme that is for an op masks, how many of them it needs to hide any)"""
    operands = _operands(graph, op)
    assert operands is not None
    left = _flowing(graph, op)[0]
    sizes = left.shape_expr or tuple(map(str, left.shape))
    rows = parse(sizes[-2]) if len(sizes) > 1 else const(1)
    return rows, SCHEMES[protection.scheme, operands].least_rows


_MATRICES = frozenset(("linear", "mm", "matmul", "bmm", "addmm"))


def _shares_inner(protection: Protection) -> bool:
    """Whether of two activations the second is masked by what undoes the first one's mask."""
    return protection.scheme == "rank-one" or protection.on_channels


def _at_least_float32(dtype: str) -> str:
    """The dtype of what home keeps: 16 bits would spoil what they undo."""
    return dtype if ITEM_BYTES[dtype] >= 4 else "float32"


def _is_stored(graph: OpGraph, tensor: Tensor) -> bool:
    return tensor.op is None or graph.ops[tensor.op].is_constant


def _flowing(graph: OpGraph, op: Op) -> list[Tensor]:
    return [t for t in graph.inputs(op.id) if not _is_stored(graph, t)]


def _operands(graph: OpGraph, op: Op) -> Operands | None:
    """What an op multiplies one activation by; None for what is no product of two matrices."""
    reads, flowing = graph.inputs(op.id), _flowing(graph, op)
    if op.kind not in (Kind.LINEAR, Kind.MATMUL) or op.cost.gemm is None:
        return None
    if len(graph.outputs(op.id)) != 1 or not flowing:
        return None
    if len(flowing) == 2 and len(reads) == 2:
        return "activations"
    first = reads[1] if base_name(op.target) == "addmm" else reads[0]
    return "weights" if len(flowing) == 1 and flowing[0] is first and len(reads) > 1 else None


# --- the rewriting --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mask:
    """A tensor that is masked, and what home remembers of that."""

    sent: int
    """What is sent in its place."""
    key: int
    """The tensor at home that its result is recovered by."""


class _Rewriting:
    """Ops, tensors and edges of the graph that comes out, while it is made."""

    def __init__(
        self, graph: OpGraph, protected: Mapping[int, Protection], wire_dtype: str | None
    ) -> None:
        for number, protection in protected.items():
            if why := why_not(graph, graph.ops[number], protection):
                raise InputError(why)
        self.plain, self.protected, self.wire_dtype = graph, dict(protected), wire_dtype
        self.symbolic = bool(graph.meta.symbolic)
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = list(graph.tensors)
        self.edges: list[Edge] = []
        self.origin: list[int | None] = []
        self.parts: dict[int, tuple[Part, int]] = {}
        self.masks: dict[int, Masked] = {}
        self.pads: set[int] = set()
        self.made: dict[tuple[int, Protection, Operands, Side, int], _Mask] = {}
        self.copies: dict[int, int] = {}
        self.forms: dict[tuple[int, str], int] = {}
        self.offline = const(0)
        self.masked_by: dict[int, list[int]] = defaultdict(list)
        for number in sorted(self.protected):
            for tensor in graph.inputs(number):
                self.masked_by[tensor.id].append(number)

    def graph(self) -> MaskedGraph:
        for op in self.plain.ops:
            for tensor in self.plain.inputs(op.id):
                for number in self.masked_by.pop(tensor.id, ()):
                    self.mask_for(number, tensor)
            if op.id in self.protected:
                self.protect(op, self.protected[op.id])
            else:
                self.copy(op)
        made = OpGraph(self.plain.meta, self.ops, self.tensors, self.edges)
        found = MaskedGraph(made.meta, self.with_traffic(made), self.tensors, self.edges)
        found.plain, found.origin, found.parts = self.plain, tuple(self.origin), self.parts
        found.protected, found.masks = self.protected, self.masks
        found.pads = frozenset(self.pads)
        found.offline = self.offline
        found.copies = self.copies
        found.wire_dtype = self.wire_dtype
        return found

    # --- pieces ---

    def copy(self, op: Op, reads: Sequence[int] | None = None, **changes: Any) -> int:
        """An op of the plain graph, reading other tensors where these are given."""
        number = len(self.ops)
        self.ops.append(replace(op, id=number, **changes))
        self.origin.append(op.id)
        inputs = self.plain.inputs(op.id)
        self.read(number, [t.id for t in inputs] if reads is None else reads)
        for tensor in self.plain.outputs(op.id):
            self.tensors[tensor.id] = replace(self.tensors[tensor.id], op=number)
        return number

    def read(self, number: int, tensors: Sequence[int]) -> None:
        self.edges += [
            Edge(self.tensors[t].op, number, t, position) for position, t in enumerate(tensors)
        ]

    def at_home(
        self,
        part: Part,
        of: Op,
        scheme: str,
        reads: Sequence[int],
        flops: Sequence[Size],
        dtype: str,
    ) -> int:
        """An op of home's; ``flops`` in numbers and, of a symbolic trace, in formulas; ``dtype`` is
        what it computes in."""
        number = len(self.ops)
        self.parts[number] = (part, of.id)
        self.origin.append(None)
        self.ops.append(
            Op(
                number,
                f"{part}_{len(self.parts) - 1}",
                f"mask.{scheme}.{part}",
                Kind.ELEMENTWISE,
                of.module_path,
                of.module_type,
                of.stack,
                of.layer,
                False,
                False,
                dtype,
                cost=OpCost(
                    flops=flops[0],
                    flops_expr=str(formula(flops[1])) if self.symbolic else None,
                    flops_status=Status.EXACT if flops[0] else Status.ZERO,
                ),
            )
        )
        self.read(number, reads)
        return number

    def with_traffic(self, graph: OpGraph) -> list[Op]:
        """The ops, with what those read and write that home does for masks, and protected ones."""
        ops = [*graph.ops]
        protected = {op for op, plain in enumerate(self.origin) if plain in self.protected}
        for op in (*self.parts, *protected):
            reads, written = traffic(graph, ops[op])
            params = sum(size for t, size in reads.items() if graph.storage(t).role in STATE)
            moved = {"read_bytes": sum(reads.values()), "write_bytes": written}
            cost = replace(ops[op].cost, **moved, param_bytes=params)
            ops[op] = replace(ops[op], cost=cost)
        return ops

    def add(
        self,
        op: int | None,
        name: str,
        shapes: Sequence[Shape],
        dtype: str,
        like: Tensor | None = None,
        role: Role = Role.ACTIVATION,
        alias_of: int | None = None,
    ) -> int:
        """A tensor; ``shapes`` in numbers and, of a symbolic trace, in formulas."""
        number, item = len(self.tensors), ITEM_BYTES[dtype]
        size: Formula | None = formula(elements(shapes[1]) * item) if self.symbolic else None
        self.tensors.append(
            Tensor(
                number,
                op,
                name,
                role,
                like.label if like else None,
                dtype,
                tuple(shapes[0]),
                tuple(str(formula(one)) for one in shapes[1]) if self.symbolic else None,
                elements(shapes[0]) * item,
                None if size is None else str(size),
                None if size is None else size.degree("seq"),
                alias_of,
            )
        )
        return number

    def shapes(self, tensor: Tensor) -> tuple[Shape, ...]:
        """Of a tensor: in numbers, and as formulas where there are."""
        if tensor.shape_expr is None:
            return (tensor.shape,)
        return tensor.shape, tuple(parse(size) for size in tensor.shape_expr)

    def before_the_run(self, flops: Sequence[Any]) -> None:
        self.offline += flops[-1]  # the formula, where there is one

    def pad_dtype(self, tensor: Tensor, protection: Protection) -> str:
        """Of a pad: as wide as what crosses."""
        if protection.dtype is not None:
            return protection.dtype
        return self.wire_dtype if self.wire_dtype and tensor.dtype in FLOATING else tensor.dtype

    # --- a protected op ---

    def protect(self, op: Op, protection: Protection) -> None:
        scheme = self.scheme(op)
        (result,) = self.plain.outputs(op.id)
        reads = list(self.plain.inputs(op.id))
        sides = self.sides(op)
        masks: dict[int, _Mask] = {}
        for position, side in sides.items() if scheme.mask else ():
            inner = next(iter(masks.values())).key if masks and _shares_inner(protection) else -1
            masks[position] = self.mask(op, reads[position], side, inner)
        biases = [t.id for t in self.biases(op, reads)] if scheme.bias_at_home else []
        order = next(iter(masks.values())).key if protection.on_channels else -1
        sent = [
            masks[n].sent if n in masks else self.stored(t, protection, order)
            for n, t in enumerate(reads)
            if t.id not in biases
        ]
        away = self.product(op, scheme, protection, result, sent)
        plain = [reads[n].id for n in sides]
        if protection.on_channels:
            if protection.checks:
                self.checked(op, away, plain, protection)
            return
        if protection.checks and protection.dtype is not None:
            # What crosses is checked, mod 2^k: there nothing is rounded.
            number = self.check(op, away, [mask.sent for mask in masks.values()], (), protection)
            away = self.add(
                number, f"{result.name}.checked", self.shapes(result), protection.dtype, result
            )
        keys = [mask.key for mask in masks.values()]
        if scheme.pads:
            keys = [self.product_pad(op, reads, result, protection, keys[0])]
        if scheme.recover is not None:
            added = 1 if biases else 0  # for each element
            flops = [
                scheme.recover(shape) + added * elements(shape) for shape in self.shapes(result)
            ]
            reading = [away, *keys, *biases]
            recovered = self.at_home("recover", op, protection.scheme, reading, flops, result.dtype)
        if not protection.checks or protection.dtype is not None:
            self.tensors[result.id] = replace(result, op=recovered)
            return
        found = away
        if scheme.recover is not None:
            found = self.add(
                recovered, f"{result.name}.unchecked", self.shapes(result), result.dtype, result
            )
        self.checked(op, found, plain, protection)

    def scheme(self, op: Op) -> Scheme:
        """That of a protected op."""
        operands = _operands(self.plain, op)
        assert operands is not None
        return SCHEMES[self.protected[op.id].scheme, operands]

    def sides(self, op: Op) -> dict[int, Side]:
        """Position of an operand that is no weight -> its side."""
        flowing = [
            n for n, t in enumerate(self.plain.inputs(op.id)) if not _is_stored(self.plain, t)
        ]
        return dict(zip(flowing, ("left", "right"), strict=False))

    def mask_for(self, number: int, tensor: Tensor) -> None:
        """Mask a tensor before the first op that reads it, whether that one is protected or not: so
        it lies as long wherever a mask is, whichever ops have one."""
        op = self.plain.ops[number]
        reads = self.plain.inputs(number)
        for position, side in self.sides(op).items():
            alone = self.scheme(op).mask is not None and not _shares_inner(self.protected[number])
            if reads[position].id == tensor.id and alone:
                self.mask(op, tensor, side)

    def mask(self, op: Op, tensor: Tensor, side: Side, inner: int = -1) -> _Mask:
        """What is sent in place of an operand: made once for all ops that read it, checked or not.

        ``inner`` is the key of the other operand, where that has to be undone by this mask.
        """
        scheme, protection = self.scheme(op), self.protected[op.id]
        assert scheme.mask is not None
        made = tensor.id, replace(protection, check="", trials=1), scheme.operands, side, inner
        if made in self.made:
            return self.made[made]
        shapes, dtype = self.shapes(tensor), protection.dtype or tensor.dtype
        flops = [scheme.mask(shape) for shape in shapes]
        pads = protection.pads == "offline" and scheme.pads
        reads = [tensor.id, *([inner] if inner >= 0 else [])]
        key = inner if protection.on_channels else -1
        key_dtype = self.key_dtype(scheme, tensor, protection)
        if pads:
            key = self.add(None, f"{tensor.name}.pad", shapes, key_dtype, role=Role.BUFFER)
            self.pads.add(key)
            reads.append(key)
        elif key < 0 and protection.on_channels and scheme.operands == "weights":
            # The weights lie permuted where they are: this order is that of all runs.
            orders = [shape[-1:] for shape in shapes]
            key = self.add(None, f"{tensor.name}.order", orders, key_dtype, role=Role.BUFFER)
            reads.append(key)
        number = self.at_home("mask", op, protection.scheme, reads, flops, tensor.dtype)
        sent = self.add(
            number,
            f"{tensor.name}.masked",
            [scheme.sent(shape, side) for shape in shapes],
            dtype,
            tensor,
        )
        if key < 0:
            keys = [self.key_shape(scheme, shape, side, protection) for shape in shapes]
            key = self.add(number, f"{tensor.name}.key", keys, key_dtype)
        attack = scheme.attack(side, tensor.label)
        self.masks[sent] = Masked(tensor.id, protection, attack, scheme.withstands)
        self.made[made] = _Mask(sent, key)
        return self.made[made]

    def in_form(self, tensor: Tensor, form: str, dtype: str) -> int:
        """Weights in another form, stored where their op runs; those of one storage once."""
        key = tensor.id, form
        if key not in self.forms:
            storage, alike = self.plain.storage(tensor).id, None
            for (other, known), copy in self.forms.items():
                one = self.plain.tensors[other]
                same = self.plain.storage(one).id == storage and one.numel == tensor.numel
                if known == form and same:
                    alike = self.tensors[copy].alias_of or copy
            self.forms[key] = self.add(
                None,
                f"{tensor.name}.{form}",
                self.shapes(tensor),
                dtype,
                role=Role.PARAMETER,
                alias_of=alike,
            )
            self.copies[self.forms[key]] = tensor.id
        return self.forms[key]

    def key_dtype(self, scheme: Scheme, tensor: Tensor, protection: Protection) -> str:
        """Of pads what crosses; places are whole numbers, and scalars are as good as float32."""
        if scheme.pads:
            return self.pad_dtype(tensor, protection)
        return "int32" if scheme.name == "permutation" else _at_least_float32(tensor.dtype)

    def key_shape(self, scheme: Scheme, shape: Shape, side: Side, protection: Protection) -> Shape:
        """Of what home remembers of a mask: of permuted channels their order, in each batch."""
        if protection.on_channels:
            return (*shape[:-2], shape[-1])
        return scheme.key(shape, side)

    def stored(self, tensor: Tensor, protection: Protection, order: int = -1) -> int:
        """What is stored of a protected op, in the form that its scheme needs; ``order`` is that of
        permuted channels."""
        if protection.dtype is not None:
            return self.in_form(tensor, f"int{protection.bits}", protection.dtype)
        if order >= 0 and len(tensor.shape) > 1:
            return self.in_form(tensor, f"by_{self.tensors[order].name}", tensor.dtype)
        return tensor.id

    def biases(self, op: Op, reads: Sequence[Tensor]) -> list[Tensor]:
        """What a product adds beside."""
        added = base_name(op.target) == "addmm"
        return [t for n, t in enumerate(reads) if (n == 0 if added else n > 1)]

    def product(
        self, op: Op, scheme: Scheme, protection: Protection, result: Tensor, sent: Sequence[int]
    ) -> int:
        """The op itself, on what is sent; what it makes."""
        biased = base_name(op.target) == "addmm" and scheme.bias_at_home
        number = self.copy(op, sent, **({"target": "aten.mm.default"} if biased else {}))
        if protection.on_channels and not protection.checks:
            made = result.id  # it comes as it is
        else:
            shapes = [scheme.sent(shape, "result") for shape in self.shapes(result)]
            made = self.add(
                number, f"{result.name}.masked", shapes, protection.dtype or result.dtype, result
            )
        cost, factor = op.cost, scheme.factor
        gemm, times = cost.gemm, 2 if factor == 4 else 1
        assert gemm is not None
        self.ops[number] = replace(
            self.ops[number],
            dtype=self.tensors[made].dtype,
            extent_expr=None if factor > 1 else op.extent_expr,
            cost=replace(
                cost,
                gemm=Gemm(gemm.batch, gemm.m * times, gemm.n * times, gemm.k),
                flops=None if cost.flops is None else cost.flops * factor,
                flops_expr=None
                if cost.flops_expr is None
                else str(parse(cost.flops_expr) * factor),
                causal_flops=cost.causal_flops if factor == 1 else None,
                causal_flops_expr=cost.causal_flops_expr if factor == 1 else None,
            ),
        )
        if made != result.id and (scheme.mask is None or protection.on_channels):
            self.copies[made] = result.id
        elif made != result.id:
            attack = scheme.attack("result", result.label)
            self.masks[made] = Masked(result.id, protection, attack, scheme.withstands)
        return made

    def product_pad(
        self, op: Op, reads: Sequence[Tensor], result: Tensor, protection: Protection, pad: int
    ) -> int:
        """The pad times the weights: made before the run, or at home in it."""
        shapes = self.shapes(result)
        matrices = [self.matrices(op, reads, result, n) for n in range(len(shapes))]
        flops = [one.flops for one in matrices]
        name, dtype = f"{result.name}.pad", self.pad_dtype(result, protection)
        if protection.pads == "offline":
            self.before_the_run(flops)
            made = self.add(None, name, shapes, dtype, role=Role.BUFFER)
            self.pads.add(made)
            return made
        biases = self.biases(op, reads)
        weights = [t for t in reads if _is_stored(self.plain, t) and t not in biases]
        stored = [self.stored(t, protection) for t in weights]
        number = self.at_home("pad", op, protection.scheme, [pad, *stored], flops, dtype)
        cost = replace(self.ops[number].cost, gemm=op.cost.gemm)
        self.ops[number] = replace(self.ops[number], kind=Kind.LINEAR, cost=cost)
        return self.add(number, name, shapes, dtype)

    def matrices(self, op: Op, reads: Sequence[Tensor], result: Tensor, which: int) -> Matrices:
        """The shapes of a product: in numbers (0), or as formulas (1)."""
        biases = self.biases(op, reads)
        left, right = (self.shapes(t) for t in [t for t in reads if t not in biases][:2])
        gemm = op.cost.gemm
        assert gemm is not None
        inner = left[which][-1] if base_name(op.target) in _MATRICES else gemm.k
        return Matrices(left[which], right[which], self.shapes(result)[which], inner)

    def checked(self, op: Op, found: int, operands: Sequence[int], protection: Protection) -> None:
        """Home's check of a result, which is the result for all who read it."""
        (result,) = self.plain.outputs(op.id)
        biases = [t.id for t in self.biases(op, self.plain.inputs(op.id))]
        number = self.check(op, found, operands, biases, protection)
        self.tensors[result.id] = replace(result, op=number)

    def check(
        self,
        op: Op,
        found: int,
        operands: Sequence[int],
        biases: Sequence[int],
        protection: Protection,
    ) -> int:
        """Home's check that ``found`` is the product of ``operands``, plus ``biases``: an op that
        hands it on. Stored weights are no operand: what is needed of them is made before."""
        (result,) = self.plain.outputs(op.id)
        reads = list(self.plain.inputs(op.id))
        stored, trials = len(operands) == 1, protection.trials
        dtype = protection.dtype or _at_least_float32(result.dtype)
        count = len(self.shapes(result))
        matrices = [self.matrices(op, reads, result, n) for n in range(count)]
        flops = [check_flops(one, trials, stored=stored) for one in matrices]
        vectors = [
            self.add(
                None,
                f"{result.name}.{name}",
                [(*one.right[:-2], trials, size) for one, size in sized],
                dtype,
                role=Role.BUFFER,
            )
            for name, sized in (
                ("check", [(one, one.result[-1]) for one in matrices]),
                *((("check_weights", [(one, one.inner) for one in matrices]),) if stored else ()),
            )
        ]
        if stored:
            self.before_the_run([2 * trials * elements(one.right) for one in matrices])
        reading = [found, *operands, *vectors, *biases]
        computed = protection.dtype or result.dtype
        return self.at_home("check", op, "freivalds", reading, flops, computed)
