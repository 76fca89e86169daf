"""Exported files of models of transformers, torchvision and OpenCLIP, and what is said of those that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_towers import clip, coca, torchvision_model
from small_transformers import CASES
from torch import Tensor, nn

import entropatch
from entropatch.export import Exported
from entropatch.export.parity import batches_of, compare, in_pytorch
from entropatch.export.subject import named_outputs, subject_of

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], Any]


def noise(batch: int, *size: int) -> Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


def exported_and_compared(model: Any, size: tuple[int, ...], path: Path) -> Exported:
    """The file is as PyTorch is for other images and batch sizes than those it was checked with."""
    done = entropatch.export(model, noise(3, *size), path, on_message=lambda line: None)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in (1, 5):
        images = noise(batch, *size)
        with torch.no_grad():
            expected = named_outputs(model(images), model)
        found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.abs(found[name] - value.numpy()).max() < 2e-5 * max(1.0, float(value.abs().max()))
    return done


def test_a_classifier_of_transformers(tmp_path: Path) -> None:
    case = CASES["ViTForImageClassification"]
    shallow = replace(case, changes={**case.changes, "num_hidden_layers": 2})
    model = entropatch.prune_(shallow.model(), keep_rate=0.6, blocks=(0, 1))
    done = exported_and_compared(model, (3, 32, 24), tmp_path / "vit.onnx")
    assert done.about["model"] == "ViTForImageClassification"
    assert done.parity.counted


LARGER: dict[str, tuple[Make, tuple[int, ...]]] = {
    "DeiT": (CASES["DeiTModel"].model, (3, 32, 24)),
    "DINOv2 maps": (CASES["Dinov2Backbone"].model, (3, 32, 24)),
    "DINOv3": (CASES["DINOv3ViTModel"].model, (3, 32, 24)),
    "depth": (CASES["DepthAnythingForDepthEstimation"].model, (3, 32, 32)),
    "SigLIP": (CASES["SiglipVisionModel"].model, (3, 32, 32)),
    "video": (CASES["VideoMAEModel"].model, (4, 3, 32, 24)),
    "torchvision": (torchvision_model, (3, 80, 80)),
    "OpenCLIP, whole": (clip, (3, 80, 80)),
    "OpenCLIP, attention pooling": (lambda: clip("attention pooling").visual, (3, 80, 80)),
    "OpenCLIP, custom": (lambda: clip("custom").visual, (3, 80, 80)),
    "CoCa": (lambda: coca().visual, (3, 80, 80)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_models_of_other_libraries(tmp_path: Path, name: str) -> None:
    make, size = LARGER[name]
    exported_and_compared(entropatch.prune_(make(), keep_rate=0.6, blocks=(0, 2)), size, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "CLIPModel",
            (3, 32, 32),
            r"CLIPModel does not run on images .* alone.* Export its image tower, model\.vision",
        ),
        ("Siglip2VisionModel", (3, 32, 32), "Siglip2VisionModel does not run on images"),
        ("Idefics3VisionTransformer", (3, 32, 32), "filled up with padding.* export a model without"),
    ],
)
def test_models_that_want_more_than_images(tmp_path: Path, name: str, size: tuple[int, ...], message: str) -> None:
    model = entropatch.prune_(CASES[name].model(), keep_rate=0.6)
    with pytest.raises(ValueError, match=message):
        entropatch.export(model, noise(2, *size), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_one_for_all_images() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = entropatch.prune_(torchvision_model(), keep_rate=0.6, blocks=(0,))
            self.temperature = nn.Parameter(torch.tensor(4.6))

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": self.tower(images), "temperature": self.temperature.exp()}

    subject = subject_of(Tempered().eval(), noise(3, 3, 80, 80))
    assert subject.outputs == ("logits", "temperature")
    batches = batches_of(subject.images)
    found = {name: in_pytorch(subject.model, images) for name, images in batches.items()}
    same = compare(subject, batches, found)
    largest = max(1.0, *(float(np.abs(named["logits"]).max()) for named in found.values()))
    assert same.wrong(1e-6) is None
    found["3"] = {**found["3"], "temperature": np.asarray(1.0)}
    assert "its outputs differ by up to" in str(compare(subject, batches, found).wrong(1e-6))
    assert compare(subject, batches, found).outputs.largest == pytest.approx(largest)
