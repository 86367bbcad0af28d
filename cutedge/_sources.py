"""What a user calls a model, found: a config, or a program in a file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tracer.errors import InputError

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
    def takes(self) -> tuple[str, ...]:
        """The options that mean something of it: ``dtype``, ``attn``, ``overrides``."""

    def capture(self, sizes: Mapping[str, int | None], options: Mapping[str, Any]) -> "Capture":
        """Its op graph at sizes, with the options that it takes, and ``full``."""


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
    if match := _PACKAGED.fullmatch(model):
        return Source(match[2], program=_Packaged(match[1], match[2]))
    if (denoiser := _denoiser(Path(model))) is not None:
        return Source(denoiser.name, program=denoiser)
    name, config = find_config(model)
    return Source(name, config, weights=_weights_in(Path(model)))


def has_own_sizes(model: str) -> bool:
    """Whether what a user calls a model says itself what runs, and so at which sizes."""
    from tracer.presets import FUNCTION

    if FUNCTION.fullmatch(model) or _PACKAGED.fullmatch(model):
        return True
    return model.endswith((".pt2", ".onnx")) or _denoiser(Path(model)) is not None


def _weights_in(folder: Path) -> Path | None:
    """The weights that lie beside the config in a model's folder: their index, or one file."""
    from tracer.safetensors_files import INDEX

    if not os.path.isdir(folder):  # unlike Path's, False for a name that no file may have
        return None
    found = sorted(folder.glob("*.safetensors"))
    beside = [folder / INDEX, folder / "model.safetensors", *(found if len(found) == 1 else ())]
    return next((file for file in beside if file.is_file()), None)


@dataclass(frozen=True, slots=True)
class _File:
    """A file whose whole program was read."""

    read: "Exported | OnnxFile"
    kind: str
    """What wrote it."""

    @property
    def name(self) -> str:
        return self.read.name

    @property
    def called(self) -> str:
        return self.read.file

    @property
    def identity(self) -> list[Any]:
        return [self.kind, self.read.name, self.read.digest]


@dataclass(frozen=True, slots=True)
class _Exported(_File):
    """A program of ``torch.export.save``."""

    read: "Exported"
    kind: str = "torch.export"

    @property
    def takes(self) -> tuple[str, ...]:
        return ()

    def capture(self, sizes: Mapping[str, int | None], options: Mapping[str, Any]) -> "Capture":
        from tracer.capture import capture_exported

        return capture_exported(self.read, **sizes)


@dataclass(frozen=True, slots=True)
class _Onnx(_File):
    """A model in ONNX."""

    read: "OnnxFile"
    kind: str = "onnx"

    @property
    def takes(self) -> tuple[str, ...]:
        return ("overrides",)

    def capture(self, sizes: Mapping[str, int | None], options: Mapping[str, Any]) -> "Capture":
        from tracer.onnx_files import capture_onnx

        return capture_onnx(self.read, sizes, options["overrides"])


_PACKAGED = re.compile(r"(timm|torchvision):([\w.-]+)")
"""What a user calls a model of another package."""


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A model that another package builds by its name."""

    package: str
    name: str

    @property
    def called(self) -> str:
        return f"{self.package}:{self.name}"

    @property
    def identity(self) -> list[Any]:
        return [self.package, self.name]

    @property
    def takes(self) -> tuple[str, ...]:
        return ("dtype", "attn", "overrides")

    def capture(self, sizes: Mapping[str, int | None], options: Mapping[str, Any]) -> "Capture":
        from tracer.capture import capture_own, own_packaged

        return capture_own(own_packaged(self.package, self.name), **{**options, **sizes})


_PARTS = ("unet", "transformer", "prior")
"""The parts of a folder of diffusers that run at every step; the first that is there is meant."""


def _denoiser(folder: Path) -> "_Denoiser | None":
    """What runs at every step in a folder of diffusers; None for any other folder."""
    from tracer.presets import read_config

    if not os.path.isdir(folder):
        return None
    if (folder / "model_index.json").is_file():
        found = next((part for part in _PARTS if (folder / part / "config.json").is_file()), None)
        if found is None:
            raise InputError(
                f"{folder} has a model_index.json and no config of what runs at every step "
                f"({' or '.join(f'{part}/config.json' for part in _PARTS)})"
            )
        place = folder / found
    elif (folder / "config.json").is_file():
        place = folder
    else:
        return None
    config = read_config(place / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        return None
    return _Denoiser(folder.resolve().name, str(folder), config)


@dataclass(frozen=True, slots=True)
class _Denoiser:
    """The model of a folder of diffusers."""

    name: str
    called: str
    config: Mapping[str, Any]

    @property
    def identity(self) -> list[Any]:
        return ["diffusers", self.name, dict(self.config)]

    @property
    def takes(self) -> tuple[str, ...]:
        return ("dtype", "attn")

    def capture(self, sizes: Mapping[str, int | None], options: Mapping[str, Any]) -> "Capture":
        from tracer.capture import capture_own, own_diffusers

        own = own_diffusers(self.config, self.name, self.called)
        return capture_own(own, **{**options, **sizes})
