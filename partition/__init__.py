"""Where each op runs, and what crosses between devices because of it."""

from typing import Literal

Residency = Literal["run", "call"]
"""``run``: a device keeps what it received or made to the end of the run; ``call``: an accelerator
forgets it between calls."""

Order = Literal["bytes", "calls", "seconds", "energy", "seen"]
"""What policies side by side are sorted by: payload, calls, the run, sorts of tensor seen."""

ScheduleKind = Literal["serial", "overlap"]
"""``serial``: ops and transfers one after another; ``overlap``: each as soon as it can."""

Granularity = Literal["op", "tensor", "module", "layer", "convex"]
"""The smallest unit that an executor can place; see ``partition.granularity``."""
