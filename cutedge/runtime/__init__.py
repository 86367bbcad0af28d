"""Runs a placement for real: the home side here, a worker process for each accelerator.

``plan`` says who does what when, ``interpreter`` runs ops, ``wire`` moves tensors and counts bytes,
``weights`` makes the numbers, ``worker`` and ``home`` are the two sides, ``measured`` writes what
was measured.
"""

from tracer.errors import CutedgeError


class RunError(CutedgeError):
    """A run that failed on the way: a worker that died, bytes that are not a message."""
