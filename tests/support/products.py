"""Models of random products, each protected in any way that is for it, and what they may be off by."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st

from costmodels.links import Links
from cutedge.runtime.alone import alone
from cutedge.runtime.interpreter import Interpreter, read
from cutedge.runtime.wire import DTYPES
from partition.masking import hides, masked, why_not
from partition.masks import MaskedGraph
from partition.placement import Placement
from partition.schemes import NAMES, Protection
from tests.support.models import LINKS, WEIGHTS, Model, Prepared, placements, prepare
from tracer.graph import Kind, Op, OpGraph
from tracer.kinds import base_name

PRODUCTS = """
import random
import torch

ALONE = ["linear", "biased", "again", "addmm", "mm", "matmul"]
PAIRS = ["attention", "bmm", "heads", "add", "gate", "mean"]

class Net(torch.nn.Module):
    '''Products drawn by a seed, no two of them the same; all that is handed on is [2, 3, 8].'''

    def __init__(self, seed):
        super().__init__()
        draw, steps = random.Random(seed), {}
        for _ in range(draw.randint(2, 6)):
            what, one, other = draw.choice(ALONE + PAIRS), *draw.choices(range(len(steps) + 1), k=2)
            steps[what, one, other if what in PAIRS else 0] = None
        self.steps = list(steps)
        self.linears = torch.nn.ModuleList(
            torch.nn.Linear(8, 8, bias=what in ("biased", "addmm")) for what, _, _ in self.steps
        )
        self.tied = torch.nn.Linear(8, 8)
        self.last = draw.randint(1, 2)

    def forward(self, x):
        made = [x]
        for linear, (what, one, other) in zip(self.linears, self.steps):
            a, b = made[one], made[other]
            if what in ("linear", "biased"):
                made.append(linear(a))
            elif what == "again":
                made.append(self.tied(a))
            elif what == "addmm":
                rows = a.reshape(6, 8)
                made.append(torch.addmm(linear.bias, rows, linear.weight).reshape(a.shape))
            elif what == "mm":
                made.append(torch.mm(a.reshape(6, 8), linear.weight.t()).reshape(a.shape))
            elif what == "matmul":
                made.append(torch.matmul(a, linear.weight))
            elif what == "attention":
                made.append(torch.softmax(a @ linear(b).transpose(1, 2), -1) @ a)
            elif what == "bmm":
                scores = torch.bmm(a, linear(b).transpose(1, 2))
                made.append(torch.bmm(torch.tanh(scores), b))
            elif what == "heads":
                q, k = (t.reshape(2, 3, 2, 4).transpose(1, 2) for t in (a, linear(b)))
                scores = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)
                made.append(torch.matmul(scores, k).transpose(1, 2).reshape(a.shape))
            elif what == "add":
                made.append(a + 0.5 * b)
            elif what == "gate":
                made.append(torch.tanh(a) * b)
            else:
                made.append(a - b.mean(1, keepdim=True))
        return tuple(made[-self.last:])

def build(seed=0):
    return Net(seed), (torch.ones(2, 3, 8),)
"""


# --- protections ----------------------------------------------------------------------------------


def _every() -> list[Protection]:
    """Each scheme, with all that may be chosen of it; one and two trials, narrow and wide pads."""
    ways: list[Protection] = []
    for scheme, check, trials in product(NAMES, ("", "freivalds"), (1, 2)):
        of: Mapping[str, Sequence[Any]] = {
            "one-time-pad": {"pads": ("offline", "online"), "scale": (2.0, 16.0)},
            "one-time-pad-mod": {"pads": ("offline", "online"), "bits": (32, 64)},
            "permutation": {"axis": ("tokens", "channels")},
        }.get(scheme, {})
        for chosen in product(*of.values()):
            options = dict(zip(of, chosen, strict=True))
            how = Protection(scheme, check=check, trials=trials, **options)
            if trials == 1 or how.checks:
                ways.append(how)
    return [how for how in ways if not (how.scheme == "freivalds" and how.check)]


WAYS = _every()


def _of(graph: OpGraph, op: Op) -> list[Protection]:
    return [how for how in WAYS if why_not(graph, op, how) is None and hides(graph, op, how)]


@st.composite
def protected_runs(draw: st.DrawFn, model: Model) -> Prepared:
    """A model anyhow placed, some of its products away under masks, over any link."""
    graph = model.graph
    where = draw(placements(graph))
    devices = [*where.devices]
    protected: dict[int, Protection] = {}
    for op in graph.ops:
        ways = _of(graph, op) if op.kind in (Kind.LINEAR, Kind.MATMUL) else []
        if ways and draw(st.integers(0, 3)):
            scheme = draw(st.sampled_from(sorted({how.scheme for how in ways})))
            protected[op.id] = draw(st.sampled_from([how for how in ways if how.scheme == scheme]))
            if devices[op.id] == where.home:
                devices[op.id] = draw(st.sampled_from(("gpu", "gpu2")))
    where = Placement(where.home, devices, where.pinned, where.reasons)
    wire = draw(st.sampled_from((None, "bfloat16", "float64")))
    return protected_run(
        model,
        where,
        protected,
        Links(draw(st.sampled_from(LINKS))),
        wire_dtype=wire,
        residency=draw(st.sampled_from(("run", "call"))),
    )


def protected_run(
    model: Model,
    where: Placement,
    protected: Mapping[int, Protection],
    links: Links,
    **options: Any,
) -> Prepared:
    """``options`` are those of ``prepare``."""
    graph = masked(model.graph, protected, options.get("wire_dtype"))
    there = graph.placed(where) if isinstance(graph, MaskedGraph) else where
    return prepare(model, there, links, graph=graph, **options)


# --- what comes out -------------------------------------------------------------------------------

MOVES = frozenset(("transpose", "t", "reshape"))


def margins(made: Prepared) -> dict[int, torch.Tensor]:
    """By tensor of the plain graph: how far off each value may be of the unsplit model's.

    A running error analysis (Wilkinson 1963), with nothing left out as small: what an op reads may be
    off, what it makes is off by what follows from that and by its own rounding. What crosses is
    rounded once more; what is recovered is off by what the masking states.
    """
    model, graph, eps = made.model, made.model.graph, torch.finfo(torch.float32).eps
    home = alone(graph, model.runnable, WEIGHTS, made.links).interpreter
    protected = made.graph.protected if isinstance(made.graph, MaskedGraph) else {}
    sizes = {t: value.double() for t, value in model.given.items()}
    off = {t: torch.zeros_like(value) for t, value in sizes.items()}
    for op in graph.ops:
        for tensor in graph.inputs(op.id):
            if tensor.op is None:
                sizes[tensor.id] = home.value(tensor.id).double()
                off[tensor.id] = torch.zeros_like(sizes[tensor.id])
        for tensor in graph.outputs(op.id):
            if op.kind is not Kind.INPUT:
                masks = made.masking if op.id in protected else None
                function = home.operations[op.id].function
                sizes[tensor.id] = home.results(op.id, sizes.__getitem__, function)[0]
                off[tensor.id] = _off(home, op, sizes, off, 0.0 if masks else eps)
                off[tensor.id] += masks.error(op.id) if masks else 0.0
            if (crosses := made.plan.crossing.get(tensor.id)) is not None:
                rounding = torch.finfo(DTYPES[crosses.dtype]).eps / 2
                off[tensor.id] = off[tensor.id] + rounding * (
                    sizes[tensor.id].abs() + off[tensor.id]
                )
    return off


def _off(
    home: Interpreter,
    op: Op,
    sizes: Mapping[int, torch.Tensor],
    off: Mapping[int, torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """How far off what an op makes may be: by what it reads, and by rounding to ``eps``."""
    how, name = home.instructions.invocations[op.id], base_name(op.target)
    least = {t: sizes[t].abs() for t in read(how)}
    most = {t: least[t] + off[t] for t in least}
    first = next(iter(least))
    if name == "tanh":  # no steeper than 1
        return off[first].clamp(max=2) + 4 * eps
    if name == "softmax":  # every exponent is off by ``apart`` at most, and so is the largest
        apart = (off[first] + eps * most[first]).amax(-1, keepdim=True)
        shares = sizes[first].softmax(-1)
        return (shares * (torch.exp(2 * apart) * (1 + 8 * eps) - 1)).clamp(max=1)
    # All others are sums of products: of what is nowhere negative they make the largest.
    function = torch.add if name == "sub" else home.operations[op.id].function
    inner = op.cost.gemm.k if op.cost.gemm else 2
    steps = 0 if name in MOVES else inner + 2
    large, small = (home.results(op.id, one.__getitem__, function)[0] for one in (most, least))
    return large - small + steps * eps * large
