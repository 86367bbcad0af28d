"""What a shell completes: the names of models, policies, devices and links.

A path is completed by the shell itself where no name fits.
"""

from collections.abc import Iterable


def models(incomplete: str) -> list[str]:
    """Presets."""
    from tracer.presets import preset_names

    return _fitting(incomplete, preset_names())


def policies(incomplete: str) -> list[str]:
    """Policies that come with cutedge."""
    from partition.policy import policy_names

    return _fitting(incomplete, policy_names())


def devices(incomplete: str) -> list[str]:
    """Devices, also after ``NAME=``."""
    from costmodels.devices import device_names

    return _fitting(incomplete, device_names())


def links(incomplete: str) -> list[str]:
    """Links, also after ``NAME=``."""
    from costmodels.links import link_names

    return _fitting(incomplete, link_names())


def tables(incomplete: str) -> list[str]:
    """The tables of a trace and of a partition."""
    from cutedge._workspace import MAKERS

    return _fitting(incomplete, MAKERS)


def _fitting(incomplete: str, names: Iterable[str]) -> list[str]:
    named, is_named, begun = incomplete.rpartition("=")
    return [f"{named}{is_named}{name}" for name in names if name.startswith(begun)]
