"""A model in a phase at many sizes, and the programs that it is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.many import Sizes
from cutedge.sweeping.parts import SizedGraph
from tracer.graph import OpGraph
from tracer.reach import Reach, reached

if TYPE_CHECKING:
    from cutedge._request import Request


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in a phase: what is traced, at whatever sizes."""

    model: Any
    """As the user calls it, or its config."""
    phase: str
    options: Mapping[str, Any]
    """``dtype``, ``attn``, ``logits``, ``weights``, ``kv_dtype``."""
    sizes: Mapping[str, Sequence[int]]
    """By size that is asked for: its values. The others have the model's defaults."""
    overrides: Any = None
    """Fields of the config, as ``trace`` takes them."""
    cache: bool = False
    """Whether a prefill fills a cache."""
    most_new: int = 0
    """Of generations, which the prefills begin, the most tokens; else 0."""

    @property
    def called(self) -> str:
        """The phase as rows have it."""
        return "generate" if self.most_new else self.phase

    @property
    def decode(self) -> "Subject | None":
        """The steps of generations, over all numbers of cached tokens that they pass."""
        if not self.most_new:
            return None
        after = max(self.most_new - 1, 1)
        pasts = dict.fromkeys(n for p in self.sizes["seq"] for n in range(p, p + after))
        sizes = {**self.sizes, "seq": (1,), "past": (*pasts,)}
        return replace(self, phase="decode", sizes=sizes, cache=False, most_new=0)

    def asked(self, sizes: Mapping[str, int]) -> "Request":
        """The model at sizes."""
        from cutedge._request import Request

        return Request(
            self.model,
            sizes,
            phase=self.phase,
            cache=self.cache,
            overrides=self.overrides,
            **self.options,
        )

    @property
    def points(self) -> int:
        """How many combinations of sizes there are."""
        count = 1
        for values in self.sizes.values():
            count *= len(values)
        return count


def programs_of(
    subject: Subject, first_traced: tuple[OpGraph, Reach] | None = None
) -> tuple[list[SizedGraph], tuple[str, ...], bool]:
    """(a subject's programs, warnings, whether the cache had all of them): traced as often as
    there are programs, and no more. The first size need not be where ``first_traced`` has it, with
    its costs."""
    if first_traced is None:
        first = {name: values[0] for name, values in subject.sizes.items()}
        graph, _, reach, cached = subject.asked(first).traced(full=False, use_cache=True)
    else:
        (graph, reach), cached = first_traced, True
    sizes = all_sizes(subject, graph.meta.variables)
    left = np.arange(len(sizes["batch"]))
    found: list[SizedGraph] = []
    noted: dict[str, None] = {}
    while True:
        here = {name: many[left] for name, many in sizes.items()}
        ok = reached(graph, reach, here)
        ok[0] = True  # what it was traced at
        given = first_traced is not None and not found
        found.append(SizedGraph(graph, {n: many[ok] for n, many in here.items()}, left[ok], given))
        largest = {name: int(many[ok].max()) for name, many in here.items()}
        noted.update(dict.fromkeys(reach.warnings(graph.meta.model, largest)))
        left = left[~ok]
        if not len(left):
            return found, tuple(noted), cached
        at = {name: int(sizes[name][left[0]]) for name in subject.sizes}
        graph, _, reach, one = subject.asked(at).traced(full=False, use_cache=True)
        cached = cached and one


def all_sizes(subject: Subject, known: Mapping[str, int]) -> Sizes:
    """Every combination of a subject's sizes; what it leaves out is as ``known``."""
    names = ("batch", "past", "source", "seq")
    values = [subject.sizes.get(name, (known[name],)) for name in names]
    columns = np.array(list(product(*values)), np.int64).reshape(-1, len(names))
    return {name: columns[:, n].copy() for n, name in enumerate(names)}
