"""ONNX Runtime's layer assignment: annotations of nodes, and a device for each in the session.

A node's annotation (``layer_ann`` in its metadata) is here the path of its module and a dot, so that
``model.layers.1.`` begins the annotations of that module and of all in it, and of no other. The
setting ``session.layer_assignment_settings`` maps annotations to devices, ``cpu(a., b.); gpu(c.)``:
what an annotation begins with, or after ``=`` all of it. Of several rules that it begins with the
first counts, and these go before those with ``=``; so the longest are written first. A node that no
rule is of goes to the first provider that can run it: the accelerator.

``cpu`` is home. A session has one device of a kind: a single accelerator is ``gpu``, or what it is
called where that is a word of ONNX Runtime; of several each must be called by such a word.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from cutedge.executors.modules import UNITS, nearest_entries, own_paths
from cutedge.executors.places import Places, places
from partition.placement import Placement
from tracer.errors import CutedgeError, InputError, suggest
from tracer.graph import OpGraph
from tracer.stacks import run_order

__all__ = ["NAME", "UNITS", "nearest", "parse", "place", "reads", "text"]

NAME = "onnxruntime"
_SETTING = "session.layer_assignment_settings"
_KINDS = ("gpu", "cuda", "dml", "npu", "fpga")
"""Words for accelerators, beside ``accelerator`` for any."""
_ACCELERATOR = rf"(?i:{'|'.join(_KINDS)}|accelerator)(:\w+)?|\w+ExecutionProvider"
_HOME = r"(?i:cpu)|CPUExecutionProvider"
_EXAMPLE = f"{_SETTING}=cpu(lm_head.); gpu(model.)"

Rule = tuple[str, str, bool]
"""(device in ONNX Runtime's words, annotation, whether it is all of a node's)"""


def reads(text: str) -> bool:
    """Whether a text has the setting."""
    return _SETTING.partition(".")[2] in text


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of the setting. Raises InputError for what ONNX Runtime would refuse.

    >>> parse("session.layer_assignment_settings=cpu(=model.norm.); gpu(model.)")
    (('cpu', 'model.norm.', True), ('gpu', 'model.', False))
    """
    found = re.search(r"layer_assignment_settings[\"']?\s*[=:,]\s*([\"']?)([^\"'\n]*)\1", text)
    rules: list[Rule] = []
    for entry in found[2].split(";") if found else ():
        if not entry.strip():
            continue
        match = re.fullmatch(r"\s*([^()\s]+)\s*\(([^()]*)\)\s*", entry)
        if match is None:
            raise InputError(f"{_SETTING}: {entry.strip()!r} is no rule; write {_EXAMPLE}")
        for one in match[2].split(","):
            annotation = one.strip().removeprefix("=").strip()
            if annotation:
                rules.append((match[1], annotation, one.strip().startswith("=")))
    if not rules:
        raise InputError(f"{_SETTING} has no rule: write {_EXAMPLE}")
    for at, (_, annotation, whole) in enumerate(rules):
        if any(rule[1:] == (annotation, whole) for rule in rules[:at]):
            raise InputError(f"{_SETTING} has {annotation!r} twice")
    return tuple(rules)


def text(rules: Sequence[Rule]) -> str:
    """As the setting and its value."""
    said = (
        f"{device}({', '.join('=' * whole + annotation for _, annotation, whole in group)})"
        for device, group in groupby(rules, key=lambda rule: rule[0])
    )
    return f"{_SETTING}={'; '.join(said)}\n"


def place(graph: OpGraph, rules: Sequence[Rule], devices: Sequence[str]) -> Places:
    """Where ONNX Runtime runs each op, if its provider has a kernel for it.

    Raises InputError for an annotation that no module has, and for a device that is not there.
    """
    paths = own_paths(graph)
    annotations = {path: f"{path}." for path in paths}
    for _, annotation, whole in rules:
        if not any(_is_of((_, annotation, whole), one) for one in annotations.values()):
            raise InputError(
                f"{_SETTING}: no module of {graph.meta.model} has the annotation {annotation!r}, "
                f"which is its path and a dot.{suggest(annotation, annotations.values())}"
            )
    there = [_device(device, devices) for device, _, _ in rules]
    first = sorted(range(len(rules)), key=lambda at: rules[at][2])  # those with "=" last
    where = {
        path: next((there[at] for at in first if _is_of(rules[at], annotation)), devices[1])
        for path, annotation in annotations.items()
    }
    return places(
        graph, devices[0], {op: where[graph.ops[op].module_path] for op in run_order(graph)}
    )


def _is_of(rule: Rule, annotation: str) -> bool:
    _, told, whole = rule
    return annotation == told if whole else annotation.startswith(told)


def _device(word: str, devices: Sequence[str]) -> str:
    """The device that a word of ONNX Runtime is of."""
    home, *accelerators = devices
    if re.fullmatch(_HOME, word):
        return home
    if word in accelerators:
        return word
    if re.fullmatch(_ACCELERATOR, word) is None:
        raise InputError(f"{_SETTING}: {word!r} is no device: write cpu, {', '.join(_KINDS)}")
    if len(accelerators) > 1:
        raise InputError(
            f"{_SETTING}: {word} may be any of {', '.join(accelerators)}: call the one meant so "
            f"(--accel {word.partition(':')[0].lower()})"
        )
    return accelerators[0]


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> tuple[Rule, ...]:
    """The rules that agree with most of a placement.

    Raises CutedgeError for several accelerators that ONNX Runtime has no words for.
    """
    words = _words(devices)
    entries = nearest_entries(graph, placement, devices)
    rules = [(words[device], f"{path}.", False) for path, device in entries.items()]
    order = [*dict.fromkeys(words.values())]
    return tuple(sorted(rules, key=lambda rule: (-rule[1].count("."), order.index(rule[0]))))


def _words(devices: Sequence[str]) -> Mapping[str, str]:
    home, *accelerators = devices
    if len(accelerators) == 1:
        (one,) = accelerators
        return {home: "cpu", one: one if one in _KINDS else "gpu"}
    unknown = [device for device in accelerators if device not in _KINDS]
    if unknown:
        raise CutedgeError(
            "ONNX Runtime has one device of a kind in a session, and here are "
            f"{', '.join(accelerators)}: call each by its kind ({', '.join(_KINDS)}), as in --accel "
            "gpu --accel npu"
        )
    return {home: "cpu", **{device: device for device in accelerators}}
