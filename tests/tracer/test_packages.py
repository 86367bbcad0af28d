"""Models of other packages by name: with stand-ins for the packages, and with them where they are."""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cutedge
from costmodels.flops import total_flops
from tests.support.inprocess import invoke
from tracer.errors import InputError


class Convolution(torch.nn.Module):
    """A convolution of 3 x 3 and a head, as timm describes its models."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, classes)
        self.pretrained_cfg = {"input_size": (3, 8, 10)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def timm() -> Any:
    def create_model(name: str, *, pretrained: bool, num_classes: int = 5, **_: Any) -> Any:
        assert not pretrained
        return Convolution(num_classes)

    return SimpleNamespace(
        is_model=lambda name: name == "tiny",
        list_models=lambda: ["tiny"],
        create_model=create_model,
    )


def test_a_model_of_timm_is_traced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", timm())
    traced = cutedge.trace("timm:tiny", batch=2, overrides={"num_classes": 7}, use_cache=False)
    # Of each of 8 x 10 places 3 x 3 x 3 products for 4 channels; of each image 4 for 7 classes.
    assert total_flops(traced.graph).products == 2 * 2 * (80 * 27 * 4 + 4 * 7)
    assert traced.graph.meta.parameters == 4 * 27 + 4 + 4 * 7 + 7
    assert (traced.graph.meta.model, traced.graph.meta.symbolic) == ("tiny", ("batch",))
    half = cutedge.trace("timm:tiny", dtype="bfloat16", use_cache=False)
    assert half.graph.meta.dtype == "bfloat16"
    with pytest.raises(InputError, match=r"timm has no such model\. Did you mean tiny\?"):
        cutedge.trace("timm:tin", use_cache=False)
    with pytest.raises(InputError, match="leave --phase out"):
        cutedge.trace("timm:tiny", phase="decode")


@pytest.mark.parametrize("package", ["timm", "torchvision", "diffusers"])
def test_a_package_that_is_missing_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    model = f"{package}:resnet18"
    if package == "diffusers":
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        model = str(tmp_path)
    done = invoke("trace", model, "--no-trace-cache")
    assert done.returncode == 2
    assert done.stderr == f"error: {model} needs the package {package}: pip install {package}\n"


class Denoiser(torch.nn.Module):
    """Latents, a time and a text, as the models of diffusers take them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.text = torch.nn.Linear(config["cross_attention_dim"], config["in_channels"])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Denoiser":
        return cls(config)

    def forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool = True
    ) -> Any:
        told = self.text(encoder_hidden_states).mean(1)
        return sample + told[:, :, None, None] * timestep[:, None, None, None]


def test_the_denoiser_of_a_folder_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(Denoiser=Denoiser))
    folder = tmp_path / "pipe"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"no config of what runs at every step \(unet/config"):
        cutedge.trace(folder)
    (folder / "unet").mkdir()
    config = {"_class_name": "Denoiser", "sample_size": 8, "in_channels": 4}
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 16}))
    traced = cutedge.trace(folder, batch=3, seq=20, use_cache=False)
    assert total_flops(traced.graph).products_expr == "128*batch*seq"  # 2 x 16 x 4
    shapes = {t.name: t.shape for t in traced.graph.tensors if t.role.value == "input"}
    assert shapes == {
        "sample": (3, 4, 8, 8),
        "timestep": (3,),
        "encoder_hidden_states": (3, 20, 16),
    }
    (folder / "unet" / "config.json").write_text('{"_class_name": "Unheard"}')
    with pytest.raises(InputError, match="diffusers has no Unheard"):
        cutedge.trace(folder, use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parameters", "products"),
    [  # as published: multiplications and additions, of images of 224 x 224
        ("timm:resnet18", 11_689_512, 2 * 1_814_073_344),
        ("torchvision:resnet18", 11_689_512, 2 * 1_814_073_344),
        ("torchvision:vit_b_16", 86_567_656, None),
    ],
)
def test_real_packages_give_the_published_figures(
    model: str, parameters: int, products: int | None
) -> None:
    pytest.importorskip(model.partition(":")[0])
    graph = cutedge.trace(model).graph
    assert graph.meta.parameters == parameters
    assert products in (None, total_flops(graph).products)


def test_a_builder_may_take_any_setting() -> None:
    from tracer.capture import capture_own
    from tracer.capture.user import Own

    def build(batch: int = 1, **options: Any) -> Any:
        return Convolution(options["classes"]), torch.zeros(batch, 3, 4, 4)

    assert "options" in inspect.signature(build).parameters
    made = capture_own(Own(build, "m", "m"), overrides={"classes": 2})
    assert made.graph.meta.overrides == (("classes", "2"),)
