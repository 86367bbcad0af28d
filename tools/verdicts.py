"""What the documents 000 and 001 call usable, told again with weights that cross the link.

A section of docs/reference-figures.md, which ``python -m tools.figures`` writes.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import cutedge
from cutedge._words import no_less, verdict
from partition.split import Split
from tracer.words import duration

HOME, CHIP, LINK, FASTER = "ryzen-7950x", "chip-8x8", "axi-lite", "pcie-gen3"


@dataclass(frozen=True)
class Verdict:
    """A model on the chip that a document calls usable, at the time that it says it of."""

    said: str
    """Which document, and its word."""
    model: str
    within: float
    """Seconds a token that are usable."""
    options: dict[str, float] = field(default_factory=dict)
    """Of the chip, as the document has them (``costmodels.arrays.Options``)."""
    weights: str | None = None
    """The format that weights are stored and sent in; the trace's float32 when None."""

    @cached_property
    def _trace(self) -> cutedge.Trace:
        return cutedge.trace(self.model, seq=1)

    def split(self, weights_at: str, link: str = LINK, **options: float) -> Split:
        """The run of one token; ``options`` are in place of the document's."""
        return self._trace.partition(
            "host-chip",
            machine=f"{HOME}+{CHIP}@{link}",
            weights=self.weights,
            weights_at=weights_at,
            **{**self.options, **options},
        ).split

    def chips(self, weights_at: str, link: str = LINK) -> int | None:
        """The fewest equal chips that are usable; None where ever so many are not."""
        split = self.split(weights_at, link)
        run, chips = split.run, split.chips
        assert run is not None
        assert chips is not None
        left = self.within - run.home_seconds - run.link_seconds
        return chips.fewest_within(left) if left > 0 else None

    @property
    def bytes_per_second(self) -> float | None:
        """What the link must carry, without latency, for the document's chips to be usable where
        weights are sent; None where they compute too long for any link."""
        split = self.split("home")
        run = split.run
        assert run is not None
        left = self.within - run.home_seconds - run.accelerator_seconds
        return split.traffic.totals.wire_bytes / left if left > 0 else None

    @property
    def command(self) -> str:
        """What prints the run with weights that are sent, from a trace in a folder of the model's
        name."""
        given = {**self.options, **({"weights": self.weights} if self.weights else {})}
        more = "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items())
        return (
            f"cutedge compare {self.model} --policy host-chip --home {HOME} --accel {CHIP} "
            f"--link {LINK} --within {self.within}{more} --weights-at home"
        )


FASTEST: dict[str, float] = {"int8_speedup": 4, "sparsity": 0.9, "sparsity_speedup": 7}
"""The most that the documents give to int8 and to 90 % of zeros: 28 times, of their 20 to 30."""

VERDICTS = (
    Verdict("001: well suited to real time", "edge-10m", 0.108),
    Verdict("001: text classification in 3 s", "distilbert", 3.0),
    Verdict("000: usable", "distilbert", 1.4),
    Verdict("000: barely usable", "gpt2", 2.9),
    Verdict("000: barely usable, offline", "tinyllama-1.1b", 5.0, FASTEST, "int8"),
    Verdict("000: usable", "tinyllama-1.1b", 1.25, {**FASTEST, "chips": 4}, "int8"),
)


def verdict_lines(verdicts: tuple[Verdict, ...] = VERDICTS) -> list[str]:
    """The section of the page."""
    on_chip, sent, faster = (
        [one.split(at, link).too_slow(one.within) is None for one in verdicts]
        for at, link in (("device", LINK), ("home", LINK), ("home", FASTER))
    )
    last = verdicts[-1]
    return [
        "\n## What is usable when weights cross the link (000, 001)\n",
        "The documents call these usable. They have all weights on the chip, and do not say that it",
        "has room for them. Here each model is traced for one token, with its head; a desktop CPU,",
        f"{HOME}, stands in for the host. Of {len(verdicts)} verdicts {sum(on_chip)} hold with the",
        f"weights on the chip, {sum(sent)} where they are sent over {LINK} in each run, and",
        f"{sum(faster)} where they are sent over {FASTER}. Where one does not hold with weights on the",
        "chip, the document has counted too little: it leaves out the head and products of a layer,",
        "or has too few tiles (see above). int8 and 90 % of zeros make a chip 28 times as fast here,",
        "of the documents' 20 to 30; zeros cross like other weights. Computing and moving are one",
        "after another. What starting a product takes is not known and left out: seconds are at least",
        "so many.\n",
        f"| the document says | model | chip | usable within | weights on the chip | sent over {LINK} |",
        "|---|---|---|--:|---|---|",
        *(
            f"| {one.said} | {one.model} | {_chip(one)} | {duration(one.within)} "
            f"| {_told(one, 'device')} | {_told(one, 'home')} |"
            for one in verdicts
        ),
        "\nWhat would be usable, at best: at least so many such chips, which share one link; or the",
        "document's number of chips on a link of at least so many bytes a second. More chips are of no",
        "use where the weights alone take longer on the link, and no link is where the chips do.\n",
        f"| model | usable within | chips, weights on them | chips, sent over {LINK} "
        f"| chips, sent over {FASTER} | the document's chips, sent over a link of |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {one.model} | {duration(one.within)} | {_count(one.chips('device'))} "
            f"| {_count(one.chips('home'))} | {_count(one.chips('home', FASTER))} | {_rate(one)} |"
            for one in verdicts
        ),
        f"\nThe last of the first table, {last.model}, is printed by\n",
        "```bash",
        f"trace {last.model} --seq 1 --out {last.model}",
        last.command,
        "```",
    ]


def _chip(one: Verdict) -> str:
    options = one.split("device").options.text
    return f"{CHIP}, {options}, weights in {one.weights}" if options else CHIP


def _told(one: Verdict, weights_at: str) -> str:
    split = one.split(weights_at)
    return f"{no_less(split.run_seconds or 0.0, split.left_out)}: {verdict(split, one.within)}"


def _count(chips: int | None) -> str:
    return "no number" if chips is None else f"{chips:,}"


def _rate(one: Verdict) -> str:
    rate = one.bytes_per_second
    return "no link" if rate is None else f"{ceil(rate / 1e6):,} MB/s"
