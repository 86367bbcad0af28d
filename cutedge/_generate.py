"""A whole generation: a prefill, then steps of decode over a cache that grows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodels.flops import annotate
from costmodels.links import message_cost
from costmodels.machine import Machine
from cutedge._machines import machine_of
from cutedge._partition import Partition, asked_of
from cutedge._placing import partition_of
from cutedge._request import Overrides
from cutedge._trace import Trace, trace
from partition import Residency
from partition.accounting import on_wire
from partition.optimise import place
from partition.placement import Placement
from partition.policy import Policy
from partition.split import Split
from partition.stored import held
from tracer.errors import InputError
from tracer.graph import OpGraph, Tensor
from tracer.stages import stage
from tracer.summary import cached_inputs, cached_outputs, cached_state, renewals, state_memory

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge.sweeping.points import SizedGraph


@dataclass(frozen=True, slots=True)
class Step:
    """One step of decode: one new token over ``past`` cached ones, in each sequence."""

    past: int
    calls: int
    transfers: int
    total_payload_bytes: int
    run_seconds: float | None
    """Computing and moving, one after another; None where not all of it is known."""


@dataclass(frozen=True, slots=True)
class Move:
    """Cached state that decode reads elsewhere than prefill leaves it."""

    name: str
    source: str
    destination: str
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt that is read, and the tokens that are made one after another."""

    prefill: Partition
    """Reading the prompt, which makes the first token and fills the cache."""
    decode: Partition
    """One more token over the prompt: what places all steps."""
    steps: tuple[Step, ...]
    """The tokens after the first, in order."""
    moves: tuple[Move, ...]
    """What of the cache goes to another device before the first step."""
    move_seconds: float | None
    """What that takes; None where it is not known."""
    anew: tuple[int, float | None] | None
    """(bytes, seconds) that the last step would take less if it were placed anew; None for policies
    without an objective, and where one step is all."""
    cache_bytes: int
    """Cached state after the last step."""
    warnings: tuple[str, ...]
    """Of the traces, at all of these sizes."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What is left out of the seconds, in words; with any of it they are at least so many."""
        return tuple(dict.fromkeys((*self.prefill.split.left_out, *self.decode.split.left_out)))

    @property
    def machine(self) -> str:
        """What it runs on, as of a split; one device alone where nothing runs elsewhere."""
        first, then = self.prefill.split, self.decode.split
        if first.placement.accelerators or then.placement.accelerators:
            return first.machine
        home = first.placement.home
        alone = replace(first, devices=(home,)).machine
        return alone.replace(f"@{first.link}", "", 1)

    @property
    def calls(self) -> int:
        """Of the prefill and of all steps."""
        return len(self.prefill.split.traffic.calls) + sum(step.calls for step in self.steps)

    @property
    def moved_cache_bytes(self) -> int:
        """The payload of ``moves``."""
        return sum(move.payload_bytes for move in self.moves)

    @property
    def total_payload_bytes(self) -> int:
        """All that crosses: of the prefill, of the cache that moves, and of all steps."""
        decode = sum(step.total_payload_bytes for step in self.steps)
        return self.prefill.split.traffic.totals.payload_bytes + self.moved_cache_bytes + decode

    @property
    def step_seconds(self) -> float | None:
        """All steps together; None where one of them is not known."""
        return _sum(step.run_seconds for step in self.steps)

    @property
    def ttft_seconds(self) -> float | None:
        """Until the first token: the prefill; None where it is not known."""
        return _seconds(self.prefill.split)

    @property
    def total_seconds(self) -> float | None:
        """Prefill, the move of the cache and all steps, one after another."""
        return _sum((self.ttft_seconds, self.move_seconds, self.step_seconds))

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``generate --json`` has them."""
        split, meta = self.prefill.split, self.prefill.trace.graph.meta
        steps, total, unknown = self.step_seconds, self.total_seconds, self.unknown
        count = len(self.steps)
        return {
            "model": meta.model,
            "dtype": meta.dtype,
            "batch": meta.batch,
            "prompt": meta.seq,
            "new": count + 1,
            "machine": self.machine,
            "wire_dtype": split.wire_dtype,
            "residency": split.residency,
            "policy": self.prefill.policy,
            "decode_policy": self.decode.policy,
            "optimal": _optimal(self.prefill),
            "decode_optimal": _optimal(self.decode),
            "placed_at_past": meta.seq,
            "calls": self.calls,
            "total_payload_bytes": self.total_payload_bytes,
            "prefill_payload_bytes": split.traffic.totals.payload_bytes,
            "moved_cache_bytes": self.moved_cache_bytes,
            "cache_bytes": self.cache_bytes,
            "ttft_seconds": self.ttft_seconds,
            "tpot_first_seconds": self.steps[0].run_seconds if count else None,
            "tpot_last_seconds": self.steps[-1].run_seconds if count else None,
            "tpot_mean_seconds": steps / count if count and steps is not None else None,
            "total_seconds": total,
            "tokens_per_second": None if not total else meta.batch * (count + 1) / total,
            "at_least": bool(unknown),
            "left_out": list(unknown),
            "last_step_saves_bytes": None if self.anew is None else self.anew[0],
            "last_step_saves_seconds": None if self.anew is None else self.anew[1],
            "warnings": list(self.warnings),
        }

    @property
    def table(self) -> "pa.Table":
        """The steps, one a row."""
        import pyarrow as pa

        names = ("past", "calls", "transfers", "total_payload_bytes", "run_seconds")
        return pa.table({name: [getattr(step, name) for step in self.steps] for name in names})


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
    weights: str | Path | None = None,
    kv_dtype: str | None = None,
    **parts: Any,
) -> Generation:
    """Say what it takes to read a prompt and make ``new`` tokens, each after the other.

    The prefill makes the first token and fills the cache. Each further one is a step of decode; all
    steps are placed as the first of them is, by ``decode_policy`` (``policy`` when left out), and
    counted each at its own number of cached tokens. Cached state that decode reads on another
    device than prefill leaves it on moves there in between. The model is one by config
    (``cutedge.trace``); the machine is as for ``Trace.partition``, with one accelerator;
    ``weights`` and ``kv_dtype`` are as for ``Trace.stored``.

    Raises InputError for what cannot be understood, CutedgeError where no placement is allowed.

    >>> import cutedge
    >>> made = cutedge.generate("edge-10m", prompt=64, new=4, policy="fuse-attention")
    >>> made.calls, [step.past for step in made.steps]
    (88, [64, 65, 66])
    """
    if new < 1:
        raise InputError(f"new {new}: at least one token is made, by the prefill")
    on = machine_of(machine, **parts)
    if len(on.accelerators) > 1:
        raise InputError(
            f"generate takes one accelerator, and here are {', '.join(on.accelerators)}: partition "
            "and compare take several"
        )
    options: dict[str, Any] = {"batch": batch, "dtype": dtype, "attn": attn, "overrides": overrides}

    storage: dict[str, Any] = {"weights": weights, "kv_dtype": kv_dtype}

    def placed(plain: Trace, by: str | Path | Policy) -> Partition:
        traced = plain.stored(**storage)
        asked = asked_of(traced.graph, [by], on, residency, secrets or (), max_calls, time_limit)
        return Partition.placed(traced, asked, next(iter(asked.policies)))

    first = placed(trace(model, seq=prompt, cache=True, **options), policy)
    decode = placed(trace(model, phase="decode", past=prompt, **options), decode_policy or policy)
    _check_causal(first.trace.graph, decode.trace.graph)
    moves = _moves(first, decode)
    steps, noted = _steps(model, options | storage, range(prompt, prompt + new - 1), decode)
    warnings = dict.fromkeys((*first.trace.warnings, *decode.trace.warnings, *noted))
    end = decode.trace.at(past=prompt + new - 1).graph
    return Generation(
        first,
        decode,
        steps,
        moves,
        _move_seconds(moves, on),
        _anew(decode, steps),
        cached_state(end)[0][0],
        tuple(warnings),
    )


def _sum(parts: Iterable[float | None]) -> float | None:
    """The sum; None where one part is not known."""
    each = [*parts]
    known = [part for part in each if part is not None]
    return fsum(known) if len(known) == len(each) else None


def _optimal(split: Partition) -> bool | None:
    """Whether a placement is proven to be the best; None where the policy leaves nothing free."""
    solution = split.split.solution
    return None if solution is None else solution.proven


def _seconds(split: Split) -> float | None:
    """What a run takes; of one that sends nothing, computing alone, whatever the link."""
    if split.traffic.transfers or split.run_seconds is not None:
        return split.run_seconds
    return split.home_seconds if not split.placement.accelerators else None


def _check_causal(prefill: OpGraph, decode: OpGraph) -> None:
    """Refuse a model whose decode reads other state than its prefill leaves."""
    if decode.meta.source:
        raise InputError(
            f"{decode.meta.model}: an encoder runs before its decoder does, and no phase has both: "
            "trace and split its phases one by one"
        )
    left = [_width(tensor) for tensor in cached_outputs(prefill)]
    if not left or left != [_width(tensor) for tensor in cached_inputs(decode)]:
        raise InputError(
            f"{prefill.meta.model}: its decode reads other cached state than its prefill leaves, so "
            "it is no model that generates alone: trace and split its phases one by one"
        )


def _width(tensor: Tensor) -> tuple[str, int]:
    """Dtype and bytes: equal for state before and after it is handed on."""
    return tensor.dtype, tensor.bytes


def _holding(graph: OpGraph, placement: Placement, states: Sequence[Tensor]) -> list[set[str]]:
    """By piece of cached state, the devices on which it lies."""
    there = held(graph, placement)
    memory = [state_memory(graph, state).id for state in states]
    return [{device for device, tensors in there.items() if m in tensors} for m in memory]


def _moves(prefill: Partition, decode: Partition) -> tuple[Move, ...]:
    """What of the cache lies elsewhere than the first step reads it, and from where it comes."""
    before, after = prefill.trace.graph, decode.trace.graph
    renewed = {old.id: state for old, state in renewals(after)}
    read = cached_inputs(after)
    left = _holding(before, prefill.split.placement, cached_outputs(before))
    wanted = _holding(
        after, decode.split.placement, [renewed.get(state.id, state) for state in read]
    )
    home = prefill.split.placement.home
    return tuple(
        Move(
            state.name,
            home if home in here else sorted(here)[0],
            device,
            on_wire(state, prefill.split.wire_dtype)[1],
        )
        for state, here, there in zip(read, left, wanted, strict=True)
        for device in sorted(there - here)
    )


def _move_seconds(moves: Sequence[Move], machine: Machine) -> float | None:
    """What the cache takes to move, as one message a direction."""
    messages: dict[tuple[str, str], list[int]] = {}
    for move in moves:
        messages.setdefault((move.source, move.destination), []).append(move.payload_bytes)
    total: list[float] = []
    for (source, destination), payloads in messages.items():
        direction = "send" if source == machine.home else "receive"
        link = machine.links.between(source, destination, machine.home)
        seconds = message_cost(link, payloads, direction).seconds
        if seconds is None:
            return None
        total += seconds
    return fsum(total)


@stage("working out steps")
def _steps(
    model: Any, options: Mapping[str, Any], pasts: Sequence[int], decode: Partition
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """(each step of decode, under the placement of the first; warnings)"""
    if not pasts:
        return (), ()
    from cutedge._grids import Subject
    from cutedge._sweep import programs_of
    from cutedge.sweeping.answers import ACCELERATOR, HOME, by_part
    from cutedge.sweeping.points import along

    split, setting = decode.split, decode.setting
    asked = ("dtype", "attn", "weights", "kv_dtype")
    told = {"logits": "last"} | {one: options[one] for one in asked}
    sizes = {"batch": (options["batch"],), "seq": (1,), "past": tuple(pasts)}
    programs, warnings, _ = programs_of(Subject(model, "decode", told, sizes, options["overrides"]))
    machine = by_part(setting.machine)
    found: dict[int, Step] = {}
    for number, program in enumerate(programs):
        placement = split.placement if number == 0 else _placed_in(program, decode)
        devices = tuple(
            device and (HOME if device == placement.home else ACCELERATOR)
            for device in placement.devices
        )
        for at, figures in along(program, devices, machine, split.wire_dtype, split.residency):
            seconds = figures.get("run_seconds")
            if seconds is None and not figures["transfers"]:  # whatever the link
                seconds = _sum(figures.get(f"{part}_seconds") for part in (HOME, ACCELERATOR))
            found[at["past"]] = Step(
                at["past"],
                figures["calls"],
                figures["transfers"],
                figures["total_payload_bytes"],
                seconds,
            )
    return tuple(found[past] for past in pasts), warnings


def _placed_in(program: "SizedGraph", decode: Partition) -> Placement:
    """Where the policy of decode places another program of the model: one past a window, say."""
    graph = annotate(program.graph)
    return place(graph, decode.rules, decode.setting.of(graph)).placement


def _anew(decode: Partition, steps: Sequence[Step]) -> tuple[int, float | None] | None:
    """(bytes, seconds) that the last step takes less where it is placed for itself."""
    if len(steps) < 2 or decode.split.solution is None:
        return None
    last = steps[-1]
    there = decode.trace.at(past=last.past)
    setting = decode.setting.of(there.graph)
    best = partition_of(there.graph, there.id, decode.rules, setting, exposed=False)
    seconds = _seconds(best)
    return (
        last.total_payload_bytes - best.traffic.totals.payload_bytes,
        None if last.run_seconds is None or seconds is None else last.run_seconds - seconds,
    )
