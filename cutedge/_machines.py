"""Machines as a user names them: devices, the links between them, what they hold."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, get_args

from tracer.errors import InputError, choose
from tracer.toml_files import is_path

if TYPE_CHECKING:
    from costmodels import Execution, WeightsAt
    from costmodels.arrays import Options
    from costmodels.devices import Device
    from costmodels.engines import Engine
    from costmodels.links import Links
    from costmodels.machine import Machine
    from costmodels.packing import SizedPacking


"""What asks for the packing that is fastest on the link, tensor by tensor."""


def array_options(
    devices: "Collection[Device]",
    option: str,
    *,
    pipeline_depth: int = 1,
    int8_speedup: float | None = None,
    sparsity: float = 0.0,
    sparsity_speedup: float | None = None,
    chips: int = 1,
) -> "Options":
    """The options of arrays, of which there must be one among the devices of an ``option``."""
    from costmodels.arrays import Options

    options = Options(pipeline_depth, int8_speedup, sparsity, sparsity_speedup, chips)
    if options != Options() and not any(device.array for device in devices):
        raise InputError(
            "--pipeline-depth, --int8-speedup, --sparsity and --chips are of arrays like chip-8x8, "
            f"and no {option} is one"
        )
    buffered = [device.name for device in devices if device.array_memory]
    if options != Options() and buffered:
        raise InputError(
            f"{buffered[0]} has buffers, and these are counted of arrays as they are described: leave "
            f"{options.text} out, or put it into the file (array_count, clock_hertz)"
        )
    return options


def read_machine(
    home: str,
    accelerators: Sequence[str] | None,
    links: Sequence[str] | None,
    memory: Sequence[str] | None,
    wire_dtype: str | None,
    engine: str | Sequence[str] | None = None,
    execution: "Execution | None" = None,
    weights_at: "WeightsAt | None" = None,
    pack: str | Sequence[str] | None = None,
    **options: Any,
) -> "Machine":
    """The devices and links that the options name. Raises InputError naming the option.

    Arrays that compute in int8 are sent and send int8, where ``wire_dtype`` does not say otherwise.
    ``options`` are those of ``array_options``.
    """
    from costmodels import WeightsAt
    from costmodels.machine import Machine
    from tracer.graph import FLOATING

    if wire_dtype is not None:
        choose(wire_dtype, FLOATING, "--wire-dtype")
    if weights_at is not None:
        choose(weights_at, get_args(WeightsAt), "--weights-at")
    given = accelerators or ["gpu"]
    read = {text: _device(text) for text in (home, *given)}
    (home_name, _), names = read[home], [read[text][0] for text in given]
    for text, name in zip(given, names, strict=True):
        if not name or not home_name or name == home_name:
            raise InputError(f"--home {home!r} and --accel {text!r} must be two different devices")
        if names.count(name) > 1:
            raise InputError(
                f"--accel {name!r} is given {names.count(name)} times: give each a name of its "
                f"own, as in --accel a={text.partition('=')[2] or text} --accel b=..."
            )
    described = {name: device for name, device in read.values() if device}
    called = [described[name] for name in names if name in described]
    faster = array_options(called, "--accel", **options)
    if faster.int8_speedup is not None and wire_dtype is None:
        if not all(name in described and described[name].array for name in names):
            raise InputError(
                "--int8-speedup has arrays sent and send int8, and not every --accel is one: say "
                "with --wire-dtype what floats cross in"
            )
        wire_dtype = "int8"
    machine = Machine(
        home_name,
        tuple(names),
        _links(links or [], names),
        wire_dtype,
        described,
        _sizes(memory or [], home_name, names),
        faster,
        engines_of(described, engine, execution),
        execution,
        weights_at or "device",
        files={
            **_files("device", (home, *given)),
            **_files("link", links or ()),
            **_files("engine", _several(engine) or ()),
            **_files("packing", _several(pack) or ()),
        },
    )
    return packed(machine, pack)


def _files(sort: str, texts: Iterable[str]) -> dict[tuple[str, str], str]:
    """The .toml files that are given: ``chip.toml``, ``a=chip.toml``, ``best,own.toml:1MiB``."""
    found = {}
    for text in texts:
        size = text.rpartition(":")
        parts = (size[0] if sort == "packing" and read_size(size[2]) else text).split(",")
        for part in parts if sort == "packing" else [text]:
            named = part.partition("=")[2]
            path = part if Path(part).is_file() or not named else named
            if is_path(path):
                found[sort, Path(path).stem] = path
    return found


def engines_of(
    devices: "Mapping[str, Device]",
    engine: str | Sequence[str] | None,
    execution: "Execution | None",
) -> "dict[str, Engine]":
    """By name of a device with figures, what carries ops out there, where that is said.

    ``engine`` is ``NAME``, of all of them, or ``DEVICE=NAME``, of one. An array has no engine.
    Raises InputError naming the option.
    """
    from costmodels.engines import PHYSICAL, load_engine

    able = [name for name, device in devices.items() if not device.is_chip]
    given = _several(engine) or []
    if given and not able:
        raise InputError(
            f"--engine {given[0]}: no device here has figures that an engine could work with "
            "(cutedge devices lists those that have)"
        )
    common, own = PHYSICAL, {}
    for text in given:
        device, named, name = text.partition("=")
        if not named or Path(text).is_file():
            common = load_engine(text)
            continue
        choose(device, able, f"--engine {text}:")
        own[device] = load_engine(name)
    found = {name: own.get(name, common).by(execution) for name in able}
    return {name: one for name, one in found.items() if one != PHYSICAL}


def machine_of(
    machine: str | None = None,
    *,
    home: str | None = None,
    accel: str | Sequence[str] | None = None,
    link: str | Sequence[str] | None = None,
    memory: str | Sequence[str] | None = None,
    wire_dtype: str | None = None,
    **options: Any,
) -> "Machine":
    """The devices and links of ``HOME+ACCELERATOR@LINK``, or of its parts. Raises InputError.

    >>> machine_of("tee-tdx+rtx-4090@pcie4-x16").accelerators
    ('rtx-4090',)
    """
    if machine is not None:
        devices, at, named = machine.partition("@")
        if home or accel or (link and named):
            raise InputError(f"machine {machine!r} says home, accel and link: leave them out")
        home, *others = devices.split("+")
        if not home or not all(others) or (at and not named):
            raise InputError(
                f"machine {machine!r}: write HOME+ACCELERATOR@LINK, as in "
                "tee-tdx+rtx-4090@pcie4-x16"
            )
        accel, link = others, named or link
    return read_machine(
        "tee" if home is None else home,
        _several(accel),
        _several(link),
        _several(memory),
        wire_dtype,
        **options,
    )


def machine_words(machine: "Machine") -> list[str]:
    """The options of a command that name a machine.

    >>> machine_words(machine_of("tee-tdx+rtx-4090@pcie4-x16", wire_dtype="bfloat16"))
    ['--home tee-tdx', '--accel rtx-4090', '--link pcie4-x16', '--wire-dtype bfloat16']
    """

    def given(sort: str, name: str) -> str:
        return quote(machine.files[sort, name]) if (sort, name) in machine.files else name

    kinds = {name: device.name for name, device in machine.described.items()}
    named = [
        given("device", name)
        if kinds.get(name, name) == name
        else f"{name}={given('device', kinds[name])}"
        for name in machine.devices
    ]
    links, options, wire = machine.links, machine.options, machine.wire_dtype
    told = [
        *([given("link", links.common.name)] if len(links.own) < len(machine.accelerators) else []),
        *(f"{name}={given('link', link.name)}" for name, link in links.own.items()),
        *(
            f"{'+'.join(sorted(pair))}={given('link', link.name)}"
            for pair, link in links.peers.items()
        ),
    ]
    own = {field.name: getattr(options, field.name) for field in fields(options)}
    faster = {name: own[name] for name in own if own[name] != getattr(type(options)(), name)}
    engines = [one.rpartition("=") for one in machine.engine.split(", ") if one]
    packs = [one.text.partition(":") for one in machine.pack]
    return [
        f"--home {named[0]}",
        *(f"--accel {name}" for name in named[1:]),
        *(f"--link {text}" for text in told),
        *(f"--memory {device}={size}" for device, size in machine.memory_bytes.items()),
        *([f"--wire-dtype {wire}"] if wire and options.int8_speedup is None else []),
        *(f"--{name.replace('_', '-')} {value:g}" for name, value in faster.items()),
        *(f"--engine {device}{at}{given('engine', name)}" for device, at, name in engines),
        *([f"--execution {machine.execution}"] if machine.execution else []),
        *([f"--weights-at {machine.weights_at}"] if machine.weights_at != "device" else []),
        *(
            f"--pack {','.join(given('packing', name) for name in names.split(','))}{at}{size}"
            for names, at, size in packs
        ),
    ]


def _several(given: str | Sequence[str] | None) -> Sequence[str] | None:
    return [given] if isinstance(given, str) else given


def _device(text: str) -> "tuple[str, Device | None]":
    """What a device is called, and its description if it has one."""
    from costmodels.devices import described, load_device

    name, given, kind = text.partition("=")
    if given and not Path(text).is_file():
        if not name or not kind:
            raise InputError(f"device {text!r}: write NAME=DEVICE, as in a=rtx-4090")
        return name, load_device(kind)
    device = described(text)
    return (text if device is None else device.name), device


def _links(given: Iterable[str], accelerators: Sequence[str]) -> "Links":
    """``pcie5-x16``, ``gpu=nvlink``, ``a+b=nvlink`` as a network."""
    from costmodels.links import Link, Links, load_link

    ends = {name: frozenset([name]) for name in accelerators}
    ends |= {f"{a}+{b}": frozenset([a, b]) for a, b in permutations(accelerators, 2)}
    found: dict[frozenset[str], Link] = {}  # none of the accelerators: of all
    for text in given:
        named = max((pair for pair in ends if text.startswith(f"{pair}=")), key=len, default=None)
        if named is None and "=" in text and not Path(text).is_file():
            choose(text.partition("=")[0], list(ends), f"--link {text}:")
        pair = ends[named] if named else frozenset()
        if pair in found:
            what = f"of {named}" if named else "of home and every accelerator"
            raise InputError(f"--link {text}: there is another --link {what}; give one")
        found[pair] = load_link(text if named is None else text.removeprefix(f"{named}="))
    own = {name: found[frozenset([name])] for name in accelerators if frozenset([name]) in found}
    peers = {pair: link for pair, link in found.items() if len(pair) == 2}
    if len(own) == len(accelerators):  # nothing else is left for a common one
        return Links(own[accelerators[0]], own, peers)
    return Links(found.get(frozenset()) or load_link("zmq-ipc"), own, peers)


def _packing(text: str) -> "SizedPacking":
    """``q8_0``, or ``zstd:1MiB`` of tensors of so many bytes and more."""
    from costmodels.packing import SizedPacking, packings_of

    name, _, size = text.rpartition(":")
    least = read_size(size) if name else None
    try:
        found, told = packings_of(text if least is None else name)
    except InputError as error:
        raise InputError(f"--pack {error}" if str(error).startswith(text) else str(error)) from None
    return SizedPacking(found, least or 0, told if least is None else f"{told}:{size}")


def packed(machine: "Machine", pack: str | Sequence[str] | None) -> "Machine":
    """A machine whose tensors cross packed. Raises InputError for a choice by an unknown link."""
    from partition.packs import check_choice

    packings = tuple(map(_packing, _several(pack) or ()))
    check_choice(packings, machine.links, "--pack")
    return replace(machine, pack=packings)


def _sizes(given: Sequence[str], home: str, accelerators: Sequence[str]) -> dict[str, int]:
    """``gpu=4GiB`` or ``gpu=4GiB,host=32GiB`` as bytes by device.

    ``host`` and ``home`` are home, ``gpu`` and ``accelerator`` the only accelerator, where no device
    is called so.
    """
    devices = (home, *accelerators)
    alike = dict.fromkeys(("host", "home"), home)
    if len(accelerators) == 1:
        alike |= dict.fromkeys(("gpu", "accelerator"), accelerators[0])
    sizes: dict[str, int] = {}
    for text in (part for texts in given for part in texts.split(",")):
        device, _, size = text.rpartition("=")
        number = read_size(size)
        if not device or number is None:
            raise InputError(f"--memory {text!r}: write DEVICE=SIZE, as in gpu=4GiB or gpu=1000000")
        name = device if device in devices else alike.get(device, device)
        choose(name, devices, "--memory of device")
        if name in sizes:
            raise InputError(f"--memory {text!r}: there is another size of {name}; give one")
        sizes[name] = number
    return sizes


def read_size(text: str) -> int | None:
    """``4GiB`` as bytes; None for what is no size."""
    units = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]iB|)", text)
    return None if match is None else int(float(match[1]) * units[match[2]])
