"""Models of other packages by name: timm's and torchvision's, and what diffusers keeps in a folder.

The packages are the user's: nothing here needs one until a model of it is asked for.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tracer.capture.errors import first_line
from tracer.capture.user import Own
from tracer.errors import InputError, suggest


def own_packaged(package: str, name: str) -> Own:
    """The model that a package knows by name, as a function that builds it.

    ``--set`` gives arguments of the package's own builder. Raises InputError where the package is
    not installed, and for a name that it does not know.
    """
    called = f"{package}:{name}"
    return {"timm": _timm, "torchvision": _torchvision}[package](
        name, called, _imported(package, called)
    )


def _imported(package: str, called: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = error.name or package
        raise InputError(
            f"{called} needs the package {package}"
            + (f", which needs {missing}" if missing != package else "")
            + f": pip install {package}"
        ) from error
    except Exception as error:  # a build that does not go with this torch
        raise InputError(
            f"{called}: the package {package} does not load with torch {torch.__version__} "
            f"({first_line(error)}): install the {package} that is made for it"
        ) from error


def _without_data(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A module as ``build`` makes it, on the meta device where its code can do without numbers."""
    try:
        with torch.device("meta"):
            return build(*args, **options)
    except (RuntimeError, NotImplementedError):
        return build(*args, **options)


def _timm(name: str, called: str, timm: Any) -> Own:
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise InputError(f"{called}: timm has no such model." + suggest(base, timm.list_models()))

    def build(batch: int = 1, **options: Any) -> tuple[torch.nn.Module, Any]:
        module = _without_data(timm.create_model, name, pretrained=False, **options)
        channels, *sides = module.pretrained_cfg["input_size"]
        if (wide := options.get("img_size")) is not None:
            sides = [wide, wide] if isinstance(wide, int) else list(wide)
        return module, torch.zeros(batch, options.get("in_chans", channels), *sides, device="meta")

    return Own(build, base, called)


def _torchvision(name: str, called: str, torchvision: Any) -> Own:
    known = torchvision.models.list_models()
    if name not in known:
        raise InputError(f"{called}: torchvision has no such model." + suggest(name, known))

    def build(
        batch: int = 1, image_size: int | None = None, **options: Any
    ) -> tuple[torch.nn.Module, Any]:
        kept = options if image_size is None else {**options, "image_size": image_size}
        takes = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        if "image_size" not in takes and not name.startswith("vit"):
            kept = options
        module = _without_data(torchvision.models.get_model, name, weights=None, **kept)
        side = image_size or _crop(torchvision, name)
        return module, torch.zeros(batch, 3, side, side, device="meta")

    return Own(build, name, called)


def _crop(torchvision: Any, name: str) -> int:
    """Pixels of a side of the images that a model's published weights are for."""
    weights = torchvision.models.get_model_weights(name)
    crops = (str(getattr(one.transforms, "keywords", {}).get("crop_size", "")) for one in weights)
    return next((int(crop) for crop in crops if crop.isdigit()), 224)


# --- diffusers ------------------------------------------------------------------------------------


def own_diffusers(config: Mapping[str, Any], name: str, called: str) -> Own:
    """The denoiser that a config of diffusers describes.

    Raises InputError where diffusers is not installed, or has no such class.
    """
    diffusers = _imported("diffusers", called)
    named = config.get("_class_name")
    try:
        kind = getattr(diffusers, str(named))
    except (AttributeError, RuntimeError, ImportError) as error:
        raise InputError(f"{called}: diffusers has no {named}: {first_line(error)}") from error

    def build(batch: int = 1, seq: int = 77) -> tuple[torch.nn.Module, Any]:
        module = _without_data(kind.from_config, config)
        takes = inspect.signature(module.forward).parameters
        return module, _denoised(called, dict(module.config), takes, batch, seq)

    def plain(batch: int = 1) -> tuple[torch.nn.Module, Any]:
        return build(batch)

    conditioned = "encoder_hidden_states" in inspect.signature(kind.forward).parameters
    return Own(build if conditioned else plain, name, called)


def _denoised(
    called: str, config: Mapping[str, Any], takes: Mapping[str, Any], batch: int, seq: int
) -> dict[str, torch.Tensor]:
    """The inputs of a step, by name: the latents, the text that is followed, the time."""

    def size(*names: str) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if type(value) is int:
                return value
        raise InputError(f"{called}: its config names no {' and no '.join(names)}")

    def made(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device="meta")

    packed = "img_ids" in takes  # patches in a row, in the place of an image
    side = 64 if packed else size("sample_size")
    latents = (
        (side * side // 4, size("in_channels")) if packed else (size("in_channels"), side, side)
    )
    found: dict[str, Callable[[], torch.Tensor]] = {
        "sample": lambda: made(batch, *latents),
        "hidden_states": lambda: made(batch, *latents),
        "timestep": lambda: made(batch),
        "encoder_hidden_states": lambda: made(
            batch,
            seq,
            size(
                "joint_attention_dim", "cross_attention_dim", "caption_channels", "text_embed_dim"
            ),
        ),
        "pooled_projections": lambda: made(batch, size("pooled_projection_dim")),
        "class_labels": lambda: made(batch, dtype=torch.int64),
        "img_ids": lambda: made(latents[0], 3),
        "txt_ids": lambda: made(seq, 3),
        "guidance": lambda: made(batch),
    }
    wanted = {
        "guidance": bool(config.get("guidance_embeds")),
        "class_labels": config.get("num_class_embeds") is not None
        or config.get("norm_type") == "ada_norm_zero",
        "encoder_hidden_states": any(
            config.get(name)
            for name in ("joint_attention_dim", "cross_attention_dim", "caption_channels")
        ),
    }
    given = {name: found[name]() for name in takes if name in found and wanted.get(name, True)}
    open_ = [
        name
        for name, parameter in takes.items()
        if parameter.default is parameter.empty and name not in given and name != "self"
    ]
    if open_:
        raise InputError(
            f"{called}: what {open_[0]} is to be is not known here; hand the model over as "
            "file.py:function"
        )
    if config.get("addition_embed_type") == "text_time":
        width = size("projection_class_embeddings_input_dim")
        times = 6 * size("addition_time_embed_dim")
        given["added_cond_kwargs"] = {
            "text_embeds": made(batch, width - times),
            "time_ids": made(batch, 6),
        }
    return given
