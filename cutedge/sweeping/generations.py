"""Whole generations at many sizes: a prefill, then steps of decode over a cache that grows.

What ``cutedge.generate`` says of each. A step over so many cached tokens is in the generations of all
prompts that pass it: each is worked out once for a placement, for all pasts together, and a
generation is the difference of two running sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.links import message_cost
from costmodels.machine import Machine
from costmodels.many import Ints, Over
from cutedge.sweeping.answers import (
    ACCELERATOR,
    HOME,
    IMPOSSIBLE,
    NOT_FOUND,
    Devices,
    PlacementSearch,
    placement_on,
)
from cutedge.sweeping.crossing import Bools, Crossing, crossing
from partition import Residency
from partition.placement import Placement
from partition.policy import Policy
from partition.stored import moved_state
from partition.wire_format import WireFormat
from tracer.graph import OpGraph, Tensor

STATUS = "payload_status"
"""Whether the payload is counted or a ratio stands in; none where no placement is possible."""

MASKED = (
    "masked_payload_bytes",
    "unmasked_payload_bytes",
    "pad_bytes",
    "offline_flops",
    "home_mask_flops",
)
"""What masks cost, as ``partition`` has it; 0 where there are none."""

SUMS = ("calls", "total_payload_bytes", *MASKED)
"""Whole figures of a generation that are those of its prefill and of all its steps."""

TIMES = (
    "ttft_seconds",
    "tpot_first_seconds",
    "tpot_last_seconds",
    "tpot_mean_seconds",
    "total_seconds",
    "tokens_per_second",
)
"""Seconds of a generation, and tokens a second of all sequences; none where not all is known."""

ENERGY = (
    "ttft_joules",
    "step_first_joules",
    "step_last_joules",
    "step_mean_joules",
    "total_joules",
    "joules_per_token",
)
"""Energy of a generation; none where that of computing is not known."""


_Placing = tuple[PlacementSearch, Ints]
"""(what places steps, by row the number of the size at which they are placed; -1 for none)"""


@dataclass(frozen=True, slots=True)
class Prefills:
    """What is known of the prefills: by row, a batch and a prompt."""

    graphs: Sequence[OpGraph]
    devices: Sequence[Devices | None]
    """Where the ops are; None where there is no placement."""
    streams: frozenset[int]
    """The ops whose parameters lie at home."""
    placed: Sequence[str]
    optimal: Sequence[bool | None]
    figures: Mapping[str, Any]
    known: Mapping[str, Bools]


@dataclass(frozen=True, slots=True)
class Generated:
    """Generations as columns."""

    placed: Sequence[str]
    optimal: Sequence[bool | None]
    figures: dict[str, Any]
    known: dict[str, Bools]


class DecodeSteps:
    """The steps of decode of a model: by batch and by tokens cached, dense in both."""

    def __init__(
        self, programs: Sequence[Sequence[Any]], batch: Ints, prompt: Ints, most: int
    ) -> None:
        """Each of the ``programs`` is in parts (``parts.alike``); ``most`` is the most new tokens."""
        self._programs = programs
        every = [part for parts in programs for part in parts]
        batches, pasts = (
            np.unique(np.concatenate([part.over.sizes[name] for part in every]))
            for name in ("batch", "past")
        )
        self._shape = len(batches), len(pasts)
        self._at = [
            [
                (
                    np.searchsorted(batches, part.over.sizes["batch"]),
                    np.searchsorted(pasts, part.over.sizes["past"]),
                )
                for part in parts
            ]
            for parts in programs
        ]
        self.row = np.searchsorted(batches, batch)
        self.first = np.searchsorted(pasts, prompt)
        self.prompt, self.batch = prompt, batch
        last = np.searchsorted(pasts, prompt + max(most - 2, 0))
        self._starts: list[Ints] = []
        """By program, row by row: the first past of it in the generation, -1 where there is none."""
        for at in self._at:
            there = np.full(self._shape, self._shape[1], np.int64)
            for rows, columns in at:
                there[rows, columns] = columns
            first = np.minimum.accumulate(there[:, ::-1], axis=1)[:, ::-1][self.row, self.first]
            self._starts.append(np.where(first <= last, first, -1))
        self._pasts, self._last = pasts, last
        self._moved: dict[Any, list[tuple[Tensor, str, str]]] = {}

    def searches(self, made: Callable[[OpGraph, Over], PlacementSearch]) -> "list[_Placing | None]":
        """What places the steps of each program; None of one that no generation comes to."""
        found: list[_Placing | None] = []
        for parts, starts in zip(self._programs, self._starts, strict=True):
            some = np.flatnonzero(starts >= 0)
            if not len(some):
                found.append(None)
                continue
            pairs = np.stack([self.batch[some], self._pasts[starts[some]]])
            sizes, which = np.unique(pairs, axis=1, return_inverse=True)
            still = np.zeros(sizes.shape[1], np.int64)
            over = Over({"batch": sizes[0], "past": sizes[1], "seq": still + 1, "source": still})
            place = np.full(len(starts), -1, np.int64)
            place[some] = which.reshape(-1)
            found.append((made(parts[0].graph, over), place))
        return found

    def generated(
        self,
        prefills: Prefills,
        searches: Sequence[_Placing | None],
        machine: Machine,
        residency: Residency,
        news: Sequence[int],
    ) -> list[Generated]:
        """The generations of so many new tokens, for each of ``news``."""
        length = len(self.row)
        placed, optimal = [*prefills.placed], [*prefills.optimal]
        parts = [_Sums(length) for _ in news]
        moved = _Moved(length)
        at_least, energy_at_least, estimate = (
            prefills.figures[name].copy() for name in ("at_least", "energy_at_least", STATUS)
        )
        estimate = estimate == "estimate"
        for number, search in enumerate(searches):
            if search is None:
                continue
            placing, where = search
            answers, streams = placing.answers(machine), placing.streams(machine)
            policy, wire = placing.policy, placing.wire(machine)
            which = np.where(where >= 0, answers.which[where], -2)
            for row in np.flatnonzero(which == -1).tolist():
                if prefills.devices[row] is not None:
                    placed[row] = answers.placed[where[row]]
            for row in np.flatnonzero(which >= 0).tolist():
                proven = answers.optimal[where[row]]
                optimal[row] = proven if optimal[row] is None else optimal[row] and proven
            for which_one, devices in enumerate(answers.placements):
                rows = np.flatnonzero(which == which_one)
                if not len(rows):
                    continue
                walked = self._walked(
                    number, rows, policy, devices, streams, wire, machine, residency
                )
                begin = rows[self._starts[number][rows] == self.first[rows]]
                at = self.row[begin], self.first[begin]
                at_least[begin] |= walked.at_least[at]
                energy_at_least[begin] |= walked.energy_at_least[at]
                for part, new in zip(parts, news, strict=True):
                    part.add(walked, rows, self.row, self.first, self._last_of(new))
                    some = walked.estimates[self.row[rows], self._last_of(new)[rows] + 1]
                    part.estimate[rows] |= some > walked.estimates[self.row[rows], self.first[rows]]
                graph = self._programs[number][0].graph
                read = placement_on(devices, streams)
                self._move(moved, prefills, begin, graph, read, wire, machine)
        possible = np.array([how not in (IMPOSSIBLE, NOT_FOUND) for how in placed])
        at_least |= moved.at_least
        energy_at_least |= moved.energy_at_least
        some = at_least, energy_at_least
        return [
            self._columns(prefills, placed, optimal, possible, part, moved, some, estimate, new)
            for part, new in zip(parts, news, strict=True)
        ]

    def _last_of(self, new: int) -> Ints:
        """By row: the position of the past of the last step; before the first one for no step."""
        found: Ints = np.searchsorted(self._pasts, self.prompt + new - 1) - 1
        return found

    def _walked(
        self,
        number: int,
        rows: Ints,
        policy: Policy,
        devices: Devices,
        streams: frozenset[int],
        wire: WireFormat,
        machine: Machine,
        residency: Residency,
    ) -> "_Walked":
        """The steps of a program under one placement, as far as the generations of rows have them."""
        found = _Walked(self._shape)
        low, high = self.first[rows].min(), self._last[rows].max()
        for part, (of_batch, of_past) in zip(self._programs[number], self._at[number], strict=True):
            passed = np.flatnonzero((of_past >= low) & (of_past <= high))
            if not len(passed):
                continue
            placed_parts = part.placed_parts(
                policy, devices, streams, passed, wire, machine, residency
            )
            for some, placed in placed_parts:
                found.fill((of_batch[some], of_past[some]), placed.figures(machine))
        found.sum_up()
        return found

    def _move(
        self,
        moved: "_Moved",
        prefills: Prefills,
        rows: Ints,
        graph: OpGraph,
        read: Placement,
        wire: WireFormat,
        machine: Machine,
    ) -> None:
        """What of the cache goes elsewhere before the first steps of rows."""
        link = machine.links.common
        figures = [device.energy for device in machine.described.values()]
        watts = sum(one.idle_watts or 0.0 for one in figures if one is not None)
        alike: dict[int, list[int]] = {}
        for row in rows.tolist():
            alike.setdefault(id(prefills.devices[row]), []).append(row)
        for some in alike.values():
            devices = prefills.devices[some[0]]
            if devices is None:
                continue
            key = devices, prefills.streams, read.devices, read.streams
            if key not in self._moved:
                left = placement_on(devices, prefills.streams)
                self._moved[key] = moved_state(prefills.graphs[some[0]], left, graph, read)
            if not self._moved[key]:
                continue
            at = np.array(some)
            still = np.zeros(len(at), np.int64)
            over = Over(
                {
                    "batch": self.batch[at],
                    "past": self.prompt[at],
                    "seq": still + 1,
                    "source": still,
                }
            )
            messages: dict[str, list[Crossing]] = {}
            for state, source, _ in self._moved[key]:
                way = "send" if source == HOME else "receive"
                messages.setdefault(way, []).append(crossing(state, wire, over))
            for way, tensors in messages.items():
                cost = message_cost(link, [one.payload_bytes for one in tensors], way)
                moved.payload_bytes[at] += sum(one.payload_bytes for one in tensors)
                if cost.seconds is None:
                    moved.is_timed[at] = False
                for one, taken in zip(tensors, cost.seconds or (), strict=bool(cost.seconds)):
                    moved.seconds[at] += taken + one.packing_seconds
                    moved.joules[at] += watts * (taken + one.packing_seconds)
                a_byte = link.picojoules_per_byte
                moved.joules[at] += sum(cost.wire_bytes) * ((a_byte or 0.0) * 1e-12)
                moved.energy_at_least[at] |= a_byte is None or bool(watts and not cost.seconds)
                for one in tensors:
                    moved.at_least[at] |= one.at_least
                    moved.is_estimate[at] |= one.is_estimate

    def _columns(
        self,
        prefills: Prefills,
        placed: Sequence[str],
        optimal: Sequence[bool | None],
        possible: Bools,
        steps: "_Sums",
        moved: "_Moved",
        at_least: tuple[Bools, Bools],
        estimate: Bools,
        new: int,
    ) -> Generated:
        """The figures of generations, from those of their parts."""
        figures, known = prefills.figures, prefills.known
        first, timed = figures["run_seconds"], known["run_seconds"].copy()
        alone = ~timed & (figures["transfers"] == 0) & known["home_seconds"]
        alone &= known["accelerator_seconds"]  # whatever the link
        first = np.where(alone, figures["home_seconds"] + figures["accelerator_seconds"], first)
        timed |= alone
        whole = timed & steps.is_timed & moved.is_timed
        total = first + moved.seconds + steps.seconds
        several = possible & steps.is_timed & (new > 1)
        read, energised = figures["run_joules"], possible & known["run_joules"]
        stepping = possible & steps.is_energised & (new > 1)
        all_known = energised & steps.is_energised
        spent = read + moved.joules + steps.joules
        estimate = estimate | steps.estimate | moved.is_estimate
        sums = {name: figures[name] + steps.sums[name] for name in SUMS}
        sums["total_payload_bytes"] = sums["total_payload_bytes"] + moved.payload_bytes
        columns = {
            **{name: (values, possible) for name, values in sums.items()},
            "moved_cache_bytes": (moved.payload_bytes, possible),
            "at_least": (at_least[0], possible),
            STATUS: (np.where(estimate, "estimate", "exact").astype(object), possible),
            "ttft_seconds": (first, possible & timed),
            "tpot_first_seconds": (steps.first, several),
            "tpot_last_seconds": (steps.last, several),
            "tpot_mean_seconds": (steps.seconds / max(new - 1, 1), several),
            "total_seconds": (total, possible & whole),
            "tokens_per_second": (
                self.batch * new / np.where(total > 0, total, 1),
                possible & whole & (total > 0),
            ),
            "energy_at_least": (at_least[1] & all_known, possible),
            "ttft_joules": (read, energised),
            "step_first_joules": (steps.first_joules, stepping),
            "step_last_joules": (steps.last_joules, stepping),
            "step_mean_joules": (steps.joules / max(new - 1, 1), stepping),
            "total_joules": (spent, all_known),
            "joules_per_token": (spent / (self.batch * new), all_known),
        }
        best = [one if can else None for one, can in zip(optimal, possible.tolist(), strict=True)]
        return Generated(
            placed,
            best,
            {name: values for name, (values, _) in columns.items()},
            {name: known for name, (_, known) in columns.items()},
        )


class _Walked:
    """Steps by batch and past: their figures, and running sums over the pasts before each."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._each = {name: np.zeros(shape, np.int64) for name in SUMS}
        self.seconds, self.is_timed = np.zeros(shape), True
        self.joules, self.is_energised = np.zeros(shape), True
        self.at_least, self._estimate = np.zeros(shape, bool), np.zeros(shape, bool)
        self.energy_at_least = np.zeros(shape, bool)

    def fill(self, at: tuple[Ints, Ints], figures: Mapping[str, Any]) -> None:
        """Take the figures of some steps."""
        for name, values in self._each.items():
            values[at] = figures[name]
        self.at_least[at] = figures["at_least"]
        self.energy_at_least[at] = figures["energy_at_least"]
        self._estimate[at] = figures[STATUS] == "estimate"
        if "run_joules" in figures:
            self.joules[at] = figures["run_joules"]
        else:
            self.is_energised = False
        seconds = figures.get("run_seconds")
        at_home, away = (figures.get(f"{place}_seconds") for place in (HOME, ACCELERATOR))
        if seconds is None and not figures["transfers"]:  # whatever the link
            seconds = None if at_home is None or away is None else at_home + away
        if seconds is None:
            self.is_timed = False
        else:
            self.seconds[at] = seconds

    def sum_up(self) -> None:
        """Make the running sums, of all before each past and behind the last."""
        self.sums = {name: _running(each) for name, each in self._each.items()}
        self.running_seconds, self.running_joules = _running(self.seconds), _running(self.joules)
        self.estimates = _running(self._estimate.astype(np.int64))


def _running(each: Any) -> Any:
    found = np.zeros((each.shape[0], each.shape[1] + 1), each.dtype)
    np.cumsum(each, axis=1, out=found[:, 1:])
    return found


class _Sums:
    """What steps come to, by row."""

    def __init__(self, length: int) -> None:
        self.sums = {name: np.zeros(length, np.int64) for name in SUMS}
        self.seconds, self.first, self.last = (np.zeros(length) for _ in range(3))
        self.joules, self.first_joules, self.last_joules = (np.zeros(length) for _ in range(3))
        self.is_timed, self.estimate = np.ones(length, bool), np.zeros(length, bool)
        self.is_energised = np.ones(length, bool)

    def add(self, walked: _Walked, rows: Ints, batch: Ints, first: Ints, last: Ints) -> None:
        """Add the steps of one program and placement to rows, by positions of batch and pasts."""
        batch, first, last = batch[rows], first[rows], last[rows]
        own = ((total, walked.sums[name]) for name, total in self.sums.items())
        seconds, joules = walked.running_seconds, walked.running_joules
        for total, running in (*own, (self.seconds, seconds), (self.joules, joules)):
            total[rows] += running[batch, last + 1] - running[batch, first]
        some = last >= first
        self.first[rows] += np.where(some, walked.seconds[batch, first], 0.0)
        self.last[rows] += np.where(some, walked.seconds[batch, last], 0.0)
        self.first_joules[rows] += np.where(some, walked.joules[batch, first], 0.0)
        self.last_joules[rows] += np.where(some, walked.joules[batch, last], 0.0)
        self.is_timed[rows] &= walked.is_timed | ~some
        self.is_energised[rows] &= walked.is_energised | ~some


class _Moved:
    """What the cache that moves takes, by row."""

    def __init__(self, length: int) -> None:
        self.payload_bytes, self.seconds = np.zeros(length, np.int64), np.zeros(length)
        self.joules, self.energy_at_least = np.zeros(length), np.zeros(length, bool)
        self.is_timed, self.at_least = np.ones(length, bool), np.zeros(length, bool)
        self.is_estimate = np.zeros(length, bool)
