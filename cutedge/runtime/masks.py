"""Masks for real: what home does to tensors that a device is to compute on without knowing them.

``Masking`` carries out the ops of a ``MaskedGraph`` that home does for masks, and knows the numbers
that such a graph has beside those of the model: pads, weights in other forms, vectors of checks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log2, sqrt
from typing import Any

import torch

from costmodels.links import Links
from cutedge.runtime import RunError
from cutedge.runtime.alone import alone, run_seen
from cutedge.runtime.interpreter import Interpreter, in_limbs, read
from cutedge.runtime.transforms import (
    FixedPoint,
    Randomness,
    disembed,
    embed,
    from_integers,
    mix,
    orthogonal,
    reorder,
    residuals,
    restore,
    to_integers,
    unmix,
    wide,
)
from cutedge.runtime.wire import DTYPES
from partition.masks import MaskedGraph
from partition.schemes import Protection, pad_bits
from tracer.capture.runnable import Runnable
from tracer.graph import FLOATING, Op, OpGraph, Tensor
from tracer.kinds import base_name
from tracer.program import Invocation

Values = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the values of a tensor are, by which its mask is chosen."""

    rms: float
    """The root of the mean of their squares."""
    row: float
    """The largest 2-norm of a row."""
    matrix: float
    """The largest 2-norm of all values of a matrix: of the last two axes, or of less."""

    @staticmethod
    def of(value: torch.Tensor) -> "Scale":
        """That of a tensor."""
        value = value.double()
        if not value.numel():
            return Scale(0.0, 0.0, 0.0)
        rows = value.norm(dim=-1)
        matrices = rows.norm(dim=-1) if rows.dim() else rows
        return Scale(float(value.square().mean().sqrt()), float(rows.max()), float(matrices.max()))


@dataclass(slots=True)
class Gauge:
    """Takes the scales of what is masked or checked in a graph, as a plain run reads it."""

    tensors: frozenset[int]
    found: dict[int, Scale] = field(default_factory=dict)

    @staticmethod
    def of(graph: MaskedGraph) -> "Gauge":
        """One for a run of the plain graph."""
        plain = graph.plain
        read = (t.id for op in graph.protected for t in plain.inputs(op))
        made = (t.id for op in graph.protected for t in plain.outputs(op))
        return Gauge(frozenset((*read, *made)))

    def __call__(self, tensor: int, value: torch.Tensor) -> None:
        """Take that of a tensor, where it is wanted."""
        if tensor in self.tensors and tensor not in self.found:
            self.found[tensor] = Scale.of(value)


def amplification(protection: Protection) -> float:
    """How many times as far off a recovered result is by rounding as a plain one.

    A pad makes values wider, and their rounding with them (``pad_bits``). The four blocks are 2,
    sqrt 2, sqrt 2 and 1 times as wide as their product, and their errors add up to 3. A rank-one
    mask and its inverse make values up to 8 times as wide, an orthogonal one rounds them twice.
    Integers are not rounded.
    """
    if protection.scheme == "one-time-pad":
        return float(2.0 ** pad_bits("float32", protection.scale).lost_bits)
    return {"embedded-additive": 3.0, "rank-one": 8.0, "orthogonal": 2.0}.get(
        protection.scheme, 1.0
    )


def epsilon_of(protection: Protection, dtype: str, inner: int) -> float:
    """By how much a recovered result is off, over the size that such a sum of ``inner`` products has.

    Its rounding in ``dtype``, amplified. Integers mod 2^k have k/2 - 1 bits for the norm of a row,
    and such a row is sqrt(inner) times as wide as its values.
    """
    lost = float(torch.finfo(DTYPES[dtype]).eps) * amplification(protection)
    coarse = sqrt(inner) * 2.0 ** -(protection.bits // 2 - 1) if protection.dtype else 0.0
    return lost + coarse


def masked_invocations(
    graph: OpGraph, invocations: Mapping[int, Invocation]
) -> Mapping[int, Invocation]:
    """By op of a graph, masked or not: how it is carried out; those of the plain one are given."""
    if not isinstance(graph, MaskedGraph):
        return invocations
    found: dict[int, Invocation] = {}
    for op, plain in enumerate(graph.origin):
        if plain is None:
            found[op] = Invocation([{"value": t.id} for t in graph.inputs(op)], {})
        elif plain in graph.protected:
            found[op] = _on_masked(graph, op, plain, invocations[plain])
        elif plain in invocations:
            found[op] = invocations[plain]
    return found


def _on_masked(graph: MaskedGraph, op: int, plain: int, how: Invocation) -> Invocation:
    """A protected op: the same on other tensors, without its bias where home adds that."""
    given = [t.id for t in graph.inputs(op)]
    args, kwargs = list(how.args), dict(how.kwargs)
    before = read(how)
    if len(before) != len(graph.plain.inputs(plain)) or how.shared:
        raise RunError(f"{graph.ops[op].name} is no product that can be masked")
    if len(given) < len(before):
        if base_name(graph.plain.ops[plain].target) == "addmm":
            if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
                raise RunError(f"{graph.ops[op].name} weighs what it adds, and cannot be masked so")
            args, kwargs = args[1:], {}
        elif len(args) > 2:
            args[2] = None
        else:
            kwargs.pop("bias", None)
    rest = iter(given)

    def put(argument: object) -> object:
        return (
            {"value": next(rest)}
            if isinstance(argument, dict) and "value" in argument
            else argument
        )

    args = [put(argument) for argument in args]
    return Invocation(args, {key: put(argument) for key, argument in kwargs.items()})


def masking_of(
    graph: OpGraph,
    runnable: Runnable,
    given: Mapping[int, torch.Tensor],
    weights: Mapping[str, Any],
    links: Links,
    source: Randomness | None = None,
) -> "Masking | None":
    """What home does for the masks of a graph, by the scales of a plain run; None without masks.

    Masks are of numbers that nobody foresees, unless a ``source`` is given.
    """
    if not isinstance(graph, MaskedGraph):
        return None
    whole, gauge = alone(graph.plain, runnable, weights, links), Gauge.of(graph)
    run_seen(whole, given, gauge)
    return Masking(graph, whole.interpreter, gauge.found, source or Randomness())


class Masking:
    """What home knows of the masks of a graph, and does for them."""

    def __init__(
        self,
        graph: MaskedGraph,
        alone: Interpreter,
        scales: Mapping[int, Scale],
        source: Randomness,
    ) -> None:
        """``alone`` holds the whole plain model, as home or whom it trusts has it before the run.

        ``scales`` are those of the plain tensors that are masked or checked (``Gauge``).
        """
        self.graph, self.alone, self.scales, self.random = graph, alone, scales, source
        self.exponents: dict[int, int] = {}
        """Of weights as integers, by tensor."""
        self.data: dict[int, torch.Tensor] = {}
        """By tensor: what is made once, before all runs."""
        self.tolerances: dict[int, float] = {}
        """By protected op that is checked: how far off a row of its result may be."""
        self.own: dict[int, Callable[[Values], list[torch.Tensor]]] = {}
        """By op of home's for masks: what it does."""
        self._pads: list[tuple[int, int, int | None]] = []
        """(pad, the plain op, None or the pad that it is the product of), in order."""
        for of, protection in graph.protected.items():
            if protection.dtype:
                self._in_integers(of)
            elif protection.on_channels and len(self._flowing(of)) == 1:
                self._in_order(of)
        makers = {"mask": self._mask, "pad": self._pad, "recover": self._recover}
        for op, (part, of) in graph.parts.items():
            self.own[op] = self._check(op, of) if part == "check" else makers[part](op, of)
            if part in ("mask", "recover"):
                made = [t.id for t in graph.inputs(op) if t.id in graph.pads]
                left = self._left(of) if part == "recover" and made else None
                self._pads += [(pad, of, left) for pad in made]

    def __contains__(self, tensor: int) -> bool:
        """Whether a tensor is a pad: there before a run, for that run alone."""
        return tensor in self.graph.pads

    @property
    def epsilon(self) -> float:
        """By how much the coarsest mask has a result off, over its size; see ``epsilon_of``."""
        return max(map(self._epsilon, self.graph.protected))

    @property
    def fixed(self) -> dict[int, FixedPoint]:
        """By tensor that crosses as integers: what these stand for."""
        found: dict[int, FixedPoint] = {}
        for of, protection in self.graph.protected.items():
            if protection.dtype:
                product = self.graph.here[of]
                exponent = self._exponent(self._plain_left(of), protection)
                bias = [t for t in self._stored(of) if len(t.shape) == 1]
                added = self.alone.value(bias[0].id).double() if bias else None
                found[self._left_mask(of)] = FixedPoint(exponent)
                (made,) = self.graph.outputs(product)
                found[made.id] = FixedPoint(exponent + self.exponents[self._copy(of)], added)
        return found

    def fresh(self) -> dict[int, torch.Tensor]:
        """New pads, for one run."""
        made: dict[int, torch.Tensor] = {}
        for pad, of, left in self._pads:
            spec = self.graph.tensors[pad]
            if left is None:
                made[pad] = self._blind(self._plain_left(of), self.graph.protected[of], spec)
            else:
                made[pad] = self._product(of, made[left]).to(DTYPES[spec.dtype])
        return made

    # --- what home does ---

    def _mask(self, op: int, of: int) -> Callable[[Values], list[torch.Tensor]]:
        graph, protection = self.graph, self.graph.protected[of]
        sent, *keys = graph.outputs(op)
        plain, dtype = graph.inputs(op)[0], DTYPES[sent.dtype]
        scale, random = self._scale(plain.id), self.random
        first = self._left_mask(of) == sent.id
        stored = len(self._flowing(of)) == 1
        axis = -2 if first else -1

        def one_time(values: Values) -> list[torch.Tensor]:
            x, *pads = values
            if not pads:
                pads = [self._blind(plain.id, protection, keys[0])]
            if protection.dtype:
                masked = to_integers(x, self._exponent(plain.id, protection), dtype) - pads[0]
            else:
                masked = wide(x) - wide(pads[0])
            return [masked, *pads] if keys else [masked]

        def embedded(values: Values) -> list[torch.Tensor]:
            x, factor = values[0], random.factors(keys[0].shape)
            noise = (random.normal(x.shape) * scale.rms).to(wide(x).dtype)
            return [embed(wide(x), noise, factor.to(noise.dtype), axis), factor]

        def rank_one(values: Values) -> list[torch.Tensor]:
            x = wide(values[0])
            shape = x.shape[:-1]
            d, u, v = random.factors(shape), random.normal(shape), random.normal(shape)
            v /= sqrt(x.shape[-2])
            v *= torch.where((v * u / d).sum(-1, keepdim=True) < 0, -1.0, 1.0)  # far from singular
            key = torch.cat([d, u, v], -1).to(DTYPES[keys[0].dtype])
            return [mix(x, *(part.to(x.dtype) for part in key.chunk(3, -1))), key]

        def diagonal(values: Values) -> list[torch.Tensor]:
            x = wide(values[0])
            *batch, rows, columns = x.shape
            size = (*batch, rows if first else columns)
            order, factor = random.orders(size), random.factors(size).to(x.dtype)
            x = reorder(x, order, axis) * factor.unsqueeze(-1 if first else -2)
            if first:
                inner, scaled = random.orders((*batch, columns)), random.factors((*batch, columns))
                key = [order, factor, inner, scaled]
                x = reorder(x, inner, -1) * scaled.to(x.dtype)[..., None, :]
            else:
                key = [order, factor]
                inner, scaled = values[1][..., -2 * rows :].chunk(2, -1)
                x = reorder(x, inner, -2) / scaled.to(x.dtype)[..., None]
            return [x, torch.cat([part.to(DTYPES[keys[0].dtype]) for part in key], -1)]

        def turned(values: Values) -> list[torch.Tensor]:
            x = wide(values[0])
            *batch, rows, _ = x.shape
            key = orthogonal(random.normal((*batch, rows, rows))).to(DTYPES[keys[0].dtype])
            return [key.to(x.dtype) @ x, key.flatten(-2)]

        def permuted(values: Values) -> list[torch.Tensor]:
            x, *orders = values
            if not protection.on_channels:
                orders = [random.orders((*x.shape[:-2], x.shape[axis]))]
                return [reorder(x, orders[0], axis), *orders]
            if orders and stored:
                return [x[..., orders[0].long()]]
            if orders:
                return [reorder(x, orders[0], -2)]
            orders = [random.orders((*x.shape[:-2], x.shape[-1]))]
            return [reorder(x, orders[0], -1), *orders]

        return self._cast(
            op,
            {
                "one-time-pad": one_time,
                "one-time-pad-mod": one_time,
                "embedded-additive": embedded,
                "rank-one": rank_one if stored else diagonal,
                "orthogonal": turned,
                "permutation": permuted,
            }[protection.scheme],
        )

    def _pad(self, op: int, of: int) -> Callable[[Values], list[torch.Tensor]]:
        return self._cast(op, lambda values: [self._product(of, values[0], values[1:])])

    def _recover(self, op: int, of: int) -> Callable[[Values], list[torch.Tensor]]:
        protection = self.graph.protected[of]
        plain, stored = self._plain_left(of), len(self._flowing(of)) == 1
        count = 2 if stored else 3

        def recovered(values: Values) -> torch.Tensor:
            y, *keys = values
            match protection.scheme:
                case "one-time-pad":
                    return wide(y) + wide(keys[0])
                case "one-time-pad-mod":
                    exponent = self._exponent(plain, protection) + self.exponents[self._copy(of)]
                    return from_integers(y + keys[0], exponent)
            y = wide(y)
            keys = [key.to(y.dtype) if key.is_floating_point() else key for key in keys]
            match protection.scheme:
                case "embedded-additive":
                    return disembed(y, *keys)
                case "rank-one" if stored:
                    return unmix(y, *keys[0].chunk(3, -1))
                case "rank-one":
                    order, factor = keys[0][..., : 2 * y.shape[-2]].chunk(2, -1)
                    others, scaled = keys[1].chunk(2, -1)
                    y = y / factor[..., None] / scaled[..., None, :]
                    return restore(restore(y, order, -2), others, -1)
                case "orthogonal":
                    turn = keys[0].unflatten(-1, (y.shape[-2], y.shape[-2]))
                    return turn.mT @ y
            y = restore(y, keys[0], -2)
            return y if stored else restore(y, keys[1], -1)

        def with_bias(values: Values) -> list[torch.Tensor]:
            made = recovered(values[:count])
            return [made + values[count].to(made.dtype) if values[count:] else made]

        return self._cast(op, with_bias)

    def _check(self, op: int, of: int) -> Callable[[Values], list[torch.Tensor]]:
        graph, what = self.graph, self.graph.plain.ops[of]
        stored = len(self._flowing(of)) == 1
        reads, bits = graph.inputs(op), graph.protected[of].bits
        exact = graph.protected[of].dtype is not None
        self._draw_vectors(of, reads[2:4] if stored else reads[3:4])
        self.tolerances[of] = tolerance = 0.0 if exact else self.error(of)

        def checked(values: Values) -> list[torch.Tensor]:
            y, x, *rest = values
            if stored:
                r, product, *bias = rest
            else:
                z, r, *bias = rest
                product = r @ z.to(r.dtype).mT
            found = residuals(
                y.to(r.dtype), x.to(r.dtype), r, product, bias[0].to(r.dtype) if bias else None
            )
            off = float(found.double().abs().max()) if found.numel() else 0.0
            if not off <= tolerance:
                by = f"{off:.0f} mod 2^{bits}" if exact else f"{off:.3g}"
                most = "nothing is rounded" if exact else f"{tolerance:.3g} would be rounding"
                raise RunError(
                    f"{what.name} ({what.module_path}) was answered wrongly: its result times a "
                    f"random vector is off by {by}, and {most}"
                )
            return [y]

        return checked

    def _cast(
        self, op: int, function: Callable[[Values], list[torch.Tensor]]
    ) -> Callable[[Values], list[torch.Tensor]]:
        """A function, with what it makes in the dtypes that the graph has."""
        dtypes = [DTYPES[t.dtype] for t in self.graph.outputs(op)]
        return lambda values: [
            made.to(dtype) for made, dtype in zip(function(values), dtypes, strict=True)
        ]

    # --- numbers ---

    def _blind(self, plain: int, protection: Protection, spec: Tensor) -> torch.Tensor:
        """A pad for a plain tensor: uniform integers, or normal numbers ``scale`` times as wide."""
        dtype = DTYPES[spec.dtype]
        if protection.dtype:
            return self.random.integers(spec.shape, dtype)
        width = protection.scale * self._scale(plain).rms
        return (self.random.normal(spec.shape) * width).to(dtype)

    def _product(self, of: int, x: torch.Tensor, weights: Values = ()) -> torch.Tensor:
        """What a protected op makes of another left operand, without its bias."""
        alone, plain = self.alone, self._plain_left(of)
        exact = not x.is_floating_point()
        weight, *biases = self._stored(of)
        stored = self.data[self._copy(of)] if exact else alone.value(weight.id)
        x, other = wide(x), wide(weights[0] if weights else stored)
        dtype = torch.promote_types(x.dtype, other.dtype)  # a pad is as wide as what crosses
        values = {plain: x.to(dtype), weight.id: other.to(dtype)}
        for bias in biases:
            values[bias.id] = torch.zeros(bias.shape, dtype=dtype)
        function = alone.operations[of].function
        return alone.results(of, values.__getitem__, in_limbs(function) if exact else function)[0]

    def _exponent(self, plain: int, protection: Protection) -> int:
        """Of a tensor in fixed point: the norm of its rows has half of the bits, less one."""
        return _fitting(self._scale(plain).row, protection.bits)

    def _in_integers(self, of: int) -> None:
        """The weights of an op in fixed point."""
        copy, bits = self._copy(of), self.graph.protected[of].bits
        if copy not in self.data:
            value = self.alone.value(self.graph.copies[copy]).double()
            norms = (
                value.norm(dim=self._summed(of))
                if value.dim() == 2
                else value.flatten(1).norm(dim=-1)
            )
            self.exponents[copy] = _fitting(float(norms.max()), bits)
            dtype = DTYPES[self.graph.tensors[copy].dtype]
            self.data[copy] = to_integers(value, self.exponents[copy], dtype)

    def _in_order(self, of: int) -> None:
        """The weights of an op in the order that the channels of what it reads are put into."""
        maker = self.graph.tensors[self._left_mask(of)].op
        assert maker is not None
        order, copy = self.graph.inputs(maker)[1], self._copy(of)
        if order.id not in self.data:
            self.data[order.id] = self.random.orders(order.shape).int()
        if copy not in self.data:
            value, places = self.alone.value(self.graph.copies[copy]), self.data[order.id].long()
            self.data[copy] = value.index_select(self._summed(of), places)

    def _summed(self, of: int) -> int:
        """The axis of a matrix of weights that is summed over."""
        return -1 if base_name(self.graph.plain.ops[of].target) == "linear" else -2

    def _draw_vectors(self, of: int, vectors: Sequence[Tensor]) -> None:
        """What a check multiplies by: signs, or any integers, and the stored weights times these."""
        r = vectors[0]
        dtype = DTYPES[r.dtype]
        if not dtype.is_floating_point:
            self.data[r.id] = drawn = self.random.integers(r.shape, dtype)
            weights = self.data[self._copy(of)]
            for product in vectors[1:]:
                self.data[product.id] = drawn @ (weights if self._summed(of) == -1 else weights.mT)
            return
        self.data[r.id] = signs = self.random.signs(r.shape).to(dtype)
        for product in vectors[1:]:
            value = self.alone.value(self._stored(of)[0].id).to(dtype)
            self.data[product.id] = signs @ (value if self._summed(of) == -1 else value.mT)

    # --- the graph ---

    def _flowing(self, of: int) -> list[Tensor]:
        plain = self.graph.plain
        return [t for t in plain.inputs(of) if t.op is not None and not plain.ops[t.op].is_constant]

    def _plain_left(self, of: int) -> int:
        return self._flowing(of)[0].id

    def _stored(self, of: int) -> list[Tensor]:
        """What a protected op reads beside what it masks: of stored weights these, then a bias."""
        left = self._plain_left(of)
        rest = [t for t in self.graph.plain.inputs(of) if t.id != left]
        return sorted(rest, key=lambda t: -len(t.shape))

    def _left_mask(self, of: int) -> int:
        """What stands for the left operand of a protected op."""
        here = self.graph.inputs(self.graph.here[of])
        return next(t.id for t in here if t.id in self.graph.masks)

    def _left(self, of: int) -> int:
        """The pad of the left operand of a protected op."""
        maker = self.graph.tensors[self._left_mask(of)].op
        assert maker is not None
        return self.graph.inputs(maker)[1].id

    def _copy(self, of: int) -> int:
        """The other form of its weights."""
        here = self.graph.inputs(self.graph.here[of])
        return next(t.id for t in here if t.id in self.graph.copies)

    def _scale(self, plain: int) -> Scale:
        return self.scales[plain]

    def error(self, of: int) -> float:
        """By how much a row of a recovered result may be off by rounding, as its 2-norm, and so its
        sum with any signs: ``_SLACK`` times what it is off by if errors are independent.

        ``of`` is the op of the plain graph. Each value is off by its own rounding, which is also
        that of what hid it, and by that of the sum it is: float32 does the sums of less. A change
        of one value shows from twice as much on.
        """
        plain, protection = self.graph.plain, self.graph.protected[of]
        left, (made,) = self._plain_left(of), plain.outputs(of)
        others = [t for t in plain.inputs(of) if t.id != left] or [plain.tensors[left]]
        other = max(others, key=lambda t: len(t.shape)).id
        right = self.scales.get(other) or Scale.of(self.alone.value(other))
        gemm, error = plain.ops[of].cost.gemm, self._epsilon(of)
        assert gemm is not None
        most = self._scale(left).row * right.matrix
        sums = torch.finfo(wide(torch.empty(0, dtype=DTYPES[made.dtype])).dtype).eps
        size = self.scales[made.id].row if made.id in self.scales else most  # where nobody reads it
        values = error * (size + most / sqrt(gemm.k))
        return _SLACK * (values + amplification(protection) * float(sums) * most)

    def _epsilon(self, of: int) -> float:
        op: Op = self.graph.plain.ops[of]
        protection = self.graph.protected[of]
        dtypes = [op.dtype, None if protection.dtype else self.graph.wire_dtype]
        dtype = max(
            (name for name in dtypes if name in FLOATING),
            key=lambda name: torch.finfo(DTYPES[name]).eps,
        )
        gemm = op.cost.gemm
        return epsilon_of(protection, dtype, 1 if gemm is None else gemm.k)


_SLACK = 4.0
"""How many times as far off as independent rounding has it a result may be."""


def _fitting(norm: float, bits: int) -> int:
    """The exponent by which a row of such a norm has bits / 2 - 1 bits: a product of two rows is
    below 2^(bits - 2), and no sum wraps."""
    return 0 if norm == 0 else floor(bits // 2 - 1 - log2(norm))
