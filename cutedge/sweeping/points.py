"""The figures of many points: what ``trace`` and ``partition`` say of each, from formulas."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.machine import Machine
from costmodels.many import Ints, Over
from costmodels.packing import SizedPacking
from cutedge.sweeping.answers import Devices, PlacementSearch, by_part
from cutedge.sweeping.generations import MASKED, STATUS, DecodeSteps, Prefills
from cutedge.sweeping.parts import (
    COUNTS,
    FLAGS,
    JOULES,
    LAID,
    LIMIT,
    OPTIONAL_COUNTS,
    SECONDS,
    Part,
    SizedGraph,
    alike,
)
from partition import Residency
from partition.policy import Policy
from partition.schedule import Scheduling
from tracer.graph import OpGraph
from tracer.summary import variant_of

Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A part of a sweep that is done in one go and written as one file: one policy on one model."""

    subject: bytes
    """What ``pack`` made. As bytes, so that a process that does one job after another on the
    same programs and machines reads them once."""
    policy: Policy
    wires: tuple[str | None, ...]
    """What floats cross in; None for their own dtypes."""
    residencies: tuple[Residency, ...]
    time_limit: float
    """Seconds that the search for one placement may take."""
    schedulings: tuple[Scheduling | None, ...] = (None,)
    """How runs are laid out; None: not at all."""
    packings: tuple[tuple[SizedPacking, ...], ...] = ((),)
    """How tensors are packed that no rule of the policy packs; an empty one: not at all."""
    news: tuple[int, ...] = ()
    """Tokens of generations; of none each point is one run."""
    decode_policies: tuple[Policy | None, ...] = (None,)
    """What places the steps of generations; None: what places their prefills."""


def pack(
    programs: Sequence[SizedGraph], machines: Sequence[Machine], decode: Sequence[SizedGraph] = ()
) -> bytes:
    """Programs that share out the sizes of a job, and its machines.

    Of generations these are the prefills, and ``decode`` has the steps.
    """
    return pickle.dumps((tuple(programs), tuple(machines), tuple(decode)))


@lru_cache(maxsize=1)
def _unpacked(subject: bytes) -> "tuple[list[Part], tuple[Machine, ...], list[list[Part]]]":
    programs, machines, decode = pickle.loads(subject)
    parts = [part for program in programs for part in alike(program)]
    return parts, machines, [alike(program) for program in decode]


@dataclass(frozen=True, slots=True)
class Points:
    """Rows as columns: one for each wire dtype, packing, residency, machine, schedule and size, in that
    order."""

    run: Mapping[str, str | None]
    """The model, the variant, the phase and the storage that all rows are of."""
    sizes: Mapping[str, Column]
    """Variable -> its value."""
    wire: NDArray[np.int64]
    packing: NDArray[np.int64]
    residency: NDArray[np.int64]
    machine: NDArray[np.int64]
    scheduling: NDArray[np.int64]
    decode_policy: NDArray[np.int64]
    new: NDArray[np.int64]
    """By row: the position in what the job lists."""
    machines: tuple[Machine, ...]
    wire_dtype: Sequence[str | None]
    """What floats cross in, where that is not their own dtype; of int8 arrays int8."""
    placed: Sequence[str]
    optimal: Sequence[bool | None]
    coverage: Column
    """Share of the ops that work whose FLOPs are known."""
    figures: Mapping[str, tuple[Column, NDArray[np.bool_]]]
    """Name -> (values, which of them are known)."""


def points(job: Job) -> Points:
    """Work out all points of a job, ordered by batch, past, seq within a machine.

    Raises InputError for a policy that is not for a machine, OverflowError for figures that 64
    bits do not hold.
    """
    parts, machines, decode = _unpacked(job.subject)
    sizes = {
        name: np.concatenate([part.over.sizes[name] for part in parts])
        for name in ("batch", "past", "source", "seq")
    }
    order = np.lexsort([sizes[name] for name in ("seq", "source", "past", "batch")])
    searches = {
        (residency, number): PlacementSearch(
            part.graph, job.policy, part.over, residency, job.time_limit
        )
        for residency in job.residencies
        for number, part in enumerate(parts)
    }
    row_sets: list[_Rows] = []
    keys: list[tuple[int, ...]] = []
    axes = job.wires, job.packings, job.residencies, tuple(map(by_part, machines)), job.schedulings
    steps = _StepsOf(job, parts, decode, order) if job.news else None
    for each in product(*map(enumerate, axes)):
        numbers, (wire, packings, residency, machine, asked) = zip(*each, strict=True)
        if wire is None and machine.options.int8_speedup is not None:
            wire = "int8"
        on = replace(machine, wire_dtype=wire, pack=packings)
        here = [searches[residency, number] for number in range(len(parts))]
        made = [
            _rows(part, job.policy, search, on, residency, asked)
            for part, search in zip(parts, here, strict=True)
        ]
        if steps is None:
            row_sets.append(_joined(made, order))
            keys.append((*numbers, -1, -1))
            continue
        for position, rows in steps.generated(_joined(made, order), here, on, residency):
            row_sets.append(rows)
            keys.append((*numbers, *position))
    length = len(order)
    places = np.repeat(np.array(keys, np.int64), length, axis=0)
    coverage = np.concatenate([np.full(part.over.length, part.coverage) for part in parts])[order]
    first = parts[0].graph
    stored = {what: getattr(first.meta, what) or None for what in ("weights", "kv_dtype")}
    told = [variant_of(first), *(f"{what}={one}" for what, one in stored.items() if one)]
    run = {
        "model": first.meta.model,
        "variant": ", ".join(told),
        "phase": first.meta.phase,
        **stored,
    }
    return Points(
        run,
        {name: np.tile(many[order], len(keys)) for name, many in sizes.items()},
        places[:, 0],
        places[:, 1],
        places[:, 2],
        places[:, 3],
        places[:, 4],
        places[:, 5],
        places[:, 6],
        machines,
        [dtype for rows in row_sets for dtype in (rows.wire_dtype,) * length],
        [placed for rows in row_sets for placed in rows.placed],
        [optimal for rows in row_sets for optimal in rows.optimal],
        np.tile(coverage, len(keys)),
        {
            name: (
                np.concatenate([rows.figures[name] for rows in row_sets]),
                np.concatenate([rows.known[name] for rows in row_sets]),
            )
            for name in row_sets[0].figures
        },
    )


class _StepsOf:
    """The steps of a job's generations, which follow its prefills."""

    def __init__(
        self, job: Job, parts: "Sequence[Part]", decode: "list[list[Part]]", order: Ints
    ) -> None:
        batch, prompt = (
            np.concatenate([part.over.sizes[name] for part in parts])[order]
            for name in ("batch", "seq")
        )
        self._job, self._order = job, order
        self._graphs = [part.graph for part in parts for _ in range(part.over.length)]
        self._steps = DecodeSteps(decode, batch, prompt, max(job.news))

        def placing(graph: OpGraph, over: Over, policy: Policy, residency: Residency) -> Any:
            return PlacementSearch(graph, policy, over, residency, job.time_limit)

        self._searches = {
            (residency, after): self._steps.searches(
                partial(placing, policy=policy or job.policy, residency=residency)
            )
            for residency in job.residencies
            for after, policy in enumerate(job.decode_policies)
        }

    def generated(
        self,
        rows: "_Rows",
        searches: Sequence[PlacementSearch],
        machine: Machine,
        residency: Residency,
    ) -> "Iterator[tuple[tuple[int, int], _Rows]]":
        """((decode policy, tokens), the generations that begin with prefills), in that order."""
        devices: list[Devices | None] = []
        for search in searches:
            answers = search.answers(machine)
            devices += [answers.placements[n] if n >= 0 else None for n in answers.which.tolist()]
        prefills = Prefills(
            [self._graphs[n] for n in self._order],
            [devices[n] for n in self._order],
            searches[0].streams(machine),
            rows.placed,
            rows.optimal,
            rows.figures,
            rows.known,
        )
        for after in range(len(self._job.decode_policies)):
            found = self._steps.generated(
                prefills, self._searches[residency, after], machine, residency, self._job.news
            )
            for number, one in enumerate(found):
                made = _Rows(rows.wire_dtype, one.placed, one.optimal, one.figures, one.known)
                yield (after, number), made


# --- the figures of one machine -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    wire_dtype: str | None
    placed: Sequence[str]
    optimal: Sequence[bool | None]
    figures: dict[str, Column]
    known: dict[str, NDArray[np.bool_]]


def _rows(
    part: Part,
    policy: Policy,
    search: PlacementSearch,
    machine: Machine,
    residency: Residency,
    asked: Scheduling | None,
) -> _Rows:
    answers, streams = search.answers(machine), search.streams(machine)
    wire = search.wire(machine)
    length = part.over.length
    figures: dict[str, Column] = {
        **{name: np.zeros(length, np.int64) for name in (*COUNTS, *MASKED, *OPTIONAL_COUNTS)},
        **{name: np.zeros(length) for name in (*SECONDS, *JOULES, *LAID)},
        **{name: np.zeros(length, bool) for name in FLAGS},
        **{name: np.full(length, None, object) for name in (LIMIT, STATUS)},
    }
    known = {name: np.zeros(length, bool) for name in figures}
    for number, devices in enumerate(answers.placements):
        every = np.flatnonzero(answers.which == number)
        placed_parts = part.placed_parts(policy, devices, streams, every, wire, machine, residency)
        for rows, placed in placed_parts:
            found = placed.figures(machine)
            if asked is not None and "run_seconds" in found:
                found |= placed.laid(machine, asked, found["run_seconds"])
            for name, values in found.items():
                figures[name][rows], known[name][rows] = values, True
    for name in ("requests_per_second", LIMIT):
        known[name] &= figures["makespan_seconds"] > 0
    return _Rows(machine.wire_dtype, answers.placed, answers.optimal, figures, known)


def _joined(row_sets: Sequence[_Rows], order: Ints) -> _Rows:
    placed = [one for rows in row_sets for one in rows.placed]
    optimal = [one for rows in row_sets for one in rows.optimal]
    names = row_sets[0].figures
    return _Rows(
        row_sets[0].wire_dtype,
        [placed[n] for n in order],
        [optimal[n] for n in order],
        {name: np.concatenate([rows.figures[name] for rows in row_sets])[order] for name in names},
        {name: np.concatenate([rows.known[name] for rows in row_sets])[order] for name in names},
    )
