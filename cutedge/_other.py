"""What a comparison is set beside: another trace, or another machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutedge._compare import Comparison
from cutedge._trace import Trace, load
from tracer.errors import InputError

_MACHINE = ("machine", "home", "accel", "link")


def other_of(
    trace: Trace, other: str, policies: Sequence[str] | None, baseline: str | None, **options: Any
) -> Comparison:
    """What a comparison is set beside: another trace directory, or the same trace on another machine.

    ``options`` are those of the first. Raises InputError for what is no directory and no machine.
    """
    if Path(other).is_dir():
        return load(other).compare(policies, baseline=baseline, **options)
    if "+" not in other:
        raise InputError(
            f"--beside {other}: there is no such trace directory, and a machine is "
            "HOME+ACCELERATOR@LINK, as in tee-tdx+h100-cc@pcie5-x16-cc"
        )
    there = {**options, **dict.fromkeys(_MACHINE), "machine": other}
    return trace.compare(policies, baseline=baseline, **there)
