"""What packing did in a run: bytes by packing and sort of tensor, seconds, and files of figures."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from costmodels.described import rounded, toml, write_toml
from costmodels.packing import Packing
from cutedge.runtime.home import Measured, SentTensor
from partition.accounting import Transfer
from partition.split import Split
from partition.wire_format import PLAIN
from tracer.summary import tensor_names
from tracer.toml_files import quoted


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """Transfers of alike tensors that crossed packed."""

    name: str
    """Of the tensors."""
    packing: str
    """What packed them."""
    dtype: str
    """The dtype that was packed."""
    transfers: int
    """How many there were."""
    plain_bytes: int
    """Of all of them, unpacked."""
    payload_bytes_predicted: int
    """Of all of them, packed."""
    payload_bytes_measured: int
    """What crossed of them."""
    pack_seconds_per_byte: float | None
    """What home took, by the bytes before packing; null where it sent none of them."""
    unpack_seconds_per_byte: float | None
    """What home took, likewise; null where it received none of them."""

    @property
    def ratio(self) -> float:
        """Packed bytes over bytes, as measured."""
        return self.payload_bytes_measured / self.plain_bytes if self.plain_bytes else 1.0


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing did in a run."""

    groups: tuple[PackedGroup, ...]
    """What crossed packed, alike tensors together."""
    max_abs_difference: float
    """Between the results and those of the same split with nothing packed."""
    packings: tuple[Packing, ...]
    """What packed."""

    @property
    def is_lossless(self) -> bool:
        """Whether all packings give back what they were given."""
        return all(one.is_lossless for one in self.packings)

    def __str__(self) -> str:
        names = " and ".join(one.name for one in self.packings)
        apart = self.max_abs_difference
        if self.is_lossless and not apart:
            return f"packed by {names}: the answer is that of the same split unpacked, to the bit"
        return (
            f"packed by {names}: the answer is off that of the same split unpacked by {apart:.3g}"
        )


_Pair = tuple[Transfer, SentTensor]
"""What was predicted and what crossed."""


def packings_of(split: Split) -> tuple[Packing, ...]:
    """What a split's transfers are packed by, in the order in which they first are."""
    sized = [one for each in split.wire_format.packings.values() for one in each]
    known = {packing.name: packing for one in sized for packing in one.packings}
    used = dict.fromkeys(t.packing for t in split.traffic.transfers if t.packing != PLAIN)
    return tuple(known[name] for name in used)


def groups_of(split: Split, measured: Measured) -> tuple[PackedGroup, ...]:
    """What crossed packed, alike tensors together, in the order in which they first crossed."""
    names, home = tensor_names(split.graph), split.placement.home
    groups: dict[tuple[str, str, str], list[_Pair]] = defaultdict(list)
    for t, one in _pairs(split, measured):
        groups[names[one.tensor], t.packing, t.wire_dtype].append((t, one))
    return tuple(
        PackedGroup(
            *group,
            len(pairs),
            sum(t.plain_bytes for t, _ in pairs),
            sum(t.payload_bytes for t, _ in pairs),
            sum(one.payload_bytes for _, one in pairs),
            _rate(pairs, lambda one: one.src == home),
            _rate(pairs, lambda one: one.dst == home),
        )
        for group, pairs in groups.items()
    )


def _pairs(split: Split, measured: Measured) -> Iterator[_Pair]:
    """What crossed packed, with its prediction."""
    told = {(t.tensor.id, t.src_device, t.dst_device): t for t in split.traffic.transfers}
    for one in measured.crossed:
        t = told.get((one.tensor, one.src, one.dst))
        if t is not None and t.packing != PLAIN:
            yield t, one


def _rate(pairs: Sequence[_Pair], at_home: Callable[[SentTensor], bool]) -> float | None:
    """Seconds a byte at home, of some of what crossed; None where home did none of it."""
    there = [
        (t.plain_bytes, one.packing_seconds)
        for t, one in pairs
        if at_home(one) and one.packing_seconds is not None
    ]
    size = sum(size for size, _ in there)
    return fsum(seconds for _, seconds in there) / size if size else None


def write_packings(runs: Sequence[tuple[Split, Measured, str]], folder: Path) -> None:
    """Write a file for each packing of some runs: its ratio by dtype, and home's seconds a byte.

    A run is with what its numbers were, in words. Ratios are of all that was packed of a dtype.
    """
    pairs: dict[str, list[_Pair]] = defaultdict(list)
    packings = {one.name: one for split, *_ in runs for one in packings_of(split)}
    for split, measured, _ in runs:
        for t, one in _pairs(split, measured):
            pairs[t.packing].append((t, one))
    split, _, numbers = runs[0]
    meta = split.graph.meta
    policies = ", ".join(dict.fromkeys(one.policy for one, *_ in runs))
    source = (
        f"cutedge verify {meta.model}, {meta.phase} of {meta.batch} x {meta.seq} tokens, "
        f"{meta.dtype}, {numbers}, {policies}"
    )
    home = {one.placement.home for one, *_ in runs}
    for name, packing in packings.items():
        figures: dict[str, tuple[float, str]] = {}
        if not packing.is_exact:
            for dtype in dict.fromkeys(t.wire_dtype for t, _ in pairs[name]):
                of = [(t, one) for t, one in pairs[name] if t.wire_dtype == dtype]
                plain = sum(t.plain_bytes for t, _ in of)
                packed = sum(one.payload_bytes for _, one in of)
                if packed:
                    ratio = min(round(packed / plain, 4), 1.0)
                    about = f"{source}: {packed:,} bytes of {plain:,} in {len(of)} transfers"
                    figures[f"{dtype}_ratio"] = ratio, about
        for key in ("group_elements", "element_bits"):
            if key in packing.sources:
                figures[key] = getattr(packing, key), packing.sources[key]
        for key, sends in (("pack", True), ("unpack", False)):
            rate = _rate(pairs[name], lambda one, s=sends: (one.src if s else one.dst) in home)  # type: ignore[misc]
            if rate is not None:
                figures[f"{key}_seconds_per_byte"] = rounded(rate), f"{source}: at home"
        heads = [f"codec = {quoted(packing.codec)}"]
        heads += [f"level = {packing.level}"] if packing.level else []
        heads += ["byte_planes = true"] if packing.byte_planes else []
        write_toml(folder / f"{name}.toml", toml(packing.description, heads, figures))
