"""All commands. Each imports what it needs: help must be instant."""

from collections.abc import Sequence
from importlib import import_module

from typer import Typer

from cli.app import app

MODULES = {
    "tracing": ("trace", "models"),
    "splitting": ("partition", "compare", "policies"),
    "generating": ("generate",),
    "sweeping": ("sweep", "design"),
    "reporting": ("report",),
    "running": ("verify", "worker"),
    "exporting": ("export",),
    "costs": ("cost", "limits", "params"),
    "devices": ("devices", "gemm"),
    "links": ("links", "calibrate"),
    "asking": ("query",),
}
"""The commands of each module here. The help lists them in this order."""


def app_of(words: Sequence[str] = ()) -> Typer:
    """The app with the command that the words begin with; with all, where they begin with no command.

    It takes 0.1 s to make all of them.
    """
    asked = [module for module, names in MODULES.items() if {*words[:1]} & {*names}]
    for module in asked or MODULES:
        import_module(f"cli.{module}")
    return app
