"""A placement of a traced model, what it moves, and the run that its tables are of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from costmodels import WeightsAt
from costmodels.arrays import Options
from costmodels.links import Links
from costmodels.roofline import DeviceTime
from partition import Granularity, Residency
from partition.accounting import Traffic, account
from partition.energy import RunEnergy
from partition.ladder import Exposure
from partition.masks import MaskedGraph
from partition.placement import Placement
from partition.run import Chips, Run
from partition.schedule import Schedule, Scheduling, scheduled, tasks_of
from partition.wire_format import WireFormat
from tracer.graph import FLOATING, OpGraph
from tracer.serde import run_of

if TYPE_CHECKING:
    from partition.solve import Proof


def in_a_path(text: str) -> str:
    """A value as it stands in a folder's name, where DuckDB reads it: it may hold a "="."""
    return quote(text, safe="+@,() ")


PARTITIONS = "policy=*/wire=*/residency=*/machine=*"
"""Where the partitions of a trace lie in its directory."""


@dataclass(frozen=True, slots=True)
class Split:
    """A placement of a traced model with what it moves, and the options it was counted under."""

    graph: OpGraph
    """The trace's; where ops are masked a ``partition.masks.MaskedGraph``."""
    trace_id: str
    policy: str
    placement: Placement
    traffic: Traffic
    link: str
    """What the links are called."""
    links: Links | None
    """None of a split that was read from its tables, which name them alone."""
    wire_format: WireFormat
    """What tensors are on the wire; of a split that was read from its tables its dtype and text."""
    residency: Residency
    compute_seconds: Mapping[str, float] = field(default_factory=dict)
    """Device -> what its ops take there, one after another; described devices alone."""
    solution: "Proof | None" = None
    """How good the placement is; None where the policy left nothing free."""
    objective: str | None = None
    """What the solution is best for (``policy.UNITS``); None without one."""
    unit: str | None = None
    """Of the solution's objective and bound: ``bytes``, ``ns``, ``nJ`` or ``weighted``."""
    cycles: Mapping[str, int | None] = field(default_factory=dict)
    """Device -> the cycles of its products there, None where one has no sizes; arrays of
    multipliers alone."""
    options: Options = field(default_factory=Options)
    """What makes the arrays faster than their descriptions."""
    chips: Chips | None = None
    """The arrays that compute for home; None where no accelerator computes, or one is no array."""
    bound_seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Device -> what bounds its ops there (``compute``, ``sram``, ``dram``, ``overhead``) -> their
    seconds; accelerators that wait for memories of their own alone."""
    secret: frozenset[int] = frozenset()
    """The tensors that have a value of what the policy keeps secret."""
    exposed: tuple[Exposure, ...] = ()
    """What each accelerator sees that is not trusted."""
    described: Mapping[str, str] = field(default_factory=dict)
    """Device -> what it is, where that has another name."""
    devices: tuple[str, ...] = ()
    """Home and all accelerators that ops could have been placed on."""
    engine: str = ""
    """What carries ops out; empty where that is the physical bound."""
    execution: str = ""
    """How, where that is not what the engine says."""
    schedule: Schedule | None = None
    """When ops run and tensors move; None where that was not asked for."""
    weights_at: WeightsAt = "device"
    """Where parameters lie of ops that no rule of the policy says it of."""
    unknown_launches: tuple[str, ...] = ()
    """The devices of which ``compute_seconds`` leaves out what it takes to start an op."""
    granularity: Granularity = "op"
    """What ops lie on one device together."""
    by_op: "Proof | None" = None
    """How good the best placement op by op is; None where that is the granularity, where the policy
    left nothing free, and where it was not found in time."""
    mask_seconds: Mapping[int, float | None] = field(default_factory=dict)
    """What home does for masks, by the op in the graph -> its seconds; None where not known."""
    energy: RunEnergy | None = None
    """What the run takes in energy; None of a split that was read from its tables."""

    @property
    def granularity_price(self) -> int | None:
        """What the placement costs more than the best one found op by op, in ``unit``.

        None without one. Of searches that were cut short this one may have found the better.
        """
        if self.solution is None or self.by_op is None:
            return None
        return max(0, self.solution.objective - self.by_op.objective)

    @property
    def sent_weight_bytes(self) -> int:
        """The payload of parameters that lie at home."""
        sent = (t for t in self.traffic.transfers if t.tensor.op is None)
        return sum(t.payload_bytes for t in sent)

    @property
    def mask_costs(self) -> dict[str, int]:
        """What masks cost a run, by columns of ``summary``; 0 where there are no masks."""
        masks = self.graph if isinstance(self.graph, MaskedGraph) else None
        crossed = [t for t in self.traffic.transfers if masks and t.tensor.id in masks.masks]
        return {
            "masked_payload_bytes": sum(t.payload_bytes for t in crossed),
            "unmasked_payload_bytes": sum(self.unmasked_bytes(t.tensor.id) for t in crossed),
            "pad_bytes": masks.pad_bytes if masks else 0,
            "offline_flops": masks.offline_flops if masks else 0,
            "home_mask_flops": masks.home_mask_flops if masks else 0,
        }

    def unmasked_bytes(self, tensor: int) -> int:
        """What the payload is of what a tensor of the graph stands for under a mask."""
        masks = self.graph.masks if isinstance(self.graph, MaskedGraph) else {}
        plain = masks[tensor].plain if tensor in masks else tensor
        return self.wire_format.of(self.graph.tensors[plain]).payload_bytes

    @property
    def used(self) -> tuple[str, ...]:
        """Home, then the accelerators that run anything."""
        return (self.placement.home, *self.placement.accelerators)

    def over(self, links: Links) -> "Split":
        """The same placement over other links; proof and schedule were of the former ones."""
        traffic = account(
            self.graph, self.placement, links, wire=self.wire_format, residency=self.residency
        )
        return replace(
            self,
            link=links.name,
            links=links,
            traffic=traffic,
            solution=None,
            schedule=None,
            energy=None,
        )

    @property
    def wire_dtype(self) -> str | None:
        """What floating tensors were turned into on the wire, None for their own dtypes."""
        return self.wire_format.dtype

    @property
    def left_out(self) -> tuple[str, ...]:
        """What its seconds leave out since it is not known: with any of it they are at least so
        many.
        """
        crossed = [t for t in self.traffic.transfers if t.at_least]
        packings = {t.packing for t in crossed if t.packing_seconds is None}
        beside = [
            *(f"what packing by {name} takes" for name in sorted(packings)),
            *(f"the launch time of {name}" for name in self.unknown_launches),
        ]
        if self.links is None:
            late = any(t.packing_seconds is not None for t in crossed)
            return (*(["the latency of its links"] if late else []), *beside)
        home = self.placement.home
        used = {
            (self.links.between(t.src_device, t.dst_device, home), t.direction) for t in crossed
        }
        names = {link.name for link, direction in used if link.at_least(direction)}
        return (*(f"the latency of {name}" for name in sorted(names)), *beside)

    @property
    def run(self) -> Run | None:
        """What the run takes; None where a device or a link that it uses is not known."""
        moving = self.traffic.totals.seconds
        at_home, away = self.home_seconds, self.accelerator_seconds
        if moving is None or at_home is None or away is None:
            return None
        chips, tokens = self.chips, self.tokens
        if chips is None:
            return Run(at_home, away, moving, tokens, None)
        return Run(
            at_home,
            away,
            moving,
            tokens,
            chips.options.chips,
            chips.fewest_within(moving),
            at_home + chips.seconds(chips.most) + moving,
        )

    def laid_out(self, times: Mapping[str, DeviceTime], asked: Scheduling) -> Schedule:
        """When ops run and tensors move, by the seconds of devices under this placement."""
        tasks, lanes = tasks_of(
            self.graph, self.placement, self.traffic, times, self.residency, self.links
        )
        return scheduled(tasks, lanes, asked, self.run_seconds, at_least=bool(self.left_out))

    @property
    def home_seconds(self) -> float | None:
        """Computing at home; None where home is not described or cannot run all that is there."""
        return self.compute_seconds.get(self.placement.home)

    @property
    def accelerator_seconds(self) -> float | None:
        """Computing on the accelerators that are used, all together; None where one is unknown."""
        accelerators = self.placement.accelerators
        if not set(accelerators) <= set(self.compute_seconds):
            return None
        return sum((self.compute_seconds[d] for d in accelerators), 0.0)

    @property
    def run_seconds(self) -> float | None:
        """Computing and moving, one after another; None where ``run`` is."""
        return None if self.run is None else self.run.seconds

    @property
    def tokens(self) -> int:
        """New tokens of the batch, or inputs where a model reads no tokens."""
        return self.graph.meta.batch * max(self.graph.meta.seq, 1)

    @property
    def energy_figures(self) -> dict[str, Any]:
        """What the run takes in energy, by columns of ``summary``."""
        energy = self.energy or RunEnergy(None, None, self.traffic.totals.joules, None, True)
        run = energy.run_joules
        return {
            "joules": energy.link_joules,
            "home_joules": energy.home_joules,
            "accelerator_joules": energy.accelerator_joules,
            "idle_joules": energy.idle_joules,
            "run_joules": run,
            "joules_per_token": None if run is None else run / self.tokens,
            "energy_at_least": run is not None and energy.at_least,
        }

    def too_slow(self, seconds_per_token: float) -> float | None:
        """``Run.too_slow``, by the schedule where there is one: what its last request waits for.

        None also where ``run`` is.
        """
        laid = None if self.schedule is None else self.schedule.makespan_seconds
        return None if self.run is None else self.run.too_slow(seconds_per_token, laid)

    @property
    def wire(self) -> str:
        """The directory's name: what floats cross in, ``native`` where several do; behind it what all
        tensors are packed by where a rule of the policy says nothing else."""
        packed = f"+{self.wire_format.text}" if self.wire_format.text else ""
        return f"{self._float_dtype}{packed}"

    @property
    def _float_dtype(self) -> str:
        activations = [t for t in self.traffic.transfers if t.tensor.op is not None]
        crossing = {t.wire_dtype for t in activations if t.wire_dtype in FLOATING}
        if len(crossing) == 1:
            return crossing.pop()
        return "native" if crossing else self.wire_dtype or self.graph.meta.dtype

    @property
    def machine(self) -> str:
        """Devices and links in a text: ``tee-tdx+a=rtx-4090@pcie4-x16``; then options of arrays, what
        weights and cached state are stored in, what carries ops out, weights that are sent, and what
        ops lie together."""
        placement = self.placement
        used = self.devices or (placement.home, *placement.accelerators)
        devices = [
            name if self.described.get(name, name) == name else f"{name}={self.described[name]}"
            for name in used
        ]
        meta = self.graph.meta
        stored = (("weights", meta.weights), ("kv_dtype", meta.kv_dtype))
        told = [self.options.text, *(f"{what}={name}" for what, name in stored if name)]
        told += [self.engine, self.execution]
        told += ["weights_at=home"] if self.weights_at == "home" else []
        told += [f"granularity={self.granularity}"] if self.granularity != "op" else []
        return ", ".join([f"{'+'.join(devices)}@{self.link}", *filter(None, told)])

    @property
    def identity(self) -> dict[str, Any]:
        """The run that its tables are of: the values of ``serde.RUN``."""
        return run_of(
            self.graph,
            self.trace_id,
            policy=self.policy,
            wire=self.wire,
            residency=self.residency,
            machine=self.machine,
        )

    @property
    def folder(self) -> Path:
        """Where the tables go, inside the trace's directory."""
        run = self.identity
        names = ("policy", "wire", "residency", "machine")
        return Path(*(f"{name}={in_a_path(run[name])}" for name in names))
