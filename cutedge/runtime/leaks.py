"""Whether what crossed has a secret's values, by the numbers alone: no graph and no plan is asked.

Two tensors are compared by fingerprints: sums of their values' hashes, which are the same in
whatever order the values stand. One is taken of the whole tensor, and one of each of its lines: of
all that differ in one index alone, cut into pieces where another tensor has shorter axes. The lines
of a tensor are also those of its transpose, its reshape, a permutation of its rows or columns, a
slice, a concatenation. So that casts are found each is taken in every dtype that occurs; integers
that stand for floats are compared as these, and rounded as they are.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from costmodels.links import Links
from cutedge.runtime.alone import alone, run_seen
from cutedge.runtime.lineage import carriers
from cutedge.runtime.plan import Plan
from cutedge.runtime.transforms import FixedPoint
from cutedge.runtime.wire import DTYPES
from partition.masks import MaskedGraph, plain_of
from tracer.capture.runnable import Runnable
from tracer.graph import FLOATING, OpGraph
from tracer.words import counted

TELLING = 4
"""So many different values must agree: fewer are equal by chance, like zeros, ones and masks."""

_LOOKED_AT = 64
"""So many values of a line are looked at to see whether they differ."""

_WHOLE = "int64"
"""The name of the dtype in which whole numbers are compared with each other."""


@dataclass(frozen=True, slots=True)
class _Values:
    """The fingerprints of a tensor's values in one dtype."""

    whole: int | None
    """Of all values; None where they tell nothing."""
    lines: Mapping[int, tuple[torch.Tensor, ...]]
    """Length of a line -> by axis, the different fingerprints of lines that tell something."""


Print = Mapping[str, _Values]
"""Dtype -> what a tensor's values are in it."""


@dataclass(slots=True)
class Sight:
    """Takes the fingerprints of some tensors of a run, each once, as an interpreter reads them."""

    tensors: frozenset[int]
    lengths: frozenset[int]
    """Of the lines: the axes of all tensors that are to be compared."""
    dtypes: frozenset[str]
    """The floating dtypes in which they are to be compared."""
    exponents: Mapping[int, Collection[int]] = field(default_factory=dict)
    """By tensor: of fixed points in which it is to be compared too."""
    prints: dict[int, Print] = field(default_factory=dict)

    def __call__(self, tensor: int, value: torch.Tensor) -> None:
        """Take that of a tensor, where it is wanted and has not been taken."""
        if tensor in self.tensors and tensor not in self.prints:
            self.prints[tensor] = self.of(value, self.exponents.get(tensor, ()))

    def of(self, value: torch.Tensor, exponents: Collection[int] = ()) -> Print:
        """The fingerprints of a tensor, also as it is in fixed point with these ``exponents``."""
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if value.is_complex():
            value = torch.view_as_real(value)
        found = {} if value.is_floating_point() else {_WHOLE: self._values(value.long())}
        for name in self.dtypes:
            found[name] = self._values(value.to(DTYPES[name]).double())
        for exponent in exponents:
            found[f"2^-{exponent}"] = self._values((value.double() * 2.0**exponent).round())
        return found

    def _values(self, value: torch.Tensor) -> _Values:
        lines: dict[int, tuple[torch.Tensor, ...]] = {}
        hashes = _hashed(value)
        for length in self.lengths:
            for axis, size in enumerate(value.shape):
                if size % length == 0 and size:
                    cut = (_lines(t, axis, length) for t in (value, hashes))
                    lines[length] = (*lines.get(length, ()), _of_lines(*cut))
        flat = value.reshape(1, -1)
        tells = flat.numel() > 0 and bool(_tells(flat)[0])
        return _Values(int(hashes.sum()) if tells else None, lines)


def _lines(tensor: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    return tensor.movedim(axis, -1).reshape(-1, length)


def _of_lines(values: torch.Tensor, hashes: torch.Tensor) -> torch.Tensor:
    return torch.unique(hashes.sum(-1)[_tells(values)])


def _hashed(value: torch.Tensor) -> torch.Tensor:
    """Each value as 64 bits of which every one depends on all of the value's; zero stays zero."""
    bits = value if value.dtype == torch.int64 else (value + 0.0).view(torch.int64)
    bits = (bits ^ (bits >> 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ (bits >> 27)) * -0x6B2FB644ECCEEE15
    return bits ^ (bits >> 31)


def _tells(lines: torch.Tensor) -> torch.Tensor:
    """By line: whether it has enough different values. Numbers one after another are no such."""
    size = lines.shape[-1]
    whole = lines.dtype == torch.int64
    if size > _LOOKED_AT and not whole:
        lines = lines[:, torch.arange(_LOOKED_AT) * size // _LOOKED_AT]
    ordered = lines.sort(-1).values
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
    if whole:
        return (different >= TELLING) & (ordered[:, -1] - ordered[:, 0] >= different)
    return different >= TELLING


def alike(one: Print, other: Print) -> bool:
    """Whether a tensor has another's values, or most of either's rows or columns are the other's.

    A single row in common is no more than causal attention gives away: its first output is a row
    of V.
    """
    names = [_WHOLE] if _WHOLE in one and _WHOLE in other else one.keys() & other.keys()
    return any(_alike(one[name], other[name]) for name in names)


def _alike(one: _Values, other: _Values) -> bool:
    if one.whole is not None and one.whole == other.whole:
        return True
    for length, mine in one.lines.items():
        for lines in mine:
            for theirs in other.lines.get(length, ()):
                fewest = min(len(lines), len(theirs))
                if fewest and 2 * int(torch.isin(lines, theirs).sum()) > fewest:
                    return True
    return False


# --- a run ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a policy keeps from devices."""

    untrusted: tuple[str, ...]
    """These devices."""
    named: Mapping[str, Collection[int]]
    """Secret -> the tensors that it names."""
    carriers: Mapping[int, str]
    """Tensor that has a secret's values -> how it is called (``cutedge.runtime.lineage``)."""
    word: str = "a secret"
    """What each is."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A tensor that went to or came from a device that is not trusted."""

    tensor: int
    src: str
    dst: str
    call: int


def _equal(leaks: Sequence[str]) -> str:
    """How many of what was compared are equal."""
    return f"{len(leaks):,} are equal" if leaks else "not one is equal"


@dataclass(frozen=True, slots=True)
class SecrecyProof:
    """What a run has shown of its policy's secrets."""

    secrets: int
    """Secrets of the policy."""
    secret_tensors: int
    """The tensors that have their values, by the ops that move them."""
    untrusted: tuple[str, ...]
    """The devices that these were kept from."""
    tensors_compared: int
    """What crossed to or from these devices, each tensor as often as it did."""
    leaks: tuple[str, ...]
    """What of that has a secret's values: tensor, devices, call and secret, in words."""

    def __str__(self) -> str:
        found = _equal(self.leaks)
        return (
            f"{counted(self.secret_tensors, 'tensor')} of {counted(self.secrets, 'secret')} kept "
            f"from {', '.join(self.untrusted)}; {counted(self.tensors_compared, 'tensor')} that "
            f"crossed compared with their values: {found}"
        )


@dataclass(frozen=True, slots=True)
class MaskProof:
    """What a run has shown of its masks."""

    masked: int
    """Tensors that cross under masks alone."""
    tensors_compared: int
    """What crossed, each tensor as often as it did."""
    leaks: tuple[str, ...]
    """What of that has the plain values of one that a mask hides, in words."""
    epsilon: float
    """By how much the coarsest mask has a result off, over its size (``masks.epsilon_of``)."""

    def __str__(self) -> str:
        found = _equal(self.leaks)
        return (
            f"{counted(self.masked, 'tensor')} crossed under masks alone; "
            f"{counted(self.tensors_compared, 'tensor')} that crossed compared with their plain "
            f"values: {found}; rounding through masks is {self.epsilon:.2g} of a result"
        )


_OPEN = ("permutation", "freivalds")
"""Schemes that leave every value as it is."""


def masked_alone(graph: MaskedGraph, plan: Plan, runnable: Runnable) -> Secrets:
    """The tensors of a run that cross under masks alone: neither they, nor what has their values.

    What is permuted is seen, in another order, and so is a result that is only checked.
    """
    open_to = {t: one.plain for t, one in graph.masks.items() if one.protection.scheme in _OPEN}
    behind = {**dict(graph.copies), **open_to}
    own = len(graph.plain.tensors)
    plain = [behind.get(t, t) for t in plan.crossing if t < own or t in behind]
    seen = carriers(graph.plain, runnable.invocations, {"what crosses as it is": plain})
    hidden = {
        one.plain: f"{graph.tensors[one.plain].name}, {one.protection}"
        for tensor, one in graph.masks.items()
        if tensor in plan.crossing and one.protection.scheme not in _OPEN and one.plain not in seen
    }
    named = {words: [tensor] for tensor, words in hidden.items()}
    return Secrets(tuple(plan.accelerators), named, hidden, "what a mask hides")


class _Union:
    """The fingerprints of many tensors, to see at once what has none of theirs."""

    def __init__(self, prints: Iterable[Print | None]) -> None:
        wholes: dict[str, set[int]] = {}
        lines: dict[tuple[str, int], list[torch.Tensor]] = {}
        for one in prints:
            for name, values in (one or {}).items():
                if values.whole is not None:
                    wholes.setdefault(name, set()).add(values.whole)
                for length, some in values.lines.items():
                    lines.setdefault((name, length), []).extend(some)
        self.wholes = wholes
        self.lines = {key: torch.cat(some).unique() for key, some in lines.items()}

    def meets(self, one: Print | None) -> bool:
        """Whether a tensor has any fingerprint of theirs: what is alike one of them does."""
        return any(
            values.whole in self.wholes.get(name, ())
            or any(
                (name, length) in self.lines
                and any(_share(mine, self.lines[name, length]) for mine in some)
                for length, some in values.lines.items()
            )
            for name, values in (one or {}).items()
        )


def _share(some: torch.Tensor, ordered: torch.Tensor) -> bool:
    """Whether any of ``some`` is among ``ordered`` numbers."""
    if not len(ordered):
        return False
    places = torch.searchsorted(ordered, some).clamp_(max=len(ordered) - 1)
    return bool((ordered[places] == some).any())


@dataclass(slots=True)
class Witness:
    """Sees a run from home: its secrets, and what goes to and comes from untrusted devices."""

    graph: OpGraph
    secrets: Secrets
    sight: Sight
    """Of the secrets, as home reads them."""
    fixed: Mapping[int, FixedPoint] = field(default_factory=dict)
    """By tensor that crosses as integers: what these stand for."""
    passed: dict[Passage, Print | None] = field(default_factory=dict)
    """None where it passed between two accelerators, out of home's sight."""

    @staticmethod
    def of(
        plan: Plan, graph: OpGraph, secrets: Secrets, fixed: Mapping[int, FixedPoint] | None = None
    ) -> "Witness":
        """One for a run of a plan; ``fixed`` is that of its ``Masking``."""
        named = frozenset[int]().union(*secrets.named.values())
        compared = [graph.tensors[t] for t in named | plan.crossing.keys()]
        lengths = {size for tensor in compared for size in tensor.shape if size >= TELLING}
        dtypes = {t.dtype for t in compared if t.dtype in FLOATING}
        dtypes |= {spec.dtype for spec in plan.crossing.values() if spec.dtype in FLOATING}
        exponents = {one.exponent for one in (fixed or {}).values()}
        sight = Sight(named, frozenset(lengths), frozenset(dtypes), dict.fromkeys(named, exponents))
        return Witness(graph, secrets, sight, fixed or {})

    def see(
        self, src: str, dst: str, call: int, tensors: Iterable[tuple[int, torch.Tensor | None]]
    ) -> None:
        """Take the fingerprints of tensors in a message."""
        if {src, dst} & {*self.secrets.untrusted}:
            for tensor, value in tensors:
                passage = Passage(tensor, src, dst, call)
                self.passed[passage] = None if value is None else self._print(tensor, value)

    def _print(self, tensor: int, value: torch.Tensor) -> Print:
        found = self.sight.of(value)
        if tensor not in self.fixed:
            return found
        point = self.fixed[tensor]
        return {**found, **self.sight.of(point.value(value), (point.exponent,))}

    def prove(
        self,
        runnable: Runnable,
        given: Mapping[int, torch.Tensor],
        weights: Mapping[str, Any],
        links: Links,
    ) -> SecrecyProof:
        """Compare all that passed with each secret.

        Once as it was in the run, and once as it is where home alone carries out every op: there
        secrets that home did not read, and what passed between accelerators, are known too.
        """
        tensors = self.sight.tensors | {p.tensor for p in self.passed}
        sight = replace(self.sight, tensors=tensors, prints={})
        whole = alone(plain_of(self.graph), runnable, weights, links)
        run_seen(whole, given, sight)
        there = [self.sight.prints.get(t) for t in self.sight.tensors]
        union = _Union([*there, *(sight.prints.get(t) for t in self.sight.tensors)])
        leaks = []
        for passage, seen in self.passed.items():
            if not (union.meets(seen) or union.meets(sight.prints.get(passage.tensor))):
                continue
            for secret, named in self.secrets.named.items():
                pairs = [(seen, self.sight.prints.get(t)) for t in named]
                pairs += [(sight.prints.get(passage.tensor), sight.prints.get(t)) for t in named]
                if any(one and other and alike(one, other) for one, other in pairs):
                    leaks.append(
                        f"{self.graph.tensors[passage.tensor].name} (tensor {passage.tensor}) "
                        f"from {passage.src} to {passage.dst} in call {passage.call} has the "
                        f"values of {self.secrets.word} ({secret})"
                    )
        return SecrecyProof(
            len(self.secrets.named),
            len(self.secrets.carriers),
            self.secrets.untrusted,
            len(self.passed),
            tuple(leaks),
        )
