"""Weights in files: written as safetensors with a note of what they are, read without running code from the file."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entropatch.error_text import one_line
from entropatch.records.files import replacing
from entropatch.surgery import set_loaded
from entropatch.surgery.registry import tower_of
from entropatch.surgery.state import PREFIX

# The header's only entry: safetensors does not keep the order of several, and equal weights shall be equal files.
KEY = "entropatch"
FINGERPRINT = "sha256"


class WeightsFileError(ValueError):
    """A weights file cannot be read, or does not fit the model. The message names the file and the fix."""


def save_weights(model: nn.Module, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write the state_dict as safetensors, whole or not at all, with `about` as JSON in the header.

    A fingerprint of the tensors stands beside it, by which `load_weights` notices damage.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    noted = {**about, FINGERPRINT: fingerprint(state)}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(noted, sort_keys=True)})


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and values of tensors, by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        values: Any = tensor.detach().cpu().contiguous().flatten().view(dtype=torch.uint8).numpy()
        sha.update(values)
    return sha.hexdigest()


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_weights` noted in the file's header; empty for files of other origin.

    Raises:
        WeightsFileError: no such file, or its header is damaged.
    """
    noted = _header(_existing(path))
    noted.pop(FINGERPRINT, None)
    return noted


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a PyTorch file that holds nothing but tensors.

    Of a dictionary that holds the weights under "state_dict" or "model", those are taken. Where the file has checksums,
    as those of `save_weights` and of torch.save have, the tensors are compared with them.

    Raises:
        WeightsFileError: no such file, damaged, or it holds objects that could run code.
    """
    path = _existing(path)
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except Exception as error:  # whatever a damaged file makes PyTorch, its unpickler and safetensors meet
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise WeightsFileError(
                f"{path} holds more than tensors, which could run code when loaded, or is damaged; convert it to "
                f"safetensors where you trust it. ({_one_line(error)})"
            ) from error
        raise WeightsFileError(f"{path} cannot be read as weights, it may be damaged: {_one_line(error)}.") from error
    noted = _header(path).get(FINGERPRINT)
    if noted is not None and noted != fingerprint(state):
        raise WeightsFileError(f"{path} is damaged: its tensors are not those that it was written with.")
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightsFileError(f"{path} must hold tensors by name, alone or under 'state_dict' or 'model'.")
    return state


def classes_of(path: str | Path) -> int | None:
    """For how many classes the weights in a file are; None if the file does not say."""
    noted = read_about(path).get("classes")
    if noted is not None:
        return noted
    bias = next((value for name, value in load_weights(path).items() if name in ("head.bias", "fc.bias")), None)
    return None if bias is None else bias.numel()


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightsFileError(f"{path} does not exist; give a .safetensors or PyTorch weights file.")
    return path


def _header(path: Path) -> dict[str, Any]:
    """The note in a safetensors file's header; empty where there is none."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            noted = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except Exception as error:  # safetensors' errors, JSON's, the system's
        raise WeightsFileError(f"{path} is not a whole safetensors file: {_one_line(error)}.") from error
    kinds = {"model": dict, "data": dict, "classes": int, "image_size": int}
    names = noted.get("model") if isinstance(noted, dict) else None
    if (
        not isinstance(noted, dict)
        or any(name in noted and not isinstance(noted[name], kind) for name, kind in kinds.items())
        or (isinstance(names, dict) and not isinstance(names.get("name", ""), str))
    ):
        raise WeightsFileError(f"{path} is damaged: its header says {one_line(str(noted), longest=200)}.")
    return noted


def _load_pickled(path: Path) -> Any:
    """A file of torch.save, by nothing but tensors. Its archive notes a checksum of each tensor that PyTorch passes
    over, and 0 for all where it was told to note none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.CRC for entry in archive.infolist()) and (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} has another checksum than the archive notes")
    return torch.load(path, map_location="cpu", weights_only=True)


def _one_line(error: Exception) -> str:
    text = str(error).rpartition("WeightsUnpickler error: ")[2]  # before it PyTorch says how to load it all the same
    return one_line(text if text.strip() else error, longest=200).rstrip(".")


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    new_head: bool,
    classifier: Sequence[str] | None = None,
) -> bool:
    """Load weights into a model; into timm's, position embeddings are resampled to its grid as timm does it.

    Args:
        model: a stock model.
        state: tensors by name.
        source: for messages.
        new_head: whether a classifier of other shape, or none, is left out, the model's own staying as it is.
        classifier: names of the layers that depend on the number of classes; None for a timm model, which says so.

    Returns:
        Whether the classifier was loaded too.

    Raises:
        WeightsFileError: a parameter is missing, unknown or of another shape: these are another model's weights.

    Weights of a pruning method's own are kept for `entropatch.prune_`, which gives them to a setting that has such.
    """
    state, own_weights = without_method(state)
    try:
        state = _as_timm_names(dict(state), model) if classifier is None else dict(state)
    except Exception as error:  # timm's conversions take the tensors they know for granted
        raise WeightsFileError(
            f"{source} does not hold the weights of this {type(model).__name__}: timm cannot translate it "
            f"({type(error).__name__}: {_one_line(error)})."
        ) from error
    own = model.state_dict()
    head = tuple(f"{name}." for name in (_classifiers(model) if classifier is None else classifier))
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
    if own_weights:
        set_loaded(tower_of(model).module, own_weights)
    return fits


def without_method(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's own tensors, and those of a pruning method's, by their names behind its prefix."""
    model, own = {}, {}
    for name, tensor in state.items():
        _, found, after = f".{name}".partition(f".{PREFIX}.")
        if found and after:
            own[after] = tensor
        else:
            model[name] = tensor
    return model, own


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
