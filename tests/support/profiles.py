"""Chrome traces as torch's profiler writes them on a GPU, of ops whose seconds are known."""

from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]
MICRO = 1e6


def event(
    category: str, name: str, begin: float, seconds: float, tid: int = 1, **args: Any
) -> Event:
    """A complete event; times in seconds."""
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 1,
        "tid": tid,
        "ts": round(begin * MICRO, 3),
        "dur": round(seconds * MICRO, 3),
        "args": args,
    }


class Trace:
    """A trace that grows op by op: the host starts one every ``launch`` seconds."""

    def __init__(self, launch: float) -> None:
        self.launch, self.now, self.free, self.number = launch, 0.0, 0.0, 0
        self.events: list[Event] = []

    def op(
        self,
        name: str,
        dims: Sequence[Any],
        kind: str | Sequence[str],
        seconds: float,
        told: Sequence[str] = (),
    ) -> None:
        """An op with one kernel of so many seconds on the device."""
        self.number += 1
        types = [kind] * len(dims) if isinstance(kind, str) else list(kind)
        shapes = {"Input Dims": list(dims), "Input type": types, "Concrete Inputs": list(told)}
        number, begin = self.number, self.now
        self.events += [
            event("cpu_op", name, begin, 0.8 * self.launch, **{"External id": number}, **shapes),
            event(
                "cuda_runtime",
                "cudaLaunchKernel",
                begin + 0.3 * self.launch,
                0.4 * self.launch,
                correlation=number,
            ),
        ]
        self.free = max(self.free, begin + self.launch)
        self.events.append(
            event("kernel", f"kernel of {name}", self.free, seconds, tid=7, correlation=number)
        )
        self.free += seconds
        self.now += self.launch

    def copy(self, way: str, size: int, seconds: float) -> None:
        """A copy, ``HtoD`` or ``DtoH``."""
        name = f"Memcpy {way} (Pinned -> Device)"
        self.events.append(event("gpu_memcpy", name, self.free, seconds, tid=7, bytes=size))
        self.free += seconds

    @property
    def json(self) -> dict[str, Any]:
        """What ``export_chrome_trace`` writes."""
        return {"schemaVersion": 1, "traceEvents": self.events}
