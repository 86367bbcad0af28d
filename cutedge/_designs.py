"""What designs take for runs of models: all points, the best of them, what limits one."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.area import AreaFigures, load_area
from costmodels.designs import (
    KNOBS,
    Bandwidth,
    OnDevice,
    Products,
    Runs,
    Space,
    area_of,
    device_seconds_of,
    fastest,
    gains,
    on_device,
    pareto,
    runs,
    seconds_of,
)
from costmodels.devices import Device
from costmodels.energy import EnergyFigures, load_energy
from costmodels.links import load_link
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.stages import stage

if TYPE_CHECKING:
    import pyarrow as pa

FIGURES = ("seconds", "joules", "area")
"""What designs are compared by."""


@dataclass(frozen=True)
class DesignedRun:
    """A run of a model on each design."""

    graph: OpGraph
    trace_id: str
    products: Products
    runs: Runs
    pareto: NDArray[np.intp]
    """Which designs no other one is better than, of those that are small enough."""
    best: int | None
    """The best that is small enough (``costmodels.designs.fastest``); None where not one is."""
    device: OnDevice | None
    """The same run on the device that designs are set beside."""


@dataclass(frozen=True)
class Designs:
    """All designs of a space, on each run."""

    space: Space
    area: AreaFigures
    energy: EnergyFigures
    energy_name: str
    """What the energy figures are called."""
    square_millimetres: NDArray[np.float64]
    """Of each design."""
    max_area: float | None
    """Square millimetres that a design may have; None for no limit."""
    compared: tuple[str, ...]
    """What no other design is better in, of those in the Pareto set."""
    found: tuple[DesignedRun, ...]
    warnings: tuple[str, ...] = ()
    """What a user must know before trusting the figures, a line each."""

    @property
    def count(self) -> int:
        """How many points there are: each design for each run."""
        return self.space.size * len(self.found)

    @cached_property
    def points(self) -> "pa.Table":
        """A row for each design and run."""
        from cutedge._design_table import design_table

        return design_table(self)

    @property
    def summary(self) -> dict[str, Any]:
        """All of it but the points, as ``design --json`` has it."""
        from cutedge._design_table import summary

        return summary(self)

    def limits(self, found: DesignedRun) -> tuple[dict[tuple[str, ...], float], str]:
        """(how many times as fast the best design of a run is with twice of each thing, the sentence
        that says what limits it); empty where not one design is small enough."""
        if found.best is None:
            return {}, ""
        design = self.space.design(found.best)
        seconds = seconds_of(found.products, design, self.space.dtype, self.space.overlap)
        return _limits(seconds, KNOBS)

    def device_limits(self, found: DesignedRun) -> tuple[dict[tuple[str, ...], float], str]:
        """Likewise of the device; empty without one."""
        if found.device is None:
            return {}, ""
        of = found.products, found.device.device, self.space.dtype
        knobs, seconds = device_seconds_of(*of)
        return _limits(seconds, knobs)

    def save(self, folder: str | Path) -> Path:
        """Write ``designs.parquet`` into a folder; where it is. Raises CutedgeError."""
        from cutedge._design_table import save

        return save(self, Path(folder))

    def report(self, page: str | Path) -> Path:
        """Write a page with a chart of each run; where it is. Raises CutedgeError."""
        from cutedge._design_page import write_designs

        return write_designs(self, Path(page))


def _limits(
    seconds: Callable[..., float], knobs: Sequence[str]
) -> tuple[dict[tuple[str, ...], float], str]:
    from cutedge._design_words import limit_sentence

    faster = gains(seconds, ((knob,) for knob in knobs))
    return faster, limit_sentence(seconds, faster)


def work_out(
    space: Space,
    traced: Iterable[tuple[OpGraph, str]],
    points: int,
    *,
    area: AreaFigures,
    energy: tuple[str, EnergyFigures],
    device: Device | None = None,
    max_area: float | None = None,
    compared: Sequence[str] = FIGURES,
) -> Designs:
    """Every design of a space for runs, each a (graph, trace id), so many ``points`` in all.

    ``energy`` are the figures with their name. Designs are no larger than a ``device`` unless
    ``max_area`` says otherwise. Raises InputError for a run without a matrix product.
    """
    if device is not None and max_area is None:
        max_area = area_of(device, area, space.dtype)
    square_millimetres = space.square_millimetres(area)
    small = np.flatnonzero(square_millimetres <= (max_area or float("inf")))
    found: list[DesignedRun] = []
    with stage("working out points", points) as done:
        for graph, trace_id in traced:
            products = products_of(graph)
            made = runs(products, space, energy[1])
            named = {"seconds": made.seconds, "joules": made.joules, "area": square_millimetres}
            found.append(
                DesignedRun(
                    graph,
                    trace_id,
                    products,
                    made,
                    small[pareto(*(named[name][small] for name in compared))],
                    fastest(made, square_millimetres, small) if len(small) else None,
                    None
                    if device is None
                    else on_device(products, device, area, energy[1], space.dtype),
                )
            )
            done(space.size * len(found))
    return Designs(
        space,
        area,
        energy[1],
        energy[0],
        square_millimetres,
        max_area,
        tuple(compared),
        tuple(found),
    )


def products_of(graph: OpGraph) -> Products:
    """The distinct matrix products of a graph. Raises InputError where it has not one."""
    from cutedge.exports.scalesim import products_of as named_products

    count = Counter((g.m, g.k, g.n, g.batch) for _, g in named_products(graph))
    if not count:
        raise InputError(
            f"{graph.meta.model} has no matrix product with sizes: trace it with --attn eager"
        )
    return Products(
        *(
            np.asarray([*axis], np.int64)
            for axis in zip(*((*p, n) for p, n in count.items()), strict=True)
        )
    )


def beside_chip(graph: OpGraph, device: Device) -> Designs | None:
    """Systolic arrays of many sizes at a chip's clock, on a DRAM as fast as its host link; None where
    the figures of area and energy do not know the model's dtype.

    Raises InputError for a device that is no array.
    """
    link = None if device.host_link is None else load_link(device.host_link).payload_rate("receive")
    area = load_area("dally-45nm")
    sides = tuple(2**n for n in range(8))
    each = [Fraction(2) ** n for n in range(-2, 9)]
    clock = Fraction(0 if device.array is None else str(device.array.clock_hertz))
    try:
        area.mac(graph.meta.dtype)
        space = Space(
            ("os", "ws", "is"),
            sides,
            sides,
            (1,),
            tuple((kib, kib, kib) for kib in each),
            (Bandwidth(Fraction(str(link or 6.4e9))),),
            (clock or Fraction(10**8),),
            graph.meta.dtype,
        )
        figures = "horowitz-45nm", load_energy("horowitz-45nm")[0]
        points = space.size
        return work_out(space, [(graph, "")], points, area=area, energy=figures, device=device)
    except InputError:
        return None
