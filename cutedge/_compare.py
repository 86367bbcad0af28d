"""Policies side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from costmodels.machine import Machine
from cutedge._partition import Asked, Objective, Partition, asked_of
from cutedge._placing import (
    Compared,
    arranged,
    check_namesakes,
    compared_on,
    compared_over,
    obstacles,
)
from partition import Granularity, Order, Residency
from partition.policy import Policy, load_policy, open_policy_names
from partition.seen import What
from tracer.errors import choose

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._report import Written
    from cutedge._trace import Trace
    from partition.crossover import Crossover, Point
    from partition.schedule import Scheduling


def compare(
    trace: "Trace",
    policies: Sequence[str | Path | Policy] | None,
    placements: Sequence[str],
    baseline: str | None,
    machine: Machine,
    residency: Residency,
    secrets: Sequence[str],
    max_calls: int | None,
    time_limit: float,
    scheduling: "Scheduling | None",
    granularity: Granularity,
    objective: Objective = None,
) -> "Comparison":
    """The policies on a trace; one that cannot be is left out, where the user has not named it."""
    asked = asked_of(
        trace.graph,
        [*(policies or open_policy_names()), *_placements(placements)],
        machine,
        residency,
        (),
        max_calls,
        time_limit,
        scheduling,
        granularity,
        objective,
    )
    names = list(asked.policies)
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        asked = replace(asked, policies={against: load_policy(against), **asked.policies})
    check_namesakes(asked.policies)
    found = compared_on(
        trace.graph,
        trace.id,
        asked.policies,
        against,
        asked.setting,
        strict=bool(policies),
        secret=secrets,
        named=baseline is not None,
    )
    return Comparison(trace, found, asked, names[0] if policies else against)


def _placements(given: Sequence[str]) -> list[Policy]:
    """The policies of executors' words, which are seldom given: their modules load then alone."""
    if not given:
        return []
    from cutedge._carried import placement_policies

    return placement_policies(given)


def crossovers(
    trace: "Trace",
    over: tuple[str, str],
    policies: Sequence[str | Path | Policy] | None,
    machine: Machine,
    residency: Residency,
    secrets: Sequence[str],
    max_calls: int | None,
    time_limit: float,
    scheduling: "Scheduling | None",
    granularity: Granularity,
    objective: Objective = None,
) -> "tuple[str, list[Point], list[Crossover]]":
    """(unit, the best policy at sizes of a range, where that changes): ``Trace.crossovers``."""
    graph = trace.graph
    asked = asked_of(
        graph,
        policies or open_policy_names(),
        machine,
        residency,
        secrets,
        max_calls,
        time_limit,
        scheduling,
        granularity,
        objective,
    )
    check_namesakes(asked.policies)
    without = {} if policies else obstacles(asked.policies, asked.setting)
    possible = {name: rules for name, rules in asked.policies.items() if name not in without}
    return compared_over(graph, trace.reach, over, possible, asked.setting)


class Comparison(Sequence[Partition]):
    """Partitions of one trace by several policies, one after another, or by name."""

    def __init__(self, trace: "Trace", compared: Compared, asked: Asked, first: str) -> None:
        """Made by ``Trace.compare``; ``first`` is the policy that a report shows first."""
        self.trace = trace
        """The traced model."""
        self.compared = compared
        """What was found of the policies, as the tables and reports are made from it."""
        self._asked, self._first = asked, first
        self._partitions = [
            Partition(trace, split, asked, policy)
            for split, policy in zip(compared.partitions, compared.policies, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._partitions)

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._partitions)

    def __getitem__(self, which: int | str) -> Partition:  # type: ignore[override]  # no slices
        if isinstance(which, str):
            return self._partitions[list(self.compared.names).index(which)]
        return self._partitions[which]

    def __repr__(self) -> str:
        return f"<cutedge.Comparison {', '.join(self.compared.names)}>"

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        shown = ("policy", "calls", "total_payload_bytes", "run_seconds", "at_least", "optimal")
        return rows(
            repr(self).strip("<>"), shown, [[one.summary[name] for name in shown] for one in self]
        )

    @property
    def shown(self) -> int:
        """Which policy a report shows first."""
        names = self.compared.names
        return names.index(self._first) if self._first in names else 0

    @property
    def saved_bytes(self) -> Mapping[str, int]:
        """By policy, the payload that it saves against the baseline."""
        return {
            name: one.saved_bytes
            for name, one in zip(self.compared.names, self.compared.comparisons, strict=True)
        }

    @property
    def without(self) -> Mapping[str, str]:
        """Policy that is not possible here -> why."""
        return self.compared.without

    @property
    def warnings(self) -> list[str]:
        """Where the policies do less than they say, and what of the machine cannot be so."""
        machine = self.compared.setting.machine.warnings
        return [
            *machine,
            *(
                f"{name}: {warning}"
                for name, one in zip(self.compared.names, self, strict=True)
                for warning in one.warnings
                if warning not in machine
            ),
        ]

    @property
    def summary(self) -> "pa.Table":
        """A row for each policy, as in ``summary.parquet``.

        >>> import cutedge
        >>> found = cutedge.trace("edge-10m", seq=64).compare(["offload-linear", "min-cut"])
        >>> found.summary["calls"].to_pylist()
        [26, 1]
        """
        import pyarrow as pa

        return pa.concat_tables([one._tables["summary"] for one in self])

    def arranged(self, unseen: Sequence[str] = (), sort: Order | None = None) -> "Comparison":
        """Those under which no untrusted device sees ``unseen`` sorts of tensor, in an order.

        ``sort`` puts the fewest ``bytes``, ``calls``, ``seconds``, joules (``energy``) or sorts
        ``seen`` first. Savings
        stay against the same baseline. Raises InputError for what is no sort of tensor.

        >>> import cutedge
        >>> found = cutedge.trace("edge-10m", seq=64).compare(["offload-linear", "min-cut"])
        >>> [one.policy for one in found.arranged(sort="calls")]
        ['min-cut', 'offload-linear']
        """
        for what in unseen:
            choose(what, [sort.value for sort in What], "--unseen")
        return Comparison(
            self.trace, arranged(self.compared, unseen, sort), self._asked, self._first
        )

    def report(self, page: str | Path, *, png: bool = False) -> "Written":
        """Write a page that shows the policies, readable offline; what was written.

        With ``png`` its drawings too, as pictures beside it, by a Chromium that is installed.
        """
        from cutedge._report import write_report

        return write_report(self.compared, self.trace.reach, self.shown, Path(page), png=png)

    def beside(self, other: "Comparison", page: str | Path) -> "Written":
        """Write a page with another comparison beside this one, in two columns; what was written.

        Both are of one phase; models, sizes and machines may differ. Raises InputError where they
        cannot be compared.
        """
        from cutedge._beside import write_beside

        return write_beside(self, other, Path(page))

    def serve(self, port: int | None = None, listening: Callable[[str], None] = print) -> None:
        """Show the policies on a page with sliders, for this machine alone, until Ctrl-C.

        ``port`` is where it listens on 127.0.0.1 (0: any that is free); ``listening`` is told the
        address. Raises InputError for several accelerators and for schedules, CutedgeError where
        the port is not free.
        """
        from cutedge._live_server import serve_page

        serve_page(self, port, listening)

    def save(self, folder: str | Path) -> Path:
        """Write the tables of the trace and of all partitions; where the trace is."""
        from partition.tables import write_partition

        saved = self.trace.save(folder)
        for split in self.compared.partitions:
            write_partition(split, saved)
        return saved
