"""ExecuTorch's delegates: which nodes of an exported program each accelerator is given.

What is written is a Python file with a device for every op, and a ``Partitioner`` that gives it to the
nodes. Nodes are named by their module, and in a module with ops on several devices by their ATen op
and their turn among those: names of nodes (``linear_7``) count all that an export made before them.
The devices are marked on the program as ``torch.export`` makes it, where ATen ops are whole, and go
with what these are decomposed to. Tags are made from the nodes that are there then, an accelerator
and a step each: a delegate is called once, so what waits for home in between is another one. What
waits for no input (a constant, a product's transposed weight) is in the delegate that reads it.

What has no tag is run by ExecuTorch itself, at home. An accelerator is called by its name here, which
is given a backend where the ``Partitioner`` is made.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

from cutedge.executors.places import Places, places
from cutedge.executors.python_files import assigned
from partition.placement import Placement
from tracer.errors import InputError, suggest
from tracer.graph import OpGraph
from tracer.stacks import run_order

NAME = "executorch"
UNITS = "ops"

Turns = str | None | tuple[str | None, ...]
"""The device of all ops of one kind, or of each in turn; None for home."""
Inside = str | None | Mapping[str, Turns]
"""The device of all that a module does itself, or by ATen op."""

_FILE = '''from executorch.exir.backend.partitioner import Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data

# Of each module the device of all that it does itself, or of each ATen op, one or one a turn.
delegates = {
%s}


def mark(exported):
    """Give the nodes of a program that torch.export made their devices; the program."""
    turns, counted = {}, {}
    for node in exported.graph.nodes:
        if node.op == "call_function":
            turns[node] = counted.get(key := (_module(node), str(node.target)), 0)
            counted[key] = turns[node] + 1
    for node, turn in turns.items():
        module, target = _module(node), str(node.target)
        inside = delegates.get(module)
        if isinstance(inside, dict):  # what the placement does not know stays where its input is
            before = [one.meta.get("custom", {}).get("device") for one in node.all_input_nodes]
            inside = inside.get(target, before[0] if before else None)
        if isinstance(inside, tuple):
            if len(inside) != counted[module, target]:
                raise ValueError(
                    f"{module}: {counted[module, target]} x {target}, and the placement is of "
                    f"{len(inside)}: export the model as it was traced"
                )
            inside = inside[turn]
        if inside is not None:
            node.meta["custom"] = {**node.meta.get("custom", {}), "device": inside}
    return exported


def _module(node):
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1].partition("@")[0] if stack else ""


class Delegated(Partitioner):
    """Tags the nodes of a marked program; ``specs`` has a DelegationSpec for each device."""

    def __init__(self, specs):
        super().__init__()
        self.specs = specs

    def partition(self, exported_program):
        signature, nodes = exported_program.graph_signature, [*exported_program.graph.nodes]
        changed = {*signature.buffers_to_mutate.values()}
        given = {at for at, buffer in signature.inputs_to_buffers.items() if buffer in changed}
        given.update(signature.user_inputs)
        devices = {node: node.meta.get("custom", {}).get("device") for node in nodes}
        steps, waiting, tags = {}, set(), {}
        for node in nodes:
            before = node.all_input_nodes if node.op == "call_function" else []
            if node.name in given or not waiting.isdisjoint(before):
                waiting.add(node)
            here = devices[node]
            steps[node] = int(here is not None)
            for one in before:
                away = here is not None and devices[one] != here
                steps[node] = max(steps[node], steps[one] + away)
        for node in reversed(nodes):  # what waits for nothing runs where it is read
            if node.op == "call_function" and node not in waiting:
                if len(readers := {devices[one] for one in node.users}) == 1:
                    (devices[node],) = readers
                    steps[node] = min(steps[one] for one in node.users)
            if devices[node] is not None:
                tag = f"{devices[node]}_{steps[node]}"
                node.meta["delegation_tag"] = tag
                tags[tag] = self.specs[devices[node]]
        tag_constant_data(exported_program)
        return PartitionResult(exported_program, tags)
'''


def reads(text: str) -> bool:
    """Whether a text sets ``delegates``."""
    return re.search(r"^delegates\s*=", text, re.MULTILINE) is not None


def parse(text: str) -> dict[str, Inside]:
    """Module path -> the devices of what it does itself. Raises InputError for anything else.

    >>> parse('delegates = {"up": "gpu", "": {"aten.mul.Tensor": (None, "gpu")}}')
    {'up': 'gpu', '': {'aten.mul.Tensor': (None, 'gpu')}}
    """
    found: dict[str, Inside] = {}
    for path, inside in (assigned(text, "delegates") or {}).items():
        if not isinstance(path, str) or not _is_told(inside):
            raise InputError(
                f"delegates: {path!r} has {inside!r}; write an accelerator, or of each ATen op one or "
                "several in turn, None for home"
            )
        found[path] = inside
    return found


def _is_told(inside: object) -> TypeGuard[Inside]:
    """Whether a value is of a module's devices."""
    if not isinstance(inside, dict):
        return isinstance(inside, str | None)
    each = (one for turns in inside.values() for one in _each(turns))
    return all(isinstance(target, str) for target in inside) and all(
        isinstance(one, str | None) for one in each
    )


def _each(turns: object) -> tuple[object, ...]:
    return turns if isinstance(turns, tuple) else (turns,)


def text(told: Mapping[str, Inside]) -> str:
    """As Python that defines ``delegates``, marks a program and partitions it."""
    lines: list[str] = []
    for path, inside in told.items():
        if isinstance(inside, str | None):
            lines.append(f"    {_said(path)}: {_said(inside)},\n")
            continue
        lines.append(f"    {_said(path)}: {{\n")
        lines += [f"        {_said(target)}: {_said(turns)},\n" for target, turns in inside.items()]
        lines.append("    },\n")
    return _FILE % "".join(lines)


def _said(value: Turns) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_said, value))}{',' * (len(value) == 1)})"
    return "None" if value is None else json.dumps(value)


def place(graph: OpGraph, told: Mapping[str, Inside], devices: Sequence[str]) -> Places:
    """Where ExecuTorch runs each op.

    Raises InputError for a module or an op that is not there, for other turns than there are, and for
    a device that is none of the accelerators.
    """
    home, *accelerators = devices
    nodes = _nodes(graph)
    for path, inside in told.items():
        if path not in nodes:
            raise InputError(
                f"delegates: {path!r} is no module of {graph.meta.model} that does anything."
                f"{suggest(path, sorted(nodes))}"
            )
        for target, turns in _targets(inside):
            there = nodes[path].get(target, [])
            if target and not there:
                raise InputError(
                    f"delegates: {path!r} has no {target}.{suggest(target, sorted(nodes[path]))}"
                )
            if isinstance(turns, tuple) and len(turns) != len(there):
                raise InputError(
                    f"delegates: {path!r} has {len(there)} x {target}, and here are {len(turns)}"
                )
            for device in _each(turns):
                if device is not None and device not in accelerators:
                    raise InputError(
                        f"delegates: {path!r} is on {device!r}, and the accelerators are "
                        f"{', '.join(accelerators)}: --accel {device} adds one"
                    )
    at: dict[int, str] = {}
    for path, targets in nodes.items():
        inside = told.get(path)
        for target, ops in targets.items():
            turns = inside.get(target) if isinstance(inside, Mapping) else inside
            each = turns if isinstance(turns, tuple) else [turns] * len(ops)
            at.update((op, device or home) for op, device in zip(ops, each, strict=True))
    return places(graph, home, {op: at[op] for op in run_order(graph)})


def _targets(inside: Inside) -> Iterator[tuple[str, Turns]]:
    if isinstance(inside, Mapping):
        yield from inside.items()
    else:
        yield "", inside


def _nodes(graph: OpGraph) -> dict[str, dict[str, list[int]]]:
    """Module path -> ATen op -> its ops, constants among them, in the order of an export."""
    found: dict[str, dict[str, list[int]]] = {}
    placed = {*run_order(graph)}
    for op in graph.ops:
        if op.id in placed or op.is_constant:
            found.setdefault(op.module_path, {}).setdefault(op.target, []).append(op.id)
    return found


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> dict[str, Inside]:
    """The placement itself: a device for each op, of a module at once where it has one."""
    home = devices[0]
    found: dict[str, Inside] = {}
    for path, targets in _nodes(graph).items():
        inside: dict[str, Turns] = {}
        for target, ops in targets.items():
            there = [placement.devices[op] for op in ops]
            placed = {device for device in there if device is not None}
            turns = tuple(None if device == home else device for device in there)
            inside[target] = turns if len(placed) > 1 else next(iter(placed - {home}), None)
        alone = {placement.devices[op] for ops in targets.values() for op in ops} - {None}
        if len(alone) > 1:
            found[path] = inside
        elif alone - {home}:
            found[path] = next(iter(alone))
    return found
