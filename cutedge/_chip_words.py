"""What limits a run on arrays of multipliers, in a sentence that follows from its figures."""

from collections import Counter
from fractions import Fraction

from partition.run import CycleShares
from partition.split import Split
from tracer.words import counted


def limit_claim(split: Split) -> str | None:
    """Who has most of a run's time, and what the arrays do in theirs; None without arrays.

    What leads is the greatest: cycles that are lost where the arrays have most of the time and lose
    at least half of it, else whoever has most.
    """
    if split.chips is None:
        return _memory_claim(split)
    meta, run = split.graph.meta, split.run
    home, link = split.placement.home, split.link
    chip = " and ".join(split.placement.accelerators)
    at = f" at {counted(meta.batch * meta.seq, 'token')}" if meta.seq else ""
    shares = split.chips.cycle_shares
    cycles = _lost(shares, chip)
    if run is None:
        unknown = link if split.traffic.totals.seconds is None else home
        return f"{cycles}{at}; what {unknown} takes is not known"
    time = f"the {'known ' * bool(split.left_out)}time"
    if split.schedule is not None:
        time += " one after another"
    at_home, away, moving = run.shares
    if moving > max(at_home, away):
        sent = split.sent_weight_bytes / max(split.traffic.totals.payload_bytes, 1)
        weights = f", {sent:.1%} of its bytes weights" if sent else ""
        return f"{link} has {moving:.1%} of {time}{at}{weights}; {cycles}"
    if at_home > away:
        return f"{home} has {at_home:.1%} of {time}{at}; {cycles}"
    if shares.useful <= 0.5:
        return f"{cycles}{at}; {link} has {moving:.1%} of {time}"
    return f"{chip} has {away:.1%} of {time}{at}, {link} {moving:.1%}; {cycles}"


_WAITS = {
    "compute": "are computing",
    "sram": "wait for its SRAM",
    "dram": "wait for its DRAM",
    "overhead": "start ops",
}
"""What the seconds of a chip with memories do, by what bounds them."""


def _memory_claim(split: Split) -> str | None:
    """Who has most of the time where chips wait for memories of their own, and what most of their
    seconds are spent on; None without such chips."""
    meta, run = split.graph.meta, split.run
    seconds: Counter[str] = Counter()
    for bounds in split.bound_seconds.values():
        seconds.update(bounds)
    whole = sum(seconds.values())
    if not whole or {*split.bound_seconds} != {*split.placement.accelerators}:
        return None
    chip = " and ".join(split.placement.accelerators)
    bound, most = seconds.most_common(1)[0]
    spent = f"{most / whole:.1%} of the seconds of {chip} {_WAITS[bound]}"
    at = f" at {counted(meta.batch * meta.seq, 'token')}" if meta.seq else ""
    if run is None:
        return f"{spent}{at}"
    time = f"the {'known ' * bool(split.left_out)}time"
    at_home, away, moving = run.shares
    who, share = max(
        ((split.placement.home, at_home), (chip, away), (split.link, moving)),
        key=lambda one: one[1],
    )
    return f"{who} has {share:.1%} of {time}{at}; {spent}"


def _lost(shares: CycleShares, chip: str) -> str:
    """``7 of 8 cycles of chip-8x8 multiply padding``: what most of the lost cycles go to."""
    lost, what = max((shares.padding, "padding"), (shares.idle, "nothing"))
    if not lost:
        return f"no cycle of {chip} multiplies padding"
    return f"{_part(lost)} cycles of {chip} multiply {what}"


def _part(share: float) -> str:
    """A share as ``7 of 8`` where that is it to a tenth of a percent, else in percent."""
    near = Fraction(share).limit_denominator(10)
    if 1 < near.numerator < near.denominator and f"{float(near):.1%}" == f"{share:.1%}":
        return f"{near.numerator} of {near.denominator}"
    return f"{share:.1%} of the"
