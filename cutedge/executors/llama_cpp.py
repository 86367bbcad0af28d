"""llama.cpp's options of placement: ``-ngl``, ``-ot``, ``--n-cpu-moe``, ``-ts``, ``-nkvo``.

An op runs where its weights are. Of ``N`` blocks and the output (counted as one more, the last)
``-ngl K`` has the last K on the accelerators: the output first, since llama.cpp's pull request 18148
of December 2025 (before it, the output last). The table of words is at home. ``-ts`` gives each
accelerator its part of these K, in order. ``-ot REGEX=BUFFER`` puts every tensor with the expression
in its name into a buffer, whatever ``-ngl`` says; the first that matches counts; ``--n-cpu-moe N`` is
the same for the experts of the first N blocks. The cache, and with it an attention from its scores
to the product with the values, is with its block, or with ``-nkvo`` at home. Where all else goes that
has no weight: ``partition.granularity``, ``tensor``.

Expressions are ECMAScript's, searched for anywhere in a name (``std::regex_search``), and none has
a comma or "=", which end it on the command line. Python's ``re.search`` reads what is written here
in the same way. A table of words that is the head too (tied) is loaded twice under one name.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cutedge.executors.expressions import expression
from cutedge.executors.gguf_names import Names, gguf_names
from cutedge.executors.places import Places, Weight, agreement, majority, places
from partition.granularity import units
from partition.placement import Placement
from partition.stored import parameters_read
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.patterns import attention_core, kv_broadcast
from tracer.stacks import run_order

NAME = "llama.cpp"
UNITS = "tensors, and caches with their layers"

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The names that ``--n-cpu-moe`` is of, behind ``blk\\.N``."""


@dataclass(frozen=True, slots=True)
class Options:
    """What llama.cpp is told."""

    gpu_layers: int | None
    """Blocks from the end, the output counted as one; None for all."""
    overrides: tuple[tuple[str, str], ...] = ()
    """(expression, buffer): the first that matches counts."""
    tensor_split: tuple[float, ...] = ()
    """The accelerators' parts of these blocks; empty for all on the first."""
    kv_offload: bool = True
    """Whether caches are with their blocks, else at home."""
    cpu_moe: int = 0
    """Of ``overrides`` the first so many are written as ``--n-cpu-moe``."""


def reads(text: str) -> bool:
    """Whether a text is options, or a command with options."""
    return re.search(r"(^|\s)-{1,2}[a-z]", text) is not None


_WITH_VALUE = {
    "-ngl": "ngl",
    "--gpu-layers": "ngl",
    "--n-gpu-layers": "ngl",
    "-ot": "ot",
    "--override-tensor": "ot",
    "-ncmoe": "ncmoe",
    "--n-cpu-moe": "ncmoe",
    "-ts": "ts",
    "--tensor-split": "ts",
    "-sm": "sm",
    "--split-mode": "sm",
}
_ALONE = {
    "-cmoe": "cmoe",
    "--cpu-moe": "cmoe",
    "-nkvo": "nkvo",
    "--no-kv-offload": "nkvo",
    "-kvo": "kvo",
    "--kv-offload": "kvo",
}


def parse(text: str) -> Options:
    """Options, or a whole command whose other options are passed over. Raises InputError.

    >>> parse("-ngl 20 -ot 'exps=CPU'")
    Options(gpu_layers=20, overrides=(('exps', 'CPU'),), tensor_split=(), kv_offload=True, cpu_moe=0)
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise InputError(f"{text.strip()!r}: a quote is not closed") from error
    command = not words[0].startswith("-")
    told: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    rest = iter(words[1:] if command else words)
    for word in rest:
        name, joined, value = word.partition("=")
        if word in _ALONE:
            told[_ALONE[word]] = ""
            overrides += [(EXPERTS, "CPU")] if _ALONE[word] == "cmoe" else []
            continue
        if name not in _WITH_VALUE:
            if command:
                continue
            raise InputError(
                f"{word} is no option of placement in llama.cpp: write -ngl, -ot, --n-cpu-moe, -ts "
                "or -nkvo, or a whole command that begins with a program"
            )
        if not joined and (value := next(rest, "")) == "":
            raise InputError(f"{word} needs a value")
        key = _WITH_VALUE[name]
        told[key] = value
        if key == "ot":
            overrides += _overrides(value)
        elif key == "ncmoe":
            blocks = range(_whole(name, value))
            overrides += [(rf"blk\.{n}{EXPERTS}", "CPU") for n in blocks]
    if told.get("sm", "layer") not in ("layer", "none"):
        raise InputError(f"-sm {told['sm']} splits a tensor's rows, and ops here are on one device")
    if "nkvo" in told and "kvo" in told:
        raise InputError("-nkvo and -kvo: give one of them")
    split = tuple(_part(part) for part in re.split(r"[,/]+", told["ts"])) if "ts" in told else ()
    if told.get("sm") == "none":
        split = ()
    ngl = told.get("ngl", "all")
    layers = None if ngl in ("all", "-2") else _whole("-ngl", ngl)
    return Options(layers, tuple(overrides), split, "nkvo" not in told)


def _whole(option: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,6}", value):
        raise InputError(f"{option} {value}: give a number of layers (-ngl also all)")
    return int(value)


def _part(value: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", value):
        raise InputError(f"-ts {value}: give the accelerators' parts as numbers, as in -ts 3,1")
    return float(value)


def _overrides(value: str) -> Iterator[tuple[str, str]]:
    for one in value.split(","):
        regex, given, buffer = one.partition("=")
        if not given or not regex or not buffer:
            raise InputError(f"-ot {one}: write REGEX=BUFFER, as in exps=CPU")
        try:
            re.compile(regex)
        except re.error as error:
            raise InputError(f"-ot {one}: {regex} is no expression: {error}") from error
        yield regex, buffer


def text(told: Options) -> str:
    """In a line, as a shell reads it."""
    words = ["-ngl", "all" if told.gpu_layers is None else str(told.gpu_layers)]
    if len(told.tensor_split) > 1:
        words += ["--tensor-split", ",".join(f"{part:g}" for part in told.tensor_split)]
    if told.cpu_moe:
        words += ["--n-cpu-moe", str(told.cpu_moe)]
    for regex, buffer in told.overrides[told.cpu_moe :]:
        words += ["--override-tensor", f"{regex}={buffer}"]
    words += [] if told.kv_offload else ["--no-kv-offload"]
    return shlex.join(words) + "\n"


# --- what runs where ------------------------------------------------------------------------------


def place(graph: OpGraph, told: Options, devices: Sequence[str]) -> Places:
    """Where llama.cpp runs each op.

    Raises InputError for an expression that matches nothing, for a buffer or a part without an
    accelerator, and for two tensors on two devices that are read by one op here.
    """
    names, pieces = gguf_names(graph), _units(graph)
    for regex, _ in told.overrides[told.cpu_moe :]:
        if EXPERTS not in regex and not any(re.search(regex, name) for name in names.all):
            raise InputError(
                f"-ot {regex}: no weight of {graph.meta.model} is called so; they are called "
                f"like {', '.join(_examples(names))}"
            )
    blocks = _blocks(names.layers, told, devices)
    buffers = [(regex, _device(buffer, devices)) for regex, buffer in told.overrides]
    where: dict[_Unit, str] = {}
    for unit in dict.fromkeys(pieces.values()):
        if not unit.storages:
            at_home = unit.block is None or not told.kv_offload
            where[unit] = devices[0] if at_home else blocks[unit.block or 0]
            continue
        default = _default(unit, blocks, devices)
        there = {
            next((d for e, d in buffers if re.search(e, name)), default): name
            for name in names.of[unit.storages[0]]
        }
        if len(there) > 1:
            both = " and ".join(f"{name} on {device}" for device, name in there.items())
            raise InputError(
                f"{both}: {graph.tensors[unit.storages[0]].name} is both of them, and one op reads it: "
                "give them one device"
            )
        (where[unit],) = there
    return places(graph, devices[0], {op: where[unit] for op, unit in pieces.items()})


@dataclass(frozen=True, slots=True)
class _Unit:
    """What llama.cpp puts on one device: a weight with what follows it, or a block's cache."""

    block: int | None
    """The block that it is in."""
    storages: tuple[int, ...]
    """The weights of its ops, the largest first; empty for a cache, and outside of blocks for what
    has no weight before it."""
    output: bool = False
    """Whether it is behind all blocks."""


@lru_cache(maxsize=4)
def _units(graph: OpGraph) -> dict[int, _Unit]:
    """By op that has a device: its unit."""
    read, order, groups = parameters_read(graph), run_order(graph), units(graph, "tensor")
    core = attention_core(graph) | kv_broadcast(graph)
    within: dict[int, set[int]] = defaultdict(set)  # group -> its weights
    for op in order:
        within[groups[op]] |= read[op]
    found: dict[int, _Unit] = {}
    behind = max((op for op in order if graph.ops[op].layer is not None), default=-1)
    for op in order:
        layer = graph.ops[op].layer
        if op in core and not read[op]:
            found[op] = _Unit(layer, ())
        else:
            layer = graph.ops[groups[op]].layer
            held = sorted(within[groups[op]], key=lambda one: (-graph.tensors[one].bytes, one))
            found[op] = _Unit(layer, tuple(held), layer is None and groups[op] > behind)
    return found


def _blocks(layers: int, told: Options, devices: Sequence[str]) -> list[str]:
    """The device of each block, and of the output behind them."""
    home, *accelerators = devices
    if len(told.tensor_split) > len(accelerators):
        raise InputError(
            f"-ts has {len(told.tensor_split)} parts, and here are {len(accelerators)} "
            "accelerators: --accel adds one"
        )
    parts = told.tensor_split if any(told.tensor_split) else (1.0,)
    away = layers + 1 if told.gpu_layers is None else min(told.gpu_layers, layers + 1)
    ends = [sum(parts[: n + 1]) / sum(parts) for n in range(len(parts))]
    found = [home] * (layers + 1 - away)
    for at in range(away):
        found.append(accelerators[next(n for n, end in enumerate(ends) if at / away < end)])
    return found


def _default(unit: _Unit, blocks: Sequence[str], devices: Sequence[str]) -> str:
    """Where a weight is without an override: before the blocks at home, behind them as the output."""
    if unit.block is not None:
        return blocks[unit.block]
    return blocks[-1] if unit.output else devices[0]


def _device(buffer: str, devices: Sequence[str]) -> str:
    """``CPU``, or the accelerator with the number that a buffer's name ends with (``CUDA0``)."""
    if re.fullmatch(r"CPU.*|.*_Host", buffer):
        return devices[0]
    number = re.search(r"\d*$", buffer)
    at = int(number[0] or 0) if number else 0
    if at + 1 >= len(devices):
        raise InputError(
            f"-ot {buffer}: here are {len(devices) - 1} accelerators, counted from 0: --accel adds "
            "one"
        )
    return devices[at + 1]


def _examples(names: Names) -> list[str]:
    block = [name for name in names.all if name.startswith("blk.0.")]
    return [block[0], block[-1], names.all[0]] if block else list(names.all[:3])


# --- what comes nearest to a placement ------------------------------------------------------------


def nearest(graph: OpGraph, placement: Placement, devices: Sequence[str]) -> Options:
    """The options that agree with most of a placement: in caches first, then the shortest ones."""
    names, pieces = gguf_names(graph), _units(graph)
    where = majority(graph, placement.devices, pieces, devices)
    weights = {unit: device for unit, device in where.items() if unit.storages}
    cached: dict[int, dict[str, Weight]] = {}  # block -> device -> what of its cache's ops is there
    for unit in where:
        if not unit.storages and unit.block is not None:
            mine = [op for op, one in pieces.items() if one == unit]
            cached[unit.block] = agreement(graph, placement.devices, mine)
    found: list[tuple[Weight, int, Options]] = []
    for offload in (True, False):
        scores = [
            [
                (
                    *(cached.get(block, {}).get(device if offload else devices[0], _NOTHING)),
                    sum(
                        there == device
                        for unit, there in weights.items()
                        if (names.layers if unit.output else unit.block) == block
                    ),
                )
                for device in devices
            ]
            for block in range(names.layers + 1)
        ]
        blocks, score = _monotone(scores)
        options = _told(names, weights, [devices[n] for n in blocks], devices, offload=offload)
        found.append((score[:3], -len(text(options)), options))
    return max(found, key=lambda one: one[:2])[2]


_NOTHING: Weight = (0, 0, 0)
_Score = tuple[int, int, int, int]


def _monotone(scores: Sequence[Sequence[_Score]]) -> tuple[list[int], _Score]:
    """(the device of each block by number, never one before the last's; what they score in all)."""
    best: list[tuple[_Score, list[int]]] = [((0, 0, 0, 0), []) for _ in scores[0]]
    for block in scores:
        before, best = best, []
        for device, score in enumerate(block):
            most = max(before[: device + 1], key=lambda way: way[0])
            a, b, c, d = (one + other for one, other in zip(most[0], score, strict=True))
            best.append(((a, b, c, d), [*most[1], device]))
    score, blocks = max(best, key=lambda way: way[0])
    return blocks, score


def _told(
    names: Names,
    weights: Mapping[_Unit, str],
    blocks: Sequence[str],
    devices: Sequence[str],
    *,
    offload: bool,
) -> Options:
    """The options by which blocks and weights are where they are to be."""
    asked: dict[str, set[str]] = {}  # name -> where it is to be
    moved: dict[str, str] = {}  # of these what is elsewhere without an override
    for unit, device in weights.items():  # a tied head is behind its table
        for name in [name for one in unit.storages for name in names.of[one]]:
            asked.setdefault(name, set()).add(device)
            if device != _default(unit, blocks, devices) or name in moved:
                moved[name] = device
    away = [device for device in blocks if device != devices[0]]
    split = tuple(float(away.count(device)) for device in devices[1:])
    split = split if len(set(away)) > 1 or away[:1] not in ([], [devices[1]]) else ()
    ways = [
        Options(len(away), tuple(overrides), split, offload, moe)
        for moe, overrides in _overridden(names, asked, moved, devices)
    ]
    return min(ways, key=lambda one: len(text(one)))


def _overridden(
    names: Names, asked: Mapping[str, set[str]], moved: Mapping[str, str], devices: Sequence[str]
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(how many are of ``--n-cpu-moe``, overrides): with as many of these as there can be, and none."""
    home = devices[0]
    stays = [
        all(there == {home} for n, there in asked.items() if re.match(rf"blk\.{block}{EXPERTS}", n))
        for block in range(names.layers)
    ]
    most = next((n for n, whole in enumerate(stays) if not whole), len(stays))
    for moe in {0, most}:
        first = [(rf"blk\.{n}{EXPERTS}", "CPU") for n in range(moe)]
        left = {n: d for n, d in moved.items() if not any(re.search(e, n) for e, _ in first)}
        for at, device in enumerate(devices):
            if these := [name for name, there in left.items() if there == device]:
                kept = [name for name in names.all if asked.get(name) != {device}]
                kept = [name for name in kept if name not in these]
                first.append((expression(these, kept), f"CUDA{at - 1}" if at else "CPU"))
        yield moe, first
