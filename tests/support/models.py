"""Models that are run split: small enough to be placed in any way, and each beside its own answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from cutedge.runtime.home import Loaded, Measured, Worker, load, workers
from cutedge.runtime.masks import Masking, masked_invocations, masking_of
from cutedge.runtime.plan import Plan, make_plan
from cutedge.runtime.transforms import Randomness
from cutedge.runtime.verify import Verdict, judge, unsplit
from cutedge.runtime.weights import given_numbers
from partition.accounting import Residency, Traffic, account
from partition.placement import Placement
from partition.wire_format import WireFormat
from tests.support.running import TOKEN
from tracer.capture import runnable_function
from tracer.capture.runnable import Runnable
from tracer.graph import Kind, OpGraph

WEIGHTS = {"seed": 0, "spread": 0.3}
"""Wider than a model begins with: what goes wrong shows."""


@dataclass(frozen=True)
class Model:
    """A small model that can be run, and what it makes unsplit."""

    runnable: Runnable
    graph: OpGraph
    given: Mapping[int, torch.Tensor]
    reference: Mapping[int, torch.Tensor]


def model_of(made: Runnable) -> Model:
    graph = annotate(made.graph)
    given = given_numbers(graph, 0)
    return Model(made, graph, given, unsplit(graph, made, given, WEIGHTS, "tee"))


def by_seed(code: str, folder: Path) -> Callable[[int], Model]:
    """The models of a file whose ``build`` takes a seed; each is captured once."""
    file = folder / "net.py"
    file.write_text(code)
    return cache(
        lambda seed: model_of(runnable_function(str(file), "build", overrides={"seed": seed}))
    )


@dataclass(frozen=True)
class Prepared:
    """A model as it is to be run."""

    model: Model
    graph: OpGraph
    """The model's, with masks where it has any."""
    traffic: Traffic
    plan: Plan
    masking: Masking | None
    links: Links
    residency: Residency

    def load(self, found: Mapping[str, Worker]) -> Loaded:
        return load(
            self.plan,
            found,
            data=self.model.runnable.data,
            weights=WEIGHTS,
            links=self.links,
            residency=self.residency,
            masking=self.masking,
        )

    def judge(self, measured: Measured) -> Verdict:
        epsilon = self.masking.epsilon if self.masking else 0.0
        reference = self.model.reference
        return judge(self.graph, self.traffic, measured, reference, epsilon=epsilon)


def prepare(
    model: Model,
    placement: Placement,
    links: Links,
    *,
    graph: OpGraph | None = None,
    wire_dtype: str | None = None,
    residency: Residency = "run",
    source: Randomness | None = None,
) -> Prepared:
    """``graph`` is the model's with masks, where it has any; these are of a seed, or of a source."""
    graph, wire = graph or model.graph, WireFormat(wire_dtype)
    traffic = account(graph, placement, links, wire=wire, residency=residency)
    invocations = masked_invocations(graph, model.runnable.invocations)
    plan = make_plan(graph, invocations, placement, wire=wire, residency=residency)
    masking = masking_of(
        graph, model.runnable, model.given, WEIGHTS, links, source or Randomness(0)
    )
    return Prepared(model, graph, traffic, plan, masking, links, residency)


def carry_out(
    model: Model,
    placement: Placement,
    links: Links,
    listening: Mapping[str, tuple[str, int]],
    **options: Any,
) -> tuple[Traffic, Measured, Verdict]:
    """What was predicted, what was measured, and how they agree; ``options`` of ``prepare``."""
    made = prepare(model, placement, links, **options)
    with workers(
        list(made.plan.accelerators), remote=listening, token=TOKEN, timeout=60.0
    ) as found:
        measured = made.load(found).run(model.given)
    return made.traffic, measured, made.judge(measured)


def placed(graph: OpGraph, devices: Sequence[str]) -> Placement:
    """Each op on its device, but for inputs and the output, at home, and constants, anywhere."""
    there = [
        None
        if graph.is_everywhere(op.id)
        else "tee"
        if op.kind in (Kind.INPUT, Kind.OUTPUT)
        else device
        for op, device in zip(graph.ops, devices, strict=True)
    ]
    return Placement("tee", there, [False] * len(there), [""] * len(there))


def placements(graph: OpGraph) -> st.SearchStrategy[Placement]:
    """Any op on any of three devices."""
    count, device = len(graph.ops), st.sampled_from(("tee", "gpu", "gpu2"))
    return st.lists(device, min_size=count, max_size=count).map(lambda all: placed(graph, all))


ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""For properties of runs."""

CHUNKED = replace(load_link("unix-socket"), chunk_bytes=100)
SHARED = replace(
    load_link("unix-socket"), shared_memory_threshold_bytes=2000, shared_memory_handle_bytes=16
)
LINKS = (load_link("unix-socket"), CHUNKED, SHARED)
