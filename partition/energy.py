"""What a run takes in energy: its ops, what it moves over links, and what devices draw meanwhile.

A run's energy is what its ops take on their devices (``costmodels.joules``), what its bytes on the
wire take on their links, and what every device of the machine draws whatever it does, for as long as
the run takes one op and transfer after another. So it is a sum over ops, transfers and calls, like
its seconds.

A device without figures for ops that are placed on it makes the energy of the run unknown. All else
that is not known is left out, and the energy is at least what is said: buffers, registers, links
without a figure, devices whose idle power is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from costmodels.chip import off_chip_shares
from costmodels.flops import FREE
from costmodels.joules import EnergyWork, Joules, by_operation, ops_work, work_joules
from costmodels.roofline import DeviceTime
from partition.accounting import Traffic
from partition.placement import Placement
from partition.problem import memory_of
from partition.stored import kept_on
from tracer.graph import OpGraph


@dataclass(frozen=True, slots=True)
class RunEnergy:
    """The energy of one run, in joules."""

    home_joules: float | None
    """Of the ops at home; None where nothing is known of it."""
    accelerator_joules: float | None
    """Of the ops on accelerators, all of them together; None where one is not known."""
    link_joules: float | None
    """Of all transfers on their links; None where a link that is used has no figure."""
    idle_joules: float | None
    """What devices draw whatever they do, for as long as the run takes; None where that is known of
    not one device, or where the run's seconds are not known."""
    at_least: bool
    """Whether ``run_joules`` leaves out what is not known."""

    @property
    def run_joules(self) -> float | None:
        """All of it that is known; None where the energy of some ops is not."""
        if self.home_joules is None or self.accelerator_joules is None:
            return None
        moved, idle = self.link_joules or 0.0, self.idle_joules or 0.0
        return self.home_joules + self.accelerator_joules + moved + idle


def idle_watts(times: Mapping[str, DeviceTime]) -> float:
    """What described devices draw whatever they do, together, as far as that is known."""
    figures = [time.device.energy for time in times.values()]
    return sum(one.idle_watts or 0.0 for one in figures if one is not None)


def _lacks_idle(devices: Sequence[str], times: Mapping[str, DeviceTime]) -> bool:
    """Whether that is not known of one of the devices."""
    figures = [times[name].device.energy if name in times else None for name in devices]
    return any(one is None or one.idle_watts is None for one in figures)


def energy_of(
    graph: OpGraph,
    placement: Placement,
    traffic: Traffic,
    times: Mapping[str, DeviceTime],
    devices: Sequence[str],
    taken: Mapping[str, float],
    run_seconds: float | None,
    *,
    late: bool,
) -> RunEnergy:
    """The energy of a run of a placement.

    ``times`` are under the placement (``run.times_under``), ``devices`` all of the machine,
    ``taken`` what the ops on each device take there, where all have seconds; ``late`` says that
    ``run_seconds`` leave something out.
    """
    used = (placement.home, *placement.accelerators)
    by_device = {
        device: _of_device(graph, placement, traffic, times[device], device, taken[device])
        for device in used
        if device in times and device in taken
    }
    home = by_device.get(placement.home)
    away = [by_device.get(device) for device in placement.accelerators]
    known = [one.value for one in away if one is not None and one.value is not None]
    moved = traffic.totals.joules
    watts = idle_watts(times)
    idle = watts * run_seconds if watts and run_seconds is not None else None
    return RunEnergy(
        None if home is None else home.value,
        fsum(known) if len(known) == len(away) else None,
        moved,
        idle,
        at_least=any(one is None or one.at_least for one in (home, *away))
        or moved is None
        or _lacks_idle(devices, times)
        or bool(watts and (run_seconds is None or late)),
    )


def _of_device(
    graph: OpGraph,
    placement: Placement,
    traffic: Traffic,
    time: DeviceTime,
    device: str,
    seconds: float,
) -> Joules:
    """What the ops of a placement take on a device, cached state that is kept there with them."""
    figures = time.device.energy
    ops = [op for op, here in enumerate(placement.devices) if here == device]
    if figures is None or not by_operation(figures):
        late = time.lacks_launches and any(graph.ops[op].kind not in FREE for op in ops)
        return work_joules(time.device, time.options, EnergyWork({}), seconds, late=late)
    shares = (0.0, 0.0)
    if time.paged_share and time.device.npu is not None:
        lying = memory_of(graph, placement, traffic.transfers).get(device, 0)
        read = sum(graph.ops[op].cost.param_bytes for op in ops)
        shares = off_chip_shares(time.device, lying, read)
    if time.device.array is None:
        ops += [op for (op, where), _ in kept_on(graph, placement).items() if where == device]
    work = ops_work(graph, time, ops)
    return work_joules(time.device, time.options, work, seconds, off_chip=shares)
