"""Policies side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cutedge._machines import Machines
from cutedge._partition import Asked, Partition, asked_of
from cutedge._placing import Compared, check_namesakes, compared_on
from partition import Residency
from partition.policy import Policy, load_policy, open_policy_names

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._trace import Trace


def compare(
    trace: "Trace", policies: Sequence[str | Path | Policy] | None, baseline: str | None,
    machines: Machines, residency: Residency, secrets: Sequence[str], max_calls: int | None,
    time_limit: float,
) -> "Comparison":  # fmt: skip
    """The policies on a trace; one that cannot be is left out, where the user has not named it."""
    asked = asked_of(
        trace.graph, policies or open_policy_names(), machines, residency, (), max_calls, time_limit
    )
    names = list(asked.policies)
    against = baseline or ("offload-linear" if "offload-linear" in names else names[0])
    if against not in names:
        asked = replace(asked, policies={against: load_policy(against), **asked.policies})
    check_namesakes(asked.policies)
    found = compared_on(
        trace.graph, trace.id, asked.policies, against, asked.setting, machines,
        strict=policies is not None, secret=secrets, named=baseline is not None,
    )  # fmt: skip
    return Comparison(trace, found, asked)


class Comparison(Sequence[Partition]):
    """Partitions of one trace by several policies, one after another, or by name."""

    def __init__(self, trace: "Trace", found: Compared, asked: Asked) -> None:
        """Made by ``Trace.compare``."""
        self.trace = trace
        """The traced model."""
        self._found = found
        self._partitions = [
            Partition(trace, split, asked, policy)
            for split, policy in zip(found.partitions, found.policies, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._partitions)

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._partitions)

    def __getitem__(self, which: int | str) -> Partition:  # type: ignore[override]  # no slices
        if isinstance(which, str):
            return self._partitions[list(self._found.names).index(which)]
        return self._partitions[which]

    def __repr__(self) -> str:
        return f"<cutedge.Comparison {', '.join(self._found.names)}>"

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        shown = ("policy", "calls", "total_payload_bytes", "run_seconds", "optimal")
        return rows(
            repr(self).strip("<>"), shown, [[one.summary[name] for name in shown] for one in self]
        )

    @property
    def saved_bytes(self) -> Mapping[str, int]:
        """By policy, the payload that it saves against the baseline."""
        return {
            name: one.saved_bytes
            for name, one in zip(self._found.names, self._found.comparisons, strict=True)
        }

    @property
    def without(self) -> Mapping[str, str]:
        """Policy that is not possible here -> why."""
        return self._found.without

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

    def report(self, page: str | Path) -> Path:
        """Write a page that shows the policies, readable offline; where it is."""
        from cutedge._report import report_of, write_report

        write_report(report_of(self._found, self.trace._reach, 0), Path(page))
        return Path(page)

    def save(self, folder: str | Path) -> Path:
        """Write the tables of the trace and of all partitions; where the trace is."""
        from partition.tables import write_partition

        saved = self.trace.save(folder)
        for split in self._found.partitions:
            write_partition(split, saved)
        return saved
