"""The whole model at home: what a split is set beside, and what masks are made by."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from costmodels.links import Links
from cutedge.runtime.home import Loaded, load
from cutedge.runtime.plan import make_plan
from partition.placement import Placement
from tracer.capture.runnable import Runnable
from tracer.graph import OpGraph


def alone(graph: OpGraph, runnable: Runnable, weights: Mapping[str, Any], links: Links) -> Loaded:
    """Every op of a graph without masks at home, ready to run."""
    home = "home"
    devices = [None if graph.is_everywhere(op.id) else home for op in graph.ops]
    placement = Placement(home, devices, [False] * len(devices), [""] * len(devices))
    plan = make_plan(graph, runnable.invocations, placement)
    return load(plan, {}, data=runnable.data, weights=weights, links=links, residency="run")


def run_seen(
    loaded: Loaded, given: Mapping[int, torch.Tensor], sight: Callable[[int, torch.Tensor], None]
) -> None:
    """Run it, and have all that ops read seen."""
    loaded.interpreter.sight = sight
    loaded.run(given)
