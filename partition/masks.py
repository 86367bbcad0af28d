"""A graph whose protected ops compute on masked operands, with what home does for that as ops.

``masked`` rewrites a graph: before a protected op home masks what it reads (``mask``), the op
itself multiplies what is masked, and after it home recovers the result (``recover``) and checks it
(``check``). Each is an op like any other, so that calls, transfers, memory, seconds and schedules
are counted by the same rules as without masks, and so do the keys of masks and the pads: they are
tensors at home. One tensor under one mask is masked once, however many ops read it.

Tensors keep their ids and the new ones come behind; ops have new ids (``MaskedGraph.origin``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from partition.placement import Placement
from partition.schemes import (
    SCHEMES,
    Matrices,
    Operands,
    Protection,
    Scheme,
    Shape,
    Side,
    Work,
    check_work,
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

Part = Literal["mask", "pad", "recover", "check"]
"""What an op at home does for a protected one: ``pad`` multiplies a pad of this run by weights."""


@dataclass(frozen=True, slots=True)
class Masked:
    """What stands for a tensor away from home."""

    plain: int
    """The tensor that it stands for."""
    protection: Protection
    attack: str
    """The listed attack that recovers the plain tensor from what is sent; empty where none does."""
    withstands: str
    """What hiding it so is shown to withstand; may be empty."""


class MaskedGraph(OpGraph):
    """A graph with protected ops; see ``masked``."""

    plain: OpGraph
    """The graph without masks. Its tensors have the same ids here."""
    origin: Sequence[int | None]
    """By op: the op of the plain graph that it is; None for what home does for masks."""
    parts: Mapping[int, tuple[Part, int]]
    """Op that home does for masks -> (what it does, the plain op that it first does it for)."""
    protected: Mapping[int, Protection]
    """Plain op -> how it is protected."""
    masks: Mapping[int, Masked]
    """Tensor that is seen away from home in place of a plain one -> what it is."""
    pads: frozenset[int]
    """The tensors that are made before the run, for one run alone."""
    offline_flops: int
    """What making them takes, and what checks need of the weights."""
    offline_expr: str | None
    """The same as a formula; None for a concrete trace."""
    copies: Mapping[int, int]
    """Parameter in another form -> the parameter of the plain graph. Home makes that form."""
    wire_dtype: str | None
    """What floats cross in."""

    @cached_property
    def here(self) -> Mapping[int, int]:
        """Plain op -> its id in this graph."""
        return {plain: op for op, plain in enumerate(self.origin) if plain is not None}

    @property
    def pad_bytes(self) -> int:
        """What the pads of one run take."""
        return sum(self.tensors[pad].bytes for pad in self.pads)

    @property
    def home_mask_flops(self) -> int:
        """What home computes in a run for masks, recovery and checks."""
        return sum(self.ops[op].cost.flops or 0 for op in self.parts)

    def placed(self, placement: Placement) -> Placement:
        """A placement of the plain graph, with what masks need at home."""
        devices: list[str | None] = []
        pinned: list[bool] = []
        reasons: list[str] = []
        for op, plain in enumerate(self.origin):
            if plain is None:
                what, of = self.parts[op]
                devices.append(placement.home)
                pinned.append(True)
                reasons.append(f"{what} for {self.plain.ops[of].name}: {self.protected[of]}")
            else:
                devices.append(placement.devices[plain])
                pinned.append(placement.pinned[plain])
                reasons.append(placement.reasons[plain])
        streams = frozenset(self.here[op] for op in placement.streams)
        return Placement(placement.home, tuple(devices), tuple(pinned), tuple(reasons), streams)

    def plain_placement(self, placement: Placement) -> Placement:
        """A placement of this graph, without what home does for masks."""
        ops = [self.here[op] for op in range(len(self.plain.ops))]
        streams = frozenset(
            plain for op in placement.streams if (plain := self.origin[op]) is not None
        )
        return Placement(
            placement.home,
            tuple(placement.devices[op] for op in ops),
            tuple(placement.pinned[op] for op in ops),
            tuple(placement.reasons[op] for op in ops),
            streams,
        )


def plain_of(graph: OpGraph) -> OpGraph:
    """A graph without its masks."""
    return graph.plain if isinstance(graph, MaskedGraph) else graph


def settled(graph: OpGraph, placement: Placement) -> tuple[OpGraph, Placement]:
    """The same placement where no op is masked that is at home."""
    if not isinstance(graph, MaskedGraph):
        return graph, placement
    plain = graph.plain_placement(placement)
    away = {op: how for op, how in graph.protected.items() if plain.devices[op] != placement.home}
    found = masked(graph.plain, away, graph.wire_dtype)
    return found, found.placed(plain) if isinstance(found, MaskedGraph) else plain


def seen_through(
    graph: OpGraph, secret: Collection[int], allowed: Collection[str]
) -> frozenset[int]:
    """What stands for ``secret`` tensors and does not hide them well enough.

    That is what no scheme hides that is ``allowed``, withstands something, and has no attack; and
    other forms of parameters.
    """
    if not isinstance(graph, MaskedGraph):
        return frozenset()
    weak = {
        tensor
        for tensor, one in graph.masks.items()
        if one.plain in secret
        and not (one.protection.scheme in allowed and one.withstands and not one.attack)
    }
    return frozenset(weak | {copy for copy, plain in graph.copies.items() if plain in secret})


def masked(
    graph: OpGraph, protected: Mapping[int, Protection], wire_dtype: str | None = None
) -> OpGraph:
    """An annotated graph with the ``protected`` ops masked; itself where no op is.

    ``wire_dtype`` is what floats cross in: pads are as wide. Raises InputError where a scheme is
    not for an op.
    """
    return _Rewriting(graph, protected, wire_dtype).graph() if protected else graph


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
    operands = _operands(graph, op)
    assert operands is not None
    left = _flowing(graph, op)[0].shape
    rows = left[-2] if len(left) > 1 else 1
    return rows >= SCHEMES[protection.scheme, operands].least_rows


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
        self.made: dict[tuple[int | str, ...], _Mask] = {}
        self.forms: dict[tuple[int, str], int] = {}
        self.offline = (0, const(0))

    def graph(self) -> MaskedGraph:
        for op in self.plain.ops:
            if op.id in self.protected:
                self.protect(op, self.protected[op.id])
            else:
                self.copy(op)
        found = MaskedGraph(self.plain.meta, self.ops, self.tensors, self.edges)
        found.plain, found.origin, found.parts = self.plain, tuple(self.origin), self.parts
        found.protected, found.masks = self.protected, self.masks
        found.pads = frozenset(self.pads)
        found.offline_flops = self.offline[0]
        found.offline_expr = str(self.offline[1]) if self.symbolic else None
        found.copies = {copy: plain for (plain, _), copy in self.forms.items()}
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
        self, part: Part, of: Op, scheme: str, reads: Sequence[int], work: Sequence[Work]
    ) -> int:
        """An op of home's; ``work`` in numbers and, of a symbolic trace, in formulas."""
        number = len(self.ops)
        item = ITEM_BYTES[self.tensors[reads[0]].dtype]
        flops = work[0].flops
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
                self.tensors[reads[0]].dtype,
                cost=OpCost(
                    flops=flops,
                    flops_expr=str(formula(work[1].flops)) if self.symbolic else None,
                    flops_status=Status.EXACT if flops else Status.ZERO,
                    read_bytes=work[0].read * item,
                    write_bytes=work[0].write * item,
                ),
            )
        )
        self.read(number, reads)
        return number

    def add(
        self,
        op: int | None,
        name: str,
        shapes: Sequence[Shape],
        dtype: str,
        like: Tensor | None = None,
        role: Role = Role.ACTIVATION,
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
                None,
            )
        )
        return number

    def shapes(self, tensor: Tensor) -> tuple[Shape, ...]:
        """Of a tensor: in numbers, and as formulas where there are."""
        if tensor.shape_expr is None:
            return (tensor.shape,)
        return tensor.shape, tuple(parse(size) for size in tensor.shape_expr)

    def before_the_run(self, flops: Sequence[Any]) -> None:
        whole, expr = self.offline
        self.offline = whole + flops[0], expr + (flops[1] if self.symbolic else 0)

    def pad_dtype(self, tensor: Tensor, protection: Protection) -> str:
        """As wide as what crosses."""
        if protection.dtype is not None:
            return protection.dtype
        return self.wire_dtype if self.wire_dtype and tensor.dtype in FLOATING else tensor.dtype

    # --- a protected op ---

    def protect(self, op: Op, protection: Protection) -> None:
        operands = _operands(self.plain, op)
        assert operands is not None
        scheme = SCHEMES[protection.scheme, operands]
        (result,) = self.plain.outputs(op.id)
        reads = list(self.plain.inputs(op.id))
        sides: dict[int, Side] = {}
        for position, tensor in enumerate(reads):
            if not _is_stored(self.plain, tensor):
                sides[position] = "right" if sides else "left"
        masks: dict[int, _Mask] = {}
        for position, side in sides.items() if scheme.mask is not None else ():
            inner = [masks[0].key] if masks and _shares_inner(protection) else []
            masks[position] = self.mask(op, reads[position], side, scheme, protection, inner)
        sent = [masks[n].sent if n in masks else t.id for n, t in enumerate(reads)]
        if protection.dtype is not None:
            sent = self.in_form(reads, sent, f"int{protection.bits}", protection.dtype)
        elif protection.on_channels and len(sides) == 1:
            order = next(iter(masks.values())).key
            sent = self.in_form(reads, sent, f"by_{self.tensors[order].name}")
        biases = [] if scheme.adds_away else [t.id for t in self.biases(op, reads)]
        sent = [t for t in sent if t not in biases]
        plain = away = self.product(op, scheme, protection, result, sent)
        keys = [mask.key for mask in masks.values()]
        if scheme.pads:
            keys = [self.product_pad(op, reads, result, protection, keys[0])]
        if scheme.recover is not None and not protection.on_channels:
            shapes = self.shapes(result)
            work = [scheme.recover(shape) for shape in shapes]
            number = self.at_home("recover", op, protection.scheme, [away, *keys, *biases], work)
            plain = self.result(number, result, protection)
        if protection.checks:
            self.check(op, reads, sides, result, plain, protection)

    def mask(
        self,
        op: Op,
        tensor: Tensor,
        side: Side,
        scheme: Scheme,
        protection: Protection,
        inner: Sequence[int],
    ) -> _Mask:
        """What is sent in place of an operand: made once for all ops that read it.

        ``inner`` is the key of the other operand, where that has to be undone by this mask.
        """
        assert scheme.mask is not None
        made = tensor.id, str(protection), side, *inner
        if made in self.made:
            return self.made[made]
        shapes, dtype = self.shapes(tensor), protection.dtype or tensor.dtype
        work = [scheme.mask(shape) for shape in shapes]
        before = protection.pads == "offline" and scheme.pads
        key_dtype = self.key_dtype(scheme, tensor, protection)
        reads = [tensor.id, *inner]
        key = inner[0] if inner and protection.on_channels else -1
        if before:
            key = self.add(None, f"{tensor.name}.pad", shapes, key_dtype, role=Role.BUFFER)
            self.pads.add(key)
            reads.append(key)
        elif protection.on_channels and _operands(self.plain, op) == "weights":
            # The weights lie permuted where they are: this order is that of all runs.
            orders = [shape[-1:] for shape in shapes]
            key = self.add(None, f"{tensor.name}.order", orders, key_dtype, role=Role.BUFFER)
            reads.append(key)
        number = self.at_home("mask", op, protection.scheme, reads, work)
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

    def in_form(
        self, reads: Sequence[Tensor], sent: Sequence[int], form: str, dtype: str | None = None
    ) -> list[int]:
        """The weights in another form, as they are stored where the op runs."""
        kept = []
        for number, tensor in zip(sent, reads, strict=True):
            if _is_stored(self.plain, tensor) and len(tensor.shape) > 1:
                key = tensor.id, form
                if key not in self.forms:
                    name = f"{tensor.name}.{form}"
                    self.forms[key] = self.add(
                        None, name, self.shapes(tensor), dtype or tensor.dtype, role=Role.PARAMETER
                    )
                number = self.forms[key]
            kept.append(number)
        return kept

    def result(self, number: int, result: Tensor, protection: Protection) -> int:
        """The plain result, made by an op of home's; still to be checked where it is checked."""
        if protection.checks:
            name = f"{result.name}.unchecked"
            return self.add(number, name, self.shapes(result), result.dtype, result)
        self.tensors[result.id] = replace(result, op=number)
        return result.id

    def biases(self, op: Op, reads: Sequence[Tensor]) -> list[Tensor]:
        """What a product adds beside."""
        added = base_name(op.target) == "addmm"
        return [t for n, t in enumerate(reads) if (n == 0 if added else n > 1)]

    def product(
        self, op: Op, scheme: Scheme, protection: Protection, result: Tensor, sent: Sequence[int]
    ) -> int:
        """The op itself, on what is sent; what it makes."""
        biased = base_name(op.target) == "addmm" and not scheme.adds_away
        number = self.copy(op, sent, **({"target": "aten.mm.default"} if biased else {}))
        if protection.on_channels or scheme.mask is None:
            made = self.result(number, result, protection)
            if made != result.id:
                self.masks[made] = Masked(result.id, protection, "it is what is sent", "")
        else:
            made = self.away(number, scheme, protection, result)
        self.at_cost(number, op, scheme, made, sent)
        return made

    def away(self, number: int, scheme: Scheme, protection: Protection, result: Tensor) -> int:
        """What stands for a result, made away."""
        shapes = [scheme.sent(shape, "result") for shape in self.shapes(result)]
        made = self.add(
            number, f"{result.name}.masked", shapes, protection.dtype or result.dtype, result
        )
        attack = scheme.attack("result", result.label)
        self.masks[made] = Masked(result.id, protection, attack, scheme.withstands)
        return made

    def at_cost(self, number: int, op: Op, scheme: Scheme, made: int, sent: Sequence[int]) -> None:
        """Have an op cost what it does on masked operands."""
        cost, factor = op.cost, scheme.factor
        gemm, times = cost.gemm, 2 if factor == 4 else 1
        assert gemm is not None
        read = sum(self.tensors[t].bytes for t in dict.fromkeys(sent))
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
                read_bytes=read,
                write_bytes=self.tensors[made].bytes,
                param_bytes=sum(
                    self.tensors[t].bytes for t in dict.fromkeys(sent) if self.tensors[t].op is None
                ),
            ),
        )

    def product_pad(
        self, op: Op, reads: Sequence[Tensor], result: Tensor, protection: Protection, pad: int
    ) -> int:
        """The pad times the weights: made before the run, or at home in it."""
        shapes = self.shapes(result)
        dtype = self.pad_dtype(result, protection)
        matrices = [self.matrices(op, reads, result, n) for n in range(len(shapes))]
        flops = [one.flops for one in matrices]
        if protection.pads == "offline":
            self.before_the_run(flops)
            name = f"{result.name}.pad"
            made = self.add(None, name, shapes, dtype, role=Role.BUFFER)
            self.pads.add(made)
            return made
        biases, form = self.biases(op, reads), f"int{protection.bits}"
        weights = [t for t in reads if _is_stored(self.plain, t) and t not in biases]
        if protection.dtype is not None:
            weights = [self.tensors[self.forms[t.id, form]] for t in weights]
        work = [
            Work(one.flops, elements(one.left) + elements(one.right), elements(one.result))
            for one in matrices
        ]
        number = self.at_home("pad", op, protection.scheme, [pad, *(t.id for t in weights)], work)
        gemm = op.cost.gemm
        self.ops[number] = replace(
            self.ops[number],
            kind=Kind.LINEAR,
            cost=replace(
                self.ops[number].cost, gemm=gemm, param_bytes=sum(t.bytes for t in weights)
            ),
        )
        return self.add(number, f"{result.name}.pad", shapes, dtype)

    def matrices(self, op: Op, reads: Sequence[Tensor], result: Tensor, which: int) -> Matrices:
        """The shapes of a product: in numbers (0), or as formulas (1)."""
        biases = self.biases(op, reads)
        left, right = (self.shapes(t) for t in [t for t in reads if t not in biases][:2])
        gemm = op.cost.gemm
        assert gemm is not None
        inner = left[which][-1] if base_name(op.target) in _MATRICES else gemm.k
        return Matrices(left[which], right[which], self.shapes(result)[which], inner)

    def check(
        self,
        op: Op,
        reads: Sequence[Tensor],
        sides: Mapping[int, Side],
        result: Tensor,
        plain: int,
        protection: Protection,
    ) -> None:
        """Home's check of a result, which is the result for all who read it."""
        stored = len(sides) == 1
        count = len(self.shapes(result))
        matrices = [self.matrices(op, reads, result, n) for n in range(count)]
        trials = protection.trials
        work = [check_work(one, trials, stored=stored) for one in matrices]
        left = next(n for n, side in sides.items() if side == "left")
        vectors = [
            self.add(
                None,
                f"{result.name}.{name}",
                [(*one.right[:-2], trials, size) for one, size in sized],
                _at_least_float32(result.dtype),
                role=Role.BUFFER,
            )
            for name, sized in (
                ("check", [(one, one.result[-1]) for one in matrices]),
                *((("check_weights", [(one, one.inner) for one in matrices]),) if stored else ()),
            )
        ]
        if stored:
            self.before_the_run([2 * trials * elements(one.right) for one in matrices])
        others = [] if stored else [reads[n].id for n, side in sides.items() if side == "right"]
        biases = [t.id for t in self.biases(op, reads)]
        number = self.at_home(
            "check", op, "freivalds", [plain, reads[left].id, *others, *vectors, *biases], work
        )
        self.tensors[result.id] = replace(result, op=number)
