"""The rows of the tables that the command line prints, as texts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import fsum
from typing import TYPE_CHECKING

from cutedge import _words
from cutedge._device_rows import Rows
from cutedge._words import amount, no_less
from partition.accounting import call_label
from partition.policy import Policy
from partition.split import Split
from tracer.summary import growth, headline, tensor_names
from tracer.words import counted, duration, human, mib

if TYPE_CHECKING:
    from cutedge._cost import By, Cost, Parameters
    from cutedge._generate import Generation
    from cutedge._placing import Compared
    from cutedge._verify import Verification
    from partition.crossover import Point
    from partition.explain import TransferGroup
    from partition.ladder import LadderStep
    from partition.prices import Price
    from partition.schedule import Schedule


def transfer_rows(groups: "Sequence[TransferGroup]") -> Rows:
    """(tensors, direction, count, bytes of one, of all, share, growth) of the largest groups."""
    return [
        (
            group.name,
            group.direction,
            str(group.count),
            human(group.example.payload_bytes),
            human(group.payload_bytes),
            f"{group.share:.1%}",
            growth(group.example.tensor),
        )
        for group in groups[:8]
    ]


def parameter_rows(params: "Parameters") -> Rows:
    """(part, weights, biases and scales, all, share) of each part of a model."""
    total = params.graph.meta.parameters
    return [
        (
            part,
            f"{count.weights:,}",
            f"{count.biases:,}",
            f"{count.total:,}",
            f"{count.total / total:.2%}",
        )
        for part, count in params.found.parts.items()
    ]


def layer_rows(params: "Parameters") -> tuple[list[str], Rows]:
    """(the columns, the parameters of each part of a layer)"""
    layers = params.found.layers
    names = list(dict.fromkeys(part for parts in layers.values() for part in parts))
    rows = [
        (layer, *(f"{parts[n].total:,}" if n in parts else "" for n in names))
        for layer, parts in layers.items()
    ]
    return ["layer", *(f"{name}>{n}" for n, name in enumerate(names))], rows


def rule_rows(policy: Policy) -> Rows:
    """(number, ops, place, reason) of each rule, and of what no rule places."""
    weights = {r: f", weights at {r.weights_at}" if r.weights_at else "" for r in policy.rules}
    rules = [
        (str(n), str(r), r.place + weights[r], r.reason) for n, r in enumerate(policy.rules, 1)
    ]
    return [*rules, ("", "all others", policy.default, "")]


def secret_rows(policy: Policy) -> Rows:
    """(number, tensors, reason) of each secret."""
    return [(str(n), str(one), one.reason) for n, one in enumerate(policy.secrets, 1)]


def protect_rows(policy: Policy) -> Rows:
    """(number, ops, scheme, reason) of each ``[[protect]]``."""
    protects = enumerate(policy.protects, 1)
    return [(str(n), str(one), str(one.protection), one.reason) for n, one in protects]


def pack_rows(policy: Policy) -> Rows:
    """(number, tensors, packing, reason) of each ``[[pack]]``."""
    packs = enumerate(policy.packs, 1)
    return [(str(n), str(one), one.sized.text, one.reason) for n, one in packs]


def packed_rows(verified: "Sequence[Verification]") -> Rows:
    """(policy, tensors, packing, dtype, how many, bytes, packed as predicted and as measured, ratio)
    of what crossed packed."""
    return [
        (
            each.split.policy,
            one.name,
            one.packing,
            one.dtype,
            str(one.transfers),
            human(one.plain_bytes),
            f"{one.payload_bytes_predicted:,} / {one.payload_bytes_measured:,} B",
            f"{one.ratio:.3f}",
        )
        for each in verified
        if each.packed is not None
        for one in each.packed.groups
    ]


def ladder_rows(steps: "Sequence[LadderStep]") -> Rows:
    """(ops, how many, where to, bytes saved, calls saved, bytes left) of each step."""
    return [
        (
            step.ops,
            str(step.count),
            step.device,
            mib(step.saved_bytes),
            f"{-step.saved_calls:+}" if step.saved_calls else "",
            mib(step.total_payload_bytes),
        )
        for step in steps
    ]


def price_rows(prices: "Sequence[Price]") -> Rows:
    """(reason, ops, what it costs, whether that is a bound) of each rule, secret or protection."""
    return [
        (
            price.reason or price.rule,
            str(price.ops),
            amount(price.saved, price.unit),
            "" if price.proven else "about",
        )
        for price in prices
    ]


def _lacking(split: Split, found: "Schedule") -> set[str]:
    """The devices and links whose seconds leave something out in a schedule."""
    devices, lacking = {*split.used}, {*split.unknown_launches}
    if lacking - devices:  # a device that is called otherwise here: it may be any of them
        lacking |= devices
    for task in (slot.task for slot in found.slots):
        late = task.op is None and split.traffic.transfers[task.transfer or 0].at_least
        if late or task.seconds is None:
            lacking.update(task.uses)
    return lacking


def resource_rows(split: Split, found: "Schedule") -> Rows:
    """(resource, what it is busy for, its share that stands still) of each device and link."""
    idle, lacking = found.idle_shares, _lacking(split, found)
    return [
        (name, no_less(seconds, name in lacking), f"{idle[name]:.1%}")
        for name, seconds in found.busy_seconds.items()
    ]


def critical_rows(split: Split, found: "Schedule") -> Rows:
    """(what, resource, count, seconds, share) of the critical path, alike ones together.

    Those that take most come first; what is left is the last row.
    """
    graph, lacking = split.graph, _lacking(split, found)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    names, moved = dict[int, str](), tensor_names(graph)
    for number in found.critical_path:
        task = found.slots[number].task
        if task.op is None:
            name = moved[task.tensor or 0]
        else:
            name = names.setdefault(task.op, call_label(graph, (task.op,)))
        if task.seconds:
            seconds[name, task.uses[0]].append(task.seconds)
    parts = sorted(((*key, len(all_), fsum(all_)) for key, all_ in seconds.items()), key=_most)
    shown, rest = parts[:8], parts[8:]
    if rest:
        shown.append((f"{len(rest)} others", "", sum(p[2] for p in rest), fsum(p[3] for p in rest)))
    if any(part[1] in lacking for part in rest):
        lacking.add("")
    whole = found.makespan_seconds or 1.0
    return [
        (name, resource, str(count), no_less(taken, resource in lacking), f"{taken / whole:.1%}")
        for name, resource, count, taken in shown
    ]


def _most(part: tuple[str, str, int, float]) -> tuple[float, str, str]:
    return -part[3], part[0], part[1]


def crossover_table(variable: str, unit: str, points: "Sequence[Point]") -> tuple[list[str], Rows]:
    """(the headings, the rows) of what each policy takes at each size, and which is best."""

    def shown(point: "Point", name: str) -> str:
        value = point.values[name]
        if unit != "seconds":
            return mib(int(value))
        return no_less(value, point.left_out)

    names = list(dict.fromkeys(name for point in points for name in point.values))
    return [f"{variable}>", *(f"{name}>{n}" for n, name in enumerate(names, 1)), "best"], [
        (
            f"{point.size:,}",
            *(shown(point, n) if n in point.values else "not possible" for n in names),
            point.best,
        )
        for point in points
    ]


def cost_rows(cost: "Cost", by: "By") -> Rows:
    """(name, ops, FLOPs, bytes, intensity, share, seconds, bound) of the groups of ops."""
    shares, total = cost.by(by), cost.time.seconds
    if by != "layer":
        shares.sort(key=lambda share: -share.seconds)
    return [
        (
            share.name,
            f"{share.ops:,}",
            f"{share.flops:,}",
            human(share.traffic_bytes),
            "" if share.intensity is None else f"{share.intensity:.2f}",
            f"{share.seconds / total:.1%}" if total else "",
            "not here"
            if share.missing_ops == share.ops
            else no_less(share.seconds, cost.left_out and share.seconds),
            share.bound,
        )
        for share in shares
    ]


def verify_rows(verified: "Sequence[Verification]") -> Rows:
    """(policy, calls, payload, bytes on the wire, whether equal, times, how far the answer is off):
    what was predicted and what was measured."""

    def against(predicted: float | None, seconds: float, at_least: object) -> str:
        if not predicted:
            return f"{duration(seconds)}"
        off = f"{predicted / seconds - 1:+.1%}"
        return f"{no_less(predicted, at_least)} / {duration(seconds)} ({off})"

    return [
        (
            one.policy,
            f"{v.calls_predicted} / {v.calls_measured}",
            f"{mib(v.total_payload_bytes_predicted)} / {mib(v.total_payload_bytes_measured)}",
            f"{v.total_wire_bytes_predicted:,} / {v.total_wire_bytes_measured:,} B",
            "equal" if v.bytes_equal else "NOT EQUAL",
            against(
                one.traffic.totals.seconds,
                sum(call.seconds for call in measured.calls),
                one.traffic.totals.at_least,
            ),
            against(one.run_seconds, measured.seconds, one.left_out),
            f"{v.max_abs_difference:.3g} of {v.max_abs_result:.3g}",
        )
        for one, measured, v in ((each.split, each.measured, each.verdict) for each in verified)
    ]


def verify_shown(
    verified: "Sequence[Verification]", files: Sequence[object]
) -> Iterator[str | tuple[str, Rows]]:
    """What ``verify`` prints, line by line and table by table."""
    yield headline(verified[0].trace.graph.meta)
    yield (
        "predicted / measured, by processes of their own over sockets; the answer against the "
        "unsplit model's\n"
    )
    yield (
        "policy, calls>1, payload>2, on the wire>5, bytes, transfer time>4, run>3, answer off by>1",
        verify_rows(verified),
    )
    yield ""
    for each in verified:
        measured = each.measured
        pairs = zip(each.split.traffic.calls, measured.calls, strict=True)
        slowest = sorted(pairs, key=lambda pair: -pair[1].call_seconds)[:3]
        longest = ", ".join(f"{c.label} {duration(t.call_seconds)}" for c, t in slowest)
        held = ", ".join(
            f"{name} {human(size)}" for name, size in measured.peak_memory_bytes.items()
        )
        yield (
            f"{each.split.policy}: {each.verdict.transfers_measured} transfers compared one by one; "
            f"peak memory {held}; " + (f"longest calls {longest}" if longest else "no calls")
        )
    if packed := packed_rows(verified):
        yield (
            "policy<3, packed, by, of<4, count>5, plain>6, predicted / measured>1, ratio>",
            packed,
        )
        yield ""
    for each in verified:
        for what, told in (("", each.packed), ("secrets: ", each.proof), ("masks: ", each.masks)):
            if told is not None:
                yield f"{each.split.policy}, {what}{told}"
    yield from (f"written to {file}" for file in files)


def generation_rows(made: "Generation") -> tuple[str, Rows]:
    """(the columns, what the parts of a generation take, and all of it): energy where it is known."""
    steps, traffic, energy = made.steps, made.prefill.bare.traffic, made.joules
    lacks, spent = made.summary["at_least"], energy["total_joules"]
    own = traffic.totals.payload_bytes, made.ttft_seconds, energy["ttft_joules"]
    parts: list[tuple[str, int, int, float | None, float | None]] = [
        ("prefill", len(traffic.calls), *own)
    ]
    if made.draft:
        split = made.draft.prefill.bare
        payload, joules = split.traffic.totals.payload_bytes, split.energy_figures["run_joules"]
        calls = len(split.traffic.calls)
        parts.append(("prefill of the draft", calls, payload, split.run_seconds, joules))
    step_name = "round" if made.draft else "step"
    if made.moves:
        moved = made.moved_cache_bytes, made.move_seconds, made.move_joules[0]
        parts.append(("cache that moves", 0, *moved))
    if steps:
        parts += [
            (
                f"{step_name} over {step.past:,}",
                step.calls,
                step.total_payload_bytes,
                step.run_seconds,
                step.run_joules,
            )
            for step in dict.fromkeys((steps[0], steps[-1]))
        ]
        payload = sum(step.total_payload_bytes for step in steps)
        calls = sum(step.calls for step in steps)
        every = f"all {counted(len(steps), step_name)}"
        parts.append((every, calls, payload, made.step_seconds, made.step_joules))
    parts.append(("total", made.calls, made.total_payload_bytes, made.total_seconds, spent))
    rows: Rows = [
        (
            name,
            f"{calls:,}",
            mib(payload),
            "" if seconds is None else no_less(seconds, lacks),
            _words.energy_words(joules, energy["energy_at_least"]),
        )
        for name, calls, payload, seconds, joules in parts
    ]
    heads = "of, calls>2, payload>, seconds>1"
    return (heads, [row[:4] for row in rows]) if spent is None else (f"{heads}, energy>3", rows)


def comparison_columns(found: "Compared", within: float | None) -> dict[str, Sequence[str]]:
    """The columns of policies side by side, as ``compare`` prints them."""
    partitions, savings = found.partitions, found.comparisons
    columns: dict[str, Sequence[str]] = {
        "policy": [p.policy for p in partitions],
        "calls>1": [str(len(p.traffic.calls)) for p in partitions],
        "sent>3": [mib(p.traffic.totals.sent_payload_bytes) for p in partitions],
        "received>3": [mib(p.traffic.totals.received_payload_bytes) for p in partitions],
        "total>1": [mib(p.traffic.totals.payload_bytes) for p in partitions],
        "saved>6": [mib(c.saved_bytes) for c in savings],
        "saved %>4": ["" if c.saved_share is None else f"{c.saved_share:.1%}" for c in savings],
        "resident off home>8": [human(c.resident_off_home_bytes) for c in savings],
    }
    if any(p.traffic.totals.seconds is not None for p in partitions):
        columns["transfer time>5"] = [
            time_words(p.traffic.totals.seconds, p.traffic.totals.at_least) for p in partitions
        ]
    if any(p.run_seconds is not None for p in partitions):
        columns["run>2"] = [time_words(p.run_seconds, p.left_out) for p in partitions]
    columns |= _words.energy_columns(partitions)
    columns |= _words.schedule_columns(partitions)
    if any(p.exposed for p in partitions):
        columns["seen<9"] = [_words.sees(p.exposed) for p in partitions]
    if any(p.solution is not None for p in partitions):
        columns["best for<7"] = [_words.best_for(p) for p in partitions]
    if within is not None:
        columns[f"{_words.within_words(within)}<2"] = [
            _words.verdict(p, within) for p in partitions
        ]
    return columns


def runs_columns(found: "Sequence[Compared]", within: float | None) -> dict[str, Sequence[str]]:
    """The same of several traces: a row for each model and policy."""
    rows = [(p, p.graph.meta, p.run) for one in found for p in one.partitions]
    columns: dict[str, Sequence[str]] = {
        "model": [meta.model for _, meta, _ in rows],
        "phase<4": [meta.phase for _, meta, _ in rows],
        **{
            f"{size}>5": [str(meta.variables[size]) for _, meta, _ in rows]
            for size in ("batch", "seq", "past")
        },
        "policy": [p.policy for p, *_ in rows],
        "calls>1": [str(len(p.traffic.calls)) for p, *_ in rows],
        "total>1": [human(p.traffic.totals.payload_bytes) for p, *_ in rows],
        **{
            f"{part}%6": ["" if r is None else f"{r.shares[n]:.2%}" for *_, r in rows]
            for n, part in enumerate(("home", "accelerators", "links"))
        },
        "cycles>7": [_words.cycles(p) for p, *_ in rows],
        "run>2": [time_words(p.run_seconds, p.left_out) for p, *_ in rows],
        "tokens/s>3": [
            "" if run is None or not run.seconds else _words.speed(run, at_most=p.left_out)
            for p, _, run in rows
        ],
        **_words.energy_columns([p for p, *_ in rows]),
        **_words.schedule_columns([p for p, *_ in rows]),
    }
    if not any(p.cycles for p, *_ in rows):
        del columns["cycles>7"]
    if any(p.exposed for p, *_ in rows):
        columns["seen<9"] = [_words.sees(p.exposed) for p, *_ in rows]
    if within is not None:
        columns[f"{_words.within_words(within)}<2"] = [_words.verdict(p, within) for p, *_ in rows]
    return columns


def time_words(seconds: float | None, at_least: object) -> str:
    return "not known" if seconds is None else no_less(seconds, at_least)
