"""What the first screen of a report says of a policy: what limits it, and what to do next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from shlex import quote

from costmodels.arrays import gemm_cost
from costmodels.roofline import DeviceTime, shares
from cutedge._carried import too_large
from cutedge._chip_words import limit_claim
from cutedge._machines import machine_words
from cutedge._placing import Compared
from cutedge._words import bottleneck_claim
from cutedge.report.rooflines import sort_of
from cutedge.report.scores import Verdict, best_allowed, scores, seconds_of, seen_of
from partition.explain import Bottleneck
from partition.masks import MaskedGraph
from partition.run import times_under
from partition.seen import What
from partition.setting import Setting
from partition.split import Split
from tracer.graph import Kind, TraceMeta
from tracer.words import counted, duration, human

WORTH = 0.95
"""A step is worth telling of where it leaves no more than this of what there is."""


def verdicts(
    found: Compared, worst: Sequence[Bottleneck | None], times: Sequence[Mapping[str, DeviceTime]]
) -> list[Verdict]:
    """Of each policy what limits it, its figures beside others', and what to do next.

    ``worst`` are the bottlenecks of their traffic, ``times`` what ``times_of`` gives.
    """
    splits = found.partitions
    fits = [not too_large(one, found.setting) for one in splits]
    made = []
    for number, (one, heaviest, taken) in enumerate(zip(splits, worst, times, strict=True)):
        best = best_allowed(splits, number, fits)
        step = _step(found, number, best, fits, taken)
        made.append(
            Verdict(
                limit_sentence(one, taken, heaviest),
                scores(one, found.baseline, splits[best]),
                f"{step.sentence[:1].upper()}{step.sentence[1:]}.",
                step.command,
            )
        )
    return made


def times_of(found: Compared) -> list[dict[str, DeviceTime]]:
    """Of each policy what ops take on the described devices; where it masks, the masks' ops too."""
    return [
        times_under(
            one.graph,
            one.placement,
            one.traffic.transfers,
            (
                found.setting.of(one.graph) if isinstance(one.graph, MaskedGraph) else found.setting
            ).times,
        )
        for one in found.partitions
    ]


# --- the true bottleneck --------------------------------------------------------------------------


def limit_sentence(split: Split, times: Mapping[str, DeviceTime], worst: Bottleneck | None) -> str:
    """What limits a run: time where seconds are known, padding on a chip, else bytes.

    ``times`` are the devices' seconds under its placement, ``worst`` the heaviest of its traffic.
    """
    under = f"Under {split.policy}"
    if (of_chip := limit_claim(split)) is not None:
        return f"{under}, {of_chip}."
    home, link, run = split.placement.home, split.link, split.run
    crossing = "" if split.traffic.transfers else " nothing crosses between devices:"
    if run is None or not run.seconds:
        if worst is None:
            return f"{under} nothing crosses between devices; what {home} takes is not known."
        return (
            f"{bottleneck_claim(worst, f'the traffic of {split.policy}')}; seconds are not known."
        )
    known = f"the {'known ' * bool(split.left_out)}time"
    laid = split.schedule
    if laid is not None and laid.limited_by is not None:
        busy = 1 - laid.idle_shares[laid.limited_by]
        device = laid.limited_by
        lead = f"{under}{crossing} {device} is the busiest, at work in {busy:.1%} of {known}"
        if device not in times:
            return f"{lead}; {_on_the_link(split, worst)}."
        return f"{lead}; {_on_a_device(split, times[device], device)}."
    taken = {name: split.compute_seconds[name] for name in split.used}
    device = max(taken, key=lambda name: taken[name])
    if split.traffic.totals.seconds is not None and run.link_seconds > taken[device]:
        share = run.link_seconds / run.seconds
        return f"{under}, {link} has {share:.1%} of {known}; {_on_the_link(split, worst)}."
    lead = f"{under}{crossing or ','} {device} has {taken[device] / run.seconds:.1%} of {known}"
    return f"{lead}; {_on_a_device(split, times[device], device)}."


def _on_the_link(split: Split, worst: Bottleneck | None) -> str:
    """What takes a link's time: its messages, however little is in them, or the heaviest bytes."""
    whole, each = split.traffic.totals.seconds or 0.0, _message_seconds(split)
    if each and fsum(each) >= whole / 2:
        return (
            f"{counted(len(each), 'message')} take {fsum(each) / whole:.1%} of that, however little "
            "is in them"
        )
    assert worst is not None
    return f"{worst.share:.1%} of its bytes are {worst.name}"


def _message_seconds(split: Split) -> list[float]:
    """By message what it takes beside its bytes; empty where that depends on how it is cut up."""
    links, home = split.links, split.placement.home
    if links is None:
        return []
    found = []
    for source, target, direction, _ in dict.fromkeys(
        (t.src_device, t.dst_device, t.direction, t.call) for t in split.traffic.transfers
    ):
        link = links.between(source, target, home)
        if link.chunk_bytes is not None or link.shared_memory_threshold_bytes:
            return []
        found.append(link.message_seconds(direction) or 0.0)
    return found


def _on_a_device(split: Split, time: DeviceTime, device: str) -> str:
    """What a device's time goes to, and which sort of op takes most of it."""
    placed = split.placement.devices
    found = [
        one
        for one in shares(
            split.graph, time, lambda op: sort_of(op) if placed[op.id] == device else ""
        )
        if one.name
    ]
    whole = fsum(one.seconds for one in found)
    if not whole:
        return "its ops take no time"
    bounds = {
        bound: fsum(one.seconds_by_bound.get(bound, 0.0) for one in found)
        for bound in dict.fromkeys(name for one in found for name in one.seconds_by_bound)
    }
    # What has no bound keeps cached state for an op that only looks at it: it copies.
    bounds["memory"] = bounds.get("memory", 0.0) + max(0.0, whole - fsum(bounds.values()))
    first = max(found, key=lambda one: one.seconds)
    most = max(bounds, key=lambda bound: bounds[bound])
    return (
        f"{bounds[most] / whole:.1%} of that goes to {_GOES_TO[most]}, {first.seconds / whole:.1%} "
        f"to {first.name}"
    )


_GOES_TO = {
    "compute": "computing",
    "memory": "reading and writing memory",
    "overhead": "starting ops",
}


# --- what to do next ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    left: float
    """What is left of what there is, 1 where nothing is gained."""
    sentence: str
    command: str


def _step(
    found: Compared, number: int, best: int, fits: Sequence[bool], times: Mapping[str, DeviceTime]
) -> _Step:
    """The step that leaves least of those that could be counted here; else where to look."""
    split, setting = found.partitions[number], found.setting
    steps = [*_by_policy(found, number, best), *_by_batch(split, times)]
    if min((step.left for step in steps), default=WORTH) > _least_by_wire(split):
        steps += _by_wire(split, setting, found.names[number])
    least = min(steps, key=lambda step: step.left, default=None)
    if least is not None and least.left <= WORTH:
        return least
    return _look(found, number, fits)


def trace_command(meta: TraceMeta) -> str:
    """The command that traces a model as it was traced."""
    words = [
        f"--batch {meta.batch}",
        f"--past {meta.past}" if meta.phase == "decode" else f"--seq {meta.seq}",
        *([f"--phase {meta.phase}"] if meta.phase != "prefill" else []),
        *([f"--dtype {meta.dtype}"] if meta.dtype != "float32" else []),
        *([f"--logits {meta.logits}"] if meta.logits != "last" else []),
        *([f"--attn {meta.attn}"] if meta.attn in ("sdpa",) else []),
        *(f"--set {key}={value}" for key, value in meta.overrides),
    ]
    return f"cutedge trace {meta.model} {' '.join(words)}"


def command_on(setting: Setting, verb: str, *words: str) -> str:
    """A command on the machine and with the options of a setting."""
    told = [
        *words,
        *machine_words(setting.machine),
        *([f"--residency {setting.residency}"] if setting.residency != "run" else []),
        *([f"--granularity {setting.granularity}"] if setting.granularity != "op" else []),
    ]
    if setting.scheduling is not None:
        told.append(f"--schedule {setting.scheduling.schedule}")
        if setting.scheduling.requests > 1:
            told.append(f"--requests {setting.scheduling.requests}")
    return f"cutedge {verb} {' '.join(told)}"


def _by_policy(found: Compared, number: int, best: int) -> list[_Step]:
    """The best allowed policy that was compared, where that is another one."""
    if best == number:
        return []
    split, other = found.partitions[number], found.partitions[best]
    now, then = seconds_of(split), seconds_of(other)
    if now is not None and then is not None:
        least = "at least " * bool(other.left_out)
        said = f"a run takes {least}{duration(then)} instead of {duration(now)}"
        left = then / now if now else 1.0
    else:
        there, here = (one.traffic.totals.payload_bytes for one in (other, split))
        said = f"{human(there)} cross instead of {human(here)}"
        left = there / here if here else 1.0
    fewer = set(seen_of(split)) - set(seen_of(other))
    shows = f"it hides {_words_of(fewer)} too" if fewer else "it shows no more"
    name = found.names[best]
    return [
        _Step(
            left,
            f"take {other.policy}: {said}, and {shows}",
            command_on(found.setting, "partition", f"--policy {name}"),
        )
    ]


def _words_of(sorts: Collection[What]) -> str:
    return ", ".join(what.words for what in What if what in sorts)


def _least_by_wire(split: Split) -> float:
    """What is left at the least where floats cross in half of their bytes, before a recount."""
    run = split.run
    return 0.5 if run is None or not run.seconds else 1 - run.link_seconds / run.seconds / 2


def _by_wire(split: Split, setting: Setting, name: str) -> list[_Step]:
    """Floats in two bytes on the wire, where they cross in more: the same placement recounted."""
    wide = {t.wire_dtype for t in split.traffic.transfers} & {"float32"}
    if not wide or isinstance(split.graph, MaskedGraph) or split.schedule is not None:
        return []
    narrow = replace(split.wire_format, dtype="bfloat16")
    after = setting.account(split.graph, split.placement, narrow).totals
    before, run = split.traffic.totals, split.run
    machine = replace(setting.machine, wire_dtype="bfloat16")
    command = command_on(replace(setting, machine=machine), "partition", f"--policy {name}")
    if run is None or after.seconds is None:
        left = after.payload_bytes / before.payload_bytes
        said = f"{human(after.payload_bytes)} cross instead of {human(before.payload_bytes)}"
    else:
        then = run.home_seconds + run.accelerator_seconds + after.seconds
        left = then / run.seconds
        least = "at least " * bool(split.left_out)
        said = f"a run takes {least}{duration(then)} instead of {duration(run.seconds)}"
    return [_Step(left, f"send floats as bfloat16, which rounds them: {said}", command)]


MOST_AT_ONCE = 64
"""Requests that are tried at one time."""


def _by_batch(split: Split, times: Mapping[str, DeviceTime]) -> list[_Step]:
    """More requests at one time on arrays that pad: the cycles of their products for each."""
    if split.chips is None or split.chips.cycle_shares.padding < 0.5:
        return []
    placed = [
        (op.kind, op.cost.gemm, array)
        for op, device in zip(split.graph.ops, split.placement.devices, strict=True)
        if device is not None and device in times and device != split.placement.home
        if op.cost.gemm is not None
        if (array := times[device].device.array) is not None
    ]

    def cycles(times_as_many: int) -> int:
        total = 0
        for kind, gemm, array in placed:
            rows = times_as_many if kind is Kind.LINEAR else 1
            batch = gemm.batch * (1 if kind is Kind.LINEAR else times_as_many)
            cost = gemm_cost(
                array, gemm.m * rows, gemm.k, gemm.n, batch=batch, options=split.options
            )
            total += cost.cycles
        return total

    one = cycles(1)
    powers = [2**power for power in range(1, MOST_AT_ONCE.bit_length())]
    shares_of = {many: cycles(many) / (many * one) for many in powers}
    least = min(shares_of.values())
    many = next(n for n, share in shares_of.items() if share <= least * 1.02)
    meta, chip = split.graph.meta, " and ".join(split.placement.accelerators)
    return [
        _Step(
            shares_of[many],
            f"take a batch {many} times as large: it takes {many * shares_of[many]:.3g} times the "
            f"cycles of {chip}, {shares_of[many]:.1%} of them for each token",
            trace_command(replace(meta, batch=many * meta.batch)),
        )
    ]


def _look(found: Compared, number: int, fits: Sequence[bool]) -> _Step:
    """Where to look, as no step tried here is worth it."""
    split, setting = found.partitions[number], found.setting
    run, timed = split.run, seconds_of(split) is not None
    others = {
        n: value
        for n, one in enumerate(found.partitions)
        if fits[n] and (value := seconds_of(one)) is not None
    }
    now = seconds_of(split)
    if now and others and others[fastest := min(others, key=lambda n: others[n])] <= WORTH * now:
        more = set(seen_of(found.partitions[fastest])) - set(seen_of(split))
        return _Step(
            1.0,
            f"nothing compared is faster and shows no more; {found.partitions[fastest].policy} takes "
            f"{duration(others[fastest])} and shows {_words_of(more)} too",
            command_on(setting, "partition", f"--policy {found.names[fastest]}"),
        )
    if run is None or not timed or not run.seconds:
        return _Step(
            1.0,
            "name devices and a link that have figures, and seconds are told too",
            "cutedge compare --machine tee-tdx+h100-cc@pcie5-x16-cc",
        )
    taken = {name: split.compute_seconds[name] for name in split.used}
    device = max(taken, key=lambda name: taken[name])
    part, what = taken[device], device
    command = f"cutedge cost --device {_kind(setting, device)}"
    if run.link_seconds > part:
        part, what, command = run.link_seconds, split.link, "cutedge links"
    return _Step(
        1.0,
        "nothing compared is much faster and shows no more; a run with "
        f"{what} twice as fast would take {duration(run.seconds - part / 2)} instead of "
        f"{duration(run.seconds)}",
        command,
    )


def _kind(setting: Setting, device: str) -> str:
    described = setting.machine.described.get(device)
    if described is None:
        return device
    return quote(setting.machine.files.get(("device", described.name), described.name))
