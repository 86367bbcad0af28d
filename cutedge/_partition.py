"""A traced model that is split between devices, and what crosses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from costmodels.machine import Machine
from cutedge._placing import (
    bottlenecks,
    derived_of,
    explained,
    exposed,
    partition_of,
    scheduling_of,
)
from partition import Granularity, Residency, ScheduleKind
from partition.policy import Policy, cautions, load_policy, with_objective, with_secrets
from partition.run import times_under
from partition.schedule import Scheduling
from partition.setting import Setting
from partition.split import Split
from partition.summary_table import summary_row
from partition.tables import partition_tables
from tracer.errors import InputError, choose
from tracer.graph import OpGraph

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._carried import BesideOptimum, Words
    from cutedge._export import GraphKind
    from cutedge._schedule import Timetable
    from cutedge._trace import Trace
    from cutedge._verify import Transport, Verification
    from partition.explain import Bottleneck, TransferGroup
    from partition.ladder import LadderStep
    from partition.layers import TopologicalCut
    from partition.prices import Price
    from partition.seen import Derived

Objective = str | Mapping[str, float] | None
"""What is best, in place of what a policy says: a text as ``--objective`` takes, or weights."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What partitions of a graph are made by."""

    policies: Mapping[str, Policy]
    """By what the user calls them."""
    setting: Setting


def asked_of(
    graph: OpGraph,
    policies: Sequence[str | Path | Policy],
    machine: Machine,
    residency: Residency,
    secrets: Sequence[str],
    max_calls: int | None,
    time_limit: float,
    scheduling: Scheduling | None = None,
    granularity: Granularity = "op",
    objective: Objective = None,
) -> Asked:
    """The policies and the setting that a user's words come to, for a graph."""
    choose(granularity, get_args(Granularity), "--granularity")
    chosen = {
        one.name if isinstance(one, Policy) else str(one): with_secrets(
            graph, one if isinstance(one, Policy) else load_policy(str(one)), secrets
        )
        for one in searching(policies, objective)
    }
    times = machine.times(graph)
    setting = Setting(machine, residency, times, max_calls, time_limit, scheduling, granularity)
    return Asked(chosen, setting)


def chosen(policy: str | None, words: str | None) -> str | Policy:
    """What places a split: a policy, or an executor's words. Raises InputError for both."""
    if words is None:
        return policy or "offload-linear"
    if policy is not None:
        raise InputError(f"--placement places every op: leave out --policy {policy}")
    from cutedge._carried import placement

    return placement(words)


def searching(
    policies: Sequence[str | Path | Policy], objective: Objective
) -> Sequence[str | Path | Policy]:
    """The policies, those that search for another objective where one is given.

    Raises InputError where not one of them searches.
    """
    if objective is None:
        return policies
    given = [one if isinstance(one, Policy) else load_policy(str(one)) for one in policies]
    if not any(policy.objective for policy in given):
        names = ", ".join(dict.fromkeys(policy.name for policy in given))
        raise InputError(
            f"--objective is of a policy that searches, and {names} leaves nothing free: take fastest"
        )
    return [with_objective(policy, objective) for policy in given]


class Partition:
    """A traced model on its devices: where each op is, what moves, and what that takes."""

    def __init__(self, trace: "Trace", split: Split, asked: Asked, policy: Policy) -> None:
        """Made by ``Trace.partition`` and ``Trace.compare``."""
        self.trace = trace
        """The traced model."""
        self.policy = split.policy
        """What placed it, by name."""
        self.bare = split
        """The placement and what it moves; maybe without what it shows and its trace's id."""
        self.rules = policy
        """The policy itself, secrets that were asked for with it."""
        self.setting = asked.setting

    @classmethod
    def placed(cls, trace: "Trace", asked: Asked, name: str) -> "Partition":
        """What one of the policies makes of a trace."""
        policy = asked.policies[name]
        split = partition_of(trace.graph, "", policy, asked.setting, shows=False)
        return cls(trace, split, asked, policy)

    @cached_property
    def split(self) -> Split:
        """The placement, what it moves and what it shows, as the tables are made from it."""
        if self.bare.trace_id:
            return self.bare
        shown = exposed(self.bare, self.setting)
        return replace(self.bare, trace_id=self.trace.id, exposed=shown)

    def __repr__(self) -> str:
        totals, placement = self.split.traffic.totals, self.split.placement
        called = ", ".join(placement.accelerators) or "no accelerator"
        return (
            f"<cutedge.Partition {self.policy} of {self.trace.graph.meta.model}: "
            f"{placement.home} calls {called} {len(self.split.traffic.calls)} times, "
            f"{totals.payload_bytes:,} bytes>"
        )

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        shown = (
            "calls",
            "transfers",
            "sent_payload_bytes",
            "received_payload_bytes",
            "total_payload_bytes",
            "run_seconds",
            "at_least",
            "optimal",
        )
        values = [[name, self.summary[name]] for name in shown if self.summary[name] is not None]
        return rows(repr(self).strip("<>"), ("", ""), values)

    @cached_property
    def _tables(self) -> "dict[str, pa.Table]":
        return partition_tables(self.split)

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
        return summary_row(self.split)

    @cached_property
    def bottleneck(self) -> "Bottleneck | None":
        """What makes most of the traffic and what would relieve it; None where nothing crosses."""
        (found,) = bottlenecks([self.split], self.setting, [self.rules])
        return found

    @cached_property
    def top_transfers(self) -> "list[TransferGroup]":
        """What crosses, alike tensors together, those of most bytes first."""
        from partition.explain import top_transfers

        return top_transfers(self.split.graph, self.split.traffic)

    @cached_property
    def topological_cut(self) -> "TopologicalCut | None":
        """The best cut of the op graph at any op, beside that of a policy of layers."""
        from partition.optimise import beside_layers

        return beside_layers(self.trace.graph, self.rules, self.setting)

    @cached_property
    def beside_optimum(self) -> "BesideOptimum | str | None":
        """How far an executor's placement (``cutedge.placement``) is from the best; or why not known.

        None of any other policy's.
        """
        if self.rules.placer is None:
            return None
        from cutedge._carried import beside_optimum

        return beside_optimum(self.bare, self.rules, self.setting)

    @cached_property
    def derived(self) -> "dict[str, list[Derived]]":
        """By device that is not trusted, what it gets that arithmetic has made of secrets."""
        return derived_of(self.setting, self.split)

    @property
    def warnings(self) -> list[str]:
        """Where the policy does less than it says, and what of the machine cannot be so."""
        from cutedge._words import bare_sentences

        graph, machine = self.trace.graph, self.setting.machine
        told = [*machine.warnings, *cautions(graph, self.rules)]
        told += bare_sentences(graph, self.rules, self.bare)
        if self.rules.placer is not None:
            from cutedge._carried import too_large

            told += too_large(self.bare, self.setting)
        as_int8 = machine.options.int8_speedup is not None
        if as_int8 and self.bare.sent_weight_bytes and not graph.meta.weights:
            told.append(
                f"arrays that compute in int8 are sent weights in {graph.meta.dtype}: say with "
                "--weights what they are stored in"
            )
        return told

    def explain(self) -> "tuple[list[LadderStep], list[Price]]":
        """(the steps from offload-linear, what each rule and secret costs)"""
        return explained(self.trace.graph, self.rules, self.setting, self.split)

    def schedule(
        self, schedule: ScheduleKind = "overlap", requests: int | None = None
    ) -> "Timetable":
        """When ops run and tensors move: one after another (``serial``), or each as soon as it can.

        Several ``requests`` are there from the start, side by side. Seconds that are not known
        count as 0, and ``at_least`` says so. Raises InputError for no such schedule.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> p = t.partition("offload-linear", machine="tee-tdx+h100-cc@pcie5-x16-cc")
        >>> found = p.schedule("overlap", requests=2)
        >>> found.summary["limited_by"], found.table.num_rows
        ('tee-tdx <-> h100-cc', 382)
        >>> found.summary["bound_seconds"] <= found.summary["makespan_seconds"]
        True
        """
        from cutedge._schedule import Timetable

        asked = scheduling_of(schedule, requests)
        assert asked is not None  # it was refused
        split = self.split
        times = times_under(
            split.graph, split.placement, split.traffic.transfers, self.setting.times
        )
        return Timetable(split, split.laid_out(times, asked))

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

    def verify(
        self,
        *,
        seed: int = 0,
        weights: str | Path | None = None,
        transport: "Transport" = "unix",
        workers: Sequence[str] | None = (),
        tls_ca: str | Path | None = None,
        runs: int = 1,
        timeout: float = 300.0,
    ) -> "Verification":
        """Run the split for real, by processes over sockets, and count what crosses.

        Numbers are random, from a ``seed``; with ``weights``, parameters are those of a folder with
        .safetensors. ``workers`` listen elsewhere, as ``gpu=HOST:PORT``, ``tls_ca`` signs their
        certificates; else each accelerator is a process here, behind ``unix`` or ``tcp`` sockets.
        Of several ``runs`` the fastest is what is measured. A worker may be silent for ``timeout``
        seconds. What was found wrong is in ``failure``; ``check`` raises it.

        Raises InputError for a trace that was loaded (its model is not there), RunError for a run
        that fails.

        >>> import cutedge
        >>> p = cutedge.trace("edge-10m", seq=4).partition("fuse-attention")
        >>> p.verify().check().verdict.bytes_equal
        True
        """
        from cutedge._verify import verify

        return verify(
            self,
            seed,
            None if weights is None else Path(weights),
            transport,
            workers or (),
            None if tls_ca is None else Path(tls_ca),
            runs,
            timeout,
        )

    def export(self, kind: "GraphKind | Literal['perfetto']", file: str | Path) -> Path:
        """Write the graph with its devices, or a timeline for ui.perfetto.dev; where it is.

        The kinds of graph are those of ``Trace.export``. Raises InputError for a timeline of
        devices or links whose seconds are not known.
        """
        from cutedge._export import export_graph, export_timeline

        if kind == "perfetto":
            export_timeline(self.split, None, Path(file), machine=self.setting.machine)
        else:
            export_graph(kind, self.split.graph, self.split, Path(file))
        return Path(file)

    def words_for(self, executor: str, *, nearest: bool = False) -> "Words":
        """The placement in the words of an executor, ready for it in ``text``.

        ``executor`` is ``llama.cpp``, ``accelerate``, ``vllm``, ``torch``, ``onnxruntime``,
        ``openvino`` or ``executorch``. Raises InputError for another one, CutedgeError for a
        placement that it cannot carry out: it says which ops stop it, and what the ``nearest``
        costs that is written in its place where that will do.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> t.partition("layers").words_for("vllm", nearest=True).text
        'VLLM_PP_LAYER_PARTITION=3,1\\n'
        """
        from cutedge._carried import words_for

        return words_for(self.bare, executor, nearest=nearest)

    def save(self, folder: str | Path) -> Path:
        """Write the trace's tables and these below it; where these are."""
        from partition.tables import write_partition

        return write_partition(self.split, self.trace.save(folder))
