"""Short names of a model, of images, and of what decides speed, by which a folder knows what its numbers are of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.models import checkpoint

_LENGTH = 24
_ELSEWHERE = ("training", "name_or_path", "transformers_version")  # attributes that say where a model is from, or is at


def fingerprint(model: nn.Module) -> str:
    """A short name of the weights, and of what else decides an output: the class of each part, and its numbers, flags
    and texts, such as how many heads there are."""
    found = hashlib.sha256()
    for name, part in model.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        found.update(f"{name} {kind} {sorted(_plain_attributes(vars(part)))}".encode())
    found.update(checkpoint.fingerprint(model.state_dict()).encode())
    return found.hexdigest()[:_LENGTH]


def digest(images: Tensor) -> str:
    """A short name of the images."""
    return hashlib.sha256(images.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:_LENGTH]


def machine(model: nn.Module, images: Tensor) -> str:
    """A short name of what decides speed, beside the model and the setting: device, threads, versions and precision;
    and the batch that is run."""
    from entropatch.measure import environment

    facts: dict[str, Any] = {key: value for key, value in environment(images.device).items() if key != "date"}
    facts |= {"batch": tuple(images.shape), "precision": torch.get_float32_matmul_precision()}
    facts |= {"cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)}
    configs = [config for part in model.modules() if (config := getattr(part, "config", None)) is not None]
    facts["attention"] = sorted({str(getattr(config, "_attn_implementation", None)) for config in configs})
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]


def _plain_attributes(holder: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what is plain, and of functions; of a configuration of transformers, of all that it holds."""
    for name, value in holder.items():
        if name.startswith("_") or name in _ELSEWHERE:
            continue
        if hasattr(value, "to_dict"):
            yield name, str(sorted(_plain_attributes(value.to_dict())))
        elif _is_plain(value):
            yield name, repr(value)
        elif hasattr(value, "__qualname__"):
            yield name, value.__qualname__


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
