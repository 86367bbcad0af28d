"""Running a model on the meta device, to see what it does."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch


@contextlib.contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    """The module as it was afterwards: some code keeps what it computed once (long RoPE tables)."""
    kept = [
        (vars(part), dict(vars(part)), part._buffers, dict(part._buffers))
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for attributes, attributes_before, buffers, buffers_before in kept:
            for table, before in ((attributes, attributes_before), (buffers, buffers_before)):
                table.clear()
                table.update(before)


@contextlib.contextmanager
def run_on_meta(module: torch.nn.Module) -> Iterator[None]:
    """For a run of ``module`` without data that takes the ways of an export.

    There, kernels are avoided that no meta tensor can run.
    """
    with untouched(module), patch("torch.compiler.is_compiling", lambda: True):
        yield
