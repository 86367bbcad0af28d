"""Profiles of torch (Kineto): ops with shapes and seconds, launches and copies, out of a trace.

A profile is the chrome trace that ``torch.profiler.profile(record_shapes=True)`` exports. Ops of one
thread lie one in another (``aten::linear`` holds ``aten::addmm``). What is counted is the outermost
op whose results' shapes follow from what is recorded: its FLOPs and bytes are then those that the
same op has in a graph (``costmodels.flops``). Its seconds are those of all kernels that were started
inside of it; in a profile without kernels the processor itself did the work, and they are its own.
"""

import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from costmodels.flops import annotate
from tracer.errors import InputError
from tracer.files import parse_json, read_bounded
from tracer.graph import FLOATING, ITEM_BYTES, Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.kinds import base_name, kind_of, writes_in_place
from tracer.stages import stage

Shape = tuple[int, ...]

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float8_e4m3fn": "float8_e4m3fn",
    "Float8_e5m2": "float8_e5m2",
    "long int": "int64",
    "long": "int64",
    "long long": "int64",
    "int": "int32",
    "short": "int16",
    "short int": "int16",
    "signed char": "int8",
    "unsigned char": "uint8",
    "bool": "bool",
}
"""What a profile calls a dtype, without ``c10::``."""

_SCALAR_TYPES = {
    "0": "uint8",
    "1": "int8",
    "2": "int16",
    "3": "int32",
    "4": "int64",
    "5": "float16",
    "6": "float32",
    "7": "float64",
    "11": "bool",
    "15": "bfloat16",
}
"""torch's numbers of dtypes, as arguments have them."""

_SPREAD_NAMES = """
    add sub rsub mul div true_divide pow square sqrt rsqrt reciprocal exp log sin cos tanh sigmoid
    relu gelu silu mish softplus leaky_relu elu erf abs neg clamp clamp_min clamp_max maximum minimum
    where masked_fill addcmul addcdiv lerp
"""
_SPREAD = frozenset(_SPREAD_NAMES.split())
"""Elementwise ops whose result has the shape that their tensors are spread to."""

_ASKS_NAMES = "eq ne lt le gt ge logical_and logical_or logical_not isnan isinf"
_ASKS = frozenset(_ASKS_NAMES.split())
"""Such ops whose result is bool."""

_AS_FIRST_NAMES = "_softmax _log_softmax layer_norm rms_norm clone copy fill zero cumsum dropout"
_AS_FIRST = frozenset(_AS_FIRST_NAMES.split())
"""Ops whose result has the shape and the dtype of their first tensor."""

_OVER_AXES = frozenset(("sum", "mean", "amax", "amin", "prod"))

_LAUNCH = re.compile(r"(cuda|cu|hip)(Ext)?(Module)?Launch(Cooperative)?Kernel")
_WAIT = re.compile(r"Synchronize|(cuda|hip)Memcpy(?!.*Async)")
_WAYS = {"sent": re.compile(r"HtoD|HostToDevice"), "received": re.compile(r"DtoH|DeviceToHost")}


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that a profiled op was given."""

    dtype: str
    shape: Shape
    """As the op sees it."""
    stored: Shape
    """What lies in memory: without the axes along which it is only repeated."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Calls of one op with the same shapes."""

    target: str
    """Its ATen name (``aten.mm``)."""
    inputs: tuple[Given, ...]
    output: tuple[str, Shape]
    """(dtype, shape)"""
    seconds: float
    """The median of its calls."""
    calls: int
    total_seconds: float
    """Of all calls."""

    @property
    def text(self) -> str:
        """``mm 8x64 64x64 float32``: the op, what it was given, and what of."""
        sizes = " ".join("x".join(map(str, one.shape)) or "1" for one in self.inputs)
        return f"{base_name(self.target)} {sizes} {self.inputs[0].dtype}"


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies between host and device in one direction, in the order of the file."""

    events: tuple[int, ...]
    """Their places among the file's events, from 0."""
    sizes: tuple[int, ...]
    """Bytes of each."""
    seconds: tuple[float, ...]
    """Of each, by the device's clock."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile says."""

    name: str
    """Of the file, without its folder."""
    ops: tuple[Ran, ...]
    """Those that are counted, each with its shapes once, in the order of their first call."""
    graph: OpGraph = field(repr=False)
    """The same ops, by number, with their FLOPs and bytes."""
    on_device: bool
    """Whether kernels on a device did the work; else the processor did."""
    seconds: float
    """Of all the work, what is not counted with it."""
    left_out: Mapping[str, float]
    """Op, or kernel that no op started -> its seconds, which are not counted."""
    launches: int
    """Kernels that the host started, one by one."""
    launch_call_seconds: float
    """What the calls took that started them."""
    host_ops: int
    """Outermost ops that started kernels."""
    host_seconds: float
    """From the start of each outermost op to that of the next, but where the host waited."""
    copies: Mapping[str, Copies]
    """``sent`` to the device, ``received`` from it."""


_MOST_BYTES = 2**28
"""Of a profile, unpacked; some steps of a large model have a tenth of it."""


def read_events(path: Path) -> Any:
    """What a JSON file holds, unpacked where its name ends in .gz; of several lines with an object
    each, their list. Raises InputError where it is no such file."""
    try:
        data = read_bounded(path, _MOST_BYTES)
        if path.suffix == ".gz":
            data = gzip.GzipFile(fileobj=BytesIO(data)).read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise OSError(f"it unpacks to more than {_MOST_BYTES:,} bytes: profile fewer steps")
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not UTF-8 text") from error
    try:
        return parse_json(text, strict=False)  # names of kernels may hold anything
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) > 1:
                return [parse_json(line, strict=False) for line in lines]
        except ValueError:
            pass
        raise InputError(f"{path}: not valid JSON: {error}") from error


def is_profile(value: Any) -> bool:
    """Whether what a file holds is a chrome trace."""
    return isinstance(value, dict) and "traceEvents" in value


@dataclass(slots=True)
class _Event:
    """An event with its place among those of its thread."""

    number: int
    category: str
    name: str
    begin: float
    """Microseconds, as ``end``."""
    end: float
    args: Mapping[str, Any]
    parent: "_Event | None" = None
    kernels: float = 0.0
    """Seconds of the kernels that it started itself."""
    has_kernels: bool = False

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) * 1e-6

    def above(self) -> Iterable["_Event"]:
        """The event and those that it lies in, from the innermost."""
        event: _Event | None = self
        while event is not None:
            yield event
            event = event.parent


@stage("reading the profile")
def read_profile(path: Path, value: Any) -> Profile:
    """The profile in what a file holds. Raises InputError that says what it lacks."""
    entries = value["traceEvents"]
    if not isinstance(entries, list):
        raise InputError(f"{path}: traceEvents must be a list of events")
    by_thread: dict[Any, list[_Event]] = defaultdict(list)
    kernels, copied = [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.get("ph") != "X":
            continue
        category = entry.get("cat")
        if category in ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"):
            thread = str(entry.get("pid")), str(entry.get("tid"))
            by_thread[thread].append(_event(path, number, entry))
        elif category == "kernel":
            kernels.append(_event(path, number, entry))
        elif category == "gpu_memcpy":
            copied.append(_event(path, number, entry))
    for events in by_thread.values():
        _nest(events)
    hosts = [event for events in by_thread.values() for event in events]
    ops = [event for event in hosts if event.category == "cpu_op"]
    if not ops and not copied:
        raise InputError(
            f"{path}: no ops and no copies in the trace: take it with torch.profiler.profile("
            "record_shapes=True), activities CPU and, where there is one, CUDA"
        )
    left_out = _give_kernels(hosts, kernels)
    ran, rest, lacking = _counted(path, ops, on_device=bool(kernels))
    if ops and not ran and lacking:
        raise InputError(
            f"{path}: its ops have no shapes: take the trace with "
            "torch.profiler.profile(record_shapes=True)"
        )
    launched = [event for event in hosts if _is_runtime(event) and _LAUNCH.match(event.name)]
    host_ops, host_seconds = _hosts(by_thread.values()) if kernels else (0, 0.0)
    left = left_out + rest
    counted = sum(one.total_seconds for one in ran)
    return Profile(
        path.name,
        tuple(ran),
        _graph(path.name, ran),
        bool(kernels),
        counted + left.total(),
        dict(left.most_common()),
        len(launched),
        sum(event.seconds for event in launched),
        host_ops,
        host_seconds,
        _copies(path, copied),
    )


def _event(path: Path, number: int, entry: Mapping[str, Any]) -> _Event:
    def time(key: str) -> float:
        found: Any = entry.get(key)
        try:
            taken = float(found) if type(found) in (int, float, str) else -1.0
        except (ValueError, OverflowError):
            taken = -1.0
        if not 0 <= taken < _LATEST:  # no NaN is
            raise InputError(
                f"{path}: event {number}: {key!r} must be microseconds, 0 or more, not {found!r}"
            )
        return taken

    args = entry.get("args", {})
    name = entry.get("name")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise InputError(f"{path}: event {number}: a name and args are wanted, as Kineto has them")
    begin = time("ts")
    return _Event(number, entry["cat"], name, begin, begin + time("dur"), args)


_LATEST = 2.0**63
"""Microseconds of no event that was."""

_ROUNDING = 2e-3
"""Microseconds that an end may be off, as it is written with three digits."""


def _nest(events: list[_Event]) -> None:
    """Put a thread's events in order, and say which lies in which."""
    events.sort(key=lambda event: (event.begin, -event.end))
    around: list[_Event] = []
    for event in events:
        while around and event.end > around[-1].end + _ROUNDING:
            around.pop()
        while around and event.begin >= around[-1].end and event.end > event.begin:
            around.pop()
        event.parent = around[-1] if around else None
        around.append(event)


def _is_runtime(event: _Event) -> bool:
    return event.category in ("cuda_runtime", "cuda_driver")


def _give_kernels(hosts: Sequence[_Event], kernels: Sequence[_Event]) -> Counter[str]:
    """Add the kernels' seconds to the ops that started them; those of the others come back.

    A kernel names the op that it was started by (``External id``), and the call that did it
    (``correlation``).
    """

    def numbered(key: str, events: Iterable[_Event]) -> dict[int | None, _Event]:
        found = ((_number(event, key), event) for event in events)
        return {number: event for number, event in found if number is not None}

    by_op = numbered("External id", (event for event in hosts if event.category == "cpu_op"))
    by_call = numbered("correlation", filter(_is_runtime, hosts))
    left_out: Counter[str] = Counter()
    for kernel in kernels:
        call = by_call.get(_number(kernel, "correlation"))
        above = call.above() if call is not None else ()
        op = next((event for event in above if event.category == "cpu_op"), None)
        op = op or by_op.get(_number(kernel, "External id"))
        if op is None:
            left_out[kernel.name] += kernel.seconds  # type: ignore[assignment]
        else:
            op.kernels += kernel.seconds
            op.has_kernels = True
    return left_out


def _number(event: _Event, key: str) -> int | None:
    found = event.args.get(key)
    return found if type(found) is int else None


def _counted(
    path: Path, ops: Sequence[_Event], *, on_device: bool
) -> tuple[list[Ran], Counter[str], bool]:
    """(what is counted, seconds by op of what is not, whether ops lack their shapes)"""
    known: dict[int, tuple[str, tuple[Given, ...], tuple[str, Shape]] | None] = {}
    calls: dict[Any, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    rest: Counter[str] = Counter()
    within: Counter[int] = Counter()
    for op in ops:
        if op.parent is not None and op.parent.category == "cpu_op":
            within[op.parent.number] += op.seconds  # type: ignore[assignment]
    lacking = False
    for op in ops:
        known[op.number] = _described(path, op)
        lacking |= op.name.startswith("aten::") and "Input Dims" not in op.args
        outermost = None
        for event in op.above():
            if event.category == "cpu_op" and known.get(event.number):
                outermost = event
        if on_device:
            taken = op.kernels
        elif outermost is None:
            taken = max(op.seconds - within[op.number], 0.0)
        else:
            taken = op.seconds if outermost is op else 0.0
        if on_device and not op.has_kernels:
            continue
        if outermost is None:
            rest[op.name] += taken  # type: ignore[assignment]
        elif taken or outermost is op:
            calls[known[outermost.number]][outermost.number] += taken
    ran = []
    for described, each in calls.items():
        seconds = [one for one in each.values() if one > 0]
        if described is not None and seconds:
            target, inputs, output = described
            ran.append(Ran(target, inputs, output, median(seconds), len(seconds), sum(seconds)))
    return ran, rest, lacking


def _described(
    path: Path, event: _Event
) -> tuple[str, tuple[Given, ...], tuple[str, Shape]] | None:
    """(target, tensors, (dtype, shape) of its result) of an op; None where that does not follow."""
    if not event.name.startswith("aten::") or "Input Dims" not in event.args:
        return None
    target = "aten." + event.name.removeprefix("aten::")
    given = _given(path, event)
    if not given or any(one is None for one in given if one is not False):
        return None
    tensors = [one for one in given if isinstance(one, Given)]
    told = event.args.get("Concrete Inputs")
    result = _result(target, tensors, told if isinstance(told, list) else [])
    whole = [one for one in tensors if one.shape] or tensors  # numbers ride along
    if result is None or not all(prod(one.shape) for one in whole):
        return None
    return target, tuple(whole), result


def _given(path: Path, event: _Event) -> list[Given | bool | None]:
    """By argument: the tensor; False where it is no tensor, None where it is one without dtype."""
    names = ("Input Dims", "Input type", "Input Strides")
    dims, types, strides = (event.args.get(name, []) for name in names)
    if not all(isinstance(one, list) for one in (dims, types, strides)):
        raise InputError(f"{path}: event {event.number}: Input Dims and Input type must be lists")
    found: list[Given | bool | None] = []
    for at, shape in enumerate(dims):
        name = types[at] if at < len(types) else ""
        dtype = _DTYPES.get(str(name).removeprefix("c10::"))
        sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        sizes = sizes and prod(shape) < 2**53
        if dtype is None:
            found.append(None if shape else False)
        elif not sizes:
            raise InputError(
                f"{path}: event {event.number}: Input Dims must be whole numbers that a "
                f"tensor may have, not {shape!r}"
            )
        else:
            steps = strides[at] if at < len(strides) else []
            repeated = isinstance(steps, list) and len(steps) == len(shape)
            kept = [n for n, step in zip(shape, steps, strict=True) if step] if repeated else shape
            found.append(Given(dtype, tuple(shape), tuple(kept)))
    return found


def _result(target: str, given: Sequence[Given], told: Sequence[Any]) -> tuple[str, Shape] | None:
    """(dtype, shape) of an op's first result; None where what is recorded does not say it."""
    if not given:
        return None
    name, first = base_name(target), given[0]
    shapes = [one.shape for one in given]
    try:
        if writes_in_place(target):
            known = name in _SPREAD | _AS_FIRST
            return (first.dtype, first.shape) if known else None
        if name in _AS_FIRST:
            return first.dtype, first.shape
        if name == "linear":
            return first.dtype, (*shapes[0][:-1], shapes[1][0])
        if name in ("mm", "bmm", "matmul"):
            return first.dtype, _product(shapes[0], shapes[1])
        if name in ("addmm", "baddbmm"):
            return first.dtype, _product(shapes[1], shapes[2])
        if kind_of(target) is Kind.ATTENTION:
            return first.dtype, (*shapes[0][:-1], shapes[2][-1])
        if name == "embedding":
            return first.dtype, (*shapes[1], shapes[0][1])
        if name == "_to_copy":
            return _SCALAR_TYPES.get(str(told[1]), first.dtype), first.shape
        if name in _SPREAD | _ASKS:
            return "bool" if name in _ASKS else _widest(given), _spread(shapes)
        if name in _OVER_AXES:
            return first.dtype, _without(first.shape, str(told[1]), keep=told[2] == "True")
    except (IndexError, ValueError):
        return None
    return None


def _product(a: Shape, b: Shape) -> Shape:
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError("no product of matrices")
    return (*_spread([a[:-2], b[:-2]]), a[-2], b[-1])


def _spread(shapes: Sequence[Shape]) -> Shape:
    """The shape that all are spread to, as torch does it. Raises ValueError where they are not.

    >>> _spread([(8, 1, 4), (3, 4), ()])
    (8, 3, 4)
    """
    longest = max(map(len, shapes))
    aligned = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    found = []
    for sizes in zip(*aligned, strict=True):
        (size,) = {*sizes} - {1} or {1}
        found.append(size)
    return tuple(found)


def _widest(given: Sequence[Given]) -> str:
    """The dtype of what is computed of several: that of the widest floating tensor with axes."""
    whole = [one.dtype for one in given if one.shape] or [one.dtype for one in given]
    floating = [dtype for dtype in whole if dtype in FLOATING]
    return max(floating or whole, key=lambda dtype: ITEM_BYTES[dtype])


def _without(shape: Shape, axes: str, *, keep: bool) -> Shape:
    """A shape after a sum over ``axes`` (``[-1]``; all where that is empty)."""
    gone = {int(text) % len(shape) for text in re.findall(r"-?\d+", axes)} or {*range(len(shape))}
    if keep:
        return tuple(1 if at in gone else size for at, size in enumerate(shape))
    return tuple(size for at, size in enumerate(shape) if at not in gone)


def _hosts(threads: Iterable[Sequence[_Event]]) -> tuple[int, float]:
    """(outermost ops that started kernels, seconds from the start of each outermost op to that of
    the next), without those in which the host waited for the device, and between annotated steps.
    """
    count, seconds = 0, 0.0
    for events in threads:
        started = {above.number for event in events if event.has_kernels for above in event.above()}
        outer = [event for event in events if event.category == "cpu_op" and _is_outermost(event)]
        waits = [event.begin for event in events if _is_runtime(event) and _WAIT.search(event.name)]
        starts, at = sorted(waits), 0
        for event, following in pairwise(outer):
            if _step(event) is not _step(following):
                continue
            while at < len(starts) and starts[at] < event.begin:
                at += 1
            if at < len(starts) and starts[at] < following.begin:
                continue
            count += event.number in started
            seconds += (following.begin - event.begin) * 1e-6
    return count, seconds


def _is_outermost(event: _Event) -> bool:
    return not any(
        above.category == "cpu_op" and above.name.startswith("aten::")
        for above in event.above()
        if above is not event
    ) and event.name.startswith("aten::")


def _step(event: _Event) -> _Event | None:
    """The outermost annotation that an event lies in."""
    step = None
    for above in event.above():
        step = above if above.category == "user_annotation" else step
    return step


def _copies(path: Path, copied: Sequence[_Event]) -> dict[str, Copies]:
    found: dict[str, Copies] = {}
    for way, pattern in _WAYS.items():
        rows = []
        for event in copied:
            if pattern.search(event.name) is None or event.end <= event.begin:
                continue
            size = event.args.get("bytes")
            if type(size) is not int or not 0 <= size < 2**63:
                raise InputError(
                    f"{path}: event {event.number}: a copy's bytes must be a whole number, not "
                    f"{size!r}"
                )
            rows.append((event.number, size, event.seconds))
        if rows:
            numbers, sizes, seconds = zip(*rows, strict=True)
            found[way] = Copies(numbers, sizes, seconds)
    return found


def _graph(name: str, ran: Sequence[Ran]) -> OpGraph:
    """A graph of the ops, each by itself, with their costs."""
    ops: list[Op] = []
    tensors: list[Tensor] = []
    edges: list[Edge] = []

    def add(op: int | None, dtype: str, shape: Shape, alias: int | None = None) -> int:
        size = prod(shape) * ITEM_BYTES[dtype]
        role = Role.INPUT if op is None else Role.ACTIVATION
        number = len(tensors)
        tensors.append(
            Tensor(
                number, op, f"t{number}", role, None, dtype, shape, None, size, None, None, alias
            )
        )
        return number

    for number, one in enumerate(ran):
        given = []
        for place, tensor in enumerate(one.inputs):
            base = None
            if tensor.stored != tensor.shape:
                base = add(None, tensor.dtype, tensor.stored)
            given.append(add(None, tensor.dtype, tensor.shape, base))
            edges.append(Edge(None, number, given[-1], place))
        dtype, shape = one.output
        add(number, dtype, shape, given[0] if writes_in_place(one.target) else None)
        kind = Kind.LINEAR if base_name(one.target) == "linear" else kind_of(one.target)
        op_name = f"{base_name(one.target)}_{number}"
        ops.append(Op(number, op_name, one.target, kind, "", "", None, None, False, False, dtype))
    meta = TraceMeta(name, "prefill", 1, 1, 0, "float32", "no", "all", (), 0)
    return annotate(OpGraph(meta, ops, tensors, edges))
