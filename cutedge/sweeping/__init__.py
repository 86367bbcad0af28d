"""Many points at once: models over sizes, policies, links and devices, from formulas."""

from typing import Literal

BackendName = Literal["local", "dask", "ray"]
"""What carries a sweep out: processes of this machine, or a cluster's."""
