"""How fast one user's model can be on a device at best: memory, first token, decoding.

The method is that of a published analysis of single-user inference: weights and cached keys and
values are read once, linears take 2 FLOPs a parameter and token, and the larger of the two times
is the limit. Everything that it needs of the model is read off a traced decode (one new token over
``past`` cached ones), as sums over op rows:

- parameters: what linears read, biases included; norms and the embedding are left out, and of
  experts only the share that a token meets counts as activated;
- cached values a token: how the cached state grows with ``past``;
- attention: how the FLOPs of products of two activations grow with ``past``, for each query.

For a prompt of n tokens, P parameters of W bits, kv values a token of A bits, F FLOPs for a pair of
query and key in all layers:

- read = (P*W/8 + (2n - 1)*kv*A/8) / bandwidth: each token's keys and values are written, and all
  but the last one's read again;
- compute, coarse = (2P + 2F)*n / peak; fine = ((2*layers' P + 2F)*n + 2*lm_head's P) / peak: the
  logits of one token alone. Attention is counted as two keys a query (as the analysis does);
  ``causal_ms`` counts each query with all keys up to its own: F*n*(n + 1)/2;
- first token = max(read, fine); knee: the n where read = compute;
- decode over n - 1 cached tokens = B + (n - 1)/W: B = (P*W/8 + kv*A/8) / bandwidth.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from costmodels.devices import Device
from costmodels.experts import STATE, routing_of
from costmodels.flops import total_flops
from tracer.errors import InputError
from tracer.formula import Formula, formula, parse
from tracer.graph import FLOATING, ITEM_BYTES, Kind, OpGraph
from tracer.summary import cached_inputs, last_layered_op


@dataclass(frozen=True, slots=True)
class _Experts:
    """Stacks of experts that are chosen alike."""

    params: int
    """Of all experts."""
    share: float
    """The part of them that one token meets."""

    def met(self, tokens: float) -> float:
        """Expected parameters that ``tokens`` meet, each choosing by itself."""
        missed: float = (1 - self.share) ** tokens
        return self.params * (1 - missed)


@dataclass(frozen=True, slots=True)
class Model:
    """What the limits need to know of a model; counts are of values, not bytes."""

    dense_layers_params: int
    """Parameters of linears before the head that every token meets."""
    experts: tuple[_Experts, ...]
    lm_head_params: int
    kv_per_token: int
    """Cached values that each token adds."""
    kv_fixed: int
    """Cached values whatever the number of tokens (recurrent state)."""
    pair_flops: int
    """FLOPs of attention for each query and key, all heads and layers."""

    @property
    def stored_params(self) -> int:
        """All that linears read, every expert included."""
        return self.dense_layers_params + self.lm_head_params + sum(e.params for e in self.experts)

    @property
    def layers_params(self) -> float:
        """What one token meets before the head."""
        return self.dense_layers_params + sum(e.params * e.share for e in self.experts)

    def read_params(self, tokens: float) -> float:
        """What a run over ``tokens`` reads, each parameter once."""
        return (
            self.dense_layers_params + self.lm_head_params
            + sum(e.met(tokens) for e in self.experts)
        )  # fmt: skip


def describe(graph: OpGraph) -> Model:
    """What the limits need, off an annotated decode of one sequence with formulas in ``past``.

    Raises InputError for any other trace, and where some matrix product is not counted.
    """
    meta, totals = graph.meta, total_flops(graph)
    if meta.phase != "decode" or "past" not in meta.symbolic or meta.batch != 1:
        raise InputError(
            f"{meta.model}: limits are read off a decode of one sequence with formulas in past, "
            "which this trace is not"
        )
    if totals.products_missing:
        raise InputError(f"{meta.model}: {', '.join(totals.products_missing)} has no FLOP formula")
    last = last_layered_op(graph)
    seen: set[int] = set()
    layers = head = 0
    experts: list[_Experts] = []
    for op in graph.ops:
        if op.kind is not Kind.LINEAR:
            continue
        chosen = routing_of(graph, op)
        for tensor in graph.inputs(op.id):
            owner = graph.storage(tensor)
            if owner.role not in STATE or owner.id in seen:
                continue
            seen.add(owner.id)
            if chosen is not None and tensor is chosen.stack:
                experts.append(_Experts(owner.numel, float(chosen.share)))
            elif op.id > last:
                head += owner.numel
            else:
                layers += owner.numel
    state: Formula = formula(0)
    for tensor in cached_inputs(graph):
        if tensor.dtype in FLOATING:
            state += parse(tensor.bytes_expr or "0") // ITEM_BYTES[tensor.dtype]
    per_token, fixed = _line(state, meta.past)
    scores: Formula = formula(0)
    for op in graph.ops:  # not linears, though those that spread a latent grow with past too
        if op.kind in (Kind.MATMUL, Kind.ATTENTION):
            scores += parse(op.cost.flops_expr or "0")
    pair, _ = _line(scores, meta.past)
    return Model(layers, tuple(experts), head, per_token, fixed, pair)


def _line(closed: Formula, past: int) -> tuple[int, int]:
    """(slope, value at 0) of a formula in ``past``, about the traced past."""
    at = {"batch": 1, "seq": 1, "source": 0}
    here, then = (closed.evaluate({**at, "past": p}) for p in (past, past + 1))
    return then - here, here - past * (then - here)


@dataclass(frozen=True, slots=True)
class Machine:
    """The device's figures that the limits rest on."""

    memory_bytes: int
    bytes_per_second: float
    flops_per_second: float


def machine(device: Device, dtype: str, *, binary: bool = False) -> Machine:
    """The figures of a device, computing at its peak for ``dtype``.

    ``binary`` reads the G of its bandwidth as 2**30 and the T of its peak as 2**40, as the analysis
    does. Raises InputError where the device lacks a figure.
    """
    peak, bandwidth = (
        device.peak_flops_per_second.get(dtype),
        device.memory_bandwidth_bytes_per_second,
    )
    if peak is None:
        known = ", ".join(device.peak_flops_per_second) or "none"
        raise InputError(f"{device.name} has no peak for {dtype}; it has one for: {known}")
    if bandwidth is None or device.memory_bytes is None:
        raise InputError(f"{device.name} has no memory bandwidth or size: take another device")
    giga, tera = (2**30 / 1e9, 2**40 / 1e12) if binary else (1, 1)
    return Machine(device.memory_bytes, bandwidth * giga, peak * tera)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one user's inference; params and values are counts, times milliseconds."""

    decoder_layers_params: float
    lm_head_params: float
    activated_params: float
    stored_params: float
    kv_cache_params_per_token: float
    kv_tokens: int | None
    """Tokens whose cache fits beside the weights; None where the weights alone do not fit, or
    where the cache does not grow."""
    read_ms: float
    compute_ms_coarse: float
    compute_ms_fine: float
    compute_ms_causal: float
    first_token_ms: float
    """The larger of ``read_ms`` and ``compute_ms_fine``."""
    knee_tokens_coarse: float | None
    """None where computing never takes longer than reading."""
    knee_tokens_fine: float | None
    decode_W_tokens_per_ms: float | None
    """Cached tokens that add a millisecond to each new token; None where the cache does not
    grow."""
    decode_B_ms: float
    """The first token after one of prompt."""


def limits(
    model: Model, machine: Machine, *, weight_bits: float, kv_bits: float, prompt: int
) -> Limits:
    """The limits for weights of ``weight_bits``, a cache of ``kv_bits`` and a prompt of tokens."""
    kv_bytes = model.kv_per_token * kv_bits / 8
    pair, peak = model.pair_flops, machine.flops_per_second

    def read(n: float) -> float:
        cached = (2 * n - 1) * kv_bytes + 2 * model.kv_fixed * kv_bits / 8
        return (model.read_params(n) * weight_bits / 8 + cached) / machine.bytes_per_second * 1000

    def coarse(n: float) -> float:
        return (model.layers_params + model.lm_head_params + pair) * 2 * n / peak * 1000

    def fine(n: float) -> float:
        return ((model.layers_params + pair) * n + model.lm_head_params) * 2 / peak * 1000

    products = (model.layers_params * prompt + model.lm_head_params) * 2
    free = machine.memory_bytes - (model.stored_params * weight_bits + model.kv_fixed * kv_bits) / 8
    return Limits(
        decoder_layers_params=model.layers_params,
        lm_head_params=model.lm_head_params,
        activated_params=model.layers_params + model.lm_head_params,
        stored_params=model.stored_params,
        kv_cache_params_per_token=model.kv_per_token,
        kv_tokens=int(free // kv_bytes) if free >= 0 and kv_bytes else None,
        read_ms=read(prompt),
        compute_ms_coarse=coarse(prompt),
        compute_ms_fine=fine(prompt),
        compute_ms_causal=(products + pair * prompt * (prompt + 1) / 2) / peak * 1000,
        first_token_ms=max(read(prompt), fine(prompt)),
        knee_tokens_coarse=_knee(read, coarse),
        knee_tokens_fine=_knee(read, fine),
        decode_W_tokens_per_ms=machine.bytes_per_second / 1000 / kv_bytes if kv_bytes else None,
        decode_B_ms=read(1),
    )


def in_units(found: Limits, *, binary: bool = False) -> dict[str, float | int | None]:
    """The limits by name; ``binary`` counts parameters in 2**30 and cached values in 2**20."""
    figures = asdict(found)
    for key, value in figures.items():
        if binary and key.endswith("params"):
            figures[key] = value / 2**30
        elif binary and key == "kv_cache_params_per_token":
            figures[key] = value / 2**20
        elif isinstance(value, float) and key.endswith("params") and value.is_integer():
            figures[key] = int(value)
    return figures


def _knee(read: Callable[[float], float], compute: Callable[[float], float]) -> float | None:
    """The number of tokens where computing begins to take longer than reading, 0 if it always does.

    Computing grows linearly and reading no faster than linearly and ever slower, so that they cross
    once at most. Found by halving, to within a billionth.
    """
    low, high = 0.0, 1.0
    while compute(high) < read(high):
        low, high = high, high * 2
        if high > 2**40:
            return None
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if compute(middle) >= read(middle) else (middle, high)
    return high
