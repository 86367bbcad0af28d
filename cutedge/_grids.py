"""Grids: which points a sweep has, from options or a TOML file, with every mistake named."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from costmodels import Execution, WeightsAt
from cutedge._subjects import Subject
from partition import Residency, ScheduleKind
from tracer.errors import InputError, choose
from tracer.toml_files import check_keys, read_text, read_toml

if TYPE_CHECKING:
    from costmodels.machine import Machine
    from costmodels.packing import SizedPacking
    from partition.policy import Policy
    from partition.schedule import Scheduling

COUNTS = ("batch", "seq", "past", "new", "pipeline_depth", "chips", "requests")
"""Axes of whole numbers; also ranges: ``64..4096`` (its doubles), ``64..4096:64`` (steps)."""
RATIOS = ("int8_speedup", "sparsity", "sparsity_speedup")
"""Axes of numbers; ``none`` is an array without."""
NAMES = (
    "model",
    "phase",
    "policy",
    "decode_policy",
    "wire_dtype",
    "pack",
    "residency",
    "home",
    "accel",
    "pair",
    "link",
    "engine",
    "execution",
    "weights_at",
    "weights",
    "kv_dtype",
    "schedule",
)
"""Axes of texts."""
SINGLE = ("dtype", "attn", "logits")
"""What holds for the whole grid."""
AXES = (*NAMES, *COUNTS, *RATIOS)

PHASES = ("prefill", "decode", "encoder")
NATIVE = "native"
"""The wire dtype of tensors that cross as they are."""


@dataclass(frozen=True, slots=True)
class Grid:
    """All that a sweep goes over."""

    subjects: tuple[Subject, ...]
    policies: "tuple[Policy, ...]"
    wires: tuple[str | None, ...]
    residencies: tuple[Residency, ...]
    machines: "tuple[Machine, ...]"
    time_limit: float
    schedulings: "tuple[Scheduling | None, ...]" = (None,)
    packings: "tuple[tuple[SizedPacking, ...], ...]" = ((),)
    news: tuple[int, ...] = ()
    """Tokens of generations; of none each point is one run."""
    decode_policies: "tuple[Policy | None, ...]" = (None,)
    """What places the steps of generations; None: what places their prefills."""

    @property
    def each(self) -> int:
        """How many points a policy has at a size."""
        axes = self.wires, self.packings, self.residencies, self.machines, self.schedulings
        return prod(map(len, axes)) * len(self.news or (1,)) * len(self.decode_policies)

    @property
    def rows(self) -> int:
        """How many points there are."""
        sizes = sum(subject.points for subject in self.subjects)
        return len(self.policies) * self.each * sizes

    @property
    def id(self) -> str:
        """A hash of all that decides the rows, descriptions of devices and models among it."""
        told = {
            "versions": [version(package) for package in ("cutedge", "torch", "transformers")],
            "subjects": [[s.phase, s.asked({}).identity, s.sizes] for s in self.subjects],
            "policies": [asdict(policy, dict_factory=_said) for policy in self.policies],
            "wires": self.wires,
            "residencies": self.residencies,
            "time_limit": self.time_limit,
            "machines": [_told(machine) for machine in self.machines],
        }
        if self.schedulings != (None,):
            told["schedulings"] = [s and asdict(s) for s in self.schedulings]
        if self.packings != ((),):
            told["packings"] = [[asdict(one) for one in each] for each in self.packings]
        if self.news:
            policies = [p and asdict(p, dict_factory=_said) for p in self.decode_policies]
            told["generations"] = [self.news, policies]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _said(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a policy's rule, without where parameters lie if it does not say that."""
    return {key: value for key, value in fields if (key, value) != ("weights_at", None)}


def _told(machine: "Machine") -> dict[str, Any]:
    """All of a machine that decides its rows."""
    (accelerator,) = machine.accelerators
    home_device, accelerator_device = map(machine.described.get, machine.devices)
    return {
        "home": machine.home,
        "accelerator": accelerator,
        "home_device": None if home_device is None else asdict(home_device),
        "accelerator_device": None if accelerator_device is None else asdict(accelerator_device),
        "link": asdict(machine.links.common),
        "options": machine.options.text,
        **(
            {"engines": [asdict(one) for one in machine.engines.values()]}
            if machine.engines
            else {}
        ),
        **({} if machine.weights_at == "device" else {"weights_at": machine.weights_at}),
    }


def read_grid(file: Path | None, given: Mapping[str, Any], time_limit: float) -> Grid:
    """The grid of a TOML file and of options, which go before what the file says.

    Raises InputError naming the option, or the file and its key.
    """
    told: dict[str, tuple[str, Any]] = {}
    if file is not None:
        table = read_toml(file, read_text(file, "grid file"))
        check_keys(table, str(file), optional=(*AXES, *SINGLE))
        told = {key: (f"{file}: {key}", value) for key, value in table.items()}
    told |= {
        key: ("MODEL" if key == "model" else f"--{key.replace('_', '-')}", value)
        for key, value in given.items()
        if value
    }
    axes = {key: _axis(key, *told[key]) for key in AXES if key in told}
    single = {key: _text(*told[key]) for key in SINGLE if key in told}
    if "model" not in axes:
        where = "" if file is None else f"{file} has "
        raise InputError(f"{where}no model: name one or more, or a --grid file with the key model")
    machines = _machines(axes)
    return Grid(
        _subjects(axes, single),
        _policies(axes.get("policy")),
        tuple(None if w == NATIVE else w for w in _chosen(axes, "wire_dtype", _wires(), NATIVE)),
        _chosen(axes, "residency", get_args(Residency), "run"),
        machines,
        time_limit,
        _schedulings(axes),
        _packings(axes, machines),
        axes.get("new", ()),
        _policies(axes["decode_policy"]) if "decode_policy" in axes else (None,),
    )


def _axis(key: str, where: str, value: Any) -> tuple[Any, ...]:
    """The values of an axis, each once, in the order given."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{where} is empty: give one value or more, or leave it out")
    if key in COUNTS:
        found: Iterable[Any] = (n for one in values for n in _counts(where, one, key))
    elif key in RATIOS:
        found = (_ratio(where, one) for one in values)
    else:
        found = (_text(where, one) for one in values)
    return tuple(dict.fromkeys(found))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {value!r} is no text")
    return value


def _ratio(where: str, value: Any) -> float | None:
    if value == "none":
        return None
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise InputError(f"{where}: {value!r} is no number, nor none")


MOST_IN_RANGE = 100_000


def _counts(where: str, value: Any, key: str) -> list[int]:
    """``128``, ``64..4096`` (doubles, and the end), ``64..4096:64`` (steps), with commas more."""
    if type(value) not in (int, str):
        raise InputError(f"{where}: {value!r} is no whole number or range like 64..4096:64")
    found = numbers(where, value, whole=True, least=0 if key == "past" else 1)
    return [int(number) for number in found]


def numbers(
    where: str, value: Any, *, whole: bool = False, least: int | None = None
) -> tuple[Fraction, ...]:
    """The values of an axis of numbers, each once: ``128``, ``64..4096`` (doubles, and the end),
    ``64..4096:64`` (steps), with commas more, or a list of these.

    Numbers are ``whole``, or decimals of more than 0. Raises InputError that begins with ``where``.

    >>> [float(one) for one in numbers("--clock-mhz", "100,0.5..2")]
    [100.0, 0.5, 1.0, 2.0]
    """
    kind = "whole number" if whole else "number"
    digits = r"\d{1,18}" if whole else r"\d{1,15}(?:\.\d{1,9})?"
    found: list[Fraction] = []
    each = value if isinstance(value, list | tuple) else [value]
    for text in (part.strip() for one in each for part in str(one).split(",")):
        match = re.fullmatch(rf"({digits})(?:\.\.({digits})(?::({digits}))?)?", text)
        if match is None:
            raise InputError(
                f"{where}: {text!r} is no {kind}, nor a range like 64..4096 (its doubles) or "
                "64..4096:64 (steps)"
            )
        first, last = Fraction(match[1]), Fraction(match[2] or match[1])
        step = Fraction(match[3]) if match[3] else None
        if least is not None or whole:
            if first < (lowest := 1 if least is None else least):
                raise InputError(f"{where}: {first} is less than {lowest}")
        elif first <= 0:
            raise InputError(f"{where}: {match[1]} is not more than 0")
        if first > last or step == 0 or (step or last) * MOST_IN_RANGE < last - first:
            raise InputError(f"{where}: the range {text} goes down, or has too many steps")
        if step:
            found += [first + n * step for n in range(int((last - first) / step) + 1)]
        else:
            found += _doubles(first, last)
    return tuple(dict.fromkeys(found))


def _doubles(first: Fraction, last: Fraction) -> list[Fraction]:
    found = [first]
    while 0 < found[-1] * 2 < last:
        found.append(found[-1] * 2)
    return found if found[-1] == last else [*found, last]


def _chosen(
    axes: Mapping[str, tuple[Any, ...]], key: str, known: Sequence[str], default: str
) -> tuple[Any, ...]:
    values = axes.get(key, (default,))
    for value in values:
        choose(value, known, key)
    return values


def _wires() -> tuple[str, ...]:
    from tracer.graph import FLOATING

    return (NATIVE, *FLOATING)


def _schedulings(axes: Mapping[str, tuple[Any, ...]]) -> "tuple[Scheduling | None, ...]":
    """Each way to lay runs out with each number of requests."""
    from partition.schedule import Scheduling

    named = _chosen(axes, "schedule", ("none", *get_args(ScheduleKind)), "none")
    if "requests" in axes and named == ("none",):
        raise InputError("requests are of a schedule: give schedule overlap (or serial) too")
    each = product(named, axes.get("requests", (1,)))
    return tuple(dict.fromkeys(None if s == "none" else Scheduling(s, n) for s, n in each))


def _packings(
    axes: Mapping[str, tuple[Any, ...]], machines: "Sequence[Machine]"
) -> "tuple[tuple[SizedPacking, ...], ...]":
    """What tensors are packed by, on each machine: ``none``, ``q8_0``, ``range+zstd:1MiB``."""
    from cutedge._machines import packed

    found = {}
    for text in axes.get("pack", ("none",)):
        each = [text] if Path(text).is_file() else text.split("+") if text != "none" else []
        sized = [packed(machine, each).pack for machine in machines]
        told = "+".join(one.text for one in sized[0])
        if told in found:
            raise InputError(
                f"two packs are called {told or text}: give each once, or rename a file"
            )
        found[told] = sized[0]
    return tuple(found.values())


def _subjects(
    axes: Mapping[str, tuple[Any, ...]], single: Mapping[str, str]
) -> tuple[Subject, ...]:
    """Each model in each phase, with the sizes that are its."""
    choose(single.get("attn", "eager"), ("eager", "sdpa"), "attn")
    choose(single.get("logits", "last"), ("last", "all"), "logits")
    options = {"dtype": None, "attn": "eager", "logits": "last", **single}
    news = axes.get("new", ())
    for key in ("phase", "past", "schedule", "requests") if news else ():
        if key in axes:
            raise InputError(
                f"new is of generations, of a prompt of seq tokens and a run at a time: leave {key} out"
            )
    if "decode_policy" in axes and not news:
        raise InputError("decode_policy is of generations: give new (tokens) too")
    formats = [_formats(axes, key) for key in ("weights", "kv_dtype")]
    phases = _chosen(axes, "phase", PHASES, "prefill")
    if "seq" in axes and phases == ("decode",):
        raise InputError("seq is of a prefill, a decode has one new token: give past instead")
    found = []
    for model, phase, weights, kv_dtype in product(axes["model"], phases, *formats):
        sizes = {"batch": axes["batch"]} if "batch" in axes else {}
        if phase == "decode":
            sizes["seq"] = (1,)
        elif "seq" in axes:
            sizes["seq"] = axes["seq"]
        if "past" in axes and (phase == "decode" or "decode" not in phases):
            sizes["past"] = axes["past"]
        stored = {"weights": weights, "kv_dtype": kv_dtype}
        if news:
            sizes.setdefault("seq", (1024,))
        one = Subject(model, phase, options | stored, sizes, cache=bool(news))
        found.append(replace(one, most_new=max(news, default=0)))
    return tuple(found)


def _formats(axes: Mapping[str, tuple[Any, ...]], key: str) -> tuple[str | None, ...]:
    """Formats of storage; none: what the config says."""
    values = axes.get(key, ("none",))
    called = [Path(value).stem if Path(value).suffix else value for value in values]
    for number, name in enumerate(called):
        if name in called[:number]:
            raise InputError(f"two {key} are called {name}: rename one of the files")
    return tuple(None if value == "none" else value for value in values)


def _policies(names: Sequence[str] | None) -> "tuple[Policy, ...]":
    from partition.policy import load_policy

    found = tuple(load_policy(name) for name in names or ["offload-linear"])
    for number, policy in enumerate(found):
        if policy.name in [other.name for other in found[:number]]:
            raise InputError(f"two policies are called {policy.name}: rename one of the files")
    return found


def _machines(axes: Mapping[str, tuple[Any, ...]]) -> "tuple[Machine, ...]":
    """Each pair of devices with each link, and where the accelerator is an array each option."""
    from cutedge._machines import array_options, read_machine

    if "pair" in axes and ("home" in axes or "accel" in axes):
        raise InputError("pair says home and accelerator: leave home and accel out")
    pairs = (
        [_pair(text) for text in axes["pair"]]
        if "pair" in axes
        else product(axes.get("home", ("tee",)), axes.get("accel", ("gpu",)))
    )
    defaults: dict[str, Any] = {
        "pipeline_depth": 1,
        "int8_speedup": None,
        "sparsity": 0.0,
        "sparsity_speedup": None,
        "chips": 1,
    }
    choices = [
        {**dict(zip(defaults, one, strict=True)), "sparsity": one[2] or 0.0}
        for one in product(*(axes.get(key, (value,)) for key, value in defaults.items()))
    ]
    found: list[Machine] = []
    devices = []
    weights_at = _chosen(axes, "weights_at", get_args(WeightsAt), "device")
    engines = [
        {"engine": None if engine == "none" else engine, "execution": run, "weights_at": at}
        for engine, run, at in product(axes.get("engine", ("none",)), _executions(axes), weights_at)
    ]
    links = axes.get("link", ("zmq-ipc",))
    for (home, accelerator), link, by in product(pairs, links, engines):
        plain = read_machine(home, [accelerator], [link], None, None, **by)
        (name,) = plain.accelerators
        devices += list(plain.described.values())
        array = name in plain.described and plain.described[name].array is not None
        for options in choices if array else [defaults]:
            read = read_machine(home, [accelerator], [link], None, None, **by, **options)
            found.append(replace(read, wire_dtype=None))
    for options in choices:
        array_options(devices, "accelerator", **options)
    return _distinct([_shared(machine, found) for machine in found])


def _executions(axes: Mapping[str, tuple[Any, ...]]) -> tuple[Execution | None, ...]:
    return _chosen(axes, "execution", get_args(Execution), "") if "execution" in axes else (None,)


def _pair(text: str) -> tuple[str, str]:
    home, plus, accelerator = text.partition("+")
    if not home or not plus or not accelerator:
        raise InputError(f"pair {text!r}: write HOME+ACCELERATOR, as in tee-tdx+rtx-4090")
    return home, accelerator


def _shared(machine: "Machine", machines: "Sequence[Machine]") -> "Machine":
    """A machine with the first of equal descriptions, so that each is worked with once."""
    from costmodels.links import Links

    devices = [device for m in machines for device in m.described.values()]
    described = {name: devices[devices.index(d)] for name, d in machine.described.items()}
    link = next(m.links.common for m in machines if m.links == machine.links)
    return replace(machine, described=described, links=Links(link))


def _distinct(machines: Sequence["Machine"]) -> "tuple[Machine, ...]":
    """Refuse machines that rows could not tell apart."""
    seen: set[tuple[str, ...]] = set()
    for m in machines:
        told = *m.devices, m.links.name, m.options.text, m.engine, m.execution or "", m.weights_at
        if told in seen:
            raise InputError(
                f"two machines are called {', '.join(told[:3])}: rename a file, "
                "or call a device NAME=DEVICE"
            )
        seen.add(told)
    return tuple(machines)
