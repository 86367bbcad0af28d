"""The small model with masks, split and run."""

from collections.abc import Mapping
from dataclasses import dataclass

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from cutedge.runtime.home import Loaded, Measured, Worker, load
from cutedge.runtime.masks import Masking, masked_invocations, masking_of
from cutedge.runtime.plan import Plan, make_plan
from cutedge.runtime.transforms import Randomness
from cutedge.runtime.verify import Verdict, judge
from partition.accounting import Residency, Traffic
from partition.masks import MaskedGraph
from partition.optimise import place
from partition.placement import Placement
from partition.policy import Policy, Rule, load_policy
from partition.protects import Protect
from partition.schemes import Protection
from partition.setting import Setting
from tests.support.running import WEIGHTS, answer, given, tiny

KINDS = {"weights": ("linear",), "activations": ("matmul",)}


@dataclass(frozen=True)
class Hidden:
    """A split with masks that can be run."""

    graph: MaskedGraph
    placement: Placement
    traffic: Traffic
    plan: Plan
    masking: Masking
    links: Links

    def load(self, workers: Mapping[str, Worker]) -> Loaded:
        return load(
            self.plan,
            workers,
            data=tiny().data,
            weights=WEIGHTS,
            links=self.links,
            residency="run",
            masking=self.masking,
        )

    def run(self, workers: Mapping[str, Worker]) -> tuple[Measured, Verdict]:
        measured = self.load(workers).run(given())
        reference = {self.plan.outputs[0]: answer()}
        epsilon = self.masking.epsilon
        return measured, judge(self.graph, self.traffic, measured, reference, epsilon=epsilon)


def protecting(protections: Mapping[str, Protection]) -> Policy:
    """Products of ``weights`` and of ``activations`` away, each under what is said."""
    kinds = {operands: (("kind", KINDS[operands]),) for operands in protections}
    return Policy(
        "hidden",
        "Made for a test.",
        "home",
        tuple(Rule(kind, "accelerator", "") for kind in kinds.values()),
        protects=tuple(Protect(kinds[each], how, "") for each, how in protections.items()),
    )


def hidden(
    policy: str | Policy,
    *,
    wire_dtype: str | None = None,
    residency: Residency = "run",
    source: Randomness | None = None,
) -> Hidden:
    """The small model under a policy that masks something; masks are of a seed, or of a source."""
    links, whole = Links(load_link("unix-socket")), annotate(tiny().graph)
    setting = Setting(Machine("tee", ("gpu",), links, wire_dtype), residency)
    rules = load_policy(policy) if isinstance(policy, str) else policy
    there = place(whole, rules, setting)
    graph = there.graph
    assert isinstance(graph, MaskedGraph)
    wire = setting.wire(graph, rules)
    traffic = setting.account(graph, there.placement, wire)
    plan = make_plan(
        graph,
        masked_invocations(graph, tiny().invocations),
        there.placement,
        wire=wire,
        residency=residency,
    )
    masking = masking_of(graph, tiny(), given(), WEIGHTS, links, source or Randomness(0))
    assert masking is not None
    return Hidden(graph, there.placement, traffic, plan, masking, links)
