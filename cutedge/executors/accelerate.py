"""accelerate's ``device_map``: a device for each module, as ``from_pretrained`` takes it.

An entry is of a module and all in it; a longer path goes before a shorter one. Every parameter must
be under an entry. What accelerate does with it (``dispatch_model``): before a module with an entry
runs, its inputs are moved to its device. What a module does itself between its parts has no entry
and runs where its inputs are; so the parts that come together there need one device, and a block
with a residual sum stays whole (transformers' ``_no_split_modules``).

Numbers are accelerators in order. ``cpu`` is home, in one of two ways: the module runs there, which
``dispatch_model`` does when it is told ``main_device="cpu"``; or its parameters lie there and are
sent to the first accelerator, where it runs (what ``from_pretrained`` does). A map alone is the
first: each op runs where its weights are. Of the second a map stands beside ``main_device``: 0.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from cutedge.executors.places import Places, majority, places
from partition.placement import Placement
from partition.stored import parameters_read, storages
from tracer.errors import InputError, suggest
from tracer.graph import OpGraph, Role
from tracer.stacks import run_order

NAME = "accelerate"
UNITS = "blocks, and modules outside of them"


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """What ``dispatch_model`` is told."""

    entries: Mapping[str, int | str]
    """Module path, empty for the whole model -> number of an accelerator, ``cpu`` or ``disk``."""
    home_computes: bool
    """Whether modules on ``cpu`` run there, not on the first accelerator."""
    max_memory: Mapping[str, int]
    """Device -> bytes; not read."""


def reads(text: str) -> bool:
    """Whether a text is a JSON object."""
    return text.lstrip().startswith("{")


def parse(text: str) -> DeviceMap:
    """A ``device_map`` alone, or with what stands beside it. Raises InputError for anything else.

    >>> parse('{"model": 0, "lm_head": "cpu"}').entries
    {'model': 0, 'lm_head': 'cpu'}
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InputError(f"the device_map is no JSON: {error}") from error
    whole = given if "device_map" in given else {"device_map": given}
    entries, main = whole["device_map"], whole.get("main_device")
    if not isinstance(entries, dict) or not entries:
        raise InputError("the device_map is empty: write module paths and their devices")
    if "" in entries and len(entries) > 1:
        raise InputError('device_map: an entry "" is of the whole model, and here are others')
    for path, device in entries.items():
        if _number(device) is None and device not in ("cpu", "disk"):
            raise InputError(
                f"device_map: {path!r} is on {device!r}; write a number (or cuda:0), cpu or disk"
            )
    numbers = {
        path: device if (n := _number(device)) is None else n for path, device in entries.items()
    }
    sends = main is not None and _number(main) is not None
    return DeviceMap(numbers, not sends or not _numbers(numbers), {})


def _number(device: object) -> int | None:
    """The number of an accelerator: 0, ``"0"``, ``cuda:0``, ``cuda``."""
    if type(device) is int:
        return device if device >= 0 else None
    match = re.fullmatch(r"(?:cuda|xpu|npu|mps|hpu)(?::(\d+))?|(\d+)", str(device))
    return int(match[1] or match[2] or 0) if match else None


def _numbers(entries: Mapping[str, int | str]) -> list[int]:
    return [device for device in entries.values() if isinstance(device, int)]


def text(told: DeviceMap) -> str:
    """As JSON."""
    entries = dict(told.entries)
    whole = entries if told.home_computes else {"device_map": entries, "main_device": 0}
    return json.dumps(whole, indent=2) + "\n"


def beside(told: DeviceMap) -> Mapping[str, object]:
    """What ``dispatch_model`` takes beside the map."""
    return {"main_device": "cpu" if told.home_computes else 0, "max_memory": dict(told.max_memory)}


def place(graph: OpGraph, told: DeviceMap, devices: Sequence[str]) -> Places:
    """Where accelerate runs each op.

    Raises InputError for an entry that names no module, a parameter without an entry, a number
    without an accelerator, and for an op between modules whose inputs are on two devices.
    """
    home, *accelerators = devices
    for path, device in told.entries.items():
        if isinstance(device, int) and device >= len(accelerators):
            raise InputError(
                f"device_map: {path!r} is on {device}, and here are {len(accelerators)} "
                "accelerators, counted from 0: --accel adds one"
            )
    _check_paths(graph, told.entries)
    main = home if told.home_computes else accelerators[0]
    at: dict[int, str] = {}
    sent: set[int] = set()
    read = parameters_read(graph)
    of = {path: _entry(told.entries, path) for path in {op.module_path for op in graph.ops}}
    for op in run_order(graph):
        entry = of[graph.ops[op].module_path]
        if entry is None:
            at[op] = _between(graph, op, at, main)
            continue
        device = told.entries[entry]
        at[op] = accelerators[device] if isinstance(device, int) else main
        if read[op] and (device == "disk" or not isinstance(device, int)) and main != home:
            sent.add(op)
    return places(graph, home, at, frozenset(sent))


def _entry(entries: Mapping[str, int | str], path: str) -> str | None:
    """The longest entry that a module is under."""
    return next((one for one in _above(path) if one in entries), None)


def _above(path: str) -> Iterator[str]:
    """A path, and those that it is under, the longest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _between(graph: OpGraph, op: int, at: Mapping[int, str], main: str) -> str:
    """Where an op runs that no entry moves anything for: where its inputs are."""
    made = {t.op: at.get(t.op, main) for t in graph.flowing(op) if t.op is not None}
    there = list(dict.fromkeys(made.values()))
    if len(there) > 1:
        one = graph.ops[op]
        raise InputError(
            f"device_map: op {op} ({one.name}) of {one.module_path or 'the model itself'} reads "
            f"from {' and '.join(there)}, and accelerate moves nothing between two modules: give "
            "them one device"
        )
    return there[0] if there else main


def _check_paths(graph: OpGraph, entries: Mapping[str, int | str]) -> None:
    """Raise InputError where an entry is of no module, or a parameter has no entry.

    A module without parameters or ops (a dropout) is not in a graph: it passes beside others.
    """
    known, names = _known(graph)
    for path in entries:
        parent, _, last = path.rpartition(".")
        if path in known and path not in names:
            continue
        if path in names or last.isdigit() or parent not in known or not parent:
            modules = sorted(known - names - {""})
            raise InputError(
                f"device_map: {path!r} is no module of {graph.meta.model}.{suggest(path, modules)}"
            )
    parameters = [t.name for t in graph.tensors if t.role is Role.PARAMETER]
    bare = [name for name in parameters if _entry(entries, name) is None]
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise InputError(f"device_map: no entry is of {bare[0]}{more}: every parameter needs one")


@lru_cache(maxsize=4)
def _known(graph: OpGraph) -> tuple[frozenset[str], frozenset[str]]:
    """(all modules, parameters and buffers by their paths; parameters and buffers)."""
    names = frozenset(t.name for t in graph.tensors if t.role in (Role.PARAMETER, Role.BUFFER))
    paths = {*names, *(op.module_path for op in graph.ops)}
    return frozenset(one for path in paths for one in _above(path)), names


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> DeviceMap:
    """The map that agrees with most of a placement.

    Home computes, unless the placement sends parameters to an accelerator.
    """
    home, *accelerators = devices
    units = _units(graph)
    where = majority(graph, placement.devices, units, devices)
    away = {op for op in placement.streams if placement.devices[op] != home}
    sent = {units[op] for op in away}
    where[_MAIN] = accelerators[0] if away else home
    paths: dict[str, int | str] = {}
    for op, unit in units.items():
        if (path := _paths(graph)[op]) is not None:
            device = where[unit]
            stays = device == home or (unit in sent and device == accelerators[0])
            paths[path] = "cpu" if stays else accelerators.index(device)
    told = DeviceMap(_coarsest(graph, paths), not away or not _numbers(paths), {})
    return replace(told, max_memory=_held(graph, place(graph, told, devices), devices))


def _held(graph: OpGraph, at: Places, devices: Sequence[str]) -> dict[str, int]:
    """What lies on each device: parameters, buffers, constants and cached state."""
    there: dict[str, set[int]] = {device: set() for device in devices}
    whole, read = storages(graph), parameters_read(graph)
    for op, device in enumerate(at.devices):
        if device is not None:
            sent = read[op] if op in at.streams else frozenset[int]()
            there[device] |= whole[op] - sent
            there[devices[0]] |= sent
    names = ["cpu", *map(str, range(len(devices) - 1))]
    return {
        name: sum(graph.tensors[owner].bytes for owner in held)
        for name, held in zip(names, there.values(), strict=True)
        if held
    }


@lru_cache(maxsize=4)
def _paths(graph: OpGraph) -> Sequence[str | None]:
    """By op: the module that it is placed with, its block or else its own; None between modules.

    A module that has parameters beside its parts goes as a whole.
    """
    containers, whole = _containers(graph)

    @cache
    def path_of(path: str, stack: str | None) -> str | None:
        above = min((one for one in _above(path) if one in whole), key=len, default=None)
        parts = path.split(".")
        if stack is not None and path:
            depth = 1 + (stack.count(".") + 1 if stack else 0)
            if len(parts) >= depth:
                block = ".".join(parts[:depth])
                return block if above is None else min(block, above, key=len)
        return above if above is not None or path in containers else path

    return [path_of(op.module_path, op.stack) for op in graph.ops]


@lru_cache(maxsize=4)
def _containers(graph: OpGraph) -> tuple[frozenset[str], frozenset[str]]:
    """(the modules that others are in, those of them that have parameters of their own)."""
    own = {t.name.rpartition(".")[0] for t in graph.tensors if t.op is None}
    paths = {*own, *(op.module_path for op in graph.ops)}
    found = frozenset(above for path in paths for above in list(_above(path))[1:])
    return found, found & own


_MAIN = ""
"""The unit of what runs on the main device, whatever the entries say."""


@lru_cache(maxsize=4)
def _units(graph: OpGraph) -> Mapping[int, str]:
    """By op that has a device: the module that it is placed with, by one of those that come together.

    What modules do between their parts with graph inputs alone is on the main device.
    """
    joined: dict[str, str] = {}

    def root(path: str) -> str:
        while path in joined:
            path = joined[path]
        return path

    found: dict[int, str] = {}
    for op in run_order(graph):
        path = _paths(graph)[op]
        if path is None:  # where its inputs are
            made = [root(found.get(t.op or 0, _MAIN)) for t in graph.flowing(op)]
            path, *others = sorted(set(made)) or [_MAIN]
            joined.update(dict.fromkeys(others, path))
        found[op] = path
    return {op: root(path) for op, path in found.items()}


def _coarsest(graph: OpGraph, paths: Mapping[str, int | str]) -> dict[str, int | str]:
    """The fewest entries that give each module its device; all else is with the first of them."""
    names = [t.name.rpartition(".")[0] for t in graph.tensors if t.op is None]
    known = dict.fromkeys(paths)
    for path in (*names, *(op.module_path for op in graph.ops)):
        if path not in _containers(graph)[0] and not any(one in known for one in _above(path)):
            known.setdefault(path)
    under: dict[str, list[str]] = {}
    for path in known:
        for above in _above(path):
            under.setdefault(above, []).append(path)
    first = next(iter(paths.values()))
    entries: dict[str, int | str] = {}

    def write(path: str) -> None:
        there = {paths[one] for one in under[path] if one in paths}
        if len(there) <= 1:
            entries[path] = next(iter(there), first)
            return
        if path in paths:
            entries[path] = paths[path]
        depth = path.count(".") + 2 if path else 1
        for part in dict.fromkeys(
            ".".join(one.split(".")[:depth]) for one in under[path] if one != path
        ):
            write(part)

    write("")
    return entries
