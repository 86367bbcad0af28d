"""What a device gets to see of a model, in words, and what it can work out from that.

Tensors are told apart by what they say of a run (``What``), from the graph alone. A device sees a
tensor in plain that is made there, is sent there or lies there. It can recover another one where
every step to it can be taken with what the device has: an op of which it has all that is read, or
an op that can be undone, as ``x W`` can with W there and square or tall.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from partition.accounting import Traffic
from partition.masks import MaskedGraph, plain_of
from partition.placement import Placement
from partition.secrets import is_look_up, moved_from, moved_into, present, reached
from tracer.graph import Kind, Op, OpGraph, Role, Tensor
from tracer.kinds import INJECTIVE, LOSSLESS, MATRIX_PRODUCTS, SPLITS, base_name, moved_name


class What(StrEnum):
    """What a tensor says of a run; in the order in which it is told."""

    PROMPT_TOKENS = "prompt_tokens"
    """Numbers that a table is looked up by, as they are given."""
    INPUTS = "inputs"
    """What else is given: pixels, sound, masks."""
    EMBEDDINGS = "embeddings"
    """Rows of a table, one a token."""
    HIDDEN_STATES = "hidden_states"
    """What goes from layer to layer, normed or not, and what a branch adds to it."""
    QKV = "qkv"
    """Queries, and the keys and values of new tokens."""
    ATTENTION_SCORES = "attention_scores"
    """Who attends to whom: before or after the softmax."""
    MLP_ACTIVATIONS = "mlp_activations"
    """Inside of a branch without attention, from its first product to its last."""
    KV_CACHE = "kv_cache"
    """Keys and values of the tokens so far."""
    LOGITS = "logits"
    """What tells the next token."""
    WEIGHTS = "weights"
    """Parameters, and what is computed of them alone."""
    OTHER = "other"
    """Any other activation."""

    @property
    def words(self) -> str:
        """As a person says it."""
        return _WORDS.get(self, self.value.replace("_", " "))


_WORDS = {
    What.QKV: "q/k/v",
    What.KV_CACHE: "KV cache",
    What.MLP_ACTIVATIONS: "MLP activations",
    What.INPUTS: "other inputs",
    What.OTHER: "other activations",
}


class How(StrEnum):
    """How a device sees something; the most that it sees first."""

    PLAIN = "plain"
    RECOVERABLE = "recoverable"
    """Not there, and to be worked out from what is there."""
    MASKED = "masked"
    """There under a mask alone."""
    NOT_AT_ALL = "not_at_all"

    @property
    def words(self) -> str:
        """As a person says it."""
        return self.value.replace("_", " ")


# --- what tensors are -----------------------------------------------------------------------------


@lru_cache(maxsize=4)
def what_is(graph: OpGraph) -> tuple[What | None, ...]:
    """What each tensor is, by id; None for constants without parameters, which all know, and for
    the keys and pads of masks. What is masked is what it stands for."""
    if isinstance(graph, MaskedGraph):
        plain = what_is(graph.plain)
        behind = {t: one.plain for t, one in graph.masks.items()} | dict(graph.copies)
        new = range(len(plain), len(graph.tensors))
        return (*plain, *(plain[behind[t]] if t in behind else None for t in new))
    found: dict[int, What] = {}

    def mark(tensors: Iterable[Tensor], what: What) -> None:
        """These, and all that their values are moved into, where that is nothing else yet."""
        front = [t.id for t in tensors]
        while front:
            tensor = front.pop()
            if tensor not in found:
                found[tensor] = what
                front += moved_into(graph, tensor)

    flowing = [t for t in graph.tensors if graph.crosses(t)]
    looked_up = [op for op in graph.ops if is_look_up(graph, op)]
    sources = {t for op in looked_up for t in moved_from(graph, graph.inputs(op.id)[1].id)}
    inputs = [
        t
        for op in graph.ops
        if op.kind is Kind.INPUT and op.id not in graph.state_ops
        for t in graph.outputs(op.id)
    ]
    for tensor in graph.tensors:
        maker = None if tensor.op is None else graph.ops[tensor.op]
        made_of = graph.inputs(maker.id) if maker is not None and maker.is_constant else ()
        if tensor.role in (Role.PARAMETER, Role.BUFFER) or any(
            found.get(t.id) is What.WEIGHTS for t in made_of
        ):
            found[tensor.id] = What.WEIGHTS
    mark((t for t in graph.tensors if t.op in graph.state_ops), What.KV_CACHE)
    for label, what in _LABELLED.items():
        mark((t for t in flowing if t.label == label), what)
    mark((t for t in flowing if t.label and set(t.label) <= set("qkv")), What.QKV)
    mark((t for t in inputs if t.id in sources), What.PROMPT_TOKENS)
    mark(inputs, What.INPUTS)
    mark((t for op in looked_up for t in graph.outputs(op.id)), What.EMBEDDINGS)
    stream, inner, branch = _residuals(graph)
    mark((t for t in flowing if t.op in inner), What.MLP_ACTIVATIONS)
    mark((t for t in flowing if t.op in stream or t.label == "attention_output"), _STREAM[0])
    for tensor in flowing:
        assert tensor.op is not None
        op = graph.ops[tensor.op]
        alike = [t for t in graph.flowing(op.id) if t.numel == tensor.numel]
        if op.kind in PRODUCTS and branch.get(op.id) == tensor.numel:
            mark([tensor], What.HIDDEN_STATES)  # what a branch adds to the stream
        if op.kind in (Kind.NORM, Kind.ELEMENTWISE) and any(
            found.get(t.id) in _STREAM for t in alike
        ):
            mark([tensor], What.HIDDEN_STATES)
    return tuple(found.get(t.id, What.OTHER if graph.crosses(t) else None) for t in graph.tensors)


_LABELLED = {
    "logits": What.LOGITS,
    "attention_scores": What.ATTENTION_SCORES,
    "attention_probs": What.ATTENTION_SCORES,
}

_STREAM = (What.HIDDEN_STATES, What.EMBEDDINGS)

PRODUCTS = (Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION)


def _residuals(graph: OpGraph) -> tuple[set[int], set[int], dict[int, int]]:
    """What goes around branches and is added to what they make.

    (the ops that add; the ops inside of a branch without attention, from its first product to
    before its last; the ops of branches -> elements of what the branch is added to)
    """
    stream: set[int] = set()
    inner: set[int] = set()
    branch: dict[int, int] = {}
    for op in graph.ops:
        reads = {t.id: t for t in graph.flowing(op.id)}.values()
        if base_name(op.target) != "add" or len(reads) != 2:
            continue
        one, other = sorted(reads, key=lambda t: t.op or 0)
        between = _between(graph, one, other) if one.numel == other.numel else set()
        if not any(graph.ops[o].kind in PRODUCTS for o in between):
            continue
        stream.add(op.id)
        branch.update(dict.fromkeys(between, one.numel))
        attending = {
            o
            for o in between
            if graph.ops[o].kind is Kind.ATTENTION or any(t.label for t in graph.outputs(o))
        }
        before = _downstream(graph, between, attending)
        apart = between - before - _upstream(graph, between, attending)
        products = {o for o in apart if graph.ops[o].kind in PRODUCTS}
        later = {
            t.op
            for o in _upstream(graph, apart, products)
            for t in graph.flowing(o)
            if t.op is not None
        }
        inner |= _downstream(graph, apart, products) & later
    return stream, inner, branch


def _between(graph: OpGraph, start: Tensor, end: Tensor) -> set[int]:
    """The ops on the ways from one tensor to another; empty where there is no way."""
    if start.op is None or end.op is None:
        return set()
    back: set[int] = set()
    front = [end.op]
    while front:
        op = front.pop()
        if op > start.op and op not in back:
            back.add(op)
            front += [t.op for t in graph.flowing(op) if t.op is not None]
    ahead: set[int] = set()
    for op in sorted(back):
        if any(t.id == start.id or t.op in ahead for t in graph.flowing(op)):
            ahead.add(op)
    return ahead if end.op in ahead else set()


def _downstream(graph: OpGraph, among: Collection[int], starts: Collection[int]) -> set[int]:
    """``starts`` and the ops among some that wait for them."""
    found = set(starts)
    for op in sorted(among):
        if any(t.op in found for t in graph.flowing(op)):
            found.add(op)
    return found


def _upstream(graph: OpGraph, among: Collection[int], ends: Collection[int]) -> set[int]:
    """``ends`` and the ops among some that they wait for."""
    found = set(ends)
    for op in sorted(among, reverse=True):
        if op in found:
            found.update(t.op for t in graph.flowing(op) if t.op is not None and t.op in among)
    return found


# --- what can be worked out -----------------------------------------------------------------------


def recoverable(graph: OpGraph, there: Collection[int]) -> dict[int, int]:
    """Tensors that are not ``there`` and can be worked out -> the op that leads to each.

    Exactly, or as exactly as numbers allow: an op is carried out where all that it reads is known,
    and undone where its results and all else that it reads are. Several products of one tensor
    are undone together. Whoever sees the code knows the constants that no parameter is in.
    """
    known = {*there, *(t.id for t in graph.tensors if _is_public(graph, t))}
    found: dict[int, int] = {}
    front = deque(op.id for op in graph.ops if op.kind not in (Kind.INPUT, Kind.OUTPUT))
    waiting = set(front)
    while front:
        number = front.popleft()
        waiting.discard(number)
        fresh = {t for t in _learnt(graph, graph.ops[number], known) if t not in known}
        for tensor in fresh:
            known.add(tensor)
            found[tensor] = number
            maker = graph.tensors[tensor].op
            again = {*graph.readers(tensor), *(() if maker is None else (maker,))}
            for source in () if maker is None else graph.inputs(maker):
                again.update(graph.readers(source.id))  # other products of the same
            front += [op for op in sorted(again - waiting) if _works(graph, op)]
            waiting |= again
    return found


def _works(graph: OpGraph, op: int) -> bool:
    return graph.ops[op].kind not in (Kind.INPUT, Kind.OUTPUT)


def _is_public(graph: OpGraph, tensor: Tensor) -> bool:
    return tensor.role is Role.CONSTANT and what_is(graph)[tensor.id] is None


def _learnt(graph: OpGraph, op: Op, known: Collection[int]) -> Iterable[int]:
    """What is known by an op of which some is: its results, or what it reads."""
    reads, makes = graph.inputs(op.id), graph.outputs(op.id)
    if all(t.id in known for t in reads):
        return [t.id for t in makes]
    return [t.id for t in {*reads} if t.id not in known and is_undone(graph, op, t, known)]


def is_undone(graph: OpGraph, op: Op, wanted: Tensor, known: Collection[int]) -> bool:
    """Whether one that knows the ``known`` tensors, which ``wanted`` is not among, gets it back.

    From the results of an op that reads it, and from what else the op reads.
    """
    reads, makes = graph.inputs(op.id), graph.outputs(op.id)
    name = moved_name(op.target)
    if not makes or not all(t.id in known for t in makes if name in SPLITS or t is makes[0]):
        return False
    others = [t for t in reads if t.id != wanted.id]
    if is_look_up(graph, op):
        return wanted.id == reads[1].id and reads[0].id in known
    if name in SPLITS or op.is_identity:
        return True
    if op.is_view or name in LOSSLESS:
        return makes[0].numel >= wanted.numel or name not in _MAY_CUT
    if not all(t.id in known for t in others):
        return False
    if name in INJECTIVE:
        return len(reads) == len({t.id for t in reads}) and makes[0].numel >= wanted.numel
    if op.kind in (Kind.LINEAR, Kind.MATMUL) and len(reads) in (2, 3):
        return _is_solved(graph, op, wanted, known)
    return False


_MAY_CUT = frozenset(("slice", "select", "narrow", "diagonal", "as_strided", "unfold"))


def _is_solved(graph: OpGraph, op: Op, wanted: Tensor, known: Collection[int]) -> bool:
    """Whether the products of a tensor that are known have no fewer unknowns than equations.

    ``x W`` has as many equations a row as W has columns, and as many unknowns as it has rows.
    """
    rows = _columns(graph, op, wanted)
    if rows is None:
        return False
    total = 0
    for reader in graph.readers(wanted.id):
        other = graph.ops[reader]
        makes = graph.outputs(reader)
        if other.kind in (Kind.LINEAR, Kind.MATMUL) and makes[0].id in known:
            rest = [t.id for t in graph.inputs(reader) if t.id != wanted.id]
            columns = _columns(graph, other, wanted)
            if columns is not None and columns[1] == rows[1] and all(t in known for t in rest):
                total += columns[0]
    return total >= rows[1]


def _columns(graph: OpGraph, op: Op, wanted: Tensor) -> tuple[int, int] | None:
    """(equations, unknowns) of a product for each row or column of what it multiplies.

    None where that is not known: each number in a convolution's input is in several sums.
    """
    if op.cost.gemm is None:
        return None
    reads, gemm = graph.inputs(op.id), op.cost.gemm
    added = base_name(op.target) in ("addmm", "baddbmm", "addbmm")
    left, right = reads[added], reads[added + 1]
    if wanted.id == left.id != right.id and "conv" not in op.target:
        return gemm.n, gemm.k
    return (gemm.m, gemm.k) if wanted.id == right.id != left.id else None


# --- what arithmetic makes of a secret ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor on a device that arithmetic has made of a secret."""

    tensor: Tensor
    source: Tensor
    """The secret tensor that it is nearest to."""
    ops: tuple[int, ...]
    """The arithmetic between them, in order; ops that only move values left out."""
    linear: bool
    """Whether each of these is linear in what comes of the secret."""
    recoverable: bool
    """Whether each of these can be undone with what is on the device."""


_LINEAR = frozenset(
    (
        "add",
        "sub",
        "rsub",
        "neg",
        "mul",
        "div",
        "true_divide",
        "sum",
        "mean",
        "cumsum",
        *MATRIX_PRODUCTS,
    )
)


def derived(graph: OpGraph, secret: Collection[int], there: Collection[int]) -> list[Derived]:
    """What of a secret's arithmetic is ``there``, the nearest first.

    ``secret`` is all that it covers (``partition.secrets.covered``), ``there`` the tensors that are
    on a device.
    """
    there, graph = _open(graph, there), plain_of(graph)
    known = {*there, *recoverable(graph, there)}
    best: dict[int, Derived] = {
        t: Derived(graph.tensors[t], graph.tensors[t], (), True, True) for t in secret
    }
    tainted = reached(graph, secret)
    front = deque(sorted(secret))
    while front:
        tensor = front.popleft()
        here = best[tensor]
        for reader in graph.readers(tensor):
            op = graph.ops[reader]
            if not _works(graph, reader):
                continue
            for made in graph.outputs(reader):
                moved = made.id in moved_into(graph, tensor)
                ops = here.ops if moved else (*here.ops, reader)
                if made.id in best and len(best[made.id].ops) <= len(ops):
                    continue
                others = [t.id for t in graph.inputs(reader) if t.id != tensor]
                alone = base_name(op.target) in ("add", "sub") or tainted.isdisjoint(others)
                best[made.id] = Derived(
                    made,
                    here.source,
                    ops,
                    here.linear and (moved or (alone and base_name(op.target) in _LINEAR)),
                    here.recoverable
                    and is_undone(graph, op, here.tensor, known | {made.id} - {tensor}),
                )
                (front.appendleft if moved else front.append)(made.id)
    found = [one for t, one in best.items() if t in there and t not in secret]
    return sorted(found, key=lambda one: (len(one.ops), one.tensor.id))


# --- what a device sees ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a device sees of one sort of tensor."""

    device: str
    """The device that sees it."""
    what: What
    """The sort of tensor."""
    how: How
    """In plain, or in which other way."""
    sent: int
    """Tensors that come to the device; of what is masked those that stand for it, here and below."""
    made: int
    """Tensors that are computed there; views left out."""
    kept: int
    """Parameters and cached state that lie there, each memory once."""
    bytes: int
    """Of all of these, in the tensors' own dtypes."""
    example: str | None
    """Of what is recoverable: a tensor that is, and the op or the attack that leads to it; else None."""

    @property
    def is_known(self) -> bool:
        """Whether the device has it in plain or can work it out."""
        return self.how in (How.PLAIN, How.RECOVERABLE)


def _open(graph: OpGraph, there: Collection[int]) -> set[int]:
    """The tensors of the plain graph of which the values are ``there`` as they are."""
    if not isinstance(graph, MaskedGraph):
        return set(there)
    plain = range(len(graph.plain.tensors))
    return {graph.copies.get(t, t) for t in there if t in plain or t in graph.copies}


def known(found: Iterable[Seen]) -> list[What]:
    """The sorts of a run's own tensors that are in plain or recoverable, on some device."""
    sorts = {one.what for one in found if one.is_known}
    return [what for what in What if what in sorts - {What.WEIGHTS, What.OTHER}]


def seen(
    graph: OpGraph, placement: Placement, traffic: Traffic, devices: Sequence[str]
) -> list[Seen]:
    """By device, what it sees of each sort of tensor that the graph has; in ``What``'s order."""
    there = present(graph, placement, traffic)
    sorts, plain = what_is(graph), plain_of(graph)
    masks = graph.masks if isinstance(graph, MaskedGraph) else {}
    found: list[Seen] = []
    for device in devices:
        here = there.get(device, set())
        visible = _open(graph, here)
        under = [masks[t] for t in sorted(here) if t in masks]
        attacked = {
            one.plain: one.attack for one in under if one.attack and one.plain not in visible
        }
        led = recoverable(plain, visible | set(attacked))
        ways = {
            **{t: f"{plain.tensors[t].name} by {plain.ops[op].name}" for t, op in led.items()},
            **{t: f"{plain.tensors[t].name}: {attack}" for t, attack in attacked.items()},
        }
        came = {t.tensor.id for t in traffic.transfers if t.dst_device == device}
        for what in What:
            tensors = [t for t in plain.tensors if sorts[t.id] is what]
            if not tensors:
                continue
            at_hand = [t for t in graph.tensors if t.id in here and sorts[t.id] is what]
            open_ = [t for t in at_hand if t.id not in masks]
            hidden = [t for t in at_hand if t.id in masks]
            first = [t for t in tensors if t.id in attacked] + tensors  # what the rest follows from
            worked_out = next((ways[t.id] for t in first if t.id in ways), None)
            how = (
                How.PLAIN
                if open_
                else How.RECOVERABLE
                if worked_out is not None
                else How.MASKED
                if hidden
                else How.NOT_AT_ALL
            )
            shown = open_ or hidden
            sent = [t for t in shown if t.id in came]
            made = [
                t
                for t in shown
                if (op := graph.tensors[t.id].op) is not None
                and placement.devices[op] == device
                and not graph.ops[op].is_view
            ]
            lying = {graph.storage(t).id: graph.storage(t) for t in open_ if not graph.crosses(t)}
            kept = [t for number, t in lying.items() if number not in came]
            found.append(
                Seen(
                    device,
                    what,
                    how,
                    len(sent),
                    len(made),
                    len(kept),
                    sum(t.bytes for t in (*sent, *made, *kept)),
                    worked_out if how is How.RECOVERABLE else None,
                )
            )
    return found
