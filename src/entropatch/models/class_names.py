"""What the classes of a model are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def class_names(model: nn.Module) -> Callable[[int], str]:
    """The name of each class by its number: as the model's own settings have it, or "class 281" where none has.

    transformers' `config.id2label`, timm's `pretrained_cfg` ("label_names"), or, of timm's models of ImageNet, its own
    list of that; nothing is downloaded.
    """
    labels: Any = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, dict) and not all(str(name).startswith("LABEL_") for name in labels.values()):
        return lambda number: str(labels.get(number, labels.get(str(number), f"class {number}")))
    settings: Any = getattr(model, "pretrained_cfg", None)
    names = settings.get("label_names") if isinstance(settings, dict) else None
    if names:
        return lambda number: str(names[number]) if number < len(names) else f"class {number}"
    return _of_imagenet(model) or (lambda number: f"class {number}")


def _of_imagenet(model: Any) -> Callable[[int], str] | None:
    """timm's names, for a model of its own whose settings say that it is of ImageNet and whose head still is."""
    settings = getattr(model, "pretrained_cfg", None)
    if not isinstance(settings, dict) or settings.get("num_classes") != getattr(model, "num_classes", None):
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return lambda number: str(info.index_to_description(number)) if number < info.num_classes() else f"class {number}"
