"""A traced model that is split between devices, and what crosses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutedge._machines import Machines
from cutedge._placing import bottlenecks, derived_of, explained, partition_of, setting_of
from partition import Residency
from partition.optimise import Setting
from partition.policy import Policy, cautions, load_policy, with_secrets
from partition.tables import Partition as Split
from partition.tables import partition_tables, summary_row
from tracer.graph import OpGraph

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._trace import Trace
    from partition.explain import Bottleneck
    from partition.ladder import Step
    from partition.optimise import Price
    from partition.seen import Derived


@dataclass(frozen=True, slots=True)
class Asked:
    """What partitions of a graph are made by."""

    policies: Mapping[str, Policy]
    """By what the user calls them."""
    machines: Machines
    setting: Setting


def asked_of(
    graph: OpGraph, policies: Sequence[str | Path | Policy], machines: Machines,
    residency: Residency, secrets: Sequence[str], max_calls: int | None, time_limit: float,
) -> Asked:  # fmt: skip
    """The policies and the setting that a user's words come to, for a graph."""
    chosen = {
        one.name if isinstance(one, Policy) else str(one): with_secrets(
            graph, one if isinstance(one, Policy) else load_policy(str(one)), secrets
        )
        for one in policies
    }
    return Asked(chosen, machines, setting_of(graph, machines, residency, max_calls, time_limit))


class Partition:
    """A traced model on its devices: where each op is, what moves, and what that takes."""

    def __init__(self, trace: "Trace", split: Split, asked: Asked, policy: Policy) -> None:
        """Made by ``Trace.partition`` and ``Trace.compare``."""
        self.trace = trace
        """The traced model."""
        self.policy = split.policy
        """What placed it, by name."""
        self._split, self._asked, self._policy = split, asked, policy

    @classmethod
    def placed(cls, trace: "Trace", asked: Asked, name: str) -> "Partition":
        """What one of the policies makes of a trace."""
        policy = asked.policies[name]
        split = partition_of(trace.graph, trace.id, policy, asked.setting, asked.machines)
        return cls(trace, split, asked, policy)

    def __repr__(self) -> str:
        totals, placement = self._split.traffic.totals, self._split.placement
        called = ", ".join(placement.accelerators) or "no accelerator"
        return (
            f"<cutedge.Partition {self.policy} of {self.trace.graph.meta.model}: "
            f"{placement.home} calls {called} {len(self._split.traffic.calls)} times, "
            f"{totals.payload_bytes:,} bytes>"
        )

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        shown = ("calls", "transfers", "sent_payload_bytes", "received_payload_bytes",
                 "total_payload_bytes", "run_seconds", "optimal")  # fmt: skip
        values = [[name, self.summary[name]] for name in shown if self.summary[name] is not None]
        return rows(repr(self).strip("<>"), ("", ""), values)

    @cached_property
    def _tables(self) -> "dict[str, pa.Table]":
        return partition_tables(self._split)

    @property
    def placement(self) -> "pa.Table":
        """A row for each op: its device, and why it is there."""
        return self._tables["placement"]

    @property
    def transfers(self) -> "pa.Table":
        """A row for each tensor that crosses.

        >>> import cutedge
        >>> p = cutedge.trace("edge-10m", seq=64).partition("offload-linear")
        >>> sum(p.transfers["payload_bytes"].to_pylist())
        5938240
        """
        return self._tables["transfers"]

    @property
    def calls(self) -> "pa.Table":
        """A row for each round trip to an accelerator."""
        return self._tables["calls"]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The whole run in a row: column -> value, as in ``summary.parquet``."""
        return summary_row(self._split)

    @cached_property
    def bottleneck(self) -> "Bottleneck | None":
        """What makes most of the traffic and what would relieve it; None where nothing crosses."""
        (found,) = bottlenecks([self._split], self._asked.setting, [self._policy])
        return found

    @property
    def derived(self) -> "dict[str, list[Derived]]":
        """By device that is not trusted, what it gets that arithmetic has made of secrets."""
        return derived_of(self.trace.graph, self._policy, self._asked.setting, self._split)

    @property
    def warnings(self) -> list[str]:
        """Where the policy does less than it says."""
        return list(cautions(self.trace.graph, self._policy))

    def explain(self) -> "tuple[list[Step], list[Price]]":
        """(the steps from offload-linear, what each rule and secret costs)"""
        return explained(self.trace.graph, self._policy, self._asked.setting, self._split)

    def query(self, sql: str) -> "pa.Table":
        """What DuckDB answers over the trace's tables and these of the partition.

        >>> import cutedge
        >>> p = cutedge.trace("edge-10m", seq=64).partition("offload-linear")
        >>> p.query("SELECT max(payload_bytes) AS most FROM transfers").to_pylist()
        [{'most': 262144}]
        """
        from cutedge._sql import ask

        trace = {"ops": self.trace.ops, "tensors": self.trace.tensors, "edges": self.trace.edges}
        return ask(sql, {**trace, **self._tables})

    def save(self, folder: str | Path) -> Path:
        """Write the trace's tables and these below it; where these are."""
        from partition.tables import write_partition

        return write_partition(self._split, self.trace.save(folder))
