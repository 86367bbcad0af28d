"""What a shell completes: the names of models, policies, devices, engines, links and tables.

A name may stand behind ``NAME=``. A path is completed by the shell itself where no name fits.
"""

from collections.abc import Callable
from importlib import import_module


def _names_of(module: str, names: str) -> Callable[[str], list[str]]:
    """Completes the names that a function (or a table) of a module has, loaded when asked."""

    def fitting(incomplete: str) -> list[str]:
        known = getattr(import_module(module), names)
        named, is_named, begun = incomplete.rpartition("=")
        each = known() if callable(known) else known
        return [f"{named}{is_named}{name}" for name in each if name.startswith(begun)]

    return fitting


models = _names_of("tracer.presets", "preset_names")
policies = _names_of("partition.policy", "policy_names")
devices = _names_of("costmodels.devices", "device_names")
engines = _names_of("costmodels.engines", "engine_names")
packings = _names_of("costmodels.packing", "packing_names")
links = _names_of("costmodels.links", "link_names")
tables = _names_of("cutedge._workspace", "MAKERS")
