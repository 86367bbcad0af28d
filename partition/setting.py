"""What a policy is applied to beside a graph: devices, links, and what an op and a tensor take."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from costmodels.flops import FREE
from costmodels.machine import Machine
from costmodels.roofline import DeviceTime
from partition import Granularity, Residency
from partition.accounting import Traffic, account
from partition.energy import idle_watts
from partition.packs import wire_format
from partition.placement import Placement
from partition.policy import Policy, apply_policy
from partition.schedule import Scheduling
from partition.wire_format import WireFormat
from tracer.graph import OpGraph


def fallen_back(graph: OpGraph, placement: Placement, machine: Machine) -> Placement:
    """A placement with the ops at home that their device does not run by its description
    (``op_kinds``), whatever put them there."""
    devices, reasons = [*placement.devices], [*placement.reasons]
    for op in graph.ops:
        name = devices[op.id]
        device = machine.described.get(name or "")
        if device is None or op.kind in FREE or name == placement.home or device.runs(op.kind):
            continue
        devices[op.id] = placement.home
        reasons[op.id] = f"{device.name} runs no {op.kind}: it falls to {placement.home}"
    if devices == [*placement.devices]:
        return placement
    return replace(placement, devices=devices, reasons=reasons)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy is applied to beside a graph."""

    machine: Machine
    residency: Residency = "run"
    times: Mapping[str, DeviceTime] = field(default_factory=dict)
    """Device -> what each op takes there, for the devices that are described."""
    max_calls: int | None = None
    time_limit: float | None = None
    """Seconds that a search may take; the best until then is the answer."""
    scheduling: Scheduling | None = None
    """How runs are laid out in time; None where that was not asked for. Placements are the best
    for runs one after another all the same."""
    granularity: Granularity = "op"
    """What ops lie on one device together, in placements that are searched for."""

    @property
    def untrusted(self) -> tuple[str, ...]:
        """The accelerators that are not described as trusted."""
        return tuple(
            device
            for device in self.machine.accelerators
            if device not in self.times or not self.times[device].device.trusted
        )

    @property
    def unknown_seconds(self) -> str | None:
        """What keeps seconds from being counted, in words; None where all is known."""
        undescribed = [d for d in self.machine.devices if d not in self.times]
        if undescribed:
            return (
                f"{', '.join(undescribed)} is no described device: name devices of "
                "`cutedge devices`, or .toml files, with --home and --accel"
            )
        home, accelerators = self.machine.home, self.machine.accelerators
        for (one, _), link in self.machine.links.among(home, accelerators).items():
            if not all(map(link.timed, ("send", "receive") if one == home else ("peer",))):
                return (
                    f"the link {link.name} has no bandwidth: choose another of `cutedge links` "
                    "with --link, or calibrate one"
                )
        return None

    @property
    def unknown_energy(self) -> str | None:
        """What keeps energy from being counted, in words; None where enough is known."""
        times = self.times
        if lacking := [
            name
            for name in self.machine.devices
            if name not in times or times[name].device.energy is None
        ]:
            return (
                f"{', '.join(lacking)} has no figures of energy: name devices of `cutedge devices` "
                "that have, or give yours figures (energy, busy_watts ...)"
            )
        return self.unknown_seconds if idle_watts(self.times) else None

    def of(self, graph: OpGraph) -> "Setting":
        """The same for another annotated graph: what its ops take on the machine's devices."""
        return replace(self, times=self.machine.times(graph))

    def fixed(self, graph: OpGraph, policy: Policy) -> Placement:
        """Where the rules of a policy put the ops; what they leave free, or what a device does not
        run, is at home."""
        machine = self.machine
        placed = apply_policy(
            graph,
            policy,
            home=machine.home,
            accelerators=machine.accelerators,
            weights_at=machine.weights_at,
        )
        return fallen_back(graph, placed, machine)

    def wire(self, graph: OpGraph, policy: Policy) -> WireFormat:
        """What tensors are on the wire under a policy."""
        return wire_format(graph, policy.packs, self.machine)

    def account(self, graph: OpGraph, placement: Placement, wire: WireFormat) -> Traffic:
        """What a placement moves over the machine's links."""
        return account(graph, placement, self.machine.links, wire=wire, residency=self.residency)

    def can_run(self, op: int, device: str) -> bool:
        """Whether a device has seconds for an op, or no description: an array multiplies alone."""
        return device not in self.times or self.times[device].ops[op].seconds is not None

    def call_seconds(self, accelerator: str) -> float:
        """What a call takes beside its tensors: two messages' latency and framing, where known."""
        link = self.machine.links.of(accelerator)
        return sum(link.message_seconds(way) or 0.0 for way in ("send", "receive"))

    def tensor_seconds(self, payload: int, source: str, destination: str) -> float:
        """What a tensor takes on its link, where known, without what its message takes.

        Between two accelerators with it.
        """
        direction = self._direction(source, destination)
        link = self.machine.links.between(source, destination, self.machine.home)
        toll = (link.message_seconds("peer") or 0.0) if direction == "peer" else 0.0
        return (link.tensor_seconds(payload, direction) or 0.0) + toll

    def tensor_joules(self, payload: int, source: str, destination: str) -> float:
        """What a tensor takes on its link in energy, where known, without what its message takes."""
        link = self.machine.links.between(source, destination, self.machine.home)
        return link.tensor_joules(payload, self._direction(source, destination)) or 0.0

    def _direction(self, source: str, destination: str) -> str:
        if self.machine.home not in (source, destination):
            return "peer"
        return "receive" if destination == self.machine.home else "send"
