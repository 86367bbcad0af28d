"""What it costs to split a model between machines: bytes, calls, FLOPs, the best placement.

A model is traced into an op graph, without weights; a policy places every op on a device; what
crosses between devices is counted to the byte. Tables are Arrow tables, for DuckDB, polars and
pandas. Nothing is written to disk but by ``save``, ``report`` and ``export``.

>>> import cutedge
>>> traced = cutedge.trace("edge-10m", seq=64)
>>> split = traced.partition("offload-linear")
>>> split.transfers.num_rows, split.summary["total_payload_bytes"]
(68, 5938240)
>>> [one.policy for one in traced.compare(["offload-linear", "min-cut"])]
['offload-linear', 'min-cut']
"""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers take it; ``typing`` takes half of the import's time
if TYPE_CHECKING:
    from cutedge._carried import placement
    from cutedge._compare import Comparison
    from cutedge._cost import limits, params
    from cutedge._design import design
    from cutedge._gemm import gemm
    from cutedge._generate import Generation, generate
    from cutedge._partition import Partition
    from cutedge._plan import Plan
    from cutedge._sql import query
    from cutedge._sweep import sweep
    from cutedge._trace import Trace, load, trace
    from tracer.errors import CutedgeError, InputError

__all__ = [  # noqa: RUF022  # in groups
    # begin
    "load",
    "placement",
    "trace",
    # a whole generation, many points, and what is on disk
    "generate",
    "query",
    "sweep",
    # ask of a model or a device alone
    "design",
    "gemm",
    "limits",
    "params",
    # what there is then
    "Comparison",
    "Generation",
    "Partition",
    "Plan",
    "Trace",
    # what is raised
    "CutedgeError",
    "InputError",
]

_PLACES = {
    "Comparison": "cutedge._compare",
    "Partition": "cutedge._partition",
    "Plan": "cutedge._plan",
    "Trace": "cutedge._trace",
    "Generation": "cutedge._generate",
    "design": "cutedge._design",
    "gemm": "cutedge._gemm",
    "generate": "cutedge._generate",
    "limits": "cutedge._cost",
    "load": "cutedge._trace",
    "params": "cutedge._cost",
    "placement": "cutedge._carried",
    "query": "cutedge._sql",
    "sweep": "cutedge._sweep",
    "trace": "cutedge._trace",
    "CutedgeError": "tracer.errors",
    "InputError": "tracer.errors",
}


def __getattr__(name: str) -> object:
    """What is public, loaded when it is asked for: ``import cutedge`` loads nothing else."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cutedge")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
