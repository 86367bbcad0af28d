"""A second accounting: what crosses between devices, from the rules and the Parquet tables alone.

It reads ``ops``, ``tensors``, ``edges`` and ``placement`` and makes its own calls, transfers,
totals and resident bytes. It imports nothing of what it audits, and shares no code with it: two
programs that agree have read the rules alike. Each function says which words it goes by.

The words that every part needs:

- *transfer*: "tensor T moves from device X to device Y once, however many ops on Y read it";
- *call*: "one round trip home -> accelerator -> home";
- *home*: "the device that holds the inputs and must hold the outputs".
"""

import ast
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of an element."""

Row = Mapping[str, Any]


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    table: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    return table


def metadata(path: Path) -> dict[str, str]:
    """What a Parquet file's schema says of the run."""
    found = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key[:6] != b"ARROW:"}


# --- the graph ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """The op graph of a trace directory, as its three tables have it."""

    ops: Mapping[int, Row]
    """By ``op_id``."""
    tensors: Mapping[int, Row]
    """By ``tensor_id``."""
    edges: Sequence[Row]
    """Every row of ``edges``."""
    about: Mapping[str, str]
    """Model, phase and sizes, from the metadata."""

    @cached_property
    def read_by(self) -> Mapping[int, list[int]]:
        """Op -> the tensors that it reads, each once."""
        read: dict[int, list[int]] = {op: [] for op in self.ops}
        for edge in self.edges:
            if edge["tensor_id"] not in read[edge["dst_op"]]:
                read[edge["dst_op"]].append(edge["tensor_id"])
        return read

    @cached_property
    def readers_of(self) -> Mapping[int, list[int]]:
        """Tensor -> the ops that read it, each once."""
        readers: dict[int, list[int]] = {tensor: [] for tensor in self.tensors}
        for op, read in self.read_by.items():
            for tensor in read:
                readers[tensor].append(op)
        return readers

    @cached_property
    def made_by(self) -> Mapping[int, list[int]]:
        """Op -> the tensors that it makes."""
        made: dict[int, list[int]] = {op: [] for op in self.ops}
        for tensor, row in self.tensors.items():
            if row["op_id"] is not None:
                made[row["op_id"]].append(tensor)
        return made

    @cached_property
    def order(self) -> Sequence[int]:
        """The ops so that each comes behind all whose results it reads."""
        waits = {
            op: {self.tensors[t]["op_id"] for t in read} - {None}
            for op, read in self.read_by.items()
        }
        wakes: dict[int, list[int]] = {op: [] for op in self.ops}
        for op, makers in waits.items():
            for maker in makers:
                wakes[maker].append(op)
        ready = sorted((op for op, makers in waits.items() if not makers), reverse=True)
        order: list[int] = []
        while ready:
            order.append(ready.pop())
            for op in wakes[order[-1]]:
                waits[op].discard(order[-1])
                if not waits[op]:
                    ready.append(op)
        if len(order) != len(self.ops):
            raise ValueError("the graph has a circle")
        return order

    def never_crosses(self, tensor: int) -> bool:
        """Whether a tensor is a parameter, a buffer or a constant.

        Rule 1: "Parameters and buffers live on every device whose ops read them; they never cross
        during a run." Rule 2: "Constants are computed at load on each device that needs them; they
        never cross during a run."
        """
        maker = self.tensors[tensor]["op_id"]
        return maker is None or bool(self.ops[maker]["is_constant"])

    def parameters_of(self, op: int) -> tuple[set[int], set[int]]:
        """(the parameters that an op reads, those that constants which it reads are made of).

        Each by its storage: a view of a parameter is read as the parameter, and what is computed of
        one is a constant (rule 2).
        """
        read: set[int] = set()
        behind: set[int] = set()
        for tensor in self.read_by[op]:
            if not self.never_crosses(tensor):
                continue
            under = self.storage(tensor)
            if self.tensors[under]["role"] == "parameter":
                read.add(under)
                continue
            front = [tensor]
            while front:
                row = self.tensors[front.pop()]
                if row["op_id"] is not None:
                    front += self.read_by[row["op_id"]]
                elif row["role"] == "parameter":
                    behind.add(self.storage(row["tensor_id"]))
        return read, behind

    def storage(self, tensor: int) -> int:
        """The tensor whose memory one lies in; itself where it is no alias."""
        under = self.tensors[tensor]["alias_of"]
        return tensor if under is None else int(under)

    @cached_property
    def results(self) -> set[int]:
        """The tensors that must end at home.

        Rule 3: "graph outputs end at home"; but for the cache, which rule 9 calls an output "with
        a home of its own".
        """
        return {
            tensor
            for op, row in self.ops.items()
            if row["kind"] == "output"
            for tensor in self.read_by[op]
            if self.tensors[tensor]["role"] != "kv_cache"
        }

    @cached_property
    def state(self) -> "State":
        """What is cached."""
        return find_state(self)


def read_trace(folder: Path) -> Trace:
    """The tables of a trace directory."""
    return Trace(
        {row["op_id"]: row for row in rows(folder / "ops.parquet")},
        {row["tensor_id"]: row for row in rows(folder / "tensors.parquet")},
        rows(folder / "edges.parquet"),
        metadata(folder / "ops.parquet"),
    )


# --- what is cached -------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """The cache: what comes in, what goes out, and the ops that only carry one to the other."""

    ops: set[int]
    """Inputs that hold cached state, and the ops that append to it, overwrite it or cut it off."""
    cell_of: Mapping[int, int]
    """State tensor -> the least tensor of those that are one piece of state (layer 0's keys)."""
    rows_behind: Mapping[int, set[int]]
    """State tensor -> the new rows in it: tensors that no state op made."""


def find_state(trace: Trace) -> State:
    """The state, and which of its tensors are one.

    Rule 9: "the KV cache is an input and output with a home of its own: it stays on the device that
    reads it". So the way from a cached input (or, in a prefill, from the empty cache) to the cached
    output is no work of the policy's: a concatenation, an overwriting copy or a slice upon it is
    the cache itself, with its new rows. "Where an op at home makes a view or a copy of the whole
    cache that the accelerator reads, that whole crosses": an op that leads to no cached output is
    an op like any other.
    """
    moves = {
        op
        for op, row in trace.ops.items()
        if row["kind"] in ("copy", "view") and not row["is_constant"]
    }
    leads_out: set[int] = set()
    for op in reversed(trace.order):
        for tensor in trace.made_by[op]:
            row = trace.tensors[tensor]
            readers = trace.readers_of[tensor]
            if any(trace.ops[r]["kind"] == "output" for r in readers) and row["role"] == "kv_cache":
                leads_out.add(tensor)
            if any(r in moves and leads_out & set(trace.made_by[r]) for r in readers):
                leads_out.add(tensor)
    ops: set[int] = set()
    held: set[int] = set()
    for op in trace.order:
        made, read = trace.made_by[op], trace.read_by[op]
        if trace.ops[op]["kind"] == "input":
            is_state = any(trace.tensors[t]["role"] == "kv_cache" for t in made)
        else:
            on = {t for t in read if t in held}
            empty = [
                t
                for t in read
                if trace.never_crosses(t) and math.prod(trace.tensors[t]["shape"]) == 0
            ]
            is_state = op in moves and bool(on or empty) and any(t in leads_out for t in made)
        if is_state:
            ops.add(op)
            held.update(made)

    parent = {tensor: tensor for tensor in held}

    def root(tensor: int) -> int:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    behind: dict[int, set[int]] = {}
    for op in trace.order:
        if op not in ops:
            continue
        read, made = trace.read_by[op], trace.made_by[op]
        for tensor in (*(t for t in read if t in held), *made):
            low, high = sorted((root(tensor), root(made[0])))
            parent[high] = low
        new: set[int] = set()
        for tensor in read:
            if tensor in held:
                new |= behind[tensor]
            elif not trace.never_crosses(tensor):
                new.add(tensor)
        for tensor in made:
            behind[tensor] = new
    return State(ops, {tensor: root(tensor) for tensor in held}, behind)


# --- links ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """What a message takes on the wire beside its tensors, in bytes, by direction from home."""

    sent_message: int
    sent_tensor: int
    received_message: int
    received_tensor: int
    threshold: int = 0
    """A tensor of fewer bytes lies in shared memory."""
    handle: int = 0
    """What goes over the wire in the stead of a tensor in shared memory, where that is less."""
    chunk: int | None = None
    """More than this goes in several messages."""


def read_link(path: Path) -> Link:
    """A link from its description."""
    values = {
        key: entry["value"]
        for key, entry in tomllib.loads(path.read_text()).items()
        if isinstance(entry, dict)
    }
    return Link(
        values["sent_message_framing_bytes"],
        values["sent_tensor_framing_bytes"],
        values["received_message_framing_bytes"],
        values["received_tensor_framing_bytes"],
        values.get("shared_memory_threshold_bytes", 0),
        values.get("shared_memory_handle_bytes", 0),
        values.get("chunk_bytes"),
    )


def framing_of(link: Link, direction: str, payloads: Sequence[int]) -> tuple[int, list[int]]:
    """Bytes on the wire: around what one device sends another in a call, and of each tensor.

    Rule 6: "Wire bytes = payload + framing (bytes a message + bytes a tensor, from the link's
    description)". The description of a link says: a tensor with less payload than the threshold
    lies in shared memory, each tensor by itself, and its handle is on the wire instead (no more
    payload than a handle goes over the wire all the same); the payload that a message has on the
    wire goes in pieces of ``chunk_bytes``, each a message of its own.
    """
    message = link.received_message if direction == "receive" else link.sent_message
    tensor = link.received_tensor if direction == "receive" else link.sent_tensor
    shared = [link.handle < n < link.threshold for n in payloads]
    over = sum(n for n, is_shared in zip(payloads, shared, strict=True) if not is_shared)
    pieces = max(1, -(-over // link.chunk)) if link.chunk else 1
    return message * pieces, [
        tensor + (link.handle if is_shared else n)
        for n, is_shared in zip(payloads, shared, strict=True)
    ]


# --- calls and transfers --------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Moved:
    """A transfer, as far as the rules fix it."""

    tensor: int
    source: str
    destination: str
    call: tuple[int, str]
    """(step, accelerator) of the call that it goes with."""
    direction: str
    """send, receive or peer."""
    wire_dtype: str
    payload_bytes: int


@dataclass(frozen=True)
class Account:
    """All that a placement comes to."""

    steps: Mapping[int, int]
    """Op -> its step: at home 0 is before the first call, on accelerators 1 is the first."""
    calls: Mapping[tuple[int, str], list[int]]
    """(step, accelerator) -> its ops, but for those that are constants or cached state."""
    moved: list[Moved]
    """Every transfer."""
    resident_bytes: Mapping[str, int]
    """Device -> bytes of parameters, buffers, constants and cached state."""
    cut_edges: int
    """Edges whose two ops are on different devices."""


@dataclass
class _Needs:
    """Where and when a tensor is needed."""

    by_ops: dict[str, set[int]] = field(default_factory=dict)
    """Device -> the steps of the ops there that read it."""
    by_state: dict[str, int] = field(default_factory=dict)
    """Device -> the step in which cached state there takes it up."""


def account(
    trace: Trace,
    placed: Mapping[int, str | None],
    home: str,
    *,
    wire_dtype: str | None = None,
    residency: str = "run",
    streams: Collection[int] = (),
) -> Account:
    """Calls, transfers and resident bytes of a placement (op -> device, None where the rules say).

    Rules 1, 4, 5 and 9; the functions below say which words decide what. ``streams`` are the ops
    whose parameters lie at home.
    """
    where = _cells(trace, placed, home)
    steps = _steps(trace, placed, home)
    calls: dict[tuple[int, str], list[int]] = {}
    for op in trace.order:
        device = placed[op]
        if device is not None and device != home and op in steps:
            calls.setdefault((steps[op], device), []).append(op)
    moved: list[Moved] = []
    for tensor, needs in _needs(trace, placed, steps, where, home).items():
        maker = trace.tensors[tensor]["op_id"]
        source = placed[maker]
        assert source is not None
        moved += _moves(trace, tensor, source, steps[maker], needs, home, wire_dtype, residency)
    sent = sent_parameters(trace, placed, home, streams)
    for device, parameters in sent.items():
        for parameter, readers in parameters.items():
            moved += _sendings(
                trace, parameter, device, {steps[op] for op in readers}, home, residency
            )
    for one in moved:
        calls.setdefault(one.call, [])
    return Account(
        steps,
        {key: sorted(calls[key]) for key in sorted(calls)},
        sorted(moved),
        resident(trace, placed, where, home, sent),
        cut_edges(trace, placed, where),
    )


def sent_parameters(
    trace: Trace, placed: Mapping[int, str | None], home: str, streams: Collection[int]
) -> dict[str, dict[int, list[int]]]:
    """Device -> parameter that is sent there -> the ops there that read it.

    Rule 1: with weights at home "a parameter that ops of an accelerator read crosses from home in
    each run [...] by storage"; "one that lies there anyway, for an op with its weights on the
    device or for a constant, is not sent".
    """
    lies: set[tuple[str, int]] = set()
    wanted: dict[str, dict[int, list[int]]] = {}
    for op, device in placed.items():
        if device is None or device == home:
            continue
        read, behind = trace.parameters_of(op)
        lies.update((device, parameter) for parameter in behind)
        for parameter in sorted(read):
            if op in streams:
                wanted.setdefault(device, {}).setdefault(parameter, []).append(op)
            else:
                lies.add((device, parameter))
    return {
        device: {p: ops for p, ops in parameters.items() if (device, p) not in lies}
        for device, parameters in wanted.items()
    }


def _sendings(
    trace: Trace, parameter: int, device: str, steps: set[int], home: str, residency: str
) -> Iterable[Moved]:
    """The transfers of a parameter that lies at home to one device.

    Rule 1: "once for each (tensor, home, device), with `--residency call` once for each call that
    needs it; with the first call that needs it; in what it is stored in, whatever `--wire-dtype`
    says".
    """
    row = trace.tensors[parameter]
    for step in sorted(steps) if residency == "call" else [min(steps)]:
        yield Moved(parameter, home, device, (step, device), "send", row["dtype"], row["bytes"])


def _cells(trace: Trace, placed: Mapping[int, str | None], home: str) -> dict[int, set[str]]:
    """Piece of state -> the devices that hold it.

    Rule 9: "it stays on the device that reads it": every device with an op that reads any of its
    tensors, since what goes out of this step comes into the next. State that no op reads stays
    where its rows are made.
    """
    where: dict[int, set[str]] = {cell: set() for cell in trace.state.cell_of.values()}
    makers: dict[int, set[str]] = {cell: set() for cell in where}
    for tensor, cell in trace.state.cell_of.items():
        for op in trace.readers_of[tensor]:
            device = placed[op]
            if op not in trace.state.ops and trace.ops[op]["kind"] != "output" and device:
                where[cell].add(device)
        for new in trace.state.rows_behind[tensor]:
            device = placed[trace.tensors[new]["op_id"]]
            assert device is not None
            makers[cell].add(device)
    for cell, devices in where.items():
        if not devices:
            devices.update(makers[cell] if len(makers[cell]) == 1 else {home})
    return where


def _needed_by(trace: Trace, op: int) -> list[int]:
    """The tensors that must be on an op's device before it runs: those it reads and the new rows
    of the state that it reads; not what is there from the start."""
    needed: list[int] = []
    for tensor in trace.read_by[op]:
        if trace.never_crosses(tensor):
            continue
        if tensor in trace.state.cell_of:
            needed += sorted(trace.state.rows_behind[tensor])
        else:
            needed.append(tensor)
    return needed


def _step_behind(step: int, source: str, destination: str, home: str) -> int:
    """The earliest step on one device for what reads what another made in a step.

    Rule 5: "ops at home and ops on the accelerator alternate in steps [...] each op in the earliest
    step that its inputs allow"; calls are "counted in changes home -> accelerator". Of several
    accelerators: a call is a "round trip home -> accelerator -> home (an RPC)", so what it makes is
    to be had when it is over, and one accelerator's op that reads another's result is in a later
    call, in the next step.
    """
    return step + (destination not in (home, source))


def _steps(trace: Trace, placed: Mapping[int, str | None], home: str) -> dict[int, int]:
    """Op -> the earliest step that its inputs allow, of all ops but constants and state."""
    steps: dict[int, int] = {}
    for op in trace.order:
        device = placed[op]
        if trace.ops[op]["is_constant"] or op in trace.state.ops:
            continue
        assert device is not None, f"op {op} is on no device"
        step = int(device != home)
        for tensor in _needed_by(trace, op):
            if trace.ops[op]["kind"] == "output" and tensor not in trace.results:
                continue
            maker = trace.tensors[tensor]["op_id"]
            source = placed[maker]
            assert source is not None
            step = max(step, _step_behind(steps[maker], source, device, home))
        steps[op] = step
    return steps


def _needs(
    trace: Trace,
    placed: Mapping[int, str | None],
    steps: Mapping[int, int],
    where: Mapping[int, set[str]],
    home: str,
) -> dict[int, _Needs]:
    """Tensor -> where and when it is needed.

    Rule 5: "A tensor is sent with the first call that needs it". Rule 9: of state the new rows
    cross: each device that holds it needs them, in the first step in which an op there reads the
    state; where none there reads what they become, once they are made.
    """
    state = trace.state
    needs: dict[int, _Needs] = {}
    takes: dict[tuple[int, str], set[int]] = {}
    for op in trace.order:
        device = placed[op]
        if op not in steps:
            continue
        assert device is not None
        for tensor in trace.read_by[op]:
            if trace.ops[op]["kind"] == "output" and tensor not in trace.results:
                continue
            if tensor in state.cell_of:
                for new in state.rows_behind[tensor]:
                    takes.setdefault((new, device), set()).add(steps[op])
            elif not trace.never_crosses(tensor):
                needs.setdefault(tensor, _Needs()).by_ops.setdefault(device, set()).add(steps[op])
    for tensor, cell in state.cell_of.items():
        for new in state.rows_behind[tensor]:
            maker = trace.tensors[new]["op_id"]
            source = placed[maker]
            assert source is not None
            for device in where[cell]:
                soonest = _step_behind(steps[maker], source, device, home)
                first = min(takes.get((new, device), {soonest}))
                taken = needs.setdefault(new, _Needs()).by_state
                taken[device] = min(first, taken.get(device, first))
    return needs


def _moves(
    trace: Trace,
    tensor: int,
    source: str,
    made: int,
    needs: _Needs,
    home: str,
    wire_dtype: str | None,
    residency: str,
) -> Iterable[Moved]:
    """The transfers of one tensor that a device made in a step.

    Rule 4: "A transfer is charged once for each (tensor, source device, destination device). With
    `--residency run` (default) a device keeps what it received or made until the end of the run.
    With `--residency call` an accelerator keeps nothing between calls but weights and cached state:
    what a later call needs again is sent again, and what a later call needs of what it made comes
    home and is sent again." Cached state is kept: a row that is on its device is in the state, and
    no later reader of the state needs it again.

    Rule 5: "A tensor is sent with the first call that needs it and received with the call that
    makes it."
    """
    dtype, payload = payload_of(trace.tensors[tensor], wire_dtype)

    def moved(start: str, end: str, call: tuple[int, str]) -> Moved:
        direction = "send" if start == home else "receive" if end == home else "peer"
        return Moved(tensor, start, end, call, direction, dtype, payload)

    comes_home = source != home and home in {*needs.by_ops, *needs.by_state}
    for device in sorted({*needs.by_ops, *needs.by_state} - {home}):
        direct, taken = needs.by_ops.get(device, set()), needs.by_state.get(device)
        if residency == "run":
            if device != source:
                first = min([*direct, *([] if taken is None else [taken])])
                yield moved(source, device, (first, device))
            continue
        used = set(direct)
        if taken is not None and device != source and not any(step <= taken for step in used):
            used.add(taken)
        for step in sorted(used):
            if source == home:
                yield moved(home, device, (step, device))
            elif step != made:
                comes_home = True
                yield moved(home, device, (step, device))
            elif device != source:
                yield moved(source, device, (step, device))
    if comes_home:
        yield moved(source, home, (made, source))


def payload_of(row: Row, wire_dtype: str | None) -> tuple[str, int]:
    """The dtype on the wire of a tensor, and its bytes there.

    Rule 6: "Payload bytes = numel x wire item size. `--wire-dtype` changes floating tensors only;
    integer and bool tensors keep their own size."
    """
    dtype = row["dtype"]
    if wire_dtype is not None and (dtype.startswith(("float", "bfloat"))):
        dtype = wire_dtype
    return dtype, math.prod(row["shape"]) * ITEM_BYTES[dtype]


def cut_edges(trace: Trace, placed: Mapping[int, str | None], where: Mapping[int, set[str]]) -> int:
    """Edges that are cut: "tensor T flows from op A to op B", and they "sit on different devices".

    An op of cached state sits on every device that holds it; what a constant makes is everywhere.
    """

    def sits_on(op: int) -> set[str]:
        if op in trace.state.ops:
            return where[trace.state.cell_of[trace.made_by[op][0]]]
        device = placed[op]
        return set() if device is None else {device}

    return sum(
        bool(sits_on(edge["dst_op"]) - sits_on(edge["src_op"]))
        for edge in trace.edges
        if edge["src_op"] is not None
        and not trace.never_crosses(edge["tensor_id"])
        and not (
            trace.ops[edge["dst_op"]]["kind"] == "output" and edge["tensor_id"] not in trace.results
        )
    )


def resident(
    trace: Trace,
    placed: Mapping[int, str | None],
    where: Mapping[int, set[str]],
    home: str,
    sent: Mapping[str, Mapping[int, Sequence[int]]],
) -> dict[str, int]:
    """Device -> the bytes that lie there all the time.

    Rule 1: "Parameters and buffers live on every device whose ops read them [...] Tied weights
    count once a device (by storage)." Rule 2: constants "are computed at load on each device that
    needs them [...] They count as resident bytes": those that an op there reads when it runs, by
    storage, and the parameters and buffers that they are computed from. Rule 9: the cache "is
    counted as resident bytes": as it is when the step is over, on each device that holds it. State
    that no cached rows lead to (a recurrence's, in a prefill) lies where it is made. Parameters that
    a device is ``sent`` lie at home and not there.
    """
    storages: dict[str, set[int]] = {}

    def hold(tensor: int, device: str) -> None:
        storages.setdefault(device, set()).add(trace.storage(tensor))

    loaded: set[tuple[int, str]] = set()

    def load(tensor: int, device: str) -> None:
        maker = trace.tensors[tensor]["op_id"]
        if (tensor, device) in loaded:
            return
        loaded.add((tensor, device))
        if maker is None:
            hold(tensor, device)
        else:
            for source in trace.read_by[maker]:
                load(source, device)

    for op in trace.ops:
        device = placed[op]
        if device is not None:
            for tensor in trace.read_by[op]:
                if trace.never_crosses(tensor):
                    if trace.storage(tensor) in sent.get(device, ()):
                        hold(tensor, home)
                        continue
                    hold(tensor, device)
                    load(tensor, device)
    for tensor, row in trace.tensors.items():
        if row["role"] != "kv_cache":
            continue
        if not any(trace.ops[op]["kind"] == "output" for op in trace.readers_of[tensor]):
            continue
        if tensor in trace.state.cell_of:
            devices = where[trace.state.cell_of[tensor]]
        else:
            devices = {placed[row["op_id"]] or home}
        # The rows that a window keeps are a storage of their own.
        under = trace.storage(tensor)
        whole = trace.tensors[under]["bytes"] == row["bytes"]
        for device in devices:
            storages.setdefault(device, set()).add(under if whole else tensor)
    return {
        device: sum(trace.tensors[tensor]["bytes"] for tensor in tensors)
        for device, tensors in storages.items()
    }


# --- formulas -------------------------------------------------------------------------------------

_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Pow: lambda a, b: a**b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """A formula's value; its names are sizes, its functions Min, Max and floor divisions.

    Rule 7: "Bytes, FLOPs and shapes are exact for the traced graph and also kept as formulas in
    `batch`, `seq` (new tokens) and `past` (cached tokens)."
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return sizes[node.id]
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](value(node.left), value(node.right))
            case ast.Call(func=ast.Name(id="Min" | "min")):
                return min(value(one) for one in node.args)
            case ast.Call(func=ast.Name(id="Max" | "max")):
                return max(value(one) for one in node.args)
        raise ValueError(f"{text}: no formula has a {ast.unparse(node)}")

    return int(value(ast.parse(text, mode="eval").body))
