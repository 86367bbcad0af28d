"""What command line, reports and notebooks say in one way of figures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import fsum
from typing import TYPE_CHECKING

from costmodels.experts import active_parameters, assumptions, mixed
from costmodels.flops import FlopTotals, numbered, total_flops, without_sizes
from cutedge._chip_words import limit_claim
from partition import seen as sorts
from partition.ladder import Exposure
from partition.masks import MaskedGraph, without_masks_placed
from partition.policy import Policy
from partition.protects import unhidden
from partition.run import Run
from partition.schemes import MANTISSA_BITS, pad_bits
from partition.setting import Setting
from partition.split import Split
from partition.wire_format import PLAIN
from tracer.graph import Kind, OpGraph
from tracer.kinds import base_name
from tracer.summary import (
    cached_state,
    count_ops,
    growth,
    modules_not_run,
    parameter_bytes,
    tensor_names,
)
from tracer.words import counted, covered, duration, human, joules, mib

if TYPE_CHECKING:
    from cutedge._carried import BesideOptimum
    from cutedge._cost import Cost, Parameters
    from cutedge._generate import Generation
    from cutedge._partition import Partition
    from partition.crossover import Crossover, Point
    from partition.explain import Bottleneck
    from partition.layers import TopologicalCut
    from partition.schedule import Schedule


def coverage(graph: OpGraph) -> str:
    """How much of a graph the totals are of."""
    flops = total_flops(graph)
    return (
        f"coverage: bytes are exact for all {counted(len(graph.ops), 'op')}; FLOPs are "
        f"{known(flops)} of those that work{unknown(flops)}"
    )


def known(flops: FlopTotals) -> str:
    """Of how many ops the FLOPs are known."""
    return f"known for {covered(flops.coverage)}"


def unknown(flops: FlopTotals) -> str:
    """What no total of FLOPs includes."""
    return f"; not for {numbered(flops.unsupported)}" if flops.unsupported else ""


def no_figures(partition: Split) -> str | None:
    """On which devices of a placement the seconds of ops are not known; None where all are."""
    where = partition.placement
    bare = [d for d in (where.home, *where.accelerators) if d not in partition.compute_seconds]
    if not bare:
        return None
    return (
        f"no figures for all that runs on {' and '.join(bare)}: its seconds are not known "
        "(cutedge devices lists devices with figures)"
    )


def bottleneck_sentence(found: "Bottleneck | None", split: Split | None = None) -> str:
    """The bottleneck and what would relieve it, in one sentence.

    With a ``split`` on arrays of multipliers, what limits its run, and the traffic's below it.
    """
    limit = None if split is None else limit_claim(split)
    if found is None:
        return "Nothing crosses between devices."
    if limit is not None:
        return f"Bottleneck: {limit}.\nTraffic: {bottleneck_claim(found, 'it')}; {relief_claim(found)}."
    return f"Bottleneck: {bottleneck_claim(found)}; {relief_claim(found)}."


def bottleneck_claim(found: "Bottleneck", of: str = "the traffic") -> str:
    """What makes most ``of`` the traffic."""
    size = {"constant": "of constant size", "not known": "growth not known"}.get(
        growth(found.example), f"growing with {growth(found.example)}"
    )
    return (
        f"{found.share:.1%} of {of} is {found.name} "
        f"({counted(found.transfers, 'transfer')}, {size})"
    )


def relief_claim(found: "Bottleneck", size: Callable[[int], str] = mib) -> str:
    """What would relieve a bottleneck."""
    relief = found.relief
    if relief is None:
        return "no step tried here relieves it"
    saved = size(relief.saved_bytes) + (" of other tensors" if relief.elsewhere else "")
    if relief.saved_calls > 0:
        saved += f" and {counted(relief.saved_calls, 'call')}"
    elif relief.saved_calls < 0:
        saved += f" for {counted(-relief.saved_calls, 'more call')}"
    if relief.wire_dtype:
        return f"sending floats as {relief.wire_dtype} (--wire-dtype) would save {saved}"
    how = f" (--policy {relief.policy})" if relief.policy else ""
    ops = ", ".join(relief.moved_ops)
    return f"running {ops} on {relief.device} too{how} would save {saved}"


def beside_sentences(found: "BesideOptimum | str | None") -> Iterator[str]:
    """How far an executor's placement is from the best, what it loses most by, what is better."""
    if found is None or isinstance(found, str):
        yield from [found] if found else []
        return
    unit = found.unit

    def told(amount: float) -> str:
        return mib(round(amount)) if unit == "bytes" else duration(amount)

    best = f"the {'optimum' if found.proven else 'best found'} in {found.unit}"
    way = f"{found.policy}, by {found.granularity}"
    if not found.commands:
        yield f"{told(found.value)}: no more than {best} ({way})"
        return
    yield (
        f"{told(found.value)} where {best} is {told(found.optimum)} ({way}): "
        f"{told(found.value - found.optimum)} more"
    )
    for choice in found.choices:
        kinds, _, made = choice.ops.partition(": ")
        alike = [
            ", ".join(one.split(", ")[:3]) + ", ..." * (one.count(", ") > 2)
            for one in (kinds, made)
        ]
        yield (
            f"dearest: {told(choice.saved)} less with {counted(choice.count, 'op')} on "
            f"{choice.device} ({': '.join(alike)})"
        )
    for command in found.commands:
        yield f"better: {command}"


def split_sentences(made: "Partition") -> Iterator[str]:
    """What there is to say of a split model: chunks, time, proof, memory, what is seen."""
    split = made.split
    placement, traffic = split.placement, split.traffic
    used = split.links and split.links.among(placement.home, placement.accelerators)
    for link in dict.fromkeys((used or {}).values()):
        if link.chunk_bytes is not None:
            yield (
                f"sent in chunks of {human(link.chunk_bytes)} at most: "
                f"the peak buffer is {human(traffic.peak_buffer_bytes)}"
            )
    yield from packed_sentences(split)
    yield from masked_sentences(split)
    if traffic.total_expr is not None:
        yield f"total payload bytes = {traffic.total_expr}"
    yield from run_sentences(split)
    yield from energy_sentences(split)
    if split.schedule is not None:
        yield from schedule_sentences(split.schedule)
    if bare := no_figures(split):
        yield bare
    yield from proof_sentences(split, made.topological_cut)
    yield from beside_sentences(made.beside_optimum)
    if split.sent_weight_bytes:
        yield (
            f"{human(split.sent_weight_bytes)} of weights lie at {placement.home} and are sent in "
            "each run"
        )
    for device, size in traffic.resident_bytes.items():
        yield f"resident on {device}: {human(size)} of parameters and constants"
    for one in split.exposed:
        yield from seen_sentences(one)
    for device, found in made.derived.items():
        yield from derived_sentences(split.graph, device, found)
    yield coverage(split.graph)


def packed_sentences(split: Split) -> Iterator[str]:
    """What of a split crosses packed, by packing; and what of the bytes is no count."""
    for name in dict.fromkeys(t.packing for t in split.traffic.transfers if t.packing != PLAIN):
        there = [t for t in split.traffic.transfers if t.packing == name]
        payload, plain = (
            sum(getattr(t, f"{of}_bytes") for t in there) for of in ("payload", "plain")
        )
        taken = [t.packing_seconds for t in there]
        known = [seconds for seconds in taken if seconds is not None]
        took = (
            f", packed and unpacked in {duration(fsum(known))}" if len(known) == len(taken) else ""
        )
        about = " (an estimate, by a ratio)" if there[0].payload_status == "estimate" else ""
        yield (
            f"{counted(len(there), 'transfer')} packed by {name}: {human(plain)} cross as "
            f"{human(payload)}{about}{took}"
        )
    yield from estimates([split])


def masked_sentences(split: Split) -> Iterator[str]:
    """What of a split crosses masked, by scheme, what that costs, and what it does not hide."""
    graph = split.graph
    if not isinstance(graph, MaskedGraph):
        return
    crossed = [t for t in split.traffic.transfers if t.tensor.id in graph.masks]
    for scheme in dict.fromkeys(graph.masks[t.tensor.id].protection.scheme for t in crossed):
        under = [t for t in crossed if graph.masks[t.tensor.id].protection.scheme == scheme]
        plain = sum(split.unmasked_bytes(t.tensor.id) for t in under)
        yield (
            f"{counted(len(under), 'transfer')} masked by {scheme}: {human(plain)} cross as "
            f"{human(sum(t.payload_bytes for t in under))}"
        )
    costs = split.mask_costs
    taken = [seconds for seconds in split.mask_seconds.values() if seconds is not None]
    whole = f" in {duration(fsum(taken))}" if taken and len(taken) == len(graph.parts) else ""
    yield (
        f"masks at {split.placement.home}: {costs['home_mask_flops']:,} FLOPs{whole}; before the run "
        f"{costs['offline_flops']:,} FLOPs and {human(costs['pad_bytes'])} of pads, each used once"
    )
    scales = {
        (one.protection.scale, split.wire_dtype or graph.tensors[one.plain].dtype)
        for one in graph.masks.values()
        if one.protection.scheme == "one-time-pad"
    }
    for scale, dtype in sorted(scales):
        if dtype in MANTISSA_BITS:
            bits = pad_bits(dtype, scale)
            yield (
                f"float pads {scale:g} times as wide as what they hide tell "
                f"{bits.leaked_bits:.4f} bits of each value, and leave {bits.left_bits:.1f} of the "
                f"{MANTISSA_BITS[dtype]} significant bits of {dtype}"
            )
    yield from attack_sentences(graph)


def attack_sentences(graph: OpGraph) -> Iterator[str]:
    """What masks do not hide."""
    masks = graph.masks.values() if isinstance(graph, MaskedGraph) else ()
    attacks = {one.attack: one for one in masks if one.attack}
    for attack, one in attacks.items():
        name = graph.tensors[one.plain].label or graph.tensors[one.plain].name
        yield f"not hidden by {one.protection.scheme}: {name}: {attack}"


def bare_sentences(graph: OpGraph, policy: Policy, split: Split) -> Iterator[str]:
    """Which protected ops are away as they are, since their scheme hides nothing there."""
    where = without_masks_placed(split.graph, split.placement)
    bare: dict[str, int] = {}
    for op, how in unhidden(graph, policy.protects).items():
        if where.devices[op] != where.home:
            bare[how.scheme] = bare.get(how.scheme, 0) + 1
    for scheme, count in bare.items():
        yield (
            f"{scheme} hides nothing of a single row: {counted(count, 'op')} that it names "
            f"{'is' if count == 1 else 'are'} away unmasked"
        )


def estimates(splits: Sequence[Split]) -> Iterator[str]:
    """Whose bytes and seconds are no counts, in a line."""
    named = [one.policy for one in splits if one.traffic.totals.estimated_payload_bytes]
    if named:
        of = f" of {', '.join(named)}" if len(splits) > 1 else ""
        yield (
            f"an estimate: payload, bytes on the wire and transfer time{of}, where a ratio stands in "
            "for what is packed"
        )


def how_placed(split: Split) -> str:
    """Where parameters lie and what ops lie together, as it follows the residency; else empty."""
    at_home = ", weights at home" if split.weights_at == "home" else ""
    return at_home + (f", by {split.granularity}" if split.granularity != "op" else "")


def cycles(split: Split) -> str:
    """Of all its arrays of multipliers together."""
    known = [each for each in split.cycles.values() if each is not None]
    return f"{sum(known):,}" if len(known) == len(split.cycles) else "not known"


def no_less(seconds: float, at_least: object) -> str:
    """Seconds that may leave something out, in a table."""
    return f"{'>= ' * bool(at_least)}{duration(seconds)}"


def energy_words(energy: float | None, at_least: object) -> str:
    """Joules that may leave something out, in a table."""
    return "not known" if energy is None else f"{'>= ' * bool(at_least)}{joules(energy)}"


def energy_columns(partitions: "Sequence[Split]") -> dict[str, Sequence[str]]:
    """What a token takes in time and in energy, where the energy of one policy is known."""
    told = [p.energy_figures for p in partitions]
    if all(one["run_joules"] is None for one in told):
        return {}
    seconds = [None if p.run is None else p.run.seconds_per_token for p in partitions]
    return {
        "a token>8": [
            "not known" if one is None else no_less(one, p.left_out)
            for one, p in zip(seconds, partitions, strict=True)
        ],
        "energy a token>8": [
            energy_words(one["joules_per_token"], one["energy_at_least"]) for one in told
        ],
    }


def left_out(found: "Iterable[Split | Cost | Point]") -> Iterable[str]:
    """What seconds leave out, in a line; nothing where that is nothing."""
    if what := dict.fromkeys(what for one in found for what in one.left_out):
        yield f"not known, and left out of the seconds: {', '.join(what)}"


def energy_sentences(split: Split) -> Iterable[str]:
    """What the run takes in energy, where that is known of all that computes."""
    found, energy = split.energy_figures, split.energy
    if energy is None or energy.run_joules is None:
        return
    least = "at least " * energy.at_least
    accelerators = " and ".join(split.placement.accelerators)
    parts = {
        split.placement.home: energy.home_joules,
        accelerators: energy.accelerator_joules if accelerators else None,
        split.link: energy.link_joules,
        "idle": energy.idle_joules,
    }
    each = [f"{name} {joules(value)}" for name, value in parts.items() if value is not None]
    yield (
        f"energy: {least}{joules(energy.run_joules)} = {' + '.join(each)}; "
        f"{least}{joules(found['joules_per_token'])} a token"
    )


def run_sentences(split: Split) -> Iterable[str]:
    """What the run takes and on what, where the devices or the link are known."""
    parts = dict(split.compute_seconds)
    run, moving = split.run, split.traffic.totals.seconds
    least, most = ("at least ", "at most ") if split.left_out else ("", "")
    if parts and moving is not None:
        parts[split.link] = moving
    each = [f"{name} {duration(seconds)}" for name, seconds in parts.items()]
    if run is not None and run.seconds:
        shares = [seconds / run.seconds for seconds in parts.values()]
        each = [f"{one} ({share:.2%})" for one, share in zip(each, shares, strict=True)]
        yield f"run: {least}{duration(run.seconds)} = {' + '.join(each)}, one after another"
        yield (
            f"{least}{duration(run.seconds_per_token)} a token, {most}{speed(run)} tokens a second"
        )
    elif parts:
        yield f"computing: {least}{', '.join(each)}"
    yield from left_out([split] if parts else [])
    for name, cycles in split.cycles.items():
        faster = f" ({split.options.text})" if split.options.text else ""
        if cycles is None:
            placed = zip(split.graph.ops, split.placement.devices, strict=True)
            lacking = without_sizes(op for op, device in placed if device == name)
            yield f"{name}: cycles not known, for want of those of {numbered(lacking)}"
        else:
            yield f"{name}: {cycles:,} cycles{faster}"
    if run is not None and run.link_bound_chips is not None:
        yield (
            f"from {counted(run.link_bound_chips, 'chip')} on, {split.link}, which they "
            "share, takes longer than they compute; with ever more of them the run takes "
            f"{least}{duration(run.many_chips_seconds or 0.0)}"
        )
    elif run is not None and run.many_chips_seconds is not None:
        yield (
            f"with ever more chips the run takes {least}{duration(run.many_chips_seconds)}: one tile "
            f"of each product takes longer than {split.link}"
        )


def crossover_sentences(
    variable: str, points: "Sequence[Point]", changes: "Sequence[Crossover]"
) -> Iterator[str]:
    """From which size to which a policy is the best."""
    best = [(points[0].size, points[0].best), *((c.size, c.after) for c in changes)]
    ends = [size - 1 for size, _ in best[1:]] + [points[-1].size]
    for (size, name), end in zip(best, ends, strict=True):
        yield f"from {variable} {size:,} to {end:,}: {name} is best"


def schedule_sentences(found: "Schedule") -> Iterator[str]:
    """How long a run takes as it was laid out, what bounds that, and which resource limits it."""
    least = "at least " if found.at_least else ""
    whole, serial = found.makespan_seconds, found.serial_seconds
    several = f"{found.requests} requests, " if found.requests > 1 else ""
    yield (
        f"schedule {found.schedule}: {several}{least}{duration(whole)}; one after another "
        f"{least}{duration(serial)}; no schedule takes less than {duration(found.bound_seconds)} "
        "(bound)"
    )
    if found.limited_by is not None and found.requests_per_second and whole:
        most = found.most_requests_per_second or 0.0
        yield (
            f"{'at most ' if found.at_least else ''}{found.requests_per_second:,.4g} requests a "
            f"second; {found.limited_by} is the busiest ({found.idle_shares[found.limited_by]:.1%} "
            f"idle) and lets at most {most:,.4g} through"
        )
    first = [slot.task for slot in found.slots if slot.request == 0 and slot.task.seconds is None]
    moving = sum(task.op is None for task in first)
    if first:
        computing = counted(len(first) - moving, "op")
        yield (
            "not known, and left out of the schedule: the seconds of "
            f"{computing} and {counted(moving, 'transfer')}"
        )


def schedule_columns(splits: Sequence[Split]) -> dict[str, list[str]]:
    """Heading -> what policies side by side take as they were laid out; nothing where not asked."""
    found = [split.schedule for split in splits if split.schedule is not None]
    if len(found) < len(splits) or not found:
        return {}
    several = f", {found[0].requests} requests" if found[0].requests > 1 else ""
    return {
        f"{found[0].schedule}{several}>2": [
            no_less(one.makespan_seconds, one.at_least) for one in found
        ],
        "bound>4": [duration(one.bound_seconds) for one in found],
        "limited by<5": [one.limited_by or "" for one in found],
    }


def speed(run: Run, *, at_most: object = False) -> str:
    """Tokens a second, of a run that takes time, to four digits or to one."""
    if at_most:
        return f"<= {speed(run)}"
    rate = 1 / run.seconds_per_token
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def amount(value: int, unit: str | None) -> str:
    """A solution's objective or bound."""
    if unit == "ns":
        return duration(value / 1e9)
    if unit == "nJ":
        return joules(value / 1e9)
    return f"{value:,} bytes ({mib(value)})" if unit == "bytes" else f"{value:,} (weighted)"


def proof_sentences(split: Split, beside: "TopologicalCut | None") -> Iterable[str]:
    """How good a placement is that was searched for."""
    solution = split.solution
    if solution is None or solution.objective is None:
        return
    found = f"{amount(solution.objective, split.unit)} by {SOLVERS[solution.solver]}"
    what = "cut between two layers" if solution.cut else "placement"
    of = split.objective or ""
    energy = split.energy
    if (split.left_out and "seconds" in of) or ("energy" in of and energy and energy.at_least):
        of += ", as far as these are known"
    if solution.proven:
        yield f"optimal for {of}: {found}; no {what} that is allowed has less"
    else:
        yield (
            f"best found for {of}: {found}; the optimum is not below "
            f"{amount(solution.bound, split.unit)} (gap {solution.gap or 0:.2%})"
        )
    yield from granularity_sentences(split)
    if beside is not None:
        where = ", ".join(beside.after[:_NAMED]) or "the inputs"
        more = f" and {len(beside.after) - _NAMED} more" if len(beside.after) > _NAMED else ""
        yield (
            f"the cut is {solution.cut}; the best one of the op graph, at any op, is "
            f"{amount(beside.objective_value, split.unit)}, after {where}{more}"
        )


def granularity_sentences(split: Split) -> Iterable[str]:
    """What it costs that some ops lie on one device together."""
    if split.granularity == "op" or split.solution is None:
        return
    by = "one call to each accelerator" if split.granularity == "convex" else split.granularity
    if split.by_op is None or split.granularity_price is None:
        yield f"placed by {by}: what is best op by op was not found in time"
        return
    price, most = split.granularity_price, split.solution.objective - split.by_op.bound
    more = f"{amount(price, split.unit)} more than" if price else "no more than"
    if split.solution.proven and split.by_op.proven:
        yield f"placed by {by}: {more} op by op (proven)"
    else:
        yield (
            f"placed by {by}: {more} the best found op by op, and at most {amount(most, split.unit)} "
            "more than the best"
        )


def granularity_prices(splits: Sequence[Split]) -> list[str]:
    """The same of each of several, which it names."""
    return [f"{one.policy} is {line}" for one in splits for line in granularity_sentences(one)]


_NAMED = 4
"""Tensors that a sentence names."""


SOLVERS = {
    "cut": "minimum cut",
    "networkx": "minimum cut",
    "program": "mixed-integer program",
    "layers": "trying every cut",
    "candidates": "comparing policies",
}
"""What solvers are called."""


def seen_sentences(one: Exposure) -> Iterable[str]:
    """What an accelerator sees, in words; how many bytes of it is a detail."""
    yield f"{one.device} sees {one.words}"
    yield (
        f"{one.device} is sent {human(one.sent_bytes)}, computes {human(one.made_bytes)} and holds "
        f"{human(one.parameter_bytes)} of parameters, in plain"
        + (f", and {human(one.masked_bytes)} under masks" if one.masked_bytes else "")
    )
    seen = sorts.known(one.seen)
    if sorts.What.EMBEDDINGS in seen:
        yield f"{one.device}: who has the table of the embeddings has the tokens; it may be public"
    if sorts.What.LOGITS in seen:
        yield f"{one.device}: the logits tell the next token"


def sees(exposed: Sequence[Exposure]) -> str:
    """The sorts of tensor that devices see or can work out, in a cell of a table."""
    found = sorts.known(sort for one in exposed for sort in one.seen)
    return ", ".join(what.words for what in found) or "nothing"


_TOLD = 6
"""So many groups of derived tensors are told of a device."""


def derived_sentences(graph: OpGraph, device: str, found: Sequence[sorts.Derived]) -> Iterable[str]:
    """What arithmetic makes of secrets on a device, the nearest first, alike ones together."""
    names = tensor_names(graph)
    groups: dict[tuple[str, tuple[str, ...], bool, bool], int] = {}
    for one in found:
        ops = tuple(base_name(graph.ops[op].target) for op in one.ops)
        key = names[one.tensor.id], ops, one.linear, one.recoverable
        groups[key] = groups.get(key, 0) + 1
    for (name, ops, linear, back), count in [*groups.items()][:_TOLD]:
        through = ", ".join(ops[:_NAMED]) + (" ..." if len(ops) > _NAMED else "")
        how = f"{counted(len(ops), 'op')} away ({through}){', linear' if linear else ''}"
        undone = ", and can be undone with what is there" if back else ""
        yield f"{device} gets {count} x {name} of what is secret: {how}{undone}"
    if len(groups) > _TOLD:
        yield f"{device} gets {len(groups) - _TOLD} more sorts of what is made of secrets"
    if not found:
        yield f"{device} gets nothing that is made of what is secret"


def trace_lines(graph: OpGraph, flops: FlopTotals) -> list[tuple[str, str]]:
    """What there is to say of a traced model, each with the word that it stands under."""
    meta = graph.meta
    kinds = count_ops(graph)
    views, constants = kinds.pop(Kind.VIEW, 0), kinds.pop(Kind.CONSTANT, 0)
    sorts = [*kinds.items(), (Kind.VIEW, views), (Kind.CONSTANT, constants)]
    said = [("ops", f"{len(graph.ops):,}: {', '.join(f'{n} {kind.value}' for kind, n in sorts)}")]
    size = human(parameter_bytes(graph))
    said.append(("parameters", f"{meta.parameters:,} ({size} in {meta.weights or meta.dtype})"))
    said += [("", line) for line in not_run(graph)]
    assumed = assumptions(graph)
    if assumed or flops.routed is not None:
        active = active_parameters(graph)
        share = active / max(meta.parameters, 1)
        said.append(("", f"{active:,} active for one token ({share:.1%})"))
        said += [("" if n else "assumed", text) for n, text in enumerate(assumed)]
    missing = numbered(flops.products_missing)
    which = f", those of {missing} not known" if missing else f", {flops.products_status}"
    said.append(("FLOPs", f"{flops.products:,} in matrix products{which}"))
    if flops.products_expr:
        said.append(("", f"= {flops.products_expr}"))
    if flops.causal is not None and flops.causal != flops.products:
        causal = f"{flops.causal:,} of them where attention skips what its mask hides"
        said.append(("", causal))
        if flops.causal_expr:
            said.append(("", f"= {flops.causal_expr}"))
    if flops.routed is not None:
        said += [("", line) for line in _if_routed(graph, flops)]
    said.append(("", f"{flops.other:,} in all other ops (estimates among them)"))
    before, after = cached_state(graph)
    said.append(("", f"{known(flops)} of the ops that work{unknown(flops)}"))
    for what, (bytes_, formula) in (("is read", before), ("afterwards", after)):
        if bytes_:
            closed = f" = {formula}" if formula else ""
            said.append(("cache", f"{human(bytes_)} {what}{closed}"))
    return said


def _if_routed(graph: OpGraph, flops: FlopTotals) -> Iterator[str]:
    """What a model that runs all experts on every token would take with kernels that route."""
    ways = sorted({(one.chosen, one.experts) for one in mixed(graph).values()})
    each = " and ".join(f"{chosen} of {experts}" for chosen, experts in ways)
    yield f"{flops.routed:,} of them with kernels that route: {each} experts are a token's own,"
    yield "    and this code runs them all on every token"
    if flops.routed_expr:
        yield f"= {flops.routed_expr}"


def not_run(graph: OpGraph) -> list[str]:
    """Which modules of a model a trace does not run, in a line; nothing where all are run."""
    idle = modules_not_run(graph)
    if not idle:
        return []
    some = [f"{path} ({size:,})" for path, size in list(idle.items())[:3]]
    more = [f"{len(idle) - 3} more"] if len(idle) > 3 else []
    return [f"{sum(idle.values()):,} of them are not run: {', '.join(some + more)}"]


def policy_sort(policy: Policy) -> str:
    """What sort of policy one is, in words."""
    if policy.secrets:
        return "with secrets: no accelerator that is not trusted sees them"
    return (
        "searched: the best placement that the rules allow"
        if policy.objective
        else "fixed: rules alone say where an op runs"
    )


def cost_sentences(cost: "Cost") -> Iterator[str]:
    """What a graph takes on a device, in sentences."""
    time, whole = cost.time, cost.total_share
    device, need = time.device, cost.need
    spent = "".join(
        f", {value / time.seconds:.1%} bound by {bound}"
        for share in ([whole] if whole else [])
        for bound, value in sorted(share.seconds_by_bound.items(), key=lambda item: -item[1])
        if value
    )
    which = "all ops" if not time.missing else "the ops that run here"
    engine = time.engine
    if engine.name or engine.execution != "eager":
        by = f"{engine.name} ({engine.description})" if engine.name else "the physical bound"
        yield f"{by}; {engine.execution}: {EXECUTIONS[engine.execution]}"
    how = "launches and work at once" if engine.runs_ahead else "one after another"
    so_many = "at least " if cost.left_out else ""
    yield f"{so_many}{duration(time.seconds)} for {which}, {how}{spent}"
    yield from left_out([cost])
    energy = cost.joules
    if energy.value is not None:
        watts = f", {energy.value / time.seconds:.4g} W on average" if time.seconds else ""
        yield f"energy: {'at least ' * energy.at_least}{joules(energy.value)}{watts}"
    if (least := cost.least_seconds) is not None:
        yield (
            f"no program with these results takes less than {duration(least)} here: "
            f"{human(cost.compulsory_bytes)} must be read or written once, however ops are fused"
        )
    if padded := time.on_array("padded_macs"):
        useful = (time.on_array("useful_macs") or 0) / padded
        lower = "at least " if cost.without_sizes else ""
        yield (
            f"{lower}{time.on_array('cycles'):,} cycles in {time.on_array('tiles'):,} tiles; "
            f"{useful:.1%} of {padded:,} multiply-accumulates are useful"
        )
        if (buffered := cost.double_buffered_cycles) is not None:
            yield f"double-buffered they would take {buffered:,} cycles"
        link = cost.host_link
        taken = None if link is None else time.link_seconds(link)
        if link is not None and taken is not None:
            sent, received = (time.on_array(f"{way}_bytes") or 0 for way in ("sent", "received"))
            lacking = "at least " if link.at_least("send") or link.at_least("receive") else ""
            yield (
                f"beside that, {link.name} takes {lacking}{duration(taken)} for their operands "
                f"({human(sent)}) and results ({human(received)})"
            )
    fits = {True: "fits", False: "does NOT fit", None: "not known whether it fits"}[cost.fits]
    graph, size = cost.trace.graph, ""
    if graph.meta.weights:
        other = f" ({graph.meta.weights_other})" if graph.meta.weights_other else ""
        yield (
            f"weights: {human(parameter_bytes(graph))} in {graph.meta.weights}{other}; they are "
            "turned into the compute dtype while they are read"
        )
    if device.memory_bytes is not None:
        size = f" in {human(device.memory_bytes)}"
    yield (
        f"memory: {human(need.resident_bytes)} resident, {human(need.live_activation_bytes)} of "
        f"activations where each is freed once read, {human(need.peak_activation_bytes)} at most: "
        f"{fits}{size}"
    )
    if time.paged_share:
        beyond = "SRAM" if device.npu else "secure memory"
        moves = "comes from the DRAM" if device.npu else "is paged"
        yield (
            f"{time.paged_share:.1%} of that is beyond the {beyond} of "
            f"{human(device.fast_bytes or 0)} and {moves} (an estimate)"
        )
    if refused := cost.refused:
        yield f"{device.name} does not run {numbered(refused)}: at home in a split"
    yield (
        f"coverage: seconds are known for {covered(time.coverage)} of the ops that work"
        + (f"; not for {numbered(time.missing)}" if time.missing else "")
    )


EXECUTIONS = {
    "eager": "each op of the program started by the host, which runs ahead",
    "graph": "each op of the program, replayed",
    "fused": "kernels of several ops, which move what good kernels move",
}
"""What the ways to carry ops out are, in words."""


def devices_of(setting: Setting) -> str:
    """Home and what it calls."""
    return f"{setting.machine.home} as home, {' and '.join(setting.machine.accelerators)} called"


def within_words(seconds: float | None) -> str:
    """The head of a column of verdicts."""
    return "" if seconds is None else f"within {duration(seconds)} a token"


def verdict(split: Split, within: float) -> str:
    """Whether a run is usable, as it was laid out or one after another."""
    if split.run is None:
        return "not known"
    ratio = split.too_slow(within)
    if ratio is None:
        return "at best usable" if split.left_out else "usable"
    return f"{'>= ' * bool(split.left_out)}{ratio:,.3g} x too slow"


def best_for(split: Split) -> str:
    """What a placement was searched for, and how sure it is."""
    solution = split.solution
    if solution is None:
        return ""
    proof = "proven" if solution.proven else f"gap {solution.gap or 0:.2%}"
    return f"{split.objective} ({proof})"


def parameter_sentences(params: "Parameters") -> Iterator[str]:
    """What there is to say of where a model's parameters are."""
    graph, found = params.graph, params.found
    total, active, idle = graph.meta.parameters, params.active, not_run(graph)
    if assumptions(graph) or mixed(graph):
        yield f"{active:,} are active for one token ({active / max(total, 1):.1%})"
    if found.tied:
        yield f"lm_head reads {found.tied:,} of the embedding's too (tied, counted once)"
    if found.unread and not idle:
        yield f"{found.unread:,} parameters are read by no op of a prefill"
    yield from idle


def masked_generation_sentences(made: "Generation") -> Iterator[str]:
    """What masks cost in all runs of a generation, and what they do not hide."""
    graphs, costs = [split.graph for split in made.splits], made.mask_costs
    if any(isinstance(graph, MaskedGraph) for graph in graphs):
        yield (
            f"masks at {made.prefill.bare.placement.home}: {costs['home_mask_flops']:,} FLOPs; before "
            f"the runs {costs['offline_flops']:,} FLOPs and {human(costs['pad_bytes'])} of pads, each "
            "used once"
        )
    yield from dict.fromkeys(said for graph in graphs for said in attack_sentences(graph))


def generation_sentences(made: "Generation") -> Iterator[str]:
    """What a generation is of; then how fast it is, what is left out, how it is placed."""
    found = made.summary
    by = found["policy"]
    if found["decode_policy"] != by:
        by = f"{by}, then {found['decode_policy']}"
    by += f", packed by {found['pack']}" if found["pack"] else ""
    yield (
        f"{found['model']}: {counted(found['new'], 'token')} after {found['batch']:,} x "
        f"{found['prompt']:,}, {found['dtype']}; {by} on {found['machine']}"
    )
    if found["cached_prompt"]:
        yield f"{found['cached_prompt']:,} tokens of the prompt lie in the cache already"
    if found["draft"] is not None:
        stored = f" with weights in {found['draft_weights']}" if found["draft_weights"] else ""
        yield (
            f"{found['draft']}{stored} proposes {counted(found['draft_tokens'], 'token')} a round, of "
            f"which {found['accept']:.0%} are taken: {found['expected_tokens']:.4g} tokens a round are "
            f"expected, {counted(len(made.steps), 'round')} in all (an estimate)"
        )
    least = "at least " if found["at_least"] else ""
    if found["total_seconds"] is None:
        yield no_figures(made.prefill.bare) or "its seconds are not known"
    else:
        yield f"first token after {least}{duration(found['ttft_seconds'])}"
        if made.steps:
            first, last, mean = (
                duration(found[f"tpot_{which}_seconds"]) for which in ("first", "last", "mean")
            )
            yield f"then {least}{mean} a token: {first} the first, {last} the last"
        rate = "at most " if found["at_least"] else ""
        yield f"{rate}{found['tokens_per_second']:,.4g} tokens a second"
        yield from left_out(made.splits)
    if found["payload_status"] == "estimate":
        yield "an estimate: payload and seconds, where a ratio stands in for what is packed"
    yield f"cache at the end: {human(found['cache_bytes'])}"
    yield from masked_generation_sentences(made)
    if made.anew is not None:
        saved, seconds = made.anew
        more = "" if not seconds else f" and {duration(seconds)}"
        then = f"would save {mib(saved)}{more}" if saved or seconds else "would be no better"
        yield f"placed as the step over {found['placed_at_past']:,}; placed anew, the last {then}"
