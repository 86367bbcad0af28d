"""What an executor can place: the units of ops that it keeps on one device.

- ``op``: each op by itself.
- ``tensor``: the ops that read one stored weight, and what goes with them. An executor that places
  weights (llama.cpp's ``--override-tensor``) runs an op where its weight is. An op without weights
  goes with what runs before it in the smallest module around it that still has a weight to come,
  or, as the first there, with that weight: a norm is whole, an activation is with its gate. An
  attention, from its scores to the product with the values, and so its cache, is where its block is,
  which is where the first weight of the block is (its norm); so is what runs after the last weight
  of the block (the last residual sum, the sum over experts). That is what llama.cpp does
  (``ggml_backend_sched``, ``llama_context::graph_get_cb``: caches and norms stay where the layer is,
  a device is handed on to the ops that follow), with one difference: an op without weights between
  two devices is taken by the accelerator there, and stays with what is before it here. A tied weight
  is there once for each place that reads it, as llama.cpp loads the table of tokens again for the
  head.
- ``module``: the ops that one module does itself, as accelerate's ``device_map`` names modules: a
  leaf's all, of a module with parts those between its parts (of an attention RoPE, scores, softmax
  and their product with the values; of a block the residual sums), all together.
- ``layer``: the ops of one block of a stack (``Op.stack``, ``Op.layer``), what comes before the
  first, what comes after the last. What stands between two blocks of one stack goes with the first
  of them.
- ``convex``: each op by itself, and each accelerator is called once: a compiler that makes one
  program of what it is given (an engine, a delegate) cannot stop for home in between.

A unit of ``tensor`` or ``module`` is in one of ``layer``. A unit of ``tensor`` may have ops of several
modules, and one of ``module`` several weights: neither of these two is finer than the other.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache

from partition import Granularity
from partition.stored import parameters_read
from tracer.graph import OpGraph, Role
from tracer.patterns import attention_core, kv_broadcast
from tracer.stacks import run_order

Place = tuple[str | None, int | None]
"""(stack, layer) of a block; (stack, None) of what comes after a stack, and (None, None) before the
first."""


@lru_cache(maxsize=8)
def units(graph: OpGraph, granularity: Granularity) -> tuple[int, ...]:
    """By op: the first op of its unit. Ops of one unit lie on one device.

    Inputs, the output, constants and cached state are in no unit with others.

    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=4).graph
    >>> placed = run_order(graph)
    >>> [len({units(graph, g)[op] for op in placed}) for g in ("op", "tensor", "module", "layer")]
    [121, 35, 49, 6]
    """
    found = list(range(len(graph.ops)))
    if granularity in ("op", "convex"):
        return tuple(found)
    keys = _keys(graph, granularity)
    first: dict[Hashable, int] = {}
    for op in run_order(graph):
        found[op] = first.setdefault(keys[op], op)
    return tuple(found)


def _keys(graph: OpGraph, granularity: Granularity) -> Mapping[int, Hashable]:
    """By op: what is one and the same for the ops of a unit."""
    order = run_order(graph)
    places = _places(graph, order)
    if granularity == "tensor":
        return _by_weight(graph, order, places)
    if granularity == "module":
        return {op: (places[op], graph.ops[op].module_path) for op in order}
    return places


def common_units(
    first: OpGraph, other: OpGraph, granularity: Granularity
) -> tuple[dict[int, int], list[str]]:
    """(op of another graph of a model -> an op of the first in the same unit, parameters apart).

    Units are the same that have the same module or weight in the same block. Parameters are apart
    that the two graphs do not read in the same units. Both graphs are of one model, in two phases.

    >>> import cutedge
    >>> prefill, decode = (
    ...     cutedge.trace("edge-10m", **phase).graph
    ...     for phase in ({"seq": 4, "cache": True}, {"phase": "decode", "past": 4})
    ... )
    >>> tied, apart = common_units(prefill, decode, "layer")
    >>> len({*tied.values()}), apart
    (6, [])
    """
    named, readers = [], []
    for graph in (first, other):
        keys = _keys(graph, granularity)
        if granularity == "tensor":
            keys = {op: _by_name(graph, key) for op, key in keys.items()}
        read: dict[str, set[Hashable]] = defaultdict(set)
        for op, key in keys.items():
            for storage in parameters_read(graph)[op]:
                read[graph.tensors[storage].name].add(key)
        named.append(keys)
        readers.append(read)
    at: dict[Hashable, int] = {}
    for op, key in named[0].items():
        at.setdefault(key, op)
    one, two = readers
    apart = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    return {op: at[key] for op, key in named[1].items() if key in at}, apart


def _by_name(graph: OpGraph, key: Hashable) -> Hashable:
    """A key of ``_by_weight`` with its weight's name."""
    match key:
        case (place, int(weight)) if isinstance(place, tuple):
            return place, graph.tensors[weight].name
    return key


def shared(units: Sequence[int], choices: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """By op: of the devices that it may be on those that all ops of its unit may be on."""
    common: dict[int, tuple[str, ...]] = {}
    for unit, choice in zip(units, choices, strict=True):
        common[unit] = tuple(d for d in common.get(unit, choice) if d in choice)
    return [common[unit] for unit in units]


def apart(units: Sequence[int], choices: Sequence[tuple[str, ...]]) -> tuple[int, int] | None:
    """The first two ops of one unit that have no device in common; None where there are no such."""
    first: dict[tuple[int, tuple[str, ...]], int] = {}  # (unit, devices) -> the first op with them
    chosen: dict[int, list[tuple[str, ...]]] = {}
    for op, (unit, choice) in enumerate(zip(units, choices, strict=True)):
        for other in chosen.setdefault(unit, []):
            if choice and not {*choice} & {*other}:
                return first[unit, other], op
        if (unit, choice) not in first:
            first[unit, choice] = op
            chosen[unit].append(choice)
    return None


def unit_name(graph: OpGraph, granularity: Granularity, unit: int) -> str:
    """What to call the unit that begins with an op.

    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=4).graph
    >>> last = max(units(graph, "layer")[:-1])
    >>> unit_name(graph, "layer", last), unit_name(graph, "module", last)
    ('what comes after model.decoder.layers', 'model.decoder.final_layer_norm')
    """
    op = graph.ops[unit]
    if granularity in ("op", "convex"):
        return f"op {unit} ({op.name})"
    if granularity == "tensor":
        weights = _weights(graph)
        members = [each for each, first in enumerate(units(graph, "tensor")) if first == unit]
        read = next((weights[each][0] for each in members if weights[each]), None)
        if read is not None:
            return f"{graph.tensors[read].name} and what goes with it"
    if granularity == "module":
        return op.module_path or "what the model does itself"
    stack, layer = _places(graph, run_order(graph))[unit]
    if layer is not None:
        return f"{stack}.{layer}" if stack else f"layer {layer}"
    if stack is None:
        return "what comes before the first layer"
    return f"what comes after {stack or 'the last layer'}"


def _places(graph: OpGraph, order: Sequence[int]) -> dict[int, Place]:
    """By op: the block that it is in, else what it comes after."""
    block: dict[int, Place] = {}
    ahead: dict[int, Place] = {}  # by op: the block that comes next
    following: Place = (None, None)
    for op in reversed(order):
        ahead[op] = following
        if graph.ops[op].layer is not None:
            following = block[op] = graph.ops[op].stack, graph.ops[op].layer
    found: dict[int, Place] = {}
    last: Place = (None, None)
    for op in order:
        last = block.get(op, last)
        inside = op in block or (last[1] is not None and ahead[op][:1] == last[:1])
        found[op] = last if inside else (last[0], None)
    return found


def _by_weight(
    graph: OpGraph, order: Sequence[int], places: Mapping[int, Place]
) -> dict[int, Hashable]:
    """By op: what is one and the same for the ops of a unit, where weights are placed."""
    weights = _weights(graph)
    at_block = attention_core(graph) | kv_broadcast(graph)
    joined: dict[Hashable, Hashable] = {}  # (place, weight) -> another one of the unit

    def unit(place: Place, weight: int) -> Hashable:
        key: Hashable = (place, weight)
        while key in joined:
            key = joined[key]
        return key

    around: dict[int, list[tuple[Place, str]]] = {}  # by op: its module, those that it is in
    first: dict[tuple[Place, str], tuple[Place, int]] = {}  # weight that is read in a module
    until: dict[tuple[Place, str], int] = {}  # the last op that reads one there
    for op in order:
        parts = graph.ops[op].module_path.split(".")
        paths = [".".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
        around[op] = [(places[op], path) for path in dict.fromkeys(paths)]
        for weight in weights[op]:
            one, other = unit(places[op], weights[op][0]), unit(places[op], weight)
            if one != other:
                joined[other] = one
        if weights[op]:
            for module in around[op]:
                first.setdefault(module, (places[op], weights[op][0]))
                until[module] = op
    found: dict[int, Hashable] = {}
    last: dict[tuple[Place, str], Hashable] = {}  # of what ran in a module
    for op in order:
        place, outermost = places[op], around[op][-1]
        near = next((module for module in around[op] if until.get(module, -1) > op), None)
        if weights[op]:
            found[op] = unit(place, weights[op][0])
        elif outermost not in first:
            found[op] = place
        elif place[1] is not None and (near is None or op in at_block):
            found[op] = unit(*first[outermost])
        else:
            near = near or outermost
            found[op] = last[near] if near in last else unit(*first[near])
        last |= dict.fromkeys(around[op], found[op])
    return found


def _weights(graph: OpGraph) -> list[tuple[int, ...]]:
    """By op: the parameters that it reads, or what its module has computed from them at load."""
    found: list[tuple[int, ...]] = []
    for op in graph.ops:
        read: dict[int, None] = {}
        for tensor in graph.inputs(op.id):
            if tensor.op is None and tensor.role is Role.PARAMETER:
                read[tensor.id] = None
            elif tensor.op is not None and graph.ops[tensor.op].is_constant:
                if graph.ops[tensor.op].module_path == op.module_path:
                    read |= dict.fromkeys(found[tensor.op])
        found.append(tuple(read))
    return found
