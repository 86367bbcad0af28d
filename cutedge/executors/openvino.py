"""OpenVINO's affinities: a device for each op of a model that the HETERO plugin runs.

An op's affinity is in its ``rt_info``. Ops of a model that OpenVINO converts from a PyTorch module are
called after their modules (``__module.model.layers.0.mlp.up_proj/aten::linear/MatMul``), so what is
written is a device for each module, in a Python file that sets the affinities of all ops. ``CPU`` is
home, ``NPU`` the accelerator that is called so, ``GPU`` another one, of several ``GPU.0``, ``GPU.1`` in
their order.
"""

import json
import re
from collections.abc import Mapping, Sequence

from cutedge.executors.modules import UNITS, above, entry_of, nearest_entries, own_paths
from cutedge.executors.places import Places, places
from cutedge.executors.python_files import assigned
from partition.placement import Placement
from tracer.errors import InputError, suggest
from tracer.graph import OpGraph
from tracer.stacks import run_order

__all__ = ["NAME", "UNITS", "nearest", "parse", "place", "reads", "text"]

NAME = "openvino"
_FILE = '''# Of two modules that an op is in, the inner one counts.
affinities = {
%s}


def set_affinities(model):
    """Give each op of a converted model the device of its module, for "HETERO:%s"."""
    there = {}
    for op in reversed(model.get_ordered_ops()):  # what is in no module is with what reads it
        module, inside, _ = op.friendly_name.removeprefix("__module.").partition("/")
        module = module if inside and "::" not in module else ""
        while module and module not in affinities:
            module = module.rpartition(".")[0]
        readers = [at.get_node() for out in op.outputs() for at in out.get_target_inputs()]
        device = affinities.get(module) if inside else None
        device = device or next((there[reader.get_name()] for reader in readers), "CPU")
        there[op.get_name()] = op.get_rt_info()["affinity"] = device
'''


def reads(text: str) -> bool:
    """Whether a text sets ``affinities``."""
    return re.search(r"^affinities\s*=", text, re.MULTILINE) is not None


def parse(text: str) -> dict[str, str]:
    """Module path -> OpenVINO's device. Raises InputError for anything else.

    >>> parse('affinities = {"model": "GPU", "lm_head": "CPU"}')
    {'model': 'GPU', 'lm_head': 'CPU'}
    """
    entries = assigned(text, "affinities")
    if not entries:
        raise InputError('affinities is empty: write modules and devices, as in {"model": "GPU"}')
    for path, device in entries.items():
        if not isinstance(path, str) or not isinstance(device, str):
            raise InputError(f"affinities: {path!r} is on {device!r}; write a module and a device")
    return {str(path): str(device) for path, device in entries.items()}


def text(entries: Mapping[str, str]) -> str:
    """As Python that defines ``affinities`` and sets them."""
    lines = [f"    {json.dumps(path)}: {json.dumps(device)},\n" for path, device in entries.items()]
    names = sorted({*entries.values()} - {"CPU"})
    return _FILE % ("".join(lines), ",".join([*names, "CPU"]))


def place(graph: OpGraph, entries: Mapping[str, str], devices: Sequence[str]) -> Places:
    """Where OpenVINO runs each op.

    Raises InputError for an entry that is of no module, a device that is not there, and a module
    without an entry.
    """
    paths = own_paths(graph)
    known = {one for path in paths for one in above(path)}
    there: dict[str, str] = {}
    for path, device in entries.items():
        if path not in known:
            raise InputError(
                f"affinities: {path!r} is no module of {graph.meta.model} that does anything."
                f"{suggest(path, sorted(known))}"
            )
        there[path] = _device(path, device, devices)
    for path in paths:
        if entry_of(entries, path) is None:
            what = f"module {path!r}" if path else "what the model does itself ('')"
            raise InputError(f"affinities: {what} has no device")
    at = {op: there[str(entry_of(entries, graph.ops[op].module_path))] for op in run_order(graph)}
    return places(graph, devices[0], at)


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> dict[str, str]:
    """The affinities that agree with most of a placement."""
    words = _words(devices)
    entries = nearest_entries(graph, placement, devices)
    return {path: words[device] for path, device in entries.items()}


def _words(devices: Sequence[str]) -> dict[str, str]:
    """What OpenVINO calls each device."""
    home, *accelerators = devices
    graphics = [device for device in accelerators if device != "npu"]
    words = {home: "CPU", **{device: "NPU" for device in accelerators if device == "npu"}}
    for number, device in enumerate(graphics):
        words[device] = f"GPU.{number}" if len(graphics) > 1 else "GPU"
    return words


def _device(path: str, word: str, devices: Sequence[str]) -> str:
    """The device that OpenVINO calls so; of one accelerator any word but ``CPU``."""
    known = {called: device for device, called in _words(devices).items()}
    called = re.fullmatch(r"([A-Z]{3,})(\.0)?", word)
    for one in (word, called and called[1], f"{word}.0"):
        if one in known:
            return known[one]
    if called and len(devices) == 2:
        return devices[1]
    raise InputError(
        f"affinities: {path!r} is on {word!r}, and here are {', '.join(known)}: --accel adds one"
    )
