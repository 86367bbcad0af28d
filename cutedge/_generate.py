"""A whole generation: a prefill, then steps of decode over a cache that grows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.flops import annotate
from costmodels.links import message_cost
from costmodels.machine import Machine
from cutedge._machines import machine_of
from cutedge._partition import Objective, Partition, asked_of, searching
from cutedge._placing import check_words, partition_of
from cutedge._request import Overrides
from cutedge._trace import Trace, trace
from partition import Residency
from partition.masks import without_masks_placed
from partition.optimise import Placed, place
from partition.policy import Policy
from partition.split import Split
from partition.stored import moved_state
from partition.wire_format import Status
from tracer.errors import InputError
from tracer.formula import parse
from tracer.reach import reached
from tracer.stages import stage
from tracer.summary import cached_state, check_causal

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge.sweeping.parts import SizedGraph


@dataclass(frozen=True, slots=True)
class Step:
    """One step after the prefill: a new token over ``past`` cached ones, in each sequence.

    With a draft model it is a round: the draft's steps, and the pass that checks them.
    """

    past: int
    calls: int
    transfers: int
    total_payload_bytes: int
    run_seconds: float | None
    """Computing and moving, one after another; None where not all of it is known."""
    tokens: float = 1.0
    """New tokens that it makes of each sequence: of a round, how many are expected."""
    payload_status: Status = "exact"
    """Whether the payload is counted, or a ratio stands in for some of it."""
    mask_costs: Mapping[str, int] = field(default_factory=dict, hash=False)
    """What masks cost, by key of ``Generation.summary``; all 0 where there are none."""
    run_joules: float | None = None
    """Its energy (``partition.energy``); None where that of computing is not known."""
    energy_at_least: bool = False
    """Whether that leaves out what is not known."""

    @property
    def token_joules(self) -> float | None:
        """``run_joules`` by its tokens."""
        return None if self.run_joules is None else self.run_joules / self.tokens

    @property
    def token_seconds(self) -> float | None:
        """``run_seconds`` by its tokens."""
        return None if self.run_seconds is None else self.run_seconds / self.tokens


@dataclass(frozen=True, slots=True)
class Draft:
    """A smaller model that proposes tokens, which the model itself checks all at once."""

    prefill: Partition
    """Reading the prompt, which fills the draft's own cache."""
    decode: Partition
    """One token that it proposes."""
    tokens: int
    """How many it proposes a round."""
    accept: float
    """How likely a proposed token is taken, where those before it are."""

    @property
    def expected(self) -> float:
        """Tokens that a round makes: those that are taken up to the first that is not, and one of
        the model's own.

        1 + a + a**2 + ... + a**k = (1 - a**(k+1)) / (1 - a) (Leviathan, Kalman, Matias: Fast
        Inference from Transformers via Speculative Decoding, ICML 2023, equation 1).
        """
        return fsum(self.accept**n for n in range(self.tokens + 1))


@dataclass(frozen=True, slots=True)
class CacheMove:
    """Cached state that decode reads elsewhere than prefill leaves it."""

    name: str
    source: str
    destination: str
    payload_bytes: int
    packing_seconds: float | None = 0.0
    """What packing and unpacking it takes; None where that is not known."""
    payload_status: Status = "exact"
    """Whether the payload is counted, or a ratio stands in for it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt that is read, and the tokens that are made one after another."""

    prefill: Partition
    """Reading the prompt, which makes the first token and fills the cache."""
    decode: Partition
    """One more token over the prompt: what places all steps. With a draft, the pass over its
    tokens and one more."""
    steps: tuple[Step, ...]
    """What makes the tokens after the first, in order."""
    moves: tuple[CacheMove, ...]
    """What of the cache goes to another device before the first step."""
    move_seconds: float | None
    """What that takes; None where it is not known."""
    anew: tuple[int, float | None] | None
    """(bytes, seconds) that the last step would take less if it were placed anew; None for policies
    without an objective, and where one step is all."""
    cache_bytes: int
    """Cached state after the last step."""
    warned: tuple[str, ...]
    """What there is to warn of in the traces, at all of these sizes."""
    draft: Draft | None = None
    move_joules: tuple[float, bool] = (0.0, False)
    """(what that takes in energy, whether it leaves out what is not known)."""

    @property
    def _prefills(self) -> list[Split]:
        """Those of the model and of its draft."""
        return [self.prefill.bare, *([self.draft.prefill.bare] if self.draft else [])]

    @property
    def unknown(self) -> tuple[str, ...]:
        """What is left out of the seconds, in words; with any of it they are at least so many."""
        told = [what for split in self.splits for what in split.left_out]
        if any(move.packing_seconds is None for move in self.moves):
            told.append("what packing the cache that moves takes")
        return tuple(dict.fromkeys(told))

    @property
    def payload_status(self) -> Status:
        """Whether all payload bytes are counted, or a ratio stands in for some."""
        told = {split.traffic.totals.payload_status for split in self._prefills}
        told |= {one.payload_status for one in self.moves}
        told |= {one.payload_status for one in self.steps}
        return "estimate" if "estimate" in told else "exact"

    @property
    def phases(self) -> dict[str, Partition]:
        """By name, those of the model and then of its draft."""
        found = {"prefill": self.prefill, "step": self.decode}
        if self.draft is not None:
            found["prefill of the draft"] = self.draft.prefill
            found["step of the draft"] = self.draft.decode
        return found

    @property
    def splits(self) -> list[Split]:
        """The placement of each of the ``phases``."""
        return [phase.bare for phase in self.phases.values()]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the traces, of the machine, and where a policy does less than it says in a phase."""
        told: dict[str, list[str]] = {}
        for name, phase in self.phases.items():
            for said in phase.warnings:
                told.setdefault(said, []).append(name)
        every = len(self.phases)
        said_of = (
            said if len(names) == every else f"{' and '.join(names)}: {said}"
            for said, names in told.items()
        )
        return (*self.warned, *said_of)

    @property
    def machine(self) -> str:
        """What it runs on, as of a split; one device alone where nothing runs elsewhere."""
        first, then = self.prefill.bare, self.decode.bare
        if first.placement.accelerators or then.placement.accelerators:
            return first.machine
        home = first.placement.home
        alone = replace(first, devices=(home,)).machine
        return alone.replace(f"@{first.link}", "", 1)

    @property
    def calls(self) -> int:
        """Of the prefill and of all steps."""
        prefills = sum(len(split.traffic.calls) for split in self._prefills)
        return prefills + sum(step.calls for step in self.steps)

    @property
    def moved_cache_bytes(self) -> int:
        """The payload of ``moves``."""
        return sum(move.payload_bytes for move in self.moves)

    @property
    def total_payload_bytes(self) -> int:
        """All that crosses: of the prefill, of the cache that moves, and of all steps."""
        decode = sum(step.total_payload_bytes for step in self.steps)
        prefills = sum(split.traffic.totals.payload_bytes for split in self._prefills)
        return prefills + self.moved_cache_bytes + decode

    @property
    def mask_costs(self) -> dict[str, int]:
        """What masks cost in all runs, by key of ``summary``: each pad is of one run alone."""
        runs = [split.mask_costs for split in self._prefills]
        runs += [{**step.mask_costs} for step in self.steps]
        return {name: sum(run[name] for run in runs) for name in runs[0]}

    @property
    def step_seconds(self) -> float | None:
        """All steps together; None where one of them is not known."""
        return _sum(step.run_seconds for step in self.steps)

    @property
    def step_joules(self) -> float | None:
        """Their energy; None where that of one of them is not known."""
        return _sum(step.run_joules for step in self.steps)

    @property
    def ttft_seconds(self) -> float | None:
        """Until the first token: the prefill; None where it is not known."""
        return _seconds(self.prefill.bare)

    @property
    def total_seconds(self) -> float | None:
        """Prefill, the move of the cache and all steps, one after another."""
        return _sum((*map(_seconds, self._prefills), self.move_seconds, self.step_seconds))

    @property
    def joules(self) -> dict[str, Any]:
        """Energy, by key of ``summary``."""
        prefills = [split.energy_figures for split in self._prefills]
        parts = [one["run_joules"] for one in prefills]
        steps = self.step_joules
        total = _sum((*parts, self.move_joules[0], steps))
        first, last = (self.steps[0], self.steps[-1]) if self.steps else (None, None)
        made = fsum(step.tokens for step in self.steps)
        late = any(one["energy_at_least"] for one in prefills)
        late |= any(step.energy_at_least for step in self.steps)
        tokens = self.prefill.trace.graph.meta.batch * (round(made) + 1)
        return {
            "ttft_joules": parts[0],
            "step_first_joules": first and first.token_joules,
            "step_last_joules": last and last.token_joules,
            "step_mean_joules": steps / made if first and steps is not None else None,
            "total_joules": total,
            "joules_per_token": None if total is None else total / tokens,
            "energy_at_least": total is not None and (late or self.move_joules[1]),
        }

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``generate --json`` has them."""
        split, meta = self.prefill.bare, self.prefill.trace.graph.meta
        steps, total, unknown = self.step_seconds, self.total_seconds, self.unknown
        first, last = (self.steps[0], self.steps[-1]) if self.steps else (None, None)
        new, draft = round(fsum(step.tokens for step in self.steps)) + 1, self.draft
        return {
            "model": meta.model,
            "dtype": meta.dtype,
            "batch": meta.batch,
            "prompt": meta.past + meta.seq,
            "cached_prompt": meta.past,
            "new": new,
            "machine": self.machine,
            "wire_dtype": split.wire_dtype,
            "pack": split.wire_format.text or None,
            "residency": split.residency,
            "policy": self.prefill.policy,
            "decode_policy": self.decode.policy,
            "optimal": _optimal(self.prefill),
            "decode_optimal": _optimal(self.decode),
            "placed_at_past": meta.past + meta.seq,
            "draft": draft and draft.prefill.trace.graph.meta.model,
            "draft_weights": (draft and draft.prefill.trace.graph.meta.weights) or None,
            "draft_tokens": draft and draft.tokens,
            "accept": draft and draft.accept,
            "expected_tokens": draft and draft.expected,
            "calls": self.calls,
            "total_payload_bytes": self.total_payload_bytes,
            "payload_status": self.payload_status,
            "prefill_payload_bytes": split.traffic.totals.payload_bytes,
            "moved_cache_bytes": self.moved_cache_bytes,
            "cache_bytes": self.cache_bytes,
            **self.mask_costs,
            "ttft_seconds": self.ttft_seconds,
            "tpot_first_seconds": first and first.token_seconds,
            "tpot_last_seconds": last and last.token_seconds,
            "tpot_mean_seconds": steps / (new - 1) if first and steps is not None else None,
            "total_seconds": total,
            "tokens_per_second": None if not total else meta.batch * new / total,
            "at_least": bool(unknown),
            "left_out": list(unknown),
            **self.joules,
            "last_step_saves_bytes": None if self.anew is None else self.anew[0],
            "last_step_saves_seconds": None if self.anew is None else self.anew[1],
            "warnings": list(self.warnings),
        }

    @property
    def table(self) -> "pa.Table":
        """The steps, one a row."""
        import pyarrow as pa

        names = ("past", "calls", "transfers", "total_payload_bytes", "run_seconds", "run_joules")
        columns = {name: [getattr(step, name) for step in self.steps] for name in names}
        for name in self.prefill.bare.mask_costs:
            columns[name] = [step.mask_costs[name] for step in self.steps]
        return pa.table(columns)


def generate(
    model: Any,
    *,
    prompt: int = 1024,
    new: int = 256,
    policy: str | Path | Policy = "offload-linear",
    decode_policy: str | Path | Policy | None = None,
    batch: int = 1,
    dtype: str | None = None,
    attn: str = "eager",
    overrides: Overrides = None,
    machine: str | None = None,
    residency: Residency = "run",
    secrets: Sequence[str] | None = (),
    max_calls: int | None = None,
    time_limit: float = 60.0,
    objective: Objective = None,
    weights: str | Path | None = None,
    kv_dtype: str | None = None,
    cached_prompt: int = 0,
    draft: Any = None,
    draft_weights: str | Path | None = None,
    accept: float | None = None,
    tokens: int = 4,
    **parts: Any,
) -> Generation:
    """Say what it takes to read a prompt and make ``new`` tokens, each after the other.

    The prefill makes the first token and fills the cache. Each further one is a step of decode; all
    steps are placed as the first of them is, by ``decode_policy`` (``policy`` when left out), and
    counted each at its own number of cached tokens. Cached state that decode reads on another
    device than prefill leaves it on moves there in between. The model is one by config
    (``cutedge.trace``); the machine is as for ``Trace.partition``, with one accelerator;
    ``weights`` and ``kv_dtype`` are as for ``Trace.stored``.

    The first ``cached_prompt`` tokens of the prompt lie in the cache already, where the prefill
    reads it. A ``draft`` model proposes so many ``tokens`` a round, each of which is taken with the
    likelihood ``accept`` where those before it are (its weights are stored in ``draft_weights``, as
    its config says when left out); one pass of the model checks them all and makes
    one more. How many tokens a round makes is then an expectation.

    Raises InputError for what cannot be understood, CutedgeError where no placement is allowed.

    >>> import cutedge
    >>> made = cutedge.generate("edge-10m", prompt=64, new=4, policy="fuse-attention")
    >>> made.calls, [step.past for step in made.steps]
    (88, [64, 65, 66])
    """
    after = decode_policy or policy
    if new < 1:
        raise InputError(f"new {new}: at least one token is made, by the prefill")
    on = machine_of(machine, **parts)
    if len(on.accelerators) > 1:
        raise InputError(
            f"generate takes one accelerator, and here are {', '.join(on.accelerators)}: partition "
            "and compare take several"
        )
    check_words([policy, after], objective=objective)  # before a model is traced
    policy, after = searching([policy, after], objective)
    if not 0 <= cached_prompt < prompt:
        raise InputError(
            f"cached_prompt {cached_prompt}: of a prompt of {prompt} tokens at least one is read"
        )
    if (draft is None) != (accept is None):
        raise InputError(
            "draft and accept go together: a model, and how often its tokens are taken"
        )
    if draft_weights is not None and draft is None:
        raise InputError("draft_weights are those of a draft model: give that too")
    if accept is not None and not (0 <= accept <= 1 and tokens >= 1):
        raise InputError("accept is a likelihood from 0 to 1, of 1 or more tokens")
    options: dict[str, Any] = {"batch": batch, "dtype": dtype, "attn": attn, "overrides": overrides}
    storage: dict[str, Any] = {"weights": weights, "kv_dtype": kv_dtype}

    def placed(plain: Trace, by: str | Path | Policy, **stored: Any) -> Partition:
        traced = plain.stored(**stored)
        asked = asked_of(traced.graph, [by], on, residency, secrets or (), max_calls, time_limit)
        return Partition.placed(traced, asked, next(iter(asked.policies)))

    read: dict[str, Any] = {"seq": prompt - cached_prompt, "past": cached_prompt, "cache": True}
    first = placed(trace(model, **read, **options), policy, **storage)
    phase: dict[str, Any] = {"phase": "decode", "past": prompt}
    if draft is not None:
        phase = {"seq": tokens + 1, "past": prompt, "cache": True, "logits": "all"}
    decode = placed(trace(model, **phase, **options), after, **storage)
    check_causal(first.trace.graph, decode.trace.graph)
    moves = _moves(first, decode)
    proposer = None
    if draft is not None and accept is not None:
        own = {**options, "overrides": None}
        lying = {"weights": draft_weights}
        proposer = Draft(
            placed(trace(draft, **read, **own), policy, **lying),
            placed(trace(draft, phase="decode", past=prompt, **own), after, **lying),
            tokens,
            accept,
        )
        moves += _moves(proposer.prefill, proposer.decode)
        pasts = _rounds(prompt, new - 1, proposer.expected)
        checks, noted = _steps(model, options | storage, [*pasts], decode)
        each = sorted({past + ahead for past in pasts for ahead in range(tokens)})
        proposed, said = _steps(draft, own | lying, each, proposer.decode)
        steps = _as_rounds(pasts.values(), checks, {one.past: one for one in proposed}, tokens)
        noted = (*noted, *said)
    else:
        steps, noted = _steps(model, options | storage, range(prompt, prompt + new - 1), decode)
    warnings = dict.fromkeys((*first.trace.warnings, *decode.trace.warnings, *noted))
    one = decode.trace
    if draft is not None:
        one = trace(model, phase="decode", past=prompt, **options).stored(**storage)
    return Generation(
        first,
        decode,
        steps,
        moves,
        _move_seconds(moves, on),
        _anew(decode, steps),
        _cache_bytes(one, prompt + new - 1),
        tuple(warnings),
        proposer,
        _move_joules(moves, on),
    )


def _cache_bytes(decode: Trace, past: int) -> int:
    """Cached state over ``past`` tokens, as a step of decode reads it."""
    graph, size = decode.graph, decode.graph.meta.variables
    formula = cached_state(graph)[0][1]
    there = {name: np.array([n]) for name, n in (size | {"past": past}).items()}
    if formula is None or not reached(graph, decode.reach, there).all():
        return cached_state(decode.at(past=past).graph)[0][0]
    return parse(formula).evaluate(size | {"past": past})


def _rounds(prompt: int, new: int, expected: float) -> dict[int, float]:
    """Cached tokens before each round -> the tokens that it makes; the last makes what is left."""
    count = ceil(new / expected - 1e-9)
    starts = [number * expected for number in range(count)]
    return {prompt + int(start + 1e-9): min(expected, new - start) for start in starts}


def _as_rounds(
    made: Iterable[float], checks: Sequence[Step], proposed: Mapping[int, Step], tokens: int
) -> tuple[Step, ...]:
    """Each pass that checks, with the steps of the draft before it."""
    rounds = []
    for check, expected in zip(checks, made, strict=True):
        parts = [check, *(proposed[check.past + ahead] for ahead in range(tokens))]
        rounds.append(
            Step(
                check.past,
                sum(part.calls for part in parts),
                sum(part.transfers for part in parts),
                sum(part.total_payload_bytes for part in parts),
                _sum(part.run_seconds for part in parts),
                expected,
                "estimate" if any(part.payload_status == "estimate" for part in parts) else "exact",
                {name: sum(part.mask_costs[name] for part in parts) for name in check.mask_costs},
                _sum(part.run_joules for part in parts),
                any(part.energy_at_least for part in parts),
            )
        )
    return tuple(rounds)


def _sum(parts: Iterable[float | None]) -> float | None:
    """The sum; None where one part is not known."""
    each = [*parts]
    known = [part for part in each if part is not None]
    return fsum(known) if len(known) == len(each) else None


def _optimal(split: Partition) -> bool | None:
    """Whether a placement is proven to be the best; None where the policy leaves nothing free."""
    solution = split.bare.solution
    return None if solution is None else solution.proven


def _seconds(split: Split) -> float | None:
    """What a run takes; of one that sends nothing, computing alone, whatever the link."""
    if split.traffic.transfers or split.run_seconds is not None:
        return split.run_seconds
    return split.home_seconds if not split.placement.accelerators else None


def _moves(prefill: Partition, decode: Partition) -> tuple[CacheMove, ...]:
    """What of the cache lies elsewhere than the first step reads it, and from where it comes."""
    found = []
    left, read = (
        without_masks_placed(one.bare.graph, one.bare.placement) for one in (prefill, decode)
    )
    for state, source, device in moved_state(prefill.trace.graph, left, decode.trace.graph, read):
        one = decode.bare.wire_format.of(state)
        told = one.payload_bytes, one.packing_seconds, one.status
        found.append(CacheMove(state.name, source, device, *told))
    return tuple(found)


def _move_seconds(moves: Sequence[CacheMove], machine: Machine) -> float | None:
    """What the cache takes to move, as one message a direction."""
    messages: dict[tuple[str, str], list[int]] = {}
    for move in moves:
        messages.setdefault((move.source, move.destination), []).append(move.payload_bytes)
    total = [move.packing_seconds or 0.0 for move in moves]
    for (source, destination), payloads in messages.items():
        direction = "send" if source == machine.home else "receive"
        link = machine.links.between(source, destination, machine.home)
        seconds = message_cost(link, payloads, direction).seconds
        if seconds is None:
            return None
        total += seconds
    return fsum(total)


def _move_joules(moves: Sequence[CacheMove], machine: Machine) -> tuple[float, bool]:
    """(what the cache takes to move in energy, whether that leaves out what is not known)"""
    figures = [device.energy for device in machine.described.values()]
    watts = sum(one.idle_watts or 0.0 for one in figures if one is not None)
    seconds = _move_seconds(moves, machine)
    total, at_least = [watts * (seconds or 0.0)], bool(watts and seconds is None)
    messages: dict[tuple[str, str], list[int]] = {}
    for move in moves:
        messages.setdefault((move.source, move.destination), []).append(move.payload_bytes)
    for (source, destination), payloads in messages.items():
        direction = "send" if source == machine.home else "receive"
        link = machine.links.between(source, destination, machine.home)
        wire = sum(message_cost(link, payloads, direction).wire_bytes)
        total.append(wire * ((link.picojoules_per_byte or 0.0) * 1e-12))
        at_least |= link.picojoules_per_byte is None
    return fsum(total), at_least


@stage("working out steps")
def _steps(
    model: Any, options: Mapping[str, Any], pasts: Sequence[int], decode: Partition
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """(each step of decode, under the placement of the first; warnings)"""
    if not pasts:
        return (), ()
    from cutedge._subjects import Subject, programs_of
    from cutedge.sweeping.answers import ACCELERATOR, HOME, by_part
    from cutedge.sweeping.generations import MASKED
    from cutedge.sweeping.parts import along

    split, setting = decode.bare, decode.setting
    meta = decode.trace.graph.meta
    asked = ("dtype", "attn", "weights", "kv_dtype")
    told = {"logits": meta.logits} | {one: options.get(one) for one in asked}
    sizes = {"batch": (meta.batch,), "seq": (meta.seq,), "past": tuple(pasts)}
    cache = meta.phase == "prefill"
    subject = Subject(model, meta.phase, told, sizes, options["overrides"], cache)
    traced = decode.trace.graph, decode.trace.reach
    programs, warnings, _ = programs_of(subject, traced)
    machine = by_part(setting.machine)
    found: dict[int, Step] = {}
    for number, program in enumerate(programs):
        placed = Placed(split.graph, split.placement) if number == 0 else _in(program, decode)
        placement = without_masks_placed(placed.graph, placed.placement)
        devices = tuple(
            device and (HOME if device == placement.home else ACCELERATOR)
            for device in placement.devices
        )
        streams, rules = placement.streams, decode.rules
        for at, figures in along(program, rules, devices, streams, machine, split.residency):
            seconds = figures.get("run_seconds")
            if seconds is None and not figures["transfers"]:  # whatever the link
                seconds = _sum(figures.get(f"{part}_seconds") for part in (HOME, ACCELERATOR))
            found[at["past"]] = Step(
                at["past"],
                figures["calls"],
                figures["transfers"],
                figures["total_payload_bytes"],
                seconds,
                payload_status=figures["payload_status"],
                mask_costs={name: figures[name] for name in MASKED},
                run_joules=figures.get("run_joules"),
                energy_at_least=figures["energy_at_least"],
            )
    return tuple(found[past] for past in pasts), warnings


def _in(program: "SizedGraph", decode: Partition) -> Placed:
    """Where the policy of decode places another program of the model: one past a window, say."""
    graph = annotate(program.graph)
    return place(graph, decode.rules, decode.setting.of(graph))


def _anew(decode: Partition, steps: Sequence[Step]) -> tuple[int, float | None] | None:
    """(bytes, seconds) that the last step takes less where it is placed for itself."""
    if len(steps) < 2 or decode.bare.solution is None or steps[-1].tokens != 1:
        return None
    last = steps[-1]
    there = decode.trace.at(past=last.past)
    setting = decode.setting.of(there.graph)
    best = partition_of(there.graph, "", decode.rules, setting, shows=False)
    seconds = _seconds(best)
    return (
        last.total_payload_bytes - best.traffic.totals.payload_bytes,
        None if last.run_seconds is None or seconds is None else last.run_seconds - seconds,
    )
