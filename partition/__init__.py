"""Where each op runs, and what crosses between devices because of it."""

from typing import Literal

Residency = Literal["run", "call"]
"""``run``: a device keeps what it received or made to the end of the run; ``call``: an accelerator
forgets it between calls."""
