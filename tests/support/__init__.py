"""What tests share: small graphs, runs, commands, and where things lie."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the project."""

REFERENCE = ROOT / "tests" / "reference"
"""The figures of the reference documents, as data."""

BIN = Path(sys.executable).parent
"""Where the installed commands lie."""
