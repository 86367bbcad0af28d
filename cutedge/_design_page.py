"""Designs as a page that needs nothing else: for each run a chart of area against seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutedge._design import Designs


def write_designs(made: "Designs", page: Path) -> Path:
    raise NotImplementedError
