"""What the tool's tables say beside what the rules say, number by number."""

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.audit.accounting import (
    ITEM_BYTES,
    Account,
    Link,
    Row,
    Trace,
    account,
    evaluate,
    framing_of,
    metadata,
    rows,
)


@dataclass(frozen=True)
class Asked:
    """What a split was asked for."""

    home: str
    accelerators: tuple[str, ...]
    residency: str
    wire_dtype: str | None
    links: Mapping[str, Link]
    """By accelerator, and by ``a+b`` of two; ``""`` is that of all others."""
    weights_at: str = "device"
    """Where parameters lie of which no rule says it."""
    streams: Collection[int] | None = None
    """The ops whose parameters lie at home, where rules say of each."""


@dataclass
class Comparison:
    """Figures set side by side."""

    compared: int = 0
    """How many."""
    differ: list[str] = field(default_factory=list)
    """Those that are not equal, in words."""

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(self.compared + other.compared, self.differ + other.differ)

    def named(self, where: str) -> "Comparison":
        """The same, with what was compared before each disagreement."""
        return Comparison(self.compared, [f"{where}: {text}" for text in self.differ])

    def same(self, what: str, told: Any, ours: Any) -> None:
        """Compare one figure."""
        self.compared += 1
        if told != ours:
            self.differ.append(f"{what}: the table has {told}, the rules say {ours}")


def sizes_of(about: Mapping[str, str]) -> dict[str, int]:
    """What the names in formulas are at a trace's sizes."""
    return {name: int(about[name]) for name in ("batch", "seq", "past", "source")}


def compare_trace(trace: Trace) -> Comparison:
    """The figures of ``ops`` and ``tensors`` that rules decide."""
    found = Comparison()
    sizes = sizes_of(trace.about)
    constants = constant_ops(trace)
    parameters = {
        row["alias_of"] if row["alias_of"] is not None else tensor: math.prod(row["shape"])
        for tensor, row in trace.tensors.items()
        if row["role"] == "parameter"
    }
    found.same("parameters", int(trace.about["parameters"]), sum(parameters.values()))
    for tensor in trace.tensors.values():
        name = f"tensor {tensor['tensor_id']} ({tensor['name']})"
        numel = math.prod(tensor["shape"])
        found.same(f"{name} bytes", tensor["bytes"], numel * ITEM_BYTES[tensor["dtype"]])
        if tensor["bytes_expr"] is not None:
            found.same(f"{name} bytes_expr", evaluate(tensor["bytes_expr"], sizes), tensor["bytes"])
            degree = degree_of(tensor["bytes_expr"], "seq", sizes)
            found.same(f"{name} seq_degree", tensor["seq_degree"], degree)
        if tensor["alias_of"] is not None:
            under = trace.tensors[tensor["alias_of"]]
            found.same(f"{name} alias_of is a storage", under["alias_of"], None)
        if tensor["shape_expr"] is not None:
            shape = [evaluate(text, sizes) for text in tensor["shape_expr"]]
            found.same(f"{name} shape_expr", shape, tensor["shape"])
    for op in trace.ops.values():
        name = f"op {op['op_id']} ({op['name']})"
        if op["gemm_m"] is not None and op["kind"] in ("linear", "matmul"):
            product = 2 * op["gemm_batch"] * op["gemm_m"] * op["gemm_n"] * op["gemm_k"]
            found.same(f"{name} flops", op["flops"], product)
        for column in ("flops", "causal_flops"):
            text = op[f"{column}_expr"]
            if text is not None:
                found.same(f"{name} {column}_expr", evaluate(text, sizes), op[column])
        found.same(f"{name} is_constant", op["is_constant"], op["op_id"] in constants)
        found.same(f"{name} kind constant", op["kind"] == "constant", op["op_id"] in constants)
        if op["is_view"]:
            cost = (op["flops"], op["read_bytes"], op["write_bytes"])
            found.same(f"{name} cost of a view", cost, (0, 0, 0))
        found.same(f"{name} unsupported", op["flops"] is None, op["flops_status"] == "unsupported")
        if op["kind"] in ("linear", "norm"):
            weights = {trace.storage(t): t for t in trace.read_by[op["op_id"]]}
            read = sum(
                trace.tensors[tensor]["bytes"]
                for storage, tensor in weights.items()
                if trace.tensors[storage]["op_id"] is None
            )
            if op["assumption"] is not None:
                read = _experts_read(trace, op, read)
            found.same(f"{name} param_bytes", op["param_bytes"], read)
    return found


def _experts_read(trace: Trace, op: Row, whole: int) -> int:
    """Of ``whole`` bytes of experts' weights, those of the experts that are reached on average.

    A product runs a row for each token and expert that it goes to, so that rows / tokens is the k
    of E(1 - (1 - k/E)^tokens).
    """
    shapes = {
        trace.tensors[trace.storage(t)]["role"] == "parameter": trace.tensors[t]["shape"]
        for t in reversed(trace.read_by[op["op_id"]])
        if len(trace.tensors[t]["shape"]) > 1
    }
    sizes = sizes_of(trace.about)
    experts, rows, tokens = shapes[True][0], shapes[False][0], sizes["batch"] * sizes["seq"]
    missed = (1 - Fraction(rows // tokens, experts)) ** tokens
    return round(whole * (1 - missed))


DRAWS = {
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "bernoulli",
    "multinomial",
    "normal",
    "normal_functional",
    "uniform",
    "exponential",
    "poisson",
    "cauchy",
    "geometric",
    "log_normal",
    "random",
}
"""ATen calls that draw numbers at random."""


def constant_ops(trace: Trace) -> set[int]:
    """The ops whose results are constants: "a value that depends on no graph input".

    A random draw depends on no input and is no constant all the same: a device that draws for
    itself has other numbers, so that one draw crosses to all that read it.
    """
    constants: set[int] = set()
    for op in trace.order:
        row = trace.ops[op]
        name = row["target"].removeprefix("aten.").partition(".")[0].rstrip("_")
        if row["kind"] in ("input", "output") or name in DRAWS:
            continue
        makers = {trace.tensors[t]["op_id"] for t in trace.read_by[op]} - {None}
        if makers <= constants:
            constants.add(op)
    return constants


def degree_of(text: str, name: str, sizes: Mapping[str, int]) -> int:
    """How many times over a formula doubles, far out, when one size doubles."""
    far = 2**60
    before, behind = (evaluate(text, {**sizes, name: n}) for n in (far, 2 * far))
    return round(math.log2(behind / before)) if before else 0


def compare_formulas(trace: Trace, other: Trace) -> Comparison:
    """The formulas of one trace against the numbers of another of the same model at other sizes."""
    found = Comparison()
    sizes = sizes_of(other.about)
    targets = [[op["target"] for op in t.ops.values()] for t in (trace, other)]
    found.same("ops of the trace at other sizes", *targets)
    if found.differ:
        return found
    for table, key, columns in (
        ("op", "op_id", ("flops", "causal_flops")),
        ("tensor", "tensor_id", ("bytes",)),
    ):
        ours, theirs = (trace.ops, other.ops) if key == "op_id" else (trace.tensors, other.tensors)
        for number, row in ours.items():
            for column in columns:
                if row[f"{column}_expr"] is not None:
                    name = f"{table} {number} ({row['name']}) {column}_expr at {sizes}"
                    value = evaluate(row[f"{column}_expr"], sizes)
                    found.same(name, value, theirs[number][column])
    return found


def compare_optimum(
    trace: Trace, folder: Path, asked: "Asked", seed: int, tries: int
) -> Comparison:
    """A placement that is called optimal in bytes against its neighbours.

    "No placement that is allowed has less": neither one with one free op elsewhere, nor one with
    all the free ops of a module elsewhere.
    """
    found = Comparison()
    (summary,) = rows(folder / "summary.parquet")
    if summary["objective_unit"] != "bytes" or not summary["optimal"]:
        return found
    placement = rows(folder / "placement.parquet")
    placed = {row["op_id"]: row["device"] for row in placement}
    free = [row["op_id"] for row in placement if not row["pinned"]]
    devices = [asked.home, *asked.accelerators]
    streams = {row["op_id"] for row in placement if row["weights_at"] == "home"}
    drawn = random.Random(seed)
    for _ in range(tries if free else 0):
        op = drawn.choice(free)
        module = trace.ops[op]["module_path"]
        device = drawn.choice([d for d in devices if d != placed[op]])
        group = drawn.choice([[op], [o for o in free if trace.ops[o]["module_path"] == module]])
        other = account(
            trace,
            {**placed, **dict.fromkeys(group, device)},
            asked.home,
            wire_dtype=asked.wire_dtype,
            residency=asked.residency,
            streams=streams,
        )
        less = sum(m.payload_bytes for m in other.moved)
        found.compared += 1
        if less < summary["objective_value"]:
            found.differ.append(
                f"optimal at {summary['objective_value']} B, but with ops {group} on {device} it is"
                f" {less} B"
            )
    return found


def compare_split(
    trace: Trace, folder: Path, asked: "Asked", placed: Mapping[int, str | None] | None
) -> Comparison:
    """A partition directory against our own account of its placement.

    ``placed`` is where the policy's rules put each op, where they alone decide.
    """
    found = Comparison()
    about = metadata(folder / "placement.parquet")
    home = about["home"]
    for name, value in (("home", asked.home), ("residency", asked.residency)):
        found.same(f"metadata {name}", about[name], value)
    told = {row["op_id"]: row["device"] for row in rows(folder / "placement.parquet")}
    found.same("placement ops", sorted(told), sorted(trace.ops))
    if found.differ:
        return found
    for op, row in trace.ops.items():
        free = bool(row["is_constant"]) or op in trace.state.ops
        found.same(f"op {op} ({row['name']}) is on no one device", told[op] is None, free)
        if row["kind"] in ("input", "output") and not free:
            found.same(f"op {op} ({row['name']}) is at", told[op], home)
        if placed is not None:
            found.same(f"op {op} ({row['name']}) is placed on", told[op], placed[op])
    streams = _streams(trace, folder, asked, found)
    ours = account(
        trace, told, home, wire_dtype=asked.wire_dtype, residency=asked.residency, streams=streams
    )
    _compare_calls(trace, folder, ours, asked.links, found)
    _compare_summary(folder, ours, found)
    return found


def _streams(trace: Trace, folder: Path, asked: "Asked", found: Comparison) -> set[int]:
    """The ops whose parameters lie at home, as asked for; by ``asked.streams`` where rules say."""
    told = {row["op_id"]: row["weights_at"] for row in rows(folder / "placement.parquet")}
    for op, row in trace.ops.items():
        free = bool(row["is_constant"]) or op in trace.state.ops
        reads = not free and bool(trace.parameters_of(op)[0])
        home = op in asked.streams if asked.streams is not None else asked.weights_at == "home"
        ours = ("home" if home else "device") if reads else None
        found.same(f"op {op} ({row['name']}) weights_at", told[op], ours)
    return {op for op, at in told.items() if at == "home"}


def _compare_calls(
    trace: Trace, folder: Path, ours: Account, links: Mapping[str, Link], found: Comparison
) -> None:
    calls = rows(folder / "calls.parquet")
    transfers = rows(folder / "transfers.parquet")
    found.same("number of calls", len(calls), len(ours.calls))
    found.same("call ids", [c["call_id"] for c in calls], list(range(len(calls))))
    step_of: dict[int, tuple[int, str]] = {}
    for call in calls:
        key = _call_of(call, ours, step_of)
        step_of[call["call_id"]] = key
        found.same(
            f"call {call['call_id']} on {call['device']}: ops",
            sorted(call["ops"]),
            ours.calls.get(key, "no such call"),
        )
    order = [step_of[c["call_id"]][0] for c in calls]
    found.same("order of calls", order, sorted(order))

    told: Counter[tuple[Any, ...]] = Counter()
    for row in transfers:
        call = step_of.get(row["call_id"], (-1, ""))
        told[
            row["tensor_id"],
            row["src_device"],
            row["dst_device"],
            call,
            row["direction"],
            row["wire_dtype"],
            row["payload_bytes"],
        ] += 1
    mine: Counter[tuple[Any, ...]] = Counter(
        (m.tensor, m.source, m.destination, m.call, m.direction, m.wire_dtype, m.payload_bytes)
        for m in ours.moved
    )
    found.compared += 7 * sum(mine.values())
    for key in sorted(told - mine):
        found.differ.append(f"transfer {_told(trace, key)}: in the table, not by the rules")
    for key in sorted(mine - told):
        found.differ.append(f"transfer {_told(trace, key)}: by the rules, not in the table")

    total = sum(m.payload_bytes for m in ours.moved)
    messages: dict[tuple[int, str, str, str], list[Row]] = {}
    for row in transfers:
        name = f"transfer {row['transfer_id']}"
        tensor = trace.tensors[row["tensor_id"]]
        found.same(f"{name} src_op", row["src_op"], tensor["op_id"])
        found.same(f"{name} tensor_name", row["tensor_name"], tensor["name"])
        found.same(f"{name} label", row["label"], tensor["label"])
        maker = trace.ops[_origin(trace, tensor, row["dst_device"], ours)]
        found.same(f"{name} layer", row["layer"], maker["layer"])
        found.same(f"{name} module_path", row["module_path"], maker["module_path"])
        found.same(f"{name} seq_degree", row["seq_degree"], tensor["seq_degree"])
        if row["bytes_expr"] is not None:
            value = evaluate(row["bytes_expr"], sizes_of(trace.about))
            found.same(f"{name} bytes_expr", value, row["payload_bytes"])
        if total:
            found.same(f"{name} share", row["share"], row["payload_bytes"] / total)
        end = (row["call_id"], row["direction"], row["src_device"], row["dst_device"])
        messages.setdefault(end, []).append(row)
    wired: dict[tuple[int, str], int] = {}
    for (call_id, direction, source, destination), sent in messages.items():
        link = _link_of(links, source, destination)
        message, each = framing_of(link, direction, [row["payload_bytes"] for row in sent])
        what = f"message of call {call_id}, {source} to {destination}"
        found.same(f"{what}: wire bytes", sum(r["wire_bytes"] for r in sent), message + sum(each))
        extra = sorted(row["wire_bytes"] - n for row, n in zip(sent, each, strict=True))
        found.same(f"{what}: framing", extra, [0] * (len(sent) - 1) + [message])
        wired[call_id, direction] = wired.get((call_id, direction), 0) + message + sum(each)
    for call in calls:
        key = step_of[call["call_id"]]
        for direction, column in (("send", "sent"), ("receive", "received")):
            name = f"call {call['call_id']} {column}"
            payload = sum(
                m.payload_bytes for m in ours.moved if m.call == key and m.direction == direction
            )
            found.same(f"{name}_payload_bytes", call[f"{column}_payload_bytes"], payload)
            wire = wired.get((call["call_id"], direction), 0)
            found.same(f"{name}_wire_bytes", call[f"{column}_wire_bytes"], wire)


def _origin(trace: Trace, tensor: Row, device: str, ours: Account) -> int:
    """The op that makes a tensor; of a parameter the first on its device to read it."""
    if tensor["op_id"] is not None:
        return int(tensor["op_id"])
    here = {op for (_, there), ops in ours.calls.items() if there == device for op in ops}
    return min(op for op in here if tensor["tensor_id"] in trace.parameters_of(op)[0])


def _call_of(call: Row, ours: Account, taken: Mapping[int, tuple[int, str]]) -> tuple[int, str]:
    """Our call that one of the tool's is to be: with most of its ops, or the next of its device."""
    steps = Counter(ours.steps[op] for op in call["ops"] if op in ours.steps)
    if steps:
        return steps.most_common(1)[0][0], call["device"]
    free = [key for key in ours.calls if key[1] == call["device"] and not ours.calls[key]]
    left = [key for key in free if key not in taken.values()]
    return left[0] if left else (-1, call["device"])


def _told(trace: Trace, key: Sequence[Any]) -> str:
    tensor, source, destination, call, direction, dtype, payload = key
    row = trace.tensors[tensor]
    return (
        f"of tensor {tensor} ({row['name']}, {row['label']}) {source} -> {destination} with the"
        f" call of step {call[0]} on {call[1]} ({direction}, {dtype}, {payload} B)"
    )


def _link_of(links: Mapping[str, Link], source: str, destination: str) -> Link:
    for name in (f"{source}+{destination}", f"{destination}+{source}", source, destination):
        if name in links:
            return links[name]
    return links[""]


def _compare_summary(folder: Path, ours: Account, found: Comparison) -> None:
    (summary,) = rows(folder / "summary.parquet")
    transfers = rows(folder / "transfers.parquet")
    by_direction: Counter[str] = Counter()
    wire: Counter[str] = Counter()
    for m in ours.moved:
        by_direction[m.direction] += m.payload_bytes
    for row in transfers:
        wire[row["direction"]] += row["wire_bytes"]
    found.same("summary calls", summary["calls"], len(ours.calls))
    found.same("summary transfers", summary["transfers"], len(ours.moved))
    found.same("summary cut_edges", summary["cut_edges"], ours.cut_edges)
    for direction, column in (("send", "sent"), ("receive", "received"), ("peer", "peer")):
        found.same(
            f"summary {column}_payload_bytes",
            summary[f"{column}_payload_bytes"],
            by_direction[direction],
        )
        found.same(f"summary {column}_wire_bytes", summary[f"{column}_wire_bytes"], wire[direction])
    found.same("summary total_payload_bytes", summary["total_payload_bytes"], by_direction.total())
    found.same("summary total_wire_bytes", summary["total_wire_bytes"], wire.total())
    if summary["total_bytes_expr"] is not None:
        sizes = sizes_of(metadata(folder / "summary.parquet"))
        told = evaluate(summary["total_bytes_expr"], sizes)
        found.same("summary total_bytes_expr", told, by_direction.total())
    if summary["objective_unit"] == "bytes" and summary["objective_value"] is not None:
        found.same("summary objective_value", summary["objective_value"], by_direction.total())
    resident = {device: n for device, n in summary["resident_bytes"] if n}
    mine = {device: n for device, n in ours.resident_bytes.items() if n}
    for device in sorted({*resident, *mine}):
        found.same(f"summary resident_bytes on {device}", resident.get(device), mine.get(device))
