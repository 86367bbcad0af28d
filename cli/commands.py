"""All commands. Each imports what it needs: help must be instant."""

# The help lists the commands in this order.
from cli import tracing, splitting, generating, sweeping, reporting, running  # isort: skip
from cli import exporting, costs, devices, links, asking  # isort: skip
from cli.app import app

__all__ = [
    "app",
    "asking",
    "costs",
    "devices",
    "exporting",
    "generating",
    "links",
    "reporting",
    "running",
    "splitting",
    "sweeping",
    "tracing",
]
