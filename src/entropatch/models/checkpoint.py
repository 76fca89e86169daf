"""Weights in files: written as safetensors with a note of what they are, read without running code from the file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entropatch.records.files import replacing

# The header's only entry: safetensors does not keep the order of several, and equal weights shall be equal files.
KEY = "entropatch"


class WeightsFileError(ValueError):
    """A weights file cannot be read, or does not fit the model. The message names the file and the fix."""


def save_weights(model: nn.Module, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write the state_dict as safetensors, whole or not at all, with `about` as JSON in the header."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(about, sort_keys=True)})


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_weights` noted in the file's header; empty for files of other origin."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise WeightsFileError(f"{path} is not a whole safetensors file: {error}.") from error


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a PyTorch file that holds nothing but tensors.

    Of a dictionary that holds the weights under "state_dict" or "model", those are taken.

    Raises:
        WeightsFileError: no such file, damaged, or it holds objects that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsFileError(f"{path} does not exist; give a .safetensors or PyTorch weights file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsFileError(
            f"{path} holds more than tensors, which could run code when loaded; convert it to safetensors where you "
            f"trust it. ({str(error).splitlines()[0]})"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsFileError(f"{path} cannot be read as weights, it may be damaged: {error}.") from error
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsFileError(f"{path} must hold tensors by name, alone or under 'state_dict' or 'model'.")
    return state


def classes_of(path: str | Path) -> int | None:
    """For how many classes the weights in a file are; None if the file does not say."""
    noted = read_about(path).get("classes")
    if noted is not None:
        return int(noted)
    bias = next((value for name, value in load_weights(path).items() if name in ("head.bias", "fc.bias")), None)
    return None if bias is None else bias.numel()


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str, *, new_head: bool) -> bool:
    """Load weights into a timm model, position embeddings resampled to its grid as timm does it.

    Args:
        model: a stock timm model.
        state: tensors by name.
        source: for messages.
        new_head: whether a classifier of other shape, or none, is left out, the model's own staying as it is.

    Returns:
        Whether the classifier was loaded too.

    Raises:
        WeightsFileError: a parameter is missing, unknown or of another shape: these are another model's weights.
    """
    state = _as_timm_names(dict(state), model)
    own = model.state_dict()
    head = tuple(f"{name}." for name in _classifiers(model))
    fits = all(name in state and state[name].shape == own[name].shape for name in own if name.startswith(head))
    if not fits and new_head:
        state = {name: value for name, value in state.items() if not name.startswith(head)}
        state |= {name: value for name, value in own.items() if name.startswith(head)}
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    other = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    if missing or unknown or other:
        example = min(other) if other else min(missing or unknown)
        shapes = f": {tuple(state[example].shape)} there, {tuple(own[example].shape)} here" if other else ""
        hint = (
            " The classifier is for another number of classes."
            if other and all(n.startswith(head) for n in other)
            else ""
        )
        raise WeightsFileError(
            f"{source} does not hold the weights of this {type(model).__name__}: {len(missing)} tensors are missing, "
            f"{len(unknown)} unknown and {len(other)} of another shape, such as {example}{shapes}.{hint}"
        )
    model.load_state_dict(state, strict=True)
    return fits


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """timm's names of the layers that depend on the number of classes."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def _as_timm_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's own conversion for this kind of model: foreign names, and another image or patch size."""
    from importlib import import_module

    module = next(kind.__module__ for kind in type(model).__mro__ if kind.__module__.startswith("timm."))
    convert = getattr(import_module(module), "checkpoint_filter_fn", None)
    return state if convert is None else convert(state, model)
