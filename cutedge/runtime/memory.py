"""What memory there is, on a machine and on its CUDA device, and what of it may be taken."""

import os
import resource
from pathlib import Path

import torch

from cutedge.runtime import RunError

SPARE_BYTES = 256 * 2**20
"""What a device leaves free of its memory."""


def free_bytes(device: str) -> int:
    """Memory that a process can still have on ``cpu`` or ``cuda``, less what is to stay free."""
    if device == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch's, for reuse
        free = int(torch.cuda.mem_get_info()[0]) + int(kept)
    else:
        free = _available_bytes()
    return max(free - SPARE_BYTES, 0)


def check_memory(needed: int, device: str, most: int | None) -> None:
    """Raise RunError where ``needed`` bytes are more than ``most``, or than ``device`` has free."""
    most = free_bytes(device) if most is None else most
    if needed > most:
        raise RunError(f"its weights and constants need {needed:,} bytes, and may take {most:,}")


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _available_bytes() -> int:
    """Memory that a process can still have, as the system reckons it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
