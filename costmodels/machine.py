"""What a model is split over: home, the accelerators that it calls, and the links between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodels import Execution, WeightsAt
from costmodels.arrays import Options
from costmodels.devices import Device
from costmodels.engines import PHYSICAL, Engine
from costmodels.links import Links
from costmodels.packing import SizedPacking
from costmodels.roofline import DeviceTime, time_ops
from tracer.graph import OpGraph


@dataclass(frozen=True, slots=True)
class Machine:
    """Home, one or more accelerators, and the links between them.

    >>> from costmodels.links import load_link
    >>> Machine("tee", ("gpu",), Links(load_link("pcie4-x16"))).devices
    ('tee', 'gpu')
    """

    home: str
    """What the user calls it, as the accelerators."""
    accelerators: tuple[str, ...]
    """Of equally good ones those that come first are taken."""
    links: Links
    wire_dtype: str | None = None
    """What floats cross in; None for their own dtypes."""
    described: Mapping[str, Device] = field(default_factory=dict)
    """By name, the devices that have a description."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """By name, what a device can hold, in place of what its description says."""
    options: Options = field(default_factory=Options)
    """What makes the arrays among the devices faster."""
    engines: Mapping[str, Engine] = field(default_factory=dict)
    """By name, what carries ops out on a described device; the physical bound where it says none."""
    execution: Execution | None = None
    """How engines carry ops out in place of what they say."""
    weights_at: WeightsAt = "device"
    """Where the parameters of ops on accelerators lie, where no rule of a policy says."""
    pack: tuple[SizedPacking, ...] = ()
    """How tensors cross that no rule of a policy packs: the first that can pack one does."""
    files: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(``device``, ``link``, ``engine`` or ``packing``; what it is called) -> where its description
    is, of those that are a user's own."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of home and of the accelerators, in that order."""
        return (self.home, *self.accelerators)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What cannot be so, in sentences: a confidential link to what has no such mode.

        >>> from costmodels.devices import load_device
        >>> from costmodels.links import load_link
        >>> card, link = load_device("rtx-4090"), Links(load_link("pcie5-x16-cc"))
        >>> Machine("tee", ("gpu",), link, described={"gpu": card}).warnings
        ('rtx-4090 has no confidential mode, which the link pcie5-x16-cc is of: ...',)
        """
        return tuple(
            f"{device.name} has no confidential mode, which the link {link.name} is of: take one "
            f"that has (h100-cc), or another link ({device.host_link or 'pcie5-x16'})"
            for name in self.accelerators
            for link, device in [(self.links.of(name), self.described.get(name))]
            if device is not None and link.confidential and not device.trusted
        )

    @property
    def engine(self) -> str:
        """The name of the engine; where not all devices have it, behind the device; else empty.

        >>> from costmodels.engines import load_engine
        >>> from costmodels.links import load_link
        >>> vllm = load_engine("vllm")
        >>> Machine("tee", ("gpu",), Links(load_link("none")), engines={"gpu": vllm}).engine
        'vllm'
        """
        names = {device: one.name for device, one in self.engines.items() if one.name}
        able = [device for device, one in self.described.items() if not one.is_chip]
        if len(set(names.values())) <= 1 and names.keys() >= {*able}:
            return next(iter(names.values()), "")
        return ", ".join(f"{device}={name}" for device, name in names.items())

    def times(self, graph: OpGraph) -> dict[str, DeviceTime]:
        """By described device, what each op of an annotated graph takes there, without paging."""
        return {
            name: time_ops(
                graph, device, options=self.options, engine=self.engines.get(name, PHYSICAL)
            )
            for name, device in self.described.items()
        }
