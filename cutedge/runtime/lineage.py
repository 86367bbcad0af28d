"""Which tensors of a run carry a secret's values, by the ops that it carries out."""

from collections.abc import Collection, Mapping, Sequence

from cutedge.runtime.interpreter import read
from tracer.graph import Kind, OpGraph, Role
from tracer.kinds import PASSES, SPLITS, base_name, moves
from tracer.program import Invocation
from tracer.summary import renewals


def carriers(
    graph: OpGraph,
    invocations: Mapping[int, Invocation],
    marked: Mapping[str, Collection[int]],
    derived: Collection[str] = (),
) -> dict[int, str]:
    """Tensor -> its name and the secret whose values it has; ``marked``: secret -> its tensors.

    Values go where an op moves them (``tracer.kinds.moves``): into views, copies, casts, slices,
    concatenations, look-ups; and where one may leave them as they are: plus a mask, attention to
    one key. What a secret was itself moved out of has them too, and so has what else that was moved
    into, but for the other parts of a split. Of the secrets in ``derived`` all that any op makes of
    these is meant as well.
    """
    steps = _steps(graph, invocations)
    found: dict[int, str] = {}
    for name, tensors in marked.items():
        secret = _carried(graph, steps, tensors)
        if name in derived:
            every = [
                (t, made.id, op)
                for op, how in sorted(invocations.items())
                for t in read(how)
                for made in graph.outputs(op)
            ]
            secret = _ahead(graph, every, secret)
        for tensor in sorted(secret):
            found.setdefault(tensor, f"{graph.tensors[tensor].name} of {name}")
    return found


_Steps = Sequence[tuple[int, int, int]]
"""(tensor, what an op moves its values into, the op), in the order of the ops."""


def _steps(graph: OpGraph, invocations: Mapping[int, Invocation]) -> _Steps:
    found: list[tuple[int, int, int]] = []
    learnt = {t.id for t in graph.tensors if t.role is Role.PARAMETER}  # and constants of these
    for op, how in sorted(invocations.items()):
        given, made, what = read(how), graph.outputs(op), graph.ops[op]
        if what.is_constant and learnt & {*given}:
            learnt.update(t.id for t in made)
        if not given or not made or what.kind in (Kind.INPUT, Kind.OUTPUT):
            continue
        same_size = graph.tensors[given[0]].numel == made[0].numel
        pairs = moves(what.target, len(given), len(made), same_size=same_size)
        if not pairs and (what.is_view or what.is_identity):
            pairs = [(0, result) for result in range(len(made))]
        if not pairs and (value := _value_of_one_key(graph, op, given)) is not None:
            pairs = [(value, 0)]
        numbers = {t for t in given if graph.tensors[t].role is Role.CONSTANT} - learnt
        if not pairs and numbers and base_name(what.target) in PASSES:
            pairs = [(n, 0) for n, tensor in enumerate(given) if tensor not in numbers]
        found += [(given[arg], made[result].id, op) for arg, result in pairs]
    return found


def _value_of_one_key(graph: OpGraph, op: int, given: Sequence[int]) -> int | None:
    """Which argument is V in an attention to a single key: its weight is 1, and V the result."""
    kind, tensors = graph.ops[op].kind, [graph.tensors[t] for t in given]
    if kind is Kind.ATTENTION and len(given) > 2 and tensors[1].shape[-2:-1] == (1,):
        return 2
    scores = tensors[0]
    one_key = scores.label == "attention_probs" and scores.shape[-1:] == (1,)
    return 1 if kind is Kind.MATMUL and len(given) > 1 and one_key else None


def _carried(graph: OpGraph, steps: _Steps, marked: Collection[int]) -> set[int]:
    """What has values of the ``marked`` tensors, in this run or, as cached state, in the next."""
    whole = {*marked} | {new.id for old, new in renewals(graph) if old.id in marked}
    secret = _ahead(graph, steps, whole)
    sources, ways = {*whole}, set[int]()
    for tensor, result, op in reversed(steps):  # ops stand in order: one pass is enough
        maker = graph.tensors[tensor].op
        if result in sources and (
            graph.crosses(graph.tensors[tensor])
            or graph.ops[op].is_constant
            or maker in graph.state_ops
        ):
            sources.add(tensor)
            ways.add(op)
    sources = _with_tied(graph, sources) - whole
    others = {
        result
        for tensor, result, op in steps
        if tensor in sources - secret
        and result not in sources
        and not (op in ways and base_name(graph.ops[op].target) in SPLITS)
    }
    return secret | sources | _ahead(graph, steps, others)


def _ahead(graph: OpGraph, steps: _Steps, starts: Collection[int]) -> set[int]:
    """``starts``, and what steps lead to from there; new cached state is the next run's."""
    found, before = {*starts}, 0
    while len(found) > before:
        before = len(found)
        found = _with_tied(graph, found)
        for tensor, result, _ in steps:
            if tensor in found:
                found.add(result)
        found |= {old.id for old, new in renewals(graph) if new.id in found}
    return found


def _with_tied(graph: OpGraph, tensors: Collection[int]) -> set[int]:
    """Tensors, and what shares a parameter's memory with one of them."""
    stored = {t.id: graph.storage(t).id for t in graph.tensors if t.op is None}
    owners = {stored[t] for t in tensors if t in stored}
    return {*tensors} | {t for t, owner in stored.items() if owner in owners}
