"""When the ops of a split model run and its tensors move."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from partition.split import Split

if TYPE_CHECKING:
    import pyarrow as pa

    from partition.schedule import Schedule


class Timetable:
    """A split model laid out in time: what runs and moves when, and what it waits for."""

    def __init__(self, split: Split, schedule: "Schedule") -> None:
        """Made by ``Partition.schedule``."""
        self.split, self.schedule = split, schedule

    def __repr__(self) -> str:
        found, least = self.schedule, ">= " * self.schedule.at_least
        return (
            f"<cutedge.Timetable {found.schedule} of {self.split.policy}: {found.requests} x "
            f"{len(found.slots) // found.requests} ops and transfers, {least}"
            f"{found.makespan_seconds:g} s>"
        )

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        shown = {key: value for key, value in self.summary.items() if key != "critical_path"}
        return rows(repr(self).strip("<>"), ("", ""), [[key, shown[key]] for key in shown])

    @cached_property
    def table(self) -> "pa.Table":
        """A row for each op and each transfer of each request, as in ``schedule.parquet``."""
        from partition.schedule_table import SCHEDULE, schedule_rows
        from tracer.serde import make_tables

        rows = schedule_rows(self.split.graph, self.schedule)
        tables = make_tables(
            self.split.graph.meta, {"schedule": (SCHEDULE, rows)}, self.split.identity
        )
        return tables["schedule"]

    @property
    def critical_path(self) -> "pa.Table":
        """The rows that say how long it takes: each starts where the one before it ends."""
        return self.table.filter(self.table["critical"])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Figures by name, as ``partition --schedule ... --json`` has them."""
        from partition.schedule_table import schedule_summary

        return schedule_summary(self.split.graph, self.schedule)
