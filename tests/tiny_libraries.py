"""Tiny models that the libraries know by name or folder, with weights where each library looks for them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from small_models import awaken
from small_towers import TEXT
from torchvision.models import _api
from torchvision.models._api import Weights, WeightsEnum
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.transforms._presets import ImageClassification

NAME, SIDE = "vit_tiny_16", 48
CLASSES = ("cat", "dog", "newt")
SIZES: dict[str, Any] = {"patch_size": 16, "num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


class TinyWeights(WeightsEnum):
    FIRST = Weights(
        "https://nowhere.invalid/vit_tiny_16-00000001.pth",
        partial(ImageClassification, crop_size=SIDE, resize_size=64),
        {"min_size": (SIDE, SIDE), "categories": list(CLASSES)},
    )
    SECOND = Weights(
        "https://nowhere.invalid/vit_tiny_16-00000002.pth",
        partial(ImageClassification, crop_size=SIDE, resize_size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        {"min_size": (SIDE, SIDE), "categories": list(CLASSES)},
    )
    DEFAULT = FIRST


def vit_tiny_16(*, weights: TinyWeights | None = None, progress: bool = True, **arguments: Any) -> VisionTransformer:
    if TinyWeights.verify(weights) is not None:
        return published()
    return VisionTransformer(**{"image_size": SIDE, **SIZES, **arguments})


vit_tiny_16.__module__ = "torchvision.models.tiny"


def published() -> Any:
    """The model with the weights `TinyWeights.FIRST`, as torchvision would make it."""
    torch.manual_seed(0)
    return awaken(VisionTransformer(image_size=SIDE, num_classes=3, **SIZES)).eval()


@contextmanager
def known_to_torchvision(hub: Path) -> Iterator[None]:
    """torchvision knows the model, and the weights `FIRST` are in its cache below `hub`."""
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(published().state_dict(), hub / "checkpoints" / "vit_tiny_16-00000001.pth")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(hub))
    try:
        with patch.dict(_api.BUILTIN_MODELS, {NAME: vit_tiny_16}):
            yield
    finally:
        torch.hub.set_dir(before)


def open_clip_folder(folder: Path, **changes: Any) -> Any:
    """A folder of an OpenCLIP model, weights and preprocessing in it; returns the model."""
    tower = {"layers": 4, "width": 16, "head_width": 8, "patch_size": 16, "image_size": SIDE}
    text = {**TEXT, "context_length": 77, "vocab_size": 49408, "width": 16}
    config = {"embed_dim": 12, "vision_cfg": tower, "text_cfg": text}
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize_mode": "squash", **changes}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = awaken(open_clip.CLIP(**config)).eval()  # pyright: ignore[reportArgumentType]
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


def transformers_folder(folder: Path, **changes: Any) -> Any:
    """A folder of a transformers image classifier with its image processor; returns the model."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    labels = dict(enumerate(CLASSES))
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=16, id2label=labels)  # pyright: ignore[reportCallIssue]
    torch.manual_seed(0)
    model = awaken(transformers.ViTForImageClassification(config)).eval()
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    processor = transformers.ViTImageProcessor(
        size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], **changes
    )
    processor.save_pretrained(folder)
    return model
