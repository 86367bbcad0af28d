"""Which tensors of a run carry a secret's values, by the ops that it carries out."""

from collections.abc import Collection, Mapping

from cutedge.runtime.machine import read
from tracer.graph import OpGraph
from tracer.kinds import moves
from tracer.program import Invocation


def carriers(
    graph: OpGraph, invocations: Mapping[int, Invocation], marked: Mapping[str, Collection[int]]
) -> dict[int, str]:  # fmt: skip
    """Tensor -> its name and the secret whose values it has; ``marked``: secret -> its tensors.

    Values go where an op moves them (``tracer.kinds.moves``): into views, copies, casts, slices,
    concatenations, look-ups. What a secret was itself moved out of has them too.
    """
    steps: list[tuple[int, int]] = []
    for op, how in sorted(invocations.items()):
        given, made = read(how), graph.outputs(op)
        if not given or not made:
            continue
        same_size = graph.tensors[given[0]].numel == made[0].numel
        target = graph.ops[op].target
        found = moves(target, len(given), len(made), same_size=same_size)
        if graph.ops[op].is_view:
            found = found or [(0, result) for result in range(len(made))]
        steps += [(given[arg], made[result].id) for arg, result in found]
    secret = {tensor: name for name, tensors in marked.items() for tensor in tensors}
    for source, result in reversed(steps):  # ops stand in order: one pass is enough
        if result in secret and graph.crosses(graph.tensors[source]):
            secret.setdefault(source, secret[result])
    ahead = {tensor: name for name, tensors in marked.items() for tensor in tensors}
    for source, result in steps:
        if source in ahead:
            ahead.setdefault(result, ahead[source])
    return {t: f"{graph.tensors[t].name} of {name}" for t, name in (secret | ahead).items()}
