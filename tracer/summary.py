"""What a person wants to know of a trace at first sight."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tracer.errors import InputError
from tracer.formula import formula, parse
from tracer.graph import Kind, OpGraph, Role, Tensor, TraceMeta
from tracer.stacks import place_of


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that are alike: the same label (or module), shape and dtype."""

    name: str
    """As in ``tensor_names``."""
    count: int
    """How many there are."""
    example: Tensor
    """The first of them."""


def tensor_names(graph: OpGraph) -> list[str]:
    """What to call each tensor, by id: its label, or the module that makes it.

    A module is called by as much of the end of its path as no other module shares, and goes
    without numbers, so that layers share their names: ``mlp.c_proj`` beside ``attn.c_proj``. So does a
    parameter or buffer, by the end of its own name (``c_proj.weight``).
    """
    known = [_full_name(graph, tensor) for tensor in graph.tensors]
    given = [tensor.op is None for tensor in graph.tensors]
    short: dict[tuple[bool, tuple[str, ...]], str] = {}
    for sort in (True, False):
        paths = {path for path, one in zip(known, given, strict=True) if one is sort}
        shared = Counter(path[start:] for path in paths for start in range(len(path)))
        short |= {(sort, path): _shortest_tail(path, shared) for path in paths}
    return [short[one, path] for one, path in zip(given, known, strict=True)]


_NUMBER = "*"
"""Stands for the numbers in a module's path."""


def _full_name(graph: OpGraph, tensor: Tensor) -> tuple[str, ...]:
    if tensor.label is not None:
        return (tensor.label,)
    if tensor.op is None:
        return tuple(_NUMBER if part.isdigit() else part for part in tensor.name.split("."))
    return _module_name(graph.ops[tensor.op].module_path) or (re.sub(r"_\d+$", "", tensor.name),)


@lru_cache(maxsize=4096)
def _module_name(path: str) -> tuple[str, ...]:
    """A module's path, its numbers left out; empty for the model itself, or a bare stack."""
    parts = path.split(".")
    if all(part.isdigit() or not part for part in parts):
        return ()
    return tuple(_NUMBER if part.isdigit() else part for part in parts)


def _shortest_tail(path: tuple[str, ...], shared: Mapping[tuple[str, ...], int]) -> str:
    starts = [n for n in range(len(path)) if path[n] != _NUMBER]
    return ".".join(next((path[n:] for n in reversed(starts) if shared[path[n:]] == 1), path))


def largest_tensors(graph: OpGraph, count: int) -> list[TensorGroup]:
    """The kinds of tensor that take most bytes each; aliases and parameters left out."""
    names = tensor_names(graph)
    groups: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
    for tensor in graph.tensors:
        if tensor.alias_of is None and tensor.role in (Role.ACTIVATION, Role.OUTPUT, Role.INPUT):
            groups.setdefault((names[tensor.id], tensor.shape, tensor.dtype), []).append(tensor)
    ordered = sorted(groups.items(), key=lambda item: (-item[1][0].bytes, item[1][0].id))
    return [TensorGroup(name, len(found), found[0]) for (name, _, _), found in ordered[:count]]


def count_ops(graph: OpGraph) -> dict[Kind, int]:
    """Ops by kind, the most frequent first."""
    return dict(Counter(op.kind for op in graph.ops).most_common())


def parameter_bytes(graph: OpGraph) -> int:
    """Bytes of all parameters, tied weights once."""
    return sum(t.bytes for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None)


def attention_kind(graph: OpGraph) -> str:
    """How a graph has its attention, in the words of ``TraceMeta.attn``."""
    spelled_out = any(t.label == "attention_scores" for t in graph.tensors) or any(
        op.kind is Kind.MATMUL and "attention" in op.module_type.lower() for op in graph.ops
    )
    kinds = {"eager": spelled_out, "sdpa": any(op.kind is Kind.ATTENTION for op in graph.ops)}
    return " and ".join(kind for kind, there in kinds.items() if there) or "no"


def has_unknown_masks(graph: OpGraph) -> bool:
    """Whether some attention has products of which it is not known how much a mask hides."""
    return any(
        op.extent_expr is None
        and (
            op.kind is Kind.ATTENTION
            or (
                op.kind is Kind.MATMUL
                and graph.outputs(op.id)[0].label in ("attention_scores", "attention_output")
            )
        )
        for op in graph.ops
    )


def modules_not_run(graph: OpGraph) -> dict[str, int]:
    """Path of a module of which no parameter is read -> how many it has.

    Of modules within each other the outermost; a parameter that is read nowhere beside others that
    are stands alone. What shares memory with a parameter that is read is read.
    """
    names = {t.name: t for t in graph.tensors if t.role is Role.PARAMETER}
    read = {graph.storage(t).id for t in graph.tensors if graph.readers(t.id)}
    run = {
        path for name, t in names.items() if graph.storage(t).id in read for path in _above(name)
    }
    found: Counter[str] = Counter()
    for name, tensor in names.items():
        if tensor.alias_of is None and tensor.id not in read:
            found[next(path for path in _above(name) if path not in run)] += tensor.numel
    return dict(found.most_common())


def _above(name: str) -> list[str]:
    """A parameter's name and the paths of the modules that it is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def cached_state(graph: OpGraph) -> tuple[tuple[int, str | None], tuple[int, str | None]]:
    """(bytes, formula) of the cached state that is read, and of what it is afterwards."""
    return _sum(cached_inputs(graph)), _sum(cached_outputs(graph))


def cached_outputs(graph: OpGraph) -> list[Tensor]:
    """The cached state as a run hands it back."""
    return [t for t in graph.inputs(len(graph.ops) - 1) if t.role is Role.KV_CACHE]


def last_layered_op(graph: OpGraph) -> int:
    """The last op in a numbered layer: linears after it are the head. Beyond all without one."""
    numbered = (op.id for op in graph.ops if place_of(op.module_path) != (None, None))
    return max(numbered, default=len(graph.ops))


def cached_inputs(graph: OpGraph) -> list[Tensor]:
    """The cached state that a run reads."""
    return [
        t
        for op in graph.ops
        if op.kind is Kind.INPUT
        for t in graph.outputs(op.id)
        if t.role is Role.KV_CACHE
    ]


def renewals(graph: OpGraph) -> list[tuple[Tensor, Tensor]]:
    """(cached state that a run reads, the state that comes of it), for all that has such a pair.

    Told by what the new state is made of, wherever the two stand among the graph's inputs and
    results. State that is handed back as it was is its own. What ops that hold state alone make
    (appended, sliced) comes of the state that they hold. What arithmetic makes (a convolution's or
    a recurrent layer's state) comes of a state of its own size that leads to it: of several, as
    those of all layers before do, the one with fewest ops between. What is as near goes by its
    place in line, and no state is renewed twice. State that no cached state leads to is new.
    """
    before, after = cached_inputs(graph), list(dict.fromkeys(cached_outputs(graph)))
    place = {tensor.id: number for number, tensor in enumerate(before)}
    found: list[tuple[tuple[int, int, int], Tensor, Tensor]] = []
    for line, new in enumerate(after):
        for number, between in _leading(graph, new, place).items():
            if new.op in graph.state_ops or graph.tensors[number].shape == new.shape:
                rank = (between, abs(line - place[number]), line)
                found.append((rank, graph.tensors[number], new))
    pairs: dict[int, Tensor] = {}
    renewed: set[int] = set()
    for _, old, new in sorted(found, key=lambda candidate: candidate[0]):
        if old.id not in pairs and new.id not in renewed:
            pairs[old.id] = new
            renewed.add(new.id)
    return [(old, pairs[old.id]) for old in before if old.id in pairs]


def kept_state(graph: OpGraph) -> dict[int, tuple[int, ...]]:
    """First tensor of each piece of cached state -> the tensors that a run leaves of it.

    The first is what comes in, or in a prefill what puts the first rows into an empty cache. State
    that is read and not handed back is left as it came in.
    """
    first: dict[int, tuple[int, ...]] = {}  # state op -> the first tensors behind it
    for op in sorted(graph.state_ops):
        behind = [first[t.op] for t in graph.inputs(op) if t.op is not None and t.op in first]
        made = tuple(t.id for t in graph.outputs(op))
        first[op] = tuple(dict.fromkeys(t for some in behind for t in some)) or made
    left: dict[int, list[int]] = {tensor: [] for some in first.values() for tensor in some}
    renewed = {new.id: old.id for old, new in renewals(graph)}
    for tensor in dict.fromkeys(cached_outputs(graph)):
        old = (renewed[tensor.id],) if tensor.id in renewed else ()
        for start in first.get(tensor.op, old) if tensor.op is not None else old:
            left[start].append(tensor.id)
    return {start: tuple(tensors) or (start,) for start, tensors in left.items()}


def state_memory(graph: OpGraph, state: Tensor) -> Tensor:
    """The tensor that owns the memory of cached state: its storage where it is all of that.

    A window of what was written is kept by itself.
    """
    owner = graph.storage(state)
    return owner if owner.bytes == state.bytes else state


def _leading(graph: OpGraph, new: Tensor, states: Mapping[int, int]) -> dict[int, int]:
    """Each of ``states`` that ``new`` is made of -> the fewest ops between them.

    Of state that lies where it is, through the ops that hold state alone.
    """
    held = new.op in graph.state_ops
    found: dict[int, int] = {}
    front, seen, between = [new], {new.id}, 0
    while front:
        found.update((t.id, between) for t in front if t.id in states)
        ops = {t.op for t in front if t.op is not None and t.id not in states}
        read = [t for op in sorted(ops) for t in graph.inputs(op) if t.id not in seen]
        front = [t for t in dict.fromkeys(read) if not held or t.op in graph.state_ops]
        seen.update(t.id for t in front)
        between += 1
    return found


def _sum(tensors: Iterable[Tensor]) -> tuple[int, str | None]:
    """Bytes in all, each tensor once, and their formula; None for a concrete trace."""
    distinct = {t.id: t for t in tensors}.values()
    exprs = [t.bytes_expr for t in distinct]
    known = [parse(expr) for expr in exprs if expr is not None]
    total = str(sum(known, formula(0))) if len(known) == len(exprs) else None
    return sum(t.bytes for t in distinct), total


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def growth(tensor: Tensor) -> str:
    """What the bytes of a tensor grow with, besides the batch."""
    if tensor.bytes_expr is None:
        return "not known"
    lengths = ("past", "source", "seq")
    terms = [
        "·".join(
            name + (str(power).translate(SUPERSCRIPTS) if power > 1 else "")
            for name, power in zip(lengths, powers, strict=True)
            if power
        )
        for powers in parse(tensor.bytes_expr).growth(lengths)
    ]
    return " + ".join(terms) or "constant"


def headline(meta: TraceMeta) -> str:
    """What a trace is of, in a line."""
    what = f" ({meta.model_class})" if meta.model_class else ""
    what += "".join(f", {key} = {value}" for key, value in meta.overrides)
    tokens = f"{meta.batch} x {meta.seq} token{'' if meta.seq == 1 else 's'}"
    read = tokens if meta.seq else f"a batch of {meta.batch}"
    past = f" after {meta.past} cached" if meta.past else ""
    source = f" over {meta.source} encoded" if meta.source else ""
    logits = f", logits of {'the last' if meta.logits == 'last' else 'every'} token"
    stored = f", weights in {meta.weights}" if meta.weights else ""
    stored += f" ({meta.weights_other})" if meta.weights_other else ""
    stored += f", cache in {meta.kv_dtype}" if meta.kv_dtype else ""
    return (
        f"{meta.model}{what}: {meta.phase} of {read}{past}{source}, {meta.dtype}, "
        f"{meta.attn} attention{logits if meta.seq and meta.phase != 'encoder' else ''}{stored}"
    )


def variant_of(graph: OpGraph) -> str:
    """In what a trace is not the model as published, in a short name; ``default`` where in nothing.

    That is its dtype, attention, logits, fields of the config, encoded tokens and a filled cache.
    """
    meta = graph.meta
    (read, _), (kept, _) = cached_state(graph)
    parts = [
        *([meta.dtype] if meta.dtype != "float32" else []),
        *([meta.attn] if meta.attn == "sdpa" else []),
        *(["all-logits"] if meta.logits == "all" and _has_logits(graph) else []),
        *(["cache"] if kept and not read else []),
        *([f"source={meta.source}"] if meta.source else []),
        *(f"{key}={value}" for key, value in meta.overrides),
    ]
    return ", ".join(parts) or "default"


def _has_logits(graph: OpGraph) -> bool:
    return any(tensor.label == "logits" for tensor in graph.tensors)


def check_causal(prefill: OpGraph, decode: OpGraph) -> None:
    """Refuse a model whose decode reads other state than its prefill leaves."""
    if decode.meta.source:
        raise InputError(
            f"{decode.meta.model}: an encoder runs before its decoder does, and no phase has both: "
            "trace and split its phases one by one"
        )
    left = [_width(tensor) for tensor in cached_outputs(prefill)]
    if not left or left != [_width(tensor) for tensor in cached_inputs(decode)]:
        raise InputError(
            f"{prefill.meta.model}: its decode reads other cached state than its prefill leaves, so "
            "it is no model that generates alone: trace and split its phases one by one"
        )


def _width(tensor: Tensor) -> tuple[str, int]:
    """Dtype and bytes: equal for state before and after it is handed on."""
    return tensor.dtype, tensor.bytes
