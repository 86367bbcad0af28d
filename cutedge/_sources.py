"""What a user calls a model, found: a config, or a program in a file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tracer.captured import Capture
    from tracer.graph import OpGraph
    from tracer.onnx_files import OnnxFile
    from tracer.pt2_files import Exported


class Program(Protocol):
    """A model in a file that says itself what runs."""

    @property
    def name(self) -> str:
        """What the model's tables are called by."""

    @property
    def called(self) -> str:
        """What the user calls it."""

    @property
    def identity(self) -> list[Any]:
        """Equal for programs that trace alike, as JSON."""

    @property
    def settings(self) -> bool:
        """Whether ``--set`` means something of it."""

    def capture(self, sizes: Mapping[str, int | None], settings: Mapping[str, Any]) -> "Capture":
        """Its op graph at sizes."""


@dataclass(frozen=True, slots=True)
class Source:
    """What there is of a model: its config, or its program."""

    name: str
    """What its tables are called by."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its config; empty where there is a program."""
    program: Program | None = None
    """What runs, where a file says it."""
    weights: Path | None = None
    """The file that says how its weights are stored."""
    parameters: int | None = None
    """How many weights that file has, where each is one of the model's."""
    notes: tuple[str, ...] = ()
    """What a user must know of it."""

    def about(self, graph: "OpGraph", *, changed: bool) -> tuple[str, ...]:
        """What a user must know of a trace of it, ``changed`` or as it is."""
        if self.weights is not None and changed:
            return (*self.notes, f"--set makes another model than the weights of {self.weights}")
        traced = graph.meta.parameters
        if self.parameters is None or self.parameters == traced:
            return self.notes
        differ = f"{self.weights} has {self.parameters:,} weights, the model traced {traced:,}"
        return (*self.notes, differ)


def find_source(model: str) -> Source:
    """What a user calls a model: ``tracer.presets.find_config``, or a file that holds a program.

    Raises InputError where there is no such thing, CutedgeError where it is damaged.
    """
    from tracer.presets import find_config

    if model.endswith(".pt2"):
        from tracer.pt2_files import read_pt2

        read = read_pt2(Path(model))
        return Source(read.name, program=_Exported(read))
    if model.endswith(".onnx"):
        from tracer.onnx_files import read_onnx

        onnx = read_onnx(Path(model))
        return Source(onnx.name, program=_Onnx(onnx))
    if model.endswith(".gguf"):
        from cutedge._gguf_models import gguf_model

        file = Path(model)
        found = gguf_model(file)
        return Source(file.stem, found.config, None, file, found.parameters, found.notes)
    name, config = find_config(model)
    return Source(name, config, weights=_weights_in(Path(model)))


def _weights_in(folder: Path) -> Path | None:
    """The weights that lie beside the config in a model's folder: their index, or one file."""
    from tracer.safetensors_files import INDEX

    if not os.path.isdir(folder):  # unlike Path's, False for a name that no file may have
        return None
    found = sorted(folder.glob("*.safetensors"))
    beside = [folder / INDEX, folder / "model.safetensors", *(found if len(found) == 1 else ())]
    return next((file for file in beside if file.is_file()), None)


@dataclass(frozen=True, slots=True)
class _Exported:
    """A program of ``torch.export.save``."""

    read: "Exported"

    @property
    def name(self) -> str:
        return self.read.name

    @property
    def called(self) -> str:
        return self.read.file

    @property
    def identity(self) -> list[Any]:
        return ["torch.export", self.read.name, self.read.digest]

    @property
    def settings(self) -> bool:
        return False

    def capture(self, sizes: Mapping[str, int | None], settings: Mapping[str, Any]) -> "Capture":
        from tracer.capture import capture_exported

        return capture_exported(self.read, **sizes)


@dataclass(frozen=True, slots=True)
class _Onnx:
    """A model in ONNX."""

    read: "OnnxFile"

    @property
    def name(self) -> str:
        return self.read.name

    @property
    def called(self) -> str:
        return self.read.file

    @property
    def identity(self) -> list[Any]:
        return ["onnx", self.read.name, self.read.digest]

    @property
    def settings(self) -> bool:
        return True

    def capture(self, sizes: Mapping[str, int | None], settings: Mapping[str, Any]) -> "Capture":
        from tracer.onnx_files import capture_onnx

        return capture_onnx(self.read, sizes, settings)
