"""How fast one user's model can be on a device at best: memory, first token, decoding.

The method is that of a published analysis of single-user inference: weights and cached keys and
values are read once, linears take 2 FLOPs a parameter and token, and the larger of the two times
is the limit. Everything that it needs of the model is read off traced decodes (one new token over
``past`` cached ones), as sums over op rows:

- parameters: what linears read, biases included; norms and the embedding are left out, and of
  experts only the share that a token meets counts as activated;
- cached values V(n) after n tokens: how the cached state grows with ``past``. A layer that looks
  back through a window, or over a chunk, keeps no more than that, so V has a slope while all layers
  grow and a lower one far out: V(n) is the least of two lines (``Least``). Values a token are those
  far out, what the windows keep stands beside them as a constant;
- attention A(k): FLOPs of the products of two activations, of one query with k keys; likewise.

For a prompt of n tokens, P parameters of W bits, cached values of A bits, F FLOPs for a pair of
query and key in all layers:

- read = (P*W/8 + (V(n) + V(n - 1))*A/8) / bandwidth: what is kept of keys and values is written,
  and all but the last token's read again; (2n - 1)*kv values where each token adds kv;
- compute, coarse = (2P + 2F)*n / peak; fine = ((2*layers' P + 2F)*n + 2*lm_head's P) / peak: the
  logits of one token alone. Attention is counted as two keys a query (as the analysis does);
  ``causal_ms`` counts each query with all keys that it sees: A(1) + ... + A(n);
- first token = max(read, fine); knee: the n where read = compute;
- decode over n - 1 cached tokens = B + (n - 1)/W, far out: the windows are read, the new token's
  keys and values of all layers written: B = (P*W/8 + (windows + V(1))*A/8) / bandwidth.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from costmodels.devices import Device
from costmodels.experts import STATE, routing_of
from costmodels.flops import total_flops
from tracer.errors import InputError
from tracer.formula import parse
from tracer.graph import ITEM_BYTES, Kind, OpGraph
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
class Line:
    """A count that grows evenly."""

    slope: int
    start: int
    """The value at 0."""

    def __call__(self, n: float) -> float:
        """The value at ``n``."""
        return self.slope * n + self.start


@dataclass(frozen=True, slots=True)
class Least:
    """The lesser of two lines: of what grows with all tokens, and less beyond a window."""

    near: Line
    """While nothing is cut off."""
    far: Line
    """Beyond all windows; the same line where there is no window."""

    def __call__(self, n: float) -> float:
        """The value at ``n``."""
        return min(self.near(n), self.far(n))

    @property
    def bend(self) -> float | None:
        """Where ``far`` begins to be the lesser; None without a window."""
        if self.near == self.far:
            return None
        return (self.far.start - self.near.start) / (self.near.slope - self.far.slope)

    def total(self, n: int) -> float:
        """The sum of the values at 1, 2, ... ``n``."""
        ends = n if self.bend is None else min(n, int(self.bend))

        def to(line: Line, last: int) -> float:
            return line.slope * last * (last + 1) / 2 + line.start * last

        return to(self.near, ends) + to(self.far, n) - to(self.far, ends)

    def most_within(self, room: float) -> int | None:
        """The largest whole n >= 0 with a value of at most ``room``; None where all are.

        -1 where no n has.
        """
        found = -1
        for line in (self.near, self.far):
            if line.start <= room:
                if not line.slope:
                    return None
                found = max(found, int((room - line.start) // line.slope))
        return found


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What the limits need to know of a model; counts are of values, not bytes."""

    dense_layers_params: int
    """Parameters of linears before the head that every token meets."""
    experts: tuple[_Experts, ...]
    lm_head_params: int
    cached: Least
    """Cached values after so many tokens."""
    attention: Least
    """FLOPs of attention of one query with so many keys, all heads and layers."""

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
            self.dense_layers_params
            + self.lm_head_params
            + sum(e.met(tokens) for e in self.experts)
        )


def describe(near: OpGraph, far: Sequence[OpGraph] = (), *, in_bytes: bool = False) -> ModelCounts:
    """What the limits need, off annotated decodes of one sequence.

    Parameters are counted, or with ``in_bytes`` what they take where they are stored.

    ``near`` is over few cached tokens; ``far`` is over so many that all windows are full, where it
    is another program there: one trace, or two over one cached token more where its formulas have
    no ``past``. Raises InputError for any other trace, and where some matrix product is not
    counted.
    """
    meta, totals = near.meta, total_flops(near)
    if any(graph.meta.phase != "decode" or graph.meta.batch != 1 for graph in (near, *far)):
        raise InputError(
            f"{meta.model}: limits are read off a decode of one sequence, which this trace is not"
        )
    if totals.products_missing:
        raise InputError(f"{meta.model}: {', '.join(totals.products_missing)} has no FLOP formula")
    last = last_layered_op(near)
    seen: set[int] = set()
    layers = head = 0
    experts: list[_Experts] = []
    for op in near.ops:
        if op.kind is not Kind.LINEAR:
            continue
        chosen = routing_of(near, op)
        for tensor in near.inputs(op.id):
            owner = near.storage(tensor)
            if owner.role not in STATE or owner.id in seen:
                continue
            seen.add(owner.id)
            size = owner.bytes if in_bytes else owner.numel
            if chosen is not None and tensor is chosen.stack:
                experts.append(_Experts(size, float(chosen.share)))
            elif op.id > last:
                head += size
            else:
                layers += size
    lines = _lines([near])
    beyond = _lines(far) if far else lines
    cached, attention = (Least(*both) for both in zip(lines, beyond, strict=True))
    return ModelCounts(layers, tuple(experts), head, cached, attention)


def _lines(traces: Sequence[OpGraph]) -> tuple[Line, Line]:
    """(cached values by tokens, FLOPs of attention by keys) about the traced ``past``.

    Off the formulas of the first trace, or where it has none in ``past`` off two traces.
    """
    (one, *others) = traces
    past = one.meta.past
    if "past" in one.meta.symbolic:
        then = [(one, past), (one, past + 1)]
    else:
        then = [(graph, graph.meta.past) for graph in (one, *others)]
    cached, scores = zip(*(_sizes(graph, at) for graph, at in then), strict=True)
    steps = [at - past for _, at in then[1:]]
    slopes = [(values[1] - values[0]) // steps[0] if steps else 0 for values in (cached, scores)]
    # A query over past cached tokens has past + 1 keys.
    return (
        Line(slopes[0], cached[0] - past * slopes[0]),
        Line(slopes[1], scores[0] - (past + 1) * slopes[1]),
    )


def _sizes(graph: OpGraph, past: int) -> tuple[int, int]:
    """(cached values, FLOPs of products of two activations) over ``past`` cached tokens."""
    at = {**graph.meta.variables, "past": past}
    cached = scores = 0
    for tensor in cached_inputs(graph):
        if graph.is_float(tensor.dtype):
            size = (
                tensor.bytes if tensor.bytes_expr is None else parse(tensor.bytes_expr).evaluate(at)
            )
            cached += size // ITEM_BYTES[tensor.dtype]
    for op in graph.ops:  # not linears, though those that spread a latent grow with past too
        if op.kind in (Kind.MATMUL, Kind.ATTENTION):
            known = op.cost.flops_expr
            scores += (op.cost.flops or 0) if known is None else parse(known).evaluate(at)
    return cached, scores


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """The device's figures that the limits rest on."""

    memory_bytes: int
    bytes_per_second: float
    flops_per_second: float


def compute_dtype(device: Device, bits: float) -> str:
    """The dtype whose peak products of so many bits are limited by on a device.

    8-bit floats, else 8-bit integers, for operands of 8 bits or less; 16-bit floats up to 16 bits;
    float32 beyond, and where the device has no peak for fewer bits.
    """
    wanted = [
        (8, "float8_e4m3fn"),
        (8, "float8_e4m3fnuz"),
        (8, "int8"),
        (16, "bfloat16"),
        (16, "float16"),
    ]
    peaks = device.peak_flops_per_second
    known = (dtype for most, dtype in wanted if bits <= most and dtype in peaks)
    return next(known, "float32")


def device_figures(device: Device, dtype: str, *, binary: bool = False) -> DeviceFigures:
    """The figures of a device, computing at its peak for ``dtype``.

    ``binary`` reads the G of its bandwidth as 2**30 and the T of its peak as 2**40, as the analysis
    does. Raises InputError where the device lacks a figure.
    """
    if device.is_chip and not device.peak_flops_per_second:
        what = "is an array of multipliers, without memory of its own"
        raise InputError(
            f"{device.name} {'counts cycles' if device.npu else what}: limits are of "
            "a device that holds the model and has peaks and a bandwidth, like rtx-4090 "
            "(`cutedge devices` lists them); `cutedge cost` and `partition` take a chip"
        )
    peak, bandwidth = (
        device.peak_flops_per_second.get(dtype),
        device.memory_bandwidth_bytes_per_second,
    )
    if peak is None:
        raise InputError(
            f"{device.name} has no peak for {dtype}: take --dtype "
            f"{' or '.join(device.peak_flops_per_second)}"
        )
    if bandwidth is None or device.memory_bytes is None:
        lacking = "memory_bandwidth_bytes_per_second" if bandwidth is None else "memory_bytes"
        raise InputError(
            f"{device.name} has no {lacking}, which limits need: take another device, or give its "
            ".toml file that figure"
        )
    giga, tera = (2**30 / 1e9, 2**40 / 1e12) if binary else (1, 1)
    return DeviceFigures(device.memory_bytes, bandwidth * giga, peak * tera)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one user's inference; params and values are counts, times milliseconds."""

    decoder_layers_params: float
    """What the linears before the head read for one token."""
    lm_head_params: float
    """What the head reads."""
    activated_params: float
    """What the linears of one token read, as the analysis counts it: norms are left out, which are
    among a model's active parameters (``experts.active_parameters``)."""
    stored_params: float
    """What the linears can read: every expert."""
    kv_cache_params_per_token: float
    """What each token adds, far out: beyond all windows."""
    kv_cache_params_fixed: float
    """What there is beside: full windows, recurrent state."""
    kv_tokens: int | None
    """Tokens whose cache fits beside the weights; None for a reason."""
    kv_tokens_reason: str | None
    """Why there is no such number; None where there is one."""
    read_ms: float
    """Reading weights and cache for the prompt, each once."""
    compute_ms_coarse: float
    """Computing the prompt, with the head for every token and a constant for attention."""
    compute_ms_fine: float
    """As ``compute_ms_coarse``, with the head for the last token alone."""
    compute_ms_causal: float
    """Computing the prompt, with each token attending to those before it."""
    first_token_ms: float
    """The larger of ``read_ms`` and ``compute_ms_fine``."""
    knee_tokens_coarse: float | None
    """Tokens of a prompt from which on ``compute_ms_coarse`` is more than ``read_ms``.
    None where computing never takes longer than reading."""
    knee_tokens_fine: float | None
    """The same of ``compute_ms_fine``."""
    decode_W_tokens_per_ms: float | None
    """Cached tokens that add a millisecond to each new token, far out; None for a reason."""
    decode_W_reason: str | None
    """Why there is no such number; None where there is one."""
    decode_B_ms: float
    """A token over n - 1 cached ones takes ``B + (n - 1)/W``, far out."""


def limits(
    model: ModelCounts,
    device: DeviceFigures,
    *,
    weight_bits: float,
    kv_bits: float,
    prompt: int,
    stored: ModelCounts | None = None,
) -> Limits:
    """The limits for weights of ``weight_bits``, a cache of ``kv_bits`` and a prompt of tokens.

    ``stored`` is the model in bytes (``describe``), where weights have a format of their own.
    """
    held, of = (model, weight_bits / 8) if stored is None else (stored, 1.0)
    cached, value_bytes = model.cached, kv_bits / 8
    pair, peak = model.attention.near.slope, device.flops_per_second

    def read(n: float) -> float:
        moved = (cached(n) + cached(n - 1)) * value_bytes
        return (held.read_params(n) * of + moved) / device.bytes_per_second * 1000

    def coarse(n: float) -> float:
        return (model.layers_params + model.lm_head_params + pair) * 2 * n / peak * 1000

    def fine(n: float) -> float:
        return ((model.layers_params + pair) * n + model.lm_head_params) * 2 / peak * 1000

    products = (model.layers_params * prompt + model.lm_head_params) * 2
    free = device.memory_bytes - held.stored_params * of
    tokens, why = _tokens(cached, free / value_bytes)
    per_token = cached.far.slope * value_bytes
    # What a token over full windows reads beside the others' keys and values, and what it writes.
    beside = cached.far.start + cached.near.slope + cached.near.start
    first = held.read_params(1) * of + beside * value_bytes
    return Limits(
        decoder_layers_params=model.layers_params,
        lm_head_params=model.lm_head_params,
        activated_params=model.layers_params + model.lm_head_params,
        stored_params=model.stored_params,
        kv_cache_params_per_token=cached.far.slope,
        kv_cache_params_fixed=cached.far.start,
        kv_tokens=tokens,
        kv_tokens_reason=why,
        read_ms=read(prompt),
        compute_ms_coarse=coarse(prompt),
        compute_ms_fine=fine(prompt),
        compute_ms_causal=(products + model.attention.total(prompt)) / peak * 1000,
        first_token_ms=max(read(prompt), fine(prompt)),
        knee_tokens_coarse=_knee(read, coarse),
        knee_tokens_fine=_knee(read, fine),
        decode_W_tokens_per_ms=device.bytes_per_second / 1000 / per_token if per_token else None,
        decode_W_reason=None if per_token else _unbounded(cached),
        decode_B_ms=first / device.bytes_per_second * 1000,
    )


def _tokens(cached: Least, room: float) -> tuple[int | None, str | None]:
    """(tokens whose cached values fit into ``room`` values, or why there is no such number)"""
    if room < 0:
        return None, "the weights alone do not fit"
    most = cached.most_within(room)
    if most is None:
        return None, _unbounded(cached)
    if most < 0:
        return None, "the weights fit, but not with what is cached of any number of tokens"
    return most, None


def _unbounded(cached: Least) -> str:
    """Why ever more tokens take no more room."""
    if cached.bend is None:
        return "the cached state does not grow with the tokens"
    return (
        f"the cache does not grow beyond {cached.bend:,.0f} tokens: every layer looks back through "
        "a window"
    )


def in_units(found: Limits, *, binary: bool = False) -> dict[str, float | int | str | None]:
    """The limits by name; ``binary`` counts parameters in 2**30 and cached values in 2**20."""
    figures = asdict(found)
    for key, value in figures.items():
        if binary and key.endswith("params"):
            figures[key] = value / 2**30
        elif binary and key in ("kv_cache_params_per_token", "kv_cache_params_fixed"):
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
