"""FLOPs and memory traffic of ATen ops: the one registry of cost formulas.

A formula is a pure function of the shapes of an op's tensor inputs and outputs. Sizes may be
integers or ``Formula``s: the same function gives the number and the closed form. Conventions:

- 1 multiply-accumulate = 2 FLOPs. A matrix product counts 2*batch*m*n*k, bias not included, as
  torch.utils.flop_counter does.
- 1 FLOP for each floating-point add, subtract, multiply, divide, maximum or negation of an element
  (``exact``); comparisons, selections, integer and boolean work count 0 (``zero``).
- A transcendental counts as 1, so what is built of several is the number of steps that its
  definition takes (``estimate``: hardware differs).
- Moves, casts, gathers, views and constants count 0 FLOPs (``zero``).
- Which experts' weights are read depends on the tokens; it is assumed that each goes to k of E,
  uniformly and independently (``estimate``, with the assumption beside it). The FLOPs of those
  products rest on no assumption: a row meets one expert, whichever that is.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from operator import mul

from tracer.formula import Formula, formula, parse
from tracer.graph import FLOATING, Gemm, Kind, Op, OpCost, OpGraph, Role, Status, Tensor
from tracer.kinds import base_name, kind_of

Size = Formula | int
Shape = Sequence[Size]
Shapes = Sequence[Shape]
GemmOf = Callable[[Shapes, Shapes], tuple[Size, Size, Size, Size]]


@dataclass(frozen=True, slots=True)
class _Entry:
    status: Status
    flops: Callable[[Shapes, Shapes], Size]
    gemm: GemmOf | None = None


_REGISTRY: dict[str, _Entry] = {}


def _register(names: str, entry: _Entry) -> None:
    for name in names.split():
        if name in _REGISTRY:
            raise ValueError(f"two cost formulas for {name}")
        if kind_of(f"aten.{name}") is Kind.OTHER:
            raise ValueError(f"a cost formula for {name}, which tracer.kinds does not know")
        _REGISTRY[name] = entry


def _count(shape: Shape) -> Size:
    return reduce(mul, shape, 1)


def _gemm(names: str) -> Callable[[GemmOf], GemmOf]:
    """Register a function that gives (batch, m, n, k) of a matrix product."""

    def add(function: GemmOf) -> GemmOf:
        _register(names, _Entry(Status.EXACT, lambda i, o: 2 * _count(function(i, o)), function))
        return function

    return add


# --- matrix products ------------------------------------------------------------------------------
# No shape tells what an einsum multiplies, nor whether a "convolution" is a transposed one.


@_gemm("linear")
def _linear(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    x, weight = inputs[0], inputs[1]  # [..., k] x [n, k]
    return 1, _count(x[:-1]), weight[0], weight[-1]


@_gemm("matmul mm bmm mv dot")
def _matmul(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    a, b = inputs[0], inputs[1]
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    # A stack of matrices times one matrix is a single tall product, as torch carries it out.
    if len(b) <= 2:
        return 1, _count(a[:-1]), n, a[-1]
    batch = outputs[0][:-2] if len(a) > 1 else outputs[0][:-1]
    return _count(batch), m, n, a[-1]


@_gemm("addmm baddbmm")
def _addmm(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    return _matmul(inputs[1:], outputs)


_GROUPED = "_grouped_mm grouped_mm_fallback"


@_gemm(_GROUPED)
def _grouped_mm(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    """[m, k] x [groups, k, n]: a row meets the matrix of its group alone, however rows are split.

    Likewise where k or n is what is split; two stacks of matrices are multiplied pair by pair.
    """
    a, b = inputs[0], inputs[1]
    return a[0] if len(a) == len(b) == 3 else 1, a[-2], b[-1], a[-1]


@_gemm("conv1d conv2d conv3d")
def _conv(inputs: Shapes, outputs: Shapes) -> tuple[Size, Size, Size, Size]:
    """A product for each group of channels; its rows are the places that the kernel is put to."""
    x, kernel = inputs[0], inputs[1]  # [..., channels, *size], [out, channels / groups, *size]
    axis = 1 - len(kernel)  # of the channels, which a batch may stand before
    groups = formula(x[axis]) // kernel[1]
    places = _count(outputs[0][:axis]) * _count(outputs[0][axis + 1 :])
    return groups, places, formula(kernel[0]) // groups, _count(kernel[1:])


def _attention(inputs: Shapes, outputs: Shapes) -> Size:
    """Both products over the whole square, q k^T and probabilities x v, as torch counts them."""
    q, k, v = inputs[:3]  # [..., heads, queries, d], [..., kv heads, keys, d], [..., keys, d_v]
    return 2 * _count(q[:-1]) * k[-2] * q[-1] + 2 * _count(q[:-1]) * k[-2] * v[-1]


_register(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_cudnn_attention",
    _Entry(Status.EXACT, _attention),
)

# --- element by element ---------------------------------------------------------------------------


def _each_output(steps: int) -> Callable[[Shapes, Shapes], Size]:
    return lambda inputs, outputs: steps * _count(outputs[0])


def _each_input(steps: int) -> Callable[[Shapes, Shapes], Size]:
    return lambda inputs, outputs: steps * _count(inputs[0])


_register(
    "add sub rsub mul div true_divide neg abs square maximum minimum relu "
    "clamp clamp_min clamp_max clip",
    _Entry(Status.EXACT, _each_output(1)),
)
_register("addcmul addcdiv", _Entry(Status.EXACT, _each_output(2)))
_register("lerp", _Entry(Status.EXACT, _each_output(3)))  # a + w*(b - a)
_register("index_add", _Entry(Status.EXACT, lambda i, o: _count(i[-1])))  # what is added
_register("scatter_add", _Entry(Status.EXACT, lambda i, o: _count(i[1])))  # each index adds one
_register("col2im", _Entry(Status.EXACT, _each_input(1)))  # each element of a patch is added

for _steps, _names in {
    1: "sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh atan "
    "atan2 asin acos erf erfc pow floor ceil round trunc leaky_relu relu6 hardtanh",
    2: "floor_divide remainder fmod",  # divide, then round or take what the rounded part leaves
    3: "softplus elu hardsigmoid",  # exp, and an add and a log, or a subtract and a product; or:
    # clamp(x + 3, 0, 6) / 6, and hardswish times x
    4: "sigmoid logsigmoid log_sigmoid log_sigmoid_forward hardswish",  # negate, exp, add, and
    # divide or log
    5: "silu mish",  # a sigmoid, or a tanh of a softplus, and a product
    8: "gelu",  # 0.5*x*(1 + erf(x/sqrt 2)), or the tanh of a cubic
}.items():
    _register(_names, _Entry(Status.ESTIMATE, _each_output(_steps)))

_register(
    "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not __and__ __or__ "
    "__xor__ logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf isfinite sign "
    "nan_to_num any all argmax argmin topk sort argsort count_nonzero bincount histc",
    _Entry(Status.ZERO, lambda inputs, outputs: 0),
)

# --- along an axis --------------------------------------------------------------------------------

_register(
    "softmax _softmax _safe_softmax log_softmax _log_softmax",
    _Entry(Status.ESTIMATE, _each_output(5)),
)
"""Maximum, subtract, exp, sum, divide (or subtract the log of the sum)."""

_register(
    "layer_norm native_layer_norm group_norm native_group_norm",
    _Entry(Status.ESTIMATE, _each_input(8)),
)
"""Mean (1), variance (3), subtract, divide, scale, shift."""

_register("batch_norm", _Entry(Status.ESTIMATE, _each_input(4)))
"""Subtract, divide, scale, shift: mean and variance are known when a model is evaluated."""

_register("rms_norm", _Entry(Status.ESTIMATE, _each_input(4)))
"""Square, mean, times rsqrt, scale."""

_register("mean", _Entry(Status.EXACT, _each_input(1)))
_register("sum", _Entry(Status.EXACT, lambda i, o: formula(_count(i[0])) - _count(o[0])))
_register(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    _Entry(Status.ESTIMATE, _each_input(1)),
)
"""A mean of each part of the input; where parts do not divide it evenly, they overlap a little."""
_register("amax amin max min", _Entry(Status.ESTIMATE, _each_input(1)))
_register("cumsum cumprod", _Entry(Status.ESTIMATE, _each_input(1)))
"""One after the other; what adds in parallel takes more steps."""
_register("var std var_mean", _Entry(Status.ESTIMATE, _each_input(4)))
"""Mean (1), subtract, square, sum."""
_register("linalg_vector_norm norm", _Entry(Status.ESTIMATE, _each_input(2)))
"""Square, sum; the root of the few results is left out."""
_register("logsumexp", _Entry(Status.ESTIMATE, _each_input(4)))
"""Maximum, subtract, exp, sum."""
_register("linalg_solve_triangular", _Entry(Status.ESTIMATE, lambda i, o: _count(o[0]) * i[0][-1]))
"""Each of n rows takes the rows solved before it (n/2 of them, a product and a subtract each)."""

# --- experts --------------------------------------------------------------------------------------

_STATE = (Role.PARAMETER, Role.BUFFER)
_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "take", "take_along_dim"})
_OF_ROWS = frozenset({"embedding", "index", "index_select"})
"""Those that take whole rows of what they read."""
_CHOOSE = frozenset({"topk", "max", "argmax", "sort", "argsort"})
_PASS_ON = frozenset({"to", "_to_copy", "histc", "cumsum"})
"""What keeps the experts' numbers or counts them, also where those are written as floats."""


@dataclass(frozen=True, slots=True)
class _Routing:
    """Rows that meet one expert of a stack each, where values decide which."""

    stack: Tensor
    """The weights [experts, ...]."""
    rows: int
    """Pairs of a token and an expert that it goes to."""
    chosen: int | None
    """How many experts a token goes to; None where the graph does not show it."""
    choices: int
    """What it chooses among: the experts, and more where a choice may be none of them."""

    @property
    def share(self) -> Fraction:
        """The part of the stack that one token meets, all of it where that is not shown."""
        return Fraction(1) if self.chosen is None else Fraction(self.chosen, self.choices)

    @property
    def experts_read(self) -> Decimal:
        """Distinct experts that some row meets: how many to expect, else how many at most."""
        experts = self.stack.shape[0]
        if self.chosen is None:
            return Decimal(min(experts, self.rows))
        return expected_experts(self.chosen, experts, self.choices, self.rows // self.chosen)

    @property
    def assumption(self) -> str:
        """What ``experts_read`` rests on."""
        experts = self.stack.shape[0]
        if self.chosen is None:
            return (
                "how tokens choose their experts is not shown: at most one expert a row, "
                f"{self.experts_read} of {experts} experts' weights read"
            )
        none = self.choices - experts
        among = f"{experts} experts" + (f" and {none} choices of none" if none else "")
        return (
            f"each token goes to {self.chosen} of {among}, uniformly and independently: "
            f"{self.experts_read:.1f} experts' weights read on average"
        )


def expected_experts(chosen: int, experts: int, choices: int, tokens: int) -> Decimal:
    """The expected number of distinct experts that ``tokens`` reach.

    Each token goes to ``chosen`` different ones of ``choices``, uniformly and independently, of
    which ``experts`` have weights: one of these is missed by a token with probability
    1 - chosen/choices, and by all with that to the power of ``tokens``. Decimal, so that a table
    is the same on every machine.
    """
    return experts * (1 - (1 - Decimal(chosen) / choices) ** tokens)


def _routing(graph: OpGraph, op: Op) -> _Routing | None:
    """What an op reads of a stack of experts; None for an op that reads all it is given.

    A grouped product of rows [m, k] and a stack [experts, k, n] (or of a stack and columns), and a
    gather from parameters by what a router chose. A product with the whole stack, as of a model
    that runs every expert on every token, is none.
    """
    name, inputs = base_name(op.target), graph.inputs(op.id)
    ranks = [len(t.shape) for t in inputs]
    if name in _GROUPED.split() and ranks[:2] in ([2, 3], [3, 2]) and len(inputs) > 2:
        left = ranks[0] == 2  # rows are split among the experts, else columns are
        split, stack = inputs[:2] if left else (inputs[1], inputs[0])
        rows = split.shape[0 if left else 1]
        chooser = _chooser(graph, inputs[2])
    elif name in _OF_ROWS and len(inputs) == 2 and graph.storage(inputs[0]).role in _STATE:
        stack, index = inputs
        rows = index.numel
        chooser = _chooser(graph, index)
        if chooser is None or graph.outputs(op.id)[0].shape != index.shape + stack.shape[1:]:
            return None  # a look-up by what the user asks for, or along another axis
    else:
        return None
    tokens, choices = chooser or (0, 0)
    choices = max(choices, stack.shape[0])
    shown = tokens > 0 and rows % tokens == 0 and 0 < rows // tokens <= choices
    return _Routing(stack, rows, rows // tokens if shown else None, choices)


def _chooser(graph: OpGraph, index: Tensor) -> tuple[int, int] | None:
    """(tokens, choices of each) of the scores that integers come from, None where that is unclear.

    Scores are floats [..., choices]; a top-k or a maximum along the last axis makes integers of
    them. What comes after (sorting, counting, reshaping the experts' numbers) is followed back to
    the nearest choice: the last one, where a router narrows its choice step by step.
    """
    front = [index]
    for tensor in front:  # breadth first: it grows
        if tensor.op is None:
            continue
        op, reads = graph.ops[tensor.op], graph.inputs(tensor.op)
        scores = [t for t in reads if t.dtype in FLOATING]
        if not scores or op.is_view or base_name(op.target) in _PASS_ON:
            front += [t for t in reads if t not in front]
            continue
        *tokens, choices = scores[0].shape or (0,)
        if base_name(op.target) in _CHOOSE and tensor.shape[: len(tokens)] == tuple(tokens):
            return reduce(mul, tokens, 1), choices
        return None
    return None


def active_parameters(graph: OpGraph) -> int:
    """The parameters that one token meets: all but the experts that it does not go to.

    Dense ones count whole, the table of an embedding too. So do the experts of a model that runs
    them all on every token, and those that are not shown to be chosen.
    """
    share: dict[int, Fraction] = {}  # storage -> the part of it that a token meets
    for op in reversed(graph.ops):
        routing = _routing(graph, op)
        made = [graph.storage(t).id for t in graph.outputs(op.id)]
        for tensor in graph.inputs(op.id):
            stored = graph.storage(tensor).id
            if op.is_view or op.is_constant:  # as much as of what it makes, which is read later
                part = max((share.get(t, Fraction(0)) for t in made), default=Fraction(1))
            elif routing and tensor is routing.stack:
                part = routing.share
            else:
                part = Fraction(1)
            share[stored] = max(share.get(stored, Fraction(0)), part)
    owners = [t for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None]
    return graph.meta.parameters - round(sum(t.numel * (1 - share.get(t.id, 1)) for t in owners))


def assumptions(graph: OpGraph) -> tuple[str, ...]:
    """What the costs of an annotated graph assume, each once."""
    return tuple(dict.fromkeys(op.cost.assumption for op in graph.ops if op.cost.assumption))


# --- the whole graph ------------------------------------------------------------------------------

_FREE = frozenset({Kind.VIEW, Kind.CONSTANT, Kind.INPUT, Kind.OUTPUT})


def annotate(graph: OpGraph) -> OpGraph:
    """The graph with every op's cost filled in.

    Views, constants, inputs and the output cost nothing at run time. An op whose name the registry
    lacks gets status ``unsupported`` and no FLOPs; its memory traffic is known all the same.
    """
    return graph.with_ops(replace(op, cost=_cost(graph, op)) for op in graph.ops)


def _cost(graph: OpGraph, op: Op) -> OpCost:
    if op.is_view or op.kind in _FREE:
        return _no_flops(bool(graph.meta.symbolic))
    inputs, outputs = graph.inputs(op.id), graph.outputs(op.id)
    # Reading an expanded tensor touches less memory than it seems to have.
    reads = {t: min(t.bytes, graph.storage(t).bytes) for t in inputs}
    if base_name(op.target) in _GATHERS:  # only the rows that are asked for
        reads[inputs[0]] = sum(t.bytes for t in outputs)
    cost = _arithmetic(base_name(op.target), op.kind, _shapes(inputs), _shapes(outputs), op.dtype)
    if routing := _routing(graph, op):
        stack = routing.stack
        stored = min(stack.bytes, graph.storage(stack).bytes)
        reads[stack] = round(routing.experts_read * stored / stack.shape[0])  # to the nearest byte
        if cost.flops_status is not Status.UNSUPPORTED:
            cost = replace(cost, flops_status=Status.ESTIMATE)
        cost = replace(cost, assumption=routing.assumption)
    return replace(
        cost,
        read_bytes=sum(reads.values()),
        write_bytes=sum(t.bytes for t in outputs),
        param_bytes=sum(size for t, size in reads.items() if graph.storage(t).role in _STATE),
    )


_Known = tuple[tuple[tuple[int, ...], tuple[str, ...] | None], ...]
"""Shapes of tensors with their formulas, None in a concrete trace."""


def _shapes(tensors: Sequence[Tensor]) -> _Known:
    return tuple((t.shape, t.shape_expr) for t in tensors)


@lru_cache(maxsize=4096)
def _arithmetic(
    name: str, kind: Kind, inputs: _Known, outputs: _Known, dtype: str | None
) -> OpCost:
    """The FLOPs of an op; the many equal ones are worked out once."""
    entry = _REGISTRY.get(name)
    symbolic = all(exprs is not None for _, exprs in (*inputs, *outputs))
    floating = dtype is not None and dtype.startswith(("float", "bfloat", "complex"))
    if entry is None:
        moves = kind in (Kind.COPY, Kind.EMBEDDING)
        return _no_flops(symbolic) if moves else OpCost()
    if not floating:
        return _no_flops(symbolic)
    shapes = [[shape for shape, _ in tensors] for tensors in (inputs, outputs)]
    exprs = [[list(map(parse, e or ())) for _, e in tensors] for tensors in (inputs, outputs)]
    return OpCost(
        gemm=Gemm(*map(_whole, entry.gemm(*shapes))) if entry.gemm else None,
        flops=_whole(entry.flops(*shapes)),
        flops_expr=str(entry.flops(*exprs)) if symbolic else None,
        flops_status=entry.status,
    )


def _no_flops(symbolic: bool) -> OpCost:
    return OpCost(flops=0, flops_expr="0" if symbolic else None, flops_status=Status.ZERO)


def _whole(size: Size) -> int:
    return formula(size).evaluate({})


@dataclass(frozen=True, slots=True)
class FlopTotals:
    """FLOPs of a graph, by how far they can be trusted."""

    products: int
    """FLOPs of linears, matmuls and attentions: exact, and what torch's counter counts.

    Also where the op is an ``estimate`` for the weights that it reads: which experts rows go to
    does not change how many rows there are.
    """
    products_expr: str | None
    """``products`` as a formula, None for a concrete trace."""
    other: int
    """FLOPs of all other supported ops, estimates among them."""
    unsupported: Mapping[str, int]
    """target -> number of ops that no total includes."""
    products_missing: Mapping[str, int]
    """Those of ``unsupported`` that are products: ``products`` is complete without any."""
    coverage: float
    """Share of the ops that compute or move data whose FLOPs are known."""


_PRODUCTS = frozenset({Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION})
_MORE_PRODUCTS = frozenset((
    "einsum", "tensordot", "bilinear", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "_convolution", "conv_tbc", "_scaled_mm", "_int_mm", "flex_attention",
))  # fmt: skip
"""Matrix products by their names, which the kinds do not know."""


def total_flops(graph: OpGraph) -> FlopTotals:
    """Sum the FLOPs of an annotated graph."""
    products, other, closed = 0, 0, formula(0)
    unsupported: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for op in graph.ops:
        if op.cost.flops is None:
            unsupported[op.target] += 1
            if op.kind in _PRODUCTS or base_name(op.target) in _MORE_PRODUCTS:
                missing[op.target] += 1
        elif op.kind in _PRODUCTS:
            products += op.cost.flops
            closed += parse(op.cost.flops_expr or "0")
        else:
            other += op.cost.flops
    working = sum(op.kind not in _FREE for op in graph.ops)
    return FlopTotals(
        products=products,
        products_expr=str(closed) if graph.meta.symbolic else None,
        other=other,
        unsupported=dict(unsupported),
        products_missing=dict(missing),
        coverage=(working - unsupported.total()) / working if working else 1.0,
    )
