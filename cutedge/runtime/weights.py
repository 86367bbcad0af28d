"""The numbers of a model: random ones from a seed, or those of a checkpoint; one tensor at a time.

Either way a tensor's numbers follow from its name alone, so that two devices that both need it have
the same, and each loads no more than it needs.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cutedge.runtime import RunError
from cutedge.runtime.wire import DTYPES, Spec
from tracer.errors import InputError
from tracer.files import open_file
from tracer.graph import Kind, OpGraph, Role
from tracer.safetensors_files import INDEX, index_of
from tracer.stages import stage

Numbers = Callable[[str, Spec], torch.Tensor]
"""(name, what it must be) -> the tensor."""


def numbers_of(weights: Mapping[str, Any]) -> Numbers:
    """The numbers that ``weights`` describe: ``{"seed": 0, "spread": 0.02}`` for random ones with
    that standard deviation, or ``{"checkpoint": "folder"}``.

    Raises RunError for a checkpoint that cannot be read.
    """
    if folder := weights.get("checkpoint"):
        return Checkpoint(Path(folder))
    seed, spread = int(weights["seed"]), float(weights["spread"])
    return lambda name, spec: seeded(name, spec, seed, spread)


def seeded(name: str, spec: Spec, seed: int, spread: float) -> torch.Tensor:
    """Normal numbers of standard deviation ``spread``, the same on every machine.

    A weight with one axis scales what a norm made: its mean is 1. All else has mean 0. Both parts
    of a complex number are such numbers. Integers are 0.
    """
    dtype = DTYPES[spec.dtype]
    if dtype.is_complex:
        parts = Spec(str(dtype.to_real()).removeprefix("torch."), (*spec.shape, 2))
        return torch.view_as_complex(seeded(name, parts, seed, spread))
    if not dtype.is_floating_point:
        return torch.zeros(spec.shape, dtype=dtype)
    start = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(start, "little") >> 1)
    mean = 1.0 if len(spec.shape) == 1 and name.endswith("weight") else 0.0
    made = torch.empty(spec.shape, dtype=torch.float32).normal_(mean, spread, generator=generator)
    return made.to(dtype)


def inputs(name: str, spec: Spec, seed: int, rows: int) -> torch.Tensor:
    """Numbers for an input of a model: integers below ``rows``, true, or normal numbers."""
    dtype = DTYPES[spec.dtype]
    if dtype == torch.bool:
        return torch.ones(spec.shape, dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return seeded(f"input {name}", spec, seed, 1.0)
    start = hashlib.sha256(f"{seed}:input {name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(start, "little") >> 1)
    return torch.randint(rows, spec.shape, dtype=dtype, generator=generator)


def state_numbers(name: str, spec: Spec, weights: Mapping[str, Any]) -> torch.Tensor:
    """Cached state before the run: random, and the same wherever it is made."""
    return inputs(name, spec, int(weights.get("seed", 0)), 1)


@stage("making the weights")
def given_numbers(graph: OpGraph, seed: int) -> dict[int, torch.Tensor]:
    """Numbers for what home is given, by tensor; token ids that every embedding has a row for."""
    rows = [
        tensor.shape[0]
        for op in graph.ops
        if op.kind is Kind.EMBEDDING
        for tensor in graph.inputs(op.id)
        if tensor.role is Role.PARAMETER
    ]
    return {
        tensor.id: inputs(tensor.name, Spec(tensor.dtype, tensor.shape), seed, min(rows, default=2))
        for op in graph.ops
        if op.kind is Kind.INPUT and not graph.is_everywhere(op.id)
        for tensor in graph.outputs(op.id)
    }


class Checkpoint:
    """The tensors in the ``.safetensors`` files of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / INDEX
        if not index.exists():
            self.files = {name: path for path in _files(folder) for name in _names(path)}
            return
        try:
            self.files = {name: folder / file for name, file in index_of(index).items()}
        except InputError as error:
            raise RunError(str(error)) from error

    def __call__(self, name: str, spec: Spec) -> torch.Tensor:
        """The tensor called ``name``. Raises RunError where it is missing or of another shape."""
        if name not in self.files:
            raise RunError(f"{self.folder} has no tensor {name}: it is no checkpoint of this model")
        with _opened(self.files[name]) as file:
            found = file.get_tensor(name)
        if tuple(found.shape) != tuple(spec.shape):
            raise RunError(
                f"{self.files[name]}: {name} is {list(found.shape)}, the model has "
                f"{list(spec.shape)}"
            )
        return found.to(DTYPES[spec.dtype])


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise RunError(f"{folder} has no .safetensors files")
    return found


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of safetensors, as its library opens it. Raises RunError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        open_file(path).close()  # the library would wait for a pipe
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: {error}") from error
