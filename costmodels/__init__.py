"""What ops and links cost: pure functions of shapes, and descriptions kept as data."""

from typing import Literal

Dataflow = Literal["fixed", "os", "ws", "is"]
"""How an array multiplies. fixed: one tile of fixed size after another. Systolic: what stays in
a cell while the others stream past: an output (os), a weight (ws: of the second operand), an input
(is: of the first)."""

CountAs = Literal["scalesim", "true"]
"""Cycles of a systolic array. scalesim: the number of the last cycle, from 0, which the simulator
SCALE-Sim prints as their count; true: how many there are, one more."""

Overlap = Literal["none", "double-buffered"]
"""Of a systolic array's folds. none: each is loaded, streamed and drained before the next.
double-buffered: a cell holds the next fold's operand beside this one's, so that it is loaded while
this one streams, and the next stream enters right behind."""

Execution = Literal["eager", "graph", "fused"]
"""How ops are carried out. eager: each is started by the host, which runs ahead; graph: captured
once, replayed op by op; fused: as kernels of several ops."""

WeightsAt = Literal["device", "home"]
"""Where the parameters of an op on an accelerator lie. device: on that accelerator; home: at home,
from where they are sent in each run."""
