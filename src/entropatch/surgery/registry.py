"""The model libraries there are adapters for. A new one is its file in `adapters/` and one line here."""

from __future__ import annotations

import sys
from importlib import import_module

from torch import nn

from entropatch.surgery.adapters.base import Adapter

# The package, and where its adapter is.
LIBRARIES: dict[str, tuple[str, str]] = {
    "timm": ("entropatch.surgery.adapters.timm", "TimmAdapter"),
    "torchvision": ("entropatch.surgery.adapters.torchvision", "TorchvisionAdapter"),
    "open_clip": ("entropatch.surgery.adapters.open_clip", "OpenClipAdapter"),
}


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that recognises the model; no library is imported for it that is not imported already."""
    there = (_made(*where) for package, where in LIBRARIES.items() if package in sys.modules)
    return next((adapter for adapter in there if adapter.recognises(model)), None)


def stock_tower(model: nn.Module) -> nn.Module:
    """The model that is pruned inside a larger one of a library; the last one found, pruned or not, or itself.

    Another class may say by its attribute `entropatch_tower` where in it the model is.

    Raises UnsupportedModelError where the larger model must not be pruned.
    """
    while adapter_of(model) is None:
        names = (_made(*where).tower(model) for package, where in LIBRARIES.items() if package in sys.modules)
        name = next((name for name in names if name is not None), getattr(type(model), "entropatch_tower", None))
        if name is None:
            break
        model = model.get_submodule(name)
    return model


def supported() -> str:
    """What is understood, in words; of libraries that are not imported only their names, since that takes long."""
    there = [_made(*where).supported for package, where in LIBRARIES.items() if package in sys.modules]
    others = [package for package in LIBRARIES if package not in sys.modules]
    return "; ".join(there) + (f"; models of {', '.join(others)}" if others else "")


def _made(module: str, name: str) -> Adapter:
    return getattr(import_module(module), name)()
